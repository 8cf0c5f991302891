"""The means of entries and the rows made of them: laws, and cases by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.methods.elections.election import elect, vote
from riemerge.methods.engine import Row
from tests.fake_cuda import fake_cuda, forbid_numpy
from tests.methods.edited import (
    PARAMETERS,
    ROW,
    ROWS,
    SHAPES,
    close,
    random_updates,
    random_weights,
    run,
    run_all,
    setting,
)

# What each row is asked at in the laws, beside its defaults.
ASKED = {
    "density": 0.6,
    "epsilon": 0.1,
    "gamma": 0.1,
    "select_topk": 0.5,
    "mask_threshold": 0.4,
}
# Parameters that are lengths, in the unit of the weights.
LENGTHS = {"nearswap": "t", "ram": "epsilon", "ramplus_tl": "epsilon"}
RANDOM = [row.name for row in ROWS if "seed" in row.parameters]
FIXED = [row.name for row in ROWS if "seed" not in row.parameters]


def asked(name: str) -> dict[str, Any]:
    return {key: value for key, value in ASKED.items() if key in ROW[name].parameters}


# --- the table ----------------------------------------------------------------------------------------------


def test_rows_name_what_exists() -> None:
    known = {"rank", "scale", "seed", "density", "t"} | {one.name for one in PARAMETERS}
    for row in ROWS:
        assert set(row.defaults) <= set(row.parameters) <= known
        assert Row.of(row)
        # All but the common ones have a value when a recipe gives none.
        assert set(row.parameters) - {"rank", "scale", "seed"} == set(row.defaults)
    assert {one.name for one in PARAMETERS} <= {name for row in ROWS for name in row.parameters}


# --- laws of every row --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROW)
def test_copies_merge_to_themselves_where_the_row_says_so(name: str) -> None:
    x = random_updates((1, 6, 5)).expand(3, 6, 5)
    merged = run(name, x, (0.2, 0.3, 0.5))
    assert close(merged, x[0]) == ROW[name].idempotent


@pytest.mark.parametrize("shape", SHAPES[:-1])
@pytest.mark.parametrize("name", FIXED)
def test_order_and_unit_are_nothing(name: str, shape: tuple[int, ...]) -> None:
    x, weights = random_updates(shape), random_weights(shape[0])
    merged = run(name, x, weights, **asked(name))
    assert merged.shape == shape[1:]
    for turn in range(1, shape[0]):
        assert close(run(name, x.roll(turn, 0), weights.roll(turn, 0), **asked(name)), merged)
    # A power of two changes no bit of the mantissa, nor does it move anything across a threshold.
    said = ROW[name].defaults | asked(name)
    lengths = {length: 2.0**-30 * said[length] for length in [LENGTHS.get(name)] if length}
    assert torch.equal(run(name, 2.0**-30 * x, weights, **asked(name) | lengths), 2.0**-30 * merged)


@pytest.mark.parametrize("name", FIXED)
def test_rows_are_odd_at_random_updates(name: str) -> None:
    """Only where votes cancel does plus win, which has probability zero for random numbers."""
    x, weights = random_updates((3, 7, 5), zeros=0.0), random_weights(3)
    assert torch.equal(run(name, -x, weights, **asked(name)), -run(name, x, weights, **asked(name)))


@pytest.mark.parametrize("name", ROW)
def test_zero_updates_merge_to_zero(name: str) -> None:
    x = torch.zeros(2, 4, 3, dtype=torch.float64)
    assert not run(name, x, (0.5, 1.5), **asked(name)).any()


@pytest.mark.parametrize(
    "name", ["magnitude_prune", "ties", "breadcrumbs", "breadcrumbs_ties", "sce", "ties_original"]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_two_is_two_copies(name: str, shape: tuple[int, ...]) -> None:
    x = random_updates(shape)
    weights = torch.ones(len(x), dtype=torch.float64)
    weights[0] = 2.0
    twice = run(name, torch.cat([x[:1], x]), **asked(name))
    assert close(run(name, x, weights, **asked(name)), twice)


@pytest.mark.parametrize("name", ROW)
def test_the_device_changes_no_bit(name: str) -> None:
    x, weights = random_updates((3, 7, 5)), random_weights(3)
    with forbid_numpy():
        expected = run(name, x, weights, **asked(name))
    with fake_cuda():
        merged = run(name, x.to("cuda"), weights, **asked(name))
        assert merged.device.type == "cuda"
        assert torch.equal(merged.cpu(), expected)


@pytest.mark.parametrize("name", ["ties", "della", "sce", "magmax"])
def test_only_the_ratios_of_weights_count(name: str) -> None:
    x, weights = random_updates((3, 7, 5)), random_weights(3)
    assert torch.equal(run(name, x, 4.0 * weights, **asked(name)), run(name, x, weights, **asked(name)))


@pytest.mark.parametrize("name", RANDOM)
def test_random_rows_follow_their_seed(name: str) -> None:
    x, weights = random_updates((3, 7, 5)), random_weights(3)
    first = run(name, x, weights, seed=1, **asked(name))
    assert torch.equal(first, run(name, x, weights, seed=1, **asked(name)))
    assert not torch.equal(first, run(name, x, weights, seed=2, **asked(name)))


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.edits and not row.survey])
def test_one_model_of_weight_one_is_its_edited_self(name: str) -> None:
    row, x = ROW[name], random_updates((1, 6, 5))
    edited = x
    for edit in Row.of(row).edits[:1]:
        edited = edit(edited, setting(x, **(dict(row.defaults) | asked(name))))
    assert close(run(name, x, **asked(name)), edited[0])


@pytest.mark.parametrize("name", ["sce", "magmax"])
def test_one_model_without_an_edit_is_itself(name: str) -> None:
    x = random_updates((1, 6, 5))
    assert close(run(name, x, [0.3]), x[0])


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.negative_weights])
def test_negative_weights_are_negative_updates_where_admitted(name: str) -> None:
    """A weight below zero takes the update's opposite, but in PEFT's election without weights."""
    x, weights = random_updates((3, 7, 5)), torch.tensor([0.7, -0.4, 0.5], dtype=torch.float64)
    turned = x * weights.sign().view(3, 1, 1)
    merged = run(name, x, weights, **asked(name))
    if name.endswith("_peft"):
        # Linear in the weights.
        parts = [run(name, x, one, **asked(name)) for one in torch.diag(weights)]
        assert close(merged, sum(parts, torch.zeros(())))
    else:
        assert close(merged, run(name, turned, weights.abs(), **asked(name)))


# --- weights that add up to nothing -------------------------------------------------------------------------


def test_a_mean_over_cancelling_weights_is_refused() -> None:
    x = random_updates((3, 2, 2))
    with pytest.raises(NumericalError, match="add up to zero"):
        run("dare_linear", x, (0.1, 0.2, -0.3), normalize=True)  # 0.1 + 0.2 - 0.3 is 5.6e-17
    with pytest.raises(NumericalError, match=r"weight -0\.3: .*normalize: false"):
        elect(x, setting(x, (0.1, 0.9, -0.3), normalize=True))


# --- single means -------------------------------------------------------------------------------------------


def test_elections_by_hand() -> None:
    """Three models: clear, opposed, cancelling, alone, nobody."""
    x = torch.tensor(
        [[2.0, -4.0, 1.0, 0.0, 0.0], [3.0, 1.0, -2.0, -5.0, 0.0], [-4.0, 2.0, 1.0, 0.0, 0.0]],
        dtype=torch.float64,
    )
    assert run("ties", x).tolist() == [2.5, -4.0, 1.0, -5.0, 0.0]
    assert run("ties", x, normalize=False).tolist() == [5.0, -4.0, 2.0, -5.0, 0.0]
    # Weights move the vote: 2 + 3 - 12 < 0.
    assert run("ties", x, (1.0, 1.0, 3.0)).tolist() == [-4.0, 7.0 / 4.0, 1.0, -5.0, 0.0]
    assert run("ties_peft", x, (1.0, 1.0, 3.0)).tolist() == [2.5, -4.0, 2.0, -5.0, 0.0]
    frequency = run("ties_peft", x, majority_sign_method="frequency")
    assert frequency.tolist() == [2.5, 1.5, 1.0, -5.0, 0.0]


def test_undecided_signs_follow_the_majority_of_all_modules() -> None:
    cancelling = torch.tensor([[1.0, 4.0], [-1.0, 2.0]], dtype=torch.float64)
    negative = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, 0.0, -1.0]], dtype=torch.float64)
    merged = run_all("ties_original", {"a": cancelling, "b": negative}, density=1.0)
    assert merged["a"].tolist() == [-1.0, 3.0]
    assert merged["b"].tolist() == [-1.0, -2.0, -2.0]
    merged = run_all("ties_original", {"a": cancelling, "b": -negative}, density=1.0)
    assert merged["a"].tolist() == [1.0, 3.0]
    # No majority: no sign.
    assert run("ties_original", cancelling[:, :1], density=1.0).tolist() == [0.0]
    merged = run_all("ties_original", {"a": cancelling, "b": -negative}, density=1.0, merge_func="max")
    assert merged["a"].tolist() == [1.0, 4.0]


def test_magmax_of_equal_magnitudes_takes_the_greatest_value() -> None:
    x = torch.tensor([[1.0, -3.0, -2.0], [-1.0, 3.0, 1.0], [0.5, -3.0, 0.0]], dtype=torch.float64)
    for turn in range(3):
        assert run("magmax", x.roll(turn, 0)).tolist() == [1.0, 3.0, -2.0]
    assert run("magmax", x, (1.0, 1.0, 5.0)).tolist() == [0.5, -3.0, -2.0]


def test_sce_keeps_where_models_differ() -> None:
    x = torch.tensor([[1.0, 5.0, 2.0, 0.1], [1.0, 5.0, -1.0, 0.0]], dtype=torch.float64)
    # Of the two places that differ, one: that of larger variance.
    assert run("sce", x, select_topk=0.5).tolist() == [0.0, 0.0, 2.0, 0.0]
    # Three copies, whose mean is rounded, differ nowhere.
    copies = random_updates((1, 4, 4)).expand(3, 4, 4)
    assert not run("sce", copies, select_topk=0.9).any()


def test_consensus_by_hand() -> None:
    """s = (5, 1, 0, 2); models need an entry where it is above half of their distance to s."""
    x = torch.tensor([[2.0, 3.0, 1.0, 2.0], [3.0, -2.0, -1.0, 0.0]], dtype=torch.float64)
    asked: dict[str, Any] = {"mask_threshold": (0.5, 0.5)}
    assert run("consensus", x, agreeing=2, **asked).tolist() == [5.0, 1.0, 0.0, 0.0]
    assert run("consensus", x, agreeing=1, **asked).tolist() == [5.0, 1.0, 0.0, 2.0]
    # A threshold of its own: the second model needs 3 > 2 · 2 no more.
    assert run("consensus", x, agreeing=2, mask_threshold=(0.5, 2.0)).tolist() == [0.0, 0.0, 0.0, 0.0]
    with pytest.raises(NumericalError, match="3 models must agree on an entry, but there are 2"):
        run("consensus", x, agreeing=3, **asked)


def test_consensus_of_elected_updates_looks_at_untrimmed_ones() -> None:
    x, weights = random_updates((3, 9, 7)), random_weights(3)
    merged = run("ties", x, weights, density=0.5, normalize=False)
    needed = torch.stack([one.abs() > 0.6 * (merged - one).abs() for one in x]).sum(dim=0)
    expected = torch.where(needed >= 2, merged, 0.0)
    assert 0 < int((expected != 0).sum()) < int((merged != 0).sum())
    assert torch.equal(run("consensus_ties", x, weights, density=0.5), expected)


# --- the survey ---------------------------------------------------------------------------------------------


def modules(seed: int, rounded: bool) -> dict[str, Tensor]:
    shapes = {"a": (3, 6, 5), "b": (3, 4), "c": (3, 2, 3, 2, 2)}
    made = {name: random_updates(shape, seed + place) for place, (name, shape) in enumerate(shapes.items())}
    return {name: (2 * x).round() if rounded else x for name, x in made.items()}


def flat_ties(x: Tensor, density: float, weights: Tensor) -> Tensor:
    """TIES as the paper says it, on one flat vector for each model, by loops."""
    kept = torch.zeros_like(x)
    for one, out in zip(x, kept, strict=True):
        order = sorted(range(len(one)), key=lambda i: (-abs(float(one[i])), i))
        for i in order[: int(density * len(one))]:
            out[i] = one[i]
    votes = (weights[:, None] * kept).sum(dim=0)
    majority = votes.sign().sum().sign()
    merged = torch.zeros_like(x[0])
    for i, vote_here in enumerate(votes):
        sign = vote_here.sign() if vote_here != 0 else majority
        agree = (kept[:, i].sign() == sign) & (kept[:, i] != 0)
        if agree.any():
            merged[i] = (weights * kept[:, i])[agree].sum() / weights[agree].sum()
    return merged


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.77])
def test_modules_are_trimmed_as_one_vector(density: float, rounded: bool) -> None:
    """Rounded to few values, ties at the threshold are spread over modules, and votes cancel."""
    made, weights = (
        modules(1, rounded),
        torch.tensor([1.0, 1.0, 2.0] if rounded else [0.3, 1.0, 0.8]).double(),
    )
    merged = run_all("ties_original", made, weights, density=density)
    expected = flat_ties(torch.cat([x.flatten(1) for x in made.values()], dim=1), density, weights)
    assert close(torch.cat([merged[name].flatten() for name in made]), expected)


def test_the_survey_needs_the_same_models_and_densities() -> None:
    x = random_updates((2, 3, 4))
    first = (x, setting(x, density=0.5))
    for other, density in ((x, 0.4), (x[:1], 0.5)):
        stream = [first, (other, setting(other, density=density))]
        with pytest.raises(NumericalError, match="expected the same in all"):
            vote(partial(iter, stream))
