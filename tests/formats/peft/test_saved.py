"""Names of whole tensors: what is read under a name is written under the name that it came from."""

from __future__ import annotations

import torch

from riemerge.formats.files.tensor_file import Entry
from riemerge.formats.peft.config import AdapterConfig
from riemerge.formats.peft.saved import describe_saved, find_saved, is_token_rows, name_saved


def entry(name: str) -> Entry:
    return Entry(f"base_model.model.{name}", "F32", (2,), 0)


def test_names_go_there_and_back() -> None:
    inside = ["q.base_layer.bias", "norm.bias", "head.weight", "emb.token_adapter.trainable_tokens_delta"]
    config = AdapterConfig(bias="all", modules_to_save=["head"], trainable_token_indices=[1])
    found = find_saved(map(entry, inside), {"q"}, config)
    assert (max(found.trained), found.copies, found.problems) == ("q.bias", {}, [])
    named = name_saved({name: torch.zeros(2) for name in found.trained}, {"q"})
    assert sorted(named) == sorted(f"base_model.model.{name}" for name in inside)
    settings = describe_saved({name: [config] for name in found.trained})
    assert settings == {"bias": "all", "modules_to_save": ["head"], "trainable_token_indices": [1]}
    assert [name for name in found.trained if is_token_rows(name)] == [inside[-1]]


def test_rows_of_several_embeddings_keep_the_numbers_of_the_adapters_that_they_come_from() -> None:
    emb, pos = (f"{name}.token_adapter.trainable_tokens_delta" for name in ("emb", "pos"))
    sources = {
        emb: [AdapterConfig(trainable_token_indices=[1, 2])],
        pos: [AdapterConfig(trainable_token_indices={"pos": [5]})],
    }
    assert describe_saved(sources)["trainable_token_indices"] == {"emb": [1, 2], "pos": [5]}


def test_what_the_adapter_wraps_is_a_copy_of_the_base_unless_biases_were_trained() -> None:
    both = [entry("q.base_layer.weight"), entry("q.base_layer.bias")]
    assert [*find_saved(both, {"q"}, AdapterConfig()).copies] == ["q.bias", "q.weight"]
    found = find_saved(both, {"q"}, AdapterConfig(bias="lora_only"))
    assert ([*found.trained], [*found.copies]) == (["q.bias"], ["q.weight"])


def test_a_dtype_that_is_not_read_is_refused() -> None:
    assert (
        "F8_E4M3" in find_saved([Entry("head.weight", "F8_E4M3", (2,), 0)], (), AdapterConfig()).problems[0]
    )
