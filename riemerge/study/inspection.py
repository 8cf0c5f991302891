"""Inspecting adapters: what is in each, and how far apart each two are, without merging."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from riemerge.formats.adapter import Adapter
from riemerge.formats.fit import check_collection
from riemerge.linalg import SVD, single_threaded
from riemerge.merging.identifiability import frames, judge_modules, judge_overlap, mean_overlap, overlap
from riemerge.merging.inputs import display_names, read_all
from riemerge.methods.geodesic.quotient_mean import distances
from riemerge.progress import Listener, Progress
from riemerge.records.inspection_record import InspectedAdapter, InspectedModule, InspectedPair, Inspection
from riemerge.updates.low_rank import JointSpan, LowRankUpdate


class _Module(NamedTuple):
    """One module of all T adapters: updates and frames in bases of their joint span, and its own shape."""

    shape: tuple[int, int]
    updates: tuple[LowRankUpdate, ...]
    frames: list[SVD]
    rows: list[InspectedModule]


def inspect_adapters(paths: Sequence[str | Path], *, progress: Listener | None = None) -> Inspection:
    """Read adapters and say what is in them, and how far apart each two of them are.

    Law: every number but `rank` and `scale` is a function of the updates dW alone. A module is read, reduced
    to the joint span of its updates, and dropped.

    Args:
        paths: T folders of adapters.
        progress: Called after each module that was read, and after each pair that was compared.

    Raises:
        AdapterError: Folders that cannot be read exactly, all of them; or adapters that do not fit each
            other.
    """
    adapters = read_all(paths)
    check_collection(adapters)
    names = display_names([adapter.path for adapter in adapters])
    pairs = list(itertools.combinations(range(len(names)), 2))
    total = sum(len(adapter.modules) for adapter in adapters[:1]) + len(pairs)
    modules: dict[str, _Module] = {}
    compared: list[InspectedPair] = []

    def tell(text: str) -> None:
        if progress is not None:
            progress(Progress("inspect", len(modules) + len(compared), total, text))

    with single_threaded():
        for adapter in adapters[:1]:
            for module in adapter.modules:
                modules[module] = _module(module, adapters)
                tell(module)
        for first, second in pairs:
            compared.append(_pair(names, first, second, modules))
            tell(f"{names[first]} and {names[second]}")
    return Inspection(
        adapters=tuple(
            _adapter(name, adapter, [module.rows[place] for module in modules.values()])
            for place, (name, adapter) in enumerate(zip(names, adapters, strict=True))
        ),
        pairs=tuple(compared),
    )


inspect = inspect_adapters
"""`inspect_adapters` under its public name, `riemerge.inspect`."""


def _module(name: str, adapters: Sequence[Adapter]) -> _Module:
    updates = JointSpan([adapter.update(name, dtype=torch.float64) for adapter in adapters]).updates
    shape = adapters[0].shape(name)
    module = _Module(shape, updates, [], [])
    for adapter, update in zip(adapters, updates, strict=True):
        stored = torch.promote_types(adapter.dtype, torch.float32)
        module.frames.append(frames(update, stored))
        module.rows.append(
            InspectedModule(
                module=name,
                shape=shape,
                rank=update.rank,
                numerical_rank=update.numerical_rank(stored),
                scale=update.scale,
                norm=update.norm(),
                singular_values=tuple(update.singular_values().tolist()[: min(shape)]),
            )
        )
    return module


def _adapter(name: str, adapter: Adapter, rows: Sequence[InspectedModule]) -> InspectedAdapter:
    return InspectedAdapter(
        name=name,
        sha256=dict(adapter.sha256),
        dtype=str(adapter.dtype).removeprefix("torch."),
        base_model=adapter.config.base_model_name_or_path,
        norm=math.hypot(*(row.norm for row in rows)),
        modules=tuple(rows),
    )


def _pair(names: Sequence[str], i: int, j: int, modules: Mapping[str, _Module]) -> InspectedPair:
    notes: list[str] = []
    alike: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, module in modules.items():
        ranks = module.rows[i].rank, module.rows[j].rank
        short = min(module.rows[i].numerical_rank, module.rows[j].numerical_rank)
        if ranks[0] != ranks[1]:
            notes.append(f"{name}: ranks {ranks[0]} and {ranks[1]} differ: no quotient distance")
        elif short < ranks[0]:
            notes.append(f"{name}: numerical rank {short} of {ranks[0]}: no quotient distance")
        else:
            alike[*module.updates[i].shape, ranks[0]].append(name)
    known: dict[str, float] = {}
    for group in alike.values():
        apart = distances(*([modules[name].updates[place] for name in group] for place in (i, j))).tolist()
        known |= {name: d for name, d in zip(group, apart, strict=True) if not math.isnan(d)}
        notes += [
            f"{name}: no geodesic was found: no quotient distance" for name in group if name not in known
        ]
    overlaps = [overlap([module.frames[i], module.frames[j]], module.shape) for module in modules.values()]
    return InspectedPair(
        first=names[i],
        second=names[j],
        distance=None if notes else math.hypot(*known.values()),
        distances={name: known[name] for name in modules if name in known},
        overlap=mean_overlap(overlaps),
        determined=judge_modules([judge_overlap(shared) for shared in overlaps]),
        notes=tuple(notes),
    )
