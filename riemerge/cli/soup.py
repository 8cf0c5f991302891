"""`riemerge soup`: the models that score best together, merged."""

from __future__ import annotations

from typing import Any

import click

from riemerge.cli.options import (
    HELP_ALL,
    MERGING,
    OUTPUT,
    SCORER,
    SectionedCommand,
    method_option,
    read_options,
)
from riemerge.cli.terminal import answering, progress_on_stderr, show_made

_HELP = """Merge those models that score best together, tried from the best alone to the worst.

\b
  riemerge soup a b c -o soup --scorer "python evaluate.py {}"

The scorer runs without a shell, once for each model alone and once for each that is tried in the soup. All
scores are in soup.json, in the output."""


@click.command(cls=SectionedCommand, help=_HELP)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@OUTPUT
@click.option("--scorer", required=True, metavar="COMMAND", help=SCORER)
@method_option("average")
@MERGING
@HELP_ALL
@answering
def soup(models: tuple[str, ...], output: str, scorer: str, as_json: bool, quiet: bool, **asked: Any) -> None:
    """Do what `riemerge soup` is asked."""
    from riemerge.study.scorer import command_scorer
    from riemerge.study.soups import greedy_soup

    with progress_on_stderr(quiet, each=True) as listener:
        made = greedy_soup(models, output, command_scorer(scorer), progress=listener, **read_options(asked))
    chosen = f"{len(made.chosen)} of {len(models)}: {' + '.join(made.chosen)}: score {made.score:.6g}"
    show_made(output, made, [chosen], as_json, quiet)
