"""Problems of known structure: seeded families of adapters, and real adapters in their joint span.

They are what solvers are compared on and what methods are tested with. An adapter of one module is a pair of
factors (B, A), shapes (m, r) and (r, n), float64, of the update dW = B A.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Generator, Tensor

from riemerge.errors import RecipeError
from riemerge.formats.files.text import list_names, show
from riemerge.frechet import Problem
from riemerge.linalg import polar
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold
from riemerge.merging.plan import plan
from riemerge.methods.engine import pose_modules
from riemerge.recipes.recipe import Recipe, read_recipe
from riemerge.registry import did_you_mean

Factors: TypeAlias = tuple[Tensor, Tensor]
"""Factors (B, A) of an update."""

_Draw: TypeAlias = Callable[[], Factors]

# Condition number of the cores of a family that is not about it, and of the one that is.
_COND, _ILL = 10.0, 1e6


def adapter_family(
    name: str,
    count: int,
    m: int,
    n: int,
    r: int,
    seed: int,
    *,
    cond: float | None = None,
    noise: float = 0.1,
) -> list[Factors]:
    """Draw adapters of one module whose relation to each other is known.

    Args:
        name: A key of `FAMILIES`:
            `close`: one update and relative noise of size `noise` in both subspaces and in the core.
            `mix`: half of the directions (r // 2) common to all, on both sides, the others private.
            `shared_subspace`: the same subspaces for all, independent cores.
            `lora_like`: row spaces near a common initialisation (relative noise `noise`), column spaces
                private.
            `independent`: everything private.
            `ill_conditioned`: `lora_like`, with cores of condition 1e6.
        count: Number of adapters.
        m: Output width.
        n: Input width.
        r: Rank, the same for all.
        seed: Random seed; equal arguments give equal adapters, bit for bit.
        cond: Condition number of every core, from 1 (all singular values equal) up.  [default: 10; 1e6 for
            `ill_conditioned`]
        noise: Relative size of the noise, for the families that have it.

    Returns:
        One pair (B, A) per adapter, in a balanced gauge turned by a random orthogonal matrix of its own.
    """
    generator = Generator().manual_seed(seed)
    if cond is None:
        cond = _ILL if name == "ill_conditioned" else _COND
    draw = FAMILIES[name](_Setting(m, n, r, cond, noise), generator)
    return [_turn(draw(), generator) for _ in range(count)]


def family(
    name: str, count: int, m: int, n: int, r: int, modules: int = 1, seed: int = 0, **options: Any
) -> Problem:
    """Make the Fréchet problem of a family on the quotient (St(m, r) × SPD(r) × St(n, r))/O(r).

    Args:
        name: A key of `FAMILIES` (see `adapter_family`).
        count: Number T of adapters.
        m: Output width.
        n: Input width.
        r: Rank.
        modules: Number K of modules, each a family of its own: module k has the seed `seed` + 100 k.
        seed: Random seed.
        options: `cond` and `noise` of `adapter_family`, and what `Problem` takes beside points.
    """
    own = {key: options.pop(key) for key in ("cond", "noise") if key in options}
    drawn = [adapter_family(name, count, m, n, r, seed + 100 * k, **own) for k in range(modules)]
    total = FixedRank(m, n, r, k=modules)
    points = [
        total.factor(torch.stack([b for b, _ in column]), torch.stack([a.mT for _, a in column]))
        for column in zip(*drawn, strict=True)
    ]
    return Problem(QuotientManifold(total, Orthogonal(r)), points, **options)


def real(folders: Sequence[str | Path], modules: Sequence[str] | None = None, **asked: Any) -> Problem:
    """Make the Fréchet problem of real adapters, in the joint span of each module, which is exact.

    Args:
        folders: T folders of adapters.
        modules: Names of K modules of one size in their joint span.  [default: all]
        asked: What a recipe says beside its models: `geometry` [default: polar], `loss`, `edits`.

    Raises:
        RecipeError: No such module; or modules of several sizes, or whose mean is a closed form.
        AdapterError: Folders that cannot be read, or adapters that do not fit each other.
    """
    recipe = read_recipe([*map(str, folders)], {"geometry": "polar", **asked})
    posed = pose(recipe, modules)
    if len(posed) != 1:
        each = "; ".join(list_names(names) for names, _ in posed)
        which = "name modules of one size, whose mean is no closed form"
        raise RecipeError(f"{len(posed)} problems: expected one; {which}: {each}")
    return posed[0][1]


def pose(recipe: Recipe, modules: Sequence[str] | None = None) -> list[tuple[tuple[str, ...], Problem]]:
    """Return the Fréchet problems that a merge solves first, each with the names of its modules.

    Law: modules of one size in their joint span are one problem, whatever their own widths.

    Args:
        recipe: The models, their weights, edits, geometry and loss.
        modules: Names of modules.  [default: all]

    Raises:
        RiemergeError: What `plan` raises, and the method before it solves.
    """
    planned = plan(recipe, threads=1)
    known = planned.stack.modules
    names = list(known) if modules is None else modules
    RecipeError.refuse(
        f"{show(name)}: no such module: {did_you_mean(name, known)}" for name in names if name not in known
    )
    stack = replace(planned.stack, modules={name: known[name] for name in names})
    return pose_modules(planned.method, stack, planned.options)


# --- random matrices ----------------------------------------------------------------------------------------


def random_orthonormal(m: int, r: int, generator: Generator) -> Tensor:
    """Draw an (m, r) matrix with orthonormal columns, uniformly; for m = r both determinants occur."""
    q, upper = torch.linalg.qr(_normal(m, r, generator))
    frame: Tensor = q * upper.diagonal().sign()
    return frame


def random_spectrum(r: int, cond: float, generator: Generator) -> Tensor:
    """Draw r singular values, descending, from 1 down to 1/cond, the inner ones log-uniform."""
    inner = torch.rand(max(r - 2, 0), generator=generator, dtype=torch.float64).sort().values
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return cond ** -torch.cat([ends[:1], inner, ends[1:]])[:r]


def random_core(r: int, cond: float, generator: Generator) -> Tensor:
    """Draw an SPD (r, r) matrix of norm 1 and condition number `cond`."""
    frame = random_orthonormal(r, r, generator)
    return frame * random_spectrum(r, cond, generator) @ frame.mT


def random_update(m: int, n: int, r: int, cond: float, generator: Generator) -> Factors:
    """Draw factors of an update with random subspaces, largest singular value 1 and condition `cond`."""
    left, right = random_orthonormal(m, r, generator), random_orthonormal(n, r, generator)
    return _factors(left, random_core(r, cond, generator), right)


# --- families -----------------------------------------------------------------------------------------------


class _Setting(NamedTuple):
    """Size (m, n, r) of the updates of a family, condition of their cores, size of their noise."""

    m: int
    n: int
    r: int
    cond: float
    noise: float


def _close(own: _Setting, generator: Generator) -> _Draw:
    left, right = _frames(own, own.r, generator)
    frame, spectrum = random_orthonormal(own.r, own.r, generator), random_spectrum(own.r, own.cond, generator)

    def draw() -> Factors:
        # Multiplicative noise, S exp(E) S with S = sqrt(core): the core stays SPD at any `cond`.
        root = frame * spectrum.sqrt() @ frame.mT
        error = _normal(own.r, own.r, generator)
        error = own.noise * (error + error.mT) / (2 * own.r) ** 0.5
        core = root @ torch.linalg.matrix_exp(error) @ root
        return _factors(_near(left, own.noise, generator), core, _near(right, own.noise, generator))

    return draw


def _mix(own: _Setting, generator: Generator) -> _Draw:
    shared = own.r // 2
    left, right = _frames(own, shared, generator)

    def extend(common: Tensor) -> Tensor:
        return polar(torch.cat([common, random_orthonormal(len(common), own.r - shared, generator)], dim=1))

    def draw() -> Factors:
        spectrum = torch.diag(random_spectrum(own.r, own.cond, generator))
        return _factors(extend(left), spectrum, extend(right))

    return draw


def _shared_subspace(own: _Setting, generator: Generator) -> _Draw:
    left, right = _frames(own, own.r, generator)

    def draw() -> Factors:
        # A turn between the subspaces, of either determinant: the two bases cannot both be aligned to another
        # adapter's.
        turn = random_orthonormal(own.r, own.r, generator)
        return _factors(left @ turn, random_core(own.r, own.cond, generator), right)

    return draw


def _lora_like(own: _Setting, generator: Generator) -> _Draw:
    right = random_orthonormal(own.n, own.r, generator)

    def draw() -> Factors:
        left = random_orthonormal(own.m, own.r, generator)
        return _factors(left, random_core(own.r, own.cond, generator), _near(right, own.noise, generator))

    return draw


def _independent(own: _Setting, generator: Generator) -> _Draw:
    return lambda: random_update(own.m, own.n, own.r, own.cond, generator)


FAMILIES: Mapping[str, Callable[[_Setting, Generator], _Draw]] = {
    "close": _close,
    "mix": _mix,
    "shared_subspace": _shared_subspace,
    "lora_like": _lora_like,
    "independent": _independent,
    "ill_conditioned": _lora_like,
}
"""The families by name: see `adapter_family`."""


def _frames(own: _Setting, columns: int, generator: Generator) -> Factors:
    """Draw a frame of the output space and one of the input space."""
    return random_orthonormal(own.m, columns, generator), random_orthonormal(own.n, columns, generator)


def _normal(rows: int, columns: int, generator: Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def _near(frame: Tensor, noise: float, generator: Generator) -> Tensor:
    """Draw an orthonormal frame whose columns, of length 1, differ from those of `frame` by about `noise`."""
    rows, columns = frame.shape
    return polar(frame + noise * rows**-0.5 * _normal(rows, columns, generator))


def _factors(left: Tensor, core: Tensor, right: Tensor) -> Factors:
    """Return balanced factors (left sqrt(core), sqrt(core) rightᵀ) of left core rightᵀ."""
    values, vectors = torch.linalg.eigh(core)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    return left @ root, root @ right.mT


def _turn(factors: Factors, generator: Generator) -> Factors:
    """Return other factors of the same update."""
    left, right = factors
    turn = random_orthonormal(left.shape[1], left.shape[1], generator)
    return left @ turn, turn.mT @ right
