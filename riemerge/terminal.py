"""The terminal: results on stdout as tables or JSON, faults and progress on stderr."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

import click

from riemerge.errors import ResourceError, RiemergeError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from riemerge.merge import Listener, Progress

PLAIN_WIDTH = 100
LOG_SECONDS = 10.0
LOG_SHARE = 0.1
INTERRUPTED = 130


def answering(command: Callable[..., None]) -> Callable[..., None]:
    """Turn every fault of a command into its message and exit code."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        as_json = options["as_json"]
        try:
            command(**options)
        except RiemergeError as fault:
            fail(type(fault).__name__, fault.exit_code, fault.problems, as_json)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            fail("Interrupted", INTERRUPTED, ("interrupted; nothing is half-written",), as_json)
        except Exception as fault:
            # The last door: a bug must end in one line, not in a traceback.
            if os.environ.get("RIEMERGE_TRACEBACK"):
                raise
            if isinstance(fault, MemoryError) or type(fault).__name__ == "OutOfMemoryError":
                problem = "out of memory: use --dtype float32, or fewer adapters at a time"
                fail("ResourceError", ResourceError.exit_code, (problem,), as_json)
            what = " ".join(str(fault).split())
            fail("Bug", 1, (f"a bug: {type(fault).__name__}: {what}; {_HOW_TO_REPORT}",), as_json)

    return run


_HOW_TO_REPORT = "please report it with what the same command prints under RIEMERGE_TRACEBACK=1"


def _console(stream: Any, *, stderr: bool = False) -> Console:
    from rich.console import Console

    plain = None if stream.isatty() else int(os.environ.get("COLUMNS", PLAIN_WIDTH))
    return Console(stderr=stderr, width=plain, highlight=False, markup=False, emoji=False)


def show(what: RenderableType) -> None:
    """Print a table, or text, on stdout."""
    _console(sys.stdout).print(what)


def dump(data: Any) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))


def fail(kind: str, code: int, problems: tuple[str, ...], as_json: bool) -> NoReturn:
    """Say what went wrong, on stderr and as JSON on stdout if asked for, and end with the exit code."""
    from riemerge.card import printable

    if as_json:
        dump({"error": {"kind": kind, "code": code, "problems": list(problems)}})
    for problem in problems:
        click.echo(f"error: {printable(problem)}", err=True)
    if len(problems) > 1:
        click.echo(f"{len(problems)} problems; nothing was written (exit {code})", err=True)
    sys.exit(code)


@contextmanager
def progress_on_stderr(quiet: bool) -> Iterator[Listener | None]:
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
