"""Adapters that lack modules of others, by every row: zeros written there, or a weight of zero there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from riemerge.errors import NumericalError
from riemerge.formats.dialects import read_adapter
from riemerge.merging.plan import plan
from riemerge.merging.sinks import MergeResult, collect
from riemerge.methods import METHODS, Method
from tests.folders import family, write_folder
from tests.merging.merges import MEASURED, apart, count_of, density_of, drawn, measured, merged, recipe_of

SHAPES = {"layers.0": (8, 6), "layers.1": (5, 8)}
LACKING = "layers.1"
WEIGHTS = (0.5, 0.3, 0.2)
# Rows of one threshold over all modules, which must have the same models.
THRESHOLDS = {"ties_original", "knots_ties", "core_ties"}


class Adapters(NamedTuple):
    """Three adapters of two modules; the third without one of them, and with an update of zeros there."""

    whole: list[Path]
    lacking: Path
    padded: Path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Statistics of a base model, and of three that were trained from it."""
    root = tmp_path_factory.mktemp("data")
    assert set(SHAPES) == set(MEASURED)
    return [measured(root / f"{i}", tensors, 10 * i) for i, tensors in enumerate(drawn(3))]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    """The adapters, in folders."""
    root, each = tmp_path_factory.mktemp("adapters"), family("independent", 3, shapes=SHAPES)
    whole = [write_folder(root / str(i), one) for i, one in enumerate(each)]
    rest = {module: factors for module, factors in each[2].items() if module != LACKING}
    zero = (torch.zeros(5, 3, dtype=torch.float64), each[0][LACKING][1])
    padded = write_folder(root / "padded", {**rest, LACKING: zero})
    return Adapters(whole, write_folder(root / "lacking", rest), padded)


def merge(
    row: Method, folders: Sequence[Path], weights: Sequence[Any], data: Sequence[Path], missing: str
) -> MergeResult | str:
    """The merge, or why there is none."""
    settings: dict[str, Any] = {"max_passes": 5, "scale": 1.0}
    kept = {name: value for name, value in settings.items() if name in row.own_parameters}
    recipe = recipe_of(
        row.name,
        folders,
        weights,
        statistics=data[1 : len(folders) + 1] if row.statistics else (),
        base_statistics=data[0] if row.base_statistics else None,
        top={"missing": missing},
        **density_of(row.name),
        **kept,
    )
    try:
        return collect(plan(recipe, threads=1))
    except NumericalError as fault:
        return str(fault)


def shares(row: Method, count: int) -> list[float]:
    return [1.0] * count if row.ordered else list(WEIGHTS[:count])


def bound(row: Method) -> float:
    """Round-off, which five passes of an iteration amplify: they are far from its end."""
    return 1e-5 if "max_passes" in row.parameters else 1e-10


@pytest.mark.parametrize("name", list(METHODS))
def test_zero_is_an_update_of_zeros(adapters: Adapters, data: list[Path], name: str) -> None:
    row, count = METHODS[name], count_of(name)
    head, weights = adapters.whole[: count - 1], shares(row, count)
    found = merge(row, [*head, adapters.lacking], weights, data, "zero")
    right = merge(row, [*head, adapters.padded], weights, data, "error")
    if isinstance(found, str) or isinstance(right, str):
        # Where there must be a direction, an update of zeros has none.
        assert row.directions
        assert found == str(right).replace("padded", "lacking")
        return
    assert apart(merged(found), merged(right)) <= bound(row)
    assert [(one.module, one.inputs, one.counted) for one in found.record.missing] == [
        (LACKING, ("lacking",), "zero")
    ]
    module = found.record.modules[1]
    assert (module.input_ranks[-1], module.input_norms[-1]) == (0, 0.0)


@pytest.mark.parametrize("name", list(METHODS))
def test_skip_is_a_weight_of_zero_there(adapters: Adapters, data: list[Path], name: str) -> None:
    row, count = METHODS[name], count_of(name)
    head, weights = adapters.whole[: count - 1], shares(row, count)
    found = merge(row, [*head, adapters.lacking], weights, data, "skip")
    if name in THRESHOLDS:
        assert "other models count here than in layers.0" in str(found)
        assert "--missing zero" in str(found)
        return
    assert not isinstance(found, str)
    update = merged(found)[LACKING]
    if count == 2:
        alone = read_adapter(head[0]).update(LACKING).dense()
        assert apart({LACKING: update}, {LACKING: alone.numpy()}) <= 1e-10
        return
    factor = 1.0 if row.normalised else sum(weights) / sum(weights[:-1])
    if row.ordered:
        right = merge(row, head, weights[:-1], data, "error")
    else:
        there = [*(factor * weight for weight in weights[:-1]), 0.0]
        filtered = [
            [{"filter": LACKING, "value": own}, {"value": other}]
            for own, other in zip(there, weights, strict=True)
        ]
        right = merge(row, adapters.whole, filtered, data, "error")
    assert not isinstance(right, str)
    assert apart({LACKING: update}, {LACKING: merged(right)[LACKING]}) <= bound(row)
    assert found.record.modules[1].input_ranks[-1] == 0
