"""A small collection as `riemerge map` writes it: two relatives, a copy in another gauge, and a stranger."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from riemerge.records.collection_record import (
    Advice,
    Cluster,
    CollectedAdapter,
    CollectedModule,
    CollectionRecord,
    CopyGroup,
    KeptEnergy,
    LeftOut,
    ModuleGroup,
    NearPair,
    Neighbour,
    Outlier,
    PairDistance,
    Repetition,
    Spectrum,
)
from riemerge.records.pair_tables import PAIRS_FILE

NAMES = ("law", "law_again", "med", "odd")
MODULES = ("layers.0.q", "layers.0.v", "layers.1.q")
NORMS = torch.tensor([1.0, 1.0, 1.2, 30.0], dtype=torch.float64)
COSINES = torch.tensor(
    [[1.0, 1.0, 0.6, 0.01], [1.0, 1.0, 0.6, 0.01], [0.6, 0.6, 1.0, -0.02], [0.01, 0.01, -0.02, 1.0]],
    dtype=torch.float64,
)


def made_collection() -> CollectionRecord:
    """A record of four adapters, each field with something in it."""
    groups = (
        ModuleGroup(name="total", kind="total", layer=None, modules=MODULES),
        ModuleGroup(name="layers.*.q", kind="projection", layer=None, modules=MODULES[::2]),
        ModuleGroup(name="layers.*.v", kind="projection", layer=None, modules=MODULES[1:2]),
        ModuleGroup(name="layers.0", kind="depth", layer=0, modules=MODULES[:2]),
        ModuleGroup(name="layers.1", kind="depth", layer=1, modules=MODULES[2:]),
    )
    return CollectionRecord(
        adapters=tuple(
            CollectedAdapter(
                name=name,
                sha256={"adapter_model.safetensors": f"{place:064x}"},
                base_model="somebody/base",
                dtype="bfloat16",
                norm=norm,
                ranks=(3,),
                numerical_rank=3.0,
                stable_rank=1.5 + place / 4,
                missing=("layers.1.q",) * (name == "odd"),
                cluster=(0, 0, 0, 1)[place],
                mean_cosine=(0.305, 0.305, 0.39, 0.0)[place],
            )
            for place, (name, norm) in enumerate(zip(NAMES, NORMS.tolist(), strict=True))
        ),
        left_out=(LeftOut(name="broken", reasons=("broken: layers.0.q: lora_A holds 1 NaN or Inf",)),),
        modules=tuple(
            CollectedModule(
                name=name,
                shape=(14, 12),
                adapters=4 - (name == "layers.1.q"),
                left_random=0.46,
                right_random=0.5,
            )
            for name in MODULES
        ),
        groups=groups,
        copies=(
            CopyGroup(
                kept="law",
                repetitions=(
                    Repetition(
                        name="law_again", likeness="refactored", factor=1.0, distance=0.002, rounding=0.003
                    ),
                ),
            ),
        ),
        near=(NearPair(first="law", second="med", cosine=0.997, distance=0.08),),
        neighbours=tuple(
            tuple(
                Neighbour(name=NAMES[j], cosine=float(COSINES[i, j]), distance=float(_distances()[i, j]))
                for j in COSINES[i].argsort(descending=True, stable=True).tolist()
                if j != i
            )
            for i in range(4)
        ),
        outliers=(Outlier(name="odd", measure="norm", value=30.0, usual=1.1, score=41.0),),
        clusters=(
            Cluster(
                label=0,
                kind="family",
                members=NAMES[:3],
                medoid="law",
                cosine=0.6,
                cosine_outside=0.0,
                silhouette=0.4,
                overlap_left=0.8,
                overlap_right=0.9,
                determined="yes",
                judged=("law", "med"),
            ),
            Cluster(
                label=1,
                kind="alone",
                members=("odd",),
                medoid="odd",
                cosine=None,
                cosine_outside=0.0,
                silhouette=0.0,
                overlap_left=None,
                overlap_right=None,
                determined=None,
                judged=(),
            ),
        ),
        linkage=((0, 1, 0.0, 2), (2, 4, 0.894, 3), (3, 5, 1.42, 4)),
        silhouettes={2: 0.26, 3: 0.2},
        coordinates=((-0.4, 0.1), (-0.4, 0.1), (-0.3, -0.5), (1.1, 0.2)),
        coordinates_share=(0.7, 0.2),
        spectra=tuple(
            Spectrum(group=group.name, low=(1.0, 0.4, 0.1), median=(1.0, 0.5, 0.2), high=(1.0, 0.6, 0.4))
            for group in groups
        ),
        kept=tuple(
            KeptEnergy(group=group.name, directions=(1, 2, 4, 8), kept=(0.2, 0.5, 0.8, 1.0))
            for group in groups
        ),
        distances=(
            PairDistance(first="law", second="med", metric="quotient", distance=1.7),
            PairDistance(
                first="law",
                second="odd",
                metric="quotient",
                distance=None,
                notes=("layers.0.q: ranks differ",),
            ),
        ),
        advice=(
            Advice(
                action="drop",
                adapters=("law_again",),
                text="law_again is law in other factors: keep one of them.",
                measure="relative distance",
                value=0.002,
            ),
            Advice(
                action="geomerge",
                adapters=("law", "med"),
                text="These are one family, and they determine their Fréchet mean.",
                measure="mean cosine",
                value=0.6,
                command="riemerge merge law med -o family-0 --method geomerge",
            ),
        ),
        notes=("odd lacks 1 of 3 modules (layers.1.q): its update counts as zero there",),
        versions={"riemerge": "0", "torch": "0"},
    )


def write_tables(folder: Path) -> None:
    """The tables of `made_collection`, one for all groups."""
    tables = {"cosine": COSINES, "distance": _distances(), "left": COSINES.abs(), "right": COSINES.abs()}
    pairs = {
        f"{measure}/{group.name}": table.clone()
        for group in made_collection().groups
        for measure, table in tables.items()
    }
    values = torch.tensor([1.0, 0.5, 0.2]).expand(4, 3, 3).clone()
    per_module = {
        "norms": torch.ones(4, 3, dtype=torch.float64),
        "ranks": torch.full((4, 3), 3),
        "numerical_ranks": torch.full((4, 3), 3),
        "singular_values": values,
    }
    save_file({**pairs, **per_module}, folder / PAIRS_FILE)


def _distances() -> torch.Tensor:
    squares = NORMS.square()
    inner = COSINES * NORMS * NORMS.unsqueeze(1)
    return (squares + squares.unsqueeze(1) - 2 * inner).clamp_min(0).sqrt()
