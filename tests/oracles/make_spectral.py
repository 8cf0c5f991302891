"""Makes spectral.safetensors: seeded updates, and what fusion-bench merges them to, by singular vectors.

Run where fusion-bench is installed: python tests/oracles/make_spectral.py
"""

import importlib.metadata
from pathlib import Path

import torch
from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
from fusion_bench.method.knots.knots_utils import subspace_alignment
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction
from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging
from safetensors.torch import save_file
from torch import Tensor

SHAPES = {"wide": (2, 7, 12), "tall": (3, 13, 8), "square": (4, 9, 9), "one": (1, 5, 6)}
MODULES = ((10, 7), (6, 9))
MODELS, SHARE = 3, 0.2


def single(x: Tensor) -> list[dict[str, Tensor]]:
    return [{"x": one.clone()} for one in x]


def spectral(x: Tensor) -> dict[str, Tensor]:
    return {
        "tsv": compute_and_sum_svd_mem_reduction(single(x), accelerator="cpu")["x"],
        "iso_c": iso_c(single(x), accelerator="cpu")["x"],
        "iso_cts_08": iso_cts(single(x), 0.8, accelerator="cpu")["x"],
        "iso_cts_05": iso_cts(single(x), 0.5, accelerator="cpu")["x"],
    }


def knots(modules: list[Tensor], merge_func: str) -> list[Tensor]:
    """The alignment of each module, TIES over the flat vectors of all, and back."""
    aligned = [subspace_alignment(list(x), eps=1e-5) for x in modules]
    blocks = [torch.stack([s[:, None] * one for one in vhs]) for _, s, vhs in aligned]
    flat = torch.cat([block.flatten(1) for block in blocks], dim=1)
    merged = ties_merging(flat, reset_thresh=SHARE, merge_func=merge_func)
    parts = merged.split([block[0].numel() for block in blocks])
    return [
        u @ part.view(block[0].shape) for (u, _, _), part, block in zip(aligned, parts, blocks, strict=True)
    ]


def main() -> None:
    generator = torch.Generator().manual_seed(20251123)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    stored: dict[str, Tensor] = {}
    for name, shape in SHAPES.items():
        x = normal(*shape)
        stored |= {f"{name}.x": x} | {f"{name}.{method}": value for method, value in spectral(x).items()}
    low = normal(2, 12, 2) @ normal(2, 2, 9)
    stored |= {"low.x": low} | {f"low.{method}": value for method, value in spectral(low).items()}
    stored["low.iso_c_float32"] = iso_c(single(low.float()), accelerator="cpu")["x"].double()
    turn = torch.linalg.qr(normal(9, 9)).Q
    stored |= {"low.turn": turn, "low.iso_c_turned": iso_c(single(low @ turn), accelerator="cpu")["x"]}
    modules = [normal(MODELS, m, 2) @ normal(MODELS, 2, n) for m, n in MODULES]
    for place, x in enumerate(modules):
        stored[f"knots.{place}.x"] = x
    for merge_func in ("mean", "sum", "max"):
        for place, merged in enumerate(knots(modules, merge_func)):
            stored[f"knots.{place}.{merge_func}"] = merged
    versions = {name: importlib.metadata.version(name) for name in ("fusion-bench", "torch")}
    save_file(
        {name: value.contiguous() for name, value in stored.items()},
        Path(__file__).with_name("spectral.safetensors"),
        metadata=versions | {"made by": "make_spectral.py"},
    )


if __name__ == "__main__":
    main()
