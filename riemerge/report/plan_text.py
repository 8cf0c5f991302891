"""The text of a dry run: what a merge will do, what that takes, and what it will warn of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from riemerge.formats.files.text import list_names
from riemerge.records.plan_record import PlannedInput, PlannedModule, PlanRecord
from riemerge.report.words import printable, text_of, when

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def plan_lines(plan: PlanRecord) -> list[str]:
    """Say what a merge will do, in lines: inputs, modules by kind, the result, disk and memory, warnings."""
    most = when(not plan.exact, "at most ")
    dtype = plan.out_dtype or "the dtypes of the inputs"
    return [
        f"{plan.recipe['merge_method']} of {len(plan.inputs)} models, base model {_name(plan.base_model)}:",
        *map(_input, plan.inputs),
        f"{len(plan.modules)} modules{when(plan.copied, f', and {plan.copied} tensors of integers copied')}:",
        *_kinds(plan.modules, most),
        f"writes: {plan.out_type} as {dtype}, {most}{size(plan.disk_bytes)}",
        f"memory: about {size(plan.memory_bytes)} at its peak",
        *(f"note: {printable(text)}" for text in plan.changes),
        *(f"warning: {printable(text)}" for text in plan.warnings),
        "nothing was written",
    ]


def size(count: float) -> str:
    """Return a number of bytes in the unit that fits.

    >>> size(3 * 2**29)
    '1.5 GiB'
    """
    place = 0
    while count >= 1024 and place < len(_UNITS) - 1:
        count, place = count / 1024, place + 1
    return f"{count:.3g} {_UNITS[place]}"


def _name(base: str | None) -> str:
    return printable(base or "not named")


def _input(row: PlannedInput) -> str:
    ranks = when(row.ranks, f", rank {', '.join(map(str, row.ranks))}")
    weight = text_of(row.weight, "{:g}", missing="varies")
    return f"  {printable(row.name)}: weight {weight}, {row.modules} modules{ranks}, {row.dtype}"


def _kinds(modules: tuple[PlannedModule, ...], most: str) -> Iterator[str]:
    """Yield a line for each kind of module: those of one shape and one set of ranks."""
    kinds = Counter((row.shape, row.input_ranks, row.rank) for row in modules)
    for (shape, ranks, rank), count in kinds.items():
        names = [
            row.module for row in modules if (row.shape, row.input_ranks, row.rank) == (shape, ranks, rank)
        ]
        sizes = "×".join(map(str, shape)) or "a number"
        inputs = when(ranks, f", ranks {', '.join(map(str, ranks))}")
        written = text_of(rank, f" → rank {most}{{}}", missing="")
        yield f"  {count} of {sizes}{inputs}{written}: {printable(list_names(names, 2))}"
