"""What follows from a kernel alone, on a metric that no file of the package states."""

from __future__ import annotations

from typing import final

import pytest
import torch
from torch import Tensor

from riemerge.linalg import differences, frobenius
from riemerge.manifolds.base import Logarithm
from riemerge.manifolds.checks import check_action, check_manifold, check_metric
from riemerge.manifolds.low_rank.factors import FixedRank
from riemerge.manifolds.low_rank.orthogonal import Orthogonal
from riemerge.manifolds.quotient import QuotientManifold
from riemerge.manifolds.spd_base import KernelMetric, function_of, in_eigenbasis
from tests.laws.faults import DIFFERENCES, DIFFERENTIAL, broken


@final
class SquareRoots(KernelMetric):
    """The Euclidean metric of B^½: flat in the chart √, and written in a few lines."""

    def chart(self, values: Tensor) -> Tensor:
        return values.sqrt()

    def inverse_chart(self, values: Tensor) -> Tensor:
        return values.square()

    def kernel(self, values: Tensor) -> Tensor:
        return self._slopes(values).square()

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        root, velocity = function_of(point, torch.sqrt), in_eigenbasis(point, tangent_vector, self._slopes)
        end = root + velocity
        return end @ end, end @ velocity + velocity @ end

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        flat = function_of(point_b, torch.sqrt) - function_of(point_a, torch.sqrt)
        tangent = in_eigenbasis(point_a, flat, lambda values: 1 / self._slopes(values))
        return Logarithm(tangent, frobenius(flat, flat), torch.isfinite(frobenius(flat, flat)))

    def covariant_derivative(
        self, point: Tensor, direction: Tensor, field: Tensor, derivative: Tensor
    ) -> Tensor:
        v, f = (in_eigenbasis(point, x, self._slopes) for x in (direction, field))
        return derivative - v @ f - f @ v

    @staticmethod
    def _slopes(values: Tensor) -> Tensor:
        root = values.sqrt()
        return 1 / (root.unsqueeze(-1) + root.unsqueeze(-2))


def test_a_metric_of_ones_own_obeys_the_laws() -> None:
    manifold = SquareRoots(4, k=2, seed=1)
    defects = check_manifold(manifold, scale=0.05) | check_metric(manifold)
    assert max(defects.pop(key) for key in (*DIFFERENTIAL, "gauss")) < DIFFERENCES
    assert max(defects.values()) < 1e-11, defects


def test_it_is_a_core_of_updates() -> None:
    quotient = QuotientManifold(FixedRank(7, 8, 3, k=2, core=SquareRoots, seed=1), Orthogonal(3))
    found = check_action(quotient, scale=0.2)
    assert found.pop("vertical") < DIFFERENCES
    assert found.pop("alignment") < 1e-8
    assert max(found.values()) < 1e-10, found


@pytest.mark.parametrize("verb", ["momentum", "orbit_metric"])
def test_a_planted_fault_in_what_the_gauge_asks_for_is_caught(verb: str) -> None:
    """Twice what it should be, and the horizontal part is no longer orthogonal to orbits."""
    total = FixedRank(7, 8, 3, k=2, core=SquareRoots, seed=1)
    right = getattr(total.core, verb)
    broken(total.core, **{verb: lambda *arguments: 2 * right(*arguments)})
    assert check_action(QuotientManifold(total, Orthogonal(3)), scale=0.2)["horizontal"] > 1e-3


def test_repeated_eigenvalues_are_no_special_case() -> None:
    manifold = SquareRoots(3, seed=1)
    point = torch.eye(3, dtype=torch.float64)[None]
    assert float(manifold.orbit_metric(torch.ones(1, 3).double(), 0.5).min()) == 0.5
    assert check_metric(manifold, point=point)["riesz"] < 1e-13
    assert float(differences(torch.ones(3)).abs().max()) == 0
