"""Names for values: what a text builds, what it refuses, and what a plug-in adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
import torch

import riemerge.registry as registry_module
from riemerge.errors import RecipeError
from riemerge.geometries import GEOMETRIES, Polar
from riemerge.losses import LOSSES, FunctionLoss, Huber, Square
from riemerge.registry import Registry, did_you_mean, parse_scalar
from riemerge.solvers import LBFGS, SOLVERS


class Bowl:
    def __init__(self, depth: float = 1.0, word: str = "clay", glazed: bool = False) -> None:
        if depth < 0:
            raise ValueError(f"depth is {depth}; expected at least 0")
        self.depth, self.word, self.glazed = depth, word, glazed


@dataclass(frozen=True)
class Vase:
    form: Callable[[float], float]
    depth: float = 1.0
    width: float | None = 2.0


def bowls() -> Registry[Bowl]:
    return Registry("bowl", {"bowl": Bowl, "far": "tests.test_registry:Bowl"})


def broken() -> Bowl:
    raise KeyError("clay")


def test_a_text_builds_what_it_says() -> None:
    made = bowls().make("bowl:depth=2.5:word=mud", depth=3)
    assert (made.depth, made.word) == (2.5, "mud")
    assert bowls()["far"] is Bowl
    assert [parse_scalar(text) for text in ("1", "1e-3", "False", "TRUE", "x")] == [1, 1e-3, False, True, "x"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bowle", "unknown bowl 'bowle': did you mean 'bowl'"),
        ("bowl:dept=1", "unknown option 'dept': did you mean 'depth'"),
        ("bowl:depth", "'depth' is no option=value"),
        ("bowl:depth=-1", "depth is -1; expected at least 0"),
        ("bowl:glazed=no", "glazed is 'no'; expected true or false"),
        ("plain:depth=1", "bowl plain: unknown option 'depth': it takes no options"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, said: str) -> None:
    registry = bowls()
    registry["plain"] = lambda: Bowl()
    with pytest.raises(RecipeError, match=said):
        registry.make(text)


def test_a_name_is_taken_once() -> None:
    registry = bowls()
    registry.register("mine", Bowl)
    registry.register("mine", Bowl)
    assert list(registry) == ["bowl", "far", "mine"]
    assert len(registry) == 3
    with pytest.raises(RecipeError, match="bowl 'bowl' is there already"):
        registry.register("bowl", lambda: Bowl(2.0))


def test_what_a_plugin_names_is_loaded_when_it_is_used_and_adapted_like_what_it_gives() -> None:
    registry: Registry[Bowl] = Registry("bowl", {}, lambda kind: partial(kind, depth=7))
    registry.register("given", Bowl)
    registry.register("named", "tests.test_registry:Bowl")
    assert registry.make("given").depth == registry.make("named").depth == 7
    assert [build.func for build in registry.own] == [Bowl, Bowl]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("lab_missing:x", "bowl 'lab' of the plug-in lab_missing:x: ModuleNotFoundError"),
        (
            "tests.test_registry:absent",
            "bowl 'lab' of the plug-in tests.test_registry:absent: AttributeError",
        ),
        (broken, r"bowl 'lab' of a plug-in: KeyError\('clay'\)"),
        (3, "bowl 'lab': 3 is not a callable object"),
    ],
)
def test_a_fault_of_a_plugin_is_told_as_its_own(entry: Any, said: str) -> None:
    registry = bowls()
    registry.register("lab", entry)
    with pytest.raises(RecipeError, match=said):
        registry.make("lab")


def test_what_makes_no_entry_is_refused_by_name_each_time() -> None:
    registry: Registry[Bowl] = Registry("bowl", {}, lambda entry: 1 / entry)
    for _ in range(2):
        with pytest.raises(RecipeError, match="bowl 'lab': division by zero"):
            registry.register("lab", 0)


def test_one_name_of_two_installed_plugins_is_one_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    same, other = (
        EntryPoint("lab", f"tests.test_registry:{name}", "riemerge.bowls") for name in ("Bowl", "Vase")
    )
    monkeypatch.setattr(registry_module, "_entry_points", lambda group: EntryPoints([same, same]))
    assert bowls()["lab"] is Bowl
    monkeypatch.setattr(registry_module, "_entry_points", lambda group: EntryPoints([same, other]))
    with pytest.raises(
        RecipeError, match=r"bowl 'lab' is given by .*:Bowl and by .*:Vase: uninstall all but"
    ):
        bowls().make("lab")


def test_a_word_that_is_near_to_none_is_told_all() -> None:
    assert did_you_mean("tol", ["tol", "rank"]) == "did you mean 'tol'? (known: tol, rank)"
    assert did_you_mean("zzz", iter(["tol", "rank"])) == "known: tol, rank"


@pytest.mark.parametrize(
    ("table", "value", "text"),
    [
        (LOSSES, Square(), "square"),
        (LOSSES, Huber(), "huber"),
        (LOSSES, Huber(delta=0.5, relative=False), "huber:delta=0.5:relative=false"),
        (GEOMETRIES, Polar(weights=(1.0, 2.0, 1.0)), "polar:weights=1.0/2.0/1.0"),
        (GEOMETRIES, Polar(frames=0.5), "polar:frames=0.5"),
        (SOLVERS, LBFGS(tol=1e-3, max_seconds=2.5), "lbfgs:tol=0.001:max_seconds=2.5"),
    ],
)
def test_a_value_has_a_text_that_builds_it(table: Registry[Any], value: Any, text: str) -> None:
    assert table.text_of(value) == text
    assert table.make(text) == value
    assert table.text_of(text) == text


def test_numbers_with_slashes_are_their_own_text() -> None:
    assert GEOMETRIES.text_of(Polar(weights="1/2/1")) == "polar:weights=1/2/1"


def test_what_no_text_can_hold_has_a_name_of_its_own() -> None:
    registry: Registry[Any] = Registry("vase", {})
    first, second = Vase(abs), Vase(round, width=None)
    assert [registry.text_of(vase) for vase in (first, second, first)] == ["Vase", "Vase-2", "Vase"]
    assert registry.make("Vase") is first
    assert registry.make("Vase-2", depth=3.0, width=1.0) == Vase(round, 3.0, None)
    plain = Bowl()
    assert registry.make(registry.text_of(plain)) is plain
    with pytest.raises(RecipeError, match="unexpected keyword argument 'height'"):
        registry.make("Vase:height=3")


def test_functions_of_one_name_are_told_apart() -> None:
    registry: Registry[Any] = Registry("bowl", {"bowl": Bowl})
    given = [lambda: 1, lambda: 2, partial(Bowl, depth=4.0), Bowl]
    names = [registry.text_of(each) for each in given]
    assert names == [registry.text_of(each) for each in given] == ["lambda", "lambda-2", "Bowl", "bowl"]
    assert [registry.make(name) for name in names[:2]] == [1, 2]
    assert registry.make("Bowl").depth == 4.0


def test_a_loss_of_a_function_is_the_function_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))
    monkeypatch.setattr(LOSSES, "_given", {})
    loss = FunctionLoss(lambda d: d**2)
    assert LOSSES.make(LOSSES.text_of(loss)) is loss
    assert LOSSES.make(LOSSES.text_of(torch.square)) == FunctionLoss(torch.square)
