"""Cases from public bug reports: what each command must do, by exit code, words, and numbers of dW."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import Tensor

from riemerge.cli.commands import main
from tests.cases.wild.make_cases import EXPECTED, PREFIX, Outcome, make, numbers

ROWS = json.loads(EXPECTED.read_text(encoding="utf-8"))
COMMANDS = [
    (name, place, command) for name, row in ROWS.items() for place, command in enumerate(row["commands"])
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of all inputs, and what is right for them."""
    root = tmp_path_factory.mktemp("wild")
    return root, make(root)


@pytest.mark.parametrize(
    ("name", "place", "command"), COMMANDS, ids=[f"{name}-{place}" for name, place, _ in COMMANDS]
)
def test_a_command_does_what_is_right(
    made: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    place: int,
    command: str,
) -> None:
    monkeypatch.chdir(made[0])
    ran = CliRunner().invoke(main, command.format(out=tmp_path / "out").split())
    assert ran.exception is None or isinstance(ran.exception, SystemExit)
    faults = [faults_of(outcome, ran, tmp_path / "out") for outcome in ROWS[name]["accept"][place]]
    assert [] in faults, "\n".join([ran.output, *map(str, faults)])


def test_no_command_is_left_out() -> None:
    assert len(COMMANDS) == 40 + 6  # those of the reports, and the ways out of their refusals


def test_the_frozen_outcomes_are_those_of_the_inputs(made: tuple[Path, dict[str, Any]]) -> None:
    words, floats = parts_of(made[1])
    frozen_words, frozen_floats = parts_of(ROWS)
    assert words == frozen_words
    # Sums of up to 80 · 32 products in float64, in an order that the machine chooses.
    assert floats == pytest.approx(frozen_floats, rel=1e-9, abs=1e-9)


def parts_of(rows: Mapping[str, Any]) -> tuple[str, list[float]]:
    """The text of rows without their numbers, and these."""
    floats: list[float] = []

    def kept(text: str) -> None:
        floats.append(float(text))

    return str(json.loads(json.dumps(rows), parse_float=kept)), floats


# --- outcomes -----------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """What is in a folder by the rule of its dialect, written down once more: numbers of dW, and whether
    llama.cpp's rule gives the same scales.
    """

    modules: dict[str, dict[str, float]]
    uniform: bool


def stored(folder: Path) -> Stored:
    """What is in the folder of an adapter, or in the one file of an image tool."""
    (file,) = folder.glob("*.safetensors")
    tensors, updates, ratios = load_file(file), {}, []
    if file.name != "adapter_model.safetensors":
        return Stored(numbers(single_file(tensors)), uniform=False)
    config = json.loads((folder / "adapter_config.json").read_text())
    for key in (key for key in tensors if key.endswith(".lora_A.weight")):
        module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        a, b = tensors[key].double(), tensors[key.replace("lora_A", "lora_B")].double()
        r = looked_up(config["rank_pattern"], module, config["r"])
        alpha = looked_up(config["alpha_pattern"], module, config["lora_alpha"])
        scale = alpha / (math.sqrt(r) if config["use_rslora"] else r)
        updates[module] = scale * (b @ a)
        ratios.append(config["lora_alpha"] / a.shape[0] / scale)
    return Stored(numbers(updates), ratios == pytest.approx([1.0] * len(ratios)))


def single_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """dW by the rules of kohya, alpha over rank, and of diffusers without settings, 1."""
    updates = {}
    for down, up in (("lora_down", "lora_up"), ("lora_A", "lora_B")):
        for key in (key for key in tensors if key.endswith(f".{down}.weight")):
            module = key.removesuffix(f".{down}.weight")
            a, b = tensors[key].double(), tensors[f"{module}.{up}.weight"].double()
            updates[module] = float(tensors.get(f"{module}.alpha", len(a))) / len(a) * (b @ a)
    return updates


def looked_up(pattern: Mapping[str, float], module: str, default: float) -> float:
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


# Relative to ‖dW‖: both factors are rounded, each by half of eps at most, and in float32 there may be a
# decomposition before; what is wrong is off by percents. A probe is off by ‖u‖ ‖v‖ times as much; they have
# at most 80 and 32 entries, of mean square 1/2.
TOLERANCES = {"modules": 1e-5, "modules_bf16": 2 * torch.finfo(torch.bfloat16).eps}
NUMBERS = {*TOLERANCES, "uniform"}
PROBE = math.sqrt(80 / 2 * 32 / 2)


def faults_of(outcome: Outcome, ran: Result, out: Path) -> list[str]:
    """In what a run is not as an outcome says."""
    said = ran.output.lower()
    faults = [] if ran.exit_code in outcome["exit"] else [f"exit {ran.exit_code}: not {outcome['exit']}"]
    faults += [f"does not say {words}" for words in outcome.get("says", ()) if words.lower() not in said]
    faults += [f"says {words}" for words in outcome.get("never_says", ()) if words.lower() in said]
    if faults or ran.exit_code or not NUMBERS & outcome.keys():
        return faults
    found = stored(out)
    if outcome.get("uniform") and not found.uniform:
        faults.append("other scales by alpha over the stored rank")
    for key in TOLERANCES.keys() & outcome.keys():
        faults += wrong_numbers(found.modules, outcome[key], TOLERANCES[key])
    return faults


def wrong_numbers(
    found: Mapping[str, Mapping[str, float]], right: Mapping[str, Mapping[str, float]], tolerance: float
) -> list[str]:
    if found.keys() != right.keys():
        return [f"modules {sorted(found)}: not {sorted(right)}"]
    return [
        f"{module}: {what} {found[module][what]}: not {one[what]}"
        for module, one in right.items()
        for what, factor in (("norm", 1.0), ("probe", PROBE))
        if abs(found[module][what] - one[what]) > tolerance * factor * one["norm"]
    ]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"exit": [3]}, "exit 0"),
        ({"says": ["zebra"]}, "does not say zebra"),
        ({"never_says": ["AVERAGE"]}, "says AVERAGE"),
        ({"modules": {"x": {}}}, "modules"),
    ],
)
def test_a_wrong_outcome_is_seen(
    made: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    fault: str,
) -> None:
    monkeypatch.chdir(made[0])
    command = "merge patterns/plain -o OUT --method average".replace("OUT", str(tmp_path / "out"))
    ran = CliRunner().invoke(main, command.split())
    right = ROWS["patterns"]["accept"][0][0]
    assert faults_of(right, ran, tmp_path / "out") == []
    found = faults_of({**right, **change}, ran, tmp_path / "out")
    assert any(one.startswith(fault) for one in found)
    for what in ("norm", "probe"):
        modules = {module: dict(one) for module, one in right["modules"].items()}
        next(iter(modules.values()))[what] *= 1.01
        assert len(faults_of({**right, "modules": modules}, ran, tmp_path / "out")) == 1
