"""Makes the specialists again: python -m benchmarks.nli.train OUT [--collection own] [--tasks snli,mnli]

LoRA of rank 16 on all six linear layers of each of the six blocks, nothing else trained: seeded, so that a
machine repeats itself; another machine, or other versions, give specialists as good, not the same bits.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.common import tell
from benchmarks.nli.material import LABELS, MAX_LENGTH, TASKS, TWO_WAY, Pair, Rows, base_folder, load
from benchmarks.nli.scorer import answers, directions, load_base, logits
from benchmarks.nli.specialist_statistics import loss

BATCH, WARM_UP, RANK, ALPHA = 32, 0.06, 16, 32
BASE = "sentence-transformers/all-MiniLM-L6-v2"  # what the specialists say they were made for
TARGETS = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")


class Plan(NamedTuple):
    """How one specialist is trained; `own_seed` is that of the collection of own initialisations."""

    steps: int
    rate: float
    own_seed: int
    start: str | None = None


PLANS = {
    "snli": Plan(200, 1e-3, 101),
    "mnli": Plan(250, 1e-3, 102),
    "sick": Plan(200, 1e-3, 103),
    "qnli": Plan(250, 1e-3, 104),
    "scitail": Plan(150, 1e-3, 105),
    "rte": Plan(106, 5e-4, 0, start="mnli"),  # two epochs from the mnli specialist, which must be there
}


def train(task: str, folder: Path, *, seed: int, steps: int | None = None) -> dict[str, Any]:
    """Train one specialist and write it, as a PEFT folder, to `folder / task`.

    Args:
        task: A key of `PLANS`.
        folder: Folder of the collection; a specialist that this one starts from is read from it.
        seed: Random seed of the initialisation and of the order of the rows.
        steps: Number of training steps [default: as in its plan].
    """
    plan, base = PLANS[task], base_folder()
    assert base is not None
    steps = steps or plan.steps
    torch.manual_seed(seed)
    bare, tokenizer = load_base(base)
    output = directions(bare, tokenizer)
    model = _adapted(bare, folder / plan.start if plan.start else None)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    began = time.perf_counter()
    model.train()
    for step, batch in enumerate(_batches(load(task, "train"), steps, seed), 1):
        inputs, labels = _encoded(batch, tokenizer)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model(**inputs).last_hidden_state
        cost = loss(logits(hidden.float(), inputs["attention_mask"], output), labels, task in TWO_WAY).mean()
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step == steps:
            tell(f"{task}: step {step} of {steps}, loss {cost.item():.3f}")
    model.peft_config["default"].base_model_name_or_path = BASE
    model.save_pretrained(folder / task)
    result = {
        "task": task,
        "seed": seed,
        "steps": steps,
        "lr": plan.rate,
        "trainable": sum(weight.numel() for weight in trained),
        "seconds": round(time.perf_counter() - began, 1),
    }
    (folder / task / "train_result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


@torch.inference_mode()
def accuracy(task: str, folder: Path) -> float:
    """The share of the test rows of a task that the specialist in `folder / task` answers right."""
    base = base_folder()
    assert base is not None
    bare, tokenizer = load_base(base)
    output, model = directions(bare, tokenizer), _adapted(bare, folder / task).eval()
    rows = Rows.of({task: load(task)}, tokenizer)
    right = 0
    for inputs, places in rows.batches:
        scores = logits(model(**inputs).last_hidden_state, inputs["attention_mask"], output)
        right += int((answers(scores, rows.two_way[places]) == rows.labels[places]).sum())
    return right / len(rows.labels)


def _adapted(base: Any, start: Path | None) -> Any:
    """The base with a new adapter, or with a trained one that goes on training."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if start is not None:
        return PeftModel.from_pretrained(base, start, is_trainable=True)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, bias="none", target_modules=list(TARGETS))
    return get_peft_model(base, config)


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to zero."""
    warm = max(1, round(WARM_UP * steps))
    return (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)


def _batches(rows: Sequence[Pair], steps: int, seed: int) -> Iterator[Sequence[Pair]]:
    """Batches of rows in random order, epoch after epoch."""
    generator, waiting = random.Random(seed), list[Pair]()
    for _ in range(steps):
        if len(waiting) < BATCH:
            waiting = generator.sample(rows, len(rows))
        batch, waiting = waiting[:BATCH], waiting[BATCH:]
        yield batch


def _encoded(batch: Sequence[Pair], tokenizer: Any) -> tuple[dict[str, Tensor], Tensor]:
    inputs = tokenizer(
        [pair.premise for pair in batch],
        [pair.hypothesis for pair in batch],
        truncation=True,
        max_length=MAX_LENGTH,
        padding=True,
        return_tensors="pt",
    )
    return dict(inputs), torch.tensor([LABELS.index(pair.label) for pair in batch])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nli.train", description=__doc__)
    parser.add_argument("out", type=Path, help="Folder of the specialists, one folder each.")
    parser.add_argument("--collection", choices=("shared", "own"), default="shared")
    parser.add_argument("--tasks", help="Tasks to train, with commas between [default: all].")
    parser.add_argument(
        "--steps", type=int, help="Number of training steps, to see that it works [default: as in the plans]."
    )
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    named = set(asked.tasks.split(",")) if asked.tasks else set(TASKS)
    for task, plan in PLANS.items():
        if task in named:
            seed = plan.own_seed if asked.collection == "own" else 0
            result = train(task, asked.out, seed=seed, steps=asked.steps)
            print(json.dumps({**result, "accuracy": round(accuracy(task, asked.out), 4)}), flush=True)


if __name__ == "__main__":
    main()
