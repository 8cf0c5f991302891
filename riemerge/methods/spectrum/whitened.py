"""Means by the spectrum: whitened singular frames, and powers of the singular values, in the joint span."""

from __future__ import annotations

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.linalg import SVD, numerical_rank, thin_svd, weighted_mean
from riemerge.methods.setting import Setting
from riemerge.methods.singular.singular_vectors import FLOOR, largest_norm

# LAPACK's singular values are right to a few eps of the largest.
_ROUND_OFF = 100.0 * torch.finfo(torch.float64).eps


def spectrum(x: Tensor, setting: Setting) -> Tensor:
    """Return the mean of whitened singular frames, on the way to a flat spectrum.

    X₁ is `whitened_mean` with the exponent a = `whitening`: the weighted average for 0. The singular values
    of X₁ are raised to a power γ and scaled so that the norm stays. Seen in polar form, X₁ = Q H with H
    positive definite on the range of X₁, H^γ lies on the affine-invariant geodesic of SPD from H (γ = 1) to
    the identity (γ = 0), and the scale makes that end a multiple of it: Iso-C is the end of this way, the
    average its start, and γ = 1/2 is halfway. How far to go: with `adapt` the share of the way, 1 − `power`,
    is multiplied by `disagreement`, so that copies, which have nothing to settle, stay where they are;
    without it γ is `power`.

    Law: f(L x Rᵀ) = L f(x) Rᵀ and f(c x) = c f(x), c of any sign; ‖f(x)‖ = ‖X₁‖; with `whitening` 0 and
    `power` 1 it is the weighted average; with `adapt` copies give themselves. A cut after the mean commutes
    with the power, but for the scale. Singular values of X₁ below √eps of the largest update count as zero.

    Args:
        x: Updates (T, p, q), in bases of the joint span, in float64.
        setting: Weights and the values `whitening`, `power` and `adapt`.

    Returns:
        The merged update (p, q).

    Source: Marczak et al. 2025, arXiv 2502.04959 (the flat end); Gargiulo et al. 2025, arXiv 2412.00081
        (whitening 1).

    Cost: T + 1 SVDs (p, q), one (p, c) and one (q, c) with c <= Σ rₜ columns.
    """
    power = setting.values["power"]
    if setting.values["adapt"]:
        power = 1.0 - (1.0 - power) * disagreement(x, setting.weights)
    first = triples(whitened_mean(x, setting.weights, setting.values["whitening"]), largest_norm(x))
    raised = first.values**power
    size = torch.linalg.vector_norm(raised)
    kept = torch.where(size > 0.0, torch.linalg.vector_norm(first.values) / size, 1.0)
    return first._replace(values=kept * raised).matrix()


def spectrum_matched(x: Tensor, setting: Setting) -> Tensor:
    """Return the mean of whitened singular frames, on the way to the mean spectrum of the updates.

    As `spectrum`, but the geodesic leads from the singular values of X₁ to those of the inputs: the k-th one
    becomes σₖ(X₁)^γ tₖ^(1 − γ), where tₖ is the root of the weighted mean square of the k-th singular values
    of the updates, and γ is `power`. At γ = 0 the result is, for `whitening` 0, the matrix nearest to the
    average among all with the spectrum t: the extrinsic mean on the orbit of that spectrum under both
    orthogonal groups. Below γ = 1 its rank is at most the largest of the updates.

    Law: f(L x Rᵀ) = L f(x) Rᵀ and f(c x) = c f(x); copies give themselves, at any parameters; with
    `whitening` 0 and `power` 1 it is the weighted average.

    Args:
        x: Updates (T, p, q), in bases of the joint span, in float64.
        setting: Weights and the values `whitening` and `power`.

    Returns:
        The merged update (p, q).

    Raises:
        NumericalError: Two singular values of X₁ are equal where those of the inputs are not, so that their
            singular vectors are arbitrary; or at `power` 0 the updates cancel in X₁, so that it has none.

    Source: von Neumann 1937 (the nearest matrix of a given spectrum).

    Cost: that of `spectrum`.
    """
    power = setting.values["power"]
    first = triples(whitened_mean(x, setting.weights, setting.values["whitening"]), largest_norm(x))
    sigma = torch.linalg.svdvals(x)
    # A root of round-off would not be small.
    sigma = torch.where(sigma > FLOOR * largest_norm(x), sigma, 0.0)
    squares = setting.weights.to(x)[:, None] * sigma.square()
    target = squares.sum(dim=0).sqrt()[: len(first.values)]
    if power < 1.0:
        _expect_determined(first.values, target)
    if power == 0.0 and len(first.values) < int((sigma > 0.0).sum(dim=1).max()):
        raise NumericalError(
            f"the updates cancel: their mean has {len(first.values)} directions left, and at power 0 each "
            "one of theirs has its full size there: use power above 0, or average"
        )
    return first._replace(values=first.values**power * target ** (1.0 - power)).matrix()


def power_mean(x: Tensor, setting: Setting) -> Tensor:
    """Return the power mean of order s: sharpen every spectrum, take the mean, and undo the sharpening.

    With f_s(U S Vᵀ) = U Sˢ Vᵀ the result is f_(1/s) of the whitened mean (`whitened_mean`) of the f_s(xₜ).
    What all updates share is kept whole, and what one alone holds with weight w is scaled by w^(1/s): for
    s = 1 the average, for s -> ∞ nothing is lost. So the spectrum of what is private is raised against what
    is shared, by the power 1/s, while that of a single update is never changed.

    Law: f(L x Rᵀ) = L f(x) Rᵀ and f(c x) = c f(x); copies give themselves; updates of mutually orthogonal
    rows and columns give Σ wₜ^((1 − a)/s) xₜ, a the `whitening`.

    A large order loses digits of small singular values: σ is right to eps^(1/s) of the largest.

    Args:
        x: Updates (T, p, q), in bases of the joint span, in float64.
        setting: Weights and the values `whitening` and `order`.

    Returns:
        The merged update (p, q).

    Source: Hölder's mean, for matrices Bhagwat & Subramanian 1978; here of the singular values of any matrix.

    Cost: that of `spectrum`.
    """
    order = setting.values["order"]
    largest = largest_norm(x)
    mean = whitened_mean(
        x / max(largest, torch.finfo(x.dtype).tiny), setting.weights, setting.values["whitening"], order
    )
    floor = max(FLOOR**order, _ROUND_OFF)
    return largest * triples(mean, 1.0, floor).matrix(1.0 / order)


def whitened_mean(x: Tensor, weights: Tensor, exponent: float, power: float = 1.0) -> Tensor:
    """Return the weighted mean of updates whose singular frames are made orthogonal in part.

    With the thin SVDs xₜ = Uₜ Sₜ Vₜᵀ up to their numerical ranks, U = [√w₁ U₁ … √w_T U_T], V likewise and S
    the diagonal of all Sₜ: U (UᵀU)^(-a/2) S (VᵀV)^(-a/2) Vᵀ, a the exponent. It depends on the weighted set
    of the updates alone: two copies of weights v and w count as one of weight v + w.

    Law: the weighted mean for a = 0; for a = 1 and equal weights what TSV-M makes of weights 1, where none of
    its ranks is cut; for any a, copies give themselves, and orthogonal updates give Σ wₜ^(1 − a) xₜ. Where
    singular values of a frame are below √eps of its largest, their directions are left out, if a > 0.

    Args:
        x: (T, p, q).
        weights: (T,), above zero, of sum 1.
        exponent: a, in [0, 1].
        power: To which each singular value of every update is raised first.

    Source: Gargiulo et al. 2025, Task singular vectors, arXiv 2412.00081.
    """
    shares = weights.to(x)
    if exponent == 0.0 and power == 1.0:
        return weighted_mean(shares, x)
    each = [triples(update, largest_norm(update)) for update in x]
    roots = shares.sqrt()
    left = torch.cat([root * svd.left for root, svd in zip(roots, each, strict=True)], dim=1)
    right = torch.cat([root * svd.right for root, svd in zip(roots, each, strict=True)], dim=1)
    values = torch.cat([svd.values**power for svd in each])
    return (whiten(left, exponent) * values) @ whiten(right, exponent).mT


def whiten(frame: Tensor, exponent: float) -> Tensor:
    """Return F (FᵀF)^(-a/2) of columns F (p, c), with the pseudo-inverse power; F itself for a = 0.

    Law: commutes with isometries on the left and orthogonal maps on the right; the polar factor for a = 1.
    """
    if exponent == 0.0 or not frame.shape[1]:
        return frame
    svd = thin_svd(frame)
    return svd.truncate(int(numerical_rank(svd.values, FLOOR))).matrix(1.0 - exponent)


def disagreement(x: Tensor, weights: Tensor) -> float:
    """Return Σ wₜ ‖xₜ − x̄‖² / Σ wₜ ‖xₜ‖²: the share of what the updates hold that their mean does not.

    Law: in [0, 1] for weights of sum 1; 0 for copies, 1 − Σ wₜ² for orthogonal ones of equal norms.
    """
    shares = weights.to(x)[:, None, None]
    whole = float((shares * x.square()).sum())
    if whole == 0.0:
        return 0.0
    return float((shares * (x - (shares * x).sum(dim=0)).square()).sum()) / whole


def triples(matrix: Tensor, largest: float, floor: float = FLOOR) -> SVD:
    """Return the SVD of a matrix, of singular values above `floor` times the size of what it comes from."""
    svd = thin_svd(matrix)
    return svd.truncate(int(numerical_rank(svd.values, floor, largest)))


def _expect_determined(values: Tensor, target: Tensor) -> None:
    """Refuse equal neighbours among singular values that are to be changed each in its own way."""
    if not len(values):
        return
    equal = values.diff().neg() <= _ROUND_OFF * values[0]
    differ = target.diff().neg() > _ROUND_OFF * target[0]
    if bool((equal & differ).any()):
        index = int((equal & differ).nonzero()[0])
        raise NumericalError(
            f"singular values {index + 1} and {index + 2} of the mean are equal "
            f"({float(values[index]):.6g}), those of the inputs are not: expected distinct ones, their "
            "singular vectors are arbitrary: use spectrum, or power 1"
        )
