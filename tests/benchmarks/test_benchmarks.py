"""The benchmarks work, their arithmetic is right, and the README shows what they found. No second decides."""

from __future__ import annotations

import ast
import json
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import collection, common, convergence, gauge, gpu, merge_llama, methods, primitives, scaling
from riemerge import frechet_mean, problems
from riemerge.frechet import Search, Solution, Status, TracePoint
from riemerge.manifolds import Stiefel
from riemerge.methods import METHODS
from tests.fake_cuda import fake_cuda
from tests.helpers import ROOT, random_orthonormal, seeded
from tests.planted_collection import Planted
from tests.study.comparisons import made_run

BENCHMARKS: dict[str, ModuleType] = {
    "merge_llama": merge_llama,
    "scaling": scaling,
    "collection": collection,
    "gpu": gpu,
    "primitives": primitives,
    "convergence": convergence,
    "methods": methods,
    "gauge": gauge,
}
README = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
NOT_YET = "Not measured yet."

# --- the commands -------------------------------------------------------------------------------------------


KEYS = {
    "merge_llama": {
        *("setting", "ended", "accuracy", "imports", "entrywise", "rivals", "noise", "times"),
        *("rivals_over_ours", "growth", *merge_llama.MEASURED),
    },
    "scaling": {"axes"},
    "collection": {"setting", "maps", "many"},
    "gpu": {"device", "setting", "parts"},
    "primitives": {"setting", "logs", "alignment", "growth", "decompositions"},
    "convergence": {"setting", "runs", "ends", "defaults"},
    "methods": {"setting", "riemerge", "PEFT", "mergekit"},
}
MACHINE = {"cpu", "cores", "system", "threads", "load", "versions"}


Quick = Callable[..., dict[str, Any]]


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Quick:
    """Runs a command, quick, in this process; its result has its keys, its tables and a picture."""
    pytest.importorskip("matplotlib")

    def run(name: str, *words: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, "--quick", "--out", str(tmp_path), *words])
        threads = torch.get_num_threads()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, and what a command of riemerge says to its user
            BENCHMARKS[name].main()
        torch.set_num_threads(threads)
        result: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        assert capsys.readouterr().out.strip() == BENCHMARKS[name].tables(result)
        assert set(result) == KEYS[name] | {"date", "quick", "machine", "goals"}
        assert result["quick"] is True
        assert set(result["machine"]) == MACHINE
        assert {"before", "after"} <= set(result["machine"]["load"]) <= {"before", "after", "of pieces"}
        assert result["goals"]
        assert all(set(goal) == {"goal", "bound", "found", "met"} for goal in result["goals"])
        assert not any(key.startswith("_") for key in keys(result))
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        return result

    return run


def keys(value: Any) -> set[str]:
    """Every key in nested containers."""
    if isinstance(value, Mapping):
        return set(value) | {key for one in value.values() for key in keys(one)}
    return {key for one in value for key in keys(one)} if isinstance(value, list) else set()


def test_a_command_prints_the_committed_tables() -> None:
    command = [sys.executable, "-m", "benchmarks.convergence", "--table"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads((common.RESULTS / "convergence.json").read_text(encoding="utf-8"))
    assert done.stdout.strip() == convergence.tables(result).strip()


@pytest.mark.oracle
def test_merge_llama_says_what_was_sampled_and_all_compute_what_they_mean(quick: Quick) -> None:
    result = quick("merge_llama")
    size = merge_llama.QUICK
    counts = sorted(layers * len(size.shapes) for layers in size.layers)
    for name in merge_llama.MEASURED:
        assert sorted(map(int, result[name])) == counts
    assert sum(sum(one["statuses"].values()) for one in result["ended"].values()) == counts[-1]
    assert set(result["ended"]) == set(merge_llama.FAMILIES)
    assert set(result["rivals"]) == set(merge_llama.RIVALS)
    for name, one in result["rivals"].items():
        assert one["extrapolated"] is True
        # float32 (6e-8) where the result is kept in it; PEFT keeps that of `cat` in the base's bfloat16.
        bound = 4e-3 if name == "PEFT cat" else 1e-5
        assert all(row["error"] < bound for row in merge_llama.sampled(one))
    shapes = {
        name: [row["shape"] for row in merge_llama.sampled(one)] for name, one in result["rivals"].items()
    }
    assert shapes["PEFT cat"] == [[24, 24], [24, 40]]
    assert shapes["PEFT svd"] == shapes["KnOTS"] == [[24, 24]]
    for name in merge_llama.ENTRYWISE:
        assert [row["shape"] for row in merge_llama.sampled(result["entrywise"][name])] == [
            [24, 24],
            [24, 40],
        ]
    # All three write float32, which holds 6e-8; the script in float32 loses a digit or two before.
    assert result["accuracy"]["average"]["most"] < 1e-7
    assert result["accuracy"]["script float64"]["most"] < 1e-7
    assert result["accuracy"]["script float32"]["most"] < 1e-5


def test_scaling_covers_its_axes(quick: Quick) -> None:
    result = quick("scaling")
    assert set(result["axes"]) == set(scaling.QUICK)
    for name, axis in scaling.QUICK.items():
        for method, points in axis.points.items():
            assert [row[name] for row in result["axes"][name]["rows"][method]] == list(points)
    below, above = result["axes"]["adapters"]["exponents"]["average"]
    assert (below, above) == ("T r up to the width", "T r from the width on")


def test_collection_finds_what_was_planted(quick: Quick) -> None:
    result = quick("collection")
    (one,) = result["maps"].values()
    assert {kind: row["planted"] for kind, row in one["found"].items()}.keys() == set(collection.KINDS)
    assert all(row["found"] == row["planted"] > 0 for row in one["found"].values())
    assert result["many"]["batch"]["merges"] == 12  # six pairs by two rows


def test_gpu_runs_where_there_is_none(quick: Quick) -> None:
    result = quick("gpu", "--device", "cpu")
    assert result["device"] == "cpu"
    assert set(result["parts"]) == {f"{x} {dtype}" for x in gpu.PARAMETERS for dtype in gpu.DTYPES}
    for part in result["parts"].values():
        assert "error" not in part
        assert part["whole"]["modules"] == part["whole"]["asked"] == 2
        assert part["apart"]["most"] < 1e-12  # it is the same device
        assert part["counted"]["operations"] > 100


@pytest.mark.oracle
def test_primitives_measures_every_piece(quick: Quick) -> None:
    result = quick("primitives")
    assert [one["pairs"] for one in result["logs"]] == ["near", "independent"]
    # Both are logarithms: exp reaches the other point, to the tolerance each has (geomstats' is 1e-8).
    assert all(one["error"] < 1e-12 and one["geomstats_error"] < 1e-7 for one in result["logs"])
    assert all(one["geomstats_length_over_ours"] > 1 - 1e-8 for one in result["logs"])
    assert set(result["growth"]) == {"width", "adapters", "rank", "modules"}
    for one in result["decompositions"]:
        assert set(one["phases"]) == {"start", "pass", "step", "certificate"}
        assert one["logs"]["needed"] <= one["logs"]["computed"]
        # None of size 2r while products are enough; of size r one for the core of every pair at least.
        assert 0 <= one["eigh_per_log"]["size 2r"] <= 3
        assert one["eigh_per_log"]["size r"] >= 0.5


@pytest.mark.slow
def test_convergence_covers_every_solver_and_the_stock_line_search(quick: Quick) -> None:
    result = quick("convergence")
    runs = result["runs"]
    assert {run["solver"] for run in runs} == {*convergence.COMPARED}
    assert {run["problem"] for run in runs} == {*convergence.QUICK.families, convergence.REAL}
    for run in runs:
        passes = [run["levels"][level]["passes"] for level in result["setting"]["levels"]]
        found = [x for x in passes if x is not None]
        assert found == sorted(found)  # a lower gradient is not met earlier
        assert passes[: len(found)] == found
        assert min(run["excess"]) >= 0
    starts = {(run["problem"], run["start_passes"]) for run in runs}
    assert len(starts) == len({problem for problem, _ in starts})  # one start for all solvers
    assert [row["cost_tol"] for row in result["defaults"]["rows"]][-2:] == ["0", "0, from the first adapter"]
    assert result["defaults"]["rows"][-2]["update_apart"] == 0


@pytest.mark.oracle
def test_methods_says_what_was_sampled(quick: Quick) -> None:
    result = quick("methods")
    size = methods.QUICK
    assert tuple(result["riemerge"]) == size.ours
    assert set(result["PEFT"]) == set(size.peft)
    for name, one in result["riemerge"].items():
        assert one["extrapolated"] is (METHODS[name].domain == "entries" or bool(METHODS[name].statistics))
    shapes = {
        name: [row["shape"] for row in merge_llama.sampled(one)]
        for tool in ("riemerge", "PEFT")
        for name, one in result[tool].items()
        if one["extrapolated"]
    }
    whole = [[24, 24], [24, 40]]
    # No shape of the model is that of the adapters that have statistics.
    assert shapes == {"ties": [[24, 24]], "fisher": [], "regmean": [], "linear": whole, "svd": [[24, 24]]}


def test_every_row_has_a_figure() -> None:
    assert methods.FULL.ours == tuple(METHODS)


def test_no_result_of_a_quick_run_is_committed() -> None:
    for name in BENCHMARKS:
        path = common.RESULTS / f"{name}.json"
        assert not path.exists() or json.loads(path.read_text(encoding="utf-8"))["quick"] is False


# --- the README ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_readme_shows_the_tables_of_the_committed_result(name: str) -> None:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", README, flags=re.DOTALL)
    assert found is not None
    path = common.RESULTS / f"{name}.json"
    expected = BENCHMARKS[name].tables(json.loads(path.read_text("utf-8"))) if path.exists() else NOT_YET
    assert found.group(1).strip() == expected.strip()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_readme_names_the_command(name: str) -> None:
    assert f"`python -m benchmarks.{name}`" in README


# --- what they have in common -------------------------------------------------------------------------------


def test_an_exponent_is_that_of_the_larger_half() -> None:
    sizes = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    cost = [5.0, 5.0, 5.0, *(size**1.5 for size in sizes[3:])]  # a call costs 5, whatever the size
    assert common.exponent(sizes, cost) == pytest.approx(1.5)
    assert common.exponent(sizes[::-1], cost[::-1]) == pytest.approx(1.5)
    assert common.exponent([3, 6], [1, 8]) == pytest.approx(3)


def test_noise() -> None:
    found = common.noise([3.0, 1.0, 2.0])
    assert found == {"median": 2.0, "lowest": 1.0, "highest": 3.0, "spread": 1.0, "repeats": 3}


def test_repeats_of_several_tasks_are_in_turn() -> None:
    calls: list[str] = []
    found = common.interleaved({name: partial(calls.append, name) for name in "ab"}, 3)
    assert "".join(calls) == "ab" * 4  # the first of each is not measured
    assert found["a"]["repeats"] == found["b"]["repeats"] == 3


def test_a_goal_is_met_within_its_bound_only() -> None:
    assert common.goal("x", 2.0, at_most=2.0)["met"]
    assert not common.goal("x", 2.1, at_most=2.0)["met"]
    assert common.goal("x", 2.0, at_least=2.0)["met"]
    assert not common.goal("x", 1.9, at_least=2.0)["met"]
    assert not common.goal("x", None, at_most=2.0)["met"]
    assert not common.goal("x", math.nan, at_most=2.0)["met"]


def test_a_process_is_watched_from_outside() -> None:
    hold = "x = bytearray(300 << 20); n = sum(range(10**7)); import time; time.sleep(0.2); print(n)"
    ran = common.watch([sys.executable, "-c", hold])
    assert int(ran.printed) == sum(range(10**7))
    assert 300 <= ran.mib < 400
    assert ran.cpu > 0
    assert ran.seconds > 0.2
    ask = "import os; print(os.environ.get('OMP_NUM_THREADS'))"
    assert common.watch([sys.executable, "-c", ask], threads=1).printed == "1\n"
    assert common.watch([sys.executable, "-c", ask]).printed == "None\n"
    with pytest.raises(RuntimeError, match="ended with 3"):
        common.watch([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_command_runs_in_this_process_where_that_is_asked_for(tmp_path: Path) -> None:
    asked = "benchmarks.floor", tmp_path / "no.safetensors", tmp_path / "out"
    with pytest.raises(FileNotFoundError):
        common.launch(*asked, apart=False)
    ran = common.launch(common.RIEMERGE, "--version", apart=False)
    assert "riemerge" in ran.printed
    assert ran.mib > 100  # torch is in this process
    with pytest.raises(RuntimeError, match=r"ended with 2: [\s\S]*No such command"):
        common.launch(common.RIEMERGE, "mend", apart=False)


def test_a_piece_is_measured_once_and_left_out_where_it_is_not_asked_for(tmp_path: Path) -> None:
    first = common.Run(quick=True, folder=tmp_path / "one")
    assert first.piece("round 1", max, 3, 5) == 5
    assert first.files("inputs", lambda folder: folder.mkdir()) == tmp_path / "files" / "inputs"
    again = common.Run(quick=True, folder=tmp_path / "one", parts=["round", "x"])
    assert again.piece("round 1", pytest.fail) == 5  # kept
    assert again.piece("growth 1", pytest.fail) is None  # not asked for
    assert again.piece("x 2", lambda: {"a": [1.5]}) == {"a": [1.5]}
    assert again.files("inputs", lambda folder: pytest.fail(str(folder))).is_dir()
    assert len(again.loads) == 2
    late = common.Run(quick=True, folder=tmp_path / "one", minutes=-1)
    assert late.piece("round 1", pytest.fail) == 5
    assert late.piece("round 2", pytest.fail) is None
    with pytest.raises(ZeroDivisionError):
        again.piece("x 3", lambda: 1 / 0)
    assert again.piece("x 3", lambda: 7) == 7  # what failed is no piece


def test_tables_go_between_their_marks() -> None:
    page = "a\n<!-- x -->\nold\nlines\n<!-- /x -->\n<!-- y -->\nkept\n<!-- /y -->"
    assert common.paste(page, "x", r"new \1") == page.replace("old\nlines", r"new \1")
    assert common.tables_of((["h"], [["1"]]), (["empty"], [])) == common.markdown(["h"], [["1"]])


def test_what_is_missing_is_none() -> None:
    assert common.dig({"a": {"b": 1}}, "a", "b") == 1
    assert common.dig({"a": None}, "a", "b", "c") is None
    assert common.ratio(6.0, 3.0) == 2
    assert common.ratio(None, 3.0) is common.ratio(3.0, None) is None


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0"), (1234.5, "1.23e+03"), (2e-4, "2.0e-04")]
)
def test_numbers_of_a_table(value: float | None, text: str) -> None:
    assert common.number(value) == text


# --- merge_llama --------------------------------------------------------------------------------------------


def test_seconds_of_shapes_that_were_not_measured_follow_their_cost() -> None:
    counts = {(4, 8): 3, (8, 8): 2, (8, 16): 5, (16, 8): 1}
    measured = {(4, 8): {"seconds": 1.0, "mib": 10.0}, (8, 8): {"seconds": 10.0, "mib": 20.0}}
    found = merge_llama.extrapolate(measured, counts)
    # 8 x 8 is nearest to both: 512 flops against their 1024, and a transpose costs the same.
    assert [row["seconds"] for row in found["rows"]] == pytest.approx([1, 10, 20, 20])
    assert found["seconds"] == pytest.approx(3 * 1 + 2 * 10 + 5 * 20 + 1 * 20)
    assert [row["shape"] for row in merge_llama.sampled(found)] == [[4, 8], [8, 8]]
    assert found["mib"] == 20
    assert found["extrapolated"] is True
    # Two updates side by side: 8 x 16 is decomposed as 8 x 32.
    pair = merge_llama.extrapolate(
        {(8, 8): {"seconds": 10.0, "mib": 1.0}},
        {(8, 8): 1, (8, 16): 1, (32, 8): 1},
        lambda shape: merge_llama.flops((shape[0], 2 * shape[1])),
    )
    assert [row["seconds"] for row in pair["rows"]] == pytest.approx([10, 20, 80])


def test_a_start_is_counted_once() -> None:
    counts = {(4, 8): 3, (8, 8): 2, (16, 8): 5}
    measured = {(4, 8): {"seconds": 3.0, "mib": 10.0}, (8, 8): {"seconds": 4.0, "mib": 20.0}}
    found = merge_llama.extrapolate(measured, counts, merge_llama.entries, start=2.0)
    # One start; the module of 16 x 8, not measured, takes twice the 4 - 2 seconds of the one of 8 x 8.
    assert found["seconds"] == pytest.approx(2 + 3 * 1 + 2 * 2 + 5 * 4)
    # A start that took longer than a sample makes no module cheaper than nothing.
    assert merge_llama.extrapolate(measured, {(4, 8): 9}, start=5.0)["seconds"] == 5


def test_the_modules_of_a_llama() -> None:
    size = merge_llama.FULL
    assert sum(size.counts.values()) == 224
    assert [layers * len(size.shapes) for layers in size.layers] == [28, 112, 224]
    assert size.counts[4096, 4096] == size.counts[1024, 4096] == size.counts[14336, 4096] == 64
    # r (m + n) for each module: rank 16 on all linear layers of Llama-3-8B has 41.9 million parameters.
    parameters = sum(size.rank * (m + n) * count for (m, n), count in size.counts.items())
    assert parameters == 41_943_040
    layers = [merge_llama.family_of(f"model.layers.{i}.mlp.up_proj") for i in range(5)]
    assert layers == [*merge_llama.FAMILIES, merge_llama.FAMILIES[0]]


@pytest.fixture
def factors() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = seeded(3)
    return [
        (torch.randn(12, 3, generator=generator), torch.randn(3, 9, generator=generator)) for _ in range(4)
    ]


def test_the_rivals_compute_what_their_papers_say(factors: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    mean = np.mean([(b @ a).double().numpy() for b, a in factors], axis=0)
    u, s, vt = np.linalg.svd(mean)
    best = (u[:, :3] * s[:3]) @ vt[:3]
    # float32 all through
    assert np.allclose(merge_llama.truncated_svd(factors), best, rtol=0, atol=1e-5)
    assert np.allclose(merge_llama.knots(factors), mean, rtol=0, atol=1e-5)
    assert np.allclose(merge_llama.knots(factors, torch.float64), mean, rtol=0, atol=1e-5)
    assert not np.allclose(best, mean, rtol=0, atol=1e-2)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    modules = merge_llama.make_modules(merge_llama.QUICK)
    return merge_llama.write_folders(tmp_path / "in", modules)


def test_the_floor_reads_and_writes_as_many_bytes_as_a_merge(folders: list[Path], tmp_path: Path) -> None:
    common.launch("benchmarks.floor", *folders, tmp_path / "out", apart=False)
    one = load_file(folders[0] / merge_llama.TENSORS)
    out = load_file(tmp_path / "out" / merge_llama.TENSORS)
    assert {key: (x.shape, x.dtype) for key, x in out.items()} == {
        key: (x.shape, x.dtype) for key, x in one.items()
    }
    # One Gram matrix and one product a side, which bfloat16 keeps to 2^-8.
    for key in out:
        axis = 1 if "lora_B" in key else 0
        factors = [load_file(folder / merge_llama.TENSORS)[key].double().numpy() for folder in folders]
        tall = np.moveaxis(np.concatenate(factors, axis=axis), axis, 1)
        gram = tall.T @ tall
        product = np.moveaxis(tall @ gram[:, : merge_llama.QUICK.rank] / np.linalg.norm(gram), 1, axis)
        assert np.allclose(out[key].double().numpy(), product, rtol=2**-8, atol=1e-5)


def test_the_script_is_the_truncated_average_and_has_twenty_lines(
    folders: list[Path], tmp_path: Path
) -> None:
    common.launch("benchmarks.short_script", "float64", *folders, tmp_path / "out", apart=False)
    rank, inputs = merge_llama.QUICK.rank, merge_llama.read_all(folders)
    for module, ((b, a),) in merge_llama.read_all([tmp_path / "out"]).items():
        mean = torch.stack([one @ other for one, other in inputs[module]]).mean(dim=0)
        u, s, vt = torch.linalg.svd(mean)
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        assert float((b @ a - best).norm() / best.norm()) < 2**-7  # two factors in bfloat16
    assert (tmp_path / "out" / "adapter_config.json").exists()
    text = (ROOT / "benchmarks" / "short_script.py").read_text(encoding="utf-8")
    (body,) = (x for x in ast.parse(text).body if isinstance(x, ast.FunctionDef))
    assert body.end_lineno is not None
    assert body.end_lineno - body.lineno <= 20


def test_growth_is_between_the_fewest_and_the_most_modules() -> None:
    runs = {
        "28": [{"seconds": 3.0, "cpu": 4.0, "mib": 500.0}, {"seconds": 5.0, "cpu": 4.0, "mib": 500.0}],
        "112": [{"seconds": 99.0, "cpu": 99.0, "mib": 99.0}],
        "228": [{"seconds": 14.0, "cpu": 24.0, "mib": 520.0}],
    }
    found = merge_llama.growth(runs)
    assert found == pytest.approx({"seconds_per_module": 0.05, "cpu_per_module": 0.1, "mib_per_module": 0.1})


# --- methods ------------------------------------------------------------------------------------------------


def test_peers_are_named_as_they_are() -> None:
    assert set(methods.PEERS) <= set(METHODS)
    peft, mergekit = ({pair[i] for pair in methods.PEERS.values()} - {None} for i in (0, 1))
    assert peft == {kind for kind in gauge.PEFT if kind == "cat" or kind.endswith("svd")}
    assert mergekit == set(gauge.MERGEKIT)


# --- collection ---------------------------------------------------------------------------------------------


def test_what_was_planted_and_is_not_said_counts_as_missed() -> None:
    planted = Planted([], [{"a", "b"}, {"c", "d"}], {"a1": "a"}, {"a2": "a"}, {"c3": "c"}, {"s"}, {"l"})

    def repetition(name: str, likeness: str) -> dict[str, str]:
        return {"name": name, "likeness": likeness}

    record: dict[str, Any] = {
        "copies": [
            {"kept": "a", "repetitions": [repetition("a1", "copy"), repetition("a2", "refactored")]},
            {"kept": "c", "repetitions": [repetition("c3", "scaled")]},
        ],
        "clusters": [
            {"kind": "family", "members": ["a", "a1", "a2", "b"]},
            {"kind": "family", "members": ["c", "c3", "d"]},
            {"kind": "alone", "members": ["s"]},
        ],
        "outliers": [
            {"name": "s", "measure": "direction"},
            *({"name": "l", "measure": measure} for measure in ("direction", "norm")),
        ],
    }
    found = collection.found_of(planted, record)
    assert all(
        row == {"planted": row["planted"], "found": row["planted"], "more": 0} for row in found.values()
    )
    assert [found[kind]["planted"] for kind in collection.KINDS] == [1, 1, 1, 2, 2, 1]
    # A copy of the wrong adapter, a family with a member too many, an outlier that is none.
    record["copies"][0]["repetitions"].pop()
    record["copies"][1]["repetitions"].append(repetition("a2", "refactored"))
    record["clusters"][1]["members"].append("s")
    record["outliers"] += [{"name": "b", "measure": "norm"}]
    found = collection.found_of(planted, record)
    assert found["copies"] == {"planted": 1, "found": 1, "more": 0}
    assert found["refactored"] == {"planted": 1, "found": 0, "more": 1}
    assert found["families"] == {"planted": 2, "found": 1, "more": 1}
    assert found["loud"] == {"planted": 1, "found": 1, "more": 1}


# --- gpu ----------------------------------------------------------------------------------------------------


def test_merges_stay_on_their_device_and_results_come_back_after_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every = gpu.make_modules(gpu.SMALL, torch.device("cpu"))
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**20)
    for method in ("spectrum", "ties"):
        expected = dict(gpu.merge(method, every))
        with fake_cuda():
            modules = gpu.moved(every, torch.device("cuda"), torch.float64, 1)
            assert all(update.B.device.type == "cuda" for _, update in gpu.merge(method, modules))
            row, results = gpu.timed(method, modules, math.inf)
        assert row["mib"] == 1
        assert row["modules"] == len(every)
        for name, update in results.items():
            assert type(update.B) is torch.Tensor
            assert update.distance(expected[name]) < 1e-10 * expected[name].norm()


def test_a_merge_ends_when_its_time_is_up() -> None:
    every = gpu.make_modules(gpu.SMALL, torch.device("cpu"))
    row, results = gpu.timed("ties", every, -math.inf)
    assert (row["modules"], row["asked"]) == (len(results), len(every)) == (1, 2)


# --- primitives ---------------------------------------------------------------------------------------------


def test_the_closed_exponential_is_a_geodesic_of_the_canonical_metric() -> None:
    """Oracle for the oracle: d/dt exp(t v) = v at 0, the end is a frame, and half of the way twice is the
    way."""
    generator = seeded(1)
    u = random_orthonormal(12, 3, generator)
    noise = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    vector = Stiefel(12, 3).projection(u[None], noise[None])[0].numpy()
    end = primitives.closed_exp(u.numpy(), vector)
    assert np.allclose(end.T @ end, np.eye(3), atol=1e-13)
    step = 1e-6
    ahead, behind = (primitives.closed_exp(u.numpy(), sign * step * vector) for sign in (1, -1))
    assert np.allclose((ahead - behind) / (2 * step), vector, atol=1e-8)  # a central difference: step²
    flipped = primitives.closed_exp(u.numpy() @ np.diag([1, -1, 1]), vector @ np.diag([1, -1, 1]))
    assert np.allclose(flipped, end @ np.diag([1, -1, 1]), atol=1e-13)


def test_the_ruler_of_accuracy_sees_an_error_of_a_logarithm() -> None:
    u, y = primitives.pairs(24, 4, 3, "independent")
    tangent = Stiefel(24, 4, k=3).logarithm(u, y).tangent
    assert primitives.accuracy(u, y, tangent) < 1e-11
    wrong = tangent.clone()
    wrong[2, 0, 0] += 1e-6
    assert primitives.accuracy(u, y, wrong) > 1e-7


def test_near_pairs_are_one_apart() -> None:
    u, y = primitives.pairs(24, 4, 3, "near")
    assert torch.allclose(Stiefel(24, 4, k=3).dists(u, y), torch.ones(3, dtype=torch.float64))


def test_decompositions_are_counted_by_matrix_kind_size_and_phase() -> None:
    phases = ["step"]
    x = torch.randn(5, 2, 4, 4, generator=seeded(0), dtype=torch.float64)
    symmetric = x @ x.mT + torch.eye(4, dtype=x.dtype)
    with primitives.Decompositions(phases) as counter:
        torch.linalg.eigh(symmetric)
        torch.linalg.eigvalsh(symmetric[0])
        phases.append("pass")
        torch.linalg.svd(x[0, :, :, :3])
        torch.linalg.qr(x[..., :1])
        torch.linalg.cholesky(symmetric[0, 0])
        torch.linalg.solve(symmetric[0], x[0])
        torch.linalg.det(symmetric)
        torch.matrix_exp(x)  # decomposes nothing
    assert counter.counts == {
        ("step", "eigh", 4): 12,
        ("pass", "svd", 3): 2,
        ("pass", "qr", 1): 10,
        ("pass", "cholesky", 4): 1,
        ("pass", "solve", 4): 2,
        ("pass", "det", 4): 10,
    }


def test_every_pass_of_a_solve_is_seen_and_those_of_the_start_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = problems.family("close", 3, 12, 10, 2, 2)

    def start_of_three_passes(self: Search) -> torch.Tensor:
        candidates = [self.form.start(None) for _ in range(3)]
        for one in candidates:
            self.evaluate(one)
        return candidates[-1]

    monkeypatch.setattr(Search, "start", start_of_three_passes)
    seen: list[primitives.Pass] = []
    phases = ["step"]
    with primitives.watched(seen.append, phases):
        solution = frechet_mean(problem)
    assert solution.passes > 3
    assert [one.of_start for one in seen] == [True] * 3 + [False] * (solution.passes - 3)
    assert seen[0].modules == 2
    assert phases == ["step"]


def test_a_solve_is_left_after_the_passes_that_were_asked_for() -> None:
    problem = problems.family("mix", 3, 12, 10, 2, 1)
    seen: list[primitives.Pass] = []
    with primitives.watched(seen.append):
        found = primitives.solve_passes(problem, 3)
    assert set(found) == {"start", "pass"}
    # The last accepted iterate may have taken some trials.
    assert 3 <= sum(not one.of_start for one in seen) <= 3 + 5


def test_a_problem_embedded_in_wider_space_is_the_same_problem() -> None:
    problem = problems.family("mix", 3, 9, 9, 3, 2)
    wide = primitives.embedded(problem, 40)
    assert wide.manifold.point_shape == (83, 3)
    for one, other in zip(problem.points[1:], wide.points[1:], strict=True):
        expected = problem.manifold.total.dists(problem.points[0], one)
        assert torch.allclose(wide.manifold.total.dists(wide.points[0], other), expected, atol=1e-10)


# --- convergence --------------------------------------------------------------------------------------------


def test_a_level_is_reached_at_the_first_iterate_at_which_all_modules_are_below_it() -> None:
    run = made_run("x", [9, 9, 9]).model_copy(
        update={
            "trace": {"passes": (4, 5, 8, 9), "seconds": (0.4, 0.5, 0.8, 0.9)},
            "trace_gradient": ((1.0, 2.0), (0.1, 1.0), (0.2, 0.01), (0.001, 0.01)),
        }
    )
    assert convergence.reached(run, [0.1, 0.02]) == {"passes": 8, "seconds": 0.8}
    assert convergence.reached(run, [1e-3, 1e-3]) == {"passes": None, "seconds": None}


def test_passes_of_a_module_end_when_it_is_finished() -> None:
    trace = tuple(
        TracePoint(passes, passes / 10, np.ones(2), np.ones(2), active)
        for passes, active in ((4, 2), (5, 2), (8, 1), (10, 0))
    )
    fields: dict[str, Any] = dict.fromkeys(Solution.__dataclass_fields__)
    solution = Solution(**(fields | {"status": (Status.CONVERGED,) * 2, "trace": trace}))
    # One leaves after pass 8, the other after pass 10.
    assert convergence.passes_of_a_module(solution) == (8 + 10) / 2
