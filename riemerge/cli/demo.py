"""`riemerge demo`: the shipped adapters, merged and explained."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

from riemerge.cli.merge import merge_and_warn
from riemerge.cli.options import JSON, QUIET, THREADS, VERBOSE
from riemerge.cli.terminal import answering, dump, progress_on_stderr, reporting, say, show
from riemerge.errors import ResourceError
from riemerge.methods import DEFAULT_METHOD

DEMO = ("snli", "mnli", "qnli", "scitail")

_HELP = f"""Merge the four real adapters that come with riemerge, and explain the result.

They are merged by the default method ({DEFAULT_METHOD}) and written; the last three lines say what geomerge,
the Fréchet mean of fixed rank, makes of them."""


@click.command(help=_HELP)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FOLDER",
    help="New folder of the result.  [default: a temporary one]",
)
@THREADS
@JSON
@QUIET
@VERBOSE
@answering
def demo(output: str | None, threads: int | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Do what `riemerge demo` is asked."""
    from riemerge.merging.verbs import merge
    from riemerge.recipes.recipe import read_recipes

    folders = [str(_demo_folder() / name) for name in DEMO]
    target = Path(output or Path(tempfile.mkdtemp(prefix="riemerge-demo-"), "merged"))
    record, rounding = merge_and_warn(read_recipes(folders), target, "cpu", threads, as_json, quiet)
    with reporting(target):
        if quiet and not as_json:
            say(str(target))
            return
        with progress_on_stderr(quiet) as listener:
            mean = merge(folders, method="geomerge", threads=threads, progress=listener).record
        if as_json:
            records = {"record": json.loads(record.to_json()), "geomerge": json.loads(mean.to_json())}
            dump({"output": str(target), "rounding": rounding, **records})
        else:
            from riemerge.report.tables import written_report
            from riemerge.report.verdict import geomerge_lines

            show(written_report(record, target, rounding, verbose=verbose))
            show("\n" + "\n".join(geomerge_lines(mean)))


def _demo_folder() -> Path:
    """Return the folder of the real adapters: inside an installed package, or in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "_demo", package.parent / "examples" / "adapters"):
        if all((folder / name).is_dir() for name in DEMO):
            return folder
    raise ResourceError(
        "demo: the example adapters are missing: reinstall riemerge, or run it from a checkout"
    )
