# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face Hub on 127.0.0.1, for tests that publish and load: models, data sets and Spaces, without network.

    with LoopbackHub(tmp_path) as hub:
        printed = hub.run_python("from huggingface_hub import HfApi; HfApi().create_repo('me/model')", home=tmp_path)
        assert hub.read("me/model", ".gitattributes")

It answers what huggingface_hub, diffusers, transformers and datasets ask of the real one: repositories (private ones
too), branches, tags, pull requests, commits with regular and LFS files, listings, downloads (whole and by range), and
errors with the real status and X-Error-Code; collections, variables of Spaces, and what makes the real one refuse the
front matter of a card. Written from the requests that these clients send; the LFS upload is the "basic" one, so
clients run with HF_HUB_DISABLE_XET=1. It knows no discussions, search, organisations, jobs, and runs no Space.

Clients read their environment when they are imported, so whatever talks to this Hub runs in a process of its own, with
`environment()`; the test session itself stays offline. History lives in memory, file contents in the given folder.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

import uvicorn
import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse

USER = "tester"
TOKEN = "hf_x"  # any token is accepted; writing and private repositories need one
DATE = "2026-01-01T00:00:00.000Z"  # of every commit, so that answers repeat
URL_PREFIXES = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
LFS_SUFFIXES = "arrow bin ckpt glb gz jpg mp4 npz onnx parquet png pt pth safetensors tar tiff webp zip".split()
REGULAR_LIMIT = 10_000_000  # bytes; larger files must be LFS files
GIT_ATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
BASE_MODEL_RELATIONS = ["adapter", "finetune", "merge", "quantized"]
COLORS = ["red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"]
SDKS = ["gradio", "docker", "static"]
LIBRARY_SETTINGS = ("HF_", "HUGGING", "TRANSFORMERS_", "DIFFUSERS_", "DATASETS_", "PYTEST_", "PYTHON")


class HubError(Exception):
    """An answer other than success: status, value of X-Error-Code, message."""

    def __init__(self, status: int, code: str, message: str, **details: str):
        super().__init__(message)
        self.status, self.code, self.message, self.details = status, code, message, details


class StoredFile(NamedTuple):
    """One file of a commit. `oid` is git's: of the content, or of the pointer that stands for an LFS file."""

    sha256: str
    size: int
    lfs: bool
    oid: str


class Commit(NamedTuple):
    """One commit with all files of its tree, by path."""

    sha: str
    parent: str | None
    title: str
    message: str
    files: dict[str, StoredFile]


class LoggedRequest(NamedTuple):
    """One answered request; `path` as the client escaped it, `byte_range` its Range header."""

    method: str
    path: str
    query: str
    byte_range: str | None
    status: int

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Fault:
    """The next `remaining` requests whose "METHOD /path" the pattern is found in are answered with `status`."""

    pattern: str
    remaining: int
    status: int


@dataclass
class Repository:
    """The history of one repository; `refs` are branches and refs/pr/N."""

    id: str
    private: bool = False
    sdk: str | None = None
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit:
        """Return the commit that a branch, tag, pull request or commit id names."""
        sha = self.refs.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[sha]

    def history(self, commit: Commit) -> Iterator[Commit]:
        """Yield a commit and its ancestors, newest first."""
        yield commit
        while commit.parent is not None:
            commit = self.commits[commit.parent]
            yield commit

    def add(self, ref: str, files: dict[str, StoredFile], title: str, message: str = "") -> Commit:
        """Commit a whole tree onto a branch or pull request."""
        parent = self.refs.get(ref)
        identity = json.dumps([self.id, parent, files, title, message, len(self.commits)])
        commit = Commit(hashlib.sha1(identity.encode()).hexdigest(), parent, title, message, files)
        self.commits[commit.sha] = commit
        self.refs[ref] = commit.sha
        return commit

    def last_change(self, commit: Commit, path: str) -> Commit:
        """Return the commit that last changed a file."""
        for step in self.history(commit):
            parent = self.commits.get(step.parent or "")
            if parent is None or parent.files.get(path) != step.files[path]:
                return step
        raise AssertionError(f"{path} is in no commit")


@dataclass
class StoredCollection:
    """A list of repositories with a title; `items` are (type, id, note)."""

    slug: str
    title: str
    owner: str
    description: str | None
    private: bool
    items: list[tuple[str, str, str | None]] = field(default_factory=list)

    def described(self) -> dict[str, Any]:
        """Describe the collection as GET /api/collections/{slug} does."""
        items = [
            {"_id": git_blob(one.encode())[:24], "id": one, "type": kind, "position": position}
            | ({"note": {"text": note}} if note else {})
            for position, (kind, one, note) in enumerate(self.items)
        ]
        named = {"slug": self.slug, "title": self.title, "description": self.description, "private": self.private}
        owner = {"name": self.owner, "type": "user"}
        return named | {
            "owner": owner,
            "items": items,
            "lastUpdated": DATE,
            "position": 0,
            "theme": "blue",
            "upvotes": 0,
        }


class Store:
    """Repositories in memory, by ("models" | "datasets" | "spaces", "owner/name"), and file contents in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.collections: dict[str, StoredCollection] = {}  # by slug
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, kind: str, repo_id: str, authorized: bool = True) -> Repository:
        """Return a repository; a private one is not found without a token."""
        repository = self.repositories.get((kind, repo_id))
        if repository is None or (repository.private and not authorized):
            raise HubError(404, "RepoNotFound", "Repository not found")
        return repository

    def content(self, sha256: str) -> Path:
        """Return where the content with this sha256 is kept, whether there is one or not."""
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise HubError(400, "BadOid", f"Not a sha256: {sha256}")
        return self.folder / sha256

    def regular_file(self, content: bytes) -> StoredFile:
        """Keep the content of a regular file."""
        sha256 = hashlib.sha256(content).hexdigest()
        partial = self.folder / f"{sha256}.partial"
        partial.write_bytes(content)
        partial.replace(self.content(sha256))
        return StoredFile(sha256, len(content), False, git_blob(content))

    def lfs_file(self, sha256: str, size: int) -> StoredFile:
        """Return the entry of an LFS file, whose content must have been uploaded before."""
        if not self.content(sha256).is_file() or self.content(sha256).stat().st_size != size:
            raise HubError(400, "LfsObjectMissing", f"LFS object {sha256} of {size} bytes was not uploaded")
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return StoredFile(sha256, size, True, git_blob(pointer.encode()))

    def create(self, kind: str, repo_id: str, private: bool, sdk: str | None) -> Repository:
        """Add a repository with its first commit."""
        repository = self.repositories[kind, repo_id] = Repository(repo_id, private, sdk)
        repository.add("main", {".gitattributes": self.regular_file(GIT_ATTRIBUTES)}, "initial commit")
        return repository

    def apply(self, files: dict[str, StoredFile], operations: list[dict[str, Any]]) -> dict[str, StoredFile]:
        """Return the files after the operations of a commit: all of them, or an error."""
        files = dict(files)
        for operation in operations:
            key, value = operation["key"], operation["value"]
            path = value.get("path", "")
            if not path or path.startswith("/") or ".." in path.split("/"):
                raise HubError(400, "BadPath", f"Not a path in a repository: {path!r}")
            if key == "file":
                try:
                    content = base64.b64decode(value["content"], validate=True)
                except binascii.Error as error:
                    raise HubError(400, "BadContent", f"{path} is not base64: {error}") from error
                if len(content) > REGULAR_LIMIT:
                    raise HubError(400, "LfsNeeded", f"{path} has {len(content)} bytes and must be an LFS file")
                files[path] = self.regular_file(content)
            elif key == "lfsFile":
                files[path] = self.lfs_file(value["oid"], value["size"])
            elif key == "deletedFile":
                if path not in files:
                    raise HubError(400, "EntryNotFound", f"{path} cannot be deleted: there is no such file")
                del files[path]
            elif key == "deletedFolder":
                files = {name: file for name, file in files.items() if not name.startswith(path.rstrip("/") + "/")}
            else:
                raise HubError(400, "BadOperation", f"Unknown operation {key!r}")
        return files

    def commit(
        self, repository: Repository, ref: str, lines: list[dict[str, Any]], create_pr: bool
    ) -> tuple[str, Commit]:
        """Commit onto a branch, or onto a new pull request; return which and the commit."""
        if not lines or lines[0]["key"] != "header":
            raise HubError(400, "BadRequest", "A commit begins with its header")
        header, head = lines[0]["value"], repository.resolve(ref)
        if ref not in repository.refs:
            raise HubError(400, "BadRequest", f"A commit needs a branch; got {ref}")
        if header.get("parentCommit") not in (None, head.sha):
            raise HubError(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
        files = self.apply(head.files, lines[1:])
        if create_pr:
            ref = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repository.refs)}"
            repository.refs[ref] = head.sha
        return ref, repository.add(ref, files, header["summary"], header.get("description", ""))


def git_blob(content: bytes) -> str:
    """Return the id that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def upload_mode(path: str, size: int, sample: bytes) -> str:
    """Return how a file must be uploaded: "lfs" for known binary suffixes, binary content and large files."""
    binary = path.rsplit(".", 1)[-1].lower() in LFS_SUFFIXES or b"\0" in sample
    return "lfs" if binary or size > REGULAR_LIMIT else "regular"


def is_true(value: str | None) -> bool:
    """Read a flag of a query."""
    return (value or "").lower() in ("1", "true")


def file_entry(repository: Repository, commit: Commit, path: str, expand: bool = False) -> dict[str, Any]:
    """Describe a file as listings do."""
    file = commit.files[path]
    entry: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    if expand:
        last = repository.last_change(commit, path)
        entry["lastCommit"] = {"id": last.sha, "title": last.title, "date": DATE}
    return entry


def folder_entry(path: str) -> dict[str, Any]:
    """Describe a folder as listings do."""
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def folders_of(files: dict[str, StoredFile]) -> set[str]:
    """Return every folder that holds one of the files, directly or not."""
    return {str(parent) for path in files for parent in Path(path).parents} - {"."}


def tree(repository: Repository, commit: Commit, folder: str, recursive: bool, expand: bool) -> list[dict[str, Any]]:
    """List what a folder ("" for all) holds, directly or all the way down."""
    prefix = folder + "/" if folder else ""

    def listed(path: str) -> bool:
        return path.startswith(prefix) and (recursive or "/" not in path[len(prefix) :])

    folders = folders_of(commit.files)
    if folder and folder not in folders:
        raise HubError(404, "EntryNotFound", f"{folder} does not exist")
    found = [folder_entry(path) for path in sorted(folders) if listed(path)]
    return found + [file_entry(repository, commit, path, expand) for path in sorted(commit.files) if listed(path)]


def repository_info(repository: Repository, commit: Commit, blobs: bool) -> dict[str, Any]:
    """Describe a repository at a commit, as GET /api/models/{id} does."""
    siblings = []
    for path in sorted(commit.files):
        sibling: dict[str, Any] = {"rfilename": path}
        if blobs:
            entry = file_entry(repository, commit, path)
            sibling |= {"size": entry["size"], "blobId": entry["oid"], "lfs": entry.get("lfs")}
            if sibling["lfs"]:
                sibling["lfs"] = {**sibling["lfs"], "sha256": sibling["lfs"]["oid"]}
        siblings.append(sibling)
    info = {"_id": git_blob(repository.id.encode())[:24], "id": repository.id, "modelId": repository.id}
    info |= {"author": repository.id.split("/")[0], "sha": commit.sha, "lastModified": DATE, "createdAt": DATE}
    info |= {"private": repository.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
    return info | {"siblings": siblings} | ({"sdk": repository.sdk} if repository.sdk else {})


def make_app(store: Store) -> FastAPI:
    """Build the server. A handler never waits between reading and changing the store, so each is atomic."""
    app = FastAPI(openapi_url=None)
    app.add_exception_handler(HubError, answer_error)
    add_collection_routes(app, store)  # before those that would take "collections" for a kind of repository
    add_repository_routes(app, store)
    add_reading_routes(app, store)
    add_ref_routes(app, store)
    add_commit_routes(app, store)
    add_file_routes(app, store)
    return app


async def answer_error(_: Request, error: Exception) -> Response:
    """Answer a HubError as the Hub does."""
    assert isinstance(error, HubError)
    headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
    return JSONResponse({"error": error.message, **error.details}, error.status, headers)


def authorized(request: Request) -> bool:
    """Tell whether a request carries a token."""
    return request.headers.get("authorization", "").startswith("Bearer hf_")


def need_token(request: Request) -> None:
    """Refuse a request without a token."""
    if not authorized(request):
        raise HubError(401, "Unauthorized", "Invalid username or password.")


def revision_of(escaped: str) -> str:
    """Read a revision in a path, where a slash inside it is escaped."""
    return escaped.replace("%2F", "/")


def add_repository_routes(app: FastAPI, store: Store) -> None:
    """Who am I; create and delete a repository; check a card."""

    async def target(request: Request) -> tuple[dict[str, Any], str, str]:
        need_token(request)
        body = await request.json()
        return body, (body.get("type") or "model") + "s", f"{body.get('organization') or USER}/{body['name']}"

    @app.get("/api/whoami-v2")
    async def whoami(request: Request) -> dict[str, Any]:
        need_token(request)
        token = {"displayName": "test", "role": "write"}
        return {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"accessToken": token}}

    @app.post("/api/validate-yaml")
    async def validate_card(request: Request) -> Response:
        body = await request.json()
        errors = card_errors(body.get("content", ""), body.get("repoType", "model"))
        answer = {"errors": [{"message": message} for message in errors], "warnings": []}
        return JSONResponse(answer, 400 if errors else 200)

    @app.post("/api/repos/create")
    async def create(request: Request) -> dict[str, Any]:
        body, kind, repo_id = await target(request)
        url = f"{request.base_url}{URL_PREFIXES[kind]}{repo_id}"
        if (kind, repo_id) in store.repositories:
            raise HubError(409, "RepoExists", f"You already created this {kind[:-1]} repo: {repo_id}", url=url)
        if kind == "spaces" and not body.get("sdk"):
            raise HubError(400, "BadRequest", "A Space needs `sdk`")
        store.create(kind, repo_id, body.get("visibility") == "private" or bool(body.get("private")), body.get("sdk"))
        return {"url": url, "name": repo_id, "id": repo_id}

    @app.delete("/api/repos/delete")
    async def delete(request: Request) -> dict[str, Any]:
        _, kind, repo_id = await target(request)
        store.find(kind, repo_id)
        del store.repositories[kind, repo_id]
        return {}


def add_reading_routes(app: FastAPI, store: Store) -> None:
    """Information, refs, commits, listings."""
    base = "/api/{kind}/{owner}/{name}"

    @app.get(base)
    @app.get(base + "/revision/{revision}")
    async def info(request: Request, kind: str, owner: str, name: str, revision: str = "main") -> dict[str, Any]:
        repository = store.find(kind, f"{owner}/{name}", authorized(request))
        commit = repository.resolve(revision_of(revision))
        return repository_info(repository, commit, is_true(request.query_params.get("blobs")))

    @app.get(base + "/refs")
    async def refs(request: Request, kind: str, owner: str, name: str) -> dict[str, Any]:
        repository = store.find(kind, f"{owner}/{name}", authorized(request))
        pulls = {ref: sha for ref, sha in repository.refs.items() if ref.startswith("refs/pr/")}

        def listed(named: dict[str, str], prefix: str) -> list[dict[str, str]]:
            return [{"name": ref, "ref": prefix + ref, "targetCommit": sha} for ref, sha in named.items()]

        branches = {ref: sha for ref, sha in repository.refs.items() if ref not in pulls}
        answer = {"branches": listed(branches, "refs/heads/"), "tags": listed(repository.tags, "refs/tags/")}
        return answer | {"converts": [], "pullRequests": listed(pulls, "")}

    @app.get(base + "/commits/{revision}")
    async def commits(request: Request, kind: str, owner: str, name: str, revision: str) -> list[dict[str, Any]]:
        repository = store.find(kind, f"{owner}/{name}", authorized(request))
        common = {"authors": [{"user": USER}], "date": DATE}
        history = repository.history(repository.resolve(revision_of(revision)))
        return [{"id": step.sha, "title": step.title, "message": step.message, **common} for step in history]

    @app.get(base + "/tree/{revision}")
    @app.get(base + "/tree/{revision}/{folder:path}")
    async def listing(
        request: Request, kind: str, owner: str, name: str, revision: str, folder: str = ""
    ) -> list[dict[str, Any]]:
        repository = store.find(kind, f"{owner}/{name}", authorized(request))
        commit = repository.resolve(revision_of(revision))
        recursive, expand = (is_true(request.query_params.get(flag)) for flag in ("recursive", "expand"))
        return tree(repository, commit, folder.strip("/"), recursive, expand)

    @app.post(base + "/paths-info/{revision}")
    async def paths_info(request: Request, kind: str, owner: str, name: str, revision: str) -> list[dict[str, Any]]:
        repository = store.find(kind, f"{owner}/{name}", authorized(request))
        commit = repository.resolve(revision_of(revision))
        form = parse_qs((await request.body()).decode())
        expand, folders = is_true(form.get("expand", [""])[0]), folders_of(commit.files)
        answer = []
        for path in form.get("paths", []):
            if path in commit.files:
                answer.append(file_entry(repository, commit, path, expand))
            elif path in folders:
                answer.append(folder_entry(path))
        return answer


def card_errors(content: str, kind: str) -> list[str]:
    """Return what makes the Hub refuse the front matter of a card of a "model", "dataset" or "space".

    From the Hub's documentation of repository cards and of the configuration of Spaces; only what is tested here.
    """
    found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    try:
        data = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {error}"]
    if not isinstance(data, dict):
        return ["The metadata must be an object"]
    errors = []
    if data.get("license") == "other" and not data.get("license_name"):
        errors.append('"license_name" is required if "license" is "other"')
    if "base_model_relation" in data and data["base_model_relation"] not in BASE_MODEL_RELATIONS:
        errors.append(f'"base_model_relation" must be one of {BASE_MODEL_RELATIONS}')
    for index in data.get("model-index") or []:
        if not all({"task", "dataset", "metrics"} <= set(result) for result in index.get("results", [{}])):
            errors.append('"model-index[0].results" needs task, dataset and metrics')
    if kind == "space" and data:
        wrong = [name for name in ("colorFrom", "colorTo") if data.get(name, "red") not in COLORS]
        errors += [f'"{name}" must be one of {COLORS}' for name in wrong]
        errors += [] if data.get("sdk") in SDKS else [f'"sdk" must be one of {SDKS}']
        errors += ['"short_description" is too long'] if len(data.get("short_description", "")) > 60 else []
    return errors


def add_collection_routes(app: FastAPI, store: Store) -> None:
    """Collections, and the variables of Spaces."""
    base = "/api/collections/{owner}/{name}"

    def find(request: Request, slug: str) -> StoredCollection:
        collection = store.collections.get(slug)
        if collection is None or (collection.private and not authorized(request)):
            raise HubError(404, "CollectionNotFound", "Collection not found")
        return collection

    @app.get("/api/collections")
    async def listing(request: Request) -> list[dict[str, Any]]:
        owner = request.query_params.get("owner")
        visible = [one for one in store.collections.values() if authorized(request) or not one.private]
        described = [one.described() for one in visible if owner in (None, one.owner)]
        return [{name: one[name] for name in one if name != "position"} for one in described]

    @app.post("/api/collections")
    async def create(request: Request) -> dict[str, Any]:
        need_token(request)
        body = await request.json()
        if len(body.get("description") or "") > 150:
            raise HubError(400, "BadRequest", "A description has at most 150 characters")
        name = re.sub("[^a-z0-9]+", "-", body["title"].lower()).strip("-")
        slug = f"{body['namespace']}/{name}-{git_blob(body['title'].encode())[:24]}"
        if slug in store.collections:
            raise HubError(409, "CollectionExists", "This collection exists", slug=slug)
        one = StoredCollection(
            slug, body["title"], body["namespace"], body.get("description"), bool(body.get("private"))
        )
        store.collections[slug] = one
        return one.described()

    @app.get(base)
    async def get(request: Request, owner: str, name: str) -> dict[str, Any]:
        return find(request, f"{owner}/{name}").described()

    @app.post(base + "/items")
    async def add(request: Request, owner: str, name: str) -> dict[str, Any]:
        need_token(request)
        body = await request.json()
        collection, kind, repo_id = find(request, f"{owner}/{name}"), body["item"]["type"], body["item"]["id"]
        store.find(f"{kind}s", repo_id)
        if any((kind, repo_id) == item[:2] for item in collection.items):
            raise HubError(409, "ItemExists", "This item is in the collection")
        collection.items.append((kind, repo_id, body.get("note")))
        return collection.described()

    @app.post("/api/spaces/{owner}/{name}/variables")
    async def set_variable(request: Request, owner: str, name: str) -> dict[str, Any]:
        need_token(request)
        body, repository = await request.json(), store.find("spaces", f"{owner}/{name}")
        repository.variables[body["key"]] = body["value"]
        return {key: {"key": key, "value": value} for key, value in repository.variables.items()}


def add_ref_routes(app: FastAPI, store: Store) -> None:
    """Branches and tags."""
    base = "/api/{kind}/{owner}/{name}"

    @app.post(base + "/branch/{branch}")
    async def create_branch(request: Request, kind: str, owner: str, name: str, branch: str) -> dict[str, Any]:
        need_token(request)
        body = json.loads(await request.body() or b"{}")
        repository, branch = store.find(kind, f"{owner}/{name}"), revision_of(branch)
        if branch.startswith("refs/"):
            raise HubError(400, "BadRequest", f"Invalid reference for a branch: {branch}")
        if branch in repository.refs:
            raise HubError(409, "BranchExists", f"Reference already exists: {branch}")
        repository.refs[branch] = repository.resolve(body.get("startingPoint") or "main").sha
        return {}

    @app.delete(base + "/branch/{branch}")
    async def delete_branch(request: Request, kind: str, owner: str, name: str, branch: str) -> dict[str, Any]:
        need_token(request)
        repository, branch = store.find(kind, f"{owner}/{name}"), revision_of(branch)
        if branch == "main":
            raise HubError(403, "Forbidden", "The main branch cannot be deleted")
        if repository.refs.pop(branch, None) is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        return {}

    @app.post(base + "/tag/{revision}")
    async def create_tag(request: Request, kind: str, owner: str, name: str, revision: str) -> dict[str, Any]:
        need_token(request)
        tag = (await request.json())["tag"]
        repository = store.find(kind, f"{owner}/{name}")
        if tag in repository.tags:
            raise HubError(409, "TagExists", f"Tag already exists: {tag}")
        repository.tags[tag] = repository.resolve(revision_of(revision)).sha
        return {}

    @app.delete(base + "/tag/{tag}")
    async def delete_tag(request: Request, kind: str, owner: str, name: str, tag: str) -> dict[str, Any]:
        need_token(request)
        if store.find(kind, f"{owner}/{name}").tags.pop(revision_of(tag), None) is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision_of(tag)}")
        return {}


def add_commit_routes(app: FastAPI, store: Store) -> None:
    """What a client asks before a commit, and the commit."""
    base = "/api/{kind}/{owner}/{name}"

    @app.post(base + "/preupload/{revision}")
    async def preupload(request: Request, kind: str, owner: str, name: str, revision: str) -> dict[str, Any]:
        need_token(request)
        wanted = (await request.json())["files"]
        present = store.find(kind, f"{owner}/{name}").resolve(revision_of(revision)).files
        answer = []
        for file in wanted:
            mode = upload_mode(file["path"], file["size"], base64.b64decode(file.get("sample", "")))
            entry = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in present:  # lets the client leave out what did not change
                stored = present[file["path"]]
                entry["oid"] = stored.sha256 if stored.lfs else stored.oid
            answer.append(entry)
        return {"files": answer}

    @app.post(base + "/commit/{revision}")
    async def commit(request: Request, kind: str, owner: str, name: str, revision: str) -> dict[str, Any]:
        need_token(request)
        lines = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
        repository = store.find(kind, f"{owner}/{name}")
        ref, made = store.commit(
            repository, revision_of(revision), lines, is_true(request.query_params.get("create_pr"))
        )
        url = f"{request.base_url}{URL_PREFIXES[kind]}{repository.id}"
        pull = f"{url}/discussions/{ref.removeprefix('refs/pr/')}" if ref.startswith("refs/pr/") else None
        answer = {"success": True, "commitOid": made.sha, "commitUrl": f"{url}/commit/{made.sha}"}
        return answer | {"pullRequestUrl": pull}


def add_file_routes(app: FastAPI, store: Store) -> None:
    """LFS uploads, and downloads of every file."""

    @app.post("/{owner}/{name}.git/info/lfs/objects/batch")
    @app.post("/{prefix}/{owner}/{name}.git/info/lfs/objects/batch")
    async def lfs_batch(request: Request, owner: str, name: str, prefix: str = "models") -> Response:
        need_token(request)
        wanted = (await request.json())["objects"]
        store.find(prefix, f"{owner}/{name}")
        answer = []
        for one in wanted:
            entry = {"oid": one["oid"], "size": one["size"]}
            if not store.content(one["oid"]).is_file():  # without actions the client uploads nothing
                href = f"{request.base_url}_lfs/{one['oid']}"
                verify = {"href": f"{request.base_url}_lfs_verify"}
                entry["actions"] = {"upload": {"href": href}, "verify": verify}
            answer.append(entry)
        body = {"transfer": "basic", "objects": answer}
        return JSONResponse(body, media_type="application/vnd.git-lfs+json")

    @app.put("/_lfs/{oid}")
    async def lfs_upload(request: Request, oid: str) -> dict[str, Any]:
        target, sha256 = store.content(oid), hashlib.sha256()
        partial = target.with_name(f"{oid}.{id(request)}.partial")
        with partial.open("wb") as file:
            async for chunk in request.stream():
                sha256.update(chunk)
                file.write(chunk)
        if sha256.hexdigest() != oid:
            partial.unlink()
            raise HubError(400, "BadDigest", f"The content does not have the sha256 {oid}")
        partial.replace(target)
        return {}

    @app.post("/_lfs_verify")
    async def lfs_verify(request: Request) -> dict[str, Any]:
        body = await request.json()
        store.lfs_file(body["oid"], body["size"])
        return {}

    @app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    @app.api_route("/{prefix}/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    async def download(
        request: Request, owner: str, name: str, revision: str, path: str, prefix: str = "models"
    ) -> Response:
        repository = store.find(prefix, f"{owner}/{name}", authorized(request))
        commit = repository.resolve(revision_of(revision))
        headers = {"X-Repo-Commit": commit.sha}
        file = commit.files.get(path)
        if file is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return JSONResponse({"error": "Entry not found"}, 404, headers)
        headers["ETag"] = f'"{file.sha256 if file.lfs else file.oid}"'
        return FileResponse(store.content(file.sha256), headers=headers, media_type="application/octet-stream")


class LoopbackHub:
    """Serves a Hub from a thread while the `with` block runs, on a free port of 127.0.0.1.

    Args:
        folder: where file contents are kept; made if missing.

    Attributes:
        url: "http://127.0.0.1:<port>".
        log: every answered request, in order.
        store: the repositories.
    """

    def __init__(self, folder: str | Path):
        self.store = Store(Path(folder))
        self.log: list[LoggedRequest] = []
        self.faults: list[Fault] = []
        self._app = make_app(self.store)
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            self._serve, interface="asgi3", log_level="error", lifespan="off", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self) -> LoopbackHub:
        """Start to serve."""
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("The loopback Hub did not start.")
            time.sleep(0.005)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and free the port."""
        self._server.should_exit = True
        self._thread.join(timeout=30)
        self._socket.close()

    def fail(self, pattern: str, times: int = 1, status: int = 503) -> Fault:
        """Let the next `times` requests fail whose "METHOD /path" a regular expression is found in."""
        fault = Fault(pattern, times, status)
        self.faults.append(fault)
        return fault

    def requests(self, pattern: str = "") -> list[LoggedRequest]:
        """Return the answered requests whose "METHOD /path" a regular expression is found in, in order."""
        return [request for request in self.log if re.search(pattern, str(request))]

    def repository(self, repo_id: str, kind: str = "models") -> Repository:
        """Return a repository of one kind: "models", "datasets" or "spaces"."""
        return self.store.find(kind, repo_id)

    def files(self, repo_id: str, kind: str = "models", revision: str = "main") -> dict[str, StoredFile]:
        """Return the files of a revision by path."""
        return dict(self.repository(repo_id, kind).resolve(revision).files)

    def read(self, repo_id: str, path: str, kind: str = "models", revision: str = "main") -> bytes:
        """Return the content of a file."""
        return self.store.content(self.files(repo_id, kind, revision)[path].sha256).read_bytes()

    def environment(self, home: str | Path, **changes: str) -> dict[str, str]:
        """Return the environment of a process that talks to this Hub.

        Args:
            home: its HF_HOME: caches, modules, token.
            changes: further variables, such as PYTHONPATH or HF_HUB_OFFLINE.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(LIBRARY_SETTINGS)}
        own = {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        return {**kept, **own, **changes}

    def run_python(self, code: str, *arguments: str | Path, home: str | Path, **changes: str) -> str:
        """Run code in a new interpreter at / with `environment(home, **changes)`; return what it printed.

        Raises:
            RuntimeError: it failed; the message ends with its stderr.
        """
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd="/",
            env=self.environment(home, **changes),
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode != 0:
            raise RuntimeError(f"The process ended with {done.returncode}:\n{done.stderr[-6000:]}")
        return done.stdout

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request: log it, fail it where asked to, keep escaped slashes apart from real ones."""
        raw = scope["raw_path"].decode()
        scope = {**scope, "path": "/".join(unquote(part).replace("/", "%2F") for part in raw.split("/"))}
        headers = dict(scope["headers"])

        async def logging_send(message: Any) -> None:
            if message["type"] == "http.response.start":
                query, byte_range = scope["query_string"].decode(), headers.get(b"range", b"").decode() or None
                self.log.append(LoggedRequest(scope["method"], raw, query, byte_range, message["status"]))
            await send(message)

        for fault in self.faults:
            if fault.remaining > 0 and re.search(fault.pattern, f"{scope['method']} {raw}"):
                fault.remaining -= 1
                await Response("injected fault", fault.status)(scope, receive, logging_send)
                return
        await self._app(scope, receive, logging_send)
