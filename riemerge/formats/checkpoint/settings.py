"""`config.json` of a checkpoint, changed as the tensors are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch

from riemerge.errors import AdapterError
from riemerge.formats.checkpoint.view import Checkpoint
from riemerge.formats.files.tensor_file import read_start
from riemerge.formats.files.text import strict_json

SETTINGS_FILE = "config.json"

_VOCABULARY = ("vocab_size", "padded_vocab_size")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_DTYPES = ("dtype", "torch_dtype")
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_TIE = "tie_word_embeddings"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
# Lists with an item for each layer have a name that says so, but for these.
_PER_LAYER = ("num_key_value_heads", "num_query_heads", "ffn_multipliers")


def read_settings(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return what `config.json` beside a checkpoint says; None where there is none.

    Raises:
        AdapterError: The file cannot be read.
    """
    for path in checkpoint.other_files:
        if path.name == SETTINGS_FILE:
            try:
                settings = strict_json(read_start(path))
                if not isinstance(settings, dict):
                    raise ValueError("is no JSON object")
            except ValueError as error:
                raise AdapterError(f"{path}: {error}") from error
            return settings
    return None


def write_settings(settings: Mapping[str, Any]) -> str:
    """Return the text of `config.json`."""
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"


def resize_vocabulary(settings: Mapping[str, Any], old: int, new: int) -> dict[str, Any]:
    """Return settings with another number of tokens, wherever they have that of before."""

    def change(key: str, value: Any) -> Any:
        if key in _VOCABULARY and value == old:
            return new
        return value

    return _walk(settings, change)


def take_special_tokens(settings: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the ids of special tokens of others."""
    return {**settings, **{key: source[key] for key in _SPECIAL if key in source}}


def take_dtype(settings: Mapping[str, Any], dtypes: Set[torch.dtype]) -> dict[str, Any]:
    """Return settings that name the dtype of the tensors, wherever they name a float dtype.

    Law: tensors of several dtypes change nothing, and settings that name none are given none: then the
    tensors say it.

    Args:
        settings: The settings.
        dtypes: The dtypes of the tensors that are floats.
    """
    if len(dtypes) != 1:
        return dict(settings)
    (dtype,) = dtypes

    def change(key: str, value: Any) -> Any:
        if key in _DTYPES and isinstance(value, str) and value.removeprefix("torch.") in _FLOATS:
            return str(dtype).removeprefix("torch.")
        return value

    return _walk(settings, change)


def is_untied(settings: Mapping[str, Any]) -> bool:
    """Return whether settings say that the head is not the embedding."""
    return settings.get(_TIE) is False


def untie_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a model whose head is not its embedding."""

    def change(key: str, value: Any) -> Any:
        if key == _TIE:
            return False
        return value

    return {**_walk(settings, change), _TIE: False}


def restack(settings: Mapping[str, Any], old: int, layers: Sequence[int]) -> dict[str, Any]:
    """Return settings of a model that is a stack of layers of another.

    Args:
        settings: The settings of the other.
        old: How many layers the other has.
        layers: The layer of the other that each layer is, from the first.

    Raises:
        AdapterError: The settings name single layers by their places, which are others now.
    """

    def change(key: str, value: Any) -> Any:
        if key in _LAYERS and value == old:
            return len(layers)
        if not isinstance(value, list) or not (key in _PER_LAYER or "layer" in key):
            return value
        if len(value) == old:
            return [value[layer] for layer in layers]
        if value and all(isinstance(item, int) for item in value):
            raise AdapterError(
                f"{SETTINGS_FILE}: {key}: {value}: names layers by their places, which are others in the "
                "stack: expected an item for each layer"
            )
        return value

    return _walk(settings, change)


def count_layers(settings: Mapping[str, Any]) -> set[int]:
    """Return the numbers of layers that settings name."""
    found: set[int] = set()

    def see(key: str, value: Any) -> Any:
        if key in _LAYERS and isinstance(value, int):
            found.add(value)
        return value

    _walk(settings, see)
    return found


def _walk(settings: Mapping[str, Any], change: Any) -> dict[str, Any]:
    """Return settings, and those of their parts, with each value changed."""
    return {
        key: _walk(value, change) if isinstance(value, dict) else change(key, value)
        for key, value in settings.items()
    }
