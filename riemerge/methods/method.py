"""What a row of the table of methods says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, final

from riemerge.methods.geometries import FORMULA

Domain: TypeAlias = Literal["weights", "gram", "span", "cores", "half", "entries", "factors"]
"""What a mean sees of a module: see `riemerge.methods.setting.Mean`."""

SUMS: frozenset[Domain] = frozenset({"weights", "gram"})
"""Domains whose means are linear combinations of the updates, of tensors of any shape."""


@final
@dataclass(frozen=True, slots=True)
class Method:
    """One way to merge: edits of each update, what *near* means, how distance is punished, how the mean is
    found, and what is done to it.

    A row holds names, not objects, so the table can be printed without loading any numerical library. A name
    may have options, `huber:delta=1`, and an option may be the value of a parameter, `huber:delta={delta}`.

    Attributes:
        name: What a recipe's `merge_method` says.
        summary: One line for a person choosing.
        source: Where the method comes from: author, year.
        edits: What is done to the updates first, in order: names in `riemerge.methods.edits.EDITS`.
        geometry: What *near* means: a name in `riemerge.methods.geometries.GEOMETRIES`; `formula` where the
            mean is no Fréchet mean.
        loss: How distance is punished: a name in `riemerge.losses.LOSSES`.
        solver: How the mean is found, unless a recipe says: a name in `riemerge.solvers.SOLVERS`, or
            `closed_form`.
        finish: What is done to the mean, in words.
        domain: What a formula sees of a module (see `riemerge.methods.setting.Mean`): `gram` inner products,
            `weights` nothing but the weights, `span` a stack of cores in the joint span, `cores` the same as
            their decompositions side by side, `half` cores on the left and full width on the right, `entries`
            the dense updates, `factors` the factors in the joint span. A geometry has its own.
        mean: `package.module:function` of a formula (see `riemerge.methods.setting.Mean`); empty where the
            mean is the geometry's.
        together: `package.module:function` of a formula of the domain `cores` for K modules side by side,
            whose updates have the same ranks (see `riemerge.methods.setting.Together`); empty for none.
        by_rows: Whether a formula of `entries` may be applied to runs of rows apart, each by itself.
        look: `package.module:function` of what looks at all rows of a module before a formula of `entries` is
            applied to runs of them (see `riemerge.methods.setting.Look`); empty where there is none.
        survey: `package.module:function` of what looks at all modules first; empty for none.
        own_parameters: Names in `riemerge.methods.parameters.PARAMETERS` that the method takes beside
            `weight`, `rank` and `scale`, or with a default of its own, each with that default; None where a
            recipe that is silent leaves the value open.
        normalised: Whether the weights are divided by their sum.
        negative_weights: Whether a weight below zero has a meaning.
        gauge_invariant: Whether the result depends on the updates dW alone, not on the factors A and B.
        idempotent: Whether copies of one model, with weights of sum 1 and no scale, merge to it, at the
            default parameters.
        ordered: Whether the models are a sequence, whose order matters.
        models: Least and greatest number of models that count; None for any.
        statistics: Kinds of statistics that every model must come with.
        base_statistics: Whether the base model must come with the same.
        checkpoints: What full checkpoints are to the method: `weights` merges them as they are, or their
            differences from a base model where one is given; `updates` needs the base model; `no` takes
            adapters only.
        constrained: Whether the mean is sought among matrices of the result's rank, rather than cut to it.
        truncates_inputs: Whether `rank` cuts the inputs and not the result: the mean is one of matrices of
            one rank, which all inputs of a module must have, and nothing is added up that could cancel.
        may_be_undetermined: Whether the inputs may leave the mean open, so that starts end in different
            ones. What a report says about that is about such a row.
        geometric: Whether the mean is one in a geometry of this package, which the benchmarks compare with
            the published methods.
        server_step: Whether the row is the step of a server's optimizer: a multiple of the average, meant
            for updates of one model.
        directions: Whether the angles between the models count, which a model that is zero has none of.
        differs: How the result differs from that of the package or paper whose name and words the row has, by
            when it does: `always` (by what is its definition here), `weights` where they are not equal,
            `rescale` where a random drop is rescaled as by default. The last two are told with each result.
        output_rank: The rank of a merged update, in words.
    """

    name: str
    summary: str
    source: str
    edits: tuple[str, ...] = ()
    geometry: str = FORMULA
    loss: str = "square"
    solver: str = "closed_form"
    finish: tuple[str, ...] = ()
    domain: Domain = "span"
    mean: str = ""
    together: str = ""
    by_rows: bool = False
    look: str = ""
    survey: str = ""
    own_parameters: Mapping[str, Any] = field(default_factory=dict)
    normalised: bool = True
    negative_weights: bool = False
    gauge_invariant: bool = True
    idempotent: bool = True
    ordered: bool = False
    models: tuple[int, int | None] = (1, None)
    statistics: tuple[str, ...] = ()
    base_statistics: bool = False
    checkpoints: Literal["weights", "updates", "no"] = "updates"
    constrained: bool = False
    truncates_inputs: bool = False
    may_be_undetermined: bool = False
    geometric: bool = False
    server_step: bool = False
    directions: bool = False
    differs: Mapping[str, str] = field(default_factory=dict)
    output_rank: str = "the largest of the inputs', or --rank (`sum`: all of it)"

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters that the method takes beside `weight`."""
        return tuple(dict.fromkeys(("rank", "scale", *self.own_parameters)))

    @property
    def defaults(self) -> dict[str, Any]:
        """Values of the parameters where the recipe has none; those that stay open are left out."""
        return {name: value for name, value in self.own_parameters.items() if value is not None}
