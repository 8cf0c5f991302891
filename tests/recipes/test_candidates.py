"""Words of a command line are read as a recipe would read them, and refused where it would refuse them."""

from __future__ import annotations

import pytest

from riemerge.errors import RecipeError
from riemerge.recipes.candidates import Candidate, parse, parse_assignments


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("average", {}),
        ("average:rank=sum", {"rank": "sum"}),
        ("ties:density=0.2:normalize=false", {"density": 0.2, "normalize": False}),
        ("geomerge:solver=lbfgs:max_passes=3", {"solver": "lbfgs", "max_passes": 3}),
        ("ties:density=[0.2, 0.4]", {"density": [0.2, 0.4]}),
    ],
)
def test_what_is_read_has_a_name_that_reads_back(text: str, parameters: dict[str, object]) -> None:
    found = parse(text)
    assert found == Candidate(text.partition(":")[0], parameters)
    assert parse(found.name) == found


@pytest.mark.parametrize(
    "text",
    [
        "tsvv",
        "average:density=0.2",
        "ties:density=2",
        "ties:density",
        "ties:",
        "",
        "ties:density=0.2:density=0.5",
    ],
)
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        parse(text)


def test_an_assignment_has_the_value_that_a_recipe_would_have() -> None:
    texts = ["density=[0.2, 0.4]", "rank=95%", "normalize=false", "solver=lbfgs:memory=3", "scale=-1e-3"]
    assert parse_assignments(texts) == {
        "density": [0.2, 0.4],
        "rank": "95%",
        "normalize": False,
        "solver": "lbfgs:memory=3",
        "scale": -1e-3,
    }
    assert parse_assignments([]) == {}


def test_only_the_first_equals_sign_divides_an_assignment() -> None:
    assert parse_assignments(["solver=a=b"]) == {"solver": "a=b"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("density", "-p density: no value: expected NAME=VALUE"),
        ("", "-p : no value: expected NAME=VALUE"),
        ("density=1.5", "-p density: 1.5: expected at most 1"),
        ("density=half", "-p density: the text 'half': expected a number"),
        ("max_passes=", "-p max_passes: is empty"),
        ("max_passes=[1", "-p max_passes: line 1, column 3: "),
        ("densty=0.5", "-p densty: unknown parameter 'densty': did you mean 'density'? (known: rank, "),
        ("lambda=0.5", "-p lambda: unknown parameter 'lambda': it is called 'scale' here"),
        ("=0.5", "-p : unknown parameter '': known: rank, "),
    ],
)
def test_an_assignment_that_makes_no_sense_is_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_assignments(["rank=3", text])
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)


def test_every_fault_of_every_assignment_is_reported_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_assignments(["density=2", "seed", "densty=1", "rank=0", "rank=1", "scale=[1, x, y]"])
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        *("-p density", "-p seed", "-p densty", "-p rank", "-p rank", "-p scale[1]", "-p scale[2]"),
    ]
    assert "-p rank: said more than once: say it once" in caught.value.problems


def test_weights_stand_behind_their_models() -> None:
    with pytest.raises(RecipeError, match="-p weight: each model has its own"):
        parse_assignments(["weight=2"])
    with pytest.raises(RecipeError, match="unknown parameter") as fault:
        parse_assignments(["strength=2"])
    assert "weight" not in str(fault.value).replace("weights", "")
