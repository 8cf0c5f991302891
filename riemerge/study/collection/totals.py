"""Tables of all pairs of a collection, summed over groups of modules, and written one group at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from riemerge.formats.files.staging import writing
from riemerge.formats.files.tensor_writer import TensorWriter
from riemerge.records.collection_record import ModuleGroup
from riemerge.records.pair_tables import PAIRS_FILE
from riemerge.study.collection.members import Members
from riemerge.study.collection.pairs import Facts
from riemerge.study.collection.work import Work, select


class PerModule(NamedTuple):
    """What T adapters are in K modules; 0 where one lacks a module.

    Attributes:
        norms: ‖dW‖ (T, K), float64.
        ranks: Stored ranks (T, K), int64.
        numerical_ranks: Numbers of singular values above rounding (T, K), int64.
        singular_values: Singular values (T, K, R), descending, float32.
        rounding: Norm of what rounding to the stored dtype adds to dW, about (T, K), float64.
    """

    norms: Tensor
    ranks: Tensor
    numerical_ranks: Tensor
    singular_values: Tensor
    rounding: Tensor


class Pairs(NamedTuple):
    """Tables of all pairs of T adapters over a group of modules, symmetric (T, T), float64.

    Attributes:
        cosine: Cosines of dW.
        distance: ‖dW − dW'‖.
        left: RMS cosines of the column spaces.
        right: RMS cosines of the row spaces.
    """

    cosine: Tensor
    distance: Tensor
    left: Tensor
    right: Tensor


def read_modules(members: Members, work: Work) -> PerModule:
    """Put together what the members are in each module."""
    modules = members.modules
    shape = len(members.names), len(modules)
    norms, rounding = torch.zeros(2, *shape, dtype=torch.float64)
    ranks, numerical = torch.zeros(2, *shape, dtype=torch.int64)
    values: list[tuple[list[int], Tensor]] = []
    for k, module in enumerate(modules):
        there, places, facts = _facts(members, work, module)
        sigma = facts.values[places]
        values.append((there, sigma))
        norms[there, k] = torch.linalg.vector_norm(sigma, dim=1)
        numerical[there, k] = facts.ranks[places]
        rounding[there, k] = facts.rounding[places]
        ranks[there, k] = torch.tensor([members.adapters[i].ranks[module] for i in there])
    width = max(sigma.shape[1] for _, sigma in values)
    singular_values = torch.zeros(*shape, width)
    for k, (there, sigma) in enumerate(values):
        singular_values[there, k, : sigma.shape[1]] = sigma.float()
    return PerModule(norms, ranks, numerical, singular_values, rounding)


def sum_group(members: Members, work: Work, group: ModuleGroup, per_module: PerModule) -> Pairs:
    """Put a group of modules together, as if they were one block-diagonal module.

    Law: spaces are compared in modules where both adapters have some: ‖UᵀU'‖² over min(r, r'), both summed
    over modules.
    """
    count = len(members.names)
    index = {module: k for k, module in enumerate(members.modules)}
    places = [index[module] for module in group.modules]
    inner, left, right, most = torch.zeros(4, count, count, dtype=torch.float64)
    for module, k in zip(group.modules, places, strict=True):
        there, own, facts = _facts(members, work, module)
        some = select(facts, own)
        for whole, table in zip((inner, left, right), (some.inner, some.left, some.right), strict=True):
            _add(whole, there, table)
        ranks = per_module.numerical_ranks[:, k]
        most += torch.minimum(ranks.unsqueeze(1), ranks)
    squares = per_module.norms[:, places].square().sum(dim=1)
    lengths = squares.sqrt()
    tiny = torch.finfo(torch.float64).tiny
    cosine = (inner / (lengths.unsqueeze(1) * lengths).clamp_min(tiny)).clamp(-1.0, 1.0)
    distance = (squares.unsqueeze(1) + squares - 2 * inner).clamp_min(0.0).sqrt()
    cosine.fill_diagonal_(1.0)
    distance.fill_diagonal_(0.0)
    return Pairs(cosine, distance, *((side / most.clamp_min(1)).sqrt() for side in (left, right)))


def write_tables(
    folder: Path, members: Members, work: Work, groups: Sequence[ModuleGroup], per_module: PerModule
) -> Pairs:
    """Write the tables of every group, one at a time, and return those of all modules.

    Args:
        folder: Folder of the collection.
        members: The adapters.
        work: What is known of all modules.
        groups: Groups of modules, `total` first.
        per_module: What the adapters are in each module.

    Raises:
        OutputError: The file cannot be written.
    """
    partial = folder / f".{PAIRS_FILE}.partial"
    total = sum_group(members, work, groups[0], per_module)
    with writing(folder / PAIRS_FILE):
        for left in (partial, partial.with_name(f"{partial.name}.body")):
            left.unlink(missing_ok=True)  # a killed run leaves one
        writer = TensorWriter(partial)
        for group in groups:
            dtype, pairs = torch.float32, total
            if group is groups[0]:
                dtype = torch.float64
            else:
                pairs = sum_group(members, work, group, per_module)
            for measure, table in pairs._asdict().items():
                writer.add(f"{measure}/{group.name}", tuple(table.shape), dtype, [table.to(dtype)])
        for name, table in per_module._asdict().items():
            writer.add(name, tuple(table.shape), table.dtype, [table])
        writer.finish()
        partial.replace(folder / PAIRS_FILE)
    return total


def _facts(members: Members, work: Work, module: str) -> tuple[list[int], list[int], Facts]:
    """Return the members that have a module, their places among those of its facts, and these."""
    known = work.load(module)
    assert known is not None
    where = {digest: place for place, digest in enumerate(known[0])}
    there = [i for i, adapter in enumerate(members.adapters) if module in adapter.ranks]
    return there, [where[members.digests[i]] for i in there], known[1]


def _add(whole: Tensor, places: Sequence[int], table: Tensor) -> None:
    index = torch.tensor(places)
    whole[index.unsqueeze(1), index] += table
