"""Measuring a merge: norms and distances of each module, and whether the inputs share their subspaces."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from riemerge.methods import Merged, Method, Stack
from riemerge.methods.cancelling import remainder
from riemerge.records.run_record import SPREAD_PARTLY, SPREAD_YES, Determined, ModuleRow, Overlap, Totals
from riemerge.updates.low_rank import LowRankUpdate

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


class Frames(NamedTuple):
    """Singular frames (m, r), (n, r) and singular values (r,) of one update, r its numerical rank."""

    left: Tensor
    right: Tensor
    values: Tensor


def frames(update: LowRankUpdate, storage: torch.dtype | None = None) -> Frames:
    """Return the singular frames of an update, without the directions that are zero to round-off.

    Args:
        update: Any update.
        storage: The dtype in which it was stored, as in `LowRankUpdate.numerical_rank`.
    """
    canonical = update.to(dtype=torch.float64).balance()
    rank = canonical.numerical_rank(storage or update.dtype)
    left, right = canonical.B[:, :rank], canonical.A[:rank].mT
    sides = left.norm(dim=0), right.norm(dim=0)
    return Frames(left / sides[0], right / sides[1], sides[0] * sides[1])


def overlap(inputs: Sequence[Frames], shape: tuple[int, int] | None = None) -> Overlap | None:
    """Compare the subspaces of T inputs pair by pair, against the level of uniformly random subspaces.

    Inputs that are all zero have no subspaces and are left out.

    Law: invariant under rotations of both spaces; a function of the updates dW; share 1 for equal subspaces
    and, in expectation, at most 0 for random ones (there the mean square cosine is max(rᵢ, rⱼ) / n in n
    dimensions). Side by side, since a mean needs both: adapters that share the start of A alone share their
    row spaces, and their mean is as free as that of independent ones where they share nothing else.

    Args:
        inputs: Frames of the T inputs, in any common orthonormal bases.
        shape: (m, n) of the module, where the frames are given in bases of a smaller space.

    Returns:
        None for fewer than two inputs that are not all zero.
    """
    pairs = list(itertools.combinations([frame for frame in inputs if frame.left.shape[1] > 0], 2))
    if not pairs:
        return None
    m, n = shape or (inputs[0].left.shape[0], inputs[0].right.shape[0])
    left = [_angles(one.left, other.left, m) for one, other in pairs]
    right = [_angles(one.right, other.right, n) for one, other in pairs]
    sides = list(zip(left, right, strict=True))
    return Overlap(
        left=_mean([side.mean for side in left]),
        right=_mean([side.mean for side in right]),
        left_random=_mean([side.level for side in left]),
        right_random=_mean([side.level for side in right]),
        share=_mean([min(_share(x.mean, x.level), _share(y.mean, y.level)) for x, y in sides]),
        weakest=_mean([max(_share(x.least, x.level), _share(y.least, y.level)) for x, y in sides]),
        cosine=_mean([_angle(one, other) for one, other in pairs]),
    )


def mean_overlap(overlaps: Sequence[Overlap | None]) -> Overlap | None:
    """Return the mean over those modules that have an overlap; None where none has."""
    known = [one for one in overlaps if one is not None]
    if not known:
        return None
    return Overlap(**{name: _mean([getattr(one, name) for one in known]) for name in Overlap.model_fields})


def determined(found: Overlap | None, spread: float | None = None) -> Determined | None:
    """Say whether inputs determine their Fréchet mean.

    Args:
        found: Their overlap, which tells where it is clear: "yes", "no", or "open".
        spread: How far apart several starts ended, relative to the mean: that decides where it was measured.
    """
    if found is None:
        return None
    if spread is not None:
        return "yes" if spread <= SPREAD_YES else "partly" if spread <= SPREAD_PARTLY else "no"
    unpaired = found.weakest >= UNPAIRED[0] and paired(found) <= UNPAIRED[1]
    if found.weakest <= UNSHARED or unpaired:
        return "no"
    return "yes" if found.weakest >= YES[0] and paired(found) >= YES[1] else "open"


def doubtful(inputs: Sequence[LowRankUpdate], shape: tuple[int, int], storage: Sequence[torch.dtype]) -> bool:
    """Say whether the overlap of a module's inputs leaves open whether they determine their mean.

    Args:
        inputs: In any common orthonormal bases.
        shape: (m, n) of the module.
        storage: T dtypes in which they were stored.
    """
    return determined(_overlap(inputs, shape, storage)) == "open"


def determined_together(answers: Sequence[Determined | None]) -> Determined | None:
    """Put the answers of modules together: that of at least nine tenths of them; without one "partly", or
    "open" where the open ones may turn out to make it nine tenths.
    """
    known = [answer for answer in answers if answer is not None]
    if not known:
        return None
    counts, enough = Counter(known), 0.9 * len(known)
    for answer in ("yes", "no"):
        if counts[answer] >= enough:
            return answer
    could_be = max(counts["yes"], counts["no"]) + counts["open"]
    return "open" if counts["open"] and could_be >= enough else "partly"


def paired(found: Overlap) -> float:
    """How far shared directions belong to each other: 1 for copies, about 0 for independent cores."""
    sides = found.left * found.right
    return found.cosine / sides if sides > 0 else 0.0


def module_row(
    module: str,
    shape: tuple[int, ...],
    merged: Merged,
    scale: float,
    stack: Stack,
    stored: Sequence[torch.dtype],
    order: Sequence[int],
    method: Method,
) -> ModuleRow:
    """Measure one merged module.

    Args:
        module: Its name.
        shape: (m, n) of the module.
        merged: What a method made of it.
        scale: The factor λ on it.
        stack: What was merged.
        stored: T dtypes in which the factors of the inputs were stored.
        order: Places in the stack, in the order in which the record names the inputs.
        method: The row of the table that merged them.
    """
    inputs, evidence = merged.inputs, merged.evidence
    measured, numerical = merged.measured(scale), evidence.numerical_ranks
    norms = measured.inputs
    facts: dict[str, Any] = {}
    if inputs:
        found = _overlap(inputs, cast("tuple[int, int]", shape), stack.storage)
        left = remainder(inputs, norms, stack.weights(module), stored, directions=method.directions)
        facts = {
            "overlap": found,
            "determined": determined(found, evidence.update_spread),
            "cancelled": left.cancels,
        }
    return ModuleRow(
        module=module,
        shape=tuple(shape),
        input_ranks=tuple(inputs[i].rank for i in order if inputs),
        numerical_ranks=numerical and tuple(numerical[i] for i in order),
        rank=merged.small and merged.small.rank,
        status=evidence.status.name,
        cost=evidence.cost,
        gradient_norm=evidence.gradient_norm,
        horizontality=evidence.horizontality,
        forward_error=evidence.forward_error,
        passes=evidence.passes,
        distances=evidence.distances and tuple(evidence.distances[i] for i in order),
        norm=measured.norm,
        input_norms=tuple(norms[i] for i in order),
        relative_distances=tuple(measured.distances[i] / norms[i] if norms[i] > 0 else None for i in order),
        energy_kept=evidence.energy_kept,
        starts=evidence.starts,
        cost_spread=evidence.cost_spread,
        update_spread=evidence.update_spread,
        **facts,
    )


def totals(rows: Sequence[ModuleRow]) -> Totals:
    """Put all modules together, as if they were one block-diagonal module."""
    costs = [row.cost for row in rows if row.cost is not None]
    gradients = [row.gradient_norm for row in rows if row.gradient_norm is not None]
    apart = [row.distances for row in rows if row.distances is not None]
    norms = [math.hypot(*column) for column in zip(*(row.input_norms for row in rows), strict=True)]
    absolute = [
        math.hypot(*(d * norm for d, norm in zip(column, lengths, strict=True) if d is not None))
        for column, lengths in zip(
            zip(*(row.relative_distances for row in rows), strict=True),
            zip(*(row.input_norms for row in rows), strict=True),
            strict=True,
        )
    ]
    common = mean_overlap([row.overlap for row in rows])
    spread = _common_spread(rows)
    return Totals(
        modules=len(rows),
        parameters=sum(
            math.prod(row.shape) if row.rank is None else sum(row.shape) * row.rank for row in rows
        ),
        cost=math.fsum(costs) if costs else None,
        gradient_norm=math.hypot(*gradients) if gradients else None,
        distances=tuple(_together(column) for column in zip(*apart, strict=True)) if apart else None,
        norm=math.hypot(*(row.norm for row in rows)),
        input_norms=tuple(norms),
        relative_distances=tuple(
            d / norm if norm > 0 else None for d, norm in zip(absolute, norms, strict=True)
        ),
        statuses=dict(sorted(Counter(row.status for row in rows).items())),
        overlap=common,
        update_spread=spread,
        determined=determined_together([row.determined for row in rows]),
        determined_modules=dict(sorted(Counter(row.determined for row in rows if row.determined).items())),
    )


def _overlap(
    inputs: Sequence[LowRankUpdate], shape: tuple[int, int], storage: Sequence[torch.dtype]
) -> Overlap | None:
    """The overlap of a module's inputs as they were stored."""
    return overlap([frames(update, dtype) for update, dtype in zip(inputs, storage, strict=True)], shape)


def _together(values: Sequence[float | None]) -> float | None:
    """Root of the sum of squares of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return math.hypot(*known) if known else None


def _common_spread(rows: Sequence[ModuleRow]) -> float | None:
    """The spread of all modules as one: each start's updates apart, as a share of the norm of them all."""
    known = [(row.update_spread * row.norm, row.norm) for row in rows if row.update_spread is not None]
    if not known:
        return None
    apart, norms = zip(*known, strict=True)
    whole = math.hypot(*norms)
    return math.hypot(*apart) / whole if whole > 0 else 0.0


class _Angles(NamedTuple):
    """Cosines of the principal angles of two subspaces: RMS, the least, and the RMS of random subspaces."""

    mean: float
    least: float
    level: float


def _angles(one: Tensor, other: Tensor, width: int) -> _Angles:
    small, large = sorted((one.shape[1], other.shape[1]))
    cosines = torch.linalg.svdvals(one.mT @ other)
    return _Angles(float(cosines.norm()) / math.sqrt(small), float(cosines[-1]), math.sqrt(large / width))


def _angle(one: Frames, other: Frames) -> float:
    """Cosine between two updates as vectors, from their singular factors."""
    crossed = (one.left.mT @ other.left) * (one.right.mT @ other.right)
    inner = (one.values.unsqueeze(-1) * crossed * other.values).sum()
    return float(inner / (one.values.norm() * other.values.norm()))


def _share(cosine: float, level: float) -> float:
    """0 at the random level, 1 for equal subspaces, also where a subspace fills everything."""
    room = 1.0 - level**2
    return (cosine**2 - level**2) / room if room > 1e-12 else 1.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
