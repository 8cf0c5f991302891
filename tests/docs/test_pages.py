"""The examples of README and of docs/ run as they are written, and what they claim is what was measured."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from docs.build import PAGES
from riemerge.cli.commands import main
from riemerge.formats.dialects import read_adapter
from riemerge.methods import DEFAULT_METHOD, METHODS
from riemerge.methods.parameters import MATCHED
from riemerge.records.evaluation_record import Evaluation
from riemerge.report.collection_tables import ALL_PAIRS
from riemerge.report.verdict import MEASURE
from riemerge.study.collection.advice import RELATED
from riemerge.study.collection.clusters import LEAST_GAP
from riemerge.study.collection.relations import NEAR, OUTLYING
from tests.frechet.problems import ITERATIVE
from tests.helpers import ROOT

README, GUIDE, METHODS_PAGE, RESULTS_PAGE, LIMITS, COLLECTIONS = (
    (ROOT / page).read_text(encoding="utf-8")
    for page in (
        *("README.md", "docs/guide.md", "docs/methods.md", "docs/results.md", "docs/limits.md"),
        "docs/collections.md",
    )
)
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = ROOT / "examples" / "adapters"
NLI = ROOT / "benchmarks" / "nli" / "results" / "nli.json"
SUBSETS = NLI.with_name("subsets.json")
RESULTS = ROOT / "benchmarks" / "results"

IDENTIFIABILITY = RESULTS / "identifiability.json"


def measured(name: str) -> dict[str, Any]:
    """The committed result of a benchmark."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def blocks(page: str, language: str) -> list[str]:
    """The examples of a page that are marked to run."""
    return re.findall(rf"<!-- run: {language} -->\n```\w+\n(.*?)```", page, flags=re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """An empty folder with the examples in it, as the README's commands expect."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_shell(script: str, workplace: Path) -> None:
    command = f'"{sys.executable}" -c "from riemerge.cli.commands import main; main()"'
    run(["bash", "-c", f'riemerge() {{ {command} "$@"; }}\nset -e\n{script}'], workplace)


@pytest.mark.slow
def test_shell_example(workplace: Path) -> None:
    script, _ = blocks(GUIDE, "shell")
    assert len(script.splitlines()) == 3
    run_shell(script, workplace)
    assert read_adapter(workplace / "merged").ranks == read_adapter(workplace / "power").ranks
    assert len(json.loads((workplace / "compared.json").read_text(encoding="utf-8"))["adapters"]) == 2


@pytest.mark.slow
def test_five_lines_of_shell(workplace: Path) -> None:
    (script,) = blocks(README, "shell")
    assert len(script.splitlines()) == 5
    run_shell(script, workplace)
    assert read_adapter(workplace / "merged").modules == read_adapter(workplace / "ties").modules


@pytest.mark.slow
def test_example_of_an_evaluation(workplace: Path) -> None:
    _, script = blocks(GUIDE, "shell")
    run_shell(script, workplace)
    made = Evaluation.model_validate_json((workplace / "which" / "evaluation.json").read_text("utf-8"))
    assert [one.name for one in made.entries] == ["average", "iso_c:rank=16"]
    assert made.rows == {"snli": 50, "mnli": 50}
    assert made.specialists == {"snli": "snli", "mnli": "mnli"}
    assert (
        read_adapter(workplace / "which" / "best").modules
        == read_adapter(ROOT / "examples/adapters/snli").modules
    )


@pytest.mark.slow
@pytest.mark.parametrize("script", [*blocks(README, "python"), *blocks(GUIDE, "python")])
def test_python_examples(workplace: Path, script: str) -> None:
    out = run([sys.executable, "-c", script], workplace)
    outputs = {"sphere": "CONVERGED", "qnli": "encoder.layer.0", "from_python": "(384, 384)"}
    outputs |= {"family": "lbfgs"}
    assert next(text for word, text in outputs.items() if word in script) in out


@pytest.mark.slow
def test_examples_of_a_collection(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run in this process: a process of its own would cost more than the map."""
    monkeypatch.chdir(workplace)
    (shell,), (python,) = blocks(COLLECTIONS, "shell"), blocks(COLLECTIONS, "python")
    _, *words = shlex.split(shell)
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "4 adapters of 36 modules compared" in done.output
    named = re.findall(r"`(\w+\.(?:html|png|csv|json|safetensors))`", COLLECTIONS)
    assert {*named} <= {path.name for path in (workplace / "atlas").iterdir()}
    assert len({*named}) == 10
    exec(python, {})
    assert "riemerge merge" in capsys.readouterr().out


def test_figures_of_the_page_on_collections_are_the_code_s() -> None:
    words = " ".join(COLLECTIONS.split())
    for claim in (
        f"mean cosine of at least {RELATED:g}",
        f"cosine of at least {RELATED:g} between them",
        f"exceeds that inside by a share of {LEAST_GAP:g} of it",
        f"differ by at most {NEAR:g} of the larger norm",
        f"more than {OUTLYING:g} robust standard deviations",
        f"above {ALL_PAIRS} adapters the nearest of each",
    ):
        assert claim in words


def test_the_readme_fits_its_limits() -> None:
    assert len(README.splitlines()) <= 120
    shell, python = blocks(README, "shell")[0], blocks(README, "python")[0]
    assert len(shell.splitlines()) == 5
    assert len([line for line in python.splitlines() if line]) <= 5
    assert len(blocks(GUIDE, "python")[0].splitlines()) == 10
    rows = re.findall(r"(?m)^\| (?!---)", README)
    assert len(rows) - 1 <= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Links to files are relative to the page; what they lead to is in the repository."""
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    files = [target for target in targets if not target.startswith("https://")]
    assert [target for target in files if not (page.parent / target).exists()] == []


def test_figures_of_the_readme_are_the_code_s_and_the_benchmark_s() -> None:
    words = " ".join(README.split())
    assert f"its {len(METHODS)} methods" in words
    assert f"{len(METHODS)} methods ([the table]" in words
    assert all(row.gauge_invariant for row in METHODS.values())
    found = json.loads(SUBSETS.read_text(encoding="utf-8"))
    (one,) = (
        one
        for one in found["test"]
        if (one["ours"], one["theirs"], one["size"]) == ("spectrum, matched", "average, scale 1", None)
    )
    assert f"Over all {one['count']} pairs, triples and quadruples" in words
    claim = " ".join(RESULTS_PAGE.split())
    (lost, worst) = re.findall(
        r"to the plain average in (\d+), \d+ by more than 0.01, at worst -(0\.\d+)", claim
    )[0]
    assert f"loses to the plain average in {lost}, at worst by {worst}" in words


def test_figures_of_identifiability_are_the_benchmark_s() -> None:
    families = json.loads(IDENTIFIABILITY.read_text(encoding="utf-8"))["families"]
    independent = families["independent"]
    assert f"updates that differ by {independent['update_apart']:.0%}".replace("%", " %") in LIMITS
    assert independent["cost_apart"] < 0.002
    words = " ".join(LIMITS.split())
    assert f"cosine to each input is {independent['cosine']:.2f}" in words
    assert f"the plain average's {independent['cosine_average']:.2f}" in words
    card = " ".join(
        (ROOT / "riemerge" / "report" / "verdict.py").read_text(encoding="utf-8").replace('"', " ").split()
    )
    for name in ("mix", "lora_like", "independent"):
        assert f"{families[name]['update_apart']:.0%}".replace("%", " %") in card
        assert families[name]["cost_apart"] < 0.005
    # The verdict's thresholds lie between what was measured to be determined and what was not.
    assert families["close"]["update_apart"] < 1e-6


def test_what_is_said_of_solvers_is_the_benchmark_s() -> None:
    found, words = measured("convergence"), " ".join(METHODS_PAGE.split())
    assert "On close adapters all five reach the same cost to nine digits" in words
    close = [
        run for run in found["runs"] if run["problem"] == "close" and not run["solver"].startswith("stock")
    ]
    assert {run["solver"].partition(":")[0] for run in close} == {*ITERATIVE}
    assert len(ITERATIVE) == 5
    assert max(max(run["excess"]) for run in close) < 1e-9
    cost_tol = METHODS["geomerge"].defaults["cost_tol"]
    (default,) = (row for row in found["defaults"]["rows"] if row["cost_tol"] == f"{cost_tol:.0e}")
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    said = f"the solve of `geomerge` alone takes about {default['seconds']:.0f} s now"
    assert said in " ".join(page.split())


def test_what_is_said_of_verdicts_is_the_benchmark_s() -> None:
    sets, words = measured("verdict")["sets"], " ".join(LIMITS.split())
    assert "each trained from a start of its own, are like that in all of their 36 modules" in words
    assert sets["six of nli, own"]["measured"] == {"no": 36}
    assert "it does not tell for most modules of adapters that were trained from one start" in words
    for name in ("four of examples/adapters", "six of nli, shared"):
        assert sum(sets[name]["open"].values()) > 36 / 2


# --- what is said of the code -------------------------------------------------------------------------------


def quoted(text: str) -> set[str]:
    """The words between backticks."""
    return set(re.findall(r"`([a-z_]+)`", text))


def test_what_is_said_of_rows_is_the_table_s() -> None:
    words = " ".join((METHODS_PAGE + GUIDE).split())
    (scale,) = re.findall(r"It is the default of (.*?), and 1 is that of all others", words)
    assert quoted(scale) == {name for name, row in METHODS.items() if row.defaults.get("scale") == MATCHED}
    (whole,) = re.findall(r"energy that was kept in the report \((.*?) keep all of it", words)
    assert quoted(whole) == {name for name, row in METHODS.items() if row.defaults.get("rank") == "sum"}
    (data,) = re.findall(r"\*\*Data\.\*\* (.*?) need statistics of each model", words)
    assert quoted(data) == {name for name, row in METHODS.items() if row.statistics}
    (server,) = re.findall(r"\*\*Rounds\.\*\* (.*?) are one round from rest", words)
    assert quoted(server) == {name for name, row in METHODS.items() if row.server_step}
    (last,) = re.findall(r"The folder of a run stands for its checkpoints in (.*?)\.", words)
    ordered = {name for name, row in METHODS.items() if row.ordered and row.models[1] is None}
    assert quoted(last) == ordered


def test_what_is_said_of_commands_is_the_command_line_s() -> None:
    words = " ".join(GUIDE.split())
    assert f"`merge` takes `{DEFAULT_METHOD}` where no method is named" in words
    assert "`soup` and `sweep` take `average`" in words
    for name in ("soup", "sweep"):
        (method,) = (one for one in main.commands[name].params if one.name == "method")
        assert isinstance(method, click.Option)
        assert method.help is not None
        assert "[default: average]" in method.help
    codes = "2 the usage, 3 the recipe, 4 an input, 5 the numbers, 6 the output, 7 the machine"
    assert codes in words  # test_cli.py has the codes themselves


def test_the_house_has_a_line_for_every_file_at_its_top() -> None:
    (house,) = re.findall(r"```\nriemerge/\n(.*?)```", CONTRIBUTING, flags=re.DOTALL)
    named = set(re.findall(r"\b(\w+\.py|\w+/)", house))
    there = {path.name for path in (ROOT / "riemerge").glob("*.py")} - {"__init__.py"}
    folders = {f"{path.parent.name}/" for path in (ROOT / "riemerge").glob("*/__init__.py")}
    assert named == there | folders


def test_the_four_real_adapters_are_what_is_said_of_them() -> None:
    said = " ".join((EXAMPLES / "README.md").read_text(encoding="utf-8").split())
    rows = re.findall(r"\| `(\w+)` \|", said)
    assert sorted(rows) == sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
    for name in rows:
        adapter = read_adapter(EXAMPLES / name)
        settings = json.loads((EXAMPLES / name / "adapter_config.json").read_text(encoding="utf-8"))
        assert f"r = {settings['r']}, alpha = {settings['lora_alpha']}" in said
        assert (settings["lora_dropout"], settings["bias"]) == (0.0, "none")
        assert f"as PEFT {settings['peft_version']} wrote it" in said
        updates = [adapter.update(module) for module in adapter.modules]
        count = sum(update.A.numel() + update.B.numel() for update in updates)
        assert f"{len(updates)} modules, {count:,} parameters" in said
        assert adapter.dtype == torch.bfloat16


# --- what merges are worth ----------------------------------------------------------------------------------


def test_what_measures_a_mean_is_what_reports_say() -> None:
    assert f"`{MEASURE}`" in LIMITS


def test_what_merges_are_worth_is_the_benchmark_s() -> None:
    found = json.loads(NLI.read_text(encoding="utf-8"))
    # The default, with no option, on all six adapters of both collections.
    for collection in found["collections"].values():
        (default,) = (one for one in collection["entries"] if one["entry"] == DEFAULT_METHOD)
        assert default["as_run"]["normalised"] >= 0.90
    # It was chosen on dev rows, as it runs: no row without data has a higher mean there, by more than noise.
    dev: dict[str, list[float]] = {}
    for collection in found["collections"].values():
        for one in collection["entries"]:
            if "dev" in one.get("as_run", {}):
                dev.setdefault(one["entry"], []).append(one["as_run"]["dev"])
    means = {name: sum(both) / len(both) for name, both in dev.items() if len(both) == 2}
    assert means[DEFAULT_METHOD] >= max(means.values()) - 0.005
    # Shares of both measures of every row are within the tables of nli.md, and all errors are by groups.
    assert "by whole premise groups" in RESULTS_PAGE


def test_what_the_default_gives_on_every_set_is_the_benchmark_s() -> None:
    found = json.loads(SUBSETS.read_text(encoding="utf-8"))
    (one,) = (
        one
        for one in found["test"]
        if (one["ours"], one["theirs"], one["size"]) == ("spectrum, matched", "spectrum, scale 1", None)
    )
    assert one["count"] == 100
    assert one["sets_low"] > 0
    # The rule was chosen on dev rows: none that loses in as few sets gains more there.
    dev = {one["ours"]: one for one in found["dev"] if one["size"] is None}
    chosen = dev["spectrum, matched"]
    rivals = [other for other in dev.values() if other["lose_much"] <= chosen["lose_much"]]
    assert chosen["value"] == max(other["value"] for other in rivals)
