"""Text that may come from anyone is read strictly, and shown in messages so that it does no harm."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from riemerge.formats.files import text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty: expected a JSON object"),
        (b" \n", "is empty: expected a JSON object"),
        (b"{r: 2}", "is not acceptable JSON: "),
        (b'{"r": "\xff"}', "is not acceptable JSON: "),
        (b"[" * 100_000, "is not acceptable JSON: nested too deeply"),
        (b'{"a": 1, "b": {"r": 2, "r": 4}}', 'is not acceptable JSON: the key "r" occurs twice'),
        (b"[NaN]", "is not acceptable JSON: NaN is not a number that JSON knows"),
        (b"[-Infinity]", "is not acceptable JSON: -Infinity is not a number that JSON knows"),
        (b" " * (text.MAX_JSON_BYTES + 1), f"is {text.MAX_JSON_BYTES + 1} bytes long: expected at most"),
    ],
)
def test_json_that_means_nothing_certain_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(words)):
        text.strict_json(content)


def test_json_that_is_written_reads_back_whatever_its_order() -> None:
    content = {"b": [1, None], "a": {"Ω": "x"}}
    written = text.as_json(content)
    assert text.strict_json(written) == content
    assert text.strict_json(b"\xef\xbb\xbf" + written) == content  # a byte order mark is harmless
    assert text.as_json(dict(reversed(content.items()))) == written
    assert written == b'{\n  "a": {\n    "\\u03a9": "x"\n  },\n  "b": [\n    1,\n    null\n  ]\n}\n'


@pytest.mark.parametrize("given", ["plain", "\x1b[31mred", "turned \u202e around", "a" * 201, "\n" * 80, ""])
def test_what_is_shown_is_printable_and_short(given: str) -> None:
    shown = text.show(given)
    assert shown.isprintable()
    assert len(shown) <= 200
    if given.isprintable() and len(given) <= 200:
        assert shown == given


def test_a_value_is_brief() -> None:
    assert text.brief({"a": [1, None]}) == '{"a": [1, null]}'
    long = text.brief("x" * 100)
    assert len(long) == 60
    assert long.endswith("...")


def test_the_first_names_are_listed_and_the_others_counted() -> None:
    names = ["a", "b", "c\n", "d"]
    assert text.list_names(names[:3]) == "a, b, 'c\\n'"
    assert text.list_names(names) == "a, b, 'c\\n' and 1 more"
    assert text.list_names(iter(names), 1) == "a and 3 more"
    assert text.list_names([]) == ""


def test_a_path_that_is_given_again_under_another_name_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "link", tmp_path / "b" / ".." / "a"]
    assert text.find_repeated(paths) == [
        f"{tmp_path / 'a'}: is listed 3 times: give it once, with a larger weight"
    ]
    assert text.find_repeated(paths[:2]) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "C:x", "a\nb"])
def test_a_name_of_another_folder_is_no_plain_name(name: str) -> None:
    assert not text.is_plain_name(name)
    assert text.is_plain_name("a.b-c")


def test_a_name_can_be_shown_if_it_is_printable_and_not_too_long() -> None:
    assert text.can_be_shown("x" * text.MAX_NAME)
    assert not text.can_be_shown("x" * (text.MAX_NAME + 1))
    assert not text.can_be_shown("x\x1b")
