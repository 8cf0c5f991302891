"""The methods, as data: each row is a point in the product edits × geometry × solver × scale."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from riemerge.errors import RecipeError

DEFAULT_METHOD = "geomerge"


@final
@dataclass(frozen=True, slots=True)
class Method:
    """One way to merge: what to do to each update first, what *near* means, and how the mean is found.

    A row holds names, not objects, so the table can be printed without loading any numerical library.

    Attributes:
        name: What a recipe's `merge_method` says.
        summary: One line for a person choosing.
        geometry: `package.module:function` of the geometry (see `riemerge.methods.stack.Geometry`).
        edits: `package.module:function` of each edit, in order (see `riemerge.methods.stack.Edit`).
        parameters: What the recipe's `parameters` may hold for this method.
        defaults: Values of those parameters where the recipe has none.
        normalised: Whether the weights are divided by their sum.
        negative_weights: Whether a weight below zero has a meaning.
        gauge_invariant: Whether the result depends on the updates dW alone, not on the factors A and B.
        output_rank: The rank of a merged update, in words.
        source: Where the method comes from.
    """

    name: str
    summary: str
    geometry: str
    edits: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ("rank", "scale")
    defaults: Mapping[str, Any] = field(default_factory=dict)
    normalised: bool = True
    negative_weights: bool = False
    gauge_invariant: bool = True
    output_rank: str = ""
    source: str = ""


_FLAT_RANK = "the sum of the inputs' ranks (exact), or --rank"

METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method(
            name="geomerge",
            summary="weighted Fréchet mean of the updates U B Vᵀ on (Stiefel × SPD × Stiefel)/O(r)",
            geometry="riemerge.methods.quotient:frechet",
            edits=("riemerge.methods.edits:truncate",),
            parameters=(
                *("rank", "scale", "solver", "tol", "cost_tol", "max_passes", "max_seconds"),
                *("starts", "seed"),
            ),
            # Real adapters overlap in part: their cost settles long before the gradient is below tol, and the
            # passes in between move the update by less than another start would.
            defaults={"solver": "lbfgs", "tol": 1e-8, "cost_tol": 3e-4, "max_passes": 500},
            output_rank="the inputs' common rank, or --rank",
            source="GeoMerge, arXiv 2604.27155",
        ),
        Method(
            name="average",
            summary="weighted mean of the dW: Σ wᵢ dWᵢ with the weights divided by their sum",
            geometry="riemerge.methods.flat:weighted_sum",
            output_rank=_FLAT_RANK,
            source="Wortsman et al. 2022, Model soups, arXiv 2203.05482",
        ),
        Method(
            name="task_arithmetic",
            summary="weighted sum of the dW: λ Σ wᵢ dWᵢ with the weights as given, below zero allowed",
            geometry="riemerge.methods.flat:weighted_sum",
            normalised=False,
            negative_weights=True,
            output_rank=_FLAT_RANK,
            source="Ilharco et al. 2023, Editing models with task arithmetic, arXiv 2212.04089",
        ),
    )
}


def find_method(name: str) -> Method:
    """Return the row of METHODS with this name.

    Raises:
        RecipeError: No such method; the text lists the methods and the nearest name.
    """
    if name in METHODS:
        return METHODS[name]
    raise RecipeError(f"merge_method: unknown method {name!r}: {did_you_mean(name, METHODS)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Say which of the known words was probably meant, and what the others are."""
    words = list(known)
    near = difflib.get_close_matches(word, words, n=1)
    listed = f"known: {', '.join(words)}"
    return f"did you mean {near[0]!r}? ({listed})" if near else listed
