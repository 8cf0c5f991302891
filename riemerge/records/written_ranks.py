"""Ranks with which the modules of an adapter are written, and what they mean for its loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from riemerge.formats.files.text import list_names
from riemerge.records.run_record import ModuleRow


def written_ranks(recipe: Mapping[str, Any], rows: Sequence[ModuleRow]) -> dict[str, int]:
    """Return the rank with which each module of an adapter is written: columns of zero fill it up.

    Law: one rank for all modules where `rank` is a number, or `sum` (then the largest), or where
    `uniform_rank` is asked for; without any `rank` the largest of the module's inputs, so that what loaders
    do right with the inputs they do right with the merge. A share of the energy means the rank that keeps it.

    Args:
        recipe: The completed recipe, as the record has it.
        rows: What was measured of each module.
    """
    asked = recipe["parameters"].get("rank")
    ranks = {row.module: row.rank or 1 for row in rows}
    if asked is None:
        ranks = {row.module: max(ranks[row.module], *row.input_ranks) for row in rows}
    if isinstance(asked, int) or asked == "sum" or recipe.get("uniform_rank"):
        least = asked if isinstance(asked, int) else 1
        return dict.fromkeys(ranks, max(least, *ranks.values()))
    return ranks


def rank_warnings(ranks: Mapping[str, int]) -> list[str]:
    """Say what ranks that differ between modules mean for loaders that know one alpha.

    Args:
        ranks: The rank with which each module is written.
    """
    least, most = min(ranks.values()), max(ranks.values())
    if least == most:
        return []
    strong = [f"{module}: {most / rank:.3g} times" for module, rank in ranks.items() if rank < most]
    text = (
        f"the rank differs between modules, from {least} to {most}, as rank_pattern and alpha_pattern say: "
        "PEFT reads them, but a loader that divides lora_alpha by the rank of the stored factors, such as "
        f"llama.cpp, applies {len(strong)} of {len(ranks)} modules too strongly ({list_names(strong)}): "
        "--uniform-rank (uniform_rank: true in a recipe) or a number as --rank writes one rank"
    )
    return [text]
