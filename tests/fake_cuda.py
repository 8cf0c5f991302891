"""A GPU's rules without a GPU: tensors that say `cuda:0`, compute on the CPU and refuse what CUDA refuses.

`fake_cuda()` runs code on a fake device. Unlike torch's `FakeTensorMode` the numbers are real, so whole
solves run, with data-dependent control flow. What a GPU would refuse is refused: an operation that mixes
devices, a numpy conversion, a CPU generator for a CUDA tensor. What a GPU would wait for is counted.

How it works. Each tensor is a wrapper around a CPU tensor. To torch's dispatcher its device is `lazy`, the
one non-CPU device whose backward pass runs without a driver; to Python it is `cuda:0`. A function mode
translates the device in what Python asks for, a dispatch mode sees every operation and runs it on the wrapped
tensors.

Not covered: `torch.Generator(device="cuda")`, streams and events, `Tensor.data_ptr`, pickling,
`torch.compile`, nested `torch.func` transforms (torch crashes on them), in-place operations that change the
shape (`resize_`, `t_`, and `torch.quantile`, which uses one), and numbers as a GPU would round them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

CUDA = torch.device("cuda", 0)
_STAND_IN = torch.device("lazy", 0)
_CPU = torch.device("cpu")
_aten = torch.ops.aten

# Operations after which the CPU must know a number, or the size of the result.
_WAITING = {
    _aten._local_scalar_dense,
    _aten.nonzero,
    _aten.masked_select,
    _aten._unique2,
    _aten.unique_dim,
    _aten.unique_consecutive,
    _aten.equal,
    _aten._linalg_check_errors,
    _aten._linalg_eigh,
    _aten._linalg_svd,
    _aten.linalg_eig,
    _aten.linalg_lstsq,
    _aten.linalg_matrix_exp,
}
# Constructors from Python data: the tensor is made on the CPU and copied.
_FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}
_SUBSCRIPTS = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
_COPYING = {_aten._to_copy, _aten.copy_, _aten.copy}


class Traffic:
    """Counts of what crosses between the CPU and the fake device.

    Attributes:
        synchronisations: How often the CPU had to wait for the device (includes every download).
        uploads: How many tensors went from the CPU to the device.
        operations: The names of the operations behind `synchronisations`, in order.
    """

    def __init__(self) -> None:
        self.uploads = 0
        self.operations: list[str] = []

    @property
    def synchronisations(self) -> int:
        return len(self.operations)


class CudaTensor(torch.Tensor):
    """A tensor on the fake device; `inner` is the CPU tensor that holds its numbers."""

    inner: torch.Tensor  # type: ignore[assignment] # hides torch's inner product, which no test takes
    traffic: Traffic

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment] # as torch asks

    @staticmethod
    def __new__(cls, inner: torch.Tensor, traffic: Traffic) -> CudaTensor:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=_STAND_IN,
        )
        self.inner, self.traffic = inner, traffic
        return self

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch declares it as a plain function
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation after the context has ended, as within it."""
        traffic = next(t.traffic for t in _tensors((args, kwargs)) if isinstance(t, CudaTensor))
        return _run(traffic, func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override] # read-only in torch, too
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def _refuse_numpy(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )

    numpy = __array__ = __array_wrap__ = __dlpack__ = _refuse_numpy

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __format__(self, format_spec: str) -> str:
        return format(self.item() if self.ndim == 0 else str(self), format_spec)

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override] # no type in torch
        return f"CudaTensor({self.inner!r})"


class _Dispatch(TorchDispatchMode):
    """Sees every operation, those of C++ and of the backward pass included."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _run(self.traffic, func, args, kwargs or {})


class _Translate(TorchFunctionMode):
    """Hands `cuda` on as the stand-in wherever Python names a device."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0].to(_STAND_IN)
        if func in _FROM_DATA:
            return _from_data(func, args, kwargs)
        if func in _SUBSCRIPTS and isinstance(args[0], CudaTensor):  # lists become tensors beneath it too
            args = [args[0], tree_map_only(list, torch.tensor, args[1], is_leaf=_is_list), *args[2:]]
        if func is torch.Tensor.to:  # the one method that takes a device by position, as a text
            args = [args[0], *(_STAND_IN if _names_cuda(arg) else arg for arg in args[1:])]
        if _names_cuda(kwargs.get("device")):
            kwargs["device"] = _STAND_IN
        return func(*args, **kwargs)


@contextmanager
def fake_cuda() -> Iterator[Traffic]:
    """Within it, `cuda` is a device whose tensors hold real numbers; yields the counts of its traffic.

    A tensor made without a device is on the CPU, and meeting it is an error as on a GPU (a CPU tensor without
    dimensions may meet any, and CPU tensors may index).
    """
    traffic = Traffic()
    told: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "get_device_name": lambda device=None: "fake CUDA device",
    }
    with ExitStack() as stack:
        for name, answer in told.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(torch.autograd, "_engine_run_backward", _translated_backward))
        stack.enter_context(_Dispatch(traffic))
        stack.enter_context(_Translate())
        yield traffic


@contextmanager
def forbid_numpy() -> Iterator[None]:
    """Within it, converting any tensor to a numpy array raises AssertionError; `.item()` is allowed."""

    def refuse(self: torch.Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError(f"a tensor of shape {tuple(self.shape)} was converted to numpy")

    with ExitStack() as stack:
        for name in ("numpy", "__array__", "__array_wrap__", "__dlpack__"):
            stack.enter_context(mock.patch.object(torch.Tensor, name, refuse))
        yield


_engine_run_backward = torch.autograd._engine_run_backward


def _translated_backward(*args: Any, **kwargs: Any) -> Any:
    """Run the backward pass in the mode that torch left on its way there: backward functions name devices."""
    with _Translate():
        return _engine_run_backward(*args, **kwargs)


def _from_data(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
    """Make a tensor from Python data, which torch does beneath the dispatcher: on the CPU, then copied."""
    *like, data = args
    if isinstance(data, CudaTensor):
        target = {name: _STAND_IN if _names_cuda(to) else to for name, to in kwargs.items()}
        return data.to(**target)  # type: ignore[arg-type] # whatever `torch.tensor` was called with
    data = tree_map(lambda leaf: leaf.item() if isinstance(leaf, CudaTensor) else leaf, data)
    target = kwargs.pop("device", like[0].device if like else None)
    requires_grad = kwargs.pop("requires_grad", False)
    made = func(*map(_unwrap, like), data, device=_CPU, **kwargs)
    moved = made.to(_STAND_IN) if _names_cuda(target) else made
    return moved.requires_grad_() if requires_grad else moved


def _run(traffic: Traffic, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Carry one operation out on the wrapped tensors, by the rules of the device."""
    asked = kwargs.get("device")
    tensors = list(_tensors((args, kwargs)))
    fakes = [t for t in tensors if isinstance(t, CudaTensor)]
    if not fakes and asked != _STAND_IN:
        return func(*args, **kwargs)
    _check_devices(func, args, kwargs, tensors)
    _count(traffic, func.overloadpacket, args, asked)

    inner_args, inner_kwargs = tree_map(_unwrap, (tuple(args), dict(kwargs)))
    if asked is not None:
        inner_kwargs["device"] = _CPU
    result = func(*inner_args, **inner_kwargs)
    if any(t.shape != t.inner.shape or t.stride() != t.inner.stride() for t in fakes):
        raise NotImplementedError(f"{func}: a fake CUDA tensor cannot change its shape in place")
    if asked == _CPU or (args and result is args[0]):  # a download, or a CPU tensor that was written to
        return result
    return tree_map_only(torch.Tensor, lambda t: CudaTensor(t, traffic), result)


def _check_devices(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: list[torch.Tensor]
) -> None:
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        raise RuntimeError(f"{func}: expected a 'cuda' device type for generator but found 'cpu'")
    fakes = [t for t in tensors if isinstance(t, CudaTensor)]
    if not fakes or func.overloadpacket in _COPYING:
        return
    indexing = func.overloadpacket in _INDEXING
    free = set(map(id, _tensors(args[1]))) if indexing else set()
    if indexing or torch.Tag.pointwise in func.tags:
        free |= {id(t) for t in tensors if t.ndim == 0}
    strangers = [t for t in tensors if not isinstance(t, CudaTensor) and id(t) not in free]
    if func._schema.is_mutable and not isinstance(args[0], CudaTensor):
        strangers.append(args[0])
    if strangers:
        shapes = {f"{t.device} {tuple(t.shape)}" for t in (*fakes, *strangers)}
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but found {' and '.join(sorted(shapes))}"
        )


def _count(traffic: Traffic, operation: Any, args: Sequence[Any], asked: torch.device | None) -> None:
    source = args[1] if operation is _aten.copy_ else args[0] if args else None
    download = asked == _CPU or (operation is _aten.copy_ and not isinstance(args[0], CudaTensor))
    by_mask = operation in _INDEXING and any(t.dtype == torch.bool for t in _tensors(args[1]))
    if operation in _WAITING or by_mask or (operation in _COPYING and download):
        traffic.operations.append(operation.__name__)
    moved = operation in _COPYING and not download and not isinstance(source, CudaTensor)
    indices = _tensors(args[1]) if operation in _INDEXING else ()
    traffic.uploads += moved + sum(not isinstance(t, CudaTensor) for t in indices)


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def _unwrap(value: Any) -> Any:
    return value.inner if isinstance(value, CudaTensor) else value


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _names_cuda(value: Any) -> bool:
    return (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.partition(":")[0] == "cuda"
    )
