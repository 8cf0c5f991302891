"""The surrogate: its laws, its ascent, its candidates."""

from __future__ import annotations

import torch

from riemerge import linalg
from riemerge.manifolds import Orthogonal, Stiefel
from riemerge.manifolds.low_rank import surrogate
from tests.manifolds.low_rank.pairs import squared, starts


def test_the_angle_law_of_near_frames_is_exact_where_frames_coincide() -> None:
    """d^2 of frames of one subspace is |log R|^2 / 2, R the rotation between them."""
    manifold = Stiefel(13, 5, k=8, seed=4)
    frame = manifold.random_point()
    rotation = Orthogonal(5).exponential(
        0.7 * Orthogonal(5).random_algebra((8,), torch.Generator().manual_seed(1))
    )
    side = surrogate._side(frame.mT @ frame, 0.5, 1.0)
    model = 5 - linalg.frobenius(rotation, side.weighted) + side.excess(rotation)
    exact = manifold.logarithm(frame, frame @ rotation)
    near = exact.valid & (exact.squared < 3)
    assert int(near.sum()) >= 4
    torch.testing.assert_close(model[near], exact.squared[near], rtol=1e-9, atol=0)


def test_an_ascent_never_descends_nor_leaves_its_component() -> None:
    generator = torch.Generator().manual_seed(3)
    numbers = [torch.randn(40, 6, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    logs = [3 * torch.randn(40, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    pair, linear = surrogate._Pair(*numbers, *logs), numbers[0] + numbers[1]
    element = Orthogonal(6).random_element((40,), generator)
    value = pair.values(element, linear)
    for _ in range(8):
        climb = pair.climb(element, linear, 1)
        # Round-off of the value itself is let through.
        assert bool((pair.values(climb, linear) >= value - 1e-10).all())
        assert torch.equal(torch.linalg.det(climb) > 0, torch.linalg.det(element) > 0)
        element, value = climb, pair.values(climb, linear)
    # A maximum: O'(gradient) is symmetric.
    element = pair.climb(element, linear, 100)
    slope = linalg.skew(element.mT @ (linear + 4 * pair.coupling * element))
    assert float(slope.flatten(1).norm(dim=1).median()) < 1e-3


def test_candidates_are_orthogonal_of_both_determinants_and_move_with_the_gauge() -> None:
    total, points, _ = starts("lora_like")
    action = Orthogonal(4)
    generator = torch.Generator().manual_seed(4)
    turns, back = (action.random_element((3,), generator) for _ in range(2))
    moving, fixed = points[0], points[1]
    found = surrogate.candidates(surrogate.spectrum(total, moving), surrogate.spectrum(total, fixed))
    assert torch.equal((torch.linalg.det(found) > 0).sum(dim=0), torch.full((3,), len(found) // 2))
    again = surrogate.candidates(
        surrogate.spectrum(total, action.act(total, moving, turns)),
        surrogate.spectrum(total, action.act(total, fixed, back)),
    )
    # Either component comes first: compare the sets by what they are worth.
    worth, other = (
        squared(total, moving, fixed, found),
        squared(total, moving, fixed, turns @ again @ back.mT),
    )
    torch.testing.assert_close(worth.sort(dim=0).values, other.sort(dim=0).values, rtol=1e-7, atol=0)
