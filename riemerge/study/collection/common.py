"""Directions that all adapters of a module have in common, and the energy that stays in them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from riemerge.study.collection.frames import Frames
from riemerge.study.collection.tiles import Tiles

MOST_DIRECTIONS = 256
"""Common directions a side that are looked for at most."""

# Up to this width the directions are those of a matrix; above, of an iteration on blocks.
_WIDTH = 2048
_SPARE, _ROUNDS, _SEED = 32, 3, 0


class Kept(NamedTuple):
    """Energy of a module that stays in k common directions a side.

    Attributes:
        directions: Numbers k of directions: powers of 2 up to the first that takes in all that there are.
        energies: Σ ‖Pᵀ dW Q‖² over the weighted adapters, for each k.
        energy: Σ ‖dW‖² over the weighted adapters.
    """

    directions: tuple[int, ...]
    energies: tuple[float, ...]
    energy: float


def keep_common(tiles: Tiles, weights: Tensor) -> Kept:
    """Find the directions that adapters have in common, and what stays of the updates in them.

    Law: P and Q are the leading eigenvectors of Σ wᵢ² dWᵢ dWᵢᵀ and Σ wᵢ² dWᵢᵀ dWᵢ: exact up to a width of
    2048, above it to the convergence of three rounds of a block iteration, which only lowers what is kept.
    The energies are exact for these directions. At most `MOST_DIRECTIONS` are looked for.

    Args:
        tiles: The T adapters that have the module.
        weights: Weights wᵢ (T,) of their updates.

    Source: Tucker's decomposition by its sides; De Lathauwer et al. 2000.
    """
    if len(tiles.runs(len(tiles))) == 1:
        tiles.hold(range(len(tiles)))
    parts = [weights[torch.tensor(places)] for places in tiles.places]
    bases = [_lead(tiles, parts, side) for side in (0, 2)]
    most = max(basis.shape[1] for basis in bases)
    counts = [2**power for power in range((most - 1).bit_length() + 1)]
    kept, energy = torch.zeros(len(counts), dtype=torch.float64), 0.0
    for index, part in enumerate(parts):
        tile = tiles[index]
        values = tile.values * part
        energy += float(values.square().sum())
        sides = [
            _grams(side @ basis, counts) for side, basis in zip((tile.left, tile.right), bases, strict=True)
        ]
        kept += torch.einsum("kabt,kabt,at,bt->k", *sides, values, values)
    return Kept(tuple(counts), tuple(kept.tolist()), energy)


def _grams(coordinates: Tensor, counts: list[int]) -> Tensor:
    """Return X Xᵀ of the first k coordinates X of each update (R, T, K), for each k: (·, R, R, T)."""
    grams, start = [], 0
    total = coordinates.new_zeros(len(coordinates), *coordinates.shape[:2])
    for stop in counts:
        part = coordinates[..., start:stop].transpose(0, 1)
        total = total + (part @ part.mT).permute(1, 2, 0)
        grams.append(total)
        start = min(stop, coordinates.shape[2])
    return torch.stack(grams)


def _columns(tile: Frames, part: Tensor, side: int) -> Tensor:
    """Return the singular vectors of a side (R·T, width), scaled by their singular values and weights."""
    return (tile[side] * (tile.values * part).unsqueeze(-1)).flatten(end_dim=1)


def _lead(tiles: Tiles, parts: list[Tensor], side: int) -> Tensor:
    """Return the leading common directions of a side as orthonormal columns (width, k), k at least 1."""
    width = tiles.shape[side // 2]
    count = sum(len(tiles[index].values) * len(part) for index, part in enumerate(parts))
    most = min(width, count, MOST_DIRECTIONS)
    if width <= min(count, _WIDTH):
        whole = torch.zeros(width, width, dtype=torch.float64)
        for index, part in enumerate(parts):
            block = _columns(tiles[index], part, side)
            whole.addmm_(block.mT, block)
        return _eigenvectors(whole)[:, :most]
    if count <= _WIDTH:
        rows = torch.cat([_columns(tiles[index], part, side) for index, part in enumerate(parts)])
        return _orthonormalize(rows.mT @ _eigenvectors(rows @ rows.mT)[:, :most])
    draw = torch.Generator().manual_seed(_SEED)
    basis = torch.randn(width, min(width, most + _SPARE), dtype=torch.float64, generator=draw)
    image = basis
    for _ in range(_ROUNDS):
        basis, image = _orthonormalize(image), torch.zeros_like(basis)
        for index, part in enumerate(parts):
            block = _columns(tiles[index], part, side)
            image.addmm_(block.mT, block @ basis)
    return basis @ _eigenvectors(basis.mT @ image)[:, :most]


def _eigenvectors(matrix: Tensor) -> Tensor:
    """Return the eigenvectors of a symmetric matrix, those of large eigenvalues first."""
    vectors: Tensor = torch.linalg.eigh(matrix).eigenvectors
    return vectors.flip(-1)


def _orthonormalize(columns: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis
