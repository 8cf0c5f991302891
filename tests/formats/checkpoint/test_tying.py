"""Tied models: which they are, and when an adapter parts the head from the embedding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from riemerge.errors import AdapterError
from riemerge.formats.adapter import Adapter
from riemerge.formats.checkpoint import Checkpoint, patch, read_checkpoint
from riemerge.formats.checkpoint.tying import is_tied, part_head
from riemerge.formats.dialects import read_adapter
from tests.folders import write_folder

EMBEDDING = "model.embed_tokens.weight"
LLAMA = ["LlamaForCausalLM"]


def write_base(folder: Path, *others: str, **settings: Any) -> Checkpoint:
    names = ["model.q.weight", EMBEDDING, *others]
    tensors = {name: torch.full((4, 4), k + 1.0) for k, name in enumerate(names)}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    return read_checkpoint(folder)


def write_adapter(folder: Path, *saved: str, **settings: Any) -> Adapter:
    write_folder(folder, {"model.q": (torch.ones(4, 1), torch.ones(1, 4))}, **settings)
    file = folder / "adapter_model.safetensors"
    whole = {f"base_model.model.{name}": torch.full((4, 4), 7.0) for name in saved}
    save_file({**load_file(file), **whole}, file)
    return read_adapter(folder)


@pytest.mark.parametrize(
    ("settings", "others", "tied"),
    [
        ({"architectures": LLAMA, "tie_word_embeddings": True}, [], True),
        ({"architectures": LLAMA}, [], True),  # transformers 4 leaves its default out
        ({"architectures": LLAMA, "tie_word_embeddings": False}, [], False),
        ({"architectures": LLAMA, "tie_word_embeddings": True}, ["lm_head.weight"], False),
        ({"architectures": ["BertModel"], "tie_word_embeddings": True}, [], False),
        ({"architectures": 3}, [], False),
        ({}, [], False),
    ],
)
def test_a_model_is_tied_whose_class_has_a_head_and_whose_files_have_none(
    tmp_path: Path, settings: dict[str, Any], others: list[str], tied: bool
) -> None:
    base = write_base(tmp_path / "base", *others, **settings)
    assert is_tied(base) == tied
    adapter = write_adapter(tmp_path / "law", EMBEDDING)
    assert part_head(base, adapter) == ({"lm_head.weight": EMBEDDING} if tied else {})


def test_a_head_that_is_parted_has_the_embedding_of_before(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", architectures=LLAMA)
    view = patch(base, write_adapter(tmp_path / "law", EMBEDDING))
    head, embedding = (view.tensor(name) for name in ("lm_head.weight", EMBEDDING))
    assert torch.equal(head, base.tensor(EMBEDDING))
    assert torch.equal(head[1:3], view.tensor("lm_head.weight", rows=[range(1, 3)]))
    assert torch.equal(embedding, torch.full((4, 4), 7.0, dtype=torch.float64))
    assert view.source("lm_head.weight") == base.source(EMBEDDING)
    assert view.parts_head


@pytest.mark.parametrize(
    ("saved", "settings", "parts"),
    [
        ([], {}, False),
        ([EMBEDDING], {"ensure_weight_tying": True}, False),
        (["lm_head.weight"], {}, True),
        ([EMBEDDING, "lm_head.weight"], {}, True),
    ],
)
def test_a_head_that_is_saved_or_stays_tied_is_none_of_the_base(
    tmp_path: Path, saved: list[str], settings: dict[str, Any], parts: bool
) -> None:
    base = write_base(tmp_path / "base", architectures=LLAMA)
    view = patch(base, write_adapter(tmp_path / "law", *saved, **settings))
    assert view.untied == {}
    assert view.parts_head == parts
    assert {*view.names} == {*base.names, *saved}


@pytest.mark.parametrize(
    ("kind", "others"),
    [("T5ForConditionalGeneration", []), ("BertLMHeadModel", ["cls.predictions.transform.dense.weight"])],
)
def test_a_head_of_unknown_name_is_refused(tmp_path: Path, kind: str, others: list[str]) -> None:
    base = write_base(tmp_path / "base", *others, architectures=[kind])
    with pytest.raises(AdapterError, match=r"is tied to model\.embed_tokens\.weight, which .* saved whole"):
        patch(base, write_adapter(tmp_path / "law", EMBEDDING))
