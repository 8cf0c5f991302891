"""The Fréchet problem of updates, jointly in the mean and the alignments of the data to it."""

from __future__ import annotations

import copy
from typing import Any, Self, cast, final

import torch
from torch import Tensor

from riemerge import linalg
from riemerge.frechet.batched import (
    Geodesic,
    differentiate_cost,
    forward_errors,
    screen,
    shorten,
    vertical_lengths,
)
from riemerge.frechet.distance import Distance
from riemerge.frechet.formulation import Evaluation
from riemerge.frechet.loss import Objective
from riemerge.frechet.low_rank.logarithms import AlignedLogarithms, Pass
from riemerge.frechet.low_rank.search_space import JointManifold
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold
from riemerge.manifolds.base import Logarithm
from riemerge.manifolds.stiefel_log import orthonormalize

# What is left of the block C of a logarithm, against the gradient of the last iterate. The gradient at the
# next one is off by this share, the cost by its square.
_LOOSE = 0.06
# What is left of that block at a first point of single precision, where no gradient is known yet.
_FIRST = 3e-4
# Turns of a completion, from scratch, within which most logarithms are found.
_FEW_TURNS = 12


@final
class Joint(Geodesic):
    """The smooth form: alignments are variables beside x, and a pass is one logarithm per data point.

    Logarithms are completed from those of the last accepted iterate and turned until they are as good as its
    gradient calls for (`AlignedLogarithms`); so the cost at a point depends, within that precision, on where
    the optimizer stands, but never on trial points.

    Args:
        quotient: FixedRank by Orthogonal.
        points: Data (T, K, m + r + n, r).
        objective: F, of weights (T, K).
        autograd: Whether the distance is differentiated by torch.
        distance: A distance other than the geodesic one, that is the least over the representatives.
    """

    def __init__(
        self,
        quotient: QuotientManifold,
        points: Tensor,
        objective: Objective,
        autograd: bool,
        distance: Distance | None = None,
    ) -> None:
        self.space = quotient
        # What the action that named this formulation acts on.
        self.total, self.action = cast(FixedRank, quotient.total), cast(Orthogonal, quotient.action)
        self.k = points.shape[1]
        self.points = self.action.diagonalize_core(self.total, _polish(self.total, points))
        self.objective = objective
        self.manifold: JointManifold = JointManifold(quotient, self.points, objective.weights)
        identity = torch.eye(self.action.r, dtype=points.dtype, device=points.device)
        self.stand_in = self.manifold.join(self.points[0], identity.expand(*points.shape[:2], -1, -1))
        self.autograd = autograd or distance is not None
        self.distance = distance
        self.by_logarithms = distance is None
        self._logarithms: AlignedLogarithms | None = None
        if not self.autograd and AlignedLogarithms.applies(self.total):
            self._logarithms = AlignedLogarithms(self.total, self.points, objective)
            if objective.loss.smooth:
                self.coarse = torch.zeros(self.k, dtype=torch.bool, device="cpu")
        self._anchor: Evaluation | None = None

    def narrow(self, modules: Tensor) -> Self:
        """Return the problem of some of the modules."""
        narrow = copy.copy(self)
        narrow.k = modules.numel()
        narrow.space = self.space.with_modules(narrow.k)
        narrow.total = cast(FixedRank, narrow.space.total)
        narrow.points, narrow.objective = self.points[:, modules], self.objective.narrow(modules)
        narrow.stand_in = self.stand_in[modules]
        narrow.manifold = JointManifold(narrow.space, narrow.points, narrow.objective.weights)
        narrow._logarithms = self._logarithms and self._logarithms.narrow(modules)
        if self.coarse is not None:
            narrow.coarse = self.coarse[modules.cpu()]
        narrow._anchor = self._anchor and self._anchor.narrow(modules)
        return narrow

    def evaluate(self, point: Tensor, *, tight: bool = False) -> Evaluation:
        """Compute one logarithm for each data point and module."""
        if self._logarithms is None:
            return self._evaluate_from_scratch(point)[0]
        if tight or self.coarse is None or not self.coarse.any():
            return self._evaluate_from_anchor(point, tight=tight)
        if self.coarse.all():
            return self._evaluate_from_anchor(point, coarse=True)
        fine = torch.nonzero(~self.coarse).squeeze(-1).to(point.device)
        rest = torch.nonzero(self.coarse).squeeze(-1).to(point.device)
        # Pad the coarse modules to K; the padding is replaced by the fine ones.
        indices = (torch.cumsum(self.coarse, dim=0) - 1).clamp_min(0).to(point.device)
        whole = self.narrow(rest).evaluate(point[rest]).narrow(indices)
        return whole.replace(fine, self.narrow(fine).evaluate(point[fine]))

    def evaluate_quickly(self, point: Tensor) -> Evaluation:
        """Compute a pass as `evaluate` does, but for logarithms that take long to find: their modules cost
        +inf.
        """
        if self._logarithms is None:
            return self._evaluate_from_scratch(point)[0]
        coarse = self.coarse is not None and bool(self.coarse.all())
        return self._evaluate_pass(point, coarse, tolerance=self._first_tolerance(coarse), turns=_FEW_TURNS)

    def _evaluate_from_anchor(
        self, point: Tensor, *, coarse: bool = False, tight: bool = False
    ) -> Evaluation:
        """Compute a pass that starts from the last accepted one, and is as precise as that calls for."""
        anchor, tolerance = self._anchor, None
        if anchor is not None:
            if not tight:
                tolerance = _LOOSE * anchor.norms / self.objective.stiffness(anchor.state.pull)
            return self._evaluate_pass(point, coarse, earlier=anchor.state, tolerance=tolerance)
        return self._evaluate_pass(point, coarse, tolerance=self._first_tolerance(coarse))

    def _first_tolerance(self, coarse: bool) -> Tensor | None:
        """Return what may be left of the block C where nothing is known yet, (K,)."""
        return self.objective.weights.new_full((self.k,), _FIRST) if coarse else None

    def _evaluate_pass(self, point: Tensor, coarse: bool, **options: Any) -> Evaluation:
        """Compute one pass of `AlignedLogarithms`."""
        assert self._logarithms is not None
        point, feasible = self._replace_infeasible(point)
        x, alignments = self.manifold.split(point)
        state = self._logarithms.compute(x, alignments, coarse=coarse, **options)
        parts = self.manifold.gradient_of(x, alignments, state)
        gradient = self._join_gradient(x, *parts, state.squared)
        logs = Logarithm(state.mean, state.squared, state.valid)
        vertical = self.manifold.vertical_lengths(state)
        return screen(self, point, feasible, logs, gradient, vertical)._replace(state=state)

    def _join_gradient(self, x: Tensor, at_x: Tensor, turns: Tensor, squared: Tensor) -> Tensor:
        """Return the shortest subgradient with these parts; a kink of the loss is one in x alone, since no
        other datum's alignment turns the data at x.
        """
        return self.manifold.join(shorten(self.objective, self.total, x, at_x, squared), turns)

    def certify(self, point: Tensor) -> tuple[Evaluation, Tensor]:
        """Compute one logarithm for each data point and module, from scratch, and check it."""
        evaluation, x, logs, aligned = self._evaluate_from_scratch(point)
        if self.distance is None:
            return evaluation, forward_errors(self.total, x, logs.tangent, aligned)
        known = self.space.logarithm(x, self.points)
        squared = torch.where(known.valid, known.squared, torch.nan)
        return evaluation._replace(squared=squared), torch.full_like(squared, torch.nan)

    def _evaluate_from_scratch(self, point: Tensor) -> tuple[Evaluation, Tensor, Logarithm, Tensor]:
        """Return what one pass finds, the mean, the logarithms (none for another distance) and the data as
        they are aligned.
        """
        point, feasible = self._replace_infeasible(point)
        x, alignments = self.manifold.split(point)
        aligned = self.action.act(self.total, self.points, alignments)
        if self.distance is None:
            logs = self.total.logarithm(x, aligned)
        else:
            known = torch.zeros_like(self.objective.weights)
            logs = Logarithm(torch.zeros_like(aligned), known, known == 0)
        if self.autograd:
            euclidean, logs = differentiate_cost(self._square, point, logs, self.objective)
            parts = self.manifold.split(self.manifold.euclidean_to_riemannian_gradient(point, euclidean))
        else:
            parts = self.manifold.gradient(x, logs.tangent, self.objective.pull(logs.squared), alignments)
        gradient = self._join_gradient(x, *parts, logs.squared)
        vertical = vertical_lengths(self.space, x, logs.tangent)
        return screen(self, point, feasible, logs, gradient, vertical), x, logs, aligned

    def _square(self, point: Tensor) -> Tensor:
        """Return squared distances (T, K) that torch differentiates."""
        x, alignments = self.manifold.split(point)
        aligned = self.action.act(self.total, self.points, alignments)
        if self.distance is None:
            return self.total.squared_dists(x, aligned)
        return torch.stack([self.distance.square(self.total, x, y) for y in aligned])

    def accept(self, evaluation: Evaluation) -> None:
        """Keep the completions of the iterate's logarithms, to start those of the next from."""
        if isinstance(evaluation.state, Pass):
            self._anchor = evaluation

    def precondition(self, point: Tensor, vector: Tensor, evaluation: Evaluation) -> Tensor:
        """Divide by the stiffness of the cost; the alignments' part by its curvature over the group, a
        diagonal model.
        """
        pull, state = self.objective.pull(evaluation.squared), evaluation.state
        return self.manifold.precondition(point, vector, pull, self.objective.stiffness(pull), state)

    def start(self, initial_point: Tensor | None) -> Tensor:
        """Return the extrinsic mean, or a user's point, with the data aligned to it."""
        if initial_point is not None:
            return self.embed(_polish(self.total, initial_point))
        return self.manifold.join(*self.action.aligned_mean(self.total, self.points, self.objective.weights))

    def embed(self, x: Tensor) -> Tensor:
        """Align the data to x by the surrogate alone."""
        return self.manifold.join(x, self.action.guess(self.total, self.points, x))

    def solution(self, point: Tensor) -> Tensor:
        """Return the mean."""
        return self.manifold.split(point)[0]

    def _replace_infeasible(self, point: Tensor) -> tuple[Tensor, Tensor]:
        feasible = self.manifold.feasible(point)
        return self.choose(feasible, point, self.stand_in), feasible


def _polish(total: FixedRank, points: Tensor) -> Tensor:
    """Make frames orthonormal that were so to the digits of a narrower dtype only; leaves others to the
    bit.
    """
    u, core, v = total.split(points)
    return total.join(_frames(u), core, _frames(v))


def _frames(frame: Tensor) -> Tensor:
    gram = frame.mT @ frame
    error = (gram - linalg.eye_like(gram)).abs().amax(dim=(-2, -1))
    return torch.where((error > _ORTHONORMAL)[..., None, None], orthonormalize(frame), frame)


_ORTHONORMAL = 1e-13
