"""Sums over pairs of adapters of one module: inner products of dW, squared cosines of both spaces."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from riemerge.study.collection.frames import Frames
from riemerge.study.collection.tiles import Tiles


class Facts(NamedTuple):
    """What T adapters are in one module, and what each two of them have in common there.

    Attributes:
        inner: ⟨dW, dW'⟩ (T, T), float64.
        left: ‖UᵀU'‖² of the left singular vectors above rounding (T, T), float32.
        right: ‖VᵀV'‖² of the right singular vectors above rounding (T, T), float32.
        values: Singular values (T, R), descending, float64.
        ranks: Numbers of singular values above rounding (T,), int64.
        rounding: Norm of what rounding to the stored dtype adds to dW (T,), about; float64.
    """

    inner: Tensor
    left: Tensor
    right: Tensor
    values: Tensor
    ranks: Tensor
    rounding: Tensor


def compare_fresh(tiles: Tiles) -> Facts:
    """Compare each fresh adapter of a module with all adapters.

    Law: what is not of a fresh adapter is 0, and so is what is of one that cannot be read. Every tile is read
    once where the fresh ones fit the memory, else once for each run of those that do. Each number is a
    function of its two tiles.

    Args:
        tiles: The T adapters.

    Cost: two products of the frames of two tiles for each pair of tiles.
    """
    ends = torch.tensor([0, *map(len, tiles.places)]).cumsum(dim=0).tolist()
    spans = [slice(*pair) for pair in pairwise(ends)]
    count = ends[-1]
    inner = torch.zeros(count, count, dtype=torch.float64)
    left, right = torch.zeros(2, count, count)
    ranks = torch.zeros(count, dtype=torch.int64)
    values: dict[int, Tensor] = {}
    for run in tiles.runs(tiles.first):
        tiles.hold(run)
        for index in run:
            values[index], ranks[spans[index]] = tiles[index].values, tiles[index].ranks
        readable = [i for index in run for i in tiles.places[index] if i not in tiles.faults]
        for other in range(run.start, len(tiles) * bool(readable)):
            tile = tiles[other]
            for index in range(run.start, min(other + 1, run.stop)):
                rows, columns = spans[index], spans[other]
                for whole, block in zip((inner, left, right), _compare(tiles[index], tile), strict=True):
                    whole[rows, columns] = block
                    whole[columns, rows] = block.mT
    width = max((len(sigma) for sigma in values.values()), default=0)
    sigmas = torch.zeros(count, width, dtype=torch.float64)
    for index, sigma in values.items():
        sigmas[spans[index], : len(sigma)] = sigma.mT
    rounding = torch.zeros(count, dtype=torch.float64)
    for place, norm in tiles.rounding.items():
        rounding[place] = norm
    back = torch.tensor([i for places in tiles.places for i in places]).argsort()
    inner, left, right = (table[back][:, back] for table in (inner, left, right))
    return Facts(inner, left, right, sigmas[back], ranks[back], rounding)


def _compare(first: Frames, second: Frames) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inner products and the squared cosines of both spaces, (T, S) each, of two tiles."""
    axes = (*first.values.shape, *second.values.shape)
    u, v = (
        (one.flatten(end_dim=1) @ other.flatten(end_dim=1).mT).view(axes)
        for one, other in ((first.left, second.left), (first.right, second.right))
    )
    masks = first.mask, second.mask
    return (
        _contract(u * v, first.values, second.values),
        _contract(u.square_(), *masks),
        _contract(v.square_(), *masks),
    )


def _contract(products: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Sum products (R, T, Q, S) with weights (R, T) and (Q, S) over both axes of directions, R and Q."""
    # Contiguous sums one axis after the other: a third of the time of one sum over both.
    products *= rows[..., None, None]
    half = products.sum(dim=0)
    half *= columns
    return half.sum(dim=1)
