"""What lies beside a merged checkpoint: whose tokenizer, which settings, which template, and what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from riemerge.errors import AdapterError, RecipeError
from riemerge.merging.sinks import Written
from riemerge.merging.verbs import merge_into
from riemerge.recipes.recipe import make_recipe
from tests.oracles.small_models import MODELS, tensors, tokenizer, write_model, write_models


def run(root: Path, out: Path, names: str = "AB", **asked: Any) -> Written:
    models = [{"model": str(root / name)} for name in names]
    return merge_into(make_recipe({"merge_method": "average", "models": models, **asked}), out, threads=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_models(tmp_path)
    (tmp_path / "A" / "vocab.json").write_text("{}")
    (tmp_path / "B" / "generation_config.json").write_text('{"eos_token_id": 5}')
    for name, special in (("A", 7), ("B", 5)):
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": special}))
    return tmp_path


def test_a_model_lends_its_tokenizer_and_its_special_tokens(root: Path, tmp_path: Path) -> None:
    written = run(root, tmp_path / "out", tokenizer=str(root / "B"))
    out = tmp_path / "out"
    assert (out / "tokenizer.json").read_bytes() == (root / "B" / "tokenizer.json").read_bytes()
    assert (out / "generation_config.json").exists()
    assert not (out / "vocab.json").exists()
    settings = json.loads((out / "config.json").read_text())
    assert (settings["vocab_size"], settings["eos_token_id"]) == (8, 5)
    assert len(load_file(out / "model.safetensors")["lm_head.weight"]) == 8
    assert {"config.json", "tokenizer.json"} <= written.record.outputs.keys()
    assert written.record.beside["tokenizers"].keys() == {"A", "B"}
    assert any("the rows of 8 tokens" in warning for warning in written.record.warnings)


def test_a_folder_of_a_tokenizer_alone_is_taken(root: Path, tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.mkdir()
    (words / "tokenizer.json").write_text(json.dumps(tokenizer(("<unk>", "b", "a"), ("<unk>",))))
    run(root, tmp_path / "out", tokenizer=str(words))
    merged, (a, b) = (
        load_file(tmp_path / "out" / "model.safetensors"),
        (load_file(root / name / "model.safetensors")["lm_head.weight"] for name in "AB"),
    )
    expected = torch.stack(
        [(a[MODELS["A"][0].index(t)] + b[MODELS["B"][0].index(t)]) / 2 for t in ("<unk>", "b", "a")]
    )
    torch.testing.assert_close(merged["lm_head.weight"], expected, rtol=1e-6, atol=1e-7)


def test_the_files_of_a_union_that_is_the_first_are_those_of_the_first(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "out", "A", tokenizer="union")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (root / "A" / "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "config.json").read_bytes() == (root / "A" / "config.json").read_bytes()
    assert (tmp_path / "out" / "vocab.json").exists()


def test_a_union_has_no_files_of_one_model_s_own_words(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "out", tokenizer="union", chat_template="chatml")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    assert "vocab.json" not in names
    said = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert said["chat_template"] == (tmp_path / "out" / "chat_template.jinja").read_text()
    assert said["bos_token"] == "<s>"


def test_a_model_without_a_tokenizer_has_that_of_the_first_and_it_is_said(root: Path, tmp_path: Path) -> None:
    write_model(root / "C", tensors(10, 9))
    written = run(root, tmp_path / "out", "AC", tokenizer="union")
    assert "C: has no tokenizer.json: taken to have that of A" in written.record.warnings
    with pytest.raises(AdapterError, match=r"C: has no tokenizer.json: expected the tokenizer"):
        run(root, tmp_path / "other", "CA", tokenizer="union")


def test_without_any_tokenizer_rows_are_merged_by_their_places(tmp_path: Path) -> None:
    for seed, name in enumerate("AB"):
        write_model(tmp_path / name, tensors(5, seed))
    written = run(tmp_path, tmp_path / "out", tokenizer="union", chat_template="auto")
    assert written.record.warnings[:2] == (
        "tokenizer: no model has one: the rows of embeddings are merged by their places",
        "chat_template: auto: no model has one, and none is written",
    )


def test_what_is_no_tokenizer_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"tokenizer: .*nowhere: expected base, union, a folder"):
        run(root, tmp_path / "out", tokenizer=str(root / "nowhere"))
    (root / "empty").mkdir()
    with pytest.raises(AdapterError, match=r"empty: has no tokenizer.json"):
        run(root, tmp_path / "out", tokenizer=str(root / "empty"))
