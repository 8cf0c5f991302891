"""Collections of any size, made from real adapters: families, copies of every kind, and outliers, seeded.

Used by the tests at 60 adapters, and by `benchmarks` at 1,000.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from riemerge.formats.dialects import read_adapter
from tests.helpers import ROOT, Factors, random_gauge, random_orthonormal, seeded

REAL = ROOT / "examples" / "adapters"
TASKS = ("mnli", "qnli", "scitail", "snli")
NOISE = 0.5
"""Noise on each factor of a member, as a share of its norm: cosines of (1 + 0.5²)⁻² = 0.64 in a family."""


class Planted(NamedTuple):
    """What is in a collection, by the names of the folders.

    Attributes:
        paths: The folders.
        families: Members of each family, copies left out.
        copies: Exact copies, by name, with what they are copies of.
        refactored: The same dW in other factors (B G, G⁻¹ A).
        scaled: Multiples of another dW by `FACTOR`.
        strangers: Adapters of directions of their own.
        loud: Members of no family of `LOUD` times the usual norm.
    """

    paths: list[Path]
    families: list[set[str]]
    copies: dict[str, str]
    refactored: dict[str, str]
    scaled: dict[str, str]
    strangers: set[str]
    loud: set[str]


FACTOR, LOUD = 3.0, 30.0


def plant_collection(
    root: Path, count: int, *, modules: Sequence[str] | None = None, rank: int = 8, seed: int = 0
) -> Planted:
    """Write a collection: per 30 adapters a copy of each kind and a stranger, and one loud adapter in all.

    Args:
        root: New folder of the collection.
        count: Number of adapters, at least 30.
        modules: Modules of the real adapters [default: all 36].
        rank: Rank of the adapters.
        seed: Random seed of all that is drawn.
    """
    draw = seeded(seed)
    parts = count // 30
    size = count - 4 * parts - 1
    sources = [_cut(task, modules, rank) for task in TASKS]
    names = [f"adapter-{int(place):04d}" for place in torch.randperm(count, generator=draw)]
    unnamed = iter(names)
    paths: list[Path] = []

    def write(factors: dict[str, Factors]) -> str:
        name = next(unnamed)
        paths.append(_write(root / name, factors, rank))
        return name

    families: list[set[str]] = [set() for _ in range(max(3, count // 40))]
    centres = [_rotate(sources[i % len(sources)], draw) for i in range(len(families))]
    members: dict[str, dict[str, Factors]] = {}
    for place in range(size):
        family = place % len(families)
        factors = _perturb(centres[family], draw)
        name = write(factors)
        families[family].add(name)
        members[name] = factors
        if len(members) > 3 * parts:  # only those that are copied below are kept
            members.pop(name)
    originals = iter(list(members))
    copies, refactored, scaled = {}, {}, {}
    for _ in range(parts):
        origin, name = next(originals), next(unnamed)
        paths.append(Path(shutil.copytree(root / origin, root / name)))
        copies[name] = origin
        origin = next(originals)
        gauge = random_gauge(rank, 10.0, draw)
        turned = {
            module: (b @ gauge, torch.linalg.solve(gauge, a)) for module, (b, a) in members[origin].items()
        }
        refactored[write(turned)] = origin
        origin = next(originals)
        scaled[write({module: (FACTOR * b, a) for module, (b, a) in members[origin].items()})] = origin
    strangers = {write(_rotate(sources[i % len(sources)], draw)) for i in range(parts)}
    loud = {write({module: (LOUD * b, a) for module, (b, a) in _rotate(sources[0], draw).items()})}
    return Planted(paths, families, copies, refactored, scaled, strangers, loud)


def _cut(task: str, modules: Sequence[str] | None, rank: int) -> dict[str, Factors]:
    """The factors of a real adapter, cut to a rank, of norm 1 over all modules."""
    adapter = read_adapter(REAL / task)
    updates = {name: adapter.update(name).truncate(rank) for name in modules or adapter.modules}
    norm = torch.tensor([update.norm() for update in updates.values()]).square().sum().sqrt()
    return {name: (update.B / norm, update.A) for name, update in updates.items()}


def _rotate(factors: dict[str, Factors], draw: torch.Generator) -> dict[str, Factors]:
    """Updates of the same singular values in random spaces."""
    return {
        module: (
            random_orthonormal(b.shape[0], b.shape[1], draw) * b.norm(dim=0),
            (random_orthonormal(a.shape[1], a.shape[0], draw) * a.norm(dim=1)).mT,
        )
        for module, (b, a) in factors.items()
    }


def _perturb(factors: dict[str, Factors], draw: torch.Generator) -> dict[str, Factors]:
    def shift(side: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(side.shape, generator=draw, dtype=side.dtype)
        return side + NOISE * side.norm() / noise.norm() * noise

    return {module: (shift(b), shift(a)) for module, (b, a) in factors.items()}


def _write(folder: Path, factors: dict[str, Factors], rank: int) -> Path:
    """Write factors as a PEFT folder of the base of the real adapters, in float32."""
    folder.mkdir(parents=True)
    tensors = {}
    for module, (b, a) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.float().contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.float().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = json.loads((REAL / TASKS[0] / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": rank, "lora_alpha": rank}))
    return folder
