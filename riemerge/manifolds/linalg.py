"""Batched matrix functions: all shapes are (..., r, r) or (..., n, r), any leading axes, any device.

Nothing here branches on data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.polynomial import chebyshev, polynomial
from torch import Tensor

# Of the polynomial for logarithms: half of its range of sin^2(t / 2), to 127 degrees, and its coefficients in
# blocks of four powers of the centred argument; the last row is the fourth power of the argument itself.
_SERIES_HALF = 0.4


def _series() -> np.ndarray:
    def f(centred: np.ndarray) -> np.ndarray:
        angle = 2 * np.arcsin(np.sqrt(_SERIES_HALF * (1 + centred)))
        return angle / np.sin(angle)

    coefficients = chebyshev.cheb2poly(chebyshev.chebinterpolate(f, 15)).reshape(4, 4)
    argument = polynomial.polypow((_SERIES_HALF, _SERIES_HALF), 4)
    return np.vstack((np.pad(coefficients, ((0, 0), (0, 1))), argument))


_SERIES = _series()

# Angles nearer to pi than this amplify round-off by more than its inverse.
_HALF_TURN = 1e-4


@contextmanager
def single_threaded() -> Iterator[None]:
    """Runs torch on one CPU thread: batches of small decompositions lose more to threads than they gain.

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
    """Returns the symmetric part of square matrices (..., r, r)."""
    return (matrix + matrix.mT) / 2


def skew(matrix: Tensor) -> Tensor:
    """Returns the skew-symmetric part of square matrices (..., r, r)."""
    return (matrix - matrix.mT) / 2


def working(tensor: Tensor) -> Tensor:
    """Returns half precision tensors as float32, in which torch decomposes, and others as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def frobenius(a: Tensor, b: Tensor) -> Tensor:
    """Returns the Frobenius inner products of (..., m, n) and (..., m, n): float64 of shape (...)."""
    return (working(a) * working(b)).sum(dim=(-2, -1), dtype=torch.float64)


def eye_like(matrix: Tensor) -> Tensor:
    """Returns the identity of the size, dtype and device of square matrices, without leading axes."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def log_so(rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Takes the principal logarithm of rotations in SO(k) by one symmetric eigendecomposition.

    Law: exp(log) = rotation while every angle is below pi. With V = c + s, c = sym V and s = skew V commute,
    so log V = f(c) s with f(cos t) = t / sin t. The sine of each angle is measured as |s x_j| on the
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
    """Takes the principal logarithm of rotations in SO(k) by matrix products alone, to single precision.

    Law: that of `log_so`, to 2e-7 relative, where no angle is above `_SERIES_ANGLE`. With Z = (1 - sym V) / 2,
    whose eigenvalues are sin^2(t / 2), log V = f(Z) skew V for the analytic f(sin^2(t / 2)) = t / sin t; f is
    a Chebyshev polynomial of degree 15, evaluated in blocks of four powers (Paterson, Stockmeyer 1973). Cost:
    seven products.

    Args:
        rotation: (..., k, k) orthogonal matrices of determinant +1.

    Returns:
        The logarithms, and whether every angle is known to be in that range, boolean (...): where the angles
        are all equal this is so up to 91 degrees, otherwise up to more. Elsewhere they are not logarithms.
    """
    centred = rotation + rotation.mT
    scale = -1 / (4 * _SERIES_HALF)
    centred = scale * centred + (0.5 / _SERIES_HALF - 1) * eye_like(rotation)
    square = centred @ centred
    powers = torch.stack(
        (eye_like(rotation).expand_as(rotation), centred, square, square @ centred, square @ square)
    )
    table = torch.as_tensor(_SERIES, dtype=rotation.dtype, device=rotation.device)
    blocks = torch.tensordot(table, powers, dims=1)
    *blocks, fourth = blocks.unbind()
    value = blocks.pop()
    while blocks:
        value = torch.baddbmm(blocks.pop(), value, powers[-1])
    half = value @ (rotation - rotation.mT)
    within = torch.linalg.vector_norm(fourth, dim=(-2, -1)) <= (2 * _SERIES_HALF) ** 4
    return (half - half.mT) / 4, within


def exp_skew(matrix: Tensor) -> Tensor:
    """Takes the exponential of skew-symmetric matrices (..., k, k), by one symmetric eigendecomposition.

    Law: the result is a rotation and log_so inverts it below angle pi. With S'S = X diag(t^2) X', exp S =
    X cos(t) X' + S X (sin t / t) X'; both functions are entire in t^2, so double eigenvalues do no harm.
    Error about eps * max(1, |S|^2).
    """
    squared = sym(matrix.mT @ matrix)
    eigenvalues, vectors = torch.linalg.eigh(squared)
    angle = eigenvalues.clamp_min(0).sqrt()
    cosine = (vectors * torch.cos(angle).unsqueeze(-2)) @ vectors.mT
    # torch.sinc is sin(pi x) / (pi x)
    sine = ((matrix @ vectors) * torch.sinc(angle / torch.pi).unsqueeze(-2)) @ vectors.mT
    return cosine + sine


def cayley(matrix: Tensor) -> Tensor:
    """Takes (1 - S / 2)^-1 (1 + S / 2) of skew-symmetric matrices S: rotations that agree with exp S to
    second order, for the price of a linear solve.
    """
    half = matrix / 2
    identity = eye_like(half)
    turn: Tensor = torch.linalg.solve_ex(identity - half, identity + half).result
    return turn


def polar(matrix: Tensor) -> Tensor:
    """Returns the orthonormal factor of the polar decomposition of (..., n, r), n >= r: the nearest frame.

    Where a matrix is rank deficient the factor is one of several nearest frames (the one LAPACK completes).
    """
    left, _, right = torch.linalg.svd(working(matrix), full_matrices=False)
    return (left @ right).to(matrix.dtype)


def procrustes(matrix: Tensor, determinant: Tensor | None = None) -> Tensor:
    """Returns the orthogonal O (..., r, r) that maximises tr(O' M).

    Args:
        matrix: M, (..., r, r).
        determinant: Signs (...) of +1 or -1; the maximum is then taken over that component of O(r) only
            (Kabsch 1976: the least singular direction is reversed where the sign disagrees).
    """
    left, _, right = torch.linalg.svd(matrix)
    if determinant is not None:
        left = with_determinant(left, determinant * torch.linalg.det(right).sign())
    return left @ right


def with_determinant(orthogonal: Tensor, determinant: Tensor) -> Tensor:
    """Reverses the last column of orthogonal matrices (..., r, r) whose determinant has the other sign
    (...).
    """
    flip = torch.linalg.det(orthogonal).sign() * determinant.to(orthogonal.dtype)
    return torch.cat((orthogonal[..., :-1], orthogonal[..., -1:] * flip[..., None, None]), dim=-1)


def canonical_signs(frame: Tensor) -> Tensor:
    """Returns the signs (..., r) that make the largest entry of each column of (..., n, r) positive."""
    index = frame.abs().argmax(dim=-2, keepdim=True)
    signs = torch.gather(frame, -2, index).squeeze(-2).sign()
    return torch.where(signs == 0, torch.ones_like(signs), signs)
