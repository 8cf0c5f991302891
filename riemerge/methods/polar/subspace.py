"""Mean subspaces of both sides, and a mean of the cores of the updates in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, final

from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.frechet.status import Status
from riemerge.linalg import left_singular
from riemerge.manifolds import Grassmann as Subspaces
from riemerge.methods.geometries.geometry import Geometry, Placed, Solved, Steps
from riemerge.methods.method import Domain
from riemerge.methods.polar.positive import exact, polar_mean
from riemerge.methods.setting import Setting
from riemerge.methods.singular.singular_vectors import leading, leading_each, mean_rank
from riemerge.methods.stack import Evidence
from riemerge.updates.cores import Cores

_FRAMES: dict[str, Any] = {"tol": 1e-8, "max_passes": 1000}


@final
@dataclass(frozen=True)
class Grassmann(Geometry):
    """Column spaces and row spaces, and the cores of the updates in their means: L M(Lᵀ xₜ R) Rᵀ.

    The mean column space L and the mean row space R have the dimension that `rank` says, or the largest
    numerical rank of the updates. The mean M of the cores is their average, or one of `polar_mean`.

    Law: f(L x Rᵀ) = L f(x) Rᵀ and f(c x) = c f(x); copies give themselves.

    Attributes:
        frames: `chordal`, the mean in the distance ‖L Lᵀ − Uₜ Uₜᵀ‖: the leading eigenvectors of Σ wₜ Uₜ Uₜᵀ;
            or `grassmann`, the Fréchet mean in the geodesic distance, the root of the sum of squared
            principal angles, which needs one rank, and is unique where all subspaces lie within a quarter
            turn's half.
        core: Mean of the cores: `average`, or a kind of `polar_mean`.

    Raises:
        NumericalError: The dimension cuts between equal eigenvalues, so that the mean subspace is arbitrary
            (of orthogonal ones any choice is as good); or `grassmann` of several ranks.

    Source: Edelman, Arias, Smith 1998 (distances and logarithm); Karcher 1977.

    Cost: one decomposition of each side, (p, p) and (q, q), and for `grassmann` 2 T SVDs (p, r) a pass.
    """

    frames: Literal["chordal", "grassmann"] = "chordal"
    core: str = "average"

    @property
    def domain(self) -> Domain:
        """Cores: the frames are those of their decompositions."""
        return "cores"

    def mean(self, x: Cores, setting: Setting) -> Steps:
        """Place the frames of both sides, then the cores: up to three problems."""
        weights = setting.weights.to(x.norms)
        ranks = leading_each(x.spread(x.svds.values), max(x.ranks))
        size = mean_rank(setting, ranks)
        if not size:
            return exact(x.combine(weights))
        x = x.narrow(ranks)
        roots = x.each(weights).sqrt()
        sides = (x.svds.left, x.svds.right)
        means = [chordal(frames * roots, size) for frames in sides]
        passes = 0
        if self.frames == "grassmann":
            if set(ranks) != {size}:
                raise NumericalError(
                    f"the updates have numerical ranks {ranks} and the mean {size}: subspaces have a "
                    "geodesic mean of their own dimension only: use frames chordal"
                )
            for side, frames in enumerate(sides):
                points = x.spread(frames).movedim(-2, -3)
                space = Subspaces(*points.shape[1:], device=points.device)
                solved = yield Placed(space, points, start=means[side], options=_FRAMES)
                means[side], passes = solved.value, passes + solved.evidence.passes
                if not solved.evidence.ok:
                    advice = (
                        "The mean subspace is not found: the subspaces are too far apart. Use frames chordal."
                    )
                    return Solved(x.combine(weights), Evidence(Status.BUDGET, advice, passes=passes))
        left, right = means
        core = yield from polar_mean(x.within(left, right), weights, self.core)
        # Distances are those of the cores' parts.
        evidence = replace(core.evidence, distances=None, passes=0)
        return Solved(left @ core.value @ right.mT, evidence)


def chordal(frames: Tensor, size: int) -> Tensor:
    """Return the leading eigenvectors (p, size) of Σ wₜ Uₜ Uₜᵀ, from the singular vectors of all √wₜ Uₜ.

    Args:
        frames: T frames √wₜ Uₜ side by side (p, Σ rₜ).
        size: Dimension of the mean subspace.

    Raises:
        NumericalError: The eigenvalues on both sides of the cut are equal.
    """
    vectors, values = left_singular(frames)
    return vectors[:, : leading(values, size, float(values[0]))]
