"""Two models trained with different preconditioners: how far off is their average, how far their best merge?

Descent preconditioned by P moves in the geometry of the metric P⁻¹, so a step along a direction where P is
small counts for much. The error of a merge x is Σ wᵢ (x - xᵢ)ᵀ Pᵢ⁻¹ (x - xᵢ). It is least at
(Σ wᵢ Pᵢ⁻¹)⁻¹ Σ wᵢ Pᵢ⁻¹ xᵢ, a flat mean with one metric for each model. Here each of two models is accurate in
a direction of its own, which the plain average gives away.

- Both errors are printed: the average's is 19 times the least one, and the factor grows with the condition
  of the preconditioners without a bound.
- The error is the loss only where the metrics are the curvatures of the losses, as for Newton's method. If
  the losses are round, |x - xᵢ|², the average is best, whatever the preconditioners of the training.

Run: python examples/preconditioned_merge.py [picture.png]
Source: "Model merging and the geometry of optimization", the last section, with matrices of our own.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

MODELS = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
PRECONDITIONERS = torch.tensor([[[1.0, 0.0], [0.0, 0.01]], [[0.02, 0.01], [0.01, 1.0]]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.5], dtype=torch.float64)


def best_merge(models: Tensor, metrics: Tensor, weights: Tensor) -> Tensor:
    """Return the minimiser of Σ wᵢ (x - xᵢ)ᵀ Gᵢ (x - xᵢ), models being rows (T, n) and metrics (T, n, n)."""
    forms = weights[:, None, None] * metrics
    return torch.linalg.solve(forms.sum(dim=0), (forms @ models[..., None]).sum(dim=0)).squeeze(-1)


def error(point: Tensor, models: Tensor, metrics: Tensor, weights: Tensor) -> float:
    """Return Σ wᵢ (x - xᵢ)ᵀ Gᵢ (x - xᵢ)."""
    steps = point - models
    return float(torch.einsum("t,ti,tij,tj->", weights, steps, metrics, steps))


def factor(condition: float) -> float:
    """Return the average's error over the least one, for preconditioners diag(1, 1/c) and diag(1/c, 1)."""
    metrics = torch.tensor([[1.0, condition], [condition, 1.0]], dtype=torch.float64).diag_embed()
    best = best_merge(MODELS, metrics, WEIGHTS)
    return error(WEIGHTS @ MODELS, MODELS, metrics, WEIGHTS) / error(best, MODELS, metrics, WEIGHTS)


def draw(path: str, merges: dict[str, Tensor]) -> None:
    """Draw the models, each with ellipses of equal distance in its metric, the merges, and the factor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    turn = torch.linspace(0, 2 * torch.pi, 200, dtype=torch.float64)
    for model, preconditioner, color in zip(MODELS, PRECONDITIONERS, ("C0", "C1"), strict=True):
        left.scatter(*model, color=color)
        for radius in (0.25, 0.5, 1.0):
            ellipse = radius * torch.linalg.cholesky(preconditioner) @ torch.stack((turn.cos(), turn.sin()))
            left.plot(*(model[:, None] + ellipse), color=color, linewidth=0.7)
    for (name, point), marker in zip(merges.items(), ("x", "*"), strict=True):
        left.scatter(*point, marker=marker, s=80, color="black", label=name, zorder=3)
    left.set(aspect="equal", title="Equal distances from each model")
    left.legend()
    conditions = torch.logspace(0, 4, 41, dtype=torch.float64).tolist()
    right.loglog(conditions, [factor(condition) for condition in conditions], color="black")
    right.set(xlabel="condition of the preconditioners", title="Error of the average / least error")
    figure.savefig(path)


if __name__ == "__main__":
    metrics = torch.linalg.inv(PRECONDITIONERS)
    merges = {"average": WEIGHTS @ MODELS, "best merge": best_merge(MODELS, metrics, WEIGHTS)}
    for name, point in merges.items():
        found = error(point, MODELS, metrics, WEIGHTS)
        round_loss = error(point, MODELS, torch.eye(2, dtype=torch.float64).expand(2, 2, 2), WEIGHTS)
        print(f"{name}: ({point[0]:.4f}, {point[1]:.4f}), error {found:.4f}; round losses {round_loss:.4f}")
    if sys.argv[1:]:
        draw(sys.argv[1], merges)
