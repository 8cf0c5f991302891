"""Recording: what of a merge goes into its run record, beside what was measured."""

from __future__ import annotations

import math
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from riemerge._version import __version__
from riemerge.formats.adapter import Adapter
from riemerge.formats.checkpoint import code_notes
from riemerge.formats.files.text import list_names
from riemerge.formats.fit import differing_facts
from riemerge.formats.licence import read_licence
from riemerge.merging.caveats import peer_warnings, scale_warnings, zero_warnings
from riemerge.merging.inputs import display_names
from riemerge.merging.measure import totals
from riemerge.merging.model_class import base_model, model_class
from riemerge.merging.plan import PEFT, Plan
from riemerge.methods import Evidence
from riemerge.records.run_record import InputRow, MissingRow, ModuleRow, RunRecord, Timing
from riemerge.records.written_ranks import rank_warnings, written_ranks


def run_record(
    plan: Plan,
    rows: Sequence[ModuleRow],
    evidence: Mapping[str, Evidence],
    *,
    matched_scale: float | None,
    solve: float,
) -> RunRecord:
    """Put the record of a merge together, now that it has ended.

    Args:
        plan: What was to be done.
        rows: What was measured of each module.
        evidence: What the method says of its solve in each module.
        matched_scale: What `scale: matched` came to; None where no module asked for it.
        solve: Wall seconds of the run.
    """
    inputs, resolved = plan.inputs, plan.resolved
    weights = [plan.stack.weights(name) for name in inputs.names]
    rows, missing = _with_stored_ranks(plan, rows), _missing_rows(plan)
    warnings = [
        *_known_notes(plan, missing),
        *_warnings(plan, evidence, rows),
        *zero_warnings(resolved, plan.method, rows),
        *scale_warnings(matched_scale, len(inputs.each)),
        *peer_warnings(resolved, plan.method, weights),
    ]
    if plan.dialect == PEFT:
        warnings += rank_warnings(written_ranks(resolved, rows))
    return RunRecord(
        out_type=plan.out_type,
        recipe=resolved,
        translations=plan.recipe.translations,
        versions=versions(),
        device=plan.device.type,
        base_model=planned_base(plan),
        licence=_common_licence(plan),
        model_class=model_class(inputs),
        inputs=_input_rows(plan, weights),
        beside=plan.read_beside,
        modules=tuple(rows),
        missing=missing,
        heads=plan.heads.row,
        totals=totals(rows),
        matched_scale=matched_scale,
        advice={one.status.name: one.advice for one in evidence.values() if one.advice},
        warnings=tuple(warnings),
        timing=Timing(
            read=plan.seconds,
            solve=solve,
            modules={module: one.seconds for module, one in evidence.items()},
        ),
    )


def planned_base(plan: Plan) -> str | None:
    """Return the base model that the result of a merge will name; None where the inputs name none."""
    if plan.inputs.checkpoints:
        return base_model([plan.recipe.base_name or plan.recipe.base_model])
    return base_model(adapter.config.base_model_name_or_path for adapter in plan.inputs.adapters)


def _common_licence(plan: Plan) -> str | None:
    """Return the licence that the cards of all models name; None where one names none or another."""
    licences = {read_licence(model.path) for model in plan.inputs.opened}
    return licences.pop() if len(licences) == 1 else None


def planned_warnings(plan: Plan) -> list[str]:
    """Return what a merge will warn of, as far as it does not depend on tensors."""
    weights = [plan.stack.weights(name) for name in plan.inputs.names]
    return [
        *_known_notes(plan, _missing_rows(plan)),
        *_warnings(plan, {}, ()),
        *peer_warnings(plan.resolved, plan.method, weights),
    ]


def _known_notes(plan: Plan, missing: Sequence[MissingRow]) -> list[str]:
    """Return what is to be said of the inputs, and of what goes with the result."""
    inputs = plan.inputs
    notes = [*inputs.notes, *_missing_warnings(missing, len(inputs.modules))]
    notes += filter(None, [plan.heads.note])
    if inputs.checkpoints:
        return [*code_notes(inputs.carried), *notes]
    return notes


def _input_rows(plan: Plan, weights: Sequence[Sequence[float]]) -> tuple[InputRow, ...]:
    """Return the inputs as recorded, in the order asked for.

    Args:
        plan: What names them.
        weights: T weights as used in each module.
    """
    recipe = plan.recipe
    names = display_names([entry.model for entry in recipe.models])
    rows = [
        InputRow(name=name, weight=weight, share=0.0)
        for name, weight in zip(names, recipe.weights, strict=True)
    ]
    for one, share in zip(plan.inputs.each, zip(*weights, strict=True), strict=True):
        model = one.model
        mean = math.fsum(share) / len(share)
        if len(set(share)) == 1:
            mean = share[0]  # exactly that of every module
        rows[one.place] = InputRow(
            name=one.name,
            weight=recipe.weights[one.place],
            share=mean,
            sha256=dict(model.sha256),
            ranks=tuple(sorted(set(model.ranks.values()))),
            dtype=", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in model.stored)),
        )
    return tuple(rows)


def _with_stored_ranks(plan: Plan, rows: Sequence[ModuleRow]) -> list[ModuleRow]:
    """Return the rows of modules with rank 0 of adapters that lack them, whose update was read as zero."""
    inputs, order, stored = plan.inputs, plan.inputs.order, []
    for row in rows:
        if lacking := inputs.lacking.get(row.module):
            ranks = zip(order, row.input_ranks, strict=True)
            own = tuple(rank * (place not in lacking) for place, rank in ranks)
            stored.append(row.model_copy(update={"input_ranks": own}))
        else:
            stored.append(row)
    return stored


def _missing_rows(plan: Plan) -> tuple[MissingRow, ...]:
    inputs, counted = plan.inputs, plan.inputs.missing
    return tuple(
        MissingRow(
            module=module,
            inputs=tuple(inputs.each[i].name for i in inputs.order if i in lacking),
            counted=counted,
        )
        for module, lacking in inputs.lacking.items()
        if counted != "error"
    )


_COUNTED = {
    "zero": "their updates there count as zero",
    "skip": "they take no part there, and the weights of the others count in proportion",
}


def _missing_warnings(rows: Sequence[MissingRow], total: int) -> list[str]:
    """Say in one text how many modules some adapters lack."""
    if not rows:
        return []
    names = sorted({name for row in rows for name in row.inputs})
    modules, counted = list_names(row.module for row in rows), rows[0].counted
    text = (
        f"missing: {counted}: {len(rows)} of {total} modules are lacking in {' or '.join(names)} "
        f"({modules}): {_COUNTED[counted]}"
    )
    return [text]


def _warnings(plan: Plan, evidence: Mapping[str, Evidence], rows: Sequence[ModuleRow]) -> list[str]:
    """Return what a person should know before using the result, one text for each kind of thing.

    Args:
        plan: What was to be done.
        evidence: What the method says of its solve in each module.
        rows: What was measured of each module.
    """
    recipe, inputs = plan.recipe, plan.inputs.each
    names = display_names([entry.model for entry in recipe.models])
    found = [
        f"{name}: its weight is 0: it was left out and not read"
        for name, weight in zip(names, recipe.weights, strict=True)
        if weight == 0 and recipe.slices is None
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
    """Return what is wrong with the ranks of one input, where the method depends on them."""
    zero: list[str] = []
    deficient: list[str] = []
    for row in rows:
        assert row.numerical_ranks is not None
        stored, actual = row.input_ranks[place], row.numerical_ranks[place]
        rank = min(stored, asked) if isinstance(asked, int) else stored
        if stored == 0 or (actual == 0 and row.input_norms[place] > 0):
            continue  # the adapter lacks the module, or its weight is 0 there
        if actual == 0:
            zero.append(row.module)
        elif actual < rank:
            deficient.append(f"{row.module}: {actual} of {rank}")
    found = []
    if zero:
        count = f"{len(zero)} of {len(rows)} modules ({list_names(zero)})"
        found.append(
            f"{name}: its update is all zero in {count}, like that of an adapter that was not trained there: "
            "it was left out of them, and the weights of the others count in proportion"
        )
    if deficient:
        found.append(
            f"{name}: its update is rank deficient in {len(deficient)} of {len(rows)} modules "
            f"({list_names(deficient)}): all updates of such a module were truncated to the least numerical "
            "rank before the mean; energy_kept says what that kept"
        )
    return found


def versions() -> dict[str, str]:
    """Return the versions of what computed."""
    return {
        "riemerge": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "pymanopt", "numpy")},
    }
