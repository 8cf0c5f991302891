"""Do symmetrised Jensen divergences bound the Fisher-Rao distance? One of them does, from above.

The Jensen divergence of a family with log-normaliser F is J(p, q) = a F(θp) + b F(θq) - F(a θp + b θq), with
shares a + b = 1. Symmetrised and divided by a b, its root is the Fisher-Rao distance of near neighbours,
whatever the share. Section 3.4 of GeoMerge says that such divergences bound that distance from above. Among
Gaussians on a line, whose distance has a closed form:

- Share 0, the Jeffreys divergence: yes. It is the energy of the curve of straight natural parameters between
  the two; an energy is at least the square of a length, and no curve is shorter than the geodesic.
- Any other share, the Bhattacharyya divergence at 1/2: no. Wide against narrow, the roots grow more slowly
  than the distance. Pairs of equal variance lie on the other side.
- The Jensen-Shannon divergence, times 8, bounds from below: its root is a metric with the same line element,
  so it is never longer than a path.

Run: python examples/jensen_bounds.py [picture.png]
Source: GeoMerge, section 3.4; Amari and Nagaoka 2000, ch. 3; Endres and Schindelin 2003.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor


def fisher_rao(p: Tensor, q: Tensor) -> Tensor:
    """Return the distance of Gaussians (..., 2), mean and deviation, with ds² = (dm² + 2 ds²) / s²."""
    apart = (p - q).square() @ torch.tensor([0.5, 1.0], dtype=p.dtype) / (p * q)[..., 1]
    return 2**1.5 * (apart.sqrt() / 2).asinh()


def jensen(p: Tensor, q: Tensor, share: float) -> Tensor:
    """Return the symmetrised Jensen divergence over share (1 - share); share 0 is its limit, Jeffreys'."""

    def natural(gaussian: Tensor) -> Tensor:
        mean, deviation = gaussian.unbind(-1)
        return torch.stack((mean / deviation**2, -0.5 / deviation**2), dim=-1)

    def normaliser(theta: Tensor) -> Tensor:
        return -theta[..., 0].square() / (4 * theta[..., 1]) - 0.5 * (-2 * theta[..., 1]).log()

    a, b = natural(p), natural(q)
    if share == 0:
        expectations = [torch.stack((g[..., 0], g.square().sum(-1)), dim=-1) for g in (p, q)]
        return ((a - b) * (expectations[0] - expectations[1])).sum(-1)
    mixed = [normaliser(x * share + y * (1 - share)) for x, y in ((a, b), (b, a))]
    return (normaliser(a) + normaliser(b) - mixed[0] - mixed[1]) / (share * (1 - share))


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence in nats, by quadrature over both bells."""
    nodes = torch.linspace(-12, 12, 1601, dtype=p.dtype)
    halves = []
    for one, other in ((p, q), (q, p)):  # each density on nodes of its own, so that no bell is missed
        x = one[..., :1] + one[..., 1:] * nodes
        logs = [-(((x - g[..., :1]) / g[..., 1:]) ** 2) / 2 - g[..., 1:].log() for g in (one, other)]
        ratio = logs[0] - torch.logaddexp(*logs) + math.log(2)
        halves.append(torch.trapezoid((-(nodes**2) / 2).exp() * ratio, nodes, dim=-1) / (2 * torch.pi) ** 0.5)
    return (halves[0] + halves[1]) / 2


ROOTS = {
    "Jeffreys (share 0)": lambda p, q: jensen(p, q, 0.0).sqrt(),
    "share 0.1": lambda p, q: jensen(p, q, 0.1).sqrt(),
    "Bhattacharyya (share 1/2)": lambda p, q: jensen(p, q, 0.5).sqrt(),
    "Jensen-Shannon, times 8": lambda p, q: (8 * jensen_shannon(p, q)).sqrt(),
}


def pairs(count: int, spread: float = 4.0, seed: int = 0) -> Tensor:
    """Draw pairs (2, count, 2): normal means, and deviations that are normal in their logarithm."""
    draws = torch.randn(2, count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.stack((spread * draws[..., 0], (spread * draws[..., 1]).exp()), dim=-1)


def measure(count: int = 1000) -> dict[str, tuple[float, float]]:
    """Return the least and the largest ratio of each root to the Fisher-Rao distance."""
    p, q = pairs(count)
    ratios = {name: root(p, q) / fisher_rao(p, q) for name, root in ROOTS.items()}
    return {name: (float(ratio.min()), float(ratio.max())) for name, ratio in ratios.items()}


def draw(path: str) -> None:
    """Plot roots of divergences over distances: a bound from above lies above the line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    p, q = pairs(400)
    distance = fisher_rao(p, q)
    for name in ("Jeffreys (share 0)", "Bhattacharyya (share 1/2)", "Jensen-Shannon, times 8"):
        axes.scatter(distance, ROOTS[name](p, q), s=6, label=name)
    axes.plot([0.4, 30], [0.4, 30], color="black", linewidth=0.8, label="the distance itself")
    axes.set(xscale="log", yscale="log", xlim=(0.4, 30), ylim=(0.4, 1e4))
    axes.set(xlabel="Fisher-Rao distance of two Gaussians", ylabel="root of the divergence")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    for name, (least, largest) in measure().items():
        print(f"{name:26} root / distance: least {least:8.4f}, largest {largest:10.4g}")
    if sys.argv[1:]:
        draw(sys.argv[1])
