"""`riemerge extract`: what a fine-tuned model changed of its base, as an adapter."""

from __future__ import annotations

import click

from riemerge.cli.options import DEVICE, JSON, OUT_DTYPE, OUTPUT, QUIET, Words
from riemerge.cli.terminal import answering, progress_on_stderr, show_difference

_HELP = """Write what a fine-tuned model changed of its base model as a LoRA adapter.

\b
  riemerge extract base finetuned -o adapter --rank 16
  riemerge extract base finetuned -o adapter --rank 95% --modules linear,lm_head

Each update is the nearest one of its rank to the difference of the weights."""


@click.command(help=_HELP)
@click.argument("base", metavar="BASE")
@click.argument("finetuned", metavar="FINETUNED")
@OUTPUT
@click.option(
    "--rank",
    required=True,
    metavar="INT|SHARE%",
    help="Rank in all modules, or least rank in each that keeps a share of the squared norm.",
)
@click.option(
    "--modules",
    default="linear",
    show_default=True,
    metavar="all|linear|NAME,...",
    help="Modules to extract; linear leaves out embeddings and output layers.",
)
@click.option(
    "--others",
    type=Words(["error", "drop"]),
    default="error",
    show_default=True,
    help="What becomes of other tensors that differ.",
)
@click.option("--base-name", metavar="NAME", help="Base model that the adapter names.  [default: its folder]")
@OUT_DTYPE
@DEVICE
@JSON
@QUIET
@answering
def extract(
    base: str,
    finetuned: str,
    output: str,
    rank: str,
    modules: str,
    others: str,
    base_name: str | None,
    out_dtype: str | None,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Do what `riemerge extract` is asked."""
    from riemerge.merging.extraction import extract_adapter

    with progress_on_stderr(quiet) as listener:
        record = extract_adapter(
            base,
            finetuned,
            output,
            rank=rank,
            modules=modules.split(","),
            others=others,
            base_name=base_name,
            out_dtype=out_dtype,
            device=device,
            progress=listener,
        )
    show_difference(output, record, as_json, quiet)
