"""Laws of the names of Stable Diffusion: one to one, and those of diffusers' own models and converter."""

from __future__ import annotations

import hashlib

import pytest

from riemerge.errors import AdapterError
from riemerge.formats.unet_names import PIPELINES, find_doubt, find_twins, translate

# The number of linear layers and convolutions of diffusers' UNets, and the sha256 of their names, sorted, a
# line each; and of what diffusers' own converter makes of kohya's keys, "key name" a line each: from
# `python -m tests.oracles.make_unet_names`, with diffusers 0.42.1.
UNETS = {
    "SD 1.5": (282, "dd6091162eb4b863494b65b4361eff6ecf58b8781f04894a8f342c088a0fcda8"),
    "SDXL": (794, "d234e0d9bb1356fe259f90131d61fb167eb7992a7d78d63c6df9f115c5a93eb9"),
}
CONVERTED = {
    ("SD 1.5", False): "e0be918157ed3caa8e752ba6a3d2614a6585c6869b1197157533e00215322e45",
    ("SDXL", True): "c4d54f2f1e8e61b54fb22b7e0f8942141c7b68f240cedeeda7f68bfb6495186a",
}


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_modules_of_a_unet_are_those_of_diffusers(pipeline: str) -> None:
    names = [name for name, _ in PIPELINES[pipeline].unet()]
    assert (len(names), digest(names)) == UNETS[pipeline]


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("stability", [False, True])
def test_names_in_kohyas_files_are_one_to_one(pipeline: str, stability: bool) -> None:
    stems = PIPELINES[pipeline].stems(stability=stability)
    assert len({*stems.values()}) == len(stems)
    assert translate([*stems.values()], "kohya", "diffusers") == {stem: name for name, stem in stems.items()}
    if stability == PIPELINES[pipeline].stability:
        assert translate([*stems], "diffusers", "kohya") == stems


@pytest.mark.parametrize(("pipeline", "stability"), CONVERTED)
def test_names_in_kohyas_files_are_read_as_by_diffusers(pipeline: str, stability: bool) -> None:
    stems = PIPELINES[pipeline].stems(stability=stability)
    lines = [f"{stem} {name}" for name, stem in stems.items() if name.startswith("unet.")]
    assert digest(lines) == CONVERTED[pipeline, stability]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("layers.11.self_attn.q_proj", "layers_11_self_attn_q_proj"),
        ("layers.0.mlp.fc2", "layers_0_mlp_fc2"),
    ],
)
def test_text_encoders_are_numbered_where_there_are_two(name: str, stem: str) -> None:
    name, stem = f"text_encoder.text_model.encoder.{name}", f"text_model_encoder_{stem}"
    assert translate([name], "diffusers", "kohya") == {name: f"lora_te_{stem}"}
    second = name.replace("text_encoder.", "text_encoder_2.")
    both = {name: f"lora_te1_{stem}", second: f"lora_te2_{stem}"}
    assert translate([name, second], "diffusers", "kohya") == both
    for key in ("te", "te1"):
        assert translate([f"lora_{key}_{stem}"], "kohya", "diffusers") == {f"lora_{key}_{stem}": name}


def test_a_folder_of_peft_is_one_of_a_unet() -> None:
    names = [name for name, _ in PIPELINES["SD 1.5"].unet()]
    full = translate(names, "peft", "diffusers")
    assert full == {name: f"unet.{name}" for name in names}
    assert translate([*full.values()], "diffusers", "peft") == {new: old for old, new in full.items()}


def test_names_follow_those_of_the_other_file() -> None:
    ours, theirs = (PIPELINES["SDXL"].stems(stability=stability) for stability in (False, True))
    name, other = "unet.mid_block.resnets.1.conv2", "unet.up_blocks.0.upsamplers.0.conv"
    for stems in (ours, theirs):
        assert translate([name, other], "diffusers", "kohya", like=[stems[name]]) == {
            name: stems[name],
            other: stems[other],
        }
    assert translate([theirs[name]], "kohya", "kohya", like=[ours[other]]) == {theirs[name]: ours[name]}
    assert theirs[other] == "lora_unet_output_blocks_2_2_conv"


def test_models_of_words_have_one_name_in_peft_and_mlx() -> None:
    name = "model.layers.0.self_attn.q_proj"
    assert translate([name], "peft", "mlx") == translate([name], "mlx", "peft") == {name: name}


@pytest.mark.parametrize(
    ("module", "source", "target"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", "kohya", "diffusers"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "kohya", "peft"),
        ("unet.mid_block.attentions.0.proj_in", "diffusers", "mlx"),
        ("transformer.transformer_blocks.0.attn.to_q", "diffusers", "kohya"),
        ("model.layers.0.self_attn.q_proj", "peft", "kohya"),
        ("text_model.encoder.layers.0.mlp.fc1", "peft", "diffusers"),
    ],
)
def test_modules_without_a_name_are_refused_by_name(module: str, source: str, target: str) -> None:
    with pytest.raises(AdapterError, match=rf"1 of 1 modules .* no name in that of {target}: {module}"):
        translate([module], source, target)


ENCODER = "text_model_encoder_layers_0_self_attn_q_proj"
IN_SDXL = "attentions_0_transformer_blocks_0_attn1_to_q"
TWINS = [
    ("kohya", (f"lora_te1_{ENCODER}", f"lora_te_{ENCODER}")),
    (
        "kohya",
        (
            f"lora_unet_down_blocks_1_{IN_SDXL}",
            f"lora_unet_{IN_SDXL.replace('attentions_0', 'input_blocks_4_1')}",
        ),
    ),
    ("peft", ("mid_block.attentions.0.proj_in", "unet.mid_block.attentions.0.proj_in")),
]


@pytest.mark.parametrize(("dialect", "twins"), TWINS)
def test_two_names_of_one_module_are_refused(dialect: str, twins: tuple[str, str]) -> None:
    (fault,) = find_twins(twins, dialect)
    assert fault.startswith(f"{twins[0]} and {twins[1]} are names of one module")
    with pytest.raises(AdapterError, match=f"{twins[0]} and {twins[1]}"):
        translate(twins, dialect, "diffusers")
    with pytest.raises(AdapterError, match=f"{twins[0]} and {twins[1]}"):
        translate([], "diffusers", dialect, like=twins)
    assert not find_twins(twins[:1], dialect)


@pytest.mark.parametrize(
    ("base", "pipeline"),
    [
        (None, None),
        ("somebody/style", None),
        ("sd_v1", "SD 1.5"),
        ("CompVis/stable-diffusion-v1-4", "SD 1.5"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "SD 1.5"),
        ("sdxl_base_v1-0", "SDXL"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "SDXL"),
    ],
)
def test_the_base_decides_where_names_fit_both_pipelines(base: str | None, pipeline: str | None) -> None:
    both = "unet.mid_block.attentions.0.proj_in"
    stems = PIPELINES[pipeline or "SD 1.5"].stems(stability=pipeline == "SDXL")
    assert translate([both], "diffusers", "kohya", base=base) == {both: stems[both]}
    assert (find_doubt([both], "diffusers", base) is None) == (pipeline is not None)
    only = "unet.add_embedding.linear_1"
    assert translate([only, both], "diffusers", "kohya", base=base)[only] == "lora_unet_label_emb_0_0"
    assert find_doubt([only, both], "diffusers", base) is None


def test_text_encoders_are_named_as_in_the_other_file() -> None:
    names = [f"text_encoder.text_model.encoder.layers.{layer}.mlp.fc1" for layer in (0, 1)]
    like = ["lora_te1_text_model_encoder_layers_0_mlp_fc1"]
    assert translate(names[1:], "diffusers", "kohya", like=like) == {names[1]: like[0].replace("s_0", "s_1")}
