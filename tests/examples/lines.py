"""How lines of code are counted: no blank lines, comments or docstrings; of plug-ins, no imports either."""

from __future__ import annotations

import ast
import io
import tokenize

_LAYOUT = frozenset(
    (
        *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
        *(tokenize.ENCODING, tokenize.ENDMARKER),
    )
)


def code_lines(source: str, *, imports: bool = True) -> int:
    """Count the lines that hold a token, docstrings and other bare strings aside."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                lines -= _lines_of(node)
            case ast.Import() | ast.ImportFrom() if not imports:
                lines -= _lines_of(node)
    return len(lines)


def _lines_of(node: ast.stmt) -> set[int]:
    return set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
