"""What a run computes of adapters and checkpoints: laws of order, threads, weights and scale; formulas."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from riemerge.errors import AdapterError, NumericalError
from riemerge.formats.adapter import Adapter
from riemerge.formats.dialects import read_adapter
from riemerge.merging.verbs import merge_into
from riemerge.methods import METHODS, engine
from riemerge.progress import Progress
from riemerge.recipes.recipe import make_recipe
from riemerge.statistics import read_statistics
from riemerge.updates.low_rank import LowRankUpdate
from tests.fake_cuda import fake_cuda
from tests.folders import SHAPES, family, merge_adapters, write_family, write_folder
from tests.helpers import random_gauge, seeded
from tests.merging.merges import (
    ADAPTER_ROWS,
    CHECKPOINT_ROWS,
    COUNTED,
    DELTA_ROWS,
    DELTA_WEIGHTS,
    EVERY,
    EVERY_DOMAIN,
    FROZEN,
    MATRICES,
    MEASURED,
    ONE,
    SHARES,
    TAKING,
    TENSOR_SHAPES,
    TENSORS,
    WEIGHTED,
    World,
    adapter_bytes,
    apart,
    checkpoint_bytes,
    dense,
    density_of,
    differences,
    distance,
    merge,
    merge_delta,
    merged,
    needs,
    shares,
    weighted_mean,
    write_checkpoint,
)


def iso_c(x: Tensor, name: str) -> Tensor:
    """Equal singular values; the weighted mean of what is no matrix."""
    if x.ndim != 3:
        return weighted_mean(x)
    u, s, vt = torch.linalg.svd(weighted_mean(x) * sum(SHARES), full_matrices=False)
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


@pytest.mark.parametrize("method", [row for row in ADAPTER_ROWS if METHODS[row].idempotent])
def test_copies_of_one_adapter_merge_to_it(tmp_path: Path, method: str) -> None:
    (one,) = family("independent", 1)
    folders = [write_folder(tmp_path / name, one) for name in ("a", "b", "c")]
    weights = [0.5, 0.3, 0.2]  # they sum to 1, for the method that does not normalise
    result = merge_adapters(folders, weights, method=method)
    # Round-off only: the copies are aligned to each other exactly.
    assert apart(merged(result), dense(one)) <= 1e-10
    assert "hold the same files" in result.record.warnings[0]


@pytest.mark.parametrize(
    "method",
    [
        name
        for name, row in METHODS.items()
        if not (row.statistics or row.ordered or row.models[1]) or name in ADAPTER_ROWS
    ],
)
def test_the_order_of_the_adapters_changes_no_bit(tmp_path: Path, method: str) -> None:
    folders = write_family(tmp_path, family("mix", 3))
    weights = [0.5, 0.3, 0.2]
    first = merge_adapters(folders, weights, method=method)
    other = merge_adapters([folders[i] for i in (2, 0, 1)], [weights[i] for i in (2, 0, 1)], method=method)
    first.save_pretrained(tmp_path / "first")
    other.save_pretrained(tmp_path / "other")
    assert adapter_bytes(tmp_path / "first") == adapter_bytes(tmp_path / "other")
    config = "adapter_config.json"
    assert (tmp_path / "first" / config).read_bytes() == (tmp_path / "other" / config).read_bytes()
    # The record names the inputs in the order they were given in, with what belongs to each.
    assert [row.name for row in other.record.inputs] == ["c", "a", "b"]
    for one, two in zip(first.record.modules, other.record.modules, strict=True):
        assert [one.relative_distances[i] for i in (2, 0, 1)] == list(two.relative_distances)
        assert [one.input_norms[i] for i in (2, 0, 1)] == list(two.input_norms)
        if one.distances is not None:
            assert two.distances is not None
            assert [one.distances[i] for i in (2, 0, 1)] == list(two.distances)


@EVERY_DOMAIN
def test_weight_zero_is_absence(tmp_path: Path, method: str) -> None:
    folders = write_family(tmp_path, family("close", 2))
    without = merge_adapters(folders, [1, 2], method=method)
    with_it = merge_adapters([folders[0], tmp_path / "not there", folders[1]], [1, 0, 2], method=method)
    without.save_pretrained(tmp_path / "without")
    with_it.save_pretrained(tmp_path / "with")
    assert adapter_bytes(tmp_path / "without") == adapter_bytes(tmp_path / "with")
    left_out = with_it.record.inputs[1]
    assert (left_out.name, left_out.share, left_out.sha256) == ("not there", 0.0, None)
    assert with_it.record.warnings == ("not there: its weight is 0: it was left out and not read",)


@EVERY_DOMAIN
def test_the_gauge_of_the_factors_does_not_matter(tmp_path: Path, method: str) -> None:
    adapters = family("close", 3)
    generator = seeded(1)
    turned = [
        {module: (b @ g, torch.linalg.solve(g, a)) for module, (b, a) in one.items() for g in [gauge()]}
        for one in adapters
        for gauge in [lambda: random_gauge(3, 1e3, generator)]
    ]
    plain = merge_adapters(write_family(tmp_path / "plain", adapters), [3, 2, 1], method=method)
    other = merge_adapters(write_family(tmp_path / "turned", turned), [3, 2, 1], method=method)
    assert (
        apart(
            {m: b.numpy() for m, (b, _) in turned[0].items()},
            {m: b.numpy() for m, (b, _) in adapters[0].items()},
        )
        > 1
    )
    # Gauges of condition 1e3 cost three of sixteen digits; the mean of close adapters costs a few more.
    assert apart(merged(other), merged(plain)) <= 1e-8


def test_the_gauge_does_not_matter_to_barely_determined_means_either(tmp_path: Path) -> None:
    generator = seeded(2)
    adapters = family("independent", 3)
    turned = [
        {module: (b @ g, torch.linalg.solve(g, a)) for module, (b, a) in one.items()}
        for one in adapters
        for g in [random_gauge(3, 1e3, generator)]
    ]
    plain = merge_adapters(write_family(tmp_path / "plain", adapters))
    other = merge_adapters(write_family(tmp_path / "turned", turned))
    # Many points have nearly the same cost here, so round-off is carried far: 1e-4 is what can be promised.
    assert apart(merged(other), merged(plain)) <= 1e-4


@EVERY_DOMAIN
def test_the_scale_multiplies_the_merged_update(tmp_path: Path, method: str) -> None:
    folders = write_family(tmp_path, family("close", 2))
    one = merge_adapters(folders, method=method)
    three = merge_adapters(folders, method=method, scale=-3.0)
    assert apart(merged(three), {m: -3.0 * w for m, w in merged(one).items()}) <= 1e-14
    assert three.record.totals.norm == pytest.approx(3 * one.record.totals.norm)
    assert three.record.modules[0].distances == one.record.modules[0].distances


@EVERY_DOMAIN
def test_an_adapter_alone_is_its_own_merge(tmp_path: Path, method: str) -> None:
    (one,) = family("independent", 1)
    result = merge_adapters([write_folder(tmp_path / "a", one)], method=method)
    assert apart(merged(result), dense(one)) <= 1e-12
    assert result.record.totals.determined is None
    assert "nothing to merge it with" in result.record.warnings[0]


def test_float32_factors_give_the_same_mean_to_their_precision(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 3))
    exact = merge_adapters(folders)
    single = merge_adapters(folders, dtype="float32")
    assert {update.dtype for update in single.updates.values()} == {torch.float32}
    assert 0 < apart(merged(single), merged(exact)) <= 1e-5


@EVERY_DOMAIN
def test_a_merge_on_another_device_stays_there_and_is_the_same(tmp_path: Path, method: str) -> None:
    folders = write_family(tmp_path, family("mix", 3))
    here = merge_adapters(folders, method=method)
    with fake_cuda():
        there = merge_adapters(folders, method=method, device="cuda")
        assert {update.device.type for update in there.updates.values()} == {"cuda"}
        there.save_pretrained(tmp_path / "there")
    here.save_pretrained(tmp_path / "here")
    assert there.record.device == "cuda"
    assert adapter_bytes(tmp_path / "there") == adapter_bytes(tmp_path / "here")


@EVERY_DOMAIN
def test_threads_and_the_order_of_the_file_change_no_bit(tmp_path: Path, method: str) -> None:
    # More modules than are solved in one block, of several sizes.
    sizes = list(zip("qvo", SHAPES.values(), strict=True))
    shapes = {f"layers.{i}.{name}": size for i in range(7) for name, size in sizes}
    shapes["narrow"] = (5, 14)
    adapters = family("close", 3, shapes=shapes)
    backward = [dict(reversed(one.items())) for one in adapters]
    options: dict[str, Any] = {"method": method, "rank": 2}
    files = []
    for name, one, threads in (("one", adapters, 1), ("two", adapters, 2), ("back", backward, 3)):
        result = merge_adapters(write_family(tmp_path / name, one), [3, 2, 1], threads=threads, **options)
        result.save_pretrained(tmp_path / f"{name}-out")
        files.append(adapter_bytes(tmp_path / f"{name}-out"))
        assert list(result.updates) == sorted(shapes)
    assert files[0] == files[1] == files[2]


def test_torch_has_one_thread_within_a_merge_and_as_many_as_before_after_it(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        merge_adapters(folders, threads=2, progress=lambda _: seen.append(torch.get_num_threads()))
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_fault_in_a_thread_ends_the_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = write_family(tmp_path, family("close", 2))
    adapter = read_adapter(folders[0])
    with (folders[0] / TENSORS).open("ab") as file:
        file.write(b"more")
    with pytest.raises(AdapterError, match="changed while it was in use"):
        merge_adapters([adapter, folders[1]], threads=2)


def test_no_module_is_kept_while_others_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tall of a batch is dropped before the next but a few is read."""
    monkeypatch.setattr(engine, "_MOST", 1)
    shapes = {f"m{i:02}": (40, 30) for i in range(12)}
    folders = write_family(tmp_path, family("close", 2, shapes=shapes))
    alive: set[int] = set()
    most = 0
    read = Adapter.update

    def counted(self: Adapter, *args: Any, **kwargs: Any) -> LowRankUpdate:
        nonlocal most
        update = read(self, *args, **kwargs)
        alive.add(id(update.B))
        weakref.finalize(update.B, alive.discard, id(update.B))
        most = max(most, len(alive))
        return update

    monkeypatch.setattr(Adapter, "update", counted)
    for method in ADAPTER_ROWS:
        merge_adapters(folders, method=method, threads=1)
    assert 2 <= most <= 4  # of two modules: one is let go when the next has been read


def test_progress_goes_through_every_stage_to_its_end(tmp_path: Path) -> None:
    events: list[Progress] = []
    merge_adapters(write_family(tmp_path, family("close", 2)), progress=events.append)
    for stage in ("read", "merge", "measure"):
        last = [event for event in events if event.stage == stage][-1]
        assert (last.done, last.total) == (3, 3)


@EVERY
def test_neither_order_nor_threads_change_a_bit(
    world: World, usual: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    row = METHODS[name]
    turn = 1 if row.ordered else -1
    said = needs(world, row, range(row.models[1] or 3)[::turn])
    merge(tmp_path / "out", name, weights=shares(row)[::turn], threads=3, **said)
    assert checkpoint_bytes(tmp_path / "out") == checkpoint_bytes(usual(name))
    for tensor in load_file(tmp_path / "out" / ONE).values():
        assert tensor.isfinite().all()


@WEIGHTED
def test_weight_zero_of_a_checkpoint_is_absence(world: World, tmp_path: Path, name: str) -> None:
    row = METHODS[name]
    merge(tmp_path / "with", name, weights=[0.7, 0.0, 0.3], **needs(world, row))
    merge(tmp_path / "without", name, weights=[0.7, 0.3], **needs(world, row, [0, 2]))
    assert checkpoint_bytes(tmp_path / "with") == checkpoint_bytes(tmp_path / "without")


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
    merge(tmp_path / "some", name, weights=[0.7, somewhere, 0.3], scale=1.0, **needs(world, row))
    merge(tmp_path / "all", name, weights=[0.7, 0.5, 0.3], scale=1.0, **needs(world, row))
    merge(tmp_path / "none", name, weights=[0.7, 0.3], scale=1.0, **needs(world, row, [0, 2]))
    some, everywhere, nowhere = (load_file(tmp_path / out / ONE) for out in ("some", "all", "none"))
    # Of tensors that are solved side by side the last bits depend on each other.
    atol = 0.0 if row.solver == "closed_form" else 1e-12
    for tensor in TENSOR_SHAPES:
        expected = (nowhere if "layers.1" in tensor else everywhere)[tensor]
        assert torch.allclose(some[tensor], expected, rtol=0.0, atol=atol)


@EVERY
def test_copies_merge_to_the_one(world: World, tmp_path: Path, name: str) -> None:
    row = METHODS[name]
    weights = shares(row)
    weights = weights if row.ordered else [weight / sum(weights) for weight in weights]
    said = needs(world, row)
    said["models"] = [write_checkpoint(tmp_path / str(i), world.tensors[1]) for i in range(len(weights))]
    said["statistics"] = world.statistics[:1] * len(weights) if row.statistics else ()
    said.pop("density", None)
    merge(tmp_path / "out", name, weights=weights, **said)
    found, size = load_file(tmp_path / "out" / ONE), differences(world, 1)
    moved = distance(found, world.tensors[1], size)
    if row.idempotent:
        assert moved <= 1e-7  # mats stops at a residual of 1e-8
    else:
        assert moved >= 1e-3


@EVERY
def test_the_scale_is_on_the_difference_from_the_base(world: World, tmp_path: Path, name: str) -> None:
    row = METHODS[name]
    for out, scale in (("once", 1.0), ("scaled", -0.5)):
        merge(tmp_path / out, name, weights=shares(row), scale=scale, **needs(world, row))
    once, scaled = (load_file(tmp_path / out / ONE) for out in ("once", "scaled"))
    base, size = world.tensors[0], differences(world)
    expected = {tensor: base[tensor] - 0.5 * (once[tensor] - base[tensor]) for tensor in TENSOR_SHAPES}
    assert distance(scaled, expected, size) <= 1e-14


@pytest.mark.parametrize("name", [name for name in TAKING if METHODS[name].checkpoints == "weights"])
def test_a_base_model_is_where_the_row_has_its_zero(
    world: World, usual: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    row = METHODS[name]
    base, *tuned = world.tensors
    said = needs(world, row, based=False)
    said["models"] = [
        write_checkpoint(
            tmp_path / str(i), {**COUNTED, **{tensor: x[tensor] - base[tensor] for tensor in TENSOR_SHAPES}}
        )
        for i, x in enumerate(tuned[: len(said["models"])])
    ]
    merge(tmp_path / "alone", name, weights=shares(row), **said)
    based, alone = (load_file(out / ONE) for out in (usual(name), tmp_path / "alone"))
    expected = {tensor: base[tensor] + alone[tensor] for tensor in TENSOR_SHAPES}
    assert distance(based, expected, differences(world)) <= (
        1e-7 if "tol" in row.parameters else 1e-13
    )  # sums in another order


@pytest.mark.parametrize(
    "name", [name for name in TAKING if METHODS[name].domain in {"span", "half"} or METHODS[name].statistics]
)
def test_what_a_row_cannot_see_gets_the_weighted_mean(world: World, tmp_path: Path, name: str) -> None:
    row, x = METHODS[name], differences(world)
    merge(tmp_path / "out", name, weights=shares(row), scale=1.0, **needs(world, row))
    found, base = load_file(tmp_path / "out" / ONE), world.tensors[0]
    seen = [f"{module}.weight" for module in MEASURED] if row.statistics else MATRICES
    for tensor in TENSOR_SHAPES:
        moved = (found[tensor] - base[tensor] - weighted_mean(x[tensor])).norm() / x[tensor].norm()
        assert (moved >= 1e-4) if tensor in seen else (moved <= 1e-15)


@pytest.mark.parametrize("name", CHECKPOINT_ROWS)
def test_on_another_device_it_is_the_same(world: World, tmp_path: Path, name: str) -> None:
    said = needs(world, METHODS[name])
    merge(tmp_path / "here", name, **said)
    with fake_cuda():
        there = merge(tmp_path / "there", name, device="cuda", **said)
    assert there.record.device == "cuda"
    assert checkpoint_bytes(tmp_path / "there") == checkpoint_bytes(tmp_path / "here")


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
        write_checkpoint(tmp_path / str(i), frozen[f"models/{i}"], shards if i else 1) for i in (0, *places)
    )
    merge(tmp_path / "out", name, models, weights, base=base if based else None, **said)
    found = load_file(tmp_path / "out" / ONE)
    assert set(found) == set(frozen[name])
    for tensor, expected in frozen[name].items():
        torch.testing.assert_close(found[tensor], expected, rtol=1e-13, atol=1e-13)


def test_a_row_of_the_joint_span_by_its_formula(world: World, tmp_path: Path) -> None:
    merge(tmp_path / "out", "iso_c", world.models, SHARES, base=world.base)
    x = differences(world)
    expected = {name: world.tensors[0][name] + iso_c(one, name) for name, one in x.items()}
    assert distance(load_file(tmp_path / "out" / ONE), expected, x) <= 1e-13


def test_a_row_that_decides_over_all_tensors_by_its_formula(world: World, tmp_path: Path) -> None:
    merge(tmp_path / "out", "ties_original", world.models, base=world.base)
    x = differences(world)
    expected = {name: world.tensors[0][name] + one for name, one in global_ties(x).items()}
    assert distance(load_file(tmp_path / "out" / ONE), expected, x) <= 1e-14


@pytest.mark.parametrize("based", [True, False])
def test_rows_with_statistics_by_their_formulas(world: World, tmp_path: Path, based: bool) -> None:
    base = world.base if based else None
    data = [read_statistics(folder) for folder in world.statistics]
    said: dict[str, Any] = {"base": base, "statistics": world.statistics}
    merge(tmp_path / "regmean", "regmean", world.models, SHARES, **said)
    merge(tmp_path / "fisher", "fisher", world.models, SHARES, normalize_fisher=False, **said)
    merge(tmp_path / "normalised", "fisher", world.models, SHARES, **said)
    of = {out: load_file(tmp_path / out / ONE) for out in ("regmean", "fisher", "normalised")}
    norms = [
        torch.cat([one.of(module)["fisher"].flatten() for module in MEASURED]).norm() + 1e-6 for one in data
    ]
    for module in MEASURED:
        # Both formulas are affine: what the base adds, they subtract again.
        x = [one[f"{module}.weight"] for one in world.tensors[1:]]
        grams = [one.of(module)["gram"] / one.of(module)["tokens"] for one in data]
        grams = [w * (0.9 * g + 0.1 * torch.diag(g.diag())) for w, g in zip(SHARES, grams, strict=True)]
        total = sum(one @ g for one, g in zip(x, grams, strict=True))
        expected = torch.linalg.solve(sum(grams), total, left=False)
        torch.testing.assert_close(of["regmean"][f"{module}.weight"], expected, rtol=1e-10, atol=1e-10)
        for out, sizes in (("fisher", [1.0] * 3), ("normalised", norms)):
            forms = [
                w / size * (one.of(module)["fisher"] + 1e-6)
                for w, size, one in zip(SHARES, sizes, data, strict=True)
            ]
            expected = sum(f * one for f, one in zip(forms, x, strict=True)) / sum(forms)
            torch.testing.assert_close(of[out][f"{module}.weight"], expected, rtol=1e-12, atol=1e-12)


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
    for name in TENSOR_SHAPES:
        average = weighted_mean(x[name], [1.0] * 3)
        factor = 2.0 if name == "layers.1.weight" else 0.5 if "layers" in name else 0.0
        weighted = weighted_mean(x[name], [3.0 if "bias" in name else 1.0, 1.0, 1.0])
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


def test_all_tensors_without_an_answer_are_named_and_nothing_is_written(world: World, tmp_path: Path) -> None:
    first = world.tensors[1]
    names = ("layers.0.weight", "layers.1.weight", "temperature")
    odd = write_checkpoint(tmp_path / "odd", {**first, **{name: -first[name] for name in names}})
    with pytest.raises(NumericalError) as caught:
        merge(tmp_path / "out", "karcher", [world.models[0], odd])
    # A single number has no direction: it gets the mean.
    assert [text.split(":")[0] for text in caught.value.problems] == list(names[:2])
    with pytest.raises(NumericalError) as caught:
        merge(tmp_path / "out", "tsv", world.models[:2], [1.0, -1.0], base=world.base)
    assert [text.split(":")[0] for text in caught.value.problems] == sorted({*TENSOR_SHAPES} - {*MATRICES})
    assert all("the weights add up to 0" in text for text in caught.value.problems)
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


@pytest.mark.parametrize("name", DELTA_ROWS)
def test_neither_order_threads_nor_device_change_a_bit(tmp_path: Path, name: str) -> None:
    folders = write_family(tmp_path / "in", family("close", 3))
    merge_delta(tmp_path / "out", name, folders, DELTA_WEIGHTS, **density_of(name))
    merge_delta(tmp_path / "turned", name, folders[::-1], DELTA_WEIGHTS[::-1], threads=3, **density_of(name))
    with fake_cuda():
        there = merge_delta(
            tmp_path / "there", name, folders, DELTA_WEIGHTS, device="cuda", **density_of(name)
        )
    assert there.record.device == "cuda"
    first, *others = ((tmp_path / out / ONE).read_bytes() for out in ("out", "turned", "there"))
    assert others == [first, first]


@pytest.mark.parametrize("out_type", ["adapter", "delta"])
def test_modules_without_an_answer_are_named_and_nothing_is_written(tmp_path: Path, out_type: str) -> None:
    one, other = family("close", 2)
    for module in ("layers.0.v", "layers.1.q"):
        other[module] = (-one[module][0], one[module][1])
    folders = write_family(tmp_path / "in", [one, other])
    with pytest.raises(NumericalError) as caught:
        merge_delta(tmp_path / "out", "karcher", folders, out_type=out_type, shard_bytes=1)
    assert [text.split(":")[0] for text in caught.value.problems] == ["layers.0.v", "layers.1.q"]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
