"""Merges that are there stay while their files are as they were written; a fault says what is there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from riemerge.errors import (
    OutputError,
    ResourceError,
)
from riemerge.study.sweeps import sweep
from tests.folders import content
from tests.helpers import ROOT
from tests.study.inputs import (
    SHAPES,
    TENSORS,
    WHOLE,
    opposite,
    run,
    write_checkpoints,
)

KINDS: dict[str, dict[str, Any]] = {"adapter": {}, "delta": {"out_type": "delta"}, "checkpoint": {}}


def no_weights(point: Path, _: Path) -> str:
    (path,) = point.glob("*.safetensors")
    path.unlink()
    return f"{path.name} is missing"


def weights_of_another(point: Path, other: Path) -> str:
    """What a record cannot tell: whole and sound weights of the right shapes, but other ones."""
    (path,) = point.glob("*.safetensors")
    shutil.copyfile(other / path.name, path)
    return f"{path.name} is not the file that was written"


def other_settings(point: Path, _: Path) -> str:
    name = "adapter_config.json" if (point / TENSORS).exists() else WHOLE
    data = bytearray((point / name).read_bytes())
    data[-2] ^= 1
    (point / name).write_bytes(data)
    return f"{name} is not the file that was written"


def weights_beside(point: Path, other: Path) -> str:
    (path,) = other.glob("*.safetensors")
    shutil.copyfile(path, point / "model-00001-of-00001.safetensors")
    return "model-00001-of-00001.safetensors was added"


def other_version(point: Path, _: Path) -> str:
    path = point / "riemerge.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"versions": record["versions"] | {"riemerge": "0.0.9"}}))
    return "it was made by riemerge 0.0.9"


def no_sums(point: Path, _: Path) -> str:
    path = point / "riemerge.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "outputs": {}}))
    return "riemerge.json has no sha256 of the files"


def a_folder_for_a_file(point: Path, _: Path) -> str:
    (path,) = point.glob("*.safetensors")
    path.unlink()
    path.mkdir()
    return f"{path.name} cannot be read: Is a directory"


DAMAGES = (
    *(no_weights, weights_of_another, other_settings, weights_beside, other_version, no_sums),
    a_folder_for_a_file,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_merge_whose_files_are_not_as_written_is_made_again(
    folders: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    damage: Callable[[Path, Path], str],
) -> None:
    models = write_checkpoints(tmp_path, 2) if kind == "checkpoint" else folders[:2]
    out, said = tmp_path / "out", KINDS[kind]
    sweep(models, out, 3, **said)
    before = {name: data for name, data in content(out).items() if name != "sweep.json"}
    (out / "0.50" / "cache").write_text("of a scorer")  # which is no fault of the weights
    made = {name: (out / name).stat().st_ino for name in ("0.00", "1.00")}
    why = damage(out / "0.50", out / "1.00")
    seen: dict[str, dict[str, bytes]] = {}

    def scorer(folder: Path) -> float:
        seen[folder.name] = {f"{folder.name}/{name}": data for name, data in content(folder).items()}
        return 1.0

    sweep(models, out, 3, scorer=scorer, **said)
    assert [
        record.getMessage() for record in caplog.records if record.name == "riemerge.study.kept_merges"
    ] == [f"{out / '0.50'}: is made again: {why}" + (", and this is 0.1.0" if "0.0.9" in why else "")]
    # What is scored is what was written at first, and nothing else is touched.
    assert seen["0.00"] | seen["0.50"] | seen["1.00"] == before
    assert {name: (out / name).stat().st_ino for name in made} == made
    assert {path.name for path in out.iterdir()} == {"0.00", "0.50", "1.00", "sweep.json"}
    caplog.clear()
    sweep(models, out, 3, **said)
    assert not caplog.records


def test_a_command_says_what_is_made_again_and_why(folders: list[Path], tmp_path: Path) -> None:
    words = ("sweep", *folders[:2], "--steps", 3, "-o", tmp_path / "out", "-q")
    assert run(*words).exit_code == 0
    (tmp_path / "out" / "0.50" / TENSORS).unlink()
    ran = subprocess.run(
        [sys.executable, "-c", "from riemerge.cli.commands import main; main()", *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert f"0.50: is made again: {TENSORS} is missing" in ran.stderr
    assert (tmp_path / "out" / "0.50" / TENSORS).exists()


def test_what_is_there_stays_until_the_other_is_whole(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    sweep(folders[:2], out, 3)
    (out / "0.50" / "adapter_config.json").unlink()
    before = content(out)

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("riemerge.merging.run.run_method", fail)
        with pytest.raises(ZeroDivisionError):
            sweep(folders[:2], out, 3)
    assert content(out) == before


@pytest.mark.parametrize(
    "fault", [OutputError("x"), ResourceError("x"), KeyboardInterrupt()], ids=lambda one: type(one).__name__
)
def test_a_sweep_that_may_go_on_says_so(folders: list[Path], tmp_path: Path, fault: BaseException) -> None:
    def scorer(_: Path) -> float:
        raise fault

    with pytest.raises(type(fault)) as caught:
        sweep(folders[:2], tmp_path / "out", 3, scorer=scorer)
    (note,) = caught.value.__notes__
    assert note.endswith("holds 1 of 3 merges (0.00): the same command goes on from them")


def test_what_a_sweep_wrote_before_it_failed_is_said(tmp_path: Path) -> None:
    paths = opposite(tmp_path)
    words = ("sweep", *paths, "--steps", 3, "--method", "karcher", "-o", tmp_path / "out")
    ran = run(*words)
    assert ran.exit_code == 5
    assert len([line for line in ran.stderr.splitlines() if line.startswith("error: ")]) == len(SHAPES)
    assert "holds 1 of 3 merges (0.00)" in ran.stderr
    assert "2 problems (exit 5)" in ran.stderr
    assert "nothing was written" not in ran.stderr
    assert "goes on" not in ran.stderr  # it would fail at the same place
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.00"]
    document = json.loads(run(*words, "--json").stdout)
    assert "holds 1 of 3 merges (0.00)" in document["error"]["notes"][0]
