"""`riemerge merge`: models and their weights, or a recipe, to a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from riemerge.cli.options import (
    HELP_ALL,
    MERGING,
    REPORT,
    VERBOSE,
    SectionedCommand,
    method_option,
    read_options,
)
from riemerge.cli.terminal import answering, dump, loading, progress_on_stderr, reporting, say, show, tell
from riemerge.methods import DEFAULT_METHOD

if TYPE_CHECKING:
    from riemerge.recipes.recipe import Recipe
    from riemerge.records.run_record import RunRecord

Documents: TypeAlias = "Sequence[tuple[str | None, Recipe]]"
"""The recipe of each document, behind the name by which later ones name its result."""

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
@click.option(
    "-o", "--output", type=click.Path(), metavar="FOLDER", help="New folder of the result; it must not exist."
)
@click.option("--dry-run", is_flag=True, help="Say what the merge will do and take, and write nothing.")
@method_option(DEFAULT_METHOD)
@MERGING
@REPORT
@VERBOSE
@click.option("--download", is_flag=True, help="Fetch models of the hub that are not in its local cache.")
@click.option("--push", metavar="ORG/NAME", help="Upload the folder to the hub, private if new.")
@HELP_ALL
@answering
def merge(
    sources: tuple[str, ...],
    output: str | None,
    dry_run: bool,
    download: bool,
    push: str | None,
    device: str,
    threads: int | None,
    report: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    statistics: tuple[str, ...],
    **asked: Any,
) -> None:
    """Do what `riemerge merge` is asked."""
    with loading():
        from riemerge.formats import hub
        from riemerge.merging.sequence import merge_documents  # noqa: F401 (brings all that merges)
        from riemerge.recipes.recipe import read_recipes

    overrides = read_options(asked)
    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--output'.")
    if push:
        hub.check_push(push)
    asked = {"merge_method": overrides.pop("method", None), **overrides}
    with hub.allow_downloads(download):
        documents = read_recipes(sources, asked, statistics)
    for text in _translations(documents):
        tell(text)
    if output is None or dry_run:
        _show_plan(documents, output, device, threads, as_json)
        return
    record, rounding = merge_and_warn(documents, Path(output), device, threads, as_json, quiet, report=report)
    with reporting(output):
        pushed = {"pushed": hub.push(output, push)} if push else {}
        if as_json:
            made = {"output": output, "rounding": rounding, **pushed}
            dump({**made, "record": json.loads(record.to_json())})
        elif quiet:
            say(output)
        else:
            from riemerge.report.tables import written_report

            show(written_report(record, Path(output), rounding, verbose=verbose))
            if pushed:
                say(f"pushed to {pushed['pushed']}")


def _show_plan(
    documents: Documents, output: str | None, device: str, threads: int | None, as_json: bool
) -> None:
    """Show what a merge will do: of several documents, what the first will, whose inputs are there."""
    from riemerge.merging.dry_run import describe_plan
    from riemerge.merging.plan import plan
    from riemerge.report.plan_text import plan_lines

    (name, first), *later = documents
    if later:
        tell(
            f"{1 + len(later)} documents: this is the plan of the first, {name}; those after it merge "
            "results that are not there yet"
        )
    record = describe_plan(plan(first, folder=output, device=device, threads=threads))
    if as_json:
        dump({"plan": record.model_dump(mode="json")})
    else:
        say("\n".join(plan_lines(record)))


def merge_and_warn(
    documents: Documents,
    target: Path,
    device: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    *,
    report: str = "short",
) -> tuple[RunRecord, float]:
    """Merge and write, with progress; tell what only the models showed, and warnings, on stderr."""
    from riemerge.merging.sequence import merge_documents
    from riemerge.report.words import printable

    with progress_on_stderr(quiet) as listener:
        record, rounding = merge_documents(
            documents, target, device=device, threads=threads, report=report, progress=listener
        )
    told = _translations(documents)
    for text in map(printable, record.translations):
        if text not in told:
            tell(text)
    if as_json or quiet:
        for text in record.warnings:
            tell(printable(f"warning: {text}"))
    return record, rounding


def _translations(documents: Documents) -> list[str]:
    """Return a line for each word that was read as another, behind the name of its document."""
    from riemerge.report.words import printable, when

    lines = (f"{when(name, f'{name}: ')}{text}" for name, recipe in documents for text in recipe.translations)
    return [printable(line) for line in lines]
