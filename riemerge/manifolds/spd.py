"""Symmetric positive definite matrices with the affine-invariant metric."""

from __future__ import annotations

from typing import Literal, Unpack, final

import torch
from torch import Tensor

from riemerge import linalg
from riemerge.manifolds.base import Logarithm, Options
from riemerge.manifolds.spd_base import PositiveDefinite


@final
class SymmetricPositiveDefinite(PositiveDefinite):
    """K copies of SPD(r) with the metric tr(B⁻¹ a B⁻¹ b), invariant under B -> M B Mᵀ for every invertible
    M.

    All verbs are closed forms in W = C⁻¹ Y C⁻ᵀ, B = C Cᵀ (Cholesky), which is as accurate as B^-½ Y
    B^-½ and needs one eigendecomposition. Computed in float64.

    Source: Pennec, Fillard, Ayache 2006; Bhatia 2007, ch. 6.

    Args:
        r: Size of the matrices.
        retraction: `exp` (the geodesic), or `quadratic`: B + v + v B⁻¹ v / 2, which is at least B / 2
            however long the step.
        options: See `riemerge.manifolds.base.Options`.
    """

    def __init__(
        self,
        r: int,
        *,
        retraction: Literal["exp", "quadratic"] = "exp",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(r, **options)
        if retraction not in ("exp", "quadratic"):
            raise ValueError(
                f"SymmetricPositiveDefinite: retraction is {retraction!r}; known are 'exp' and 'quadratic'"
            )
        self._retraction: Literal["exp", "quadratic"] = retraction

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return tr(B⁻¹ a B⁻¹ b) per module."""
        factor = _cholesky(point)
        return linalg.frobenius(_whiten(factor, a), _whiten(factor, b))

    def euclidean_to_riemannian_gradient(self, point: Tensor, euclidean_gradient: Tensor) -> Tensor:
        """Return B sym(E) B."""
        wide = point.double()
        return linalg.sym(wide @ linalg.sym(euclidean_gradient.double()) @ wide).to(point.dtype)

    def riemannian_to_euclidean_gradient(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Return B⁻¹ v B⁻¹."""
        factor = _cholesky(point)
        white = _whiten(factor, tangent_vector)
        half = torch.linalg.solve_triangular(factor.mT, white, upper=True)
        return linalg.sym(torch.linalg.solve_triangular(factor, half, upper=False, left=False)).to(
            point.dtype
        )

    def retraction(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Move along a tangent vector by the retraction chosen at construction; both are of second order.

        Source of the quadratic one: Jeuris, Vandebril, Vandereycken 2012.
        """
        if self._retraction == "exp":
            return self.exp(point, tangent_vector)
        half = torch.linalg.solve_triangular(_cholesky(point), tangent_vector.double(), upper=False)
        moved = point.double() + tangent_vector.double() + half.mT @ half / 2
        return linalg.sym(moved).to(point.dtype)

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follow a geodesic: C exp(W) Cᵀ with W = C⁻¹ v C⁻ᵀ."""
        factor = _cholesky(point)
        eigenvalues, vectors = torch.linalg.eigh(linalg.sym(_whiten(factor, tangent_vector)))
        frame, grown = factor @ vectors, eigenvalues.exp()
        arrival = (frame * grown.unsqueeze(-2)) @ frame.mT
        velocity = (frame * (grown * eigenvalues).unsqueeze(-2)) @ frame.mT
        return linalg.sym(arrival).to(point.dtype), linalg.sym(velocity).to(point.dtype)

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Find the geodesic from a to b: C log(W) Cᵀ. Unique, for every pair of positive definite
        matrices.
        """
        factor = _cholesky(point_a)
        eigenvalues, vectors = torch.linalg.eigh(linalg.sym(_whiten(factor, point_b)))
        valid = (eigenvalues > 0).all(dim=-1)
        logs = eigenvalues.clamp_min(torch.finfo(eigenvalues.dtype).tiny).log()
        frame = factor @ vectors
        tangent = (frame * logs.unsqueeze(-2)) @ frame.mT
        return Logarithm(linalg.sym(tangent).to(point_a.dtype), logs.square().sum(dim=-1), valid)

    def transport(self, point_a: Tensor, point_b: Tensor, tangent_vector_a: Tensor) -> Tensor:
        """Carry a vector from a to b by parallel transport along the geodesic: E v Eᵀ, E = (b
        a⁻¹)^½.
        """
        forth, _ = self.congruence(point_a, point_b)
        return linalg.sym(forth @ tangent_vector_a.double() @ forth.mT).to(point_a.dtype)

    def congruence(self, point_a: Tensor, point_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return E = (b a⁻¹)^½, which transports from a to b by E v Eᵀ, and its inverse; float64."""
        factor = _cholesky(point_a)
        eigenvalues, vectors = torch.linalg.eigh(linalg.sym(_whiten(factor, point_b)))
        root = eigenvalues.clamp_min(torch.finfo(eigenvalues.dtype).tiny).sqrt().unsqueeze(-2)
        frame = factor @ vectors
        coframe = torch.linalg.solve_triangular(factor.mT, vectors, upper=True)
        return (frame * root) @ coframe.mT, (frame / root) @ coframe.mT

    def covariant_derivative(
        self, point: Tensor, direction: Tensor, field: Tensor, derivative: Tensor
    ) -> Tensor:
        """Return D - sym(direction B⁻¹ field)."""
        turned = direction.double() @ torch.linalg.solve(point.double(), field.double())
        return linalg.sym(derivative.double() - turned).to(point.dtype)

    def orbit_metric(self, values: Tensor, frames: float) -> Tensor:
        """Return lⱼ/lₖ + lₖ/lⱼ - 2 + frames."""
        ratio = values.unsqueeze(-1) / values.unsqueeze(-2)
        return ratio + ratio.mT + (frames - 2)

    def momentum(self, values: Tensor, vector: Tensor) -> Tensor:
        """Return v B⁻¹ - B⁻¹ v."""
        quotient = vector / values.unsqueeze(-1)
        return quotient.mT - quotient

    def chart(self, values: Tensor) -> Tensor:
        """Return the logarithm."""
        return values.log()

    def inverse_chart(self, values: Tensor) -> Tensor:
        """Return the exponential."""
        return values.exp()

    def bend(self, values: Tensor, other: Tensor) -> Tensor:
        """Return 4 (b / sinh b) sinh(g / 2) sinh(l / 2), l and g the log ratios, b = (g - l) / 2: exact.

        Not below zero, where the order of the diagonals differs.
        """
        ratio, turned = linalg.differences(values.log()), linalg.differences(other.log())
        half = (turned - ratio).abs() / 2
        bent = torch.where(half > 1e-6, half / torch.sinh(half.clamp_min(1e-6)), torch.ones_like(half))
        return (4 * bent * torch.sinh(turned / 2) * torch.sinh(ratio / 2)).clamp_min(0)


def _cholesky(point: Tensor) -> Tensor:
    """Return Cholesky factors, NaN where there is none: to ask for an error would be to wait for the
    device.
    """
    factor, info = torch.linalg.cholesky_ex(point.double())
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


def _whiten(factor: Tensor, matrix: Tensor) -> Tensor:
    """Return C⁻¹ X C⁻ᵀ."""
    half = torch.linalg.solve_triangular(factor, matrix.double(), upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True, left=False)
