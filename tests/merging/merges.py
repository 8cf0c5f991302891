"""What tests of merges share: adapters and checkpoints in folders, short calls, distances, rows."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from riemerge.cli.commands import main
from riemerge.merging.sinks import MergeResult, Written
from riemerge.merging.verbs import merge_into
from riemerge.methods import METHODS, Method
from riemerge.recipes.recipe import Recipe, make_recipe
from riemerge.statistics import collect_statistics
from riemerge.updates.low_rank import LowRankUpdate
from tests.folders import SHAPES, family, write_family
from tests.helpers import ROOT, Factors, adapter_family, random_gauge, seeded

Matrix = TypeVar("Matrix", NDArray[np.float64], Tensor)

TENSORS, RECORD = "adapter_model.safetensors", "riemerge.json"
ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
PREFIX = "base_model.model."
F64 = torch.float64


def run_command(*words: object) -> Result:
    """Run the command line."""
    return CliRunner().invoke(main, [str(word) for word in words])


# --- adapters -----------------------------------------------------------------------------------------------

# One row of each domain; the laws of every row are in tests/laws/test_methods.py.
ADAPTER_ROWS = ("geomerge", "average", "task_arithmetic", "tsv", "knots_ties", "ties")
EVERY_DOMAIN = pytest.mark.parametrize("method", ADAPTER_ROWS)


def dense(modules: Mapping[str, Factors]) -> dict[str, NDArray[np.float64]]:
    """The dW of each module of factors."""
    return {module: b.numpy() @ a.numpy() for module, (b, a) in modules.items()}


def merged(result: MergeResult) -> dict[str, NDArray[np.float64]]:
    """The dW of each module of a merge."""
    return {module: update.dense().numpy() for module, update in result.updates.items()}


def apart(one: Mapping[str, Matrix], other: Mapping[str, Matrix]) -> float:
    """The largest relative distance of any module."""
    assert list(one) == list(other)
    return max(
        float(torch.as_tensor(one[m] - other[m]).norm() / torch.as_tensor(other[m]).norm()) for m in one
    )


def adapter_bytes(folder: Path) -> bytes:
    """The factors in a folder, bit for bit."""
    return (folder / TENSORS).read_bytes()


def stored_factors(folder: Path) -> dict[str, Factors]:
    """The factors (B, A) in a folder."""
    x = load_file(folder / TENSORS)
    name = PREFIX + "{}.lora_{}.weight"
    return {m: (x[name.format(m, "B")].double(), x[name.format(m, "A")].double()) for m in SHAPES}


def matrices(folder: Path) -> dict[str, Tensor]:
    """The dW of each module of our own folders, whose scale is 1."""
    return {module: b @ a for module, (b, a) in stored_factors(folder).items()}


def deficient_family(rank: int = 2) -> tuple[list[dict[str, Factors]], list[dict[str, Factors]]]:
    """Close adapters, b of lower rank in one module (hidden by a gauge); and the same, all truncated."""
    adapters = family("close", 3)
    cut = [dict(one) for one in adapters]
    module = "layers.0.q"
    b, a = adapters[1][module]
    gauge = random_gauge(3, 10.0, seeded(3))
    narrow = LowRankUpdate(b, a).truncate(rank)
    zero = torch.zeros(len(b), 3 - rank, dtype=torch.float64)
    adapters[1][module] = (
        torch.cat([narrow.B, zero], dim=1) @ gauge,
        torch.linalg.solve(gauge, torch.cat([narrow.A, a[: 3 - rank]])),
    )
    for one, other in zip(adapters, cut, strict=True):
        best = LowRankUpdate(*one[module]).truncate(rank)
        other[module] = (best.B, best.A)
    return adapters, cut


RANKS = {"layers.0.q": 2, "layers.0.v": 6, "layers.1.q": 2}


def served(root: Path, count: int = 2) -> list[Path]:
    """Adapters whose rank differs by module, as PEFT writes them: a rank_pattern, one alpha that scales by
    module.
    """
    columns = {
        module: adapter_family("independent", count, m, n, RANKS[module], place)
        for place, (module, (m, n)) in enumerate(SHAPES.items())
    }
    adapters = [{module: column[i] for module, column in columns.items()} for i in range(count)]
    settings: dict[str, Any] = {"r": 6, "lora_alpha": 12, "rank_pattern": {"q": 2}}
    return write_family(root, adapters, **settings)


# --- checkpoints --------------------------------------------------------------------------------------------

FROZEN = ROOT / "tests" / "oracles" / "dense.safetensors"
MATRICES = ("embed.weight", "layers.0.weight", "layers.1.weight")
MEASURED = ("layers.0", "layers.1")
# A matrix without statistics, vectors, a kernel, a number.
TENSOR_SHAPES: dict[str, tuple[int, ...]] = {
    "embed.weight": (9, 6),
    "layers.0.weight": (8, 6),
    "layers.0.bias": (8,),
    "layers.1.weight": (5, 8),
    "layers.1.bias": (5,),
    "conv.weight": (3, 2, 2, 2),
    "temperature": (),
}
COUNTED = {"steps": torch.tensor([3, 1, 4]), "mask": torch.tensor([True, False])}
SHARES = (1.0, 0.6, 0.4)

TAKING = [name for name, row in METHODS.items() if row.checkpoints != "no"]
EVERY = pytest.mark.parametrize("name", TAKING)
WEIGHTED = pytest.mark.parametrize(
    "name", [name for name in TAKING if METHODS[name].models[1] is None and not METHODS[name].ordered]
)
# One of each domain, with and without survey, statistics and draws.
CHECKPOINT_ROWS = (
    "average",
    "karcher",
    "tsv",
    "core_ties",
    "knots_ties",
    "regmean",
    "dare_ties",
    "ties_original",
    "mats",
)


class World(NamedTuple):
    """A base model and what was trained from it, in folders, with statistics of each."""

    base: Path
    models: list[Path]
    statistics: list[Path]
    base_statistics: Path
    tensors: list[dict[str, Tensor]]  # the base's first


def make_world(root: Path) -> World:
    """Write a base model and three models that were trained from it."""
    tensors = drawn(3)
    base, *models = (write_checkpoint(root / name, x) for name, x in zip("0abc", tensors, strict=True))
    data = [measured(root / f"data {i}", x, 10 * i) for i, x in enumerate(tensors)]
    return World(base, models, data[1:], data[0], tensors)


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], shards: int = 1) -> Path:
    """A checkpoint as transformers writes it."""
    folder.mkdir(parents=True)
    names = list(tensors)
    if shards == 1:
        save_file(dict(tensors), folder / ONE)
    else:
        parts = {f"model-{i + 1:05d}-of-{shards:05d}.safetensors": names[i::shards] for i in range(shards)}
        for place, part in parts.items():
            save_file({name: tensors[name] for name in part}, folder / place)
        placed = {name: place for place, part in parts.items() for name in part}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / "config.json").write_text(json.dumps({"of": folder.name}))
    return folder


def drawn(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """A base model, and `count` that were trained from it: in half of what they changed they agree."""
    draw = seeded(seed)

    def one() -> dict[str, Tensor]:
        # Numbers have two directions only, and not all rows take opposite ones.
        made = {name: torch.randn(shape, generator=draw, dtype=F64) for name, shape in TENSOR_SHAPES.items()}
        return {name: x if x.ndim else x.abs() for name, x in made.items()}

    base, common = one(), one()
    tuned = [{name: base[name] + 0.3 * (common[name] + x) for name, x in one().items()} for _ in range(count)]
    return [{**x, **COUNTED} for x in (base, *tuned)]


def measured(folder: Path, tensors: Mapping[str, Tensor], seed: int) -> Path:
    """Statistics of every kind of a model that has these weights, on data of its own."""
    layers = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
    model = nn.Sequential(OrderedDict(layers=layers)).double()
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    x = torch.randn(20, 6, generator=seeded(seed), dtype=F64)
    y = torch.randint(0, 5, (20,), generator=seeded(seed + 1))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    collect_statistics(model, [(x, y)], loss, folder, dtype=F64)
    return folder


def recipe_of(
    method: str,
    models: Sequence[Path],
    weights: Sequence[Any] | None = None,
    *,
    base: Path | None = None,
    statistics: Sequence[Path] = (),
    base_statistics: Path | None = None,
    out_type: str | None = None,
    top: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> Recipe:
    """A recipe of folders: what it says of all models at its top in `top`, the rest in `parameters`."""
    data: Sequence[Path | None] = statistics or [None] * len(models)
    return make_recipe(
        {
            "merge_method": method,
            "models": [
                {
                    "model": str(model),
                    "parameters": {"weight": weight},
                    "statistics": folder and str(folder),
                }
                for model, weight, folder in zip(models, weights or [1.0] * len(models), data, strict=True)
            ],
            "base_model": base and str(base),
            "base_statistics": base_statistics and str(base_statistics),
            "parameters": parameters,
            "out_type": out_type,
            **(top or {}),
        }
    )


def merge(
    out: Path,
    method: str,
    models: Sequence[Path],
    weights: Sequence[Any] | None = None,
    *,
    device: str = "cpu",
    threads: int = 1,
    shard_bytes: int = 10**9,
    **asked: Any,
) -> Written:
    """Merge folders into a folder, as `recipe_of` says."""
    recipe = recipe_of(method, models, weights, **asked)
    return merge_into(recipe, out, device=device, threads=threads, shard_bytes=shard_bytes)


def needs(
    world: World, row: Method, places: Sequence[int] | None = None, *, based: bool = True
) -> dict[str, Any]:
    """What the row needs, of the models at some places."""
    places = range(row.models[1] or 3) if places is None else places
    return {
        "models": [world.models[i] for i in places],
        "base": world.base if based or row.checkpoints == "updates" else None,
        "statistics": [world.statistics[i] for i in places] if row.statistics else (),
        "base_statistics": world.base_statistics if row.name == "gradient_matching" else None,
        # What makes draws and trimming happen.
        **({"density": 0.5} if "density" in row.parameters else {}),
    }


def shares(row: Method, weights: Sequence[float] = SHARES) -> list[float]:
    """Weights for a row: equal ones for a sequence, which takes no others."""
    count = row.models[1] or 3
    return [1.0] * count if row.ordered else list(weights[:count])


def differences(world: World, count: int = 3) -> dict[str, Tensor]:
    """What the first models changed of the base, (T, ...) by tensor."""
    base, *tuned = world.tensors
    return {name: torch.stack([one[name] - base[name] for one in tuned[:count]]) for name in TENSOR_SHAPES}


def weighted_mean(x: Tensor, weights: Sequence[float] = SHARES) -> Tensor:
    """The weighted mean of T tensors."""
    return sum((w * one for w, one in zip(weights, x, strict=True)), torch.zeros_like(x[0])) / sum(weights)


def checkpoint_bytes(folder: Path) -> bytes:
    """The tensors in a folder, bit for bit."""
    return (folder / ONE).read_bytes()


def distance(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], size: Mapping[str, Tensor]
) -> float:
    """The largest distance of any float, relative to the size of what was merged there."""
    return max(float((found[name] - expected[name]).norm() / size[name].norm()) for name in TENSOR_SHAPES)


# --- deltas -------------------------------------------------------------------------------------------------

DELTA_WEIGHTS = (0.5, 0.3, 0.2)
# One of each domain, of each kind of factored answer, with and without survey.
DELTA_ROWS = ("geomerge", "average", "tsv", "core_ties", "knots_ties", "ties", "ties_original")
# Draws follow from the module's name, which is not that of its weight.
CERTAIN = [
    name
    for name, row in METHODS.items()
    if row.checkpoints != "no" and not row.statistics and "seed" not in row.parameters
]

merge_delta = partial(merge, out_type="delta")
"""Merge adapters into a folder of whole dW, unless told otherwise."""


def density_of(method: str) -> dict[str, Any]:
    """What makes a row trim, where it can."""
    return {"density": 0.4} if "density" in METHODS[method].parameters else {}


def count_of(method: str) -> int:
    """How many models a row is tested with."""
    return METHODS[method].models[1] or 3


def delta_distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest relative distance of any module in a file of deltas."""
    assert set(found) == {f"{module}.weight" for module in expected}
    return apart({module: found[f"{module}.weight"] for module in expected}, expected)
