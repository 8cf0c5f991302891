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
from riemerge.merging.sequence import merge_documents
from riemerge.merging.verbs import merge_into
from riemerge.recipes.recipe import make_recipe, read_recipe, read_recipes
from riemerge.study.verification import verify
from tests.cli.runner import run
from tests.folders import family, write_family, write_folder
from tests.merging.merges import World, make_world
from tests.oracles.small_models import tensors, tokenizer, write_model, write_models

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


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models: of three layers P and Q, of two vocabularies A and B, and an adapter of P."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("PQ"):
        write_model(root / name, tensors(7, seed, layers=3), layers=3)
    write_models(root)
    m, n = load_file(root / "P" / "model.safetensors")[f"{PROJECTION}.weight"].shape
    factors = torch.linspace(0, 1, 2 * m).view(m, 2), torch.linspace(-1, 1, 2 * n).view(2, n)
    write_folder(root / "adapter", {PROJECTION: factors})
    (root / "words").mkdir()
    (root / "words" / "tokenizer.json").write_text(json.dumps(tokenizer(("<unk>", "b", "a"), ("<unk>",))))
    return root


PROJECTION = "model.layers.0.self_attn.q_proj"


def source(root: Path, name: str, first: int, stop: int, **parameters: Any) -> dict[str, Any]:
    return {"model": str(root / name), "layer_range": [first, stop], "parameters": parameters}


@pytest.mark.parametrize("count", [1, 2])
def test_slices_are_verified(models: Path, tmp_path: Path, count: int) -> None:
    part = [source(models, "P", 1, 3, weight=0.3), source(models, "Q", 0, 2, weight=0.6)]
    slices = [{"sources": part}, {"sources": [source(models, "Q", 0, 1)]}]
    merge_into(make_recipe({"merge_method": "average", "slices": slices[:count]}), tmp_path / "out")
    assert max(verify(tmp_path / "out", [models], sample=None).errors.values()) == 0.0
    wrong = {"weight": 0.9}
    edit_record(tmp_path / "out", lambda it: it["recipe"]["slices"][0]["sources"][0].update(parameters=wrong))
    with pytest.raises(NumericalError):
        verify(tmp_path / "out", [models], sample=None)


@pytest.mark.parametrize("name", ["union", "A", "B", "words"])
def test_the_tokenizer_is_found_too(models: Path, tmp_path: Path, name: str) -> None:
    asked = name
    if name != "union":
        asked = str(models / name)
    entries = [{"model": str(models / model)} for model in "AB"]
    merge_into(
        make_recipe({"merge_method": "average", "models": entries, "tokenizer": asked}), tmp_path / "out"
    )
    assert max(verify(tmp_path / "out", [models]).errors.values()) == 0.0
    if name == "words":
        assert verify(tmp_path / "out", [models / "A", models / "B", models / "words"]).errors
        with pytest.raises(AdapterError, match="words: was not found"):
            verify(tmp_path / "out", [models / "A", models / "B"])


def test_both_parts_of_a_sum_are_found(models: Path, tmp_path: Path) -> None:
    both = f"{models / 'P'}+{models / 'adapter'}"
    raw = {"merge_method": "average", "models": [{"model": both}, {"model": str(models / "Q")}]}
    merge_into(make_recipe(raw), tmp_path / "out")
    assert max(verify(tmp_path / "out", [models], sample=None).errors.values()) == 0.0
    assert verify(tmp_path / "out", [models / "Q", models / "adapter", models / "P"]).errors
    with pytest.raises(AdapterError, match=r"^adapter: was not found"):
        verify(tmp_path / "out", [models / "Q", models / "P"])
    based = {"merge_method": "ties", "base_model": both, "models": raw["models"][1:]}
    merge_into(make_recipe(based), tmp_path / "based")
    assert max(verify(tmp_path / "based", [models], sample=None).errors.values()) == 0.0


def test_results_of_earlier_documents_are_not_merged_again_which_is_said_once(
    folders: list[Path], tmp_path: Path
) -> None:
    document = "merge_method: average\nmodels: [{{model: {}}}, {{model: {}}}]\n"
    text = f"name: first\n{document.format('a', 'b')}---\n{document.format('first', 'c')}"
    (tmp_path / "inputs" / "two.yaml").write_text(text)
    merge_documents(read_recipes([str(tmp_path / "inputs" / "two.yaml")]), tmp_path / "out")
    ran = run("verify", tmp_path / "out", "--inputs", tmp_path / "inputs", "--all")
    assert ran.exit_code == 0
    assert ran.output.count("first") == 1
    change_tensor(tmp_path / "out", folders)
    with pytest.raises(OutputError, match="is not the file that was written"):
        verify(tmp_path / "out")


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


def remove_rows(out: Path, inputs: list[Path]) -> None:
    edit_record(out, lambda record: (record["modules"].clear(), record["totals"].update(modules=0)))


def remove_some_rows(out: Path, inputs: list[Path]) -> None:
    edit_record(out, lambda record: record["modules"].pop())


def add_row(out: Path, inputs: list[Path]) -> None:
    def add(record: dict[str, Any]) -> None:
        record["modules"].append({**record["modules"][0], "module": "more"})
        record["totals"]["modules"] += 1

    edit_record(out, add)


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
        (remove_rows, OutputError, "layers.1.q: is in the files, and not in the record"),
        (remove_some_rows, OutputError, "2 modules: its totals are of 3"),
        (add_row, OutputError, "more: has the shape None"),
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


def test_rows_are_those_of_the_files_of_heads_deltas_and_checkpoints(
    world: World, folders: list[Path], tmp_path: Path
) -> None:
    for spoil in (remove_rows, add_row):
        out = merged(folders, tmp_path / f"{spoil.__name__} delta", out_type="delta")
        spoil(out, folders)
        with pytest.raises(OutputError, match="is not both in the record and in the inputs"):
            verify(out, folders)
        out = merged([*world.models], tmp_path / f"{spoil.__name__} checkpoint")
        spoil(out, folders)
        with pytest.raises(OutputError, match=r"is in the files, and not in the record|more: has the shape"):
            verify(out)
    for folder in folders:
        stored = load_file(folder / TENSORS)
        save_file({**stored, "base_model.model.classifier.weight": torch.ones(3, 4)}, folder / TENSORS)
    out = merged(folders, tmp_path / "heads", heads="average")
    edit_record(out, lambda record: record["heads"].update(tensors=["other"]))
    with pytest.raises(
        OutputError, match=r"classifier\.weight: is in the files(.|\n)*other: is in the record"
    ):
        verify(out)


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record.update(inputs=[]),
        lambda record: record["recipe"].update(models="x"),
        lambda record: record["recipe"].pop("models"),
        lambda record: record["recipe"].pop("dtype"),
        lambda record: record["recipe"].update(parameters=None),
        lambda record: record["recipe"].update(out_dtype="foo"),
        lambda record: record["recipe"]["parameters"].update(scale={"a": {"b": [["matched"]]}}),
        lambda record: record["recipe"]["parameters"].update(scale=[[1.0]]),
        lambda record: record["recipe"].update(earlier=5),
        lambda record: record["recipe"].update(earlier={"first": 5}),
        lambda record: record["recipe"].update(earlier={"a": {**record["recipe"], "earlier": {"b": {}}}}),
        lambda record: record["recipe"].update(slices=[{"sources": []}]),
        lambda record: record["recipe"].update(merge_method="of another world"),
    ],
)
def test_a_record_that_makes_no_sense_is_none(
    folders: list[Path], tmp_path: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    out = merged(folders, tmp_path / "out")
    edit_record(out, edit)
    with pytest.raises(OutputError, match="is no run record of riemerge"):
        verify(out, folders)
