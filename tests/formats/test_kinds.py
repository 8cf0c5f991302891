"""What a folder is, by the names of what is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from riemerge.formats.kinds import holds_adapter, is_checkpoint, models_below


@pytest.mark.parametrize(
    ("files", "checkpoint", "below"),
    [
        ([], False, []),
        (["model.safetensors"], True, []),
        (["model.safetensors.index.json"], True, []),
        (["anything.safetensors"], True, []),
        (["pytorch_model.bin"], True, []),
        (["model.gguf"], True, []),
        (["config.json", "README.md"], False, []),
        (["training_args.bin", "optimizer.pt", "rng_state_0.pth"], False, []),
        (["adapter_config.json", "adapter_model.safetensors"], False, []),
        (["adapter_config.json", "model.safetensors"], False, []),
        (["adapter_model.bin"], False, []),
        (["adapter_model-00001-of-00002.safetensors"], False, []),
        (["adapter_model.safetensors.index.json"], False, []),
        (["checkpoint-500/adapter_config.json"], False, ["checkpoint-500"]),
        (["training_args.bin", "b/adapter_model.safetensors", "a/model.safetensors"], False, ["a", "b"]),
        (["x.bin", "style/adapter_config.json"], False, ["style"]),
        (["model.safetensors", "style/adapter_config.json"], True, ["style"]),
        (["model.safetensors", "adapter_model/adapter_config.json"], True, ["adapter_model"]),
        (["statistics.json", "q.safetensors"], False, []),
    ],
)
def test_a_folder_is_what_its_files_are_called(
    tmp_path: Path, files: list[str], checkpoint: bool, below: list[str]
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert is_checkpoint(tmp_path) is checkpoint
    assert models_below(tmp_path) == below
    assert not (checkpoint and holds_adapter(tmp_path))


def test_a_file_is_a_checkpoint_and_nothing_is_none(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    assert is_checkpoint(tmp_path / "x")
    assert not is_checkpoint(tmp_path / "y")
