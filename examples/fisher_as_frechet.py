"""Is Fisher merging a Fréchet mean? It minimises an upper bound of one, and two gauges of one model break it.

Section 5 of GeoMerge: models θᵢ of Fisher information Fᵢ are Gaussians N(θᵢ, Fᵢ⁻¹), and the principled merge
is their Fréchet mean in the Fisher-Rao distance d. Through N(θ, Fᵢ⁻¹), as (a + b)² <= 2 (a² + b²),

    Σ d² <= 2 Σ (θ - θᵢ)ᵀ Fᵢ (θ - θᵢ) + 2 Σ d²(Fᵢ, F),

and Fisher merging, (Σ Fᵢ)⁻¹ Σ Fᵢ θᵢ, minimises the first sum. On a line, where d has a closed form:

- The bound holds, and its minimiser is Fisher merging. The Fréchet mean is another point. They come together
  where the models do: shrinking the means and the logarithms of the Fᵢ by e shrinks the gap by e².
- The paper says that at one covariance d is the Mahalanobis distance. Within those Gaussians it is; among all
  Gaussians d is shorter, as the geodesic passes through wider ones. The bound holds all the same.
- The toy of section 4, y = t2 t1 x + noise, has the Fisher matrix of appendix A, which θ and -θ share. Both
  are one predictor; their average is (0, 0), and so is Fisher merging with the diagonal. The full matrix
  is singular: its minimisers are the line c (t1, -t2), whose predictors -c² t1 t2 are zero or of the wrong
  sign. On the quotient both models are one point, and the merge is that point (toy_problem.py).

Run: python examples/fisher_as_frechet.py [picture.png]
Source: GeoMerge, eq. 18-20 and 28-30; Pinele et al. 2020 (the distances).
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from riemerge import Problem, frechet_mean
from riemerge.manifolds import HalfPlane

MEANS, INFORMATION = torch.tensor([[0.0, 3.0, 4.0], [1.0, 4.0, 0.25]], dtype=torch.float64)
NETWORK = torch.tensor([1.0, 2.0], dtype=torch.float64)


def gaussians(means: Tensor, information: Tensor) -> Tensor:
    """Return N(m, 1/F) as points (..., 2, 1) of the half-plane, whose distances are d / √2."""
    return torch.stack(torch.broadcast_tensors(means / 2**0.5, information.rsqrt()), dim=-1).unsqueeze(-1)


def fisher_merge(models: Tensor, forms: Tensor) -> Tensor:
    """Return (Σ Fᵢ)⁺ Σ Fᵢ θᵢ, the shortest minimiser of Σ (θ - θᵢ)ᵀ Fᵢ (θ - θᵢ)."""
    total = (forms @ models.unsqueeze(-1)).sum(dim=0)
    return (torch.linalg.pinv(forms.sum(dim=0), hermitian=True) @ total).squeeze(-1)


def toy_information(network: Tensor) -> Tensor:
    """Return the matrix of appendix A, where Σ x² and the variance of the noise are 1."""
    gradient = network.flip(-1)
    return gradient.unsqueeze(-1) * gradient.unsqueeze(-2)


def merges(e: float) -> tuple[float, float]:
    """Return the Fréchet mean and the Fisher merge of the models, shrunk towards each other by e."""
    means, information = MEANS.mean() + e * (MEANS - MEANS.mean()), INFORMATION**e
    solution = frechet_mean(Problem(HalfPlane(), list(gaussians(means, information).unsqueeze(1))))
    fisher = fisher_merge(means[:, None], information[:, None, None])
    return float(solution.point[0, 0, 0]) * 2**0.5, float(fisher)


def sums(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return at each θ (n,) the least Σ d² over all F, and the least upper bound."""
    candidates = gaussians(theta, torch.logspace(-2, 2, 401, dtype=theta.dtype)[:, None])
    squared = [2 * HalfPlane().squared_dists(candidates, one) for one in gaussians(MEANS, INFORMATION)]
    mahalanobis = INFORMATION @ (theta - MEANS[:, None]).square()
    between = (INFORMATION.log() - INFORMATION.log().mean()).square().sum() / 2
    return torch.stack(squared).sum(dim=0).amin(dim=0), 2 * mahalanobis + 2 * between


def draw(path: str) -> None:
    """Plot both sums over θ, and the toy's plane with its merges."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    theta = torch.linspace(-1, 5, 301, dtype=torch.float64)
    names = ("Σ d², least at the Fréchet mean", "upper bound, least at Fisher's")
    for curve, name, place, color in zip(sums(theta), names, merges(1.0), ("C0", "C1"), strict=True):
        left.plot(theta, curve, color, label=name)
        left.axvline(place, color=color, linestyle=":")
    left.set(xlabel="mean θ", ylim=(0, 80), title="Three Gaussians on a line")
    left.legend()
    for sign, name in ((1, "θ"), (-1, "-θ")):
        curve = sign * torch.linspace(0.4, 3, 100)
        right.plot(curve, NETWORK.prod() / curve, "C2", label="_")
        right.plot(*(sign * NETWORK), "C2o")
        right.annotate(name, (sign * NETWORK).tolist(), xytext=(8, 4), textcoords="offset points")
    right.plot([-1.3, 1.3], [2.6, -2.6], "C1--", label="minimisers, full Fisher matrix")
    right.plot(0, 0, "kX", label="average; Fisher, diagonal")
    right.set(xlabel="t1", ylabel="t2", title="Two gauges of one network")
    right.legend(loc="lower right")
    figure.savefig(path)


if __name__ == "__main__":
    for e in (1.0, 0.1, 0.01):
        print("e = {}: Fréchet mean {:.6f}, Fisher merge {:.6f}".format(e, *merges(e)))
    models = torch.stack((NETWORK, -NETWORK))
    diagonal = toy_information(models).diagonal(dim1=-2, dim2=-1).diag_embed()
    print(
        "predictor of the toy's Fisher merge:",
        float(fisher_merge(models, diagonal).prod()),
    )
    if sys.argv[1:]:
        draw(sys.argv[1])
