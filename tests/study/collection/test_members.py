"""Members: most decide, names and groups do not depend on the order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from riemerge.errors import AdapterError
from riemerge.merging.conversion import convert
from riemerge.study.collection.members import group_modules, open_members
from tests.folders import family, write_family, write_folder


def test_most_decide_which_base_and_shape_is_right(tmp_path: Path) -> None:
    (one,) = family("close", 1)
    paths = [write_folder(tmp_path / name, one) for name in "abc"]
    paths.append(write_folder(tmp_path / "d", one, base_model_name_or_path="somebody/else"))
    paths.append(write_folder(tmp_path / "e", one, base_model_name_or_path="/models/base"))
    small = {name: (b[1:], a) for name, (b, a) in one.items()}
    paths.append(write_folder(tmp_path / "f", small))
    for order in (paths, paths[::-1]):
        members = open_members(order)
        assert members.names == ("a", "b", "c", "e")  # a local folder has no owner that could differ
        assert [left.name for left in members.left_out] == ["d", "f"]
        assert len(set(members.digests)) == 2  # equal files are one
        assert len(members.having("layers.0.q")) == 2
    assert open_members(paths, same_base=True).names == ("a", "b", "c", "d", "e")


def test_an_adapter_in_another_dialect_is_left_out_with_the_command(tmp_path: Path) -> None:
    paths = write_family(tmp_path, family("close", 3))
    (other,) = (write_folder(tmp_path / name, one) for name, one in zip("x", family("mix", 1), strict=True))
    convert(other, tmp_path / "mlx", "mlx")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"<html>")
    left = {one.name: one.reasons for one in open_members([*paths, bad, tmp_path / "mlx"]).left_out}
    assert set(left) == {"bad.safetensors", "mlx"}
    assert "riemerge convert mlx NEW --to peft" in left["mlx"][0]


def test_dora_is_left_out_in_one_line_with_the_command(tmp_path: Path) -> None:
    paths = write_family(tmp_path, family("close", 2))
    (one,) = family("mix", 1)
    dora = write_folder(tmp_path / "dora", one, use_dora=True)
    stored = load_file(dora / "adapter_model.safetensors")
    lengths = {
        f"base_model.model.{module}.lora_magnitude_vector": torch.ones(b.shape[0], dtype=b.dtype)
        for module, (b, _) in one.items()
    }
    save_file(stored | lengths, dora / "adapter_model.safetensors")
    (left,) = open_members([*paths, dora]).left_out
    (reason,) = left.reasons
    assert reason.startswith(f"{len(one)} modules of DoRA, whose dW depends on the weights of the base model")
    assert "riemerge merge dora --base BASE -o NEW --rank 95% --to peft" in reason


def test_an_adapter_of_modules_of_its_own_does_not_fit(tmp_path: Path) -> None:
    made = family("close", 4)
    paths = write_family(tmp_path, made[:2])
    alien = write_folder(tmp_path / "alien", {"foo.q": made[2]["layers.0.q"]})
    # Whoever does not fit has nothing to compare with.
    write_folder(tmp_path / "far", {"foo.q": made[3]["layers.0.q"]}, base_model_name_or_path="some/other")
    members = open_members([*paths, alien, tmp_path / "far"])
    reasons = {one.name: one.reasons for one in members.left_out}
    assert "foo.q" not in members.modules
    assert reasons["alien"] == (
        "has no module that any other adapter has: is it for another base model? It has foo.q",
    )
    with pytest.raises(AdapterError, match="0 adapters can be compared: expected at least 2"):
        open_members([paths[0], alien])


def test_who_is_given_twice_is_told_by_which_name_it_counts(tmp_path: Path) -> None:
    paths = write_family(tmp_path, family("close", 2))
    (tmp_path / "link").symlink_to(paths[0])
    (left,) = open_members([*paths, tmp_path / "link"]).left_out
    assert (left.name, left.reasons) == ("link", ("is given twice, first as a: it counts once",))


def test_modules_are_grouped_by_projection_and_layer() -> None:
    groups = group_modules(["layers.1.q", "layers.0.q", "layers.0.mlp.up", "head"])
    assert [(group.name, group.kind, group.layer, len(group.modules)) for group in groups] == [
        ("total", "total", None, 4),
        ("head", "projection", None, 1),
        ("layers.*.mlp.up", "projection", None, 1),
        ("layers.*.q", "projection", None, 2),
        ("layers.0", "depth", 0, 2),
        ("layers.1", "depth", 1, 1),
    ]
