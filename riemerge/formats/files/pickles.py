"""Pickles, which are opened in another process, of limited memory and time, and only when told to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from riemerge.errors import AdapterError, ResourceError
from riemerge.formats.files.tensor_file import read_start

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
SECONDS = 600
_CUT_SHORT = ("PytorchStreamReader", "struct.error", "EOFError")
_PROGRAM = Path(__file__).with_name("unpickle.py")
# A zip archive, and what torch wrote before version 1.6.
_STARTS = (b"PK\x03\x04", b"\x80")
_SPARE = 256 * 2**20


def unpickle(source: Path, target: Path) -> None:
    """Write the tensors of a pickle as a new safetensors file.

    Law: nothing in the pickle is executed: the process that opens it knows tensors and plain containers only
    (torch's `weights_only`). It has no more memory than four times the size of the pickle, 256 MiB, and what
    torch itself takes; and ten minutes.

    Args:
        source: The pickle.
        target: The new file.

    Raises:
        AdapterError: The file is no regular one, or no pickle of torch, or holds something else;
            or the process ran out of memory or time.
        ResourceError: The system cannot limit the memory of a process.
    """
    if not Path("/proc/self/statm").exists():
        raise ResourceError(f"{source}: a pickle is opened on Linux only, where the memory can be limited")
    try:
        start = read_start(source, size=4)
    except ValueError as error:
        raise AdapterError(f"{source}: {error}") from error
    if not start.startswith(_STARTS):
        raise AdapterError(f"{source}: is no file that torch.save wrote")
    size = _SPARE + 4 * source.stat().st_size
    command = [sys.executable, "-P", str(_PROGRAM), str(source.absolute()), str(target), str(size)]
    try:
        ran = subprocess.run(
            command,
            capture_output=True,
            check=False,
            cwd=target.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise AdapterError(
            f"{source}: was not opened within {SECONDS} seconds; nothing was written"
        ) from error
    if ran.returncode:
        lines = ran.stderr.strip().splitlines() or [f"ended with {ran.returncode}"]
        raise AdapterError(
            f"{source}: is refused: {_why(ran.returncode, lines)}; nothing in it was executed: get the "
            "tensors as safetensors"
        )


def _why(code: int, lines: list[str]) -> str:
    """Say why a pickle was not opened, of what the process said."""
    said = " ".join(lines)
    if "UnpicklingError" in said or "Weights only load failed" in said:
        return "it holds more than tensors in plain containers (torch.load with weights_only)"
    if any(word in said for word in _CUT_SHORT):
        return "it is no whole file that torch.save wrote"
    if code < 0 or "MemoryError" in said or "not enough memory" in said or "Cannot allocate" in said:
        return "it needs more memory than a pickle of its size may take"
    return lines[-1]
