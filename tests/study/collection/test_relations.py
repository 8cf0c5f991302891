"""Relations: copies within rounding and no further, near pairs, neighbours, outliers."""

from __future__ import annotations

import torch

from riemerge.study.collection.relations import (
    find_copies,
    find_near,
    find_neighbours,
    find_opposed,
    find_outliers,
)
from riemerge.study.collection.totals import Pairs
from tests.helpers import seeded

NAMES = ("a", "b", "c", "d", "e")


def pairs_of(flat: torch.Tensor) -> tuple[torch.Tensor, Pairs, torch.Tensor]:
    """Norms, tables and relative distances of updates as vectors."""
    norms = flat.norm(dim=1)
    cosine = ((flat @ flat.mT) / norms / norms.unsqueeze(1)).clamp(-1, 1).fill_diagonal_(1.0)
    distance = torch.cdist(flat, flat)
    return norms, Pairs(cosine, distance, cosine, cosine), distance / torch.maximum(norms, norms.unsqueeze(1))


def some_vectors(count: int) -> torch.Tensor:
    return torch.randn(count, 200, generator=seeded(0), dtype=torch.float64)


def test_copies_are_multiples_within_what_rounding_did() -> None:
    x = some_vectors(5)
    noise = torch.nn.functional.normalize(x[4], dim=0) * x[0].norm()
    x[1], x[2], x[3] = 2 * x[0], x[0] + 0.0014 * noise, x[0] - 0.0018 * noise
    norms, pairs, _ = pairs_of(x)
    # Each rounded to 0.1%: 1.1 · √2 · 0.001 = 0.00156 is what both together may hide.
    groups, stands = find_copies(NAMES, "vwxyz", norms, 0.001 * norms, pairs)
    assert stands == [0, 0, 0, 3, 4]
    (group,) = groups
    found = {one.name: (one.likeness, round(one.factor, 6)) for one in group.repetitions}
    assert (group.kept, found) == ("a", {"b": ("scaled", 2.0), "c": ("refactored", 1.0)})
    equal, _ = find_copies(NAMES, "vwvyz", norms, 0.001 * norms, pairs)
    assert {one.name: one.likeness for one in equal[0].repetitions} == {"b": "scaled", "c": "copy"}
    # Bad rounding is no licence to call everything a copy.
    assert find_copies(NAMES, "vwxyz", norms, 10 * norms, pairs)[1] == [0, 0, 0, 0, 4]


def test_of_multiples_the_usual_norm_stands_and_of_copies_the_least_rounded() -> None:
    x = some_vectors(5)
    x[0], x[2] = 1e-3 * x[1], x[3]
    norms, pairs, _ = pairs_of(x)
    rounding = torch.tensor([1e-7, 1e-7, 3e-3, 1e-7, 1e-7], dtype=torch.float64) * norms
    groups, stands = find_copies(NAMES, "vwxyz", norms, rounding, pairs)
    assert stands == [1, 1, 3, 3, 4]  # neither is the first by name
    found = {group.kept: [(one.name, one.likeness) for one in group.repetitions] for group in groups}
    assert found == {"b": [("a", "scaled")], "d": [("c", "refactored")]}
    x[1:3], x[4] = x[0], x[0] / 1e-3
    norms, pairs, _ = pairs_of(x)  # three of four are small: that norm is the usual one of this group
    assert find_copies(NAMES, "vwxyz", norms, 0 * norms, pairs)[1] == [0, 0, 0, 3, 0]


def test_a_negative_multiple_is_opposed_and_no_copy() -> None:
    draws = some_vectors(5)
    x = draws[:1] + 0.4 * draws
    x[0] = -3 * x[1]
    norms, pairs, _ = pairs_of(x)
    groups, stands = find_copies(NAMES, "vwxyz", norms, 0 * norms, pairs)
    assert (groups, stands) == ((), [0, 1, 2, 3, 4])
    (one,) = find_opposed(NAMES, stands, norms, 0 * norms, pairs)
    assert (one.name, one.of, round(one.factor, 9)) == ("a", "b", -3.0)  # b has the relatives


def test_steps_of_a_run_make_no_outliers_of_a_family() -> None:
    draws = some_vectors(13)
    x = draws[:1] + 0.4 * draws[:12]
    x[5:] = x[4] + 0.01 * draws[5:12]
    x[4] = draws[12]
    names, places = [f"x{place:02}" for place in range(12)], list(range(12))
    norms, pairs, relative = pairs_of(x)
    assert all(relative[5:, 5:].flatten() < 0.2)
    found = find_outliers(names, places, norms, pairs, relative, torch.zeros(12))
    assert [(one.name, one.measure) for one in found] == [("x04", "direction")]
    assert found[0].usual > 15  # the angle of relatives, not of steps
    # No near pair at all: a member of a family is none, though the others are far closer to each other.
    close = draws[:1] + 0.03 * draws[:12]
    close[11] = draws[:1] + 1.5 * draws[11]
    norms, pairs, relative = pairs_of(close)
    assert find_outliers(names, places, norms, pairs, 1 + relative, torch.zeros(12)) == ()


def test_near_pairs_are_no_copies_and_neighbours_are_all() -> None:
    x = some_vectors(5)
    noise = torch.nn.functional.normalize(x[4], dim=0) * x[0].norm()
    x[1], x[2] = x[0], x[0] + 0.1 * noise
    _, pairs, relative = pairs_of(x)
    near = find_near(NAMES, [0, 0, 2, 3, 4], pairs, relative)
    assert [(pair.first, pair.second) for pair in near] == [("a", "c")]
    assert [one.name for one in find_neighbours(NAMES, pairs, relative)[2]][:2] in (["a", "b"], ["b", "a"])
    assert all(len(row) == 4 for row in find_neighbours(NAMES, pairs, relative))


def test_outliers_are_far_from_all_or_loud_and_copies_count_once() -> None:
    draws = some_vectors(9)
    x = draws[:1] + 0.5 * draws  # relatives
    x[7] = draws[8]
    x[6] *= 10
    names = [f"x{place}" for place in range(8)]
    norms, pairs, relative = pairs_of(x[:8])
    known = (norms, pairs, relative, torch.zeros(8))
    found = {(one.name, one.measure) for one in find_outliers(names, list(range(8)), *known)}
    assert found == {("x7", "direction"), ("x6", "norm")}
    # As a copy of the first it is none, whatever its factor.
    others = find_outliers(names, [0, 1, 2, 3, 4, 5, 0, 7], *known)
    assert [one.name for one in others] == ["x7"]
    norms, pairs, relative = pairs_of(x[:4])
    assert find_outliers(names[:4], list(range(4)), norms, pairs, relative, torch.zeros(4)) == ()
