"""Singular frames of many updates of one module at once, and what pairs of them have in common."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from riemerge.linalg import numerical_rank
from riemerge.merging.identifiability import compare_pairs
from riemerge.records.run_record import Overlap
from riemerge.updates.low_rank import LowRankUpdate


class Frames(NamedTuple):
    """Singular value decompositions of T updates of one module, padded with zeros to one rank R.

    The adapters are the second axis, so that what is summed over pairs of directions is contiguous.

    Attributes:
        left: Left singular vectors (R, T, m), float64.
        values: Singular values (R, T), descending along R.
        right: Right singular vectors (R, T, n).
        ranks: Numbers of directions (T,) above what rounding of the storage leaves, int64.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    ranks: Tensor

    @property
    def mask(self) -> Tensor:
        """1 for the directions that stand above rounding, 0 for others: (R, T) float64."""
        return (torch.arange(len(self.values)).unsqueeze(1) < self.ranks).to(self.values)


def decompose(updates: Sequence[LowRankUpdate], storage: Sequence[torch.dtype]) -> Frames:
    """Decompose T updates of one shape, whatever their ranks and gauges.

    Law: two thin QRs and one small SVD of each, batched over equal ranks, in float64: a Gram matrix of the
    factors would lose half of the digits to a bad gauge. The decomposition of one update does not depend on
    the others.

    Args:
        updates: At least one, all of one shape.
        storage: T dtypes in which they were stored (see `LowRankUpdate.numerical_rank`).
    """
    count, (m, n) = len(updates), updates[0].shape
    width = max(min(update.rank, m, n) for update in updates)
    left = torch.zeros(width, count, m, dtype=torch.float64)
    right = torch.zeros(width, count, n, dtype=torch.float64)
    values = torch.zeros(width, count, dtype=torch.float64)
    alike: dict[int, list[int]] = defaultdict(list)
    for place, update in enumerate(updates):
        alike[update.rank].append(place)
    for places in alike.values():
        some = [updates[place] for place in places]
        q, triangle = torch.linalg.qr(torch.stack([update.B.double() for update in some]))
        p, other = torch.linalg.qr(torch.stack([update.A.double().mT for update in some]))
        scales = torch.tensor([update.scale for update in some], dtype=torch.float64)
        u, sigma, vt = torch.linalg.svd(scales[:, None, None] * triangle @ other.mT, full_matrices=False)
        rank = sigma.shape[1]
        left[:rank, places] = (q @ u).permute(2, 0, 1)
        right[:rank, places] = (p @ vt.mT).permute(2, 0, 1)
        values[:rank, places] = sigma.mT
    rounding = torch.tensor([torch.finfo(dtype).eps for dtype in storage], dtype=torch.float64)
    columns = torch.tensor([update.rank for update in updates], dtype=torch.float64)
    arithmetic = 10.0 * torch.finfo(torch.float64).eps * math.sqrt(max(m, n))
    bounds = columns.sqrt() * rounding + arithmetic
    return Frames(left, values, right, numerical_rank(values.mT, 1.0, (bounds * values[:1]).mT))


def overlap_pairs(frames: Frames, pairs: Sequence[tuple[int, int]]) -> list[Overlap | None]:
    """Compare pairs of updates of one module, as `riemerge.merging.identifiability.overlap` does one by one.

    Args:
        frames: The T updates.
        pairs: Places of two updates, for each of P >= 1 pairs.

    Returns:
        The overlap of each pair; None where an update is zero.
    """
    first, second = torch.tensor(pairs).unbind(dim=1)
    mask, shape = frames.mask.unsqueeze(-1), (frames.left.shape[2], frames.right.shape[2])
    left, right = ((side * mask).permute(1, 2, 0)[None] for side in (frames.left, frames.right))
    sigma, ranks = frames.values.mT[None], frames.ranks[None]
    *fields, known = compare_pairs(left, right, sigma, ranks, first, second, shape)[:, 0].tolist()
    rows = zip(*fields, strict=True)
    overlaps = [Overlap(**dict(zip(Overlap.model_fields, row, strict=True))) for row in rows]
    return [overlap if counts else None for overlap, counts in zip(overlaps, known, strict=True)]
