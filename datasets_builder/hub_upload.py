# SPDX-License-Identifier: Apache-2.0
"""Put the files of a build into a data set repository of the Hub, and read rows back: again and again if need be.

The client library repeats failed uploads of single files, but not a failed commit. Here the whole step is repeated,
which costs little: files that are there already are not sent again. It knows nothing of cards and checks.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from datasets import Image, load_dataset
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx

from datasets_builder.dataset_card import CARD
from datasets_builder.manifest import MANIFEST, read_manifest
from datasets_builder.reading import read_whole_rows

PATTERNS = ["data/train-*.parquet", CARD, MANIFEST, "assets/*"]  # what is published of a build
REPEATED = (429, 500, 502, 503, 504)  # answers after which the same request may succeed
CONFLICT = 412  # somebody else has committed in between
ATTEMPTS = 6
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0  # doubled each time: 31 s in all

Result = TypeVar("Result")
Wait = Callable[[float], None]


class ConflictError(Exception):
    """Somebody else changed the same files meanwhile."""


class ReadBackError(Exception):
    """What the Hub gives is not what was uploaded."""


class LocalFile(NamedTuple):
    """A file to publish, by the names that the Hub may give to its content: of an LFS file, or of a regular one."""

    sha256: str
    git_blob: str


class Remote(NamedTuple):
    """A repository at its newest commit: whether it is private, the commit, and (sha256 or git blob) by path."""

    private: bool
    commit: str
    files: dict[str, str]


class Published(NamedTuple):
    """What came of an upload: the commit that holds all files, and how many of them were new or changed."""

    commit: str
    sent: int


def local_files(folder: Path) -> dict[str, LocalFile]:
    """Return what would be published of a verified build, by path in the repository, in order.

    Shards are not read again: the manifest has their sha256, and the Hub keeps them by it.
    """
    shards = {entry["file"]: LocalFile(entry["sha256"], "") for entry in read_manifest(folder)["shards"]}
    others = [path for path in (folder / CARD, folder / MANIFEST, *(folder / "assets").rglob("*")) if path.is_file()]
    digests = {path.relative_to(folder).as_posix(): _digests(path.read_bytes()) for path in others}
    return dict(sorted((shards | digests).items()))


def _digests(content: bytes) -> LocalFile:
    blob = b"blob %d\0" % len(content) + content
    return LocalFile(hashlib.sha256(content).hexdigest(), hashlib.sha1(blob).hexdigest())


def status_of(error: BaseException | None) -> int | None:
    """Return the status that the Hub answered, 0 where it could not be reached, or None for any other error.

    An error that others were raised from counts for them, as far as they do not say that they replace it.
    """
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code
        if isinstance(error, httpx.TransportError):
            return 0
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def repeat(step: Callable[[], Result], wait: Wait = time.sleep, also: tuple[int, ...] = ()) -> Result:
    """Do a step, and again after longer and longer waits while the Hub cannot answer.

    Args:
        step: may be done twice without harm.
        wait: gets seconds.
        also: further statuses to repeat after.

    Raises:
        What the step raised last; at once where repeating does not help.
    """
    pause = FIRST_WAIT_S
    for _ in range(ATTEMPTS - 1):
        try:
            return step()
        except Exception as error:
            if status_of(error) not in (0, *REPEATED, *also):
                raise
            wait(max(pause, _asked_wait(error)))
        pause = min(2 * pause, LONGEST_WAIT_S)
    return step()


def _asked_wait(error: BaseException) -> float:
    """Return the seconds that the Hub asked to wait for, bounded; 0 = it did not ask."""
    response = getattr(error, "response", None)
    asked = response.headers.get("retry-after", "") if response is not None else ""
    return min(float(asked), LONGEST_WAIT_S) if asked.isdigit() else 0.0


def open_repository(api: HfApi, repo_id: str, private: bool, wait: Wait = time.sleep) -> Remote:
    """Make a data set repository if it is missing, and read its state.

    Raises:
        ValueError: it must be private, and it exists and is public.
    """
    made = {"repo_type": "dataset", "private": private or None, "exist_ok": True}
    repeat(lambda: api.create_repo(repo_id, **made), wait)
    remote = read_remote(api, repo_id, wait)
    if private and not remote.private:
        raise ValueError(
            f"`--private` needs a private repository; got {repo_id}, which exists and is public. "
            "Make it private on the Hub first, or choose another name."
        )
    return remote


def read_remote(api: HfApi, repo_id: str, wait: Wait = time.sleep) -> Remote:
    """Read the state of a data set repository."""

    def read() -> Remote:
        info = api.repo_info(repo_id, repo_type="dataset")
        commit = str(info.sha)
        entries = api.list_repo_tree(repo_id, repo_type="dataset", revision=commit, recursive=True)
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
        content = {one.path: one.lfs.sha256 if one.lfs else one.blob_id for one in files}
        return Remote(bool(info.private), commit, content)

    return repeat(read, wait)


def upload(api: HfApi, folder: Path, repo_id: str, remote: Remote, wait: Wait = time.sleep) -> Published:
    """Upload what is missing or changed, in one commit on the commit that was seen.

    Where somebody else has committed meanwhile, it goes on from there if no file of the build was touched. A commit
    that took place although its answer got lost is recognised by its content.

    Args:
        api: of the Hub.
        folder: of the build.
        repo_id: a data set repository.
        remote: its state.
        wait: gets seconds.

    Raises:
        ValueError: it holds shards of another build, which readers would mix with these.
        ConflictError: somebody else changed files of the build meanwhile.
        HfHubHTTPError: any other refusal of the Hub.
    """
    files = local_files(folder)
    sent = sum(not _is_there(remote, name, file) for name, file in files.items())
    state = remote

    def step() -> str:
        nonlocal state
        _check_other_shards(state, files, repo_id)
        try:
            commit = api.upload_folder(
                repo_id=repo_id,
                repo_type="dataset",
                folder_path=folder,
                allow_patterns=PATTERNS,
                parent_commit=state.commit,
                commit_message=f"{len(files)} files of a build of stereo pairs",
            )
        except Exception as error:
            if status_of(error) in (0, *REPEATED, CONFLICT):
                state = read_remote(api, repo_id, wait)
                _check_conflict(remote, state, files)
            raise
        return str(commit.oid)

    return Published(repeat(step, wait, also=(CONFLICT,)), sent)


def _is_there(remote: Remote, name: str, file: LocalFile) -> bool:
    return remote.files.get(name) in file


def _check_other_shards(remote: Remote, files: dict[str, LocalFile], repo_id: str) -> None:
    others = sorted(name for name in remote.files if name.startswith("data/") and name not in files)
    if others:
        raise ValueError(
            f"`REPO` must hold no other data; got {repo_id} with {len(others)} files in data/ that are not of this "
            f"build, first {others[0]}, which readers would mix with it. Delete them there, or choose another name."
        )


def _check_conflict(before: Remote, now: Remote, files: dict[str, LocalFile]) -> None:
    changed = [
        name
        for name, file in files.items()
        if now.files.get(name) != before.files.get(name) and not _is_there(now, name, file)
    ]
    if changed:
        raise ConflictError(
            f"Somebody else changed {len(changed)} of these files meanwhile, first {changed[0]}. Look at the "
            "repository, then run the command again to replace them."
        ) from None


def read_back(folder: Path, repo_id: str, revision: str, rows: int, token: Any = None, wait: Wait = time.sleep) -> int:
    """Read the first rows of a published build by streaming and compare every byte with the local ones.

    Args:
        folder: of the build.
        repo_id: where it was published.
        revision: commit.
        rows: how many; fewer where there are fewer.
        token: for the Hub; None = the one that is stored.
        wait: gets seconds.

    Returns:
        How many rows were compared.

    Raises:
        ReadBackError: a row differs or is missing; names it.
    """
    manifest = read_manifest(folder)
    local = list(islice(_local_rows(folder, manifest), rows))
    streamed = repeat(lambda: list(islice(_streamed_rows(repo_id, revision, token), rows)), wait)
    if len(streamed) != len(local):
        raise ReadBackError(f"{repo_id} must give {len(local)} rows by streaming; got {len(streamed)}.")
    for found, expected in zip(streamed, local, strict=True):
        differ = [name for name in {**expected, **found} if _content(found, name) != _content(expected, name)]
        if differ:
            raise ReadBackError(f"{repo_id} must give what was uploaded; row {expected['id']} differs in {differ}.")
    return len(local)


def _local_rows(folder: Path, manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return chain.from_iterable(
        read_whole_rows(folder / entry["file"], list(range(entry["rows"]))) for entry in manifest["shards"]
    )


def _streamed_rows(repo_id: str, revision: str, token: Any) -> Iterator[dict[str, Any]]:
    stream: Any = load_dataset(repo_id, split="train", revision=revision, streaming=True, token=token)
    for name, kind in stream.features.items():
        if isinstance(kind, Image):
            stream = stream.cast_column(name, Image(decode=False))
    return iter(stream)


def _content(row: dict[str, Any], name: str) -> Any:
    value = row.get(name)
    return value["bytes"] if isinstance(value, dict) else value
