"""Is Fisher merging a Fréchet mean? It minimises an upper bound of one, and two gauges of one model break it.

Section 5 of GeoMerge: models θᵢ of Fisher information Fᵢ are Gaussians N(θᵢ, Fᵢ⁻¹), and the principled merge
is their Fréchet mean in the Fisher-Rao distance d. Through N(θ, Fᵢ⁻¹), as (a + b)² <= 2 (a² + b²),

    Σ d² <= 2 Σ (θ - θᵢ)ᵀ Fᵢ (θ - θᵢ) + 2 Σ d²(Fᵢ, F),

and Fisher merging, (Σ Fᵢ)⁻¹ Σ Fᵢ θᵢ, minimises the first sum. On a line, where d has a closed form:

- The bound holds, and its minimiser is Fisher merging. The Fréchet mean is another point. They come together
  where the models do: shrinking the means and the logarithms of the Fᵢ by e shrinks the gap by e².
- The paper says that at one covariance d is the Mahalanobis distance. Within those Gaussians it is; among all
  Gaussians d is shorter, as the geodesic passes through wider ones. The bound holds all the same.
- The toy of section 4, y = t2 t1 x + noise, has the Fisher matrix of appendix A, which θ and -θ share. They
  are one predictor; their plain average is (0, 0), and so is Fisher merging with the diagonal. The full matrix
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
    return torch.stack((means / 2**0.5, information.rsqrt()), dim=-1).unsqueeze(-1)


def fisher_merge(models: Tensor, forms: Tensor) -> Tensor:
    """Return (Σ Fᵢ)⁺ Σ Fᵢ θᵢ, the shortest minimiser of Σ (θ - θᵢ)ᵀ Fᵢ (θ - θᵢ)."""
    return torch.linalg.pinv(forms.sum(dim=0), hermitian=True) @ (forms @ models.unsqueeze(-1)).sum(dim=0)


def toy_information(network: Tensor) -> Tensor:
    """Return the matrix of appendix A, where Σ x² and the variance of the noise are 1."""
    gradient = network.flip(-1)
    return gradient.unsqueeze(-1) * gradient.unsqueeze(-2)


def merges(e: float) -> tuple[float, float]:
    """Return where the Fréchet mean and Fisher merging are, of models nearer to each other by the factor e."""
    means, information = MEANS.mean() + e * (MEANS - MEANS.mean()), INFORMATION**e
    points = list(gaussians(means, information).unsqueeze(1))
    mean = frechet_mean(Problem(HalfPlane(), points)).point[0, 0, 0] * 2**0.5
    return float(mean), float(fisher_merge(means[:, None], information[:, None, None]))


def sums(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return at each θ (n,) the least Σ d² over all F, and the least upper bound."""
    candidates = gaussians(
        theta, torch.logspace(-2, 2, 401, dtype=theta.dtype)[:, None].expand(-1, len(theta))
    )
    squared = [2 * HalfPlane().squared_dists(candidates, one) for one in gaussians(MEANS, INFORMATION)]
    fixed_mean = (INFORMATION.log() - INFORMATION.log().mean()).square().sum() / 2
    mahalanobis = INFORMATION @ (theta - MEANS[:, None]).square()
    return torch.stack(squared).sum(dim=0).amin(dim=0), 2 * mahalanobis + 2 * fixed_mean


def draw(path: str) -> None:
    """Plot both sums over θ, and the toy's plane with its orbit and its merges."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    theta = torch.linspace(-1, 5, 301, dtype=torch.float64)
    for curve, name, place in zip(sums(theta), ("Σ d²", "its upper bound"), merges(1.0), strict=True):
        left.plot(theta, curve, label=f"{name}, least at {place:.2f}")
        left.axvline(place, linestyle=":", color=left.lines[-1].get_color())
    left.set(xlabel="θ", ylim=(0, 60), title="Three Gaussians on a line")
    t1 = torch.linspace(0.4, 3, 100)
    for sign in (1, -1):
        right.plot(sign * t1, sign * 2 / t1, color="C0")
        right.scatter(*(sign * NETWORK), color="C0", zorder=3)
    right.plot([-1.5, 1.5], [3, -3], "C1--")
    right.scatter(0, 0, marker="x", color="C3")
    for text, at in (("θ", NETWORK), ("-θ", -NETWORK)):
        right.annotate(text, at.tolist())
    figure.savefig(path)


if __name__ == "__main__":
    for e in (1.0, 0.1, 0.01):
        print("e = {}: Fréchet mean {:.6f}, Fisher merge {:.6f}".format(e, *merges(e)))
    models = torch.stack((NETWORK, -NETWORK))
    full = toy_information(models)
    if sys.argv[1:]:
        draw(sys.argv[1])
