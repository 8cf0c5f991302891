"""Code that a merge carries on is named, and code that differs between inputs is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from riemerge.errors import AdapterError
from riemerge.formats.checkpoint import code_notes, read_checkpoint
from riemerge.formats.fit import check_checkpoints
from riemerge.merging.verbs import merge_into
from riemerge.recipes.recipe import make_recipe
from riemerge.records.run_record import RunRecord


def model(folder: Path, seed: int = 0, *, code: dict[str, str] | None = None, **settings: Any) -> Path:
    """A checkpoint of one matrix, with files of code and with auto_map by the name of the settings."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(seed)
    save_file({"layers.0.weight": torch.randn(4, 3, generator=draw)}, folder / "model.safetensors")
    for name, text in (code or {}).items():
        (folder / name).write_text(text)
    for name, auto_map in settings.items():
        (folder / f"{name}.json").write_text(json.dumps({"auto_map": auto_map}))
    return folder


CODE = {"modeling_x.py": "class X: ...\n"}
AUTO = {"AutoModel": "modeling_x.X"}
FAR = {"AutoModel": "acme/x--modeling_x.X"}


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ({"code": CODE}, {"code": {"modeling_x.py": "class X: pass\n"}}, "modeling_x.py: is other code in"),
        (
            {"config": FAR},
            {"config": {"AutoModel": "evil/x--modeling_x.X"}},
            "config.json: auto_map.AutoModel: is",
        ),
        ({"config": AUTO}, {"config": {"AutoModel": "modeling_y.X"}}, "config.json: auto_map.AutoModel: is"),
        (
            {"tokenizer_config": {"AutoTokenizer": ["t.Slow", None]}},
            {"tokenizer_config": {"AutoTokenizer": ["t.Slower", "t.Fast"]}},
            "tokenizer_config.json: auto_map.AutoTokenizer[0]: is",
        ),
    ],
)
def test_other_code_is_refused_and_nothing_is_written(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], says: str
) -> None:
    paths = [model(tmp_path / "a", 0, **first), model(tmp_path / "b", 1, **second)]
    recipe = make_recipe({"merge_method": "average", "models": [{"model": str(path)} for path in paths]})
    with pytest.raises(AdapterError, match=re.escape(says)) as caught:
        merge_into(recipe, tmp_path / "out")
    (problem,) = caught.value.problems
    assert all(str(path) in problem for path in paths)
    assert not (tmp_path / "out").exists()
    base = make_recipe(
        {"merge_method": "tsv", "models": [{"model": str(paths[1])}], "base_model": str(paths[0])}
    )
    with pytest.raises(AdapterError, match=re.escape(says)):
        merge_into(base, tmp_path / "out")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"code": CODE, "config": AUTO}, {"code": CODE, "config": AUTO}),
        ({"code": CODE, "config": AUTO}, {"config": FAR}),  # as a fine-tuned model is saved
        ({"code": CODE}, {"code": {"other.py": ""}}),
        ({"config": FAR}, {}),
        ({"config": ["t.Slow", "t.Fast"]}, {"config": None}),
    ],
)
def test_the_same_code_and_code_of_one_alone_pass(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any]
) -> None:
    paths = [model(tmp_path / "a", 0, **first), model(tmp_path / "b", 1, **second)]
    check_checkpoints([read_checkpoint(path) for path in paths])


def test_settings_that_nobody_can_read_are_no_code(tmp_path: Path) -> None:
    path = model(tmp_path / "a")
    (path / "config.json").write_text("{")
    (path / "tokenizer_config.json").write_text("[]")
    assert code_notes(read_checkpoint(path)) == []


def test_the_record_names_the_code_that_goes_with_the_result(tmp_path: Path) -> None:
    first = model(tmp_path / "a", 0, code={**CODE, "tokenizer.py": ""}, config=FAR)
    second = model(tmp_path / "b", 1)
    for place, (paths, warned) in enumerate((([first, second], True), ([second, first], False))):
        out = tmp_path / str(place)
        recipe = make_recipe({"merge_method": "average", "models": [{"model": str(path)} for path in paths]})
        merge_into(recipe, out)
        warnings = RunRecord.model_validate_json((out / "riemerge.json").read_text()).warnings
        code = "modeling_x.py, tokenizer.py, repository acme/x (auto_map)"
        assert [text for text in warnings if code in text] == list(warnings)
        assert len(warnings) == warned
        assert {path.name for path in out.glob("*.py")} == ({*CODE, "tokenizer.py"} if warned else set())


def test_a_file_of_tensors_alone_carries_no_code(tmp_path: Path) -> None:
    first = model(tmp_path / "a", 0, code=CODE)
    second = model(tmp_path / "b", 1, code={"modeling_x.py": ""})
    recipe = make_recipe(
        {
            "merge_method": "average",
            "models": [{"model": str(path / "model.safetensors")} for path in (first, second)],
        }
    )
    assert merge_into(recipe, tmp_path / "out").record.warnings == ()
    assert not list((tmp_path / "out").glob("*.py"))
