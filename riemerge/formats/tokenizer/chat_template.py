"""Chat templates: Jinja texts by which transformers turns messages into what a model was trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from riemerge.errors import AdapterError, RecipeError
from riemerge.formats.files.tensor_file import reading
from riemerge.formats.files.text import show, strict_json

TEMPLATE_FILE = "chat_template.jinja"
_CONFIG_FILE = "tokenizer_config.json"

_GENERATE = "{% if add_generation_prompt %}{{ 'START' }}{% endif %}"
_ALPACA = (
    "{% if messages and messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim + '\\n\\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] in titles %}{{ titles[message['role']] + message['content'] | trim }}"
    "{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{ '\\n\\n### Response:\\n' }}"
    "{% endif %}"
)
_TITLES = (
    "{% set titles = {'user': '### Instruction:\\n', 'assistant': '### Response:\\n', "
    "'user_context': '### Input:\\n'} %}"
)
_MISTRAL = (
    "{% set said = messages %}{% set system = '' %}"
    "{% if messages and messages[0]['role'] == 'system' %}"
    "{% set said = messages[1:] %}{% set system = messages[0]['content'] + '\\n\\n' %}{% endif %}"
    "{{ bos_token }}"
    "{% for message in said %}"
    "{% if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}"
    "{{ raise_exception('after a system message, user and assistant must take turns') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ ' [INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)

TEMPLATES: Mapping[str, str] = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}" + _GENERATE.replace("START", "<|im_start|>assistant\\n")
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
        "{{ message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}" + _GENERATE.replace("START", "<|start_header_id|>assistant<|end_header_id|>\\n\\n")
    ),
    "mistral": _MISTRAL,
    "alpaca": _TITLES + _ALPACA,
    "exaone": (
        "{% if messages and messages[0]['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
        "{% for message in messages %}{{ '[|' + message['role'] + '|]' + message['content'] }}"
        "{% if message['role'] == 'user' %}{{ '\\n' }}{% else %}{{ '[|endofturn|]\\n' }}{% endif %}"
        "{% endfor %}" + _GENERATE.replace("START", "[|assistant|]")
    ),
}
"""Chat templates by the names that mergekit has for them, written anew from the published formats."""


def find_template(asked: str, folders: Iterable[Path]) -> str | None:
    """Return the chat template that a recipe asks for.

    Args:
        asked: A name of `TEMPLATES`; `auto` for the one that most of the models have, the first where several
            are as frequent; or the text of a Jinja template.
        folders: The folders of the models.

    Returns:
        The text; None where it is `auto` and no model has one.

    Raises:
        RecipeError: Neither a name nor a template.
        AdapterError: The template of a model cannot be read.
    """
    if asked == "auto":
        texts = Counter(filter(None, map(read_template, folders)))
        return max(texts, key=texts.__getitem__, default=None)
    if asked in TEMPLATES:
        return TEMPLATES[asked]
    if "{" not in asked:
        raise RecipeError(
            f"chat_template: {show(asked)!r} is no template: expected a Jinja text, auto, or one of "
            f"{', '.join(TEMPLATES)}"
        )
    return asked


def read_template(folder: Path) -> str | None:
    """Return the chat template of a model, without white space around it; None where it has none.

    Raises:
        AdapterError: The template cannot be read.
    """
    with reading(folder):
        if (folder / TEMPLATE_FILE).is_file():
            return (folder / TEMPLATE_FILE).read_text(encoding="utf-8").strip()
        if not (folder / _CONFIG_FILE).is_file():
            return None
        config = _read_config(folder / _CONFIG_FILE)
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        named = [entry for entry in template if isinstance(entry, dict)]
        template = {entry.get("name"): entry.get("template") for entry in named}.get("default")
    return template.strip() if isinstance(template, str) else None


def write_template(text: str, config: Path | None) -> dict[str, str]:
    """Return the files that give a tokenizer a chat template, by name.

    Law: transformers reads `chat_template.jinja`, and where it is older `chat_template` of
    `tokenizer_config.json`: both are the text.

    Args:
        text: The template.
        config: The `tokenizer_config.json` of the tokenizer; None where it has none.

    Raises:
        AdapterError: The configuration cannot be read.
    """
    files = {TEMPLATE_FILE: text}
    if config is not None:
        settings = {**_read_config(config), "chat_template": text}
        files[_CONFIG_FILE] = json.dumps(settings, ensure_ascii=False, indent=2) + "\n"
    return files


def _read_config(path: Path) -> dict[str, Any]:
    """Return what a tokenizer's configuration says."""
    with reading(path):
        content = path.read_bytes()
    try:
        settings = strict_json(content)
        if not isinstance(settings, dict):
            raise ValueError("is no JSON object")
    except ValueError as error:
        raise AdapterError(f"{path}: {error}") from error
    return settings
