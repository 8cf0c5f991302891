"""Scores: how good a model in a folder is, as a function or a command says."""

from __future__ import annotations

import math
import shlex
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from riemerge.errors import NumericalError, RecipeError, ResourceError

Scorer: TypeAlias = Callable[[Path], float]


def command_scorer(command: str) -> Scorer:
    """Return a scorer that runs a command without a shell; its last line on stdout is the score.

    Args:
        command: Its words, quoted as for a shell, with `{}` in place of the folder.

    Raises:
        RecipeError: The command has no such words, or no `{}`. The scorer raises a ResourceError.
    """
    try:
        words = shlex.split(command)
    except ValueError as fault:
        raise RecipeError(f"scorer: {command!r}: {fault}: quote its words as for a shell") from None
    if not any("{}" in word for word in words):
        raise RecipeError(f"scorer: {command!r}: no {{}} in it: write {{}} where the model's folder goes")
    return partial(_run, words)


def score_of(scorer: Scorer, folder: Path, what: str) -> float:
    """Return the score that a scorer gives to the model in a folder, which is `what` in messages.

    Raises:
        NumericalError: It is no finite number.
    """
    given: Any = scorer(folder)
    score = math.nan
    with suppress(TypeError, ValueError):
        score = float(given)
    if not math.isfinite(score):
        raise NumericalError(f"the score of {what} is {given!r}: expected a finite number")
    return score


def _run(words: Sequence[str], folder: Path) -> float:
    full = [word.replace("{}", str(folder)) for word in words]
    try:
        done = subprocess.run(full, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as fault:
        raise ResourceError(f"scorer: {words[0]}: cannot be run: {fault.strerror}") from None
    said, complaint = (
        text.decode(errors="replace").strip().rpartition("\n")[2] for text in (done.stdout, done.stderr)
    )
    with suppress(ValueError):
        if done.returncode == 0:
            return float(said)
    raise ResourceError(
        f"scorer: {words[0]}: exit code {done.returncode}, last line {said!r}: expected 0 and a number; last "
        f"line on stderr: {complaint or 'none'}"
    )
