"""Statistics of a torch model on data: hooks on its linear modules, some modules a pass, to files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from riemerge.errors import AdapterError, OutputError
from riemerge.formats.files.staging import write_atomically, writing
from riemerge.formats.files.text import shown
from riemerge.statistics.folder import (
    INDEX,
    KINDS,
    Request,
    Statistics,
    file_name,
    read_request,
    read_statistics,
    write_module,
)
from riemerge.statistics.sums import Sums

Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]

_PREFIX = "base_model.model."
_log = logging.getLogger(__name__)
_MEMORY = 4 * 2**30  # bytes of accumulators a pass, where modules_per_pass is not given


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
        model: Any torch model, PEFT's included. What one example gives must not depend on the others (no
            batch normalisation in training mode), and inputs of a module have examples as their first axis.
        batches: Gives the same batches each time it is iterated (given `seed`), such as a data loader.
        loss: Called with the model and a batch; returns the loss of each example (b,), or the mean over the
            examples of the batch as one number, as models of transformers do for one label an example.
            Where that is a mean over tokens, return the losses of the examples instead. Labels make the
            information empirical; labels drawn from the model make it the Fisher information itself. Needs
            no meaning where `gram` alone is asked for.
        out: The folder; it may exist from an interrupted collection of the same.
        kinds: Some of `fisher`, `gram`, `covariance`.
        modules: Names of the modules; see above if None.
        examples: How many to look at, at least 1; all there are if there are fewer.
        mask: Called with a batch; returns which tokens count, (b, s), for the Gram matrices and covariances
            of modules whose inputs are (b, s, n). Without one padding counts.
        seed: Of torch's generators at the start of every pass, for losses that draw and loaders that shuffle.
        dtype: float32 or float64, of the sums and of the files.
        modules_per_pass: How many modules to measure in one pass over the data; by default as many as fit 4
            GiB.

    Raises:
        AdapterError: A module cannot be measured: no linear layer of that name, inputs without an axis of
            examples, never used, NaN or Inf; or data or model are not those of the finished part.
        OutputError: The folder holds something else, or cannot be written.
        ValueError: An argument out of its range, or batches that can be iterated only once.

    **Source:** Matena and Raffel 2022 (Fisher information), Jin et al. 2023 (Gram matrices), Martens and
    Grosse 2015 (Kronecker factors). *Cost:* a forward and a backward pass of the model per example and
    group of modules; b tokens (m + n) numbers for the group beside its statistics.
    """
    folder = Path(out)
    _check_arguments(kinds, examples, dtype, modules_per_pass)
    chosen = _linear_modules(model, modules)
    request = Request(
        kinds=tuple(kind for kind in KINDS if kind in kinds),
        examples=examples,
        seed=seed,
        dtype=str(dtype).removeprefix("torch."),
        modules={name: (one.out_features, one.in_features) for name, one in sorted(chosen.items())},
    )
    _begin(folder, request)
    finished = _finished(folder, request)
    _check_same(folder, finished)
    open_ = [name for name in request.modules if name not in finished]
    groups = list(_groups({name: request.modules[name] for name in open_}, request, dtype, modules_per_pass))
    if len(groups) > 1 and iter(batches) is batches:
        raise ValueError("batches can be iterated only once: expected a list or a data loader")
    for group in groups:
        sums = {name: Sums(request.kinds, request.modules[name], dtype) for name in group}
        with _collecting(model, seed):
            _one_pass(model, batches, loss, {name: chosen[name] for name in group}, sums, examples, mask)
        results = {name: one.result(name) for name, one in sums.items()}
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
    if dtype not in {torch.float32, torch.float64}:
        raise ValueError(f"dtype {dtype}: expected torch.float32 or torch.float64")


def _linear_modules(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Linear]:
    """The modules to measure, by their names in the base model.

    Raises:
        AdapterError: One is no linear layer, or there is none.
    """
    everything = dict(model.named_modules())
    wrappers = {name for name, one in everything.items() if "base_layer" in dict(one.named_children())}
    inside = {name for name in everything for wrapper in wrappers if name.startswith(f"{wrapper}.")}
    wrapped = {name.removeprefix(_PREFIX): everything[f"{name}.base_layer"] for name in wrappers}
    plain = {
        name.removeprefix(_PREFIX): one
        for name, one in everything.items()
        if isinstance(one, nn.Linear) and name not in inside
    }
    chosen: dict[str, nn.Module | None]
    if names is None:
        chosen = {**(wrapped or plain)}
    else:
        chosen = {name: wrapped.get(name, plain.get(name)) for name in names}
    problems = [
        f"{shown(name)}: is {'not in the model' if one is None else type(one).__name__}: expected a "
        "torch.nn.Linear; leave it out of modules"
        for name, one in sorted(chosen.items())
        if not isinstance(one, nn.Linear)
    ]
    if problems or not chosen:
        raise AdapterError(problems or "the model has no linear module to measure")
    return {name: one for name, one in sorted(chosen.items()) if isinstance(one, nn.Linear)}


def _begin(folder: Path, request: Request) -> None:
    """Say in the folder what it will hold, or check that it says so already."""
    for name in request.modules:
        file_name(name)
    found = read_request(folder)
    if found is not None:
        if found != request:
            raise OutputError(
                f"{folder}: was begun with other kinds, modules, examples, seed or dtype ({INDEX}); expected "
                "the same: choose another folder or remove it"
            )
        return
    with writing(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder}: exists already and is no folder of statistics: choose another one")
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / INDEX, request.to_json().encode())


def _groups(
    shapes: Mapping[str, tuple[int, int]], request: Request, dtype: torch.dtype, most: int | None
) -> Iterator[list[str]]:
    """The modules of each pass: so many, or as many as fit the memory."""
    group: list[str] = []
    used = 0
    for name, (m, n) in shapes.items():
        sizes = {"fisher": m * n, "gram": n * n, "covariance": m * m}
        size = dtype.itemsize * sum(sizes[kind] for kind in request.kinds)
        if group and (len(group) == most if most is not None else used + size > _MEMORY):
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    if group:
        yield group


@contextmanager
def _collecting(model: nn.Module, seed: int) -> Iterator[None]:
    """Eval mode and the generators from their seed; both as they were afterwards."""
    training = [one for one in model.modules() if one.training]
    devices = sorted({one.device.index for one in model.parameters() if one.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        try:
            model.eval()
            yield
        finally:
            for one in training:
                one.training = True


def _one_pass(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    group: Mapping[str, nn.Linear],
    sums: Mapping[str, Sums],
    examples: int,
    mask: Callable[[Any], Tensor] | None,
) -> None:
    probing = any(one.need_gradients for one in sums.values())
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in group}
    done = 0
    with ExitStack() as stack:
        for name, module in group.items():
            stack.callback(_watched(module, calls[name], probing).remove)
        stack.enter_context(torch.set_grad_enabled(probing))
        for batch in batches:
            for one in calls.values():
                one.clear()
            losses, total = _losses(loss(model, batch), batch)
            gradients = _gradients(total, calls) if probing else {}
            keep = None if mask is None else mask(batch).bool()
            take = min(len(losses), examples - done)
            for name, used in calls.items():
                sums[name].count(losses.detach()[:take])
                if used:
                    _take(name, used, gradients.get(name), keep, (len(losses), take), sums[name])
            done += take
            if done >= examples:
                break


def _watched(module: nn.Linear, calls: list[tuple[Tensor, Tensor]], probing: bool) -> RemovableHandle:
    """A hook that notes each call's input and a zero added to its output, whose gradient is the output's.

    So gradients reach every module, whether its weights, or those before it, are frozen or not.
    """

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        probe = torch.zeros_like(output, requires_grad=probing)
        calls.append((inputs[0].detach(), probe))
        return output + probe

    return module.register_forward_hook(note)


def _losses(value: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
    """The losses of the examples (for one mean of all, that for each), and their sum."""
    if value.ndim > 1:
        raise ValueError(
            f"the loss is {tuple(value.shape)}: expected one number for each example, or one mean"
        )
    if value.ndim == 0:
        value = value.expand(_length(batch))
    return value, value.sum()


def _length(batch: Any) -> int:
    """The number of examples of a batch: the first axis of its first tensor."""
    parts = [batch] if isinstance(batch, Tensor) else batch.values() if isinstance(batch, Mapping) else batch
    first = next((one for one in parts if isinstance(one, Tensor) and one.ndim), None)
    if first is None:
        raise ValueError("a batch without tensors: expected the loss of each example, not their mean")
    return len(first)


def _gradients(total: Tensor, calls: Mapping[str, list[tuple[Tensor, Tensor]]]) -> dict[str, list[Tensor]]:
    """The gradients of each module's outputs, call by call; nothing where the loss does not depend on it."""
    probes = [probe for used in calls.values() for _, probe in used]
    found: Sequence[Tensor | None] = [None] * len(probes)
    if total.requires_grad and probes:
        found = torch.autograd.grad(total, probes, allow_unused=True)
    reached = iter(found)
    gradients = {name: [(next(reached), probe) for _, probe in used] for name, used in calls.items()}
    return {
        name: [torch.zeros_like(probe) if one is None else one for one, probe in pairs]
        for name, pairs in gradients.items()
        if any(one is not None for one, _ in pairs)
    }


def _take(
    name: str,
    used: list[tuple[Tensor, Tensor]],
    gradients: list[Tensor] | None,
    keep: Tensor | None,
    sizes: tuple[int, int],
    sums: Sums,
) -> None:
    """Add the first so many of a batch of examples, all calls of the module side by side as tokens."""
    size, take = sizes
    if wrong := [tuple(x.shape) for x, _ in used if x.ndim < 2 or len(x) != size]:
        raise AdapterError(
            f"{shown(name)}: an input is {wrong[0]} in a batch of {size} examples: expected examples as the "
            "first axis; leave it out of modules"
        )
    inputs = _as_tokens([x for x, _ in used])[:take]
    counted = None
    if keep is not None and all(one.shape[:-1] == keep.shape for one, _ in used):
        counted = torch.cat([keep] * len(used), dim=1)[:take].to(inputs.device)
    sums.add(inputs, None if gradients is None else _as_tokens(gradients)[:take], counted)


def _as_tokens(calls: Sequence[Tensor]) -> Tensor:
    """Tensors (b, ..., n) as one of shape (b, s, n)."""
    return torch.cat([one.reshape(len(one), -1, one.shape[-1]) for one in calls], dim=1)


def _finished(folder: Path, request: Request) -> dict[str, Mapping[str, Tensor]]:
    """The counts of the modules that an earlier collection finished, as far as their files can be read."""
    found: dict[str, Mapping[str, Tensor]] = {}
    for name in request.modules:
        if os.path.lexists(folder / file_name(name)):
            try:
                found[name] = Statistics(folder, request).of(name, ())
            except AdapterError as fault:
                _log.warning("%s: it is measured again", fault)
    return found


def _check_same(folder: Path, results: Mapping[str, Mapping[str, Tensor]]) -> None:
    """All modules saw the same model on the same data, as far as the loss can tell."""
    for before, now in pairwise(results.values()):
        # Round-off differs between machines; another model or other data differ by more.
        same = torch.isclose(before["loss"], now["loss"], rtol=1e-3, atol=1e-6)
        if not bool(same) or before["examples"] != now["examples"]:
            raise AdapterError(
                f"{folder}: the finished modules saw {int(before['examples'])} examples with a mean loss of "
                f"{float(before['loss']):.6g}, others {int(now['examples'])} with {float(now['loss']):.6g}: "
                "expected the same model and data: choose another folder"
            )
