"""How the modules of an adapter are stored: from tensors of a file to the factors of dW, and back."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.files.tensor_file import Entry
from riemerge.updates.low_rank import LowRankUpdate


@dataclass(frozen=True, eq=False)
class Layer(ABC):
    """One module of an adapter: which stored tensors make its update, and how. A kind is a final subclass.

    Law: `factors(gather([store(update)]))` is B and A of the update with its scale in them, to round-off; a
    dialect names the sides, a layer says what they hold.

    Attributes:
        entries: The stored tensors by side (`A`, `B`, ...), as the header of their file describes them.
        scale: The factor s of dW = s·B·A.
    """

    entries: Mapping[str, Entry]
    scale: float

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of dW: outputs by inputs."""

    @property
    @abstractmethod
    def layout(self) -> str:
        """The kind of the layer and all that must agree for two of them to be one module, in words."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """The number r of columns of B."""

    @abstractmethod
    def stem(self, module: str) -> str:
        """Return the name of the module to which the stored tensors belong."""

    @abstractmethod
    def weight(self, module: str) -> str:
        """Return the name of the base model's tensor to which dW is added.

        Raises:
            AdapterError: The files do not say it.
        """

    @property
    @abstractmethod
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the base model's tensor to which dW is added."""

    @abstractmethod
    def view(self, weight: Tensor) -> Tensor:
        """Return a view (m, n) of the base model's tensor: the matrix to which dW is added.

        Args:
            weight: A contiguous tensor of `stored_shape`.
        """

    def as_stored(self, dense: Tensor) -> Tensor:
        """Return dW (m, n) as the base model stores its tensor; what other modules change in it is 0."""
        stored = dense.new_zeros(self.stored_shape)
        self.view(stored).copy_(dense)
        return stored

    @abstractmethod
    def factors(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return B (m, r) and A (r, n), of the stored tensors by side."""

    @abstractmethod
    def store(self, update: LowRankUpdate) -> dict[str, Tensor]:
        """Return the tensors by side that hold an update of scale 1."""

    @abstractmethod
    def gather(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return what is stored under one stem, of what is stored of each of its modules.

        Args:
            parts: What `store` returns, of each module of this kind under the stem, in their order.
        """


@dataclass(frozen=True, eq=False)
class Weight(Layer):
    """A module whose `weight` has factors of its own."""

    @property
    def rank(self) -> int:
        """The number r of columns of B."""
        return self.entries["B"].shape[1]

    def stem(self, module: str) -> str:
        """Return the name of the module itself."""
        return module

    def weight(self, module: str) -> str:
        """Return the name of the base model's weight."""
        return f"{module}.weight"

    def gather(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return what is stored of the one module."""
        (part,) = parts
        return dict(part)


@dataclass(frozen=True, eq=False)
class _Matrix(Weight):
    """A module whose factors are stored as they are: A is (r, n) and B is (m, r)."""

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of dW: outputs by inputs."""
        return self.entries["B"].shape[0], self.entries["A"].shape[1]

    def factors(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return B (m, r) and A (r, n): the stored tensors themselves."""
        return tensors["B"], tensors["A"]

    def store(self, update: LowRankUpdate) -> dict[str, Tensor]:
        """Return the factors of an update of scale 1 by side."""
        return {"A": update.A, "B": update.B}


@final
@dataclass(frozen=True, eq=False)
class Linear(_Matrix):
    """A linear layer: A is (r, n) and B is (m, r).

    Attributes:
        turned: Whether the base model stores the weight as inputs by outputs (GPT-2's Conv1D).

    Source: Hu et al. 2021 (LoRA), eq. 3.
    """

    turned: bool = False

    @property
    def layout(self) -> str:
        """The kind of the layer."""
        return "a linear layer"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the base model's weight."""
        if self.turned:
            return self.shape[::-1]
        return self.shape

    def view(self, weight: Tensor) -> Tensor:
        """Return the base model's weight as outputs by inputs."""
        if self.turned:
            return weight.mT
        return weight


@final
@dataclass(frozen=True, eq=False)
class Convolution(Weight):
    """A convolution without groups, of a kernel k: A is (r, inputs, k...), and B is (m, r, 1...).

    Law: dW is B times A with the axes of A behind the first made one: the whole kernel, (m, inputs · ∏ k),
    whose norm and singular values are what is merged.

    Source: PEFT 0.21.2, `_ConvNd.get_delta_weight`.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of dW: outputs by inputs and places of the kernel."""
        return self.entries["B"].shape[0], torch.Size(self.entries["A"].shape[1:]).numel()

    @property
    def layout(self) -> str:
        """The kind of the layer, with its inputs and its kernel."""
        inputs, *kernel = self.entries["A"].shape[1:]
        return f"a convolution of {inputs} inputs with a kernel of {' x '.join(map(str, kernel))}"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the base model's weight."""
        return self.entries["B"].shape[0], *self.entries["A"].shape[1:]

    def view(self, weight: Tensor) -> Tensor:
        """Return the base model's kernel as a matrix, one row for each output."""
        return weight.view(self.shape)

    def factors(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return B (m, r) and A (r, n)."""
        return tensors["B"].flatten(1), tensors["A"].flatten(1)

    def store(self, update: LowRankUpdate) -> dict[str, Tensor]:
        """Return kernels that hold the factors of an update of scale 1."""
        inside = self.entries["A"].shape[1:]
        point = (1,) * (len(inside) - 1)
        return {"A": update.A.reshape(-1, *inside), "B": update.B.reshape(*update.B.shape, *point)}


@final
@dataclass(frozen=True, eq=False)
class Embedding(_Matrix):
    """An embedding of n tokens in m dimensions: A is (r, n) and B is (m, r).

    Law: dW is B·A, (m, n), as of a linear layer whose inputs are tokens; the base model stores it turned, a
    row for each token.

    Source: PEFT 0.21.2, `Embedding.get_delta_weight`.
    """

    @property
    def layout(self) -> str:
        """The kind of the layer."""
        return "an embedding"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the base model's weight: tokens by dimensions."""
        return self.shape[::-1]

    def view(self, weight: Tensor) -> Tensor:
        """Return the base model's weight as dimensions by tokens."""
        return weight.mT


@final
@dataclass(frozen=True, eq=False)
class Bias(Layer):
    """What `lora_bias` adds to the bias of a module: s·b, an update of one column and of rank 1.

    The module is called like the base model's tensor, `layers.0.q_proj.bias`.

    Source: PEFT 0.21.2, `Linear.merge`.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, 1) of the update."""
        return self.entries["bias"].shape[0], 1

    @property
    def layout(self) -> str:
        """The kind of the layer."""
        return "a bias"

    @property
    def rank(self) -> int:
        """The rank of one column."""
        return 1

    def stem(self, module: str) -> str:
        """Return the name of the module that has the bias."""
        return module.removesuffix(".bias")

    def weight(self, module: str) -> str:
        """Return the name of the base model's bias."""
        return module

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the base model's bias."""
        return self.shape[:1]

    def view(self, weight: Tensor) -> Tensor:
        """Return the base model's bias as one column."""
        return weight.unsqueeze(1)

    def factors(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the bias as a column B (m, 1), and the number 1 as A."""
        bias = tensors["bias"]
        return bias.unsqueeze(1), bias.new_ones(1, 1)

    def store(self, update: LowRankUpdate) -> dict[str, Tensor]:
        """Return the one column of an update of scale 1."""
        return {"bias": (update.B @ update.A).squeeze(1)}

    def gather(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return what is stored of the one bias."""
        (part,) = parts
        return dict(part)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Expert(Layer):
    """One of E experts whose weights are one parameter of the base model: PEFT's `target_parameters`.

    The experts of `mlp.experts` are the modules `mlp.experts[0]`, `mlp.experts[1]`, ...; those of a second
    parameter of that module are `mlp.experts.base_layer[0]`, ..., as in the file, which does not say which
    parameter it is. All A lie one behind the other, (E · r, n), and the columns of all B alternate, (m, r ·
    E).

    Attributes:
        index: The place e of the expert, from 0.
        count: The number E of experts.
        parameters: The parameters that it may be one of, by their names in the module.
        turned: Whether the base model stores inputs by outputs; None if that is not known.

    Source: PEFT 0.21.2, `ParamWrapper.get_delta_weight`.
    """

    index: int
    count: int
    parameters: tuple[str, ...]
    turned: bool | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of dW of this expert: outputs by inputs."""
        return self.entries["B"].shape[0], self.entries["A"].shape[1]

    @property
    def layout(self) -> str:
        """The kind of the layer, with the number of experts and the parameters that it may be."""
        return f"one of {self.count} experts of {' or '.join(self.parameters)}"

    @property
    def rank(self) -> int:
        """The number r of columns of B of this expert."""
        return self.entries["B"].shape[1] // self.count

    def stem(self, module: str) -> str:
        """Return the name without the place of the expert."""
        return module.rpartition("[")[0]

    def weight(self, module: str) -> str:
        """Return the name of the base model's parameter, which holds all experts."""
        if len(self.parameters) > 1:
            raise AdapterError(
                f"{module}: may be of {' or '.join(self.parameters)}: which one it is, only the base model "
                "says: name it as --base"
            )
        return f"{parent(self.stem(module))}.{self.parameters[0]}"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the base model's parameter: two axes for one expert, else three.

        Raises:
            AdapterError: The base model is needed to know it.
        """
        m, n = self.shape
        if self.count == 1:
            return m, n
        if self.turned is None:
            raise AdapterError(
                f"{' or '.join(self.parameters)}: whether it holds outputs by inputs, only the base model "
                "says, by its shape: give it (--base)"
            )
        if self.turned:
            return self.count, n, m
        return self.count, m, n

    def view(self, weight: Tensor) -> Tensor:
        """Return the weight of this expert in the base model's parameter as outputs by inputs."""
        own = weight.view(self.stored_shape).view(self.count, *self.stored_shape[-2:])[self.index]
        if self.turned:
            return own.mT
        return own

    def factors(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return B (m, r) and A (r, n) of this expert."""
        b = tensors["B"].unflatten(1, (self.rank, self.count))[..., self.index]
        return b, tensors["A"].unflatten(0, (self.count, self.rank))[self.index]

    def store(self, update: LowRankUpdate) -> dict[str, Tensor]:
        """Return the factors of an update of scale 1, of this expert alone."""
        return {"A": update.A, "B": update.B}

    def gather(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the factors of all experts, which have one rank, as one tensor a side."""
        return {
            "A": torch.cat([part["A"] for part in parts]),
            "B": torch.stack([part["B"] for part in parts], dim=-1).flatten(1),
        }


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Dora(Layer):
    """A layer of DoRA: the rows of W0 + s·B·A have the lengths that a trained vector says.

    Law: dW = m ⊙ (W0 + s·B·A) / ‖W0 + s·B·A‖ − W0, by rows of the matrix (outputs, channels, dimensions of an
    embedding), computed in float64. It has full rank, and needs the weight W0 of the base model. It is
    written as the plain layer that it would be without DoRA.

    Attributes:
        plain: The layer as it would be without DoRA.
        base: What reads W0 as it is stored; None as long as the base model is not known.

    Source: Liu et al. 2024 (DoRA), eq. 5; PEFT 0.21.2, `DoraLinearVariant.merge_safe`.
    """

    plain: Layer
    base: Callable[[], Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of dW."""
        return self.plain.shape

    @property
    def layout(self) -> str:
        """The kind of the layer without DoRA: their updates can be merged."""
        return self.plain.layout

    @property
    def rank(self) -> int:
        """The rank of any dW of this shape."""
        return min(self.shape)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the base model's weight."""
        return self.plain.stored_shape

    def stem(self, module: str) -> str:
        """Return the name of the module to which the stored tensors belong."""
        return self.plain.stem(module)

    def weight(self, module: str) -> str:
        """Return the name of the base model's weight."""
        return self.plain.weight(module)

    def view(self, weight: Tensor) -> Tensor:
        """Return a view (m, n) of the base model's weight."""
        return self.plain.view(weight)

    def factors(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return dW and a unit matrix as B and A, or the other way round where dW is wide.

        Raises:
            AdapterError: The base model is not known, or a row of W0 + s·B·A is zero.
        """
        if self.base is None:
            raise AdapterError(NEEDS_BASE)
        weight = self.view(self.base().contiguous()).to(torch.float64)
        b, a = (factor.to(torch.float64) for factor in self.plain.factors(tensors))
        turned = torch.addmm(weight, b, a, alpha=self.plain.scale)
        lengths = torch.linalg.vector_norm(turned, dim=1)
        if not bool(lengths.all()):
            raise AdapterError("a row of the base weight with the update is zero: DoRA cannot scale it")
        dense = (tensors["magnitude"].to(torch.float64).flatten() / lengths).unsqueeze(1) * turned - weight
        m, n = self.shape
        if m < n:
            return torch.eye(m, dtype=torch.float64), dense
        return dense, torch.eye(n, dtype=torch.float64)

    def store(self, update: LowRankUpdate) -> dict[str, Tensor]:
        """Return the tensors by side that hold an update of scale 1 without DoRA."""
        return self.plain.store(update)

    def gather(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return what is stored under one stem."""
        return self.plain.gather(parts)


@dataclass(frozen=True, eq=False)
class Foreign(Layer):
    """A module that is stored otherwise than PEFT stores it. A kind says which layer of PEFT it is.

    Law: all but the stored factors is that layer's; written in another dialect, it is that layer.
    """

    @property
    @abstractmethod
    def plain(self) -> Layer:
        """The layer of PEFT that it is, as far as shapes go."""

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of dW: outputs by inputs."""
        return self.plain.shape

    @property
    def layout(self) -> str:
        """The kind of the layer of PEFT."""
        return self.plain.layout

    @property
    def rank(self) -> int:
        """The number r of columns of B."""
        return self.plain.rank

    def stem(self, module: str) -> str:
        """Return the name of the module to which the stored tensors belong."""
        return self.plain.stem(module)

    def weight(self, module: str) -> str:
        """Return the name of the base model's tensor to which dW is added."""
        return self.plain.weight(module)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the base model's tensor to which dW is added."""
        return self.plain.stored_shape

    def view(self, weight: Tensor) -> Tensor:
        """Return a view (m, n) of the base model's tensor: the matrix to which dW is added."""
        return self.plain.view(weight)

    def gather(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return what is stored of the one module."""
        (part,) = parts
        return dict(part)


NEEDS_BASE = (
    "dW depends on the weights of the base model (DoRA), or its layout on their shapes (experts in one "
    "parameter): name the base model, a full checkpoint, as --base (base_model in a recipe)"
)
"""What is said where an adapter cannot be read, or written as a delta, without its base model."""


def parent(stem: str) -> str:
    """Return the name of the module whose parameter a stem is of: without what PEFT nests."""
    return re.sub(r"(\.base_layer)+$", "", stem)
