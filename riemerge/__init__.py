"""Merge LoRA adapters, and full checkpoints, as weighted Fréchet means.

The public names are the imports under `TYPE_CHECKING`; each is imported when it is first used. So `import
riemerge` costs nothing: torch comes with the first name that needs it.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from riemerge._version import __version__ as __version__
from riemerge.errors import RiemergeError as RiemergeError

if TYPE_CHECKING:
    from riemerge.formats.adapter import Adapter as Adapter
    from riemerge.formats.dialects import read_adapter as read_adapter
    from riemerge.frechet import SOLVERS as SOLVERS
    from riemerge.frechet import Problem as Problem
    from riemerge.frechet import Solution as Solution
    from riemerge.frechet import Status as Status
    from riemerge.frechet import frechet_mean as frechet_mean
    from riemerge.manifolds import checks as checks
    from riemerge.merging.plan import Plan as Plan
    from riemerge.merging.plan import plan as plan
    from riemerge.merging.run import run as run
    from riemerge.merging.sinks import MergeResult as MergeResult
    from riemerge.merging.verbs import merge as merge
    from riemerge.merging.verbs import merge_adapters as merge_adapters
    from riemerge.merging.verbs import merge_into as merge_into
    from riemerge.methods import METHODS as METHODS
    from riemerge.methods import Method as Method
    from riemerge.methods.rounds.outer import FedAdam as FedAdam
    from riemerge.methods.rounds.outer import Momentum as Momentum
    from riemerge.methods.rounds.outer import OuterOptimizer as OuterOptimizer
    from riemerge.recipes.recipe import Recipe as Recipe
    from riemerge.recipes.recipe import read_recipe as read_recipe
    from riemerge.records.evaluation_record import Evaluation as Evaluation
    from riemerge.statistics import collect_statistics as collect_statistics
    from riemerge.study.batch_merges import batch as batch
    from riemerge.study.collection.mapping import map_adapters as map_adapters
    from riemerge.study.evaluation import evaluate as evaluate
    from riemerge.study.inspection import inspect as inspect
    from riemerge.study.method_laws import check_method as check_method
    from riemerge.study.solver_comparison import compare_solvers as compare_solvers
    from riemerge.study.soups import greedy_soup as greedy_soup
    from riemerge.study.sweeps import sweep as sweep
    from riemerge.updates.low_rank import LowRankUpdate as LowRankUpdate


def _defer_imports(package: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__all__`, `__getattr__` and `__dir__` of a package that imports its names when they are used.

    The names are stated once, as the imports from the package under `TYPE_CHECKING` in its `__init__.py`:
    type checkers follow them as they stand, and here their bytecode is read as a table.
    """
    module = sys.modules[package]
    assert module.__spec__ is not None
    loader: Any = module.__spec__.loader
    homes, home = {}, ""
    for instruction in dis.get_instructions(loader.get_code(package)):
        if instruction.opname == "IMPORT_NAME":
            home = instruction.argval
        elif instruction.opname == "IMPORT_FROM" and home.startswith(f"{package}."):
            homes[instruction.argval] = home

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(__import__(homes[name], fromlist=[name]), name)
        return vars(module).setdefault(name, found)

    return [*homes], find, lambda: sorted(homes)


if not TYPE_CHECKING:
    __all__, __getattr__, __dir__ = _defer_imports(__name__)
