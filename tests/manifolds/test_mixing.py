"""Mixed fixed-point iterations against plain ones, on affine maps."""

from __future__ import annotations

import torch
from torch import Tensor

from riemerge.manifolds.mixing import Mixing


def solve(steps: int, *, forget: bool = False) -> Tensor:
    """Errors of three iterations x + b - A x of contraction 0.95, after a number of steps."""
    generator = torch.Generator().manual_seed(0)
    matrix = 0.2 * torch.randn(3, 6, 6, generator=generator, dtype=torch.float64)
    matrix = matrix @ matrix.mT + 0.05 * torch.eye(6, dtype=torch.float64)
    solution = torch.randn(3, 6, 1, generator=generator, dtype=torch.float64)
    x, mixing = torch.zeros_like(solution), Mixing(3, 6, solution)
    pairs = torch.arange(3)
    for _ in range(steps):
        step = matrix @ (solution - x)
        move = mixing.combine(pairs, step)
        mixing.note(pairs, move, torch.full((3,), not forget))
        x = x + move
    return (x - solution).flatten(1).norm(dim=1)


def test_an_affine_iteration_ends_after_as_many_steps_as_it_has_entries() -> None:
    assert float(solve(8).max()) < 1e-6
    # Without memory the step is the plain one.
    assert float(solve(8, forget=True).min()) > 1e-2


def test_iterations_do_not_see_each_other() -> None:
    steps = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together, alone = Mixing(3, 4, steps), Mixing(3, 4, steps)
    for scale in (1.0, 0.5, 0.3):
        pairs, second = torch.arange(3), torch.tensor([1])
        both = together.combine(pairs, scale * steps)
        single = alone.combine(second, scale * steps[second])
        torch.testing.assert_close(both[second], single)
        together.note(pairs, both, torch.tensor([True, True, False]))
        alone.note(second, single, torch.tensor([True]))
