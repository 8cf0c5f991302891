"""Merges of the same models share what was read: each is what it would be alone, and changes are noticed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from riemerge.errors import AdapterError
from riemerge.formats.adapter import Adapter
from riemerge.merging import identifiability
from riemerge.merging.shared_inputs import SharedInputs
from riemerge.merging.sinks import write
from riemerge.merging.verbs import merge_into
from riemerge.recipes.recipe import Recipe, read_recipe
from riemerge.study.soups import greedy_soup
from riemerge.study.sweeps import sweep
from riemerge.updates.reduction import reduce
from tests.folders import SHAPES, content, family, write_family


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return write_family(tmp_path, family("close", 3))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each module of each adapter is read."""
    counts: Counter[tuple[str, str]] = Counter()
    real = Adapter.update

    def update(self: Adapter, module: str, *words: Any, **named: Any) -> Any:
        if len(self.path.name) == 1:
            counts[self.path.name, module] += 1
        return real(self, module, *words, **named)

    monkeypatch.setattr(Adapter, "update", update)
    return counts


def recipe_of(folders: list[Path], *weights: float, **said: Any) -> Recipe:
    return read_recipe([(str(folder), weight) for folder, weight in zip(folders, weights, strict=True)], said)


@pytest.mark.parametrize("method", ["average", "spectrum", "ties", "geomerge"])
def test_no_merge_differs_from_the_same_merge_alone(
    folders: list[Path], tmp_path: Path, reads: Counter[tuple[str, str]], method: str
) -> None:
    shared = SharedInputs()
    for place, weights in enumerate([(1, 1, 1), (1, 2, 0.5), (1, 0, 1), (0.1, 3, 1)]):
        recipe = recipe_of(folders, *weights, merge_method=method)
        write(shared.plan(recipe), tmp_path / f"shared{place}")
    assert set(reads.values()) == {1}
    assert len(reads) == 3 * len(SHAPES)
    for place, weights in enumerate([(1, 1, 1), (1, 2, 0.5), (1, 0, 1), (0.1, 3, 1)]):
        recipe = recipe_of(folders, *weights, merge_method=method)
        merge_into(recipe, tmp_path / f"alone{place}")
        assert content(tmp_path / f"alone{place}") == content(tmp_path / f"shared{place}")


def test_a_file_that_changed_is_noticed(folders: list[Path], tmp_path: Path) -> None:
    shared = SharedInputs()
    write(shared.plan(recipe_of(folders, 1, 1, 1)), tmp_path / "one")
    path = folders[1] / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes())
    with pytest.raises(AdapterError, match="changed while it was in use"):
        shared.plan(recipe_of(folders, 1, 2, 1))
    shared.plan(recipe_of(folders, 1, 0, 1))
    shared.clear()
    shared.plan(recipe_of(folders, 1, 2, 1))


def test_what_has_no_room_is_read_again(
    folders: list[Path], tmp_path: Path, reads: Counter[tuple[str, str]]
) -> None:
    size = 3 * 8 * sum(m + n for m, n in SHAPES.values())  # of one adapter of rank 3
    shared = SharedInputs(most=2 * size)
    for place in range(2):
        write(shared.plan(recipe_of(folders, 1, 1, 1)), tmp_path / f"all{place}")
    assert sum(reads.values()) > 3 * len(SHAPES)
    # Adapters that are used no more make room for others.
    reads.clear()
    for place in range(3):
        write(shared.plan(recipe_of(folders, 0, 1, 1)), tmp_path / f"two{place}")
    assert sum(reads.values()) <= 3 * len(SHAPES)


def test_other_settings_share_nothing(folders: list[Path], tmp_path: Path) -> None:
    shared = SharedInputs()
    each: list[dict[str, Any]] = [{}, {"dtype": "float32"}, {"rename": {"layers": "blocks"}}, {}]
    for place, said in enumerate(each):
        recipe = recipe_of(folders, 1, 1, 1, merge_method="average", **said)
        write(shared.plan(recipe), tmp_path / f"shared{place}")
        merge_into(recipe, tmp_path / f"alone{place}")
        assert content(tmp_path / f"alone{place}") == content(tmp_path / f"shared{place}")
    assert shared.plan(recipe_of(folders, 1, 1, 1)).stack.low_rank("layers.0.q")[0].dtype == torch.float64


@pytest.mark.parametrize("steps", [5, 11])
def test_eleven_points_read_and_reduce_as_often_as_five(
    folders: list[Path],
    tmp_path: Path,
    reads: Counter[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> None:
    reductions, overlaps = 0, 0

    def count_reductions(modules: Any) -> Any:
        nonlocal reductions
        reductions += 1
        return reduce(modules)

    def count_overlaps(*words: Any) -> Any:
        nonlocal overlaps
        overlaps += 1
        return identifiability.overlaps(*words)

    monkeypatch.setattr("riemerge.methods.reduced.reduce", count_reductions)
    monkeypatch.setattr("riemerge.merging.shared_inputs.overlaps", count_overlaps)
    sweep(folders[:2], tmp_path / "sweep", steps)
    assert set(reads.values()) == {1}
    # Modules of two shapes, of both models together and of each alone.
    assert reductions == overlaps == 2 * 3


def test_a_soup_reads_each_module_once(
    folders: list[Path], tmp_path: Path, reads: Counter[tuple[str, str]]
) -> None:
    greedy_soup(folders, tmp_path / "soup", lambda _: 1.0)
    assert set(reads.values()) == {1}
