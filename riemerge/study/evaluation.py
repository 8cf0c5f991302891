"""Evaluation: which method, at which norm, merges adapters best, as a user's scorer says."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from riemerge.errors import NumericalError, OutputError, RecipeError
from riemerge.formats.adapter import Adapter
from riemerge.formats.files.staging import check_output, overlaps, write_atomically, writing
from riemerge.formats.fit import check_collection
from riemerge.merging.inputs import display_names, read_all
from riemerge.merging.plan import plan as plan_merge
from riemerge.merging.recording import versions
from riemerge.merging.sinks import CARD_FILE, RECORD_FILE
from riemerge.merging.written_before import read_record
from riemerge.progress import Listener
from riemerge.recipes.candidates import Candidate, parse
from riemerge.records.evaluation_record import Entry, Evaluation
from riemerge.report.card import model_card
from riemerge.study.kept_merges import keep_merge, study_folder, workplace
from riemerge.study.method_trials import AVERAGE, EvaluationPlan, MethodTrials, Result
from riemerge.study.paired_differences import (
    RESAMPLES,
    SEED,
    check_groups,
    compare,
    name_single_scores,
)
from riemerge.study.result_table import ResultTable
from riemerge.study.scorer import Answers, TaskScorer, count_rows, make_judge

DEFAULT_METHODS = ("spectrum", "average", "tsv", "geomerge")
"""What is tried if nothing is asked for: the best rows that need no data (`benchmarks/nli`), their baseline,
and the Fréchet mean."""

EVALUATION_FILE = "evaluation.json"
RESULTS = "results.jsonl"
BEST = "best"


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
    heads: str | None = None,
    progress: Listener | None = None,
) -> Evaluation:
    """Try several methods on the same adapters, choose on dev rows, report on test rows, write the best.

    Law: each method merges once, and is scored on dev at the same coefficients as all others: at 1, 2 and 4
    times the norm of the plain average, then half an octave either side of the best of these. Its best look
    alone, ties to the first, is scored on test; nothing is chosen by that. What is scored is the folder as it
    would be written.

    The folder holds a row for each method in `results.jsonl`, as soon as it is measured, then the best merge
    as the adapter `best`, whole or not at all, its scores on test in its card, then `evaluation.json`: where
    that is, `best` is what it names. A run that was broken off goes on, and so does one that asks for more: a
    result stays for which inputs, method, parameters, coefficients, scorer (see `scorer.make_judge`) and
    version of riemerge are the same, and `best` while its files are those that were written. What is made
    again, the log says, and why.

    Args:
        models: T >= 1 folders of adapters.
        scorer: A command or a function (see `scorer.make_judge`) that says how good the model in a folder is
            on the rows of a part, `dev` or `test`: a number, or by task a number or one for each row, always
            of the same tasks and rows, higher is better. Scores of rows give paired errors.
        folder: The new folder, or that of an earlier run.
        methods: Each `method` or `method:parameter=value`; the plain average is tried in any case.
        coefficients: Norms to try, as multiples of the plain average's; searched if not given.
        specialists: By task the name of the model whose score is 1, or None for raw scores; of a task that is
            not named here, the model called like it if there is one.
        groups: By task for each test row the number of what is drawn as one; each row by itself if not given.
        resamples: How often rows are drawn again for the errors.
        seed: Random seed of the resamples.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: Number of threads that work at once; all CPUs if not given.
        dtype: Dtype of the computation, `float64` or `float32`.
        out_dtype: Dtype of the weights that are scored and written; that of the adapters if not given.
        heads: What becomes of whole tensors saved beside the factors: `drop`, `average`, `from=NAME`.
        progress: Called after each score; its total is the number of scores where no result is kept yet.

    Cost:
        One merge and six scores for each method, up to two scores for each model alone.

    Returns:
        The content of `evaluation.json`. A method that refuses these adapters is in it with the reason.

    Raises:
        RiemergeError: What `merge` and the scorer raise; a NumericalError for scores that are no finite
            numbers, of other tasks or rows than before, or of a specialist that is not above 0; an
            OutputError for a folder that is there and is no evaluation. Its notes say where results are kept.
    """
    candidates = _candidates(methods)
    _check_numbers(coefficients, resamples, seed)
    adapters = _open(models)
    plan = EvaluationPlan(
        adapters,
        make_judge(scorer),
        None if coefficients is None else tuple(map(float, coefficients)),
        _specialists(specialists or {}, dict(zip(map(str, models), adapters, strict=True))),
        dtype,
        out_dtype,
        heads,
        device,
        threads,
    )
    root = Path(folder).absolute()
    with _folder(root, [adapter.path for adapter in adapters.values()]) as table:
        with workplace(root) as work:
            trials = MethodTrials(plan, table, work, len(candidates), progress)
            check_groups(groups or {}, trials.alone.test[0])
            results = {name: trials.result(candidate) for name, candidate in candidates.items()}
        evaluation = _evaluation(plan, trials, candidates, results, groups or {}, resamples, seed)
        best = evaluation.entry(evaluation.best)
        assert best.scale is not None  # only models alone have none
        if not os.path.lexists(root / BEST):
            # Where evaluation.json is, `best` is what it names: so it goes before another best comes.
            (root / EVALUATION_FILE).unlink(missing_ok=True)
        planned = plan_merge(
            plan.recipe(candidates[best.name], best.scale),
            opened={adapter.path: adapter for adapter in adapters.values()},
            device=device,
            threads=threads,
        )
        record, _ = keep_merge(planned, root / BEST, root / EVALUATION_FILE, replace=True)
        write_atomically(root / BEST / CARD_FILE, model_card(record, best.test).encode())
        write_atomically(root / EVALUATION_FILE, evaluation.to_json().encode())
    return evaluation


# --- what is asked for --------------------------------------------------------------------------------------


def _candidates(methods: Sequence[str]) -> dict[str, Candidate]:
    """Return the methods asked for by their names, with the plain average."""
    candidates = {candidate.name: candidate for candidate in map(parse, methods)}
    if scaled := [name for name, candidate in candidates.items() if "scale" in candidate.parameters]:
        raise RecipeError(f"methods: {', '.join(scaled)}: the scale is what is searched: leave it out")
    if not any(candidate.method == AVERAGE for candidate in candidates.values()):
        return {AVERAGE: Candidate(AVERAGE), **candidates}
    return candidates


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
    RecipeError.refuse(problems)


def _open(models: Sequence[str | Path]) -> dict[str, Adapter]:
    """Return the adapters by their names."""
    names = display_names(models)
    if not models or len(set(names)) < len(names):
        raise RecipeError(f"models: {', '.join(names) or 'none'}: expected at least one, each once")
    adapters = read_all(models)
    check_collection(adapters)
    return dict(zip(names, adapters, strict=True))


def _specialists(specialists: Mapping[str, str | None], names: Mapping[str, str]) -> dict[str, str | None]:
    """Return specialists by the names of the models, given by these or by their paths."""
    named = {task: model and names.get(model, model) for task, model in specialists.items()}
    problems = [
        f"specialists: {task}: no model {model!r}: expected one of {', '.join(names.values())}"
        for task, model in named.items()
        if model and model not in names.values()
    ]
    RecipeError.refuse(problems)
    return {task: model or None for task, model in named.items()}


# --- what was measured --------------------------------------------------------------------------------------


def _evaluation(
    plan: EvaluationPlan,
    trials: MethodTrials,
    candidates: Mapping[str, Candidate],
    results: Mapping[str, Result],
    groups: Mapping[str, Sequence[int]],
    resamples: int,
    seed: int,
) -> Evaluation:
    names, alone = list(plan.adapters), trials.alone
    tried = {name: result for name, result in results.items() if not result.refused}
    average = next(name for name, candidate in candidates.items() if candidate.method == AVERAGE)
    if average not in tried:
        raise NumericalError([f"{average}: {problem}" for problem in results[average].refused])
    best = max(tried, key=lambda name: tried[name].best.normalised)
    places = {name: place for place, name in enumerate(tried, len(names))}
    compared = compare(
        [*alone.test, *(result.test for result in tried.values())],
        {task: names.index(name) for task, name in trials.specialists.items() if name is not None},
        places[average],
        places[best],
        groups=groups,
        resamples=resamples,
        seed=seed,
    )
    return Evaluation(
        versions=versions(),
        models={name: dict(adapter.sha256) for name, adapter in plan.adapters.items()},
        tasks=tuple(trials.specialists),
        specialists=trials.specialists,
        parts=plan.judge.parts,
        rows=count_rows(alone.test[0]),
        norm=alone.norm,
        coefficients=plan.coefficients,
        resamples=resamples,
        seed=seed,
        alone=tuple(
            Entry(name=name, **comparison._asdict())
            for name, comparison in zip(names, compared, strict=False)
        ),
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
        notes=tuple(_notes(plan, trials, alone.test[0], tried)),
    )


def _notes(
    plan: EvaluationPlan, trials: MethodTrials, answers: Answers, tried: Mapping[str, Result]
) -> Iterator[str]:
    """Yield what a person should know before trusting an evaluation."""
    if not plan.judge.parts:
        yield (
            "the scorer does not tell dev from test rows: coefficients and the best method were chosen on "
            "the same rows that are reported, which is optimistic"
        )
    if raw := [task for task, name in trials.specialists.items() if name is None]:
        yield f"{', '.join(raw)}: no model is the specialist: the raw score counts in the mean"
    if single := name_single_scores(answers):
        yield f"{', '.join(single)}: one score alone: errors need the score of each row"
    if edge := [name for name, result in tried.items() if _is_at_the_edge(result)]:
        yield (
            f"{', '.join(edge)}: best at the least or the greatest norm that was tried: one beyond it may "
            "be better still"
        )


def _is_at_the_edge(result: Result) -> bool:
    """Return whether a choice of norm is the least or the greatest that was tried."""
    looks = [look.coefficient for look in result.looks]
    return len(looks) > 1 and result.best.coefficient in {min(looks), max(looks)}


# --- the folder ---------------------------------------------------------------------------------------------


@contextmanager
def _folder(root: Path, models: Sequence[Path]) -> Iterator[ResultTable]:
    """Check and make the folder of an evaluation, and open its table; gone again if nothing was kept."""
    if not os.path.lexists(root):
        check_output(root, models)
    else:
        with writing(root):
            problems = [*overlaps(root, models), *_strange(root)]
        OutputError.refuse(problems)
    with study_folder(root, [RESULTS], lambda _: "keeps what was measured so far", "there"):
        yield ResultTable(root / RESULTS)


def _is_left_over(path: Path) -> bool:
    """Return whether a file is what a killed run leaves before its first result."""
    return path.name.startswith((".riemerge-", f".{RESULTS}"))


def _strange(root: Path) -> Iterator[str]:
    """Yield what is in a folder already and is not part of an evaluation."""
    if not root.is_dir() or not ((root / RESULTS).is_file() or all(map(_is_left_over, root.iterdir()))):
        yield f"{root}: exists already and is no evaluation: choose another folder or remove it"
    elif os.path.lexists(root / BEST) and read_record(root / BEST) is None:
        yield f"{root / BEST}: exists already, and its {RECORD_FILE} is no run record: remove it"
