"""Ideas that were tried before rows were made of them, or of none: prototypes, scored on the looks alone.

python -m benchmarks.nli.ideas [NAME ...]: a line for each, as FINDINGS.md has them, and results/ideas.json.
The looks are the rows that the protocol chooses coefficients on; the test half is never seen. A free idea
knows the updates and is brought to the norm of the average; a fitted one knows statistics of train rows too,
and keeps its own size; settings of rows stand beside them. The best of three multiples counts.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.common import markdown, tell
from benchmarks.nli.material import COLLECTIONS, require
from benchmarks.nli.protocol import Bench, is_fitted
from benchmarks.nli.scorer import dense
from riemerge.methods.data.quadratic import conjugate_gradients, shrink
from riemerge.recipes.candidates import parse
from riemerge.statistics import read_statistics
from riemerge.updates.low_rank import JointSpan, LowRankUpdate

RESULTS = Path(__file__).parent / "results"
RANK = 16
MULTIPLES = (math.sqrt(2), 2.0, math.sqrt(8))  # of the norm of the average
OWN_MULTIPLES = (0.8, 1.0, 1.25)
CUT, WITHIN = ", cut", ", cut in the metric"  # to RANK, in the Frobenius norm and in that of the mean forms

Cores = Mapping[str, Tensor]
Dense = dict[str, Tensor]


# --- free ideas: module to the cores (6, p, q) in the joint span, answered by module to (p, q) --------------


def each(mean: Callable[[Tensor], Tensor]) -> Callable[[Cores], Dense]:
    """Apply a mean to every module by itself."""
    return lambda cores: {module: mean(x) for module, x in cores.items()}


def power(x: Tensor, exponent: float) -> Tensor:
    """Singular values to a power, the norm kept."""
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    raised: Tensor = (u * (sigma / sigma[0]) ** exponent) @ vh
    return raised * (x.norm() / raised.norm())


def softened(x: Tensor, whitening: float, exponent: float = 1.0) -> Tensor:
    """TSV-M with frames F (FᵀF)^(-a/2), the singular values of each update to a power."""
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)

    def white(frames: Tensor) -> Tensor:
        frame = torch.cat(list(frames[:, :, :RANK]), dim=1)
        values, basis = torch.linalg.eigh(frame.mT @ frame)
        scales: Tensor = values.clamp_min(1e-9) ** (-whitening / 2)
        return frame @ (basis * scales) @ basis.mT

    powers: Tensor = sigma[:, :RANK].flatten() ** exponent
    return (white(u) * powers) @ white(vh.mT).mT


def anchored(x: Tensor, ridge: float) -> Tensor:
    """WUDI in closed form: Σ ‖(X − xₜ) xₜᵀ‖² / ‖xₜ‖², and a ridge towards Σ xₜ."""
    total = x.sum(dim=0)
    grams = x.mT @ x / x.square().sum(dim=(1, 2), keepdim=True)
    pull = ridge * len(x) / x.shape[2]
    form = grams.sum(dim=0) + pull * torch.eye(x.shape[2]).to(x)
    solution: Tensor = torch.linalg.solve(form, ((x @ grams).sum(dim=0) + pull * total).mT)
    return solution.mT


def two_sided(x: Tensor, exponent: float) -> Tensor:
    """Kronecker-factored forms of each update's own (xₜ xₜᵀ)^a and (xₜᵀ xₜ)^a, ridge the mean diagonal."""
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    # Every form has trace 1, whatever the norm of its update.
    scales = torch.nn.functional.normalize(sigma ** (2 * exponent), p=1, dim=1)
    lefts, rights = (ridged((f * scales.unsqueeze(1)) @ f.mT, 1.0) for f in (u, vh.mT))
    return least(x, lefts, rights, budget=60)


def weighed(*weights: float) -> Callable[[Cores], Dense]:
    return each(lambda x: torch.einsum("t,tpq->pq", torch.tensor(weights).to(x), x))


def equalised(cores: Cores) -> Dense:
    """The average of updates of equal norms over all modules."""
    norms = sum(x.square().sum(dim=(1, 2)) for x in cores.values())
    assert isinstance(norms, Tensor)
    return {module: torch.einsum("t,tpq->pq", norms.rsqrt(), x) for module, x in cores.items()}


FREE: dict[str, Callable[[Cores], Dense]] = {
    "average": each(lambda x: x.mean(dim=0)),
    **{
        f"average, power {p:g}": each(lambda x, p=p: power(x.mean(dim=0), p))  # type: ignore[misc]
        for p in (0.7, 0.5, 0.3, 0.0)
    },
    "equal norms": equalised,
    "equal norms, power 0.5": lambda cores: {m: power(x, 0.5) for m, x in equalised(cores).items()},
    "snli twice": weighed(2, 1, 1, 1, 1, 1),
    "rte half": weighed(1, 1, 1, 1, 0.5, 1),
    "tsv": each(lambda x: softened(x, 1.0)),
    "tsv, power 0.5": each(lambda x: power(softened(x, 1.0), 0.5)),
    "whitening 0.5": each(lambda x: softened(x, 0.5)),
    "whitening 0.5 of roots": each(lambda x: softened(x, 0.5, 0.5)),
    "whitening 0.5, power 0.5": each(lambda x: power(softened(x, 0.5), 0.5)),
    "wudi, ridge 0.03": each(lambda x: anchored(x, 0.03)),
    "wudi, ridge 0.3": each(lambda x: anchored(x, 0.3)),
    "two-sided": each(lambda x: two_sided(x, 1.0)),
    "two-sided, of roots": each(lambda x: two_sided(x, 0.5)),
}

# --- fitted ideas: updates (6, m, n), Gram matrices of inputs and covariances of output gradients -----------


class Fit(NamedTuple):
    """An answer (m, n) and the mean forms whose norm it may be cut in; the identity where there is none."""

    value: Tensor
    right: Tensor | None = None
    left: Tensor | None = None


def regmean(
    x: Tensor,
    grams: Tensor,
    _: Tensor,
    *,
    ridge: float = 0.01,
    off_diagonal: float = 1.0,
    effect: float = 0.0,
    weights: Sequence[float] = (1.0,) * 6,
    exponent: float = 1.0,
) -> Fit:
    """RegMean; each Gram matrix divided by a power of ‖xₜ‖²_G, what its update does."""
    forms = ridged(torch.stack([shrink(gram, off_diagonal) for gram in grams]), ridge)
    sizes = ((x @ forms) * x).sum(dim=(1, 2))
    forms = forms * (torch.tensor(weights).to(x) * (sizes / sizes.mean()) ** -effect)[:, None, None]
    value = torch.linalg.solve(forms.sum(dim=0), (x @ forms).sum(dim=0).mT).mT
    return Fit(value if exponent == 1.0 else power(value, exponent), forms.mean(dim=0))


def kronecker_fisher(x: Tensor, grams: Tensor, covariances: Tensor, *, ridge: float) -> Fit:
    """The Kronecker-factored Fisher mean after fifteen conjugate gradients in the mean metric."""
    lefts, rights = ridged(covariances, ridge), ridged(grams, ridge)
    left, right = lefts.mean(dim=0), rights.mean(dim=0)
    (root, back), (right_root, right_back) = roots(left), roots(right)
    lefts, rights = back @ lefts @ back, right_back @ rights @ right_back
    white = least(root @ x @ right_root, lefts, rights, budget=15)
    return Fit(back @ white @ right_back, right, left)


Fitted = Callable[[Tensor, Tensor, Tensor], Fit]

FITTED: dict[str, Fitted] = {
    "regmean, off-diagonal 0.9": partial(regmean, off_diagonal=0.9, ridge=0.0),
    "regmean": regmean,
    "regmean, ridge 0.1": partial(regmean, ridge=0.1),
    "regmean, ridge 0.1, power 0.7": partial(regmean, ridge=0.1, exponent=0.7),
    "regmean over effect": partial(regmean, effect=1.0),
    "regmean over root of effect": partial(regmean, effect=0.5),
    "regmean, snli 1.5, rte 0.7": partial(regmean, weights=(1.5, 1, 1, 1, 0.7, 1)),
    "Fisher": partial(kronecker_fisher, ridge=0.01),
    "Fisher, ridge 0.1": partial(kronecker_fisher, ridge=0.1),
}

CUTS: dict[str, tuple[str, ...]] = {
    **{name: (CUT,) for name in FREE if name.startswith("average")},
    "tsv": (CUT,),
    "regmean": (CUT, WITHIN),
    "Fisher": (CUT, WITHIN),
    "Fisher, ridge 0.1": (WITHIN,),
}
"""What is scored cut as well as whole, and how."""

SETTINGS = (
    "spectrum",
    "spectrum:power=0.5",
    "spectrum:whitening=0.75",
    "spectrum:power=0.5:whitening=0.75",
    "balanced",
    "balanced:rank=96",
    "lowrank_mats",
    "lowrank_mats:tol=0.01",
)
"""Settings of rows, at their own rank if none is named."""

NAMES = (*FREE, *FITTED, *SETTINGS)

# --- algebra ------------------------------------------------------------------------------------------------


def ridged(forms: Tensor, ridge: float) -> Tensor:
    """Forms (T, n, n) with `ridge` times their own mean diagonal entry on the diagonal."""
    means = forms.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True)
    return forms + torch.diag_embed(ridge * means.expand(-1, forms.shape[1]))


def least(x: Tensor, lefts: Tensor, rights: Tensor, budget: int) -> Tensor:
    """Σ Lₜ X Rₜ = Σ Lₜ xₜ Rₜ after that many conjugate gradients from the average."""
    found = conjugate_gradients(
        lambda one: (lefts @ one @ rights).mean(dim=0),
        (lefts @ x @ rights).mean(dim=0),
        x.mean(dim=0),
        torch.ones_like(x[0]),
        0.0,
        budget,
    )
    return found.value


def roots(form: Tensor) -> tuple[Tensor, Tensor]:
    """The root of a form and its inverse."""
    values, basis = torch.linalg.eigh(form)
    return (basis * values.sqrt()) @ basis.mT, (basis * values.rsqrt()) @ basis.mT


def cut(x: Tensor) -> Tensor:
    """The nearest of rank `RANK`."""
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    nearest: Tensor = (u[:, :RANK] * sigma[:RANK]) @ vh[:RANK]
    return nearest


def variant(fit: Fit, kind: str) -> Tensor:
    """An answer whole, cut, or cut in the norm of its mean forms."""
    if kind != WITHIN:
        return cut(fit.value) if kind == CUT else fit.value
    (left, left_back), (right, right_back) = (
        roots(torch.eye(size).to(fit.value) if form is None else form)
        for form, size in zip((fit.left, fit.right), fit.value.shape, strict=True)
    )
    return left_back @ cut(left @ fit.value @ right) @ right_back


# --- measured -----------------------------------------------------------------------------------------------


def answers(bench: Bench, asked: Sequence[str]) -> Iterator[tuple[str, Cores, Sequence[float]]]:
    """The updates of ideas, whole and as `CUTS` says, or of settings of rows; with what multiples to try."""
    for name in asked:
        if name in (*FREE, *FITTED):
            find, multiples = (_free, MULTIPLES) if name in FREE else (_fitted, OWN_MULTIPLES)
            yield from ((name + kind, update, multiples) for kind, update in find(bench, name).items())
        else:
            candidate = parse(name)
            update = bench.sized(candidate, bench.merge(candidate))[1]
            yield name, update, OWN_MULTIPLES if is_fitted(candidate) else MULTIPLES


def _free(bench: Bench, name: str) -> dict[str, Dense]:
    """The variants of a free idea, each at the norm of the average."""
    spans = {
        module: JointSpan([one.update(module).to(torch.float64) for one in bench.adapters.values()])
        for module in sorted(next(iter(bench.adapters.values())).modules)
    }
    whole = FREE[name]({m: torch.stack([one.dense() for one in span.updates]) for m, span in spans.items()})
    found = {}
    for kind in ("", *CUTS.get(name, ())):
        cores = {module: variant(Fit(core), kind) for module, core in whole.items()}
        scale = bench.reference["average_norm"] / math.hypot(*(float(core.norm()) for core in cores.values()))
        lifted = {
            m: spans[m].lift(LowRankUpdate(core, torch.eye(core.shape[1]).to(core)))
            for m, core in cores.items()
        }
        found[kind] = dense(lifted, scale)
    return found


def _fitted(bench: Bench, name: str) -> dict[str, Dense]:
    """The variants of a fitted idea."""
    known = [read_statistics(folder) for folder in bench.statistics()]
    found: dict[str, Dense] = {kind: {} for kind in ("", *CUTS.get(name, ()))}
    for module in known[0].modules:
        x = torch.stack([one.update(module).dense().to(torch.float32) for one in bench.adapters.values()])
        sums = [one.of(module) for one in known]
        grams, covariances = (
            torch.stack([(of[kind] / of["tokens"]).to(x) for of in sums]) for kind in ("gram", "covariance")
        )
        fit = FITTED[name](x, grams, covariances)
        for kind, update in found.items():
            update[module] = variant(fit, kind)
    return found


def measure(collection: str, asked: Sequence[str]) -> dict[str, dict[str, float]]:
    """Share of the specialists' accuracy on the looks, by idea and multiple."""
    bench, found = Bench(collection, RESULTS), {}
    for name, update, multiples in answers(bench, asked):
        found[name] = {f"{c:.2f}": bench.look(update, c) for c in multiples}
        tell(f"{collection}, {name}: {max(found[name].values()):.3f}")
    return found


def lines(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list[str]]:
    """A line for each idea: its name and the best of its multiples on each collection."""
    names = next(iter(found.values()))
    return [[f"`{name}`", *(f"{max(one[name].values()):.3f}" for one in found.values())] for name in names]


def main() -> None:
    """Measure some ideas on both collections, and where all were asked for, write results/ideas.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nli.ideas", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"Ideas to measure [default: all]: {'; '.join(NAMES)}."
    )
    asked = parser.parse_args().names
    if unknown := set(asked) - set(NAMES):
        parser.error(f"no idea of the name {', '.join(sorted(unknown))}")
    require()
    with ProcessPoolExecutor(len(COLLECTIONS), get_context("spawn")) as pool:
        started = {name: pool.submit(measure, name, asked or NAMES) for name in COLLECTIONS}
        found = {name: one.result() for name, one in started.items()}
    if not asked:
        (RESULTS / "ideas.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(markdown(["idea", *found], lines(found)))


if __name__ == "__main__":
    main()
