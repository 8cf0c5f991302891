"""Singular frames of many updates of one module at once, and what pairs of them have in common."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from riemerge.linalg import numerical_rank
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

    @property
    def squares(self) -> Tensor:
        """‖dW‖² of each update (T,)."""
        return self.values.square().sum(dim=0)


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
    rounding = [
        math.sqrt(update.rank) * torch.finfo(dtype).eps
        for update, dtype in zip(updates, storage, strict=True)
    ]
    arithmetic = 10.0 * torch.finfo(torch.float64).eps * math.sqrt(max(m, n))
    bounds = torch.tensor(rounding, dtype=torch.float64) + arithmetic
    return Frames(left, values, right, numerical_rank(values.mT, 1.0, (bounds * values[:1]).mT))


class PairOverlaps(NamedTuple):
    """The fields of `Overlap` for P pairs of updates of one module, each (P,), and which pairs have them.

    Attributes:
        left: RMS cosines of the column spaces.
        right: RMS cosines of the row spaces.
        left_random: RMS cosines of random column spaces.
        right_random: RMS cosines of random row spaces.
        share: Shares of the RMS cosines above the random ones, on the side that shares less.
        weakest: Shares of the smallest cosines, on the side where they are larger.
        cosine: Cosines of the updates as vectors.
        known: Whether both updates are not zero, boolean.
    """

    left: Tensor
    right: Tensor
    left_random: Tensor
    right_random: Tensor
    share: Tensor
    weakest: Tensor
    cosine: Tensor
    known: Tensor

    def records(self) -> list[Overlap | None]:
        """Return the overlap of each pair; None where an update is zero."""
        *fields, known = (field.tolist() for field in self)
        rows = zip(*fields, strict=True)
        names = Overlap.model_fields
        return [
            Overlap(**dict(zip(names, row, strict=True))) if there else None
            for row, there in zip(rows, known, strict=True)
        ]


def overlap_pairs(frames: Frames, pairs: Sequence[tuple[int, int]]) -> PairOverlaps:
    """Compare pairs of updates of one module, as `riemerge.merging.identifiability.overlap` does one by one.

    Args:
        frames: The T updates.
        pairs: Places of two updates, for each of P >= 1 pairs.
    """
    first, second = torch.tensor(pairs).unbind(dim=1)
    width, count, m = frames.left.shape
    n = frames.right.shape[2]
    blocks = [
        (flat @ flat.mT).view(width, count, width, count)[:, first, :, second]
        for flat in (frames.left.reshape(-1, m), frames.right.reshape(-1, n))
    ]
    mask, ranks = frames.mask.mT, frames.ranks
    small, large = torch.minimum(ranks[first], ranks[second]), torch.maximum(ranks[first], ranks[second])
    known = small > 0
    inside = mask[first].unsqueeze(2) * mask[second].unsqueeze(1)
    values = frames.values.mT
    terms = values[first].unsqueeze(2) * blocks[0] * blocks[1] * values[second].unsqueeze(1)
    norms = frames.squares.sqrt()
    lengths = (norms[first] * norms[second]).clamp_min(torch.finfo(torch.float64).tiny)
    means, levels, shares, least = [], [], [], []
    for block, size in zip(blocks, (m, n), strict=True):
        cosines = torch.linalg.svdvals(block * inside)
        smallest = cosines.gather(1, (small.unsqueeze(1) - 1).clamp_min(0)).squeeze(1)
        square = cosines.square().sum(dim=1) / small.clamp_min(1)
        level = large.double() / size
        means.append(square.sqrt())
        levels.append(level.sqrt())
        shares.append(_share(square, level))
        least.append(_share(smallest.square(), level))
    return PairOverlaps(
        left=means[0],
        right=means[1],
        left_random=levels[0],
        right_random=levels[1],
        share=torch.minimum(*shares),
        weakest=torch.maximum(*least),
        cosine=terms.sum(dim=(1, 2)) / lengths,
        known=known,
    )


def _share(square: Tensor, level: Tensor) -> Tensor:
    """0 at the random level, 1 for equal subspaces, also where a subspace fills everything."""
    room = 1.0 - level
    return torch.where(room <= 1e-12, 1.0, (square - level) / room.clamp_min(1e-12))
