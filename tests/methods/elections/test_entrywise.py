"""Edits of entries: what they keep, their laws over seeds, and PEFT's and mergekit's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.methods.elections.entrywise import chances_by_rank, draw, drop, trim_globally
from riemerge.methods.elections.selection import Cut
from tests.helpers import ROOT, seeded
from tests.methods.edited import SHAPES, find, random_updates, setting

FROZEN = ROOT / "tests" / "oracles" / "edited.safetensors"
EDITS = ("trim", "trim_both_ends", "drop", "drop_by_rank")
EVERY: dict[str, Any] = {"gamma": 0.1, "epsilon": 0.1, "rescale": "expected"}


def edit(name: str, x: Tensor, seed: int = 0, density: object = 1.0, **values: Any) -> Tensor:
    at = setting(x, seed=seed, density=density, **EVERY | values)
    return find(f"riemerge.methods.elections.entrywise:{name}")(x, at)


# --- laws ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", EDITS)
def test_density_one_changes_no_bit(name: str, shape: tuple[int, ...]) -> None:
    x = random_updates(shape)
    assert torch.equal(edit(name, x), x)


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("rescale", ["expected", "norm", "none"])
def test_the_zero_update_stays_zero(name: str, rescale: str) -> None:
    x = torch.zeros(2, 5, 3, dtype=torch.float64)
    assert torch.equal(edit(name, x, density=0.3, rescale=rescale), x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", EDITS)
def test_edits_are_odd_and_homogeneous(name: str, shape: tuple[int, ...]) -> None:
    """A power of two changes no bit of the mantissa, so the law holds exactly."""
    x = random_updates(shape)
    assert torch.equal(edit(name, -4.0 * x, density=0.6), -4.0 * edit(name, x, density=0.6))


@pytest.mark.parametrize("shape", SHAPES)
def test_trim_keeps_the_largest_and_nothing_else(shape: tuple[int, ...]) -> None:
    x = random_updates(shape, zeros=0.0)
    size = x[0].numel()
    densities = torch.linspace(0.05, 0.9, len(x))
    for one, kept, density in zip(x, edit("trim", x, density=densities), densities.tolist(), strict=True):
        mask = kept != 0
        assert torch.equal(kept[mask], one[mask])
        assert int(mask.sum()) == max(1, int(density * size))
        assert one[mask].abs().min() >= one[~mask].abs().max()


def test_trim_breaks_ties_by_flat_index() -> None:
    x = torch.tensor([[[1.0, -1.0, 2.0], [1.0, 1.0, 0.0]]], dtype=torch.float64)
    assert edit("trim", x, density=0.5).tolist() == [[[1.0, -1.0, 2.0], [0.0, 0.0, 0.0]]]


@pytest.mark.parametrize(
    ("density", "gamma", "expected"),
    [
        (0.4, 0.2, [3, 4, 5, 6]),  # 2 outliers, then 4
        (0.9, 0.5, [2, 3, 4, 5, 6, 7, 8, 9, 10]),  # only one outlier can go
        (0.5, 0.05, [1, 2, 3, 4, 5]),  # less than one outlier: mergekit <= 0.1.4 made this zero
        (0.05, 0.0, [1]),
    ],
)
def test_both_ends(density: float, gamma: float, expected: list[int]) -> None:
    """Entries whose place by magnitude, from 1, is their size upside down."""
    x = torch.tensor([[1, -10, 3, 4, -5, 6, 7, 8, 9, -2]], dtype=torch.float64)
    kept = edit("trim_both_ends", x, density=density, gamma=gamma)
    assert sorted((11 - kept[kept != 0].abs()).tolist()) == expected
    assert torch.equal(kept[kept != 0], x[kept != 0])


def test_trim_globally_follows_its_facts() -> None:
    x = torch.tensor([[1.0, -2.0, 2.0], [3.0, 3.0, 3.0]], dtype=torch.float64)
    cuts = {"b": (Cut(2.0, 1, every=False), Cut(3.0, 2, every=False))}
    at = replace(setting(x, module="b"), facts={"cuts": cuts})
    assert trim_globally(x, at).tolist() == [[0.0, -2.0, 0.0], [3.0, 3.0, 0.0]]


@pytest.mark.parametrize("name", ["drop", "drop_by_rank"])
def test_draws_follow_from_the_seeds_alone(name: str) -> None:
    x = random_updates((2, 20, 30))
    torch.manual_seed(1)
    first = edit(name, x, seed=3, density=0.5)
    torch.manual_seed(2)
    assert torch.equal(first, edit(name, x, seed=3, density=0.5))
    assert not torch.equal(first, edit(name, x, seed=4, density=0.5))
    # Each model has its own draws, whichever others there are.
    assert torch.equal(first[:1], edit(name, x[:1], seed=3, density=0.5))
    same = edit(name, x[:1].expand_as(x), seed=3, density=0.5)
    assert not torch.equal(same[0], same[1])


@pytest.mark.parametrize("name", ["drop", "drop_by_rank"])
def test_expected_drops_are_unbiased_with_the_variance_of_their_probability(name: str) -> None:
    """4000 seeds of one update: mean x and variance x² (1 − p) / p, by entry, within five standard errors."""
    count, density, epsilon = 4000, 0.4, 0.2
    x = random_updates((1, 4, 6), seed=5, zeros=0.0)
    edited = edit(name, x.expand(count, 4, 6), density=density, epsilon=epsilon)
    p = torch.full((4, 6), density, dtype=torch.float64)
    if name == "drop_by_rank":
        p = density - epsilon + 2 * epsilon * x[0].abs().argsort(dim=1).argsort(dim=1).double() / 5
    ratio = edited / x
    variance = (1 - p) / p
    assert ((ratio.mean(dim=0) - 1).abs() <= 5 * (variance / count).sqrt()).all()
    # Standard error of the share of kept entries; kept ones are 1/p exactly.
    share = (ratio != 0).double().mean(dim=0)
    assert ((share - p).abs() <= 5 * (p * (1 - p) / count).sqrt()).all()
    assert torch.allclose(ratio.amax(dim=0), 1 / p, rtol=1e-14, atol=0)  # two roundings


@pytest.mark.parametrize("name", ["drop", "drop_by_rank"])
def test_rescalings_share_their_mask(name: str) -> None:
    x = random_updates((3, 8, 9))
    expected, norm, none = (edit(name, x, density=0.5, rescale=how) for how in ("expected", "norm", "none"))
    assert torch.equal(none, torch.where(none != 0, x, 0.0))
    assert torch.equal(none != 0, expected != 0)
    assert torch.equal(none != 0, norm != 0)
    # One factor for each update, which keeps the sum of magnitudes: to the rounding of 72 sums.
    assert torch.allclose(norm.abs().sum(dim=(1, 2)), x.abs().sum(dim=(1, 2)), rtol=1e-13, atol=0)
    for one, plain in zip(norm, none, strict=True):
        assert torch.allclose(one / one.norm(), plain / plain.norm(), rtol=0, atol=1e-15)


def test_a_row_of_one_entry_is_kept_with_the_density() -> None:
    """Where mergekit divides 0 by 0."""
    x = torch.ones(4000, 1, 1, dtype=torch.float64)
    share = float((edit("drop_by_rank", x, density=0.7, epsilon=0.2) != 0).double().mean())
    assert abs(share - 0.7) <= 5 * (0.7 * 0.3 / 4000) ** 0.5


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.1), (0.9, 0.1), (0.95, 0.2), (0.05, 0.2)])
def test_probabilities_outside_the_open_interval_are_refused(density: float, epsilon: float) -> None:
    with pytest.raises(NumericalError, match=rf"density {density:g} with epsilon {epsilon:g}"):
        edit("drop_by_rank", random_updates((2, 3, 3)), density=density, epsilon=epsilon)


@pytest.mark.parametrize("name", EDITS)
def test_edits_take_views(name: str) -> None:
    x = random_updates((3, 4, 5)).mT
    assert torch.equal(edit(name, x, density=0.5), edit(name, x.contiguous(), density=0.5))


# --- PEFT, live ---------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("shape", SHAPES)
def test_trim_is_pefts(shape: tuple[int, ...]) -> None:
    prune = pytest.importorskip("peft.utils.merge_utils").prune
    x = random_updates(shape, zeros=0.0)
    for density in (0.29, 0.5, 0.97):
        for one, kept in zip(x, edit("trim", x, density=density), strict=True):
            expected = prune(one, density, "magnitude")
            if int(density * one.numel()) == 0:  # where PEFT keeps nothing, we (and mergekit) keep one
                assert not expected.any()
                expected = torch.where(one.abs() == one.abs().max(), one, 0.0)
            assert torch.equal(kept, expected)


@pytest.mark.oracle
@pytest.mark.parametrize("shape", SHAPES)
def test_drop_is_pefts_of_the_same_draws(shape: tuple[int, ...]) -> None:
    prune = pytest.importorskip("peft.utils.merge_utils").prune
    x = random_updates(shape)
    at = setting(x, seed=7, density=0.4, rescale="expected")
    for one, kept, seed in zip(x, drop(x, at), at.seeds, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(kept, prune(one, 0.4, "random", rescale=True))


# --- mergekit, frozen ---------------------------------------------------------------------------------------


def drawn(key: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The probabilities that mergekit drew with and the masks it drew, model by model."""
    frozen = load_file(FROZEN)
    for place in itertools.count():
        if f"mergekit/{key}.mask.{place}" not in frozen:
            return
        yield frozen[f"mergekit/{key}.chances.{place}"], frozen[f"mergekit/{key}.mask.{place}"]


def probabilities(x: Tensor, densities: object, epsilon: float) -> list[Tensor]:
    """What `drop_by_rank` draws with."""
    chances = chances_by_rank(x, setting(x, density=densities, epsilon=epsilon))
    return [one for one in chances if isinstance(one, Tensor)]


def test_draws_are_those_of_bernoulli() -> None:
    """Also in runs of rows of any number: one generator goes on."""
    chances = torch.rand(9, 31, generator=seeded(1), dtype=torch.float64)
    expected = torch.bernoulli(chances, generator=seeded(2))
    for rows in (1, 2, 9):
        generator = seeded(2)
        runs = [draw(run, run, generator) for run in chances.split(rows)]
        assert torch.equal(torch.cat([run for run in runs if isinstance(run, Tensor)]), expected)
    even = draw(chances, 0.3, seeded(2))
    assert isinstance(even, Tensor)
    assert torch.equal(even, torch.bernoulli(torch.full_like(chances, 0.3), generator=seeded(2)))


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("case", "densities"),
    [("tall", (0.5, 0.3, 0.71)), ("wide", (0.4, 0.4)), ("tiny", (0.7, 0.5)), ("bias", (0.2, 1.0, 0.5, 0.6))],
)
def test_the_probabilities_of_ranks_are_mergekits(case: str, densities: tuple[float, ...]) -> None:
    x = load_file(FROZEN)[f"x/{case}"]
    asked = probabilities(x, densities, 0.12)
    edited = x[[density < 1.0 for density in densities]]
    for one, ours, (theirs, _) in zip(edited, asked, drawn(f"della.{case}"), strict=True):
        # Zeros are equal in rank, and mergekit's sort may order them otherwise. It works in float32.
        some = one != 0
        assert torch.allclose(ours[some], theirs.view_as(one)[some].double(), rtol=0, atol=1e-6)


@pytest.mark.oracle
def test_rows_of_a_kernel_are_ours_not_mergekits() -> None:
    """Of a kernel (out, in, h, w) a row is one output here; mergekit ranks along the inputs alone."""
    x = load_file(FROZEN)["x/kernel"]
    asked = probabilities(x, (0.3, 0.6, 0.45), 0.12)
    for density, ours, (theirs, _) in zip((0.3, 0.6, 0.45), asked, drawn("della.kernel"), strict=True):
        assert len(theirs.unique()) == 3
        assert len(ours.unique()) == 12
        # The mean of twelve numbers below 1, in float64.
        assert torch.allclose(ours.flatten(1).mean(dim=1), ours.new_tensor(density), rtol=0, atol=1e-15)
        assert not torch.allclose(ours, theirs.double(), atol=0.01)


# --- near entries, and entries that one model alone has -----------------------------------------------------


def test_clip_interpolates_as_nearswap_does() -> None:
    """w₀ + min(1, t/|w₁ − w₀|) (w₁ − w₀), written out as the method's author does."""
    x = random_updates((2, 6, 5))
    share = (0.3 / x.abs()).nan_to_num(nan=1.0, posinf=1.0).clamp(0.0, 1.0)
    assert torch.equal(edit("clip", x, t=10.0), x)
    assert float((edit("clip", x, t=0.3) - share * x).abs().max()) <= 1e-15


def test_ignore_small_and_reward_unique_count_entries_one_by_one() -> None:
    x = random_updates((3, 6, 5), zeros=0.5)
    limits = torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
    large = edit("ignore_small", x, epsilon=limits)
    expected = torch.zeros_like(x)
    counts = torch.zeros(3, 2)  # of entries that others have too, and of those that none has
    places = list(itertools.product(range(6), range(5)))
    for row, column in places:
        having = [model for model in range(3) if abs(x[model, row, column]) > limits[model]]
        for model in having:
            expected[model, row, column] = x[model, row, column]
            counts[model, int(len(having) == 1)] += 1
    assert torch.equal(large, expected)
    assert int(counts.min()) > 0
    for row, column in places:
        having = [model for model in range(3) if large[model, row, column] != 0.0]
        if len(having) == 1:
            shared, unique = counts[having[0]].tolist()
            expected[having[0], row, column] *= 1.0 + 0.7 * min(shared / unique, 0.4)
    rewarded = edit("reward_unique", large, r=0.7, alpha=0.4)
    assert float((rewarded - expected).abs().max()) <= 1e-15
    assert torch.equal(edit("reward_unique", large, r=0.0, alpha=0.4), large)
