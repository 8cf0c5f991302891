"""The studies of examples/: short, listed with their pictures, and right in what they say."""

from __future__ import annotations

import math
import re
import runpy
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pymanopt.manifolds import PoincareBall
from scipy.integrate import quad
from torch import Tensor

from examples import (
    fisher_as_frechet,
    heads,
    jensen_bounds,
    merging_is_a_gradient_step,
    preconditioned_merge,
    rebasin,
    toy_problem,
)
from riemerge import Momentum, OuterOptimizer, Problem, frechet_mean
from riemerge.manifolds import HalfPlane
from tests.helpers import ROOT, seeded
from tools.lines import count

EXAMPLES = ROOT / "examples"
STUDIES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "closeness")
MOST_LINES = 60
MOST_BYTES = 60_000
F64 = torch.float64


def run(study: str, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a study as its command does, and return what it prints; a picture is written."""
    monkeypatch.setattr("sys.argv", [f"{study}.py", str(path)])
    runpy.run_path(str(EXAMPLES / f"{study}.py"), run_name="__main__")
    return capsys.readouterr().out


def numbers(text: str) -> list[float]:
    return [float(word) for word in re.findall(r"(?<![\w.])-?\d+(?:\.\d*)?(?:e[-+]?\d+)?(?![\w.])", text)]


# --- the rules of the folder --------------------------------------------------------------------------------


def faults(name: str, source: str, page: str, pictures: Path) -> list[str]:
    """Return what a study lacks."""
    found = []
    if (lines := count(source).code) > MOST_LINES:
        found.append(f"{lines} lines of code; at most {MOST_LINES} are a study")
    command = f"python examples/{name}.py"
    if not re.search(rf"^Run: .*{re.escape(command)} \[picture.png\]$", source, re.MULTILINE):
        found.append("its docstring does not say how to run it")
    if f"{command}`" not in page or f"pictures/{name}.png" not in page:
        found.append("examples/README.md does not list its command and its picture")
    picture = pictures / f"{name}.png"
    if not picture.exists() or picture.stat().st_size > MOST_BYTES:
        found.append(f"no picture of at most {MOST_BYTES} bytes")
    return found


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_is_short_listed_and_drawn(study: str) -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    source = (EXAMPLES / f"{study}.py").read_text(encoding="utf-8")
    assert not faults(study, source, page, EXAMPLES / "pictures")


def test_a_study_against_the_rules_is_caught(tmp_path: Path) -> None:
    good = (
        '"""What?\n\nRun: python examples/s.py [picture.png]\n\nMore.\n"""\n\n# Why.\n'
        + "x = 1\n" * MOST_LINES
    )
    page = "`python examples/s.py` ![](pictures/s.png)"
    (tmp_path / "s.png").write_bytes(b"1" * MOST_BYTES)
    assert not faults("s", good, page, tmp_path)
    assert len(faults("s", good + "x = (\n    1\n)\n", page, tmp_path)) == 1
    assert len(faults("s", good.replace("Run", "Go"), page, tmp_path)) == 1
    assert len(faults("s", good, page.replace(".png", ".svg"), tmp_path)) == 1
    (tmp_path / "s.png").write_bytes(b"1" * (MOST_BYTES + 1))
    assert len(faults("s", good, page, tmp_path)) == 1


# --- the average and the gauge ------------------------------------------------------------------------------


@pytest.mark.oracle
def test_the_gauge_moves_the_average_of_factors_alone(
    peft: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("gauge_breaks_the_average", tmp_path / "picture.png", monkeypatch, capsys)
    theirs, formula, ours = (numbers(line) for line in printed.splitlines())
    assert theirs[0] > 0.5
    assert theirs[-1] > 100  # condition 1,000
    assert max(formula) < 1e-12
    assert max(ours) < 1e-9  # tol 1e-8 on the gradient


# --- Jensen divergences and the Fisher-Rao distance ---------------------------------------------------------


def test_of_jensen_divergences_jeffreys_alone_is_a_bound_from_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("jensen_bounds", tmp_path / "picture.png", monkeypatch, capsys)
    ratios = [numbers(line.split("least")[1]) for line in printed.splitlines()]
    (jeffreys, _), *between, (_, jensen_shannon) = ratios
    assert jeffreys >= 1
    assert all(least < 0.9 and largest > 1.1 for least, largest in between)
    assert jensen_shannon <= 1


def test_divergences_and_distances_of_gaussians_are_those_of_their_definitions() -> None:
    p, q = jensen_bounds.pairs(5, spread=1.0, seed=1)
    kullback = torch.distributions.kl_divergence
    one, other = (torch.distributions.Normal(*gaussians.unbind(-1)) for gaussians in (p, q))
    torch.testing.assert_close(jensen_bounds.jensen(p, q, 0.0), kullback(one, other) + kullback(other, one))
    # Skewed ones tend to it, with an error of the order of the share.
    near = jensen_bounds.jensen(p, q, 1e-6)
    torch.testing.assert_close(near, jensen_bounds.jensen(p, q, 0.0), rtol=1e-2, atol=0)
    sums = (p[:, 1].square() + q[:, 1].square()) / 2
    bhattacharyya = (p - q)[:, 0].square() / sums / 8 + (sums / p[:, 1] / q[:, 1]).log() / 2
    torch.testing.assert_close(jensen_bounds.jensen(p, q, 0.5), 8 * bhattacharyya)
    apart = (p - q).square() @ torch.tensor([0.5, 1.0], dtype=F64) / (2 * p[:, 1] * q[:, 1])
    torch.testing.assert_close(jensen_bounds.fisher_rao(p, q), 2**0.5 * (1 + apart).acosh())
    for i in range(len(p)):
        (m1, s1), (m2, s2) = p[i].tolist(), q[i].tolist()

        def integrand(x: float, m1: float = m1, s1: float = s1, m2: float = m2, s2: float = s2) -> float:
            a = math.exp(-(((x - m1) / s1) ** 2) / 2) / s1
            b = math.exp(-(((x - m2) / s2) ** 2) / 2) / s2
            entropies = [y * math.log(2 * y / (a + b)) for y in (a, b) if y]
            return sum(entropies) / 2 / math.sqrt(2 * math.pi)

        reach = 10 * float(torch.maximum(p, q)[i, 1]) + float(torch.maximum(p.abs(), q.abs())[i, 0])
        expected = quad(integrand, -reach, reach, points=[float(p[i, 0]), float(q[i, 0])], limit=200)[0]
        assert float(jensen_bounds.jensen_shannon(p, q)[i]) == pytest.approx(expected, rel=1e-6)


# --- merging and gradient steps -----------------------------------------------------------------------------


def test_merges_are_gradient_steps_of_the_orders_that_are_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("merging_is_a_gradient_step", tmp_path / "picture.png", monkeypatch, capsys)
    orders = [float(line.split()[-1]) for line in printed.splitlines()]
    assert orders == pytest.approx([math.inf, 2, 2, math.inf, 1.5, 1], abs=0.05)
    share, point = merging_is_a_gradient_step.SHARE, merging_is_a_gradient_step.POINT
    for name in ("average", "geodesic", "SLERP", "once differentiable"):
        jacobian = merging_is_a_gradient_step.jacobian_at_the_diagonal(
            merging_is_a_gradient_step.MERGES[name], point
        )
        torch.testing.assert_close(jacobian, share * torch.eye(2, dtype=F64), rtol=0, atol=1e-9)


def test_the_merges_of_the_gradient_step_are_what_they_are_called() -> None:
    study = merging_is_a_gradient_step
    first, step = study.POINT, 0.1 * study.DIRECTION
    points = [first.numpy(), (first - step).numpy()]
    weights = [1 - study.SHARE, study.SHARE]
    mean = frechet_mean(Problem(PoincareBall(2), points, weights), "fixed_point:tol=1e-12").point
    torch.testing.assert_close(study.geodesic(first, first - step), torch.as_tensor(mean))
    largest = torch.where(step.abs() == step.abs().max(), step, 0)
    torch.testing.assert_close(study.MERGES["TIES, one task"](first, first - step), first - largest)


def test_averages_of_descents_are_descents_on_the_mean_of_the_losses() -> None:
    generator = seeded(0)
    starts, targets = torch.randn(2, 3, 4, generator=generator, dtype=F64)
    rates, weights = torch.rand(2, 3, generator=generator, dtype=F64)
    weights = weights / weights.sum()
    gradients = 2 * (starts - targets)
    models = starts - rates[:, None] * gradients
    step = weights @ starts - (weights * rates) @ gradients
    torch.testing.assert_close(weights @ models, step)
    rounds, base, descended = OuterOptimizer(Momentum()), {"w": starts[0]}, starts[0]
    for _ in range(5):
        local = [{"w": base["w"] - 0.1 * 2 * (base["w"] - target)} for target in targets]
        base = rounds.step(base, local, weights.tolist())
        descended = descended - 0.1 * 2 * (descended - weights @ targets)
    torch.testing.assert_close(base["w"], descended)


# --- preconditioners ----------------------------------------------------------------------------------------


def test_the_best_merge_has_the_least_error_and_the_average_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = preconditioned_merge
    printed = run("preconditioned_merge", tmp_path / "picture.png", monkeypatch, capsys)
    metrics = torch.linalg.inv(study.PRECONDITIONERS)
    optimal = torch.linalg.solve(metrics.sum(0), torch.einsum("tij,tj->i", metrics, study.MODELS))
    for line, point in zip(printed.splitlines(), (study.MODELS.mean(0), optimal), strict=True):
        *place, error, round_loss = numbers(line)
        torch.testing.assert_close(torch.tensor(place, dtype=F64), point, rtol=0, atol=6e-5)  # printed
        steps = point - study.MODELS
        assert error == pytest.approx(float(torch.einsum("ti,tij,tj->", steps, metrics, steps)) / 2, abs=6e-5)
        assert round_loss == pytest.approx(float(steps.square().sum()) / 2, abs=6e-5)
    average, best = (numbers(line) for line in printed.splitlines())
    assert average[-2] > 19 * best[-2]
    assert average[-1] < best[-1]
    # No bound: the factor grows as the condition does.
    assert study.factor(1e8) == pytest.approx(1e8 / 4, rel=1e-6)


# --- heads of attention -------------------------------------------------------------------------------------


def test_a_merge_head_by_head_does_not_move_and_the_average_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("heads", tmp_path / "picture.png", monkeypatch, capsys)
    average, ours = (numbers(line) for line in printed.splitlines())
    assert min(average) > 0.3
    assert max(ours) <= 1e-12


def test_other_bases_are_the_same_function() -> None:
    layer = heads.draw_normal(2, 2, heads.WIDTH, heads.HEADS * heads.RANK)
    x = heads.draw_normal(heads.TOKENS, heads.WIDTH)
    torch.testing.assert_close(heads.attend(heads.rewrite(layer, 10.0), x), heads.attend(layer, x))
    merged = heads.merge_heads([layer, heads.rewrite(layer, 10.0)])  # of one function, in two writings
    torch.testing.assert_close(heads.attend(merged, x), heads.attend(layer, x))
    # By hand, head after head.
    output = torch.zeros_like(x)
    for first in range(0, heads.HEADS * heads.RANK, heads.RANK):
        (q, k), (v, o) = layer[..., first : first + heads.RANK]
        output += torch.softmax(x @ q @ (x @ k).T / heads.RANK**0.5, dim=1) @ (x @ v) @ o.T
    torch.testing.assert_close(heads.attend(layer, x), output)


# --- Fisher merging -----------------------------------------------------------------------------------------


def test_fisher_merging_minimises_a_bound_of_the_frechet_mean_s_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = fisher_as_frechet
    *places, toy = run("fisher_as_frechet", tmp_path / "picture.png", monkeypatch, capsys).splitlines()
    gaps = [abs(mean - fisher) for mean, fisher in (numbers(line.split(":")[1]) for line in places)]
    assert gaps[0] > 0.1
    assert 50 < gaps[1] / gaps[2] < 150  # e², from e = 0.1 to 0.01
    assert numbers(toy) == [0]
    theta = torch.linspace(-1, 5, 601, dtype=F64)
    true, bound = study.sums(theta)
    assert bool((true < bound).all())
    mean, fisher = study.merges(1.0)
    assert float(theta[true.argmin()]) == pytest.approx(mean, abs=0.01)
    assert float(theta[bound.argmin()]) == pytest.approx(fisher, abs=0.01)
    # At one covariance the distance is shorter than the Mahalanobis distance.
    first, second = study.gaussians(torch.tensor([0.0, 3.0], dtype=F64), torch.ones(2, dtype=F64))
    assert float(2 * HalfPlane().squared_dists(first, second)) < 0.8 * 3**2


def test_the_toy_s_fisher_matrix_is_the_expected_hessian_and_leaves_a_line_of_minimisers() -> None:
    network = torch.tensor([1.0, 2.0], dtype=F64)

    def surprise(theta: Tensor) -> Tensor:
        # At y = f(x), its expectation, where the Hessian is the expected one: it is linear in y.
        return (network.prod() - theta.prod()) ** 2 / 2

    full = fisher_as_frechet.toy_information(torch.stack((network, -network)))
    torch.testing.assert_close(full[0], torch.func.hessian(surprise)(network))
    torch.testing.assert_close(full[1], full[0])
    models = torch.stack((network, -network))
    least = fisher_as_frechet.fisher_merge(models, full)

    def quadratic(theta: Tensor) -> Tensor:
        return torch.einsum("ti,tij,tj->", theta - models, full, theta - models)

    for c in (-1.0, 0.5, 2.0):
        candidate = c * network * torch.tensor([1.0, -1.0], dtype=F64)
        torch.testing.assert_close(quadratic(candidate), quadratic(least))
        assert candidate.prod() < 0 < network.prod()


# --- networks whose units may change places -----------------------------------------------------------------


def test_the_mean_up_to_signed_permutations_is_as_good_as_the_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("rebasin", tmp_path / "picture.png", monkeypatch, capsys)
    average, permuted, signed = (numbers(line.replace(",", " ")) for line in printed.splitlines())
    ends = max(average[:2])
    assert average[2] > 8 * ends
    assert 1.5 * ends < permuted[2] < 3 * ends
    assert signed[2] < 1.1 * ends


def test_the_mean_of_a_network_and_its_copy_in_other_places_is_the_network() -> None:
    network = rebasin.draw_normal(5, rebasin.UNITS, 5)
    signs = rebasin.draw_normal(6, rebasin.UNITS, 1).sign()
    copy = (signs * network)[torch.randperm(rebasin.UNITS, generator=seeded(1))]
    data = rebasin.moons(3)
    torch.testing.assert_close(rebasin.loss(copy, *data), rebasin.loss(network, *data))  # tanh is odd
    mean = frechet_mean(Problem(rebasin.GEOMETRIES["with signs"], [network[None], copy[None]])).point[0]
    torch.testing.assert_close(rebasin.loss(mean, *data), rebasin.loss(network, *data))


# --- the toy problem ----------------------------------------------------------------------------------------


def test_the_toy_problem_averages_predictors_and_eq_15_needs_a_horizontal_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    three, two, horizontal, other = run(
        "toy_problem", tmp_path / "picture.png", monkeypatch, capsys
    ).splitlines()
    assert "mean on the quotient w = 4.000000" in three
    assert "plain average w = 0.000000, mean on the quotient w = 2.000000" in two
    assert numbers(horizontal)[-1] < 1e-12
    assert numbers(other)[-1] > 1e-2


def test_the_toy_s_mean_does_not_depend_on_gauges_and_the_average_does() -> None:
    first, second = toy_problem.network(1, 1), toy_problem.network(2, 3)
    averages = []
    for a in (-1.0, 0.5, 2.0):
        written = toy_problem.gauge(second, a)
        assert float(toy_problem.merge([first, written]).prod()) == pytest.approx(3.5, rel=1e-9)
        averages.append(float(((first + written) / 2).prod()))
    assert max(averages) - min(averages) > 1


# --- a bad adapter ------------------------------------------------------------------------------------------


def test_losses_that_bound_the_pull_of_a_point_ignore_a_bad_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("median_ignores_a_bad_adapter", tmp_path / "picture.png", monkeypatch, capsys)
    average, mean, median, huber, trimmed = (numbers(line) for line in printed.splitlines())
    assert average[-1] > 1000
    # One sixth of the way to a size 10,000 times as large.
    assert mean[-1] + 1 == pytest.approx(1e4 ** (1 / 6), rel=0.2)
    assert max(*median, *huber) < 0.1
    assert median[-1] < 1.1 * median[0]
    assert max(trimmed) < 1e-7
