"""`riemerge methods`: the table, and a page for each method."""

from __future__ import annotations

import json
import subprocess
import sys

from riemerge.methods import METHODS, PARAMETERS
from tests.cli.runner import run
from tests.helpers import ROOT


def test_methods_lists_the_table() -> None:
    shown, dumped = run("methods"), run("methods", "--json")
    assert [row["name"] for row in json.loads(dumped.stdout)] == list(METHODS)
    assert all(name in shown.stdout for name in METHODS)


def test_methods_explains_those_that_are_named() -> None:
    shown, dumped = run("methods", "ties", "spectrum"), run("methods", "ties", "spectrum", "--json")
    assert [row["name"] for row in json.loads(dumped.stdout)] == ["ties", "spectrum"]
    assert PARAMETERS["whitening"].summary in " ".join(shown.stdout.split())
    assert "geomerge" not in shown.stdout
    assert shown.stdout.splitlines()[1].startswith("  riemerge merge examples/adapters/snli ")
    unknown = run("methods", "tiez")
    assert unknown.exit_code == 3
    assert "the nearest names are ties" in unknown.stderr


def test_methods_needs_no_numerical_library() -> None:
    script = (
        "import sys\nsys.argv = ['riemerge', 'methods']\nfrom riemerge.cli.commands import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('loaded', *({'torch', 'numpy', 'pymanopt', 'scipy'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.splitlines()[-1] == "loaded"
