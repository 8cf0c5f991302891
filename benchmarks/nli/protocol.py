"""The same test for every method: merge once, choose a multiple on the dev half, score it on the test half.

Every merged update is brought to the norm of the plain average over all modules first. So a coefficient means
the same for sums and means, every method is tried at the same norms, and none has more looks than another.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    base_folder,
    fingerprints,
    read_material,
    specialists,
)
from benchmarks.nli.scorer import Dense, Scorer, dense, directions, load_base
from riemerge import merge_adapters
from riemerge.adapters import read_adapter
from riemerge.candidates import Candidate
from riemerge.errors import NumericalError
from riemerge.merge import MergeResult
from riemerge.methods import METHODS
from riemerge.methods.method import Method

GRID = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Norms that are tried, as multiples of that of the plain average."""

DENSITIES = (0.2, 0.5)

# Dev looks are taken in bfloat16: about one answer in a thousand differs from float32, and a CPU that has it
# takes half of the time. What is reported of the test half is float32.
DEV_DTYPE = torch.bfloat16

PROJECTIONS = 4
SAME = 1e-5  # of unit norm: round-off of float32 in sums of ten million terms stays a decade below


# --- candidates ---------------------------------------------------------------------------------------------


def candidates() -> list[Candidate]:
    """Every row that needs no data and no order and takes six models: at its default rank and whole, and at
    every density of `DENSITIES` where it has one.
    """
    return [Candidate(row.name, one) for row in METHODS.values() if _applies(row) for one in _settings(row)]


def _applies(row: Method) -> bool:
    return not row.statistics and not row.ordered and len(TASKS) <= (row.models[1] or len(TASKS))


def _settings(row: Method) -> Iterator[dict[str, Any]]:
    has_choice = row.domain is not None and "rank" not in row.defaults
    for rank in ({}, {"rank": "sum"}) if has_choice else ({},):
        densities = DENSITIES if "density" in row.parameters else ()
        yield from ({**rank, "density": density} for density in densities)
        if not densities:
            yield dict(rank)


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


def kept(path: Path, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds under this key; made and written, whole or not at all, where it does not."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["key"] == key:
            return found
    result = {"key": key, **make()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
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
        grid: Coefficients that are tried.
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
        self._adapters = {task: read_adapter(path) for task, path in specialists(collection).items()}
        base = base_folder()
        assert base is not None
        model, tokenizer = load_base(base)
        output = directions(model, tokenizer)
        self._dev, self._test = Scorer(model, output, DEV_DTYPE), Scorer(model, output)
        self._material = read_material(tokenizer, limit)
        self._inputs = {
            "files": fingerprints(),
            "adapters": {task: dict(adapter.sha256) for task, adapter in self._adapters.items()},
            "settings": [SEED, MAX_LENGTH, limit, list(self._grid), str(DEV_DTYPE)],
        }
        self.reference = kept(self._folder / "reference.json", self._key("reference"), self._make_reference)

    def run(self, candidate: Candidate) -> dict[str, Any]:
        """The result of one candidate, from its file where the same was tried before.

        Law: a method that refuses these adapters has a result that says why; a merge that is a multiple of
        one that was tried takes over its scores, and says whose.
        """
        path = self._folder / f"{candidate.name.replace(':', ',')}.json"
        key = self._key(candidate.method, dict(candidate.parameters))
        return kept(path, key, lambda: self._measured(candidate))

    def _key(self, *said: Any) -> str:
        text = json.dumps([self._inputs, *said], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _merge(self, method: str, parameters: Mapping[str, Any]) -> MergeResult:
        adapters = list(self._adapters.values())
        return merge_adapters(adapters, method=method, threads=self._threads, **parameters)

    def _make_reference(self) -> dict[str, Any]:
        own = {
            task: dense({module: adapter.update(module) for module in adapter.modules})
            for task, adapter in self._adapters.items()
        }
        dev = {task: self._dev.correct(self._material.dev.only(task), own[task])[task] for task in own}
        test = {task: self._test.correct(self._material.test.only(task), own[task])[task] for task in own}
        base = self._test.correct(self._material.test, {})
        return {
            "sizes": dict(self._material.test.sizes),
            "groups": dict(self._material.test_groups),
            "average_norm": self._merge("average", {"rank": "sum"}).record.totals.norm,
            "specialist": {
                "dev": accuracies(dev),
                "test": accuracies(test),
                "correct": packed(test),
            },
            "base": {"test": accuracies(base), "correct": packed(base)},
        }

    def _measured(self, candidate: Candidate) -> dict[str, Any]:
        said = {"method": candidate.method, "parameters": dict(candidate.parameters)}
        started = time.perf_counter()
        try:
            merged = self._merge(candidate.method, candidate.parameters)
        except NumericalError as fault:
            return {**said, "refused": list(fault.problems)}
        norm = merged.record.totals.norm
        if not norm > 0.0:
            return {**said, "refused": ["the merged update is zero"]}
        scale = self.reference["average_norm"] / norm
        update = dense(merged.updates, scale)
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
            return found | self._scored(update, found["seconds"])
        shown = {name: twin[name] for name in ("looks", "coefficient", "dev", "test", "correct")}
        return {**found, "same_as": twin.get("same_as", _name(twin)), **shown}

    def _twin(self, own: Sequence[float]) -> dict[str, Any] | None:
        """The result of a multiple of this update, from the same rows and the same coefficients."""
        for path in sorted(self._folder.glob("*.json")):
            other = json.loads(path.read_text(encoding="utf-8"))
            if "signature" not in other or other["key"] != self._key(other["method"], other["parameters"]):
                continue
            if max(abs(x - y) for x, y in zip(own, other["signature"], strict=True)) < SAME:
                return other
        return None

    def _scored(self, update: Dense, seconds: Mapping[str, float]) -> dict[str, Any]:
        specialist = self.reference["specialist"]["dev"]
        began = time.perf_counter()
        looks = [
            {"coefficient": c, "dev": accuracies(self._dev.correct(self._material.dev, update, c))}
            for c in self._grid
        ]
        best = max(looks, key=lambda look: normalised(look["dev"], specialist))
        middle = time.perf_counter()
        correct = self._test.correct(self._material.test, update, best["coefficient"])
        return {
            "looks": looks,
            "coefficient": best["coefficient"],
            "dev": normalised(best["dev"], specialist),
            "test": accuracies(correct),
            "correct": packed(correct),
            "seconds": {**seconds, "dev": middle - began, "test": time.perf_counter() - middle},
        }


def run_all(bench: Bench, asked: Sequence[Candidate]) -> list[dict[str, Any]]:
    """The results of some candidates, one after the other; says on stderr how far it is."""
    results = []
    for place, candidate in enumerate(asked, 1):
        began = time.perf_counter()
        result = bench.run(candidate)
        score = f"dev {result['dev']:.3f}" if "dev" in result else "; ".join(result["refused"])
        tell(f"{place}/{len(asked)} {candidate.name}: {score} ({time.perf_counter() - began:.0f} s)")
        results.append(result)
    return results


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


def _name(result: Mapping[str, Any]) -> str:
    return Candidate(result["method"], result["parameters"]).name
