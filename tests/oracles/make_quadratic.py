"""Writes tests/oracles/quadratic.safetensors: FusionBench's Fisher merging and RegMean on random inputs.

Run where fusion-bench is installed: python tests/oracles/make_quadratic.py
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch
from fusion_bench.method.fisher_merging.fisher_merging import merging_with_fisher_weights
from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
from safetensors.torch import save_file
from torch import Tensor

CASES = [
    ((3, 5), (4, 2), [0.5, 0.3, 0.2]),
    ((6, 4), (1, 1), [1.0, 1.0]),
    ((8, 3), (2, 9), [2.0, 0.1, 0.7, 0.4]),
]
CASES.append(((1, 7), (7, 1), [0.25, 0.75]))


def main() -> None:
    torch.set_default_dtype(torch.float64)  # its factor on off-diagonals is made in the default dtype
    generator = torch.Generator().manual_seed(0)
    out: dict[str, Tensor] = {}
    for case, (*shapes, weights) in enumerate(CASES):
        names, models = ["a", "b"], len(weights)
        x = {
            name: torch.randn(models, *shape, generator=generator)
            for name, shape in zip(names, shapes, strict=True)
        }
        information = {
            name: torch.rand(one.shape, generator=generator) ** 4
            * 10.0 ** -torch.arange(models).reshape(-1, 1, 1)
            for name, one in x.items()
        }
        inputs = {
            name: torch.randn(models, 3 * one.shape[-1], one.shape[-1], generator=generator)
            for name, one in x.items()
        }
        grams = {name: one.mT @ one for name, one in inputs.items()}
        tensors = {f"{name}.weight": list(one) for name, one in x.items()}
        forms = [{f"{name}.weight": one[t] for name, one in information.items()} for t in range(models)]
        modules = [{name: one[t] for name, one in grams.items()} for t in range(models)]
        # It adds the floor (1e-6) itself.
        plain, normalized = (
            merging_with_fisher_weights(tensors, forms, torch.tensor(weights), normalize_fisher_weight=flag)
            for flag in (False, True)
        )
        merged = merging_with_regmean_weights(
            tensors, modules, reduce_non_diagonal_ratio=0.9, weight_transpose=True
        )
        for name in names:
            out |= {
                f"{case}.{name}.x": x[name],
                f"{case}.{name}.fisher": information[name],
                f"{case}.{name}.gram": grams[name],
                f"{case}.{name}.weights": torch.tensor(weights),
                f"{case}.{name}.fisher_plain": plain[f"{name}.weight"],
                f"{case}.{name}.fisher_normalized": normalized[f"{name}.weight"],
                f"{case}.{name}.regmean": merged[f"{name}.weight"].contiguous(),
            }
    path = Path(__file__).with_name("quadratic.safetensors")
    save_file(out, path, metadata={"fusion-bench": version("fusion-bench"), "torch": torch.__version__})


if __name__ == "__main__":
    main()
