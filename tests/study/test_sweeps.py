"""Sweeps are merges, one for each point of a grid."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from riemerge.errors import (
    AdapterError,
    NumericalError,
    OutputError,
    RecipeError,
    RiemergeError,
)
from riemerge.formats.dialects import read_adapter
from riemerge.merging.verbs import merge_adapters
from riemerge.progress import Progress
from riemerge.records.run_record import RunRecord
from riemerge.study.sweeps import grid, sweep
from tests.folders import content, family, listing, write_family, write_folder
from tests.study.inputs import (
    COUNT_MODELS,
    SHAPES,
    TENSORS,
    UNFIT,
    WHOLE,
    chosen_in,
    measured,
    python,
    run,
    same_updates,
    updates,
    write_checkpoints,
)


@pytest.mark.parametrize(("models", "steps"), [(2, 2), (2, 11), (2, 102), (2, 1001), (3, 5), (4, 4)])
def test_a_grid_has_every_point_of_the_simplex_once(models: int, steps: int) -> None:
    points = list(grid(models, steps))
    assert len({name for name, _ in points}) == len({weights for _, weights in points}) == len(points)
    assert len(points) == math.comb(steps + models - 2, models - 1)
    for _, weights in points:
        assert math.isclose(sum(weights), 1, rel_tol=1e-15)
        # A multiple of the step to the rounding of one division and one product.
        assert all(abs(weight * (steps - 1) - round(weight * (steps - 1))) < 1e-12 for weight in weights)


def test_names_of_a_grid() -> None:
    assert [name for name, _ in grid(2, 11)][:3] == ["0.00", "0.10", "0.20"]
    assert next(iter(grid(2, 11)))[1] == (1.0, 0.0)
    assert "0.50-0.25-0.25" in dict(grid(3, 5))
    names = [name for name, _ in grid(2, 102)]
    assert all(float(one) < float(other) for one, other in pairwise(names))


@pytest.mark.parametrize("method", ["slerp", "ties", "geomerge"])
def test_a_sweep_goes_from_one_model_to_the_other(folders: list[Path], tmp_path: Path, method: str) -> None:
    events: list[Progress] = []
    made = sweep(folders[:2], tmp_path / "out", 5, method=method, progress=events.append)
    assert [point.folder for point in made.points] == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert events == [Progress("sweep", place, 5, point.folder) for place, point in enumerate(made.points, 1)]
    assert same_updates(tmp_path / "out" / "0.00", folders[0])
    assert same_updates(tmp_path / "out" / "1.00", folders[1])
    merged = merge_adapters(folders[:2], [0.75, 0.25], method=method)
    merged.save_pretrained(tmp_path / "merged")
    assert content(tmp_path / "out" / "0.25") == content(tmp_path / "merged")


def test_a_model_alone_is_recorded_as_what_can_be_asked_for(folders: list[Path], tmp_path: Path) -> None:
    sweep(folders[:2], tmp_path / "out", 2, method="ties", density=0.5, scale=0.5, rank=2)
    record = RunRecord.model_validate_json((tmp_path / "out" / "0.00" / "riemerge.json").read_text())
    assert record.recipe["merge_method"] == "average"
    assert record.recipe["parameters"] == {"scale": 0.5, "rank": 2}
    assert read_adapter(tmp_path / "out" / "0.00").ranks == dict.fromkeys(SHAPES, 2)


def test_a_sweep_needs_the_folder_that_it_is_to_be_in(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="create it first"):
        sweep(folders[:2], tmp_path / "none" / "out", 2)


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return math.hypot(*(float(one.norm()) for one in tensors.values()))


def test_the_table_of_a_sweep_says_norms_and_distances(folders: list[Path], tmp_path: Path) -> None:
    made = sweep(folders[:3], tmp_path / "out", 3, scorer=lambda path: len(chosen_in(path)))
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == made.model_dump(mode="json")
    assert made.models == ("a", "b", "c")
    own = [updates(folder) for folder in folders]
    for point in made.points:
        merged = updates(tmp_path / "out" / point.folder)
        assert math.isclose(point.norm, norm(merged), rel_tol=1e-12)
        assert point.score == sum(weight > 0 for weight in point.weights)
        for weight, said, one in zip(point.weights, point.relative_distances, own, strict=False):
            assert (said is None) == (weight == 0)
            if said is not None:
                apart = norm({module: merged[module] - one[module] for module in one})
                # Distances are from inner products: good to half of the digits.
                assert math.isclose(said, apart / norm(one), abs_tol=1e-7)


def test_a_geodesic_sweep_says_distances_in_its_geometry(folders: list[Path], tmp_path: Path) -> None:
    made = sweep(folders[:2], tmp_path / "out", 3, method="geomerge")
    for point in made.points[1:2]:
        record = RunRecord.model_validate_json(
            (tmp_path / "out" / point.folder / "riemerge.json").read_text()
        )
        assert point.distances == record.totals.distances
        assert point.distances is not None


def test_a_sweep_of_checkpoints_with_their_base(tmp_path: Path) -> None:
    base, *paths = write_checkpoints(tmp_path, 3)
    sweep(paths, tmp_path / "out", 3, method="task_arithmetic", base_model=str(base))
    y, z = (load_file(path / WHOLE)["layers.0.q.weight"] for path in paths)
    for name, weight in ("0.00", 0.0), ("0.50", 0.5), ("1.00", 1.0):
        merged = load_file(tmp_path / "out" / name / WHOLE)["layers.0.q.weight"]
        # base + Σ wᵢ (xᵢ - base) in float64, rounded once to float32.
        assert torch.allclose(merged, (1 - weight) * y + weight * z, rtol=2e-7, atol=1e-7)


def test_a_broken_off_sweep_goes_on_to_the_same_bytes(folders: list[Path], tmp_path: Path) -> None:
    class BrokenOffError(Exception):
        pass

    def failing(path: Path) -> float:
        if path.name == "0.50":
            raise BrokenOffError
        return 1.0

    with pytest.raises(BrokenOffError):
        sweep(folders[:2], tmp_path / "out", 5, scorer=failing)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0.00", "0.25", "0.50"}
    first = {path: path.stat().st_mtime_ns for path in listing(tmp_path / "out")}
    sweep(folders[:2], tmp_path / "out", 5)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    sweep(folders[:2], tmp_path / "whole", 5)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    finer = sweep(folders[:2], tmp_path / "out", 9)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert len(finer.points) == 9


def other_method(folders: list[Path], _: Path) -> dict[str, Any]:
    return {"method": "multislerp"}


def other_scale(folders: list[Path], _: Path) -> dict[str, Any]:
    return {"scale": 0.5}


def other_type(folders: list[Path], _: Path) -> dict[str, Any]:
    return {"out_type": "delta"}


def other_dtype(folders: list[Path], _: Path) -> dict[str, Any]:
    return {"out_dtype": "float32"}


def other_files(folders: list[Path], _: Path) -> dict[str, Any]:
    shutil.rmtree(folders[0])
    write_folder(folders[0], family("close", 1, seed=5, shapes=SHAPES)[0])
    return {}


def other_order(folders: list[Path], _: Path) -> dict[str, Any]:
    folders.reverse()
    return {}


def other_folder(folders: list[Path], out: Path) -> dict[str, Any]:
    for path in out.glob("*.*/riemerge.json"):
        path.write_text("{}")
    return {}


OTHERS = (other_method, other_scale, other_type, other_dtype, other_files, other_order, other_folder)


@pytest.mark.parametrize("change", OTHERS, ids=lambda change: change.__name__)
def test_a_sweep_beside_other_merges_is_refused(
    folders: list[Path], tmp_path: Path, change: Callable[[list[Path], Path], dict[str, Any]]
) -> None:
    out, models = tmp_path / "out", folders[:2]
    sweep(models, out, 3)
    said = change(models, out)
    before = content(out), listing(out)
    with pytest.raises(OutputError, match="exists already") as caught:
        sweep(models, out, 5, **said)
    assert any("0.50" in problem for problem in caught.value.problems)
    assert (content(out), listing(out)) == before


@pytest.mark.parametrize("said", [{}, {"out_dtype": "bfloat16"}, {"method": "slerp"}])
def test_a_sweep_of_checkpoints_goes_on(tmp_path: Path, said: dict[str, Any]) -> None:
    paths = write_checkpoints(tmp_path, 2)
    sweep(paths, tmp_path / "out", 3, **said)
    before = content(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "0.50")
    sweep(paths, tmp_path / "out", 3, **said)
    assert content(tmp_path / "out") == before
    with pytest.raises(OutputError, match="exists already"):
        sweep(paths, tmp_path / "out", 3, **{**said, "out_dtype": "float16"})


@pytest.mark.parametrize(
    ("count", "steps", "said", "fault"),
    [
        (1, 3, {}, RecipeError),
        (2, 1, {}, RecipeError),
        (3, 3, {"method": "slerp"}, RecipeError),
        (2, 3, {"method": "slerp", "t": 0.5}, RecipeError),
        (2, 3, {"base_model": "base"}, RecipeError),
        (2, 3, {"folder": "b/out"}, OutputError),
        (2, 3, {"folder": "b/adapter_config.json"}, OutputError),
        (2, 3, {"missing": True}, AdapterError),
    ],
)
def test_a_sweep_that_makes_no_sense_writes_nothing(
    folders: list[Path],
    tmp_path: Path,
    count: int,
    steps: int,
    said: dict[str, Any],
    fault: type[RiemergeError],
) -> None:
    given = dict(said)
    if given.pop("missing", False):
        (folders[0] / TENSORS).unlink()
    target = tmp_path / given.pop("folder", "out")
    before = listing(tmp_path)
    with pytest.raises(fault):
        sweep(folders[:count], target, steps, **given)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("what", ["base_model", "statistics", "base's settings"])
def test_a_sweep_of_another_base_or_other_statistics_is_refused(tmp_path: Path, what: str) -> None:
    """What a merge reads beside its models decides its result as they do."""
    base, *paths = write_checkpoints(tmp_path, 3)
    said: dict[str, Any] = {"method": "task_arithmetic", "base_model": str(base)}
    (base / "config.json").write_text("{}")
    if what == "statistics":
        said = {"method": "fisher", "statistics": [measured(tmp_path / f"of {path.name}") for path in paths]}
    out = tmp_path / "out"
    sweep(paths, out, 3, **said)
    sweep(paths, out, 3, **said)
    if what == "base_model":
        (tmp_path / "others").mkdir()
        write_checkpoints(tmp_path / "others", 1, seed=7)
        shutil.copyfile(tmp_path / "others" / "x" / WHOLE, base / WHOLE)
    elif what == "statistics":
        shutil.rmtree(said["statistics"][1])
        measured(said["statistics"][1], seed=7)
    else:
        (base / "config.json").write_text('{"of": "another"}')
    before = content(out)
    with pytest.raises(OutputError, match="does not say this recipe and these files"):
        sweep(paths, out, 3, **said)
    assert content(out) == before


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("change", UNFIT, ids=lambda change: change.__name__)
def test_all_models_of_a_sweep_are_checked_before_any_is_merged(
    folders: list[Path], tmp_path: Path, change: Callable[[list[Path]], str], steps: int
) -> None:
    """At two steps no two of them are ever merged with each other."""
    why, before = change(folders), listing(tmp_path)
    ran = run("sweep", *folders[:2], "--steps", steps, "-o", tmp_path / "out")
    assert ran.exit_code == 4
    assert why in ran.stderr
    assert listing(tmp_path) == before


@pytest.mark.parametrize("rank", [None, 9, 1000])
def test_ranks_that_a_method_has_no_use_for_are_refused_before_any_merge(
    tmp_path: Path, rank: int | None
) -> None:
    paths = write_family(tmp_path, family("close", 1, rank=4))
    paths += [write_folder(tmp_path / "b", family("close", 1, rank=4 if rank else 5, seed=1)[0])]
    asked: dict[str, Any] = {} if rank is None else {"rank": rank}
    with pytest.raises(AdapterError if rank is None else RecipeError) as caught:
        sweep(paths, tmp_path / "out", 2, method="geomerge", **asked)
    words = {None: "the ranks differ (a 4, b 5)", 9: "give at most 4", 1000: "give at most 4"}
    assert words[rank] in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_do_not_fit_their_base_are_refused_at_two_steps_too(tmp_path: Path) -> None:
    paths = write_checkpoints(tmp_path, 2)
    (tmp_path / "base").mkdir()
    save_file({"other": torch.ones(2)}, tmp_path / "base" / WHOLE)
    with pytest.raises(AdapterError, match="lacks"):
        sweep(paths, tmp_path / "out", 2, method="task_arithmetic", base_model=str(tmp_path / "base"))
    assert not (tmp_path / "out").exists()


def test_sweep_as_a_command(folders: list[Path], tmp_path: Path) -> None:
    words = ("sweep", *folders[:2], "--steps", 3, "--method", "slerp", "-o", tmp_path / "out")
    ran = run(*words)
    assert ran.exit_code == 0, ran.output
    assert [line.split()[0] for line in ran.stdout.splitlines()[:3]] == ["0.00", "0.50", "1.00"]
    document = json.loads(run(*words, "--json", "--scorer", python(COUNT_MODELS, "")).stdout)
    assert [point["score"] for point in document["record"]["points"]] == [1, 2, 1]
    refused = run(*words, "--scale", 2)
    assert (refused.exit_code, refused.stdout) == (6, "")


def test_a_folder_that_comes_while_a_sweep_runs_is_never_touched(tmp_path: Path) -> None:
    """Planted by the scorer, as another process might: only merges of this sweep give way to new ones."""
    folders, root = write_family(tmp_path, family("close", 2)), tmp_path / "out"

    def scorer(folder: Path) -> float:
        (root / "1.00").mkdir(exist_ok=True)
        (root / "1.00" / "precious.txt").write_text("mine")
        return 1.0

    with pytest.raises(OutputError, match=r"1\.00"):
        sweep(folders, root, 3, scorer=scorer)
    assert (root / "1.00" / "precious.txt").read_text() == "mine"


def test_the_table_of_an_earlier_sweep_stays_until_a_longer_one_is_whole(tmp_path: Path) -> None:
    folders, root = write_family(tmp_path, family("close", 2)), tmp_path / "out"
    sweep(folders, root, 3, scorer=lambda _: 1.0)
    before = (root / "sweep.json").read_bytes()

    def fail(folder: Path) -> float:
        if folder.name == "0.25":
            raise NumericalError("no score")
        return 1.0

    with pytest.raises(NumericalError, match="no score"):
        sweep(folders, root, 5, scorer=fail)
    assert (root / "0.25").is_dir()
    assert (root / "sweep.json").read_bytes() == before
