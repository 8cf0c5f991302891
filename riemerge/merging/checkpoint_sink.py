"""The sink of full checkpoints: each merged tensor on its base, and what is no float copied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch

from riemerge.errors import AdapterError
from riemerge.formats.checkpoint import DenseWriter
from riemerge.merging.inputs import written_dtype
from riemerge.merging.plan import Plan
from riemerge.updates import Dense, DenseBlocks, LowRankUpdate


@final
class CheckpointSink:
    """The sink of a merge of full checkpoints: it adds the base model again, and copies what is no float.

    Law: tensors are written in the order of their names; integers and bools must agree and are copied.

    Raises:
        AdapterError: Integers or bools differ between the checkpoints.
    """

    def __init__(self, plan: Plan, writer: DenseWriter) -> None:
        self._inputs, self._plan, self._writer = plan.inputs, plan, writer
        self._copied = sorted(plan.inputs.checkpoints[0].not_float, reverse=True)

    def keep(self, name: str, update: LowRankUpdate | Dense | DenseBlocks) -> None:
        """Write one merged tensor."""
        assert not isinstance(update, LowRankUpdate)
        self.copy_until(name)
        blocks, dtype = self._on_base(name, update), stored_dtype(self._plan, name)
        self._writer.add_blocks(name, update.shape, torch.float64, blocks, dtype=dtype)

    def _on_base(self, name: str, update: Dense | DenseBlocks) -> Iterator[torch.Tensor]:
        """Yield the blocks of an update, those of the base model added to them."""
        base, device = self._inputs.base, self._plan.device
        if base is None:
            yield from update.blocks()
        elif isinstance(update, Dense):
            yield base.tensor(name, device=device) + update.tensor
        else:
            start = 0
            for block in update.blocks():
                rows = range(start, start + len(block))
                yield base.tensor(name, device=device, rows=[rows]) + block
                start = rows.stop

    def copy_until(self, name: str | None) -> None:
        """Copy the tensors that are no floats and come before a name; all that are left if None."""
        while self._copied and (name is None or self._copied[-1] < name):
            copied = self._copied.pop()
            first, *others = (model.tensor(copied, dtype=None) for model in self._inputs.checkpoints)
            if not all(torch.equal(first, other) for other in others):
                raise AdapterError(
                    f"{copied}: holds {first.dtype} that differ between the checkpoints: integers have no "
                    "mean, so expected them to be equal"
                )
            self._writer.add(copied, first)


def stored_dtype(plan: Plan, name: str) -> torch.dtype:
    """Return the dtype in which a module or tensor is written."""
    return plan.out_dtype or written_dtype(None, plan.inputs.checkpoints, name)
