"""Manifolds, metrics and symmetries on torch tensors, in Pymanopt's protocol."""

from riemerge.errors import require_docstrings

if not __debug__:  # -O, or -OO
    require_docstrings()

from riemerge.manifolds.backend import torch_function
from riemerge.manifolds.base import GeodesicManifold, Logarithm, Reduction, TorchManifold
from riemerge.manifolds.euclidean import Euclidean
from riemerge.manifolds.grassmann import Grassmann
from riemerge.manifolds.half_plane import HalfPlane
from riemerge.manifolds.low_rank.factors import FixedRank
from riemerge.manifolds.low_rank.gl_factors import GLFactors
from riemerge.manifolds.low_rank.orthogonal import Orthogonal
from riemerge.manifolds.metric_manifold import MetricManifold
from riemerge.manifolds.product import Product
from riemerge.manifolds.quotient import GroupAction, QuotientManifold
from riemerge.manifolds.spd import SymmetricPositiveDefinite
from riemerge.manifolds.spd_base import KernelMetric
from riemerge.manifolds.spd_metrics import SpdBuresWasserstein, SpdEuclidean, SpdLogEuclidean
from riemerge.manifolds.sphere import Sphere
from riemerge.manifolds.stiefel import Stiefel
from riemerge.manifolds.symmetries import GeneralLinear, Permutations, Scaling, join_heads, split_heads

__all__ = [
    "Euclidean",
    "FixedRank",
    "GLFactors",
    "GeneralLinear",
    "GeodesicManifold",
    "Grassmann",
    "GroupAction",
    "HalfPlane",
    "KernelMetric",
    "Logarithm",
    "MetricManifold",
    "Orthogonal",
    "Permutations",
    "Product",
    "QuotientManifold",
    "Reduction",
    "Scaling",
    "SpdBuresWasserstein",
    "SpdEuclidean",
    "SpdLogEuclidean",
    "Sphere",
    "Stiefel",
    "SymmetricPositiveDefinite",
    "TorchManifold",
    "join_heads",
    "split_heads",
    "torch_function",
]
