"""Models as words: a weight stands behind the last colon, unless the word as it is names what is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from riemerge.cli.commands import main
from riemerge.errors import RecipeError
from riemerge.recipes.specs import locate_model, parse_spec, parse_specs, parts_of, split_sum
from riemerge.records.run_record import RunRecord
from riemerge.study.sweeps import sweep
from tests.folders import family, write_family, write_folder


@pytest.mark.parametrize(
    ("text", "folder", "weight"),
    [
        ("law", "law", 1.0),
        ("law:0.5", "law", 0.5),
        ("law:-1e-3", "law", -1e-3),
        ("law:2", "law", 2.0),
        ("C:/runs/law", "C:/runs/law", 1.0),
        ("C:/runs/law:0.25", "C:/runs/law", 0.25),
        ("run:12:0.5", "run:12", 0.5),
        ("run:final", "run:final", 1.0),
        ("law:", "law:", 1.0),
        (":0.5", ":0.5", 1.0),
    ],
)
def test_only_a_number_behind_the_last_colon_is_a_weight(text: str, folder: str, weight: float) -> None:
    assert parse_spec(text) == (folder, weight)


def test_what_is_there_wins_over_a_weight(tmp_path: Path) -> None:
    for name in ("run:2", "link:3"):
        (tmp_path / name).mkdir()
    assert parse_spec(f"{tmp_path}/run:2") == (f"{tmp_path}/run:2", 1.0)
    assert parse_spec(f"{tmp_path}/run:2:0.5") == (f"{tmp_path}/run:2", 0.5)
    assert parse_spec(f"{tmp_path}/run:3") == (f"{tmp_path}/run", 3.0)


@pytest.mark.parametrize("number", ["2", "2.0", "-1", "1e3", "nan"])
def test_a_word_with_two_readings_is_refused_and_the_advice_ends_it(tmp_path: Path, number: str) -> None:
    for name in ("run", f"run:{number}"):
        (tmp_path / name).mkdir()
    word = f"{tmp_path}/run:{number}"
    with pytest.raises(RecipeError) as caught:
        parse_specs([word, f"{tmp_path}/run", word])
    assert len(caught.value.problems) == 2
    first, second = (f"{word}:1", f"{tmp_path}/run/:{number}")
    assert first in str(caught.value)
    assert second in str(caught.value)
    assert parse_spec(first) == (word, 1.0)
    folder, weight = parse_spec(second)
    assert Path(folder) == tmp_path / "run"
    assert repr(weight) == repr(float(number))


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_a_merge_takes_the_folder_that_is_named(tmp_path: Path) -> None:
    one, two, three = family("close", 3)
    write_folder(tmp_path / "run:2", one)
    write_folder(tmp_path / "other", two)
    words = (tmp_path / "other", "-o", tmp_path / "out", "--method", "average")
    assert run("merge", f"{tmp_path}/run:2", *words).exit_code == 0
    record = RunRecord.model_validate_json((tmp_path / "out" / "riemerge.json").read_text())
    assert [(row.name, row.weight) for row in record.inputs] == [("run:2", 1.0), ("other", 1.0)]

    write_folder(tmp_path / "run", three)
    ran = run("merge", f"{tmp_path}/run:2", tmp_path / "other", "-o", tmp_path / "more")
    assert ran.exit_code == 3
    assert f"both {tmp_path}/run:2 and {tmp_path}/run exist" in ran.stderr


def test_a_sweep_s_models_are_folders_and_never_have_weights(tmp_path: Path) -> None:
    adapters = write_family(tmp_path, family("close", 2))
    (tmp_path / "a:1").mkdir()
    assert [point.weights for point in sweep(adapters, tmp_path / "out", 2).points] == [
        (1.0, 0.0),
        (0.0, 1.0),
    ]


def test_a_folder_called_like_a_recipe_is_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run.yaml", family("close", 1)[0])
    ran = run("merge", folder, "-o", tmp_path / "out", "--method", "average")
    assert ran.exit_code == 0, ran.stderr


# --- sums ---------------------------------------------------------------------------------------------------


def test_a_plus_stands_between_what_is_there_and_is_part_of_a_name_elsewhere(tmp_path: Path) -> None:
    for name in ("base", "c++", "lora", "a", "a+b"):
        (tmp_path / name).mkdir()
    for text, parts in {
        "base+lora": ("base", "lora"),
        "a+b": None,  # a folder of that name
        "a+b+lora": ("a+b", "lora"),
        "c+++lora": ("c++", "lora"),
        "base+c++": ("base", "c++"),
        "org/base+lora": ("org/base", "lora"),  # the base is elsewhere
        "base+nowhere": ("base", "nowhere"),
        "no+where": None,
        "+lora": None,
        "lora+": None,
        "base": None,
    }.items():
        assert split_sum(text, tmp_path) == parts
    assert locate_model("a+b+lora", tmp_path) == f"{tmp_path}/a+b+{tmp_path}/lora"
    assert parts_of(locate_model("a+b+lora", tmp_path)) == (f"{tmp_path}/a+b", f"{tmp_path}/lora")
    assert locate_model("first+lora", tmp_path, {"first"}) == f"first+{tmp_path}/lora"


def test_a_sum_with_two_readings_is_refused(tmp_path: Path) -> None:
    for name in ("a", "a+b", "b+c", "c"):
        (tmp_path / name).mkdir()
    with pytest.raises(RecipeError, match=r"a\+b\+c: is a with b\+c or a\+b with c"):
        split_sum("a+b+c", tmp_path)
