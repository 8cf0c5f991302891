"""The solvers by name, and Pymanopt's optimizers as guests."""

from __future__ import annotations

import pytest
from pymanopt import optimizers

from riemerge.errors import RecipeError
from riemerge.frechet.solvers.catalogue import as_solver
from riemerge.solvers import ConjugateGradient, Guest


def test_a_solver_is_given_by_name_as_itself_or_as_an_optimizer() -> None:
    named = as_solver("conjugate_gradient:beta=LiuStorey", tol=1e-6)
    assert named == ConjugateGradient(beta="LiuStorey", tol=1e-6)
    assert as_solver(named) is named
    given = optimizers.TrustRegions(verbosity=0)
    guest = as_solver(given, max_passes=7)
    assert isinstance(guest, Guest)
    assert guest.optimizer is given
    assert guest.max_passes == 7
    assert isinstance(as_solver(optimizers.SteepestDescent), Guest)


def test_an_optimizer_without_a_gradient_is_refused() -> None:
    for optimizer in (optimizers.NelderMead, optimizers.ParticleSwarm):
        with pytest.raises(RecipeError, match="asks for no gradient"):
            as_solver(optimizer)
