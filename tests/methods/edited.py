"""What the tests of entrywise rows share: settings, rows run as the table says, updates of several shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from riemerge.methods.elections import PARAMETERS, ROWS
from riemerge.methods.method import SUMS
from riemerge.methods.setting import Setting
from tests.helpers import seeded
from tests.methods.rows import Alone

SHAPES = ((3, 9, 4), (2, 4, 9), (2, 1, 3), (4, 11), (3, 4, 3, 2, 2), (1, 5, 5))
ROW = {row.name: row for row in ROWS}
PER_MODEL = {"density"} | {one.name for one in PARAMETERS if one.per_model}


def random_updates(shape: Sequence[int], seed: int = 0, zeros: float = 0.1) -> Tensor:
    """Updates with some entries at zero."""
    generator = seeded(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x * (torch.rand(*shape, generator=generator) >= zeros)


def random_weights(count: int, seed: int = 0) -> Tensor:
    return 0.1 + torch.rand(count, generator=seeded(seed), dtype=torch.float64)


def close(one: Tensor, other: Tensor, eps: float = 2.0**-52) -> bool:
    """Equal up to the rounding of a few operations on a few models, relative to the largest entry."""
    return torch.allclose(one, other, rtol=0, atol=16 * eps * float(other.abs().max()))


def setting(x: Tensor, weights: Any = None, seed: int = 0, module: str = "m", **values: Any) -> Setting:
    """A setting for these updates: weights 1 without any, per-model values from one number or T."""
    count = len(x)
    given = torch.as_tensor([1.0] * count if weights is None else weights, dtype=torch.float64)
    for name in PER_MODEL & values.keys():
        one = torch.as_tensor(values[name], dtype=torch.float64)
        values[name] = one.expand(count).clone() if one.ndim == 0 else one
    seeds = tuple(1000 * seed + place for place in range(count))
    return Setting(module, given, values, tuple(x.shape[1:]), seeds=seeds)


def find(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def run(name: str, x: Tensor, weights: Any = None, seed: int = 0, **values: Any) -> Tensor:
    """One module through a row, at its defaults where no value is given."""
    return run_all(name, {"m": x}, weights, seed, **values)["m"]


def run_all(
    name: str, modules: Mapping[str, Tensor], weights: Any = None, seed: int = 0, **values: Any
) -> dict[str, Tensor]:
    """All modules of the models through a row: its survey, then edits and mean of each."""
    row = Alone(ROW[name])
    values = {key: value for key, value in ROW[name].defaults.items() if key != "scale"} | values
    stream = [(x, setting(x, weights, seed, module, **values)) for module, x in modules.items()]
    facts = row.row.run_survey(lambda: iter(stream)) if row.row.survey else {}
    return {at.module: seen(row, x, replace(at, facts=facts)) for x, at in stream}


def seen(alone: Alone, x: Tensor, at: Setting) -> Tensor:
    """What a row that sees dense updates makes of them."""
    row = alone.row
    for edit in row.edits:
        x = edit(x, at)
    if row.domain(at.values) not in SUMS:
        return alone.settle(row.mean(x, at), at).value
    flat = x.flatten(1)
    return torch.tensordot(alone.settle(row.mean(flat @ flat.mT, at), at).value, x, dims=1)
