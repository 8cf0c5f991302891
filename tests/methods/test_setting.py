"""What a row sees beside the updates: of those that count only, with seeds that follow their norms."""

from __future__ import annotations

from typing import Any

import torch

from riemerge.frechet.status import Status
from riemerge.methods.setting import Answer, Setting, make_setting


def setting(norms: list[float], used: list[int] | None = None, **changed: Any) -> Setting:
    asked: dict[str, Any] = {"module": "q", "seed": 5, **changed}
    return make_setting(
        asked.pop("module"),
        [0.5, 0.3, 0.2],
        used or [0, 1, 2],
        {"density": (0.1, 0.2, 0.3), "merge_func": "mean"},
        (4, 3),
        norms=norms,
        **asked,
    )


def test_what_does_not_count_is_not_seen() -> None:
    seen = setting([1.0, 2.0], [0, 2], ranks=(3, 1))
    assert seen.places == (0, 2)
    assert seen.weights.tolist() == [0.5, 0.2]
    assert seen.values["density"].tolist() == [0.1, 0.3]
    assert seen.values["merge_func"] == "mean"
    assert (seen.shape, seen.ranks, len(seen.seeds)) == ((4, 3), (3, 1), 2)


def test_seeds_follow_the_norms_and_not_the_order() -> None:
    one, turned = setting([1.0, 3.0, 2.0]), setting([3.0, 2.0, 1.0])
    assert turned.seeds == (one.seeds[1], one.seeds[2], one.seeds[0])
    assert len({*one.seeds}) == 3
    assert not {*one.seeds} & {*setting([1.0, 3.0, 2.0], seed=6).seeds}
    assert not {*one.seeds} & {*setting([1.0, 3.0, 2.0], module="v").seeds}


def test_a_generator_begins_anew() -> None:
    seen = setting([1.0, 3.0, 2.0])
    first, again, other = (torch.rand(3, generator=seen.generator(place)) for place in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_answer_is_right_where_its_status_is() -> None:
    value = torch.zeros(2)
    assert Answer(value, Status.EXACT).ok
    assert not Answer(value, Status.BUDGET).ok
