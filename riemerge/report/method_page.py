"""What there is to say of a method: the facts of its row of the table, in words."""

from __future__ import annotations

from collections.abc import Iterator

from riemerge.methods import DEFAULT_METHOD, FORMULA, PARAMETERS, Method
from riemerge.report.verdict import LOSS, measurement
from riemerge.report.words import value_type, when


def describe(row: Method) -> list[tuple[str, str]]:
    """Return what there is to say of a method, each under its title; the summary, under none, comes first."""
    return [
        ("", row.summary),
        ("columns", five_columns(row)),
        ("weights", weights(row)),
        ("parameters (defaults)", parameters(row)),
        *facts(row),
        *(("differs from its source", text) for text in row.differs.values()),
        ("source", row.source),
    ]


def five_columns(row: Method) -> str:
    """Return the five columns of a row: a merge is one choice of edits, geometry, loss, solver and finish."""
    edits, finish = (", ".join(texts) or "none" for texts in (row.edits, row.finish))
    middle = f"geometry {row.geometry}; loss {row.loss}; solver {row.solver}"
    if row.geometry == FORMULA:
        middle = "mean by a formula"
    return f"edits {edits}; {middle}; finish {finish}"


def facts(row: Method) -> list[tuple[str, str]]:
    """Return what a method needs and which laws it obeys, each under its title."""
    yes = {True: "yes", False: "no"}
    return [
        ("needs", needs(row)),
        ("rank of the result", row.output_rank),
        ("moves with the gauge", yes[not row.gauge_invariant]),
        ("copies of one merge to it", yes[row.idempotent]),
    ]


def parameters(row: Method) -> str:
    """Return the parameters that a method takes, with their defaults."""
    return ", ".join(
        f"{name}{when(name in row.defaults, f' ({row.defaults.get(name)})')}" for name in row.parameters
    )


def parameter_rows(row: Method) -> list[tuple[str, str, str, str]]:
    """Return for each parameter that a method takes its name, type and range, default, and meaning."""
    defaults = {"rank": "see above", "scale": "1.0", **row.defaults}
    return [
        (
            name,
            value_type(PARAMETERS[name]),
            str(defaults.get(name, "none")).lower(),
            PARAMETERS[name].summary,
        )
        for name in row.parameters
    ]


def command(row: Method) -> str:
    """Return a command that merges two shipped adapters by a method, from the root of the repository.

    Law: it runs as it stands, but for methods of data, whose statistics have to be collected first.
    """
    names = ("snli", "mnli")
    own = [name for name in row.parameters if name in row.defaults and name not in {"rank", "scale"}]
    return " ".join(
        [
            f"riemerge merge {' '.join(f'examples/adapters/{name}' for name in names)} -o merged",
            f"--method {row.name}",
            *(f"-p {name}={str(row.defaults[name]).lower()}" for name in own[:1]),
            *(f"--statistics {name}-statistics" for name in names if row.statistics),
            *("--base-statistics base-statistics" for _ in range(row.base_statistics)),
        ]
    )


def needs(row: Method) -> str:
    """Return what a method cannot do without, in words."""
    least, most = row.models
    whose = f"each model{when(row.base_statistics, ' and the base')}"
    takes = {
        "weights": "also merges full checkpoints",
        "updates": "also merges full checkpoints with their base model",
        "no": "adapters only",
    }[row.checkpoints]
    phrases = [
        when(least > 1, f"{when(most != least, 'at least ')}{least} models"),
        when(row.ordered, "the models in the order of their run"),
        when(row.statistics, f"statistics of {whose}: {', '.join(row.statistics)}"),
        when(row.truncates_inputs, "one rank"),
        takes,
    ]
    return "; ".join(filter(None, phrases))


def weights(row: Method) -> str:
    """Return what a method does with the weights, in words."""
    use = {True: "divided by their sum", False: "used as given"}
    signs = {True: "any sign", False: "at least 0"}
    return f"{use[row.normalised]}, {signs[row.negative_weights]}"


def cautions(row: Method) -> Iterator[str]:
    """Yield when not to use a method, as its row and the NLI benchmark say."""
    shares = measurement().methods
    ours, best = shares.get(row.name, ()), shares[DEFAULT_METHOD]
    if ours and all(share <= other - LOSS for share, other in zip(ours, best, strict=True)):
        kept, better = (" and ".join(f"{share:.2f}" for share in part) for part in (ours, best))
        yield (
            f"adapters of unrelated tasks: it kept {kept} of the specialists' accuracy, {DEFAULT_METHOD} "
            f"{better} (benchmarks/nli, as the commands run without options)"
        )
    if row.may_be_undetermined:
        yield "adapters that do not determine their mean: the report of a merge says so"
    if row.truncates_inputs:
        yield "adapters of different ranks, unless --rank truncates them to one"
    if not row.idempotent:
        yield "updates that are nearly identical: copies of one model do not merge to it"
    if row.domain == "entries":
        yield "modules too large for memory: it forms the dense dW of the result, or of the inputs"
    if row.models[1]:
        yield f"more than {row.models[1]} models"
    if not row.negative_weights:
        yield "weights below zero"
