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
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
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
from benchmarks.nli.specialist_statistics import EXAMPLES, Collected
from riemerge import merge_adapters
from riemerge.formats.dialects import read_adapter
from riemerge.merging.sinks import MergeResult
from riemerge.methods import METHODS
from riemerge.methods.method import Method
from riemerge.methods.parameters import MATCHED
from riemerge.recipes.candidates import Candidate
from riemerge.study.method_trials import RefusedError, merge_or_refuse
from riemerge.study.norm_search import NORMS, search_norms
from riemerge.study.result_table import ResultTable, Row
from riemerge.study.scorer import Answers, average_rows, mean_share

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

REFERENCE, CHOSEN, AS_RUN = "reference", "chosen", "as_run"
"""Names of rows: the specialists and the base alone, then `chosen/CANDIDATE` and `as_run/CANDIDATE`."""

PROJECTIONS = 4
SAME = 1e-5  # of unit norm: round-off of float32 in sums of ten million terms stays a decade below


# --- candidates ---------------------------------------------------------------------------------------------


def candidates() -> list[Candidate]:
    """Return every row that takes six models and no statistics of a base, but for `LONG`.

    Each is there at its default rank and whole (where its rank is no constraint), and at `DENSITY` where it
    has one. Rows of a trajectory get the tasks in the order of `TASKS`.
    """
    rows = [row for row in METHODS.values() if _applies(row)]
    whole = [Candidate(row.name, {**settings_of(row), "rank": "sum"}) for row in rows if _has_ranks(row)]
    return whole + [Candidate(row.name, settings_of(row)) for row in rows]


def as_run_candidates() -> list[Candidate]:
    """Return every candidate at its own rank, at both scales if it has a choice and no data; some whole."""
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
    """Return the scale that a row does not have by itself."""
    return 1.0 if row.defaults.get("scale") == MATCHED else MATCHED


def _applies(row: Method) -> bool:
    takes_six = len(TASKS) <= (row.models[1] or len(TASKS))
    return takes_six and not row.base_statistics and row.name not in LONG


def _has_ranks(row: Method) -> bool:
    return not row.truncates_inputs and "rank" not in row.defaults and not row.constrained


def settings_of(row: Method) -> dict[str, Any]:
    """Return what a row is measured with at its own rank: a density where it has one."""
    return {"density": DENSITY} if "density" in row.parameters else {}


# --- results ------------------------------------------------------------------------------------------------


def packed(correct: Mapping[str, ArrayLike]) -> dict[str, str]:
    """Return the bits of each task as hexadecimal digits."""
    return {task: np.packbits(np.asarray(bits, bool)).tobytes().hex() for task, bits in correct.items()}


def unpacked(text: str, size: int) -> np.ndarray:
    """Return the bits that `packed` wrote."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=size).astype(bool)


def answers_of(*halves: Mapping[str, Tensor]) -> Answers:
    """Return which rows are right as answers of a scorer, one half of the rows after the other."""
    return {task: tuple(torch.cat([half[task] for half in halves]).tolist()) for task in halves[0]}


def accuracies(*halves: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the share of answers that are right, by task."""
    return average_rows(answers_of(*halves))


def digest(*said: Any) -> str:
    """Return a name for what was said, which JSON can hold."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def key_of(inputs: str, candidate: Candidate, *, as_run: bool = False) -> str:
    """Return what a result depends on, but for the code: inputs / the row, its parameters and its defaults.

    The scale counts as run alone: at a chosen multiple it is what is chosen.
    """
    row = METHODS[candidate.method]
    values = {**row.defaults, **candidate.parameters}
    if as_run:
        return f"{inputs}/{digest('as run', row.name, {'scale': 1.0, **values})}"
    return f"{inputs}/{digest(row.name, {name: one for name, one in values.items() if name != 'scale'})}"


def is_fitted(candidate: Candidate) -> bool:
    """Return whether a row is fitted to outputs, so that its size means them."""
    return bool(METHODS[candidate.method].statistics)


def is_current(result: Mapping[str, Any], inputs: str) -> bool:
    """Return whether a result is of these inputs, and of a row that still has the same defaults."""
    candidate = Candidate(result["method"], result["parameters"])
    as_run = result["name"].startswith(AS_RUN)
    return candidate.method in METHODS and result["key"] == key_of(inputs, candidate, as_run=as_run)


def label_of(result: Mapping[str, Any]) -> str:
    """Return the name of the candidate that a result is of."""
    return Candidate(result["method"], result["parameters"]).name


# --- the protocol -------------------------------------------------------------------------------------------


class Laboratory:
    """The base model with its scorer, and the specialists of one collection.

    Args:
        collection: A key of `material.COLLECTIONS`.
        threads: Number of threads that compute.

    Attributes:
        adapters: Specialist by task.
        model: The base model in float32, which is left as it is.
        tokenizer: The tokenizer of the base model.
        output: The output layer, as `scorer.directions` makes it.
        scorer: Scores the base model plus any multiple of any update.
        files: The sha256 of all files that a score depends on.
    """

    def __init__(self, collection: str, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.adapters = {task: read_adapter(path) for task, path in specialists(collection).items()}
        base = base_folder()
        assert base is not None
        self.model, self.tokenizer = load_base(base)
        self.output = directions(self.model, self.tokenizer)
        self.scorer = Scorer(self.model, self.output, DTYPE)
        self.files = fingerprints(), {task: dict(one.sha256) for task, one in self.adapters.items()}


class Bench:
    """The test bench of one collection of specialists; results are rows of one table, and reused.

    Args:
        collection: A key of `material.COLLECTIONS`.
        folder: Folder of the tables; that of a collection is COLLECTION.jsonl.
        threads: Number of threads that compute.
        limit: Number of rows of each half of each task; all if not given.
        grid: Coefficients that are tried first.

    Attributes:
        adapters: Specialist by task.
        table: The table of results.
        reference: Specialists and base by themselves, and the norm of the average.
        measured: How many candidates were measured now, and not read from the table.
    """

    def __init__(
        self,
        collection: str,
        folder: Path,
        *,
        threads: int = 1,
        limit: int | None = None,
        grid: Sequence[float] = NORMS,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        laboratory = Laboratory(collection, threads)
        self.adapters, self._scorer, self._threads = laboratory.adapters, laboratory.scorer, threads
        self._material, self._grid = read_material(laboratory.tokenizer, limit), tuple(grid)
        settings = SEED, MAX_LENGTH, EXAMPLES
        self._inputs = digest(laboratory.files, settings, limit, self._grid, OWN_GRID, str(DTYPE))
        self._statistics = Collected(
            folder / collection / "statistics" / digest(laboratory.files, settings),
            laboratory.model,
            laboratory.tokenizer,
            laboratory.output,
        )
        self.measured = 0
        self.table = ResultTable(folder / f"{collection}.jsonl")
        key = f"{self._inputs}/{digest(REFERENCE)}"
        self.reference: Row = self.table.keep(REFERENCE, key, self._make_reference, dict)

    def run(self, candidate: Candidate) -> Row:
        """Return the result of a candidate at a chosen multiple, from the table if it was tried before.

        Law: a method that refuses these adapters has a result that says why; a merge that is a multiple of
        one that was tried takes over its scores, and says whose.
        """
        return self._keep(CHOSEN, candidate, self._measure_chosen)

    def as_run(self, candidate: Candidate) -> Row:
        """Return what a candidate gives as its command runs it, from the table if it was measured before.

        Law: nothing is looked at before; on dev rows only where the row needs no data, at its own rank.
        """
        return self._keep(AS_RUN, candidate, self._measure_as_run)

    def _keep(self, measure: str, candidate: Candidate, make: Callable[[Candidate], Row]) -> Row:
        def measure_it() -> Row:
            self.measured += 1
            facts = {"method": candidate.method, "parameters": dict(candidate.parameters)}
            try:
                return facts | make(candidate)
            except RefusedError as fault:
                return {**facts, "refused": list(fault.problems)}

        key = key_of(self._inputs, candidate, as_run=measure == AS_RUN)
        return self.table.keep(f"{measure}/{candidate.name}", key, measure_it, dict)

    def statistics(self) -> list[Path]:
        """Return the folders of the specialists' statistics, collected where they are not there yet."""
        return self._statistics.folders(self.adapters)

    def look(self, update: Dense, coefficient: float) -> float:
        """Return the share of the specialists' accuracy that a multiple of an update keeps on the looks."""
        scores = accuracies(self._scorer.correct(self._material.looks, update, coefficient))
        return mean_share(scores, self.reference["specialist"]["looks"])

    def merge(self, candidate: Candidate, **parameters: Any) -> MergeResult:
        """Merge the specialists, with their statistics where the method needs them."""
        parameters = {**candidate.parameters, **parameters}
        return merge_adapters(
            list(self.adapters.values()),
            method=candidate.method,
            threads=self._threads,
            statistics=self.statistics() if is_fitted(candidate) else None,
            **parameters,
        )

    def sized(self, candidate: Candidate, merged: MergeResult) -> tuple[float, Dense]:
        """Return a merge at the norm of the average (at its own if fitted to outputs), after its factor."""
        scale = 1.0
        if not is_fitted(candidate):
            scale = self.reference["average_norm"] / merged.record.totals.norm
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
                "dev": accuracies(correct["looks"], correct["rest"]),
                "test": accuracies(correct["test"]),
                "correct": packed(correct["test"]),
            },
            "base": {"test": accuracies(base), "correct": packed(base)},
        }

    @property
    def _parts(self) -> dict[str, Rows]:
        return {"looks": self._material.looks, "rest": self._material.rest, "test": self._material.test}

    def _measure_chosen(self, candidate: Candidate) -> Row:
        began = time.perf_counter()
        merged = merge_or_refuse(lambda: self.merge(candidate, scale=1.0))
        scale, update = self.sized(candidate, merged)
        result: Row = {
            "rank": max(one.rank for one in merged.updates.values()),
            "energy_kept": _energy_kept(merged),
            "scale": scale,
            "signature": signature(update, self.reference["average_norm"]),
            "seconds": {"merge": time.perf_counter() - began},
        }
        twin = self._twin(CHOSEN, result["signature"])
        if twin:
            return result | _scores_of(twin, "looks", "coefficient", "dev", "test", "correct")
        began = time.perf_counter()
        seen: dict[float, Mapping[str, Tensor]] = {}

        def ask(coefficient: float) -> Answers:
            seen[coefficient] = self._scorer.correct(self._material.looks, update, coefficient)
            return answers_of(seen[coefficient])

        grid = OWN_GRID if is_fitted(candidate) else self._grid
        search = search_norms(ask, self.reference["specialist"]["looks"], grid)
        rest = self._scorer.correct(self._material.rest, update, search.best)
        dev = self._dev_share(seen[search.best], rest)
        middle = time.perf_counter()
        correct = self._scorer.correct(self._material.test, update, search.best)
        seconds = {"dev": middle - began, "test": time.perf_counter() - middle}
        return {
            **result,
            "seconds": result["seconds"] | seconds,
            "looks": [{"coefficient": look.coefficient, "looks": look.dev} for look in search.looks],
            "coefficient": search.best,
            "dev": dev,
            "test": accuracies(correct),
            "correct": packed(correct),
        }

    def _measure_as_run(self, candidate: Candidate) -> Row:
        merged = merge_or_refuse(lambda: self.merge(candidate))
        record, update = merged.record, dense(merged.updates)
        result: Row = {
            "rank": max(one.rank for one in merged.updates.values()),
            "scale": record.matched_scale or record.recipe["parameters"]["scale"],
            "norm": record.totals.norm / self.reference["average_norm"],
            "signature": signature(update, self.reference["average_norm"]),
        }
        has_dev = not is_fitted(candidate) and "rank" not in candidate.parameters
        twin = self._twin(AS_RUN, result["signature"])
        if twin and ("dev" in twin or not has_dev):
            return result | _scores_of(twin, "dev", "test", "correct")
        if has_dev:
            halves = [
                self._scorer.correct(rows, update) for rows in (self._material.looks, self._material.rest)
            ]
            result["dev"] = self._dev_share(*halves)
        correct = self._scorer.correct(self._material.test, update)
        return {**result, "test": accuracies(correct), "correct": packed(correct)}

    def _dev_share(self, looks: Mapping[str, Tensor], rest: Mapping[str, Tensor]) -> float:
        """Return the share of the specialists' accuracy on all of the dev half."""
        return mean_share(accuracies(looks, rest), self.reference["specialist"]["dev"])

    def _twin(self, measure: str, own: Sequence[float]) -> Row:
        """Return the result of the same update, or of a multiple where multiples are tried; empty if none."""
        twins = (
            row
            for name, row in self.table.rows.items()
            if name.startswith(measure) and "signature" in row and is_current(row, self._inputs)
            if max(abs(x - y) for x, y in zip(own, row["signature"], strict=True)) < SAME
        )
        return next(twins, {})


def _scores_of(twin: Row, *columns: str) -> Row:
    """Return the scores that a result takes over from its twin, and whose they are."""
    scores = {name: twin[name] for name in columns if name in twin}
    return {"same_as": twin.get("same_as", label_of(twin)), **scores}


def run_all(measure: Callable[[Candidate], Row], asked: Sequence[Candidate]) -> list[Row]:
    """Return the results of some candidates, one after the other; tell on stderr how far it is."""
    results = []
    for place, candidate in enumerate(asked, 1):
        began = time.perf_counter()
        result = measure(candidate)
        score = "; ".join(result.get("refused", [f"dev {result.get('dev', math.nan):.3f}"]))
        tell(f"{place}/{len(asked)} {candidate.name}: {score} ({time.perf_counter() - began:.0f} s)")
        results.append(result)
    return results


def run_collection(
    name: str, folder: Path, as_run: Sequence[Candidate], chosen: Sequence[Candidate], **size: Any
) -> int:
    """Measure candidates on one collection; the results are the table of `Bench(name, folder, **size)`.

    Args:
        name: Name of the collection.
        folder: Folder of the tables.
        as_run: Candidates that are measured as their commands run them.
        chosen: Candidates that are measured at a multiple chosen on dev.
        size: What else the bench takes.

    Returns:
        How many results were not there yet.
    """
    bench = Bench(name, folder, **size)
    run_all(bench.as_run, as_run)
    run_all(bench.run, chosen)
    return bench.measured


def signature(update: Dense, norm: float) -> list[float]:
    """Return inner products of an update / `norm` with fixed random ones: they differ where updates do."""
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
    """Return the share of the squared norm, over all modules, that the cut to the rank kept."""
    rows = merged.record.modules
    whole = math.fsum(row.norm**2 / (row.energy_kept or 1.0) for row in rows)
    return math.fsum(row.norm**2 for row in rows) / whole
