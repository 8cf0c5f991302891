"""Whether a loss, a distance and a solver obey their laws."""

from __future__ import annotations

import torch

from riemerge.frechet import Problem, frechet_mean
from riemerge.frechet.loss import LossLike, as_loss
from riemerge.frechet.solvers.catalogue import LBFGS, SolverLike
from riemerge.manifolds import Euclidean, GeodesicManifold, Sphere
from riemerge.manifolds.base import MissingVerbError


def check_loss(loss: LossLike, *, seed: int = 0) -> dict[str, float]:
    """Measure the laws of a loss, `riemerge.laws.LAWS["loss"]`, at random distances of random weights."""
    loss = as_loss(loss)
    generator = torch.Generator().manual_seed(seed)
    distances, along, weights = torch.rand(3, 5, 4, generator=generator, dtype=torch.float64) + 0.1
    weights = weights / weights.sum(dim=0)
    squared, step = distances.square(), 1e-6
    size = loss.cost(weights, squared).abs().sum()

    def change(start: torch.Tensor) -> torch.Tensor:
        ahead, behind = (loss.cost(weights, (start + t * along).square()) for t in (step, -step))
        return (ahead - behind) / (2 * step)

    slope = (loss.pull(weights, squared) * distances * along).sum(dim=0)
    tiny = torch.full_like(distances, 1e-9)
    more = torch.cat((weights, 0 * weights[:1])), torch.cat((squared, 100 * squared[:1]))
    absent = (loss.cost(*more) - loss.cost(weights, squared)).abs().sum() + loss.pull(*more)[-1].abs().sum()
    defects = {
        "zero": loss.cost(weights, 0 * squared).abs().sum() / size,
        "growth": -change(distances).clamp_max(0).sum() / size,
        "pull": (change(distances) - slope).abs().sum() / size,
        "smoothness": (loss.pull(weights, tiny.square()) * tiny).abs().sum() * loss.smooth / size,
        "absence": absent / size,
    }
    return {name: float(defect) for name, defect in defects.items()}


def check_solver(solver: SolverLike, *, seed: int = 0) -> dict[str, float]:
    """Measure whether a solver finds the mean of three points of a sphere, as `riemerge.laws.LAWS["solver"]`
    says; of a plane where it needs a closed form.
    """
    try:
        return _check_solver(solver, Sphere(6, 1, k=2, seed=seed))
    except MissingVerbError:
        return _check_solver(solver, Euclidean(6, 1, k=2, seed=seed))


def _check_solver(solver: SolverLike, manifold: GeodesicManifold) -> dict[str, float]:
    middle = manifold.random_point()
    points = [manifold.exp(middle, manifold.random_tangent_vector(middle)) for _ in range(3)]
    problem = Problem(manifold, points, (0.5, 0.3, 0.2))
    expected, found = (frechet_mean(problem, one) for one in (LBFGS(tol=1e-10), solver))
    # By entries: a distance of nearly equal points may be the arccos of nearly 1.
    off = torch.linalg.vector_norm(expected.point - found.point)
    return {"status": float(not all(status.ok for status in found.status)), "mean": float(off)}
