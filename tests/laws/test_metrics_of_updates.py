"""Means of updates in every metric of the paper's quotient, with certificates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from riemerge.frechet import Problem, frechet_mean
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold
from tests.manifolds.subjects import family

METRICS: dict[str, dict[str, Any]] = {
    "canonical, affine-invariant": {},
    "euclidean, affine-invariant": {"frames": "euclidean"},
    "canonical, log-Euclidean": {"core": "log_euclidean"},
    "canonical, Bures-Wasserstein": {"core": "bures_wasserstein"},
    "canonical, euclidean": {"core": "euclidean"},
    "weights": {"weights": (1.0, 2.0, 0.5)},
}


@pytest.mark.parametrize("name", METRICS)
def test_means_converge_and_do_not_see_the_gauge(name: str) -> None:
    total = FixedRank(14, 12, 3, k=2, **METRICS[name])
    quotient, action = QuotientManifold(total, Orthogonal(3)), Orthogonal(3)
    points, weights = family("lora_like", 3, 14, 12, 3, seed=1), [0.5, 0.3, 0.2]
    generator = torch.Generator().manual_seed(1)
    turned = [action.act(total, x, action.random_element((2,), generator)) for x in points]
    first, second = (frechet_mean(Problem(quotient, data, weights)) for data in (points, turned))
    assert all(status.ok for status in (*first.status, *second.status))
    assert max(first.gradient_norm.max(), first.horizontality.max()) < 1e-7
    assert first.forward_error.max() < 1e-12
    np.testing.assert_allclose(first.cost, second.cost, rtol=1e-9)
    torch.testing.assert_close(total.matrix(first.point), total.matrix(second.point), rtol=0, atol=1e-6)
    # The joint form's alignments are critical; those from scratch are no farther.
    distances = torch.stack([quotient.dists(first.point, x) for x in points]).numpy()
    assert (distances <= first.distances * (1 + 1e-8)).all()


@pytest.mark.parametrize("name", ["euclidean, affine-invariant", "canonical, Bures-Wasserstein"])
def test_both_forms_find_the_same_mean(name: str) -> None:
    quotient = QuotientManifold(FixedRank(10, 9, 2, k=2, **METRICS[name]), Orthogonal(2))
    points = family("close", 3, 10, 9, 2, seed=1)
    joint, nested = (frechet_mean(Problem(quotient, points, form=form)) for form in ("joint", "nested"))
    np.testing.assert_allclose(joint.cost, nested.cost, rtol=1e-10)
    assert float(quotient.dist(joint.point, nested.point)) < 1e-6
