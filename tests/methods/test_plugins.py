"""Plug-ins: what a module offers enters the tables; what is wrong with one is said, and whose code it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from riemerge.errors import RecipeError
from riemerge.losses import LOSSES, Square
from riemerge.methods import METHODS, PARAMETERS, find_method, plugins
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
    monkeypatch.setattr(sys, "path", list(sys.path))
    for table in (METHODS, LOSSES):
        monkeypatch.setattr(table, "_entries", dict(table._entries))
        monkeypatch.setattr(table, "_given", {})
    return tmp_path


def test_what_a_module_offers_is_found(here: Path) -> None:
    text = MIDRANGE.replace("{name}", "lab_found") + "LOSSES = {'late': 'lab_late:Late'}"
    (here / "lab_found.py").write_text(text)
    (here / "lab_late.py").write_text("from riemerge.losses import Square as Late")
    before = list(sys.path)
    load_plugin("lab_found")
    load_plugin("lab_found")
    assert find_method("midrange").domain == "entries"
    assert sys.path == [*before, str(here)]
    assert LOSSES["late"] is Square


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("lab_absent", None, "lab_absent: it cannot be imported: ModuleNotFoundError"),
        ("lab_broken", "1 / 0", "lab_broken: it cannot be imported: ZeroDivisionError"),
        ("lab_empty", "", "it offers nothing: expected one of METHODS"),
        ("lab_list", "METHODS = ['a']", r"METHODS is \['a'\]; expected a mapping"),
        ("lab_taken", "EDITS = {'trim': 1}", "edit 'trim' is there already"),
        ("lab_number", "METHODS = {'one': 1}", "method one is 1; expected a riemerge.Method"),
        ("lab_gone", "METHODS = {'one': 'lab_gone:row'}", "method one is lab_gone:row: AttributeError"),
        (
            "lab_open",
            MIDRANGE.replace('"test"', '"test", own_parameters={"power_of_mine": 1.0}'),
            "method midrange: parameter power_of_mine is not known: add it to PARAMETERS of the plug-in",
        ),
        ("lab_word", MIDRANGE + "PARAMETERS = ['power']", "PARAMETERS has 'power'; expected a riemerge"),
    ],
)
def test_what_is_no_plugin_is_refused(here: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (here / f"{name}.py").write_text(text)
    with pytest.raises(RecipeError, match=said):
        load_plugin(name)
    assert "midrange" not in METHODS


def test_a_parameter_of_a_plugin_s_own_is_known_to_its_method(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "PARAMETERS", dict(PARAMETERS))
    text = MIDRANGE.replace('"test"', '"test", own_parameters={"power_of_mine": 1.0}')
    own = (
        "\nfrom riemerge.methods import Parameter\nPARAMETERS = [Parameter('power_of_mine', 'number', 'x')]\n"
    )
    (here / "lab_own.py").write_text(text + own)
    load_plugin("lab_own")
    assert find_method("midrange").own_parameters == {"power_of_mine": 1.0}


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
