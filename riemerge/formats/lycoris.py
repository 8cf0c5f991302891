"""LoHa and LoKr, of PEFT's folders and LyCORIS' files: read as the products of two factors that they are."""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from riemerge.formats.dialect import BASE_KEY, Facts, Modules, OneFileReader, read_alphas
from riemerge.formats.files.tensor_file import FLOATS, Entry, TensorFile, open_tensors, read_start
from riemerge.formats.files.text import as_json, brief, strict_json
from riemerge.formats.layers import Convolution, Foreign, Layer, Linear
from riemerge.formats.peft.config import AdapterConfig, parse_config
from riemerge.formats.unet_names import find_twins
from riemerge.updates.low_rank import LowRankUpdate

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"

SPLIT = (
    "split the file in one of each, make a LoRA of the latter (riemerge convert FILE OUT --to kohya), and "
    "add the two (riemerge merge LORA OUT -o SUM --method task_arithmetic --rank sum --missing zero)"
)
"""What to do with a file that holds factors both of LoRA and of LoHa or LoKr."""

_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?P<side>(?:hada|lokr)_(?:w[12](?:_[ab])?|t[12])|alpha)"
)
# Settings that enter dW, by PEFT's names for LoRA's.
_SETTINGS = {
    "r": "r",
    "lora_alpha": "alpha",
    **{name: name for name in ("rank_pattern", "alpha_pattern", "base_model_name_or_path", "revision")},
}


@dataclass(frozen=True, eq=False)
class _Product(Foreign):
    """A module whose dW is a product of two matrices, each of them stored whole or in factors.

    The sides are `w1` and `w2`, or `w1_a`, `w1_b`, `t1` (the kernel of three factors), and so on.
    """

    @property
    def plain(self) -> Layer:
        """The layer of PEFT that it is: a convolution where a kernel is stored."""
        m, n, *kernel = self.weight_shape
        if not kernel:
            return Linear(_entries((m, self.width), (self.width, n)), self.scale)
        point = (1,) * len(kernel)
        return Convolution(_entries((m, self.width, *point), (self.width, n, *kernel)), self.scale)

    @property
    @abstractmethod
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of dW: outputs, inputs, and the kernel if one is stored."""

    @property
    @abstractmethod
    def width(self) -> int:
        """The number of columns of B."""

    def half(self, place: int) -> tuple[tuple[int, ...], int]:
        """Return the shape of one of the two matrices, with its kernel, and the rank of its factors.

        Args:
            place: 1 or 2.
        """
        shapes = {side: entry.shape for side, entry in self.entries.items()}
        if whole := shapes.get(f"w{place}"):
            return whole, min(whole[0], torch.Size(whole[1:]).numel())
        a, b = shapes[f"w{place}_a"], shapes[f"w{place}_b"]
        if kernel := shapes.get(f"t{place}"):
            return (a[1], b[1], *kernel[2:]), kernel[0]
        return (a[0], *b[1:]), a[1]

    def split(self, tensors: Mapping[str, Tensor], place: int) -> tuple[Tensor, Tensor]:
        """Return the factors (m, r) and (r, n) of one of the two matrices, in float64."""
        own = {side: tensor.to(torch.float64) for side, tensor in tensors.items()}
        if (whole := own.get(f"w{place}")) is not None:
            matrix = whole.flatten(1)
            rows, columns = matrix.shape
            if rows <= columns:
                return torch.eye(rows, dtype=matrix.dtype), matrix
            return matrix, torch.eye(columns, dtype=matrix.dtype)
        a, b = own[f"w{place}_a"], own[f"w{place}_b"]
        if (kernel := own.get(f"t{place}")) is not None:
            return a.mT.contiguous(), torch.einsum("ij...,jn->in...", kernel, b).flatten(1)
        return a, b.flatten(1)

    def store(self, update: LowRankUpdate) -> dict[str, Tensor]:
        """Return what the layer of PEFT stores."""
        return self.plain.store(update)


@final
@dataclass(frozen=True, eq=False)
class Hadamard(_Product):
    """LoHa: dW is the product of two matrices entry by entry, (B₁A₁) ⊙ (B₂A₂), of rank r² at most.

    Law: a column of B for each pair of columns of B₁ and B₂, their product entry by entry; rows of A alike.

    Source: Hyeon-Woo et al. 2022 (FedPara), prop. 2; PEFT 0.21.2, `LoHaLayer.get_delta_weight`.
    """

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of both matrices."""
        return self.half(1)[0]

    @property
    def width(self) -> int:
        """The number of pairs of columns."""
        return self.half(1)[1] * self.half(2)[1]

    def factors(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return B (m, r²) and A (r², n)."""
        (b, a), (d, c) = self.split(tensors, 1), self.split(tensors, 2)
        return (b.unsqueeze(2) * d.unsqueeze(1)).flatten(1), (a.unsqueeze(1) * c).flatten(0, 1)


@final
@dataclass(frozen=True, eq=False)
class Kronecker(_Product):
    """LoKr: dW is the Kronecker product of two matrices, whose rank is the product of their ranks.

    Law: (B₁A₁) ⊗ (B₂A₂) = (B₁ ⊗ B₂)(A₁ ⊗ A₂).

    Source: Yeh et al. 2024 (LyCORIS), eq. 7; PEFT 0.21.2, `LoKrLayer.get_delta_weight`.
    """

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the product; the kernel is that of the second matrix."""
        (m, n), (p, q, *kernel) = self.half(1)[0], self.half(2)[0]
        return m * p, n * q, *kernel

    @property
    def width(self) -> int:
        """The product of the ranks."""
        return self.half(1)[1] * self.half(2)[1]

    def factors(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return B (m, r) and A (r, n)."""
        (b, a), (d, c) = self.split(tensors, 1), self.split(tensors, 2)
        return torch.kron(b, d), torch.kron(a, c)


def _entries(b: tuple[int, ...], a: tuple[int, ...]) -> dict[str, Entry]:
    return {"B": Entry("B", "F64", b, 0), "A": Entry("A", "F64", a, 0)}


@final
class Lycoris(OneFileReader):
    """LoHa and LoKr as PEFT's folders and LyCORIS' single files hold them.

    Law: in a folder the scale is alpha / r of its settings; in a file it is alpha over the inner size of the
    factors, and 1 where no matrix has factors. A convolution whose kernel is stored flat is read as the
    matrix that it is.

    Source: PEFT 0.21.2, tuners/loha/layer.py and tuners/lokr/layer.py; LyCORIS 4.1, modules/loha.py and
    modules/lokr.py.
    """

    name = "kohya"

    def find(self, path: Path) -> Path | None:
        """Return the file of tensors of LoHa or LoKr factors; None where there is none."""
        files = [path]
        if path.is_dir():
            files = sorted(path.glob("*.safetensors"))
        try:
            keys = [key for file in files for key in open_tensors(file).entries]
        except ValueError:
            return None
        if len(files) != 1 or not any(re.search(r"\.(hada|lokr)_[wt]", key) for key in keys):
            return None
        return files[0]

    def parse(self, key: str) -> tuple[str, str]:
        """Return the module and the side that a key names.

        Raises:
            ValueError: The key names none; the text says what it is instead.
        """
        if (match := _KEY.fullmatch(key)) is None:
            if re.search(r"(^|[._])lora_(up|down|mid|[AB])\b", key):
                raise ValueError(f"factors of LoRA beside those of LoHa or LoKr: {SPLIT}")
            raise ValueError("neither LoHa's hada_w1_a, hada_w1_b, ... nor LoKr's lokr_w1, lokr_w2_a, ...")
        return match["module"], match["side"]

    def facts(self, path: Path, tensors: TensorFile, modules: Modules) -> Facts:
        """Return the scales that the settings say, or the numbers alpha."""
        inner = {module: _inner_size(sides) for module, sides in modules.items()}
        settings = tensors.path.parent / CONFIG_FILE
        if not settings.exists():
            alphas = read_alphas(tensors, modules)
            scales = {
                module: alphas.get(module, size) / size if size else 1.0 for module, size in inner.items()
            }
            return Facts(
                AdapterConfig(base_model_name_or_path=tensors.metadata.get(BASE_KEY)),
                scales,
                problems=find_twins(modules, self.name),
            )
        try:
            content = read_start(settings)
            said = strict_json(content)
            if not isinstance(said, dict) or said.get("peft_type") not in {"LOHA", "LOKR"}:
                raise ValueError("has no peft_type LOHA or LOKR")
            own = {name: said[other] for name, other in _SETTINGS.items() if other in said}
            config, faults = parse_config(as_json({"peft_type": "LORA", **own}))
        except ValueError as error:
            return Facts(AdapterConfig(), problems=[f"{CONFIG_FILE} beside it {error}"])
        if config is None:
            return Facts(AdapterConfig(), problems=[f"{CONFIG_FILE} beside it: {fault}" for fault in faults])
        if said.get("modules_to_save"):
            faults.append(f"modules_to_save is {brief(said['modules_to_save'])}: only factors are converted")
        faults += [
            f"{module}: the factors have rank {size} but {CONFIG_FILE} says {config.rank(module)}"
            for module, size in inner.items()
            if size not in (None, config.rank(module))
        ]
        return Facts(
            config,
            {module: config.scale(module) for module in modules},
            problems=faults,
            sha256=MappingProxyType({CONFIG_FILE: hashlib.sha256(content).hexdigest()}),
            dialect="peft",
        )

    def layer(self, module: str, sides: Mapping[str, Entry], scale: float) -> Layer:
        """Return the layer that tensors by side make.

        Raises:
            ValueError: The tensors make none.
        """
        own = {side.partition("_")[2]: entry for side, entry in sides.items()}
        methods = {side.partition("_")[0] for side in sides}
        shapes = ", ".join(f"{side} {entry.shape}" for side, entry in sorted(sides.items()))
        if unknown := sorted({entry.dtype for entry in sides.values()} - {*FLOATS}):
            raise ValueError(f"is stored as {', '.join(unknown)}: expected one of {', '.join(FLOATS)}")
        if len(methods) != 1 or not all(_fit(own, place) for place in (1, 2)):
            raise ValueError(f"{shapes}: expected both matrices, each whole or in factors that fit")
        if len({entry.shape[0] for side, entry in own.items() if side.endswith("_b")}) > 1:
            raise ValueError(f"{shapes}: expected one inner size, over which alpha is divided")
        layer: Hadamard | Kronecker = Kronecker(own, scale)
        if methods == {"hada"}:
            layer = Hadamard(own, scale)
            if layer.half(1)[0] != layer.half(2)[0]:
                raise ValueError(f"{shapes}: expected two matrices of one shape")
        elif len(layer.half(1)[0]) != 2 or len(layer.half(2)[0]) == 3:
            raise ValueError(f"{shapes}: expected a matrix, and a matrix or a kernel of two axes")
        if layer.weight_shape[3:] == (1,) and layer.weight_shape[2] > 1:
            raise ValueError(f"{shapes}: the kernel may be one of a Conv1d or of a Conv2d, which is not said")
        return layer


def _fit(own: Mapping[str, Entry], place: int) -> bool:
    """Return whether one of the two matrices is stored, whole or in factors that fit each other."""
    names = (f"w{place}", f"w{place}_a", f"w{place}_b", f"t{place}")
    whole, a, b, kernel = (own[name].shape if name in own else None for name in names)
    if any(shape is not None and (0 in shape or len(shape) < 2) for shape in (whole, a, b, kernel)):
        return False
    if whole is not None or a is None or b is None:
        return whole is not None and a is None and b is None and kernel is None
    if kernel is None:
        return len(a) == 2 and a[1] == b[0]
    return len(a) == len(b) == 2 and len(kernel) > 2 and (a[0], b[0]) == kernel[:2]


def _inner_size(sides: Mapping[str, Entry]) -> int | None:
    """Return the inner size of the factors of a module; None where no matrix has factors."""
    return next((entry.shape[0] for side, entry in sorted(sides.items()) if side.endswith("_b")), None)
