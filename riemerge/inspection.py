"""Inspecting adapters: what is in each, and how far apart each two are, without merging."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from riemerge.adapters import Adapter, check_collection
from riemerge.inputs import display_names, read_all
from riemerge.measure import Frames, determined, frames, mean_overlap, overlap
from riemerge.methods.quotient import distances
from riemerge.record import InspectedAdapter, InspectedModule, InspectedPair, Inspection
from riemerge.updates import LowRankUpdate


def inspect_adapters(paths: Sequence[str | Path]) -> Inspection:
    """Read adapters and say what is in them, and how far apart each two of them are.

    Law: every number but `rank` and `scale` is a function of the updates dW alone.

    Raises:
        AdapterError: Folders that cannot be read exactly, all of them; or adapters that do not fit each
            other.
    """
    adapters = read_all(paths)
    check_collection(adapters)
    names = display_names([adapter.path for adapter in adapters])
    updates = [
        {module: adapter.update(module, dtype=torch.float64) for module in adapter.modules}
        for adapter in adapters
    ]
    bases = [{module: frames(update) for module, update in one.items()} for one in updates]
    return Inspection(
        adapters=tuple(
            _adapter(name, adapter, one) for name, adapter, one in zip(names, adapters, updates, strict=True)
        ),
        pairs=tuple(
            _pair((names[i], names[j]), (updates[i], updates[j]), (bases[i], bases[j]))
            for i, j in itertools.combinations(range(len(names)), 2)
        ),
    )


def _adapter(name: str, adapter: Adapter, updates: Mapping[str, LowRankUpdate]) -> InspectedAdapter:
    rows = tuple(
        InspectedModule(
            module=module,
            shape=update.shape,
            rank=update.rank,
            numerical_rank=update.numerical_rank(),
            scale=update.scale,
            norm=update.norm(),
            singular_values=tuple(update.singular_values().tolist()),
        )
        for module, update in updates.items()
    )
    return InspectedAdapter(
        name=name,
        sha256=dict(adapter.sha256),
        dtype=str(adapter.dtype).removeprefix("torch."),
        base_model=adapter.config.base_model_name_or_path,
        norm=math.hypot(*(row.norm for row in rows)),
        modules=rows,
    )


def _pair(
    names: tuple[str, str],
    updates: tuple[Mapping[str, LowRankUpdate], Mapping[str, LowRankUpdate]],
    bases: tuple[Mapping[str, Frames], Mapping[str, Frames]],
) -> InspectedPair:
    one, other = updates
    notes: list[str] = []
    alike: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for module in one:
        ranks = one[module].rank, other[module].rank
        short = min(one[module].numerical_rank(), other[module].numerical_rank())
        if ranks[0] != ranks[1]:
            notes.append(f"{module}: ranks {ranks[0]} and {ranks[1]} differ: no quotient distance")
        elif short < ranks[0]:
            notes.append(f"{module}: numerical rank {short} of {ranks[0]}: no quotient distance")
        else:
            alike[*one[module].shape, ranks[0]].append(module)
    found: dict[str, float] = {}
    for modules in alike.values():
        apart = distances([one[module] for module in modules], [other[module] for module in modules]).tolist()
        found |= {module: d for module, d in zip(modules, apart, strict=True) if not math.isnan(d)}
        notes += [
            f"{module}: no geodesic was found: no quotient distance"
            for module in modules
            if module not in found
        ]
    common = mean_overlap([overlap([bases[0][module], bases[1][module]]) for module in one])
    return InspectedPair(
        first=names[0],
        second=names[1],
        distance=None if notes else math.hypot(*found.values()),
        distances={module: found[module] for module in one if module in found},
        overlap=common,
        determined=determined(common),
        notes=tuple(notes),
    )
