"""The laws that checks measure: what each says, who needs it, and what defect is round-off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True)
class Law:
    """What must hold of a manifold, a metric, a symmetry, a loss, a distance, a solver or a method.

    Attributes:
        says: The law in words or as a formula.
        tolerance: Largest relative defect that round-off explains in float64.
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
        defect: Largest relative defect; inf where a value is not a number; None where the law does not
            concern the subject, or the subject lacks the verbs that the law is about.
    """

    name: str
    law: Law
    defect: float | None

    @property
    def verdict(self) -> str:
        """The finding in a word: `holds`, `fails`, `optional` (it fails, and may), or `-` for nothing."""
        if self.defect is None:
            return "-"
        if self.defect <= self.law.tolerance:
            return "holds"
        return "optional" if self.law.optional else "fails"

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return self.verdict != "fails"


def judge(kind: str, defects: Mapping[str, float]) -> list[Finding]:
    """Return what was measured of each law of a kind of things.

    Args:
        kind: A key of `LAWS`.
        defects: Defects by the names of the laws, as the checks return them.
    """
    return [Finding(name, law, defects.get(name)) for name, law in LAWS[kind].items()]


# Round-off of closed forms, of iterated ones (alignments, and an arccos of nearly 1), and of differences.
_EXACT, _NEAR, _SLOPE = 1e-9, 1e-6, 1e-5

LAWS: Mapping[str, Mapping[str, Law]] = {
    "manifold": {
        "projection": Law("P(x, v) = v for tangent v, in entries", _EXACT, "gradients"),
        "symmetry": Law("⟨u, v⟩ = ⟨v, u⟩", _EXACT, "every solver"),
        "linearity": Law("⟨u + v, v⟩ = ⟨u, v⟩ + ⟨v, v⟩", _EXACT, "every solver"),
        "positivity": Law("⟨v, v⟩ ≥ 0", _EXACT, "every solver"),
        "norm": Law("‖v‖² = ⟨v, v⟩", _EXACT, "certificates"),
        "dimension": Law("tangent vectors span `dim` dimensions", 0.0, "trust regions"),
        "retraction": Law("R(x, tv) = exp(x, tv) + O(t²): 2 less the order", 0.1, "line searches"),
        "log_exp": Law("log(x, exp(x, v)) = v", _NEAR, "gradients of a mean"),
        "exp_log": Law("exp(x, log(x, y)) = y", _NEAR, "gradients of a mean"),
        "length": Law("dist(x, exp(x, v)) = ‖v‖", _NEAR, "the cost of a mean"),
        "dist_symmetry": Law("dist(x, y) = dist(y, x)", _NEAR, "the cost of a mean"),
        "gauss": Law("grad d²(x, ·)/2 = -log(y, x) at y", _SLOPE, "gradients of a mean"),
        "pair_mean": Law("pair_mean(x, y) is as far from x as from y", _NEAR, "midpoints"),
        "transport": Law("transport(x, y, v) is tangent at y, in entries", _EXACT, "lbfgs"),
        "isometry": Law("transport keeps lengths", _EXACT, "pairs of lbfgs", optional=True),
        "torsion": Law("∇ᵤv - ∇ᵥu = [u, v]", _SLOPE, "Hessians"),
        "compatibility": Law("u⟨v, w⟩ = ⟨∇ᵤv, w⟩ + ⟨v, ∇ᵤw⟩", _SLOPE, "Hessians"),
        "derivative": Law("∇ᵤv is tangent", _NEAR, "Hessians"),
        "velocity": Law("geodesic(x, v/2) goes on to exp(x, v)", _NEAR, "logarithms"),
        "valid": Law("exp(log) = y where valid, which near pairs are", _NEAR, "certificates"),
        "feasible": Law("what `feasible` accepts is a point; NaN is none", _NEAR, "line searches"),
        "start": Law("extrinsic_mean is a point, by orbits; x of copies of x", _NEAR, "every mean"),
        "reduction": Law("lift(points) = points; distances, midpoints stay", _NEAR, "every merge"),
        "modules": Law("with_modules(k) is the set and metric, k times", _EXACT, "every merge"),
    },
    "metric": {
        "riesz": Law("⟨grad(E), v⟩ = Σ E∘v for tangent v", _EXACT, "gradients"),
        "tangency": Law("grad(E) is tangent, in entries", _EXACT, "gradients"),
        "riesz_inverse": Law("grad(lower(v)) = v", _EXACT, "torch autograd"),
    },
    "symmetry": {
        "composition": Law("act(act(x, g), h) = act(x, g h)", _EXACT, "alignments"),
        "subgroup": Law("exp((s + t)A) acts as exp(sA), then exp(tA)", _EXACT, "alignments"),
        "isometry": Law("dist(act(x, g), act(y, g)) = dist(x, y)", _EXACT, "distances of orbits"),
        "vertical": Law("vertical(A) = d/dt act(x, exp(tA)) at 0", _SLOPE, "horizontal vectors"),
        "momentum": Law("⟨v, vertical(A)⟩ = Σ momentum(v)∘A", _EXACT, "horizontal vectors"),
        "horizontal": Law("horizontal parts are orthogonal to vertical ones", _EXACT, "gradients"),
        "idempotence": Law("a horizontal vector is its horizontal part", _EXACT, "gradients"),
        "invariance": Law("distances of orbits depend on no representative", _NEAR, "every merge"),
        "alignment": Law("the log of an aligned point is horizontal", _NEAR, "gradients of a mean"),
    },
    "loss": {
        "zero": Law("ρ(0) = 0", _EXACT, "the cost of a mean"),
        "growth": Law("ρ does not fall with the distance", _EXACT, "every solver"),
        "pull": Law("pull = wᵢ ρ'(dᵢ)/dᵢ, by differences", _SLOPE, "gradients of a mean"),
        "kink": Law("ρ'(0) = 0 where `smooth` says so", _SLOPE, "certificates at a point"),
        "absence": Law("a point of weight 0 costs nothing and pulls nothing", _EXACT, "weights"),
    },
    "distance": {
        "zero": Law("d(x, x) = 0", _NEAR, "the cost of a mean"),
        "positivity": Law("d(x, y) > 0 for another y", 0.0, "the cost of a mean"),
        "gradient": Law("torch's derivative of d² is that by differences", _SLOPE, "every solver"),
        "orbits": Law("d² on a quotient depends on no representative", _NEAR, "quotients"),
    },
    "solver": {
        "status": Law("the mean of three points of a sphere is found: 0", 0.0, "every mean"),
        "mean": Law("the mean is that of L-BFGS at a tight tolerance", _NEAR, "every mean"),
    },
    "method": {
        "copies": Law("copies of one model merge to it, if `idempotent`", 1e-9, "the table of methods"),
        "order": Law("the order of models is nothing, unless `ordered`", 1e-8, "the table of methods"),
        "absence": Law("a weight of 0 is absence", _EXACT, "filters of a recipe"),
        "gauge": Law("(BG, G⁻¹A) merge as (B, A), if `gauge_invariant`", 1e-8, "the table of methods"),
        "maps": Law("f(L dW Rᵀ) = L f(dW) Rᵀ, unless it sees entries", 1e-7, "joint spans"),
        "rank": Law("`rank` cuts to the nearest matrix of that rank", 1e-8, "the rank of results"),
    },
}
"""Kinds of things, each with its laws by name."""
