"""A collection of adapters in words and columns: what the terminal and the page show."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import TypeAlias, get_args

from riemerge.records.collection_record import ClusterKind, CollectionRecord, Repetition
from riemerge.report.words import count, number, text_of, when

Cell: TypeAlias = str | int | float | None

Column: TypeAlias = tuple[str, Sequence[Cell]]
"""A header, and a value for each row."""

ACTIONS = {
    "drop": "drop copies",
    "choose": "choose one of several multiples",
    "geomerge": "merge by geomerge",
    "average": "merge by average",
    "default": "keep apart",
    "leave out": "look at outliers",
}
"""What advice is for, in words."""

ENOUGH = (0.5, 0.9)
"""Shares of the energy for which a summary says how many common directions keep them."""


def show(value: Cell) -> str:
    """Return a cell as text: a float to three digits, nothing for a missing value."""
    if isinstance(value, float):
        return number(value)
    return when(value is not None, f"{value}")


def summary(record: CollectionRecord) -> list[str]:
    """Say what was compared and what was found, a line each; nothing of what was not found."""
    lines = [_contents(record), _repetitions(record), _near(record), _clusters(record), _outliers(record)]
    return [line for line in (*lines, kept_energy(record), _left_out(record)) if line]


def advice_lines(record: CollectionRecord) -> dict[str, list[tuple[str, str]]]:
    """Return, for each kind of advice, its lines with the number that decided, and their commands, if any."""
    lines: dict[str, list[tuple[str, str]]] = {}
    for advice in record.advice:
        text = f"{advice.text}; {advice.measure} {number(advice.value)}"
        lines.setdefault(ACTIONS[advice.action], []).append((text, advice.command))
    return lines


def fold_command(command: str, width: int = 90, most: int = 6) -> list[str]:
    """Return a command of a shell as lines that can be copied; none where it is empty, or needs too many.

    Law: the lines together are the command: no word is broken, and a line that goes on ends with a backslash.
    """
    lines = [""]
    for word in map(shlex.quote, shlex.split(command)):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines[-1] += "\\"
            lines.append("  ")
        lines[-1] += f"{word} "
    return [line.rstrip(" ") for line in lines if command and len(lines) <= most]


def cluster_columns(record: CollectionRecord) -> list[Column]:
    """Return the columns of clusters that fit a terminal, a row for each that is not one adapter alone."""
    rows = [row for row in record.clusters if row.kind != "alone"]
    return [
        ("cluster", [row.label for row in rows]),
        ("kind", [row.kind for row in rows]),
        ("adapters", [len(row.members) for row in rows]),
        ("cosine inside", [row.cosine for row in rows]),
        ("outside", [row.cosine_outside for row in rows]),
        ("determined", [row.determined or "" for row in rows]),
        ("medoid", [row.medoid for row in rows]),
    ]


def likeness(repetition: Repetition) -> str:
    """Say how an adapter repeats the one that is kept."""
    texts = {"copy": "the same files", "refactored": "the same dW in other factors"}
    return texts.get(repetition.likeness, f"{number(repetition.factor)} times its dW")


def repetitions(record: CollectionRecord) -> dict[str, tuple[str, str]]:
    """Return, for each adapter that repeats another, the name of that and how it does, in words."""
    return {row.name: (group.kept, likeness(row)) for group in record.copies for row in group.repetitions}


def names_of(names: Collection[str], most: int = 4) -> str:
    """Return names with commas between them; of many the first, and how many more there are."""
    first = ", ".join(list(names)[:most])
    return f"{first}{when(len(names) > most, f' and {len(names) - most} more')}"


def _contents(record: CollectionRecord) -> str:
    adapters = record.adapters
    ranks = sorted({rank for adapter in adapters for rank in adapter.ranks})
    bases = _each(adapter.base_model or "not named" for adapter in adapters)
    modules = count(len(record.modules), "module")
    return (
        f"{count(len(adapters), 'adapter')} of {modules} compared; rank {_span(ranks)}, "
        f"{_each(adapter.dtype for adapter in adapters)}; base model {bases}"
    )


def _each(words: Iterable[str]) -> str:
    """Return each word once, the most frequent first, with its number where there are several."""
    counted = Counter(words).most_common()
    if len(counted) == 1:
        return counted[0][0]
    return names_of([f"{word} ({times})" for word, times in counted])


def _repetitions(record: CollectionRecord) -> str:
    found = repetitions(record)
    texts = [f"{name} of {kept} ({how})" for name, (kept, how) in found.items()]
    return when(found, f"{count(len(found), 'copy')}: {names_of(texts, 3)}")


def _near(record: CollectionRecord) -> str:
    texts = [f"{pair.first} and {pair.second} (cosine {pair.cosine:.4f})" for pair in record.near]
    return when(texts, f"{count(len(texts), 'pair')} nearly equal, but no copies: {names_of(texts, 3)}")


def _clusters(record: CollectionRecord) -> str:
    sizes = {
        kind: [len(row.members) for row in record.clusters if row.kind == kind]
        for kind in get_args(ClusterKind)
    }
    families = sizes["family"]
    texts = [
        when(families, f"{count(len(families), 'family')} of related adapters ({_span(families)} adapters)"),
        when(sizes["copies"], f"{count(len(sizes['copies']), 'adapter')} with copies only"),
        when(sizes["strangers"], f"{count(sum(sizes['strangers']), 'adapter')} unrelated to each other"),
        when(sizes["alone"], f"{count(len(sizes['alone']), 'adapter')} alone"),
    ]
    measured = record.silhouettes.get(len(record.clusters))
    silhouette = text_of(measured, "; mean silhouette {:.2f}", missing="")
    return f"clusters: {', '.join(filter(None, texts))}{silhouette}"


def _span(values: Collection[int]) -> str:
    """Return the least and the greatest of values, once where they are equal; nothing of no values."""
    ordered = sorted(values)
    return " to ".join(dict.fromkeys(f"{value}" for value in (*ordered[:1], *ordered[-1:])))


def _outliers(record: CollectionRecord) -> str:
    texts = [
        f"{row.name} (‖dW‖ {number(row.value)}, usual {number(row.usual)})"
        if row.measure == "norm"
        else f"{row.name} ({row.value:.0f}° from its nearest, usual {row.usual:.0f}°)"
        for row in record.outliers
    ]
    outliers = count(len({row.name for row in record.outliers}), "outlier")
    return when(texts, f"{outliers}: {names_of(texts, 3)}")


def kept_energy(record: CollectionRecord) -> str:
    """Say how many common directions a side keep half and most of the energy."""
    row, texts = record.kept[0], []
    for share in ENOUGH:
        enough = [(k, kept) for k, kept in zip(row.directions, row.kept, strict=True) if kept >= share]
        texts += [f"{k} keep {kept:.0%}" for k, kept in enough[:1]]
    texts = texts or [f"{row.directions[-1]} keep {row.kept[-1]:.0%}"]
    return f"common directions a side: {', '.join(dict.fromkeys(texts))} of the energy of all adapters"


def _left_out(record: CollectionRecord) -> str:
    names = [row.name for row in record.left_out]
    return when(names, f"{count(len(names), 'adapter')} left out: {names_of(names)}")
