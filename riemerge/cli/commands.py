"""The command line: merge and its kin, inspect, methods. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from riemerge._version import __version__
from riemerge.cli.terminal import PLAIN_WIDTH, answering, dump, progress_on_stderr, reporting, say, show, tell
from riemerge.errors import ResourceError
from riemerge.methods import PARAMETERS, Parameter

if TYPE_CHECKING:
    from pydantic import BaseModel

    from riemerge.merging.progress import Listener, Progress
    from riemerge.recipes.recipe import Recipe

DEMO = ("snli", "mnli", "qnli", "scitail")


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
_threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads that work at once; they change no bit of the result. All CPUs if not given.",
)
_quiet = click.option(
    "-q", "--quiet", is_flag=True, help="No progress, only the path of the result; warnings go to stderr."
)


_UNIFORM = (
    "Write one rank in all modules, the largest, by columns of zero, as --rank N and --rank sum always do."
)


def _parameters(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each parameter of the methods."""
    for spec in reversed(PARAMETERS.values()):
        if spec.name != "weight":
            option = click.option(f"--{spec.name.replace('_', '-')}", spec.name, help=_sentence(spec))
            command = option(command)
    return command


def _computed(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command how it is to be done."""
    for option in (
        _quiet,
        _json,
        _threads,
        click.option("--out-dtype", help="Dtype of the written weights; that of the inputs if not given."),
        click.option("--dtype", help="Dtype of the computation: float64 (if not given) or float32."),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N or auto."),
    ):
        command = option(command)
    return command


def _recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command what a recipe may say beside its models and method, and how it is to be done."""
    command = _computed(command)
    for option in (
        click.option("--out-type", help="adapter, delta or checkpoint; as the inputs if not given."),
        click.option("--uniform-rank", is_flag=True, default=None, help=_UNIFORM),
        click.option("--base-model", type=click.Path(), help="Full checkpoint from which others differ."),
        click.option("--base-statistics", type=click.Path(), help="Folder of statistics of the base model."),
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
    from riemerge.recipes.recipe import parse_value

    return {
        name: parse_value(PARAMETERS[name], value) if name in PARAMETERS else value
        for name, value in asked.items()
        if value is not None
    }


def _sentence(spec: Parameter) -> str:
    words = f": {', '.join(spec.choices)}" if spec.choices else ""
    return f"{spec.summary[0].upper()}{spec.summary[1:]}{words}."


# Texts of their own, since python -OO takes docstrings away.
_MAIN = """Merge LoRA adapters, without their base model, or full checkpoints.

Exit codes: 0 done, 1 a bug, 2 usage, 3 recipe, 4 input adapters, 5 numbers, 6 output, 7 machine, 130
interrupted, 143 terminated."""


@click.group(
    help=_MAIN, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": PLAIN_WIDTH}
)
@click.version_option(__version__, prog_name="riemerge")
def main() -> None:
    """Merge LoRA adapters and full checkpoints: the group of all commands."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


_MERGE = """Merge adapters into one, or full checkpoints: folders with weights (a:0.5 b:0.5), or a recipe.

A weight is what stands behind the last colon, if that is a number; 1 otherwise. A folder whose own name
ends so is that folder. Options win over the recipe. Which method takes which parameter, `riemerge
methods` says; a value may also be a list over depth: --density "[0.3, 0.7]"."""


@main.command(help=_MERGE)
@click.argument("sources", nargs=-1, required=True, metavar="ADAPTER[:WEIGHT]... | RECIPE.yaml")
@click.option("-o", "--output", required=True, type=click.Path(), help="Folder to make; it must not exist.")
@click.option("--method", help="See `riemerge methods`; spectrum if not given.")
@_recipe
@answering
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
    """Do what `riemerge merge` is asked."""
    from riemerge.recipes.recipe import read_recipe

    given = _given(asked)
    recipe = read_recipe(sources, {"merge_method": given.pop("method", None), **given}, statistics)
    _merge_into(recipe, Path(output), device, threads, as_json, quiet)


_SCORER = "Command that scores the model in {}: its last line is a number, higher is better."


_SOUP = """Merge those models that score best together, tried from the best alone to the worst.

The scorer runs without a shell, once for each model alone and once for each that is tried in the soup:
--scorer "python evaluate.py {}". All scores are in soup.json, in the output."""


@main.command(help=_SOUP)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("-o", "--output", required=True, type=click.Path(), help="Folder to make; it must not exist.")
@click.option("--method", default="average", show_default=True, help="See `riemerge methods`.")
@click.option("--scorer", required=True, help=_SCORER)
@_recipe
@answering
def soup(models: tuple[str, ...], output: str, scorer: str, as_json: bool, quiet: bool, **asked: Any) -> None:
    """Do what `riemerge soup` is asked."""
    from riemerge.study.scores import command_scorer
    from riemerge.study.soups import greedy_soup

    made = greedy_soup(models, output, command_scorer(scorer), progress=_lines(quiet), **_given(asked))
    chosen = f"{len(made.chosen)} of {len(models)}: {' + '.join(made.chosen)}: score {made.score:.6g}"
    _tell(output, made, [chosen], as_json, quiet)


_SWEEP = """Merge models with all weights of a grid: of two, OUT/0.00 is the first, OUT/1.00 the second.

Merges of the same recipe and models that are there already stay while their files are as they were written,
so that a sweep that was broken off goes on. The table is in sweep.json, in the output."""


@main.command(help=_SWEEP)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("-o", "--output", required=True, type=click.Path(), help="Folder around all.")
@click.option("--method", default="average", show_default=True, help="See `riemerge methods`.")
@click.option("--steps", type=click.IntRange(min=2), default=11, show_default=True, help="Points on an edge.")
@click.option("--scorer", help=_SCORER)
@_recipe
@answering
def sweep(
    models: tuple[str, ...], output: str, scorer: str | None, as_json: bool, quiet: bool, **asked: Any
) -> None:
    """Do what `riemerge sweep` is asked."""
    from riemerge.report.card import number
    from riemerge.study.scores import command_scorer
    from riemerge.study.soups import sweep

    judge = command_scorer(scorer) if scorer else None
    made = sweep(models, output, scorer=judge, progress=_lines(quiet), **_given(asked))
    rows = [f"{one.folder}  ‖dW‖ {number(one.norm)}  score {number(one.score)}" for one in made.points]
    _tell(output, made, rows, as_json, quiet)


_EVALUATED = (
    "Command that scores the model in {} on the rows of {part}, `dev` or `test`: its last line is a number, "
    "or JSON: by task a number, or a list of one for each row. Higher is better."
)


def _numbers(_: click.Context, __: click.Parameter, text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(one) for one in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected numbers with commas between") from None


def _pairs(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, str | None]:
    if wrong := [text for text in texts if "=" not in text]:
        raise click.BadParameter(f"{wrong[0]!r}: expected TASK=MODEL")
    pairs = [text.partition("=")[::2] for text in texts]
    found = {task: model or None for task, model in pairs}
    if len(found) < len(pairs) or "" in found:
        raise click.BadParameter(f"{', '.join(texts)}: expected each TASK once, with a name")
    return found


_EVALUATE = """Find the method that merges best: each at equal norms, chosen on dev, reported on test.

The scorer runs without a shell: --scorer "python score.py {} {part}". OUTPUT/best is the best merge;
all scores are in OUTPUT/evaluation.json. A run that was broken off goes on."""


@main.command(help=_EVALUATE)
@click.argument("models", nargs=-1, required=True, metavar="ADAPTER...")
@click.option(
    "-o", "--output", required=True, type=click.Path(), help="Folder; of an earlier run, it goes on."
)
@click.option("--scorer", required=True, help=_EVALUATED)
@click.option("--methods", help="METHOD[:PARAMETER=VALUE...], with commas between; a few if not given.")
@click.option(
    "--coefficients", callback=_numbers, help="Norms to try, in those of the average; else searched."
)
@click.option(
    "--specialist",
    "specialists",
    multiple=True,
    callback=_pairs,
    metavar="TASK=MODEL",
    help="Adapter whose score is 1; the one called like the task if not given, no MODEL for raw scores.",
)
@click.option("--resamples", type=int, help="How often rows are drawn again for errors; 10000 if not given.")
@click.option("--seed", type=int, help="Random seed of these draws; a fixed one if not given.")
@_computed
@answering
def evaluate(
    models: tuple[str, ...],
    output: str,
    scorer: str,
    methods: str | None,
    as_json: bool,
    quiet: bool,
    **asked: Any,
) -> None:
    """Do what `riemerge evaluate` is asked."""
    from riemerge.report.card import printable
    from riemerge.report.tables import evaluation_report
    from riemerge.study.evaluation import BEST, evaluate

    given = {name: value for name, value in asked.items() if value is not None}
    if methods is not None:
        given["methods"] = re.split(r",(?![^\[]*\])", methods)  # but not within a list
    made = evaluate(models, scorer, folder=output, progress=_lines(quiet), **given)
    with reporting(output):
        if as_json:
            dump({"output": output, "record": made.model_dump(mode="json")})
        elif quiet:
            say(output)
        else:
            show(evaluation_report(made))
            say(f"\n{printable(f'written to {output}; the best merge is {Path(output) / BEST}')}")


def _lines(quiet: bool) -> Listener | None:
    """Return a listener that prints each event as a line on stderr; None where nothing is to be printed."""
    from riemerge.report.card import printable

    def tell_event(event: Progress) -> None:
        tell(printable(f"{event.stage}: {event.text}"))

    return None if quiet else tell_event


def _tell(output: str, record: BaseModel, lines: list[str], as_json: bool, quiet: bool) -> None:
    """Show what was made of several merges."""
    from riemerge.report.card import printable

    with reporting(output):
        if as_json:
            dump({"output": output, "record": record.model_dump(mode="json")})
        else:
            say(output if quiet else "\n".join(map(printable, [*lines, f"written to {output}"])))


@main.command(help="Show what is in adapters, and how far apart each two of them are.")
@click.argument("folders", nargs=-1, required=True, metavar="DIR...")
@_json
@answering
def inspect(folders: tuple[str, ...], as_json: bool) -> None:
    """Do what `riemerge inspect` is asked."""
    from riemerge.study.inspection import inspect_adapters

    inspection = inspect_adapters(folders)
    if as_json:
        dump(json.loads(inspection.to_json()))
    else:
        from riemerge.report.tables import inspection_report

        show(inspection_report(inspection))


@main.command(help="Show the methods: all of them, or those named, with what each parameter means.")
@click.argument("names", nargs=-1, metavar="[METHOD]...")
@_json
@answering
def methods(names: tuple[str, ...], as_json: bool) -> None:
    """Do what `riemerge methods` is asked."""
    from riemerge.methods import METHODS, find_method

    rows = [find_method(name) for name in names or METHODS]
    if as_json:
        from dataclasses import asdict

        dump([asdict(row) for row in rows])
    else:
        from riemerge.report.tables import methods_report

        show(methods_report(rows, explain=bool(names)))


@main.command(
    help="Merge the four real adapters that come with riemerge by their Fréchet mean, and explain the result."
)
@click.option("-o", "--output", type=click.Path(), help="Folder to make; a temporary one if not given.")
@_threads
@_json
@_quiet
@answering
def demo(output: str | None, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Do what `riemerge demo` is asked."""
    from riemerge.recipes.recipe import read_recipe

    folder = _demo_folder()
    recipe = read_recipe([str(folder / name) for name in DEMO], {"merge_method": "geomerge"})
    target = Path(output) if output else Path(tempfile.mkdtemp(prefix="riemerge-demo-")) / "merged"
    _merge_into(recipe, target, "cpu", threads, as_json, quiet)


def _merge_into(
    recipe: Recipe, target: Path, device: str, threads: int | None, as_json: bool, quiet: bool
) -> None:
    """Merge, write, and show."""
    from riemerge.merging.outputs import merge_into
    from riemerge.report.card import printable
    from riemerge.report.tables import written_report

    with progress_on_stderr(quiet) as listener:
        record, rounding = merge_into(recipe, target, device=device, threads=threads, progress=listener)
    if as_json or quiet:
        for text in record.warnings:
            tell(printable(f"warning: {text}"))
    with reporting(target):
        if as_json:
            dump({"output": str(target), "rounding": rounding, "record": json.loads(record.to_json())})
        elif quiet:
            say(str(target))
        else:
            show(written_report(record, target, rounding))


def _demo_folder() -> Path:
    """Where the real adapters are: inside an installed package, or in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "_demo", package.parent / "examples" / "adapters"):
        if all((folder / name).is_dir() for name in DEMO):
            return folder
    raise ResourceError(
        "demo: the example adapters are missing: reinstall riemerge, or run it from a checkout"
    )
