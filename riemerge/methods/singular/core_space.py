"""Core Space: the updates in reference bases of both of their joint spaces, merged there entry by entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from riemerge.linalg import left_singular
from riemerge.methods.setting import Setting, Stream
from riemerge.methods.singular.knots import dropped_ties, trimmed_ties, vote_in
from riemerge.methods.singular.singular_vectors import FLOOR, count_axes
from riemerge.updates.cores import Cores


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


def core(x: Cores) -> Core:
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
        x: Updates (T, p, q).

    Raises:
        NumericalError: Two singular values of a side are equal, so that their basis vectors are arbitrary.

    Source: Panariello et al. 2025, Accurate and efficient low-rank model merging in core space, arXiv
        2509.17786.

    Cost: one decomposition of each side, (p, p) and (q, q), and the stack of T cores.
    """
    svds = x.svds
    # Singular vectors of zero are arbitrary, and the root of their round-off would not be small.
    root = torch.where(svds.values > FLOOR * svds.values.max(), svds.values, 0.0).sqrt()
    left, right = _basis(svds.left * root), _basis(svds.right * root)
    return Core(left, x.within(left, right), right)


def core_ties(x: Cores, setting: Setting) -> Tensor:
    """Return the TIES merge of the cores, trimmed over all modules together.

    As `riemerge.methods.singular.knots.knots_ties`, with the cores for the aligned blocks.

    Law: f(L x Rᵀ) = L f(x) Rᵀ; copies give themselves at density 1 and merge_func `mean`.

    Args:
        x: Updates (T, p, q), in bases of the joint span.
        setting: Weights, the values `density` and `merge_func`, and the facts of `survey`.

    Returns:
        The merged update (p, q).

    Raises:
        NumericalError: See `core`.

    Source: Panariello et al. 2025, arXiv 2509.17786, with TIES.
    """
    left, cores, right = core(x)
    return left @ trimmed_ties(cores, setting) @ right.mT


def core_dare_ties(x: Cores, setting: Setting) -> Tensor:
    """Return the DARE-TIES merge of the cores: entries dropped at random, then signs elected.

    As `riemerge.methods.singular.knots.knots_dare_ties`, with the cores for the aligned blocks.

    Law: f(L x Rᵀ) = L f(x) Rᵀ for the same seeds.

    Args:
        x: Updates (T, p, q), in bases of the joint span.
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
    return vote_in(_cores, stream)


def _cores(x: Cores) -> Tensor:
    """Return the cores alone."""
    return core(x).cores


def _basis(factors: Tensor) -> Tensor:
    """Return the left singular vectors (p, a) of T factors side by side (p, R)."""
    vectors, values = left_singular(factors)
    return vectors[:, : count_axes(values)]
