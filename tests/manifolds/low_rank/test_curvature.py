"""The diagonal models of the curvature over O(r)."""

from __future__ import annotations

import pytest
import torch

from riemerge import linalg
from riemerge.manifolds import Stiefel
from riemerge.manifolds.low_rank.curvature import stiffness


@pytest.mark.parametrize("beta", [0.5, 0.8, 1.0])
def test_the_weights_of_angles_are_the_second_derivative_of_the_distance(beta: float) -> None:
    """In a plane of two directions of one weight d^2 grows by the weight times the angle squared."""
    angles = torch.tensor([0.5, 0.5, 1.2, 1.2], dtype=torch.float64)
    manifold = Stiefel(8, 4, beta=beta)
    frame = torch.eye(8, 4, dtype=torch.float64)[None]
    other = torch.cat((torch.diag(angles.cos()), torch.diag(angles.sin())))[None]
    weights = 2 * stiffness(angles, beta)
    for j, k in ((0, 1), (2, 3)):
        plane = torch.zeros(1, 4, 4, dtype=torch.float64)
        plane[0, j, k], plane[0, k, j] = 1e-3, -1e-3
        turned = manifold.logarithm(frame, other @ linalg.exp_skew(plane)).squared
        growth = float(turned - manifold.logarithm(frame, other).squared) / 1e-6
        # The difference is truncated at the square of its step; 1e-16 of d^2 is lost in it.
        assert growth == pytest.approx(float(weights[j]), rel=1e-5)
