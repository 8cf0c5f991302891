"""The flat geometry: updates as matrices of one vector space, where a mean is a weighted sum."""

from __future__ import annotations

from riemerge.methods.stack import Evidence, Merged, Options, Stack
from riemerge.updates import LowRankUpdate, sum_updates


def weighted_sum(stack: Stack, options: Options) -> dict[str, Merged]:
    """Return Σ wᵢ dWᵢ for each module: exactly at rank Σ rᵢ, or cut to `options.rank` after summing.

    Law: linear in the updates and in the weights; truncation gives the nearest update of that rank in the
    Frobenius norm, and the share of the squared norm that it kept is recorded.
    """
    merged: dict[str, Merged] = {}
    for done, (module, updates) in enumerate(stack.modules.items()):
        merged[module] = _truncated(sum_updates(updates, stack.weights), options.rank)
        if options.progress is not None:
            options.progress(done + 1, len(stack.modules), "summed")
    return merged


def _truncated(total: LowRankUpdate, rank: int | None) -> Merged:
    if rank is None or rank >= total.rank:
        return Merged(total, Evidence("EXACT"))
    cut = total.truncate(rank)
    whole = total.norm()
    kept = (cut.norm() / whole) ** 2 if whole > 0 else 1.0
    return Merged(cut, Evidence("EXACT", energy_kept=min(kept, 1.0)))
