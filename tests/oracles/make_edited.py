"""Run the merges of mergekit and of fusion-bench, and freeze them for tests/oracles/test_elections.py.

    python tests/oracles/make_edited.py mergekit
    python tests/oracles/make_edited.py fusion_bench

Each needs the package of its name (they may not agree on one environment), and replaces that package's part
of `edited.safetensors`.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FILE = Path(__file__).with_name("edited.safetensors")

# Shape of all models' updates, weight, density.
CASES = {
    "tall": ((3, 9, 4), (0.5, 0.3, 0.9), (0.5, 0.3, 0.71)),
    "wide": ((2, 5, 12), (1.0, 1.0), (0.4, 0.4)),
    "tiny": ((2, 1, 3), (2.0, 0.5), (0.7, 0.5)),
    "bias": ((4, 11), (0.1, 0.2, 0.3, 0.4), (0.2, 1.0, 0.5, 0.6)),
    "kernel": ((3, 4, 3, 2, 2), (1.0, 0.5, 0.25), (0.3, 0.6, 0.45)),
}
EPSILON, GAMMA, TOPK, MASK_THRESHOLD = 0.12, 0.1, 0.4, 0.6


def updates(name: str) -> Tensor:
    """Random float64 updates that float32 holds as well; a few entries are zero, and one whole row."""
    shape = CASES[name][0]
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    x = torch.randn(shape, generator=generator).double()
    x[torch.rand(shape, generator=generator) < 0.1] = 0.0
    return x


def from_mergekit() -> dict[str, Tensor]:
    from mergekit.merge_methods import merge_tensors

    frozen: dict[str, Tensor] = {}
    draws: list[tuple[Tensor, Tensor]] = []
    generator = torch.Generator().manual_seed(0)

    def bernoulli(chances: Tensor) -> Tensor:
        mask = (torch.rand(chances.shape, generator=generator) < chances).to(chances.dtype)
        draws.append((chances, mask))
        return mask

    def merge(key: str, x: Tensor, method: str, **parameters: object) -> None:
        draws.clear()
        with mock.patch.object(torch, "bernoulli", bernoulli):
            frozen[key] = merge_tensors(
                [torch.zeros_like(x[0]), *x], method, parameters=parameters, base_index=0
            )
        for place, (chances, mask) in enumerate(draws):
            frozen[f"{key}.chances.{place}"] = chances.clone()
            frozen[f"{key}.mask.{place}"] = mask.to(torch.uint8)

    for name, (_, weights, densities) in CASES.items():
        x = updates(name)
        common = {"weight": weights, "density": densities}
        for method in ("ties", "dare_linear", "dare_ties"):
            merge(f"{method}.{name}", x, method, **common)
        merge(f"ties_sum.{name}", x, "ties", normalize=False, **common)
        merge(f"dare_linear_mean.{name}", x, "dare_linear", normalize=True, **common)
        for method in ("della", "della_linear"):
            merge(f"{method}.{name}", x, method, epsilon=EPSILON, **common)
        for method in ("breadcrumbs", "breadcrumbs_ties"):
            merge(f"{method}.{name}", x, method, gamma=GAMMA, **common)
        merge(f"sce_all.{name}", x, "sce")
        merge(f"sce.{name}", x, "sce", select_topk=TOPK)
    merge("sce_small.wide", 1e-4 * updates("wide"), "sce")
    merge("norm_small.wide", 1e-10 * updates("wide"), "dare_linear", weight=1.0, density=0.5)
    merge("ties_negative.tall", updates("tall"), "ties", weight=(1.0, -0.9, 0.2), density=1.0)
    return frozen


def from_fusion_bench() -> dict[str, Tensor]:
    from fusion_bench.method.magmax.magmax import _magmax_select
    from fusion_bench.method.tall_mask.utils import generate_task_masks
    from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging

    frozen: dict[str, Tensor] = {}
    for name in CASES:
        x = updates(name)
        flat = x.flatten(1)
        for merge_func in ("mean", "sum", "max"):
            frozen[f"ties_{merge_func}.{name}"] = ties_merging(flat, 0.4, merge_func).view(x[0].shape)
        frozen[f"magmax.{name}"] = _magmax_select([{"x": one} for one in x])["x"]
        frozen[f"tall.{name}"] = torch.stack(
            [
                generate_task_masks(flat, one, torch.zeros_like(one), tall_mask_lambda=MASK_THRESHOLD)
                for one in flat
            ]
        ).view(x.shape)
    # Two models that cancel everywhere; in this order and the other.
    pair = torch.tensor([[1.0, -2.0, 3.0, -4.0], [-1.0, 2.0, -3.0, 4.0]], dtype=torch.float64)
    frozen["ties_undecided"] = ties_merging(pair, 0.75, "mean")
    frozen["magmax_equal"] = _magmax_select([{"x": one} for one in pair])["x"]
    frozen["magmax_swapped"] = _magmax_select([{"x": one} for one in pair.flip(0)])["x"]
    return frozen


def main(package: str) -> None:
    tensors, metadata = {}, {}
    if FILE.exists():
        with safe_open(FILE, "pt") as stored:
            metadata = dict(stored.metadata())
            kept = [key for key in list(stored.keys()) if not key.startswith(package + "/")]
            tensors = {key: stored.get_tensor(key) for key in kept}
    made = {"mergekit": from_mergekit, "fusion_bench": from_fusion_bench}[package]()
    tensors |= {f"{package}/{key}": value.contiguous() for key, value in made.items()}
    tensors |= {f"x/{name}": updates(name) for name in CASES}
    metadata[package] = version(package.replace("_", "-"))
    metadata["torch_of_" + package] = torch.__version__
    save_file(tensors, FILE, metadata)


if __name__ == "__main__":
    main(sys.argv[1])
