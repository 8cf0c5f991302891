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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol, final

import pytest

import riemerge
from tests.helpers import ROOT

PACKAGE = ROOT / "riemerge"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))

LINES = 400
MAY_BE_LONGER: frozenset[str] = frozenset()

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

    Exceptions, enumerations, protocols and tuples with names are what Python makes of them, and only the rule
    of overriding holds for them. A constructor is no method: a subclass may have its own. A method of another
    package's base class may be overridden, since that is what those ask for.
    """
    name = f"{cls.__module__}.{cls.__qualname__}"
    faults = []
    free = issubclass(cls, BaseException | enum.Enum) or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
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
            if method in methods(base) and not getattr(vars(base)[method], "__isabstractmethod__", False)
        ]
    return faults


def methods(cls: type) -> list[str]:
    kinds = (staticmethod, classmethod, property)
    return [
        name
        for name, value in vars(cls).items()
        if name != "__init__" and (inspect.isfunction(value) or isinstance(value, kinds))
    ]


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


@final
class Good(Base):
    def __init__(self) -> None:
        self.x = 1

    def asked(self) -> int:
        return 1


@final
class Overriding(Base):
    def asked(self) -> int:
        return 1

    def given(self) -> int:
        return 2


class Open:
    def given(self) -> int:
        return 1


class Halfway(Base):
    def asked(self) -> int:
        return 1


@final
class PropertyOverriding(Base):
    asked = None  # type: ignore[assignment]
    given = property(lambda self: 2)  # type: ignore[assignment]


class Extending(Good):  # type: ignore[misc]
    @abc.abstractmethod
    def more(self) -> int: ...


class Fields(NamedTuple):
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
        (PropertyOverriding, "overrides the concrete Base.given"),
        (Open, "neither abstract"),
        (Halfway, "neither abstract"),
        (Extending, "which is final"),
    ],
)
def test_a_class_against_the_rule_is_caught(cls: type, fault: str) -> None:
    assert any(fault in found for found in class_faults(cls, package=__name__.partition(".")[0]))


@pytest.mark.parametrize("cls", [Base, Good, Fields, PlantedError, Kind, Shape])
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


# --- length and words ---------------------------------------------------------------------------------------


def long_files(paths: Iterable[Path], limit: int = LINES) -> list[str]:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    return [f"{path.name}: {length} lines" for path, length in lengths.items() if length > limit]


def test_no_file_is_longer_than_its_idea() -> None:
    assert long_files(path for path in SOURCES if str(path.relative_to(PACKAGE)) not in MAY_BE_LONGER) == []


def test_a_long_file_is_caught(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("x = 1\n" * (LINES + 1))
    (tmp_path / "short.py").write_text("x = 1\n" * LINES)
    assert long_files(sorted(tmp_path.iterdir())) == [f"long.py: {LINES + 1} lines"]


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


def help_of(*words: str) -> str:
    return (
        f"import sys; sys.argv = ['riemerge', {', '.join(map(repr, words))}]\n"
        "from riemerge.cli.commands import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )


def test_import_riemerge_loads_nothing_heavy() -> None:
    assert heavy_imports("import riemerge; riemerge.__version__; riemerge.RiemergeError; dir(riemerge)") == []


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["merge", "--help"], ["evaluate", "--help"]], ids=" ".join
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    assert heavy_imports(help_of(*words)) == []


def test_a_logarithm_loads_no_computer_algebra() -> None:
    """torch's symbolic shapes load sympy, which takes longer than a small merge."""
    lines = "import torch\nfrom riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold\n"
    lines += "from riemerge import frechet_mean\ntotal = FixedRank(9, 9, 2)\n"
    lines += "points = [total.random_point() for _ in range(2)]\n"
    lines += "frechet_mean(QuotientManifold(total, Orthogonal(2)), points)\n{}"
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
