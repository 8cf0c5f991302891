"""Tables for a terminal, from run records: nothing is computed here but widths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os.path import commonprefix
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from riemerge.laws import Finding
from riemerge.methods import Method, find_recorded_row
from riemerge.records.collection_record import CollectionRecord
from riemerge.records.comparison_record import Comparison
from riemerge.records.evaluation_record import Evaluation, PairedDifference
from riemerge.records.inspection_record import InspectedAdapter, InspectedPair, Inspection
from riemerge.records.run_record import ModuleRow, Overlap, RunRecord, Totals
from riemerge.report.collection_text import advice_lines, cluster_columns, fold_command, show, summary
from riemerge.report.comparison_text import columns, verdicts
from riemerge.report.method_page import (
    cautions,
    command,
    describe,
    facts,
    five_columns,
    parameter_rows,
    weights,
)
from riemerge.report.verdict import (
    answer,
    determination,
    evaluation_verdict,
    kept_shares,
    matched_text,
    may_be_undetermined,
    remarks,
    score_text,
    serving_text,
    weight_text,
)
from riemerge.report.words import number, printable, text_of, when

# Above so many inputs, their distances are shown as a range.
MAX_DISTANCES = 5
MAX_NAME = 26
# Above so many tasks, their scores have a table of their own.
MAX_TASKS = 3
SHOWN_SINGULAR_VALUES = 3
# Above so many clusters, and pieces of advice of a kind, a terminal shows the first ones.
MAX_SHOWN, MAX_EACH = 12, 4

Column = tuple[str, Sequence[str]]
"""A header and its cells, as literal text."""


# --- merges -------------------------------------------------------------------------------------------------


def merge_report(record: RunRecord, *, verbose: bool = False, written: Sequence[str] = ()) -> RenderableType:
    """Show a merge: the answer in a few lines, then every warning.

    Law: a function of its arguments alone; every name from outside is shown literally.

    Args:
        record: The run record.
        verbose: Whether tables of the inputs and of every module follow; and of a mean that the inputs may
            leave undetermined, how that was found.
        written: Lines to put under the answer.
    """
    warnings = [*(f"warning: {printable(text)}" for text in record.warnings), *remarks(record)]
    parts: list[RenderableType] = [Text(line) for line in (*answer(record), *written)]
    parts += [Text(f"\n{text}", style="yellow") for text in warnings]
    if verbose:
        parts += [Text(""), _heading(record), _inputs(record), Text(""), _modules(record)]
        parts += [Text(""), _missing(record)] * bool(record.missing)
        parts += [
            Text(f"\n{paragraph}") for paragraph in determination(record) if may_be_undetermined(record)
        ]
    return Group(*parts)


def written_report(
    record: RunRecord, target: Path, rounding: float, *, verbose: bool = False
) -> RenderableType:
    """Show a merge that was written: its report, where it is, in which dtype, and what the rounding did."""
    where, dtype = printable(str(target)), record.recipe["out_dtype"]
    place = f"written to {where}{when(dtype, f' as {dtype}')}"
    more = when(not verbose, "; -v shows modules")
    lines = [
        f"{place}; rounding moved no module by more than {rounding:.1g} relative",
        serving_text(record),
        f"next: {_NEXT[record.out_type]}{more}",
    ]
    return merge_report(record, verbose=verbose, written=[line for line in lines if line])


_NEXT = {
    "adapter": "its README.md loads it; riemerge evaluate compares methods by your test",
    "delta": "its README.md says how to add it to the base model",
    "checkpoint": "its README.md says how to load it",
}


def _heading(record: RunRecord) -> Text:
    method = find_recorded_row(record.recipe)
    base = printable(record.base_model or "not named")
    lines = [
        f"{method.name}: {method.summary}",
        f"base model {base}; {record.totals.modules} modules; computed on {record.device}",
        matched_text(record),
    ]
    return Text("".join(f"{line}\n" for line in lines if line))


def _inputs(record: RunRecord) -> Table:
    total = record.totals
    counting = [place for place, row in enumerate(record.inputs) if row.share != 0]

    def column(title: str, values: Sequence[float | None] | None) -> Column:
        known = dict(zip(counting, values or (), strict=False))
        return title, [number(known.get(place)) for place in range(len(record.inputs))]

    return _table(
        "",
        [
            ("", [str(place) for place, _ in enumerate(record.inputs, 1)]),
            ("adapter", [printable(row.name) for row in record.inputs]),
            ("weight", [weight_text(row) for row in record.inputs]),
            ("share", [f"{row.share:.4g}" for row in record.inputs]),
            ("rank", [",".join(map(str, row.ranks)) or "-" for row in record.inputs]),
            column("‖dW‖", total.input_norms),
            column("distance", total.distances),
            column("‖dW-dWᵢ‖/‖dWᵢ‖", total.relative_distances),
            column("keeps", kept_shares(record)),
        ],
    )


def _modules(record: RunRecord) -> Table:
    total, seconds = record.totals, record.timing.modules
    prefix, names = _short([row.module for row in record.modules])
    used = [str(place) for place, row in enumerate(record.inputs, 1) if row.share != 0]
    which = "least to most distant" if len(used) > MAX_DISTANCES else " ".join(used)
    rows: list[ModuleRow | Totals] = [*record.modules, total]
    columns = [
        ("module", [*names, "total"]),
        ("rank", [*(text_of(row.rank, missing="dense") for row in record.modules), ""]),
        ("cost", [number(row.cost) for row in rows]),
        ("|grad|", [number(row.gradient_norm) for row in rows]),
        ("kept", [*(text_of(row.energy_kept, "{:.1%}") for row in record.modules), ""]),
        ("status", [*(row.status.lower() for row in record.modules), _statuses(total)]),
        ("‖dW‖", [number(row.norm) for row in rows]),
        (
            f"{when(not total.distances, 'relative ')}distance to {which}",
            [_distances(row.distances or row.relative_distances) for row in rows],
        ),
        ("mean fixed?", [_answer(row) for row in rows if may_be_undetermined(record)]),
        ("s", [*(f"{seconds[row.module]:.2f}" for row in record.modules), f"{record.timing.solve:.2f}"]),
    ]
    return _table(f"modules{prefix}", columns, total=True)


def _missing(record: RunRecord) -> Table:
    prefix, names = _short([row.module for row in record.missing])
    columns = [
        ("module", names),
        ("lacking in", [printable(", ".join(row.inputs)) for row in record.missing]),
        ("counts as", [{"zero": "zero", "skip": "left out"}[row.counted] for row in record.missing]),
    ]
    return _table(f"missing{prefix}", columns)


def _statuses(total: Totals) -> str:
    return "\n".join(f"{count} {status.lower()}" for status, count in total.statuses.items())


def _answer(row: ModuleRow | Totals) -> str:
    """Say whether the mean is determined, and by which spread where that was measured."""
    return f"{row.determined or '-'}{text_of(row.update_spread, ' ({:.0%})', missing='')}"


def _distances(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if known and len(values) > MAX_DISTANCES:
        return f"{number(min(known))} – {number(max(known))}"
    return " ".join(number(value) for value in values)


# --- inspections --------------------------------------------------------------------------------------------


def inspection_report(inspection: Inspection) -> RenderableType:
    """Show adapters: one table of modules each, then the distances and overlaps of all pairs."""
    parts: list[RenderableType] = []
    for adapter in inspection.adapters:
        parts += [_adapter(adapter), Text("")]
    if inspection.pairs:
        parts.append(_pairs(inspection.pairs))
    notes = [f"note: {_both(pair)}: {printable(note)}" for pair in inspection.pairs for note in pair.notes]
    return Group(*parts, *map(Text, notes))


def _adapter(adapter: InspectedAdapter) -> Table:
    prefix, names = _short([row.module for row in adapter.modules])
    base = printable(adapter.base_model or "not named")
    title = f"{printable(adapter.name)}: base {base}, {adapter.dtype}, ‖dW‖ {number(adapter.norm)}{prefix}"
    short = {
        row.module: f" ({row.numerical_rank})" for row in adapter.modules if row.numerical_rank < row.rank
    }
    return _table(
        title,
        [
            ("module", names),
            ("size", ["×".join(map(str, row.shape)) for row in adapter.modules]),
            ("rank", [f"{row.rank}{short.get(row.module, '')}" for row in adapter.modules]),
            ("scale", [f"{row.scale:g}" for row in adapter.modules]),
            ("‖dW‖", [number(row.norm) for row in adapter.modules]),
            ("singular values", [_spectrum(row.singular_values) for row in adapter.modules]),
        ],
    )


def _both(pair: InspectedPair) -> str:
    return printable(f"{pair.first} – {pair.second}")


def _pairs(pairs: Sequence[InspectedPair]) -> Table:
    distances = [number(pair.distance) for pair in pairs]
    return _table(
        "pairs (left, right: cosines of principal angles; in brackets the level of random subspaces)",
        [
            ("adapters", [_both(pair) for pair in pairs]),
            ("cosine", [text_of(pair.overlap and pair.overlap.cosine, "{:.3f}") for pair in pairs]),
            *[("distance", distances)] * any(pair.distance is not None for pair in pairs),
            ("left", [_side(pair.overlap, "left") for pair in pairs]),
            ("right", [_side(pair.overlap, "right") for pair in pairs]),
            ("determined", [pair.determined or "-" for pair in pairs]),
        ],
    )


def _side(overlap: Overlap | None, side: str) -> str:
    if overlap is None:
        return "-"
    return f"{getattr(overlap, side):.2f} ({getattr(overlap, f'{side}_random'):.2f})"


def _spectrum(values: Sequence[float]) -> str:
    if len(values) <= SHOWN_SINGULAR_VALUES + 1:
        return " ".join(number(value) for value in values)
    return " ".join(number(value) for value in values[:SHOWN_SINGULAR_VALUES]) + f" … {number(values[-1])}"


# --- evaluations --------------------------------------------------------------------------------------------


def evaluation_report(evaluation: Evaluation) -> RenderableType:
    """Show an evaluation: one row for each method and each model alone, best first on the test rows; why
    others were refused, notes, and the verdict in words.
    """
    entries = sorted([*evaluation.entries, *evaluation.alone], key=lambda entry: -entry.normalised)
    part = "test rows" if evaluation.parts else "the rows that all was chosen on"
    best = [entry.name == evaluation.best and entry.method for entry in entries]
    names = [
        f"{printable(entry.name)}{when(not entry.method, ' alone')}{when(is_best, ' (best on dev)')}"
        for entry, is_best in zip(entries, best, strict=True)
    ]
    scores = [
        (printable(task), [f"{entry.test[task]:.3f}" for entry in entries]) for task in evaluation.tasks
    ]
    wide = len(scores) > MAX_TASKS
    columns = [
        ("method", names),
        ("rank", [str(entry.rank or "") for entry in entries]),
        ("norm", [when(entry.method, number(entry.coefficient)) for entry in entries]),
        *scores[: MAX_TASKS * (not wide)],
        ("normalised", [score_text(entry) for entry in entries]),
        (
            "minus average",
            [
                when(entry.name != evaluation.average or not entry.method, _interval(entry.to_average))
                for entry in entries
            ],
        ),
    ]
    parts: list[RenderableType] = [_table(f"scores on {part}", columns)]
    if wide:
        parts += [Text(""), _table("by task", [("method", names), *scores])]
    refused = [f"refused: {name}: {text}" for name, texts in evaluation.refused.items() for text in texts]
    notes = [*refused, *(f"note: {note}" for note in evaluation.notes)]
    parts += [Text(printable(note), style="yellow") for note in notes]
    return Group(*parts, *(Text(f"\n{paragraph}") for paragraph in evaluation_verdict(evaluation)))


def _interval(difference: PairedDifference) -> str:
    ends = text_of(difference.low, " [{:+.3f}, ", missing="") + text_of(
        difference.high, "{:+.3f}]", missing=""
    )
    return f"{difference.value:+.3f}{ends}"


# --- comparisons of solvers ---------------------------------------------------------------------------------


def comparison_report(comparison: Comparison) -> RenderableType:
    """Show a comparison of solvers: for each case a table, best solver first, and who misses the least cost
    and why.
    """
    parts: list[RenderableType] = []
    for case in comparison.cases:
        parts += [_table(case, columns(comparison, case)[:6]), Text("")]
        parts += [Text(printable(line)) for line in verdicts(comparison, case)]
        parts.append(Text(""))
    return Group(*parts[:-1], *(Text(f"\n{printable(note)}") for note in comparison.notes))


# --- collections ------------------------------------------------------------------------------------------


def collection_report(record: CollectionRecord, page: str = "the page") -> RenderableType:
    """Show a collection: what was found, the clusters, what to do, and who was left out and why.

    Args:
        record: The collection.
        page: Where all of it stands, if there is more than a terminal shows.
    """
    clusters = cluster_columns(record)
    columns = [(header, [printable(show(cell)) for cell in cells[:MAX_SHOWN]]) for header, cells in clusters]
    hidden = max(0, len(clusters[0][1]) - MAX_SHOWN)
    parts: list[RenderableType] = [Text(printable(line)) for line in summary(record)]
    parts += [Text(""), _table("", columns)] * bool(columns[0][1])
    parts += [Text(f"and {hidden} more clusters: see {printable(page)}")] * bool(hidden)
    for title, lines in advice_lines(record).items():
        parts.append(Text(f"\n{title}", style="bold"))
        for text, order in lines[:MAX_EACH]:
            folded = fold_command(order) or [f"(its command is on {page})"] * bool(order)
            parts += [Text(printable(f"- {text}")), *(Text(printable(f"  {line}")) for line in folded)]
        more = len(lines) - MAX_EACH
        parts += [Text(f"- and {more} more: see {printable(page)}")] * (more > 0)
    reasons = [f"left out: {row.name}: {reason}" for row in record.left_out for reason in row.reasons]
    notes = [*reasons[:MAX_SHOWN], *(f"note: {note}" for note in record.notes)]
    notes += [f"and {len(reasons) - MAX_SHOWN} more reasons: see {page}"] * (len(reasons) > MAX_SHOWN)
    parts += [Text("")] * bool(notes)
    return Group(*parts, *(Text(printable(note), style="yellow") for note in notes))


# --- methods ------------------------------------------------------------------------------------------------


def methods_report(rows: Iterable[Method]) -> RenderableType:
    """Show rows of the table of methods."""
    parts: list[RenderableType] = []
    for row in rows:
        parts += [Text(row.name, style="bold"), *_lines(describe(row)), Text("")]
    return Group(*parts)


def method_report(row: Method) -> RenderableType:
    """Show one method: a command, what it computes, its parameters, its source, when not to use it."""
    names, types, defaults, meanings = zip(*parameter_rows(row), strict=True)
    table = _table("", [("parameter", names), ("type", types), ("default", defaults), ("meaning", meanings)])
    return Group(
        Text(row.name, style="bold"),
        Text(f"  {command(row)}\n"),
        *_lines([("", row.summary), ("columns", five_columns(row)), ("weights", weights(row)), *facts(row)]),
        Text(""),
        Padding(table, (0, 0, 0, 2)),
        Text(""),
        *_lines([("source", row.source)]),
        *_lines([("differs from its source", text) for text in row.differs.values()]),
        *_lines([("not for", text) for text in cautions(row)]),
        Text(""),
    )


def laws_report(findings: Mapping[str, Sequence[Finding]]) -> RenderableType:
    """Show what was measured of laws, kind by kind."""
    parts: list[RenderableType] = []
    for kind, measured in findings.items():
        columns = [
            ("law", [finding.name for finding in measured]),
            ("says", [finding.law.says for finding in measured]),
            ("defect", [number(finding.defect) for finding in measured]),
            ("at most", [number(finding.law.tolerance) for finding in measured]),
            ("verdict", [finding.verdict for finding in measured]),
            ("needed by", [finding.law.needed_by for finding in measured]),
        ]
        parts += [_table(kind, columns), Text("")]
    return Group(*parts)


def _lines(texts: Iterable[tuple[str, str]]) -> list[Text]:
    return [Text(f"  {when(title, f'{title}: ')}{text}") for title, text in texts]


# --- tables -------------------------------------------------------------------------------------------------

_LEFT = {
    *(
        "",
        "module",
        "adapter",
        "adapters",
        "status",
        "mean fixed?",
        "determined",
        "method",
        "parameter",
        "type",
        "law",
        "says",
        "verdict",
        "needed by",
    ),
    *("default", "meaning", "singular values", "solver", "ended", "kind", "medoid"),
}


def _short(modules: Sequence[str]) -> tuple[str, list[str]]:
    """Split names into what all begin with (for the title) and the rest of each, at most MAX_NAME wide."""
    words = [module.split(".") for module in modules]
    common = commonprefix([parts[:-1] for parts in words if len(words) > 1])  # noqa: RUF071 (of lists)
    rest = [printable(".".join(parts[len(common) :])) for parts in words]
    half = (MAX_NAME - 1) // 2
    names = [name if len(name) <= MAX_NAME else f"{name[:half]}…{name[-half:]}" for name in rest]
    return when(common, f" (below {printable('.'.join(common))})"), names


def _table(title: str, columns: Sequence[Column], *, total: bool = False) -> Table:
    """Put columns beside each other, but for those in which no row has anything.

    Args:
        title: The line above; empty for none.
        columns: Headers and cells.
        total: Whether the last row is a total, set apart.
    """
    table = Table(
        title=Text(title),
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
        padding=(0, 1, 0, 0),
    )
    columns = [(header, cells) for header, cells in columns if not {*cells} <= {"", "-"}]
    for index, (header, _) in enumerate(columns):
        left = header in _LEFT or "…" in header
        table.add_column(Text(header), justify="left" if left else "right", no_wrap=index == 0)
    rows = list(zip(*(cells for _, cells in columns), strict=True))
    for place, cells in enumerate(rows, 1):
        if total and place == len(rows):
            table.add_section()
        table.add_row(*map(Text, cells))
    return table
