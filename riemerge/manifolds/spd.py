"""Symmetric positive definite matrices with the affine-invariant metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self, final

import torch
from torch import Tensor

from riemerge import linalg
from riemerge.manifolds.base import GeodesicManifold, Logarithm, Reduction, scaled, unreduced


@final
class SymmetricPositiveDefinite(GeodesicManifold):
    """K copies of SPD(r) with the metric tr(B^-1 a B^-1 b), invariant under B -> M B M' for every invertible
    M.

    All verbs are closed forms in W = C^-1 Y C^-T, B = C C' (Cholesky), which is as accurate as B^(-1/2) Y
    B^(-1/2) and needs one eigendecomposition. Computed in float64.

    Source: Pennec, Fillard, Ayache 2006; Bhatia 2007, ch. 6.

    Args:
        r: Size of the matrices.
        k: Number of modules.
        retraction: `exp` (the geodesic), or `quadratic`: B + v + v B^-1 v / 2, which is at least B / 2
            however long the step.
        dtype: Of drawn points.
        device: Of drawn points.
        seed: Of `random_point`.
    """

    def __init__(
        self,
        r: int,
        *,
        k: int = 1,
        retraction: Literal["exp", "quadratic"] = "exp",
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        if r < 1:
            raise ValueError(f"SymmetricPositiveDefinite: r is {r}; at least 1 is needed")
        if retraction not in ("exp", "quadratic"):
            raise ValueError(
                f"SymmetricPositiveDefinite: retraction is {retraction!r}; known are 'exp' and 'quadratic'"
            )
        name = f"Manifold of {r}x{r} symmetric positive definite matrices"
        super().__init__(name, r * (r + 1) // 2, k=k, dtype=dtype, device=device, seed=seed)
        self.r = r
        self._retraction: Literal["exp", "quadratic"] = retraction

    @property
    def point_shape(self) -> tuple[int, int]:
        """Rows and columns of one module's point."""
        return self.r, self.r

    def with_modules(self, k: int) -> Self:
        """Returns the same manifold with k modules."""
        return type(self)(
            self.r, k=k, retraction=self._retraction, dtype=self.dtype, device=self.device, seed=self.seed
        )

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Returns tr(B^-1 a B^-1 b) per module."""
        factor = _cholesky(point)
        return linalg.frobenius(_whitened(factor, a), _whitened(factor, b))

    def projection(self, point: Tensor, vector: Tensor) -> Tensor:
        """Returns the symmetric part."""
        return linalg.sym(vector)

    def euclidean_to_riemannian_gradient(self, point: Tensor, euclidean_gradient: Tensor) -> Tensor:
        """Returns B sym(E) B."""
        wide = point.double()
        return linalg.sym(wide @ linalg.sym(euclidean_gradient.double()) @ wide).to(point.dtype)

    def lower(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Returns B^-1 v B^-1."""
        factor = _cholesky(point)
        white = _whitened(factor, tangent_vector)
        half = torch.linalg.solve_triangular(factor.mT, white, upper=True)
        return linalg.sym(torch.linalg.solve_triangular(factor, half, upper=False, left=False)).to(
            point.dtype
        )

    def retraction(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Moves along a tangent vector by the retraction chosen at construction; both are of second order.

        Source of the quadratic one: Jeuris, Vandebril, Vandereycken 2012.
        """
        if self._retraction == "exp":
            return self.exp(point, tangent_vector)
        half = torch.linalg.solve_triangular(_cholesky(point), tangent_vector.double(), upper=False)
        moved = point.double() + tangent_vector.double() + half.mT @ half / 2
        return linalg.sym(moved).to(point.dtype)

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follows a geodesic: C exp(W) C' with W = C^-1 v C^-T."""
        factor = _cholesky(point)
        eigenvalues, vectors = torch.linalg.eigh(linalg.sym(_whitened(factor, tangent_vector)))
        frame, grown = factor @ vectors, eigenvalues.exp()
        arrival = (frame * grown.unsqueeze(-2)) @ frame.mT
        velocity = (frame * (grown * eigenvalues).unsqueeze(-2)) @ frame.mT
        return linalg.sym(arrival).to(point.dtype), linalg.sym(velocity).to(point.dtype)

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Finds the geodesic from a to b: C log(W) C'. Unique, for every pair of positive definite
        matrices.
        """
        factor = _cholesky(point_a)
        eigenvalues, vectors = torch.linalg.eigh(linalg.sym(_whitened(factor, point_b)))
        valid = (eigenvalues > 0).all(dim=-1)
        logs = eigenvalues.clamp_min(torch.finfo(eigenvalues.dtype).tiny).log()
        frame = factor @ vectors
        tangent = (frame * logs.unsqueeze(-2)) @ frame.mT
        return Logarithm(linalg.sym(tangent).to(point_a.dtype), logs.square().sum(dim=-1), valid)

    def transport(self, point_a: Tensor, point_b: Tensor, tangent_vector_a: Tensor) -> Tensor:
        """Carries a vector from a to b by parallel transport along the geodesic: E v E', E = (b
        a^-1)^(1/2).
        """
        forth, _ = self.congruence(point_a, point_b)
        return linalg.sym(forth @ tangent_vector_a.double() @ forth.mT).to(point_a.dtype)

    def congruence(self, point_a: Tensor, point_b: Tensor) -> tuple[Tensor, Tensor]:
        """Returns E = (b a^-1)^(1/2), which transports from a to b by E v E', and its inverse; float64."""
        factor = _cholesky(point_a)
        eigenvalues, vectors = torch.linalg.eigh(linalg.sym(_whitened(factor, point_b)))
        root = eigenvalues.clamp_min(torch.finfo(eigenvalues.dtype).tiny).sqrt().unsqueeze(-2)
        frame = factor @ vectors
        coframe = torch.linalg.solve_triangular(factor.mT, vectors, upper=True)
        return (frame * root) @ coframe.mT, (frame / root) @ coframe.mT

    def covariant_derivative(
        self, point: Tensor, direction: Tensor, field: Tensor, derivative: Tensor
    ) -> Tensor:
        """Returns D - sym(direction B^-1 field)."""
        turned = direction.double() @ torch.linalg.solve(point.double(), field.double())
        return linalg.sym(derivative.double() - turned).to(point.dtype)

    def feasible(self, point: Tensor) -> Tensor:
        """Tells per module whether a matrix is finite and positive definite."""
        finite = torch.isfinite(point).all(dim=-1).all(dim=-1)
        screened = torch.where(finite[..., None, None], point, linalg.eye_like(point))
        return finite & (torch.linalg.cholesky_ex(screened.double()).info == 0)

    def extrinsic_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Returns the log-Euclidean mean exp(sum w log B) (Arsigny et al. 2007)."""
        logs = scaled(weights, spectral(points.double(), torch.log)).sum(dim=0)
        return spectral(logs, torch.exp).to(points.dtype)

    def reduce(self, points: Tensor) -> Reduction:
        """Returns the problem itself: there is nothing to reduce."""
        return unreduced(self, points)

    def random_point(self) -> Tensor:
        """Draws X diag(e^g) X', X Haar and g standard normal: condition numbers of 10 to 100 at r = 8."""
        frame = linalg.polar(self._draw(self.k, self.r, self.r))
        return linalg.sym((frame * self._draw(self.k, 1, self.r).exp()) @ frame.mT)


def spectral(matrix: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies a function to the eigenvalues of symmetric matrices (..., r, r)."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return linalg.sym((vectors * function(eigenvalues).unsqueeze(-2)) @ vectors.mT)


def _cholesky(point: Tensor) -> Tensor:
    """Returns Cholesky factors, NaN where there is none: to ask for an error would be to wait for the
    device.
    """
    factor, info = torch.linalg.cholesky_ex(point.double())
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


def _whitened(factor: Tensor, matrix: Tensor) -> Tensor:
    """Returns C^-1 X C^-T."""
    half = torch.linalg.solve_triangular(factor, matrix.double(), upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True, left=False)
