"""Greedy soups: the models that merge best together, chosen by their score."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

from pydantic import BaseModel, ConfigDict

from riemerge.errors import RecipeError
from riemerge.formats.files.staging import check_output, hidden_prefix, publish, write_atomically, writing
from riemerge.merging.inputs import folders_of
from riemerge.merging.plan import plan_together
from riemerge.merging.shared_inputs import SharedInputs
from riemerge.merging.sinks import write
from riemerge.progress import Listener, Progress
from riemerge.study.reweighting import equal_weights, model_names, reweight, to_json
from riemerge.study.scorer import Scorer, ask_score

SOUP_FILE = "soup.json"

_FROZEN = ConfigDict(frozen=True, extra="forbid")


@final
class Trial(BaseModel):
    """One merge that was scored.

    Attributes:
        models: Names of its models, in the order in which they came in.
        score: What the scorer said.
    """

    model_config = _FROZEN
    models: tuple[str, ...]
    score: float


@final
class SoupRecord(BaseModel):
    """The content of `soup.json`.

    Attributes:
        method: Row of the table that merged the models.
        trials: The T models alone, then each merge that was tried.
        chosen: Names of the models in the soup, in the order in which they came in.
        score: Score of the soup.
    """

    model_config = _FROZEN
    method: str
    trials: tuple[Trial, ...]
    chosen: tuple[str, ...]
    score: float


def greedy_soup(
    models: Sequence[str | Path],
    folder: str | Path,
    scorer: Scorer,
    *,
    method: str = "average",
    statistics: Sequence[str | Path] = (),
    device: str = "cpu",
    threads: int | None = None,
    progress: Listener | None = None,
    **options: Any,
) -> SoupRecord:
    """Merge those of several models that score best together, and write the merge with a `soup.json` in it.

    Law: from the best alone to the worst (ties by place), a model stays in the soup where the score does not
    drop, so no model alone scores more. What is scored is the folder as it would be written. A model alone is
    itself, whatever the method, but for `rank`, `scale` and dtypes. All models are opened and checked against
    each other before the first score. The folder appears whole or not at all.

    Args:
        models: T folders of adapters or full checkpoints, at least one.
        folder: The new folder.
        scorer: Gives the score of a model in a folder: a finite number, higher is better.
        method: A row of the table whose models have no order; all weights are 1.
        statistics: Folder of statistics of each model, for a method that needs them.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: Number of threads that work at once; all CPUs if not given.
        progress: Called after each trial.
        options: What else a recipe says: `base_model`, `dtype`, `out_dtype`, `out_type`, any parameter.

    Returns:
        The content of `soup.json`.

    Raises:
        RiemergeError: What `merge_into` raises; a NumericalError for a score that is no finite number.

    Cost:
        2T merges and 2T - 1 scores, each module of each model read once; the space of one merge.

    Source:
        Wortsman et al. 2022, Model soups, recipe 1.
    """
    recipe = equal_weights(models, method, statistics, options)
    if recipe.method.ordered:
        raise RecipeError(
            f"merge_method: {method} takes its models in the order of a run, and a soup takes them by their "
            "scores: choose another"
        )
    names, target = model_names(recipe), Path(folder).absolute()
    check_output(target, folders_of(recipe))

    def weights_of(places: Sequence[int]) -> list[float]:
        return [float(place in places) for place in range(len(names))]

    alone = [reweight(recipe, weights_of([place])) for place in range(len(names))]
    opened = plan_together(recipe, alone, device=device, threads=threads)
    shared, trials = SharedInputs(opened), list[Trial]()
    with writing(target):
        made = TemporaryDirectory(prefix=hidden_prefix(target), dir=target.parent, ignore_cleanup_errors=True)
    with made as work:
        stage = Path(work, "soup")

        def merge(places: Sequence[int]) -> None:
            recipe_of_some = reweight(recipe, weights_of(places))
            write(shared.plan(recipe_of_some, device=device, threads=threads), stage)

        def try_soup(places: Sequence[int]) -> float:
            merge(places)
            chosen = tuple(names[place] for place in places)
            score = ask_score(scorer, stage, " + ".join(chosen))
            shutil.rmtree(stage, ignore_errors=True)  # a scorer may have moved it
            trials.append(Trial(models=chosen, score=score))
            if progress is not None:
                text = f"{' + '.join(chosen)}: score {score:.6g}"
                progress(Progress("soup", len(trials), 2 * len(names) - 1, text))
            return score

        soup, score = _choose_greedily(len(names), try_soup)
        chosen = tuple(names[place] for place in soup)
        # Merged anew, so that nothing is in it that the scorer left there.
        merge(soup)
        record = SoupRecord(method=recipe.merge_method, trials=tuple(trials), chosen=chosen, score=score)
        write_atomically(stage / SOUP_FILE, to_json(record))
        with writing(target):
            publish(stage, target)
    return record


def _choose_greedily(count: int, score: Callable[[Sequence[int]], float]) -> tuple[list[int], float]:
    """Return the places that make a soup, in the order in which they come in, and its score."""
    alone = [score([place]) for place in range(count)]
    first, *others = sorted(range(count), key=lambda place: (-alone[place], place))
    soup, best = [first], alone[first]
    for place in others:
        more = score([*soup, place])
        if more >= best:
            soup, best = [*soup, place], more
    return soup, best
