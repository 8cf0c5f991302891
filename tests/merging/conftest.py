"""Checkpoints that tests of merges read, made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from riemerge.methods import METHODS
from tests.merging.merges import World, make_world, merge, needs, shares


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base model and three models, which no test changes."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def usual(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where the merge of a row with its usual weights is, each made once."""

    @cache
    def made(name: str) -> Path:
        out = tmp_path_factory.mktemp(name) / "out"
        merge(out, name, weights=shares(METHODS[name]), **needs(world, METHODS[name]))
        return out

    return made
