"""What the tests of reports share: a terminal of any width, and evaluations of known content."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, RenderableType

from riemerge.records.evaluation_record import Entry, Evaluation, Look, PairedDifference


def render(what: RenderableType, width: int = 100, *, terminal: bool = False) -> str:
    out = StringIO()
    Console(file=out, width=width, markup=False, highlight=False, force_terminal=terminal).print(what)
    return out.getvalue()


NOTHING = PairedDifference(value=0, error=0, low=0, high=0, p=1)


def entry(name: str, score: float, difference: PairedDifference, *, method: bool = True) -> Entry:
    alone = Entry(
        name=name,
        test={"t": score / 2, "u": score / 4},
        normalised=score,
        error=difference.error,
        to_average=difference,
        to_best=NOTHING,
    )
    looks = (Look(coefficient=2, dev={"t": score}, normalised=score),)
    facts = {"method": "ties", "rank": 7, "looks": looks, "coefficient": 2, "scale": 2.5, "dev": score}
    return alone.model_copy(update=facts) if method else alone


def evaluation(difference: PairedDifference, **said: object) -> Evaluation:
    alone = entry("a", 0.5, difference, method=False)
    made = Evaluation(
        versions={},
        models={"a": {}},
        tasks=("t", "u"),
        specialists={"t": "a", "u": None},
        parts=True,
        rows={"t": 5, "u": 5},
        norm=1.0,
        coefficients=None,
        resamples=10,
        seed=1,
        alone=(alone,),
        entries=(entry("average", 0.625, NOTHING), entry("ties:density=0.2", 0.75, difference)),
        refused={"slerp": ("no two",)},
        average="average",
        best="ties:density=0.2",
        notes=("mind this",),
    )
    return made.model_copy(update=said)


def interval(low: float, value: float, high: float) -> PairedDifference:
    return PairedDifference(value=value, error=0.01, low=low, high=high, p=0.04)
