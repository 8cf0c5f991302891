"""Does a merge change when one adapter is written by other factors of the same update?

An adapter stores dW = s B A, and (B G, G⁻¹ A) stores the same dW for every invertible G. Two real adapters
are merged, the first of them rewritten by G of condition 1 (a rotation) to 1,000: no model changes at all.

- PEFT, `add_weighted_adapter(..., combination_type="linear")`, averages the factors B and A. The merge
  depends on G: already a rotation moves it by more than half its size, condition 1,000 by a hundred times.
- mergekit averages whole weights, as if each adapter had been merged into the base model: by its formula,
  Σ wᵢ dWᵢ, nothing moves, but the merge has the sum of the ranks. It is no dependency of this project;
  benchmarks/gauge.py measures fifteen methods of mergekit itself where it is installed.
- riemerge, `method="geomerge"`: a Fréchet mean on the quotient by the gauge. Nothing moves beyond the
  solver's tolerance (with the looser default of `cost_tol` by 4e-7), and the rank stays.

Run: python examples/gauge_breaks_the_average.py [picture.png]
Source: GeoMerge, figure 1 and section 2.2.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riemerge import merge, read_adapter

ADAPTERS = Path(__file__).parent / "adapters"
NAMES, MODULE = ["snli", "mnli"], "encoder.layer.0.attention.self.query"
CONDITIONS = (1.0, 30.0, 1000.0)


def gauge(rank: int, condition: float) -> Tensor:
    """Draw an invertible matrix of this condition number."""
    draws = torch.randn(2, rank, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, right = torch.linalg.qr(draws).Q
    return left * torch.logspace(0, 1, rank, base=condition, dtype=torch.float64) @ right


def merges(change: Tensor) -> dict[str, Tensor]:
    """Return the merged dW of each tool, with the first adapter rewritten by `change`."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, lora_alpha=32, target_modules=["query"])
    layer = torch.nn.ModuleDict({"query": torch.nn.Linear(384, 384, bias=False)})
    model = get_peft_model(layer, config, adapter_name=NAMES[0])
    model.add_adapter(NAMES[1], config)
    query: Any = model.double().get_submodule("base_model.model.query")
    for name, rewriting in zip(NAMES, (change, torch.eye(16, dtype=torch.float64)), strict=True):
        update = read_adapter(ADAPTERS / name).update(MODULE, torch.float64)
        query.lora_B[name].weight.data = update.B @ rewriting
        query.lora_A[name].weight.data = torch.linalg.solve(rewriting, update.A)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, selected_adapters=NAMES)
        folders = [Path(folder) / name for name in NAMES]
        ours = merge(folders, method="geomerge", cost_tol=0).updates["query"].dense()
    model.add_weighted_adapter(NAMES, [0.5, 0.5], "merged", combination_type="linear")
    first, second, theirs = (query.get_delta_weight(name).detach() for name in (*NAMES, "merged"))
    return {"PEFT linear": theirs, "mergekit's formula": (first + second) / 2, "riemerge geomerge": ours}


def measure() -> dict[str, list[float]]:
    """Return how far each tool's merge moves, relative to its size, for each of CONDITIONS."""
    before = merges(torch.eye(16, dtype=torch.float64))
    after = [merges(gauge(16, condition)) for condition in CONDITIONS]
    return {
        tool: [float((one[tool] - merged).norm() / merged.norm()) for one in after]
        for tool, merged in before.items()
    }


def draw(path: str, moves: dict[str, list[float]]) -> None:
    """Plot how far each merge moves over the condition of the rewriting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for (tool, values), marker in zip(moves.items(), "os^", strict=True):
        axes.loglog(CONDITIONS, values, marker=marker, label=tool)
    axes.set(xlabel="condition number of G", ylabel="change of the merged dW / its norm", ylim=(1e-17, 1e3))
    axes.set_title("One adapter rewritten as (B G, G⁻¹ A): the same model")
    axes.legend(loc="center right")
    figure.savefig(path)


if __name__ == "__main__":
    moves = measure()
    for tool, values in moves.items():
        print(f"{tool:20}" + "".join(f"{value:10.1e}" for value in values))
    if sys.argv[1:]:
        draw(sys.argv[1], moves)
