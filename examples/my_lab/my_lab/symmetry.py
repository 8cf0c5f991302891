"""A symmetry of one's own: the scaling between two layers."""

import torch
from torch import Tensor

from riemerge.manifolds import GeodesicManifold, GroupAction


class Scaling(GroupAction):
    """a in R*, acting by (t1, t2) . a = (a t1, t2 / a); elements and logarithmic rates are (..., 1, 1).

    Aligned networks have equal ratios t1 / t2, and signs (GeoMerge, eq. 14-17).
    """

    dimension, shape = 1, (1, 1)

    def act(self, total: GeodesicManifold, point: Tensor, element: Tensor) -> Tensor:
        return point * torch.cat((element, 1 / element), dim=-2)

    def vertical(self, total: GeodesicManifold, point: Tensor, algebra: Tensor) -> Tensor:
        return point * torch.cat((algebra, -algebra), dim=-2)

    def align(self, total: GeodesicManifold, point: Tensor, to: Tensor) -> Tensor:
        first, second = (to / point).split(1, dim=-2)
        return self.act(total, point, first.sign() * (first / second).abs().sqrt())
