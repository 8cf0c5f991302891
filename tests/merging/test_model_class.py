"""The class of model that a merge is for, and the public name of its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from riemerge.merging.model_class import base_model, model_class
from riemerge.merging.plan import plan
from tests.folders import family, write_folder
from tests.merging.merges import World, recipe_of

BERT = {"base_model_class": "BertModel", "parent_library": "transformers.models.bert.modeling_bert"}
ANY = "transformers.AutoModel"


def class_of(models: list[Path]) -> str:
    return model_class(plan(recipe_of("average", models)).inputs)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (({}, {}), ANY),
        (({"task_type": "CAUSAL_LM"}, {}), "transformers.AutoModelForCausalLM"),
        (({"task_type": "CAUSAL_LM"}, {"task_type": "SEQ_CLS"}), ANY),
        (({"auto_mapping": BERT}, {"auto_mapping": BERT}), "transformers.BertModel"),
        (({"auto_mapping": BERT}, {}), "transformers.BertModel"),
        (({}, {"auto_mapping": BERT}), "transformers.BertModel"),
        (({"auto_mapping": BERT}, {"auto_mapping": BERT | {"base_model_class": "BertLMHeadModel"}}), ANY),
        (
            ({"task_type": "SEQ_CLS", "auto_mapping": BERT}, {}),
            "transformers.AutoModelForSequenceClassification",
        ),
        (({"auto_mapping": BERT | {"base_model_class": "A; import os"}},) * 2, ANY),
    ],
)
def test_adapters_say_it_together(
    tmp_path: Path, settings: tuple[dict[str, Any], ...], expected: str
) -> None:
    folders = [
        write_folder(tmp_path / name, one, **said)
        for name, one, said in zip("ab", family("close", 2), settings, strict=True)
    ]
    assert class_of(folders) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"architectures": ["BertForMaskedLM"]}', "transformers.BertForMaskedLM"),
        ('{"architectures": ["BertForMaskedLM"], "auto_map": {"AutoModel": "own.Own"}}', ANY),
        ('{"architectures": []}', ANY),
        ('{"architectures": ["x`; y"]}', ANY),
        ("not JSON", ANY),
        (None, ""),
    ],
)
def test_a_checkpoint_says_it_in_its_settings(
    world: World, tmp_path: Path, text: str | None, expected: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(world.models[0] / "model.safetensors")
    if text is not None:
        (folder / "config.json").write_text(text)
    assert class_of([folder]) == expected


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ([None, ""], None),
        (["org/base", None], "org/base"),
        (["/home/me/base"], "base"),
        (["~/models/base"], "base"),
        (["./base"], "base"),
        (["C:\\models\\base"], "base"),
    ],
)
def test_a_base_is_told_by_its_public_name(named: list[str | None], expected: str | None) -> None:
    assert base_model(named) == expected
