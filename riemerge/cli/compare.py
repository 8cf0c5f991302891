"""`riemerge compare`: solvers on the modules of real adapters, and the page that shows what they did."""

from __future__ import annotations

from typing import Any

import click

from riemerge.cli.options import JSON, QUIET
from riemerge.cli.terminal import answering, dump, progress_on_stderr, say, show, tell
from riemerge.report.words import printable

_HELP = """Compare solvers of the Fréchet mean of adapters, to equal certificates, module by module.

\b
  riemerge compare snli mnli qnli -o study
  riemerge compare recipe.yaml -o study --solvers lbfgs,conjugate_gradient:beta=LiuStorey

The folder gets a page (comparison.html), its pictures, and tables as CSV and JSON. Finished runs are kept
there: a comparison that was broken off goes on."""


@click.command(help=_HELP)
@click.argument("sources", nargs=-1, required=True, metavar="MODEL[:WEIGHT]... | RECIPE.yaml")
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FOLDER",
    help="Folder of the comparison; that of an earlier one goes on.  [default: nothing is written]",
)
@click.option(
    "--solvers",
    metavar="NAME[:OPTION=VALUE]...,...",
    help="Solvers, separated by commas.  [default: all, with every beta rule]",
)
@click.option("--losses", default="square", show_default=True, metavar="NAME,...", help="Losses.")
@click.option(
    "--starts",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="INT",
    help="Number of starts.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="INT", help="Random seed of the drawn starts."
)
@click.option(
    "--tol",
    type=float,
    default=1e-6,
    show_default=True,
    metavar="FLOAT",
    help="Tolerance of ‖gradient‖ / max(1, √(2 F)).",
)
@click.option(
    "--max-passes",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="INT",
    help="Budget of passes of each run.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="INT",
    help="Runs at once; they change nothing but the seconds.",
)
@JSON
@QUIET
@answering
def compare(
    sources: tuple[str, ...],
    output: str | None,
    solvers: str | None,
    losses: str,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Do what `riemerge compare` is asked."""
    from riemerge.recipes.recipe import read_recipe
    from riemerge.study.solver_comparison import DEFAULT_SOLVERS, PAGE, compare_adapters, write_comparison

    chosen = solvers.split(",") if solvers else DEFAULT_SOLVERS
    with progress_on_stderr(quiet) as listener:
        made = compare_adapters(
            read_recipe(sources),
            chosen,
            losses=losses.split(","),
            folder=output,
            progress=listener,
            **options,
        )
    if output is not None:
        for remark in write_comparison(made, output):
            tell(remark)
    if as_json:
        dump({"output": output, "record": made.model_dump(mode="json")})
    elif quiet:
        say(output or "")
    else:
        from riemerge.report.tables import comparison_report

        show(comparison_report(made))
        say(
            f"written to {printable(output)}/{PAGE}"
            if output
            else "nothing was written: -o FOLDER writes a page"
        )
