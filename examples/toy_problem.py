"""GeoMerge's toy: f(x) = t2 t1 x does not change under (t1, t2) -> (a t1, t2 / a). What do merges make of it?

With the metric of eq. 13 the quotient is the predictor w = t1 t2 with the distance |w - w'| / √2, so that the
Fréchet mean averages predictors. The metric and the symmetry are those of the plug-in my_lab.

- Figure 1: of two gauges of one network the plain average is another network; of θ and -θ it is zero.
- Figure 2: the plain average depends on the gauges that the networks come in. The mean on the quotient does
  not, and the solver finds the closed form. (Predictors of both signs have no mean: w = 0 is no network.)
- Eq. 15 gives geodesics t -> θᵢ √(1 + 2 t ηᵢ / θᵢ) for any start. It holds for horizontal ones alone, where
  η1 / θ1 = η2 / θ2. They are all that aligned networks need; from other starts its curve is no geodesic.

Run: pip install examples/my_lab && python examples/toy_problem.py [picture.png]
Source: GeoMerge, section 4: figures 1 and 2, eq. 12-17.
"""

from __future__ import annotations

import sys

import torch
from my_lab.metric import TwoLayers
from my_lab.symmetry import Scaling
from torch import Tensor

from riemerge import Problem, frechet_mean
from riemerge.manifolds import QuotientManifold

TOTAL = TwoLayers()
NUMBERS = torch.linspace(0.1, 5, 200)
QUOTIENT = QuotientManifold(TOTAL, Scaling())


def network(t1: float, t2: float) -> Tensor:
    """Return a network as a point (1, 2, 1)."""
    return torch.tensor([[[t1], [t2]]], dtype=torch.float64)


def gauge(point: Tensor, a: float) -> Tensor:
    """Return the same network, (a t1, t2 / a)."""
    return point * network(a, 1 / a)


def merge(points: list[Tensor]) -> Tensor:
    """Return the Fréchet mean on the quotient."""
    return frechet_mean(Problem(QUOTIENT, points)).point


def equation_15(point: Tensor, velocity: Tensor, time: float = 1.0) -> Tensor:
    """Return the curve of eq. 15, a geodesic where the velocity is horizontal."""
    return point * (1 + 2 * time * velocity / point).sqrt()


def draw(path: str) -> None:
    """Draw figure 1, figure 2, and eq. 15 from two starts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 3.9), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, first, second, gauges, title in (
        (panels[0], network(1, 2), network(1, 2), (4.0,), "Figure 1: one network, two gauges"),
        (panels[1], network(1, 1), network(2, 3), (0.75, 1.3, 2.1), "Figure 2: two networks, other gauges"),
    ):
        for point in (first, second, merge([first, second])):
            axes.plot(NUMBERS, float(point.prod()) / NUMBERS, "k:", linewidth=0.8)
        for a in gauges:
            pair = torch.cat((first, gauge(second, a)))
            axes.plot(*pair.squeeze(-1).T, "C0o-", linewidth=0.8, label="networks")
            axes.plot(*pair.mean(dim=0), "C3X", label="plain average")
        axes.plot(*QUOTIENT.align(second, to=first)[0], "C2s", label="aligned to the first")
        axes.plot(*merge([first, second])[0], "C2*", markersize=12, label="mean on the quotient")
        axes.set(xlim=(0, 5), ylim=(0, 5), xlabel="t1", ylabel="t2", title=title)
    panels[0].legend()
    for velocity in (network(1, 2), network(1.5, -0.5)):
        for curve, style in ((equation_15, "C3--"), (lambda x, v, time: TOTAL.exp(x, time * v), "C2-")):
            track = [curve(network(1, 2), velocity, time) for time in torch.linspace(0, 1, 50).tolist()]
            panels[2].plot(*torch.cat(track).squeeze(-1).T, style)
    panels[2].legend(panels[2].lines[:2], ("eq. 15", "geodesic"))
    panels[2].set(xlabel="t1", ylabel="t2", title="A horizontal start, and another")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    for title, points in (
        ("three networks, w = 2, 3, 7", [network(1, 2), network(-6, -0.5), network(0.1, 70)]),
        ("two gauges of one network, w = 2", [network(1, 2), network(-1, -2)]),
    ):
        averaged, merged = torch.stack(points).mean(dim=0).prod(), merge(points).prod()
        print(f"{title}: plain average w = {averaged:.6f}, mean on the quotient w = {merged:.6f}")
    start = network(1, 2)
    for title, velocity in (("horizontal", network(0.1, 0.2)), ("not horizontal", network(0.2, 0.1))):
        missed = TOTAL.dist(TOTAL.exp(start, velocity), equation_15(start, velocity))
        print(f"eq. 15, start {title}: misses the geodesic by {missed:.1e}")
    if sys.argv[1:]:
        draw(sys.argv[1])
