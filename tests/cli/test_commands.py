"""The command line: results on stdout, everything else on stderr, exit codes by kind of fault."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

import riemerge
from riemerge import errors
from riemerge.cli import commands as cli
from riemerge.cli.commands import main
from riemerge.formats.peft import read_adapter
from riemerge.methods import METHODS, PARAMETERS
from riemerge.records.run_record import RunRecord
from tests.folders import content, family, write_family, write_folder
from tests.helpers import ROOT

TENSORS = "adapter_model.safetensors"


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return write_family(tmp_path, family("close", 2))


# --- merge --------------------------------------------------------------------------------------------------


def test_a_merge_prints_its_report_and_writes_its_folder(folders: list[Path], tmp_path: Path) -> None:
    ran = run("merge", f"{folders[0]}:0.75", f"{folders[1]}:0.25", "-o", tmp_path / "out")
    assert ran.exit_code == 0, ran.output
    assert "Do these adapters determine their mean?" in ran.stdout
    assert "merge: 3 of 3 modules" in ran.stderr
    assert "modules: pass" not in ran.stdout
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


def test_a_terminal_gets_a_bar_on_stderr_and_nothing_of_it_on_stdout(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True)
    ran = run("merge", *folders, "-o", tmp_path / "out", "--json")
    assert "━" in ran.stderr
    assert "3/3" in ran.stderr
    json.loads(ran.stdout)


# --- faults -------------------------------------------------------------------------------------------------


def below_zero(folders: list[Path], _: Path) -> list[object]:
    return [f"{folders[0]}:-1", folders[1]]


def pickles(folders: list[Path], _: Path) -> list[object]:
    for folder in folders:
        (folder / TENSORS).write_bytes(b"\x80 pickle")
    return [*folders]


def too_large(folders: list[Path], _: Path) -> list[object]:
    return [*folders, "--out-dtype", "float16", "--scale", 1e12]


def taken(folders: list[Path], root: Path) -> list[object]:
    (root / "out").mkdir()
    return [*folders]


def no_device(folders: list[Path], _: Path) -> list[object]:
    return [*folders, "--device", "cuda:77"]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("kind", "code", "arrange", "says"),
    [
        ("RecipeError", 3, below_zero, ["weight: -1 of"]),
        (
            "AdapterError",
            4,
            pickles,
            ["a/adapter_model.safetensors: is a pickle", "b/adapter_model.safetensors"],
        ),
        (
            "NumericalError",
            5,
            too_large,
            [f"{module}: the factors reach" for module in ("layers.0.q", "layers.0.v", "layers.1.q")],
        ),
        ("OutputError", 6, taken, ["exists already"]),
        ("ResourceError", 7, no_device, ["cuda:77 was asked for"]),
    ],
)
def test_each_kind_of_fault_has_its_code_and_says_every_problem(
    folders: list[Path], tmp_path: Path, kind: str, code: int, arrange: Any, says: list[str], as_json: bool
) -> None:
    words = arrange(folders, tmp_path)
    ran = run("merge", *words, "-o", tmp_path / "out", "-q", *(["--json"] if as_json else []))
    assert ran.exit_code == code
    lines = [
        line for line in ran.stderr.splitlines() if not line.endswith(f"nothing was written (exit {code})")
    ]
    assert len(lines) == len(says)
    for line, text in zip(lines, says, strict=True):
        assert line.startswith("error: ")
        assert text in line
    if as_json:
        problems = [line.removeprefix("error: ") for line in lines]
        assert json.loads(ran.stdout) == {"error": {"kind": kind, "code": code, "problems": problems}}
    else:
        assert ran.stdout == ""
    assert not (tmp_path / "out" / TENSORS).exists()


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


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing is half-written"),
        (
            ZeroDivisionError("division\nby zero"),
            1,
            "a bug: ZeroDivisionError: division by zero; please report it",
        ),
        (MemoryError(), 7, "out of memory"),
    ],
)
def test_interruption_bugs_and_exhaustion_end_in_one_line(
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    code: int,
    says: str,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise fault

    monkeypatch.setattr("riemerge.merging.run.run_method", fail)
    ran = run("merge", *folders, "-o", tmp_path / "out", "--json", "-q")
    assert ran.exit_code == code
    assert says in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert json.loads(ran.stdout)["error"]["code"] == code
    assert not (tmp_path / "out").exists()


def test_a_bug_shows_its_traceback_when_asked(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riemerge.merging.run.run_method", lambda *_: 1 / 0)
    monkeypatch.setenv("RIEMERGE_TRACEBACK", "1")
    assert isinstance(run("merge", *folders, "-o", tmp_path / "out").exception, ZeroDivisionError)


def test_escapes_in_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    ran = run("inspect", tmp_path / "\x1b[31mred")
    assert ran.exit_code == 4
    assert "\x1b" not in ran.stderr
    assert "\\x1b[31mred" in ran.stderr


# --- paths that are something else --------------------------------------------------------------------------

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


KOHYA = "lora_unet_q.lora_down.weight"
FLUX = "transformer.x.lora_A.weight"


@pytest.mark.parametrize("command", ["inspect", "merge"])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_lora_weights.safetensors"])
@pytest.mark.parametrize(
    ("tensor", "says"),
    [(KOHYA, "is a LoRA or another adapter in a single file"), (FLUX, "convert it to PEFT")],
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
    save_file({KOHYA: torch.ones(2, 2)}, tmp_path / "x" / "a.safetensors")
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


@pytest.mark.parametrize("said", [["a=b", "a=c"], ["=b"], ["a=b", "a="], ["b"]])
def test_a_task_has_one_specialist_and_a_name(folders: list[Path], tmp_path: Path, said: list[str]) -> None:
    words = [word for one in said for word in ("--specialist", one)]
    ran = run("evaluate", *folders, "-o", tmp_path / "out", "--scorer", "true {} {part}", *words)
    assert ran.exit_code == 2
    assert "expected" in ran.stderr


# --- inspect, methods, demo ---------------------------------------------------------------------------------


def test_inspect_shows_and_dumps_the_same(folders: list[Path]) -> None:
    shown, dumped = run("inspect", *folders), run("inspect", *folders, "--json")
    assert shown.exit_code == dumped.exit_code == 0
    document = json.loads(dumped.stdout)
    assert [adapter["name"] for adapter in document["adapters"]] == ["a", "b"]
    assert len(document["pairs"]) == 1
    assert "a – b" in shown.stdout
    assert dumped.stderr == ""


def test_methods_lists_the_table() -> None:
    shown, dumped = run("methods"), run("methods", "--json")
    assert [row["name"] for row in json.loads(dumped.stdout)] == list(METHODS)
    assert all(name in shown.stdout for name in METHODS)


def test_methods_explains_those_that_are_named() -> None:
    shown, dumped = run("methods", "ties", "spectrum"), run("methods", "ties", "spectrum", "--json")
    assert [row["name"] for row in json.loads(dumped.stdout)] == ["ties", "spectrum"]
    assert PARAMETERS["whitening"].summary in " ".join(shown.stdout.split())
    assert "geomerge" not in shown.stdout
    unknown = run("methods", "tiez")
    assert unknown.exit_code == 3
    assert "did you mean 'ties'" in unknown.stderr


def test_every_command_answers_in_json_if_asked_to() -> None:
    for command in cli.main.commands.values():
        assert any("--json" in option.opts for option in command.params)


@pytest.mark.slow
def test_demo_merges_the_real_adapters(tmp_path: Path) -> None:
    ran = run("demo", "-o", tmp_path / "out", "--json")
    assert ran.exit_code == 0, ran.stderr
    record = json.loads(ran.stdout)["record"]
    assert [row["name"] for row in record["inputs"]] == ["snli", "mnli", "qnli", "scitail"]
    assert record["totals"]["modules"] == 36
    assert set(record["totals"]["statuses"]) <= {"CONVERGED", "FLAT"}
    # They share their initialisation of A, and in most modules something beside it, which tells nothing.
    assert record["totals"]["determined"] == "open"
    assert (tmp_path / "out" / TENSORS).exists()


def test_demo_without_its_adapters_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "riemerge" / "cli" / "commands.py"))
    ran = run("demo")
    assert ran.exit_code == 7
    assert "the example adapters are missing" in ran.stderr


# --- the process --------------------------------------------------------------------------------------------


def call(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    script = "from riemerge.cli.commands import main; main()"
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", script, *words], capture_output=True, check=False, env=env)


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout.strip() == f"riemerge, version {riemerge.__version__}"


def test_methods_needs_no_numerical_library() -> None:
    script = (
        "import sys\nsys.argv = ['riemerge', 'methods']\nfrom riemerge.cli.commands import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('loaded', *({'torch', 'numpy', 'pymanopt', 'scipy'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.splitlines()[-1] == "loaded"


def test_a_terminal_without_unicode_gets_escapes() -> None:
    ran = call("methods", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ran.returncode == 0, ran.stderr
    assert b"Fr\\xe9chet" in ran.stdout


# --- faults of users and machines that are no bugs ----------------------------------------------------------


ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (RuntimeError(ALLOCATOR), 7, "out of memory"),
        (RuntimeError("CUDA error: out of memory"), 7, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to"), 7, "out of memory"),
        (RuntimeError("can't start new thread"), 7, "--threads 1"),
        (OSError(12, "Cannot allocate memory"), 7, "Cannot allocate memory"),
        (OSError(24, "Too many open files", "a"), 7, "Too many open files"),
        (OSError(28, "No space left on device", "a"), 6, "a: No space left on device"),
        (OSError(30, "Read-only file system", "a"), 6, "a: Read-only file system"),
        (PermissionError(13, "Permission denied", "a"), 4, "a: Permission denied"),
        (OSError(36, "File name too long", "a"), 4, "a: File name too long"),
        (RuntimeError("something else"), 1, "a bug: RuntimeError: something else"),
    ],
)
def test_faults_of_the_machine_have_the_code_of_their_kind(
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    code: int,
    says: str,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise fault

    monkeypatch.setattr("riemerge.merging.run.run_method", fail)
    ran = run("merge", *folders, "-o", tmp_path / "out", "-q")
    assert (ran.exit_code, ran.stdout) == (code, "")
    assert says in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_torch_says_in_these_words_that_memory_is_short(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*args: Any, **kwargs: Any) -> None:
        torch.empty(2**60, dtype=torch.uint8)  # more than any machine has

    monkeypatch.setattr("riemerge.merging.run.run_method", greedy)
    ran = run("merge", *folders, "-o", tmp_path / "out", "-q")
    assert ran.exit_code == 7
    assert "out of memory" in ran.stderr


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


def test_factors_far_apart_whose_product_is_in_range_are_the_same_update(tmp_path: Path) -> None:
    (one,) = family("close", 1)
    turned = {module: (1e200 * b, 1e-200 * a) for module, (b, a) in one.items()}
    paths = [write_folder(tmp_path / "a", one), write_folder(tmp_path / "b", turned)]
    (pair,) = json.loads(run("inspect", *paths, "--json").stdout)["pairs"]
    assert pair["overlap"]["cosine"] == pytest.approx(1.0, rel=1e-14)


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


def test_json_is_json_in_any_encoding() -> None:
    # A code page without é, for which its escape in Python is none in JSON.
    ran = call("methods", "--json", PYTHONIOENCODING="cp1251", PYTHONUTF8="0")
    assert "weighted Fréchet mean" in json.loads(ran.stdout.decode("cp1251"))[0]["summary"]


# --- streams that are closed or full ------------------------------------------------------------------------


def merged(folders: list[Path], out: Path, *words: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    """A merge in a process of its own, so that its streams can be anything."""
    full = [sys.executable, *words, "-c", "from riemerge.cli.commands import main; main()", "merge"]
    full += [*map(str, folders), "-o", str(out)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    env = {**os.environ, "PYTHONPATH": str(ROOT), **streams.pop("env", {})}
    return subprocess.run(full, text=True, check=False, env=env, **streams)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_stdout_does_not_hide_that_the_merge_is_there(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Path("/dev/full").open("w") as full:
        ran = merged(folders, out, stdout=full, env={"PYTHONUNBUFFERED": ""})
    assert ran.returncode == 6
    assert ran.stderr.splitlines()[-2:] == [
        "error: stdout: cannot be written: No space left on device",
        f"{out}: is written, whole",
    ]
    assert "Exception ignored" not in ran.stderr
    assert read_adapter(out).modules


def test_a_pipe_that_no_one_reads_does_not_hide_that_the_merge_is_there(
    folders: list[Path], tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = merged(folders, tmp_path / "out", stdout=writing)
    os.close(writing)
    assert ran.returncode == 6
    assert ran.stderr.endswith(f"{tmp_path / 'out'}: is written, whole\n")
    assert read_adapter(tmp_path / "out").modules


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_list_that_cannot_be_printed(unbuffered: str) -> None:
    script = "from riemerge.cli.commands import main; main()"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}

    def listed(stdout: Any) -> tuple[int, bytes]:
        words = [sys.executable, "-c", script, "methods"]
        ran = subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, check=False, env=env)
        return ran.returncode, ran.stderr

    reading, writing = os.pipe()
    os.close(reading)
    assert listed(writing) == (6, b"")  # whoever stops reading wants no word
    os.close(writing)
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            assert listed(full) == (6, b"error: stdout: cannot be written: No space left on device\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_stderr_ends_no_merge(folders: list[Path], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ran = merged(folders, tmp_path / "out", stderr=full)
    assert ran.returncode == 0
    assert "written to" in ran.stdout


@pytest.mark.skipif(os.name != "posix", reason="a shell closes the streams")
def test_closed_streams_end_no_merge(folders: list[Path], tmp_path: Path) -> None:
    command = f'exec "{sys.executable}" -c "from riemerge.cli.commands import main; main()" "$@" >&- 2>&-'
    words = ["sh", "merge", *map(str, folders), "-o", str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(["sh", "-c", command, *words], capture_output=True, check=False, env=env)
    assert ran.returncode == 0, ran.stderr
    assert read_adapter(tmp_path / "out").modules


def test_a_report_that_fails_does_not_hide_that_the_merge_is_there(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riemerge.report.tables.merge_report", lambda _: 1 / 0)
    ran = run("merge", *folders, "-o", tmp_path / "out")
    assert ran.exit_code == 1
    assert f"{tmp_path / 'out'}: is written, whole" in ran.stderr


# --- the environment ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["abc", "", "-3", "0", "1", "9" * 5000, "²"])
def test_any_number_of_columns_prints_a_report(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    ran = run("merge", *folders, "-o", tmp_path / "out")
    assert ran.exit_code == 0, ran.stderr
    assert "writtentoout" in "".join(ran.stdout.split()).replace(f"{tmp_path}/", "") or columns == "1"


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


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_to_end_clears_away_what_is_staged(folders: list[Path], tmp_path: Path) -> None:
    """A merge that signals itself while its files are staged."""
    script = (
        "import os\nimport riemerge.formats.peft.adapter_writer as writer\n"
        "from riemerge.cli.commands import main\n"
        "writer._check_written = lambda *_: os.kill(os.getpid(), 15)\nmain()"
    )
    words = ["merge", *map(str, folders), "-o", str(tmp_path / "out"), "-q"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False, env=env
    )
    assert (ran.returncode, ran.stderr) == (143, "error: terminated; nothing is half-written\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
