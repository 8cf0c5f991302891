"""The README's examples run as written, and its tables are the code's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import number
from benchmarks.nli.report import overview
from riemerge.adapters import read_adapter
from riemerge.card import MEASURE
from riemerge.methods import METHODS
from riemerge.record import Evaluation
from riemerge.report import needs, parameters, weights
from tests.helpers import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
NLI = ROOT / "benchmarks" / "nli" / "results" / "nli.json"
MERGE_LLAMA = ROOT / "benchmarks" / "results" / "merge_llama.json"
IDENTIFIABILITY = ROOT / "benchmarks" / "results" / "identifiability.json"


def blocks(language: str) -> list[str]:
    return re.findall(rf"<!-- run: {language} -->\n```\w+\n(.*?)```", README, flags=re.DOTALL)


def between(marker: str) -> str:
    found = re.search(rf"<!-- {marker} -->\n(.*?)<!-- /{marker} -->", README, flags=re.DOTALL)
    assert found is not None
    return found.group(1)


def methods_table() -> str:
    """The table of methods in Markdown, from the code."""
    lines = [
        "| method | what it is | parameters (defaults) | needs | weights | copies merge to it | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in METHODS.values():
        takes, copies = parameters(row), "yes" if row.idempotent else "no"
        cells = (f"`{row.name}`", row.summary, takes, needs(row), weights(row), copies, row.source)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


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
    command = f'"{sys.executable}" -c "from riemerge.cli import main; main()"'
    run(["bash", "-c", f'riemerge() {{ {command} "$@"; }}\nset -e\n{script}'], workplace)


@pytest.mark.slow
def test_shell_example(workplace: Path) -> None:
    script, _ = blocks("shell")
    assert len(script.splitlines()) == 7
    run_shell(script, workplace)
    assert read_adapter(workplace / "merged").ranks == read_adapter(workplace / "average").ranks
    assert len(json.loads((workplace / "compared.json").read_text(encoding="utf-8"))["adapters"]) == 2


@pytest.mark.slow
def test_example_of_an_evaluation(workplace: Path) -> None:
    _, script = blocks("shell")
    run_shell(script, workplace)
    made = Evaluation.model_validate_json((workplace / "which" / "evaluation.json").read_text("utf-8"))
    assert [one.name for one in made.entries] == ["average", "tsv", "iso_c:rank=16"]
    assert made.rows == {"snli": 50, "mnli": 50}
    assert made.specialists == {"snli": "snli", "mnli": "mnli"}
    assert (
        read_adapter(workplace / "which" / "best").modules
        == read_adapter(ROOT / "examples/adapters/snli").modules
    )


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_python_examples(workplace: Path, index: int) -> None:
    out = run([sys.executable, "-c", blocks("python")[index]], workplace)
    assert ("CONVERGED" if "sphere" in blocks("python")[index] else "encoder.layer.0") in out


def test_the_first_python_example_is_ten_lines() -> None:
    assert len(blocks("python")[0].splitlines()) == 10


def test_toy_example() -> None:
    out = run([sys.executable, str(ROOT / "examples" / "toy.py")], ROOT)
    assert "merged w = 4.000000" in out
    assert "merged w = 2.000000, average of the parameters w = 0.000000" in out


def test_the_table_of_methods_is_the_code_s() -> None:
    assert between("methods") == methods_table()


def test_figures_of_identifiability_are_the_benchmark_s() -> None:
    families = json.loads(IDENTIFIABILITY.read_text(encoding="utf-8"))["families"]
    independent = families["independent"]
    assert f"updates that differ by {independent['update_apart']:.0%}".replace("%", " %") in README
    assert independent["cost_apart"] < 0.002
    words = " ".join(README.split())
    assert f"cosine to each input is {independent['cosine']:.2f}" in words
    assert f"the plain average's {independent['cosine_average']:.2f}" in words
    card = " ".join((ROOT / "riemerge" / "card.py").read_text(encoding="utf-8").replace('"', " ").split())
    for name in ("mix", "lora_like", "independent"):
        assert f"{families[name]['update_apart']:.0%}".replace("%", " %") in card
        assert families[name]["cost_apart"] < 0.005
    # The verdict's thresholds lie between what was measured to be determined and what was not.
    assert families["close"]["update_apart"] < 1e-6


def test_how_it_scales_is_the_benchmark_s() -> None:
    found = json.loads(MERGE_LLAMA.read_text(encoding="utf-8"))
    words = " ".join(README.split())
    for name in ("default", "geomerge"):
        seconds, memory = (found["noise"][name][key] for key in ("seconds", "mib"))
        shown = "{median:.0f} s ({lowest:.0f}–{highest:.0f})".format(**seconds)
        assert f"{shown} with a peak of {memory['median']:.0f} MiB" in words
        assert f"{1 / found['ratios'][name]['floor']:.1f} times" in words
        assert f"{found['ratios'][name]['PEFT svd']:.0f} times as long" in words
    assert f"take {found['noise']['floor']['seconds']['median']:.1f} s" in words


def test_what_measures_a_mean_is_what_reports_say() -> None:
    assert f"`{MEASURE}`" in README


def test_what_merges_are_worth_is_the_benchmark_s() -> None:
    found = json.loads(NLI.read_text(encoding="utf-8"))
    assert between("nli") == overview(found) + "\n"
    words = " ".join(README.split())
    shares: dict[tuple[str, Any], list[str]] = {}
    for collection in ("shared", "own"):
        for entry in found["collections"][collection]["entries"]:
            if "method" in entry:
                shares.setdefault((entry["method"], entry["parameters"].get("rank")), []).append(
                    f"{entry['normalised']:.3f}"
                )
    cut = [(method, None) for method in ("spectrum", "average", "lowrank_mats", "geomerge")]
    for key in [*cut, ("average", "sum")]:
        assert " and ".join(shares[key]) in words
    run = found["machine"]["run"]
    assert run["measured"] == run["settings"] * len(found["collections"])
    assert f"all of it in {run['minutes']:.0f} minutes on two cores" in words
    # What the paragraph says of who wins.
    with_data = [one for one in found["contests"] if one["statistics"]]
    assert {one["ours"] for one in with_data} == {"lowrank_mats"}
    rivals = {one["theirs"].partition(":")[0] for one in with_data}
    assert rivals == {"average", "tsv", "iso_c", "core_ties", "regmean", "fisher"}
    assert all(one["low"] > 0 for one in with_data)
    named = [one["p"] for one in with_data if one["theirs"].partition(":")[0] not in {"regmean", "fisher"}]
    assert f"against each of these four p ≤ {number(max(named))}" in words
    for one in found["contests"]:
        if not one["statistics"] and one["rank"] and one["theirs"] == "average":
            assert one["ours"] == "spectrum"
            assert f"{one['value']:+.3f}, p = {number(one['p'])}, on `{one['collection']}`" in words
    # Whose share is how large: of the mean over both collections, of what no data has.
    of = {
        key: sum(map(float, one)) / len(one) for key, one in shares.items() if not METHODS[key[0]].statistics
    }
    assert of["spectrum", None] == max(of.values())
    assert sum(one < of["geomerge", None] for one in of.values()) <= len(of) / 10
    for (method, _), both in shares.items():
        if METHODS[method].mean.startswith("riemerge.methods.election:"):
            pairs = zip(both, shares["average", "sum"], strict=True)
            assert not all(float(one) > float(other) for one, other in pairs)
