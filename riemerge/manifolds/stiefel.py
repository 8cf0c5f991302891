"""Orthonormal frames with the canonical metric."""

from __future__ import annotations

from typing import Literal, Self, final

import torch
from torch import Tensor

from riemerge.manifolds import linalg
from riemerge.manifolds.base import GeodesicManifold, Logarithm, Reduction, scaled, unreduced

# Iterations of the logarithm. Independent subspaces need 5 to 7, pairs near the cut locus about 40 (measured
# at St(96, 16)); beyond 100 the remaining ones creep.
_MAX_ITERATIONS = 100
# Least diagonal of the Newton model, which is indefinite once two principal angles add up to more than pi.
_LEAST_CURVATURE = 0.05


@final
class Stiefel(GeodesicManifold):
    """K copies of St(n, p), the n x p matrices with U'U = I, with the canonical metric tr(a'(I - UU'/2)b).

    Geodesics are one-parameter rotations of the ambient space; a point and a tangent vector live in the 2p
    columns [U Q], so everything beyond one QR happens in matrices of size p + q, q = min(p, n - p).

    Source: Edelman, Arias, Smith 1998 (eq. 2.39-2.42); logarithm: Zimmermann 2017, with the entrywise Newton
    factor described at `logarithm`.

    Args:
        n: Rows.
        p: Columns, p <= n.
        k: Number of modules.
        retraction: `exp` (the geodesic), `qr` or `polar`.
        dtype: Of drawn points. Small matrices are always computed in float64.
        device: Of drawn points.
        seed: Of `random_point`.
    """

    def __init__(
        self,
        n: int,
        p: int,
        *,
        k: int = 1,
        retraction: Literal["exp", "qr", "polar"] = "exp",
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        if not 1 <= p <= n:
            raise ValueError(f"Stiefel: n is {n} and p is {p}; 1 <= p <= n is needed")
        if retraction not in ("exp", "qr", "polar"):
            raise ValueError(f"Stiefel: retraction is {retraction!r}; known are 'exp', 'qr' and 'polar'")
        dimension = n * p - p * (p + 1) // 2
        super().__init__(
            f"Stiefel manifold St({n},{p})", dimension, k=k, dtype=dtype, device=device, seed=seed
        )
        self.n = n
        self.p = p
        self._retraction = retraction

    @property
    def point_shape(self) -> tuple[int, int]:
        """Rows and columns of one module's point."""
        return self.n, self.p

    def with_modules(self, k: int) -> Self:
        """Returns the same manifold with k modules."""
        return type(self)(
            self.n,
            self.p,
            k=k,
            retraction=self._retraction,
            dtype=self.dtype,
            device=self.device,
            seed=self.seed,
        )

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Returns tr(a'(I - UU'/2)b) per module."""
        return linalg.frobenius(a, b) - linalg.frobenius(point.mT @ a, point.mT @ b) / 2

    def projection(self, point: Tensor, vector: Tensor) -> Tensor:
        """Returns Z - U sym(U'Z)."""
        return vector - point @ linalg.sym(point.mT @ vector)

    def euclidean_to_riemannian_gradient(self, point: Tensor, euclidean_gradient: Tensor) -> Tensor:
        """Returns E - U E'U (Edelman et al. 1998, eq. 2.53)."""
        return euclidean_gradient - point @ (euclidean_gradient.mT @ point)

    def lower(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Returns (I - UU'/2) v."""
        return tangent_vector - point @ (point.mT @ tangent_vector) / 2

    def retraction(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Moves along a tangent vector by the retraction chosen at construction."""
        if self._retraction == "exp":
            return self.exp(point, tangent_vector)
        if self._retraction == "polar":
            return linalg.polar(point + tangent_vector)
        orthonormal, upper = torch.linalg.qr(linalg.working(point + tangent_vector))
        signs = torch.diagonal(upper, dim1=-2, dim2=-1).sign()
        signed = orthonormal * torch.where(signs == 0, torch.ones_like(signs), signs).unsqueeze(-2)
        return signed.to(point.dtype)

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follows a geodesic: [U Q] exp([[A, -R'], [R, 0]]) [I; 0] (Edelman et al. 1998, eq. 2.42)."""
        basis = _basis(point, tangent_vector)
        small = (basis.mT @ tangent_vector.to(basis.dtype)).double()
        rotated = linalg.exp_skew(_generator(small)) @ torch.cat(
            (
                torch.eye(basis.shape[-1], self.p, dtype=small.dtype, device=small.device).expand_as(small),
                small,
            ),
            dim=-1,
        )
        arrival, velocity = (basis @ rotated.to(basis.dtype)).to(point.dtype).split(self.p, dim=-1)
        return arrival, velocity

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Finds a geodesic from a to b.

        In the basis [U Q] the end point is [M; N]; it is completed to a rotation V of p + q columns, and the
        completion is turned until the lower right block C of log V vanishes. C is the gradient of |log V|^2
        along the fibre; the turn is a Newton step with the Hessian's diagonal in the singular basis of the
        block B = Z diag(b) P': H_jk = (h(b_j - b_k) + h(b_j + b_k)) / 2, h(x) = (x / 2) cot(x / 2), which is
        exact where A = 0 and has the Sylvester step of Zimmermann and Hüper 2022 as its Taylor polynomial.

        A pair is valid where C vanished and exp(log) was computed and reached b: U -> -U satisfies C = 0
        alone. Cost: one QR of n x 2p, then about 4 symmetric eigendecompositions of size 2p for nearby
        points, 7 to 10 for independent ones.
        """
        leading = torch.broadcast_shapes(point_a.shape[:-2], point_b.shape[:-2])
        u, y = (x.expand(*leading, self.n, self.p).reshape(-1, self.n, self.p) for x in (point_a, point_b))
        basis = _basis(u, y)
        target = _orthonormalised((basis.mT @ y.to(basis.dtype)).double())
        rotation = _completed(target)
        log, residual = self._vanishing_block(rotation)
        columns = log[..., : self.p]
        reached = linalg.exp_skew(_generator(columns))[..., : self.p]
        error = torch.linalg.matrix_norm(reached - target)
        # Both are absolute errors of matrices with p columns of length one; quadratic convergence leaves them
        # at a few units of round-off, and angles within 1e-4 of pi amplify round-off by 1e4.
        tolerance = 1e4 * torch.finfo(torch.float64).eps * self.p**0.5
        valid = (residual <= tolerance) & (error <= tolerance)
        tangent = (basis @ columns.to(basis.dtype)).to(point_a.dtype)
        upper, lower = columns[..., : self.p, :], columns[..., self.p :, :]
        squared = linalg.frobenius(upper, upper) / 2 + linalg.frobenius(lower, lower)
        return Logarithm(
            tangent.reshape(*leading, self.n, self.p), squared.reshape(leading), valid.reshape(leading)
        )

    def _vanishing_block(self, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """Turns the last q columns of rotations (P, s, s) until log has a zero lower right block; returns
        log, |C|.
        """
        p, q = self.p, rotation.shape[-1] - self.p
        log = linalg.log_so(rotation)
        residual = torch.linalg.matrix_norm(log[..., p:, p:]) if q else torch.zeros_like(log[..., 0, 0])
        goal = 100 * torch.finfo(torch.float64).eps * max(q, 1) ** 0.5
        rotation = rotation.clone()
        for _ in range(_MAX_ITERATIONS):
            active = torch.nonzero(~(residual <= goal)).squeeze(-1)
            if active.numel() == 0:
                break
            current, block = rotation[active], log[active][..., p:, :]
            turn = _newton_turn(block[..., :p], block[..., p:])
            current[..., p:] = current[..., p:] @ turn
            found = linalg.log_so(current)
            rotation[active], log[active] = current, found
            residual[active] = torch.linalg.matrix_norm(found[..., p:, p:])
        return log, residual

    def transport(self, point_a: Tensor, point_b: Tensor, tangent_vector_a: Tensor) -> Tensor:
        """Rotates the ambient space by the rotation that takes a to b and moves as little else as it can.

        Isometric (rotations are isometries of the metric), equivariant under change of basis of the frames,
        and tangent to the rotation of the geodesic at a; not the parallel transport, which differs by a
        torsion term.
        """
        basis = _basis(point_a, point_b)
        target = _orthonormalised((basis.mT @ point_b.to(basis.dtype)).double())
        rotation = _completed(target).to(basis.dtype)
        inside = basis.mT @ tangent_vector_a.to(basis.dtype)
        return tangent_vector_a + (basis @ (rotation @ inside - inside)).to(tangent_vector_a.dtype)

    def covariant_derivative(
        self, point: Tensor, direction: Tensor, field: Tensor, derivative: Tensor
    ) -> Tensor:
        """Adds the Christoffel term of the canonical metric (Edelman et al. 1998, eq. 2.48 polarised)."""
        a, b = point.mT @ direction, point.mT @ field
        normal = direction.mT @ field - a.mT @ b
        christoffel = (direction @ b.mT + field @ a.mT) / 2 + point @ linalg.sym(normal)
        return self.projection(point, derivative + christoffel)

    def feasible(self, point: Tensor) -> Tensor:
        """Tells per module whether a frame is finite and orthonormal: to half the digits of its dtype, or to
        those of float32, where float64 points may come from.
        """
        gram = point.mT @ point
        error = (gram - linalg.eye_like(gram)).abs().amax(dim=-1).amax(dim=-1)
        return error <= max(torch.finfo(point.dtype).eps ** 0.5, 1e-5)  # false where it is NaN

    def extrinsic_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Returns the frame nearest to the weighted sum of frames."""
        return linalg.polar(scaled(weights, points).sum(dim=0))

    def reduce(self, points: Tensor) -> Reduction:
        """Reduces to the span of all frames: St(T p, p) in St(n, p) is totally geodesic (fixed by a
        reflection).

        Geodesics and means that start inside the span stay there, so nothing is lost for such starts.
        """
        count = points.shape[0] * self.p
        if count >= self.n:
            return unreduced(self, points)
        basis = torch.linalg.qr(linalg.working(torch.cat(tuple(points), dim=-1))).Q.to(points.dtype)
        small = type(self)(
            count,
            self.p,
            k=self.k,
            retraction=self._retraction,
            dtype=self.dtype,
            device=self.device,
            seed=self.seed,
        )
        return Reduction(small, basis.mT @ points, lambda point: basis @ point)

    def random_point(self) -> Tensor:
        """Draws uniformly (the Haar measure)."""
        return linalg.polar(self._draw(self.k, self.n, self.p))


def _basis(point: Tensor, vector: Tensor) -> Tensor:
    """Returns [U Q]: Q orthonormal, orthogonal to U also where the normal part of the vector is rank
    deficient.
    """
    point, vector = torch.broadcast_tensors(linalg.working(point), linalg.working(vector))
    n, p = point.shape[-2:]
    normal = vector - point @ (point.mT @ vector)
    orthonormal, _ = torch.linalg.qr(torch.cat((point, normal), dim=-1))
    return torch.cat((point, orthonormal[..., p : min(2 * p, n)]), dim=-1)


def _generator(columns: Tensor) -> Tensor:
    """Returns the skew matrix [[A, -R'], [R, 0]] of its first p columns [A; R]."""
    size, p = columns.shape[-2:]
    upper, lower = columns[..., :p, :], columns[..., p:, :]
    corner = torch.zeros((*lower.shape[:-1], size - p), dtype=columns.dtype, device=columns.device)
    return torch.cat(
        (torch.cat((linalg.skew(upper), lower), dim=-2), torch.cat((-lower.mT, corner), dim=-2)), dim=-1
    )


def _orthonormalised(frame: Tensor) -> Tensor:
    """Newton's iteration for the nearest frame: takes products of half precision frames, off by 1e-2, to
    float64.
    """
    for _ in range(4):
        gram = frame.mT @ frame
        frame = frame @ (1.5 * linalg.eye_like(gram) - 0.5 * gram)
    return frame


def _completed(frame: Tensor) -> Tensor:
    """Completes frames (..., p + q, p) to rotations whose lower right block is as positive as a rotation
    allows.
    """
    p = frame.shape[-1]
    complete, _ = torch.linalg.qr(frame, mode="complete")
    rest = complete[..., p:]
    if rest.shape[-1] == 0:
        return frame
    left, _, right = torch.linalg.svd(rest[..., p:, :])
    rotation = torch.cat((frame, rest @ (right.mT @ left.mT)), dim=-1)
    sign = torch.linalg.det(rotation).sign()
    # Reverse the least certain direction where the completion came out a reflection.
    flip = (1 - sign)[..., None, None] * (rest @ right.mT[..., -1:]) @ left.mT[..., -1:, :]
    return torch.cat((frame, rotation[..., p:] - flip), dim=-1)


def _newton_turn(lower: Tensor, corner: Tensor) -> Tensor:
    """Returns the rotation of the fibre that removes C = corner to second order, given the block B =
    lower.
    """
    squared, vectors = torch.linalg.eigh(lower @ lower.mT)
    b = squared.clamp_min(0).sqrt()
    curvature = (_cot(b.unsqueeze(-1) - b.unsqueeze(-2)) + _cot(b.unsqueeze(-1) + b.unsqueeze(-2))) / 2
    step = vectors @ ((vectors.mT @ corner @ vectors) / curvature.clamp_min(_LEAST_CURVATURE)) @ vectors.mT
    half = linalg.skew(step) / 2
    identity = linalg.eye_like(half)
    # Cayley's map: a rotation that agrees with exp(-step) to third order.
    return torch.linalg.solve(identity + half, identity - half)


def _cot(x: Tensor) -> Tensor:
    """Returns (x / 2) cot(x / 2), 1 at 0."""
    half = x.abs() / 2
    safe = half.clamp_min(1e-8)
    return torch.where(half > 1e-8, safe / torch.tan(safe), torch.ones_like(half))
