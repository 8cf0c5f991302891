"""`riemerge inspect`: what is in adapters, and how far apart they are."""

from __future__ import annotations

import json

import click

from riemerge.cli.options import JSON
from riemerge.cli.terminal import answering, dump, loading, progress_on_stderr, say, show

_HELP = """Show what is in adapters, and how far apart each two of them are.

\b
  riemerge inspect snli mnli

Of many adapters, riemerge map compares all pairs, and finds copies, relatives and outliers."""


@click.command(help=_HELP)
@click.argument("folders", nargs=-1, required=True, metavar="ADAPTER...")
@click.option(
    "--distances", is_flag=True, help="Compute quotient distances too: a tenth of a second a pair and module."
)
@JSON
@click.option("-q", "--quiet", is_flag=True, help="Print no progress on stderr.")
@answering
def inspect(folders: tuple[str, ...], distances: bool, as_json: bool, quiet: bool) -> None:
    """Do what `riemerge inspect` is asked."""
    with loading():
        from riemerge.report.tables import inspection_report
        from riemerge.study.inspection import MANY, inspect_adapters

    with progress_on_stderr(quiet) as listener:
        inspection = inspect_adapters(folders, distances=distances, progress=listener)
    if as_json:
        dump(json.loads(inspection.to_json()))
    else:
        show(inspection_report(inspection))
        if len(folders) >= MANY:
            say("note: riemerge map compares many adapters: it finds copies, relatives and outliers")
