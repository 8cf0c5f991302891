"""A collection in words: each finding with its number, and nothing of what was not found."""

from __future__ import annotations

import shlex
from typing import get_args

import pytest

from riemerge.records.collection_record import Action, Outlier, Repetition
from riemerge.report.collection_text import (
    ACTIONS,
    advice_lines,
    cluster_columns,
    fold_command,
    kept_energy,
    names_of,
    repetitions,
    show,
    summary,
)
from riemerge.report.words import count
from tests.records.collections import made_collection


def test_a_summary_has_a_line_for_each_finding_with_its_number() -> None:
    assert summary(made_collection()) == [
        "4 adapters of 3 modules compared; rank 3, bfloat16; base model somebody/base",
        "1 copy: law_again of law (the same dW in other factors)",
        "1 pair nearly equal, but no copies: law and med (cosine 0.9970)",
        "clusters: 1 family of related adapters (3 adapters), 1 adapter alone; mean silhouette 0.26",
        "1 outlier: odd (‖dW‖ 30.0, usual 1.10)",
        "common directions a side: 2 keep 50%, 8 keep 100% of the energy of all adapters",
        "1 adapter left out: broken",
    ]


def test_what_was_not_found_has_no_line() -> None:
    record = made_collection()
    empty = {"copies": (), "near": (), "outliers": (), "left_out": ()}
    lines = summary(record.model_copy(update=empty))
    assert [line.split()[0] for line in lines] == ["4", "clusters:", "common"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("copies", "clusters: 1 adapter with copies only"),
        ("strangers", "clusters: 3 adapters unrelated to each other"),
        ("alone", "clusters: 1 adapter alone"),
    ],
)
def test_a_collection_without_a_family_says_what_it_is_made_of(kind: str, text: str) -> None:
    record = made_collection()
    cluster = record.clusters[0].model_copy(update={"kind": kind})
    alone = record.model_copy(update={"clusters": (cluster,), "silhouettes": {}})
    assert [line for line in summary(alone) if line.startswith("clusters")] == [text]


def test_bases_dtypes_and_ranks_that_differ_are_counted() -> None:
    record = made_collection()
    other = {"dtype": "float32", "base_model": None, "ranks": (2, 8)}
    changed = (record.adapters[0].model_copy(update=other), *record.adapters[1:])
    text = summary(record.model_copy(update={"adapters": changed}))[0]
    assert "rank 2 to 8, bfloat16 (3), float32 (1); base model somebody/base (3), not named (1)" in text


def test_an_angle_has_degrees_and_a_multiple_its_factor() -> None:
    record = made_collection()
    unusual = Outlier(name="odd", measure="direction", value=88.2, usual=51.0, score=9.0)
    lines = summary(record.model_copy(update={"outliers": (unusual,)}))
    assert "1 outlier: odd (88° from its nearest, usual 51°)" in lines
    both = record.model_copy(update={"outliers": (unusual, *record.outliers)})
    assert any(line.startswith("1 outlier: odd (88°") and "‖dW‖ 30.0" in line for line in summary(both))
    multiple = Repetition(name="law_again", likeness="scaled", factor=-2.0, distance=0.0, rounding=0.0)
    group = record.copies[0].model_copy(update={"repetitions": (multiple,)})
    found = repetitions(record.model_copy(update={"copies": (group,)}))
    assert found == {"law_again": ("law", "-2.00 times its dW")}


def test_many_names_are_shortened_and_counts_have_their_plural() -> None:
    assert names_of(list("abcde")) == "a, b, c, d and 1 more"
    assert names_of(["a"]) == "a"
    assert [count(number, "copy") for number in (0, 1, 2)] == ["0 copies", "1 copy", "2 copies"]


def test_advice_stands_by_its_kind_with_the_number_that_decided() -> None:
    lines = advice_lines(made_collection())
    assert list(lines) == ["drop copies", "merge by geomerge"]
    assert lines["drop copies"][0][1] == ""
    ((text, command),) = lines["merge by geomerge"]
    assert text.endswith("; mean cosine 0.600")
    assert command.startswith("riemerge merge law med")


def test_every_action_has_its_words() -> None:
    assert set(ACTIONS) == set(get_args(Action))


def test_the_table_of_clusters_leaves_out_single_adapters() -> None:
    columns = dict(cluster_columns(made_collection()))
    assert columns["medoid"] == ["law"]
    assert columns["adapters"] == [3]
    assert [show(value) for value in (0.123456, 3, "x", None)] == ["0.123", "3", "x", ""]


def test_where_no_directions_keep_half_the_most_are_named() -> None:
    record = made_collection()
    rows = (record.kept[0].model_copy(update={"kept": (0.1, 0.2, 0.3, 0.4)}), *record.kept[1:])
    assert kept_energy(record.model_copy(update={"kept": rows})) == (
        "common directions a side: 8 keep 40% of the energy of all adapters"
    )


def test_a_folded_command_is_the_command() -> None:
    names = [f"an adapter/{place}'s" for place in range(12)]
    command = shlex.join(["riemerge", "merge", *names, "-o", "out"])
    lines = fold_command(command)
    assert 1 < len(lines) <= 6
    assert all(len(line) <= 95 for line in lines)
    joined = "\n".join(lines).replace("\\\n", "")
    assert "\n" not in joined
    assert shlex.split(joined) == shlex.split(command)
    assert fold_command("riemerge inspect a") == ["riemerge inspect a"]
    assert fold_command("") == fold_command(command * 9) == []
