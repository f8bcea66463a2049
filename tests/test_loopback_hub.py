# SPDX-License-Identifier: Apache-2.0
"""The loopback Hub behaves as huggingface_hub expects of the real one; every client runs in a process of its own."""

import hashlib
import json
import os
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.loopback_hub import LoopbackHub, git_blob, upload_mode

PREAMBLE = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
)
api = HfApi()
folder = Path(sys.argv[1])

def status_of(error, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except error as raised:
        return raised.response.status_code
"""

ROUND_TRIP = """
found = {}
for kind in ("model", "dataset", "space"):
    repo_id = f"me/my-{kind}"
    api.create_repo(repo_id, repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    api.upload_folder(repo_id=repo_id, repo_type=kind, folder_path=folder, commit_message="all of it")
    got = Path(snapshot_download(repo_id, repo_type=kind))
    found[kind] = {path.relative_to(got).as_posix(): path.read_bytes().hex() for path in got.rglob("*.*")}
    assert api.list_repo_files(repo_id, repo_type=kind) == sorted(found[kind])
assert api.space_info("me/my-space").sdk == "gradio"
print(json.dumps(found))
"""

HISTORY = """
def upload(text, **named):
    return api.upload_file(repo_id="me/r", path_or_fileobj=text.encode(), path_in_repo="a b/text.txt", **named)

def read(revision):
    return Path(hf_hub_download("me/r", "a b/text.txt", revision=revision)).read_text()

api.create_repo("me/r")
first = upload("one").oid
api.create_tag("me/r", tag="v1")
api.create_branch("me/r", branch="try/out")
second = upload("two", parent_commit=first).oid
branch = upload("three", revision="try/out").oid
pull = upload("four", create_pr=True)
texts = {"v1": "one", "main": "two", "try/out": "three", first: "one", second: "two"}
assert {revision: read(revision) for revision in texts} == texts
assert pull.pr_num == 1 and read("refs/pr/1") == "four"
assert [commit.commit_id for commit in api.list_repo_commits("me/r", revision="try/out")][:2] == [branch, first]
assert len(api.list_repo_commits("me/r")) == 3
refs = api.list_repo_refs("me/r", include_pull_requests=True)
assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "try/out": branch}
assert [ref.target_commit for ref in refs.tags + refs.pull_requests] == [first, pull.oid]
described, text = api.get_paths_info("me/r", ["a b", "a b/text.txt", "none"], expand=True)
assert (described.path, text.size, text.last_commit.oid) == ("a b", 3, second)
assert [entry.path for entry in api.list_repo_tree("me/r", "a b")] == ["a b/text.txt"]

# A commit on an old parent is refused, and so is what exists already or is no branch.
assert status_of(HfHubHTTPError, upload, "five", parent_commit=first) == 412
assert status_of(HfHubHTTPError, upload, "five", revision="v1") == 400
assert status_of(HfHubHTTPError, api.create_repo, "me/r") == 409
assert status_of(HfHubHTTPError, api.create_tag, "me/r", tag="v1") == 409
assert status_of(HfHubHTTPError, api.create_branch, "me/r", branch="try/out") == 409
assert status_of(HfHubHTTPError, api.create_branch, "me/r", branch="refs/pr/9") == 400
assert status_of(HfHubHTTPError, api.delete_branch, "me/r", branch="main") == 403
api.create_repo("me/r", exist_ok=True)
assert read(second) == "two" and len(api.list_repo_commits("me/r")) == 3

# Deletions.
api.delete_tag("me/r", tag="v1")
api.delete_branch("me/r", branch="try/out")
assert status_of(RevisionNotFoundError, api.model_info, "me/r", revision="v1") == 404
api.upload_file(repo_id="me/r", path_or_fileobj=b"kept", path_in_repo="a bc/kept.txt")
api.delete_folder("a b", repo_id="me/r")
assert api.list_repo_files("me/r") == [".gitattributes", "a bc/kept.txt"]
assert status_of(HfHubHTTPError, api.delete_file, "none.txt", repo_id="me/r") == 400
api.delete_file("a bc/kept.txt", repo_id="me/r")
assert api.list_repo_files("me/r") == [".gitattributes"]
api.delete_repo("me/r")
assert status_of(RepositoryNotFoundError, api.model_info, "me/r") == 404
"""

WHAT_IS_NOT_THERE = """
api.create_repo("me/open")
api.create_repo("me/hidden", private=True)
for error, call in (
    (RepositoryNotFoundError, lambda: hf_hub_download("me/none", "a.txt")),
    (RepositoryNotFoundError, lambda: api.dataset_info("me/open")),
    (RevisionNotFoundError, lambda: hf_hub_download("me/open", "a.txt", revision="v9")),
    (EntryNotFoundError, lambda: hf_hub_download("me/open", "a.txt")),
    (EntryNotFoundError, lambda: list(api.list_repo_tree("me/open", "folder"))),
):
    assert status_of(error, call) == 404, call
assert api.model_info("me/hidden").private and api.whoami()["name"] == "tester"
stranger = HfApi(token=False)
assert stranger.model_info("me/open").id == "me/open"
assert status_of(RepositoryNotFoundError, stranger.model_info, "me/hidden") == 404
assert status_of(HfHubHTTPError, stranger.create_repo, "me/other") == 401
assert status_of(HfHubHTTPError, lambda: stranger.upload_file(
    repo_id="me/open", path_or_fileobj=b"1", path_in_repo="a.txt")) == 401
"""

AGAIN = """
api.create_repo("me/r")
for _ in range(2):
    print(api.upload_folder(repo_id="me/r", folder_path=folder).oid)
"""

FAULTY = """
api.create_repo("me/r")
api.upload_folder(repo_id="me/r", folder_path=folder)
"""


COLLECTIONS = """
from huggingface_hub import RepoCard
api.create_repo("me/model")
api.create_repo("me/page", repo_type="space", space_sdk="gradio")
made = api.create_collection("My family, 1", namespace="me", description="all of it")
assert made.slug.startswith("me/my-family-1-") and made.items == []
api.add_collection_item(made.slug, "me/model", "model", note="first")
api.add_collection_item(made.slug, "me/page", "space")
found = api.get_collection(made.slug)
assert [(item.item_type, item.item_id, item.note) for item in found.items] == [
    ("model", "me/model", "first"), ("space", "me/page", None)
]
assert status_of(HfHubHTTPError, api.add_collection_item, made.slug, "me/model", "model") == 409
assert len(api.add_collection_item(made.slug, "me/model", "model", exists_ok=True).items) == 2
assert status_of(HfHubHTTPError, api.add_collection_item, made.slug, "me/none", "model") == 404
assert status_of(HfHubHTTPError, api.create_collection, "My family, 1", namespace="me") == 409
assert api.create_collection("My family, 1", namespace="me", exists_ok=True).slug == made.slug
assert status_of(HfHubHTTPError, api.create_collection, "Long", namespace="me", description="x" * 151) == 400
assert status_of(HfHubHTTPError, api.get_collection, "me/none") == 404
assert [one.title for one in api.list_collections(owner="me")] == ["My family, 1"]
assert [one.title for one in api.list_collections(owner="you")] == []
hidden = api.create_collection("Hidden", namespace="me", private=True)
assert status_of(HfHubHTTPError, HfApi(token=False).get_collection, hidden.slug) == 404

assert api.add_space_variable("me/page", "WEIGHTS", "me/model")["WEIGHTS"].value == "me/model"
assert status_of(RepositoryNotFoundError, api.add_space_variable, "me/none", "WEIGHTS", "x") == 404

def refused(front, kind):
    try:
        RepoCard(f"---\\n{front}\\n---\\ntext\\n", ignore_metadata_errors=True).validate(repo_type=kind)
    except ValueError as error:
        return str(error)
    return ""
assert refused("license: mit", "model") == ""
assert "license_name" in refused("license: other", "model")
assert "base_model_relation" in refused("base_model_relation: sibling", "model")
assert refused("base_model_relation: adapter", "model") == ""
assert "task, dataset and metrics" in refused("model-index: [{name: a, results: [{task: {type: b}}]}]", "model")
page = "colorFrom: red\\ncolorTo: blue\\nsdk: "
assert refused(page + "gradio", "space") == "" and "sdk" in refused(page + "none", "space")
assert "colorTo" in refused("colorFrom: red\\ncolorTo: teal\\nsdk: static", "space")
"""


@pytest.fixture
def hub(tmp_path: Path):
    with LoopbackHub(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small text file, an empty one and a large binary one, in folders."""
    folder = tmp_path / "content"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "README.md").write_text("# Card\n", encoding="utf-8")
    (folder / "deep" / "empty.txt").touch()
    (folder / "deep" / "er" / "weights.safetensors").write_bytes(bytes(range(251)) * 5)
    return folder


def ask(url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, bytes, dict]:
    """Ask without a client library, where the library would hide what is tested."""
    request = urllib.request.Request(url, body, {name.replace("_", "-"): text for name, text in headers.items()})
    request.method = method
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def test_folders_of_every_kind_come_back_as_they_were(hub, folder, tmp_path):
    found = json.loads(hub.run_python(PREAMBLE + ROUND_TRIP, folder, home=tmp_path / "home"))
    expected = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
    for kind in ("model", "dataset", "space"):
        files = hub.files(f"me/my-{kind}", kind + "s")
        assert set(files) == set(expected) | {".gitattributes"} == set(found[kind])
        for path, content in expected.items():
            assert hub.read(f"me/my-{kind}", path, kind + "s") == content == bytes.fromhex(found[kind][path])
            assert files[path].size == len(content)
            assert files[path].lfs == path.endswith(".safetensors"), path
            if not files[path].lfs:
                assert files[path].oid == git_blob(content)
    assert len(hub.requests("^PUT /_lfs/")) == 1, "the content was known already for the second and third kind"
    assert hub.repository("me/my-model").resolve("main").title == "all of it"


def test_branches_tags_pull_requests_and_parents(hub, folder, tmp_path):
    hub.run_python(PREAMBLE + HISTORY, folder, home=tmp_path / "home")


def test_collections_variables_and_front_matter(hub, folder, tmp_path):
    hub.run_python(PREAMBLE + COLLECTIONS, folder, home=tmp_path / "home")


def test_what_is_not_there_and_what_is_not_allowed(hub, folder, tmp_path):
    hub.run_python(PREAMBLE + WHAT_IS_NOT_THERE, folder, home=tmp_path / "home")
    for path, code in (
        ("/api/models/me/none", "RepoNotFound"),
        ("/api/models/me/open/revision/v9", "RevisionNotFound"),
        ("/me/open/resolve/main/none.txt", "EntryNotFound"),
    ):
        status, _, headers = ask(hub.url + path)
        assert (status, headers["x-error-code"]) == (404, code)


def test_what_did_not_change_is_not_committed_again(hub, folder, tmp_path):
    first, second = hub.run_python(PREAMBLE + AGAIN, folder, home=tmp_path / "home").split()
    assert first == second == hub.repository("me/r").refs["main"]
    assert len(hub.requests("POST .*/commit/main$")) == 1 and len(hub.requests("POST .*/preupload/main$")) == 2


def test_downloads_by_range(hub, folder, tmp_path):
    hub.run_python(PREAMBLE + FAULTY, folder, home=tmp_path / "home")
    url, content = f"{hub.url}/me/r/resolve/main/deep/er/weights.safetensors", bytes(range(251)) * 5
    status, part, headers = ask(url, Range="bytes=300-309")
    assert (status, part, headers["content-range"]) == (206, content[300:310], "bytes 300-309/1255")
    assert ask(url, Range="bytes=-7")[1] == content[-7:]
    assert ask(url, Range="bytes=2000-")[0] == 416
    status, nothing, headers = ask(url, "HEAD")
    assert (status, nothing, headers["content-length"]) == (200, b"", "1255")
    assert headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert headers["x-repo-commit"] == hub.repository("me/r").refs["main"]
    ranges = [request.byte_range for request in hub.requests("^GET /me/r/resolve/")]
    assert ranges == ["bytes=300-309", "bytes=-7", "bytes=2000-"]


def test_uploads_are_checked(hub, tmp_path):
    hub.store.create("models", "me/r", private=False, sdk=None)
    oid = hashlib.sha256(b"right").hexdigest()
    status, body, _ = ask(f"{hub.url}/_lfs/{oid}", "PUT", b"wrong")
    assert status == 400 and f"does not have the sha256 {oid}" in body.decode()
    assert ask(f"{hub.url}/_lfs/..%2F..%2Fetc", "PUT", b"x")[0] == 400

    def commit(**value: object) -> str:
        key = "lfsFile" if "oid" in value else "file"
        lines = [{"key": "header", "value": {"summary": "s"}}, {"key": key, "value": value}]
        body = "\n".join(map(json.dumps, lines)).encode()
        _, answer, _ = ask(f"{hub.url}/api/models/me/r/commit/main", "POST", body, Authorization="Bearer hf_x")
        return answer.decode()

    assert "was not uploaded" in commit(path="a.bin", oid=oid, size=5)
    assert ask(f"{hub.url}/_lfs/{oid}", "PUT", b"right")[0] == 200
    assert "was not uploaded" in commit(path="a.bin", oid=oid, size=6)
    assert "is not base64" in commit(path="a.txt", content="***")
    assert "Not a path in a repository: '../a.txt'" in commit(path="../a.txt", content="")
    assert set(hub.files("me/r")) == {".gitattributes"}, "a refused commit leaves nothing"
    assert "commitOid" in commit(path="a.bin", oid=oid, size=5)
    assert hub.read("me/r", "a.bin") == b"right"
    assert sorted(path.suffix for path in hub.store.folder.iterdir()) == ["", ""], "no partial upload stays"


def test_upload_modes():
    assert upload_mode("a/model.SAFETENSORS", 1, b"text") == "lfs"
    assert upload_mode("a/parquet", 1, b"text") == "regular"
    assert upload_mode("table.csv", 10_000_000, b"a,b") == "regular"
    assert upload_mode("table.csv", 10_000_001, b"a,b") == "lfs"
    assert upload_mode("unknown", 4, b"a\0b") == "lfs"


def test_faults_are_injected_as_often_as_asked(hub, folder, tmp_path):
    """A failed LFS upload is tried again by the client; a failed commit is not."""
    upload, commit = hub.fail("^PUT /_lfs/"), hub.fail("/commit/main$", times=2, status=500)
    with pytest.raises(RuntimeError, match=r"(?s)ended with 1.*500 Server Error|Internal Server Error"):
        hub.run_python(PREAMBLE + FAULTY, folder, home=tmp_path / "home")
    assert [request.status for request in hub.requests("^PUT /_lfs/")] == [503, 200]
    assert (upload.remaining, commit.remaining) == (0, 1)
    assert set(hub.files("me/r")) == {".gitattributes"}
    assert ask(f"{hub.url}/api/models/me/r/commit/main", "POST", b"")[0] == 500
    assert ask(f"{hub.url}/api/models/me/r/commit/main", "POST", b"")[0] == 401, "and then no more"


def test_environment_leaves_nothing_of_the_session(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_session")
    monkeypatch.setenv("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
    environment = hub.environment(tmp_path, EXTRA="yes")
    assert os.environ["HF_HUB_OFFLINE"] == "1" and "HF_HUB_OFFLINE" not in environment
    assert not {"HF_HUB_CACHE", "HF_MODULES_CACHE", "DIFFUSERS_DISABLE_REMOTE_CODE"} & environment.keys()
    assert environment["HF_ENDPOINT"] == hub.url and environment["HF_HOME"] == str(tmp_path)
    assert (environment["HF_TOKEN"], environment["EXTRA"], environment["PATH"]) == ("hf_x", "yes", os.environ["PATH"])


def test_it_listens_on_the_loopback_only_and_frees_its_port(tmp_path):
    with LoopbackHub(tmp_path / "one") as one, LoopbackHub(tmp_path / "two") as two:
        assert one.url != two.url
        port = int(one.url.rsplit(":", 1)[1])
        assert one.url == f"http://127.0.0.1:{port}"
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=5):
            pass
        assert ask(one.url + "/api/models/me/none")[0] == 404
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
