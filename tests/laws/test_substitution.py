"""Rows with per-model forms under local-model substitution: their Jacobians are their preconditioners."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from examples.merging_is_a_gradient_step import jacobian_at_the_diagonal, remainder_slope
from riemerge.methods import METHODS
from riemerge.methods.setting import Setting
from tests.helpers import seeded
from tests.methods.rows import Alone
from tests.methods.stacks import statistics
from tests.methods.substitution import merge_of

SHAPE = (3, 4)
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)


def setting(name: str, data: list[dict[str, Tensor]]) -> Setting:
    # A tolerance that the measured differences can see through.
    values = {**METHODS[name].defaults, "floor": 1e-9, "normalize_fisher": False}
    values |= {"tol": 1e-14, "max_passes": 1000} if "tol" in values else {}
    at = Setting("m", WEIGHTS, values, SHAPE, ranks=(3, 3), seeds=(0, 1), statistics=tuple(data))
    return replace(at, base_statistics=statistics(7, SHAPE))


def preconditioner(name: str, data: list[dict[str, Tensor]]) -> Tensor:
    """(Σ wₜ Gₜ)⁻¹ w₂ G₂ on flattened updates: what the one minimised form says."""
    m, _ = SHAPE

    def form(one: dict[str, Tensor]) -> Tensor:
        if name == "fisher":
            return one["fisher"].flatten().diag()
        gram = one["gram"]
        if name == "regmean":
            gram = 0.9 * gram + 0.1 * gram.diagonal().diag()
        left = one["covariance"] if name == "mats" else torch.eye(m, dtype=torch.float64)
        return torch.kron(left, gram)

    forms = [weight * form(one) for weight, one in zip(WEIGHTS, data, strict=True)]
    return torch.linalg.solve(forms[0] + forms[1], forms[1])


def case(name: str) -> tuple[list[dict[str, Tensor]], Tensor, Tensor]:
    generator = seeded(3)
    point, direction = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    return [statistics(seed, SHAPE) for seed in (10, 20)], point, direction / direction.norm()


@pytest.mark.parametrize("name", ["fisher", "regmean", "mats", "mats_forward"])
def test_the_jacobian_is_the_second_form_s_share(name: str) -> None:
    data, point, direction = case(name)
    merge = merge_of(Alone(METHODS[name]), setting(name, data), "entries")
    jacobian = jacobian_at_the_diagonal(merge, point)
    # The condition of the forms (below 100) times the error of the differences.
    assert torch.allclose(jacobian, preconditioner(name, data), rtol=0, atol=1e-8)
    assert remainder_slope(merge, point, direction, jacobian) >= 1.9


def test_fisher_rao_preconditions_by_a_positive_diagonal() -> None:
    """Entries are independent Gaussians, so J is diagonal; a second that knows more has the larger share."""
    data, point, direction = case("fisher_rao")
    merge = merge_of(Alone(METHODS["fisher_rao"]), setting("fisher_rao", data), "entries")
    jacobian = jacobian_at_the_diagonal(merge, point)
    share = jacobian.diagonal()
    assert torch.allclose(jacobian, share.diag(), rtol=0, atol=1e-7)
    assert bool(((share > 0) & (share < 1)).all())
    informed = (data[1]["fisher"] > data[0]["fisher"]).flatten()
    assert bool((share[informed] > WEIGHTS[1]).all())
    assert bool((share[~informed] < WEIGHTS[1]).all())
    assert remainder_slope(merge, point, direction, jacobian) >= 1.9
