"""An inspection tells how far it is; what it finds is tested with its report."""

from __future__ import annotations

from pathlib import Path

from riemerge.progress import Progress
from riemerge.study.inspection import inspect_adapters
from tests.study.inputs import SHAPES


def test_every_module_and_every_pair_is_told(folders: list[Path]) -> None:
    events: list[Progress] = []
    inspection = inspect_adapters(folders[:3], progress=events.append)
    texts = [*SHAPES, "a and b", "a and c", "b and c"]
    assert events == [Progress("inspect", place, 5, text) for place, text in enumerate(texts, 1)]
    assert inspection == inspect_adapters(folders[:3])
    assert inspect_adapters([], progress=events.append).pairs == ()
    assert len(events) == 5
