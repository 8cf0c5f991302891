"""Inspecting adapters: what is in each, and how far apart each two are, without merging."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from riemerge.formats.adapter import Adapter
from riemerge.formats.fit import check_collection
from riemerge.linalg import single_threaded
from riemerge.merging.identifiability import judge_modules, judge_overlap, mean_overlap
from riemerge.merging.inputs import display_names, read_all
from riemerge.progress import Listener, Progress
from riemerge.records.inspection_record import InspectedAdapter, InspectedModule, InspectedPair, Inspection
from riemerge.records.run_record import Overlap
from riemerge.study.collection.frames import decompose, overlap_pairs
from riemerge.study.collection.geodesics import Answer, measure_frames

MANY = 8
"""Adapters from which on a map of them tells more than an inspection."""

_Pairs = Sequence[tuple[int, int]]


def inspect_adapters(
    paths: Sequence[str | Path], *, distances: bool = False, progress: Listener | None = None
) -> Inspection:
    """Read adapters and say what is in them, and how far apart each two of them are.

    Law: every number but `rank` and `scale` is a function of the updates dW alone. A module is read,
    decomposed, compared in all pairs at once, and dropped.

    Args:
        paths: T folders of adapters.
        distances: Whether to compute quotient distances too, which takes long: an alignment is solved for
            each pair and module.
        progress: Called after each module that was read and compared.

    Raises:
        AdapterError: Folders that cannot be read exactly, all of them; or adapters that do not fit each
            other.
    """
    adapters = read_all(paths)
    check_collection(adapters)
    names = display_names([adapter.path for adapter in adapters])
    pairs = list(itertools.combinations(range(len(names)), 2))
    modules = [module for adapter in adapters[:1] for module in adapter.modules]
    rows: list[list[InspectedModule]] = []
    overlaps: list[list[Overlap | None]] = []
    known: dict[str, list[Answer]] = {}
    with single_threaded():
        for module in modules:
            own, shared = _inspect_module(module, adapters, pairs)
            rows.append(own)
            overlaps.append(shared)
            if progress is not None:
                progress(Progress("inspect", len(rows), len(modules), module))
        if distances and pairs:
            known = _measure(modules, adapters, pairs)
    found = [
        _adapter(name, adapter, [module[place] for module in rows])
        for place, (name, adapter) in enumerate(zip(names, adapters, strict=True))
    ]
    return Inspection(
        adapters=tuple(found),
        pairs=tuple(
            _pair(
                (found[i], found[j]),
                [shared[place] for shared in overlaps],
                {module: known[module][place] for module in modules if module in known},
            )
            for place, (i, j) in enumerate(pairs)
        ),
    )


inspect = inspect_adapters
"""`inspect_adapters` under its public name, `riemerge.inspect`."""


def _inspect_module(
    name: str, adapters: Sequence[Adapter], pairs: _Pairs
) -> tuple[list[InspectedModule], list[Overlap | None]]:
    updates = [adapter.update(name) for adapter in adapters]
    frames = decompose(updates, [torch.promote_types(adapter.dtype, torch.float32) for adapter in adapters])
    rows = [
        InspectedModule(
            module=name,
            shape=update.shape,
            rank=update.rank,
            numerical_rank=int(frames.ranks[place]),
            scale=update.scale,
            norm=float(torch.linalg.vector_norm(frames.values[:, place])),
            singular_values=tuple(frames.values[: min(update.rank, *update.shape), place].tolist()),
        )
        for place, update in enumerate(updates)
    ]
    if not pairs:
        return rows, []
    return rows, overlap_pairs(frames, pairs)


def _measure(modules: Sequence[str], adapters: Sequence[Adapter], pairs: _Pairs) -> dict[str, list[Answer]]:
    """Return the quotient distances of all pairs in each module: modules of one shape in one batch."""
    alike: dict[tuple[int, int], list[str]] = defaultdict(list)
    for module in modules:
        alike[adapters[0].shape(module)].append(module)
    storage = [torch.promote_types(adapter.dtype, torch.float32) for adapter in adapters]
    known: dict[str, list[Answer]] = {}
    for some in alike.values():
        updates = [adapter.update(module) for module in some for adapter in adapters]
        places = [(start + i, start + j) for start in range(0, len(updates), len(adapters)) for i, j in pairs]
        frames = decompose(updates, storage * len(some))
        answers = measure_frames("quotient", frames, [update.rank for update in updates], places)
        for index, module in enumerate(some):
            known[module] = answers[index * len(pairs) : (index + 1) * len(pairs)]
    return known


def _adapter(name: str, adapter: Adapter, rows: Sequence[InspectedModule]) -> InspectedAdapter:
    return InspectedAdapter(
        name=name,
        sha256=dict(adapter.sha256),
        dtype=str(adapter.dtype).removeprefix("torch."),
        base_model=adapter.config.base_model_name_or_path,
        norm=math.hypot(*(row.norm for row in rows)),
        modules=tuple(rows),
    )


def _pair(
    both: tuple[InspectedAdapter, InspectedAdapter],
    overlaps: Sequence[Overlap | None],
    answers: dict[str, Answer],
) -> InspectedPair:
    first, second = both
    distances = {module: answer for module, answer in answers.items() if isinstance(answer, float)}
    distance = None
    if answers and len(distances) == len(answers):
        distance = math.hypot(*distances.values())
    return InspectedPair(
        first=first.name,
        second=second.name,
        distance=distance,
        distances=distances,
        overlap=_join(first, second, overlaps),
        determined=judge_modules([judge_overlap(shared) for shared in overlaps]),
        notes=tuple(
            f"{module}: {answer}: no quotient distance"
            for module, answer in answers.items()
            if isinstance(answer, str)
        ),
    )


def _join(
    first: InspectedAdapter, second: InspectedAdapter, overlaps: Sequence[Overlap | None]
) -> Overlap | None:
    """Return the mean overlap over modules, but for the cosine, which is that of all modules together."""
    mean = mean_overlap(overlaps)
    # Shares of the norms, so that no product of two of them overflows.
    shares = [[row.norm / (adapter.norm or 1.0) for row in adapter.modules] for adapter in (first, second)]
    parts = [
        one * other * shared.cosine
        for one, other, shared in zip(*shares, overlaps, strict=True)
        if shared is not None
    ]
    return mean and mean.model_copy(update={"cosine": math.fsum(parts)})
