"""The drawing of the house: riemerge is within the plan, and planted packages that are not are caught."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tools.house import LIMITS, Limits, describe_house, describe_walk, faults, read_house, trace_merge

LAYERS = """
[[tool.importlinter.contracts]]
name = "down"
type = "layers"
layers = ["roof", "middle : side", "cellar | errors"]
"""


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A package of four rooms, in which all imports run down."""
    files = {
        "__init__.py": "if TYPE_CHECKING:\n    from small.roof import live\n",
        "roof/__init__.py": "",
        "roof/live.py": "import small.middle.work\nfrom small.cellar import store\n",
        "middle/__init__.py": "",
        "middle/work.py": "def f():\n    from small.cellar.store import x\n",
        "cellar/__init__.py": "",
        "cellar/store.py": "from small import errors\n",
        "errors.py": "",
    }
    write(tmp_path, {f"small/{name}": text for name, text in files.items()} | {"pyproject.toml": LAYERS})
    return tmp_path / "small"


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_riemerge_is_within_the_plan() -> None:
    house = read_house(ROOT / "riemerge")
    assert faults(house) == []
    assert set(house.rooms) == set(house.layers)
    assert house.storeys["errors"] == 1
    assert (
        house.storeys["cli"]
        > house.storeys["merging"]
        > house.storeys["methods"]
        > house.storeys["manifolds"]
    )


@pytest.mark.slow
def test_a_recipe_enters_few_rooms() -> None:
    house = read_house(ROOT / "riemerge")
    walk = trace_merge(ROOT / "riemerge")
    assert faults(house, walk) == []
    assert sorted(walk.rooms[:3]) == ["cli", "merging", "recipes"]
    assert describe_walk(walk, house)[0] == f"a recipe enters {len(walk.rooms)} rooms"
    few = faults(house, walk, LIMITS._replace(walk=1))
    assert few == [f"a recipe enters {len(walk.rooms)} rooms, at most 1"]


def test_rooms_storeys_and_arrows_are_read_from_the_imports(build: Path) -> None:
    house = read_house(build)
    assert house.arrows == {
        ("cellar", "errors"): 1,
        ("middle", "cellar"): 1,
        ("roof", "cellar"): 1,
        ("roof", "middle"): 1,
    }
    assert house.storeys == {"errors": 1, "cellar": 2, "middle": 3, "roof": 4}
    assert faults(house) == []
    drawing = """\
        4 rooms on 4 storeys, 4 arrows
          4  roof -> middle 1, cellar 1
          3  middle -> cellar 1
          2  cellar -> errors 1
          1  errors"""
    assert "\n".join(describe_house(house)) == textwrap.dedent(drawing)


@pytest.mark.parametrize(
    "statement",
    [
        "import small.roof.live",
        "from small.roof import live",
        "if TYPE_CHECKING:\n    from small.roof.live import x",
        "def f():\n    import small.roof",
        "from small import live",
        "from small import roof",
        "FUNCTION = 'small.roof.live:function'",
    ],
)
def test_an_arrow_up_and_its_circle_are_caught(build: Path, statement: str) -> None:
    (build / "errors.py").write_text(statement)
    circle, arrow = faults(read_house(build))
    assert circle.startswith("a circle: ")
    assert "errors -> roof" in circle
    assert arrow == "an arrow up: errors -> roof"


def test_an_arrow_up_without_a_circle_is_caught(build: Path) -> None:
    write(build, {"side/__init__.py": "import small.roof"})
    assert faults(read_house(build)) == ["an arrow up: side -> roof"]


def test_a_circle_within_a_layer_is_caught(build: Path) -> None:
    write(build, {"side/__init__.py": "import small.middle", "middle/more.py": "import small.side"})
    (fault,) = faults(read_house(build))
    assert fault in ("a circle: middle -> side -> middle", "a circle: side -> middle -> side")


def test_too_many_rooms_and_storeys_are_caught(build: Path) -> None:
    limits = Limits(rooms=3, storeys=3, walk=7)
    assert faults(read_house(build), limits=limits) == ["4 rooms, at most 3", "4 storeys, at most 3"]


def test_texts_and_the_public_names_of_the_package_are_no_arrows(build: Path) -> None:
    (build / "errors.py").write_text('"""See small.roof.live."""\nX = "as small.roof says"\nY = "other.roof"')
    assert faults(read_house(build)) == []
