"""Comparisons of solvers: what each did on each problem, as data that can be written, read again, and shown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias, final

from pydantic import BaseModel, ConfigDict

_FROZEN = ConfigDict(frozen=True, extra="forbid")

SAME_COST = 1e-7
"""Two certified costs are the same where they differ by at most this share of the least."""

# The certificate is computed anew, with logarithms that are followed to their ends: its gradient is that of
# the last iterate to round-off, which is below tol but may be all of a gradient that is just below it.
_CERTIFIED = 1.5

Measure: TypeAlias = Literal["passes", "seconds"]
"""What a solver is judged by: passes over all logarithms, or wall seconds."""

MEASURES: tuple[Measure, ...] = ("passes", "seconds")


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
        status: How each of K modules ended: the name of a `Status`.
        cost: Certified F of each module.
        gradient_norm: Certified ‖gradient‖ of each module.
        bound: The gradient at which each module is certified: tol · max(1, √(2 F)).
        horizontality: Largest vertical part of a logarithm of each module.
        passes: Passes over all logarithms.
        counts: Number of each primitive that was computed.
        seconds: Wall time of the solve.
        spent_passes: Passes up to the first iterate at which each module's gradient was within its bound; all
            passes where it never was.
        spent_seconds: Seconds up to that iterate.
        trace_passes: Passes up to each accepted iterate.
        trace_seconds: Seconds up to each accepted iterate.
        trace_cost: Σ F over the modules at each accepted iterate.
        trace_gradient: ‖gradient‖ of each module at each accepted iterate, to three digits.
        refused: Why the solver did not take this problem; empty where it did.
    """

    model_config = _FROZEN
    problem: str
    solver: str
    start: int
    status: tuple[str, ...]
    cost: tuple[float | None, ...]
    gradient_norm: tuple[float | None, ...]
    bound: tuple[float | None, ...]
    horizontality: tuple[float | None, ...]
    passes: int
    counts: dict[str, int]
    seconds: float
    spent_passes: tuple[int, ...]
    spent_seconds: tuple[float, ...]
    trace_passes: tuple[int, ...]
    trace_seconds: tuple[float, ...]
    trace_cost: tuple[float | None, ...]
    trace_gradient: tuple[tuple[float | None, ...], ...]
    refused: str = ""

    def certified(self, module: int) -> bool:
        """Tell whether the gradient that was computed anew is within the bound."""
        gradient, bound = self.gradient_norm[module], self.bound[module]
        return self.cost[module] is not None and gradient is not None and gradient <= _CERTIFIED * (bound or 0)

    def spent(self, measure: Measure, module: int) -> float:
        """Return the passes or seconds that a module needed to come within its bound."""
        return {"passes": self.spent_passes, "seconds": self.spent_seconds}[measure][module]


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

    def of(self, case: str, solver: str) -> list[tuple[ComparedProblem, SolverRun]]:
        """Return the runs of a solver on the problems of a case, beside these."""
        problems = {problem.name: problem for problem in self.problems if problem.case == case}
        return [(problems[run.problem], run) for run in self.runs if run.solver == solver and run.problem in problems]

    def least_cost(self, problem: str, module: int) -> float:
        """Return the least certified F of a module that any solver reached from any start; ∞ for none."""
        costs = [run.cost[module] for run in self.runs if run.problem == problem]
        return min((cost for cost in costs if cost is not None), default=math.inf)

    def excess(self, run: SolverRun, module: int) -> float:
        """Return F / least F - 1 of a module; ∞ where it has no finite cost."""
        least, cost = self.least_cost(run.problem, module), run.cost[module]
        if cost is None:
            return math.inf
        return (cost - least) / max(abs(least), math.ulp(1.0))

    def outcome(self, run: SolverRun, module: int) -> str:
        """Say in a word how a module ended: `reached`, `another minimum`, or the name of its status.

        Law: `reached` is a certified gradient within its bound, at a cost that is the least known one to
        `SAME_COST`; `another minimum` is such a gradient at a larger cost.
        """
        if not run.certified(module):
            return run.status[module]
        return "reached" if self.excess(run, module) <= SAME_COST else "another minimum"

    def ranking(self, case: str) -> list[str]:
        """Return the solvers, those first that reach the least cost on most modules, then those of fewest passes."""

        def rank(solver: str) -> tuple[int, int]:
            return -self.outcomes(case, solver)["reached"], sum(run.passes for _, run in self.of(case, solver))

        return sorted(self.solvers, key=rank)

    def outcomes(self, case: str, solver: str) -> Counter[str]:
        """Count the outcomes of a solver on the modules on which it is judged."""
        return Counter(self.outcome(run, module) for run, module in self.judged(case, solver))

    def profile(self, case: str, measure: Measure) -> dict[str, tuple[list[float], list[float]]]:
        """Return the performance profile of each solver over the modules, and starts, of a case.

        Law: share(τ) is the part of the modules that a solver reached within τ times what the best solver
        spent: a step function from 0 up to at most 1, which never falls. A module that is not `reached`
        counts as never solved.

        Args:
            case: Name of the case.
            measure: `passes` or `seconds`.

        Returns:
            For each solver the ratios τ >= 1 at which its share rises, and the share from there on.

        Source: Dolan and Moré 2002, eq. 2.1.
        """
        spent: dict[str, list[float]] = {}
        for solver in self.solvers:
            spent[solver] = [
                max(run.spent(measure, module), math.ulp(1.0)) if self.outcome(run, module) == "reached" else math.inf
                for run, module in self.judged(case, solver)
            ]
        best = [min(column) for column in zip(*spent.values(), strict=True)]
        profiles = {}
        for solver, row in spent.items():
            ratios = sorted(x / least for x, least in zip(row, best, strict=True) if math.isfinite(x))
            levels = sorted(set(ratios))
            profiles[solver] = levels, [sum(x <= level for x in ratios) / len(row) for level in levels]
        return profiles

    def judged(self, case: str, solver: str) -> list[tuple[SolverRun, int]]:
        """Return the runs and modules on which a solver is judged: those whose mean is determined, or all where
        none is known to be.
        """
        pairs = [
            (problem.determined[module], run, module)
            for problem, run in self.of(case, solver)
            for module in range(len(problem.modules))
        ]
        known = [(run, module) for determined, run, module in pairs if determined == "yes"]
        return known or [(run, module) for _, run, module in pairs]
