"""Names of base models: which are of one model, which name a merge has, what is refused and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from riemerge.formats.base_names import Agreement, agree_on_base
from tests.formats.pico import Pico

CACHED = "/root/.cache/huggingface/hub/models--acme--pico-1/snapshots/0123abc"


def agree(*names: str | None, same: bool = False, name: str | None = None) -> Agreement:
    return agree_on_base({Path(f"k{i}"): base for i, base in enumerate(names)}, same=same, name=name)


@pytest.mark.parametrize(
    ("names", "best", "said"),
    [
        (["acme/pico-1-bnb-4bit", "acme/pico-1"], "acme/pico-1", "acme/pico-1-bnb-4bit (a quantised copy)"),
        (["acme/pico-1-unsloth-bnb-4bit", "acme/pico-1"], "acme/pico-1", "(a quantised copy)"),
        (["acme/pico-1", "acme/pico-1-GPTQ-Int4"], "acme/pico-1", "(a quantised copy)"),
        (["acme/pico-1-AWQ", "acme/pico-1-4bit"], "acme/pico-1-AWQ", "acme/pico-1-4bit (a quantised copy)"),
        (["/home/x/models/pico-1/", "acme/pico-1"], "acme/pico-1", "pico-1 (a local folder)"),
        (["./models/Pico-1", "acme/pico-1"], "acme/pico-1", "Pico-1 (a local folder)"),
        (["models/of/mine/pico-1-gptq", "acme/pico-1"], "acme/pico-1", "pico-1-gptq (a local folder)"),
        ([r"C:\models\pico-1", "acme/pico-1-AWQ"], "acme/pico-1-AWQ", "pico-1 (a local folder)"),
        ([r"models\pico-1", "pico-1"], "pico-1", "pico-1 (a local folder)"),
        (["/a/pico-1", CACHED], "acme/pico-1", "acme/pico-1 (in the hub's cache)"),
        ([CACHED, "acme/pico-1"], "acme/pico-1", "acme/pico-1 (in the hub's cache)"),
        (["/a/pico-1", "/b/pico-1"], "/a/pico-1", "pico-1 (a local folder)"),
    ],
)
def test_names_of_one_repository_are_taken_as_one_and_said(names: list[str], best: str, said: str) -> None:
    found = agree(*names, None, "")
    (note,) = found.notes
    assert (found.name, found.problems) == (best, ())
    assert said in note
    assert note.endswith(f"taken as one base model; the result names {best}")
    assert agree(*reversed(names)).name in {best, names[-1]}  # the first of equally good ones


def test_equal_names_and_none_need_no_words() -> None:
    assert agree("a/b", "a/b", "", None) == Agreement("a/b")
    assert agree("", None) == Agreement(None)
    assert agree("", None, name="x/y", same=True) == Agreement("x/y")


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (["meta/pico-1", "unsloth/pico-1-bnb-4bit"], True),
        (["pico-1", "acme/pico-1"], True),
        (["/a/pico-1", "acme/pico-1", "meta/pico-1"], True),
        (["acme/pico-1", "acme/pico-2"], False),
        (["acme/pico-1-bnb-4bit", "acme/pico-1-instruct"], False),
        (["/", "acme/pico-1"], False),
    ],
)
def test_other_owners_and_repositories_are_refused_with_the_option(names: list[str], alike: bool) -> None:
    (problem,) = agree(*names, name="x/y").problems
    assert problem.startswith("base_model_name_or_path differs: " + names[0])
    assert ("one name but several owners" in problem) == alike
    assert "--same-base" in problem
    taken = agree(*names, same=True)
    assert taken.problems == ()
    assert "taken as one base model" in taken.notes[0]
    assert agree(*names, same=True, name="x/y").name == "x/y"


def test_the_result_names_the_best_name() -> None:
    names = ("/m/pico-9", "pico", "b/x-AWQ", "a/x", "c/x")
    for count, best in ((1, "/m/pico-9"), (2, "pico"), (3, "b/x-AWQ"), (4, "a/x"), (5, "a/x")):
        assert agree(*names[:count], same=True).name == best


def test_notes_hold_no_path_of_the_machine() -> None:
    assert "/home" not in agree("/home/x/pico-1", "acme/pico-1").notes[0]


@pytest.mark.parametrize("relative", ["cwd", "itself", "nothing"])
def test_an_adapter_that_was_trained_on_another_is_told_the_sum(
    pico: Pico, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, relative: str
) -> None:
    first, second = pico("first one"), pico("second")
    base = {"cwd": "./first one", "itself": "../first one", "nothing": "./gone/base+first one"}[relative]
    monkeypatch.chdir(tmp_path if relative != "itself" else "/")
    named = {first: "acme/pico-1", second: base}
    (problem,) = agree_on_base(named).problems
    assert problem.startswith(f"{second}: was trained on a base model with another adapter in it")
    below = {"cwd": Path("first one"), "itself": second / "../first one", "nothing": first}[relative]
    assert f"riemerge merge '{below}' {second} -o NEW --method cat --same-base" in problem
    assert agree_on_base(named, same=True).name == "acme/pico-1"
    # Two that were trained on one other adapter have one base.
    assert agree_on_base({first: base, second: base}).problems == ()


def test_a_folder_that_is_called_like_its_own_base_is_not_taken_for_it() -> None:
    named = {Path("/runs/pico-1"): "acme/pico-1", Path("/runs/b"): "/models/pico-1"}
    found = agree_on_base(named)
    assert [problem for problem in found.problems if "another adapter" in problem] == []
