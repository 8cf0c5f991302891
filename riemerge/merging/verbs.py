"""The verbs: merge into memory, and merge into a folder. Both plan, run, and hand the result to a sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from riemerge.errors import RecipeError, try_each
from riemerge.formats.adapter import Adapter
from riemerge.formats.dialects import read_adapter
from riemerge.formats.kinds import is_checkpoint
from riemerge.frechet.loss import LOSSES
from riemerge.merging.inputs import Models, counting
from riemerge.merging.plan import plan
from riemerge.merging.sinks import SHARD_BYTES, MergeResult, Written, collect, write
from riemerge.methods import DEFAULT_METHOD, GEOMETRIES, PLAIN_METHOD
from riemerge.progress import Listener
from riemerge.recipes.recipe import Recipe, make_recipe


def merge(
    adapters: Sequence[str | Path | Adapter],
    weights: Sequence[float] | None = None,
    *,
    method: str | None = None,
    edits: Sequence[str] | str | None = None,
    geometry: Any = None,
    loss: Any = None,
    solver: Any = None,
    statistics: Sequence[str | Path | None] | None = None,
    base_statistics: str | Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    dtype: str = "float64",
    out_dtype: str | None = None,
    uniform_rank: bool | None = None,
    same_base: bool = False,
    base_name: str | None = None,
    rename: Mapping[str, str] | None = None,
    missing: str = "error",
    heads: str | None = None,
    base_model: str | Path | None = None,
    dialect: str | None = None,
    report: str = "short",
    progress: Listener | None = None,
    **parameters: Any,
) -> MergeResult:
    """Merge PEFT LoRA adapters of one base model into one, without the base model.

    Law: a function of the updates dW and the weights. The order of the adapters changes no bit of the
    updates (but of trajectories, where it is the point), an adapter of weight 0 is not even read, and k
    copies of one adapter merge to it where the method's row claims so. Nothing is written.

    Args:
        adapters: Folders of adapters, or adapters already read; at least one that has a weight.
        weights: One finite number each; all 1 if not given.
        method: A name of `riemerge.methods.METHODS`; `average` beside other columns, else `spectrum`.
        edits: Edits in place of the method's own, such as `["trim:density=0.3", "elect"]`.
        geometry: A geometry in place of the method's own: an object of `riemerge.geometries` or its name.
        loss: A loss in place of the method's own: an object of `riemerge.losses`, its name, or a function of
            the distance.
        solver: A solver of `riemerge.solvers`, its name, or a Pymanopt optimizer, where a mean is solved for.
        statistics: A folder of `riemerge.collect_statistics` for each adapter, for a method that needs them.
        base_statistics: Folder of statistics of the base model.
        device: `cpu`, `cuda` (also `cuda:1`), or `auto` for cuda where there is one.
        threads: How many work at once on a CPU; they change no bit. As many as the CPUs that this process may
            use if not given.
        dtype: `float64` or `float32`, of the tall factors; the reduced problem is always float64.
        out_dtype: Dtype that is written, such as `bfloat16`; None keeps that of the inputs.
        uniform_rank: False for a rank of its own in each module, where `rank` is no number: a smaller file,
            which PEFT and vLLM read. One rank, by columns of zero, if not given: every loader reads that.
        same_base: Whether to take the adapters as trained on one base model, whatever they name.
        base_name: The base model that the result names.
        rename: New prefixes of module names by those that the adapters have.
        missing: What a module counts as that some adapters lack: `error`, `zero`, or `skip`.
        heads: What becomes of whole tensors saved beside the factors: `drop`, `average`, `from=NAME`.
        base_model: Full checkpoint of the base model, for adapters whose dW depends on it (DoRA).
        dialect: The dialect in which the result is written: `peft`, `kohya`, `diffusers`, `mlx`.
        report: `full` measures the overlaps of all pairs of adapters for the record; `short` does so only for
            up to 16 adapters, and where the method needs it.
        progress: Called now and then.
        parameters: Parameters of the method, which `riemerge methods` lists: `rank` (a number, a share such
            as `95%`, or `sum` for all of an exact result), `scale` (the factor λ on the merged update),
            `density`, `tol`, `seed`, ...; each a value, a gradient over depth, or a list of filters.

    Returns:
        The merged updates with their record; `save_pretrained` writes them.

    Raises:
        RecipeError: What was asked makes no sense.
        AdapterError: An input cannot be read exactly, or the inputs do not fit each other.
        NumericalError: The method has no answer for these updates.
        ResourceError: The device is not there.

    Example:
        >>> result = merge(["snli", "mnli"], weights=[0.5, 0.5])  # doctest: +SKIP
        >>> result.save_pretrained("merged")  # doctest: +SKIP
    """
    if dtype not in {"float64", "float32"}:
        raise RecipeError(
            f"dtype: {dtype!r} is not known: expected 'float64' or 'float32'; out_dtype is written"
        )
    given = [1.0] * len(adapters)
    if weights is not None:
        given = list(weights)
    if len(given) != len(adapters):
        raise RecipeError(f"weights: {len(given)} for {len(adapters)} adapters: give one weight for each")
    folders = [path and str(path) for path in statistics or ()]
    folders = folders or [None] * len(adapters)
    if len(folders) != len(adapters):
        raise RecipeError(
            f"statistics: {len(folders)} for {len(adapters)} adapters: give one folder for each"
        )
    optimizer = None
    if not isinstance(solver, str | None):
        optimizer, solver = _name_solver(solver)
    columns = {
        "edits": edits,
        "geometry": geometry and GEOMETRIES.text_of(geometry),
        "loss": loss and LOSSES.text_of(loss),
    }
    if method is None:
        method = PLAIN_METHOD if any(columns.values()) else DEFAULT_METHOD
    said = {"solver": solver, **parameters}
    recipe = make_recipe(
        {
            "merge_method": method,
            **{name: value for name, value in columns.items() if value},
            "models": [
                {
                    "model": str(getattr(model, "path", model)),
                    "parameters": {"weight": _plain(weight)},
                    "statistics": folder,
                }
                for model, weight, folder in zip(adapters, given, folders, strict=True)
            ],
            "base_statistics": base_statistics and str(base_statistics),
            "parameters": {name: _plain(value) for name, value in said.items() if value is not None},
            "dtype": dtype,
            "out_dtype": out_dtype,
            "uniform_rank": uniform_rank,
            "same_base": same_base,
            "base_name": base_name,
            "rename": dict(rename or {}),
            "missing": missing,
            "heads": heads,
            "base_model": base_model and str(base_model),
            "dialect": dialect,
        }
    )
    opened = {adapter.path: adapter for adapter in adapters if isinstance(adapter, Adapter)}
    # A full checkpoint is refused as what it is, by the reader of adapters.
    used = [recipe.models[i].model for i in counting(recipe)]
    try_each(read_adapter, [path for path in used if Path(path) not in opened and is_checkpoint(path)])
    planned = plan(
        recipe,
        opened=opened,
        optimizer=optimizer,
        device=device,
        threads=threads,
        report=report,
    )
    return collect(planned, progress=progress)


merge_adapters = merge
"""The former name of `merge`."""


def merge_into(
    recipe: Recipe,
    folder: str | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    report: str = "short",
    shard_bytes: int = SHARD_BYTES,
    progress: Listener | None = None,
    opened: Models | None = None,
) -> Written:
    """Merge what a recipe asks for, and write it with its record and a card.

    Law: the folder appears whole or not at all. Adapters merge to an adapter, or with `out_type: delta` to
    the whole dW of each module as `module.weight`, to be added to the base model; full checkpoints to a
    checkpoint of the same names, with the files that lie beside the base model, or the first. With a base
    model a row merges the differences from it, which are added to it again; without one it merges the
    weights as they are. Rows of the domains `span`, `cores` and `half` see matrices only, and rows with
    statistics the tensors that have them; all other tensors of checkpoints get the weighted mean, as
    published. The record has the sha256 of every file that is written beside it and the card.
    Cost: of checkpoints, some blocks of 4 MiB for each thread where the row merges tensors by rows;
        else memory of T + 2 copies of the largest tensor in float64 for each thread.

    Args:
        recipe: What to merge, and how.
        folder: The new folder.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: Number of threads that work at once.
        report: `full` measures the overlaps of all pairs of adapters, `short` only those of few.
        shard_bytes: Most bytes of a file of tensors, for what is not an adapter.
        progress: Called now and then.
        opened: Models of the recipe that are open already, by path.

    Raises:
        RiemergeError: What `merge` raises, and OutputError where the folder cannot be written.
    """
    planned = plan(recipe, folder=folder, opened=opened, device=device, threads=threads, report=report)
    return write(planned, folder, shard_bytes=shard_bytes, progress=progress)


def _plain(value: Any) -> Any:
    """Return a number of any library as Python's own; anything else as it is, for the recipe to refuse."""
    if isinstance(value, bool | int | float) or not isinstance(value, Real):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value)


def _name_solver(solver: Any) -> tuple[Any, str]:
    """Return a solver that no text names, if it is one, and the text that a recipe has for a solver."""
    from riemerge.frechet.solvers.catalogue import SOLVERS  # brings Pymanopt, which few rows need
    from riemerge.frechet.solvers.solver import Solver

    if isinstance(solver, Solver):
        solver = SOLVERS.text_of(solver)
    if isinstance(solver, str):
        return None, solver
    return solver, type(solver).__name__
