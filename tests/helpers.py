"""Data for the tests: seeded generators, random updates and gauges, and families of adapters of known
structure.

An adapter is a pair of factors (B, A), shapes (m, r) and (r, n), float64, of the update dW = B A.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import torch
from torch import Generator, Tensor

Factors = tuple[Tensor, Tensor]

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


def random_orthonormal(m: int, r: int, generator: Generator) -> Tensor:
    """A uniformly distributed (m, r) matrix with orthonormal columns; for m = r both determinants occur."""
    q, upper = torch.linalg.qr(_normal(m, r, generator))
    return q * upper.diagonal().sign()


def random_spectrum(r: int, cond: float, generator: Generator) -> Tensor:
    """Singular values, descending, from 1 down to 1/cond, the inner ones log-uniform."""
    inner = torch.rand(max(r - 2, 0), generator=generator, dtype=torch.float64).sort().values
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return cond ** -torch.cat([ends[:1], inner, ends[1:]])[:r]


def random_core(r: int, cond: float, generator: Generator) -> Tensor:
    """An SPD (r, r) matrix of norm 1 and condition number `cond`."""
    frame = random_orthonormal(r, r, generator)
    return frame * random_spectrum(r, cond, generator) @ frame.mT


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


def random_update(m: int, n: int, r: int, cond: float, generator: Generator) -> Factors:
    """Factors of an update with random subspaces, norm (largest singular value) 1 and condition number
    `cond`."""
    left, right = random_orthonormal(m, r, generator), random_orthonormal(n, r, generator)
    return _factors(left, random_core(r, cond, generator), right)


def adapter_family(
    name: str, count: int, m: int, n: int, r: int, seed: int, *, cond: float = 10.0, noise: float = 0.1
) -> list[Factors]:
    """Adapters of one module whose relation to each other is known.

    Args:
        name: A key of `FAMILIES`:
            `close`: one update and relative noise of size `noise` in both subspaces and in the core.
            `mix`: half of the directions (r // 2) common to all, on both sides, the others private.
            `shared_subspace`: the same subspaces for all, independent cores.
            `lora_like`: row spaces near a common initialisation (relative noise `noise`), column spaces
                private.
            `independent`: everything private.
        count: Number of adapters.
        m: Output width.
        n: Input width.
        r: Rank, the same for all.
        seed: Of the random numbers; equal arguments give equal adapters.
        cond: Condition number of every core, from 1 (all singular values equal) up.
        noise: Relative size of the noise, for the families that have it.

    Returns:
        One pair (B, A) per adapter, in a balanced gauge turned by a random orthogonal matrix of its own.
    """
    generator = seeded(seed)
    make = FAMILIES[name](m, n, r, cond, noise, generator)
    return [_turned(make(), generator) for _ in range(count)]


def _close(m: int, n: int, r: int, cond: float, noise: float, generator: Generator) -> Callable[[], Factors]:
    left, right = random_orthonormal(m, r, generator), random_orthonormal(n, r, generator)
    frame, spectrum = random_orthonormal(r, r, generator), random_spectrum(r, cond, generator)

    def make() -> Factors:
        # Multiplicative noise, S exp(E) S with S = sqrt(core): the core stays SPD at any `cond`.
        root = frame * spectrum.sqrt() @ frame.mT
        error = _normal(r, r, generator)
        error = noise * (error + error.mT) / (2 * r) ** 0.5
        core = root @ torch.linalg.matrix_exp(error) @ root
        return _factors(_near(left, noise, generator), core, _near(right, noise, generator))

    return make


def _mix(m: int, n: int, r: int, cond: float, noise: float, generator: Generator) -> Callable[[], Factors]:
    shared = r // 2
    left, right = random_orthonormal(m, shared, generator), random_orthonormal(n, shared, generator)

    def extended(common: Tensor) -> Tensor:
        return _polar(torch.cat([common, random_orthonormal(len(common), r - shared, generator)], dim=1))

    def make() -> Factors:
        spectrum = torch.diag(random_spectrum(r, cond, generator))
        return _factors(extended(left), spectrum, extended(right))

    return make


def _shared_subspace(
    m: int, n: int, r: int, cond: float, noise: float, generator: Generator
) -> Callable[[], Factors]:
    left, right = random_orthonormal(m, r, generator), random_orthonormal(n, r, generator)

    def make() -> Factors:
        # A turn between the subspaces, of either determinant: the two bases cannot both be aligned to another
        # adapter's.
        turn = random_orthonormal(r, r, generator)
        return _factors(left @ turn, random_core(r, cond, generator), right)

    return make


def _lora_like(
    m: int, n: int, r: int, cond: float, noise: float, generator: Generator
) -> Callable[[], Factors]:
    right = random_orthonormal(n, r, generator)

    def make() -> Factors:
        left = random_orthonormal(m, r, generator)
        return _factors(left, random_core(r, cond, generator), _near(right, noise, generator))

    return make


def _independent(
    m: int, n: int, r: int, cond: float, noise: float, generator: Generator
) -> Callable[[], Factors]:
    return lambda: random_update(m, n, r, cond, generator)


FAMILIES: dict[str, Callable[[int, int, int, float, float, Generator], Callable[[], Factors]]] = {
    "close": _close,
    "mix": _mix,
    "shared_subspace": _shared_subspace,
    "lora_like": _lora_like,
    "independent": _independent,
}


def _normal(rows: int, columns: int, generator: Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def _polar(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def _near(frame: Tensor, noise: float, generator: Generator) -> Tensor:
    """An orthonormal frame whose columns differ from those of `frame` by about `noise` (columns have length
    1)."""
    rows, columns = frame.shape
    return _polar(frame + noise * rows**-0.5 * _normal(rows, columns, generator))


def _factors(left: Tensor, core: Tensor, right: Tensor) -> Factors:
    """Balanced factors (left sqrt(core), sqrt(core) rightᵀ) of left core rightᵀ."""
    values, vectors = torch.linalg.eigh(core)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    return left @ root, root @ right.mT


def _turned(factors: Factors, generator: Generator) -> Factors:
    """Other factors of the same update."""
    left, right = factors
    turn = random_orthonormal(left.shape[1], left.shape[1], generator)
    return left @ turn, turn.mT @ right
