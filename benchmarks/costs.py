"""What merges cost, for a page of `docs/`: the main figures of several results, a table each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks import common
from benchmarks.methods import FLAT
from riemerge.methods import METHODS

NAMES = {
    "default": "the default, `spectrum`",
    "average": "`average`",
    "geomerge": "`geomerge`",
    "script float32": "a script of 20 lines for the average, float32",
    "script float64": "the same in float64",
    "floor": "the floor: read, one Gram matrix and one product a side, write",
    "import torch": "`import torch` alone",
}


def costs() -> str:
    """Return the paragraphs and tables, of the results that are there."""
    parts = {"merge_llama": llama, "methods": rows, "scaling": growth, "collection": maps}
    texts = []
    for name, text in parts.items():
        path = common.RESULTS / f"{name}.json"
        if path.exists():
            texts.append(text(json.loads(path.read_text(encoding="utf-8"))))
    return "\n\n".join(texts)


def llama(result: Mapping[str, Any]) -> str:
    """Six adapters of an 8B model, file to file."""
    show, setting = common.number, result["setting"]
    floor = result["noise"]["floor"]["seconds"]["median"]
    table = [
        [
            NAMES[name],
            common.span(one["seconds"]),
            show(one["seconds"]["median"] / floor),
            f"{one['mib']['highest']:.0f}",
        ]
        for name, one in result["noise"].items()
    ]
    table += [
        [
            f"{tool}`{name}`" if kind else name,
            f"~ {duration(one['seconds'])}",
            show(one["seconds"] / floor),
            f"{one['mib']:.0f}",
        ]
        for tool, kind, name, one in named(result)
    ]
    text = (
        f"Six adapters of Llama-3-8B's shapes ({setting['modules']} modules, rank {setting['rank']}, "
        f"{setting['input_bytes'] / 1e9:.1f} GB in bfloat16), merged file to file on "
        f"{result['machine']['cores']} cores, whole processes; `~` is extrapolated from a module of some "
        "shapes, without reading and writing for PEFT, mergekit and KnOTS:"
    )
    head = ["", "seconds", "× the floor", "peak MiB"]
    return f"{text}\n\n{common.markdown(head, table)}"


def named(result: Mapping[str, Any]) -> Iterable[tuple[str, bool, str, Mapping[str, Any]]]:
    """What was extrapolated: the tool, whether what follows is a name in code, the name, the figures."""
    for name, one in result["entrywise"].items():
        yield "", True, name, one
    for name, one in result["rivals"].items():
        tool, _, kind = name.partition(" ")
        if tool in {"PEFT", "mergekit"}:
            yield f"{tool}'s ", True, kind, one
        else:
            yield "", False, name, one


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{common.number(seconds / size)} {unit}"
    return f"{common.number(seconds)} s"


def rows(result: Mapping[str, Any]) -> str:
    """What the rows of the table cost, by where they work."""
    ours, lines = result["riemerge"], []
    kinds = {
        "inner products and joint cores": lambda row: row.domain in FLAT,
        "cores on one side": lambda row: row.domain == "half" and not row.statistics,
        "entries": lambda row: row.domain == "entries" and not row.statistics,
        "statistics": lambda row: bool(row.statistics),
    }
    for title, belongs in kinds.items():
        some = {name: one for name, one in ours.items() if belongs(METHODS[name])}
        if some:
            fast, slow = (pick(some, key=lambda name: some[name]["seconds"]) for pick in (min, max))
            mib = max(one["mib"] for one in some.values())
            ends = [f"{duration(some[name]['seconds'])} (`{name}`)" for name in (fast, slow)]
            lines.append([title, str(len(some)), *ends, f"{mib:.0f}"])
    text = (
        f"Every row of the table on the first {result['setting']['modules']} of these modules (entries and "
        "statistics by extrapolation from one or two modules):"
    )
    head = ["rows of", "rows", "fastest", "slowest", "peak MiB of the largest"]
    return f"{text}\n\n{common.markdown(head, lines)}"


def growth(result: Mapping[str, Any]) -> str:
    """How seconds grow with adapters."""
    axis = result["axes"]["adapters"]
    counts = sorted({row["adapters"] for points in axis["rows"].values() for row in points})
    lines = []
    for method, points in axis["rows"].items():
        seconds = {row["adapters"]: common.number(row["seconds"]["median"]) for row in points}
        slopes = "; ".join(f"{common.number(one)} {part}" for part, one in axis["exponents"][method].items())
        lines.append([f"`{method}`", *(seconds.get(count, "–") for count in counts), slopes])
    base = axis["base"]
    text = (
        f"T adapters of rank {base['rank']}, {base['modules']} modules of {base['width']}², CPU seconds of "
        "one thread without imports:"
    )
    return f"{text}\n\n{common.markdown(['T', *map(str, counts), 'exponent'], lines)}"


def maps(result: Mapping[str, Any]) -> str:
    """What `riemerge map` costs and finds."""
    lines = []
    for count, one in result["maps"].items():
        planted, found = (sum(row[key] for row in one["found"].values()) for key in ("planted", "found"))
        seconds = one["runs"]["seconds"]["median"]
        lines.append(
            [count, duration(seconds), f"{one['runs']['mib']['highest']:.0f}", f"{found} of {planted}"]
        )
    head = ["adapters", "`riemerge map`", "peak MiB", "planted copies, families and outliers that were found"]
    text = "Collections of adapters of rank 8 with the 36 modules of MiniLM:"
    return f"{text}\n\n{common.markdown(head, lines)}"
