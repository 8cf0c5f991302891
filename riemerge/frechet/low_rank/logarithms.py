"""All logarithms of one pass of a Fréchet mean at once: from a point to data that carry their alignments."""

from __future__ import annotations

import copy
import sys
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from riemerge import linalg
from riemerge.frechet.loss import Objective
from riemerge.manifolds.low_rank.factors import FixedRank
from riemerge.manifolds.stiefel_log import (
    FibreLog,
    complete_rotation,
    continue_rotation,
    fibre_log,
    normal_factor,
)

# Turns of a completion that started from that of a point nearby, before it is started from scratch.
_WARM_TURNS = 8
_TURNS = 100
# Precisions of a pass: double, and single where it is coarse.
DTYPES = {False: torch.float64, True: torch.float32}
# What may be left of the block C at least: the round-off of each precision.
_ROUND_OFF = {torch.float64: 1e-13, torch.float32: 1e-5}


class Pass(NamedTuple):
    """One pass over T data and K modules at a point x = (U, B, V).

    Attributes:
        squared: Squared lengths of the logarithms, (T, K).
        pull: Weights of the logarithms in minus the gradient of F, pᵢ, (T, K).
        valid: Whether each was found, boolean (T, K).
        mean: Σ pᵢ log_x(yᵢ Oᵢ), (K, m + r + n, r).
        momentum: Momentum of each logarithm along the orbit at x, skew (T, K, r, r), in the basis `basis`.
        values: Eigenvalues of B, (K, r).
        basis: Eigenvectors of B, (K, r, r).
        products: UᵀUᵢ Oᵢ and VᵀVᵢ Oᵢ, (2, T, K, r, r).
        rotations: Completions of the frames, (2, T, K, 2 r, 2 r); a start for a point nearby.
        generators: Logarithms of the rotations, (2, T, K, 2 r, 2 r).
        coarse: Whether each module's pass is of single precision, boolean (K,).
    """

    squared: Tensor
    pull: Tensor
    valid: Tensor
    mean: Tensor
    momentum: Tensor
    values: Tensor
    basis: Tensor
    products: Tensor
    rotations: Tensor
    generators: Tensor
    coarse: Tensor

    def narrow(self, modules: Tensor) -> Pass:
        """Return the pass of some of the modules."""
        return Pass(*(x.index_select(axis, modules) for x, axis in zip(self, _AXES, strict=True)))

    def replace(self, modules: Tensor, other: Pass) -> Pass:
        """Return this pass with another one of some of the modules, in the wider of two precisions."""
        return Pass(*(_put(x, axis, modules, y) for x, y, axis in zip(self, other, _AXES, strict=True)))


# Axes along which the parts of a pass have their modules.
_AXES = (1, 1, 1, 0, 1, 0, 0, 2, 2, 2, 0)


def _put(whole: Tensor, axis: int, indices: Tensor, part: Tensor) -> Tensor:
    """Return a tensor with another one at some indices of an axis, in the wider of two dtypes."""
    dtype = torch.promote_types(whole.dtype, part.dtype)
    return whole.to(dtype).index_copy(axis, indices, part.to(dtype))


@final
class AlignedLogarithms:
    """Data yᵢ = (Uᵢ, diag(lᵢ), Vᵢ) of a Fréchet problem, prepared for many passes.

    A logarithm between frames needs only M = UᵀUᵢ Oᵢ and NᵀN, the Gram matrix of what is normal to U: it is
    U A + (Uᵢ Oᵢ - U M) N⁻¹ B. So all that is tall are a few products with all data side by side, and
    everything else happens in one batch of both sides, all data and all modules. The results are those of
    `FixedRank.logarithm` for frames with n >= 2r rows.

    Args:
        total: The FixedRank manifold; its frames have at least 2r rows.
        points: (T, K, m + r + n, r), float64, with diagonal cores.
        objective: F, of weights (T, K).
    """

    def __init__(self, total: FixedRank, points: Tensor, objective: Objective) -> None:
        u, b, v = total.split(points)
        self._total = total
        self._objective = objective
        # Transposed, the data side by side: (K, T r, rows), of which each is a block without gaps.
        frames = [torch.cat(tuple(side.mT), dim=-2) for side in (u, v)]
        self._frames = {dtype: tuple(side.to(dtype) for side in frames) for dtype in _ROUND_OFF}
        self._cores = torch.diagonal(b, dim1=-2, dim2=-1)

    @staticmethod
    def applies(total: FixedRank) -> bool:
        """Tell whether a manifold has the default metric, and frames with room for geodesics in general
        position.
        """
        return total.canonical and min(total.m, total.n) >= 2 * total.r

    def narrow(self, modules: Tensor) -> Self:
        """Return the logarithms of some of the modules."""
        narrow = copy.copy(self)
        narrow._total = self._total.with_modules(modules.numel())
        narrow._objective, narrow._cores = self._objective.narrow(modules), self._cores[:, modules]
        narrow._frames = {
            dtype: tuple(side[modules] for side in frames) for dtype, frames in self._frames.items()
        }
        return narrow

    def compute(
        self,
        x: Tensor,
        alignments: Tensor,
        *,
        earlier: Pass | None = None,
        tolerance: Tensor | None = None,
        turns: int = sys.maxsize,
        coarse: bool = False,
    ) -> Pass:
        """Compute all logarithms at one point.

        Args:
            x: The point, (K, m + r + n, r), feasible.
            alignments: Oᵢ, (T, K, r, r).
            earlier: A pass at a point nearby, whose completions are continued; from scratch without it.
            tolerance: Bound of what is left of the block C of each module's logarithms, (K,): the logarithms
                are off by that much, their squares by its square. To round-off without it.
            turns: Most turns of a completion that starts from scratch.
            coarse: Compute the logarithms of the frames in float32, which costs less than half. The cores,
                whose logarithms lose digits to their condition, are always in float64.
        """
        dtype = DTYPES[coarse]
        r, (count, k) = self._total.r, self._cores.shape[:2]
        u, b, v = self._total.split(x)
        points, frames, turned = (u.to(dtype), v.to(dtype)), self._frames[dtype], alignments.to(dtype)
        sides, grams = [], []
        for point, data in zip(points, frames, strict=True):
            product = data @ point
            # The Gram matrix of what is normal to the point: I - MᵀM would lose half of its digits.
            inside = product @ point.mT
            normal = torch.sub(data, inside, out=inside).unflatten(-2, (count, r))
            grams.append((normal @ normal.mT).movedim(-3, 0))
            sides.append(product.unflatten(-2, (count, r)).movedim(-3, 0).mT)
        products = torch.stack(sides) @ turned
        gram = (turned.mT @ torch.stack(grams) @ turned).reshape(-1, r, r)
        flat = products.reshape(-1, r, r)
        normal, regular = normal_factor(linalg.sym(gram))
        frame = torch.cat((flat, normal), dim=-2)
        goal = torch.full_like(flat[:, 0, 0], _ROUND_OFF[dtype])
        if tolerance is not None:
            goal = torch.maximum(goal, tolerance.to(dtype).expand(2, count, k).reshape(-1))
        log, valid = self._settle(frame, earlier, goal, min(turns, _TURNS))
        upper, lower = log.upper, log.lower
        inside = torch.linalg.solve_triangular(normal, lower, upper=True)
        squares = linalg.frobenius(upper, upper) / 2 + linalg.frobenius(lower, lower)
        squares = squares.reshape(2, count, k)
        valid = (valid & regular).reshape(2, count, k)
        shape = (2, count, k, r, r)
        upper, inside = upper.reshape(shape), inside.reshape(shape)

        values, basis = torch.linalg.eigh(b)
        cores, cross, core_squares = self._core_logarithms(values, basis, alignments)
        turning = basis.mT @ (upper[0] + upper[1]).double().div_(2) @ basis
        squared = squares[0] + squares[1] + core_squares
        pull = self._objective.pull(squared)
        means = []
        for point, data, a, w, m in zip(points, frames, upper, inside, products, strict=True):
            along = linalg.scale_modules(pull, a - m @ w).sum(dim=0)
            across = linalg.scale_modules(pull, turned @ w).movedim(0, -3).flatten(-3, -2)
            means.append(torch.baddbmm(point @ along, data.mT, across).double())
        root = values.sqrt()
        core = linalg.scale_modules(pull, cores).sum(dim=0) * (root.unsqueeze(-1) * root.unsqueeze(-2))
        core = linalg.sym(basis @ core @ basis.mT)
        return Pass(
            squared=squared,
            pull=pull,
            valid=valid[0] & valid[1] & torch.isfinite(core_squares),
            mean=self._total.join(means[0], core, means[1]),
            momentum=turning - cross,
            values=values,
            basis=basis,
            products=products.double(),
            rotations=log.rotation.reshape(2, count, k, 2 * r, 2 * r),
            generators=log.log.reshape(2, count, k, 2 * r, 2 * r),
            coarse=torch.full((k,), coarse, device=x.device),
        )

    def _settle(
        self, frame: Tensor, earlier: Pass | None, goal: Tensor, turns: int
    ) -> tuple[FibreLog, Tensor]:
        """Return the paths to frames, and whether each is a logarithm, pair by pair."""
        if earlier is None:
            path = fibre_log(frame, complete_rotation(frame), goal, turns)
            return path, (path.residual <= goal) & path.regular
        rotation, log = (x.flatten(0, 2).to(frame.dtype) for x in (earlier.rotations, earlier.generators))
        rest, near = continue_rotation(frame, rotation, log)
        path = fibre_log(frame, rest, torch.where(near, goal, torch.inf), _WARM_TURNS)
        valid = near & (path.residual <= goal) & path.regular
        cold = torch.nonzero(~valid).squeeze(-1)
        if cold.numel():
            again = fibre_log(frame[cold], complete_rotation(frame[cold]), goal[cold], turns)
            path = FibreLog(*(x.index_copy(0, cold, y) for x, y in zip(path, again, strict=True)))
            valid = valid.index_copy(0, cold, (again.residual <= goal[cold]) & again.regular)
        return path, valid

    def _core_logarithms(
        self, values: Tensor, basis: Tensor, alignments: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logarithms of the cores and their parts of the momenta, (T, K, r, r), both in B's
        eigenbasis, the former without its scales; and squared distances (T, K).
        """
        turned = alignments @ basis
        root = values.sqrt()
        white = (turned.mT * self._cores.unsqueeze(-2)) @ turned / (root.unsqueeze(-1) * root.unsqueeze(-2))
        # A core may be positive to Cholesky and not to eigh, by round-off: a step too far, with no logarithm.
        there = torch.isfinite(white).all(dim=(-2, -1), keepdim=True)
        white = torch.where(there, white, linalg.eye_like(white))
        eigenvalues, vectors = torch.linalg.eigh(linalg.sym(white))
        logs = torch.where(there.squeeze(-1), eigenvalues.clamp_min(0).log(), torch.nan)
        small = (vectors * torch.nan_to_num(logs, neginf=0).unsqueeze(-2)) @ vectors.mT
        ratio = root.unsqueeze(-2) / root.unsqueeze(-1)
        # B⁻¹ D - D B⁻¹ for D = B^½ S B^½.
        cross = small * (ratio - ratio.mT)
        return small, cross, logs.square().sum(dim=-1)
