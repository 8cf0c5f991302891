"""Is merging a gradient step? A smooth merge of a model and its next step is a preconditioned gradient step.

Local-model substitution: merge θ and θ - e v, one step along v = grad L. Lemma 1: if M(θ, θ) = θ and M is
smooth, M(θ, θ - e v) = θ - e J v + O(e²) with the preconditioner J = ∂₂M(θ, θ). Measured, with share 0.3:

- The average: J = 0.3 I, and nothing remains. A geodesic mean (here on the Poincaré disk) and SLERP have the
  same J: a geometry that both models share changes the second order alone, so this is plain gradient descent.
- Fisher merging: J = (Σ wᵢ Fᵢ)⁻¹ w₂ F₂. A metric for each model is a preconditioner.
- Smooth means twice differentiable: a merge that is once differentiable (a term |x|^1.5 added to the average)
  keeps its J and leaves a remainder of the order 1.5.
- TIES with one task keeps the largest entries: M(θ, θ - e v) = θ - e top(v), sparse gradient descent. That is
  not linear in v, so there is no J, and the lemma says nothing of it.

The other way round, the average of models θᵢ = xᵢ - eᵢ gᵢ is a step from the mean of the xᵢ, by Σ wᵢ eᵢ gᵢ.
With one xᵢ for all, rounds of `riemerge.OuterOptimizer` are gradient descent on the mean of the losses.

Run: python examples/merging_is_a_gradient_step.py [picture.png]
Source: "Model merging and the geometry of optimization", lemma 1; McMahan et al. 2017 (the rounds).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from pymanopt.manifolds import PoincareBall
from torch import Tensor

Merge = Callable[[Tensor, Tensor], Tensor]
FORMS = torch.tensor([[4.0, 1.0], [1.0, 8.0]], dtype=torch.float64)  # the diagonals of F₁ and F₂
SHARE, ETAS = 0.3, 2.0 ** -torch.arange(3, 10, dtype=torch.float64)
POINT, DIRECTION = torch.tensor([[0.5, -0.3], [0.1, 0.6]], dtype=torch.float64)


def jacobian_at_the_diagonal(merge: Merge, point: Tensor, step: float = 1e-3) -> Tensor:
    """Return J = ∂₂M(θ, θ) as a matrix (d, d) on the flattened θ, by extrapolated central differences.

    The error is of the order of step⁴ and of eps/step: 1e-12 for a merge that is smooth on the scale 1.
    """

    def slope(along: Tensor, h: float) -> Tensor:
        return (merge(point, point + h * along) - merge(point, point - h * along)).flatten() / (2 * h)

    basis = torch.eye(point.numel(), dtype=point.dtype).reshape(-1, *point.shape)
    return torch.stack([(4 * slope(one, step / 2) - slope(one, step)) / 3 for one in basis], dim=1)


def remainders(merge: Merge, point: Tensor, direction: Tensor, jacobian: Tensor) -> Tensor:
    """Return ‖M(θ, θ - e v) - (θ - e J v)‖ for each step size e of ETAS."""
    linear = (jacobian @ direction.flatten()).reshape(point.shape)
    rests = [merge(point, point - eta * direction) - (point - eta * linear) for eta in ETAS]
    return torch.stack([torch.linalg.vector_norm(rest) for rest in rests])


def remainder_slope(merge: Merge, point: Tensor, direction: Tensor, jacobian: Tensor) -> float:
    """Return the order in e of what Lemma 1 leaves, by least squares; infinite where it is round-off."""
    rests = remainders(merge, point, direction, jacobian)
    if rests.max() <= 1e-11 * torch.linalg.vector_norm(point):  # the error of the measured Jacobian
        return float("inf")
    x, y = (one.log() - one.log().mean() for one in (ETAS, rests.clamp_min(1e-300)))
    return float((x @ y) / (x @ x))


def average(first: Tensor, second: Tensor) -> Tensor:
    return (1 - SHARE) * first + SHARE * second


def geodesic(first: Tensor, second: Tensor) -> Tensor:
    disk, x, y = PoincareBall(2), first.numpy(), second.numpy()
    return torch.from_numpy(disk.exp(x, SHARE * disk.log(x, y)))


def slerp(first: Tensor, second: Tensor) -> Tensor:
    angle = torch.acos((first @ second / first.norm() / second.norm()).clamp(-1, 1))
    return (((1 - SHARE) * angle).sin() * first + (SHARE * angle).sin() * second) / angle.sin()


def fisher(first: Tensor, second: Tensor) -> Tensor:
    return average(FORMS[0] * first, FORMS[1] * second) / average(*FORMS)


MERGES: dict[str, Merge] = {
    "average": average,
    "geodesic": geodesic,
    "SLERP": slerp,
    "Fisher": fisher,
    "once differentiable": lambda a, b: average(a, b) + (b - a).abs() ** 1.5,
    "TIES, one task": lambda a, b: a + (b - a) * ((b - a).abs() == (b - a).abs().max()),
}


def draw(path: str) -> None:
    """Plot what Lemma 1 leaves over the step size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, merge), marker in zip(MERGES.items(), ".xosDv", strict=True):
        rests = remainders(merge, POINT, DIRECTION, jacobian_at_the_diagonal(merge, POINT))
        axes.loglog(ETAS, rests.clamp_min(1e-17), marker=marker, markersize=4, label=name)
    axes.set(xlabel="step size e", ylabel="remainder ‖M(θ, θ - e v) - (θ - e J v)‖")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    for name, merge in MERGES.items():
        jacobian = jacobian_at_the_diagonal(merge, POINT)
        slope = remainder_slope(merge, POINT, DIRECTION, jacobian)
        print(f"{name:20} J = {jacobian.round(decimals=6).tolist()}, remainder of order {slope:.2f}")
    if sys.argv[1:]:
        draw(sys.argv[1])
