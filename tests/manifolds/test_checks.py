"""The checks themselves: on stock manifolds, and on planted faults."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pymanopt
import pytest
import torch

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
from tests.laws.faults import DIFFERENCES, EXACT, broken

STOCK: dict[str, Callable[[], pymanopt.manifolds.manifold.Manifold]] = {
    "sphere": lambda: pymanopt.manifolds.Sphere(5),
    "positive definite": lambda: pymanopt.manifolds.SymmetricPositiveDefinite(3),
    "Grassmann": lambda: pymanopt.manifolds.Grassmann(6, 2),
    "rotations": lambda: pymanopt.manifolds.SpecialOrthogonalGroup(3),
    "product": lambda: pymanopt.manifolds.Product([STOCK["sphere"](), STOCK["positive definite"]()]),
    "complex subspaces": lambda: pymanopt.manifolds.ComplexGrassmann(6, 2),
    "complex numbers": lambda: pymanopt.manifolds.ComplexEuclidean(3, 2),
}


@pytest.mark.parametrize("name", STOCK)
def test_checks_run_on_stock_numpy_manifolds(name: str) -> None:
    np.random.seed(0)  # noqa: NPY002 - Pymanopt draws from the global generator
    manifold = STOCK[name]()
    defects = check_manifold(manifold)
    # Pymanopt's transports are projections, not isometries (on SPD: the identity).
    assert defects.pop("isometry") < 0.3
    assert defects.pop("retraction") < 0.1
    # Its distance of nearly equal points on the sphere is an arccos near 1: the square root of round-off.
    assert defects.pop("exp_log") < 1e-7
    assert defects.pop("gauss") < DIFFERENCES
    assert max(defects.values()) < EXACT
    assert max(check_metric(manifold).values()) < EXACT


def test_checks_see_tangent_vectors_as_a_manifold_writes_them() -> None:
    """Factors in frames of the point on FixedRankEmbedded: Riesz cannot be seen in sums of products there."""
    np.random.seed(0)  # noqa: NPY002 - Pymanopt draws from the global generator
    manifold = pymanopt.manifolds.FixedRankEmbedded(6, 5, 2)
    assert max(check_manifold(manifold).values()) < EXACT
    found = check_metric(manifold)
    assert found.keys() == {"tangency"}
    assert found["tangency"] < EXACT


def test_checks_find_what_is_wrong_with_pymanopts_complex_manifolds() -> None:
    np.random.seed(0)  # noqa: NPY002
    # It projects complex matrices to skew ones as if they were real.
    unitary = pymanopt.manifolds.UnitaryGroup(3)
    assert check_metric(unitary)["riesz"] > 0.1
    found = check_manifold(unitary)
    assert found["projection"] > 0.1
    assert max(found[key] for key in ("exp_log", "log_exp", "length", "norm", "dimension")) < 1e-12
    # It counts n(n + 1) real dimensions where there are n².
    assert check_manifold(pymanopt.manifolds.HermitianPositiveDefinite(3))["dimension"] == 3


def spd() -> SymmetricPositiveDefinite:
    return SymmetricPositiveDefinite(4, k=2, seed=1)


def stiefel() -> Stiefel:
    return Stiefel(9, 3, k=2, seed=1)


def embedded_metric(point: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(dim=(-2, -1))


def stretched(found: Logarithm) -> Logarithm:
    return found._replace(tangent=1.01 * found.tangent)


FAULTS = {
    "another metric: length": lambda: broken(stiefel(), inner_products=embedded_metric),
    "another metric: gauss": lambda: broken(stiefel(), inner_products=embedded_metric),
    "a retraction for exp: log_exp": lambda: broken(
        stiefel(), geodesic=lambda x, v: (Stiefel(9, 3, k=2, retraction="qr").retraction(x, v), v)
    ),
    "log off by a factor: exp_log": lambda: broken(
        spd(),
        logarithm=lambda x, y: stretched(spd().logarithm(x, y)),
    ),
    "identity for transport: isometry": lambda: broken(spd(), transport=lambda x, y, v: v),
    "transport out of the tangent space: transport": lambda: broken(stiefel(), transport=lambda x, y, v: v),
    "oblique projection: projection": lambda: broken(
        stiefel(), projection=lambda x, v: 0.5 * (stiefel().projection(x, v) + v - x @ (x.mT @ v))
    ),
    "Euclidean gradient for Riemannian: riesz": lambda: broken(
        stiefel(), euclidean_to_riemannian_gradient=lambda x, e: stiefel().projection(x, e)
    ),
    "wrong dimension: dimension": lambda: broken(stiefel(), _dimension=41),
}


def test_what_is_not_a_number_is_the_worst_defect() -> None:
    """`max` passes over NaN."""
    for verb in ("dist", "exp", "log", "pair_mean"):
        nan = broken(pymanopt.manifolds.Sphere(4), **{verb: lambda x, y: np.nan * x[0] * y})
        nan.dist = (lambda x, y: np.nan) if verb == "dist" else nan.dist
        assert max(check_manifold(nan).values()) == np.inf
    undefined = broken(stiefel(), retraction=lambda x, v: x * torch.nan)
    assert check_retraction(undefined) == 0
    assert (
        max(
            check_metric(
                broken(stiefel(), riemannian_to_euclidean_gradient=lambda x, v: v * torch.nan)
            ).values()
        )
        == np.inf
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_caught(fault: str) -> None:
    key = fault.split(": ")[1]
    manifold = FAULTS[fault]()
    found = check_metric(manifold) if key == "riesz" else check_manifold(manifold, scale=0.5)
    assert found[key] > 1e-3


def doubled(total: FixedRank, point: torch.Tensor, element: torch.Tensor) -> torch.Tensor:
    """Squares the core, which doubles distances between cores."""
    u, b, v = total.split(point)
    core = element.mT @ b @ element
    return total.join(u @ element, core @ core, v @ element)


ACTION_FAULTS: dict[str, tuple[str, Callable[[Orthogonal], Callable[..., torch.Tensor]]]] = {
    "act": ("isometry", lambda action: doubled),
    "compose": ("composition", lambda action: lambda g, h: h @ g),
    "vertical": ("vertical", lambda action: lambda total, x, a, f=action.vertical: 2 * f(total, x, a)),
    "momentum": ("momentum", lambda action: lambda total, x, v, f=action.momentum: f(total, x, v).mT),
    "vertical_generator": (
        "horizontal",
        lambda action: lambda total, x, v, f=action.momentum: f(total, x, v),
    ),
    "align": ("alignment", lambda action: lambda total, x, to: x),
    "nearest": ("invariance", lambda action: lambda total, x, to, tolerance=0: torch.eye(3, dtype=x.dtype)),
}


@pytest.mark.parametrize("verb", ACTION_FAULTS)
def test_planted_fault_in_a_symmetry_is_caught(verb: str) -> None:
    key, fault = ACTION_FAULTS[verb]
    action = Orthogonal(3)
    setattr(action, verb, fault(action))
    assert check_action(QuotientManifold(FixedRank(8, 7, 3, k=2, seed=1), action), scale=0.4)[key] > 1e-3


def test_planted_faults_in_derivatives_are_caught() -> None:
    manifold = stiefel()
    a = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    @torch_function(manifold)
    def cost(point: torch.Tensor) -> torch.Tensor:
        return (a * point).sum() + (a * point).sin().square().sum()

    right = pymanopt.Problem(manifold, cost)

    @torch_function(manifold)
    def scaled(point: torch.Tensor) -> torch.Tensor:
        gradient: torch.Tensor = right.riemannian_gradient(point)
        return 1.01 * gradient

    wrong = broken(pymanopt.Problem(manifold, cost), _riemannian_gradient=scaled._original_function)
    assert check_gradient(wrong) < 1.5
    # The entrywise Hessian, projected: forgets how the metric turns.
    flat = broken(
        pymanopt.Problem(manifold, cost),
        _riemannian_hessian=lambda x, v: manifold.projection(x, right.euclidean_hessian(x, v)),
    )
    assert check_hessian(flat)["slope"] < 2.5
