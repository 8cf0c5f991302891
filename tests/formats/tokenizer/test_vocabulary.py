"""Ids are read as the tokenizers library reads them, and a union keeps those of the first tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from riemerge.errors import AdapterError
from riemerge.formats.tokenizer import Vocabulary, find_tokens, is_tokenizer_file, join, read_vocabulary
from tests.oracles.small_models import tokenizer

KINDS: dict[str, dict[str, Any]] = {
    "WordLevel": {"type": "WordLevel", "vocab": {"b": 1, "a": 0}, "unk_token": "a"},
    "BPE": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    "WordPiece": {
        "type": "WordPiece",
        "vocab": {"a": 0, "b": 1},
        "unk_token": "a",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 9,
    },
    "Unigram": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]], "unk_id": 0},
}


def read(folder: Path, document: Any) -> Vocabulary:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    found = read_vocabulary(folder)
    assert found is not None
    return found


@pytest.mark.oracle
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_tokenizers_library(tmp_path: Path, kind: str) -> None:
    library = pytest.importorskip("tokenizers")
    document = {**tokenizer((), ()), "model": KINDS[kind]}
    document["added_tokens"] = tokenizer(("", "", "<s>"), ("<s>",))["added_tokens"]
    vocabulary = read(tmp_path, document)
    assert list(vocabulary.ids.items()) == [("a", 0), ("b", 1), ("<s>", 2)]
    assert vocabulary.ids == library.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab()
    assert list(vocabulary.added) == ["<s>"]


@pytest.mark.oracle
def test_a_union_keeps_the_first_and_adds_the_rest_in_order(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    first = read(tmp_path / "1", tokenizer(("<unk>", "a", "b", "<s>"), ("<unk>", "<s>")))
    second = read(tmp_path / "2", tokenizer(("c", "<unk>", "<t>", "b", "d"), ("<unk>", "<t>")))
    third = read(
        tmp_path / "3", tokenizer(("<unk>", "d", "e", "<s>", "<v>", "a"), ("<unk>", "<s>", "<v>", "a"))
    )
    union = join([first, second, third])
    assert list(union.ids) == ["<unk>", "a", "b", "<s>", "c", "d", "e", "<t>", "<v>"]
    assert list(union.ids.values()) == [*range(9)]
    loaded = library.Tokenizer.from_str(union.text())
    assert loaded.get_vocab() == union.ids
    assert loaded.encode("a d <v> b").ids == [1, 5, 8, 2]
    assert {entry["content"] for entry in union.document["added_tokens"]} == {
        *("<unk>", "<s>", "a", "c", "d", "e", "<t>", "<v>")
    }
    assert not union.faults
    assert join([first]).document == first.document


def test_a_token_with_other_settings_is_said_and_is_that_of_the_first(tmp_path: Path) -> None:
    one, two = (tokenizer(("<unk>", "<s>"), ("<unk>", "<s>")) for _ in range(2))
    two["added_tokens"][1]["lstrip"] = True
    union = join([read(tmp_path / "1", one), read(tmp_path / "2", two)])
    assert list(union.faults) == ["<s>"]
    assert union.added["<s>"]["lstrip"] is False


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"vocab": 3}}, "its model has no vocab"),
        ({"model": None}, "has no model"),
        ({"model": {"vocab": {"a": 0, "b": 0}}}, "gives one id to a and b"),
        ({"model": {"vocab": {"a": "0"}}}, "has tokens without an id: a"),
        ({"added_tokens": [{"id": 3}]}, "its added_tokens are no list"),
        ({"added_tokens": "x"}, "its added_tokens are no list"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(AdapterError, match=says):
        read(tmp_path, {**tokenizer(("a",), ()), **change})


def test_a_tokenizer_in_other_files_is_refused_and_none_is_none(tmp_path: Path) -> None:
    assert read_vocabulary(tmp_path) is None
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(AdapterError, match=r"is in tokenizer.model alone: expected tokenizer.json"):
        read_vocabulary(tmp_path)


def test_files_of_a_tokenizer_are_known_by_name() -> None:
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "a.tiktoken", "config.json", "code.py")
    assert [is_tokenizer_file(name) for name in names] == [True, True, True, True, False, False]
    assert [is_tokenizer_file(name, of_union=True) for name in names] == [
        False,
        True,
        False,
        False,
        False,
        False,
    ]


def test_tokens_are_found_in_whatever_file_can_be_read(tmp_path: Path) -> None:
    assert find_tokens(tmp_path) is None
    (tmp_path / "tokenizer.model").write_bytes(b"\x00")
    assert find_tokens(tmp_path) is None
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    assert find_tokens(tmp_path) == {"a": 0, "b": 1}
    (tmp_path / "added_tokens.json").write_text('{"<s>": 2}')
    (tmp_path / "vocab.json").write_text('{"a": 1, "b": 0}')
    assert find_tokens(tmp_path) == {"a": 1, "b": 0, "<s>": 2}
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"c": 0}}}')
    assert find_tokens(tmp_path) == {"c": 0}
