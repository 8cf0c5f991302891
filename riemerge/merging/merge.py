"""Merging: adapters checked, read, stacked, merged by a method, measured, and written with a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from numbers import Integral, Real
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.formats.files.rounding import Rounding, rounding_warnings
from riemerge.formats.files.staging import Text, check_output
from riemerge.formats.peft import Adapter, RoundedUpdates, write_adapter
from riemerge.frechet import SOLVERS
from riemerge.manifolds.linalg import single_threaded
from riemerge.merging.bookkeeping import adapted_class, run_record
from riemerge.merging.caveats import check_directions
from riemerge.merging.inputs import expanded, open_inputs
from riemerge.merging.machine import find_device, find_threads
from riemerge.merging.measure import doubtful, module_row
from riemerge.merging.progress import Listener, Progress
from riemerge.merging.stacking import stack
from riemerge.methods import DEFAULT_METHOD, Evidence, Options, did_you_mean, find_method, run_method
from riemerge.methods.reduction import in_order
from riemerge.methods.scale import Norms, matched
from riemerge.methods.stack import Merged
from riemerge.recipes.recipe import Recipe, make_recipe
from riemerge.recipes.resolve import Resolver
from riemerge.records.run_record import ModuleRow, RunRecord
from riemerge.records.written_ranks import written_ranks
from riemerge.report.card import model_card
from riemerge.updates.low_rank import LowRankUpdate

_OPTIONS = ("rank", "form", "tol", "cost_tol", "max_passes", "max_seconds", "starts", "seed")

RECORD_FILE = "riemerge.json"
CARD_FILE = "README.md"


Keep: TypeAlias = Callable[[str, LowRankUpdate | Tensor], None]


@final
@dataclass(frozen=True)
class MergeResult:
    """A merged adapter and the record of how it came about.

    Attributes:
        updates: Module name to merged update, scale λ included, in its canonical gauge; in float64 by flat
            methods, in the dtype of the computation by others, or in that which is written if asked for.
        record: What was asked and done.
    """

    updates: Mapping[str, LowRankUpdate]
    record: RunRecord
    _inputs: tuple[Adapter, ...] = field(repr=False)
    _out_dtype: torch.dtype = field(repr=False)
    _rounding: Mapping[str, Rounding] | None = field(repr=False)

    def save_pretrained(self, folder: str | Path) -> dict[str, float]:
        """Write the merged adapter as a PEFT folder, with `riemerge.json` and a model card in it.

        Law: the folder appears whole or not at all, and `PeftModel.from_pretrained` loads it. Modules of a
        lower rank than the one that is written (see `records.written_ranks`) have columns of
        zero. What the rounding moved by more than the dtype promises is a warning in what is written.

        Returns:
            For each module the relative error of rounding its dW to the dtype that is written.

        Raises:
            NumericalError: Factors that are not finite, not in the dtype, or that it rounds to nearly
                nothing; all such modules are named.
            OutputError: The folder exists, overlaps an input, or cannot be written.
        """
        check_output(folder, [adapter.path for adapter in self._inputs])
        record, updates, roundings = self.record, self.updates, self._rounding
        if roundings is None:
            updates, roundings = self._rounded(updates)
            record = record.warned(rounding_warnings(roundings))
        said: dict[str, Text] = {
            RECORD_FILE: lambda sums: record.with_outputs(sums).to_json(),
            CARD_FILE: model_card(record),
        }
        return self._write(folder, updates, roundings, said)

    def save_multiple(self, folder: str | Path, factor: float) -> None:
        """Write factor · dW as a PEFT folder without record and card: to be tried, not to be kept.

        Law: up to round-off before the rounding to the dtype that is written, the tensors are those of the
        same merge with its `scale` multiplied by the factor; the same bytes where the method's result has
        scale 1 and so had the merge. Not for results that are rounded already.

        Raises:
            RiemergeError: As `save_pretrained`.
            ValueError: The updates are rounded already.
        """
        if self._rounding is not None:
            raise ValueError("the updates were rounded as they were merged: expected exact ones")
        scaled = {module: update.scaled(factor) for module, update in self.updates.items()}
        self._write(folder, *self._rounded(scaled), {})

    def _rounded(
        self, updates: Mapping[str, LowRankUpdate]
    ) -> tuple[Mapping[str, LowRankUpdate], Mapping[str, Rounding]]:
        rounded = RoundedUpdates(self._out_dtype)
        for module, update in updates.items():
            rounded.add(module, update)
        rounded.check()
        return rounded.updates, rounded.roundings

    def _write(
        self,
        folder: str | Path,
        updates: Mapping[str, LowRankUpdate],
        rounding: Mapping[str, Rounding],
        extra_files: Mapping[str, Text],
    ) -> dict[str, float]:
        ranks = written_ranks(self.record.recipe, self.record.modules)
        padded = {module: update.padded(ranks[module]) for module, update in updates.items()}
        like, dtype = self._inputs, self._out_dtype
        return write_adapter(
            folder, padded, like=like, dtype=dtype, rounding=rounding, extra_files=extra_files
        )


def merge_adapters(
    adapters: Sequence[str | Path | Adapter],
    weights: Sequence[float] | None = None,
    *,
    method: str = DEFAULT_METHOD,
    solver: Any = None,
    statistics: Sequence[str | Path] | None = None,
    base_statistics: str | Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    dtype: str = "float64",
    out_dtype: str | None = None,
    uniform_rank: bool = False,
    progress: Listener | None = None,
    **parameters: Any,
) -> MergeResult:
    """Merge PEFT LoRA adapters of one base model into one, without the base model.

    Law: a function of the updates dW and the weights. The order of the adapters changes no bit of the
    updates (but of trajectories, where it is the point), an adapter of weight 0 is not even read, and k
    copies of one adapter merge to it where the method's row claims so. Nothing is written.

    Args:
        adapters: Folders, or adapters already read; at least one that has a weight.
        weights: One finite number each; all 1 if not given.
        method: A name of `riemerge.methods.METHODS`.
        solver: Name of a solver or a Pymanopt optimizer, for a method that takes one.
        statistics: A folder of `riemerge.collect_statistics` for each adapter, for a method that needs them.
        base_statistics: Folder of statistics of the base model.
        device: `cpu`, `cuda` (also `cuda:1`), or `auto` for cuda where there is one.
        threads: How many work at once on a CPU; they change no bit. As many as the CPUs that this process may
            use if not given.
        dtype: `float64` or `float32`, of the tall factors; the reduced problem is always float64.
        out_dtype: Dtype that is written, such as `bfloat16`; None keeps that of the inputs.
        uniform_rank: Whether all modules are written with one rank, by columns of zero, also where `rank` is
            a share of the energy, or left out and the inputs have several. A number and `sum` always are.
        progress: Called now and then.
        parameters: Those of the method, as `riemerge methods` lists them: `rank` (a number, a share such as
            `95%`, or `sum` for all of an exact result), `scale` (the factor λ on the merged update),
            `density`, `tol`, `seed`, ...; each a value, a gradient over depth, or a list of filters.

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
    folders: list[str | Path | None] = list(statistics) if statistics else [None] * len(adapters)
    if len(folders) != len(adapters):
        raise RecipeError(
            f"statistics: {len(folders)} for {len(adapters)} adapters: give one folder for each"
        )
    named = solver if solver is None or isinstance(solver, str) else type(solver).__name__
    said = {"solver": named, **parameters}
    paths = [one.path if isinstance(one, Adapter) else one for one in adapters]
    recipe = make_recipe(
        {
            "merge_method": method,
            "models": [
                {
                    "model": str(path),
                    "parameters": {"weight": _plain(weight)},
                    "statistics": folder and str(folder),
                }
                for path, weight, folder in zip(paths, given, folders, strict=True)
            ],
            "base_statistics": base_statistics and str(base_statistics),
            "parameters": {name: _plain(value) for name, value in said.items() if value is not None},
            "dtype": dtype,
            "out_dtype": out_dtype,
            "uniform_rank": uniform_rank,
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
    job = AdapterMerge(recipe, opened or {}, optimizer, device, threads, progress)
    return job.result(round_at_once=round_at_once)


@final
class AdapterMerge:
    """A merge of adapters, checked and opened; `run` does it, and hands each module on as it is done.

    Args:
        recipe: What to merge, and how; all arguments are those of `merge_recipe`.

    Attributes:
        adapters: The inputs that count, in the order of the stack.
        out_dtype: What is to be written.
    """

    def __init__(
        self,
        recipe: Recipe,
        opened: Mapping[int, Adapter],
        optimizer: Any,
        device: str,
        threads: int | None,
        progress: Listener | None,
    ) -> None:
        self._started = perf_counter()
        recipe = expanded(recipe)
        self._recipe, self._method = recipe, find_method(recipe.merge_method)
        self._asked = {**self._method.defaults, **recipe.parameters}
        named = self._asked.get("solver")
        if optimizer is None and named is not None and named not in SOLVERS:
            raise RecipeError(f"parameters.solver: unknown solver {named!r}: {did_you_mean(named, SOLVERS)}")
        rank = self._asked.get("rank")
        fixed = self._method.domain is None or (self._method.constrained and rank != "sum")
        if isinstance(rank, str) and fixed:
            raise RecipeError(
                f"parameters.rank: {rank}: {self._method.name} has one rank: give a number, or leave it out"
            )
        self._where = find_device(device)
        self._threads = find_threads(threads, self._where)
        self._optimizer = optimizer or named
        self._tell = progress or (lambda _: None)
        self._inputs = open_inputs(recipe, self._method, opened)
        self.adapters = tuple(one.model for one in self._inputs)
        self._resolver = Resolver(recipe, self._method, sorted(self.adapters[0].modules))
        dtype = getattr(torch, recipe.dtype)
        self._stack = stack(recipe, self._inputs, self._resolver, self._method, dtype, self._where)
        own = reduce(torch.promote_types, [adapter.dtype for adapter in self.adapters])
        self.out_dtype: torch.dtype = getattr(torch, recipe.out_dtype) if recipe.out_dtype else own

    def result(self, *, round_at_once: bool) -> MergeResult:
        """Merge all modules into memory, as `merge_recipe` does."""
        rounded = RoundedUpdates(self.out_dtype)
        updates: dict[str, LowRankUpdate] = {}

        def keep(module: str, update: LowRankUpdate | Tensor) -> None:
            assert isinstance(update, LowRankUpdate)
            if round_at_once:
                rounded.add(module, update)
            else:
                updates[module] = update

        record = self.run(keep)
        rounded.check()
        return MergeResult(
            rounded.updates if round_at_once else updates,
            record.warned(rounding_warnings(rounded.roundings)),
            self.adapters,
            self.out_dtype,
            rounded.roundings if round_at_once else None,
        )

    def run(self, keep: Keep, *, dense: bool = False) -> RunRecord:
        """Merge all modules.

        Args:
            keep: Called with each module and its merged update, scale included.
            dense: Whether whole results are wanted, without factors where they have none.
        """
        read = perf_counter()
        options = Options(
            solver=self._optimizer,
            threads=self._threads,
            dense=dense,
            progress=lambda *what: self._tell(Progress(*what)),
            doubtful=doubtful,
            later=bool(self._resolver.matched),
            **{name: self._asked[name] for name in _OPTIONS if name in self._asked},
        )
        order = sorted(range(len(self._inputs)), key=lambda i: self._inputs[i].place)
        stored = [one.model.dtype for one in self._inputs]
        evidence: dict[str, Evidence] = {}
        rows: list[ModuleRow] = []
        factor: float | None = None

        def measured(merged: tuple[str, Merged]) -> tuple[ModuleRow, Evidence, LowRankUpdate | Tensor]:
            module, one = merged
            scale, update = self._resolver.scale(module, factor), one.update
            row = module_row(module, update.shape, one, scale, self._stack, stored, order, self._method)
            if isinstance(update, Tensor):
                return row, one.evidence, scale * update
            return row, one.evidence, update.scaled(scale).absorbed()

        with single_threaded():
            merged = run_method(self._method, self._stack, options)
            if options.later:
                every, there = list(merged), self._resolver.matched
                of = self._stack.weights
                norms = [Norms.of(one, of(name), stored) for name, one in every if name in there]
                factor, merged = matched(norms), iter(every)
            # Of dense results one at a time is a lot.
            for row, known, update in in_order(measured, merged, 1 if dense else self._threads):
                rows.append(row)
                evidence[row.module] = known
                keep(row.module, update)
                self._tell(Progress("measure", len(rows), len(self._stack.modules), ""))
        check_directions(self._method, rows)
        return run_record(
            self._recipe,
            self._method,
            "delta" if dense else "adapter",
            self.out_dtype,
            device=self._where,
            bases=[adapter.config.base_model_name_or_path for adapter in self.adapters],
            model_class=adapted_class(self.adapters),
            inputs=self._inputs,
            weights=self._stack.weights,
            modules=self._stack.modules,
            rows=rows,
            matched_scale=factor,
            evidence=evidence,
            began=self._started,
            read=read,
        )


def _plain(value: Any) -> Any:
    """A number of any library as Python's own; anything else as it is, for the recipe to refuse."""
    if isinstance(value, bool | int | float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


merge = merge_adapters
"""`merge_adapters` under its public name, `riemerge.merge`."""
