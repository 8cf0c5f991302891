"""Ranks and scales of updates as PEFT's settings say them, and as numbers alpha."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from riemerge.updates.low_rank import LowRankUpdate


def find_alpha(update: LowRankUpdate) -> float:
    """Return the number alpha with alpha / rank = scale: the shortest one, where several are as exact."""
    alpha = update.scale * update.rank
    shortest = float(f"{alpha:.15g}")
    if shortest / update.rank == update.scale:
        alpha = shortest
    if alpha.is_integer():
        return int(alpha)
    return alpha


def scale_settings(updates: Mapping[str, LowRankUpdate]) -> dict[str, Any]:
    """Return the settings of PEFT that say the rank and the scale of each module."""
    ranks = {module: update.rank for module, update in updates.items()}
    alphas = {module: find_alpha(update) for module, update in updates.items()}
    r = max(ranks.values())
    alpha = next(alphas[module] for module, rank in ranks.items() if rank == r)
    return {
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": _others(ranks, r),
        "alpha_pattern": _others(alphas, alpha),
    }


def _others(values: Mapping[str, float], value: float) -> dict[str, float]:
    """Return what PEFT is told of modules that do not have the usual value."""
    # PEFT matches a pattern with the end of a module's name from any dot on; the anchor leaves only the whole
    # name.
    return {f"^{re.escape(module)}": other for module, other in sorted(values.items()) if other != value}
