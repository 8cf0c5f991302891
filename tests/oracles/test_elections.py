"""The rows of edited updates beside PEFT (live), mergekit and fusion-bench (frozen), faults and all."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.methods.elections import entrywise
from tests.helpers import ROOT
from tests.methods.edited import ROW, SHAPES, close, random_updates, random_weights, run, setting

FROZEN = ROOT / "tests" / "oracles" / "edited.safetensors"
# As in tests/oracles/make_edited.py.
WEIGHTS = {
    "tall": (0.5, 0.3, 0.9),
    "wide": (1.0, 1.0),
    "tiny": (2.0, 0.5),
    "bias": (0.1, 0.2, 0.3, 0.4),
    "kernel": (1.0, 0.5, 0.25),
}
DENSITIES = {
    "tall": (0.5, 0.3, 0.71),
    "wide": (0.4, 0.4),
    "tiny": (0.7, 0.5),
    "bias": (0.2, 1.0, 0.5, 0.6),
    "kernel": (0.3, 0.6, 0.45),
}


# --- PEFT, live ---------------------------------------------------------------------------------------------


def peft_weights(count: int) -> Iterator[Tensor]:
    yield torch.ones(count, dtype=torch.float64)
    yield random_weights(count)
    yield torch.linspace(-0.4, 0.9, count, dtype=torch.float64)


@pytest.mark.oracle
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_peft(shape: tuple[int, ...]) -> None:
    peft = pytest.importorskip("peft.utils.merge_utils")
    x = random_updates(shape, zeros=0.0)
    for weights in peft_weights(len(x)):
        for density in (0.5, 0.7):
            merged = run("magnitude_prune", x, weights, density=density)
            assert close(merged, peft.magnitude_prune(list(x), weights, density))
            for how in ("total", "frequency"):
                merged = run("ties_peft", x, weights, density=density, majority_sign_method=how)
                assert close(merged, peft.ties(list(x), weights, density, how))
        assert close(run("dare_linear", x, weights), peft.task_arithmetic(list(x), weights))


@pytest.mark.oracle
@pytest.mark.parametrize("shape", SHAPES)
def test_random_rows_of_peft_with_our_seeds(shape: tuple[int, ...]) -> None:
    peft = pytest.importorskip("peft.utils.merge_utils")
    x, prune = random_updates(shape), peft.random_pruning
    for weights in peft_weights(len(x)):
        seeds = iter(setting(x).seeds * 3)

        def seeded_prune(*arguments: object, rescale: bool, seeds: Iterator[int] = seeds) -> Tensor:
            torch.manual_seed(next(seeds))
            return prune(*arguments, rescale=rescale)

        with mock.patch.object(peft, "random_pruning", seeded_prune):
            assert close(run("dare_linear", x, weights, density=0.4), peft.dare_linear(list(x), weights, 0.4))
            for how in ("total", "frequency"):
                merged = run("dare_ties_peft", x, weights, density=0.4, majority_sign_method=how)
                assert close(merged, peft.dare_ties(list(x), weights, 0.4, how))


@pytest.mark.oracle
@pytest.mark.parametrize("shape", SHAPES)
def test_variants_of_ties_agree_at_unit_weights(shape: tuple[int, ...]) -> None:
    x = random_updates(shape)
    assert close(run("ties", x, density=0.5), run("ties_peft", x, density=0.5))
    assert close(run("ties", x, density=0.5), run("ties_original", x, density=0.5))


# --- mergekit, frozen ---------------------------------------------------------------------------------------


@cache
def frozen() -> dict[str, Tensor]:
    return load_file(FROZEN)


def theirs(key: str) -> Tensor:
    return frozen()[f"mergekit/{key}"]


def ours(name: str, case: str, weighted: bool = True, **values: Any) -> Tensor:
    weights = WEIGHTS[case] if weighted else None
    if "density" in ROW[name].parameters:
        values["density"] = torch.tensor(DENSITIES[case], dtype=torch.float64)
    return run(name, frozen()[f"x/{case}"], weights, **values)


@pytest.mark.oracle
@pytest.mark.parametrize("case", WEIGHTS)
def test_rows_of_mergekit(case: str) -> None:
    assert close(ours("ties", case), theirs(f"ties.{case}"))
    assert close(ours("ties", case, normalize=False), theirs(f"ties_sum.{case}"))
    assert close(ours("sce", case, weighted=False), theirs(f"sce_all.{case}"))
    assert close(ours("sce", case, weighted=False, select_topk=0.4), theirs(f"sce.{case}"))
    for name in ("breadcrumbs", "breadcrumbs_ties"):
        assert close(ours(name, case, gamma=0.1), theirs(f"{name}.{case}"))


@pytest.mark.oracle
@pytest.mark.parametrize("case", WEIGHTS)
@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("dare_linear", "dare_linear", {}),
        ("dare_linear", "dare_linear_mean", {"normalize": True}),
        ("dare_ties", "dare_ties", {}),
        ("della", "della", {"epsilon": 0.12}),
        ("della_linear", "della_linear", {"epsilon": 0.12}),
    ],
)
def test_random_rows_of_mergekit_with_its_masks(
    name: str, key: str, values: dict[str, Any], case: str
) -> None:
    x = frozen()[f"x/{case}"]
    # mergekit draws nothing for a density of 1.
    drawn = [seed for seed, p in zip(setting(x).seeds, DENSITIES[case], strict=True) if p < 1.0]
    masks = {seed: theirs(f"{key}.{case}.mask.{place}").double() for place, seed in enumerate(drawn)}
    used: set[int] = set()

    def fed(update: Tensor, chances: float | Tensor, generator: torch.Generator) -> Tensor | float:
        if isinstance(chances, float) and chances == 1.0:
            return 1.0
        used.add(seed := generator.initial_seed())
        return masks[seed].view(update.shape)

    with mock.patch.object(entrywise, "draw", fed):
        merged = ours(name, case, rescale="norm", **values)
    assert used == {*drawn}
    assert close(merged, theirs(f"{key}.{case}"), eps=2.0**-23)  # mergekit rescales in float32


@pytest.mark.oracle
def test_mergekits_thresholds_depend_on_the_unit() -> None:
    """Updates of 1e-4, as adapters have: mergekit's SCE then weighs all models alike, and loses its scale."""
    x = 1e-4 * frozen()["x/wide"]
    assert close(run("sce", x), 1e-4 * theirs("sce_all.wide"))
    assert not torch.allclose(theirs("sce_small.wide"), run("sce", x), rtol=0.01)
    # Below 1e-7 in sum, DARE does not rescale at all: each entry is x or 0, times weights 1.
    kept = [frozen()[f"mergekit/norm_small.wide.mask.{place}"].double() for place in range(2)]
    unscaled = 1e-10 * sum(one * mask for one, mask in zip(frozen()["x/wide"], kept, strict=True))
    assert close(theirs("norm_small.wide"), unscaled, eps=2.0**-23)


@pytest.mark.oracle
def test_mergekit_divides_by_whatever_negative_weights_leave() -> None:
    """At weights 1, -0.9, 0.2 an entry beyond the largest input: why we refuse them."""
    x = frozen()["x/tall"]
    assert theirs("ties_negative.tall").abs().max() > 3 * x.abs().max()
    with pytest.raises(NumericalError, match="needs weights above 0"):
        run("ties", x, (1.0, -0.9, 0.2))


# --- fusion-bench, frozen -----------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("case", WEIGHTS)
@pytest.mark.parametrize("merge_func", ["mean", "sum", "max"])
def test_ties_of_fusion_bench_keeps_one_entry_more(case: str, merge_func: str) -> None:
    """Its 40 % are ⌊0.4 · size⌋ + 1 entries; with that many asked for we agree; 40 % keep one less."""
    x = frozen()[f"x/{case}"]
    size = x[0].numel()
    expected = frozen()[f"fusion_bench/ties_{merge_func}.{case}"]
    share = (int(0.4 * size) + 1 + 1e-9) / size
    # Its mean divides by a count in float32, exactly for so few.
    assert close(run("ties_original", x, density=share, merge_func=merge_func), expected)
    assert not close(run("ties_original", x, density=0.4, merge_func=merge_func), expected)


@pytest.mark.oracle
def test_fusion_bench_elects_minus_where_nothing_is_elected() -> None:
    pair = torch.tensor([[1.0, -2.0, 3.0, -4.0], [-1.0, 2.0, -3.0, 4.0]], dtype=torch.float64)
    assert frozen()["fusion_bench/ties_undecided"].tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert run("ties_original", pair, density=1.0).tolist() == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.oracle
@pytest.mark.parametrize("case", WEIGHTS)
def test_magmax_of_fusion_bench(case: str) -> None:
    assert torch.equal(run("magmax", frozen()[f"x/{case}"]), frozen()[f"fusion_bench/magmax.{case}"])


@pytest.mark.oracle
def test_magmax_of_fusion_bench_depends_on_the_order_of_equal_magnitudes() -> None:
    pair = torch.tensor([[1.0, -2.0, 3.0, -4.0], [-1.0, 2.0, -3.0, 4.0]], dtype=torch.float64)
    assert torch.equal(frozen()["fusion_bench/magmax_equal"], pair[1])
    assert torch.equal(frozen()["fusion_bench/magmax_swapped"], pair[0])
    assert torch.equal(run("magmax", pair), pair[0].abs())


@pytest.mark.oracle
@pytest.mark.parametrize("case", WEIGHTS)
def test_consensus_of_the_masks_of_fusion_bench(case: str) -> None:
    x, masks = frozen()[f"x/{case}"], frozen()[f"fusion_bench/tall.{case}"]
    for agreeing in range(1, len(x) + 1):
        expected = torch.where(masks.sum(dim=0) >= agreeing, x.sum(dim=0), 0.0)
        assert close(run("consensus", x, agreeing=agreeing), expected)
