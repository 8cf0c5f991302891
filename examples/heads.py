"""Does merging attention survive a change of basis inside the heads?

A head reads W_Q W_Kᵀ and W_V W_O, two products of rank h: (W_Q G, W_K G⁻ᵀ) and (W_V G, G⁻¹ W_O) are the same
head for every invertible G. (Rotary positions leave the first pair only those G that commute with them.) Two
layers that are nearly one function are merged; then the second is written in other bases, one for each pair
and head, and they are merged again.

- The plain average of W_Q, W_K, W_V and W_O moves, by half its size for rotations and by more for others: it
  is no function of the two layers.
- A mean head by head, of the products as points of fixed rank, moves by round-off. It keeps the rank, so it
  is written as W_Q, W_K, W_V and W_O again.

Run: python examples/heads.py [picture.png]
Source: GeoMerge, sections 1 and 2.2; da Silva et al. 2025 (the gauge of attention).
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from riemerge import Problem, frechet_mean
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold, join_heads, split_heads

WIDTH, HEADS, RANK, TOKENS = 24, 3, 4, 12
CONDITIONS = (1.0, 10.0, 100.0, 1000.0)
NORMAL = torch.Generator().manual_seed(0)


def draw_normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=NORMAL, dtype=torch.float64)


def split(pair: Tensor) -> tuple[Tensor, ...]:
    """Return the heads (heads, d, h) of a pair of matrices (2, d, heads · h)."""
    return split_heads(pair[0], pair[1], HEADS).split(WIDTH, dim=-2)


def join(left: Tensor, right: Tensor) -> Tensor:
    """Return the pair of matrices with these heads."""
    return torch.stack(join_heads(torch.cat((left, right), dim=-2), WIDTH))


def attend(layer: Tensor, x: Tensor) -> Tensor:
    """Return the output (tokens, d) of a layer: the pairs (W_Q, W_K) and (W_V, W_Oᵀ)."""
    (q, k), (v, o) = (split(pair) for pair in layer)
    scores = x @ q @ (x @ k).mT / RANK**0.5
    return (scores.softmax(dim=-1) @ x @ v @ o.mT).sum(dim=0)


def rewrite(layer: Tensor, condition: float) -> Tensor:
    """Write a layer in other bases: one G for each pair and head, of this condition number."""
    scales, pairs = torch.logspace(0, 1, RANK, base=condition, dtype=torch.float64), []
    for left, right in map(split, layer):
        turn, other = torch.linalg.qr(draw_normal(2, HEADS, RANK, RANK)).Q
        gauge = turn * scales @ other
        pairs.append(join(left @ gauge, right @ torch.linalg.inv(gauge).mT))
    return torch.stack(pairs)


def merge_heads(layers: list[Tensor]) -> Tensor:
    """Return the Fréchet mean of the products of each head, in factors again."""
    total, pairs = FixedRank(WIDTH, WIDTH, RANK, k=HEADS), []
    for alike in zip(*layers, strict=True):
        problem = Problem(QuotientManifold(total, Orthogonal(RANK)), [total.factor(*split(p)) for p in alike])
        u, b, v = total.split(frechet_mean(problem, "lbfgs:tol=1e-12").point)
        pairs.append(join(u @ b, v))
    return torch.stack(pairs)


def measure() -> dict[str, list[float]]:
    """Return by how much the outputs of each merge move, relative to their size, for each of CONDITIONS."""
    first = draw_normal(2, 2, WIDTH, HEADS * RANK) / WIDTH**0.5
    second = first + 0.3 * draw_normal(2, 2, WIDTH, HEADS * RANK) / WIDTH**0.5
    x, rewritten = draw_normal(TOKENS, WIDTH), [rewrite(second, condition) for condition in CONDITIONS]
    moves = {}
    for name, merge in (("average", lambda pair: (pair[0] + pair[1]) / 2), ("head by head", merge_heads)):
        before = attend(merge([first, second]), x)
        after = [attend(merge([first, one]), x) for one in rewritten]
        moves[name] = [float((one - before).norm() / before.norm()) for one in after]
    return moves


def draw(path: str, moves: dict[str, list[float]]) -> None:
    """Plot how far the outputs move over the condition of the change of basis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for (name, values), marker in zip(moves.items(), "os", strict=True):
        axes.loglog(CONDITIONS, values, marker=marker, label=name)
    axes.set(xlabel="condition number of G", ylabel="change of the output / its norm", ylim=(1e-16, 1e4))
    axes.set_title("One layer written in other bases: the same function")
    axes.legend(loc="center right")
    figure.savefig(path)


if __name__ == "__main__":
    moves = measure()
    for name, values in moves.items():
        print(f"{name:14}" + "".join(f"{value:10.1e}" for value in values))
    if sys.argv[1:]:
        draw(sys.argv[1], moves)
