"""Identifiability: whether inputs share their subspaces, and so determine their Fréchet mean."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from riemerge.records.run_record import SPREAD_PARTLY, SPREAD_YES, Determined, Overlap
from riemerge.updates.reduction import Reduction

# What the overlap of inputs says of their mean: fitted to how far ten starts ended apart. Synthetic families
# are of three and six adapters of rank 8 and 16; the real ones are of rank 16: six trained on tasks of one
# kind from one start of A, the four of the demo, and six from starts of their own. `paired` is the cosine of
# the updates over the product of those of their subspaces: how far directions that are shared belong to each
# other.
#
#     inputs                           weakest       paired         ‖dWₐ - dW‖ / ‖dW‖   so the mean is
#     close, noise 0.1                 0.97          1.0            < 1e-8              determined
#     close, noise 0.3                 0.8           0.9            < 1e-5              determined
#     close, noise 0.6                 0.45          0.8            2e-5 to 6e-4        determined
#     close, noise 1.0                 0.14          0.5 to 0.7     4e-4 to 1.0         either
#     real, one start of A, 8 modules  0.44 to 0.64  0.52 to 0.71   up to 1e-3          determined
#     the other 64                     0.20 to 0.67  0.05 to 0.51   2e-4 to 1.1         either *
#     real, starts of their own        < 0           0.07 to 1.9    0.28 to 0.93        not determined
#     lora_like (one start of A)       0.97          -0.09 to 0.04  0.5 to 0.8          not determined
#     shared_subspace                  1             -0.04 to 0.15  1.1                 not determined
#     mix (half of the directions)     < 0           1.6 to 1.8     0.18 to 0.28        not determined
#     independent                      < 0           -0.04 to 0.08  0.6 to 1.1          not determined
#
# (* 55 up to 0.01, 9 from 0.1 on: a second minimum, which no overlap shows.) So every direction must be
# shared on one side at least, and be paired with the same one on the other; what is neither clearly so nor
# clearly not is left open.
YES = (0.4, 0.5)  # least `weakest`, least `paired`
UNSHARED = 0.05  # up to this `weakest` there are directions that nobody shares
UNPAIRED = (0.8, 0.2)  # from this `weakest` on, up to this `paired`: equal subspaces of independent cores

FEW = 16
"""Up to so many adapters all pairs are compared unasked."""

# Numbers of frames that are compared at once.
_NUMBERS = 2**21


def overlaps(reduction: Reduction, storage: Sequence[torch.dtype]) -> list[Overlap | None]:
    """Return the overlap of the inputs of each of K modules, stored in T dtypes.

    Law: side by side, against the level of uniformly random subspaces; invariant under rotations of both
    spaces; a function of the updates dW; share 1 for equal subspaces and, in expectation, at most 0 for
    random ones (there the mean square cosine is max(rᵢ, rⱼ) / n in n dimensions). Both sides, since a mean
    needs both: adapters that share the start of A alone share their row spaces, and their mean is as free as
    that of independent ones where they share nothing else. Inputs that are all zero have no subspaces and
    are left out; None where fewer than two are left. All pairs and modules in one batch.
    """
    cores = reduction.cores
    left, right = (cores.spread(side).movedim(-2, -3) for side in (cores.svds.left, cores.svds.right))
    sigma = cores.spread(cores.svds.values)
    eps = [
        math.sqrt(rank) * torch.finfo(dtype).eps
        for rank, dtype in zip(reduction.kind.ranks, storage, strict=True)
    ]
    arithmetic = 10.0 * torch.finfo(torch.float64).eps * math.sqrt(max(left.shape[2], right.shape[2]))
    tolerance = (torch.tensor(eps, dtype=torch.float64) + arithmetic).to(sigma.device)
    counts = sigma > tolerance[:, None] * sigma[..., :1]
    ranks, sigma = counts.sum(dim=-1), torch.where(counts, sigma, 0.0)
    left, right = (torch.where(counts.unsqueeze(-2), side, 0.0) for side in (left, right))
    first, second = torch.triu_indices(len(eps), len(eps), 1, device=sigma.device)
    step = max(1, _NUMBERS // left[:, 0].numel())
    pairs = zip(first.split(step), second.split(step), strict=True)
    blocks = [compare_pairs(left, right, sigma, ranks, i, j, reduction.kind.shape) for i, j in pairs]
    if not blocks:
        return [None] * len(left)
    known = torch.cat(blocks, dim=-1)
    sums = known.sum(dim=-1).T.tolist()
    names = ("left", "right", "left_random", "right_random", "share", "weakest", "cosine")
    return [
        Overlap(**{name: value / count for name, value in zip(names, values, strict=True)}) if count else None
        for *values, count in sums
    ]


def compare_pairs(
    left: Tensor,
    right: Tensor,
    sigma: Tensor,
    ranks: Tensor,
    i: Tensor,
    j: Tensor,
    shape: tuple[int, int],
) -> Tensor:
    """Return what `Overlap` averages of P pairs (i, j) of K modules, and whether each counts: (8, K, P).

    Args:
        left: Column frames (K, T, m, r), 0 where a direction is round-off.
        right: Row frames (K, T, n, r), 0 where a direction is round-off.
        sigma: Singular values (K, T, r).
        ranks: Numbers of directions (K, T) that are no round-off.
        i: Places of the first updates (P,).
        j: Places of the second updates (P,).
        shape: (m, n) of the modules.
    """
    crossed = torch.stack([side[:, i].mT @ side[:, j] for side in (left, right)])
    cosines = torch.linalg.svdvals(crossed)
    small, large = torch.minimum(ranks[:, i], ranks[:, j]), torch.maximum(ranks[:, i], ranks[:, j])
    counts = small > 0
    small = small.clamp_min(1)
    size = small.to(sigma).sqrt()
    widths = torch.tensor(shape, dtype=torch.float64, device=sigma.device)[:, None, None]
    level = (large / widths).sqrt()
    mean = torch.linalg.vector_norm(cosines, dim=-1) / size
    least = cosines.gather(-1, (small - 1).expand(2, -1, -1).unsqueeze(-1)).squeeze(-1)
    shares, weakest = (_shares(side, level) for side in (mean, least))
    inner = (sigma[:, i].unsqueeze(-1) * crossed[0] * crossed[1] * sigma[:, j].unsqueeze(-2)).sum(
        dim=(-2, -1)
    )
    norms = torch.linalg.vector_norm(sigma, dim=-1)
    cosine = inner / torch.where(counts, norms[:, i] * norms[:, j], 1.0)
    known = (*mean, *level, shares.amin(dim=0), weakest.amax(dim=0), cosine)
    return torch.stack([*(torch.where(counts, numbers, 0.0) for numbers in known), counts.to(sigma)])


def _shares(cosine: Tensor, level: Tensor) -> Tensor:
    """Return 0 at the random level, 1 for equal subspaces, also where a subspace fills everything."""
    room = 1.0 - level.square()
    fills = room <= 1e-12
    return torch.where(fills, 1.0, (cosine.square() - level.square()) / torch.where(fills, 1.0, room))


def mean_overlap(overlaps: Iterable[Overlap | None]) -> Overlap | None:
    """Return the mean over those modules that have an overlap; None where none has."""
    known = [overlap for overlap in overlaps if overlap is not None]
    if not known:
        return None
    names = Overlap.model_fields
    return Overlap(**{name: _mean([getattr(overlap, name) for overlap in known]) for name in names})


def judge_overlap(overlap: Overlap | None, spread: float | None = None) -> Determined | None:
    """Say whether inputs determine their Fréchet mean.

    Args:
        overlap: The overlap of the inputs. It tells where it is clear: "yes" or "no", else "open".
        spread: How far apart several starts ended, relative to the mean: that decides where it was measured.
    """
    if overlap is None:
        return None
    if spread is not None:
        answers: dict[Determined, float] = {"yes": SPREAD_YES, "partly": SPREAD_PARTLY, "no": math.inf}
        return next((answer for answer, most in answers.items() if spread <= most), "no")
    unpaired = overlap.weakest >= UNPAIRED[0] and pairing(overlap) <= UNPAIRED[1]
    if overlap.weakest <= UNSHARED or unpaired:
        return "no"
    if overlap.weakest >= YES[0] and pairing(overlap) >= YES[1]:
        return "yes"
    return "open"


def doubtful(overlap: Overlap | None) -> bool:
    """Say whether the overlap of a module's inputs leaves open whether they determine their mean."""
    return judge_overlap(overlap) == "open"


def judge_modules(answers: Iterable[Determined | None]) -> Determined | None:
    """Put the answers of modules together: that of at least nine tenths of them; without one "partly", or
    "open" where the open ones may turn out to make it nine tenths.
    """
    counts = Counter(answer for answer in answers if answer is not None)
    enough = 0.9 * counts.total()
    if not counts:
        return None
    for answer in ("yes", "no"):
        if counts[answer] >= enough:
            return answer
    if counts["open"] and max(counts["yes"], counts["no"]) + counts["open"] >= enough:
        return "open"
    return "partly"


def pairing(overlap: Overlap) -> float:
    """Return how far shared directions belong to each other: 1 for copies, about 0 for independent cores."""
    sides = overlap.left * overlap.right
    return sides and overlap.cosine / sides


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
