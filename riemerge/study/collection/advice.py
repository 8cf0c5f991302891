"""Advice: what to do with groups of a collection, each with the number that says so and the command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from riemerge.formats.base_names import agree_on_base
from riemerge.formats.files.text import list_names, show
from riemerge.methods import DEFAULT_METHOD
from riemerge.records.collection_record import (
    Action,
    Advice,
    Cluster,
    CollectedAdapter,
    CopyGroup,
    Opposition,
    Outlier,
)
from riemerge.report.collection_text import likeness
from riemerge.report.words import number

RELATED = 0.1
"""Mean cosine from which on the adapters of a cluster are a family; unrelated ones are near 0."""

MOST_STRANGERS = 20
"""Unrelated adapters up to which a merge of all of them is worth a try."""


def advise_on(
    adapters: Sequence[CollectedAdapter],
    copies: Sequence[CopyGroup],
    clusters: Sequence[Cluster],
    outliers: Sequence[Outlier],
    opposed: Sequence[Opposition],
    cosine: Tensor,
) -> tuple[Advice, ...]:
    """Return what to do with a collection: drop copies, merge families, then strangers, look at outliers.

    Args:
        adapters: The T adapters.
        copies: Groups of copies.
        clusters: Clusters.
        outliers: Adapters that are unlike what is usual.
        opposed: Adapters that are negative multiples of another.
        cosine: Cosines of all pairs (T, T).
    """
    facts = {adapter.name: adapter for adapter in adapters}
    unusual = [*(one.name for one in outliers), *(one.name for one in opposed)]
    out = {*unusual, *(repetition.name for group in copies for repetition in group.repetitions)}
    advice, strangers = [one for group in copies for one in _advise_on_copies(group)], list[str]()
    for cluster in clusters:
        members = [name for name in cluster.members if name not in out]
        if cluster.kind != "family":
            strangers += members
        elif len(members) > 1:
            advice.append(_merge_family(cluster, members, facts))
    if len(strangers) > 1:
        places = {adapter.name: place for place, adapter in enumerate(adapters)}
        some = torch.tensor([places[name] for name in sorted(strangers)])
        rows, columns = torch.triu_indices(len(some), len(some), offset=1)
        advice.append(_merge_strangers(sorted(strangers), facts, cosine[some[rows], some[columns]]))
    by_name = groupby(sorted(outliers, key=lambda one: one.name), key=lambda one: one.name)
    looks = {name: list(some) for name, some in by_name}
    opposite = {one.name: one for one in opposed}
    return (
        *advice,
        *(_look_at(name, looks.get(name, []), opposite.get(name)) for name in sorted({*unusual})),
    )


def _advise(
    action: Action, names: Sequence[str], text: str, measure: str, value: float, command: str = ""
) -> Advice:
    return Advice(
        action=action, adapters=tuple(names), text=text, measure=measure, value=value, command=command
    )


def _advise_on_copies(group: CopyGroup) -> Iterator[Advice]:
    """Yield what to do with equal updates, and with multiples, of which none stands for another unsaid."""
    actions: dict[bool, tuple[Action, str]] = {
        False: ("drop", "keep {}, drop {}"),
        True: (
            "choose",
            "choose one of {} and {}: one direction in several sizes; elsewhere the first is used",
        ),
    }
    for scaled, (action, text) in actions.items():
        some = [one for one in group.repetitions if (one.likeness == "scaled") == scaled]
        each = list_names([f"{one.name} ({likeness(one)})" for one in some], 10)
        if some:
            worst = max(one.distance for one in some)
            names = [one.name for one in some]
            yield _advise(
                action, names, text.format(show(group.kept), each), "largest relative distance", worst
            )


def _merge_family(cluster: Cluster, names: Sequence[str], facts: Mapping[str, CollectedAdapter]) -> Advice:
    action: Action = "average"
    reason = "they may not determine a Fréchet mean of one rank, and always have an average"
    if cluster.determined == "yes":
        action, reason = "geomerge", "they determine their Fréchet mean of one rank"
    who = f"{len(names)} adapters of cluster {cluster.label}, around {show(cluster.medoid)}"
    text = f"merge {who}, by {action}: {reason}{_say_of_heads(names, facts)}"
    command = _command(names, facts, action, f"family-{cluster.label}")
    return _advise(action, names, text, "mean cosine", cluster.cosine or 0.0, command)


def _merge_strangers(names: Sequence[str], facts: Mapping[str, CollectedAdapter], cosines: Tensor) -> Advice:
    """Advise on adapters of no family, by the cosines of their pairs."""
    related, largest = "unrelated", float(cosines.max())
    if largest >= RELATED:
        related = "weakly related"
    text = f"keep {len(names)} {related} adapters apart (largest cosine {number(largest)})"
    text += ": a merge keeps a part of each"
    command = ""
    if len(names) <= MOST_STRANGERS:
        text += f"; if one is wanted, try the default ({DEFAULT_METHOD}) and evaluate it"
        text += _say_of_heads(names, facts)
        command = _command(names, facts, DEFAULT_METHOD, "strangers")
    return _advise("default", names, text, "mean cosine", float(cosines.mean()), command)


def _look_at(name: str, outliers: Sequence[Outlier], opposition: Opposition | None) -> Advice:
    texts = {
        "direction": "its nearest neighbour is {:.0f}° away, {:.0f}° is usual",
        "norm": "its ‖dW‖ is {:.3g}, {:.3g} is usual",
    }
    reasons = [texts[one.measure].format(one.value, one.usual) for one in outliers]
    measure, value = "robust standard deviations", max((one.score for one in outliers), default=0.0)
    if opposition is not None:
        factor = number(opposition.factor)
        reasons.insert(0, f"it is {factor} times {show(opposition.of)}, and both cancel in a merge")
        measure, value = "relative distance", opposition.distance
    text = f"look at {show(name)} before a merge: {'; '.join(reasons)}"
    return _advise("leave out", [name], text, measure, value, _write_command(["riemerge", "inspect"], [name]))


def _have_alike_heads(names: Sequence[str], facts: Mapping[str, CollectedAdapter]) -> bool:
    """Return whether all save whole tensors of equal names and shapes: only those have a mean."""
    return all(facts[name].saved == facts[names[0]].saved for name in names)


def _say_of_heads(names: Sequence[str], facts: Mapping[str, CollectedAdapter]) -> str:
    if not any(facts[name].saved for name in names):
        return ""
    if _have_alike_heads(names, facts):
        return "; the tensors saved beside their factors are averaged: see that their labels agree"
    return "; the tensors saved beside their factors differ, and are left out"


def _command(names: Sequence[str], facts: Mapping[str, CollectedAdapter], method: str, output: str) -> str:
    """Return the command of a merge, which runs where the adapters lie."""
    words = ["-o", output, "--method", method]
    some = [facts[name] for name in names]
    words += ["--missing", "zero"] * (len({adapter.missing for adapter in some}) > 1)
    bases = {Path(adapter.name): adapter.base_model for adapter in some}
    words += ["--same-base"] * bool(agree_on_base(bases).problems)
    if any(adapter.saved for adapter in some):
        words += ["--heads", ("drop", "average")[_have_alike_heads(names, facts)]]
    ranks = {rank for adapter in some for rank in adapter.ranks}
    words += ["--rank", str(min(ranks))] * (method == "geomerge" and len(ranks) > 1)
    return _write_command(["riemerge", "merge"], names, words)


def _write_command(program: Sequence[str], names: Sequence[str], options: Sequence[str] = ()) -> str:
    """Return a command; none where a name cannot be printed. A name that looks like an option is a path."""
    if not all(name.isprintable() for name in names):
        return ""
    paths = [f"{'./' * name.startswith('-')}{name}" for name in names]
    return shlex.join([*program, *paths, *options])
