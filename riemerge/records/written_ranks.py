"""Ranks with which the modules of an adapter are written, and what they mean for its loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from riemerge.formats.files.text import list_names
from riemerge.records.run_record import ModuleRow

# What `--max-lora-rank` of vLLM accepts.
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)

_ALPHA_BY_MODULE = {"kohya"}


def written_ranks(recipe: Mapping[str, Any], rows: Sequence[ModuleRow]) -> dict[str, int]:
    """Return the rank with which each module of an adapter is written: columns of zero fill it up.

    Law: one rank for all modules, the number that `rank` says or the largest that any module needs, so that
    lora_alpha over the rank of the stored factors is the scale of every module, as every loader reads it.
    Where `rank` is no number, and `uniform_rank` is false or the dialect has an alpha for each module, the
    rank of each module: without any `rank` the largest of the module's inputs, so that what loaders do right
    with the inputs they do right with the merge; for a share of the energy the rank that keeps it. A bias is
    one column, which is written without factors: it counts as having the largest rank.

    Args:
        recipe: The completed recipe, as the record has it.
        rows: What was measured of each module.
    """
    asked = recipe["parameters"].get("rank")
    ranks = {row.module: row.rank or 1 for row in rows}
    if asked is None:
        ranks = {row.module: max(ranks[row.module], *row.input_ranks) for row in rows}
    if not isinstance(asked, int) and not has_one_rank(recipe):
        most = max((ranks[row.module] for row in rows if not _is_column(row)), default=1)
        return ranks | {row.module: most for row in rows if _is_column(row)}
    least = asked if isinstance(asked, int) else 1
    return dict.fromkeys(ranks, max(least, *ranks.values()))


def has_one_rank(recipe: Mapping[str, Any]) -> bool:
    """Return whether all modules of an adapter are written with one rank, where none is given as a number.

    Args:
        recipe: The completed recipe, as the record has it.
    """
    if (asked := recipe.get("uniform_rank")) is not None:
        return bool(asked)
    return recipe.get("dialect") not in _ALPHA_BY_MODULE


def _is_column(row: ModuleRow) -> bool:
    return row.shape[1:] == (1,)


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
        "leave out --no-uniform-rank (uniform_rank: false in a recipe) to write one rank"
    )
    return [text]


def servers(ranks: Mapping[str, int], *, heads: bool = False) -> str:
    """Say what serves an adapter, in one line: the option of vLLM, and whether llama.cpp reads it right.

    >>> servers({"q_proj": 96, "v_proj": 96})
    'vLLM: --max-lora-rank 128; llama.cpp: right, since all modules have one rank'
    >>> servers({"q_proj": 640, "v_proj": 8})
    'vLLM: no, rank 640 is above 512, use --rank 512; llama.cpp: no, since ranks differ between modules'

    Args:
        ranks: The rank with which each module is written.
        heads: Whether whole tensors are written beside the factors.

    Source: vLLM 0.27 (vllm/config/lora.py, MaxLoRARanks; its PEFTHelper takes no modules_to_save); llama.cpp
        scales by lora_alpha over the rank of the stored factors.
    """
    most, largest = max(ranks.values()), _VLLM_RANKS[-1]
    vllm = f"no, rank {most} is above {largest}, use --rank {largest}"
    if most <= largest:
        vllm = f"--max-lora-rank {next(limit for limit in _VLLM_RANKS if limit >= most)}"
    if heads:
        vllm = "no, it takes no heads beside the factors, use --heads drop"
    llama = "no, since ranks differ between modules"
    if min(ranks.values()) == most:
        llama = "right, since all modules have one rank"
    return f"vLLM: {vllm}; llama.cpp: {llama}"
