"""Every entrywise row merges adapters in runs of rows as whole dense updates are merged, choice by choice."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from riemerge.methods import METHODS, Options, Stack
from riemerge.methods import modules as opening
from riemerge.methods.elections import ROWS
from riemerge.methods.engine import merge_modules
from riemerge.methods.modules import open_module
from riemerge.methods.setting import Setting
from riemerge.updates import Dense, LowRankUpdate, blocks_of, nearest
from riemerge.updates import blocks as products
from tests.helpers import seeded
from tests.methods.edited import PER_MODEL
from tests.methods.elections.dense import ASKED, DENSE

COUNT, SHAPE, RANK = 4, (45, 23), 3
EVERY = pytest.mark.parametrize("name", DENSE)


def updates(kind: str) -> tuple[LowRankUpdate, ...]:
    """Adapters of real numbers, or of few integers: then magnitudes at thresholds are equal, votes cancel."""
    draw = seeded(7)

    def factor(*shape: int) -> Tensor:
        if kind == "integers":
            return torch.randint(-1, 2, shape, generator=draw).double()
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    (m, n), scale = SHAPE, 0.5
    return tuple(LowRankUpdate(factor(m, RANK), factor(RANK, n), scale) for _ in range(COUNT))


def stacked(name: str, kind: str, **asked: Any) -> Stack:
    row = METHODS[name]
    values = dict(row.defaults)
    values |= {key: value for key, value in {**ASKED, **asked}.items() if key in row.parameters}
    values = {
        key: tuple(value + 0.01 * t for t in range(COUNT)) if key in PER_MODEL and key in ASKED else value
        for key, value in values.items()
        if key not in {"rank", "scale"}
    }
    names = tuple("abcd")
    weights = (0.5, 1.0, 1.5, 1.0) if kind == "integers" else (0.4, 0.3, 0.2, 0.1)
    return Stack(
        names, {"m": updates(kind)}, lambda _: weights, (torch.float64,) * COUNT, values=lambda _: values
    )


def seen(name: str, given: Stack, options: Options) -> tuple[Tensor, Setting]:
    """The updates as whole dense ones, and their setting."""
    there = open_module(METHODS[name], "entries", given, options, "m")
    return there.x, there.setting


def merged(name: str, given: Stack, options: Options) -> Any:
    ((_, found),) = merge_modules(METHODS[name], given, options)
    return found.update


def test_every_entrywise_row_has_its_oracle() -> None:
    assert {row.name for row in ROWS} == {*DENSE}


@EVERY
@pytest.mark.parametrize("kind", ["reals", "integers"])
def test_choices_are_those_of_whole_updates_whatever_the_blocks(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, given = Options(dense=True, seed=3), stacked(name, kind)
    expected = DENSE[name](*seen(name, given, options))
    assert bool(expected.any())
    found = []
    for rows in (1, 7, 128):
        monkeypatch.setattr(opening, "blocks_of", partial(blocks_of, rows=rows))
        monkeypatch.setattr(products, "_MOST_ROWS", 16)  # several panels
        monkeypatch.setattr(LowRankUpdate, "dense", None)
        update = merged(name, given, options)
        assert isinstance(update, Dense)
        found.append(update.tensor)
        monkeypatch.undo()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0] != 0, expected != 0)
    assert torch.equal(found[0].sign(), expected.sign())
    # Sums of a few terms, in one order or another.
    assert float((found[0] - expected).abs().max()) <= 1e-14 * float(expected.abs().max())


@pytest.mark.parametrize("name", ["dare_linear", "della", "dare_ties_peft"])
@pytest.mark.parametrize("rescale", ["norm", "none"])
def test_rescaled_drops_are_those_of_whole_updates(name: str, rescale: str) -> None:
    options, given = Options(dense=True, seed=3), stacked(name, "reals", rescale=rescale)
    expected = DENSE[name](*seen(name, given, options))
    update = merged(name, given, options)
    assert torch.equal(update.tensor != 0, expected != 0)
    assert float((update.tensor - expected).abs().max()) <= 1e-14 * float(expected.abs().max())


@EVERY
def test_the_result_is_the_nearest_of_its_rank(name: str) -> None:
    options, given = Options(seed=3), stacked(name, "reals")
    expected, _ = nearest(DENSE[name](*seen(name, given, options)), RANK)
    apart = merged(name, given, options).distance(expected)
    assert apart <= 1e-12 * expected.norm()
