"""Exact order statistics of magnitudes: the k largest entries of one tensor, or of a stream of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

# The magnitudes of float64 numbers, read as integers of 63 bits, keep their order: three digits of 21 bits.
DIGIT = 21
SHIFTS = (2 * DIGIT, DIGIT, 0)


def top_mask(x: Tensor, k: int) -> Tensor:
    """Return where the k entries of largest magnitude of one tensor are, exactly k of them.

    Law: no entry outside is larger in magnitude than one inside; of equal ones at the boundary those of lower
    flat index are inside. So the masks of growing k are nested, and f(−x) = f(x).

    Args:
        x: Any shape, float64.
        k: From 0 to the size; more is all of it.

    Returns:
        Booleans of the shape of `x`.

    Cost: O(size), no sort.
    """
    if k >= x.numel() or k <= 0:
        return torch.full_like(x, k > 0, dtype=torch.bool)
    magnitudes = x.abs().flatten()
    threshold = magnitudes.kthvalue(magnitudes.numel() - k + 1).values
    return above(x, threshold, k - int((magnitudes > threshold).sum()))


def above(x: Tensor, threshold: Tensor, ties: int) -> Tensor:
    """Return where the magnitudes of one tensor are above a threshold, and the first `ties` that equal it.

    Args:
        x: Any shape.
        threshold: A 0-d tensor on the device of `x`.
        ties: How many of the entries that equal the threshold count, in order of flat index; where there are
            fewer, all.

    Returns:
        Booleans of the shape of `x`.
    """
    magnitudes = x.abs().flatten()
    mask = magnitudes > threshold
    mask[(magnitudes == threshold).nonzero().squeeze(1)[:ties]] = True
    return mask.view(x.shape)


def kth_largest(
    stream: Callable[[], Iterator[Tensor]], shares: Sequence[float]
) -> tuple[Tensor, tuple[int, ...]]:
    """Find each model's k-th largest magnitude over a stream of tensors, without keeping any of them.

    Law: with k = max(1, ⌊share · number of entries⌋) the value is that of sorting all magnitudes, bit for
    bit, whatever the order of the stream and however it is cut into tensors. A radix selection (most
    significant digit first): three passes over the stream, and 2²¹ counts (16 MiB) for each model; two where
    no number has a third digit, as differences of half precision have none.

    Args:
        stream: Starts the stream anew: (T, ...) float64 tensors, the same in each pass, not all empty.
        shares: T shares of all entries, above 0 and at most 1.

    Returns:
        (T,) thresholds, float64 on the CPU, and for each how many entries that equal it belong to the k
        largest (at least 1).
    """
    prefixes, ranks, ties = ([0] * len(shares) for _ in range(3))
    low = 0  # the greatest last digit of all numbers

    def watch() -> Iterator[Tensor]:
        nonlocal low
        for x in stream():
            if x.numel():
                low = max(low, int((x.view(torch.int64) & ((1 << DIGIT) - 1)).max()))
            yield x

    for shift in SHIFTS:
        if shift == 0 == low:
            prefixes = [prefix << DIGIT for prefix in prefixes]
            break
        source = watch if shift == SHIFTS[0] else stream
        for model, histogram in enumerate(_histograms(source, prefixes, shift)):
            up_to = histogram.cumsum(0)
            if shift == SHIFTS[0]:
                size = int(up_to[-1])
                ranks[model] = size - max(1, int(shares[model] * size)) + 1
            digit = int(torch.searchsorted(up_to, ranks[model]))
            count = int(histogram[digit])
            # From now on the rank is that among the entries of the longer prefix, from the smallest, from 1.
            ranks[model] -= int(up_to[digit]) - count
            ties[model] = count - ranks[model] + 1
            prefixes[model] = (prefixes[model] << DIGIT) | digit
    return torch.tensor(prefixes, dtype=torch.int64).view(torch.float64), tuple(ties)


def _histograms(stream: Callable[[], Iterator[Tensor]], prefixes: Sequence[int], shift: int) -> Tensor:
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
