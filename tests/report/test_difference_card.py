"""The card of an applied or extracted adapter: what a hub reads, and code that a reader may copy."""

from __future__ import annotations

import pytest
import yaml

from riemerge.records.difference_record import DifferenceInput, DifferenceModule, DifferenceRecord
from riemerge.report.difference_card import difference_card


def record(**changes: object) -> DifferenceRecord:
    row = DifferenceModule(module="layers.0.q", shape=(6, 4), rank=2, norm=1.5, error=0.25, energy_kept=0.5)
    base = DifferenceRecord(
        verb="extract",
        base=DifferenceInput(name="org/base", sha256={"model.safetensors": "ab" * 32}),
        other=DifferenceInput(name="tuned*", sha256={"config.json": "00", "model.safetensors": "cd" * 32}),
        settings={"rank": ["2"], "rename": ["a b=c", "d=e"], "out-dtype": []},
        model_class="transformers.LlamaForCausalLM",
        versions={"riemerge": "1"},
        modules=(row,),
        warnings=("a | b",),
    )
    return base.model_copy(update=changes)


@pytest.mark.parametrize(
    ("verb", "relation", "library"), [("extract", "adapter", "peft"), ("apply", "finetune", None)]
)
def test_a_hub_reads_what_the_model_is(verb: str, relation: str, library: str | None) -> None:
    front = yaml.safe_load(difference_card(record(verb=verb)).split("---")[1])
    assert front["base_model"] == "org/base"
    assert front["base_model_relation"] == relation
    assert front.get("library_name") == library


def test_inputs_warnings_and_modules_are_told_and_escaped() -> None:
    text = difference_card(record())
    assert "# tuned\\* as a LoRA adapter of org/base" in text
    assert "| tuned\\* | `cdcdcdcdcdcd` |" in text
    assert "- a \\| b" in text
    assert "| layers.0.q | 6 × 4 | 2 | 1.50 | 50.00% | 0.250 |" in text


def test_the_command_can_be_copied_to_a_shell() -> None:
    text = difference_card(record())
    assert "riemerge extract org/base 'tuned*' -o OUT --rank 2 --rename 'a b=c' --rename d=e\n" in text


@pytest.mark.parametrize("verb", ["extract", "apply"])
@pytest.mark.parametrize("name", ["transformers.LlamaForCausalLM", ""])
def test_the_code_that_loads_it_is_python(verb: str, name: str) -> None:
    text = difference_card(record(verb=verb, model_class=name))
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert (name or "transformers.AutoModel").rpartition(".")[2] + ".from_pretrained(" in code
