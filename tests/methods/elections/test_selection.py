"""The exact order statistics, against a sort of everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from riemerge.methods.elections import selection
from riemerge.methods.elections.selection import NONE, Cut, by_digits, keep_largest, kth_largest
from tests.helpers import seeded
from tests.methods.edited import SHAPES, random_updates
from tests.methods.elections.dense import top_mask

# The hard numbers of float64: zeros of both signs, subnormals, neighbours in the last bit, the largest.
HARD = torch.tensor(
    [0.0, -0.0, 5e-324, -5e-324, 1e-310, 1.0, -1.0, 1.0 + 2**-52, -(1.0 - 2**-53), 1.7e308, -3.0, 3.0, 2.0],
    dtype=torch.float64,
)


def expected(update: Tensor, k: int) -> Cut:
    """By a sort of everything."""
    if k == 0:
        return NONE
    magnitudes = update.abs().flatten()
    value = float(magnitudes.sort(descending=True).values[k - 1])
    ties = k - int((magnitudes > value).sum())
    return Cut(value, ties, ties == int((magnitudes == value).sum()))


def asked(ranks: Sequence[int], _: int) -> Sequence[int]:
    return ranks


def counted(source: Callable[[], Iterator[Tensor]]) -> tuple[Callable[[], Iterator[Tensor]], list[int]]:
    """A stream, and the passes over it."""
    passes: list[int] = []

    def stream() -> Iterator[Tensor]:
        passes.append(1)
        return source()

    return stream, passes


def pieces(x: Tensor, sizes: Sequence[int]) -> Callable[[], Iterator[Tensor]]:
    return lambda: iter(x.split(list(sizes), dim=1)[::-1])


@pytest.mark.parametrize("shape", SHAPES)
def test_exactly_the_largest_are_kept_however_rows_are_cut(shape: tuple[int, ...]) -> None:
    # Rounding to a few values makes many ties, at most boundaries.
    for x in (random_updates(shape), random_updates(shape, zeros=0.5).round()):
        for k in range(x[0].numel() + 1):
            cuts = kth_largest(partial(iter, [x]), partial(asked, [k] * len(x)))
            assert cuts == tuple(expected(update, k) for update in x)
            masked = torch.stack([torch.where(top_mask(update, k), update, 0.0) for update in x])
            for rows in (1, 2, 100):
                ties = [cut.ties for cut in cuts]
                kept = [keep_largest(run, cuts, ties) for run in x.split(rows, dim=1)]
                assert torch.equal(torch.cat(kept, dim=1), masked)


@pytest.mark.parametrize("k", range(1, 14))
def test_hard_numbers_are_counted_as_they_are(k: int) -> None:
    """Two models with many ties, as one tensor, and cut into several in the other order; and by digits."""
    models = torch.stack([HARD, torch.randint(-3, 4, (13,), generator=seeded(1)).double()])
    cuts = tuple(expected(model, k) for model in models)
    for stream in (lambda: iter([models]), pieces(models, (1, 1, 5, 6))):
        assert kth_largest(stream, lambda size: [k * size // 13] * 2) == cuts
        assert k % 4 or by_digits(stream, [k, k]) == cuts
    kept = keep_largest(models, cuts, [cut.ties for cut in cuts])
    assert torch.equal(kept[0], torch.where(top_mask(HARD, k), HARD, 0.0))


def spoiled(kind: str) -> Tensor:
    """Numbers that mislead a sample, or that no bracket can separate."""
    draw = seeded(2)
    x = torch.randn(3, 20_000, generator=draw, dtype=torch.float64)
    if kind == "few values":
        x = (2.0 * x).round()
    elif kind == "half zeros":
        x[:, ::2] = 0.0
    elif kind == "sorted":
        x = x.sort(dim=1).values
    elif kind == "a spike":
        x[:, 10_000:13_000] = 1e3
    elif kind == "close":
        x = 1.0 + 1e-15 * x
    return x


@pytest.mark.parametrize("kind", ["normal", "few values", "half zeros", "sorted", "a spike", "close"])
def test_a_bracket_finds_what_a_sort_does(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = spoiled(kind)
    ranks = [2_000, 10_000, 19_999]
    cuts = tuple(expected(update, k) for update, k in zip(x, ranks, strict=True))
    monkeypatch.setattr(selection, "_SAMPLE", 1_000)
    for held in (20_000, 1_000):
        monkeypatch.setattr(selection, "_HELD", held)
        for size in (20_000, 997):
            stream, passes = counted(partial(iter, x.split(size, dim=1)))
            assert kth_largest(stream, lambda _: ranks) == cuts
            assert len(passes) == 2 if held == 20_000 and kind == "normal" else len(passes) <= 8


@pytest.mark.parametrize("fault", ["above", "below"])
def test_a_bracket_that_misses_is_seen_and_digits_are_counted(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = spoiled("normal")
    monkeypatch.setattr(selection, "_SAMPLE", 1_000)
    monkeypatch.setattr(selection, "_largest", lambda numbers, rank: {"above": 9.0, "below": 1e-12}[fault])
    called: list[int] = []
    digits = by_digits

    def spy(stream: Callable[[], Iterator[Tensor]], ranks: Sequence[int]) -> tuple[Cut, ...]:
        called.append(len(ranks))
        return digits(stream, ranks)

    monkeypatch.setattr(selection, "by_digits", spy)
    found = kth_largest(partial(iter, [x]), lambda _: [0, 10_000, 7_000])
    assert found == (NONE, expected(x[1], 10_000), expected(x[2], 7_000))
    assert called == [2]


def test_a_short_stream_is_read_once() -> None:
    x = random_updates((2, 7), zeros=0.0)
    stream, passes = counted(lambda: iter([x]))
    assert kth_largest(stream, lambda size: [1, size]) == (expected(x[0], 1), expected(x[1], 7))
    assert len(passes) == 1
