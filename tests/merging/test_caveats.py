"""What a result may be taken for and is not: by other loaders, by another package, by who expects no zero."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from riemerge import merge_adapters
from riemerge.cli.commands import main
from riemerge.errors import NumericalError, RecipeError
from riemerge.merging.verbs import merge_into
from riemerge.methods import METHODS
from riemerge.recipes.recipe import make_recipe
from riemerge.report.method_page import describe
from tests.folders import SHAPES, family, write_family
from tests.helpers import Factors, adapter_family, random_gauge, seeded

PREFIX = "base_model.model."
RANKS = {"layers.0.q": 2, "layers.0.v": 6, "layers.1.q": 2}


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def mixed(count: int = 2) -> list[dict[str, Factors]]:
    """Adapters whose rank differs by module."""
    columns = {
        module: adapter_family("independent", count, m, n, RANKS[module], place)
        for place, (module, (m, n)) in enumerate(SHAPES.items())
    }
    return [{module: column[i] for module, column in columns.items()} for i in range(count)]


def served(root: Path, count: int = 2) -> list[Path]:
    """The same as folders, as PEFT writes them: a rank_pattern, one alpha that scales by module."""
    settings: dict[str, Any] = {"r": 6, "lora_alpha": 12, "rank_pattern": {"q": 2}}
    return write_family(root, mixed(count), **settings)


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
        for module, (b, a) in factors(folder).items()
    }


def by_llama(folder: Path) -> dict[str, Tensor]:
    """The dW of each module by the rule of llama.cpp: one alpha over the rank of the stored factors."""
    alpha = json.loads((folder / "adapter_config.json").read_text())["lora_alpha"]
    return {module: alpha / a.shape[0] * (b @ a) for module, (b, a) in factors(folder).items()}


def factors(folder: Path) -> dict[str, Factors]:
    x = load_file(folder / "adapter_model.safetensors")
    name = PREFIX + "{}.lora_{}.weight"
    return {m: (x[name.format(m, "B")].double(), x[name.format(m, "A")].double()) for m in SHAPES}


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[m] - other[m]).norm() / other[m].norm()) for m in SHAPES)


def mean(folders: Sequence[Path]) -> dict[str, Tensor]:
    every = [by_peft(folder) for folder in folders]
    return {module: sum((one[module] for one in every), torch.zeros(())) / len(every) for module in SHAPES}


# --- ranks --------------------------------------------------------------------------------------------------

UNIFORM = [
    ("--rank", "sum"),
    ("--rank", "12"),
    ("--rank", "11"),
    ("--rank", "95%", "--uniform-rank"),
    ("--uniform-rank",),
]


@pytest.mark.parametrize("asked", UNIFORM)
def test_one_rank_is_one_update_to_every_loader(tmp_path: Path, asked: tuple[str, ...]) -> None:
    folders = served(tmp_path)
    ran = run("merge", *folders, "--method", "average", "-q", "-o", tmp_path / "out", *asked)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert len({a.shape[0] for _, a in factors(tmp_path / "out").values()}) == 1
    assert apart(by_llama(tmp_path / "out"), by_peft(tmp_path / "out")) == 0.0
    if asked[0] == "--rank" and asked[1] != "95%":
        assert apart(by_peft(tmp_path / "out"), mean(folders)) <= 1e-14  # round-off of float64
        # The sum is 12 in a module of 10 outputs, which has no more.
        rank = {"sum": 10}.get(asked[1]) or int(asked[1])
        assert {a.shape[0] for _, a in factors(tmp_path / "out").values()} == {rank}
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["rank_pattern"] == settings["alpha_pattern"] == {}
    assert settings["r"] == settings["lora_alpha"]


@pytest.mark.parametrize("method", ["average", "lowrank"])
def test_a_rank_above_that_of_every_module_is_refused(tmp_path: Path, method: str) -> None:
    folders = served(tmp_path)
    ran = run("merge", *folders, "--method", method, "-o", tmp_path / "out", "--rank", "13")
    assert ran.exit_code == 3
    assert "parameters.rank: 13: no module has a rank above 12: give at most that" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_rank_that_is_stored_may_be_asked_for(tmp_path: Path) -> None:
    """It may be above what dW can have; the inputs have it all the same."""
    modules = {
        module: (torch.ones(m, 14).double(), torch.ones(14, n).double()) for module, (m, n) in SHAPES.items()
    }
    folders = write_family(tmp_path, [modules, modules])
    ran = run("merge", *folders, "--method", "average", "-q", "-o", tmp_path / "out", "--rank", "14")
    assert ran.exit_code == 0, ran.stderr
    assert {a.shape[0] for _, a in factors(tmp_path / "out").values()} == {14}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ((), "written with rank 2 to 6, by module"),
        (("--rank", "9"), "written with rank 9 in every module, by columns of zero where the merge has less"),
        (("--rank", "2"), "written with rank 2 in every module"),
    ],
)
def test_the_rank_that_is_written_is_said(tmp_path: Path, asked: tuple[str, ...], says: str) -> None:
    words = ("--method", "average", "-o", tmp_path / "out", *asked)
    ran = run("merge", *served(tmp_path), *words)
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
    ran = run("merge", *folders, "--method", "average", "-q", "-o", out, *asked)
    ranks = {module: a.shape[0] for module, (_, a) in factors(out).items()}
    assert len(set(ranks.values())) > 1
    (text,) = json.loads((out / "riemerge.json").read_text())["warnings"]
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
    assert {a.shape[0] for _, a in factors(tmp_path / "out").values()} == {5}
    assert load_file(tmp_path / "out" / "adapter_model.safetensors")[f"{PREFIX}head.lora_A.weight"].shape == (
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
    parameters |= {"uniform_rank": True} if uniform else {}
    made = merge_adapters(copies, weights, method=method, **parameters)
    made.save_pretrained(tmp_path / "out")
    # Of iterated rows, their tolerance; of closed ones, round-off.
    bound = 1e-7 if {"tol", "cost_tol"} & {*row.parameters} else 1e-13
    assert apart(by_peft(tmp_path / "out"), by_peft(folder)) <= bound
    if uniform:
        assert apart(by_llama(tmp_path / "out"), by_peft(folder)) <= bound
    else:
        assert {m: a.shape[0] for m, (_, a) in factors(tmp_path / "out").items()} == RANKS or method == "cat"


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


@pytest.mark.parametrize("out_type", ["delta", "checkpoint"])
def test_what_has_no_rank_has_no_uniform_one(tmp_path: Path, out_type: str) -> None:
    folders: Sequence[Path] = write_family(tmp_path, family("close", 2))
    if out_type == "checkpoint":
        folders = [folder / "model.safetensors" for folder in folders]
        for folder in folders:
            save_file({"norm.weight": torch.ones(3)}, folder)
    recipe = {
        "merge_method": "average",
        "models": [{"model": str(one)} for one in folders],
        "uniform_rank": True,
    }
    with pytest.raises(RecipeError, match=r"uniform_rank: .* no rank: leave it out"):
        merge_into(make_recipe(recipe | {"out_type": out_type}), tmp_path / "out")


def test_a_recipe_says_uniform_rank_as_a_truth_value() -> None:
    recipe: dict[str, Any] = {"merge_method": "average", "models": [{"model": "a"}]}
    assert not make_recipe(recipe).uniform_rank
    assert make_recipe(recipe | {"uniform_rank": True}).uniform_rank
    with pytest.raises(RecipeError, match=r"uniform_rank: .*true or false"):
        make_recipe(recipe | {"uniform_rank": 8})


# --- zeros --------------------------------------------------------------------------------------------------

OPPOSED = [name for name, row in METHODS.items() if not row.statistics]


@pytest.mark.parametrize("method", OPPOSED)
def test_no_row_makes_a_zero_of_opposite_updates_without_a_word(tmp_path: Path, method: str) -> None:
    (one,) = family("independent", 1)
    other = {module: (-b, a) for module, (b, a) in one.items()}
    folders = write_family(tmp_path, [one, other])
    problems, zero, texts = "", 0, ()
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


# --- peers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["model_stock", "karcher", "sce", "magmax"])
def test_weights_that_another_package_ignores_are_said(tmp_path: Path, method: str) -> None:
    folders = write_family(tmp_path, family("close", 3))
    text = METHODS[method].differs["weights"]
    assert text in [words for _, words in describe(METHODS[method])]
    for equal in ([1.0, 1.0, 1.0], [0.5, 0.5, 0.0]):
        assert not any(text in one for one in merge_adapters(folders, equal, method=method).record.warnings)
    ran = run(
        *("merge", f"{folders[0]}:2", folders[1], folders[2]),
        *("--method", method, "-q", "-o", tmp_path / "out"),
    )
    assert ran.exit_code == 0
    assert f"warning: {method}: {text}\n" in ran.stderr
    assert f"{method}: {text}" in json.loads((tmp_path / "out" / "riemerge.json").read_text())["warnings"]


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


# --- inputs that cancel to their rounding -------------------------------------------------------------------

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def opposites(root: Path, dtype: torch.dtype, seed: int = 0) -> list[Path]:
    """An update and its opposite, each rounded in a gauge of its own."""
    (one,) = family("independent", 1)
    other = {}
    for place, (module, (b, a)) in enumerate(one.items()):
        gauge = random_gauge(3, 10.0, seeded(seed + place))
        other[module] = (-b @ gauge, torch.linalg.inv(gauge) @ a)
    return write_family(root, [one, other], dtype=dtype)


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
