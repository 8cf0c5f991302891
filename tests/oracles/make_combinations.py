"""Freeze what mergekit says of small seeded inputs, for tests/methods/sums/test_combinations.py.

Run in an environment with mergekit 0.1.5 or later, which the tests do not need:
    python tests/oracles/make_combinations.py
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mergekit.merge_methods import merge_tensors
from safetensors.torch import save_file
from torch import Tensor

OUT = Path(__file__).with_name("combinations.safetensors")
SHAPES = {"wide": (3, 7), "tall": (6, 4), "vector": (5,), "tiny": (1, 2)}
WEIGHTS = {2: ([0.5, 0.5], [0.2, 0.8]), 4: ([0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4])}
TO_THE_END: dict[str, Any] = {"max_iter": 10_000, "tol": 1e-15}


def models(kind: str, shape: tuple[int, ...], count: int, seed: int) -> list[Tensor]:
    """`far` models share half of their size; `near` ones are checkpoints with 1 % of noise."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(shape, generator=generator, dtype=torch.float64)
    noise = 0.01 if kind == "near" else 1.0
    return [
        (1.0 + 0.1 * place) * (common + noise * torch.randn(shape, generator=generator, dtype=torch.float64))
        for place in range(count)
    ]


def answers(x: list[Tensor], weights: list[float]) -> dict[str, Tensor]:
    base, total = torch.zeros_like(x[0]), sum(weights)
    shares = [weight / total for weight in weights]

    def ask(name: str, *, based: bool = False, **parameters: Any) -> Tensor:
        tensors = [base, *x] if based else x
        return merge_tensors(tensors, name, parameters=parameters, base_index=0 if based else None)

    found = {
        "average": ask("linear", weight=weights),
        "task_arithmetic": ask("task_arithmetic", based=True, weight=weights, normalize=False),
        "multislerp": ask("multislerp", weight=shares),
        "model_stock": ask("model_stock", based=True),
        "karcher": ask("karcher", **TO_THE_END),
        "karcher as it is": ask("karcher"),
    }
    if len(x) == 2:
        found["slerp"] = merge_tensors(x, "slerp", parameters={"t": shares[1]}, base_index=0)
        found["nuslerp"] = ask("nuslerp", weight=weights)
        found["nuslerp on a base"] = ask("nuslerp", based=True, weight=weights)
        if x[0].ndim > 1:
            found["nuslerp_rows"] = ask("nuslerp", weight=weights, nuslerp_flatten=False)
    return found


def main() -> None:
    kept: dict[str, Tensor] = {}
    for seed, (shape, size) in enumerate(SHAPES.items()):
        for kind in ("far", "near"):
            for count, vectors in WEIGHTS.items():
                x = models(kind, size, count, seed)
                case = f"{kind} {shape} {count}"
                kept[f"{case}/x"] = torch.stack(x)
                for place, weights in enumerate(vectors):
                    kept[f"{case}/{place}/weights"] = torch.tensor(weights, dtype=torch.float64)
                    for name, value in answers(x, weights).items():
                        kept[f"{case}/{place}/{name}"] = value
    small = models("far", (3, 7), 3, 9)
    kept["small norms/x"] = 1e-5 * torch.stack(small)
    kept["small norms/model_stock"] = merge_tensors(
        [torch.zeros(3, 7, dtype=torch.float64), *(1e-5 * one for one in small)], "model_stock", base_index=0
    )
    metadata = {"oracle": f"mergekit {version('mergekit')}", "torch": version("torch")}
    save_file({name: value.contiguous() for name, value in kept.items()}, OUT, metadata)


if __name__ == "__main__":
    main()
