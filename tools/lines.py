"""Count lines of code and conditional expressions, room by room: python -m tools.lines [--files]

A line of code holds a token that is neither a comment nor part of a docstring; blank lines are none.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from pathlib import Path
from typing import NamedTuple

SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


class Count(NamedTuple):
    """What is counted in one source text, or in several together.

    Attributes:
        code: Lines of code.
        physical: All lines.
        conditionals: Conditional expressions, `a if c else b`.
    """

    code: int
    physical: int
    conditionals: int

    @property
    def share(self) -> float:
        """Conditional expressions in 1,000 lines of code."""
        return 1000 * self.conditionals / max(self.code, 1)


def count(source: str) -> Count:
    """Count one source text."""
    tree = ast.parse(source)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    conditionals = 0
    for node in ast.walk(tree):
        conditionals += isinstance(node, ast.IfExp)
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return Count(len(lines), len(source.splitlines()), conditionals)


def count_under(path: Path) -> Count:
    """Count one file, or all Python files under a folder together."""
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    counts = [count(file.read_text(encoding="utf-8")) for file in files]
    return Count(*(sum(column) for column in zip(*counts, strict=True))) if counts else Count(0, 0, 0)


def rooms(package: Path) -> list[Path]:
    """Return the top-level folders and files of a package, without its `__init__.py`."""
    entries = [path for path in sorted(package.iterdir()) if path.name not in ("__init__.py", "__pycache__")]
    return [path for path in entries if path.suffix == ".py" or any(path.rglob("*.py"))]


def main() -> None:
    """Print a line for each room, or for each file, and the total."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("package", nargs="?", type=Path, default=Path("riemerge"))
    arguments.add_argument("--files", action="store_true", help="A line for each file instead of each room.")
    options = arguments.parse_args()
    package: Path = options.package
    paths = sorted(package.rglob("*.py")) if options.files else rooms(package)
    print(f"{'code':>7} {'lines':>7} {'a if c else b':>14} {'in 1,000':>9}")
    for path in [*paths, package]:
        total = count_under(path)
        print(f"{total.code:7} {total.physical:7} {total.conditionals:14} {total.share:9.1f}  {path}")


if __name__ == "__main__":
    main()
