"""`riemerge apply`: an adapter merged into its base model."""

from __future__ import annotations

import click

from riemerge.cli.options import JSON, OUT_DTYPE, OUTPUT, QUIET, RENAME
from riemerge.cli.terminal import answering, progress_on_stderr, show_difference

_HELP = """Merge an adapter into its base model, and write the full model.

\b
  riemerge apply base adapter -o model

The weights are those of PEFT's merge_and_unload, bit for bit. Tensors are read and written one at a time."""


@click.command(help=_HELP)
@click.argument("base", metavar="BASE")
@click.argument("adapter", metavar="ADAPTER")
@OUTPUT
@OUT_DTYPE
@RENAME
@JSON
@QUIET
@answering
def apply(
    base: str,
    adapter: str,
    output: str,
    out_dtype: str | None,
    renames: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Do what `riemerge apply` is asked."""
    from riemerge.merging.application import apply_adapter
    from riemerge.recipes.candidates import parse_renames

    with progress_on_stderr(quiet) as listener:
        record = apply_adapter(
            base, adapter, output, rename=parse_renames(renames), out_dtype=out_dtype, progress=listener
        )
    show_difference(output, record, as_json, quiet)
