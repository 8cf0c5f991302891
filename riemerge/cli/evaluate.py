"""`riemerge evaluate`: which method merges some adapters best, by the user's own test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from riemerge.cli.options import COMPUTING, HEADS, output_option
from riemerge.cli.terminal import answering, dump, progress_on_stderr, reporting, say, show

_HELP = """Find the method that merges best: each at equal norms, chosen on dev rows, reported on test rows.

\b
  riemerge evaluate a b c -o which --scorer "python score.py {} {part}"

The scorer runs without a shell. FOLDER/best is the best merge, FOLDER/evaluation.json has all scores. A run
that was broken off goes on."""

_SCORER = (
    "Command that scores the model in {} on the rows of {part}, `dev` or `test`: its last line is a number, "
    "or JSON: by task a number, or a list of one for each row. Higher is better."
)


def _numbers(_: click.Context, __: click.Parameter, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected numbers with commas between") from None


def _words(_: click.Context, __: click.Parameter, text: str | None) -> list[str] | None:
    if text is None:
        return None
    return re.split(r",(?![^\[]*\])", text)  # but not within a list


def _pairs(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, str | None]:
    if wrong := [text for text in texts if "=" not in text]:
        raise click.BadParameter(f"{wrong[0]!r}: expected TASK=MODEL")
    pairs = [text.partition("=")[::2] for text in texts]
    models = {task: model or None for task, model in pairs}
    if len(models) < len(pairs) or "" in models:
        raise click.BadParameter(f"{', '.join(texts)}: expected each TASK once, with a name")
    return models


@click.command(help=_HELP)
@click.argument("models", nargs=-1, required=True, metavar="ADAPTER...")
@output_option("New folder, or that of an earlier run, which goes on.")
@click.option("--scorer", required=True, metavar="COMMAND", help=_SCORER)
@click.option(
    "--methods",
    callback=_words,
    metavar="NAME[:PARAMETER=VALUE]...,...",
    help="Methods to try, with commas between.  [default: spectrum,average,tsv,geomerge]",
)
@click.option(
    "--coefficients",
    callback=_numbers,
    metavar="FLOAT,...",
    help="Norms to try, as multiples of the plain average's.  [default: searched]",
)
@click.option(
    "--specialist",
    "specialists",
    multiple=True,
    callback=_pairs,
    metavar="TASK=MODEL",
    help="Adapter that defines score 1 for TASK; no MODEL for raw scores.  [default: the adapter named TASK]",
)
@click.option(
    "--resamples",
    type=int,
    metavar="INT",
    help="How often rows are drawn again for the errors.  [default: 10000]",
)
@click.option("--seed", type=int, metavar="INT", help="Random seed of the bootstrap.  [default: fixed]")
@HEADS
@COMPUTING
@answering
def evaluate(
    models: tuple[str, ...], output: str, scorer: str, as_json: bool, quiet: bool, **asked: Any
) -> None:
    """Do what `riemerge evaluate` is asked."""
    from riemerge.report.tables import evaluation_report
    from riemerge.report.words import printable
    from riemerge.study.evaluation import BEST, evaluate

    settings = {name: value for name, value in asked.items() if value is not None}
    with progress_on_stderr(quiet, each=True) as listener:
        made = evaluate(models, scorer, folder=output, progress=listener, **settings)
    with reporting(output):
        if as_json:
            dump({"output": output, "record": made.model_dump(mode="json")})
        elif quiet:
            say(output)
        else:
            show(evaluation_report(made))
            say(f"\n{printable(f'written to {output}; the best merge is {Path(output) / BEST}')}")
