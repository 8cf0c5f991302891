"""Inputs modelled on public bug reports, made from seeds, and what commands on them must do.

`python -m tests.cases.wild.make_cases` writes `expected.json` again. All names are invented; what is right is
computed in float64 from PEFT's rule dW = s·B·A, with nothing of riemerge.

A case is a row of `expected.json`: commands, run in the folder of the inputs with {out} a fresh path, and
for each a list of outcomes, one of which must hold. An outcome has `exit` (a list of codes), and may have
`says` and `never_says` (parts of stdout and stderr, in any case), `modules` (numbers of what is written, by
the rule of its dialect), `modules_bf16` (the same numbers of what is stored in bfloat16), and `uniform`
(alpha of the config over the rank of the stored tensor, llama.cpp's rule, is PEFT's scale in all modules).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

PREFIX = "base_model.model."
EXPECTED = Path(__file__).with_name("expected.json")

Updates = dict[str, Tensor]
Outcome = dict[str, Any]
Shapes = Mapping[str, tuple[int, int, int]]

REFUSED = [3, 4]
QV = {
    f"model.layers.{layer}.self_attn.{name}": (rows, 32, 4)
    for layer in range(2)
    for name, rows in (("q_proj", 32), ("v_proj", 16))
}


# --- adapters from seeds ------------------------------------------------------------------------------------


def rand(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) / math.sqrt(shape[-1])


def config(**said: Any) -> dict[str, Any]:
    usual = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "acme/pico-1",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
        "layers_to_transform": None,
        "layers_pattern": None,
        "revision": None,
    }
    return usual | said


def adapter(
    folder: Path,
    shapes: Shapes,
    seed: int,
    *,
    scale: Callable[[str, int], float] | None = None,
    extra: Mapping[str, Tensor] | None = None,
    **said: Any,
) -> Updates:
    """Write a PEFT folder from a seed, modules as (m, n, r), and return its dW by module."""
    folder.mkdir(parents=True, exist_ok=True)
    settings, tensors, updates = config(**said), dict(extra or {}), {}
    for place, (module, (m, n, r)) in enumerate(sorted(shapes.items())):
        a, b = rand(seed * 1000 + 2 * place, r, n).float(), rand(seed * 1000 + 2 * place + 1, m, r).float()
        tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"] = a, b
        usual = settings["lora_alpha"] / (math.sqrt(r) if settings["use_rslora"] else r)
        updates[module] = (scale(module, r) if scale else usual) * (b.double() @ a.double())
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return updates


def single_file(path: Path, seed: int, alpha: int | None) -> Updates:
    """Write a LoRA of rank 4 as image tools do: as kohya with an alpha, as early diffusers without."""
    shapes = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (32, 32),
        "lora_unet_mid_block_attentions_0_proj_in": (24, 32),
    }
    if alpha is None:
        shapes = {
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora": (32, 32),
            "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora": (24, 32),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    updates: Updates = {}
    for place, (name, (m, n)) in enumerate(shapes.items()):
        down, up = (
            rand(seed * 100 + 2 * place, 4, n).float(),
            rand(seed * 100 + 2 * place + 1, m, 4).float(),
        )
        prefix = "" if alpha is None else "lora_"
        tensors |= {f"{name}.{prefix}down.weight": down, f"{name}.{prefix}up.weight": up}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
        # diffusers writes the names of its model today
        today = name if alpha is not None else f"unet.{name.replace('.processor', '').removesuffix('_lora')}"
        updates[today] = (1.0 if alpha is None else alpha / 4) * (up.double() @ down.double())
    save_file(tensors, path)
    return updates


# --- what is right ------------------------------------------------------------------------------------------


def weighted(updates: Sequence[Updates], weights: Sequence[float]) -> Updates:
    """Σ wᵢ dWᵢ; a module that an adapter does not have is zero there."""
    total: Updates = {}
    for update, weight in zip(updates, weights, strict=True):
        for module, value in update.items():
            total[module] = total.get(module, torch.zeros(())) + weight * value
    return total


def mean(*updates: Updates) -> Updates:
    return weighted(updates, [1 / len(updates)] * len(updates))


def cut(updates: Updates, rank: int) -> Updates:
    """The nearest updates of a rank, which is that of the inputs where a command names none."""
    nearest = {}
    for module, w in updates.items():
        u, sigma, vt = torch.linalg.svd(w, full_matrices=False)
        nearest[module] = u[:, :rank] * sigma[:rank] @ vt[:rank]
    return nearest


def numbers(updates: Updates) -> dict[str, dict[str, float]]:
    """By module ‖W‖ and uᵀWv with uᵢ = cos i and vⱼ = sin j, from 1: they tell W apart."""
    found = {}
    for module, w in sorted(updates.items()):
        u = torch.cos(torch.arange(1, w.shape[0] + 1, dtype=torch.float64))
        v = torch.sin(torch.arange(1, w.shape[1] + 1, dtype=torch.float64))
        found[module] = {"norm": float(w.norm()), "probe": float(u @ w @ v)}
    return found


def done(updates: Updates | None = None, **more: Any) -> Outcome:
    return {"exit": [0], **({} if updates is None else {"modules": numbers(updates)}), **more}


def refused(*says: str, never: Sequence[str] = (), code: Sequence[int] = (4,)) -> Outcome:
    return {"exit": [*code], "says": [*says], **({"never_says": [*never]} if never else {})}


def row(source: str, commands: Mapping[str, list[Outcome]]) -> dict[str, Any]:
    return {"source": source, "commands": [*commands], "accept": [*commands.values()]}


# --- the cases ----------------------------------------------------------------------------------------------


def kohya(d: Path) -> dict[str, Any]:
    """LoRAs in a single file, as kohya and as early diffusers wrote them."""
    watercolor = single_file(d / "watercolor.safetensors", 1, 4)
    portrait = single_file(d / "portrait.safetensors", 2, 1)
    old0 = single_file(d / "old0.safetensors", 3, None)
    old1 = single_file(d / "old1.safetensors", 4, None)
    new, old = (
        "kohya/watercolor.safetensors kohya/portrait.safetensors",
        "kohya/old0.safetensors kohya/old1.safetensors",
    )
    return row(
        "cloneofsimo/lora#187; kohya-ss/sd-scripts#1522; bmaltais/kohya_ss#1117",
        {
            f"merge {new} -o {{out}} --method average": [done(cut(mean(watercolor, portrait), 4))],
            f"merge {new} -o {{out}}": [{"exit": [0], "says": ["merged by spectrum"]}],
            f"merge {old} -o {{out}} --method average": [done(cut(mean(old0, old1), 4))],
            f"sweep {old} -o {{out}} --steps 3": [{"exit": [0], "says": ["0.50", "written to"]}],
        },
    )


def noconfig(d: Path) -> dict[str, Any]:
    """PEFT's own file without its config."""
    for name, seed in (("law", 11), ("med", 12)):
        adapter(d / name, QV, seed)
        (d / name / "adapter_config.json").unlink()
    never = ["base_model: missing", "did you mean one of its files"]
    no = refused("adapter_config.json", never=never, code=REFUSED)
    files = "noconfig/law/adapter_model.safetensors noconfig/med/adapter_model.safetensors"
    return row(
        "huggingface/peft#420; tloen/alpaca-lora#503",
        {
            "merge noconfig/law noconfig/med -o {out}": [no],
            "merge noconfig/law noconfig/med -o {out} --method average": [no],
            **{
                f"merge {files} -o {{out}} --method {method}": [no]
                for method in ("average", "slerp", "karcher", "median")
            },
        },
    )


def below(d: Path) -> dict[str, Any]:
    """The folder of a run, or of a named adapter: the adapter is one level below."""
    for run, seed in (("law", 21), ("med", 22)):
        adapter(d / f"run-{run}" / "checkpoint-500", QV, seed)
        adapter(d / f"named-{run}" / "style", QV, seed)
        (d / f"named-{run}" / "README.md").write_text("# card\n")
    adapter(d / "flat", QV, 23)
    never = ["base_model: missing", "full checkpoint"]
    no = refused("checkpoint-500", never=never, code=REFUSED)
    return row(
        "huggingface/peft#718; huggingface/peft#2690",
        {
            "merge below/run-law below/run-med -o {out}": [no],
            "merge below/named-law below/named-med -o {out}": [refused("style", never=never, code=REFUSED)],
            "merge below/run-law below/flat -o {out}": [no],
            "merge below/run-law below/run-med -o {out} --method average": [no],
        },
    )


def heads(d: Path) -> dict[str, Any]:
    """Classification heads beside the factors, of different width, one not said in the config."""
    shapes = {
        f"bert.encoder.layer.{layer}.attention.self.{name}": (32, 32, 4)
        for layer in range(2)
        for name in ("query", "value")
    }
    said: dict[str, Any] = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
    updates = {}
    for name, seed, classes in (("spam", 31, 2), ("topic", 32, 3)):
        head = {
            f"{PREFIX}classifier.weight": rand(seed, classes, 32).float(),
            f"{PREFIX}classifier.bias": rand(seed + 1, classes).float(),
        }
        saved = ["classifier", "score"]
        updates[name] = adapter(d / name, shapes, seed, extra=head, modules_to_save=saved, **said)
    unsaid = adapter(
        d / "unsaid", shapes, 33, extra={f"{PREFIX}score.weight": rand(39, 2, 32).float()}, **said
    )
    spam, topic = updates["spam"], updates["topic"]
    rest = "-o {out} --method average --rank sum"
    return row(
        "huggingface/peft#1676; huggingface/peft#2136; five of five public adapters of BERT's kind",
        {
            f"merge heads/spam heads/topic {rest}": [refused("classifier", "--heads")],
            f"merge heads/unsaid heads/topic {rest}": [refused("score.weight", "--heads")],
            f"merge heads/spam heads/topic {rest} --heads drop": [
                done(mean(spam, topic), says=["classifier"]),
            ],
            f"merge heads/unsaid heads/topic {rest} --heads drop": [
                done(mean(unsaid, topic), says=["score"]),
            ],
        },
    )


def lmhead(d: Path) -> dict[str, Any]:
    """PEFT saves the base weight beside the factors of an embedding-like layer, untouched."""
    shapes = QV | {"lm_head": (80, 32, 4)}
    said: dict[str, Any] = {"target_modules": ["q_proj", "v_proj", "lm_head"]}
    base, grown = ({f"{PREFIX}lm_head.base_layer.weight": rand(seed, 80, 32).float()} for seed in (500, 501))
    law, med = (
        adapter(d / name, shapes, seed, extra=base, **said) for name, seed in (("law", 51), ("med", 52))
    )
    adapter(d / "other-base", shapes, 53, extra=grown, **said)
    return row(
        "huggingface/peft#2092; huggingface/peft#2018; ggml-org/llama.cpp#11554",
        {
            "merge lmhead/law lmhead/med -o {out} --method average --rank sum": [
                done(mean(law, med), says=["lm_head.weight: weights of the base model"]),
            ],
            "merge lmhead/law lmhead/other-base -o {out} --method average": [
                refused("lm_head.base_layer.weight")
            ],
        },
    )


def targets(d: Path) -> dict[str, Any]:
    """Adapters of other modules or other layers of one base."""
    attention = adapter(d / "attention", QV, 61)
    mlp = {f"model.layers.{layer}.mlp.up_proj": (48, 32, 4) for layer in range(2)}
    every = adapter(d / "all-linear", QV | mlp, 62, target_modules="all-linear")
    first, last = (
        adapter(
            d / f"layer{layer}",
            {module: shape for module, shape in QV.items() if f".{layer}." in module},
            63 + layer,
            layers_to_transform=[layer],
        )
        for layer in range(2)
    )
    return row(
        "huggingface/peft#961; huggingface/peft#3574",
        {
            "merge targets/attention targets/all-linear -o {out} --method cat": [
                refused("lacks 2 of 6", "--missing zero", "--missing skip"),
            ],
            "merge targets/layer0 targets/layer1 -o {out} --method cat": [
                refused("no module in common", "--missing zero", "--missing skip"),
            ],
            "merge targets/attention targets/all-linear -o {out} --method cat --missing zero": [
                done(weighted([attention, every], [1, 1]), says=["2 of 6"]),
            ],
            "merge targets/layer0 targets/layer1 -o {out} --method cat --missing zero": [
                done(weighted([first, last], [1, 1])),
            ],
            "merge targets/layer0 targets/layer1 -o {out} --method average --missing skip": [
                done(weighted([first, last], [1, 1])),
            ],
        },
    )


def names(d: Path) -> dict[str, Any]:
    """One base model under several names, and one that is base and first adapter."""
    plain = adapter(d / "plain", QV, 71)
    quant = adapter(d / "quant", QV, 72, base_model_name_or_path="acme/pico-1-bnb-4bit")
    local = adapter(d / "local", QV, 73, base_model_name_or_path="/mnt/models/pico-1/")
    empty = adapter(d / "empty", QV, 74, base_model_name_or_path="")
    second = adapter(d / "second", QV, 75, base_model_name_or_path="./pico-1-plus-plain")
    rest = "-o {out} --method average --rank sum"
    added = "merge names/plain names/second -o {out} --method cat"
    return row(
        "huggingface/peft#1080; hiyouga/LlamaFactory#5543; huggingface/peft#1040",
        {
            f"merge names/plain names/quant {rest}": [done(mean(plain, quant), says=["a quantised copy"])],
            f"merge names/plain names/local {rest}": [done(mean(plain, local), says=["a local folder"])],
            f"merge names/plain names/empty {rest}": [done(mean(plain, empty))],
            added: [
                refused("./pico-1-plus-plain", "names/plain names/second -o NEW --method cat --same-base")
            ],
            f"{added} --same-base": [done(weighted([plain, second], [1, 1]))],
        },
    )


def signs(d: Path) -> dict[str, Any]:
    """Negative weights, weights above 1, one adapter alone."""
    a, b = adapter(d / "a", QV, 81), adapter(d / "b", QV, 82, lora_alpha=16, use_rslora=True)
    return row(
        "huggingface/peft#2796; huggingface/peft#3004; bmaltais/kohya_ss#2915",
        {
            "merge signs/a:1 signs/b:-1 -o {out} --method cat": [done(weighted([a, b], [1, -1]))],
            "merge signs/a:-0.5 signs/b:2.5 -o {out} --method task_arithmetic --rank sum": [
                done(weighted([a, b], [-0.5, 2.5]))
            ],
            "merge signs/a:-1 -o {out} --method task_arithmetic": [done(weighted([a], [-1]))],
            "merge signs/a signs/b:-1 -o {out}": [refused("below zero", "task_arithmetic", code=[3])],
        },
    )


PATTERNS = {
    "plain": "q_proj",
    "anchored": r"^model\.layers\.1\.self_attn\.q_proj",
    "alternatives": r".*\.layers\.1\..*(q_proj|k_proj)$",
    "ranges": r".*layers\.(1[6-9]|2[0-9]|1).*\.(q|k)_proj",
    "noncapturing": r".*\.layers\.(?:1|3)\..*q_proj",
    "optional": r"(model\.)?layers\.(1|2)\.self_attn\.q_proj",
}


def patterns(d: Path) -> dict[str, Any]:
    """rank_pattern and alpha_pattern as trainers write them, every other with rsLoRA."""
    commands = {}
    for place, (name, pattern) in enumerate(PATTERNS.items()):
        end = "q_proj" if name == "plain" else "1.self_attn.q_proj"
        rooted = place % 2 == 1

        def scale(module: str, r: int, end: str = end, rooted: bool = rooted) -> float:
            return (32 if module.endswith(end) else 8) / (math.sqrt(r) if rooted else r)

        updates = adapter(
            d / name,
            {module: (m, n, 8 if module.endswith(end) else r) for module, (m, n, r) in QV.items()},
            90 + place,
            rank_pattern={pattern: 8},
            alpha_pattern={pattern: 32},
            use_rslora=rooted,
            scale=scale,
        )
        commands[f"merge patterns/{name} -o {{out}} --method average"] = [done(updates)]
    return row("axolotl-ai-cloud/axolotl#3673; NVIDIA/TensorRT-LLM#1668", commands)


def serving(d: Path) -> dict[str, Any]:
    """A result whose rank differs between modules, under loaders that know one alpha."""
    shapes = {"model.layers.0.self_attn.q_proj": (32, 32, 4), "model.layers.0.mlp.gate_proj": (64, 32, 16)}
    law, med = (
        adapter(
            d / name,
            shapes,
            seed,
            r=16,
            lora_alpha=32,
            rank_pattern={"q_proj": 4},
            scale=lambda module, r: 32 / r,
        )
        for name, seed in (("law", 101), ("med", 102))
    )
    merge = "merge serving/law serving/med -o {out} --method average --rank"
    return row(
        "huggingface/diffusers#14409; ggml-org/llama.cpp#8332; vllm-project/vllm#2847",
        {
            f"{merge} sum": [done(mean(law, med), uniform=True)],
            f"{merge} 16": [done(uniform=True)],
            f"{merge} 95%": [done(uniform=True), done(says=["rank_pattern"])],
        },
    )


RECIPES = {
    "linear": """\
models:
  - model: a
    parameters: {weight: 0.3}
  - model: b
    parameters: {weight: 0.7}
merge_method: linear
base_model: acme/pico-1
dtype: bfloat16
""",
    "plus": """\
models:
  - model: acme/pico-1+a
    parameters: {weight: 0.3}
  - model: acme/pico-1+b
    parameters: {weight: 0.7}
merge_method: average
""",
    "slices": """\
slices:
  - sources:
      - {model: a, layer_range: [0, 2]}
      - {model: b, layer_range: [0, 2]}
merge_method: average
""",
}


def yaml(d: Path) -> dict[str, Any]:
    """mergekit's files for adapters: linear, dtype: bfloat16, base_model, base+adapter, slices."""
    a, b = adapter(d / "a", QV, 111), adapter(d / "b", QV, 112)
    for name, text in RECIPES.items():
        (d / f"{name}.yaml").write_text(text)
    return row(
        "arcee-ai/mergekit#470",
        {
            "merge yaml/linear.yaml -o {out}": [
                {
                    "exit": [0],
                    "modules_bf16": numbers(weighted([a, b], [0.3, 0.7])),
                    "says": ["out_dtype", "merge_method average"],
                }
            ],
            "merge yaml/plus.yaml -o {out}": [
                done(cut(weighted([a, b], [0.3, 0.7]), 4), says=["base+adapter: read as the adapter"])
            ],
            "merge yaml/slices.yaml -o {out}": [done(cut(mean(a, b), 4), says=["slices"])],
        },
    )


CASES = (kohya, noconfig, below, heads, lmhead, targets, names, signs, patterns, serving, yaml)


def make(root: Path) -> dict[str, Any]:
    """Write the inputs of all cases, each in a folder of its name, and return what `expected.json` holds."""
    return {case.__name__: case(root / case.__name__) for case in CASES}


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        EXPECTED.write_text(json.dumps(make(Path(folder)), indent=1) + "\n")
