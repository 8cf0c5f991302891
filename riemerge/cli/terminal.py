"""The terminal: results on stdout as tables or JSON, faults and progress on stderr."""

from __future__ import annotations

import functools
import gc
import json
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

import click

from riemerge.errors import OutputError, explain
from riemerge.methods.plugins import load_plugin
from riemerge.report.words import number, printable, when

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, RenderableType

    from riemerge.progress import Listener, Progress
    from riemerge.records.difference_record import DifferenceRecord

PLAIN_WIDTH = 100
LOG_SECONDS = 10.0
LOG_SHARE = 0.1
INTERRUPTED = 130
TERMINATED = 128 + signal.SIGTERM


class _TerminatedError(KeyboardInterrupt):
    """The process was asked to end, by SIGTERM."""


def answering(command: Callable[..., None]) -> Callable[..., None]:
    """Turn every fault of a command into its message and exit code."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        try:
            with _end_on_sigterm():
                for module in options.pop("plugin", ()):
                    load_plugin(module)
                command(**options)
        except (click.ClickException, click.exceptions.Exit, SystemExit):
            raise
        except BaseException as fault:
            kind, code, problems = _explain(fault)
            # The last door: a bug must end in one line, not in a traceback.
            if os.environ.get("RIEMERGE_TRACEBACK") and isinstance(fault, Exception) and kind == "Bug":
                raise
            notes = tuple(getattr(fault, "__notes__", ()))
            if isinstance(fault.__cause__, BrokenPipeError) and not notes:
                sys.exit(code)  # as `riemerge methods | head` ends: whoever read has enough
            fail(kind, code, problems, options["as_json"], notes)

    return run


@contextmanager
def loading() -> Iterator[None]:
    """Import modules without a search for garbage: all of it stays, and torch loads a tenth faster."""
    searches = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searches:
            gc.enable()


_HOW_TO_REPORT = "please report it with what the same command prints under RIEMERGE_TRACEBACK=1"


def _explain(fault: BaseException) -> tuple[str, int, tuple[str, ...]]:
    """Return the kind of a fault, its exit code, and what there is to say."""
    if isinstance(fault, _TerminatedError):
        return "Terminated", TERMINATED, ("terminated; nothing is half-written",)
    if isinstance(fault, KeyboardInterrupt):
        return "Interrupted", INTERRUPTED, ("interrupted; nothing is half-written",)
    kind, code, problems = explain(fault)
    if kind == "Bug":
        problems = tuple(f"{problem}; {_HOW_TO_REPORT}" for problem in problems)
    return kind, code, problems


@contextmanager
def _end_on_sigterm() -> Iterator[None]:
    """End the command on SIGTERM as an interrupt does: what is staged is cleared away."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(*_: object) -> None:
        raise _TerminatedError

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# --- stdout -------------------------------------------------------------------------------------------------


@contextmanager
def reporting(output: str | Path) -> Iterator[None]:
    """Add to a fault that the output is written: whatever goes wrong in a report, the result stays."""
    try:
        yield
    except BaseException as fault:
        fault.add_note(f"{output}: is written, whole")
        raise


def say(text: str, end: str = "\n") -> None:
    """Print a text on stdout, and a line break.

    Raises:
        OutputError: The stream is closed or full.
    """
    if sys.stdout is not None:  # as `>&-` leaves it
        with _printing():
            sys.stdout.write(f"{text}{end}")
            sys.stdout.flush()


def show(what: RenderableType) -> None:
    """Print a table, or text, on stdout, as `say` does."""
    if sys.stdout is None:
        return
    console = _console(sys.stdout)
    # Rendered first: rich has an answer of its own to a closed pipe.
    with _printing(), console.capture() as rendered:
        console.print(what)
    say(rendered.get(), end="")


@contextmanager
def _printing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _abandon(sys.stdout)
        raise OutputError(f"stdout: cannot be written: {error.strerror or error}") from error


def show_made(output: str, made: BaseModel, lines: Sequence[str], as_json: bool, quiet: bool) -> None:
    """Show what was made of several merges: as JSON, as lines, or only where it is."""
    with reporting(output):
        if as_json:
            dump({"output": output, "record": made.model_dump(mode="json")})
        elif quiet:
            say(output)
        else:
            say("\n".join(map(printable, [*lines, f"written to {output}"])))


def show_difference(output: str, made: DifferenceRecord, as_json: bool, quiet: bool) -> None:
    """Show what an adapter that was applied or extracted came to; its warnings on stderr."""
    for text in made.warnings:
        tell(printable(f"warning: {text}"))
    rows = made.modules
    norm = math.hypot(*(row.norm for row in rows))
    error = math.hypot(*(row.error * row.norm for row in rows)) / (norm or 1.0)
    lines = [
        f"{made.verb}: {made.base.name}, {made.other.name}: {len(rows)} modules",
        f"‖dW‖ {number(norm)}; rank and rounding leave out {error:.2%} of it",
    ]
    show_made(output, made, lines, as_json, quiet)


def dump(data: Any) -> None:
    """Print one JSON document on stdout, which is JSON in any encoding, as `say` does."""
    say(json.dumps(data, indent=2, allow_nan=False))


def _console(stream: Any, *, stderr: bool = False) -> Console:
    from rich.console import Console

    # rich ends at "²" and at numbers of thousands of digits.
    sane = {
        name: text
        for name, text in os.environ.items()
        if name not in {"COLUMNS", "LINES"} or re.fullmatch("[1-9][0-9]{0,4}", text)
    }
    width = None if stream.isatty() else int(sane.get("COLUMNS", PLAIN_WIDTH))
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False, _environ=sane)


def _abandon(stream: Any) -> None:
    """Lead a stream that cannot be written nowhere, so that what is left in it is no fault at the end."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# --- stderr -------------------------------------------------------------------------------------------------


def tell(text: str) -> None:
    """Print a line on stderr, if it takes one: no merge ends because no one listens."""
    try:
        click.echo(text, err=True)
    except OSError:
        _abandon(sys.stderr)


def fail(
    kind: str, code: int, problems: tuple[str, ...], as_json: bool, notes: tuple[str, ...] = ()
) -> NoReturn:
    """Say what went wrong and what is there, on stderr and as JSON on stdout if asked for, and end."""
    if as_json:
        there = {"notes": list(notes)} if notes else {}
        with suppress(OutputError):
            dump({"error": {"kind": kind, "code": code, "problems": list(problems), **there}})
    for problem in problems:
        tell(f"error: {printable(problem)}")
    for note in notes:
        tell(printable(note))
    if len(problems) > 1:
        nothing = when(not notes, "; nothing was written")
        tell(f"{len(problems)} problems{nothing} (exit {code})")
    sys.exit(code)


@contextmanager
def progress_on_stderr(quiet: bool, *, each: bool = False) -> Iterator[Listener | None]:
    """Give a listener that draws a bar on a terminal, and writes a line now and then elsewhere.

    Args:
        quiet: Whether nothing is to be told; then there is no listener.
        each: Whether every event is worth a line of its own, on a terminal too.
    """
    if quiet:
        yield None
    elif sys.stderr is not None and sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}", markup=False),
        )
        with Bars(*columns, console=_console(sys.stderr, stderr=True)) as bars:
            tasks: dict[str, Any] = {}

            def draw(event: Progress) -> None:
                if event.stage not in tasks:
                    tasks[event.stage] = bars.add_task(event.stage, text="")
                bars.update(
                    tasks[event.stage], completed=event.done, total=event.total, text=printable(event.text)
                )
                if each:
                    bars.console.print(printable(f"{event.stage}: {event.text}"))

            yield draw
    elif each:
        yield lambda event: tell(printable(f"{event.stage}: {event.text}"))
    else:
        yield _log_lines()


def _log_lines() -> Listener:
    """Return a listener that writes a line each tenth of a stage, every ten seconds, and at the end."""
    stage, shown, since = "", 0.0, monotonic()

    def log(event: Progress) -> None:
        nonlocal stage, shown, since
        share, now = event.done / event.total, monotonic()
        if event.stage != stage:
            stage, shown = event.stage, 0.0
        step = share - shown >= LOG_SHARE and now - since >= 1.0
        if step or share == 1 > shown or now - since >= LOG_SECONDS:
            shown, since = share, now
            count = f"{event.done} of {event.total}"
            tell(printable(": ".join(filter(None, (event.stage, count, event.text)))))

    return log
