"""Options that several commands share: each stated once, with its type and default."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, final

import click

from riemerge.methods import METHODS, PARAMETERS
from riemerge.report.words import value_type

Command: TypeAlias = Callable[..., None]
Option: TypeAlias = Callable[[Command], Command]


@final
class Words(click.Choice[str]):
    """Words that help shows and a shell completes; the recipe refuses others, with its other faults."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value as it is."""
        return value


_MORE = {
    "Adapters that do not fit each other": ("same_base", "base_name", "renames"),
    "Parts of a method, in place of its own": ("edits", "geometry", "loss", "solver"),
    "Data": ("statistics", "base_statistics"),
    "Computing": ("device", "threads", "dtype", "plugin", "report"),
    "Files": ("uniform_rank", "download", "push"),
}
_FIRST = "Options"
_SECTIONS = {name: title for title, names in _MORE.items() for name in names}


@final
class SectionedCommand(click.Command):
    """A command whose `--help` shows the options that most users need, and whose `--help-all` shows all."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in sections, or the first section and what else there is."""
        rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record and isinstance(param, click.Option):
                rows[_SECTIONS.get(param.name or "", _FIRST)].append(record)
        titles = [title for title in (_FIRST, *_MORE) if rows[title]]
        whole = ctx.meta.get(__name__)
        for title in titles if whole else titles[:1]:
            with formatter.section(title):
                formatter.write_dl(rows[title])
        if not whole:
            more = ", ".join(
                option.split()[0].rstrip(",") for title in titles[1:] for option, _ in rows[title]
            )
            formatter.write_paragraph()
            formatter.write_text(f"More options, which {ctx.command_path} --help-all explains: {more}.")


def _show_all(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        ctx.meta[__name__] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


HELP_ALL = click.option(
    "--help-all",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_all,
    help="Show all options and exit.",
)


def options(*some: Option) -> Option:
    """Return a decorator that gives a command these options, in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(some):
            command = option(command)
        return command

    return decorate


def method_option(default: str) -> Option:
    """Return the option `--method` of a command."""
    text = f"Row of `riemerge methods`.  [default: {default}]"
    return click.option("--method", type=Words(METHODS), metavar="NAME", help=text)


def folder_option(name: str, text: str, **settings: Any) -> Option:
    """Return an option whose value is a folder."""
    return click.option(name, type=click.Path(), metavar="FOLDER", help=text, **settings)


def output_option(text: str) -> Option:
    """Return the option `--output` of a command."""
    return click.option("-o", "--output", required=True, type=click.Path(), metavar="FOLDER", help=text)


OUTPUT = output_option("New folder of the result.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="Print the path and warnings only.")
VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Print a table of every module too.")
THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="INT",
    help="Threads at work; they change no bit of the result.  [default: all CPUs]",
)
PLUGIN = click.option(
    "--plugin",
    multiple=True,
    metavar="MODULE",
    help="Module that adds such names: its code runs.",
)
DEVICE = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="[cpu|cuda|cuda:N|auto]",
    help="Where to compute.",
)
REPORT = click.option(
    "--report",
    type=Words(["short", "full"]),
    default="short",
    show_default=True,
    metavar="WORD",
    help="What the record measures: full compares the adapters pair by pair, also where they are many.",
)
OUT_DTYPE = click.option(
    "--out-dtype",
    type=Words(["float16", "bfloat16", "float32", "float64"]),
    metavar="DTYPE",
    help="Dtype of the written weights.  [default: as the inputs]",
)
RENAME = click.option(
    "--rename", "renames", multiple=True, metavar="X=Y", help="Read module names that start with X as Y."
)
SCORER = "Command that scores the model in {}: its last line is a number, higher is better."

COMPUTING = options(
    DEVICE,
    THREADS,
    click.option(
        "--dtype", type=Words(["float64", "float32"]), help="Dtype of the computation.  [default: float64]"
    ),
    OUT_DTYPE,
    PLUGIN,
    JSON,
    QUIET,
)
"""How a merge is computed and told."""


def _parameters(names: Iterable[str], **settings: Any) -> list[Option]:
    """Options of parameters of the methods, each under its own name."""
    return [
        click.option(
            f"--{name.replace('_', '-')}",
            name,
            metavar=value_type(PARAMETERS[name]),
            **{"help": PARAMETERS[name].summary, **settings},
        )
        for name in names
    ]


COLUMNS = options(
    click.option("--edits", metavar="NAME,...", help="Edits first, such as trim:density=0.3,elect."),
    click.option("--geometry", metavar="NAME", help="What near means, such as sphere or polar."),
    click.option("--loss", metavar="NAME", help="How distance counts, such as huber."),
    click.option("--solver", metavar="NAME", help="How the mean is found: lbfgs, trust_regions."),
)
"""What takes the place of a method's own edits, geometry, loss and solver."""

_SHOWN = {"weight", "rank", "scale", "solver"}

HEADS = click.option(
    "--heads", metavar="drop|average|from=NAME", help="What becomes of heads saved beside factors."
)

MERGING = options(
    click.option(
        "-p",
        "--parameter",
        "assignments",
        multiple=True,
        metavar="NAME=VALUE",
        help="Parameter of the method, such as density=0.3; repeat it for more.",
    ),
    *_parameters(
        ["rank"],
        help="Rank of the result.  [default: mostly the inputs' largest; see `riemerge methods NAME`]",
    ),
    *_parameters(
        ["scale"], help="Factor on the result; matched: to the norm of the inputs.  [default: the method's]"
    ),
    # The spelling before -p: it stays for scripts.
    *_parameters(
        [name for name in PARAMETERS if name not in {"weight", "rank", "scale", "solver"}], hidden=True
    ),
    click.option(
        "--base",
        "--base-model",
        "base_model",
        type=click.Path(),
        metavar="FOLDER",
        help="Full checkpoint that the models were trained from.",
    ),
    HEADS,
    click.option(
        "--missing",
        type=Words(["error", "zero", "skip"]),
        help="What a module counts as that some adapters lack.  [default: error]",
    ),
    click.option(
        "--to",
        "dialect",
        type=Words(["peft", "kohya", "diffusers", "mlx"]),
        help="Dialect of the written adapter.  [default: as the first input]",
    ),
    click.option(
        "--out-type",
        type=Words(["adapter", "delta", "checkpoint"]),
        help="What to write.  [default: as the inputs]",
    ),
    click.option(
        "--same-base", is_flag=True, default=None, help="Take the base models that adapters name as one."
    ),
    click.option("--base-name", metavar="NAME", help="Base model that the result names."),
    RENAME,
    COLUMNS,
    folder_option(
        "--statistics", "Folder of `collect_statistics`, once for each model in order.", multiple=True
    ),
    folder_option("--base-statistics", "Statistics of the base model."),
    click.option(
        "--uniform-rank/--no-uniform-rank",
        default=None,
        help="Write one rank in all modules, as llama.cpp needs it.  [default: uniform-rank]",
    ),
    COMPUTING,
)
"""What a recipe may say beside its models and its method, and how it is computed."""


def read_options(asked: dict[str, Any]) -> dict[str, Any]:
    """Return what was said on the command line, parameters read as a recipe has them.

    Raises:
        RecipeError: A parameter has no such value, or is said by `-p` and under its own name.
    """
    from riemerge.errors import RecipeError
    from riemerge.recipes.candidates import parse_assignments, parse_renames
    from riemerge.recipes.recipe import parse_value

    asked = {name: value for name, value in asked.items() if value is not None}
    assigned = parse_assignments(asked.pop("assignments", ()))
    if renames := asked.pop("renames", ()):
        asked["rename"] = parse_renames(renames)
    if twice := assigned.keys() & asked.keys():
        raise RecipeError(f"-p {name}: said as an option too: say it once" for name in sorted(twice))
    spelled = {name: parse_value(PARAMETERS[name], asked[name]) for name in asked if name in PARAMETERS}
    return {**asked, **spelled, **assigned}
