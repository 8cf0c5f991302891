"""Is Fisher merging a Fréchet mean? It minimises an upper bound of one, and two gauges of one model break it.

Section 5 of GeoMerge: models θᵢ of Fisher information Fᵢ are Gaussians N(θᵢ, Fᵢ⁻¹), and the principled merge is
their Fréchet mean in the Fisher-Rao distance d. Through N(θ, Fᵢ⁻¹), as (a + b)² <= 2 (a² + b²),

    Σ d² <= 2 Σ (θ - θᵢ)ᵀ Fᵢ (θ - θᵢ) + 2 Σ d²(Fᵢ, F),

and Fisher merging, (Σ Fᵢ)⁻¹ Σ Fᵢ θᵢ, minimises the first sum. On a line, where d has a closed form:

- The bound holds, and its minimiser is Fisher merging. The Fréchet mean is another point. They come together
  where the models do: shrinking the means and the logarithms of the Fᵢ by e shrinks the gap by e².
- The paper says that at one covariance d is the Mahalanobis distance. Within those Gaussians it is. Among all
  Gaussians it is shorter, as the geodesic passes through wider ones; the bound holds all the same.
- The toy of section 4, y = t2 t1 x + noise, has the Fisher matrix of appendix A, which is that of -θ too. The
  merge of θ and -θ, one predictor, is (0, 0), by the plain average and by Fisher merging with the diagonal. The
  full matrix is singular: its minimisers are the line c (t1, -t2), whose predictors -c² t1 t2 are zero or of
  the wrong sign. On the quotient both models are one point.

Run: python examples/fisher_as_frechet.py [picture.png]
Source: GeoMerge, eq. 18-20 and 28-30; Pinele et al. 2020 (the distances).
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

MEANS, INFORMATION = torch.tensor([[0.0, 3.0, 4.0], [1.0, 4.0, 0.25]], dtype=torch.float64)
NETWORK = torch.tensor([1.0, 2.0], dtype=torch.float64)


def fisher_rao(mean: Tensor, deviation: Tensor, other_mean: Tensor, other_deviation: Tensor) -> Tensor:
    """Return the distance of Gaussians on a line, with ds² = (dm² + 2 ds²) / s²."""
    apart = (mean - other_mean).square() / 2 + (deviation - other_deviation).square()
    return 2**1.5 * (apart / (deviation * other_deviation) / 4).sqrt().asinh()


def profile(theta: Tensor, means: Tensor, information: Tensor) -> tuple[Tensor, Tensor]:
    """Return min over F of Σ d² and of its upper bound, at each θ (n,)."""
    deviations = torch.logspace(-2, 2, 1001, dtype=theta.dtype)[:, None]
    pairs = zip(means, information, strict=True)
    true = sum(fisher_rao(theta, deviations, m, f.rsqrt()).square() for m, f in pairs)
    between = (information.log() - information.log().mean()).square() / 2  # d² of one mean, to the best F
    bound = 2 * information @ (theta - means[:, None]).square() + 2 * between.sum()
    return torch.as_tensor(true).amin(dim=0), bound


def fisher_merge(models: Tensor, forms: Tensor) -> Tensor:
    """Return (Σ Fᵢ)⁺ Σ Fᵢ θᵢ, the shortest minimiser of Σ (θ - θᵢ)ᵀ Fᵢ (θ - θᵢ)."""
    return (
        torch.linalg.pinv(forms.sum(dim=0), hermitian=True) @ (forms @ models[..., None]).sum(dim=0)[..., 0]
    )


def toy_information(network: Tensor) -> Tensor:
    """Return the matrix of appendix A, with Σ x² and the variance of the noise 1."""
    gradient = network.flip(-1)
    return gradient[..., :, None] * gradient[..., None, :]


def measure() -> dict[str, float]:
    """Return the merges on a line, their gap, the slack of the bound, and the predictors of the toy."""
    theta = torch.linspace(-1, 5, 1201, dtype=torch.float64)
    figures = {}
    for e in (1.0, 0.1):
        means, information = MEANS.mean() + e * (MEANS - MEANS.mean()), INFORMATION**e
        true, bound = profile(theta, means, information)
        figures[f"Fréchet mean, e = {e}"] = float(theta[true.argmin()])
        figures[f"Fisher merge, e = {e}"] = float(information @ means / information.sum())
    models = torch.stack((NETWORK, -NETWORK))
    full = toy_information(models)
    diagonal = full.diagonal(dim1=-2, dim2=-1).diag_embed()
    return figures
