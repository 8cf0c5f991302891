"""Members of a collection: which adapters can be compared, why others cannot, and their modules in groups."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, final

from riemerge.errors import AdapterError, RiemergeError
from riemerge.formats.adapter import Adapter
from riemerge.formats.base_names import agree_on_base
from riemerge.formats.dialects import name_alike, read_adapter
from riemerge.formats.files.text import list_names, show
from riemerge.formats.hub import locate, name_model
from riemerge.merging.inputs import display_names
from riemerge.recipes.resolve import layer_of
from riemerge.records.collection_record import LeftOut, ModuleGroup

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
        notes: What was taken to be the same, and what counts as zero.
    """

    names: tuple[str, ...]
    adapters: tuple[Adapter, ...]
    digests: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that any adapter has, sorted."""
        return tuple(sorted({module for adapter in self.adapters for module in adapter.modules}))

    def shape(self, module: str) -> tuple[int, int]:
        """Return the shape (m, n) of a module."""
        return next(adapter.shape(module) for adapter in self.adapters if module in adapter.ranks)

    def having(self, module: str) -> dict[str, Adapter]:
        """Return the adapters that have a module by their digests, sorted: equal files once."""
        each = zip(self.digests, self.adapters, strict=True)
        return dict(sorted((digest, adapter) for digest, adapter in each if module in adapter.ranks))

    def check(self) -> None:
        """Raise an AdapterError, with all reasons, if fewer than two members are there."""
        if len(self.names) < 2:
            raise AdapterError(
                [
                    f"{len(self.names)} adapters can be compared: expected at least 2",
                    *(reason for one in self.left_out for reason in one.reasons),
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
            LeftOut(name=name, reasons=tuple(faults[digest])) for name, _, digest in rows if digest in faults
        ]
        return _members(kept, [*self.left_out, *out], self.notes)


def open_members(paths: Sequence[str | Path], *, same_base: bool = False) -> Members:
    """Open adapters, and leave out those that cannot be read or do not fit most of the others.

    Law: a function of the adapters, whatever their order. Each module has one shape and one kind of layer,
    those of most adapters that have it; all are for one base model, that of most.

    Args:
        paths: Folders or files of adapters.
        same_base: Whether they are taken as trained on one base model, whatever they name.

    Raises:
        AdapterError: Fewer than two adapters are left; all reasons.
    """
    opened: dict[Path, Adapter] = {}
    faults: dict[str, tuple[str, ...]] = {}
    given: set[str] = set()
    for path in sorted(map(str, paths)):
        place = locate(path)
        if (real := os.path.realpath(place)) in given:
            faults[path] = (f"{path}: is given twice: it counts once",)
            continue
        given.add(real)
        try:
            opened[place] = read_adapter(place)
            _ = opened[place].sha256
        except RiemergeError as fault:
            opened.pop(place, None)
            faults[path] = fault.problems
    _name_alike(opened, faults)
    _fit_shapes(opened, faults)
    notes = _fit_bases(opened, faults, same_base)
    left_out = [LeftOut(name=name_model(path), reasons=reasons) for path, reasons in faults.items()]
    each = zip(display_names(list(opened)), opened.values(), strict=True)
    members = _members([(name, adapter, _digest(adapter)) for name, adapter in each], left_out, notes)
    members.check()
    return members


def _members(
    rows: Iterable[tuple[str, Adapter, str]], left_out: Iterable[LeftOut], notes: tuple[str, ...]
) -> Members:
    """Sort members, each with its name and digest, and those that are left out, by name."""
    kept = sorted(rows, key=lambda row: row[0])
    return Members(
        names=tuple(name for name, _, _ in kept),
        adapters=tuple(adapter for _, adapter, _ in kept),
        digests=tuple(digest for _, _, digest in kept),
        left_out=tuple(sorted(left_out, key=lambda one: one.name)),
        notes=notes,
    )


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


def _leave_out(
    opened: dict[Path, Adapter],
    faults: dict[str, tuple[str, ...]],
    why: Callable[[Path, Adapter], Iterable[str]],
) -> None:
    """Move the adapters for which there are reasons from those that are open to the faults."""
    for path, adapter in list(opened.items()):
        if reasons := tuple(why(path, adapter)):
            del opened[path]
            faults[str(path)] = reasons


def _name_alike(opened: dict[Path, Adapter], faults: dict[str, tuple[str, ...]]) -> None:
    """Name the modules of all adapters as in the dialect of most of them."""
    if len({adapter.dialect for adapter in opened.values()}) < 2:
        return
    dialect = _most(adapter.dialect for adapter in opened.values())
    lead = next(adapter for adapter in opened.values() if adapter.dialect == dialect)

    def why(path: Path, adapter: Adapter) -> Iterable[str]:
        if adapter.dialect == dialect:
            return ()
        try:
            opened[path] = name_alike([lead, adapter], dialect)[1]
        except AdapterError as fault:
            return fault.problems
        return ()

    _leave_out(opened, faults, why)


def _fit_shapes(opened: dict[Path, Adapter], faults: dict[str, tuple[str, ...]]) -> None:
    """Leave out adapters with modules of another shape, or kind of layer, than most have."""
    facts: dict[str, list[tuple[tuple[int, int], str]]] = defaultdict(list)
    for adapter in opened.values():
        for module, layer in adapter.layers.items():
            facts[module].append((layer.shape, layer.layout))
    usual = {module: _most(values) for module, values in facts.items()}

    def why(path: Path, adapter: Adapter) -> Iterable[str]:
        other = [
            module for module, layer in adapter.layers.items() if (layer.shape, layer.layout) != usual[module]
        ]
        for module in other[:1]:
            layer, (shape, layout) = adapter.layers[module], usual[module]
            yield (
                f"{path}: {len(other)} of {len(adapter.layers)} modules are not as in most adapters: "
                f"{show(module)} is {layer.layout} of {layer.shape}, expected {layout} of {shape}: is it for "
                "another base model?"
            )

    _leave_out(opened, faults, why)


def _fit_bases(
    opened: dict[Path, Adapter], faults: dict[str, tuple[str, ...]], same: bool
) -> tuple[str, ...]:
    """Leave out adapters of another base model than most name; return what was taken to be the same."""
    named = {path: adapter.config.base_model_name_or_path for path, adapter in opened.items()}
    names = {name for name in named.values() if name}
    if len(names) < 2:
        return ()
    most = _most(name for name in named.values() if name)
    users = {name: path for path, name in reversed(named.items()) if name}
    other = {
        name
        for name in names - {most}
        if not same and agree_on_base({users[most]: most, users[name]: name}).problems
    }

    def why(path: Path, _: Adapter) -> Iterable[str]:
        if (name := named[path]) in other:
            yield (
                f"{path}: names {show(name or '')} as its base model, and most adapters {show(most)}: "
                "--same-base takes these as one"
            )

    _leave_out(opened, faults, why)
    one = sorted(show(name.rpartition("/")[2]) for name in names - other)
    return (f"base models taken as one: {list_names(one, 5)}",) * (len(one) > 1)
