"""The entrywise rows on whole dense updates, written as formulas of all entries at once: the slow way, which
is the oracle of the rows that see one run of rows after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from riemerge.methods.setting import Setting


def top_mask(x: Tensor, k: int) -> Tensor:
    """Where the k largest magnitudes are; of equal ones at the boundary those of lower flat index."""
    order = x.abs().flatten().sort(descending=True, stable=True).indices
    mask = torch.zeros(x.numel(), dtype=torch.bool)
    mask[order[:k]] = True
    return mask.view(x.shape)


def along(x: Tensor, numbers: Tensor) -> Tensor:
    return numbers.view(-1, *[1] * (x.ndim - 1))


def over(total: Tensor, share: Tensor) -> Tensor:
    return total / torch.where(share > 0.0, share, 1.0)


def signs(votes: Tensor) -> Tensor:
    return torch.where(votes >= 0.0, 1.0, -1.0)


# --- edits --------------------------------------------------------------------------------------------------


def trim(x: Tensor, at: Setting) -> Tensor:
    densities = at.values["density"].tolist()
    masks = [top_mask(u, max(1, int(p * u.numel()))) for u, p in zip(x, densities, strict=True)]
    return torch.where(torch.stack(masks), x, 0.0)


def trim_both_ends(x: Tensor, at: Setting) -> Tensor:
    masks = []
    each = zip(x, at.values["density"].tolist(), at.values["gamma"].tolist(), strict=True)
    for update, density, gamma in each:
        kept = max(1, int(density * update.numel()))
        outliers = min(int(gamma * update.numel()), update.numel() - kept)
        masks.append(top_mask(update, outliers + kept) & ~top_mask(update, outliers))
    return torch.where(torch.stack(masks), x, 0.0)


def drawn(x: Tensor, chances: list[Tensor], at: Setting) -> Tensor:
    kept = []
    for t, (update, p) in enumerate(zip(x, chances, strict=True)):
        one = update * torch.bernoulli(p, generator=at.generator(t))
        if at.values["rescale"] == "expected":
            one = one / p
        elif at.values["rescale"] == "norm":
            one = one * (update.abs().sum() / one.abs().sum())
        kept.append(one)
    return torch.stack(kept)


def drop(x: Tensor, at: Setting) -> Tensor:
    return drawn(
        x, [torch.full_like(u, p) for u, p in zip(x, at.values["density"].tolist(), strict=True)], at
    )


def drop_by_rank(x: Tensor, at: Setting) -> Tensor:
    chances = []
    each = zip(x, at.values["density"].tolist(), at.values["epsilon"].tolist(), strict=True)
    for update, density, epsilon in each:
        length = update.shape[1]
        order = update.abs().argsort(dim=1, descending=True, stable=True)
        falling = torch.arange(length - 1, -1, -1).double() / (length - 1)
        rank = torch.empty_like(update).scatter_(1, order, falling.expand_as(update))
        chances.append(density + epsilon * (2.0 * rank - 1.0))
    return drawn(x, chances, at)


def clip(x: Tensor, at: Setting) -> Tensor:
    return x.clamp(-at.values["t"], at.values["t"])


def ignore_small(x: Tensor, at: Setting) -> Tensor:
    return torch.where(x.abs() > along(x, at.values["epsilon"]), x, 0.0)


def reward_unique(x: Tensor, at: Setting) -> Tensor:
    has = x != 0.0
    alone = has & (has.sum(dim=0) == 1)
    unique, every = alone.flatten(1).sum(dim=1), has.flatten(1).sum(dim=1)
    overlap = (every - unique).double() / unique.clamp(min=1)
    gains = 1.0 + at.values["r"] * overlap.clamp(max=at.values["alpha"])
    return torch.where(alone, x * along(x, gains), x)


# --- means --------------------------------------------------------------------------------------------------


def weighted_sum(x: Tensor, at: Setting) -> Tensor:
    weights = at.weights
    if at.values.get("normalize"):
        weights = weights / weights.sum()
    return torch.tensordot(weights, x, dims=1)


def weighted_mean(x: Tensor, at: Setting) -> Tensor:
    return torch.tensordot(at.weights / at.weights.sum(), x, dims=1)


def masked_mean(x: Tensor, at: Setting, *, normalize: bool) -> Tensor:
    weights = along(x, at.weights)
    total = (weights * x).sum(dim=0)
    return over(total, (weights * (x != 0.0)).sum(dim=0)) if normalize else total


def elect(x: Tensor, at: Setting) -> Tensor:
    scaled = along(x, at.weights) * x
    kept = torch.where(scaled.sign() == signs(scaled.sum(dim=0)), x, 0.0)
    return masked_mean(kept, at, normalize=at.values["normalize"])


def elect_unweighted(x: Tensor, at: Setting) -> Tensor:
    votes = x.sign() if at.values["majority_sign_method"] == "frequency" else x
    agree = x.sign() == signs(votes.sum(dim=0))
    total = (along(x, at.weights) * torch.where(agree, x, 0.0)).sum(dim=0)
    return total / agree.sum(dim=0).clamp(min=1)


def trimmed_globally(x: Tensor, at: Setting) -> Tensor:
    """TIES as published, of one module."""
    trimmed, weights = trim(x, at), along(x, at.weights)
    scaled = weights * trimmed
    sign = scaled.sum(dim=0).sign()
    sign = torch.where(sign == 0.0, sign.sum().sign(), sign)
    agree = scaled.sign() == sign
    return over(torch.where(agree, scaled, 0.0).sum(dim=0), (weights * agree).sum(dim=0))


def select_and_erase(x: Tensor, at: Setting) -> Tensor:
    weights, share = along(x, at.weights), at.values["select_topk"]
    if share < 1.0:
        shares = weights / weights.sum()
        variance = (shares * (x - (shares * x).sum(dim=0)).square()).sum(dim=0)
        differing = int((x.amax(dim=0) != x.amin(dim=0)).sum())
        x = torch.where(top_mask(variance, int(differing * share)), x, 0.0)
    energy = weights * x.square().flatten(1).mean(dim=1).view(weights.shape)
    agree = x.sign() == signs((weights * x).sum(dim=0))
    return over((energy * torch.where(agree, x, 0.0)).sum(dim=0), (energy * agree).sum(dim=0))


def largest(x: Tensor, at: Setting) -> Tensor:
    strength = along(x, at.weights) * x.abs()
    return torch.where(strength == strength.amax(dim=0), x, -torch.inf).amax(dim=0)


def keep_needed(x: Tensor, merged: Tensor, at: Setting) -> Tensor:
    needed = x.abs() > along(x, at.values["mask_threshold"]) * (merged - x).abs()
    return torch.where(needed.sum(dim=0) >= at.values["agreeing"], merged, 0.0)


def consensus(x: Tensor, at: Setting) -> Tensor:
    return keep_needed(x, (along(x, at.weights) * x).sum(dim=0), at)


def consensus_elected(x: Tensor, at: Setting) -> Tensor:
    return keep_needed(x, elect(trim(x, at), at), at)


Formula = Callable[[Tensor, Setting], Tensor]


def after(edit: Formula, mean: Formula) -> Formula:
    return lambda x, at: mean(edit(x, at), at)


def active(x: Tensor, at: Setting) -> Tensor:
    return masked_mean(x, at, normalize=True)


DENSE: Mapping[str, Formula] = {
    "magnitude_prune": after(trim, weighted_sum),
    "ties": after(trim, elect),
    "ties_peft": after(trim, elect_unweighted),
    "ties_original": trimmed_globally,
    "dare_linear": after(drop, weighted_sum),
    "dare_ties": after(drop, elect),
    "dare_ties_peft": after(drop, elect_unweighted),
    "della": after(drop_by_rank, elect),
    "della_linear": after(drop_by_rank, weighted_sum),
    "breadcrumbs": after(trim_both_ends, weighted_sum),
    "breadcrumbs_ties": after(trim_both_ends, elect),
    "sce": select_and_erase,
    "magmax": largest,
    "nearswap": after(clip, weighted_mean),
    "ram": after(ignore_small, active),
    "ramplus_tl": after(after(ignore_small, reward_unique), active),
    "consensus": consensus,
    "consensus_ties": consensus_elected,
}
"""What each row makes of the updates of one module, (T, m, n), as a dense matrix, before it is cut."""

ASKED: Mapping[str, Any] = {
    "density": 0.4,
    "epsilon": 0.2,
    "gamma": 0.05,
    "select_topk": 0.5,
    "mask_threshold": 0.5,
    "t": 1.5,
}
"""Parameters at which each row has something to choose, at entries of about 1."""
