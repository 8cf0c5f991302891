"""Methods tried on the same adapters: each merges once, and is scored on the same rows at the same norms."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from pydantic import BaseModel, ConfigDict

from riemerge._version import __version__
from riemerge.errors import AdapterError, NumericalError, RecipeError
from riemerge.formats.adapter import Adapter
from riemerge.merging.plan import plan
from riemerge.merging.sinks import MergeResult, collect
from riemerge.progress import Listener, Progress
from riemerge.recipes.candidates import Candidate
from riemerge.recipes.recipe import Recipe, make_recipe
from riemerge.records.evaluation_record import Look
from riemerge.study.norm_search import NORMS, search_norms
from riemerge.study.result_table import ResultTable, Row
from riemerge.study.scorer import Answers, Judge, Part, ask_answers, average_rows, count_rows

AVERAGE = "average"

_ALONE = "models"
_FROZEN = ConfigDict(frozen=True, extra="forbid")


@final
@dataclass(frozen=True)
class EvaluationPlan:
    """All that decides a score, and how it is computed: see `evaluation.evaluate`.

    Attributes:
        adapters: Adapters by name, in the order asked for.
        judge: The scorer.
        coefficients: Norms to try, as multiples of the plain average's; None for the search.
        specialists: By task the name of a model, or None.
        dtype: Dtype of the computation.
        out_dtype: Dtype of the written weights.
        heads: What becomes of whole tensors saved beside the factors.
        device: Device that computes.
        threads: Number of threads that work at once.
    """

    adapters: Mapping[str, Adapter]
    judge: Judge
    coefficients: tuple[float, ...] | None
    specialists: Mapping[str, str | None]
    dtype: str
    out_dtype: str | None
    heads: str | None
    device: str
    threads: int | None

    def recipe(self, candidate: Candidate, scale: float = 1.0) -> Recipe:
        """Return the recipe of a candidate at a scale, whatever the row's own is: it is what is searched.

        Raises:
            RecipeError: The method does not merge as many models, or needs more than adapters.
        """
        return make_recipe(
            {
                "merge_method": candidate.method,
                "models": [{"model": str(adapter.path)} for adapter in self.adapters.values()],
                "parameters": {**candidate.parameters, "scale": scale},
                "dtype": self.dtype,
                "out_dtype": self.out_dtype,
                "heads": self.heads,
            }
        )

    def merge(self, candidate: Candidate) -> MergeResult:
        """Merge the adapters as they are open by a candidate at scale 1, into memory."""
        opened = {adapter.path: adapter for adapter in self.adapters.values()}
        return collect(plan(self.recipe(candidate), opened=opened, device=self.device, threads=self.threads))

    def key(self, *more: Any) -> str:
        """Return a hash of what decides a score, and of more."""
        models = [[name, dict(adapter.sha256)] for name, adapter in self.adapters.items()]
        facts = [__version__, models, self.judge.text, dict(self.specialists), self.dtype, self.out_dtype]
        facts += filter(None, [self.heads])
        return hashlib.sha256(json.dumps([*facts, *more], sort_keys=True).encode()).hexdigest()

    def specialists_of(self, tasks: Iterable[str]) -> dict[str, str | None]:
        """Return by task the name of the model whose score is 1: as asked for, else that called like it.

        Raises:
            RecipeError: A specialist was named for a task that there is not.
        """
        known = list(tasks)
        if unknown := [task for task in self.specialists if task not in known]:
            raise RecipeError(
                f"specialists: {', '.join(unknown)}: no such task: the scorer has {', '.join(known)}"
            )
        named = {name: name for name in self.adapters if name in known}
        return dict.fromkeys(known) | named | dict(self.specialists)


@final
class Alone(BaseModel):
    """What was measured before any method.

    Attributes:
        name: Name of the row.
        key: Hash of what was asked.
        norm: ‖dW‖ of the plain average at its full rank, all modules together.
        test: Answers of each model on the test rows.
        dev: By task the specialist's score on the dev rows, where there is one.
    """

    model_config = _FROZEN
    name: str
    key: str
    norm: float
    test: tuple[Answers, ...]
    dev: dict[str, float]


@final
class Result(BaseModel):
    """What was measured of one method.

    Attributes:
        name: The method with its parameters.
        key: Hash of what was asked.
        refused: Why the method does not merge these adapters; the fields below are then empty.
        rank: Largest rank of a module.
        norm: ‖dW‖ of the merge at scale 1.
        looks: Looks on the dev rows, in their order.
        test: Answers on the test rows, at the coefficient of the best look.
    """

    model_config = _FROZEN
    name: str
    key: str
    refused: tuple[str, ...] = ()
    rank: int = 0
    norm: float = 0.0
    looks: tuple[Look, ...] = ()
    test: Answers = {}

    @property
    def best(self) -> Look:
        """The best look, the first of equal ones."""
        return max(self.looks, key=lambda look: look.normalised)


@final
class RefusedError(Exception):
    """A method, or the dtype that is written, has no answer for these adapters.

    Args:
        problems: Why it has none.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(*problems)
        self.problems = problems


def merge_or_refuse(merge: Callable[[], MergeResult]) -> MergeResult:
    """Return a merge that is not zero.

    Raises:
        RefusedError: The method does not merge these adapters, or what it makes of them is zero.
    """
    try:
        merged = merge()
    except (RecipeError, AdapterError, NumericalError) as fault:
        raise RefusedError(fault.problems) from None
    if not merged.record.totals.norm > 0.0:
        raise RefusedError(("the merged update is zero",))
    return merged


@final
class MethodTrials:
    """Scores models and methods, keeps each result as a row of a table, and takes it from there.

    Law: a result stays while what was asked, the method, its parameters and the coefficients are the same;
    all scores are for the same tasks and numbers of rows.

    Args:
        plan: What decides a score.
        table: The table of results.
        work: An empty folder.
        count: Number of methods that will be tried.
        progress: Called after each score.

    Attributes:
        alone: The models, each by itself.
        specialists: By task the name of the model whose score is 1; None for raw scores.

    Raises:
        RiemergeError: What `evaluate` raises.
    """

    def __init__(
        self, plan: EvaluationPlan, table: ResultTable, work: Path, count: int, progress: Listener | None
    ) -> None:
        self._plan, self._table, self._work = plan, table, work
        self._progress = progress or (lambda _: None)
        parts = 1 + plan.judge.parts
        self._scores_each = len(plan.coefficients or (*NORMS, "lower", "higher")) + plan.judge.parts
        self._done, self._block_end = 0, parts * len(plan.adapters)
        self._total = self._block_end + count * self._scores_each
        self._sizes: dict[Part, dict[str, int | None]] = {}
        self.alone = table.keep(_ALONE, plan.key(), self._measure_alone, Alone.model_validate)
        self._sizes["test"] = count_rows(self.alone.test[0])
        self.specialists = plan.specialists_of(self.alone.test[0])

    def result(self, candidate: Candidate) -> Result:
        """Return the result of one method: merged once, tried on dev, the best look scored on test.

        Raises:
            RiemergeError: What the scorer raises; a NumericalError for what is no score. A method that
                refuses these adapters has a result that says so.
        """
        # Results that are in the table, and scores that were not needed, count as done.
        self._done, self._block_end = self._block_end, self._block_end + self._scores_each
        key = self._plan.key(candidate.method, dict(candidate.parameters), self._plan.coefficients)
        return self._table.keep(candidate.name, key, lambda: self._measure(candidate), Result.model_validate)

    # --- the models alone -----------------------------------------------------------------------------------

    def _measure_alone(self) -> Row:
        # Whatever is wrong with the adapters, or with what is asked of all methods, is found by this merge.
        whole = self._plan.merge(Candidate(AVERAGE, {"rank": "sum"}))
        norm, models = whole.record.totals.norm, self._plan.adapters
        if not norm > 0.0:
            raise NumericalError("the average of the models is zero: it has no norm to bring others to")
        test = {name: self._ask(adapter.path, "test", name) for name, adapter in models.items()}
        specialists = self._plan.specialists_of(next(iter(test.values())))
        dev = test
        if self._plan.judge.parts:
            needed = [name for name in models if name in specialists.values()]
            dev = {name: self._ask(models[name].path, "dev", name) for name in needed}
        own = {
            part: {task: average_rows(answers[name])[task] for task, name in specialists.items() if name}
            for part, answers in (("test", test), ("dev", dev))
        }
        problems = [
            f"the score of {specialists[task]} ({part}) in {task} is {score:g}: others are divided by a "
            "specialist's, which must be above 0: name another model, or none"
            for part, scores in own.items()
            for task, score in scores.items()
            if score <= 0
        ]
        NumericalError.refuse(problems)
        return {"norm": norm, "test": list(test.values()), "dev": own["dev"]}

    # --- a method -------------------------------------------------------------------------------------------

    def _measure(self, candidate: Candidate) -> Row:
        try:
            merged = merge_or_refuse(lambda: self._plan.merge(candidate))
            return self._score(candidate.name, merged)
        except RefusedError as fault:
            return {"refused": fault.problems}

    def _score(self, name: str, merged: MergeResult) -> Row:
        """Return the looks at a merge, and its answers on the test rows at the best."""
        plan, norm = self._plan, merged.record.totals.norm
        unit = self.alone.norm / norm

        def ask(part: Part, coefficient: float) -> Answers:
            with self._write(merged, coefficient * unit) as folder:
                return self._ask(folder, part, name, coefficient)

        search = search_norms(
            lambda coefficient: ask("dev", coefficient),
            self.alone.dev,
            plan.coefficients or NORMS,
            refine=plan.coefficients is None,
        )
        test = search.answers
        if plan.judge.parts:
            test = ask("test", search.best)
        return {
            "rank": max(update.rank for update in merged.updates.values()),
            "norm": norm,
            "looks": [look.model_dump() for look in search.looks],
            "test": test,
        }

    @contextmanager
    def _write(self, merged: MergeResult, factor: float) -> Iterator[Path]:
        """Write a multiple of a merge to a folder, for as long as it is looked at."""
        folder = self._work / "adapter"
        try:
            try:
                merged.save_multiple(folder, factor)
            except NumericalError as fault:
                raise RefusedError(fault.problems) from None
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _ask(self, folder: Path, part: Part, name: str, coefficient: float | None = None) -> Answers:
        """Return what the scorer says, checked against what it said before."""
        label, short = name, name
        if coefficient is not None:
            label, short = f"{name} at {coefficient:.4g}", f"{name} at {coefficient:.3g}"
        judge = self._plan.judge
        answers = ask_answers(judge, folder.absolute(), part, label)
        sizes = count_rows(answers)
        tasks = self._sizes.setdefault("test", sizes)
        rows: Part = part if judge.parts else "test"
        expected = self._sizes.setdefault(rows, {task: sizes.get(task) for task in tasks})
        if problems := list(_compare_sizes(expected, sizes, f"the scores of {label} ({part})")):
            raise NumericalError(problems)
        self._done += 1
        scores = ", ".join(f"{task} {score:.4g}" for task, score in average_rows(answers).items())
        self._progress(Progress("evaluate", self._done, self._total, f"{short}: {part}: {scores}"))
        return {task: answers[task] for task in tasks}


def _compare_sizes(
    expected: Mapping[str, int | None], sizes: Mapping[str, int | None], scores: str
) -> Iterator[str]:
    """Yield what is not as it was before."""
    if lacking := [task for task in expected if task not in sizes]:
        yield f"{scores} lack {', '.join(lacking)}: expected all tasks each time"
    if more := [task for task in sizes if task not in expected]:
        yield f"{scores} have {', '.join(more)}, which others lack: expected the same tasks"
    for task, rows in expected.items():
        if task in sizes and sizes[task] != rows:
            yield f"{scores} are of {sizes[task] or 'no'} rows of {task}: expected {rows or 'no'}, as before"
