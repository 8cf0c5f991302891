"""Sweeps: merges on a grid of weights, each in a folder of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, final

from pydantic import BaseModel, ConfigDict

from riemerge.errors import OutputError, RecipeError
from riemerge.formats.files.staging import check_output, overlaps, write_atomically
from riemerge.formats.files.text import list_names
from riemerge.merging.inputs import Models, counting, folders_of
from riemerge.merging.plan import plan, plan_together
from riemerge.merging.shared_inputs import SharedInputs
from riemerge.merging.sinks import RECORD_FILE
from riemerge.merging.written_before import is_record_of, read_record
from riemerge.progress import Listener, Progress
from riemerge.recipes.recipe import Recipe
from riemerge.records.run_record import RunRecord
from riemerge.study.kept_merges import keep_merge, study_folder
from riemerge.study.reweighting import equal_weights, model_names, reweight, to_json
from riemerge.study.scorer import Scorer, ask_score

SWEEP_FILE = "sweep.json"

_FROZEN = ConfigDict(frozen=True, extra="forbid")


@final
class SweepPoint(BaseModel):
    """One merge of a sweep.

    Attributes:
        folder: Name of its folder.
        weights: The T weights.
        norm: ‖dW‖ of the merge, all modules together.
        distances: T distances to the models in the geometry of the method, None to those of weight 0; None
            where the method has no distances.
        relative_distances: ‖dW - dWᵢ‖ / ‖dWᵢ‖ for T models; None for those of weight 0.
        score: What the scorer said; None without one.
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
    """The content of `sweep.json`.

    Attributes:
        method: Row of the table that merged the models.
        models: Names of the T models.
        points: The merges, in the order of the grid.
    """

    model_config = _FROZEN
    method: str
    models: tuple[str, ...]
    points: tuple[SweepPoint, ...]


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
    **options: Any,
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
        statistics: Folder of statistics of each model, for a method that needs them.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: Number of threads that work at once; all CPUs if not given.
        progress: Called after each point.
        options: What else a recipe says: `base_model`, `dtype`, `out_dtype`, `out_type`, any parameter.

    Returns:
        The content of `sweep.json`.

    Raises:
        RiemergeError: What `greedy_soup` raises; an OutputError for folders that are there and are something
            else. Its notes say which merges are there.

    Cost:
        Each module of each model is read once, up to `shared_inputs.BYTES` of factors, and reduced once for
        all points that have the same models; each point is lifted, rounded and written by itself.

    Source:
        Rame et al. 2023, Rewarded soups.
    """
    recipe, root = equal_weights(models, method, statistics, options), Path(folder).absolute()
    if steps < 2 or len(models) < 2:
        raise RecipeError(f"{len(models)} models, {steps} steps: expected at least 2 models and 2 steps")
    recipes = {name: reweight(recipe, weights) for name, weights in grid(len(models), steps)}
    if not os.path.lexists(root):
        check_output(root, folders_of(recipe))
    opened = plan_together(recipe, recipes.values(), device=device, threads=threads)
    _check_folders(root, recipes, opened)
    shared, points = SharedInputs(opened), list[SweepPoint]()

    def describe(names: list[str]) -> str:
        return f"holds {len(names)} of {len(recipes)} merges ({list_names(names)})"

    with study_folder(root, recipes, describe, "them"):
        for name, point in recipes.items():
            target, table = root / name, root / SWEEP_FILE
            planned = shared.plan(point, device=device, threads=threads)
            record, _ = keep_merge(planned, target, table)
            score = None
            if scorer is not None:
                score = ask_score(scorer, target, name)
            points.append(_point(name, point, record, score))
            if progress is not None:
                progress(Progress("sweep", len(points), len(recipes), name))
        swept = SweepRecord(method=recipe.merge_method, models=model_names(recipe), points=tuple(points))
        write_atomically(root / SWEEP_FILE, to_json(swept))
    return swept


def grid(models: int, steps: int) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield the points of a simplex: a name for each, and its weights, of sum 1.

    >>> [name for name, _ in grid(2, 3)], [name for name, _ in grid(3, 2)]
    (['0.00', '0.50', '1.00'], ['1.00-0.00-0.00', '0.00-1.00-0.00', '0.00-0.00-1.00'])

    Args:
        models: T >= 2 models; a point of two is named by the weight of the second.
        steps: Points on each edge, at least 2.
    """
    parts = steps - 1
    digits = max(2, len(str(parts - 1)))  # as many as tell the points apart
    slots = parts + models - 1
    for bars in reversed([*combinations(range(slots), models - 1)]):
        weights = tuple((end - start - 1) / parts for start, end in pairwise((-1, *bars, slots)))
        named = weights[models == 2 :]
        yield "-".join(f"{weight:.{digits}f}" for weight in named), weights


# --- what is there already, and what is written -------------------------------------------------------------


def _check_folders(root: Path, recipes: Mapping[str, Recipe], opened: Models) -> None:
    """Raise an OutputError that names all folders that are there already and are something else."""
    problems = []
    for name, recipe in recipes.items():
        problems += overlaps(root / name, folders_of(recipe))
        record = read_record(root / name)
        if os.path.lexists(root / name) and not (
            record and is_record_of(plan(recipe, opened=opened), record)
        ):
            problems.append(
                f"{root / name}: exists already, and its {RECORD_FILE} does not say this recipe and these "
                "files: choose another folder or remove it"
            )
    OutputError.refuse(problems)


def _point(name: str, recipe: Recipe, record: RunRecord, score: float | None) -> SweepPoint:
    """Return the point of a merge: values for all models, where its record has those that count."""
    totals, used = record.totals, counting(recipe)

    def spread(values: Sequence[float | None]) -> tuple[float | None, ...]:
        known = dict(zip(used, values, strict=True))
        return tuple(known.get(place) for place in range(len(recipe.models)))

    return SweepPoint(
        folder=name,
        weights=tuple(entry.parameters["weight"] for entry in recipe.models),
        norm=totals.norm,
        distances=totals.distances and spread(totals.distances),
        relative_distances=spread(totals.relative_distances),
        score=score,
    )
