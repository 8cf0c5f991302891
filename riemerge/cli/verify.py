"""`riemerge verify`: whether a folder holds the merge that its record says."""

from __future__ import annotations

import click

from riemerge.cli.options import JSON, PLUGIN, QUIET, THREADS
from riemerge.cli.terminal import answering, dump, progress_on_stderr, say

_HELP = """Verify a merge that was written: its files, that it opens, and a sample of it merged again.

\b
  riemerge verify merged --inputs adapters

The inputs are looked for in the folders given, beside FOLDER, here, and in the cache of the hub, and are
known by their sha256. The exit code is 4 where inputs differ from the record, 5 where numbers do, and 6
where files do."""


@click.command(help=_HELP)
@click.argument("folder", metavar="FOLDER")
@click.option(
    "--inputs",
    multiple=True,
    type=click.Path(),
    metavar="FOLDER",
    help="Folder of an input, or around inputs; repeat it for more.",
)
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    metavar="INT",
    help="Number of modules to merge again.",
)
@click.option("--all", "whole", is_flag=True, help="Merge all modules again.")
@click.option("--seed", default=0, show_default=True, metavar="INT", help="Random seed of the sample.")
@THREADS
@PLUGIN
@JSON
@QUIET
@answering
def verify(
    folder: str,
    inputs: tuple[str, ...],
    sample: int,
    whole: bool,
    seed: int,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Do what `riemerge verify` is asked."""
    from riemerge.report.verification_text import verification_lines
    from riemerge.study.verification import verify

    asked = None if whole else sample
    with progress_on_stderr(quiet) as listener:
        found = verify(folder, inputs, sample=asked, seed=seed, threads=threads, progress=listener)
    if as_json:
        dump(found.model_dump(mode="json"))
    elif not quiet:
        say("\n".join(verification_lines(found)))
