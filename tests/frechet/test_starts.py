"""Drawn starts: points of the manifold that the seed decides, each near no other."""

from __future__ import annotations

import numpy as np
import pymanopt
import torch
from torch import Tensor

from riemerge import Problem, problems
from riemerge.frechet.starts import draw_start


def draw(problem: Problem, seed: int, number: int) -> Tensor:
    start = draw_start(problem, seed, number)
    assert isinstance(start, Tensor)
    return start


def test_starts_are_points_of_the_manifold_that_seed_and_number_decide() -> None:
    problem = problems.family("close", 3, 9, 8, 2, modules=2)
    starts = {(seed, number): draw(problem, seed, number) for seed in (0, 1) for number in (1, 2)}
    for (seed, number), start in starts.items():
        assert problem.manifold.feasible(start).all()
        assert torch.equal(start, draw(problem, seed, number))
    distinct = list(starts.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(distinct) for b in distinct[:i])
    assert draw_start(problem, 0, 0) is None


def test_a_start_on_a_manifold_of_pymanopt_is_one_of_the_points() -> None:
    points = [*np.eye(3)]
    starts = [draw_start(Problem(pymanopt.manifolds.Sphere(3), points), 0, number) for number in range(1, 9)]
    assert all(any(start is point for point in points) for start in starts)
    assert len({id(start) for start in starts}) > 1
