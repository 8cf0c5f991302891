"""Advice: what, for whom, by which command; copies and outliers are in no merge."""

from __future__ import annotations

from typing import Any

import pytest

from riemerge.records.collection_record import Cluster, CollectedAdapter, CopyGroup, Outlier, Repetition
from riemerge.study.collection.advice import MOST_STRANGERS, advise_on


def adapter(name: str, **facts: Any) -> CollectedAdapter:
    known: dict[str, Any] = {
        "sha256": {},
        "base_model": None,
        "dtype": "float32",
        "norm": 1.0,
        "ranks": (8,),
        "numerical_rank": 8.0,
        "stable_rank": 2.0,
        "missing": (),
        "cluster": 0,
        "mean_cosine": 0.01,
    }
    return CollectedAdapter(name=name, **(known | facts))


def cluster(label: int, kind: Any, members: tuple[str, ...], determined: Any = None) -> Cluster:
    return Cluster(
        label=label,
        kind=kind,
        members=members,
        medoid=members[0],
        cosine=0.5,
        cosine_outside=0.0,
        silhouette=0.1,
        overlap_left=0.5,
        overlap_right=0.5,
        determined=determined,
        judged=(),
    )


@pytest.mark.parametrize(
    ("determined", "method"), [("yes", "geomerge"), ("open", "average"), (None, "average")]
)
def test_a_family_is_merged_by_what_determines_it_without_copies_and_outliers(
    determined: str | None, method: str
) -> None:
    members = ("a", "a b", "c", "d")
    adapters = [adapter(name) for name in members]
    adapters[1] = adapter("a b", ranks=(4,), missing=("q",))
    again = Repetition(name="c", likeness="scaled", factor=2.0, distance=0.001, rounding=0.001)
    outlier = Outlier(name="d", measure="norm", value=30.0, usual=1.0, score=12.0)
    advice = advise_on(
        adapters,
        [CopyGroup(kept="a", repetitions=(again,))],
        [cluster(0, "family", members, determined)],
        [outlier],
    )
    assert [one.action for one in advice] == ["drop", method, "leave out"]
    assert [one.adapters for one in advice] == [("c",), ("a", "a b"), ("d",)]
    rank = " --rank 4" * (method == "geomerge")
    expected = f"riemerge merge a 'a b' -o family-0 --method {method} --missing zero{rank}"
    assert advice[1].command == expected
    assert (advice[0].value, advice[1].value, advice[2].value) == (0.001, 0.5, 12.0)
    assert advice[0].text == "keep a, drop c (2.00 times its dW)"


@pytest.mark.parametrize("count", [1, 3, MOST_STRANGERS + 1])
def test_strangers_are_kept_apart_or_merged_by_the_default_if_they_are_few(count: int) -> None:
    names = [f"x{place}" for place in range(count)]
    advice = advise_on(
        [adapter(name) for name in names],
        [],
        [cluster(k, "alone", (name,)) for k, name in enumerate(names)],
        [],
    )
    assert [one.action for one in advice] == ["default"] * (count > 1)
    assert all(bool(one.command) == (count <= MOST_STRANGERS) for one in advice)
    assert all(one.value == pytest.approx(0.01) for one in advice)
