"""Rounding to the dtype that is stored: what a dtype promises, what is told, and what is refused.

A float dtype stores a number with a relative error of at most u = eps/2 (eps as in `torch.finfo`: 2⁻⁷ for
bfloat16, 2⁻¹⁰ for float16, 2⁻²³ for float32). So it promises ‖stored − given‖ <= u ‖given‖ for a tensor.
For an update in its canonical gauge, dW = Σ bₖ aₖᵀ with orthogonal bₖ and orthogonal aₖ, it promises 2u = eps
(and √r u² more): what is lost is δB A + B δA + δB δA, where ‖δB A‖² = Σ ‖δbₖ‖² ‖aₖ‖² <= u² ‖dW‖², and so is
‖B δA‖².

The promise holds where no number that matters is below the smallest normal one (6e-5 for float16, 1e-38 for
bfloat16 and float32): such numbers lose digits, and at last are zero. So what is lost beyond eps was lost to
underflow, whatever the dtype. It is told where it is more than `TOLD`, and refused where `LOST` of a norm is
gone, unless that norm is below eps of all together: so small it is often the round-off of what cancelled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from riemerge.errors import NumericalError
from riemerge.formats.files.text import list_names, show

TOLD = 1e-3
LOST = 0.5
_SHARE = 0.1  # from which share of a merge's change its loss in whole weights is told


def why_too_large(largest: float, dtype: torch.dtype) -> str:
    """Say that a dtype cannot hold a number, and which can.

    Args:
        largest: The largest number in size.
        dtype: The dtype whose largest number is less.
    """
    wider = _wider(largest <= torch.finfo(torch.bfloat16).max)
    most = torch.finfo(dtype).max
    return f"{largest:.3g} but the largest {dtype} is {most:.3g}; choose a wider dtype such as {wider}"


class Rounding(NamedTuple):
    """What storing one tensor or update in a dtype did to it.

    Attributes:
        dtype: The dtype that is stored.
        norm: The norm ‖given‖; 0 also where it is below what float64 can square.
        error: The relative error ‖stored − given‖ / ‖given‖; 0 where what was given is zero.
    """

    dtype: torch.dtype
    norm: float
    error: float

    @property
    def moved(self) -> float:
        """The absolute error ‖stored − given‖."""
        return self.error * self.norm

    @property
    def promised(self) -> float:
        """The relative error that the dtype keeps to without underflow (see the module)."""
        return float(torch.finfo(self.dtype).eps)


def check_rounding(roundings: Mapping[str, Rounding]) -> None:
    """Refuse what a dtype rounds to nearly nothing.

    Args:
        roundings: All that is stored together, by name.

    Raises:
        NumericalError: A relative error of `LOST` or more in something that is not negligible beside the
            rest: all of it is named.
    """
    whole = math.hypot(*(rounding.norm for rounding in roundings.values()))
    NumericalError.refuse(
        f"{show(name)}: stored as {_dtype(rounding)} it loses {rounding.error:.0%} of its norm, expected at "
        f"most {rounding.promised:.1g}: {_remedy(rounding)}"
        for name, rounding in roundings.items()
        if rounding.error >= LOST and rounding.norm >= rounding.promised * whole
    )


def rounding_warnings(roundings: Mapping[str, Rounding]) -> list[str]:
    """Say where rounding moved more than a dtype promises, by more than `TOLD`.

    Args:
        roundings: All that is stored together, by name.

    Returns:
        One text for each dtype; none where all is as promised.
    """
    texts = []
    moved = {
        name: rounding for name, rounding in roundings.items() if rounding.error > rounding.promised + TOLD
    }
    for dtype in sorted({rounding.dtype for rounding in moved.values()}, key=str):
        names = [name for name, rounding in moved.items() if rounding.dtype is dtype]
        worst = max((moved[name] for name in names), key=lambda rounding: rounding.error)
        texts.append(
            f"rounding to {_dtype(worst)} moved {len(names)} of {len(roundings)} tensors by more than it "
            f"promises ({list_names(names)}: up to {worst.error:.1%} of the norm, expected at most "
            f"{worst.promised:.1g}): {_remedy(worst)}"
        )
    return texts


def change_warnings(roundings: Mapping[str, Rounding], changes: Mapping[str, float]) -> list[str]:
    """Say how much of what a merge changed of a base model is lost in the rounding of whole weights.

    A weight is rounded by up to u of its own size, however little it was changed: in half precision that is
    often more than the change.

    Args:
        roundings: The weights stored, by name.
        changes: ‖merged − base‖ by name, before the rounding.

    Raises:
        NumericalError: The change of every weight is lost: what would be stored is the base model.
    """
    level = 100.0 * torch.finfo(torch.float64).eps  # round-off of changes that cancel
    changed = {name: size for name, size in changes.items() if size > level * roundings[name].norm}
    if not changed:
        return []
    shares = {name: roundings[name].moved / size for name, size in changed.items()}
    worst = max(shares, key=lambda name: shares[name])
    dtype = _dtype(roundings[worst])
    # Moved by as much as it was changed: back to the base. Both are norms of one difference then.
    digits = {name: 1e-6 + level * roundings[name].norm / size for name, size in changed.items()}
    if all(abs(share - 1.0) <= digits[name] for name, share in shares.items()):
        raise NumericalError(
            f"all {len(shares)} tensors that the merge changes are those of the base model again when "
            f"rounded to {dtype}: expected the changes to survive: ask for a wider out_dtype"
        )
    lost = math.hypot(*(roundings[name].moved for name in changed)) / math.hypot(*changed.values())
    if not lost > _SHARE:
        return []
    text = f"rounding to {dtype} moved the weights by {lost:.0%} of what the merge changed of the base model "
    return [f"{text}(most in {show(worst)}: {shares[worst]:.0%}): to keep it ask for a wider out_dtype"]


def _dtype(rounding: Rounding) -> str:
    return str(rounding.dtype).removeprefix("torch.")


def _remedy(rounding: Rounding) -> str:
    """Say why a dtype loses more than it promises, and what to do."""
    return (
        f"the numbers are below {torch.finfo(rounding.dtype).tiny:.0e}, the smallest that {_dtype(rounding)} "
        f"stores in full: ask for out_dtype {_wider(rounding.dtype is torch.float16)}"
    )


def _wider(within_float32: bool) -> str:
    return "bfloat16 or float32" if within_float32 else "float64"
