"""Soups are those that a written-out search finds; sweeps are merges, one for each point of a grid."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from riemerge.cli.commands import main
from riemerge.errors import (
    AdapterError,
    NumericalError,
    OutputError,
    RecipeError,
    ResourceError,
    RiemergeError,
)
from riemerge.formats.peft import read_adapter
from riemerge.merging.verbs import merge_adapters, merge_into
from riemerge.progress import Progress
from riemerge.recipes.recipe import read_recipe
from riemerge.records.run_record import RunRecord
from riemerge.statistics import collect_statistics
from riemerge.study.scorer import command_scorer
from riemerge.study.soups import greedy_soup
from riemerge.study.sweeps import grid, sweep
from tests.folders import content, family, listing, write_family, write_folder
from tests.helpers import ROOT

SHAPES = {"layers.0.q": (8, 6), "layers.1.q": (5, 9)}
TENSORS, WHOLE = "adapter_model.safetensors", "model.safetensors"


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return write_family(tmp_path, family("close", 4, shapes=SHAPES))


def write_checkpoints(root: Path, count: int, seed: int = 0) -> list[Path]:
    """Checkpoints of a matrix, a vector and integers, in folders x, y, z."""
    draw, paths = torch.Generator().manual_seed(seed), []
    for name in "xyz"[:count]:
        (root / name).mkdir()
        tensors = {
            "layers.0.q.weight": torch.randn(5, 4, generator=draw),
            "layers.0.norm.weight": torch.randn(4, generator=draw),
            "ids": torch.arange(3),
        }
        save_file(tensors, root / name / WHOLE)
        paths.append(root / name)
    return paths


def chosen_in(folder: Path) -> str:
    """The names of the models that a merged folder is of, put together."""
    record = RunRecord.model_validate_json((folder / "riemerge.json").read_text())
    return "".join(sorted(row.name for row in record.inputs if row.share > 0))


def by_table(scores: Mapping[str, float]) -> Callable[[Path], float]:
    return lambda folder: scores[chosen_in(folder)]


def updates(folder: Path) -> dict[str, torch.Tensor]:
    adapter = read_adapter(folder)
    return {module: adapter.update(module).dense() for module in adapter.modules}


def same_updates(one: Path, other: Path) -> bool:
    left, right = updates(one), updates(other)
    # A product of balanced factors in float64, each from an SVD of its own.
    return all(torch.allclose(left[module], right[module], rtol=0, atol=1e-13) for module in left | right)


# --- soups --------------------------------------------------------------------------------------------------

# b is best; a is as good as d and before it; a does not help b, d does not hurt, c helps.
SCORES = {"a": 2, "b": 3, "c": 1, "d": 2, "ab": 2.5, "bd": 3, "bcd": 3.25}


def test_a_soup_takes_what_does_not_lower_its_score(folders: list[Path], tmp_path: Path) -> None:
    seen: list[Progress] = []
    made = greedy_soup(folders, tmp_path / "out", by_table(SCORES), progress=seen.append)
    assert made.chosen == ("b", "d", "c")
    assert made.score == 3.25
    assert [(" ".join(trial.models), trial.score) for trial in made.trials] == [
        ("a", 2),
        ("b", 3),
        ("c", 1),
        ("d", 2),
        ("b a", 2.5),
        ("b d", 3),
        ("b d c", 3.25),
    ]
    assert [event.text for event in seen] == [
        f"{' + '.join(trial.models)}: score {trial.score:g}" for trial in made.trials
    ]
    assert [(event.stage, event.done, event.total) for event in seen] == [
        ("soup", place, 7) for place in range(1, 8)
    ]
    assert json.loads((tmp_path / "out" / "soup.json").read_text()) == made.model_dump(mode="json")


def searched(scores: Mapping[str, float], names: str) -> str:
    """The soup of a search by sets of names: recipe 1 of the paper, word by word."""
    soup = ""
    for name in sorted(names, key=lambda name: scores[name], reverse=True):
        mixed = "".join(sorted(soup + name))
        if not soup or scores[mixed] >= scores[soup]:
            soup = mixed
    return soup


@pytest.mark.parametrize("seed", range(3))
def test_a_soup_is_the_one_that_a_search_finds(folders: list[Path], tmp_path: Path, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    sets = ["".join(n for i, n in enumerate("abcd") if code >> i & 1) for code in range(1, 16)]
    # Of three values, so that many are equal; and larger sets are better a little more often than not.
    scores = {one: int(torch.randint(3, (), generator=draw)) + len(one) // 3 for one in sets}
    made = greedy_soup(folders, tmp_path / "out", by_table(scores))
    found = searched(scores, "abcd")
    assert "".join(sorted(made.chosen)) == chosen_in(tmp_path / "out") == found
    assert made.score == scores[found] >= max(scores[name] for name in "abcd")


@pytest.mark.parametrize("method", ["average", "geomerge", "ties", "consensus"])
def test_a_soup_is_the_merge_of_its_models(folders: list[Path], tmp_path: Path, method: str) -> None:
    said: dict[str, Any] = {"scale": 0.5, "out_dtype": "float32"}
    greedy_soup(folders, tmp_path / "out", by_table(SCORES), method=method, **said)
    merged = merge_adapters([folders[i] for i in (3, 1, 2)], method=method, **said)
    merged.save_pretrained(tmp_path / "merged")
    assert (tmp_path / "out" / TENSORS).read_bytes() == (tmp_path / "merged" / TENSORS).read_bytes()


def test_the_same_soup_has_the_same_bytes_in_any_order(folders: list[Path], tmp_path: Path) -> None:
    scores = SCORES | {"d": 1.5, "c": 1}  # no two models alike
    for name, models in ("one", folders), ("two", folders), ("three", folders[::-1]):
        greedy_soup(models, tmp_path / name, by_table(scores))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert (tmp_path / "one" / TENSORS).read_bytes() == (tmp_path / "three" / TENSORS).read_bytes()


@pytest.mark.parametrize("method", ["average", "ties", "geomerge"])
def test_a_soup_of_one_is_the_model_itself(folders: list[Path], tmp_path: Path, method: str) -> None:
    made = greedy_soup(folders, tmp_path / "out", lambda folder: -len(chosen_in(folder)), method=method)
    assert made.chosen == ("a",)
    assert same_updates(tmp_path / "out", folders[0])
    greedy_soup(folders[1:2], tmp_path / "one", lambda _: 0.0, method=method)
    assert same_updates(tmp_path / "one", folders[1])


def test_the_scorer_sees_what_is_written_and_leaves_nothing_in_it(
    folders: list[Path], tmp_path: Path
) -> None:
    seen: dict[str, dict[str, bytes]] = {}

    def scorer(folder: Path) -> float:
        # On the disk of the output, one at a time.
        assert folder.parent.parent == tmp_path
        assert [*folder.parent.iterdir()] == [folder]
        seen[chosen_in(folder)] = content(folder)
        (folder / "cache").write_text("of the scorer")
        return SCORES[chosen_in(folder)]

    greedy_soup(folders, tmp_path / "out", scorer, out_type="delta")
    assert {"soup.json", *seen["bcd"]} == {*content(tmp_path / "out")}
    assert seen["bcd"].items() <= content(tmp_path / "out").items()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c", "d", "out"}


def test_a_soup_of_checkpoints(tmp_path: Path) -> None:
    paths = write_checkpoints(tmp_path, 3)
    scores = {"x": 1, "y": 2, "z": 3, "yz": 1, "xz": 4}
    made = greedy_soup(paths, tmp_path / "out", by_table(scores))
    assert made.chosen == ("z", "x")
    x, z, out = (load_file(folder / WHOLE) for folder in (paths[0], paths[2], tmp_path / "out"))
    for name in ("layers.0.q.weight", "layers.0.norm.weight"):
        # One rounding to float32.
        assert torch.allclose(out[name], (x[name] + z[name]) / 2, rtol=1e-7, atol=0)
    assert torch.equal(out["ids"], x["ids"])


@pytest.mark.parametrize("given", [math.nan, math.inf, -math.inf, None, "good"])
def test_what_is_no_score_is_refused(folders: list[Path], tmp_path: Path, given: Any) -> None:
    before = listing(tmp_path)
    with pytest.raises(NumericalError, match=r"the score of b is .*: expected a finite number"):
        greedy_soup(folders, tmp_path / "out", lambda path: given if chosen_in(path) == "b" else 1)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({"method": "ema"}, RecipeError),
        ({"method": "slerp"}, RecipeError),
        ({"method": "nuslerp"}, RecipeError),
        ({"weight": 2.0}, RecipeError),
        ({"t": 0.5, "method": "slerp"}, RecipeError),
        ({"density": 0.5}, RecipeError),
        ({"folder": "a"}, OutputError),
        ({"folder": "a/out"}, OutputError),
    ],
)
def test_a_soup_that_makes_no_sense_is_refused_before_any_score(
    folders: list[Path], tmp_path: Path, said: dict[str, Any], fault: type[RiemergeError]
) -> None:
    before = listing(tmp_path)
    target = tmp_path / said.pop("folder", "out")
    with pytest.raises(fault):
        greedy_soup(folders, target, lambda _: pytest.fail("was asked for a score"), **said)
    assert listing(tmp_path) == before


# --- scorers from the command line --------------------------------------------------------------------------


def python(code: str) -> str:
    return f"'{sys.executable}' -c '{code}' {{}}"


def test_a_command_scores_by_its_last_line_without_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "two words; $(touch made)"
    folder.mkdir()
    code = 'import os, sys; print("loading"); print(0.25 + os.path.isdir(sys.argv[1])); print()'
    assert command_scorer(python(code))(folder) == 1.25
    inside = f"'{sys.executable}' -c 'import sys; print(len(sys.argv[1]))' --model={{}}"
    assert command_scorer(inside)(folder) == len(f"--model={folder}")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            'import sys; print(1); print("a\\nno memory", file=sys.stderr); sys.exit(3)',
            "exit code 3.*no memory",
        ),
        ('print(1); print("done")', "exit code 0, last line 'done'"),
        ("", "last line ''"),
    ],
)
def test_a_command_without_a_score_is_one_error(tmp_path: Path, code: str, words: str) -> None:
    with pytest.raises(ResourceError, match=words) as caught:
        command_scorer(python(code))(tmp_path)
    assert len(caught.value.problems) == 1
    assert "\n" not in caught.value.problems[0]


def test_a_command_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="no-such-program: cannot be run"):
        command_scorer("no-such-program {}")(tmp_path)
    for command in ("evaluate", "", "evaluate 'open {}"):
        with pytest.raises(RecipeError):
            command_scorer(command)


# --- sweeps -------------------------------------------------------------------------------------------------


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


# --- what is there already is checked, file by file ---------------------------------------------------------

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


def measured(folder: Path, seed: int = 0) -> Path:
    """Statistics of the matrix of `write_checkpoints`."""
    torch.manual_seed(seed)
    model = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleList([torch.nn.ModuleDict({"q": torch.nn.Linear(4, 5)})])}
    )

    def loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
        squares: torch.Tensor = model["layers"][0]["q"](batch).square()
        return squares.mean(dim=1)

    collect_statistics(model, [torch.randn(3, 4)], loss, folder)
    return folder


# --- all are checked before any is merged, and what was written is said -------------------------------------


def other_base(folders: list[Path]) -> str:
    path = folders[1] / "adapter_config.json"
    path.write_text(path.read_text().replace("somebody/base", "somebody/else"))
    return "base_model_name_or_path differs"


def other_modules(folders: list[Path]) -> str:
    shutil.rmtree(folders[1])
    write_folder(folders[1], family("close", 1, shapes={"layers.7.k": (8, 6)})[0])
    return "no module in common"


def other_shapes(folders: list[Path]) -> str:
    shutil.rmtree(folders[1])
    write_folder(
        folders[1], family("close", 1, shapes={name: (m + 1, n) for name, (m, n) in SHAPES.items()})[0]
    )
    return "the shapes of dW differ"


def no_tensors(folders: list[Path]) -> str:
    (folders[1] / TENSORS).unlink()
    return f"{TENSORS}: is missing"


UNFIT = (other_base, other_modules, other_shapes, no_tensors)


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


@pytest.mark.parametrize("change", UNFIT, ids=lambda change: change.__name__)
def test_all_models_of_a_soup_are_checked_before_any_is_scored(
    folders: list[Path], tmp_path: Path, change: Callable[[list[Path]], str]
) -> None:
    why, before = change(folders), listing(tmp_path)
    with pytest.raises(AdapterError, match=why):
        greedy_soup(folders, tmp_path / "out", lambda _: pytest.fail("was asked for a score"))
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


def test_checkpoints_that_do_not_fit_their_base_are_refused_at_two_steps_too(tmp_path: Path) -> None:
    paths = write_checkpoints(tmp_path, 2)
    (tmp_path / "base").mkdir()
    save_file({"other": torch.ones(2)}, tmp_path / "base" / WHOLE)
    with pytest.raises(AdapterError, match="lacks"):
        sweep(paths, tmp_path / "out", 2, method="task_arithmetic", base_model=str(tmp_path / "base"))
    assert not (tmp_path / "out").exists()


def opposite(tmp_path: Path) -> list[Path]:
    """Two adapters whose mean on a sphere is not there: what only the merge itself can find."""
    (one,) = family("close", 1, shapes=SHAPES)
    return write_family(tmp_path, [one, {module: (-b, a) for module, (b, a) in one.items()}])


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


def test_a_soup_that_fails_wrote_nothing_and_says_nothing_else(tmp_path: Path) -> None:
    paths, before = opposite(tmp_path), listing(tmp_path)
    with pytest.raises(NumericalError) as caught:
        greedy_soup(paths, tmp_path / "out", lambda _: 1.0, method="karcher")
    assert listing(tmp_path) == before
    assert not getattr(caught.value, "__notes__", [])


@pytest.mark.parametrize("kind", ["soup", "sweep"])
def test_a_model_that_changes_meanwhile_ends_the_run(folders: list[Path], tmp_path: Path, kind: str) -> None:
    """All merges are of the models that were checked, or there are none."""
    moved = write_family(tmp_path / "new", family("close", 1, seed=5, shapes=SHAPES))[0] / TENSORS

    def scorer(_: Path) -> float:
        if moved.exists():
            moved.replace(folders[1] / TENSORS)
        return 1.0

    jobs: dict[str, Callable[..., object]] = {"soup": greedy_soup, "sweep": sweep}
    with pytest.raises(AdapterError, match="changed while it was in use"):
        jobs[kind](folders[:2], tmp_path / "out", scorer=scorer)


@pytest.mark.parametrize("command", ["soup", "sweep"])
def test_a_name_that_is_as_long_as_may_be_is_no_fault(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    out = tmp_path / ("x" * 255)  # the longest that common file systems take
    scorer = ("--scorer", python("print(1)"))
    steps = ("--steps", 2) if command == "sweep" else ()
    assert run(command, *folders[:2], "-o", out, *scorer, *steps, "-q").exit_code == 0
    monkeypatch.setattr("riemerge.merging.run.run_method", lambda *_: pytest.fail("was merged"))
    longer = run(command, *folders[:2], "-o", f"{out}x", *scorer, *steps)
    assert longer.exit_code == 6
    assert "File name too long" in longer.stderr


# --- the command line ---------------------------------------------------------------------------------------


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


# The score is the number of models that count in the merge.
COUNT = (
    'import json, sys; rows = json.load(open(sys.argv[1] + "/riemerge.json"))["inputs"]; '
    'print(sum(row["share"] > 0 for row in rows))'
)


def test_soup_as_a_command(folders: list[Path], tmp_path: Path) -> None:
    words = ("soup", *folders[:2], "--scorer", python(COUNT), "--scale", "0.5")
    ran = run(*words, "-o", tmp_path / "out")
    assert ran.exit_code == 0, ran.output
    assert "2 of 2: a + b: score 2" in ran.stdout
    assert "soup: a + b: score 2" in ran.stderr
    fewest = run(
        "soup", *folders[:2], "--scorer", python(COUNT.replace("sum(", "-sum(")), "-o", tmp_path / "one"
    )
    assert "1 of 2: a: score -1" in fewest.stdout
    merge_into(
        read_recipe([*map(str, folders[:2])], {"merge_method": "average", "scale": 0.5}), tmp_path / "m"
    )
    assert (tmp_path / "out" / TENSORS).read_bytes() == (tmp_path / "m" / TENSORS).read_bytes()
    document = json.loads(run(*words, "-o", tmp_path / "two", "--json").stdout)
    assert document["record"] == json.loads((tmp_path / "two" / "soup.json").read_text())
    assert run(*words, "-o", tmp_path / "three", "-q").stdout == f"{tmp_path / 'three'}\n"


def test_sweep_as_a_command(folders: list[Path], tmp_path: Path) -> None:
    words = ("sweep", *folders[:2], "--steps", 3, "--method", "slerp", "-o", tmp_path / "out")
    ran = run(*words)
    assert ran.exit_code == 0, ran.output
    assert [line.split()[0] for line in ran.stdout.splitlines()[:3]] == ["0.00", "0.50", "1.00"]
    document = json.loads(run(*words, "--json", "--scorer", python(COUNT)).stdout)
    assert [point["score"] for point in document["record"]["points"]] == [1, 2, 1]
    refused = run(*words, "--scale", 2)
    assert (refused.exit_code, refused.stdout) == (6, "")


@pytest.mark.parametrize(
    ("scorer", "code", "words"),
    [
        ("evaluate", 3, "no {} in it"),
        (python("print()"), 7, "expected 0 and a number"),
        (python('print("nan")'), 5, "the score of a is nan"),
    ],
)
def test_faults_of_a_scorer_on_the_command_line(
    folders: list[Path], tmp_path: Path, scorer: str, code: int, words: str
) -> None:
    before = listing(tmp_path)
    ran = run("soup", *folders, "-o", tmp_path / "out", "--scorer", scorer)
    assert (ran.exit_code, ran.stdout) == (code, "")
    assert words in ran.stderr
    assert listing(tmp_path) == before


def test_no_recipe_is_taken_for_a_model(folders: Sequence[Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("merge_method: average\nmodels:\n- model: a\n- model: b\n")
    assert run("soup", recipe, "-o", tmp_path / "out", "--scorer", python("print(1)")).exit_code == 4
