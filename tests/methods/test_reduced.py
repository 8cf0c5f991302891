"""Modules of one kind merged side by side, against the same modules one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from riemerge.errors import AdapterError, NumericalError
from riemerge.linalg import SVD
from riemerge.merging.identifiability import overlaps
from riemerge.methods import METHODS, Method, Options, Stack, run_method
from riemerge.methods.cancelling import remainder
from riemerge.methods.method import Domain
from riemerge.methods.setting import Mean, Setting
from riemerge.methods.stack import Merged
from riemerge.updates import Cores, JointSpan, LowRankUpdate
from riemerge.updates.reduction import Kind, Reduction
from tests.fake_cuda import fake_cuda
from tests.methods.spectra import normal

OPTIONS = Options(rank=2, overlaps=overlaps, tol=1e-11, cost_tol=0.0, max_passes=300)
ROWS = ["average", "task_arithmetic", "slerp", "median", "spectrum", "tsv", "karcher", "geomerge"]


def stack(count: int, adapters: int = 3) -> Stack:
    """Modules of updates that are near to each other, all of one kind."""
    modules = {}
    for k in range(count):
        left, right = normal(12, 2, seed=k), normal(2, 10, seed=k + 50)
        modules[f"m{k}"] = tuple(
            LowRankUpdate(left + 0.3 * normal(12, 2, seed=100 * t + k + 1), right, 1.0 + t)
            for t in range(adapters)
        )
    weights = (0.5, 0.3, 0.2)[:adapters]
    names = ("a", "b", "c")[:adapters]
    return Stack(names, modules, lambda _: weights, (torch.float64,) * adapters)


def run(row: Method, given: Stack, options: Options = OPTIONS) -> dict[str, Merged]:
    values = row.defaults
    return dict(run_method(row, replace(given, values=lambda _: values), options))


@pytest.mark.parametrize("name", ROWS)
def test_modules_side_by_side_merge_as_each_by_itself(name: str) -> None:
    """Up to round-off; and what is measured is what the small updates of Householder's way say."""
    row, adapters = METHODS[name], 2 if name == "slerp" else 3
    given = stack(4, adapters)
    together = run(row, given)
    for module, merged in together.items():
        ((_, alone),) = run(row, replace(given, modules={module: given.modules[module]})).items()
        update = merged.update
        assert isinstance(update, LowRankUpdate)
        assert float((update.dense() - alone.update.dense()).norm()) <= 1e-9 * merged.norms[0]
        assert merged.measured is not None
        small, *inputs = JointSpan([update, *given.low_rank(module)]).updates
        measured = merged.measure(1.7)
        assert measured.norm == pytest.approx(1.7 * small.norm())
        assert measured.inputs == pytest.approx([one.norm() for one in inputs])
        apart = [small.times(1.7).distance(one) for one in inputs]
        assert measured.distances == pytest.approx(apart, rel=1e-7)
        left = remainder(inputs, measured.inputs, given.weights(module), given.storage)
        assert merged.measured.left == pytest.approx(left)
        assert merged.measured.rank == update.rank
        assert merged.measured.overlap.share == pytest.approx(alone.measured.overlap.share)  # type: ignore[union-attr]


def test_copies_are_at_no_distance_whatever_the_scale() -> None:
    given = stack(2)
    modules = {name: (given.low_rank(name)[0],) * 3 for name in given.modules}
    for merged in run(METHODS["average"], replace(given, modules=modules)).values():
        for scale in (1.0, 1.0 + 1e-15):
            assert max(merged.measure(scale).distances) <= 1e-12 * merged.norms[0]


@pytest.mark.parametrize("name", ["average", "slerp", "spectrum", "tsv"])
def test_a_device_is_waited_for_by_the_batch(name: str) -> None:
    """What is small goes to the CPU together, and again where factors depend on each other, as all A here."""
    most = 2
    given = stack(6, 2 if name == "slerp" else 3)
    expected = run(METHODS[name], given)
    with fake_cuda() as traffic:
        there = {
            module: tuple(one.to(device="cuda") for one in given.low_rank(module)) for module in given.modules
        }
        found = run(METHODS[name], replace(given, modules=there))
        assert traffic.synchronisations <= most, traffic.operations
        for module, merged in found.items():
            update = merged.update
            assert isinstance(update, LowRankUpdate)
            assert update.device.type == "cuda"
            gap = update.to(device="cpu").dense() - expected[module].update.dense()
            assert float(gap.norm()) <= 1e-12 * merged.norms[0]
            merged.measure(2.0)
        clones = 2 * len(found)  # of this test
        assert traffic.synchronisations <= most + clones, traffic.operations


def test_what_was_reduced_serves_another_merge_of_the_same_inputs() -> None:
    given = stack(4)
    kept: dict[tuple[str, ...], Reduction] = {}
    first = replace(given, kept=kept)
    run(METHODS["average"], first)
    assert list(kept) == [("m0", "m1", "m2", "m3")]

    class Closed(dict[str, tuple[LowRankUpdate, ...]]):
        def __getitem__(self, module: str) -> tuple[LowRankUpdate, ...]:
            raise AssertionError(f"{module} is read again")

        def __iter__(self) -> Iterator[str]:
            return iter(given.modules)

    (kind,) = {reduction.kind for reduction in kept.values()}
    closed = replace(first, modules=Closed(), kinds=lambda _: kind, weights=lambda _: (0.2, 0.0, 0.8))
    found = run(METHODS["spectrum"], closed, replace(OPTIONS, later=True))
    expected = run(METHODS["spectrum"], replace(given, weights=lambda _: (0.2, 0.0, 0.8)))
    for module, merged in found.items():
        assert merged.norms == expected[module].norms
        with pytest.raises(AssertionError, match="read again"):
            merged.lift()


def test_a_module_without_an_answer_leaves_the_others_alone() -> None:
    """Also one that cannot be read, and one in which nothing counts."""
    given = stack(5)
    modules = {name: given.low_rank(name) for name in given.modules}
    first = given.low_rank("m1")[0]
    modules["m1"] = (first, first.times(-2.0), first)

    class Faulty(dict[str, tuple[LowRankUpdate, ...]]):
        def __getitem__(self, module: str) -> tuple[LowRankUpdate, ...]:
            if module == "m3":
                raise AdapterError(["a file has changed"])
            return super().__getitem__(module)

    told = Kind.of(given.low_rank("m0"))
    broken = replace(given, modules=Faulty(modules), kinds=lambda _: told)
    with pytest.raises(NumericalError, match="m1") as fault:
        run(METHODS["karcher"], replace(broken, modules=modules))
    assert len(fault.value.problems) == 1
    with pytest.raises(AdapterError, match="m3: a file has changed"):
        run(METHODS["average"], broken)
    weights = {"m2": (0.0, 0.0, 0.0)}
    with pytest.raises(NumericalError, match="m2: every weight is 0"):
        run(METHODS["average"], replace(given, weights=lambda name: weights.get(name, (0.5, 0.3, 0.2))))
    weights = {"m4": (1e308, 1e308, 1e308)}
    with pytest.raises(NumericalError, match="m4: the merged update is not finite") as fault:
        run(
            METHODS["task_arithmetic"],
            replace(given, weights=lambda name: weights.get(name, (0.5, 0.3, 0.2))),
        )
    assert len(fault.value.problems) == 1


def refuse(x: Cores, settings: Sequence[Setting]) -> NoReturn:
    raise NumericalError("one of them has no answer")


def test_where_modules_have_no_answer_together_each_is_asked_by_itself() -> None:
    row = replace(METHODS["spectrum"], together=f"{__name__}:refuse")
    found, expected = run(row, stack(3)), run(METHODS["spectrum"], stack(3))
    for module, merged in found.items():
        assert merged.norms[0] == pytest.approx(expected[module].norms[0])


def test_time_falls_to_modules_that_are_merged_side_by_side() -> None:
    assert METHODS["spectrum"].together
    seconds = {merged.evidence.seconds for merged in run(METHODS["spectrum"], stack(3)).values()}
    assert len(seconds) == 1
    assert min(seconds) > 0.0


def too_many(x: Tensor, at: Setting) -> Tensor:
    return torch.ones(len(at.weights) + 1, dtype=torch.float64)


def too_short(x: Tensor, at: Setting) -> Tensor:
    return x[0, :-1]


def too_narrow(x: Cores, at: Setting) -> SVD:
    left, values, right = x.svds
    return SVD(left, values, right[:-1])


def number(x: Cores, at: Setting) -> Tensor:
    return x.norms.sum()


def one_for_all(x: Cores, settings: Sequence[Setting]) -> Tensor:
    return x.svds.left[0]


@pytest.mark.parametrize(
    ("domain", "mean", "found", "expected"),
    [
        ("gram", too_many, r"\(4,\)", r"\(3,\)"),
        ("span", too_short, r"\(5, 6\)", r"\(6, 6\)"),
        ("cores", too_narrow, r"\(6, 5\)", r"\(6, 6\)"),
        ("cores", number, r"\(\)", r"\(6, 6\)"),
        ("entries", too_short, r"\(11, 10\)", r"\(12, 10\)"),
        ("half", too_short, r"\(5, 10\)", r"\(6, 10\)"),
    ],
)
def test_an_answer_of_another_shape_is_refused_by_name(
    domain: Domain, mean: Mean, found: str, expected: str
) -> None:
    row = Method("own", "", "", domain=domain, mean=f"{__name__}:{mean.__name__}")  # type: ignore[attr-defined]
    with pytest.raises(NumericalError, match=f"m1: the row answers with {found}; .* {expected}") as fault:
        run(row, stack(2))
    assert len(fault.value.problems) == 2
    together = replace(METHODS["spectrum"], together=f"{__name__}:one_for_all")
    with pytest.raises(NumericalError, match=r"m1: the row answers with \(6, 6\); .* \(2, 6, 6\)"):
        run(together, stack(2))


def test_overlaps_are_measured_once_for_each_reduction() -> None:
    """Also where other updates count in some modules, which then are merged apart."""
    measured: list[Reduction] = []

    def measure(reduction: Reduction, storage: Sequence[torch.dtype]) -> Sequence[Any]:
        measured.append(reduction)
        return overlaps(reduction, storage)

    weights = {"m1": (0.5, 0.0, 0.5), "m2": (0.0, 0.5, 0.5)}
    given = replace(stack(4), weights=lambda name: weights.get(name, (0.5, 0.3, 0.2)), kept={})
    first, second = (run(METHODS["average"], given, replace(OPTIONS, overlaps=measure)) for _ in range(2))
    assert len(measured) == 2
    assert measured[0] is measured[1]
    for module, merged in first.items():
        (expected,) = overlaps(Reduction.of(given.low_rank(module), (12, 10)), given.storage)
        assert expected is not None
        for found in (merged, second[module]):
            assert found.measured is not None
            assert found.measured.overlap.share == pytest.approx(expected.share)
