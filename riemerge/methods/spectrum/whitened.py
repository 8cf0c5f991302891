"""Means by the spectrum: whitened singular frames, and powers of the singular values, in the joint span.

Each is written for K modules side by side, whose updates have the same ranks; a single module is K = 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.linalg import SVD, thin_svd
from riemerge.methods.setting import Setting
from riemerge.methods.singular.singular_vectors import (
    FLOOR,
    ROUND_OFF,
    first_of,
    values_of,
    weights_of,
    whitener,
)
from riemerge.updates.cores import Cores


def spectrum(x: Cores, setting: Setting) -> SVD:
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
        x: Updates (T, p, q), in bases of the joint span.
        setting: Weights and the values `whitening`, `power` and `adapt`.

    Returns:
        The merged update (p, q), decomposed.

    Source: Marczak et al. 2025, arXiv 2502.04959 (the flat end); Gargiulo et al. 2025, arXiv 2412.00081
        (whitening 1).

    Cost: one decomposition of each side, (p, p) and (q, q), and one SVD (p, q); linear in T.
    """
    return first_of(spectra(x.alone(), [setting]))


def spectra(x: Cores, settings: Sequence[Setting]) -> SVD:
    """Return `spectrum` of K modules side by side.

    Args:
        x: T updates of each of K modules.
        settings: K of them.

    Returns:
        The merged updates: left (K, p, k), values (K, k), right (K, q, k).
    """
    weights, power = weights_of(x, settings), values_of(settings, "power").to(x.norms)
    adapt = values_of(settings, "adapt")
    if bool(adapt.any()):
        share = torch.where(adapt.to(x.norms) > 0.0, disagreement(x, weights), 1.0)
        power = 1.0 - (1.0 - power) * share
    first = thin_svd(_white_mean(x, weights, values_of(settings, "whitening")))
    kept = first.values > FLOOR * x.norms.amax(dim=-1, keepdim=True)
    raised = torch.where(kept, first.values ** power[:, None], 0.0)
    size, norm = (_norm(torch.where(kept, part, 0.0)) for part in (raised, first.values))
    return first._replace(values=torch.where(size > 0.0, norm / size, 1.0) * raised)


def spectrum_matched(x: Cores, setting: Setting) -> SVD:
    """Return the mean of whitened singular frames, on the way to the mean spectrum of the updates.

    As `spectrum`, but the geodesic leads from the singular values of X₁ to those of the inputs: the k-th one
    becomes σₖ(X₁)^γ tₖ^(1 − γ), where tₖ is the root of the weighted mean square of the k-th singular values
    of the updates, and γ is `power`. At γ = 0 the result is, for `whitening` 0, the matrix nearest to the
    average among all with the spectrum t: the extrinsic mean on the orbit of that spectrum under both
    orthogonal groups. Below γ = 1 its rank is at most the largest of the updates.

    Law: f(L x Rᵀ) = L f(x) Rᵀ and f(c x) = c f(x); copies give themselves, at any parameters; with
    `whitening` 0 and `power` 1 it is the weighted average.

    Args:
        x: Updates (T, p, q), in bases of the joint span.
        setting: Weights and the values `whitening` and `power`.

    Returns:
        The merged update (p, q), decomposed.

    Raises:
        NumericalError: Two singular values of X₁ are equal where those of the inputs are not, so that their
            singular vectors are arbitrary; or at `power` 0 the updates cancel in X₁, so that it has none.

    Source: von Neumann 1937 (the nearest matrix of a given spectrum).

    Cost: that of `spectrum`.
    """
    return first_of(spectra_matched(x.alone(), [setting]))


def spectra_matched(x: Cores, settings: Sequence[Setting]) -> SVD:
    """Return `spectrum_matched` of K modules side by side.

    Args:
        x: T updates of each of K modules.
        settings: K of them.

    Returns:
        The merged updates: left (K, p, k), values (K, k), right (K, q, k).

    Raises:
        NumericalError: What `spectrum_matched` raises for any of them.
    """
    weights, power = weights_of(x, settings), values_of(settings, "power").to(x.norms)[:, None]
    first = thin_svd(_white_mean(x, weights, values_of(settings, "whitening")))
    floor = FLOOR * x.norms.amax(dim=-1, keepdim=True)
    kept = first.values > floor
    # A root of round-off would not be small.
    squares = x.spread(torch.where(x.svds.values > floor, x.svds.values, 0.0)).square()
    target = (weights[..., None] * squares).sum(dim=-2).sqrt()
    target = torch.nn.functional.pad(target, (0, kept.shape[-1] - target.shape[-1]))
    _expect_determined(first.values, target, kept & (power < 1.0))
    if 0.0 in values_of(settings, "power"):
        directions, there = kept.sum(dim=-1), (squares > 0.0).sum(dim=-1).amax(dim=-1)
        _expect_directions(directions[(power.squeeze(-1) == 0.0) & (directions < there)])
    return first._replace(values=torch.where(kept, first.values**power * target ** (1.0 - power), 0.0))


def power_mean(x: Cores, setting: Setting) -> SVD:
    """Return the power mean of order s: sharpen every spectrum, take the mean, and undo the sharpening.

    With f_s(U S Vᵀ) = U Sˢ Vᵀ the result is f_(1/s) of the whitened mean (`whitened_mean`) of the f_s(xₜ).
    What all updates share is kept whole, and what one alone holds with weight w is scaled by w^(1/s): for
    s = 1 the average, for s -> ∞ nothing is lost. So the spectrum of what is private is raised against what
    is shared, by the power 1/s, while that of a single update is never changed.

    Law: f(L x Rᵀ) = L f(x) Rᵀ and f(c x) = c f(x); copies give themselves; updates of mutually orthogonal
    rows and columns give Σ wₜ^((1 − a)/s) xₜ, a the `whitening`.

    A large order loses digits of small singular values: σ is right to eps^(1/s) of the largest.

    Args:
        x: Updates (T, p, q), in bases of the joint span.
        setting: Weights and the values `whitening` and `order`.

    Returns:
        The merged update (p, q), decomposed.

    Source: Hölder's mean, for matrices Bhagwat & Subramanian 1978; here of the singular values of any matrix.

    Cost: that of `spectrum`.
    """
    return first_of(power_means(x.alone(), [setting]))


def power_means(x: Cores, settings: Sequence[Setting]) -> SVD:
    """Return `power_mean` of K modules side by side.

    Args:
        x: T updates of each of K modules.
        settings: K of them.

    Returns:
        The merged updates: left (K, p, k), values (K, k), right (K, q, k).
    """
    order = values_of(settings, "order").to(x.norms)[:, None]
    largest = x.norms.amax(dim=-1, keepdim=True)
    sharp = (x.svds.values / largest.clamp_min(torch.finfo(torch.float64).tiny)) ** order
    first = thin_svd(_white_mean(x, weights_of(x, settings), values_of(settings, "whitening"), sharp))
    kept = first.values > (FLOOR**order).clamp_min(ROUND_OFF)
    return first._replace(values=largest * torch.where(kept, first.values ** (1.0 / order), 0.0))


def whitened_mean(x: Cores, weights: Tensor, exponent: float) -> Tensor:
    """Return the weighted mean of updates whose singular frames are made orthogonal in part.

    With the thin SVDs xₜ = Uₜ Sₜ Vₜᵀ up to their numerical ranks, U = [√w₁ U₁ … √w_T U_T], V likewise and S
    the diagonal of all Sₜ: U (UᵀU)^(-a/2) S (VᵀV)^(-a/2) Vᵀ, a the exponent. That is A x̄ B with
    A = (U Uᵀ)^(-a/2) and B = (V Vᵀ)^(-a/2), matrices of the size of one update, however many there are. It
    depends on the weighted set of the updates alone: two copies of weights v and w count as one of v + w.

    Law: the weighted mean for a = 0; for a = 1 and equal weights what TSV-M makes of weights 1, where none of
    its ranks is cut; for any a, copies give themselves, and orthogonal updates give Σ wₜ^(1 − a) xₜ. Where
    singular values of a frame are below √eps of its largest, their directions are left out, if a > 0.

    Args:
        x: Updates (T, p, q).
        weights: (T,), above zero, of sum 1.
        exponent: a, in [0, 1].

    Source: Gargiulo et al. 2025, Task singular vectors, arXiv 2412.00081.
    """
    exponents = torch.tensor([exponent], dtype=torch.float64)
    return _white_mean(x.alone(), weights.to(x.norms)[None], exponents)[0]


def disagreement(x: Cores, weights: Tensor) -> Tensor:
    """Return Σ wₜ ‖xₜ − x̄‖² / Σ wₜ ‖xₜ‖²: the share of what the updates hold that their mean does not.

    Law: in [0, 1] for weights of sum 1, right to round-off of 1; 0 for copies and for updates of zero,
    1 − Σ wₜ² for orthogonal ones of equal norms.

    Args:
        x: Updates (..., T, p, q).
        weights: (..., T), of sum 1.

    Returns:
        Numbers (...).
    """
    shares = weights.to(x.norms)
    whole = (shares * x.norms.square()).sum(dim=-1)
    mean = x.combine(shares).square().sum(dim=(-2, -1))
    # Of weights of sum 1 the squares of the differences are the difference of the squares.
    return torch.where(whole > 0.0, 1.0 - mean / torch.where(whole > 0.0, whole, 1.0), 0.0).clamp(0.0, 1.0)


def _white_mean(x: Cores, weights: Tensor, exponents: Tensor, values: Tensor | None = None) -> Tensor:
    """Return `whitened_mean` of K modules, (K, p, q).

    Args:
        x: T updates of each of K modules.
        weights: (K, T).
        exponents: (K,), on the CPU.
        values: What stands for the singular values, (K, R).
    """
    sigma = x.svds.values
    counted = sigma > FLOOR * x.each(x.norms)
    if values is None:
        # Without whitening it is the mean of the updates as they are.
        counted, values = counted | (exponents == 0.0).to(sigma.device)[:, None], sigma
    mean = x.combine(weights, torch.where(counted, values, 0.0))
    if not bool(exponents.any()):
        return mean
    roots = torch.where(counted, x.each(weights), 0.0).sqrt().unsqueeze(-2)
    left, right = (whitener(side * roots, exponents) for side in (x.svds.left, x.svds.right))
    return left @ mean @ right


def _norm(values: Tensor) -> Tensor:
    """Return the norms (K, 1) of singular values (K, k)."""
    norms: Tensor = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    return norms


def _expect_directions(left: Tensor) -> None:
    """Refuse means that have fewer directions than the updates; their numbers are given."""
    if len(left):
        raise NumericalError(
            f"the updates cancel: their mean has {int(left[0])} directions left, and at power 0 each "
            "one of theirs has its full size there: use power above 0, or average"
        )


def _expect_determined(values: Tensor, target: Tensor, kept: Tensor) -> None:
    """Refuse equal neighbours among singular values that are to be changed each in its own way.

    Args:
        values: Singular values of K means (K, k), descending.
        target: Singular values of the inputs (K, k).
        kept: Whether each counts, (K, k).
    """
    equal = values.diff().neg() <= ROUND_OFF * values[:, :1]
    differ = target.diff().neg() > ROUND_OFF * target[:, :1]
    arbitrary = equal & differ & kept[:, 1:]
    if bool(arbitrary.any()):
        module, index = arbitrary.nonzero()[0].tolist()
        raise NumericalError(
            f"singular values {index + 1} and {index + 2} of the mean are equal "
            f"({float(values[module, index]):.6g}), those of the inputs are not: expected distinct ones, "
            "their singular vectors are arbitrary: use spectrum, or power 1"
        )
