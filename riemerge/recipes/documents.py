"""The documents of a recipe file: what each says in our words, its models found beside the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

from riemerge.errors import RecipeError
from riemerge.formats.files.text import is_plain_name
from riemerge.recipes.specs import locate_model
from riemerge.recipes.translations import (
    TOKENIZERS,
    levels,
    translate_unlisted_base,
    translate_words,
)
from riemerge.recipes.yaml12 import read_yaml


@final
class Document(NamedTuple):
    """One document of a file.

    Attributes:
        name: The name by which later documents name its result; None where it has none.
        data: What it says.
        translations: What was read as other words.
    """

    name: str | None
    data: Any
    translations: tuple[str, ...]


def read_documents(path: Path) -> tuple[Document, ...]:
    """Read the documents of a recipe file, with the folders they name taken relative to it.

    Law: a later document names an earlier one by its `name`, which goes before a folder of that name.

    Raises:
        RecipeError: The file cannot be read as plain YAML 1.2; two documents have one name, or one that is
            not the last has none, or none of the later names it.
    """
    contents = read_yaml(path)
    plain = [content for content in contents if isinstance(content, dict)]
    names: list[Any] = [None]
    if len(contents) > 1:
        names = [content.pop("name", None) for content in plain]
    methods = [content.get("merge_method") for content in plain]
    translations = [translate_words(content, of_file=True) for content in plain]
    if len(plain) < len(contents):
        return tuple(Document(None, content, ()) for content in contents)
    RecipeError.refuse(_faults(path.name, names, plain))
    for i, content in enumerate(plain):
        locate_models(content, path.parent, names[:i])
        translations[i] += translate_unlisted_base(content, methods[i], names[:i])
    return tuple(
        Document(name, content, tuple(texts))
        for name, content, texts in zip(names, plain, translations, strict=True)
    )


def _faults(where: str, names: Sequence[Any], contents: Sequence[dict[str, Any]]) -> Iterator[str]:
    for i, name in enumerate(names[:-1]):
        document = f"{where}: document {i + 1} of {len(names)}"
        if not isinstance(name, str) or not is_plain_name(name):
            yield f"{document}: has no plain name by which later ones can name its result: give it one"
        elif name in names[:i]:
            yield f"{document}: {name!r} is the name of an earlier one too: choose another"
        elif not any(name in _find_names(later) for later in contents[i + 1 :]):
            yield f"{document}: no later document names {name!r}, so that its result would be lost"


def _find_names(content: dict[str, Any]) -> set[str]:
    """Return what a document names as models, and the parts of sums."""
    texts = {text for _, _, text in places_of_models(content)}
    return texts | {part for text in texts for part in text.split("+")}


def places_of_models(data: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield each place where a recipe names a model: the mapping, the key, and what it says there."""
    for _, level in levels(data):
        for key in ("model", "base_model", "tokenizer"):
            if (
                isinstance(text := level.get(key), str)
                and text
                and (key != "tokenizer" or text not in TOKENIZERS)
            ):
                yield level, key, text


def locate_models(data: dict[str, Any], beside: Path, earlier: Sequence[str]) -> None:
    """Put paths in the place of the names of models and folders; names of earlier documents stay."""
    for level, key, text in places_of_models(data):
        level[key] = locate_model(text, beside, earlier)
    for _, level in levels(data):
        for key in ("statistics", "base_statistics"):
            if isinstance(folder := level.get(key), str) and folder:
                level[key] = str(beside / folder)
