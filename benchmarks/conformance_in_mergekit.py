"""Weighted sums of adapters by mergekit: runs in mergekit's environment, and imports nothing of ours.

Reads JSON from stdin: name to [folder, weight, weight]. The folder has `base`, `a` and `b`; `by_mergekit` is
written beside them. Prints JSON: name to null, or to the refusal; and `version`.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions


def merge(folder: Path, weights: list[float]) -> None:
    """`base+a` and `base+b`, as mergekit's users write them."""
    base = str(folder / "base")
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [
            {"model": f"{base}+{folder / place}", "parameters": {"weight": weight}}
            for place, weight in zip("ab", weights, strict=True)
        ],
        "dtype": "float32",
    }
    options = MergeOptions(
        quiet=True,
        copy_tokenizer=False,
        lora_merge_cache=str(folder / "cache"),
        lora_merge_dtype="float32",
    )
    run_merge(MergeConfiguration.model_validate(recipe), str(folder / "by_mergekit"), options=options)


def main() -> None:
    said: dict[str, str | None] = {"version": version("mergekit")}
    for name, (folder, *weights) in json.load(sys.stdin).items():
        try:
            merge(Path(folder), weights)
            said[name] = None
        except (Exception, SystemExit) as fault:  # noqa: BLE001 - whatever it is, it is the answer
            said[name] = f"{type(fault).__name__}: " + str(fault).strip().split("\n")[0]
    print(json.dumps(said))


if __name__ == "__main__":
    main()
