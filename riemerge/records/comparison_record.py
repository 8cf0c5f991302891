"""Comparisons of solvers: what each did on each problem, as data that can be written and read again."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from functools import cached_property
from typing import NamedTuple, final

from pydantic import BaseModel, ConfigDict

# JSON has no infinity: an F that is not finite is written as a text, and read as the number.
_FROZEN = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

MEASURES = {"passes": "passes over all logarithms", "seconds": "seconds"}
"""What a solver spends: its name, and its unit in words."""

SAME_COST = 1e-8
"""Two certified costs are the same where they differ by at most this share of the least."""

# The certificate is computed anew, with logarithms that are followed to their ends; its gradient is that of
# the last iterate to round-off, which matters where that is just below its bound.
_CERTIFIED = 1.5


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
    """What one solver did on one problem from one start.

    Attributes:
        problem: Name of the problem.
        solver: Text of the solver.
        start: 0 for the solver's own start, from 1 on the drawn ones, which are the same for all solvers.
        status: How each of K modules ended: the name of a `Status`, or `REFUSED`.
        cost: Certified F of each module.
        gradient_norm: Certified ‖gradient‖ of each module.
        horizontality: Largest vertical part of a logarithm of each module.
        spent: Passes and seconds of the whole run, by name.
        needed: Passes and seconds, by name, up to the first iterate at which each module's gradient was
            within its bound; those of the whole run where it never was.
        counts: Number of each primitive that was computed, all modules together.
        trace: Passes and seconds, by name, up to each accepted iterate.
        trace_gradient: ‖gradient‖ of each module at each accepted iterate, to three digits.
        refused: Why the solver did not take this problem; empty where it did.
    """

    model_config = _FROZEN
    problem: str
    solver: str
    start: int
    status: tuple[str, ...]
    cost: tuple[float, ...]
    gradient_norm: tuple[float, ...]
    horizontality: tuple[float, ...]
    spent: dict[str, float]
    needed: dict[str, tuple[float, ...]]
    counts: dict[str, int] = {}
    trace: dict[str, tuple[float, ...]] = dict.fromkeys(MEASURES, ())
    trace_gradient: tuple[tuple[float, ...], ...] = ()
    refused: str = ""


class Outcome(NamedTuple):
    """How a solver ended on one module, from one start.

    Attributes:
        case: Name of the case.
        problem: Name of the problem.
        module: Name of the module.
        determined: Whether the points determine its mean.
        judged: Whether solvers are judged on it: where the mean is determined, or on all modules of a case in
            which none is known to be.
        solver: Text of the solver.
        start: Number of the start.
        outcome: `reached` where the certified gradient is within its bound and the cost is the least of all
            solvers and starts to `SAME_COST`; `another minimum` for such a gradient at a larger cost; else
            the name of the status.
        status: Name of the status.
        cost: Certified F.
        above_least: F / least F - 1.
        gradient_norm: Certified ‖gradient‖.
        horizontality: Largest vertical part of a logarithm.
        passes: Passes up to the certificate.
        seconds: Seconds up to the certificate.
    """

    case: str
    problem: str
    module: str
    determined: str | None
    judged: bool
    solver: str
    start: int
    outcome: str
    status: str
    cost: float
    above_least: float
    gradient_norm: float
    horizontality: float
    passes: float
    seconds: float


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
        notes: What was asked for and could not be compared, and why.
    """

    model_config = _FROZEN
    tol: float
    max_passes: int
    seed: int
    versions: dict[str, str]
    problems: tuple[ComparedProblem, ...]
    runs: tuple[SolverRun, ...]
    notes: tuple[str, ...] = ()

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the cases, each once."""
        return tuple(dict.fromkeys(problem.case for problem in self.problems))

    @property
    def solvers(self) -> tuple[str, ...]:
        """Texts of the solvers, each once."""
        return tuple(dict.fromkeys(run.solver for run in self.runs))

    @cached_property
    def outcomes(self) -> tuple[Outcome, ...]:
        """How each run ended on each of its modules."""
        problems = {problem.name: problem for problem in self.problems}
        known = {problem.case for problem in self.problems if "yes" in problem.determined}
        least: dict[tuple[str, int], float] = defaultdict(lambda: math.inf)
        for run in self.runs:
            for k, cost in enumerate(run.cost):
                least[run.problem, k] = min(least[run.problem, k], cost)
        outcomes = []
        for run in self.runs:
            case = problems[run.problem].case
            modules = zip(problems[run.problem].modules, problems[run.problem].determined, strict=True)
            for k, (module, determined) in enumerate(modules):
                cost, best, gradient = run.cost[k], least[run.problem, k], run.gradient_norm[k]
                excess, outcome = math.inf, run.status[k]
                if cost < math.inf:
                    excess = (cost - best) / max(abs(best), math.ulp(1.0))
                    if gradient <= _CERTIFIED * self.tol * max(1.0, math.sqrt(2 * abs(cost))):
                        outcome = ("another minimum", "reached")[excess <= SAME_COST]
                judged = case not in known or determined == "yes"
                names = (case, run.problem, module, determined, judged, run.solver, run.start)
                needed = (run.needed[measure][k] for measure in MEASURES)
                numbers = (cost, excess, gradient, run.horizontality[k], *needed)
                outcomes.append(Outcome._make((*names, outcome, run.status[k], *numbers)))
        return tuple(outcomes)

    def judge(self, case: str, solver: str) -> list[Outcome]:
        """Return the outcomes of a solver on the modules of a case on which it is judged."""
        return [row for row in self.outcomes if row.judged and (row.case, row.solver) == (case, solver)]

    def count(self, case: str, solver: str) -> Counter[str]:
        """Count the outcomes of a solver on the modules, and starts, on which it is judged."""
        return Counter(row.outcome for row in self.judge(case, solver))

    def select(self, case: str, solver: str) -> list[SolverRun]:
        """Return the runs of a solver on the problems of a case."""
        names = {problem.name for problem in self.problems if problem.case == case}
        return [run for run in self.runs if run.solver == solver and run.problem in names]

    def ranking(self, case: str) -> list[str]:
        """Return the solvers: those that reach the least cost on most modules first, at fewest passes."""

        def rank(solver: str) -> tuple[int, float]:
            passes = sum(run.spent["passes"] for run in self.select(case, solver))
            return -self.count(case, solver)["reached"], passes

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
        rows = {solver: self.judge(case, solver) for solver in self.solvers}
        least: dict[tuple[str, str, int], float] = defaultdict(lambda: math.inf)
        needed = {
            solver: {
                (row.problem, row.module, row.start): max(getattr(row, measure), math.ulp(1.0))
                for row in judged
                if row.outcome == "reached"
            }
            for solver, judged in rows.items()
        }
        for reached in needed.values():
            for key, spent in reached.items():
                least[key] = min(least[key], spent)
        return {
            solver: (
                sorted(spent / least[key] for key, spent in reached.items()),
                [place / len(rows[solver]) for place in range(1, len(reached) + 1)],
            )
            for solver, reached in needed.items()
        }
