"""The model card: the Markdown page that lies beside merged weights, made from the run record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from riemerge.methods import find_recorded_row
from riemerge.records.run_record import InputRow, ModuleRow, RunRecord
from riemerge.report.markdown import as_yaml as _yaml
from riemerge.report.markdown import escape as _escape
from riemerge.report.markdown import table as _table
from riemerge.report.verdict import matched_text, serving_text, verdict, weight_text, written_text
from riemerge.report.words import number, text_of


def model_card(record: RunRecord, scores: Mapping[str, float] | None = None) -> str:
    """Return the README.md of a merged adapter: front matter for model hubs, then how it was made.

    Law: every name from outside is escaped; no path of the machine and no time appears.

    Args:
        record: What was done.
        scores: Scores of the merge on test rows, by task.
    """
    method = find_recorded_row(record.recipe)
    bases, dialect = bases_of(record), record.recipe.get("dialect", "peft")
    front = {
        "license": record.licence,
        "library_name": {"adapter": _LIBRARIES[dialect]}.get(record.out_type),
        "base_model": bases,
        "base_model_relation": bases and {"adapter": "adapter", "checkpoint": "merge"}.get(record.out_type),
        "tags": [
            *{"adapter": ["lora"]}.get(record.out_type, []),
            "merge",
            "riemerge",
            record.recipe["merge_method"],
        ],
        "model-index": scores and [{"name": record.recipe["merge_method"], "results": _results(scores)}],
    }
    front = {key: value for key, value in front.items() if value}
    kind = {"checkpoint": "full checkpoints"}.get(record.out_type, "LoRA adapters")
    parts = [
        f"---\n{_yaml(front)}---",
        f"# Merge of {len(record.inputs)} {kind} by {method.name}",
        f"Made by riemerge: {_escape(method.summary)}. Source: {_escape(method.source)}.",
        "## Inputs",
        _table(("adapter", "weight", "share", "rank", "sha256"), map(_input_cells, record.inputs)),
        "\n".join(f"- {_escape(text)}" for text in record.warnings),
        "## How to load",
        _loading(record),
        _escape(serving_text(record)),
        "## How to reproduce",
        _REPRODUCE.format(recipe="---\n".join(map(_yaml, record.documents))),
        "Versions: " + ", ".join(f"{name} {_escape(text)}" for name, text in record.versions.items()),
        "## What came out",
        _escape(matched_text(record)),
        _escape(written_text(record)),
        *[_escape(paragraph) for paragraph in verdict(record)],
        _table(
            ("module", "shape", "rank", "status", "cost", "gradient norm", "‖dW‖", "determined"),
            map(_module_cells, record.modules),
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def bases_of(record: RunRecord) -> str | list[str] | None:
    """Return what the hub calls base models: of an adapter its base, of a checkpoint also what was merged."""
    ids = [
        name.partition("@")[0]
        for name in (entry["model"] for entry in record.recipe["models"])
        if "@" in name
    ]
    if record.out_type != "checkpoint" or len(ids) < len(record.inputs):
        return record.base_model
    return list(dict.fromkeys([*filter(None, [record.base_model]), *ids]))


def _results(scores: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return scores as the hub's model-index has them."""
    return [
        {
            "task": {"type": "other", "name": task},
            "dataset": {"type": task, "name": f"{task}, test rows"},
            "metrics": [{"type": "score", "name": "score of riemerge evaluate", "value": score}],
        }
        for task, score in scores.items()
    ]


def _input_cells(row: InputRow) -> tuple[str, ...]:
    digests = [text for name, text in (row.sha256 or {}).items() if name.endswith(".safetensors")]
    return (
        _escape(row.name),
        weight_text(row),
        f"{row.share:.4g}",
        ", ".join(map(str, row.ranks)) or ("-" if row.sha256 else "not read"),
        ", ".join(f"`{digest[:12]}`" for digest in digests) or "`-`",
    )


def _module_cells(row: ModuleRow) -> tuple[str, ...]:
    return (
        _escape(row.module),
        " × ".join(map(str, row.shape)),
        text_of(row.rank, missing="dense"),
        row.status,
        number(row.cost),
        number(row.gradient_norm),
        number(row.norm),
        row.determined or "-",
    )


_LIBRARIES = {"peft": "peft", "kohya": "diffusers", "diffusers": "diffusers", "mlx": "mlx"}


def _loading(record: RunRecord) -> str:
    """Return the code that loads what was written."""
    if code := _LOAD.get(record.recipe.get("dialect", "peft")):
        return code.format(base=json.dumps(record.base_model or "the base model"))
    library, _, name = record.model_class.rpartition(".")
    if not name:
        return _LOAD["weights"]
    # Each library but transformers has its own way to its models.
    first, base = "", f"base = ...  # the {name} of {library} that the adapters were trained on"
    if library == "transformers":
        first = f"from transformers import {name}\n"
        base = f"base = {name}.from_pretrained({json.dumps(record.base_model or 'the base model')})"
    code = _LOAD[record.out_type].format(first=first, base=base, name=name)
    kept = record.heads and record.heads.written
    if record.out_type != "checkpoint" and name in _WITH_A_HEAD and not kept:
        return f"{code}\n\n{_HEAD.format(name=name)}"
    return code


_WITH_A_HEAD = {
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
}
_HEAD = (
    "The head of `{name}` is not in this folder: it is that of the base model, or random where that has "
    "none; load a trained one into it."
)

_LOAD = {
    "adapter": """\
```python
from peft import PeftModel
{first}
{base}
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```""",
    "kohya": """\
```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({base})
pipeline.load_lora_weights("path/to/this/folder", weight_name="lora.safetensors")
```""",
    "diffusers": """\
```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({base})
pipeline.load_lora_weights("path/to/this/folder")
```""",
    "mlx": """\
```python
from mlx_lm import load

model, tokenizer = load({base}, adapter_path="path/to/this/folder")
```""",
    "delta": """\
These are updates dW, to be added to the weights of the base model:

```python
from pathlib import Path
from safetensors.torch import load_file
{first}
{base}
weights = dict(base.named_parameters())
for file in Path("path/to/this/folder").glob("*.safetensors"):
    for name, update in load_file(file).items():
        weights[name].data += update.to(weights[name])
```""",
    "checkpoint": """\
```python
{first}
model = {name}.from_pretrained("path/to/this/folder")
```""",
    "weights": """\
These are weights without settings:

```python
from pathlib import Path
from safetensors.torch import load_file

weights = {}
for file in Path("path/to/this/folder").glob("*.safetensors"):
    weights |= load_file(file)
```""",
}

_REPRODUCE = """\
With the folders of the inputs beside a file `recipe.yaml`, run `riemerge merge recipe.yaml -o merged`:

```yaml
{recipe}```

`riemerge.json` holds the full record."""
