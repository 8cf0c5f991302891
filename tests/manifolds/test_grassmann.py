"""Subspaces near, at a quarter turn, in a span, in other frames, and beside Pymanopt's."""

from __future__ import annotations

import numpy as np
import pymanopt
import pytest
import torch

from riemerge.manifolds import Grassmann
from tests.helpers import random_orthonormal, seeded


def planes(first: float, second: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two planes (1, 6, 2) with these principal angles, in frames turned against each other."""
    frame = random_orthonormal(6, 4, seeded(1))
    turn = random_orthonormal(2, 2, seeded(2))
    angles = torch.tensor([first, second], dtype=torch.float64)
    other = (frame[:, :2] * angles.cos() + frame[:, 2:] * angles.sin()) @ turn
    return frame[None, :, :2], other[None]


@pytest.mark.parametrize(
    ("first", "second"), [(1e-10, 1e-10), (0.3, 1e-9), (0.5, 0.5), (1.2, 0.1), (np.pi / 2 - 1e-6, 1.5)]
)
def test_principal_angles_are_accurate_from_zero_to_a_quarter_turn(first: float, second: float) -> None:
    manifold = Grassmann(6, 2)
    a, b = planes(first, second)
    # Frames are orthonormal to 2e-16, which is what angles are known to.
    assert float(manifold.dist(a, b)) == pytest.approx(np.hypot(first, second), rel=1e-13, abs=1e-15)
    log = manifold.logarithm(a, b)
    assert bool(log.valid)
    reached = manifold.exp(a, log.tangent)
    assert float(torch.linalg.matrix_norm(manifold.projection(b, reached))) < 1e-14


def test_a_quarter_turn_has_no_logarithm() -> None:
    assert not bool(Grassmann(6, 2).logarithm(*planes(np.pi / 2, 0.3)).valid)


def test_every_frame_of_a_subspace_is_the_same_point() -> None:
    manifold = Grassmann(8, 3, seed=4)
    a, b, c = (manifold.random_point() for _ in range(3))
    p, q = (random_orthonormal(3, 3, seeded(i)) for i in (5, 6))
    torch.testing.assert_close(manifold.logarithm(a @ p, b @ q).tangent, manifold.log(a, b) @ p)
    v = manifold.log(a, c)
    moved, turned = manifold.transport(a, b, v), manifold.transport(a @ p, b @ q, v @ p)
    torch.testing.assert_close(turned, moved @ q)
    weights = torch.full((3, 1), 1 / 3, dtype=torch.float64)
    one, two = (
        manifold.extrinsic_mean(torch.stack(frames), weights) for frames in ((a, b, c), (a @ p, b @ q, c))
    )
    torch.testing.assert_close(one @ one.mT, two @ two.mT)


def test_the_span_of_the_data_has_their_logarithms() -> None:
    manifold = Grassmann(50, 3, k=2, seed=5)
    points = torch.stack([manifold.random_point() for _ in range(3)])
    small = manifold.reduce(points)
    assert small.manifold.point_shape == (9, 3)
    there = small.lift(small.manifold.logarithm(small.points[0], small.points[1:]).tangent)
    torch.testing.assert_close(there, manifold.logarithm(points[0], points[1:]).tangent)


def test_parallel_transport_takes_the_velocity_along() -> None:
    manifold = Grassmann(7, 2, seed=6)
    a, b = manifold.random_point(), manifold.random_point()
    log = manifold.log(a, b)
    torch.testing.assert_close(manifold.transport(a, b, log), -manifold.log(b, a))


@pytest.mark.oracle
def test_grassmann_is_pymanopt_s() -> None:
    ours, theirs = Grassmann(7, 3, seed=2), pymanopt.manifolds.Grassmann(7, 3)
    a, b = ours.random_point(), ours.random_point()
    v = ours.random_tangent_vector(a)
    x, y, w = (t[0].numpy() for t in (a, b, v))
    assert float(ours.dist(a, b)) == pytest.approx(float(theirs.dist(x, y)), rel=1e-13)
    np.testing.assert_allclose(ours.log(a, b)[0], theirs.log(x, y), atol=1e-13)
    reached = theirs.exp(x, w)
    np.testing.assert_allclose((ours.exp(a, v) @ ours.exp(a, v).mT)[0], reached @ reached.T, atol=1e-13)
