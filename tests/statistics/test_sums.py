"""The sums of one module against the formulas, written down token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from riemerge.errors import AdapterError
from riemerge.statistics import KINDS
from riemerge.statistics.sums import Sums
from tests.helpers import seeded

F64 = torch.float64
B, S, M, N = 4, 3, 2, 5  # examples, tokens, outputs, inputs


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=F64)


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(N, M).double()


def calls_of(sums: Sums, module: nn.Linear, *inputs: Tensor) -> None:
    handle = sums.watch()
    for x in inputs:
        module(x)
    handle.remove()
    module(inputs[0])  # is not noted any more


@pytest.mark.parametrize("take", [B, 2])
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_statistics_are_sums_over_the_tokens_that_count(take: int, calls: int, masked: bool) -> None:
    module = layer()
    sums = Sums("q", module, KINDS, F64)
    xs = [draw(B, S, N, seed=i) for i in range(calls)]
    gs = [draw(B, S, M, seed=10 + i) for i in range(calls)]
    mask = None
    if masked:
        mask = torch.tensor([[True, False, True]]).expand(B, S)
    losses = draw(B, seed=20)
    calls_of(sums, module, *xs)
    assert len(sums.calls) == calls
    sums.add(losses, gs, mask, take)
    assert sums.calls == []
    result = sums.result()

    fisher, gram, covariance = (torch.zeros(m, n, dtype=F64) for m, n in ((M, N), (N, N), (M, M)))
    tokens = 0
    for i in range(take):
        slope = torch.zeros(M, N, dtype=F64)
        for x, g in zip(xs, gs, strict=True):
            for t in range(S):
                slope += torch.outer(g[i, t], x[i, t])
                if not masked or t != 1:
                    gram += torch.outer(x[i, t], x[i, t])
                    covariance += torch.outer(g[i, t], g[i, t])
                    tokens += 1
        fisher += slope.square() / take
    expected = {"fisher": fisher, "gram": gram, "covariance": covariance, "loss": losses[:take].mean()}
    for name, value in expected.items():
        # Sums of at most 24 terms of size one in float64.
        torch.testing.assert_close(result[name], value, rtol=1e-13, atol=1e-13)
    assert (int(result["tokens"]), int(result["examples"])) == (tokens, take)
    for name in ("gram", "covariance"):
        assert torch.equal(result[name], result[name].mT)


def test_watching_changes_no_output_and_gradients_reach_a_frozen_module() -> None:
    module = layer().requires_grad_(False)
    sums = Sums("q", module, KINDS, F64)
    x = draw(B, S, N)
    plain = module(x)
    handle = sums.watch()
    watched = module(x)
    handle.remove()
    assert torch.equal(watched, plain)
    [(noted, probe)] = sums.calls
    assert torch.equal(noted, x)
    (gradient,) = torch.autograd.grad(watched.square().sum(), [probe])
    torch.testing.assert_close(gradient, 2 * plain)


def test_gram_alone_needs_no_gradients() -> None:
    module = layer()
    sums = Sums("q", module, ["gram"], F64)
    assert not sums.need_gradients
    assert Sums("q", module, ["gram", "fisher"], F64).need_gradients
    x = draw(B, S, N)
    calls_of(sums, module, x)
    sums.add(torch.zeros(B), [None], None, B)
    torch.testing.assert_close(sums.result()["gram"], x.flatten(0, 1).mT @ x.flatten(0, 1))


def test_a_call_that_the_loss_does_not_depend_on_counts_with_gradient_zero() -> None:
    module = layer()
    one, both = (Sums("q", module, KINDS, F64) for _ in range(2))
    x, y, g = draw(B, S, N), draw(B, S, N, seed=1), draw(B, S, M, seed=2)
    calls_of(both, module, x, y)
    both.add(torch.zeros(B), [g, None], None, B)
    calls_of(one, module, x)
    one.add(torch.zeros(B), [g], None, B)
    for kind in ("fisher", "covariance"):
        torch.testing.assert_close(both.result()[kind], one.result()[kind])
    assert int(both.result()["tokens"]) == 2 * int(one.result()["tokens"])


@pytest.mark.parametrize(
    ("inputs", "gradients", "words"),
    [
        ([], [], "^q: no example uses it"),
        ([draw(B, S, N)], [None], "^q: the loss does not depend on it"),
        ([draw(B, S, N)], [torch.full((B, S, M), torch.inf, dtype=F64)], "^q: fisher holds NaN or Inf"),
        ([draw(B * S, N)], [None], r"^q: an input is \(12, 5\) in a batch of 4 examples"),
        ([draw(N)], [None], r"^q: an input is \(5,\) in a batch of 4 examples"),
    ],
)
def test_a_module_that_cannot_be_measured_is_refused_by_name(
    inputs: list[Tensor], gradients: list[Tensor | None], words: str
) -> None:
    module = layer()
    sums = Sums("q", module, KINDS, F64)
    handle = sums.watch()
    for x in inputs:
        module(x)
    handle.remove()

    def measure() -> None:
        sums.add(torch.zeros(B), gradients, None, B)
        sums.result()

    with pytest.raises(AdapterError, match=words):
        measure()
