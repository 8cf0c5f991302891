"""Rows: dense updates edited entry by entry, then added, elected or selected entry by entry."""

from __future__ import annotations

from functools import partial

from riemerge.methods.method import Method
from riemerge.methods.parameters import Parameter, choice, factor, share

_MEANS = "riemerge.methods.elections.election:"
_TIES = "Yadav et al. 2023, TIES-Merging, arXiv 2306.01708"
_DARE = "Yu et al. 2024, Language models are super Mario (DARE), arXiv 2311.03099"
_DELLA = "Deep et al. 2024, DELLA-Merging, arXiv 2406.11617"
_RESCALED = (
    "mergekit keeps Σ|x| of each update after the drop, this one divides by the probability as published: "
    "for mergekit's result ask for rescale norm"
)

PARAMETERS: tuple[Parameter, ...] = (
    Parameter("normalize", "flag", "divide by the sum of the weights of the models that count at an entry"),
    choice(
        "rescale",
        "after a random drop: divide by the probability (`expected`), keep Σ|x| (`norm`), or `none`",
        ("expected", "norm", "none"),
    ),
    share(
        "epsilon",
        "half the spread of the probabilities over the entries of a row, around density; for the rows of RAM "
        "the magnitude up to which an entry counts as unchanged",
        high=0.5,
        open_high=True,
        per_model=True,
    ),
    share(
        "gamma",
        "share of the entries, the largest, that are removed as outliers",
        open_high=True,
        per_model=True,
    ),
    choice(
        "majority_sign_method",
        "vote on a sign: the sum of the values (`total`) or of their signs (`frequency`)",
        ("total", "frequency"),
    ),
    choice("merge_func", "what the updates that agree in sign give", ("mean", "sum", "max")),
    share(
        "select_topk",
        "share of the entries, of the largest variance between models, that is kept",
        open_low=True,
    ),
    factor(
        "mask_threshold",
        "a model needs an entry that is above this times its distance from the merged one",
        per_model=True,
    ),
    factor(
        "r", "gain of the entries that one model alone changed, times how many it shares for each of them"
    ),
    factor("alpha", "most shared entries for each that one model alone changed, which its gain counts"),
    Parameter("agreeing", "integer", "number of models that must need an entry", low=1),
)

_SUM = "flat:normalize={normalize}"
_MASK = "flat:metric=mask:normalize={normalize}"
_entries = partial(Method, domain="entries", normalised=False)
_signed = partial(_entries, negative_weights=True)
_dropped = partial(_signed, edits=("drop",), source=_DARE, differs={"rescale": _RESCALED})
_DROP = {"density": 1.0, "rescale": "expected", "normalize": False, "seed": None}
_ranked = partial(_entries, edits=("drop_by_rank",), differs={"rescale": _RESCALED})
_BY_RANK = {"density": 1.0, "epsilon": 0.15, "rescale": "expected"}
_crumbs = partial(
    _signed,
    source="Davari & Belilovsky 2023, Model Breadcrumbs, arXiv 2312.06795; mergekit",
    edits=("trim_both_ends",),
    own_parameters={"density": 1.0, "gamma": 0.01, "normalize": False},
)
_needed = partial(
    _entries,
    source="Wang et al. 2024, Localizing task information (TALL masks), arXiv 2405.07813",
    models=(2, None),
)
_active = partial(
    _entries,
    source="Yuan et al. 2026, Reinforced Agent Merging, arXiv 2601.13572; mergekit",
    geometry="flat:metric=mask:normalize=true",
    differs={"weights": "mergekit's has no weights, here they count where several models changed an entry"},
)

ROWS: tuple[Method, ...] = (
    _signed(
        name="magnitude_prune",
        geometry="flat:normalize=false",
        summary="Σ wᵢ dWᵢ of updates trimmed to the density of largest entries, per tensor (PEFT's, on dW)",
        source="PEFT, merge_utils.magnitude_prune",
        edits=("trim",),
        own_parameters={"density": 1.0},
    ),
    _entries(
        name="ties",
        summary="trim per tensor, elect signs by Σ wᵢ dWᵢ, weighted mean of who agrees (mergekit's TIES)",
        source=f"{_TIES}; mergekit's `ties`",
        edits=("trim", "elect"),
        geometry=_MASK,
        own_parameters={"density": 1.0, "normalize": True},
    ),
    _signed(
        name="ties_peft",
        summary="trim per tensor, elect signs without weights, weighted sum of who agrees over their number "
        "(PEFT's `ties_svd`)",
        source=f"{_TIES}; PEFT, merge_utils.ties",
        edits=("trim",),
        mean=_MEANS + "elect_unweighted",
        by_rows=True,
        own_parameters={"density": 1.0, "majority_sign_method": "total"},
        idempotent=False,
    ),
    _entries(
        name="ties_original",
        summary="TIES as published: each model trimmed over all modules at once, undecided signs by majority",
        source=_TIES,
        edits=("trim_globally",),
        mean=_MEANS + "elect_globally",
        by_rows=True,
        survey=_MEANS + "vote",
        own_parameters={"density": 0.2, "merge_func": "mean"},
        idempotent=False,
        differs={"always": "the authors' code keeps one entry more of each model, and has no weights"},
    ),
    _dropped(
        name="dare_linear",
        geometry=_SUM,
        summary="drop entries at random, keep the density and rescale it, then Σ wᵢ dWᵢ",
        own_parameters=_DROP,
    ),
    _dropped(
        name="dare_ties",
        summary="drop entries at random, keep the density and rescale it, then elect signs as `ties` does",
        source=f"{_DARE}; mergekit",
        edits=("drop", "elect"),
        geometry=_MASK,
        own_parameters=_DROP,
    ),
    _dropped(
        name="dare_ties_peft",
        summary="as `dare_ties`, but then elect signs as `ties_peft` does (PEFT's `dare_ties_svd`)",
        source=f"{_DARE}; PEFT",
        mean=_MEANS + "elect_unweighted",
        by_rows=True,
        own_parameters={"density": 1.0, "rescale": "expected", "majority_sign_method": "total", "seed": None},
        idempotent=False,
        differs={},
    ),
    _ranked(
        name="della",
        summary="drop entries at random, small ones of a row more often, rescale, then elect as `ties` does",
        source=_DELLA,
        edits=("drop_by_rank", "elect"),
        geometry=_MASK,
        own_parameters={**_BY_RANK, "normalize": True, "seed": None},
    ),
    _ranked(
        name="della_linear",
        geometry=_SUM,
        summary="drop entries at random, small ones of a row more often, rescale, then Σ wᵢ dWᵢ",
        source=f"{_DELLA}; mergekit's `della_linear`",
        own_parameters={**_BY_RANK, "normalize": False, "seed": None},
        negative_weights=True,
    ),
    _crumbs(
        name="breadcrumbs",
        geometry=_SUM,
        summary="remove the gamma of largest entries, keep the density that follow, then Σ wᵢ dWᵢ",
    ),
    _crumbs(
        name="breadcrumbs_ties",
        summary="remove the gamma of largest entries, keep the density that follow, elect as `ties` does",
        edits=("trim_both_ends", "elect"),
        geometry=_MASK,
    ),
    Method(
        name="sce",
        summary="keep the entries of largest variance, weigh models by their energy, erase the minority sign",
        source="Wan et al. 2024, FuseChat (SCE), arXiv 2408.07990; mergekit's `sce`",
        domain="entries",
        mean=_MEANS + "select_and_erase",
        look=_MEANS + "look_for_most_varied",
        own_parameters={"select_topk": 1.0},
        differs={
            "always": "mergekit's clamps at 1e-6 in the unit of the updates, this one nowhere",
            "weights": "mergekit's sce ignores weights, here they count: for its result make them equal",
        },
    ),
    Method(
        name="magmax",
        summary="each entry from the model where wᵢ |dWᵢ| is largest; of equal ones the greatest value",
        source="Marczak et al. 2024, MagMax, arXiv 2407.06322",
        domain="entries",
        mean=_MEANS + "largest",
        by_rows=True,
        differs={"weights": "the authors' code has no weights, here the largest wᵢ |dWᵢ| is chosen"},
    ),
    _entries(
        name="nearswap",
        summary="move each entry of the base towards the models by at most t, Σ wᵢ clip(dWᵢ) (mergekit's)",
        source="alchemonaut 2024, QuartetAnemoi; mergekit's `nearswap`",
        edits=("clip",),
        geometry="flat",
        own_parameters={"t": 1e-4},
        normalised=True,
        idempotent=False,
    ),
    _active(
        name="ram",
        summary="at each entry the weighted mean of the models that changed it by more than epsilon",
        edits=("ignore_small",),
        own_parameters={"epsilon": 1e-5},
    ),
    _active(
        name="ramplus_tl",
        summary="as `ram`, with entries that one model alone changed enlarged, tensor by tensor (RAM+)",
        edits=("ignore_small", "reward_unique"),
        own_parameters={"epsilon": 1e-5, "r": 0.1, "alpha": 0.2},
    ),
    _needed(
        name="consensus",
        summary="Σ wᵢ dWᵢ at the entries that at least `agreeing` models need, zero elsewhere (Consensus TA)",
        mean=_MEANS + "consensus",
        by_rows=True,
        own_parameters={"mask_threshold": 0.6, "agreeing": 2},
    ),
    _needed(
        name="consensus_ties",
        summary="`ties` at the entries that at least `agreeing` models need, zero elsewhere (Consensus TIES)",
        mean=_MEANS + "consensus_elected",
        look=_MEANS + "look_for_consensus",
        own_parameters={"density": 0.2, "normalize": False, "mask_threshold": 0.6, "agreeing": 2},
        idempotent=False,
    ),
)
