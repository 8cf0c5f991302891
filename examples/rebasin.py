"""Two networks from different seeds: is their mean a network, once hidden units may change places?

A hidden layer is the same function when its units change places and, with tanh, when a unit changes sign at
both of its ends. Two networks of 16 units are trained from different seeds. One unit is one row of a point:
its incoming weights, its bias, its outgoing weights.

- The plain average has ten times the loss of the networks: the units do not correspond.
- The Fréchet mean on the quotient by permutations has twice their loss. On the quotient by permutations with
  signs, which is the symmetry that tanh has, it has theirs; and so have all means on the way between them.
- Of a network and its copy in other places and signs, the quotient mean is the network itself.

Run: python examples/rebasin.py [picture.png]
Source: Ainsworth, Hayase, Srinivasa 2023 (Git re-basin: weight matching, exact for one hidden layer).
"""

import sys

import torch

from riemerge import Problem, frechet_mean
from riemerge.manifolds import (
    Euclidean,
    GeodesicManifold,
    Permutations,
    QuotientManifold,
)

UNITS, STEPS = 16, 200


def draw_normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moons(seed: int, count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw points of two interleaved half circles, and which of the two each is on."""
    angle, label = (
        torch.linspace(0, torch.pi, count, dtype=torch.float64),
        torch.arange(count) % 2,
    )
    arc = torch.stack((angle.cos() - 0.5, angle.sin() - 0.25), dim=1)
    return torch.where(label[:, None] == 1, -arc, arc) + 0.1 * draw_normal(seed, count, 2), label


def loss(network: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of a network (units, 2 + 1 + 2)."""
    hidden = torch.tanh(inputs @ network[:, :2].T + network[:, 2])
    return torch.nn.functional.cross_entropy(hidden @ network[:, 3:], labels)


def train(seed: int) -> torch.Tensor:
    """Train a network from a seed, with a little weight decay."""
    network, data = draw_normal(seed, UNITS, 5).requires_grad_(), moons(0)
    optimizer = torch.optim.Adam([network], lr=0.02)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (loss(network, *data) + 1e-3 * network.square().sum()).backward()
        optimizer.step()
    return network.detach()


GEOMETRIES: dict[str, GeodesicManifold] = {
    "plain average": Euclidean(UNITS, 5),
    "permutations": QuotientManifold(Euclidean(UNITS, 5), Permutations(UNITS)),
    "with signs": QuotientManifold(Euclidean(UNITS, 5), Permutations(UNITS, signed=True)),
}


def measure() -> dict[str, list[float]]:
    """Return the test loss of the means with weights (1, 0), (0.9, 0.1), ..., (0, 1) in each geometry."""
    pair, test = [train(1)[None], train(2)[None]], moons(1)
    return {
        name: [float(loss(frechet_mean(Problem(one, pair, [10 - i, i])).point[0], *test)) for i in range(11)]
        for name, one in GEOMETRIES.items()
    }


def draw(path: str, losses: dict[str, list[float]]) -> None:
    """Plot the test loss on the way from one network to the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for (name, values), marker in zip(losses.items(), "os^", strict=True):
        axes.plot([share / 10 for share in range(11)], values, marker=marker, label=name)
    axes.set(
        xlabel="weight of the second network",
        ylabel="test loss of the mean",
        ylim=(0, None),
    )
    axes.legend(title="geometry")
    figure.savefig(path)


if __name__ == "__main__":
    losses = measure()
    for name, values in losses.items():
        print(f"{name:14} loss at both ends {values[0]:.3f}, {values[-1]:.3f}; halfway {values[5]:.3f}")
    if sys.argv[1:]:
        draw(sys.argv[1], losses)
