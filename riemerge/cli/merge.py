"""`riemerge merge`: models and their weights, or a recipe, to a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from riemerge.cli.options import (
    HELP_ALL,
    MERGING,
    VERBOSE,
    SectionedCommand,
    method_option,
    read_options,
)
from riemerge.cli.terminal import answering, dump, progress_on_stderr, reporting, say, show, tell
from riemerge.methods import DEFAULT_METHOD

if TYPE_CHECKING:
    from riemerge.merging.plan import Plan
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
@click.option(
    "-o", "--output", type=click.Path(), metavar="FOLDER", help="New folder of the result; it must not exist."
)
@click.option("--dry-run", is_flag=True, help="Say what the merge will do and take, and write nothing.")
@method_option(DEFAULT_METHOD)
@MERGING
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
    as_json: bool,
    quiet: bool,
    verbose: bool,
    statistics: tuple[str, ...],
    **asked: Any,
) -> None:
    """Do what `riemerge merge` is asked."""
    from riemerge.formats import hub
    from riemerge.merging.plan import plan
    from riemerge.recipes.recipe import read_recipe

    overrides = read_options(asked)
    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--output'.")
    if push:
        hub.check_push(push)
    recipe = read_recipe(sources, {"merge_method": overrides.pop("method", None), **overrides}, statistics)
    if download:
        recipe = _fetch(recipe)
    if output is None or dry_run:
        _show_plan(plan(recipe, folder=output, device=device, threads=threads), as_json)
        return
    record, rounding = merge_and_warn(recipe, Path(output), device, threads, as_json, quiet)
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
            say("".join(f"pushed to {address}\n" for address in pushed.values()), end="")


def _fetch(recipe: Recipe) -> Recipe:
    """Return the recipe with the models of the hub that are not in its cache fetched there."""
    from riemerge.formats.hub import download

    models = [entry.model_copy(update={"model": str(download(entry.model))}) for entry in recipe.models]
    base = recipe.base_model and str(download(recipe.base_model))
    return recipe.model_copy(update={"models": tuple(models), "base_model": base})


def _show_plan(planned: Plan, as_json: bool) -> None:
    from riemerge.merging.dry_run import describe_plan
    from riemerge.report.plan_text import plan_lines

    record = describe_plan(planned)
    if as_json:
        dump({"plan": record.model_dump(mode="json")})
    else:
        say("\n".join(plan_lines(record)))


def merge_and_warn(
    recipe: Recipe, target: Path, device: str, threads: int | None, as_json: bool, quiet: bool
) -> tuple[RunRecord, float]:
    """Merge and write, with progress; and tell warnings on stderr where no report will show them."""
    from riemerge.merging.verbs import merge_into
    from riemerge.report.words import printable

    with progress_on_stderr(quiet) as listener:
        record, rounding = merge_into(recipe, target, device=device, threads=threads, progress=listener)
    if as_json or quiet:
        for text in record.warnings:
            tell(printable(f"warning: {text}"))
    return record, rounding
