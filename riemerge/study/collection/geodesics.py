"""Geodesic distances of chosen pairs of a collection, many of them in a batch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from riemerge.formats.adapter import Adapter
from riemerge.formats.files.staging import write_atomically
from riemerge.formats.files.tensor_file import read_start
from riemerge.methods.geodesic.quotient_mean import distances
from riemerge.records.collection_record import Metric
from riemerge.study.collection.frames import Frames, decompose
from riemerge.study.collection.work import Work
from riemerge.updates.low_rank import LowRankUpdate

BATCH = 64
"""Pairs, in modules of one shape, that are computed at once."""

Pair: TypeAlias = tuple[str, str]
"""The digests of two adapters, the lesser first."""

Answer: TypeAlias = float | str
"""A distance in one module, or why there is none."""


def measure_pairs(
    work: Work, metric: Metric, pairs: Mapping[str, Sequence[Pair]], adapters: Mapping[str, Adapter]
) -> dict[str, dict[Pair, Answer]]:
    """Return the distances of pairs in modules of one shape; what was computed before is not computed again.

    Args:
        work: Where answers are kept.
        metric: `quotient`, of updates of one rank as factors up to gauge, or `grassmann`, the root of the sum
            of the squared principal angles of both spaces.
        pairs: Pairs by the name of the module, which both adapters have.
        adapters: The adapters by their digests.

    Raises:
        AdapterError: An adapter can no longer be read.
        OutputError: The answers cannot be kept.
    """
    paths = {module: work.path(module, f".{metric}.json") for module in pairs}
    kept: dict[str, dict[Pair, Answer]] = {module: {} for module in pairs}
    for module, path in paths.items():
        if path.exists():
            rows = json.loads(read_start(path, -1))
            kept[module] = {(first, second): answer for first, second, answer in rows}
    missing = [(module, pair) for module, some in pairs.items() for pair in some if pair not in kept[module]]
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        for (module, pair), answer in zip(batch, _measure_batch(metric, adapters, batch), strict=True):
            kept[module][pair] = answer
    for module in dict.fromkeys(module for module, _ in missing):
        table = [[*pair, answer] for pair, answer in sorted(kept[module].items())]
        write_atomically(paths[module], json.dumps(table).encode())
    return {module: {pair: kept[module][pair] for pair in some} for module, some in pairs.items()}


def _measure_batch(
    metric: Metric, adapters: Mapping[str, Adapter], batch: Sequence[tuple[str, Pair]]
) -> list[Answer]:
    sides = [[(module, pair[side]) for module, pair in batch] for side in range(2)]
    places = {key: place for place, key in enumerate(sorted({*sides[0], *sides[1]}))}
    updates = [adapters[name].update(module) for module, name in places]
    storage = [torch.promote_types(adapters[name].dtype, torch.float32) for _, name in places]
    frames = decompose(updates, storage)
    answers: list[Answer] = [""] * len(batch)
    alike: dict[int, list[int]] = defaultdict(list)
    for index, both in enumerate(zip(*sides, strict=True)):
        ranks = [int(frames.ranks[places[key]]) for key in both]
        stored = [updates[places[key]].rank for key in both]
        if metric == "quotient" and stored[0] != stored[1]:
            answers[index] = f"ranks {stored[0]} and {stored[1]} differ"
        elif metric == "quotient" and min(ranks) < stored[0]:
            answers[index] = f"numerical rank {min(ranks)} of {stored[0]}"
        elif ranks[0] != ranks[1] or not ranks[0]:
            answers[index] = f"numerical ranks {ranks[0]} and {ranks[1]}"
        else:
            alike[ranks[0]].append(index)
    for rank, some in alike.items():
        first, second = ([places[side[index]] for index in some] for side in sides)
        apart = _MEASURES[metric](frames, rank, first, second)
        for index, distance in zip(some, apart.tolist(), strict=True):
            answers[index] = "no geodesic was found" if distance != distance else distance  # noqa: PLR0124
    return answers


def _quotient(frames: Frames, rank: int, first: Sequence[int], second: Sequence[int]) -> Tensor:
    balanced = frames.values[:rank].sqrt().unsqueeze(-1)
    left, right = frames.left[:rank] * balanced, frames.right[:rank] * balanced
    sides = (
        [LowRankUpdate(left[:, place].mT, right[:, place]) for place in places] for places in (first, second)
    )
    return distances(*sides)


def _grassmann(frames: Frames, rank: int, first: Sequence[int], second: Sequence[int]) -> Tensor:
    squares = torch.zeros(len(first), dtype=torch.float64)
    for side in (frames.left, frames.right):
        u, v = (side[:rank, places].permute(1, 2, 0) for places in (first, second))
        inside = u.mT @ v
        # Cosines tell large angles, sines small ones.
        cosines = torch.linalg.svdvals(inside)
        sines = torch.linalg.svdvals(v - u @ inside).flip(-1)
        squares += torch.atan2(sines, cosines).square().sum(dim=-1)
    return squares.sqrt()


_MEASURES: dict[Metric, Callable[[Frames, int, Sequence[int], Sequence[int]], Tensor]] = {
    "quotient": _quotient,
    "grassmann": _grassmann,
}
