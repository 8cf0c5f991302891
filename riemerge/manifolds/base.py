"""Pymanopt's manifold protocol on batches of torch tensors."""

from __future__ import annotations

import copy
import threading
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Self, TypedDict, Unpack, final

import numpy as np
import torch
from numpy.typing import NDArray
from pymanopt.manifolds.manifold import Manifold
from torch import Tensor

from riemerge.errors import NumericalError, RecipeError
from riemerge.linalg import eye_like, scale_modules

# Unknowns of a derived verb's linear solve: of 2048 the matrix takes 32 MiB a module.
_MAX_UNKNOWNS = 2048
# torch keeps the level of forward differentiation in one place for all threads.
_FORWARD = threading.Lock()


class Options(TypedDict, total=False):
    """Options that every manifold of this package takes, beside its sizes.

    Attributes:
        k: Number of modules K [default: 1].
        dtype: Dtype of the points that the manifold draws [default: float64].
        device: Device of the points that the manifold draws [default: cpu].
        seed: Seed of the generator behind `random_point` and `random_tangent_vector` [default: 0]. Draws
            happen on the CPU, so every device gets the same numbers.
    """

    k: int
    dtype: torch.dtype
    device: torch.device | str
    seed: int


def change_options(options: Options, **changes: Unpack[Options]) -> Options:
    """Return options with some of them changed."""
    return {**options, **changes}


@final
class MissingVerbError(RecipeError, NotImplementedError):
    """A manifold does not state a verb that was needed."""


class TorchManifold(Manifold):  # type: ignore[misc]
    """The K-fold power of a manifold, whose points are single tensors (K, rows, columns).

    Abstract. A subclass states the geometry in batched verbs (`inner_products`, `retraction`, ...) for
    tensors of any leading axes. Only `inner_products` must be stated. A verb whose docstring says "Derived"
    is derived from the others; state it where a closed form is known. The scalar verbs of Pymanopt's
    protocol (`inner_product`, `norm`) are derived here, once, by summing over modules. They return
    `np.float64`: a 0-d tensor breaks Pymanopt's optimizers on a GPU, and a Python float its line searches.

    Args:
        name: Name of the manifold in messages [default: the name of the class].
        dimension: Dimension of one module [default: rows · columns, that of an open set of matrices].
        point_shape: Rows and columns of one module's point; a class attribute will do.
        options: See `Options`.
    """

    def __init__(
        self,
        name: str = "",
        dimension: int | None = None,
        point_shape: tuple[int, int] | None = None,
        **options: Unpack[Options],
    ) -> None:
        defaults: Options = {"k": 1, "dtype": torch.float64, "device": "cpu", "seed": 0}
        self.options = change_options(defaults, **options)
        self.k, self.dtype, self.seed = self.options["k"], self.options["dtype"], self.options["seed"]
        self.device = torch.device(self.options["device"])
        self._stated = name, dimension, point_shape
        name = name or type(self).__name__
        if self.k < 1:
            raise ValueError(f"{name}: k is {self.k}; at least one module is needed")
        if not self.dtype.is_floating_point:
            raise ValueError(f"{name}: dtype {self.dtype} is not a floating point type")
        if dimension is None:
            dimension = self.point_shape[0] * self.point_shape[1]
        power = f"^{self.k}" * (self.k > 1)
        super().__init__(name + power, self.k * dimension)
        self._generator = torch.Generator().manual_seed(self.seed)

    @property
    def point_shape(self) -> tuple[int, int]:
        """Rows and columns of one module's point. Derived: what the constructor was given."""
        shape = self._stated[2]
        if shape is None:
            raise MissingVerbError(f"{type(self).__name__} has no point_shape: state it as a class attribute")
        return shape

    @abstractmethod
    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return the metric of two tangent vectors, one float64 number per module (...).

        Torch differentiates it, to derive other verbs: it is smooth, and bilinear in any entries a and b.
        """

    def projection(self, point: Tensor, vector: Tensor) -> Tensor:
        """Project an ambient vector onto the tangent space.

        Law: linear, idempotent, the identity on tangent vectors. Derived: the identity, as on open sets.
        """
        return vector

    def euclidean_to_riemannian_gradient(self, point: Tensor, euclidean_gradient: Tensor) -> Tensor:
        """Return the Riesz vector: the tangent g with ⟨g, v⟩ = tr(Eᵀv) for every tangent v.

        Derived: by a linear solve in the entries.

        Args:
            point: The point x.
            euclidean_gradient: E, the gradient of the entries at x.

        Raises:
            MissingVerbError: Points of more than 2048 entries, for which it must be stated.

        Cost: derived, (rows · columns)³ a module.
        """
        wide = point.double()
        units = self.projection(wide, unit_matrices(wide))
        lowered = self.riemannian_to_euclidean_gradient(wide, units)
        return solve_form(units, lowered, euclidean_gradient.double()).to(point.dtype)

    def riemannian_to_euclidean_gradient(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Return an ambient E with tr(Eᵀv) = ⟨tangent_vector, v⟩ for every tangent v.

        Derived: by torch, from the metric, which is linear in v.
        """
        return torch.func.grad(lambda v: self.inner_products(point, tangent_vector, v).sum())(
            torch.zeros_like(torch.broadcast_tensors(point, tangent_vector)[1])
        )

    @abstractmethod
    def retraction(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Move along a tangent vector. Law: agrees with the geodesic to first order."""

    def transport(self, point_a: Tensor, point_b: Tensor, tangent_vector_a: Tensor) -> Tensor:
        """Carry a tangent vector from a to b; a closed form says whether isometrically and whether parallel.

        Derived: by the projection at b, neither.
        """
        return self.projection(point_b, tangent_vector_a)

    def covariant_derivative(
        self, point: Tensor, direction: Tensor, field: Tensor, derivative: Tensor
    ) -> Tensor:
        """Differentiate a tangent field by the metric's own connection.

        Derived: by Koszul's formula, with the derivatives of the metric by torch. For tangent w, 2 ⟨∇ᵤf, w⟩ =
        2 ⟨Df[u], w⟩ + Dᵤ⟨f, w⟩ + D_f⟨u, w⟩ - D_w⟨u, f⟩, where D holds the entries of the vectors fixed.

        Args:
            point: The point at which the field is differentiated.
            direction: Tangent vector u to differentiate along.
            field: Value f of the field at the point.
            derivative: Entrywise derivative Df[u] of the field along the direction.

        Source: Boumal 2023, thm. 5.6 and sec. 5.3.
        """
        with torch.enable_grad():
            x, u, f, d = (
                y.detach().double() for y in torch.broadcast_tensors(point, direction, field, derivative)
            )
            x, w = x.clone().requires_grad_(), torch.zeros_like(x).requires_grad_()
            turning = u * _slope(self.inner_products(x, f, w), x) + f * _slope(
                self.inner_products(x, u, w), x
            )
            lowered = _slope(self.inner_products(x, d, w) + turning.sum(dim=(-2, -1)) / 2, w)
            lowered = lowered - _slope(self.inner_products(x, u, f), x) / 2
        return self.euclidean_to_riemannian_gradient(point, lowered.detach().to(point.dtype))

    def feasible(self, point: Tensor) -> Tensor:
        """Tell per module whether a point is finite and inside the open conditions of the set, boolean
        (...). Derived: whether it is finite.
        """
        return torch.isfinite(point).all(dim=-1).all(dim=-1)

    def random_point(self) -> Tensor:
        """Draw a point from the manifold's own seeded generator.

        Derived: standard normal entries. State it where they are no point.
        """
        return self.draw(self.k, *self.point_shape)

    @final
    def inner_product(self, point: Tensor, tangent_vector_a: Tensor, tangent_vector_b: Tensor) -> np.float64:
        """Return the metric of two tangent vectors, summed over modules."""
        return host(self.inner_products(point, tangent_vector_a, tangent_vector_b).sum())

    @final
    def norm(self, point: Tensor, tangent_vector: Tensor) -> np.float64:
        """Return the length of a tangent vector of the whole stack."""
        return host(self.inner_products(point, tangent_vector, tangent_vector).sum().clamp_min(0).sqrt())

    @final
    def norms(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Return the length of a tangent vector per module, float64 (...)."""
        return self.inner_products(point, tangent_vector, tangent_vector).clamp_min(0).sqrt()

    @final
    def zero_vector(self, point: Tensor) -> Tensor:
        """Return the zero tangent vector."""
        return torch.zeros_like(point)

    @final
    def to_tangent_space(self, point: Tensor, vector: Tensor) -> Tensor:
        """Remove what round-off added outside the tangent space."""
        return self.projection(point, vector)

    @final
    def random_tangent_vector(self, point: Tensor) -> Tensor:
        """Draw a tangent vector of unit length (of the stack) from the manifold's own seeded generator."""
        vector = self.projection(point, self.random_ambient(point))
        return vector / self.norm(point, vector)

    @final
    def random_ambient(self, like: Tensor) -> Tensor:
        """Draw entries for a tensor of this shape from the manifold's own seeded generator: no tangent
        vector.
        """
        return self.draw(*like.shape).to(like)

    @final
    @property
    def typical_dist(self) -> np.float64:
        """The scale of the stack, from which trust-region radii are taken."""
        return np.float64(np.sqrt(self.dim))

    @final
    def euclidean_to_riemannian_hessian(
        self, point: Tensor, euclidean_gradient: Tensor, euclidean_hessian: Tensor, tangent_vector: Tensor
    ) -> Tensor:
        """Turn an entrywise Hessian-vector product into the Riemannian one.

        Law: the Hessian is the covariant derivative of the Riemannian gradient R(x, E), which is linear in
        E; the derivative of R in x is taken by torch.
        """
        with _FORWARD:
            gradient, moved = torch.func.jvp(  # type: ignore[misc]
                lambda x: self.euclidean_to_riemannian_gradient(x, euclidean_gradient),
                (point,),
                (tangent_vector,),
            )
        derivative = moved + self.euclidean_to_riemannian_gradient(point, euclidean_hessian)
        return self.covariant_derivative(point, tangent_vector, gradient, derivative)

    @final
    def draw(self, *shape: int) -> Tensor:
        """Draw standard normal numbers of this shape from the manifold's own seeded generator, in its dtype
        and on its device.
        """
        numbers = torch.randn(*shape, generator=self._generator, dtype=torch.float64)
        return numbers.to(dtype=self.dtype, device=self.device)

    @final
    def lack(self, verb: str, needed_by: str, advice: str) -> MissingVerbError:
        """Return the error that says which verb is missing, who needs it and what to do.

        Args:
            verb: Name of the verb.
            needed_by: Name of what asks for the verb.
            advice: Advice that follows the words "state it".
        """
        return MissingVerbError(f"{self} has no {verb}; needed by {needed_by}: state it{advice}")


class Logarithm(NamedTuple):
    """Logarithms of pairs of points, each checked.

    Attributes:
        tangent: Initial velocities of the geodesics, in the shape of a point.
        squared: Squared lengths, float64, in the shape of the leading axes.
        valid: Whether exp(tangent) was checked to reach the second point, boolean, same shape.
    """

    tangent: Tensor
    squared: Tensor
    valid: Tensor


class Reduction(NamedTuple):
    """A problem moved to a smaller, totally geodesic manifold.

    Attributes:
        manifold: The smaller manifold.
        points: The points (T, K, rows, columns) there.
        lift: An isometry from there back to the manifold the points came from.
    """

    manifold: GeodesicManifold
    points: Tensor
    lift: Callable[[Tensor], Tensor]


class GeodesicManifold(TorchManifold):
    """A torch manifold whose geodesics are known: what a Fréchet mean needs. Abstract.

    A Fréchet mean needs `inner_products`, `geodesic` and `logarithm`; the rest is derived.
    """

    def with_modules(self, k: int) -> Self:
        """Return this manifold with k modules.

        Derived: a copy. State it where the manifold keeps other manifolds, or anything else with K modules.
        """
        other = copy.copy(self)
        TorchManifold.__init__(other, *self._stated, **change_options(self.options, k=k))
        return other

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follow a geodesic for unit time: returns where it arrives, and with what velocity.

        Derived: raises `MissingVerbError`.
        """
        raise self.lack("geodesic", "exp and the retraction", ", or a retraction")

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Find the velocity of a geodesic from a to b, checked forward, failures flagged per pair.

        The leading axes of a and b broadcast. Derived: raises `MissingVerbError`.
        """
        advice = ", or give the problem a distance of your own"
        raise self.lack("logarithm", "a geodesic Fréchet mean and distances", advice)

    def closed_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Return the Fréchet mean under the square loss, where it has a closed form.

        Derived: raises `MissingVerbError`.

        Args:
            points: Points (T, K, ...).
            weights: Weights (T, K), of sum one in each module.
        """
        raise self.lack("closed_mean", "the closed-form solver", ", or use another solver, such as lbfgs")

    def retraction(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Move along a tangent vector. Derived: along the geodesic."""
        return self.exp(point, tangent_vector)

    def extrinsic_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Average points (T, K, ...) with weights (T, K) in closed form: a start for the mean, not the
        mean. Derived: the first point.
        """
        return points[0].clone()

    def reduce(self, points: Tensor) -> Reduction:
        """Return an equivalent smaller problem for points (T, K, ...). Derived: this one."""
        return trivial_reduction(self, points)

    @final
    def verify(self, point_a: Tensor, point_b: Tensor, tangent: Tensor) -> Logarithm:
        """Return tangent vectors at a as logarithms of b: valid where their geodesic was followed and ends at
        b, to half the digits.
        """
        miss = self.projection(point_b, self.exp(point_a, tangent) - point_b)
        squared = self.inner_products(point_a, tangent, tangent)
        tolerance = torch.finfo(tangent.dtype).eps ** 0.5 * (1 + squared.sqrt())
        return Logarithm(tangent, squared, self.norms(point_b, miss) <= tolerance)  # false where it is NaN

    @final
    def exp(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Follow the geodesic with this initial velocity for unit time."""
        return self.geodesic(point, tangent_vector)[0]

    @final
    def dists(self, point_a: Tensor, point_b: Tensor) -> Tensor:
        """Return the distance per module, float64 (...); NaN where no geodesic was found."""
        log = self.logarithm(point_a, point_b)
        return torch.where(log.valid, log.squared.sqrt(), torch.nan)

    @final
    def squared_dists(self, point_a: Tensor, point_b: Tensor) -> Tensor:
        """Return squared distances per module (...), differentiable once by torch in both points.

        The derivative is the logarithm (grad of d²/2 at a is -log_a b): nothing is differentiated through an
        eigensolver. Where no geodesic was found, value and gradient are NaN.
        """
        result: Tensor = _SquaredDistance.apply(self, point_a, point_b)  # type: ignore[no-untyped-call]
        return result

    @final
    def dist(self, point_a: Tensor, point_b: Tensor) -> np.float64:
        """Return the distance of two stacks of points.

        Raises:
            NumericalError: No geodesic was found: the points are at or beyond the cut locus.
        """
        return host(self._require_logarithm(point_a, point_b).squared.sum().sqrt())

    @final
    def log(self, point_a: Tensor, point_b: Tensor) -> Tensor:
        """Return the initial velocity of the geodesic from a to b. Law: exp(a, log(a, b)) = b, ‖log‖ = dist.

        Raises:
            NumericalError: No geodesic was found: the points are at or beyond the cut locus.
        """
        return self._require_logarithm(point_a, point_b).tangent

    @final
    def pair_mean(self, point_a: Tensor, point_b: Tensor) -> Tensor:
        """Return the midpoint of the geodesic from a to b."""
        return self.exp(point_a, self.log(point_a, point_b) / 2)

    @final
    def _require_logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        log = self.logarithm(point_a, point_b)
        failed = int(host((~log.valid).sum()))
        if failed:
            raise NumericalError(
                f"{self}: no geodesic was found for {failed} of {log.valid.numel()} pairs of points: they "
                "lie at or beyond the cut locus. Align them first, or use `logarithm`, which flags such pairs"
            )
        return log


def host(scalar: Tensor) -> np.float64:
    """Bring one number to the host, and waits for the device."""
    return np.float64(scalar.item())


def host_array(tensor: Tensor) -> NDArray[np.float64]:
    """Bring numbers to the host for a report."""
    return np.asarray(tensor.tolist(), dtype=np.float64)


def unit_matrices(like: Tensor) -> Tensor:
    """Return the m · n unit matrices (m n, ..., m, n) of the shape, dtype and device of matrices (..., m,
    n): the unknowns of a verb that is derived by a linear solve.

    Raises:
        MissingVerbError: More than 2048 unknowns.
    """
    *leading, m, n = like.shape
    if m * n > _MAX_UNKNOWNS:
        raise MissingVerbError(
            f"a linear solve in {m} x {n} unknowns is too large (at most {_MAX_UNKNOWNS}): state the closed "
            "form of euclidean_to_riemannian_gradient on a manifold, or of vertical_generator for a symmetry"
        )
    units = torch.eye(m * n, dtype=like.dtype, device=like.device).unflatten(-1, (m, n))
    return units.reshape(m * n, *(1 for _ in leading), m, n).expand(m * n, *like.shape)


def solve_form(basis: Tensor, lowered: Tensor, covector: Tensor) -> Tensor:
    """Return the g in the range of a projection with ⟨g, v⟩ = tr(Eᵀv) for every v there.

    Smooth in its arguments, so that torch differentiates it: no basis of the range is chosen.

    Args:
        basis: Projections of the unit matrices (m n, ..., m, n): the projection P, entry by entry.
        lowered: The covectors of the basis (m n, ..., m, n), for an inner product definite on the range.
        covector: E, (..., m, n).
    """
    span, form = (x.flatten(-2).movedim(0, -2) for x in (basis, lowered))
    # Pᵀ G P + (1 - P)ᵀ (1 - P) is definite on all matrices, and g = P c solves the equation on the range.
    rest = eye_like(span) - span
    gram, slopes = span @ form.mT, span @ covector.flatten(-2).unsqueeze(-1)
    # Scaled to a unit diagonal: entries of a metric may differ by any factor.
    size = torch.diagonal(gram, dim1=-2, dim2=-1)
    gram = gram + size.amax(dim=-1, keepdim=True).unsqueeze(-1) * (rest @ rest.mT)
    scale = torch.diagonal(gram, dim1=-2, dim2=-1).rsqrt().unsqueeze(-1)
    solved = torch.linalg.solve_ex(scale * gram * scale.mT, scale * slopes).result
    return (span.mT @ (scale * solved)).squeeze(-1).unflatten(-1, covector.shape[-2:])


def _slope(value: Tensor, leaf: Tensor) -> Tensor:
    """Return the derivative of the sum of a value in a leaf: zero where it does not depend on it."""
    (gradient,) = torch.autograd.grad(value.sum() + 0 * leaf.sum(), leaf, create_graph=True)
    return gradient


def trivial_reduction(manifold: GeodesicManifold, points: Tensor) -> Reduction:
    """Return the problem itself as a reduction."""
    return Reduction(manifold, points, identity)


def identity(point: Any) -> Any:
    """Return the point itself: the lift of a problem that was not reduced."""
    return point


@final
class _SquaredDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, manifold, point_a, point_b):  # type: ignore[no-untyped-def]
        log = manifold.logarithm(point_a, point_b)
        ctx.manifold = manifold
        ctx.save_for_backward(point_a, point_b, log.tangent, log.valid)
        return torch.where(log.valid, log.squared, torch.nan)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        manifold: GeodesicManifold = ctx.manifold
        point_a, point_b, tangent, valid = ctx.saved_tensors
        # A pair without a geodesic has no gradient, unless nothing depends on it.
        factor = 2 * torch.where(valid | (grad == 0), grad, torch.nan)
        grad_a = grad_b = None
        if ctx.needs_input_grad[1]:
            grad_a = scale_modules(
                -factor, manifold.riemannian_to_euclidean_gradient(point_a, tangent)
            ).sum_to_size(point_a.shape)
        if ctx.needs_input_grad[2]:
            back = manifold.logarithm(point_b, point_a).tangent
            grad_b = scale_modules(
                -factor, manifold.riemannian_to_euclidean_gradient(point_b, back)
            ).sum_to_size(point_b.shape)
        return None, grad_a, grad_b
