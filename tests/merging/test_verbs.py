"""The verbs take what a person gives them: numbers of any library, optimizers, open adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import riemerge
from riemerge.errors import AdapterError, RecipeError, ResourceError
from riemerge.frechet.solvers.lbfgs import LBFGSOptimizer
from riemerge.updates.low_rank import sum_updates
from tests.folders import SHAPES, family, merge_adapters, write_family
from tests.merging.merges import write_checkpoint


def test_an_optimizer_of_the_users_own_is_used(tmp_path: Path) -> None:
    from pymanopt.optimizers import SteepestDescent

    folders = write_family(tmp_path, family("close", 2))
    result = merge_adapters(folders, solver=SteepestDescent(max_iterations=3, verbosity=0))
    assert result.record.recipe["parameters"]["solver"] == "SteepestDescent"


def test_an_optimizer_object_serves_every_block(tmp_path: Path) -> None:
    """Each block has a copy: on two threads the blocks would otherwise share one run's state."""
    shapes = {f"m{i:02}": (14, 12) for i in range(18)}
    folders = write_family(tmp_path, family("close", 3, rank=2, shapes=shapes))
    named = merge_adapters(folders, solver="lbfgs", threads=1)
    given = merge_adapters(folders, solver=LBFGSOptimizer(rescale=False, verbosity=0), threads=2)
    for module, update in named.updates.items():
        assert sum_updates([update, given.updates[module]], [1, -1]).norm() < 1e-4 * update.norm()


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    result = merge_adapters(folders, np.array([1, 3], dtype=np.float32), rank=np.int64(2))
    assert [row.share for row in result.record.inputs] == [0.25, 0.75]
    assert {update.rank for update in result.updates.values()} == {2}


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"weights": [1]}, RecipeError, "weights: 1 for 2 adapters"),
        ({"weights": [1, -1]}, RecipeError, "no weight below zero"),
        ({"weights": [0, 0]}, RecipeError, "every weight is 0"),
        ({"weights": [1, float("nan")]}, RecipeError, "expected a finite number"),
        ({"method": "karchr"}, RecipeError, "unknown method 'karchr'"),
        ({"solver": "trust_region"}, RecipeError, "did you mean 'trust_regions'?"),
        ({"method": "average", "solver": "fixed_point"}, RecipeError, "average takes no solver"),
        ({"rank": 0}, RecipeError, "parameters.rank"),
        ({"starts": 0}, RecipeError, "parameters.starts"),
        ({"starts": "all"}, RecipeError, "expected a whole number or 'auto'"),
        ({"seed": -1}, RecipeError, "parameters.seed"),
        ({"max_seconds": 0}, RecipeError, "parameters.max_seconds"),
        ({"method": "average", "starts": 2}, RecipeError, "average takes no starts"),
        ({"threads": 0}, RecipeError, "threads: 0: expected at least 1"),
        ({"dtype": "float16"}, RecipeError, "dtype"),
        ({"device": "tpu"}, RecipeError, "device: 'tpu' is not known"),
        ({"device": "meta"}, RecipeError, "device: 'meta' is not supported"),
        ({"device": "cuda:99"}, ResourceError, "device: cuda:99 was asked for"),
    ],
)
def test_requests_that_make_no_sense(
    tmp_path: Path, arguments: dict[str, Any], kind: type, says: str
) -> None:
    folders = write_family(tmp_path, family("close", 2))
    with pytest.raises(kind) as caught:
        merge_adapters(folders, **arguments)
    assert says in str(caught.value)


def test_one_recipe_gives_one_record_but_for_its_timing(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    one, two = (merge_adapters(folders).record for _ in range(2))
    assert one.model_copy(update={"timing": two.timing}) == two
    assert set(one.timing.modules) == set(SHAPES)


def test_full_checkpoints_are_refused_as_what_they_are(tmp_path: Path) -> None:
    folders = [write_checkpoint(tmp_path / name, {"a": torch.ones(2, 2)}) for name in ("one", "two")]
    with pytest.raises(AdapterError) as fault:
        riemerge.merge(folders, method="ties")
    assert len(fault.value.problems) == 2
    assert all("full checkpoint" in problem for problem in fault.value.problems)


def test_statistics_of_nobody_are_none(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    assert riemerge.merge(folders, method="average", statistics=[None, None]).updates.keys() == SHAPES.keys()
    assert riemerge.merge_adapters(adapters=folders, method="average").updates.keys() == SHAPES.keys()
