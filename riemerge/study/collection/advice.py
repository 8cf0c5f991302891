"""Advice: what to do with groups of a collection, each with the number that says so and the command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby

from riemerge.formats.files.text import list_names
from riemerge.methods import DEFAULT_METHOD
from riemerge.records.collection_record import Action, Advice, Cluster, CollectedAdapter, CopyGroup, Outlier
from riemerge.report.collection_text import likeness

RELATED = 0.1
"""Mean cosine from which on the adapters of a cluster are a family; unrelated ones are near 0."""

MOST_STRANGERS = 20
"""Unrelated adapters up to which a merge of all of them is worth a try."""


def advise_on(
    adapters: Sequence[CollectedAdapter],
    copies: Sequence[CopyGroup],
    clusters: Sequence[Cluster],
    outliers: Sequence[Outlier],
) -> tuple[Advice, ...]:
    """Return what to do with a collection: drop copies, merge families, then strangers, look at outliers.

    Args:
        adapters: The T adapters.
        copies: Groups of copies.
        clusters: Clusters.
        outliers: Adapters that are unlike what is usual.
    """
    facts = {adapter.name: adapter for adapter in adapters}
    out = {repetition.name for group in copies for repetition in group.repetitions}
    out |= {outlier.name for outlier in outliers}
    advice, strangers = list(map(_drop, copies)), list[str]()
    for cluster in clusters:
        members = [name for name in cluster.members if name not in out]
        if cluster.kind != "family":
            strangers += members
        elif len(members) > 1:
            advice.append(_merge_family(cluster, members, facts))
    if len(strangers) > 1:
        advice.append(_merge_strangers(sorted(strangers), facts))
    by_name = groupby(sorted(outliers, key=lambda one: one.name), key=lambda one: one.name)
    return (*advice, *(_leave_out(name, list(some)) for name, some in by_name))


def _advise(
    action: Action, names: Sequence[str], text: str, measure: str, value: float, command: str = ""
) -> Advice:
    return Advice(
        action=action, adapters=tuple(names), text=text, measure=measure, value=value, command=command
    )


def _drop(group: CopyGroup) -> Advice:
    names = [repetition.name for repetition in group.repetitions]
    each = [f"{repetition.name} ({likeness(repetition)})" for repetition in group.repetitions]
    text = f"keep {group.kept}, drop {list_names(each, 10)}"
    worst = max(repetition.distance for repetition in group.repetitions)
    return _advise("drop", names, text, "largest relative distance", worst)


def _merge_family(cluster: Cluster, names: Sequence[str], facts: Mapping[str, CollectedAdapter]) -> Advice:
    action: Action = "average"
    reason = "they may not determine a Fréchet mean of one rank, and always have an average"
    if cluster.determined == "yes":
        action, reason = "geomerge", "they determine their Fréchet mean of one rank"
    who = f"{len(names)} adapters of cluster {cluster.label}, around {cluster.medoid}"
    text = f"merge {who}, by {action}: {reason}"
    command = _command(names, facts, action, f"family-{cluster.label}")
    return _advise(action, names, text, "mean cosine", cluster.cosine or 0.0, command)


def _merge_strangers(names: Sequence[str], facts: Mapping[str, CollectedAdapter]) -> Advice:
    cosines = [facts[name].mean_cosine or 0.0 for name in names]
    text = f"keep {len(names)} unrelated adapters apart: a merge keeps a part of each"
    command = ""
    if len(names) <= MOST_STRANGERS:
        text += f"; if one is wanted, try the default ({DEFAULT_METHOD}) and evaluate it"
        command = _command(names, facts, DEFAULT_METHOD, "strangers")
    return _advise("default", names, text, "mean cosine", sum(cosines) / len(cosines), command)


def _leave_out(name: str, outliers: Sequence[Outlier]) -> Advice:
    texts = {
        "direction": "its nearest neighbour is {:.0f}° away, {:.0f}° is usual",
        "norm": "its ‖dW‖ is {:.3g}, {:.3g} is usual",
    }
    reasons = "; ".join(texts[one.measure].format(one.value, one.usual) for one in outliers)
    text, command = f"look at {name} before a merge: {reasons}", f"riemerge inspect {shlex.quote(name)}"
    score = max(one.score for one in outliers)
    return _advise("leave out", [name], text, "robust standard deviations", score, command)


def _command(names: Sequence[str], facts: Mapping[str, CollectedAdapter], method: str, output: str) -> str:
    """Return the command of a merge, which runs where the adapters lie."""
    words = ["riemerge", "merge", *names, "-o", output, "--method", method]
    words += ["--missing", "zero"] * any(facts[name].missing for name in names)
    ranks = {rank for name in names for rank in facts[name].ranks}
    words += ["--rank", str(min(ranks))] * (method == "geomerge" and len(ranks) > 1)
    return shlex.join(words)
