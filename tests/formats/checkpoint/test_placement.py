"""Which tensors of a base model modules are added to, and what is said where there are none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.checkpoint import Checkpoint, read_checkpoint
from riemerge.formats.checkpoint.placement import place_modules
from riemerge.formats.dialects import read_adapter
from riemerge.formats.layers import Expert, Linear
from tests.folders import write_folder
from tests.helpers import Factors

Shapes = Mapping[str, tuple[int, ...]]

BASE: Shapes = {
    "model.layers.0.q.weight": (6, 4),
    "model.layers.0.v.weight": (3, 4),
    "model.layers.1.q.weight": (6, 4),
    "model.embed.weight": (5, 4),
}
Q = {"model.layers.0.q": (6, 4), "model.layers.1.q": (6, 4)}


def write_base(folder: Path, shapes: Shapes, dtype: torch.dtype = torch.float32) -> Checkpoint:
    folder.mkdir()
    save_file(
        {name: torch.ones(shape).to(dtype) for name, shape in shapes.items()}, folder / "model.safetensors"
    )
    return read_checkpoint(folder)


def write_adapter(folder: Path, shapes: Mapping[str, tuple[int, int]], **settings: Any) -> Path:
    factors: dict[str, Factors] = {
        name: (torch.ones(m, 1), torch.ones(1, n)) for name, (m, n) in shapes.items()
    }
    return write_folder(folder, factors, **settings)


def refused(tmp_path: Path, shapes: Mapping[str, tuple[int, int]], base: Shapes = BASE) -> str:
    adapter = read_adapter(write_adapter(tmp_path / "law", shapes))
    with pytest.raises(AdapterError) as caught:
        place_modules(write_base(tmp_path / "base", base), adapter)
    return str(caught.value)


# --- which way round ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize(
    ("stored", "turned"),
    [
        ({"c_attn": (4, 6), "c_proj": (4, 4)}, {"c_attn", "c_proj"}),
        ({"c_attn": (6, 4), "c_proj": (4, 4)}, set()),
        ({"c_attn": (4, 6), "c_proj": (4, 4), "lm_head": (9, 4)}, {"c_attn", "c_proj"}),
    ],
)
def test_shapes_say_which_way_round_weights_are(
    tmp_path: Path, stored: Shapes, turned: set[str], flag: bool
) -> None:
    """As the class of each layer does for PEFT, which corrects the flag by it."""
    base = write_base(tmp_path / "base", {f"{name}.weight": shape for name, shape in stored.items()})
    shapes = {"c_attn": (6, 4), "c_proj": (4, 4), "lm_head": (9, 4)}
    given = {name: shapes[name] for name in stored}
    adapter, placed = place_modules(
        base, read_adapter(write_adapter(tmp_path / "law", given, fan_in_fan_out=flag))
    )
    assert placed == {f"{name}.weight": (name,) for name in sorted(stored)}
    assert {
        name for name, layer in adapter.layers.items() if isinstance(layer, Linear) and layer.turned
    } == turned


@pytest.mark.parametrize("flag", [False, True])
def test_where_all_are_square_the_adapter_says_it(tmp_path: Path, flag: bool) -> None:
    base = write_base(tmp_path / "base", {"q.weight": (4, 4)})
    given = read_adapter(write_adapter(tmp_path / "law", {"q": (4, 4)}, fan_in_fan_out=flag))
    adapter, _ = place_modules(base, given)
    layer = adapter.layers["q"]
    assert isinstance(layer, Linear)
    assert layer.turned is flag


# --- experts ------------------------------------------------------------------------------------------------


def experts(folder: Path, parameters: list[str], shapes: list[tuple[int, int]]) -> Path:
    """Factors of three experts of each parameter: the first that PEFT puts in is the innermost."""
    tensors: dict[str, Tensor] = {}
    for depth, (m, n) in enumerate(reversed(shapes)):
        stem = f"base_model.model.mlp{'.base_layer' * depth}"
        tensors[f"{stem}.lora_A.weight"] = torch.ones(3, n)
        tensors[f"{stem}.lora_B.weight"] = torch.ones(m, 3)
    path = write_folder(folder, {"q": (torch.ones(4, 1), torch.ones(1, 4))}, target_parameters=parameters)
    tensors |= {
        f"base_model.model.q.lora_{side}.weight": torch.ones(shape)
        for side, shape in (("A", (1, 4)), ("B", (4, 1)))
    }
    save_file(tensors, path / "adapter_model.safetensors")
    return path


def test_experts_are_of_the_parameter_whose_shape_fits(tmp_path: Path) -> None:
    path = experts(tmp_path / "law", ["mlp.up", "mlp.down"], [(8, 5), (5, 6)])
    base = write_base(tmp_path / "base", {"q.weight": (4, 4), "mlp.up": (3, 8, 5), "mlp.down": (3, 6, 5)})
    adapter, placed = place_modules(base, read_adapter(path))
    assert {name: len(modules) for name, modules in placed.items()} == {
        "q.weight": 1,
        "mlp.up": 3,
        "mlp.down": 3,
    }
    layers = {name: adapter.layers[placed[name][0]] for name in ("mlp.up", "mlp.down")}
    assert {name: isinstance(one, Expert) and one.turned for name, one in layers.items()} == {
        "mlp.up": False,
        "mlp.down": True,
    }


@pytest.mark.parametrize(
    ("shapes", "stored", "text"),
    [
        (
            [(8, 5), (8, 5)],
            {"mlp.up": (3, 8, 5), "mlp.down": (3, 8, 5)},
            "may be down, up by its shape",
        ),
        ([(5, 5), (5, 6)], {"mlp.up": (3, 5, 5), "mlp.down": (3, 5, 6)}, "holds square matrices"),
    ],
)
def test_experts_that_shapes_leave_open_are_refused(
    tmp_path: Path, shapes: list[tuple[int, int]], stored: Shapes, text: str
) -> None:
    path = experts(tmp_path / "law", ["mlp.up", "mlp.down"], shapes)
    base = write_base(tmp_path / "base", {"q.weight": (4, 4), **stored})
    with pytest.raises(AdapterError, match=text):
        place_modules(base, read_adapter(path))


def test_experts_that_the_base_stores_apart_are_refused_once(tmp_path: Path) -> None:
    path = experts(tmp_path / "law", ["mlp.up"], [(8, 5)])
    base = write_base(tmp_path / "base", {"q.weight": (4, 4), "moe.experts.0.w1.weight": (8, 5)})
    with pytest.raises(AdapterError) as caught:
        place_modules(base, read_adapter(path))
    assert "lacks 1 of 2 tensors" in str(caught.value)
    assert "hold each expert apart (moe.experts.0.w1.weight)" in str(caught.value)
    assert str(caught.value).count("mlp.up") == 1


# --- what the base lacks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "advice"),
    [
        ("model.", "", "--rename =model."),
        ("model.", "base.model.", "--rename base.="),
        ("model.", "language_model.", "--rename language_model.=model."),
        ("", "language_model.", "--rename language_model.="),
    ],
)
def test_another_prefix_is_recognised_and_mapped_on_request(
    tmp_path: Path, old: str, new: str, advice: str
) -> None:
    moved = {new + module.removeprefix(old): shape for module, shape in Q.items()}
    text = refused(tmp_path, moved)
    assert text.endswith(f"they are there but for the prefix: {advice}")
    assert "lacks 2 of 2 tensors" in text
    left, _, right = advice.removeprefix("--rename ").partition("=")
    _, placed = place_modules(
        read_checkpoint(tmp_path / "base"), read_adapter(tmp_path / "law").rename({left: right})
    )
    assert [*placed] == [f"{module}.weight" for module in Q]


@pytest.mark.parametrize(
    ("modules", "text"),
    [
        (
            {**Q, "model.layers.2.q": (6, 4)},
            "lacks 1 of 3 tensors .*: model.layers.2.q.weight; is it the",
        ),
        (
            {"model.layers.9.v": (3, 4)},
            "lacks 1 of 1 tensors .*: model.layers.9.v.weight; is it the base",
        ),
        ({"layers.0.q": (6, 4), "layers.9.v": (3, 4)}, "lacks 2 of 2 tensors .*; is it the base"),
        ({"model.layers.0.q": (6, 5)}, r"q\.weight: is \(6, 4\), but the update of .* is \(6, 5\)"),
        ({**Q, "lm_head": (5, 4)}, "lm_head.weight; its output layer is tied to the embeddings"),
        ({"embed": (5, 4), "model.layers.1.v": (3, 4)}, "is it the base model of this adapter"),
    ],
)
def test_what_is_not_in_the_base_is_refused_by_name(
    tmp_path: Path, modules: dict[str, tuple[int, int]], text: str
) -> None:
    assert re.search(text, refused(tmp_path, modules))


def test_no_prefix_is_advised_that_makes_two_modules_one(tmp_path: Path) -> None:
    text = refused(tmp_path, {"a.q": (6, 4), "b.q": (6, 4)}, {"b.q.weight": (6, 4)})
    assert text.endswith("a.q.weight; is it the base model of this adapter?")


def test_integers_take_no_update(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", {"q.weight": (3, 4)}, torch.int8)
    with pytest.raises(AdapterError, match=r"q\.weight: is stored as torch\.int8: expected a float"):
        place_modules(base, read_adapter(write_adapter(tmp_path / "law", {"q": (3, 4)})))
