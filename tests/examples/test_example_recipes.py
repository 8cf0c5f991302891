"""The recipes of examples/recipes: one for each family of rows, and each runs as it lies there."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn

import riemerge.methods
from riemerge.cli.commands import main
from riemerge.formats.dialects import read_adapter
from riemerge.recipes.recipe import read_recipes
from riemerge.statistics import collect_statistics
from tests.helpers import ROOT

RECIPES = ROOT / "examples" / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
ADAPTERS = ROOT / "examples" / "adapters"
# A module of attention and another, in the first layer and the last: the merge of all 36 takes a minute.
MODULES = ("encoder.layer.0.attention.self.query", "encoder.layer.5.intermediate.dense")


def two_layers() -> nn.Module:
    """A model that has the modules, and no more."""
    model = nn.Module()
    for name, width in zip(MODULES, (384, 1536), strict=True):
        *path, last = name.split(".")
        place = model
        for part in path:
            place.add_module(part, getattr(place, part, nn.Module()))
            place = place.get_submodule(part)
        place.add_module(last, nn.Linear(384, width))
    return model


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    for name in MODULES:
        batch = model.get_submodule(name)(batch)
    return batch.sum(dim=1)


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes beside adapters of the same names, of which some modules are left, and their statistics."""
    root = tmp_path_factory.mktemp("examples")
    shutil.copytree(RECIPES, root / "recipes")
    for folder in (path for path in ADAPTERS.iterdir() if path.is_dir()):
        small = root / "adapters" / folder.name
        small.mkdir(parents=True)
        shutil.copy(folder / "adapter_config.json", small)
        tensors = load_file(folder / "adapter_model.safetensors")
        kept = {
            name: tensor for name, tensor in tensors.items() if any(f".{one}." in name for one in MODULES)
        }
        save_file(kept, small / "adapter_model.safetensors")
        collect_statistics(two_layers(), [torch.ones(4, 384)], loss, root / "statistics" / folder.name)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_merges_as_it_is(name: str, around: Path, tmp_path: Path) -> None:
    ran = CliRunner().invoke(
        main, ["merge", str(around / "recipes" / f"{name}.yaml"), "-o", str(tmp_path / "out")]
    )
    assert ran.exit_code == 0, ran.output
    merged = read_adapter(tmp_path / "out")
    assert merged.modules == MODULES
    assert all(merged.update(module).norm() > 0 for module in MODULES)
    assert json.loads((tmp_path / "out" / "riemerge.json").read_text())["recipe"]["merge_method"]


def test_each_family_of_rows_has_a_recipe_of_its_name() -> None:
    folders = [found.name for found in iter_modules(riemerge.methods.__path__) if found.ispkg]
    families = {name: import_module(f"riemerge.methods.{name}") for name in folders}
    for name, family in families.items():
        if rows := getattr(family, "ROWS", ()):
            ((_, recipe),) = read_recipes([str(RECIPES / f"{name}.yaml")])
            assert recipe.merge_method in {row.name for row in rows}
    listed = (ROOT / "examples" / "README.md").read_text()
    assert all(f"recipes/{name}.yaml" in listed for name in NAMES)
