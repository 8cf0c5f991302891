"""Data for the tests: seeded generators, gauges, and the families of `riemerge.problems`."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import torch
from torch import Generator, Tensor

from riemerge.problems import (  # noqa: F401 (tests take them from here)
    FAMILIES,
    Factors,
    adapter_family,
    random_core,
    random_orthonormal,
    random_spectrum,
    random_update,
)

ROOT = Path(__file__).resolve().parent.parent


def shared_data_folder() -> Path | None:
    """The folder of real adapters and data that does not travel with the project, or None where it is
    absent."""
    folder = Path(os.environ.get("RIEMERGE_SHARED", ROOT.parent / "shared")) / "data"
    return folder if folder.is_dir() else None


def import_geomstats(module: str) -> ModuleType:
    """A module of geomstats, which (2.8) still asks numpy for the name `trapz` that numpy 2.4 dropped."""
    with mock.patch.object(np, "trapz", np.trapezoid, create=True):
        return importlib.import_module(module)


def seeded(seed: int) -> Generator:
    """A CPU generator of random numbers that starts from `seed`."""
    return Generator().manual_seed(seed)


def random_gauge(r: int, condition: float, generator: Generator, determinant: int | None = None) -> Tensor:
    """A matrix G of GL(r) with singular values from sqrt(condition) to 1/sqrt(condition), of either
    determinant sign.

    (B G, G⁻¹ A) are other factors of the update B A.

    Args:
        r: The rank.
        condition: Ratio of the largest to the smallest singular value.
        generator: Source of randomness.
        determinant: +1 or -1 to ask for one component of GL(r); random without it.
    """
    left, right = (random_orthonormal(r, r, generator) for _ in range(2))
    if determinant is not None and torch.linalg.det(left @ right) * determinant < 0:
        left[:, 0] *= -1
    return left * (random_spectrum(r, condition, generator) * condition**0.5) @ right
