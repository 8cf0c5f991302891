"""`riemerge compare`: solvers on the modules of real adapters, and the page that shows what they did."""

from __future__ import annotations

import click

from riemerge.cli.options import JSON, QUIET, THREADS, folder_option
from riemerge.cli.terminal import answering, dump, progress_on_stderr, reporting, say, show, tell

_HELP = """Compare solvers of the Fréchet mean of adapters, module by module, to equal certificates.

\b
  riemerge compare snli mnli qnli -o study
  riemerge compare recipe.yaml -o study --solvers lbfgs,conjugate_gradient:beta=LiuStorey --starts 3

Writes a page (comparison.html), pictures, and tables as CSV and JSON. Finished runs are kept, so that a
comparison that was broken off goes on."""


@click.command(help=_HELP)
@click.argument("sources", nargs=-1, required=True, metavar="MODEL[:WEIGHT]... | RECIPE.yaml")
@folder_option("-o/--output", "Folder of the comparison; that of an earlier one goes on.  [default: none is written]")
