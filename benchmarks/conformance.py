"""Every feature of PEFT's LoRA in PEFT, mergekit and riemerge: `python -m benchmarks.conformance`.

Writes benchmarks/results/conformance.json, from which `python -m docs.build` makes the table of
docs/conformance.md. mergekit is measured if MERGEKIT_BIN names the `bin` folder of an environment with it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor, nn

import riemerge
from benchmarks.common import RESULTS, markdown, number, options, tell
from riemerge.cli.commands import main as command

COMMITTED = RESULTS / "conformance.json"
TOLERANCE = 1e-5  # below it a result in float32 is the sum: base weights are added and subtracted again
SUM_OF_RANKS = 8  # at most, of all rows: svd cuts nothing
SHOWN = 110  # characters of a refusal

Changes = Mapping[str, Tensor]


# --- base models --------------------------------------------------------------------------------------------


def _model(kind: str, **settings: Any) -> Callable[[], Any]:
    """Return a function that makes a tiny model of a class of transformers, with random weights."""

    def build() -> Any:
        model = getattr(import_module("transformers"), kind)
        return model(model.config_class(**settings))

    return build


class Grouped(nn.Module):
    """A convolution in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            model_type="custom", to_dict=dict, get=lambda key, default=None: default
        )
        self.linear, self.groups = nn.Linear(6, 8), nn.Conv2d(4, 6, 3, groups=2)


_WORDS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
_ONE_LAYER = {
    f"{part}_{what}": 1 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")
}
_SIZE: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "pad_token_id": 0,
}

BASES: dict[str, Callable[[], Any]] = {
    "llama": _model("LlamaForCausalLM", **_SIZE),
    "tied": _model("LlamaForCausalLM", **_SIZE, tie_word_embeddings=True),
    "classifier": _model("LlamaForSequenceClassification", **_SIZE, num_labels=3),
    "qwen2": _model("Qwen2ForCausalLM", **_SIZE),  # its projections have biases
    "mixtral": _model("MixtralForCausalLM", **_SIZE, num_local_experts=3, num_experts_per_tok=2),
    "gpt2": _model("GPT2LMHeadModel", vocab_size=24, n_positions=8, n_embd=12, n_layer=2, n_head=3),
    "whisper": _model(
        "WhisperForConditionalGeneration",
        d_model=12,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_mel_bins=4,
        max_source_positions=8,
        max_target_positions=8,
        vocab_size=11,
        **_ONE_LAYER,
        **_WORDS,
    ),
    "resnet": _model(
        "ResNetForImageClassification", embedding_size=4, hidden_sizes=[6], depths=[1], layer_type="basic"
    ),
    "grouped": Grouped,
}


def make(base: str) -> Any:
    """Make a base model with random weights, the same at each call."""
    torch.manual_seed(0)
    return BASES[base]()


# --- features -----------------------------------------------------------------------------------------------

QV = ("q_proj", "v_proj")
SUM = "merge {a}:0.7 {b}:0.3 --method average --rank sum"
CONVERTED = (
    "convert {a} {out}-a --to peft",
    "convert {b} {out}-b --to peft",
    SUM.format(a="{out}-a", b="{out}-b"),
)
EXTRACTED = (
    "extract {base} {full_a} -o {out}-a --rank 12",
    "extract {base} {full_b} -o {out}-b --rank 12",
    SUM.format(a="{out}-a", b="{out}-b"),
)
"""Commands for what is no LoRA: `full_a` is the base with the first adapter merged into it by PEFT."""


class Feature(NamedTuple):
    """What two adapters have, and how riemerge is told to merge them where it refuses at first.

    Attributes:
        name: Name in the table.
        settings: Settings of both adapters; they are of q_proj and v_proj if it names no `target_modules`.
        second: Settings in which the second adapter differs.
        ways: Commands of riemerge that merge them, where the plain merge is refused.
        base: A name of BASES.
        kind: The configuration class of PEFT.
        weights: Weights of the sum.
        said: Settings that are written into both files, where PEFT makes such an adapter only in training.
        second_said: Settings that are written into the second file as well.
        save: Options of PEFT's `save_pretrained`.
        by_module: Whether the truth is `get_delta_weight` of every module, where PEFT merges no base weight.
        remark: What the reader has to know of the row.
    """

    name: str
    settings: Mapping[str, Any]
    second: Mapping[str, Any] = {}
    ways: Sequence[str] = ()
    base: str = "llama"
    kind: str = "LoraConfig"
    weights: tuple[float, float] = (0.7, 0.3)
    said: Mapping[str, Any] = {}
    second_said: Mapping[str, Any] = {}
    save: Mapping[str, Any] = {}
    by_module: bool = False
    remark: str = ""


def _with(options: str) -> tuple[str]:
    return (f"{SUM} {options}",)


_PATTERNS = {"rank_pattern": {"0.self_attn.q_proj": 4}, "alpha_pattern": {"v_proj": 7}}
_WRITTEN = "a plain adapter whose file says so"

FEATURES = (
    Feature("r, lora_alpha", {"r": 4, "lora_alpha": 6}),
    Feature("ranks that differ", {"r": 4}, {"r": 2, "lora_alpha": 3}),
    Feature("a negative weight", {"r": 2}, weights=(0.7, -0.3)),
    Feature("use_rslora", {"r": 4, "use_rslora": True}),
    Feature("use_rslora in the first alone", {"r": 4, "use_rslora": True}, {"use_rslora": False}),
    Feature("rank_pattern", {"r": 2, "rank_pattern": _PATTERNS["rank_pattern"]}),
    Feature("alpha_pattern", {"r": 2, "alpha_pattern": _PATTERNS["alpha_pattern"]}),
    Feature("use_rslora, rank_pattern, alpha_pattern", {"r": 2, "use_rslora": True, **_PATTERNS}),
    Feature(
        "fan_in_fan_out (GPT-2's Conv1D)",
        {"r": 2, "fan_in_fan_out": True, "target_modules": ["c_attn"]},
        base="gpt2",
    ),
    Feature(
        "target_modules that differ",
        {"r": 2},
        {"target_modules": ["q_proj", "o_proj"]},
        _with("--missing zero"),
    ),
    Feature("target_modules, an expression", {"r": 2, "target_modules": r".*\.(q|v)_proj"}),
    Feature("exclude_modules", {"r": 2, "exclude_modules": ["layers.0.self_attn.q_proj"]}),
    Feature(
        "layers_to_transform, layers_pattern",
        {"r": 2, "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
    Feature("lora_dropout", {"r": 2, "lora_dropout": 0.5}),
    Feature(
        "base_model_name_or_path that differs",
        {"r": 2},
        ways=_with("--same-base"),
        said={"base_model_name_or_path": "org/base"},
        second_said={"base_model_name_or_path": "org/another"},
    ),
    Feature("embedding", {"r": 2, "target_modules": [*QV, "embed_tokens"]}),
    Feature(
        "lm_head, its base weight beside it",
        {"r": 2, "target_modules": [*QV, "lm_head"]},
        save={"save_embedding_layers": True},
    ),
    Feature("lm_head tied to the embedding", {"r": 2, "target_modules": [*QV, "lm_head"]}, base="tied"),
    Feature(
        "task_type SEQ_CLS",
        {"r": 2, "task_type": "SEQ_CLS"},
        ways=_with("--heads average"),
        base="classifier",
    ),
    Feature("modules_to_save", {"r": 2, "modules_to_save": ["lm_head"]}, ways=_with("--heads average")),
    Feature(
        "ensure_weight_tying",
        {
            "r": 2,
            "fan_in_fan_out": True,
            "target_modules": ["c_attn"],
            "modules_to_save": ["wte"],
            "ensure_weight_tying": True,
        },
        ways=_with("--heads average"),
        base="gpt2",
    ),
    Feature("bias: lora_only", {"r": 2, "bias": "lora_only"}, ways=_with("--heads average"), base="qwen2"),
    Feature("bias: all", {"r": 2, "bias": "all"}, ways=_with("--heads average"), base="qwen2"),
    Feature("lora_bias", {"r": 2, "lora_bias": True}, base="qwen2"),
    Feature(
        "trainable_token_indices",
        {"r": 2, "trainable_token_indices": {"embed_tokens": [1, 5]}},
        ways=_with("--heads average"),
    ),
    Feature("use_dora", {"r": 2, "use_dora": True}, ways=_with("--base {base}")),
    Feature("use_dora in the second alone", {"r": 2}, {"use_dora": True}, _with("--base {base}")),
    Feature(
        "target_parameters (experts)",
        {"r": 2, "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
        base="mixtral",
    ),
    Feature("Conv1d", {"r": 2, "target_modules": ["conv1", "conv2", "q_proj"]}, base="whisper"),
    Feature("Conv2d", {"r": 2, "target_modules": ["convolution"]}, base="resnet"),
    Feature(
        "Conv2d with groups",
        {"r": 2, "target_modules": ["linear", "groups"]},
        base="grouped",
        by_module=True,
    ),
    *(
        Feature(f"init_lora_weights: {init}", {"r": 2, "init_lora_weights": init})
        for init in ("gaussian", "orthogonal", "mica", "eva")
    ),
    *(
        Feature(f"init_lora_weights: {init}", {"r": 2, "init_lora_weights": init}, ways=EXTRACTED)
        for init in ("pissa", "olora")
    ),
    *(
        Feature(f"init_lora_weights: {init}", {"r": 2}, said={"init_lora_weights": init}, remark=_WRITTEN)
        for init in ("corda", "lora_ga", "loftq")
    ),
    Feature("layer_replication", {"r": 2, "layer_replication": [[0, 2], [1, 2]]}, by_module=True),
    Feature("alora_invocation_tokens", {"r": 2, "alora_invocation_tokens": [3, 4]}, by_module=True),
    Feature(
        "use_bdlora",
        {
            "r": 4,
            "use_bdlora": {
                "target_modules_bd_a": ["q_proj"],
                "target_modules_bd_b": ["v_proj"],
                "nblocks": 2,
            },
        },
    ),
    Feature("kasa_config", {"r": 2, "kasa_config": {}}),
    Feature("monteclora_config", {"r": 2, "monteclora_config": {}}),
    Feature("velora_config", {"r": 2, "velora_config": {"num_groups": 4}}),
    Feature("arrow_config", {"r": 2}, said={"arrow_config": {"top_k": 1}}, remark=_WRITTEN),
    Feature("megatron_config", {"r": 2}, said={"megatron_config": {"num_layers": 2}}, remark=_WRITTEN),
    Feature(
        "use_qalora",
        {"r": 2},
        said={"use_qalora": True, "qalora_group_size": 4},
        remark=f"{_WRITTEN}: PEFT obeys it on quantised layers only",
    ),
    Feature("LoHa", {"r": 2, "alpha": 3}, ways=CONVERTED, kind="LoHaConfig"),
    Feature("LoKr", {"r": 2, "alpha": 3}, ways=CONVERTED, kind="LoKrConfig"),
    Feature("IA³", {"feedforward_modules": []}, ways=EXTRACTED, kind="IA3Config"),
    Feature("VeRA", {"r": 4}, ways=EXTRACTED, kind="VeraConfig"),
    Feature("OFT", {"r": 0, "oft_block_size": 4}, ways=EXTRACTED, kind="OFTConfig"),
)

QUICK = (
    "ranks that differ",
    "use_rslora",
    "modules_to_save",
    "lora_bias",
    "use_dora",
    "velora_config",
    "LoHa",
)

WITHOUT_ROW = {
    "inference_mode, peft_type, peft_version, auto_mapping, revision": "name what is loaded",
    "runtime_config": "says where PEFT computes",
    "eva_config, corda_config, lora_ga_config, loftq_config": "belong to an init_lora_weights",
    "megatron_core": "belongs to megatron_config",
    "qalora_group_size": "belongs to use_qalora",
}
"""Settings of LoraConfig that change no merge, with the reason."""

_SETTINGS = {
    "use_bdlora": "BdLoraConfig",
    "kasa_config": "KasaConfig",
    "monteclora_config": "MontecloraConfig",
    "velora_config": "VeloraConfig",
}


def write(feature: Feature, place: int, folder: Path) -> None:
    """Save a trained adapter as PEFT does: every parameter that is trained has moved by noise."""
    import peft
    from peft.tuners.lora import config as classes

    settings = {"target_modules": list(QV), **feature.settings}
    if place:
        settings |= feature.second
    settings |= {
        key: getattr(classes, one)(**settings[key]) for key, one in _SETTINGS.items() if key in settings
    }
    base = make(feature.base)
    torch.manual_seed(1 + place)
    model = peft.get_peft_model(base, getattr(peft, feature.kind)(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(str(folder), **{"save_embedding_layers": False, **feature.save})
    path = folder / "adapter_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": None, **feature.said}
    if place:
        said |= feature.second_said
    path.write_text(json.dumps(said), encoding="utf-8")


# --- what a result adds to the base -------------------------------------------------------------------------


def weight_changes(feature: Feature, model: Any, adapter: str) -> Changes:
    """Return what an adapter of a model of PEFT adds to each weight of the base, in float64.

    A weight that modules share changes only in the one that has the adapter, as in the forward pass.
    """
    model.double()
    if feature.by_module:
        return module_changes(model, adapter)
    for module in model.modules():
        if hasattr(module, "get_base_layer") and isinstance(layer := module.get_base_layer(), nn.Linear):
            layer.weight = nn.Parameter(layer.weight.detach().clone())
    base = make(feature.base).state_dict()
    merged = model.merge_and_unload(adapter_names=[adapter]).state_dict()
    return {
        name: merged[name].double() - weight.double()
        for name, weight in base.items()
        if weight.is_floating_point()
    }


def module_changes(model: Any, adapter: str) -> Changes:
    """Return PEFT's `get_delta_weight` of every module, in float64."""
    layers = model.base_model.model.named_modules()
    return {
        f"{name}.weight": layer.get_delta_weight(adapter).detach().double()
        for name, layer in layers
        if hasattr(layer, "get_delta_weight") and adapter in getattr(layer, "scaling", {})
    }


def load_changes(feature: Feature, folder: Path) -> Changes:
    """Return what PEFT adds to the base when it loads a folder."""
    import peft

    return weight_changes(feature, peft.PeftModel.from_pretrained(make(feature.base), folder), "default")


def apart(found: Changes, right: Changes) -> float:
    """Return the largest relative error of a weight; of one that must stay, over the largest change."""
    norms = {name: float(change.norm()) for name, change in right.items()}
    worst = 0.0
    for name, change in right.items():
        error = float((found[name] - change).norm()) if name in found else norms[name]
        worst = max(worst, error / (norms[name] or max(norms.values())))
    extra = max((float(change.norm()) for name, change in found.items() if name not in right), default=0.0)
    return max(worst, extra / max(norms.values()))


class Case(NamedTuple):
    """Two adapters on disk, and what their weighted sum adds to the base.

    Attributes:
        feature: The feature that they have.
        root: Folder of the folders a and b (the adapters), base, and of what the tools write.
        right: The truth, in float64; None where PEFT fails to say what one of them is.
        failure: What it says then.
        delta: How far PEFT's `merge_and_unload` of the first is from its `get_delta_weight`: far where an
            update is more than its factors.
    """

    feature: Feature
    root: Path
    right: Changes | None
    failure: str
    delta: float | None

    def error(self, found: Changes) -> float | None:
        """Return the relative error of a result; None where there is no truth."""
        if self.right is None:
            return None
        return apart(found, self.right)


def words(error: object, root: Path) -> str:
    """Return an error without this machine's folders, on one line."""
    text = str(error)
    if isinstance(error, Exception):
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.replace(f"{root}/", "").split())[:800]


def prepare(feature: Feature, root: Path) -> Case:
    """Write both adapters and their base, and compute the truth."""
    base = make(feature.base)
    if hasattr(base, "save_pretrained"):
        base.save_pretrained(root / "base")
    else:
        (root / "base").mkdir()
        save_file(base.state_dict(), root / "base" / "model.safetensors")
    for place, name in enumerate("ab"):
        write(feature, place, root / name)
    try:
        first, second = (load_changes(feature, root / name) for name in "ab")
    except Exception as failure:  # noqa: BLE001 - whatever it does here is the figure
        return Case(feature, root, None, words(failure, root), None)
    w, v = feature.weights
    names, zero = {**first, **second}, torch.zeros(())
    right = {name: w * first.get(name, zero) + v * second.get(name, zero) for name in names}
    return Case(feature, root, right, "", delta(feature, root / "a", first))


def delta(feature: Feature, folder: Path, merged: Changes) -> float | None:
    """Return how far what PEFT merges is from its `get_delta_weight`, or None where it has none."""
    import peft

    if feature.by_module or feature.kind != "LoraConfig":
        return None
    model = peft.PeftModel.from_pretrained(make(feature.base), folder).double()
    try:
        deltas = {name: change for name, change in module_changes(model, "default").items() if name in merged}
    except RuntimeError:  # of BD-LoRA, whose factors it takes for whole ones
        return None
    return apart({name: merged[name] for name in deltas}, deltas)


# --- the three tools ----------------------------------------------------------------------------------------


def by_peft(case: Case) -> dict[str, Any]:
    """Merge by `add_weighted_adapter`, in both exact ways; what it saves is loaded again."""
    found: dict[str, Any] = {}
    for way in ("cat", "svd"):
        try:
            found[way] = add_weighted(case, way)
        except Exception as failure:  # noqa: BLE001 - whatever it does here is the figure
            found[way] = {"refused": words(failure, case.root)}
    return found


def add_weighted(case: Case, way: str) -> dict[str, Any]:
    """Return the relative errors of one way of `add_weighted_adapter`, in memory and reloaded."""
    import peft

    feature, out = case.feature, case.root / f"peft-{way}"
    model = peft.PeftModel.from_pretrained(make(feature.base), case.root / "a", adapter_name="a")
    model.load_adapter(case.root / "b", "b")
    options: dict[str, Any] = {}
    if feature.kind == "LoraConfig":  # other kinds have one way at most
        options = {"combination_type": way, "svd_rank": SUM_OF_RANKS}
    model.add_weighted_adapter(["a", "b"], list(feature.weights), "sum", **options)
    model.set_adapter("sum")
    model.save_pretrained(str(out), selected_adapters=["sum"])
    found: dict[str, Any] = {"error": case.error(weight_changes(feature, model, "sum"))}
    try:
        found["reloaded"] = {"error": case.error(load_changes(feature, out / "sum"))}
    except Exception as failure:  # noqa: BLE001 - as above
        found["reloaded"] = {"refused": words(failure, case.root)}
    return found


def by_riemerge(case: Case) -> dict[str, Any]:
    """Return what the plain merge gives; where it is refused, also what the commands give that it names."""
    plain = SUM
    if case.feature.weights != (0.7, 0.3):  # a sum that nothing divides
        first, second = case.feature.weights
        plain = f"merge {{a}}:{first} {{b}}:{second} --method task_arithmetic --rank sum"
    found = {"plain": run(case, [plain], case.root / "plain")}
    if "refused" in found["plain"] and case.feature.ways:
        if "{full_a}" in case.feature.ways[0]:
            merge_fully(case)
        found["told"] = run(case, case.feature.ways, case.root / "told")
    return found


def merge_fully(case: Case) -> None:
    """Write the base with each adapter merged into it by PEFT, in float32."""
    import peft

    for name in "ab":
        model = peft.PeftModel.from_pretrained(make(case.feature.base), case.root / name)
        model.merge_and_unload().save_pretrained(case.root / f"full-{name}")


def run(case: Case, lines: Sequence[str], out: Path) -> dict[str, Any]:
    """Run commands; the last one's result by its relative error, or what the first refusal says."""
    root = case.root
    places: dict[str, Path] = {name: root / name for name in ("a", "b", "base")}
    places |= {"out": out, "full_a": root / "full-a", "full_b": root / "full-b"}
    for line in lines:
        said = shlex.split(line.format(**places))
        if said[0] == "merge":
            said += ["-o", str(out)]
        ran = CliRunner().invoke(command, said)
        if ran.exit_code:
            return {"refused": words(ran.output, root)}
    return {"error": case.error(load_changes(case.feature, out))}


def by_mergekit(cases: Mapping[str, Case]) -> tuple[str, dict[str, dict[str, Any]]]:
    """Merge `base+adapter` by task arithmetic, in one process for all cases; and mergekit's version."""
    jobs = {name: [str(case.root), *case.feature.weights] for name, case in cases.items()}
    program = Path(__file__).with_name("conformance_in_mergekit.py")
    line: list[Any] = [Path(os.environ["MERGEKIT_BIN"]) / "python", program]
    ran = subprocess.run(line, input=json.dumps(jobs), check=True, stdout=subprocess.PIPE, text=True)
    failures = json.loads(ran.stdout.splitlines()[-1])
    found: dict[str, dict[str, Any]] = {}
    for name, case in cases.items():
        if failures[name] is None:
            found[name] = {"error": case.error(checkpoint_changes(case, case.root / "by_mergekit"))}
        else:
            found[name] = {"refused": words(failures[name], case.root)}
    return failures["version"], found


def checkpoint_changes(case: Case, folder: Path) -> Changes:
    """Return what a checkpoint has beyond the base, by the names that its model gives, in float64."""
    base = make(case.feature.base)
    tensors = type(base).from_pretrained(folder).state_dict()
    return {
        name: tensors[name].double() - one.double()
        for name, one in base.state_dict().items()
        if one.is_floating_point()
    }


# --- the result ---------------------------------------------------------------------------------------------


def measure_one(case: Case) -> dict[str, Any]:
    """Return the row of a feature, but for mergekit."""
    row: dict[str, Any] = {"delta": case.delta, "PEFT": by_peft(case), "riemerge": by_riemerge(case)}
    if case.right is None:
        row["no truth"] = case.failure
    return row


def measure(names: Collection[str] | None = None) -> dict[str, Any]:
    """Measure the rows of these names, or all."""
    versions = {name: version(name) for name in ("torch", "peft", "transformers")}
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        cases: dict[str, Case] = {}
        for i, feature in enumerate(FEATURES):
            if names is None or feature.name in names:
                tell(feature.name)
                root = Path(folder).resolve() / str(i)
                root.mkdir()
                cases[feature.name] = prepare(feature, root)
                rows[feature.name] = measure_one(cases[feature.name])
        if "MERGEKIT_BIN" in os.environ:
            versions["mergekit"], column = by_mergekit(cases)
            for name, found in column.items():
                rows[name]["mergekit"] = found
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"riemerge": riemerge.__version__, **versions},
        "rows": rows,
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the table of a result of `measure`, in Markdown."""
    head = ["feature", "PEFT `cat`", "PEFT `svd`", "mergekit", "riemerge", "riemerge, told how"]
    features = {feature.name: feature for feature in FEATURES}
    lines = [
        [
            _title(features[name]),
            _show_peft(row["PEFT"]["cat"]),
            _show_peft(row["PEFT"]["svd"]),
            cell(row.get("mergekit")),
            cell(row["riemerge"]["plain"]),
            _show_way(features[name], row["riemerge"]),
        ]
        for name, row in result["rows"].items()
    ]
    said = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    without = "; ".join(f"{names}: {why}" for names, why in WITHOUT_ROW.items())
    return "\n\n".join(
        [f"{said}; {result['date']}.", markdown(head, lines), f"Settings without a row: {without}."]
    )


def cell(found: Mapping[str, Any] | None) -> str:
    """Return one cell: an error (bold where it is no round-off), or the first words of a refusal."""
    if found is None:
        return "–"
    if "refused" in found:
        text = re.sub(r"^error: ([ab](/\S+)?: )?", "", found["refused"]).partition(" error: ")[0]
        text = text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")
        if len(text) > SHOWN:
            text = f"{text[:SHOWN].rsplit(' ', 1)[0]} …"
        return f"refused: {text}"
    error = found["error"]
    if error is None:
        return "merged, unmeasured"
    if error > TOLERANCE:
        return f"**{number(error)}**"
    return number(error)


def way_out(feature: Feature) -> str:
    """Return the option, or the other command, that merges adapters whose plain merge is refused."""
    if len(feature.ways) > 1:  # both inputs are made over first
        return f"riemerge {feature.ways[0].split()[0]}"
    return feature.ways[0].removeprefix(SUM).strip().replace("{base}", "BASE")


def _title(feature: Feature) -> str:
    if feature.remark:
        return f"{feature.name} ({feature.remark})"
    return feature.name


def _show_peft(found: Mapping[str, Any]) -> str:
    text = cell(found)
    if "reloaded" in found and (again := cell(found["reloaded"])) != text:
        return f"{text}, reloaded {again}"
    return text


def _show_way(feature: Feature, found: Mapping[str, Any]) -> str:
    if "told" not in found:
        return ""
    return f"`{way_out(feature)}`: {cell(found['told'])}"


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # no adapter asks the hub for its base
    warnings.simplefilter("ignore")  # what third parties deprecate
    asked = options("conformance", "What do PEFT, mergekit and riemerge make of each feature of PEFT's LoRA?")
    path = asked.out / "conformance.json"
    if not asked.table:
        result = measure({True: QUICK, False: None}[asked.quick])
        text = json.dumps(result, ensure_ascii=False)
        rounded = json.loads(text, parse_float=lambda digits: float(f"{float(digits):.3g}"))
        path.write_text(json.dumps(rounded, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
