"""A collection described: its adapters, modules, spectra and clusters, from the tables of all pairs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from riemerge.formats.files.text import list_names, show
from riemerge.merging.identifiability import judge_modules, judge_overlap, overlaps
from riemerge.records.collection_record import (
    Cluster,
    ClusterKind,
    CollectedAdapter,
    CollectedModule,
    ModuleGroup,
    Spectrum,
)
from riemerge.records.run_record import Determined
from riemerge.study.collection.advice import RELATED
from riemerge.study.collection.clusters import Clustering, chords, find_medoid
from riemerge.study.collection.members import Members
from riemerge.study.collection.totals import Pairs, PerModule
from riemerge.updates.reduction import reduce

JUDGED = 6
"""Members of a cluster of which it is judged whether they determine their mean."""


def describe_adapters(
    members: Members, per_module: PerModule, pairs: Pairs, stands: Sequence[int], clustering: Clustering
) -> tuple[CollectedAdapter, ...]:
    """Return what each adapter is."""
    squares = per_module.norms.square().sum(dim=1)
    leading = per_module.singular_values[:, :, 0].double().square().sum(dim=1)
    standing = torch.tensor(stands)
    others = (standing.unsqueeze(1) != standing) & (standing == torch.arange(len(stands)))
    counts = others.sum(dim=1)
    cosines = (pairs.cosine * others).sum(dim=1) / counts.clamp_min(1)
    there = per_module.ranks > 0
    numerical = per_module.numerical_ranks.sum(dim=1) / there.sum(dim=1)
    return tuple(
        CollectedAdapter(
            name=name,
            sha256=dict(adapter.sha256),
            base_model=adapter.config.base_model_name_or_path,
            dtype=str(adapter.dtype).removeprefix("torch."),
            norm=float(squares[i].sqrt()),
            ranks=tuple(sorted(set(adapter.ranks.values()))),
            numerical_rank=float(numerical[i]),
            stable_rank=float(squares[i] / leading[i]),
            missing=tuple(module for module in members.modules if module not in adapter.ranks),
            saved={name: tuple(entry.shape) for name, entry in sorted(adapter.saved.items())},
            cluster=int(clustering.labels[i]),
            mean_cosine=float(cosines[i]) if counts[i] else None,
        )
        for i, (name, adapter) in enumerate(zip(members.names, members.adapters, strict=True))
    )


def describe_modules(members: Members, per_module: PerModule) -> tuple[CollectedModule, ...]:
    """Return what each module is, and how far random spaces would overlap in it."""
    described = []
    for k, module in enumerate(members.modules):
        there = per_module.ranks[:, k] > 0
        rank = float(per_module.numerical_ranks[there, k].double().mean())
        m, n = members.shape(module)
        described.append(
            CollectedModule(
                name=module,
                shape=(m, n),
                adapters=int(there.sum()),
                left_random=min(rank / m, 1.0) ** 0.5,
                right_random=min(rank / n, 1.0) ** 0.5,
            )
        )
    return tuple(described)


def describe_spectra(
    groups: Sequence[ModuleGroup], modules: Sequence[str], per_module: PerModule
) -> tuple[Spectrum, ...]:
    """Return quartiles of the singular values of each group, as shares of the largest of each update."""
    places = {module: k for k, module in enumerate(modules)}
    spectra = []
    for group in groups:
        values = per_module.singular_values[:, [places[module] for module in group.modules]].flatten(
            end_dim=1
        )
        values = values[values[:, 0] > 0]
        shares = (values / values[:, :1]).sort(dim=0).values
        count = len(shares)
        low, median, high = (
            tuple(shares[count * quarter // 4].tolist()) if count else () for quarter in (1, 2, 3)
        )
        spectra.append(Spectrum(group=group.name, low=low, median=median, high=high))
    return tuple(spectra)


def choose_judged(pairs: Pairs, stands: Sequence[int], clustering: Clustering) -> list[list[int]]:
    """Return the members of each cluster that are judged: the medoid, first, and those nearest to it."""
    distances, clusters = chords(pairs.cosine), defaultdict[int, list[int]](list)
    for i in sorted(set(stands)):
        clusters[int(clustering.labels[i])].append(i)
    chosen = []
    for _, some in sorted(clusters.items()):
        medoid = find_medoid(distances, some)
        chosen.append(sorted(some, key=lambda i: (i != medoid, float(distances[medoid, i]), i))[:JUDGED])
    return chosen


def judge(members: Members, places: Sequence[int]) -> Determined | None:
    """Say whether some adapters determine their Fréchet mean, from the overlap of each two in each module."""
    answers: list[Determined | None] = []
    for module in members.modules:
        adapters = [members.adapters[i] for i in places if module in members.adapters[i].ranks]
        if len(adapters) > 1:
            storage = [torch.promote_types(adapter.dtype, torch.float32) for adapter in adapters]
            reduction = reduce([[adapter.update(module) for adapter in adapters]])
            answers += map(judge_overlap, overlaps(reduction, storage))
    return judge_modules(answers)


def describe_clusters(
    names: Sequence[str],
    pairs: Pairs,
    stands: Sequence[int],
    clustering: Clustering,
    chosen: Sequence[Sequence[int]],
    determined: Sequence[Determined | None],
) -> tuple[Cluster, ...]:
    """Return what each cluster is.

    Args:
        names: Names of the T adapters.
        pairs: Tables of all pairs.
        stands: For each adapter the place of the one that stands for it.
        clustering: The clusters.
        chosen: Places of the members of each cluster that were judged, the medoid first.
        determined: Whether these determine their mean, for each cluster.
    """
    alone = torch.tensor([stand == i for i, stand in enumerate(stands)])
    clusters = []
    for label, (judged, answer) in enumerate(zip(chosen, determined, strict=True)):
        inside = clustering.labels == label
        some = (inside & alone).nonzero().flatten()
        cosine = _mean(_upper(pairs.cosine[some][:, some]))
        kind: ClusterKind = "strangers"
        if len(some) == 1:
            kind = "alone"
            if int(inside.sum()) > 1:
                kind = "copies"
        elif cosine is not None and cosine >= RELATED:
            kind = "family"
        left, right = (_mean(_upper(side[some][:, some]).square()) for side in (pairs.left, pairs.right))
        clusters.append(
            Cluster(
                label=label,
                kind=kind,
                members=tuple(names[i] for i in inside.nonzero().flatten().tolist()),
                medoid=names[judged[0]],
                cosine=cosine,
                cosine_outside=_mean(pairs.cosine[some][:, ~inside & alone].flatten()),
                silhouette=float(clustering.own[some].mean()),
                overlap_left=None if left is None else left**0.5,
                overlap_right=None if right is None else right**0.5,
                determined=answer,
                judged=tuple(names[i] for i in judged) * (len(judged) > 1),
            )
        )
    return tuple(clusters)


def note_differences(adapters: Sequence[CollectedAdapter]) -> tuple[str, ...]:
    """Say in what the adapters differ, and what counts as zero."""
    lacking = [adapter.name for adapter in adapters if adapter.missing]
    lack = {1: "1 adapter lacks"}.get(len(lacking), f"{len(lacking)} adapters lack")
    text = "modules that others have, where the update counts as zero"
    notes = [f"{lack} {text}: {list_names(lacking)}"] * bool(lacking)
    saving = [adapter.name for adapter in adapters if adapter.saved]
    save = {1: "1 adapter has"}.get(len(saving), f"{len(saving)} adapters have")
    text = "whole tensors saved beside the factors (heads, trained biases), which are not compared"
    notes += [f"{save} {text}: {list_names(saving)}"] * bool(saving)
    differing: dict[str, Counter[Any]] = {
        "ranks": Counter(rank for adapter in adapters for rank in adapter.ranks),
        "dtypes": Counter(adapter.dtype for adapter in adapters),
        "names of base models": Counter(adapter.base_model or "none" for adapter in adapters),
    }
    for what, counts in differing.items():
        each = ", ".join(f"{show(str(value))} in {count}" for value, count in sorted(counts.items()))
        notes += [f"{what} differ: {each}: the updates are compared as they are"] * (len(counts) > 1)
    return tuple(notes)


def _upper(table: Tensor) -> Tensor:
    """Return what stands above the diagonal."""
    rows, columns = torch.triu_indices(len(table), len(table), offset=1)
    return table[rows, columns]


def _mean(values: Tensor) -> float | None:
    if not len(values):
        return None
    return float(values.mean())
