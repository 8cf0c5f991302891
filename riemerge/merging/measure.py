"""Measuring a merge: norms and distances of each module, and of all modules together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import torch

from riemerge.merging.identifiability import judge_modules, judge_overlap, mean_overlap, overlaps
from riemerge.methods import Merged, Method, Stack
from riemerge.methods.cancelling import remainder
from riemerge.records.run_record import ModuleRow, Totals
from riemerge.updates.reduction import Reduction

_Value = TypeVar("_Value")
_Result = TypeVar("_Result")

# What the evidence of a method says of a module, as a row has it.
_EVIDENCE = (
    *("cost", "gradient_norm", "horizontality", "forward_error", "passes"),
    *("energy_kept", "starts", "cost_spread", "update_spread"),
)


def module_row(
    module: str,
    shape: tuple[int, ...],
    merged: Merged,
    scale: float,
    stack: Stack,
    stored: Sequence[torch.dtype],
    order: Sequence[int],
    method: Method,
    *,
    full: bool = True,
) -> ModuleRow:
    """Measure one merged module.

    Args:
        module: The name of the module.
        shape: (m, n) of the module.
        merged: What a method made of it.
        scale: The factor λ on it.
        stack: What was merged.
        stored: T dtypes in which the factors of the inputs were stored.
        order: Places in the stack, in the order in which the record names the inputs.
        method: The row of the table that merged them.
        full: Whether the overlap of the inputs is measured.
    """
    inputs, evidence = merged.inputs, merged.evidence
    measured, numerical = merged.measure(scale), evidence.numerical_ranks
    norms = measured.inputs
    facts: dict[str, Any] = {name: getattr(evidence, name) for name in _EVIDENCE}
    if (known := merged.measured) is not None:
        facts |= {
            "input_ranks": tuple(known.input_ranks[i] for i in order),
            "overlap": known.overlap,
            "determined": judge_overlap(known.overlap, evidence.update_spread),
            "cancelled": known.cancelled,
        }
    elif inputs:
        overlap = None
        if full:
            (overlap,) = overlaps(Reduction.of(inputs, cast("tuple[int, int]", shape)), stack.storage)
        left = remainder(inputs, norms, stack.weights(module), stored, directions=method.directions)
        facts |= {
            "input_ranks": tuple(inputs[i].rank for i in order),
            "overlap": overlap,
            "determined": judge_overlap(overlap, evidence.update_spread),
            "cancelled": left.cancels,
        }
    return ModuleRow(
        module=module,
        shape=tuple(shape),
        numerical_ranks=numerical and tuple(numerical[i] for i in order),
        rank=known.rank if known else merged.small and merged.small.rank,
        status=evidence.status.name,
        distances=evidence.distances and tuple(evidence.distances[i] for i in order),
        norm=measured.norm,
        input_norms=tuple(norms[i] for i in order),
        relative_distances=tuple(_ratio(measured.distances[i], norms[i]) for i in order),
        **facts,
    )


def totals(rows: Sequence[ModuleRow]) -> Totals:
    """Put all modules together, as if they were one block-diagonal module."""
    norms = [math.hypot(*column) for column in zip(*(row.input_norms for row in rows), strict=True)]
    relative = zip(*(row.relative_distances for row in rows), strict=True)
    sizes = zip(*(row.input_norms for row in rows), strict=True)
    absolute = [
        math.hypot(*(d * norm for d, norm in zip(*columns, strict=True) if d is not None))
        for columns in zip(relative, sizes, strict=True)
    ]
    apart = zip(*(row.distances for row in rows if row.distances is not None), strict=True)
    spreads = [(row.update_spread * row.norm, row.norm) for row in rows if row.update_spread is not None]
    return Totals(
        modules=len(rows),
        parameters=sum(map(_parameters, rows)),
        cost=_of_known(math.fsum, (row.cost for row in rows)),
        gradient_norm=_of_known(_hypot, (row.gradient_norm for row in rows)),
        distances=tuple(_of_known(_hypot, column) for column in apart) or None,
        norm=math.hypot(*(row.norm for row in rows)),
        input_norms=tuple(norms),
        relative_distances=tuple(map(_ratio, absolute, norms)),
        statuses=dict(sorted(Counter(row.status for row in rows).items())),
        overlap=mean_overlap(row.overlap for row in rows),
        update_spread=_of_known(_common_spread, spreads),
        determined=judge_modules(row.determined for row in rows),
        determined_modules=dict(sorted(Counter(row.determined for row in rows if row.determined).items())),
    )


def _parameters(row: ModuleRow) -> int:
    """Return the number of parameters of a merged module: of its factors, if it has some."""
    if row.rank is None:
        return math.prod(row.shape)
    return sum(row.shape) * row.rank


def _common_spread(spreads: Sequence[tuple[float, float]]) -> float:
    """Return the spread of all modules as one: how far starts are apart, as a share of the norm of all."""
    apart, norms = zip(*spreads, strict=True)
    return _ratio(math.hypot(*apart), math.hypot(*norms)) or 0.0


def _of_known(combine: Callable[[list[_Value]], _Result], values: Iterable[_Value | None]) -> _Result | None:
    """Combine the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    return combine(known) if known else None


def _hypot(values: Sequence[float]) -> float:
    return math.hypot(*values)


def _ratio(value: float, unit: float) -> float | None:
    """Return a value as a multiple of a unit; None where that is 0."""
    return value / unit if unit > 0 else None
