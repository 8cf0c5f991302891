"""A point together with the alignments of the data to it: where the quotient's Fréchet cost is smooth."""

from __future__ import annotations

from typing import cast, final

import torch
from torch import Tensor

from riemerge import linalg
from riemerge.frechet.low_rank.carrier import Carrier
from riemerge.frechet.low_rank.logarithms import Pass
from riemerge.manifolds.base import TorchManifold, change_options
from riemerge.manifolds.low_rank.curvature import group_curvature
from riemerge.manifolds.low_rank.factors import FixedRank
from riemerge.manifolds.low_rank.orthogonal import Orthogonal
from riemerge.manifolds.quotient import QuotientManifold


@final
class JointManifold(TorchManifold):
    """(FixedRank × O(r)^T) / O(r): a mean x and an orthogonal Oᵢ for each data point yᵢ, up to a common
    gauge.

    A point is one tensor (K, m + r + n + T r, r): U, B, V, O_1 .. O_T. A tangent vector has the same shape: a
    horizontal vector at x (so the common gauge is divided out), and for each Oᵢ a skew Wᵢ that moves it to
    exp(Wᵢ) Oᵢ.

    The metric is that of the motions these cause: the total space's on x, and wᵢ times the squared length of
    the orbit motion of yᵢ on Wᵢ, which is constant, since yᵢ is kept in a gauge with diagonal core: Σⱼₖ
    wᵢ hⱼₖ Wⱼₖ² with h of `FixedRank.orbit_metric`. In this metric the Fréchet cost has a Hessian near the
    identity, so a step of one is right.

    Args:
        quotient: FixedRank by Orthogonal.
        points: Data (T, K, m + r + n, r), in a gauge with diagonal core.
        weights: (T, K), positive where the data counts.
    """

    def __init__(self, quotient: QuotientManifold, points: Tensor, weights: Tensor) -> None:
        total, action = cast(FixedRank, quotient.total), cast(Orthogonal, quotient.action)
        count = points.shape[0]
        dimension = quotient.dim // quotient.k + count * action.dimension
        options = change_options(quotient.options, dtype=points.dtype, device=points.device)
        shape = total.point_shape[0] + count * total.r, total.r
        super().__init__(f"{quotient} with {count} alignments", dimension, shape, **options)
        self.quotient = quotient
        self.total = total
        self.action = action
        self.count = count
        values = torch.diagonal(total.split(points)[1], dim1=-2, dim2=-1).double()
        # A weight of zero takes the alignment out of the problem; its metric must stay definite.
        positive = torch.where(weights > 0, weights, torch.ones_like(weights))
        self._weights = positive
        self._values = values
        self._metric = total.orbit_metric(values)
        self._weighted_metric = linalg.scale_modules(positive, self._metric)

    def split(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (K, m + r + n, r) and the alignments (T, K, r, r) of a point or tangent vector, as
        views.
        """
        r, rows = self.total.r, self.total.m + self.total.r + self.total.n
        x, alignments = point.split((rows, self.count * r), dim=-2)
        return x, alignments.unflatten(-2, (self.count, r)).movedim(-3, 0)

    def join(self, x: Tensor, alignments: Tensor) -> Tensor:
        """Return the point or tangent vector with these parts."""
        return torch.cat((x, alignments.movedim(0, -3).flatten(-3, -2).to(x.dtype)), dim=-2)

    def carrier(self, point: Tensor, memory: int) -> Carrier | None:
        """Return what carries vectors along a path from a point, where that costs less than to transport as
        many at every step: carrying costs by the square of the rows, transport by their product with it.
        """
        if self.total.canonical and max(self.total.m, self.total.n) <= memory * self.total.r:
            return Carrier(self, point, torch.float32)
        return None

    def gradient(self, x: Tensor, logs: Tensor, pull: Tensor, alignments: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of Σ wᵢ ρ(d(x, yᵢ Oᵢ)) from the logs (T, K, ...) at x and their weights in it,
        in its parts at x and at the alignments.

        The derivative in Oᵢ is the momentum of the log, carried into the frame of yᵢ: no second logarithm
        is needed.
        """
        mean = linalg.scale_modules(pull, logs).sum(dim=0)
        momentum = self.action.momentum(self.total, x, logs)
        turned = alignments.to(momentum) @ momentum @ alignments.mT.to(momentum)
        return -self.quotient.horizontal(x, mean), self._raise_turns(turned, pull)

    def gradient_of(self, x: Tensor, alignments: Tensor, known: Pass) -> tuple[Tensor, Tensor]:
        """Return what `gradient` does, from what one pass of `AlignedLogarithms` found."""
        basis, momentum = known.basis, known.momentum
        gauge = linalg.scale_modules(known.pull, momentum).sum(dim=0) / self.total.orbit_metric(known.values)
        vertical = self.action.vertical(self.total, x, linalg.skew(basis @ gauge @ basis.mT))
        frame = alignments @ basis
        return vertical - known.mean, self._raise_turns(frame @ momentum @ frame.mT, known.pull)

    def _raise_turns(self, momentum: Tensor, pull: Tensor) -> Tensor:
        """Return the gradient's part at the alignments, of momenta with these weights in it."""
        turns = torch.where((pull != 0)[..., None, None], momentum, 0.0)
        return linalg.skew(turns / self._metric * (pull / self._weights)[..., None, None])

    def vertical_lengths(self, known: Pass) -> Tensor:
        """Return the length of the part of each logarithm along the orbit, (T, K)."""
        return (known.momentum.square() / self.total.orbit_metric(known.values)).sum(dim=(-2, -1)).sqrt()

    def precondition(
        self, point: Tensor, vector: Tensor, pull: Tensor, stiffness: Tensor, known: Pass | None
    ) -> Tensor:
        """Divide the part at x by the cost's stiffness (K,), and the turns by the weights of their
        logarithms, in units of their own; at a point whose pass is known, by a model of the cost's second
        derivative over the group, too.

        Law: self-adjoint and positive definite in the metric; the identity where the data coincide, for which
        the metric is made.
        """
        at_x, turns = self.split(vector)
        if known is not None:
            _, alignments = self.split(point)
            frame = alignments @ known.basis
            cores = (frame.square() * self._values.unsqueeze(-1)).sum(dim=-2)
            products = known.basis.mT @ known.products @ known.basis
            curvature = group_curvature(self.total, known.values, products[0], products[1], cores)
            small = frame.mT @ (self._metric * turns) @ frame / curvature
            turns = linalg.skew(frame @ small @ frame.mT)
        share = torch.where(pull > 0, pull / self._weights, 1.0)
        return self.join(linalg.scale_modules(1 / stiffness, at_x), linalg.scale_modules(1 / share, turns))

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return the metric described above, per module."""
        (x, _), (a_x, a_o), (b_x, b_o) = self.split(point), self.split(a), self.split(b)
        turns = (self._weighted_metric * a_o.double() * b_o.double()).sum(dim=(0, -2, -1))
        return self.total.inner_products(x, a_x, b_x) + turns

    def projection(self, point: Tensor, vector: Tensor) -> Tensor:
        """Make the part at x horizontal and the alignments' parts skew."""
        (x, _), (at_x, turns) = self.split(point), self.split(vector)
        return self.join(self.quotient.projection(x, at_x), linalg.skew(turns))

    def euclidean_to_riemannian_gradient(self, point: Tensor, euclidean_gradient: Tensor) -> Tensor:
        """Return the gradient (Riesz) of a function that does not depend on the common gauge."""
        (x, alignments), (at_x, at_o) = self.split(point), self.split(euclidean_gradient)
        riemannian = self.quotient.horizontal(x, self.total.euclidean_to_riemannian_gradient(x, at_x))
        return self.join(riemannian, linalg.skew(at_o @ alignments.mT) / self._weighted_metric)

    def riemannian_to_euclidean_gradient(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Lower the part at x in the total space, and the turns by their own metric."""
        (x, _), (at_x, turns) = self.split(point), self.split(tangent_vector)
        return self.join(self.total.riemannian_to_euclidean_gradient(x, at_x), self.lower_turns(turns))

    def lower_turns(self, turns: Tensor) -> Tensor:
        """Lower the alignments' parts (T, ..., K, r, r) by their own metric."""
        metric = self._weighted_metric
        metric = metric.reshape(self.count, *(1,) * (turns.ndim - metric.ndim), *metric.shape[1:])
        return metric * turns

    def retraction(self, point: Tensor, tangent_vector: Tensor) -> Tensor:
        """Follow the geodesic of x and turn each alignment by Cayley's map."""
        (x, alignments), (at_x, turns) = self.split(point), self.split(tangent_vector)
        return self.join(self.total.arrive(x, at_x), linalg.cayley(linalg.skew(turns)) @ alignments)

    def transport(self, point_a: Tensor, point_b: Tensor, tangent_vector_a: Tensor) -> Tensor:
        """Carry the part at x as the total space does, and keep the turns: an isometry, horizontal up to
        what turns vertical.
        """
        (a, _), (b, _), (at_x, turns) = self.split(point_a), self.split(point_b), self.split(tangent_vector_a)
        return self.join(self.total.transport(a, b, at_x), turns)

    def covariant_derivative(
        self, point: Tensor, direction: Tensor, field: Tensor, derivative: Tensor
    ) -> Tensor:
        """Differentiate the part at x by the quotient's connection and the turns entrywise.

        The turns' own connection is left out: a Hessian built on this is exact at critical points, and off by
        the order of the gradient elsewhere.
        """
        (x, _), (d_x, _), (f_x, _), (g_x, g_o) = (
            self.split(y) for y in (point, direction, field, derivative)
        )
        return self.join(self.quotient.covariant_derivative(x, d_x, f_x, g_x), linalg.skew(g_o))

    def feasible(self, point: Tensor) -> Tensor:
        """Tell per module whether x is a point and the alignments are finite."""
        x, alignments = self.split(point)
        return self.total.feasible(x) & torch.isfinite(alignments).flatten(-2).all(dim=-1).all(dim=0)

    def random_point(self) -> Tensor:
        """Draw x and alignments of both determinants."""
        r = self.total.r
        alignments = linalg.polar(self.draw(self.count, self.k, r, r))
        return self.join(self.total.random_point(), alignments)
