"""Edits of single entries: each update loses some of its entries before the mean.

All of them take (T, ...) dense updates of any shape and return as many; they read values, seeds and facts of
a setting, never its shape.

Cost: they need the dense dW, m n numbers for each model of one module at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.methods.elections.selection import Cut, Restart, keep_largest, kth_largest
from riemerge.methods.setting import Look, Setting
from riemerge.updates import BlockMap, nearest

Chances: TypeAlias = Sequence[float | Tensor]
"""The probability to keep the entries of each update: a number for all, or one for each; 1 is no draw."""


def trim(x: Tensor, setting: Setting) -> Tensor:
    """Keep the `density` of entries of largest magnitude of each update, zero elsewhere.

    Law: exactly k = max(1, ⌊density · size⌋) entries of each update are kept as they are; of equal magnitudes
    at the boundary those of lower flat index. Density 1 changes nothing. Odd, and homogeneous of degree 1.

    Source: Yadav et al. 2023 (TIES), §3.1, for each tensor as in PEFT and mergekit.
    """
    return at_once(look_for_trim, x, setting)


def look_for_trim(stream: Restart, setting: Setting) -> Callable[[], BlockMap]:
    """Find the thresholds of `trim` over all rows of a module, and return what starts it on runs of rows.

    Cost: two passes over the rows; none where every density is 1.
    """
    densities = _numbers(setting, "density")
    if min(densities) >= 1.0:
        return lambda: lambda block: block
    size = math.prod(setting.shape)
    return start_keeping(kth_largest(stream, lambda size: counts(densities, size), size))


def start_keeping(cuts: Sequence[Cut]) -> Callable[[], BlockMap]:
    """Return what starts keeping the largest entries of each update, in runs of its rows."""

    def start() -> BlockMap:
        ties = [cut.ties for cut in cuts]
        return lambda block: keep_largest(block, cuts, ties)

    return start


def trim_globally(x: Tensor, setting: Setting) -> Tensor:
    """Keep the `density` of entries of largest magnitude of each whole model, zero elsewhere.

    Law: over all modules together exactly k = max(1, ⌊density · size⌋) entries of each model are kept, as the
    survey found (`election.vote`: the fact `cuts`); of equal magnitudes at the boundary those of the first
    modules and of lower flat index.

    Source: Yadav et al. 2023 (TIES), §3.1. Their code keeps one entry more than ⌊density · size⌋.
    """
    return at_once(look_for_trim_globally, x, setting)


def look_for_trim_globally(_: Restart, setting: Setting) -> Callable[[], BlockMap]:
    """Return what starts `trim_globally` on runs of rows, from the facts of the survey alone."""
    return start_keeping(setting.facts["cuts"][setting.module])


def trim_both_ends(x: Tensor, setting: Setting) -> Tensor:
    """Remove the `gamma` of entries of largest magnitude of each update, then keep the `density` that follow.

    Law: exactly k = max(1, ⌊density · size⌋) entries of each update are kept, those after the ⌊gamma · size⌋
    largest; where fewer than k follow, fewer of the largest are removed. So density 1 changes nothing. Equal
    magnitudes are ranked by flat index.

    Source: Davari & Belilovsky 2023 (Model Breadcrumbs), for each tensor and with the two shares as in
    mergekit 0.1.5.
    """
    return at_once(look_for_both_ends, x, setting)


def look_for_both_ends(stream: Restart, setting: Setting) -> Callable[[], BlockMap]:
    """Find both thresholds of `trim_both_ends` over all rows, and return what starts it on runs of rows.

    Cost: two passes over the rows.
    """
    densities, gammas = _numbers(setting, "density"), _numbers(setting, "gamma")

    def ranks(size: int) -> list[int]:
        kept = counts(densities, size)
        outliers = [min(int(gamma * size), size - k) for gamma, k in zip(gammas, kept, strict=True)]
        return [*map(sum, zip(outliers, kept, strict=True)), *outliers]

    cuts = kth_largest(lambda: (torch.cat([x, x]) for x in stream()), ranks, math.prod(setting.shape))
    both = [start_keeping(ends) for ends in (cuts[: len(densities)], cuts[len(densities) :])]

    def start() -> BlockMap:
        keep, outlie = (begin() for begin in both)
        return lambda block: keep(block) - outlie(block)

    return start


def drop(x: Tensor, setting: Setting) -> Tensor:
    """Keep each entry with probability `density`, and rescale what is left as `rescale` says.

    Law: with `rescale` `expected` kept entries are divided by the density p: the expectation over seeds is
    the update, the variance of an entry x² (1 − p) / p. With `norm` the update is multiplied so that Σ|x|
    stays what it was (mergekit), unless nothing is left. With `none` it is left alone. Draws follow from the
    seeds of the setting alone: each update's own CPU generator, on any device.

    Source: Yu et al. 2024 (DARE), Algorithm 1.
    """
    return at_once(look_for_drop, x, setting)


def look_for_drop(stream: Restart, setting: Setting) -> Callable[[], BlockMap]:
    """Return what starts `drop` on runs of rows (see `_look_for_draws`)."""
    densities = _numbers(setting, "density")
    return _look_for_draws(stream, setting, lambda _: densities)


def drop_by_rank(x: Tensor, setting: Setting) -> Tensor:
    """Keep each entry with a probability that grows with its rank by magnitude in its row, and rescale.

    Law: in a row of n entries the probability of the i-th smallest magnitude, i from 0, is
    density − epsilon + 2 epsilon i / (n − 1), and the density itself in a row of one; equal magnitudes rank
    by flat index, the lower one as the larger. `rescale` is that of `drop`, where `expected` divides each
    entry by its own probability. Density 1 changes nothing. A row is what the first axis of an update counts;
    an update of one axis is one row.

    Raises:
        NumericalError: A density below 1 that is not within (epsilon, 1 − epsilon).

    Source: Deep et al. 2024 (DELLA-Merging), §3.1 (MAGPRUNE).
    """
    return at_once(look_for_drop_by_rank, x, setting)


def look_for_drop_by_rank(stream: Restart, setting: Setting) -> Callable[[], BlockMap]:
    """Return what starts `drop_by_rank` on runs of rows (see `_look_for_draws`)."""
    return _look_for_draws(stream, setting, lambda block: chances_by_rank(block, setting))


def clip(x: Tensor, setting: Setting) -> Tensor:
    """Bring each entry of each update into [−t, t].

    Law: a base weight w₀ and a model's w₁ meet at w₀ + min(1, t/|w₁ − w₀|) (w₁ − w₀): where they differ by at
    most t the model's is taken, elsewhere the base moves by t. Odd; no entry changes from t = max|x| on.

    Source: alchemonaut 2024 (QuartetAnemoi), mergekit's `nearswap`.
    """
    limit = float(setting.values["t"])
    return x.clamp(-limit, limit)


def ignore_small(x: Tensor, setting: Setting) -> Tensor:
    """Keep the entries of each update of a magnitude above `epsilon`, zero elsewhere.

    Source: Yuan et al. 2026 (Reinforced Agent Merging), the active parameters of a task vector.
    """
    limits = _numbers(setting, "epsilon")
    each = zip(x, limits, strict=True)
    return torch.stack([torch.hardshrink(update, limit) for update, limit in each])


def reward_unique(x: Tensor, setting: Setting) -> Tensor:
    """Enlarge the entries that one update alone has, the more of its others it shares.

    Law: of an update with u entries that no other has, and s that others have too, the u are multiplied by
    1 + r · min(s / max(u, 1), alpha); entries of zero are no entries. Without shared entries nothing changes.

    Source: Yuan et al. 2026 (Reinforced Agent Merging, RAM+), for each tensor as in mergekit's `ramplus_tl`.
    """
    return at_once(look_for_unique, x, setting)


def look_for_unique(stream: Restart, setting: Setting) -> Callable[[], BlockMap]:
    """Count the entries of each update, and those that it alone has, and return what starts `reward_unique`.

    Cost: one pass over the rows.
    """
    unique = every = torch.zeros(len(setting.weights), dtype=torch.int64)
    for x in stream():
        has, alone = _having(x)
        every = every.to(x.device) + has.flatten(1).count_nonzero(dim=1)
        unique = unique.to(x.device) + alone.flatten(1).count_nonzero(dim=1)
    overlap = (every - unique).double() / unique.clamp(min=1)
    gains = 1.0 + setting.values["r"] * overlap.clamp(max=setting.values["alpha"])

    def reward(block: Tensor) -> Tensor:
        return block * torch.where(_having(block)[1], gains.view(-1, *[1] * (block.ndim - 1)), 1.0)

    return lambda: reward


def _having(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each update has an entry, and where it alone has one."""
    has = x != 0.0
    return has, has & (has.sum(dim=0) == 1)


def truncate(x: Tensor, setting: Setting) -> Tensor:
    """Cut each update to its `rank` leading singular values; as it is where none is asked for.

    Law: the nearest update of that rank in the Frobenius norm (Eckart & Young 1936).
    """
    if setting.rank is None:
        return x
    return torch.stack([nearest(update, setting.rank)[0].dense() for update in x])


def _numbers(setting: Setting, name: str) -> list[float]:
    """Return a parameter of each model."""
    numbers: list[float] = setting.values[name].tolist()
    return numbers


def counts(densities: Sequence[float], size: int) -> list[int]:
    """Return how many of so many entries a density keeps: mergekit's and PEFT's rounding, but at least one.

    >>> counts([0.5, 0.01], 9)
    [4, 1]
    """
    return [max(1, int(density * size)) for density in densities]


def at_once(look: Look, x: Tensor, setting: Setting) -> Tensor:
    """Edit whole updates as one run of rows."""
    return look(lambda: iter([x]), setting)()(x)


def row_sums(x: Tensor) -> Tensor:
    """Return the sums over each row of each update, (T, rows): to be added up where all rows are there, so
    that no sum depends on how rows were cut into runs.
    """
    return x.reshape(*x.shape[:2], -1).sum(dim=2)


def _rank_in_row(update: Tensor) -> Tensor:
    """Return the rank of each magnitude in its row, from 0 for the smallest to 1; 1/2 in rows of one."""
    rows = torch.atleast_2d(update.abs()).flatten(1)
    length = rows.shape[1]
    if length == 1:
        return torch.full_like(update, 0.5)
    order = rows.argsort(dim=1, descending=True, stable=True)
    falling = torch.arange(length - 1, -1, -1, device=rows.device, dtype=rows.dtype) / (length - 1)
    return torch.empty_like(rows).scatter_(1, order, falling.expand_as(rows)).view(update.shape)


def chances_by_rank(x: Tensor, setting: Setting) -> list[float | Tensor]:
    """Return the probability to keep each entry of each update, by its rank in its row.

    Raises:
        NumericalError: What `drop_by_rank` raises.
    """
    chances: list[float | Tensor] = []
    parameters = zip(x, _numbers(setting, "density"), _numbers(setting, "epsilon"), strict=True)
    for update, density, epsilon in parameters:
        if density == 1.0:
            chances.append(1.0)
            continue
        if not epsilon < density < 1.0 - epsilon:
            raise NumericalError(
                f"density {density:g} with epsilon {epsilon:g} gives probabilities outside (0, 1): expected "
                "density 1, or a smaller epsilon"
            )
        chances.append(density + epsilon * (2.0 * _rank_in_row(update) - 1.0))
    return chances


def _look_for_draws(
    stream: Restart, setting: Setting, chances: Callable[[Tensor], Chances]
) -> Callable[[], BlockMap]:
    """Return what starts a random drop on runs of rows: the draws go on from one to the next.

    Cost: one pass over the rows for the `rescale` `norm`, else none.
    """

    def start(*, expected: bool) -> BlockMap:
        generators = [setting.generator(t) for t in range(len(setting.weights))]

        def drop_each(block: Tensor) -> Tensor:
            kept = torch.empty_like(block)
            for t, p in enumerate(chances(block)):
                draws = draw(block[t], p, generators[t])
                torch.mul(block[t], draws, out=kept[t])
                if expected:
                    kept[t] /= p
            return kept

        return drop_each

    if setting.values["rescale"] != "norm":
        return lambda: start(expected=setting.values["rescale"] == "expected")
    drop = start(expected=False)
    before, after = (
        torch.cat(sums, dim=1).sum(dim=1)
        for sums in zip(
            *((row_sums(block.abs()), row_sums(drop(block).abs())) for block in stream()), strict=True
        )
    )
    factors = torch.where(after > 0.0, before / after, 1.0)

    def start_scaled() -> BlockMap:
        drop = start(expected=False)
        return lambda block: factors.view(-1, *[1] * (block.ndim - 1)) * drop(block)

    return start_scaled


def draw(update: Tensor, chances: float | Tensor, generator: torch.Generator) -> float | Tensor:
    """Return 1 where an entry is kept and 0 elsewhere, by its own chance."""
    if isinstance(chances, float) and chances >= 1.0:
        return 1.0
    # Drawn on the CPU, so that the device changes no bit: the numbers of torch.bernoulli, faster.
    draws = torch.empty(update.shape, dtype=torch.float64, device="cpu").uniform_(generator=generator)
    if isinstance(chances, Tensor):
        chances = chances.cpu()
    return draws.lt_(chances).to(update.device)
