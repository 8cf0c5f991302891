"""What lies beside a merged checkpoint: whose tokenizer, which settings, which template, and what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from riemerge.errors import AdapterError, RecipeError
from riemerge.formats.tokenizer import read_vocabulary
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


def stack(
    root: Path, out: Path, names: str, **asked: Any
) -> tuple[Written, dict[str, Tensor], dict[str, Any]]:
    """Stack the only layers of two models."""
    slices = [{"sources": [{"model": str(root / name), "layer_range": [0, 1]}]} for name in names]
    written = merge_into(
        make_recipe({"merge_method": "passthrough", "slices": slices, **asked}), out, threads=1
    )
    return written, load_file(out / "model.safetensors"), json.loads((out / "config.json").read_text())


def test_a_stack_in_a_union_has_the_rows_of_its_tokens(root: Path, tmp_path: Path) -> None:
    _, found, settings = stack(root, tmp_path / "out", "AB", tokenizer="union")
    ids = read_vocabulary(tmp_path / "out")
    assert ids is not None
    assert settings["vocab_size"] == len(ids.ids) == 12
    assert settings["num_hidden_layers"] == 2
    for name, order in (("model.embed_tokens.weight", "AB"), ("lm_head.weight", "BA")):
        rows = {model: load_file(root / model / "model.safetensors")[name] for model in order}
        assert len(found[name]) == 12
        for token, row in ids.ids.items():
            owner = next(model for model in order if token in MODELS[model][0])
            assert torch.equal(found[name][row], rows[owner][MODELS[owner][0].index(token)])
    with pytest.raises(AdapterError, match=r"of the first slice is \(10, 8\), .*tokenizer: union"):
        stack(root, tmp_path / "other", "AB")


@pytest.mark.parametrize("tied", ["P", "Q"])
def test_a_stack_of_a_tied_and_an_untied_model_has_the_head_of_the_last(tmp_path: Path, tied: str) -> None:
    given = {name: tensors(7, seed) for seed, name in enumerate("PQ")}
    for name, content in given.items():
        kept = {key: x for key, x in content.items() if name != tied or key != "lm_head.weight"}
        write_model(tmp_path / name, kept)
        path = tmp_path / name / "config.json"
        said = {**json.loads(path.read_text()), "tie_word_embeddings": name == tied}
        path.write_text(json.dumps(said))
    written, found, settings = stack(tmp_path, tmp_path / "out", "PQ")
    head = {"P": "lm_head.weight", "Q": "model.embed_tokens.weight"}[tied]
    assert torch.equal(found["lm_head.weight"], given["Q"][head])
    assert torch.equal(found["model.embed_tokens.weight"], given["P"]["model.embed_tokens.weight"])
    assert settings["tie_word_embeddings"] is False
    assert (tied == "P") == any("tie_word_embeddings is false now" in one for one in written.record.warnings)


@pytest.mark.parametrize(
    ("key", "before", "after"), [("dtype", "float32", "bfloat16"), ("torch_dtype", "float16", None)]
)
def test_settings_name_the_dtype_that_is_written(
    tmp_path: Path, key: str, before: str, after: str | None
) -> None:
    said: dict[str, object] = {}
    for seed, (name, dtype) in enumerate((("P", torch.float32), ("Q", torch.bfloat16))):
        write_model(tmp_path / name, {key: x.to(dtype) for key, x in tensors(7, seed).items()})
        path = tmp_path / name / "config.json"
        said = json.loads(path.read_text())
        del said["torch_dtype"]
        path.write_text(json.dumps({**said, key: before}))
    for place, names in enumerate(("PQ", "QP")):
        out = tmp_path / f"out{place}"
        run(tmp_path, out, names, out_dtype=after)
        assert json.loads((out / "config.json").read_text()) == {**said, key: after or "float32"}
    _, _, settings = stack(tmp_path, tmp_path / "stack", "QP", out_dtype=after)
    assert settings[key] == (after or before)  # of two dtypes none is named anew
    run(tmp_path, tmp_path / "same", "PQ", out_dtype=before)
    assert (tmp_path / "same" / "config.json").read_bytes() == (tmp_path / "P" / "config.json").read_bytes()


def test_tokenizers_that_differ_are_said(tmp_path: Path) -> None:
    words = {"P": "abc", "Q": "abd", "S": "abc"}
    for seed, (name, tokens) in enumerate(words.items()):
        write_model(tmp_path / name, tensors(4, seed), words=tokenizer(("<unk>", *tokens), ("<unk>",)))
    write_model(tmp_path / "T", tensors(4, 9))
    (text,) = (one for one in run(tmp_path, tmp_path / "out", "PQST").record.warnings if "tokenizer" in one)
    assert text.startswith("Q: its tokenizer is not that of P: 2 tokens have other ids or are in one")
    assert "tokenizer: union" in text


def test_tokens_without_a_row_are_said(root: Path, tmp_path: Path) -> None:
    words = tokenizer((*MODELS["A"][0], "<far>"), ("<unk>", "<far>"))
    write_model(root / "C", tensors(10, 9), words=words)
    written = run(root, tmp_path / "out", "AC", tokenizer="union")
    assert any(
        one.startswith("C: tokens without a row, since its embeddings have 10 rows: 1 (<far>)")
        for one in written.record.warnings
    )
