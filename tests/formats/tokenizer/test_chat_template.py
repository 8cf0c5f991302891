"""Templates say what the published formats say, and are found by name, by majority, or given as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from riemerge.errors import AdapterError, RecipeError
from riemerge.formats.tokenizer import find_template, write_template
from riemerge.formats.tokenizer.chat_template import TEMPLATES, read_template

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes"},
    {"role": "user", "content": "Why"},
]
RENDERED = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\nWhy<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhy<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] Be brief.\n\nHi [/INST] Yes</s> [INST] Why [/INST]",
    "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nYes\n\n### Instruction:\nWhy\n\n"
    "### Response:\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Yes[|endofturn|]\n[|user|]Why\n"
    "[|assistant|]",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_talk_is_rendered_as_published(name: str) -> None:
    jinja2 = pytest.importorskip("jinja2")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATES[name])
    said = template.render(messages=TALK, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
    assert said == RENDERED[name]


def write(folder: Path, template: object, *, file: bool = False) -> Path:
    folder.mkdir()
    if file:
        (folder / "chat_template.jinja").write_text(str(template))
    else:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "x": 1}))
    return folder


def test_the_template_of_most_models_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "{{ c }}"}, {"name": "default", "template": " {{ b }}\n"}]
    folders = [
        write(tmp_path / "1", "{{ a }}"),
        write(tmp_path / "2", named),
        write(tmp_path / "3", "{{ b }}\n", file=True),
        write(tmp_path / "4", None),
    ]
    assert [read_template(folder) for folder in folders] == ["{{ a }}", "{{ b }}", "{{ b }}", None]
    assert find_template("auto", folders) == "{{ b }}"
    assert find_template("auto", folders[:2]) == "{{ a }}"  # of the first, where none is more frequent
    assert find_template("auto", folders[3:]) is None
    assert find_template("auto", [tmp_path / "nowhere"]) is None


def test_a_name_or_a_text_is_a_template_and_nothing_else() -> None:
    assert find_template("chatml", []) == TEMPLATES["chatml"]
    assert find_template("{{ mine }}", []) == "{{ mine }}"
    with pytest.raises(RecipeError, match=r"'chatlm' is no template: expected a Jinja text, auto"):
        find_template("chatlm", [])


def test_a_template_is_written_where_transformers_reads_it(tmp_path: Path) -> None:
    config = write(tmp_path / "1", "{{ a }}") / "tokenizer_config.json"
    files = write_template("{{ b }}", config)
    assert files["chat_template.jinja"] == "{{ b }}"
    assert json.loads(files["tokenizer_config.json"]) == {"chat_template": "{{ b }}", "x": 1}
    assert list(write_template("{{ b }}", None)) == ["chat_template.jinja"]
    config.write_text("[]")
    with pytest.raises(AdapterError, match=r"tokenizer_config.json: is no JSON object"):
        write_template("{{ b }}", config)
