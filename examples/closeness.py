"""A scorer that needs no data, to try `riemerge evaluate`: python closeness.py FOLDER dev|test ADAPTER...

The name of each adapter is a task, a random input one of its rows, and the score of a row is 1 where the model
answers as the adapter does, less the farther away it does. It says nothing about task accuracy: put your own
test in its place.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROWS = 50


def factors(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(B, A) of each module, with the scale in B."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    names = sorted(name for name in tensors if ".lora_B." in name)
    return [(scale * tensors[name], tensors[name.replace(".lora_B.", ".lora_A.")]) for name in names]


def main() -> None:
    """Print the scores of all rows by task."""
    model, adapters = factors(Path(sys.argv[1])), map(Path, sys.argv[3:])
    answers = {}
    for adapter in adapters:
        generator = np.random.default_rng(["dev", "test"].index(sys.argv[2]))
        apart, size = np.zeros(ROWS), np.zeros(ROWS)
        for (b, a), (own_b, own_a) in zip(model, factors(adapter), strict=True):
            inputs = generator.standard_normal((a.shape[1], ROWS))
            own = own_b @ (own_a @ inputs)
            apart += np.square(b @ (a @ inputs) - own).sum(axis=0)
            size += np.square(own).sum(axis=0)
        answers[adapter.name] = (1 / (1 + apart / size)).tolist()
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
