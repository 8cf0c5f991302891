"""What a result may be taken for and is not: by another package, by who expects no zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from riemerge.errors import NumericalError
from riemerge.methods import METHODS
from riemerge.report.method_page import describe
from tests.folders import family, merge_adapters, write_family
from tests.helpers import random_gauge, seeded
from tests.merging.merges import (
    RECORD,
    run_command,
)

OPPOSED = [name for name, row in METHODS.items() if not row.statistics]


DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def opposites(root: Path, dtype: torch.dtype, seed: int = 0) -> list[Path]:
    """An update and its opposite, each rounded in a gauge of its own."""
    (one,) = family("independent", 1)
    other = {}
    for place, (module, (b, a)) in enumerate(one.items()):
        gauge = random_gauge(3, 10.0, seeded(seed + place))
        other[module] = (-b @ gauge, torch.linalg.inv(gauge) @ a)
    return write_family(root, [one, other], dtype=dtype)


@pytest.mark.parametrize("method", OPPOSED)
def test_no_row_makes_a_zero_of_opposite_updates_without_a_word(tmp_path: Path, method: str) -> None:
    (one,) = family("independent", 1)
    other = {module: (-b, a) for module, (b, a) in one.items()}
    folders = write_family(tmp_path, [one, other])
    problems, zero = "", 0
    texts: tuple[str, ...] = ()
    try:
        record = merge_adapters(folders, method=method).record
    except NumericalError as fault:
        problems = str(fault)
    else:
        # 15 digits cancel in the worst of the rows that add opposite terms.
        zero = sum(row.norm <= 1e-13 * max(row.input_norms) for row in record.modules)
        texts = record.warnings
    assert "layers.0.q" in problems or "scale: matched: the inputs cancel" in problems or not problems
    assert bool(zero) == any(f"the merged update is zero in {zero} of 3" in text for text in texts)


def test_a_scale_of_zero_is_said(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    (text,) = merge_adapters(folders, method="average", scale=0.0).record.warnings
    assert "the merged update is zero in 3 of 3 modules" in text


@pytest.mark.parametrize(
    "method", ["slerp", "nuslerp", "nuslerp_rows", "multislerp", "karcher", "model_stock"]
)
def test_an_update_without_direction_is_said_where_directions_count(tmp_path: Path, method: str) -> None:
    one, other = family("independent", 2)
    other["layers.0.q"] = (0.0 * other["layers.0.q"][0], other["layers.0.q"][1])
    folders = write_family(tmp_path, [one, other])
    texts = merge_adapters(folders, method=method).record.warnings
    assert any("an update is all zero in 1 of 3 modules (layers.0.q)" in text for text in texts)
    assert merge_adapters(folders, method="average").record.warnings == ()


@pytest.mark.parametrize("method", ["model_stock", "karcher", "sce", "magmax"])
def test_weights_that_another_package_ignores_are_said(tmp_path: Path, method: str) -> None:
    folders = write_family(tmp_path, family("close", 3))
    text = METHODS[method].differs["weights"]
    assert text in [words for _, words in describe(METHODS[method])]
    for equal in ([1.0, 1.0, 1.0], [0.5, 0.5, 0.0]):
        assert not any(text in one for one in merge_adapters(folders, equal, method=method).record.warnings)
    ran = run_command(
        *("merge", f"{folders[0]}:2", folders[1], folders[2]),
        *("--method", method, "-q", "-o", tmp_path / "out"),
    )
    assert ran.exit_code == 0
    assert f"warning: {method}: {text}\n" in ran.stderr
    assert f"{method}: {text}" in json.loads((tmp_path / "out" / RECORD).read_text())["warnings"]


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_a_drop_that_is_rescaled_as_elsewhere_needs_no_word(tmp_path: Path, method: str) -> None:
    folders = write_family(tmp_path, family("close", 2))
    text = METHODS[method].differs["rescale"]

    def said(**asked: Any) -> bool:
        return any(text in one for one in merge_adapters(folders, method=method, **asked).record.warnings)

    assert said(density=0.5)
    assert said(density=[0.5, 1.0])
    assert not said()
    assert not said(density=0.5, rescale="norm")


def test_what_differs_is_known_to_be_told() -> None:
    for row in METHODS.values():
        assert {*row.differs} <= {"always", "weights", "rescale"}
        assert "rescale" not in row.differs or row.defaults["rescale"] == "expected"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "method",
    [
        "spectrum",
        "spectrum_matched",
        "power_mean",
        "slerp",
        "nuslerp",
        "nuslerp_rows",
        "multislerp",
        "karcher",
    ],
)
def test_the_rounding_of_opposites_is_not_written_as_an_update(
    tmp_path: Path, method: str, dtype: torch.dtype
) -> None:
    with pytest.raises(NumericalError, match=r"opposite|cancel|more than half of all directions"):
        merge_adapters(opposites(tmp_path, dtype), method=method)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["average", "median", "ties", "magmax"])
def test_what_may_be_rounding_is_said(tmp_path: Path, method: str, dtype: torch.dtype) -> None:
    record = merge_adapters(opposites(tmp_path, dtype), method=method).record
    assert any(text.startswith("the inputs cancel in 3 of 3 modules") for text in record.warnings)
    assert all(row.cancelled for row in record.modules)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["close", "independent"])
@pytest.mark.parametrize("method", ["spectrum", "average", "multislerp"])
def test_inputs_that_do_not_cancel_are_left_alone(
    tmp_path: Path, method: str, kind: str, dtype: torch.dtype
) -> None:
    folders = write_family(tmp_path, family(kind, 6, shapes={"q": (40, 30)}), dtype=dtype)
    record = merge_adapters(folders, method=method).record
    assert not any(row.cancelled for row in record.modules)
    assert not any("cancel" in text for text in record.warnings)


def test_a_factor_that_only_near_cancellation_explains_is_said(tmp_path: Path) -> None:
    (one,) = family("independent", 1)
    other = {module: (-0.999 * b, a) for module, (b, a) in one.items()}
    record = merge_adapters(write_family(tmp_path, [one, other]), method="average", scale="matched").record
    assert any("the inputs nearly cancel" in text for text in record.warnings)
