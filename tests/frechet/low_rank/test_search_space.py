"""The manifold of a mean together with the alignments of the data."""

from __future__ import annotations

import pymanopt
import pytest
import torch

from riemerge.frechet.low_rank.joint import Joint
from riemerge.frechet.low_rank.search_space import JointManifold
from riemerge.manifolds import torch_function
from riemerge.manifolds.checks import check_gradient, check_manifold
from tests.frechet.low_rank.passes import K, M, N, R, T, off, problem
from tests.frechet.problems import away, search_of
from tests.helpers import seeded
from tests.laws.faults import DIFFERENCES, pop_worst
from tests.manifolds.subjects import family, updates


def test_hessian_knows_the_connection_away_from_the_mean() -> None:
    """In directions of x alone, with aligned data: there the joint manifold's connection is the metric's."""
    quotient, points = updates(14, 12, 3, k=2), family("mix", 3, 14, 12, 3, seed=3)
    problem = search_of(quotient, points)
    search = problem.form.manifold
    assert isinstance(search, JointManifold)
    assert isinstance(problem.form, Joint)
    at, _ = search.split(away(problem, 1.0))
    x = search.join(at, search.action.nearest(search.total, problem.form.points, at))
    assert float(problem.evaluate(x).norms.min()) > 0.1
    v, w = (search.random_tangent_vector(x) for _ in range(2))
    v, w = (search.join(search.split(y)[0], torch.zeros_like(search.split(y)[1])) for y in (v, w))
    one = search.inner_product(x, problem.hessian(x, v), w)
    two = search.inner_product(x, v, problem.hessian(x, w))
    assert float(one) == pytest.approx(float(two), abs=1e-7)


def test_joint_manifold_obeys_the_laws() -> None:
    quotient, points = updates(8, 7, 3, k=2), family("close", 3, 8, 7, 3, seed=1)
    search = search_of(quotient, points).form.manifold
    assert isinstance(search, JointManifold)
    defects = check_manifold(search)
    assert defects.keys() >= {"projection", "symmetry", "norm", "dimension", "torsion"}
    assert pop_worst(defects, ("torsion", "compatibility")) < DIFFERENCES
    assert max(defects.values()) < 1e-12
    x = search.random_point()
    v, w = search.random_tangent_vector(x), search.random_tangent_vector(x)
    assert float(search.inner_product(x, v, w)) == pytest.approx(
        float(search.inner_product(x, w, v)), abs=1e-14
    )

    data = torch.stack(points)

    # Riesz, for a function that does not see the common gauge.
    @torch_function(search)
    def cost(point: torch.Tensor) -> torch.Tensor:
        at, turns = search.split(point)
        turned = search.action.act(search.total, data, turns)
        return (
            search.total.matrix(at) * search.total.matrix(turned)
        ).sin().sum() + search.total.squared_dists(at, turned).sum()

    assert check_gradient(pymanopt.Problem(search, cost)) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("name", ["close", "shared_subspace", "independent"])
def test_the_model_of_the_hessian_is_symmetric_and_positive(name: str) -> None:
    subject = problem(name, cond=1e3)
    form = subject.form
    assert isinstance(form, Joint)
    assert isinstance(form.manifold, JointManifold)
    point = off(subject, subject.start(), 0.2)
    pass_ = form.evaluate(point).state
    a, b = (form.manifold.projection(point, form.manifold.random_ambient(point)) for _ in range(2))
    inner = form.manifold.inner_products
    pull, stiffness = (
        pass_.pull * torch.rand(3, K, generator=seeded(1), dtype=torch.float64),
        torch.ones(K) * 3,
    )
    for known in (pass_, None):
        made = [form.manifold.precondition(point, x, pull, stiffness, known) for x in (a, b)]
        torch.testing.assert_close(inner(point, a, made[1]), inner(point, made[0], b), rtol=1e-11, atol=1e-11)
        assert bool((inner(point, a, made[0]) > 0).all())
    # Without a pass every part is divided by the weights of its logarithms alone.
    pa = form.manifold.precondition(point, a, pull, stiffness, None)
    (at_x, turns), (scaled, turned) = form.manifold.split(a), form.manifold.split(pa)
    torch.testing.assert_close(scaled * stiffness[:, None, None], at_x)
    torch.testing.assert_close(turned * (T * pull)[..., None, None], turns)
    # Where the data are the point itself the metric is the Hessian.
    same = search_of(updates(M, N, R, k=K), [family(name, 1, M, N, R, 7)[0]] * 2, reduce=False)
    x = same.start()
    v = same.form.manifold.projection(x, same.form.manifold.random_ambient(x))
    assert isinstance(same.form, Joint)
    kept = same.form.precondition(x, v, same.evaluate(x))
    torch.testing.assert_close(kept, v, rtol=0, atol=1e-6 * float(v.abs().max()))
