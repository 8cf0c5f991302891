"""Every test starts from the same state: one thread, one seed, no examples remembered from earlier runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
import torch

from tests.helpers import shared_data_folder

# No clock decides and no chance: the examples follow from the test alone.
hypothesis.settings.register_profile("riemerge", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("riemerge")

# Thread pools (torch's, and that of numpy's BLAS) fight for cores; `make test` runs one process a core.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the terminal of the caller: processes of pytest-xdist say that theirs has 80 columns."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("LINES", raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data that does not travel with the project; skips where it is absent."""
    folder = shared_data_folder()
    if folder is None:
        pytest.skip("no shared data: set RIEMERGE_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def peft() -> ModuleType:
    """PEFT, and transformers with it; skips where either is absent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what third parties deprecate while they are imported is not ours
        pytest.importorskip("transformers")
        return pytest.importorskip("peft")
