"""Where alignments start and end: the distance found against many random starts, and the laws of the start.

The gaps are measured at r = 8 on seeds from 1000 up; the recipe of `Orthogonal.nearest` was chosen on seeds
below 300.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from riemerge import linalg
from riemerge.manifolds import FixedRank, Orthogonal, QuotientManifold
from riemerge.manifolds.low_rank import orthogonal, surrogate
from riemerge.manifolds.low_rank.factors import CORES
from tests.fake_cuda import CUDA, fake_cuda
from tests.helpers import adapter_family
from tests.manifolds.low_rank.pairs import squared, starts
from tests.manifolds.subjects import family, relative

SEED, R, INF = 1000, 8, float("inf")


FAMILIES = {
    "close": ("close", {"noise": 0.3}),
    "mix": ("mix", {}),
    "independent": ("independent", {}),
    "independent, three decades": ("independent", {"cond": 1e3}),
    "independent, a third of a decade": ("independent", {"cond": 2.0}),
    "lora_like, noise .5": ("lora_like", {"noise": 0.5}),
    "lora_like, noise .1": ("lora_like", {"noise": 0.1}),
    "shared_subspace": ("shared_subspace", {}),
}


# Least d^2 that `best_known` found, for seeds from SEED up; inf where the subspaces coincide and want gauges
# of opposite determinants on the two sides, so that every representative is at the cut locus.
BEST_KNOWN: dict[str, list[float]] = {
    "close": [
        3.76477,
        3.58495,
        3.16854,
        3.18934,
        3.30276,
        3.16611,
        3.69405,
        4.00486,
        3.12157,
        3.29681,
        3.10827,
        3.03742,
        2.84551,
        3.16639,
        3.39439,
        3.66926,
    ],
    "mix": [
        19.76363,
        16.96146,
        16.10575,
        17.66195,
        18.13248,
        17.41326,
        17.00060,
        17.19016,
        19.72837,
        17.65514,
        19.28855,
        21.92641,
        17.22049,
        17.78033,
        17.88834,
        18.67739,
    ],
    "independent": [
        32.47910,
        34.13522,
        31.63874,
        35.93525,
        31.56798,
        32.05363,
        32.78695,
        32.34875,
        33.48146,
        32.30717,
        31.47488,
        34.16747,
        31.30336,
        34.21601,
        32.25953,
        33.41508,
    ],
    "independent, three decades": [
        47.72746,
        50.89621,
        43.52595,
        77.96119,
        46.53043,
        55.79131,
        47.86294,
        42.26637,
        66.91111,
        46.67661,
        41.32527,
        55.39399,
        38.53752,
        58.43315,
        38.72216,
        45.20429,
    ],
    "independent, a third of a decade": [
        28.96326,
        30.54173,
        28.07808,
        29.00015,
        27.82584,
        28.28803,
        29.47751,
        29.41934,
        27.69797,
        29.14874,
        27.63544,
        29.49492,
        28.92367,
        29.88476,
        29.83454,
        29.64851,
    ],
    "lora_like, noise .5": [
        25.03408,
        26.47344,
        25.10649,
        27.30561,
        25.25823,
        26.40138,
        24.91602,
        25.21541,
        25.65538,
        25.21670,
        22.69100,
        27.36855,
        24.96291,
        25.36890,
        24.38518,
        25.89063,
    ],
    "lora_like, noise .1": [
        22.02322,
        24.11298,
        22.76714,
        25.04948,
        22.76145,
        23.93398,
        21.94913,
        22.57820,
        23.27870,
        22.42829,
        19.79078,
        24.31113,
        23.13632,
        22.70438,
        22.17781,
        23.46450,
    ],
    "shared_subspace": [
        11.56638,
        11.56604,
        11.86728,
        INF,
        11.94760,
        INF,
        13.22649,
        13.32907,
        INF,
        INF,
        11.43747,
        9.20517,
        11.98472,
        12.36309,
        INF,
        INF,
    ],
}


def pairs(name: str, count: int) -> tuple[FixedRank, Tensor, Tensor]:
    """Pairs of adapters, one for each seed, in their joint span."""
    kind, options = FAMILIES[name]
    total = FixedRank(64, 48, R, k=count)
    modules = [adapter_family(kind, 2, 64, 48, R, SEED + i, **options) for i in range(count)]
    points = [
        total.factor(torch.stack([x[t][0] for x in modules]), torch.stack([x[t][1].mT for x in modules]))
        for t in range(2)
    ]
    small = total.reduce(torch.stack(points))
    assert isinstance(small.manifold, FixedRank)
    return small.manifold, small.points[0], small.points[1]


def with_determinant(orthogonal: Tensor, determinant: Tensor) -> Tensor:
    """Orthogonal matrices (..., r, r), the last column reversed where the determinant has the other sign."""
    flip = torch.linalg.det(orthogonal).sign() * determinant.to(orthogonal.dtype)
    return torch.cat((orthogonal[..., :-1], orthogonal[..., -1:] * flip[..., None, None]), dim=-1)


def best_known(total: FixedRank, point: Tensor, to: Tensor, starts: int = 64) -> Tensor:
    """The least d^2 over random starts, half of either determinant, and all candidates, each refined."""
    action, count = Orthogonal(total.r), point.shape[0]
    elements = action.random_element((starts, count), torch.Generator().manual_seed(0))
    sign = torch.ones(starts, count, dtype=torch.float64)
    sign[starts // 2 :] = -1
    elements = with_determinant(elements, sign)
    candidates = surrogate.candidates(surrogate.spectrum(total, point), surrogate.spectrum(total, to))
    found, squared, _ = action._refine(total, point, to, torch.cat((elements, candidates)), 3e-2)
    leaders = squared.argsort(dim=0)[:3, :, None, None]
    _, squared, _ = action._refine(total, point, to, torch.take_along_dim(found, leaders, dim=0), 1e-4)
    return squared.amin(dim=0)


def meets(total: FixedRank, point: Tensor, to: Tensor) -> Tensor:
    """Whether the gauges that the two sides want are of one determinant, where subspaces coincide."""
    u, v = (
        torch.linalg.det(x.mT @ y) for x, y in zip(total.split(point)[::2], total.split(to)[::2], strict=True)
    )
    found: Tensor = (u * v > 0) | (u.abs() < 0.99) | (v.abs() < 0.99)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_distances_are_within_two_percent_of_the_best_of_many_starts(name: str) -> None:
    known = torch.tensor(BEST_KNOWN[name], dtype=torch.float64)
    total, point, to = pairs(name, len(known))
    action, defined = Orthogonal(R), torch.isfinite(known)
    assert torch.equal(defined, meets(total, point, to))
    found = squared(total, point, to, action.nearest(total, point, to, tolerance=1e-4))
    gap = found[defined] / known[defined] - 1
    # The best known is printed to five digits; a little below it is luck.
    assert float(gap.max()) <= 0.02
    assert float(gap.median()) <= 1e-4
    # The surrogate alone, which costs a hundredth of it.
    guessed = squared(total, point, to, action.guess(total, point, to))
    assert float((guessed[defined] / known[defined] - 1).median()) <= 0.07


@pytest.mark.slow
def test_the_best_known_distance_is_what_its_function_finds() -> None:
    name = "close"
    total, point, to = pairs(name, 2)
    expected = torch.tensor(BEST_KNOWN[name][:2], dtype=torch.float64)
    torch.testing.assert_close(best_known(total, point, to), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("r", [1, 2, 5])
@pytest.mark.parametrize("spectrum", ["spread", "equal"])
def test_a_turned_point_is_recognised(r: int, spectrum: str) -> None:
    total, action = FixedRank(11, 9, r, k=6, seed=3), Orthogonal(r)
    point = total.random_point()
    if spectrum == "equal":
        u, b, v = total.split(point)
        point = total.join(u, linalg.eye_like(b).expand_as(b), v)
    turned = action.act(total, point, action.random_element((6,), torch.Generator().manual_seed(5)))
    for element in (action.nearest(total, turned, point), action.guess(total, turned, point)):
        torch.testing.assert_close(action.act(total, turned, element), point, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["close", "mix", "lora_like", "independent"])
def test_the_start_does_not_see_order_or_gauge(name: str) -> None:
    total, points, weights = starts(name)
    action = Orthogonal(4)
    mean, elements = action.aligned_mean(total, points, weights)
    generator = torch.Generator().manual_seed(2)
    order = [2, 0, 3, 1]
    turned = action.act(total, points, action.random_element((4, 3), generator))
    other, others = action.aligned_mean(total, turned[order], weights)
    assert relative(total.matrix(other), total.matrix(mean)) < 1e-9
    # The means are one update in two gauges; the aligned data turn with them.
    aligned, again = (action.act(total, x, y) for x, y in ((points, elements), (turned[order], others)))
    torch.testing.assert_close(
        squared(total, points, mean, elements)[order],
        squared(total, turned[order], other, others),
        rtol=1e-8,
        atol=0,
    )
    assert aligned.shape == again.shape == points.shape


@pytest.mark.parametrize("name", ["close", "mix", "lora_like", "independent"])
def test_the_start_is_nearly_aligned(name: str) -> None:
    """A search for the nearest gains little, and alignment by Procrustes alone is far behind on some."""
    total, points, weights = starts(name)
    action = Orthogonal(4)
    mean, elements = action.aligned_mean(total, points, weights)
    cost = (weights * squared(total, points, mean, elements)).sum()
    nearest = action.nearest(total, points, mean, tolerance=1e-4)
    assert float(cost) <= 1.05 * float((weights * squared(total, points, mean, nearest)).sum())
    orthogonal = elements.mT @ elements - linalg.eye_like(elements)
    assert float(orthogonal.abs().max()) < 1e-12
    assert torch.equal(action.extrinsic_mean(total, points, weights), mean)


def test_equal_points_are_their_own_start() -> None:
    total, points, weights = starts("independent")
    action = Orthogonal(4)
    turns = action.random_element((4, 3), torch.Generator().manual_seed(2))
    mean, elements = action.aligned_mean(total, action.act(total, points[:1], turns), weights)
    assert relative(total.matrix(mean), total.matrix(points[0])) < 1e-12
    copies = action.act(total, action.act(total, points[:1], turns), elements)
    torch.testing.assert_close(copies, mean.expand_as(copies), rtol=0, atol=1e-10)


def test_a_single_point_is_its_own_start_to_the_bit() -> None:
    total, points, weights = starts("mix", count=1)
    mean, elements = Orthogonal(4).aligned_mean(total, points, weights)
    assert torch.equal(mean, points[0])
    assert torch.equal(Orthogonal(4).act(total, points, elements)[0], mean)


def test_a_weight_of_zero_is_absence_module_by_module() -> None:
    total, points, weights = starts("lora_like")
    action = Orthogonal(4)
    weights = weights.clone()
    weights[3, 0], weights[0, 1] = 0, 0
    weights = weights / weights.sum(dim=0)
    mean, elements = action.aligned_mean(total, points, weights)
    for module, kept in ((0, [0, 1, 2]), (1, [1, 2, 3]), (2, [0, 1, 2, 3])):
        one = slice(module, module + 1)
        alone, _ = action.aligned_mean(total.with_modules(1), points[kept][:, one], weights[kept][:, one])
        assert relative(total.matrix(mean[one]), total.matrix(alone)) < 1e-9
    assert bool(torch.isfinite(elements).all())


def test_the_start_runs_on_a_device_and_gives_the_same_numbers() -> None:
    total, points, weights = starts("lora_like")
    action = Orthogonal(4)
    expected = action.aligned_mean(total, points, weights)
    with fake_cuda():
        found = action.aligned_mean(total, points.to("cuda"), weights.to("cuda"))
        assert all(x.device == CUDA for x in found)
        assert all(torch.equal(x.cpu(), y) for x, y in zip(found, expected, strict=True))


METRICS = [
    pytest.param(frames, core, weights, id=f"{frames}-{core}-{weights}")
    for frames in ("canonical", "euclidean", 0.8)
    for core in CORES
    for weights in ((1.0, 1.0, 1.0), (1.0, 2.0, 0.5))
]


@pytest.mark.parametrize(("frames", "core", "weights"), METRICS)
def test_the_gauge_equation_is_that_of_the_metrics(
    frames: str | float, core: str, weights: tuple[float, float, float]
) -> None:
    """The generator of a vertical vector is what it was made of, and what is left of a vector is orthogonal
    to the orbit, also where eigenvalues repeat."""
    total = FixedRank(9, 8, 4, k=2, frames=frames, core=core, weights=weights, seed=3)
    action, point = Orthogonal(4), total.random_point()
    u, b, v = total.split(point)
    point = total.join(u, torch.stack((b[0], torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.2]).double()))), v)
    algebra = action.random_algebra((2,), torch.Generator().manual_seed(1))
    vertical = action.vertical(total, point, algebra)
    torch.testing.assert_close(
        action.vertical_generator(total, point, vertical), algebra, rtol=1e-12, atol=1e-12
    )
    vector = total.random_tangent_vector(point)
    left = vector - action.vertical(total, point, action.vertical_generator(total, point, vector))
    lengths = total.norms(point, left) * total.norms(point, vertical)
    assert float((total.inner_products(point, left, vertical) / lengths).abs().max()) < 1e-12


SOME = [METRICS[i] for i in (3, 5, 7, 9)]


@pytest.mark.parametrize(("frames", "core", "weights"), SOME)
def test_orbits_have_a_distance_in_every_metric(
    frames: str | float, core: str, weights: tuple[float, float, float]
) -> None:
    """It is zero for the same orbit and the same for other representatives; the log is horizontal, and a
    point that is nearly aligned is aligned again to the same end."""
    total = FixedRank(8, 7, 2, k=2, frames=frames, core=core, weights=weights)
    quotient, action = QuotientManifold(total, Orthogonal(2)), Orthogonal(2)
    point, to = family("lora_like", 2, 8, 7, 2, seed=5)
    generator = torch.Generator().manual_seed(2)
    turned, turned_to = (action.act(total, x, action.random_element((2,), generator)) for x in (point, to))
    assert float(quotient.dist(turned, point)) < 1e-8
    apart = quotient.dists(point, to)
    torch.testing.assert_close(quotient.dists(turned, turned_to), apart, rtol=1e-9, atol=0)
    aligned = quotient.align(point, to=to)
    log = total.logarithm(to, aligned)
    assert bool(log.valid.all())
    momentum = action.momentum(total, to, log.tangent)
    assert float(momentum.abs().max()) < 1e-9 * (1 + float(apart.max()))
    near = action.act(total, aligned, action.exponential(0.02 * action.random_algebra((2,), generator)))
    torch.testing.assert_close(action.realign(total, near, to), aligned, rtol=0, atol=1e-7)


def test_a_point_that_is_not_nearly_aligned_is_aligned_from_scratch() -> None:
    total, action = FixedRank(10, 9, 3, k=2), Orthogonal(3)
    point, to = family("lora_like", 2, 10, 9, 3, seed=5)
    # At the cut locus: no logarithm, and no way down from there.
    away = action.act(total, to, torch.diag(torch.tensor([-1.0, -1.0, 1.0]).double()).expand(2, 3, 3))
    assert float(total.dist(to, action.realign(total, away, to))) < 1e-8
    mixed = torch.stack((away[0], action.align(total, point, to)[1]))
    realigned = action.realign(total, mixed, to)
    assert float(total.dists(to, realigned)[0]) < 1e-8
    torch.testing.assert_close(realigned[1], mixed[1], rtol=0, atol=1e-8)


def test_a_descent_that_does_not_settle_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    total, action = FixedRank(10, 9, 3, k=2), Orthogonal(3)
    point, to = family("lora_like", 2, 10, 9, 3, seed=5)
    aligned = action.align(total, point, to)
    near = action.act(
        total, aligned, action.exponential(0.3 * action.random_algebra((2,), torch.Generator()))
    )
    calls: list[Tensor] = []
    nearest = action.nearest

    def count(total: FixedRank, point: Tensor, to: Tensor) -> Tensor:
        calls.append(point)
        return nearest(total, point, to)

    monkeypatch.setattr(action, "nearest", count)
    action.realign(total, near, to)
    assert not calls
    monkeypatch.setattr(orthogonal, "_MAX_REFINEMENTS", 1)
    action.realign(total, near, to)
    assert calls
