"""Merges by singular vectors, in the joint span of the updates: task singular vectors, flat spectra, CART."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.linalg import SVD, eye_like, left_singular, numerical_rank, thin_svd
from riemerge.methods.setting import Setting
from riemerge.updates.cores import Cores

_EPS = torch.finfo(torch.float64).eps

# Below √eps a direction has lost half of its digits: it counts as none.
FLOOR = _EPS**0.5

# LAPACK's singular values are right to a few eps of the largest: nearer ones cannot be told apart.
ROUND_OFF = 100.0 * _EPS

# Eigenvalues of a Gram matrix above this share of the largest have lost three digits at most.
_WELL_CONDITIONED = 1e-3


def tsv(x: Cores, setting: Setting) -> Tensor:
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
        x: Updates (T, p, q), in bases of the joint span.
        setting: Weights and the shape of the module.

    Returns:
        The merged update (p, q).

    Raises:
        NumericalError: There are more models than min(m, n), or the kth singular value equals the next.

    Source: Gargiulo et al. 2025, Task singular vectors, arXiv 2412.00081 (TSV-M).

    Cost: one decomposition of each side, (p, p) and (q, q); linear in T.
    """
    return task_vectors(x.alone(), [setting])[0]


def task_vectors(x: Cores, settings: Sequence[Setting]) -> Tensor:
    """Return `tsv` of K modules of one shape side by side.

    Args:
        x: T updates of each of K modules.
        settings: K of them.

    Returns:
        The merged updates (K, p, q).

    Raises:
        NumericalError: What `tsv` raises for any of them.
    """
    shape = settings[0].shape
    most = min(shape) // x.count
    if not most:
        raise NumericalError(
            f"{x.count} models share the {min(shape)} singular vectors of the module's shape {shape}: "
            "expected at least one for each: merge fewer models, or use another method"
        )
    leading_each(x.spread(x.svds.values).flatten(end_dim=1), most)
    first = x.spread(x.svds.values)[..., 0]
    kept = (x.places < most) & (x.svds.values > FLOOR * x.each(first))
    mean = x.combine(weights_of(x, settings), x.svds.values * kept)
    left, right = (polar_whitener(side * kept.unsqueeze(-2)) for side in (x.svds.left, x.svds.right))
    return left @ mean @ right


def iso_c(x: Cores, setting: Setting) -> SVD:
    """Return the weighted sum with all of its singular values replaced by their mean.

    The mean is over the D directions of the joint span; the published code divides by min(m, n) in full
    space, so its scale is min(m, n)/D of ours. (There it is defined for sums of full rank only: for others
    it fills up with arbitrary singular vectors of zero.)

    Law: f(L x Rᵀ) = L f(x) Rᵀ; the nuclear norm is that of the sum; f(c x) = c f(x). Of weights as given, so
    that ones are the published sum.

    Args:
        x: Updates (T, p, q), in bases of the joint span.
        setting: Weights.

    Returns:
        The merged update (p, q), decomposed.

    Raises:
        NumericalError: The sum has a lower rank than the joint span: directions cancel, and the singular
            vectors that would get the mean there are arbitrary.

    Source: Marczak et al. 2025, No task left behind, arXiv 2502.04959 (Iso-C).

    Cost: one SVD (p, q).
    """
    return first_of(flat_spectra(x.alone(), [setting]))


def flat_spectra(x: Cores, settings: Sequence[Setting]) -> SVD:
    """Return `iso_c` of K modules side by side.

    Args:
        x: T updates of each of K modules.
        settings: K of them.

    Returns:
        The merged updates: left (K, p, k), values (K, k), right (K, q, k).

    Raises:
        NumericalError: What `iso_c` raises for any of them.
    """
    weights = weights_of(x, settings)
    largest = (weights.abs() * x.norms).amax(dim=-1, keepdim=True)
    svd = thin_svd(x.combine(weights))
    kept = svd.values > FLOOR * largest
    ranks = kept.sum(dim=-1)
    if bool((ranks < min(x.shape)).any()):
        for rank, expected in zip(ranks.tolist(), _directions(x, weights, largest).tolist(), strict=True):
            _expect_rank(rank, expected)
    mean = (svd.values * kept).sum(dim=-1) / ranks.clamp_min(1)
    return svd._replace(values=kept * mean.unsqueeze(-1))


def iso_cts(x: Cores, setting: Setting) -> Tensor:
    """Return a flat spectrum over the leading directions of the sum and the leading others of each update.

    Of the D directions of the joint span, s ≈ `common_space_fraction` · D go to the leading singular vectors
    of the weighted sum, and (D - s)/T to each update: the leading ones of what is left of it outside those s
    left vectors. All left vectors are replaced by their polar factor, all right ones by theirs, all singular
    values by their mean. As in `iso_c`, D stands where the published code has min(m, n).

    Law: f(L x Rᵀ) = L f(x) Rᵀ; with `common_space_fraction` 1 it is `iso_c`. Dependent vectors of several
    updates are treated as in `tsv`.

    Args:
        x: Updates (T, p, q), in bases of the joint span.
        setting: Weights and the value `common_space_fraction`.

    Returns:
        The merged update (p, q).

    Raises:
        NumericalError: The sum has a rank below s, what is left of an update one below (D - s)/T, there are
            too many models for D, or the singular values on both sides of a cut are equal.

    Source: Marczak et al. 2025, No task left behind, arXiv 2502.04959 (Iso-CTS).

    Cost: an SVD (p, q) and one decomposition of each side, (p, p) and (q, q); linear in T.
    """
    weights = setting.weights.to(x.norms)
    largest = (weights.abs() * x.norms).max()
    whole = thin_svd(x.combine(weights))
    size = int(_directions(x, weights, largest))
    common, private = _shares(size, x.count, setting.values["common_space_fraction"])
    _expect_rank(leading(whole.values, common, float(largest)), common)
    shared = whole.truncate(common)
    columns = x.svds.left * (x.each(weights) * x.svds.values)
    others = Cores.of_factors(columns - shared.left @ (shared.left.mT @ columns), x.svds.right, x.ranks)
    if min(leading_each(others.spread(others.svds.values), private, largest)) < private:
        raise NumericalError(
            f"outside of the {common} common directions an update has fewer than {private} of its own, "
            "which it should give: raise common_space_fraction, or use iso_c"
        )
    own = others.narrow([private] * x.count).svds
    left, right = torch.cat([shared.left, own.left], dim=1), torch.cat([shared.right, own.right], dim=1)
    total = shared.values.sum() + own.values.sum()
    columns, rows = (polar_whitener(side.unsqueeze(0))[0] for side in (left, right))
    return (total / max(size, 1)) * (columns @ (left @ right.mT) @ rows)


def cart(x: Cores, setting: Setting) -> Tensor:
    """Return the mean plus the low-rank parts of what each update differs from it: x̄ + λ Σₜ SVD_k(xₜ - x̄).

    k is `rank_fraction` of the D directions of the joint span, rounded down but at least 1 (for full
    checkpoints D = min(m, n), as published); λ is `deviation_scale`. Weights enter the mean, and the sum as
    T wₜ, so that equal ones are as published.

    Law: f(L x Rᵀ) = L f(x) Rᵀ; copies give themselves; with λ = 0 it is the mean.

    Args:
        x: Updates (T, p, q), in bases of the joint span.
        setting: Weights and the values `rank_fraction` and `deviation_scale`.

    Returns:
        The merged update (p, q).

    Raises:
        NumericalError: The singular values on both sides of the cut are equal.

    Source: Choi et al. 2024, Revisiting weight averaging for model merging, arXiv 2412.12153 (CART).

    Cost: T eigendecompositions (p, p), or SVDs (p, q), one after the other.
    """
    weights = setting.weights.to(x.norms)
    mean, largest = x.combine(weights), float(x.norms.max())
    size = int(_directions(x, torch.ones_like(weights), largest))
    k = max(1, int(size * setting.values["rank_fraction"]))
    total = mean.clone()
    for update, weight in zip(x.one_by_one(), weights, strict=True):
        moved = update - mean
        frame = _leading_frame(moved, k, largest)
        total += setting.values["deviation_scale"] * x.count * weight * (frame @ (frame.mT @ moved))
    return total


def _leading_frame(matrix: Tensor, k: int, largest: float) -> Tensor:
    """Return the k leading left singular vectors of a matrix (p, q), whose singular values differ from the
    next: by the eigenvectors of its Gram matrix, where k of them lose two digits at most.
    """
    squares, vectors = torch.linalg.eigh(matrix @ matrix.mT)
    values, vectors = squares.clamp_min(0.0).sqrt().flip(0), vectors.flip(1)
    if k > len(values) or values[k - 1] <= 0.01 * values[0]:
        vectors, values = left_singular(matrix)
    leading(values, k, largest)
    frame: Tensor = vectors[:, :k]
    return frame


def whitener(frame: Tensor, exponents: Tensor, largest: float | None = None) -> Tensor:
    """Return (F Fᵀ)^(-a/2) (K, p, p) of columns F (K, p, c): the pseudo-inverse power; 1 for a = 0.

    Law: this times F is F (FᵀF)^(-a/2), the polar factor of F for a = 1; it commutes with isometries on the
    left, and does not change when F is turned on the right. Singular values of F below √eps count as zero.
    By the eigenvectors of F Fᵀ, where that loses three digits at most; of other frames by their singular
    vectors.

    Args:
        frame: (K, p, c).
        exponents: K of them, on the CPU.
        largest: Size that singular values are relative to; the largest of each frame if there is none.
    """
    powers = exponents.to(frame)[:, None]
    if frame.shape[-1] < frame.shape[-2]:
        return _whitener_by_frame(frame, powers, largest)
    squares, vectors = torch.linalg.eigh(frame @ frame.mT)
    doubtful = squares[:, 0] <= _WELL_CONDITIONED * squares[:, -1]
    raised = torch.where(doubtful[:, None], 1.0, squares).pow(-powers / 2.0)
    found: Tensor = (vectors * raised.unsqueeze(-2)) @ vectors.mT
    if bool(doubtful.any()):
        found[doubtful] = _whitener_by_frame(frame[doubtful], powers[doubtful], largest)
    return found


def _whitener_by_frame(frame: Tensor, powers: Tensor, largest: float | None) -> Tensor:
    """Return `whitener` by the singular vectors of frames, the exponents (K, 1) where the frames are."""
    vectors, sizes = left_singular(frame)
    kept = sizes > FLOOR * (sizes[:, :1] if largest is None else largest)
    raised = torch.where(kept, sizes, 1.0).pow(-powers) * kept
    found = (vectors * raised.unsqueeze(-2)) @ vectors.mT
    return torch.where(powers.unsqueeze(-1) == 0.0, eye_like(found), found)


def first_of(svds: SVD) -> SVD:
    """Return the decomposition of the first of K modules."""
    return SVD(*(part[0] for part in svds))


def polar_whitener(frame: Tensor) -> Tensor:
    """Return what makes the orthogonal factor of unit columns (K, p, c), times them: (K, p, p).

    Law: that factor is the partial isometry nearest to the span of the columns, U Vᵀ over the singular values
    above √eps. It has the range of the columns, is (F Fᵀ)^(-1/2) F with the pseudo-inverse root, and commutes
    with isometries on the left and orthogonal maps on the right.
    """
    return whitener(frame, torch.ones(len(frame), dtype=torch.float64), 1.0)


def weights_of(x: Cores, settings: Sequence[Setting]) -> Tensor:
    """Return the weights of K modules, (K, T), where the updates are."""
    return torch.stack([setting.weights for setting in settings]).to(x.norms)


def values_of(settings: Sequence[Setting], name: str) -> Tensor:
    """Return a parameter of K modules, (K,), on the CPU."""
    return torch.tensor([float(setting.values[name]) for setting in settings], dtype=torch.float64)


def leading(sigma: Tensor, k: int, largest: float) -> int:
    """Return min(k, numerical rank), if the singular vectors up to there are determined.

    Raises:
        NumericalError: The kth singular value equals the next to round-off, so what to keep is arbitrary.
    """
    rank = _rank(sigma, largest)
    if 0 < k < rank:
        _expect_distinct(sigma[k - 1 : k + 1], k, largest)
    return min(k, rank)


def leading_each(sigma: Tensor, k: int, largest: Tensor | None = None) -> list[int]:
    """Return `leading` of T spectra (T, r), relative to one size or to the largest value of each.

    Raises:
        NumericalError: What `leading` raises for any of them.
    """
    unit = sigma[:, :1] if largest is None else largest.expand(len(sigma), 1)
    ranks = (sigma > FLOOR * unit).sum(dim=-1)
    if 0 < k < sigma.shape[-1]:
        equal = (ranks > k) & (sigma[:, k - 1] - sigma[:, k] <= ROUND_OFF * unit.squeeze(-1))
        if bool(equal.any()):
            place = int(equal.nonzero()[0])
            _expect_distinct(sigma[place, k - 1 : k + 1], k, float(unit[place]))
    kept: list[int] = ranks.clamp_max(k).tolist()
    return kept


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


def _rank(sigma: Tensor, largest: float) -> int:
    """Return how many singular values stand above √eps of the size of what they come from."""
    return int(numerical_rank(sigma, FLOOR, largest))


def _expect_distinct(sigma: Tensor, first: int, largest: float) -> None:
    """Refuse equal neighbours among singular values, the first of which has the number `first`."""
    equal = sigma.diff().neg() <= ROUND_OFF * largest
    if bool(equal.any()):
        index = int(equal.nonzero()[0])
        raise NumericalError(
            f"singular values {first + index} and {first + index + 1} are equal ({float(sigma[index]):.6g}): "
            "expected distinct ones, the method uses single singular vectors and theirs are arbitrary: use a "
            "method that does not, such as task_arithmetic"
        )


def _directions(x: Cores, weights: Tensor, largest: Tensor | float) -> Tensor:
    """Return the lesser dimension of the joint column and row spaces of the wₜ xₜ, (...).

    Args:
        x: Updates (..., T, p, q).
        weights: (..., T).
        largest: Size (..., 1) that singular values are relative to.
    """
    sizes = (x.each(weights) * x.svds.values).unsqueeze(-2)
    sides = (left_singular(side * sizes)[1] for side in (x.svds.left, x.svds.right))
    columns, rows = ((sigma > FLOOR * largest).sum(dim=-1) for sigma in sides)
    return torch.minimum(columns, rows)


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
