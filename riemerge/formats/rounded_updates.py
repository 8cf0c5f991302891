"""Updates rounded to the dtype in which they are written, whatever the dialect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.formats.files.rounding import Rounding, check_rounding, why_too_large
from riemerge.formats.files.text import show
from riemerge.updates.low_rank import LowRankUpdate

# Numbers above this, and below its inverse, have fourth powers in float64.
_SQUARED = 1e-60


def round_update(update: LowRankUpdate, dtype: torch.dtype) -> tuple[LowRankUpdate, Rounding]:
    """Round an update in its canonical gauge (see `LowRankUpdate.balance`) to the dtype that is stored.

    Law: the error is that of the rounding, to about six digits, from one product of the factors a side. What
    is rounded away is E = δB A + (B + δB) δA, whose terms do not cancel, so Gram matrices lose nothing here.

    An update of one column (a bias) is that column: its A is the number 1, so that nothing but the column is
    rounded.

    Returns:
        The update with scale 1 in `dtype` on the CPU, and what the rounding did to it.

    Raises:
        NumericalError: The factors are not finite, or not in `dtype`; the text does not name the module.
    """
    exact = update.absorb_scale().to(torch.float64)
    if update.shape[1] == 1:
        exact = LowRankUpdate(exact.dense(), exact.A.new_ones(1, 1))
    largest = max(_largest(exact.B), _largest(exact.A))
    unit = 1.0
    if not _SQUARED < largest < 1.0 / _SQUARED:
        unit = largest or 1.0
    (left, right), rounded = _in_units(exact, unit), exact.to(dtype)
    rights = right @ right.mT
    square = max(float(((left.mT @ left) * rights).sum()), 0.0)
    norm = unit * unit * math.sqrt(square)
    if not math.isfinite(norm):
        raise NumericalError("the update holds NaN or Inf, or its norm overflows")
    near_left, near_right = _in_units(rounded.to(torch.float64), unit)
    lost_left, lost_right = near_left - left, near_right - right
    gram = (lost_left.mT @ lost_left) * rights + (near_left.mT @ near_left) * (lost_right @ lost_right.mT)
    gram += 2.0 * (lost_left.mT @ near_left) * (right @ lost_right.mT)
    error = float(gram.sum())
    if not math.isfinite(error):
        raise NumericalError(f"the factors reach {why_too_large(largest, dtype)}")
    relative = math.sqrt(max(error, 0.0) / (square or math.inf))  # 0 for a zero update
    return rounded.to(device="cpu"), Rounding(dtype, norm, relative)


def _largest(tensor: Tensor) -> float:
    """Return the largest magnitude of a tensor, NaN where it holds one, by one pass without a copy."""
    return float(torch.stack(torch.aminmax(tensor)).abs().max())


def _in_units(update: LowRankUpdate, unit: float) -> tuple[Tensor, Tensor]:
    """Return B and A in multiples of a unit: factors of size 1 have squares that do not underflow."""
    if unit == 1.0:
        return update.B, update.A
    return update.B / unit, update.A / unit


@final
class RoundedUpdates:
    """Updates in the dtype in which they are written, rounded one at a time, all faults at once.

    Attributes:
        updates: The rounded updates by module, with scale 1, on the CPU.
        roundings: What the rounding did to each update, by module.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._problems: list[str] = []
        self.updates: dict[str, LowRankUpdate] = {}
        self.roundings: dict[str, Rounding] = {}

    def add(self, module: str, update: LowRankUpdate) -> None:
        """Round one update, given in its canonical gauge."""
        try:
            self.updates[module], self.roundings[module] = round_update(update, self._dtype)
        except NumericalError as fault:
            self._problems += [f"{show(module)}: {problem}" for problem in fault.problems]

    def check(self) -> None:
        """Raise what went wrong, if anything did.

        Raises:
            NumericalError: An update was refused, or is rounded to nearly nothing; all of them are named.
        """
        NumericalError.refuse(sorted(self._problems))
        check_rounding(self.roundings)


def round_all(updates: Mapping[str, LowRankUpdate], dtype: torch.dtype) -> RoundedUpdates:
    """Round updates in their canonical gauges.

    Raises:
        NumericalError: What `RoundedUpdates.check` raises.
    """
    rounded = RoundedUpdates(dtype)
    for module, update in sorted(updates.items()):
        rounded.add(module, _balance(update))
    rounded.check()
    return rounded


def _balance(update: LowRankUpdate) -> LowRankUpdate:
    """Return the update in its canonical gauge; one that holds NaN or Inf has none, and is refused later."""
    exact = update.to(torch.float64)
    if not math.isfinite(exact.norm()):
        return exact
    return exact.balance()
