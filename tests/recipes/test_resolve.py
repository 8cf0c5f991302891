"""Resolution: what a recipe says of one module is what mergekit's own planner would read in it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from riemerge.errors import RecipeError
from riemerge.methods import METHODS, PARAMETERS, Method
from riemerge.methods.parameters import Parameter
from riemerge.recipes.recipe import Recipe, make_recipe
from riemerge.recipes.resolve import Resolver, depths
from tests.helpers import ROOT

FROZEN = json.loads((ROOT / "tests/oracles/parameters.json").read_text())

LAYERS = 7
MODULES = [
    *(f"model.layers.{i}.self_attn.{name}" for i in range(LAYERS) for name in ("q_proj", "v_proj")),
    *(f"model.layers.{i}.mlp.up_proj" for i in range(LAYERS)),
    "lm_head",
    "model.embed_tokens",
]


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Method:
    """A method with one parameter of each kind that may differ between modules or models."""
    extra = (
        Parameter("normalize", "flag", "", per_module=True),
        Parameter("word", "choice", "", choices=("left", "right"), per_module=True, per_model=True),
        Parameter("t", "number", "", per_module=True),
    )
    for one in extra:
        monkeypatch.setitem(PARAMETERS, one.name, one)
    row = Method(
        "trial",
        "",
        "",
        own_parameters={"density": 1.0, "normalize": True, "word": None, "t": None},
        negative_weights=True,
    )
    monkeypatch.setitem(METHODS, "trial", row)
    return row


def asked(models: int = 2, *own: dict[str, Any], **parameters: Any) -> Recipe:
    entries = [{"model": f"m{i}", "parameters": own[i] if i < len(own) else {}} for i in range(models)]
    return make_recipe({"merge_method": "trial", "models": entries, "parameters": parameters})


def refused(recipe: Recipe, method: Method, modules: list[str] | None = None) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        Resolver(recipe, method, MODULES if modules is None else modules)
    return caught.value.problems


# --- mergekit -----------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("case", FROZEN["cases"], ids=lambda case: case["name"])
def test_every_module_has_the_values_that_mergekit_plans_with(trial: Method, case: dict[str, Any]) -> None:
    said = case["recipe"]
    recipe = asked(2, said.get("a", {}), said.get("b", {}), **said["parameters"])
    modules = [name.removesuffix(".weight") for name in case["tensors"]]
    resolver = Resolver(recipe, trial, modules)
    assert len(modules) == 48
    for module, expected in zip(modules, case["tensors"].values(), strict=True):
        values = resolver.values(module)
        # The same two products and one sum: only the guard at the ends may differ, by a round-off.
        assert resolver.weights(module) == pytest.approx(expected["weight"], rel=1e-15), module
        assert values["density"] == pytest.approx(expected["density"], rel=1e-15), module
        assert values["normalize"] is expected["normalize"], module


# --- depth --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (["model.layers.0.q", "model.layers.2.q", "model.layers.8.q"], [0, 0.25, 1]),
        (["transformer.h.1.attn", "transformer.h.4.mlp.2"], [0.25, 1]),
        (
            ["encoder.block.1.layer.0.q", "encoder.block.2.layer.1.q", "decoder.block.3.layer.0.q"],
            [0.5, 1, 1],
        ),
        (["0.auto_model.encoder.layer.1.q", "0.auto_model.encoder.layer.2.q"], [0.5, 1]),
        (["model.layers.1.mlp.experts.7.w1", "model.layers.3.mlp.experts.0.w1"], [1 / 3, 1]),
        (["down_blocks.1.attentions.0.to_q", "down_blocks.2.attentions.1.to_q", "mid.q"], [0.5, 1, 0]),
        (["vision.layers.1.q", "vision.layers.2.q", "text.layers.1.q", "text.layers.4.q"], [0.5, 1, 0.25, 1]),
        (["layers.0.q", "lm_head", "embed", "norm"], [1, 0, 0, 0]),
        (["layers.3"], [1]),
        (["conv1d", "layers2.x", "layers.x.q"], [0, 0, 0]),
        ([], []),
    ],
)
def test_depth_goes_from_0_to_1_in_every_stack_of_layers(modules: list[str], expected: list[float]) -> None:
    assert depths(modules) == dict(zip(modules, expected, strict=True))


@pytest.mark.parametrize("knots", [[0.2, 0.8], [0.0, 0.5, 1.0], [1.0, 0.1, 0.7, 0.3], [0.3]])
def test_a_gradient_meets_its_knots_and_never_leaves_its_pieces(trial: Method, knots: list[float]) -> None:
    modules = [f"layers.{i}.q" for i in range(6 * 7 + 1)]
    resolver = Resolver(asked(t=knots), trial, modules)
    found = [resolver.values(module)["t"] for module in modules]
    steps = max(len(knots) - 1, 1)
    assert found[:: 42 // steps][: len(knots)] == pytest.approx(knots, abs=1e-15)
    assert (found[0], found[-1]) == (knots[0], knots[-1])
    for low, high in pairwise(knots):
        assert all(min(knots) <= value <= max(knots) for value in found)
        middle = [value for value in found if min(low, high) < value < max(low, high)]
        assert middle
    # Equal steps inside a piece: the second differences vanish but at the knots.
    bent = [i for i in range(1, 42) if abs(found[i + 1] - 2 * found[i] + found[i - 1]) > 1e-12]
    assert all(i % (42 // steps) == 0 for i in bent)


def test_a_constant_gradient_is_its_constant_bit_for_bit(trial: Method) -> None:
    modules = [f"layers.{i}.q" for i in range(50)]
    for value in (0.1, 0.7, 1 / 3, 1.0):
        resolver = Resolver(asked(density=[value] * 4), trial, modules)
        assert {resolver.values(module)["density"] for module in modules} == {(value, value)}


def test_words_change_at_equal_steps_and_never_mix(trial: Method) -> None:
    modules = [f"layers.{i}.q" for i in range(5)]
    resolver = Resolver(asked(2, {"word": ["left", "right", "left"]}, word="right"), trial, modules)
    firsts, seconds = zip(*(resolver.values(module)["word"] for module in modules), strict=True)
    assert firsts == ("left", "left", "right", "right", "left")
    assert set(seconds) == {"right"}


# --- levels -------------------------------------------------------------------------------------------------


def test_what_is_said_of_a_model_goes_before_what_is_said_of_all_and_that_before_the_default(
    trial: Method,
) -> None:
    own = {"density": [{"filter": "q_proj", "value": 0.1}], "weight": [{"filter": "mlp", "value": 5}]}
    recipe = asked(3, own, {"weight": 2}, density=[{"filter": "self_attn", "value": 0.2}])
    resolver = Resolver(recipe, trial, MODULES)
    assert resolver.values("model.layers.3.self_attn.q_proj")["density"] == (0.1, 0.2, 0.2)
    assert resolver.values("model.layers.3.self_attn.v_proj")["density"] == (0.2, 0.2, 0.2)
    assert resolver.values("lm_head")["density"] == (1.0, 1.0, 1.0)
    assert resolver.weights("model.layers.3.mlp.up_proj") == (5.0, 2.0, 1.0)
    assert resolver.weights("lm_head") == (1.0, 2.0, 1.0)


def test_scale_is_1_where_nothing_is_said_of_it(trial: Method) -> None:
    resolver = Resolver(asked(scale=[{"filter": "mlp", "value": [2, 3]}]), trial, MODULES)
    assert resolver.scale("model.layers.0.self_attn.q_proj", None) == 1.0
    assert [resolver.scale(f"model.layers.{i}.mlp.up_proj", 7.0) for i in (0, LAYERS - 1)] == [2.0, 3.0]


def test_a_matched_scale_is_what_it_came_to_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Method("trial", "", "", normalised=True)
    monkeypatch.setitem(METHODS, "trial", trial)
    resolver = Resolver(asked(scale=[{"filter": "mlp", "value": "matched"}, {"value": 2}]), trial, MODULES)
    assert resolver.matched == {module for module in MODULES if "mlp" in module}
    modules = "model.layers.0.mlp.up_proj", "lm_head"
    assert [resolver.scale(module, 7.0) for module in modules] == [7.0, 2.0]
    assert [resolver.scale(module, None) for module in modules] == [1.0, 2.0]


def test_a_published_scale_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Method("trial", "", "", own_parameters={"scale": 0.3})
    monkeypatch.setitem(METHODS, "trial", row)
    assert Resolver(asked(), row, MODULES).scale("lm_head", None) == 0.3
    assert Resolver(asked(scale=2), row, MODULES).scale("lm_head", None) == 2.0


def test_what_no_one_says_is_none_and_each_name_is_there(trial: Method) -> None:
    values = Resolver(asked(), trial, MODULES).values("lm_head")
    assert values == {"rank": None, "density": (1.0, 1.0), "normalize": True, "word": None, "t": None}


# --- what only the names of the modules show ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("q_prj", "did you mean 'q_proj'"),
        ("self_atn.q_proj", "did you mean 'self_attn.q_proj'"),
        ("zzz", "the modules are model.layers.0.self_attn.q_proj, "),
        ("layers.7.", "is part of no module's name"),
    ],
)
def test_a_filter_that_fits_nowhere_is_refused_with_near_ones(trial: Method, part: str, says: str) -> None:
    items = [{"filter": "mlp", "value": 0.2}, {"filter": part, "value": 0.1}, {"value": 0.5}]
    [found] = refused(asked(density=items), trial)
    assert found.startswith(f"parameters.density[1].filter: '{part}' is part of no module's name: ")
    assert says in found
    [found] = refused(asked(2, {}, {"weight": items}), trial)
    assert found.startswith(f"models[1].parameters.weight[1].filter: '{part}'")


def test_a_value_in_some_places_only_is_refused(trial: Method) -> None:
    [found] = refused(asked(t=[{"filter": "mlp", "value": 0.5}]), trial)
    assert found.startswith(
        "parameters.t: has a value in some places, but none in model.layers.0.self_attn.q_proj"
    )
    [found] = refused(asked(2, {"word": "left"}), trial, ["lm_head"])
    assert "but none in lm_head of m1: end the list" in found
    assert Resolver(asked(2, {"word": "left"}, {"weight": 0}), trial, MODULES).values("lm_head")["t"] is None


def test_a_module_in_which_no_weight_counts_is_refused(trial: Method) -> None:
    off = [{"filter": "mlp", "value": 0}, {"value": 1}]
    assert Resolver(asked(2, {"weight": off}), trial, MODULES).weights(MODULES[-3]) == (0.0, 1.0)
    [found] = refused(asked(weight=off), trial)
    assert found == (
        "weight: 0 for every model in model.layers.0.mlp.up_proj, model.layers.1.mlp.up_proj, "
        "model.layers.2.mlp.up_proj and 4 more: at least one must count in every module"
    )


def test_weights_that_cancel_are_no_divisor_but_a_sum(trial: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    for weights in ((1, -1), (0.1, 0.2, -0.3)):
        own = [{"weight": weight} for weight in weights]
        [found] = refused(asked(len(weights), *own), trial, ["lm_head"])
        assert found.startswith("weight: the weights add up to 0 in lm_head, and trial divides by their sum")
    plain = Method("trial", "", "", normalised=False, negative_weights=True)
    monkeypatch.setitem(METHODS, "trial", plain)
    assert Resolver(asked(2, {"weight": 1}, {"weight": -1}), plain, ["lm_head"]).weights("lm_head") == (1, -1)


def test_all_problems_come_at_once(trial: Method) -> None:
    recipe = asked(
        2,
        {"weight": [{"filter": "mpl", "value": 1}, {"value": 0}]},
        {"weight": [{"filter": "mlp", "value": 1}, {"value": 0}]},
        t=[{"filter": "q_prj", "value": 1}],
    )
    found = refused(recipe, trial)
    starts = (
        "parameters.t[0]",
        "models[0].parameters.weight[0]",
        "parameters.t:",
        "weight: 0 for every model",
    )
    assert [text.startswith(start) for text, start in zip(found, starts, strict=True)] == [True] * 4
