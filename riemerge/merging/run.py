"""Running a plan: every module read, merged by the method, scaled, measured, and handed on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import TypeAlias

from riemerge.linalg import single_threaded
from riemerge.merging.caveats import check_directions
from riemerge.merging.measure import module_row
from riemerge.merging.plan import Plan
from riemerge.merging.recording import run_record
from riemerge.methods import Evidence, Merged, run_method
from riemerge.methods.scale import Norms, match_norms
from riemerge.methods.threads import in_order
from riemerge.progress import Listener, Progress
from riemerge.records.run_record import ModuleRow, RunRecord
from riemerge.updates import Dense, DenseBlocks, LowRankUpdate

_Update: TypeAlias = LowRankUpdate | Dense | DenseBlocks
Keep: TypeAlias = Callable[[str, _Update], None]
"""What is done with each module and its merged update, scale λ included, as they are done."""


def run(plan: Plan, keep: Keep, progress: Listener | None = None) -> RunRecord:
    """Merge all modules of a plan.

    Law: a function of the updates and the weights: neither the order of the models nor the number of threads
    changes a bit (but of trajectories, where the order is the point). An update is handed on as soon as it is
    done; those of dense results one at a time, since they are large.

    Args:
        plan: What to do.
        keep: Called with each module and its merged update.
        progress: Called now and then, with numbers of modules.

    Returns:
        The record of what was done.

    Raises:
        NumericalError: The method has no answer for some modules: all of them are named.
        AdapterError: An update cannot be read.
    """
    began = perf_counter()
    stack, stored, order = plan.stack, plan.inputs.stored, plan.inputs.order
    evidence: dict[str, Evidence] = {}
    rows: list[ModuleRow] = []
    factor: float | None = None

    def measure(
        merged: tuple[str, Merged],
    ) -> tuple[ModuleRow, Evidence, LowRankUpdate | Dense | DenseBlocks]:
        module, result = merged
        scale, update = plan.resolver.scale(module, factor), result.update
        if isinstance(update, DenseBlocks):  # measured in the pass in which it is written
            keep(module, update.times(scale))
        full = plan.options.overlaps is not None
        row = module_row(module, update.shape, result, scale, stack, stored, order, plan.method, full=full)
        return row, result.evidence, update.times(scale).absorb_scale()

    with single_threaded():
        results = run_method(plan.method, stack, replace(plan.options, progress=progress))
        if modules := plan.resolver.matched:
            waiting = list(results)
            factor = match_norms(
                Norms.of(result, stack.weights(module), stored)
                for module, result in waiting
                if module in modules
            )
            results = iter(waiting)
        threads = plan.options.threads
        if plan.out_type == "checkpoint" or (plan.out_type == "delta" and not modules):
            threads = 1  # what is lifted already is only handed on, and large
        for row, known, update in in_order(measure, results, threads):
            rows.append(row)
            evidence[row.module] = known
            if not isinstance(update, DenseBlocks):
                keep(row.module, update)
            if progress is not None:
                progress(Progress("measure", len(rows), len(stack.modules), ""))
    rows.sort(key=lambda row: row.module)
    evidence = {row.module: evidence[row.module] for row in rows}
    check_directions(plan.method, rows)
    return run_record(plan, rows, evidence, matched_scale=factor, solve=perf_counter() - began)
