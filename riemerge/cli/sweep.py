"""`riemerge sweep`: merges with all weights of a grid."""

from __future__ import annotations

from typing import Any

import click

from riemerge.cli.options import (
    HELP_ALL,
    MERGING,
    SCORER,
    SectionedCommand,
    method_option,
    output_option,
    read_options,
)
from riemerge.cli.terminal import answering, loading, progress_on_stderr, show_made

_HELP = """Merge models with all weights of a grid, each merge in a folder of its own.

\b
  riemerge sweep a b -o path --steps 11

Of two models, path/0.00 is the first and path/1.00 the second. A sweep that was broken off goes on: merges
of the same recipe and models stay while their files are as they were written. The table is in sweep.json, in
the output."""


@click.command(cls=SectionedCommand, help=_HELP)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@output_option("Folder around all merges; that of an earlier sweep goes on.")
@click.option(
    "--steps",
    type=click.IntRange(min=2),
    metavar="INT",
    default=11,
    show_default=True,
    help="Points on an edge.",
)
@click.option("--scorer", metavar="COMMAND", help=SCORER)
@method_option("average")
@MERGING
@HELP_ALL
@answering
def sweep(
    models: tuple[str, ...], output: str, scorer: str | None, as_json: bool, quiet: bool, **asked: Any
) -> None:
    """Do what `riemerge sweep` is asked."""
    with loading():
        from riemerge.report.words import number
        from riemerge.study.scorer import command_scorer
        from riemerge.study.sweeps import sweep

    if scorer:
        asked["scorer"] = command_scorer(scorer)
    with progress_on_stderr(quiet, each=True) as listener:
        made = sweep(models, output, progress=listener, **read_options(asked))
    rows = [f"{row.folder}  ‖dW‖ {number(row.norm)}  score {number(row.score)}" for row in made.points]
    show_made(output, made, rows, as_json, quiet)
