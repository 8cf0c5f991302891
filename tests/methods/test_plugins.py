"""Plug-ins: what a module offers enters the tables; what is wrong with one is said, and whose code it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from riemerge.errors import RecipeError
from riemerge.methods import METHODS, find_method
from riemerge.methods.plugins import load_plugin

MIDRANGE = """
from riemerge import Method

def midrange(x, setting):
    return (x.amax(dim=0) + x.amin(dim=0)) / 2

row = Method("midrange", "middle of the range", "test", domain="entries", mean="{name}:midrange")
METHODS = {"midrange": row}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    monkeypatch.setattr(METHODS, "_given", {})
    return tmp_path


def test_what_a_module_offers_is_found(here: Path) -> None:
    (here / "lab_found.py").write_text(MIDRANGE.replace("{name}", "lab_found"))
    load_plugin("lab_found")
    load_plugin("lab_found")
    assert find_method("midrange").domain == "entries"
    assert str(here) not in sys.path


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("lab_absent", None, "lab_absent: it cannot be imported: ModuleNotFoundError"),
        ("lab_broken", "1 / 0", "lab_broken: it cannot be imported: ZeroDivisionError"),
        ("lab_empty", "", "it offers nothing: expected one of METHODS"),
        ("lab_list", "METHODS = ['a']", r"METHODS is \['a'\]; expected a mapping"),
        ("lab_taken", "METHODS = {'ties': 1}", "method 'ties' is there already"),
    ],
)
def test_what_is_no_plugin_is_refused(here: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (here / f"{name}.py").write_text(text)
    with pytest.raises(RecipeError, match=said):
        load_plugin(name)


def test_an_installed_package_is_loaded_when_its_name_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "lab_installed.py").write_text(
        MIDRANGE.replace("{name}", "lab_installed") + "\nprint('loaded')\n"
    )
    info = tmp_path / "lab_installed-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-installed\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[riemerge.methods]\nmidrange = lab_installed:row\nbroken = lab_installed:nothing\n"
    )
    program = (
        "from riemerge.methods import METHODS, find_method\n"
        "find_method('average'); assert 'midrange' in METHODS; print('listed')\n"
        "print(find_method('midrange').mean)\n"
        "try: find_method('broken')\n"
        "except Exception as fault: print(fault)\n"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{root}:{tmp_path}"},
    )
    listed, loaded, mean, fault = ran.stdout.splitlines()
    assert (listed, loaded, mean) == ("listed", "loaded", "lab_installed:midrange")
    assert fault.startswith("method 'broken' of the plug-in lab_installed:nothing: AttributeError")
