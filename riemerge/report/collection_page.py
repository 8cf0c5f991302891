"""The page of a collection of adapters: one HTML file that needs nothing else, with tables that sort."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources

from riemerge.records.collection_record import CollectionRecord
from riemerge.report.collection_text import (
    KINDS,
    Cell,
    Column,
    advice_lines,
    cluster_columns,
    count,
    kept_energy,
    names_of,
    repetitions,
    show,
    summary,
)
from riemerge.report.words import printable, when

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

SHOWN_NEIGHBOURS, SHOWN_ADVICE = 3, 10
ORDINALS = ("nearest", "second", "third")


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
        *(f'<p class="note">{_text(text)}</p>' for text in (note,) if text),
    ]
    parts += ["<h2>What to do</h2>", _advice(record)]
    for name, (title, caption) in _PICTURES.items():
        if png := pictures.get(f"{name}.png"):
            data = base64.b64encode(png).decode()
            image = f'<img alt="{_text(_alternative(record, name))}" src="data:image/png;base64,{data}">'
            explained = f"<figcaption>{_text(' '.join(caption.split()))}</figcaption>"
            parts.append(f"<h2>{title}</h2><figure>{image}{explained}</figure>")
    parts += ["<h2>Clusters</h2>", _clusters(record), "<h2>Adapters</h2>", _adapters(record)]
    parts += ["<h2>Nearest neighbours</h2>", _neighbours(record), _distances(record), _missing(record)]
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    parts.append(f'<p class="note">Computed with {_text(versions)}.</p>')
    style, script = (_read(f"collection_page.{kind}") for kind in ("css", "js"))
    head = f'<meta charset="utf-8"><title>A collection of adapters</title><style>{style}</style>'
    body = f"<body><main>{''.join(parts)}</main><script>{script}</script></body>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n{body}</html>\n'


def _advice(record: CollectionRecord) -> str:
    """Return the advice, kind by kind; of a long kind all but the first pieces are folded away."""
    parts = ['<p class="note">Commands run in the folder in which the adapters lie.</p>']
    for title, lines in advice_lines(record).items():
        items = [
            f"<li>{_text(text)}{when(command, f'<pre><code>{_text(command)}</code></pre>')}</li>"
            for text, command in lines
        ]
        first, others = items[:SHOWN_ADVICE], items[SHOWN_ADVICE:]
        rest = f"<details><summary>and {len(others)} more</summary><ul>{''.join(others)}</ul></details>"
        parts.append(f"<h3>{title}</h3><ul>{''.join(first)}</ul>{when(others, rest)}")
    return when(record.advice, "".join(parts)) or "<p>Nothing stands out.</p>"


def _clusters(record: CollectionRecord) -> str:
    members = [names_of(row.members, 12) for row in record.clusters if row.kind != "alone"]
    return _table("clusters", [*cluster_columns(record), ("members", members)])


def _adapters(record: CollectionRecord) -> str:
    rows, copies = record.adapters, repetitions(record)
    kinds = {row.label: KINDS[row.kind] for row in record.clusters}
    unusual = {row.name: row.score for row in reversed(record.outliers)}
    search = '<input class="filter" data-table="adapters" type="search">'
    return f"<p><label>Show adapters whose row holds {search}</label></p>" + _table(
        "adapters",
        [
            ("adapter", [row.name for row in rows]),
            ("cluster", [row.cluster for row in rows]),
            ("which are", [kinds[row.cluster] for row in rows]),
            ("repeats", [copies.get(row.name, ("", ""))[0] for row in rows]),
            ("outlier (score)", [unusual.get(row.name) for row in rows]),
            ("‖dW‖", [row.norm for row in rows]),
            ("stored ranks", [" ".join(map(str, row.ranks)) for row in rows]),
            ("numerical rank", [row.numerical_rank for row in rows]),
            ("stable rank", [row.stable_rank for row in rows]),
            ("mean cosine to others", [row.mean_cosine for row in rows]),
            ("modules missing", [len(row.missing) for row in rows]),
            ("dtype", [row.dtype for row in rows]),
            ("base model", [row.base_model or "" for row in rows]),
        ],
    )


def _neighbours(record: CollectionRecord) -> str:
    columns: list[Column] = [("adapter", list(record.names))]
    for place in range(min(SHOWN_NEIGHBOURS, *map(len, record.neighbours))):
        near = [rows[place] for rows in record.neighbours]
        columns += [(ORDINALS[place], [row.name for row in near]), ("cosine", [row.cosine for row in near])]
    return _table("neighbours", columns)


def _distances(record: CollectionRecord) -> str:
    rows = record.distances
    columns: list[Column] = [
        ("adapter", [row.first for row in rows]),
        ("and adapter", [row.second for row in rows]),
        ("metric", [row.metric for row in rows]),
        ("distance", [row.distance for row in rows]),
        ("why none", ["; ".join(row.notes) for row in rows]),
    ]
    return when(rows, f"<h2>Geodesic distances</h2>{_table('distances', columns)}")


def _missing(record: CollectionRecord) -> str:
    """Return who was left out and why, what counts as zero, and what was taken to be the same."""
    reasons = [f"{row.name}: {reason}" for row in record.left_out for reason in row.reasons]
    sections = {"Left out": reasons, "Notes": record.notes}
    return "".join(f"<h2>{title}</h2>{_list(texts)}" for title, texts in sections.items() if texts)


def _table(name: str, columns: Sequence[Column]) -> str:
    """Return a table that sorts by each column, but for columns in which no row has anything."""
    columns = [(header, cells) for header, cells in columns if {*cells} - {"", None}]
    heads, styles = [], []
    for header, cells in columns:
        styles.append(when(any(isinstance(cell, str) for cell in cells), ' class="words"'))
        heads.append(f'<th scope="col"{styles[-1]}><button type="button">{_text(header)}</button></th>')
    rows = zip(*(cells for _, cells in columns), strict=True)
    body = "".join(
        f"<tr>{''.join(_cell(cell, style) for cell, style in zip(row, styles, strict=True))}</tr>\n"
        for row in rows
    )
    inside = f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody>"
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
