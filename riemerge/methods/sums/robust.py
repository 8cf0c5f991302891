"""Robust means in the Frobenius distance: the geometric median and Huber's, from inner products alone.

Both are combinations Σ cᵢ xᵢ with cᵢ >= 0 of sum 1, found by reweighting: a minimum of Σ wᵢ ρ(‖x − xᵢ‖) is
the average of weights wᵢ ρ'(dᵢ)/dᵢ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemerge.methods.setting import Answer, Setting
from riemerge.methods.sums.combinations import conclude

# Inner products are right to a few eps for each of their terms, so distances below its root are none.
_ROUND_OFF = 1e-14
# How near to equality an optimality condition of computed distances counts as met.
_TIE = 1e-9


def median(gram: Tensor, setting: Setting, /) -> Answer:
    """Return the geometric median: the minimiser of Σ wᵢ ‖x − xᵢ‖.

    Law: copies give themselves; a model, or copies of it, of more than half of the weight is the median
    whatever the others are, so it bears less than that of outliers; it moves with every isometry. An update
    is the median if and only if ‖Σ wⱼ (xⱼ − xᵢ)/‖xⱼ − xᵢ‖‖ over the others is at most its weight (Vardi and
    Zhang), which is asked first; where several are (all on one line), their average is. Otherwise the
    gradient norm is at most `tol`. Updates nearer than 1e-7 of the largest norm are copies: their inner
    products do not tell them apart.

    Source: Weiszfeld 1937; Vardi, Zhang 2000, The multivariate L1-median, PNAS 97.

    Cost: O(T²) for each of at most `max_passes` passes, on the CPU.
    """
    products, weights = gram.cpu(), setting.weights
    tol, budget = float(setting.values["tol"]), int(setting.values["max_passes"])
    point, bound, passes = _median(products, weights, tol, budget)
    return conclude(point.to(gram), bound, passes, tol)


def huber(gram: Tensor, setting: Setting, /) -> Answer:
    """Return Huber's mean: the minimiser of Σ wᵢ ρ(‖x − xᵢ‖), ρ(d) = d²/2 up to δ and δ d − δ²/2 beyond.

    δ is `delta` times the weighted median of the distances to the geometric median. So models within δ count
    as in the average, and one farther away pulls no more than one at δ.

    Law: copies give themselves; the average for a large `delta`, the geometric median as it goes to 0; it
    moves with every isometry and f(c x) = c f(x). The gradient norm is at most `tol` of δ.

    Source: Huber 1964, Robust estimation of a location parameter; Weiszfeld's reweighting.

    Cost: that of `median`, twice.
    """
    products, weights = gram.cpu(), setting.weights
    tol, budget = float(setting.values["tol"]), int(setting.values["max_passes"])
    middle, bound, passes = _median(products, weights, tol, budget)
    delta = float(setting.values["delta"]) * float(_middle(_distances(products, middle), weights))
    if bound > tol or delta == 0.0:
        return conclude(middle.to(gram), bound, passes, tol)
    point = weights / weights.sum()
    passes = -1
    while passes < budget:
        passes += 1
        apart = _distances(products, point)
        pull = weights * (delta / apart.clamp(min=delta))
        moved = pull / pull.sum()
        bound = float(((moved - point).abs() * apart).sum() * pull.sum()) / delta
        if bound <= tol:
            break
        point = moved
    return conclude(point.to(gram), bound, passes, tol)


def _median(products: Tensor, weights: Tensor, tol: float, budget: int) -> tuple[Tensor, float, int]:
    """Return the coefficients of the geometric median, a bound of the gradient norm, and passes.

    With pᵢ = wᵢ/dᵢ the gradient is Σ pᵢ (x − xᵢ) = Σ (s cᵢ − pᵢ)(xᵢ − x), s = Σ pᵢ: its coefficients vanish
    with it, and bound it without a difference of nearly equal vectors.
    """
    near = _near(products)
    optimal = torch.stack([_is_median(products, weights, near, place) for place in range(len(weights))])
    if bool(optimal.any()):
        shares = weights * optimal
        return shares / shares.sum(), 0.0, 0
    point, bound = weights / weights.sum(), torch.inf
    floor = (_ROUND_OFF * products.diagonal().max()).sqrt()
    passes = -1
    while passes < budget:
        passes += 1
        apart = _distances(products, point)
        met = apart <= floor
        pull = torch.where(met, 0.0, weights / apart.clamp(min=floor))
        toward, total = pull / pull.sum(), pull.sum()
        if bool(met.any()):
            # At an update that is not the median: its weight holds the iterate back, not for good.
            outward = pull - total * point
            held = min(1.0, float(weights[met].sum() / (outward @ products @ outward).sqrt()))
            point = (1.0 - held) * toward + held * point
            continue
        bound = float(((total * point - pull).abs() * apart).sum())
        if bound <= tol:
            break
        point = toward
    return point, bound, passes


def _is_median(products: Tensor, weights: Tensor, near: Tensor, place: int) -> Tensor:
    """Return whether one of the updates is a geometric median of all."""
    here = torch.zeros_like(weights)
    here[place] = 1.0
    apart = _distances(products, here)
    pull = torch.where(near[place], 0.0, weights / apart.clamp(min=torch.finfo(apart.dtype).tiny))
    outward = pull - pull.sum() * here
    norm = (outward @ products @ outward).clamp(min=0.0).sqrt()
    own: Tensor = weights[near[place]].sum()
    return norm <= own * (1.0 + _TIE)


def _near(products: Tensor) -> Tensor:
    """Return which updates are copies of each other to round-off (T, T)."""
    squares = products.diagonal()
    gaps = squares[:, None] + squares - 2.0 * products
    return gaps <= _ROUND_OFF * squares.max()


def _distances(products: Tensor, point: Tensor) -> Tensor:
    """Return the distances (T,) of Σ cᵢ xᵢ, cᵢ of sum 1, to the updates."""
    toward = products @ point
    return (products.diagonal() - 2.0 * toward + point @ toward).clamp(min=0.0).sqrt()


def _middle(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted median of numbers; the middle of two where half of the weight is on either side."""
    ordered, order = values.sort()
    below = weights[order].cumsum(dim=0) / weights.sum()
    first = int((below < 0.5 - _TIE).sum())
    last = int((below <= 0.5 + _TIE).sum())
    return (ordered[first] + ordered[min(last, len(ordered) - 1)]) / 2.0
