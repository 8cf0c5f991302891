"""The checks themselves: on every manifold of Pymanopt, and on planted faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pymanopt
import pytest
import torch
from pymanopt import manifolds
from pymanopt.manifolds.manifold import Manifold

from riemerge.laws import LAWS, judge
from riemerge.manifolds import (
    FixedRank,
    Logarithm,
    Orthogonal,
    QuotientManifold,
    Stiefel,
    SymmetricPositiveDefinite,
    torch_function,
)
from riemerge.manifolds.checks import (
    check_action,
    check_gradient,
    check_hessian,
    check_manifold,
    check_metric,
    check_retraction,
)
from tests.laws.faults import broken


def frame(rows: int, columns: int) -> np.ndarray[Any, Any]:
    return np.linalg.qr(np.random.normal(size=(rows, columns)))[0]  # noqa: NPY002


STOCK: dict[str, Callable[[], Manifold]] = {
    "Sphere": lambda: manifolds.Sphere(5),
    "SphereSubspaceIntersection": lambda: manifolds.SphereSubspaceIntersection(frame(6, 4)),
    "SphereSubspaceComplementIntersection": lambda: manifolds.SphereSubspaceComplementIntersection(
        frame(6, 2)
    ),
    "ComplexCircle": lambda: manifolds.ComplexCircle(4),
    "Euclidean": lambda: manifolds.Euclidean(4, 3),
    "ComplexEuclidean": lambda: manifolds.ComplexEuclidean(3, 2),
    "Symmetric": lambda: manifolds.Symmetric(3),
    "SkewSymmetric": lambda: manifolds.SkewSymmetric(4),
    "Grassmann": lambda: manifolds.Grassmann(6, 2),
    "ComplexGrassmann": lambda: manifolds.ComplexGrassmann(6, 2),
    "SpecialOrthogonalGroup": lambda: manifolds.SpecialOrthogonalGroup(3),
    "UnitaryGroup": lambda: manifolds.UnitaryGroup(3),
    "Oblique": lambda: manifolds.Oblique(4, 3),
    "Positive": lambda: manifolds.Positive(4, 3),
    "SymmetricPositiveDefinite": lambda: manifolds.SymmetricPositiveDefinite(3),
    "HermitianPositiveDefinite": lambda: manifolds.HermitianPositiveDefinite(3),
    "SpecialHermitianPositiveDefinite": lambda: manifolds.SpecialHermitianPositiveDefinite(3),
    "PoincareBall": lambda: manifolds.PoincareBall(4),
    "Stiefel": lambda: manifolds.Stiefel(6, 3),
    "Elliptope": lambda: manifolds.Elliptope(5, 3),
    "PSDFixedRank": lambda: manifolds.PSDFixedRank(5, 2),
    "PSDFixedRankComplex": lambda: manifolds.PSDFixedRankComplex(5, 2),
    "FixedRankEmbedded": lambda: manifolds.FixedRankEmbedded(6, 5, 2),
    "Product": lambda: manifolds.Product(
        [STOCK[name]() for name in ("Sphere", "SpecialOrthogonalGroup", "ComplexGrassmann")]
    ),
}
# What the checks find wrong with Pymanopt 2.2.1.
KNOWN = {
    # exp writes complex numbers into an array of real ones.
    "ComplexCircle": {"retraction", "log_exp", "exp_log", "length", "gauss", "pair_mean", "transport"},
    # Complex matrices are projected to skew ones as if they were real.
    "UnitaryGroup": {"projection", "transport", "riesz"},
    # It counts n(n + 1) real dimensions where there are n², or n² - 1.
    "HermitianPositiveDefinite": {"dimension"},
    "SpecialHermitianPositiveDefinite": {"dimension"},
    # Its projection is not idempotent, and its vectors span more than it says.
    "Elliptope": {"projection", "tangency", "dimension"},
}


def test_the_list_has_every_manifold_of_pymanopt() -> None:
    assert set(STOCK) == set(manifolds.__all__)


@pytest.mark.parametrize("name", STOCK)
def test_checks_run_on_every_manifold_of_pymanopt(name: str) -> None:
    np.random.seed(0)  # noqa: NPY002 - Pymanopt draws from the global generator
    manifold = STOCK[name]()
    found = [*judge("manifold", check_manifold(manifold)), *judge("metric", check_metric(manifold))]
    verdicts = {finding.name: finding.verdict for finding in found}
    assert {law for law, verdict in verdicts.items() if verdict == "fails"} == KNOWN.get(name, set())
    # What it has no verb for is left out; on factors of a matrix, only it knows the velocity of the entries.
    assert ("log_exp" in verdicts) == (name not in {"Stiefel", "Elliptope", "FixedRankEmbedded"})
    assert ("riesz" in verdicts) == (name != "FixedRankEmbedded")


def test_a_law_that_may_be_broken_is_reported_as_optional() -> None:
    """A transport by projection shortens vectors."""
    np.random.seed(0)  # noqa: NPY002
    verdicts = {
        name: {found.verdict for found in judge("manifold", check_manifold(STOCK[name]()))}
        for name in ("Sphere", "Euclidean")
    }
    assert verdicts == {"Sphere": {"holds", "optional"}, "Euclidean": {"holds"}}


def spd() -> SymmetricPositiveDefinite:
    return SymmetricPositiveDefinite(4, k=2, seed=1)


def stiefel(p: int = 3) -> Stiefel:
    return Stiefel(9, p, k=2, seed=1)


def sphere(**verbs: object) -> Any:
    return broken(manifolds.Sphere(4), **verbs)


def updates(**verbs: object) -> QuotientManifold:
    """Updates of rank 2 by a symmetry with some verbs replaced, each made from the action."""
    action = Orthogonal(2)
    for verb, make in verbs.items():
        assert callable(make)
        setattr(action, verb, make(action))
    return QuotientManifold(FixedRank(6, 5, 2, k=2, seed=1), action)


def embedded_metric(point: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(dim=(-2, -1))


def blind() -> Any:
    """A metric that sees the tangent part of a vector alone, and a gradient that has another."""
    right = stiefel()
    return broken(
        stiefel(),
        inner_products=lambda x, a, b: right.inner_products(
            x, right.projection(x, a), right.projection(x, b)
        ),
        euclidean_to_riemannian_gradient=lambda x, e: right.euclidean_to_riemannian_gradient(x, e) + x,
    )


def not_a_number(verb: str) -> Any:
    nan: dict[str, Callable[..., Any]] = {verb: lambda x, y: np.nan * x}
    return sphere(**nan if verb != "dist" else {"dist": lambda x, y: np.nan})


def doubled(total: FixedRank, point: torch.Tensor, element: torch.Tensor) -> torch.Tensor:
    """Squares the core, which doubles distances between cores."""
    u, b, v = total.split(point)
    core = element.mT @ b @ element
    return total.join(u @ element, core @ core, v @ element)


def cayley(algebra: torch.Tensor) -> torch.Tensor:
    """A rotation with the right derivative, that is no one-parameter subgroup."""
    one = torch.eye(algebra.shape[-1], dtype=algebra.dtype)
    return torch.linalg.solve(one - algebra / 2, one + algebra / 2)


def shifted(points: torch.Tensor) -> Any:
    """The right reduction, of other points."""
    small = stiefel().reduce(points)
    moved = small.manifold.exp(
        small.points, 0.1 * small.manifold.projection(small.points, small.points.flip(-2))
    )
    return small._replace(points=moved)


def sinusoidal() -> pymanopt.Problem:
    """A cost whose Hessian turns with the point."""
    manifold = stiefel()
    a = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    @torch_function(manifold)
    def cost(point: torch.Tensor) -> torch.Tensor:
        return (a * point).sum() + (a * point).sin().square().sum()

    return pymanopt.Problem(manifold, cost)


def too_long() -> pymanopt.Problem:
    right = sinusoidal()
    return broken(sinusoidal(), _riemannian_gradient=lambda x: 1.01 * right.riemannian_gradient(x))


def flat() -> pymanopt.Problem:
    """The entrywise Hessian, projected: forgets how the metric turns."""
    right = sinusoidal()
    hessian = lambda x, v: right.manifold.projection(x, right.euclidean_hessian(x, v))  # noqa: E731
    return broken(sinusoidal(), _riemannian_hessian=hessian)


CHECKS: dict[str, Callable[[Any], Mapping[str, float]]] = {
    "manifold": lambda manifold: check_manifold(manifold, pairs=1),
    "metric": check_metric,
    "symmetry": lambda quotient: check_action(quotient, scale=0.4),
    "retraction": lambda manifold: {"slope": 2 - check_retraction(manifold)},
    "gradient": lambda problem: {"slope": 2 - check_gradient(problem)},
    "hessian": lambda problem: {"slope": 3 - check_hessian(problem)["slope"]},
}
Fault = tuple[str, str, Callable[[], Any]]
# Each with the check and the law that finds it. All are found at random points.
FAULTS: dict[str, Fault] = {
    "another metric": ("manifold", "length", lambda: broken(stiefel(), inner_products=embedded_metric)),
    "a chord for the logarithm": (
        "manifold",
        "gauss",
        lambda: broken(spd(), logarithm=lambda x, y: spd().logarithm(x, y)._replace(tangent=y - x)),
    ),
    "a retraction for exp": (
        "manifold",
        "log_exp",
        lambda: broken(
            stiefel(), geodesic=lambda x, v: (Stiefel(9, 3, k=2, retraction="qr").retraction(x, v), v)
        ),
    ),
    "a log off by a factor": (
        "manifold",
        "exp_log",
        lambda: broken(spd(), logarithm=lambda x, y: stretched(spd().logarithm(x, y))),
    ),
    "the identity for transport": (
        "manifold",
        "isometry",
        lambda: broken(spd(), transport=lambda x, y, v: v),
    ),
    "a transport out of the tangent space": (
        "manifold",
        "transport",
        lambda: broken(stiefel(), transport=lambda x, y, v: v),
    ),
    "an oblique projection": (
        "manifold",
        "projection",
        lambda: broken(
            stiefel(), projection=lambda x, v: 0.5 * (stiefel().projection(x, v) + v - x @ (x.mT @ v))
        ),
    ),
    "a wrong dimension": ("manifold", "dimension", lambda: broken(stiefel(), _dimension=41)),
    "a distance off by a factor": (
        "manifold",
        "length",
        lambda: sphere(dist=lambda x, y: 1.01 * manifolds.Sphere(4).dist(x, y)),
    ),
    "a distance that is not a number": ("manifold", "length", lambda: not_a_number("dist")),
    "an exp that is not a number": ("manifold", "log_exp", lambda: not_a_number("exp")),
    "a log that is not a number": ("manifold", "log_exp", lambda: not_a_number("log")),
    "a midpoint that is not a number": ("manifold", "pair_mean", lambda: not_a_number("pair_mean")),
    "the Euclidean gradient for the Riemannian": (
        "metric",
        "riesz",
        lambda: broken(stiefel(), euclidean_to_riemannian_gradient=lambda x, e: stiefel().projection(x, e)),
    ),
    "a lowered vector that is not a number": (
        "metric",
        "riesz_inverse",
        lambda: broken(stiefel(), riemannian_to_euclidean_gradient=lambda x, v: v * torch.nan),
    ),
    "a retraction that is not a number": (
        "retraction",
        "slope",
        lambda: broken(stiefel(), retraction=lambda x, v: x * torch.nan),
    ),
    "an action that stretches": ("symmetry", "isometry", lambda: updates(act=lambda action: doubled)),
    "products in the other order": (
        "symmetry",
        "composition",
        lambda: updates(compose=lambda action: lambda g, h: h @ g),
    ),
    "a vertical vector twice as long": (
        "symmetry",
        "vertical",
        lambda: updates(vertical=lambda action, f=Orthogonal.vertical: lambda *x: 2 * f(action, *x)),
    ),
    "a momentum of the other sign": (
        "symmetry",
        "momentum",
        lambda: updates(momentum=lambda action, f=Orthogonal.momentum: lambda *x: f(action, *x).mT),
    ),
    "the momentum for its generator": (
        "symmetry",
        "horizontal",
        lambda: updates(vertical_generator=lambda action: action.momentum),
    ),
    "no alignment": ("symmetry", "alignment", lambda: updates(align=lambda action: lambda total, x, to: x)),
    "the identity for the nearest element": (
        "symmetry",
        "invariance",
        lambda: updates(nearest=lambda action: lambda total, x, to, tolerance=0: torch.eye(2, dtype=x.dtype)),
    ),
    "a gradient off by a factor": ("gradient", "slope", too_long),
    "a projected Hessian of the entries": ("hessian", "slope", flat),
    # The ten that were missed for a long time.
    "entries' derivative for the covariant one": (
        "manifold",
        "compatibility",
        lambda: broken(spd(), covariant_derivative=lambda x, v, field, derivative: derivative),
    ),
    "a geodesic that arrives as it left": (
        "manifold",
        "velocity",
        lambda: broken(stiefel(), geodesic=lambda x, v: (stiefel().exp(x, v), v)),
    ),
    "a start out of the set": (
        "manifold",
        "start",
        lambda: broken(stiefel(), extrinsic_mean=lambda x, w: (w[..., None, None] * x).sum(dim=0)),
    ),
    "a start that depends on the gauge": (
        "manifold",
        "start",
        lambda: updates(extrinsic_mean=lambda action: lambda total, x, w: total.extrinsic_mean(x, w)),
    ),
    "a reduction of other points": ("manifold", "reduction", lambda: broken(stiefel(), reduce=shifted)),
    "a set that takes everything": (
        "manifold",
        "feasible",
        lambda: broken(stiefel(), feasible=lambda x: torch.ones(x.shape[:-2], dtype=torch.bool)),
    ),
    "modules of another size": (
        "manifold",
        "modules",
        lambda: broken(stiefel(), with_modules=lambda k: Stiefel(10, 3, k=k)),
    ),
    "logarithms that are always valid": (
        "manifold",
        "valid",
        lambda: broken(stiefel(), logarithm=lambda x, y: sure(stiefel().logarithm(x, y))),
    ),
    "an exponential that is no subgroup": (
        "symmetry",
        "subgroup",
        lambda: updates(exponential=lambda _: cayley),
    ),
    "a normal part that the metric does not see": ("metric", "tangency", blind),
}


def stretched(log: Logarithm) -> Logarithm:
    return log._replace(tangent=1.01 * log.tangent)


def sure(log: Logarithm) -> Logarithm:
    return log._replace(valid=torch.ones_like(log.valid))


def test_there_are_35_planted_faults() -> None:
    assert len(FAULTS) == 35


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name: str) -> None:
    np.random.seed(0)  # noqa: NPY002
    check, law, make = FAULTS[name]
    defects = CHECKS[check](make())
    assert defects[law] > 1e-3
    if check in LAWS:
        (finding,) = (finding for finding in judge(check, defects) if finding.name == law)
        assert finding.verdict == ("optional" if law == "isometry" and check == "manifold" else "fails")


@pytest.mark.parametrize("check", CHECKS)
def test_where_nothing_is_planted_nothing_is_caught(check: str) -> None:
    sound: dict[str, Callable[[], Any]] = {
        "symmetry": updates,
        "gradient": sinusoidal,
        "hessian": sinusoidal,
    }
    defects = CHECKS[check](sound.get(check, stiefel)())
    if check in LAWS:
        assert all(finding.verdict != "fails" for finding in judge(check, defects)), defects
    else:
        assert defects["slope"] < 0.1
