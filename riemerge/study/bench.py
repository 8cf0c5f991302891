"""A test bench: models and methods scored on the same rows, at the same norms, what was found kept in files.

Every merged update is brought to the norm of the plain average over all modules first. So a coefficient means
the same for sums and means, every method is tried at the same norms, and none has more looks than another.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

from pydantic import BaseModel, ConfigDict, ValidationError

from riemerge._version import __version__
from riemerge.errors import AdapterError, NumericalError, RecipeError
from riemerge.formats.files.staging import write_atomically
from riemerge.formats.files.text import shown
from riemerge.formats.peft import Adapter
from riemerge.merging.plan import plan
from riemerge.merging.sinks import MergeResult, collect
from riemerge.progress import Listener, Progress
from riemerge.recipes.candidates import Candidate
from riemerge.recipes.recipe import Recipe, make_recipe
from riemerge.records.run_record import Look
from riemerge.study.comparison import normalised
from riemerge.study.scores import Answers, Judge, Part, answers_of, means_of, sizes_of

AVERAGE = "average"

NORMS = (1.0, 2.0, 4.0)
"""Coefficients of the first looks; two more are half an octave either side of the best of them."""

HALF_OCTAVE = math.sqrt(2.0)

_ALONE = "models"
_LONGEST = 100  # characters of the name of a file
_log = logging.getLogger(__name__)
_FROZEN = ConfigDict(frozen=True, extra="forbid")


@final
@dataclass(frozen=True)
class Asked:
    """All that decides a score, and how it is computed: see `evaluation.evaluate`.

    Attributes:
        adapters: By name, in the order asked for.
        judge: The scorer.
        coefficients: None for the search.
        specialists: By task the name of a model, or None.
        dtype: Of the computation.
        out_dtype: What is written.
        device: Where it is computed.
        threads: How many work at once.
    """

    adapters: Mapping[str, Adapter]
    judge: Judge
    coefficients: tuple[float, ...] | None
    specialists: Mapping[str, str | None]
    dtype: str
    out_dtype: str | None
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
                "models": [{"model": str(one.path)} for one in self.adapters.values()],
                "parameters": {**candidate.parameters, "scale": scale},
                "dtype": self.dtype,
                "out_dtype": self.out_dtype,
            }
        )

    def merge(self, recipe: Recipe, *, round_at_once: bool = False) -> MergeResult:
        """Merge the adapters as they are open, as `merge` does."""
        opened = {adapter.path: adapter for adapter in self.adapters.values()}
        planned = plan(recipe, opened=opened, device=self.device, threads=self.threads)
        return collect(planned, round_at_once=round_at_once)

    def key(self, *said: Any) -> str:
        """Return a hash of what decides a score, and of more."""
        models = [[name, dict(one.sha256)] for name, one in self.adapters.items()]
        decides = [__version__, models, self.judge.text, dict(self.specialists), self.dtype, self.out_dtype]
        return hashlib.sha256(json.dumps([*decides, *said], sort_keys=True).encode()).hexdigest()

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
        return {task: self.specialists.get(task, task if task in self.adapters else None) for task in known}


@final
class Alone(BaseModel):
    """What was measured before any method.

    Attributes:
        key: Of what was asked.
        norm: ‖dW‖ of the plain average, all of its rank, over all modules.
        test: Of each model its answers on the test rows.
        dev: By task the specialist's score on the dev rows, where there is one.
    """

    model_config = _FROZEN
    key: str
    norm: float
    test: tuple[Answers, ...]
    dev: dict[str, float]


@final
class Result(BaseModel):
    """What was measured of one method.

    Attributes:
        key: Of what was asked.
        refused: Why it does not merge these adapters; nothing else is then said.
        rank: Largest rank of a module.
        norm: ‖dW‖ of the merge at scale 1.
        looks: On the dev rows, in their order.
        test: Answers on the test rows, at the coefficient of the best look.
    """

    model_config = _FROZEN
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


_Kept = TypeVar("_Kept", Alone, Result)


class _RefusedError(Exception):
    """A method, or the dtype that is written, has no answer for these adapters."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(*problems)
        self.problems = problems


@final
class Bench:
    """Scores models and methods, keeps each result in a file of its own, and takes it from there.

    Law: a result stays while what was asked, the method, its parameters and the coefficients are the same;
    all scores are of the same tasks and numbers of rows.

    Args:
        asked: What decides a score.
        results: The folder of the files.
        work: An empty folder.
        count: Number of methods that will be tried.
        progress: Called after each score; the total counts five looks and a test for each method.

    Attributes:
        alone: The models, each by itself.
        specialists: By task the name of the model whose score is 1; None for raw scores.

    Raises:
        RiemergeError: As `evaluation.evaluate`.
    """

    def __init__(
        self, asked: Asked, results: Path, work: Path, count: int, progress: Listener | None
    ) -> None:
        self._asked, self._results, self._work, self._tell = asked, results, work, progress
        # One score of a model or look for each part that the scorer tells apart.
        parts = 1 + asked.judge.parts
        self._each = len(asked.coefficients or (*NORMS, 0.0, 0.0)) + asked.judge.parts
        self._done, self._total = 0, parts * len(asked.adapters) + count * self._each
        self._begun = self._total - count * self._each
        self._sizes: dict[Part, dict[str, int | None]] = {}
        self.alone = self._kept(_ALONE, Alone, asked.key(), self._measure_alone)
        self._sizes["test"] = sizes_of(self.alone.test[0])
        self.specialists = asked.specialists_of(self.alone.test[0])

    def result(self, candidate: Candidate) -> Result:
        """Return the result of one method: merged once, tried on dev, the best look scored on test.

        Raises:
            RiemergeError: As the scorer; a NumericalError for what is no score. A method that refuses these
                adapters has a result that says so.
        """
        said = [candidate.method, dict(candidate.parameters), self._asked.coefficients]
        self._done, self._begun = self._begun, self._begun + self._each
        name = re.sub(r"[^\w.=,-]", "_", candidate.name.replace(":", ","))
        return self._kept(name, Result, self._asked.key(*said), lambda key: self._measure(candidate, key))

    def _kept(self, name: str, kind: type[_Kept], key: str, make: Callable[[str], _Kept]) -> _Kept:
        if len(name) > _LONGEST:
            name = f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        path = self._results / f"{name}.json"
        if os.path.lexists(path):
            why = "cannot be read as a result"
            with suppress(OSError, ValidationError):
                found = kind.model_validate_json(path.read_bytes())
                if found.key == key:
                    return found
                why = "is of other models or options, another scorer or another version of riemerge"
            _log.warning("%s: %s: it is measured again", shown(str(path)), why)
        result = make(key)
        write_atomically(path, (result.model_dump_json(indent=1) + "\n").encode())
        return result

    # --- the models alone -----------------------------------------------------------------------------------

    def _measure_alone(self, key: str) -> Alone:
        # Whatever is wrong with the adapters, or with what is asked of all methods, is found by this merge.
        whole = self._asked.merge(self._asked.recipe(Candidate(AVERAGE, {"rank": "sum"})))
        norm, models = whole.record.totals.norm, self._asked.adapters
        if not norm > 0.0:
            raise NumericalError("the average of the models is zero: it has no norm to bring others to")
        test = {name: self._answers(one.path, "test", name) for name, one in models.items()}
        specialists = self._asked.specialists_of(next(iter(test.values())))
        dev = test
        if self._asked.judge.parts:
            needed = [name for name in models if name in specialists.values()]
            dev = {name: self._answers(models[name].path, "dev", name) for name in needed}
        own = {
            part: {task: means_of(found[name])[task] for task, name in specialists.items() if name}
            for part, found in (("test", test), ("dev", dev))
        }
        problems = [
            f"the score of {specialists[task]} ({part}) in {task} is {score:g}: others are divided by a "
            "specialist's, which must be above 0: name another model, or none"
            for part, scores in own.items()
            for task, score in scores.items()
            if score <= 0
        ]
        if problems:
            raise NumericalError(problems)
        return Alone(key=key, norm=norm, test=tuple(test.values()), dev=own["dev"])

    # --- a method -------------------------------------------------------------------------------------------

    def _measure(self, candidate: Candidate, key: str) -> Result:
        try:
            merged = self._merged(candidate)
            norm = merged.record.totals.norm
            looks, test = self._looked(candidate.name, merged, self.alone.norm / norm)
        except _RefusedError as fault:
            return Result(key=key, refused=fault.problems)
        rank = max(one.rank for one in merged.updates.values())
        return Result(key=key, rank=rank, norm=norm, looks=looks, test=test)

    def _merged(self, candidate: Candidate) -> MergeResult:
        try:
            merged = self._asked.merge(self._asked.recipe(candidate))
        except (RecipeError, AdapterError, NumericalError) as fault:
            raise _RefusedError(fault.problems) from None
        if not merged.record.totals.norm > 0.0:
            raise _RefusedError(("the merged update is zero",))
        return merged

    def _looked(self, name: str, merged: MergeResult, unit: float) -> tuple[tuple[Look, ...], Answers]:
        """Its looks, and the answers on the test rows at the best."""
        seen: dict[float, Answers] = {}

        def look(coefficient: float) -> Look:
            with self._written(merged, coefficient * unit) as folder:
                answers = seen[coefficient] = self._answers(folder, "dev", name, coefficient)
            dev = means_of(answers)
            return Look(coefficient=coefficient, dev=dev, normalised=normalised(dev, self.alone.dev))

        looks = looked(look, self._asked.coefficients)
        best = max(looks, key=lambda one: one.normalised).coefficient
        if not self._asked.judge.parts:
            return looks, seen[best]
        with self._written(merged, best * unit) as folder:
            return looks, self._answers(folder, "test", name, best)

    @contextmanager
    def _written(self, merged: MergeResult, factor: float) -> Iterator[Path]:
        """A multiple of a merge as a folder, for as long as it is looked at."""
        folder = self._work / "adapter"
        try:
            try:
                merged.save_multiple(folder, factor)
            except NumericalError as fault:
                raise _RefusedError(fault.problems) from None
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _answers(self, folder: Path, part: Part, name: str, coefficient: float | None = None) -> Answers:
        what = name if coefficient is None else f"{name} at {coefficient:.4g}"
        judge = self._asked.judge
        answers = answers_of(judge, folder.absolute(), part, what)
        now = sizes_of(answers)
        tasks = self._sizes.setdefault("test", now)
        own: Part = part if judge.parts else "test"
        before = self._sizes.setdefault(own, {task: now.get(task) for task in tasks})
        if problems := _unlike(before, now, f"the scores of {what} ({part})"):
            raise NumericalError(problems)
        self._done += 1
        if self._tell is not None:
            scores = ", ".join(f"{task} {score:.4g}" for task, score in means_of(answers).items())
            at = "" if coefficient is None else f" at {coefficient:.3g}"
            self._tell(Progress("evaluate", self._done, self._total, f"{name}{at}: {part}: {scores}"))
        return {task: answers[task] for task in tasks}


def looked(look: Callable[[float], Look], coefficients: Sequence[float] | None) -> tuple[Look, ...]:
    """Look at some coefficients; without them at `NORMS`, then half an octave either side of the best.

    Law: as many looks whatever is seen; which the last two are, the first three decide (ties: the first).
    """
    looks = [look(one) for one in coefficients or NORMS]
    if not coefficients:
        best = max(looks, key=lambda one: one.normalised).coefficient
        looks += [look(best / HALF_OCTAVE), look(best * HALF_OCTAVE)]
    return tuple(looks)


def _unlike(before: Mapping[str, int | None], now: Mapping[str, int | None], what: str) -> list[str]:
    """What is not as it was before."""
    lacking, more = ([task for task in one if task not in two] for one, two in ((before, now), (now, before)))
    rows = {task: [size or "no" for size in (now[task], before[task])] for task in before if task in now}
    return [
        *([f"{what} lack {', '.join(lacking)}: expected all tasks each time"] if lacking else []),
        *([f"{what} have {', '.join(more)}, which others lack: expected the same tasks"] if more else []),
        *(
            f"{what} are of {one} rows of {task}: expected {other}, as before"
            for task, (one, other) in rows.items()
            if one != other
        ),
    ]
