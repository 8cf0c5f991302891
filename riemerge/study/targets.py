"""The laws of a thing that is given by its name, or by that of its code."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from pymanopt.manifolds.manifold import Manifold
from pymanopt.optimizers.optimizer import Optimizer

from riemerge import manifolds
from riemerge.errors import NumericalError, RecipeError, RiemergeError
from riemerge.frechet.loss import LOSSES, Loss
from riemerge.frechet.solvers.catalogue import SOLVERS
from riemerge.frechet.solvers.solver import Solver
from riemerge.laws import Finding, judge
from riemerge.manifolds import GeodesicManifold, GroupAction, MetricManifold, QuotientManifold
from riemerge.manifolds.checks import check_action, check_manifold, check_metric
from riemerge.methods import METHODS, Method
from riemerge.registry import did_you_mean
from riemerge.study.method_laws import check_method
from riemerge.study.value_laws import check_loss, check_solver

MANIFOLDS: Mapping[str, Callable[..., GeodesicManifold]] = {
    "euclidean": manifolds.Euclidean,
    "fixed_rank": manifolds.FixedRank,
    "grassmann": manifolds.Grassmann,
    "half_plane": manifolds.HalfPlane,
    "spd": manifolds.SymmetricPositiveDefinite,
    "sphere": manifolds.Sphere,
    "stiefel": manifolds.Stiefel,
}
"""Manifolds by name, each made from its sizes: `stiefel:9,3`."""


def check_target(target: str, on: str | None = None, *, seed: int = 0) -> dict[str, list[Finding]]:
    """Measure the laws of a thing, kind by kind.

    Args:
        target: A method, loss or solver by name; a manifold by name and sizes, `stiefel:9,3`; or
            `module:Name` of any of these, of a metric or of a symmetry, whose code is run.
        on: Manifold by name and sizes on which a metric or a symmetry is tried.
        seed: Random seed of every draw.

    Returns:
        Findings by kind, a key of `riemerge.laws.LAWS`.

    Raises:
        RecipeError: There is no such thing, it cannot be made, no law of it is known, or it needs a manifold.
        NumericalError: The code of the thing fails.
    """
    np.random.seed(seed)  # noqa: NPY002 - Pymanopt draws from the global generator
    base = make_manifold(on, seed) if on else None
    found: dict[str, Mapping[str, float]] = {}
    for subject in _find(target, base, seed):
        try:
            found |= _check(subject, seed)
        except RiemergeError:
            raise
        except Exception as fault:
            raise NumericalError(f"{target}: it cannot be checked: {fault!r}") from fault
    if not found:
        raise RecipeError(
            f"{target}: no law of it is known: expected a manifold, metric, symmetry, loss, solver or method"
        )
    return {kind: judge(kind, defects) for kind, defects in found.items()}


def _check(subject: Any, seed: int) -> dict[str, Mapping[str, float]]:
    """Return the defects of a thing by the kind of their laws; none where it is of no kind."""
    match subject:
        case Method():
            return {"method": check_method(subject, seed=seed)}
        case Loss():
            return {"loss": check_loss(subject, seed=seed)}
        case Solver() | Optimizer() | type():
            return {"solver": check_solver(subject, seed=seed)}
        case QuotientManifold():
            both = {"manifold": check_manifold(subject), "metric": check_metric(subject)}
            return {**both, "symmetry": check_action(subject, seed=seed)}
        case Manifold():
            return {"manifold": check_manifold(subject), "metric": check_metric(subject)}
        case _:
            return {}


def make_manifold(text: str, seed: int = 0) -> GeodesicManifold:
    """Return the manifold of two modules that a text such as `stiefel:9,3` names.

    Raises:
        RecipeError: No such manifold, or sizes that it does not take.
    """
    name, _, sizes = text.partition(":")
    if name not in MANIFOLDS:
        raise RecipeError(f"unknown manifold {name!r}: {did_you_mean(name, MANIFOLDS)}")
    try:
        return MANIFOLDS[name](*map(int, filter(None, sizes.split(","))), k=2, seed=seed)
    except (TypeError, ValueError) as fault:
        raise RecipeError(f"manifold {text!r}: {fault}; expected its sizes, as in stiefel:9,3") from fault


def _find(target: str, base: GeodesicManifold | None, seed: int) -> Iterator[Any]:
    """Yield what a target names, made where it is a class: a method and a loss may have one name."""
    name, _, rest = target.partition(":")
    if name in MANIFOLDS and re.fullmatch("[0-9,]+", rest):
        yield make_manifold(target, seed)
        return
    named = [METHODS[target]] if target in METHODS else []
    named += [table.make(target) for table in (LOSSES, SOLVERS) if name in table]
    yield from named
    if named:
        return
    if not rest:
        known = [*METHODS, *LOSSES, *SOLVERS, *MANIFOLDS]
        raise RecipeError(f"{target}: there is no such name: {did_you_mean(target, known)}")
    sys.path.append(here := str(Path.cwd()))
    try:
        subject = getattr(import_module(name), rest)
    except Exception as fault:
        raise RecipeError(f"{target}: it cannot be imported: {fault!r}") from fault
    finally:
        sys.path.remove(here)
    yield _place(target, subject, base)


def _place(target: str, subject: Any, base: GeodesicManifold | None) -> Any:
    """Return what is made by a class, with the manifold of a metric or a symmetry."""
    symmetry = subject if isinstance(subject, type) else type(subject)
    acts = issubclass(symmetry, GroupAction)
    metric = hasattr(subject, "inner_products") and not issubclass(symmetry, Manifold)
    if (acts or metric) and base is None:
        raise RecipeError(f"{target}: a metric or a symmetry is tried on a manifold: say which, --on spd:4")
    if isinstance(subject, type) and not issubclass(subject, Optimizer):
        # A group of matrices is made for the columns that it acts on, unless it takes no size.
        sized = acts and inspect.signature(subject).parameters
        try:
            subject = subject(base.point_shape[1]) if sized and base else subject()
        except Exception as fault:
            raise RecipeError(f"{target}: it cannot be made: {fault!r}") from fault
    if base is None or not (acts or metric):
        return subject
    return QuotientManifold(base, subject) if acts else MetricManifold(base, subject)
