"""Edits: what is done to each update before the mean is taken."""

from __future__ import annotations

from riemerge.errors import NumericalError
from riemerge.methods.stack import Options
from riemerge.updates import LowRankUpdate


def truncate(update: LowRankUpdate, options: Options) -> LowRankUpdate:
    """Return the update cut to its `options.rank` leading singular values; as it is when no rank is asked.

    Law: the result is the nearest update of that rank in the Frobenius norm (Eckart & Young 1936); an update
    that already has that many columns is returned unchanged.

    Raises:
        NumericalError: The rank asked for is above the numerical rank.
    """
    if options.rank is None:
        return update
    numerical = update.numerical_rank()
    if options.rank > numerical:
        raise NumericalError(f"its numerical rank is {numerical}, below the rank {options.rank} asked for")
    return update if update.rank == options.rank else update.truncate(options.rank)
