"""The Fréchet problem of updates, jointly in the mean and the alignments of the data to it."""

from __future__ import annotations

import copy
from typing import Any, Self, final

import torch
from torch import Tensor

from riemerge import linalg
from riemerge.frechet.batched import Geodesic, differentiated, missed, screened, vertical_parts
from riemerge.frechet.formulation import Evaluation
from riemerge.frechet.low_rank.logarithms import AlignedLogarithms, Pass
from riemerge.frechet.low_rank.search_space import JointManifold
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold
from riemerge.manifolds.base import Logarithm
from riemerge.manifolds.stiefel_log import orthonormalised

# What is left of the block C of a logarithm, against the gradient of the last iterate. The gradient at the
# next one is off by this share, the cost by its square.
_LOOSE = 0.06
# The same at a first point of single precision, where no gradient is known yet.
_FIRST = 3e-4
# Turns of a completion, from scratch, within which most logarithms are found.
_FEW_TURNS = 12


@final
class Joint(Geodesic):
    """The smooth form: alignments are variables beside x, and a pass is one logarithm per data point.

    Logarithms are completed from those of the last accepted iterate and turned until they are as good as its
    gradient calls for (`AlignedLogarithms`); so the cost at a point depends, within that precision, on where
    the optimizer stands, but never on trial points.
    """

    def __init__(self, quotient: QuotientManifold, points: Tensor, weights: Tensor, autograd: bool) -> None:
        assert isinstance(quotient.action, Orthogonal)
        assert isinstance(quotient.total, FixedRank)
        self.space = quotient
        self.total, self.action = quotient.total, quotient.action
        self.k = points.shape[1]
        self.points = self.action.diagonalised(self.total, _polished(self.total, points))
        self.weights = weights
        self.manifold: JointManifold = JointManifold(quotient, self.points, weights)
        identity = torch.eye(self.action.r, dtype=points.dtype, device=points.device)
        self.stand_in = self.manifold.join(self.points[0], identity.expand(*points.shape[:2], -1, -1))
        self.autograd = autograd
        self._logarithms = (
            None
            if autograd or not AlignedLogarithms.applies(self.total)
            else AlignedLogarithms(self.total, self.points, weights)
        )
        if self._logarithms is not None:
            self.coarse = torch.zeros(self.k, dtype=torch.bool, device="cpu")
        self._anchor: Evaluation | None = None

    def narrowed(self, modules: Tensor) -> Self:
        """Return the same problem for some of the modules."""
        narrow = copy.copy(self)
        narrow.k = modules.numel()
        narrow.space = self.space.with_modules(narrow.k)
        assert isinstance(narrow.space.total, FixedRank)
        narrow.total = narrow.space.total
        narrow.points, narrow.weights = self.points[:, modules], self.weights[:, modules]
        narrow.stand_in = self.stand_in[modules]
        narrow.manifold = JointManifold(narrow.space, narrow.points, narrow.weights)
        if self._logarithms is not None and self.coarse is not None:
            narrow._logarithms = self._logarithms.narrowed(modules)
            narrow.coarse = self.coarse[modules.cpu()]
        if self._anchor is not None:
            narrow._anchor = self._anchor.narrowed(modules)
        return narrow

    def evaluate(self, point: Tensor, *, tight: bool = False) -> Evaluation:
        """Compute one logarithm for each data point and module."""
        if self.coarse is None:
            return self.certify(point)[0]
        if tight or not self.coarse.any():
            return self._continued(point, torch.float64, tight=tight)
        if self.coarse.all():
            return self._continued(point, torch.float32)
        fine = torch.nonzero(~self.coarse).squeeze(-1).to(point.device)
        rest = torch.nonzero(self.coarse).squeeze(-1).to(point.device)
        # Of as many modules as there are, those that follow being stand-ins.
        places = (torch.cumsum(self.coarse, dim=0) - 1).clamp_min(0).to(point.device)
        whole = self.narrowed(rest).evaluate(point[rest]).narrowed(places)
        return whole.replaced(fine, self.narrowed(fine).evaluate(point[fine]))

    def glance(self, point: Tensor) -> Evaluation:
        """Compute the same, but for logarithms that take long to find: their modules cost +inf."""
        if self._logarithms is None:
            return self.certify(point)[0]
        coarse = self.coarse is not None and bool(self.coarse.all())
        return self._passed(point, torch.float32 if coarse else torch.float64, turns=_FEW_TURNS)

    def _continued(self, point: Tensor, dtype: torch.dtype, *, tight: bool = False) -> Evaluation:
        """A pass that starts from the last accepted one, and is as precise as that calls for."""
        anchor = self._anchor
        if anchor is None:
            coarse = dtype == torch.float32
            first = self.weights.new_full((self.k,), _FIRST) if coarse else None
            return self._passed(point, dtype, tolerance=first)
        tolerance = None if tight else _LOOSE * anchor.norms
        return self._passed(point, dtype, earlier=anchor.state, tolerance=tolerance)

    def _passed(self, point: Tensor, dtype: torch.dtype, **options: Any) -> Evaluation:
        """One pass of `AlignedLogarithms`."""
        assert self._logarithms is not None
        point, feasible = self._screened(point)
        x, alignments = self.manifold.split(point)
        found = self._logarithms.at(x, alignments, dtype=dtype, **options)
        gradient = self.manifold.gradient_of(x, alignments, self.weights, found)
        logs = Logarithm(found.mean, found.squared, found.valid)
        vertical = self.manifold.vertical_lengths(found)
        evaluation = screened(self, point, feasible, logs, gradient, vertical, self.weights)
        coarse = torch.full_like(feasible, dtype == torch.float32)
        return evaluation._replace(state=found, coarse=coarse)

    def certify(self, point: Tensor) -> tuple[Evaluation, Tensor]:
        """Compute one logarithm for each data point and module, from scratch, and checks it."""
        point, feasible = self._screened(point)
        x, alignments = self.manifold.split(point)
        aligned = self.action.act(self.total, self.points, alignments)
        found = self.total.logarithm(x, aligned)
        tangent = found.tangent
        if self.autograd:

            def squared(leaf: Tensor) -> Tensor:
                at, turns = self.manifold.split(leaf)
                result: Tensor = self.total.squared_dists(at, self.action.act(self.total, self.points, turns))
                return result

            euclidean, found = differentiated(squared, point, found, self.weights)
            gradient = self.manifold.euclidean_to_riemannian_gradient(point, euclidean)
        else:
            gradient = self.manifold.gradient(x, tangent, self.weights, alignments)
        vertical = vertical_parts(self.space, x, tangent)
        evaluation = screened(self, point, feasible, found, gradient, vertical, self.weights)
        return evaluation, missed(self.total, x, tangent, aligned)

    def accept(self, evaluation: Evaluation) -> None:
        """Keep the completions of the iterate's logarithms, to start those of the next from."""
        if isinstance(evaluation.state, Pass):
            self._anchor = evaluation

    def precondition(self, point: Tensor, vector: Tensor, evaluation: Evaluation) -> Tensor:
        """Divide the alignments' part by the curvature of the cost over the group, a diagonal model."""
        if not isinstance(evaluation.state, Pass):
            return vector
        return self.manifold.precondition(point, vector, evaluation.state)

    def start(self, initial_point: Tensor | None) -> Tensor:
        """Return the extrinsic mean, or a user's point, with the data aligned to it."""
        if initial_point is not None:
            return self.place(_polished(self.total, initial_point))
        return self.manifold.join(*self.action.aligned_mean(self.total, self.points, self.weights))

    def place(self, x: Tensor) -> Tensor:
        """Align the data to x by the surrogate alone."""
        return self.manifold.join(x, self.action.guess(self.total, self.points, x))

    def solution(self, point: Tensor) -> Tensor:
        """Return the mean."""
        return self.manifold.split(point)[0]

    def _screened(self, point: Tensor) -> tuple[Tensor, Tensor]:
        feasible = self.manifold.feasible(point)
        return self.choose(feasible, point, self.stand_in), feasible


def _polished(total: FixedRank, points: Tensor) -> Tensor:
    """Make frames orthonormal that were so to the digits of a narrower dtype only; leaves others to the
    bit.
    """
    u, core, v = total.split(points)
    return total.join(_frames(u), core, _frames(v))


def _frames(frame: Tensor) -> Tensor:
    gram = frame.mT @ frame
    error = (gram - linalg.eye_like(gram)).abs().amax(dim=(-2, -1))
    return torch.where((error > _ORTHONORMAL)[..., None, None], orthonormalised(frame), frame)


_ORTHONORMAL = 1e-13
