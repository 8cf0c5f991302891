"""The public checks on every manifold, and every check on a manifold that breaks its law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

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
from tests.helpers import random_core, seeded
from tests.manifolds.subjects import QUOTIENTS, TOTAL

# Round-off of a few hundred operations on numbers of order one; the Gauss lemma is measured by central
# differences.
EXACT = 1e-12
DIFFERENCES = 1e-6


@pytest.mark.parametrize("scale", [1e-2, 0.5, 1.5])
@pytest.mark.parametrize("name", TOTAL)
def test_manifold(name: str, scale: float) -> None:
    defects = check_manifold(TOTAL[name](), scale=scale)
    assert {"exp_log", "log_exp", "gauss", "isometry", "pair_mean", "dimension"} <= defects.keys()
    assert defects.pop("gauss") < DIFFERENCES
    assert max(defects.values()) < EXACT / min(scale, 1), defects


@pytest.mark.parametrize("cond", [1e3, 1e6])
@pytest.mark.parametrize("name", ["spd", "fixed rank", "updates"])
def test_laws_at_ill_conditioned_points(name: str, cond: float) -> None:
    manifold = (TOTAL | QUOTIENTS)[name]()
    total = manifold.total if isinstance(manifold, QuotientManifold) else manifold
    generator = seeded(8)
    core = torch.stack([random_core(total.r, cond, generator) for _ in range(2)])
    point = core
    if isinstance(total, FixedRank):
        u, _, v = total.split(total.random_point())
        point = total.join(u, core, v)
    defects = check_manifold(manifold, scale=0.4, point=point) | check_metric(manifold, point=point)
    # Whitening by a core of this condition amplifies round-off by as much; differences divide it by their
    # step.
    assert defects.pop("gauss") < max(DIFFERENCES, 1e-11 * cond)
    # Entrywise random gradients have nothing of the metric's scale: Riesz is relative to cond.
    assert defects.pop("riesz") < 1e-15 * cond
    # There and back: the core's inverse on both sides, then the core.
    assert defects.pop("riesz_inverse") < 1e-13 * cond
    if name == "updates":
        assert defects.pop("isometry") < 0.1
        assert defects.pop("log_exp") < 1e-8
    assert max(defects.values()) < 1e-14 * cond, defects
    if isinstance(manifold, QuotientManifold):
        broken(total, random_point=lambda: point)
        found = check_action(manifold, scale=0.4)
        assert found.pop("vertical") < DIFFERENCES
        assert found.pop("alignment") < 1e-8
        assert max(found.values()) < 1e-14 * cond, found


@pytest.mark.parametrize("name", QUOTIENTS)
def test_quotient(name: str) -> None:
    defects = check_manifold(QUOTIENTS[name](), scale=0.4)
    assert defects.pop("gauss") < DIFFERENCES
    # The quotient's transport is isometric only up to what turns vertical on the way; alignment is iterative,
    # so a log is horizontal to its tolerance.
    assert defects.pop("isometry") < 0.1
    assert defects.pop("log_exp") < 1e-8
    assert max(defects.values()) < 1e-9, defects


@pytest.mark.parametrize("name", TOTAL | QUOTIENTS)
def test_metric(name: str) -> None:
    assert max(check_metric((TOTAL | QUOTIENTS)[name]()).values()) < EXACT


@pytest.mark.parametrize("name", QUOTIENTS)
def test_action(name: str) -> None:
    defects = check_action(QUOTIENTS[name](), scale=0.4)
    assert defects.pop("vertical") < DIFFERENCES
    assert defects.pop("alignment") < 1e-8
    assert max(defects.values()) < 1e-10, defects


@pytest.mark.parametrize(
    "name", ["stiefel", "stiefel, short", "rotations", "spd", "fixed rank", "two layers"]
)
def test_gradient_and_hessian_of_a_torch_function(name: str) -> None:
    manifold = TOTAL[name]()
    generator = torch.Generator().manual_seed(3)
    x = manifold.random_point()
    # Entries of SPD points reach 20: the cost must bend on the scale of the manifold for the steps to show
    # its order.
    a = torch.randn(x.shape, generator=generator, dtype=torch.float64) / x.abs().amax()

    @torch_function(manifold)
    def cost(point: torch.Tensor) -> torch.Tensor:
        return (a * point).sum() + (a * point).sin().square().sum()

    problem = pymanopt.Problem(manifold, cost)
    assert check_gradient(problem) == pytest.approx(2, abs=0.1)
    found = check_hessian(problem)
    assert found.pop("slope") == pytest.approx(3, abs=0.1)
    assert max(found.values()) < EXACT


def test_function_of_orbits_has_a_symmetric_hessian_on_the_quotient() -> None:
    quotient = QUOTIENTS["updates"]()
    total = quotient.total

    @torch_function(quotient)
    def cost(point: torch.Tensor) -> torch.Tensor:
        return total.matrix(point).sin().sum()

    found = check_hessian(pymanopt.Problem(quotient, cost))
    assert found.pop("slope") == pytest.approx(3, abs=0.1)
    assert max(found.values()) < EXACT


@pytest.mark.parametrize(("retraction", "order"), [("qr", 2), ("polar", 2), ("exp", np.inf)])
def test_retraction_order(retraction: Literal["qr", "polar", "exp"], order: float) -> None:
    # For the canonical metric the polar factor is of first order only; it is of second order for the
    # Euclidean one.
    assert check_retraction(Stiefel(9, 3, k=2, retraction=retraction)) == pytest.approx(order, abs=0.1)


STOCK: dict[str, Callable[[], Any]] = {
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


# --- planted faults -----------------------------------------------------------------------------------------


def broken(base: Any, **verbs: object) -> Any:
    """The same manifold with some verbs replaced."""
    for verb, function in verbs.items():
        setattr(base, verb, function)
    return base


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
    assert max(check_metric(broken(stiefel(), lower=lambda x, v: v * torch.nan)).values()) == np.inf


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


ACTION_FAULTS = {
    "act": ("isometry", lambda action: doubled),
    "compose": ("composition", lambda action: lambda g, h: h @ g),
    "vertical": ("vertical", lambda action: lambda total, x, a, f=action.vertical: 2 * f(total, x, a)),
    "momentum": ("momentum", lambda action: lambda total, x, v, f=action.momentum: f(total, x, v).mT),
    "gauge_part": ("horizontal", lambda action: lambda total, x, v, f=action.momentum: f(total, x, v)),
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
        return 1.01 * right.riemannian_gradient(point)

    wrong = broken(pymanopt.Problem(manifold, cost), _riemannian_gradient=scaled._original_function)
    assert check_gradient(wrong) < 1.5
    # The entrywise Hessian, projected: forgets how the metric turns.
    flat = broken(
        pymanopt.Problem(manifold, cost),
        _riemannian_hessian=lambda x, v: manifold.projection(x, right.euclidean_hessian(x, v)),
    )
    assert check_hessian(flat)["slope"] < 2.5
