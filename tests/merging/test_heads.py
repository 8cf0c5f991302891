"""Whole tensors beside factors: left out, averaged, taken over, or refused with the words that help."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from riemerge import merge
from riemerge.errors import AdapterError, RecipeError, RiemergeError
from riemerge.formats.dialects import read_adapter
from riemerge.merging.heads import copy_notes
from riemerge.merging.plan import plan
from riemerge.recipes.recipe import make_recipe
from riemerge.records.run_record import HeadsRow

PREFIX = "base_model.model."


def make(folder: Path, seed: int, whole: Mapping[str, Tensor], **settings: Any) -> Path:
    """An adapter of one module, with whole tensors under their names in the file."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "q.lora_A.weight": torch.randn(2, 5, generator=generator),
        "q.lora_B.weight": torch.randn(4, 2, generator=generator),
        **whole,
    }
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "task_type": "SEQ_CLS", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {PREFIX + name: tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


def head(value: float, labels: int = 3) -> dict[str, Tensor]:
    return {
        "classifier.weight": torch.full((labels, 4), value),
        "classifier.bias": torch.full((labels,), -value),
    }


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    said = {"modules_to_save": ["classifier", "score"]}
    return [make(tmp_path / name, i, head(i + 1.0), **said) for i, name in enumerate("ab")]


def written(folders: list[Path], target: Path, **asked: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    merge(folders, method="average", **asked).save_pretrained(target)
    tensors = load_file(target / "adapter_model.safetensors")
    whole = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if ".lora_" not in name}
    return whole, json.loads((target / "adapter_config.json").read_text())


def test_heads_are_averaged_by_the_weights(two: list[Path], tmp_path: Path) -> None:
    whole, config = written(two, tmp_path / "out", heads="average", weights=[3.0, 1.0])
    assert {name: float(tensor.flatten()[0]) for name, tensor in whole.items()} == {
        "classifier.weight": 1.25,
        "classifier.bias": -1.25,
    }
    assert (config["modules_to_save"], config["task_type"]) == (["classifier"], "SEQ_CLS")


def test_heads_are_taken_over_bit_for_bit_or_left_out(two: list[Path], tmp_path: Path) -> None:
    whole, _ = written(two, tmp_path / "from", heads="from=b")
    own = load_file(two[1] / "adapter_model.safetensors")
    assert all(torch.equal(tensor, own[PREFIX + name]) for name, tensor in whole.items())
    assert len(whole) == 2
    whole, config = written(two, tmp_path / "drop", heads="drop")
    assert (whole, config["modules_to_save"], config["task_type"]) == ({}, None, None)
    record = json.loads((tmp_path / "drop" / "riemerge.json").read_text())
    assert record["heads"]["done"] == "drop"
    assert any("2 whole tensors" in text and "left out" in text for text in record["warnings"])


def test_a_head_of_which_the_settings_say_nothing_is_kept_too(tmp_path: Path) -> None:
    folders = [make(tmp_path / name, i, {"score.weight": torch.ones(3, 4)}) for i, name in enumerate("ab")]
    whole, config = written(folders, tmp_path / "out", heads="average")
    assert (set(whole), config["modules_to_save"]) == ({"score.weight"}, ["score"])


def test_biases_keep_their_places_and_their_mode(tmp_path: Path) -> None:
    def whole(value: float) -> dict[str, Tensor]:
        return {"q.base_layer.bias": torch.full((4,), value), "norm.bias": torch.full((5,), value)}

    folders = [make(tmp_path / name, i, whole(float(i)), bias="all") for i, name in enumerate("ab")]
    assert set(read_adapter(folders[0]).saved) == {"q.bias", "norm.bias"}
    found, config = written(folders, tmp_path / "out", heads="average")
    assert {name: float(tensor[0]) for name, tensor in found.items()} == {
        "q.base_layer.bias": 0.5,
        "norm.bias": 0.5,
    }
    assert (config["bias"], config["modules_to_save"]) == ("all", None)


def test_rows_of_tokens_have_a_mean_where_they_are_of_the_same_tokens(tmp_path: Path) -> None:
    rows = {"emb.token_adapter.trainable_tokens_delta": torch.ones(2, 4)}
    same = [make(tmp_path / name, i, rows, trainable_token_indices=[3, 7]) for i, name in enumerate("ab")]
    found, config = written(same, tmp_path / "out", heads="average")
    assert (set(found), config["trainable_token_indices"]) == ({*rows}, [3, 7])
    other = make(tmp_path / "c", 3, rows, trainable_token_indices=[3, 8])
    with pytest.raises(AdapterError, match="different tokens"):
        merge([same[0], other], heads="average")


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        (None, ["--heads drop", "--heads from=a"]),
        ("average", ["classifier.weight", "3 x 4 in a", "2 x 4 in c", "from="]),
        ("from=d", ["no inputs are called d", "a, c"]),
    ],
)
def test_what_has_no_answer_is_refused_with_the_way_out(
    two: list[Path], tmp_path: Path, heads: str | None, says: list[str]
) -> None:
    other = make(tmp_path / "c", 3, head(1.0, labels=2))
    with pytest.raises(RiemergeError) as caught:
        merge([two[0], other], heads=heads)
    assert all(text in str(caught.value) for text in says)


def test_a_head_that_one_lacks_has_no_mean_unless_it_is_skipped(two: list[Path], tmp_path: Path) -> None:
    bare = make(tmp_path / "c", 3, {})
    with pytest.raises(AdapterError, match="is saved in a but not in c"):
        merge([two[0], bare], heads="average")
    whole, _ = written([two[0], bare], tmp_path / "out", heads="average", missing="skip")
    assert float(whole["classifier.weight"][0, 0]) == 1.0


def test_heads_have_no_place_among_updates(two: list[Path]) -> None:
    raw = {"merge_method": "average", "heads": "average", "out_type": "delta"}
    recipe = make_recipe({**raw, "models": [{"model": str(folder)} for folder in two]})
    with pytest.raises(RecipeError, match="updates only"):
        plan(recipe)


def test_copies_of_base_weights_are_left_out_where_they_agree(tmp_path: Path) -> None:
    copy = {"q.base_layer.weight": torch.ones(4, 5)}
    folders = [make(tmp_path / name, i, copy) for i, name in enumerate("ab")]
    adapters = [read_adapter(folder) for folder in folders]
    assert [*adapters[0].base_weights] == ["q.weight"]
    assert "2 of 2 adapters" in copy_notes(adapters)[0]
    assert written(folders, tmp_path / "out")[0] == {}
    other = make(tmp_path / "c", 3, {"q.base_layer.weight": torch.ones(4, 5) * (1 + 2**-20)})
    with pytest.raises(AdapterError, match=r"q\.base_layer\.weight.*differs between"):
        merge([folders[0], other])


def test_the_head_that_a_saved_one_replaces_is_no_part_of_an_adapter(tmp_path: Path) -> None:
    inside = {
        "classifier.original_module.bias": torch.zeros(3),
        "classifier.modules_to_save.bias": torch.full((3,), 9.0),
    }
    adapter = read_adapter(make(tmp_path / "a", 1, {**head(1.0), **inside}))
    assert {name: float(adapter.tensor(name).flatten()[0]) for name in adapter.saved} == {
        "classifier.weight": 1.0,
        "classifier.bias": -1.0,
    }


def test_those_of_one_that_has_no_head_are_refused(two: list[Path], tmp_path: Path) -> None:
    bare = make(tmp_path / "c", 3, {})
    with pytest.raises(RecipeError, match="c has no heads; those with heads are a, b: name one of them"):
        merge([*two, bare], heads="from=c")


def test_what_others_lose_where_the_heads_of_one_are_taken_over_is_said(
    two: list[Path], tmp_path: Path
) -> None:
    other = make(tmp_path / "c", 3, {"score.weight": torch.ones(3, 4)})
    warnings = merge([two[0], other], method="average", heads="from=a").record.warnings
    assert any("taken over from a; 1 of others (score.weight) were left out" in text for text in warnings)


def test_a_mean_of_heads_that_one_lacks_names_the_way_that_has_one(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="--missing skip takes the mean of those that have it"):
        merge([two[0], make(tmp_path / "c", 3, {})], heads="average")


def test_heads_of_unknown_words_are_refused_in_plain_words() -> None:
    with pytest.raises(RecipeError, match=r"heads: the text 'foo': expected drop, average or from=NAME$"):
        make_recipe({"merge_method": "average", "models": [{"model": "a"}], "heads": "foo"})


ROWS = {"emb.token_adapter.trainable_tokens_delta": torch.ones(2, 4)}
TOKENS = {"trainable_token_indices": [3, 7]}
FACTORS = {"emb.lora_embedding_A": torch.ones(2, 9), "emb.lora_embedding_B": torch.ones(4, 2)}
BIAS = {"q.lora_B.bias": torch.ones(4)}
OF_ALL = {"q.base_layer.bias": torch.ones(4)}
WHOLE = {"emb.weight": torch.ones(9, 4)}
Part = tuple[dict[str, Tensor], dict[str, Any]]


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ((WHOLE, {}), (ROWS, TOKENS), "emb.weight: has rows of trained tokens in b and is saved whole in a"),
        ((FACTORS, {}), (ROWS, TOKENS), "emb.weight: has rows of trained tokens in b and has factors in a"),
        ((FACTORS, {}), (WHOLE, {}), "emb.weight: is saved whole in b and has factors in a"),
        ((BIAS, {"lora_bias": True}), (OF_ALL, {"bias": "all"}), "q.bias: is saved whole in b and has fact"),
        (
            ({"v.lora_A.weight": torch.ones(2, 5), "v.lora_B.weight": torch.ones(4, 2)}, {}),
            ({**BIAS, "v.bias": torch.ones(4)}, {"lora_bias": True, "bias": "all"}),
            "v.bias: is saved whole in b and has factors in b",
        ),
    ],
)
def test_a_module_of_two_kinds_that_peft_does_not_load_together_is_refused_before_the_merge(
    tmp_path: Path, one: Part, other: Part, says: str
) -> None:
    folders = [
        make(tmp_path / name, i, whole, **settings)
        for i, (name, (whole, settings)) in enumerate(zip("ab", (one, other), strict=True))
    ]
    raw = {"merge_method": "average", "missing": "skip", "models": [{"model": str(path)} for path in folders]}
    for heads in ("average", "from=b"):
        if heads == "from=b" and one[0] is WHOLE:
            continue  # the whole tensor is that of a alone, which is left out
        with pytest.raises(AdapterError) as caught:
            plan(make_recipe({**raw, "heads": heads}))
        assert says in str(caught.value)
        assert "--heads drop" in str(caught.value)
    written(folders, tmp_path / "out", heads="drop", missing="skip")


def test_rows_of_tokens_taken_over_keep_the_numbers_of_their_own_adapter(tmp_path: Path) -> None:
    one = make(tmp_path / "a", 0, ROWS, **TOKENS)
    other = make(tmp_path / "b", 1, ROWS, trainable_token_indices=[3, 8])
    _, config = written([one, other], tmp_path / "out", heads="from=b")
    assert config["trainable_token_indices"] == [3, 8]
    bare = make(tmp_path / "c", 2, head(1.0))
    _, config = written([bare, one], tmp_path / "mean", heads="average", missing="skip")
    assert config["trainable_token_indices"] == [3, 7]


def test_a_record_says_whether_whole_tensors_are_written() -> None:
    rows = [HeadsRow(done=done, tensors=names) for done in ("drop", "from") for names in ((), ("head",))]
    assert [row.written for row in rows] == [False, False, False, True]


def test_an_adapter_that_does_not_count_is_no_source_by_the_name_of_a_word(
    two: list[Path], tmp_path: Path
) -> None:
    other = make(tmp_path / "average", 3, head(1.0, labels=2))
    whole, _ = written([*two, other], tmp_path / "out", heads="average", weights=[1.0, 1.0, 0.0])
    assert float(whole["classifier.weight"][0, 0]) == 1.5
