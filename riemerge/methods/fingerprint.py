"""Fingerprints: texts that are equal for values that are made alike."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property, partial, singledispatch
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, final

import numpy as np
import torch

# Packages whose functions and classes are known by name: their versions say the rest.
_KNOWN = {"riemerge", "pymanopt", "torch", "numpy", "scipy", "autograd", *sys.stdlib_module_names}


def fingerprint(value: object) -> str:
    """Return a text that is equal for values that are made alike, and differs for all others.

    Law: manifolds, metrics and other objects count by what they hold, functions by their code and what it
    refers to, classes that are not of a known package by their source. Random generators and what is cached
    do not count. An object that shows nothing of itself is like none but itself.

    Args:
        value: Any value.

    Example:
        >>> fingerprint(lambda d: d + 1) == fingerprint(lambda d: d + 2)
        False
    """
    return _Walk().tell(value)


@final
class _Walk:
    """A walk through all that a value holds; an object that holds itself is told by its depth."""

    def __init__(self) -> None:
        self._open: list[int] = []
        self._told: dict[int, tuple[object, str]] = {}  # with the objects: their ids stay theirs

    def tell(self, value: object) -> str:
        """Return the fingerprint of a value."""
        if isinstance(value, str | bytes):
            return hashlib.sha256(value if isinstance(value, bytes) else value.encode()).hexdigest()
        if id(value) in self._open:
            return f"^{self._open.index(id(value))}"
        if id(value) not in self._told:
            self._open.append(id(value))
            texts = [self.tell(part) for part in _parts(value)]
            self._told[id(value)] = value, hashlib.sha256(",".join(texts).encode()).hexdigest()
            self._open.pop()
        return self._told[id(value)][1]


@singledispatch
def _parts(value: Any) -> Iterable[object]:
    """Return what tells a value from others, texts at last."""
    if held := dict(_attributes(value)):
        return type(value), held
    if (text := repr(value)) != object.__repr__(value):
        return (text,)
    return type(value), "" if hasattr(value, "__dict__") else str(id(value))


@_parts.register
def _of_tensor(value: torch.Tensor) -> Iterable[object]:
    data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return "tensor", str(value.dtype), [*value.shape], data.numpy().tobytes()


@_parts.register
def _of_array(value: np.ndarray) -> Iterable[object]:
    data = value.tolist() if value.dtype.hasobject else value.tobytes()
    return "array", str(value.dtype), [*value.shape], data


@_parts.register(list)
@_parts.register(tuple)
def _of_sequence(value: Iterable[object]) -> Iterable[object]:
    return "sequence", *value


@_parts.register(set)
@_parts.register(frozenset)
def _of_set(value: Iterable[object]) -> Iterable[object]:
    return "set", *sorted(map(fingerprint, value))


@_parts.register(Mapping)
def _of_mapping(value: Mapping[object, object]) -> Iterable[object]:
    return "mapping", *value.items()


@_parts.register(torch.Generator)
@_parts.register(np.random.Generator)
def _of_generator(_: object) -> Iterable[object]:
    return ("generator",)


@_parts.register(BuiltinFunctionType)
@_parts.register(ModuleType)
def _of_named(value: Any) -> Iterable[object]:
    owner = getattr(value, "__self__", None)
    return value.__name__, None if isinstance(owner, ModuleType) else owner


@_parts.register
def _of_method(value: MethodType) -> Iterable[object]:
    return "method", value.__func__, value.__self__


@_parts.register(partial)
def _of_partial(value: Any) -> Iterable[object]:
    return "partial", value.func, value.args, value.keywords


@_parts.register
def _of_code(value: CodeType) -> Iterable[object]:
    return "code", value.co_code, value.co_names, value.co_consts


@_parts.register
def _of_function(value: FunctionType) -> Iterable[object]:
    name = f"{value.__module__}.{value.__qualname__}"
    if _is_known(value.__module__) and value.__closure__ is None and "<" not in name:
        return (name,)
    named = {key: value.__globals__.get(key) for key in _names(value.__code__)}
    cells = [_content(cell) for cell in value.__closure__ or ()]
    return "function", value.__code__, value.__defaults__, value.__kwdefaults__, cells, named


@_parts.register(type)
def _of_class(value: type) -> Iterable[object]:
    name = f"{value.__module__}.{value.__qualname__}"
    if _is_known(value.__module__):
        return (name,)
    verbs = [getattr(held, "__func__", held) for held in vars(value).values()]
    return name, _source(value), [verb for verb in verbs if isinstance(verb, FunctionType)], value.__bases__


def _attributes(value: object) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds, but what its class has cached there."""
    for name, held in sorted(getattr(value, "__dict__", {}).items()):
        if not isinstance(getattr(type(value), name, None), cached_property):
            yield name, held
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(value, name):
                yield name, getattr(value, name)


def _names(code: CodeType) -> Iterator[str]:
    """Yield what code, and the code within it, refers to by name."""
    yield from code.co_names
    for held in code.co_consts:
        if isinstance(held, CodeType):
            yield from _names(held)


def _content(cell: Any) -> object:
    """Return what a variable of an enclosing function holds; None before it is set."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _is_known(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _KNOWN


@cache
def _source(kind: type) -> str:
    """Return the source of a class; nothing where there is none to be had."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""
