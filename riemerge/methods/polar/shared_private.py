"""What updates share is averaged as rotations and positive parts, what each has to itself as it is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from riemerge.frechet.status import Status
from riemerge.methods.polar.positive import polar_mean
from riemerge.methods.setting import Answer, Setting
from riemerge.methods.singular.singular_vectors import FLOOR, numerical_rank


def shared_private(x: Tensor, setting: Setting) -> Answer:
    """Return x̄ + (M(s) − s̄): the average, with that of the shared parts replaced by their geodesic mean.

    sₜ = F xₜ G is what update t has in directions that all share: F and G are functions of Σ wₜ Uₜ Uₜᵀ and
    Σ wₜ Vₜ Vₜᵀ, whose eigenvalues λ say how far a direction is in all column (row) spaces. Each becomes its
    share (λ − λ₀)/(1 − λ₀), 0 at the level λ₀ of subspaces that know nothing of each other and below, and 1
    for a common one. M is the mean of the cores sₜ by their polar decompositions (`polar_mean`), of the kind
    `core_mean`. So directions that determine a mean have the geodesic one, the others the average, and
    nothing jumps in between.

    λ₀ = max wₜ · (1 + √(ρ/n))², ρ the sum of all ranks but the largest and n the module's width: the edge of
    the spectrum for independent subspaces of equal weights (Marchenko and Pastur), at most 1.

    Law: f(L x Rᵀ) = L f(x) Rᵀ and f(c x) = c f(x); copies give themselves; updates of mutually orthogonal
    rows or columns give their average, and so does one side that is not shared.

    Shapes: x (T, p, q) in bases of the joint span, to (p, q). Computed in float64; x should be, too. *Cost:*
        3 T SVDs (p, q) and the iteration of `procrustes_mean` in the shared directions.
    """
    weights = setting.weights.to(x)
    mean = torch.einsum("t,tpq->pq", weights, x)
    left, right = shares(x, weights, setting.shape)
    cores = (left.mT @ x) @ right
    if not cores.numel():
        return Answer(mean, Status.EXACT)
    found = polar_mean(cores, weights, setting.values["core_mean"])
    moved = found.value - torch.einsum("t,tpq->pq", weights, cores)
    # The frames carry the shares once, on the way there.
    back = [frame / frame.norm(dim=0) for frame in (left, right)]
    return found._replace(value=mean + back[0] @ moved @ back[1].mT)


def shares(x: Tensor, weights: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the shared directions of both sides, (p, a) and (q, b): orthogonal, each as long as its share.

    Args:
        x: (T, p, q).
        weights: (T,), of sum 1.
        shape: (m, n) of the module, whose widths say what is random.
    """
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    ranks = [numerical_rank(one, float(one[0])) for one in sigma]
    sides = []
    for frames, width in ((u, shape[0]), (vh.mT, shape[1])):
        roots = weights.sqrt()
        together = torch.cat(
            [root * frame[:, :rank] for root, frame, rank in zip(roots, frames, ranks, strict=True)], dim=1
        )
        directions, lengths, _ = torch.linalg.svd(together, full_matrices=False)
        level = float(weights.max()) * (1.0 + math.sqrt((sum(ranks) - max(ranks)) / width)) ** 2
        room = max(1.0 - level, FLOOR)
        share = ((lengths.square() - (1.0 - room)) / room).clamp(0.0, 1.0)
        kept = share > FLOOR
        sides.append(directions[:, kept] * share[kept])
    return sides[0], sides[1]
