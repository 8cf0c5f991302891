"""`base+adapter` as a model among adapters: the adapter, on the base that all of them have."""

from __future__ import annotations

import os

from riemerge.errors import RecipeError
from riemerge.formats.kinds import is_checkpoint
from riemerge.recipes.recipe import Recipe
from riemerge.recipes.specs import parts_of


def take_adapters(recipe: Recipe) -> Recipe:
    """Return a recipe with the adapter in the place of each `base+adapter`, where adapters are merged.

    Law: adapters are merged where one of the other models is an adapter, where an adapter or a delta is to be
    written, or where none of the models is a full checkpoint and a base is not there. Elsewhere
    `base+adapter` is the full checkpoint of the base with the adapter merged into it, and stays.

    Raises:
        RecipeError: The adapters are on different bases.
    """
    sums = [parts_of(entry.model) for entry in recipe.models]
    bases = dict.fromkeys(base for base, *adapters in sums if adapters)
    plain = [model for model, *adapters in sums if not adapters and os.path.lexists(model)]
    kinds = {is_checkpoint(model) for model in plain}
    absent = kinds != {True} and not all(map(os.path.lexists, bases))
    if not bases or not (False in kinds or absent or recipe.out_type in {"adapter", "delta"}):
        return recipe
    bases |= {recipe.base_model: None} if recipe.base_model else {}
    if len({os.path.normpath(base) for base in bases}) > 1:
        raise RecipeError(
            f"models: adapters on several base models: {', '.join(bases)}: expected one; name the adapters "
            "alone to have them compared by what they call their base"
        )
    models = (
        entry.model_copy(update={"model": parts[-1]})
        for entry, parts in zip(recipe.models, sums, strict=True)
    )
    texts = (
        f"models[{i}]: base+adapter: read as the adapter, since adapters are merged"
        for i, parts in enumerate(sums)
        if len(parts) > 1
    )
    return recipe.model_copy(
        update={
            "models": tuple(models),
            "base_model": next(iter(bases)),
            "translations": (*recipe.translations, *texts),
        }
    )
