"""The command line: merge and its kin, inspect, methods. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

import click

from riemerge import __version__
from riemerge.errors import ResourceError, RiemergeError
from riemerge.methods import PARAMETERS, Parameter

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, RenderableType

    from riemerge.merge import Listener, Progress
    from riemerge.recipe import Recipe
    from riemerge.record import RunRecord

DEMO = ("snli", "mnli", "qnli", "scitail")
INTERRUPTED = 130
PLAIN_WIDTH = 100
LOG_SECONDS = 10.0
LOG_SHARE = 0.1


def _answering(command: Callable[..., None]) -> Callable[..., None]:
    """Turn every fault of a command into its message and exit code."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        as_json = options["as_json"]
        try:
            command(**options)
        except RiemergeError as fault:
            _fail(type(fault).__name__, fault.exit_code, fault.problems, as_json)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            _fail("Interrupted", INTERRUPTED, ("interrupted; nothing is half-written",), as_json)
        except Exception as fault:
            # The last door: a bug must end in one line, not in a traceback.
            if os.environ.get("RIEMERGE_TRACEBACK"):
                raise
            if isinstance(fault, MemoryError) or type(fault).__name__ == "OutOfMemoryError":
                problem = "out of memory: use --dtype float32, or fewer adapters at a time"
                _fail("ResourceError", ResourceError.exit_code, (problem,), as_json)
            what = " ".join(str(fault).split())
            _fail("Bug", 1, (f"a bug: {type(fault).__name__}: {what}; {_HOW_TO_REPORT}",), as_json)

    return run


_HOW_TO_REPORT = "please report it with what the same command prints under RIEMERGE_TRACEBACK=1"

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
_threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Working at once; they change no bit. All CPUs if not given.",
)
_quiet = click.option("-q", "--quiet", is_flag=True, help="No progress, and only the path of the result.")


def _parameters(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each parameter of the methods."""
    for spec in reversed(PARAMETERS.values()):
        if spec.name != "weight":
            option = click.option(f"--{spec.name.replace('_', '-')}", spec.name, help=_sentence(spec))
            command = option(command)
    return command


def _recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command what a recipe may say beside its models and method, and how it is to be done."""
    for option in (
        _quiet,
        _json,
        _threads,
        click.option("--out-dtype", help="Of the written weights; that of the inputs if not given."),
        click.option("--dtype", help="Of the computation: float64 (if not given) or float32."),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N or auto."),
        click.option("--out-type", help="adapter, delta or checkpoint; as the inputs if not given."),
        click.option("--base-model", type=click.Path(), help="Full checkpoint from which others differ."),
        click.option("--base-statistics", type=click.Path(), help="The same of the base model."),
        click.option(
            "--statistics",
            multiple=True,
            type=click.Path(),
            help="Folder of `riemerge.collect_statistics`, once for each adapter in their order.",
        ),
        _parameters,
    ):
        command = option(command)
    return command


def _given(asked: dict[str, Any]) -> dict[str, Any]:
    """What was said on the command line, parameters as a recipe has them."""
    from riemerge.recipe import parse_value

    return {
        name: parse_value(PARAMETERS[name], value) if name in PARAMETERS else value
        for name, value in asked.items()
        if value is not None
    }


def _sentence(spec: Parameter) -> str:
    words = f": {', '.join(spec.choices)}" if spec.choices else ""
    return f"{spec.summary[0].upper()}{spec.summary[1:]}{words}."


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": PLAIN_WIDTH})
@click.version_option(__version__, prog_name="riemerge")
def main() -> None:
    """Merge LoRA adapters as weighted Fréchet means, without the base model.

    Exit codes: 0 done, 1 a bug, 2 usage, 3 recipe, 4 input adapters, 5 numbers, 6 output, 7 machine, 130
    interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@main.command()
@click.argument("sources", nargs=-1, required=True, metavar="ADAPTER[:WEIGHT]... | RECIPE.yaml")
@click.option("-o", "--output", required=True, type=click.Path(), help="Folder to make; it must not exist.")
@click.option("--method", help="See `riemerge methods`; geomerge if not given.")
@_recipe
@_answering
def merge(
    sources: tuple[str, ...],
    output: str,
    device: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    statistics: tuple[str, ...],
    **asked: Any,
) -> None:
    """Merge adapters into one, or full checkpoints: folders with weights (a:0.5 b:0.5), or a recipe.

    A weight is what stands behind the last colon, if that is a number; 1 otherwise. Options win over the
    recipe. Which method takes which parameter, `riemerge methods` says; a value may also be a list over
    depth: --density "[0.3, 0.7]".
    """
    from riemerge.recipe import read_recipe

    given = _given(asked)
    recipe = read_recipe(sources, {"merge_method": given.pop("method", None), **given}, statistics)
    _merge_into(recipe, Path(output), device, threads, as_json, quiet)


_SCORER = "Command that scores the model in {}: its last line is a number, higher is better."


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("-o", "--output", required=True, type=click.Path(), help="Folder to make; it must not exist.")
@click.option("--method", default="average", show_default=True, help="See `riemerge methods`.")
@click.option("--scorer", required=True, help=_SCORER)
@_recipe
@_answering
def soup(models: tuple[str, ...], output: str, scorer: str, as_json: bool, quiet: bool, **asked: Any) -> None:
    """Merge those models that score best together, tried from the best alone to the worst.

    The scorer runs without a shell, once for each model alone and once for each that is tried in the soup:
    --scorer "python evaluate.py {}". All scores are in soup.json, in the output.
    """
    from riemerge.card import printable
    from riemerge.scores import command_scorer
    from riemerge.soups import Trial, greedy_soup

    def told(trial: Trial) -> None:
        if not quiet:
            click.echo(f"soup: {printable(' + '.join(trial.models))}: score {trial.score:.6g}", err=True)

    made = greedy_soup(models, output, command_scorer(scorer), progress=told, **_given(asked))
    chosen = f"{len(made.chosen)} of {len(models)}: {' + '.join(made.chosen)}: score {made.score:.6g}"
    _tell(output, made, [chosen], as_json, quiet)


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("-o", "--output", required=True, type=click.Path(), help="Folder around all.")
@click.option("--method", default="average", show_default=True, help="See `riemerge methods`.")
@click.option("--steps", type=click.IntRange(min=2), default=11, show_default=True, help="Points on an edge.")
@click.option("--scorer", help=_SCORER)
@_recipe
@_answering
def sweep(
    models: tuple[str, ...], output: str, scorer: str | None, as_json: bool, quiet: bool, **asked: Any
) -> None:
    """Merge models with all weights of a grid: of two, OUT/0.00 is the first, OUT/1.00 the second.

    Merges that are there already stay, if they are of the same recipe and models: a sweep that was broken
    off goes on. The table is in sweep.json, in the output.
    """
    from riemerge.card import number
    from riemerge.scores import command_scorer
    from riemerge.soups import SweepPoint, sweep

    def told(point: SweepPoint) -> None:
        if not quiet:
            click.echo(f"sweep: {point.folder}", err=True)

    judge = command_scorer(scorer) if scorer else None
    made = sweep(models, output, scorer=judge, progress=told, **_given(asked))
    rows = [f"{one.folder}  ‖dW‖ {number(one.norm)}  score {number(one.score)}" for one in made.points]
    _tell(output, made, rows, as_json, quiet)


def _tell(output: str, record: BaseModel, lines: list[str], as_json: bool, quiet: bool) -> None:
    """Show what was made of several merges."""
    from riemerge.card import printable

    if as_json:
        _dump({"output": output, "record": record.model_dump(mode="json")})
    else:
        click.echo(output if quiet else "\n".join(map(printable, [*lines, f"written to {output}"])))


@main.command()
@click.argument("folders", nargs=-1, required=True, metavar="DIR...")
@_json
@_answering
def inspect(folders: tuple[str, ...], as_json: bool) -> None:
    """Show what is in adapters, and how far apart each two of them are."""
    from riemerge.inspection import inspect_adapters

    inspection = inspect_adapters(folders)
    if as_json:
        click.echo(inspection.to_json(), nl=False)
    else:
        from riemerge.report import inspection_report

        _show(inspection_report(inspection))


@main.command()
@_json
@_answering
def methods(as_json: bool) -> None:
    """List the ways to merge."""
    if as_json:
        from dataclasses import asdict

        from riemerge.methods import METHODS

        _dump([asdict(row) for row in METHODS.values()])
    else:
        from riemerge.report import methods_report

        _show(methods_report())


@main.command()
@click.option("-o", "--output", type=click.Path(), help="Folder to make; a temporary one if not given.")
@_threads
@_json
@_quiet
@_answering
def demo(output: str | None, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Merge the four real adapters that come with riemerge, and explain the result."""
    from riemerge.recipe import read_recipe

    folder = _demo_folder()
    recipe = read_recipe([str(folder / name) for name in DEMO])
    target = Path(output) if output else Path(tempfile.mkdtemp(prefix="riemerge-demo-")) / "merged"
    _merge_into(recipe, target, "cpu", threads, as_json, quiet)


def _merge_into(
    recipe: Recipe, target: Path, device: str, threads: int | None, as_json: bool, quiet: bool
) -> None:
    """Merge, write, and show."""
    from riemerge.outputs import merge_into

    with _progress(quiet) as listener:
        record, rounding = merge_into(recipe, target, device=device, threads=threads, progress=listener)
    if as_json:
        _dump({"output": str(target), "rounding": rounding, "record": json.loads(record.to_json())})
    elif quiet:
        click.echo(str(target))
    else:
        _show_merge(record, target, rounding)


def _show_merge(record: RunRecord, target: Path, rounding: float) -> None:
    from rich.text import Text

    from riemerge.card import printable
    from riemerge.report import merge_report

    _show(merge_report(record))
    dtype = record.recipe["out_dtype"]
    where = f"{printable(str(target))} as {dtype}" if dtype else printable(str(target))
    _show(Text(f"\nwritten to {where}; rounding moved no module by more than {rounding:.1g} relative"))


def _demo_folder() -> Path:
    """Where the real adapters are: inside an installed package, or in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "_demo", package.parent / "examples" / "adapters"):
        if all((folder / name).is_dir() for name in DEMO):
            return folder
    raise ResourceError(
        "demo: the example adapters are missing: reinstall riemerge, or run it from a checkout"
    )


# --- out and err --------------------------------------------------------------------------------------------


def _console(stream: Any, *, stderr: bool = False) -> Console:
    from rich.console import Console

    plain = None if stream.isatty() else int(os.environ.get("COLUMNS", PLAIN_WIDTH))
    return Console(stderr=stderr, width=plain, highlight=False, markup=False, emoji=False)


def _show(what: RenderableType) -> None:
    _console(sys.stdout).print(what)


def _dump(data: Any) -> None:
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))


def _fail(kind: str, code: int, problems: tuple[str, ...], as_json: bool) -> NoReturn:
    from riemerge.card import printable

    if as_json:
        _dump({"error": {"kind": kind, "code": code, "problems": list(problems)}})
    for problem in problems:
        click.echo(f"error: {printable(problem)}", err=True)
    if len(problems) > 1:
        click.echo(f"{len(problems)} problems; nothing was written (exit {code})", err=True)
    sys.exit(code)


@contextmanager
def _progress(quiet: bool) -> Iterator[Listener | None]:
    """A listener that draws a bar on a terminal, and writes a line now and then elsewhere."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Bars(*columns, console=_console(sys.stderr, stderr=True)) as bars:
            tasks: dict[str, Any] = {}

            def draw(event: Progress) -> None:
                if event.stage not in tasks:
                    tasks[event.stage] = bars.add_task(event.stage, text="")
                bars.update(tasks[event.stage], completed=event.done, total=event.total, text=event.text)

            yield draw
    else:
        yield _log_lines()


def _log_lines() -> Listener:
    """A listener that writes a line each tenth of a stage, every ten seconds, and at the end."""
    stage, shown, since = "", 0.0, monotonic()

    def log(event: Progress) -> None:
        nonlocal stage, shown, since
        share, now = event.done / event.total, monotonic()
        if event.stage != stage:
            stage, shown = event.stage, 0.0
        step = share - shown >= LOG_SHARE and now - since >= 1.0
        if step or share == 1 > shown or now - since >= LOG_SECONDS:
            shown, since = share, now
            text = f": {event.text}" if event.text else ""
            click.echo(f"{event.stage}: {event.done} of {event.total} modules{text}", err=True)

    return log
