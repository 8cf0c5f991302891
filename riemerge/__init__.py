"""Merge LoRA adapters, and full checkpoints, as weighted Fréchet means.

The public names are the imports under `TYPE_CHECKING`; each is imported when it is first used. So `import
riemerge` costs nothing: torch comes with the first name that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
else:
    from riemerge.deferred import defer_imports

    __all__, __getattr__, __dir__ = defer_imports(__name__)
