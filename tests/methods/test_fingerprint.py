"""Fingerprints: equal for values that are made alike, different for all that a mean depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from riemerge.manifolds import Euclidean, FixedRank, MetricManifold, Orthogonal, QuotientManifold
from riemerge.methods.fingerprint import fingerprint


class Scaled:
    def __init__(self, factor: Any) -> None:
        self.factor = factor

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return self.factor * (a * b).sum(dim=(-2, -1))


class Slotted:
    __slots__ = ("factor",)

    def __init__(self, factor: float) -> None:
        self.factor = factor


class Loop:
    def __init__(self, factor: float) -> None:
        self.own, self.factor = self, factor


def local(factor: float) -> Any:
    """A class whose source is the same whatever it closes over."""

    class Local:
        def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
            return factor * (a * b).sum(dim=(-2, -1))

    return Local()


def shifted(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda d: d + factor


def quotient(**options: Any) -> QuotientManifold:
    return QuotientManifold(FixedRank(9, 8, 2, **options), Orthogonal(2))


# Of a number: a value made of it.
MADE: dict[str, Callable[[float], Any]] = {
    "metric": lambda x: MetricManifold(Euclidean(2, 1), Scaled(x)),
    "metric of a tensor": lambda x: MetricManifold(Euclidean(2, 1), Scaled(torch.eye(2) * x)),
    "metric of a local class": lambda x: MetricManifold(Euclidean(2, 1), local(x)),
    "weights": lambda x: quotient(weights=(1, x, 1)),
    "closure": shifted,
    "slots": Slotted,
    "cycle": Loop,
    "array": lambda x: torch.full((2,), x).numpy(),
    "mapping": lambda x: {"a": {x}},
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_alike_is_alike_and_nothing_else(name: str) -> None:
    make = MADE[name]
    assert fingerprint(make(2.0)) == fingerprint(make(2.0)) != fingerprint(make(3.0))


def test_functions_are_told_by_their_code() -> None:
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda d: d.sin(),
        lambda d: d.cos(),
        lambda d: d + 1,
        lambda d: d + 2,
        torch.sin,
        torch.cos,
    ]
    assert len(set(map(fingerprint, functions))) == len(functions)


def test_a_random_point_changes_no_manifold() -> None:
    manifold = quotient()
    before = fingerprint(manifold)
    manifold.random_point()
    assert fingerprint(manifold) == before != fingerprint(quotient(core="euclidean"))
