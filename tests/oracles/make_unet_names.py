"""Names of the modules of diffusers' UNets, and what its converter makes of kohya's keys, as sha256.

`python -m tests.oracles.make_unet_names`, where diffusers is installed, prints what is frozen in
`tests/formats/test_unet_names.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import lora_conversion_utils as converter
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

from riemerge.formats.unet_names import PIPELINES
from tests.formats.test_unet_names import digest

# The settings of the published models, as far as names depend on them.
SETTINGS: dict[str, dict[str, Any]] = {
    "SD 1.5": {"cross_attention_dim": 768},
    "SDXL": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "use_linear_projection": True,
    },
}


def main() -> None:
    for pipeline, settings in SETTINGS.items():
        with torch.device("meta"):
            unet = UNet2DConditionModel(**settings)
        kinds = torch.nn.Linear | torch.nn.Conv2d
        names = [name for name, module in unet.named_modules() if isinstance(module, kinds)]
        print(pipeline, len(names), digest(names))
        stability = PIPELINES[pipeline].stability
        stems = PIPELINES[pipeline].stems(stability=stability).items()
        keys = {
            f"{stem}.lora_{side}.weight": stem
            for name, stem in stems
            if name.startswith("unet.")
            for side in ("down", "up")
        }
        if stability:
            keys = converter._maybe_map_sgm_blocks_to_diffusers(keys, unet.config)
        found, _ = converter._convert_non_diffusers_lora_to_diffusers(keys)
        found = convert_unet_state_dict_to_peft(found)
        lines = [f"{stem} {key.split('.lora_A')[0]}" for key, stem in found.items() if ".lora_A" in key]
        print(pipeline, stability, digest(lines))


if __name__ == "__main__":
    main()
