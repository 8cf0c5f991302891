"""Core Space: the updates in reference bases of both of their joint spaces, merged there entry by entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from riemerge.linalg import thin_svd
from riemerge.methods.setting import Setting, Stream
from riemerge.methods.singular.knots import dropped_ties, trimmed_ties, vote_in
from riemerge.methods.singular.singular_vectors import FLOOR, count_axes


class Core(NamedTuple):
    """T updates of one module in reference bases: xₜ = left · coresₜ · rightᵀ.

    Attributes:
        left: (p, a), orthonormal columns.
        cores: (T, a, b).
        right: (q, b), orthonormal columns.
    """

    left: Tensor
    cores: Tensor
    right: Tensor


def core(x: Tensor) -> Core:
    """Return the updates in the singular vectors of all their balanced factors together.

    With the thin SVDs xₜ = Uₜ Sₜ Vₜᵀ, the left basis is that of the left singular vectors of
    [U₁√S₁ … U_T√S_T], and the right one that of [V₁√S₁ … V_T√S_T]: the published reference bases for factors
    B = U√S, A = √S Vᵀ. For any other factors of the same updates theirs are others; these are functions of
    the updates.

    So a merge entry by entry of the cores (`core_ties`, `core_dare_ties`) is TIES or DARE in the principal
    axes of Σ |dWₜᵀ| and of Σ |dWₜ|: a gauge that the data fix up to the sign of each axis, which neither
    magnitudes nor elections see. In the coordinates of the weights TIES moves when these are turned; here it
    moves with them.

    Law: left · cores · rightᵀ gives the updates back; L x Rᵀ has the bases L · left and R · right and the
    same cores, but for the sign of each basis vector. Singular values of an update below √eps of the largest
    count as zero, and so do those of the factors together; at least one basis vector is kept.

    Args:
        x: Updates (T, p, q), in float64.

    Raises:
        NumericalError: Two singular values of a side are equal, so that their basis vectors are arbitrary.

    Source: Panariello et al. 2025, Accurate and efficient low-rank model merging in core space, arXiv
        2509.17786.

    Cost: T SVDs (p, q), one (p, T min(p, q)) and one (q, T min(p, q)).
    """
    svd = thin_svd(x)
    # Singular vectors of zero are arbitrary, and the root of their round-off would not be small.
    root = torch.where(svd.values > FLOOR * svd.values.amax(), svd.values, 0.0).sqrt()[:, None]
    left, right = _basis(svd.left * root), _basis(svd.right * root)
    return Core(left, left.mT @ x @ right, right)


def core_ties(x: Tensor, setting: Setting) -> Tensor:
    """Return the TIES merge of the cores, trimmed over all modules together.

    As `riemerge.methods.singular.knots.knots_ties`, with the cores for the aligned blocks.

    Law: f(L x Rᵀ) = L f(x) Rᵀ; copies give themselves at density 1 and merge_func `mean`.

    Args:
        x: Updates (T, p, q), in bases of the joint span, in float64.
        setting: Weights, the values `density` and `merge_func`, and the facts of `survey`.

    Returns:
        The merged update (p, q).

    Raises:
        NumericalError: See `core`.

    Source: Panariello et al. 2025, arXiv 2509.17786, with TIES.
    """
    left, cores, right = core(x)
    return left @ trimmed_ties(cores, setting) @ right.mT


def core_dare_ties(x: Tensor, setting: Setting) -> Tensor:
    """Return the DARE-TIES merge of the cores: entries dropped at random, then signs elected.

    As `riemerge.methods.singular.knots.knots_dare_ties`, with the cores for the aligned blocks.

    Law: f(L x Rᵀ) = L f(x) Rᵀ for the same seeds.

    Args:
        x: Updates (T, p, q), in bases of the joint span, in float64.
        setting: Weights, seeds, and the values `density` and `merge_func`.

    Returns:
        The merged update (p, q).

    Raises:
        NumericalError: See `core`.

    Source: Panariello et al. 2025, arXiv 2509.17786, with DARE-TIES.
    """
    left, cores, right = core(x)
    return left @ dropped_ties(cores, setting) @ right.mT


def survey(stream: Stream) -> Mapping[str, Any]:
    """Find each model's threshold over the cores of all modules, for `core_ties`."""
    return vote_in(lambda x: core(x).cores, stream)


def _basis(factors: Tensor) -> Tensor:
    """Return the left singular vectors (p, a) of T factors (T, p, r) side by side."""
    svd = thin_svd(torch.cat(list(factors), dim=1))
    return svd.left[:, : count_axes(svd.values)]
