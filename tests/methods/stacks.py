"""Stacks of one or more modules with all that any row of the table needs, for tests of every row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from riemerge.merging.plan import values_of, weights_of
from riemerge.methods import COLUMNS, METHODS, Method, Options, Stack, run_method
from riemerge.recipes.recipe import make_recipe
from riemerge.recipes.resolve import Resolver
from riemerge.updates.low_rank import LowRankUpdate
from tests.helpers import Factors, seeded

MODULE = "layers.0.q"
SHAPE = (18, 14)


def spd(size: int, seed: int) -> Tensor:
    """A well-conditioned positive definite matrix."""
    root = torch.randn(size, size, generator=seeded(seed), dtype=torch.float64)
    return root @ root.mT / size + torch.eye(size, dtype=torch.float64)


def statistics(seed: int, shape: tuple[int, int] = SHAPE) -> dict[str, Tensor]:
    """Statistics of one model in one module, of every kind."""
    m, n = shape
    return {
        "fisher": torch.rand(m, n, generator=seeded(seed), dtype=torch.float64) + 0.1,
        "gram": spd(n, seed + 1),
        "covariance": spd(m, seed + 2),
    }


def from_seed(seed: int) -> Callable[[str], dict[str, Tensor]]:
    """Statistics of one model that are the same in every module."""
    return lambda _: statistics(seed)


def stacked(
    method: Method,
    adapters: Sequence[Factors],
    weights: Sequence[float],
    data: Sequence[int],
    **parameters: Any,
) -> Stack:
    """A stack of one module, with the row's parameters as a recipe resolves them.

    Args:
        method: The row.
        adapters: T pairs of factors.
        weights: T weights.
        data: T seeds of the statistics.
        parameters: Of the row, over its defaults.
    """
    place = [i for i, weight in enumerate(weights) if weight != 0]
    recipe = make_recipe(
        {
            "merge_method": method.name,
            **_swapped(method),
            "models": [
                {
                    "model": f"a{i}",
                    "parameters": {"weight": float(weights[i])},
                    **({"statistics": f"s{i}"} if method.statistics else {}),
                }
                for i in place
            ],
            "base_statistics": "s" if method.base_statistics else None,
            "parameters": parameters,
        }
    )
    resolver = Resolver(recipe, method, [MODULE])
    places = range(len(place))
    updates = tuple(LowRankUpdate(*adapters[i]) for i in place)
    return Stack(
        names=tuple(f"a{i}" for i in place),
        modules={MODULE: updates},
        weights=weights_of(resolver, method, places),
        storage=(torch.float64,) * len(place),
        values=values_of(resolver, places),
        statistics=tuple(from_seed(data[i]) for i in place),
        base_statistics=from_seed(999),
    )


def _swapped(method: Method) -> dict[str, Any]:
    """The columns in which a composed row differs from that of its name, as a recipe says them."""
    given = {name: getattr(method, name) for name in COLUMNS}
    row = METHODS[method.name]
    said = {name: value for name, value in given.items() if value != getattr(row, name)}
    return {name: list(value) if name == "edits" else value for name, value in said.items()}


def merged(
    name: str,
    adapters: Sequence[Factors],
    weights: Sequence[float],
    data: Sequence[int] | None = None,
    rank: int | str | None = "sum",
    **parameters: Any,
) -> Tensor:
    """What one row merges adapters of one module to, dense and whole."""
    method = METHODS[name]
    given = stacked(method, adapters, weights, data or [10 * i for i in range(len(adapters))], **parameters)
    asked = {
        key: method.defaults[key]
        for key in ("solver", "tol", "cost_tol", "max_passes")
        if key in method.defaults
    }
    options = Options(rank=None if method.truncates_inputs else rank, **asked)
    if method.truncates_inputs:
        options = replace(options, tol=1e-10, cost_tol=0.0)
    ((module, one),) = run_method(method, given, options)
    assert module == MODULE
    assert isinstance(one.update, LowRankUpdate)
    return one.update.dense()
