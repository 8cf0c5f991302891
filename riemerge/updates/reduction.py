"""Modules of one kind, side by side, in orthonormal bases of their joint spans: read once, kept small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from riemerge.linalg import eye_like
from riemerge.updates.cores import Cores
from riemerge.updates.low_rank import LowRankUpdate, factor, signs_of, times_basis

# How far the inverse of an equilibrated triangle may be from an orthogonal matrix, in the Frobenius norm. Its
# square times eps is what a Gram matrix does to the bases, which a second one repairs; itself times eps is
# what a product with the columns does, for which there is Householder's way.
_ONE_GRAM = 300.0
_TWO_GRAMS = 1e4

# Numbers of columns that are in float64 at once: what a cache holds; on other devices what is read together.
_BLOCK = 2**19

# So many columns a module make small matrices: they go to the CPU, all at once, where decompositions of them
# are faster than on a GPU, and where a row may look at numbers without waiting for it.
_SMALL = 512


Way: TypeAlias = Literal["itself", "product", "reflectors"]
"""How a basis comes from its columns: the identity, their product with R⁻¹, or Householder's reflectors."""


class Kind(NamedTuple):
    """What modules have in common that are reduced side by side.

    Attributes:
        shape: (m, n) of each module.
        ranks: T ranks of the factors.
        device: Type of the device of the factors, such as `cpu`.
    """

    shape: tuple[int, int]
    ranks: tuple[int, ...]
    device: str

    @classmethod
    def of(cls, updates: Sequence[LowRankUpdate]) -> Kind:
        """Return the kind of a module, from its T updates."""
        return cls(updates[0].shape, tuple(update.rank for update in updates), updates[0].device.type)

    @property
    def numbers(self) -> int:
        """How many numbers the factors of one module hold."""
        return sum(self.shape) * sum(self.ranks)


@final
@dataclass(frozen=True, eq=False)
class Reduction:
    """T updates of each of K modules, in orthonormal bases of the joint column and row space of each module.

    What was read of K modules, without what is as wide as they are: it may be kept, and given to another
    merge of the same inputs, with other weights or by another row (see `riemerge.methods.stack.Stack.kept`).

    Law: with C = [B₁ … B_T] (m, w) of a module, C = L left with L of orthonormal columns; so for rows. Norms,
    inner products, singular values and sums of the small updates are those of the updates, to round-off. A
    side that is no wider than w = Σ rᵢ is its own basis: then L is the identity, and the cost is linear in T.

    Attributes:
        kind: Shape and ranks of the modules.
        left: (K, p, w) columns of all B in a basis of their span, float64; p = min(m, w).
        right: (K, q, w) columns of all Aᵀ in a basis of their span.
        scales: (K, T) scales of the updates, float64.
        ways: K ways of the left and K of the right in which a basis comes from its columns.
        dtype: The dtype that holds the factors that were read.
    """

    kind: Kind
    left: Tensor
    right: Tensor
    scales: Tensor
    ways: tuple[tuple[Way, ...], tuple[Way, ...]]
    dtype: torch.dtype

    @classmethod
    def of(cls, updates: Sequence[LowRankUpdate], shape: tuple[int, int]) -> Reduction:
        """Return one module (m, n), of T updates that are given in bases of their joint span."""
        left, right = (
            torch.cat(side, dim=1).to(torch.float64).unsqueeze(0)
            for side in ([update.B for update in updates], [update.A.mT for update in updates])
        )
        scales = torch.tensor([[update.scale for update in updates]], dtype=torch.float64).to(left.device)
        kind = Kind.of(updates)._replace(shape=shape)
        return cls(kind, left, right, scales, (("itself",), ("itself",)), torch.float64)

    def take(self, modules: Sequence[int], places: Sequence[int]) -> Reduction:
        """Return some of the modules, and some of the updates of each, in the same bases."""
        whole = self
        if list(modules) != list(range(len(self.left))):
            left, right = (tuple(side[k] for k in modules) for side in self.ways)
            kept = torch.tensor(modules, device=self.left.device)
            whole = replace(
                self,
                left=self.left[kept],
                right=self.right[kept],
                scales=self.scales[kept],
                ways=(left, right),
            )
        if list(places) == list(range(len(self.kind.ranks))):
            return whole
        columns = [column for i in places for column in range(*self._bounds[i])]
        return replace(
            whole,
            kind=self.kind._replace(ranks=tuple(self.kind.ranks[i] for i in places)),
            left=whole.left[:, :, columns],
            right=whole.right[:, :, columns],
            scales=whole.scales[:, list(places)],
        )

    @property
    def _bounds(self) -> list[tuple[int, int]]:
        """Where the columns of each update begin and end."""
        return list(pairwise(accumulate(self.kind.ranks, initial=0)))

    def updates(self, module: int) -> tuple[LowRankUpdate, ...]:
        """Return the T small updates of one module, in the gauge in which they are stored."""
        scales = self.host_scales[module]
        left = self.left[module].split(self.kind.ranks, dim=1)
        right = self.right[module].mT.split(self.kind.ranks)
        return tuple(LowRankUpdate(*one) for one in zip(left, right, scales, strict=True))

    @cached_property
    def host_scales(self) -> list[list[float]]:
        """The scales, as numbers."""
        scales: list[list[float]] = self.scales.tolist()
        return scales

    @cached_property
    def cores(self) -> Cores:
        """The small updates, decomposed."""
        return Cores.of_factors(self.left * self._columns(self.scales), self.right, self.kind.ranks)

    def sum(self, coefficients: Tensor) -> Tensor:
        """Return Σ cᵢ dWᵢ of each module, (K, p, q), of coefficients (K, T)."""
        return (self.left * self._columns(coefficients * self.scales)) @ self.right.mT

    def _columns(self, numbers: Tensor) -> Tensor:
        """Return T numbers of each module for the columns of each update: (K, 1, w) of (K, T)."""
        ranks = torch.tensor(self.kind.ranks, device=numbers.device)
        return numbers.repeat_interleave(ranks, dim=1, output_size=sum(self.kind.ranks)).unsqueeze(1)

    def rounding(self, stored: Sequence[torch.dtype]) -> Tensor:
        """Return the (K, T) norms of what rounding to T dtypes adds: see `LowRankUpdate.rounding`."""
        squares = self.left.square().sum(dim=1) * self.right.square().sum(dim=1)
        sums = torch.stack([part.sum(dim=1) for part in squares.split(self.kind.ranks, dim=1)], dim=1)
        eps = torch.tensor([torch.finfo(dtype).eps for dtype in stored], dtype=torch.float64)
        return self.scales.abs() * eps.to(sums.device) * (sums / 6.0).sqrt()

    def lifts(self, left: Tensor, right: Tensor, dtype: torch.dtype) -> list[Lift]:
        """Return what gives small updates, factors (K, p, R) and (K, q, R), their width again, K of them.

        Args:
            left: Left factors in the bases of the columns.
            right: Right factors, transposed, in the bases of the rows.
            dtype: The dtype of the result.
        """
        lefts = _shares(self.left, self.ways[0], left)
        rights = _shares(self.right, self.ways[1], right)
        ways = zip(*self.ways, strict=True)
        return [Lift(*one, dtype) for one in zip(lefts, rights, ways, strict=True)]


@final
@dataclass(frozen=True, eq=False, slots=True)
class Lift:
    """A merged update of one module on its way to its width: nothing of it is as wide as the module, but
    where the module is no wider than all of its updates together.

    Attributes:
        left: (w, R) coefficients of the columns of all B, or (p, R) in a basis of them.
        right: (w, R) coefficients of the columns of all Aᵀ, or (q, R).
        ways: What the two are, by the way in which their basis comes from its columns.
        dtype: The dtype of the result.
    """

    left: Tensor
    right: Tensor
    ways: tuple[Way, Way]
    dtype: torch.dtype

    def narrow(self, rank: int) -> Lift:
        """Return so many leading columns."""
        return replace(self, left=self.left[:, :rank], right=self.right[:, :rank])

    def __call__(self, updates: Sequence[LowRankUpdate]) -> LowRankUpdate:
        """Return the merged update, (m, n), with scale 1; canonical factors stay canonical.

        Args:
            updates: The T updates of the module, read again.
        """
        left = _times([update.B for update in updates], 1, self.ways[0], self.left)
        right = _times([update.A for update in updates], 0, self.ways[1], self.right)
        signs = signs_of(left)
        return LowRankUpdate((left * signs).to(self.dtype), (right * signs).to(self.dtype).mT.contiguous())


def reduce(modules: Sequence[Sequence[LowRankUpdate]]) -> Reduction:
    """Reduce K modules of one kind to their joint spans, on the device where they are.

    Law: one float64 Gram matrix a side and its Cholesky factor, where the inverse of the triangle R says that
    this is exact to about 1e-11 (‖R⁻¹‖ ≤ 300 for columns of length 1); where it is less exact, a second one
    of the columns times R⁻¹ (Yamamoto et al. 2015); and a Householder QR for what is left: copies, zeros,
    dependent columns. The same bits whatever the threads. The device is waited for once, and once more for
    each side on which some modules need more than one Gram matrix.

    Args:
        modules: K times T updates, all of one `Kind` and on one device, of any dtype.

    Raises:
        ValueError: No module, or kinds that differ.

    Cost: 2 (m + n) w² operations a module for w = Σ rᵢ below its width, and memory for the small updates.

    Source: Yamamoto, Nakatsukasa, Yanagisawa and Fukaya 2015, Roundoff error analysis of the CholeskyQR2.
    """
    kinds = {Kind.of(updates) for updates in modules}
    if len(kinds) != 1:
        raise ValueError(f"modules of kinds {sorted(kinds)}: expected at least one, all of one kind")
    (kind,) = kinds
    left = _Side([[update.B for update in updates] for updates in modules], 1)
    right = _Side([[update.A for update in updates] for updates in modules], 0)
    firsts = [left.first(), right.first()]
    if kind.device != "cpu" and sum(kind.ranks) <= _SMALL:
        firsts = _download(firsts)
    sizes = torch.stack([size for _, size in firsts]).tolist()
    left_small, left_ways = left.finish(firsts[0][0], sizes[0])
    right_small, right_ways = right.finish(firsts[1][0], sizes[1])
    scales = torch.tensor([[update.scale for update in updates] for updates in modules], dtype=torch.float64)
    where, dtype = left_small.device, torch.float32
    for update in modules[0]:
        dtype = torch.promote_types(dtype, update.dtype)
    return Reduction(kind, left_small, right_small, scales.to(where), (left_ways, right_ways), dtype)


def _download(firsts: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Return tensors on the CPU, by one transfer."""
    flat = [tensor for pair in firsts for tensor in pair]
    parts = torch.cat([tensor.flatten() for tensor in flat]).cpu().split([tensor.numel() for tensor in flat])
    here = [part.reshape(tensor.shape) for part, tensor in zip(parts, flat, strict=True)]
    return list(zip(here[::2], here[1::2], strict=True))


@final
class _Side:
    """One side of K modules: the columns of all B, or the rows of all A.

    Attributes:
        parts: K times T matrices, (m, r) for axis 1 or (r, n) for axis 0.
        axis: Along which the parts of a module lie side by side.
        device: Where they are.
        whole: Whether there are as many columns as they have numbers, so that they need no basis.
    """

    def __init__(self, parts: Sequence[Sequence[Tensor]], axis: int) -> None:
        self.parts, self.axis, self.device = parts, axis, parts[0][0].device
        self.length = parts[0][0].shape[1 - axis]
        self.width = sum(part.shape[axis] for part in parts[0])
        self.whole = self.width >= self.length

    def first(self) -> tuple[Tensor, Tensor]:
        """Return K triangles from Gram matrices, and the Frobenius norms of their equilibrated inverses; the
        columns themselves, and 0, where they need no basis.
        """
        if self.whole:
            (columns,) = _blocks(self.parts, self.axis, self.length)
            return columns, columns.new_zeros(len(self.parts))
        gram = _gram(self.parts, self.axis)
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        # Powers of two change no digit.
        exponents = torch.where(diagonal > 0.0, diagonal, 1.0).log2().div(-2.0).round().to(torch.int32)
        units = torch.ldexp(torch.ones_like(diagonal), exponents)
        scaled = gram * units.unsqueeze(-1) * units.unsqueeze(-2)
        triangle, failed = torch.linalg.cholesky_ex(scaled, upper=True)
        inverse = torch.linalg.solve_triangular(triangle, eye_like(triangle).expand_as(triangle), upper=True)
        size = torch.linalg.matrix_norm(inverse)
        return triangle / units.unsqueeze(-2), torch.where(failed == 0, size, torch.inf)

    def finish(self, triangle: Tensor, sizes: Sequence[float]) -> tuple[Tensor, tuple[Way, ...]]:
        """Return the triangles made exact where one Gram matrix is not, and the way of each."""
        ways: list[Way] = ["itself" if self.whole else "product"] * len(sizes)
        exact: dict[int, Tensor] = {}
        for k, size in enumerate(sizes):
            if not size <= _TWO_GRAMS:
                ways[k], exact[k] = "reflectors", _reflect(self.parts[k], self.axis)
            elif size > _ONE_GRAM:
                exact[k] = self._again(k, triangle[k])
        if exact:
            triangle[list(exact)] = torch.stack([*exact.values()]).to(triangle)
        return triangle, tuple(ways)

    def _again(self, module: int, triangle: Tensor) -> Tensor:
        """Return the triangle of one module from a second Gram matrix, of nearly orthonormal columns."""
        triangle = triangle.to(self.device)
        inverse = torch.linalg.solve_triangular(triangle, eye_like(triangle), upper=True)
        gram = _gram([self.parts[module]], self.axis, inverse)
        again: Tensor = torch.linalg.cholesky_ex(gram[0], upper=True).L
        return again @ triangle


def _gram(parts: Sequence[Sequence[Tensor]], axis: int, turn: Tensor | None = None) -> Tensor:
    """Return K Gram matrices (K, w, w) of columns, or of their products with a (w, w), upper halves."""
    width = sum(part.shape[axis] for part in parts[0])
    total = torch.zeros(len(parts), width, width, dtype=torch.float64, device=parts[0][0].device)
    half = width // 2
    numbers = len(parts) * width
    for block in _blocks(parts, axis, max(1, _BLOCK // numbers)):
        columns = block
        if turn is not None:
            columns = block @ turn
        # What lies below the diagonal is not looked at: three quarters of the product.
        total[:, :half, :half] += columns[..., :half].mT @ columns[..., :half]
        total[:, :, half:] += columns.mT @ columns[..., half:]
    return total


def _blocks(parts: Sequence[Sequence[Tensor]], axis: int, rows: int) -> Iterator[Tensor]:
    """Yield runs of the rows of K modules' columns (K, rows, w), float64; on another device all at once.

    A block is valid until the next: fresh memory for each costs as much as the product that it is for.
    """
    first = parts[0][0]
    length, width = first.shape[1 - axis], sum(part.shape[axis] for part in parts[0])
    if first.device.type != "cpu":
        rows = length
    rows = min(rows, length)
    buffer = first.new_empty(len(parts), *((width, rows), (rows, width))[axis], dtype=torch.float64)
    for start in range(0, length, rows):
        there = min(rows, length - start)
        block = buffer.narrow(2 - axis, 0, there)
        for module, target in zip(parts, block, strict=True):
            places = target.split([part.shape[axis] for part in module], dim=axis)
            for place, part in zip(places, module, strict=True):
                place.copy_(part.narrow(1 - axis, start, there))
        yield block.mT if axis == 0 else block


def _shares(triangles: Tensor, ways: Sequence[Way], small: Tensor) -> Tensor:
    """Return the coefficients of columns that stand for small factors (K, p, R) where they are multiplied."""
    if "product" not in ways:
        return small
    shares: Tensor = torch.linalg.solve_triangular(triangles, small, upper=True)
    if "reflectors" not in ways:
        return shares
    multiplied = torch.tensor([way == "product" for way in ways]).to(small.device)
    return torch.where(multiplied[:, None, None], shares, small)


def _times(parts: Sequence[Tensor], axis: int, way: Way, small: Tensor) -> Tensor:
    """Return the product (rows, R) of a basis with small factors, or of its columns with their shares."""
    small = small.to(parts[0].device)
    if way == "itself":
        return small
    if way == "reflectors":
        return times_basis(factor([_transpose(part, axis) for part in parts], torch.float64), small)
    width = sum(part.shape[axis] for part in parts)
    products = small.new_empty(parts[0].shape[1 - axis], small.shape[1])
    start = 0
    for block in _blocks([parts], axis, max(1, _BLOCK // width)):
        end = start + block.shape[1]
        torch.mm(block[0], small, out=products[start:end])
        start = end
    return products


def _reflect(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Return the triangle of Householder's QR."""
    reflectors, _ = factor([_transpose(part, axis) for part in parts], torch.float64)
    return reflectors[: reflectors.shape[1]].triu()


def _transpose(part: Tensor, axis: int) -> Tensor:
    return part.mT if axis == 1 else part
