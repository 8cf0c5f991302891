"""Recipes in mergekit's words, as people write them: all run as they are, and give what mergekit gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from riemerge.cli.commands import main
from riemerge.formats.dialects import read_adapter
from riemerge.recipes.yaml12 import read_yaml
from tests.cases.recipes import make_models
from tests.cases.recipes.make_models import base_tensors, numbers

HERE = Path(make_models.__file__).parent
RECIPES = sorted(path.stem for path in HERE.glob("*.yaml"))
EXPECTED = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
# Where entries are dropped at random no two programs draw alike: both are compared with nothing dropped.
DRAWN = {"01_ties_base_listed", "04_della", "09_della_linear_tok", "14_dare_rescale", "17_lora_adapters_470"}
# An adapter is written with the rank of its inputs; mergekit writes whole models.
ADAPTERS = {"17_lora_adapters_470"}
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all models, with the recipes in `recipes`."""
    root = tmp_path_factory.mktemp("recipes")
    make_models.make_models(root)
    (root / "recipes").mkdir()
    for name in RECIPES:
        shutil.copy(HERE / f"{name}.yaml", root / "recipes")
    return root


@pytest.fixture
def merge(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a recipe by the command line, with a cache of the hub that has the models of one recipe."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, model in (("base-7b", "A"), ("chat-7b", "B")):
        commit = "0123456789abcdef0123456789abcdef01234567"
        entry = tmp_path / "hub" / f"models--example--{name}"
        (entry / "refs").mkdir(parents=True)
        (entry / "refs" / "main").write_text(commit)
        shutil.copytree(made / model, entry / "snapshots" / commit)

    def run(name: str, *options: str) -> Result:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        return CliRunner().invoke(main, ["merge", f"recipes/{name}.yaml", "-o", str(out), *options])

    return run


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_as_it_is(name: str, merge: Any, tmp_path: Path) -> None:
    ran = merge(name)
    assert ran.exit_code == 0, ran.output
    record = json.loads((tmp_path / "out" / "riemerge.json").read_text())
    for text in record["translations"]:
        assert ran.stderr.splitlines().count(text) == 1
    (recipe,) = read_yaml(HERE / f"{name}.yaml")
    words = {"name", "tokenizer_source", "lambda", "max_iter", "int8_mask", "rescale", "linear", "slices"}
    said = (HERE / f"{name}.yaml").read_text()
    told = " ".join(record["translations"])
    assert {word for word in words if f"{word}:" in said or f": {word}" in said} == {
        word for word in words if word in told
    }
    dtype = getattr(torch, recipe.get("dtype", "float32"))
    for path in (tmp_path / "out").glob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {dtype}


@pytest.mark.parametrize("name", RECIPES)
def test_its_numbers_are_those_of_mergekit(name: str, merge: Any, tmp_path: Path) -> None:
    options = ["--out-dtype", "float32"]
    options += ["-p", "density=1.0"] * (name in DRAWN) + ["--rank", "sum"] * (name in ADAPTERS)
    ran = merge(name, *options)
    assert ran.exit_code == 0, ran.output
    if name in ADAPTERS:
        adapter = read_adapter(tmp_path / "out")
        tensors = {key: torch.zeros_like(tensor) for key, tensor in base_tensors().items()}
        tensors |= {f"{module}.weight": adapter.update(module).dense() for module in adapter.modules}
    else:
        tensors = load_file(tmp_path / "out" / "model.safetensors")
    found, expected = numbers(tensors), EXPECTED[name]
    assert found.keys() == expected.keys()
    for key, (norm, probe) in expected.items():
        assert found[key][0] == pytest.approx(norm, rel=TOLERANCE, abs=1e-12), key
        assert abs(found[key][1] - probe) <= TOLERANCE * max(norm, 1e-6), key
