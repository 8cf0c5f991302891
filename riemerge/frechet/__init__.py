"""The weighted Fréchet mean: the problem, how it is solved, and how well it was.

The names are imported when they are first used (see `riemerge.registry`): a merge in closed form knows the
statuses of solves, and needs no solver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from riemerge.errors import require_docstrings

if not __debug__:  # -O, or -OO
    require_docstrings()

if TYPE_CHECKING:
    from riemerge.frechet.formulation import Evaluation as Evaluation
    from riemerge.frechet.formulation import Formulation as Formulation
    from riemerge.frechet.formulation import Point as Point
    from riemerge.frechet.mean import frechet_mean as frechet_mean
    from riemerge.frechet.problem import Problem as Problem
    from riemerge.frechet.search import Search as Search
    from riemerge.frechet.search import normalize_weights as normalize_weights
    from riemerge.frechet.solution import Solution as Solution
    from riemerge.frechet.solution import TracePoint as TracePoint
    from riemerge.frechet.solvers.catalogue import SOLVERS as SOLVERS
    from riemerge.frechet.status import Status as Status
else:
    from riemerge import _defer_imports

    __all__, __getattr__, __dir__ = _defer_imports(__name__)
