"""Statistics of a model against brute force: one example at a time, by autograd on the weight itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from riemerge.errors import AdapterError, OutputError
from riemerge.formats.peft import read_adapter
from riemerge.statistics import KINDS, collect_statistics, read_statistics
from tests.helpers import seeded

F64 = torch.float64


class Tiny(nn.Module):
    """Two layers on sequences, the second used twice, dropout between; and one layer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 4)
        self.mix = nn.Linear(4, 4, bias=False)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)
        self.idle = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(torch.tanh(self.up(x)))
        hidden = self.mix(torch.tanh(self.mix(hidden)))
        return self.head(hidden.mean(dim=1))


USED = ("head", "mix", "up")


def tiny() -> Tiny:
    torch.manual_seed(3)
    return Tiny().double()


def data(count: int = 7, size: int = 3, tokens: int = 6) -> list[tuple[Tensor, Tensor]]:
    """Batches of at most `size` examples."""
    x = torch.randn(count, tokens, 5, generator=seeded(0), dtype=F64)
    y = torch.randint(0, 3, (count,), generator=seeded(1))
    return [(x[i : i + size], y[i : i + size]) for i in range(0, count, size)]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return loss(model, batch).mean()


def brute_force(
    model: nn.Module, batches: Any, modules: dict[str, nn.Linear], of: Any = loss
) -> dict[str, dict[str, Tensor]]:
    """Every example alone; the weight's gradient by autograd, inputs and outputs from hooks."""
    model.eval()
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}

    def noting(name: str) -> Any:
        def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.requires_grad_()
            output.retain_grad()
            seen[name].append((inputs[0].detach(), output))
            return output

        return note

    handles = [module.register_forward_hook(noting(name)) for name, module in modules.items()]
    frozen = {name: module.weight.requires_grad for name, module in modules.items()}
    sums: dict[str, dict[str, Tensor]] = {}
    count = 0
    for x, y in ((xs[i : i + 1], ys[i : i + 1]) for xs, ys in batches for i in range(len(ys))):
        count += 1
        for name, module in modules.items():
            seen[name].clear()
            module.weight.requires_grad_()
            module.weight.grad = None
        of(model, (x, y)).sum().backward()
        for name, module in modules.items():
            assert module.weight.grad is not None
            inputs = torch.cat([a.reshape(-1, a.shape[-1]) for a, _ in seen[name]])
            gradients = torch.cat([b.grad.reshape(-1, b.shape[-1]) for _, b in seen[name]])  # type: ignore[union-attr]
            found = {
                "fisher": module.weight.grad.square(),
                "gram": inputs.T @ inputs,
                "covariance": gradients.T @ gradients,
                "tokens": torch.tensor(len(inputs)),
            }
            sums[name] = {key: value + sums.get(name, {}).get(key, 0) for key, value in found.items()}
    for handle in handles:
        handle.remove()
    for name, module in modules.items():
        module.weight.requires_grad_(frozen[name])
        sums[name]["fisher"] = sums[name]["fisher"] / count
        sums[name]["examples"] = torch.tensor(count)
    return sums


def assert_same(found: Any, expected: dict[str, dict[str, Tensor]], kinds: tuple[str, ...] = KINDS) -> None:
    names = (*kinds, "tokens", "examples")
    ours = {name: {kind: found.of(name)[kind] for kind in names} for name in expected}
    theirs = {name: {kind: one[kind] for kind in names} for name, one in expected.items()}
    # Sums of less than a hundred terms of size one in float64.
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14)


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
            lambda m, b: m.up(b[0].flatten(0, 1)).reshape(len(b[1]), -1).sum(1),
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


# --- reading ------------------------------------------------------------------------------------------------


@pytest.fixture(name="folder")
def collected(tmp_path: Path) -> Path:
    collect_statistics(tiny(), data(), loss, tmp_path / "out", modules=USED)
    return tmp_path / "out"


def test_reading_gives_what_is_asked_for(folder: Path) -> None:
    statistics = read_statistics(folder)
    assert set(statistics.of("up", ["gram"])) == {"gram", "tokens", "examples", "loss"}
    assert statistics.problems({"up": (4, 5), "head": (3, 4)}, ["fisher", "gram"]) == []
    found = statistics.problems({"up": (4, 6), "gone": (1, 1)}, ["fisher", "hessian"])
    assert [text for text in found if "holds no hessian" in text]
    assert [text for text in found if "1 of 2 modules" in text and "gone" in text]
    assert [
        text for text in found if "up: the statistics are of a weight (4, 5) but the update is (4, 6)" in text
    ]
    assert len(found) == 3
    with pytest.raises(KeyError):
        statistics.of("gone")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda t: t.pop("gram"), "holds no gram"),
        (lambda t: t.update(gram=t["gram"][:2]), r"gram is \(2, 5\): expected \(5, 5\)"),
        (lambda t: t["fisher"].fill_(torch.nan), "fisher holds NaN"),
        (lambda t: t["fisher"].neg_(), "fisher holds negative"),
        (lambda t: t["covariance"][0].add_(1.0), "covariance is not symmetric"),
        (lambda t: t.pop("tokens"), "holds no tokens"),
        (lambda t: t.update(fisher=t["fisher"].to(torch.float8_e4m3fn)), "stores 1 of 6 tensors as F8_E4M3"),
    ],
)
def test_a_file_of_other_content_is_refused(folder: Path, spoil: Any, text: str) -> None:
    tensors = load_file(folder / "up.safetensors")
    spoil(tensors)
    save_file({name: one.contiguous() for name, one in tensors.items()}, folder / "up.safetensors")
    with pytest.raises(AdapterError, match=rf"up\.safetensors: {text}.*collect the statistics again"):
        read_statistics(folder).of("up")


def test_a_torn_file_and_a_foreign_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "up.safetensors").write_bytes((folder / "up.safetensors").read_bytes()[:-3])
    with pytest.raises(AdapterError, match=r"up\.safetensors: cannot be read"):
        read_statistics(folder).of("up")
    with pytest.raises(AdapterError, match="no statistics there"):
        read_statistics(tmp_path)
    content = json.loads((folder / "statistics.json").read_text())
    for change in ({"version": 2}, {"kinds": ["x"]}, {"modules": 3}, {"dtype": "int8"}):
        (folder / "statistics.json").write_text(json.dumps(content | change))
        with pytest.raises(AdapterError, match=r"statistics\.json: is not understood .* expected version 1"):
            read_statistics(folder)
    (folder / "statistics.json").write_text("{")
    with pytest.raises(AdapterError, match="not acceptable JSON"):
        read_statistics(folder)


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
