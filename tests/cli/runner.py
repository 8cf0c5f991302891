"""How the tests of the command line run it: inside this process, or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from riemerge.cli.commands import main
from tests.helpers import ROOT

TENSORS = "adapter_model.safetensors"


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def call(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    script = "from riemerge.cli.commands import main; main()"
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", script, *words], capture_output=True, check=False, env=env)


def merged(folders: list[Path], out: Path, *words: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    """A merge in a process of its own, so that its streams can be anything."""
    full = [sys.executable, *words, "-c", "from riemerge.cli.commands import main; main()", "merge"]
    full += [*map(str, folders), "-o", str(out)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    env = {**os.environ, "PYTHONPATH": str(ROOT), **streams.pop("env", {})}
    return subprocess.run(full, text=True, check=False, env=env, **streams)
