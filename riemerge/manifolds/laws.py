"""The laws that checks measure: what each says, who needs it, and what defect is round-off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

# Round-off of closed forms, of iterated ones (alignments, and an arccos of nearly 1), and of differences.
_EXACT, _ITERATED, _DIFFERENCES = 1e-9, 1e-6, 1e-5
# By how much an order of an error may be short of a whole number.
_ORDER = 0.1


@final
@dataclass(frozen=True, slots=True)
class Law:
    """What must hold of a manifold, a metric, a symmetry, a loss, a geometry, a solver or a method.

    Attributes:
        says: The law in words or as a formula.
        tolerance: Largest relative defect that round-off explains, in float64.
        needed_by: What goes wrong where the law does not hold.
        optional: Whether results stay right without it.
    """

    says: str
    tolerance: float
    needed_by: str
    optional: bool = False


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """What a check measured of one law.

    Attributes:
        name: Key of the law.
        law: The law itself.
        defect: Largest relative defect; inf where a value is not a number, None where the subject has not the
            verbs that the law is about.
    """

    name: str
    law: Law
    defect: float | None

    @property
    def holds(self) -> bool:
        """Whether the law holds, is optional, or speaks of verbs that are not there."""
        return self.law.optional or self.defect is None or self.defect <= self.law.tolerance

    @property
    def verdict(self) -> str:
        """The finding in a word: `holds`, `fails`, `optional` (fails, and may) or `not offered`."""
        if self.defect is None:
            return "not offered"
        if self.defect <= self.law.tolerance:
            return "holds"
        return "optional" if self.law.optional else "fails"


def judge(kind: str, defects: Mapping[str, float]) -> list[Finding]:
    """Return what was measured of each law of a kind of things.

    Args:
        kind: A key of `LAWS`.
        defects: Defects by the names of the laws, as the checks return them.
    """
    return [Finding(name, law, defects.get(name)) for name, law in LAWS[kind].items()]


LAWS: Mapping[str, Mapping[str, Law]] = {
    "manifold": {
        "projection": Law("P(x, v) = v for tangent v, in entries", _EXACT, "every gradient"),
        "symmetry": Law("⟨u, v⟩ = ⟨v, u⟩", _EXACT, "every solver"),
        "linearity": Law("⟨u + v, v⟩ = ⟨u, v⟩ + ⟨v, v⟩", _EXACT, "every solver"),
        "positivity": Law("⟨v, v⟩ ≥ 0", _EXACT, "every solver"),
        "norm": Law("‖v‖² = ⟨v, v⟩", _EXACT, "step lengths and certificates"),
        "dimension": Law("tangent vectors span `dim` dimensions", 0.0, "Pymanopt's trust regions"),
        "retraction": Law("R(x, tv) = exp(x, tv) + O(t²): 2 less the order", _ORDER, "every line search"),
        "log_exp": Law("log(x, exp(x, v)) = v", _ITERATED, "the gradient of a mean"),
        "exp_log": Law("exp(x, log(x, y)) = y", _ITERATED, "the gradient of a mean"),
        "length": Law("dist(x, exp(x, v)) = ‖v‖", _ITERATED, "the cost of a mean"),
        "dist_symmetry": Law("dist(x, y) = dist(y, x)", _ITERATED, "the cost of a mean"),
        "gauss": Law("grad d²(x, ·)/2 at y is -log(y, x)", _DIFFERENCES, "the gradient of a mean"),
        "pair_mean": Law("pair_mean(x, y) is as far from x as from y", _ITERATED, "midpoints"),
        "transport": Law(
            "transport(x, y, v) is tangent at y, in entries", _EXACT, "L-BFGS, conjugate gradient"
        ),
        "isometry": Law("transport keeps lengths", _EXACT, "curvature pairs of L-BFGS", optional=True),
        "torsion": Law("∇ᵤv - ∇ᵥu = [u, v]", _DIFFERENCES, "Hessians: trust regions"),
        "compatibility": Law("u⟨v, w⟩ = ⟨∇ᵤv, w⟩ + ⟨v, ∇ᵤw⟩", _DIFFERENCES, "Hessians: trust regions"),
        "derivative": Law("∇ᵤv is tangent", _EXACT, "Hessians: trust regions"),
        "velocity": Law(
            "geodesic(x, v/2) goes on from where it is, as it moves, to exp(x, v)", _ITERATED, "logarithms"
        ),
        "valid": Law(
            "exp(log) = y where a logarithm is valid, and near pairs have one", _ITERATED, "certificates"
        ),
        "feasible": Law("what `feasible` accepts is a point, and NaN is none", _ITERATED, "line searches"),
        "start": Law(
            "extrinsic_mean is a point, is x of copies of x, and depends on orbits alone",
            _ITERATED,
            "every mean",
        ),
        "reduction": Law(
            "lift(points) = points, and distances and midpoints are kept", _ITERATED, "every merge"
        ),
        "modules": Law(
            "with_modules(k) has the set and the metric of one module, k times", _EXACT, "every merge"
        ),
    },
    "metric": {
        "riesz": Law("⟨grad(E), v⟩ = Σ E∘v for tangent v", _EXACT, "every gradient"),
        "tangency": Law("grad(E) is tangent, in entries", _EXACT, "every gradient"),
        "riesz_inverse": Law("grad(lower(v)) = v", _EXACT, "torch autograd"),
    },
    "symmetry": {
        "composition": Law("act(act(x, g), h) = act(x, g h)", _EXACT, "alignments"),
        "subgroup": Law("exp((s + t)A) acts as exp(sA), then exp(tA)", _EXACT, "turns of an alignment"),
        "isometry": Law("dist(act(x, g), act(y, g)) = dist(x, y)", _EXACT, "the distance of orbits"),
        "vertical": Law(
            "vertical(A) is the derivative of act(x, exp(tA))", _DIFFERENCES, "horizontal vectors"
        ),
        "momentum": Law("⟨v, vertical(A)⟩ = Σ momentum(v)∘A", _EXACT, "horizontal vectors"),
        "horizontal": Law("the horizontal part is orthogonal to vertical vectors", _EXACT, "every gradient"),
        "idempotence": Law("the horizontal part of a horizontal vector is itself", _EXACT, "every gradient"),
        "invariance": Law("the distance of orbits depends on no representative", _ITERATED, "every merge"),
        "alignment": Law("the log of an aligned point is horizontal", _ITERATED, "the gradient of a mean"),
    },
}
"""Kinds of things, each with its laws by name."""
