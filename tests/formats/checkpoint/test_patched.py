"""A checkpoint with an adapter in it: values, names, composition, refusals. PEFT is asked elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from riemerge.errors import AdapterError, NumericalError
from riemerge.formats.adapter import Adapter
from riemerge.formats.checkpoint import Checkpoint, patch, read_checkpoint, read_patched
from riemerge.formats.dialects import read_adapter
from riemerge.formats.files.tensor_file import open_tensors
from tests.folders import write_folder
from tests.helpers import Factors, seeded

SHAPES = {"model.layers.0.q": (6, 4), "model.layers.0.v": (3, 4), "model.layers.1.q": (6, 4)}


def factors(seed: int, shapes: dict[str, tuple[int, int]] = SHAPES) -> dict[str, Factors]:
    draw = seeded(seed)
    return {
        module: (
            torch.randn(m, 2, generator=draw, dtype=torch.float64),
            torch.randn(2, n, generator=draw, dtype=torch.float64),
        )
        for module, (m, n) in shapes.items()
    }


def weights(dtype: torch.dtype, *, turned: bool = False) -> dict[str, Tensor]:
    draw = seeded(7)
    shapes = {**SHAPES, "model.layers.1.v": (3, 4), "model.embed": (5, 4)}
    tensors = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}
    return {
        **{f"{name}.weight": (x.mT if turned else x).contiguous() for name, x in tensors.items()},
        "model.layers.0.q.bias": torch.ones(6, dtype=dtype),
        "position_ids": torch.arange(5),
    }


def base(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_each_weight_has_its_update_rounded_once(tmp_path: Path, dtype: torch.dtype, turned: bool) -> None:
    tensors, modules = weights(dtype, turned=turned), factors(0)
    path = base(tmp_path / "base", tensors)
    adapter = write_folder(
        tmp_path / "law", modules, dtype=torch.float32, lora_alpha=3, fan_in_fan_out=turned
    )
    view, stored = read_patched(path, adapter), read_checkpoint(path)
    assert (view.names, view.shapes, view.dtypes) == (stored.names, stored.shapes, stored.dtypes)
    for name in view.names:
        whole = view.tensor(name, dtype=None)
        rows = view.tensor(name, dtype=None, rows=[range(2, len(whole)), range(1)])
        assert torch.equal(rows, torch.cat([whole[2:], whole[:1]]))
    assert view.other_files == (path / "config.json",)
    for name, tensor in tensors.items():
        merged = view.tensor(name, dtype=None)
        assert merged.dtype == tensor.dtype
        if name.removesuffix(".weight") not in modules:
            assert torch.equal(merged, tensor)
            assert view.source(name) == path / "model.safetensors"
            continue
        b, a = (factor.float().double() for factor in modules[name.removesuffix(".weight")])
        delta = 1.5 * b @ a
        exact = tensor.double() + (delta.mT if turned else delta)
        # One rounding to the dtype of the weight, after a few in float32.
        unit, few = torch.finfo(dtype).eps / 2, 8 * torch.finfo(torch.float32).eps * (dtype != torch.float64)
        sizes = tensor.double().abs() + delta.abs().max()
        assert ((merged.double() - exact).abs() <= (unit * exact.abs() + (few + 1e-15) * sizes)).all()
        assert torch.equal(view.tensor(name), merged.double())
        assert view.source(name) == view.path


def test_a_view_of_a_view_adds_both(tmp_path: Path) -> None:
    tensors = weights(torch.float64)
    path = base(tmp_path / "base", tensors)
    one = read_adapter(write_folder(tmp_path / "one", factors(1)))
    two = read_adapter(write_folder(tmp_path / "two", factors(2)))
    view: Checkpoint = patch(patch(read_checkpoint(path), one), two)
    assert view.name == "base+one+two"
    for module in SHAPES:
        both = tensors[f"{module}.weight"] + one.update(module).dense() + two.update(module).dense()
        torch.testing.assert_close(view.tensor(f"{module}.weight"), both, rtol=1e-14, atol=1e-14)
    assert {*view.sha256} == {
        "model.safetensors",
        *(
            f"{name}/adapter_{file}"
            for name in ("one", "two")
            for file in ("config.json", "model.safetensors")
        ),
    }


def test_views_of_one_base_are_told_apart(tmp_path: Path) -> None:
    path = base(tmp_path / "base", weights(torch.float32))
    one, two = (write_folder(tmp_path / run / "law", factors(1)) for run in "xy")
    assert read_patched(path, one).path != read_patched(path, two).path


def with_saved(adapter: Path, file: Path, **kinds: dict[str, Tensor]) -> Adapter:
    """An adapter with whole tensors beside its factors."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({**tensors, **{name: x for kind in kinds.values() for name, x in kind.items()}}, file)
    opened = open_tensors(file)
    entries = {kind: {name: opened.entries[name] for name in saved} for kind, saved in kinds.items()}
    return replace(read_adapter(adapter), _tensors=opened, **entries)  # type: ignore[arg-type]


def test_tensors_saved_whole_stand_in_place_of_those_of_the_base(tmp_path: Path) -> None:
    path = base(tmp_path / "base", weights(torch.bfloat16))
    folder = write_folder(tmp_path / "law", factors(0))
    saved = {"model.embed.weight": torch.full((5, 4), 1 / 3), "score.weight": torch.full((2, 4), 2 / 3)}
    kept = {"model.layers.1.v.weight": weights(torch.bfloat16)["model.layers.1.v.weight"].float()}
    adapter = with_saved(folder, tmp_path / "file.safetensors", saved=saved, base_weights=kept)
    view, plain = patch(read_checkpoint(path), adapter), read_patched(path, folder)
    assert view.names == tuple(sorted([*plain.names, "score.weight"]))
    for name in view.names:
        expected = saved[name].bfloat16() if name in saved else plain.tensor(name, dtype=None)
        assert torch.equal(view.tensor(name, dtype=None), expected)
        assert view.dtypes[name] == expected.dtype
    other = {"model.layers.1.v.weight": torch.zeros(3, 4)}
    view = patch(
        read_checkpoint(path), with_saved(folder, tmp_path / "other.safetensors", base_weights=other)
    )
    with pytest.raises(AdapterError, match="was saved with other values than"):
        view.tensor("model.layers.1.v.weight")
    wide = {"model.embed.weight": torch.zeros(6, 4)}
    for kind in ("saved", "base_weights"):
        adapter = with_saved(folder, tmp_path / f"{kind}.safetensors", **{kind: wide})
        with pytest.raises(AdapterError, match=r"embed\.weight: is \(5, 4\), but .* saved it as \(6, 4\)"):
            patch(read_checkpoint(path), adapter)


def test_two_modules_of_one_name_are_refused(tmp_path: Path) -> None:
    path = base(tmp_path / "base", weights(torch.float32))
    adapter = write_folder(tmp_path / "law", factors(0))
    with pytest.raises(AdapterError, match=r"both become model\.layers\.0\.q"):
        read_patched(path, adapter, {"model.layers.1": "model.layers.0"})


def test_a_sum_that_the_dtype_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = base(tmp_path / "base", {"q.weight": torch.full((3, 4), 65000.0, dtype=torch.float16)})
    modules = {"q": (torch.full((3, 1), 100.0), torch.full((1, 4), 100.0))}
    view = read_patched(path, write_folder(tmp_path / "law", modules))
    with pytest.raises(NumericalError, match=r"q\.weight: reaches 7\.5e\+04 but .* choose a wider dtype"):
        view.tensor("q.weight")


def test_rows_of_trained_tokens_take_the_place_of_those_of_the_embedding(tmp_path: Path) -> None:
    path, folder = base(tmp_path / "base", weights(torch.bfloat16)), write_folder(tmp_path / "a", factors(1))
    name = "model.embed.token_adapter.trainable_tokens_delta"
    adapter = with_saved(folder, tmp_path / "rows.safetensors", saved={name: torch.full((2, 4), 1 / 3)})
    for said in ([3, 0], {"embed": [3, 0]}):
        config = adapter.config.model_copy(update={"trainable_token_indices": said})
        view = patch(read_checkpoint(path), replace(adapter, config=config))
        expected = read_checkpoint(path).tensor("model.embed.weight", dtype=None)
        expected[[3, 0]] = torch.full((2, 4), 1 / 3).bfloat16()
        assert torch.equal(view.tensor("model.embed.weight", dtype=None), expected)
        assert name not in view.names
    config = adapter.config.model_copy(update={"trainable_token_indices": [3, 99]})
    with pytest.raises(AdapterError, match=r"rows \[3, 99\] of model.embed.weight"):
        patch(read_checkpoint(path), replace(adapter, config=config))
