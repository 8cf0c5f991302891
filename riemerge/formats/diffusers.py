"""The dialect of diffusers: one file for all models of a pipeline, modules by their dotted names."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.adapter import Adapter
from riemerge.formats.dialect import ALPHA, BASE_KEY, Facts, Modules, OneFile, carry_header, find_base, join
from riemerge.formats.files.tensor_file import Entry, TensorFile
from riemerge.formats.files.text import as_json, list_names, show, strict_json
from riemerge.formats.kinds import FACTORS, find_factors
from riemerge.formats.layers import Convolution, Layer, Linear
from riemerge.formats.peft.config import AdapterConfig, parse_config
from riemerge.formats.peft.written_scales import scale_settings
from riemerge.updates.low_rank import LowRankUpdate

SETTINGS_KEY = "lora_adapter_metadata"

_NAMES = {"A": "lora_A", "B": "lora_B"}
_SIDES = {"lora_A": "A", "lora_B": "B", "down": "A", "up": "B"}
_KEYS = tuple(
    map(
        re.compile,
        (
            r"(?P<module>.+)\.(?P<part>lora_[AB])\.weight",
            # Before diffusers took PEFT's names: layers, layers of text encoders, processors of attention.
            r"(?P<module>.+)\.lora\.(?P<part>down|up)\.weight",
            r"(?P<module>.+)\.lora_linear_layer\.(?P<part>down|up)\.weight",
            r"(?P<module>.+)_lora\.(?P<part>down|up)\.weight",
            r"(?P<module>.+?)(?:\.lora|_lora)?\.alpha",
        ),
    )
)
_OTHER_TENSORS = (
    (r"lora_magnitude_vector|dora_scale", "DoRA magnitudes: DoRA needs the base weight"),
    (r"\.lora_B\.bias$", "bias vectors of the factors (lora_bias), which merge in PEFT's dialect only"),
    (r"", "not keys of diffusers' dialect (MODULE.lora_A.weight, MODULE.lora_B.weight, MODULE.alpha)"),
)
# The modules of a UNet, which files without a text encoder name without saying that it is the UNet.
_OF_UNETS = re.compile(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\b")
_OF_TEXT_ENCODERS = re.compile(r"text_encoder(_\d)?\.")
_OLD_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@final
class Diffusers(OneFile):
    """Files that diffusers' pipelines save and load.

    Law: dW = scale · B · A. The scale is that of the settings in the header, if there are any, as PEFT
    defines it; else alpha / rank where the module has an alpha; else 1. Names are those of the pipeline:
    `unet.`, `transformer.`, `text_encoder.`, `text_encoder_2.`, and the name in that model. All older names
    are read; PEFT's are written, with settings in the header where a scale is not 1.

    Source: diffusers 0.42, loaders/lora_base.py, utils/state_dict_utils.py, utils/peft_utils.py.
    """

    name = "diffusers"
    file = "pytorch_lora_weights.safetensors"
    kinds = (Linear, Convolution)

    def find(self, path: Path) -> Path | None:
        """Return the file of tensors of an adapter of this dialect; None where there is none."""
        return find_factors(path, self.name)

    def parse(self, key: str) -> tuple[str, str]:
        """Return the module and the side that a key names.

        Raises:
            ValueError: The key names none; the text says what it is instead.
        """
        matches = (pattern.fullmatch(key) for pattern in _KEYS)
        match = next(filter(None, matches), None)
        if match is None:
            raise ValueError(next(why for pattern, why in _OTHER_TENSORS if re.search(pattern, key)))
        module = _in_full(match["module"], old="_lora." in key)
        return module, _SIDES.get(match.groupdict().get("part", ""), ALPHA)

    def facts(self, path: Path, tensors: TensorFile, modules: Modules) -> Facts:
        """Return what the settings in the header say of each model of the pipeline."""
        if (text := tensors.metadata.get(SETTINGS_KEY)) is None:
            return Facts(AdapterConfig(base_model_name_or_path=tensors.metadata.get(BASE_KEY)))
        problems = []
        if any(key.endswith(".alpha") for key in tensors.entries):
            problems.append("settings beside numbers alpha of modules: expected one of them")
        try:
            settings = strict_json(text.encode())
        except ValueError as error:
            problems.append(str(error))
            settings = {}
        models: dict[str, AdapterConfig] = {}
        for model in sorted({module.partition(".")[0] for module in modules}):
            config, faults = _config(settings, model)
            problems += faults
            if config is not None:
                models[model] = config
        scales, ranks = {}, {}
        for module in modules:
            model, _, name = module.partition(".")
            if model in models:
                scales[module], ranks[module] = models[model].scale(name), models[model].rank(name)
        bases = [config.base_model_name_or_path for config in models.values()]
        return Facts(
            AdapterConfig(base_model_name_or_path=next(filter(None, bases), None)),
            scales,
            ranks,
            [f"{SETTINGS_KEY} in the header: {problem}" for problem in problems],
        )

    def layer(self, module: str, sides: Mapping[str, Entry], scale: float) -> Layer:
        """Return the layer that tensors by side make.

        Raises:
            ValueError: The tensors make none.
        """
        return join(sides, scale, _NAMES)

    def pack(self, updates: Mapping[str, LowRankUpdate], layers: Mapping[str, Layer]) -> dict[str, Tensor]:
        """Return the tensors that hold updates, by key.

        Raises:
            AdapterError: A name is none of a model of a pipeline.
        """
        keys = [f"{module}.{name}.weight" for module in updates for name in _NAMES.values()]
        if not any(map(FACTORS[self.name].search, keys)):
            raise AdapterError(
                f"{list_names(updates)}: expected modules of the models of a pipeline, such as "
                "unet.mid_block.attentions.0.proj_in"
            )
        return {
            f"{module}.{_NAMES[side]}.weight": tensor
            for module, update in updates.items()
            for side, tensor in layers.get(module, Linear({}, 1.0)).store(update).items()
        }

    def describe(
        self, updates: Mapping[str, LowRankUpdate], like: Sequence[Adapter]
    ) -> tuple[dict[str, str], dict[str, bytes]]:
        """Return the texts of the header: those in which all agree, and the settings of each model."""
        models: dict[str, dict[str, LowRankUpdate]] = defaultdict(dict)
        for module, update in updates.items():
            model, _, name = module.partition(".")
            models[model][name] = update
        settings = {
            f"{model}.{key}": value
            for model, own in models.items()
            for key, value in {
                "peft_type": "LORA",
                "base_model_name_or_path": find_base(like),
                "target_modules": sorted(own),
                **scale_settings(own),
            }.items()
        }
        text = json.dumps(settings, indent=2, sort_keys=True)
        return {**carry_header(like), "format": "pt", SETTINGS_KEY: text}, {}


def _in_full(module: str, *, old: bool) -> str:
    """Return the name of a module as the model of today has it, with the model's own name before it.

    Args:
        module: The name in the key.
        old: Whether the key is one of a processor of attention, which names projections in its own way.
    """
    parent, _, name = module.replace(".processor.", ".").rpartition(".")
    if old and _OF_TEXT_ENCODERS.match(parent):
        name = _OLD_PROJECTIONS.get(name, name)
    elif old and name == "to_out":
        name = "to_out.0"
    module = ".".join(filter(None, [parent, name]))
    if _OF_UNETS.match(module):
        return f"unet.{module}"
    return module


_NOT_HERE = ("use_dora", "lora_bias")


def _config(settings: Any, model: str) -> tuple[AdapterConfig | None, list[str]]:
    """Return what settings say of one model; they name it, or are those of a single one."""
    if not isinstance(settings, dict):
        return None, [f"holds a {type(settings).__name__}: expected an object of settings"]
    prefix = f"{model}."
    own = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    if "r" in settings:
        own = own or settings
    if not own:
        return None, [f"says nothing of {show(model)}: expected {show(model)}.r and {show(model)}.lora_alpha"]
    config, faults = parse_config(as_json({"peft_type": "LORA", **own}))
    faults += [
        f"{key} is true: diffusers' files have no place for what it adds" for key in _NOT_HERE if own.get(key)
    ]
    return config, [f"{show(model)}: {fault}" for fault in faults]
