"""Subspaces, as the spans of orthonormal frames."""

from __future__ import annotations

from typing import Unpack, final

import torch
from torch import Tensor

from riemerge import linalg
from riemerge.manifolds.base import (
    Logarithm,
    Options,
    Reduction,
    change_options,
    trivial_reduction,
)
from riemerge.manifolds.euclidean import FrobeniusManifold

# Cosine of a principal angle that counts as a quarter turn: the geodesic's direction errs by round-off over
# it.
_QUARTER_TURN = 1e-8


@final
class Grassmann(FrobeniusManifold):
    """K copies of Gr(n, p), the p-dimensional subspaces of n-space; a point is any orthonormal frame (n, p).

    Tangent vectors are horizontal, UᵀX = 0, with the metric tr(aᵀb): the distance is the root of the sum of
    squared principal angles. All verbs act in the same way on every frame of a subspace.

    Source: Edelman, Arias, Smith 1998, sec. 2.5; Bendokat, Zimmermann, Absil 2024.

    Args:
        n: Dimension of the space.
        p: Dimension of the subspaces, p <= n.
        options: See `riemerge.manifolds.base.Options`.
    """

    def __init__(self, n: int, p: int, **options: Unpack[Options]) -> None:
        if not 1 <= p <= n:
            raise ValueError(f"Grassmann: n is {n} and p is {p}; 1 <= p <= n is needed")
        super().__init__(f"Grassmann manifold Gr({n},{p})", p * (n - p), (n, p), **options)
        self.n = n
        self.p = p

    def projection(self, point: Tensor, vector: Tensor) -> Tensor:
        """Return Z - U UᵀZ."""
        return vector - point @ (point.mT @ vector)

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follow a geodesic: U cos(S) + X sin(S) / S with S = (XᵀX)^½ (Edelman et al. 1998, eq. 2.65)."""
        u, x = point.double(), tangent_vector.double()
        angles, basis = _angles(x)
        # torch.sinc is sin(pi x) / (pi x)
        cosine, sine = angles.cos(), torch.sinc(angles / torch.pi)
        arrival = (u @ (basis * cosine) + x @ (basis * sine)) @ basis.mT
        velocity = (x @ (basis * cosine) - u @ (basis * angles.square() * sine)) @ basis.mT
        return arrival.to(point.dtype), velocity.to(point.dtype)

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Find the geodesic from a to b. Valid where every principal angle is below a quarter turn.

        With the SVD UᵀY = A cos(t) Bᵀ it is (Y - U UᵀY) B f Aᵀ, f = t / sin t: f is smooth in cos t, so close
        cosines do no harm, and each angle is that of a sine and a cosine.
        """
        u, y = torch.broadcast_tensors(point_a.double(), point_b.double())
        left, cosine, right = linalg.thin_svd(u.mT @ y)
        normal = self.projection(u, y @ right)
        sine = torch.linalg.vector_norm(normal, dim=-2)
        angle = torch.atan2(sine, cosine)
        factor = torch.where(sine > 0, angle / torch.where(sine > 0, sine, 1.0), 1.0)
        tangent = (normal * factor.unsqueeze(-2)) @ left.mT
        reached = self.exp(u, tangent)
        error = linalg.frobenius(*(self.projection(reached, y),) * 2).sqrt()
        valid = (cosine[..., -1] > _QUARTER_TURN) & (error < 1e-6)
        return Logarithm(tangent.to(point_a.dtype), linalg.frobenius(tangent, tangent), valid)

    def transport(self, point_a: Tensor, point_b: Tensor, tangent_vector_a: Tensor) -> Tensor:
        """Carry a vector from a to b by parallel transport along the geodesic, and to the frame of b."""
        u, v = point_a.double(), tangent_vector_a.double()
        x = self.logarithm(u, point_b.double()).tangent
        angles, basis = _angles(x)
        share = basis.mT @ (x.mT @ v)
        sine, less = torch.sinc(angles / torch.pi), torch.sinc(angles / (2 * torch.pi)).square() / 2
        moved = v - u @ (basis * sine) @ share - x @ (basis * less) @ share
        return (moved @ (self.exp(u, x).mT @ point_b.double())).to(point_a.dtype)

    def feasible(self, point: Tensor) -> Tensor:
        """Tell per module whether a frame is finite and orthonormal: to half the digits of its dtype, or to
        those of float32, where float64 points may come from.
        """
        gram = point.mT @ point
        error = (gram - linalg.eye_like(gram)).abs().amax(dim=(-2, -1))
        return error <= max(torch.finfo(point.dtype).eps ** 0.5, 1e-5)  # false where it is NaN

    def extrinsic_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Return the leading eigenvectors of Σ wᵢ Uᵢ Uᵢᵀ: the mean in the distance ‖U Uᵀ - Y Yᵀ‖."""
        scaled = linalg.scale_modules(weights.sqrt(), points.double())
        return linalg.thin_svd(torch.cat(tuple(scaled), dim=-1)).left[..., : self.p].to(points.dtype)

    def reduce(self, points: Tensor) -> Reduction:
        """Reduce to the span of all frames: Gr(T p, p) in Gr(n, p) is totally geodesic."""
        count = points.shape[0] * self.p
        if count >= self.n:
            return trivial_reduction(self, points)
        basis = torch.linalg.qr(torch.cat(tuple(points.double()), dim=-1)).Q
        small = type(self)(count, self.p, **change_options(self.options, k=self.k))
        coordinates = (basis.mT @ points.double()).to(points.dtype)
        return Reduction(small, coordinates, lambda point: basis.to(point.dtype) @ point)

    def random_point(self) -> Tensor:
        """Draw uniformly."""
        return linalg.polar(self.draw(self.k, self.n, self.p))


def _angles(vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return the principal angles (..., 1, p) that a tangent vector turns by, and their right vectors.

    Of XᵀX: what is made of them is entire in the squared angles, so double ones do no harm.
    """
    squares, basis = torch.linalg.eigh(vector.mT @ vector)
    return squares.clamp_min(0).sqrt().unsqueeze(-2), basis
