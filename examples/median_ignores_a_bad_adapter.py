"""One of six adapters is bad: which merges ignore it?

Five adapters are near to each other. The sixth is unrelated, and multiplied by 1 to 10,000 as if its training
had diverged. How far is the merge of all six from that of the five good ones?

- The plain average follows the bad adapter as far as it goes.
- The Fréchet mean on the quotient goes one sixth of the way. Distances there grow as the logarithm of a size,
  so the merge grows as the sixth root: slowly, but without a bound.
- The median (`Absolute`) and Huber's mean stop: far away the pull of a point is its weight, whatever its
  distance. The trimmed mean leaves the farthest sixth out, and does not move at all.

Run: python examples/median_ignores_a_bad_adapter.py [picture.png]
Source: Fletcher, Venkatasubramanian, Joshi 2009 (medians on manifolds); GeoMerge, section 3.2.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from riemerge import Problem, frechet_mean
from riemerge.losses import Absolute, Huber, Loss, Square, Trimmed
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold

ROWS, COLUMNS, RANK = 24, 20, 3
SIZES = torch.logspace(0, 4, 5, dtype=torch.float64)  # the factors: one module each, solved side by side
TOTAL = FixedRank(ROWS, COLUMNS, RANK, k=len(SIZES))
LOSSES: dict[str, Loss] = {
    "Fréchet mean": Square(),
    "median": Absolute(),
    "Huber": Huber(),
    "trimmed": Trimmed(1 / 6),
}


def adapters(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Draw factors (B, Aᵀ), (K, ., r), of six updates: five near to each other, and a bad one."""
    normal = torch.Generator().manual_seed(seed)
    draws = torch.randn(7, 1, ROWS + COLUMNS, RANK, generator=normal, dtype=torch.float64)
    factors = torch.cat((draws[0] + 0.2 * draws[1:6], draws[6:])).expand(-1, len(SIZES), -1, -1)
    *good, (b, a) = [(one[:, :ROWS], one[:, ROWS:]) for one in factors]
    return [*good, (b * SIZES[:, None, None], a)]


def merge(updates: list[tuple[Tensor, Tensor]], loss: Loss) -> Tensor:
    """Return the merged updates (K, m, n) on the quotient."""
    points = [TOTAL.factor(b, a) for b, a in updates]
    problem = Problem(QuotientManifold(TOTAL, Orthogonal(RANK)), points, loss=loss)
    return TOTAL.matrix(frechet_mean(problem).point)


def measure() -> dict[str, list[float]]:
    """Return the relative distance of each merge of all six from that of the good ones, over SIZES."""
    *good, bad = adapters()

    def apart(merged: Tensor, expected: Tensor) -> list[float]:
        return ((merged - expected).norm(dim=(1, 2)) / expected.norm(dim=(1, 2))).tolist()

    dense = torch.stack([b @ a.mT for b, a in (*good, bad)])
    moves = {"plain average": apart(dense.mean(dim=0), dense[:5].mean(dim=0))}
    before = merge(good, Square())
    return moves | {name: apart(merge([*good, bad], loss), before) for name, loss in LOSSES.items()}


def draw(path: str, moves: dict[str, list[float]]) -> None:
    """Plot how far each merge moves over the size of the bad adapter."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for (name, values), marker in zip(moves.items(), "os^vD", strict=True):
        axes.loglog(SIZES, [max(value, 1e-10) for value in values], marker=marker, label=name)
    axes.set(xlabel="size of the bad adapter", ylabel="move of the merge / its norm")
    axes.legend(loc=(0.4, 0.1))
    figure.savefig(path)


if __name__ == "__main__":
    moves = measure()
    for name, values in moves.items():
        print(f"{name:14}" + "".join(f"{value:10.1e}" for value in values))
    if sys.argv[1:]:
        draw(sys.argv[1], moves)
