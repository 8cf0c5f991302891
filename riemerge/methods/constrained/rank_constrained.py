"""Means among matrices of one rank: the rank is a constraint of the problem, and not a cut of its solution.

Model t has the update xₜ, a weight wₜ, a positive definite form Lₜ on outputs and one Mₜ on inputs, and the
mean is the minimiser over all X of rank at most R of

    F(X) = 1/2 Σₜ wₜ tr(Lₜ (X − xₜ) Mₜ (X − xₜ)ᵀ).

Law: where the minimiser X* without a constraint has a rank above R, every local minimiser has rank R
exactly: at one of lower rank, F could not decrease along any matrix of rank one, so its gradient were zero
and it were X*. So the problem lives on the manifold of matrices of rank R. Cutting X* to rank R answers
another question, unless all forms are the identity.
"""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.frechet.quadratic.quadratic_cost import LowRankQuadratic
from riemerge.frechet.quadratic.quadratic_descent import minimise
from riemerge.frechet.status import Status
from riemerge.linalg import SVD, numerical_rank, thin_svd
from riemerge.methods.data.quadratic import Root, average, conjugate_gradients, per_token, regress, shrink
from riemerge.methods.elections.election import elect_globally
from riemerge.methods.setting import Answer, Setting
from riemerge.methods.singular.core_space import core
from riemerge.methods.singular.singular_vectors import FLOOR, tsv
from riemerge.updates.cores import Cores
from riemerge.updates.low_rank import LowRankUpdate
from riemerge.updates.truncation import nearest


def lowrank(x: Cores, setting: Setting) -> SVD:
    """Return the matrix of rank R nearest to all updates: with identities for forms, the cut average.

    Law: Σ wₜ ‖X − xₜ‖² is ‖X − Σ wₜ xₜ‖² and a constant, so X is the weighted average cut to its R
    largest singular values.

    Args:
        x: Updates (T, p, q), in bases of the joint span.
        setting: Weights and the rank R.

    Returns:
        The merged update (p, q), decomposed.

    Source: Eckart and Young 1936.
    """
    mean = thin_svd(x.combine(setting.weights / setting.weights.sum()))
    if setting.rank is None:
        return mean
    # Of its size: what is cut here is no loss of the answer.
    kept = torch.arange(len(mean.values), device=mean.values.device) < setting.rank
    return mean._replace(values=mean.values * kept)


def lowrank_regmean(x: Tensor, setting: Setting) -> Tensor:
    """Find the linear map of rank R whose outputs are nearest to every model's on that model's own inputs.

    Lₜ is the identity and Mₜ = Gₜ the input Gram matrix per token, shrunk as `regmean` does, with `ridge`
    times its mean diagonal entry added to the diagonal. With M = Σ wₜ Mₜ = K Kᵀ and D RegMean's solution,
    F(X) is 1/2 ‖(X − D) K‖² and a constant.

    Law: X = P D, P the projection onto the R leading left singular vectors of D K: a weighted SVD, in
    closed form. Inputs that are zero in all data have P times the weighted average.

    Args:
        x: (T, p, n) updates, reduced on the left.
        setting: With `statistics[t]["gram"]` (n, n) and `tokens`, and the values `off_diagonal` and `ridge`.

    Raises:
        NumericalError: See `regmean`.

    Source: Eckart and Young 1936, in the form of Jin et al. 2023. Exact in factors: no dense dW; one
    Cholesky factorisation of n x n, one SVD (p, n).
    """
    factor, ridge = setting.values["off_diagonal"], setting.values["ridge"]
    grams = (_add_ridge(shrink(per_token(setting, t, "gram", x), factor), ridge) for t in range(len(x)))
    return _project(*regress(x, setting, grams), setting.rank)


def lowrank_mats(x: Tensor, setting: Setting) -> Answer:
    """Find the matrix of rank R that is nearest in the Kronecker-factored Fisher information of every model.

    Lₜ is the covariance of output gradients and Mₜ the Gram matrix of inputs, both per token, each with
    `ridge` times its mean diagonal entry added to the diagonal.

    Law: a local minimiser of F among matrices of rank R, whose cost is at most that of a solution
    without a constraint to half of the digits of `tol`, cut to rank R in the Frobenius norm or in that of the
    mean forms. See `kronecker`.

    Args:
        x: (T, m, n) dense updates.
        setting: With `statistics[t]["covariance"]` (m, m), `["gram"]` (n, n) and `tokens`; the values
            `ridge`, `solver`, `tol`, `cost_tol` and `max_passes`.

    Raises:
        NumericalError: All forms are zero, or the mean ones are singular: only when `ridge` is 0.

    Source: the form of Tam, Bansal and Raffel 2023 (MaTS), on the geometry of Mishra et al. 2014.

    Cost: needs the dense dW, and T forms of either side at once.
    """
    ridge = setting.values["ridge"]
    lefts, rights = (
        torch.stack([_add_ridge(per_token(setting, t, kind, x), ridge) for t in range(len(x))])
        for kind in ("covariance", "gram")
    )
    return kronecker(lefts, rights, x, setting)


def lowrank_updates(x: Tensor, setting: Setting) -> Tensor | Answer:
    """Find the matrix of rank R that is nearest to every model where that model's own update is large.

    Lₜ = p xₜ xₜᵀ / ‖xₜ‖² + ridge I and Mₜ = q xₜᵀ xₜ / ‖xₜ‖² + ridge I, p and q the dimensions of the joint
    column and row spaces: no data, and no unit. `sides` `inputs` has the identity for each Lₜ, `outputs` for
    each Mₜ: those are weighted SVDs, in closed form. `target` says what is approximated: each model's own
    update (`mean`); or for all models the same matrix Z, scaled to the norm of Σ wₜ xₜ: their TSV merge
    (`tsv`), or their TIES merge without a trim in the reference bases of Core Space (`ties`).

    Law: f(L x Rᵀ) = L f(x) Rᵀ, and X lies in the joint span, whatever the rank: with P and Q projections
    onto the joint column and row spaces, all Lₜ commute with P and all Mₜ with Q, so F(X) is F(P X Q) and a
    positive definite form of X − P X Q; and P X Q has no larger rank than X.

    Args:
        x: (T, p, q) in bases of the joint span.
        setting: With the values `ridge`, `sides`, `target`, `solver`, `tol`, `cost_tol` and `max_passes`.

    Raises:
        NumericalError: `ridge` is 0, which leaves directions free; or what `tsv` and `core` raise.

    Source: this package.

    Cost: in the joint span, whatever the widths.
    """
    ridge, sides = setting.values["ridge"], setting.values["sides"]
    if not ridge > 0:
        raise NumericalError("ridge is 0, and the updates alone leave directions free: raise ridge")
    # Norms first: squares of small updates would vanish.
    unit = x / torch.linalg.matrix_norm(x).clamp_min(torch.finfo(x.dtype).tiny)[:, None, None]
    if not bool(unit.any()):
        return x[0]
    targets = _targets(x, setting)

    def add_ridge(y: Tensor) -> Tensor:
        size = int(numerical_rank(torch.linalg.svdvals(torch.cat(list(y), dim=1)), FLOOR))
        forms: Tensor = size * y @ y.mT + ridge * torch.eye(y.shape[1]).to(y)
        return forms

    if sides == "inputs":
        return _project(*regress(targets, setting, add_ridge(unit.mT)), setting.rank)
    if sides == "outputs":
        return _project(*regress(targets.mT, setting, add_ridge(unit)), setting.rank).mT
    return kronecker(add_ridge(unit), add_ridge(unit.mT), targets, setting)


def _targets(x: Tensor, setting: Setting) -> Tensor:
    """Return what is approximated for each model: its update, or one merge of all at the average's norm."""
    match setting.values["target"]:
        case "tsv":
            merged = tsv(Cores.of_stack(x), setting)
        case "ties":
            left, cores, right = core(Cores.of_stack(x))
            # Without a majority: its sign would be that of arbitrary axes.
            plain = replace(setting, values={"merge_func": "mean"}, facts={"majority": 0})
            merged = left @ elect_globally(cores, plain) @ right.mT
        case _:
            return x
    norm = torch.linalg.matrix_norm(merged)
    size: Tensor = torch.linalg.matrix_norm(average(x, setting)) / torch.where(norm > 0, norm, 1.0)
    return (size * merged).expand(len(x), -1, -1)


def _add_ridge(form: Tensor, ridge: float) -> Tensor:
    ridged: Tensor = form + torch.diag_embed((ridge * form.diagonal().mean()).expand(len(form)))
    return ridged


def _project(value: Tensor, root: Root, rank: int | None) -> Tensor:
    """Return the X of that rank with the least ‖(X − value) K‖, K the root."""
    if rank is None or rank >= min(value.shape):
        return value
    frame = thin_svd(root.right(value)).left[:, :rank]
    return frame @ (frame.mT @ value)


def kronecker(lefts: Tensor, rights: Tensor, x: Tensor, setting: Setting) -> Answer:
    """Minimise F among matrices of rank `setting.rank`, for any positive definite forms.

    In Y = Kᵀ X H, with K Kᵀ and H Hᵀ the means of the forms, the mean form is the identity: there X* is found
    by conjugate gradients, and X on the manifold by the row's `solver`, from that start of rank R which costs
    least: an X* of half of the digits of `tol` cut in either norm, or the right-hand side cut.

    Args:
        lefts: (T, m, m) positive semidefinite.
        rights: (T, n, n) positive semidefinite.
        x: (T, m, n) the updates.
        setting: With `rank` and the values `solver`, `tol`, `cost_tol` and `max_passes`.

    Returns:
        X, of the status of the solve; X* of that of the conjugate gradients where its rank is at most R to
        half of the digits, or no rank is asked for. The cost is F; the gradient is that in Y, along matrices
        of rank R, in units of the right-hand side.

    Raises:
        NumericalError: All forms are zero, or a mean form is singular.
    """
    white = _Whitened(lefts, rights, x, setting.weights.to(x))
    if not white.norm > 0:
        return Answer(torch.zeros_like(x[0]), Status.EXACT, cost=white.constant * white.unit)
    values, rank = setting.values, setting.rank
    tol, budget = values["tol"], values["max_passes"]
    if rank is None or rank >= min(white.linear.shape):
        return white.answer(white.free(white.start, tol, budget))
    # As a start X* need not be exact, and its passes are the dear ones: full matrices, where those on the
    # manifold are thin.
    free = white.free(white.start, min(tol**0.5, 0.03), budget)
    cut = nearest(free.value, rank)[0]
    if _is_cut(free.value, cut):
        # It may be X* itself, or a start that happens to have the rank: to be seen at the end of the way.
        free = white.free(free.value, tol, budget)
        cut = nearest(free.value, rank)[0]
        if _is_cut(free.value, cut):
            return white.answer(free)
    problem = LowRankQuadratic(white.lefts, white.rights, white.linear, white.constant, rank)
    starts = [cut, nearest(white.linear, rank)[0], white.there(nearest(white.back(free.value), rank)[0])]
    points = [
        problem.total.factor((start.B * start.scale).unsqueeze(0), start.A.mT.unsqueeze(0))
        for start in (update.balance() for update in starts)
        if start.rank == rank and _well_ranked(start)
    ]
    minimum = minimise(
        problem,
        min(points, key=problem.cost),
        solver=values["solver"],
        tol=tol,
        cost_tol=values["cost_tol"],
        max_passes=budget,
    )
    return Answer(
        white.back(problem.total.matrix(minimum.point)[0]),
        minimum.status,
        _ADVICE.get(minimum.status, minimum.status.advice),
        free.passes + minimum.passes,
        max(0.0, minimum.cost * white.unit),  # a sum of squares, to round-off
        minimum.slope,
    )


# Nothing is to be done about a gradient below the tolerance.
_ADVICE = {Status.CONVERGED: ""}


def _is_cut(value: Tensor, cut: LowRankUpdate) -> bool:
    """Return whether a matrix is its cut to half of the digits."""
    return bool(torch.linalg.matrix_norm(value - cut.dense()) <= FLOOR * cut.norm())


def _well_ranked(update: LowRankUpdate) -> bool:
    """Return whether the least singular value of a balanced update counts."""
    sizes = torch.linalg.vector_norm(update.B, dim=0)
    return bool(sizes.min() ** 2 > FLOOR * sizes.max() ** 2)


@final
class _Whitened:
    """The problem in Y = Kᵀ X H / s: data of length one, forms whose mean is the identity.

    Attributes:
        lefts: Forms on outputs (T, m, m), the weights in them.
        rights: Forms on inputs (T, n, n).
        linear: Right-hand side (m, n), of norm 1.
        constant: Constant of the cost.
        start: Weighted average (m, n) in these units.
        norm: Norm s of the right-hand side.
        unit: Unit of the cost.
    """

    def __init__(self, lefts: Tensor, rights: Tensor, x: Tensor, weights: Tensor) -> None:
        left_sizes, right_sizes = (_sizes(forms) for forms in (lefts, rights))
        shares = weights * left_sizes * right_sizes
        total = shares.sum()
        if not bool(total > 0):
            raise NumericalError("all forms are zero here: expected statistics of data that the module saw")
        shares = shares / total
        self._left, self.lefts = _whiten(lefts, left_sizes, shares)
        self._right, self.rights = _whiten(rights, right_sizes, shares)
        self.lefts = self.lefts * shares[:, None, None]
        data = self._left.mT @ x @ self._right
        pulled = self.lefts @ data @ self.rights
        linear = pulled.sum(dim=0)
        self.norm = float(torch.linalg.matrix_norm(linear))
        scale = self.norm or 1.0
        self.unit = float(total) * scale**2
        self.linear = linear / scale
        self.constant = float((pulled * data).sum()) / (2 * scale**2)
        self.start = torch.tensordot(shares, data, dims=1) / scale
        self._scale = scale

    def apply(self, y: Tensor) -> Tensor:
        """Apply the form: return Σ Lₜ y Mₜ."""
        return (self.lefts @ y @ self.rights).sum(dim=0)

    def free(self, start: Tensor, tol: float, budget: int) -> Answer:
        """Find the Y of X* by conjugate gradients."""
        return conjugate_gradients(self.apply, self.linear, start, torch.ones_like(self.linear), tol, budget)

    def answer(self, free: Answer) -> Answer:
        """Return the X of such a Y, with its cost and gradient."""
        return free._replace(
            value=self.back(free.value),
            cost=self.cost(free.value),
            gradient_norm=float(torch.linalg.matrix_norm(self.apply(free.value) - self.linear)),
        )

    def cost(self, y: Tensor) -> float:
        """Return F at the X of a Y."""
        inner = (y * (self.apply(y) / 2 - self.linear)).sum()
        return max(0.0, (float(inner) + self.constant) * self.unit)

    def back(self, y: Tensor) -> Tensor:
        """Return the X of a Y."""
        half = torch.linalg.solve_triangular(self._left.mT, self._scale * y, upper=True)
        x: Tensor = torch.linalg.solve_triangular(self._right, half, upper=False, left=False)
        return x

    def there(self, x: LowRankUpdate) -> LowRankUpdate:
        """Return the Y of an X."""
        return LowRankUpdate(self._left.mT @ x.B, x.A @ self._right, x.scale / self._scale)


def _sizes(forms: Tensor) -> Tensor:
    sizes: Tensor = forms.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    return sizes


def _whiten(forms: Tensor, sizes: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Cholesky factor K of the mean of the forms of one side, and K⁻¹ form K⁻ᵀ for each."""
    forms = forms / torch.where(sizes > 0, sizes, 1.0)[:, None, None]
    root, info = torch.linalg.cholesky_ex(torch.tensordot(shares, forms, dims=1))
    if bool(info != 0):
        raise NumericalError(
            f"the mean of the forms ({len(root)} x {len(root)}) is singular to working precision: raise ridge"
        )
    half = torch.linalg.solve_triangular(root, forms, upper=False)
    full = torch.linalg.solve_triangular(root, half.mT, upper=False)
    return root, (full + full.mT) / 2
