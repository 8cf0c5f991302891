"""Merge LoRA adapters, and full checkpoints, as weighted Fréchet means.

The public names are loaded on first use, so that `import riemerge` costs nothing: torch comes with the first
name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from riemerge._version import __version__
from riemerge.errors import RiemergeError

if TYPE_CHECKING:
    from riemerge.formats.peft import read_adapter
    from riemerge.frechet import FrechetProblem, Solution, Status, frechet_mean
    from riemerge.merging.sinks import MergeResult
    from riemerge.merging.verbs import merge_adapters, merge_into
    from riemerge.methods.rounds.outer import FedAdam, Momentum, OuterOptimizer
    from riemerge.recipes.recipe import read_recipe
    from riemerge.records.evaluation_record import Evaluation
    from riemerge.statistics import collect_statistics
    from riemerge.study.evaluation import evaluate
    from riemerge.study.soups import greedy_soup
    from riemerge.study.sweeps import sweep
    from riemerge.updates.low_rank import LowRankUpdate

__all__ = [
    "Evaluation",
    "FedAdam",
    "FrechetProblem",
    "LowRankUpdate",
    "MergeResult",
    "Momentum",
    "OuterOptimizer",
    "RiemergeError",
    "Solution",
    "Status",
    "__version__",
    "collect_statistics",
    "evaluate",
    "frechet_mean",
    "greedy_soup",
    "merge_adapters",
    "merge_into",
    "read_adapter",
    "read_recipe",
    "sweep",
]

_HOMES = {
    "Evaluation": "riemerge.records.evaluation_record",
    "FedAdam": "riemerge.methods.rounds.outer",
    "FrechetProblem": "riemerge.frechet",
    "LowRankUpdate": "riemerge.updates.low_rank",
    "MergeResult": "riemerge.merging.sinks",
    "Momentum": "riemerge.methods.rounds.outer",
    "OuterOptimizer": "riemerge.methods.rounds.outer",
    "Solution": "riemerge.frechet",
    "Status": "riemerge.frechet",
    "collect_statistics": "riemerge.statistics",
    "evaluate": "riemerge.study.evaluation",
    "frechet_mean": "riemerge.frechet",
    "greedy_soup": "riemerge.study.soups",
    "merge_adapters": "riemerge.merging.verbs",
    "merge_into": "riemerge.merging.verbs",
    "read_adapter": "riemerge.formats.peft",
    "read_recipe": "riemerge.recipes.recipe",
    "sweep": "riemerge.study.sweeps",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
