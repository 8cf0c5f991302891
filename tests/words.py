"""The rules of writing that a machine can hold, as checks of files: python -m tests.words riemerge/methods

Each check takes one source file and yields its faults. `tests/test_design.py` applies them to every room of
the package, and shows that each catches a planted fault.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import click

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "riemerge"

SECTIONS = ("Law", "Args", "Attributes", "Returns", "Yields", "Raises", "Example", "Source", "Cost", "Shapes")
"""The sections that a docstring may have, in their only spelling: the word, a colon, no markup."""

ENTRIES = ("Args", "Attributes", "Raises")
"""The sections whose lines are `name: description`."""

# Openings that need another line, or the code, to be understood.
FRAGMENT = re.compile(
    r"(Of|The same|Likewise|Ditto|Such|(That|Those) (of|which|that|in|by|with|called)|"
    r"As(?! (many|much|few) )|It|Its|They|Their|Which|Whose|Who)\b",
)

# One notation: Uᵀ, Σ, wᵢ, d², ‖x‖.
NOTATION = {
    r"(?<![\w'\"])[A-Z]{1,2}'(?!s\b)(?=[\w(\s).,;:*+=-]|$)": "a transpose is Uᵀ",
    r"(?<!['\"])\)'(?=[A-Z(])": "a transpose is (A B)ᵀ",
    r"(?<=\w)\^T\b": "a transpose is Uᵀ",
    r"\b[Ss]um_[a-z]\b": "a sum is Σ wᵢ",
    r"\b[A-Za-z]_[ijkt]{1,2}\b": "an index is wᵢ, dWₖ",
    r"(?<=[\w)])\^(-?[1-9])\b": "a power is d²",
    r"\|\|[^|\n]{1,30}\|\|": "a norm is ‖x‖",
}

SECTION_WORDS = (
    "Laws?|Args|Arguments|Parameters|Attributes|Returns?|Yields?|Raises?|Examples?|Sources?|Costs?|Shapes?|"
    "Notes?|References?"
)
SECTION_STARTS = re.compile(rf"^\s*(?P<markup>\**)(?P<word>{SECTION_WORDS})(?P<end>\**\s?[:—–-]\**)(?=\s|$)")
MARKED_UP = re.compile(rf"\*+(?P<word>{SECTION_WORDS})\b[:.]?\*+")

# Verbs in the third person that have opened docstrings of functions, and their like.
VERBS = """
Accepts Adds Advances Aligns Answers Appends Applies Ascends Asks Averages Backtracks Balances Brings Builds
Calls Carries Checks Chooses Closes Collects Combines Compares Completes Computes Continues Converts Copies
Creates Cuts Decides Decomposes Descends Describes Differentiates Divides Does Draws Drops Elects Ends
Evaluates Factors Fills Filters Finds Fits Follows Freezes Gets Gives Goes Halves Has Holds Inspects Is
Iterates Joins Keeps Lets Lifts Lists Loads Looks Lowers Makes Marks Matches Measures Merges Minimises Moves
Multiplies Names Narrows Normalises Opens Orthonormalises Pads Parses Polishes Prepares Prints Projects
Publishes Puts Raises Reads Records Reduces Refines Refuses Removes Renders Replaces Reports Resolves
Restores Retracts Returns Reverses Rotates Rounds Runs Saves Says Scales Scores Screens Searches Sees
Selects Sets Shows Skips Solves Sorts Splits Squares Stacks Starts States Stops Stores Summarises Sums Takes
Tells Tests Transports Tries Trims Truncates Turns Updates Uses Validates Walks Weighs Whitens Wraps Writes
Yields
"""
THIRD_PERSON = frozenset(VERBS.split())

# Words that open a noun, a question or a circumstance, never an order.
OTHER_OPENINGS = """
A All An Around As At By Every For How Its One That The Those What Where Whether Which While Why
"""
NO_ORDER = frozenset(OTHER_OPENINGS.split())

# A function named by one of these, or by a word in -ed, is named by a participle; the exceptions are verbs.
IRREGULAR = """
broken chosen drawn found given held kept known left lost made said seen sent shown shrunk sought taken told
written
"""
VERBS_IN_ED = frozenset({"embed", "exceed", "feed", "need", "proceed", "seed", "shed", "speed"})
PARTICIPLE = re.compile(rf"\w+ed|{'|'.join(IRREGULAR.split())}")
PREPOSITIONS = (
    "after again apart at before by for from in into of off on over so to together up with within worse"
)
LINKS = frozenset(PREPOSITIONS.split())

CONDITIONALS = 10
"""The most conditional expressions that the package may have in 1,000 lines of code."""


class Fault(NamedTuple):
    """One line against a rule."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


class Docstring(NamedTuple):
    """A docstring with the node that it describes; `lines` have their numbers in the file."""

    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    lines: list[tuple[int, str]]


class Source:
    """A source file, parsed once for all checks."""

    def __init__(self, path: Path, text: str | None = None) -> None:
        self.path = path
        self.text = path.read_text(encoding="utf-8") if text is None else text
        self.tree = ast.parse(self.text)

    def fault(self, line: int, text: str) -> Fault:
        return Fault(self.path, line, text)

    @cached_property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        return [
            node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]

    @cached_property
    def docstrings(self) -> list[Docstring]:
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        documented = []
        for node in ast.walk(self.tree):
            if not isinstance(node, kinds) or not node.body:
                continue
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                text = first.value.value
                if isinstance(text, str):
                    documented.append(Docstring(node, list(enumerate(text.splitlines(), first.lineno))))
        return documented

    @cached_property
    def texts(self) -> list[tuple[int, str]]:
        """All comments and strings, docstrings among them, line by line."""
        lines: list[tuple[int, str]] = []
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if (
                token.type in (tokenize.COMMENT, tokenize.STRING)
                or tokenize.tok_name[token.type] == "FSTRING_MIDDLE"
            ):
                lines += enumerate(token.string.splitlines(), token.start[0])
        return lines


# --- openings -----------------------------------------------------------------------------------------------


def openings(docstring: Docstring) -> Iterator[tuple[int, str]]:
    """Yield the first line of the summary and of each entry of a section, with its name taken off."""
    section, depth = "", 0
    for place, (number, line) in enumerate(docstring.lines):
        text, indent = line.strip(), len(line) - len(line.lstrip())
        header = re.fullmatch(rf"({'|'.join(SECTIONS)}):", text)
        if place == 0:
            yield number, text
        elif header:
            section, depth = header[1], 0
        elif text and section:
            depth = depth or indent
            if indent == depth and section in ENTRIES:
                yield number, re.sub(r"^[\w.*, ()\[\]|]+?:\s+", "", text, count=1)
            elif indent == depth:
                yield number, text
                section = ""
        opened = re.match(rf"({'|'.join(SECTIONS)}): +(.+)", text)
        if opened and place:
            section = ""
            yield number, opened[2]


def fragments(source: Source) -> Iterator[Fault]:
    """Find summaries, entries and help texts that cannot be understood alone."""
    for docstring in source.docstrings:
        for number, text in openings(docstring):
            if match := FRAGMENT.match(text):
                yield source.fault(number, f"opens with {match[0]!r}: {text[:60]!r}")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.keyword) and node.arg in ("help", "summary"):
            strings = [part for part in ast.walk(node.value) if isinstance(part, ast.Constant)]
            text = str(strings[0].value) if strings else ""
            if match := FRAGMENT.match(text):
                yield source.fault(node.value.lineno, f"opens with {match[0]!r}: {text[:60]!r}")


def help_fragments(command: click.Command, name: str = "riemerge") -> list[str]:
    """Find help texts of a command, its options and its subcommands that cannot be understood alone."""
    texts = [(name, command.help or "")]
    texts += [
        (f"{name} {option.opts[0]}", option.help or "")
        for option in command.params
        if isinstance(option, click.Option)
    ]
    faults = [
        f"{where}: opens with {match[0]!r}: {text}"
        for where, text in texts
        if (match := FRAGMENT.match(text))
    ]
    if isinstance(command, click.Group):
        for word, sub in command.commands.items():
            faults += help_fragments(sub, f"{name} {word}")
    return faults


# --- notation, sections, the imperative ---------------------------------------------------------------------


def notation(source: Source) -> Iterator[Fault]:
    """Find formulas in another notation than Uᵀ, Σ, wᵢ, d², ‖x‖, in docstrings, comments and messages."""
    for number, line in source.texts:
        for pattern, say in NOTATION.items():
            for match in re.finditer(pattern, line):
                yield source.fault(number, f"{match[0]!r}, {say}: {line.strip()[:70]!r}")


def sections(source: Source) -> Iterator[Fault]:
    """Find sections of docstrings in another spelling than `Word:`."""
    for docstring in source.docstrings:
        for number, line in docstring.lines:
            start = SECTION_STARTS.match(line)
            if start and (start["markup"] or start["end"] != ":" or start["word"] not in SECTIONS):
                yield source.fault(number, f"section {start[0].strip()!r}: {line.strip()[:60]!r}")
            elif match := MARKED_UP.search(line):
                yield source.fault(
                    number, f"section {match[0]!r}, say '{match['word']}:': {line.strip()[:60]!r}"
                )


def orders(source: Source) -> Iterator[Fault]:
    """Find docstrings of functions that open with no order. Those of properties are nouns."""
    nouns = {"property", "cached_property"}
    for docstring in source.docstrings:
        node = docstring.node
        if isinstance(node, ast.Module | ast.ClassDef):
            continue
        if any(ast.unparse(decorator).rpartition(".")[2] in nouns for decorator in node.decorator_list):
            continue
        number, text = docstring.lines[0]
        word = re.split(r"[\s,.:;]", text, maxsplit=1)[0]
        if word in THIRD_PERSON or word in NO_ORDER:
            yield source.fault(number, f"{node.name}: {word!r} is no verb in the imperative: {text[:60]!r}")


# --- names --------------------------------------------------------------------------------------------------


def participles(source: Source) -> Iterator[Fault]:
    """Find functions whose name is a participle, alone or with a preposition: `_missed`, `made_by`.

    A property may be an adjective, and the formula of a method bears the method's name.
    """
    for function in source.functions:
        if any(ast.unparse(decorator).endswith("property") for decorator in function.decorator_list):
            continue
        first, *others = function.name.strip("_").split("_")
        participle = PARTICIPLE.fullmatch(first) and first not in VERBS_IN_ED
        if participle and LINKS.issuperset(others[:1]) and function.name not in method_names():
            yield source.fault(function.lineno, f"{function.name!r} is a participle; functions are verbs")


def method_names() -> set[str]:
    from riemerge.methods import METHODS

    return set(METHODS)


def repeated_names(paths: Iterable[Path]) -> list[str]:
    """Find names that several modules share."""
    names = Counter(path.name for path in paths if path.name != "__init__.py")
    return [f"{name}: {count} modules" for name, count in names.items() if count > 1]


# --- a test file for each module ----------------------------------------------------------------------------


def has_logic(source: Source) -> bool:
    """Tell whether a module decides or computes anything.

    Data (rows, constants), types and protocols do not: each of their functions, if there are any, is a stub,
    or one `return` or `raise` without a loop, or the assignments by which an object is made.
    """
    plain = (ast.Return, ast.Raise, ast.Expr, ast.Assign, ast.AnnAssign, ast.Pass)
    for function in source.functions:
        body = [statement for statement in function.body if not is_docstring(statement)]
        makes = function.name in ("__init__", "__post_init__", "__str__", "__repr__")
        if len(body) > 1 and not makes:
            return True
        if not all(isinstance(statement, plain) for statement in body):
            return True
        if any(isinstance(node, ast.comprehension) for statement in body for node in ast.walk(statement)):
            return True
    return False


def is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def untested(package: Path, tests: Path, room: Path) -> list[str]:
    """Find modules with logic that have no test file of their name in the folder that mirrors theirs."""
    faults = []
    for path in files(room):
        test = tests / path.relative_to(package).parent / f"test_{path.name}"
        if path.name != "__init__.py" and not test.exists() and has_logic(Source(path)):
            faults.append(f"{path.relative_to(package.parent)}: no {test.relative_to(tests.parent)}")
    return faults


# --- by hand ------------------------------------------------------------------------------------------------

CHECKS: dict[str, Callable[[Source], Iterator[Fault]]] = {
    "openings": fragments,
    "notation": notation,
    "sections": sections,
    "imperative": orders,
    "participles": participles,
}


def files(room: Path) -> list[Path]:
    """Return the Python files of a room, which is a folder or a file."""
    return [room] if room.is_file() else sorted(room.rglob("*.py"))


def main(words: list[str]) -> int:
    """Print the faults of files and folders, and how many there are by each check."""
    from tools.lines import count_under

    counts: Counter[str] = Counter()
    for room in [Path(word).resolve() for word in words] or [PACKAGE]:
        for path in files(room):
            source = Source(path)
            for check, find in CHECKS.items():
                for fault in find(source):
                    counts[check] += 1
                    print(f"{fault._replace(path=path.relative_to(ROOT))} [{check}]")
        for text in untested(PACKAGE, ROOT / "tests", room) if room.is_relative_to(PACKAGE) else ():
            counts["mirror"] += 1
            print(f"{text} [mirror]")
        total = count_under(room)
        print(
            f"{room.relative_to(ROOT)}: {total.code} lines of code, "
            f"{total.share:.1f} conditional expressions in 1,000"
        )
    print(", ".join(f"{check} {number}" for check, number in counts.items()) or "no faults")
    return bool(counts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
