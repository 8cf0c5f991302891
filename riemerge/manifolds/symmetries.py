"""Symmetries beside rotations: invertible matrices, scalings, permutations; and heads of attention."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.manifolds.base import GeodesicManifold
from riemerge.manifolds.low_rank.gl_factors import GLFactors
from riemerge.manifolds.quotient import GroupAction


@final
class GeneralLinear(GroupAction):
    """GL(r) acting on pairs of factors: (G, H) . A = (G A, H A⁻ᵀ), which keeps the update G Hᵀ.

    Acts on `GLFactors`, which aligns pairs by its geodesics.

    Source: GeoMerge, section 4 for matrices.

    Args:
        r: Size of the group's matrices: the rank.
    """

    reducible = True

    def __init__(self, r: int) -> None:
        if r < 1:
            raise ValueError(f"GeneralLinear: r is {r}; at least 1 is needed")
        self.columns, self.shape, self.dimension = r, (r, r), r * r

    def require(self, total: GeodesicManifold) -> None:
        """Raise where the total space is no `GLFactors` of this rank."""
        if not isinstance(total, GLFactors):
            raise RecipeError(
                f"GeneralLinear acts on GLFactors, and {total} is of class {type(total).__name__}: give it a "
                "GLFactors, or write a GroupAction that acts on yours"
            )
        GroupAction.require(self, total)

    def act(self, total: Any, point: Tensor, element: Tensor) -> Tensor:
        """Move a pair along its orbit."""
        left, right = total.split(point)
        element = element.to(point.dtype)
        return total.join(left @ element, torch.linalg.solve_ex(element, right.mT).result.mT)

    def vertical(self, total: Any, point: Tensor, algebra: Tensor) -> Tensor:
        """Return (G L, -H Lᵀ)."""
        left, right = total.split(point)
        algebra = algebra.to(point.dtype)
        return total.join(left @ algebra, -right @ algebra.mT)

    def vertical_generator(self, total: Any, point: Tensor, vector: Tensor) -> Tensor:
        """Return ((GᵀG)⁻¹ Gᵀξ - ηᵀH (HᵀH)⁻¹) / 2 for a vector (ξ, η)."""
        left, right = (x.double() for x in total.split(point))
        xi, eta = (x.double() for x in total.split(vector))
        return (_fit(left, xi) - _fit(right, eta).mT) / 2

    def align(self, total: Any, point: Tensor, to: Tensor) -> Tensor:
        """Return the representative on a horizontal geodesic from the other point; NaN where none was
        found.
        """
        aligned: Tensor = total.align(point, to)
        return aligned


@final
class Scaling(GroupAction):
    """R* acting on pairs of vectors: (x, y) . a = (a x, y / a), which keeps the products xᵢ yⱼ.

    Aligned pairs have one ratio ‖x‖ / ‖y‖ and the nearer of both signs. These are the nearest in the metric
    ‖y‖² ‖ξ‖² + ‖x‖² ‖η‖², a cone over a product of spheres turned by log(‖x‖ / ‖y‖).

    Args:
        rows: Rows of x, the first of a point; the others are y.

    Source: GeoMerge, eq. 13-17.
    """

    dimension, shape, columns, reducible = 1, (1, 1), 1, False

    def __init__(self, rows: int = 1) -> None:
        self.rows = rows

    def act(self, total: GeodesicManifold, point: Tensor, element: Tensor) -> Tensor:
        """Move a pair along its orbit."""
        x, y = self._split(point)
        return torch.cat((x * element, y / element), dim=-2).to(point.dtype)

    def vertical(self, total: GeodesicManifold, point: Tensor, algebra: Tensor) -> Tensor:
        """Return (a x, -a y)."""
        x, y = self._split(point)
        return torch.cat((x * algebra, -y * algebra), dim=-2)

    def align(self, total: GeodesicManifold, point: Tensor, to: Tensor) -> Tensor:
        """Match the ratio of lengths, and choose the sign with the smaller sum of both angles."""
        (x, y), (u, v) = self._split(point.double()), self._split(to.double())
        lengths = [torch.linalg.vector_norm(part, dim=-2, keepdim=True) for part in (x, y, u, v)]
        cosines = (x * u).sum(dim=-2, keepdim=True) / (lengths[0] * lengths[2])
        cosines = cosines + (y * v).sum(dim=-2, keepdim=True) / (lengths[1] * lengths[3])
        ratio = (lengths[2] / lengths[3] / (lengths[0] / lengths[1])).sqrt()
        return self.act(total, point, torch.where(cosines < 0, -ratio, ratio))

    def random_element(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw numbers of both signs."""
        numbers = torch.randn(*leading, 2, 1, generator=generator, dtype=torch.float64)
        return numbers[..., :1, :].exp() * numbers[..., 1:, :].sign()

    def _split(self, point: Tensor) -> tuple[Tensor, Tensor]:
        return point[..., : self.rows, :], point[..., self.rows :, :]


@final
class Permutations(GroupAction):
    """Permutations of the units of a layer: (rows of) x . P = Pᵀx, where each row belongs to a unit.

    A matrix that is read by columns, such as the layer's outgoing weights, is placed transposed. Several
    matrices with the same units lie side by side, or below each other (size rows each): they are permuted
    together. The alignment maximises tr(xᵀ Pᵀ y), so it is exact where the distance grows with ‖x - y‖.

    Args:
        size: Number of units.
        signed: Whether units may change sign, too, as those of an odd activation may [default: no].

    Source: Ainsworth, Hayase, Srinivasa 2023; linear assignment: Crouse 2016, by scipy.

    Cost: size³ an alignment, on the CPU.
    """

    dimension = 0

    def __init__(self, size: int, *, signed: bool = False) -> None:
        self.size, self.shape, self.signed = size, (size, size), signed

    def require(self, total: GeodesicManifold) -> None:
        """Raise where the rows of points are not those of so many units."""
        if total.point_shape[0] % self.size:
            raise RecipeError(f"Permutations of {self.size} units do not divide the rows of {total}")

    def act(self, total: GeodesicManifold, point: Tensor, element: Tensor) -> Tensor:
        """Permute rows."""
        return (element.mT.to(point).unsqueeze(-3) @ self._blocks(point)).flatten(-3, -2)

    def vertical(self, total: GeodesicManifold, point: Tensor, algebra: Tensor) -> Tensor:
        """Return zero: the group is discrete."""
        return torch.zeros_like(point)

    def project(self, matrix: Tensor) -> Tensor:
        """Return zero, the only element of the algebra."""
        return torch.zeros_like(matrix)

    def align(self, total: GeodesicManifold, point: Tensor, to: Tensor) -> Tensor:
        """Permute rows by linear assignment."""
        scores = (self._blocks(point.double()) @ self._blocks(to.double()).mT).sum(dim=-3)
        if self.signed:
            return self.act(total, point, assign(scores.abs()) * torch.where(scores < 0, -1.0, 1.0))
        return self.act(total, point, assign(scores))

    def random_element(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw permutations, with signs where these are free."""
        numbers = torch.randn(*leading, 2, self.size, generator=generator, dtype=torch.float64)
        element = torch.eye(self.size, dtype=torch.float64)[numbers[..., 0, :].argsort(dim=-1)]
        signs = numbers[..., 1, :, None].sign() ** int(self.signed)
        return signs * element

    def _blocks(self, point: Tensor) -> Tensor:
        return point.unflatten(-2, (-1, self.size))


def assign(scores: Tensor) -> Tensor:
    """Return the permutation matrices P (..., n, n) that maximise Σ scores * P, on the scores' device.

    Args:
        scores: Square matrices (..., n, n).
    """
    from scipy.optimize import linear_sum_assignment  # here: it takes longer to load than small merges

    tables = torch.nan_to_num(scores).detach().cpu().reshape(-1, *scores.shape[-2:])
    columns = [linear_sum_assignment(table.numpy(), maximize=True)[1].tolist() for table in tables]
    chosen = torch.tensor(columns, device=scores.device).reshape(scores.shape[:-1])
    return torch.nn.functional.one_hot(chosen, scores.shape[-1]).to(scores)


def split_heads(left: Tensor, right: Tensor, heads: int) -> Tensor:
    """Return the heads of attention as pairs of factors (heads, m + n, h), one module each.

    A head uses W_Q and W_K in the product W_Q W_Kᵀ alone, and W_V and W_O in W_V W_O: each product is
    low-rank, and known up to GL(h).

    Args:
        left: W_Q or W_V (m, heads · h), the columns of a head together.
        right: W_K or W_Oᵀ (n, heads · h).
        heads: Number of heads.
    """
    return torch.cat((left, right), dim=-2).unflatten(-1, (heads, -1)).movedim(-2, 0)


def join_heads(points: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return the matrices (m, heads · h) and (n, heads · h) whose heads are the points of `split_heads`.

    Args:
        points: Pairs of factors (heads, m + n, h).
        rows: m.
    """
    stack = points.movedim(0, -2).flatten(-2)
    return stack[:rows], stack[rows:]


def _fit(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return (MᵀM)⁻¹ Mᵀ v."""
    basis, upper = torch.linalg.qr(matrix)
    return torch.linalg.solve_triangular(upper, basis.mT @ vector, upper=True)
