"""KnOTS: the updates in the principal axes of their common column space, merged there entry by entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from riemerge.linalg import thin_svd
from riemerge.methods.elections.election import elect_globally, vote
from riemerge.methods.elections.entrywise import drop, trim_globally
from riemerge.methods.setting import Setting, Stream
from riemerge.methods.singular.singular_vectors import count_axes


class Aligned(NamedTuple):
    """T updates of one module in the principal axes of all together: xₜ = frame · blocksₜ.

    Attributes:
        frame: (p, k), orthonormal columns.
        blocks: (T, k, n), what the original calls Σ Vₜᵀ.
    """

    frame: Tensor
    blocks: Tensor


def align(x: Tensor) -> Aligned:
    """Return the updates in the left singular vectors of [x₁ … x_T] = U Σ [V₁ᵀ … V_Tᵀ].

    Law: frame · blocks gives the updates back; L x has the frame L · frame and the same blocks, but for the
    sign of each axis. So linear merges of the blocks are those of the updates: KnOTS followed by task
    arithmetic is task arithmetic. Axes are kept where their singular value is above √eps of the largest (the
    original cuts at 1e-5, in the unit of the updates), and at least one.

    Args:
        x: Updates (T, p, n), reduced on the left, in float64.

    Raises:
        NumericalError: Two singular values are equal, so that their axes are arbitrary.

    Source: Stoica et al. 2025, Model merging with SVD to tie the knots, arXiv 2410.19735.

    Cost: one QR (T n, p): a Gram matrix would lose half of the digits of the axes.
    """
    upper = torch.linalg.qr(x.mT.reshape(-1, x.shape[1]), mode="r").R
    svd = thin_svd(upper)
    frame = svd.right[:, : count_axes(svd.values)]
    return Aligned(frame, frame.mT @ x)


def knots_ties(x: Tensor, setting: Setting) -> Tensor:
    """Return the TIES merge of the aligned updates, trimmed over all modules together.

    Of each model's aligned entries, of all modules at once, the `density` of largest magnitude is kept; the
    sign of each entry is that of the weighted sum; what agrees is merged by `merge_func`. An entry whose sum
    is exactly 0 has no majority and becomes 0: any other choice would depend on the sign of an axis, which
    is arbitrary.

    Law: f(L x) = L f(x); copies give themselves at density 1 and merge_func `mean`. The entries counted are
    those of the aligned blocks, k n a module.

    Args:
        x: Updates (T, p, n), reduced on the left, in float64.
        setting: Weights, the values `density` and `merge_func`, and the facts of `survey`.

    Returns:
        The merged update (p, n).

    Raises:
        NumericalError: See `align`.

    Source: Stoica et al. 2025, arXiv 2410.19735, whose code keeps one entry more of each model, and has no
        weights.

    Cost: that of `align` here and in each pass of the survey; the (k, n) blocks of T models.
    """
    frame, blocks = align(x)
    return frame @ trimmed_ties(blocks, setting)


def knots_dare_ties(x: Tensor, setting: Setting) -> Tensor:
    """Return the DARE-TIES merge of the aligned updates: entries dropped at random, then signs elected.

    Each aligned entry is kept with probability `density` and divided by it; signs and means are those of
    `knots_ties`, without a trim.

    Law: f(L x) = L f(x) for the same seeds; what is drawn depends on neither gauges nor the sign of an axis.

    Args:
        x: Updates (T, p, n), reduced on the left, in float64.
        setting: Weights, seeds, and the values `density` and `merge_func`.

    Returns:
        The merged update (p, n).

    Raises:
        NumericalError: See `align`.

    Source: Stoica et al. 2025, arXiv 2410.19735; Yu et al. 2024, DARE, arXiv 2311.03099.

    Cost: as `knots_ties`.
    """
    frame, blocks = align(x)
    return frame @ dropped_ties(blocks, setting)


def survey(stream: Stream) -> Mapping[str, Any]:
    """Find each model's threshold over the aligned entries of all modules, for `knots_ties`.

    Cost: the alignment of every module, in each of the passes of `vote`.
    """
    return vote_in(lambda x: align(x).blocks, stream)


def trimmed_ties(blocks: Tensor, setting: Setting) -> Tensor:
    """Return the TIES merge of (T, ...) coordinates along axes of arbitrary sign, trimmed by the survey."""
    return elect_globally(trim_globally(blocks, setting), _signless(setting))


def dropped_ties(blocks: Tensor, setting: Setting) -> Tensor:
    """Return the DARE-TIES merge of (T, ...) coordinates whose axes have arbitrary signs."""
    rescaled = replace(setting, values={**setting.values, "rescale": "expected"})
    return elect_globally(drop(blocks, rescaled), _signless(setting))


def vote_in(coordinates: Callable[[Any], Tensor], stream: Stream) -> Mapping[str, Any]:
    """Return the facts of `riemerge.methods.elections.election.vote` about coordinates of the updates."""

    def restart() -> Iterator[tuple[Tensor, Setting]]:
        return ((coordinates(x), setting) for x, setting in stream())

    return vote(restart)


def _signless(setting: Setting) -> Setting:
    """Return a setting without a majority for undecided entries: its sign would be that of arbitrary axes."""
    return replace(setting, facts={**setting.facts, "majority": 0})
