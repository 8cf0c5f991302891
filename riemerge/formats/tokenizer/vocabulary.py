"""The vocabulary of a tokenizer as `tokenizer.json` has it, and the union of several."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

from riemerge.errors import AdapterError
from riemerge.formats.files.tensor_file import read_start
from riemerge.formats.files.text import list_names, show, strict_json

TOKENIZER_FILE = "tokenizer.json"

# What else a tokenizer is made of. A union has no files of the kind that only one model had.
_KEPT = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json")
_SLOW = (
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)

_MOST_BYTES = 2**28  # the largest tokenizers in use have 35 MB
_MOST_IDS = 2**31


@final
@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of one tokenizer. Made by `read_vocabulary` and `join`.

    Attributes:
        ids: The id of each token, in the order of the ids; those that were added to the model's own too.
        added: What the tokenizer says of each token that was added, by the token, in the order of the ids.
        document: The content of `tokenizer.json`.
        sha256: The sha256 of the file that it was read from, in hex; empty for a union.
        faults: What a union could not keep of a token, by the token.
    """

    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]] = field(repr=False)
    document: Mapping[str, Any] = field(repr=False)
    sha256: str = ""
    faults: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Return the content of `tokenizer.json`."""
        return json.dumps(self.document, ensure_ascii=False, indent=2)


def is_tokenizer_file(name: str, *, of_union: bool = False) -> bool:
    """Return whether a file belongs to a tokenizer.

    Args:
        name: The name of the file.
        of_union: Ask for the files that still say the truth of a tokenizer to which tokens were added.
    """
    if of_union:
        return name in _KEPT
    return name in {TOKENIZER_FILE, *_KEPT, *_SLOW} or name.endswith(".tiktoken")


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Read the vocabulary of a tokenizer; None where the folder has no tokenizer.

    Law: the ids are those of the tokenizers library: of BPE, WordPiece and WordLevel models their table, of
    Unigram the place in the list, and then those of the added tokens.

    Args:
        folder: The folder of a model, or a single file, which has no tokenizer.

    Raises:
        AdapterError: `tokenizer.json` cannot be read, or gives two tokens one id; or the tokenizer has only
            files of another form.
    """
    path = folder / TOKENIZER_FILE
    if not path.exists():
        others = [name for name in _SLOW if (folder / name).exists()]
        if others:
            raise AdapterError(
                f"{folder}: its tokenizer is in {list_names(others)} alone: expected {TOKENIZER_FILE}; save "
                "it with transformers' AutoTokenizer, which writes that file"
            )
        return None
    try:
        content = read_start(path, _MOST_BYTES + 1)
        document = strict_json(content, most=_MOST_BYTES)
        ids, added = _ids(document)
    except ValueError as error:
        raise AdapterError(f"{path}: {error}") from error
    return Vocabulary(ids, added, document, hashlib.sha256(content).hexdigest())


def find_tokens(folder: Path) -> Mapping[str, int] | None:
    """Return the ids of a tokenizer's tokens, if they can be read from its files; None if not.

    Law: what `read_vocabulary` reads; else `vocab.json` or `vocab.txt`, with `added_tokens.json`.

    Args:
        folder: The folder of a model, or a single file, which has no tokenizer.
    """
    with suppress(AdapterError):
        if (vocabulary := read_vocabulary(folder)) is not None:
            return vocabulary.ids
    with suppress(ValueError):
        added = {}
        if (folder / "added_tokens.json").exists():
            added = strict_json(read_start(folder / "added_tokens.json"))
        if (folder / "vocab.json").exists():
            return {**strict_json(read_start(folder / "vocab.json")), **added}
        if (folder / "vocab.txt").exists():
            words = read_start(folder / "vocab.txt").decode().splitlines()
            return {**{word: place for place, word in enumerate(words)}, **added}
    return None


def _ids(document: Any) -> tuple[Mapping[str, int], Mapping[str, Mapping[str, Any]]]:
    """Return the id of each token, and what is said of those that were added; else a ValueError."""
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, dict):
        raise ValueError("has no model: expected a tokenizer as the tokenizers library writes it")
    match model.get("vocab"):
        case dict() as table:
            ids = dict(table)
        case [*entries] if all(isinstance(entry, list) and len(entry) == 2 for entry in entries):
            ids = {entry[0]: place for place, entry in enumerate(entries)}
        case _:
            raise ValueError("its model has no vocab: expected tokens and their ids, or a list of pairs")
    added = {}
    entries = document.get("added_tokens") or []
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise ValueError("its added_tokens are no list of objects with id and content")
        added[entry["content"]] = entry
        ids[entry["content"]] = entry.get("id")
    wrong = [token for token, i in ids.items() if not isinstance(token, str) or type(i) is not int]
    if wrong or not ids or not all(0 <= i < _MOST_IDS for i in ids.values()):
        raise ValueError(f"has tokens without an id: {list_names(map(show, map(str, wrong)))}")
    if len({*ids.values()}) < len(ids):
        first: dict[int, str] = {}
        twice = [f"{first[i]} and {token}" for token, i in ids.items() if first.setdefault(i, token) != token]
        raise ValueError(f"gives one id to {list_names(map(show, twice))}: expected one for each token")
    ordered = sorted(ids, key=lambda token: ids[token])
    return (
        MappingProxyType({token: ids[token] for token in ordered}),
        MappingProxyType({token: added[token] for token in ordered if token in added}),
    )


# --- union --------------------------------------------------------------------------------------------------


def join(vocabularies: Sequence[Vocabulary]) -> Vocabulary:
    """Return the union of several vocabularies.

    Law: the tokens of the first keep their ids. Then follow the tokens that others' models have and it lacks,
    in the order of the vocabularies and of their ids there; then those that were added to others, in the same
    order. What is new is an added token: text is first looked through for it, and what is left is split by
    the first tokenizer. A token that several have added is as the first of them says.

    Args:
        vocabularies: The tokenizers, at least one.

    Source: mergekit 0.1.5's `tokenizer_source: union`, in which the order of the ids that are new is left
        open (it is that of hashes).
    """
    base, *others = vocabularies
    ids, added = dict(base.ids), dict(base.added)
    faults: dict[str, str] = {}
    following = count(max(ids.values()) + 1)
    for token in _own_tokens(others):
        if token not in ids:
            ids[token] = next(following)
            added[token] = _plain(token)
    for vocabulary in others:
        for token, entry in vocabulary.added.items():
            if token not in ids:
                ids[token] = next(following)
            kept = added.setdefault(token, entry)
            if any(kept.get(key) != entry.get(key) for key in _plain(token)):
                faults[token] = "was added with different settings: those of the first model are kept"
    entries = ({**entry, "id": ids[token]} for token, entry in added.items())
    said = sorted(entries, key=lambda entry: entry["id"])
    document = {**base.document, "added_tokens": said}
    ordered = {entry["content"]: entry for entry in said}
    return Vocabulary(MappingProxyType(ids), MappingProxyType(ordered), document, faults=faults)


def _own_tokens(vocabularies: Sequence[Vocabulary]) -> Iterator[str]:
    """Yield the tokens of the models themselves, without those that were added."""
    added = {token for vocabulary in vocabularies for token in vocabulary.added}
    for vocabulary in vocabularies:
        yield from (token for token in vocabulary.ids if token not in added)


def _plain(token: str) -> dict[str, Any]:
    """Return what the tokenizers library says of a token that is added without settings."""
    return {
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": True,
        "special": False,
    }
