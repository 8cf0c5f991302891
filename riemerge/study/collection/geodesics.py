"""Geodesic distances of chosen pairs of a collection, many of them in a batch."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias

import torch
from torch import Tensor

from riemerge.formats.adapter import Adapter
from riemerge.formats.files.staging import write_atomically
from riemerge.formats.files.tensor_file import read_start
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
        with suppress(ValueError, TypeError):  # missing, not whole, or of another hand
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
    pairs = [(places[first], places[second]) for first, second in zip(*sides, strict=True)]
    return measure_frames(metric, decompose(updates, storage), [update.rank for update in updates], pairs)


def measure_frames(
    metric: Metric, frames: Frames, stored: Sequence[int], pairs: Sequence[tuple[int, int]]
) -> list[Answer]:
    """Return the distance of each pair of updates of one shape, or why there is none.

    Args:
        metric: What to measure.
        frames: T updates, also of several modules.
        stored: Ranks of the T updates as stored.
        pairs: Places of two updates, for each pair.
    """
    answers: list[Answer] = [""] * len(pairs)
    alike: dict[int, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        ranks, own = frames.ranks[list(pair)].tolist(), [stored[place] for place in pair]
        if metric == "quotient" and own[0] != own[1]:
            answers[index] = f"ranks {own[0]} and {own[1]} differ"
        elif metric == "quotient" and min(ranks) < own[0]:
            answers[index] = f"numerical rank {min(ranks)} of {own[0]}"
        elif ranks[0] != ranks[1] or not ranks[0]:
            answers[index] = f"numerical ranks {ranks[0]} and {ranks[1]}"
        else:
            alike[ranks[0]].append(index)
    for rank, some in alike.items():
        first, second = torch.tensor([pairs[index] for index in some]).unbind(dim=1)
        apart = _MEASURES[metric](frames, rank, first, second)
        for index, distance in zip(some, apart.tolist(), strict=True):
            answers[index] = "no geodesic was found" if math.isnan(distance) else distance
    return answers


def _quotient(frames: Frames, rank: int, first: Tensor, second: Tensor) -> Tensor:
    from riemerge.methods.geodesic.quotient_mean import distances

    balanced = frames.values[:rank].sqrt().unsqueeze(-1)
    left, right = (
        (frames.left[:rank] * balanced).transpose(0, 1),
        (frames.right[:rank] * balanced).transpose(0, 1),
    )
    sides = ([LowRankUpdate(left[k].mT, right[k]) for k in places.tolist()] for places in (first, second))
    return distances(*sides)


def _grassmann(frames: Frames, rank: int, first: Tensor, second: Tensor) -> Tensor:
    squares = torch.zeros(len(first), dtype=torch.float64)
    for side in (frames.left, frames.right):
        u, v = (side[:rank, places].permute(1, 2, 0) for places in (first, second))
        inside = u.mT @ v
        # Cosines tell large angles, sines small ones.
        cosines = torch.linalg.svdvals(inside)
        sines = torch.linalg.svdvals(v - u @ inside).flip(-1)
        squares += torch.atan2(sines, cosines).square().sum(dim=-1)
    return squares.sqrt()


_MEASURES: dict[Metric, Callable[[Frames, int, Tensor, Tensor], Tensor]] = {
    "quotient": _quotient,
    "grassmann": _grassmann,
}
