"""What PEFT, mergekit and riemerge make of each feature of PEFT's adapters.

    python -m benchmarks.conformance

Each cell is a weighted sum of two adapters of a tiny model, given as its distance to the truth, relative to
the size of that; or it is the refusal. The truth is the sum of what each adapter alone, loaded by PEFT,
changes of the base model: PEFT's `get_delta_weight`, and with it magnitudes, biases, heads and tokens, in the
weights that `merge_and_unload` leaves. Writes benchmarks/results/conformance.json, of which
docs/conformance.md is made.

mergekit is measured if MERGEKIT_BIN names the `bin` folder of an environment that has it, and keeps its
committed column if not.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import RESULTS, ROOT
from riemerge import merge
from riemerge.merging.conversion import convert

COMMITTED = RESULTS / "conformance.json"
COLUMNS = {
    "peft cat": "PEFT `cat`",
    "peft svd": "PEFT `svd`",
    "mergekit": "mergekit",
    "riemerge": "riemerge",
}
OPTIONS = {
    "heads": "--heads average",
    "base_model": "--base BASE",
    "rank": "--rank 12",
    "missing": "--missing zero",
}
"""What riemerge is told, by the command line."""
CONVERTED = {"LoHaConfig", "LoKrConfig"}
"""Adapters of other kinds that `riemerge convert` makes LoRAs of."""
ROUNDED = 1e-5
"""What is below is the rounding of float32."""

Cell = float | str
Tensors = Mapping[str, Tensor]


# --- the features -------------------------------------------------------------------------------------------


def _model(kind: str, **settings: Any) -> nn.Module:
    """A tiny random model of a class of transformers."""
    transformers = import_module("transformers")
    model = getattr(transformers, kind)
    made: nn.Module = model(model.config_class(**settings))
    return made


_WIDTHS = {"hidden_size": 12, "intermediate_size": 20, "vocab_size": 11, "pad_token_id": 0}
_HEADS_OF_ATTENTION = {"num_attention_heads": 3, "num_key_value_heads": 3}
_ONE_LAYER = {
    f"{part}_{what}": 1 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")
}
_SPECIAL = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)

llama = partial(_model, "LlamaForCausalLM", **_WIDTHS, **_HEADS_OF_ATTENTION, num_hidden_layers=2)
tied = partial(llama, tie_word_embeddings=True)
qwen = partial(_model, "Qwen2ForCausalLM", **_WIDTHS, **_HEADS_OF_ATTENTION, num_hidden_layers=2)
classifier = partial(
    _model,
    "LlamaForSequenceClassification",
    **_WIDTHS,
    **_HEADS_OF_ATTENTION,
    num_hidden_layers=2,
    num_labels=3,
)
gpt2 = partial(_model, "GPT2LMHeadModel", vocab_size=11, n_positions=8, n_embd=12, n_layer=1, n_head=3)
whisper = partial(
    _model,
    "WhisperForConditionalGeneration",
    d_model=12,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
    num_mel_bins=4,
    max_source_positions=8,
    max_target_positions=8,
    vocab_size=11,
    **_ONE_LAYER,
    **_SPECIAL,
)
resnet = partial(
    _model,
    "ResNetForImageClassification",
    embedding_size=4,
    hidden_sizes=[6],
    depths=[1],
    layer_type="basic",
)
mixtral = partial(
    _model, "MixtralForCausalLM", **_WIDTHS, **_HEADS_OF_ATTENTION, num_hidden_layers=1, num_local_experts=3
)


@dataclass(frozen=True)
class Feature:
    """A feature of PEFT's adapters, and two adapters that have it.

    Attributes:
        settings: What PEFT is told of both.
        others: What it is told of the second beside that.
        make: Makes the base model.
        kind: The name of the class of settings.
        weights: The weights of the sum.
        options: What riemerge is told beside the weights.
    """

    settings: Mapping[str, Any]
    others: Mapping[str, Any] = field(default_factory=dict)
    make: Callable[[], nn.Module] = llama
    kind: str = "LoraConfig"
    weights: tuple[float, float] = (0.7, 0.3)
    options: Mapping[str, str] = field(default_factory=dict)


def _lora(targets: Sequence[str] | None = ("q_proj", "v_proj"), **settings: Any) -> dict[str, Any]:
    return {"r": 2, "lora_alpha": 3, "target_modules": targets and [*targets], **settings}


_HEADS = {"heads": "average"}
_QV = {"target_modules": ["q_proj", "v_proj"]}

FEATURES: dict[str, Feature] = {
    "`r`, `lora_alpha`": Feature(_lora(), {"lora_alpha": 7}),
    "`use_rslora`": Feature(_lora(use_rslora=True)),
    "`rank_pattern`": Feature(_lora(rank_pattern={"q_proj": 3})),
    "`alpha_pattern`": Feature(_lora(alpha_pattern={"q_proj": 7})),
    "ranks 2 and 4": Feature(_lora(), {"r": 4}),
    "weights 1 and -0.4": Feature(_lora(), weights=(1.0, -0.4)),
    "`fan_in_fan_out` (Conv1D)": Feature(_lora(["c_attn"], fan_in_fan_out=True), make=gpt2),
    "`bias`: `lora_only`": Feature(_lora(bias="lora_only"), make=qwen, options=_HEADS),
    "`bias`: `all`": Feature(_lora(bias="all"), make=qwen, options=_HEADS),
    "`lora_bias`": Feature(_lora(lora_bias=True), make=qwen),
    "`modules_to_save`": Feature(_lora(modules_to_save=["lm_head"]), options=_HEADS),
    "`task_type`: `SEQ_CLS`": Feature(_lora(task_type="SEQ_CLS"), make=classifier, options=_HEADS),
    "`trainable_token_indices`": Feature(_lora(trainable_token_indices=[2, 5]), options=_HEADS),
    "`use_dora`": Feature(_lora(use_dora=True), options={"base_model": "base", "rank": "12"}),
    "embedding": Feature(_lora(["embed_tokens", "q_proj"])),
    "Conv1d": Feature(_lora(["conv1", "conv2", "q_proj"]), make=whisper),
    "Conv2d": Feature(_lora(["convolution"]), make=resnet),
    "`target_parameters` (MoE)": Feature(
        _lora([], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]), make=mixtral
    ),
    "`init_lora_weights`: `pissa`": Feature(_lora(init_lora_weights="pissa")),
    "`init_lora_weights`: `olora`": Feature(_lora(init_lora_weights="olora")),
    "`layer_replication`": Feature(_lora(layer_replication=[[0, 2], [1, 2]])),
    "`lm_head` of its own": Feature(_lora(["lm_head", "q_proj"])),
    "`lm_head` tied to the embedding": Feature(_lora(["lm_head", "q_proj"]), make=tied),
    "different `target_modules`": Feature(
        _lora(), {"target_modules": ["q_proj", "o_proj"]}, options={"missing": "zero"}
    ),
    "LoHa": Feature({"r": 2, "alpha": 3, **_QV}, kind="LoHaConfig"),
    "LoKr": Feature({"r": 2, "alpha": 3, **_QV}, kind="LoKrConfig"),
    "IA³": Feature(
        {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
        kind="IA3Config",
    ),
    "VeRA": Feature({"r": 2, "target_modules": ["q_proj", "o_proj"]}, kind="VeraConfig"),
    "OFT": Feature({"oft_block_size": 4, **_QV}, kind="OFTConfig"),
}


# --- two adapters, and the truth ----------------------------------------------------------------------------


def prepare(name: str, folder: Path) -> Any:
    """Write `base`, `a` and `b` into a folder, as transformers and PEFT save them; return the base model."""
    peft = import_module("peft")
    feature = FEATURES[name]
    torch.manual_seed(0)
    base: Any = feature.make()
    base.save_pretrained(folder / "base")
    base.name_or_path = str(folder / "base")
    for seed, (place, own) in enumerate({"a": {}, "b": feature.others}.items()):
        torch.manual_seed(seed)
        settings = getattr(peft, feature.kind)(**{**feature.settings, **own})
        model = peft.get_peft_model(copy.deepcopy(base), settings)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(folder / place)
    return base


def _load(base: Any, folder: Path, name: str = "default") -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(copy.deepcopy(base), folder, adapter_name=name)


def _change(model: Any, base: Any, names: list[str] | None = None) -> dict[str, Tensor]:
    """What an adapter changes of the weights of the base model, in float64, by name.

    A weight that several modules share changes only in that which has the adapter, as in the forward pass.
    """
    for module in model.modules():
        if hasattr(module, "get_base_layer") and isinstance(module.get_base_layer(), nn.Linear):
            layer = module.get_base_layer()
            layer.weight = nn.Parameter(layer.weight.detach().clone())
    before = {**copy.deepcopy(model).unload().state_dict(), **base.state_dict()}
    after = model.double().merge_and_unload(adapter_names=names).state_dict()
    return {
        name: after[name].double() - tensor.double()
        for name, tensor in before.items()
        if tensor.is_floating_point()
    }


def _norm(tensors: Tensors) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors.values()]).norm())


def distance(found: Tensors, truth: Tensors) -> float:
    """The relative distance of two changes of a base model; a tensor that one lacks counts as no change."""
    apart = {name: found.get(name, torch.zeros(())) - tensor for name, tensor in truth.items()}
    return _norm(apart) / _norm(truth)


def truth_of(name: str, base: Any, folder: Path) -> dict[str, Tensor]:
    """The weighted sum of what each adapter alone changes."""
    changes = [_change(_load(base, folder / place), base) for place in ("a", "b")]
    first, second = FEATURES[name].weights
    return {key: first * changes[0][key] + second * changes[1][key] for key in changes[0]}


# --- the columns --------------------------------------------------------------------------------------------


def by_peft(way: str, name: str, base: Any, folder: Path) -> dict[str, Tensor]:
    """PEFT's own weighted sum: `cat`, or `svd` with the rank at which nothing is cut.

    Other kinds of adapters have at most one way, which has no name.
    """
    feature = FEATURES[name]
    model = _load(base, folder / "a", "a")
    model.load_adapter(folder / "b", "b")
    told: dict[str, Any] = {"combination_type": way} if feature.kind == "LoraConfig" else {}
    if told and way == "svd":
        told["svd_rank"] = sum(
            max(config.r, *config.rank_pattern.values(), 0) for config in model.peft_config.values()
        )
    model.add_weighted_adapter(["a", "b"], [*feature.weights], adapter_name="merged", **told)
    model.set_adapter("merged")
    return _change(model, base, ["merged"])


def by_riemerge(name: str, base: Any, folder: Path) -> dict[str, Tensor]:
    """The weighted sum of riemerge, written to disk and loaded by PEFT."""
    feature = FEATURES[name]
    options: dict[str, Any] = {"rank": "sum", **feature.options}
    if "base_model" in options:
        options["base_model"] = folder / options["base_model"]
    if options["rank"].isdecimal():
        options["rank"] = int(options["rank"])
    models = [folder / place for place in ("a", "b")]
    if feature.kind in CONVERTED:
        for i, model in enumerate(models):
            models[i] = folder / f"{model.name}_as_lora"
            convert(model, models[i], "peft")
    result = merge(models, list(feature.weights), method="task_arithmetic", **options)
    result.save_pretrained(folder / "merged")
    return _change(_load(base, folder / "merged"), base)


def by_mergekit(base: Any, folder: Path) -> dict[str, Tensor]:
    """What mergekit has written into a folder of `prepare`, as transformers load it."""
    load = type(base).from_pretrained
    before, after = (load(folder / place).state_dict() for place in ("base", "by_mergekit"))
    return {name: after[name].double() - tensor.double() for name, tensor in before.items()}


def run_mergekit(folders: Mapping[str, Path]) -> dict[str, str | None]:
    """Run mergekit in its own environment on the folders of all features; return why it refuses, or None."""
    told = {name: [str(folder), *FEATURES[name].weights] for name, folder in folders.items()}
    script = ROOT / "benchmarks" / "conformance_in_mergekit.py"
    command = [str(Path(os.environ["MERGEKIT_BIN"]) / "python"), str(script)]
    ran = subprocess.run(command, input=json.dumps(told), check=True, stdout=subprocess.PIPE, text=True)
    refusals: dict[str, str | None] = json.loads(ran.stdout.splitlines()[-1])
    return refusals


def measure(name: str, base: Any, folder: Path) -> dict[str, Cell]:
    """The cells of PEFT and riemerge for one feature, and that of mergekit where it has written something.

    Args:
        name: The feature.
        base: The base model, as `prepare` returned it.
        folder: The folder that it was given.
    """
    truth = truth_of(name, base, folder)
    columns: dict[str, Callable[[], Tensors]] = {
        "peft cat": lambda: by_peft("cat", name, base, folder),
        "peft svd": lambda: by_peft("svd", name, base, folder),
        "riemerge": lambda: by_riemerge(name, base, folder),
    }
    if (folder / "by_mergekit").exists():
        columns["mergekit"] = lambda: by_mergekit(base, folder)
    cells: dict[str, Cell] = {}
    for column, run in columns.items():
        try:
            cells[column] = distance(run(), truth)
        except Exception as fault:  # noqa: BLE001 - whatever it is, it is the answer
            cells[column] = in_words(f"{type(fault).__name__}: {fault}", folder)
    return cells


def in_words(fault: str, folder: Path) -> str:
    """The first line of a refusal, without the folder of this run."""
    return fault.strip().split("\n")[0].replace(f"{folder}/", "")[:400]


# --- the table ----------------------------------------------------------------------------------------------


def table(result: Mapping[str, Any]) -> str:
    """The table of a result, in Markdown."""
    lines = [["feature", *COLUMNS.values()], ["---"] * (len(COLUMNS) + 1)]
    for name, cells in result["features"].items():
        words = " ".join(OPTIONS[option] for option in FEATURES[name].options)
        shown = {column: _cell(cells[column]) for column in COLUMNS}
        if words and not isinstance(cells["riemerge"], str):
            shown["riemerge"] += f" with `{words}`"
        if FEATURES[name].kind in CONVERTED:
            shown["riemerge"] += " after `riemerge convert`"
        lines.append([name, *shown.values()])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Cell) -> str:
    if isinstance(value, str):
        kind, _, text = value.partition(": ")
        short = textwrap.shorten(text.replace("|", "\\|").replace("`", ""), 90, placeholder=" …")
        return f"{kind}: {short}"
    if value < ROUNDED:
        return f"{value:.0e}"
    return f"**{value:.2f}**"


def main() -> None:
    warnings.simplefilter("ignore")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    committed = json.loads(COMMITTED.read_text(encoding="utf-8")) if COMMITTED.exists() else {}
    versions = {name: version(name) for name in ("peft", "transformers", "torch", "riemerge")}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / str(i) for i, name in enumerate(FEATURES)}
        bases = {name: prepare(name, folder) for name, folder in folders.items()}
        if "MERGEKIT_BIN" in os.environ:
            asked = run_mergekit(folders)
            versions["mergekit"] = str(asked.pop("version"))
            theirs = {name: in_words(said or "", folders[name]) for name, said in asked.items()}
        else:
            versions["mergekit"] = committed["versions"]["mergekit"]
            theirs = {name: cells["mergekit"] for name, cells in committed["features"].items()}
        features = {}
        for name, folder in folders.items():
            found = measure(name, bases[name], folder)
            features[name] = {**found, "mergekit": theirs[name] or found["mergekit"]}
    result = {"versions": versions, "features": features}
    COMMITTED.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
