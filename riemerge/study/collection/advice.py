"""Advice: what to do with groups of a collection, each with the number that says so and the command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from riemerge.formats.files.text import list_names
from riemerge.methods import DEFAULT_METHOD
from riemerge.records.collection_record import (
    Action,
    Advice,
    Cluster,
    CollectedAdapter,
    CollectedModule,
    CopyGroup,
    KeptEnergy,
    Outlier,
)

RELATED = 0.1
"""Mean cosine from which on the adapters of a cluster are a family; unrelated ones are near 0."""

MOST_STRANGERS = 20
"""Unrelated adapters up to which a merge of all of them is worth a try."""

ENOUGH_KEPT, ENOUGH_SAVED = 0.9, 0.5
"""Share of the energy that common directions keep, and of the numbers that they save, to be worth storing."""


def advise_on(
    adapters: Sequence[CollectedAdapter],
    copies: Sequence[CopyGroup],
    clusters: Sequence[Cluster],
    outliers: Sequence[Outlier],
    kept: Sequence[KeptEnergy],
    modules: Sequence[CollectedModule],
) -> tuple[Advice, ...]:
    """Return what to do with a collection: copies first, then families, strangers, outliers, and storage.

    Args:
        adapters: The T adapters.
        copies: Groups of copies.
        clusters: Clusters.
        outliers: Adapters that are unlike what is usual.
        kept: Kept energies, that of all modules first.
        modules: The modules.
    """
    facts = {adapter.name: adapter for adapter in adapters}
    repeated = {repetition.name for group in copies for repetition in group.repetitions}
    odd = {outlier.name for outlier in outliers}
    advice = [_drop(group) for group in copies]
    strangers: list[str] = []
    for cluster in clusters:
        members = [name for name in cluster.members if name not in repeated]
        if cluster.kind == "family":
            advice.append(_merge_family(cluster, [name for name in members if name not in odd], facts))
        else:
            strangers += members
    advice += _merge_strangers([name for name in sorted(strangers) if name not in odd], facts)
    advice += map(_leave_out, outliers)
    return (*advice, *_share(kept, facts, modules))


def _drop(group: CopyGroup) -> Advice:
    worst = max(group.repetitions, key=lambda repetition: repetition.distance)
    names = tuple(repetition.name for repetition in group.repetitions)
    kinds = ", ".join(sorted({repetition.likeness for repetition in group.repetitions}))
    factors = [
        f"{one.name} is {one.factor:.4g} times it" for one in group.repetitions if one.likeness == "scaled"
    ]
    text = f"keep {group.kept}, drop {list_names(names, 10)} ({kinds}): their dW is a multiple of its dW"
    return Advice(
        action="drop",
        adapters=names,
        text="; ".join([text, *factors]),
        measure="largest relative distance",
        value=worst.distance,
    )


def _merge_family(cluster: Cluster, names: Sequence[str], facts: Mapping[str, CollectedAdapter]) -> Advice:
    action: Action = "average"
    reason = "they may not determine a mean of one rank, and the average is determined whatever they are"
    if cluster.determined == "yes":
        action, reason = "geomerge", "they determine their mean of one rank"
    cosine = cluster.cosine or 0.0
    return Advice(
        action=action,
        adapters=tuple(names),
        text=f"{len(names)} relatives of {cluster.medoid}: {reason}",
        measure="mean cosine",
        value=cosine,
        command=_command(names, facts, action, f"family-{cluster.label}"),
    )


def _merge_strangers(names: Sequence[str], facts: Mapping[str, CollectedAdapter]) -> list[Advice]:
    if len(names) < 2:
        return []
    cosines = [facts[name].mean_cosine or 0.0 for name in names]
    text = f"{len(names)} unrelated adapters: a merge of them keeps part of each: keep them apart"
    command = ""
    if len(names) <= MOST_STRANGERS:
        text += f", or merge them by the default ({DEFAULT_METHOD}) and evaluate it"
        command = _command(names, facts, DEFAULT_METHOD, "strangers")
    return [
        Advice(
            action="default",
            adapters=tuple(names),
            text=text,
            measure="mean cosine",
            value=sum(cosines) / len(cosines),
            command=command,
        )
    ]


def _leave_out(outlier: Outlier) -> Advice:
    what = f"its nearest neighbour is {outlier.value:.0f}° away, {outlier.usual:.0f}° is usual"
    if outlier.measure == "norm":
        what = f"its ‖dW‖ is {outlier.value:.3g}, {outlier.usual:.3g} is usual"
    return Advice(
        action="leave out",
        adapters=(outlier.name,),
        text=f"look at {outlier.name} before it is merged with others: {what}",
        measure="robust standard deviations",
        value=outlier.score,
        command=f"riemerge inspect {shlex.quote(outlier.name)}",
    )


def _share(
    kept: Sequence[KeptEnergy], facts: Mapping[str, CollectedAdapter], modules: Sequence[CollectedModule]
) -> list[Advice]:
    """Advise common directions where they keep most of the energy in half of the numbers."""
    total = kept[0]
    k = next((k for k, share in zip(total.directions, total.kept, strict=True) if share >= ENOUGH_KEPT), None)
    if k is None:
        return []
    rank = sum(max(adapter.ranks) for adapter in facts.values()) / len(facts)
    own = sum(module.adapters * rank * sum(module.shape) for module in modules)
    shared = sum(
        sum(min(k, size) * size for size in module.shape)
        + module.adapters * min(k, module.shape[0]) * min(k, module.shape[1])
        for module in modules
    )
    if shared > ENOUGH_SAVED * own:
        return []
    return [
        Advice(
            action="share",
            adapters=tuple(facts),
            text=f"{k} common directions a side store the collection in {shared / own:.0%} of its numbers",
            measure="energy kept",
            value=dict(zip(total.directions, total.kept, strict=True))[k],
        )
    ]


def _command(names: Sequence[str], facts: Mapping[str, CollectedAdapter], method: str, output: str) -> str:
    """Return the command of a merge, which runs where the adapters lie."""
    words = ["riemerge", "merge", *names, "-o", output, "--method", method]
    if any(facts[name].missing for name in names):
        words += ["--missing", "zero"]
    ranks = {rank for name in names for rank in facts[name].ranks}
    if method == "geomerge" and len(ranks) > 1:
        words += ["--rank", str(min(ranks))]
    return shlex.join(words)
