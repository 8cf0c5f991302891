"""Members: most decide, names and groups do not depend on the order."""

from __future__ import annotations

from pathlib import Path

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
