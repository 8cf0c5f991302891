"""A scorer that needs no data, to try `riemerge evaluate`: python closeness.py FOLDER dev|test ADAPTER...

The name of each adapter is a task, a random input one of its rows, and the score of a row is 1 where the
model answers as the adapter does, less the farther away it does. It says nothing about task accuracy: put
your own test in its place.
"""

from __future__ import annotations

import json
import sys

import torch

from riemerge import read_adapter

ROWS = 50


def scores(folder: str, part: str, adapter: str) -> list[float]:
    """Return one score for each row of one task."""
    model, own = read_adapter(folder), read_adapter(adapter)
    generator = torch.Generator().manual_seed(["dev", "test"].index(part))
    apart, size = torch.zeros(ROWS), torch.zeros(ROWS)
    for module in own.modules:
        here, there = (one.update(module, torch.float32) for one in (model, own))
        inputs = torch.randn(own.shape(module)[1], ROWS, generator=generator)
        answer, expected = (one.scale * one.B @ (one.A @ inputs) for one in (here, there))
        apart += (answer - expected).square().sum(dim=0)
        size += expected.square().sum(dim=0)
    return (1 / (1 + apart / size)).tolist()


if __name__ == "__main__":
    found, which, *adapters = sys.argv[1:]
    print(json.dumps({read_adapter(one).name: scores(found, which, one) for one in adapters}))
