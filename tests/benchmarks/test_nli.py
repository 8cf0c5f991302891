"""The protocol of the NLI benchmark: halves, scorer, coefficient search, errors. Small slices only."""

from __future__ import annotations

import copy
import importlib
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import riemerge
from benchmarks.nli import (
    ideas,
    material,
    protocol,
    report,
    scorer,
    specialist_statistics,
    subsets,
    train,
)
from benchmarks.nli.material import TASKS, Pair, Rows
from benchmarks.nli.protocol import Bench
from riemerge.errors import NumericalError, RecipeError
from riemerge.formats.dialects import read_adapter
from riemerge.methods import METHODS
from riemerge.recipes.candidates import Candidate, parse
from riemerge.study.result_table import ResultTable
from tests.helpers import seeded, shared_data_folder

needs_data = pytest.mark.skipif(
    shared_data_folder() is None, reason="the rows do not travel with the project"
)
needs_all = pytest.mark.skipif(not material.available(), reason="no rows, or no package of the base model")

# --- halves -------------------------------------------------------------------------------------------------


def some_pairs(sizes: Sequence[int], labels: Sequence[str], seed: int) -> list[Pair]:
    """Rows whose premises occur as often as `sizes` says, in random order."""
    generator = random.Random(seed)
    pairs = [
        Pair(f"Premise {group}", f"hypothesis {group} {row}", generator.choice(labels))
        for group, size in enumerate(sizes)
        for row in range(size)
    ]
    generator.shuffle(pairs)
    return pairs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", [[1] * 101, [3] * 40 + [1] * 11, [9, 7, 5, 5, 3, 2, 1, 1, 1]])
def test_halves_are_a_partition_that_cuts_no_group(sizes: list[int], seed: int) -> None:
    pairs = some_pairs(sizes, material.LABELS[:3], seed)
    dev, test = material.halves("snli", pairs)
    assert sorted(dev + test) == list(range(len(pairs)))
    assert (dev, test) == (sorted(dev), sorted(test))
    of = material.groups("snli", pairs)
    assert not {of[place] for place in dev} & {of[place] for place in test}
    assert material.halves("snli", pairs) == (dev, test)
    if len(sizes) > 20:  # of a few groups one partition may be the best from any start
        assert material.halves("snli", pairs, seed=1) != (dev, test)
    apart = Counter(pairs[place].label for place in dev)
    apart.subtract(pairs[place].label for place in test)
    if max(sizes) == 1:
        assert max(map(abs, apart.values())) <= 1
    # Of two signs of each group the better: squares add up to no more than those of the groups.
    within = Counter((of[place], pairs[place].label) for place in range(len(pairs)))
    assert sum(one**2 for one in apart.values()) <= sum(one**2 for one in within.values())


def test_groups_are_rows_of_one_premise_and_in_scitail_of_one_hypothesis() -> None:
    pairs = [Pair("A", "x", "entailment"), Pair("a", "y", "entailment"), Pair("b", "X", "entailment")]
    assert material.groups("snli", pairs) == [0, 0, 1]
    assert material.groups("scitail", pairs) == [0, 1, 0]


@needs_data
@pytest.mark.parametrize("task", TASKS)
def test_halves_of_the_real_rows_have_equal_classes(task: str) -> None:
    pairs = material.load(task)
    dev, test = (Counter(pairs[place].label for place in half) for half in material.halves(task, pairs))
    assert set(dev) == set(test) == set(material.LABELS[:3] if task not in material.TWO_WAY else _TWO)
    assert all(abs(dev[label] - test[label]) <= 2 for label in dev)  # of 100 or more


_TWO = ("entailment", "not_entailment")

# --- scorer -------------------------------------------------------------------------------------------------


def fake_tokenizer(first: list[str], second: list[str], **_: Any) -> dict[str, list[list[int]]]:
    """Numbers made of letters: a tokenizer to be scored with, not to be understood."""
    pairs = list(zip(first, second, strict=True))
    ids = [[1, *(2 + ord(c) % 40 for c in a), 1, *(2 + ord(c) % 40 for c in b), 1] for a, b in pairs]
    types = [[0] * (len(a) + 2) + [1] * (len(b) + 1) for a, b in pairs]
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": [[1] * len(one) for one in ids]}


@pytest.fixture(scope="module")
def tiny() -> Any:
    """A BERT of random weights, large enough to change its mind."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return transformers.BertModel(config).eval()


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Pair]]:
    two = [Pair(p, h + " too", label) for p, h, label in some_pairs([1] * 19, _TWO, 5)]
    three = [
        Pair(p * (1 + i % 3), h, x)
        for i, (p, h, x) in enumerate(some_pairs([1] * 23, material.LABELS[:3], 6))
    ]
    return {"snli": three, "rte": two}


def directly(model: Any, output: Tensor, task: str, pair: Pair) -> bool:
    """One row, unpadded, by the formulas as they are written down."""
    encoded = fake_tokenizer([pair.premise], [pair.hypothesis])
    hidden = model(**{name: torch.tensor(value) for name, value in encoded.items()}).last_hidden_state[0]
    pooled = hidden.double().mean(dim=0)
    cosines = [float(pooled @ one) / float(pooled.norm() * one.norm()) for one in output.double()]
    likely = [math.exp(20 * cosine) for cosine in cosines]
    if task in material.TWO_WAY:
        return (likely[0] / sum(likely) > 0.5) == (pair.label == "entailment")
    return pair.label == ("entailment", "neutral", "contradiction")[likely.index(max(likely))]


def test_a_score_is_that_of_base_plus_multiple_of_update_row_by_row(
    tiny: Any, rows: dict[str, list[Pair]]
) -> None:
    generator = seeded(3)
    output = torch.randn(3, 16, generator=generator)
    output = torch.nn.functional.normalize(output - output.mean(dim=0), dim=1)
    names = [name for name, _ in tiny.named_modules() if name.endswith(("query", "output.dense"))]
    shapes = {name: tiny.get_submodule(name).weight.shape for name in names}
    many = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    few = {names[0]: torch.randn(shapes[names[0]], generator=generator)}
    ours, table = scorer.Scorer(tiny, output), Rows.of(rows, fake_tokenizer)
    before = copy.deepcopy(tiny.state_dict())
    seen = set()
    for update, coefficient in ((many, 1.0), (few, 2.0), ({}, 1.0), (many, -0.5), (many, 1.0)):
        model = copy.deepcopy(tiny)
        with torch.no_grad():
            for name, change in update.items():
                model.get_submodule(name).weight += coefficient * change
            expected = {
                task: [directly(model, output, task, pair) for pair in pairs] for task, pairs in rows.items()
            }
        found = ours.correct(table, update, coefficient)
        assert {task: bits.tolist() for task, bits in found.items()} == expected
        for task in rows:
            assert ours.correct(table.only(task), update, coefficient)[task].equal(found[task])
        seen.add(json.dumps(expected))
    assert len(seen) == 4  # the fifth is the first again
    assert all(weight.equal(before[name]) for name, weight in tiny.state_dict().items())


def test_what_is_padded_has_no_part_in_the_mean() -> None:
    hidden, output = torch.randn(4, 6, 5, generator=seeded(1)), torch.eye(3, 5)
    lengths = (6, 1, 3, 5)
    mask = torch.tensor([[int(place < length) for place in range(6)] for length in lengths])
    for row, length in enumerate(lengths):
        mean = hidden[row, :length].mean(dim=0)
        expected = 20 * (mean / mean.norm())[:3]
        torch.testing.assert_close(scorer.logits(hidden, mask, output)[row], expected)


def test_of_two_classes_entailment_needs_more_than_one_half() -> None:
    likely = torch.tensor([[0.4, 0.3, 0.3], [0.51, 0.25, 0.24], [0.4, 0.45, 0.15], [0.1, 0.2, 0.7]])
    assert scorer.answers(likely.log(), torch.tensor(False)).tolist() == [0, 0, 1, 2]
    assert scorer.answers(likely.log(), torch.tensor(True)).tolist() == [3, 0, 3, 3]


def test_directions_are_three_words_minus_their_mean(tiny: Any) -> None:
    class Words:
        def convert_tokens_to_ids(self, words: list[str]) -> list[int]:
            return [{"yes": 7, "maybe": 30, "no": 9}[word] for word in words]

    found = scorer.directions(tiny, Words())
    words = tiny.embeddings.word_embeddings.weight.detach().double()[[7, 30, 9]]
    expected = words - words.sum(dim=0) / 3
    torch.testing.assert_close(found, (expected / expected.norm(dim=1, keepdim=True)).float())


@needs_all
@pytest.mark.slow
def test_the_scorer_finds_the_accuracies_that_were_published_with_the_specialists() -> None:
    """One task, all of its rows. Those were scored in bfloat16, which moves up to two answers of a task."""
    base = material.base_folder()
    assert base is not None
    model, tokenizer = scorer.load_base(base)
    ours = scorer.Scorer(model, scorer.directions(model, tokenizer))
    table = Rows.of({"scitail": material.load("scitail")}, tokenizer)
    folder = material.specialists("shared")["scitail"]
    published = json.loads((folder.parent / "baselines.json").read_text(encoding="utf-8"))
    adapter = read_adapter(folder)
    own = scorer.dense({module: adapter.update(module) for module in adapter.modules})
    for name, update in (("base", {}), ("specialist", own)):
        found = ours.correct(table, update)["scitail"].double().mean().item()
        assert abs(found - published[name]["scitail"]) <= 2 / 360 + 5e-5


# --- protocol -----------------------------------------------------------------------------------------------


def test_every_row_for_six_models_is_a_candidate_under_a_name_that_reads_back() -> None:
    found = protocol.candidates()
    assert [parse(one.name) for one in found] == found
    left_out = set(METHODS) - {one.method for one in found}
    assert left_out == {
        *(name for name, row in METHODS.items() if row.base_statistics),
        *("slerp", "nuslerp", "nuslerp_rows", *protocol.LONG),
    }
    assert {"regmean", "fisher", "lowrank_mats"} <= {one.method for one in found}
    assert Candidate("lowrank_mats", {"rank": "sum"}) not in found  # a rank is its very point
    assert Candidate("average", {"rank": "sum"}) in found
    assert Candidate("ties", {"rank": "sum", "density": 0.2}) in found
    assert parse("ties:density=0.2").parameters == {"density": 0.2}
    for text in ("average:density=0.2", "tsvv", "ties:density=2"):
        with pytest.raises(RecipeError):
            parse(text)


@pytest.mark.parametrize("size", [1, 8, 13])
def test_packed_bits_read_back(size: int) -> None:
    bits = torch.rand(size, generator=seeded(size)) > 0.5
    assert protocol.unpacked(protocol.packed({"t": bits})["t"], size).tolist() == bits.tolist()


def test_a_signature_tells_updates_apart_and_is_linear() -> None:
    generator = seeded(9)
    one = {name: torch.randn(30, 20, generator=generator) for name in "ab"}
    first = protocol.signature(one, 2.0)
    again = protocol.signature({x: 3 * one[x] for x in "ba"}, 6.0)
    assert first == pytest.approx(again, rel=1e-6)  # sums of 600 terms of float32
    swapped = protocol.signature({"a": one["b"], "b": one["a"]}, 2.0)
    assert max(abs(x - y) for x, y in zip(first, swapped, strict=True)) > 0.1


@needs_data
def test_looks_rest_and_test_half_share_no_group() -> None:
    found = material.read_material(fake_tokenizer)
    for task in TASKS:
        pairs = material.load(task)
        dev, test = material.halves(task, pairs)
        sizes = found.looks.sizes[task], found.rest.sizes[task]
        assert (sum(sizes), found.test.sizes[task]) == (len(dev), len(test))
        assert abs(sizes[0] - sizes[1]) <= 0.25 * len(dev)  # groups of scitail are large
        of = material.groups(task, [pairs[place] for place in dev])
        assert sizes[0] == sum(group % 2 == 0 for group in of)


LIMIT, GRID = 5, (1.0, 2.0)
CARTS = ("cart:rank_fraction=0.02", "cart:rank_fraction=0.3")  # two settings of one method and rank


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nli")


@pytest.fixture(scope="module")
def bench(folder: Path) -> Iterator[Bench]:
    threads = torch.get_num_threads()
    yield Bench("own", folder, limit=LIMIT, grid=GRID)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def results(bench: Bench) -> dict[str, dict[str, Any]]:
    asked = ["average:rank=sum", "tsv:rank=4", "knots_ta:rank=sum", *CARTS]
    found = protocol.run_all(bench.run, [parse(text) for text in asked])
    assert bench.measured == len(asked)
    return dict(zip(asked, found, strict=True))


@needs_all
def test_the_coefficient_is_the_best_of_the_dev_half_and_the_test_half_is_seen_once(
    bench: Bench, results: Mapping[str, Any]
) -> None:
    specialist = bench.reference["specialist"]
    for one in results.values():
        tried = [look["coefficient"] for look in one["looks"]]
        scores = [
            sum(look["looks"][task] / specialist["looks"][task] for task in TASKS) / 6
            for look in one["looks"]
        ]
        assert tried[: len(GRID)] == list(GRID)
        hump = tried[scores.index(max(scores[: len(GRID)]))]
        assert tried[len(GRID) :] == pytest.approx([hump / math.sqrt(2), hump * math.sqrt(2)])
        assert one["coefficient"] == tried[scores.index(max(scores))]
        for task in TASKS:
            assert protocol.unpacked(one["correct"][task], LIMIT).mean() == pytest.approx(one["test"][task])
    assert results["average:rank=sum"]["rank"] == 96
    assert results["tsv:rank=4"]["rank"] == 4
    assert 0 < results["tsv:rank=4"]["energy_kept"] < results["average:rank=sum"]["energy_kept"] == 1
    assert results["average:rank=sum"]["scale"] == pytest.approx(1)
    # The sum of six is six times the average, and brought to its norm like everything else.
    assert results["knots_ta:rank=sum"]["scale"] == pytest.approx(1 / 6)


@needs_all
def test_a_multiple_of_what_was_tried_is_not_tried_again(results: Mapping[str, Any]) -> None:
    first, second = results["average:rank=sum"], results["knots_ta:rank=sum"]
    assert second["same_as"] == "average:rank=sum"
    assert all(second[name] == first[name] for name in ("looks", "coefficient", "test", "correct"))
    assert not any("same_as" in results[name] for name in results if name != "knots_ta:rank=sum")


@needs_all
def test_nothing_is_measured_twice_and_other_inputs_are_measured_anew(
    bench: Bench, results: Mapping[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bench.table.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(scorer.Scorer, "correct", None)
        patch.setattr(protocol, "merge_adapters", None)
        again = Bench("own", folder, limit=LIMIT, grid=GRID)
        assert again.reference == bench.reference
        assert again.run(Candidate("tsv", {"rank": 4})) == results["tsv:rank=4"]
        assert again.measured == 0
        with pytest.raises(TypeError):
            Bench("own", folder, limit=LIMIT, grid=(1.0,))
        with pytest.raises(TypeError):
            again.run(Candidate("tsv", {"rank": 5}))
    assert before == bench.table.path.read_bytes()


@needs_all
def test_a_method_that_refuses_says_why_and_stops_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise NumericalError("0/0")

    monkeypatch.setattr(protocol, "merge_adapters", refuse)
    monkeypatch.setattr(bench, "table", ResultTable(tmp_path / "own.jsonl"))
    assert bench.run(Candidate("tsv"))["refused"] == ["0/0"]


@needs_all
def test_as_run_a_merge_is_scored_as_it_is_written_and_no_row_is_looked_at_before(
    bench: Bench, results: Mapping[str, Any], folder: Path, tmp_path: Path
) -> None:
    asked = ["spectrum", "spectrum:scale=1.0", "knots_ta", "task_arithmetic", "average:rank=sum"]
    found = dict(zip(asked, protocol.run_all(bench.as_run, [*map(parse, asked)]), strict=True))
    measured = bench.measured
    assert bench.as_run(parse("spectrum")) == found["spectrum"]
    assert bench.measured == measured
    for name, one in found.items():
        candidate = parse(name)
        folders = list(material.specialists("own").values())
        written = tmp_path / name
        result = riemerge.merge_adapters(folders, method=candidate.method, **candidate.parameters)
        result.save_pretrained(written)
        update = read_adapter(written)
        own = scorer.dense({module: update.update(module) for module in update.modules})
        correct = bench._scorer.correct(bench._material.test, own)
        assert protocol.packed(correct) == one["correct"]
        assert one["scale"] == pytest.approx(
            result.record.matched_scale or candidate.parameters.get("scale", 1)
        )
    assert found["spectrum"]["scale"] > 1.2
    assert ("dev" in found["spectrum"], "dev" in found["average:rank=sum"]) == (True, False)
    # Equal updates are scored once; a multiple is another merge.
    assert found["task_arithmetic"]["same_as"] == "knots_ta"
    assert "same_as" not in found["spectrum:scale=1.0"]
    read = report.read_results(bench.table.path)
    assert {protocol.label_of(one) for one in read.as_run} == set(found)


def test_as_run_every_row_is_measured_and_both_scales_where_there_is_a_choice() -> None:
    found = [one.name for one in protocol.as_run_candidates()]
    assert len(found) == len(set(found))
    assert {one.name for one in protocol.candidates() if "rank" not in one.parameters} <= set(found)
    assert {"average:rank=sum", "tsv:rank=sum"} <= set(found)
    assert {"spectrum:scale=1.0", "average:scale=matched", "karcher:scale=matched"} <= set(found)
    assert not {"tsv:scale=matched", "spectrum:scale=matched", "regmean:scale=matched"} & set(found)


def test_the_scale_counts_as_run_alone() -> None:
    plain, scaled = Candidate("average"), Candidate("average", {"scale": 2.0})
    assert protocol.key_of("x", plain) == protocol.key_of("x", scaled)
    assert protocol.key_of("x", plain, as_run=True) != protocol.key_of("x", scaled, as_run=True)
    said = Candidate("average", {"scale": 1.0})
    assert protocol.key_of("x", plain, as_run=True) == protocol.key_of("x", said, as_run=True)


@needs_all
def test_the_report_reads_what_was_measured_on_these_inputs(
    bench: Bench, results: Mapping[str, Any], tmp_path: Path
) -> None:
    copy_of_table = tmp_path / "own.jsonl"
    others = Bench("own", tmp_path / "other", limit=LIMIT, grid=(1.0,))
    others.run(parse("average"))
    row = others.table.rows["chosen/average"]
    copy_of_table.write_text(bench.table.path.read_text() + json.dumps(row) + "\n")
    assert report.read_results(copy_of_table) == report.read_results(bench.table.path)
    summary = report.summary(report.read_results(bench.table.path))
    entries = {entry["entry"]: entry for entry in summary["entries"]}
    assert set(results) <= set(entries)
    same = [entries[name]["chosen"] for name in ("knots_ta:rank=sum", "average:rank=sum")]
    assert same[0]["normalised"] == same[1]["normalised"]


def test_a_run_that_goes_on_adds_its_time_to_what_made_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = importlib.import_module("benchmarks.nli.__main__")
    for name in material.COLLECTIONS:
        (tmp_path / f"{name}.jsonl").touch()
    monkeypatch.setattr(command, "read_results", lambda _: report.Found({}, [{}], [{}]))
    monkeypatch.setattr(command, "summary", lambda *_: {})
    monkeypatch.setattr(command, "contests", lambda _: [])
    monkeypatch.setattr(command, "tables", lambda _: "")
    monkeypatch.setattr(command, "picture", lambda _: SimpleNamespace(savefig=lambda *_, **__: None))
    for measured, minutes, together in (
        (4, 3.0, (4, 3.0)),
        (1, 0.5, (4, 3.5)),  # one of the four again
        (0, 0.25, (4, 3.75)),
        (4, 2.0, (4, 2.0)),
    ):
        where = {"run": {"settings": 2, "measured": measured, "minutes": minutes}}
        command._write(tmp_path, where, complete=False)
        run = json.loads((tmp_path / "nli.json").read_text())["machine"]["run"]
        assert (run["measured"], run["minutes"]) == together


SIZES = {"snli": 90, "rte": 70}


def made_up(method: str, rate: float, dev: float, **parameters: Any) -> dict[str, Any]:
    """A result with random answers."""
    bits = {task: torch.rand(n, generator=seeded(int(1e6 * rate))) < rate for task, n in SIZES.items()}
    return {
        "method": method,
        "parameters": parameters,
        "dev": dev,
        "looks": [{}, {}, {}],
        "test": protocol.accuracies(bits),
        "correct": protocol.packed(bits),
        "rank": 16,
        "norm": 1.2,
        "energy_kept": 0.9,
        "coefficient": 2.0,
        "scale": 1.1,
        "seconds": {"merge": 1.5},
    }


def made_up_reference() -> dict[str, Any]:
    specialist, base = made_up("own", 0.8, 1), made_up("none", 0.4, 0)
    return {
        "sizes": {"test": SIZES},
        "cosine": 0.1,
        "groups": {task: [place // 3 for place in range(size)] for task, size in SIZES.items()},
        "specialist": {"test": specialist["test"], "correct": specialist["correct"]},
        "base": {"test": base["test"], "correct": base["correct"]},
    }


def test_a_report_has_every_setting_with_both_measures() -> None:
    reference = made_up_reference()
    specialist = reference["specialist"]["test"]
    whole, ties = made_up("average", 0.7, 0.9, rank="sum"), made_up("ties", 0.6, 0.8, density=0.2)
    run, plain = made_up("average", 0.65, 0.7, rank="sum"), made_up("average", 0.75, 0.7)
    refusal = {"method": "geomerge", "parameters": {}, "refused": ["why not"]}
    summary = report.summary(report.Found(reference, [whole, ties, refusal], [run, plain]))
    entries = {entry["entry"]: entry for entry in summary["entries"]}
    expected = {
        ("average:rank=sum", "chosen"): whole,
        ("ties:density=0.2", "chosen"): ties,
        ("average:rank=sum", "as_run"): run,
        ("average", "as_run"): plain,
    }
    there = {(n, m) for n, entry in entries.items() for m in ("as_run", "chosen") if m in entry}
    assert there == set(expected)
    for (name, measure), one in expected.items():
        shares = [one["test"][task] / specialist[task] for task in SIZES]
        found = entries[name][measure]
        assert found["normalised"] == pytest.approx(sum(shares) / 2)
        assert list(found["by_task"].values()) == pytest.approx(shares)
    assert (summary["specialists"]["normalised"], summary["specialists"]["error"]) == (1, 0)
    order = [entry.get("as_run", entry.get("chosen"))["normalised"] for entry in summary["entries"]]
    assert order == sorted(order, reverse=True)
    # Three rows of one group that are answered alike are worth one row.
    equal = made_up("tsv", 0.7, 0.9)
    for task, size in SIZES.items():
        bits = protocol.unpacked(equal["correct"][task], size)[np.arange(size) // 3]
        equal["correct"] |= protocol.packed({task: torch.tensor(bits)})
        reference["specialist"]["correct"] |= protocol.packed({task: torch.ones(size, dtype=torch.bool)})
    by_group = report.summary(report.Found(reference, [], [equal]))["entries"][0]["as_run"]["error"]
    single = {**reference, "groups": {task: list(range(size)) for task, size in SIZES.items()}}
    by_row = report.summary(report.Found(single, [], [equal]))["entries"][0]["as_run"]["error"]
    assert by_group == pytest.approx(math.sqrt(3) * by_row, rel=0.05)  # 10,000 draws: 1 % each
    told = report.for_package({"collections": {"own": summary, "shared": {**summary, "cosine": 0.3}}})
    share = pytest.approx(entries["average"]["as_run"]["normalised"], abs=5e-4)
    assert told == {"cosine": 0.2, "methods": {"average": [share, share]}}  # as run, without options
    machine = {"run": {"settings": 3, "measured": 2, "minutes": 61.2}}
    made = {"machine": machine, "contests": [], "collections": {"own": summary}}
    text = report.tables(made)
    assert all(f"`{name}`" in text for name in entries)
    assert "3 settings of each collection; 2 results in 61 minutes" in text
    assert "`geomerge` refused: why not" in text
    (line,) = (line for line in report.overview(made).splitlines() if "| `average` |" in line)
    assert f"{entries['average']['as_run']['normalised']:.3f} ± " in line
    assert line.count("–") == 1  # its scale was never chosen
    pytest.importorskip("matplotlib")
    assert len(report.picture(made).axes) == 1


def test_contests_are_pooled_over_collections_and_chosen_on_dev() -> None:
    reference = made_up_reference()
    cut, whole = made_up("average", 0.62, 0.7), {**made_up("average", 0.66, 0.9, rank="sum"), "rank": 96}
    tsv = made_up("tsv", 0.64, 0.8)
    # Better on the test half, worse on dev, and once better on the dev half of one collection only.
    early, late = made_up("spectrum", 0.79, 0.85, power=1.0), made_up("spectrum", 0.7, 0.95, power=0.5)
    data = made_up("regmean", 0.75, 0.99)
    default, geomerge = made_up("spectrum", 0.71, 0.9), made_up("geomerge", 0.5, 0.4)
    measured = {
        "own": report.Found(reference, [cut, whole, tsv, early, late, data], [default, geomerge, cut]),
        "shared": report.Found(
            reference, [cut, whole, tsv, {**early, "dev": 0.9}, late], [default, geomerge]
        ),
    }
    found = report.contests(measured)
    champion = "spectrum:power=0.5"
    assert [(one["measure"], one["rank"], one["ours"], one["theirs"]) for one in found] == [
        ("as run", None, "spectrum", "geomerge"),  # the average was not run on both
        ("chosen on dev", 16, champion, "average"),
        ("chosen on dev", 16, champion, "tsv"),
        ("chosen on dev", None, champion, "average:rank=sum"),
        ("chosen on dev", None, champion, "tsv"),
    ]
    assert not any(one["statistics"] for one in found)  # regmean is no row of ours
    # Equal collections, of the same rows: nothing is gained by counting them twice.
    alone = report.compare(report._tasks(reference, [late["correct"], cut["correct"]]))
    # (One draw in 10,000 may be a tie but for round-off, and counts twice in p.)
    assert {name: found[1][name] for name in alone} == pytest.approx(alone, abs=3e-4)
    assert found[1]["by_collection"] == pytest.approx({"own": alone["value"], "shared": alone["value"]})
    assert report.contest_table(found).count(f"`{champion}`") == 4


# --- sets of tasks ------------------------------------------------------------------------------------------


def test_every_pair_triple_and_quadruple_is_a_set() -> None:
    sizes = Counter(map(len, subsets.SETS))
    assert sizes == {2: 15, 3: 20, 4: 15, 6: 1}
    assert len({*subsets.SETS}) == len(subsets.SETS)


def made_up_sets(seed: int, lift: float) -> subsets.Measured:
    """Answers at random, of which the second entry has `lift` more right than the first."""
    generator = np.random.default_rng(seed)
    parts = {part: [place // 2 for place in range(40)] for part in ("dev", "test")}
    lines: list[dict[str, Any]] = []
    for task in TASKS:
        right = {part: protocol.packed({task: torch.ones(40, dtype=torch.bool)}) for part in parts}
        lines.append({"set": [task], "groups": parts, "correct": {"specialist": right}})
    names = [f"{one.method}, {one.rule}" for one in subsets.ASKED]
    for chosen in subsets.SETS:
        drawn = {task: generator.random(40) for task in chosen}
        correct = {
            name: {
                part: protocol.packed(
                    {
                        t: torch.tensor(x < 0.5 + lift * (name == "spectrum, matched"))
                        for t, x in drawn.items()
                    }
                )
                for part in parts
            }
            for name in names
        }
        lines.append({"set": list(chosen), "spectrum": {"matched": 1.2, "cosine": 0.1}, "correct": correct})
    return subsets.Measured.of(lines)


@pytest.mark.parametrize(("lift", "told"), [(0.0, False), (0.1, True)])
def test_a_gain_over_all_sets_is_what_it_is_and_noise_is_none(lift: float, told: bool) -> None:
    found = subsets.summary({"own": made_up_sets(1, lift), "shared": made_up_sets(2, lift)}, resamples=400)
    (one,) = (
        one
        for one in found["test"]
        if (one["ours"], one["theirs"], one["size"]) == ("spectrum, matched", "spectrum, scale 1", None)
    )
    assert one["count"] == 100
    assert one["value"] == pytest.approx(lift, abs=0.02)  # 10,000 answers of standard deviation 0.3
    assert (one["groups_low"] > 0, one["sets_low"] > 0) == (told, told)
    assert one["value"] == pytest.approx(np.mean(list(one["gains"].values())))
    assert one["lose"] == sum(gain < 0 for gain in one["gains"].values())
    assert len(subsets.contest_table(found["test"]).splitlines()) == 2 + len(found["test"])
    # A rule that is a measured power has what was measured there; a cap above the scale changes nothing.
    rules = {one["rule"]: one for one in found["rules"]}
    (dev,) = (x for x in found["dev"] if (x["ours"], x["size"]) == ("spectrum, matched", None))
    for name in ("matched^1", "matched, at most 1.3"):
        assert rules[name]["gain"] == pytest.approx(dev["value"])
        assert (rules[name]["lose"], rules[name]["worst"]) == (dev["lose"], pytest.approx(dev["worst"]))
    assert rules["matched, at most 1.15"]["gain"] < rules["matched^1"]["gain"] or not told
    assert len(subsets.rule_table(found["rules"]).splitlines()) == 2 + len(rules)


def test_rows_of_sets_that_were_measured_on_other_inputs_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "sets.jsonl"
    lines = [("a", "x", 4), ("b", "y", 2), ("a", "z", 3)]
    path.write_text("".join(json.dumps({"key": k, "name": s, "n": n}) + "\n" for k, s, n in lines))
    assert [row["n"] for row in subsets.current_rows(ResultTable(path))] == [4, 3]
    assert subsets.current_rows(ResultTable(tmp_path / "none.jsonl")) == []


# --- training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("two_way", [False, True])
def test_the_loss_is_the_likelihood_of_what_is_scored(two_way: bool) -> None:
    scores = 3 * torch.randn(7, 3, generator=seeded(2), dtype=torch.float64)
    labels = torch.tensor([0, 3, 3, 0, 0, 3, 0] if two_way else [0, 1, 2, 2, 1, 0, 0])
    likely = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
    own = torch.where(labels == 0, likely[:, 0], 1 - likely[:, 0]) if two_way else likely[range(7), labels]
    torch.testing.assert_close(specialist_statistics.loss(scores, labels, two_way), -own.log())


def test_the_rate_rises_and_falls_linearly() -> None:
    rates = [train._rate(step, 100) for step in range(101)]
    assert rates[:7] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1])
    assert rates[6:] == pytest.approx(list(np.linspace(1, 0, 95)))


# --- ideas --------------------------------------------------------------------------------------------------


def some_forms(generator: torch.Generator, count: int, size: int) -> Tensor:
    draws = torch.randn(count, size, 3 * size, generator=generator, dtype=torch.float64)
    return draws @ draws.mT


def test_fitted_ideas_are_where_their_gradient_vanishes() -> None:
    generator = seeded(4)
    x = torch.randn(6, 20, 18, generator=generator, dtype=torch.float64)
    grams, covariances = some_forms(generator, 6, 18), some_forms(generator, 6, 20)
    for name, weights in (("regmean", (1,) * 6), ("regmean, snli 1.5, rte 0.7", (1.5, 1, 1, 1, 0.7, 1))):
        forms = ideas.ridged(grams, 0.01) * torch.tensor(weights)[:, None, None]
        left = ((ideas.FITTED[name](x, grams, covariances).value - x) @ forms).sum(dim=0)
        assert left.norm() < 1e-9 * (x @ forms).norm()
    forms = ideas.ridged(grams, 0.01)
    forms = (
        forms
        / torch.stack([(one @ form * one).sum() for one, form in zip(x, forms, strict=True)])[:, None, None]
    )
    left = ((ideas.FITTED["regmean over effect"](x, grams, covariances).value - x) @ forms).sum(dim=0)
    assert left.norm() < 1e-9 * (x @ forms).norm()
    lefts, rights = ideas.ridged(covariances, 0.01), ideas.ridged(grams, 0.01)
    value = ideas.least(x, lefts, rights, budget=400)
    assert (lefts @ (value - x) @ rights).sum(dim=0).norm() < 1e-7 * (lefts @ x @ rights).norm()
    few = ideas.FITTED["Fisher"](x, grams, covariances).value  # fifteen in the mean metric are nearly there
    assert (few - value).norm() < 0.01 * value.norm()


def test_a_cut_in_the_metric_is_the_nearest_there() -> None:
    generator = seeded(5)
    value = torch.randn(30, 24, generator=generator, dtype=torch.float64)
    right, left = some_forms(generator, 1, 24)[0], some_forms(generator, 1, 30)[0]
    for form in (None, left):
        found = ideas.variant(ideas.Fit(value, right, form), ideas.WITHIN)
        assert torch.linalg.matrix_rank(found) == ideas.RANK
        l_root = torch.linalg.cholesky(left).mT if form is not None else torch.eye(30, dtype=torch.float64)
        r_root = torch.linalg.cholesky(right)
        error = (l_root @ (value - found) @ r_root).norm()
        tail = torch.linalg.svdvals(l_root @ value @ r_root)[ideas.RANK :].norm()  # Eckart and Young
        assert error == pytest.approx(float(tail), rel=1e-9)
    plain = ideas.variant(ideas.Fit(value), ideas.WITHIN)
    torch.testing.assert_close(plain, ideas.variant(ideas.Fit(value), ideas.CUT))


def test_free_ideas_at_their_ends_are_what_they_soften() -> None:
    x = torch.randn(6, 40, ideas.RANK, generator=seeded(6), dtype=torch.float64)
    x = x @ torch.randn(6, ideas.RANK, 50, generator=seeded(7), dtype=torch.float64)
    torch.testing.assert_close(ideas.softened(x, 0.0), x.sum(dim=0))
    torch.testing.assert_close(ideas.power(x[0], 1.0), x[0])
    total, grams = x.sum(dim=0), x.mT @ x / x.square().sum(dim=(1, 2), keepdim=True)
    found = ideas.anchored(x, 0.3)
    pull = 0.3 * 6 / 50 * (found - total)  # WUDI's gradient and that of the ridge cancel
    torch.testing.assert_close(((found - x) @ grams).sum(dim=0), -pull)
    whitened = ideas.softened(x, 1.0)
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    frames = [torch.cat(list(f[:, :, : ideas.RANK]), dim=1) for f in (u, vh.mT)]
    left, right = (torch.linalg.svd(f, full_matrices=False) for f in frames)  # the nearest frames: TSV-M
    expected = left.U @ left.Vh * sigma[:, : ideas.RANK].flatten() @ (right.U @ right.Vh).mT
    torch.testing.assert_close(whitened, expected, rtol=1e-6, atol=1e-6)
    equal = ideas.equalised({"a": x, "b": 2 * x})
    for module, factor in (("a", 1), ("b", 2)):
        norms = 5**0.5 * x.norm(dim=(1, 2))
        torch.testing.assert_close(equal[module], torch.einsum("t,tpq->pq", factor / norms, x))
    scaled = x * torch.tensor([1, 2, 3, 4, 5, 6.0])[:, None, None].to(x)
    for updates in (x, scaled):
        value = ideas.two_sided(updates, 1.0)
        forms = [
            u / u.square().sum(dim=(1, 2), keepdim=True) for u in (updates @ updates.mT, updates.mT @ updates)
        ]
        lefts, rights = (
            len(f[0]) * f / f.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None] + torch.eye(len(f[0])).to(f)
            for f in forms
        )
        slope = (lefts @ (value - updates) @ rights).sum(dim=0)
        assert slope.norm() < 1e-6 * (lefts @ updates @ rights).norm()


def test_findings_are_what_was_measured() -> None:
    found = json.loads((ideas.RESULTS / "ideas.json").read_text(encoding="utf-8"))
    assert list(found) == list(material.COLLECTIONS)
    text = Path(ideas.__file__).with_name("FINDINGS.md").read_text(encoding="utf-8")
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:3] == "| `"
    ]
    assert sorted([name, *shares] for name, _, *shares, _ in cells) == sorted(ideas.lines(found))
    names = [name + kind for name in ideas.NAMES for kind in ("", *ideas.CUTS.get(name, ()))]
    assert [list(one) for one in found.values()] == [names, names]


@needs_all
def test_ideas_are_tried_at_the_norm_of_the_average_and_cut_to_the_rank(bench: Bench) -> None:
    found = {name: update for name, update, _ in ideas.answers(bench, ["tsv", "average", "tsv:rank=16"])}
    assert list(found) == ["tsv", "tsv, cut", "average", "average, cut", "tsv:rank=16"]
    module = min(found["tsv"])
    for name, update in found.items():
        norm = math.hypot(*(float(one.norm()) for one in update.values()))
        assert norm == pytest.approx(bench.reference["average_norm"], rel=1e-5)
        rank = int((torch.linalg.svdvals(update[module].double()) > 1e-5 * update[module].norm()).sum())
        assert rank == (16 if name in {"tsv, cut", "average, cut", "tsv:rank=16"} else 96)
    for one, other in zip(found["tsv, cut"].values(), found["tsv:rank=16"].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


@needs_all
def test_statistics_are_of_these_rows_whatever_the_grid(
    bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specialist_statistics, "collect_statistics", lambda *_, **__: None)
    own = bench.statistics()
    assert len({*own}) == len(TASKS)
    assert (
        Bench("own", folder.parent / "other", limit=LIMIT, grid=(1.0,)).statistics()[0].parts[-2:]
        == own[0].parts[-2:]
    )
    monkeypatch.setattr(protocol, "EXAMPLES", 2)
    assert (
        Bench("own", folder.parent / "fewer", limit=LIMIT, grid=GRID).statistics()[0].parts[-2]
        != own[0].parts[-2]
    )
