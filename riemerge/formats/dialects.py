"""The dialects in which adapters are stored: what recognises, reads and writes each of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch

from riemerge.errors import try_each
from riemerge.formats.adapter import Adapter
from riemerge.formats.dialect import Dialect
from riemerge.formats.diffusers import Diffusers
from riemerge.formats.files.tensor_file import reading
from riemerge.formats.kohya import Kohya
from riemerge.formats.mlx import Mlx
from riemerge.formats.peft.adapter_reader import read_peft
from riemerge.formats.peft.adapter_writer import write_peft
from riemerge.formats.unet_names import find_doubt, translate
from riemerge.updates.low_rank import LowRankUpdate


@final
class Peft(Dialect):
    """PEFT's folders, of `adapter_config.json` and `adapter_model.safetensors`; takes what no other does."""

    name = "peft"

    def recognises(self, path: Path) -> bool:
        """Return True: the reader says what is wrong with a path that holds no adapter."""
        return True

    def read(self, path: Path) -> Adapter:
        """Open a PEFT folder (see `read_peft`)."""
        return read_peft(path)

    def write(
        self,
        target: str | os.PathLike[str],
        updates: Mapping[str, LowRankUpdate],
        *,
        like: Sequence[Adapter],
        dtype: torch.dtype,
        **settings: Any,
    ) -> dict[str, float]:
        """Write a PEFT folder (see `write_peft`)."""
        return write_peft(target, updates, like=like, dtype=dtype, **settings)


DIALECTS: Mapping[str, Dialect] = {dialect.name: dialect for dialect in (Kohya(), Diffusers(), Mlx(), Peft())}
"""The dialects by name, in the order in which they are asked whether a path is theirs: PEFT comes last."""


def read_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Open an adapter of any dialect, and check all that its settings and the header of its tensors can tell.

    Law: an adapter that opens is read exactly; any setting or tensor that would not enter dW is refused by
    name. Nothing is executed, nothing is downloaded. The values are checked when they are read.

    Args:
        path: The folder or file of the adapter.

    Raises:
        AdapterError: With every problem found.
    """
    with reading(path):
        dialect = next(dialect for dialect in DIALECTS.values() if dialect.recognises(Path(path)))
    return dialect.read(Path(path))


def name_alike(adapters: Sequence[Adapter], dialect: str) -> list[Adapter]:
    """Return adapters with their modules named as in one dialect, and all as the first names them.

    Law: an adapter whose modules have these names already is returned itself. No update changes.

    Args:
        adapters: The adapters.
        dialect: A dialect of `DIALECTS`.

    Raises:
        AdapterError: Modules have no such name (see `riemerge.formats.unet_names.translate`).
    """
    like: tuple[str, ...] = ()
    named: list[Adapter] = []

    def add(adapter: Adapter) -> None:
        nonlocal like
        if adapter.dialect == dialect and (not like or {*adapter.modules} <= {*like}):
            names = {module: module for module in adapter.modules}
        else:
            base = adapter.config.base_model_name_or_path
            names = translate(adapter.modules, adapter.dialect, dialect, like=like, base=base)
        like = like or tuple(names.values())
        changed = any(new != old for old, new in names.items())
        named.append(adapter.under(names) if changed else adapter)

    try_each(add, adapters)
    return named


def find_doubts(first: Adapter, dialect: str) -> list[str]:
    """Say where the names of modules of an adapter, the first or only one, fit several in another dialect."""
    if dialect != "kohya" or first.dialect == dialect:
        return []
    doubt = find_doubt(first.modules, first.dialect, first.config.base_model_name_or_path)
    return [f"{first.name}: {doubt}" for doubt in (doubt,) if doubt]


def write_adapter(
    target: str | os.PathLike[str],
    updates: Mapping[str, LowRankUpdate],
    *,
    dialect: str = "peft",
    like: Sequence[Adapter] = (),
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> dict[str, float]:
    """Write updates as an adapter of a dialect, all or nothing (see `write_peft`).

    Law: modules are named as that dialect names them (see `name_alike`).
    """
    return DIALECTS[dialect].write(target, updates, like=like, dtype=dtype, **settings)
