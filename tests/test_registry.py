"""Names for values: what a text builds, what it refuses, and what a plug-in adds."""

from __future__ import annotations

from functools import partial

import pytest

from riemerge.errors import RecipeError
from riemerge.losses import LOSSES, Huber, Square
from riemerge.registry import Registry, did_you_mean, parse_scalar


class Bowl:
    def __init__(self, depth: float = 1.0, word: str = "clay") -> None:
        if depth < 0:
            raise ValueError(f"depth is {depth}; expected at least 0")
        self.depth, self.word = depth, word


def bowls() -> Registry[Bowl]:
    return Registry("bowl", {"bowl": Bowl, "far": "tests.test_registry:Bowl"})


def test_a_text_builds_what_it_says() -> None:
    made = bowls().make("bowl:depth=2.5:word=mud", depth=3)
    assert (made.depth, made.word) == (2.5, "mud")
    assert bowls()["far"] is Bowl
    assert [parse_scalar(text) for text in ("1", "1e-3", "false", "x")] == [1, 1e-3, False, "x"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bowle", "unknown bowl 'bowle': did you mean 'bowl'"),
        ("bowl:dept=1", "unknown option 'dept': did you mean 'depth'"),
        ("bowl:depth", "'depth' is no option=value"),
        ("bowl:depth=-1", "depth is -1; expected at least 0"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        bowls().make(text)


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


def test_a_word_that_is_near_to_none_is_told_all() -> None:
    assert did_you_mean("tol", ["tol", "rank"]) == "did you mean 'tol'? (known: tol, rank)"
    assert did_you_mean("zzz", iter(["tol", "rank"])) == "known: tol, rank"


def test_a_value_has_a_text_that_builds_it() -> None:
    assert LOSSES.text_of("huber") == "huber"
    for loss, text in ((Huber(), "huber"), (Huber(delta=0.5), "huber:delta=0.5"), (Square(), "square")):
        assert LOSSES.text_of(loss) == text
        assert LOSSES.make(text) == loss
