"""Clusters: silhouettes by their definition, the tree by scipy's, pictures by an independent scaling."""

from __future__ import annotations

import torch

from riemerge.study.collection import clusters
from riemerge.study.collection.clusters import (
    chords,
    find_clusters,
    find_medoid,
    scale_classically,
    silhouettes,
)
from tests.helpers import seeded


def cosines(*groups: tuple[int, float], seed: int = 0) -> torch.Tensor:
    """Cosines of groups of unit vectors, each of a size and of a share in common."""
    draw, rows = seeded(seed), []
    for size, share in groups:
        centre = torch.randn(400, generator=draw, dtype=torch.float64)
        noise = torch.randn(size, 400, generator=draw, dtype=torch.float64)
        rows.append(share**0.5 * centre + (1 - share) ** 0.5 * noise)
    unit = torch.nn.functional.normalize(torch.cat(rows))
    return unit @ unit.mT


def test_silhouettes_are_those_of_the_definition() -> None:
    distances = chords(cosines((4, 0.6), (3, 0.3), (1, 0.0)))
    labels = [0, 0, 0, 1, 1, 1, 1, 2]
    found = silhouettes(distances, torch.tensor(labels))
    for i, own in enumerate(labels):
        means = {
            label: torch.stack(
                [distances[i, j] for j, other in enumerate(labels) if other == label and j != i]
            )
            for label in set(labels)
            if [j for j, other in enumerate(labels) if other == label and j != i]
        }
        expected = 0.0
        if own in means:
            within = float(means.pop(own).mean())
            outside = min(float(mean.mean()) for mean in means.values())
            expected = (outside - within) / max(outside, within)
        assert abs(float(found[i]) - expected) < 1e-12


def test_families_are_cut_apart_and_copies_do_not_outweigh_them() -> None:
    cosine = cosines((6, 0.5), (5, 0.5), (1, 0.0))
    # The first adapter is there five times: without its standing once, its copies would be the only cluster.
    order = torch.tensor([0, 0, 0, 0, 0, *range(1, 12)])
    found = find_clusters(cosine[order][:, order], [0, 0, 0, 0, 0, *range(5, 16)])
    assert found.labels.tolist() == [0] * 10 + [1] * 5 + [2]
    assert max(found.silhouettes, key=found.silhouettes.__getitem__) == 3
    assert len(found.linkage) == 15


def test_unrelated_adapters_are_one_cluster() -> None:
    found = find_clusters(cosines(*[(1, 0.0)] * 12), list(range(12)))
    assert set(found.labels.tolist()) == {0}
    two = find_clusters(cosines((2, 0.5)), [0, 1])
    assert (two.labels.tolist(), two.silhouettes) == ([0, 0], {})


def test_a_family_is_not_split_on_its_spread() -> None:
    for seed in range(4):
        for family in ((5, 0.85), (8, 0.5), (9, 0.3)):
            labels = find_clusters(cosines(family, seed=seed), list(range(family[0]))).labels
            assert set(labels.tolist()) == {0}
    # Nor where it has strangers beside it, nor beside near-equal steps of a run.
    beside = find_clusters(cosines((6, 0.85), (1, 0.0), (1, 0.0)), list(range(8)))
    assert beside.labels.tolist() == [0] * 6 + [1, 2]
    draw = cosines((8, 0.85))
    rows = torch.linalg.cholesky(draw + 1e-12 * torch.eye(8))
    steps = torch.cat([rows, rows[7] + 0.005 * torch.randn(5, 8, generator=seeded(1), dtype=rows.dtype)])
    steps = torch.nn.functional.normalize(steps)
    assert set(find_clusters(steps @ steps.mT, list(range(13))).labels.tolist()) == {0}


def test_few_relatives_among_many_strangers_are_a_cluster() -> None:
    found = find_clusters(cosines((5, 0.6), *[(1, 0.0)] * 40), list(range(45)))
    assert {k for k, label in enumerate(found.labels.tolist()) if label == 0} == set(range(5))


def test_two_families_with_a_common_share_are_two() -> None:
    inner, outer = cosines((5, 0.7), (5, 0.7)), torch.full((10, 10), 0.4, dtype=torch.float64)
    assert find_clusters((inner + outer) / 1.4, list(range(10))).labels.tolist() == [0] * 5 + [1] * 5


def test_no_more_cuts_are_tried_than_the_bound(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(clusters, "MOST_CLUSTERS", 3)
    assert max(find_clusters(cosines((6, 0.5), (5, 0.5)), list(range(11))).silhouettes) <= 3


def test_the_medoid_is_nearest_to_the_others() -> None:
    distances = torch.tensor([[0.0, 1.0, 4.0], [1.0, 0.0, 2.0], [4.0, 2.0, 0.0]])
    assert find_medoid(distances, [0, 1, 2]) == 1
    assert find_medoid(distances, [0, 2]) == 0  # the first of equals


def test_coordinates_show_distances_in_a_plane_exactly() -> None:
    angles = torch.tensor([0.0, 0.3, 0.9, 2.0], dtype=torch.float64)
    cosine = (angles.unsqueeze(1) - angles).cos()
    coordinates, shares = scale_classically(cosine)
    assert torch.allclose(torch.cdist(coordinates, coordinates), chords(cosine), atol=1e-7)
    assert abs(sum(shares) - 1) < 1e-12
    alone, shares = scale_classically(torch.ones(2, 2, dtype=torch.float64))
    assert not alone.any()
    assert shares == (0.0, 0.0)
