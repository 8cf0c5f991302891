"""The code that a card shows loads what lies beside it: it is run."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from riemerge import merge_adapters
from riemerge.merging.sinks import MergeResult
from riemerge.merging.verbs import merge_into
from riemerge.recipes.recipe import make_recipe
from riemerge.records.run_record import InputRow, RunRecord
from riemerge.report.card import bases_of, model_card
from tests.folders import family, write_family, write_folder
from tests.helpers import adapter_family

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module", autouse=True)
def _loaders() -> None:
    """What the code of a card imports; absent, the tests are skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what third parties deprecate while they are imported is not ours
        pytest.importorskip("transformers")
        pytest.importorskip("peft")


SMALL = {
    "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 12, "max_position_embeddings": 16,
}  # fmt: skip
T5 = {"vocab_size": 11, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}
KINDS: dict[str, tuple[str, str, Mapping[str, int], str]] = {
    "CAUSAL_LM": ("LlamaForCausalLM", "LlamaConfig", SMALL, "model.layers.0.self_attn.q_proj"),
    "SEQ_CLS": (
        "BertForSequenceClassification",
        "BertConfig",
        SMALL,
        "bert.encoder.layer.0.attention.self.query",
    ),
    "TOKEN_CLS": (
        "BertForTokenClassification",
        "BertConfig",
        SMALL,
        "bert.encoder.layer.0.attention.self.query",
    ),
    "QUESTION_ANS": (
        "BertForQuestionAnswering",
        "BertConfig",
        SMALL,
        "bert.encoder.layer.0.attention.self.query",
    ),
    "SEQ_2_SEQ_LM": (
        "T5ForConditionalGeneration",
        "T5Config",
        T5,
        "encoder.block.0.layer.0.SelfAttention.q",
    ),
    "FEATURE_EXTRACTION": ("BertModel", "BertConfig", SMALL, "encoder.layer.0.attention.self.query"),
}
EVERY = pytest.mark.parametrize("task", KINDS)


def make(task: str, folder: Path, seed: int = 0) -> nn.Module:
    """A tiny model of this kind, saved."""
    transformers = import_module("transformers")
    name, settings, sizes, _ = KINDS[task]
    torch.manual_seed(seed)
    model: nn.Module = getattr(transformers, name)(getattr(transformers, settings)(**sizes))
    model.save_pretrained(folder)  # type: ignore[operator]
    return model


def adapters(task: str, root: Path, **settings: Any) -> list[Path]:
    """Two adapters of one module of `base`."""
    pair = adapter_family("close", 2, 8, 8, 2, 0)
    said = {"base_model_name_or_path": "base", "task_type": task, **settings}
    return write_family(root, [{KINDS[task][3]: one} for one in pair], dtype=torch.float32, **said)


def run_card(text: str, folder: str) -> dict[str, Any]:
    """Run the first block of code of a card, for a folder."""
    (code, *_) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", folder), found)
    return found


@EVERY
def test_the_code_beside_an_adapter_loads_it_into_its_kind_of_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(task, Path("base"))
    merge_adapters(adapters(task, tmp_path), method="average").save_pretrained("out")
    text = Path("out/README.md").read_text()
    model = run_card(text, "out")["model"]
    assert type(model.base_model.model).__name__ == KINDS[task][0]
    assert ("is not in this folder" in text) == (task in {"SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"})
    found = model.get_submodule(f"base_model.model.{KINDS[task][3]}").get_delta_weight("default")
    written = load_file("out/adapter_model.safetensors")
    b, a = (written[f"base_model.model.{KINDS[task][3]}.lora_{side}.weight"] for side in "BA")
    assert torch.allclose(found, b @ a, rtol=0, atol=1e-6)  # products of float32 of size 1


@EVERY
def test_the_code_beside_a_delta_adds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(make(task, Path("base")).named_parameters())
    recipe = {"merge_method": "average", "models": [{"model": str(one)} for one in adapters(task, tmp_path)]}
    merge_into(make_recipe(recipe | {"out_type": "delta"}), tmp_path / "out")
    base = run_card(Path("out/README.md").read_text(), "out")["base"]
    assert type(base).__name__ == KINDS[task][0]
    (name, update), *others = load_file("out/model.safetensors").items()
    assert not others
    for at, parameter in base.named_parameters():
        expected = before[at] + update if at == name else before[at]
        assert torch.equal(parameter, expected)


@EVERY
def test_the_code_beside_a_checkpoint_loads_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        make(task, Path(f"m{seed}"), seed)
    recipe = {"merge_method": "average", "models": [{"model": f"m{seed}"} for seed in (0, 1)]}
    merge_into(make_recipe(recipe), tmp_path / "out")
    model = run_card(Path("out/README.md").read_text(), "out")["model"]
    assert type(model).__name__ == KINDS[task][0]
    written = load_file("out/model.safetensors")
    loaded = model.state_dict()
    assert {*written} <= {*loaded}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in written.items())


def test_the_code_beside_weights_without_settings_loads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        make("CAUSAL_LM", Path(f"m{seed}"), seed)
    models = [{"model": f"m{seed}/model.safetensors"} for seed in (0, 1)]
    merge_into(make_recipe({"merge_method": "average", "models": models}), tmp_path / "out", shard_bytes=2000)
    assert len(list(Path("out").glob("*.safetensors"))) > 1
    weights = run_card(Path("out/README.md").read_text(), "out")["weights"]
    assert {*weights} == {*load_file("m0/model.safetensors")}


def merged(root: Path, *said: Mapping[str, Any]) -> MergeResult:
    folders = [
        write_folder(root / "abc"[i], one, **settings)
        for i, (one, settings) in enumerate(zip(family("close", len(said)), said, strict=True))
    ]
    return merge_adapters(folders, method="average")


BERT_MODEL = {"base_model_class": "BertModel", "parent_library": "transformers.models.bert.modeling_bert"}


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ([{}, {}], "base = AutoModel.from_pretrained("),
        ([{"auto_mapping": BERT_MODEL}] * 2, "base = BertModel.from_pretrained("),
        ([{"auto_mapping": BERT_MODEL}, {}], "base = BertModel.from_pretrained("),
        ([{"task_type": "CAUSAL_LM"}, {}], "base = AutoModelForCausalLM.from_pretrained("),
        (
            [{"auto_mapping": {"base_model_class": "ConvNeXt", "parent_library": "timm.models.convnext"}}]
            * 2,
            "base = ...  # the ConvNeXt of timm that the adapters were trained on",
        ),
        # Names from outside become code only where they are names.
        (
            [{"auto_mapping": {"base_model_class": "A; import os", "parent_library": "transformers.x"}}] * 2,
            "base = AutoModel.from_pretrained(",
        ),
        (
            [{"auto_mapping": {"base_model_class": "A", "parent_library": "x\n```"}}] * 2,
            "base = AutoModel.from_pretrained(",
        ),
    ],
)
def test_the_class_is_what_the_adapters_say_together(
    tmp_path: Path, said: list[dict[str, Any]], line: str
) -> None:
    (code, *_) = re.findall(r"```python\n(.*?)```", model_card(merged(tmp_path, *said).record), re.DOTALL)
    compile(code, "card", "exec")
    assert any(one.startswith(line) for one in code.splitlines())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ("{}", "model = AutoModel.from_pretrained("),
        ("not JSON", "model = AutoModel.from_pretrained("),
        ('{"architectures": []}', "model = AutoModel.from_pretrained("),
        ('{"architectures": ["x`; y"]}', "model = AutoModel.from_pretrained("),
        (
            '{"architectures": ["Own"], "auto_map": {"AutoModel": "own.Own"}}',
            "model = AutoModel.from_pretrained(",
        ),
        ('{"architectures": ["BertForMaskedLM"]}', "model = BertForMaskedLM.from_pretrained("),
    ],
)
def test_the_class_of_a_checkpoint_is_what_its_settings_say(tmp_path: Path, settings: str, line: str) -> None:
    for seed in (0, 1):
        make("CAUSAL_LM", tmp_path / f"m{seed}", seed)
        (tmp_path / f"m{seed}" / "config.json").write_text(settings)
    recipe = {"merge_method": "average", "models": [{"model": str(tmp_path / f"m{seed}")} for seed in (0, 1)]}
    merge_into(make_recipe(recipe), tmp_path / "out")
    assert line in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "riemerge.json").read_text())["model_class"]


# --- front matter -------------------------------------------------------------------------------------------


def front_of(card: str) -> Any:
    """The front matter as huggingface_hub reads it, which is how the hub does."""
    return import_module("huggingface_hub").ModelCard(card, ignore_metadata_errors=False).data


def give_licences(folders: list[Path], *names: str | None) -> None:
    for folder, name in zip(folders, names, strict=True):
        if name:
            (folder / "README.md").write_text(f"---\nlicense: {name}\n---\n")


@pytest.mark.parametrize(
    ("licences", "common"), [(("mit", "MIT"), "mit"), (("mit", "apache-2.0"), None), (("mit", None), None)]
)
def test_a_licence_that_all_inputs_name_is_that_of_the_merge(
    tmp_path: Path, licences: tuple[str | None, ...], common: str | None
) -> None:
    folders = write_family(tmp_path, family("close", 2))
    give_licences(folders, *licences)
    result = merge_adapters(folders, method="average")
    assert result.record.licence == common
    data = front_of(model_card(result.record))
    assert (data.license, data.base_model) == (common, "somebody/base")
    assert data.to_dict()["base_model_relation"] == "adapter"


def test_a_checkpoint_is_a_merge_of_its_base_and_of_the_models_of_the_hub() -> None:
    names = [f"org/{name}@{'0a' * 20}" for name in "ab"]
    record = RunRecord.model_construct(
        out_type="checkpoint",
        recipe={"merge_method": "average", "models": [{"model": name} for name in names], "parameters": {}},
        base_model="org/base",
        inputs=[InputRow(name=name, weight=1, share=0.5) for name in "ab"],
    )
    assert bases_of(record) == ["org/base", "org/a", "org/b"]
    local = record.model_copy(
        update={"recipe": {**record.recipe, "models": [{"model": "a"}, {"model": "b"}]}}
    )
    assert bases_of(local) == "org/base"
    assert bases_of(record.model_copy(update={"out_type": "adapter"})) == "org/base"


def test_scores_are_read_by_the_hub(tmp_path: Path) -> None:
    folders = write_family(tmp_path, family("close", 2))
    record = merge_adapters(folders, method="average").record
    results = front_of(model_card(record, {"nli": 0.75, "qa": 0.5})).eval_results
    assert [(one.dataset_type, one.metric_type, one.metric_value) for one in results] == [
        ("nli", "score", 0.75),
        ("qa", "score", 0.5),
    ]
    assert "model-index" not in model_card(record)


@pytest.mark.parametrize(
    ("dialect", "library", "code"),
    [
        ("peft", "peft", "PeftModel.from_pretrained(base, "),
        (
            "kohya",
            "diffusers",
            'pipeline.load_lora_weights("path/to/this/folder", weight_name="lora.safetensors")',
        ),
        ("diffusers", "diffusers", 'pipeline.load_lora_weights("path/to/this/folder")'),
        ("mlx", "mlx", 'load("somebody/base", adapter_path="path/to/this/folder")'),
    ],
)
def test_each_dialect_is_loaded_by_its_own_library(
    tmp_path: Path, dialect: str, library: str, code: str
) -> None:
    record = merge_adapters(write_family(tmp_path, family("close", 2)), method="average").record
    card = model_card(record.model_copy(update={"recipe": {**record.recipe, "dialect": dialect}}))
    assert front_of(card).library_name == library
    assert code in card
    assert ("serve with vLLM" in card) == (dialect == "peft")
