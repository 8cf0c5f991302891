"""Evaluation: which method, at which norm, merges adapters best, as a user's scorer says."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from riemerge.errors import NumericalError, OutputError, RecipeError, may_pass
from riemerge.formats.files.staging import check_output, exchange, overlaps, write_atomically, writing
from riemerge.formats.files.text import shown
from riemerge.formats.fit import check_collection
from riemerge.formats.peft import Adapter
from riemerge.merging.inputs import display_names, read_all
from riemerge.merging.plan import plan
from riemerge.merging.recording import versions
from riemerge.merging.sinks import RECORD_FILE
from riemerge.merging.written_before import made_by, read_record, why_not_as_written
from riemerge.progress import Listener
from riemerge.recipes.candidates import Candidate, parse
from riemerge.recipes.recipe import Recipe
from riemerge.records.run_record import Entry, Evaluation
from riemerge.study.bench import AVERAGE, Asked, Bench, Result
from riemerge.study.bootstrap import RESAMPLES, SEED
from riemerge.study.comparison import check_groups, compare, without_errors
from riemerge.study.scores import Answers, TaskScorer, judge_of, sizes_of

DEFAULT_METHODS = ("spectrum", "average", "tsv", "geomerge")
"""What is tried if nothing is asked for: the best rows that need no data (`benchmarks/nli`), their baseline,
and the Fréchet mean."""

EVALUATION_FILE = "evaluation.json"
RESULTS = "results"
BEST = "best"

_log = logging.getLogger(__name__)


def evaluate(
    models: Sequence[str | Path],
    scorer: TaskScorer,
    *,
    folder: str | Path,
    methods: Sequence[str] = DEFAULT_METHODS,
    coefficients: Sequence[float] | None = None,
    specialists: Mapping[str, str | None] | None = None,
    groups: Mapping[str, Sequence[int]] | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    device: str = "cpu",
    threads: int | None = None,
    dtype: str = "float64",
    out_dtype: str | None = None,
    progress: Listener | None = None,
) -> Evaluation:
    """Try several methods on the same adapters, choose on dev rows, report on test rows, write the best.

    Law: each method merges once, and is scored on dev at the same coefficients as all others: at 1, 2 and 4
    times the norm of the plain average, then half an octave either side of the best of these. Its best look
    alone, ties to the first, is scored on test; nothing is chosen by that. What is scored is the folder as it
    would be written. *Cost*: for each method one merge and six scores, for each model alone up to two.

    The folder holds a file for each method under `results`, as soon as it is there, then the best merge as
    the adapter `best`, whole or not at all, then `evaluation.json`: where that is, `best` is what it names. A
    run that was broken off goes on, and so does one that asks for more: a result stays for which inputs,
    method, parameters, coefficients, scorer (see `scores.judge_of`) and version of riemerge are the same, and
    `best` while its files are those that were written. What is made again, the log says, and why.

    Args:
        models: T >= 1 folders of adapters.
        scorer: A command or a function (see `scores.judge_of`) that says how good the model in a folder is on
            the rows of a part, `dev` or `test`: a number, or by task a number or one for each row, always of
            the same tasks and rows, higher is better. Scores of rows give paired errors.
        folder: The new folder, or that of an earlier run.
        methods: Each `method` or `method:parameter=value`; the plain average is tried in any case.
        coefficients: Norms to try in place of the search, as multiples of the plain average's.
        specialists: By task the name of the model whose score is 1, or None for raw scores; of a task that is
            not named here, the model called like it if there is one.
        groups: By task for each test row the number of what is drawn as one; each row by itself if not given.
        resamples: How often rows are drawn again for the errors.
        seed: Random seed of the resamples.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: How many work at once.
        dtype: Dtype of the computation, `float64` or `float32`.
        out_dtype: What is written, and scored.
        progress: Called after each score; its total is the number of scores where no result is kept yet.

    Returns:
        The content of `evaluation.json`. A method that refuses these adapters is in it with the reason.

    Raises:
        RiemergeError: As `merge_adapters`, and as the scorer; a NumericalError for scores that are no finite
            numbers, of other tasks or rows than before, or of a specialist that is not above 0; an
            OutputError for a folder that is there and is no evaluation. Its notes say where results are kept.
    """
    candidates = _candidates(methods)
    _check_numbers(coefficients, resamples, seed)
    adapters = _opened(models)
    asked = Asked(
        adapters,
        judge_of(scorer),
        None if coefficients is None else tuple(map(float, coefficients)),
        _named(specialists or {}, dict(zip(map(str, models), adapters, strict=True))),
        dtype,
        out_dtype,
        device,
        threads,
    )
    root = Path(folder).absolute()
    with _workplace(root, [one.path for one in adapters.values()]) as work:
        bench = Bench(asked, root / RESULTS, work, len(candidates), progress)
        check_groups(groups or {}, bench.alone.test[0])
        results = {name: bench.result(one) for name, one in candidates.items()}
        made = _evaluation(asked, bench, candidates, results, groups or {}, resamples, seed)
        best = made.entry(made.best)
        assert best.scale is not None  # only models alone have none
        _write_best(root, work, asked, asked.recipe(candidates[best.name], best.scale))
        write_atomically(root / EVALUATION_FILE, made.to_json().encode())
    return made


# --- what is asked for --------------------------------------------------------------------------------------


def _candidates(methods: Sequence[str]) -> dict[str, Candidate]:
    """The methods asked for by their names, with the plain average."""
    found = {one.name: one for one in map(parse, methods)}
    if scaled := [name for name, one in found.items() if "scale" in one.parameters]:
        raise RecipeError(f"methods: {', '.join(scaled)}: the scale is what is searched: leave it out")
    if not any(one.method == AVERAGE for one in found.values()):
        return {AVERAGE: Candidate(AVERAGE), **found}
    return found


def _check_numbers(coefficients: Sequence[float] | None, resamples: int, seed: int) -> None:
    problems = []
    if coefficients is not None:
        fit = all(0 < one < math.inf for one in coefficients)
        if not coefficients or not fit or len(set(coefficients)) < len(coefficients):
            problems.append(
                f"coefficients: {list(coefficients)}: expected finite numbers above 0, none twice"
            )
    if resamples < 2:
        problems.append(f"resamples: {resamples}: expected at least 2")
    if seed < 0:
        problems.append(f"seed: {seed}: expected at least 0")
    if problems:
        raise RecipeError(problems)


def _opened(models: Sequence[str | Path]) -> dict[str, Adapter]:
    """The adapters by their names."""
    names = display_names(models)
    if not models or len(set(names)) < len(names):
        raise RecipeError(f"models: {', '.join(names) or 'none'}: expected at least one, each once")
    adapters = read_all(models)
    check_collection(adapters)
    return dict(zip(names, adapters, strict=True))


def _named(specialists: Mapping[str, str | None], names: Mapping[str, str]) -> dict[str, str | None]:
    """Specialists by the names of the models, given by these or by their paths."""
    found = {task: names.get(one, one) if one else None for task, one in specialists.items()}
    known = list(names.values())
    problems = [
        f"specialists: {task}: no model {one!r}: expected one of {', '.join(known)}"
        for task, one in found.items()
        if one is not None and one not in known
    ]
    if problems:
        raise RecipeError(problems)
    return found


# --- what was found -----------------------------------------------------------------------------------------


def _evaluation(
    asked: Asked,
    bench: Bench,
    candidates: Mapping[str, Candidate],
    results: Mapping[str, Result],
    groups: Mapping[str, Sequence[int]],
    resamples: int,
    seed: int,
) -> Evaluation:
    names, alone = list(asked.adapters), bench.alone
    tried = {name: result for name, result in results.items() if not result.refused}
    average = next(name for name, one in candidates.items() if one.method == AVERAGE)
    if average not in tried:
        raise NumericalError([f"{average}: {problem}" for problem in results[average].refused])
    best = max(tried, key=lambda name: tried[name].best.normalised)
    places = {name: place for place, name in enumerate(tried, len(names))}
    compared = compare(
        [*alone.test, *(result.test for result in tried.values())],
        {task: names.index(name) for task, name in bench.specialists.items() if name is not None},
        places[average],
        places[best],
        groups=groups,
        resamples=resamples,
        seed=seed,
    )
    return Evaluation(
        versions=versions(),
        models={name: dict(one.sha256) for name, one in asked.adapters.items()},
        tasks=tuple(bench.specialists),
        specialists=bench.specialists,
        parts=asked.judge.parts,
        rows=sizes_of(alone.test[0]),
        norm=alone.norm,
        coefficients=asked.coefficients,
        resamples=resamples,
        seed=seed,
        alone=tuple(Entry(name=name, **one._asdict()) for name, one in zip(names, compared, strict=False)),
        entries=tuple(
            Entry(
                name=name,
                method=candidates[name].method,
                parameters=dict(candidates[name].parameters),
                rank=result.rank,
                looks=result.looks,
                coefficient=result.best.coefficient,
                scale=result.best.coefficient * alone.norm / result.norm,
                dev=result.best.normalised,
                **compared[places[name]]._asdict(),
            )
            for name, result in tried.items()
        ),
        refused={name: result.refused for name, result in results.items() if result.refused},
        average=average,
        best=best,
        notes=tuple(_notes(asked, bench, alone.test[0], tried)),
    )


def _notes(asked: Asked, bench: Bench, answers: Answers, tried: Mapping[str, Result]) -> Iterator[str]:
    if not asked.judge.parts:
        yield (
            "the scorer does not tell dev from test rows: coefficients and the best method were chosen on "
            "the same rows that are reported, which is optimistic"
        )
    if raw := [task for task, name in bench.specialists.items() if name is None]:
        yield f"{', '.join(raw)}: no model is the specialist: the raw score counts in the mean"
    if single := without_errors(answers):
        yield f"{', '.join(single)}: one score alone: errors need the score of each row"
    if edge := [name for name, one in tried.items() if _at_the_edge(one)]:
        yield (
            f"{', '.join(edge)}: best at the least or the greatest norm that was tried: one beyond it may "
            "be better still"
        )


def _at_the_edge(result: Result) -> bool:
    looks = [look.coefficient for look in result.looks]
    return len(looks) > 1 and result.best.coefficient in {min(looks), max(looks)}


# --- the folder ---------------------------------------------------------------------------------------------


@contextmanager
def _workplace(root: Path, models: Sequence[Path]) -> Iterator[Path]:
    """The folder of the evaluation, with an empty one in it to work in; gone again if nothing was kept."""
    new = not os.path.lexists(root)
    if new:
        check_output(root, models)
    else:
        with writing(root):
            problems = [*overlaps(root, models), *_strange(root)]
        if problems:
            raise OutputError(problems)
    with writing(root):
        (root / RESULTS).mkdir(parents=True, exist_ok=True)
        work = TemporaryDirectory(prefix=".riemerge-", dir=root, ignore_cleanup_errors=True)
    try:
        with work as folder:
            yield Path(folder)
    except BaseException as fault:
        with suppress(OSError):  # they are not empty, which is as it should be
            (root / RESULTS).rmdir()
            if new:
                root.rmdir()
        if (root / RESULTS).is_dir():
            advice = ": the same command goes on from there" if may_pass(fault) else ""
            fault.add_note(f"{root}: keeps what was measured so far{advice}")
        raise


def _strange(root: Path) -> Iterator[str]:
    """What is there already and is not of an evaluation."""
    if not root.is_dir() or (any(root.iterdir()) and not (root / RESULTS).is_dir()):
        yield f"{root}: exists already and is no evaluation: choose another folder or remove it"
    elif os.path.lexists(root / BEST) and read_record(root / BEST) is None:
        yield f"{root / BEST}: exists already, and its {RECORD_FILE} is no run record: remove it"


def _write_best(root: Path, work: Path, asked: Asked, recipe: Recipe) -> None:
    """Write the best merge, unless it is there."""
    target, opened = root / BEST, {one.path: one for one in asked.adapters.values()}
    record = read_record(target)
    if record is not None and made_by(plan(recipe, opened=opened), record):
        why = why_not_as_written(target, record)
        if why is None:
            return
        _log.warning("%s: is made again: %s", shown(str(target)), shown(why))
    asked.merge(recipe, round_at_once=True).save_pretrained(work / BEST)
    with writing(target):
        # Where evaluation.json is, `best` is what it names: so it goes before another best comes.
        (root / EVALUATION_FILE).unlink(missing_ok=True)
    exchange(work / BEST, target, work / "old")
