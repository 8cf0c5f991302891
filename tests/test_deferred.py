"""Packages whose names are imported late: each is what its home has, and a flat merge needs no solver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import riemerge.frechet
from riemerge.frechet.mean import frechet_mean
from tests.helpers import ROOT

_MERGE = """
import sys
from riemerge.merging.verbs import merge_into
from riemerge.recipes.recipe import make_recipe
models = [{"model": path} for path in sys.argv[2:]]
for method in ("average", "ties", "spectrum"):
    merge_into(make_recipe({"merge_method": method, "models": models}), f"{sys.argv[1]}/{method}")
print(sorted({"pymanopt", "scipy.linalg", "autograd"} & set(sys.modules)))
"""


def test_each_name_is_what_its_home_has_and_no_other_is_there() -> None:
    for name in dir(riemerge.frechet):
        assert getattr(riemerge.frechet, name) is not None
    assert riemerge.frechet.frechet_mean is frechet_mean
    with pytest.raises(AttributeError, match=r"'riemerge\.frechet' has no attribute 'barycenter'"):
        riemerge.frechet.barycenter  # type: ignore[attr-defined]  # noqa: B018


def test_a_flat_merge_loads_no_solver(tmp_path: Path) -> None:
    adapters = [str(ROOT / "examples/adapters" / name) for name in ("snli", "mnli")]
    words = [sys.executable, "-c", _MERGE, str(tmp_path), *adapters]
    ran = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout == "[]\n"
