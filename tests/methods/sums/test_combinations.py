"""Linear combinations by laws, by closed forms, and against mergekit (frozen), PEFT, scipy and torch."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from pymanopt.manifolds import Sphere
from safetensors import safe_open
from safetensors.torch import load_file
from scipy.spatial import geometric_slerp
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_avg_fn

from examples.merging_is_a_gradient_step import jacobian_at_the_diagonal, remainder_slope
from riemerge.errors import NumericalError
from riemerge.frechet.status import Status
from riemerge.methods.method import SUMS, Method
from riemerge.methods.setting import Setting
from riemerge.methods.sums import PARAMETERS, ROWS
from tests.fake_cuda import CUDA, fake_cuda, forbid_numpy
from tests.helpers import ROOT, seeded
from tests.methods.rows import Alone, answer_of
from tests.methods.substitution import merge_of

EPS = torch.finfo(torch.float64).eps
FROZEN = ROOT / "tests" / "oracles" / "combinations.safetensors"
SHAPES = [(3, 7), (6, 4), (5,), (1, 2)]
BY_NAME = {row.name: row for row in ROWS}
RUNS = ("ema", "swa", "lawa")  # whose weights are all alike
SPHERE = ("slerp", "nuslerp", "nuslerp_rows", "multislerp", "karcher")


def setting(weights: Sequence[float], **values: Any) -> Setting:
    return Setting("m", torch.tensor(weights, dtype=torch.float64), values, (0, 0))


def coefficients(name: str, x: Tensor, weights: Sequence[float], **values: Any) -> Tensor:
    flat = x.flatten(1)
    return answer_of(name, flat @ flat.T, list(weights), **values).value


def merged(name: str, x: Tensor, weights: Sequence[float], **values: Any) -> Tensor:
    if BY_NAME[name].domain in SUMS:
        return torch.tensordot(coefficients(name, x, weights, **values), x, dims=1)
    return answer_of(name, x, list(weights), **values).value


def models(shape: tuple[int, ...], count: int, seed: int, noise: float = 1.0) -> Tensor:
    """Models with a common part, so that they lie in one half of the directions."""
    generator = seeded(seed)
    common = torch.randn(shape, generator=generator, dtype=torch.float64)
    return common + noise * torch.randn(count, *shape, generator=generator, dtype=torch.float64) / 2


def weights_of(row: Method, count: int) -> list[float]:
    if row.name in RUNS:
        return [1.0 / count] * count
    total = count * (count + 1) / 2
    return [(place + 1) / total for place in range(count)]


def count_of(row: Method) -> int:
    return row.models[1] or 4


def close(found: Tensor, expected: Tensor, factor: float = 100.0) -> bool:
    """To round-off: a few dozen operations on numbers of the size of the expected ones."""
    return float((found - expected).abs().max()) <= factor * EPS * max(float(expected.abs().max()), EPS)


# --- laws of all rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_copies_merge_to_themselves_where_the_row_claims_it(row: Method, shape: tuple[int, ...]) -> None:
    count = count_of(row)
    x = models(shape, 1, 1).expand(count, *shape)
    assert row.idempotent
    assert close(merged(row.name, x, weights_of(row, count)), x[0])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_order_is_nothing_but_where_the_row_claims_it(row: Method) -> None:
    count = count_of(row)
    x, weights = models((4, 6), count, 2), weights_of(row, count)
    values = {"t": 0.3} if row.name == "slerp" else {"decay": 0.7} if row.name == "ema" else {}
    weights = [1.0] * count if row.name == "slerp" else weights  # t says it all
    values |= {"last": 2} if row.name == "lawa" else {}
    turned = merged(row.name, x.flip(0), weights[::-1], **values)
    same = close(turned, merged(row.name, x, weights, **values))
    assert same == (not row.ordered or row.name == "swa")  # a running mean of all is a mean


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_unit_of_the_weights_is_arbitrary(row: Method) -> None:
    count = count_of(row)
    x, weights = models((4, 6), count, 3), weights_of(row, count)
    assert close(merged(row.name, 2.0**-40 * x, weights), 2.0**-40 * merged(row.name, x, weights))


@pytest.mark.parametrize("row", [row for row in ROWS if row.models[0] == 1], ids=lambda row: row.name)
def test_one_model_is_its_own_mean(row: Method) -> None:
    x = models((4, 6), 1, 4)
    assert close(merged(row.name, x, [1.0]), x[0])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_zero_models_merge_to_zero(row: Method) -> None:
    count = count_of(row)
    x = torch.zeros(count, 3, 2, dtype=torch.float64)
    if row.name == "model_stock":  # its cosine is that of orthogonal updates
        assert not coefficients(row.name, x, weights_of(row, count)).any()
    assert torch.equal(merged(row.name, x, weights_of(row, count)), x[0])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_mean_stays_on_the_device_and_gives_the_same_bits(row: Method) -> None:
    count = count_of(row)
    x, weights = models((4, 6), count, 5), weights_of(row, count)
    seen = x.flatten(1) @ x.flatten(1).T if row.domain in SUMS else x
    expected = answer_of(row.name, seen, weights).value
    with fake_cuda(), forbid_numpy():
        value = answer_of(row.name, seen.to("cuda"), weights).value
        assert value.device == CUDA
        on_cpu = value.cpu()
    assert torch.equal(on_cpu, expected)


def test_every_parameter_of_the_rows_is_known_and_every_name_once() -> None:
    known = {"rank", "scale", "tol", "max_passes"} | {one.name for one in PARAMETERS}
    assert len(BY_NAME) == len(ROWS)
    for row in ROWS:
        assert set(row.parameters) <= known
        assert set(row.defaults) <= set(row.parameters)


# --- sums ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["task_arithmetic", "cat", "svd"])
def test_sums_are_the_weighted_sum_as_given(name: str) -> None:
    x, weights = models((4, 6), 3, 6), [2.0, -0.5, 0.25]
    assert close(merged(name, x, weights), 2.0 * x[0] - 0.5 * x[1] + 0.25 * x[2])


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_cat_and_svd_are_those_of_peft(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what third parties deprecate while they are imported is not ours
        peft = pytest.importorskip("peft")
    names, weights = ["one", "two", "three"], [0.5, -1.5, 0.25]
    layers = torch.nn.Sequential(torch.nn.Linear(9, 7, bias=False))
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0"], init_lora_weights=False)
    model = peft.get_peft_model(layers.double(), config, adapter_name="one")
    for name in names[1:]:
        model.add_adapter(name, config)
    layer = model.base_model.model[0]
    x = torch.stack([layer.get_delta_weight(name).detach().double() for name in names])
    model.add_weighted_adapter(
        names, weights, "out", combination_type=kind, svd_rank=2 if kind == "svd" else None
    )
    ours = merged(kind, x, weights)
    if kind == "svd":
        u, sigma, vt = torch.linalg.svd(ours)
        ours = u[:, :2] * sigma[:2] @ vt[:2]
    # PEFT keeps adapters in float32
    assert torch.allclose(ours, layer.get_delta_weight("out").detach().double(), rtol=0, atol=1e-6)


# --- arcs ---------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["slerp", "nuslerp", "karcher"])
@pytest.mark.parametrize("size", [2, 3, 20])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_two_unit_models_meet_on_the_arc_of_scipy(name: str, size: int, t: float) -> None:
    generator = seeded(size)
    x = torch.randn(2, size, generator=generator, dtype=torch.float64)
    x /= torch.linalg.vector_norm(x, dim=1, keepdim=True)
    expected = torch.from_numpy(geometric_slerp(x[0].numpy(), x[1].numpy(), t))
    # The mean of the sphere is found to a gradient of 1e-12, and its Hessian is at least 0.2 here.
    assert torch.allclose(
        merged(name, x, [1.0 - t, t]), expected, rtol=0, atol=1e-11 if name == "karcher" else 1e-14
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_slerp_begins_and_ends_at_its_models(shape: tuple[int, ...]) -> None:
    x = models(shape, 2, 7)
    for t, end in ((0.0, 0), (1.0, 1)):
        assert close(merged("slerp", x, [0.5, 0.5], t=t), x[end])


def test_t_comes_before_the_weights_and_the_weights_are_symmetric() -> None:
    x = models((3, 4), 2, 8)
    assert close(merged("slerp", x, [0.5, 0.5], t=0.2), merged("slerp", x, [0.8, 0.2]))
    there, back = coefficients("slerp", x, [0.8, 0.2]), coefficients("slerp", x.flip(0), [0.2, 0.8])
    assert torch.equal(there, back.flip(0))


def test_slerp_takes_the_chord_beyond_its_threshold() -> None:
    angle = math.acos(0.9995)
    for factor, chord in ((0.99, True), (1.01, False)):
        turned = [math.cos(factor * angle), math.sin(factor * angle)]
        x = torch.tensor([[1.0, 0.0], turned], dtype=torch.float64)
        assert (
            close(coefficients("slerp", x, [0.3, 0.7]), torch.tensor([0.3, 0.7], dtype=torch.float64))
            == chord
        )
        off = merged("slerp", x, [0.3, 0.7]) - merged("nuslerp", x, [0.3, 0.7])
        assert torch.linalg.vector_norm(off) <= 1.3e-4  # as the docstring says


def test_slerp_refuses_what_its_chord_would_take_past_zero() -> None:
    angle = math.acos(-0.9995)
    near, far = (
        torch.tensor([[1.0, 0.0], [math.cos(f * angle), math.sin(f * angle)]], dtype=torch.float64)
        for f in (0.999, 1.0001)
    )
    assert close(merged("slerp", near, [0.3, 0.7]), merged("nuslerp", near, [0.3, 0.7]), factor=1e3)
    with pytest.raises(NumericalError, match="opposite"):
        merged("slerp", far, [0.3, 0.7])
    for t, end in ((0.0, 0), (1.0, 1)):
        assert close(merged("slerp", far, [0.5, 0.5], t=t), far[end])


@pytest.mark.parametrize("name", SPHERE)
@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.75, 0.25]])
def test_opposite_models_have_no_mean_on_the_sphere(name: str, weights: list[float]) -> None:
    x = models((3, 4), 1, 9)[0]
    opposite = torch.stack([x, -3.0 * x])
    if name == "multislerp" and weights[0] != weights[1]:
        assert close(merged(name, opposite, weights), x * 1.5)  # one direction is left, at the mean norm
        return
    with pytest.raises(NumericalError, match=r"opposite|cancel|more than half of all directions"):
        merged(name, opposite, weights)


def test_one_opposite_row_is_refused_and_a_row_of_one_number_has_no_direction() -> None:
    x = models((5, 6), 2, 10)
    x[1, 3] = -2.0 * x[0, 3]
    with pytest.raises(NumericalError, match="in 1 of 5 rows opposite"):
        merged("nuslerp_rows", x, [0.3, 0.7])
    column = torch.tensor([[[1.0], [2.0]], [[-1.0], [4.0]]], dtype=torch.float64)
    mean = torch.tensor([[-0.4], [3.4]], dtype=torch.float64)
    assert close(merged("nuslerp_rows", column, [0.3, 0.7]), mean)


def test_nuslerp_keeps_the_arc_down_to_close_models() -> None:
    for angle in (1e-2, 1e-4, 1e-6):
        x = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
        expected = torch.tensor([math.cos(0.3 * angle), math.sin(0.3 * angle)], dtype=torch.float64)
        assert close(merged("nuslerp", x, [0.7, 0.3]), expected)


def test_rows_of_nuslerp_are_each_merged_alone_and_turn_with_their_models() -> None:
    x = models((5, 6), 2, 10)
    x[:, 2] = 0.0  # a row that no model has
    found = merged("nuslerp_rows", x, [0.3, 0.7])
    for place in range(5):
        assert close(found[place], merged("nuslerp", x[:, place], [0.3, 0.7]))
    turn = torch.linalg.qr(torch.randn(6, 6, generator=seeded(0), dtype=torch.float64))[0]
    assert close(merged("nuslerp_rows", x @ turn, [0.3, 0.7]), found @ turn)


# --- directions ---------------------------------------------------------------------------------------------


def circle(angles: Tensor, norms: Tensor) -> Tensor:
    return norms[:, None] * torch.stack([angles.cos(), angles.sin()], dim=1)


@pytest.mark.parametrize("spread", [1.5, 0.3, 1e-3, 1e-7, 0.0])
def test_on_a_circle_the_spherical_mean_is_the_mean_angle(spread: float) -> None:
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    angles = 0.7 + spread * torch.tensor([-1.0, 0.9, 0.2, -0.4], dtype=torch.float64)
    norms = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    angle, norm = weights @ angles, weights @ norms
    expected = norm * torch.stack([angle.cos(), angle.sin()])
    assert torch.allclose(
        merged("karcher", circle(angles, norms), weights.tolist()), expected, rtol=0, atol=1e-11
    )


@pytest.mark.oracle
@pytest.mark.parametrize("noise", [1.5, 0.1, 1e-4])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_gradient_of_pymanopts_sphere_vanishes_at_the_spherical_mean(count: int, noise: float) -> None:
    x, weights = models((4, 6), count, 11, noise), weights_of(BY_NAME["karcher"], count)
    found = merged("karcher", x, weights).flatten()
    norms = torch.linalg.vector_norm(x.flatten(1), dim=1)
    norm = torch.linalg.vector_norm(found)
    assert close(norm, torch.tensor(weights, dtype=torch.float64) @ norms)
    sphere, mean = Sphere(24), (found / norm).numpy()
    logs = [sphere.log(mean, (one.flatten() / size).numpy()) for one, size in zip(x, norms, strict=True)]
    gradient = sum(weight * log for weight, log in zip(weights, logs, strict=True))
    # Pymanopt's log takes the angle from a cosine, which is round-off / angle off; it points the same way.
    assert sphere.norm(mean, gradient) <= 1e-12 + 4.0 * EPS * count / max(noise, 1e-4)


def test_far_directions_with_uneven_weights_end_on_the_arc() -> None:
    for angle in (2.0, 3.0, 3.1):
        x = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
        for weights in ([0.9, 0.1], [0.7, 0.3], [0.55, 0.45]):
            expected = merged("nuslerp", x, weights)
            assert torch.allclose(merged("karcher", x, weights), expected, rtol=0, atol=1e-9)


def test_a_spherical_mean_that_may_not_be_unique_is_refused() -> None:
    thirds = torch.tensor([0.0, 2.0, 4.1], dtype=torch.float64) * math.pi / 3.0
    with pytest.raises(NumericalError, match="more than half of all directions"):
        merged("karcher", circle(thirds, torch.ones(3).double()), [0.5, 0.3, 0.2])


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.8, 0.2]])
def test_opposite_directions_have_no_spherical_mean(weights: list[float]) -> None:
    x = models((3, 4), 1, 12)[0]
    with pytest.raises(NumericalError, match="more than half of all directions"):
        merged("karcher", torch.stack([x, -2.0 * x]), weights)


def test_directions_of_three_models_that_cancel_are_refused() -> None:
    thirds = torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64) * math.pi / 3.0
    x = circle(thirds, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    for name, reason in (("multislerp", "cancel"), ("karcher", "more than half of all directions")):
        with pytest.raises(NumericalError, match=reason):
            merged(name, x, [1 / 3, 1 / 3, 1 / 3])


def test_a_budget_that_runs_out_is_said() -> None:
    x = models((4, 6), 5, 13)
    flat = x.flatten(1)
    row = BY_NAME["karcher"]
    weights = weights_of(row, 5)
    answer = answer_of("karcher", flat @ flat.T, weights, max_passes=2)
    assert (answer.status, answer.ok, answer.passes) == (Status.BUDGET, False, 2)
    assert "max_passes" in answer.advice
    answer = answer_of("karcher", flat @ flat.T, weights)
    assert answer.ok
    assert 2 < answer.passes < 60


@pytest.mark.parametrize("name", ["karcher", "multislerp"])
def test_a_zero_model_has_no_direction_and_counts_by_its_norm(name: str) -> None:
    x = models((3, 4), 3, 14)
    x[1] = 0.0
    without = merged(name, x[[0, 2]], [0.4, 0.6])
    assert close(merged(name, x, [0.2, 0.5, 0.3]), 0.5 * without)


def test_a_merge_in_directions_has_the_mean_norm() -> None:
    x, weights = models((4, 6), 4, 15), [0.1, 0.2, 0.3, 0.4]
    norm = torch.tensor(weights, dtype=torch.float64) @ torch.linalg.vector_norm(x.flatten(1), dim=1)
    for name in ("multislerp", "karcher"):
        assert close(torch.linalg.vector_norm(merged(name, x, weights)), norm)


# --- model stock --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_model_stock_is_nearest_to_the_centre_of_evenly_spread_updates(count: int, spread: float) -> None:
    # The paper's picture: updates around a centre, their differences from it orthogonal to it and each other.
    frame = torch.linalg.qr(torch.randn(9, count + 1, generator=seeded(count), dtype=torch.float64))[0].T
    centre = 2.0 * frame[0]
    x = centre + spread * frame[1:]
    found = merged("model_stock", x, [1.0 / count] * count)
    average = x.mean(dim=0)
    assert abs(float(average @ (centre - found))) <= 100 * EPS * float(average @ average)
    assert close(found, average * (found @ average) / (average @ average))


def test_model_stock_of_orthogonal_updates_is_the_base_and_of_opposed_ones_is_refused() -> None:
    x = torch.linalg.qr(torch.randn(6, 3, generator=seeded(1), dtype=torch.float64))[0].T
    assert float(coefficients("model_stock", x, [0.2, 0.3, 0.5]).abs().max()) <= 100 * EPS
    with pytest.raises(NumericalError, match="mean cosine"):
        merged("model_stock", torch.stack([x[0], -x[0]]), [0.5, 0.5])


def test_the_weights_of_model_stock_are_the_shares_of_its_mean() -> None:
    x = models((4, 6), 3, 16)
    uniform = coefficients("model_stock", x, [1 / 3, 1 / 3, 1 / 3])
    shares = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    assert close(coefficients("model_stock", x, shares.tolist()), 3.0 * uniform * shares)


# --- runs ---------------------------------------------------------------------------------------------------


def averaged(x: Tensor, **how: Any) -> Tensor:
    """Torch's average over the checkpoints of a run of one layer."""
    layer = torch.nn.Linear(x.shape[2], x.shape[1], bias=False).double()
    average = None
    for one in x:
        layer.load_state_dict({"weight": one})
        average = average or AveragedModel(layer, **how)
        average.update_parameters(layer)
    assert average is not None
    return average.module.get_parameter("weight").detach()


@pytest.mark.oracle
@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("decay", [0.999, 0.9, 0.5, 0.0, 1.0])
def test_ema_is_that_of_torch(decay: float, count: int) -> None:
    x = models((3, 5), count, 17)
    expected = averaged(x, multi_avg_fn=get_ema_multi_avg_fn(decay))
    assert close(merged("ema", x, [1.0 / count] * count, decay=decay), expected)


@pytest.mark.oracle
@pytest.mark.parametrize("count", [1, 2, 7])
def test_swa_is_that_of_torch(count: int) -> None:
    x = models((3, 5), count, 18)
    assert close(merged("swa", x, [1.0 / count] * count), averaged(x, avg_fn=get_swa_avg_fn()))


@pytest.mark.parametrize("last", [1, 3, 9])
def test_lawa_is_the_mean_of_a_queue(last: int) -> None:
    x = models((3, 5), 7, 19)
    queue = deque(x, maxlen=last)
    assert close(merged("lawa", x, [1 / 7] * 7, last=last), torch.stack(list(queue)).mean(dim=0))


@pytest.mark.parametrize("name", RUNS)
def test_weights_of_a_run_are_refused(name: str) -> None:
    with pytest.raises(NumericalError, match="order of the checkpoints"):
        merged(name, models((3, 5), 2, 20), [0.4, 0.6])


# --- mergekit -----------------------------------------------------------------------------------------------

ORACLE: Mapping[str, Tensor] = load_file(FROZEN)
CASES = sorted({name.rsplit("/", 1)[0] for name in ORACLE if name.count("/") == 2})
# Mergekit adds 1e-8 to norms before it divides; a gradient of 1e-12 leaves 1e-11 where the Hessian is 0.1.
TOLERANCES = {"multislerp": 1e-7, "karcher": 1e-11}
EVEN = ("karcher", "model_stock")  # mergekit has no weights for these


def frozen(case: str) -> tuple[Tensor, list[float]]:
    return ORACLE[f"{case.rsplit('/', 1)[0]}/x"], ORACLE[f"{case}/weights"].tolist()


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_rows_agree_with_mergekit(case: str) -> None:
    x, weights = frozen(case)
    size = float(x.abs().max())
    compared = 0
    for name in BY_NAME:
        if f"{case}/{name}" not in ORACLE:
            continue
        given = [1.0 / len(weights)] * len(weights) if name in EVEN else weights
        tolerance = TOLERANCES.get(name, 1e-13) * size
        assert torch.allclose(merged(name, x, given), ORACLE[f"{case}/{name}"], rtol=0, atol=tolerance), name
        compared += 1
    assert compared >= 5
    if len(weights) == 2:  # a base that is zero changes nothing
        assert close(merged("nuslerp", x, weights), ORACLE[f"{case}/nuslerp on a base"])


@pytest.mark.oracle
@pytest.mark.parametrize("case", [case for case in CASES if case.endswith("4/0") and "tiny" not in case])
def test_mergekits_karcher_stops_before_the_mean(case: str) -> None:
    x, weights = frozen(case)
    ours = merged("karcher", x, weights)
    off = torch.linalg.vector_norm(ORACLE[f"{case}/karcher as it is"] - ours) / torch.linalg.vector_norm(ours)
    assert off > 1e-9  # with its own tolerance of 1e-5 and 10 passes; we are within 1e-11


@pytest.mark.oracle
def test_mergekits_model_stock_takes_small_updates_for_orthogonal() -> None:
    # It divides by norms of at least 1e-6 together: a fault, as the method has no unit. Ours does not move.
    x = ORACLE["small norms/x"]
    ours = merged("model_stock", x, [1 / 3] * 3)
    assert close(ours, 1e-5 * merged("model_stock", 1e5 * x, [1 / 3] * 3))
    theirs = ORACLE["small norms/model_stock"]
    assert torch.linalg.vector_norm(theirs) < 0.1 * torch.linalg.vector_norm(ours)


def test_the_oracle_says_what_it_was() -> None:
    with safe_open(FROZEN, "pt") as file:
        assert file.metadata()["oracle"].startswith("mergekit 0.1.")


# --- local-model substitution -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3), (4,)])
@pytest.mark.parametrize("name", ["average", *SPHERE, *RUNS])
def test_substitution_recovers_gradient_descent(name: str, shape: tuple[int, ...]) -> None:
    row = BY_NAME[name]
    weights = [0.5, 0.5] if name in RUNS else [0.7, 0.3]
    values = dict(row.defaults) | ({"decay": 0.8} if name == "ema" else {})
    merge = merge_of(Alone(row), setting(weights, **values), row.domain)
    point, direction = models(shape, 2, 21)
    jacobian = jacobian_at_the_diagonal(merge, point)
    share = {"swa": 0.5, "lawa": 0.5, "ema": 0.2}.get(name, 0.3)
    # Every one is the share of the second model to first order: none has a preconditioner of its own.
    atol = 1e-8 if name == "karcher" else 1e-9  # solved to 1e-12, over a step of 5e-4
    assert torch.allclose(jacobian, share * torch.eye(point.numel(), dtype=torch.float64), rtol=0, atol=atol)
    slope = remainder_slope(merge, point, direction / torch.linalg.vector_norm(direction), jacobian)
    assert slope >= 1.9
    if name != "slerp":  # which is linear as far as its chord reaches
        assert (slope == math.inf) == (name in {"average", *RUNS})
