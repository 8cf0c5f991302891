"""Comparisons of solvers: what each did on each problem, as data that can be written and read again."""

from __future__ import annotations

import math
from collections import Counter
from typing import TypeAlias, final

from pydantic import BaseModel, ConfigDict

_FROZEN = ConfigDict(frozen=True, extra="forbid")

MEASURES = {"passes": "passes over all logarithms", "seconds": "seconds"}
"""What a solver spends: its name, and its unit in words."""

SAME_COST = 1e-8
"""Two certified costs are the same where they differ by at most this share of the least."""

# The certificate is computed anew, with logarithms that are followed to their ends; its gradient is that of
# the last iterate to round-off, which matters where that is just below its bound.
_CERTIFIED = 1.5

_Numbers: TypeAlias = tuple[float | None, ...]


@final
class ComparedProblem(BaseModel):
    """A problem of a comparison.

    Attributes:
        name: Name of the problem.
        case: What its costs mean, such as `polar, square`; costs of two cases are not comparable.
        modules: Names of its K modules.
        determined: Whether the points determine the mean of each module: `yes`, `no`, `partly`, `open`; None
            where nothing is known.
    """

    model_config = _FROZEN
    name: str
    case: str
    modules: tuple[str, ...]
    determined: tuple[str | None, ...]


@final
class SolverRun(BaseModel):
    """What one solver did on one problem from one start; a number that is not finite is None.

    Attributes:
        problem: Name of the problem.
        solver: Text of the solver.
        start: 0 for the solver's own start, from 1 on the drawn ones, which are the same for all solvers.
        status: How each of K modules ended: the name of a `Status`, or `REFUSED`.
        cost: Certified F of each module.
        gradient_norm: Certified ‖gradient‖ of each module.
        bound: The gradient at which each module is certified: tol · max(1, √(2 F)).
        horizontality: Largest vertical part of a logarithm of each module.
        counts: Number of each primitive that was computed, all modules together.
        spent: Passes and seconds of the whole run, by name.
        needed: Passes and seconds, by name, up to the first iterate at which each module's gradient was
            within its bound; those of the whole run where it never was.
        trace: Passes and seconds, by name, up to each accepted iterate.
        trace_gradient: ‖gradient‖ of each module at each accepted iterate, to three digits.
        refused: Why the solver did not take this problem; empty where it did.
    """

    model_config = _FROZEN
    problem: str
    solver: str
    start: int
    status: tuple[str, ...]
    cost: _Numbers
    gradient_norm: _Numbers
    bound: _Numbers
    horizontality: _Numbers
    counts: dict[str, int] = {}
    spent: dict[str, float] = dict.fromkeys(MEASURES, 0.0)
    needed: dict[str, tuple[float, ...]] = {}
    trace: dict[str, tuple[float, ...]] = dict.fromkeys(MEASURES, ())
    trace_gradient: tuple[_Numbers, ...] = ()
    refused: str = ""

    def certify(self, module: int) -> bool:
        """Tell whether the gradient that was computed anew is within the bound."""
        gradient, bound = self.gradient_norm[module], self.bound[module]
        known = None not in (self.cost[module], gradient, bound)
        return known and (gradient or 0.0) <= _CERTIFIED * (bound or 0.0)


@final
class Comparison(BaseModel):
    """Solvers on the same problems, to equal certificates.

    Attributes:
        tol: Each module is solved until ‖gradient‖ <= tol · max(1, √(2 F)).
        max_passes: Budget of passes of each run.
        seed: Random seed of the drawn starts.
        versions: Versions of the packages that computed.
        problems: The problems.
        runs: What each solver did on each problem from each start.
    """

    model_config = _FROZEN
    tol: float
    max_passes: int
    seed: int
    versions: dict[str, str]
    problems: tuple[ComparedProblem, ...]
    runs: tuple[SolverRun, ...]

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the cases, each once."""
        return tuple(dict.fromkeys(problem.case for problem in self.problems))

    @property
    def solvers(self) -> tuple[str, ...]:
        """Texts of the solvers, each once."""
        return tuple(dict.fromkeys(run.solver for run in self.runs))

    def select(self, case: str, solver: str) -> list[tuple[ComparedProblem, SolverRun]]:
        """Return the runs of a solver on the problems of a case, beside these."""
        problems = {problem.name: problem for problem in self.problems if problem.case == case}
        return [
            (problems[run.problem], run)
            for run in self.runs
            if run.solver == solver and run.problem in problems
        ]

    def judge(self, case: str, solver: str) -> list[tuple[SolverRun, list[int]]]:
        """Return the runs of a solver on a case, each with the modules on which it is judged.

        Law: these are the modules whose mean is determined, or all where none is known to be.
        """
        runs = self.select(case, solver)
        known = [(run, [k for k, x in enumerate(problem.determined) if x == "yes"]) for problem, run in runs]
        if any(modules for _, modules in known):
            return known
        return [(run, list(range(len(run.cost)))) for _, run in runs]

    def excess(self, run: SolverRun, module: int) -> float:
        """Return F / least F - 1 of a module, the least of all solvers and starts; ∞ where it has no F."""
        costs = [other.cost[module] for other in self.runs if other.problem == run.problem]
        least, cost = min((x for x in costs if x is not None), default=math.inf), run.cost[module]
        return math.inf if cost is None else (cost - least) / max(abs(least), math.ulp(1.0))

    def outcome(self, run: SolverRun, module: int) -> str:
        """Say in a word how a module ended: `reached`, `another minimum`, or the name of its status.

        Law: `reached` is a certified gradient within its bound, at a cost that is the least known one to
        `SAME_COST`; `another minimum` is such a gradient at a larger cost.
        """
        if not run.certify(module):
            return run.status[module]
        return ("another minimum", "reached")[self.excess(run, module) <= SAME_COST]

    def outcomes(self, case: str, solver: str) -> Counter[str]:
        """Count the outcomes of a solver on the modules, and starts, on which it is judged."""
        return Counter(self.outcome(run, k) for run, modules in self.judge(case, solver) for k in modules)

    def ranking(self, case: str) -> list[str]:
        """Return the solvers: those that reach the least cost on most modules first, at fewest passes."""

        def rank(solver: str) -> tuple[int, float]:
            passes = sum(run.spent["passes"] for _, run in self.select(case, solver))
            return -self.outcomes(case, solver)["reached"], passes

        return sorted(self.solvers, key=rank)

    def profile(self, case: str, measure: str) -> dict[str, tuple[list[float], list[float]]]:
        """Return the performance profile of each solver over the judged modules, and starts, of a case.

        Law: share(τ) is the part of the modules that a solver reached within τ times what the best solver
        needed: a step function from 0 up to at most 1, which never falls. A module that is not `reached`
        counts as never solved.

        Args:
            case: Name of the case.
            measure: `passes` or `seconds`.

        Returns:
            For each solver the ratios τ >= 1 at which its share rises, and the share from there on.

        Source: Dolan and Moré 2002, eq. 2.1.
        """
        needed = {
            solver: [
                run.needed[measure][k] if self.outcome(run, k) == "reached" else math.inf
                for run, modules in self.judge(case, solver)
                for k in modules
            ]
            for solver in self.solvers
        }
        best = [max(min(column), math.ulp(1.0)) for column in zip(*needed.values(), strict=True)]
        profiles = {}
        for solver, row in needed.items():
            ratios = sorted(max(x / least, 1.0) for x, least in zip(row, best, strict=True) if x < math.inf)
            profiles[solver] = ratios, [place / len(row) for place in range(1, len(ratios) + 1)]
        return profiles
