"""The group of all commands. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import sys

import click

from riemerge._version import __version__
from riemerge.cli.apply import apply
from riemerge.cli.batch import batch
from riemerge.cli.check import check
from riemerge.cli.compare import compare
from riemerge.cli.convert import convert
from riemerge.cli.demo import demo
from riemerge.cli.evaluate import evaluate
from riemerge.cli.extract import extract
from riemerge.cli.inspect import inspect
from riemerge.cli.map import map_collection
from riemerge.cli.merge import merge
from riemerge.cli.methods import methods
from riemerge.cli.soup import soup
from riemerge.cli.sweep import sweep
from riemerge.cli.terminal import PLAIN_WIDTH
from riemerge.cli.verify import verify

_HELP = """Merge LoRA adapters, without their base model, or full checkpoints.

Exit codes: 0 done, 1 a bug, 2 usage, 3 recipe, 4 input adapters, 5 numbers, 6 output, 7 machine, 130
interrupted, 143 terminated."""


@click.group(
    help=_HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": PLAIN_WIDTH}
)
@click.version_option(__version__, prog_name="riemerge")
def main() -> None:
    """Merge LoRA adapters and full checkpoints: the group of all commands."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


for _command in (
    merge,
    verify,
    apply,
    extract,
    convert,
    soup,
    sweep,
    batch,
    evaluate,
    compare,
    inspect,
    map_collection,
    methods,
    check,
    demo,
):
    main.add_command(_command)
