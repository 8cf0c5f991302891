"""Scores: how good a model in a folder is, as a function or a command says; in one number, or by task."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import reprlib
import shlex
import subprocess
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, final

from riemerge.errors import NumericalError, RecipeError, ResourceError

Scorer: TypeAlias = Callable[[Path], float]
TaskScorer: TypeAlias = str | Callable[..., Any]
Part: TypeAlias = Literal["dev", "test"]
Answers: TypeAlias = dict[str, float | tuple[float, ...]]

ONE_TASK = "score"
"""The name of the task of a scorer that names none."""

_Read = TypeVar("_Read")
_SCRIPTS = (".py", ".sh")


def command_scorer(command: str) -> Scorer:
    """Return a scorer that runs a command without a shell; its last line on stdout is the score.

    Args:
        command: Words of the command, quoted as for a shell, with `{}` in place of the folder.

    Raises:
        RecipeError: The command has no such words, or no `{}`. The scorer itself raises a ResourceError.
    """
    return partial(_run, _words(command), float, "a number")


def ask_score(scorer: Scorer, folder: Path, label: str) -> float:
    """Return the score that a scorer gives to the model in a folder, which is `label` in messages.

    Raises:
        NumericalError: The score is no finite number.
    """
    given: Any = scorer(folder)
    score = math.nan
    with suppress(TypeError, ValueError):
        score = float(given)
    if not math.isfinite(score):
        raise NumericalError(f"the score of {label} is {given!r}: expected a finite number")
    return score


# --- by task ------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Judge:
    """A scorer that answers by task.

    Attributes:
        ask: Returns what the scorer says of a folder and a part, not yet checked.
        parts: Whether the scorer tells `dev` from `test`; one that does not answers alike for both.
        text: Text that tells scorers apart: the source, or the command with the scripts that it names.
    """

    ask: Callable[[Path, Part], Any]
    parts: bool
    text: str


def make_judge(scorer: TaskScorer) -> Judge:
    """Return a scorer as a judge.

    A command has `{}` in place of the folder and may have `{part}` in place of `dev` or `test`; its last
    line on stdout is a number, or JSON: an object of tasks, each a number or a list of one for each row. A
    function takes the folder, and the part where it has a second argument that must be given or one called
    `part`; it returns the same.

    Law: scorers of equal texts are equal as far as source can tell: data, and what a function or script uses
    from elsewhere, are not in it. A function without source has another text each time.

    Raises:
        RecipeError: The command has no words, or no `{}`; or it is neither a command nor a function.
    """
    if isinstance(scorer, str):
        words = _words(scorer)
        expected = "a number, or a JSON object of tasks with a number or a list of numbers each"
        told = any("{part}" in word for word in words)
        return Judge(partial(_run, words, _json, expected), told, _text_of(words))
    if not callable(scorer):
        raise RecipeError(f"scorer: {scorer!r}: expected a command or a function of a folder")
    how = _takes_part(scorer)
    ways: dict[str, Callable[[Path, Part], Any]] = {
        "no": lambda folder, _: scorer(folder),
        "by name": lambda folder, part: scorer(folder, part=part),
        "by place": scorer,
    }
    return Judge(ways[how], how != "no", _source(scorer))


def ask_answers(judge: Judge, folder: Path, part: Part, label: str) -> Answers:
    """Return what a judge says of the model in a folder: by task a score, or a score for each row.

    Args:
        judge: The scorer.
        folder: The folder of the model.
        part: The rows that are meant, `dev` or `test`.
        label: Name of the model in messages.

    Raises:
        NumericalError: Tasks that have no name, no row, or something else than finite numbers, all of them.
    """
    given = judge.ask(folder, part)
    tasks = given if isinstance(given, Mapping) else {ONE_TASK: given}
    problems = [] if tasks else [f"the scores of {label} ({part}) are of no task: expected at least one"]
    answers: Answers = {}
    for task, value in tasks.items():
        if not isinstance(task, str) or not task:
            problems.append(f"the scores of {label} ({part}) have a task {task!r}: expected a name")
            continue
        rows = value.tolist() if hasattr(value, "tolist") else value  # numpy's and torch's
        where = f"the score of {label} ({part}) in {task}"
        if not isinstance(rows, list | tuple):
            answers[task] = score = _number(rows)
            if not math.isfinite(score):
                problems.append(f"{where} is {reprlib.repr(rows)}: expected finite numbers")
            continue
        numbers = answers[task] = tuple(map(_number, rows))
        bad = [place for place, one in enumerate(numbers) if not math.isfinite(one)]
        if bad:
            first = f"{reprlib.repr(rows[bad[0]])} in row {bad[0] + 1} of {len(rows)}"
            problems.append(f"{where} is {first}: expected finite numbers")
        elif not rows:
            problems.append(f"{where} is of no row: expected at least one")
    NumericalError.refuse(problems)
    return answers


def count_rows(answers: Answers) -> dict[str, int | None]:
    """Return how many rows each task has; None where it has one score alone."""
    return {task: len(one) if isinstance(one, tuple) else None for task, one in answers.items()}


def average_rows(answers: Answers) -> dict[str, float]:
    """Return the score of each task: the mean of its rows."""
    return {
        task: math.fsum(one) / len(one) if isinstance(one, tuple) else one for task, one in answers.items()
    }


def mean_share(scores: Mapping[str, float], specialist: Mapping[str, float]) -> float:
    """Return the mean over tasks of the score divided by the specialist's, or by 1 where there is none."""
    return math.fsum(score / specialist.get(task, 1.0) for task, score in scores.items()) / len(scores)


def _number(value: Any) -> float:
    """Return a number as Python's own, NaN for anything else."""
    if isinstance(value, str | bytes):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _source(scorer: Callable[..., Any]) -> str:
    for owner in (scorer, type(scorer)):
        with suppress(OSError, TypeError):
            return inspect.getsource(owner)
    return uuid.uuid4().hex


def _takes_part(scorer: Callable[..., Any]) -> Literal["no", "by name", "by place"]:
    try:
        signature = inspect.signature(scorer)
    except (TypeError, ValueError):  # of some that are written in C
        return "no"
    named = signature.parameters.get("part")
    if named is not None and named.kind is not named.POSITIONAL_ONLY:
        return "by name"
    try:
        signature.bind("folder")
    except TypeError:
        return "by place"
    return "no"


# --- commands -----------------------------------------------------------------------------------------------


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as fault:
        raise RecipeError(f"scorer: {command!r}: {fault}: quote its words as for a shell") from None
    if not any("{}" in word for word in words):
        raise RecipeError(f"scorer: {command!r}: no {{}} in it: write {{}} where the model's folder goes")
    return words


def _text_of(words: Sequence[str]) -> str:
    """Return the words of a command, and the sha256 of its program and scripts where they are files."""
    scripts = [Path(word) for word in words if word is words[0] or word.endswith(_SCRIPTS)]
    sums = []
    for path in scripts:
        with suppress(OSError):  # no file, or one that only the program itself can read
            sums.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return json.dumps([list(words), sums])


def _json(text: str) -> Any:
    """Return a number, or a JSON object whose keys are all different.

    Raises:
        ValueError: The text is neither.
    """
    with suppress(ValueError):
        return float(text)
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found


def _run(
    words: Sequence[str], read: Callable[[str], _Read], expected: str, folder: Path, part: str = "{part}"
) -> _Read:
    """Return what is read from the last line on stdout of a command, which must be `expected`."""
    full = [word.replace("{part}", part).replace("{}", str(folder)) for word in words]
    try:
        done = subprocess.run(full, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as fault:
        raise ResourceError(f"scorer: {words[0]}: cannot be run: {fault.strerror}") from None
    answer, complaint = (
        text.decode(errors="replace").strip().rpartition("\n")[2] for text in (done.stdout, done.stderr)
    )
    with suppress(ValueError):
        if done.returncode == 0:
            return read(answer)
    shown = answer if len(answer) <= _SHOWN else f"{answer[:_SHOWN]}…"
    raise ResourceError(
        f"scorer: {words[0]}: exit code {done.returncode}, last line {shown!r}: expected 0 and {expected}; "
        f"last line on stderr: {complaint or 'none'}"
    )


_SHOWN = 200
