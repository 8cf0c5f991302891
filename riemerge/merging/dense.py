"""Merging full checkpoints: a tensor at a time, by the flat rows of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from riemerge.errors import AdapterError, NumericalError, RecipeError
from riemerge.formats.checkpoint import Checkpoint, code_notes, read_checkpoint
from riemerge.formats.files.text import listed
from riemerge.formats.fit import check_checkpoints
from riemerge.frechet.status import Status
from riemerge.manifolds.linalg import single_threaded
from riemerge.merging.bookkeeping import checkpoint_class, run_record
from riemerge.merging.inputs import counting as counting_models
from riemerge.merging.inputs import in_order, read_each
from riemerge.merging.machine import find_device, find_threads
from riemerge.merging.measure import tensor_row
from riemerge.merging.stacking import open_statistics, values_of, weights_of
from riemerge.methods import Evidence, find_method
from riemerge.methods.flat import FlatRow
from riemerge.methods.reduction import in_order as each_in_order
from riemerge.methods.scale import Norms, matched
from riemerge.methods.setting import Answer, Setting, setting
from riemerge.recipes.recipe import Recipe
from riemerge.recipes.resolve import Resolver
from riemerge.records.run_record import ModuleRow, RunRecord
from riemerge.statistics import read_statistics

WEIGHT = ".weight"


class _Tensors(NamedTuple):
    """One name as read: T tensors less the base's, which of them count, what else the row sees, the base."""

    every: Tensor
    used: list[int]
    at: Setting
    base: Tensor | None

    @property
    def counting(self) -> Tensor:
        """Those that count, a number as a vector of one."""
        kept = self.every if len(self.used) == len(self.every) else self.every[self.used]
        return kept if kept.ndim > 1 else kept.unsqueeze(-1)


class _Merged(NamedTuple):
    """One tensor as it will be written, and what was measured of it; None where it was only copied."""

    value: Tensor
    row: ModuleRow | None
    evidence: Evidence | None


@final
class CheckpointMerge:
    """A merge of full checkpoints, checked and opened; `run` does it, and hands each tensor on as it is done.

    Law: with a base model a row merges the differences from it, which are added to it again; without one it
    merges the weights as they are. A function of the tensors and weights: the order of the checkpoints
    changes no bit, but of trajectories. Rows of the domains `span` and `half` see matrices only, and rows
    with statistics the tensors that have them; all other tensors get the weighted mean, as published.
    Integers and bools must agree and are copied. Memory: T + 2 copies of the largest tensor in float64, for
    each thread.

    Args:
        recipe: What to merge, and how.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: How many work at once on a CPU; they change no bit.
        progress: Called as `progress(stage, done, total, text)` with numbers of tensors.
        opened: Those of the models and the base model that are open already, by path.

    Attributes:
        checkpoints: The inputs that count, in the order asked for.
        base: The base model, if any.
        carried: The one whose other files go with the result: the base model, or the first.

    Raises:
        RecipeError: What was asked makes no sense for checkpoints.
        AdapterError: An input cannot be read, or they do not fit each other.
        ResourceError: The device is not there.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: str = "cpu",
        threads: int | None = None,
        progress: Callable[[str, int, int, str], None] | None = None,
        opened: Mapping[Path, Checkpoint] | None = None,
    ) -> None:
        self._started = perf_counter()
        self._recipe, self._method = recipe, find_method(recipe.merge_method)
        # First what is wrong with a path: what is asked of it may then have been meant otherwise.
        paths = [recipe.models[place].model for place in counting_models(recipe)]
        everything = [*paths, *([recipe.base_model] if recipe.base_model else [])]
        models = read_each(partial(_open, opened or {}), everything)
        self.checkpoints = tuple(models[: len(paths)])
        self.base = models[-1] if recipe.base_model else None
        self.carried = self.base or self.checkpoints[0]
        _check(recipe)
        check_checkpoints(models)
        self._out_dtype: torch.dtype | None = getattr(torch, recipe.out_dtype) if recipe.out_dtype else None
        self._row = FlatRow.of(self._method)
        self._where = find_device(device)
        self._threads = find_threads(threads, self._where)
        self._tell = progress
        self._inputs = in_order(recipe, self._method, self.checkpoints)
        self._names = self.checkpoints[0].names
        places = [one.place for one in self._inputs]
        self._resolver = Resolver(recipe, self._method, self._names)
        self._weights = weights_of(self._resolver, self._method, places)
        self._values = values_of(self._resolver, places)
        self._measured = _measured(recipe, places, self.checkpoints[0]) if self._method.statistics else {}
        *self._statistics, self._base_statistics = open_statistics(
            recipe, self._method, places, self._measured
        )

    def run(self, keep: Callable[[str, Tensor, torch.dtype], None]) -> RunRecord:
        """Merge all tensors.

        Args:
            keep: Called with each name, its tensor, and the dtype to store it in.

        Raises:
            NumericalError: The row has no answer for some tensors; all of them are named.
            AdapterError: A tensor cannot be read, or integers differ.
        """
        read = perf_counter()
        evidence: dict[str, Evidence] = {}
        rows: list[ModuleRow] = []
        with single_threaded():
            facts: Mapping[str, Any] = {}
            if self._row.survey is not None:
                facts = self._row.surveyed(self._seen)
            factor = self._matched(facts) if self._resolver.matched else None
            for name, one in self._each("merge", facts, factor):
                if one.row is not None and one.evidence is not None:
                    rows.append(one.row)
                    evidence[name] = one.evidence
                keep(name, one.value, self._stored(name))
        return run_record(
            self._recipe,
            self._method,
            "checkpoint",
            self._out_dtype,
            device=self._where,
            bases=[self._recipe.base_model],
            model_class=checkpoint_class(self.carried),
            inputs=self._inputs,
            weights=self._weights,
            modules=self._names,
            rows=rows,
            matched_scale=factor,
            evidence=evidence,
            notes=code_notes(self.carried),
            began=self._started,
            read=read,
            base=self.base,
        )

    def _each(
        self, stage: str, facts: Mapping[str, Any], factor: float | None
    ) -> Iterator[tuple[str, _Merged]]:
        """Yield tensors up to the first without an answer; then raise what is wrong with all of them."""
        problems: list[str] = []
        merged = each_in_order(partial(self._tried, facts, factor), self._names, self._threads)
        for done, (name, one) in enumerate(zip(self._names, merged, strict=True), 1):
            if self._tell is not None:
                self._tell(stage, done, len(self._names), self._method.name)
            if not isinstance(one, _Merged):
                problems += [f"{name}: {problem}" for problem in one.problems]
            elif not problems:
                yield name, one
        if problems:
            raise NumericalError(problems)

    def _matched(self, facts: Mapping[str, Any]) -> float:
        """What `scale: matched` stands for: all tensors are merged once for their norms, and dropped."""
        there = self._resolver.matched
        return matched(
            Norms(one.row.norm, self._in_stack(one.row.input_norms), self._weights(name))
            for name, one in self._each("read", facts, None)
            if one.row is not None and name in there
        )

    def _in_stack(self, asked: Sequence[float]) -> list[float]:
        """Values in the order in which the record names the inputs, as the stack has them."""
        places = [one.place for one in self._inputs]
        return [asked[sorted(places).index(place)] for place in places]

    def _stored(self, name: str) -> torch.dtype:
        dtype = reduce(torch.promote_types, [one.dtypes[name] for one in self.checkpoints])
        return self._out_dtype if self._out_dtype is not None and dtype.is_floating_point else dtype

    def _seen(self) -> Iterator[tuple[Tensor, Setting]]:
        """All tensors that the row itself sees, for its survey."""
        for name in self._names:
            if self._applies(name):
                read = self._read(name, {})
                yield self._row.view(read.counting), read.at

    def _tried(self, facts: Mapping[str, Any], factor: float | None, name: str) -> _Merged | NumericalError:
        try:
            return self._merged(facts, factor, name)
        except NumericalError as fault:
            return fault

    def _merged(self, facts: Mapping[str, Any], factor: float | None, name: str) -> _Merged:
        if not self.checkpoints[0].dtypes[name].is_floating_point:
            return _Merged(self._common(name), None, None)
        read = self._read(name, facts)
        started = perf_counter()
        if self._applies(name):
            found = self._row.of_tensors(read.counting, read.at)
        else:
            found = Answer(_mean(read.counting, read.at), Status.EXACT)
        if not bool(torch.isfinite(found.value).all()):
            raise NumericalError("the merged tensor is not finite: the inputs are too large for this method")
        scaled = self._resolver.scale(name, factor) * found.value.reshape(read.at.shape)
        seconds = perf_counter() - started
        evidence = Evidence(found.status, found.advice, passes=found.passes, seconds=seconds)
        order = sorted(range(len(read.every)), key=lambda i: self._inputs[i].place)
        row = tensor_row(name, scaled, list(read.every), evidence, order)
        return _Merged(scaled if read.base is None else read.base + scaled, row, evidence)

    def _read(self, name: str, facts: Mapping[str, Any]) -> _Tensors:
        x = torch.stack([one.model.tensor(name, device=self._where) for one in self._inputs])
        base = None if self.base is None else self.base.tensor(name, device=self._where)
        if base is not None:
            x -= base
        weights, module = self._weights(name), name.removesuffix(WEIGHT)
        used = [place for place, weight in enumerate(weights) if weight != 0.0]
        data = self._method.statistics and self._applies(name)
        at = setting(
            name,
            weights,
            used,
            self._values(name),
            tuple(x.shape[1:]),
            norms=[float(torch.linalg.vector_norm(x[place])) for place in used],
            seed=int(self._recipe.parameters.get("seed") or 0),
            statistics=tuple(self._statistics[place](module) for place in used) if data else (),
            base_statistics=self._base_statistics(module) if data else {},
            facts=facts,
        )
        return _Tensors(x, used, at, base)

    def _applies(self, name: str) -> bool:
        """Whether the row itself merges a tensor, and not the weighted mean in its place."""
        if self._method.statistics:
            return name.endswith(WEIGHT) and name.removesuffix(WEIGHT) in self._measured
        first = self.checkpoints[0]
        shape = first.shapes[name]
        if not first.dtypes[name].is_floating_point:
            return False
        # A number has no direction, and its sign is no angle.
        sees = {"gram": math.prod(shape) > 1, "entries": True}
        return sees.get(self._method.domain, len(shape) == 2 and 0 not in shape)

    def _common(self, name: str) -> Tensor:
        """The integers or bools that all inputs agree in."""
        first, *others = (one.tensor(name, dtype=None) for one in self.checkpoints)
        if not all(torch.equal(first, other) for other in others):
            raise AdapterError(
                f"{name}: holds {first.dtype} that differ between the checkpoints: integers have no mean, "
                "so expected them to be equal"
            )
        return first


def _open(opened: Mapping[Path, Checkpoint], path: str) -> Checkpoint:
    return opened.get(Path(path)) or read_checkpoint(path)


def _mean(x: Tensor, at: Setting) -> Tensor:
    """The weighted mean of T tensors."""
    if at.weights.sum() == 0:
        raise NumericalError("the weights add up to 0, and this tensor gets the weighted mean: choose others")
    mean: Tensor = torch.tensordot((at.weights / at.weights.sum()).to(x), x, dims=1)
    return mean


def _measured(recipe: Recipe, places: Sequence[int], like: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The shapes of the matrices that have statistics, by module."""
    folders = [*(recipe.models[place].statistics for place in places), recipe.base_statistics]
    known = {module for folder in folders if folder for module in read_statistics(folder).modules}
    found = {
        module: shape
        for name, shape in like.shapes.items()
        for module in [name.removesuffix(WEIGHT)]
        if module in known and name.endswith(WEIGHT) and like.dtypes[name].is_floating_point
    }
    if not found:
        raise AdapterError(
            f"statistics: of {listed(sorted(known))}, none of them a weight of {like.path}: expected those "
            "of its modules, under their names there"
        )
    return found


def _check(recipe: Recipe) -> None:
    """What makes no sense for full checkpoints."""
    method = find_method(recipe.merge_method)
    problems = []
    if method.checkpoints == "no":
        problems.append(f"merge_method: {method.name} merges adapters only, and these are full checkpoints")
    if method.checkpoints == "updates" and not recipe.base_model:
        problems.append(
            f"base_model: missing: {method.name} merges what each model changed of a common base: name it"
        )
    if recipe.base_model and method.checkpoints == "weights":
        base = Path(recipe.base_model).resolve()
        problems += [
            f"models[{place}]: {entry.model} is the base_model itself, and its difference from it is zero: "
            "leave base_model out to merge the weights as they are"
            for place, entry in enumerate(recipe.models)
            if Path(entry.model).resolve() == base
        ]
    if "scale" in recipe.parameters and not recipe.base_model:
        problems.append("parameters.scale: scales the merged update, which needs base_model: name it")
    if "rank" in recipe.parameters:
        problems.append("parameters.rank: full checkpoints are not cut to a rank: leave it out")
    if recipe.uniform_rank:
        problems.append("uniform_rank: full checkpoints have no rank: leave it out")
    if recipe.dtype != "float64":
        problems.append(f"dtype: {recipe.dtype}: full checkpoints are merged in float64: leave it out")
    if recipe.out_type not in {None, "checkpoint"}:
        problems.append(f"out_type: {recipe.out_type}: full checkpoints merge to a checkpoint")
    if problems:
        raise RecipeError(problems)
