"""A Fréchet problem being solved: F(x) = Σ wᵢ ρ(d(x, yᵢ)), for a stack of modules, on any manifold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Literal, final

import numpy as np
import torch
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.frechet.batched import Geodesic, Nested, average
from riemerge.frechet.distance import as_distance
from riemerge.frechet.formulation import Evaluation, Formulation, Memory, Point
from riemerge.frechet.guest import Stock
from riemerge.frechet.loss import Loss, Objective, as_loss, weighted_median
from riemerge.frechet.own_distance import Own
from riemerge.frechet.problem import Problem
from riemerge.frechet.solution import COUNTED, Solution
from riemerge.manifolds import GeodesicManifold, QuotientManifold, TorchManifold
from riemerge.manifolds.base import identity

if TYPE_CHECKING:
    from riemerge.frechet.low_rank.joint import Joint

# Step of the central differences behind Hessian-vector products, as a length on the manifold: truncation h²
# and round-off eps/h balance between 1e-5 and 1e-4.
_HESSIAN_STEP = 3e-5
# Seeded steps off an average without a cost: one in forty fails, by itself (of shared subspaces and cores of
# condition 10).
_STEPS_OFF = 6
# Least unit of a loss that is relative, as a share of the largest distance to the median.
_LEAST_UNIT = 1e-12


@final
class Search:
    """A Fréchet problem being solved: its formulation, what is known of the last two points, and the batch.

    Law: F is a function of the points' orbits alone; its gradient is -Σ wᵢ ρ'(dᵢ)/dᵢ log_x(yᵢ) with aligned
    yᵢ.

    Args:
        problem: What is asked for.
        initial_point: Point to start at instead of the deterministic average.
        median: The geometric median of the same points, for a loss that is relative to the distances to it.

    Raises:
        RecipeError: No points, what is no point of the manifold, weights that are not a weighting, a
            manifold without the verbs of a mean or whose verbs contradict each other.
    """

    def __init__(
        self, problem: Problem, initial_point: Point | None = None, median: Solution | None = None
    ) -> None:
        manifold, points = problem.manifold, problem.points
        if problem.form not in ("joint", "nested"):
            raise RecipeError(f"form is {problem.form!r}; known are 'joint' and 'nested'")
        if problem.gradient not in ("analytic", "autograd"):
            raise RecipeError(f"gradient is {problem.gradient!r}; known are 'analytic' and 'autograd'")
        batched = isinstance(manifold, TorchManifold)
        self.distance = as_distance(problem.distance)
        if self.distance is None:
            if batched and not isinstance(manifold, GeodesicManifold):
                raise RecipeError(f"{manifold} has no logarithm, so there is no Fréchet mean on it")
            if not batched and problem.gradient == "autograd":
                raise RecipeError(
                    f"{manifold} computes distances in numpy, which autograd cannot follow: pass a distance "
                    "of your own, written with autograd.numpy, or use gradient='analytic'"
                )
        self.manifold = manifold
        self.initial_point = initial_point
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self._moving = False
        self.form: Formulation
        self._refined = False
        self._memory: Memory[Evaluation] = Memory()
        self._lift: Callable[[Point], Point] = identity
        k = manifold.k if isinstance(manifold, TorchManifold) else 1
        self.weights = normalize_weights(problem.weights, len(points), k)
        counts = torch.nonzero((self.weights > 0).any(dim=1)).squeeze(-1)
        self.support: tuple[int, ...] = tuple(counts.tolist())
        """Indices of the points whose weight is positive in some module."""
        objective = self._make_objective(as_loss(problem.loss), median)
        if isinstance(manifold, TorchManifold):
            self._make_batched(problem, manifold, objective)
        else:
            data = [points[i] for i in self.support]
            self.form = Stock(manifold, data, objective, self.distance, initial_point, self.support)
        if not self.form.objective.loss.smooth:
            self.form.objective.resolution.copy_(torch.nan_to_num(self.form.resolution()))
        self._full: Formulation = self.form

    def _make_objective(self, loss: Loss, median: Solution | None) -> Objective:
        """Return F of the support, in units that the distances to the median set, where it is relative."""
        weights = self.weights[list(self.support)]
        one, zero = torch.ones_like(weights[0]), torch.zeros_like(weights[0])
        if not loss.relative:
            return Objective(loss, weights, one, zero)
        if median is None:
            raise RecipeError(
                f"{loss} takes its scale from the geometric median, which must be found first, as "
                "frechet_mean does: give it, or a scale of your own (relative=False)"
            )
        self.counts.update(median.counts)
        self.initial_point = median.point
        distances = torch.as_tensor(median.distances[list(self.support)]).nan_to_num()
        # A unit of zero, where half of the weight is at the median, is a limit, in which F goes to zero too.
        least = _LEAST_UNIT * distances.amax(dim=0)
        unit = torch.maximum(weighted_median(distances, weights), least)
        return Objective(loss, weights, torch.where(unit > 0, unit, 1.0), zero)

    def _make_batched(self, problem: Problem, manifold: TorchManifold, objective: Objective) -> None:
        """Make the formulation of data on one of our manifolds, in their joint span where that is smaller."""
        given = [problem.points[i] for i in self.support]
        count, dtype = len(given), given[0].dtype
        if self.initial_point is not None:
            given.append(self.initial_point)
        data = _stack_points(manifold, given, self.support)
        objective = objective.map(lambda x: x.to(data.device))
        distance, autograd = self.distance, problem.gradient == "autograd"
        self._lift = lambda point: point.to(dtype)
        joint = None
        if isinstance(manifold, GeodesicManifold):
            if problem.reduce and (distance is None or distance.invariant):
                manifold, data, lift = manifold.reduce(data)
                self._lift = lambda point: lift(point).to(dtype)
            if distance is not None or (problem.form == "joint" and objective.loss.convex):
                joint = _find_joint_form(manifold)
        if self.initial_point is not None:
            self.initial_point = data[-1]
        if joint is not None and (distance is None or distance.aligned):
            self.form = joint(manifold, data[:count], objective, autograd, distance)
        elif distance is not None:
            self.form = Own(manifold, data[:count], objective, distance)
        else:
            self.form = Nested(manifold, data[:count], objective, autograd)

    @property
    def passes(self) -> int:
        """Number of passes so far."""
        return self.counts["passes"]

    def _count(self, form: Formulation, *, passes: int = 1, **others: int) -> None:
        """Count a pass, and what it takes: logarithms and alignments of each datum, a gradient a module."""
        pairs = form.k * len(self.support)
        self.counts.update(
            passes=passes,
            logarithms=pairs * form.by_logarithms,
            alignments=pairs * form.aligns,
            gradients=form.k,
            **others,
        )

    @property
    def k(self) -> int:
        """Number of modules in the batch: all, until some leave it."""
        return self.form.k

    def start(self) -> Point:
        """Return the point of the search manifold to begin at; the same for the same data.

        A cheap average of the data; where it has no finite cost (the average of subspaces that are shared
        exactly may be at the cut locus of all of them) the best of that average moved off by a seeded step,
        the longer the more of them fail, and of the data themselves.
        """
        form = self.form
        point = form.start(self.initial_point)
        if self.initial_point is None and len(self.support) > 1:
            if isinstance(form, Geodesic):
                if not form.objective.loss.smooth:
                    point = self._look_at_data(form, point)
                point = self._leave_cut_locus(form, point)
            elif isinstance(form, Stock | Own):
                point = self._start_from_candidates(form)
        if isinstance(form, Stock):
            form.refuse_gradient(point)
        self._moving = True
        return point

    def _look_at_data(self, form: Geodesic, point: Tensor) -> Tensor:
        """Return the start, but in the modules of which some data are minima of F, which has a kink there,
        the average of those.

        A solve would come near such a datum without an end. Source: Vardi, Zhang 2000, eq. 2.6.
        """
        minima = torch.zeros_like(form.objective.weights)
        for datum, minimal in zip(form.points, minima, strict=True):
            at_datum = self.evaluate(form.embed(datum))
            heading = form.solution(at_datum.gradient).abs().amax(dim=(-2, -1))
            minimal.copy_(torch.isfinite(at_datum.cost) & (heading == 0))
        modules = torch.nonzero(minima.any(dim=0)).squeeze(-1)
        if modules.numel() == 0:
            return point
        few = form.narrow(modules)
        weights = few.objective.weights * minima[:, modules]
        mean = average(few.space, few.points, weights / weights.sum(dim=0))
        return point.index_copy(0, modules, few.embed(mean))

    def _leave_cut_locus(self, form: Geodesic, point: Tensor) -> Tensor:
        """Return the start, moved in the modules that have no finite cost there."""
        begun = point, self.evaluate(point)
        left = stuck = _find_without_cost(begun[1])
        for attempt in range(_STEPS_OFF):
            begun = self._improve(form, begun, left, "evaluate", attempt)
            left = _find_without_cost(begun[1])
        # Data at each other's cut locus are told from good starts by a quick pass; a whole one is for modules
        # that nothing else helps.
        begun = self._improve(form, begun, stuck, "evaluate_quickly")
        begun = self._improve(form, begun, _find_without_cost(begun[1]), "evaluate")
        self.remember(*begun)
        return begun[0]

    def _start_from_candidates(self, form: Stock | Own) -> Point:
        """Return, module by module, the candidate of least cost, moved off where none has a finite one."""
        point = self._choose_cheapest(form, form.candidates)
        for attempt in range(_STEPS_OFF):
            if _find_without_cost(self.evaluate(point)).numel() == 0:
                break
            point = self._choose_cheapest(form, [point, form.move_off(form.candidates[0], attempt)])
        return point

    def _choose_cheapest(self, form: Formulation, candidates: Sequence[Point]) -> Point:
        """Return, module by module, the first of the candidates of least cost."""
        point, evaluation = candidates[0], self.evaluate(candidates[0])
        for other in candidates[1:]:
            value = self.evaluate(other)
            better = value.cost < evaluation.cost
            if better.all():
                point, evaluation = other, value
            elif better.any():
                point = form.choose(better, other, point)
                evaluation = self.evaluate(point)
        self.remember(point, evaluation)
        return point

    def _improve(
        self,
        form: Geodesic,
        begun: tuple[Tensor, Evaluation],
        modules: Tensor,
        verb: Literal["evaluate", "evaluate_quickly"],
        attempt: int | None = None,
    ) -> tuple[Tensor, Evaluation]:
        """Return a start and what is known of it, in some modules moved off it in one more attempt, or else
        put on one of the data, where that costs less.
        """
        if modules.numel() == 0:
            return begun
        point, evaluation = begun
        means = form.points[:, modules]
        if attempt is not None:
            few = form.narrow(modules)
            means = few.move_off(few.solution(point[modules]), attempt).unsqueeze(0)
        # All candidates of all modules side by side, in one pass.
        few = form.narrow(modules.repeat(len(means)))
        others = few.embed(means.flatten(0, 1))
        value: Evaluation = getattr(few, verb)(others)
        self._count(few, exponentials=few.k * (attempt is not None))
        least, candidate = value.cost.unflatten(0, (len(means), -1)).min(dim=0)
        better = torch.nonzero(least < evaluation.cost[modules]).squeeze(-1)
        best = candidate[better] * modules.numel() + better
        point = point.index_copy(0, modules[better], others[best])
        return point, evaluation.replace(modules[better], value.narrow(best))

    def solution(self, point: Point) -> Point:
        """Return the mean that a point of the search manifold stands for, on the manifold that was asked
        for.
        """
        return self._lift(self._full.solution(point))

    def remembers(self, point: Point) -> bool:
        """Tell whether evaluating a point is free."""
        return point in self._memory

    def evaluate(self, point: Point) -> Evaluation:
        """Compute cost and gradient, once per point: the last two passes are remembered."""
        known = self._memory.recall(point)
        if known is not None:
            return known
        self._count(self.form, exponentials=self.form.k * self._moving)
        return self._memory.keep(point, self.form.evaluate(point))

    def evaluate_again(self, point: Tensor, modules: Tensor) -> Evaluation:
        """Compute a pass that is remembered anew in some of its modules, whose precision has changed.

        That happens to a module once: all of these are one pass.
        """
        assert isinstance(self.form, Geodesic)
        before = self.evaluate(point)
        few = self.form.narrow(modules)
        self._count(few, passes=not self._refined)
        self._refined = True
        again = few.evaluate(point[modules])
        return self._memory.keep(point, before.replace(modules, again))

    def remember(self, point: Point, evaluation: Evaluation) -> None:
        """Keep what is known of a point, at the cost of no pass."""
        self._memory.keep(point, evaluation)

    @property
    def counted(self) -> Tensor:
        """Whether each point of the support counts in each module, boolean (T, K), on the host."""
        return self.weights[list(self.support)] > 0

    @property
    def divisible(self) -> bool:
        """Whether modules can leave the batch."""
        return isinstance(self.form, Geodesic) and self.form.k > 1

    def narrow(self, modules: Tensor) -> None:
        """Go on with some of the modules; `solution` and `certify` stay those of all."""
        assert isinstance(self.form, Geodesic)
        self.form = self.form.narrow(modules)
        self._memory = Memory()

    def certify(self, point: Point) -> tuple[Evaluation, Tensor]:
        """Compute cost and gradient of all modules anew, with logarithms that are followed to their ends.

        Returns:
            The evaluation, and the distances (T, K) between exp(log) and the data.
        """
        return self._full.certify(point)

    def hessian(self, point: Point, vector: Point) -> Point:
        """Return the Hessian-vector product by central differences along geodesics: two passes.

        Symmetric up to the differences' error at critical points; each module has its own step.
        """
        lengths = self.form.inner_products(point, vector, vector).clamp_min(0).sqrt()
        step = torch.where(lengths > 0, _HESSIAN_STEP / lengths.clamp_min(1e-300), 0.0)
        ends = self.form.move(point, step, vector), self.form.move(point, -step, vector)
        ahead, behind = ((x, self.form.evaluate(x, tight=True).gradient) for x in ends)
        self._count(self.form, exponentials=self.form.k)
        self._count(self.form, exponentials=self.form.k, hessian_products=self.form.k)
        field = self.evaluate(point).gradient
        return self.form.differentiate(point, step, vector, field, ahead, behind)


def _find_without_cost(evaluation: Evaluation) -> Tensor:
    """Return the modules of infinite cost."""
    return torch.nonzero(torch.isinf(evaluation.cost)).squeeze(-1)


def normalize_weights(weights: Sequence[float] | np.ndarray | Tensor | None, count: int, k: int) -> Tensor:
    """Return weights (T, K), float64, that sum to one in every module.

    Raises:
        RecipeError: Wrong number, not finite, negative, or nothing positive.
    """
    if count == 0:
        raise RecipeError("there are no points to take a mean of")
    if weights is None:
        weights = [1.0] * count
    tensor = torch.as_tensor(weights, dtype=torch.float64).detach().cpu()
    if tensor.shape not in ((count,), (count, k)):
        raise RecipeError(
            f"weights are of shape {tuple(tensor.shape)}; expected one for each of {count} points, or "
            f"({count}, {k})"
        )
    if not torch.isfinite(tensor).all():
        raise RecipeError(f"weights are {tensor.tolist()}; all must be finite")
    if (tensor < 0).any():
        raise RecipeError(
            f"weights are {tensor.tolist()}; a Fréchet mean takes no negative weights. Use a method "
            "that sums, like task_arithmetic"
        )
    tensor = tensor.reshape(count, -1).expand(count, k)
    tensor = tensor / tensor.amax(dim=0).clamp_min(torch.finfo(torch.float64).tiny)  # their sum may overflow
    total = tensor.sum(dim=0)
    if not (total > 0).all():
        raise RecipeError(f"weights are {tensor.tolist()}; at least one must be positive")
    return tensor / total


def _stack_points(manifold: TorchManifold, points: Sequence[Tensor], indices: Sequence[int]) -> Tensor:
    """Return points as one float64 tensor (T, K, rows, columns); refuses what is no point of the
    manifold.
    """
    expected = (manifold.k, *manifold.point_shape)
    names = [f"point {i}" for i in indices] + ["initial_point"] * (len(points) - len(indices))
    problems = [
        f"{manifold}: {name} is of shape {tuple(x.shape)}; expected {expected}"
        for name, x in zip(names, points, strict=True)
        if tuple(x.shape) != expected
    ]
    if not problems:
        problems = [
            f"{manifold}: {name} is no point of the manifold in module {module}: it is not finite, its "
            "frames are not orthonormal or its core is not positive definite"
            for name, x in zip(names, points, strict=True)
            for module in torch.nonzero(~manifold.feasible(x)).squeeze(-1).tolist()
        ]
    RecipeError.refuse(problems)
    return torch.stack([x.double() for x in points])


# The formulations of this package by name; a symmetry of one's own may name a class of its own.
_FORMS = {"joint": "riemerge.frechet.low_rank.joint:Joint"}


def _find_joint_form(manifold: GeodesicManifold) -> type[Joint] | None:
    """Return the formulation in which alignments are variables, where a symmetry has one."""
    if not isinstance(manifold, QuotientManifold):
        return None
    name = manifold.action.formulation(manifold.total)
    if name is None:
        return None
    module, _, attribute = _FORMS.get(name, name).partition(":")
    form: type[Joint] = getattr(import_module(module), attribute)
    return form
