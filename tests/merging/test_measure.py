"""What a record says of norms and distances, against dense computation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from riemerge.methods import METHODS
from tests.folders import SHAPES, family, merge_adapters, write_family
from tests.merging.merges import (
    CHECKPOINT_ROWS,
    DELTA_ROWS,
    DELTA_WEIGHTS,
    ONE,
    RECORD,
    TENSOR_SHAPES,
    World,
    dense,
    density_of,
    differences,
    matrices,
    merge,
    merge_delta,
    merged,
    needs,
)


def test_the_record_measures_what_a_dense_computation_does(tmp_path: Path) -> None:
    adapters = family("mix", 3)
    result = merge_adapters(write_family(tmp_path, adapters), [3, 2, 1])
    squares = []
    for row in result.record.modules:
        w = merged(result)[row.module]
        inputs = [dense(one)[row.module] for one in adapters]
        assert row.norm == pytest.approx(np.linalg.norm(w))
        assert row.input_norms == pytest.approx([np.linalg.norm(x) for x in inputs])
        distances = [np.linalg.norm(w - x) for x in inputs]
        squares.append(np.square(distances))
        assert row.relative_distances == pytest.approx(
            [d / np.linalg.norm(x) for d, x in zip(distances, inputs, strict=True)]
        )
        assert row.overlap is not None
        frames = [np.linalg.svd(x) for x in inputs]
        pairs = [(0, 1), (0, 2), (1, 2)]
        left = [np.linalg.norm(frames[i][0][:, :3].T @ frames[j][0][:, :3]) / 3**0.5 for i, j in pairs]
        right = [np.linalg.norm(frames[i][2][:3] @ frames[j][2][:3].T) / 3**0.5 for i, j in pairs]
        assert row.overlap.left == pytest.approx(np.mean(left))
        assert row.overlap.right == pytest.approx(np.mean(right))
        assert row.overlap.left_random == pytest.approx((3 / w.shape[0]) ** 0.5)
        assert row.overlap.right_random == pytest.approx((3 / w.shape[1]) ** 0.5)
        levels = 3 / w.shape[0], 3 / w.shape[1]
        shares = [
            min((c**2 - e) / (1 - e) for c, e in zip(sides, levels, strict=True))
            for sides in zip(left, right, strict=True)
        ]
        assert row.overlap.share == pytest.approx(np.mean(shares))
        angles = [np.sum(inputs[i] * inputs[j]) for i, j in pairs]
        lengths = [np.linalg.norm(inputs[i]) * np.linalg.norm(inputs[j]) for i, j in pairs]
        assert row.overlap.cosine == pytest.approx(np.mean(np.divide(angles, lengths)))
        bases = [(u[:, :3], vt[:3].T) for u, _, vt in frames]
        least = [
            max(
                (np.linalg.svd(bases[i][side].T @ bases[j][side])[1][-1] ** 2 - e) / (1 - e)
                for side, e in enumerate(levels)
            )
            for i, j in pairs
        ]
        assert row.overlap.weakest == pytest.approx(np.mean(least))
    total = result.record.totals
    assert total.norm == pytest.approx(np.sqrt(sum(np.linalg.norm(w) ** 2 for w in merged(result).values())))
    absolute = [
        d * norm for d, norm in zip(total.relative_distances, total.input_norms, strict=True) if d is not None
    ]
    assert absolute == pytest.approx(np.sqrt(np.sum(squares, axis=0)))
    assert total.cost == pytest.approx(sum(row.cost or 0.0 for row in result.record.modules))
    assert total.parameters == sum(b.numel() + a.numel() for b, a in adapters[0].values())


def test_the_record_of_checkpoints_has_the_norms_and_distances(world: World, tmp_path: Path) -> None:
    merge(tmp_path / "out", "ties", world.models, [3.0, 1.0, 1.0], base=world.base, scale=0.5, density=0.5)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    found, base, x = load_file(tmp_path / "out" / ONE), world.tensors[0], differences(world)
    assert [row["name"] for row in record["inputs"]] == ["a", "b", "c"]
    assert [row["module"] for row in record["modules"]] == sorted(TENSOR_SHAPES)
    assert record["totals"]["parameters"] == sum(base[name].numel() for name in TENSOR_SHAPES)
    for row in record["modules"]:
        name = row["module"]
        moved = found[name] - base[name]
        assert tuple(row["shape"]) == TENSOR_SHAPES[name]
        assert row["norm"] == pytest.approx(float(moved.norm()), rel=1e-12)
        assert row["input_norms"] == pytest.approx([float(one.norm()) for one in x[name]], rel=1e-12)
        gaps = [float((moved - one).norm() / one.norm()) for one in x[name]]
        assert row["relative_distances"] == pytest.approx(gaps, rel=1e-12)


@pytest.mark.parametrize("name", DELTA_ROWS)
def test_the_record_has_the_norms_and_distances(tmp_path: Path, name: str) -> None:
    folders = write_family(tmp_path, family("close", 3))
    merge_delta(tmp_path / "out", name, folders[::-1], DELTA_WEIGHTS, scale=0.5, **density_of(name))
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    found = load_file(tmp_path / "out" / ONE)
    assert [row["name"] for row in record["inputs"]] == ["c", "b", "a"]
    assert [row["module"] for row in record["modules"]] == sorted(SHAPES)
    for row in record["modules"]:
        x = [matrices(folder)[row["module"]] for folder in folders[::-1]]
        value = found[row["module"] + ".weight"]
        assert tuple(row["shape"]) == SHAPES[row["module"]]
        assert (row["rank"] is None) == (METHODS[name].domain == "entries")
        assert row["energy_kept"] is None
        assert row["norm"] == pytest.approx(float(value.norm()), rel=1e-12)
        assert row["input_norms"] == pytest.approx([float(one.norm()) for one in x], rel=1e-12)
        gaps = [float((value - one).norm() / one.norm()) for one in x]
        assert row["relative_distances"] == pytest.approx(gaps, rel=1e-7)  # half of the digits


@pytest.mark.parametrize("scale", [0.5, -2.0])
@pytest.mark.parametrize("name", CHECKPOINT_ROWS)
def test_distances_of_a_scaled_checkpoint_are_those_of_a_direct_computation(
    world: World, tmp_path: Path, name: str, scale: float
) -> None:
    written = merge(tmp_path / "out", name, scale=scale, **needs(world, METHODS[name]))
    found, x = load_file(tmp_path / "out" / ONE), differences(world)
    for row in written.record.modules:
        moved = found[row.module] - world.tensors[0][row.module]
        gaps = [float((moved - one).norm() / one.norm()) for one in x[row.module]]
        assert row.relative_distances == pytest.approx(gaps, abs=1e-7)
        assert row.norm == pytest.approx(float(moved.norm()), rel=1e-9)
