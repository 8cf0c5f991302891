"""The ranks that modules are written with are one update to every loader, or are warned of."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from riemerge.errors import RecipeError
from riemerge.methods import METHODS
from riemerge.recipes.recipe import make_recipe
from riemerge.records.written_ranks import servers, written_ranks
from tests.folders import SHAPES, family, merge_adapters, write_family
from tests.merging.merges import (
    PREFIX,
    RANKS,
    RECORD,
    TENSORS,
    apart,
    run_command,
    served,
    stored_factors,
)


def by_peft(folder: Path) -> dict[str, Tensor]:
    """The dW of each module by PEFT's rule: alpha and rank of the settings, patterns first."""
    settings = json.loads((folder / "adapter_config.json").read_text())

    def of(pattern: str, module: str, default: float) -> float:
        found = settings.get(pattern) or {}
        return next((v for k, v in found.items() if re.match(rf"(.*\.)?({k})$", module)), default)

    return {
        module: of("alpha_pattern", module, settings["lora_alpha"])
        / of("rank_pattern", module, settings["r"])
        * (b @ a)
        for module, (b, a) in stored_factors(folder).items()
    }


def by_llama(folder: Path) -> dict[str, Tensor]:
    """The dW of each module by the rule of llama.cpp: one alpha over the rank of the stored factors."""
    alpha = json.loads((folder / "adapter_config.json").read_text())["lora_alpha"]
    return {module: alpha / a.shape[0] * (b @ a) for module, (b, a) in stored_factors(folder).items()}


def mean(folders: Sequence[Path]) -> dict[str, Tensor]:
    every = [by_peft(folder) for folder in folders]
    return {module: sum((one[module] for one in every), torch.zeros(())) / len(every) for module in SHAPES}


UNIFORM = [
    ("--rank", "sum"),
    ("--rank", "12"),
    ("--rank", "11"),
    ("--rank", "95%"),
    ("--rank", "60%", "--uniform-rank"),
    ("--rank", "auto"),
    (),
]


@pytest.mark.parametrize("asked", UNIFORM)
def test_one_rank_is_one_update_to_every_loader(tmp_path: Path, asked: tuple[str, ...]) -> None:
    folders = served(tmp_path)
    ran = run_command("merge", *folders, "--method", "average", "-q", "-o", tmp_path / "out", *asked)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert len({a.shape[0] for _, a in stored_factors(tmp_path / "out").values()}) == 1
    assert apart(by_llama(tmp_path / "out"), by_peft(tmp_path / "out")) == 0.0
    if asked[1:] and asked[1] in {"sum", "12", "11"}:
        assert apart(by_peft(tmp_path / "out"), mean(folders)) <= 1e-14  # round-off of float64
        # The sum is 12 in a module of 10 outputs, which has no more.
        rank = {"sum": 10}.get(asked[1]) or int(asked[1])
        assert {a.shape[0] for _, a in stored_factors(tmp_path / "out").values()} == {rank}
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["rank_pattern"] == settings["alpha_pattern"] == {}
    assert settings["r"] == settings["lora_alpha"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ((), "written with rank 6 in every module, by columns of zero where the merge has less"),
        (("--no-uniform-rank",), "written with rank 2 to 6, by module"),
        (("--rank", "9"), "written with rank 9 in every module, by columns of zero where the merge has less"),
        (("--rank", "2"), "written with rank 2 in every module"),
    ],
)
def test_the_rank_that_is_written_is_said(tmp_path: Path, asked: tuple[str, ...], says: str) -> None:
    words = ("--method", "average", "-o", tmp_path / "out", *asked)
    ran = run_command("merge", *served(tmp_path), *words)
    assert ran.exit_code == 0, ran.stderr
    lines = [line.strip() for line in ran.stdout.splitlines()]
    assert any(line.startswith(says) for line in lines)
    card = (tmp_path / "out" / "README.md").read_text()
    assert says in card.splitlines()


@pytest.mark.parametrize("asked", [(), ("--rank", "95%"), ("--rank", "auto"), ("--rank", "60%")])
def test_ranks_that_differ_are_said_with_what_they_do_elsewhere(
    tmp_path: Path, asked: tuple[str, ...]
) -> None:
    folders = served(tmp_path)
    out = tmp_path / "out"
    words = ("--no-uniform-rank", *asked)
    ran = run_command("merge", *folders, "--method", "average", "-q", "-o", out, *words)
    ranks = {module: a.shape[0] for module, (_, a) in stored_factors(out).items()}
    assert len(set(ranks.values())) > 1
    (text,) = json.loads((out / RECORD).read_text())["warnings"]
    assert f"warning: {text}\n" in ran.stderr
    for module, rank in ranks.items():
        strong = max(ranks.values()) / rank
        assert strong == 1 or f"{module}: {strong:.3g} times" in text
        # PEFT's rule is right all the same; llama.cpp's is off by as much as is said.
        one, other = by_llama(out)[module], by_peft(out)[module]
        assert torch.allclose(one, strong * other, rtol=1e-14, atol=0)
    assert "rank_pattern" in text
    assert "llama.cpp" in text


def test_one_rank_in_is_one_rank_out(tmp_path: Path) -> None:
    # A rank above what one module can have: its last columns are zero, in the input and in the merge.
    shapes = SHAPES | {"head": (2, 12)}
    adapters = family("independent", 2, rank=2, shapes=shapes)
    wide = [
        {m: (nn.functional.pad(b, (0, 3)), nn.functional.pad(a, (0, 0, 0, 3))) for m, (b, a) in one.items()}
        for one in adapters
    ]
    folders = write_family(tmp_path, wide, target_modules=["q", "v", "head"])
    result = merge_adapters(folders, method="average")
    result.save_pretrained(tmp_path / "out")
    assert result.record.warnings == ()
    assert {a.shape[0] for _, a in stored_factors(tmp_path / "out").values()} == {5}
    assert load_file(tmp_path / "out" / TENSORS)[f"{PREFIX}head.lora_A.weight"].shape == (
        5,
        12,
    )


@pytest.mark.parametrize(
    "method", [name for name, row in METHODS.items() if row.idempotent and not row.statistics]
)
@pytest.mark.parametrize("uniform", [False, True])
def test_a_merge_of_one_adapter_with_a_pattern_is_that_adapter(
    tmp_path: Path, method: str, uniform: bool
) -> None:
    row = METHODS[method]
    (folder,) = served(tmp_path, 1)
    count = max(row.models[0], 1)
    copies = [folder, *served(tmp_path / "again", 1)][:count]
    parameters: dict[str, Any] = {"outer_lr": 1.0} if "outer_lr" in row.parameters else {}
    weights = [1.0] * count if row.normalised else [1.0 / count] * count
    parameters |= {"uniform_rank": uniform}
    made = merge_adapters(copies, weights, method=method, **parameters)
    made.save_pretrained(tmp_path / "out")
    # Of iterated rows, their tolerance; of closed ones, round-off.
    bound = 1e-7 if {"tol", "cost_tol"} & {*row.parameters} else 1e-13
    assert apart(by_peft(tmp_path / "out"), by_peft(folder)) <= bound
    if uniform:
        assert apart(by_llama(tmp_path / "out"), by_peft(folder)) <= bound
    else:
        ranks = {m: a.shape[0] for m, (_, a) in stored_factors(tmp_path / "out").items()}
        assert ranks == RANKS or method == "cat"


@pytest.mark.oracle
def test_peft_loads_columns_of_zero(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Module(), nn.Module()])
            for module, (m, n) in SHAPES.items():
                parent, _, name = module.rpartition(".")
                setattr(self.get_submodule(parent), name, nn.Linear(n, m, bias=False))

    folders = served(tmp_path)
    merge_adapters(folders, method="average", rank=12).save_pretrained(tmp_path / "out")
    model = peft.PeftModel.from_pretrained(Layers(), tmp_path / "out").double()
    expected = mean(folders)
    for module in SHAPES:
        found = model.get_submodule(PREFIX + module).get_delta_weight("default").detach()
        assert (found - expected[module]).norm() <= 1e-6 * expected[module].norm()  # PEFT keeps float32


def test_a_recipe_says_uniform_rank_as_a_truth_value() -> None:
    recipe: dict[str, Any] = {"merge_method": "average", "models": [{"model": "a"}]}
    for value in (True, False):
        assert make_recipe(recipe | {"uniform_rank": value}).uniform_rank is value
    with pytest.raises(RecipeError, match=r"uniform_rank: .*true or false"):
        make_recipe(recipe | {"uniform_rank": 8})


@pytest.mark.parametrize("rank", [1, 8, 9, 128, 129, 320, 321, 512])
def test_the_limit_of_vllm_is_the_least_that_holds_the_rank(rank: int) -> None:
    accepted = [8, 16, 32, 64, 128, 256, 320, 512]
    (limit,) = map(int, re.findall(r"vLLM: --max-lora-rank (\d+);", servers({"a": rank, "b": 1})))
    assert limit in accepted
    assert rank <= limit
    assert not any(rank <= other < limit for other in accepted)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            ("--rank", "9"),
            "serve with vLLM: --max-lora-rank 16; llama.cpp: right, since all modules have one rank",
        ),
        (("--no-uniform-rank",), "serve with vLLM: --max-lora-rank 8; llama.cpp: no, since ranks differ"),
    ],
)
def test_what_serves_the_result_is_said_in_one_line(
    tmp_path: Path, asked: tuple[str, ...], says: str
) -> None:
    out = tmp_path / "out"
    ran = run_command("merge", *served(tmp_path), "--method", "average", "-o", out, *asked)
    assert any(line.startswith(says) for line in ran.stdout.splitlines())
    card = (out / "README.md").read_text().replace("\\", "")
    assert any(line.startswith(says) for line in card.splitlines())


def test_heads_beside_the_factors_are_not_for_vllm() -> None:
    assert servers({"q": 8}, heads=True).startswith("vLLM: no, it takes no heads")


def test_where_each_module_has_an_alpha_it_keeps_its_rank(tmp_path: Path) -> None:
    record = merge_adapters(served(tmp_path), method="average").record
    kohya = {**record.recipe, "dialect": "kohya"}
    assert written_ranks(kohya, record.modules) == RANKS
    assert {*written_ranks({**kohya, "uniform_rank": True}, record.modules).values()} == {6}
    assert {*written_ranks(record.recipe, record.modules).values()} == {6}
