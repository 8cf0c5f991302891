"""PEFT as the oracle of merged weights: bit for bit what `merge_and_unload` leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from riemerge.formats.checkpoint import patch, read_checkpoint, read_patched
from riemerge.formats.dialects import read_adapter
from riemerge.merging.application import apply_adapter
from riemerge.merging.extraction import extract_adapter
from tests.oracles.test_peft import bert, gpt2, llama

pytestmark = [
    pytest.mark.oracle,
    # PEFT 0.21.2 asks transformers 5 by the old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # It corrects the flag by the class of a layer, and says so.
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    # It takes the bias of a factor for a shard.
    pytest.mark.filterwarnings("ignore:Adapter 'default'. 1 LoRA tensor"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
]


class Experts(nn.Module):
    """Twelve experts, more than one digit counts, as two parameters."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.is_transposed = turned
        self.up, self.down = nn.Parameter(torch.randn(12, 8, 5)), nn.Parameter(torch.randn(12, 5, 6))


class Kinds(nn.Module):
    """Layers of every kind that PEFT merges."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            model_type="custom",
            to_dict=dict,
            get=lambda key, default=None: default,
            tie_word_embeddings=False,
        )
        self.line, self.cube = nn.Conv1d(4, 6, 3), nn.Conv3d(4, 6, 2)
        self.square, self.point, self.dot = nn.Conv2d(4, 6, (3, 2)), nn.Conv2d(4, 6, 1), nn.Conv1d(4, 6, 1)
        self.tokens, self.linear = nn.Embedding(11, 7), nn.Linear(7, 9)
        self.plain, self.turned = Experts(False), Experts(True)


def untied() -> nn.Module:
    """GPT-2 with an output layer of its own, which is no Conv1D."""
    model = gpt2()
    head: Any = model.lm_head
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False  # type: ignore[union-attr]
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "llama": (llama, {"use_rslora": True, "target_modules": "all-linear", "rank_pattern": {"o_proj": 3}}),
    "llama with the flag of GPT-2": (llama, {"target_modules": ["q_proj", "v_proj"], "fan_in_fan_out": True}),
    "bert": (bert, {"target_modules": ["query", "dense"], "alpha_pattern": {"query": 7}}),
    "gpt2": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "gpt2 without its flag": (gpt2, {"target_modules": ["c_attn", "c_proj"]}),
    "gpt2 and its output": (
        untied,
        {"target_modules": ["c_attn", "c_proj", "lm_head"], "fan_in_fan_out": True},
    ),
    "convolutions": (Kinds, {"target_modules": ["line", "square", "point", "dot", "cube"]}),
    "embedding": (Kinds, {"target_modules": ["tokens"]}),
    "bias": (Kinds, {"target_modules": ["linear"], "lora_bias": True}),
    "dora": (llama, {"target_modules": "all-linear", "use_dora": True}),
    "dora of bert": (bert, {"target_modules": ["query", "dense"], "use_dora": True, "use_rslora": True}),
    "dora of gpt2": (gpt2, {"target_modules": ["c_attn", "c_proj", "wte"], "use_dora": True}),
    "dora of convolutions": (
        Kinds,
        {"target_modules": ["line", "square", "point", "dot", "cube", "linear"], "use_dora": True},
    ),
    "tokens": (llama, {"target_modules": ["q_proj"], "trainable_token_indices": [7, 2]}),
    "tokens of bert": (
        bert,
        {"target_modules": ["key"], "trainable_token_indices": {"word_embeddings": [1, 3, 5]}},
    ),
    "biases": (bert, {"target_modules": ["key"], "bias": "all"}),
    "biases of the layers": (bert, {"target_modules": ["key"], "bias": "lora_only"}),
    "heads": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "model.norm"]}),
    "experts": (
        Kinds,
        {
            "target_modules": ["linear"],
            "target_parameters": ["plain.up", "plain.down", "turned.up", "turned.down"],
        },
    ),
}


def save_both(peft: ModuleType, case: str, dtype: torch.dtype, folder: Path) -> nn.Module:
    """Save a base model, and an adapter of random factors as PEFT does; return the base model."""
    make, settings = CASES[case]
    torch.manual_seed(0)
    base = make().to(dtype)
    tied = {"lm_head.weight"} if base.config.tie_word_embeddings else set()  # type: ignore[union-attr]
    (folder / "base").mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in base.state_dict().items() if name not in tied},
        folder / "base" / "model.safetensors",
    )
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=3, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
            elif parameter.requires_grad:
                parameter.normal_()
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    unloaded: nn.Module = model.unload()
    return unloaded


EACH = [
    *((case, dtype) for case in CASES for dtype in (torch.float32, torch.float16, torch.bfloat16)),
    *((case, torch.float64) for case in ("llama", "embedding", "dora")),
]


@pytest.mark.parametrize(("case", "dtype"), EACH)
def test_a_base_with_an_adapter_is_what_peft_merges_and_unloads(
    peft: ModuleType, tmp_path: Path, case: str, dtype: torch.dtype
) -> None:
    base = save_both(peft, case, dtype, tmp_path)
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    view = read_patched(tmp_path / "base", tmp_path / "adapter")
    expected = dict(merged.state_dict())
    assert {*view.names} <= {*expected}
    for name in view.names:
        tensor = view.tensor(name, dtype=None)
        assert tensor.dtype == expected[name].dtype == dtype
        assert torch.equal(tensor, expected[name])
        changed = {*view.patches, *view.tokens, *view.adapter.saved}
        assert torch.equal(tensor, view.base.tensor(name, dtype=None)) == (name not in changed)
    assert sum(map(len, view.patches.values())) == len(view.adapter.modules)


@pytest.mark.parametrize("case", ["dora", "dora of gpt2", "embedding", "experts", "bias"])
def test_the_record_measures_the_change_of_every_kind(peft: ModuleType, tmp_path: Path, case: str) -> None:
    save_both(peft, case, torch.bfloat16, tmp_path)
    record = apply_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    view, written = read_patched(tmp_path / "base", tmp_path / "adapter"), read_checkpoint(tmp_path / "out")
    rows = {row.module: row for row in record.modules}
    for name, modules in view.patches.items():
        for module in modules:
            layer, change = view.adapter.layers[module], view.adapter.update(module).dense()
            before, after = (layer.view(one.tensor(name)) for one in (view.base, written))
            assert rows[module].norm == pytest.approx(float(change.norm()), rel=1e-9)
            lost = float((after - before - change).norm())
            assert rows[module].error == pytest.approx(lost / float(change.norm()), rel=1e-9)


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("tokens", "adapter: rows of trained tokens stand in model.embed_tokens.weight"),
        ("heads", "adapter: stands whole in place of the base model's: lm_head.weight, model.norm.weight"),
    ],
)
def test_what_was_saved_whole_is_said_by_name(peft: ModuleType, tmp_path: Path, case: str, text: str) -> None:
    save_both(peft, case, torch.bfloat16, tmp_path)
    assert text in apply_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "out").warnings


def test_what_is_written_is_what_peft_merges_one_after_the_other(peft: ModuleType, tmp_path: Path) -> None:
    base = save_both(peft, "bert", torch.bfloat16, tmp_path)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    apply_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "once")
    apply_adapter(tmp_path / "once", tmp_path / "adapter", tmp_path / "twice")
    written, adapter = read_checkpoint(tmp_path / "twice"), read_adapter(tmp_path / "adapter")
    view = patch(patch(read_checkpoint(tmp_path / "base"), adapter), adapter)
    for name, tensor in model.state_dict().items():
        assert torch.equal(written.tensor(name, dtype=None), tensor)
        assert torch.equal(view.tensor(name, dtype=None), tensor)


EXTRACTED: dict[str, tuple[str, list[str]]] = {
    "llama": ("llama", ["all"]),
    "gpt2": ("gpt2 and its output", ["linear", "wte", "lm_head"]),
}


# It says so of a flag that some layers have and some have not.
@pytest.mark.filterwarnings("ignore:Merging lora layers:UserWarning")
@pytest.mark.parametrize("case", EXTRACTED)
def test_peft_loads_what_was_extracted(peft: ModuleType, tmp_path: Path, case: str) -> None:
    made, modules = EXTRACTED[case]
    make, _ = CASES[made]
    torch.manual_seed(0)
    models = {name: make() for name in ("base", "tuned")}
    for name, model in models.items():
        (tmp_path / name).mkdir()
        tensors = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": model.config.model_type}))  # type: ignore[union-attr]
        save_file(tensors, tmp_path / name / "model.safetensors")
    # The full rank of each matrix.
    extract_adapter(
        tmp_path / "base", tmp_path / "tuned", tmp_path / "out", rank=12, modules=modules, others="drop"
    )
    merged = peft.PeftModel.from_pretrained(models["base"], tmp_path / "out").merge_and_unload().state_dict()
    apply_adapter(tmp_path / "base", tmp_path / "out", tmp_path / "back")
    back, tuned = read_checkpoint(tmp_path / "back"), models["tuned"].state_dict()
    adapter = read_adapter(tmp_path / "out")
    for name in back.names:
        assert torch.equal(back.tensor(name, dtype=None), merged[name])
        if name.removesuffix(".weight") in adapter.modules:
            torch.testing.assert_close(merged[name], tuned[name], rtol=1e-4, atol=1e-6)
