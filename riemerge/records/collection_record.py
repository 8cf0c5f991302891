"""Collections: what `riemerge map` says of many adapters, as data that can be written, read and shown."""

from __future__ import annotations

from typing import Literal, TypeAlias, final

from pydantic import BaseModel, ConfigDict

from riemerge.records.run_record import Determined

Likeness: TypeAlias = Literal["copy", "refactored", "scaled"]
"""How an adapter repeats another: the same files, the same dW in other files, or a multiple of dW."""

ClusterKind: TypeAlias = Literal["family", "copies", "alone", "strangers"]
"""What a cluster is: related adapters, one adapter and its copies, a single one, or unrelated ones."""

Action: TypeAlias = Literal["drop", "choose", "geomerge", "average", "default", "leave out"]
"""What to do with some adapters: drop copies, choose one of multiples, merge by a method, or leave out."""

Unusual: TypeAlias = Literal["direction", "norm"]
"""What is unusual of an outlier: the angle to its nearest neighbour, or ‖dW‖."""

Metric: TypeAlias = Literal["quotient", "grassmann"]
"""A geodesic distance: of updates of one rank as factors up to gauge, or of both spaces."""

_FROZEN = ConfigDict(frozen=True, extra="forbid")


@final
class CollectedModule(BaseModel):
    """One module that some adapter of a collection has.

    Attributes:
        name: Name of the module in the base model.
        shape: (m, n), outputs by inputs.
        adapters: Number of adapters that have the module.
        left_random: RMS cosine expected of uniformly random column spaces, of the mean rank: √(r / m).
        right_random: RMS cosine expected of uniformly random row spaces, of the mean rank: √(r / n).
    """

    model_config = _FROZEN
    name: str
    shape: tuple[int, int]
    adapters: int
    left_random: float
    right_random: float


@final
class ModuleGroup(BaseModel):
    """Modules over which pairs are measured together: all, those of one projection, or those of one layer.

    Attributes:
        name: Name of the group: `total`, a pattern such as `layers.*.self_attn.q_proj`, or `layers.3`.
        kind: How the modules were chosen: all (`total`), by their projection, or by their layer (`depth`).
        layer: Number of the layer; None unless the kind is `depth`.
        modules: Names of the modules, sorted.
    """

    model_config = _FROZEN
    name: str
    kind: Literal["total", "projection", "depth"]
    layer: int | None
    modules: tuple[str, ...]


@final
class CollectedAdapter(BaseModel):
    """One adapter of a collection.

    Attributes:
        name: Name of its folder; never a path of the machine.
        sha256: The sha256 of each file that enters the updates, by file name.
        base_model: Base model that its config names.
        dtype: Dtype of the stored factors.
        norm: ‖dW‖, all modules together.
        ranks: Stored ranks of its modules, each once, ascending.
        numerical_rank: Mean over its modules of the number of singular values above the rounding of storage.
        stable_rank: Σ ‖dWₖ‖² / Σ σ₁(dWₖ)² over its modules; 0 where dW is zero.
        missing: Names of the modules that others have and it lacks: there its update counts as zero.
        saved: Shapes of whole tensors saved beside its factors (heads, trained biases), by name.
        cluster: Label of its cluster.
        mean_cosine: Mean cosine of its dW with those of all others that are no copies of it or of another;
            None where there is none.
    """

    model_config = _FROZEN
    name: str
    sha256: dict[str, str]
    base_model: str | None
    dtype: str
    norm: float
    ranks: tuple[int, ...]
    numerical_rank: float
    stable_rank: float
    missing: tuple[str, ...]
    saved: dict[str, tuple[int, ...]] = {}
    cluster: int
    mean_cosine: float | None


@final
class LeftOut(BaseModel):
    """An adapter that was asked for and takes no part.

    Attributes:
        name: Name of its folder.
        reasons: Every reason why it cannot be compared with the others.
    """

    model_config = _FROZEN
    name: str
    reasons: tuple[str, ...]


@final
class Repetition(BaseModel):
    """An adapter that repeats the one that is kept of its group.

    Attributes:
        name: Name of the adapter.
        likeness: How it repeats it.
        factor: The number c for which c·dW of the kept one is nearest: 1 for copies.
        distance: ‖dW − c·dW of the kept one‖ / ‖dW‖.
        rounding: What rounding of both to their stored dtypes does to dW, as a share of ‖dW‖, about.
    """

    model_config = _FROZEN
    name: str
    likeness: Likeness
    factor: float
    distance: float
    rounding: float


@final
class CopyGroup(BaseModel):
    """Adapters whose dW are positive multiples of each other, within what rounding did to them.

    Attributes:
        kept: Name of the adapter that stands for all: that of least rounding among those of the usual norm.
        repetitions: The others.
    """

    model_config = _FROZEN
    kept: str
    repetitions: tuple[Repetition, ...]


@final
class Opposition(BaseModel):
    """An adapter whose dW is a negative multiple of another's: both cancel in a merge.

    Attributes:
        name: Name of the adapter.
        of: Name of the other one.
        factor: The number c for which c·dW of the other one is nearest, below 0.
        distance: ‖dW − c·dW of the other one‖ / ‖dW‖.
    """

    model_config = _FROZEN
    name: str
    of: str
    factor: float
    distance: float


@final
class NearPair(BaseModel):
    """Two adapters that are no copies and nearly the same, such as two steps of one training run.

    Attributes:
        first: Name of the first adapter.
        second: Name of the second adapter.
        cosine: Cosine of the angle between their dW.
        distance: ‖dW − dW'‖ / max(‖dW‖, ‖dW'‖).
    """

    model_config = _FROZEN
    first: str
    second: str
    cosine: float
    distance: float


@final
class Neighbour(BaseModel):
    """An adapter near another one.

    Attributes:
        name: Name of the near adapter.
        cosine: Cosine of the angle between their dW.
        distance: ‖dW − dW'‖ / max(‖dW‖, ‖dW'‖).
    """

    model_config = _FROZEN
    name: str
    cosine: float
    distance: float


@final
class Outlier(BaseModel):
    """An adapter that is unlike what is usual in the collection.

    Attributes:
        name: Name of the adapter.
        measure: What is unusual.
        value: The angle in degrees, or ‖dW‖.
        usual: The median of the collection, in that unit.
        score: Distance of the value (of log ‖dW‖) from the median in robust standard deviations.
    """

    model_config = _FROZEN
    name: str
    measure: Unusual
    value: float
    usual: float
    score: float


@final
class Cluster(BaseModel):
    """Adapters that are nearer to each other than to the rest.

    Attributes:
        label: Number of the cluster from 0; the largest is first.
        kind: What the cluster is.
        members: Names of the adapters, sorted.
        medoid: Name of the member of least mean distance to the others.
        cosine: Mean cosine of the pairs of members that are no copies; None without such a pair.
        cosine_outside: Mean cosine of members with adapters of other clusters; None where all are members.
        silhouette: Mean silhouette of its members, copies counted once; 0 for a single one.
        overlap_left: RMS cosine of the principal angles of the column spaces over pairs of members; None
            without a pair.
        overlap_right: RMS cosine of the principal angles of the row spaces; None without a pair.
        determined: Whether the members that were judged determine their Fréchet mean of one rank; None where
            that was not asked.
        judged: Names of the members that were judged: the medoid and those nearest to it, no copies.
    """

    model_config = _FROZEN
    label: int
    kind: ClusterKind
    members: tuple[str, ...]
    medoid: str
    cosine: float | None
    cosine_outside: float | None
    silhouette: float
    overlap_left: float | None
    overlap_right: float | None
    determined: Determined | None
    judged: tuple[str, ...]


@final
class Spectrum(BaseModel):
    """Singular values of the updates of a group of modules, as shares of the largest of each update.

    Law: entry a is of σ_{a+1} / σ₁ over all adapters and modules of the group that have a non-zero update; an
    update of a smaller rank counts as 0 there.

    Attributes:
        group: Name of the group of modules.
        low: Lower quartiles.
        median: Medians.
        high: Upper quartiles.
    """

    model_config = _FROZEN
    group: str
    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]


@final
class KeptEnergy(BaseModel):
    """How much of a group of modules stays in directions that all adapters have in common.

    Law: P and Q are the k leading eigenvectors of Σ dW dWᵀ and Σ dWᵀ dW over adapters, each scaled to
    ‖dW‖ = 1 over all modules; the share is Σ ‖Pᵀ dW Q‖² / Σ ‖dW‖² over adapters and modules.

    Attributes:
        group: Name of the group of modules.
        directions: Numbers k of directions a side, ascending.
        kept: Share of the energy that stays, for each k.

    Source: the measure is that of SHARE (arXiv 2602.06043), of dW in place of its factors.
    """

    model_config = _FROZEN
    group: str
    directions: tuple[int, ...]
    kept: tuple[float, ...]


@final
class PairDistance(BaseModel):
    """A geodesic distance of two adapters, which was asked for.

    Attributes:
        first: Name of the first adapter.
        second: Name of the second adapter.
        metric: What was measured.
        distance: Root of the sum of squares over the modules that both have; None where one has none.
        notes: Why a distance is missing.
    """

    model_config = _FROZEN
    first: str
    second: str
    metric: Metric
    distance: float | None
    notes: tuple[str, ...] = ()


@final
class Advice(BaseModel):
    """What to do with some adapters of the collection, and the number that says so.

    Attributes:
        action: What to do.
        adapters: Names of the adapters that the advice is for.
        text: The advice and its reason, a sentence or two.
        measure: Name of the number that decided.
        value: The number that decided.
        command: Command to run where the adapters lie, by their names; empty where there is none.
    """

    model_config = _FROZEN
    action: Action
    adapters: tuple[str, ...]
    text: str
    measure: str
    value: float
    command: str = ""


@final
class CollectionRecord(BaseModel):
    """What `riemerge map` found: the content of `collection.json`.

    Law: a function of the adapters, whatever their order; holds names, never paths of the machine. The
    adapters are sorted by name, and every tuple that goes over them is in that order. Tables of all pairs lie
    beside it (`riemerge.records.pair_tables`).

    Attributes:
        adapters: The T adapters that take part.
        left_out: Adapters that were asked for and take no part.
        modules: The modules that any adapter has, sorted by name.
        groups: Groups of modules over which pairs are measured together, `total` first.
        copies: Groups of adapters that are positive multiples of one dW.
        opposed: Adapters that are negative multiples of another.
        near: Nearly equal pairs that are no copies, the nearest first; at most ten for each adapter.
        neighbours: The nearest adapters of each adapter, the nearest first, copies among them.
        outliers: Adapters that are unlike what is usual here, the most unusual first.
        clusters: Clusters, the largest first.
        linkage: Rows of scipy's hierarchical clustering: two nodes, their distance √(2 − 2 cosine), the size.
        silhouettes: Mean silhouette by number of clusters.
        coordinates: Two coordinates of each adapter (classical scaling of √(2 − 2 cosine)).
        coordinates_share: Share of the squared distances that each coordinate shows.
        spectra: Singular values of each group of modules.
        kept: Kept energy of each group of modules.
        distances: Geodesic distances that were asked for.
        advice: What to do, the most certain first.
        notes: What was taken to be the same, and what counts as zero.
        versions: Versions of what computed, by package.
    """

    model_config = _FROZEN
    format: Literal[1] = 1
    adapters: tuple[CollectedAdapter, ...]
    left_out: tuple[LeftOut, ...]
    modules: tuple[CollectedModule, ...]
    groups: tuple[ModuleGroup, ...]
    copies: tuple[CopyGroup, ...]
    opposed: tuple[Opposition, ...] = ()
    near: tuple[NearPair, ...]
    neighbours: tuple[tuple[Neighbour, ...], ...]
    outliers: tuple[Outlier, ...]
    clusters: tuple[Cluster, ...]
    linkage: tuple[tuple[int, int, float, int], ...]
    silhouettes: dict[int, float]
    coordinates: tuple[tuple[float, float], ...]
    coordinates_share: tuple[float, float]
    spectra: tuple[Spectrum, ...]
    kept: tuple[KeptEnergy, ...]
    distances: tuple[PairDistance, ...] = ()
    advice: tuple[Advice, ...] = ()
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the T adapters."""
        return tuple(adapter.name for adapter in self.adapters)

    def to_json(self) -> str:
        """Return the record as indented JSON, with a final line break."""
        return self.model_dump_json(indent=1) + "\n"
