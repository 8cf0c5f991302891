"""The cost of low-rank matrices under quadratic forms: its derivatives and its preconditioner."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from riemerge.manifolds.checks import check_gradient, check_hessian
from tests.frechet.quadratic.forms import problem


def test_gradient_and_hessian_are_those_of_the_cost_and_faults_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = problem()
    assert check_gradient(given) == pytest.approx(2.0, abs=0.05)
    hessian = check_hessian(given)
    assert hessian["slope"] == pytest.approx(3.0, abs=0.05)
    assert max(hessian[key] for key in ("symmetry", "linearity", "tangency")) < 1e-12
    exact = given.riemannian_hessian
    monkeypatch.setattr(given, "riemannian_hessian", lambda x, v: 0.9 * exact(x, v))
    assert check_hessian(given)["slope"] < 2.5
    right = given.riemannian_gradient
    monkeypatch.setattr(given, "riemannian_gradient", lambda x: 1.1 * right(x))
    assert check_gradient(given) < 1.5


def test_the_preconditioner_is_the_inverse_of_the_embedded_metric() -> None:
    given = problem()
    x = given.manifold.random_point()
    y, z = (given.manifold.random_tangent_vector(x) for _ in range(2))

    def motion(v: Tensor) -> Tensor:
        return torch.func.jvp(given.total.matrix, (x,), (v,))[1]

    found = given.preconditioner(x, y)
    product = given.manifold.inner_product(x, y, z)
    assert float((motion(found) * motion(z)).sum()) == pytest.approx(product, abs=1e-12)
    gradient = given.riemannian_gradient(x)
    length = motion(given.preconditioner(x, gradient)).norm()
    assert float(given.evaluate(x).slope) == pytest.approx(float(length), rel=1e-12)
