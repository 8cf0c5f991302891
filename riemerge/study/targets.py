"""The laws of a thing that is given by its name, or by that of its code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from pymanopt.manifolds.manifold import Manifold
from pymanopt.optimizers.optimizer import Optimizer

from riemerge import manifolds
from riemerge.errors import NumericalError, RecipeError, RiemergeError
from riemerge.frechet.loss import LOSSES, Loss, as_loss
from riemerge.frechet.solvers.catalogue import SOLVERS
from riemerge.frechet.solvers.solver import Solver
from riemerge.laws import Finding, judge
from riemerge.manifolds import GroupAction, MetricManifold, QuotientManifold
from riemerge.manifolds.checks import check_action, check_manifold, check_metric
from riemerge.methods import GEOMETRIES, METHODS, Method, compose
from riemerge.methods.geometries.geometry import Geometry
from riemerge.methods.plugins import import_named
from riemerge.registry import did_you_mean
from riemerge.study.method_laws import check_method
from riemerge.study.value_laws import check_loss, check_solver

MANIFOLDS: Mapping[str, Any] = {
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
        target: A method, geometry, loss or solver by name; a manifold by name and sizes, `stiefel:9,3`; or
            `module:Name` of any of these, of a metric or of a symmetry, whose code is run. A function of one
            argument is a loss.
        on: Manifold on which a metric or a symmetry is tried, given as a target.
        seed: Random seed of every draw.

    Returns:
        Findings by kind, a key of `riemerge.laws.LAWS`.

    Raises:
        RecipeError: There is no such thing, it cannot be made, no law of it is known, or it needs a manifold.
        NumericalError: The code of the thing fails.
    """
    np.random.seed(seed)  # noqa: NPY002 - Pymanopt draws from the global generator
    base = _make(on, _find(on, seed)[0], None) if on else None
    if on and not isinstance(base, manifolds.GeodesicManifold):
        raise RecipeError(f"--on {on}: it is a {type(base).__name__}; expected a manifold, such as spd:4")
    found: dict[str, Mapping[str, float]] = {}
    for subject in _find(target, seed):
        made = _make(target, subject, base)
        try:
            found |= _check(made, seed)
        except RiemergeError:
            raise
        except Exception as fault:
            raise NumericalError(f"{target}: it cannot be checked: {fault!r}") from fault
    if not found:
        expected = "a manifold, metric, symmetry, geometry, loss, solver or method"
        raise RecipeError(f"{target}: no law of it is known: expected {expected}")
    return {kind: judge(kind, defects) for kind, defects in found.items()}


def _check(subject: Any, seed: int) -> Mapping[str, Mapping[str, float]]:
    """Return the defects of a thing by the kind of their laws; none where it is of no kind."""
    match subject:
        case Method():
            return {"method": check_method(subject, seed=seed)}
        case Loss():
            return {"loss": check_loss(subject, seed=seed)}
        case Solver() | Optimizer() | type():
            return {"solver": check_solver(subject, seed=seed)}
        case Manifold():
            both = {"manifold": check_manifold(subject), "metric": check_metric(subject)}
            if isinstance(subject, QuotientManifold):
                both["symmetry"] = check_action(subject, seed=seed)
            return both
        case _:
            return {}


def _find(text: str, seed: int) -> list[Any]:
    """Return what a text names: a method and a loss may have one name."""
    name, _, rest = text.partition(":")
    if name in MANIFOLDS and re.fullmatch("[0-9,]+", rest):
        try:
            return [MANIFOLDS[name](*map(int, rest.split(",")), k=2, seed=seed)]
        except (TypeError, ValueError) as fault:
            raise RecipeError(f"{text}: {fault}; expected the sizes of a {name}") from fault
    named = [METHODS[text]] if text in METHODS else []
    named += [_row(text)] if name in GEOMETRIES else []
    named += [table.make(text) for table in (LOSSES, SOLVERS) if name in table]
    if named:
        return named
    if not rest:
        known = [*METHODS, *GEOMETRIES, *LOSSES, *SOLVERS, *MANIFOLDS]
        raise RecipeError(f"{text}: there is no such name: {did_you_mean(text, known)}")
    try:
        return [getattr(import_named(name), rest)]
    except Exception as fault:
        raise RecipeError(f"{text}: it cannot be imported: {fault!r}") from fault


def _row(text: str) -> Method:
    """Return the row whose laws are those of a geometry: its mean of adapters that are near each other."""
    row = compose(METHODS["average"], geometry=text)
    domain = GEOMETRIES.make(text).domain
    # Some geometries are of one rank only.
    return replace(row, domain=domain, may_be_undetermined=True, truncates_inputs=True)


def _make(text: str, subject: Any, base: Any) -> Any:
    """Return what a class or a function makes, with the manifold of a metric or a symmetry."""
    kind = subject if isinstance(subject, type) else type(subject)
    acts, solves = issubclass(kind, GroupAction), issubclass(kind, Optimizer)
    metric = hasattr(subject, "inner_products") and not issubclass(kind, Manifold)
    if (acts or metric) and base is None:
        raise RecipeError(f"{text}: a metric or a symmetry is tried on a manifold: say which, --on spd:4")
    if callable(subject) and not solves:
        try:
            if issubclass(kind, Geometry):
                GEOMETRIES.register(name := text.replace(":", "."), subject)
                return _row(name)
            sizes = inspect.signature(subject).parameters.values()
            needed = sum(one.default is one.empty and one.kind <= one.POSITIONAL_OR_KEYWORD for one in sizes)
            if needed and not isinstance(subject, type):
                subject = as_loss(subject)
            elif acts and needed:  # a group of matrices, of the size of the columns that it acts on
                subject = subject(base.point_shape[1])
            else:
                subject = subject()
        except Exception as fault:
            raise RecipeError(f"{text}: it cannot be made: {fault!r}") from fault
    if acts:
        return QuotientManifold(base, subject)
    return MetricManifold(base, subject) if metric else subject
