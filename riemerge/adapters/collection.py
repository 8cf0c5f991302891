"""Whether adapters fit each other: the same modules, shapes, orientation and base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from riemerge.adapters.reader import Adapter
from riemerge.errors import AdapterError
from riemerge.storage.text import brief, listed, repeated, shown


def check_collection(adapters: Sequence[Adapter]) -> None:
    """Check that these adapters can be merged with each other.

    Law: afterwards all have one set of modules, each module one shape (m, n), one `fan_in_fan_out`, at most
    one base model among those that name one, and no folder occurs twice. The ranks may differ.

    Raises:
        AdapterError: With every problem found.
    """
    problems = [
        *repeated([adapter.path for adapter in adapters]),
        *_modules(adapters),
        *_shapes(adapters),
        *_facts(adapters),
    ]
    if problems:
        raise AdapterError(problems)


def differing_facts(adapters: Mapping[str, Adapter]) -> list[str]:
    """Say what adapters, by their names, differ in that does not enter dW, so that a merge of them has none.

    Source: PEFT 0.21.2. It loads the base model at the `revision` of an adapter (null is `main`), in the
    class of its `task_type` or `auto_mapping`, and merges adapters that differ in them without a word.
    """
    found = []
    for key, lost in (
        ("revision", "their bases may differ, and the merged adapter names none, which is main"),
        ("task_type", "the merged adapter names none"),
        ("auto_mapping", "the merged adapter names none"),
    ):
        values = {name: getattr(one.config, key) for name, one in adapters.items()}
        meant = [None if (key, value) == ("revision", "main") else value for value in values.values()]
        if any(value != meant[0] for value in meant):
            each = ", ".join(f"{brief(value)} in {name}" for name, value in values.items())
            found.append(f"{key} differs: {each}: {lost}")
    return found


def _modules(adapters: Sequence[Adapter]) -> list[str]:
    union = sorted({module for adapter in adapters for module in adapter.modules})
    if adapters and not set(union).intersection(*(adapter.modules for adapter in adapters)):
        counts = "; ".join(f"{adapter.path} has {listed(adapter.modules)}" for adapter in adapters)
        return [f"the adapters have no module in common: {counts}"]
    missing = [(adapter, [m for m in union if m not in adapter.ranks]) for adapter in adapters]
    return [
        f"{adapter.path}: lacks {len(names)} of {len(union)} modules that others have: {listed(names)}"
        for adapter, names in missing
        if names
    ]


def _shapes(adapters: Sequence[Adapter]) -> list[str]:
    problems = []
    for module in sorted({module for adapter in adapters for module in adapter.modules}):
        shapes = {adapter.path: adapter.shape(module) for adapter in adapters if module in adapter.ranks}
        if len(set(shapes.values())) > 1:
            each = ", ".join(f"{m} x {n} in {path}" for path, (m, n) in shapes.items())
            problems.append(f"{shown(module)}: the shapes of dW differ: {each}; is it one base model?")
    return problems


def _facts(adapters: Sequence[Adapter]) -> list[str]:
    problems = []
    for key in ("fan_in_fan_out", "base_model_name_or_path"):
        values = {adapter.path: getattr(adapter.config, key) for adapter in adapters}
        if len({value for value in values.values() if value is not None}) > 1:
            each = ", ".join(f"{shown(str(value))} in {path}" for path, value in values.items())
            problems.append(f"{key} differs: {each}; it must be the same in all adapters")
    return problems
