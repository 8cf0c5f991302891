"""Draw the house: rooms, storeys and arrows of a package, from its imports: python -m tools.house [--walk]

A room is a top-level folder or file of the package. An arrow leads from a room to each room that it imports
from, whenever that happens: imports inside functions and for type checkers count, and so do names in
strings that are imported on first use ("riemerge.methods.sums.vectors:Flat"). The lazy public names of the
package's own `__init__.py` are no arrows: that file is the sign at the door, and a public name comes from
its home. A room's storey is the longest way down from it. An arrow runs up if the layers of pyproject.toml
place its end above its beginning.

--walk merges the adapters of examples/adapters by the command line and prints the rooms whose functions
hold the recipe or the plan on its way, in the order in which they are entered.

Exit code 1: more rooms, storeys or rooms of the walk than LIMITS, a circle, or an arrow that runs up.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import re
import sys
import tempfile
import threading
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

from tools.lines import rooms

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "adapters"
CARRIED = ("Recipe", "Plan")
LAZY = re.compile(r"\w+(\.\w+)+(:\w+)?")


class Limits(NamedTuple):
    """The most that a reader can draw after one look."""

    rooms: int = 24  # five of them are doors: public names of values that live in the rooms, and problems
    storeys: int = 10
    walk: int = 7


LIMITS = Limits()


@dataclass(frozen=True)
class House:
    """The rooms of a package and the arrows between them.

    Attributes:
        rooms: Names of the top-level folders and files.
        arrows: Number of imports for each pair of rooms (importing, imported).
        layers: Layer of each room in pyproject.toml, 0 the lowest; rooms that it does not place are left out.
    """

    rooms: tuple[str, ...]
    arrows: Mapping[tuple[str, str], int]
    layers: Mapping[str, int]

    def below(self, room: str) -> list[str]:
        """Return the rooms from which a room imports."""
        return [end for begin, end in self.arrows if begin == room]

    @cached_property
    def circle(self) -> list[str]:
        """A way that leads back to where it began; empty if there is none."""
        try:
            TopologicalSorter({room: self.below(room) for room in self.rooms}).prepare()
        except CycleError as error:
            found: list[str] = error.args[1]
            return found
        return []

    @cached_property
    def storeys(self) -> dict[str, int]:
        """The storey of each room, from 1; empty where a circle leaves no room the lowest."""
        if self.circle:
            return {}
        storeys: dict[str, int] = {}
        for room in TopologicalSorter({room: self.below(room) for room in self.rooms}).static_order():
            storeys[room] = 1 + max((storeys[end] for end in self.below(room)), default=0)
        return storeys

    @property
    def climbs(self) -> list[tuple[str, str]]:
        """The arrows whose end lies in a higher layer than their beginning."""
        return [
            (begin, end)
            for begin, end in self.arrows
            if begin in self.layers and end in self.layers and self.layers[begin] < self.layers[end]
        ]


def read_house(package: Path) -> House:
    """Read the imports of all modules of a package, and the layers from the pyproject.toml beside it."""
    names = tuple(path.stem for path in rooms(package))
    public = dict(public_homes(package))
    arrows: Counter[tuple[str, str]] = Counter()
    for path in rooms(package):
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            for end in imports(ast.parse(file.read_text(encoding="utf-8")), package.name, public):
                if end in names and end != path.stem:
                    arrows[path.stem, end] += 1
    return House(names, dict(sorted(arrows.items())), read_layers(package))


def imports(tree: ast.Module, package: str, public: Mapping[str, str]) -> Iterator[str]:
    """Yield the room of each import from the package in a module."""
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            targets = [public.get(alias.name, f"{package}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            targets = [node.module]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and LAZY.fullmatch(node.value):
            targets = [node.value.partition(":")[0]]
        for target in targets:
            top, _, rest = target.partition(".")
            if top == package and rest:
                yield rest.partition(".")[0]


def public_homes(package: Path) -> Iterator[tuple[str, str]]:
    """Yield each public name that the package's own `__init__.py` imports, with its module."""
    source = (package / "__init__.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, node.module


def read_layers(package: Path) -> dict[str, int]:
    """Read the layer of each room from the contract of import-linter; empty where there is none."""
    path = package.parent / "pyproject.toml"
    if not path.exists():
        return {}
    linter = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("importlinter", {})
    for contract in linter.get("contracts", []):
        if contract["type"] == "layers":
            lines = enumerate(reversed(contract["layers"]))
            return {room: layer for layer, line in lines for room in re.split(r"\s*[:|]\s*", line)}
    return {}


# --- the walk of a recipe -----------------------------------------------------------------------------------


@dataclass
class Walk:
    """The functions of a package that hold a recipe or a plan while it runs.

    Attributes:
        package: Folder of the package.
        functions: Functions of each room that hold one.
        steps: Pairs of functions in different rooms: one that holds one, behind the one that called it.
        clock: Number of functions that have begun.
        begun: When each running function began, by its frame.
        entered: When the first function of each room that holds one began.
    """

    package: Path
    functions: dict[str, set[CodeType]] = field(default_factory=dict)
    steps: set[tuple[CodeType, CodeType]] = field(default_factory=set)
    clock: int = 0
    begun: dict[int, int] = field(default_factory=dict)
    entered: dict[str, int] = field(default_factory=dict)

    @property
    def rooms(self) -> list[str]:
        """The rooms that hold a recipe or a plan, in the order in which they are entered."""
        return sorted(self.entered, key=lambda room: self.entered[room])

    def room(self, code: CodeType) -> str:
        """Return the room of a function, "" for functions of other packages and of no room."""
        folder = f"{self.package}/"
        if not code.co_filename.startswith(folder):
            return ""
        return code.co_filename.removeprefix(folder).partition("/")[0].removesuffix(".py")

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Look at a frame as it begins (arguments) and as it ends (locals); for `sys.setprofile`."""
        if event not in ("call", "return"):
            return
        code = frame.f_code
        room = self.room(code)
        if not room:
            return
        if event == "call":
            self.clock += 1
            self.begun[id(frame)] = self.clock
        if not any(type(value).__name__ in CARRIED for value in frame.f_locals.values()):
            return
        self.functions.setdefault(room, set()).add(code)
        begun = self.begun.get(id(frame), 0)
        self.entered[room] = min(begun, self.entered.get(room, begun))
        caller = frame.f_back
        while caller and not self.room(caller.f_code):
            caller = caller.f_back
        if caller and self.room(caller.f_code) != room:
            self.steps.add((caller.f_code, code))


def trace_merge(package: Path) -> Walk:
    """Merge the adapters of examples/adapters by the command line of the package, and trace the recipe."""
    from riemerge.cli.commands import main as command

    walk = Walk(package)
    folders = [str(path) for path in sorted(EXAMPLES.iterdir()) if path.is_dir()]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        threading.setprofile(walk)
        sys.setprofile(walk)
        try:
            command(["merge", *folders, "-o", f"{folder}/merged", "--quiet"], standalone_mode=False)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    return walk


# --- words --------------------------------------------------------------------------------------------------


def describe_house(house: House) -> list[str]:
    """Return the drawing of a house, line by line."""
    height = max(house.storeys.values(), default=0)
    lines = [f"{len(house.rooms)} rooms on {height} storeys, {len(house.arrows)} arrows"]
    for room in sorted(house.rooms, key=lambda room: (-house.storeys.get(room, 0), room)):
        ends = sorted(house.below(room), key=lambda end: (-house.storeys.get(end, 0), end))
        arrows = ", ".join(f"{end} {house.arrows[room, end]}" for end in ends)
        lines.append(f"{house.storeys.get(room, 0):3}  {room} -> {arrows}".removesuffix(" -> "))
    return lines


def describe_walk(walk: Walk, house: House) -> list[str]:
    """Return the rooms of a walk, line by line, with the climbs between them."""
    lines = [f"a recipe enters {len(walk.rooms)} rooms"]
    lines += [f"     {room}: {len(walk.functions[room])} functions hold it" for room in walk.rooms]
    storeys = house.storeys
    pairs = [(walk.room(begin), walk.room(end), begin, end) for begin, end in walk.steps]
    climbs = [step for step in pairs if storeys.get(step[0], 0) < storeys.get(step[1], 0)]
    lines.append(f"{len(pairs)} calls from room to room, {len(climbs)} of them up")
    lines += sorted(
        f"     {above}.{begin.co_qualname} -> {below}.{end.co_qualname}"
        for above, below, begin, end in climbs
    )
    return lines


def faults(house: House, walk: Walk | None = None, limits: Limits = LIMITS) -> list[str]:
    """Return what is against the plan, in words."""
    height = max(house.storeys.values(), default=0)
    found = []
    if len(house.rooms) > limits.rooms:
        found.append(f"{len(house.rooms)} rooms, at most {limits.rooms}")
    if height > limits.storeys:
        found.append(f"{height} storeys, at most {limits.storeys}")
    if house.circle:
        found.append(f"a circle: {' -> '.join(reversed(house.circle))}")
    found += [f"an arrow up: {begin} -> {end}" for begin, end in house.climbs]
    if walk and len(walk.rooms) > limits.walk:
        found.append(f"a recipe enters {len(walk.rooms)} rooms, at most {limits.walk}")
    return found


def main() -> None:
    """Print the drawing, the walk if asked for, and what is against the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("package", nargs="?", type=Path, default=ROOT / "riemerge")
    parser.add_argument("--walk", action="store_true", help="Trace a recipe through riemerge, too.")
    options = parser.parse_args()
    package: Path = options.package.resolve()
    house = read_house(package)
    walk = trace_merge(package) if options.walk else None
    found = faults(house, walk)
    print("\n".join(describe_house(house)))
    if walk:
        print("\n".join(describe_walk(walk, house)))
    print("\n".join(found) or "nothing is against the plan")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
