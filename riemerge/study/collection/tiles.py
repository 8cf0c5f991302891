"""Adapters of one module in tiles: read and decomposed as they are needed, within a bound of memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import final

import torch

from riemerge.errors import AdapterError
from riemerge.formats.adapter import Adapter
from riemerge.study.collection.frames import Frames, decompose
from riemerge.updates.low_rank import LowRankUpdate

TILE = 64
"""Adapters whose pairs are computed at once: their products stay in a cache."""

HELD = 2**25
"""Numbers of frames that a module may hold at a time: 256 MiB of float64."""


@final
class Tiles:
    """Updates of one module of T adapters, `TILE` at a time: first those of fresh adapters, then the others.

    Law: a tile does not depend on which are held, so neither does what is computed of pairs of tiles. An
    adapter that cannot be read is zero in its tile, and is named in `faults`.

    Args:
        adapters: The T adapters, which all have the module.
        module: Name of the module.
        fresh: Places of the adapters whose tiles come first.

    Attributes:
        shape: (m, n) of the module.
        places: The places of the adapters of each tile.
        first: Number of tiles of fresh adapters.
        faults: Problems of each adapter that could not be read, by its place.
        rounding: Norm of what rounding to the stored dtype adds to dW, about, by place.
    """

    def __init__(self, adapters: Sequence[Adapter], module: str, fresh: Collection[int]) -> None:
        self.shape = adapters[0].shape(module)
        self.faults: dict[int, tuple[str, ...]] = {}
        self.rounding: dict[int, float] = {}
        self._adapters, self._module = adapters, module
        self._held: dict[int, Frames] = {}
        ranks = [adapter.ranks[module] for adapter in adapters]
        # Equal ranks side by side: a tile is padded to its largest one.
        order = sorted(range(len(adapters)), key=ranks.__getitem__)
        parts = [i for i in order if i in fresh], [i for i in order if i not in fresh]
        cut = [[part[start : start + TILE] for start in range(0, len(part), TILE)] for part in parts]
        self.places = [*cut[0], *cut[1]]
        self.first = len(cut[0])
        self._numbers = [sum(self.shape) * sum(ranks[i] for i in places) for places in self.places]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Frames:
        """Return a tile, which is read unless it is held."""
        if index in self._held:
            return self._held[index]
        return self._read(self.places[index])

    def runs(self, stop: int) -> list[range]:
        """Divide the first tiles, up to `stop`, into runs that can be held."""
        runs: list[range] = []
        numbers = 0
        for index in range(stop):
            numbers += self._numbers[index]
            if not runs or numbers > HELD:
                runs.append(range(index, index))
                numbers = self._numbers[index]
            runs[-1] = range(runs[-1].start, index + 1)
        return runs

    def hold(self, run: range) -> None:
        """Hold a run of tiles, and no others."""
        self._held = {index: tile for index, tile in self._held.items() if index in run}
        self._held |= {index: self[index] for index in run}

    def _read(self, places: Sequence[int]) -> Frames:
        m, n = self.shape
        updates = []
        for place in places:
            adapter = self._adapters[place]
            try:
                update = adapter.update(self._module)
                self.rounding[place] = update.rounding(adapter.dtype)
            except AdapterError as fault:
                self.faults[place] = fault.problems
                zeros = torch.zeros(max(m, n), 1, dtype=torch.float64)
                update = LowRankUpdate(zeros[:m], zeros[:n].mT)
            updates.append(update)
        storage = [torch.promote_types(self._adapters[place].dtype, torch.float32) for place in places]
        return decompose(updates, storage)
