"""A checkpoint in another vocabulary: the rows of its embeddings and heads stand where their tokens do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from riemerge.errors import AdapterError
from riemerge.formats.checkpoint.view import Checkpoint
from riemerge.formats.files.text import list_names

_EMBEDDING = re.compile(
    r"(.*\.)?(embed_tokens|wte|word_embeddings?|embed_in|tok_embeddings|token_embedding|shared|embeddings)"
    r"\.weight"
)
_HEAD = re.compile(
    r"(.*\.)?(lm_head|embed_out|output|output_layer|decoder|predictions|vocab_projector)\.(weight|bias)"
)


@final
@dataclass(frozen=True, eq=False)
class EmbeddedCheckpoint(Checkpoint):
    """A checkpoint whose rows of embeddings and heads are those of another vocabulary. Made by `embed`.

    Law: the row of a token that the checkpoint has is its own, bit for bit. The row of one that it lacks is
    that of the base model; where that lacks it too, the mean of the rows of all checkpoints that have it (so
    of one, its row); zero where none has. All other tensors are left as they are.
    Cost: of one block of rows, those of all checkpoints; means are float64.

    Source: mergekit 0.1.5, `PermutedVocabulary`.

    Attributes:
        of: The checkpoint.
        rows: (V,) for each checkpoint of `donors` the row of each token in it, below 0 where it has none.
        donors: The checkpoints that lend rows: the base model first, where there is one.
        based: Whether the first donor is the base model.
        moved: The names of the tensors whose rows are those of tokens.
    """

    of: Checkpoint
    rows: Mapping[Checkpoint, Tensor] = field(repr=False)
    donors: tuple[Checkpoint, ...]
    based: bool
    moved: frozenset[str]

    @property
    def name(self) -> str:
        """The name of the checkpoint."""
        return self.of.name

    @property
    def sha256(self) -> Mapping[str, str]:
        """The sha256, in hex, of each file that enters the checkpoint's own tensors, by file name."""
        return self.of.sha256

    def source(self, name: str) -> Path:
        """Return the file that holds the checkpoint's own tensor."""
        return self.of.source(name)

    def _read(self, name: str, rows: Sequence[range] | None) -> Tensor:
        if name not in self.moved:
            return self.of._read(name, rows)
        wanted = torch.arange(self.shapes[name][0])
        if rows is not None:
            wanted = torch.cat([torch.arange(run.start, run.stop) for run in rows])
        own = self.rows[self.of][wanted]
        places = (own < 0).nonzero().squeeze(1)
        dtype = self.dtypes[name]
        lent: Tensor | None = None
        if len(places):
            lent = self._lend(name, wanted[places])
            dtype = torch.promote_types(dtype, lent.dtype)
        result = torch.zeros((len(wanted), *self.shapes[name][1:]), dtype=dtype)
        _put(self.of, name, own, result)
        if lent is not None:
            result[places] = lent.to(dtype)
        return result

    def _lend(self, name: str, tokens: Tensor) -> Tensor:
        """Return the rows of tokens that the checkpoint lacks: in float64 where some are means."""
        lenders = [(donor, self.rows[donor][tokens]) for donor in self.donors]
        counts = sum(((held >= 0).long() for _, held in lenders), torch.zeros_like(tokens))
        shape = (len(tokens), *self.shapes[name][1:])
        if self.based:
            own = lenders[0][1]
            alone = own >= 0
            counts = counts.masked_fill(alone, 1)
            lenders = [lenders[0], *((one, held.masked_fill(alone, -1)) for one, held in lenders[1:])]
        if int(counts.max()) <= 1:  # every row is one that is stored
            dtypes = [donor.dtypes[name] for donor, _ in lenders]
            total = torch.zeros(shape, dtype=reduce(torch.promote_types, dtypes))
            for donor, held in lenders:
                _put(donor, name, held, total)
            return total
        total = torch.zeros(shape, dtype=torch.float64)
        for donor, held in lenders:
            total += _put(donor, name, held, torch.zeros_like(total))
        return total / counts.clamp(min=1).view(-1, *[1] * (total.ndim - 1))


def _put(checkpoint: Checkpoint, name: str, held: Tensor, result: Tensor) -> Tensor:
    """Put rows of a checkpoint where they are wanted, and return what they were put into.

    Args:
        checkpoint: The checkpoint.
        name: The tensor.
        held: The row that each row of the result is, below 0 for none.
        result: What is written into.
    """
    places = (held >= 0).nonzero().squeeze(1)
    if len(places):
        rows = checkpoint._read(name, runs_of(held[places].tolist()))
        result[places] = rows.to(result.dtype)
    return result


def runs_of(indices: Sequence[int]) -> list[range]:
    """Return indices as runs of step 1.

    >>> runs_of([4, 5, 6, 2, 9, 10])
    [range(4, 7), range(2, 3), range(9, 11)]
    """
    runs: list[range] = []
    for index in indices:
        if runs and runs[-1].stop == index:
            runs[-1] = range(runs[-1].start, index + 1)
        else:
            runs.append(range(index, index + 1))
    return runs


def vocabulary_tensors(checkpoint: Checkpoint) -> tuple[int, frozenset[str]]:
    """Return how many rows the embedding of a checkpoint has, and the tensors whose rows are those of tokens.

    Law: the embedding is the matrix of a name that embeddings have. The others have as many rows and a name
    that heads have.

    Raises:
        AdapterError: There is no embedding, or there are several of different sizes; or a matrix outside the
            layers has as many rows or columns and another name.
    """
    shapes = checkpoint.shapes
    found = {name for name in shapes if _EMBEDDING.fullmatch(name) and len(shapes[name]) == 2}
    sizes = {shapes[name][0] for name in found}
    if len(sizes) != 1:
        what = list_names(sorted(found)) or "none of its tensors"
        raise AdapterError(
            f"{checkpoint.path}: which tensor embeds its tokens is not known by name ({what}): expected "
            "matrices of one size such as embed_tokens.weight: leave the tokenizer out of the recipe"
        )
    (size,) = sizes
    moved = {*found, *(name for name in shapes if _HEAD.fullmatch(name) and shapes[name][:1] == (size,))}
    unknown = [
        name
        for name in shapes
        if name not in moved and len(shapes[name]) > 1 and size in shapes[name] and not _in_layer(name)
    ]
    if unknown:
        raise AdapterError(
            f"{checkpoint.path}: {list_names(unknown)}: has an axis of {size}, the number of tokens, and no "
            "name that an embedding or a head has: whether its rows belong to tokens is not known: leave the "
            "tokenizer out of the recipe"
        )
    return size, frozenset(moved)


def find_head(checkpoint: Checkpoint) -> tuple[str, str | None] | None:
    """Return the embedding of a checkpoint and its head; None for the head where that is the embedding.

    Law: by their names and shapes, and None where that leaves open which tensor is the embedding.
    """
    shapes = {name: shape for name, shape in checkpoint.shapes.items() if not _in_layer(name)}
    found = [name for name, shape in shapes.items() if _EMBEDDING.fullmatch(name) and len(shape) == 2]
    if len(found) != 1:
        return None
    (embedding,) = found
    heads = (name for name, shape in shapes.items() if _HEAD.fullmatch(name) and shape == shapes[embedding])
    return embedding, next(heads, None)


def _in_layer(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def embed(
    checkpoints: Sequence[Checkpoint],
    ids: Sequence[Mapping[str, int]],
    vocabulary: Mapping[str, int],
    *,
    based: bool,
) -> list[Checkpoint]:
    """Return checkpoints in one vocabulary: views of them whose rows are its tokens.

    Law: where all checkpoints have that vocabulary already, in as many rows, they are returned as they are.

    Args:
        checkpoints: The checkpoints, all of one architecture, the base model first where there is one.
        ids: The ids of the tokens of each checkpoint.
        vocabulary: The ids of the tokens that the result has.
        based: Whether the first checkpoint is the base model.

    Raises:
        AdapterError: A checkpoint has embeddings or heads that are not known by name: all such are named.
    """
    found = [vocabulary_tensors(checkpoint) for checkpoint in checkpoints]
    if len({size for size, _ in found}) == 1 and all(dict(own) == dict(vocabulary) for own in ids):
        return list(checkpoints)
    count = max(vocabulary.values()) + 1
    rows: dict[Checkpoint, Tensor] = {}
    for checkpoint, own, (size, _) in zip(checkpoints, ids, found, strict=True):
        held = [-1] * count
        for token, place in vocabulary.items():
            row = own.get(token, -1)
            held[place] = row if row < size else -1
        rows[checkpoint] = torch.tensor(held)
    views: list[Checkpoint] = []
    for checkpoint, (_, moved) in zip(checkpoints, found, strict=True):
        shapes = {
            name: (count, *shape[1:]) if name in moved else shape for name, shape in checkpoint.shapes.items()
        }
        views.append(
            EmbeddedCheckpoint(
                path=checkpoint.path,
                shapes=MappingProxyType(shapes),
                dtypes=checkpoint.dtypes,
                other_files=checkpoint.other_files,
                of=checkpoint,
                rows=rows,
                donors=tuple(checkpoints),
                based=based,
                moved=moved,
            )
        )
    return views
