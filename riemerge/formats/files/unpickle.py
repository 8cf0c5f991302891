"""A program of its own, never imported: open a pickle of tensors, of which nothing is executed.

    python -P unpickle.py PICKLE NEW.safetensors BYTES

Law: torch's `weights_only` reader knows tensors and plain containers, and calls nothing else that a pickle
names. The process may use BYTES of memory more than it has when torch is there.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def main(source: str, target: str, size: int) -> None:
    """Open a pickle and write its tensors as safetensors."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + size
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    loaded = torch.load(source, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        sys.exit("holds something else than tensors by name")
    save_file({str(name): tensor.clone().contiguous() for name, tensor in loaded.items()}, target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
