"""Scorers are functions or commands; what they say is a number, or by task a number or one for each row."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from riemerge.errors import (
    RecipeError,
    ResourceError,
)
from riemerge.study.scorer import command_scorer, make_judge
from tests.study.inputs import python


def test_a_command_scores_by_its_last_line_without_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "two words; $(touch made)"
    folder.mkdir()
    code = 'import os, sys; print("loading"); print(0.25 + os.path.isdir(sys.argv[1])); print()'
    assert command_scorer(python(code, ""))(folder) == 1.25
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
        command_scorer(python(code, ""))(tmp_path)
    assert len(caught.value.problems) == 1
    assert "\n" not in caught.value.problems[0]


def test_a_command_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="no-such-program: cannot be run"):
        command_scorer("no-such-program {}")(tmp_path)
    for command in ("evaluate", "", "evaluate 'open {}"):
        with pytest.raises(RecipeError):
            command_scorer(command)


class Bound:
    def scorer(self, folder: Path, part: str) -> str:
        return part

    def __call__(self, folder: Path) -> str:
        return "none"


@pytest.mark.parametrize(
    ("scorer", "parts"),
    [
        (lambda folder: "none", False),
        (lambda folder, cache=None: "none", False),
        (lambda folder, part: part, True),
        (lambda folder, half: half, True),
        (lambda folder, part, /: part, True),
        (lambda folder, device="cpu", part="dev": part, True),
        (lambda folder, *, part: part, True),
        (Bound().scorer, True),
        (Bound(), False),
    ],
)
def test_a_function_is_told_the_part_if_it_asks_for_it(scorer: Any, parts: bool, tmp_path: Path) -> None:
    judge = make_judge(scorer)
    assert judge.parts == parts
    assert judge.ask(tmp_path, "test") == ("test" if parts else "none")
    assert judge.text == make_judge(scorer).text


def test_a_function_without_source_is_never_the_same(tmp_path: Path) -> None:
    made = eval("lambda folder: 1.0")
    assert make_judge(made).text != make_judge(made).text


def test_a_command_answers_by_task_on_its_last_line(tmp_path: Path) -> None:
    code = 'import json, sys; print("loading"); print(json.dumps({sys.argv[2]: [0, 1.5], "b": 2})); print()'
    judge = make_judge(python(code))
    assert judge.parts
    assert judge.ask(tmp_path, "dev") == {"dev": [0, 1.5], "b": 2}
    plain = make_judge(python("print(0.25)", ""))
    assert not plain.parts
    assert plain.ask(tmp_path, "dev") == 0.25


def test_a_command_is_another_when_its_script_is(tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    script.write_text("print(1)")
    command = f"python '{script}' {{}}"
    before = make_judge(command).text
    assert make_judge(command).text == before != make_judge(command + " more").text
    script.write_text("print(2)")
    assert make_judge(command).text != before


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; print(1); sys.exit(3)", "exit code 3"),
        ("print([1, 2])", "expected 0 and a number, or a JSON object"),
        ("print(1, 2)", "last line '1 2'"),
        ('print("{1")', "JSON object"),
        ('print("{" * 100000)', "JSON object"),
        ('print("[" * 100000)', "JSON object"),
        ("print(chr(123) + chr(34) + chr(97) + chr(34) + chr(58))", "JSON object"),
        ('print(chr(123) + "\\"a\\": 1, \\"a\\": 2" + chr(125))', "JSON object"),
        ("", "last line ''"),
    ],
)
def test_a_command_without_scores_is_one_error(tmp_path: Path, code: str, words: str) -> None:
    with pytest.raises(ResourceError, match=words) as caught:
        make_judge(python(code)).ask(tmp_path, "dev")
    (problem,) = caught.value.problems
    assert "\n" not in problem
    assert len(problem) < 1000
