"""Soups are those that a written-out search finds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from riemerge.errors import (
    AdapterError,
    NumericalError,
    OutputError,
    RecipeError,
    RiemergeError,
)
from riemerge.merging.verbs import merge_adapters, merge_into
from riemerge.progress import Progress
from riemerge.recipes.recipe import read_recipe
from riemerge.study.soups import greedy_soup
from riemerge.study.sweeps import sweep
from tests.folders import content, family, listing, write_family
from tests.study.inputs import (
    COUNT_MODELS,
    SHAPES,
    TENSORS,
    UNFIT,
    WHOLE,
    chosen_in,
    opposite,
    python,
    run,
    same_updates,
    write_checkpoints,
)


def by_table(scores: Mapping[str, float]) -> Callable[[Path], float]:
    return lambda folder: scores[chosen_in(folder)]


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


@pytest.mark.parametrize("change", UNFIT, ids=lambda change: change.__name__)
def test_all_models_of_a_soup_are_checked_before_any_is_scored(
    folders: list[Path], tmp_path: Path, change: Callable[[list[Path]], str]
) -> None:
    why, before = change(folders), listing(tmp_path)
    with pytest.raises(AdapterError, match=why):
        greedy_soup(folders, tmp_path / "out", lambda _: pytest.fail("was asked for a score"))
    assert listing(tmp_path) == before


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
    scorer = ("--scorer", python("print(1)", ""))
    steps = ("--steps", 2) if command == "sweep" else ()
    assert run(command, *folders[:2], "-o", out, *scorer, *steps, "-q").exit_code == 0
    monkeypatch.setattr("riemerge.merging.run.run_method", lambda *_: pytest.fail("was merged"))
    longer = run(command, *folders[:2], "-o", f"{out}x", *scorer, *steps)
    assert longer.exit_code == 6
    assert "File name too long" in longer.stderr


def test_soup_as_a_command(folders: list[Path], tmp_path: Path) -> None:
    words = ("soup", *folders[:2], "--scorer", python(COUNT_MODELS, ""), "--scale", "0.5")
    ran = run(*words, "-o", tmp_path / "out")
    assert ran.exit_code == 0, ran.output
    assert "2 of 2: a + b: score 2" in ran.stdout
    assert "soup: a + b: score 2" in ran.stderr
    negated = python(COUNT_MODELS.replace("sum(", "-sum("), "")
    fewest = run("soup", *folders[:2], "--scorer", negated, "-o", tmp_path / "one")
    assert "1 of 2: a: score -1" in fewest.stdout
    merge_into(
        read_recipe([*map(str, folders[:2])], {"merge_method": "average", "scale": 0.5}), tmp_path / "m"
    )
    assert (tmp_path / "out" / TENSORS).read_bytes() == (tmp_path / "m" / TENSORS).read_bytes()
    document = json.loads(run(*words, "-o", tmp_path / "two", "--json").stdout)
    assert document["record"] == json.loads((tmp_path / "two" / "soup.json").read_text())
    assert run(*words, "-o", tmp_path / "three", "-q").stdout == f"{tmp_path / 'three'}\n"


@pytest.mark.parametrize(
    ("scorer", "code", "words"),
    [
        ("evaluate", 3, "no {} in it"),
        (python("print()", ""), 7, "expected 0 and a number"),
        (python('print("nan")', ""), 5, "the score of a is nan"),
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
    assert run("soup", recipe, "-o", tmp_path / "out", "--scorer", python("print(1)", "")).exit_code == 4
