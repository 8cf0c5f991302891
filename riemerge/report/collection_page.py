"""The page of a collection of adapters: one HTML file that needs nothing else, with tables that sort."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources

from riemerge.records.collection_record import CollectionRecord
from riemerge.report.collection_tables import Rows, adapter_rows, cluster_rows
from riemerge.report.collection_text import Cell, advice_lines, kept_energy, names_of, show, summary
from riemerge.report.words import count, printable, when

_PAIRS = """
Each row and each column is an adapter: red squares along the diagonal are families, white is
unrelated, blue is opposed. The tree joins what is nearest, at the mean distance √(2 - 2 cosine) of
what it joins.
"""

_MAP = """
Adapters as points (classical scaling): near points are adapters of like dW. Unrelated adapters are
all equally far from each other, which no plane can show; the title says how much this one does
show.
"""

_SPECTRA = """
Singular values of each dW as shares of its largest, medians over adapters and modules: the faster
they fall, the lower the rank that keeps most of an adapter.
"""

_KEPT = """
How compressible the collection is: the share of Σ ‖dW‖², each adapter scaled to norm 1, that stays
when all are projected on k common directions a side of each module (the measure of SHARE, arXiv
2602.06043).
"""

_PICTURES = {
    "pairs": ("Pairs", _PAIRS),
    "map": ("Map", _MAP),
    "spectra": ("Spectra", _SPECTRA),
    "kept": ("Common directions", _KEPT),
}
"""Title and caption of each picture."""

SHOWN_ADVICE = 10
"""Pieces of advice of a kind that are not folded away."""


def collection_page(record: CollectionRecord, pictures: Mapping[str, bytes], note: str = "") -> str:
    """Return the page: what was found and what to do first, then pictures and tables, then what is missing.

    Law: a function of its arguments; every name from outside is escaped; nothing is loaded from anywhere.

    Args:
        record: The collection.
        pictures: Pictures of `draw_collection`, PNG by file name; empty for none.
        note: A line about what is missing on the page.
    """
    parts = [f"<h1>A collection of {count(len(record.adapters), 'adapter')}</h1>"]
    parts += [
        "<h2>What was found</h2>",
        _list(summary(record)),
        when(note, f'<p class="note">{_text(note)}</p>'),
    ]
    parts += ["<h2>What to do</h2>", _advice(record)]
    for name, (title, caption) in _PICTURES.items():
        if png := pictures.get(f"{name}.png"):
            data = base64.b64encode(png).decode()
            image = f'<img alt="{_text(_alternative(record, name))}" src="data:image/png;base64,{data}">'
            explained = f"<figcaption>{_text(' '.join(caption.split()))}</figcaption>"
            parts.append(f"<h2>{title}</h2><figure>{image}{explained}</figure>")
    parts += [_tables(record), _missing(record)]
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    parts.append(f'<p class="note">Computed with {_text(versions)}.</p>')
    style, script = (_read(f"collection_page.{kind}") for kind in ("css", "js"))
    head = f'<meta charset="utf-8"><title>A collection of adapters</title><style>{style}</style>'
    body = f"<body><main>{''.join(parts)}</main><script>{script}</script></body>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n{body}</html>\n'


def _advice(record: CollectionRecord) -> str:
    """Return the advice, kind by kind; of a long kind all but the first pieces are folded away."""
    where = "Commands name adapters as the tables do: run them where these lie, or put paths for names."
    parts = [f'<p class="note">{where}</p>']
    for title, lines in advice_lines(record).items():
        items = [
            f"<li>{_text(text)}{when(command, f'<pre><code>{_text(command)}</code></pre>')}</li>"
            for text, command in lines
        ]
        first, others = items[:SHOWN_ADVICE], items[SHOWN_ADVICE:]
        rest = f"<details><summary>and {len(others)} more</summary><ul>{''.join(others)}</ul></details>"
        parts.append(f"<h3>{title}</h3><ul>{''.join(first)}</ul>{when(others, rest)}")
    return when(record.advice, "".join(parts)) or "<p>Nothing stands out.</p>"


def _tables(record: CollectionRecord) -> str:
    """Return the tables, each with its heading, but for those without a row."""
    search = '<input class="filter" data-table="adapters" type="search">'
    filter_by = f"<p><label>Show adapters whose row holds {search}</label></p>"
    clusters = [
        row | {"members": names_of(cluster.members, 12)}
        for row, cluster in zip(cluster_rows(record), record.clusters, strict=True)
        if cluster.kind != "alone"
    ]
    neighbours: Rows = [{"adapter": name} for name in record.names]
    for row, near in zip(neighbours, record.neighbours, strict=True):
        for title, other in zip(("nearest", "second", "third"), near, strict=False):
            row |= {title: other.name, f"{title} cosine": other.cosine}
    distances = [row.model_dump() | {"notes": "; ".join(row.notes)} for row in record.distances]
    return "".join(
        [
            when(clusters, f"<h2>Clusters</h2>{_table('clusters', clusters)}"),
            f"<h2>Adapters</h2>{filter_by}{_table('adapters', adapter_rows(record))}",
            f"<h2>Nearest neighbours</h2>{_table('neighbours', neighbours)}",
            when(distances, f"<h2>Geodesic distances</h2>{_table('distances', distances)}"),
        ]
    )


def _missing(record: CollectionRecord) -> str:
    """Return who was left out and why, what counts as zero, and what was taken to be the same."""
    reasons = [f"{row.name}: {reason}" for row in record.left_out for reason in row.reasons]
    sections = {"Left out": reasons, "Notes": record.notes}
    return "".join(f"<h2>{title}</h2>{_list(texts)}" for title, texts in sections.items() if texts)


def _table(name: str, rows: Rows) -> str:
    """Return a table that sorts by each column, but for columns in which no row has anything."""
    cells = {key: [row.get(key) for row in rows] for row in rows[:1] for key in row}
    words = {
        key: when(any(isinstance(cell, str) for cell in column), ' class="words"')
        for key, column in cells.items()
        if {*column} - {"", None}
    }
    heads = "".join(
        f'<th scope="col"{style}><button type="button">{key.replace("_", " ")}</button></th>'
        for key, style in words.items()
    )
    body = "".join(
        f"<tr>{''.join(_cell(row.get(key), style) for key, style in words.items())}</tr>\n" for row in rows
    )
    inside = f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table class="sorts" id="{name}">{inside}</table></div>'


def _cell(value: Cell, style: str) -> str:
    """Return a cell, which has all digits of a number to sort by, and three to show."""
    key = when(isinstance(value, float), f' data-v="{value!r}"')
    return f"<td{style}{key}>{_text(show(value))}</td>"


def _alternative(record: CollectionRecord, name: str) -> str:
    """Return what a picture shows, for those who do not see it."""
    adapters, shown = count(len(record.adapters), "adapter"), sum(record.coordinates_share)
    families = count(sum(row.kind == "family" for row in record.clusters), "family")
    texts = {
        "pairs": f"Heatmap of the cosines of {adapters}, beside their tree; {families}.",
        "map": f"Scatter plot that shows {shown:.0%} of the squared distances; {families}.",
        "spectra": "Falling curves: singular values of all modules, and by projection.",
        "kept": f"Rising curves, and curves by depth; {kept_energy(record)}.",
    }
    return texts[name]


def _read(name: str) -> str:
    return resources.files("riemerge.report").joinpath(name).read_text(encoding="utf-8")


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _text(text: str) -> str:
    return escape(printable(text))
