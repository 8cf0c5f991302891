"""The dialect of mlx-lm: a folder with a file of turned factors, and settings with one scale for all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.adapter import Adapter
from riemerge.formats.dialect import Facts, Modules, OneFile, find_base, join
from riemerge.formats.files.tensor_file import Entry, TensorFile, read_start
from riemerge.formats.files.text import as_json, brief, list_names, strict_json
from riemerge.formats.layers import Embedding, Foreign, Layer, Linear
from riemerge.formats.peft.config import AdapterConfig
from riemerge.updates.low_rank import LowRankUpdate

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapters.safetensors"

_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[ab])")
_NAMES = {"A": "lora_a", "B": "lora_b"}
# Of a layer in a list of layers: mlx-lm names the modules in it from there on.
_IN_A_LAYER = re.compile(r".*?\.\d+\.(?P<name>.+)")


_EMBEDDINGS = re.compile(r"(.*\.)?((\w+_)?embed(dings?|_tokens|_in|_positions)?|wte|wpe)")


@final
class _Parameters(BaseModel):
    """What mlx-lm says of its factors."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    rank: Annotated[int, Field(gt=0)]
    scale: float
    alpha: float | None = None


@final
class _Settings(BaseModel):
    """What mlx-lm says of an adapter, as far as it enters dW."""

    model_config = ConfigDict(strict=True, extra="ignore")

    fine_tune_type: Literal["lora"] = "lora"
    lora_parameters: _Parameters
    model: str | None = None


@final
@dataclass(frozen=True, eq=False)
class Turned(Foreign):
    """A linear layer or an embedding whose factors are stored turned: A is (n, r) and B is (r, m).

    Law: a layer of PEFT with Aᵀ and Bᵀ.

    Attributes:
        kind: What it is.

    Source: ml-explore/mlx-lm, tuner/lora.py, `LoRALinear.fuse`, `LoRAEmbedding.fuse`.
    """

    kind: type[Linear | Embedding] = Linear

    @property
    def plain(self) -> Linear | Embedding:
        """The layer as PEFT stores it, as far as shapes go."""
        turned = {side: replace(entry, shape=entry.shape[::-1]) for side, entry in self.entries.items()}
        return self.kind(turned, self.scale)

    def factors(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return B (m, r) and A (r, n)."""
        return tensors["B"].mT.contiguous(), tensors["A"].mT.contiguous()

    def store(self, update: LowRankUpdate) -> dict[str, Tensor]:
        """Return the turned factors of an update of scale 1."""
        return {"A": update.A.mT, "B": update.B.mT}


@final
class Mlx(OneFile):
    """Folders of mlx-lm.

    Law: dW = scale · (a b)ᵀ, with one scale for all modules. Modules are named as in the base model. What is
    written has one rank, as mlx-lm wants it, and `num_layers` -1, which is all layers.

    Source: ml-explore/mlx-lm, tuner/utils.py, `load_adapters`, and tuner/lora.py.
    """

    name = "mlx"
    file = TENSOR_FILE
    kinds = (Linear, Embedding)
    one_rank = True

    def find(self, path: Path) -> Path | None:
        """Return the file of tensors of an adapter of this dialect; None where there is none."""
        file = path / TENSOR_FILE
        return file if file.is_file() else None

    def parse(self, key: str) -> tuple[str, str]:
        """Return the module and the side that a key names.

        Raises:
            ValueError: The key names none; the text says what it is instead.
        """
        if (match := _KEY.fullmatch(key)) is None:
            raise ValueError(
                "not keys of mlx-lm's dialect (MODULE.lora_a, MODULE.lora_b), such as whole weights"
            )
        return match["module"], match["side"].upper()

    def facts(self, path: Path, tensors: TensorFile, modules: Modules) -> Facts:
        """Return what the settings beside the file say."""
        try:
            content = read_start(path / CONFIG_FILE)
            raw = strict_json(content)
        except ValueError as error:
            return Facts(AdapterConfig(), problems=[f"{CONFIG_FILE} beside it {error}"])
        try:
            settings = _Settings.model_validate(raw)
        except ValidationError as error:
            faults = [(".".join(map(str, fault["loc"])), fault) for fault in error.errors()]
            problems = [
                f"{CONFIG_FILE} beside it: {where or 'all'} is {brief(fault['input'])}: {fault['msg']}"
                for where, fault in faults
            ]
            return Facts(AdapterConfig(), problems=problems)
        said = settings.lora_parameters
        problems = []
        if said.alpha not in (None, said.rank):
            problems.append(
                f"{CONFIG_FILE} beside it: lora_parameters has alpha {said.alpha:g}: early mlx-lm multiplied "
                "the scale by alpha / rank, and later ones do not: take alpha out, with its factor in scale "
                "if it was trained so"
            )
        return Facts(
            AdapterConfig(base_model_name_or_path=settings.model),
            dict.fromkeys(modules, said.scale),
            problems=problems,
            sha256=MappingProxyType({CONFIG_FILE: hashlib.sha256(content).hexdigest()}),
        )

    def layer(self, module: str, sides: Mapping[str, Entry], scale: float) -> Layer:
        """Return the layer that tensors by side make.

        Raises:
            ValueError: The tensors make none.
        """
        if any(len(entry.shape) != 2 for entry in sides.values()):
            shapes = ", ".join(f"{_NAMES[side]} {entry.shape}" for side, entry in sorted(sides.items()))
            raise ValueError(
                f"{shapes}: expected matrices; factors of experts are read in PEFT's dialect only"
            )
        layer = Turned(sides, scale, kind=Embedding if _EMBEDDINGS.fullmatch(module) else Linear)
        join(layer.plain.entries, scale, _NAMES)
        return layer

    def pack(self, updates: Mapping[str, LowRankUpdate], layers: Mapping[str, Layer]) -> dict[str, Tensor]:
        """Return the tensors that hold updates, by key.

        Raises:
            AdapterError: The modules have several scales.
        """
        scales = {update.scale for update in updates.values()}
        if len(scales) > 1:
            raise AdapterError(
                f"{len(scales)} scales in {list_names(updates)}: mlx-lm has one for all modules: riemerge "
                "merge ADAPTER --method average --to mlx writes them into the factors"
            )
        return {
            f"{module}.{_NAMES[side]}": tensor
            for module, update in updates.items()
            for side, tensor in Turned({}, 1.0).store(update).items()
        }

    def describe(
        self, updates: Mapping[str, LowRankUpdate], like: Sequence[Adapter]
    ) -> tuple[dict[str, str], dict[str, bytes]]:
        """Return the texts of the header, and the settings."""
        matches = {module: _IN_A_LAYER.fullmatch(module) for module in updates}
        keys = {match["name"] if match else module for module, match in matches.items()}
        settings = {
            "fine_tune_type": "lora",
            "lora_parameters": {
                "dropout": 0.0,
                "keys": sorted(keys),
                "rank": next(iter(updates.values())).rank,
                "scale": next(iter(updates.values())).scale,
            },
            "model": find_base(like),
            "num_layers": -1,
        }
        return {"format": "mlx"}, {CONFIG_FILE: as_json(settings)}
