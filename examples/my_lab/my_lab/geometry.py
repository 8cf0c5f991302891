"""A geometry of one's own: sizes of updates, as networks with this plug-in's metric and symmetry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from my_lab.metric import TwoLayers
from my_lab.symmetry import Scaling
from riemerge.geometries import Geometry, Placed
from riemerge.manifolds import QuotientManifold
from riemerge.methods.setting import Setting


@final
@dataclass(frozen=True)
class Sized(Geometry):
    """The size ‖dW‖ is the predictor t1 t2 of a network (‖dW‖, 1), known up to scaling.

    Law: the mean is a multiple of the average of the updates, under the square loss by the average of their
    sizes.
    """

    def place(self, x: Tensor, setting: Setting) -> Placed:
        """Return the networks of T updates."""
        sizes = x.flatten(1).norm(dim=1)
        points = torch.stack((sizes, torch.ones_like(sizes)), dim=1).unsqueeze(-1)
        return Placed(QuotientManifold(TwoLayers(), Scaling()), points)

    def update(self, point: Tensor, x: Tensor, setting: Setting) -> Tensor:
        """Return the average with the size of the mean."""
        average = torch.tensordot(setting.weights.to(x), x, dims=1)
        return average * (point.prod().to(x) / average.norm())
