"""The hub's cache: a model by its id without a network, as huggingface_hub finds it; pushed to a fake hub."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from riemerge.errors import AdapterError, OutputError, ResourceError
from riemerge.formats.dialects import read_adapter
from riemerge.formats.hub import advise, download, identify, locate, name_model, push
from tests.cli.runner import run
from tests.folders import family, write_family

COMMITS = ("0a1b" * 10, "2c3d" * 10)


def cache_snapshot(cache: Path, repository: str, commit: str, source: Path, *refs: str) -> Path:
    """Put a folder into a cache as huggingface_hub does: links to blobs, and refs that name the commit."""
    entry = cache / f"models--{repository.replace('/', '--')}"
    snapshot = entry / "snapshots" / commit
    (entry / "blobs").mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(path for path in sorted(source.rglob("*")) if path.is_file()):
        blob, link = entry / "blobs" / f"{commit}{number}", snapshot / path.relative_to(source)
        shutil.copy(path, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    for ref in refs:
        (entry / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (entry / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with an adapter in two revisions and another in one, no network, and a folder to work in."""
    a, b = write_family(tmp_path / "sources", family("close", 2))
    cache = tmp_path / "home" / "hub"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    cache_snapshot(cache, "org/law", COMMITS[0], a, "main", "refs/pr/1")
    cache_snapshot(cache, "org/law", COMMITS[1], b, "v1.0")
    cache_snapshot(cache, "med", COMMITS[0], b, "main")

    def refuse(*_: Any) -> None:
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return cache


@pytest.mark.oracle
@pytest.mark.parametrize("revision", [None, "main", "refs/pr/1", "v1.0", COMMITS[1]])
def test_an_id_is_where_huggingface_hub_finds_it(cache: Path, revision: str | None) -> None:
    text = f"org/law@{revision}" if revision else "org/law"
    theirs = huggingface_hub.snapshot_download(
        "org/law", revision=revision, cache_dir=cache, local_files_only=True
    )
    assert locate(text).resolve() == Path(theirs).resolve()
    assert identify(locate(text)) == ("org/law", "", Path(theirs).name)


@pytest.mark.parametrize(
    "text",
    [
        "org/law@nowhere",
        "org/none",
        "none",
        "org/law@../../x",
        "../law",
        "org/law:1",
        "a+org/law",
        "",
        "x" * 300,
    ],
)
def test_what_is_not_in_the_cache_is_left_for_its_reader(cache: Path, text: str) -> None:
    assert locate(text) == Path(text)


def test_a_path_that_exists_wins_over_an_id(cache: Path) -> None:
    Path("org/law").mkdir(parents=True)
    assert locate("org/law") == Path("org/law")
    assert identify("org/law") is None


def test_a_ref_leads_nowhere_else(cache: Path, tmp_path: Path) -> None:
    (cache / "models--org--law" / "refs" / "main").write_text("../../../../sources/a")
    assert locate("org/law") == Path("org/law")


def test_the_id_of_a_path_leads_back_to_it(cache: Path) -> None:
    for text in ("org/law", "org/law@v1.0", "med"):
        path = locate(text)
        assert locate(name_model(path)) == path


def test_where_the_cache_is_told_by_its_variables(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert locate("med") == Path("med")
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    assert locate("med") == cache / "models--med" / "snapshots" / COMMITS[0]


def test_what_is_missing_is_refused_with_the_command_that_fetches_it(cache: Path) -> None:
    with pytest.raises(AdapterError, match=r"hf download org/none --revision v2 fetches it"):
        read_adapter(locate("org/none@v2"))
    Path("org").mkdir()
    assert "org/none" not in advise("org/none")  # a path that is mistyped is not looked for on the hub


def test_a_merge_of_ids_says_ids_and_commits_and_no_path(cache: Path, tmp_path: Path) -> None:
    ran = run("merge", "org/law:0.25", "org/law@v1.0:0.75", "-o", "out")
    assert ran.exit_code == 0, ran.output
    record = json.loads(Path("out/riemerge.json").read_text())
    names = [f"org/law@{commit}" for commit in COMMITS]
    assert [entry["model"] for entry in record["recipe"]["models"]] == names
    assert [row["name"] for row in record["inputs"]] == names
    for file in ("riemerge.json", "README.md"):
        assert not {str(tmp_path), "snapshots", "models--"} & {*Path("out", file).read_text().split("/")}
    recipe = Path("recipe.yaml")
    recipe.write_text(Path("out/README.md").read_text().split("```yaml\n")[1].split("```")[0])
    assert run("merge", recipe, "-o", "again").exit_code == 0
    weights = "adapter_model.safetensors"
    assert Path("again", weights).read_bytes() == Path("out", weights).read_bytes()


def test_a_recipe_elsewhere_and_other_commands_take_ids(cache: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("merge_method: average\nmodels: [{model: org/law}, {model: med}]\n")
    assert run("merge", recipe, "-o", "out").exit_code == 0
    record = json.loads(Path("out/riemerge.json").read_text())
    assert [row["name"] for row in record["inputs"]] == ["org/law", "med"]
    shown = run("inspect", "org/law", "med", "--json")
    assert [row["name"] for row in json.loads(shown.stdout)["adapters"]] == ["org/law", "med"]
    assert run("sweep", "org/law", "med", "-o", "path", "--steps", "2").exit_code == 0
    recipe.write_text("merge_method: average\nmodels: [{model: org/none}]\n")
    assert "error: org/none: no such folder or file" in run("merge", recipe, "-o", "none").stderr


# --- a fake hub ---------------------------------------------------------------------------------------------


class FakeHub:
    """What is asked of HfApi, by name."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.calls: dict[str, dict[str, Any]] = {}
        self.fault = fault

    def create_repo(self, repo_id: str, **asked: Any) -> None:
        self.calls["create_repo"] = {"repo_id": repo_id, **asked}
        if self.fault:
            raise self.fault

    def upload_folder(self, **asked: Any) -> str:
        self.calls["upload_folder"] = asked
        return f"hub:{asked['repo_id']}"


def test_a_folder_is_pushed_to_a_repository_that_is_private_unless_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    assert push(tmp_path, "org/merged") == "hub:org/merged"
    assert hub.calls["create_repo"] == {"repo_id": "org/merged", "private": True, "exist_ok": True}
    assert hub.calls["upload_folder"]["folder_path"] == tmp_path


def test_what_the_hub_does_not_take_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = huggingface_hub.errors.OfflineModeIsEnabled("offline")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: FakeHub(fault))
    with pytest.raises(OutputError, match="org/merged: cannot be pushed: offline"):
        push(tmp_path, "org/merged")


def test_a_download_asks_for_safetensors_and_no_pickles(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetch(repository: str, **settings: Any) -> str:
        asked.update(settings, repository=repository)
        return str(locate("med"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert download("org/none/last@v1") == locate("med") / "last"
    assert (asked["repository"], asked["revision"]) == ("org/none", "v1")
    assert "last/*.safetensors" in asked["allow_patterns"]
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked["allow_patterns"])
    with pytest.raises(AdapterError, match="expected org/name"):
        download("../x")


def test_merge_fetches_only_when_told_to(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(repository: str, **_: Any) -> str:
        asked.append(repository)
        return str(locate("med"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert run("merge", "org/none", "org/law", "-o", "out").exit_code == 4
    assert asked == []
    assert run("merge", "org/none", "org/law", "-o", "out", "--download").exit_code == 0
    assert asked == ["org/none"]  # once, and not what is in the cache
    assert locate("org/none") == Path("org/none")


def test_a_merge_that_cannot_be_pushed_stays_and_says_so(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: FakeHub(OSError("no network")))
    ran = run("merge", "org/law", "med", "-o", "out", "--push", "me/merged")
    assert ran.exit_code == 6
    assert "error: me/merged: cannot be pushed: no network" in ran.stderr
    assert "out: is written, whole" in ran.stderr
    assert Path("out/adapter_model.safetensors").exists()
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    ran = run("merge", "org/law", "med", "-o", "again", "--push", "me/merged", "--json")
    assert json.loads(ran.stdout)["pushed"] == "hub:me/merged"
    ran = run("merge", "org/law", "med", "-o", "none", "--push", "merged")
    assert (ran.exit_code, Path("none").exists()) == (3, False)


def test_without_the_library_pushing_says_which_extra_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ResourceError, match=r"riemerge\[hub\]"):
        push(tmp_path, "org/merged")
