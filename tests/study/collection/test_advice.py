"""Advice: what, for whom, by which command; copies and outliers are in no merge."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from riemerge.cli.commands import main
from riemerge.records.collection_record import (
    Cluster,
    CollectedAdapter,
    CopyGroup,
    Opposition,
    Outlier,
    Repetition,
)
from riemerge.study.collection import map_adapters
from riemerge.study.collection.advice import MOST_STRANGERS, advise_on
from tests.folders import family, write_folder
from tests.study.inputs import SHAPES


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
        [],
        torch.eye(4, dtype=torch.float64),
    )
    assert [one.action for one in advice] == ["choose", method, "leave out"]
    assert [one.adapters for one in advice] == [("c",), ("a", "a b"), ("d",)]
    rank = " --rank 4" * (method == "geomerge")
    expected = f"riemerge merge a 'a b' -o family-0 --method {method} --missing zero{rank}"
    assert advice[1].command == expected
    assert (advice[0].value, advice[1].value, advice[2].value) == (0.001, 0.5, 12.0)
    assert advice[0].text.startswith("choose one of a and c (2.00 times its dW)")


@pytest.mark.parametrize("count", [1, 3, MOST_STRANGERS + 1])
def test_strangers_are_kept_apart_or_merged_by_the_default_if_they_are_few(count: int) -> None:
    names = [f"x{place}" for place in range(count)]
    advice = advise_on(
        [adapter(name) for name in names],
        [],
        [cluster(k, "alone", (name,)) for k, name in enumerate(names)],
        [],
        [],
        cosine_of(count, 0.02),
    )
    assert [one.action for one in advice] == ["default"] * (count > 1)
    assert all(bool(one.command) == (count <= MOST_STRANGERS) for one in advice)
    # The mean over their own pairs, whatever that with others is.
    assert all(one.value == pytest.approx(0.02) for one in advice)
    assert all("unrelated adapters apart (largest cosine 0.02" in one.text for one in advice)


def cosine_of(count: int, value: float) -> torch.Tensor:
    return torch.full((count, count), value, dtype=torch.float64).fill_diagonal_(1.0)


def advise_simply(adapters: list[CollectedAdapter], kind: str, **rest: Any) -> Any:
    names = tuple(one.name for one in adapters)
    known: dict[str, Any] = {"opposed": [], "cosine": cosine_of(len(names), 0.02)}
    return advise_on(adapters, [], [cluster(0, kind, names)], [], **(known | rest))


def test_strangers_of_a_related_pair_are_not_called_unrelated() -> None:
    cosine = cosine_of(3, 0.02)
    cosine[0, 1] = cosine[1, 0] = 0.3
    (one,) = advise_simply([adapter(name) for name in "abc"], "strangers", cosine=cosine)
    assert "keep 3 weakly related adapters apart (largest cosine 0.3" in one.text
    assert one.value == pytest.approx(0.34 / 3)


def test_what_is_opposed_is_in_no_merge_and_is_looked_at() -> None:
    opposed = [Opposition(name="c", of="a", factor=-1.0, distance=1e-8)]
    merge, look = advise_simply([adapter(name) for name in "abc"], "strangers", opposed=opposed)
    assert merge.adapters == ("a", "b")
    assert (look.adapters, look.command) == (("c",), "riemerge inspect c")
    assert "-1.00 times a, and both cancel" in look.text


def test_options_are_for_what_differs_within_the_group() -> None:
    def command(first: dict[str, Any], second: dict[str, Any]) -> str:
        (one,) = advise_simply([adapter("a", **first), adapter("b", **second)], "family")
        assert one.command.startswith("riemerge merge a b -o family-0 --method average")
        text: str = one.command.removeprefix("riemerge merge a b -o family-0 --method average")
        return text.strip()

    assert command({"missing": ("q",)}, {"missing": ("q",)}) == ""  # others have it: this merge does not
    assert command({"missing": ("q",)}, {"missing": ("v",)}) == "--missing zero"
    assert command({"base_model": "x/one"}, {"base_model": "y/other"}) == "--same-base"
    assert command({"base_model": "x/one"}, {"base_model": "/models/one"}) == ""  # one model
    heads = {"saved": {"score.weight": (3, 8)}}
    assert command(heads, heads) == "--heads average"
    assert command(heads, {"saved": {"score.weight": (2, 8)}}) == "--heads drop"
    assert command(heads, {}) == "--heads drop"


def test_names_are_words_of_a_shell_or_there_is_no_command() -> None:
    (one,) = advise_simply([adapter("-d"), adapter("a b")], "family")
    assert one.command == "riemerge merge ./-d 'a b' -o family-0 --method average"
    (one,) = advise_simply([adapter("new\nline"), adapter("b")], "family")
    assert (one.command, "\n" in one.text) == ("", False)


def test_commands_run_as_they_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [
        write_folder(
            tmp_path / name,
            factors,
            base_model_name_or_path=f"somebody/model{place}",
            modules_to_save=["score"],
        )
        for place, (name, factors) in enumerate(
            zip(("-d", "a b", "x:0.5"), family("close", 3, shapes=SHAPES), strict=True)
        )
    ]
    for path in paths:
        tensors = load_file(path / "adapter_model.safetensors")
        save_file(
            tensors | {"base_model.model.score.weight": torch.ones(3, 9)}, path / "adapter_model.safetensors"
        )
    record = map_adapters(paths, tmp_path / "atlas", same_base=True)
    assert any("saved beside the factors" in note for note in record.notes)
    (command,) = (one.command for one in record.advice if one.command)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "family-0" / "adapter_config.json").exists()
