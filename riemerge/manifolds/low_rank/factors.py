"""Low-rank matrices U B Vᵀ as single tensors: two frames and a positive definite core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, TypeVar, Unpack, final

import torch
from torch import Tensor

from riemerge import linalg
from riemerge.errors import NumericalError
from riemerge.manifolds.base import Options, Reduction, change_options, trivial_reduction
from riemerge.manifolds.product import FactoredManifold
from riemerge.manifolds.spd import SymmetricPositiveDefinite
from riemerge.manifolds.spd_base import PositiveDefinite
from riemerge.manifolds.spd_metrics import SpdBuresWasserstein, SpdEuclidean, SpdLogEuclidean
from riemerge.manifolds.stiefel import Stiefel

_Value = TypeVar("_Value")

FRAMES: dict[str, float] = {"canonical": 0.5, "euclidean": 1.0}
"""Metrics of frames by name: their β (see `Stiefel`)."""
CORES: dict[str, type[PositiveDefinite]] = {
    "affine_invariant": SymmetricPositiveDefinite,
    "log_euclidean": SpdLogEuclidean,
    "bures_wasserstein": SpdBuresWasserstein,
    "euclidean": SpdEuclidean,
}
"""Metrics of cores by name."""


@final
class FixedRank(FactoredManifold):
    """K copies of St(m, r) x SPD(r) x St(n, r) with the product metric; a point is one tensor (K, m + r + n,
    r).

    The metric is the sum of those of the factors with weights w_U, w_B, w_V: by default the canonical metric
    of both frames, the affine-invariant one of the core, and weights of one. A point stands for the update
    dW = U B Vᵀ. Many points stand for the same update: divide by `Orthogonal(r)` with `QuotientManifold` for
    the geometry of updates themselves.

    Source: the polar factorisation of Mishra, Meyer, Bonnabel, Sepulchre 2014, with the canonical Stiefel
    metric.

    Args:
        m: Rows of the update.
        n: Columns of the update.
        r: Rank, r <= min(m, n).
        frames: Metric of both frames: a name in `FRAMES`, or β (see `Stiefel`).
        core: Metric of the core: a name in `CORES`, or a class of `PositiveDefinite`.
        weights: Positive weights (w_U, w_B, w_V) of the three metrics. The Bures-Wasserstein metric scales
            with B and the Euclidean one with B², and frames do not: choose w_B accordingly.
        retraction: Retraction of the core: `exp`, or `quadratic` (see `SymmetricPositiveDefinite`, which
            alone has it). Frames follow geodesics.
        options: See `riemerge.manifolds.base.Options`.
    """

    def __init__(
        self,
        m: int,
        n: int,
        r: int,
        *,
        frames: str | float = "canonical",
        core: str | type[PositiveDefinite] = "affine_invariant",
        weights: Sequence[float] = (1.0, 1.0, 1.0),
        retraction: Literal["exp", "quadratic"] = "exp",
        **options: Unpack[Options],
    ) -> None:
        if not 1 <= r <= min(m, n):
            raise ValueError(f"FixedRank: m, n, r are {m}, {n}, {r}; 1 <= r <= min(m, n) is needed")
        beta = _look_up("frames", FRAMES, frames)
        kind = _look_up("core", CORES, core)
        seed = options.get("seed", 0)
        left, middle, right = (change_options(options, seed=seed + i) for i in range(3))
        self.left, self.right = Stiefel(m, r, beta=beta, **left), Stiefel(n, r, beta=beta, **right)
        self.core = kind(r, **middle)
        if kind is SymmetricPositiveDefinite:
            self.core = SymmetricPositiveDefinite(r, retraction=retraction, **middle)
        elif retraction != "exp":
            raise ValueError(f"FixedRank: {kind.__name__} has no retraction {retraction!r}; it has 'exp'")
        facts = {
            "frames": (_name(FRAMES, beta), "canonical"),
            "core": (_name(CORES, kind), "affine_invariant"),
            "weights": (tuple(map(float, weights)), (1.0, 1.0, 1.0)),
            "retraction": (retraction, "exp"),
        }
        others = ", ".join(f"{key}={fact}" for key, (fact, default) in facts.items() if fact != default)
        name = f"Factored {m}x{n} matrices of rank {r}" + f" ({others})" * bool(others)
        super().__init__(name, (self.left, self.core, self.right), weights, (m + r + n, r), **options)
        self.m = m
        self.n = n
        self.r = r
        self.beta = beta
        self._retraction: Literal["exp", "quadratic"] = retraction

    def with_modules(self, k: int) -> Self:
        """Return this manifold with k modules."""
        return self._resize(self.m, self.n, k)

    @property
    def canonical(self) -> bool:
        """Whether the metric is the default one, for which there are faster ways to compute."""
        plain = self.beta == 0.5 and set(self.scales) == {1.0}
        return plain and isinstance(self.core, SymmetricPositiveDefinite)

    def split(self, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return U (..., m, r), B (..., r, r) and V (..., n, r) as views of a point or tangent vector."""
        u, b, v = point.split((self.m, self.r, self.n), dim=-2)
        return u, b, v

    def join(self, *parts: Tensor) -> Tensor:
        """Return the point or tangent vector (..., m + r + n, r) with factors U, B and V."""
        return torch.cat(parts, dim=-2)

    def factor(self, left: Tensor, right: Tensor) -> Tensor:
        """Factor updates left @ right' as points, without ever forming them.

        One QR a side and one SVD of an r x r core: U and V are the singular frames, B = diag(singular
        values), and the largest entry of each column of U is positive. So the result depends on the update
        alone, up to rotations within repeated singular values.

        Args:
            left: (K, m, r), B of a LoRA update.
            right: (K, n, r), Aᵀ of a LoRA update, times its scale.

        Raises:
            NumericalError: An update has rank below r to working precision: it is no point of this
                manifold.
        """
        dtype = left.dtype
        left, right = linalg.widen(left), linalg.widen(right)
        q_left, r_left = torch.linalg.qr(left)
        q_right, r_right = torch.linalg.qr(right)
        small = linalg.thin_svd(r_left.double() @ r_right.double().mT)
        # Round-off of the two QR factorisations, in the precision of the factors.
        ranks = linalg.numerical_rank(
            small.values, 10 * torch.finfo(left.dtype).eps * max(self.m, self.n) ** 0.5
        )
        if (deficient := ranks < self.r).any():
            raise NumericalError(
                f"{self}: {int(deficient.sum())} of {deficient.numel()} updates have a numerical rank below "
                f"{self.r} (least: {int(ranks.min())}); an update is a point only at its own rank"
            )
        u = q_left @ small.left.to(left.dtype)
        signs = linalg.canonical_signs(u)
        v = q_right @ small.right.to(right.dtype)
        return self.join(u * signs, torch.diag_embed(small.values).to(left.dtype), v * signs).to(dtype)

    def matrix(self, point: Tensor) -> Tensor:
        """Return dW = U B Vᵀ (..., m, n), dense: for tests and small modules."""
        u, b, v = self.split(point)
        return u @ b @ v.mT

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follow a geodesic, factor by factor."""
        (u, b, v), (a, c, w) = self.split(point), self.split(tangent_vector)
        core = self.core.geodesic(b, c)
        if self.m == self.n:
            # One batch of both sides, side by side in front of the matrices: what leads may broadcast.
            both = self.left.geodesic(torch.stack((u, v), dim=-3), torch.stack((a, w), dim=-3))
            left, right = zip(*(x.unbind(dim=-3) for x in both), strict=True)
        else:
            left, right = self.left.geodesic(u, a), self.right.geodesic(v, w)
        arrival, velocity = zip(left, core, right, strict=True)
        return self.join(*arrival), self.join(*velocity)

    def arrive(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Return where `geodesic` arrives, for less than its velocity takes."""
        (u, b, v), (a, c, w) = self.split(point), self.split(tangent_vector)
        if self.m == self.n:
            left, right = self.left.arrive(torch.stack((u, v)), torch.stack((a, w))).unbind()
        else:
            left, right = self.left.arrive(u, a), self.right.arrive(v, w)
        return self.join(left, self.core.exp(b, c), right)

    def reduce(self, points: Tensor) -> Reduction:
        """Reduce both sides to the joint span of the frames: FixedRank(min(m, T r), min(n, T r), r),
        exactly.
        """
        u, b, v = self.split(points)
        left, right = self.left.reduce(u), self.right.reduce(v)
        m, n = left.points.shape[-2], right.points.shape[-2]
        if (m, n) == (self.m, self.n):
            return trivial_reduction(self, points)
        small = self._resize(m, n, self.k)

        def lift(point: Tensor) -> Tensor:
            x, core, y = small.split(point)
            return self.join(left.lift(x), core, right.lift(y))

        return Reduction(small, small.join(left.points, b, right.points), lift)

    def orbit_metric(self, values: Tensor) -> Tensor:
        """Return the squared length, halved, of the turn of a point by a unit of each plane (j, k) of an
        eigenbasis of B: the divisors of the gauge equation, (..., r, r), positive.

        It is w_B (κⱼₖ (lⱼ - lₖ)² + β (w_U + w_V) / w_B), κ the kernel of the core's metric.

        Args:
            values: Eigenvalues l of B, (..., r).
        """
        left, core, right = self.scales
        return core * self.core.orbit_metric(values, self.beta * (left + right) / core)

    def momentum(self, point: Tensor, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return B's eigenvalues and eigenvectors and, in that basis, the skew M with sum(M * W) = ⟨vector,
        (U W, B W - W B, V W)⟩ for every skew W; float64.
        """
        (u, b, v), (a, d, c) = self.split(point), self.split(vector)
        left, core, right = self.scales
        values, basis = torch.linalg.eigh(b.double())
        frames = linalg.skew((left * (u.mT @ a) + right * (v.mT @ c)).double())
        turned = core * self.core.momentum(values, basis.mT @ d.double() @ basis)
        return values, basis, self.beta * (basis.mT @ frames @ basis) + turned

    def _resize(self, m: int, n: int, k: int) -> Self:
        return type(self)(
            m,
            n,
            self.r,
            frames=self.beta,
            core=type(self.core),
            weights=self.scales,
            retraction=self._retraction,
            **change_options(self.options, k=k),
        )


def _look_up(kind: str, known: Mapping[str, _Value], name: str | _Value) -> _Value:
    """Return the value with a name, or the value itself."""
    if not isinstance(name, str):
        return name
    if name not in known:
        raise ValueError(
            f"FixedRank: {kind} is {name!r}; known are {', '.join(known)}, or a value of your own"
        )
    return known[name]


def _name(known: Mapping[str, _Value], value: _Value) -> Any:
    """Return the name of a value, or what says which it is where it has none."""
    names = (name for name, held in known.items() if held == value)
    return next(names, getattr(value, "__name__", value))
