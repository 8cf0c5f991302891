"""`riemerge check`: which laws a manifold, a metric, a symmetry, a loss, a solver or a method obeys."""

from __future__ import annotations

import sys

import click

from riemerge.cli.options import JSON, PLUGIN
from riemerge.cli.terminal import answering, dump, show

_HELP = """Measure the laws of a manifold, a metric, a symmetry, a loss, a solver or a method.

TARGET is a name that riemerge knows, or module:Name of Python code, which is run. The exit code is 1 where a
law fails.

\b
  riemerge check stiefel:9,3
  riemerge check my_lab:MyMetric --on spd:4"""


@click.command(help=_HELP)
@click.argument("target", metavar="TARGET")
@click.option("--on", metavar="NAME:SIZES", help="Manifold for a metric or a symmetry, such as spd:4.")
@click.option("--seed", default=0, show_default=True, metavar="INT", help="Random seed of every draw.")
@PLUGIN
@JSON
@answering
def check(target: str, on: str | None, seed: int, as_json: bool) -> None:
    """Do what `riemerge check` is asked."""
    from riemerge.study.targets import check_target

    findings = check_target(target, on, seed=seed)
    if as_json:
        # JSON knows no infinity.
        dump(
            {
                kind: {law.name: [min(law.defect, sys.float_info.max), law.verdict] for law in laws}
                for kind, laws in findings.items()
            }
        )
    else:
        from riemerge.report.tables import laws_report

        show(laws_report(findings))
    if any(finding.verdict == "fails" for laws in findings.values() for finding in laws):
        sys.exit(1)
