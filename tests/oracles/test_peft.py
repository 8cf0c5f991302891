"""PEFT as the oracle: the same dW of what it writes, and of what we write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from riemerge.cli.commands import main
from riemerge.errors import AdapterError
from riemerge.formats.checkpoint import read_checkpoint
from riemerge.formats.dialects import read_adapter, write_adapter
from riemerge.merging.conversion import convert
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


# --- kinds of layers ----------------------------------------------------------------------------------------


class Experts(nn.Module):
    """Experts of two parameters, in the layout of most models, or of those that turn them."""

    def __init__(self, is_transposed: bool = False) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        shapes = {"up": (3, 10, 4), "down": (3, 4, 5)}
        for name, (count, m, n) in shapes.items():
            shape = (count, n, m) if is_transposed else (count, m, n)
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))


class Kinds(nn.Module):
    """One module of each kind."""

    def __init__(self) -> None:
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        self.config = SimpleNamespace(
            model_type="custom", to_dict=dict, get=lambda key, default=None: default
        )
        torch.manual_seed(7)
        self.linear = nn.ModuleList([nn.Linear(6, 7), nn.Linear(7, 3)])
        self.wide = nn.Linear(20, 7)
        self.conv1 = nn.Conv1d(4, 6, 3)
        self.conv2 = nn.Conv2d(4, 5, (3, 2), stride=2, padding=1)
        self.point = nn.Conv2d(4, 5, 1)
        self.emb = nn.Embedding(11, 6)
        self.moe = Experts()
        self.turned = Experts(is_transposed=True)
        self.gpt = Conv1D(5, 6)
        self.dense = nn.ParameterDict({"matrix": torch.randn(7, 4)})


LINEAR = ["linear.0", "linear.1", "wide"]
WITH_KERNELS = [*LINEAR, "conv1", "conv2", "point"]
KINDS: dict[str, dict[str, Any]] = {
    "all": {"target_modules": [*WITH_KERNELS, "emb"], "lora_alpha": 5},
    "all rslora": {"target_modules": [*WITH_KERNELS, "emb"], "lora_alpha": 5, "use_rslora": True},
    "all patterns": {
        "target_modules": [*WITH_KERNELS, "emb"],
        "rank_pattern": {"conv2": 3, "emb": 1, "linear.1": 4},
        "alpha_pattern": {"conv[12]": 7, "emb": 0.5},
    },
    "bias": {
        "target_modules": [*WITH_KERNELS],
        "lora_bias": True,
        "rank_pattern": {"conv1": 4},
        "lora_alpha": 3,
    },
    "bias rslora": {"target_modules": [*LINEAR], "lora_bias": True, "use_rslora": True},
    "experts": {"target_modules": ["wide"], "target_parameters": ["moe.up", "moe.down", "turned.up"]},
    "experts alone": {
        "target_modules": [],
        "target_parameters": ["turned.down", "turned.up"],
        "use_rslora": True,
        "lora_alpha": 5,
    },
    "experts patterns": {
        "target_modules": ["wide"],
        "target_parameters": ["moe.up", "moe.down", "turned.down"],
        "rank_pattern": {"moe.up": 4, "turned.down": 1},
        "alpha_pattern": {"moe.down": 3, "turned.down": 7},
    },
    "a parameter of one matrix": {"target_modules": ["wide"], "target_parameters": ["dense.matrix"]},
    "turned": {"target_modules": ["gpt"], "fan_in_fan_out": True, "lora_bias": True},
    "turned dora": {"target_modules": ["gpt"], "fan_in_fan_out": True, "use_dora": True, "lora_alpha": 5},
    "dora": {"target_modules": [*WITH_KERNELS, "emb"], "use_dora": True, "lora_alpha": 5},
    "dora rslora patterns": {
        "target_modules": [*WITH_KERNELS, "emb"],
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"conv2": 3, "linear.1": 4},
        "alpha_pattern": {"emb": 7},
    },
}


def saved(peft: ModuleType, case: str, seed: int, folder: Path) -> None:
    """Save an adapter of random factors as PEFT does, for a model of all kinds of layers."""
    settings = {"r": 2, **KINDS[case]}
    torch.manual_seed(seed)
    model = peft.get_peft_model(Kinds(), peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    model.save_pretrained(folder)


def merged_weights(peft: ModuleType, folder: Path) -> dict[str, Tensor]:
    """Return what PEFT adds to each weight of the base, in float64, by its name there."""
    model = peft.PeftModel.from_pretrained(Kinds(), folder).double()
    merged = model.merge_and_unload().state_dict()
    base = Kinds().double().state_dict()
    changes = {name: merged[name] - base[name] for name in base}
    return {name: change for name, change in changes.items() if change.any()}


def as_stored(adapter: Any, updates: dict[str, Any]) -> dict[str, Tensor]:
    """Return what updates add to each weight of the base, by its name there."""
    changes: dict[str, Tensor] = {}
    for module, update in updates.items():
        layer = adapter.layers[module]
        stored = layer.as_stored(update.dense())
        name = layer.weight(module)
        changes[name] = changes[name] + stored if name in changes else stored
    return changes


@pytest.fixture(scope="module")
def base_of_kinds(tmp_path_factory: pytest.TempPathFactory) -> Any:

    path = tmp_path_factory.mktemp("base") / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in Kinds().state_dict().items()}, path)
    return read_checkpoint(path)


# PEFT looks parameters up in these patterns, and forgets them as it says which were of no module. It takes a
# bias for a factor that a shard has lost.
@pytest.mark.filterwarnings("ignore:Adapter 'default'. . LoRA tensor.s. have invalid shape.*lora_B.bias")
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("case", KINDS)
def test_every_kind_of_layer_is_read_and_written_as_peft_merges_it(
    peft: ModuleType, tmp_path: Path, base_of_kinds: Any, case: str
) -> None:
    saved(peft, case, 0, tmp_path / "in")
    expected = merged_weights(peft, tmp_path / "in")
    adapter = read_adapter(tmp_path / "in").with_base(base_of_kinds)
    updates = {module: adapter.update(module) for module in adapter.modules}
    read = as_stored(adapter, updates)
    assert set(read) == set(expected)
    for name, change in expected.items():
        torch.testing.assert_close(read[name], change, rtol=1e-12, atol=1e-12)

    write_adapter(tmp_path / "out", updates, like=[adapter], dtype=torch.float32)
    written = merged_weights(peft, tmp_path / "out")
    assert_same_and_nothing_else(written, expected)
    again = read_adapter(tmp_path / "out")
    assert again.modules == adapter.modules
    assert {again.update(module).scale for module in again.modules} == {1.0}


def roberta(labels: int) -> nn.Module:
    """RoBERTa-base without its words, which no adapter of attention needs."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    size: dict[str, Any] = {"vocab_size": 11, "max_position_embeddings": 8, "num_labels": labels}
    return RobertaForSequenceClassification(RobertaConfig(**size))


def privacy_filter(labels: int) -> nn.Module:
    """OpenAI's privacy filter with one small expert, and without its words."""
    import transformers

    size: dict[str, Any] = {"vocab_size": 11, "num_local_experts": 1, "num_experts_per_tok": 1}
    size |= {"intermediate_size": 2, "pad_token_id": 0, "num_labels": labels}
    settings = transformers.OpenAIPrivacyFilterConfig(**size)
    return transformers.OpenAIPrivacyFilterForTokenClassification(settings)


Maker = Callable[[int], nn.Module]
CLASSIFIERS: list[tuple[list[str], Maker, int, str]] = [
    (
        ["roberta-base-agnews/checkpoint-500", "roberta-base-agnews/checkpoint-1200"],
        roberta,
        4,
        "classifier",
    ),
    (
        ["roberta-base-portuguese/checkpoint-1000", "roberta-base-portuguese/checkpoint-6000"],
        roberta,
        5,
        "classifier",
    ),
    # The only one of its author.
    (["privacy-filter-zh"], privacy_filter, 33, "score"),
]


@pytest.mark.parametrize("way", ["drop", "average"])
@pytest.mark.parametrize(("names", "make", "labels", "head"), CLASSIFIERS)
def test_merged_real_classifiers_load(
    peft: ModuleType,
    shared_data: Path,
    tmp_path: Path,
    names: list[str],
    make: Maker,
    labels: int,
    head: str,
    way: str,
) -> None:
    folders = [shared_data / "adapters" / name for name in names]
    words = ["merge", *map(str, folders), "--heads", way, "--method", "average", "--rank", "sum", "-q"]
    ran = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.output
    with torch.device("meta"):  # weights are never drawn
        base = make(labels)
    model = peft.PeftModel.from_pretrained(base.to_empty(device="cpu"), str(tmp_path / "out"))
    config = json.loads((folders[0] / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    stored = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    layers = {path: layer for path, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
    assert len(layers) == sum(key.endswith(".lora_A.weight") for key in stored[0])
    for path, layer in layers.items():
        deltas = torch.stack(
            [
                scale * one[f"{path}.lora_B.weight"].double() @ one[f"{path}.lora_A.weight"].double()
                for one in stored
            ]
        )
        apart = (layer.get_delta_weight("default").double() - deltas.mean(dim=0)).norm()
        assert apart <= 1e-6 * deltas.norm()
    if way == "average":
        kept = model.base_model.model.get_submodule(head).modules_to_save["default"]
        for name, parameter in kept.named_parameters():
            each = torch.stack([one[f"base_model.model.{head}.{name}"].double() for one in stored])
            torch.testing.assert_close(parameter.double(), each.mean(dim=0), rtol=1e-6, atol=1e-8)
        assert [*kept.parameters()]


@pytest.mark.filterwarnings("ignore:(PiSSA|OLoRA) changes the base weights:UserWarning")
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_changed_its_base_is_refused_until_peft_converts_it(
    peft: ModuleType, tmp_path: Path, init: str
) -> None:
    base = Kinds()
    before = base.wide.weight.detach().clone()
    config = peft.LoraConfig(r=2, lora_alpha=5, target_modules=["wide"], init_lora_weights=init)
    model = peft.get_peft_model(base, config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = init
    layer = model.base_model.model.wide
    with torch.no_grad():
        layer.lora_A["default"].weight += 0.1
        layer.lora_B["default"].weight -= 0.2
    model.save_pretrained(tmp_path / "raw")
    with pytest.raises(AdapterError, match=r"path_initial_model_for_weight_conversion=.*riemerge extract"):
        read_adapter(tmp_path / "raw")
    expected = layer.base_layer.weight.detach() + layer.get_delta_weight("default").detach() - before
    model.save_pretrained(
        tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    read = read_adapter(tmp_path / "converted").update("wide").dense().float()
    torch.testing.assert_close(read, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
@pytest.mark.parametrize("effective", [False, True], ids=["flat", "kernel"])
def test_a_converted_product_has_pefts_dw(
    peft: ModuleType, tmp_path: Path, kind: str, effective: bool
) -> None:
    def base() -> nn.Module:
        kernel = nn.Conv2d(4, 6, 3) if effective else nn.Conv2d(4, 6, 1)
        return nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 8), kernel)

    said: dict[str, Any] = {"r": 2, "alpha": 3, "init_weights": False, "rank_pattern": {"1": 3}}
    if kind == "LoKr":
        said |= {"decompose_both": effective, "decompose_factor": 4}
    config = getattr(peft, f"{kind}Config")(
        target_modules=["0", "1", "2"], use_effective_conv2d=effective, **said
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(base(), config)
    model.save_pretrained(tmp_path / "a")
    expected = deltas(model)
    convert(tmp_path / "a", tmp_path / "b", "peft")
    adapter = read_adapter(tmp_path / "b")
    assert adapter.modules == tuple(sorted(expected))
    for module, right in expected.items():
        dense = adapter.update(module).dense().reshape(right.shape)
        assert torch.linalg.vector_norm(dense - right) <= 1e-6 * torch.linalg.vector_norm(right)
    if effective:  # a point of a kernel is stored flat, as a matrix, which PEFT does not load for one
        written = deltas(peft.PeftModel.from_pretrained(base(), tmp_path / "b"))
        assert_same_and_nothing_else(written, expected)
