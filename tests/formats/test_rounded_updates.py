"""Updates as they are written: the error of the rounding is known, and a column is rounded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from riemerge.errors import NumericalError
from riemerge.formats.rounded_updates import RoundedUpdates, round_update
from riemerge.updates.low_rank import LowRankUpdate

_GENERATOR = torch.Generator().manual_seed(0)
UPDATE = LowRankUpdate(
    100 * torch.randn(5, 3, generator=_GENERATOR, dtype=torch.float64),
    torch.randn(3, 4, generator=_GENERATOR, dtype=torch.float64),
    -0.3,
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, -4.0, 0.0])
def test_rounding_reports_its_error(dtype: torch.dtype, scale: float) -> None:
    update = UPDATE.balance().times(scale)
    stored, rounding = round_update(update, dtype)
    error = rounding.error
    assert (stored.dtype, stored.scale) == (dtype, 1.0)
    given = update.dense().numpy()
    apart = np.linalg.norm(stored.dense().numpy() - given)
    # Against the dense difference, which itself has the round-off of float64.
    assert error == pytest.approx(apart / np.linalg.norm(given) if scale else 0.0, rel=1e-6, abs=1e-14)
    assert (error > 1e-9) == (dtype is not torch.float64 and scale != 0)
    assert rounding.norm == pytest.approx(np.linalg.norm(given), rel=1e-13)


def test_a_column_is_rounded_once_whatever_its_factors() -> None:
    column = LowRankUpdate(UPDATE.B, UPDATE.A[:, :1], 0.7).balance()
    stored, rounding = round_update(column, torch.bfloat16)
    assert torch.equal(stored.dense(), column.dense().to(torch.bfloat16).double())
    assert rounding.error < torch.finfo(torch.bfloat16).eps / 2


def test_all_that_cannot_be_written_is_named_at_once() -> None:
    rounded = RoundedUpdates(torch.float16)
    for module in ("q", "v"):
        rounded.add(module, LowRankUpdate(UPDATE.B * 1e6, UPDATE.A))
    rounded.add("o", UPDATE)
    with pytest.raises(NumericalError) as caught:
        rounded.check()
    assert [problem[:3] for problem in caught.value.problems] == ["q: ", "v: "]
    assert list(rounded.updates) == ["o"]
