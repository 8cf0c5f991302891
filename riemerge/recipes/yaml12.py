"""YAML as recipes hold it: the scalars of YAML 1.2, and no aliases, no tags, no duplicate keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from riemerge.errors import RecipeError

MAX_BYTES = 1 << 20
MAX_DEPTH = 16


def read_yaml(path: Path) -> list[Any]:
    """Read the plain data of each document of a file of YAML (see `parse_documents`).

    Raises:
        RecipeError: The file cannot be read, is larger than MAX_BYTES, or is no plain YAML in UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RecipeError(f"{path.name}: larger than {MAX_BYTES} bytes: this is no recipe")
        return parse_documents(content.decode("utf-8-sig"), where=path.name)
    except OSError as fault:
        raise RecipeError(f"{path}: cannot be read: {fault.strerror}") from None
    except UnicodeDecodeError as fault:
        raise RecipeError(f"{path.name}: is not UTF-8 (byte {fault.start}): save it as UTF-8") from None


def parse_yaml(text: str, *, where: str = "recipe") -> Any:
    """Read plain data from YAML of one document (see `parse_documents`).

    Raises:
        RecipeError: What `parse_documents` raises, or more than one document.
    """
    data, *others = parse_documents(text, where=where)
    if others:
        raise RecipeError(f"{where}: {len(others) + 1} documents: expected one")
    return data


def parse_documents(text: str, *, where: str = "recipe") -> list[Any]:
    """Read plain data from YAML with the scalars of YAML 1.2: `1e-3` is a number, `no` and `12:30` are not.

    Law: an empty document among others is none.

    Returns:
        The data of each document, at least one.

    Raises:
        RecipeError: Broken YAML, no document, a key twice in one mapping, an alias, an anchor or a tag,
            nesting beyond MAX_DEPTH: each with its line.
    """
    try:
        problems: list[str] = []
        depth = 0
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            line = f"{where}: line {event.start_mark.line + 1 if event.start_mark else 1}"
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise RecipeError([*problems, f"{line}: nested deeper than {MAX_DEPTH} levels"])
            if getattr(event, "anchor", None) is not None:
                problems.append(f"{line}: anchors and aliases are refused: write the value out")
            if (tag := getattr(event, "tag", None)) is not None:
                problems.append(f"{line}: the tag {tag!r} is refused: recipes hold plain data only")
        RecipeError.refuse(problems)
        nodes = [node for node in yaml.compose_all(text, Loader=yaml.BaseLoader) if not _is_empty(node)]
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        position = mark and f"line {mark.line + 1}, column {mark.column + 1}: "
        reason = getattr(fault, "problem", None) or getattr(fault, "reason", None) or str(fault)
        raise RecipeError(f"{where}: {position or ''}{reason}") from None
    if not nodes:
        raise RecipeError(f"{where}: is empty: a recipe is a mapping with merge_method and models")
    documents = [_plain(node, where, problems) for node in nodes]
    RecipeError.refuse(problems)
    return documents


def _is_empty(node: yaml.Node) -> bool:
    return node.value == "" and getattr(node, "style", None) is None


def _plain(node: yaml.Node, where: str, problems: list[str]) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, where, problems) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                problems.append(f"{where}: line {line}: a key must be a word")
            elif key.value in lines:
                before = lines[key.value]
                problems.append(f"{where}: line {line}: {key.value!r} stands already on line {before}")
            else:
                lines[key.value] = line
                mapping[key.value] = _plain(value, where, problems)
        return mapping
    text: str = node.value
    if getattr(node, "style", None) is None:
        return _scalar(text)
    return text


_NULL = {"", "~", "null", "Null", "NULL"}
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)\Z")


def _scalar(text: str) -> Any:
    """Return the value of a plain scalar by the core schema of YAML 1.2 (10.3.2), all integers decimal."""
    if text in _NULL:
        return None
    if text in _TRUTH:
        return _TRUTH[text]
    if _INTEGER.match(text):
        return int(text) if len(text) <= 19 else float(text)
    if _FLOAT.match(text):
        return float(text)
    if special := _SPECIAL.match(text):
        return float(special[1] + special[2])
    return text
