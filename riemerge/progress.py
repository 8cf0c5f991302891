"""Progress: the one event that everything that takes long tells its listener."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias


class Progress(NamedTuple):
    """How far a job is.

    Attributes:
        stage: Name of the stage, such as `read`, `merge` or `measure` of a merge, `evaluate` or `soup`.
        done: Number of modules (of a merge) or models (of a study) that are through this stage.
        total: Number of all of them.
        text: More about the last one, for a person.
    """

    stage: str
    done: int
    total: int
    text: str


Listener: TypeAlias = Callable[[Progress], None]
