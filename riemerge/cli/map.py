"""`riemerge map`: every pair of a collection of adapters compared, and what follows from it."""

from __future__ import annotations

import json
from typing import Any

import click

from riemerge.cli.options import JSON, QUIET, THREADS, Words
from riemerge.cli.terminal import answering, dump, loading, progress_on_stderr, reporting, say, show, tell
from riemerge.report.words import printable

_HELP = """Compare every pair of many adapters, and show copies, relatives, outliers and what to merge.

\b
  riemerge map adapters/* -o atlas
  riemerge map adapters/* -o atlas --distance quotient --nearest 2

The folder gets a page (atlas.html), its pictures, tables, and the record (collection.json). What was computed
is kept there: a map that was broken off goes on, and one with more adapters computes only what is new. An
adapter that cannot be read, or does not fit most others, is left out."""


@click.command("map", help=_HELP)
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    default="atlas",
    show_default=True,
    metavar="FOLDER",
    help="Folder of the map, which may be there.",
)
@click.option(
    "--distance",
    "distances",
    type=Words(["quotient", "grassmann"]),
    multiple=True,
    help="Geodesic distance of some pairs, beside the others; repeat it for both.",
)
@click.option(
    "--pairs",
    multiple=True,
    metavar="NAME,NAME",
    help="Pair of adapters for --distance; repeat it for more.  [default: the nearest]",
)
@click.option(
    "--nearest",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="INT",
    help="Nearest adapters of each for --distance.",
)
@click.option("--same-base", is_flag=True, help="Take the base models that adapters name as one.")
@THREADS
@JSON
@QUIET
@answering
def map_collection(
    adapters: tuple[str, ...], output: str, pairs: tuple[str, ...], as_json: bool, quiet: bool, **asked: Any
) -> None:
    """Do what `riemerge map` is asked."""
    with loading():
        from riemerge.records.pair_tables import PairTables
        from riemerge.report.collection_atlas import PAGE, write_atlas
        from riemerge.report.tables import collection_report
        from riemerge.study.collection import map_adapters

    asked["pairs"] = [_read_pair(text) for text in pairs]
    with progress_on_stderr(quiet) as listener:
        record = map_adapters(adapters, output, progress=listener, **asked)
    for note in write_atlas(record, PairTables(output), output):
        tell(printable(note))
    with reporting(output):
        if as_json:
            dump({"output": output, "record": json.loads(record.to_json())})
        elif quiet:
            say(output)
        else:
            page = f"{output}/{PAGE}"
            show(collection_report(record, page))
            say(f"written to {printable(page)}")


def _read_pair(text: str) -> tuple[str, str]:
    """Return the two names of a pair.

    Raises:
        RecipeError: The text is not two names.
    """
    from riemerge.errors import RecipeError

    first, comma, second = text.partition(",")
    if not (first and comma and second) or "," in second:
        raise RecipeError(f"--pairs {text}: expected two names of adapters with a comma between them")
    return first, second
