"""Quotient geometries: updates of one rank as factors, up to what keeps their product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from riemerge.errors import AdapterError, NumericalError
from riemerge.frechet.status import Status
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold
from riemerge.manifolds import GLFactors as Pairs
from riemerge.manifolds.symmetries import GeneralLinear
from riemerge.methods.geometries.geometry import Geometry, Placed, Solved, Steps, spread
from riemerge.methods.method import Domain
from riemerge.methods.setting import Setting
from riemerge.methods.stack import Evidence
from riemerge.updates.low_rank import LowRankUpdate


class FactoredGeometry(Geometry, ABC):
    """Updates of one rank as points of a manifold of factors. Abstract.

    Law: the mean is a function of the dW alone. A module is solved in the span of its factors, whatever its
    width. An update that is all zero has no place on the manifold: it is left out of its module, and the
    weights of the others count in proportion. Where an update has a numerical rank below its rank, all of
    that module are truncated to the least numerical rank: no floor stands in for directions that are not
    there. Updates whose entries were edited come cut to the rank that they had.

    Raises:
        AdapterError: The updates of a module do not have one rank.
        NumericalError: A distance was undefined.
    """

    @property
    @final
    def domain(self) -> Domain:
        """Factors."""
        return "factors"

    @abstractmethod
    def quotient(self, m: int, n: int, r: int, **options: Any) -> QuotientManifold:
        """Return the manifold of updates (m, n) of rank r, of one module."""

    @abstractmethod
    def factor(self, manifold: Any, left: Tensor, right: Tensor) -> Tensor:
        """Return the points (T, rows, r) of T updates left rightᵀ, with columns (T, m, r) and (T, n, r)."""

    @abstractmethod
    def multiply(self, manifold: Any, point: Tensor) -> tuple[Tensor, Tensor]:
        """Return the columns (..., m, r) and (..., n, r) of the updates left rightᵀ that points stand for."""

    @final
    def mean(self, x: Sequence[LowRankUpdate], setting: Setting) -> Steps:
        """Say what to solve: one problem, unless at most one update counts."""
        x, count = truncate(x, setting), len(x)
        each = zip(x, setting.storage, strict=True)
        numerical = tuple(update.numerical_rank(storage) for update, storage in each)
        present = [place for place in range(count) if numerical[place] > 0]
        AdapterError.refuse(mixed_ranks([(setting.names[place], x[place].rank) for place in present]))
        if not present:
            zero = x[0].truncate(min(update.rank for update in x)).times(0.0).absorb_scale()
            return Solved(zero, Evidence(Status.EXACT, numerical_ranks=numerical))
        rank = min(numerical[place] for place in present)
        cut = [_cut(x[place], rank) for place in present]
        kept = [
            min((after.norm() / setting.norms[place]) ** 2, 1.0)
            for place, after in zip(present, cut, strict=True)
            if setting.ranks is None or after.rank != setting.ranks[place]
        ]
        known: dict[str, Any] = {"numerical_ranks": numerical, "energy_kept": min(kept, default=None)}
        if len(present) == 1:
            (only,) = cut
            exact = Evidence(Status.EXACT, cost=0.0, gradient_norm=0.0, distances=(0.0,), **known)
            return Solved(only.truncate(rank), spread(exact, present, count))
        manifold = self.quotient(*cut[0].shape, rank, device=cut[0].device)
        points = self.factor(manifold.total, *_columns(cut))
        solved = yield Placed(manifold, points, setting.weights[present], apart=self._apart)
        if solved.evidence.status is Status.UNDEFINED:
            raise NumericalError(solved.evidence.advice)
        left, right = self.multiply(manifold.total, solved.value)
        update = LowRankUpdate(left, right.mT.contiguous()).balance()
        return Solved(update, spread(replace(solved.evidence, **known), present, count))

    @final
    def _apart(self, manifold: QuotientManifold, points: Tensor, others: Tensor) -> Tensor:
        """Return ‖dW − dW'‖ / ‖dW'‖ of K pairs of points (K,)."""
        (a, b), (c, d) = (self.multiply(manifold.total, point) for point in (points, others))
        left, right, whole, side = (
            torch.linalg.qr(one, mode="r").R
            for one in (torch.cat([a, c], dim=-1), torch.cat([b, -d], dim=-1), c, d)
        )
        relative: Tensor = torch.linalg.matrix_norm(left @ right.mT) / torch.linalg.matrix_norm(
            whole @ side.mT
        )
        return relative


@final
@dataclass(frozen=True)
class Polar(FactoredGeometry):
    """Updates U B Vᵀ of one rank as triples (U, B, V) up to a common rotation of their columns.

    Attributes:
        frames: Metric of both frames: `canonical`, `euclidean`, or β (see `riemerge.manifolds.Stiefel`).
        core: Metric of the core: `affine_invariant`, `log_euclidean`, `bures_wasserstein` or `euclidean`.
        weights: Weights of the metrics of U, B and V: three numbers, or `1/2/1` in a text.

    Source: arXiv 2604.27155, section 3.
    """

    frames: str | float = "canonical"
    core: str = "affine_invariant"
    weights: str | tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        self.quotient(1, 1, 1)  # refuses what it does not know

    def quotient(self, m: int, n: int, r: int, **options: Any) -> QuotientManifold:
        """Return (Stiefel × SPD × Stiefel)/O(r)."""
        weights: Sequence[float] = ()
        if isinstance(self.weights, tuple):
            weights = self.weights
        else:
            weights = [float(weight) for weight in str(self.weights).split("/")]
        metrics: dict[str, Any] = {"frames": self.frames, "core": self.core, "weights": weights}
        return QuotientManifold(FixedRank(m, n, r, **metrics, **options), Orthogonal(r))

    def factor(self, manifold: FixedRank, left: Tensor, right: Tensor) -> Tensor:
        """Return (U, B, V), by QR and a polar decomposition."""
        return manifold.factor(left, right)

    def multiply(self, manifold: FixedRank, point: Tensor) -> tuple[Tensor, Tensor]:
        """Return U B and V."""
        u, core, v = manifold.split(point)
        return u @ core, v


@final
@dataclass(frozen=True)
class GLFactors(FactoredGeometry):
    """Updates G Hᵀ of one rank as pairs (G, H) up to GL(r): G A and H A⁻ᵀ are the same.

    Only updates that have directions in common have a mean here (see `riemerge.manifolds.GLFactors`).

    Source: arXiv 2604.27155, section 4, for matrices.
    """

    def quotient(self, m: int, n: int, r: int, **options: Any) -> QuotientManifold:
        """Return the pairs of factors up to GL(r)."""
        return QuotientManifold(Pairs(m, n, r, **options), GeneralLinear(r))

    def factor(self, manifold: Pairs, left: Tensor, right: Tensor) -> Tensor:
        """Return the columns themselves."""
        return manifold.join(left, right)

    def multiply(self, manifold: Pairs, point: Tensor) -> tuple[Tensor, Tensor]:
        """Return G and H."""
        return manifold.split(point)


# d² errs by the square of what is left of the gauge.
_ALIGNED = 1e-4


def distances(updates: Sequence[LowRankUpdate], others: Sequence[LowRankUpdate]) -> Tensor:
    """Return the quotient distance of each update to its partner: K modules of one shape and one common rank.

    Law: a metric on updates of that rank; computed in the joint span of both, in float64, on one thread (the
    caller sees to that).

    Returns:
        (K,) float64; NaN where no geodesic was found.

    Raises:
        NumericalError: An update has a numerical rank below its rank.
    """
    total = FixedRank(*updates[0].shape, updates[0].rank, k=len(updates), device=updates[0].device)
    reduction = total.reduce(torch.stack([total.factor(*_columns(each)) for each in (updates, others)]))
    small, action = reduction.manifold, Orthogonal(total.r)
    to, point = reduction.points.double()
    element = action.nearest(small, point, to, tolerance=_ALIGNED)
    return small.dists(to, action.act(small, point, element))


def truncate(x: Sequence[LowRankUpdate], setting: Setting) -> list[LowRankUpdate]:
    """Return updates cut to the `rank` that is asked for, if one is.

    Law: each is the nearest update of that rank in the Frobenius norm (Eckart & Young 1936); an update that
    has just as many columns is returned as it is.

    Raises:
        NumericalError: The rank asked for is above that of some updates; all of them are named.
    """
    rank = setting.rank
    if rank is None:
        return list(x)
    most = {
        name: min(update.rank, *update.shape)
        for name, update in zip(setting.names, x, strict=True)
        if update.rank != rank
    }
    NumericalError.refuse(
        f"{name}: its rank is at most {least}, below the rank {rank} asked for"
        for name, least in most.items()
        if least < rank
    )
    return [_cut(update, rank) for update in x]


def _cut(update: LowRankUpdate, rank: int) -> LowRankUpdate:
    if update.rank == rank:
        return update
    return update.truncate(rank)


def refuse_mixed(module: str, ranks: Sequence[tuple[str, int]]) -> list[str]:
    """Say what is wrong with the ranks of the updates of one module that are not all zero: they differ.

    Args:
        module: Name of the module.
        ranks: Name and rank of each update that counts.
    """
    return [f"{module}: {problem}" for problem in mixed_ranks(ranks)]


def mixed_ranks(ranks: Sequence[tuple[str, int]]) -> list[str]:
    """Say what is wrong with the ranks of updates, each with its name, where they differ."""
    if len({rank for _, rank in ranks}) < 2:
        return []
    named = ", ".join(f"{name} {rank}" for name, rank in ranks)
    least = min(rank for _, rank in ranks)
    advice = f"geomerge needs one rank: truncate all with --rank {least}, or use method average"
    return [f"the ranks differ ({named}): {advice}"]


def _columns(updates: Sequence[LowRankUpdate]) -> tuple[Tensor, Tensor]:
    """Return the columns (K, m, r) and (K, n, r) of K updates of one shape and rank."""
    return (
        torch.stack([update.B * update.scale for update in updates]),
        torch.stack([update.A.mT for update in updates]),
    )
