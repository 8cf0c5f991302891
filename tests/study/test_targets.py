"""What a target is found to be, and which laws it is held to."""

from __future__ import annotations

from pathlib import Path

import pytest

from riemerge.errors import NumericalError, RecipeError
from riemerge.geometries import GEOMETRIES
from riemerge.study.targets import MANIFOLDS, check_target

SIZES = {
    "stiefel": "9,3",
    "fixed_rank": "8,7,3",
    "grassmann": "6,2",
    "euclidean": "3,2",
    "spd": "4",
    "sphere": "5,1",
}
CODE = """
import torch
from riemerge.geometries import Geometry
from riemerge.losses import Loss
from riemerge.manifolds import Euclidean, SymmetricPositiveDefinite
from riemerge.solvers import SteepestDescent

class Scaled:
    def inner_products(self, point, a, b):
        return 2 * (a * b).sum(dim=(-2, -1))

class Broken(Scaled):
    def euclidean_to_riemannian_gradient(self, point, euclidean_gradient):
        return euclidean_gradient

class Flat(Geometry):
    def manifold(self, rows, columns):
        return Euclidean(rows, columns)

class Longer(Flat):
    def update(self, point, x, setting):
        return 1.01 * point

class Plane(Euclidean):
    def __init__(self):
        super().__init__(2, 1)

def quartic(distance):
    return distance**4

def made_solver():
    return SteepestDescent(tol=1e-9)

class Half(Loss):
    def cost(self, weights, squared):
        return (weights * squared).sum(dim=0) / 4
    def pull(self, weights, squared):
        return weights / 2

class Raising(SymmetricPositiveDefinite):
    def __init__(self):
        super().__init__(3)
    def geodesic(self, point, vector):
        raise IndexError("out of reach")

class Sized:
    def __init__(self, size):
        pass

NUMBER = 3
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab_of_targets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)


def failures(target: str, on: str | None = None) -> dict[str, set[str]]:
    return {
        kind: {finding.name for finding in found if finding.verdict == "fails"}
        for kind, found in check_target(target, on).items()
    }


@pytest.mark.parametrize("name", MANIFOLDS)
def test_manifolds_are_named_with_their_sizes(name: str) -> None:
    assert failures(f"{name}:{SIZES.get(name, '3')}") == {"manifold": set(), "metric": set()}


def test_what_has_a_name_is_found() -> None:
    assert failures("average") == {"method": set()}
    assert failures("square") == {"loss": set()}
    assert failures("lbfgs:memory=3") == {"solver": set()}
    on = failures("riemerge.manifolds:Orthogonal", "fixed_rank:4,3,2")
    assert on == {"manifold": set(), "metric": set(), "symmetry": set()}
    assert failures("pymanopt.optimizers:SteepestDescent") == {"solver": set()}


# To the tolerance of these laws, means of pairs of factors take minutes.
@pytest.mark.parametrize("name", [name for name in GEOMETRIES if name != "gl_factors"])
def test_every_geometry_obeys_the_laws(name: str) -> None:
    assert failures(name)["method"] == set()


@pytest.mark.usefixtures("lab")
def test_code_is_run_and_held_to_the_laws() -> None:
    assert failures("lab_of_targets:Half") == {"loss": set()}
    assert failures("lab_of_targets:quartic") == {"loss": set()}
    assert failures("lab_of_targets:made_solver") == {"solver": set()}
    assert failures("lab_of_targets:Scaled", "lab_of_targets:Plane") == {"manifold": set(), "metric": set()}
    assert failures("lab_of_targets:Scaled", "euclidean:3,2")["metric"] == set()
    broken = failures("lab_of_targets:Broken", "euclidean:3,2")
    assert failures("lab_of_targets:Flat") == {"method": set()}
    assert failures("lab_of_targets:Longer")["method"] >= {"copies"}
    # The derived connection comes from the gradient, and is wrong with it.
    assert broken == {"manifold": {"compatibility"}, "metric": {"riesz", "riesz_inverse"}}


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize(
    ("target", "on", "says"),
    [
        ("spectrun", None, "did you mean 'spectrum'"),
        ("average", "moebius", "there is no such name"),
        ("average", "square", "expected a manifold, such as spd:4"),
        ("average", "stiefel:3,9", "1 <= p <= n"),
        ("average", "spd:x", "no option=value"),
        ("lab_of_targets:Scaled", None, "say which, --on spd:4"),
        ("riemerge.manifolds:Orthogonal", None, "say which, --on spd:4"),
        ("lab_of_targets:Sized", None, "cannot be made"),
        ("lab_of_targets:Nothing", None, "cannot be imported"),
        ("no_lab:Nothing", None, "cannot be imported"),
        ("lab_of_targets:NUMBER", None, "no law of it is known"),
    ],
)
def test_what_cannot_be_checked_is_refused(target: str, on: str | None, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        check_target(target, on)


@pytest.mark.usefixtures("lab")
def test_code_that_fails_is_named() -> None:
    with pytest.raises(NumericalError, match=r"lab_of_targets:Raising: .*out of reach"):
        check_target("lab_of_targets:Raising")


def test_draws_are_those_of_the_seed() -> None:
    assert check_target("spd:3", seed=1) == check_target("spd:3", seed=1)
    assert check_target("spd:3", seed=1) != check_target("spd:3", seed=2)
