"""The sink of full checkpoints: each merged tensor on its base, and what is no float copied."""

from __future__ import annotations

from functools import reduce
from typing import final

import torch

from riemerge.errors import AdapterError
from riemerge.formats.checkpoint import DenseWriter
from riemerge.merging.plan import Plan
from riemerge.updates import Dense, LowRankUpdate


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

    def keep(self, name: str, update: LowRankUpdate | Dense) -> None:
        """Write one merged tensor."""
        self.copy_until(name)
        tensor, base = update.dense(), self._inputs.base
        if base is not None:
            tensor = base.tensor(name, device=self._plan.device) + tensor
        own = reduce(torch.promote_types, [model.dtypes[name] for model in self._inputs.checkpoints])
        self._writer.add(name, tensor, dtype=self._plan.out_dtype or own)

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
