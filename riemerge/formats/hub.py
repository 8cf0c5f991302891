"""Models of the hub by id: found in its local cache without a network; fetched or pushed only when told."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, final

from riemerge.errors import AdapterError, OutputError, RecipeError, ResourceError, RiemergeError

_NAME = r"[A-Za-z0-9_](?:[\w.-]*\w)?"
_ID = re.compile(
    rf"(?P<repository>{_NAME}(?:/{_NAME})?)(?P<folder>(?:/{_NAME})*)(?:@(?P<revision>{_NAME}(?:/{_NAME})*))?",
    re.ASCII,
)
_MAIN = "main"
_downloads: ContextVar[bool] = ContextVar("downloads", default=False)

# Weights in safetensors, and what a model needs beside them; no pickles, no weights in other formats.
_FETCHED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "README.md")


@final
class HubModel(NamedTuple):
    """A model of the hub, by what does not depend on the machine.

    Attributes:
        repository: The id of the repository, `org/name`.
        folder: The folder in the repository, with a slash before it; empty for the repository itself.
        revision: The commit.
    """

    repository: str
    folder: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repository}{self.folder}@{self.revision}"


def locate(text: str | os.PathLike[str], beside: str | os.PathLike[str] = "") -> Path:
    """Return the path of a model that is named by its path, or by its id on the hub.

    Law: what exists under the path is the model. Else the cache of the hub, where it has the id at that
    revision (`main` if none is said), says where the model lies. No network, nothing is opened but the small
    file of the cache that says the commit; but within `allow_downloads` the model is fetched.

    Args:
        text: A path, or `org/name[/folder][@revision]`; the revision is a branch, a tag, or a whole commit.
        beside: The folder from which a relative path starts.

    Returns:
        The path; of what is nowhere that which was asked for, an id as it is, for its reader to refuse.
    """
    text, path = os.fspath(text), Path(beside, text)
    match = _match(text)
    if match is None or os.path.lexists(path):
        return path
    entry = _cache() / f"models--{match['repository'].replace('/', '--')}"
    commit = _commit(entry, match["revision"] or _MAIN)
    snapshot = entry / "snapshots" / (commit or "") / match["folder"].lstrip("/")
    if commit and snapshot.is_dir():
        return snapshot
    if not _may_be_meant(match, Path(beside)):
        return path
    return download(text) if _downloads.get() else Path(text)


def identify(path: str | os.PathLike[str]) -> HubModel | None:
    """Return which model of the hub lies at a path, in any cache; None where the path is of no cache.

    >>> str(identify("/tmp/hub/models--org--name/snapshots/0a1b/checkpoint-5"))
    'org/name/checkpoint-5@0a1b'
    """
    parts = Path(path).absolute().parts
    for place in range(len(parts) - 2):
        kind, snapshots, commit = parts[place : place + 3]
        if kind.startswith("models--") and snapshots == "snapshots":
            folder = "".join(f"/{part}" for part in parts[place + 3 :])
            return HubModel(kind.removeprefix("models--").replace("--", "/"), folder, commit)
    return None


def name_model(path: str | os.PathLike[str]) -> str:
    """Return the name of a model that does not depend on the machine: its id, or its last part."""
    model = identify(path)
    return str(model) if model else Path(path).absolute().name


def advise(path: str | os.PathLike[str]) -> str:
    """Say how a model that is not there may be had, as the end of a message."""
    match = _match(os.fspath(path))
    if match is None or not _may_be_meant(match, Path()):
        return "so fetch it first (hf download)"
    revision = match["revision"] and f" --revision {match['revision']}"
    return (
        f"and the cache of the hub has no such model: hf download {match['repository']}{revision or ''} "
        "fetches it, or --download of riemerge merge"
    )


def _match(text: str) -> re.Match[str] | None:
    # No file system takes longer names.
    return _ID.fullmatch(text) if len(text) < 200 else None


def _may_be_meant(match: re.Match[str], beside: Path) -> bool:
    """Return whether an id may have been meant: it has an organization, which is no folder here."""
    organization, slash, _ = match["repository"].partition("/")
    return bool(slash) and not os.path.lexists(beside / organization)


def _cache() -> Path:
    """Return the folder of the cache, as huggingface_hub finds it."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if given:
        return Path(os.path.expandvars(given)).expanduser()
    around = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expandvars(os.environ.get("HF_HOME") or around)).expanduser() / "hub"


def _commit(entry: Path, revision: str) -> str | None:
    """Return the commit of a revision of a cached repository; None where the cache knows none."""
    if os.path.isdir(entry / "snapshots" / revision):  # noqa: PTH112 - Path asks and may raise
        return revision
    try:
        commit = (entry / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return commit if re.fullmatch(r"\w{1,64}", commit, re.ASCII) else None


# --- with a network, only when told to ----------------------------------------------------------------------


@contextmanager
def allow_downloads(allowed: bool) -> Iterator[None]:
    """Let `locate` fetch what is not in the cache, in a block, if that is allowed."""
    before = _downloads.set(allowed)
    try:
        yield
    finally:
        _downloads.reset(before)


def download(text: str) -> Path:
    """Fetch a model into the cache of the hub, and return where it lies there.

    Law: safetensors, settings, tokenizer and code are fetched, pickles are not.

    Args:
        text: `org/name[/folder][@revision]`.

    Raises:
        AdapterError: The text is no id, or the hub does not give the model.
        ResourceError: huggingface_hub is not installed.
    """
    match = _match(text)
    if match is None:
        raise AdapterError(f"{text}: cannot be downloaded: expected org/name or org/name@revision")
    library, folder = require_library(), match["folder"].lstrip("/")
    patterns = [f"{folder and f'{folder}/'}{pattern}" for pattern in _FETCHED]
    with _asking(f"{text}: cannot be downloaded", AdapterError):
        fetched = library.snapshot_download(
            match["repository"], revision=match["revision"], allow_patterns=patterns
        )
    return Path(fetched, folder)


def check_push(repository: str) -> None:
    """Refuse before any work what cannot be pushed.

    Args:
        repository: The id `org/name`.

    Raises:
        RecipeError: The text is no id.
        ResourceError: huggingface_hub is not installed.
    """
    match = _match(repository)
    if match is None or match["repository"] != repository or "/" not in repository:
        raise RecipeError(f"--push {repository}: expected ORG/NAME")
    require_library()


def push(folder: str | os.PathLike[str], repository: str) -> str:
    """Upload a folder to the hub, and return the address of what was uploaded.

    Law: a repository that is not there is made, private; files of other names that are there stay.

    Args:
        folder: What to upload.
        repository: The id `org/name`.

    Raises:
        OutputError: The hub does not take it.
        ResourceError: huggingface_hub is not installed.
    """
    library = require_library()
    with _asking(f"{repository}: cannot be pushed", OutputError):
        api = library.HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        return str(
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Merge by riemerge")
        )


def require_library() -> Any:
    """Return huggingface_hub.

    Raises:
        ResourceError: huggingface_hub is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as fault:
        raise ResourceError(
            f"huggingface_hub cannot be imported ({fault}): pip install 'riemerge[hub]'"
        ) from fault
    return huggingface_hub


@contextmanager
def _asking(before: str, kind: type[RiemergeError]) -> Iterator[None]:
    """Turn a refusal of the hub, or of the network, into a fault of a kind."""
    from huggingface_hub import errors

    try:
        yield
    # Its own faults are OSErrors or ValueErrors; HTTPError is the root of those of its network library.
    except (OSError, ValueError, errors.HTTPError) as fault:  # type: ignore[attr-defined]
        raise kind(f"{before}: {' '.join(str(fault).split())}") from fault
