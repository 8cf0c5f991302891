"""Tables for a terminal, from run records: nothing is computed here but widths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from riemerge.methods import METHODS, PARAMETERS, Method
from riemerge.records.evaluation_record import Evaluation, PairedDifference
from riemerge.records.inspection_record import Inspection
from riemerge.records.run_record import ModuleRow, Overlap, RunRecord, Totals
from riemerge.report.card import (
    evaluation_verdict,
    matched_text,
    number,
    printable,
    verdict,
    weight_text,
    written_text,
)

# Above so many inputs, their distances are shown as a range.
MAX_DISTANCES = 5
MAX_NAME = 26
# Above so many tasks, their scores have a table of their own.
MAX_TASKS = 3
SHOWN_SINGULAR_VALUES = 3


def merge_report(record: RunRecord) -> RenderableType:
    """Show a merge: the inputs, one row for each module, the total, warnings, and the verdict in words.

    Law: a function of the record alone; every name from outside is shown literally.
    """
    return Group(
        _heading(record),
        _inputs(record),
        Text(""),
        _modules(record),
        *(Text(f"warning: {printable(text)}", style="yellow") for text in record.warnings),
        *(Text(f"\n{paragraph}") for paragraph in verdict(record)),
    )


def written_report(record: RunRecord, target: Path, rounding: float) -> RenderableType:
    """Show a merge that was written: its report, where it is, in which dtype, and what the rounding did."""
    dtype = record.recipe["out_dtype"]
    where = f"{printable(str(target))} as {dtype}" if dtype else printable(str(target))
    last = f"written to {where}; rounding moved no module by more than {rounding:.1g} relative"
    return Group(merge_report(record), Text(f"\n{last}"))


def inspection_report(inspection: Inspection) -> RenderableType:
    """Show adapters: one table of modules each, then the distances and overlaps of all pairs."""
    parts: list[RenderableType] = []
    for adapter in inspection.adapters:
        prefix, names = _short([row.module for row in adapter.modules])
        table = _table(
            f"{printable(adapter.name)}: base {printable(adapter.base_model or 'not named')}, "
            f"{adapter.dtype}, "
            f"‖dW‖ {number(adapter.norm)}{prefix}",
            ("module", "size", "rank", "scale", "‖dW‖", "singular values"),
        )
        for name, row in zip(names, adapter.modules, strict=True):
            short = "" if row.numerical_rank == row.rank else f" ({row.numerical_rank})"
            table.add_row(
                name,
                "×".join(map(str, row.shape)),
                f"{row.rank}{short}",
                f"{row.scale:g}",
                number(row.norm),
                _spectrum(row.singular_values),
            )
        parts += [table, Text("")]
    if inspection.pairs:
        table = _table(
            "pairs (cosines of principal angles; in brackets the level of random subspaces)",
            ("adapters", "distance", "left", "right", "determined"),
        )
        for pair in inspection.pairs:
            table.add_row(
                Text(f"{printable(pair.first)} – {printable(pair.second)}"),
                number(pair.distance),
                *_sides(pair.overlap),
                pair.determined or "-",
            )
        parts.append(table)
        parts += [
            Text(f"note: {printable(pair.first)} – {printable(pair.second)}: {printable(note)}")
            for pair in inspection.pairs
            for note in pair.notes
        ]
    return Group(*parts)


def evaluation_report(made: Evaluation) -> RenderableType:
    """Show an evaluation: one row for each method and each model alone, best first on the test rows; why
    others were refused, notes, and the verdict in words.
    """
    tasks = [Text(printable(task)) for task in made.tasks]
    wide = len(tasks) > MAX_TASKS
    head = ("method", "rank", "norm", *(() if wide else tasks), "normalised", "minus average")
    part = "test rows" if made.parts else "the rows that all was chosen on"
    table, by_task = _table(f"scores on {part}", head), _table("by task", ("method", *tasks))
    for one in sorted([*made.entries, *made.alone], key=lambda one: -one.normalised):
        chosen = " (best on dev)" if one.name == made.best and one.method else ""
        name = Text(printable(one.name) + (chosen if one.method else " alone"))
        scores = [f"{one.test[task]:.3f}" for task in made.tasks]
        table.add_row(
            name,
            "" if one.rank is None else str(one.rank),
            number(one.coefficient) if one.method else "",
            *(() if wide else scores),
            f"{one.normalised:.3f}{_plus_minus(one.error)}",
            "" if one.name == made.average and one.method else _interval(one.to_average),
        )
        by_task.add_row(name, *scores)
    return Group(
        table,
        *((Text(""), by_task) if wide else ()),
        *(
            Text(f"refused: {printable(name)}: {printable(problem)}", style="yellow")
            for name, problems in made.refused.items()
            for problem in problems
        ),
        *(Text(f"note: {printable(note)}", style="yellow") for note in made.notes),
        *(Text(f"\n{paragraph}") for paragraph in evaluation_verdict(made)),
    )


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" ± {error:.3f}"


def _interval(one: PairedDifference) -> str:
    whole = "" if one.low is None else f" [{one.low:+.3f}, {one.high:+.3f}]"
    return f"{one.value:+.3f}{whole}"


def methods_report(rows: Iterable[Method], *, explain: bool = False) -> RenderableType:
    """Show rows of the table of methods; if asked for, with what each of their parameters means."""
    parts: list[RenderableType] = []
    for row in rows:
        parts.append(Text(row.name, style="bold"))
        parts += [Text(f"  {title}: {text}" if title else f"  {text}") for title, text in described(row)]
        if explain:
            parts += [Text(f"    {name}: {PARAMETERS[name].summary}") for name in row.parameters]
        parts.append(Text(""))
    return Group(*parts)


def described(row: Method) -> list[tuple[str, str]]:
    """Return what there is to say of a method, each under its title; the summary, under none, comes first."""
    return [
        ("", row.summary),
        ("weights", weights(row)),
        ("parameters (defaults)", parameters(row)),
        ("needs", needs(row)),
        ("rank of the result", row.output_rank),
        ("moves with the gauge", "no" if row.gauge_invariant else "yes"),
        ("copies of one merge to it", "yes" if row.idempotent else "no"),
        *(("differs from its source", text) for text in row.differs.values()),
        ("source", row.source),
    ]


def parameters(row: Method) -> str:
    """Return the parameters that a method takes, with their defaults."""
    said = (f"{name} ({row.defaults[name]})" if name in row.defaults else name for name in row.parameters)
    return ", ".join(said)


def needs(row: Method) -> str:
    """Return what a method cannot do without, in words."""
    least, most = row.models
    count = [f"{least} models" if least == most else f"at least {least} models"] if least > 1 else []
    order = ["the models in the order of their run"] if row.ordered else []
    whose = "each model and the base" if row.base_statistics else "each model"
    data = [f"statistics of {whose}: {', '.join(row.statistics)}"] if row.statistics else []
    ranks = ["one rank"] if row.truncates_inputs else []
    takes = {
        "weights": "also merges full checkpoints",
        "updates": "also merges full checkpoints with their base model",
        "no": "adapters only",
    }[row.checkpoints]
    return "; ".join([*count, *order, *data, *ranks, takes])


def weights(row: Method) -> str:
    """Return what a method does with the weights, in words."""
    return ("divided by their sum" if row.normalised else "used as given") + (
        ", any sign" if row.negative_weights else ", at least 0"
    )


def _heading(record: RunRecord) -> Text:
    method = METHODS[record.recipe["merge_method"]]
    base = printable(record.base_model or "not named")
    text = Text(f"{method.name}: {method.summary}\n")
    text.append(f"base model {base}; {record.totals.modules} modules; computed on {record.device}\n")
    for said in filter(None, (matched_text(record), written_text(record))):
        text.append(f"{said}\n")
    return text


def _inputs(record: RunRecord) -> Table:
    table = _table("", ("", "adapter", "weight", "share", "rank", "‖dW‖", "distance", "‖dW-dWᵢ‖/‖dWᵢ‖"))
    total, used = record.totals, 0
    for place, row in enumerate(record.inputs, 1):
        if row.share == 0:
            table.add_row(str(place), Text(printable(row.name)), weight_text(row), "0", *["-"] * 4)
            continue
        table.add_row(
            str(place),
            Text(printable(row.name)),
            weight_text(row),
            f"{row.share:.4g}",
            ",".join(map(str, row.ranks)),
            number(total.input_norms[used]),
            number(total.distances[used] if total.distances else None),
            number(total.relative_distances[used]),
        )
        used += 1
    return table


def _modules(record: RunRecord) -> Table:
    total, seconds = record.totals, record.timing.modules
    prefix, names = _short([row.module for row in record.modules])
    used = [str(place) for place, row in enumerate(record.inputs, 1) if row.share != 0]
    wide = len(used) > MAX_DISTANCES
    quotient = total.distances is not None
    solved = total.cost is not None
    kind = "distance to" if quotient else "relative distance to"
    table = _table(
        f"modules{prefix}",
        (
            "module",
            "rank",
            *(("cost", "|grad|") if solved else ("kept",)),
            "status",
            "‖dW‖",
            f"{kind} {'least to most distant' if wide else ' '.join(used)}",
            "mean fixed?",
            "s",
        ),
    )
    for name, row in zip(names, record.modules, strict=True):
        table.add_row(
            name,
            "dense" if row.rank is None else str(row.rank),
            *((number(row.cost), number(row.gradient_norm)) if solved else (_kept(row.energy_kept),)),
            row.status.lower(),
            number(row.norm),
            _distances(row.distances if row.distances is not None else row.relative_distances, wide),
            _determined(row),
            f"{seconds[row.module]:.2f}",
        )
    table.add_section()
    table.add_row(
        "total",
        "",
        *((number(total.cost), number(total.gradient_norm)) if solved else ("",)),
        "\n".join(f"{count} {status.lower()}" for status, count in total.statuses.items()),
        number(total.norm),
        _distances(total.distances if total.distances is not None else total.relative_distances, wide),
        _determined(total),
        f"{record.timing.solve:.2f}",
    )
    return table


def _kept(share: float | None) -> str:
    """The share of the squared norm that truncation kept."""
    return "all" if share is None else f"{share:.1%}"


def _determined(row: ModuleRow | Totals) -> str:
    """Whether the mean is determined, and by which spread where that was measured."""
    if row.determined is None or row.update_spread is None:
        return row.determined or "-"
    return f"{row.determined} ({row.update_spread:.0%})"


def _distances(values: Sequence[float | None], wide: bool) -> str:
    if wide:
        known = [value for value in values if value is not None]
        return f"{number(min(known))} – {number(max(known))}" if known else "-"
    return " ".join(number(value) for value in values)


def _sides(overlap: Overlap | None) -> tuple[str, str]:
    if overlap is None:
        return "-", "-"
    left, right = (overlap.left, overlap.left_random), (overlap.right, overlap.right_random)
    return "{:.2f} ({:.2f})".format(*left), "{:.2f} ({:.2f})".format(*right)


def _spectrum(values: Sequence[float]) -> str:
    if len(values) <= SHOWN_SINGULAR_VALUES + 1:
        return " ".join(number(value) for value in values)
    return " ".join(number(value) for value in values[:SHOWN_SINGULAR_VALUES]) + f" … {number(values[-1])}"


def _short(modules: Sequence[str]) -> tuple[str, list[Text]]:
    """What all names begin with (for the title), and the rest of each, at most MAX_NAME wide."""
    words = [module.split(".") for module in modules]
    common = 0
    while len(words) > 1 and all(
        parts[:-1][common : common + 1] == words[0][common : common + 1] for parts in words
    ):
        common += 1
    prefix = ".".join(words[0][:common]) if words else ""
    rest = [printable(".".join(parts[common:])) for parts in words]
    half = (MAX_NAME - 1) // 2
    names = [name if len(name) <= MAX_NAME else f"{name[:half]}…{name[-half:]}" for name in rest]
    return (f" (below {printable(prefix)})" if prefix else ""), [Text(name) for name in names]


def _table(title: str, columns: Sequence[str | Text]) -> Table:
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
        padding=(0, 1, 0, 0),
    )
    for index, column in enumerate(columns):
        text = str(column) in {"module", "adapter", "adapters", "status", "mean fixed?", "determined", ""}
        left = text or str(column) == "method" or "…" in str(column)
        table.add_column(column, justify="left" if left else "right", no_wrap=index == 0)
    return table
