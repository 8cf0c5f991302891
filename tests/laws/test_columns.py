"""The five columns are what a row is: one swapped gives another row; edits work inside every geometry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from riemerge.frechet import Problem, frechet_mean
from riemerge.frechet.status import Status
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold
from riemerge.methods import METHODS, Method, Options, compose, run_method
from riemerge.methods.elections.entrywise import trim
from riemerge.methods.setting import Setting
from riemerge.methods.stack import Merged
from riemerge.updates.low_rank import LowRankUpdate
from tests.folders import adapter_family
from tests.helpers import Factors, random_gauge, seeded
from tests.methods.spectra import assert_near
from tests.methods.stacks import MODULE, SHAPE, stacked

WEIGHTS = [0.5, 0.3, 0.2]
ADAPTERS: list[Factors] = adapter_family("close", 3, *SHAPE, 3, 7)
TIGHT: dict[str, Any] = {"tol": 1e-10, "cost_tol": 0.0, "max_passes": 2000}


def run(row: Method, adapters: list[Factors] = ADAPTERS, **values: Any) -> Merged:
    """One module merged by a row, whole; all that is solved for to its end."""
    rank = None if row.truncates_inputs else "sum"
    options = Options(rank=rank, seed=values.get("seed"), **TIGHT)
    known = {name: value for name, value in (TIGHT | values).items() if name in row.parameters}
    given = stacked(row, adapters, WEIGHTS, [0, 10, 20], **known)
    ((module, merged),) = run_method(row, given, options)
    assert module == MODULE
    return merged


def dense(row: Method, adapters: list[Factors] = ADAPTERS, **values: Any) -> Tensor:
    return run(row, adapters, **values).update.dense()


SWAPS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("average", {"geometry": "sphere"}, "karcher", {}),
    ("karcher", {"geometry": "flat"}, "average", {}),
    ("average", {"loss": "absolute"}, "median", {}),
    ("average", {"loss": "huber:delta=0.7"}, "huber", {"delta": 0.7}),
    ("median", {"loss": "square"}, "average", {}),
    ("average", {"geometry": "flat:metric=diagonal"}, "fisher", {}),
    ("average", {"geometry": "flat:metric=gram"}, "regmean", {}),
    ("average", {"geometry": "flat:metric=kronecker"}, "mats", {}),
    ("average", {"geometry": "gaussians"}, "fisher_rao", {}),
    ("average", {"geometry": "bures_wasserstein"}, "balanced", {}),
    ("average", {"geometry": "grassmann"}, "subspace", {}),
    ("average", {"geometry": "spd"}, "shared_private", {}),
    ("average", {"geometry": "polar"}, "geomerge", {}),
    (
        "average",
        {"edits": ("trim:density=0.4", "elect"), "geometry": "flat:metric=mask"},
        "ties",
        {"density": 0.4},
    ),
    ("task_arithmetic", {"edits": ("trim:density=0.4",)}, "magnitude_prune", {"density": 0.4}),
    ("task_arithmetic", {"edits": ("drop:density=0.4",)}, "dare_linear", {"density": 0.4, "seed": 3}),
]


@pytest.mark.parametrize(
    ("name", "columns", "other", "values"), SWAPS, ids=[f"{swap[0]}-{swap[2]}" for swap in SWAPS]
)
def test_a_column_swapped_gives_the_other_row(
    name: str, columns: dict[str, Any], other: str, values: dict[str, Any]
) -> None:
    swapped = compose(METHODS[name], **columns)
    seed = {key: value for key, value in values.items() if key == "seed"}
    assert_near(dense(swapped, **seed), dense(METHODS[other], **values), 1e-9)
    if other != "shared_private":  # in so small a module nothing is shared
        assert float((dense(METHODS[name]) - dense(METHODS[other], **values)).norm()) > 1e-3


PLAIN = [row for row in METHODS.own if not row.statistics]


def edited(row: Method, edits: tuple[str, ...], adapters: list[Factors], **values: Any) -> Tensor:
    """What a row merges edited adapters to; each counts alike where their order gives the shares."""
    count = row.models[1] or 3
    weights = [1.0] * count if row.ordered else WEIGHTS[:count]
    known = {name: value for name, value in (TIGHT | values).items() if name in row.parameters}
    given = stacked(compose(row, edits=edits), adapters[:count], weights, [0, 10, 20], **known)
    options = Options(rank=None if row.truncates_inputs else "sum", **TIGHT)
    ((_, merged),) = run_method(compose(row, edits=edits), given, options)
    return merged.update.dense()


@pytest.mark.parametrize("row", PLAIN, ids=lambda row: row.name)
def test_edits_come_before_every_row(row: Method) -> None:
    """One that changes nothing changes no result; trimmed updates merge as adapters that hold them do."""
    assert_near(edited(row, ("trim:density=1",), ADAPTERS), edited(row, (), ADAPTERS), 1e-10)
    if not row.truncates_inputs:
        assert_near(edited(row, ("trim:density=0.5",), ADAPTERS), edited(row, (), trimmed()), 1e-8)


@pytest.mark.parametrize("name", ["knots_ties", "core_ties"])
def test_a_survey_sees_edited_updates(name: str) -> None:
    """So its thresholds keep as many entries as they say: those of what is merged."""
    found = edited(METHODS[name], ("trim:density=0.5",), ADAPTERS, density=0.3)
    assert_near(found, edited(METHODS[name], (), trimmed(), density=0.3), 1e-10)


def trimmed() -> list[Factors]:
    """The adapters with half of the entries of each update, as adapters of full rank."""
    updates = torch.stack([b @ a for b, a in ADAPTERS]).to(torch.float64)
    half = trim(updates, Setting("m", torch.ones(3), {"density": torch.full((3,), 0.5)}, SHAPE))
    return [(update, torch.eye(SHAPE[1], dtype=torch.float64)) for update in half]


@pytest.mark.parametrize(
    "options",
    [
        {"core": "euclidean"},
        {"core": "bures_wasserstein"},
        {"frames": "euclidean"},
        {"weights": "1/4/2"},
    ],
    ids=str,
)
def test_the_metric_of_the_quotient_is_a_column(options: dict[str, str]) -> None:
    """The mean is that of the manifold with that metric, and another than in the paper's."""
    text = ":".join(["polar", *(f"{key}={value}" for key, value in options.items())])
    merged = run(compose(METHODS["geomerge"], geometry=text))
    assert merged.evidence.ok
    given: dict[str, Any] = dict(options)
    if "weights" in given:
        given["weights"] = (1.0, 4.0, 2.0)
    total = FixedRank(*SHAPE, 3, **given)
    updates = [LowRankUpdate(*pair) for pair in ADAPTERS]
    points = [total.factor(one.B.unsqueeze(0), one.A.mT.unsqueeze(0)) for one in updates]
    found = frechet_mean(
        Problem(QuotientManifold(total, Orthogonal(3)), points, WEIGHTS), "lbfgs:tol=1e-9:max_passes=2000"
    )
    u, core, v = total.split(found.point[0])
    assert_near(merged.update.dense(), u @ core @ v.mT, 1e-6)
    plain = dense(METHODS["geomerge"])
    assert float((merged.update.dense() - plain).norm()) > 1e-6 * float(plain.norm())


GEOMETRIES = ["", "sphere", "polar", "bures_wasserstein"]
EDITS = [("trim:density=0.5",), ("trim:density=0.5", "elect"), ("drop:density=0.7",), ("truncate:rank=2",)]


@pytest.mark.parametrize("edits", EDITS, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_edits_inside_a_geometry_do_not_see_the_gauge(geometry: str, edits: tuple[str, ...]) -> None:
    row = compose(METHODS["average"], edits=edits, geometry=geometry or None)
    gauges = [random_gauge(3, 10.0, seeded(seed)) for seed in range(3)]
    turned: list[Factors] = [
        (B @ gauge, torch.linalg.solve(gauge, A)) for (B, A), gauge in zip(ADAPTERS, gauges, strict=True)
    ]
    merged = dense(row, seed=1)
    assert_near(dense(row, turned, seed=1), merged, 1e-8)
    # And it is no merge of unedited updates.
    assert float((merged - dense(compose(METHODS["average"], geometry=geometry or None))).norm()) > 1e-3


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("edit", ["trim:density=1.0", "truncate:rank=3", "drop:density=1.0"])
def test_edits_that_keep_all_change_nothing(geometry: str, edit: str) -> None:
    plain = compose(METHODS["average"], geometry=geometry or None)
    assert_near(dense(compose(plain, edits=(edit,))), dense(plain), 1e-9)


@pytest.mark.parametrize("geometry", [*GEOMETRIES, "grassmann"])
@pytest.mark.parametrize("loss", ["absolute", "huber"])
def test_every_loss_in_every_geometry_comes_with_its_certificate(geometry: str, loss: str) -> None:
    merged = run(compose(METHODS["average"], geometry=geometry or None, loss=loss))
    assert merged.evidence.status in {Status.CONVERGED, Status.EXACT, Status.STALLED}
    assert torch.isfinite(merged.update.dense()).all()


def test_rows_that_are_solved_for_have_certificates() -> None:
    for name in ("karcher", "median", "huber", "balanced", "geomerge"):
        evidence = run(METHODS[name]).evidence
        assert evidence.ok
        assert evidence.distances is not None
        assert len(evidence.distances) == 3
        assert evidence.gradient_norm is not None
        assert evidence.gradient_norm <= 1e-9


def test_a_metric_of_each_update_takes_no_other_loss() -> None:
    from riemerge.errors import RecipeError

    with pytest.raises(RecipeError, match="only the square loss has a mean"):
        run(compose(METHODS["average"], geometry="flat:metric=diagonal", loss="absolute"))
