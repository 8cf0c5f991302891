"""Names of the modules of Stable Diffusion, in diffusers and in kohya's files, by rules of its models."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import NamedTuple, final

from riemerge.errors import AdapterError
from riemerge.formats.files.text import list_names

_LAYERS = 2  # residual layers of a block on the way down; one more on the way up
_RESIDUAL = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


@final
class Pipeline(NamedTuple):
    """The models of a pipeline, as far as names of modules tell.

    Attributes:
        channels: The channels of each block of the UNet on the way down.
        depths: The transformer layers behind each residual layer of a block; 0 where it has no attention.
        embedding: Whether the UNet has a second embedding, of sizes and places.
        encoders: The layers of each text encoder, by its name in diffusers.
        kohya: The names of the models in kohya's keys, by those in diffusers.
        stability: Whether kohya names the UNet's modules as Stability AI's code does, not as diffusers.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    embedding: bool
    encoders: Mapping[str, int]
    kohya: Mapping[str, str]
    stability: bool

    def unet(self) -> Iterator[tuple[str, str]]:
        """Yield the names of the UNet's modules in diffusers and in Stability AI's code.

        Source: diffusers, UNet2DConditionModel; Stability-AI/generative-models, UNetModel.
        """
        yield "conv_in", "input_blocks.0.0"
        yield "conv_out", "out.2"
        for place in (1, 2):
            yield f"time_embedding.linear_{place}", f"time_embed.{2 * place - 2}"
            if self.embedding:
                yield f"add_embedding.linear_{place}", f"label_emb.0.{2 * place - 2}"
        last = len(self.channels) - 1
        for i, depth in enumerate(self.depths):
            block, first = f"down_blocks.{i}", i * (_LAYERS + 1) + 1
            for j in range(_LAYERS):
                widened = j == 0 and i > 0 and self.channels[i] != self.channels[i - 1]
                yield from _residual(f"{block}.resnets.{j}", f"input_blocks.{first + j}.0", shortcut=widened)
                yield from _attention(f"{block}.attentions.{j}", f"input_blocks.{first + j}.1", depth)
            if i < last:
                yield f"{block}.downsamplers.0.conv", f"input_blocks.{first + _LAYERS}.0.op"
        for j in range(2):
            yield from _residual(f"mid_block.resnets.{j}", f"middle_block.{2 * j}", shortcut=False)
        yield from _attention("mid_block.attentions.0", "middle_block.1", max(self.depths[-1], 1))
        for i, depth in enumerate(reversed(self.depths)):
            block, first = f"up_blocks.{i}", i * (_LAYERS + 1)
            for j in range(_LAYERS + 1):
                yield from _residual(f"{block}.resnets.{j}", f"output_blocks.{first + j}.0", shortcut=True)
                yield from _attention(f"{block}.attentions.{j}", f"output_blocks.{first + j}.1", depth)
            if i < last:
                place = 1 + (depth > 0)
                yield f"{block}.upsamplers.0.conv", f"output_blocks.{first + _LAYERS}.{place}.conv"

    def text(self) -> Iterator[tuple[str, str]]:
        """Yield the text encoders and the names of their modules, which are those of transformers' CLIP."""
        for encoder, layers in self.encoders.items():
            for i in range(layers):
                layer = f"text_model.encoder.layers.{i}"
                yield from ((encoder, f"{layer}.self_attn.{name}_proj") for name in ("q", "k", "v", "out"))
                yield from ((encoder, f"{layer}.mlp.{name}") for name in ("fc1", "fc2"))
        if "text_encoder_2" in self.encoders:
            yield "text_encoder_2", "text_projection"

    def stems(self, *, stability: bool) -> dict[str, str]:
        """Return the names of all modules in kohya's keys, by those in the pipeline.

        Args:
            stability: Whether the UNet's modules are named as in Stability AI's code.
        """
        names = {f"unet.{ours}": ("unet", (ours, theirs)[stability]) for ours, theirs in self.unet()}
        names |= {f"{encoder}.{name}": (encoder, name) for encoder, name in self.text()}
        return {
            full: f"{self.kohya[model]}_{name.replace('.', '_')}" for full, (model, name) in names.items()
        }


def _residual(ours: str, theirs: str, *, shortcut: bool) -> Iterator[tuple[str, str]]:
    for name, other in _RESIDUAL.items():
        if shortcut or name != "conv_shortcut":
            yield f"{ours}.{name}", f"{theirs}.{other}"


def _attention(ours: str, theirs: str, depth: int) -> Iterator[tuple[str, str]]:
    names = [f"attn{place}.{name}" for place in (1, 2) for name in _PROJECTIONS]
    inside = [
        f"transformer_blocks.{layer}.{name}"
        for layer in range(depth)
        for name in (*names, "ff.net.0.proj", "ff.net.2")
    ]
    if depth:
        yield from ((f"{ours}.{name}", f"{theirs}.{name}") for name in ("proj_in", *inside, "proj_out"))


PIPELINES: Mapping[str, Pipeline] = {
    "SD 1.5": Pipeline(
        channels=(320, 640, 1280, 1280),
        depths=(1, 1, 1, 0),
        embedding=False,
        encoders={"text_encoder": 12},
        kohya={"unet": "lora_unet", "text_encoder": "lora_te"},
        stability=False,
    ),
    "SDXL": Pipeline(
        channels=(320, 640, 1280),
        depths=(0, 2, 10),
        embedding=True,
        encoders={"text_encoder": 12, "text_encoder_2": 32},
        kohya={"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
        stability=True,
    ),
}
"""The pipelines whose modules are known by name."""

# What names of base models have in them, as trainers and hubs write them; the first that is found decides.
_OF_BASES = {"SDXL": r"xl", "SD 1.5": r"sd_?v?1|diffusion[-_]v?1|v1[-_.]5"}
_OF_PIPELINES = re.compile(r"(unet|transformer(_\d)?|text_encoder(_\d)?|diffusion_model)\.")
_OF_STABILITY = re.compile(r"lora_unet_(input_blocks|middle_block|output_blocks|time_embed_|label_emb|out_2)")
_EXPECTED = {
    "peft": (
        "modules of the UNet of SD 1.5 or SDXL, since a PEFT folder is of one model (kohya and diffusers "
        "have files of all models of a pipeline: --to); or of mlx-lm"
    ),
    "mlx": "modules of a language model in PEFT's folders",
}


def translate(
    modules: Collection[str], source: str, target: str, *, like: Collection[str] = (), base: str | None = None
) -> dict[str, str]:
    """Return the names of modules in another dialect.

    Law: one to one. Between kohya, diffusers and PEFT the modules are those of `PIPELINES`; a PEFT folder has
    those of a UNet. PEFT and mlx name modules of a language model alike. kohya's files have one name for each
    module, but SDXL's UNet has two sets of names, diffusers' and those of Stability AI's code: both are read,
    and kohya's own, the latter, are written. Within a dialect only names of the other set change.

    Args:
        modules: The names.
        source: The dialect that they are of.
        target: The other dialect.
        like: Names in the other dialect, as some file has them: modules that it has are named as in it, and
            others by the same set of names.
        base: The name of the base model, which decides where names fit several pipelines.

    Raises:
        AdapterError: Modules have no name there, or are one module by two names; they are named.
    """
    if source == target and not like:
        return {module: module for module in modules}
    AdapterError.refuse([*find_twins(modules, source), *find_twins(like, target)])
    full = _in_full(modules, source)
    known = {name: module for module, name in _in_full(like, target).items()}
    known = {**_in_dialect(full.values(), target, like, base), **known}
    names = {module: known[name] for module, name in full.items() if name in known}
    if source == target:
        return {module: names.get(module, module) for module in modules}
    if lacking := [module for module in modules if module not in names]:
        expected = _EXPECTED.get(target, "modules of the UNet of SD 1.5 or SDXL, or of its text encoders")
        raise AdapterError(
            f"{len(lacking)} of {len(modules)} modules in the dialect of {source} have no name in that of "
            f"{target}: {list_names(lacking)}: expected {expected}"
        )
    return names


def find_twins(modules: Collection[str], dialect: str) -> list[str]:
    """Say which names of a dialect are names of one module, so that its update is not known.

    Args:
        modules: The names.
        dialect: The dialect that they are of.
    """
    names: dict[str, list[str]] = defaultdict(list)
    for module, name in _in_full(modules, dialect).items():
        names[name].append(module)
    return [
        f"{' and '.join(sorted(twins))} are names of one module, {name}, "
        "and which update it gets is not said: keep one of them"
        for name, twins in sorted(names.items())
        if len(twins) > 1
    ]


def _in_full(modules: Collection[str], dialect: str) -> dict[str, str]:
    """Return the names of modules in the pipeline, as diffusers has them, of those that are known."""
    if dialect == "kohya":
        return {module: _of_stems()[module] for module in modules if module in _of_stems()}
    if dialect == "peft":
        return {module: _at_the_unet(module) for module in modules}
    return {module: module for module in modules}


def _at_the_unet(module: str) -> str:
    """Return the name of a module in the pipeline if it is one of a UNet, which PEFT's names do not say."""
    full = f"unet.{module}"
    if full in _of_pipelines():
        return full
    return module


def find_doubt(modules: Collection[str], source: str, base: str | None) -> str | None:
    """Say that names fit several pipelines, whose modules kohya names differently; None where they do not.

    Args:
        modules: The names.
        source: The dialect that they are of.
        base: The name of the base model, if it is said.
    """
    full = {*_in_full(modules, source).values()}
    stems = [pipeline.stems(stability=pipeline.stability) for pipeline in PIPELINES.values()]
    names = [{name: own[name] for name in own.keys() & full} for own in stems]
    most = max(map(len, names))
    fitting = [own for own in names if len(own) == most]
    if _name_pipeline(base) is not None or all(own == fitting[0] for own in fitting):
        return None
    return (
        f"the names of modules fit {' and '.join(PIPELINES)}, and no name of the base model says which it "
        f"is: written as those of {next(iter(PIPELINES))}; a base model that the settings or the header "
        "name decides"
    )


def _name_pipeline(base: str | None) -> str | None:
    """Return the pipeline that the name of a base model tells; None where it tells none."""
    return next(
        (name for name, pattern in _OF_BASES.items() if re.search(pattern, base or "", re.IGNORECASE)), None
    )


def _in_dialect(
    full: Collection[str], dialect: str, like: Collection[str], base: str | None
) -> Mapping[str, str]:
    """Return the names of modules in a dialect by those in the pipeline, of those that have one."""
    if dialect == "kohya":
        theirs = any(map(_OF_STABILITY.match, like))

        def fit(name: str) -> tuple[int, int, bool, bool]:
            pipeline = PIPELINES[name]
            stems = pipeline.stems(stability=theirs)
            same = {*stems.values()} & {*like}
            own_set = bool(like) and pipeline.stability == theirs
            return len(stems.keys() & {*full}), len(same), own_set, name == _name_pipeline(base)

        pipeline = PIPELINES[max(PIPELINES, key=fit)]
        return pipeline.stems(stability=theirs if like else pipeline.stability)
    if dialect == "diffusers":
        return {name: name for name in full if name in _of_pipelines()}
    whole = {name: name for name in full if not _OF_PIPELINES.match(name)}
    if dialect == "peft":
        whole |= {
            name: name.removeprefix("unet.")
            for name in full
            if name in _of_pipelines() and name.startswith("unet.")
        }
    return whole


@cache
def _of_pipelines() -> frozenset[str]:
    """Return the names of all known modules in their pipelines."""
    return frozenset(_of_stems().values())


@cache
def _of_stems() -> Mapping[str, str]:
    """Return the names of all known modules in their pipelines, by those in kohya's files."""
    return {
        stem: full
        for pipeline in PIPELINES.values()
        for stability in (False, True)
        for full, stem in pipeline.stems(stability=stability).items()
    }
