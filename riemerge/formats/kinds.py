"""What a path holds, told by the names of files and tensors alone: an adapter, a full checkpoint, neither."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from riemerge.errors import AdapterError
from riemerge.formats.files.tensor_file import open_tensors, reading
from riemerge.formats.files.text import list_names

MODEL_FILE = "model.safetensors"
MODEL_INDEX = "model.safetensors.index.json"
_STATISTICS_FILE = "statistics.json"

_OF_ADAPTERS = re.compile(r"adapter_config\.json|adapter_model.*\..*")
_TENSORS = re.compile(r".*\.(safetensors(\.index\.json)?|bin|pt|pth|ckpt|gguf)")
# Pickles that a trainer leaves in the folder of its run, beside the folders of its models.
_OF_TRAINERS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.(bin|pt|pth)")

_FACTORS_OF_PEFT = re.compile(r"^base_model\.model\.|\.lora_[AB](\.|$)|\.lora_embedding_[AB]$")
FACTORS: Mapping[str, re.Pattern[str]] = {
    "kohya": re.compile(r"^(lora|lycoris)_[^.]+\.lora_(up|down|mid)\.weight$"),
    # Names that no model of words has, since PEFT's own file has these suffixes too, and no scale.
    "diffusers": re.compile(
        r"^(?!base_model\.)(?=.*(^unet\.|^text_encoder(_\d)?\.|transformer_blocks\.|\.attn\d?\.to_[qkv]\b"
        r"|(\.|_)lora\.(up|down)\.|lora_linear_layer)).*(\.lora_[AB]|(lora|lora_linear_layer)\.(up|down))\.weight$"
    ),
}
"""What names of tensors tell a dialect whose adapters are single files, by its name."""

# Trainers of image models (LyCORIS), mlx, torchtune, NeMo and Megatron; VeRA and OFT without PEFT's prefix.
_FACTORS_OF_OTHERS = re.compile(
    r"(^|[._])(lora_(unet|te\d?|transformer)_|lora_(up|down|mid|linear_layer|magnitude_vector)\b)"
    r"|(^|[._])lora_[ABab]([._]|$)|lora\d?\.(up|down|mid)\b|(^|[._])(hada|lokr)_|\bdora_scale$|^lycoris_"
    r"|adapter\.linear_(in|out)\.|(^|[._])(vera_lambda_[bd]|oft_(r|R|blocks))\b"
)
_OF_STATISTICS = {"tokens", "examples", "loss"}


def is_checkpoint(path: str | Path) -> bool:
    """Return whether a path is to be read as a full checkpoint; the reader of adapters takes all others.

    Law: a file is one, unless its tensors are factors of a dialect that has single files; and a folder of
    one such file is none. Any other folder is one if it holds tensors under any name but no statistics, and
    neither the folder itself nor a folder in it holds an adapter; beside `model.safetensors` none of them is
    looked at.

    Raises:
        AdapterError: The file system does not answer: too long a name, no permission.
    """
    path = Path(path)
    with reading(path):
        if any(find_factors(path, dialect) for dialect in FACTORS):
            return False
        if not path.is_dir():
            return path.is_file()
        if holds_adapter(path) or holds_statistics(path):
            return False
        if (path / MODEL_FILE).exists() or (path / MODEL_INDEX).exists():
            return True
        return _holds_tensors(path) and not any(map(holds_adapter, _folders_in(path)))


def find_factors(path: Path, dialect: str) -> Path | None:
    """Return the file of the factors that a path is, or holds as its only file of tensors.

    Args:
        path: The path of a file or folder.
        dialect: A dialect of `FACTORS`.

    Returns:
        The file; None where its tensors have other names, or the settings of PEFT lie beside it.
    """
    file = path
    if path.is_dir():
        names = _names_in(path)
        tensors = [name for name in names if name.endswith(".safetensors")]
        if len(tensors) != 1 or "adapter_config.json" in names:
            return None
        file = path / tensors[0]
    try:
        names = list(open_tensors(file).entries)
    except ValueError:
        return None
    return file if any(map(FACTORS[dialect].search, names)) else None


def holds_adapter(folder: Path) -> bool:
    """Return whether the files of an adapter lie in a folder, or some of them."""
    return any(map(_OF_ADAPTERS.fullmatch, _names_in(folder)))


def holds_statistics(folder: Path) -> bool:
    """Return whether a folder is one of `riemerge.collect_statistics`."""
    return _STATISTICS_FILE in _names_in(folder)


def holds_model(folder: Path) -> bool:
    """Return whether an adapter or tensors lie in a folder; pickles count, but not those of a trainer."""
    return holds_adapter(folder) or _holds_tensors(folder)


def models_below(folder: Path) -> list[str]:
    """Return the names of the folders in a folder that hold a model, sorted."""
    return sorted(inside.name for inside in _folders_in(folder) if holds_model(inside))


def hint_below(folder: Path) -> str:
    """Say which folders in a folder hold a model, as the end of a message; nothing where none does."""
    below = models_below(folder)
    if not below:
        return ""
    return f"; did you mean one of its folders: {list_names(below)}?"


def why_no_checkpoint(names: Iterable[str]) -> str | None:
    """Say why tensors of these names are not those of a model, and what to do; None where they may be.

    Args:
        names: The names of all tensors of a file, or of all shards together.
    """
    names = list(names)
    if factors := [name for name in names if _FACTORS_OF_PEFT.search(name)]:
        return (
            f"holds a LoRA or another adapter ({_count(factors, names)}), not a full checkpoint; its "
            "factors do not say its scale: give its folder, with the adapter_config.json in it, or convert "
            "it to PEFT's format"
        )
    if factors := [name for name in names if _FACTORS_OF_OTHERS.search(name)]:
        return (
            f"is a LoRA or another adapter in a single file ({_count(factors, names)}), not a full "
            "checkpoint; of single files only LoRAs of kohya and diffusers are read: riemerge convert makes "
            "a LoRA of LoHa and LoKr; convert others to a folder with adapter_config.json and "
            "adapter_model.safetensors"
        )
    if {*names} >= _OF_STATISTICS:
        return "holds statistics of one module, not a full checkpoint: name their folder under statistics"
    return None


def why_file_is_none(path: Path) -> str | None:
    """Say why a file holds no model (see `why_no_checkpoint`); None if it may, or is no safetensors file."""
    try:
        return why_no_checkpoint(open_tensors(path).entries)
    except ValueError:
        return None


def _count(some: list[str], names: list[str]) -> str:
    return f"{len(some)} of {len(names)} tensors: {list_names(some, 2)}"


def _holds_tensors(folder: Path) -> bool:
    return any(_TENSORS.fullmatch(name) and not _OF_TRAINERS.fullmatch(name) for name in _names_in(folder))


def _folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder that can be read."""
    paths = (folder / name for name in _names_in(folder))
    return [path for path in paths if path.is_dir() and os.access(path, os.R_OK | os.X_OK)]


def _names_in(folder: Path) -> list[str]:
    """Return the names of all that is in a folder; none where the path is no folder."""
    try:
        with reading(folder):
            return os.listdir(folder)  # noqa: PTH208 - names, not paths
    except AdapterError as fault:
        if isinstance(fault.__cause__, FileNotFoundError | NotADirectoryError):
            return []
        raise
