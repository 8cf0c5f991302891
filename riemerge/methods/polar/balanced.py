"""The Fréchet mean of balanced factors up to a common rotation, at a rank that may grow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from riemerge.frechet.status import Status
from riemerge.linalg import left_singular, skew, thin_svd
from riemerge.manifolds import Euclidean, GeodesicManifold, GroupAction, QuotientManifold
from riemerge.methods.geometries.geometry import Geometry, Placed, Solved, Steps
from riemerge.methods.method import Domain
from riemerge.methods.setting import Setting
from riemerge.methods.singular.singular_vectors import FLOOR, leading, mean_rank
from riemerge.methods.stack import Evidence
from riemerge.updates.cores import Cores


@final
@dataclass(frozen=True)
class BuresWasserstein(Geometry):
    """The updates as balanced factors (U √S, V √S), which O(R) turns together.

    A point is Z = [G; H] with dW = G Hᵀ, up to Z -> Z O: the positive semidefinite Z Zᵀ, whose blocks are
    |dWᵀ|, dW and |dW|. The distance is ‖Z − Zₜ Oₜ‖ at the best Oₜ, that of Bures and Wasserstein, for which
    directions of zero are nothing special: so an update of rank r is a point of every rank R >= r without any
    completion, and the mean may have the rank `rank` says, up to Σ rₜ (`sum`); below that of the updates
    it is cut. It starts from the leading R directions of Σ wₜ Zₜ Zₜᵀ.

    Law: f(L x Rᵀ) = L f(x) Rᵀ and f(c x) = c f(x), c of any sign; copies give themselves. Updates of mutually
    orthogonal rows and columns, at R = Σ rₜ, give Σ wₜ² xₜ: each side is averaged, and there are no cross
    terms. Near that the mean is hardly determined: cross terms come at a rate of the small overlaps, and
    `cost_tol` says how long to wait for them. The start is the average, if R = Σ rₜ; where the updates
    overlap at all, the mean itself is that of their own rank whatever R, and more columns only make the way
    to it longer.

    Raises:
        NumericalError: The singular values of all factors together are equal on both sides of R.

    Source: Bhatia, Jain, Lim 2019, On the Bures–Wasserstein distance; Massart, Absil 2020, Quotient geometry
        with simple geodesics for the manifold of fixed-rank PSD matrices.

    Cost: one decomposition of the side (p + q), and T SVDs (R, R) a pass.
    """

    @property
    def domain(self) -> Domain:
        """Cores: the factors are those of their decompositions."""
        return "cores"

    def mean(self, x: Cores, setting: Setting) -> Steps:
        """Place the factors: one problem."""
        largest, weights = x.svds.values.max(), setting.weights.to(x.norms)
        ranks = (x.spread(x.svds.values) > FLOOR * largest).sum(dim=-1).tolist()
        if not any(ranks):
            return Solved(x.combine(0.0 * weights), Evidence(Status.EXACT))
        x = x.narrow(ranks)
        factors = torch.cat([x.svds.left, x.svds.right]) * x.svds.values.sqrt()
        vectors, values = left_singular(factors * x.each(weights).sqrt())
        kept = leading(values, max(mean_rank(setting, ranks), *ranks), float(values[0]))
        points = x.spread(factors).movedim(-2, -3)
        solved = yield place_factors(points, vectors[:, :kept] * values[:kept])
        left, right = solved.value.split(x.shape)
        return solved._replace(value=left @ right.mT)


def place_factors(factors: Tensor, start: Tensor, weights: Tensor | None = None, **options: Any) -> Placed:
    """Return the problem of the mean of Z₁ … Z_T up to an orthogonal map of their columns.

    Law: invariant under Zₜ -> Zₜ O; it moves with isometries on the left. With steps of one F never rises.

    Args:
        factors: T factors (T, N, r).
        start: Point (N, R), R >= r, where the solver begins.
        weights: T weights (T,), of sum 1; those of the setting if there are none.
        options: Options of the solver.

    Source: Álvarez-Esteban et al. 2016, A fixed-point approach to barycenters in Wasserstein space; Gower
        1975, Generalized Procrustes analysis.
    """
    rows, width = start.shape
    points = torch.nn.functional.pad(factors, (0, width - factors.shape[-1]))
    manifold = QuotientManifold(Euclidean(rows, width, device=points.device), _Turns(width))
    unit = float(torch.linalg.matrix_norm(start)) or 1.0
    return Placed(manifold, points, weights, start.to(points), unit, options)


@final
class _Turns(GroupAction):
    """O(R) acting on the columns of matrices (N, R), Z . O = Z O.

    Args:
        r: Number of columns.
    """

    def __init__(self, r: int) -> None:
        self.columns, self.shape, self.dimension = r, (r, r), r * (r - 1) // 2

    def act(self, total: GeodesicManifold, point: Tensor, element: Tensor) -> Tensor:
        """Return Z O."""
        return point @ element

    def align(self, total: GeodesicManifold, point: Tensor, to: Tensor) -> Tensor:
        """Return Z O, O the polar factor of Zᵀ to. Directions in which that is zero to round-off, which may
        turn anyhow, are dropped: they pull nowhere.
        """
        svd = thin_svd(point.mT @ to)
        sizes = torch.linalg.matrix_norm(point) * torch.linalg.matrix_norm(to)
        kept = (svd.values > FLOOR**2 * sizes[..., None]).to(point)
        return point @ svd._replace(values=kept).matrix()

    def vertical(self, total: GeodesicManifold, point: Tensor, algebra: Tensor) -> Tensor:
        """Return Z A."""
        return point @ algebra.to(point)

    def project(self, matrix: Tensor) -> Tensor:
        """Return the skew part."""
        return skew(matrix)

    def momentum(self, total: GeodesicManifold, point: Tensor, vector: Tensor) -> Tensor:
        """Return the skew part of Zᵀ v."""
        return skew((point.mT @ vector).double())

    def vertical_generator(self, total: GeodesicManifold, point: Tensor, vector: Tensor) -> Tensor:
        """Return A with S A + A S = Zᵀv − vᵀZ, S = ZᵀZ, by its eigenvectors; zero where S is."""
        values, basis = torch.linalg.eigh((point.mT @ point).double())
        moved = basis.mT @ (2.0 * self.momentum(total, point, vector)) @ basis
        sums = values.unsqueeze(-1) + values.unsqueeze(-2)
        solved = torch.where(sums > FLOOR**2 * values[..., -1:, None], moved / sums, 0.0)
        return skew(basis @ solved @ basis.mT)
