"""The overlap of updates pair by pair, from their singular frames: the oracle of the batched comparison."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from riemerge.linalg import SVD
from riemerge.records.run_record import Overlap
from riemerge.updates import LowRankUpdate


def frames(update: LowRankUpdate, storage: torch.dtype | None = None) -> SVD:
    """Return the singular frames of an update, without the directions that are zero to round-off.

    Args:
        update: Any update.
        storage: The dtype in which it was stored, as in `LowRankUpdate.numerical_rank`.
    """
    canonical = update.to(dtype=torch.float64).balance()
    rank = canonical.numerical_rank(storage or update.dtype)
    left, right = canonical.B[:, :rank], canonical.A[:rank].mT
    sides = left.norm(dim=0), right.norm(dim=0)
    return SVD(left / sides[0], sides[0] * sides[1], right / sides[1])


def overlap(inputs: Sequence[SVD], shape: tuple[int, int] | None = None) -> Overlap | None:
    """Compare the subspaces of T inputs pair by pair, against the level of uniformly random subspaces.

    Inputs that are all zero have no subspaces and are left out.

    Law: invariant under rotations of both spaces; a function of the updates dW; share 1 for equal subspaces
    and, in expectation, at most 0 for random ones (there the mean square cosine is max(rᵢ, rⱼ) / n in n
    dimensions). Side by side, since a mean needs both: adapters that share the start of A alone share their
    row spaces, and their mean is as free as that of independent ones where they share nothing else.

    Args:
        inputs: Singular frames of the T inputs, in any common orthonormal bases.
        shape: (m, n) of the module, where the frames are given in bases of a smaller space.

    Returns:
        None for fewer than two inputs that are not all zero.
    """
    pairs = list(itertools.combinations([svd for svd in inputs if svd.values.numel()], 2))
    if not pairs:
        return None
    m, n = shape or (inputs[0].left.shape[0], inputs[0].right.shape[0])
    left = [_angles(first.left, second.left, m) for first, second in pairs]
    right = [_angles(first.right, second.right, n) for first, second in pairs]
    sides = list(zip(left, right, strict=True))
    return Overlap(
        left=_mean([side.mean for side in left]),
        right=_mean([side.mean for side in right]),
        left_random=_mean([side.level for side in left]),
        right_random=_mean([side.level for side in right]),
        share=_mean([min(_share(x.mean, x.level), _share(y.mean, y.level)) for x, y in sides]),
        weakest=_mean([max(_share(x.least, x.level), _share(y.least, y.level)) for x, y in sides]),
        cosine=_mean([_cosine(first, second) for first, second in pairs]),
    )


def overlap_of(
    inputs: Sequence[LowRankUpdate], shape: tuple[int, int], storage: Sequence[torch.dtype]
) -> Overlap | None:
    """Return the overlap of a module's inputs, stored in T dtypes (see `overlap`)."""
    return overlap([frames(update, dtype) for update, dtype in zip(inputs, storage, strict=True)], shape)


class _Angles(NamedTuple):
    """Cosines of the principal angles of two subspaces: RMS, the least, and the RMS of random subspaces."""

    mean: float
    least: float
    level: float


def _angles(first: Tensor, second: Tensor, width: int) -> _Angles:
    small, large = sorted((first.shape[1], second.shape[1]))
    cosines = torch.linalg.svdvals(first.mT @ second)
    return _Angles(float(cosines.norm()) / math.sqrt(small), float(cosines[-1]), math.sqrt(large / width))


def _cosine(first: SVD, second: SVD) -> float:
    """Cosine between two updates as vectors, from their singular factors."""
    crossed = (first.left.mT @ second.left) * (first.right.mT @ second.right)
    inner = (first.values.unsqueeze(-1) * crossed * second.values).sum()
    return float(inner / (first.values.norm() * second.values.norm()))


def _share(cosine: float, level: float) -> float:
    """0 at the random level, 1 for equal subspaces, also where a subspace fills everything."""
    room = 1.0 - level**2
    if room <= 1e-12:
        return 1.0
    return (cosine**2 - level**2) / room


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
