"""What tests of studies share: adapters, checkpoints, scorers, commands."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from riemerge.cli.commands import main
from riemerge.formats.dialects import read_adapter
from riemerge.records.run_record import RunRecord
from riemerge.statistics import collect_statistics
from riemerge.study.evaluation import evaluate
from tests.folders import family, write_family, write_folder

SHAPES = {"layers.0.q": (8, 6), "layers.1.q": (5, 9)}


TENSORS, WHOLE = "adapter_model.safetensors", "model.safetensors"


TASKS, ROWS = "abc", 7


def write_checkpoints(root: Path, count: int, seed: int = 0) -> list[Path]:
    """Checkpoints of a matrix, a vector and integers, in folders x, y, z."""
    draw, paths = torch.Generator().manual_seed(seed), []
    for name in "xyz"[:count]:
        (root / name).mkdir()
        tensors = {
            "layers.0.q.weight": torch.randn(5, 4, generator=draw),
            "layers.0.norm.weight": torch.randn(4, generator=draw),
            "ids": torch.arange(3),
        }
        save_file(tensors, root / name / WHOLE)
        paths.append(root / name)
    return paths


def chosen_in(folder: Path) -> str:
    """The names of the models that a merged folder is of, put together."""
    record = RunRecord.model_validate_json((folder / "riemerge.json").read_text())
    return "".join(sorted(row.name for row in record.inputs if row.share > 0))


def updates(folder: Path) -> dict[str, torch.Tensor]:
    adapter = read_adapter(folder)
    return {module: adapter.update(module).dense() for module in adapter.modules}


def same_updates(one: Path, other: Path) -> bool:
    left, right = updates(one), updates(other)
    # A product of balanced factors in float64, each from an SVD of its own.
    return all(torch.allclose(left[module], right[module], rtol=0, atol=1e-13) for module in left | right)


def opposite(tmp_path: Path) -> list[Path]:
    """Two adapters whose mean on a sphere is not there: what only the merge itself can find."""
    (one,) = family("close", 1, shapes=SHAPES)
    return write_family(tmp_path, [one, {module: (-b, a) for module, (b, a) in one.items()}])


def measured(folder: Path, seed: int = 0) -> Path:
    """Statistics of the matrix of `write_checkpoints`."""
    torch.manual_seed(seed)
    model = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleList([torch.nn.ModuleDict({"q": torch.nn.Linear(4, 5)})])}
    )

    def loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
        squares: torch.Tensor = model["layers"][0]["q"](batch).square()
        return squares.mean(dim=1)

    collect_statistics(model, [torch.randn(3, 4)], loss, folder)
    return folder


def other_base(folders: list[Path]) -> str:
    path = folders[1] / "adapter_config.json"
    path.write_text(path.read_text().replace("somebody/base", "somebody/else"))
    return "base_model_name_or_path differs"


def other_modules(folders: list[Path]) -> str:
    shutil.rmtree(folders[1])
    write_folder(folders[1], family("close", 1, shapes={"layers.7.k": (8, 6)})[0])
    return "no module in common"


def other_shapes(folders: list[Path]) -> str:
    shutil.rmtree(folders[1])
    write_folder(
        folders[1], family("close", 1, shapes={name: (m + 1, n) for name, (m, n) in SHAPES.items()})[0]
    )
    return "the shapes of dW differ"


def no_tensors(folders: list[Path]) -> str:
    (folders[1] / TENSORS).unlink()
    return f"{TENSORS}: is missing"


UNFIT = (other_base, other_modules, other_shapes, no_tensors)


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def flat_updates(folder: Path) -> torch.Tensor:
    """All dW of a folder as one vector."""
    adapter = read_adapter(folder)
    return torch.cat([adapter.update(module).dense().flatten() for module in sorted(adapter.modules)])


def average(folders: Sequence[Path]) -> torch.Tensor:
    return torch.stack([flat_updates(folder) for folder in folders]).mean(dim=0)


class Closeness:
    """Scores of rows, by task: how near a model's answers are to those of the adapter of that name."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.own = {folder.name: flat_updates(folder) for folder in folders}
        self.calls: list[tuple[Path, str]] = []

    def __call__(self, folder: Path, part: str) -> dict[str, list[float]]:
        self.calls.append((folder, part))
        found, answers = flat_updates(folder), {}
        for place, (task, own) in enumerate(self.own.items()):
            draw = torch.Generator().manual_seed(2 * place + (part == "test"))
            inputs = torch.randn(ROWS, len(own), generator=draw, dtype=torch.float64)
            apart = (inputs @ (found - own)).square() / (inputs @ own).square().mean()
            answers[task] = (1 / (1 + apart)).tolist()
        return answers


METHODS = ("average", "tsv", "iso_c:rank=2")


quick = partial(evaluate, methods=METHODS, resamples=200)


class BrokenOffError(BaseException):
    pass


def said_again(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("riemerge.")]


def python(code: str, more: str = "{part}") -> str:
    return f"'{sys.executable}' -c '{code}' {{}} {more}"


# The score is the number of models that count in the merge.
COUNT_MODELS = (
    'import json, sys; rows = json.load(open(sys.argv[1] + "/riemerge.json"))["inputs"]; '
    'print(sum(row["share"] > 0 for row in rows))'
)
