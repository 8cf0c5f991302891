"""Clusters of a collection by the angles between updates: a tree, its cut by silhouettes, a picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from riemerge.linalg import canonical_signs
from riemerge.study.collection.advice import RELATED
from riemerge.study.collection.relations import NEAR

MOST_CLUSTERS = 256
"""Clusters that a cut of the tree has at most."""

LEAST_SILHOUETTE = 0.02
"""Mean silhouette below which there are no clusters: unrelated updates have about 0.005."""

LEAST_GAP = 0.15
"""Share of the distance of two clusters by which it exceeds that inside, or they are one family."""


class Clustering(NamedTuple):
    """Clusters of T adapters.

    Attributes:
        labels: Number of the cluster of each adapter (T,), the largest cluster first.
        linkage: The tree, as scipy has it.
        silhouettes: Mean silhouette by number of clusters.
        own: Silhouette of each adapter (T,) in the cut that was chosen.
    """

    labels: Tensor
    linkage: tuple[tuple[int, int, float, int], ...]
    silhouettes: dict[int, float]
    own: Tensor


def chords(cosine: Tensor) -> Tensor:
    """Return √(2 − 2 cos): the distances of the updates scaled to norm 1."""
    return (2.0 - 2.0 * cosine).clamp_min(0.0).sqrt().fill_diagonal_(0.0)


def find_clusters(cosine: Tensor, stands: Sequence[int]) -> Clustering:
    """Cluster adapters by average linkage of `chords`, cut where the mean silhouette is largest.

    Law: copies count once in the silhouettes, or pairs of copies would outweigh families; they are where the
    adapter is that stands for them. Cuts through a family are left out (`are_apart`). Where no other has a
    silhouette above `LEAST_SILHOUETTE`, all adapters are one cluster.

    Args:
        cosine: Cosines of all pairs (T, T).
        stands: For each adapter the place of the one that stands for it.

    Source: Rousseeuw 1987, Silhouettes.
    """
    # Here, since an inspection needs none of scipy.
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    distances, count = chords(cosine), len(cosine)
    tree = linkage(squareform(np.asarray(distances), checks=False), "average")
    some = torch.tensor(sorted(set(stands)))
    among = distances[some][:, some]
    cuts: dict[int, tuple[Tensor, Tensor]] = {}
    for clusters in range(2, min(len(some), MOST_CLUSTERS + 1)):
        cut = torch.from_numpy(fcluster(tree, clusters, "maxclust").astype(np.int64))[some]
        cut = cut.unique(return_inverse=True)[1]
        number = int(cut.max()) + 1
        if number > 1 and number not in cuts:
            cuts[number] = silhouettes(among, cut), cut
    means = {number: float(own.mean()) for number, (own, _) in sorted(cuts.items())}
    labels, own = torch.zeros(len(some), dtype=torch.int64), torch.zeros(len(some), dtype=torch.float64)
    for number in sorted(means, key=lambda number: (-means[number], number)):
        if means[number] > LEAST_SILHOUETTE and are_apart(among, cuts[number][1]):
            own, labels = cuts[number]
            break
    back = torch.zeros(count, dtype=torch.int64)
    back[some] = torch.arange(len(some))
    places = back[torch.tensor(stands)]
    return Clustering(
        _by_size(labels[places]),
        tuple((int(a), int(b), float(height), int(size)) for a, b, height, size in tree.tolist()),
        means,
        own[places],
    )


def are_apart(distances: Tensor, labels: Tensor) -> bool:
    """Say whether there is a gap between every two clusters, and not the spread of one family.

    Law: two clusters are one family where the mean distance between them is of a cosine of `RELATED` or more,
    and exceeds that inside by less than `LEAST_GAP` of it. Near pairs count only where a cluster has no
    others. Two single adapters are held against the pairs inside all clusters that are not near;
    where there are none, their cosine alone decides.

    Args:
        distances: `chords` (T, T).
        labels: Clusters (T,) from 0.
    """
    members = torch.nn.functional.one_hot(labels).to(distances)
    sizes, sums = members.sum(dim=0), members.mT @ distances @ members
    between = sums / (sizes.unsqueeze(1) * sizes)
    within, counts = sums.diagonal(), sizes * (sizes - 1.0)
    # Steps of one run are nearer than any relatives: they set what is usual only where nothing else does.
    far = (labels.unsqueeze(1) == labels) & (distances > NEAR)
    far_counts = members.mT @ far.to(distances).sum(dim=1)
    far_within = members.mT @ (distances * far).sum(dim=1)
    within, counts = (
        torch.where(far_counts > 0, *both) for both in ((far_within, within), (far_counts, counts))
    )
    inside = (within.unsqueeze(1) + within) / (counts.unsqueeze(1) + counts)
    for stand_in in (distances[far].mean(), between):
        inside = torch.where(inside.isnan(), stand_in, inside)
    related = 1.0 - between.square() / 2 >= RELATED
    one = related & (between - inside < LEAST_GAP * between)
    return not bool(one.fill_diagonal_(False).any())


def silhouettes(distances: Tensor, labels: Tensor) -> Tensor:
    """Return the silhouette of each point: (b − a) / max(a, b), 0 for a point alone in its cluster.

    Args:
        distances: (T, T).
        labels: Clusters (T,) from 0, at least two.

    Source: Rousseeuw 1987.
    """
    members = torch.nn.functional.one_hot(labels).to(distances)
    sizes, rows = members.sum(dim=0), torch.arange(len(labels))
    sums = distances @ members
    within = sums[rows, labels] / (sizes[labels] - 1.0).clamp_min(1.0)
    means = sums / sizes
    means[rows, labels] = torch.inf
    outside = means.amin(dim=1)
    own = (outside - within) / torch.maximum(outside, within).clamp_min(torch.finfo(distances.dtype).tiny)
    return torch.where(sizes[labels] > 1, own, 0.0)


def find_medoid(distances: Tensor, members: Sequence[int]) -> int:
    """Return the member of least mean distance to the others; the first of several."""
    index = torch.tensor(members)
    return members[int(distances[index][:, index].sum(dim=1).argmin())]


def scale_classically(cosine: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Return two coordinates (T, 2) that show most of the squared distances of `chords`, and their shares.

    Source: Torgerson 1952, classical scaling.
    """
    centred = cosine - cosine.mean(dim=0)
    centred = centred - centred.mean(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh((centred + centred.mT) / 2)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    leading = vectors[:, :2] * canonical_signs(vectors[:, :2])
    coordinates = torch.nn.functional.pad(leading * values[:2].sqrt(), (0, 2 - leading.shape[1]))
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    first, second = [*shares.tolist(), 0.0][:2]
    return coordinates, (first, second)


def _by_size(labels: Tensor) -> Tensor:
    """Number clusters by size, the largest first; equal ones by their first member."""
    found = labels.tolist()
    sizes = torch.bincount(labels).tolist()
    order = sorted(set(found), key=lambda label: (-sizes[label], found.index(label)))
    numbers = {label: number for number, label in enumerate(order)}
    return torch.tensor([numbers[label] for label in found])
