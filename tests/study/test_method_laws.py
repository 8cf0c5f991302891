"""The laws of rows, on rows that claim what they do not do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from riemerge.laws import LAWS, judge
from riemerge.methods import METHODS, Method, run_method
from riemerge.methods.setting import Setting
from riemerge.study import method_laws
from riemerge.study.method_laws import check_method


def entrywise(x: Tensor, _: Setting) -> Tensor:
    """A mean that sees bases: of absolute values."""
    return x.abs().mean(dim=0)


def by_place(x: Tensor, _: Setting) -> Tensor:
    """Coefficients of a mean that go by the order of the models."""
    falling = torch.arange(len(x), 0, -1).to(x)
    return falling / falling.sum()


def faulty(name: str, **claims: Any) -> Method:
    return replace(METHODS[name], **claims)


FAULTS: dict[str, tuple[str, Method]] = {
    "claims copies": ("copies", faulty("ties_peft", idempotent=True)),
    "denies copies": ("copies", faulty("average", idempotent=False)),
    "goes by place": ("order", faulty("average", domain="gram", mean=f"{__name__}:by_place")),
    "denies the gauge": ("gauge", faulty("average", gauge_invariant=False)),
    # The bases of the joint span come from Gram matrices, which a gauge changes and no orthogonal map.
    "sees bases": ("gauge", faulty("average", domain="span", mean=f"{__name__}:entrywise")),
    "cuts elsewhere": ("rank", faulty("lowrank_regmean", constrained=False)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_claim_that_does_not_hold_is_caught(fault: str) -> None:
    law, row = FAULTS[fault]
    (finding,) = (one for one in judge("method", check_method(row)) if one.name == law)
    assert finding.verdict == "fails"
    assert finding.defect > 1e-3


def test_weights_of_zero_that_count_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def count_all(row: Method, stack: Any, options: Any) -> Any:
        equal = (1 / len(stack.names),) * len(stack.names)
        return run_method(row, replace(stack, weights=lambda _: equal), options)

    monkeypatch.setattr(method_laws, "run_method", count_all)
    assert check_method("average")["absence"] > 1e-3


def test_factors_that_count_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gauge moves what sees the factor B alone."""

    def scale(row: Method, stack: Any, options: Any) -> Any:
        first = stack.modules["layers.0"][0]
        ((module, merged),) = run_method(row, stack, options)
        moved = merged.update.times(1 + float(torch.linalg.vector_norm(first.B)))
        return [(module, replace(merged, lift=lambda: moved))]

    monkeypatch.setattr(method_laws, "run_method", scale)
    assert check_method("average")["gauge"] > 1e-3


def test_a_row_without_an_order_has_no_sequence() -> None:
    assert check_method("average").keys() == LAWS["method"].keys() - {"sequence"}
    assert "order" not in check_method("ema")


def test_a_row_is_checked_by_its_name_or_as_itself() -> None:
    assert check_method("average", seed=3) == check_method(METHODS["average"], seed=3)
    assert check_method("average", seed=3) != check_method("average", seed=4)
