"""Two models trained with different preconditioners: the naive average, and the merge in both geometries.

Descent preconditioned by P moves in the geometry of the metric P⁻¹, so a step along a direction where P is
small counts for much. Two models of two parameters each stay accurate in a direction of their own. The
average of the parameters weighs both alike; the optimal merge minimises the sum of the squared distances,
each in the metric of its own training. Run: python examples/preconditioners.py [picture.png]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from riemerge.methods.data.quadratic import regmean
from riemerge.methods.setting import Setting

MODELS = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
PRECONDITIONERS = torch.tensor([[[1.0, 0.0], [0.0, 0.01]], [[0.02, 0.01], [0.01, 1.0]]], dtype=torch.float64)


def optimal_merge(models: Tensor, preconditioners: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the minimiser of Σ wₜ (x − xₜ)ᵀ Pₜ⁻¹ (x − xₜ), models being rows (T, n)."""
    at = Setting(
        module="parameters",
        weights=torch.tensor(weights, dtype=models.dtype),
        values={"off_diagonal": 1.0},
        shape=(1, models.shape[1]),
        statistics=tuple({"gram": one} for one in torch.linalg.inv(preconditioners)),
    )
    return regmean(models.unsqueeze(1), at).squeeze(0)


def error(point: Tensor, models: Tensor, preconditioners: Tensor, weights: Sequence[float]) -> float:
    """Σ wₜ (x − xₜ)ᵀ Pₜ⁻¹ (x − xₜ)."""
    steps = zip(weights, point - models, preconditioners, strict=True)
    return float(sum(w * step @ torch.linalg.solve(p, step) for w, step, p in steps))


def draw(path: str, points: dict[str, Tensor]) -> None:
    """Draw the models, each with the ellipses of equal distance of its metric, and the two merges."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    _, axes = pyplot.subplots()
    turn = torch.linspace(0, 2 * torch.pi, 200, dtype=torch.float64)
    circle = torch.stack([turn.cos(), turn.sin()])
    for model, preconditioner in zip(MODELS, PRECONDITIONERS, strict=True):
        for radius in (0.25, 0.5, 1.0):
            ellipse = model[:, None] + radius * torch.linalg.cholesky(preconditioner) @ circle
            axes.plot(*ellipse.tolist(), color="gray", linewidth=0.7)
    for name, point in points.items():
        axes.scatter(*point.tolist(), label=name)
    axes.legend()
    axes.set_aspect("equal")
    pyplot.savefig(path)


def main() -> None:
    """Print both merges with their errors; draw them where a file is named."""
    weights = [0.5, 0.5]
    merges = {
        "naive average": (MODELS * torch.tensor(weights, dtype=MODELS.dtype)[:, None]).sum(dim=0),
        "optimal merge": optimal_merge(MODELS, PRECONDITIONERS, weights),
    }
    for name, point in merges.items():
        found = error(point, MODELS, PRECONDITIONERS, weights)
        print(f"{name}: ({point[0]:.4f}, {point[1]:.4f}), error {found:.4f}")
    if sys.argv[1:]:
        draw(sys.argv[1], {"model 1": MODELS[0], "model 2": MODELS[1], **merges})


if __name__ == "__main__":
    main()
