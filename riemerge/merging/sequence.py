"""Several documents of one recipe: merged in order, a later one with the results of earlier ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from riemerge.errors import try_each
from riemerge.formats.checkpoint import read_checkpoint
from riemerge.formats.dialects import read_adapter
from riemerge.formats.files.staging import NewFolder, check_output
from riemerge.formats.kinds import is_checkpoint
from riemerge.merging.inputs import folders_of
from riemerge.merging.sinks import Written
from riemerge.merging.verbs import merge_into
from riemerge.progress import Listener
from riemerge.recipes.documents import places_of_models
from riemerge.recipes.recipe import Recipe


def merge_documents(
    documents: Sequence[tuple[str | None, Recipe]],
    folder: str | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    report: str = "short",
    progress: Listener | None = None,
) -> Written:
    """Merge the documents of a recipe in order, and write the result of the last.

    Law: as if each result had been written by itself and named by its folder in the documents after it. The
    results of all but the last lie beside the output while they are needed, and are removed whatever happens.
    The record of the last has the recipes of the others.

    Args:
        documents: The recipe of each document, behind the name by which later ones name its result.
        folder: The new folder.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: Number of threads that work at once.
        report: What is measured of the last merge, `short` or `full` (see `plan`).
        progress: Called now and then.

    Raises:
        RiemergeError: What `merge_into` raises; models that are no results are opened before all work.
    """
    *before, (_, last) = documents
    if not before:
        return merge_into(last, folder, device=device, threads=threads, report=report, progress=progress)
    names = {name for name, _ in before if name is not None}
    paths = dict.fromkeys(
        path for _, recipe in documents for path in folders_of(recipe) if not names & {*path.split("+")}
    )
    check_output(folder, paths)
    try_each(_open, paths)
    results: dict[str, Path] = {}
    recipes: dict[str, Any] = {}
    told: list[str] = []
    with closing(NewFolder(folder)) as room:  # which never gets its name
        for name, recipe in before:
            result, placed = room.stage / str(name), _place(recipe, results, recipes)
            written = merge_into(placed, result, device=device, threads=threads, progress=progress)
            results[str(name)], recipes[str(name)] = result, written.record.recipe
            told += (f"{name}: {text}" for text in recipe.translations)
        placed = _place(last, results, recipes)
        placed = placed.model_copy(update={"translations": (*told, *last.translations)})
        return merge_into(placed, folder, device=device, threads=threads, report=report, progress=progress)


def _open(path: str) -> object:
    if is_checkpoint(path):
        return read_checkpoint(path)
    return read_adapter(path)


def _place(recipe: Recipe, results: Mapping[str, Path], recipes: Mapping[str, Any]) -> Recipe:
    """Return a recipe with the paths of results in the place of their names, and the recipes of those."""
    data = recipe.model_dump(mode="json")
    used: dict[str, Any] = {}
    for level, key, text in places_of_models(data):
        parts = text.split("+")
        if text not in results and os.path.lexists(text):
            parts = [text]  # a folder with a plus in its name
        level[key] = "+".join(str(results.get(part, part)) for part in parts)
        used |= {name: recipes[name] for name in parts if name in recipes}
    return Recipe.model_validate({**data, "earlier": used})
