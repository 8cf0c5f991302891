"""The machine: which device computes, and how many threads work at once."""

from __future__ import annotations

import os

import torch

from riemerge.errors import RecipeError, ResourceError
from riemerge.formats.files.tensor_file import FLOATS


def find_threads(asked: int | None, where: torch.device) -> int:
    """Return how many threads to use: as many as asked for, or as the process may; one keeps a GPU busy.

    Raises:
        RecipeError: Fewer than one were asked for.
    """
    if asked is not None and asked < 1:
        raise RecipeError(f"threads: {asked}: expected at least 1")
    if where.type != "cpu":
        return 1
    if asked is not None:
        return asked
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_device(name: str) -> torch.device:
    """Return the device of a name: `cpu`, `cuda`, `cuda:N`, or `auto` for cuda where there is one.

    Raises:
        RecipeError: No such name.
        ResourceError: The device is not there.
    """
    if name == "auto":
        name = ("cpu", "cuda")[torch.cuda.is_available()]
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RecipeError(f"device: {name!r} is not known: expected cpu, cuda, cuda:N or auto") from None
    if device.type not in {"cpu", "cuda"}:
        raise RecipeError(f"device: {name!r} is not supported: expected cpu, cuda, cuda:N or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            f"device: {name} was asked for, but torch {torch.__version__} finds {torch.cuda.device_count()} "
            "CUDA devices: use --device cpu, or install a CUDA build of torch and a driver"
        )
    return device


def find_dtype(name: str) -> torch.dtype:
    """Return the float dtype of a name that can be written: `float16`, `bfloat16`, `float32` or `float64`.

    Raises:
        RecipeError: No such name.
    """
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS.values()}
    if name not in dtypes:
        raise RecipeError(f"out_dtype: {name!r}: expected {', '.join(dtypes)}")
    return dtypes[name]
