"""Starts of a solve beside its own: drawn from a seed, the same for every solver."""

from __future__ import annotations

import torch

from riemerge.frechet.formulation import Point
from riemerge.frechet.problem import Problem
from riemerge.frechet.search import normalize_weights
from riemerge.linalg import scale_modules
from riemerge.manifolds import GeodesicManifold

# Length of the step off a mean: a small part of the distances between adapters, which are one and more.
_OFF = 0.3


def draw_start(problem: Problem, seed: int, number: int) -> Point | None:
    """Draw a start for each module: a cheap mean of its points under drawn weights, and a step off it.

    The weights are Dirichlet(1) over the points that count. The step is there since that mean may lie at the
    cut locus of points that share a subspace. On a manifold that is not of this package, one of the points.

    Args:
        problem: The problem that is to be solved.
        seed: Random seed.
        number: Number of the start; 0 is the solver's own.

    Returns:
        A point of the problem's manifold; None for the solver's own.
    """
    if number == 0:
        return None
    generator = torch.Generator(device="cpu").manual_seed(1_000_003 * seed + number)
    manifold, count = problem.manifold, len(problem.points)
    draw = torch.empty(count, 1, dtype=torch.float64, device="cpu").exponential_(generator=generator)
    if not isinstance(manifold, GeodesicManifold):
        return problem.points[int(draw.argmax())]
    points = torch.stack(list(problem.points))
    weights = draw * (normalize_weights(problem.weights, count, manifold.k) > 0)
    mean = manifold.extrinsic_mean(points, (weights / weights.sum(dim=0)).to(points.device))
    noise = torch.randn(mean.shape[1:], generator=generator, dtype=torch.float64, device="cpu")
    step = manifold.projection(mean, noise.to(mean.device).expand_as(mean))
    return manifold.exp(mean, scale_modules(_OFF / manifold.norms(mean, step), step))
