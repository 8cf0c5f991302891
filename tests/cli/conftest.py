"""The inputs that the tests of commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.folders import family, write_family


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return write_family(tmp_path, family("close", 2))
