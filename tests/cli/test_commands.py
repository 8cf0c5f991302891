"""The group of all commands: what holds for each of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import riemerge
from riemerge import errors
from riemerge.cli.commands import main
from tests.cli.runner import TENSORS, call, merged, run
from tests.folders import content


def test_the_table_of_exit_codes_is_what_help_says() -> None:
    text = " ".join(run("--help").stdout.split())
    codes = {kind.exit_code for kind in errors.RiemergeError.__subclasses__()}
    assert codes == {3, 4, 5, 6, 7}
    for code, word in {1: "a bug", 3: "recipe", 4: "input", 5: "numbers", 6: "output", 7: "machine"}.items():
        assert f"{code} {word}" in text


@pytest.mark.parametrize(
    "words", [["merge"], ["merge", "a"], ["mrge"], ["merge", "a", "-o", "b", "--rnk", "2"], ["inspect"]]
)
def test_usage_faults_end_with_two(words: list[str]) -> None:
    ran = run(*words)
    assert ran.exit_code == 2
    assert ran.stdout == ""
    assert "Usage:" in ran.stderr


COMMANDS = (
    ("merge",),
    ("merge", "--method", "average"),
    ("merge", "--method", "average", "--base-model", "base"),
    ("merge", "--method", "average", "--out-type", "checkpoint"),
    ("soup", "--scorer", "true {}"),
    ("sweep", "--steps", 2),
    ("evaluate", "--scorer", "true {} {part}"),
    ("inspect",),
)


def run_below(root: Path, adapter: Path) -> list[Path]:
    (root / "run").mkdir()
    (root / "run" / "training_args.bin").write_bytes(b"\x80")
    shutil.copytree(adapter, root / "run" / "checkpoint-500")
    return [root / "run", adapter]


def no_config(root: Path, adapter: Path) -> list[Path]:
    (adapter / "adapter_config.json").unlink()
    return [adapter]


def run_of_checkpoints(root: Path, adapter: Path) -> list[Path]:
    (root / "run" / "checkpoint-9").mkdir(parents=True)
    save_file({"x": torch.ones(2)}, root / "run" / "checkpoint-9" / "model.safetensors")
    return [root / "run"]


def statistics_for_a_model(root: Path, adapter: Path) -> list[Path]:
    (root / "data").mkdir()
    (root / "data" / "statistics.json").write_text("{}")
    save_file({"fisher": torch.ones(2, 2)}, root / "data" / "layers.0.q.safetensors")
    return [root / "data"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: "-".join(map(str, words)))
@pytest.mark.parametrize(
    ("arrange", "says"),
    [
        (run_below, "run: has neither {} nor {}; did you mean one of its folders: checkpoint-500?"),
        (no_config, "adapter_config.json: is missing; it says the scale of dW"),
        (run_of_checkpoints, "run: has neither {} nor {}; did you mean one of its folders: checkpoint-9?"),
        (statistics_for_a_model, "data: has neither {} nor {}; it holds statistics of a model"),
    ],
)
def test_every_command_first_says_what_is_wrong_with_a_path(
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Any,
    arrange: Any,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = arrange(tmp_path, folders[0])
    other = [folders[1]] if len(given) == 1 else []
    name, *words = command
    target = [] if name == "inspect" else ["-o", "out"]
    ran = run(name, *given, *other, *words, *target)
    assert ran.exit_code == 4, ran.stderr
    first = ran.stderr.splitlines()[0]
    assert says.format("adapter_config.json", TENSORS) in first
    assert not (tmp_path / "out").exists()


def test_every_command_answers_in_json_if_asked_to() -> None:
    for command in main.commands.values():
        assert any("--json" in option.opts for option in command.params)


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout.strip() == f"riemerge, version {riemerge.__version__}"


LONG = "x" * 300  # no file system takes such a name


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("merge", LONG, "b", "-o", "out"), 4),
        (("merge", "a", LONG, "-o", "out", "--method", "ema"), 4),
        (("merge", "a", "b", "-o", LONG), 6),
        (("merge", "a", "b", "-o", f"{LONG}/out"), 6),
        (("inspect", "a", LONG), 4),
        (("sweep", "a", LONG, "-o", "out", "--steps", "2"), 4),
        (("soup", "a", LONG, "-o", "out", "--scorer", "echo 1 {}"), 4),
        (("evaluate", "a", LONG, "-o", "out", "--scorer", "echo 1 {}"), 4),
        (("evaluate", "a", "b", "-o", LONG, "--scorer", "echo 1 {}"), 6),
        (("evaluate", "a", "b", "-o", "out", "--scorer", f"false {LONG}.py {{}}"), 7),
    ],
)
def test_too_long_a_name_is_an_error_that_shows_it(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    if code != 7:  # a scorer is called when there is something to score
        monkeypatch.setattr("riemerge.merging.run.run_method", lambda *_: pytest.fail("was merged"))
    ran = run(*words)
    assert ran.exit_code == code, ran.stderr
    assert "a bug" not in ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("command", "call"),
    [("merge", "stat"), ("inspect", "stat"), ("sweep", "stat"), ("merge", "listdir"), ("sweep", "listdir")],
)
def test_a_folder_that_cannot_be_read_is_named(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, call: str
) -> None:
    """Root may read everything, so that the refusal is played."""
    if call == "listdir":  # which only a folder without an adapter is asked for
        for folder in folders:
            (folder / "adapter_config.json").unlink()
    real = getattr(os, call)

    def refuse(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path).startswith(str(folders[0])):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    words = [] if command == "inspect" else ["-o", tmp_path / "out", "--method", "average"]
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        ran = run(command, *folders, *words)
    assert ran.exit_code == 4, ran.stderr
    assert "a bug" not in ran.stderr
    assert f"{folders[0]}: cannot be read: Permission denied" in ran.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_without_assertions_a_merge_has_the_same_bytes(folders: list[Path], tmp_path: Path) -> None:
    assert run("merge", *folders, "-o", tmp_path / "plain").exit_code == 0
    assert merged(folders, tmp_path / "optimised", "-O").returncode == 0
    assert content(tmp_path / "plain") == content(tmp_path / "optimised")


@pytest.mark.slow
def test_without_docstrings_there_is_one_error_and_all_of_the_help(
    folders: list[Path], tmp_path: Path
) -> None:
    ran = merged(folders, tmp_path / "out", "-OO")
    assert ran.returncode == 7
    assert ran.stderr.splitlines() == [
        "error: python: -OO (PYTHONOPTIMIZE=2) takes away docstrings, which Pymanopt needs: use -O"
    ]
    for words in (["--help"], *([name, "--help"] for name in main.commands)):
        assert call(*words, PYTHONOPTIMIZE="2").stdout == call(*words).stdout
