"""`riemerge merge`: from words or a recipe to a folder; and what it says of inputs that it does not take."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from safetensors.torch import save_file

from riemerge.cli.commands import main
from riemerge.records.run_record import RunRecord
from tests.cli.runner import TENSORS, run
from tests.folders import family, write_folder


def test_a_merge_prints_its_report_and_writes_its_folder(folders: list[Path], tmp_path: Path) -> None:
    ran = run("merge", f"{folders[0]}:0.75", f"{folders[1]}:0.25", "-o", tmp_path / "out")
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.startswith("2 adapters merged by spectrum: a (0.75), b (0.25)\nkeeps of each input: a ")
    assert "merge: 3 of 3: spectrum" in ran.stderr
    assert "pass" not in ran.stdout
    assert "(below" not in ran.stdout
    record = RunRecord.model_validate_json((tmp_path / "out" / "riemerge.json").read_text())
    assert [row.share for row in record.inputs] == [0.75, 0.25]


def test_every_option_reaches_the_record(folders: list[Path], tmp_path: Path) -> None:
    options = {
        "rank": 2,
        "scale": 1.5,
        "solver": "steepest_descent",
        "tol": 1e-6,
        "cost-tol": 1e-5,
        "max-passes": 99,
        "max-seconds": 1e6,
        "starts": 2,
        "seed": 7,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    dtypes = ["--dtype", "float32", "--out-dtype", "bfloat16"]
    words += ["--threads", 2]
    ran = run("merge", *folders, "-o", tmp_path / "out", "--json", "--method", "geomerge", *words, *dtypes)
    recipe = json.loads(ran.stdout)["record"]["recipe"]
    assert recipe["parameters"] == {name.replace("-", "_"): value for name, value in options.items()}
    assert (recipe["dtype"], recipe["out_dtype"]) == ("float32", "bfloat16")


def test_a_recipe_and_the_same_words_write_the_same_bytes(folders: list[Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "merge_method: average\nparameters: {rank: 4}\n"
        "models:\n- {model: a, parameters: {weight: 0.3}}\n- model: b\n"
    )
    assert run("merge", recipe, "-o", tmp_path / "one", "--rank", 2).exit_code == 0
    words = (f"{folders[0]}:0.3", folders[1], "--method", "average", "--rank", 2)
    assert run("merge", *words, "-o", tmp_path / "two").exit_code == 0
    assert (tmp_path / "one" / TENSORS).read_bytes() == (tmp_path / "two" / TENSORS).read_bytes()


def test_json_is_one_document_that_equals_the_record_on_disk(folders: list[Path], tmp_path: Path) -> None:
    ran = run("merge", *folders, "-o", tmp_path / "out", "--json")
    document = json.loads(ran.stdout)
    assert document["output"] == str(tmp_path / "out")
    assert document["record"] == json.loads((tmp_path / "out" / "riemerge.json").read_text())
    assert document["rounding"] <= 1e-15  # the inputs are float64, so the output is


def test_quiet_says_only_where(folders: list[Path], tmp_path: Path) -> None:
    ran = run("merge", *folders, "-o", tmp_path / "out", "--quiet")
    assert ran.stdout == f"{tmp_path / 'out'}\n"
    assert ran.stderr == ""


LOHA = "lora_unet_q.hada_w1_a"


FLUX = "transformer.x.lora_A.weight"


@pytest.mark.parametrize("command", ["inspect", "merge"])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_lora_weights.safetensors"])
@pytest.mark.parametrize(
    ("tensor", "says"),
    [(LOHA, "is a LoRA or another adapter in a single file"), (FLUX, "convert it to PEFT")],
)
@pytest.mark.parametrize("whole", [True, False])
def test_a_hint_leads_to_no_file_that_is_refused(
    folders: list[Path], tmp_path: Path, command: str, file: str, tensor: str, says: str, whole: bool
) -> None:
    (tmp_path / "x").mkdir()
    save_file({tensor: torch.ones(2, 2)}, tmp_path / "x" / file)
    target = [] if command == "inspect" else ["-o", tmp_path / "out"]
    ran = run(command, tmp_path / "x" if whole else tmp_path / "x" / file, *target)
    assert ran.exit_code == 4, ran.stderr
    assert says in ran.stderr
    assert "did you mean" not in ran.stderr
    assert "it is a full checkpoint" not in ran.stderr


def test_a_hint_leads_to_the_file_that_is_read(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    save_file({LOHA: torch.ones(2, 2)}, tmp_path / "x" / "a.safetensors")
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "x" / "b.safetensors")
    ran = run("merge", tmp_path / "x", "-o", tmp_path / "out")
    assert "did you mean one of its files: b.safetensors?" in ran.stderr


@pytest.mark.parametrize("base", ["a/adapter_model.safetensors", "a"])
def test_an_adapter_is_no_base_model(folders: list[Path], tmp_path: Path, base: str) -> None:
    for name in "xy":
        (tmp_path / name).mkdir()
        save_file({"x": torch.ones(2)}, tmp_path / name / "model.safetensors")
    models = (tmp_path / "x", tmp_path / "y")
    ran = run("merge", *models, "-o", tmp_path / "out", "--base-model", tmp_path / base)
    assert ran.exit_code == 4
    assert "not a full checkpoint" in ran.stderr


def test_every_path_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    for name in "xyz":
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    models = [tmp_path / f"{name}.safetensors" for name in "xyz"]
    ran = run("merge", *models[:2], "-o", tmp_path / "out", "--base-model", models[2])
    assert [line.split(": ")[1] for line in ran.stderr.splitlines()[:3]] == list(map(str, models))


@pytest.mark.parametrize("command", ["merge", "inspect"])
@pytest.mark.parametrize(
    ("settings", "factor", "says"),
    [
        ({"lora_alpha": 1e308}, 1.0, "lora_alpha gives a scale of 3.33e+307"),
        ({}, 1e200, "the factors reach"),
        ({}, 1e80, "the factors reach"),  # whose squares overflow
        ({}, 1e-200, "the factors reach"),  # whose product is 0 in float64
    ],
)
def test_numbers_out_of_range_are_refused_by_adapter_and_module(
    tmp_path: Path, command: str, settings: dict[str, Any], factor: float, says: str
) -> None:
    good, bad = family("close", 2)
    scaled = {module: (factor * b, factor * a) for module, (b, a) in bad.items()}
    folders = [write_folder(tmp_path / "a", good), write_folder(tmp_path / "b", scaled, **settings)]
    words = [] if command == "inspect" else ["-o", tmp_path / "out"]
    ran = run(command, *folders, *words)
    assert ran.exit_code == 4, ran.stderr
    assert f"{tmp_path / 'b'}: layers.0.q: " in ran.stderr
    assert says in ran.stderr
    assert not (tmp_path / "out").exists()


def test_factors_that_float32_cannot_hold_are_refused(tmp_path: Path) -> None:
    (one,) = family("close", 1)
    turned = {module: (1e50 * b, 1e-50 * a) for module, (b, a) in one.items()}
    words = ("merge", write_folder(tmp_path / "a", turned), "-o", tmp_path / "out")
    ran = run(*words, "--dtype", "float32")
    assert ran.exit_code == 4
    assert "the largest torch.float32 is 3.4e+38: use float64" in ran.stderr
    assert run(*words).exit_code == 0


@pytest.mark.parametrize("method", ["average", "ties", "geomerge"])
def test_weights_that_overflow_are_refused(folders: list[Path], tmp_path: Path, method: str) -> None:
    ran = run("merge", *(f"{path}:1e308" for path in folders), "-o", tmp_path / "out", "--method", method)
    assert ran.exit_code == 3
    assert "add up to more than a float holds" in ran.stderr


def test_verbose_shows_every_module(folders: list[Path], tmp_path: Path) -> None:
    ran = run("merge", *folders, "-o", tmp_path / "out", "-v")
    assert "modules (below layers)" in ran.stdout
    assert all(name in ran.stdout for name in ("0.q", "0.v", "1.q", "total"))


def test_a_parameter_is_given_by_p_or_as_before_under_its_own_name(
    folders: list[Path], tmp_path: Path
) -> None:
    words = ("merge", *folders, "--method", "ties")
    before = run(*words, "-o", tmp_path / "before", "--density", "[0.3, 0.7]", "--rank", 2, "--no-such", 1)
    assert before.exit_code == 2
    before = run(*words, "-o", tmp_path / "before", "--density", "[0.3, 0.7]", "--rank", 2)
    now = run(*words, "-o", tmp_path / "now", "-p", "density=[0.3, 0.7]", "--parameter", "rank=2")
    assert before.exit_code == now.exit_code == 0
    assert (tmp_path / "before" / TENSORS).read_bytes() == (tmp_path / "now" / TENSORS).read_bytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-p", "density=0.3", "--density", "0.3"], "-p density: said as an option too: say it once"),
        (["-p", "density=2"], "-p density: 2: expected at most 1"),
        (["-p", "densty=1"], "did you mean 'density'?"),
        (["-p", "whitening=0.5"], "ties takes no whitening"),
        (["-p", "density"], "expected NAME=VALUE"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(
    folders: list[Path], tmp_path: Path, words: list[str], says: str
) -> None:
    ran = run("merge", *folders, "-o", tmp_path / "out", "--method", "ties", *words)
    assert (ran.exit_code, ran.stdout) == (3, "")
    assert says in ran.stderr


def test_help_fits_one_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("merge", "--help").stdout.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 80
    options = [line for line in lines if line.startswith("  -")]
    assert len(options) <= 25
    assert any(line.startswith("  --out-type [adapter|delta|checkpoint]") for line in options)
    assert "--density" not in " ".join(lines)
    assert "--help-all explains: " in " ".join(lines)


@pytest.mark.parametrize("command", ["merge", "soup", "sweep"])
def test_help_all_explains_what_help_only_names(command: str) -> None:
    short, whole = (run(command, option).stdout for option in ("--help", "--help-all"))
    assert whole.startswith(short.split("\nMore options")[0])
    (named,) = re.findall(r"--help-all explains: (.*)\.", " ".join(short.replace("-\n", "-").split()))
    for option in named.split(", "):
        assert re.search(rf"^  {option} .*", whole, re.MULTILINE)
        assert not re.search(rf"^  {option} .*", short, re.MULTILINE)
    shown = [param for param in main.commands[command].params if isinstance(param, click.Option)]
    assert all(param.opts[0] in whole for param in shown if not param.hidden)
    assert "--density" not in whole


def test_the_plan_of_documents_is_that_of_the_first(folders: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    one = f"merge_method: average\nmodels: [{{model: {folders[0]}}}, {{model: {folders[1]}}}]\n"
    path.write_text(f"name: mid\n{one}---\n{one.replace(str(folders[0]), 'mid')}")
    ran = run("merge", path, "--dry-run")
    assert ran.exit_code == 0, ran.output
    assert "2 documents: this is the plan of the first, mid; those after it merge results that" in ran.stderr
