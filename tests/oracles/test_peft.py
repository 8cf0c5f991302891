"""PEFT as the oracle: the same dW of what it writes, and of what we write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from riemerge.errors import AdapterError
from riemerge.formats.checkpoint import read_patched
from riemerge.formats.dialects import read_adapter, write_adapter
from riemerge.updates.low_rank import sum_updates

pytestmark = [
    pytest.mark.oracle,
    # PEFT 0.21.2 asks transformers 5 by the old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11,
            hidden_size=12,
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=1,
        )
    )


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=11, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20
        )
    )


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=12, n_layer=2, n_head=3))


TARGETS = ["q", "a.q+", "qq", "axq"]


class Names(nn.Module):
    """Modules whose names end alike or hold what a regular expression would read otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            model_type="custom", to_dict=dict, get=lambda key, default=None: default
        )
        self.a = nn.ModuleDict({"q": nn.Linear(4, 5), "q+": nn.Linear(4, 5), "qq": nn.Linear(4, 5)})
        self.b = nn.ModuleDict({"a": nn.ModuleDict({"q": nn.Linear(4, 5)})})
        self.axq = nn.Linear(4, 5)


class Layers(Names):
    """As well with numbers in its names, of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.ModuleDict({"h": nn.ModuleList(nn.ModuleDict({"q": nn.Linear(4, 5)}) for _ in range(2))})
        self.c["1"] = nn.ModuleDict({"q": nn.Linear(4, 5)})


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "llama": (llama, {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "llama rslora": (
        llama, {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": "all-linear"}
    ),
    "llama patterns": (
        llama,
        {
            "r": 2,
            "lora_alpha": 5,
            "target_modules": ["q_proj", "o_proj", "up_proj"],
            "rank_pattern": {"layers.0.self_attn.q_proj": 4, r".*\.1\.mlp\.up_proj": 1, "up_proj": 3},
            "alpha_pattern": {"o_proj": 7, r"layers\.[1-9]\.self_attn\.(q_proj|o_proj)": 11},
        },
    ),
    "bert rslora patterns": (
        bert,
        {
            "r": 2,
            "use_rslora": True,
            "target_modules": ["query", "value", "intermediate.dense"],
            "rank_pattern": {"query": 4},
            "alpha_pattern": {"0.attention.self.query": 3},
        },
    ),
    "gpt2 fan_in_fan_out": (
        gpt2, {"r": 2, "lora_alpha": 3, "fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj"]}
    ),
    "gaussian": (bert, {"r": 2, "init_lora_weights": "gaussian", "target_modules": ["key"]}),
    "orthogonal": (bert, {"r": 2, "init_lora_weights": "orthogonal", "target_modules": ["key"]}),
    "mica": (bert, {"r": 2, "init_lora_weights": "mica", "target_modules": ["key"]}),
    "names": (
        Names, {"r": 2, "target_modules": TARGETS, "rank_pattern": {"^a.q": 1, "b.a.q": 3}}
    ),
    "layers": (Layers, {"r": 2, "lora_alpha": 3, "target_modules": TARGETS}),
}  # fmt: skip


def trained(peft: ModuleType, case: str, seed: int, folder: Path) -> dict[str, Tensor]:
    """Save an adapter of random factors as PEFT does; returns PEFT's dW of every module, in float64.

    Of the folder, not of the model that was saved: PEFT sorts the keys of the patterns as it saves them, and
    the first that matches decides, so a saved adapter can differ from itself.
    """
    make, settings = CASES[case]
    torch.manual_seed(seed)
    model = peft.get_peft_model(make(), peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    model.save_pretrained(folder)
    return loaded(peft, case, folder)


def loaded(peft: ModuleType, case: str, folder: Path) -> dict[str, Tensor]:
    """PEFT's dW of every module of a folder; any warning (of a missing key, say) is an error."""
    return deltas(peft.PeftModel.from_pretrained(CASES[case][0](), folder))


def deltas(model: nn.Module) -> dict[str, Tensor]:
    model.double()
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.mark.parametrize("case", CASES)
def test_reading_writing_and_loading_keep_pefts_dw(peft: ModuleType, tmp_path: Path, case: str) -> None:
    expected = trained(peft, case, 0, tmp_path / "in")
    adapter = read_adapter(tmp_path / "in")
    assert set(adapter.modules) == set(expected)
    updates = {module: adapter.update(module) for module in adapter.modules}
    for module, update in updates.items():
        dense = update.dense().T if adapter.config.fan_in_fan_out else update.dense()
        torch.testing.assert_close(dense, expected[module], rtol=1e-13, atol=1e-13)

    write_adapter(tmp_path / "out", updates, like=[adapter], dtype=torch.float32)
    written = loaded(peft, case, tmp_path / "out")
    assert_same_and_nothing_else(written, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["llama patterns", "gpt2 fan_in_fan_out"])
def test_a_sum_of_two_adapters_loads_in_a_narrow_dtype(
    peft: ModuleType, tmp_path: Path, case: str, dtype: torch.dtype
) -> None:
    parts = [trained(peft, case, seed, tmp_path / str(seed)) for seed in (1, 2)]
    adapters = [read_adapter(tmp_path / str(seed)) for seed in (1, 2)]
    weights = [0.7, -0.4]
    updates = {
        module: sum_updates([adapter.update(module) for adapter in adapters], weights)
        for module in adapters[0].modules
    }
    errors = write_adapter(tmp_path / "out", updates, like=adapters, dtype=dtype)
    written = loaded(peft, case, tmp_path / "out")
    for module, error in errors.items():
        shares = [w * part[module] for w, part in zip(weights, parts, strict=True)]
        expected = torch.stack(shares).sum(dim=0)
        distance = float((written[module] - expected).norm() / expected.norm())
        assert distance == pytest.approx(error, rel=1e-6)
        assert error < 8 * torch.finfo(dtype).eps  # √r eps, r <= 8


MERGED = {
    name: CASES[name]
    for name in ("llama rslora", "llama patterns", "bert rslora patterns", "gpt2 fan_in_fan_out")
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", MERGED)
def test_a_base_with_an_adapter_is_what_peft_merges_and_unloads(
    peft: ModuleType, tmp_path: Path, case: str, dtype: torch.dtype
) -> None:
    make, settings = MERGED[case]
    torch.manual_seed(0)
    base = make().to(dtype)
    save(base, tmp_path / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merged = peft.PeftModel.from_pretrained(model.unload(), tmp_path / "adapter").merge_and_unload()
    view = read_patched(tmp_path / "base", tmp_path / "adapter")
    expected = dict(merged.state_dict())
    assert {*view.names} <= {*expected}
    changed = 0
    for name in view.names:
        tensor = view.tensor(name, dtype=None)
        assert tensor.dtype == expected[name].dtype == dtype
        assert torch.equal(tensor, expected[name])
        changed += not torch.equal(tensor, view.base.tensor(name, dtype=None))
    assert changed == len(view.adapter.modules)


def save(model: nn.Module, folder: Path) -> None:
    """Save the weights as transformers does: no tensor that is tied to another."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()  # type: ignore[union-attr]
    folder.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied},
        folder / "model.safetensors",
    )


def test_a_module_named_like_the_end_of_another_is_not_that_other(peft: ModuleType, tmp_path: Path) -> None:
    """PEFT matches names by their ends. Written: a.q and a.q+; b.a.q must stay as it is."""
    expected = trained(peft, "names", 0, tmp_path / "in")
    adapter = read_adapter(tmp_path / "in")
    assert (adapter.ranks["a.q"], adapter.ranks["b.a.q"]) == (1, 3)
    updates = {module: adapter.update(module) for module in ("a.q", "a.q+", "axq")}
    write_adapter(tmp_path / "out", updates, like=[adapter])
    with pytest.warns(UserWarning, match="missing adapter keys"):  # PEFT adds an empty update to b.a.q
        written = loaded(peft, "names", tmp_path / "out")
    assert not written.pop("b.a.q").any()
    assert_same_and_nothing_else(written, {module: expected[module] for module in updates})


ODD: dict[str, dict[str, Any]] = {
    "alpha null": {"lora_alpha": None},
    "r null": {"r": None},
    "alpha of a pattern null": {"alpha_pattern": {"q": None}},
    "alpha not said": {"lora_alpha": ...},
    "rslora null": {"use_rslora": None},
    "alpha negative": {"lora_alpha": -3, "alpha_pattern": {"axq": -1}},
    "alpha zero": {"lora_alpha": 0},
    "a pattern of nothing": {"alpha_pattern": {"k": 5, "b.a.q": 7}},
    "a pattern behind another": {"alpha_pattern": {"q": 5, "b.a.q": 7}},
    "a group not captured": {"alpha_pattern": {r"(?:a|b)\.(?:a\.)q": 5}},
    "a group left out": {"alpha_pattern": {r"(b\.)?a\.(q|qq)": 5}},
    "task of no kind": {"task_type": "LM"},
    "fewer targets": {"target_modules": ["q"]},
    "targets by an expression": {"target_modules": r".*\.q"},
    "targets that are excluded": {"exclude_modules": ["a.q", "qq"]},
    "targets excluded by an expression": {"exclude_modules": r"a\..*"},
    "layers by number": {"target_modules": ["q", "b.a.q"], "layers_to_transform": [1]},
    "a layer by number": {"target_modules": ["q"], "layers_to_transform": 1, "layers_pattern": "c"},
    "a layer by name": {"target_modules": ["q"], "layers_to_transform": [0], "layers_pattern": ["x", "c.h"]},
    "revision": {"revision": "v2"},
}


# It too says which patterns are of no module.
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("case", ODD)
def test_odd_settings_are_what_they_are_to_peft(peft: ModuleType, tmp_path: Path, case: str) -> None:
    trained(peft, "layers", 0, tmp_path / "in")
    path = tmp_path / "in" / "adapter_config.json"
    settings = {**json.loads(path.read_text()), **ODD[case]}
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))
    try:
        expected = loaded(peft, "layers", tmp_path / "in")
    except (TypeError, ValueError):
        with pytest.raises(AdapterError):
            read_adapter(tmp_path / "in")
        return
    adapter = read_adapter(tmp_path / "in")
    assert {module for module in adapter.modules if adapter.config.loads(module)} == set(expected)
    for module, delta in expected.items():
        torch.testing.assert_close(adapter.update(module).dense(), delta, rtol=1e-13, atol=1e-13)


def assert_same_and_nothing_else(written: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(written) == set(expected)
    for module, delta in expected.items():
        # Factors rounded to float32: √r eps of the norm.
        assert (written[module] - delta).norm() <= 4 * torch.finfo(torch.float32).eps * delta.norm()
