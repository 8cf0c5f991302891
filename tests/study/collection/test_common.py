"""Common directions are those of dense matrices, by either route; what they keep is what projections keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from riemerge.study.collection import common, tiles
from riemerge.study.collection.common import keep_common
from riemerge.study.collection.tiles import Tiles
from tests.study.collection.updates import SHAPE, Held, some_updates


def dense_kept(weights: torch.Tensor) -> dict[int, float]:
    x = torch.stack([update.dense() for update in some_updates()]) * weights[:, None, None]
    left = torch.linalg.eigh((x @ x.mT).sum(dim=0)).eigenvectors.flip(-1)
    right = torch.linalg.eigh((x.mT @ x).sum(dim=0)).eigenvectors.flip(-1)
    return {k: float((left[:, :k].mT @ x @ right[:, :k]).square().sum()) for k in (1, 2, 4, 8, 16)}


@pytest.mark.parametrize(
    ("width", "held", "tile"),
    [
        (2048, 2**25, 64),  # a Gram matrix of the width
        (2048, 1, 2),  # the same from tiles that are read again
        (0, 2**25, 3),  # a block iteration
    ],
)
def test_what_is_kept_is_what_projections_keep(
    width: int, held: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "_WIDTH", width)
    monkeypatch.setattr(tiles, "HELD", held)
    monkeypatch.setattr(tiles, "TILE", tile)
    adapters: Any = [Held(update) for update in some_updates()]
    weights = torch.linspace(0.5, 1.5, len(adapters), dtype=torch.float64)
    kept = keep_common(Tiles(adapters, "q", range(len(adapters))), weights)
    assert dict(zip(kept.directions, kept.energies, strict=True)) == pytest.approx(dense_kept(weights))
    assert kept.energies[-1] == pytest.approx(kept.energy)


def test_few_adapters_take_no_matrix_of_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters: Any = [Held(update) for update in some_updates((3, 2))]
    sizes: list[tuple[int, ...]] = []
    decompose = common._eigenvectors

    def watch(matrix: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(matrix.shape))
        return decompose(matrix)

    monkeypatch.setattr(common, "_eigenvectors", watch)
    kept = keep_common(Tiles(adapters, "q", range(2)), torch.ones(2, dtype=torch.float64))
    assert max(max(size) for size in sizes) < min(SHAPE)
    assert kept.energies[-1] == pytest.approx(kept.energy)
    x = torch.stack([update.dense() for update in some_updates((3, 2))])
    (left, right) = (torch.linalg.svd(torch.cat(tuple(y), dim=1)).U[:, :1] for y in (x, x.mT))
    assert kept.energies[0] == pytest.approx(float((left.mT @ x @ right).square().sum()))
