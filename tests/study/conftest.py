"""Fixtures of the tests of studies."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.folders import family, write_family
from tests.study.inputs import (
    SHAPES,
)


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here takes the power away; a shared disk takes its time."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return write_family(tmp_path, family("close", 4, shapes=SHAPES))
