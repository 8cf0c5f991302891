"""The laws that checks measure: what each says, who needs it, and what defect is round-off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# Round-off of closed forms, of iterated ones (alignments, and an arccos of nearly 1), and of differences.
_EXACT, _NEAR, _SLOPE = 1e-9, 1e-6, 1e-5


class Law(NamedTuple):
    """What must hold of a manifold, a metric, a symmetry, a loss, a solver or a method.

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


class Finding(NamedTuple):
    """What a check measured of one law.

    Attributes:
        name: Name of the law.
        law: The law itself.
        defect: Largest relative defect; inf where a value is not a number.
    """

    name: str
    law: Law
    defect: float

    @property
    def verdict(self) -> str:
        """The finding in a word: `holds`, `fails`, or `optional` where it fails and may."""
        failing = {True: "optional", False: "fails"}[self.law.optional]
        return "holds" if self.defect <= self.law.tolerance else failing


def judge(kind: str, defects: Mapping[str, float]) -> list[Finding]:
    """Return what was measured of the laws of a kind of things.

    Args:
        kind: A key of `LAWS`.
        defects: Defects by the names of the laws, as the checks return them; laws that do not concern the
            subject, or that are about verbs that it lacks, are left out.
    """
    return [Finding(name, law, defects[name]) for name, law in LAWS[kind].items() if name in defects]


LAWS: Mapping[str, Mapping[str, Law]] = {
    "manifold": {
        "projection": Law("P(x, v) = v for tangent v, in entries", _EXACT, "gradients"),
        "symmetry": Law("⟨u, v⟩ = ⟨v, u⟩", _EXACT, "every solver"),
        "linearity": Law("⟨u + v, v⟩ = ⟨u, v⟩ + ⟨v, v⟩", _EXACT, "every solver"),
        "positivity": Law("⟨v, v⟩ ≥ 0", _EXACT, "every solver"),
        "norm": Law("‖v‖² = ⟨v, v⟩", _EXACT, "certificates"),
        "dimension": Law("tangent vectors span `dim` dimensions", 0.0, "trust regions"),
        "retraction": Law("R(x, tv) = exp(x, tv) + O(t²)", 0.1, "line searches"),
        "log_exp": Law("log(x, exp(x, v)) = v", _NEAR, "gradients of a mean"),
        "exp_log": Law("exp(x, log(x, y)) = y", _NEAR, "gradients of a mean"),
        "length": Law("dist(x, exp(x, v)) = ‖v‖", _NEAR, "the cost of a mean"),
        "dist_symmetry": Law("dist(x, y) = dist(y, x)", _NEAR, "the cost of a mean"),
        "gauss": Law("grad d²(x, ·)/2 = -log(y, x) at y", _SLOPE, "gradients of a mean"),
        "pair_mean": Law("pair_mean(x, y) is halfway", _NEAR, "midpoints"),
        "transport": Law("transport ends tangent, in entries", _EXACT, "lbfgs"),
        "isometry": Law("transport keeps lengths", _EXACT, "pairs of lbfgs", optional=True),
        "torsion": Law("∇ᵤv - ∇ᵥu = [u, v]", _SLOPE, "Hessians"),
        "compatibility": Law("u⟨v, w⟩ = ⟨∇ᵤv, w⟩ + ⟨v, ∇ᵤw⟩", _SLOPE, "Hessians"),
        "derivative": Law("∇ᵤv is tangent", _NEAR, "Hessians"),
        "velocity": Law("geodesic(x, v/2) goes on to exp(x, v)", _NEAR, "logarithms"),
        "valid": Law("exp(log) = y where it says so", _NEAR, "certificates"),
        "feasible": Law("what it accepts is a point; NaN is none", _NEAR, "line searches"),
        "start": Law("extrinsic_mean is a point, of orbits", _NEAR, "every mean"),
        "reduction": Law("lift keeps points, lengths, midpoints", _NEAR, "every merge"),
        "modules": Law("with_modules(k) keeps set and metric", _EXACT, "every merge"),
    },
    "metric": {
        "riesz": Law("⟨grad(E), v⟩ = Σ E∘v for tangent v", _EXACT, "gradients"),
        "tangency": Law("grad(E) is tangent, in entries", _EXACT, "gradients"),
        "riesz_inverse": Law("grad(lower(v)) = v", _EXACT, "torch autograd"),
    },
    "symmetry": {
        "composition": Law("act(act(x, g), h) = act(x, g h)", _EXACT, "alignments"),
        "subgroup": Law("exp((s + t)A) acts as exp(sA), exp(tA)", _EXACT, "alignments"),
        "isometry": Law("dist(x·g, y·g) = dist(x, y)", _EXACT, "distances of orbits"),
        "vertical": Law("vertical(A) = d/dt act(x, exp(tA)) at 0", _SLOPE, "horizontal vectors"),
        "momentum": Law("⟨v, vertical(A)⟩ = Σ momentum(v)∘A", _EXACT, "horizontal vectors"),
        "horizontal": Law("horizontal ⊥ vertical", _EXACT, "gradients"),
        "idempotence": Law("a horizontal vector has no other part", _EXACT, "gradients"),
        "invariance": Law("dist(x·h, y·g) of orbits = dist(x, y)", _NEAR, "every merge"),
        "alignment": Law("logs of aligned points are horizontal", _NEAR, "gradients of a mean"),
    },
    "loss": {
        "zero": Law("ρ(0) = 0", _EXACT, "the cost of a mean"),
        "growth": Law("ρ does not fall with the distance", _EXACT, "every solver"),
        "pull": Law("pull = wᵢ ρ'(dᵢ)/dᵢ, by differences", _SLOPE, "gradients of a mean"),
        "smoothness": Law("ρ'(0) = 0, if `smooth`", _SLOPE, "certificates"),
        "absence": Law("a weight of 0 neither costs nor pulls", _EXACT, "weights"),
    },
    "solver": {
        "status": Law("a mean of points of a sphere is found", 0.0, "every mean"),
        "mean": Law("the mean is that of a tight L-BFGS", _NEAR, "every mean"),
    },
    "method": {
        "copies": Law("copies merge to the one, if `idempotent`", 1e-9, "the table"),
        "order": Law("the order is nothing, unless `ordered`", 1e-8, "the table"),
        "sequence": Law("the order matters, if `ordered`", 0.0, "the table", optional=True),
        "absence": Law("a weight of 0 is absence", _EXACT, "filters of a recipe"),
        "gauge": Law("(BG, G⁻¹A) is (B, A), if `gauge_invariant`", 1e-8, "the table"),
        "maps": Law("f(L dW Rᵀ) = L f(dW) Rᵀ", 1e-7, "joint spans"),
        "rank": Law("`rank` cuts to the nearest of that rank", 1e-8, "ranks"),
    },
}
"""Kinds of things, each with its laws by name."""
