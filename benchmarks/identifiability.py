"""Do adapters determine their Fréchet mean? Two starts on families of known overlap, and what the mean keeps
of each input.

Run from the root of the repository: python -m benchmarks.identifiability
Writes benchmarks/results/identifiability.json. Counts and differences, no times: they repeat on any machine.
"""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import torch

from riemerge import LowRankUpdate, Problem, Status, frechet_mean
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold
from riemerge.merging.identifiability import mean_overlap, overlaps
from riemerge.problems import FAMILIES, adapter_family
from riemerge.solvers import LBFGS
from riemerge.updates.low_rank import sum_updates
from riemerge.updates.reduction import reduce

SIZE, RANK, COUNT, MODULES, PASSES = 4096, 16, 6, 2, 60
RESULTS = Path(__file__).parent / "results" / "identifiability.json"


def cosine(one: LowRankUpdate, other: LowRankUpdate) -> float:
    """The angle between two updates as vectors."""
    return one.inner(other) / (one.norm() * other.norm())


def measure(name: str) -> dict[str, float | None]:
    """Merges one family from two starts."""
    modules = [
        [LowRankUpdate(b, a) for b, a in adapter_family(name, COUNT, SIZE, SIZE, RANK, seed=17 + 1000 * i)]
        for i in range(MODULES)
    ]
    total = FixedRank(SIZE, SIZE, RANK, k=MODULES)
    quotient = QuotientManifold(total, Orthogonal(RANK))
    points = [
        total.factor(torch.stack([x[t].B for x in modules]), torch.stack([x[t].A.mT for x in modules]))
        for t in range(COUNT)
    ]
    solutions = [
        frechet_mean(Problem(quotient, points), LBFGS(max_passes=PASSES), start)
        for start in (None, points[0])
    ]
    means = []
    for solution in solutions:
        u, core, v = total.split(solution.point)
        means.append([LowRankUpdate(u[i] @ core[i], v[i].mT.contiguous()) for i in range(MODULES)])
    averages = [sum_updates(module, [1 / COUNT] * COUNT) for module in modules]
    apart = [sum_updates([x, y], [1.0, -1.0]).norm() / x.norm() for x, y in zip(*means, strict=True)]
    pairs = overlaps(reduce(modules), [x.dtype for x in modules[0]])
    common = mean_overlap(pairs)
    assert common is not None
    kept = [cosine(mean, x) for mean, module in zip(means[0], modules, strict=True) for x in module]
    kept_by_average = [
        cosine(mean, x) for mean, module in zip(averages, modules, strict=True) for x in module
    ]
    truncated = [x.truncate(RANK) for x in averages]
    kept_by_truncated = [
        cosine(mean, x) for mean, module in zip(truncated, modules, strict=True) for x in module
    ]
    costs = [solution.cost for solution in solutions]
    # A datum may be at the cut locus of the others (equal subspaces of opposite orientation): no second
    # start.
    both = all(status is not Status.UNDEFINED for solution in solutions for status in solution.status)
    return {
        "share": common.share,
        "cost": float(costs[0].mean()),
        "cost_apart": float(abs(costs[0] / costs[1] - 1).max()) if both else None,
        "update_apart": max(apart) if both else None,
        "cosine": sum(kept) / len(kept),
        "cosine_average": sum(kept_by_average) / len(kept_by_average),
        "cosine_truncated_average": sum(kept_by_truncated) / len(kept_by_truncated),
        "least_cosine": min(kept),
        "least_cosine_truncated_average": min(kept_by_truncated),
        "inputs_apart": 1 - max(cosine(x, y) for module in modules for x, y in combinations(module, 2)),
    }


def main() -> None:
    """Measures every family and writes the results."""
    results = {name: measure(name) for name in FAMILIES}
    setting = {"size": SIZE, "rank": RANK, "adapters": COUNT, "modules": MODULES, "passes": PASSES}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"setting": setting, "families": results}, indent=2) + "\n", encoding="utf-8"
    )
    for name, row in results.items():
        print(name, {key: value and float(f"{value:.3g}") for key, value in row.items()})


if __name__ == "__main__":
    main()
