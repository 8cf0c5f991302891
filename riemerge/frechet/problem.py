"""The Fréchet problem: F(x) = 1/2 Σ wᵢ d(x, yᵢ)², for a stack of modules at once, on any manifold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import numpy as np
import torch
from pymanopt.manifolds.manifold import Manifold
from torch import Tensor

from riemerge.errors import RecipeError
from riemerge.frechet.batched import Batched, Geodesic, Nested
from riemerge.frechet.formulation import Evaluation, Formulation, Point
from riemerge.frechet.guest import Stock
from riemerge.frechet.low_rank.joint import Joint
from riemerge.frechet.own_distance import Own
from riemerge.manifolds import GeodesicManifold, Orthogonal, QuotientManifold, TorchManifold
from riemerge.manifolds.base import Reduction, same, scaled, unreduced

# Step of the central differences behind Hessian-vector products, as a length on the manifold: truncation h²
# and round-off eps/h balance between 1e-5 and 1e-4.
_HESSIAN_STEP = 3e-5
# Seeded steps off an average without a cost: one in forty fails, by itself (of shared subspaces and cores of
# condition 10).
_STEPS_OFF = 6


@final
class FrechetProblem:
    """The weighted Fréchet mean as a minimisation problem, one independent problem per module.

    Law: F is a function of the points' orbits alone; its gradient is -Σ wᵢ log_x(yᵢ) with aligned yᵢ.

    Args:
        manifold: One of ours (points are tensors (K, ...)), or any of Pymanopt's with `log` and `dist`, or
            any manifold at all with a `squared_dist`.
        points: T points.
        weights: T numbers, or (T, K) for weights per module; equal by default. Finite, not negative, not all
            zero; divided by their sum. A point whose weight is zero everywhere is left out.
        form: `joint` (alignments are variables; the default on FixedRank by Orthogonal) or `nested` (aligned
            inside the cost). On a manifold without a symmetry there is only one form and this is ignored.
        gradient: `analytic`, or `autograd`: the same through torch (or, on numpy manifolds, through
            Pymanopt's autograd backend, for which `squared_dist` is needed).
        reduce: Solve in the joint span of the data, exactly, where the manifold offers it.
        squared_dist: A user's own squared distance of two points (differentiable; summed over nothing: (K,)
            for ours, a scalar on numpy), in place of the geodesic one. Needs `gradient="autograd"`. It is
            minimised on the manifold that was given: never reduced, without logarithms, and on a quotient it
            must be a function of orbits.
        initial_point: Where to start instead of the deterministic average.

    Raises:
        RecipeError: No points, what is no point of the manifold, weights that are not a weighting, a
            manifold without the verbs of a mean or whose verbs contradict each other.
    """

    def __init__(
        self,
        manifold: Manifold,
        points: Sequence[Point],
        weights: Sequence[float] | np.ndarray | Tensor | None = None,
        *,
        form: Literal["joint", "nested"] = "joint",
        gradient: Literal["analytic", "autograd"] = "analytic",
        reduce: bool = True,
        squared_dist: Callable[[Any, Any], Any] | None = None,
        initial_point: Point | None = None,
    ) -> None:
        if form not in ("joint", "nested"):
            raise RecipeError(f"form is {form!r}; known are 'joint' and 'nested'")
        if gradient not in ("analytic", "autograd"):
            raise RecipeError(f"gradient is {gradient!r}; known are 'analytic' and 'autograd'")
        if squared_dist is not None and gradient != "autograd":
            raise RecipeError(
                "a squared_dist of your own is differentiated: pass gradient='autograd' with it"
            )
        batched = isinstance(manifold, TorchManifold)
        if squared_dist is None:
            if batched and not isinstance(manifold, GeodesicManifold):
                raise RecipeError(f"{manifold} has no logarithm, so there is no Fréchet mean on it")
            if not batched and gradient == "autograd":
                raise RecipeError(
                    f"{manifold} computes distances in numpy, which autograd cannot follow: pass "
                    "squared_dist, written with autograd.numpy, or use gradient='analytic'"
                )
        self.manifold = manifold
        self.weights = normalised_weights(weights, len(points), manifold.k if batched else 1)
        kept = torch.nonzero((self.weights > 0).any(dim=1)).squeeze(-1).tolist()
        self.kept: tuple[int, ...] = tuple(kept)
        points = [points[i] for i in kept]
        self.initial_point = initial_point
        self.passes = 0
        self._anew = False
        self._memo: list[tuple[Point, Evaluation]] = []
        self._lift: Callable[[Point], Point] = same
        self.form: Formulation
        weight = self.weights[kept]
        if not isinstance(manifold, TorchManifold):
            self.form = Stock(manifold, points, weight, squared_dist, initial_point, kept)
        else:
            data = _checked(manifold, points if initial_point is None else [*points, initial_point], kept)
            dtype, weight = points[0].dtype, weight.to(data.device)
            lift: Callable[[Tensor], Tensor] = same
            if squared_dist is not None or not isinstance(manifold, GeodesicManifold):
                moved = data
                self.form = Own(manifold, data[: len(points)], weight, squared_dist)
            else:
                small = manifold.reduce(data) if reduce else unreduced(manifold, data)
                moved, lift = small.points, small.lift
                kind = _formulation(small, form)
                self.form = kind(small.manifold, moved[: len(points)], weight, gradient == "autograd")
            self._lift = lambda point: lift(point).to(dtype)
            self.initial_point = None if initial_point is None else moved[-1]
        self._whole: Formulation = self.form

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
        if isinstance(form, Stock | Own):
            return self._least(form)
        point = form.start(self.initial_point)
        if self.initial_point is not None or not isinstance(form, Geodesic) or len(self.kept) == 1:
            return point
        begun = point, self.evaluate(point)
        stuck = _without_cost(begun[1])
        left = stuck
        for attempt in range(_STEPS_OFF):
            begun = self._improved(form, begun, left, "evaluate", attempt)
            left = _without_cost(begun[1])
        # Data at each other's cut locus are told from good starts by a glance; a second look is for modules
        # that nothing else helps.
        begun = self._improved(form, begun, stuck, "glance")
        begun = self._improved(form, begun, _without_cost(begun[1]), "evaluate")
        self.memorise(*begun)
        return begun[0]

    def _least(self, form: Stock | Own) -> Point:
        """Return, module by module, the candidate of least cost, moved off where none has a finite one."""
        point = form.start(self.initial_point)
        if self.initial_point is None and len(self.kept) > 1:
            point = self._cheapest(form, form.candidates)
            for attempt in range(_STEPS_OFF):
                if _without_cost(self.evaluate(point)).numel() == 0:
                    break
                point = self._cheapest(form, [point, form.moved_off(form.candidates[0], attempt)])
        if isinstance(form, Stock):
            form.refuse_gradient(point)
        return point

    def _cheapest(self, form: Formulation, candidates: Sequence[Point]) -> Point:
        """Return, module by module, the first of the candidates of least cost."""
        point, evaluation = candidates[0], self.evaluate(candidates[0])
        for other in candidates[1:]:
            found = self.evaluate(other)
            better = found.cost < evaluation.cost
            if better.all():
                point, evaluation = other, found
            elif better.any():
                point = form.choose(better, other, point)
                evaluation = self.evaluate(point)
        self.memorise(point, evaluation)
        return point

    def _improved(
        self,
        form: Geodesic,
        begun: tuple[Tensor, Evaluation],
        modules: Tensor,
        look: Literal["evaluate", "glance"],
        attempt: int | None = None,
    ) -> tuple[Tensor, Evaluation]:
        """Return a start and what is known of it, in some modules moved off it in one more attempt, or else
        put on one of the data, where that costs less.
        """
        if modules.numel() == 0:
            return begun
        point, evaluation = begun
        few = form.narrowed(modules)
        means = few.points if attempt is None else [few.moved_off(few.solution(point[modules]), attempt)]
        for other in map(few.place, means):
            found: Evaluation = getattr(few, look)(other)
            self.passes += 1
            better = torch.nonzero(found.cost < evaluation.cost[modules]).squeeze(-1)
            point = point.index_copy(0, modules[better], other[better])
            evaluation = evaluation.replaced(modules[better], found.narrowed(better))
        return point, evaluation

    def solution(self, point: Point) -> Point:
        """Return the mean that a point of the search manifold stands for, on the manifold that was asked
        for.
        """
        return self._lift(self._whole.solution(point))

    def remembers(self, point: Point) -> bool:
        """Tell whether evaluating a point is free."""
        return any(known is point for known, _ in self._memo)

    def evaluate(self, point: Point) -> Evaluation:
        """Compute cost and gradient, once per point: the last two passes are remembered."""
        for index, (known, evaluation) in enumerate(self._memo):
            if known is point:
                self._memo.insert(0, self._memo.pop(index))
                return evaluation
        self.passes += 1
        evaluation = self.form.evaluate(point)
        self.memorise(point, evaluation)
        return evaluation

    def evaluate_again(self, point: Tensor, modules: Tensor) -> Evaluation:
        """Compute a pass that is remembered anew in some of its modules, whose precision has changed.

        That happens to a module once: all of these are one pass.
        """
        assert isinstance(self.form, Geodesic)
        before = self.evaluate(point)
        self.passes += not self._anew
        self._anew = True
        evaluation = before.replaced(modules, self.form.narrowed(modules).evaluate(point[modules]))
        self._memo = [(known, evaluation if known is point else old) for known, old in self._memo]
        return evaluation

    def memorise(self, point: Point, evaluation: Evaluation) -> None:
        """Keep what is known of a point, at the cost of no pass."""
        self._memo = [(point, evaluation), *self._memo[:1]]

    @property
    def counted(self) -> Tensor:
        """Which of the data that were kept count in which module, boolean (T, K)."""
        return (self.weights[list(self.kept)] > 0).to(
            self._whole.points.device if isinstance(self._whole, Batched) else "cpu"
        )

    @property
    def divisible(self) -> bool:
        """Whether modules can leave the batch."""
        return isinstance(self.form, Geodesic) and self.form.k > 1

    def narrow(self, modules: Tensor) -> None:
        """Go on with some of the modules; `solution` and `certify` stay those of all."""
        assert isinstance(self.form, Geodesic)
        self.form = self.form.narrowed(modules)
        self._memo = []

    def certify(self, point: Point) -> tuple[Evaluation, Tensor]:
        """Compute cost and gradient of all modules anew, with logarithms that are followed to their ends.

        Returns:
            The evaluation, and the distances (T, K) between exp(log) and the data.
        """
        return self._whole.certify(point)

    def hessian(self, point: Point, vector: Point) -> Point:
        """Return the Hessian-vector product by central differences along geodesics: two passes.

        Symmetric up to the differences' error at critical points; each module has its own step.
        """
        lengths = self.form.inner_products(point, vector, vector).clamp_min(0).sqrt()
        step = torch.where(lengths > 0, _HESSIAN_STEP / lengths.clamp_min(1e-300), torch.zeros_like(lengths))
        places = self.form.move(point, step, vector), self.form.move(point, -step, vector)
        ahead, behind = ((x, self.form.evaluate(x, tight=True).gradient) for x in places)
        self.passes += 2
        field = self.evaluate(point).gradient
        if isinstance(self.form, Batched):
            unit = scaled(step, vector)
            derived = self.form.differentiate(point, unit, field, ahead, behind)
            inverse = torch.where(step > 0, 1 / step.clamp_min(1e-300), torch.zeros_like(step))
            return self.form.manifold.projection(point, scaled(inverse, derived))
        size = float(step[0])
        return self.form.differentiate(point, vector, field, ahead, behind) / size if size > 0 else 0 * vector


def _without_cost(evaluation: Evaluation) -> Tensor:
    """Return the modules of infinite cost."""
    return torch.nonzero(torch.isinf(evaluation.cost)).squeeze(-1)


def normalised_weights(weights: Sequence[float] | np.ndarray | Tensor | None, count: int, k: int) -> Tensor:
    """Return weights (T, K), float64, that sum to one in every module.

    Raises:
        RecipeError: Wrong number, not finite, negative, or nothing positive.
    """
    if count == 0:
        raise RecipeError("there are no points to take a mean of")
    given = (
        torch.ones(count, dtype=torch.float64, device="cpu")
        if weights is None
        else torch.as_tensor(weights, dtype=torch.float64)
    )
    tensor = given.detach().cpu()
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


def _checked(manifold: TorchManifold, points: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """Return points as one float64 tensor (T, K, rows, columns); refuses what is no point of the
    manifold.
    """
    expected = (manifold.k, *manifold.point_shape)
    names = [f"point {i}" for i in places] + ["initial_point"] * (len(points) - len(places))
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
    if problems:
        raise RecipeError(problems)
    return torch.stack([x.double() for x in points])


def _formulation(small: Reduction, form: str) -> type[Joint] | type[Nested]:
    manifold = small.manifold
    symmetric = isinstance(manifold, QuotientManifold) and isinstance(manifold.action, Orthogonal)
    return Joint if form == "joint" and symmetric else Nested
