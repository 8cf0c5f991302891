"""Statistics of the specialists on train rows of their own tasks, for rows of the table that need data."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from benchmarks.common import tell
from benchmarks.nli.material import SEED, TWO_WAY, Rows, load
from benchmarks.nli.scorer import logits
from riemerge import collect_statistics
from riemerge.formats.adapter import Adapter

EXAMPLES = 256
"""Train rows of each task that are looked at, with their labels."""


class Collected:
    """Folders of statistics, one a specialist, made on first use and kept.

    Law: a specialist is measured on the first `EXAMPLES` of its own train rows, in random order, as itself:
    base plus its update, in float32.

    Args:
        folder: Folder of all statistics; its name must change with the adapters, the rows and the base.
        base: The base model, which is left as it is.
        tokenizer: Tokenizer of the base model.
        output: The output layer that `scorer.directions` made of the base.
    """

    def __init__(self, folder: Path, base: Any, tokenizer: Any, output: Tensor) -> None:
        self._folder, self._base, self._tokenizer, self._output = folder, base, tokenizer, output

    def folders(self, adapters: Mapping[str, Adapter]) -> list[Path]:
        """The folder of each specialist, in the order of the adapters."""
        return [self._collected(task, adapter) for task, adapter in adapters.items()]

    def _collected(self, task: str, adapter: Adapter) -> Path:
        folder = self._folder / task
        if folder.exists() and all((folder / f"{module}.safetensors").exists() for module in adapter.modules):
            return folder
        tell(f"statistics of {task} on {EXAMPLES} train rows")
        model = copy.deepcopy(self._base)
        with torch.no_grad():
            for module in adapter.modules:
                weight = model.get_submodule(module).weight
                weight += adapter.update(module).dense().to(weight)
        pairs = load(task, "train")
        random.Random(f"{SEED}:{task}").shuffle(pairs)
        rows = Rows.of({task: pairs[:EXAMPLES]}, self._tokenizer)
        batches = [(inputs, rows.labels[places]) for inputs, places in rows.batches]

        def losses(model: Any, batch: tuple[dict[str, Tensor], Tensor]) -> Tensor:
            inputs, labels = batch
            hidden = model(**inputs).last_hidden_state
            return loss(logits(hidden, inputs["attention_mask"], self._output), labels, task in TWO_WAY)

        with torch.enable_grad():
            collect_statistics(
                model,
                batches,
                losses,
                folder,
                modules=sorted(adapter.modules),
                examples=EXAMPLES,
                mask=lambda batch: batch[0]["attention_mask"].bool(),
                seed=SEED,
            )
        return folder


def loss(scores: Tensor, labels: Tensor, two_way: bool) -> Tensor:
    """Negative log-likelihood of logits (rows, 3), (rows,); of two classes, of P(yes) and its complement."""
    if not two_way:
        return cross_entropy(scores, labels, reduction="none")
    odds = scores[:, 0] - scores[:, 1:].logsumexp(dim=1)  # log P(yes) / P(not yes)
    return -logsigmoid(torch.where(labels == 0, odds, -odds))
