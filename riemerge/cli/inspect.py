"""`riemerge inspect`: what is in adapters, and how far apart they are."""

from __future__ import annotations

import json

import click

from riemerge.cli.options import JSON
from riemerge.cli.terminal import answering, dump, progress_on_stderr, show

_HELP = """Show what is in adapters, and how far apart each two of them are.

\b
  riemerge inspect snli mnli"""


@click.command(help=_HELP)
@click.argument("folders", nargs=-1, required=True, metavar="ADAPTER...")
@JSON
@click.option("-q", "--quiet", is_flag=True, help="Print no progress on stderr.")
@answering
def inspect(folders: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Do what `riemerge inspect` is asked."""
    from riemerge.report.tables import inspection_report
    from riemerge.study.inspection import inspect_adapters

    with progress_on_stderr(quiet) as listener:
        inspection = inspect_adapters(folders, progress=listener)
    if as_json:
        dump(json.loads(inspection.to_json()))
    else:
        show(inspection_report(inspection))
