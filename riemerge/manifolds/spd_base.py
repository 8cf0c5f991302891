"""Symmetric positive definite matrices as a set, and metrics that depend on the eigenvalues alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Unpack, final

import torch
from torch import Tensor

from riemerge import linalg
from riemerge.manifolds.base import GeodesicManifold, Options


class PositiveDefinite(GeodesicManifold, ABC):
    """K copies of SPD(r) with a metric that is invariant under B -> OᵀB O for orthogonal O. Abstract.

    Beside the verbs of a manifold, a metric says how it sees such turns (`orbit_metric`, `momentum`, `chart`,
    `bend`): from these follow the gauge equation and the alignment of `Orthogonal`. Matrices of planes (j, k)
    are in an eigenbasis of B, with eigenvalues lⱼ.

    Args:
        r: Size of the matrices.
        options: See `riemerge.manifolds.base.Options`.
    """

    def __init__(self, r: int, **options: Unpack[Options]) -> None:
        if r < 1:
            raise ValueError(f"{type(self).__name__}: r is {r}; at least 1 is needed")
        name = f"Manifold of {r}x{r} symmetric positive definite matrices"
        super().__init__(name, r * (r + 1) // 2, (r, r), **options)
        self.r = r

    @abstractmethod
    def orbit_metric(self, values: Tensor, frames: float) -> Tensor:
        """Return the squared length, halved, of the turn of B by a unit of each plane, plus `frames`.

        Args:
            values: Eigenvalues l of B, (..., r).
            frames: What the same turn costs elsewhere, the same in every plane.
        """

    @abstractmethod
    def momentum(self, values: Tensor, vector: Tensor) -> Tensor:
        """Return the skew M with sum(M * W) = ⟨vector, B W - W B⟩ for every skew W.

        Args:
            values: Eigenvalues l of B, (..., r).
            vector: Tangent vector in an eigenbasis of B, (..., r, r).
        """

    @abstractmethod
    def chart(self, values: Tensor) -> Tensor:
        """Return increasing f of eigenvalues, for which ‖f(B) - f(C)‖ is d(B, C) where B and C commute, or
        nearly.
        """

    @abstractmethod
    def inverse_chart(self, values: Tensor) -> Tensor:
        """Return the eigenvalues that `chart` takes to these numbers."""

    @abstractmethod
    def bend(self, values: Tensor, other: Tensor) -> Tensor:
        """Return the second derivative of d²(B, OᵀC O) / 4 over O at the identity in each plane, where B and
        C are diagonal; `orbit_metric` without frames where they are equal.
        """

    @final
    def projection(self, point: Tensor, vector: Tensor) -> Tensor:
        """Return the symmetric part."""
        return linalg.sym(vector)

    @final
    def feasible(self, point: Tensor) -> Tensor:
        """Tell per module whether a matrix is finite and positive definite."""
        finite = torch.isfinite(point).all(dim=-1).all(dim=-1)
        screen = torch.where(finite[..., None, None], point, linalg.eye_like(point))
        return finite & (torch.linalg.cholesky_ex(screen.double()).info == 0)

    @final
    def extrinsic_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Return f⁻¹(Σ wᵢ f(Bᵢ)) in the metric's chart f: the log-Euclidean mean (Arsigny et al. 2007) where
        that is the logarithm.
        """
        charts = linalg.scale_modules(weights, function_of(points.double(), self.chart)).sum(dim=0)
        return function_of(charts, self.inverse_chart).to(points.dtype)

    @final
    def random_point(self) -> Tensor:
        """Draw X diag(e^g) Xᵀ, X Haar and g standard normal: condition numbers of 10 to 100 at r = 8."""
        frame = linalg.polar(self.draw(self.k, self.r, self.r))
        return linalg.sym((frame * self.draw(self.k, 1, self.r).exp()) @ frame.mT)


class KernelMetric(PositiveDefinite, ABC):
    """A metric Σⱼₖ κ(lⱼ, lₖ) aⱼₖ bⱼₖ in an eigenbasis of B, whose eigenvalues are l. Abstract.

    A subclass states the kernel κ and its geodesics; what is linear at one point follows, in float64.

    Source: Hiai, Petz 2009; Thanwerdas, Pennec 2023.

    Args:
        r: Size of the matrices.
        options: See `riemerge.manifolds.base.Options`.
    """

    @abstractmethod
    def kernel(self, values: Tensor) -> Tensor:
        """Return κ(lⱼ, lₖ) of eigenvalues l (..., r): symmetric and positive (..., r, r)."""

    @final
    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return Σⱼₖ κⱼₖ aⱼₖ bⱼₖ per module."""
        values, basis = torch.linalg.eigh(point.double())
        first, second = (basis.mT @ x.double() @ basis for x in (a, b))
        return linalg.frobenius(self.kernel(values) * first, second)

    @final
    def euclidean_to_riemannian_gradient(self, point: Tensor, euclidean_gradient: Tensor) -> Tensor:
        """Divide sym(E) by the kernel."""
        return in_eigenbasis(point, linalg.sym(euclidean_gradient), lambda values: 1 / self.kernel(values))

    @final
    def riemannian_to_euclidean_gradient(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Multiply by the kernel."""
        return in_eigenbasis(point, tangent_vector, self.kernel)

    @final
    def transport(self, point_a: Tensor, point_b: Tensor, tangent_vector_a: Tensor) -> Tensor:
        """Multiply by the root of the kernel at a, divide by that at b: isometric and independent of the
        path; parallel where the metric is flat in a chart (log-Euclidean, Euclidean).
        """
        flat = in_eigenbasis(point_a, tangent_vector_a, lambda values: self.kernel(values).sqrt())
        return in_eigenbasis(point_b, flat, lambda values: self.kernel(values).rsqrt())

    def bend(self, values: Tensor, other: Tensor) -> Tensor:
        """Return the second derivative of d²(B, OᵀC O) / 4 over O at the identity in each plane. Derived:
        (f(lⱼ) - f(lₖ)) (f(cⱼ) - f(cₖ)) in the metric's chart f, exact where the metric is flat in it.
        """
        return linalg.differences(self.chart(values)) * linalg.differences(self.chart(other))

    @final
    def orbit_metric(self, values: Tensor, frames: float) -> Tensor:
        """Return κ (lⱼ - lₖ)² + frames."""
        return self.kernel(values) * linalg.differences(values).square() + frames

    @final
    def momentum(self, values: Tensor, vector: Tensor) -> Tensor:
        """Return κ (lⱼ - lₖ) vⱼₖ."""
        return self.kernel(values) * linalg.differences(values) * vector


def function_of(matrix: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function to the eigenvalues of symmetric matrices (..., r, r)."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return linalg.sym((vectors * function(eigenvalues).unsqueeze(-2)) @ vectors.mT)


def in_eigenbasis(point: Tensor, vector: Tensor, factors: Callable[[Tensor], Tensor]) -> Tensor:
    """Multiply the entries of symmetric matrices, in an eigenbasis of a point, by factors of its eigenvalues
    (..., r, r).
    """
    values, basis = torch.linalg.eigh(point.double())
    small = factors(values) * (basis.mT @ vector.double() @ basis)
    return linalg.sym(basis @ small @ basis.mT).to(vector.dtype)
