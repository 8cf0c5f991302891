"""`riemerge merge`: models and their weights, or a recipe, to a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from riemerge.cli.options import (
    HELP_ALL,
    MERGING,
    OUTPUT,
    VERBOSE,
    SectionedCommand,
    method_option,
    read_options,
)
from riemerge.cli.terminal import answering, dump, progress_on_stderr, reporting, say, show, tell
from riemerge.methods import DEFAULT_METHOD

if TYPE_CHECKING:
    from riemerge.recipes.recipe import Recipe
    from riemerge.records.run_record import RunRecord

# The texts of help stand by themselves, since python -OO takes docstrings away.
_HELP = """Merge adapters, or full checkpoints, into a new folder.

\b
  riemerge merge snli:0.6 mnli:0.4 -o merged
  riemerge merge recipe.yaml -o merged --method ties -p density=0.3

The number behind the last colon is the weight of a model [default: 1]. Options win over the recipe.
A value may be a list over depth: -p "density=[0.3, 0.7]". `riemerge methods NAME` explains a method and its
parameters."""


@click.command(cls=SectionedCommand, help=_HELP)
@click.argument("sources", nargs=-1, required=True, metavar="MODEL[:WEIGHT]... | RECIPE.yaml")
@OUTPUT
@method_option(DEFAULT_METHOD)
@MERGING
@VERBOSE
@HELP_ALL
@answering
def merge(
    sources: tuple[str, ...],
    output: str,
    device: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    statistics: tuple[str, ...],
    **asked: Any,
) -> None:
    """Do what `riemerge merge` is asked."""
    from riemerge.recipes.recipe import read_recipes

    overrides = read_options(asked)
    asked = {"merge_method": overrides.pop("method", None), **overrides}
    documents = read_recipes(sources, asked, statistics)
    record, rounding = merge_and_warn(documents, Path(output), device, threads, as_json, quiet)
    with reporting(output):
        if as_json:
            dump({"output": output, "rounding": rounding, "record": json.loads(record.to_json())})
        elif quiet:
            say(output)
        else:
            from riemerge.report.tables import written_report

            show(written_report(record, Path(output), rounding, verbose=verbose))


def merge_and_warn(
    documents: Sequence[tuple[str | None, Recipe]],
    target: Path,
    device: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> tuple[RunRecord, float]:
    """Merge and write, with progress; tell translations, and warnings that no report shows, on stderr."""
    from riemerge.merging.sequence import merge_documents
    from riemerge.report.words import printable, when

    told = [f"{when(name, f'{name}: ')}{text}" for name, recipe in documents for text in recipe.translations]
    for text in told:
        tell(printable(text))
    with progress_on_stderr(quiet) as listener:
        record, rounding = merge_documents(
            documents, target, device=device, threads=threads, progress=listener
        )
    for text in record.translations:
        if text not in told:  # it took the models to see it
            tell(printable(text))
    if as_json or quiet:
        for text in record.warnings:
            tell(printable(f"warning: {text}"))
    return record, rounding
