"""Relations of the adapters of a collection: copies, near duplicates, neighbours, and what is unusual."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from riemerge.records.collection_record import (
    CopyGroup,
    Likeness,
    NearPair,
    Neighbour,
    Opposition,
    Outlier,
    Repetition,
    Unusual,
)
from riemerge.study.collection.advice import RELATED
from riemerge.study.collection.totals import Pairs

NEAR = 0.2
"""Share of the larger norm up to which two updates that are no copies are nearly the same."""

NEIGHBOURS = 5
"""Neighbours that are named of each adapter."""

OUTLYING = 3.5
"""Robust standard deviations from which on an adapter is an outlier (Iglewicz and Hoaglin 1993)."""

_NEAR_EACH = 10
# The estimate of rounding is its size at worst, numbers just above powers of 2: of others it is 0.72 of that
# (measured: bfloat16 copies of Gaussian factors); steps of training 1.5 times apart were once called copies.
# An adapter that is rounded so badly that it hides more than the second is no copy.
_ROUNDINGS, _MOST_ROUNDING = 1.1, 0.05
# Cosines come from inner products: sin² = 1 − cos² has an error of about 1e-15.
_ARITHMETIC = 1e-7
# No spread is so small that less than this is unusual: degrees, and log ‖dW‖ (a factor of 2 at the bound).
_LEAST_SPREAD = {"direction": 5.0, "norm": 0.2}
_LEAST_COUNT = 5


def find_copies(
    names: Sequence[str], files: Sequence[str], norms: Tensor, rounding: Tensor, pairs: Pairs
) -> tuple[tuple[CopyGroup, ...], list[int]]:
    """Find the adapters whose dW are positive multiples of each other, within what rounding did to them.

    Law: of each group the adapter that is rounded least is kept, among those of its usual norm: that of most,
    or of the norm nearest to the collection's median. A negative multiple is no copy: see `find_opposed`.

    Args:
        names: Names of the T adapters.
        files: What the tensors of each adapter are: equal for equal files.
        norms: ‖dW‖ of each (T,), not 0.
        rounding: Norm of what rounding to the stored dtype adds to each dW (T,).
        pairs: Tables of all pairs.

    Returns:
        The groups, and for each adapter the place of the one that stands for it.
    """
    from scipy.sparse.csgraph import connected_components  # an inspection needs none of scipy

    sines, bounds, noise = _compare(norms, rounding, pairs)
    alike = (sines <= bounds) & (pairs.cosine > 0)
    _, labels = connected_components(np.asarray(alike), directed=False)
    parts: dict[int, list[int]] = {}
    for place, label in enumerate(labels.tolist()):
        parts.setdefault(label, []).append(place)
    stands, groups = list(range(len(names))), []
    for places in parts.values():
        kept = _choose(places, norms, noise, bounds)
        for place in places:
            stands[place] = kept
    for kept in sorted({stand for place, stand in enumerate(stands) if stand != place}):
        repetitions = []
        for place in (place for place, stand in enumerate(stands) if stand == kept != place):
            factor = float(pairs.cosine[place, kept] * norms[place] / norms[kept])
            likeness: Likeness = "scaled"
            if abs(factor - 1.0) <= float(bounds[place, kept]):
                likeness, factor = "refactored", 1.0
                if files[place] == files[kept]:
                    likeness = "copy"
            distance = float(sines[place, kept])
            if likeness != "scaled":
                distance = float(pairs.distance[place, kept] / norms[place])
            repetitions.append(
                Repetition(
                    name=names[place],
                    likeness=likeness,
                    factor=factor,
                    distance=distance,
                    rounding=float(torch.hypot(noise[place], noise[kept])),
                )
            )
        groups.append(CopyGroup(kept=names[kept], repetitions=tuple(repetitions)))
    return tuple(groups), stands


def find_opposed(
    names: Sequence[str], stands: Sequence[int], norms: Tensor, rounding: Tensor, pairs: Pairs
) -> tuple[Opposition, ...]:
    """Find adapters that are negative multiples of another, within what rounding did to both.

    Law: of two, the one of smaller mean cosine with all is the opposed one; of equal ones the later.

    Args:
        names: Names of the T adapters.
        stands: For each adapter the place of the one that stands for it: pairs of others are left out.
        norms: ‖dW‖ of each (T,), not 0.
        rounding: Norm of what rounding to the stored dtype adds to each dW (T,).
        pairs: Tables of all pairs.
    """
    sines, bounds, _ = _compare(norms, rounding, pairs)
    some = torch.tensor(sorted(set(stands)))
    apart = ((sines <= bounds) & (pairs.cosine < 0))[some][:, some].triu()
    means = pairs.cosine[some][:, some].mean(dim=1)
    opposed = []
    for pair in apart.nonzero().tolist():
        of, place = (int(some[k]) for k in sorted(pair, key=lambda k: (-float(means[k]), k)))
        factor = float(pairs.cosine[place, of] * norms[place] / norms[of])
        opposed.append(
            Opposition(name=names[place], of=names[of], factor=factor, distance=float(sines[place, of]))
        )
    return tuple(opposed)


def _compare(norms: Tensor, rounding: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sines of all pairs, how large rounding makes them at most, and the rounding of each."""
    noise = (rounding / norms).clamp_max(_MOST_ROUNDING)
    bounds = _ROUNDINGS * torch.hypot(noise.unsqueeze(1), noise) + _ARITHMETIC
    return (1.0 - pairs.cosine.square()).clamp_min(0.0).sqrt(), bounds, noise


def _choose(places: Sequence[int], norms: Tensor, noise: Tensor, bounds: Tensor) -> int:
    """Return the adapter that stands for its multiples: rounded least, among those of the usual norm."""
    equal = {i: [j for j in places if abs(norms[i] / norms[j] - 1.0) <= bounds[i, j]] for i in places}
    unusual = (norms.log() - norms.log().median()).abs()
    usual = min(places, key=lambda i: (-len(equal[i]), float(unusual[i]), i))
    return min(equal[usual], key=lambda i: (float(noise[i]), i))


def find_near(
    names: Sequence[str], stands: Sequence[int], pairs: Pairs, relative: Tensor
) -> tuple[NearPair, ...]:
    """Find pairs that are nearly the same and no copies, among the ten nearest of each adapter.

    Args:
        names: Names of the T adapters.
        stands: For each adapter the place of the one that stands for it: pairs of others are left out.
        pairs: Tables of all pairs.
        relative: ‖dW − dW'‖ / max(‖dW‖, ‖dW'‖) (T, T).
    """
    some = torch.tensor(sorted(set(stands)))
    table = relative[some][:, some].fill_diagonal_(math.inf)
    nearest = table.topk(min(_NEAR_EACH, len(some)), largest=False)
    rows, columns = (nearest.values <= NEAR).nonzero(as_tuple=True)
    found = {
        tuple(sorted((int(some[i]), int(some[nearest.indices[i, k]]))))
        for i, k in zip(rows.tolist(), columns.tolist(), strict=True)
    }
    return tuple(
        NearPair(
            first=names[i], second=names[j], cosine=float(pairs.cosine[i, j]), distance=float(relative[i, j])
        )
        for i, j in sorted(found, key=lambda pair: (float(relative[pair]), pair))
    )


def find_neighbours(
    names: Sequence[str], pairs: Pairs, relative: Tensor
) -> tuple[tuple[Neighbour, ...], ...]:
    """Return the adapters of largest cosine with each adapter, copies among them, the nearest first."""
    order = pairs.cosine.clone().fill_diagonal_(-math.inf).sort(descending=True, stable=True).indices
    return tuple(
        tuple(
            Neighbour(name=names[j], cosine=float(pairs.cosine[i, j]), distance=float(relative[i, j]))
            for j in row
        )
        for i, row in enumerate(order[:, : min(NEIGHBOURS, len(names) - 1)].tolist())
    )


def find_outliers(
    names: Sequence[str],
    stands: Sequence[int],
    norms: Tensor,
    pairs: Pairs,
    relative: Tensor,
    labels: Tensor,
) -> tuple[Outlier, ...]:
    """Find adapters far from their nearest neighbour, or of unusual norm, as the others go.

    Law: the score is the distance from the median over 1.4826 times the median distance from it; copies count
    once. Near pairs set no usual angle where an adapter has other relatives, and no adapter of mean cosine
    `RELATED` with its cluster is far from all. Fewer than five adapters have no outliers.

    Args:
        names: Names of the T adapters.
        stands: For each adapter the place of the one that stands for it.
        norms: ‖dW‖ of each (T,), not 0.
        pairs: Tables of all pairs.
        relative: ‖dW − dW'‖ / max(‖dW‖, ‖dW'‖) (T, T).
        labels: Clusters (T,).

    Source: Iglewicz and Hoaglin 1993.
    """
    some = torch.tensor(sorted(set(stands)))
    if len(some) < _LEAST_COUNT:
        return ()
    cosine = pairs.cosine[some][:, some].fill_diagonal_(-1.0)
    nearest = cosine.amax(dim=1)
    # Steps of one run are nearer than any relatives: they would make outliers of all others.
    distant = cosine.masked_fill(relative[some][:, some] <= NEAR, -1.0).amax(dim=1)
    usual = torch.where(distant >= RELATED, distant, nearest).acos().rad2deg()
    beside = (labels[some].unsqueeze(1) == labels[some]).fill_diagonal_(False)
    means = (cosine * beside).sum(dim=1) / beside.sum(dim=1).clamp_min(1)
    angles, lengths = nearest.acos().rad2deg(), norms[some]
    outliers = []
    measures: list[tuple[Unusual, Tensor, Tensor, Tensor]] = [
        ("direction", angles, usual, angles),
        ("norm", lengths.log(), lengths.log(), lengths),
    ]
    for measure, values, common, shown in measures:
        middle = common.median()
        spread = max(1.4826 * float((common - middle).abs().median()), _LEAST_SPREAD[measure])
        scores, typical = (values - middle) / spread, float(middle)
        if measure == "norm":
            scores, typical = scores.abs(), float(shown.median())
        else:
            scores = scores.masked_fill(means >= RELATED, 0.0)
        outliers += [
            Outlier(
                name=names[int(some[k])],
                measure=measure,
                value=float(shown[k]),
                usual=typical,
                score=float(scores[k]),
            )
            for k in (scores > OUTLYING).nonzero().flatten().tolist()
        ]
    return tuple(sorted(outliers, key=lambda one: (-one.score, one.name, one.measure)))
