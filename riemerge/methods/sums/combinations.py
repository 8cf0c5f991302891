"""Means that are linear combinations Σ cᵢ xᵢ: the coefficients, from the inner products of the models alone.

A direction is u = x/‖x‖, a point of the unit sphere. A model that is zero has none: as published, its cosine
with every other is 0, and it counts by its norm alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.methods.setting import Setting

# What cancels to below this is round-off of the inner products: a few eps of float64 for each of the terms.
_ROUND_OFF = 1e-14


def slerp(gram: Tensor, setting: Setting, /) -> Tensor:
    """Return the point at `t` of the way from the first of two models to the second, along an arc.

    Law: c = (sin((1 − t)θ), sin(tθ))/sin θ, θ the angle between the two; for equal norms the arc is that of
    the sphere and the norm is kept. Without `t` the shares are the weights, and the result does not depend on
    the order. One model, where the other has weight 0, is itself, and so is an end of the arc. Where
    cos θ > 0.9995 the chord takes the place of the arc, c = (1 − t, t): a change of at most 1.3e-4 of the
    norm.

    Raises:
        NumericalError: `t` beside weights that differ; cos θ < −0.9995 between the ends: the chord, which
            mergekit takes there too, passes by zero, and opposite models have no shortest arc.

    Source: Shoemake 1985, eq. 6; threshold and un-normalised ends as in mergekit's `slerp`.
    """
    t, shares = setting.values.get("t"), setting.weights / setting.weights.sum()
    if t is not None:
        if bool((setting.weights != setting.weights[0]).any()):
            raise NumericalError(
                f"weights {setting.weights.tolist()} beside t {t}: expected equal ones, or no t"
            )
        shares = torch.tensor([1.0 - t, t], dtype=torch.float64)
    if len(gram) == 1:
        return torch.ones_like(gram[0])
    _, cosines = directions(gram)
    cosine = cosines[0, 1]
    if bool(shares.all()):
        _expect_an_arc(cosine, cosine < -0.9995)
    return _arc(cosine, shares.to(gram), cosine.abs() > 0.9995)


def nuslerp(gram: Tensor, setting: Setting, /) -> Tensor:
    """Return the point of the arc between two models that their weights say, also where they are close.

    Law: `slerp` with t = w₂/(w₁ + w₂) and no threshold: a smooth function of the two. Only where they point
    the same way to round-off is it c = w.

    Raises:
        NumericalError: The updates are opposite to round-off: no arc between them is the shortest.

    Source: mergekit's `nuslerp` (flattened).
    """
    if len(gram) == 1:
        return torch.ones_like(gram[0])
    _, cosines = directions(gram)
    parallel = 1.0 - cosines[0, 1].square() <= _ROUND_OFF
    _expect_an_arc(cosines[0, 1], parallel & (cosines[0, 1] < 0.0))
    return _arc(cosines[0, 1], setting.weights.to(gram), parallel)


def nuslerp_rows(x: Tensor, setting: Setting, /) -> Tensor:
    """Return `nuslerp` of each vector along the last axis by itself: of a matrix, the weights of each output.

    Law: rows are independent; turning all inputs, x -> x R with Rᵀ = R⁻¹, turns the result. A row of one
    number has no direction, and gets the weighted mean.

    Raises:
        NumericalError: Two rows of more than one number are opposite to round-off.

    Source: mergekit's `nuslerp` with `nuslerp_flatten: false`.

    Cost: entrywise, it needs the dense dW: a few passes over 2 m n numbers.
    """
    if len(x) == 1:
        return x[0]
    first, second = torch.nn.functional.normalize(x, dim=-1, eps=torch.finfo(x.dtype).tiny)
    cosine = (first * second).sum(dim=-1, keepdim=True).clamp(-1.0, 1.0)
    shares = setting.weights.to(x).reshape(-1, *[1] * (x.ndim - 1))
    parallel = 1.0 - cosine.square() <= _ROUND_OFF
    if x.shape[-1] > 1:
        _expect_an_arc(cosine, parallel & (cosine < 0.0))
    return (_arc(cosine, shares, parallel) * x).sum(dim=0)


def multislerp(gram: Tensor, setting: Setting, /) -> Tensor:
    """Return the normalised mean of the directions, at the mean of the norms.

    Law: m · Σ wᵢ ‖xᵢ‖ with m = Σ wᵢ uᵢ / ‖Σ wᵢ uᵢ‖. The published step in the tangent space at m is
    identically zero, as Σ wᵢ uᵢ is a multiple of m. Models that are all zero merge to zero.

    Raises:
        NumericalError: The directions cancel.

    Source: Goddard, multislerp; in closed form here.
    """
    weights = setting.weights.to(gram)
    norms, cosines = directions(gram)
    square = weights @ (cosines @ weights)
    if square > _ROUND_OFF:
        return weights * inverse(norms) * ((weights @ norms) / square.sqrt())
    if not norms.any():
        return weights
    raise NumericalError(
        f"the weighted directions of the updates cancel (their sum has squared length {float(square):.1e}): "
        "their mean has no direction; change the weights, or use average"
    )


def model_stock(gram: Tensor, setting: Setting, /) -> Tensor:
    """Return the mean of the updates, pulled to the base as far as their angles call for.

    Law: c = ρ w with ρ = T cos θ / (1 + (T − 1) cos θ), cos θ the mean cosine of all pairs: 1 for copies and
    for one update, 0 for orthogonal updates, below 0 where they oppose each other. As published the estimate
    of ρ takes all updates alike, and the mean is uniform; here the weights are the shares of that mean.

    Raises:
        NumericalError: The directions cancel, where ρ has no finite value (mergekit answers with the base).

    Source: Jang et al. 2024 (Model Stock), eq. 5.
    """
    weights = setting.weights.to(gram)
    count = len(weights)
    if count == 1:
        return weights
    _, cosines = directions(gram)
    cosine = (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))
    denominator = 1.0 + (count - 1) * cosine
    if denominator < 1e-6:
        raise NumericalError(
            f"the mean cosine of the updates is {float(cosine):.6f}: model_stock has no finite ratio there; "
            "leave out an update that opposes the others, or use average"
        )
    return weights * (count * cosine / denominator)


def ema(gram: Tensor, setting: Setting, /) -> Tensor:
    """Return the exponential moving average of a run's checkpoints, in the order given.

    Law: θ̄ = θ₁, then θ̄ <- β θ̄ + (1 − β) θᵢ with β = `decay`; the coefficients sum to 1.

    Raises:
        NumericalError: Weights that are not all equal: the order gives the shares.

    Source: Polyak and Juditsky 1992; `torch.optim.swa_utils.get_ema_multi_avg_fn`.
    """
    count, decay = _run(setting, "ema"), float(setting.values["decay"])
    ages = torch.arange(count - 1, -1, -1, dtype=torch.float64)
    shares = (1.0 - decay) * decay**ages
    shares[0] = decay ** (count - 1)
    return shares.to(gram)


def swa(gram: Tensor, setting: Setting, /) -> Tensor:
    """Return the running mean of a run's checkpoints: all alike.

    Raises:
        NumericalError: Weights that are not all equal.

    Source: Izmailov et al. 2018 (SWA), algorithm 1.
    """
    return _tail(gram, _run(setting, "swa"))


def lawa(gram: Tensor, setting: Setting, /) -> Tensor:
    """Return the mean of the `last` checkpoints of a run; of all, where there are fewer.

    Raises:
        NumericalError: Weights that are not all equal.

    Source: Kaddour 2022 (LAWA), section 2.
    """
    _run(setting, "lawa")
    return _tail(gram, int(setting.values["last"]))


def directions(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return norms (T,) and cosines (T, T); a zero model has cosine 0 with all."""
    norms = gram.diagonal().clamp(min=0.0).sqrt()
    lengths = inverse(norms)
    return norms, (lengths[:, None] * gram * lengths).clamp(-1.0, 1.0)


def inverse(norms: Tensor) -> Tensor:
    """Return the inverses of numbers, zero for zero."""
    return torch.where(norms > 0.0, 1.0 / norms, 0.0)


def _expect_an_arc(cosine: Tensor, opposite: Tensor) -> None:
    """Refuse two models, or rows of them, between which no arc is the shortest."""
    if bool(opposite.any()):
        where = f"in {int(opposite.sum())} of {opposite.numel()} rows " if opposite.ndim else ""
        raise NumericalError(
            f"the two updates are {where}opposite (their cosine is {float(cosine.min()):.6f}), where no arc "
            "between them is the shortest and their mean on the sphere may be anything: merge others, or use "
            "average"
        )


def _arc(cosine: Tensor, shares: Tensor, straight: Tensor) -> Tensor:
    """Return the coefficients of two models on their arc; the shares themselves where it is `straight`."""
    angle = torch.where(straight, 0.0, cosine).acos()
    return torch.where(straight, shares, torch.sin(shares * angle) / torch.sin(angle))


def _run(setting: Setting, row: str) -> int:
    """Return the number of checkpoints of a run, whose shares only the row decides."""
    if bool((setting.weights != setting.weights[0]).any()):
        raise NumericalError(
            f"the weights {[round(weight, 6) for weight in setting.weights.tolist()]} differ, and in {row} "
            "the order of the checkpoints gives the shares; give no weights, or use average"
        )
    return len(setting.weights)


def _tail(gram: Tensor, last: int) -> Tensor:
    count = len(gram)
    kept = min(last, count)
    shares = gram.new_zeros(count)
    shares[count - kept :] = 1.0 / kept
    return shares
