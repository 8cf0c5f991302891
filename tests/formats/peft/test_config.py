"""Settings enter the scale as in PEFT, have no effect, or are refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from riemerge.formats.dialects import read_adapter
from tests.formats.pico import CONFIG, SETTINGS, SHAPES, Pico, check_refusal, config, product, text


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({}, (2.0, 2.0, 2.0)),
        ({"lora_alpha": 3.5}, (1.75,) * 3),
        ({"lora_alpha": 0}, (0.0,) * 3),
        ({"lora_alpha": -1}, (-0.5,) * 3),
        ({"use_rslora": True}, (4 / math.sqrt(2),) * 3),
        (
            {"use_rslora": True, "alpha_pattern": {"v": 6}},
            (4 / math.sqrt(2), 6 / math.sqrt(2), 4 / math.sqrt(2)),
        ),
        ({"alpha_pattern": {"q": 6}}, (3.0, 2.0, 3.0)),
        ({"alpha_pattern": {"layers.1.q": 6, "q": 10}}, (5.0, 2.0, 3.0)),
        (
            {"alpha_pattern": {"q": 10, "layers.1.q": 6}},
            (5.0, 2.0, 5.0),
        ),  # the first in the file's order wins
        ({"alpha_pattern": {"^layers.1.q": 6}}, (2.0, 2.0, 3.0)),
        ({"alpha_pattern": {"^q": 6, "0": 6, "ayers.0.q": 6, "layers.0": 6}}, (2.0,) * 3),
        ({"alpha_pattern": {r"layers\.[1-9]\.(q|k)": 6}}, (2.0, 2.0, 3.0)),
        ({"alpha_pattern": {r".*\.\d+\.q": 6}}, (3.0, 2.0, 3.0)),
        ({"alpha_pattern": {r".*\.(?:1|3)\..*q": 6}}, (2.0, 2.0, 3.0)),
        ({"alpha_pattern": {r"(layers\.)?(1|2)\.q": 6}}, (2.0, 2.0, 3.0)),
        ({"alpha_pattern": {"q": -6}}, (-3.0, 2.0, -3.0)),
        ({"r": 7, "rank_pattern": {"q": 2, "v": 2}}, (2.0,) * 3),
        ({"rank_pattern": {}, "alpha_pattern": None, "use_rslora": None}, (2.0,) * 3),
    ],
)
def test_the_scale_is_pefts(pico: Pico, settings: dict[str, Any], scales: tuple[float, ...]) -> None:
    folder = pico(**settings)
    adapter = read_adapter(folder)
    for module, scale in zip(sorted(SHAPES), scales, strict=True):
        update = adapter.update(module)
        assert update.scale == scale
        np.testing.assert_allclose(
            update.dense().numpy(), scale * product(folder, module), rtol=1e-14, atol=1e-14
        )


def test_an_alpha_that_is_not_said_is_pefts_default(pico: Pico) -> None:
    folder = pico()
    settings = {key: value for key, value in CONFIG.items() if key != "lora_alpha"}
    (folder / SETTINGS).write_text(json.dumps(settings))
    assert read_adapter(folder).update("layers.0.q").scale == 8 / 2


@pytest.mark.parametrize(
    "settings",
    [{"init_lora_weights": value} for value in (False, None, "gaussian", "eva", "orthogonal", "mica")]
    + [
        {"use_dora": False, "modules_to_save": [], "trainable_token_indices": None, "loftq_config": {}},
        {
            "lora_dropout": 0.3,
            "target_modules": "all-linear",
            "layers_to_transform": [1],
            "peft_version": "9",
        },
        {"corda_config": {"x": 1}, "megatron_core": "megatron.core", "qalora_group_size": 16},
        {"from_the_future": None, "and_this": False, "or_that": {}},
        {"auto_mapping": {"base_model_class": "Anything"}, "inference_mode": False, "revision": "main"},
    ],
)
def test_settings_without_effect_are_accepted(pico: Pico, settings: dict[str, Any]) -> None:
    assert read_adapter(pico(**settings)).update("layers.0.q").scale == 2.0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"alpha_pattern": {"q": 6, "layers.0.v|layers.1.q": 4}}, None),
        (
            {"target_modules": ["layers.0.q", "v", "q"], "layers_pattern": [], "layers_to_transform": None},
            None,
        ),
        ({"alpha_pattern": {"q": 6, "k_proj": 4}}, "alpha_pattern: k_proj: decides nothing"),
        ({"rank_pattern": {"ayers.0.q": 4}}, "rank_pattern: ayers.0.q: decides nothing"),
        ({"alpha_pattern": {"q": 6, "layers.1.q": 3}}, "alpha_pattern: layers.1.q: decides nothing"),
        ({"lora_alpha": -1}, "alpha is negative, which turns its update around, here as in PEFT: 3 of 3"),
        ({"alpha_pattern": {"v": -1}}, "1 of 3 modules (layers.0.v)"),
        ({"lora_alpha": 0}, "alpha is 0, and so is its update: 3 of 3 modules"),
        ({"target_modules": ["q"]}, "PEFT leaves them out"),
        ({"exclude_modules": r".*\.v"}, "1 of 3 modules (layers.0.v)"),
    ],
)
def test_what_peft_passes_over_is_noted(pico: Pico, settings: dict[str, Any], says: str | None) -> None:
    adapter = read_adapter(pico(**settings))
    assert len(adapter.notes) == (says is not None)
    assert says is None or says in adapter.notes[0]


# What is done to the settings of a good folder, and what the message must say.
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "config empty": (text(""), f"{SETTINGS}: is empty"),
    "config a list": (text("[]"), "holds a list"),
    "config no json": (text("{r: 2}"), "not acceptable JSON"),
    "config not utf-8": (text(b'{"r": "\xff"}'), "not acceptable JSON"),
    "config nested": (text("[" * 100_000), "nested too deeply"),
    "key twice": (text('{"peft_type": "LORA", "r": 2, "r": 4}'), 'the key "r" occurs twice'),
    "key twice inside": (
        text('{"peft_type": "LORA", "alpha_pattern": {"q": 2, "q": 4}}'),
        'the key "q" occurs twice',
    ),
    "alpha nan": (text('{"peft_type": "LORA", "r": 2, "lora_alpha": NaN}'), "NaN is not a number"),
    "alpha 1e400": (text('{"peft_type": "LORA", "r": 2, "lora_alpha": 1e400}'), "lora_alpha is"),
    "alpha of 5000 digits": (text('{"peft_type": "LORA", "r": ' + "9" * 5000 + "}"), "not acceptable JSON"),
    "alpha a string": (config(lora_alpha="4"), 'lora_alpha is "4"'),
    "alpha a bool": (config(lora_alpha=True), "lora_alpha is true"),
    "alpha null": (config(lora_alpha=None), "lora_alpha is null: input should be a valid number"),
    "alpha of a pattern null": (config(alpha_pattern={"q": None}), "alpha_pattern.q is null"),
    "r null": (config(r=None), "r is null: input should be a valid integer"),
    "task of no kind": (config(task_type="LM"), "task_type is \"LM\": input should be 'SEQ_CLS', "),
    "targets a number": (config(target_modules=3), "target_modules"),
    "r zero": (config(r=0), "r is 0: input should be greater than 0"),
    "r negative": (config(r=-1), "r is -1"),
    "r a string": (config(r="2"), 'r is "2"'),
    "r a float": (config(r=2.0), "r is 2.0"),
    "r a bool": (config(r=True), "r is true"),
    "r is not the tensors'": (
        config(r=4),
        f"layers.0.q: the factors have rank 2 but {SETTINGS} says 4 (r, rank_pattern)",
    ),
    "rank_pattern is not the tensors'": (
        config(rank_pattern={"layers.1.q": 3}),
        f"layers.1.q: the factors have rank 2 but {SETTINGS} says 3",
    ),
    "rank_pattern zero": (config(rank_pattern={"q": 0}), "rank_pattern.q is 0"),
    "rank_pattern a list": (config(rank_pattern=[2]), "rank_pattern is [2]"),
    "alpha_pattern a string": (config(alpha_pattern={"q": "x"}), 'alpha_pattern.q is "x"'),
    "pattern no regex": (
        config(alpha_pattern={"q[": 1}),
        'alpha_pattern has the key "q[": not a regular expression',
    ),
    "pattern repeated group": (config(alpha_pattern={"(a+)+b": 1}), "too complex to match safely"),
    "pattern repeated alternatives": (config(rank_pattern={"(a|aa)*b": 2}), "too complex to match safely"),
    "pattern many stars": (config(rank_pattern={".*.*.*b": 2}), "too complex to match safely"),
    "pattern many options": (config(rank_pattern={"a?a?a?aaa": 2}), "too complex to match safely"),
    "pattern many groups": (config(rank_pattern={"(a|b)(a|b)(a|b)": 2}), "too complex to match safely"),
    "pattern repeated alternatives, uncaptured": (
        config(rank_pattern={"(?:a|aa)*b": 2}),
        "too complex to match safely",
    ),
    "pattern options within": (config(rank_pattern={"((a?)?.*)?b": 2}), "too complex to match safely"),
    "pattern look-ahead": (config(rank_pattern={"(?=q)q": 2}), "too complex to match safely"),
    "pattern long": (config(rank_pattern={"a" * 201: 2}), "longer than 200 characters"),
    "peft_type missing": (config(peft_type=None), "peft_type is null: only LORA"),
    "peft_type lower case": (config(peft_type="lora"), 'peft_type is "lora": only LORA'),
    "peft_type another": (config(peft_type="XLORA"), 'peft_type is "XLORA": only LORA'),
    "peft_type a product": (config(peft_type="LOHA"), 'peft_type is "LOHA": riemerge convert makes a LoRA'),
    "peft_type of the base": (config(peft_type="IA3"), "riemerge extract makes a LoRA of"),
    "dora": (config(use_dora=True), "layers.0.q: has no lora_magnitude_vector, but use_dora is true"),
    "pissa": (config(init_lora_weights="pissa"), 'init_lora_weights is "pissa"'),
    "pissa_niter": (config(init_lora_weights="pissa_niter_4"), 'init_lora_weights is "pissa_niter_4"'),
    "olora": (
        config(init_lora_weights="olora"),
        "converted: convert it with PEFT, where the adapter was saved",
    ),
    "corda": (config(init_lora_weights="corda"), 'init_lora_weights is "corda"'),
    "loftq": (config(init_lora_weights="loftq"), "unless converted: merge it into its own changed base"),
    "lora_ga": (config(init_lora_weights="lora_ga"), 'init_lora_weights is "lora_ga"'),
    "init a number": (config(init_lora_weights=1), "init_lora_weights is 1"),
    "target_parameters": (config(target_parameters="experts.w"), 'target_parameters is "experts.w"'),
    "layer_replication": (config(layer_replication=[[0, 2]]), "layer_replication is [[0, 2]]"),
    "alora": (config(alora_invocation_tokens=[5]), "alora_invocation_tokens is [5]"),
    "qalora": (config(use_qalora=True), "use_qalora is true"),
    "bdlora": (config(use_bdlora={"n": 1}), "use_bdlora is"),
    "velora": (config(velora_config={"n": 1}), "velora_config is"),
    "monteclora": (config(monteclora_config={"n": 1}), "monteclora_config is"),
    "kasa": (config(kasa_config={"n": 1}), "kasa_config is"),
    "arrow": (config(arrow_config={"n": 1}), "arrow_config is"),
    "megatron": (config(megatron_config={"n": 1}), "megatron_config is"),
    "from the future": (config(use_xlora2=True), '"use_xlora2" is true: an unknown setting'),
    "base name a number": (config(base_model_name_or_path=7), "base_model_name_or_path is 7"),
}


@pytest.mark.parametrize("row", BAD)
def test_settings_that_are_not_read_exactly_are_refused_by_name(pico: Pico, row: str) -> None:
    check_refusal(pico("law"), *BAD[row])
