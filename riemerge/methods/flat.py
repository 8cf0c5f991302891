"""The flat geometry: updates as matrices of one vector space, where a mean is a weighted sum."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from riemerge.errors import NumericalError
from riemerge.methods.reduction import in_order, reduced
from riemerge.methods.stack import Evidence, Merged, Options, Small, Stack
from riemerge.updates import LowRankUpdate, sum_updates


def weighted_sum(stack: Stack, options: Options) -> Iterator[tuple[str, Merged]]:
    """Return Σ wᵢ dWᵢ for each module: exactly at rank Σ rᵢ, or cut to `options.rank` after summing.

    Law: linear in the updates and in the weights; truncation gives the nearest update of that rank in the
    Frobenius norm, and the share of the squared norm that it kept is recorded.
    """
    names = sorted(stack.modules)
    merged = in_order(partial(_summed, stack, options), names, options.threads)
    for done, (module, one) in enumerate(zip(names, merged, strict=True), 1):
        if options.progress is not None:
            options.progress("merge", done, len(names), "summed")
        yield module, one


def _summed(stack: Stack, options: Options, module: str) -> Merged:
    one = reduced(stack, options, module)
    if one.problems:
        raise NumericalError(one.problems)
    total = sum_updates(one.edited, stack.weights)
    small, evidence = _truncated(total, options.rank)
    return Merged(one.span.lift(small), evidence, Small(small, one.inputs))


def _truncated(total: LowRankUpdate, rank: int | None) -> tuple[LowRankUpdate, Evidence]:
    if rank is None or rank >= total.rank:
        return total.balance(), Evidence("EXACT")
    return total.truncate(rank), Evidence("EXACT", energy_kept=total.energy_kept(rank))
