"""`riemerge convert`: an adapter in another dialect."""

from __future__ import annotations

import click

from riemerge.cli.options import JSON, QUIET
from riemerge.cli.terminal import answering, dump, say, tell
from riemerge.report.words import printable

_HELP = """Write an adapter in another dialect, with the same dW.

\b
  riemerge convert style.safetensors style --to diffusers
  riemerge convert loha merged --to peft

LoHa and LoKr become LoRAs of the rank that their products have. A pickle (.bin) is opened only if told to."""


@click.command(help=_HELP)
@click.argument("source", metavar="ADAPTER")
@click.argument("output", metavar="FOLDER")
@click.option(
    "--to",
    "dialect",
    required=True,
    type=click.Choice(["peft", "kohya", "diffusers", "mlx", "delta"]),
    help="Dialect to write; delta: the whole dW of each module.",
)
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Open a pickle of tensors, in a process of limited memory that runs nothing in it.",
)
@JSON
@QUIET
@answering
def convert(source: str, output: str, dialect: str, allow_pickle: bool, as_json: bool, quiet: bool) -> None:
    """Do what `riemerge convert` is asked."""
    from riemerge.merging.conversion import convert as convert_adapter

    done = convert_adapter(source, output, dialect, allow_pickle=allow_pickle)
    for text in done.warnings:
        tell(printable(f"warning: {text}"))
    if as_json:
        dump({"output": output, **done._asdict()})
    elif quiet:
        say(output)
    else:
        say(
            f"{done.modules} modules: {done.source} to {done.target}; dW moved by {done.rounding:.1g} at most"
        )
        say(f"written to {output}")
