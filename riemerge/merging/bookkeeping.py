"""Bookkeeping: what of a merge goes into its run record, beside what was measured."""

from __future__ import annotations

import math
import platform
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from time import perf_counter
from typing import Any

import torch

from riemerge._version import __version__
from riemerge.formats.checkpoint import Checkpoint
from riemerge.formats.files.text import listed, strict_json
from riemerge.formats.fit import differing_facts
from riemerge.formats.peft import Adapter
from riemerge.merging.caveats import peer_warnings, scale_warnings, zero_warnings
from riemerge.merging.inputs import Input, counting, display_names
from riemerge.merging.measure import totals
from riemerge.methods import Evidence, Method
from riemerge.recipes.recipe import Recipe
from riemerge.records.run_record import InputRow, ModuleRow, OutType, RunRecord, Timing
from riemerge.records.written_ranks import rank_warnings, written_ranks
from riemerge.statistics import read_statistics


def run_record(
    recipe: Recipe,
    method: Method,
    out_type: OutType,
    out_dtype: torch.dtype | None,
    *,
    device: torch.device,
    bases: Iterable[str | None],
    model_class: str,
    inputs: Sequence[Input[Adapter]] | Sequence[Input[Checkpoint]],
    weights: Callable[[str], tuple[float, ...]],
    modules: Collection[str],
    rows: Sequence[ModuleRow],
    evidence: Mapping[str, Evidence],
    matched_scale: float | None,
    notes: Iterable[str] = (),
    began: float,
    read: float,
    base: Checkpoint | None = None,
) -> RunRecord:
    """Put the record of a merge together, now that it has ended.

    Args:
        recipe: What was asked.
        method: Its row of the table.
        out_type: What is written.
        out_dtype: Dtype that is written; None where each tensor keeps that of the inputs.
        device: Where it was computed.
        bases: What the inputs call their base model.
        model_class: As in the record.
        inputs: The T that count, in the order of the stack.
        weights: Their weights in each module, as used.
        modules: Names of all modules.
        rows: What was measured of each module.
        evidence: What the method says of its solve in each module.
        matched_scale: What `scale: matched` came to; None where no module asked for it.
        notes: Warnings that are known only to who opened the inputs.
        began: When the merge began, by `perf_counter`.
        read: When the inputs had been read.
        base: The base model, if it was read.
    """
    resolved = resolved_recipe(recipe, method, out_type, out_dtype)
    told = [
        *warnings(recipe, inputs, evidence, rows),
        *zero_warnings(resolved, method, rows),
        *scale_warnings(matched_scale, len(inputs)),
        *peer_warnings(resolved, method, [weights(module) for module in modules]),
        *(rank_warnings(written_ranks(resolved, rows)) if out_type == "adapter" else ()),
    ]
    return RunRecord(
        out_type=out_type,
        recipe=resolved,
        versions=versions(),
        device=device.type,
        base_model=base_model(bases),
        model_class=model_class,
        inputs=input_rows(recipe, inputs, weights, modules),
        beside=read_beside(recipe, base),
        modules=tuple(rows),
        totals=totals(rows),
        matched_scale=matched_scale,
        advice={one.status.name: one.advice for one in evidence.values() if one.advice},
        warnings=(*notes, *told),
        timing=Timing(
            read=read - began,
            solve=perf_counter() - read,
            modules={module: one.seconds for module, one in evidence.items()},
        ),
    )


def resolved_recipe(
    recipe: Recipe, method: Method, out_type: OutType, out_dtype: torch.dtype | None
) -> dict[str, Any]:
    """Return a completed recipe as it can be written down, with names in place of paths."""
    names = display_names([entry.model for entry in recipe.models])
    bases = {"base_model": recipe.base_model, "base_statistics": recipe.base_statistics}
    return {
        "merge_method": recipe.merge_method,
        "models": [
            {
                "model": name,
                "parameters": {"weight": 1.0, **entry.parameters},
                **({"statistics": Path(entry.statistics).name} if entry.statistics else {}),
            }
            for name, entry in zip(names, recipe.models, strict=True)
        ],
        **{key: Path(path).name for key, path in bases.items() if path},
        **({} if out_type == "adapter" else {"out_type": out_type}),
        **({"uniform_rank": True} if recipe.uniform_rank else {}),
        "parameters": {"scale": 1.0, **method.defaults, **recipe.parameters},
        "dtype": recipe.dtype,
        "out_dtype": None if out_dtype is None else dtype_name(out_dtype),
    }


def read_beside(recipe: Recipe, base: Checkpoint | None) -> dict[str, dict[str, str]]:
    """Return the sha256 of each file that a merge reads beside its models, as a record has them.

    Args:
        recipe: What names the statistics.
        base: The base model, if it is read.

    Raises:
        AdapterError: A file cannot be read.
    """
    folders = {f"models[{place}].statistics": recipe.models[place].statistics for place in counting(recipe)}
    folders["base_statistics"] = recipe.base_statistics
    found = {} if base is None else {"base_model": dict(base.sha256)}
    return found | {said: dict(read_statistics(folder).sha256) for said, folder in folders.items() if folder}


def input_rows(
    recipe: Recipe,
    inputs: Sequence[Input[Adapter] | Input[Checkpoint]],
    weights: Callable[[str], tuple[float, ...]],
    modules: Iterable[str],
) -> tuple[InputRow, ...]:
    """Return the inputs as recorded, in the order asked for.

    Args:
        recipe: What was asked.
        inputs: The T that count, in the order of the stack.
        weights: Their weights in each module, as used.
        modules: Names of all modules.
    """
    names = display_names([entry.model for entry in recipe.models])
    rows = [
        InputRow(name=name, weight=weight, share=0.0)
        for name, weight in zip(names, recipe.weights, strict=True)
    ]
    shares = zip(*(weights(module) for module in modules), strict=True)
    for one, share in zip(inputs, shares, strict=True):
        model = one.model
        dtypes = {model.dtype} if isinstance(model, Adapter) else {*model.dtypes.values()}
        rows[one.place] = InputRow(
            name=one.name,
            weight=recipe.weights[one.place],
            # Exactly that of every module, where they have one.
            share=share[0] if len(set(share)) == 1 else math.fsum(share) / len(share),
            sha256=dict(model.sha256),
            ranks=tuple(sorted(set(model.ranks.values()))) if isinstance(model, Adapter) else (),
            dtype=", ".join(sorted(map(dtype_name, dtypes))),
        )
    return tuple(rows)


def warnings(
    recipe: Recipe,
    inputs: Sequence[Input[Adapter] | Input[Checkpoint]],
    evidence: Mapping[str, Evidence],
    rows: Sequence[ModuleRow],
) -> list[str]:
    """Return what a person should know before using the result, one text for each kind of thing.

    Args:
        recipe: What was asked.
        inputs: The T inputs, in the order of the stack.
        evidence: What the method says of its solve in each module.
        rows: What was measured of each module.
    """
    names = display_names([entry.model for entry in recipe.models])
    found = [
        f"{name}: its weight is 0: it was left out and not read"
        for name, weight in zip(names, recipe.weights, strict=True)
        if weight == 0
    ]
    if len(inputs) == 1:
        found.append(f"{inputs[0].name}: is the only adapter that counts: there is nothing to merge it with")
    same: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for one in inputs:
        same[tuple(one.model.sha256.values())].append(one.name)
    found += [
        f"{', '.join(sorted(twins))}: hold the same files: each is counted with its weight"
        for twins in same.values()
        if len(twins) > 1
    ]
    asked = sorted(inputs, key=lambda one: one.place)
    adapters = {one.name: one.model for one in asked if isinstance(one.model, Adapter)}
    found += [f"{name}: {note}" for name, adapter in adapters.items() for note in adapter.notes]
    found += differing_facts(adapters)
    ranked = [row for row in rows if row.numerical_ranks is not None]
    for place, one in enumerate(asked):
        found += _of_rank(one.name, ranked, place, recipe.parameters.get("rank"))
    for status in sorted({one.status.name for one in evidence.values() if not one.ok}):
        there = [module for module, one in evidence.items() if one.status.name == status]
        advice = evidence[there[0]].advice
        count = f"{len(there)} of {len(evidence)} modules"
        found.append(f"{count} ended as {status} ({', '.join(there)}): {advice}")
    return found


def _of_rank(name: str, rows: Sequence[ModuleRow], place: int, asked: int | str | None) -> list[str]:
    """What is wrong with the ranks of one input, where the method depends on them."""
    zero: list[str] = []
    deficient: list[str] = []
    for row in rows:
        assert row.numerical_ranks is not None
        stored, actual = row.input_ranks[place], row.numerical_ranks[place]
        rank = min(stored, asked) if isinstance(asked, int) else stored
        if actual == 0:
            zero.append(row.module)
        elif actual < rank:
            deficient.append(f"{row.module}: {actual} of {rank}")
    found = []
    if zero:
        count = f"{len(zero)} of {len(rows)} modules ({listed(zero)})"
        found.append(
            f"{name}: its update is all zero in {count}, like that of an adapter that was not trained there: "
            "it was left out of them, and the weights of the others count in proportion"
        )
    if deficient:
        found.append(
            f"{name}: its update is rank deficient in {len(deficient)} of {len(rows)} modules "
            f"({listed(deficient)}): all updates of such a module were truncated to the least numerical rank "
            "before the mean; energy_kept says what that kept"
        )
    return found


_AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoModel",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}

_ANY_MODEL = "transformers.AutoModel"


def adapted_class(adapters: Sequence[Adapter]) -> str:
    """Return `library.Class` of the model that adapters are for.

    Law: what their `task_type` calls for, else the class that `auto_mapping` names; that of any model of
    transformers where they say neither, or several.
    """
    tasks = {adapter.config.task_type for adapter in adapters} - {None}
    if tasks:
        task = tasks.pop() or ""
        return _ANY_MODEL if tasks else f"transformers.{_AUTO_CLASSES.get(task, 'AutoModel')}"
    mapping, *others = (adapter.config.auto_mapping or {} for adapter in adapters)
    library = str(mapping.get("parent_library", "")).partition(".")[0]
    alike = all(other == mapping for other in others)
    return _class(library, mapping.get("base_model_class")) if alike else _ANY_MODEL


def checkpoint_class(checkpoint: Checkpoint) -> str:
    """Return `library.Class` of a checkpoint, as its settings say; nothing where it has none."""
    found = [path for path in checkpoint.other_files if path.name == "config.json"]
    if not found:
        return ""
    with suppress(OSError, ValueError):
        settings = strict_json(found[0].read_bytes())
        # A class of its own code is found by its settings alone.
        if isinstance(settings, dict) and not settings.get("auto_map"):
            names = settings.get("architectures")
            return _class("transformers", names[0] if isinstance(names, list) and names else None)
    return _ANY_MODEL


def _class(library: str, name: object) -> str:
    """The class of this name, where what is said by others is a name and no more; else that of any model."""
    names = [library, name]
    known = all(isinstance(one, str) and re.fullmatch(r"[A-Za-z]\w*", one, re.ASCII) for one in names)
    return f"{library}.{name}" if known else _ANY_MODEL


def base_model(named: Iterable[str | None]) -> str | None:
    """Return the base model's public name, of what inputs call it; of a path, the last part only."""
    for base in sorted({base for base in named if base}):
        local = PurePosixPath(base).is_absolute() or PureWindowsPath(base).drive or base[0] in "~."
        return PureWindowsPath(base).name if local else base
    return None


def versions() -> dict[str, str]:
    """Return the versions of what computed."""
    return {
        "riemerge": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "pymanopt", "numpy")},
    }


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype as recipes write it."""
    return str(dtype).removeprefix("torch.")
