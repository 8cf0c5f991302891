"""A verification passes what was written, on any inputs of the right content, and names what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from riemerge.errors import AdapterError, NumericalError, OutputError, RiemergeError
from riemerge.merging.verbs import merge_into
from riemerge.recipes.recipe import make_recipe, read_recipe
from riemerge.study.verification import verify
from tests.cli.runner import run
from tests.folders import family, write_family
from tests.merging.merges import World, make_world

RECORD, TENSORS = "riemerge.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return write_family(tmp_path / "inputs", family("mix", 3))


def merged(folders: list[Path], out: Path, *sources: str, **asked: Any) -> Path:
    given = sources or tuple(map(str, folders))
    merge_into(read_recipe(given, {"merge_method": "average", **asked}), out)
    return out


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"merge_method": "geomerge", "rank": 2},
        {"merge_method": "spectrum"},  # scale: matched, which depends on all modules
        {"merge_method": "dare_ties", "density": 0.5, "seed": 3},
        {"out_type": "delta", "out_dtype": "float32"},
        {"rank": "90%", "uniform_rank": False},
    ],
)
def test_what_was_written_is_merged_again_to_itself(
    folders: list[Path], tmp_path: Path, asked: dict[str, Any]
) -> None:
    out = merged(folders, tmp_path / "out", **asked)
    found = verify(out, [tmp_path / "inputs"], sample=2)
    assert len(found.errors) == 2
    assert max(found.errors.values()) <= 1e-14
    assert verify(out, [tmp_path / "inputs"], sample=None).errors.keys() > found.errors.keys()
    other = verify(out, [tmp_path / "inputs"], sample=2, seed=1)
    assert other.errors.keys() != found.errors.keys()


def test_rows_that_look_at_all_modules_first_are_merged_whole(folders: list[Path], tmp_path: Path) -> None:
    from riemerge.methods import METHODS

    row = next(name for name, row in METHODS.items() if row.survey and not row.statistics)
    out = merged(folders, tmp_path / "out", merge_method=row)
    assert len(verify(out, folders, sample=1).errors) == 3


@pytest.mark.parametrize("method", ["average", "ties", "slerp"])
def test_checkpoints_and_their_base_are_verified(world: World, tmp_path: Path, method: str) -> None:
    base = {} if method == "slerp" else {"base_model": str(world.base)}
    entries = [{"model": str(path)} for path in world.models[:2]]
    parameters = {"t": 0.3} if method == "slerp" else {}
    raw = {"merge_method": method, "models": entries, "parameters": parameters, **base}
    merge_into(make_recipe(raw), tmp_path / "out")
    found = verify(tmp_path / "out", [world.base.parent], sample=3)
    assert len(found.errors) >= 3
    assert max(found.errors.values()) == 0.0


def test_inputs_are_known_by_their_content_and_looked_for_beside_the_folder(
    folders: list[Path], tmp_path: Path
) -> None:
    out = merged(folders, tmp_path / "inputs" / "out")
    assert verify(out).errors
    shutil.move(out, tmp_path / "out")
    assert verify(tmp_path / "out").lacking == ("a", "b", "c")
    for path in folders:
        path.rename(path.with_name(f"renamed-{path.name}"))
    renamed = [path.with_name(f"renamed-{path.name}") for path in folders]
    assert verify(tmp_path / "out", renamed).errors
    with pytest.raises(AdapterError, match="a: was not found"):
        verify(tmp_path / "out", sample=None)
    with pytest.raises(AdapterError, match="c: was not found"):
        verify(tmp_path / "out", renamed[:2])


def test_heads_are_verified_too(folders: list[Path], tmp_path: Path) -> None:
    for i, folder in enumerate(folders):
        tensors = load_file(folder / TENSORS)
        tensors["base_model.model.classifier.weight"] = torch.full((3, 4), i + 1.0)
        save_file(tensors, folder / TENSORS)
    out = merged(folders, tmp_path / "out", heads="from=b")
    assert verify(out, folders, sample=1).errors["classifier.weight"] == 0.0
    edit_record(out, lambda record: record["recipe"].update(heads="from=c"))
    with pytest.raises(NumericalError, match=r"classifier\.weight: merged again it differs"):
        verify(out, folders, sample=1)


def test_an_input_of_weight_zero_is_not_needed(folders: list[Path], tmp_path: Path) -> None:
    out = merged(folders, tmp_path / "out", str(folders[0]), f"{folders[1]}:0", str(folders[2]))
    shutil.rmtree(folders[1])
    assert verify(out, folders[::2]).errors


# --- faults -------------------------------------------------------------------------------------------------


def change_tensor(out: Path, inputs: list[Path]) -> None:
    data = bytearray((out / TENSORS).read_bytes())
    data[-1] ^= 1
    (out / TENSORS).write_bytes(data)


def remove_config(out: Path, inputs: list[Path]) -> None:
    (out / "adapter_config.json").unlink()


def add_tensors(out: Path, inputs: list[Path]) -> None:
    shutil.copy(out / TENSORS, out / "more.safetensors")


def remove_record(out: Path, inputs: list[Path]) -> None:
    (out / RECORD).unlink()


def rename_module(out: Path, inputs: list[Path]) -> None:
    edit_record(out, lambda record: record["modules"][0].update(shape=[1, 1]))


def change_input(out: Path, inputs: list[Path]) -> None:
    tensors = load_file(inputs[1] / TENSORS)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, inputs[1] / TENSORS)


def change_weight(out: Path, inputs: list[Path]) -> None:
    edit_record(out, lambda record: record["recipe"]["models"][0]["parameters"].update(weight=1.01))


def edit_record(out: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((out / RECORD).read_text())
    edit(record)
    (out / RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "kind", "says"),
    [
        (change_tensor, OutputError, f"{TENSORS} is not the file that was written"),
        (remove_config, OutputError, "adapter_config.json is missing"),
        (add_tensors, OutputError, "more.safetensors was added"),
        (remove_record, OutputError, "is no run record"),
        (rename_module, OutputError, r"layers.0.q: has the shape \(14, 12\): the record says \(1, 1\)"),
        (change_input, AdapterError, "is not the input b that was merged"),
        (change_weight, NumericalError, "layers.0.q: merged again it differs by"),
    ],
)
def test_each_fault_is_named_and_has_its_exit_code(
    folders: list[Path],
    tmp_path: Path,
    spoil: Callable[[Path, list[Path]], None],
    kind: type[RiemergeError],
    says: str,
) -> None:
    out = merged(folders, tmp_path / "out")
    spoil(out, folders)
    with pytest.raises(kind, match=says):
        verify(out, [tmp_path / "inputs"])
    ran = run("verify", out, "--inputs", tmp_path / "inputs", "-q")
    assert ran.exit_code == kind.exit_code


def test_a_change_below_the_rounding_of_a_checkpoint_is_seen(world: World, tmp_path: Path) -> None:
    """In bfloat16 a small update is lost in many entries, but not in all of them."""
    models = [str(path) for path in world.models[:2]]
    asked = {
        "merge_method": "average",
        "base_model": str(world.base),
        "out_dtype": "bfloat16",
        "scale": 0.001,
    }
    merge_into(read_recipe(models, asked), tmp_path / "out")
    assert max(verify(tmp_path / "out", [world.base.parent], sample=None).errors.values()) == 0.0
    edit_record(tmp_path / "out", lambda record: record["recipe"]["parameters"].update(scale=0.002))
    with pytest.raises(NumericalError, match="merged again it differs"):
        verify(tmp_path / "out", [world.base.parent], sample=None)
