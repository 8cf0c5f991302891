"""The model card of an applied or an extracted adapter, made from its record."""

from __future__ import annotations

import json
import shlex

from riemerge.records.difference_record import DifferenceInput, DifferenceModule, DifferenceRecord
from riemerge.report.markdown import as_yaml, escape, table
from riemerge.report.words import number, text_of

_TITLES = {"apply": "{base} with {other} merged in", "extract": "{other} as a LoRA adapter of {base}"}
_MADE = {
    "apply": "Each weight is that of the base model and the update of the adapter, rounded once.",
    "extract": "Each update is the nearest one of its rank to what the model changed of its base.",
}
_HUB = {
    "apply": {"base_model_relation": "finetune", "tags": ["riemerge"]},
    "extract": {"library_name": "peft", "base_model_relation": "adapter", "tags": ["lora", "riemerge"]},
}
_LOAD = {
    "apply": 'model = {name}.from_pretrained("path/to/this/folder")',
    "extract": """\
base = {name}.from_pretrained({base})
model = PeftModel.from_pretrained(base, "path/to/this/folder")""",
}


def difference_card(record: DifferenceRecord) -> str:
    """Return the README.md of an applied or extracted adapter.

    Law: every name from outside is escaped; no path of the machine and no time appears.
    """
    names = {"base": record.base.name, "other": record.other.name}
    options = (
        f"--{name} {shlex.quote(value)}" for name, values in record.settings.items() for value in values
    )
    command = " ".join(["riemerge", record.verb, *map(shlex.quote, names.values()), "-o", "OUT", *options])
    parts = [
        f"---\n{as_yaml({'base_model': record.base.name, **_HUB[record.verb]})}---",
        f"# {escape(_TITLES[record.verb].format(**names))}",
        f"Made by riemerge: {_MADE[record.verb]}",
        "## Inputs",
        table(("model", "sha256"), map(_input_cells, (record.base, record.other))),
        "\n".join(f"- {escape(text)}" for text in record.warnings),
        "## How to load",
        _loading(record),
        "## How to reproduce",
        f"```\n{command}\n```\n\n`riemerge.json` holds the full record.",
        "Versions: " + ", ".join(f"{name} {escape(text)}" for name, text in record.versions.items()),
        "## What came out",
        table(
            ("module", "shape", "rank", "‖dW‖", "energy kept", "error"),
            map(_module_cells, record.modules),
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _input_cells(model: DifferenceInput) -> tuple[str, str]:
    digests = [text for name, text in model.sha256.items() if name.endswith(".safetensors")]
    return escape(model.name), ", ".join(f"`{digest[:12]}`" for digest in digests)


def _module_cells(row: DifferenceModule) -> tuple[str, ...]:
    return (
        escape(row.module),
        " × ".join(map(str, row.shape)),
        text_of(row.rank, missing="dense"),
        number(row.norm),
        text_of(row.energy_kept, "{:.2%}"),
        number(row.error),
    )


def _loading(record: DifferenceRecord) -> str:
    """Return the code that loads what was written."""
    library, _, name = (record.model_class or "transformers.AutoModel").rpartition(".")
    imports = [f"from {library} import {name}"]
    if record.verb == "extract":
        imports.insert(0, "from peft import PeftModel")
    code = _LOAD[record.verb].format(name=name, base=json.dumps(record.base.name))
    return "\n".join(["```python", *imports, "", code, "```"])
