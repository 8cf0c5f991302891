"""Freeze what mergekit makes of whole state dicts, for tests/merging/test_run.py.

Run in an environment with mergekit 0.1.5 or later, which the tests do not need:
    python tests/oracles/make_dense.py
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mergekit.merge_methods import merge_state_dicts
from safetensors.torch import save_file
from torch import Tensor

OUT = Path(__file__).with_name("dense.safetensors")
SHAPES = {"layers.0.up.weight": (6, 4), "layers.0.up.bias": (6,), "layers.1.conv.weight": (3, 2, 2, 2)}
WEIGHTS = [0.5, 0.2, 0.3]
DENSITY = 0.5


def models() -> list[dict[str, Tensor]]:
    """A base model and three that were trained from it."""
    draw = torch.Generator().manual_seed(5)

    def drawn() -> dict[str, Tensor]:
        return {
            name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in SHAPES.items()
        }

    base = drawn()
    return [base, *({name: base[name] + 0.3 * one for name, one in drawn().items()} for _ in WEIGHTS)]


def main() -> None:
    given = models()
    tuned = given[1:]

    def ask(method: str, x: list[dict[str, Tensor]], *, based: bool = True, **said: Any) -> dict[str, Tensor]:
        return merge_state_dicts(x, method, parameters=said, base=0 if based else None)

    answers = {
        "average": ask("linear", tuned, based=False, weight=WEIGHTS),
        "slerp": ask("slerp", tuned[:2], t=0.3),
        "task_arithmetic": ask("task_arithmetic", given, weight=WEIGHTS),
        "ties": ask("ties", given, weight=WEIGHTS, density=DENSITY),
        "model_stock": ask("model_stock", given),
    }
    kept = {f"models/{place}/{name}": x for place, one in enumerate(given) for name, x in one.items()}
    kept |= {f"{method}/{name}": x for method, one in answers.items() for name, x in one.items()}
    metadata = {"oracle": f"mergekit {version('mergekit')}", "torch": version("torch")}
    save_file({name: value.contiguous() for name, value in kept.items()}, OUT, metadata)


if __name__ == "__main__":
    main()
