"""A model of two layers, data for it, and its statistics by brute force."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from riemerge.statistics import KINDS
from tests.helpers import seeded

F64 = torch.float64


class Tiny(nn.Module):
    """Two layers on sequences, the second used twice, dropout between; and one layer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 4)
        self.mix = nn.Linear(4, 4, bias=False)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)
        self.idle = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(torch.tanh(self.up(x)))
        hidden = self.mix(torch.tanh(self.mix(hidden)))
        return self.head(hidden.mean(dim=1))


USED = ("head", "mix", "up")


def tiny() -> Tiny:
    torch.manual_seed(3)
    return Tiny().double()


def data(count: int = 7, size: int = 3, tokens: int = 6) -> list[tuple[Tensor, Tensor]]:
    """Batches of at most `size` examples."""
    x = torch.randn(count, tokens, 5, generator=seeded(0), dtype=F64)
    y = torch.randint(0, 3, (count,), generator=seeded(1))
    return [(x[i : i + size], y[i : i + size]) for i in range(0, count, size)]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return loss(model, batch).mean()


def brute_force(
    model: nn.Module, batches: Any, modules: dict[str, nn.Linear], of: Any = loss
) -> dict[str, dict[str, Tensor]]:
    """Every example alone; the weight's gradient by autograd, inputs and outputs from hooks."""
    model.eval()
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}

    def noting(name: str) -> Any:
        def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.requires_grad_()
            output.retain_grad()
            seen[name].append((inputs[0].detach(), output))
            return output

        return note

    handles = [module.register_forward_hook(noting(name)) for name, module in modules.items()]
    frozen = {name: module.weight.requires_grad for name, module in modules.items()}
    sums: dict[str, dict[str, Tensor]] = {}
    count = 0
    for x, y in ((xs[i : i + 1], ys[i : i + 1]) for xs, ys in batches for i in range(len(ys))):
        count += 1
        for name, module in modules.items():
            seen[name].clear()
            module.weight.requires_grad_()
            module.weight.grad = None
        of(model, (x, y)).sum().backward()
        for name, module in modules.items():
            assert module.weight.grad is not None
            inputs = torch.cat([a.reshape(-1, a.shape[-1]) for a, _ in seen[name]])
            gradients = torch.cat([b.grad.reshape(-1, b.shape[-1]) for _, b in seen[name]])  # type: ignore[union-attr]
            found = {
                "fisher": module.weight.grad.square(),
                "gram": inputs.T @ inputs,
                "covariance": gradients.T @ gradients,
                "tokens": torch.tensor(len(inputs)),
            }
            sums[name] = {key: value + sums.get(name, {}).get(key, 0) for key, value in found.items()}
    for handle in handles:
        handle.remove()
    for name, module in modules.items():
        module.weight.requires_grad_(frozen[name])
        sums[name]["fisher"] = sums[name]["fisher"] / count
        sums[name]["examples"] = torch.tensor(count)
    return sums


def assert_same(found: Any, expected: dict[str, dict[str, Tensor]], kinds: tuple[str, ...] = KINDS) -> None:
    names = (*kinds, "tokens", "examples")
    ours = {name: {kind: found.of(name)[kind] for kind in names} for name in expected}
    theirs = {name: {kind: one[kind] for kind in names} for name, one in expected.items()}
    # Sums of less than a hundred terms of size one in float64.
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14)
