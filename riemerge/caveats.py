"""Caveats: what is right by the method's formula, and may all the same not be what a person expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from riemerge.methods import Method
from riemerge.methods.parameters import scalars
from riemerge.record import ModuleRow
from riemerge.storage.text import listed


def zero_warnings(recipe: Mapping[str, Any], method: Method, rows: Sequence[ModuleRow]) -> list[str]:
    """Say where a merged update is zero though its inputs are not, and which inputs have no direction.

    Args:
        recipe: As resolved for the record.
        method: Its row of the table.
        rows: What was measured of each module.
    """
    texts = []
    # Of terms that cancel, round-off of the dtype that is computed with is left.
    level = 100.0 * torch.finfo(getattr(torch, recipe["dtype"])).eps
    gone = [row.module for row in rows if row.norm <= level * max(row.input_norms) > 0.0]
    if gone:
        texts.append(
            f"the merged update is zero in {len(gone)} of {len(rows)} modules ({listed(gone)}), though its "
            "inputs are not: they cancel, or the method or the scale leaves nothing of them"
        )
    blank = [row.module for row in rows if min(row.input_norms) == 0.0 < max(row.input_norms)]
    if blank and method.directions:
        texts.append(
            f"an update is all zero in {len(blank)} of {len(rows)} modules ({listed(blank)}), and has no "
            f"direction there, which {method.name} compares: it counts as orthogonal to the others, as "
            "published; average needs no direction"
        )
    return texts


def peer_warnings(
    recipe: Mapping[str, Any], method: Method, weights: Sequence[tuple[float, ...]]
) -> list[str]:
    """Say how the result differs from that of the package whose name and words the method has.

    Args:
        recipe: As resolved for the record.
        method: Its row of the table.
        weights: Those of the T models that count, in each module.
    """
    asked = recipe["parameters"]
    levels = [asked, *(entry["parameters"] for entry in recipe["models"])]
    densities = [share for level in levels for _, share in scalars(level.get("density", 1.0), "density")]
    applies = {
        "weights": any(len(set(shares)) > 1 for shares in weights),
        "rescale": asked.get("rescale") == "expected" and min(densities) < 1.0,
    }
    return [f"{method.name}: {text}" for when, text in method.differs.items() if applies.get(when, False)]
