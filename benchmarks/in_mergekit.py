"""mergekit's own methods on dense tensors: runs in mergekit's environment, and imports nothing of ours.

    python in_mergekit.py IN.safetensors OUT.safetensors METHOD...

IN holds sets of models under SET/0, SET/1, ... and perhaps SET/base (zero if not given). OUT gets what each
method makes of each set, as METHOD/SET; no OUT is written if it is `-`. Prints JSON: METHOD/SET to seconds.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from mergekit.merge_methods import merge_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor

DENSITY = 0.5

# What each needs beside its own defaults; `based` ones take differences from the base model.
_KEPT = {"density": DENSITY}
WHOLE: dict[str, dict[str, Any]] = {"linear": {}, "nuslerp": {}, "multislerp": {}, "karcher": {}}
BASED: dict[str, dict[str, Any]] = {
    "task_arithmetic": {},
    "ties": _KEPT,
    "dare_linear": _KEPT,
    "dare_ties": _KEPT,
    "della": _KEPT,
    "della_linear": _KEPT,
    "breadcrumbs": _KEPT,
    "breadcrumbs_ties": _KEPT,
    "model_stock": {},
    "sce": {"select_topk": DENSITY},
}
UNWEIGHTED = {"karcher", "model_stock", "sce"}


def merge(method: str, models: list[Tensor], base: Tensor) -> Tensor:
    """Merge once, with the same random numbers each time."""
    torch.manual_seed(0)
    if method == "nuslerp":
        models = models[:2]
    weights = [float(i) for i in range(len(models) + 1, 1, -1)]
    weighted = {} if method in UNWEIGHTED else {"weight": [one / sum(weights) for one in weights]}
    inputs, options = models, dict[str, Any]()
    if method == "slerp":
        inputs, options = models[:2], {"parameters": {"t": 0.4}, "base_index": 0}
    elif method in WHOLE:
        options = {"parameters": weighted | WHOLE[method]}
    else:
        inputs, options = [base, *models], {"parameters": weighted | BASED[method], "base_index": 0}
    merged: Tensor = merge_tensors(inputs, method, **options)
    return merged


def main(source: str, target: str, *methods: str) -> None:
    sets: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(source).items():
        name, _, place = key.rpartition("/")
        sets.setdefault(name, {})[place] = tensor
    seconds, merged = {}, {}
    for name, tensors in sets.items():
        models = [tensors[str(i)] for i in range(len(tensors) - ("base" in tensors))]
        base = tensors.get("base", torch.zeros_like(models[0]))
        for method in methods:
            began = time.perf_counter()
            found = merge(method, models, base)
            seconds[f"{method}/{name}"] = time.perf_counter() - began
            if target != "-":
                merged[f"{method}/{name}"] = found.contiguous()
    if target != "-":
        save_file(merged, target)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
