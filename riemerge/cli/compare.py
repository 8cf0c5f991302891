"""`riemerge compare`: solvers on the modules of real adapters, and the page that shows what they did."""

from __future__ import annotations

import json
from typing import Any

import click

from riemerge.cli.options import JSON, PLUGIN, QUIET, Option
from riemerge.cli.terminal import answering, dump, progress_on_stderr, reporting, say, show, tell
from riemerge.report.words import printable

_HELP = """Compare solvers of the Fréchet mean of adapters, to equal certificates, module by module.

\b
  riemerge compare snli mnli qnli -o study
  riemerge compare recipe.yaml -o study --solvers lbfgs,conjugate_gradient:beta=LiuStorey

The folder gets a page (comparison.html), its pictures, and tables as CSV and JSON. Finished runs are kept
there: a comparison that was broken off goes on."""


def _option(names: str, kind: Any, default: Any, metavar: str, text: str) -> Option:
    shown = f"{text}  [default: {default}]"
    return click.option(*names.split(), type=kind, default=default, metavar=metavar, help=shown)


_COUNT = click.IntRange(min=1)


@click.command(help=_HELP)
@click.argument("sources", nargs=-1, required=True, metavar="MODEL[:WEIGHT]... | RECIPE.yaml")
@_option("-o --output", click.Path(), "comparison", "FOLDER", "Folder of the comparison, which may be there.")
@_option("--solvers", str, "all", "NAME[:OPTION=VALUE],...", "Solvers of the package or a plug-in.")
@_option("--geometries", str, "polar", "NAME[:OPTION=VALUE],...", "Geometries of the package or a plug-in.")
@_option("--losses", str, "square", "NAME[:OPTION=VALUE],...", "Losses of the package or a plug-in.")
@_option("--starts", _COUNT, 1, "INT", "Number of starts of each solver, which are the same for all.")
@_option("--seed", int, 0, "INT", "Random seed of the starts from the second on.")
@_option("--tol", float, 1e-6, "FLOAT", "Bound of ‖gradient‖ / max(1, √(2 F)) to which all solve.")
@_option("--max-passes", _COUNT, 1000, "INT", "Budget of passes of each run.")
@_option("--threads", _COUNT, 1, "INT", "Runs at once; they change nothing but the seconds.")
@PLUGIN
@JSON
@QUIET
@answering
def compare(
    sources: tuple[str, ...], output: str, as_json: bool, quiet: bool, solvers: str, **asked: Any
) -> None:
    """Do what `riemerge compare` is asked."""
    from riemerge.study.solver_comparison import DEFAULT_SOLVERS, PAGE, compare_adapters, write_comparison

    chosen = DEFAULT_SOLVERS if solvers == "all" else solvers.split(",")
    with progress_on_stderr(quiet) as listener:
        axes = {name: asked.pop(name).split(",") for name in ("geometries", "losses")}
        made = compare_adapters(sources, chosen, **axes, folder=output, progress=listener, **asked)
    if note := write_comparison(made, output):
        tell(note)
    with reporting(output):
        if as_json:
            dump({"output": output, "record": json.loads(made.model_dump_json())})
        elif quiet:
            say(output)
        else:
            from riemerge.report.tables import comparison_report

            show(comparison_report(made))
            say(f"written to {printable(output)}/{PAGE}")
