"""PEFT's `*_svd` merges on a live model: entrywise rows on dense updates, cut to a rank."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from riemerge.methods.elections.election import elect_unweighted, weighted_sum
from riemerge.methods.elections.entrywise import drop, trim
from riemerge.methods.setting import Setting
from tests.helpers import seeded


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("combination", "edit", "mean"),
    [
        ("ties_svd", trim, elect_unweighted),
        ("dare_ties_svd", drop, elect_unweighted),
        ("dare_linear_svd", drop, weighted_sum),
        ("magnitude_prune_svd", trim, weighted_sum),
    ],
)
def test_pefts_merges_of_dense_updates_are_entrywise_rows_cut_to_a_rank(
    combination: str,
    edit: Callable[..., Tensor],
    mean: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peft = pytest.importorskip("peft")
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    weights, rank, names = [0.7, 1.2, -0.4], 2, ["first", "second", "third"]
    model = torch.nn.Sequential(torch.nn.Linear(9, 7, bias=False, dtype=torch.float64))
    configs = [peft.LoraConfig(r=r, lora_alpha=5, target_modules=["0"]) for r in (2, 3, 4)]
    adapted = peft.get_peft_model(model, configs[0], adapter_name="first", autocast_adapter_dtype=False)
    for name, config in zip(names[1:], configs[1:], strict=True):
        adapted.add_adapter(name, config)
    layer = adapted.base_model.model[0]
    with torch.no_grad():
        for seed, name in enumerate(names):
            layer.lora_A[name].weight.data = normal(*layer.lora_A[name].weight.shape, seed=seed)
            layer.lora_B[name].weight.data = normal(*layer.lora_B[name].weight.shape, seed=seed + 9)
    x = torch.stack([layer.get_delta_weight(name) for name in names]).detach()
    at = Setting(
        module="layer",
        weights=torch.tensor(weights, dtype=torch.float64),
        values={
            "density": torch.full((3,), 0.6, dtype=torch.float64),
            "majority_sign_method": "total",
            "rescale": "expected",
        },
        shape=(7, 9),
        seeds=(3, 5, 8),
    )
    # PEFT draws its masks from the global generator: it gets ours instead.
    chances = torch.full((7, 9), 0.6, dtype=torch.float64)
    masks = iter([torch.bernoulli(chances, generator=at.generator(place)) for place in range(3)])
    monkeypatch.setattr(
        merge_utils,
        "random_pruning",
        lambda tensor, density, rescale: tensor * next(masks) / (density if rescale else 1.0),
    )
    adapted.add_weighted_adapter(names, weights, "merged", combination, svd_rank=rank, density=0.6)
    u, sigma, vh = torch.linalg.svd(mean(edit(x, at), at), full_matrices=False)
    found = (u[:, :rank] * sigma[:rank]) @ vh[:rank]
    # PEFT multiplies by weights and scales of float32.
    expected = layer.get_delta_weight("merged").detach()
    assert float((found - expected).norm() / expected.norm()) < 1e-6
