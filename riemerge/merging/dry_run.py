"""Dry runs: what a plan will do, and what that takes, before a tensor is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import reduce

import torch

from riemerge.formats.files.tensor_file import DTYPES
from riemerge.merging.checkpoint_sink import stored_dtype
from riemerge.merging.inputs import LARGE
from riemerge.merging.plan import Plan
from riemerge.merging.recording import planned_base, planned_warnings
from riemerge.methods.engine import Row
from riemerge.records.plan_record import PlannedInput, PlannedModule, PlanRecord
from riemerge.records.written_ranks import has_one_rank

_DOUBLE = torch.float64.itemsize

# Measured as the peak of `riemerge merge` on three adapters of rank 64 and modules of (14336, 4096): the
# process before a merge, and for each module at work a multiple of its inputs in float64: of their whole
# dW, or of their factors, by what a row sees of it.
_PROCESS = 280 * 2**20
_COPIES = {"entries": 4, "factors": 9}
_COPIES_ELSEWHERE = 6

# Runs of rows at work, where a tensor is read so: measured on a pair of (32000, 4096) with its base.
_ROWS = 6

# Of adapters merged in runs of rows: what a search for a threshold holds, and a few panels of products.
_RUNS = 2**24


def describe_plan(plan: Plan) -> PlanRecord:
    """Return what a merge will do: models, modules, ranks, disk and memory, what is dropped or renamed.

    Law: nothing is written and no tensor is read, beyond what planning reads. Where the rank follows from
    the values (a share of the energy, `sum`), ranks and bytes are bounds, and `exact` is false.

    Args:
        plan: What to do.
    """
    modules = tuple(_modules(plan))
    disk = _disk_bytes(plan, modules)
    names = {entry.place: entry for entry in plan.inputs.each}
    copied = 0
    if plan.inputs.checkpoints:
        copied = len(plan.inputs.checkpoints[0].not_float)
    return PlanRecord(
        out_type=plan.out_type,
        out_dtype=plan.resolved["out_dtype"],
        recipe=plan.resolved,
        base_model=planned_base(plan),
        inputs=tuple(
            PlannedInput(
                name=entry.name,
                weight=plan.recipe.weights[place],
                modules=len(entry.model.modules),
                ranks=tuple(sorted(set(entry.model.ranks.values()))),
                dtype=", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in entry.model.stored)),
            )
            for place, entry in sorted(names.items())
        ),
        modules=modules,
        copied=copied,
        exact=not _is_open(plan),
        disk_bytes=disk,
        memory_bytes=_memory_bytes(plan, modules, disk),
        changes=(*plan.recipe.translations, *_renames(plan.recipe.rename)),
        warnings=tuple(planned_warnings(plan)),
    )


def _renames(prefixes: Mapping[str, str]) -> Iterator[str]:
    for old, new in prefixes.items():
        yield f"modules that start with {old!r} are read as {new!r}"


# --- ranks --------------------------------------------------------------------------------------------------


def _is_open(plan: Plan) -> bool:
    """Return whether the ranks of the result follow from the values of the inputs."""
    return plan.out_type == "adapter" and isinstance(plan.options.rank, str)


def _modules(plan: Plan) -> Iterator[PlannedModule]:
    """Yield what is known of each module: the ranks are those of `written_ranks`, or bounds of them."""
    inputs, order = plan.inputs, plan.inputs.order
    ranks: dict[str, tuple[int, ...]] = {
        module: tuple(inputs.each[i].model.ranks.get(module, 0) for i in order)
        for module in inputs.modules
        if inputs.adapters
    }
    most: dict[str, int | None] = dict.fromkeys(inputs.modules)
    if plan.out_type == "adapter":
        written = {module: _rank(plan, inputs.shape(module), own) for module, own in ranks.items()}
        if has_one_rank(plan.resolved):
            written = dict.fromkeys(written, max(written.values()))
        most |= written
    for module in inputs.modules:
        yield PlannedModule(
            module=module,
            shape=inputs.shape(module),
            input_ranks=ranks.get(module, ()),
            rank=most[module],
        )


def _rank(plan: Plan, shape: tuple[int, ...], ranks: tuple[int, ...]) -> int:
    """Return the rank of a module's result, or the most that it can be."""
    asked = plan.options.rank
    if isinstance(asked, int):
        return asked
    if asked is None:
        return max(ranks)
    return min(*shape, sum(ranks))


# --- bytes --------------------------------------------------------------------------------------------------


def _disk_bytes(plan: Plan, modules: tuple[PlannedModule, ...]) -> int:
    """Return the bytes of the tensors that are written."""
    inputs = plan.inputs
    total = 0
    for row in modules:
        numbers = math.prod(row.shape)
        if row.rank is not None:
            numbers = row.rank * sum(row.shape)
        total += numbers * stored_dtype(plan, row.module).itemsize
    for name, shares in plan.heads.sources.items():
        stored = [adapter.saved[name] for adapter, _ in shares]
        own = reduce(torch.promote_types, (DTYPES[entry.dtype] for entry in stored))
        total += math.prod(stored[0].shape) * (plan.heads.dtype or own).itemsize
    for model in inputs.checkpoints[:1]:
        total += sum(math.prod(model.shape(name)) * model.dtypes[name].itemsize for name in model.not_float)
    return total


def _memory_bytes(plan: Plan, modules: tuple[PlannedModule, ...], disk: int) -> int:
    """Return the peak of the process: itself, the modules at work, and what waits to be written."""
    count, look = len(plan.inputs.each), Row.of(plan.method)
    each = []
    for row in modules:
        whole = math.prod(row.shape)
        values = plan.stack.values(row.module)
        domain = look.read_domain(values)
        copies = _COPIES.get(domain, _COPIES_ELSEWHERE)
        if plan.inputs.checkpoints:
            numbers = (count + 3) * whole  # the inputs, the base model, the result, and a copy in its dtype
            if look.by_rows(values):
                numbers = min(numbers, _ROWS * LARGE)
        elif domain == "entries" and look.by_rows(values):
            numbers = 2 * whole + _RUNS
        elif domain == "entries":
            numbers = copies * count * whole
        else:
            numbers = copies * sum(row.shape) * sum(row.input_ranks)
        if plan.out_type == "delta":
            numbers += whole
        each.append(_DOUBLE * numbers)
    at_work = sum(sorted(each)[-plan.options.threads :])
    if plan.out_type != "adapter":
        return _PROCESS + at_work  # tensors are written as they come
    return _PROCESS + at_work + disk
