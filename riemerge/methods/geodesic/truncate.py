"""Edits: what is done to each update before the mean is taken."""

from __future__ import annotations

from riemerge.errors import NumericalError
from riemerge.methods.stack import Options
from riemerge.updates.low_rank import LowRankUpdate


def truncate(update: LowRankUpdate, options: Options) -> LowRankUpdate:
    """Return the update cut to its `options.rank` leading singular values; as it is when no rank is asked.

    Law: the result is the nearest update of that rank in the Frobenius norm (Eckart & Young 1936); an update
    that already has that many columns is returned unchanged.

    Raises:
        NumericalError: The rank asked for is above that of the update.
    """
    if not isinstance(options.rank, int) or options.rank == update.rank:
        return update
    if options.rank > min(update.rank, *update.shape):
        most = min(update.rank, *update.shape)
        raise NumericalError(f"its rank is at most {most}, below the rank {options.rank} asked for")
    return update.truncate(options.rank)
