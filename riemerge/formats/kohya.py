"""The dialect of kohya's trainers: one file, modules by a name of underscores, alpha for each module."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats import kinds
from riemerge.formats.adapter import Adapter
from riemerge.formats.dialect import ALPHA, BASE_KEY, Facts, OneFile, carry_header, find_base, join
from riemerge.formats.files.tensor_file import Entry, TensorFile
from riemerge.formats.files.text import list_names
from riemerge.formats.layers import Layer, Linear
from riemerge.formats.peft.config import AdapterConfig
from riemerge.formats.peft.written_scales import find_alpha
from riemerge.updates.low_rank import LowRankUpdate

_KEY = re.compile(r"(?P<module>[^.]+)\.(?:(?P<part>lora_(?:down|up))\.weight|alpha)")
_SIDES = {"lora_down": "A", "lora_up": "B"}
_NAMES = {side: name for name, side in _SIDES.items()}

_OTHER_TENSORS = (
    (r"dora_scale", "DoRA magnitudes: DoRA needs the base weight, and its dW is no product of two factors"),
    (r"\.(hada|lokr)_", "LoHa or LoKr factors: riemerge convert FILE OUT --to peft makes a LoRA of them"),
    (r"\.(oft|a1|b1|on_input|w_norm|b_norm|diff|diff_b)\b", "not low-rank: another method than LoRA"),
    (r"(bias|\.b)$", "bias vectors, which this dialect does not define"),
    (r"emb_params|string_to_param", "embeddings of words, which are no factors"),
    (r"", "not keys of kohya's dialect (MODULE.lora_down.weight, MODULE.lora_up.weight, MODULE.alpha)"),
)


@final
class Kohya(OneFile):
    """Files of kohya's sd-scripts and of what reads them (ComfyUI, A1111).

    Law: dW = alpha / rank · up · down; a module without alpha has alpha = rank. The name of a module is its
    key up to the dot. A module is written with its alpha, and the header says the rank of all modules.

    Source: kohya-ss/sd-scripts, networks/lora.py.
    """

    name = "kohya"
    file = "lora.safetensors"

    def find(self, path: Path) -> Path | None:
        """Return the file of tensors of an adapter of this dialect; None where there is none."""
        return kinds.find_factors(path, self.name)

    def parse(self, key: str) -> tuple[str, str]:
        """Return the module and the side that a key names.

        Raises:
            ValueError: It names none; the text says what it is instead.
        """
        match = _KEY.fullmatch(key)
        if match is None:
            raise ValueError(next(why for pattern, why in _OTHER_TENSORS if re.search(pattern, key)))
        return match["module"], _SIDES.get(match["part"] or "", ALPHA)

    def facts(self, path: Path, tensors: TensorFile, modules: Sequence[str]) -> Facts:
        """Return what the header says: the base model."""
        return Facts(AdapterConfig(base_model_name_or_path=tensors.metadata.get(BASE_KEY)))

    def layer(self, sides: Mapping[str, Entry], scale: float) -> Layer:
        """Return the layer that tensors by side make.

        Raises:
            ValueError: They make none.
        """
        return join(sides, scale, _NAMES)

    def stored(self, updates: Mapping[str, LowRankUpdate], layers: Mapping[str, Layer]) -> dict[str, Tensor]:
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

    def described(
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
