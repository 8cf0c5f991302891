"""Logarithms of frames as rotations: a frame is completed to a rotation, and the completion is turned.

In a basis [U Q] of the span of two frames U and Y, Y is a frame c = [M; N] of p columns. Every completion
of c to a rotation V is a path from U to Y, and log V = [[A, -Bᵀ], [B, C]] is the path's generator; the
geodesic of the canonical metric is the one with C = 0 (Zimmermann 2017). All shapes are (P, ...): one axis
of pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from riemerge import linalg
from riemerge.manifolds.mixing import Mixing

# Least diagonal of the Newton model, which is indefinite once two principal angles add up to more than pi.
_LEAST_CURVATURE = 0.05
# Least pivot of an earlier completion made orthogonal to a frame: its condition, which multiplies round-off.
_NEAR = 0.1
# Squared distance of a frame from the first columns of the identity, up to which its completion is a matter
# of products: singular values are above 0.7 there.
_CLOSE = 0.5
# Share of a Newton step below which a pair has no geodesic that can be found.
_LEAST_DAMPING = 1e-3
# Newton-Schulz iterations; each squares the error, which is the round-off of single precision at most.
_SCHULZ = 3


class FibreLog(NamedTuple):
    """The generator of a path from U to Y, and how nearly it is a geodesic.

    Attributes:
        rotation: V, the frame and its completion, (P, p + q, p + q).
        log: log V, (P, p + q, p + q).
        upper: A, (P, p, p), skew; its upper left block.
        lower: B, (P, q, p); its lower left block.
        residual: ‖C‖, (P,).
        regular: Whether no angle of the rotation is a half turn, where no logarithm is distinguished; (P,).
    """

    rotation: Tensor
    log: Tensor
    upper: Tensor
    lower: Tensor
    residual: Tensor
    regular: Tensor


def fibre_log(frame: Tensor, rest: Tensor, tolerance: Tensor | float, turns: int) -> FibreLog:
    """Turn the completion of a frame until the lower right block C of the logarithm vanishes, or until an
    angle is a half turn: what is no logarithm gives no direction to turn in.

    C is the gradient of ‖log V‖² along the fibre; the turn is a Newton step with the Hessian's diagonal in
    the singular basis of the block B = Z diag(b) Pᵀ: Hⱼₖ = (h(bⱼ - bₖ) + h(bⱼ + bₖ)) / 2, h(x) = (x / 2)
    cot(x / 2), which is exact where A = 0 and has the Sylvester step of Zimmermann and Hüper 2022 as its
    Taylor polynomial. Cost: one symmetric eigendecomposition of size p + q, and for each turn one of size q
    and another of size p + q.

    Args:
        frame: c, (P, p + q, p), orthonormal.
        rest: A completion, (P, p + q, q): [c rest] is a rotation.
        tolerance: Turn while ‖C‖ is above this, (P,) or one number.
        turns: At most so often.
    """
    p, q = frame.shape[-1], rest.shape[-1]
    rotation = torch.cat((frame, rest), dim=-1)
    log, regular = _log(rotation)
    residual = _corner(log, p)
    if q == 0:
        return FibreLog(rotation, log, log, log[..., :0, :], residual, regular)
    goal = torch.as_tensor(tolerance, dtype=residual.dtype, device=residual.device).expand_as(residual)
    for _ in range(turns):
        active = torch.nonzero(~(residual <= goal) & regular).squeeze(-1)
        if active.numel() == 0:
            break
        whole = active.numel() == residual.numel()
        current = rotation if whole else rotation[active]
        block = (log if whole else log[active])[..., p:, :]
        current = torch.cat(
            (current[..., :p], current[..., p:] @ _newton_turn(block[..., :p], block[..., p:])), dim=-1
        )
        turned, clear = _log(current)
        if whole:
            rotation, log, residual, regular = current, turned, _corner(turned, p), clear
        else:
            rotation.index_copy_(0, active, current)
            log.index_copy_(0, active, turned)
            residual.index_copy_(0, active, _corner(turned, p))
            regular.index_copy_(0, active, clear)
    return FibreLog(rotation, log, log[..., :p, :p], log[..., p:, :p], residual, regular)


def metric_log(frame: Tensor, rest: Tensor, beta: float, tolerance: Tensor | float, turns: int) -> FibreLog:
    """Find the generator of a geodesic of the metric with parameter β: `fibre_log` where β = 1/2.

    The geodesic is exp([[2βA, -Bᵀ], [B, 0]]) [I; 0] exp((1 - 2β)A). So a frame that is turned by
    exp((2β - 1)A) and completed must have a logarithm with the blocks S = 2βA and C = 0. Both are reached at
    once, by Newton steps with the 2 x 2 diagonal of their derivative, in A and in the turn of the completion,
    in each plane of the singular bases of B; exact where A = 0, and mixed (`Mixing`) where it is not.

    Args:
        frame: c, (P, p + q, p), orthonormal.
        rest: A completion, (P, p + q, q): [c rest] is a rotation.
        beta: β.
        tolerance: Turn while ‖(S - 2βA, C)‖ is above this, (P,) or one number.
        turns: At most so often.

    Returns:
        The path, with A as its upper block and ‖(S - 2βA, C)‖ as its residual.
    """
    if beta == 0.5:
        return fibre_log(frame, rest, tolerance, turns)
    p, q = frame.shape[-1], rest.shape[-1]
    first, _ = _log(torch.cat((frame, rest), dim=-1))
    path = _turn_columns(frame, rest, first[..., :p, :p], beta)
    damping, mixing = torch.ones_like(path.residual), Mixing(len(frame), p * p + q * q, frame)
    for _ in range(turns):
        active = torch.nonzero((path.residual > tolerance) & path.regular & (damping > _LEAST_DAMPING))
        if active.numel() == 0:
            break
        active = active.squeeze(-1)
        now = FibreLog(*(x[active] for x in path))
        step = torch.cat([part.flatten(1) for part in _metric_step(now, beta)], dim=1)
        step = damping[active, None] * mixing.combine(active, step)
        inner, outer = step[:, : p * p].unflatten(1, (p, p)), step[:, p * p :].unflatten(1, (q, q))
        trial = _turn_columns(
            frame[active], now.rotation[..., p:] @ linalg.exp_skew(outer), now.upper + inner, beta
        )
        better = (trial.residual < now.residual) & trial.regular
        mixing.note(active, step, better)
        damping[active] = torch.where(better, (2 * damping[active]).clamp_max(1), damping[active] / 4)
        for whole, part in zip(path, trial, strict=True):
            whole[active[better]] = part[better]
    return path


def generator(upper: Tensor, lower: Tensor) -> Tensor:
    """Return the skew matrix [[A, -Bᵀ], [B, 0]]."""
    corner = torch.zeros((*lower.shape[:-1], lower.shape[-2]), dtype=lower.dtype, device=lower.device)
    return torch.cat(
        (torch.cat((linalg.skew(upper), lower), dim=-2), torch.cat((-lower.mT, corner), dim=-2)), dim=-1
    )


def forward_error(frame: Tensor, path: FibreLog, beta: float = 0.5) -> Tensor:
    """Return ‖exp(log) - frame‖ (P,) by the metric's own exponential: zero for a logarithm, however it was
    found.
    """
    p = frame.shape[-1]
    reached = linalg.exp_skew(generator(2 * beta * path.upper, path.lower))[..., :p]
    if beta != 0.5:
        reached = reached @ linalg.exp_skew((1 - 2 * beta) * linalg.skew(path.upper))
    return torch.linalg.matrix_norm(reached - frame)


def normal_factor(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the upper triangular N with NᵀN = gram (..., p, p) up to round-off, and where there is one
    (...).

    A multiple of the identity is added, of the size of the round-off of a Gram matrix, so that shared
    directions (a singular gram) are no obstacle. N is off by the root of that there; but N enters a logarithm
    or a geodesic through N⁻¹ B alone, B the lower block, which is analytic in NᵀN.

    Args:
        gram: Gram matrices of what is normal to a frame.
    """
    round_off = torch.finfo(gram.dtype)
    # The error of a Gram matrix is relative to its size; the other term is for one that vanishes.
    shift = 8 * round_off.eps * torch.diagonal(gram, dim1=-2, dim2=-1).sum(dim=-1) + round_off.tiny
    factor, info = torch.linalg.cholesky_ex(gram + shift[..., None, None] * linalg.eye_like(gram))
    exists = info == 0
    return torch.where(exists[..., None, None], factor, linalg.eye_like(gram)).mT, exists


def complete_rotation(frame: Tensor) -> Tensor:
    """Complete frames (..., p + q, p) to rotations whose lower right block is as positive as a rotation
    allows; return the last q columns.
    """
    size, p = frame.shape[-2:]
    identity = torch.eye(size, dtype=frame.dtype, device=frame.device)
    if bool((linalg.frobenius(frame - identity[:, :p], frame - identity[:, :p]) <= _CLOSE).all()):
        # Near the identity, that is the polar factor of what is left of its other columns: X with XᵀX = I -
        # NNᵀ, N the lower block of the frame.
        lower = frame[..., p:, :]
        squared, vectors = torch.linalg.eigh(lower @ lower.mT)
        small = (vectors * (1 - squared).rsqrt().unsqueeze(-2)) @ vectors.mT
        return (identity[:, p:] - frame @ lower.mT) @ small
    complete, _ = torch.linalg.qr(frame, mode="complete")
    rest = complete[..., p:]
    if rest.shape[-1] == 0:
        return rest
    left, _, right = torch.linalg.svd(rest[..., p:, :])
    turned = rest @ (right.mT @ left.mT)
    sign = torch.linalg.det(torch.cat((frame, turned), dim=-1)).sign()
    # Reverse the least certain direction where the completion came out a reflection.
    return turned - (1 - sign)[..., None, None] * (rest @ right.mT[..., -1:]) @ left.mT[..., -1:, :]


def move_completion(frame: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Return a completion of a frame near an earlier one, and whether that was near enough, (...).

    Continuous in the frame, so its determinant is that of the earlier completion.
    """
    moved = rest - frame @ (frame.mT @ rest)
    factor, info = torch.linalg.cholesky_ex(moved.mT @ moved)
    near = (info == 0) & (torch.diagonal(factor, dim1=-2, dim2=-1) > _NEAR).all(dim=-1)
    factor = torch.where(near[..., None, None], factor, linalg.eye_like(factor))
    return torch.linalg.solve_triangular(factor.mT, moved, upper=True, left=False), near


def continue_rotation(frame: Tensor, rotation: Tensor, log: Tensor) -> tuple[Tensor, Tensor]:
    """Return the completion of a frame near an earlier one, whose C vanishes to first order in what moved
    the frame, and whether that was near enough, (...).

    With W = V exp D, log W = L + D + [L, D] / 2 + [L, [L, D]] / 12 + O(D²), up to the fourth power of L:
    of this the block C is known before anything is decomposed, and turned away.

    Args:
        frame: (..., p + q, p).
        rotation: The earlier frame and its completion, V.
        log: L = log V, whose own block C is small.
    """
    p = frame.shape[-1]
    rest, near = move_completion(frame, rotation[..., p:])
    # In blocks, L = [[A, -Bᵀ], [B, C]] and D = [[E, -Fᵀ], [F, G]], C and G next to nothing.
    upper, lower, corner = log[..., :p, :p], log[..., p:, :p], log[..., p:, p:]
    along, across = (rotation.mT @ frame).split((p, rest.shape[-1]), dim=-2)
    once = torch.baddbmm(lower @ across.mT, rotation[..., p:].mT, rest, beta=-1)
    twice = torch.baddbmm(linalg.skew(along) @ lower.mT, upper, across.mT, alpha=-1)
    corner = corner + linalg.skew(torch.baddbmm(once, lower, twice, alpha=1 / 6))
    return rest @ linalg.cayley(-_newton_step(lower, corner)), near


def orthonormalize(frame: Tensor) -> Tensor:
    """Return the nearest frame by Newton's iteration, for frames that single precision has left."""
    for _ in range(_SCHULZ):
        small = (frame.mT @ frame).mul_(-0.5)
        torch.diagonal(small, dim1=-2, dim2=-1).add_(1.5)
        frame = frame @ small
    return frame


def _log(rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of rotations (P, k, k), and whether they are distinguished, (P,): in single
    precision by products alone where the angles allow it.
    """
    if rotation.dtype == torch.float64:
        return linalg.log_so(rotation)
    log, regular = linalg.log_so_by_products(rotation)
    wide = torch.nonzero(~regular).squeeze(-1)
    if wide.numel():
        exact, clear = linalg.log_so(rotation[wide].double())
        log.index_copy_(0, wide, exact.to(log.dtype))
        regular.index_copy_(0, wide, clear)
    return log, regular


def _corner(log: Tensor, p: int) -> Tensor:
    if log.shape[-1] == p:
        return torch.zeros_like(log[..., 0, 0])
    return torch.linalg.matrix_norm(log[..., p:, p:])


def _newton_turn(lower: Tensor, corner: Tensor) -> Tensor:
    """Return the rotation of the fibre that removes C = corner to second order; B = lower."""
    squared, vectors = torch.linalg.eigh(lower @ lower.mT)
    b = squared.clamp_min(0).sqrt()
    curvature = (_cot(b.unsqueeze(-1) - b.unsqueeze(-2)) + _cot(b.unsqueeze(-1) + b.unsqueeze(-2))) / 2
    step = vectors @ ((vectors.mT @ corner @ vectors) / curvature.clamp_min(_LEAST_CURVATURE)) @ vectors.mT
    return linalg.cayley(-linalg.skew(step))


def _newton_step(lower: Tensor, corner: Tensor) -> Tensor:
    """Return the step of `_newton_turn` to within a few per cent, by products alone.

    With S = BBᵀ, the Hessian is 1 - D, D X = (S X + X S) / 12 + (S S X + 6 S X S + X S S) / 720 + O(S³). Its
    eigenvalues are between one half and one while no angle is above a quarter turn, and there the inverse is
    (100 + 64 D + 256 D²) / 99 to one per cent: the Chebyshev polynomial T_3 is what is left.
    """
    squared = lower @ lower.mT

    def curve(step: Tensor) -> Tensor:
        """Return 12 D X."""
        once = squared @ step
        half = torch.baddbmm(torch.baddbmm(once, squared, once, alpha=1 / 60), once, squared, alpha=1 / 20)
        return half - half.mT

    once = curve(corner)
    step = curve(once).mul_(256 / 144).add_(once, alpha=64 / 12).add_(corner, alpha=100)
    return step.div_(99)


def _turn_columns(frame: Tensor, rest: Tensor, upper: Tensor, beta: float) -> FibreLog:
    """Return the path of a frame, turned by exp((2β - 1)A), and its completion; see `metric_log`."""
    p = frame.shape[-1]
    turned = frame @ linalg.exp_skew((2 * beta - 1) * linalg.skew(upper))
    rotation = torch.cat((turned, rest), dim=-1)
    log, regular = _log(rotation)
    gap, corner = log[..., :p, :p] - 2 * beta * upper, _corner(log, p)
    residual = (linalg.frobenius(gap, gap) + corner.square()).sqrt()
    return FibreLog(rotation, log, linalg.skew(upper), log[..., p:, :p], residual, regular)


def _metric_step(path: FibreLog, beta: float) -> tuple[Tensor, Tensor]:
    """Return the Newton steps of A and of the completion's turn."""
    p, q = path.lower.shape[-1], path.lower.shape[-2]
    lower, corner = path.lower, path.log[..., p:, p:]
    # Where there is no room for p columns Q, directions without a lower part complete the singular basis.
    lower = torch.nn.functional.pad(lower, (0, 0, 0, p - q))
    corner = torch.nn.functional.pad(corner, (0, p - q, 0, p - q))
    left, b, right = torch.linalg.svd(lower)
    near, far = _cot(linalg.differences(b)), _cot(b.unsqueeze(-1) + b.unsqueeze(-2))
    even, odd = ((near + far) / 2).clamp_min(_LEAST_CURVATURE), (near - far) / 2
    gap = right @ (path.log[..., :p, :p] - 2 * beta * path.upper) @ right.mT
    corner = left.mT @ corner @ left
    # A turn E of the columns and G of the completion change S and C by even E + odd G and odd E + even G.
    slope = 2 * beta + (1 - 2 * beta) * (even - odd.square() / even)
    inner = (gap - odd / even * corner) / slope.clamp_min(_LEAST_CURVATURE)
    outer = ((1 - 2 * beta) * odd * inner - corner) / even
    outer = left @ outer @ left.mT
    return linalg.skew(right.mT @ inner @ right), linalg.skew(outer[..., :q, :q])


def _cot(x: Tensor) -> Tensor:
    """Return (x / 2) cot(x / 2), 1 at 0."""
    half = x.abs() / 2
    safe = half.clamp_min(1e-8)
    return torch.where(half > 1e-8, safe / torch.tan(safe), torch.ones_like(half))
