"""Tables of all pairs of a collection: T × T matrices beside its record, read one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.files.tensor_file import open_tensors

PAIRS_FILE = "pairs.safetensors"
"""Name of the file of the tables, beside `collection.json`."""

Measure: TypeAlias = Literal["cosine", "distance", "left", "right"]
"""What is measured of a pair: cosine and distance of dW, RMS cosine of column spaces and of row spaces."""

PerModule: TypeAlias = Literal["norms", "ranks", "numerical_ranks", "singular_values", "rounding"]
"""What is kept of each adapter and module."""


@final
class PairTables:
    """The tables of a collection; each is read when it is asked for, in the order of the record's names.

    Args:
        folder: Folder of the collection.

    Raises:
        AdapterError: The file is missing or not whole.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder, PAIRS_FILE)
        try:
            self._file = open_tensors(path)
        except ValueError as why:
            raise AdapterError(f"{path}: {why}: run riemerge map again") from None

    def pairs(self, measure: Measure, group: str = "total") -> Tensor:
        """Return the symmetric (T, T) table of a measure over a group of modules, float64.

        Law: `distance` is ‖dW − dW'‖, in the units of the weights, from inner products: its error is about
        1e-8 of the larger norm. A pair without a common module, or with an update of zero, has cosine 0 and
        no overlap: 0. `total` is kept in float64, other groups in float32.

        Raises:
            KeyError: The collection has no such group.
        """
        (table,) = self._file.read(f"{measure}/{group}")
        return table.to(torch.float64)

    def per_module(self, measure: PerModule) -> Tensor:
        """Return what is kept of each adapter and module (T, K), modules as in the record.

        Law: 0 where an adapter lacks a module; `singular_values` is (T, K, R), descending, for the largest
        rank R.
        """
        (table,) = self._file.read(measure)
        return table
