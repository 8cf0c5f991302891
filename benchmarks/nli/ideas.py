"""Ideas that were tried before rows were made of them, or of none: prototypes, scored on the looks alone.

python -m benchmarks.nli.ideas [NAME ...] [--collection shared]: a line for each, as FINDINGS.md has them. An
idea is a function of the cores of all modules in the joint spans, module to (6, p, q), and answers with one
(p, q) for each. Each is brought to the norm of the average and scored at some multiples of it, on the rows
that the protocol chooses coefficients on; the test half is never seen.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.nli.material import COLLECTIONS, TASKS, base_folder, read_material, specialists
from benchmarks.nli.protocol import DTYPE, accuracies, normalised
from benchmarks.nli.scorer import Scorer, dense, directions, load_base
from riemerge.adapters import read_adapter
from riemerge.updates import JointSpan, LowRankUpdate

Cores = Mapping[str, Tensor]
Idea = Callable[[Cores], dict[str, Tensor]]

RANK = 16
MULTIPLES = (1.0, math.sqrt(2), 2.0, math.sqrt(8))


def each(mean: Callable[[Tensor], Tensor]) -> Idea:
    """The same for every module by itself."""
    return lambda cores: {module: mean(x) for module, x in cores.items()}


def power(x: Tensor, exponent: float) -> Tensor:
    """Singular values to a power, the norm kept."""
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    raised = (u * (sigma / sigma[0]) ** exponent) @ vh
    return raised * (x.norm() / raised.norm())


def softened(x: Tensor, whitening: float, exponent: float = 1.0) -> Tensor:
    """TSV-M with frames F (FᵀF)^(-a/2), the singular values of each update to a power."""
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)

    def white(frames: Tensor) -> Tensor:
        frame = torch.cat(list(frames[:, :, :RANK]), dim=1)
        values, basis = torch.linalg.eigh(frame.mT @ frame)
        return frame @ (basis * values.clamp_min(1e-9) ** (-whitening / 2)) @ basis.mT

    return (white(u) * sigma[:, :RANK].flatten() ** exponent) @ white(vh.mT).mT


def anchored(x: Tensor, ridge: float) -> Tensor:
    """WUDI in closed form: Σ ‖(X − xₜ) xₜᵀ‖² / ‖xₜ‖², and a ridge towards Σ xₜ."""
    total = x.sum(dim=0)
    grams = x.mT @ x / x.square().sum(dim=(1, 2), keepdim=True)
    pull = ridge * len(x) / x.shape[2]
    form = grams.sum(dim=0) + pull * torch.eye(x.shape[2]).to(x)
    return torch.linalg.solve(form, ((x @ grams).sum(dim=0) + pull * total).mT).mT


def weighed(*weights: float) -> Idea:
    return each(lambda x: torch.einsum("t,tpq->pq", torch.tensor(weights).to(x), x))


def equalised(cores: Cores) -> dict[str, Tensor]:
    """The average of updates of equal norms over all modules."""
    norms = sum(x.square().sum(dim=(1, 2)) for x in cores.values())
    assert isinstance(norms, Tensor)
    return {module: torch.einsum("t,tpq->pq", norms.rsqrt(), x) for module, x in cores.items()}


IDEAS: dict[str, Idea] = {
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
}


def cut(x: Tensor, rank: int) -> Tensor:
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    return (u[:, :rank] * sigma[:rank]) @ vh[:rank]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nli.ideas", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(IDEAS), metavar="NAME", help=", ".join(IDEAS))
    parser.add_argument("--collection", choices=list(COLLECTIONS), default="shared")
    parser.add_argument("--rank", type=int, help="to which all are cut; whole if not given")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    base = base_folder()
    assert base is not None
    model, tokenizer = load_base(base)
    scorer, rows = Scorer(model, directions(model, tokenizer), DTYPE), read_material(tokenizer).looks
    adapters = [read_adapter(path) for path in specialists(asked.collection).values()]
    spans = {
        module: JointSpan([one.update(module).to(torch.float64) for one in adapters])
        for module in sorted(adapters[0].modules)
    }
    cores = {module: torch.stack([one.dense() for one in span.updates]) for module, span in spans.items()}
    own = {
        task: accuracies(scorer.correct(rows.only(task), dense({m: one.update(m) for m in spans})))[task]
        for task, one in zip(TASKS, adapters, strict=True)
    }
    norm = math.hypot(*(float(x.mean(dim=0).norm()) for x in cores.values()))
    for name in asked.names:
        found = IDEAS[name](cores)
        if asked.rank:
            found = {module: cut(x, asked.rank) for module, x in found.items()}
        scale = norm / math.hypot(*(float(x.norm()) for x in found.values()))
        eye = {module: torch.eye(x.shape[0], dtype=x.dtype) for module, x in found.items()}
        update = dense({m: spans[m].lift(LowRankUpdate(eye[m], x)) for m, x in found.items()}, scale)
        scores = {c: normalised(accuracies(scorer.correct(rows, update, c)), own) for c in MULTIPLES}
        best = max(scores, key=scores.__getitem__)
        said = ", ".join(f"{c:.2f}: {score:.3f}" for c, score in scores.items())
        print(f"{asked.collection}, {name}: {scores[best]:.3f} at {best:.2f} ({said})", flush=True)


if __name__ == "__main__":
    main()
