"""Updates, settings and a closeness that the tests of spectral rows share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from riemerge.linalg import SVD
from riemerge.methods.setting import Mean, Setting
from riemerge.updates import Cores
from tests.helpers import seeded

# The inputs' condition is at most a few hundred, and polar factors of random frames lose no more.
CLOSE = 1e-10


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Independent normal entries."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def low_rank(count: int, m: int, n: int, r: int, seed: int = 0) -> Tensor:
    """So many (m, n) updates of rank r."""
    return normal(count, m, r, seed=seed) @ normal(count, r, n, seed=seed + 100)


def assert_near(found: Tensor, expected: Tensor, tolerance: float = CLOSE) -> None:
    """Within a tolerance relative to the norm of what is expected."""
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * max(float(expected.norm()), 1e-300)


def on_stack(mean: Mean) -> Callable[[Tensor, Setting], Tensor]:
    """A mean of cores as one of a stack of updates."""

    def merge(x: Tensor, at: Setting) -> Tensor:
        found = mean(Cores.of_stack(x), at)
        if isinstance(found, SVD):
            return found.matrix()
        assert isinstance(found, Tensor)
        return found

    return merge


def trimmed(weights: list[float], x: Tensor, density: float = 1.0, **values: Any) -> Setting:
    """The setting of a row that trims and elects."""
    return Setting(
        module=f"{x.shape[1]} x {x.shape[2]}",
        weights=torch.tensor(weights, dtype=torch.float64),
        values={"density": torch.full((len(x),), density, dtype=torch.float64), "merge_func": "mean"}
        | values,
        shape=(x.shape[1], x.shape[2]),
        seeds=tuple(range(7, 7 + len(x))),
    )


CASES = {
    "wide": (low_rank(3, 9, 14, 2), [0.5, 0.3, 0.2]),
    "tall": (low_rank(2, 13, 4, 3), [0.7, 1.9]),
    "full": (normal(2, 6, 9), [1.0, 0.4]),
    "single": (low_rank(1, 7, 5, 2), [1.0]),
    "tiny": (normal(2, 2, 2), [0.2, 0.8]),
}


def in_both_orders(
    mean: Callable[[Tensor, Setting], Tensor], x: Tensor, at: Setting
) -> tuple[Tensor, Tensor]:
    """A mean of updates in reverse order and as they come, each update with its weight, seed and density."""
    order = list(range(len(x)))[::-1]
    density = torch.linspace(0.4, 0.9, len(x), dtype=torch.float64)
    at = replace(at, values={**at.values, "density": density})
    turned = replace(
        at,
        weights=at.weights[order],
        seeds=at.seeds[::-1],
        values={**at.values, "density": density[order]},
    )
    return mean(x[order], turned), mean(x, at)
