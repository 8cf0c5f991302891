"""Conversion: one adapter written in another dialect, with the dW that it has."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, final

import torch

from riemerge.errors import AdapterError
from riemerge.formats.adapter import Adapter
from riemerge.formats.checkpoint import DenseWriter
from riemerge.formats.dialects import find_doubts, name_alike, read_adapter, write_adapter
from riemerge.formats.files.pickles import SUFFIXES, unpickle
from riemerge.formats.files.rounding import Rounding
from riemerge.formats.files.staging import check_output
from riemerge.formats.files.text import list_names
from riemerge.formats.layers import Dora, Expert
from riemerge.formats.lycoris import Lycoris
from riemerge.formats.rounded_updates import RoundedUpdates

DELTA = "delta"


@final
class Conversion(NamedTuple):
    """What was converted.

    Attributes:
        source: The dialect that was read.
        target: The dialect that was written, or `delta`.
        modules: The number of modules.
        rounding: The largest relative error of rounding dW of a module to the dtype that was written.
        warnings: What the names in the other dialect may be otherwise.
    """

    source: str
    target: str
    modules: int
    rounding: float
    warnings: list[str]


def convert(
    source: str | Path, target: str | Path, dialect: str, *, allow_pickle: bool = False
) -> Conversion:
    """Write an adapter in another dialect, all or nothing.

    Law: the stored factors are the same numbers, with the same scale, so dW is the same, and a file that this
    package wrote, converted there and back, has the same bytes. Products of more than two factors (LoHa,
    LoKr, kohya's lora_mid) are multiplied in float64, balanced, and rounded to the dtype of the factors:
    their rank is the most that such a product can have. `delta` is the whole dW of each module.

    Args:
        source: The folder or file of the adapter.
        target: The new folder.
        dialect: The dialect that is written, `peft`, `kohya`, `diffusers` or `mlx`; or `delta`.
        allow_pickle: Whether to open a pickle, in a process of its own (see `formats.files.pickles`).

    Raises:
        AdapterError: The adapter cannot be read exactly, or the dialect cannot say all of it.
        NumericalError: A product cannot be written in the dtype of its factors.
        OutputError: The folder cannot be written.
        ResourceError: A pickle, where the memory of a process cannot be limited.
    """
    check_output(target, [source])
    with _without_pickles(Path(source), allow_pickle) as path:
        lycoris = Lycoris()
        adapter = lycoris.read(path) if lycoris.find(path) else read_adapter(path)
        if adapter.saved:
            raise AdapterError(
                f"{source}: has {len(adapter.saved)} whole tensors beside factors (heads, biases, trained "
                "tokens), which convert does not write: riemerge merge has --heads and --to"
            )
        _check_base(source, adapter, dialect)
        if dialect == DELTA:
            rounding = _write_delta(adapter, target)
        else:
            rounding = _write_factors(adapter, target, dialect)
        warnings = find_doubts(adapter, dialect)
        return Conversion(adapter.dialect, dialect, len(adapter.modules), rounding, warnings)


def _check_base(source: str | Path, adapter: Adapter, dialect: str) -> None:
    """Refuse what cannot be written without the base model, which a conversion does not read.

    Raises:
        AdapterError: Modules are DoRA's, or experts whose whole dW is asked for.
    """
    has_dora = any(isinstance(layer, Dora) for layer in adapter.layers.values())
    needing = [
        module
        for module, layer in adapter.layers.items()
        if isinstance(layer, Dora) or (isinstance(layer, Expert) and dialect == DELTA)
    ]
    if not needing:
        return
    why = "the layout of experts depends on the base model"
    if has_dora:
        why = "dW of DoRA depends on the weights of the base model"
    options = f"--rank 95% --to {dialect}"
    if dialect == DELTA:
        options = "--out-type delta"
    raise AdapterError(
        f"{source}: {list_names(needing)}: {why}, which convert does not read: riemerge merge "
        f"{shlex.quote(str(source))} --base BASE -o OUT {options}"
    )


def _write_factors(adapter: Adapter, target: str | Path, dialect: str) -> float:
    """Write an adapter in a dialect, and return the largest error of rounding."""
    (named,) = name_alike([adapter], dialect)
    rounded = RoundedUpdates(named.dtype)
    for module in named.modules:
        exact = named.update(module)
        stored = exact.to(named.dtype)
        if all(
            torch.equal(mine.to(torch.float64), given)
            for mine, given in ((stored.A, exact.A), (stored.B, exact.B))
        ):
            rounded.updates[module] = stored
            rounded.roundings[module] = Rounding(named.dtype, exact.norm(), 0.0)
        else:
            rounded.add(module, exact.balance())
    rounded.check()
    errors = write_adapter(
        target,
        rounded.updates,
        dialect=dialect,
        like=[named],
        dtype=named.dtype,
        rounding=rounded.roundings,
    )
    return max(errors.values())


def _write_delta(adapter: Adapter, target: str | Path) -> float:
    """Write the whole dW of each module as the base model stores its weight, and names it."""
    if adapter.dialect == "kohya":
        (adapter,) = name_alike([adapter], "diffusers")
    with DenseWriter(target, dtype=adapter.dtype) as writer:
        for module, layer in adapter.layers.items():
            writer.add(layer.weight(module), layer.as_stored(adapter.update(module).dense()))
    return max(writer.errors.values())


@contextmanager
def _without_pickles(source: Path, allowed: bool) -> Iterator[Path]:
    """Yield a path that holds no pickle: the source itself, or a folder with its tensors as safetensors.

    Raises:
        AdapterError: The source is a pickle, and none is allowed; or it is refused.
    """
    pickles = [source] if source.suffix in SUFFIXES and source.is_file() else []
    if source.is_dir() and not any(source.glob("*.safetensors")):
        pickles = [path for path in sorted(source.iterdir()) if path.suffix in SUFFIXES]
    if not pickles:
        yield source
        return
    if not allowed or len(pickles) > 1:
        named = ", ".join(path.name for path in pickles)
        raise AdapterError(
            f"{source}: {named}: a pickle can run any program as it is opened: --allow-pickle opens one, in "
            "a process that knows tensors only, of limited memory and time"
        )
    (pickle,) = pickles
    with TemporaryDirectory() as folder:
        unpickle(pickle, Path(folder, pickle.name).with_suffix(".safetensors"))
        settings = pickle.with_name("adapter_config.json")
        if settings.exists():
            shutil.copyfile(settings, Path(folder, settings.name))
        try:
            yield Path(folder)
        except AdapterError as fault:
            raise AdapterError(text.replace(folder, str(source)) for text in fault.problems) from fault
