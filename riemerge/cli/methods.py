"""`riemerge methods`: the table of methods, and a page for each."""

from __future__ import annotations

from dataclasses import asdict

import click

from riemerge.cli.options import JSON, PLUGIN
from riemerge.cli.terminal import answering, dump, show
from riemerge.methods import METHODS, find_method

_HELP = """Show all methods; or explain those that are named: a command, the formula, every parameter.

\b
  riemerge methods ties"""


@click.command(help=_HELP)
@click.argument("names", nargs=-1, metavar="[METHOD]...")
@PLUGIN
@JSON
@answering
def methods(names: tuple[str, ...], as_json: bool) -> None:
    """Do what `riemerge methods` is asked."""
    rows = [find_method(name) for name in names or METHODS]
    if as_json:
        dump([{**asdict(row), "parameters": row.parameters, "defaults": row.defaults} for row in rows])
        return

    from riemerge.report.tables import method_report, methods_report

    if not names:
        show(methods_report(rows))
    for name in names:
        show(method_report(find_method(name)))
