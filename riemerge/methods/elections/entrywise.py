"""Edits of single entries: each update loses some of its entries before the mean.

All of them take (T, ...) dense updates of any shape and return as many; they read values, seeds and facts of
a setting, never its shape.

Cost: they need the dense dW, m n numbers for each model of one module at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.methods.elections.selection import above, kth_largest, top_mask
from riemerge.methods.setting import Setting
from riemerge.updates import BlockMap, nearest


def trim(x: Tensor, setting: Setting) -> Tensor:
    """Keep the `density` of entries of largest magnitude of each update, zero elsewhere.

    Law: exactly k = max(1, ⌊density · size⌋) entries of each update are kept as they are; of equal magnitudes
    at the boundary those of lower flat index. Density 1 changes nothing. Odd, and homogeneous of degree 1.

    Source: Yadav et al. 2023 (TIES), §3.1, for each tensor as in PEFT and mergekit.
    """
    densities = _numbers(setting, "density")
    return _keep(x, [top_mask(update, _count(p, update)) for update, p in zip(x, densities, strict=True)])


def look_for_trim(stream: Callable[[], Iterator[Tensor]], setting: Setting) -> Callable[[], BlockMap]:
    """Find the thresholds of `trim` over all rows of a module, and return what starts it on runs of rows.

    Cost: three passes over the rows; none where every density is 1.
    """
    densities = _numbers(setting, "density")
    if min(densities) >= 1.0:
        return lambda: lambda block: block
    thresholds, ties = kth_largest(stream, densities)

    def start() -> BlockMap:
        left = list(ties)

        def trim_block(block: Tensor) -> Tensor:
            kept = keep_above(block, thresholds, tuple(left))
            for t, (update, limit) in enumerate(zip(block, thresholds, strict=True)):
                left[t] = max(0, left[t] - int((update.abs() == limit).sum()))
            return kept

        return trim_block

    return start


def trim_globally(x: Tensor, setting: Setting) -> Tensor:
    """Keep the `density` of entries of largest magnitude of each whole model, zero elsewhere.

    Law: over all modules together exactly k = max(1, ⌊density · size⌋) entries of each model are kept, as the
    survey found (`election.vote`: facts `thresholds` and `ties`); of equal magnitudes at the boundary those
    of the first modules and of lower flat index.

    Source: Yadav et al. 2023 (TIES), §3.1. Their code keeps one entry more than ⌊density · size⌋.
    """
    return keep_above(x, setting.facts["thresholds"], setting.facts["ties"][setting.module])


def keep_above(x: Tensor, thresholds: Tensor, ties: tuple[int, ...]) -> Tensor:
    """Keep the entries of each update above its threshold, and its first `ties` entries that equal it.

    Args:
        x: (T, ...) updates.
        thresholds: (T,) magnitudes.
        ties: T numbers of entries.

    Returns:
        The updates, zero elsewhere.
    """
    limits = thresholds.to(x.device)
    return _keep(x, [above(update, limit, n) for update, limit, n in zip(x, limits, ties, strict=True)])


def trim_both_ends(x: Tensor, setting: Setting) -> Tensor:
    """Remove the `gamma` of entries of largest magnitude of each update, then keep the `density` that follow.

    Law: exactly k = max(1, ⌊density · size⌋) entries of each update are kept, those after the ⌊gamma · size⌋
    largest; where fewer than k follow, fewer of the largest are removed. So density 1 changes nothing. Equal
    magnitudes are ranked by flat index.

    Source: Davari & Belilovsky 2023 (Model Breadcrumbs), for each tensor and with the two shares as in
    mergekit 0.1.5.
    """
    masks = []
    parameters = zip(x, _numbers(setting, "density"), _numbers(setting, "gamma"), strict=True)
    for update, density, gamma in parameters:
        kept = _count(density, update)
        outliers = min(int(gamma * update.numel()), update.numel() - kept)
        masks.append(top_mask(update, outliers + kept) & ~top_mask(update, outliers))
    return _keep(x, masks)


def drop(x: Tensor, setting: Setting) -> Tensor:
    """Keep each entry with probability `density`, and rescale what is left as `rescale` says.

    Law: with `rescale` `expected` kept entries are divided by the density p: the expectation over seeds is
    the update, the variance of an entry x² (1 − p) / p. With `norm` the update is multiplied so that Σ|x|
    stays what it was (mergekit), unless nothing is left. With `none` it is left alone. Draws follow from the
    seeds of the setting alone: each update's own CPU generator, on any device.

    Source: Yu et al. 2024 (DARE), Algorithm 1.
    """
    return drop_rescaled(x, setting, setting.values["rescale"])


def drop_rescaled(x: Tensor, setting: Setting, rescale: str) -> Tensor:
    """Keep each entry with probability `density`, and rescale what is left (see `drop`)."""
    return _drop_each(x, _even_chances(x, setting), _generators(setting), rescale)


def look_for_drop(stream: Callable[[], Iterator[Tensor]], setting: Setting) -> Callable[[], BlockMap]:
    """Return what starts `drop` on runs of rows (see `_look_for_draws`)."""
    return _look_for_draws(stream, setting, _even_chances)


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
    chances = _chances_by_rank(x, setting)
    return _drop_each(x, chances, _generators(setting), setting.values["rescale"])


def look_for_drop_by_rank(stream: Callable[[], Iterator[Tensor]], setting: Setting) -> Callable[[], BlockMap]:
    """Return what starts `drop_by_rank` on runs of rows (see `_look_for_draws`)."""
    return _look_for_draws(stream, setting, _chances_by_rank)


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
    return _keep(x, [update.abs() > limit for update, limit in zip(x, limits, strict=True)])


def reward_unique(x: Tensor, setting: Setting) -> Tensor:
    """Enlarge the entries that one update alone has, the more of its others it shares.

    Law: of an update with u entries that no other has, and s that others have too, the u are multiplied by
    1 + r · min(s / max(u, 1), alpha); entries of zero are no entries. Without shared entries nothing changes.

    Source: Yuan et al. 2026 (Reinforced Agent Merging, RAM+), for each tensor as in mergekit's `ramplus_tl`.
    """
    has = x != 0.0
    alone = has & (has.sum(dim=0) == 1)
    rest = tuple(range(1, x.ndim))
    unique, every = alone.sum(dim=rest), has.sum(dim=rest)
    overlap = (every - unique).to(x) / unique.clamp(min=1)
    gains = 1.0 + setting.values["r"] * overlap.clamp(max=setting.values["alpha"])
    return torch.where(alone, x * gains.view(-1, *[1] * len(rest)), x)


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


def _count(density: float, update: Tensor) -> int:
    """Return how many entries a density keeps: mergekit's and PEFT's rounding, but at least one."""
    return max(1, int(density * update.numel()))


def _keep(x: Tensor, masks: list[Tensor]) -> Tensor:
    return torch.where(torch.stack(masks), x, 0.0)


def _rank_in_row(update: Tensor) -> Tensor:
    """Return the rank of each magnitude in its row, from 0 for the smallest to 1; 1/2 in rows of one."""
    rows = torch.atleast_2d(update.abs()).flatten(1)
    length = rows.shape[1]
    if length == 1:
        return torch.full_like(update, 0.5)
    order = rows.argsort(dim=1, descending=True, stable=True)
    falling = torch.arange(length - 1, -1, -1, device=rows.device, dtype=rows.dtype) / (length - 1)
    return torch.empty_like(rows).scatter_(1, order, falling.expand_as(rows)).view(update.shape)


def _generators(setting: Setting) -> list[torch.Generator]:
    """Return a fresh generator for the draws of each update."""
    return [setting.generator(t) for t in range(len(setting.weights))]


def _even_chances(x: Tensor, setting: Setting) -> list[Tensor | None]:
    """Return the probability to keep each entry of each update: its density."""
    densities = _numbers(setting, "density")
    return [torch.full_like(update, density) for update, density in zip(x, densities, strict=True)]


def _chances_by_rank(x: Tensor, setting: Setting) -> list[Tensor | None]:
    """Return the probability to keep each entry of each update, by its rank in its row; None for all of them.

    Raises:
        NumericalError: What `drop_by_rank` raises.
    """
    chances: list[Tensor | None] = []
    parameters = zip(x, _numbers(setting, "density"), _numbers(setting, "epsilon"), strict=True)
    for update, density, epsilon in parameters:
        if density == 1.0:
            chances.append(None)
            continue
        if not epsilon < density < 1.0 - epsilon:
            raise NumericalError(
                f"density {density:g} with epsilon {epsilon:g} gives probabilities outside (0, 1): expected "
                "density 1, or a smaller epsilon"
            )
        chances.append(density + epsilon * (2.0 * _rank_in_row(update) - 1.0))
    return chances


def _look_for_draws(
    stream: Callable[[], Iterator[Tensor]],
    setting: Setting,
    chances: Callable[[Tensor, Setting], list[Tensor | None]],
) -> Callable[[], BlockMap]:
    """Return what starts a random drop on runs of rows: the draws go on from one to the next.

    Law: with `rescale` `norm` it is the drop of the whole to the round-off of Σ|x|, else bit for bit.
    Cost: one pass over the rows for `norm`, else none.
    """

    def start(rescale: str) -> BlockMap:
        generators = _generators(setting)
        return lambda block: _drop_each(block, chances(block, setting), generators, rescale)

    if setting.values["rescale"] != "norm":
        return lambda: start(setting.values["rescale"])
    sums, drop = [], start("none")
    for block in stream():
        both = torch.stack([block, drop(block)]).abs()
        sums.append(both.flatten(start_dim=2).sum(dim=2))
    before, after = torch.stack(sums).sum(dim=0)
    factors = torch.where(after > 0.0, before / after, 1.0)

    def start_scaled() -> BlockMap:
        drop = start("none")
        return lambda block: factors.view(-1, *[1] * (block.ndim - 1)) * drop(block)

    return start_scaled


def _drop_each(
    x: Tensor, chances: list[Tensor | None], generators: list[torch.Generator], rescale: str
) -> Tensor:
    """Keep each entry of each update by its own chance, and rescale; all of those without chances."""
    each = zip(x, chances, generators, strict=True)
    return torch.stack([u if p is None else _drop(u, p, generator, rescale) for u, p, generator in each])


def _drop(update: Tensor, chances: Tensor, generator: torch.Generator, rescale: str) -> Tensor:
    """Keep each entry of an update by its own chance, and rescale."""
    # Drawn on the CPU, so that the device changes no bit.
    mask = torch.bernoulli(chances.cpu(), generator=generator).to(update.device)
    kept = update * mask
    match rescale:
        case "expected":
            return kept / chances
        case "norm":
            before, after = update.abs().sum(), kept.abs().sum()
            return kept * torch.where(after > 0.0, before / after, 1.0)
        case _:
            return kept
