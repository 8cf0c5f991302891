"""Rows of the joint span as formulas of a stack of dense updates: the slow paths, for oracles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riemerge.linalg import SVD, numerical_rank, thin_svd, weighted_mean
from riemerge.methods.setting import Setting

EPS = torch.finfo(torch.float64).eps
FLOOR = EPS**0.5


def spectrum(x: Tensor, at: Setting) -> Tensor:
    power = at.values["power"]
    if at.values["adapt"]:
        shares = at.weights[:, None, None]
        whole = float((shares * x.square()).sum())
        apart = float((shares * (x - (shares * x).sum(dim=0)).square()).sum())
        power = 1.0 - (1.0 - power) * (apart / whole if whole else 0.0)
    first = triples(whitened_mean(x, at.weights, at.values["whitening"]), largest_norm(x))
    raised = first.values**power
    size = torch.linalg.vector_norm(raised)
    kept = torch.where(size > 0.0, torch.linalg.vector_norm(first.values) / size, 1.0)
    return first._replace(values=kept * raised).matrix()


def spectrum_matched(x: Tensor, at: Setting) -> Tensor:
    power = at.values["power"]
    first = triples(whitened_mean(x, at.weights, at.values["whitening"]), largest_norm(x))
    sigma = torch.linalg.svdvals(x)
    sigma = torch.where(sigma > FLOOR * largest_norm(x), sigma, 0.0)
    target = (at.weights[:, None] * sigma.square()).sum(dim=0).sqrt()[: len(first.values)]
    return first._replace(values=first.values**power * target ** (1.0 - power)).matrix()


def power_mean(x: Tensor, at: Setting) -> Tensor:
    order, largest = at.values["order"], largest_norm(x)
    unit = x / max(largest, torch.finfo(x.dtype).tiny)
    mean = whitened_mean(unit, at.weights, at.values["whitening"], order)
    return largest * triples(mean, 1.0, max(FLOOR**order, 100.0 * EPS)).matrix(1.0 / order)


def whitened_mean(x: Tensor, weights: Tensor, exponent: float, power: float = 1.0) -> Tensor:
    if exponent == 0.0 and power == 1.0:
        return weighted_mean(weights, x)
    each, roots = [triples(update, largest_norm(update[None])) for update in x], weights.sqrt()
    left = torch.cat([root * svd.left for root, svd in zip(roots, each, strict=True)], dim=1)
    right = torch.cat([root * svd.right for root, svd in zip(roots, each, strict=True)], dim=1)
    values = torch.cat([svd.values**power for svd in each])
    return (whiten(left, exponent) * values) @ whiten(right, exponent).mT


def whiten(frame: Tensor, exponent: float) -> Tensor:
    if exponent == 0.0 or not frame.shape[1]:
        return frame
    svd = thin_svd(frame)
    return svd.truncate(int(numerical_rank(svd.values, FLOOR))).matrix(1.0 - exponent)


def tsv(x: Tensor, at: Setting) -> Tensor:
    most = min(at.shape) // len(x)
    svd = thin_svd(x)
    kept = [min(most, int(numerical_rank(values, FLOOR))) for values in svd.values]
    left, right = (polar(torch.cat(narrow(side, kept), dim=1)) for side in (svd.left, svd.right))
    scaled = at.weights[:, None] * svd.values
    return (left * torch.cat([values[:k] for values, k in zip(scaled, kept, strict=True)])) @ right.mT


def iso_c(x: Tensor, at: Setting) -> Tensor:
    moved = at.weights[:, None, None] * x
    svd = triples(moved.sum(dim=0), largest_norm(moved))
    return (svd.values.sum() / max(len(svd.values), 1)) * (svd.left @ svd.right.mT)


def iso_cts(x: Tensor, at: Setting) -> Tensor:
    moved = at.weights[:, None, None] * x
    size = directions(moved, largest_norm(moved))
    private = round((size - int(size * at.values["common_space_fraction"])) / len(x))
    shared = thin_svd(moved.sum(dim=0)).truncate(size - len(x) * private)
    others = thin_svd(moved - shared.left @ (shared.left.mT @ moved)).truncate(private)
    left = torch.cat([shared.left, *others.left], dim=1)
    right = torch.cat([shared.right, *others.right], dim=1)
    total = shared.values.sum() + others.values.sum()
    return (total / max(size, 1)) * (polar(left) @ polar(right).mT)


def cart(x: Tensor, at: Setting) -> Tensor:
    mean = weighted_mean(at.weights, x)
    k = max(1, int(directions(x, largest_norm(x)) * at.values["rank_fraction"]))
    shares = at.values["deviation_scale"] * len(x) * at.weights
    kept = thin_svd(x - mean).truncate(k)
    return mean + kept._replace(values=shares[:, None] * kept.values).matrix().sum(dim=0)


def lowrank(x: Tensor, at: Setting) -> Tensor:
    mean = weighted_mean(at.weights / at.weights.sum(), x)
    return mean if at.rank is None else thin_svd(mean).truncate(at.rank).matrix()


def core(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    svd = thin_svd(x)
    root = torch.where(svd.values > FLOOR * svd.values.amax(), svd.values, 0.0).sqrt()[:, None]
    together = (thin_svd(torch.cat(list(side * root), dim=1)) for side in (svd.left, svd.right))
    left, right = (svd.left[:, : int(numerical_rank(svd.values, FLOOR))] for svd in together)
    return left, left.mT @ x @ right, right


def subspace(x: Tensor, at: Setting) -> Tensor:
    svd = thin_svd(x)
    ranks = numerical_rank(svd.values, FLOOR).tolist()
    frames = []
    for side in (svd.left, svd.right):
        roots = zip(at.weights.sqrt(), narrow(side, ranks), strict=True)
        together = thin_svd(torch.cat([root * frame for root, frame in roots], dim=1))
        frames.append(together.left[:, : max(ranks)])
    left, right = frames
    return left @ left.mT @ weighted_mean(at.weights, x) @ right @ right.mT


def polar(frame: Tensor) -> Tensor:
    kept = triples(frame, 1.0)
    return kept.left @ kept.right.mT


def narrow(frames: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    return [frame[:, :rank] for frame, rank in zip(frames, ranks, strict=True)]


def directions(x: Tensor, largest: float) -> int:
    sides = (torch.linalg.svdvals(torch.cat(list(x), dim=dim)) for dim in (1, 0))
    return min(int(numerical_rank(sigma, FLOOR, largest)) for sigma in sides)


def largest_norm(x: Tensor) -> float:
    return float(torch.linalg.matrix_norm(x).max())


def triples(matrix: Tensor, largest: float, floor: float = FLOOR) -> SVD:
    svd = thin_svd(matrix)
    return svd.truncate(int(numerical_rank(svd.values, floor, largest)))
