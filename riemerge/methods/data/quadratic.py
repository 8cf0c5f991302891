"""Means under one quadratic form per model: Fisher, gradient matching, RegMean, MaTS.

All of them are one problem. Model t has the update xₜ, the weight wₜ and a positive semidefinite form Gₜ that
says how much each direction matters to it, and the mean is the minimiser of

    Σₜ wₜ ⟨x − xₜ, Gₜ (x − xₜ)⟩,    which solves    (Σₜ wₜ Gₜ) x = Σₜ wₜ Gₜ xₜ.

The rows differ in Gₜ alone: a diagonal (`fisher`; with the base model's added, `gradient_matching`), a Gram
matrix of inputs on the right (`regmean`, `mats_forward`), a Kronecker product (`mats`). With updates
xₜ = Wₜ − W₀ the answer is that for the weights Wₜ, less W₀: no row needs the base weights. Preconditioners
are forms too: descent preconditioned by P measures distances with P⁻¹. Where the forms leave directions free,
the rows that solve a system stay at the weighted average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.frechet.status import Status
from riemerge.linalg import weighted_mean
from riemerge.methods.setting import Answer, Mean, Setting, Stream
from riemerge.updates import BlockMap


def fisher(x: Tensor, setting: Setting) -> Tensor:
    """Weigh each entry of each model by its Fisher information.

    Law: Σ cₜ (Fₜ + floor) xₜ / Σ cₜ (Fₜ + floor), entry by entry, with cₜ = wₜ; with `normalize_fisher`
    cₜ = wₜ / (‖Fₜ‖ + floor), the norm over all modules. One factor on all Fₜ and the floor changes nothing.
    With all Fₜ equal it is the weighted average.

    Args:
        x: (T, ...) dense updates.
        setting: With `statistics[t]["fisher"]` of the shape of one update, the values `floor` and
            `normalize_fisher`, and the fact `fisher_norms`, a norm for each place, where that is true.

    Raises:
        NumericalError: An entry without positive information in any model: only when the floor is 0.

    Source: Matena and Raffel 2022 (Fisher merging); floor and norm as in FusionBench.

    Cost: needs the dense dW, and as many numbers of statistics.
    """
    floor, shares = setting.values["floor"], setting.weights
    if setting.values["normalize_fisher"]:
        norms = setting.facts["fisher_norms"]
        shares = shares / torch.stack([norms[place] + floor for place in setting.places])
    numerator, denominator = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    for t, share in enumerate(shares.tolist()):
        form = share * (_statistic(setting, t, "fisher", x) + floor)
        numerator += form * x[t]
        denominator += form
    return _quotient(numerator, denominator)


def fisher_norms(stream: Stream) -> Mapping[str, Any]:
    """Find the norm of each model's Fisher information over all modules, where `fisher` asks for it.

    Returns:
        `fisher_norms`: the norm of each model by its place, 0-d float64 on the CPU. Nothing when no norms are
        asked for.
    """
    squares: dict[int, Tensor] = {}
    for _, setting in stream():
        if not setting.values["normalize_fisher"]:
            return {}
        for t, place in enumerate(setting.places):
            square = setting.statistics[t]["fisher"].to(torch.float64).square().sum().cpu()
            squares[place] = squares.get(place, 0.0) + square
    return {"fisher_norms": {place: square.sqrt() for place, square in squares.items()}}


def gradient_matching(x: Tensor, setting: Setting) -> Tensor:
    """Weigh entries so that the gradients of all models' losses cancel, with the base model's curvature H₀.

    Law: Σ wₜ (Hₜ + H₀) xₜ / (H₀ + Σ wₜ Hₜ), entry by entry, where H₀ has the floor added. It is the
    minimiser of Σ wₜ ⟨x − xₜ, (Hₜ + H₀)(x − xₜ)⟩ + (1 − Σ wₜ) ⟨x, H₀ x⟩; so with Σ wₜ = 1 it is `fisher` with
    Hₜ + H₀, and with all Hₜ = 0 it is Σ wₜ xₜ. A negative weight takes a model's task away.

    Args:
        x: (T, ...) dense updates.
        setting: With `statistics[t]["fisher"]` and `base_statistics["fisher"]`, of the shape of one update,
            and the value `floor` (δ₀ of the paper).

    Raises:
        NumericalError: No statistics of the base model, or H₀ + Σ wₜ Hₜ is not positive in some entry.

    Source: Daheim et al. 2023 (uncertainty-based gradient matching), with squared gradients for Hessians.

    Cost: needs the dense dW.
    """
    if "fisher" not in setting.base_statistics:
        raise NumericalError(
            "no Fisher information of the base model was given; expected statistics of it, too: collect them "
            "on data of its own, or merge by fisher"
        )
    base = setting.base_statistics["fisher"].to(x) + setting.values["floor"]
    numerator, denominator = torch.zeros_like(x[0]), base.clone()
    for t, weight in enumerate(setting.weights.tolist()):
        curvature = _statistic(setting, t, "fisher", x)
        numerator += weight * (curvature + base) * x[t]
        denominator += weight * curvature
    return _quotient(numerator, denominator)


def _look_for_none(
    formula: Mean, _: Callable[[], Iterator[Tensor]], setting: Setting
) -> Callable[[], BlockMap]:
    """Return what starts a formula of entries on runs of rows, with the statistics of these rows."""

    def start() -> BlockMap:
        seen = 0

        def merge(block: Tensor) -> Tensor:
            nonlocal seen
            rows = slice(seen, seen + block.shape[1])
            seen = rows.stop
            here, *others = (
                {"fisher": one["fisher"][rows]} if "fisher" in one else {}
                for one in (setting.base_statistics, *setting.statistics)
            )
            return cast(
                "Tensor", formula(block, replace(setting, statistics=tuple(others), base_statistics=here))
            )

        return merge

    return start


look_for_fisher = partial(_look_for_none, fisher)
look_for_gradient_matching = partial(_look_for_none, gradient_matching)


def regmean(x: Tensor, setting: Setting) -> Tensor:
    """Find the linear map whose outputs are nearest to every model's on that model's own inputs.

    Law: Σ wₜ xₜ Gₜ (Σ wₜ Gₜ)⁻¹, with Gₜ the input Gram matrix per token, XₜᵀXₜ / tokens (as it is where
    `tokens` is not given), its off-diagonal entries multiplied by `off_diagonal`. With `off_diagonal` 1 it is
    the minimiser of Σ wₜ ‖Xₜ (x − xₜ)ᵀ‖² / tokensₜ. Inputs that are zero in all data are free; there the
    answer is the weighted average.

    Args:
        x: (T, p, n) updates, reduced on the left.
        setting: With `statistics[t]["gram"]` (n, n) and `tokens`, and the value `off_diagonal` in [0, 1].

    Raises:
        NumericalError: Σ wₜ Gₜ is singular to working precision, beyond inputs that are zero: only when
            `off_diagonal` is 1 or near it.

    Source: Jin et al. 2023 (RegMean). Exact in factors: no dense dW; one Cholesky factorisation of n x n.
    """
    factor = setting.values["off_diagonal"]
    return regress(x, setting, (shrink(per_token(setting, t, "gram", x), factor) for t in range(len(x))))[0]


def mats(x: Tensor, setting: Setting) -> Answer:
    """Match models in the task subspaces that their Kronecker-factored Fisher information spans.

    Law: Σ wₜ Lₜ x Rₜ = Σ wₜ Lₜ xₜ Rₜ, with Lₜ the covariance of output gradients and Rₜ the Gram matrix
    of inputs, both per token; by conjugate gradients with a diagonal preconditioner, from the weighted
    average, until the residual is `tol` of the right-hand side.

    Args:
        x: (T, m, n) dense updates.
        setting: With `statistics[t]["covariance"]` (m, m), `["gram"]` (n, n) and `tokens`; the values
            `tol` and `max_passes`.

    Source: Tam, Bansal and Raffel 2023 (MaTS), who stop after 100 iterations whatever the residual, and have
        no preconditioner.

    Cost: needs the dense dW; T products (m, m)(m, n)(n, n) a pass.
    """
    lefts = [per_token(setting, t, "covariance", x) for t in range(len(x))]
    diagonals = torch.stack([left.diagonal() for left in lefts])
    return _match(x, setting, diagonals, lambda t, term: lefts[t] @ term)


def mats_forward(x: Tensor, setting: Setting) -> Answer:
    """Match models in the task subspaces that their inputs alone span: `mats` with the identity for each Lₜ.

    Law: x Σ wₜ Rₜ = Σ wₜ xₜ Rₜ: `regmean` with `off_diagonal` 1, but also where the sum is singular;
    solved and started as `mats` is.

    Args:
        x: (T, p, n) updates, reduced on the left.
        setting: With `statistics[t]["gram"]` (n, n) and `tokens`; the values `tol` and `max_passes`.

    Source: Tam, Bansal and Raffel 2023 (MaTS). Exact in factors: no dense dW.
    """
    return _match(x, setting, x.new_ones(len(x), 1), lambda _, term: term)


def _statistic(setting: Setting, t: int, kind: str, like: Tensor) -> Tensor:
    return setting.statistics[t][kind].to(like)


def per_token(setting: Setting, t: int, kind: str, like: Tensor) -> Tensor:
    """Return a sum over tokens as a mean: so a weight is a model's share, whatever the number of tokens."""
    return _statistic(setting, t, kind, like) / float(setting.statistics[t].get("tokens", torch.ones(())))


def average(x: Tensor, setting: Setting) -> Tensor:
    """Return the weighted average of T updates."""
    return weighted_mean(setting.weights / setting.weights.sum(), x)


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    if not bool((denominator > 0).all()):  # of a run of rows, perhaps: how many entries is not known here
        raise NumericalError(
            "the sum of the forms is not positive in all entries; expected a positive one in each: raise "
            "floor, or leave out negative weights"
        )
    return numerator / denominator


def shrink(gram: Tensor, factor: float) -> Tensor:
    """Return a matrix with its off-diagonal entries multiplied by a factor."""
    return factor * gram + torch.diag_embed((1.0 - factor) * gram.diagonal())


def regress(x: Tensor, setting: Setting, grams: Iterable[Tensor]) -> tuple[Tensor, Root]:
    """Return Σ wₜ xₜ Gₜ (Σ wₜ Gₜ)⁻¹, the weighted average where inputs are free, and a root of Σ wₜ Gₜ.

    Raises:
        NumericalError: See `take_root`.
    """
    mean = average(x, setting)
    total, difference = x.new_zeros(x.shape[2], x.shape[2]), torch.zeros_like(mean)
    for update, gram, weight in zip(x, grams, setting.weights.tolist(), strict=True):
        total += weight * gram
        difference += weight * (update - mean) @ gram
    root = take_root(total)
    return mean + root.solve(difference), root


class Root(NamedTuple):
    """A square root of a positive semidefinite matrix M = K Kᵀ, K = size · factor.

    Attributes:
        size: (n,), the root of the diagonal of M: zero for inputs that are zero in all data.
        factor: (n, n), lower triangular, with 1 on its diagonal there.
    """

    size: Tensor
    factor: Tensor

    def right(self, y: Tensor) -> Tensor:
        """Return y K, for y (p, n)."""
        return (y * self.size) @ self.factor

    def solve(self, rhs: Tensor) -> Tensor:
        """Return the solution y of y M = rhs that is zero for inputs that are zero in all data."""
        size = torch.where(self.size > 0, self.size, 1.0)
        return torch.cholesky_solve((rhs / size).mT, self.factor).mT / size


def take_root(total: Tensor) -> Root:
    """Return a root of a sum of Gram matrices (n, n).

    Raises:
        NumericalError: The sum is singular to working precision, beyond inputs that are zero.
    """
    size = total.diagonal()
    live = size > 0
    root = torch.where(live, size, 1.0).sqrt()
    # Inputs of any scale: with a diagonal of ones the pivots say how near to singular the matrix is.
    scaled = total / root / root.unsqueeze(-1) + torch.diag_embed((~live).to(total))
    factor, info = torch.linalg.cholesky_ex(scaled)
    least = factor.diagonal().square().min()
    precision = 10 * len(total) * torch.finfo(total.dtype).eps
    if bool(info != 0) or not bool(least > precision):
        raise NumericalError(
            f"the sum of the Gram matrices ({len(total)} x {len(total)}) is singular to working precision; "
            "expected a positive definite one: collect more examples, or set off_diagonal below 1"
        )
    return Root(torch.where(live, root, 0.0), factor)


def _match(x: Tensor, setting: Setting, rows: Tensor, left: Callable[[int, Tensor], Tensor]) -> Answer:
    """Solve Σ wₜ Lₜ x Rₜ = Σ wₜ Lₜ xₜ Rₜ, Lₜ given by its diagonal in `rows` (T, m) and by what it makes."""
    weights = setting.weights.tolist()
    rights = [weight * per_token(setting, t, "gram", x) for t, weight in enumerate(weights)]

    def apply(updates: Iterable[Tensor]) -> Tensor:
        products = (update @ right for update, right in zip(updates, rights, strict=True))
        terms = (left(t, product) for t, product in enumerate(products))
        return sum(terms, start=torch.zeros_like(x[0]))

    columns = torch.stack([right.diagonal() for right in rights])
    diagonal = torch.einsum("tm,tn->mn", rows, columns)
    return conjugate_gradients(
        lambda update: apply([update] * len(x)),
        apply(x),
        average(x, setting),
        torch.where(diagonal > 0, diagonal, 1.0),
        setting.values["tol"],
        setting.values["max_passes"],
    )


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], rhs: Tensor, start: Tensor, diagonal: Tensor, tol: float, budget: int
) -> Answer:
    """Solve apply(x) = rhs, a consistent positive semidefinite system, from `start`."""
    value, residual = start, rhs - apply(start)
    bound = tol * torch.linalg.vector_norm(rhs)
    direction, slope, passes = torch.zeros_like(rhs), rhs.new_ones(()), 0
    while bool(torch.linalg.vector_norm(residual) > bound):
        preconditioned = residual / diagonal
        fresh = (residual * preconditioned).sum()
        direction = preconditioned + fresh / slope * direction
        image = apply(direction)
        curvature = (direction * image).sum()
        if passes == budget or not bool(curvature > 0):
            break
        value, residual = value + fresh / curvature * direction, residual - fresh / curvature * image
        slope, passes = fresh, passes + 1
    # The recursion's residual runs away from the true one by round-off: what counts is the true one.
    left = torch.linalg.vector_norm(rhs - apply(value))
    if bool(left <= 2 * bound):
        return Answer(value, Status.CONVERGED, passes=passes)
    relative = float(left / torch.linalg.vector_norm(rhs))
    ending = f"The residual is {relative:.1e} of the right-hand side, above tol {tol:.1e}"
    if passes == budget:
        return Answer(value, Status.BUDGET, f"{ending}: raise max_passes or tol.", passes=passes)
    return Answer(value, Status.STALLED, f"{ending}, at the limit of round-off: raise tol.", passes=passes)
