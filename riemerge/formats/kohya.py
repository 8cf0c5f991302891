"""The dialect of kohya's trainers: one file, modules by a name of underscores, alpha for each module."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.adapter import Adapter
from riemerge.formats.dialect import ALPHA, BASE_KEY, Facts, Modules, OneFile, carry_header, find_base, join
from riemerge.formats.files.tensor_file import Entry, TensorFile
from riemerge.formats.files.text import list_names
from riemerge.formats.kinds import find_factors
from riemerge.formats.layers import Convolution, Foreign, Layer, Linear
from riemerge.formats.lycoris import SPLIT
from riemerge.formats.peft.config import AdapterConfig
from riemerge.formats.peft.written_scales import find_alpha
from riemerge.formats.unet_names import find_twins
from riemerge.updates.low_rank import LowRankUpdate

_KEY = re.compile(r"(?P<module>[^.]+)\.(?:(?P<part>lora_(?:down|up|mid))\.weight|alpha)")
_SIDES = {"lora_down": "A", "lora_up": "B", "lora_mid": "M"}
_NAMES = {"A": "lora_down", "B": "lora_up"}

_OTHER_TENSORS = (
    (r"dora_scale", "DoRA magnitudes: DoRA needs the base weight, and its dW is no product of two factors"),
    (r"\.(hada|lokr)_", f"factors of LoHa or LoKr beside those of LoRA: {SPLIT}"),
    (r"\.(oft|a1|b1|on_input|w_norm|b_norm|diff|diff_b)\b", "not low-rank: another method than LoRA"),
    (r"(bias|\.b)$", "bias vectors, which this dialect does not define"),
    (r"emb_params|string_to_param", "embeddings of words, which are no factors"),
    (r"", "not keys of kohya's dialect (MODULE.lora_down.weight, MODULE.lora_up.weight, MODULE.alpha)"),
)


@final
@dataclass(frozen=True, eq=False)
class Tucker(Foreign):
    """A convolution in three factors: A is (q, inputs, 1...), M is (r, q, k...), and B is (m, r, 1...).

    Law: a convolution whose A is M times A over their common axis; it is stored as such.

    Source: LyCORIS, functional/general.py, `rebuild_tucker`.
    """

    def check(self) -> None:
        """Refuse factors that make no product.

        Raises:
            ValueError: The tensors make none.
        """
        names = {"lora_down": "A", "lora_mid": "M", "lora_up": "B"}
        shapes = {name: self.entries[side].shape for name, side in names.items() if side in self.entries}
        a, mid, b = (shapes.get(name, ()) for name in names)
        if not len(a) == len(mid) == len(b) >= 3 or a[0] != mid[1] or {*a[2:], *b[2:]} != {1}:
            raise ValueError(
                f"{shapes}: expected (q, inputs, 1...), (r, q, kernel...) and (outputs, r, 1...)"
            )
        join(self.plain.entries, self.scale, _NAMES)

    @property
    def plain(self) -> Convolution:
        """The convolution in two factors, as far as shapes go."""
        a, mid = self.entries["A"], self.entries["M"]
        whole = replace(a, shape=(mid.shape[0], a.shape[1], *mid.shape[2:]))
        return Convolution({"A": whole, "B": self.entries["B"]}, self.scale)

    def factors(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return B (m, r) and A (r, n) in float64, as the product of two factors is no float of theirs."""
        a, mid, b = (tensors[side].to(torch.float64) for side in ("A", "M", "B"))
        return b.flatten(1), torch.einsum("rq...,qn->rn...", mid, a.flatten(1)).flatten(1)

    def store(self, update: LowRankUpdate) -> dict[str, Tensor]:
        """Return the two kernels that hold the factors of an update of scale 1."""
        return self.plain.store(update)


@final
class Kohya(OneFile):
    """Files of kohya's sd-scripts and of what reads them (ComfyUI, A1111).

    Law: dW = alpha / rank · up · down; a module without alpha has alpha = rank. The name of a module is its
    key up to the dot. A module is written with its alpha, and the header says the rank of all modules. A
    convolution has its kernel in down; in three factors (LoCon's lora_mid) it is read, and written in two.

    Source: kohya-ss/sd-scripts, networks/lora.py; LyCORIS, modules/locon.py.
    """

    name = "kohya"
    file = "lora.safetensors"
    kinds = (Linear, Convolution)

    def find(self, path: Path) -> Path | None:
        """Return the file of tensors of an adapter of this dialect; None where there is none."""
        return find_factors(path, self.name)

    def parse(self, key: str) -> tuple[str, str]:
        """Return the module and the side that a key names.

        Raises:
            ValueError: The key names none; the text says what it is instead.
        """
        match = _KEY.fullmatch(key)
        if match is None:
            raise ValueError(next(why for pattern, why in _OTHER_TENSORS if re.search(pattern, key)))
        return match["module"], _SIDES.get(match["part"] or "", ALPHA)

    def facts(self, path: Path, tensors: TensorFile, modules: Modules) -> Facts:
        """Return what the header says, the base model; no module may have two names."""
        config = AdapterConfig(base_model_name_or_path=tensors.metadata.get(BASE_KEY))
        return Facts(config, problems=find_twins(modules, self.name))

    def layer(self, module: str, sides: Mapping[str, Entry], scale: float) -> Layer:
        """Return the layer that tensors by side make.

        Raises:
            ValueError: The tensors make none.
        """
        if "M" not in sides:
            return join(sides, scale, _NAMES)
        layer = Tucker(sides, scale)
        layer.check()
        return layer

    def pack(self, updates: Mapping[str, LowRankUpdate], layers: Mapping[str, Layer]) -> dict[str, Tensor]:
        """Return the tensors that hold updates, by key.

        Raises:
            AdapterError: A name has a dot, which ends the names of this dialect.
        """
        if dotted := [module for module in updates if "." in module or not module.startswith("l")]:
            raise AdapterError(
                f"{len(dotted)} of {len(updates)} modules have no name in kohya's dialect: "
                f"{list_names(dotted)}: expected modules of a UNet of SD 1.5 or SDXL, or of its text encoders"
            )
        tensors: dict[str, Tensor] = {}
        for module, update in updates.items():
            sides = layers.get(module, Linear({}, 1.0)).store(update)
            tensors |= {f"{module}.{_NAMES[side]}.weight": tensor for side, tensor in sides.items()}
            tensors[f"{module}.alpha"] = _as_tensor(find_alpha(update), update.dtype)
        return tensors

    def describe(
        self, updates: Mapping[str, LowRankUpdate], like: Sequence[Adapter]
    ) -> tuple[dict[str, str], dict[str, bytes]]:
        """Return the texts of the header: those in which all agree, the base model, and the rank."""
        header = carry_header(like)
        if (base := find_base(like)) is not None:
            header[BASE_KEY] = base
        ranks = {update.rank for update in updates.values()}
        header["ss_network_dim"] = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
        return header, {}


def _as_tensor(alpha: float, dtype: torch.dtype) -> Tensor:
    """Return a number exactly: in the dtype of the factors if that holds it, else in a wider one."""
    tensors = (torch.tensor(alpha, dtype=kind) for kind in (dtype, torch.float32, torch.float64))
    return next(tensor for tensor in tensors if float(tensor) == alpha)
