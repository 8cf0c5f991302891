"""The exact average of adapters, cut to the rank of the first: what a person would write without riemerge.

    python benchmarks/short_script.py float32|float64 ADAPTER... FOLDER

No check of anything, no scale but one, no record: the honest bar for `riemerge merge --method average`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def main() -> None:
    dtype, (first, *others), out = getattr(torch, sys.argv[1]), sys.argv[2:-1], Path(sys.argv[-1])
    files = [safe_open(f"{folder}/adapter_model.safetensors", "pt") for folder in (first, *others)]
    merged = {}
    for key in (key for key in files[0].keys() if "lora_A" in key):  # noqa: SIM118
        pair = key.replace("lora_A", "lora_B")
        a = torch.cat([file.get_tensor(key) for file in files])
        b = torch.cat([file.get_tensor(pair) for file in files], dim=1)
        left, right = torch.linalg.qr(b.to(dtype)), torch.linalg.qr(a.to(dtype).mT)
        u, s, vt = torch.linalg.svd(left.R @ right.R.mT / len(files))
        rank = len(a) // len(files)
        root = s[:rank].sqrt()
        merged[pair] = (left.Q @ (u[:, :rank] * root)).to(b.dtype)
        merged[key] = ((root[:, None] * vt[:rank]) @ right.Q.mT).to(a.dtype)
    out.mkdir()
    save_file(merged, out / "adapter_model.safetensors")
    shutil.copy(f"{first}/adapter_config.json", out)


if __name__ == "__main__":
    main()
