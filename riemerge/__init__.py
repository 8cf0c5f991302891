"""Merge LoRA adapters, and full checkpoints, as weighted Fréchet means.

The public names are loaded on first use, so that `import riemerge` costs nothing: torch comes with the first
name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from riemerge.errors import RiemergeError

if TYPE_CHECKING:
    from riemerge.adapters import read_adapter
    from riemerge.evaluation import evaluate
    from riemerge.frechet import FrechetProblem
    from riemerge.merge import MergeResult, merge_adapters
    from riemerge.methods.outer import FedAdam, Momentum, OuterOptimizer
    from riemerge.outputs import merge_into
    from riemerge.recipe import read_recipe
    from riemerge.record import Evaluation
    from riemerge.solvers import Solution, Status, frechet_mean
    from riemerge.soups import greedy_soup, sweep
    from riemerge.statistics import collect_statistics
    from riemerge.updates import LowRankUpdate

__version__ = "0.1.0"

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
    "Evaluation": "riemerge.record",
    "FedAdam": "riemerge.methods.outer",
    "FrechetProblem": "riemerge.frechet",
    "LowRankUpdate": "riemerge.updates",
    "MergeResult": "riemerge.merge",
    "Momentum": "riemerge.methods.outer",
    "OuterOptimizer": "riemerge.methods.outer",
    "Solution": "riemerge.solvers",
    "Status": "riemerge.solvers",
    "collect_statistics": "riemerge.statistics",
    "evaluate": "riemerge.evaluation",
    "frechet_mean": "riemerge.solvers",
    "greedy_soup": "riemerge.soups",
    "merge_adapters": "riemerge.merge",
    "merge_into": "riemerge.outputs",
    "read_adapter": "riemerge.adapters",
    "read_recipe": "riemerge.recipe",
    "sweep": "riemerge.soups",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
