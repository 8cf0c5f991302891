"""Updates as vectors of one space, and their directions as points of its unit sphere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from riemerge.errors import NumericalError, RecipeError
from riemerge.frechet.status import Status
from riemerge.methods.elections.election import masked_mean
from riemerge.methods.geometries.geometry import Geometry, Placed, Solved, Steps, spread
from riemerge.methods.method import Domain
from riemerge.methods.setting import Setting
from riemerge.methods.stack import Evidence
from riemerge.methods.sums.combinations import directions, inverse

# Inner products are right to a few eps for each of their terms: an eigenvalue below this share is none.
_ROUND_OFF = 1e-14
_METRICS = ("identity", "mask", "diagonal", "gram", "kronecker")


@final
@dataclass(frozen=True)
class Flat(Geometry):
    """Updates as vectors, and the Frobenius distance between them, or one of each update's own.

    Law: under the square loss the mean is (Σ wᵢ Gᵢ)⁻¹ Σ wᵢ Gᵢ xᵢ, Gᵢ the metric of update i: the weighted
    average, for `identity`. Under another loss the mean is a combination Σ cᵢ xᵢ, found in the T-dimensional
    span of the updates from their inner products.

    Attributes:
        metric: `identity`; `mask`, 1 at the entries where an update is not zero and 0 elsewhere, which makes
            the mean of each entry that of the updates that have it, and 0 where none has. The metrics that
            statistics give (`diagonal`, `gram`, `kronecker`) belong to rows whose mean is a formula.
        normalize: Whether the weights, of an entry where there is a mask, are divided by their sum; if not,
            the weighted sum of the updates stands for the mean.
    """

    metric: Literal["identity", "mask", "diagonal", "gram", "kronecker"] = "identity"
    normalize: bool = True

    def __post_init__(self) -> None:
        if self.metric not in _METRICS:
            raise RecipeError(f"Flat: metric is {self.metric!r}; known are {', '.join(_METRICS)}")

    @property
    def domain(self) -> Domain:
        """Inner products, which say all of the Frobenius distance; dense updates for a mask."""
        return {"identity": "gram", "gram": "half"}.get(self.metric, "entries")  # type: ignore[return-value]

    @property
    def closed_domain(self) -> Domain:
        """The weights say the weighted average."""
        return "weights" if self.metric == "identity" else self.domain

    @property
    def by_rows(self) -> bool:
        """A mask is one of entries, each by itself, and the weights of a sum are what they are."""
        return self.metric in {"mask", "identity"}

    def closed_mean(self, x: Tensor, setting: Setting) -> Tensor:
        """Return the mean under the square loss: of the metric `identity`, its coefficients.

        Raises:
            NumericalError: `normalize`, and the weights cancel, or one is below 0 where a mask divides.
        """
        if self.metric != "identity":
            self._require("mask")
            return masked_mean(x, setting, normalize=self.normalize)
        weights = setting.weights.to(x)
        if not self.normalize:
            return weights
        # Numbers that cancel leave a rounding error of this size.
        noise = len(weights) * torch.finfo(torch.float64).eps * weights.abs().sum()
        if weights.sum().abs() <= noise:
            raise NumericalError("the weights add up to zero: expected another sum, or `normalize: false`")
        return weights / weights.sum()

    def mean(self, x: Tensor, setting: Setting) -> Steps:
        """Place the updates in their span: one problem."""
        from riemerge.manifolds import Euclidean  # brings Pymanopt, which no closed form needs

        self._require("identity")
        products, total = x.cpu(), setting.weights.sum()
        weights = setting.weights / total
        # Seen from the average: close updates keep their digits, and coefficients their sum.
        toward = products @ weights
        apart = products - toward - toward[:, None] + weights @ toward
        coordinates, combine = coordinates_of(apart, float(products.diagonal().max()))
        unit = float(apart.diagonal().max().clamp_min(0.0).sqrt()) or 1.0
        solved = yield Placed(Euclidean(len(x), 1), coordinates, unit=unit)
        off = combine(solved.value)
        mean = weights + off - off.sum() * weights
        if not self.normalize:
            mean = total * mean
        return solved._replace(value=mean.to(x))

    def _require(self, metric: str) -> None:
        if self.metric != metric:
            raise RecipeError(
                f"geometry flat:metric={self.metric}: each update has a metric of its own, and only the "
                "square loss has a mean then, in the row that names this geometry: use metric=identity"
            )


@final
@dataclass(frozen=True)
class Sphere(Geometry):
    """The directions dWᵢ/‖dWᵢ‖ on the unit sphere, and the angle between them; the norm is Σ wᵢ ‖dWᵢ‖.

    Law: under the square loss and for two updates the mean is `nuslerp` of their directions. It is unique
    where all directions lie in one open half of the sphere, and refused where that is not seen. A model that
    is zero has no direction, and counts by its norm alone.

    Raises:
        NumericalError: The directions are not in one half: opposite ones, or ones that cancel.

    Source: Karcher 1977; uniqueness Afsari 2011.
    """

    @property
    def domain(self) -> Domain:
        """Inner products."""
        return "gram"

    def mean(self, x: Tensor, setting: Setting) -> Steps:
        """Place the directions in their span: one problem, unless no update has a direction."""
        from riemerge.manifolds import Sphere as UnitSphere  # brings Pymanopt, which no closed form needs

        norms, cosines = directions(x.cpu())
        present = torch.nonzero(norms).squeeze(-1)
        if not len(present):
            return Solved(setting.weights.to(x), Evidence(Status.CONVERGED))
        cosines = cosines[present][:, present]
        if not _in_one_half(cosines):
            raise NumericalError(
                "the updates point into more than half of all directions, where their mean on the sphere may "
                "not be unique; merge fewer or closer updates, or use average"
            )
        coordinates, combine = coordinates_of(cosines, 1.0)
        weights = setting.weights[present]
        solved = yield Placed(UnitSphere(len(present), 1), coordinates, weights)
        # The average and what is off it: of close directions the coefficients keep all digits.
        average = torch.tensordot(weights, coordinates, dims=1)
        share = (average * solved.value).sum() / average.square().sum()
        value = torch.zeros_like(norms)
        value[present] = share * weights + combine(solved.value - share * average)
        value *= inverse(norms) * (setting.weights @ norms)
        evidence = spread(solved.evidence, present.tolist(), len(norms))
        return Solved(value.to(x), evidence)


def coordinates_of(gram: Tensor, size: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return T vectors as points (T, T, 1) of their span, from their inner products (T, T); and what gives
    the coefficients (T,) of the combination that a point (T, 1) of that span is.

    Law: distances are right to the root of round-off. Of the coefficients that say the same the shortest are
    returned, so vectors that are copies share theirs.

    Args:
        gram: Inner products (T, T).
        size: Largest square of the numbers that they were computed from, to which round-off is relative.
    """
    values, basis = torch.linalg.eigh(gram)
    roots = torch.where(values > _ROUND_OFF * size, values, 0.0).sqrt()

    def combine(point: Tensor) -> Tensor:
        coefficients: Tensor = basis @ (point.squeeze(-1) * inverse(roots))
        return coefficients

    return (basis * roots).unsqueeze(-1), combine


def _in_one_half(cosines: Tensor) -> bool:
    """Return whether all directions are seen to lie in one open half of the sphere.

    Law: the perceptron finds the middle of a half in 1/sin² passes of the margin; 1000 see one of 2 degrees.

    Source: Novikoff 1962.
    """
    middle = torch.ones_like(cosines[0])
    for _ in range(1000):
        dots = cosines @ middle
        worst = dots.argmin()
        if dots[worst] > _ROUND_OFF * middle.sum():
            return True
        middle[worst] += 1.0
    return False
