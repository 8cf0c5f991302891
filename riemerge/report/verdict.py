"""The verdict on a merge, in words and with the numbers that say so; and on an evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import NamedTuple

from riemerge.formats.files.text import list_names
from riemerge.methods import DEFAULT_METHOD, find_recorded_row
from riemerge.records.evaluation_record import Entry, Evaluation
from riemerge.records.run_record import SPREAD_PARTLY, SPREAD_YES, InputRow, Overlap, RunRecord
from riemerge.records.written_ranks import servers, written_ranks
from riemerge.report.words import MOST_NAMES, printable, shares_of, text_of, when

# Mean cosine of the updates: from where on they are parts of one update rather than updates of their own, and
# up to where they are as unrelated as those on which `measurement` was made.
RELATED, UNRELATED = 0.5, 0.2

LOSS = 0.02
"""What a method must lose to another on every collection to be called worse: about a standard error of one
share, by premise groups."""

KEPT = 0.8
"""The share of the squared norm below which a cut to the rank is worth a word."""

MEASURE = "--method geomerge --starts auto"
"""What measures whether adapters determine their mean where their overlap does not tell."""

MEASURE_ALL = "--method geomerge --starts 10 --cost-tol 1e-6"
"""What measures it in every module."""


class Measured(NamedTuple):
    """Share of the specialists' accuracy that merges kept on the collections of `benchmarks/nli`, test rows.

    Attributes:
        cosine: Mean cosine of the updates that were merged, over collections.
        methods: Row, as its command runs it without options, to its share on each collection.
    """

    cosine: float
    methods: dict[str, tuple[float, ...]]


@cache
def measurement() -> Measured:
    """Return what `python -m benchmarks.nli` found."""
    text = resources.files("riemerge.report").joinpath("measured.json").read_text(encoding="utf-8")
    content = json.loads(text)
    return Measured(content["cosine"], {name: tuple(shares) for name, shares in content["methods"].items()})


# --- the answer ---------------------------------------------------------------------------------------------


def answer(record: RunRecord) -> list[str]:
    """Answer what a user asks of a merge first, in at most four lines.

    Law: a function of the record but for its timing. The lines say what was merged by what; how much of each
    input the result keeps; what the rank lost; whether anything is wrong.
    """
    method = find_recorded_row(record.recipe)
    count = len(record.warnings) + len(remarks(record))
    modules = ", ".join(f"{number} {status.lower()}" for status, number in record.totals.statuses.items())
    wrong = {0: "nothing is wrong", 1: "1 remark, below"}.get(count, f"{count} remarks, below")
    answers = when(may_be_undetermined(record), f"; mean determined? {_counts(record)}")
    lines = [
        f"{len(_counting(record))} {_kind(record)} merged by {method.name}: {_inputs(record)}",
        f"keeps of each input: {_keeps(record)}{_scale(record)}",
        _rank(record),
        f"{wrong}; modules: {modules}{answers}",
    ]
    return [line for line in lines if line]


def geomerge_lines(record: RunRecord) -> list[str]:
    """Say in three lines what the Fréchet mean of fixed rank makes of some adapters, from its run record."""
    ours, best = _shares("geomerge"), f"{DEFAULT_METHOD} {_shares(DEFAULT_METHOD)}"
    return [
        f"geomerge (mean on the quotient) keeps {_keeps(record)}",
        f"its mean by module: {_counts(record)} (--starts auto measures those)",
        f"benchmarks/nli: it keeps {ours} of the accuracy, {best}",
    ]


def kept_shares(record: RunRecord) -> list[float | None]:
    """Return how much of each input that counts a merge keeps: ⟨dW, dWᵢ⟩/‖dWᵢ‖² over all modules.

    Law: 1 for a merge that is the input itself plus anything orthogonal to it; linear in the scale λ; None
    for an input that is all zero. From norms and distances of the record, so good to half of the digits.
    """
    count = len(record.totals.input_norms)
    inner, squares = [0.0] * count, [0.0] * count
    for row in record.modules:
        for place, (norm, apart) in enumerate(zip(row.input_norms, row.relative_distances, strict=True)):
            if apart is not None:
                inner[place] += (row.norm**2 + norm**2 - (apart * norm) ** 2) / 2
                squares[place] += norm**2
    return [product / square if square > 0 else None for product, square in zip(inner, squares, strict=True)]


def energy_kept(record: RunRecord) -> float:
    """Return the share of the squared norm, over all modules, that the cut to the rank of the result kept."""
    kept = sum(row.norm**2 for row in record.modules)
    whole = sum(row.norm**2 / (row.energy_kept or 1.0) for row in record.modules)
    return (kept or 1.0) / (whole or 1.0)


def _counting(record: RunRecord) -> list[InputRow]:
    return [row for row in record.inputs if row.share != 0]


def may_be_undetermined(record: RunRecord) -> bool:
    """Return whether the method of a merge is a mean that its inputs may leave open."""
    return find_recorded_row(record.recipe).may_be_undetermined


def _inputs(record: RunRecord) -> str:
    """Name the inputs that count, with their weights where these differ."""
    rows = _counting(record)
    alike = len({row.weight for row in rows}) == 1
    names = [f"{printable(row.name)}{when(not alike, f' ({weight_text(row)})')}" for row in rows]
    return f"{list_names(names, MOST_NAMES)}{when(alike and len(rows) > 1, '; equal weights')}"


def _kind(record: RunRecord) -> str:
    kind = {"checkpoint": "checkpoint"}.get(record.out_type, "adapter")
    return f"{kind}{when(len(_counting(record)) > 1, 's')}"


def _keeps(record: RunRecord) -> str:
    return shares_of([printable(row.name) for row in _counting(record)], kept_shares(record))


def _scale(record: RunRecord) -> str:
    """Say the scale where it was found from the norms of the inputs."""
    form = "; scale {:.3g} (matched)"
    return text_of(record.matched_scale, form, missing="")


def _rank(record: RunRecord) -> str:
    written = written_text(record)
    if not written or may_be_undetermined(record):
        return written
    share = energy_kept(record)
    loss = f"the cut kept {share:.0%} of the squared norm (--rank sum keeps all)"
    return f"{written}{when(share < 1, f'; {loss}')}"


def _counts(record: RunRecord) -> str:
    """Count the modules of each answer."""
    counts = record.totals.determined_modules
    return ", ".join(f"{counts[key]} {_ANSWER[key]}" for key in _ANSWER if key in counts) or "cannot be said"


def weight_text(row: InputRow) -> str:
    """Return the weight of an input as asked for."""
    return text_of(row.weight, "{:g}", missing="varies")


def matched_text(record: RunRecord) -> str:
    """Return what `scale: matched` came to, in words; nothing where it was not asked for."""
    form = (
        "scale: matched is {:.4g} here: the factor that brings the merge to the mean norm of its inputs, "
        "over all modules; --scale 1 leaves it out"
    )
    return text_of(record.matched_scale, form, missing="")


def written_text(record: RunRecord) -> str:
    """Return in words the rank with which an adapter is written; nothing for other results."""
    if record.out_type != "adapter" or not record.modules:
        return ""
    ranks = written_ranks(record.recipe, record.modules)
    least, most = min(ranks.values()), max(ranks.values())
    text = f"written with rank {least} to {most}, by module"
    if least == most:
        text = f"written with rank {most} in every module"
    zero = any((row.rank or 0) < ranks[row.module] for row in record.modules)
    return f"{text}{when(zero, ', by columns of zero where the merge has less')}"


def serving_text(record: RunRecord) -> str:
    """Return in words what serves the adapter that is written; nothing for what no server of text takes."""
    library, _, name = record.model_class.rpartition(".")
    of_text = library == "transformers" and name in {"AutoModel", "AutoModelForCausalLM"}
    if record.out_type != "adapter" or not of_text or record.recipe.get("dialect") not in {None, "peft"}:
        return ""
    kept = record.heads is not None and record.heads.written
    return f"serve with {servers(written_ranks(record.recipe, record.modules), heads=kept)}"


# --- whether the inputs determine their mean ----------------------------------------------------------------

_VERDICT = {
    "yes": "Yes",
    "partly": "Only in part",
    "no": "No, they are as good as independent",
    "open": "Their overlap does not tell",
}

_ANSWER = {"yes": "well determined", "partly": "determined in part", "no": "not determined", "open": "open"}


def verdict(record: RunRecord) -> list[str]:
    """Say in words all that is to be said of a merge: whether its inputs determine their Fréchet mean, what
    speaks against the method, what the cut to the rank lost.

    Returns:
        Paragraphs of plain text.
    """
    return [*determination(record), *concerns(record), *cut(record)]


def determination(record: RunRecord) -> list[str]:
    """Say in words whether the inputs determine their Fréchet mean, and what to use when they do not.

    Returns:
        Paragraphs of plain text; none for a single input, and none for full checkpoints.
    """
    total, inputs = record.totals, _counting(record)
    if not _are_adapters(record):
        return []
    if total.overlap is None and _may_be_compared(record):
        text = (
            "Whether these adapters determine their mean was not measured, since they are many: "
            "--report full compares them pair by pair."
        )
        return [text, _consequence(record, len(inputs))]
    if total.overlap is None or total.determined is None:
        return ["Whether these adapters determine their mean cannot be said: some updates are all zero."]
    overlap = total.overlap
    first = (
        f"Do these adapters determine their mean? {_VERDICT[total.determined]}. The principal angles between "
        f"their column spaces have an RMS cosine of {overlap.left:.2f} (random subspaces: "
        f"{overlap.left_random:.2f}), between their row spaces {overlap.right:.2f} (random: "
        f"{overlap.right_random:.2f}). On the side that shares less that is {max(overlap.share, 0):.0%} of "
        f"the way from random to equal subspaces; the updates themselves have a mean cosine of "
        f"{overlap.cosine:.2f}."
    )
    return [f"{first} {_evidence(record)} {_modules(record)}", _consequence(record, len(inputs))]


def _are_adapters(record: RunRecord) -> bool:
    """Return whether several inputs count, and they are adapters."""
    inputs = _counting(record)
    return len(inputs) > 1 and any(row.ranks for row in inputs)


def _may_be_compared(record: RunRecord) -> bool:
    """Return whether two adapters have an update in one module."""
    return any(sum(norm > 0.0 for norm in row.input_norms) > 1 for row in record.modules)


def _evidence(record: RunRecord) -> str:
    """Say how the answer was found: by several starts, or by the overlap alone."""
    spread = record.totals.update_spread
    if spread is None:
        judged = when(record.totals.determined != "open", "The answer is judged by this overlap; ")
        doubtful = any(row.determined == "open" for row in record.modules)
        return f"{judged}{MEASURE if doubtful else MEASURE_ALL} measures it."
    starts = max(row.starts or 0 for row in record.modules)
    costs = max(row.cost_spread or 0.0 for row in record.modules)
    judged_count = sum(row.starts is None and row.determined is not None for row in record.modules)
    where = f" where the overlap does not tell (it does in {judged_count} of {len(record.modules)})"
    return (
        f"The answer was measured{when(judged_count, where)}: solved from {starts} starts, of which the best "
        f"counts, the merged updates end up to {_share(spread)} apart, at costs within {_share(costs)} in "
        f"every module (a module is determined up to {SPREAD_YES:.0%}, in part up to {SPREAD_PARTLY:.0%})."
    )


def _modules(record: RunRecord) -> str:
    """List the modules of each answer, compactly."""
    answers = {key: [row.module for row in record.modules if row.determined == key] for key in _ANSWER}
    parts = (f"{len(names)} {_ANSWER[key]} ({list_names(names)})" for key, names in answers.items() if names)
    return f"Modules: {'; '.join(parts)}."


def _share(value: float) -> str:
    if value < 1e-3:
        return f"{value:.0e} of it"
    return f"{value:.{int(value < 0.1)}%}"


def _consequence(record: RunRecord, count: int) -> str:
    from riemerge.frechet.status import Status  # which loads torch, that a list of methods does without

    method, determined = find_recorded_row(record.recipe), record.totals.determined
    if not may_be_undetermined(record):
        closed_form = record.totals.statuses.keys() == {Status.EXACT.name} and "seed" not in method.parameters
        unique = when(closed_form, f"; {method.name} has one answer whatever the overlap")
        too = when(determined == "yes", " --method geomerge would be well determined here too.")
        return f"Only geomerge depends on that{unique}.{too}"
    if determined == "open":
        return (
            "Overlaps between those of copies and of strangers were measured on real adapters: of 64 such "
            "modules in 55 all ten starts ended in one update, in 9 in different ones. "
            f"Where yours do not end in one, use --method {DEFAULT_METHOD}."
        )
    if determined == "yes":
        rest = sum(row.determined != "yes" for row in record.modules)
        fallback = f" For the {rest} modules of which that is not known compare --method {DEFAULT_METHOD}."
        return (
            "So the mean is determined by the adapters, not by the start or the solver: for such adapters "
            f"different starts were measured to end in the same update.{when(rest, fallback)}"
        )
    rank = sum(max(row.ranks, default=0) for row in record.inputs)
    return (
        f"Where they do not, a mean of fixed rank keeps each adapter at about 1/{count} and fills the rest "
        "with cross terms between adapters that the data hardly fix: other starts end in other updates of "
        "nearly the same cost (measured on six adapters of rank 16: 35 % apart where half of the directions "
        "are shared, 50 % where the start of A is, 111 % where nothing is, at costs within 0.5 %). On "
        "independent adapters the mean was also farther from each input than the average: cosine 0.17 "
        f"against 0.41. Use --method {DEFAULT_METHOD}, or --method average --rank sum, which is exact (rank "
        f"{rank} here); extra iterations buy nothing."
    )


# --- whether the method suits the inputs --------------------------------------------------------------------


def remarks(record: RunRecord) -> list[str]:
    """Say what a user should know of a merge beside its warnings, where the verdict is not shown whole."""
    return [*concerns(record), *_warn_of_spread(record)]


def concerns(record: RunRecord) -> list[str]:
    """Say what speaks against the method for these adapters, and what to use instead.

    Law: a function of the record; empty where nothing speaks against it, and where the updates were not
    compared, since they are many: what may speak against it is how related they are.

    Returns:
        Paragraphs of plain text; none for fewer than two inputs that count, or for full checkpoints.
    """
    overlap = record.totals.overlap
    if overlap is None:
        return []
    return [*_copies(record, overlap), *_worse(record, overlap)]


def _copies(record: RunRecord, overlap: Overlap) -> Iterator[str]:
    """Yield a warning of rows that do not give copies back, on updates that nearly are copies."""
    method = find_recorded_row(record.recipe)
    if not (method.idempotent or method.server_step or overlap.cosine < RELATED):
        yield (
            f"{method.name} is meant for unrelated updates; these are nearly identical (mean cosine "
            f"{overlap.cosine:.2f}; from {RELATED:g} on they share more than they differ in): what they "
            f"share is not kept as it is. Use --method {DEFAULT_METHOD} or --method average, which give "
            "copies back."
        )


def _warn_of_spread(record: RunRecord) -> Iterator[str]:
    """Yield a warning of a mean that several starts showed to be no function of its inputs alone."""
    spread = record.totals.update_spread
    if record.totals.determined in {"no", "partly"} and spread is not None and may_be_undetermined(record):
        yield (
            f"These adapters do not determine their mean: several starts ended up to {_share(spread)} apart, "
            f"at nearly the same cost. Use --method {DEFAULT_METHOD}, or --method average --rank sum, which "
            "is exact."
        )


def _worse(record: RunRecord, overlap: Overlap) -> Iterator[str]:
    """Yield a warning of rows that lost to the default on real adapters as unrelated as these."""
    name, parameters = find_recorded_row(record.recipe).name, record.recipe.get("parameters", {})
    shares = measurement().methods
    if abs(overlap.cosine) > UNRELATED or not {name, DEFAULT_METHOD} <= {*shares}:
        return
    # What was measured is the row as it runs without options, as an adapter.
    usual = {"scale": 1.0, "seed": parameters.get("seed"), **find_recorded_row(record.recipe).defaults}
    if record.out_type != "adapter" or any(usual.get(key) != value for key, value in parameters.items()):
        return
    ours, best = shares[name], shares[DEFAULT_METHOD]
    if all(share <= other - LOSS for share, other in zip(ours, best, strict=True)):
        yield (
            f"The updates are hardly related (mean cosine {overlap.cosine:.2f}). On {len(best)} collections "
            f"of real adapters as unrelated (cosine {measurement().cosine:.2f}) {name} kept {_shares(name)} "
            f"of the specialists' accuracy, {DEFAULT_METHOD} {_shares(DEFAULT_METHOD)}, each as its command "
            f"runs it without options (benchmarks/nli): use --method {DEFAULT_METHOD}, or measure both on "
            "your own tasks with riemerge evaluate."
        )


def cut(record: RunRecord) -> list[str]:
    """Say how much of the squared norm the cut to the rank kept, in one paragraph where that is little."""
    share = energy_kept(record)
    method = find_recorded_row(record.recipe)
    several = _are_adapters(record) and _may_be_compared(record)
    if not several or method.truncates_inputs or share >= KEPT:
        return []
    loss = f"The cut to the rank of the result kept {share:.0%} of the squared norm"
    return [f"{loss}: --rank sum keeps all of it, a higher --rank more."]


def _shares(method: str) -> str:
    """Return the shares of accuracy that a method kept, one for each collection."""
    return " and ".join(f"{share:.2f}" for share in measurement().methods[method])


# --- evaluations --------------------------------------------------------------------------------------------


def evaluation_verdict(evaluation: Evaluation) -> list[str]:
    """Say in words which method an evaluation found best, and whether that is better than the plain average.

    Returns:
        Paragraphs of plain text.
    """
    best = evaluation.entry(evaluation.best)
    alone = max(evaluation.alone, key=lambda entry: entry.normalised)
    dev, test = ("dev rows", "test rows") if evaluation.parts else ("these rows", "them")
    first = (
        f"Best on {dev} is {printable(best.name)} at {best.coefficient:.3g} times the norm of the plain "
        f"average (--scale {best.scale:.4g}): {score_text(best)} on {test}."
    )
    last = f"The best model alone, {printable(alone.name)}, has {alone.normalised:.3f}."
    return [f"{first} {_against_average(evaluation, best)} {last}"]


def score_text(entry: Entry) -> str:
    """Return the normalised score of an entry, with its standard error where it has one."""
    return f"{entry.normalised:.3f}{text_of(entry.error, ' ± {:.3f}', missing='')}"


def _against_average(evaluation: Evaluation, best: Entry) -> str:
    if best.name == evaluation.average:
        return "That is the plain average itself: no other method that was tried is better there."
    difference, name = best.to_average, printable(evaluation.average)
    if difference.low is None or difference.high is None:
        return (
            f"That is {difference.value:+.3f} from {name}; whether it is more than noise cannot be said "
            "without scores of rows."
        )
    interval = f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}] from {name}"
    if difference.low > 0:
        return f"That is {interval}: better beyond noise (p = {difference.p:.2g})."
    if difference.high < 0:
        return (
            f"That is {interval}: worse beyond noise (p = {difference.p:.2g}), though it was better on dev."
        )
    return f"That is {interval}: not better beyond noise (p = {difference.p:.2g})."
