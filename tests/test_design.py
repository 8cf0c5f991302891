"""The house rules that a machine can hold: each checker is applied to riemerge, and seen to catch a planted
fault."""

from __future__ import annotations

import abc
import ast
import enum
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypedDict, final, is_typeddict

import click
import pytest

import riemerge
from tests import words
from tests.helpers import ROOT
from tools.lines import count, count_under, rooms

PACKAGE = ROOT / "riemerge"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))

# DESIGN: one thing, one word. Only words that can mean nothing else here.
BANNED_WORDS = {
    r"bary-?cent(er|re|ric)s?": "Fréchet mean",
    r"centroids?": "Fréchet mean",
    r"task[ -]vectors?": "update",
    r"(sparsif|prun)(y|ied|ies|ying|e|ed|es|ing)": "trim or drop",
    r"max_?iter": "budget",
}

HEAVY = ("torch", "numpy", "scipy", "sympy", "pymanopt", "safetensors", "transformers", "peft")


# --- classes: abstract or final, and no concrete method overridden ------------------------------------------


def class_faults(cls: type, package: str = "riemerge") -> list[str]:
    """What is against the rule in one class.

    Exceptions, enumerations, protocols, tuples and dictionaries with names are what Python makes of them, and
    only the rule of overriding holds for them. A constructor is no method: a subclass may have its own. A
    method of another package's base class may be overridden, since that is what those ask for.
    """
    name = f"{cls.__module__}.{cls.__qualname__}"
    faults = []
    tuples = issubclass(cls, tuple) and hasattr(cls, "_fields")
    free = issubclass(cls, BaseException | enum.Enum) or is_typeddict(cls) or tuples
    abstract = inspect.isabstract(cls) or abc.ABC in cls.__bases__ or getattr(cls, "_is_protocol", False)
    if not (free or abstract or "__final__" in vars(cls)):
        faults.append(f"{name} is neither abstract (abc.ABC, abstract methods) nor typing.final")
    for base in cls.__mro__[1:]:
        if base.__module__.partition(".")[0] != package:
            continue
        if "__final__" in vars(base):
            faults.append(f"{name} extends {base.__qualname__}, which is final")
        faults += [
            f"{name}.{method} overrides the concrete {base.__qualname__}.{method}"
            for method in methods(cls)
            if method in methods(base)
            and not getattr(vars(base)[method], "__isabstractmethod__", False)
            and not generated(vars(base)[method])
            and not derived(vars(base)[method])
        ]
    return faults


def derived(method: object) -> bool:
    """Tell whether a method is a default that may be overridden: it is not final, and a sentence of its
    docstring begins with the word."""
    return bool(re.search(r"\bDerived[:,]", inspect.getdoc(method) or "")) and not is_final(method)


def is_final(method: object) -> bool:
    return bool(getattr(getattr(method, "fget", method), "__final__", False))


def methods(cls: type) -> list[str]:
    kinds = (staticmethod, classmethod, property)
    return [
        name
        for name, value in vars(cls).items()
        if name != "__init__" and (inspect.isfunction(value) or isinstance(value, kinds))
    ]


def generated(method: object) -> bool:
    """Tell whether a method is what `dataclass` makes, which each dataclass has for its own fields."""
    return inspect.isfunction(method) and inspect.unwrap(method).__code__.co_filename == "<string>"


def modules() -> Iterator[ModuleType]:
    yield riemerge
    for found in pkgutil.walk_packages(riemerge.__path__, "riemerge."):
        yield importlib.import_module(found.name)


def own(module: ModuleType, kind: Callable[[Any], bool]) -> list[Any]:
    """What a module defines itself, rather than imports."""
    return [value for value in vars(module).values() if kind(value) and value.__module__ == module.__name__]


def test_classes_are_abstract_or_final_and_override_nothing_concrete() -> None:
    assert [
        fault for module in modules() for cls in own(module, inspect.isclass) for fault in class_faults(cls)
    ] == []


class Base(abc.ABC):
    @abc.abstractmethod
    def asked(self) -> int: ...

    def given(self) -> int:
        return 1

    def doubled(self) -> int:
        """Return two. Derived: from `given`."""
        return 2 * self.given()

    @final
    def tripled(self) -> int:
        """Return three. Derived: from `given`, for good."""
        return 3 * self.given()


@final
class Good(Base):
    def __init__(self) -> None:
        self.x = 1

    def asked(self) -> int:
        return 1

    def doubled(self) -> int:
        return 2


@final
class Overriding(Base):
    def asked(self) -> int:
        return 1

    def given(self) -> int:
        return 2


@final
class OverridingForGood(Base):
    def asked(self) -> int:
        return 1

    def tripled(self) -> int:  # type: ignore[misc]
        return 4


@dataclass(frozen=True)
class Record(abc.ABC):
    x: int

    @abc.abstractmethod
    def asked(self) -> int: ...

    def __str__(self) -> str:
        return f"{self.x}"


@final
@dataclass(frozen=True)
class LongRecord(Record):
    y: int

    def asked(self) -> int:
        return self.y


@final
@dataclass(frozen=True)
class OverridingRecord(Record):
    def asked(self) -> int:
        return 1

    def __str__(self) -> str:
        return "x"


class Open:
    def given(self) -> int:
        return 1


class Halfway(Base):
    def asked(self) -> int:
        return 1


@final
class PropertyOverriding(Base):
    asked = None  # type: ignore[assignment]
    given = property(lambda self: 2)


class Extending(Good):  # type: ignore[misc]
    @abc.abstractmethod
    def more(self) -> int: ...


class Fields(NamedTuple):
    x: int


class Keys(TypedDict, total=False):
    x: int


class PlantedError(Exception):
    pass


class Kind(enum.Enum):
    ONE = "one"


class Shape(Protocol):
    def area(self) -> float: ...


@pytest.mark.parametrize(
    ("cls", "fault"),
    [
        (Overriding, "overrides the concrete Base.given"),
        (OverridingForGood, "overrides the concrete Base.tripled"),
        (PropertyOverriding, "overrides the concrete Base.given"),
        (OverridingRecord, "overrides the concrete Record.__str__"),
        (Open, "neither abstract"),
        (Halfway, "neither abstract"),
        (Extending, "which is final"),
    ],
)
def test_a_class_against_the_rule_is_caught(cls: type, fault: str) -> None:
    assert any(fault in found for found in class_faults(cls, package=__name__.partition(".")[0]))


@pytest.mark.parametrize("cls", [Base, Good, Record, LongRecord, Fields, Keys, PlantedError, Kind, Shape])
def test_a_class_within_the_rule_passes(cls: type) -> None:
    assert class_faults(cls, package=__name__.partition(".")[0]) == []


# --- docstrings ---------------------------------------------------------------------------------------------


def missing_docstrings(source: str) -> list[str]:
    """The public things of a source text without a docstring: the module, its classes, functions and methods.

    A method whose docstring stands on the abstract one needs no second: within a class, what has a base is
    left out.
    """
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            missing.append(node.name)
        if isinstance(node, ast.ClassDef) and not node.bases:
            missing += [
                f"{node.name}.{method.name}"
                for method in node.body
                if isinstance(method, ast.FunctionDef)
                and not method.name.startswith("_")
                and not ast.get_docstring(method)
            ]
    return missing


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_things_have_docstrings(path: Path) -> None:
    assert missing_docstrings(path.read_text(encoding="utf-8")) == []


def test_a_missing_docstring_is_caught() -> None:
    assert missing_docstrings("def f(): ...\nclass C:\n    def m(self): ...\n    def _p(self): ...") == [
        "the module",
        "f",
        "C",
        "C.m",
    ]


# --- words: the rules of writing, each with planted faults --------------------------------------------------

PLANTED: dict[str, tuple[str, list[int]]] = {
    "openings": (
        '''"""Of all modules together."""
def f(width, dtype, likeness):
    """Return the mean of `width` numbers.

    It may have been computed again.

    Args:
        width: Of the matrix,
            that of the inputs.
        dtype: Likewise.
        likeness: As `merge`.
            Of no importance.
        count: The number of modules.

    Returns:
        The same factors.

    Raises:
        ValueError: It is not positive.
        TypeError: Those of `merge`.
    """
    click.option("--seed", help="Of these draws.")
    click.option("--seed", help=f"Its {width}.")
class C:
    """A value.

    Attributes:
        x (int): Which of the rows count.
        y: As many numbers as rows.
        z: Offset of the rows.
        name: Item of a list.
    """''',
        [1, 8, 10, 11, 16, 19, 20, 22, 23, 28],
    ),
    "notation": (
        '''def f(x):
    """Return U'U and tr(A' B).

    The adapter's F is sum_i w_i d^2 of T's modules, at most ||x||, or \u2016x\u2016.
    """
    # (A B)'C, W_jk^2 and N^-1; don't, PEFT's and x_train are no formulas; O(r)^T is a product
    raise ValueError("d^2 is negative", f"{x} at U^T", "tangent_vector_a")''',
        [2, 2, 4, 4, 4, 4, 6, 6, 6, 6, 7, 7],
    ),
    "sections": (
        '''def f(x):
    """Return the mean.

    **Law:** idempotent. Law: this is in its place.
    Laws: two.
    Law - idempotent.

    Arguments:
        x: Number.

    Example:
        f(1)

    Source: Karcher 1977. *Cost:* two passes. The cost is low.
    Cost: two passes.
    Note:
        None.
    """''',
        [4, 5, 6, 8, 14, 16],
    ),
    "imperative": (
        '''def f():
    """Returns the mean."""
def g():
    """The mean."""
def h():
    """Whether there is one."""
def i():
    """Return the mean of rows."""
class C:
    """Keeps a mean."""
    @property
    def mean(self):
        """The mean."""
    @functools.cached_property
    def other(self):
        """The other mean."""
    def _private(self):
        """Computes: what follows."""''',
        [2, 4, 6, 18],
    ),
    "participles": (
        """def _missed(): ...
def made_by(): ...
def whitened_mean(): ...
def narrow(): ...
def need(): ...
def balanced(): ...
class C:
    @property
    def scaled(self): ...
    def replaced(self): ...
    def seed(self): ...""",
        [1, 2, 10],
    ),
}


@pytest.mark.parametrize(
    ("check", "room"),
    [
        pytest.param(check, room, id=f"{check}-{room.stem}")
        for check in words.CHECKS
        for room in rooms(PACKAGE)
    ],
)
def test_a_room_is_written_by_the_rules(check: str, room: Path) -> None:
    sources = map(words.Source, words.files(room))
    assert [str(fault) for source in sources for fault in words.CHECKS[check](source)] == []


@pytest.mark.parametrize("check", words.CHECKS)
def test_writing_against_a_rule_is_caught(check: str) -> None:
    text, lines = PLANTED[check]
    faults = list(words.CHECKS[check](words.Source(Path("planted.py"), text)))
    assert sorted(fault.line for fault in faults) == lines, "\n".join(map(str, faults))


def test_help_is_understood_alone() -> None:
    from riemerge.cli.commands import main

    assert words.help_fragments(main) == []


def test_help_that_is_not_understood_alone_is_caught() -> None:
    seed = click.Option(["--seed"], help="Of these draws.")
    count = click.Option(["--count"], help="Number of draws.")
    group = click.Group(
        "riemerge", help="Merge.", commands={"merge": click.Command("merge", params=[seed, count])}
    )
    assert words.help_fragments(group) == ["riemerge merge --seed: opens with 'Of': Of these draws."]


def test_conditional_expressions_are_rare() -> None:
    assert count_under(PACKAGE).share <= words.CONDITIONALS


def test_conditional_expressions_are_counted_in_lines_of_code() -> None:
    text = '"""A module.\n\nOf two lines."""\n\n# Why.\nx = (\n    1 if y else 2\n)\n'
    text += 'z = """\n"""  # a = 1 if b else 2\n'
    assert count(text) == (5, 10, 1)


def test_modules_have_names_of_their_own() -> None:
    assert words.repeated_names(SOURCES) == []


def test_a_name_of_two_modules_is_caught() -> None:
    paths = [
        Path(name) for name in ("a/__init__.py", "b/__init__.py", "a/merge.py", "b/merge.py", "b/plan.py")
    ]
    assert words.repeated_names(paths) == ["merge.py: 2 modules"]


@pytest.mark.parametrize("room", rooms(PACKAGE), ids=lambda room: str(room.stem))
def test_a_module_with_logic_has_a_test_file_of_its_name(room: Path) -> None:
    assert words.untested(PACKAGE, ROOT / "tests", room) == []


def test_a_module_without_a_test_file_is_caught(tmp_path: Path) -> None:
    data = "X = 1\nclass E(Exception):\n    def __init__(self, x):\n        self.x = x\n        self.y = x\n"
    package, tests = tmp_path / "package", tmp_path / "tests"
    for folder in (package / "room", tests / "room"):
        folder.mkdir(parents=True)
    (package / "room" / "__init__.py").write_text("def f(x):\n    for y in x: ...\n")
    (package / "room" / "data.py").write_text(data)
    (package / "room" / "types.py").write_text("class P(Protocol):\n    def f(self) -> int: ...\n")
    (package / "room" / "tested.py").write_text("def f(x):\n    return [y for y in x]\n")
    (package / "room" / "forgotten.py").write_text("def f(x):\n    return [y for y in x]\n")
    (tests / "room" / "test_tested.py").touch()
    fault = "package/room/forgotten.py: no tests/room/test_forgotten.py"
    assert words.untested(package, tests, package / "room") == [fault]


def banned_words(text: str) -> list[str]:
    """Banned words with their lines; where a line cites a year or quotes in backticks, others' words pass."""
    return [
        f"line {number}: {match.group()!r}, say {say}"
        for number, line in enumerate(text.splitlines(), 1)
        if not re.search(r"\b(19|20)\d\d\b", line)
        for word, say in BANNED_WORDS.items()
        for match in re.finditer(rf"\b{word}\b", re.sub(r"`[^`]*`", "", line), re.IGNORECASE)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_one_thing_has_one_word(path: Path) -> None:
    assert banned_words(path.read_text(encoding="utf-8")) == []


def test_a_banned_word_is_caught() -> None:
    text = [
        "The Barycenter.",
        "A task vector.",
        "max_iter = 3",
        "task vectors (Ilharco 2023)",
        "its `centroid`",
    ]
    found = [line.partition(":")[0] for line in banned_words("\n".join(text))]
    assert found == ["line 1", "line 2", "line 3"]


# --- what is imported when ----------------------------------------------------------------------------------


def heavy_imports(statements: str) -> list[str]:
    """The heavy packages that are loaded once the statements ran in a fresh interpreter."""
    report = f"import sys; print('LOADED', *(m for m in {HEAVY!r} if m in sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", f"{statements}\n{report}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return ran.stdout.splitlines()[-1].split()[1:]


def help_of(*arguments: str) -> str:
    return (
        f"import sys; sys.argv = ['riemerge', {', '.join(map(repr, arguments))}]\n"
        "from riemerge.cli.commands import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )


def test_import_riemerge_loads_nothing_heavy() -> None:
    assert heavy_imports("import riemerge; riemerge.__version__; riemerge.RiemergeError; dir(riemerge)") == []


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["merge", "--help"], ["evaluate", "--help"]], ids=" ".join
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert heavy_imports(help_of(*arguments)) == []


def test_a_logarithm_loads_no_computer_algebra() -> None:
    """torch's symbolic shapes load sympy, which takes longer than a small merge."""
    lines = "import torch\nfrom riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold\n"
    lines += "from riemerge import Problem, frechet_mean\ntotal = FixedRank(9, 9, 2)\n"
    lines += "points = [total.random_point() for _ in range(2)]\n"
    lines += "frechet_mean(Problem(QuotientManifold(total, Orthogonal(2)), points))\n{}"
    assert "sympy" not in heavy_imports(lines.format(""))
    assert "sympy" in heavy_imports(lines.format("torch.broadcast_shapes((2,), (1,))"))


def test_a_heavy_import_is_caught() -> None:
    assert "numpy" in heavy_imports("import riemerge, numpy")


# --- the direction of imports -------------------------------------------------------------------------------


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package `riemerge` in a folder, by the contracts of the pyproject.toml
    there."""
    script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=folder
    )


def test_imports_go_downward_only() -> None:
    ran = lint_imports(ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("manifolds/base.py", "import riemerge.methods"),
        ("manifolds/base.py", "import riemerge.updates"),
        ("frechet/__init__.py", "import riemerge.formats.peft"),
        ("formats/__init__.py", "import riemerge.frechet"),
        ("updates/__init__.py", "import riemerge.manifolds"),
        ("manifolds/base.py", "import safetensors"),
        ("errors.py", "import riemerge.methods"),
        ("unplaced.py", ""),
    ],
)
def test_an_import_against_the_direction_is_caught(tmp_path: Path, module: str, statement: str) -> None:
    (tmp_path / "pyproject.toml").write_text(
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    for path in SOURCES:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    assert lint_imports(tmp_path).returncode == 0
    with (tmp_path / "riemerge" / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{statement}\n")
    ran = lint_imports(tmp_path)
    assert ran.returncode != 0
    assert "Broken contracts" in ran.stdout or "unplaced" in ran.stdout + ran.stderr
