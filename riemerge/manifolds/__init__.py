"""Manifolds, metrics and symmetries on torch tensors, in Pymanopt's protocol."""

from riemerge.manifolds.backend import torch_function
from riemerge.manifolds.base import GeodesicManifold, Logarithm, Reduction, TorchManifold
from riemerge.manifolds.fixed_rank import FixedRank
from riemerge.manifolds.joint import JointManifold
from riemerge.manifolds.orthogonal import Orthogonal
from riemerge.manifolds.quotient import GroupAction, QuotientManifold
from riemerge.manifolds.spd import SymmetricPositiveDefinite
from riemerge.manifolds.stiefel import Stiefel

__all__ = [
    "FixedRank",
    "GeodesicManifold",
    "GroupAction",
    "JointManifold",
    "Logarithm",
    "Orthogonal",
    "QuotientManifold",
    "Reduction",
    "Stiefel",
    "SymmetricPositiveDefinite",
    "TorchManifold",
    "torch_function",
]
