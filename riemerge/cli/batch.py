"""`riemerge batch`: many merges from one plan."""

from __future__ import annotations

import sys
from typing import Any

import click

from riemerge.cli.options import DEVICE, JSON, PLUGIN, QUIET, THREADS
from riemerge.cli.terminal import answering, dump, progress_on_stderr, reporting, say, show

_HELP = """Make all merges of a plan, each in a folder of its own.

\b
  riemerge batch plan.yaml -o merges --workers 2

\b
  models: [adapters/*]                    # or names: {law: adapters/law, code: adapters/code}
  each: pairs                             # or all, or clusters (from: a folder of riemerge map)
  methods: [average, ties]
  grid: {density: [0.3, 0.5]}
  merges: [{name: own, merge_method: tsv, models: [law, code]}]

A batch that was broken off goes on; a merge whose recipe or models changed is made again. A merge that fails
stops no other; the exit code is that of the first that failed. The table is in batch.json, in the output."""


@click.command(help=_HELP)
@click.argument("plan", metavar="PLAN.yaml")
@click.option("-o", "--output", type=click.Path(), metavar="FOLDER", help="Folder around all merges.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="List the merges of the plan, say which are there and stay, and write nothing.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="INT",
    default=1,
    show_default=True,
    help="Processes that merge at once on this machine; they share its CPUs.",
)
@click.option("--scheduler", metavar="ADDRESS", help="Scheduler of a dask cluster whose workers merge.")
@DEVICE
@THREADS
@PLUGIN
@JSON
@QUIET
@answering
def batch(plan: str, output: str | None, dry_run: bool, as_json: bool, quiet: bool, **asked: Any) -> None:
    """Do what `riemerge batch` is asked."""
    from riemerge.report.batch_text import batch_report
    from riemerge.report.words import printable
    from riemerge.study.batch_merges import batch, list_batch

    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--output'.")
    if output is None or dry_run:
        listed = list_batch(plan, output)
        if as_json:
            dump({"plan": listed.model_dump(mode="json")})
        else:
            show(batch_report(listed))
        sys.exit(listed.exit_code)
    with progress_on_stderr(quiet) as listener:
        made = batch(plan, output, progress=listener, **asked)
    with reporting(output):
        if as_json:
            dump({"output": output, "record": made.model_dump(mode="json")})
        elif quiet:
            say(output)
        else:
            show(batch_report(made))
            say(printable(f"written to {output}"))
    sys.exit(made.exit_code)
