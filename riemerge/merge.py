"""Merging: adapters checked, read, stacked, merged by a method, measured, and written with a record."""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from importlib.metadata import version
from numbers import Integral, Real
from pathlib import Path, PurePosixPath, PureWindowsPath
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias, final

import torch

from riemerge import __version__
from riemerge.adapters import Adapter, check_output, write_adapter
from riemerge.card import model_card
from riemerge.errors import RecipeError, ResourceError
from riemerge.inputs import Input, display_names, open_inputs
from riemerge.measure import module_row, totals
from riemerge.methods import (
    DEFAULT_METHOD,
    Evidence,
    Method,
    Options,
    Stack,
    did_you_mean,
    find_method,
    run_method,
)
from riemerge.recipe import Recipe, make_recipe
from riemerge.record import InputRow, ModuleRow, RunRecord, Timing
from riemerge.solvers import SOLVERS
from riemerge.updates import LowRankUpdate

RECORD_FILE = "riemerge.json"
CARD_FILE = "README.md"


class Progress(NamedTuple):
    """How far a merge is.

    Attributes:
        stage: `read`, `merge` or `measure`.
        done: Modules that are through this stage.
        total: All modules.
        text: More, for a person.
    """

    stage: str
    done: int
    total: int
    text: str


Listener: TypeAlias = Callable[[Progress], None]


@final
@dataclass(frozen=True)
class MergeResult:
    """A merged adapter and the record of how it came about.

    Attributes:
        updates: Module name to merged update, scale λ included, in the dtype of the computation.
        record: What was asked and done.
    """

    updates: Mapping[str, LowRankUpdate]
    record: RunRecord
    _inputs: tuple[Adapter, ...] = field(repr=False)
    _out_dtype: torch.dtype = field(repr=False)

    def save_pretrained(self, folder: str | Path) -> dict[str, float]:
        """Write the merged adapter as a PEFT folder, with `riemerge.json` and a model card in it.

        Law: the folder appears whole or not at all, and `PeftModel.from_pretrained` loads it.

        Returns:
            For each module the relative error of rounding its dW to the dtype that is written.

        Raises:
            OutputError: The folder exists, overlaps an input, or cannot be written.
        """
        check_output(folder, [adapter.path for adapter in self._inputs])
        return write_adapter(
            folder,
            self.updates,
            like=self._inputs,
            dtype=self._out_dtype,
            extra_files={RECORD_FILE: self.record.to_json(), CARD_FILE: model_card(self.record)},
        )


def merge_adapters(
    adapters: Sequence[str | Path | Adapter],
    weights: Sequence[float] | None = None,
    *,
    method: str = DEFAULT_METHOD,
    rank: int | None = None,
    scale: float = 1.0,
    solver: Any = None,
    tol: float | None = None,
    cost_tol: float | None = None,
    max_passes: int | None = None,
    device: str = "cpu",
    dtype: str = "float64",
    out_dtype: str | None = None,
    progress: Listener | None = None,
) -> MergeResult:
    """Merge PEFT LoRA adapters of one base model into one, without the base model.

    Law: a function of the updates dW and the weights. The order of the adapters changes no bit of the
    updates, an adapter of weight 0 is not even read, and k copies of one adapter merge to it. Nothing is
    written.

    Args:
        adapters: Folders, or adapters already read; at least one that has a weight.
        weights: One finite number each; all 1 if not given.
        method: A name of `riemerge.methods.METHODS`.
        rank: Rank R; whether the inputs or the result are truncated to it, the method's row says.
        scale: Factor λ on the merged update.
        solver: Name of a solver or a Pymanopt optimizer, for a method that iterates.
        tol: Bound on the gradient norm of each module.
        cost_tol: Bound on the relative decrease of the cost.
        max_passes: Budget of the solver.
        device: `cpu`, `cuda` (also `cuda:1`), or `auto` for cuda where there is one.
        dtype: `float64` or `float32`, of the tall factors; the reduced problem is always float64.
        out_dtype: What is written: `float16`, `bfloat16`, `float32`, `float64`; None keeps that of the
            inputs.
        progress: Called now and then.

    Returns:
        The merged updates with their record; `save_pretrained` writes them.

    Raises:
        RecipeError: What was asked makes no sense.
        AdapterError: An input cannot be read exactly, or the inputs do not fit each other.
        NumericalError: The method has no answer for these updates.
        ResourceError: The device is not there.

    Example:
        >>> result = merge_adapters(["snli", "mnli"], weights=[0.5, 0.5])  # doctest: +SKIP
        >>> result.save_pretrained("merged")  # doctest: +SKIP
    """
    given = [1.0] * len(adapters) if weights is None else list(weights)
    if len(given) != len(adapters):
        raise RecipeError(f"weights: {len(given)} for {len(adapters)} adapters: give one weight for each")
    parameters = {
        "rank": rank,
        "scale": scale,
        "solver": solver if solver is None or isinstance(solver, str) else type(solver).__name__,
        "tol": tol,
        "cost_tol": cost_tol,
        "max_passes": max_passes,
    }
    paths = [one.path if isinstance(one, Adapter) else one for one in adapters]
    recipe = make_recipe(
        {
            "merge_method": method,
            "models": [
                {"model": str(path), "parameters": {"weight": _plain(weight)}}
                for path, weight in zip(paths, given, strict=True)
            ],
            "parameters": {name: _plain(value) for name, value in parameters.items() if value is not None},
            "dtype": dtype,
            "out_dtype": out_dtype,
        }
    )
    opened = {place: one for place, one in enumerate(adapters) if isinstance(one, Adapter)}
    optimizer = None if isinstance(solver, str) else solver
    return merge_recipe(recipe, opened=opened, optimizer=optimizer, device=device, progress=progress)


def merge_recipe(
    recipe: Recipe,
    *,
    opened: Mapping[int, Adapter] | None = None,
    optimizer: Any = None,
    device: str = "cpu",
    progress: Listener | None = None,
) -> MergeResult:
    """Merge what a recipe asks for: `merge_adapters` with its values, the same laws and errors.

    Args:
        recipe: What to merge, and how.
        opened: Place to adapter, of those models of the recipe that are open already.
        optimizer: What the recipe's `solver` names, where that is no solver of ours: a Pymanopt optimizer.
        device: As in `merge_adapters`.
        progress: As in `merge_adapters`.
    """
    started = perf_counter()
    method = find_method(recipe.merge_method)
    recipe = _completed(recipe, method)
    asked = recipe.parameters
    if optimizer is None and asked.solver is not None and asked.solver not in SOLVERS:
        known = did_you_mean(asked.solver, SOLVERS)
        raise RecipeError(f"parameters.solver: unknown solver {asked.solver!r}: {known}")
    where = _find_device(device)
    tell = progress or _ignore
    paths = [Path(entry.model) for entry in recipe.models]
    inputs = open_inputs(paths, recipe.weights, method, opened or {})
    stack = _read(inputs, getattr(torch, recipe.dtype), where, tell)

    read = perf_counter()
    options = Options(
        rank=asked.rank,
        solver=optimizer or asked.solver,
        tol=asked.tol,
        cost_tol=asked.cost_tol,
        max_passes=asked.max_passes,
        progress=lambda done, total, text: tell(Progress("merge", done, total, text)),
    )
    merged = run_method(method, stack, options)
    solved = perf_counter()

    evidence = {module: one.evidence for module, one in merged.items()}
    updates = {module: one.update.scaled(asked.scale) for module, one in merged.items()}
    order = sorted(range(len(inputs)), key=lambda i: inputs[i].place)
    rows: list[ModuleRow] = []
    for module, update in updates.items():
        rows.append(module_row(module, update, stack.modules[module], evidence[module], order))
        tell(Progress("measure", len(rows), len(updates), ""))

    dtypes = [one.adapter.dtype for one in inputs]
    out_dtype = getattr(torch, recipe.out_dtype) if recipe.out_dtype else reduce(torch.promote_types, dtypes)
    record = RunRecord(
        recipe=_resolved(recipe, out_dtype),
        versions=_versions(),
        device=where.type,
        base_model=_base_model(inputs),
        inputs=_input_rows(recipe, inputs),
        modules=tuple(rows),
        totals=totals(rows),
        advice={one.status: one.advice for one in evidence.values() if one.advice},
        warnings=tuple(_warnings(recipe, inputs, evidence, rows)),
        timing=Timing(
            read=read - started,
            solve=solved - read,
            modules={module: one.seconds for module, one in evidence.items()},
        ),
    )
    return MergeResult(updates, record, tuple(one.adapter for one in inputs), out_dtype)


def _completed(recipe: Recipe, method: Method) -> Recipe:
    """The recipe with the method's defaults where it says nothing."""
    asked = recipe.parameters
    missing = {name: value for name, value in method.defaults.items() if getattr(asked, name) is None}
    return recipe.model_copy(update={"parameters": asked.model_copy(update=missing)})


def _read(inputs: Sequence[Input], dtype: torch.dtype, where: torch.device, tell: Listener) -> Stack:
    modules: dict[str, tuple[LowRankUpdate, ...]] = {}
    names = sorted(inputs[0].adapter.modules)
    for module in names:
        modules[module] = tuple(one.adapter.update(module, dtype=dtype, device=where) for one in inputs)
        tell(Progress("read", len(modules), len(names), ""))
    return Stack(tuple(one.name for one in inputs), tuple(one.weight for one in inputs), modules)


def _find_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RecipeError(f"device: {name!r} is not known: expected cpu, cuda, cuda:N or auto") from None
    if device.type not in {"cpu", "cuda"}:
        raise RecipeError(f"device: {name!r} is not supported: expected cpu, cuda, cuda:N or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            f"device: {name} was asked for, but torch {torch.__version__} finds {torch.cuda.device_count()} "
            "CUDA "
            "devices: use --device cpu, or install a CUDA build of torch and a driver"
        )
    return device


# --- the record ---------------------------------------------------------------------------------------------


def _resolved(recipe: Recipe, out_dtype: torch.dtype) -> dict[str, Any]:
    """A completed recipe as it can be written down, with names in place of paths."""
    names = display_names([entry.model for entry in recipe.models])
    return {
        "merge_method": recipe.merge_method,
        "models": [
            {"model": name, "parameters": entry.parameters.model_dump()}
            for name, entry in zip(names, recipe.models, strict=True)
        ],
        "parameters": recipe.parameters.model_dump(exclude_none=True),
        "dtype": recipe.dtype,
        "out_dtype": _name(out_dtype),
    }


def _input_rows(recipe: Recipe, inputs: Sequence[Input]) -> tuple[InputRow, ...]:
    names = display_names([entry.model for entry in recipe.models])
    rows = [
        InputRow(name=name, weight=weight, share=0.0)
        for name, weight in zip(names, recipe.weights, strict=True)
    ]
    for one in inputs:
        rows[one.place] = InputRow(
            name=one.name,
            weight=recipe.weights[one.place],
            share=one.weight,
            sha256=dict(one.adapter.sha256),
            ranks=tuple(sorted(set(one.adapter.ranks.values()))),
            dtype=_name(one.adapter.dtype),
        )
    return tuple(rows)


def _warnings(
    recipe: Recipe, inputs: Sequence[Input], evidence: Mapping[str, Evidence], rows: Sequence[ModuleRow]
) -> list[str]:
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
        same[tuple(one.adapter.sha256.values())].append(one.name)
    found += [
        f"{', '.join(sorted(twins))}: hold the same files: each is counted with its weight"
        for twins in same.values()
        if len(twins) > 1
    ]
    for status in sorted({one.status for one in evidence.values() if not one.ok}):
        there = [module for module, one in evidence.items() if one.status == status]
        advice = evidence[there[0]].advice
        count = f"{len(there)} of {len(evidence)} modules"
        found.append(f"{count} ended as {status} ({', '.join(there)}): {advice}")
    over = [row.module for row in rows if row.rank > min(row.shape)]
    if over:
        found.append(
            f"{len(over)} modules have a rank above their full one (first {over[0]}): exact, but larger than "
            "needed: "
            "--rank truncates"
        )
    return found


def _base_model(inputs: Sequence[Input]) -> str | None:
    """The base model's public name; of a path of this machine, the last part only."""
    bases = {one.adapter.config.base_model_name_or_path for one in inputs} - {None, ""}
    for base in sorted(str(base) for base in bases):
        local = PurePosixPath(base).is_absolute() or PureWindowsPath(base).drive or base[0] in "~."
        return PureWindowsPath(base).name if local else base
    return None


def _versions() -> dict[str, str]:
    return {
        "riemerge": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "pymanopt", "numpy")},
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _plain(value: Any) -> Any:
    """A number of any library as Python's own; anything else as it is, for the recipe to refuse."""
    if isinstance(value, bool | int | float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _ignore(_: Progress) -> None:
    """No one listens."""
