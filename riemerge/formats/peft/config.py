"""`adapter_config.json`: what of it enters dW, what does not matter, and what is refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from riemerge.formats.files.text import brief, list_names, show, strict_json

_T = TypeVar("_T")

_MAX_PATTERN = 200

# PEFT loads no adapter of any other task.
_TaskType: TypeAlias = Literal[
    "SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"
]

# W0 is what these leave alone (read in PEFT's source, 0.21.2), so dW = s·B·A is the whole update. "eva" and
# "gaussian" choose A with B = 0, "orthogonal" chooses both with B A = 0, "mica" chooses B with A = 0, false
# is a plain random start. All others (pissa*, olora, corda, lora_ga, loftq) subtract from W0 or replace it at
# initialisation.
_INITS_THAT_KEEP_THE_BASE = (True, False, "gaussian", "eva", "orthogonal", "mica")

_CONVERTED_BY_PEFT = ("pissa", "corda", "olora", "lora_ga")

_REFUSED: Mapping[str, str] = {
    "alora_invocation_tokens": "aLoRA acts only after certain tokens",
    "arrow_config": "Arrow routes between adapters",
    "kasa_config": "KaSA adds a diagonal and truncates the base weight",
    "layer_replication": "layer replication changes the base model",
    "megatron_config": "Megatron layers are split over devices",
    "monteclora_config": "MonteCLoRA samples its factors",
    "use_bdlora": "BD-LoRA has block-diagonal factors",
    "use_qalora": "QA-LoRA pools the input before A",
    "velora_config": "VeLoRA changes the training of the factors",
}

_CONVERT = "riemerge convert makes a LoRA of it, with the same dW (--to peft), or the whole dW (--to delta)"
_EXTRACT = (
    "merge it into the base model with PEFT (merge_and_unload): riemerge extract makes a LoRA of it then"
)
_OTHER_METHODS: Mapping[str, str] = {
    "LOHA": _CONVERT,
    "LOKR": _CONVERT,
    "IA3": f"it scales activations, so its dW depends on the base weight: {_EXTRACT}",
    "OFT": f"it turns the base weight, on which its dW depends: {_EXTRACT}",
    "BOFT": f"it turns the base weight, on which its dW depends: {_EXTRACT}",
    "VERA": f"it scales random factors that its file may not hold: {_EXTRACT}",
}

# Settings of training, of loading, or of a mode that another key (refused above) switches on.
_WITHOUT_EFFECT = frozenset(
    {
        *("init_lora_weights", "peft_type"),  # refused below unless they have no effect
        *("corda_config", "eva_config", "loftq_config", "lora_ga_config"),
        *("megatron_core", "qalora_group_size"),
        *("inference_mode", "lora_dropout", "peft_version", "runtime_config"),
    }
)


@final
class AdapterConfig(BaseModel):
    """The facts of `adapter_config.json` that give dW its scale and name what it belongs to.

    Law: `scale(module)` is PEFT's own: alpha / r, or alpha / sqrt(r) with `use_rslora`, after `alpha_pattern`
    and `rank_pattern` have been looked up independently of each other. Absent keys have PEFT's defaults, and
    so have null ones but `r` and `lora_alpha`: PEFT computes with them, and fails.

    `fan_in_fan_out` says that the base stores its weights as (in, out) (GPT-2's Conv1D). The update is B @ A,
    (out, in), all the same; what is added to the stored weight is its transpose. So the flag does not enter
    any computation: the inputs of a merge must agree in it, and the output carries it on.

    Source: docs of PEFT 0.21.2, LoraConfig.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    r: int = Field(default=8, gt=0)
    lora_alpha: float = 8.0
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    lora_bias: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, Annotated[int, Field(gt=0)]] = {}
    alpha_pattern: dict[str, float] = {}
    target_modules: list[str] | str | None = None
    target_parameters: list[str] | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    bias: Literal["none", "lora_only", "all"] = "none"
    modules_to_save: list[str] | None = None
    ensure_weight_tying: bool = False
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    task_type: _TaskType | None = None
    auto_mapping: dict[str, Any] | None = None

    def rank(self, module: str) -> int:
        """Return the rank r that PEFT gives to this module."""
        return _look_up(self.rank_pattern, module, self.r)

    def alpha(self, module: str) -> float:
        """Return the alpha that PEFT gives to this module."""
        return _look_up(self.alpha_pattern, module, self.lora_alpha)

    def scale(self, module: str) -> float:
        """Return the factor s of dW = s·B·A for this module."""
        divisor: float = self.rank(module)
        if self.use_rslora:
            divisor = math.sqrt(divisor)
        return self.alpha(module) / divisor

    def loads(self, module: str) -> bool:
        """Return whether PEFT puts factors on a module of this name, as far as the settings decide it.

        Law: PEFT's own rule; true where PEFT chooses by the base model, and for a regular expression that
        could take for ever to match.
        """
        return self._targets(module) or bool(self.parameters(module))

    def parameters(self, module: str) -> tuple[str, ...]:
        """Return the parameters of a module to which PEFT may give factors, sorted by their names in it.

        Law: PEFT's own rule, but for a name without a module in front of it, which is of every module that
        the settings do not name otherwise: only the base model says which modules have one.
        """
        split = (key.rpartition(".") for key in self.target_parameters or ())
        names = {
            name
            for owner, _, name in split
            if (_names([owner], module, unknown=False) if owner else not self._targets(module))
        }
        return tuple(sorted(names))

    def _targets(self, module: str) -> bool:
        """Return whether PEFT puts factors on the weight of a module."""
        targets, layers = self.target_modules, self.layers_to_transform
        if _names(self.exclude_modules or (), module, unknown=False):
            return False
        if targets is None or (isinstance(targets, str) and targets.lower() == "all-linear"):
            return True
        if isinstance(targets, list) and module in targets:  # whatever its layer
            return True
        if not _names(targets, module, unknown=True):
            return False
        patterns = _as_list(self.layers_pattern or [])
        if layers is None or layers == [] or any(map(_why_unsafe, patterns)):
            return True
        return _layer(patterns, module) in _as_list(layers)

    def notes(self, modules: Collection[str]) -> list[str]:
        """Say what a person may have meant otherwise, where PEFT goes on and so do we.

        Args:
            modules: The names of all modules that have factors.
        """
        texts = []
        keys = {
            key
            for module in modules
            for key in [f"{module}.{name}" for name in self.parameters(module)] or [module]
        }
        for name in ("rank_pattern", "alpha_pattern"):
            pattern = getattr(self, name)
            decide = {next(_keys(pattern, key), None) for key in keys}
            if idle := [key for key in pattern if key not in decide]:
                texts.append(
                    f"{name}: {list_names(idle)}: decides nothing, here as in PEFT: no module has such a "
                    "name, or an earlier key comes first"
                )
        unusual: dict[str, Callable[[str], bool]] = {
            "alpha is negative, which turns its update around, here as in PEFT": (
                lambda module: self.alpha(module) < 0
            ),
            "alpha is 0, and so is its update": lambda module: self.alpha(module) == 0,
            "modules that its settings (target_modules, exclude_modules, layers_to_transform) do not name "
            "are merged, since they are in its file, but PEFT leaves them out: the result has more of this "
            "adapter than PEFT applies": lambda module: not self.loads(module),
        }
        for fact, applies in unusual.items():
            if chosen := list(filter(applies, modules)):
                texts.append(f"{fact}: {len(chosen)} of {len(modules)} modules ({list_names(chosen)})")
        return texts


def parse_config(content: bytes) -> tuple[AdapterConfig | None, list[str]]:
    """Read the bytes of an `adapter_config.json`, and say everything that keeps it from being read exactly.

    Returns:
        The configuration (None where it has no meaning) and the problems, each without the name of the file.
    """
    try:
        raw = strict_json(content)
    except ValueError as error:
        return None, [str(error)]
    if not isinstance(raw, dict):
        return None, [f"holds a {type(raw).__name__}: expected an object of settings"]
    if (kind := raw.get("peft_type")) != "LORA":
        advice = _OTHER_METHODS.get(str(kind), "only LORA is supported")
        return None, [f"peft_type is {brief(kind)}: {advice}"]

    problems = [
        f"{key} is {brief(raw[key])}: {why}; not supported" for key, why in _REFUSED.items() if raw.get(key)
    ]
    if (init := raw.get("init_lora_weights")) is not None and (
        not isinstance(init, bool | str) or init not in _INITS_THAT_KEEP_THE_BASE
    ):
        problems.append(f"init_lora_weights is {brief(init)}: {_way_out_of(init)}")
    known = {*AdapterConfig.model_fields, *_REFUSED, *_WITHOUT_EFFECT}
    problems += [
        f"{brief(key)} is {brief(value)}: an unknown setting, whose effect on the update is not known"
        for key, value in raw.items()
        if key not in known and value
    ]
    try:
        # PEFT writes null for "not set", but not for these two: it cannot load an adapter in which they are.
        given = {key: value for key, value in raw.items() if value is not None or key in {"r", "lora_alpha"}}
        config = AdapterConfig.model_validate(given)
    except ValidationError as error:
        for fault in error.errors():
            where = ".".join(show(str(part)) for part in fault["loc"])
            reason = fault["msg"][0].lower() + fault["msg"][1:]
            problems.append(f"{where} is {brief(fault['input'])}: {reason}")
        return None, problems
    unsafe = [
        f"{field} has the key {brief(key)}: {why}"
        for field in ("rank_pattern", "alpha_pattern")
        for key in getattr(config, field)
        if (why := _why_unsafe(key))
    ]
    if unsafe:
        return None, problems + unsafe
    return config, problems


def _way_out_of(init: Any) -> str:
    """Say why an initialisation that changes the base weights is refused, and how to convert the adapter.

    Source: PEFT 0.21.2, `LoraModel._convert_state_dict_for_initial_model`.
    """
    ways = (
        "merge it into its own changed base with PEFT (merge_and_unload, save_pretrained), and take what "
        "that changed of the original: riemerge extract BASE MERGED -o ADAPTER --rank N"
    )
    if str(init).lower().startswith(_CONVERTED_BY_PEFT):
        ways = (
            "convert it with PEFT, where the adapter was saved before training: "
            "model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion=FOLDER_OF_THAT_ADAPTER); "
            f"or {ways}"
        )
    return (
        "this initialisation changes the base weights, so s·B·A is not the update of the original base; not "
        f"supported unless converted: {ways}"
    )


def _look_up(pattern: Mapping[str, _T], module: str, default: _T) -> _T:
    return next((pattern[key] for key in _keys(pattern, module)), default)


def _keys(pattern: Iterable[str], module: str) -> Iterator[str]:
    """Return the keys that PEFT matches, the whole name or its end from any dot on; the first one decides."""
    return (key for key in pattern if re.match(_as_peft(key), module))


def _as_peft(key: str) -> str:
    return rf"(.*\.)?({key})$"


def _names(setting: Iterable[str], module: str, *, unknown: bool) -> bool:
    """Return whether a setting names a module: a list by its end from any dot on, a text as an expression.

    Args:
        setting: A list of names, or a regular expression.
        module: The name of the module.
        unknown: The answer for an expression that is not run.
    """
    if not isinstance(setting, str):
        return any(f".{module}".endswith(f".{name}") for name in setting)
    if _why_unsafe(setting):
        return unknown
    return re.fullmatch(setting, module) is not None


def _layer(patterns: Collection[str], module: str) -> int | None:
    """Return the number of the layer that PEFT finds in a module's name."""
    prefixes = [rf"(?:^|.*?\.){pattern}" for pattern in patterns] or [r".*?\.[^.]*"]
    matches = (re.match(rf"{prefix}\.(?P<index>\d+)\.", module) for prefix in prefixes)
    return next((int(match["index"]) for match in matches if match), None)


def _as_list(setting: _T | list[_T]) -> list[_T]:
    if isinstance(setting, list):
        return setting
    return [setting]


def _why_unsafe(key: str) -> str | None:
    r"""Say why a pattern is not run: it is no regular expression, or matching it could take for ever.

    Backtracking is polynomial of low degree, in names of at most MAX_NAME characters, when at most two
    quantifiers and two groups occur and no group is repeated; one that may be left out, `(...)?`, is not.
    PEFT's usual keys (names, `^name`, `.*layers\.\d+\.q_proj`, `(?:q|v)_proj`) pass.
    """
    bare = re.sub(r"\\.|\[[^\]]*\]", "x", key).replace("(?:", "(")
    if len(key) > _MAX_PATTERN:
        return f"longer than {_MAX_PATTERN} characters"
    repeats, groups = len(re.findall(r"[*+?{]", bare)), bare.count("(")
    if "(?" in bare or re.search(r"\)[*+{]", bare) or repeats > 2 or groups > 2:
        return (
            "too complex to match safely; expected a module name, or at most two groups, two of * + ? {, and "
            "no (...)* or lookaround"
        )
    try:
        re.compile(_as_peft(key))
    except re.error as error:
        return f"not a regular expression ({error})"
    return None
