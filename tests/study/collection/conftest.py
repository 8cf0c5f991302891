"""A planted collection of 60 adapters, mapped once for all tests that look at the record."""

from __future__ import annotations

from pathlib import Path

import pytest

from riemerge.records.collection_record import CollectionRecord
from riemerge.study.collection import map_adapters
from tests.planted_collection import Planted, plant_collection

MODULES = ("encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.value")


@pytest.fixture(scope="package")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant_collection(tmp_path_factory.mktemp("planted") / "adapters", 60, modules=MODULES, rank=4)


@pytest.fixture(scope="package")
def atlas(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CollectionRecord]:
    folder = tmp_path_factory.mktemp("atlas") / "atlas"
    return folder, map_adapters(planted.paths, folder)
