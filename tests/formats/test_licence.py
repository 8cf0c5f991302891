"""The licence of a model is the one word that its card says, or nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from riemerge.formats.licence import read_licence


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: mit\n---\n# A model", "mit"),
        ("---\nbase_model: x\nlicense: 'apache-2.0' # as the base\ntags: [a]\n---", "apache-2.0"),
        ("\ufeff---\r\nlicense: MIT\r\n---\r\n", "mit"),
        ("# license: mit\n\n---\nlicense: mit\n---", None),
        ("---\ntags: [license]\n---\nlicense: mit\n", None),
        ("---\nlicense: other\n---", None),
        ("---\nlicense: mit\nlicense: gpl-3.0\n---", None),
        ("---\nlicense:\n- mit\n- gpl-3.0\n---", None),
        ("---\nlicense: &a [*a, *a]\n---", None),
        ("---\nextra:\n  license: mit\n---", None),
        ("---\nlicense: mit\n", None),
        ("---\n" + "x: y\n" * 30_000 + "license: mit\n---", None),
        ("", None),
    ],
)
def test_one_word_of_the_front_matter_counts(tmp_path: Path, text: str, licence: str | None) -> None:
    (tmp_path / "README.md").write_bytes(text.encode())
    assert read_licence(tmp_path) == licence


def test_what_is_no_readable_file_names_none(tmp_path: Path) -> None:
    assert read_licence(tmp_path) is None
    assert read_licence(tmp_path / "nowhere") is None
    (tmp_path / "README.md").write_bytes(b"\xff\xfe\x00")
    assert read_licence(tmp_path) is None
    assert read_licence(tmp_path / "README.md") is None
    (tmp_path / "README.md").unlink()
    os.mkfifo(tmp_path / "README.md")
    assert read_licence(tmp_path) is None
