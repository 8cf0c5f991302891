"""The manifolds that every law is run on, and how far from the identity their points are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from riemerge.manifolds import (
    Euclidean,
    FixedRank,
    GeodesicManifold,
    Grassmann,
    HalfPlane,
    Orthogonal,
    Product,
    QuotientManifold,
    Sphere,
    Stiefel,
    SymmetricPositiveDefinite,
)
from tests.helpers import adapter_family
from tests.manifolds.two_layers import Scaling, TwoLayers

TOTAL: dict[str, Callable[[], GeodesicManifold]] = {
    "stiefel": lambda: Stiefel(9, 3, k=2, seed=1),
    "stiefel, short": lambda: Stiefel(5, 3, k=2, seed=1),
    "stiefel, p = 1": lambda: Stiefel(4, 1, k=2, seed=1),
    "stiefel, euclidean": lambda: Stiefel(9, 3, beta=1.0, k=2, seed=1),
    "stiefel, short, between": lambda: Stiefel(5, 3, beta=0.7, k=2, seed=1),
    "rotations": lambda: Stiefel(4, 4, k=2, seed=1),
    "spd": lambda: SymmetricPositiveDefinite(4, k=2, seed=1),
    "spd, quadratic steps": lambda: SymmetricPositiveDefinite(4, k=2, retraction="quadratic", seed=1),
    "positive numbers": lambda: SymmetricPositiveDefinite(1, k=2, seed=1),
    "fixed rank": lambda: FixedRank(8, 7, 3, k=2, seed=1),
    "fixed rank, quadratic steps": lambda: FixedRank(8, 7, 3, k=2, retraction="quadratic", seed=1),
    "fixed rank 1": lambda: FixedRank(5, 6, 1, k=2, seed=1),
    "two layers": lambda: TwoLayers(k=2, seed=1),
    "euclidean": lambda: Euclidean(3, 4, k=2, seed=1),
    "sphere": lambda: Sphere(3, 4, k=2, seed=1),
    "grassmann": lambda: Grassmann(7, 3, k=2, seed=1),
    "grassmann, short": lambda: Grassmann(4, 3, k=2, seed=1),
    "half-planes": lambda: HalfPlane(3, k=2, seed=1),
    "product": lambda: Product(
        Sphere(3, 2, k=2, seed=1), SymmetricPositiveDefinite(2, k=2, seed=2), scales=(2, 0.5)
    ),
    "product of other columns": lambda: Product(
        HalfPlane(3, k=2, seed=1), SymmetricPositiveDefinite(2, k=2, seed=2)
    ),
}
QUOTIENTS: dict[str, Callable[[], QuotientManifold]] = {
    "updates": lambda: QuotientManifold(FixedRank(8, 7, 3, k=2, seed=1), Orthogonal(3)),
    "updates of weighed metrics": lambda: QuotientManifold(
        FixedRank(6, 5, 2, frames=0.7, core="log_euclidean", weights=(1.0, 2.0, 0.5), k=2, seed=1),
        Orthogonal(2),
    ),
    "updates of rank 1": lambda: QuotientManifold(FixedRank(8, 7, 1, k=2, seed=1), Orthogonal(1)),
    "updates of short sides": lambda: QuotientManifold(FixedRank(5, 7, 3, k=2, seed=1), Orthogonal(3)),
    "two layers by scaling": lambda: QuotientManifold(TwoLayers(k=2, seed=1), Scaling()),
}


def updates(m: int, n: int, r: int, k: int = 1) -> QuotientManifold:
    """Updates of rank r modulo their gauge."""
    return QuotientManifold(FixedRank(m, n, r, k=k), Orthogonal(r))


def family(
    name: str, count: int, m: int, n: int, r: int, seed: int, k: int = 2, **options: float
) -> list[Tensor]:
    """Points of `updates(m, n, r, k)`: each module a family of its own, k different ones stacked."""
    total = FixedRank(m, n, r, k=k)
    modules = [adapter_family(name, count, m, n, r, seed + 1000 * i, **options) for i in range(k)]
    return [
        total.factor(torch.stack([x[t][0] for x in modules]), torch.stack([x[t][1].mT for x in modules]))
        for t in range(count)
    ]


def matrices(quotient: QuotientManifold, point: Tensor) -> Tensor:
    """The updates dW (K, m, n) that a point stands for."""
    assert isinstance(quotient.total, FixedRank)
    return quotient.total.matrix(point)


def relative(a: Tensor, b: Tensor) -> float:
    """The largest relative Frobenius difference over modules."""
    norms = torch.linalg.matrix_norm(a - b) / torch.linalg.matrix_norm(b)
    return float(norms.max())
