"""A metric of one's own: two-layer scalar networks of GeoMerge's section 4."""

import torch
from torch import Tensor

from riemerge.manifolds import GeodesicManifold, Logarithm


class TwoLayers(GeodesicManifold):
    """Networks f(x) = t2 t1 x, both numbers nonzero, as points (K, 2, 1) with the metric t2² a₁b₁ + t1² a₂b₂.

    In s = log|t1 t2| and u = log|t1 / t2| the metric is e²ˢ (ds² + du²) / 2: a plane, in which a network is
    the complex number exp(s + iu) / √2, and whose straight lines are the geodesics. A number below and its
    flip are the two layers; (1 - i) z has the real part Δs + Δu for the first and Δs - Δu for the second.
    """

    point_shape = 2, 1

    def inner_products(self, point: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (point.flip(-2).square() * a * b).sum(dim=(-2, -1)).double()

    def geodesic(self, point: Tensor, tangent_vector: Tensor) -> tuple[Tensor, Tensor]:
        rates = tangent_vector / point
        z = torch.complex(1 + rates + rates.flip(-2), rates - rates.flip(-2)).log()
        arrival = point * (((1 - 1j) * z).real / 2).exp()
        return arrival, arrival * ((1 - 1j) * (1 - (-z).exp())).real / 2

    def logarithm(self, point_a: Tensor, point_b: Tensor) -> Logarithm:
        logs = (point_b / point_a).abs().log()
        z = torch.complex(logs + logs.flip(-2), logs - logs.flip(-2))
        return self.verify(point_a, point_b, point_a * ((1 - 1j) * (z.exp() - 1)).real / 2)

    def random_point(self) -> Tensor:
        return 1 + self.draw(self.k, *self.point_shape).abs()
