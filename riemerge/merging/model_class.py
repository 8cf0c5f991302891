"""The model that a merge is for: its class, and the public name of its base."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from riemerge.formats.adapter import Adapter
from riemerge.formats.checkpoint import Checkpoint
from riemerge.formats.files.text import strict_json
from riemerge.formats.hub import identify
from riemerge.merging.inputs import Inputs

_AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoModel",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}

_ANY_MODEL = "transformers.AutoModel"


def model_class(inputs: Inputs) -> str:
    """Return `library.Class` of the model that a merge is for, or is; empty for tensors without settings.

    Law: of adapters, what their `task_type` calls for, else the class that `auto_mapping` names; those
    that say nothing contradict none. Of checkpoints, what the `config.json` that goes with the result names.
    Where they say neither, or several things, it is that of any model of transformers.
    """
    if inputs.adapters:
        return _adapted_class(inputs.adapters)
    return checkpoint_class(inputs.carried)


def base_model(named: Iterable[str | None]) -> str | None:
    """Return the base model's public name, of what inputs call it; of a path, its id or its last part."""
    bases = sorted({base for base in named if base})
    if not bases:
        return None
    base = bases[0]
    if model := identify(base):
        return model.repository
    if PurePosixPath(base).is_absolute() or PureWindowsPath(base).drive or base[0] in "~.":
        return PureWindowsPath(base).name
    return base


def _adapted_class(adapters: Sequence[Adapter]) -> str:
    tasks = sorted({adapter.config.task_type for adapter in adapters if adapter.config.task_type})
    if len(tasks) > 1:
        return _ANY_MODEL
    if tasks:
        return f"transformers.{_AUTO_CLASSES.get(tasks[0], 'AutoModel')}"
    mappings = [adapter.config.auto_mapping for adapter in adapters if adapter.config.auto_mapping]
    if not mappings or any(other != mappings[0] for other in mappings):
        return _ANY_MODEL
    mapping = mappings[0]
    return _class(str(mapping.get("parent_library", "")).partition(".")[0], mapping.get("base_model_class"))


def checkpoint_class(checkpoint: Checkpoint) -> str:
    """Return `library.Class` of a checkpoint, as its `config.json` names it; empty without settings."""
    content = _settings(checkpoint)
    if content is None:
        return ""
    # A class of its own code is found by its settings alone.
    if not content.get("auto_map"):
        match content.get("architectures"):
            case [name, *_]:
                return _class("transformers", name)
    return _ANY_MODEL


def model_type(checkpoint: Checkpoint) -> str:
    """Return the `model_type` that the `config.json` of a checkpoint names; empty where it names none."""
    return str((_settings(checkpoint) or {}).get("model_type", ""))


def _settings(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the content of the `config.json` of a checkpoint: empty of a bad one, None without one."""
    for path in checkpoint.other_files:
        if path.name == "config.json":
            with suppress(OSError, ValueError):
                content = strict_json(path.read_bytes())
                if isinstance(content, dict):
                    return content
            return {}
    return None


def _class(library: str, name: object) -> str:
    """Return the class of this name, where what others say is a name and no more; else that of any model."""
    words = (library, name)
    if all(isinstance(word, str) and re.fullmatch(r"[A-Za-z]\w*", word, re.ASCII) for word in words):
        return f"{library}.{name}"
    return _ANY_MODEL
