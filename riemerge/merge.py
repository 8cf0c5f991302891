"""Merging: adapters checked, read, stacked, merged by a method, measured, and written with a record."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from numbers import Integral, Real
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias, final

import torch

from riemerge.adapters import Adapter, check_output, round_update, write_adapter
from riemerge.bookkeeping import base_model, input_rows, resolved_recipe, versions, warnings
from riemerge.card import model_card
from riemerge.errors import NumericalError, RecipeError, ResourceError
from riemerge.inputs import Input, open_inputs
from riemerge.manifolds.linalg import single_threaded
from riemerge.measure import module_row, totals
from riemerge.methods import (
    DEFAULT_METHOD,
    Evidence,
    Method,
    Options,
    Small,
    Stack,
    did_you_mean,
    find_method,
    run_method,
)
from riemerge.recipe import Recipe, make_recipe
from riemerge.record import ModuleRow, RunRecord, Timing
from riemerge.solvers import SOLVERS
from riemerge.updates import LowRankUpdate

RECORD_FILE = "riemerge.json"
CARD_FILE = "README.md"


class Progress(NamedTuple):
    """How far a merge is.

    Attributes:
        stage: `read`, `merge` or `measure`; a method that needs one pass only has no `read`.
        done: Modules that are through this stage.
        total: All modules.
        text: More, for a person.
    """

    stage: str
    done: int
    total: int
    text: str


@final
class _Rounded:
    """Updates in the dtype in which they are written, rounded one at a time, all faults at once."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._problems: list[str] = []
        self.updates: dict[str, LowRankUpdate] = {}
        self.errors: dict[str, float] = {}

    def add(self, module: str, update: LowRankUpdate) -> None:
        """Round one update, given in its canonical gauge."""
        try:
            self.updates[module], self.errors[module] = round_update(update, self._dtype)
        except NumericalError as fault:
            self._problems += [f"{module}: {problem}" for problem in fault.problems]

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._problems:
            raise NumericalError(self._problems)


@final
class _Modules(Mapping[str, tuple[LowRankUpdate, ...]]):
    """The T updates of each module, read from disk at each access, so that none is kept."""

    def __init__(self, inputs: Sequence[Input], dtype: torch.dtype, device: torch.device) -> None:
        self._inputs = inputs
        self._dtype = dtype
        self._device = device

    def __getitem__(self, module: str) -> tuple[LowRankUpdate, ...]:
        return tuple(
            one.adapter.update(module, dtype=self._dtype, device=self._device) for one in self._inputs
        )

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._inputs[0].adapter.modules))

    def __len__(self) -> int:
        return len(self._inputs[0].adapter.modules)


Listener: TypeAlias = Callable[[Progress], None]


@final
@dataclass(frozen=True)
class MergeResult:
    """A merged adapter and the record of how it came about.

    Attributes:
        updates: Module name to merged update, scale λ included, in its canonical gauge; in the dtype of the
            computation, or in the dtype that is written where that was asked for.
        record: What was asked and done.
    """

    updates: Mapping[str, LowRankUpdate]
    record: RunRecord
    _inputs: tuple[Adapter, ...] = field(repr=False)
    _out_dtype: torch.dtype = field(repr=False)
    _rounding: Mapping[str, float] | None = field(repr=False)

    def save_pretrained(self, folder: str | Path) -> dict[str, float]:
        """Write the merged adapter as a PEFT folder, with `riemerge.json` and a model card in it.

        Law: the folder appears whole or not at all, and `PeftModel.from_pretrained` loads it.

        Returns:
            For each module the relative error of rounding its dW to the dtype that is written.

        Raises:
            NumericalError: Factors that are not finite, or not in the dtype; all such modules are named.
            OutputError: The folder exists, overlaps an input, or cannot be written.
        """
        check_output(folder, [adapter.path for adapter in self._inputs])
        rounded = _Rounded(self._out_dtype)
        if self._rounding is None:
            for module, update in self.updates.items():
                rounded.add(module, update)
            rounded.check()
        return write_adapter(
            folder,
            rounded.updates if self._rounding is None else self.updates,
            like=self._inputs,
            dtype=self._out_dtype,
            rounding=rounded.errors if self._rounding is None else self._rounding,
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
    max_seconds: float | None = None,
    starts: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
    threads: int | None = None,
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
        max_seconds: Budget of all solves together; none if not given. What runs out of it is not
            reproducible.
        starts: How many starts to solve each module from, 1 if not given; the best counts, and how far the
            others end from it tells whether the inputs determine their mean.
        seed: Of the starts after the first; 0 if not given.
        device: `cpu`, `cuda` (also `cuda:1`), or `auto` for cuda where there is one.
        threads: How many work at once on a CPU; they change no bit. As many as the CPUs that this process may
            use if not given.
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
        "max_seconds": max_seconds,
        "starts": starts,
        "seed": seed,
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
    return merge_recipe(
        recipe, opened=opened, optimizer=optimizer, device=device, threads=threads, progress=progress
    )


def merge_recipe(
    recipe: Recipe,
    *,
    opened: Mapping[int, Adapter] | None = None,
    optimizer: Any = None,
    device: str = "cpu",
    threads: int | None = None,
    round_at_once: bool = False,
    progress: Listener | None = None,
) -> MergeResult:
    """Merge what a recipe asks for: `merge_adapters` with its values, the same laws and errors.

    Args:
        recipe: What to merge, and how.
        opened: Place to adapter, of those models of the recipe that are open already.
        optimizer: What the recipe's `solver` names, where that is no solver of ours: a Pymanopt optimizer.
        device: As in `merge_adapters`.
        threads: As in `merge_adapters`.
        round_at_once: Keep each update only as it will be written, so that the whole merge takes no more
            memory than that: then what cannot be written in its dtype is a NumericalError here.
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
    workers = _find_threads(threads, where)
    tell = progress or _ignore
    paths = [Path(entry.model) for entry in recipe.models]
    inputs = open_inputs(paths, recipe.weights, method, opened or {})
    stack = _stack(inputs, getattr(torch, recipe.dtype), where)
    dtypes = [one.adapter.dtype for one in inputs]
    out_dtype = getattr(torch, recipe.out_dtype) if recipe.out_dtype else reduce(torch.promote_types, dtypes)

    read = perf_counter()
    options = Options(
        rank=asked.rank,
        solver=optimizer or asked.solver,
        tol=asked.tol,
        cost_tol=asked.cost_tol,
        max_passes=asked.max_passes,
        max_seconds=asked.max_seconds,
        starts=asked.starts,
        seed=asked.seed,
        threads=workers,
        progress=lambda stage, done, total, text: tell(Progress(stage, done, total, text)),
    )
    order = sorted(range(len(inputs)), key=lambda i: inputs[i].place)
    rounded = _Rounded(out_dtype)
    updates: dict[str, LowRankUpdate] = {}
    evidence: dict[str, Evidence] = {}
    rows: list[ModuleRow] = []
    with single_threaded():
        for module, one in run_method(method, stack, options):
            update = one.update.scaled(asked.scale).absorbed()
            small = Small(one.small.merged.scaled(asked.scale), one.small.inputs)
            rows.append(module_row(module, update.shape, small, one.evidence, stack.storage, order))
            evidence[module] = one.evidence
            if round_at_once:
                rounded.add(module, update)
            else:
                updates[module] = update
            tell(Progress("measure", len(rows), len(stack.modules), ""))
    rounded.check()

    record = RunRecord(
        recipe=resolved_recipe(recipe, out_dtype),
        versions=versions(),
        device=where.type,
        base_model=base_model(inputs),
        inputs=input_rows(recipe, inputs),
        modules=tuple(rows),
        totals=totals(rows),
        advice={one.status: one.advice for one in evidence.values() if one.advice},
        warnings=tuple(warnings(recipe, inputs, evidence, rows)),
        timing=Timing(
            read=read - started,
            solve=perf_counter() - read,
            modules={module: one.seconds for module, one in evidence.items()},
        ),
    )
    return MergeResult(
        rounded.updates if round_at_once else updates,
        record,
        tuple(one.adapter for one in inputs),
        out_dtype,
        rounded.errors if round_at_once else None,
    )


def _completed(recipe: Recipe, method: Method) -> Recipe:
    """The recipe with the method's defaults where it says nothing."""
    asked = recipe.parameters
    missing = {name: value for name, value in method.defaults.items() if getattr(asked, name) is None}
    return recipe.model_copy(update={"parameters": asked.model_copy(update=missing)})


def _stack(inputs: Sequence[Input], dtype: torch.dtype, where: torch.device) -> Stack:
    # What the stored factors say is the update, whatever their dtype: real adapters in half precision have
    # singular values below its round-off that count. But no adapter was trained to more than float32, and
    # what stands below that is noise, unless float64 was stored and is computed with.
    exact = {torch.float64}
    storage = tuple(torch.float64 if {one.adapter.dtype, dtype} == exact else torch.float32 for one in inputs)
    names = tuple(one.name for one in inputs)
    return Stack(names, tuple(one.weight for one in inputs), _Modules(inputs, dtype, where), storage)


def _find_threads(asked: int | None, where: torch.device) -> int:
    """How many threads to use: a GPU is kept busy by one."""
    if asked is not None and asked < 1:
        raise RecipeError(f"threads: {asked}: expected at least 1")
    if where.type != "cpu":
        return 1
    if asked is not None:
        return asked
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return usable or 1


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


def _plain(value: Any) -> Any:
    """A number of any library as Python's own; anything else as it is, for the recipe to refuse."""
    if isinstance(value, bool | int | float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _ignore(_: Progress) -> None:
    """No one listens."""
