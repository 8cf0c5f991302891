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
    Outlier,
    Repetition,
    Unusual,
)
from riemerge.study.collection.totals import Pairs

NEAR = 0.2
"""Share of the larger norm up to which two updates that are no copies are nearly the same."""

NEIGHBOURS = 5
"""Neighbours that are named of each adapter."""

OUTLYING = 3.5
"""Robust standard deviations from which on an adapter is an outlier (Iglewicz and Hoaglin 1993)."""

_NEAR_EACH = 10
# Rounding errors of both adapters, twice their size. One that is rounded so badly that it hides more is none.
_ROUNDINGS, _MOST_ROUNDING = 2.0, 0.05
# Cosines come from inner products: sin² = 1 − cos² has an error of about 1e-15.
_ARITHMETIC = 1e-7
# No spread is so small that less than this is unusual: degrees, and log ‖dW‖ (a factor of 2 at the bound).
_LEAST_SPREAD = {"direction": 5.0, "norm": 0.2}
_LEAST_COUNT = 5


def find_copies(
    names: Sequence[str], files: Sequence[str], norms: Tensor, rounding: Tensor, pairs: Pairs
) -> tuple[tuple[CopyGroup, ...], list[int]]:
    """Find the adapters whose dW are multiples of each other, within twice what rounding did to them.

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

    noise = (rounding / norms).clamp_max(_MOST_ROUNDING)
    bounds = _ROUNDINGS * torch.hypot(noise.unsqueeze(1), noise) + _ARITHMETIC
    sines = (1.0 - pairs.cosine.square()).clamp_min(0.0).sqrt()
    _, labels = connected_components(np.asarray(sines <= bounds), directed=False)
    first: dict[int, int] = {}
    stands = [first.setdefault(label, place) for place, label in enumerate(labels.tolist())]
    groups = []
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
    names: Sequence[str], stands: Sequence[int], norms: Tensor, pairs: Pairs
) -> tuple[Outlier, ...]:
    """Find adapters far from their nearest neighbour, or of unusual norm, as the others go.

    Law: the score is the distance from the median over 1.4826 times the median distance from it; copies count
    once. Fewer than five adapters have no outliers.

    Args:
        names: Names of the T adapters.
        stands: For each adapter the place of the one that stands for it.
        norms: ‖dW‖ of each (T,), not 0.
        pairs: Tables of all pairs.

    Source: Iglewicz and Hoaglin 1993.
    """
    some = torch.tensor(sorted(set(stands)))
    if len(some) < _LEAST_COUNT:
        return ()
    nearest = pairs.cosine[some][:, some].fill_diagonal_(-1.0).amax(dim=1)
    angles, lengths = nearest.acos().rad2deg(), norms[some]
    outliers = []
    measures: list[tuple[Unusual, Tensor, Tensor]] = [
        ("direction", angles, angles),
        ("norm", lengths.log(), lengths),
    ]
    for measure, values, shown in measures:
        apart = values - values.median()
        spread = max(1.4826 * float(apart.abs().median()), _LEAST_SPREAD[measure])
        scores = apart / spread
        if measure == "norm":
            scores = scores.abs()
        outliers += [
            Outlier(
                name=names[int(some[k])],
                measure=measure,
                value=float(shown[k]),
                usual=float(shown.median()),
                score=float(scores[k]),
            )
            for k in (scores > OUTLYING).nonzero().flatten().tolist()
        ]
    return tuple(sorted(outliers, key=lambda one: (-one.score, one.name, one.measure)))
