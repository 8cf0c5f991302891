"""Slices that hold all layers of their models: these are merged as the plain models that they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from riemerge.errors import AdapterError
from riemerge.formats.dialects import read_adapter
from riemerge.formats.files.text import strict_json
from riemerge.formats.kinds import is_checkpoint
from riemerge.recipes.recipe import ModelEntry, Recipe, Slice, Source
from riemerge.recipes.resolve import layer_of
from riemerge.recipes.specs import parts_of

CONFIG_FILE = "config.json"

# What the settings of a model call its number of layers, and where those of its language model lie.
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_LANGUAGE_MODELS = ("text_config", "llm_config", "language_config")


def recipe_of_slice(recipe: Recipe, part: Slice) -> Recipe:
    """Return the recipe of one slice: that of its sources, as if their layers were all that they have."""
    entries = (ModelEntry(model=source.model, parameters=source.parameters) for source in part.sources)
    return recipe.model_copy(update={"slices": None, "models": tuple(entries), "parameters": part.parameters})


def flatten_slices(recipe: Recipe) -> Recipe:
    """Return a recipe without slices where its only slice holds all layers of its models; others as they are.

    Law: the settings of a checkpoint say how many layers it has. Of an adapter those that have updates count.

    Raises:
        AdapterError: An adapter among the models cannot be read, or the settings of a checkpoint.
    """
    if recipe.slices is None or len(recipe.slices) > 1:
        return recipe
    (part,) = recipe.slices
    if not all(_is_whole(source) for source in part.sources):
        return recipe
    text = f"slices: layers 0 to {part.sources[0].layer_range[1] - 1} are all layers: read as plain models"
    flat = recipe_of_slice(recipe, part)
    return flat.model_copy(update={"translations": (*recipe.translations, text)})


def _is_whole(source: Source) -> bool:
    """Return whether a source has all layers of its model."""
    first, stop = source.layer_range
    model = parts_of(source.model)[0]
    if first > 0 or not os.path.lexists(model):
        return False
    if is_checkpoint(model):
        return count_layers(model) == stop
    places = map(layer_of, read_adapter(model).modules)
    return all(place is None or place[1] < stop for place in places)


def count_layers(model: str) -> int | None:
    """Return how many layers the settings beside a full checkpoint say that it has; None without settings.

    Raises:
        AdapterError: The settings cannot be read.
    """
    path = Path(model, CONFIG_FILE)
    try:
        settings = strict_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as fault:
        raise AdapterError(f"{path}: cannot be read: {fault}") from fault
    levels = [settings, *(settings.get(name) for name in _LANGUAGE_MODELS if isinstance(settings, dict))]
    counts: list[Any] = [
        level[name] for level in levels if isinstance(level, dict) for name in _COUNTS if name in level
    ]
    return next((count for count in counts if isinstance(count, int)), None)
