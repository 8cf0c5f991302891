"""What merges of the same models have in common: they are opened, read and reduced once for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, final
from weakref import WeakKeyDictionary

import torch

from riemerge.merging.identifiability import overlaps
from riemerge.merging.inputs import Inputs, Model
from riemerge.merging.plan import Plan, plan
from riemerge.recipes.recipe import Recipe
from riemerge.updates import LowRankUpdate
from riemerge.updates.reduction import Reduction

BYTES = 2**30
"""The most bytes of factors that are kept: two adapters of rank 16 of all 224 modules of Llama-3-8B are
671 MB in float64."""

_COPIES = 4  # of the numbers of a reduction: itself and its decompositions


@final
class SharedInputs:
    """Models that several merges have in common.

    Law: no merge differs by a bit from the same merge alone. A file that has changed since it was opened is
    noticed by the next plan.

    Args:
        opened: Models that are open already, by path.
        most: The most bytes of factors that are kept; what is above is read again for each merge.

    Attributes:
        opened: All models that are open, by path.
    """

    def __init__(self, opened: Mapping[Path, Model] | None = None, most: int = BYTES) -> None:
        self.opened: dict[Path, Model] = dict(opened or {})
        self._most, self._lock = most, Lock()
        self._updates: dict[tuple[Path, str], LowRankUpdate] = {}
        self._settings: Any = None
        self._bytes, self._full = 0, False
        self._together: list[Path] = []
        self._kept: dict[tuple[str, ...], Reduction] = {}
        self._known = WeakKeyDictionary[Reduction, Sequence[Any]]()

    def plan(self, recipe: Recipe, *, device: str = "cpu", threads: int | None = None) -> Plan:
        """Plan a merge that takes from here what an earlier one has read.

        Args:
            recipe: What to merge, and how.
            device: `cpu`, `cuda`, `cuda:N` or `auto`.
            threads: Number of threads that work at once.

        Raises:
            RiemergeError: What `riemerge.plan` raises; an AdapterError for a file that has changed.
        """
        planned = plan(recipe, opened=self.opened, device=device, threads=threads)
        self.opened.update(planned.models)
        inputs, recipe = planned.inputs, planned.recipe
        if not inputs.adapters or inputs.base:
            return planned
        for adapter in inputs.adapters:
            adapter.check()
        # What decides the names and the numbers of the factors of an adapter, beside its files.
        settings = (recipe.dtype, planned.device, inputs.adapters[0].dialect, dict(recipe.rename))
        used = {adapter.path for adapter in inputs.adapters}
        if settings != self._settings:
            used, self._together = set(), []
        if settings != self._settings or self._full:
            self._updates = {key: update for key, update in self._updates.items() if key[0] in used}
            self._bytes = sum(map(_count_bytes, self._updates.values()))
        self._settings, self._full = settings, False
        stack = replace(
            planned.stack,
            modules=_Modules(self, inputs, getattr(torch, recipe.dtype), planned.device),
            kept=self._reductions(inputs),
        )
        options = planned.options
        if options.overlaps is not None:
            options = replace(options, overlaps=self._measure)
        return replace(planned, stack=stack, options=options)

    def _reductions(self, inputs: Inputs) -> dict[tuple[str, ...], Reduction] | None:
        """Return what was reduced of these adapters together; None where there is no room to keep it."""
        numbers = 0
        for module in inputs.modules:
            width = sum(adapter.ranks.get(module, 1) for adapter in inputs.adapters)
            numbers += width * sum(min(size, width) for size in inputs.shape(module))
        paths = [adapter.path for adapter in inputs.adapters]
        if paths != self._together:
            self._together, self._kept = paths, {}
        return self._kept if 8 * _COPIES * numbers <= self._most else None

    def _measure(self, reduction: Reduction, storage: Sequence[torch.dtype]) -> Sequence[Any]:
        """Return the overlaps of the inputs of some modules, measured once for each reduction."""
        if reduction not in self._known:
            self._known[reduction] = overlaps(reduction, storage)
        return self._known[reduction]

    def clear(self) -> None:
        """Forget all models."""
        self.opened.clear()
        self._updates.clear()
        self._bytes, self._together = 0, []

    def read(
        self, inputs: Inputs, place: int, module: str, dtype: torch.dtype, device: torch.device
    ) -> LowRankUpdate:
        """Return the update of the adapter at a place, and keep it where there is room."""
        key = (inputs.adapters[place].path, module)
        if (update := self._updates.get(key)) is None:
            update = inputs.update(place, module, dtype, device)
            with self._lock:
                size = self._bytes + _count_bytes(update)
                self._full = size > self._most
                if not self._full:
                    self._updates[key], self._bytes = update, size
        return update


def _count_bytes(update: LowRankUpdate) -> int:
    return update.A.nbytes + update.B.nbytes


@final
class _Modules(Mapping[str, tuple[LowRankUpdate, ...]]):
    """The T updates of each module, read at the first access by any merge."""

    def __init__(
        self, shared: SharedInputs, inputs: Inputs, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shared, self._inputs, self._where = shared, inputs, (dtype, device)

    def __getitem__(self, module: str) -> tuple[LowRankUpdate, ...]:
        places = range(len(self._inputs.adapters))
        return tuple(self._shared.read(self._inputs, i, module, *self._where) for i in places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs.modules)

    def __len__(self) -> int:
        return len(self._inputs.modules)
