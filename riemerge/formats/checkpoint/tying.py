"""Tied models: the head is the embedding, and has a tensor of its own once an adapter parts the two."""

from __future__ import annotations

import re

from riemerge.errors import AdapterError
from riemerge.formats.adapter import Adapter
from riemerge.formats.checkpoint.settings import is_untied, read_settings
from riemerge.formats.checkpoint.view import Checkpoint

_EMBEDDING = re.compile(
    r"(.*\.)?(embed_tokens|wte|word_embeddings?|embed_in|tokens_embed|shared|embeddings)\.weight"
)
_HEAD = re.compile(r"(.*\.)?(lm_head|embed_out)\.weight")
# Classes of transformers whose head is `lm_head`, others that have one, and what lies in those.
_CAUSAL = ("ForCausalLM", "LMHeadModel")
_WITH_HEAD = (*_CAUSAL, "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining")
_OTHER_HEAD = re.compile(r"(lm_head|cls|predictions?|pred_layer|generator_lm_head)\.")


def is_embedding(name: str) -> bool:
    """Return whether a tensor of this name has a row for each token."""
    return _EMBEDDING.fullmatch(name) is not None


def is_head(name: str) -> bool:
    """Return whether a tensor of this name makes scores of tokens."""
    return _HEAD.fullmatch(name) is not None


def is_tied(base: Checkpoint) -> bool:
    """Return whether the head of a model is its embedding: its files have none, and its settings name one."""
    settings = read_settings(base)
    if not settings or is_untied(settings) or any(map(is_head, base.names)):
        return False
    return _class(base).endswith(_WITH_HEAD)


def part_head(base: Checkpoint, adapter: Adapter) -> dict[str, str]:
    """Return the embedding of a tied model by the name of its head, where an adapter saved it alone.

    Law: PEFT trains a copy of an embedding that it saves whole, and the head stays the embedding of before,
    unless `ensure_weight_tying` is set.

    Args:
        base: The base model.
        adapter: The adapter, with the names of the base model.

    Raises:
        AdapterError: The name of the head is not known.
    """
    embeddings = [name for name in adapter.saved if name in base.shapes and is_embedding(name)]
    has_head = any(map(is_head, adapter.saved)) or adapter.config.ensure_weight_tying
    if not embeddings or has_head or not is_tied(base):
        return {}
    if _class(base).endswith(_CAUSAL) and not any(map(_OTHER_HEAD.match, base.names)):
        return {"lm_head.weight": embeddings[0]}
    raise AdapterError(
        f"{base.path}: its output layer is tied to {embeddings[0]}, which {adapter.path} saved whole, and "
        "PEFT's merge would leave the output layer as it was: save the base model with a weight of its own "
        "for it (tie_word_embeddings false)"
    )


def _class(base: Checkpoint) -> str:
    """Return the class that the settings of a model name first; empty where they name none."""
    match (read_settings(base) or {}).get("architectures"):
        case [str(name), *_]:
            return name
    return ""
