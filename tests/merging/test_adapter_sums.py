"""`base+adapter`: the adapter where adapters are merged, the patched base where full checkpoints are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from riemerge.errors import RecipeError, RiemergeError
from riemerge.merging.adapter_sums import take_adapters
from riemerge.merging.verbs import merge_into
from riemerge.recipes.recipe import Recipe, make_recipe
from tests.folders import SHAPES, family, write_family
from tests.merging.merges import ONE, dense

FACTORS = family("independent", 2)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with a base model, and adapters a and b of it."""
    write_family(tmp_path, FACTORS, base_model_name_or_path="somebody/base")
    (tmp_path / "base").mkdir()
    save_file(base_tensors(), tmp_path / "base" / ONE)
    return tmp_path


def base_tensors() -> dict[str, Tensor]:
    seeded = torch.Generator().manual_seed(5)
    return {f"{name}.weight": torch.randn(m, n, generator=seeded).double() for name, (m, n) in SHAPES.items()}


def recipe(*models: str, **changes: object) -> Recipe:
    return make_recipe(
        {"merge_method": "average", "models": [{"model": model} for model in models], **changes}
    )


def test_among_full_checkpoints_it_is_the_base_with_the_adapter_in_it(world: Path) -> None:
    sums = [f"{world}/base+{world}/{name}" for name in "ab"]
    asked = recipe(*sums, base_model=f"{world}/base")
    assert take_adapters(asked) == asked
    beside = recipe(f"{world}/base", f"somebody/base+{world}/a")
    assert take_adapters(beside) == beside  # whose base is missing, as its reader says
    record = merge_into(asked, world / "out").record
    assert [row.name for row in record.inputs] == ["base+a", "base+b"]
    merged, updates = load_file(world / "out" / ONE), [dense(factors) for factors in FACTORS]
    for name, weight in base_tensors().items():
        module = name.removesuffix(".weight")
        mean = torch.as_tensor(updates[0][module] + updates[1][module]) / 2
        assert torch.allclose(merged[name], weight + mean, rtol=1e-12, atol=1e-12)


def test_an_output_in_either_part_is_refused(world: Path) -> None:
    for part in ("base", "a"):
        with pytest.raises(RiemergeError, match="lies inside the input"):
            merge_into(recipe(f"{world}/base+{world}/a"), world / part / "out")


def test_among_adapters_it_is_the_adapter(world: Path) -> None:
    plain = recipe(f"{world}/a", f"{world}/b", base_model="somebody/base")
    for asked in (
        recipe(f"somebody/base+{world}/a", f"somebody/base+{world}/b"),
        recipe(f"somebody/base+{world}/a", f"{world}/b"),
        recipe(f"somebody/base+{world}/a", f"somebody/base+{world}/b", base_model="somebody/base"),
    ):
        found = take_adapters(asked)
        assert found.model_copy(update={"translations": ()}) == plain
        assert found.translations[0] == (
            "models[0]: base+adapter: read as the adapter, since adapters are merged"
        )
    assert merge_into(asked, world / "out").record.base_model == "somebody/base"


@pytest.mark.parametrize("out_type", ["adapter", "delta"])
def test_what_is_to_be_written_decides(world: Path, out_type: str) -> None:
    found = take_adapters(recipe(f"{world}/base+{world}/a", f"{world}/base+{world}/b", out_type=out_type))
    assert [entry.model for entry in found.models] == [f"{world}/a", f"{world}/b"]
    assert found.base_model == f"{world}/base"


def test_adapters_on_another_base_are_refused(world: Path) -> None:
    with pytest.raises(RecipeError, match="adapters on several base models: x/base, y/base"):
        take_adapters(recipe(f"x/base+{world}/a", f"y/base+{world}/b"))
    with pytest.raises(RecipeError, match="base_model: x/other: the adapters name somebody/base"):
        merge_into(recipe(f"x/other+{world}/a", f"{world}/b"), world / "out")
