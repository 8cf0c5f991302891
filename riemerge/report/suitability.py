"""Whether a method suits the adapters that it merged: in words, with the numbers that say so."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import NamedTuple

from riemerge.methods import DEFAULT_METHOD, METHODS
from riemerge.records.run_record import Overlap, RunRecord

# Mean cosine of the updates: from where on they are parts of one update rather than updates of their own, and
# up to where they are as unrelated as those on which `measured` was found.
RELATED, UNRELATED = 0.5, 0.2

LOSS = 0.02
"""What a method must lose to another on every collection to be called worse: about a standard error of one
share, by premise groups."""

KEPT = 0.8
"""The share of the squared norm below which a cut to the rank is worth a word."""


class Measured(NamedTuple):
    """Share of the specialists' accuracy that merges kept on the collections of `benchmarks/nli`, test rows.

    Attributes:
        cosine: Mean cosine of the updates that were merged, over collections.
        methods: Row, as its command runs it without options, to its share on each collection.
    """

    cosine: float
    methods: dict[str, tuple[float, ...]]


@cache
def measured() -> Measured:
    """Return what `python -m benchmarks.nli` found."""
    text = resources.files("riemerge.report").joinpath("measured.json").read_text(encoding="utf-8")
    found = json.loads(text)
    return Measured(found["cosine"], {name: tuple(shares) for name, shares in found["methods"].items()})


def concerns(record: RunRecord) -> list[str]:
    """Say what speaks against the method for these adapters, and what to use instead.

    Law: a function of the record; empty where nothing speaks against it.

    Returns:
        Paragraphs of plain text; none for fewer than two inputs that count, or for full checkpoints.
    """
    found = record.totals.overlap
    if found is None:
        return []
    return [text for text in (_copies(record, found), _measured_worse(record, found), _cut(record)) if text]


def _copies(record: RunRecord, found: Overlap) -> str:
    """Rows that do not give copies back, on updates that nearly are copies."""
    method = METHODS[record.recipe["merge_method"]]
    if method.idempotent or method.server_step or found.cosine < RELATED:
        return ""
    return (
        f"{method.name} is for updates of their own, and these are nearly one (mean cosine "
        f"{found.cosine:.2f}; from {RELATED:g} on they share more than they differ in): what they share is "
        f"not kept as it is. Use --method {DEFAULT_METHOD} or --method average, which give copies back."
    )


def _measured_worse(record: RunRecord, found: Overlap) -> str:
    """Rows that lost to the default on real adapters as unrelated as these."""
    name, said = record.recipe["merge_method"], record.recipe.get("parameters", {})
    shares = measured().methods
    if abs(found.cosine) > UNRELATED or not {name, DEFAULT_METHOD} <= {*shares}:
        return ""
    # What was measured is the row as it runs without options, as an adapter.
    usual = {"scale": 1.0, "seed": said.get("seed"), **METHODS[name].defaults}
    if record.out_type != "adapter" or any(usual.get(key) != value for key, value in said.items()):
        return ""
    ours, best = shares[name], shares[DEFAULT_METHOD]
    if any(one > other - LOSS for one, other in zip(ours, best, strict=True)):
        return ""
    return (
        f"The updates are hardly related (mean cosine {found.cosine:.2f}). On {len(best)} collections of "
        f"real adapters as unrelated (cosine {measured().cosine:.2f}) {name} kept {_listed(ours)} of "
        f"the specialists' accuracy, {DEFAULT_METHOD} {_listed(best)}, each as its command runs it without "
        f"options (benchmarks/nli): use --method {DEFAULT_METHOD}, or measure both on your own tasks with "
        "riemerge evaluate."
    )


def _cut(record: RunRecord) -> str:
    """Results that lost much of their squared norm to the cut."""
    if METHODS[record.recipe["merge_method"]].truncates_inputs:
        return ""
    cut = [(row.norm**2, 1.0 if row.energy_kept is None else row.energy_kept) for row in record.modules]
    whole = sum(square / kept for square, kept in cut if kept > 0)
    share = sum(square for square, _ in cut) / whole if whole > 0 else 1.0
    if share >= KEPT:
        return ""
    return (
        f"The cut to the rank of the result kept {share:.0%} of the squared norm: --rank sum keeps all of "
        "it, a higher --rank more."
    )


def _listed(shares: tuple[float, ...]) -> str:
    return " and ".join(f"{share:.2f}" for share in shares)
