"""Merges by singular vectors, in the joint span of the updates: task singular vectors, flat spectra, CART."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.linalg import numerical_rank, thin_svd
from riemerge.methods.setting import Setting

# Below √eps a direction has lost half of its digits: it counts as none.
FLOOR = torch.finfo(torch.float64).eps ** 0.5


def tsv(x: Tensor, setting: Setting) -> Tensor:
    """Return Σₜ wₜ Ûₜ Σₜ V̂ₜᵀ: the leading singular vectors of each update, made orthogonal across updates.

    Each update keeps k = ⌊min(m, n)/T⌋ singular triples, and fewer where its numerical rank is lower (the
    published code fills up with singular vectors of zero, which are arbitrary and still turn the others). All
    left vectors together are replaced by their polar factor, all right ones by theirs. The weights are as
    given, so that ones are the published sum: the same as scaling each update first, for either sign.

    Law: f(L x Rᵀ) = L f(x) Rᵀ. Orthogonal updates are summed as they are; T copies of weights 1 give one of
    them, cut to rank k. Where the vectors of two updates are linearly dependent (singular values of all
    together below √eps), the polar factor is the partial isometry of the others; it jumps there, so vectors
    that agree to many digits, but not to eight, make a result of their small differences.

    Args:
        x: Updates (T, p, q), in bases of the joint span, in float64.
        setting: Weights and the shape of the module.

    Returns:
        The merged update (p, q).

    Raises:
        NumericalError: There are more models than min(m, n), or the kth singular value equals the next.

    Source: Gargiulo et al. 2025, Task singular vectors, arXiv 2412.00081 (TSV-M).

    Cost: T SVDs (p, q), one (p, c) and one (q, c) with c <= Σ rₜ columns.
    """
    shape = setting.shape
    most = min(shape) // len(x)
    if not most:
        raise NumericalError(
            f"{len(x)} models share the {min(shape)} singular vectors of the module's shape {shape}: "
            "expected at least one for each: merge fewer models, or use another method"
        )
    svd = thin_svd(x)
    kept = [leading(values, most, float(values[0])) for values in svd.values]
    left, right = (polar(torch.cat(narrow_each(side, kept), dim=1)) for side in (svd.left, svd.right))
    scaled = setting.weights.to(x)[:, None] * svd.values
    spectrum = torch.cat([values[:k] for values, k in zip(scaled, kept, strict=True)])
    return (left * spectrum) @ right.mT


def iso_c(x: Tensor, setting: Setting) -> Tensor:
    """Return the weighted sum with all of its singular values replaced by their mean.

    The mean is over the D directions of the joint span; the published code divides by min(m, n) in full
    space, so its scale is min(m, n)/D of ours. (There it is defined for sums of full rank only: for others
    it fills up with arbitrary singular vectors of zero.)

    Law: f(L x Rᵀ) = L f(x) Rᵀ; the nuclear norm is that of the sum; f(c x) = c f(x). Of weights as given, so
    that ones are the published sum.

    Args:
        x: Updates (T, p, q), in bases of the joint span, in float64.
        setting: Weights.

    Returns:
        The merged update (p, q).

    Raises:
        NumericalError: The sum has a lower rank than the joint span: directions cancel, and the singular
            vectors that would get the mean there are arbitrary.

    Source: Marczak et al. 2025, No task left behind, arXiv 2502.04959 (Iso-C).

    Cost: one SVD (p, q).
    """
    moved = _weigh(x, setting)
    largest = largest_norm(moved)
    svd = thin_svd(moved.sum(dim=0))
    rank = _rank(svd.values, largest)
    _expect_rank(rank, _directions(moved, largest, rank))
    kept = svd.truncate(rank)
    return (kept.values.sum() / max(rank, 1)) * (kept.left @ kept.right.mT)


def iso_cts(x: Tensor, setting: Setting) -> Tensor:
    """Return a flat spectrum over the leading directions of the sum and the leading others of each update.

    Of the D directions of the joint span, s ≈ `common_space_fraction` · D go to the leading singular vectors
    of the weighted sum, and (D - s)/T to each update: the leading ones of what is left of it outside those s
    left vectors. All left vectors are replaced by their polar factor, all right ones by theirs, all singular
    values by their mean. As in `iso_c`, D stands where the published code has min(m, n).

    Law: f(L x Rᵀ) = L f(x) Rᵀ; with `common_space_fraction` 1 it is `iso_c`. Dependent vectors of several
    updates are treated as in `tsv`.

    Args:
        x: Updates (T, p, q), in bases of the joint span, in float64.
        setting: Weights and the value `common_space_fraction`.

    Returns:
        The merged update (p, q).

    Raises:
        NumericalError: The sum has a rank below s, what is left of an update one below (D - s)/T, there are
            too many models for D, or the singular values on both sides of a cut are equal.

    Source: Marczak et al. 2025, No task left behind, arXiv 2502.04959 (Iso-CTS).

    Cost: T + 1 SVDs (p, q), one (p, D) and one (q, D).
    """
    moved = _weigh(x, setting)
    largest = largest_norm(moved)
    whole = thin_svd(moved.sum(dim=0))
    size = _directions(moved, largest, _rank(whole.values, largest))
    common, private = _shares(size, len(x), setting.values["common_space_fraction"])
    _expect_rank(leading(whole.values, common, largest), common)
    shared = whole.truncate(common)
    others = thin_svd(moved - shared.left @ (shared.left.mT @ moved)).truncate(private)
    for values in others.values:
        if leading(values, private, largest) < private:
            raise NumericalError(
                f"outside of the {common} common directions an update has fewer than {private} of its own, "
                "which it should give: raise common_space_fraction, or use iso_c"
            )
    left = torch.cat([shared.left, *others.left], dim=1)
    right = torch.cat([shared.right, *others.right], dim=1)
    total = shared.values.sum() + others.values.sum()
    return (total / max(size, 1)) * (polar(left) @ polar(right).mT)


def cart(x: Tensor, setting: Setting) -> Tensor:
    """Return the mean plus the low-rank parts of what each update differs from it: x̄ + λ Σₜ SVD_k(xₜ - x̄).

    k is `rank_fraction` of the D directions of the joint span, rounded down but at least 1 (for full
    checkpoints D = min(m, n), as published); λ is `deviation_scale`. Weights enter the mean, and the sum as
    T wₜ, so that equal ones are as published.

    Law: f(L x Rᵀ) = L f(x) Rᵀ; copies give themselves; with λ = 0 it is the mean.

    Args:
        x: Updates (T, p, q), in bases of the joint span, in float64.
        setting: Weights and the values `rank_fraction` and `deviation_scale`.

    Returns:
        The merged update (p, q).

    Raises:
        NumericalError: The singular values on both sides of the cut are equal.

    Source: Choi et al. 2024, Revisiting weight averaging for model merging, arXiv 2412.12153 (CART).

    Cost: T SVDs (p, q).
    """
    mean = _weigh(x, setting).sum(dim=0)
    largest = largest_norm(x)
    svd = thin_svd(x - mean)
    size = _directions(x, largest, int(numerical_rank(svd.values, FLOOR, largest).max()))
    k = max(1, int(size * setting.values["rank_fraction"]))
    for values in svd.values:
        leading(values, k, largest)
    shares = setting.values["deviation_scale"] * len(x) * setting.weights.to(x)
    kept = svd.truncate(k)
    return mean + kept._replace(values=shares[:, None] * kept.values).matrix().sum(dim=0)


def polar(frame: Tensor) -> Tensor:
    """Return the orthogonal factor of unit columns (p, c): the partial isometry nearest to their span.

    Law: U Vᵀ over the singular values above √eps. It has the range of the columns, is (frame · frameᵀ)^(-1/2)
    frame with the pseudo-inverse root, and commutes with isometries on the left and orthogonal maps on the
    right.
    """
    svd = thin_svd(frame)
    kept = svd.truncate(_rank(svd.values, 1.0))
    return kept.left @ kept.right.mT


def narrow_each(frames: Iterable[Tensor], ranks: Sequence[int]) -> list[Tensor]:
    """Return the leading columns of T frames (p, r), so many of each as its rank says."""
    return [frame[:, :rank] for frame, rank in zip(frames, ranks, strict=True)]


def leading(sigma: Tensor, k: int, largest: float) -> int:
    """Return min(k, numerical rank), if the singular vectors up to there are determined.

    Raises:
        NumericalError: The kth singular value equals the next to round-off, so what to keep is arbitrary.
    """
    rank = _rank(sigma, largest)
    if 0 < k < rank:
        _expect_distinct(sigma[k - 1 : k + 1], k, largest)
    return min(k, rank)


def mean_rank(setting: Setting, ranks: Sequence[int]) -> int:
    """Return the rank of a mean that has one itself: as `rank` says, or the largest of the updates' ranks."""
    asked = setting.values.get("rank")
    if isinstance(asked, str):
        return sum(ranks)
    return asked or max(ranks)


def count_axes(sigma: Tensor) -> int:
    """Return the numerical rank, at least 1, if each of its singular vectors is determined up to its sign.

    Raises:
        NumericalError: Two of the singular values are equal to round-off.
    """
    largest = float(sigma[0])
    rank = _rank(sigma, largest)
    _expect_distinct(sigma[:rank], 1, largest)
    return max(rank, 1)


def largest_norm(x: Tensor) -> float:
    """Return the largest Frobenius norm of T matrices: what round-off and cancellation are judged against."""
    return float(torch.linalg.matrix_norm(x).max())


def _rank(sigma: Tensor, largest: float) -> int:
    """Return how many singular values stand above √eps of the size of what they come from."""
    return int(numerical_rank(sigma, FLOOR, largest))


def _expect_distinct(sigma: Tensor, first: int, largest: float) -> None:
    """Refuse equal neighbours among singular values, the first of which has the number `first`."""
    # LAPACK's singular values are right to a few eps of the largest: nearer ones cannot be told apart.
    equal = sigma.diff().neg() <= 100.0 * torch.finfo(sigma.dtype).eps * largest
    if bool(equal.any()):
        index = int(equal.nonzero()[0])
        raise NumericalError(
            f"singular values {first + index} and {first + index + 1} are equal ({float(sigma[index]):.6g}): "
            "expected distinct ones, the method uses single singular vectors and theirs are arbitrary: use a "
            "method that does not, such as task_arithmetic"
        )


def _weigh(x: Tensor, setting: Setting) -> Tensor:
    return setting.weights.to(x)[:, None, None] * x


def _directions(x: Tensor, largest: float, seen: int) -> int:
    """Return the lesser dimension of the joint column and row spaces; some matrix in them has rank `seen`."""
    if seen == min(x.shape[1:]):
        return seen
    columns = torch.linalg.svdvals(torch.cat(list(x), dim=1))
    rows = torch.linalg.svdvals(torch.cat(list(x), dim=0))
    return min(_rank(columns, largest), _rank(rows, largest))


def _shares(size: int, models: int, fraction: float) -> tuple[int, int]:
    """Return how many directions are common, and how many each model has for itself."""
    private = round((size - int(size * fraction)) / models)
    common = size - models * private
    if common < 0:
        raise NumericalError(
            f"{models} models share {size} directions, too few to give each one of its own: "
            "raise common_space_fraction, or merge fewer models"
        )
    return common, private


def _expect_rank(rank: int, expected: int) -> None:
    if rank < expected:
        raise NumericalError(
            f"the weighted sum has numerical rank {rank}, expected {expected} of the directions of its "
            "inputs: some cancel, or are equal but for round-off, and a flat spectrum there is arbitrary: "
            "change the weights, or use average"
        )
