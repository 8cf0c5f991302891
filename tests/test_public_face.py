"""The public names of `riemerge` are stated once, typed and found; `python -m riemerge` runs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import riemerge
import riemerge.frechet
from riemerge.frechet.mean import frechet_mean
from tests.helpers import ROOT

PROMISED = """
    merge plan Plan run merge_into merge_adapters MergeResult Recipe read_recipe Adapter read_adapter
    LowRankUpdate METHODS Method inspect evaluate greedy_soup sweep collect_statistics frechet_mean
    Problem Solution Status SOLVERS checks check_method RiemergeError __version__
"""

_MERGE = """
import sys
from riemerge.merging.verbs import merge_into
from riemerge.recipes.recipe import make_recipe
models = [{"model": path} for path in sys.argv[2:]]
for method in ("average", "ties", "spectrum"):
    merge_into(make_recipe({"merge_method": method, "models": models}), f"{sys.argv[1]}/{method}")
print(sorted({"pymanopt", "scipy.linalg", "autograd"} & set(sys.modules)))
"""


def python(*words: str) -> subprocess.CompletedProcess[str]:
    """Run Python from the root of the repository."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=ROOT)


def test_every_promised_name_is_there_and_is_what_its_home_has() -> None:
    assert set(PROMISED.split()) <= set(dir(riemerge))
    for name in dir(riemerge):
        assert getattr(riemerge, name) is not None
    assert riemerge.merge is riemerge.merge_adapters
    assert riemerge.checks.__name__ == "riemerge.manifolds.checks"
    with pytest.raises(AttributeError, match="no attribute 'barycenter'"):
        riemerge.barycenter  # type: ignore[attr-defined]  # noqa: B018


def test_every_name_is_stated_once() -> None:
    source = Path(riemerge.__file__).read_text(encoding="utf-8")
    lines = Counter(line.partition(" as ")[2] for line in source.splitlines() if " as " in line)
    assert {name: lines[name] for name in dir(riemerge)} == dict.fromkeys(dir(riemerge), 1)


def test_a_star_imports_every_name() -> None:
    found = python("-c", "import riemerge\nfrom riemerge import *\nprint(set(dir(riemerge)) <= set(dir()))")
    assert found.stdout == "True\n"


@pytest.mark.slow
def test_type_checkers_see_the_names_and_no_others(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    sample = tmp_path / "sample.py"
    lines = ["import riemerge", *(f"riemerge.{name}" for name in dir(riemerge)), "riemerge.barycenter"]
    sample.write_text("\n".join(lines), encoding="utf-8")
    # By the settings of `make lint`, so that its cache serves.
    words = (
        "--config-file",
        str(ROOT / "pyproject.toml"),
        "--cache-dir",
        str(ROOT / ".mypy_cache"),
        str(sample),
    )
    checked = python("-m", "mypy", *words)
    (fault, _) = checked.stdout.splitlines()
    assert 'has no attribute "barycenter"' in fault


def test_the_package_runs_as_a_module() -> None:
    assert python("-m", "riemerge", "--version").stdout == f"riemerge, version {riemerge.__version__}\n"
    fault = python("-m", "riemerge", "mrge")
    assert (fault.returncode, fault.stdout) == (2, "")
    assert fault.stderr.startswith("Usage: riemerge [OPTIONS]")


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
