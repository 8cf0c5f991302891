"""Mapping a collection: every pair of adapters compared, module by module, and what follows from it."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TypeVar, final, get_args

import torch

from riemerge.errors import AdapterError, OutputError, RecipeError
from riemerge.formats.files.staging import overlaps, write_atomically, writing
from riemerge.formats.files.text import list_names
from riemerge.linalg import single_threaded
from riemerge.merging.machine import find_threads
from riemerge.methods.threads import in_order
from riemerge.progress import Listener, Progress
from riemerge.records.collection_record import CollectionRecord, KeptEnergy, Metric, ModuleGroup, PairDistance
from riemerge.study.collection.advice import advise_on
from riemerge.study.collection.clusters import find_clusters, scale_classically
from riemerge.study.collection.common import Kept, keep_common
from riemerge.study.collection.description import (
    choose_judged,
    describe_adapters,
    describe_clusters,
    describe_modules,
    describe_spectra,
    judge,
    note_differences,
)
from riemerge.study.collection.geodesics import BATCH, Answer, Pair, measure_pairs
from riemerge.study.collection.members import Members, group_modules, open_members
from riemerge.study.collection.relations import (
    find_copies,
    find_near,
    find_neighbours,
    find_opposed,
    find_outliers,
)
from riemerge.study.collection.tiles import Tiles
from riemerge.study.collection.totals import Pairs, PerModule, read_modules, write_tables
from riemerge.study.collection.work import WORK, Work

RECORD_FILE = "collection.json"
"""Name of the file of the record, in the folder of the collection."""

METRICS: tuple[Metric, ...] = get_args(Metric)
"""Geodesic distances that can be asked for."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_adapters(
    paths: Sequence[str | Path],
    folder: str | Path,
    *,
    distances: Sequence[Metric] = (),
    pairs: Sequence[tuple[str, str]] = (),
    nearest: int = 1,
    same_base: bool = False,
    threads: int | None = None,
    progress: Listener | None = None,
) -> CollectionRecord:
    """Compare all pairs of many adapters, and write what follows from it: `collection.json` and its tables.

    Law: a function of the dW of the adapters, whatever their order; equal files and names give equal bits,
    whatever the threads, and however often the run was broken off. Facts of each module are kept in the
    folder by the sha256 of the files: another call with some adapters more, or less, computes what is new,
    and agrees with a map from scratch to round-off. Ranks, targets and dtypes may differ: a module that is
    missing counts as zero. An adapter that cannot be read, is zero, or does not fit most of the others, is
    left out, and the record says why.

    Args:
        paths: T folders or files of adapters.
        folder: Folder of the collection; made if it is not there.
        distances: Geodesic distances to compute, of `METRICS`.
        pairs: Names of adapters, two by two, of which these distances are computed.
        nearest: Number of nearest adapters of each of which they are computed where no pairs are given.
        same_base: Whether to take the adapters as trained on one base model, whatever they name.
        threads: Number of modules that are worked on at once; all CPUs if not given.
        progress: Called after each module of each stage.

    Returns:
        The record, as it was written.

    Raises:
        AdapterError: Fewer than two adapters can be compared; all reasons.
        RecipeError: No such distance, no such adapter in a pair, or one adapter twice.
        OutputError: The folder cannot be written, holds an adapter, or holds files and no collection.

    Cost: about 2 µs of a CPU for a pair and a module of 384² at rank 8, and O(T) of reading; memory of
        256 MiB a thread for the frames, and of 8 T² bytes for each of some ten tables.
    """
    root, count = Path(folder), find_threads(threads, torch.device("cpu"))
    if unknown := sorted({*distances} - {*METRICS}):
        raise RecipeError(f"distances: {', '.join(unknown)}: expected {' or '.join(METRICS)}")
    RecipeError.refuse(f"pairs: {a},{b}: expected two different adapters" for a, b in pairs if a == b)
    OutputError.refuse([*overlaps(root, paths), *_find_foreign(root)])
    members = open_members(paths, same_base=same_base)
    with writing(root):
        root.mkdir(exist_ok=True)
    work = Work(root)
    with single_threaded():
        stages = _Stages(count, progress)
        members, per_module = _compare(members, work, stages)
        chosen = _find(members.names, pairs)
        groups = group_modules(members.modules)
        tables = write_tables(root, members, work, groups, per_module)
        kept = _keep(members, work, groups, per_module, stages)
        record, stands = _relate(members, groups, per_module, tables, kept, stages)
        if distances:
            chosen = chosen or _choose_nearest(tables, stands, nearest)
            measured = [_measure(members, work, metric, chosen, stages) for metric in distances]
            record = record.model_copy(update={"distances": tuple(chain(*measured))})
    write_atomically(root / RECORD_FILE, record.to_json().encode())
    return record


@final
class _Stages:
    """The threads of a map, and who listens to its progress."""

    def __init__(self, threads: int, progress: Listener | None) -> None:
        self._threads = threads
        self._progress = progress

    def each(
        self, stage: str, compute: Callable[[_Item], _Result], items: Sequence[_Item], text: str = "{}"
    ) -> Iterator[tuple[_Item, _Result]]:
        """Yield each item with what is computed of it, in order, and tell the listener."""
        results = in_order(compute, items, self._threads)
        for done, (item, result) in enumerate(zip(items, results, strict=True), 1):
            if self._progress is not None:
                self._progress(Progress(stage, done, len(items), text.format(item)))
            yield item, result


def _compare(members: Members, work: Work, stages: _Stages) -> tuple[Members, PerModule]:
    """Compare all pairs in every module, and leave out the adapters that cannot be read or are zero."""
    faults: dict[str, list[str]] = defaultdict(list)
    complete = lambda module: work.complete(module, members.having(module))  # noqa: E731
    for _, found in stages.each("map", complete, members.modules):
        for digest, problems in found.items():
            faults[digest] += problems
    members = members.without(faults)
    zero: dict[str, list[str]] = {}
    if members.names:
        norms = read_modules(members, work).norms.sum(dim=1).tolist()
        zero = {
            digest: [f"{adapter.path}: dW is zero in every module: it has no direction to compare"]
            for digest, adapter, norm in zip(members.digests, members.adapters, norms, strict=True)
            if norm == 0
        }
    members = members.without(zero)
    members.check()
    return members, read_modules(members, work)


def _keep(
    members: Members, work: Work, groups: Sequence[ModuleGroup], per_module: PerModule, stages: _Stages
) -> tuple[KeptEnergy, ...]:
    """Find how much of each group of modules stays in common directions."""
    norms = dict(zip(members.digests, per_module.norms.square().sum(dim=1).sqrt().tolist(), strict=True))
    # Equal files are read once, and count as often as they are there.
    weights = {digest: math.sqrt(times) / norms[digest] for digest, times in Counter(members.digests).items()}

    def keep(module: str) -> Kept:
        adapters = members.having(module)
        shares = [weights[digest] for digest in adapters]
        key = hashlib.sha256(json.dumps([*adapters, *shares]).encode()).hexdigest()

        def compute() -> Kept:
            tiles = Tiles(list(adapters.values()), module, range(len(adapters)))
            found = keep_common(tiles, torch.tensor(shares, dtype=torch.float64))
            AdapterError.refuse(problem for problems in tiles.faults.values() for problem in problems)
            return found

        return Kept(*work.remember(module, ".kept.json", key, compute))

    kept = dict(stages.each("directions", keep, members.modules))
    energies = []
    for group in groups:
        some = [kept[module] for module in group.modules]
        directions = max((one.directions for one in some), key=len)
        # A module that has fewer directions keeps what it does with all of them.
        sums = [
            math.fsum(one.energies[min(k, len(one.energies) - 1)] for one in some)
            for k in range(len(directions))
        ]
        whole = math.fsum(one.energy for one in some) or 1.0
        shares = tuple(min(energy / whole, 1.0) for energy in sums)
        energies.append(KeptEnergy(group=group.name, directions=tuple(directions), kept=shares))
    return tuple(energies)


def _relate(
    members: Members,
    groups: Sequence[ModuleGroup],
    per_module: PerModule,
    pairs: Pairs,
    kept: tuple[KeptEnergy, ...],
    stages: _Stages,
) -> tuple[CollectionRecord, list[int]]:
    """Say what follows from the tables; and which adapter stands for each among its copies."""
    names, norms = members.names, per_module.norms.square().sum(dim=1).sqrt()
    rounding = per_module.rounding.square().sum(dim=1).sqrt()
    files = [[*adapter.sha256.values()][-1] for adapter in members.adapters]
    relative = pairs.distance / torch.maximum(norms, norms.unsqueeze(1))
    copies, stands = find_copies(names, files, norms, rounding, pairs)
    clustering = find_clusters(pairs.cosine, stands)
    coordinates, shares = scale_classically(pairs.cosine)
    adapters = describe_adapters(members, per_module, pairs, stands, clustering)
    chosen = choose_judged(pairs, stands, clustering)
    judged = [answer for _, answer in stages.each("clusters", partial(judge, members), chosen, "")]
    clusters = describe_clusters(names, pairs, stands, clustering, chosen, judged)
    outliers = find_outliers(names, stands, norms, pairs, relative, clustering.labels)
    opposed = find_opposed(names, stands, norms, rounding, pairs)
    record = CollectionRecord(
        adapters=adapters,
        left_out=members.left_out,
        modules=describe_modules(members, per_module),
        groups=tuple(groups),
        copies=copies,
        opposed=opposed,
        near=find_near(names, stands, pairs, relative),
        neighbours=find_neighbours(names, pairs, relative),
        outliers=outliers,
        clusters=clusters,
        linkage=clustering.linkage,
        silhouettes=clustering.silhouettes,
        coordinates=tuple((x, y) for x, y in coordinates.tolist()),
        coordinates_share=shares,
        spectra=describe_spectra(groups, members.modules, per_module),
        kept=kept,
        advice=advise_on(adapters, copies, clusters, outliers, opposed, pairs.cosine),
        notes=note_differences(adapters),
        versions={name: version(name) for name in ("riemerge", "torch", "scipy")},
    )
    return record, stands


def _find_foreign(folder: Path) -> list[str]:
    """Say that a folder holds files, and nothing of a collection, so that a map would write over them."""
    with writing(folder):
        held = {path.name for path in folder.glob("*")}
    what = f"{folder}: holds {list_names(sorted(held))}, and no {RECORD_FILE} of an earlier map"
    return [f"{what}: choose a new folder, or an empty one"] * (bool(held) and not held & {RECORD_FILE, WORK})


def _find(names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """Return the places of named pairs, the lesser first."""
    places = {name: place for place, name in enumerate(names)}
    RecipeError.refuse(
        f"pairs: {name}: no such adapter takes part: expected {list_names(names)}"
        for name in sorted({name for pair in pairs for name in pair} - places.keys())
    )
    return sorted({(min(pair), max(pair)) for pair in ((places[a], places[b]) for a, b in pairs)})


def _choose_nearest(pairs: Pairs, stands: Sequence[int], nearest: int) -> list[tuple[int, int]]:
    """Return the pairs of each adapter with so many of its nearest, copies left out."""
    some = torch.tensor(sorted(set(stands)))
    table = pairs.cosine[some][:, some].fill_diagonal_(-math.inf)
    order = table.sort(descending=True, stable=True).indices[:, : min(nearest, len(some) - 1)]
    both = {(int(some[i]), int(some[j])) for i, row in enumerate(order.tolist()) for j in row}
    return sorted({(min(pair), max(pair)) for pair in both})


def _measure(
    members: Members, work: Work, metric: Metric, chosen: Sequence[tuple[int, int]], stages: _Stages
) -> list[PairDistance]:
    """Measure pairs over the modules that both have."""
    adapters = dict(zip(members.digests, members.adapters, strict=True))
    pairs = {(i, j): (members.digests[i], members.digests[j]) for i, j in chosen}
    alike: dict[tuple[int, int], list[str]] = defaultdict(list)
    for module in members.modules:
        alike[members.shape(module)].append(module)
    most = max(1, BATCH // max(1, len(pairs)))
    parts = [some[at : at + most] for some in alike.values() for at in range(0, len(some), most)]

    def measure(modules: Sequence[str]) -> dict[str, dict[Pair, Answer]]:
        both = {
            module: [pair for pair in pairs.values() if all(module in adapters[one].ranks for one in pair)]
            for module in modules
        }
        return measure_pairs(work, metric, both, adapters)

    squares: dict[Pair, list[float]] = defaultdict(list)
    notes: dict[Pair, list[str]] = defaultdict(list)
    for _, measured in stages.each(metric, measure, parts, ""):
        for module, answers in measured.items():
            for pair, answer in answers.items():
                if isinstance(answer, str):
                    notes[pair].append(f"{module}: {answer}")
                else:
                    squares[pair].append(answer)
    return [
        PairDistance(
            first=members.names[i],
            second=members.names[j],
            metric=metric,
            distance=None if notes[pair] or not squares[pair] else math.hypot(*squares[pair]),
            notes=tuple(notes[pair]),
        )
        for (i, j), pair in pairs.items()
    ]
