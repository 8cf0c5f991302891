"""What a recipe says of one module: filters, gradients over depth, and who wins."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final

from riemerge.errors import RecipeError
from riemerge.formats.files.text import list_names
from riemerge.methods import PARAMETERS, Method
from riemerge.methods.parameters import MATCHED, is_last
from riemerge.recipes.recipe import Recipe


@final
class Resolver:
    """The values of a recipe's parameters in each module, by mergekit's rules.

    Law: what a recipe says of one model goes before what it says of all, and that before the method's
    default. A list of filters is read in order, and the first whose text is part of the module's name counts;
    where none is, the next level does. A gradient v₀…vₙ is piecewise linear in the depth t ∈ [0, 1] with
    equal steps, and never leaves its values; of words and truth values, it is v[⌊n t⌋]. Depth is
    i / (layers - 1) in layer i, 1 where there is one layer only, and 0 outside the layers, before them or
    after. Every stack of layers (a vision tower, an encoder) counts its own, up to the greatest index in it.

    Args:
        recipe: The recipe.
        method: The method of the recipe.
        modules: The names of all modules.
        depth: The depth of each module, where layers are not counted by their names.

    Raises:
        RecipeError: A filter that is part of no module's name; a parameter with a value in some modules or
            models but not in others; a module in which no weight counts: all of them at once.

    Source: mergekit 0.1.5's documented parameter specification (scalars, gradients, filters).
    """

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        modules: Sequence[str],
        depth: Mapping[str, float] | None = None,
    ) -> None:
        self._own = tuple(entry.parameters for entry in recipe.models)
        self._all = recipe.parameters
        self._default: Mapping[str, Any] = {"weight": 1.0, "scale": 1.0, **method.defaults}
        self._models = tuple(entry.model for entry in recipe.models)
        self._counting = tuple(weight != 0 for weight in recipe.weights)
        self._names = tuple(name for name in method.parameters if name not in {"weight", "scale"})
        self._depth = depth or depths(modules)
        RecipeError.refuse([*self._find_unmatched(), *self._find_gaps(), *self._find_weightless(method)])

    def weights(self, module: str) -> tuple[float, ...]:
        """Return the weights of the recipe's T models in one module: not normalised, and with those of 0."""
        return tuple(self._of_models("weight", module))

    def scale(self, module: str, matched: float | None) -> float:
        """Return the factor λ on the merged update in one module.

        Args:
            module: The name of the module.
            matched: The factor that `matched` stands for; None while it is not known, and 1 stands in for it.
        """
        scale: float | str = self._of_all("scale", module)
        if isinstance(scale, str):
            return 1.0 if matched is None else matched
        return scale

    @property
    def matched(self) -> frozenset[str]:
        """The modules whose scale is `matched`."""
        return frozenset(module for module in self._depth if self._of_all("scale", module) == MATCHED)

    def values(self, module: str) -> dict[str, Any]:
        """Return the values in one module of what the method takes beside weights and scale.

        Returns:
            By name: a number, a truth value or a word; T of them for a parameter that may differ between
            models; None for what neither the recipe nor the method says.
        """
        return {name: self._value(name, module) for name in self._names}

    def _value(self, name: str, module: str) -> Any:
        if not PARAMETERS[name].per_model:
            return self._of_all(name, module)
        each = tuple(self._of_models(name, module))
        return None if set(each) == {None} else each

    def _of_models(self, name: str, module: str) -> Iterator[Any]:
        return (self._first(name, module, own, self._all, self._default) for own in self._own)

    def _of_all(self, name: str, module: str) -> Any:
        return self._first(name, module, self._all, self._default)

    def _first(self, name: str, module: str, *levels: Mapping[str, Any]) -> Any:
        """Return a parameter's value in one module by the first level that has one there, or None."""
        values = (self._at(level.get(name), module) for level in levels)
        return next((value for value in values if value is not None), None)

    def _at(self, setting: Any, module: str) -> Any:
        """Return a setting in one module; None where it says nothing there."""
        if filters := _filters(setting):
            fitting = (item["value"] for item in filters if is_last(item) or item["filter"] in module)
            setting = next(fitting, None)
        if isinstance(setting, list):
            return _at_depth(setting, self._depth[module])
        return setting

    # --- what only the names of the modules show ------------------------------------------------------------

    def _find_unmatched(self) -> Iterator[str]:
        """Yield the filters that are part of no module's name."""
        levels = [("parameters", self._all)]
        levels += [(f"models[{i}].parameters", own) for i, own in enumerate(self._own)]
        settings = ((f"{path}.{name}", value) for path, level in levels for name, value in level.items())
        for path, setting in settings:
            for i, item in enumerate(_filters(setting)):
                if not is_last(item) and not any(item["filter"] in module for module in self._depth):
                    near = _nearest(item["filter"], self._depth)
                    yield f"{path}[{i}].filter: {item['filter']!r} is part of no module's name: {near}"

    def _find_gaps(self) -> Iterator[str]:
        """Yield the parameters that have a value in some modules or models that count, but not in all."""
        given = {*self._all, *(name for own in self._own for name in own)}
        for name in (name for name in self._names if name in given and name not in self._default):
            lacking = [
                where
                for module in self._depth
                for where, value in self._everywhere(name, module)
                if value is None
            ]
            if lacking:
                yield (
                    f"parameters.{name}: has a value in some places, but none in {list_names(lacking)}: end "
                    "the list with an item without filter, or give a value for all"
                )

    def _everywhere(self, name: str, module: str) -> Iterator[tuple[str, Any]]:
        """Yield a parameter's values in one module, each behind the words for where it is."""
        if not PARAMETERS[name].per_model:
            yield module, self._of_all(name, module)
            return
        values = zip(self._models, self._of_models(name, module), self._counting, strict=True)
        yield from ((f"{module} of {model}", value) for model, value, counts in values if counts)

    def _find_weightless(self, method: Method) -> Iterator[str]:
        """Yield the modules whose weights leave nothing to merge, or nothing to divide by."""
        none, cancelled, huge = [], [], []
        for module in self._depth:
            weights = self.weights(module)
            if not any(weights):
                none.append(module)
            elif math.isinf(sum(map(abs, weights))):
                huge.append(module)
            # What is left of weights that cancel to their own round-off is no divisor.
            elif method.normalised and abs(sum(weights)) <= sys.float_info.epsilon * sum(map(abs, weights)):
                cancelled.append(module)
        if none:
            yield f"weight: 0 for every model in {list_names(none)}: at least one must count in every module"
        if huge:
            where = list_names(huge)
            yield f"weight: the weights add up to more than a float holds in {where}: choose others"
        if cancelled:
            yield (
                f"weight: the weights add up to 0 in {list_names(cancelled)}, and {method.name} divides by "
                "their sum: choose others"
            )


# --- depth --------------------------------------------------------------------------------------------------

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|blocks|block|h)\.([0-9]{1,9})(?=\.|$)")
_NUMBER = re.compile(r"(?:^|\.)([0-9]{1,9})(?=\.|$)")


def depths(modules: Sequence[str]) -> dict[str, float]:
    """Return how deep in its model each module stands, from 0 to 1 (see `Resolver`)."""
    layers: dict[str, tuple[str, int]] = {}
    last: dict[str, int] = {}
    for module in modules:
        if place := layer_of(module):
            stack, layer = layers[module] = place
            last[stack] = max(layer, last.get(stack, 0))
    depth = dict.fromkeys(modules, 0.0)
    for module, (stack, layer) in layers.items():
        depth[module] = layer / last[stack] if last[stack] else 1.0
    return depth


def layer_of(module: str) -> tuple[str, int] | None:
    """Return the stack of layers in which a module stands, and its layer there; None outside the layers.

    >>> layer_of("model.layers.7.mlp.up_proj")
    ('model.layers.', 7)
    """
    match = _LAYER.search(module) or _NUMBER.search(module)
    return match and (module[: match.start(1)], int(match[1]))


def _at_depth(gradient: Sequence[Any], depth: float) -> Any:
    """Return a gradient's value at a depth."""
    position = depth * (len(gradient) - 1)
    left, right = gradient[int(position)], gradient[min(int(position) + 1, len(gradient) - 1)]
    if not isinstance(left, float):
        return left
    share = position - int(position)
    # Round-off must not leave the bounds that were checked at the ends.
    return min(max((1 - share) * left + share * right, min(left, right)), max(left, right))


# --- words --------------------------------------------------------------------------------------------------


def _filters(setting: Any) -> list[Mapping[str, Any]]:
    """Return a setting that is a list of filters; nothing for others."""
    if isinstance(setting, list) and isinstance(setting[0], Mapping):
        return setting
    return []


def _nearest(part: str, modules: Iterable[str]) -> str:
    """Say which part of the modules' names was probably meant."""
    length = part.count(".") + 1
    parts: dict[str, None] = {}
    for module in modules:
        words = module.split(".")
        parts |= dict.fromkeys(".".join(words[i : i + length]) for i in range(len(words) - length + 1))
    near = difflib.get_close_matches(part, [word for word in parts if not word.isdigit()], n=3)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"the modules are {list_names(list(modules))}"
