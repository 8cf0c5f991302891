"""Pymanopt's manifold protocol on batches of torch tensors."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Self, TypedDict, Unpack, final

import numpy as np
import torch
from numpy.typing import NDArray
from pymanopt.manifolds.manifold import Manifold
from torch import Tensor

from riemerge.errors import NumericalError
from riemerge.linalg import scale_modules

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


class TorchManifold(Manifold):  # type: ignore[misc]
    """The K-fold power of a manifold, whose points are single tensors (K, rows, columns).

    Abstract. A subclass states the geometry in batched verbs (`inner_products`, `retraction`, ...) for
    tensors of any leading axes; the scalar verbs of Pymanopt's protocol (`inner_product`, `norm`) are derived
    here, once, by summing over modules. They return `np.float64`: a 0-d tensor breaks Pymanopt's optimizers
    on a GPU, and a Python float its line searches.

    Args:
        name: Name of the manifold in messages.
        dimension: Dimension of one module.
        options: See `Options`.
    """

    def __init__(self, name: str, dimension: int, **options: Unpack[Options]) -> None:
        defaults: Options = {"k": 1, "dtype": torch.float64, "device": "cpu", "seed": 0}
        self.options = change_options(defaults, **options)
        self.k, self.dtype, self.seed = self.options["k"], self.options["dtype"], self.options["seed"]
        self.device = torch.device(self.options["device"])
        if self.k < 1:
            raise ValueError(f"{name}: k is {self.k}; at least one module is needed")
        if not self.dtype.is_floating_point:
            raise ValueError(f"{name}: dtype {self.dtype} is not a floating point type")
        power = f"^{self.k}" * (self.k > 1)
        super().__init__(name + power, self.k * dimension)
        self._generator = torch.Generator().manual_seed(self.seed)

    @property
    @abstractmethod
    def point_shape(self) -> tuple[int, int]:
        """Rows and columns of one module's point."""

    @abstractmethod
    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return the metric of two tangent vectors, one float64 number per module (...)."""

    @abstractmethod
    def projection(self, point: Tensor, vector: Tensor) -> Tensor:
        """Project an ambient vector onto the tangent space. Law: idempotent, the identity on tangent
        vectors.
        """

    @abstractmethod
    def euclidean_to_riemannian_gradient(self, point: Tensor, euclidean_gradient: Tensor) -> Tensor:
        """Return the Riesz vector: the tangent g with ⟨g, v⟩ = tr(Eᵀv) for every tangent v.

        Args:
            point: The point x.
            euclidean_gradient: E, the gradient of the entries at x.
        """

    @abstractmethod
    def riemannian_to_euclidean_gradient(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Return an ambient E with tr(Eᵀv) = ⟨tangent_vector, v⟩ for every tangent v."""

    @abstractmethod
    def retraction(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Move along a tangent vector. Law: agrees with the geodesic to first order."""

    @abstractmethod
    def transport(self, point_a: Tensor, point_b: Tensor, tangent_vector_a: Tensor) -> Tensor:
        """Carry a tangent vector from a to b; the docstring says whether isometrically and whether
        parallel.
        """

    @abstractmethod
    def covariant_derivative(
        self, point: Tensor, direction: Tensor, field: Tensor, derivative: Tensor
    ) -> Tensor:
        """Differentiate a tangent field by the metric's own connection.

        Args:
            point: The point at which the field is differentiated.
            direction: Tangent vector to differentiate along.
            field: Value of the field at the point.
            derivative: Entrywise derivative of the field along the direction.
        """

    @abstractmethod
    def feasible(self, point: Tensor) -> Tensor:
        """Tell per module whether a point is finite and inside the open conditions of the set, boolean
        (...).
        """

    @abstractmethod
    def random_point(self) -> Tensor:
        """Draw a point from the manifold's own seeded generator."""

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
        return self._draw(*like.shape).to(like)

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
    def _draw(self, *shape: int) -> Tensor:
        numbers = torch.randn(*shape, generator=self._generator, dtype=torch.float64)
        return numbers.to(dtype=self.dtype, device=self.device)


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
    """A torch manifold whose geodesics are known: what a Fréchet mean needs. Abstract."""

    @abstractmethod
    def with_modules(self, k: int) -> Self:
        """Return this manifold with k modules."""

    @abstractmethod
    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        """Follow a geodesic for unit time: returns where it arrives, and with what velocity."""

    @abstractmethod
    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        """Find the velocity of a geodesic from a to b, checked forward, failures flagged per pair.

        The leading axes of a and b broadcast.
        """

    @abstractmethod
    def extrinsic_mean(self, points: Tensor, weights: Tensor) -> Tensor:
        """Average points (T, K, ...) with weights (T, K) in closed form: a start for the mean, not the
        mean.
        """

    @abstractmethod
    def reduce(self, points: Tensor) -> Reduction:
        """Return an equivalent smaller problem for points (T, K, ...), or this one where there is none."""

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
