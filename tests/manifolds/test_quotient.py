"""What a quotient refuses."""

from __future__ import annotations

import pytest

from examples.toy import TwoLayers
from riemerge.errors import RecipeError
from riemerge.manifolds import (
    FixedRank,
    GeodesicManifold,
    Orthogonal,
    QuotientManifold,
    Stiefel,
    SymmetricPositiveDefinite,
)


@pytest.mark.parametrize("total", [Stiefel(6, 3), SymmetricPositiveDefinite(3), TwoLayers()], ids=str)
def test_a_group_that_does_not_act_is_refused(total: GeodesicManifold) -> None:
    with pytest.raises(RecipeError, match=f"Orthogonal acts on FixedRank, and .* {type(total).__name__}"):
        QuotientManifold(total, Orthogonal(3))


def test_a_group_of_another_size_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"points of 2 columns; those of .* have 3"):
        QuotientManifold(FixedRank(9, 8, 3), Orthogonal(2))
