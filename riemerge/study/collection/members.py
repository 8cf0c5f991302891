"""Members of a collection: which adapters can be compared, why others cannot, and their modules in groups."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, final

from riemerge.errors import AdapterError, RiemergeError
from riemerge.formats.adapter import Adapter
from riemerge.formats.base_names import agree_on_base
from riemerge.formats.dialects import read_adapter
from riemerge.formats.files.text import list_names, show
from riemerge.formats.hub import locate, name_model
from riemerge.formats.layers import Dora
from riemerge.merging.inputs import display_names
from riemerge.recipes.resolve import layer_of
from riemerge.records.collection_record import LeftOut, ModuleGroup
from riemerge.report.words import count

_Value = TypeVar("_Value", bound=Hashable)


@final
@dataclass(frozen=True, eq=False)
class Members:
    """Adapters that can be compared with each other, sorted by name.

    Attributes:
        names: Names of the T adapters, each once.
        adapters: The open adapters.
        digests: What each adapter is of: equal for equal files alone.
        left_out: Adapters that cannot be compared, sorted by name.
    """

    names: tuple[str, ...]
    adapters: tuple[Adapter, ...]
    digests: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that any adapter has, sorted."""
        return tuple(sorted({module for adapter in self.adapters for module in adapter.modules}))

    def shape(self, module: str) -> tuple[int, int]:
        """Return the shape (m, n) of a module."""
        return next(adapter.shape(module) for adapter in self.adapters if module in adapter.ranks)

    def having(self, module: str) -> dict[str, Adapter]:
        """Return the adapters that have a module by their digests, sorted: equal files once."""
        every = dict(zip(self.digests, self.adapters, strict=True))
        return {digest: every[digest] for digest in sorted(every) if module in every[digest].ranks}

    def check(self) -> None:
        """Raise an AdapterError, with all reasons, if fewer than two members are there."""
        if len(self.names) < 2:
            raise AdapterError(
                [
                    f"{count(len(self.names), 'adapter')} can be compared: expected at least 2",
                    *(f"{one.name}: {reason}" for one in self.left_out for reason in one.reasons),
                ]
            )

    def without(self, faults: Mapping[str, Sequence[str]]) -> Members:
        """Return the members without some, and with the reasons why.

        Args:
            faults: Reasons of each adapter that is to be left out, by its digest.
        """
        rows = list(zip(self.names, self.adapters, self.digests, strict=True))
        kept = [row for row in rows if row[2] not in faults]
        out = [
            _leave(name, adapter.path, faults[digest]) for name, adapter, digest in rows if digest in faults
        ]
        return _members(kept, [*self.left_out, *out])


def open_members(paths: Sequence[str | Path], *, same_base: bool = False) -> Members:
    """Open adapters, and leave out those that cannot be read or do not fit most of the others.

    Law: a function of the adapters, whatever their order. Each module has one shape and one kind of layer,
    those of most adapters that have it; all are for one base model, that of most; each has a module that
    another has. DoRA, whose dW needs the base model, is left out.

    Args:
        paths: Folders or files of adapters.
        same_base: Whether they are taken as trained on one base model, whatever they name.

    Raises:
        AdapterError: Fewer than two adapters are left; all reasons.
    """
    opened: dict[Path, Adapter] = {}
    faults: dict[str, tuple[str, ...]] = {}
    given: dict[str, str] = {}
    for path in sorted(map(str, paths)):
        try:
            adapter = read_adapter(locate(path))
            _ = adapter.sha256
            if (real := os.path.realpath(adapter.path)) in given:
                first = name_model(given[real])
                raise AdapterError(f"{path}: is given twice, first as {first}: it counts once")
        except RiemergeError as fault:
            faults[path] = fault.problems
        else:
            given[real] = path
            opened[adapter.path] = adapter
    for find in (_find_dora, partial(_find_unfit, same_base=same_base), _find_alone):
        for place, reasons in find(opened).items():
            del opened[place]
            faults[str(place)] = tuple(reasons)
    left_out = [_leave(name_model(path), path, reasons) for path, reasons in faults.items()]
    each = zip(display_names(list(opened)), opened.values(), strict=True)
    members = _members([(name, adapter, _digest(adapter)) for name, adapter in each], left_out)
    members.check()
    return members


def _leave(name: str, path: str | Path, reasons: Iterable[str]) -> LeftOut:
    """Return an adapter that is left out; reasons name it, and no path of the machine."""
    named = (reason.replace(str(path), name).removeprefix(f"{name}: ") for reason in reasons)
    return LeftOut(name=name, reasons=tuple(named))


def _members(rows: Iterable[tuple[str, Adapter, str]], left_out: Iterable[LeftOut]) -> Members:
    """Sort members, each with its name and digest, and those that are left out, by name."""
    kept = {name: (adapter, digest) for name, adapter, digest in sorted(rows, key=lambda row: row[0])}
    adapters, digests = (
        tuple(adapter for adapter, _ in kept.values()),
        tuple(digest for _, digest in kept.values()),
    )
    return Members(tuple(kept), adapters, digests, tuple(sorted(left_out, key=lambda one: one.name)))


def group_modules(modules: Sequence[str]) -> tuple[ModuleGroup, ...]:
    """Put modules in groups: all of them, then by projection, then by layer.

    >>> [group.name for group in group_modules(["layers.0.q", "layers.1.q", "head"])]
    ['total', 'head', 'layers.*.q', 'layers.0', 'layers.1']
    """
    projections: dict[str, list[str]] = defaultdict(list)
    layers: dict[tuple[str, int], list[str]] = defaultdict(list)
    for module in sorted(modules):
        name = module
        if place := layer_of(module):
            stack, layer = place
            name = f"{stack}*{module[len(f'{stack}{layer}') :]}"
            layers[place].append(module)
        projections[name].append(module)
    groups = [ModuleGroup(name="total", kind="total", layer=None, modules=tuple(sorted(modules)))]
    groups += [
        ModuleGroup(name=name, kind="projection", layer=None, modules=tuple(some))
        for name, some in sorted(projections.items())
    ]
    groups += [
        ModuleGroup(name=f"{stack}{layer}", kind="depth", layer=layer, modules=tuple(some))
        for (stack, layer), some in sorted(layers.items())
    ]
    return tuple(groups)


def _digest(adapter: Adapter) -> str:
    return hashlib.sha256(json.dumps(dict(adapter.sha256), sort_keys=True).encode()).hexdigest()


def _most(values: Iterable[_Value]) -> _Value:
    """Return the most frequent value; of several the least as text, so that no order decides."""
    return min(Counter(values).items(), key=lambda item: (-item[1], str(item[0])))[0]


def _find_dora(opened: Mapping[Path, Adapter]) -> dict[Path, list[str]]:
    """Say which adapters need the base model, and how they become some that do not, by their paths."""
    why = (
        "of DoRA, whose dW depends on the weights of the base model, which map does not read: riemerge merge"
    )
    options = "--base BASE -o NEW --rank 95% --to peft writes a LoRA near to it"
    counts = {
        path: sum(isinstance(layer, Dora) for layer in adapter.layers.values())
        for path, adapter in opened.items()
    }
    return {
        path: [f"{path}: {count(number, 'module')} {why} {shlex.quote(str(path))} {options}"]
        for path, number in counts.items()
        if number
    }


def _find_unfit(opened: Mapping[Path, Adapter], same_base: bool) -> dict[Path, list[str]]:
    """Say why adapters do not fit most of the others, by their paths."""
    adapters = opened.values()
    if not adapters:
        return {}
    dialect = _most(adapter.dialect for adapter in adapters)
    facts: dict[str, list[tuple[str, tuple[int, int]]]] = defaultdict(list)
    for adapter in adapters:
        for module, layer in adapter.layers.items():
            facts[module].append((layer.layout, layer.shape))
    usual = {module: _most(values) for module, values in facts.items()}
    users = {adapter.config.base_model_name_or_path or "": path for path, adapter in opened.items()}
    named = [adapter.config.base_model_name_or_path for adapter in adapters]
    base = _most([name for name in named if name] or [""])
    others = {
        name: agree_on_base({users[base]: base, path: name}).problems
        for name, path in users.items()
        if name and name != base and not same_base
    }
    unfit: dict[Path, list[str]] = defaultdict(list)
    for path, adapter in opened.items():
        if adapter.dialect != dialect:
            unfit[path].append(
                f"{path}: is in the dialect {adapter.dialect}, and most adapters in {dialect}: riemerge "
                f"convert {shlex.quote(str(path))} NEW --to {dialect} writes it so"
            )
        own = {module: (layer.layout, layer.shape) for module, layer in adapter.layers.items()}
        if differing := [module for module, fact in own.items() if fact != usual[module]]:
            (kind, shape), (layout, expected) = own[differing[0]], usual[differing[0]]
            unfit[path].append(
                f"{path}: {len(differing)} of {len(own)} modules are not as in most adapters: "
                f"{show(differing[0])} is {kind} of {shape}, expected {layout} of {expected}: is it for "
                "another base model?"
            )
        if others.get(name := adapter.config.base_model_name_or_path or ""):
            unfit[path].append(
                f"{path}: names {show(name)} as its base model, and most adapters {show(base)}: --same-base "
                "takes these as one"
            )
    return unfit


def _find_alone(opened: Mapping[Path, Adapter]) -> dict[Path, list[str]]:
    """Say which adapters have no module that another has, by their paths."""
    users = Counter(module for adapter in opened.values() for module in adapter.modules)
    why = "has no module that any other adapter has: is it for another base model? It has"
    return {
        path: [f"{path}: {why} {list_names(adapter.modules)}"]
        for path, adapter in opened.items()
        if all(users[module] == 1 for module in adapter.modules)
    }
