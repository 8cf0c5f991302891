"""Soups and sweeps: models chosen by their score, and merges on a grid of weights."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

from pydantic import BaseModel, ConfigDict

from riemerge.errors import OutputError, RecipeError, may_pass
from riemerge.formats.files.staging import (
    check_output,
    exchange,
    hidden_prefix,
    overlaps,
    publish,
    write_atomically,
    writing,
)
from riemerge.formats.files.text import listed, shown
from riemerge.merging.inputs import Models, counting, display_names, folders_of
from riemerge.merging.plan import plan, plan_together
from riemerge.merging.sinks import RECORD_FILE
from riemerge.merging.verbs import merge_into
from riemerge.merging.written_before import made_by, read_record, why_not_as_written
from riemerge.methods import METHODS, find_method
from riemerge.progress import Listener, Progress
from riemerge.recipes.recipe import Recipe, read_recipe
from riemerge.records.run_record import RunRecord
from riemerge.study.scores import Scorer, score_of

SOUP_FILE = "soup.json"
SWEEP_FILE = "sweep.json"

_ALONE = "average"
_FROZEN = ConfigDict(frozen=True, extra="forbid")
_log = logging.getLogger(__name__)


@final
class Trial(BaseModel):
    """One merge that was scored: names of its models, and its score."""

    model_config = _FROZEN
    models: tuple[str, ...]
    score: float


@final
class SoupRecord(BaseModel):
    """The content of `soup.json`: each of T models alone, then each that was tried in the soup; the soup."""

    model_config = _FROZEN
    method: str
    trials: tuple[Trial, ...]
    chosen: tuple[str, ...]
    score: float


@final
class SweepPoint(BaseModel):
    """One merge of a sweep: its folder, T weights, and totals of its run record (None for models of weight 0,
    and for distances that the method does not have).
    """

    model_config = _FROZEN
    folder: str
    weights: tuple[float, ...]
    norm: float
    distances: tuple[float | None, ...] | None
    relative_distances: tuple[float | None, ...]
    score: float | None


@final
class SweepRecord(BaseModel):
    """The content of `sweep.json`."""

    model_config = _FROZEN
    method: str
    models: tuple[str, ...]
    points: tuple[SweepPoint, ...]


def greedy_soup(
    models: Sequence[str | Path],
    folder: str | Path,
    scorer: Scorer,
    *,
    method: str = "average",
    statistics: Sequence[str | Path] = (),
    device: str = "cpu",
    threads: int | None = None,
    progress: Listener | None = None,
    **asked: Any,
) -> SoupRecord:
    """Merge those of several models that score best together, and write the merge with a `soup.json` in it.

    Law: from the best alone to the worst (ties by place), a model stays in the soup where the score does not
    drop, so no model alone scores more. What is scored is the folder as it would be written. A model alone is
    itself, whatever the method, but for `rank`, `scale` and dtypes. All models are opened and checked against
    each other before the first score. The folder appears whole or not at all.
    *Cost*: 2T merges and 2T - 1 scores; the space of one merge.

    Args:
        models: T folders of adapters or full checkpoints, at least one.
        folder: The new folder.
        scorer: Gives the score of a model in a folder: a finite number, higher is better.
        method: A row of the table whose models have no order; all weights are 1.
        statistics: A folder for each model, for a method that needs them.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: How many work at once.
        progress: Called after each trial.
        asked: What else a recipe says: `base_model`, `dtype`, `out_dtype`, `out_type`, any parameter.

    Raises:
        RiemergeError: As `merge_into`; a NumericalError for a score that is no finite number.

    **Source**: Wortsman et al. 2022, Model soups, recipe 1.
    """
    recipe = _recipe(models, method, statistics, asked)
    if find_method(method).ordered:
        raise RecipeError(
            f"merge_method: {method} takes its models in the order of a run, and a soup takes them by their "
            "scores: choose another"
        )
    names, target = _names(recipe), Path(folder).absolute()
    check_output(target, folders_of(recipe))
    alone = [_weighted(recipe, [float(i == place) for i in range(len(names))]) for place in range(len(names))]
    opened = plan_together(recipe, alone, device=device, threads=threads)
    trials: list[Trial] = []
    with writing(target):
        made = TemporaryDirectory(prefix=hidden_prefix(target), dir=target.parent, ignore_cleanup_errors=True)
    with made as work:
        stage = Path(work, "soup")

        def merge(places: Sequence[int]) -> None:
            weights = [float(place in places) for place in range(len(names))]
            merge_into(_weighted(recipe, weights), stage, device=device, threads=threads, opened=opened)

        def tried(places: Sequence[int]) -> float:
            merge(places)
            chosen = tuple(names[place] for place in places)
            score = score_of(scorer, stage, " + ".join(chosen))
            shutil.rmtree(stage, ignore_errors=True)  # a scorer may have moved it
            trials.append(Trial(models=chosen, score=score))
            if progress is not None:
                text = f"{' + '.join(chosen)}: score {score:.6g}"
                progress(Progress("soup", len(trials), 2 * len(names) - 1, text))
            return score

        soup, score = _greedy(len(names), tried)
        chosen = tuple(names[place] for place in soup)
        # Merged anew, so that nothing is in it that the scorer left there.
        merge(soup)
        record = SoupRecord(method=method, trials=tuple(trials), chosen=chosen, score=score)
        write_atomically(stage / SOUP_FILE, _json(record))
        with writing(target):
            publish(stage, target)
    return record


def sweep(
    models: Sequence[str | Path],
    folder: str | Path,
    steps: int = 11,
    *,
    scorer: Scorer | None = None,
    method: str = "average",
    statistics: Sequence[str | Path] = (),
    device: str = "cpu",
    threads: int | None = None,
    progress: Listener | None = None,
    **asked: Any,
) -> SweepRecord:
    """Merge models with all weights of a grid, each merge in a folder of its own, beside a `sweep.json`.

    Law: each folder of `grid` is what `merge_into` makes of its weights, whole or not at all; a model alone
    is itself, as in `greedy_soup`. All models are opened and checked against each other before the first
    merge. Folders that are there already must have run records of the same recipe and of all that it reads,
    file by file; if any has not, nothing is done. Such a folder stays if its files are still those that this
    version of riemerge wrote; if they are not, it is made again, and the log says why.

    Args:
        models: T >= 2 folders of adapters or full checkpoints.
        folder: The folder around all; made if it is not there.
        steps: Points on each edge of the simplex of weights, at least 2.
        scorer: Gives the score of a model in a folder: a finite number, higher is better; it sees the
            folders of the sweep.
        method: A row of the table that merges T models.
        statistics: A folder for each model.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: How many work at once.
        progress: Called after each point.
        asked: What else a recipe says.

    Raises:
        RiemergeError: As `greedy_soup`; an OutputError for folders that are there and are something else. Its
            notes say which merges are there.

    **Source**: Rame et al. 2023, Rewarded soups.
    """
    recipe, root = _recipe(models, method, statistics, asked), Path(folder).absolute()
    if steps < 2 or len(models) < 2:
        raise RecipeError(f"{len(models)} models, {steps} steps: expected at least 2 models and 2 steps")
    recipes = {name: _weighted(recipe, weights) for name, weights in grid(len(models), steps)}
    if not os.path.lexists(root):
        check_output(root, folders_of(recipe))
    opened = plan_together(recipe, recipes.values(), device=device, threads=threads)
    there = _records(root, recipes, opened)
    points: list[SweepPoint] = []

    def merge(one: Recipe, target: Path) -> RunRecord:
        return merge_into(one, target, device=device, threads=threads, opened=opened).record

    with _around(root, recipes):
        for name, one in recipes.items():
            record = there.get(name)
            if record is None:
                record = merge(one, root / name)
            elif why := why_not_as_written(root / name, record):
                _log.warning("%s: is made again: %s", shown(str(root / name)), shown(why))
                record = _again(root, name, partial(merge, one))
            score = None if scorer is None else score_of(scorer, root / name, name)
            points.append(_point(name, one, record, score))
            if progress is not None:
                progress(Progress("sweep", len(points), len(recipes), name))
        swept = SweepRecord(method=method, models=_names(recipe), points=tuple(points))
        write_atomically(root / SWEEP_FILE, _json(swept))
    return swept


def grid(models: int, steps: int) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield the points of a simplex: a name for each, and its weights, of sum 1.

    >>> [name for name, _ in grid(2, 3)], [name for name, _ in grid(3, 2)]
    (['0.00', '0.50', '1.00'], ['1.00-0.00-0.00', '0.00-1.00-0.00', '0.00-0.00-1.00'])

    Args:
        models: T >= 2; of two, the name is the weight of the second.
        steps: Points on each edge, at least 2.
    """
    parts = steps - 1
    digits = max(2, len(str(parts - 1)))  # as many as tell the points apart
    for counts in _splits(parts, models):
        weights = tuple(count / parts for count in counts)
        named = weights[1:] if models == 2 else weights
        yield "-".join(f"{weight:.{digits}f}" for weight in named), weights


def _greedy(count: int, score: Callable[[Sequence[int]], float]) -> tuple[list[int], float]:
    """The places that make a soup, in the order in which they come in, and its score."""
    alone = [score([place]) for place in range(count)]
    first, *others = sorted(range(count), key=lambda place: (-alone[place], place))
    soup, best = [first], alone[first]
    for place in others:
        found = score([*soup, place])
        if found >= best:
            soup, best = [*soup, place], found
    return soup, best


# --- recipes ------------------------------------------------------------------------------------------------


def _recipe(
    models: Sequence[str | Path], method: str, statistics: Sequence[str | Path], asked: Mapping[str, Any]
) -> Recipe:
    """What is asked for, with all weights 1."""
    if own := {"weight", "t"} & asked.keys():
        raise RecipeError(
            f"{', '.join(sorted(own))}: soups and sweeps have weights of their own: leave it out"
        )
    # Not as text, so that no folder's name is taken for a weight or a recipe.
    sources = [(str(model), 1.0) for model in models]
    return read_recipe(sources, {"merge_method": method, **asked}, [str(path) for path in statistics])


def _weighted(recipe: Recipe, weights: Sequence[float]) -> Recipe:
    """The recipe with other weights; for a model alone, the average of one."""
    alone = sum(weight != 0 for weight in weights) == 1
    said: dict[str, Any] = {}
    if alone:
        takes = METHODS[_ALONE].parameters
        parameters = {name: value for name, value in recipe.parameters.items() if name in takes}
        said = {"merge_method": _ALONE, "parameters": parameters, "base_statistics": None}
    models = tuple(
        entry.model_copy(
            update={"parameters": {"weight": weight}, "statistics": None if alone else entry.statistics}
        )
        for entry, weight in zip(recipe.models, weights, strict=True)
    )
    return recipe.model_copy(update={"models": models, **said})


def _names(recipe: Recipe) -> tuple[str, ...]:
    return display_names([entry.model for entry in recipe.models])


def _splits(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as a sum of so many, the greatest first part first."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total, -1, -1):
        for rest in _splits(total - first, parts - 1):
            yield first, *rest


# --- what is there already, and what is written -------------------------------------------------------------


def _records(root: Path, recipes: Mapping[str, Recipe], opened: Models) -> dict[str, RunRecord]:
    """The run records of those folders that are there already; OutputError names all that are others."""
    records: dict[str, RunRecord] = {}
    problems = []
    for name, recipe in recipes.items():
        problems += overlaps(root / name, folders_of(recipe))
        if not os.path.lexists(root / name):
            continue
        record = read_record(root / name)
        if record is not None and made_by(plan(recipe, opened=opened), record):
            records[name] = record
        else:
            problems.append(
                f"{root / name}: exists already, and its {RECORD_FILE} does not say this recipe and these "
                "files: choose another folder or remove it"
            )
    if problems:
        raise OutputError(problems)
    return records


@contextmanager
def _around(root: Path, names: Collection[str]) -> Iterator[None]:
    """The folder of a sweep: gone again if nothing came into it; else the notes of a fault say what did."""
    new = not os.path.lexists(root)
    with writing(root):
        root.mkdir(exist_ok=True)
    try:
        yield
    except BaseException as fault:
        with suppress(OSError):  # it is not empty, which is as it should be
            if new:
                root.rmdir()
        if there := [name for name in names if (root / name).is_dir()]:
            advice = ": the same command goes on from them" if may_pass(fault) else ""
            fault.add_note(f"{root}: holds {len(there)} of {len(names)} merges ({listed(there)}){advice}")
        raise


def _again(root: Path, name: str, merge: Callable[[Path], RunRecord]) -> RunRecord:
    """Merge anew what is there, which stays until the new one is whole."""
    with writing(root):
        made = TemporaryDirectory(prefix=".riemerge-", dir=root, ignore_cleanup_errors=True)
    with made as work:
        record = merge(Path(work, "new"))
        with writing(root):  # the table may be of what was there
            (root / SWEEP_FILE).unlink(missing_ok=True)
        exchange(Path(work, "new"), root / name, Path(work, "old"))
    return record


def _point(name: str, recipe: Recipe, record: RunRecord, score: float | None) -> SweepPoint:
    def everywhere(values: Sequence[float | None]) -> tuple[float | None, ...]:
        known = dict(zip(counting(recipe), values, strict=True))
        return tuple(known.get(place) for place in range(len(recipe.models)))

    totals = record.totals
    return SweepPoint(
        folder=name,
        weights=tuple(entry.parameters["weight"] for entry in recipe.models),
        norm=totals.norm,
        distances=None if totals.distances is None else everywhere(totals.distances),
        relative_distances=everywhere(totals.relative_distances),
        score=score,
    )


def _json(record: BaseModel) -> bytes:
    return (record.model_dump_json(indent=2) + "\n").encode()
