"""Which laws a thing must obey, and whether it does, by its name or by that of its code."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from pymanopt.manifolds.manifold import Manifold
from pymanopt.optimizers.optimizer import Optimizer

from riemerge import manifolds
from riemerge.errors import RecipeError
from riemerge.frechet.loss import Loss
from riemerge.frechet.solvers.solver import Solver
from riemerge.laws import Finding, judge
from riemerge.manifolds import GeodesicManifold, QuotientManifold
from riemerge.manifolds.checks import check_action, check_manifold, check_metric
from riemerge.methods import Method
from riemerge.study.method_laws import check_method
from riemerge.study.value_laws import check_loss, check_solver

MANIFOLDS: Mapping[str, Callable[..., GeodesicManifold]] = {
    "stiefel": manifolds.Stiefel,
    "spd": manifolds.SymmetricPositiveDefinite,
    "fixed_rank": manifolds.FixedRank,
}
"""Manifolds by name, each made from its sizes: `stiefel:9,3`."""


def check_target(target: str, on: str | None = None, *, seed: int = 0) -> dict[str, list[Finding]]:
    """Measure the laws of a thing, kind by kind.

    Args:
        target: A method, loss or solver by name; a manifold by name and sizes, `stiefel:9,3`; or
            `module:Name`, whose code is run.
        on: Manifold by name and sizes on which a symmetry or a metric is tried.
        seed: Random seed of every draw.

    Returns:
        Findings by kind (see `riemerge.laws.LAWS`).

    Raises:
        RecipeError: There is no such thing, nothing is known to be a law of it, or it needs a manifold.
    """
    np.random.seed(seed)  # noqa: NPY002 - Pymanopt draws from the global generator
    subject = find_subject(target)
    if isinstance(subject, type):
        subject = _make(target, subject, on)
    found: dict[str, Mapping[str, float]] = {}
    match subject:
        case Method():
            found["method"] = check_method(subject, seed=seed)
        case Loss():
            found["loss"] = check_loss(subject, seed=seed)
        case Solver() | Optimizer():
            found["solver"] = check_solver(subject, seed=seed)
        case Manifold():
            found |= {"manifold": check_manifold(subject), "metric": check_metric(subject)}
            if isinstance(subject, QuotientManifold):
                found["symmetry"] = check_action(subject, seed=seed)
        case _:
            raise RecipeError(
                f"{target}: it is {subject!r}; expected a manifold, metric, symmetry, loss, solver or method"
            )
    return {kind: judge(kind, defects) for kind, defects in found.items()}
