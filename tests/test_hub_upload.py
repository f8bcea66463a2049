# SPDX-License-Identifier: Apache-2.0
"""Uploads as seen from inside: what is repeated, what is a conflict, what is missing. No Hub is asked here."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils import httpx

from datasets_builder.hub_upload import (
    ATTEMPTS,
    ConflictError,
    Remote,
    local_files,
    open_repository,
    read_remote,
    repeat,
    status_of,
    upload,
)
from tests.loopback_hub import git_blob

SHARD = "data/train-00000-of-00001.parquet"


def answer(status: int, **headers: str) -> HfHubHTTPError:
    request = httpx.Request("POST", "http://127.0.0.1/api")
    response = httpx.Response(status, headers={name.replace("_", "-"): text for name, text in headers.items()})
    response.request = request
    return HfHubHTTPError(f"status {status}", response=response)


def failing(*errors: Exception):
    """Return a step that raises the errors by turns, and then returns "done"."""
    left = list(errors)

    def step() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return step


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What looks like a build, from outside."""
    contents = {SHARD: b"rows", "README.md": b"card", "assets/a.png": b"picture", "rejected.jsonl": b"/home/me/a.jpg"}
    for name, content in {**contents, ".build/plan/README.md": b"plan"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    shards = [{"file": SHARD, "rows": 1, "sha256": hashlib.sha256(b"rows").hexdigest()}]
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "shards": shards}))
    return tmp_path


class FakeHub:
    """Stands for HfApi: one repository whose commits are made by `upload_folder` and by rivals."""

    def __init__(self, files: dict[str, str] | None = None, private: bool = False):
        self.files, self.private, self.commit = dict(files or {}), private, 1
        self.before_commit: list[Any] = []  # called by turns when a commit is asked for
        self.parents: list[str] = []
        self.created: list[dict[str, Any]] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.created.append(options)

    def repo_info(self, repo_id: str, repo_type: str) -> Any:
        return SimpleNamespace(private=self.private, sha=f"c{self.commit}")

    def list_repo_tree(self, repo_id: str, repo_type: str, revision: str, recursive: bool) -> list[Any]:
        assert revision == f"c{self.commit}" and recursive
        lfs = {"size": 1, "sha256": "0", "pointerSize": 1}
        entries: list[Any] = [RepoFolder(path="data", oid="0")]
        for path, content in self.files.items():
            kind = {"lfs": {**lfs, "oid": content}} if path.endswith(".parquet") else {}
            entries.append(RepoFile(path=path, size=1, oid=content, **kind))
        return entries

    def upload_folder(self, folder_path: Path, parent_commit: str, allow_patterns: list[str], **_: Any) -> Any:
        self.parents.append(parent_commit)
        assert allow_patterns == ["data/train-*.parquet", "README.md", "manifest.json", "assets/*"]
        if self.before_commit:
            self.before_commit.pop(0)()
        if parent_commit != f"c{self.commit}":
            raise answer(412)
        self.land(folder_path)
        return SimpleNamespace(oid=f"c{self.commit}")

    def land(self, folder: Path) -> None:
        for name, file in local_files(folder).items():
            self.files[name] = file.sha256 if name.endswith(".parquet") else file.git_blob
        self.commit += 1

    def rival(self, **files: str) -> None:
        self.files |= files
        self.commit += 1


def publish(hub: FakeHub, folder: Path, waits: list[float] | None = None) -> Any:
    wait = (waits if waits is not None else []).append
    api: Any = hub
    return upload(api, folder, "me/pairs", read_remote(api, "me/pairs", wait), wait)


# --- repeating ---


def test_a_step_is_repeated_after_longer_and_longer_waits():
    waits: list[float] = []
    lost = httpx.ConnectError("gone")
    assert repeat(failing(answer(503), lost, answer(500), answer(502)), waits.append) == "done"
    assert waits == [1, 2, 4, 8]


def test_the_hub_may_ask_for_a_longer_wait():
    waits: list[float] = []
    step = failing(answer(429, retry_after="7"), answer(429, retry_after="100000"), answer(429, retry_after="soon"))
    assert repeat(step, waits.append) == "done"
    assert waits == [7, 60, 4]


def test_repeating_ends():
    waits: list[float] = []
    with pytest.raises(HfHubHTTPError, match="status 503"):
        repeat(failing(*[answer(503)] * ATTEMPTS), waits.append)
    assert len(waits) == ATTEMPTS - 1


@pytest.mark.parametrize("error", [answer(401), answer(412), ValueError("mine"), ConflictError("theirs")])
def test_what_repeating_does_not_help_is_raised_at_once(error: Exception):
    waits: list[float] = []
    with pytest.raises(type(error)):
        repeat(failing(error), waits.append)
    assert waits == []
    assert repeat(failing(answer(412)), waits.append, also=(412,)) == "done"


def test_status_behind_other_errors():
    def wrapped(cause: Exception) -> Exception:
        try:
            raise RuntimeError("Error while uploading") from cause
        except RuntimeError as error:
            return error

    assert status_of(wrapped(answer(503))) == 503 and status_of(wrapped(httpx.ReadTimeout("slow"))) == 0
    assert status_of(wrapped(KeyError("x"))) is None and status_of(None) is None
    try:
        try:
            raise answer(412)
        except HfHubHTTPError:
            raise ConflictError("replaces it") from None
    except ConflictError as error:
        assert status_of(error) is None


# --- what is published ---


def test_what_is_published_of_a_folder(folder: Path):
    files = local_files(folder)
    assert list(files) == ["README.md", "assets/a.png", SHARD, "manifest.json"]
    assert files["README.md"] == (hashlib.sha256(b"card").hexdigest(), git_blob(b"card"))


def test_only_what_is_missing_is_counted(folder: Path):
    hub = FakeHub()
    assert publish(hub, folder) == ("c2", 4)
    assert publish(hub, folder).sent == 0
    (folder / "README.md").write_bytes(b"another card")
    assert publish(hub, folder).sent == 1
    assert hub.parents == ["c1", "c2", "c3"]


# --- conflicts ---


def test_a_commit_of_others_elsewhere_is_no_conflict(folder: Path):
    hub, waits = FakeHub(), []
    hub.before_commit = [lambda: hub.rival(NOTES="1"), lambda: hub.rival(NOTES="2")]
    assert publish(hub, folder, waits).commit == "c4"
    assert hub.parents == ["c1", "c2", "c3"] and waits == [1, 2] and hub.files["NOTES"] == "2"


def test_a_commit_of_others_in_the_same_files_is_one(folder: Path):
    hub = FakeHub()
    hub.before_commit = [lambda: hub.rival(**{"README.md": "theirs"})]
    with pytest.raises(ConflictError, match="Somebody else changed 1 of these files meanwhile, first README.md"):
        publish(hub, folder)
    assert hub.files["README.md"] == "theirs" and hub.parents == ["c1"]


def test_a_commit_whose_answer_was_lost_is_recognised(folder: Path):
    hub = FakeHub()

    def land_and_fail() -> None:
        hub.land(folder)
        raise answer(504)

    hub.before_commit = [land_and_fail]
    assert publish(hub, folder).commit == "c3", "the second commit is one on top of the first"
    assert hub.parents == ["c1", "c2"]


def test_shards_of_another_build_are_not_mixed_in(folder: Path):
    other = "data/train-00001-of-00002.parquet"
    hub = FakeHub({other: "x"})
    with pytest.raises(
        ValueError, match=f"must hold no other data; got me/pairs with 1 files in data/.* first {other}"
    ):
        publish(hub, folder)
    assert hub.parents == []
    hub = FakeHub()
    hub.before_commit = [lambda: hub.rival(**{other: "x"})]
    with pytest.raises(ValueError, match="must hold no other data"):
        publish(hub, folder)


def test_private_means_private():
    hub: Any = FakeHub(private=True)
    assert open_repository(hub, "me/pairs", True, [].append) == Remote(True, "c1", {})
    assert open_repository(hub, "me/pairs", False, [].append).private
    assert [options["private"] for options in hub.created] == [True, None]
    public: Any = FakeHub()
    with pytest.raises(ValueError, match="`--private` needs a private repository; got me/pairs, which exists"):
        open_repository(public, "me/pairs", True, [].append)
