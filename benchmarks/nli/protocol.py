"""The same test for every method, twice: as its command runs it, and at a multiple chosen on the dev half.

*As run* is what a user gets who has no data: the row at its own rank and scale, or with the options that its
name says, scored on the test half (and on the dev half, by which the default row is chosen among those that
need no data).

*Chosen on dev* is what it can give with about a thousand labelled rows. Every merged update is brought to
the norm of the plain average over all modules first. So a coefficient means the same for sums and means,
every method is tried at the same norms, and none has more looks than another: once, twice and four times
that norm, then half an octave to either side of the best of these. (Rows that have statistics are fitted to
outputs, and keep their own size: half of it, all and twice.) The looks see every other group of the dev
half; the coefficient that they choose is scored on all of it, which is what settings and methods are
compared by, and on the test half, which nothing is chosen by.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import tell
from benchmarks.nli.material import (
    MAX_LENGTH,
    SEED,
    TASKS,
    Rows,
    base_folder,
    fingerprints,
    read_material,
    specialists,
)
from benchmarks.nli.scorer import Dense, Scorer, dense, directions, load_base
from benchmarks.nli.statistics import EXAMPLES, Collected
from riemerge import merge_adapters
from riemerge.errors import NumericalError
from riemerge.formats.peft import read_adapter
from riemerge.merging.sinks import MergeResult
from riemerge.methods import METHODS
from riemerge.methods.method import Method
from riemerge.methods.parameters import MATCHED
from riemerge.recipes.candidates import Candidate

GRID = (1.0, 2.0, 4.0)
"""Norms that are tried first, as multiples of that of the plain average."""

OWN_GRID = (0.5, 1.0, 2.0)
"""Multiples that are tried first of a row that has statistics: it is fitted to outputs, so its size
means them."""

LONG = ("mats", "mats_forward", "fisher_rao")
"""Rows that are measured when they are named: without a preconditioner, or by entry, they take hours."""

WHOLE = ("spectrum", "average", "tsv")
"""Rows that are measured as they run with `--rank sum`, too."""

DENSITY = 0.2  # as published for TIES, and of the order of what DARE keeps

# The specialists were trained and published in bfloat16; about one answer in a thousand differs from float32,
# and a CPU that has it takes half of the time. Specialists, base and merges are all scored in it.
DTYPE = torch.bfloat16

AS_RUN = "as_run"
"""The folder of what was measured as it runs, beside the results at a chosen multiple."""

PROJECTIONS = 4
SAME = 1e-5  # of unit norm: round-off of float32 in sums of ten million terms stays a decade below


# --- candidates ---------------------------------------------------------------------------------------------


def candidates() -> list[Candidate]:
    """Every row that takes six models and no statistics of a base, but for `LONG`: at its default rank and
    whole (where its rank is no constraint), and at `DENSITY` where it has one. Rows of a trajectory get the
    tasks in the order of `TASKS`.
    """
    rows = [row for row in METHODS.values() if _applies(row)]
    whole = [Candidate(row.name, {**settings_of(row), "rank": "sum"}) for row in rows if _has_ranks(row)]
    return whole + [Candidate(row.name, settings_of(row)) for row in rows]


def as_run_candidates() -> list[Candidate]:
    """Every candidate at its own rank, at both scales where it has a choice and no data; some whole, too."""
    every = candidates()
    own = [one for one in every if "rank" not in one.parameters and not METHODS[one.method].statistics]
    chosen = [one for one in own if METHODS[one.method].normalised]
    scales = [
        Candidate(one.method, {**one.parameters, "scale": _other_scale(METHODS[one.method])})
        for one in chosen
    ]
    informed = [one for one in every if METHODS[one.method].statistics and "rank" not in one.parameters]
    whole = [one for one in every if one.method in WHOLE and "rank" in one.parameters]
    return [*own, *scales, *whole, *informed]


def _other_scale(row: Method) -> float | str:
    """The scale that a row does not have by itself."""
    return 1.0 if row.defaults.get("scale") == MATCHED else MATCHED


def _applies(row: Method) -> bool:
    takes_six = len(TASKS) <= (row.models[1] or len(TASKS))
    return takes_six and not row.base_statistics and row.name not in LONG


def _has_ranks(row: Method) -> bool:
    return not row.truncates_inputs and "rank" not in row.defaults and not row.constrained


def settings_of(row: Method) -> dict[str, Any]:
    """What a row is measured with at its own rank: a density where it has one."""
    return {"density": DENSITY} if "density" in row.parameters else {}


# --- results ------------------------------------------------------------------------------------------------


def packed(correct: Mapping[str, Tensor]) -> dict[str, str]:
    """Bits of each task as hexadecimal digits."""
    return {task: np.packbits(bits.numpy()).tobytes().hex() for task, bits in correct.items()}


def unpacked(text: str, size: int) -> np.ndarray:
    """The bits that `packed` wrote."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=size).astype(bool)


def accuracies(correct: Mapping[str, Tensor]) -> dict[str, float]:
    """The share of answers that are right, by task."""
    return {task: bits.double().mean().item() for task, bits in correct.items()}


def normalised(accuracy: Mapping[str, float], specialist: Mapping[str, float]) -> float:
    """Mean over tasks of the accuracy divided by the specialist's."""
    return sum(accuracy[task] / specialist[task] for task in accuracy) / len(accuracy)


def digest(*said: Any) -> str:
    """A name for what was said, which JSON can hold."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def key_of(inputs: str, candidate: Candidate, *, as_run: bool = False) -> str:
    """What a result depends on, but for the code: inputs / the row, its parameters and its defaults.

    The scale counts as run alone: at a chosen multiple it is what is chosen.
    """
    row = METHODS[candidate.method]
    values = {**row.defaults, **candidate.parameters}
    if as_run:
        return f"{inputs}/{digest('as run', row.name, {'scale': 1.0, **values})}"
    return f"{inputs}/{digest(row.name, {name: one for name, one in values.items() if name != 'scale'})}"


def is_fitted(candidate: Candidate) -> bool:
    """Whether a row is fitted to outputs, so that its size means them."""
    return bool(METHODS[candidate.method].statistics)


def is_current(result: Mapping[str, Any], inputs: str, *, as_run: bool = False) -> bool:
    """Whether a result is of these inputs, and of a row that still has the same defaults."""
    candidate = Candidate(result["method"], result["parameters"])
    return candidate.method in METHODS and result["key"] == key_of(inputs, candidate, as_run=as_run)


def kept(path: Path, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds under this key; made and written, whole or not at all, where it does not."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["key"] == key:
            return found
    result = {"key": key, **make()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return result


# --- the protocol -------------------------------------------------------------------------------------------


class Bench:
    """The test bench of one collection of specialists; results are kept one file each, and reused.

    Args:
        collection: A key of `material.COLLECTIONS`.
        folder: Of the results; those of a collection are in a folder of their own.
        threads: Of the CPU.
        limit: Rows of each half of each task; all if not given.
        grid: Coefficients that are tried first.

    Attributes:
        adapters: Task to specialist.
        reference: Specialists and base by themselves, and the norm of the average.
        measured: How many candidates were, and not read from their files.
    """

    def __init__(
        self,
        collection: str,
        folder: Path,
        *,
        threads: int = 1,
        limit: int | None = None,
        grid: Sequence[float] = GRID,
    ) -> None:
        torch.set_num_threads(threads)
        self._threads, self._grid, self._folder = threads, tuple(grid), folder / collection
        self.adapters = {task: read_adapter(path) for task, path in specialists(collection).items()}
        base = base_folder()
        assert base is not None
        model, tokenizer = load_base(base)
        output = directions(model, tokenizer)
        self._scorer = Scorer(model, output, DTYPE)
        self._material = read_material(tokenizer, limit)
        files = fingerprints(), {task: dict(adapter.sha256) for task, adapter in self.adapters.items()}
        settings = SEED, MAX_LENGTH, EXAMPLES
        self._inputs = digest(files, settings, limit, self._grid, OWN_GRID, str(DTYPE))
        statistics = self._folder / "statistics" / digest(files, settings)
        self._statistics = Collected(statistics, model, tokenizer, output)
        self.measured = 0
        key = f"{self._inputs}/{digest('reference')}"
        self.reference = kept(self._folder / "reference.json", key, self._make_reference)

    def run(self, candidate: Candidate) -> dict[str, Any]:
        """The result of one candidate, from its file where the same was tried before.

        Law: a method that refuses these adapters has a result that says why; a merge that is a multiple of
        one that was tried takes over its scores, and says whose.
        """
        path = self._folder / _file_name(candidate)
        return kept(path, key_of(self._inputs, candidate), lambda: self._measured(candidate))

    def as_run(self, candidate: Candidate) -> dict[str, Any]:
        """What a candidate gives as its command runs it, from its file where that was measured before.

        Law: nothing is looked at before; on dev rows only where the row needs no data, at its own rank.
        """
        path = self._folder / AS_RUN / _file_name(candidate)
        key = key_of(self._inputs, candidate, as_run=True)
        return kept(path, key, lambda: self._measured_as_run(candidate))

    def statistics(self) -> list[Path]:
        """The folders of the statistics of the specialists, collected where they are not there yet."""
        return self._statistics.folders(self.adapters)

    def look(self, update: Dense, coefficient: float) -> tuple[float, dict[str, Tensor]]:
        """What a multiple of an update has on the looks: the specialists' share, and which are right."""
        correct = self._scorer.correct(self._material.looks, update, coefficient)
        return normalised(accuracies(correct), self.reference["specialist"]["looks"]), correct

    def merge(self, candidate: Candidate, **parameters: Any) -> MergeResult:
        """The specialists merged, with their statistics where the method needs them."""
        parameters = {**candidate.parameters, **parameters}
        return merge_adapters(
            list(self.adapters.values()),
            method=candidate.method,
            threads=self._threads,
            statistics=self.statistics() if METHODS[candidate.method].statistics else None,
            **parameters,
        )

    def sized(self, candidate: Candidate, merged: MergeResult) -> tuple[float, Dense]:
        """A merge at the norm of the average, at its own where it is fitted to outputs; the factor first."""
        own = is_fitted(candidate)
        scale = 1.0 if own else self.reference["average_norm"] / merged.record.totals.norm
        return scale, dense(merged.updates, scale)

    def _make_reference(self) -> dict[str, Any]:
        own = {
            task: dense({module: adapter.update(module) for module in adapter.modules})
            for task, adapter in self.adapters.items()
        }
        correct = {
            part: {task: self._scorer.correct(rows.only(task), own[task])[task] for task in own}
            for part, rows in self._parts.items()
        }
        base = self._scorer.correct(self._material.test, {})
        average = self.merge(Candidate("average", {"rank": "sum"})).record.totals
        assert average.overlap is not None
        return {
            "sizes": {part: dict(rows.sizes) for part, rows in self._parts.items()},
            "groups": dict(self._material.test_groups),
            "average_norm": average.norm,
            "cosine": average.overlap.cosine,
            "specialist": {
                "looks": accuracies(correct["looks"]),
                "dev": accuracies(_joined(correct["looks"], correct["rest"])),
                "test": accuracies(correct["test"]),
                "correct": packed(correct["test"]),
            },
            "base": {"test": accuracies(base), "correct": packed(base)},
        }

    @property
    def _parts(self) -> dict[str, Rows]:
        return {"looks": self._material.looks, "rest": self._material.rest, "test": self._material.test}

    def _measured(self, candidate: Candidate) -> dict[str, Any]:
        self.measured += 1
        said = {"method": candidate.method, "parameters": dict(candidate.parameters)}
        started = time.perf_counter()
        try:
            merged = self.merge(candidate, scale=1.0)
        except NumericalError as fault:
            return {**said, "refused": list(fault.problems)}
        norm = merged.record.totals.norm
        if not norm > 0.0:
            return {**said, "refused": ["the merged update is zero"]}
        scale, update = self.sized(candidate, merged)
        found = {
            **said,
            "rank": max(one.rank for one in merged.updates.values()),
            "energy_kept": _energy_kept(merged),
            "scale": scale,
            "signature": signature(update, self.reference["average_norm"]),
            "seconds": {"merge": time.perf_counter() - started},
        }
        twin = self._twin(found["signature"])
        if twin is None:
            grid = OWN_GRID if is_fitted(candidate) else self._grid
            return found | self._scored(update, grid, found["seconds"])
        shown = {name: twin[name] for name in ("looks", "coefficient", "dev", "test", "correct")}
        return {**found, "same_as": twin.get("same_as", _name(twin)), **shown}

    def _measured_as_run(self, candidate: Candidate) -> dict[str, Any]:
        self.measured += 1
        said = {"method": candidate.method, "parameters": dict(candidate.parameters)}
        try:
            merged = self.merge(candidate)
        except NumericalError as fault:
            return {**said, "refused": list(fault.problems)}
        record, update = merged.record, dense(merged.updates)
        scale = record.recipe["parameters"]["scale"]
        found = {
            **said,
            "rank": max(one.rank for one in merged.updates.values()),
            "scale": scale if record.matched_scale is None else record.matched_scale,
            "norm": record.totals.norm / self.reference["average_norm"],
            "signature": signature(update, self.reference["average_norm"]),
        }
        chosen_by = not METHODS[candidate.method].statistics and "rank" not in candidate.parameters
        twin = self._twin(found["signature"], as_run=True)
        if twin is not None and ("dev" in twin or not chosen_by):
            shown = {name: twin[name] for name in ("dev", "test", "correct") if name in twin}
            return {**found, "same_as": twin.get("same_as", _name(twin)), **shown}
        if chosen_by:
            parts = (
                self._scorer.correct(rows, update) for rows in (self._material.looks, self._material.rest)
            )
            dev = normalised(accuracies(_joined(*parts)), self.reference["specialist"]["dev"])
            found["dev"] = dev
        correct = self._scorer.correct(self._material.test, update)
        return {**found, "test": accuracies(correct), "correct": packed(correct)}

    def _twin(self, own: Sequence[float], *, as_run: bool = False) -> dict[str, Any] | None:
        """The result of the same update, or of a multiple of it where multiples are what is tried."""
        for path in sorted((self._folder / AS_RUN if as_run else self._folder).glob("*.json")):
            other = json.loads(path.read_text(encoding="utf-8"))
            if "signature" not in other or not is_current(other, self._inputs, as_run=as_run):
                continue
            if max(abs(x - y) for x, y in zip(own, other["signature"], strict=True)) < SAME:
                return other
        return None

    def _scored(self, update: Dense, grid: Sequence[float], seconds: Mapping[str, float]) -> dict[str, Any]:
        began = time.perf_counter()
        seen: dict[float, dict[str, Tensor]] = {}

        def look(coefficient: float) -> float:
            share, seen[coefficient] = self.look(update, coefficient)
            return share

        best = search(look, grid)
        looks = [{"coefficient": c, "looks": accuracies(found)} for c, found in seen.items()]
        dev = _joined(seen[best], self._scorer.correct(self._material.rest, update, best))
        middle = time.perf_counter()
        correct = self._scorer.correct(self._material.test, update, best)
        return {
            "looks": looks,
            "coefficient": best,
            "dev": normalised(accuracies(dev), self.reference["specialist"]["dev"]),
            "test": accuracies(correct),
            "correct": packed(correct),
            "seconds": {**seconds, "dev": middle - began, "test": time.perf_counter() - middle},
        }


def search(look: Callable[[float], float], grid: Sequence[float]) -> float:
    """Find where a score of one hump is highest: on a grid of octaves, then half an octave beside the best.

    Law: as many looks whatever is found, two more than the grid has; of equal scores the first looked at.
    """
    scores = {c: look(c) for c in grid}
    best = max(scores, key=scores.__getitem__)
    for beside in (best / math.sqrt(2), best * math.sqrt(2)):
        scores[beside] = look(beside)
    return max(scores, key=scores.__getitem__)


def _joined(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {task: torch.cat([first[task], second[task]]) for task in first}


def run_all(
    measure: Callable[[Candidate], dict[str, Any]], asked: Sequence[Candidate]
) -> list[dict[str, Any]]:
    """The results of some candidates, one after the other; says on stderr how far it is."""
    results = []
    for place, candidate in enumerate(asked, 1):
        began = time.perf_counter()
        result = measure(candidate)
        score = (
            "; ".join(result["refused"]) if "refused" in result else f"dev {result.get('dev', math.nan):.3f}"
        )
        tell(f"{place}/{len(asked)} {candidate.name}: {score} ({time.perf_counter() - began:.0f} s)")
        results.append(result)
    return results


def run_collection(
    name: str, folder: Path, as_run: Sequence[Candidate], chosen: Sequence[Candidate], **size: Any
) -> int:
    """Measure candidates on one collection; the results are the files of `Bench(name, folder, **size)`.

    Args:
        name: Of the collection.
        folder: Of the results.
        as_run: What is measured as its command runs it.
        chosen: What is measured at a multiple chosen on dev.
        size: What else the bench takes.

    Returns:
        How many were not there yet.
    """
    bench = Bench(name, folder, **size)
    run_all(bench.as_run, as_run)
    run_all(bench.run, chosen)
    return bench.measured


def signature(update: Dense, norm: float) -> list[float]:
    """Inner products of an update, divided by `norm`, with fixed random ones: differ where updates do."""
    generator = torch.Generator().manual_seed(SEED)
    total = torch.zeros(PROJECTIONS, dtype=torch.float64)
    for module in sorted(update):
        change = update[module]
        for place in range(PROJECTIONS):
            direction = torch.randn(change.shape, generator=generator)
            total[place] += (direction * change).sum(dtype=torch.float64)
    found: list[float] = (total / norm).tolist()
    return found


def _energy_kept(merged: MergeResult) -> float:
    """The share of the squared norm, over all modules, that the cut to the rank kept."""
    rows = merged.record.modules
    whole = math.fsum(row.norm**2 / (row.energy_kept or 1.0) for row in rows)
    return math.fsum(row.norm**2 for row in rows) / whole


def _file_name(candidate: Candidate) -> str:
    return f"{candidate.name.replace(':', ',')}.json"


def _name(result: Mapping[str, Any]) -> str:
    return Candidate(result["method"], result["parameters"]).name
