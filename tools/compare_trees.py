"""Compare what two trees of riemerge merge, bit for bit or up to a tolerance: tools/compare_trees.py OLD NEW

Every method merges the four adapters of examples/adapters, in a process of each tree; and four of their
modules by unequal weights, at a matched scale, at three kinds of rank, to a delta, and as full checkpoints
with and without their base. Statistics, where a method needs them, are random ones of a fixed seed. What is
compared is the sha256 of the files of tensors, or the text of the error; with a tolerance the relative
distance of the updates, all modules together, estimated from random probes uᵀ dW v of a fixed seed. A tree is
a folder, or the JSON file in which --save kept its results. The exit code is 1 where the trees differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from riemerge.formats.adapter import Adapter
    from riemerge.methods import Method

MODULES = 4
ADAPTERS = ("snli", "mnli", "qnli", "scitail")
WEIGHTS = (0.4, 0.3, 0.2, 0.1)

PROBES = 8  # of each module

Results = dict[str, "Outcome"]


class Outcome(NamedTuple):
    """What one merge gave: the hash of its tensors or the text of its error, and probes of its updates."""

    text: str
    probes: list[float]

    def apart(self, other: Outcome) -> float:
        """Return the relative distance to what another tree gave; infinite where it cannot be compared."""
        if self.text == other.text:
            return 0.0
        if len(self.probes) != len(other.probes) or not self.probes:
            return math.inf
        return math.dist(self.probes, other.probes) / (math.hypot(*self.probes) or math.inf)


class Case(NamedTuple):
    """One merge: its name, the models with their weights, and what the recipe says beside them."""

    name: str
    models: list[tuple[str, float]]
    settings: dict[str, object]
    statistics: list[str]


def main() -> None:
    """Print the merges in which two trees differ, or save the results of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trees", nargs="*", type=Path, metavar="TREE")
    parser.add_argument("--save", type=Path, help="JSON file for the results of the only tree.")
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="Methods to compare [all].")
    parser.add_argument("--tolerance", type=float, default=0.0, help="Relative distance that is none [0].")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(merge_all(options.inside, options.only)))
        return
    if len(options.trees) != (1 if options.save else 2):
        parser.error("two trees are compared; one is saved")
    with tempfile.TemporaryDirectory() as work:
        outcomes = [outcome(tree.resolve(), Path(work), options.only) for tree in options.trees]
    if options.save:
        options.save.write_text(json.dumps(outcomes[0], indent=1))
        return
    old, new = outcomes
    nothing = Outcome("not there", [])
    both = {name: (old.get(name, nothing), new.get(name, nothing)) for name in sorted({*old, *new})}
    apart = {name: one.apart(other) for name, (one, other) in both.items()}
    differing = [name for name, distance in apart.items() if distance > options.tolerance]
    for name in differing:
        print(f"{name}: {apart[name]:.2g} apart\n  {both[name][0].text}\n  {both[name][1].text}")
    refused = sum(value.text.startswith("refused") for value in old.values())
    print(f"{len(old)} merges in the old tree, {len(new)} in the new; {refused} refused")
    alike = max((distance for distance in apart.values() if distance <= options.tolerance), default=0.0)
    print(f"{len(differing)} differ; the others by at most {alike:.2g}")
    sys.exit(bool(differing))


def outcome(tree: Path, work: Path, only: list[str]) -> Results:
    """Merge in a process of its own with the package of one tree, or read what it merged before."""
    if tree.is_file():
        saved = json.loads(tree.read_text())
        return {name: Outcome(*one) for name, one in saved.items() if not only or name.split()[0] in only}
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    command = [sys.executable, __file__, "--inside", str(work), *(["--only", *only] if only else [])]
    ran = subprocess.run(command, env=environment, cwd=tree, stdout=subprocess.PIPE, text=True, check=True)
    return {name: Outcome(*one) for name, one in json.loads(ran.stdout.splitlines()[-1]).items()}


# --- inside the process of one tree -------------------------------------------------------------------------


def merge_all(work: Path, only: list[str]) -> Results:
    """Merge by the methods of the tree that is imported; return a hash or an error for each merge."""
    import riemerge
    from riemerge import read_adapter
    from riemerge.methods import METHODS

    examples = Path(riemerge.__file__).parents[1] / "examples" / "adapters"
    folders = [examples / name for name in ADAPTERS]
    if not (work / "full").exists():
        adapters = [read_adapter(str(folder)) for folder in folders]
        write_slices(work / "slices", folders)
        write_statistics(work / "data", adapters[0], adapters[0].modules)
        write_statistics(work / "few", adapters[0], adapters[0].modules[:MODULES])
        write_checkpoints(work / "full", adapters)
    return {
        case.name: merge(case, (work, examples))
        for name, method in METHODS.items()
        if not only or name in only
        for case in cases(method, work, folders)
    }


def cases(method: Method, work: Path, folders: list[Path]) -> Iterator[Case]:
    """Yield the merges by one method."""
    count = method.models[1] or len(ADAPTERS)
    tasks = ADAPTERS[:count]
    settings: dict[str, object] = {"merge_method": method.name}
    if method.name == "geomerge":
        settings["max_passes"] = 12
    # Statistics of all modules, and of the few that the slices have.
    whole, few = (
        [str(work / part / task) for task in tasks if method.statistics] for part in ("data", "few")
    )
    base = {"base_statistics": str(work / "data" / "base")} if method.base_statistics else {}
    yield Case(
        f"{method.name} all modules",
        [(str(folder), 1.0) for folder in folders[:count]],
        {**settings, **base},
        whole,
    )

    base = {"base_statistics": str(work / "few" / "base")} if method.base_statistics else {}
    settings |= base
    equal = [(str(work / "slices" / task), 1.0) for task in tasks]
    unequal = [(model, weight) for (model, _), weight in zip(equal, WEIGHTS, strict=False)]
    full = [(str(work / "full" / task), weight) for task, weight in zip(tasks, WEIGHTS, strict=False)]
    yield Case(f"{method.name} unequal", unequal, {**settings, "out_dtype": "float32"}, few)
    yield Case(f"{method.name} matched", equal, {**settings, "scale": "matched"}, few)
    yield Case(f"{method.name} rank", equal, {**settings, "rank": 8}, few)
    yield Case(f"{method.name} sum", equal, {**settings, "rank": "sum"}, few)
    yield Case(f"{method.name} share", equal, {**settings, "rank": "90%"}, few)
    yield Case(f"{method.name} delta", unequal, {**settings, "out_type": "delta"}, few)
    yield Case(f"{method.name} checkpoint", full, settings, few)
    yield Case(f"{method.name} based", full, {**settings, "base_model": str(work / "full" / "base")}, few)


def merge(case: Case, folders: tuple[Path, ...]) -> Outcome:
    """Merge one case; return the hash of its tensors and probes, or the error without the folders' paths."""
    from riemerge import merge_into, read_recipe
    from riemerge.errors import RiemergeError

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        try:
            merge_into(read_recipe(case.models, case.settings, case.statistics), out, threads=2)
        except RiemergeError as fault:
            text = "; ".join(fault.problems)
            for path in folders:
                text = text.replace(str(path), "…")
            return Outcome(f"refused: {text}", [])
        total = hashlib.sha256()
        for path in sorted(out.glob("*.safetensors")):
            total.update(path.read_bytes())
        return Outcome(total.hexdigest(), [*probe(out)])


def probe(folder: Path) -> Iterator[float]:
    """Yield random products uᵀ dW v of every update of an adapter, or of every tensor of other files."""
    import torch
    from safetensors.torch import load_file

    tensors = {
        name: one.double() for path in folder.glob("*.safetensors") for name, one in load_file(path).items()
    }
    if (folder / "adapter_config.json").exists():
        from riemerge import read_adapter

        adapter = read_adapter(str(folder))
        tensors = {name: adapter.update(name).dense() for name in adapter.modules}
    for name, tensor in sorted(tensors.items()):
        draws = torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
        matrix = torch.atleast_2d(tensor).flatten(1)
        for _ in range(PROBES):
            left, right = (torch.randn(size, generator=draws, dtype=torch.float64) for size in matrix.shape)
            yield float(left @ matrix @ right)


# --- inputs -------------------------------------------------------------------------------------------------


def write_slices(out: Path, folders: list[Path]) -> None:
    """Write the first modules of each adapter as adapters of their own."""
    from safetensors.torch import load_file, save_file

    for task, folder in zip(ADAPTERS, folders, strict=True):
        (out / task).mkdir(parents=True)
        (out / task / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
        tensors = load_file(folder / "adapter_model.safetensors")
        names = sorted(tensors)[: 2 * MODULES]
        save_file({name: tensors[name] for name in names}, out / task / "adapter_model.safetensors")


def write_statistics(out: Path, adapter: Adapter, modules: tuple[str, ...]) -> None:
    """Write random statistics of every kind, of some modules, for each adapter and for the base."""
    import torch
    from safetensors.torch import save_file

    shapes = {module: adapter.shape(module) for module in modules}
    request = {
        "kinds": ["fisher", "gram", "covariance"],
        "examples": 64,
        "seed": 0,
        "dtype": "float32",
        "version": 1,
        "modules": {module: list(shape) for module, shape in shapes.items()},
    }
    for seed, task in enumerate([*ADAPTERS, "base"]):
        folder = out / task
        folder.mkdir(parents=True)
        draws = torch.Generator().manual_seed(seed)
        (folder / "statistics.json").write_text(json.dumps(request))
        for module, (m, n) in shapes.items():
            inputs = torch.randn(64, n, generator=draws)
            gradients = torch.randn(64, m, generator=draws)
            tensors = {
                "fisher": torch.rand(m, n, generator=draws),
                "gram": inputs.mT @ inputs,
                "covariance": gradients.mT @ gradients,
                "tokens": torch.tensor(64.0, dtype=torch.float64),
                "examples": torch.tensor(64.0, dtype=torch.float64),
                "loss": torch.tensor(0.5, dtype=torch.float64),
            }
            save_file(tensors, folder / f"{module}.safetensors")


def write_checkpoints(out: Path, adapters: list[Adapter]) -> None:
    """Write a random base, and the base with each adapter added to it, as full checkpoints."""
    import torch
    from safetensors.torch import save_file

    names = adapters[0].modules[:MODULES]
    draws = torch.Generator().manual_seed(7)
    base = {f"{name}.weight": torch.randn(adapters[0].shape(name), generator=draws) for name in names}
    base |= {"norm.weight": torch.randn(8, generator=draws), "steps": torch.tensor([3, 4])}
    for task, adapter in [("base", None), *zip(ADAPTERS, adapters, strict=True)]:
        tensors = {name: tensor.clone() for name, tensor in base.items()}
        if adapter:
            for name in names:
                tensors[f"{name}.weight"] += adapter.update(name).dense().float()
            tensors["norm.weight"] += 0.1 * torch.randn(8, generator=draws)
        (out / task).mkdir(parents=True)
        save_file(tensors, out / task / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
