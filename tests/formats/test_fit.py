"""Adapters that do not fit each other are refused together, with every reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from riemerge.errors import AdapterError
from riemerge.formats.dialects import read_adapter
from riemerge.formats.fit import check_collection
from tests.formats.pico import SHAPES, Pico, pico_tensors


def test_adapters_of_other_ranks_scales_and_unnamed_bases_fit(pico: Pico) -> None:
    first = pico("a", use_rslora=True, task_type="CAUSAL_LM")
    second = pico("b", pico_tensors(rank=3, seed=1), r=3, base_model_name_or_path=None)
    third = pico("c", lora_alpha=0)
    check_collection([read_adapter(folder) for folder in (first, second, third)])
    check_collection([read_adapter(first)])


def test_everything_that_differs_is_reported_at_once(pico: Pico) -> None:
    shapes = {**SHAPES, "layers.0.v": (7, 4), "layers.2.q": (5, 4)}
    del shapes["layers.1.q"]
    a, b = (
        pico("a"),
        pico("b", pico_tensors(shapes), fan_in_fan_out=True, base_model_name_or_path="other/base"),
    )
    with pytest.raises(AdapterError) as caught:
        check_collection([read_adapter(a), read_adapter(b), read_adapter(a)])
    found = caught.value.problems
    same = "it must be the same in all adapters"
    options = (
        "merge with --missing zero (its update there is zero) or --missing skip (it takes no part there)"
    )
    *others, bases = found
    assert others == [
        f"{a}: is listed 2 times: give it once, with a larger weight",
        f"{a}: lacks 1 of 4 modules that others have: layers.2.q; {options}",
        f"{b}: lacks 1 of 4 modules that others have: layers.1.q; {options}",
        f"{a}: lacks 1 of 4 modules that others have: layers.2.q; {options}",
        f"layers.0.v: the shapes of dW differ: 3 x 4 in {a}, 7 x 4 in {b}; is it one base model?",
        f"fan_in_fan_out differs: False in {a}, True in {b}; {same}",
    ]
    assert bases.startswith(
        f"base_model_name_or_path differs: somebody/base in {a}, other/base in {b}; the repositories have "
        f"one name but several owners (somebody/base, other/base); {same}: "
    )


def test_nothing_in_common_is_said_once(pico: Pico) -> None:
    other = pico("b", pico_tensors({"h.0.c_attn": (5, 4)}))
    with pytest.raises(AdapterError, match="no module in common") as caught:
        check_collection([read_adapter(pico("a")), read_adapter(other)])
    assert len(caught.value.problems) == 1


def test_what_is_asked_for_is_not_refused(pico: Pico) -> None:
    a = read_adapter(pico("a"))
    b = read_adapter(pico("b", pico_tensors({"h.0.c_attn": (5, 4)}), base_model_name_or_path="other/base"))
    for missing in ("zero", "skip"):
        fit = check_collection([a, b], same_base=True, base_name="my/base", missing=missing)
        assert fit.base == "my/base"
        assert len(fit.notes) == 1
    with pytest.raises(AdapterError, match="base_model_name_or_path differs"):
        check_collection([a, b], base_name="my/base", missing="zero")
    # What a module is in both must be one thing, whatever is asked for.
    c = read_adapter(pico("c", pico_tensors({"layers.0.q": (4, 4)})))
    with pytest.raises(AdapterError, match=r"layers.0.q: the shapes of dW differ: 5 x 4 in .*, 4 x 4"):
        check_collection([a, c], missing="zero")


def test_a_wrapper_is_named_with_the_option_that_reads_through_it(pico: Pico) -> None:
    a = read_adapter(pico("a"))
    inside = {f"language_model.{module}": shape for module, shape in SHAPES.items()}
    b = read_adapter(pico("b", pico_tensors(inside)))
    with pytest.raises(AdapterError) as caught:
        check_collection([a, b])
    (problem,) = caught.value.problems
    assert problem == (
        f"{b.path}: has the modules of {a.path} but for the prefix language_model.: "
        "--rename language_model.= (rename: in a recipe) reads them as the same modules"
    )
    fit = check_collection([a, b.rename({"language_model.": ""})])
    assert fit.notes == ()
    # It may be that two parts of one model are meant: then it is only said.
    assert check_collection([a, b], missing="skip").notes == (problem,)


def test_a_wrapper_does_not_hide_what_is_lacking(pico: Pico) -> None:
    a, b = (read_adapter(pico(name)) for name in "ab")
    some = {f"module.{module}": SHAPES[module] for module in SHAPES}
    few = {"layers.0.q": (5, 4)}
    wrapped, part = read_adapter(pico("c", pico_tensors(some))), read_adapter(pico("d", pico_tensors(few)))
    with pytest.raises(AdapterError) as caught:
        check_collection([a, b, wrapped, part])
    first, second = caught.value.problems
    assert "but for the prefix module." in first
    assert second.startswith(f"{part.path}: lacks 2 of 3 modules")


def test_a_path_is_recognised_however_it_is_written(pico: Pico, tmp_path: Path) -> None:
    folder = pico("a")
    (tmp_path / "link").symlink_to(folder)
    for other in (tmp_path / "link", tmp_path / "x" / ".." / "a"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(AdapterError, match="is listed 2 times"):
            check_collection([read_adapter(folder), read_adapter(other)])


@pytest.mark.parametrize("settings", [{}, {"lora_alpha": 8}])
def test_equal_bytes_in_two_folders_are_two_adapters(pico: Pico, settings: dict[str, Any]) -> None:
    check_collection([read_adapter(pico("a")), read_adapter(pico("b", **settings))])


def test_one_shape_of_dw_may_be_of_two_kinds_of_layers(pico: Pico) -> None:
    linear = pico_tensors({"layers.0.q": (5, 4)})
    kernel = {name: x.reshape(2, 2, 2) if "lora_A" in name else x[..., None] for name, x in linear.items()}
    folders = [pico("a", linear), pico("b", kernel)]
    with pytest.raises(AdapterError) as caught:
        check_collection([read_adapter(folder) for folder in folders])
    a, b = folders
    (problem,) = caught.value.problems
    assert problem.startswith("layers.0.q: the kinds of layers differ: a linear layer in ")
    assert f"{a}, a convolution of 2 inputs with a kernel of 2 in {b}; is it one base model?" in problem


@pytest.mark.parametrize("missing", ["error", "zero", "skip"])
def test_experts_of_two_versions_of_transformers_are_told_apart(pico: Pico, missing: Any) -> None:
    stacked = pico_tensors({"layers.0.mlp.experts": (5, 4)}, rank=4)
    apart = pico_tensors({f"layers.0.moe.experts.{i}.w1": (5, 4) for i in range(2)})
    folders = [
        pico("v5", stacked, target_parameters=["mlp.experts.up"]),
        pico("v4", apart, target_modules=["w1"]),
    ]
    with pytest.raises(
        AdapterError, match="load that adapter with transformers 5 and save it again"
    ) as caught:
        check_collection([read_adapter(folder) for folder in folders], missing=missing)
    assert f"{folders[1]}: has factors for each expert" in str(caught.value)
