"""Rows stand where their tokens do; a token that a model lacks has the row of the base, else the mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.checkpoint import Checkpoint, read_checkpoint
from riemerge.formats.checkpoint.embedded import embed, vocabulary_tensors

# base, a, b: tokens in the order of their ids; the last row of b is of no token.
TOKENS = ("xyz", "yxuv", "zuw")
VOCABULARY = {token: i for i, token in enumerate("zyxwvu?")}


def model(folder: Path, rows: int, seed: int, dtype: torch.dtype = torch.float32) -> Checkpoint:
    draw = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, 3),
        "lm_head.weight": (rows, 3),
        "lm_head.bias": (rows,),
        "model.layers.0.mlp.weight": (4, 3),
        "model.norm.weight": (3,),
    }
    folder.mkdir()
    content = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}
    save_file(content, folder / "model.safetensors")
    return read_checkpoint(folder)


@pytest.fixture
def models(tmp_path: Path) -> list[Checkpoint]:
    sizes = (3, 4, 4)
    return [
        model(tmp_path / name, size, seed) for seed, (name, size) in enumerate(zip("0ab", sizes, strict=True))
    ]


def ids(tokens: str) -> Mapping[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def expected(models: list[Checkpoint], name: str, place: int, token: str, *, based: bool) -> Tensor:
    held = {i: one.tensor(name)[TOKENS[i].index(token)] for i, one in enumerate(models) if token in TOKENS[i]}
    if place in held:
        return held[place]
    if based and 0 in held:
        return held[0]
    if not held:
        return torch.zeros_like(models[0].tensor(name)[0])
    return torch.stack([*held.values()]).mean(dim=0)


@pytest.mark.parametrize("based", [True, False])
def test_every_row_is_that_of_its_token(models: list[Checkpoint], based: bool) -> None:
    views = embed(models, [ids(tokens) for tokens in TOKENS], VOCABULARY, based=based)
    for place, view in enumerate(views):
        assert view.sha256 == models[place].sha256
        for name in ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"):
            whole = view.tensor(name)
            assert whole.shape == view.shapes[name] == (7, *models[0].shapes[name][1:])
            for token, row in VOCABULARY.items():
                right = expected(models, name, place, token, based=based)
                torch.testing.assert_close(whole[row], right, rtol=1e-15, atol=0.0)
            runs = [range(5, 7), range(2), range(3, 3)]
            assert torch.equal(view.tensor(name, rows=runs), torch.cat([whole[5:7], whole[:2]]))
        for name in ("model.layers.0.mlp.weight", "model.norm.weight"):
            assert torch.equal(view.tensor(name), models[place].tensor(name))


def test_a_mean_of_rows_is_not_rounded_to_their_dtype(tmp_path: Path) -> None:
    halves = [model(tmp_path / name, 2, seed, torch.bfloat16) for seed, name in enumerate("abc")]
    views = embed(halves, [ids("xy"), ids("xy"), ids("zy")], {"x": 0, "y": 1, "z": 2}, based=False)
    name = "lm_head.weight"
    mean = (halves[0].tensor(name)[0] + halves[1].tensor(name)[0]) / 2
    assert torch.equal(views[2].tensor(name)[0], mean)
    assert not torch.equal(mean, mean.to(torch.bfloat16).double())
    assert views[2].tensor(name, dtype=None).dtype is torch.bfloat16


def test_models_of_one_vocabulary_are_left_alone(models: list[Checkpoint]) -> None:
    same = [ids("wxyz")] * 2
    assert embed(models[1:], same, ids("wxyz"), based=False) == models[1:]
    assert embed(models[1:], same, ids("wxzy"), based=False) != models[1:]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"w": (4, 3)}, "which tensor embeds its tokens is not known by name"),
        ({"wte.weight": (4, 3), "other.embed_tokens.weight": (5, 3)}, "is not known by name"),
        ({"wte.weight": (7, 3), "odd.weight": (3, 7)}, r"odd.weight: has an axis of 7"),
    ],
)
def test_tensors_that_are_not_known_are_refused(
    tmp_path: Path, content: dict[str, tuple[int, ...]], says: str
) -> None:
    save_file({name: torch.ones(shape) for name, shape in content.items()}, tmp_path / "model.safetensors")
    with pytest.raises(AdapterError, match=says):
        vocabulary_tensors(read_checkpoint(tmp_path))


def test_a_head_is_known_by_its_name_and_its_rows(tmp_path: Path) -> None:
    shapes = {
        "wte.weight": (7, 3),
        "decoder.bias": (7,),
        "output.weight": (5, 3),
        "h.0.decoder.weight": (3, 3),
    }
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    assert vocabulary_tensors(read_checkpoint(tmp_path)) == (7, frozenset({"wte.weight", "decoder.bias"}))
