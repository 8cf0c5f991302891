"""`scale: matched`: a merge as long as what went in, from norms alone."""

from __future__ import annotations

import gc
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from riemerge.cli.commands import main
from riemerge.errors import NumericalError, RecipeError
from riemerge.merging.verbs import merge_into
from riemerge.methods import METHODS, Options, run_method
from riemerge.methods.cancelling import Remainder
from riemerge.methods.parameters import MATCHED
from riemerge.methods.scale import Norms, match_norms
from riemerge.recipes.recipe import make_recipe
from riemerge.updates.low_rank import LowRankUpdate
from tests.folders import family, merge_adapters, write_family
from tests.helpers import adapter_family, random_gauge, seeded
from tests.methods.stacks import stacked

# One weighting of each domain, and the quotient.
ROWS = ("average", "spectrum", "regmean", "magmax", "geomerge")
FILES_ALONE = tuple(name for name in ROWS if not METHODS[name].statistics)
EVERY_ROW = pytest.mark.parametrize("method", FILES_ALONE)

# --- the formula --------------------------------------------------------------------------------------------


def some_norms(modules: int, inputs: int, seed: int) -> list[Norms]:
    generator = seeded(seed)
    drawn = torch.rand(modules, 2 * inputs + 1, generator=generator, dtype=torch.float64) + 0.1
    return [
        Norms(row[0], row[1 : inputs + 1], [weight / sum(row[inputs + 1 :]) for weight in row[inputs + 1 :]])
        for row in drawn.tolist()
    ]


def test_with_one_weight_in_all_modules_the_merge_gets_the_mean_norm() -> None:
    weights = [0.5, 0.3, 0.2]
    modules = [one._replace(weights=weights) for one in some_norms(4, 3, seed=0)]
    whole = [math.hypot(*(one.inputs[i] for one in modules)) for i in range(3)]
    merged = math.hypot(*(one.merged for one in modules))
    expected = sum(weight * norm for weight, norm in zip(weights, whole, strict=True))
    assert match_norms(modules) * merged == pytest.approx(expected, rel=1e-14)


def test_copies_are_left_as_they_are_whatever_the_weights_of_modules() -> None:
    modules = [one._replace(inputs=[one.merged] * 3) for one in some_norms(5, 3, seed=1)]
    assert match_norms(modules) == pytest.approx(1.0, rel=1e-14)


def test_it_is_of_degree_one_in_the_inputs_and_minus_one_in_the_merge() -> None:
    modules = some_norms(4, 3, seed=2)
    longer = [one._replace(inputs=[8.0 * norm for norm in one.inputs]) for one in modules]
    assert match_norms(longer) == 8.0 * match_norms(modules)
    assert (
        match_norms([one._replace(merged=4.0 * one.merged) for one in modules]) == match_norms(modules) / 4.0
    )


def test_the_order_of_the_inputs_changes_no_bit() -> None:
    modules = some_norms(4, 5, seed=3)
    found = set()
    for order in itertools.permutations(range(5)):
        turned = [
            Norms(one.merged, [one.inputs[i] for i in order], [one.weights[i] for i in order])
            for one in modules
        ]
        found.add(match_norms(turned))
    assert len(found) == 1


def test_an_input_that_is_zero_in_a_module_counts_there_as_zero() -> None:
    found = match_norms([Norms(1.0, [2.0, 0.0], [0.5, 0.5]), Norms(0.0, [0.0, 0.0], [0.5, 0.5])])
    assert found == 1.0  # (2 + 0) / 2 over 1


@pytest.mark.parametrize("left", [0.0, 1e-16, 5e-5])
def test_what_cancels_is_not_blown_up(left: float) -> None:
    zero = Remainder(0.0, 0.0, 0.0)
    assert match_norms([Norms(left, [0.0, 0.0], [0.5, 0.5], zero)]) == 1.0
    rounding = Remainder(left, left, 1.0)
    with pytest.raises(NumericalError, match="the inputs cancel in all 1 modules: what is left of them is"):
        match_norms([Norms(left, [1.0, 1.0], [0.5, 0.5], rounding)])
    if left > 1e-13:  # what is exact may be as small
        exact = rounding._replace(noise=0.0)
        assert match_norms([Norms(left, [1.0, 1.0], [0.5, 0.5], exact)]) == 1.0 / left


def test_a_thousand_unrelated_inputs_have_one() -> None:
    assert match_norms([Norms(1 / math.sqrt(1000), [1.0] * 1000, [1e-3] * 1000)]) == pytest.approx(
        math.sqrt(1000)
    )


# --- merges -------------------------------------------------------------------------------------------------


def test_it_is_the_default_of_the_default_row_and_no_other_name_changed_its_meaning() -> None:
    own = {name for name, row in METHODS.items() if row.defaults.get("scale", 1.0) != 1.0}
    assert own == {"spectrum", "spectrum_matched", "power_mean"}
    assert {METHODS[name].defaults["scale"] for name in own} == {MATCHED}


@EVERY_ROW
@pytest.mark.parametrize("kind", ["independent", "close"])
def test_the_merge_is_as_long_as_its_inputs_in_the_mean(tmp_path: Path, method: str, kind: str) -> None:
    folders = write_family(tmp_path, family(kind, 3))
    weights = [0.5, 0.3, 0.2]
    result = merge_adapters(folders, weights, method=method, scale=MATCHED)
    totals = result.record.totals
    expected = sum(weight * norm for weight, norm in zip(weights, totals.input_norms, strict=True))
    assert totals.norm == pytest.approx(expected, rel=1e-12)
    assert math.hypot(*(update.norm() for update in result.updates.values())) == pytest.approx(expected)
    # The number is in the record, and a recipe that gives it gives the same merge.
    number = result.record.matched_scale
    assert number is not None
    again = merge_adapters(folders, weights, method=method, scale=number)
    assert again.record.matched_scale is None
    for module, update in result.updates.items():
        assert torch.allclose(update.dense(), again.updates[module].dense(), rtol=1e-9, atol=1e-12)


@EVERY_ROW
def test_copies_merge_to_themselves(tmp_path: Path, method: str) -> None:
    (one,) = family("independent", 1)
    folders = write_family(tmp_path, [one, one, one])
    result = merge_adapters(folders, [3, 2, 1], method=method, scale=MATCHED)
    assert result.record.matched_scale == pytest.approx(1.0, rel=1e-10)


@EVERY_ROW
def test_neither_gauge_nor_order_moves_it(tmp_path: Path, method: str) -> None:
    adapters = family("close", 3)
    turned = []
    for place, modules in enumerate(adapters):
        gauge = random_gauge(3, 10.0, seeded(place))
        inverse = torch.linalg.inv(gauge)
        turned.append({module: (b @ gauge, inverse @ a) for module, (b, a) in modules.items()})
    first, second = (
        merge_adapters(write_family(tmp_path / name, made), method=method, scale=MATCHED).record
        for name, made in (("a", adapters), ("b", turned))
    )
    # The solve of geomerge stops at a tolerance; what is in closed form differs by round-off.
    tolerance = 1e-4 if METHODS[method].truncates_inputs else 1e-9
    assert first.matched_scale == pytest.approx(second.matched_scale, rel=tolerance)
    forth = merge_adapters([tmp_path / "a" / n for n in "abc"], method=method, scale=MATCHED).record
    back = merge_adapters([tmp_path / "a" / n for n in "cba"], method=method, scale=MATCHED).record
    assert forth.matched_scale == back.matched_scale


@EVERY_ROW
def test_a_multiple_of_all_inputs_is_merged_to_that_multiple(tmp_path: Path, method: str) -> None:
    adapters = family("close", 3)
    longer = [{module: (4.0 * b, a) for module, (b, a) in modules.items()} for modules in adapters]
    first, second = (
        merge_adapters(write_family(tmp_path / name, made), method=method, scale=MATCHED)
        for name, made in (("a", adapters), ("b", longer))
    )
    assert second.record.totals.norm == pytest.approx(4.0 * first.record.totals.norm, rel=1e-9)


def test_it_holds_where_it_was_asked_for_and_counts_those_modules_alone(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("independent", 3))
    scale = [{"filter": "layers.0", "value": MATCHED}, {"value": 0.25}]
    result = merge_adapters(folders, method="average", scale=scale)
    plain = {row.module: row for row in merge_adapters(folders, method="average").record.modules}
    there = [row for row in result.record.modules if row.module.startswith("layers.0")]
    means = [math.hypot(*(row.input_norms[i] for row in there)) for i in range(3)]
    assert math.hypot(*(row.norm for row in there)) == pytest.approx(sum(means) / 3, rel=1e-12)
    (other,) = (row for row in result.record.modules if row not in there)
    assert other.norm == pytest.approx(0.25 * plain[other.module].norm, rel=1e-12)


@pytest.mark.parametrize("method", ["average", "spectrum", "magmax"])
@pytest.mark.parametrize("out_type", ["adapter", "delta"])
def test_an_adapter_and_a_delta_are_written_at_it(tmp_path: Path, method: str, out_type: str) -> None:
    folders = write_family(tmp_path, family("independent", 3))
    recipe = {
        "merge_method": method,
        "models": [{"model": str(folder)} for folder in folders],
        "parameters": {"scale": MATCHED},
        "out_type": out_type,
    }
    record = merge_into(make_recipe(recipe), tmp_path / "out").record
    mean = sum(record.totals.input_norms) / 3
    if out_type == "delta":
        whole = load_file(tmp_path / "out" / "model.safetensors").values()
        assert math.hypot(*(float(one.norm()) for one in whole)) == pytest.approx(mean, rel=1e-9)
    assert record.totals.norm == pytest.approx(mean, rel=1e-9)
    read = json.loads((tmp_path / "out" / "riemerge.json").read_text())
    assert (read["matched_scale"], read["recipe"]["parameters"]["scale"]) == (record.matched_scale, MATCHED)


@pytest.mark.parametrize("method", ["average", "spectrum"])
@pytest.mark.parametrize("order", ["ab", "ba"])  # the files' hashes put them in one of these
def test_a_checkpoint_is_as_far_from_its_base_as_the_models_are(
    tmp_path: Path, method: str, order: str
) -> None:
    generator = seeded(5)

    def drawn() -> dict[str, torch.Tensor]:
        return {
            "q.weight": torch.randn(7, 5, generator=generator, dtype=torch.float64),
            "norm.weight": torch.randn(5, generator=generator, dtype=torch.float64),
        }

    made = {name: drawn() for name in ("base", "a", "b")}
    for name, tensors in made.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    recipe = make_recipe(
        {
            "merge_method": method,
            "models": [
                {"model": str(tmp_path / name), "parameters": {"weight": {"a": 3.0, "b": 1.0}[name]}}
                for name in order
            ],
            "base_model": str(tmp_path / "base"),
            "parameters": {"scale": MATCHED},
        }
    )
    written = merge_into(recipe, tmp_path / "out")
    out = load_file(tmp_path / "out" / "model.safetensors")

    def far(tensors: Mapping[str, torch.Tensor]) -> float:
        return math.hypot(*(float((tensors[name] - made["base"][name]).norm()) for name in tensors))

    assert far(out) == pytest.approx(0.75 * far(made["a"]) + 0.25 * far(made["b"]), rel=1e-12)
    assert written.record.matched_scale is not None


# --- streaming ----------------------------------------------------------------------------------------------

WIDE = (331, 293)  # widths that no other tensor of this process has


class Counted(Mapping[str, tuple[LowRankUpdate, ...]]):
    """Modules that are made at each access, as the files' are, and how often each was."""

    def __init__(self, modules: int) -> None:
        self.reads = dict.fromkeys((f"layers.{i}.q" for i in range(modules)), 0)

    def __getitem__(self, module: str) -> tuple[LowRankUpdate, ...]:
        self.reads[module] += 1
        seed = [*self.reads].index(module)
        return tuple(LowRankUpdate(b, a) for b, a in adapter_family("close", 3, *WIDE, 2, seed))

    def __iter__(self) -> Iterator[str]:
        return iter(self.reads)

    def __len__(self) -> int:
        return len(self.reads)


def wide_tensors() -> list[Any]:
    gc.collect()
    found = (one for one in gc.get_objects() if issubclass(type(one), torch.Tensor))
    return [one for one in found if set(WIDE) & set(one.shape)]


@EVERY_ROW
def test_what_waits_for_its_scale_holds_nothing_of_the_width(method: str) -> None:
    row = METHODS[method]
    (small,) = ([LowRankUpdate(b, a) for b, a in adapter_family("close", 3, 9, 8, 2, 0)],)
    stack = replace(stacked(row, [(one.B, one.A) for one in small], [1, 1, 1], [0, 1, 2]), modules=Counted(3))
    values = {} if row.truncates_inputs else stack.values("layers.0.q")
    stack = replace(stack, weights=lambda _: (1 / 3,) * 3, values=lambda _: values)
    merged = list(run_method(row, stack, Options(later=True, rank=None if row.truncates_inputs else 2)))
    assert wide_tensors() == []
    before = dict(stack.modules.reads)  # type: ignore[attr-defined]
    now = dict(run_method(row, stack, Options(rank=None if row.truncates_inputs else 2)))
    for module, one in merged:
        lifted = one.update
        assert stack.modules.reads[module] > before[module]  # type: ignore[attr-defined]
        assert isinstance(lifted, LowRankUpdate)
        assert lifted.norm() == pytest.approx(one.norms[0], rel=1e-12)
        expected = now[module].update
        assert isinstance(expected, LowRankUpdate)
        assert torch.allclose(lifted.dense(), expected.dense(), rtol=1e-9, atol=1e-12)


# --- recipes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if not row.normalised])
def test_a_sum_has_no_mean_norm_to_be_brought_to(name: str) -> None:
    row = METHODS[name]
    models = [{"model": one} for one in "abc"[: row.models[1] or 3]]
    with pytest.raises(RecipeError, match=f"parameters.scale: matched: .* and {name} uses them as given"):
        make_recipe({"merge_method": name, "models": models, "parameters": {"scale": MATCHED}})


def test_a_gradient_goes_through_numbers(tmp_path: Path) -> None:
    models = [{"model": "a"}, {"model": "b"}]
    with pytest.raises(RecipeError, match=r"parameters.scale\[1\]: the text 'matched': expected a number$"):
        make_recipe({"merge_method": "average", "models": models, "parameters": {"scale": [1, MATCHED]}})


def test_the_command_takes_it_and_a_number_instead(tmp_path: Path) -> None:
    folders = [str(folder) for folder in write_family(tmp_path, family("independent", 2))]
    said, records = {}, {}
    for name, more in (("default", []), ("one", ["--scale", "1"]), ("named", ["--scale", "matched"])):
        ran = CliRunner().invoke(main, ["merge", *folders, "-o", str(tmp_path / name), *more])
        assert ran.exit_code == 0, ran.output
        said[name] = ran.stdout
        records[name] = json.loads((tmp_path / name / "riemerge.json").read_text())
    number = records["named"]["matched_scale"]
    assert records["default"]["matched_scale"] == number > 1.0
    assert f"scale {number:.3g} (matched)" in said["default"]
    assert records["one"]["matched_scale"] is None
    assert "matched" not in said["one"]
