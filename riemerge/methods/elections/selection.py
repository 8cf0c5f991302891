"""Exact order statistics of magnitudes, over a stream of tensors that is never held."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias, final

import torch
from torch import Tensor

# The magnitudes of float64 numbers, read as integers of 63 bits, keep their order: three digits of 21 bits.
DIGIT = 21
SHIFTS = (2 * DIGIT, DIGIT, 0)

# How many numbers of a model are sampled before anything is known of them, and how many of all models are
# held at once: 64 MiB of float64.
_SAMPLE = 2**16
_HELD = 2**23

# Standard errors between the place of a rank in a sample and the ends of its bracket: one in 10⁹ is missed.
_SIGMAS = 6.0
# Passes over the stream before the digits are counted, which ends in three.
_PASSES = 5

Restart: TypeAlias = Callable[[], Iterator[Tensor]]
"""Starts a stream anew: (T, ...) float64 tensors, the same in each pass."""


class Cut(NamedTuple):
    """Where the k largest magnitudes of a model end.

    Attributes:
        value: The k-th largest of them; infinite for none.
        ties: How many of the entries that equal it belong to the k largest.
        every: Whether those are all that equal it.
    """

    value: float
    ties: int
    every: bool


NONE = Cut(torch.inf, 0, True)
"""The cut that leaves nothing."""


def kth_largest(stream: Restart, ranks: Callable[[int], Sequence[int]], size: int = 1) -> tuple[Cut, ...]:
    """Find where the k largest magnitudes of each model end, over a stream of tensors.

    Law: the values are those of sorting all magnitudes, bit for bit, whatever the order of the stream and
    however it is cut into tensors. The first pass takes a sample, which brackets the value; the second counts
    what is above the bracket and collects what is inside, about 2 %, of which a partition gives the value.
    Where more is inside than is to be held, a sample of that narrows the bracket; where a bracket has missed
    the value, the digits of all magnitudes are counted. The draws have a fixed seed and decide nothing.

    Args:
        stream: Starts the stream anew; not all of its tensors are empty.
        ranks: Called with the number of entries of a model, for the k of each: from 0 to that number.
        size: That number, about, where it is known: a sample is taken faster.

    Returns:
        T cuts.

    Cost: two passes over the stream, one where it is short; at most 64 MiB beside.
    """
    searches = _sample(stream, size)
    for search, rank in zip(searches, ranks(searches[0].inside), strict=True):
        search.ask(rank, max(_SAMPLE, _HELD // len(searches)))
    passes = 1
    while passes < _PASSES and any(search.open for search in searches):
        _collect(stream, searches)
        passes += 1
    if left := [place for place, search in enumerate(searches) if search.cut is None]:
        found = by_digits(lambda: (x[left] for x in stream()), [searches[place].rank for place in left])
        for place, cut in zip(left, found, strict=True):
            searches[place].cut = cut
    return tuple(search.cut for search in searches if search.cut is not None)


def _sample(stream: Restart, size: int) -> list[_Search]:
    """Return a search for each model, with a sample of its entries."""
    draw = torch.Generator().manual_seed(0)
    searches: list[_Search] = []
    for x in stream():
        searches = searches or [_Search(_SAMPLE, draw, min(1.0, 0.9 * _SAMPLE / max(size, 1))) for _ in x]
        for search, update in zip(searches, x, strict=True):
            search.add_all(update.flatten())
    return searches


def _collect(stream: Restart, searches: Sequence[_Search]) -> None:
    """Count and collect for the searches that are open, in one pass, and narrow them."""
    for x in stream():
        for search, update in zip(searches, x, strict=True):
            if search.open:
                search.add(update.abs().flatten())
    for search in searches:
        search.narrow()


@final
class _Search:
    """The search for one k-th largest number: a bracket, what is above it, and a sample of what is inside.

    Attributes:
        rank: The k.
        inside: How many numbers are in the bracket.
        cut: What was found; None so far.
        missed: Whether the bracket does not hold the number.
    """

    def __init__(self, most: int, draw: torch.Generator, rate: float) -> None:
        self.rank, self.inside, self.missed = 0, 0, False
        self.cut: Cut | None = None
        self._low, self._high, self._above = 0.0, torch.inf, 0
        self._most, self._draw = most, draw
        self._restart(rate)

    def _restart(self, rate: float = 1.0) -> None:
        self.inside = self._above = 0
        self._rate, self._due, self._count = rate, 0.0, 0
        self._pool: Tensor | None = None

    @property
    def open(self) -> bool:
        """Whether another pass is needed."""
        return self.cut is None and not self.missed

    def add_all(self, numbers: Tensor) -> None:
        """See numbers before there is a bracket."""
        self.inside += len(numbers)
        self._keep(numbers)

    def add(self, magnitudes: Tensor) -> None:
        """See magnitudes, none of which is below zero."""
        larger = magnitudes > self._high
        above = int(torch.count_nonzero(larger))
        within = magnitudes[larger ^ (magnitudes >= self._low)]
        self._above += above
        self.inside += len(within)
        if self._low < self._high:
            self._keep(within)

    def ask(self, rank: int, most: int) -> None:
        """Look for the k-th largest of the numbers seen so far, from a larger sample in each pass."""
        self.rank = rank
        if rank == 0:
            self.cut = NONE
        else:
            self.narrow()
        self._most = most

    def narrow(self) -> None:
        """Take the number from what is in the bracket, or a narrower bracket."""
        if not self.open:
            return
        rank = self.rank - self._above  # from the largest in the bracket, which is 1
        if not 0 < rank <= self.inside:
            self.missed = True
        elif self._low == self._high:
            self.cut = Cut(self._low, rank, rank == self.inside)
        elif self._rate == 1.0:
            self.cut = _cut(self._sample, rank)
        else:
            sample = self._sample
            share, size = rank / self.inside, len(sample)
            error = _SIGMAS * (size * share * (1.0 - share)) ** 0.5 + 1.0
            low, high = int(size * share + error) + 1, int(size * share - error)
            self._low = _largest(sample, low) if low <= size else self._low
            self._high = _largest(sample, high) if high >= 1 else self._high
            self._restart()

    def _keep(self, numbers: Tensor) -> None:
        """Put numbers into the sample, at its rate, which is halved where they are too many."""
        if self._rate < 1.0:
            self._due += self._rate * len(numbers)
            number = int(self._due)
            self._due -= number
            numbers = self._choose(numbers, number)
        if self._pool is None:
            self._pool = numbers.new_empty(self._most)
        while self._count + len(numbers) > self._most:
            half = self._count // 2
            self._pool[:half] = self._choose(self._pool[: self._count], half)
            numbers = self._choose(numbers, len(numbers) // 2)
            self._rate, self._count = self._rate / 2, half
        self._pool[self._count : self._count + len(numbers)] = numbers
        self._count += len(numbers)

    @property
    def _sample(self) -> Tensor:
        """The magnitudes in the sample."""
        assert self._pool is not None
        return self._pool[: self._count].abs_()

    def _choose(self, numbers: Tensor, count: int) -> Tensor:
        if not len(numbers):
            return numbers
        places = torch.randint(len(numbers), (count,), generator=self._draw)
        return numbers.index_select(0, places.to(numbers.device))


def _largest(numbers: Tensor, rank: int) -> float:
    return float(numbers.kthvalue(len(numbers) - rank + 1).values)


def _cut(magnitudes: Tensor, rank: int) -> Cut:
    value = _largest(magnitudes, rank)
    ties = rank - int(torch.count_nonzero(magnitudes > value))
    return Cut(value, ties, ties == int(torch.count_nonzero(magnitudes == value)))


def by_digits(stream: Restart, ranks: Sequence[int]) -> tuple[Cut, ...]:
    """Find where the k largest magnitudes of each model end by counting digits, whatever the numbers.

    Law: `kth_largest`. A radix selection (most significant digit first).

    Args:
        stream: Starts the stream anew.
        ranks: T ranks, at least 1.

    Cost: three passes over the stream, and 2²¹ counts (16 MiB) for each model.
    """
    prefixes, cuts = [0] * len(ranks), list[Cut]()
    left = list(ranks)
    for shift in SHIFTS:
        cuts = []
        for model, histogram in enumerate(_histograms(stream, prefixes, shift)):
            up_to = histogram.flip(0).cumsum(0)
            place = int(torch.searchsorted(up_to, left[model]))
            digit = len(up_to) - 1 - place
            count = int(histogram[digit])
            # From now on the rank is that among the entries of the longer prefix.
            left[model] -= int(up_to[place]) - count
            prefixes[model] = (prefixes[model] << DIGIT) | digit
            bits = torch.tensor(prefixes[model], dtype=torch.int64)
            cuts.append(Cut(float(bits.view(torch.float64)), left[model], left[model] == count))
    return tuple(cuts)


def _histograms(stream: Restart, prefixes: Sequence[int], shift: int) -> Tensor:
    """Count the digits at `shift` of the magnitudes whose higher digits are the prefix: (T, 2²¹)."""
    size = 1 << DIGIT
    totals = torch.zeros(len(prefixes), size + 2, dtype=torch.int64)
    for x in stream():
        totals = totals.to(x.device)
        for update, prefix, total in zip(x, prefixes, totals, strict=True):
            digits = (update.abs().flatten().view(torch.int64) >> shift) - (prefix << DIGIT)
            # What has another prefix is counted below and above the digits, and forgotten.
            bins = digits.clamp_(-1, size).add_(1)
            total.scatter_add_(0, bins, bins.new_ones(()).expand_as(bins))
    return totals[:, 1:-1]


def keep_largest(x: Tensor, cuts: Sequence[Cut], ties: list[int]) -> Tensor:
    """Keep the entries of each update that a cut says, zero elsewhere, in a run of its rows.

    Args:
        x: (T, ...) the run.
        cuts: T cuts of the whole updates.
        ties: How many of the entries that equal a cut's value are left for this run and the next: in order of
            flat index. What is taken here is taken off.

    Returns:
        The run with what is kept.
    """
    kept = torch.empty_like(x)
    for t, (update, cut) in enumerate(zip(x, cuts, strict=True)):
        if cut.every:
            # hardshrink keeps what is above its bound.
            torch.hardshrink(update, math.nextafter(cut.value, 0.0), out=kept[t])
        else:
            magnitudes = update.abs().flatten()
            mask = magnitudes > cut.value
            equal = (magnitudes == cut.value).nonzero().squeeze(1)[: ties[t]]
            mask[equal] = True
            ties[t] -= len(equal)
            kept[t] = torch.where(mask.view(update.shape), update, 0.0)
    return kept
