"""Results of the protocol as one table for each collection, with errors: data, Markdown, picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import canvas, markdown, number, tell
from benchmarks.nli.protocol import is_current, unpacked
from riemerge.bootstrap import Task, difference, draws, normalised
from riemerge.candidates import Candidate
from riemerge.methods import METHODS
from riemerge.methods.rows import constrained, geodesic, polar, spectrum

RANK = 16  # of the specialists
RIVALS = ("average", "tsv", "iso_c", "core_ties")
INFORMED = ("regmean", "fisher")  # rivals of rows that have statistics, with the same
GEOMETRIC = frozenset(row.name for family in (geodesic, polar, spectrum, constrained) for row in family.ROWS)
BASELINE = ("average", "sum")  # what every entry is compared with: the plain average, whole


def read_results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The reference of a collection, and its results; those of other inputs or defaults are left out."""
    paths = sorted(folder.glob("*.json"))
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    reference = found.pop("reference")
    inputs = reference["key"].partition("/")[0]
    others = [name for name, one in found.items() if not is_current(one, inputs)]
    if others:
        tell(f"{folder}: left out, of other inputs or defaults: {', '.join(others)}")
    return reference, [one for name, one in found.items() if name not in others]


def summary(reference: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Entries, best first: of each method and rank the setting that is best on the dev half.

    The looks of all of its settings are counted. Errors and p are of rows drawn again; `error_by_groups` of
    whole groups (rows of one premise), which are fewer and so less sure.
    """
    chosen = _chosen([one for one in results if "correct" in one])
    rows = {
        "specialists": reference["specialist"]["correct"],
        "base": reference["base"]["correct"],
        **{_label(one): one["correct"] for one, _ in chosen},
    }
    by_row, by_group = (_tasks(reference, list(rows.values()), grouped) for grouped in (False, True))
    found, drawn, drawn_groups = normalised(by_row), draws(by_row), draws(by_group)
    baseline = next((i for i, (one, _) in enumerate(chosen, 2) if _family(one) == BASELINE), None)
    entries = []
    for place, name in enumerate(rows):
        entry: dict[str, Any] = {
            "entry": name,
            "normalised": float(found[place]),
            "error": float(drawn[:, place].std(ddof=1)),
            "error_by_groups": float(drawn_groups[:, place].std(ddof=1)),
            "test": {
                task: float(one.scores[place].mean())
                for task, one in zip(reference["sizes"]["test"], by_row, strict=True)
            },
        }
        entry["accuracy"] = float(np.mean(list(entry["test"].values())))
        specialist = reference["specialist"]["test"]
        entry["by_task"] = {task: value / specialist[task] for task, value in entry["test"].items()}
        if place > 1:
            one, looks = chosen[place - 2]
            entry |= {name: one.get(name) for name in _CARRIED} | {"dev_looks": looks}
            if baseline is not None:
                entry["difference"] = difference(found, drawn, place, baseline)._asdict()
        entries.append(entry)
    ordered = sorted(entries, key=lambda entry: -entry["normalised"])
    refused = {_label(one): one["refused"][0] for one in results if "refused" in one}
    return {
        "sizes": reference["sizes"]["test"],
        "cosine": reference["cosine"],
        "entries": ordered,
        "refused": refused,
    }


_CARRIED = (
    *("method", "parameters", "rank", "energy_kept", "coefficient", "scale", "dev", "seconds", "same_as"),
)


def for_package(report: Mapping[str, Any]) -> dict[str, Any]:
    """What `riemerge.suitability` tells users: the share of each row at its defaults, by collection."""
    collections = list(report["collections"].values())
    shares = [
        {
            one["method"]: round(one["normalised"], 3)
            for one in found["entries"]
            if "method" in one and not one["parameters"]
        }
        for found in collections
    ]
    everywhere = sorted(set.intersection(*(set(one) for one in shares)))
    return {
        "cosine": round(sum(found["cosine"] for found in collections) / len(collections), 3),
        "methods": {name: [one[name] for one in shares] for name in everywhere},
    }


def contests(
    measured: Mapping[str, tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]],
) -> list[dict[str, Any]]:
    """What the geometric rows are worth against `RIVALS`, on the test half, paired.

    Law: who competes is chosen on the dev half alone, and the same everywhere: of the geometric settings that
    were measured on all collections that of the best mean dev score, once among the rows that need no data
    and once among those that have statistics; at the rank of the specialists and at any, against the best
    setting of that rank (on that collection's dev half) of every rival.

    Args:
        measured: Collection to what `read_results` found.
    """
    found = []
    for data in (False, True):
        for rank in (RANK, None):
            champion = _champion([results for _, results in measured.values()], data, rank)
            if champion is None:
                continue
            for collection, (reference, results) in measured.items():
                ours = next(one for one in results if _label(one) == champion)
                for rival in (*RIVALS, *(INFORMED if data else ())):
                    theirs = [one for one in _fitting(results, rank) if one["method"] == rival]
                    if theirs:
                        best = max(theirs, key=lambda one: one["dev"])
                        found.append(
                            {
                                "collection": collection,
                                "statistics": data,
                                "rank": rank,
                                "ours": champion,
                                "theirs": _label(best),
                                **compare(reference, ours, best),
                                "groups": compare(reference, ours, best, grouped=True),
                            }
                        )
    return found


def _champion(everywhere: Sequence[Sequence[Mapping[str, Any]]], data: bool, rank: int | None) -> str | None:
    """The geometric setting of the best mean dev score among those that all collections have."""
    scores = [
        {
            _label(one): one["dev"]
            for one in _fitting(results, rank)
            if one["method"] in GEOMETRIC and bool(METHODS[one["method"]].statistics) == data
        }
        for results in everywhere
    ]
    common = sorted(set.intersection(*(set(one) for one in scores)))
    return max(common, key=lambda name: sum(one[name] for one in scores), default=None)


def _fitting(results: Sequence[Mapping[str, Any]], rank: int | None) -> list[Mapping[str, Any]]:
    return [one for one in results if "dev" in one and (rank is None or one["rank"] <= rank)]


def compare(
    reference: Mapping[str, Any],
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    *,
    grouped: bool = False,
) -> dict[str, float]:
    """Difference of two results, paired (see `riemerge.bootstrap.Difference`); of groups drawn as one."""
    tasks = _tasks(reference, [first["correct"], second["correct"]], grouped)
    return difference(normalised(tasks), draws(tasks), 0, 1)._asdict()


def _chosen(results: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], int]]:
    """Of each method and rank what is best on the dev half, and all looks that it took."""
    families: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for one in results:
        families.setdefault(_family(one), []).append(one)
    return [
        (max(members, key=lambda one: one["dev"]), sum(len(one["looks"]) for one in members))
        for members in families.values()
    ]


def _family(result: Mapping[str, Any]) -> tuple[str, Any]:
    return result["method"], result["parameters"].get("rank")


def _label(result: Mapping[str, Any]) -> str:
    return Candidate(result["method"], result["parameters"]).name


def _tasks(reference: Mapping[str, Any], rows: Sequence[Mapping[str, str]], grouped: bool) -> list[Task]:
    return [
        Task(
            np.stack([unpacked(row[task], size) for row in rows]),
            unpacked(reference["specialist"]["correct"][task], size),
            reference["groups"][task] if grouped else None,
        )
        for task, size in reference["sizes"]["test"].items()
    ]


# --- for people ---------------------------------------------------------------------------------------------


def tables(report: Mapping[str, Any]) -> str:
    """Markdown: who wins, and one table for each collection."""
    said = "{settings} settings of each collection; {measured} results in {minutes:.0f} minutes."
    parts = [said.format(**report["machine"]["run"]), contest_table(report["contests"])]
    for collection, found in report["collections"].items():
        tasks = list(found["sizes"])
        head = ["method", "rank", "energy", "c", "looks", "seconds", "accuracy", "normalised", *tasks]
        head += ["− average", "p"]
        parts += [f"### {collection}", markdown(head, [_line(one, tasks) for one in found["entries"]])]
        parts += [f"`{name}` refused: {why}" for name, why in found["refused"].items()]
    return "\n\n".join(parts)


def overview(report: Mapping[str, Any]) -> str:
    """Markdown for the README: the contests, and every entry in a line with its score on each collection.

    Law: a line for each method and rank, of its setting that is best on dev; best mean on the test half
    first; `–` where a method refused a collection.
    """
    collections = report["collections"]
    lines: dict[tuple[str, Any], dict[str, Any]] = {}
    for name, found in collections.items():
        for entry in found["entries"]:
            label = f"`{entry['method']}`" if "method" in entry else entry["entry"]
            key = label, entry.get("parameters", {}).get("rank")
            lines.setdefault(key, {"label": label})[name] = entry
    rows = [
        [
            line["label"],
            str(max(line[name].get("rank", 0) for name in collections if name in line) or ""),
            *(
                f"{line[name]['normalised']:.3f} ± {line[name]['error']:.3f}" if name in line else "–"
                for name in collections
            ),
        ]
        for line in sorted(
            lines.values(),
            key=lambda line: (
                -float(np.mean([line[name]["normalised"] for name in collections if name in line]))
            ),
        )
    ]
    table = markdown(["method", "rank", *collections], rows)
    return f"{contest_table(report['contests'])}\n\n{table}"


def contest_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: every contest in a line."""
    rows = [
        [
            one["collection"],
            "train rows" if one["statistics"] else "no",
            "any" if one["rank"] is None else str(one["rank"]),
            f"`{one['ours']}`",
            f"`{one['theirs']}`",
            f"{one['value']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]",
            number(one["p"]),
            "yes" if one["low"] > 0 else "**no**",
            "[{low:+.3f}, {high:+.3f}]".format(**one["groups"]),
        ]
        for one in found
    ]
    head = [
        "collection",
        "data",
        "rank",
        "ours, chosen on dev",
        "theirs",
        "difference on test",
        "p",
        "better",
        "by groups",
    ]
    return markdown(head, rows)


def _line(entry: Mapping[str, Any], tasks: Sequence[str]) -> list[str]:
    ours = "method" in entry
    against = entry.get("difference")
    return [
        f"`{entry['entry']}`" if ours else entry["entry"],
        str(entry["rank"]) if ours else "",
        f"{entry['energy_kept']:.2f}" if ours else "",
        number(entry["coefficient"]) if ours else "",
        str(entry["dev_looks"]) if ours else "",
        number(entry["seconds"]["merge"]) if ours else "",
        f"{entry['accuracy']:.3f}",
        f"{entry['normalised']:.3f} ± {entry['error']:.3f}",
        *(f"{entry['by_task'][task]:.2f}" for task in tasks),
        f"{against['value']:+.3f} [{against['low']:+.3f}, {against['high']:+.3f}]" if against else "",
        number(against["p"]) if against else "",
    ]


def picture(report: Mapping[str, Any]) -> Any:
    """Bars with standard errors, best on top, one panel for each collection."""
    collections = report["collections"]
    longest = max(len(found["entries"]) for found in collections.values())
    figure, axes = canvas(1, len(collections), 7 * len(collections), 1.2 + 0.22 * longest)
    for axis, (collection, found) in zip(axes[0], collections.items(), strict=True):
        entries = found["entries"][::-1]
        values, errors = ([entry[name] for entry in entries] for name in ("normalised", "error"))
        colours = ["tab:blue" if "method" in entry else "tab:grey" for entry in entries]
        axis.barh([entry["entry"] for entry in entries], values, xerr=errors, color=colours)
        axis.set_xlim(max(0.0, min(values) - 0.05), max(values) + 0.05)
        axis.set_title(f"{collection}: normalised accuracy, test half")
        axis.tick_params(axis="y", labelsize=7)
    return figure
