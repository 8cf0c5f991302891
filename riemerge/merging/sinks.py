"""Sinks: where the merged updates of a plan go: into memory, an adapter, a delta, or a full checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.formats.adapter import Adapter, kinds_of
from riemerge.formats.checkpoint import DenseWriter
from riemerge.formats.dialects import write_adapter
from riemerge.formats.files.rounding import Rounding, change_warnings, rounding_warnings
from riemerge.formats.files.staging import Text, check_output
from riemerge.formats.rounded_updates import RoundedUpdates
from riemerge.merging.checkpoint_sink import CheckpointSink
from riemerge.merging.inputs import Inputs
from riemerge.merging.plan import PEFT, Plan
from riemerge.merging.run import Keep, run
from riemerge.progress import Listener
from riemerge.records.run_record import RunRecord
from riemerge.records.written_ranks import written_ranks
from riemerge.report.card import model_card
from riemerge.updates import Dense, DenseBlocks, LowRankUpdate

RECORD_FILE = "riemerge.json"
CARD_FILE = "README.md"
SHARD_BYTES = 5_000_000_000


class Written(NamedTuple):
    """What was done, and the largest relative error of rounding a tensor to the dtype that was written."""

    record: RunRecord
    rounding: float


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
    _dialect: str = field(repr=False)
    _out_dtype: torch.dtype = field(repr=False)
    _rounding: Mapping[str, Rounding] | None = field(repr=False)
    _saved: Mapping[str, Tensor] = field(repr=False)
    _saved_from: Mapping[str, Sequence[Adapter]] = field(repr=False)

    def save_pretrained(self, folder: str | Path) -> dict[str, float]:
        """Write the merged adapter as a folder, with `riemerge.json` and a model card in it.

        Law: the folder appears whole or not at all. It is a PEFT folder, which `PeftModel.from_pretrained`
        loads, or holds the one file of another dialect: that of the recipe, or of the first adapter. Modules
        of a lower rank than the one that is written (see `records.written_ranks`) have columns of zero. What
        the rounding moved by more than the dtype promises is a warning in what is written.

        Returns:
            For each module the relative error of rounding its dW to the dtype that is written.

        Raises:
            NumericalError: Factors that are not finite, not in the dtype, or that it rounds to nearly
                nothing; all such modules are named.
            OutputError: The folder exists, overlaps an input, or cannot be written.
        """
        return self._save(folder)[1]

    def _save(self, folder: str | Path) -> tuple[RunRecord, dict[str, float]]:
        """Write the adapter, and return the record as it lies in the folder, and the errors of rounding."""
        check_output(folder, [adapter.path for adapter in self._inputs])
        record, updates, roundings = self.record, self.updates, self._rounding
        if roundings is None:
            updates, roundings = self._round(updates)
            record = record.with_warnings(rounding_warnings(roundings))
        sums: dict[str, str] = {}

        def tell(known: Mapping[str, str]) -> str:
            sums.update(known)
            return record.with_outputs(sums).to_json()

        said: dict[str, Text] = {RECORD_FILE: tell, CARD_FILE: model_card(record)}
        errors = self._write(folder, updates, roundings, said)
        return record.with_outputs(sums), errors

    def save_multiple(self, folder: str | Path, factor: float) -> None:
        """Write factor · dW as a PEFT folder without record and card: to be tried, not to be kept.

        Law: up to round-off before the rounding to the dtype that is written, the tensors are those of the
        same merge with its `scale` multiplied by the factor; the same bytes where the method's result has
        scale 1 and so had the merge. Not for results that are rounded already.

        Raises:
            RiemergeError: What `save_pretrained` raises.
            ValueError: The updates are rounded already.
        """
        if self._rounding is not None:
            raise ValueError("the updates were rounded as they were merged: expected exact ones")
        scaled = {module: update.times(factor) for module, update in self.updates.items()}
        self._write(folder, *self._round(scaled), {})

    def _round(
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
        padded = {module: update.pad(ranks[module]) for module, update in updates.items()}
        like, dtype = self._inputs, self._out_dtype
        return write_adapter(
            folder,
            padded,
            dialect=self._dialect,
            like=like,
            dtype=dtype,
            rounding=rounding,
            saved=self._saved,
            saved_from=self._saved_from,
            extra_files=extra_files,
        )


def collect(plan: Plan, *, round_at_once: bool = False, progress: Listener | None = None) -> MergeResult:
    """Run a plan of adapters into memory.

    Args:
        plan: What to do; its result is an adapter.
        round_at_once: Keep each update only as it will be written, so that the whole merge takes no more
            memory than that: then what cannot be written in its dtype is a NumericalError here.
        progress: Called now and then.

    Raises:
        RecipeError: The plan is of something that is no adapter.
        RiemergeError: What `run` raises.
    """
    adapters, out_dtype = plan.inputs.adapters, plan.out_dtype
    if not adapters or out_dtype is None:
        raise RecipeError("models: full checkpoints are merged into a folder: use merge_into")
    dialect = plan.dialect or PEFT
    rounded = RoundedUpdates(out_dtype)
    updates: dict[str, LowRankUpdate] = {}

    def keep(module: str, update: LowRankUpdate | Dense | DenseBlocks) -> None:
        assert isinstance(update, LowRankUpdate)
        if round_at_once:
            rounded.add(module, update)
        else:
            updates[module] = update

    saved = plan.heads.read()
    saved_from = {name: [adapter for adapter, _ in own] for name, own in plan.heads.sources.items()}
    record = run(plan, keep, progress)
    rounded.check()
    record = record.with_warnings(rounding_warnings(rounded.roundings))
    if round_at_once:
        return MergeResult(
            _sort(rounded.updates), record, adapters, dialect, out_dtype, rounded.roundings, saved, saved_from
        )
    return MergeResult(_sort(updates), record, adapters, dialect, out_dtype, None, saved, saved_from)


def _sort(updates: Mapping[str, LowRankUpdate]) -> dict[str, LowRankUpdate]:
    """Return updates in the order of the names of their modules."""
    return dict(sorted(updates.items()))


def write(
    plan: Plan, folder: str | Path, *, shard_bytes: int = SHARD_BYTES, progress: Listener | None = None
) -> Written:
    """Run a plan into a new folder, with the record of the run and a card.

    Law: the folder appears whole or not at all. The record has the sha256 of every file that is written
    beside it and the card.

    Args:
        plan: What to do.
        folder: The new folder.
        shard_bytes: Most bytes of a file of tensors, for what is not an adapter.
        progress: Called now and then.

    Raises:
        RiemergeError: What `run` raises, and OutputError where the folder cannot be written.
    """
    if plan.out_type == "adapter":
        result = collect(plan, round_at_once=True, progress=progress)
        saved, errors = result._save(folder)
        return Written(saved, max(errors.values()))
    inputs = plan.inputs
    if inputs.checkpoints:
        with DenseWriter(folder, shard_bytes=shard_bytes) as writer:
            sink = CheckpointSink(plan, writer)
            record = run(plan, sink.keep, progress)
            sink.copy_until(None)
            changes = {row.module: row.norm for row in record.modules if inputs.base}
            record = record.with_warnings(rounding_warnings(writer.roundings))
            record = record.with_warnings(change_warnings(writer.roundings, changes))
            assert inputs.beside is not None
            for name, content in inputs.beside.files.items():
                if name not in {RECORD_FILE, CARD_FILE}:
                    writer.add_file(name, content)
            _describe(writer, record)
    else:
        with DenseWriter(folder, dtype=plan.out_dtype, shard_bytes=shard_bytes) as writer:
            record = run(plan, _delta_sink(inputs, writer), progress)
            record = record.with_warnings(rounding_warnings(writer.roundings))
            _describe(writer, record)
    return Written(record.with_outputs(writer.sha256), max(writer.errors.values()))


def _describe(writer: DenseWriter, record: RunRecord) -> None:
    writer.add_file(RECORD_FILE, lambda sums: record.with_outputs(sums).to_json())
    writer.add_file(CARD_FILE, model_card(record))


def _delta_sink(inputs: Inputs, writer: DenseWriter) -> Keep:
    """Return what writes the whole dW of each module as the base model stores it.

    Law: a tensor of several modules (the experts of one parameter) is written once all of them are there.

    Raises:
        AdapterError: Only the base model says how it stores the weight of a module.
    """
    layers = kinds_of(inputs.adapters)
    names = {module: layers[module].weight(module) for module in inputs.modules}
    left = Counter(names.values())
    parts: dict[str, Tensor] = {}

    def keep(module: str, update: LowRankUpdate | Dense | DenseBlocks) -> None:
        name, layer, dense = names[module], layers[module], update.dense()
        if name in parts:
            layer.view(parts[name]).copy_(dense)
        else:
            parts[name] = layer.as_stored(dense)
        left[name] -= 1
        if not left[name]:
            writer.add(name, parts.pop(name))

    return keep
