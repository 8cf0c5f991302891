"""The Fisher-Rao mean of models as Gaussians with diagonal covariances: exact, entry by entry.

An entry of a model is a Gaussian N(θ, s²), s = 1/√F. Gaussians on a line, with the Fisher-Rao metric
ds² = (dθ² + 2 ds²) / s², are a hyperbolic plane: in u = θ/√2 the metric is twice that of the upper half-plane
z = u + is. Curvature is negative, so the Fréchet mean exists, is unique, and ½ Σ wₜ dₜ² has a Hessian of at
least Σ wₜ: a point with a gradient of norm g is at most g / Σ wₜ from the mean.

Here all distances and norms are those of the half-plane (of curvature -1); Fisher-Rao distances are √2 times
as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.frechet.status import Status
from riemerge.manifolds import HalfPlane
from riemerge.methods.geometries.geometry import Geometry, Placed
from riemerge.methods.method import Domain
from riemerge.methods.setting import Answer, Setting

_BLOCK = 2**18  # entries solved at once: bounds the memory


def fisher_rao(x: Tensor, setting: Setting) -> Answer:
    """Average models as Gaussians N(xₜ, 1/(Fₜ + floor)) in the Fisher-Rao distance, and keep the mean's mean.

    Law: each entry is the first coordinate of argmin Σ wₜ d²((xₜ, sₜ), ·) with
    d = √2 arccosh(1 + (Δθ²/2 + Δs²) / (2 s s')). A shift of all xₜ shifts the answer; one factor on all xₜ
    and sₜ is one on the answer. For models that come near to each other it is `fisher` (not normalised) up to
    the second order of their distance, and the average with weights wₜ √Fₜ up to the third. Models of equal
    variances that are far apart (in standard deviations) are not averaged, as `fisher` does, unless by
    symmetry: the geodesic between them passes through wider Gaussians.

    Args:
        x: (T, ...) dense updates.
        setting: With `statistics[t]["fisher"]` of the shape of one update, and the values `floor`, `tol` (on
            the gradient's norm of every entry, so on its distance from its mean) and `max_passes`.

    Raises:
        NumericalError: An entry whose Fisher information is not positive: only when the floor is 0.

    Source: Atkinson and Mitchell 1981 (the geometry); by Newton's method on the half-plane, damped until the
        gradient decreases.

    Cost: needs the dense dW; about a hundred operations per entry, model and pass.
    """
    weights = (setting.weights / setting.weights.sum()).to(x).unsqueeze(-1)
    tol, budget = setting.values["tol"], setting.values["max_passes"]
    each = zip(*(part.split(_BLOCK, 1) for part in _gaussians(x, setting)), strict=True)
    blocks = [_solve(u, s, weights, tol, budget) for u, s in each]
    centres, gradients, counts = zip(*blocks, strict=True)
    value = 2**0.5 * torch.cat(centres).reshape(x.shape[1:])
    worst, passes = max(gradients), max(counts)
    if worst <= tol:
        return Answer(value, Status.CONVERGED, passes=passes)
    gradient = f"The largest gradient of an entry is {worst:.1e}, above tol {tol:.1e}"
    if passes < budget:
        return Answer(value, Status.STALLED, f"{gradient}: raise tol.", passes=passes)
    return Answer(value, Status.BUDGET, f"{gradient}: raise max_passes or tol.", passes=passes)


@final
@dataclass(frozen=True)
class Gaussians(Geometry):
    """Entries as Gaussians N(xₜ, 1/(Fₜ + floor)) in the Fisher-Rao distance; the mean is kept.

    Law: under the square loss entries are independent, and solved by `fisher_rao`; under another loss the
    distance is that of whole modules, the root of the sum of squares over entries.

    Raises:
        NumericalError: An entry whose Fisher information is not positive: only when the floor is 0.

    Source: Atkinson and Mitchell 1981, Rao's Distance Measure.
    """

    @property
    def domain(self) -> Domain:
        """Dense updates."""
        return "entries"

    def closed_mean(self, x: Tensor, setting: Setting) -> Answer:
        """Return the mean under the square loss, by Newton's method entry by entry."""
        return fisher_rao(x, setting)

    def place(self, x: Tensor, setting: Setting) -> Placed:
        """Return the entries as points of as many half-planes."""
        means, variances = _gaussians(x, setting)
        points = torch.stack([means, variances], dim=1)
        return Placed(HalfPlane(points.shape[-1], device=points.device), points)

    def update(self, point: Tensor, x: Tensor, setting: Setting) -> Tensor:
        """Return the means of the Gaussians."""
        return 2**0.5 * point[0].reshape(x.shape[1:])


def _gaussians(x: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """Return the coordinates u and s of all entries in the half-plane, (T, entries) each."""
    fishers = [statistics["fisher"].to(x) for statistics in setting.statistics]
    information = torch.stack(fishers) + setting.values["floor"]
    if not bool((positive := information > 0).all()):
        raise NumericalError(
            f"{int((~positive).sum())} of {positive.numel()} entries of the Fisher information are not "
            "positive; expected a variance 1/F for each: raise floor"
        )
    return x.flatten(1) / 2**0.5, information.flatten(1).rsqrt()


class _Slope(NamedTuple):
    """Where F falls, in the orthonormal frame (s ∂u, s ∂s): its negative gradient and Newton's step."""

    across: Tensor
    along: Tensor
    newton_across: Tensor
    newton_along: Tensor

    @property
    def size(self) -> Tensor:
        return torch.hypot(self.across, self.along)


def _solve(u: Tensor, s: Tensor, weights: Tensor, tol: float, budget: int) -> tuple[Tensor, float, int]:
    """Return the means (k,) of k sets of T points (T, k) of the half-plane, the largest gradient, and passes.

    Each set has its own damping.
    """
    centre = (weights * u / s).sum(dim=0) / (weights / s).sum(dim=0)
    height = (weights * s.log()).sum(dim=0).exp()
    slope, damping, passes = _slope(centre, height, u, s, weights), torch.ones_like(centre), 0
    while passes < budget:
        # Below this no step helps: what is left of the gradient is round-off.
        open_ = (slope.size > tol) & (damping > 1e-6)
        if not bool(open_.any()):
            break
        new_centre, new_height = _exp(
            centre, height, damping * slope.newton_across, damping * slope.newton_along
        )
        new = _slope(new_centre, new_height, u, s, weights)
        better = open_ & (new.size <= (1.0 - damping / 4) * slope.size)
        centre, height = torch.where(better, new_centre, centre), torch.where(better, new_height, height)
        slope = _Slope(*(torch.where(better, a, b) for a, b in zip(new, slope, strict=True)))
        damping = torch.where(better, 1.0, torch.where(open_, damping / 2, damping))
        passes += 1
    return centre, float(slope.size.max()) if slope.size.numel() else 0.0, passes


def _slope(centre: Tensor, height: Tensor, u: Tensor, s: Tensor, weights: Tensor) -> _Slope:
    """Return Σ wₜ log(zₜ) at centre + i·height, and that times the inverse Hessian.

    The Hessian is Σ wₜ (v vᵀ + dₜ coth dₜ (1 − v vᵀ)), with v the unit vector towards zₜ.
    """
    # An isometry takes the point of evaluation to i and the others to a + ib.
    a, b = (u - centre) / height, s / height
    near, far = torch.hypot(a, b - 1), torch.hypot(a, b + 1)  # |z − i|, |z + i|
    q = near / (2 * b.sqrt())  # sinh(d/2), accurate for all distances d
    ratio = torch.where(q > 0, torch.asinh(q) / torch.where(q > 0, q, 1.0), 1.0)
    across, along = 2 * a, a.square() + (b - 1) * (b + 1)
    log = ratio / (b.sqrt() * far)
    turn = ratio * (1 + 2 * q.square()) / (1 + q.square()).sqrt()  # d coth d
    length = torch.where(q > 0, near * far, 1.0)
    bend = (1 - turn) / length.square()
    gradient_across = (weights * log * across).sum(dim=0)
    gradient_along = (weights * log * along).sum(dim=0)
    h_across = (weights * (turn + bend * across.square())).sum(dim=0)
    h_along = (weights * (turn + bend * along.square())).sum(dim=0)
    h_mixed = (weights * bend * across * along).sum(dim=0)
    determinant = h_across * h_along - h_mixed.square()
    return _Slope(
        gradient_across,
        gradient_along,
        (h_along * gradient_across - h_mixed * gradient_along) / determinant,
        (h_across * gradient_along - h_mixed * gradient_across) / determinant,
    )


def _exp(centre: Tensor, height: Tensor, across: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the geodesic from centre + i·height with this velocity arrives."""
    length = torch.hypot(across, along)
    safe = torch.where(length > 0, length, 1.0)
    x, y = across / safe, along / safe
    # cosh d − y sinh d; going up, where that cancels, in the form that does not.
    upward = (-length).exp() + x.square() * length.sinh() / (1 + y.abs())
    shrinking = torch.where(y > 0, upward, length.cosh() - y * length.sinh())
    return centre + height * x * length.sinh() / shrinking, height / shrinking
