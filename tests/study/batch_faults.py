"""A plug-in whose rows go wrong the first time that they merge: `riemerge batch` has to go on after that."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

from riemerge import Method

FOLDER = "RIEMERGE_TEST_FAULTS"
"""The variable of the environment that has the folder in which the faults leave word that they were there."""


def _mean(x: Any, setting: Any) -> Any:
    return (x * setting.weights[:, None, None]).sum(dim=0)


def _is_first(name: str) -> bool:
    try:
        Path(os.environ[FOLDER], name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def kill_once(x: Any, setting: Any) -> Any:
    if _is_first("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    return _mean(x, setting)


def fail_once(x: Any, setting: Any) -> Any:
    if _is_first("failed"):
        raise OSError(errno.ENOSPC, "no space left")
    return _mean(x, setting)


METHODS = {
    name: Method(name, "mean, in the end", "test", domain="span", mean=f"{__name__}:{name}")
    for name in ("kill_once", "fail_once")
}
