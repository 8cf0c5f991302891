"""The least that a merge of adapters can do: read all, one Gram matrix and one product a side, write.

    python benchmarks/floor.py ADAPTER... FOLDER

Imports nothing but torch and safetensors, so that its seconds are those that no merge can do without.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def main() -> None:
    files = [safe_open(f"{folder}/adapter_model.safetensors", "pt") for folder in sys.argv[1:-1]]
    merged = {}
    for key in files[0].keys():  # noqa: SIM118
        factors = [file.get_tensor(key).float() for file in files]
        rank = min(factors[0].shape)
        if "lora_B" in key:
            tall = torch.cat(factors, dim=1)
            gram = tall.mT @ tall
            product = tall @ (gram[:, :rank] / gram.norm())
        else:
            tall = torch.cat(factors, dim=0)
            gram = tall @ tall.mT
            product = (gram[:rank] / gram.norm()) @ tall
        merged[key] = product.bfloat16()
    out = Path(sys.argv[-1])
    out.mkdir()
    save_file(merged, out / "adapter_model.safetensors")


if __name__ == "__main__":
    main()
