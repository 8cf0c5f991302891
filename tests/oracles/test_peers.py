"""What the README's table says of PEFT and of us, as laws that are measured here again; and the table itself.

Laws, not figures: a committed figure and a fresh one both have to obey. No second and no MiB decides.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import peers
from tests.helpers import ROOT

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.usefixtures("peft"),
    # PEFT 0.21.2 asks transformers 5 by the old name, and remarks that TIES of density 1 trims nothing.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The density 1.0 is greater than or equal to 1:UserWarning"),
]

RESULT: dict[str, Any] = json.loads(peers.RESULTS.read_text(encoding="utf-8"))
OURS = ("riemerge geomerge", "riemerge average --rank sum", "riemerge average")
FACTORWISE = ("PEFT linear", "PEFT ties")  # merge A and B, each by itself
PEFT_SUMS = ("PEFT cat", "PEFT svd")
MEASURED_HERE = (*OURS, *FACTORWISE, *PEFT_SUMS)

# Factors stored in float32 (6e-8), a gauge of condition 100 loses up to two digits of them, and the mean of
# unrelated adapters some more; whatever is no function of dW is off by its whole size.
ROUNDED = 2e-5
Law = Callable[[float], bool]
T = TypeVar("T")


def exact(value: float) -> bool:
    return value <= ROUNDED


def wrong(value: float) -> bool:
    return value >= 0.3


def near(expected: float) -> Law:
    return lambda value: math.isclose(value, expected, rel_tol=1e-4)


def of(methods: tuple[str, ...], law: T) -> dict[str, T]:
    return dict.fromkeys(methods, law)


# --- gauges -------------------------------------------------------------------------------------------------

GAUGE = of((*OURS, *PEFT_SUMS), exact) | of(FACTORWISE, wrong)


@pytest.mark.parametrize("method", GAUGE)
@pytest.mark.parametrize("kind", ["close", "independent"])
def test_a_merge_moves_with_the_gauge_of_one_input_or_does_not(
    tmp_path: Path, method: str, kind: str
) -> None:
    fresh = peers.gauge_changes(method, peers.tiny_adapters(kind, 2), peers.tiny, tmp_path)
    committed = [x for one in RESULT["laws"][method]["gauge"].values() for x in one.values()]
    assert len(committed) == 6
    assert all(map(GAUGE[method], [*fresh.values(), *committed]))


def test_the_rewritten_adapters_are_the_same_updates_by_other_factors() -> None:
    (one,) = peers.tiny_adapters("independent", 1)
    for condition in (1, 100):
        other = peers.rewritten(one, condition)
        for module, (b, a) in one.items():
            assert torch.allclose(other[module][0] @ other[module][1], b @ a, rtol=0, atol=1e-14)
            gauge = torch.linalg.lstsq(b, other[module][0]).solution
            assert float(torch.linalg.cond(gauge)) == pytest.approx(condition)
            assert float((other[module][0] - b).norm() / b.norm()) > 0.5


# --- copies -------------------------------------------------------------------------------------------------

# Copies of weights wᵢ, Σ wᵢ = 1, merged factor by factor: (Σ √wᵢ)² times the update; TIES divides each factor
# by the number of adapters that agree in sign, which here is all three.
ROOTS = sum(math.sqrt(weight) for weight in (0.5, 0.3, 0.2))
# An rsLoRA result of rank R is read back with √R in place of 1 (its alpha is R).
RSLORA = {
    "PEFT linear": ROOTS**2 * math.sqrt(peers.RANK),
    "PEFT ties": (ROOTS / 3) ** 2 * math.sqrt(peers.RANK),
    "PEFT cat": math.sqrt(3 * peers.RANK),
    "PEFT svd": math.sqrt(peers.RANK),
}
COPIES = of((*OURS, *PEFT_SUMS), exact) | {
    "PEFT linear": near(ROOTS**2 - 1),
    "PEFT ties": near(1 - (ROOTS / 3) ** 2),
}
RSLORA_COPIES = of(OURS, exact) | {method: near(abs(factor - 1)) for method, factor in RSLORA.items()}


@pytest.mark.parametrize("method", COPIES)
def test_copies_of_one_adapter(tmp_path: Path, method: str) -> None:
    assert COPIES[method](peers.copies_error(method, tmp_path))
    assert COPIES[method](RESULT["laws"][method]["copies"])


@pytest.mark.parametrize("method", RSLORA_COPIES)
def test_copies_of_one_rslora_adapter(tmp_path: Path, method: str) -> None:
    assert RSLORA_COPIES[method](peers.copies_error(method, tmp_path, use_rslora=True))
    assert RSLORA_COPIES[method](RESULT["laws"][method]["copies rslora"])


# --- the weighted sum ---------------------------------------------------------------------------------------


def truncation_error() -> float:
    """How near any update of rank RANK comes to the sum of two: Eckart, Young."""
    one, two = peers.tiny_adapters("independent", 2)
    total = {m: (0.6 * one[m][0] @ one[m][1] + 0.4 * two[m][0] @ two[m][1]).numpy() for m in one}
    values = [np.linalg.svd(matrix, compute_uv=False) for matrix in total.values()]
    lost = sum(float((one[peers.RANK :] ** 2).sum()) for one in values)
    return math.sqrt(lost / sum(float((one**2).sum()) for one in values))


BEST = near(truncation_error())
SUM = {
    "riemerge average --rank sum": exact,
    "riemerge average": BEST,
    "PEFT cat": exact,
    "PEFT svd": BEST,
    "PEFT linear": wrong,
}


@pytest.mark.parametrize("method", SUM)
def test_the_sum_of_two_adapters(tmp_path: Path, method: str) -> None:
    assert SUM[method](peers.sum_error(method, tmp_path))
    assert SUM[method](RESULT["laws"][method]["sum"])


def test_only_what_is_no_sum_is_not_measured_as_one() -> None:
    unmeasured = {method for method in MEASURED_HERE if RESULT["laws"][method]["sum"] is None}
    assert unmeasured == set(MEASURED_HERE) - set(SUM)


# --- refusals -----------------------------------------------------------------------------------------------

MERGED = "merged"
OUTCOMES: dict[str, dict[str, str]] = {
    "fine": of(MEASURED_HERE, MERGED),
    "no base": of(OURS, MERGED) | of((*FACTORWISE, *PEFT_SUMS), "RuntimeError"),
    "nan": of(OURS, "AdapterError") | of((*FACTORWISE, "PEFT cat"), MERGED) | {"PEFT svd": "_LinAlgError"},
    "modules": of(OURS, "AdapterError") | of((*FACTORWISE, *PEFT_SUMS), MERGED),
    "ranks": {
        "riemerge geomerge": "AdapterError",
        **of(("riemerge average --rank sum", "riemerge average", *PEFT_SUMS), MERGED),
        **of(FACTORWISE, "ValueError"),
    },
}  # fmt: skip


@pytest.mark.parametrize("case", OUTCOMES)
@pytest.mark.parametrize("method", MEASURED_HERE)
def test_what_is_merged_and_what_is_refused(tmp_path: Path, method: str, case: str) -> None:
    for found in (peers.outcome(method, case, tmp_path), RESULT["laws"][method][case]):
        assert (MERGED if found["merged"] else found["error"]) == OUTCOMES[case][method]
        if not found["merged"]:
            continue
        assert found["finite"] == (case != "nan")
        # Merged without a word about what is wrong: nothing is said that is not said of good adapters, too.
        assert found["warnings"] == RESULT["laws"][method]["fine"]["warnings"]


def test_our_merge_loads_neither_peft_nor_transformers(tmp_path: Path) -> None:
    """So there is no base model that it could need."""
    folders = [peers.write(tmp_path / str(i), one) for i, one in enumerate(peers.tiny_adapters("close", 2))]
    code = (
        "import sys, riemerge; riemerge.merge_adapters(sys.argv[1:3]).save_pretrained(sys.argv[3]);"
        "sys.exit(bool({'peft', 'transformers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, *map(str, folders), str(tmp_path / "out")]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("method", OURS)
def test_our_refusals_name_the_folder_and_the_module(tmp_path: Path, method: str) -> None:
    first, last = peers.SHAPES
    for case, module in (("nan", first), ("modules", last)):
        text = peers.outcome(method, case, tmp_path / case)["text"]
        assert text.startswith("/b: ")
        assert module in text


@pytest.mark.parametrize("method", ["PEFT linear", "PEFT cat", "PEFT svd"])
def test_peft_takes_a_missing_module_for_zero(tmp_path: Path, method: str) -> None:
    one, two = peers.tiny_adapters("independent", 2)
    last, (b, a) = list(one.items())[-1]
    two.pop(last)
    folders = [peers.write(tmp_path / "a", one), peers.write(tmp_path / "b", two)]
    merged = peers.updates(peers.merge(method, folders, [0.6, 0.4], peers.tiny, tmp_path / "out"), peers.tiny)
    assert peers.apart({last: merged[last]}, {last: 0.6 * b @ a}) <= ROUNDED


# --- the measuring itself -----------------------------------------------------------------------------------


def test_the_rulers_catch_a_planted_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that returns its first input, in a gauge of its own and doubled, breaks copies and sum."""

    def planted(name: str, folders: list[Path], weights: object, base: object, out: Path) -> Path:
        factors = load_file(folders[0] / "adapter_model.safetensors")
        names = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in factors}
        pairs = {
            module: tuple(
                2.0 ** (side == "B") * factors[f"base_model.model.{module}.lora_{side}.weight"]
                for side in "BA"
            )
            for module in names
        }
        return peers.write(out, pairs)

    monkeypatch.setitem(peers.TOOLS, "planted", planted)
    assert near(1.0)(peers.copies_error("planted fault", tmp_path / "copies"))
    assert wrong(peers.sum_error("planted fault", tmp_path / "sum"))
    changes = peers.gauge_changes(
        "planted fault", peers.tiny_adapters("close", 2), peers.tiny, tmp_path / "gauge"
    )
    assert all(map(exact, changes.values()))  # twice the first dW is a function of dW
    assert peers.outcome("planted fault", "nan", tmp_path / "nan")["merged"]


# --- the table ----------------------------------------------------------------------------------------------


def test_every_claim_of_the_table_about_peft_and_us_is_tested_here() -> None:
    assert [method for method in RESULT["laws"] if not method.startswith("mergekit")] == list(MEASURED_HERE)
    laws: dict[str, Mapping[str, object]] = {
        "gauge": GAUGE,
        "copies": COPIES,
        "copies rslora": RSLORA_COPIES,
        "sum": SUM,
    }
    laws |= OUTCOMES
    for method in MEASURED_HERE:
        measured = {key for key, value in RESULT["laws"][method].items() if value is not None}
        assert measured == {key for key, tested in laws.items() if method in tested}


def test_the_pages_show_the_tables_of_the_committed_result() -> None:
    for page, marker, expected in (
        ("docs/results.md", "peers", peers.table(RESULT)),
        ("benchmarks/README.md", "peers costs", peers.costs(RESULT)),
    ):
        text = (ROOT / page).read_text(encoding="utf-8")
        _, found, rest = text.partition(f"<!-- {marker} -->\n")
        shown, end, _ = rest.partition(f"\n<!-- /{marker} -->")
        assert found
        assert end
        assert shown.strip() == expected


def test_the_table_is_of_the_result() -> None:
    lines = peers.table(RESULT).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    changed: Mapping[str, Any] = json.loads(json.dumps(RESULT))
    changed["laws"]["PEFT linear"]["copies"] = 0.0
    different = [
        one for one, other in zip(lines, peers.table(changed).splitlines(), strict=True) if one != other
    ]
    assert len(different) == 1
    assert different[0].startswith("| three copies of one adapter")
