"""Real adapters of other people: each merges in some way that makes sense, or the refusal names the way."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import Tensor

from riemerge.cli.commands import main

PREFIX = "base_model.model."
AGNEWS = ("roberta-base-agnews/checkpoint-500", "roberta-base-agnews/checkpoint-1200")
PORTUGUESE = ("roberta-base-portuguese/checkpoint-1000", "roberta-base-portuguese/checkpoint-6000")
CONVNEXT = ("convnext-tiny-mountain/train", "convnext-tiny-mountain/v1-binary")
FILTER, CALM, SKIN = "privacy-filter-zh", "open-calm-1b-rank1", "sd15-unet-skin"
TASKS = ("mnli", "qnli", "rte", "rte-scratch", "scitail", "sick", "snli")
NLI = tuple(f"nli-minilm/{task}" for task in TASKS)
OWN_INIT = tuple(f"nli-minilm-own-init/{task}" for task in TASKS if not task.startswith("rte"))

# Adapters, and the options with which they merge; an adapter alone where there is no other of its base.
MERGES: list[tuple[tuple[str, ...], str]] = [
    *((some, "") for some in (NLI[:3], NLI[3:], OWN_INIT[:2], OWN_INIT[2:])),
    ((CALM,), ""),
    ((SKIN,), ""),
    (CONVNEXT, ""),
    *((pair, f"--heads {way}") for pair in (AGNEWS, PORTUGUESE, (FILTER,)) for way in ("drop", "average")),
    # Of two authors: four labels and five, other ranks and modules.
    ((AGNEWS[1], PORTUGUESE[1]), "--heads drop --missing zero"),
    ((AGNEWS[1], PORTUGUESE[1]), "--heads drop --missing skip"),
    ((*AGNEWS, *PORTUGUESE), "--heads from=roberta-base-agnews/checkpoint-1200 --missing zero"),
]


@pytest.fixture(scope="module")
def real(shared_data: Path) -> Path:
    """The folder of real adapters."""
    return shared_data / "adapters"


class Factors(NamedTuple):
    """dW of one module by PEFT's rule: B with the scale in it, and A."""

    left: Tensor
    right: Tensor


def factors(folder: Path) -> dict[str, Factors]:
    """The updates in a folder, of settings without patterns of rank and alpha."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not any(config[name] for name in ("rank_pattern", "alpha_pattern", "use_rslora"))
    stored = load_file(folder / "adapter_model.safetensors")
    modules = [key.removesuffix(".lora_A.weight") for key in stored if key.endswith(".lora_A.weight")]
    scale = config["lora_alpha"] / config["r"]
    return {
        module.removeprefix(PREFIX): Factors(
            scale * stored[f"{module}.lora_B.weight"].double(), stored[f"{module}.lora_A.weight"].double()
        )
        for module in modules
    }


def norm(terms: Sequence[tuple[float, Factors]]) -> float:
    """The norm of a sum of multiples, from products of its factors: good to eight digits of the terms."""
    left = torch.cat([share * one.left for share, one in terms], dim=1)
    right = torch.cat([one.right for _, one in terms])
    square = float(((left.mT @ left) * (right @ right.mT)).sum())
    return math.sqrt(max(square, 0.0))


def run(root: Path, names: tuple[str, ...], options: str, out: Path) -> Result:
    words = ["merge", *(str(root / name) for name in names), *options.split(), "-o", str(out), "-q"]
    words += ["--method", "average", "--rank", "sum", "--out-dtype", "float32"]
    return CliRunner().invoke(main, words)


def check_mean(found: dict[str, Factors], given: Sequence[dict[str, Factors]], *, skip: bool) -> None:
    """Check the plain mean of what was given, where all of it is counted or only what there is."""
    assert set(found) == {module for one in given for module in one}
    for module, merged in found.items():
        there = [one[module] for one in given if module in one]
        share = 1 / (len(there) if skip else len(given))
        size = max(norm([(1.0, one)]) for one in there)
        assert norm([(1.0, merged), *((-share, one) for one in there)]) <= 1e-6 * size, module


@pytest.mark.parametrize(("names", "options"), MERGES, ids=[f"{names[0]} {way}" for names, way in MERGES])
def test_real_adapters_merge_exactly(
    real: Path, tmp_path: Path, names: tuple[str, ...], options: str
) -> None:
    ran = run(real, names, options, tmp_path / "out")
    assert ran.exit_code == 0, ran.output
    given = [factors(real / name) for name in names]
    check_mean(factors(tmp_path / "out"), given, skip="skip" in options)


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        (AGNEWS, "", ["--heads"]),
        ((FILTER,), "", ["--heads"]),
        ((AGNEWS[0], PORTUGUESE[0]), "--heads drop", ["lacks 12 of 36", "--missing zero", "--missing skip"]),
        ((AGNEWS[0], PORTUGUESE[0]), "--heads average --missing zero", ["classifier.out_proj", "from="]),
    ],
)
def test_a_refusal_names_the_option_that_merges(
    real: Path, tmp_path: Path, names: tuple[str, ...], options: str, says: list[str]
) -> None:
    ran = run(real, names, options, tmp_path / "out")
    assert ran.exit_code in {3, 4}
    assert [word for word in says if word not in ran.output] == []


def test_every_real_adapter_is_merged_by_some_command(real: Path) -> None:
    there = {str(file.parent.relative_to(real)) for file in real.rglob("adapter_config.json")}
    assert there == {name for names, _ in MERGES for name in names}


def test_what_is_not_the_mean_is_seen(real: Path) -> None:
    given = [factors(real / name) for name in CONVNEXT]
    mean = {
        module: Factors(
            torch.cat([one[module].left for one in given], dim=1) / 2,
            torch.cat([one[module].right for one in given]),
        )
        for module in given[0]
    }
    check_mean(mean, given, skip=False)
    first, one = next(iter(mean.items()))
    with pytest.raises(AssertionError, match=first):
        check_mean({**mean, first: Factors(1.00001 * one.left, one.right)}, given, skip=False)
