"""Full checkpoints, from files to files: every row that takes them, by laws, by formulas and by mergekit."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from riemerge.errors import AdapterError, NumericalError, RecipeError
from riemerge.merging.sinks import Written
from riemerge.merging.verbs import merge_into
from riemerge.methods import METHODS, Method
from riemerge.recipes.recipe import make_recipe
from riemerge.statistics import collect_statistics, read_statistics
from tests.fake_cuda import fake_cuda
from tests.folders import family, write_folder
from tests.helpers import ROOT, seeded

F64 = torch.float64
ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
FROZEN = ROOT / "tests" / "oracles" / "dense.safetensors"
MATRICES = ("embed.weight", "layers.0.weight", "layers.1.weight")
MEASURED = ("layers.0", "layers.1")
# A matrix without statistics, vectors, a kernel, a number.
SHAPES: dict[str, tuple[int, ...]] = {
    "embed.weight": (9, 6),
    "layers.0.weight": (8, 6),
    "layers.0.bias": (8,),
    "layers.1.weight": (5, 8),
    "layers.1.bias": (5,),
    "conv.weight": (3, 2, 2, 2),
    "temperature": (),
}
COUNTED = {"steps": torch.tensor([3, 1, 4]), "mask": torch.tensor([True, False])}
WEIGHTS = (1.0, 0.6, 0.4)

TAKING = [name for name, row in METHODS.items() if row.checkpoints != "no"]
EVERY = pytest.mark.parametrize("name", TAKING)
WEIGHTED = pytest.mark.parametrize(
    "name", [name for name in TAKING if METHODS[name].models[1] is None and not METHODS[name].ordered]
)
# One of each domain, with and without survey, statistics and draws.
ROWS = (
    "average",
    "karcher",
    "tsv",
    "core_ties",
    "knots_ties",
    "regmean",
    "dare_ties",
    "ties_original",
    "mats",
)


class World(NamedTuple):
    """A base model and what was trained from it, in folders, with statistics of each."""

    base: Path
    models: list[Path]
    statistics: list[Path]
    base_statistics: Path
    tensors: list[dict[str, Tensor]]  # the base's first


def write(folder: Path, tensors: Mapping[str, Tensor], shards: int = 1) -> Path:
    """A checkpoint as transformers writes it."""
    folder.mkdir(parents=True)
    names = list(tensors)
    if shards == 1:
        save_file(dict(tensors), folder / ONE)
    else:
        parts = {f"model-{i + 1:05d}-of-{shards:05d}.safetensors": names[i::shards] for i in range(shards)}
        for place, part in parts.items():
            save_file({name: tensors[name] for name in part}, folder / place)
        placed = {name: place for place, part in parts.items() for name in part}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / "config.json").write_text(json.dumps({"of": folder.name}))
    return folder


def drawn(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """A base model, and `count` that were trained from it: in half of what they changed they agree."""
    draw = seeded(seed)

    def one() -> dict[str, Tensor]:
        # Numbers have two directions only, and not all rows take opposite ones.
        made = {name: torch.randn(shape, generator=draw, dtype=F64) for name, shape in SHAPES.items()}
        return {name: x if x.ndim else x.abs() for name, x in made.items()}

    base, common = one(), one()
    tuned = [{name: base[name] + 0.3 * (common[name] + x) for name, x in one().items()} for _ in range(count)]
    return [{**x, **COUNTED} for x in (base, *tuned)]


def measured(folder: Path, tensors: Mapping[str, Tensor], seed: int) -> Path:
    """Statistics of every kind of a model that has these weights, on data of its own."""
    layers = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
    model = nn.Sequential(OrderedDict(layers=layers)).double()
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    x = torch.randn(20, 6, generator=seeded(seed), dtype=F64)
    y = torch.randint(0, 5, (20,), generator=seeded(seed + 1))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    collect_statistics(model, [(x, y)], loss, folder, dtype=F64)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root, tensors = tmp_path_factory.mktemp("world"), drawn(3)
    base, *models = (write(root / name, x) for name, x in zip("0abc", tensors, strict=True))
    data = [measured(root / f"data {i}", x, 10 * i) for i, x in enumerate(tensors)]
    return World(base, models, data[1:], data[0], tensors)


def merge(
    out: Path,
    method: str,
    models: Sequence[Path],
    weights: Sequence[Any] | None = None,
    *,
    base: Path | None = None,
    statistics: Sequence[Path] = (),
    base_statistics: Path | None = None,
    device: str = "cpu",
    threads: int = 1,
    top: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> Written:
    data: Sequence[Path | None] = statistics or [None] * len(models)
    recipe = make_recipe(
        {
            "merge_method": method,
            "models": [
                {
                    "model": str(model),
                    "parameters": {"weight": weight},
                    "statistics": folder and str(folder),
                }
                for model, weight, folder in zip(models, weights or [1.0] * len(models), data, strict=True)
            ],
            "base_model": base and str(base),
            "base_statistics": base_statistics and str(base_statistics),
            "parameters": parameters,
            **(top or {}),
        }
    )
    return merge_into(recipe, out, device=device, threads=threads)


def asked(
    world: World, row: Method, places: Sequence[int] | None = None, *, based: bool = True
) -> dict[str, Any]:
    """What the row needs, of the models at some places."""
    places = range(row.models[1] or 3) if places is None else places
    return {
        "models": [world.models[i] for i in places],
        "base": world.base if based or row.checkpoints == "updates" else None,
        "statistics": [world.statistics[i] for i in places] if row.statistics else (),
        "base_statistics": world.base_statistics if row.name == "gradient_matching" else None,
        # What makes draws and trimming happen.
        **({"density": 0.5} if "density" in row.parameters else {}),
    }


def shares(row: Method) -> list[float]:
    return [1.0] * (row.models[1] or 3) if row.ordered else list(WEIGHTS[: row.models[1] or 3])


def stored(folder: Path) -> bytes:
    return (folder / ONE).read_bytes()


def apart(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], size: Mapping[str, Tensor]) -> float:
    """The largest distance of any float, relative to the size of what was merged there."""
    return max(float((found[name] - expected[name]).norm() / size[name].norm()) for name in SHAPES)


def differences(world: World, count: int = 3) -> dict[str, Tensor]:
    base, *tuned = world.tensors
    return {name: torch.stack([one[name] - base[name] for one in tuned[:count]]) for name in SHAPES}


def mean(x: Tensor, weights: Sequence[float] = WEIGHTS) -> Tensor:
    return sum((w * one for w, one in zip(weights, x, strict=True)), torch.zeros_like(x[0])) / sum(weights)


# --- laws of every row --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def usual(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where the merge of a row with its usual weights is, each made once."""

    @cache
    def made(name: str) -> Path:
        out = tmp_path_factory.mktemp(name) / "out"
        merge(out, name, weights=shares(METHODS[name]), **asked(world, METHODS[name]))
        return out

    return made


@EVERY
def test_neither_order_nor_threads_change_a_bit(
    world: World, usual: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    row = METHODS[name]
    turn = 1 if row.ordered else -1
    said = asked(world, row, range(row.models[1] or 3)[::turn])
    merge(tmp_path / "out", name, weights=shares(row)[::turn], threads=3, **said)
    assert stored(tmp_path / "out") == stored(usual(name))
    for tensor in load_file(tmp_path / "out" / ONE).values():
        assert tensor.isfinite().all()


@WEIGHTED
def test_weight_zero_is_absence(world: World, tmp_path: Path, name: str) -> None:
    row = METHODS[name]
    merge(tmp_path / "with", name, weights=[0.7, 0.0, 0.3], **asked(world, row))
    merge(tmp_path / "without", name, weights=[0.7, 0.3], **asked(world, row, [0, 2]))
    assert stored(tmp_path / "with") == stored(tmp_path / "without")


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in TAKING
        if METHODS[name].models[1] is None and not METHODS[name].ordered and not METHODS[name].survey
    ],
)
def test_weight_zero_in_some_tensors_is_absence_there(world: World, tmp_path: Path, name: str) -> None:
    row = METHODS[name]
    somewhere = [{"filter": "layers.1", "value": 0.0}, {"value": 0.5}]
    # (At one scale: a matched one would depend on all tensors together.)
    merge(tmp_path / "some", name, weights=[0.7, somewhere, 0.3], scale=1.0, **asked(world, row))
    merge(tmp_path / "all", name, weights=[0.7, 0.5, 0.3], scale=1.0, **asked(world, row))
    merge(tmp_path / "none", name, weights=[0.7, 0.3], scale=1.0, **asked(world, row, [0, 2]))
    some, everywhere, nowhere = (load_file(tmp_path / out / ONE) for out in ("some", "all", "none"))
    for tensor in SHAPES:
        assert torch.equal(some[tensor], (nowhere if "layers.1" in tensor else everywhere)[tensor])


@EVERY
def test_copies_merge_to_the_one(world: World, tmp_path: Path, name: str) -> None:
    row = METHODS[name]
    weights = shares(row)
    weights = weights if row.ordered else [weight / sum(weights) for weight in weights]
    said = asked(world, row)
    said["models"] = [write(tmp_path / str(i), world.tensors[1]) for i in range(len(weights))]
    said["statistics"] = world.statistics[:1] * len(weights) if row.statistics else ()
    said.pop("density", None)
    merge(tmp_path / "out", name, weights=weights, **said)
    found, size = load_file(tmp_path / "out" / ONE), differences(world, 1)
    moved = apart(found, world.tensors[1], size)
    if row.idempotent:
        assert moved <= 1e-7  # mats stops at a residual of 1e-8
    else:
        assert moved >= 1e-3


@EVERY
def test_the_scale_is_on_the_difference_from_the_base(world: World, tmp_path: Path, name: str) -> None:
    row = METHODS[name]
    for out, scale in (("once", 1.0), ("scaled", -0.5)):
        merge(tmp_path / out, name, weights=shares(row), scale=scale, **asked(world, row))
    once, scaled = (load_file(tmp_path / out / ONE) for out in ("once", "scaled"))
    base, size = world.tensors[0], differences(world)
    expected = {tensor: base[tensor] - 0.5 * (once[tensor] - base[tensor]) for tensor in SHAPES}
    assert apart(scaled, expected, size) <= 1e-14


@pytest.mark.parametrize("name", [name for name in TAKING if METHODS[name].checkpoints == "weights"])
def test_a_base_model_is_where_the_row_has_its_zero(
    world: World, usual: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    row = METHODS[name]
    base, *tuned = world.tensors
    said = asked(world, row, based=False)
    said["models"] = [
        write(tmp_path / str(i), {**COUNTED, **{tensor: x[tensor] - base[tensor] for tensor in SHAPES}})
        for i, x in enumerate(tuned[: len(said["models"])])
    ]
    merge(tmp_path / "alone", name, weights=shares(row), **said)
    based, alone = (load_file(out / ONE) for out in (usual(name), tmp_path / "alone"))
    expected = {tensor: base[tensor] + alone[tensor] for tensor in SHAPES}
    assert apart(based, expected, differences(world)) <= (
        1e-7 if "tol" in row.parameters else 1e-13
    )  # sums in another order


@pytest.mark.parametrize(
    "name", [name for name in TAKING if METHODS[name].domain in {"span", "half"} or METHODS[name].statistics]
)
def test_what_a_row_cannot_see_gets_the_weighted_mean(world: World, tmp_path: Path, name: str) -> None:
    row, x = METHODS[name], differences(world)
    merge(tmp_path / "out", name, weights=shares(row), scale=1.0, **asked(world, row))
    found, base = load_file(tmp_path / "out" / ONE), world.tensors[0]
    seen = [f"{module}.weight" for module in MEASURED] if row.statistics else MATRICES
    for tensor in SHAPES:
        moved = (found[tensor] - base[tensor] - mean(x[tensor])).norm() / x[tensor].norm()
        assert (moved >= 1e-4) if tensor in seen else (moved <= 1e-15)


# --- rows by their formulas ---------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "places", "weights", "said", "based"),
    [
        ("average", (1, 2, 3), (0.5, 0.2, 0.3), {}, False),
        ("average", (1, 2, 3), (0.5, 0.2, 0.3), {}, True),
        ("slerp", (1, 2), (1.0, 1.0), {"t": 0.3}, False),
        ("task_arithmetic", (1, 2, 3), (0.5, 0.2, 0.3), {}, True),
        ("ties", (1, 2, 3), (0.5, 0.2, 0.3), {"density": 0.5}, True),
        ("model_stock", (1, 2, 3), (1.0, 1.0, 1.0), {}, True),
    ],
)
@pytest.mark.parametrize("shards", [1, 2])
def test_mergekit_makes_the_same_of_a_state_dict(
    tmp_path: Path,
    name: str,
    places: tuple[int, ...],
    weights: tuple[float, ...],
    said: dict[str, Any],
    based: bool,
    shards: int,
) -> None:
    frozen: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(FROZEN).items():
        of, _, tensor = key.rpartition("/")
        frozen.setdefault(of, {})[tensor] = value
    base, *models = (
        write(tmp_path / str(i), frozen[f"models/{i}"], shards if i else 1) for i in (0, *places)
    )
    merge(tmp_path / "out", name, models, weights, base=base if based else None, **said)
    found = load_file(tmp_path / "out" / ONE)
    assert set(found) == set(frozen[name])
    for tensor, expected in frozen[name].items():
        torch.testing.assert_close(found[tensor], expected, rtol=1e-13, atol=1e-13)


def iso_c(x: Tensor, name: str) -> Tensor:
    """Equal singular values; the weighted mean of what is no matrix."""
    if x.ndim != 3:
        return mean(x)
    u, s, vt = torch.linalg.svd(mean(x) * sum(WEIGHTS), full_matrices=False)
    return s.mean() * u @ vt


def global_ties(x: dict[str, Tensor]) -> dict[str, Tensor]:
    """TIES of each model as one long vector: a fifth of it is kept."""
    long = torch.stack([torch.cat([x[name][t].flatten() for name in sorted(x)]) for t in range(3)])
    keep = int(0.2 * long.shape[1])
    least = long.abs().sort(dim=1, descending=True).values[:, keep - 1 : keep]
    long = torch.where(long.abs() >= least, long, 0.0)
    agreeing = torch.where(long.sign() == long.sum(dim=0).sign(), long, 0.0)
    whole = agreeing.sum(dim=0) / (agreeing != 0).sum(dim=0).clamp(min=1)
    parts = whole.split([x[name][0].numel() for name in sorted(x)])
    return {name: part.view(x[name][0].shape) for name, part in zip(sorted(x), parts, strict=True)}


def test_a_row_of_the_joint_span_by_its_formula(world: World, tmp_path: Path) -> None:
    merge(tmp_path / "out", "iso_c", world.models, WEIGHTS, base=world.base)
    x = differences(world)
    expected = {name: world.tensors[0][name] + iso_c(one, name) for name, one in x.items()}
    assert apart(load_file(tmp_path / "out" / ONE), expected, x) <= 1e-13


def test_a_row_that_decides_over_all_tensors_by_its_formula(world: World, tmp_path: Path) -> None:
    merge(tmp_path / "out", "ties_original", world.models, base=world.base)
    x = differences(world)
    expected = {name: world.tensors[0][name] + one for name, one in global_ties(x).items()}
    assert apart(load_file(tmp_path / "out" / ONE), expected, x) <= 1e-14


@pytest.mark.parametrize("based", [True, False])
def test_rows_with_statistics_by_their_formulas(world: World, tmp_path: Path, based: bool) -> None:
    base = world.base if based else None
    data = [read_statistics(folder) for folder in world.statistics]
    said = {"base": base, "statistics": world.statistics}
    merge(tmp_path / "regmean", "regmean", world.models, WEIGHTS, **said)
    merge(tmp_path / "fisher", "fisher", world.models, WEIGHTS, normalize_fisher=False, **said)
    merge(tmp_path / "normalised", "fisher", world.models, WEIGHTS, **said)
    of = {out: load_file(tmp_path / out / ONE) for out in ("regmean", "fisher", "normalised")}
    norms = [
        torch.cat([one.of(module)["fisher"].flatten() for module in MEASURED]).norm() + 1e-6 for one in data
    ]
    for module in MEASURED:
        # Both formulas are affine: what the base adds, they subtract again.
        x = [one[f"{module}.weight"] for one in world.tensors[1:]]
        grams = [one.of(module)["gram"] / one.of(module)["tokens"] for one in data]
        grams = [w * (0.9 * g + 0.1 * torch.diag(g.diag())) for w, g in zip(WEIGHTS, grams, strict=True)]
        total = sum(one @ g for one, g in zip(x, grams, strict=True))
        expected = torch.linalg.solve(sum(grams), total, left=False)  # type: ignore[call-overload]
        torch.testing.assert_close(of["regmean"][f"{module}.weight"], expected, rtol=1e-10, atol=1e-10)
        for out, sizes in (("fisher", [1.0] * 3), ("normalised", norms)):
            forms = [
                w / size * (one.of(module)["fisher"] + 1e-6)
                for w, size, one in zip(WEIGHTS, sizes, data, strict=True)
            ]
            expected = sum(f * one for f, one in zip(forms, x, strict=True)) / sum(forms)
            torch.testing.assert_close(of[out][f"{module}.weight"], expected, rtol=1e-12, atol=1e-12)


# --- what a recipe says of some tensors ---------------------------------------------------------------------


def test_filters_and_gradients_reach_their_tensors(world: World, tmp_path: Path) -> None:
    x, base = differences(world), world.tensors[0]
    filters = [
        {"filter": "layers.1.weight", "value": 2.0},
        {"filter": "layers", "value": 0.5},
        {"value": 0.0},
    ]
    merge(tmp_path / "filters", "average", world.models, base=world.base, scale=filters)
    merge(tmp_path / "depth", "average", world.models, base=world.base, scale=[0.25, 3.0])
    own = [{"filter": "bias", "value": 3.0}, {"value": 1.0}]
    merge(tmp_path / "weight", "average", world.models, [own, 1.0, 1.0], base=world.base)
    by = {out: load_file(tmp_path / out / ONE) for out in ("filters", "depth", "weight")}
    for name in SHAPES:
        average = mean(x[name], [1.0] * 3)
        factor = 2.0 if name == "layers.1.weight" else 0.5 if "layers" in name else 0.0
        weighted = mean(x[name], [3.0 if "bias" in name else 1.0, 1.0, 1.0])
        depth = 3.0 if "layers.1" in name else 0.25
        for out, expected in (
            ("filters", factor * average),
            ("depth", depth * average),
            ("weight", weighted),
        ):
            torch.testing.assert_close(by[out][name] - base[name], expected, rtol=1e-13, atol=1e-14)


def test_each_model_may_have_a_density_of_its_own(world: World, tmp_path: Path) -> None:
    recipe = {
        "merge_method": "magnitude_prune",
        "models": [
            {"model": str(world.models[0]), "parameters": {"density": 1e-6}},
            {"model": str(world.models[1]), "parameters": {"density": [1e-6, 1.0]}},
        ],
        "base_model": str(world.base),
    }
    merge_into(make_recipe(recipe), tmp_path / "out")
    found, base = load_file(tmp_path / "out" / ONE), world.tensors[0]
    for name, x in differences(world).items():
        largest = [torch.where(one.abs() == one.abs().max(), one, 0.0) for one in x]  # one entry at least
        expected = largest[0] + (x[1] if "layers.1" in name else largest[1])
        torch.testing.assert_close(found[name] - base[name], expected, rtol=1e-13, atol=1e-14)


# --- files, dtypes, devices, records ------------------------------------------------------------------------


def test_files_are_laid_out_as_they_like(world: World, tmp_path: Path) -> None:
    one, other = world.tensors[1:3]
    whole = merge(tmp_path / "whole", "average", world.models[:2], base=world.base)
    sharded = [write(tmp_path / "a", one, 3), write(tmp_path / "b", other, 2)]
    merge(tmp_path / "sharded", "average", sharded, base=world.base)
    merge(tmp_path / "files", "average", [path / ONE for path in world.models[:2]], base=world.base / ONE)
    # Of two models the sum does not depend on the order, which follows from the bytes of the files.
    assert stored(tmp_path / "sharded") == stored(tmp_path / "files") == stored(tmp_path / "whole")
    assert json.loads((tmp_path / "sharded" / "config.json").read_text()) == {"of": "0"}
    assert not (tmp_path / "files" / "config.json").exists()
    assert whole.rounding == 0.0
    pieces = tmp_path / "pieces"
    recipe = make_recipe({"merge_method": "average", "models": [{"model": str(sharded[0])}]})
    merge_into(recipe, pieces, shard_bytes=100)
    placed = json.loads((pieces / INDEX).read_text())["weight_map"]
    assert set(placed) == {*one}
    assert len(set(placed.values())) > 3
    for name, place in placed.items():
        assert torch.equal(load_file(pieces / place)[name], one[name])
    assert json.loads((pieces / "config.json").read_text()) == {"of": "a"}


def test_the_widest_dtype_is_written_or_the_one_asked_for(world: World, tmp_path: Path) -> None:
    dtypes = (torch.bfloat16, torch.float32, torch.bfloat16)
    models = [
        write(tmp_path / str(i), {name: x.to(dtype) if name in SHAPES else x for name, x in one.items()})
        for i, (one, dtype) in enumerate(zip(world.tensors[1:], dtypes, strict=True))
    ]
    for out, order in (("one", models), ("other", models[::-1]), ("narrow", models[::2])):
        merge(tmp_path / out, "average", order)
    asked = merge(tmp_path / "asked", "average", models, top={"out_dtype": "float16"})
    found = {out: load_file(tmp_path / out / ONE) for out in ("one", "other", "narrow", "asked")}
    assert stored(tmp_path / "other") == stored(tmp_path / "one")
    for out, dtype in (("one", torch.float32), ("narrow", torch.bfloat16), ("asked", torch.float16)):
        assert {found[out][name].dtype for name in SHAPES} == {dtype}
        assert found[out]["steps"].dtype is torch.int64
    exact = {
        name: mean(torch.stack([load_file(path / ONE)[name].double() for path in models]), [1.0] * 3)
        for name in SHAPES
    }
    moved = apart({name: found["asked"][name].double() for name in SHAPES}, exact, exact)
    assert asked.rounding == pytest.approx(moved, rel=1e-9)
    assert 0 < moved <= torch.finfo(torch.float16).eps


@pytest.mark.parametrize("name", ROWS)
def test_on_another_device_it_is_the_same(world: World, tmp_path: Path, name: str) -> None:
    said = asked(world, METHODS[name])
    merge(tmp_path / "here", name, **said)
    with fake_cuda():
        there = merge(tmp_path / "there", name, device="cuda", **said)
    assert there.record.device == "cuda"
    assert stored(tmp_path / "there") == stored(tmp_path / "here")


def test_the_record_has_the_norms_and_distances(world: World, tmp_path: Path) -> None:
    merge(tmp_path / "out", "ties", world.models, [3.0, 1.0, 1.0], base=world.base, scale=0.5, density=0.5)
    record = json.loads((tmp_path / "out" / "riemerge.json").read_text())
    found, base, x = load_file(tmp_path / "out" / ONE), world.tensors[0], differences(world)
    assert [row["name"] for row in record["inputs"]] == ["a", "b", "c"]
    assert [row["module"] for row in record["modules"]] == sorted(SHAPES)
    assert record["totals"]["parameters"] == sum(base[name].numel() for name in SHAPES)
    for row in record["modules"]:
        name = row["module"]
        moved = found[name] - base[name]
        assert tuple(row["shape"]) == SHAPES[name]
        assert row["norm"] == pytest.approx(float(moved.norm()), rel=1e-12)
        assert row["input_norms"] == pytest.approx([float(one.norm()) for one in x[name]], rel=1e-12)
        gaps = [float((moved - one).norm() / one.norm()) for one in x[name]]
        assert row["relative_distances"] == pytest.approx(gaps, rel=1e-12)


# --- refusals -----------------------------------------------------------------------------------------------


def changed(world: World, folder: Path, **tensors: Tensor | None) -> Path:
    """The second model with other tensors in place of some of its own."""
    named = {name.replace("__", "."): x for name, x in tensors.items()}
    kept = {name: x for name, x in {**world.tensors[2], **named}.items() if x is not None}
    return write(folder, kept)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"steps": torch.tensor([3, 1, 5])}, ["steps: holds torch.int64 that differ"]),
        ({"mask": torch.tensor([True, True])}, ["mask: holds torch.bool that differ"]),
        ({"steps": torch.tensor([3, 1, 4], dtype=torch.int32)}, ["steps: the dtype differs"]),
        ({"layers__0__bias": torch.zeros(9, dtype=F64)}, ["layers.0.bias: the shape differs", "9 in"]),
        ({"layers__0__bias": None}, ["lacks 1 of 9 tensors", "layers.0.bias"]),
        ({"more": torch.zeros(1)}, ["lacks 1 of 10 tensors", "more"]),
        ({"conv__weight": torch.full((3, 2, 2, 2), torch.nan, dtype=F64)}, ["conv.weight", "NaN"]),
    ],
)
@pytest.mark.parametrize("name", ["average", "ties_original"])
def test_models_that_do_not_fit_are_named_and_nothing_is_written(
    world: World, tmp_path: Path, name: str, tensors: dict[str, Tensor], says: list[str]
) -> None:
    odd = changed(world, tmp_path / "odd", **tensors)
    with pytest.raises(AdapterError) as caught:
        merge(tmp_path / "out", name, [world.models[0], odd], base=world.base)
    assert all(text in str(caught.value) for text in says)
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


def test_requests_that_make_no_sense_for_checkpoints(world: World, tmp_path: Path) -> None:
    (factors,) = family("close", 1)
    adapter = write_folder(tmp_path / "adapter", factors)
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("task_arithmetic", {}, "base_model: missing: task_arithmetic merges what each model changed"),
        ("tsv", {}, "base_model: missing"),
        ("cat", {"base": world.base}, "merge_method: cat merges adapters only"),
        ("geomerge", {}, "merge_method: geomerge merges adapters only"),
        ("average", {"scale": 0.5}, "parameters.scale: scales the merged update, which needs base_model"),
        ("average", {"rank": 4, "base": world.base}, "parameters.rank: full checkpoints are not cut"),
        (
            "average",
            {"top": {"out_type": "delta"}},
            "out_type: delta: full checkpoints merge to a checkpoint",
        ),
        ("average", {"top": {"out_type": "adapter"}}, "out_type: adapter: full checkpoints"),
        (
            "average",
            {"models": [world.models[0], adapter]},
            f"{world.models[0]}: full checkpoints, the others",
        ),
        ("average", {"base": world.models[1]}, "is the base_model itself"),
        ("ties", {"base": world.models[1]}, "is the base_model itself"),
        ("regmean", {}, "no statistics: regmean needs those of every model"),
    ]
    for method, said, says in cases:
        with pytest.raises(RecipeError) as caught:
            merge(tmp_path / "out", method, **{"models": world.models[:2], **said})
        assert says in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_statistics_of_another_model_are_refused(world: World, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(6, 8)).double()
    batch = torch.randn(4, 6, generator=seeded(0), dtype=F64)
    collect_statistics(
        module, [batch], lambda model, x: model(x).sum(dim=1), tmp_path / "data", kinds=["gram"]
    )
    with pytest.raises(AdapterError, match="none of them a weight of"):
        merge(tmp_path / "out", "regmean", world.models[:2], statistics=[tmp_path / "data"] * 2)
    with pytest.raises(AdapterError, match="has no statistics of 2 of 2 modules"):
        merge(
            tmp_path / "out", "regmean", world.models[:2], statistics=[world.statistics[0], tmp_path / "data"]
        )
    assert not (tmp_path / "out").exists()


def test_all_tensors_without_an_answer_are_named_and_nothing_is_written(world: World, tmp_path: Path) -> None:
    first = world.tensors[1]
    names = ("layers.0.weight", "layers.1.weight", "temperature")
    odd = write(tmp_path / "odd", {**first, **{name: -first[name] for name in names}})
    with pytest.raises(NumericalError) as caught:
        merge(tmp_path / "out", "karcher", [world.models[0], odd])
    # A single number has no direction: it gets the mean.
    assert [text.split(":")[0] for text in caught.value.problems] == list(names[:2])
    with pytest.raises(NumericalError) as caught:
        merge(tmp_path / "out", "tsv", world.models[:2], [1.0, -1.0], base=world.base)
    assert [text.split(":")[0] for text in caught.value.problems] == sorted({*SHAPES} - {*MATRICES})
    assert all("the weights add up to 0" in text for text in caught.value.problems)
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]
