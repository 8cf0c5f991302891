"""Run records in words: the verdict on a merge, and the model card that lies beside the weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from riemerge.formats.files.text import listed
from riemerge.frechet.status import Status
from riemerge.methods import DEFAULT_METHOD, METHODS
from riemerge.records.evaluation_record import Entry, Evaluation
from riemerge.records.run_record import SPREAD_PARTLY, SPREAD_YES, InputRow, RunRecord
from riemerge.records.written_ranks import written_ranks
from riemerge.report.suitability import concerns

_VERDICT = {
    "yes": "Yes",
    "partly": "Only in part",
    "no": "No, they are as good as independent",
    "open": "Their overlap does not tell",
}


def printable(text: str) -> str:
    r"""Return the text with everything a terminal might act on written as an escape.

    >>> printable("law\x1b[31m")
    'law\\x1b[31m'
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def verdict(record: RunRecord) -> list[str]:
    """Say in words whether the inputs determine their Fréchet mean, and what to use when they do not.

    Returns:
        Paragraphs of plain text, those of `suitability.concerns` last; none for a single input, and none for
        full checkpoints.
    """
    total, inputs = record.totals, [row for row in record.inputs if row.share != 0]
    if len(inputs) < 2 or not any(row.ranks for row in inputs):
        return []
    if total.overlap is None or total.determined is None:
        unsaid = "Whether these adapters determine their mean cannot be said: some updates are all zero."
        return [unsaid, *concerns(record)]
    found = total.overlap
    first = (
        f"Do these adapters determine their mean? {_VERDICT[total.determined]}. The principal angles between "
        f"their column spaces have an RMS cosine of {found.left:.2f} (random subspaces: "
        f"{found.left_random:.2f}), between their row spaces {found.right:.2f} (random: "
        f"{found.right_random:.2f}). On the side that shares less that is {max(found.share, 0):.0%} of the "
        f"way from random to equal subspaces; the updates themselves have a mean cosine of "
        f"{found.cosine:.2f}."
    )
    determination = [f"{first} {_measured(record)} {_modules(record)}", _consequence(record, len(inputs))]
    return determination + concerns(record)


def _measured(record: RunRecord) -> str:
    """How the answer was found: by several starts, or by the overlap alone."""
    spread = record.totals.update_spread
    if spread is None:
        judged = "" if record.totals.determined == "open" else "The answer is judged by this overlap; "
        doubt = any(row.determined == "open" for row in record.modules)
        return f"{judged}{MEASURE if doubt else MEASURE_ALL} measures it."
    starts = max(row.starts or 0 for row in record.modules)
    costs = max(row.cost_spread or 0.0 for row in record.modules)
    told = sum(row.starts is None and row.determined is not None for row in record.modules)
    where = f" where the overlap does not tell (it does in {told} of {len(record.modules)})" if told else ""
    return (
        f"The answer was measured{where}: solved from {starts} starts, of which the best counts, the "
        f"merged updates end up to {_share(spread)} apart, at costs within {_share(costs)} in every "
        f"module (a module is determined up to {SPREAD_YES:.0%}, in part up to {SPREAD_PARTLY:.0%})."
    )


def _modules(record: RunRecord) -> str:
    """Which modules are well determined, compactly."""
    there = {answer: [row.module for row in record.modules if row.determined == answer] for answer in _ANSWER}
    there = {answer: names for answer, names in there.items() if names}
    total = sum(map(len, there.values()))
    if len(there) == 1:
        ((answer, _),) = there.items()
        return f"{_ANSWER[answer]} {'is the one module' if total == 1 else f'are all {total} modules'}."
    parts = (f"{_ANSWER[answer]}: {len(names)} ({listed(names)})" for answer, names in there.items())
    return f"Of {total} modules are {'; '.join(parts)}."


MEASURE = "--method geomerge --starts auto"
"""What measures whether adapters determine their mean where their overlap does not tell."""

MEASURE_ALL = "--method geomerge --starts 10 --cost-tol 1e-6"
"""What measures it in every module."""

_ANSWER = {"yes": "well determined", "partly": "determined in part", "no": "not determined", "open": "open"}


def _share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}" if value >= 1e-3 else f"{value:.0e} of it"


def _consequence(record: RunRecord, count: int) -> str:
    method, answer = record.recipe["merge_method"], record.totals.determined
    if not METHODS[method].may_be_undetermined:
        exact = record.totals.statuses.keys() == {Status.EXACT.name}
        closed_form = exact and "seed" not in METHODS[method].parameters
        unique = f"; {method} has one answer whatever the overlap" if closed_form else ""
        too = " --method geomerge would be well determined here too." if answer == "yes" else ""
        return f"That is asked of geomerge{unique}.{too}"
    if answer == "open":
        return (
            "Overlaps between those of copies and of strangers were measured on real adapters: of 64 such "
            "modules in 55 all ten starts ended in one update, in 9 in different ones. "
            f"Where yours do not end in one, use --method {DEFAULT_METHOD}."
        )
    if answer == "yes":
        rest = [row.module for row in record.modules if row.determined != "yes"]
        fallback = (
            f" For the {len(rest)} modules of which that is not known compare --method {DEFAULT_METHOD}."
            if rest
            else ""
        )
        return (
            "So the mean is a property of the adapters, hardly of the start or the solver: for such adapters "
            f"different starts were measured to end in the same update.{fallback}"
        )
    rank = sum(max(row.ranks, default=0) for row in record.inputs)
    return (
        f"Where they do not, a mean of fixed rank keeps each adapter at about 1/{count} and fills the rest "
        "with cross terms between adapters that the data hardly fix: other starts end in other updates of "
        "nearly the same cost (measured on six adapters of rank 16: 35 % apart where half of the directions "
        "are shared, 50 % where the start of A is, 111 % where nothing is, at costs within 0.5 %). On "
        "independent adapters the mean was also farther from each input than the average: cosine 0.17 "
        f"against 0.41. Use --method {DEFAULT_METHOD}, or --method average --rank sum, which is exact (rank "
        f"{rank} here); extra iterations buy nothing."
    )


def evaluation_verdict(made: Evaluation) -> list[str]:
    """Say in words which method an evaluation found best, and whether that is better than the plain average.

    Returns:
        Paragraphs of plain text.
    """
    best, rest = made.entry(made.best), max(made.alone, key=lambda one: one.normalised)
    error = "" if best.error is None else f" ± {best.error:.3f}"
    dev, test = ("dev rows", "test rows") if made.parts else ("these rows", "them")
    first = (
        f"Best on {dev} is {printable(best.name)} at {best.coefficient:.3g} times the norm of the plain "
        f"average (--scale {best.scale:.4g}): {best.normalised:.3f}{error} on {test}."
    )
    last = f"The best model alone, {printable(rest.name)}, has {rest.normalised:.3f}."
    return [f"{first} {_against_average(made, best)} {last}"]


def _against_average(made: Evaluation, best: Entry) -> str:
    if best.name == made.average:
        return "That is the plain average itself: no other method that was tried is better there."
    found, name = best.to_average, printable(made.average)
    if found.low is None or found.high is None:
        return (
            f"That is {found.value:+.3f} from {name}; whether it is more than noise cannot be said without "
            "scores of rows."
        )
    interval = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] from {name}"
    if found.low > 0:
        return f"That is {interval}: better beyond noise (p = {found.p:.2g})."
    if found.high < 0:
        return f"That is {interval}: worse beyond noise (p = {found.p:.2g}), though it was better on dev."
    return f"That is {interval}: not better beyond noise (p = {found.p:.2g})."


def model_card(record: RunRecord) -> str:
    """Return the README.md of a merged adapter: front matter for model hubs, then how it was made.

    Law: every name from outside is escaped; no path of the machine and no time appears.
    """
    method = METHODS[record.recipe["merge_method"]]
    lora = record.out_type == "adapter"
    front = {
        **({"library_name": "peft"} if lora else {}),
        **({"base_model": record.base_model} if record.base_model else {}),
        "tags": [*(["lora"] if lora else []), "merge", "riemerge", method.name],
    }
    kind = "full checkpoints" if record.out_type == "checkpoint" else "LoRA adapters"
    inputs = [
        (
            _escaped(row.name),
            weight_text(row),
            f"{row.share:.4g}",
            ", ".join(map(str, row.ranks)) or ("-" if row.sha256 else "not read"),
            ", ".join(f"`{text[:12]}`" for text in _weights(row.sha256)) or "`-`",
        )
        for row in record.inputs
    ]
    modules = [
        (
            _escaped(row.module),
            " × ".join(map(str, row.shape)),
            "dense" if row.rank is None else str(row.rank),
            row.status,
            number(row.cost),
            number(row.gradient_norm),
            number(row.norm),
            row.determined or "-",
        )
        for row in record.modules
    ]
    parts = [
        f"---\n{_yaml(front)}---",
        f"# Merge of {len(record.inputs)} {kind} by {method.name}",
        f"Made by riemerge: {_escaped(method.summary)}. Source: {_escaped(method.source)}.",
        "## Inputs",
        _table(("adapter", "weight", "share", "rank", "sha256"), inputs),
        "\n".join(f"- {_escaped(text)}" for text in record.warnings),
        "## How to load",
        _loading(record),
        "## How to reproduce",
        _REPRODUCE.format(recipe=_yaml(record.recipe)),
        "Versions: " + ", ".join(f"{name} {_escaped(text)}" for name, text in record.versions.items()),
        "## What came out",
        _escaped(matched_text(record)),
        _escaped(written_text(record)),
        *[_escaped(paragraph) for paragraph in verdict(record)],
        _table(("module", "shape", "rank", "status", "cost", "gradient norm", "‖dW‖", "determined"), modules),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _weights(sha256: Mapping[str, str] | None) -> list[str]:
    """The sha256 of the files of tensors of an input."""
    return [text for name, text in (sha256 or {}).items() if name.endswith(".safetensors")]


def _loading(record: RunRecord) -> str:
    """The code that loads what was written."""
    library, _, name = record.model_class.rpartition(".")
    if library == "transformers":
        base = f"base = {name}.from_pretrained({json.dumps(record.base_model or 'the base model')})"
        first = f"from transformers import {name}\n"
    else:
        # Each library has its own way to its models.
        base = f"base = ...  # the {name} of {library} that the adapters were trained on"
        first = ""
    if not name:
        return _LOAD["weights"]
    code = _LOAD[record.out_type].format(first=first, base=base, name=name)
    headless = record.out_type != "checkpoint" and name in _WITH_A_HEAD
    return f"{code}\n\n{_HEAD.format(name=name)}" if headless else code


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


def weight_text(row: InputRow) -> str:
    """Return the weight of an input as asked for."""
    return "varies" if row.weight is None else f"{row.weight:g}"


def matched_text(record: RunRecord) -> str:
    """Return what `scale: matched` came to, in words; nothing where it was not asked for."""
    if record.matched_scale is None:
        return ""
    return (
        f"scale: matched is {record.matched_scale:.4g} here: the factor that brings the merge to the mean "
        "norm of its inputs, over all modules; --scale 1 leaves it out"
    )


def written_text(record: RunRecord) -> str:
    """Return in words the rank with which an adapter is written; nothing for other results."""
    if record.out_type != "adapter" or not record.modules:
        return ""
    ranks = written_ranks(record.recipe, record.modules)
    least, most = min(ranks.values()), max(ranks.values())
    said = f"rank {most} in every module" if least == most else f"rank {least} to {most}, by module"
    zero = any((row.rank or 0) < ranks[row.module] for row in record.modules)
    return f"written with {said}" + (", by columns of zero where the merge has less" if zero else "")


def number(value: float | None) -> str:
    """Return a number to three digits, `-` for none."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:#.3g}".rstrip(".") if 1e-2 <= abs(value) < 1e3 else f"{value:.1e}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _yaml(data: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=math.inf)
    return text


def _escaped(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", printable(text))
