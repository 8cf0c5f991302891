"""Recipes of the same models with other weights: what soups and sweeps merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from riemerge.errors import RecipeError
from riemerge.merging.inputs import display_names
from riemerge.methods import METHODS
from riemerge.recipes.recipe import Recipe, read_recipe

_ALONE = "average"


def equal_weights(
    models: Sequence[str | Path], method: str, statistics: Sequence[str | Path], options: Mapping[str, Any]
) -> Recipe:
    """Return the recipe of some models, with all weights 1.

    Args:
        models: T folders of adapters or full checkpoints.
        method: Row of the table.
        statistics: Folder of statistics of each model, for a method that needs them.
        options: What else a recipe says: `base_model`, `dtype`, `out_dtype`, `out_type`, any parameter.

    Raises:
        RecipeError: The options have weights, or make no sense.
    """
    if own := {"weight", "t"} & options.keys():
        raise RecipeError(
            f"{', '.join(sorted(own))}: soups and sweeps have weights of their own: leave it out"
        )
    # Not as text, so that no folder's name is taken for a weight or a recipe.
    sources = [(str(model), 1.0) for model in models]
    return read_recipe(sources, {"merge_method": method, **options}, [str(path) for path in statistics])


def reweight(recipe: Recipe, weights: Sequence[float]) -> Recipe:
    """Return a recipe with other weights; where one weight alone is not 0, the plain average of that model.

    Args:
        recipe: What to merge, and how.
        weights: The T new weights.
    """
    if sum(weight != 0 for weight in weights) == 1:
        takes = METHODS[_ALONE].parameters
        parameters = {name: value for name, value in recipe.parameters.items() if name in takes}
        recipe = recipe.model_copy(
            update={
                "merge_method": _ALONE,
                "parameters": parameters,
                "base_statistics": None,
                "models": tuple(entry.model_copy(update={"statistics": None}) for entry in recipe.models),
            }
        )
    models = tuple(
        entry.model_copy(update={"parameters": {"weight": weight}})
        for entry, weight in zip(recipe.models, weights, strict=True)
    )
    return recipe.model_copy(update={"models": models})


def model_names(recipe: Recipe) -> tuple[str, ...]:
    """Return the name of each model, by which records and people know it."""
    return display_names([entry.model for entry in recipe.models])


def to_json(record: BaseModel) -> bytes:
    """Return a record as indented JSON, with a final line break."""
    return (record.model_dump_json(indent=2) + "\n").encode()
