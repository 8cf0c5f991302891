"""What a model gets right: the frozen output layer of all specialists, and fast changes of the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.nli.material import Rows
from riemerge.updates.low_rank import LowRankUpdate

WORDS = ("yes", "maybe", "no")  # entailment, neutral, contradiction
TEMPERATURE = 20.0

Dense = Mapping[str, Tensor]


def load_base(folder: Path) -> tuple[Any, Any]:
    """The base model in float32 and its tokenizer, from a folder."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return model.eval(), tokenizer


def directions(model: Any, tokenizer: Any) -> Tensor:
    """The output layer (3, width): word embeddings of `WORDS` minus their mean, each of length 1."""
    words = model.get_input_embeddings().weight.detach()[tokenizer.convert_tokens_to_ids(list(WORDS))]
    return normalize(words - words.mean(dim=0), dim=1)


def logits(hidden: Tensor, mask: Tensor, output: Tensor) -> Tensor:
    """Logits (rows, 3) of last hidden states (rows, length, width): their mean over tokens, normalised."""
    weights = mask.unsqueeze(-1).to(hidden)
    pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    return TEMPERATURE * normalize(pooled, dim=1) @ output.T


def answers(scores: Tensor, two_way: Tensor) -> Tensor:
    """Index into `material.LABELS`: the likeliest of three; of two, entailment above one half."""
    likely = scores.softmax(dim=1)
    return torch.where(two_way, torch.where(likely[:, 0] > 0.5, 0, 3), likely.argmax(dim=1))


def dense(updates: Mapping[str, LowRankUpdate], scale: float = 1.0) -> dict[str, Tensor]:
    """Updates as matrices in float32, times a number."""
    return {module: (scale * update.dense()).to(torch.float32) for module, update in updates.items()}


class Scorer:
    """Scores the base model plus any multiple of any update.

    Law: a score depends on the rows and on base + coefficient · update alone: weights are written from the
    untouched base each time.

    Args:
        base: The base model, which is left as it is.
        output: The output layer that `directions` made of the base.
        dtype: Dtype of the arithmetic up to the last hidden state.
    """

    def __init__(self, base: Any, output: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self._base, self._output = dict(base.named_modules()), output
        self._model = copy.deepcopy(base).to(dtype)
        self._linear = dict(self._model.named_modules())
        self._changed: set[str] = set()

    @torch.inference_mode()
    def correct(self, rows: Rows, update: Dense, coefficient: float = 1.0) -> dict[str, Tensor]:
        """For each task which of its rows are answered right, bool."""
        self._write(update, coefficient)
        right = torch.zeros(len(rows.labels), dtype=torch.bool)
        for inputs, places in rows.batches:
            hidden = self._model(**inputs).last_hidden_state.to(torch.float32)
            scores = logits(hidden, inputs["attention_mask"], self._output)
            right[places] = answers(scores, rows.two_way[places]) == rows.labels[places]
        return rows.by_task(right)

    def _write(self, update: Dense, coefficient: float) -> None:
        for module in self._changed - update.keys():
            self._linear[module].weight.copy_(self._base[module].weight)
        for module, change in update.items():
            weight = torch.add(self._base[module].weight, change, alpha=coefficient)
            self._linear[module].weight.copy_(weight)
        self._changed = set(update)
