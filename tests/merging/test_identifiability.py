"""How far inputs share their subspaces, and what that says of their mean."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch

from riemerge.errors import RecipeError
from riemerge.merging import identifiability
from riemerge.merging.identifiability import FEW, judge_modules, judge_overlap, overlaps
from riemerge.records.run_record import Determined, Overlap
from riemerge.report.verdict import determination
from riemerge.updates import JointSpan, LowRankUpdate
from riemerge.updates.reduction import reduce
from tests.folders import family, merge_adapters, write_family, write_folder
from tests.helpers import seeded
from tests.pairwise_overlap import overlap_of


def test_subspaces_of_different_rank_overlap_by_the_smaller(tmp_path: Path) -> None:
    (wide,) = family("close", 1, rank=4)
    narrow = {module: (b[:, :2], a[:2]) for module, (b, a) in wide.items()}
    found = merge_adapters(write_family(tmp_path, [wide, narrow]), method="average").record.modules[0].overlap
    assert found is not None
    # One lies inside the other; random ones would have a mean square cosine of 4 / n.
    assert [found.left, found.right] == pytest.approx([1.0, 1.0])
    assert [found.left_random, found.right_random] == pytest.approx([(4 / 14) ** 0.5, (4 / 12) ** 0.5])
    assert found.share == pytest.approx(1.0)


def test_random_subspaces_are_at_the_random_level_and_equal_ones_at_one(tmp_path: Path) -> None:
    wide = {"q": (200, 200)}

    def share(name: str) -> tuple[float, str | None]:
        result = merge_adapters(write_family(tmp_path / name, family(name, 4, shapes=wide)), method="average")
        assert result.record.totals.overlap is not None
        return result.record.totals.overlap.share, result.record.totals.determined

    independent, verdict = share("independent")
    assert abs(independent) < 0.02  # sampling error of 12 mean squares of 9 cosines, each near 3 / 200
    assert verdict == "no"
    assert share("close")[1] == "yes"
    # Equal subspaces, but independent cores: the mean is not determined.
    shared, verdict = share("shared_subspace")
    assert shared == pytest.approx(1.0, abs=1e-12)
    assert verdict == "no"
    # The row spaces are shared, the column spaces are not.
    assert share("lora_like")[1] == "no"
    assert 0.2 < share("mix")[0] < 0.5  # one of three directions shared


@pytest.mark.parametrize(
    ("yes", "partly", "no", "unsaid", "together"),
    [
        (9, 1, 0, 0, "yes"),
        (9, 0, 1, 0, "yes"),
        (9, 0, 0, 1, "yes"),
        (8, 1, 1, 0, "partly"),
        (8, 1, 0, 1, "open"),
        (7, 1, 1, 1, "partly"),  # whatever the open one is
        (0, 10, 0, 0, "partly"),
        (1, 0, 9, 0, "no"),
        (0, 1, 5, 4, "open"),
        (0, 2, 8, 0, "partly"),
        (5, 0, 4, 1, "partly"),
        (0, 0, 0, 10, "open"),
        (0, 0, 0, 0, None),
    ],
)
def test_the_modules_answer_together(
    yes: int, partly: int, no: int, unsaid: int, together: str | None
) -> None:
    counts: dict[Determined, int] = {"yes": yes, "partly": partly, "no": no, "open": unsaid}
    answers = [key for key, count in counts.items() for _ in range(count)]
    assert judge_modules([*answers, None]) == together


def test_the_weakest_direction_decides_and_orthogonal_updates_do_not() -> None:
    known = {"left": 0.5, "right": 0.8, "left_random": 0.1, "right_random": 0.1, "share": 0.5}
    for weakest, cosine, expected in (
        (0.9, 0.9, "yes"),
        (0.41, 0.21, "yes"),
        (0.39, 0.9, "open"),
        (0.06, 0.9, "open"),
        (0.04, 0.9, "no"),
        (0.9, 0.19, "open"),
        (0.79, 0.01, "open"),
        (0.81, 0.07, "no"),
        (0.81, 0.09, "open"),
        (0.9, -0.5, "no"),
    ):
        found = Overlap(**known, weakest=weakest, cosine=cosine)
        assert judge_overlap(found) == expected
        assert [judge_overlap(found, spread) for spread in (0.009, 0.05, 0.2)] == ["yes", "partly", "no"]
    assert judge_overlap(None) is None


def test_all_pairs_at_once_are_compared_as_one_by_one() -> None:
    """Of different ranks, with a zero and one below its rank; some pairs at a time, too."""

    def module(seed: int) -> list[LowRankUpdate]:
        draw = seeded(seed)
        updates = [
            LowRankUpdate(torch.randn(40, r, generator=draw), torch.randn(r, 30, generator=draw), 0.5 + r)
            for r in (3, 2, 3, 1)
        ]
        first, second, third, fourth = (update.to(torch.float64) for update in updates)
        flat = LowRankUpdate(first.B[:, [0, 1, 1]], first.A)
        return [first, second.times(0.0) if seed else second, flat, third, fourth]

    modules = [module(0), module(1)]
    storage = [torch.float32] * 5
    expected = [overlap_of(JointSpan(updates).updates, (40, 30), storage) for updates in modules]
    for numbers in (identifiability._NUMBERS, 100):
        with mock.patch.object(identifiability, "_NUMBERS", numbers):
            for found, slow in zip(overlaps(reduce(modules), storage), expected, strict=True):
                assert found is not None
                assert slow is not None
                assert found.model_dump() == pytest.approx(slow.model_dump(), abs=1e-12)
    zeros = [[update.times(0.0) for update in modules[0]]]
    assert overlaps(reduce(zeros), storage) == [None]
    assert overlaps(reduce([modules[0][:1]]), storage[:1]) == [None]


def test_pairs_of_many_adapters_are_compared_on_request(tmp_path: Path) -> None:
    each = family("close", FEW + 1, shapes={"q": (6, 5)})
    folders = [write_folder(tmp_path / f"a{i:02}", one) for i, one in enumerate(each)]
    few, short, full = (
        merge_adapters(some, method="average", report=report).record
        for some, report in ((folders[:-1], "short"), (folders, "short"), (folders, "full"))
    )
    assert [one.totals.overlap is None for one in (few, short, full)] == [False, True, False]
    said, _ = determination(short)
    assert "--report full" in said
    assert "not measured" in said
    assert short.modules[0].relative_distances == full.modules[0].relative_distances
    # A row whose mean may be open measures it unasked.
    solved = merge_adapters(folders, method="geomerge", max_passes=1).record
    assert solved.totals.determined is not None
    with pytest.raises(RecipeError, match="report: 'long' is not known: expected short or full"):
        merge_adapters(folders[:2], report="long")
