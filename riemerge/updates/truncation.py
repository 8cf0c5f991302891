"""The nearest matrix of low rank to a dense one, in canonical factors."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.linalg import SVD, eye_like, thin_svd
from riemerge.updates.low_rank import LowRankUpdate

# The Krylov space of the wanted rank, widened: a few columns more cost little and converge sooner, and below
# 24 columns a product of BLAS falls back to slow kernels.
_MORE_COLUMNS = 8
_FEWEST_COLUMNS = 24

# Where a full SVD costs no more than what precedes convergence: the blocks that must fit into min(m, n), and
# the share of it that a space may grow to. A start of more blocks than these costs more than it saves.
_BLOCKS = 16
_LARGEST_SHARE = 0.5
_START_BLOCKS = 8


def nearest(matrix: Tensor, rank: int, start: Tensor | None = None) -> tuple[LowRankUpdate, float]:
    """Return the nearest matrix of at most that rank, and how much of the given one it keeps.

    Law: no matrix of that rank is nearer in the Frobenius norm (Eckart and Young 1936), to a relative 1e-8 of
    the least distance plus the round-off of float64, eps·‖matrix‖. The gauge is that of
    `LowRankUpdate.balance`. A thin SVD where the rank is not much below min(m, n); otherwise a space
    that grows by what its leading triples miss, from a random start of fixed seed, whose singular triples are
    verified: ‖Aᵀu − σ v‖ is at most 1e-9 σ_rank
    or 1e-13 σ_1, whichever is larger, for each that is kept, or the thin SVD is taken after all. The start is
    drawn on the CPU, so it is the same on every device.

    Cost: the dense matrix, and about 2 m n k + 4 (m + n) k² operations for a space of dimension k, which is a
    few times the rank where the singular values decay and up to half of min(m, n) where they are flat.

    Args:
        matrix: The dense matrix (m, n), not empty, on any device; the computation is in float64.
        rank: The largest rank, at least 1. The result has min(rank, m, n) columns.
        start: (k, n) rows whose span may hold most of the leading right singular vectors: what is near to
            them is found sooner.

    Returns:
        The factors in float64 on the matrix's device, with scale 1, and the share of ‖matrix‖² that they
        keep, in [0, 1]; 1 for the zero matrix.

    Raises:
        NumericalError: The matrix holds NaN or Inf.
        ValueError: No matrix, or a rank below 1.

    Source: Davidson 1975 (a space grows by residuals); Musco and Musco 2015 (a random start).
    """
    if matrix.ndim != 2 or not matrix.numel() or rank < 1:
        raise ValueError(
            f"a matrix of shape {tuple(matrix.shape)} and rank {rank}: expected (m, n), rank 1 or more"
        )
    matrix = matrix.to(torch.float64)
    largest = max(-float(matrix.min()), float(matrix.max()))
    if not largest < torch.inf:
        raise NumericalError("the matrix holds NaN or Inf; expected finite numbers: look at what made it")
    if largest == 0.0:
        (m, n), columns = matrix.shape, min(rank, *matrix.shape)
        return LowRankUpdate(matrix.new_zeros(m, columns), matrix.new_zeros(columns, n)), 1.0
    if not 1e-100 < largest < 1e100:  # squares of the entries are needed
        update, kept = nearest(matrix / largest, rank, start)
        return update.times(largest).absorb_scale(), kept
    update = _krylov(matrix, rank, start) or _exact(matrix, rank)
    share = update.norm() / float(torch.linalg.vector_norm(matrix))
    return update, min(share**2, 1.0)


def least_rank(matrix: Tensor, share: float) -> int:
    """Return the least rank whose nearest matrix keeps a share of ‖matrix‖².

    Law: exact for shares to about eps · min(m, n): the squared singular values are the eigenvalues of the
    smaller of A Aᵀ and Aᵀ A, whose absolute error is about eps · ‖A‖².

    Args:
        matrix: The dense matrix (m, n), not empty, in float64.
        share: The share to keep, between 0 and 1.

    Returns:
        A rank of at least 1 and at most min(m, n).
    """
    scaled = matrix / (matrix.abs().max() or 1.0)  # squares must not underflow
    if scaled.shape[0] > scaled.shape[1]:
        scaled = scaled.mT
    energy = torch.linalg.eigvalsh(scaled @ scaled.mT).flip(0).clamp_min(0.0).cumsum(0)
    return min(int((energy < share * energy[-1]).sum()) + 1, len(energy))


def _exact(matrix: Tensor, rank: int) -> LowRankUpdate:
    leading = thin_svd(matrix).truncate(rank)
    return LowRankUpdate(leading.left * leading.values, leading.right.mT).truncate(rank)


def _krylov(matrix: Tensor, rank: int, start: Tensor | None = None) -> LowRankUpdate | None:
    """Return the nearest matrix from a growing space; None where it costs more or did not converge."""
    width = max(rank + _MORE_COLUMNS, _FEWEST_COLUMNS)
    if _BLOCKS * width > min(matrix.shape):
        return None
    space = _Space(matrix, width, int(_LARGEST_SHARE * min(matrix.shape)), start)
    more = rank if space.started else width  # what follows a wide start needs no more than what is wanted
    while space.grow():
        leading, residual = space.leading(rank, more)
        if residual <= 0.5 * _tolerance(leading.values):
            return _verify(matrix, space.lift(leading))
    return None


def _tolerance(values: Tensor) -> float:
    """Return how far Aᵀu may be from σv, in the units of the matrix."""
    return max(1e-9 * float(values[-1]), 1e-13 * float(values[0]))


def _verify(matrix: Tensor, leading: SVD) -> LowRankUpdate | None:
    """Return u uᵀA, which is nearer to A than u σ vᵀ, if the triples u, σ, v are what they claim; or None."""
    image = matrix.mT @ leading.left
    residual = torch.linalg.vector_norm(image - leading.right * leading.values, dim=0).max()
    # Copies of one triple would pass as triples, but are not orthogonal.
    gram = leading.left.mT @ leading.left
    skew = (gram - eye_like(gram)).abs().max()
    if not (float(residual) <= _tolerance(leading.values) and float(skew) <= 1e-10):
        return None
    return LowRankUpdate(leading.left, image.mT).truncate(len(leading.values))


@final
class _Space:
    """Orthonormal U (m, k), V (n, k) and a core (k, k) with A V = U core, growing by a block at a time.

    Law: the next block of V is what the leading singular triples of the core leave of Aᵀu − σ v, so that a
    start of any width is followed by blocks of few columns. Full reorthogonalisation, twice.

    Attributes:
        dimension: The k so far.
        started: Whether a start was taken: one that is too wide is not.
    """

    def __init__(self, matrix: Tensor, width: int, largest: int, start: Tensor | None) -> None:
        (m, n), draw = matrix.shape, torch.Generator().manual_seed(0)
        random = torch.randn(n, width, generator=draw, dtype=torch.float64, device="cpu").to(matrix.device)
        self.started = start is not None and len(start) <= min(_START_BLOCKS * width, largest - width)
        if start is not None and self.started:
            # What the start misses altogether is found from the random columns.
            random = torch.cat([start.mT.to(matrix), random[:, :_MORE_COLUMNS]], dim=1)
        self.dimension = 0
        self._matrix, self._largest = matrix, largest
        # Columns one after the other, so that memory is taken for those that are there.
        self._left, self._right, self._image = (matrix.new_empty(largest, size).mT for size in (m, n, n))
        self._core = matrix.new_empty(0, 0)
        self._next = torch.linalg.qr(random).Q

    def grow(self) -> bool:
        """Add a block to both bases; return False where there is no room for one."""
        old, new = self.dimension, self.dimension + self._next.shape[1]
        if new > self._largest:
            return False
        self._right[:, old:new] = self._next
        u, inside, beyond = _orthogonalize(self._matrix @ self._next, self._left[:, :old])
        self._left[:, old:new] = u
        self._core = torch.nn.functional.pad(self._core, (0, new - old, 0, new - old))
        self._core[:old, old:], self._core[old:, old:] = inside, beyond
        self._image[:, old:new] = self._matrix.mT @ u
        self.dimension = new
        return True

    def leading(self, rank: int, more: int) -> tuple[SVD, float]:
        """Return the leading triples of the core (Rayleigh and Ritz), and the largest ‖Aᵀu − σv‖ of theirs.

        The next block is what so many triples leave over, no fewer than are returned.
        """
        k = self.dimension
        core = thin_svd(self._core)
        few = core.truncate(more)
        rest = self._image[:, :k] @ few.left - self._right[:, :k] @ (few.right * few.values)
        self._next = _orthogonalize(rest, self._right[:, :k])[0]
        return core.truncate(rank), float(torch.linalg.vector_norm(rest[:, :rank], dim=0).max())

    def lift(self, core: SVD) -> SVD:
        """Return triples of the core as those of the matrix."""
        k = self.dimension
        return SVD(self._left[:, :k] @ core.left, core.values, self._right[:, :k] @ core.right)


def _orthogonalize(block: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return orthonormal q, orthogonal to the basis, with block = basis @ inside + q @ beyond, and these."""
    inside = basis.mT @ block
    q, beyond = torch.linalg.qr(block - basis @ inside)
    q, again = torch.linalg.qr(q - basis @ (basis.mT @ q))
    return q, inside, again @ beyond
