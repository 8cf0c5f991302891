"""An update dW = s·B·A kept as its factors: everything about dW without ever forming it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, final

import torch
from torch import Tensor

Factored: TypeAlias = tuple[Tensor, Tensor]
"""A QR factorisation in LAPACK's product form: reflectors above which the triangle lies, and their sizes."""


@final
@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """What an adapter adds to one module, dW = scale · B @ A, as two thin factors.

    Law: every method but `to` and the raw fields is a function of dW alone; replacing (B, A) by (B G, G⁻¹ A)
    changes nothing but round-off. The thin QR of both factors reduces everything to a core of at most r x r,
    which is computed in float64 whatever the dtype of the factors; the error is a few float64 eps times
    ‖B‖·‖A‖·|scale|, also when the terms of B @ A cancel (a Gram matrix would lose half of the digits). Cost:
    O((m + n) r² + r³) time, O((m + n) r) memory.

    Args:
        B: The left factor, (m, r), any float dtype, any device.
        A: The right factor, (r, n), of the same dtype and device.
        scale: The factor s, finite.

    Raises:
        ValueError: The factors do not fit each other, or the scale is not finite.

    Source: Hu et al. 2021 (LoRA), eq. 3.
    """

    B: Tensor
    A: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        fits = self.B.ndim == self.A.ndim == 2 and self.B.shape[1] == self.A.shape[0]
        if not fits or not self.B.numel() or not self.A.numel():
            raise ValueError(
                f"B is {tuple(self.B.shape)} and A is {tuple(self.A.shape)}: expected (m, r) and (r, n)"
            )
        if self.B.dtype != self.A.dtype or self.B.device != self.A.device:
            raise ValueError(
                f"B is {self.B.dtype} on {self.B.device} and A {self.A.dtype} on {self.A.device}: "
                "expected one dtype and device"
            )
        if not self.B.dtype.is_floating_point:
            raise ValueError(f"the factors are {self.B.dtype}: expected a float dtype")
        if not math.isfinite(self.scale):
            raise ValueError(f"the scale is {self.scale}: expected a finite number")

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of dW: outputs by inputs."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """The number r of columns of B: an upper bound of the rank of dW."""
        return self.B.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of both factors."""
        return self.B.dtype

    @property
    def device(self) -> torch.device:
        """The device of both factors."""
        return self.B.device

    def norm(self) -> float:
        """Return the Frobenius norm ‖dW‖, in the units of the weights."""
        _, core, _ = self._reduce()
        return float(torch.linalg.matrix_norm(core))

    def inner(self, other: LowRankUpdate) -> float:
        """Return the Frobenius inner product ⟨dW, dW'⟩ = trace(dWᵀ dW').

        Law: bilinear, symmetric, and `u.inner(u) == u.norm() ** 2` to round-off.

        Raises:
            ValueError: The shapes differ.
        """
        if self.shape != other.shape:
            raise ValueError(f"updates of shapes {self.shape} and {other.shape} have no inner product")
        left, core, right = self._reduce()
        other_left, other_core, other_right = other._reduce()
        return float(((left.T @ other_left) @ other_core @ (other_right @ right.T) * core).sum())

    def distance(self, other: LowRankUpdate) -> float:
        """Return the distance ‖dW − dW'‖ to another update of this shape.

        Raises:
            ValueError: The shapes differ.
        """
        return sum_updates([self, other], [1.0, -1.0]).norm()

    def singular_values(self) -> Tensor:
        """Return the min(m, n, r) leading singular values of dW, descending, float64; all others are zero."""
        _, core, _ = self._reduce()
        sigma: Tensor = torch.linalg.svdvals(core)
        return sigma

    def numerical_rank(self, storage: torch.dtype | None = None) -> int:
        """Return the number of singular values that stand above the round-off of the stored factors.

        Law: counts sigma_i > tau · sigma_1; 0 for the zero update. Here tau is √r · eps(storage), a bound of
        what rounding balanced factors does, plus 10 · eps(float64) · √max(m, n) for the arithmetic here.

        Args:
            storage: The dtype in which the factors were stored, if it is narrower than the one they have now.
        """
        sigma = self.singular_values()
        rounding = math.sqrt(self.rank) * torch.finfo(storage or self.dtype).eps
        arithmetic = 10.0 * torch.finfo(torch.float64).eps * math.sqrt(max(self.shape))
        return int((sigma > (rounding + arithmetic) * sigma[:1]).sum())

    def rounding(self, storage: torch.dtype) -> float:
        """Return the norm of what rounding these factors to a dtype adds to dW, about.

        Law: the root mean square of ‖δB A + B δA‖ for errors δ that are independent, and uniform within half
        of a unit in the last place of numbers just above a power of two: s·eps·√(Σₖ ‖bₖ‖² ‖aₖ‖² / 6) over
        columns bₖ and rows aₖ. It is a bound for other numbers, and depends on the gauge: a bad one is
        rounded more.

        Args:
            storage: The dtype in which the factors were stored.
        """
        columns = self.B.to(torch.float64).square().sum(dim=0) * self.A.to(torch.float64).square().sum(dim=1)
        return abs(self.scale) * torch.finfo(storage).eps * math.sqrt(float(columns.sum()) / 6.0)

    def truncate(self, rank: int) -> LowRankUpdate:
        """Return the nearest update of at most that rank, in the canonical gauge of `balance`.

        Law: no update of that rank is nearer to dW in the Frobenius norm (Eckart and Young 1936); the squared
        distance is the sum of the dropped squared singular values. The factors keep their dtype.

        Args:
            rank: At least 1. The result has min(rank, r, m, n) columns.

        Raises:
            ValueError: The rank is below 1.
        """
        if rank < 1:
            raise ValueError(f"rank {rank}: expected at least 1")
        left, core, right = self._reduce()
        u, sigma, vt = torch.linalg.svd(core, full_matrices=False)
        u, sigma, vt = left @ u[:, :rank], sigma[:rank], vt[:rank] @ right
        root = signs_of(u) * sigma.sqrt()
        return LowRankUpdate((u * root).to(self.dtype), (root.mT * vt).to(self.dtype))

    def energy_kept(self, rank: int) -> float:
        """Return the share of ‖dW‖² that `truncate(rank)` keeps, in [0, 1]; 1 for the zero update."""
        energy = self.singular_values().square()
        total = float(energy.sum())
        return float(energy[:rank].sum()) / total if total > 0.0 else 1.0

    def balance(self) -> LowRankUpdate:
        """Return the same dW in its canonical gauge, with scale 1.

        Law: B = U √S and A = √S Vᵀ of the thin SVD of dW, singular values descending, the entry of largest
        magnitude in each column of U positive. So BᵀB = AAᵀ = S, and updates with equal dW of distinct
        singular values have equal factors. The factors keep their dtype; convert to float64 first for float64
        accuracy.
        """
        return self.truncate(self.rank)

    def dense(self) -> Tensor:
        """Return the matrix dW itself, (m, n) in float64: for tests and tiny modules only."""
        return self.scale * self.B.to(torch.float64) @ self.A.to(torch.float64)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> LowRankUpdate:
        """Return the same update with its factors converted, as by `Tensor.to`."""
        dtype, device = dtype or self.dtype, device or self.device
        return replace(self, B=self.B.to(device, dtype), A=self.A.to(device, dtype))

    def times(self, factor: float) -> LowRankUpdate:
        """Return the update factor · dW, with the same factors."""
        return replace(self, scale=factor * self.scale)

    def absorb_scale(self) -> LowRankUpdate:
        """Return the same dW with scale 1: the scale goes into both factors alike, its sign into A.

        Law: a scale times canonical factors (see `balance`) becomes canonical factors.
        """
        if self.scale == 1.0:
            return self
        root = math.sqrt(abs(self.scale))
        return LowRankUpdate(root * self.B, math.copysign(root, self.scale) * self.A)

    def pad(self, rank: int) -> LowRankUpdate:
        """Return the same dW with columns of zero behind those of B, and as many rows behind those of A.

        Args:
            rank: How many there are then; one that has as many already is returned unchanged.
        """
        more = max(rank - self.rank, 0)
        if not more:
            return self
        pad = torch.nn.functional.pad
        return replace(self, B=pad(self.B, (0, more)), A=pad(self.A, (0, 0, 0, more)))

    def __neg__(self) -> LowRankUpdate:
        return self.times(-1.0)

    def _reduce(self) -> tuple[Tensor, Tensor, Tensor]:
        """Orthonormal (m, p), core (p, q), orthonormal (q, n) in float64 whose product is dW; p, q <= r."""
        left, left_core = torch.linalg.qr(self.B.to(torch.float64))
        right, right_core = torch.linalg.qr(self.A.to(torch.float64).T)
        return left, self.scale * left_core @ right_core.T, right.T


def sum_updates(updates: Sequence[LowRankUpdate], weights: Sequence[float]) -> LowRankUpdate:
    """Add updates of one module exactly: Σ wᵢ dWᵢ as one update of rank Σ rᵢ.

    Law: the factors are concatenated; dW of the sum is the sum to round-off of the dtype. Weights may have
    any sign.

    Args:
        updates: At least one, all of one shape and device; the dtypes are promoted to a common one.
        weights: One finite number for each.

    Raises:
        ValueError: No update, another number of weights, or shapes that differ.
    """
    if not updates or len(updates) != len(weights):
        raise ValueError(f"{len(updates)} updates and {len(weights)} weights: expected as many, at least one")
    if len({update.shape for update in updates}) > 1:
        raise ValueError(f"updates of different shapes: {sorted({update.shape for update in updates})}")
    left = [(weight * update.scale) * update.B for update, weight in zip(updates, weights, strict=True)]
    return LowRankUpdate(torch.cat(left, dim=1), torch.cat([update.A for update in updates], dim=0))


@final
class JointSpan:
    """Updates of one module in orthonormal bases of their joint column space and of their joint row space.

    Law: dWᵢ = L sᵢ Rᵀ with one L (m, p) and one R (n, q), both of orthonormal columns, and small updates sᵢ
    (p, q). So every norm, inner product, singular value, rank and sum of the small updates is that of the
    updates themselves, to round-off. p = min(m, Σ rᵢ), q = min(n, Σ rᵢ). One Householder QR a side, in the
    dtype of the factors (float32 at least): Gram matrices would lose half of the digits, and factors may have
    a gauge of any condition. The small updates are float64.

    Args:
        updates: At least one, all of one shape and device; their dtypes are promoted to a common one.

    Attributes:
        shape: Theirs, (m, n).
        updates: The small ones.

    Raises:
        ValueError: No update, or shapes that differ.
    """

    def __init__(self, updates: Sequence[LowRankUpdate]) -> None:
        shapes = sorted({update.shape for update in updates})
        if len(shapes) != 1:
            raise ValueError(f"updates of shapes {shapes}: expected at least one, all of one shape")
        dtype = torch.float32
        for update in updates:
            dtype = torch.promote_types(dtype, update.dtype)
        # The bases stay in LAPACK's product form: lifting needs no more, and it costs half of forming them.
        self.shape = shapes[0]
        self._left = factor([update.B.mT for update in updates], dtype)
        self._right = factor([update.A for update in updates], dtype)
        widths = [update.rank for update in updates]
        small = zip(
            updates,
            _triangle(self._left[0]).split(widths, dim=1),
            _triangle(self._right[0]).split(widths, dim=1),
            strict=True,
        )
        self.updates = tuple(LowRankUpdate(b, a.mT, update.scale) for update, b, a in small)

    def lift(self, small: LowRankUpdate) -> LowRankUpdate:
        """Return the update L s Rᵀ, (m, n), of a small one (p, q), in the dtype of the factors that span it.

        Law: an isometry; columns are signed so that canonical factors (see `LowRankUpdate.balance`) stay
        canonical.
        """
        left, right = times_basis(self._left, small.B), times_basis(self._right, small.A.mT)
        signs = signs_of(left)
        return LowRankUpdate(left * signs, (right * signs).mT.contiguous(), small.scale)

    def lift_left(self, half: LowRankUpdate) -> LowRankUpdate:
        """Return the update L s, (m, n), of one (p, n) that is reduced on the left alone (see `lift`)."""
        left = times_basis(self._left, half.B)
        signs = signs_of(left)
        return LowRankUpdate(left * signs, (half.A * signs.mT).to(left.dtype), half.scale)


def factor(columns: Sequence[Tensor], dtype: torch.dtype) -> Factored:
    """Return LAPACK's `geqrf` of matrices side by side, each given transposed: factored where they are put,
    since fresh memory costs as much as the flops.
    """
    widths = [part.shape[0] for part in columns]
    transposed = columns[0].new_empty(sum(widths), columns[0].shape[1], dtype=dtype)
    for place, part in zip(transposed.split(widths), columns, strict=True):
        place.copy_(part)
    tall = transposed.mT
    reflectors, tau = torch.geqrf(tall, out=(tall, tall.new_empty(min(tall.shape))))
    return reflectors, tau


def _triangle(factored: Tensor) -> Tensor:
    return factored[: min(factored.shape)].triu().to(torch.float64)


def times_basis(factored: Factored, small: Tensor) -> Tensor:
    """Return the product (rows, k) of the orthonormal (rows, p) behind a `geqrf` with a (p, k)."""
    reflectors, tau = factored
    padded = reflectors.new_zeros(reflectors.shape[0], small.shape[1])
    padded[: small.shape[0]] = small
    product: Tensor = torch.ormqr(reflectors[:, : tau.shape[-1]], tau, padded)
    return product


def signs_of(frame: Tensor) -> Tensor:
    """Return the signs (1, r) that make the entry of largest magnitude in each column of (m, r) positive."""
    largest = frame.gather(0, frame.abs().argmax(dim=0, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(frame.dtype)
