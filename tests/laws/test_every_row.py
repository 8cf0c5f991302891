"""Every row of the table from the command line, on the four real adapters, to what PEFT loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from riemerge.cli.commands import main
from riemerge.cli.demo import DEMO
from riemerge.formats.dialects import read_adapter
from riemerge.methods import METHODS
from riemerge.statistics import collect_statistics
from tests.helpers import ROOT, seeded

pytestmark = [
    pytest.mark.slow,
    pytest.mark.oracle,
    # PEFT 0.21.2 asks transformers 5 by the old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

ADAPTERS = [ROOT / "examples" / "adapters" / name for name in DEMO]
TENSORS = "adapter_model.safetensors"
RANK = 16
# One layer of MiniLM, for what needs its model: the other five are no different.
MINILM: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 1,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
MODULES = 6
# Rows that would go on for a minute; what they come to is tested elsewhere.
LONG = ("geomerge", "mats", "mats_forward", "lowrank_mats", "lowrank_updates")
# Rows that draw, survey, iterate, decide by entry, or need data: their second run has the same bits.
AGAIN = ("geomerge", "ties_original", "dare_ties", "core_ties", "fisher_rao")


def base() -> nn.Module:
    """MiniLM without its weights, which no merge needs; a vocabulary of a few words."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(BertConfig(vocab_size=50, **MINILM)).eval()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The first layer of each real adapter, bit for bit."""
    root = tmp_path_factory.mktemp("adapters")
    for adapter in ADAPTERS:
        (root / adapter.name).mkdir()
        shutil.copy(adapter / "adapter_config.json", root / adapter.name)
        kept = {name: x for name, x in load_file(adapter / TENSORS).items() if ".layer.0." in name}
        save_file(kept, root / adapter.name / TENSORS)
    return [root / adapter.name for adapter in ADAPTERS]


@pytest.fixture(scope="module")
def statistics(
    peft: ModuleType, adapters: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Statistics of the base model and of each adapter on random words."""
    root, folders = tmp_path_factory.mktemp("statistics"), []
    for place, adapter in enumerate([None, *adapters]):
        model = base()
        modules = sorted(read_adapter(adapters[0]).modules) if adapter is None else None
        if adapter is not None:
            model = peft.PeftModel.from_pretrained(model, str(adapter))
        words = torch.randint(0, 50, (4, 6), generator=seeded(place))

        def loss(model: Any, words: Tensor) -> Tensor:
            return model(words).last_hidden_state.square().mean(dim=(1, 2)).log()

        folders.append(root / str(place))
        collect_statistics(model, [words], loss, folders[-1], modules=modules, modules_per_pass=100)
    return folders


@pytest.fixture(scope="module")
def loaded(peft: ModuleType) -> Any:
    """The base with a merged adapter in it, the next in place of the last."""
    model: list[Any] = []

    def load(folder: Path) -> Any:
        if not model:
            model.append(peft.PeftModel.from_pretrained(base(), str(folder)))
        else:
            model[0].delete_adapter("default")
            model[0].load_adapter(str(folder), "default")
        return model[0]

    return load


def words_of(name: str, adapters: list[Path], data: list[Path]) -> list[str]:
    """What the command line must say for a row."""
    row = METHODS[name]
    count = row.models[1] or len(adapters)
    words = [str(folder) for folder in adapters[:count]] + ["--method", name]
    for folder in data[1 : count + 1] if row.statistics else ():
        words += ["--statistics", str(folder)]
    if name == "gradient_matching":
        words += ["--base-statistics", str(data[0])]
    if "density" in row.parameters:
        words += ["--density", "0.5"]
    if name in LONG:
        words += ["--max-passes", "5"]
    return words


def run(out: Path, words: list[str]) -> Any:
    ran = CliRunner().invoke(main, ["merge", *words, "-o", str(out), "--json", "-q", "--threads", "1"])
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


@pytest.mark.parametrize("name", list(METHODS))
def test_it_merges_real_adapters_to_one_that_peft_loads(
    adapters: list[Path], statistics: list[Path], loaded: Any, tmp_path: Path, name: str
) -> None:
    words = words_of(name, adapters, statistics)
    said = run(tmp_path / "out", words)
    factors = load_file(tmp_path / "out" / TENSORS)
    assert all(one.isfinite().all() for one in factors.values())
    count = METHODS[name].models[1] or len(adapters)
    whole = METHODS[name].defaults.get("rank") == "sum"
    rank = count * RANK if whole else RANK
    assert {min(one.shape) for one in factors.values()} == {rank}
    model = loaded(tmp_path / "out")
    modules = {row["module"]: row for row in said["record"]["modules"]}
    layers = {
        path.removeprefix("base_model.model."): layer
        for path, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    assert set(layers) == set(modules)
    assert len(layers) == MODULES
    for module, layer in layers.items():
        norm = float(layer.get_delta_weight("default").norm())
        # The stored factors are bfloat16: each entry is off by at most 4e-3, a norm by much less.
        assert norm == pytest.approx(modules[module]["norm"], rel=1e-3)
        assert norm > 0
    if name in AGAIN:
        run(tmp_path / "again", words)
        assert (tmp_path / "again" / TENSORS).read_bytes() == (tmp_path / "out" / TENSORS).read_bytes()


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if not row.statistics])
def test_it_merges_the_real_adapters_as_they_are(tmp_path: Path, name: str) -> None:
    said = run(tmp_path / "out", words_of(name, ADAPTERS, []))
    merged = read_adapter(tmp_path / "out")
    assert merged.modules == read_adapter(ADAPTERS[0]).modules
    for row in said["record"]["modules"]:
        update = merged.update(row["module"])
        # The stored factors are bfloat16: each entry is off by at most 4e-3, a norm by much less.
        assert update.norm() == pytest.approx(row["norm"], rel=1e-3)
