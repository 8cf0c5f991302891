"""Statistics of a model against brute force: one example at a time, by autograd on the weight itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from riemerge.errors import AdapterError, OutputError
from riemerge.formats.dialects import read_adapter
from riemerge.statistics import KINDS, collect_statistics, read_statistics
from tests.helpers import seeded
from tests.statistics.tiny import F64, USED, assert_same, brute_force, data, loss, mean_loss, tiny


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("of", [loss, mean_loss])
def test_statistics_are_those_of_one_example_at_a_time(tmp_path: Path, size: int, of: Any) -> None:
    model, batches = tiny(), data(size=size)
    expected = brute_force(model, batches, {name: getattr(model, name) for name in USED})
    model.train()  # with dropout, if it were used
    found = collect_statistics(model, batches, of, tmp_path / "out", modules=USED, dtype=F64)
    assert found.modules == USED
    assert found.kinds == KINDS
    assert_same(found, expected)
    assert found.request.modules == {"head": (3, 4), "mix": (4, 4), "up": (4, 5)}
    losses = torch.cat([loss(model.eval(), batch) for batch in batches])
    torch.testing.assert_close(found.of("up")["loss"], losses.mean().detach())


def test_only_the_first_examples_count_also_within_a_batch(tmp_path: Path) -> None:
    model = tiny()
    first = [(torch.cat([x for x, _ in data()])[:4], torch.cat([y for _, y in data()])[:4])]
    expected = brute_force(model, first, {name: getattr(model, name) for name in USED})
    for of in (loss, mean_loss):
        found = collect_statistics(
            model, data(), of, tmp_path / of.__name__, modules=USED, dtype=F64, examples=4
        )
        assert_same(found, expected)


def test_masked_tokens_do_not_enter_the_sums_over_tokens(tmp_path: Path) -> None:
    model, batches = tiny(), data()
    keep = torch.tensor([True, True, False, True, False, False])
    found = collect_statistics(
        model,
        batches,
        loss,
        tmp_path / "out",
        modules=USED,
        dtype=F64,
        mask=lambda batch: keep.expand(len(batch[1]), 6),
    )
    x = torch.cat([x for x, _ in batches])[:, keep].flatten(0, 1)
    torch.testing.assert_close(found.of("up")["gram"], x.T @ x)
    assert int(found.of("up")["tokens"]) == 7 * 3
    assert int(found.of("mix")["tokens"]) == 7 * 3 * 2
    assert int(found.of("head")["tokens"]) == 7  # its inputs are no tokens
    unmasked = collect_statistics(model, batches, loss, tmp_path / "all", modules=USED, dtype=F64)
    assert torch.equal(found.of("up")["fisher"], unmasked.of("up")["fisher"])


def test_groups_and_kinds_change_no_bit_and_frozen_weights_nothing(tmp_path: Path) -> None:
    model = tiny()
    whole = collect_statistics(model, data(), loss, tmp_path / "whole", modules=USED)
    single = collect_statistics(model, data(), loss, tmp_path / "single", modules=USED, modules_per_pass=1)
    model.requires_grad_(False)
    frozen = collect_statistics(model, data(), loss, tmp_path / "frozen", modules=USED)
    for name in USED:
        for kind, one in whole.of(name).items():
            assert torch.equal(one, single.of(name)[kind])
            assert torch.equal(one, frozen.of(name)[kind])
        for kind in KINDS:
            alone = collect_statistics(
                model, data(), loss, tmp_path / f"{name} {kind}", modules=[name], kinds=[kind]
            )
            assert alone.kinds == (kind,)
            assert torch.equal(alone.of(name)[kind], whole.of(name)[kind])
    assert whole.of("up")["gram"].dtype == torch.float32


def test_the_model_is_left_as_it_was_and_dropout_is_off(tmp_path: Path) -> None:
    model = tiny().train()
    model.head.eval()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    state = torch.random.get_rng_state()
    collect_statistics(model, data(), loss, tmp_path / "out", modules=USED)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [model.training, model.up.training, model.head.training] == [True, True, False]
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())
    assert not any(one._forward_hooks for one in model.modules())


def test_a_loss_that_draws_draws_the_same_in_every_pass(tmp_path: Path) -> None:
    """Labels drawn from the model, and a loader that shuffles: the Fisher information proper."""

    def drawn(model: nn.Module, batch: list[Tensor]) -> Tensor:
        logits = model(batch[0])
        return nn.functional.cross_entropy(
            logits, torch.distributions.Categorical(logits=logits).sample(), reduction="none"
        )

    x = torch.cat([x for x, _ in data()])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=2, shuffle=True)
    runs = [
        collect_statistics(
            tiny(),
            loader,
            drawn,
            tmp_path / str(i),
            modules=USED,
            modules_per_pass=most,
            seed=seed,
            examples=5,
        )
        for i, (most, seed) in enumerate([(None, 4), (1, 4), (None, 5)])
    ]
    for name in USED:
        assert torch.equal(runs[0].of(name)["fisher"], runs[1].of(name)["fisher"])
        assert not torch.equal(runs[0].of(name)["fisher"], runs[2].of(name)["fisher"])


# --- interruption -------------------------------------------------------------------------------------------


class Interrupt(Exception):  # noqa: N818
    pass


def test_an_interrupted_collection_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model = tiny()
    collect_statistics(model, data(), loss, tmp_path / "whole", modules=USED)
    passes = 0

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal passes
        passes += 1
        yield from data()

    class Batches:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return counted()

    def failing(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if passes == 2:
            raise Interrupt
        return loss(model, batch)

    out = tmp_path / "out"
    with pytest.raises(Interrupt):
        collect_statistics(model, Batches(), failing, out, modules=USED, modules_per_pass=1)
    assert sorted(path.name for path in out.iterdir()) == ["head.safetensors", "statistics.json"]
    with pytest.raises(AdapterError, match=r"2 of 3 modules are missing: mix, up; .* run it again"):
        read_statistics(out)
    done = (out / "head.safetensors").stat().st_mtime_ns
    (out / ".mix.safetensors.partial").write_bytes(b"half")  # as a kill in the middle of a write leaves it
    passes = 10
    collect_statistics(model, Batches(), failing, out, modules=USED, modules_per_pass=1)
    assert passes == 12  # the first module was not measured again
    assert (out / "head.safetensors").stat().st_mtime_ns == done
    files = sorted((tmp_path / "whole").iterdir())
    assert [path.name for path in files] == sorted(path.name for path in out.iterdir())
    assert all(path.read_bytes() == (out / path.name).read_bytes() for path in files)
    passes = 20
    collect_statistics(model, Batches(), failing, out, modules=USED)
    assert passes == 20


def test_a_finished_module_that_cannot_be_read_is_measured_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, out = tiny(), tmp_path / "out"
    collect_statistics(model, data(), loss, out, modules=USED)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "mix.safetensors").write_bytes(before["mix.safetensors"][:-8])
    collect_statistics(model, data(), loss, out, modules=USED)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (said,) = (record.getMessage() for record in caplog.records)
    assert "mix.safetensors: cannot be read" in said
    assert said.endswith("it is measured again")


def test_finished_modules_of_different_data_are_refused(tmp_path: Path) -> None:
    """Also where nothing is left to measure that could tell."""
    model, out = tiny(), tmp_path / "out"
    collect_statistics(model, data(), loss, out, modules=USED)
    with torch.no_grad():
        model.head.weight.mul_(2.0)
    collect_statistics(model, data(), loss, tmp_path / "other", modules=USED)
    (tmp_path / "other" / "mix.safetensors").replace(out / "mix.safetensors")
    with pytest.raises(AdapterError, match="expected the same model and data"):
        collect_statistics(model, data(), loss, out, modules=USED)


def test_a_collection_is_not_finished_with_other_settings_data_or_models(tmp_path: Path) -> None:
    model, out = tiny(), tmp_path / "out"
    collect_statistics(model, data(), loss, out, modules=USED)
    with pytest.raises(OutputError, match="begun with other kinds, modules, examples, seed or dtype"):
        collect_statistics(model, data(), loss, out, modules=USED, examples=3)
    (out / "up.safetensors").unlink()
    with pytest.raises(AdapterError, match="expected the same model and data"):
        collect_statistics(model, data(count=6), loss, out, modules=USED)
    with torch.no_grad():
        model.head.weight.mul_(2.0)
    with pytest.raises(AdapterError, match="expected the same model and data"):
        collect_statistics(model, data(), loss, out, modules=USED)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(OutputError, match="no folder of statistics"):
        collect_statistics(model, data(), loss, tmp_path / "other", modules=USED)
    once = iter(data())
    with pytest.raises(ValueError, match="only once"):
        collect_statistics(model, once, loss, tmp_path / "once", modules=USED, modules_per_pass=1)


# --- what cannot be measured --------------------------------------------------------------------------------


def test_modules_that_cannot_be_measured_are_refused_by_name(tmp_path: Path) -> None:
    model = tiny()
    with pytest.raises(AdapterError, match="idle: no example uses it"):
        collect_statistics(model, data(), loss, tmp_path / "a")
    with pytest.raises(AdapterError) as error:
        collect_statistics(model, data(), loss, tmp_path / "b", modules=["up", "dropout", "nothing"])
    assert [text.split(":")[0] for text in error.value.problems] == ["dropout", "nothing"]
    with pytest.raises(AdapterError, match="head: the loss does not depend on it"):
        collect_statistics(
            model, data(), lambda m, b: (m(b[0]) * 0 + 1).detach().sum(1), tmp_path / "c", modules=USED
        )
    flat = [(x.flatten(0, 1)[:, None], y) for x, y in data()]
    with pytest.raises(AdapterError, match=r"up: an input is \(18, 5\) in a batch of 3 examples"):
        collect_statistics(
            model,
            flat,
            lambda m, b: m.get_submodule("up")(b[0].flatten(0, 1)).reshape(len(b[1]), -1).sum(1),
            tmp_path / "d",
            modules=["up"],
        )
    with pytest.raises(AdapterError, match="NaN or Inf"):
        collect_statistics(
            model, [(x * torch.inf, y) for x, y in data()], loss, tmp_path / "e", modules=["up"]
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"kinds": ["hessian"]},
        {"kinds": []},
        {"examples": 0},
        {"modules_per_pass": 0},
        {"dtype": torch.float16},
    ],
)
def test_arguments_out_of_range(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        collect_statistics(tiny(), data(), loss, tmp_path / "out", modules=USED, **wrong)
    assert not (tmp_path / "out").exists()


# --- PEFT ---------------------------------------------------------------------------------------------------


@pytest.mark.slow  # importing PEFT and transformers
@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_peft_model_is_measured_as_the_model_with_the_adapter_merged(tmp_path: Path) -> None:
    """Names are those of the adapter's files; numbers are those of the merged weight, by brute force."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        num_labels=3,
    )
    base = transformers.BertForSequenceClassification(config).double()
    lora = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["query", "output.dense"], lora_dropout=0.3, init_lora_weights=False
    )
    model = peft.get_peft_model(base, lora).double()
    model.save_pretrained(tmp_path / "adapter")
    tokens = torch.randint(0, 20, (5, 6), generator=seeded(0))
    labels = torch.randint(0, 3, (5,), generator=seeded(1))
    batches = [
        {"input_ids": tokens[:3], "labels": labels[:3]},
        {"input_ids": tokens[3:], "labels": labels[3:]},
    ]
    found = collect_statistics(
        model, batches, lambda m, batch: m(**batch).loss, tmp_path / "out", dtype=F64, modules_per_pass=2
    )
    assert found.modules == read_adapter(tmp_path / "adapter").modules
    assert (
        found.problems(
            {name: read_adapter(tmp_path / "adapter").shape(name) for name in found.modules}, KINDS
        )
        == []
    )
    factor = f"{found.modules[0]}.lora_A.default"
    with pytest.raises(AdapterError, match="not in the model"):
        collect_statistics(model, batches, loss, tmp_path / "factors", modules=[factor])
    plain = model.merge_and_unload().eval()
    expected = brute_force(
        plain,
        [(batch["input_ids"], batch["labels"]) for batch in batches],
        {name: plain.get_submodule(name) for name in found.modules},
        of=lambda m, batch: m(input_ids=batch[0], labels=batch[1]).loss,
    )
    assert_same(found, expected)
