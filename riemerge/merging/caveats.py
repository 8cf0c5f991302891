"""Caveats: what is right by the method's formula, and may all the same not be what a person expects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from riemerge.errors import NumericalError
from riemerge.formats.files.text import list_names
from riemerge.methods import Method
from riemerge.methods.parameters import scalars
from riemerge.records.run_record import ModuleRow


def zero_warnings(recipe: Mapping[str, Any], method: Method, rows: Sequence[ModuleRow]) -> list[str]:
    """Say where a merged update is zero though its inputs are not, and which inputs have no direction.

    Args:
        recipe: The completed recipe, as the record has it.
        method: The row of the table.
        rows: What was measured of each module.
    """
    texts = []
    # Of terms that cancel, round-off of the dtype that is computed with is left.
    level = 100.0 * torch.finfo(getattr(torch, recipe["dtype"])).eps
    gone = [row.module for row in rows if row.norm <= level * max(row.input_norms) > 0.0]
    if gone:
        texts.append(
            f"the merged update is zero in {len(gone)} of {len(rows)} modules ({list_names(gone)}), though "
            "its inputs are not: they cancel, or the method or the scale leaves nothing of them"
        )
    noise = [row.module for row in rows if row.cancelled and row.module not in gone]
    if noise and not method.truncates_inputs:
        texts.append(
            f"the inputs cancel in {len(noise)} of {len(rows)} modules ({list_names(noise)}): nothing is "
            "left of their weighted sum but the rounding of their stored factors, and what was merged there "
            "may be that: change the weights, or merge other inputs"
        )
    blank = [row.module for row in rows if min(row.input_norms) == 0.0 < max(row.input_norms)]
    if blank and method.directions:
        texts.append(
            f"an update is all zero in {len(blank)} of {len(rows)} modules ({list_names(blank)}), and has no "
            f"direction there, which {method.name} compares: it counts as orthogonal to the others, as "
            "published; average needs no direction"
        )
    return texts


def scale_warnings(scale: float | None, count: int) -> list[str]:
    """Say where `scale: matched` came to more than unrelated inputs account for.

    Args:
        scale: What it came to; None where it was not asked for.
        count: Number T of inputs.
    """
    # Unrelated inputs have √T, and a cut to the rank that keeps a hundredth of the square ten times that.
    if scale is None or scale <= 10.0 * math.sqrt(count):
        return []
    text = (
        f"scale: matched is {scale:.4g}: the inputs nearly cancel, and the little that is left of them is "
        "brought to their full norm: --scale 1 leaves it as it is"
    )
    return [text]


def check_directions(method: Method, rows: Sequence[ModuleRow]) -> None:
    """Refuse a mean of directions that are opposite but for the rounding of what was stored.

    Law: a direction found from that rounding moves with the gauge of the inputs; it is refused where it was
    given a length, which is from a tenth of the shortest input on.

    Args:
        method: Row of the table.
        rows: What was measured of each module.

    Raises:
        NumericalError: All such modules.
    """
    found = [row for row in rows if row.cancelled and row.norm > 0.1 * min(row.input_norms)]
    if found and method.directions:
        raise NumericalError(
            f"{row.module}: the directions of the updates cancel to the rounding of their stored factors, so "
            f"that {method.name} has none: change the weights, or use average"
            for row in found
        )


def peer_warnings(
    recipe: Mapping[str, Any], method: Method, weights: Sequence[tuple[float, ...]]
) -> list[str]:
    """Say how the result differs from that of the package whose name and words the method has.

    Args:
        recipe: The completed recipe, as the record has it.
        method: The row of the table.
        weights: In each module the weights of the T models that count.
    """
    asked = recipe["parameters"]
    levels = [asked, *(entry["parameters"] for entry in recipe["models"])]
    densities = [share for level in levels for _, share in scalars(level.get("density", 1.0), "density")]
    applies = {
        "weights": any(len(set(shares)) > 1 for shares in weights),
        "rescale": asked.get("rescale") == "expected" and min(densities) < 1.0,
    }
    return [f"{method.name}: {text}" for when, text in method.differs.items() if applies.get(when, False)]
