"""Verification: whether a folder holds what its record says, by its files and by merging it again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, final

import torch
from pydantic import ValidationError

from riemerge.errors import AdapterError, NumericalError, OutputError, RecipeError
from riemerge.formats.adapter import kinds_of
from riemerge.formats.checkpoint import read_checkpoint
from riemerge.formats.dialects import read_adapter
from riemerge.formats.files.staging import file_sha256
from riemerge.formats.files.text import list_names
from riemerge.formats.hub import locate
from riemerge.formats.kinds import holds_statistics, is_checkpoint
from riemerge.formats.tokenizer import TOKENIZER_FILE
from riemerge.frechet.status import Status
from riemerge.merging.plan import Plan, plan
from riemerge.merging.sinks import RECORD_FILE, write
from riemerge.merging.written_before import find_changes, read_record
from riemerge.methods.parameters import MATCHED
from riemerge.progress import Listener, Progress
from riemerge.recipes.documents import places_of_models
from riemerge.recipes.recipe import Recipe, make_recipe
from riemerge.recipes.translations import TOKENIZERS
from riemerge.records.run_record import RunRecord
from riemerge.records.verification_record import Verification
from riemerge.statistics import read_statistics
from riemerge.updates import JointSpan

SAMPLE = 8
"""How many modules are merged again if nothing is asked for."""

_CHUNK = 64

# What every recipe in a record says.
_WRITTEN = ("merge_method", "models", "parameters", "dtype", "out_dtype")

# What another machine moves in float64 before the rounding: closed forms, and means that are solved for; and
# both where tall factors are computed in float32.
_CLOSED, _SOLVED, _SINGLE = 1e-9, 1e-6, 1e-4

# Entries of a tensor that another machine may round to the other neighbour.
_FLIPPED = 1e-3


def verify(
    folder: str | Path,
    inputs: Sequence[str | Path] = (),
    *,
    sample: int | None = SAMPLE,
    seed: int = 0,
    threads: int | None = None,
    progress: Listener | None = None,
) -> Verification:
    """Check that a folder holds the merge that its record says.

    Law: every file has the sha256 of the record, and no file of tensors was added; the folder opens, with the
    modules and shapes of the record; and a sample of the modules, merged again from the same inputs by the
    recipe of the record, is what was written, up to the rounding of its dtype. The inputs are known by their
    sha256, under whatever name: those given, the folders of their names in them, beside the folder, here,
    and in the cache of the hub. What was merged with the results of earlier documents is not merged again:
    these results were not kept.

    Args:
        folder: The folder of a merge.
        inputs: Folders of inputs, or around them.
        sample: Number of modules to merge again; None for all, which is also what rows take that look at all
            modules first.
        seed: Random seed of the sample.
        threads: Number of threads that work at once.
        progress: Called after each part that was merged again.

    Raises:
        OutputError: There is no record, or files or tensors are not those that it names.
        AdapterError: An input is not the one that was merged; or, where inputs are given or all modules are
            asked for, was not found.
        NumericalError: What is merged again differs from what was written.
    """
    folder = Path(folder)
    record = read_record(folder)
    if record is None:
        raise OutputError(
            f"{folder / RECORD_FILE}: is no run record of riemerge: expected one beside the weights"
        )
    OutputError.refuse(
        f"{folder / RECORD_FILE}: is no run record of riemerge: {fault}" for fault in _find_faults(record)
    )
    if not record.outputs:
        raise OutputError(f"{folder / RECORD_FILE}: has no sha256 of the files: nothing can be verified")
    OutputError.refuse(f"{folder}: {change}" for change in find_changes(folder, record))
    OutputError.refuse(f"{folder}: {fault}" for fault in _find_other_tensors(folder, record))
    earlier = tuple(record.recipe.get("earlier", ()))
    search = _Search(folder, [Path(path) for path in inputs], record)
    recipe: Recipe | None = None
    if not earlier:
        recipe = search.recipe()
    if search.lacking and (inputs or sample is None):
        raise AdapterError(
            f"{name}: was not found: give its folder, or one around it, as --inputs"
            for name in search.lacking
        )
    tolerance = _tolerance(record)
    errors: dict[str, float] = {}
    if recipe is not None and not search.lacking:
        planned = plan(recipe, threads=threads)
        OutputError.refuse(f"{folder}: {fault}" for fault in _find_other_modules(folder, record, planned))
        for part in _parts(planned, record, sample, seed):
            errors |= _merge_again(planned, part, folder)
            if progress is not None:
                progress(Progress("verify", len(errors), len(record.modules), ""))
    NumericalError.refuse(
        f"{folder}: {module}: merged again it differs by {error:.2g} of what was written: expected at most "
        f"{tolerance:.2g}"
        for module, error in errors.items()
        if not error <= tolerance
    )
    return Verification(
        out_type=record.out_type,
        version=record.versions.get("riemerge", ""),
        files=tuple(record.outputs),
        modules=len(record.modules),
        errors=errors,
        tolerance=tolerance,
        lacking=tuple(search.lacking),
        earlier=earlier,
    )


def _find_faults(record: RunRecord) -> Iterator[str]:
    """Yield what makes no sense in a record whose fields each have the right shape."""
    if faults := [*_find_faults_of_recipe(record.recipe)]:
        yield from faults
        return
    if len(record.recipe["models"]) != len(record.inputs):
        yield f"{len(record.inputs)} inputs for {len(record.recipe['models'])} models of its recipe"
    if record.totals.modules != len(record.modules):
        yield f"{len(record.modules)} modules: its totals are of {record.totals.modules}"
    try:
        # Without the base model, whose name alone may be that of a model.
        for document in record.documents:
            raw = {key: value for key, value in document.items() if key not in {"name", "base_model"}}
            make_recipe(raw, names=[text for _, _, text in places_of_models(raw)])
    except RecipeError as fault:
        yield from (f"its recipe: {problem}" for problem in fault.problems)


def _find_faults_of_recipe(raw: Mapping[str, Any]) -> Iterator[str]:
    """Yield the fields without which no recipe is written down, and those of another shape."""
    if lacking := [key for key in _WRITTEN if key not in raw]:
        yield f"a recipe in it has no {list_names(lacking)}"
        return
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as fault:
        yield from (f"recipe.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in fault.errors())
        return
    for earlier in recipe.earlier.values():
        yield from _find_faults_of_recipe(earlier)


def _find_other_tensors(folder: Path, record: RunRecord) -> Iterator[str]:
    """Open a folder as a user would, and yield what it and the record do not both have, or have otherwise."""
    saved: set[str] = set()
    try:
        if record.out_type == "adapter":
            adapter = read_adapter(folder)
            there: dict[str, tuple[int, ...]] = {module: adapter.shape(module) for module in adapter.modules}
            saved = {*adapter.saved}
        else:
            checkpoint = read_checkpoint(folder)
            there = {name: checkpoint.shapes[name] for name in checkpoint.modules}
    except AdapterError as fault:
        yield from (f"cannot be opened: {problem}" for problem in fault.problems)
        return
    if record.out_type == "delta":
        return  # a tensor may hold several modules
    for row in record.modules:
        if there.get(row.module) != row.shape:
            yield f"{row.module}: has the shape {there.get(row.module)}: the record says {row.shape}"
    heads: set[str] = set()
    if record.heads and record.heads.done != "drop":
        heads = {*record.heads.tensors}
    for name in sorted((there.keys() - {row.module for row in record.modules}) | (saved - heads)):
        yield f"{name}: is in the files, and not in the record"
    for name in sorted(heads - saved):
        yield f"{name}: is in the record, and not in the files"


def _find_other_modules(folder: Path, record: RunRecord, plan: Plan) -> Iterator[str]:
    """Yield the modules that not all have: the inputs, the record, and the files of a delta."""
    rows = {row.module for row in record.modules}
    yield from (
        f"{name}: is not both in the record and in the inputs"
        for name in sorted(rows ^ {*plan.stack.modules})
    )
    if record.out_type == "delta":
        layers = kinds_of(plan.inputs.adapters)
        weights = {layers[name].weight(name) for name in plan.stack.modules}
        yield from (
            f"{name}: is not both in the files and in the record"
            for name in sorted(weights ^ {*read_checkpoint(folder).names})
        )


# --- the inputs ---------------------------------------------------------------------------------------------


@final
class _Search:
    """Where the inputs of a record are now.

    Args:
        folder: The folder of the merge.
        given: Folders of inputs, or around them.
        record: What says their names and sums.

    Attributes:
        lacking: Names of the inputs that are not found.
    """

    def __init__(self, folder: Path, given: Sequence[Path], record: RunRecord) -> None:
        self._around = [*given, folder.absolute().parent, Path()]
        self._given = given
        self._record = record
        self.lacking: list[str] = []
        self._problems: list[str] = []

    def recipe(self) -> Recipe:
        """Return the recipe of the record with the paths of its inputs, and a number in place of `matched`.

        Raises:
            AdapterError: What has the name of an input is another model.
        """
        record, data = self._record, json.loads(json.dumps(self._record.recipe))
        found: dict[str, str] = {}  # paths by names
        for i, (entry, row) in enumerate(zip(data["models"], record.inputs, strict=True)):
            name = entry["model"]
            if row.sha256 is not None:  # one of weight 0 is not read
                entry["model"] = found[name] = self._find_model(name, row.sha256)
            self._replace(entry, "statistics", f"models[{i}].statistics")
        for part in data.get("slices") or ():
            for source in part["sources"]:
                source["model"] = found.get(source["model"], source["model"])
        for key in ("base_model", "base_statistics"):
            self._replace(data, key, key)
        if base := record.recipe.get("base_model"):
            found.setdefault(base, data["base_model"])
        if tokenizer := data.get("tokenizer"):
            data["tokenizer"] = found.get(tokenizer) or self._find_tokenizer(tokenizer)
        AdapterError.refuse(self._problems)
        for level in (data, *(data.get("slices") or ())):
            if "scale" in level.get("parameters", {}):
                level["parameters"]["scale"] = _put_number(level["parameters"]["scale"], record.matched_scale)
        return Recipe.model_validate(data)

    def _replace(self, level: dict[str, Any], key: str, place: str) -> None:
        """Put the path of what lies beside the models in the place of its name, if it was read."""
        if (sums := self._record.beside.get(place)) and level.get(key):
            level[key] = self._find_model(level[key], sums)

    def _find_tokenizer(self, name: str) -> str:
        """Return the folder of the tokenizer that was written, where it is no model's; or the word for it."""
        if name in TOKENIZERS:
            return name
        written = {TOKENIZER_FILE: self._record.outputs.get(TOKENIZER_FILE, "")}
        return self._find(name, written, _sums_of_tokenizer)

    def _find_model(self, name: str, sums: Mapping[str, str]) -> str:
        """Return the path of the model of these sums, or those of a base model and of what is added to it."""
        added = {file: digest for file, digest in sums.items() if "/" in file}
        if not added:
            return self._find(name, sums)
        folder = next(iter(added)).rpartition("/")[0]
        places = [i for i, letter in enumerate(name) if letter == "+"]
        splits = [(name[:i], name[i + 1 :]) for i in places] or [(name, folder)]
        base, adapter = next(
            (split for split in splits if f"/{split[1]}".endswith(f"/{folder}")),
            splits[0],
        )
        own = {file: digest for file, digest in sums.items() if file not in added}
        theirs = {file.rpartition("/")[2]: digest for file, digest in added.items()}
        return f"{self._find(base, own)}+{self._find(adapter, theirs)}"

    def _find(
        self,
        name: str,
        sums: Mapping[str, str],
        read: Callable[[Path], Mapping[str, str] | None] | None = None,
    ) -> str:
        """Return the path of the input of these sums."""
        named = [path for around in self._around if os.path.lexists(path := locate(name, around))]
        for path in (*named, *self._given):
            if (read or _sums)(path) == sums:
                return str(path)
        if named:
            self._problems.append(
                f"{named[0]}: is not the input {name} that was merged: its sha256 is another"
            )
        elif name not in self.lacking:
            self.lacking.append(name)
        return name


def _sums_of_tokenizer(path: Path) -> Mapping[str, str] | None:
    """Return the sha256 of the tokenizer in a folder; None where there is none."""
    try:
        return {TOKENIZER_FILE: file_sha256(path / TOKENIZER_FILE)}
    except OSError:
        return None


def _sums(path: Path) -> Mapping[str, str] | None:
    """Return the sha256 of the files of a model or of statistics; None where there is neither."""
    try:
        if holds_statistics(path):
            return dict(read_statistics(path).sha256)
        if is_checkpoint(path):
            return dict(read_checkpoint(path).sha256)
        return dict(read_adapter(path).sha256)
    except AdapterError:
        return None


def _put_number(scale: Any, matched: float | None) -> Any:
    """Return a setting of the scale with the number that `matched` came to in its place."""
    if scale == MATCHED:
        return matched
    if isinstance(scale, list):
        return [_put_number(part, matched) for part in scale]
    if isinstance(scale, dict):
        return {key: _put_number(part, matched) for key, part in scale.items()}
    return scale


# --- merging again ------------------------------------------------------------------------------------------


@final
class _Part(Mapping[str, Any]):
    """Some of the modules of a stack, read as they are there."""

    def __init__(self, whole: Mapping[str, Any], names: Sequence[str]) -> None:
        self._whole, self._names = whole, names

    def __getitem__(self, name: str) -> Any:
        return self._whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _parts(plan: Plan, record: RunRecord, sample: int | None, seed: int) -> Iterator[tuple[str, ...]]:
    """Yield the names of modules that are merged again together."""
    names = [row.module for row in record.modules]
    if plan.method.survey:
        yield tuple(names)  # each result depends on all
        return
    groups: dict[str, list[str]] = {}  # by the tensor that holds them
    layers = kinds_of(plan.inputs.adapters)
    for name in names:
        groups.setdefault(layers[name].weight(name) if record.out_type == "delta" else name, []).append(name)
    chosen = sorted(groups)
    if sample is not None:
        chosen = sorted(Random(seed).sample(chosen, min(sample, len(chosen))))
    for start in range(0, len(chosen), _CHUNK):
        yield tuple(name for group in chosen[start : start + _CHUNK] for name in groups[group])


def _merge_again(plan: Plan, names: Sequence[str], folder: Path) -> dict[str, float]:
    """Merge some modules again as they were written, and return by name how far they are from a folder."""
    part = replace(plan, stack=replace(plan.stack, modules=_Part(plan.stack.modules, names)))
    with TemporaryDirectory(prefix="riemerge-verify-", ignore_cleanup_errors=True) as room:
        again = Path(room, "again")
        write(part, again)
        if plan.out_type == "adapter":
            ours, theirs = read_adapter(again), read_adapter(folder)
            spans = {name: JointSpan([ours.update(name), theirs.update(name)]) for name in names}
            apart = {name: _apart(*(one.dense() for one in span.updates)) for name, span in spans.items()}
            heads = {name: (ours.tensor(name), theirs.tensor(name)) for name in ours.saved}
            return apart | {
                name: _tensors_apart(new.double(), old.double()) for name, (new, old) in heads.items()
            }
        new, old = read_checkpoint(again), read_checkpoint(folder)
        return {name: _tensors_apart(new.tensor(name), old.tensor(name)) for name in new.modules}


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return ‖ours - theirs‖ / ‖theirs‖."""
    return float((ours - theirs).norm() / (theirs.norm() or 1.0))


def _tensors_apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference of two tensors relative to the largest entry; infinity if many differ.

    A change that is small beside the weights must not hide in the rounding of their dtype: on another
    machine single entries are rounded to the other neighbour, a wrong merge moves most of them.
    """
    largest = float(theirs.abs().max()) if theirs.numel() else 0.0
    apart = (ours - theirs).abs() / (largest or 1.0)
    if int((apart > _SOLVED).sum()) > 1 + _FLIPPED * apart.numel():
        return float("inf")
    return float(apart.max()) if apart.numel() else 0.0


def _tolerance(record: RunRecord) -> float:
    """Return how far what is merged again may be from what was written, on any machine."""
    stored = getattr(torch, record.recipe["out_dtype"] or "bfloat16")
    level = _CLOSED
    if record.totals.statuses.keys() != {Status.EXACT.name}:
        level = _SOLVED
    if record.recipe["dtype"] == "float32":
        level = _SINGLE
    return torch.finfo(stored).eps + level
