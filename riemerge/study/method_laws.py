"""Whether a row of the table of methods does what it claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from riemerge.linalg import polar
from riemerge.methods import PARAMETERS, Method, Options, Stack, find_method, run_method
from riemerge.updates.low_rank import LowRankUpdate

_ROWS, _COLUMNS, _RANK = 18, 14, 3
_WEIGHTS = (0.5, 0.3, 0.2)
# How far a result moves at least where a claim that the row denies is seen to fail.
_SEEN = 1e-3


def check_method(method: str | Method, *, seed: int = 7, **parameters: Any) -> dict[str, float]:
    """Measure the claims of a row of the table of methods on random adapters of one module.

    The keys are those of `riemerge.laws.LAWS["method"]`; laws that do not concern the row are left
    out. A claim that the row denies must be seen to fail: where it holds all the same, its defect is 1.

    Args:
        method: A row, or the name of one.
        seed: Random seed of the adapters, of their statistics and of the gauges.
        parameters: Parameters of the row beside its defaults, for the laws of order and gauge. A density is
            0.5 there unless given: nothing is trimmed or drawn at a density of 1.
    """
    row = find_method(method) if isinstance(method, str) else method
    return dict(_Trial(row, torch.Generator().manual_seed(seed), parameters).laws())


@final
@dataclass(frozen=True, eq=False)
class _Trial:
    """A row, and what it is tried on."""

    row: Method
    generator: torch.Generator
    parameters: Mapping[str, Any]

    def laws(self) -> Iterator[tuple[str, float]]:
        row, number = self.row, self.row.models[1] or len(_WEIGHTS)
        # The mean of unrelated adapters may be undetermined: there round-off moves it far.
        spread = 0.1 if row.may_be_undetermined else 1.0
        middle = self.draw(_ROWS, _RANK), self.draw(_RANK, _COLUMNS)
        given = [
            tuple((1 - spread) * x + spread * self.draw(*x.shape) for x in middle) for _ in range(number)
        ]
        places = list(range(number))
        weights = [1.0] * number if row.ordered else [w / sum(_WEIGHTS[:number]) for w in _WEIGHTS[:number]]
        expected = self.merge(given, weights, places)

        copies = self.merge(given[:1] * number, weights, [0] * number)
        yield "copies", _hold(row.idempotent, copies, given[0][0] @ given[0][1])

        said = {name: 0.5 for name in ("density",) if name in row.parameters} | {**self.parameters}
        turn = [*places[1:], 0]
        turned = self.merge([given[i] for i in turn], [weights[i] for i in turn], turn, **said)
        moved = _miss(turned, self.merge(given, weights, places, **said))
        yield ("sequence", float(moved < _SEEN)) if row.ordered else ("order", moved)

        if not row.ordered and row.models[1] is None:
            left_out = self.merge(given, [1.0, 0.0, 2.0], places)
            yield "absence", _miss(left_out, self.merge(given[::2], [1.0, 2.0], places[::2]))

        ranks = [_RANK] * number if row.truncates_inputs else [_RANK - i for i in places]
        factors = [(b[:, :r], a[:r]) for (b, a), r in zip(given, ranks, strict=True)]
        others = [(b @ g, torch.linalg.solve(g, a)) for b, a in factors for g in [self.draw_gauge(len(a))]]
        turned, as_given = (self.merge(pairs, weights, places, **said) for pairs in (others, factors))
        yield "gauge", _hold(row.gauge_invariant, turned, as_given)

        if row.domain != "entries":  # no orthogonal map keeps entries, or a diagonal form
            left, right = self.draw_gauge(_ROWS, 1.0), self.draw_gauge(_COLUMNS, 1.0)
            if row.domain == "half":
                right = torch.eye(_COLUMNS, dtype=torch.float64)
            mapped = self.merge([(left @ b, a @ right.mT) for b, a in given], weights, places)
            yield "maps", _miss(mapped, left @ expected @ right.mT)

        # Where the rank is a constraint, the nearest to the whole mean is another matrix.
        if not (row.truncates_inputs or row.constrained):
            cut = self.merge(given, weights, places, rank=2)
            least = torch.linalg.svdvals(expected)[2:].norm()
            excess = ((cut - expected).norm() - least).abs() + torch.linalg.svdvals(cut)[2:].norm()
            yield "rank", float(excess / expected.norm())

    def draw(self, rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=self.generator, dtype=torch.float64)

    def draw_gauge(self, size: int, condition: float = 1e3) -> Tensor:
        values = condition ** torch.linspace(-0.5, 0.5, size, dtype=torch.float64)
        return polar(self.draw(size, size)) * values @ polar(self.draw(size, size))

    def merge(
        self,
        adapters: Sequence[tuple[Tensor, ...]],
        weights: Sequence[float],
        seeds: Sequence[int],
        rank: int | str = "sum",
        **said: Any,
    ) -> Tensor:
        """Return what the row merges adapters to, dense and whole.

        Args:
            adapters: T pairs of factors.
            weights: T weights.
            seeds: T seeds of the statistics.
            rank: Rank of the result.
            said: Parameters over the row's defaults.
        """
        row = self.row
        total = sum(weights) if row.normalised else 1.0
        values = {name: (row.defaults | said).get(name) for name in row.parameters}
        each = {
            name: (value,) * len(weights) if value is not None and PARAMETERS[name].per_model else value
            for name, value in values.items()
        }
        stack = Stack(
            names=tuple(f"adapter {i}" for i in range(len(weights))),
            modules={"layers.0": tuple(LowRankUpdate(b, a) for b, a in adapters)},
            weights=lambda _: tuple(weight / total for weight in weights),
            storage=(torch.float64,) * len(weights),
            values=lambda _: each,
            statistics=tuple(partial(_draw_statistics, seed) for seed in seeds),
            base_statistics=partial(_draw_statistics, -1),
        )
        asked = {key: row.defaults[key] for key in ("solver", "max_passes") if key in row.defaults}
        asked_rank = None if row.truncates_inputs else rank
        options = Options(rank=asked_rank, tol=1e-10, cost_tol=0.0, **asked)
        ((_, merged),) = run_method(row, stack, options)
        assert isinstance(merged.update, LowRankUpdate)
        return merged.update.dense()


def _draw_statistics(seed: int, _module: str) -> dict[str, Tensor]:
    """Return statistics of one model of every kind, well-conditioned."""
    generator = torch.Generator().manual_seed(100 + seed)
    fisher = torch.rand(_ROWS, _COLUMNS, generator=generator, dtype=torch.float64) + 0.1
    roots = [torch.randn(size, size, generator=generator, dtype=torch.float64) for size in (_COLUMNS, _ROWS)]
    gram, covariance = (root @ root.mT / len(root) + torch.eye(len(root)) for root in roots)
    return {"fisher": fisher, "gram": gram, "covariance": covariance}


def _hold(claimed: bool, result: Tensor, expected: Tensor) -> float:
    """Return how far a claim is from what the row says of it."""
    moved = _miss(result, expected)
    return moved if claimed else float(moved < _SEEN)


def _miss(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).norm() / expected.norm())
