"""A recipe with other weights is that recipe; of a model alone it is the plain average."""

from __future__ import annotations

from pathlib import Path

import pytest

from riemerge.errors import RecipeError
from riemerge.study.reweighting import equal_weights, model_names, reweight


def test_weights_are_replaced_and_nothing_else(folders: list[Path]) -> None:
    recipe = equal_weights(folders[:3], "ties", (), {"density": 0.5, "scale": 2.0, "out_dtype": "float32"})
    assert list(recipe.weights) == [1, 1, 1]
    assert model_names(recipe) == ("a", "b", "c")
    other = reweight(recipe, [0.5, 0, 0.25])
    assert list(other.weights) == [0.5, 0, 0.25]
    assert other.model_copy(update={"models": recipe.models}) == recipe


def test_a_model_alone_is_averaged_with_the_parameters_that_an_average_takes(folders: list[Path]) -> None:
    options = {"density": 0.5, "scale": 2.0, "rank": 2}
    alone = reweight(equal_weights(folders[:3], "ties", (), options), [0, 1, 0])
    assert (alone.merge_method, list(alone.weights)) == ("average", [0, 1, 0])
    assert alone.parameters == {"scale": 2.0, "rank": 2}


def test_weights_of_ones_own_are_refused(folders: list[Path]) -> None:
    with pytest.raises(RecipeError, match="weights of their own"):
        equal_weights(folders, "average", (), {"weight": 2.0})
