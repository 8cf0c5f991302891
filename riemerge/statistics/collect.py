"""Statistics of a torch model on data: hooks on its linear modules, some modules a pass, to files."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from riemerge.errors import AdapterError, OutputError
from riemerge.formats.files.staging import write_atomically, writing
from riemerge.formats.files.text import as_json, show
from riemerge.statistics.folder import (
    INDEX,
    KINDS,
    Request,
    Statistics,
    file_name,
    read_request,
    read_statistics,
    shapes_of,
    write_module,
)
from riemerge.statistics.sums import Sums

Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]

_PREFIX = "base_model.model."
_DTYPES: Mapping[torch.dtype, Literal["float32", "float64"]] = {
    torch.float32: "float32",
    torch.float64: "float64",
}
_log = logging.getLogger(__name__)
_MEMORY = 4 * 2**30  # bytes of sums in one pass, where modules_per_pass is not given


def collect_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    out: str | os.PathLike[str],
    *,
    kinds: Sequence[str] = KINDS,
    modules: Iterable[str] | None = None,
    examples: int = 256,
    mask: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    modules_per_pass: int | None = None,
) -> Statistics:
    """Measure what data say about each linear module of a model, and write it to a folder.

    Law: the numbers are those of the package's docstring (`riemerge.statistics`), of the first `examples`
    examples, whatever the batches and `modules_per_pass` (to the round-off of the model's own batching).
    The model is left as it was; it is in eval mode meanwhile. An interrupted collection, run again, skips
    the modules that are finished and ends with the same files, bit for bit: every pass starts from `seed`
    and the data's start. A module whose file cannot be read is measured again, and the log says so.

    Modules are `torch.nn.Linear`, by their names in the base model. Of a PEFT model only those that LoRA
    wraps are measured by default, as they act with the adapter; the names are those of
    `read_adapter(folder).modules`.

    Args:
        model: Any torch model, also one of PEFT. What one example gives must not depend on the others (no
            batch normalisation in training mode), and inputs of a module have examples as their first axis.
        batches: An iterable that gives the same batches each time (given `seed`), such as a data loader.
        loss: A function of the model and a batch that returns the loss of each example (b,), or the mean over
            the examples of the batch as one number, which models of transformers return for one label an
            example. Where their number is a mean over tokens, return the losses of the examples instead.
            Labels make the information empirical; labels drawn from the model make it the Fisher information
            itself. The loss needs no meaning where `gram` alone is asked for.
        out: The folder to write; it may exist from an interrupted collection with equal arguments.
        kinds: The kinds to collect, some of `fisher`, `gram`, `covariance`.
        modules: The names of the modules; None stands for the default above.
        examples: The number of examples to look at, at least 1; where there are fewer, all of them.
        mask: A function of a batch that returns which tokens count, (b, s), for the Gram matrices and
            covariances of modules whose inputs are (b, s, n). Without it padding counts.
        seed: The random seed of torch's generators at the start of every pass, for losses that draw and
            loaders that shuffle.
        dtype: The dtype of the sums and of the files, float32 or float64.
        modules_per_pass: The number of modules to measure in one pass over the data; by default as many as
            fit 4 GiB.

    Raises:
        AdapterError: A module cannot be measured: no linear layer of that name, inputs without an axis of
            examples, never used, NaN or Inf; or data or model are not those of the finished part.
        OutputError: The folder holds something else, or cannot be written.
        ValueError: An argument out of its range, or batches that can be iterated only once.

    Source: Matena and Raffel 2022 (Fisher information), Jin et al. 2023 (Gram matrices), Martens and Grosse
    2015 (Kronecker factors).

    Cost: a forward and a backward pass of the model per example and group of modules; b·tokens·(m + n)
    numbers for the group beside its statistics.
    """
    folder = Path(out)
    _check_arguments(kinds, examples, dtype, modules_per_pass)
    layers = _linear_layers(model, modules)
    request = Request(
        kinds=tuple(kind for kind in KINDS if kind in kinds),
        examples=examples,
        seed=seed,
        dtype=_DTYPES[dtype],
        modules={name: (layer.out_features, layer.in_features) for name, layer in layers.items()},
        version=1,
    )
    _begin(folder, request)
    finished = _read_finished(folder, request)
    _check_same(folder, finished)
    missing = [name for name in layers if name not in finished]
    groups = list(_groups(missing, request, dtype, modules_per_pass))
    if len(groups) > 1 and iter(batches) is batches:
        raise ValueError("batches can be iterated only once: expected a list or a data loader")
    for group in groups:
        sums = [Sums(name, layers[name], request.kinds, dtype) for name in group]
        with _evaluating(model, seed):
            _pass_over(model, batches, loss, sums, examples, mask)
        results = {module.name: module.result() for module in sums}
        _check_same(folder, finished | results)
        for name, tensors in results.items():
            write_module(folder, name, tensors)
    return read_statistics(folder)


def _check_arguments(
    kinds: Sequence[str], examples: int, dtype: torch.dtype, modules_per_pass: int | None
) -> None:
    if not kinds or not {*kinds} <= {*KINDS}:
        raise ValueError(f"kinds {tuple(kinds)}: expected some of {', '.join(KINDS)}")
    if examples < 1 or (modules_per_pass is not None and modules_per_pass < 1):
        raise ValueError(f"examples {examples}, modules_per_pass {modules_per_pass}: expected at least 1")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype}: expected torch.float32 or torch.float64")


def _linear_layers(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Linear]:
    """Return the layers to measure, by their names in the base model, sorted.

    Raises:
        AdapterError: A module is no linear layer, or there is none.
    """
    everything = dict(model.named_modules())
    wrappers = {name for name, module in everything.items() if "base_layer" in dict(module.named_children())}
    inside = {name for name in everything for wrapper in wrappers if name.startswith(f"{wrapper}.")}
    wrapped = {name.removeprefix(_PREFIX): everything[f"{name}.base_layer"] for name in wrappers}
    known = {
        name.removeprefix(_PREFIX): module
        for name, module in everything.items()
        if isinstance(module, nn.Linear) and name not in inside
    }
    if names is None:
        names = wrapped or known
    known |= wrapped
    chosen = {name: known.get(name) for name in sorted(names)}
    layers = {name: module for name, module in chosen.items() if isinstance(module, nn.Linear)}
    AdapterError.refuse(
        f"{show(name)}: is {'not in the model' if module is None else type(module).__name__}: expected a "
        "torch.nn.Linear; leave it out of modules"
        for name, module in chosen.items()
        if name not in layers
    )
    if not layers:
        raise AdapterError("the model has no linear module to measure")
    return layers


def _begin(folder: Path, request: Request) -> None:
    """Say in the folder what it will hold, or check that it says so already."""
    for name in request.modules:
        file_name(name)
    if (earlier := read_request(folder)) == request:
        return
    if earlier is not None:
        raise OutputError(
            f"{folder}: was begun with other kinds, modules, examples, seed or dtype ({INDEX}); expected "
            "the same: choose another folder or remove it"
        )
    with writing(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder}: exists already and is no folder of statistics: choose another one")
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / INDEX, as_json(request.model_dump()))


def _groups(
    names: Iterable[str], request: Request, dtype: torch.dtype, most: int | None
) -> Iterator[list[str]]:
    """Yield the modules of each pass: so many, or as many as fit the memory."""
    group: list[str] = []
    used = 0
    for name in names:
        shapes = shapes_of(request.modules[name], request.kinds)
        size = dtype.itemsize * sum(map(math.prod, shapes.values()))
        if group and (len(group) == most if most is not None else used + size > _MEMORY):
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    if group:
        yield group


@contextmanager
def _evaluating(model: nn.Module, seed: int) -> Iterator[None]:
    """Set eval mode and the generators to their seed, and both to what they were afterwards."""
    training = [module for module in model.modules() if module.training]
    devices = sorted({tensor.device.index for tensor in model.parameters() if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        try:
            model.eval()
            yield
        finally:
            for module in training:
                module.training = True


def _pass_over(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    sums: Sequence[Sums],
    examples: int,
    mask: Callable[[Any], Tensor] | None,
) -> None:
    """Add what the first examples say of the modules of a group to their sums."""
    done = 0
    with ExitStack() as stack:
        for module in sums:
            stack.callback(module.watch().remove)
        stack.enter_context(torch.set_grad_enabled(any(module.need_gradients for module in sums)))
        for batch in batches:
            losses, total = _losses(loss(model, batch), batch)
            gradients = iter(_gradients(total, [probe for module in sums for _, probe in module.calls]))
            keep = mask and mask(batch).bool()
            take = min(len(losses), examples - done)
            for module in sums:
                module.add(losses.detach(), [next(gradients) for _ in module.calls], keep, take)
            done += take
            if done >= examples:
                break


def _losses(value: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
    """Return the losses of the examples, a mean of all counting for each of them, and their sum."""
    if value.ndim > 1:
        raise ValueError(
            f"the loss is {tuple(value.shape)}: expected one number for each example, or one mean"
        )
    if value.ndim == 0:
        value = value.expand(_length(batch))
    return value, value.sum()


def _length(batch: Any) -> int:
    """Return the number of examples of a batch: the first axis of its first tensor."""
    if isinstance(batch, Mapping):
        batch = batch.values()
    if isinstance(batch, Tensor):
        batch = [batch]
    for part in batch:
        if isinstance(part, Tensor) and part.ndim:
            return len(part)
    raise ValueError("a batch without tensors: expected the loss of each example, not their mean")


def _gradients(total: Tensor, probes: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return the gradient by each probe; None where the loss does not depend on it."""
    if total.requires_grad and probes:
        return torch.autograd.grad(total, probes, allow_unused=True)
    return [None] * len(probes)


def _read_finished(folder: Path, request: Request) -> dict[str, Mapping[str, Tensor]]:
    """Return the counts of the modules that an earlier collection finished and whose files can be read."""
    counts: dict[str, Mapping[str, Tensor]] = {}
    for name in request.modules:
        if os.path.lexists(folder / file_name(name)):
            try:
                counts[name] = Statistics(folder, request).of(name, ())
            except AdapterError as fault:
                _log.warning("%s: it is measured again", fault)
    return counts


def _check_same(folder: Path, results: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Check that all modules saw the same model on the same data, as far as the loss can tell."""
    for before, now in pairwise(results.values()):
        # Round-off differs between machines; another model or other data differ by more.
        same = torch.isclose(before["loss"], now["loss"], rtol=1e-3, atol=1e-6)
        if not bool(same) or before["examples"] != now["examples"]:
            raise AdapterError(
                f"{folder}: the finished modules saw {int(before['examples'])} examples with a mean loss of "
                f"{float(before['loss']):.6g}, others {int(now['examples'])} with {float(now['loss']):.6g}: "
                "expected the same model and data: choose another folder"
            )
