"""Means of dense updates entry by entry: weighted sums, elections of signs, and choices of the largest.

All of them take (T, ...) updates of any shape, on any device, and answer with the shape of one; they read
weights, values and facts of a setting, never its shape. Entries are merged each by itself, so runs of the
rows of a large module may be merged apart; what needs to know more than a run looks at all of them first.

Cost: a few passes over runs of rows of the dense dW, of which only the result is held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.methods.elections.entrywise import (
    at_once,
    counts,
    look_for_trim,
    row_sums,
    start_keeping,
)
from riemerge.methods.elections.selection import Restart, keep_largest, kth_largest
from riemerge.methods.setting import Setting, Stream
from riemerge.updates import BlockMap, Blocks


def weighted_sum(x: Tensor, setting: Setting) -> Tensor:
    """Return the weighted sum Σ wᵢ xᵢ of the updates.

    Law: linear in the updates.

    Source: Ilharco et al. 2023 (task arithmetic), after an edit.
    """
    return (_along(x, setting.weights) * x).sum(dim=0)


def keep_elected(x: Tensor, setting: Setting) -> Tensor:
    """Keep the entries of each update that agree with the elected sign, zero elsewhere: an edit.

    Law: the sign is that of Σ wᵢ xᵢ, plus where this is 0; kept is what has the sign with its weight.
    `elect` is the mean, over the updates that are not zero at an entry, of what this keeps.

    Source: Yadav et al. 2023 (TIES), §3.2, with weights as in mergekit.
    """
    scaled = _along(x, setting.weights) * x
    # The arrays are as large as the updates: as few as can be.
    return scaled.mul_(_signs(scaled.sum(dim=0))).gt_(0.0).mul_(x)


def elect(x: Tensor, setting: Setting) -> Tensor:
    """Elect a sign for each entry and take the weighted mean of the updates that agree with it.

    Law: the sign is that of Σ wᵢ xᵢ, plus where this is 0; the value Σ wᵢ xᵢ over the updates with
    sign(wᵢ xᵢ) = the sign, divided by their Σ wᵢ with `normalize`; 0 where none agrees. A model of weight 2
    is the same as two copies of weight 1. Homogeneous of degree 1, and with `normalize` of degree 0 in the
    weights.

    Raises:
        NumericalError: `normalize`, and a weight below 0: the sum of agreeing weights could be anything.

    Source: Yadav et al. 2023 (TIES), §3.2-3.3, with weights as in mergekit.
    """
    return masked_mean(keep_elected(x, setting), setting, normalize=setting.values["normalize"])


def masked_mean(x: Tensor, setting: Setting, *, normalize: bool) -> Tensor:
    """Return Σ wᵢ xᵢ, divided at each entry by the Σ wᵢ of the updates that are not zero there.

    Law: with `normalize` the weighted mean in the metrics that are 1 where an update is not zero and 0
    elsewhere; 0 where none counts.

    Raises:
        NumericalError: `normalize`, and a weight below 0: the sum of those that count may be anything.
    """
    weights = _along(x, setting.weights)
    total = (weights * x).sum(dim=0)
    if not normalize:
        return total
    if bool((setting.weights < 0.0).any()):
        least = float(setting.weights.min())
        raise NumericalError(
            f"weight {least:g}: a mean over agreeing models needs weights above 0, or `normalize: false`"
        )
    present = torch.ne(x, 0.0, out=torch.empty_like(x))
    return _over(total, present.mul_(weights).sum(dim=0))


def elect_unweighted(x: Tensor, setting: Setting) -> Tensor:
    """Elect a sign for each entry without weights, and divide the weighted sum of who agrees by their number.

    Law: the sign is that of Σ xᵢ (`majority_sign_method` `total`) or of Σ sign(xᵢ) (`frequency`), plus where
    this is 0; the value Σ wᵢ xᵢ / count over the updates of that sign, 0 where there is none. Linear in the
    weights; with weights 1 and `total` it is `elect`.

    Source: PEFT's `ties` and `dare_ties`, there on A and B or (`ties_svd`) on dW, as here.
    """
    votes = x.sign() if setting.values["majority_sign_method"] == "frequency" else x
    agree = _agreeing(x, _signs(votes.sum(dim=0)))
    number = agree.sum(dim=0).clamp_(min=1.0)
    return agree.mul_(x).mul_(_along(x, setting.weights)).sum(dim=0) / number


def vote(stream: Stream) -> Mapping[str, Any]:
    """Survey all modules for TIES as published: each model's threshold, and the sign of undecided entries.

    Law: keeping what the `cuts` say in each module keeps exactly k = max(1, ⌊density · size⌋) entries of each
    model, over all modules: what is above one threshold, and of what equals it the first. `majority` is the
    sign of the number of entries with Σ wᵢ xᵢ > 0 less that of entries with Σ wᵢ xᵢ < 0, of the trimmed
    updates. Update i must be of model i in every module.

    Returns:
        `cuts` by module: T of them; `majority` -1, 0 or 1.

    Raises:
        NumericalError: The models, or the density of one, differ between modules.

    Source: Yadav et al. 2023 (TIES), §3.

    Cost: three passes over all dense updates, of which nothing is kept but numbers.
    """
    first = next(stream())[1]
    densities = first.values["density"].tolist()

    def restart() -> Iterator[Tensor]:
        return (run for x, _ in _alike(stream, first) for run in _runs(x))

    cuts = kth_largest(restart, lambda size: counts(densities, size))
    left = [cut.ties for cut in cuts]
    found, lead = {}, 0
    for x, setting in _alike(stream, first):
        found[setting.module] = tuple(cut._replace(ties=n) for cut, n in zip(cuts, left, strict=True))
        for run in _runs(x):
            trimmed = keep_largest(run, cuts, left)
            lead += int((_along(run, setting.weights) * trimmed).sum(dim=0).sign_().sum())
    return {"cuts": found, "majority": (lead > 0) - (lead < 0)}


def elect_globally(x: Tensor, setting: Setting) -> Tensor:
    """Elect a sign for each entry, undecided ones as the majority of all modules, and merge who agrees.

    Law: the sign is that of Σ wᵢ xᵢ and where this is 0 the `majority` of `vote`; where that is 0 as well no
    sign is elected and the value is 0. Over the updates of that sign, `merge_func` `mean` is Σ wᵢ xᵢ / Σ wᵢ,
    `sum` Σ wᵢ xᵢ, `max` the wᵢ xᵢ of largest magnitude. The paper has weights 1; they are above 0.

    Source: Yadav et al. 2023 (TIES), §3.2-3.3. Where both are 0 their code takes the negative entries.
    """
    weights = _along(x, setting.weights)
    scaled = weights * x
    sign = scaled.sum(dim=0).sign()
    sign = torch.where(sign == 0.0, float(setting.facts["majority"]), sign)
    agree = _agreeing(scaled, sign)
    chosen = scaled.mul_(agree)
    match setting.values["merge_func"]:
        case "max":
            return chosen.abs().amax(dim=0) * sign
        case "sum":
            return chosen.sum(dim=0)
        case _:
            return _over(chosen.sum(dim=0), agree.mul_(weights).sum(dim=0))


def select_and_erase(x: Tensor, setting: Setting) -> Tensor:
    """Keep the positions where the models differ most, weigh models by their energy there, erase dissenters.

    Law: of the positions where not all models are equal, the share `select_topk` of largest variance is kept
    (exactly ⌊share · number⌋, equal ones by flat index; at 1 all positions). A model's share is wᵢ times its
    mean square there; the value is the mean by shares of the updates that have the sign of Σ wᵢ xᵢ, plus
    where this is 0. Variance, energy and sign count a model of weight 2 as two copies of weight 1.
    Homogeneous of degree 1.

    Source: Wan et al. 2024 (FuseChat, SCE), §3.3, as in mergekit, which has no weights, and whose thresholds
    of 1e-6 depend on the unit of the updates.
    """
    return at_once(look_for_most_varied, x, setting)


def look_for_most_varied(stream: Restart, setting: Setting) -> Callable[[], BlockMap]:
    """Find the positions of largest variance over all rows, and the energies there, for `select_and_erase`.

    Cost: three passes over the rows; one where all positions are kept.
    """
    share, start = setting.values["select_topk"], _keep_all
    if share < 1.0:
        differing: list[int] = []
        size = math.prod(setting.shape)

        def variances() -> Iterator[Tensor]:
            for x in stream():
                # Not by the variance: the mean of equal numbers is rounded.
                differing.append(int(torch.count_nonzero(x.amax(dim=0) != x.amin(dim=0))))
                yield _variance(x, setting.weights).unsqueeze(0)

        begin = start_keeping(kth_largest(variances, lambda _: [int(sum(differing) * share)], size))

        def start() -> BlockMap:
            keep = begin()
            return lambda x: x * (keep(_variance(x, setting.weights).unsqueeze(0)) != 0.0)

    select = start()
    squares = torch.cat([row_sums(select(x).square()) for x in stream()], dim=1)
    energy = setting.weights.to(squares) * squares.sum(dim=1)

    def start_erasing() -> BlockMap:
        select = start()

        def erase(block: Tensor) -> Tensor:
            x = select(block)
            agree = _agreeing(x, _signs((_along(x, setting.weights) * x).sum(dim=0)))
            agree.mul_(_along(x, energy))
            return _over((agree * x).sum(dim=0), agree.sum(dim=0))

        return erase

    return start_erasing


def largest(x: Tensor, setting: Setting) -> Tensor:
    """Take each entry from the update where it is largest in magnitude.

    Law: the entry of the model with the largest wᵢ |xᵢ|, as it is: weights choose, they do not scale. Where
    several are largest the greatest (signed) value: so the order of the models is nothing.

    Source: Marczak et al. 2024 (MagMax), which has no weights and takes the latest of equal ones.
    """
    strength = x.abs().mul_(_along(x, setting.weights))
    chosen = strength.eq_(strength.amax(dim=0))
    # Below all numbers where an entry is not chosen: far faster than `where`.
    return chosen.sub_(1.0).mul_(torch.finfo(x.dtype).max).add_(x).amax(dim=0)


def consensus(x: Tensor, setting: Setting) -> Tensor:
    """Take the weighted sum of the updates at the entries that enough models need, zero elsewhere.

    Law: model i needs an entry where |xᵢ| > λᵢ |s − xᵢ|, with s = Σ wᵢ xᵢ and its `mask_threshold` λᵢ; the
    value is s where at least `agreeing` models do. Homogeneous of degree 1.

    Raises:
        NumericalError: More models must agree than there are.

    Source: Wang et al. 2024 (TALL masks and Consensus TA), eq. 3-5.
    """
    return _keep_needed(x, weighted_sum(x, setting), setting)


def consensus_elected(x: Tensor, setting: Setting) -> Tensor:
    """Take the mean of TIES at the entries that enough models need, zero elsewhere.

    Law: that of `consensus` with s = elect(trim(x)), by `density` and `normalize`; the x are untrimmed.

    Raises:
        NumericalError: What `consensus` and `elect` raise.

    Source: Wang et al. 2024 (TALL masks and Consensus TA), eq. 3-5, Consensus TIES.
    """
    return at_once(look_for_consensus, x, setting)


def look_for_consensus(stream: Restart, setting: Setting) -> Callable[[], BlockMap]:
    """Find the thresholds of `trim` over all rows of a module, for `consensus_elected`."""
    begin = look_for_trim(stream, setting)

    def start() -> BlockMap:
        keep = begin()
        return lambda x: _keep_needed(x, elect(keep(x), setting), setting)

    return start


def _along(x: Tensor, numbers: Tensor) -> Tensor:
    """Return a number for each model (T,) on the device of `x`, with as many axes as that has."""
    return numbers.to(x.device).view(-1, *[1] * (x.ndim - 1))


def _signs(votes: Tensor) -> Tensor:
    """Return the signs of votes, plus where they cancel."""
    return torch.ge(votes, 0.0, out=torch.empty_like(votes)).mul_(2.0).sub_(1.0)


def _agreeing(x: Tensor, signs: Tensor) -> Tensor:
    """Return 1 where each update has the elected sign and 0 elsewhere, so at an entry of 0."""
    return (x * signs).gt_(0.0)


def _over(total: Tensor, share: Tensor) -> Tensor:
    """Return the mean, 0 where nobody has a share in it."""
    return total / torch.where(share > 0.0, share, 1.0)


def _variance(x: Tensor, weights: Tensor) -> Tensor:
    shares = _along(x, weights / weights.sum())
    return (x - (shares * x).sum(dim=0)).square_().mul_(shares).sum(dim=0)


def _keep_all() -> BlockMap:
    """Start keeping runs of rows as they are."""
    return lambda x: x


def _runs(x: Tensor | Blocks) -> Iterator[Tensor]:
    """Yield updates in runs of their rows."""
    return x.stream() if isinstance(x, Blocks) else iter([x])


def _keep_needed(x: Tensor, merged: Tensor, setting: Setting) -> Tensor:
    agreeing = setting.values["agreeing"]
    if agreeing > len(x):
        raise NumericalError(
            f"{agreeing} models must agree on an entry, but there are {len(x)}: expected fewer"
        )
    needed = x.abs() > _along(x, setting.values["mask_threshold"]) * (merged - x).abs()
    return torch.where(needed.sum(dim=0) >= agreeing, merged, 0.0)


def _alike(stream: Stream, first: Setting) -> Iterator[tuple[Tensor | Blocks, Setting]]:
    """Yield the stream, of which every module has the models and the densities of the first."""
    for x, setting in stream():
        if setting.places != first.places:
            raise NumericalError(
                f"other models count here than in {first.module}, by weights that are 0 in some modules: "
                "expected the same in all, for a threshold over all modules (where adapters lack modules: "
                "--missing zero)"
            )
        here, there = setting.values["density"], first.values["density"]
        if not torch.equal(here, there):
            raise NumericalError(
                f"density {here.tolist()} here, {there.tolist()} in "
                f"{first.module}: expected the same in all, for a threshold over all modules"
            )
        yield x, setting
