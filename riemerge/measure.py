"""Measuring a merge: norms and distances of each module, and whether the inputs share their subspaces."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from riemerge.methods import Evidence
from riemerge.record import Determined, ModuleRow, Overlap, Totals
from riemerge.updates import LowRankUpdate, sum_updates

# Agreement of inputs from which on they determine their mean. Measured (benchmarks/identifiability.py, six
# adapters of rank 16): two starts of the solver end in updates that differ by 113 % for independent adapters
# (agreement 0), by 37 % where only the start of A is shared (0), by 38 % where half of the directions are
# (0.5), and by 1e-9 for close ones (0.98). Equal subspaces with independent cores (overlap 1, cosine 0.1) do
# not determine it either.
DETERMINED_FROM = 0.75
PARTLY_FROM = 0.25


class Frames(NamedTuple):
    """Singular frames (m, r), (n, r) and singular values (r,) of one update, r its numerical rank."""

    left: Tensor
    right: Tensor
    values: Tensor


def frames(update: LowRankUpdate) -> Frames:
    """Return the singular frames of an update, without the directions that are zero to round-off."""
    canonical = update.to(dtype=torch.float64).balance()
    rank = canonical.numerical_rank(update.dtype)
    left, right = canonical.B[:, :rank], canonical.A[:rank].mT
    sides = left.norm(dim=0), right.norm(dim=0)
    return Frames(left / sides[0], right / sides[1], sides[0] * sides[1])


def overlap(inputs: Sequence[Frames]) -> Overlap | None:
    """Compare the subspaces of T inputs pair by pair, against the level of uniformly random subspaces.

    Law: invariant under rotations of both spaces; a function of the updates dW; share 1 for equal subspaces
    and, in expectation, at most 0 for random ones (there the mean square cosine is max(rᵢ, rⱼ) / n in n
    dimensions). Side by side, since a mean needs both: adapters that share the start of A alone share their
    row spaces, and their mean is as free as that of independent ones.

    Returns:
        None for fewer than two inputs, or where one of them is all zero.
    """
    pairs = list(itertools.combinations(inputs, 2))
    if not pairs or any(frame.left.shape[1] == 0 for frame in inputs):
        return None
    left = [_cosine(one.left, other.left) for one, other in pairs]
    right = [_cosine(one.right, other.right) for one, other in pairs]
    return Overlap(
        left=_mean([cosine for cosine, _ in left]),
        right=_mean([cosine for cosine, _ in right]),
        left_random=_mean([level for _, level in left]),
        right_random=_mean([level for _, level in right]),
        share=_mean([min(_share(*x), _share(*y)) for x, y in zip(left, right, strict=True)]),
        cosine=_mean([_angle(one, other) for one, other in pairs]),
    )


def mean_overlap(overlaps: Sequence[Overlap | None]) -> Overlap | None:
    """Return the mean over those modules that have an overlap; None where none has."""
    known = [one for one in overlaps if one is not None]
    if not known:
        return None
    return Overlap(**{name: _mean([getattr(one, name) for one in known]) for name in Overlap.model_fields})


def determined(found: Overlap | None) -> Determined | None:
    """Say whether inputs with this overlap determine their Fréchet mean."""
    if found is None:
        return None
    agreement = min(found.share, found.cosine)
    return "yes" if agreement >= DETERMINED_FROM else "partly" if agreement >= PARTLY_FROM else "no"


def module_row(
    module: str,
    merged: LowRankUpdate,
    inputs: Sequence[LowRankUpdate],
    evidence: Evidence,
    order: Sequence[int],
) -> ModuleRow:
    """Measure one merged module.

    Args:
        module: Its name.
        merged: The merged update as written.
        inputs: The T updates that were merged, in the order of the stack.
        evidence: What the method says.
        order: Places in the stack, in the order in which the record names the inputs.
    """
    norms = [update.norm() for update in inputs]
    apart = [_relative(merged, update, norm) for update, norm in zip(inputs, norms, strict=True)]
    found = overlap([frames(update) for update in inputs])
    return ModuleRow(
        module=module,
        shape=merged.shape,
        input_ranks=tuple(inputs[i].rank for i in order),
        rank=merged.rank,
        status=evidence.status,
        cost=evidence.cost,
        gradient_norm=evidence.gradient_norm,
        horizontality=evidence.horizontality,
        passes=evidence.passes,
        distances=None if evidence.distances is None else tuple(evidence.distances[i] for i in order),
        norm=merged.norm(),
        input_norms=tuple(norms[i] for i in order),
        relative_distances=tuple(apart[i] for i in order),
        energy_kept=evidence.energy_kept,
        overlap=found,
        determined=determined(found),
    )


def totals(rows: Sequence[ModuleRow]) -> Totals:
    """Put all modules together, as if they were one block-diagonal module."""
    costs = [row.cost for row in rows if row.cost is not None]
    gradients = [row.gradient_norm for row in rows if row.gradient_norm is not None]
    apart = [row.distances for row in rows if row.distances is not None]
    norms = [math.hypot(*column) for column in zip(*(row.input_norms for row in rows), strict=True)]
    absolute = [
        math.hypot(*(d * norm for d, norm in zip(column, lengths, strict=True) if d is not None))
        for column, lengths in zip(
            zip(*(row.relative_distances for row in rows), strict=True),
            zip(*(row.input_norms for row in rows), strict=True),
            strict=True,
        )
    ]
    common = mean_overlap([row.overlap for row in rows])
    return Totals(
        modules=len(rows),
        parameters=sum(sum(row.shape) * row.rank for row in rows),
        cost=math.fsum(costs) if costs else None,
        gradient_norm=math.hypot(*gradients) if gradients else None,
        distances=tuple(math.hypot(*column) for column in zip(*apart, strict=True)) if apart else None,
        norm=math.hypot(*(row.norm for row in rows)),
        input_norms=tuple(norms),
        relative_distances=tuple(
            d / norm if norm > 0 else None for d, norm in zip(absolute, norms, strict=True)
        ),
        statuses=dict(sorted(Counter(row.status for row in rows).items())),
        overlap=common,
        determined=determined(common),
        determined_modules=dict(sorted(Counter(row.determined for row in rows if row.determined).items())),
    )


def _relative(merged: LowRankUpdate, update: LowRankUpdate, norm: float) -> float | None:
    return sum_updates([merged, update], [1.0, -1.0]).norm() / norm if norm > 0 else None


def _cosine(one: Tensor, other: Tensor) -> tuple[float, float]:
    """RMS cosine of the principal angles of two subspaces, and its level for random ones."""
    small, large = sorted((one.shape[1], other.shape[1]))
    return float((one.mT @ other).norm()) / math.sqrt(small), math.sqrt(large / one.shape[0])


def _angle(one: Frames, other: Frames) -> float:
    """Cosine between two updates as vectors, from their singular factors."""
    crossed = (one.left.mT @ other.left) * (one.right.mT @ other.right)
    inner = (one.values.unsqueeze(-1) * crossed * other.values).sum()
    return float(inner / (one.values.norm() * other.values.norm()))


def _share(cosine: float, level: float) -> float:
    """0 at the random level, 1 for equal subspaces, also where a subspace fills everything."""
    room = 1.0 - level**2
    return (cosine**2 - level**2) / room if room > 1e-12 else 1.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
