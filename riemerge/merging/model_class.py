"""Which model a merge is for: its class, and the public name of its base."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import PurePosixPath, PureWindowsPath

from riemerge.formats.checkpoint import Checkpoint
from riemerge.formats.files.text import strict_json
from riemerge.formats.peft import Adapter

_AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoModel",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}

_ANY_MODEL = "transformers.AutoModel"


def adapted_class(adapters: Sequence[Adapter]) -> str:
    """Return `library.Class` of the model that adapters are for.

    Law: what their `task_type` calls for, else the class that `auto_mapping` names; that of any model of
    transformers where they say neither, or several.
    """
    tasks = {adapter.config.task_type for adapter in adapters} - {None}
    if tasks:
        task = tasks.pop() or ""
        return _ANY_MODEL if tasks else f"transformers.{_AUTO_CLASSES.get(task, 'AutoModel')}"
    mapping, *others = (adapter.config.auto_mapping or {} for adapter in adapters)
    library = str(mapping.get("parent_library", "")).partition(".")[0]
    alike = all(other == mapping for other in others)
    return _class(library, mapping.get("base_model_class")) if alike else _ANY_MODEL


def checkpoint_class(checkpoint: Checkpoint) -> str:
    """Return `library.Class` of a checkpoint, as its settings say; nothing where it has none."""
    found = [path for path in checkpoint.other_files if path.name == "config.json"]
    if not found:
        return ""
    with suppress(OSError, ValueError):
        settings = strict_json(found[0].read_bytes())
        # A class of its own code is found by its settings alone.
        if isinstance(settings, dict) and not settings.get("auto_map"):
            names = settings.get("architectures")
            return _class("transformers", names[0] if isinstance(names, list) and names else None)
    return _ANY_MODEL


def _class(library: str, name: object) -> str:
    """The class of this name, where what is said by others is a name and no more; else that of any model."""
    names = [library, name]
    known = all(isinstance(one, str) and re.fullmatch(r"[A-Za-z]\w*", one, re.ASCII) for one in names)
    return f"{library}.{name}" if known else _ANY_MODEL


def base_model(named: Iterable[str | None]) -> str | None:
    """Return the base model's public name, of what inputs call it; of a path, the last part only."""
    for base in sorted({base for base in named if base}):
        local = PurePosixPath(base).is_absolute() or PureWindowsPath(base).drive or base[0] in "~."
        return PureWindowsPath(base).name if local else base
    return None
