"""Batched matrix functions: all shapes are (..., r, r) or (..., n, r), any leading axes, any device.

What the package decides once about matrices is decided here: what a thin SVD is, how many singular values
count, which sign a singular pair has, and how T tensors are averaged. No function here branches on data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

# Half of the range of sin²(t / 2) in which logarithms are a polynomial: to 127 degrees.
_SERIES_HALF = 0.4


def _series() -> list[list[float]]:
    """Return the coefficients of t / sin t in powers of sin²(t / 2) / _SERIES_HALF - 1, four in a row."""
    points = chebyshev.chebpts1(16)
    angles = 2 * np.arcsin(np.sqrt(_SERIES_HALF * (1 + points)))
    fitted = chebyshev.chebfit(points, angles / np.sin(angles), 15)
    rows: list[list[float]] = chebyshev.cheb2poly(fitted).reshape(4, 4).tolist()
    return rows


_SERIES = _series()

# Angles nearer to pi than this amplify round-off by more than its inverse.
_HALF_TURN = 1e-4


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run torch on one CPU thread: batches of small decompositions lose more to threads than they gain.

    LAPACK works through a batch one matrix at a time, and its threads wait for each other at every one. One
    thread also makes results independent of their number. The number is a setting of the process: threads of
    a program that are in here at once must be within one that is.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def sym(matrix: Tensor) -> Tensor:
    """Return the symmetric part of square matrices (..., r, r)."""
    return (matrix + matrix.mT) / 2


def skew(matrix: Tensor) -> Tensor:
    """Return the skew-symmetric part of square matrices (..., r, r)."""
    return (matrix - matrix.mT) / 2


def widen(tensor: Tensor) -> Tensor:
    """Return half precision tensors as float32, in which torch decomposes, and others as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def frobenius(a: Tensor, b: Tensor) -> Tensor:
    """Return the Frobenius inner products of (..., m, n) and (..., m, n): float64 of shape (...)."""
    return (widen(a) * widen(b)).sum(dim=(-2, -1), dtype=torch.float64)


def eye_like(matrix: Tensor) -> Tensor:
    """Return the identity of the size, dtype and device of square matrices, without leading axes."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def differences(values: Tensor) -> Tensor:
    """Return vⱼ - vₖ (..., r, r) of numbers v (..., r)."""
    return values.unsqueeze(-1) - values.unsqueeze(-2)


def log_so(rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Take the principal logarithm of rotations in SO(k) by one symmetric eigendecomposition.

    Law: exp(log) = rotation while every angle is below pi. With V = c + s, c = sym V and s = skew V commute,
    so log V = f(c) s with f(cos t) = t / sin t. The sine of each angle is measured as ‖s xⱼ‖ on the
    eigenvectors of c, which is accurate near 0 where cos is flat, and exposes angle pi as sine 0 with cosine
    < 0.

    Args:
        rotation: (..., k, k) orthogonal matrices of determinant +1.

    Returns:
        The logarithms, and whether every angle is clear of a half turn, boolean (...). At a half turn no
        logarithm is distinguished: exp of what is returned is not the rotation.
    """
    # Twice the symmetric and the skew part: the factors cancel, and passes over memory are what costs.
    twice_cosine, vectors = torch.linalg.eigh(rotation + rotation.mT)
    rotated = (rotation - rotation.mT) @ vectors
    twice_sine = torch.linalg.vector_norm(rotated, dim=-2)
    angle = torch.atan2(twice_sine, twice_cosine)
    # t / sin t -> 1 as t -> 0.
    tiny = torch.finfo(twice_sine.dtype).tiny
    factor = torch.where(twice_sine > tiny, angle / (2 * twice_sine.clamp_min(tiny)), 0.25)
    clear = ((twice_cosine > 0) | (twice_sine > 2 * _HALF_TURN)).all(dim=-1)
    half = (rotated * factor.unsqueeze(-2)) @ vectors.mT
    return half - half.mT, clear


def log_so_by_products(rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Take the principal logarithm of rotations in SO(k) by matrix products alone, to single precision.

    Law: that of `log_so`, to 2e-7 relative, where no angle is above 127 degrees. With Z = (1 - sym V) / 2,
    whose eigenvalues are sin²(t / 2), log V = f(Z) skew V for the analytic f(sin²(t / 2)) = t / sin t; f is
    a Chebyshev polynomial of degree 15, evaluated in blocks of four powers (Paterson, Stockmeyer 1973). Cost:
    seven products.

    Args:
        rotation: (..., k, k) orthogonal matrices of determinant +1.

    Returns:
        The logarithms, and whether every angle is known to be in that range, boolean (...), by a bound from
        the products at hand: of 16 equal pairs of angles up to 92 degrees, of a single one up to 117. Where
        it is not known these may be no logarithms.
    """
    # In place where it can be: passes over memory cost as much as the products.
    centred = (rotation + rotation.mT).mul_(-1 / (4 * _SERIES_HALF))
    torch.diagonal(centred, dim1=-2, dim2=-1).add_(0.5 / _SERIES_HALF - 1)
    square = centred @ centred
    powers = (centred, square, square @ centred)
    fourth = square @ square

    def block(coefficients: Sequence[float]) -> Tensor:
        first, *others = coefficients
        total = powers[0] * others[0]
        for power, coefficient in zip(powers[1:], others[1:], strict=True):
            total.add_(power, alpha=coefficient)
        torch.diagonal(total, dim1=-2, dim2=-1).add_(first)
        return total

    *rows, last = _SERIES
    value = block(last)
    for row in reversed(rows):
        value = block(row).add_(value @ fourth)
    # The fourth power of Z / _SERIES_HALF = 1 + centred bounds its greatest eigenvalue.
    bound = block((1, 4, 6, 4)).add_(fourth)
    half = value @ (rotation - rotation.mT)
    return (half - half.mT).div_(4), torch.linalg.matrix_norm(bound) <= 2**4


def exp_skew(matrix: Tensor) -> Tensor:
    """Take the exponential of skew-symmetric matrices (..., k, k), by one symmetric eigendecomposition.

    Law: the result is a rotation and log_so inverts it below angle pi. With SᵀS = X diag(t²) Xᵀ, exp S =
    X cos(t) Xᵀ + S X (sin t / t) Xᵀ; both functions are entire in t², so double eigenvalues do no harm.
    Error about eps * max(1, ‖S‖²).
    """
    squared = sym(matrix.mT @ matrix)
    eigenvalues, vectors = torch.linalg.eigh(squared)
    angle = eigenvalues.clamp_min(0).sqrt()
    cosine = (vectors * torch.cos(angle).unsqueeze(-2)) @ vectors.mT
    # torch.sinc is sin(pi x) / (pi x)
    sine = ((matrix @ vectors) * torch.sinc(angle / torch.pi).unsqueeze(-2)) @ vectors.mT
    return cosine + sine


def cayley(matrix: Tensor) -> Tensor:
    """Take (1 - S / 2)⁻¹ (1 + S / 2) of skew-symmetric matrices S: rotations that agree with exp S to
    second order, for the price of a linear solve.
    """
    half = matrix / 2
    identity = eye_like(half)
    turn: Tensor = torch.linalg.solve_ex(identity - half, identity + half).result
    return turn


def polar(matrix: Tensor) -> Tensor:
    """Return the orthonormal factor of the polar decomposition of (..., n, r), n >= r: the nearest frame.

    Where a matrix is rank deficient the factor is one of several nearest frames (the one LAPACK completes).
    """
    left, _, right = torch.linalg.svd(widen(matrix), full_matrices=False)
    return (left @ right).to(matrix.dtype)


def scale_modules(factor: Tensor, vector: Tensor) -> Tensor:
    """Multiply each module's matrix (..., m, n) by its own factor (...)."""
    return factor.to(vector.dtype)[..., None, None] * vector


class SVD(NamedTuple):
    """A thin singular value decomposition X = left · diag(values) · rightᵀ, values descending.

    Law: both frames have orthonormal columns; left and right are determined by X up to one sign in each pair
    of columns, where the values are distinct.

    Attributes:
        left: Left singular vectors (..., m, r).
        values: Singular values (..., r).
        right: Right singular vectors (..., n, r).
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def truncate(self, rank: int) -> SVD:
        """Return the decomposition of the nearest matrix of at most that rank (Eckart and Young 1936)."""
        return SVD(self.left[..., :rank], self.values[..., :rank], self.right[..., :rank])

    def matrix(self, exponent: float = 1.0) -> Tensor:
        """Return the matrix (..., m, n), with each singular value raised to an exponent."""
        return (self.left * self.values.unsqueeze(-2) ** exponent) @ self.right.mT


def thin_svd(matrix: Tensor) -> SVD:
    """Decompose matrices (..., m, n): r = min(m, n), the signs of the pairs as LAPACK leaves them."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return SVD(left, values, right.mT)


def left_singular(frame: Tensor) -> tuple[Tensor, Tensor]:
    """Return the left singular vectors (..., m, k) and the singular values (..., k) of (..., m, n).

    Law: those of `thin_svd`, k = min(m, n). Of wide matrices the triangle of a QR is decomposed, which is
    linear in n.
    """
    m, n = frame.shape[-2:]
    if n > m:
        frame = torch.linalg.qr(frame.mT, mode="r").R.mT
    svd = thin_svd(frame)
    return svd.left, svd.values


def numerical_rank(values: Tensor, tolerance: float, largest: Tensor | float | None = None) -> Tensor:
    """Count the singular values that stand above round-off: int64 of shape (...).

    Law: the number of values above tolerance · largest; 0 for the zero matrix. How large the tolerance must
    be depends on where the values come from, so each caller states it, with its reason.

    Args:
        values: Singular values (..., r), descending.
        tolerance: Share of `largest` up to which a value is round-off.
        largest: Size of what the values come from, broadcasting with them [default: the first value].
    """
    if largest is None:
        largest = values[..., :1]
    return (values > tolerance * largest).sum(dim=-1)


def canonical_signs(frame: Tensor) -> Tensor:
    """Return the signs (..., 1, r) that make the largest entry of each column of (..., n, r) positive.

    Law: left · signs and right · signs are a singular pair again, and the same one whatever signs the given
    pair had. A column of zeros has the sign +1.
    """
    largest = frame.gather(-2, frame.abs().argmax(dim=-2, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(frame.dtype)


def weighted_mean(weights: Tensor, stack: Tensor) -> Tensor:
    """Return Σ wₜ xₜ of T stacked tensors: their mean, for weights of sum 1.

    Args:
        weights: T weights (T,), of any dtype and on any device: they are converted to those of the stack.
        stack: T tensors x, (T, ...).
    """
    return torch.einsum("t,t...->...", weights.to(stack), stack)
