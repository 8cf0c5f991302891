"""python -m benchmarks.nli.subsets: the scale without data, on every pair, triple and quadruple of tasks."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from benchmarks.common import canvas, machine, markdown, number, options, tell
from benchmarks.nli.material import (
    COLLECTIONS,
    MAX_LENGTH,
    SEED,
    TASKS,
    Rows,
    groups,
    halves,
    load,
    require,
)
from benchmarks.nli.protocol import DTYPE, Laboratory, digest, packed, unpacked
from benchmarks.nli.scorer import Dense, dense
from riemerge import merge_adapters
from riemerge.methods import METHODS
from riemerge.methods.scale import Norms, match_norms
from riemerge.study.paired_differences import RESAMPLES, summarize_draws
from riemerge.study.result_table import ResultTable, Row

RESULTS = Path(__file__).parent / "results"
SIZES = (2, 3, 4)
ALL = len(TASKS)
LOSS = 0.01
"""A set of which more than this is lost, as a share of the specialists, is one in which a rule is wrong."""

SETS: tuple[tuple[str, ...], ...] = tuple(
    chosen for size in (*SIZES, ALL) for chosen in itertools.combinations(TASKS, size)
)

EXPONENTS = {"scale 1": 0.0, "√matched": 0.5, "matched": 1.0, "matched^1.5": 1.5}
"""Rules of one factor for all modules: which power of the matched scale it is."""

BY_MODULE = "matched by module"
RULES = (*EXPONENTS, BY_MODULE)


class Asked(NamedTuple):
    """A row with a rule for its scale, and whether it is scored on dev rows, on test rows or on both."""

    method: str
    rule: str
    parts: tuple[str, ...]


ASKED: tuple[Asked, ...] = (
    *(
        Asked("spectrum", rule, ("dev", "test") if rule in {"scale 1", "matched"} else ("dev",))
        for rule in RULES
    ),
    *(Asked("average", rule, ("test",)) for rule in ("scale 1", "matched")),
)


# --- measuring ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """One half of the rows of a task."""

    rows: Rows
    groups: Sequence[int]


class _SubsetBench:
    """Measures sets of tasks of one collection."""

    def __init__(self, collection: str, limit: int | None) -> None:
        laboratory = Laboratory(collection)
        self._scorer, self._adapters = laboratory.scorer, laboratory.adapters
        self._parts = {task: _parts(task, laboratory.tokenizer, limit) for task in TASKS}
        rows = {asked.method: dict(METHODS[asked.method].defaults) | {"scale": None} for asked in ASKED}
        self.key = digest(laboratory.files, SEED, MAX_LENGTH, limit, str(DTYPE), ASKED, rows)

    def measure(self, chosen: tuple[str, ...]) -> Row:
        """Return what each method has right on a set of tasks, or what its specialist has on one task."""
        if len(chosen) == 1:
            (task,) = chosen
            adapter = self._adapters[task]
            own = dense({module: adapter.update(module) for module in adapter.modules})
            right = {part: self._score(chosen, part, own, 1.0) for part in ("dev", "test")}
            numbers = {part: one.groups for part, one in self._parts[task].items()}
            return {"set": chosen, "groups": numbers, "correct": {"specialist": right}}
        facts: Row = {"set": chosen}
        correct = {}
        for method in dict.fromkeys(asked.method for asked in ASKED):
            facts[method], merged = _merged(method, [self._adapters[task] for task in chosen])
            for _, rule, wanted in (one for one in ASKED if one.method == method):
                update = merged.get(rule, merged["scale 1"])
                factor = facts[method]["matched"] ** EXPONENTS.get(rule, 0.0)
                correct[f"{method}, {rule}"] = {
                    part: self._score(chosen, part, update, factor) for part in wanted
                }
        return {**facts, "correct": correct}

    def _score(self, tasks: Sequence[str], part: str, update: Dense, factor: float) -> dict[str, str]:
        right: dict[str, Tensor] = {}
        for task in tasks:
            right |= self._scorer.correct(self._parts[task][part].rows, update, factor)
        return packed(right)


def run_collection(name: str, folder: Path, limit: int | None) -> int:
    """Measure all sets of a collection, each a row of `subsets-NAME.jsonl`; those that are there stay.

    Returns:
        How many were measured.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bench, table = _SubsetBench(name, limit), ResultTable(folder / f"subsets-{name}.jsonl")
    measured = 0

    def measure(chosen: tuple[str, ...]) -> Row:
        nonlocal measured
        measured += 1
        tell(f"{name}: {'+'.join(chosen)}")
        return bench.measure(chosen)

    for chosen in [*((task,) for task in TASKS), *SETS]:
        table.keep("+".join(chosen), bench.key, partial(measure, chosen), dict)
    return measured


def _parts(task: str, tokenizer: Any, limit: int | None) -> dict[str, _Part]:
    pairs = load(task)
    found = {}
    for part, places in zip(("dev", "test"), halves(task, pairs), strict=True):
        chosen = [pairs[place] for place in places][:limit]
        found[part] = _Part(Rows.of({task: chosen}, tokenizer), groups(task, chosen))
    return found


def _merged(method: str, adapters: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Dense]]:
    """Return facts of a merge that need no data, and the merge at scale 1 and with each module matched."""
    merged = merge_adapters(adapters, method=method, threads=1, scale=1.0)
    weights = [1 / len(adapters)] * len(adapters)
    norms = {row.module: Norms(row.norm, row.input_norms, weights) for row in merged.record.modules}
    update = dense(merged.updates)
    totals = merged.record.totals
    assert totals.overlap is not None
    said = {
        "matched": match_norms(norms.values()),
        "cosine": totals.overlap.cosine,
        "norms": totals.input_norms,
    }
    return said, {
        "scale 1": update,
        BY_MODULE: {module: match_norms([norms[module]]) * change for module, change in update.items()},
    }


def current_rows(table: ResultTable) -> list[Row]:
    """Return the rows of a table that have the key of the first, which is the first to be measured anew."""
    rows = list(table.rows.values())
    return [row for row in rows if row["key"] == rows[0]["key"]]


# --- what was found -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One collection: by set and entry the right answers of each row, and those of the specialists."""

    correct: Mapping[tuple[str, ...], Mapping[str, Mapping[str, Mapping[str, str]]]]
    groups: Mapping[str, Mapping[str, Sequence[int]]]
    matched: Mapping[tuple[str, ...], float]
    cosine: Mapping[tuple[str, ...], float]

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]]) -> Measured:
        """Take the lines of a file apart."""
        by_set = {tuple(one["set"]): one for one in lines}
        return cls(
            {chosen: one["correct"] for chosen, one in by_set.items()},
            {chosen[0]: one["groups"] for chosen, one in by_set.items() if len(chosen) == 1},
            *(
                {chosen: one["spectrum"][what] for chosen, one in by_set.items() if len(chosen) > 1}
                for what in ("matched", "cosine")
            ),
        )

    def sums(self, chosen: tuple[str, ...], entry: str, part: str, task: str) -> np.ndarray:
        """How many rows of each group of a task are answered right, (groups,)."""
        numbers = np.asarray(self.groups[task][part])
        bits = unpacked(self.correct[chosen][entry][part][task], len(numbers))
        return np.bincount(numbers, weights=bits, minlength=numbers.max() + 1)


class Shares:
    """Shares of the specialists' accuracy of every set, as they are and with groups and sets drawn again.

    Law: a group of rows (one premise) is drawn as one, and the same groups for all sets, entries and
    collections: they share the rows. Seeded, so the same bits each time.
    """

    def __init__(self, collections: Mapping[str, Measured], part: str, resamples: int = RESAMPLES) -> None:
        self._collections, self._part = collections, part
        self.sets = [(name, chosen) for name, one in collections.items() for chosen in one.matched]
        self.counts: dict[str, np.ndarray] = {}
        first = next(iter(collections.values()))
        for place, task in enumerate(TASKS):
            size = max(first.groups[task][part]) + 1
            generator = np.random.default_rng([SEED, place])
            drawn = generator.multinomial(size, np.full(size, 1 / size), size=resamples)
            self.counts[task] = np.vstack([np.ones((1, size)), drawn])

    def of(self, entry: str) -> np.ndarray:
        """The mean share over its tasks of each set, (1 + resamples, sets): as they are in the first row."""
        columns = []
        for name, chosen in self.sets:
            one = self._collections[name]
            shares = [
                (self.counts[task] @ one.sums(chosen, entry, self._part, task))
                / (self.counts[task] @ one.sums((task,), "specialist", self._part, task))
                for task in chosen
            ]
            columns.append(np.mean(shares, axis=0))
        return np.stack(columns, axis=1)


def compared(gains: np.ndarray, sets: Sequence[tuple[str, tuple[str, ...]]]) -> dict[str, Any]:
    """The mean of gains (1 + resamples, sets): with 95 % intervals over groups, and over groups and sets.

    Sets are drawn again within those of one size and collection.
    """
    alike: dict[tuple[str, int], list[int]] = {}
    for place, (name, chosen) in enumerate(sets):
        alike.setdefault((name, len(chosen)), []).append(place)
    generator = np.random.default_rng(SEED)
    drawn = np.zeros(len(gains) - 1)
    for places in alike.values():
        picks = generator.choice(places, size=(len(drawn), len(places)))
        drawn += np.take_along_axis(gains[1:], picks, axis=1).sum(axis=1)
    drawn /= len(sets)
    by_group = gains[1:].mean(axis=1)
    found: dict[str, Any] = {"value": float(gains[0].mean())}
    for name, one in (("groups", by_group), ("sets", drawn)):
        sure = summarize_draws(found["value"], one[np.isfinite(one)])
        found |= {f"{name}_low": sure.low, f"{name}_high": sure.high, f"{name}_p": sure.p}
    return found


def summary(collections: Mapping[str, Measured], resamples: int = RESAMPLES) -> dict[str, Any]:
    """Every rule against scale 1 on dev rows; the default against scale 1 and the average on test rows."""
    found: dict[str, Any] = {"dev": [], "test": []}
    contests = [("dev", f"spectrum, {rule}", "spectrum, scale 1") for rule in RULES[1:]]
    contests += [
        ("test", "spectrum, matched", "spectrum, scale 1"),
        ("test", "spectrum, matched", "average, scale 1"),
        ("test", "average, matched", "average, scale 1"),
        ("test", "spectrum, matched", "average, matched"),
        ("test", "spectrum, scale 1", "average, scale 1"),
    ]
    for part in ("dev", "test"):
        shares = Shares(collections, part, resamples)
        names = {name for where, *pair in contests if where == part for name in pair}
        values = {name: shares.of(name) for name in sorted(names)}
        for _, ours, theirs in (one for one in contests if one[0] == part):
            for size in (*SIZES, None, ALL):
                which = [
                    place
                    for place, (_, chosen) in enumerate(shares.sets)
                    if (len(chosen) in SIZES if size is None else len(chosen) == size)
                ]
                gains = (values[ours] - values[theirs])[:, which]
                found[part].append(
                    {
                        "ours": ours,
                        "theirs": theirs,
                        "size": size,
                        "count": len(which),
                        "share": float(values[ours][0, which].mean()),
                        "against": float(values[theirs][0, which].mean()),
                        **compared(gains, [shares.sets[place] for place in which]),
                        "lose": int((gains[0] < 0).sum()),
                        "lose_much": int((gains[0] < -LOSS).sum()),
                        "worst": float(gains[0].min()),
                        "gains": {
                            f"{shares.sets[place][0]}: {'+'.join(shares.sets[place][1])}": float(gain)
                            for place, gain in zip(which, gains[0], strict=True)
                        },
                    }
                )
    found["rules"] = rules(collections)
    found["matched"] = {
        name: {"+".join(chosen): value for chosen, value in one.matched.items()}
        for name, one in collections.items()
    }
    return found


def exponents(matched: np.ndarray, cosine: np.ndarray, size: np.ndarray) -> dict[str, np.ndarray]:
    """Rules of one factor for all modules, as the power of the matched scale that each is in every set.

    Args:
        matched: The matched scale of each set.
        cosine: Mean cosine of its updates.
        size: How many there are.
    """
    one = np.ones_like(matched)
    return {
        **{f"matched^{power:g}": power * one for power in (0.5, 0.75, 1.0, 1.25, 1.5)},
        **{
            f"matched, at most {cap:g}": np.minimum(one, np.log(cap) / np.log(matched))
            for cap in (1.15, 1.2, 1.3, 1.4, 1.5)
        },
        "matched from three on, 1 for pairs": np.where(size == 2, 0.0, one),
        **{f"matched^(1 − {k} cosine)": one - k * cosine for k in (1, 2, 3)},
        **{f"1 where the cosine is above {c:g}": np.where(cosine > c, 0.0, one) for c in (0.1, 0.2, 0.3)},
    }


def rules(collections: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """What rules of one factor gain over scale 1 on dev rows, interpolated between the powers measured."""
    shares = Shares(collections, "dev", resamples=0)
    powers = np.array([*EXPONENTS.values()])
    gains = np.stack([shares.of(f"spectrum, {rule}")[0] for rule in EXPONENTS])
    gains -= gains[0]
    size = np.array([len(chosen) for _, chosen in shares.sets])
    facts = [
        np.array(
            [known[chosen] for name, chosen in shares.sets for known in [getattr(collections[name], what)]]
        )
        for what in ("matched", "cosine")
    ]
    found = []
    for name, exponent in exponents(facts[0], facts[1], size).items():
        gain = np.array(
            [np.interp(one, powers, gains[:, place]) for place, one in enumerate(np.clip(exponent, 0.0, 1.5))]
        )
        small = gain[size != ALL]
        found.append(
            {
                "rule": name,
                "gain": float(small.mean()),
                "lose": int((small < 0).sum()),
                "lose_much": int((small < -LOSS).sum()),
                "worst": float(small.min()),
                "six": float(gain[size == ALL].mean()),
            }
        )
    return found


# --- for people ---------------------------------------------------------------------------------------------


def tables(report: Mapping[str, Any]) -> str:
    """Markdown: the contests on test rows and the rules on dev rows."""
    return "\n\n".join(
        [
            "Test rows, which nothing was chosen by:",
            contest_table(report["test"]),
            "Dev rows, by which the rule was chosen:",
            contest_table(report["dev"]),
            "Rules of one factor on dev rows, between those powers of the matched scale by interpolation:",
            rule_table(report["rules"]),
        ]
    )


def contest_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line for each contest and size of the sets."""
    head = [
        "",
        "against",
        "sets",
        "share",
        "against",
        "difference",
        "p",
        "p, sets too",
        "sets that lose",
        "worst",
    ]
    rows = [
        [
            f"`{one['ours']}`",
            f"`{one['theirs']}`",
            f"{one['count']} of {_sizes(one['size'])}",
            f"{one['share']:.3f}",
            f"{one['against']:.3f}",
            f"{one['value']:+.3f} [{one['groups_low']:+.3f}, {one['groups_high']:+.3f}]",
            number(one["groups_p"]),
            number(one["sets_p"]),
            f"{one['lose']}, {one['lose_much']} by more than {LOSS:g}",
            f"{one['worst']:+.3f}",
        ]
        for one in found
    ]
    return markdown(head, rows)


def rule_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line for each rule."""
    head = ["rule", "gain over scale 1, sets of 2 to 4", "sets that lose", "worst", "gain on all six"]
    rows = [
        [
            one["rule"],
            f"{one['gain']:+.3f}",
            f"{one['lose']}, {one['lose_much']} by more than {LOSS:g}",
            f"{one['worst']:+.3f}",
            f"{one['six']:+.3f}",
        ]
        for one in found
    ]
    return markdown(head, rows)


def claim(report: Mapping[str, Any]) -> str:
    """What the README says of the default: what it gives without options, and in how many sets it loses."""

    def against(theirs: str, size: int | None = None, ours: str = "spectrum, matched") -> Mapping[str, Any]:
        pair = ours, theirs, size
        found: Mapping[str, Any] = next(
            one for one in report["test"] if (one["ours"], one["theirs"], one["size"]) == pair
        )
        return found

    scaled, average = against("spectrum, scale 1"), against("average, scale 1")
    by_size = ", ".join(
        "{value:+.3f} in sets of {size}, p = {p}".format(**one, p=number(one["sets_p"]))
        for one in (against("spectrum, scale 1", size) for size in SIZES)
    )
    longer = against("average, scale 1", ours="average, matched")
    six, average_six = against("spectrum, scale 1", ALL), against("average, scale 1", ALL)
    gain = "{value:+.3f} [{sets_low:+.3f}, {sets_high:+.3f}], p = {p},".format
    loss = f"{{lose_much}} by more than {LOSS:g}, at worst {{worst:+.3f}}".format
    return " ".join(
        [
            f"Over all {scaled['count']} pairs, triples and quadruples of both collections the default,",
            f"without options, keeps **{scaled['share']:.3f}** of the specialists' accuracy on test rows,",
            f"and {six['share']:.3f} on all six adapters. **It loses to the same mean at `--scale 1` in",
            f"{scaled['lose']} of the {scaled['count']} sets**, {loss(**scaled)};",
            f"to the plain average in {average['lose']}, {loss(**average)}.",
            f"The mean at `--scale 1` keeps {scaled['against']:.3f} and {six['against']:.3f}, the average",
            f"{average['against']:.3f} and {average_six['against']:.3f}: that is",
            gain(p=number(scaled["sets_p"]), **scaled),
            f"for the default over scale 1 ({by_size}), and",
            gain(p=number(average["sets_p"]), **average),
            "over the average (95 %, premise groups and sets drawn again). On the plain average the rule is",
            f"{'' if longer['sets_low'] > 0 else '**not** '}established:",
            gain(p=number(longer["sets_p"]), **longer),
            f"and it loses in {longer['lose']} sets; so the other rows keep their published scale.",
        ]
    )


def _sizes(size: int | None) -> str:
    return "2 to 4" if size is None else str(size)


def picture(report: Mapping[str, Any]) -> Any:
    """Gains of the matched scale over scale 1, set by set: test rows, one panel for each number of tasks."""
    figure, axes = canvas(1, len(SIZES) + 1, 4 * (len(SIZES) + 1), 4.5)
    wanted = [
        one
        for one in report["test"]
        if (one["ours"], one["theirs"]) == ("spectrum, matched", "spectrum, scale 1") and one["size"]
    ]
    for axis, one in zip(axes[0], wanted, strict=True):
        ordered = sorted(one["gains"].items(), key=lambda pair: pair[1])
        colours = ["tab:red" if gain < 0 else "tab:blue" for _, gain in ordered]
        axis.bar(range(len(ordered)), [gain for _, gain in ordered], color=colours)
        axis.axhline(0.0, color="black", linewidth=0.8)
        axis.set_title(f"{one['count']} sets of {one['size']}: mean {one['value']:+.3f}, {one['lose']} lose")
        axis.set_xticks([])
        axis.set_ylim(-0.05, 0.13)
    axes[0][0].set_ylabel(
        "gain of scale: matched over scale 1\n(share of the specialists' accuracy, test rows)"
    )
    return figure


# --- the command --------------------------------------------------------------------------------------------


def main() -> None:
    """Measure what is not there yet, then write and print the tables of all results."""
    asked = options("nli.subsets", __doc__ or "", RESULTS)
    path = asked.out / "subsets.json"
    if not asked.table:
        require()
        where, began = machine(1, "transformers", "numpy"), time.perf_counter()
        with ProcessPoolExecutor(len(COLLECTIONS), get_context("spawn")) as pool:
            limit = 12 if asked.quick else None
            started = [pool.submit(run_collection, name, asked.out, limit) for name in COLLECTIONS]
            measured = sum(one.result() for one in started)
        where["load"]["after"] = os.getloadavg()[0]
        where["run"] = {"measured": measured, "minutes": (time.perf_counter() - began) / 60}
        _write(path, where)
    print(tables(json.loads(path.read_text(encoding="utf-8"))))


def _write(path: Path, where: Mapping[str, Any]) -> None:
    tables_of = {name: ResultTable(path.parent / f"subsets-{name}.jsonl") for name in COLLECTIONS}
    collections = {name: Measured.of(current_rows(table)) for name, table in tables_of.items()}
    report = {"machine": where, **summary(collections)}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(tables(report) + "\n", encoding="utf-8")
    picture(report).savefig(path.with_suffix(".png"), dpi=110)
    tell(f"wrote {path}, subsets.md and subsets.png")


if __name__ == "__main__":
    main()
