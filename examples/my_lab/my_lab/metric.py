"""A metric of one's own: two-layer scalar networks of GeoMerge's section 4."""

import torch
from torch import Tensor

from riemerge.manifolds import GeodesicManifold, Logarithm


class TwoLayers(GeodesicManifold):
    """Networks f(x) = t2 t1 x, both numbers nonzero, as points (K, 2, 1) with the metric t2² a₁b₁ + t1² a₂b₂.

    In s = log|t1 t2| and u = log|t1 / t2| the metric is e²ˢ (ds² + du²) / 2: a plane in polar coordinates,
    with radius |t1 t2| / √2 and angle u. Geodesics are its straight lines. Below, a number and its flip are
    the two layers; sums are symmetric in them, and differences change sign.
    """

    point_shape = 2, 1

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (point.flip(-2).square() * a * b).sum(dim=(-2, -1)).double()

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        rates = tangent_vector / point
        along, across = rates + rates.flip(-2), rates - rates.flip(-2)
        squared = (1 + along).square() + across.square()
        arrival = point * ((squared.log() / 2 + torch.atan2(across, 1 + along)) / 2).exp()
        return arrival, arrival * (along * (1 + along) + across.square() + across) / (2 * squared)

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        logs = (point_b / point_a).abs().log()
        growth, turn = (logs + logs.flip(-2)).exp(), logs - logs.flip(-2)
        return self.verify(point_a, point_b, point_a * (growth * (turn.cos() + turn.sin()) - 1) / 2)
