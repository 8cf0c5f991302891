"""Results of the protocol as tables with errors: data, Markdown, picture."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import canvas, markdown, number, tell
from benchmarks.nli.protocol import AS_RUN, CHOSEN, REFERENCE, is_current, label_of, unpacked
from riemerge.methods import DEFAULT_METHOD, METHODS
from riemerge.study.paired_differences import Task, compare_two, draw_shares, measure_shares
from riemerge.study.result_table import ResultTable

RANK = 16  # of the specialists
RIVALS = ("average", "tsv", "iso_c", "core_ties")
INFORMED = ("regmean", "fisher")  # rivals of rows that have statistics, with the same
GEOMETRIC = frozenset(name for name, row in METHODS.items() if row.geometric)

AS_RUN_RIVALS: dict[str, tuple[str, ...]] = {
    DEFAULT_METHOD: (
        f"{DEFAULT_METHOD}:scale=1.0",
        "power_mean",
        "average",
        "average:scale=matched",
        "average:rank=sum",
        "task_arithmetic",
        "tsv",
        "tsv:rank=sum",
        "iso_c",
        "cart",
        "cart:scale=matched",
        "ties:density=0.2",
        "core_ties:density=0.2",
        "geomerge",
    ),
    "lowrank_mats": (DEFAULT_METHOD, "average", "regmean", "fisher"),
}
"""Who competes as run: the default row, and the best of those that have data, with rivals by name."""

HEADLINE = (
    DEFAULT_METHOD,
    *AS_RUN_RIVALS[DEFAULT_METHOD],
    "regmean",
    "lowrank_mats",
)
"""Rows of the short table."""


class Found(NamedTuple):
    """What a table has of one collection.

    Attributes:
        reference: Row of the specialists and the base by themselves.
        chosen: Results at a multiple chosen on dev.
        as_run: Results as the commands run.
    """

    reference: Mapping[str, Any]
    chosen: Sequence[Mapping[str, Any]]
    as_run: Sequence[Mapping[str, Any]]


def read_results(path: Path) -> Found:
    """Read the table of a collection; results of other inputs or defaults are left out."""
    rows = ResultTable(path).rows
    reference = rows.pop(REFERENCE)
    inputs = reference["key"].partition("/")[0]
    current = {name: row for name, row in rows.items() if is_current(row, inputs)}
    if others := [name for name in rows if name not in current]:
        tell(f"{path}: left out, of other inputs or defaults: {', '.join(others)}")
    chosen, as_run = (
        [row for name, row in current.items() if name.startswith(measure)] for measure in (CHOSEN, AS_RUN)
    )
    return Found(reference, chosen, as_run)


# --- shares with errors -------------------------------------------------------------------------------------


def summary(found: Found) -> dict[str, Any]:
    """Every setting in an entry, best first: as its command runs it, and at a multiple chosen on dev.

    Errors are of whole groups drawn again (rows of one premise), which are fewer than rows and so less sure.
    """
    reference = found.reference
    measured: dict[tuple[str, str], Mapping[str, Any]] = {
        (measure, label_of(one)): one
        for measure, results in (("as_run", found.as_run), ("chosen", found.chosen))
        for one in results
        if "correct" in one
    }
    alone = [reference["specialist"]["correct"], reference["base"]["correct"]]
    tasks = _tasks(reference, [*alone, *(one["correct"] for one in measured.values())])
    shares, errors = measure_shares(tasks), draw_shares(tasks).std(axis=0, ddof=1)
    scores = [
        {
            "normalised": float(shares[place]),
            "error": float(errors[place]),
            "by_task": {
                task: float(one.scores[place].mean() / one.specialist.mean())
                for task, one in zip(reference["sizes"]["test"], tasks, strict=True)
            },
        }
        for place in range(len(shares))
    ]
    entries: dict[str, dict[str, Any]] = {}
    for (measure, name), score in zip(measured, scores[2:], strict=True):
        one = measured[measure, name]
        entry = entries.setdefault(name, {"entry": name} | {key: one[key] for key in _NAMED})
        entry[measure] = score | {key: one[key] for key in _CARRIED[measure] if key in one}
    refused = {label_of(one): one["refused"][0] for one in [*found.as_run, *found.chosen] if "refused" in one}
    return {
        "sizes": reference["sizes"]["test"],
        "groups": {task: max(numbers) + 1 for task, numbers in reference["groups"].items()},
        "cosine": reference["cosine"],
        "specialists": scores[0],
        "base": scores[1],
        "entries": sorted(entries.values(), key=lambda entry: -_best_of(entry)),
        "refused": refused,
    }


_NAMED = ("method", "parameters", "rank")
_CARRIED = {
    "as_run": ("scale", "norm", "dev", "same_as"),
    "chosen": ("coefficient", "scale", "energy_kept", "dev", "seconds", "same_as"),
}


def _best_of(entry: Mapping[str, Any]) -> float:
    """What entries are in order of: the share as run, else that at the chosen multiple."""
    share: float = entry.get("as_run", entry.get("chosen"))["normalised"]
    return share


def for_package(report: Mapping[str, Any]) -> dict[str, Any]:
    """What `riemerge.report.verdict` tells users: the share of each row as it runs without options."""
    collections = list(report["collections"].values())
    shares = [
        {
            one["method"]: round(one["as_run"]["normalised"], 3)
            for one in found["entries"]
            if "as_run" in one and not one["parameters"]
        }
        for found in collections
    ]
    everywhere = sorted(set.intersection(*(set(one) for one in shares)))
    return {
        "cosine": round(sum(found["cosine"] for found in collections) / len(collections), 3),
        "methods": {name: [one[name] for one in shares] for name in everywhere},
    }


# --- who is better ------------------------------------------------------------------------------------------


def contests(measured: Mapping[str, Found]) -> list[dict[str, Any]]:
    """What rows are worth against others on the test halves of all collections together, paired.

    Law: whole groups are drawn again, the same in all collections, which share the rows. As run, rows compete
    by name (`AS_RUN_RIVALS`). At multiples chosen on dev, who competes is chosen on the dev half alone: of
    the geometric settings that all collections have that of the best mean dev score, once among the rows that
    need no data and once among those that have statistics; at the rank of the specialists and at any, against
    the setting of every rival that has the best mean dev score.

    Args:
        measured: Collection to what `read_results` found.
    """
    as_run = {name: _bylabel_of(found.as_run) for name, found in measured.items()}
    chosen = {name: _bylabel_of(found.chosen) for name, found in measured.items()}
    made = [
        _contest(measured, as_run, "as run", ours, rival)
        for ours, rivals in AS_RUN_RIVALS.items()
        for rival in rivals
        if all({ours, rival} <= set(one) for one in as_run.values())
    ]
    for data in (False, True):
        for rank in (RANK, None):
            champion = _best_on_dev(chosen, rank, {row for row in GEOMETRIC if _has_data(row) == data})
            rivals = (*RIVALS, *(INFORMED if data else ()))
            theirs = [_best_on_dev(chosen, rank, {rival}) for rival in rivals]
            made += [
                _contest(measured, chosen, "chosen on dev", champion, rival, rank)
                for rival in theirs
                if champion and rival
            ]
    return made


def _has_data(method: str) -> bool:
    return bool(METHODS[method].statistics)


def _bylabel_of(results: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {label_of(one): one for one in results if "correct" in one}


def _best_on_dev(
    collections: Mapping[str, Mapping[str, Mapping[str, Any]]], rank: int | None, methods: Collection[str]
) -> str | None:
    """The setting of the best mean dev score among those of some methods that all collections have."""
    common = set.intersection(*(set(one) for one in collections.values()))
    fitting = [
        name
        for name in sorted(common)
        if all(
            one[name]["method"] in methods and (rank is None or one[name]["rank"] <= rank)
            for one in collections.values()
        )
    ]
    return max(fitting, key=lambda name: sum(one[name]["dev"] for one in collections.values()), default=None)


def _contest(
    measured: Mapping[str, Found],
    results: Mapping[str, Mapping[str, Mapping[str, Any]]],
    measure: str,
    ours: str,
    theirs: str,
    rank: int | None = None,
) -> dict[str, Any]:
    pairs = {name: [results[name][one]["correct"] for one in (ours, theirs)] for name in measured}
    tasks = {name: _tasks(found.reference, pairs[name]) for name, found in measured.items()}
    return {
        "measure": measure,
        "statistics": _has_data(ours.partition(":")[0]),
        "rank": rank,
        "ours": ours,
        "theirs": theirs,
        **compare([task for one in tasks.values() for task in one]),
        "by_collection": {name: compare(one)["value"] for name, one in tasks.items()},
    }


def compare(tasks: Sequence[Task]) -> dict[str, Any]:
    """Return the difference of the first of two results to the second, as a `PairedDifference` has it."""
    return compare_two(measure_shares(tasks), draw_shares(tasks), 0, 1).model_dump()


def _tasks(reference: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> list[Task]:
    """What is drawn: whole groups of each task, whose number is its place, the same in all collections."""
    return [
        Task(
            np.stack([unpacked(row[task], size) for row in rows]),
            unpacked(reference["specialist"]["correct"][task], size),
            reference["groups"][task],
            number=place,
        )
        for place, (task, size) in enumerate(reference["sizes"]["test"].items())
    ]


# --- for people ---------------------------------------------------------------------------------------------


def tables(report: Mapping[str, Any]) -> str:
    """Markdown: who is better, and one table for each collection."""
    said = "{settings} settings of each collection; {measured} results in {minutes:.0f} minutes."
    parts = [said.format(**report["machine"]["run"]), contest_table(report["contests"])]
    for collection, found in report["collections"].items():
        tasks = list(found["sizes"])
        head = ["method", "rank", "scale", "norm", "as run", *tasks, "chosen on dev", "c", "scale", "seconds"]
        parts += [f"### {collection}", markdown(head, [_line(one, tasks) for one in found["entries"]])]
        parts += [f"`{name}` refused: {why}" for name, why in found["refused"].items()]
    return "\n\n".join(parts)


def overview(report: Mapping[str, Any]) -> str:
    """Markdown for the README: the rows of `HEADLINE` on each collection, by both measures."""
    collections = report["collections"]
    by_name = {
        name: {entry["entry"]: entry for entry in found["entries"]} for name, found in collections.items()
    }
    rows = [
        [
            f"`{row}`",
            str(max(one[row]["rank"] for one in by_name.values())),
            *(_share(one[row].get(measure)) for measure in ("as_run", "chosen") for one in by_name.values()),
        ]
        for row in HEADLINE
        if all(row in one for one in by_name.values())
    ]
    rows += [
        [title, "", *([_share(found[name]) for found in collections.values()] * 2)]
        for name, title in (("specialists", "each specialist on its own task"), ("base", "base model alone"))
    ]
    head = ["method", "rank"]
    head += [f"{measure}, {name}" for measure in ("as run", "scale chosen on dev") for name in collections]
    return markdown(head, rows)


def advice(report: Mapping[str, Any]) -> str:
    """Markdown for the README: which row to use when, with the figures that say so."""
    collections = report["collections"]
    by_name = {name: {one["entry"]: one for one in found["entries"]} for name, found in collections.items()}

    def shares(row: str) -> str:
        return " and ".join(f"{one[row]['as_run']['normalised']:.3f}" for one in by_name.values())

    def outcome(measure: str, ours: str) -> str:
        """Whom a row is better than on the test halves of all collections, and of whom that is not known."""
        found = [one for one in report["contests"] if (one["measure"], one["ours"]) == (measure, ours)]
        said = {
            better: ", ".join(
                f"`{one['theirs']}` ({one['value']:+.3f}, p = {number(one['p'])})"
                for one in found
                if (one["low"] > 0) == better
            )
            for better in (True, False)
        }
        known = f"better than {said[True]}" if said[True] else "better than none of its rivals"
        return f"{known}; **not established** against {said[False]}." if said[False] else f"{known}."

    champion = next(
        one["ours"] for one in report["contests"] if one["measure"] != "as run" and not one["statistics"]
    )
    # The default's norm is the mean of the specialists'.
    norms = " and ".join(
        f"{one['lowrank_mats']['as_run']['norm'] / one[DEFAULT_METHOD]['as_run']['norm']:.1f}"
        for one in by_name.values()
    )
    names = " and ".join(f"`{name}`" for name in collections)
    return "\n".join(
        [
            f"- **Without data**: `{DEFAULT_METHOD}`, the default. As run it keeps {shares(DEFAULT_METHOD)}",
            f"  on {names}, the plain average {shares('average')}. As run it is",
            f"  {outcome('as run', DEFAULT_METHOD)}",
            f"  With scales chosen on dev rows for all, `{champion}` is",
            f"  {outcome('chosen on dev', champion)}",
            "- **With 256 labelled rows of each task**: `lowrank_mats`. As run it keeps",
            f"  {shares('lowrank_mats')}: {outcome('as run', 'lowrank_mats')}",
            f"  Its result has {norms} times the norm of a specialist: what it does away from the tasks of",
            "  these rows is untested.",
            "- `geomerge`, the Fréchet mean of fixed rank as the paper prints it, keeps",
            f"  {shares('geomerge')}: use it where the report says that the adapters determine it.",
        ]
    )


def contest_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: every contest in a line."""
    rows = [
        [
            one["measure"],
            "train rows" if one["statistics"] else "no",
            "any" if one["rank"] is None else str(one["rank"]),
            f"`{one['ours']}`",
            f"`{one['theirs']}`",
            f"{one['value']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]",
            number(one["p"]),
            "yes" if one["low"] > 0 else "worse" if one["high"] < 0 else "**not established**",
        ]
        for one in found
    ]
    head = ["scale", "data", "rank", "ours", "theirs", "difference on test", "p", "better"]
    return markdown(head, rows)


def _share(score: Mapping[str, Any] | None) -> str:
    return "–" if score is None else f"{score['normalised']:.3f} ± {score['error']:.3f}"


def _line(entry: Mapping[str, Any], tasks: Sequence[str]) -> list[str]:
    as_run, chosen = entry.get("as_run"), entry.get("chosen")
    return [
        f"`{entry['entry']}`",
        str(entry["rank"]),
        number(as_run["scale"]) if as_run else "–",
        number(as_run["norm"]) if as_run else "–",
        _share(as_run),
        *(f"{as_run['by_task'][task]:.2f}" if as_run else "–" for task in tasks),
        _share(chosen),
        number(chosen["coefficient"]) if chosen else "–",
        number(chosen["scale"] * chosen["coefficient"]) if chosen else "–",
        number(chosen["seconds"]["merge"]) if chosen else "–",
    ]


def picture(report: Mapping[str, Any]) -> Any:
    """The rows of `HEADLINE` as run and with their scale chosen, with errors: a panel for each collection."""
    collections = report["collections"]
    figure, axes = canvas(1, len(collections), 6.5 * len(collections), 5.5)
    for axis, (collection, found) in zip(axes[0], collections.items(), strict=True):
        by_name = {entry["entry"]: entry for entry in found["entries"]}
        shown = [name for name in HEADLINE if name in by_name][::-1]
        for measure, colour, title in (
            ("as_run", "tab:blue", "as its command runs it"),
            ("chosen", "tab:orange", "scale chosen on labelled dev rows"),
        ):
            there = [place for place, name in enumerate(shown) if measure in by_name[name]]
            scores = [by_name[shown[place]][measure] for place in there]
            axis.errorbar(
                [one["normalised"] for one in scores],
                [place + (0.15 if measure == "as_run" else -0.15) for place in there],
                xerr=[one["error"] for one in scores],
                fmt="o",
                color=colour,
                label=title,
            )
        axis.set_yticks(range(len(shown)), shown, fontsize=8)
        axis.axvline(found["base"]["normalised"], color="tab:grey", linestyle=":", label="base model alone")
        axis.set_title(f"{collection}: share of the specialists' accuracy, test half")
        axis.legend(loc="lower left", fontsize=8)
    return figure
