"""Positive definite matrices: the quadratic step."""

from __future__ import annotations

import pytest
import torch

from riemerge.manifolds import FixedRank


def test_a_quadratic_step_of_the_core_halves_it_at_most() -> None:
    total = FixedRank(9, 8, 4, retraction="quadratic").with_modules(2)
    point = total.random_point()
    core = total.split(point)[1]
    vector = 300.0 * total.random_tangent_vector(point)
    moved = total.split(total.retraction(point, vector))[1]
    least = torch.linalg.eigvalsh(moved - core / 2).amin(dim=-1)
    # Round-off of the quadratic term.
    assert bool((least >= -1e-12 * torch.linalg.matrix_norm(moved)).all())
    geodesic = FixedRank(9, 8, 4, k=2)
    assert not bool(geodesic.feasible(geodesic.retraction(point, vector)).all())
    with pytest.raises(ValueError, match="retraction is 'polar'"):
        FixedRank(9, 8, 4, retraction="polar")  # type: ignore[arg-type]
