"""Merge LoRA adapters as weighted Fréchet means.

The public names are loaded on first use, so that `import riemerge` costs nothing: torch comes with the first
name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from riemerge.errors import RiemergeError

if TYPE_CHECKING:
    from riemerge.adapters import read_adapter
    from riemerge.frechet import FrechetProblem
    from riemerge.merge import MergeResult, merge_adapters
    from riemerge.solvers import Solution, Status, frechet_mean
    from riemerge.updates import LowRankUpdate

__version__ = "0.1.0"

__all__ = [
    "FrechetProblem",
    "LowRankUpdate",
    "MergeResult",
    "RiemergeError",
    "Solution",
    "Status",
    "__version__",
    "frechet_mean",
    "merge_adapters",
    "read_adapter",
]

_HOMES = {
    "FrechetProblem": "riemerge.frechet",
    "LowRankUpdate": "riemerge.updates",
    "MergeResult": "riemerge.merge",
    "Solution": "riemerge.solvers",
    "Status": "riemerge.solvers",
    "frechet_mean": "riemerge.solvers",
    "merge_adapters": "riemerge.merge",
    "read_adapter": "riemerge.adapters",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
