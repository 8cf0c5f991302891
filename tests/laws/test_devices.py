"""The fake CUDA device computes what the CPU does, refuses what CUDA refuses and counts what CUDA waits
for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fake_cuda import CUDA, CudaTensor, fake_cuda, forbid_numpy

IS_AVAILABLE = torch.cuda.is_available

# --- helpers ------------------------------------------------------------------------------------------------


def matrices() -> tuple[Tensor, Tensor, Tensor]:
    """Square matrices (4, 3, 3), symmetric positive definite ones and tall ones (4, 5, 3), float64."""
    generator = torch.Generator().manual_seed(7)
    tall = torch.randn(4, 5, 3, dtype=torch.float64, generator=generator)
    square = torch.randn(4, 3, 3, dtype=torch.float64, generator=generator)
    return square, tall.mT @ tall, tall


def assert_same(fake: Any, real: Any) -> None:
    """Every tensor of `fake` is on the fake device, and its numbers, shape and dtype are those of `real`."""
    if isinstance(real, Tensor):
        assert isinstance(fake, CudaTensor)
        assert fake.device == CUDA
        assert fake.shape == real.shape
        assert fake.dtype == real.dtype
        # The same kernels run, but torch may choose another driver or order of summation for a subclass
        # (eigvalsh does).
        torch.testing.assert_close(fake.detach().cpu(), real.detach(), rtol=1e-13, atol=1e-13, equal_nan=True)
    elif isinstance(real, tuple | list):
        assert len(fake) == len(real)
        for one, other in zip(fake, real, strict=True):
            assert_same(one, other)
    else:
        assert fake == real


def set_in_place(x: Tensor, index: Any, value: Any) -> Tensor:
    y = x.clone()
    y[index] = value
    return y


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    # arithmetic
    "plus minus": lambda x, s, t: x + s - 1,
    "times over": lambda x, s, t: 2.0 * x / s / 3,
    "numpy scalar on the left": lambda x, s, t: np.float64(2) * x + np.float64(1) / s - (np.float64(3) - x),
    "numpy scalar on the right": lambda x, s, t: (x * np.float64(2) + np.float64(1)) / np.float64(3),
    "numpy scalar keeps float32": lambda x, s, t: np.float64(2) * x.float() - x.float() * np.float64(3),
    "0-d CPU tensor": lambda x, s, t: torch.tensor(2.0) * x + torch.tensor(1.0),
    "power, negative, absolute value": lambda x, s, t: abs(-x) ** 2,
    "compare": lambda x, s, t: (x < s) & ~(x == s) | (x >= 0),
    "in place": lambda x, s, t: x.clone().add_(s).mul_(2).sub_(1).div_(s),
    "augmented": lambda x, s, t: [y := x.clone(), y.__iadd__(s)],
    "addcmul": lambda x, s, t: torch.addcmul(x, s, s, value=2),
    "lerp": lambda x, s, t: torch.lerp(x, s, 0.25),
    # shapes and views
    "cat stack": lambda x, s, t: (torch.cat([t, x], dim=-2), torch.stack([x, s])),
    "split chunk unbind": lambda x, s, t: (*t.split([2, 3], dim=-2), *x.chunk(2), *s.unbind(0)),
    "views": lambda x, s, t: (t.reshape(4, 15), x.flatten(), t.view(2, 2, 15), x[None], x.squeeze(0), x.mT),
    "permute movedim unsqueeze": lambda x, s, t: (t.permute(2, 0, 1), t.movedim(0, -1), x.unsqueeze(-1)),
    "slices": lambda x, s, t: (t[..., :2, 1:], t[1], t[:, None, 2], t[-1, ..., 0]),
    "narrow select": lambda x, s, t: (t.narrow(1, 1, 3), t.select(1, 2)),
    "integer index": lambda x, s, t: (
        t[[0, 2]],
        t[torch.tensor([3, 1])],
        t.index_select(0, (x[:2, 0, 0] > 9).long()),
    ),
    "boolean index": lambda x, s, t: (x[x > 0], x[x[:, 0, 0] > 0]),
    "expand repeat": lambda x, s, t: (
        x[:, None].expand(4, 2, 3, 3),
        x.repeat(2, 1, 1),
        torch.broadcast_tensors(x, s),
    ),
    "broadcast_to": lambda x, s, t: x[0].broadcast_to(4, 3, 3) + s,
    "flip roll": lambda x, s, t: (x.flip(-1), x.roll(1, 0)),
    "triangles": lambda x, s, t: (x.tril(), x.triu(1), torch.tril(x, -1)),
    "diagonals": lambda x, s, t: (
        x.diagonal(dim1=-2, dim2=-1),
        torch.diag_embed(x[..., 0]),
        torch.diag(x[0]),
    ),
    "write into a mask": lambda x, s, t: set_in_place(x, x > 0, 0.0),
    "write tensor into a mask": lambda x, s, t: set_in_place(x, x[:, 0, 0] > 0, s[x[:, 0, 0] > 0]),
    "write into a slice": lambda x, s, t: set_in_place(x, (..., slice(0, 2)), s[..., :2]),
    "write numpy scalar": lambda x, s, t: set_in_place(x, 1, np.float64(3)),
    "write through a view": lambda x, s, t: [
        y := x.clone(),
        y[:, :2].copy_(s[:, :2]),
        y.diagonal(0, -2, -1).fill_(7),
    ],
    "index_add scatter": lambda x, s, t: x.clone().index_add_(0, (x[:2, 0, 0] > 9).long(), s[:2]),
    "masked": lambda x, s, t: (x.masked_fill(x > 0, 2.0), torch.masked_select(x, x > 0)),
    # elementary functions
    "trigonometry": lambda x, s, t: (
        x.sin(),
        x.cos(),
        torch.atan2(x, s),
        x.tanh(),
        torch.sinc(x),
        x.clamp(-1, 1).acos(),
    ),
    "exp log sqrt": lambda x, s, t: (
        x.exp(),
        s.abs().log(),
        s.abs().sqrt(),
        s.abs().rsqrt(),
        x.sinh(),
        x.log1p(),
    ),
    "where clamp": lambda x, s, t: (
        torch.where(x > 0, x, s),
        torch.where(x > 0, x, 0.0),
        x.clamp(min=0),
        x.clamp_max(1),
    ),
    "extrema": lambda x, s, t: (torch.maximum(x, s), x.minimum(s), *x.max(dim=-1), x.amax((-2, -1)), x.min()),
    "rounding and signs": lambda x, s, t: (
        x.round(),
        x.sign(),
        torch.copysign(x, s),
        torch.isfinite(x),
        x.isnan(),
    ),
    "nan_to_num": lambda x, s, t: torch.nan_to_num(x / (x - x)),
    # reductions and order
    "sums": lambda x, s, t: (x.sum(), x.mean(-1), x.prod(-1), x.cumsum(-1), x.std(-1), x.logsumexp(-1)),
    "all any": lambda x, s, t: ((x < 9).all(), (x > 9).any(dim=-1), torch.count_nonzero(x > 0)),
    "order": lambda x, s, t: (
        *x.sort(dim=-1, descending=True),
        *x.topk(2),
        x.argmin(-1),
        x.argmax(),
        x.argsort(-1),
    ),
    "gather": lambda x, s, t: (x.gather(-1, x.argsort(-1)), torch.take_along_dim(x, x.argsort(-1), -1)),
    "median": lambda x, s, t: (x.flatten().median(), *x.median(-1)),
    "nonzero unique": lambda x, s, t: (x.nonzero(), (x > 0).unique()),
    "searchsorted bucketize": lambda x, s, t: torch.searchsorted(x.flatten().sort().values, s.flatten()),
    # linear algebra
    "matmul": lambda x, s, t: (
        t @ s,
        x @ s,
        t.mT @ t,
        torch.bmm(x, s),
        t[0] @ x[0, 0],
        torch.baddbmm(x, x, s),
    ),
    "einsum": lambda x, s, t: (torch.einsum("kij,kij->k", x, s), torch.einsum("kia,kab->kib", t, s)),
    "trace and outer": lambda x, s, t: (x[0].trace(), torch.outer(x[0, 0], s[0, 0]), torch.kron(x[0], s[0])),
    "qr": lambda x, s, t: torch.linalg.qr(t),
    "svd": lambda x, s, t: (torch.linalg.svd(t, full_matrices=False), torch.linalg.svdvals(t)),
    "eigh": lambda x, s, t: (torch.linalg.eigh(s), torch.linalg.eigvalsh(s)),
    "cholesky": lambda x, s, t: (
        torch.linalg.cholesky(s),
        torch.linalg.cholesky_ex(s),
        torch.cholesky_inverse(s),
    ),
    "determinants": lambda x, s, t: (torch.linalg.det(x), torch.linalg.slogdet(x), torch.logdet(s)),
    "solve": lambda x, s, t: (torch.linalg.solve(x, s), torch.linalg.inv(x), torch.linalg.solve_ex(x, s)),
    "solve_triangular": lambda x, s, t: torch.linalg.solve_triangular(s.tril(), x, upper=False),
    "lstsq pinv": lambda x, s, t: (torch.linalg.lstsq(t, t[..., :1]).solution, torch.linalg.pinv(t)),
    "norms": lambda x, s, t: (
        torch.linalg.norm(x),
        torch.linalg.vector_norm(x, dim=(-2, -1)),
        torch.linalg.matrix_norm(x, 2),
        x.norm(dim=-1),
    ),
    "matrix_exp and powers": lambda x, s, t: (torch.linalg.matrix_exp(x), torch.linalg.matrix_power(x, 3)),
    "multi_dot, cross, vecdot": lambda x, s, t: (
        torch.linalg.multi_dot([x[0], s[0], x[1]]),
        torch.linalg.cross(x, s),
        torch.linalg.vecdot(x, s),
    ),
    "complex": lambda x, s, t: (torch.complex(x, s).abs(), torch.linalg.eigvals(s).abs().sort(-1).values),
    "forward derivative": lambda x, s, t: torch.func.jvp(lambda y: y @ y.mT, (x.detach(),), (s.detach(),)),
    # factories and types
    "like": lambda x, s, t: (
        torch.zeros_like(x),
        torch.ones_like(x),
        torch.full_like(x, 3),
        x.new_zeros(2),
        x.new_ones(2),
    ),
    "new_tensor": lambda x, s, t: (x.new_tensor([1.0, 2.0]), x.new_full((2,), 3.0)),
    "factories by device": lambda x, s, t: (
        torch.eye(3, dtype=x.dtype, device=x.device).expand(4, 3, 3) + x,
        torch.arange(3, device=x.device),
        torch.zeros(2, 3, device=x.device),
        torch.ones(2, device=x.device, dtype=torch.bool),
        torch.full((2,), 3.0, device=x.device),
        torch.linspace(0, 1, 3, device=x.device),
        torch.tensor([1.0, 2.0], device=x.device),
        torch.as_tensor(np.ones(2), device=x.device),
        torch.tril_indices(3, 3, device=x.device),
        torch.empty(0, device=x.device),
    ),
    "dtypes": lambda x, s, t: (
        x.float(),
        x.to(torch.bfloat16),
        x.to(torch.float32).double(),
        x.bool(),
        x.type_as(s),
    ),
    "copies": lambda x, s, t: (
        x.clone(),
        x.detach(),
        x.contiguous(),
        torch.empty_like(x).copy_(s),
        x.mT.contiguous(),
    ),
    "out": lambda x, s, t: torch.matmul(x, s, out=torch.empty_like(x)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_the_numbers_of_the_cpu_on_the_device(name: str) -> None:
    operation = OPERATIONS[name]
    real = operation(*matrices())
    with fake_cuda():
        fake = operation(*(x.to("cuda") for x in matrices()))
    assert_same(fake, real)


@pytest.mark.parametrize(
    "name",
    [name for name in OPERATIONS if name != "out"],  # torch refuses to differentiate `out=`
)
def test_backward_gives_the_numbers_of_the_cpu_on_the_device(name: str) -> None:
    """Through every differentiable output of every operation; x, s and t enter through a product, so all are
    leaves."""

    def gradients(device: str) -> list[Tensor | None]:
        leaves = [x.to(device).requires_grad_() for x in matrices()]
        outputs = OPERATIONS[name](*(x * 1 for x in leaves))
        differentiable = [y for y in flat(outputs) if y.requires_grad]
        if not differentiable:
            return []
        squares = [(y.double() ** 2).sum() for y in differentiable if not y.is_complex()]
        total = sum(squares, torch.zeros((), device=device))
        return list(torch.autograd.grad(total, leaves, allow_unused=True))

    real = gradients("cpu")
    with fake_cuda():
        fake = gradients("cuda")
    assert_same(fake, real)


def flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for output in outputs for tensor in flat(output)]


class Doubled(torch.autograd.Function):
    """2x, whose backward makes a tensor of its own with or without a device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, careless: bool) -> Tensor:
        ctx.careless = careless
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        two = torch.full(x.shape, 2.0, dtype=x.dtype, device=None if ctx.careless else x.device)
        return grad * two, None


def test_autograd_functions_run_and_a_device_forgotten_in_backward_is_caught() -> None:
    with fake_cuda():
        x = torch.arange(3.0, device="cuda").requires_grad_()
        (gradient,) = torch.autograd.grad((Doubled.apply(x, False) ** 2).sum(), x)
        assert_same(gradient, torch.tensor([0.0, 8.0, 16.0]))
        with pytest.raises(RuntimeError, match="same device"):
            torch.autograd.grad((Doubled.apply(x, True) ** 2).sum(), x)


def test_second_derivatives_stay_on_the_device() -> None:
    with fake_cuda():
        x = torch.tensor([1.0, 2.0], device="cuda").requires_grad_()
        (gradient,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
        (product,) = torch.autograd.grad(gradient @ torch.ones(2, device="cuda"), x)
        assert_same(product, torch.tensor([6.0, 12.0]))


def test_gradients_flow_from_the_device_to_the_cpu_and_accumulate() -> None:
    with fake_cuda():
        leaf = torch.ones(3, dtype=torch.float64, requires_grad=True)
        (leaf.to("cuda").float() ** 2).sum().cpu().backward()
        assert type(leaf.grad) is Tensor
        assert leaf.grad.tolist() == [2.0, 2.0, 2.0]
        on_device = torch.ones(2, device="cuda", requires_grad=True)
        (3 * on_device).sum().backward()
        assert on_device.grad is not None
        with torch.no_grad():
            on_device -= 0.5 * on_device.grad
        assert_same(on_device, torch.tensor([-0.5, -0.5]))
        assert on_device.requires_grad
        assert on_device.is_leaf
        assert not on_device.detach().requires_grad


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.to("cuda"),
        lambda x: x.to("cuda:0"),
        lambda x: x.to(torch.device("cuda")),
        lambda x: x.to(device="cuda"),
        lambda x: x.to(torch.device("cuda"), x.dtype),
        lambda x: x.to(torch.zeros(1, dtype=x.dtype, device="cuda")),
        lambda x: x.cuda(),
        lambda x: torch.as_tensor(x, device="cuda"),
        lambda x: torch.tensor(x.tolist(), dtype=x.dtype, device="cuda"),
        lambda x: torch.zeros_like(x, device="cuda").copy_(x),
        lambda x: x.new_tensor(x.tolist(), device="cuda"),
    ],
)
def test_ways_to_the_device_and_back(move: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    with fake_cuda():
        moved = move(x)
        assert_same(moved, x)
        assert moved.is_cuda
        assert moved.device.type == "cuda"
        assert moved.to(moved.device) is moved
        for back in (
            moved.cpu(),
            moved.to("cpu"),
            moved.to(x.device),
            moved.to(x),
            torch.zeros(2).double().copy_(moved),
        ):
            assert type(back) is Tensor
            assert torch.equal(back, x)


def test_within_a_device_context_factories_make_tensors_there() -> None:
    with fake_cuda(), torch.device("cuda"):
        assert_same(torch.zeros(2), torch.zeros(2, device="cpu"))


def test_numbers_leave_one_at_a_time() -> None:
    with fake_cuda():
        x = torch.tensor([1.5, -2.0], device="cuda")
        assert x[0].item() == float(x[0]) == np.float64(x[0].item()) == 1.5
        assert bool((x > -3).all())
        assert not (x > 3).any()
        assert int(x[1]) == -2
        assert f"{x[0]:.2f}" == "1.50"
        assert x.tolist() == [1.5, -2.0]
        assert torch.tensor([x[0], x[1]]).tolist() == [1.5, -2.0]
        assert "1.5" in repr(x)
        assert torch.equal(x, x.clone())
        assert torch.allclose(x, x + 1e-9)


MIXED: dict[str, Callable[[Tensor], Any]] = {
    "eye without device": lambda x: x @ torch.eye(3),
    "arange without device": lambda x: x + torch.arange(3.0),
    "cat": lambda x: torch.cat([x, torch.zeros(3, 3)]),
    "stack of scalars": lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    "where": lambda x: torch.where(torch.ones(3, 3, dtype=torch.bool), x, x),
    "solve": lambda x: torch.linalg.solve(x, torch.eye(3)),
    "into the device": lambda x: x.add_(torch.ones(3, 3)),
    "into the CPU": lambda x: torch.zeros(3, 3).add_(x),
    "0-d CPU tensor as target": lambda x: torch.tensor(0.0).add_(x.sum()),
    "0-d CUDA tensor with a CPU matrix": lambda x: torch.eye(3) * x.sum(),
    "CPU tensor, CUDA index": lambda x: torch.zeros(3)[(x[0] > 9).long()],
    "values of another device": lambda x: x.index_put_((torch.tensor([0]),), torch.zeros(1, 3)),
    "out": lambda x: torch.matmul(x, x, out=torch.empty(3, 3)),
    "default vector of einsum": lambda x: torch.einsum("ij,j->i", x, torch.ones(3)),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixing_devices_is_refused(name: str) -> None:
    with fake_cuda():
        x = torch.eye(3, device="cuda")
        with pytest.raises(RuntimeError, match="same device"):
            MIXED[name](x)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.numpy(),
        np.asarray,
        np.array,
        np.sqrt,
        lambda x: np.sum(x),
        lambda x: np.isnan(x.sum()),
        lambda x: np.ones(3) * x,
        lambda x: x * np.ones(3),
        lambda x: np.linalg.norm(x),
    ],
)
def test_numpy_conversions_are_refused(convert: Callable[[Tensor], Any]) -> None:
    with fake_cuda():
        x = torch.ones(3, device="cuda")
        with pytest.raises((TypeError, RuntimeError)):
            convert(x)


def test_a_cpu_generator_is_refused_and_its_numbers_can_be_moved() -> None:
    with fake_cuda():
        generator = torch.Generator().manual_seed(1)
        assert torch.randn(2, generator=generator).to("cuda").is_cuda
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(2, generator=generator, device="cuda")


def test_an_operation_in_place_returns_its_tensor() -> None:
    with fake_cuda(), torch.inference_mode():  # without autograd's kernels, which see to it themselves
        x = torch.ones(2, device="cuda")
        assert x.add_(1) is x
        assert torch.mul(x, 2, out=x) is x
        assert x.tolist() == [4.0, 4.0]


def test_shapes_do_not_change_in_place() -> None:
    with fake_cuda():
        x = torch.ones(2, 3, device="cuda")
        with pytest.raises(NotImplementedError, match="in place"):
            x.t_()


@pytest.mark.parametrize(
    ("use", "synchronisations", "uploads"),
    [
        (lambda x: x @ x + 1, 0, 0),
        (lambda x: x.masked_fill(x > 0, 0.0), 0, 0),
        (lambda x: torch.linalg.cholesky_ex(x), 0, 0),
        (lambda x: torch.linalg.qr(x), 0, 0),
        (lambda x: x.sum().item(), 1, 0),
        (lambda x: bool((x > 0).all() & (x < 9).all()), 1, 0),
        (lambda x: [float(row.sum()) for row in x], 3, 0),
        (lambda x: x.cpu(), 1, 0),
        (lambda x: torch.zeros(3, 3).copy_(x), 1, 0),
        (lambda x: x.tolist(), 1, 0),
        (lambda x: x[x > 0], 1, 0),
        (lambda x: x.nonzero(), 1, 0),
        (lambda x: torch.linalg.cholesky(x), 1, 0),
        (lambda x: torch.linalg.eigh(x), 1, 0),
        (lambda x: torch.tensor([1.0], device="cuda"), 0, 1),
        (lambda x: x[[0, 1]], 0, 1),
        (lambda x: x.copy_(torch.zeros(3, 3)), 0, 1),
        (lambda x: x.to("cuda"), 0, 0),
        (lambda x: x.clone(), 0, 0),
    ],
)
def test_traffic_is_counted(use: Callable[[Tensor], Any], synchronisations: int, uploads: int) -> None:
    with fake_cuda() as traffic:
        use(torch.eye(3, device="cuda"))
    assert traffic.synchronisations == synchronisations, traffic.operations
    assert traffic.uploads == uploads


def test_factorisations_that_fail_raise_as_usual() -> None:
    with fake_cuda():
        with pytest.raises(torch.linalg.LinAlgError):
            torch.linalg.cholesky(-torch.eye(2, device="cuda"))
        assert torch.linalg.cholesky_ex(-torch.eye(2, device="cuda")).info.item() == 1


def test_outside_the_context_there_is_no_cuda_and_results_stay_readable() -> None:
    with fake_cuda():
        assert torch.cuda.is_available()
        assert torch.cuda.device_count() == 1
        x = torch.ones(2, device="cuda")
    assert torch.cuda.is_available is IS_AVAILABLE
    assert (x + 1).cpu().tolist() == [2.0, 2.0]
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(2)


class TestForbidNumpy:
    @pytest.mark.parametrize(
        "convert",
        [
            lambda x: x.numpy(),
            lambda x: np.asarray(x),
            lambda x: np.sqrt(x),
            lambda x: np.isnan(x.sum()),
            lambda x: x.detach().cpu().numpy(),
        ],
    )
    def test_conversions_are_caught(self, convert: Callable[[Tensor], Any]) -> None:
        with forbid_numpy(), pytest.raises(AssertionError, match="converted to numpy"):
            convert(torch.ones(3))

    def test_scalars_pass(self) -> None:
        x = torch.tensor([4.0, 9.0], dtype=torch.float64)
        with forbid_numpy():
            assert np.sqrt(x[0].item()) == 2.0
            assert (np.float64(2) * x).tolist() == [8.0, 18.0]
            assert (np.float64(36) / x + np.float64(1)).tolist() == [10.0, 5.0]
            assert np.float64(x.sum().item()) == 13.0

    def test_conversion_works_again_afterwards(self) -> None:
        with forbid_numpy():
            pass
        assert np.asarray(torch.ones(2)).tolist() == [1.0, 1.0]
