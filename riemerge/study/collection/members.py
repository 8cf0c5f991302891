"""Members of a collection: which adapters can be compared, why others cannot, and their modules in groups."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar, final

from riemerge.errors import AdapterError, RiemergeError
from riemerge.formats.adapter import Adapter
from riemerge.formats.base_names import agree_on_base
from riemerge.formats.dialects import read_adapter
from riemerge.formats.files.text import show
from riemerge.formats.hub import locate, name_model
from riemerge.merging.inputs import display_names
from riemerge.recipes.resolve import layer_of
from riemerge.records.collection_record import LeftOut, ModuleGroup

_Value = TypeVar("_Value", bound=Hashable)
_Why: TypeAlias = Callable[[Path, Adapter], Iterable[str]]


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
                    f"{len(self.names)} adapters can be compared: expected at least 2",
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
    _leave_out(opened, faults, _other_dialect(opened.values()))
    _leave_out(opened, faults, _other_shapes(opened.values()))
    if not same_base:
        _leave_out(opened, faults, _other_base(opened))
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


def _leave_out(opened: dict[Path, Adapter], faults: dict[str, tuple[str, ...]], why: _Why) -> None:
    """Move the adapters for which there is a reason from those that are open to the faults."""
    for path, adapter in list(opened.items()):
        if reasons := tuple(why(path, adapter)):
            del opened[path]
            faults[str(path)] = reasons


def _other_dialect(adapters: Iterable[Adapter]) -> _Why:
    """Return what says why an adapter is of another dialect than most: names of modules are then others."""
    most = _most(adapter.dialect for adapter in adapters)

    def why(path: Path, adapter: Adapter) -> Iterator[str]:
        if adapter.dialect != most:
            yield (
                f"{path}: is in the dialect {adapter.dialect}, and most adapters in {most}: riemerge convert "
                f"{shlex.quote(str(path))} NEW --to {most} writes it so"
            )

    return why


def _other_shapes(adapters: Iterable[Adapter]) -> _Why:
    """Return what says why modules of an adapter are not what they are in most."""
    facts: dict[str, list[tuple[tuple[int, int], str]]] = defaultdict(list)
    for adapter in adapters:
        for module, layer in adapter.layers.items():
            facts[module].append((layer.shape, layer.layout))
    usual = {module: _most(values) for module, values in facts.items()}

    def why(path: Path, adapter: Adapter) -> Iterator[str]:
        own = {module: (layer.shape, layer.layout) for module, layer in adapter.layers.items()}
        other = [module for module, fact in own.items() if fact != usual[module]]
        for module in other[:1]:
            (shape, layout), (found, kind) = usual[module], own[module]
            yield (
                f"{path}: {len(other)} of {len(own)} modules are not as in most adapters: {show(module)} is "
                f"{kind} of {found}, expected {layout} of {shape}: is it for another base model?"
            )

    return why


def _other_base(opened: Mapping[Path, Adapter]) -> _Why:
    """Return what says why an adapter is for another base model than most."""
    users = {adapter.config.base_model_name_or_path: path for path, adapter in opened.items()}
    named = [adapter.config.base_model_name_or_path for adapter in opened.values()]
    most = _most([name for name in named if name] or [""])
    other = {
        name
        for name in {*named} - {most, None, ""}
        if agree_on_base({users[most]: most, users[name]: name}).problems
    }

    def why(path: Path, adapter: Adapter) -> Iterator[str]:
        if (name := adapter.config.base_model_name_or_path) in other:
            yield (
                f"{path}: names {show(str(name))} as its base model, and most adapters {show(most)}: "
                "--same-base takes these as one"
            )

    return why
