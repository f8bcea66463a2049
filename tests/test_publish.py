# SPDX-License-Identifier: Apache-2.0
"""Publishing on a loopback Hub: every client is a process of its own. What needs no network runs here, offline."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset

from datasets_builder import publish
from datasets_builder.dataset_card import GENERATED
from datasets_builder.hub_upload import ReadBackError, read_back
from datasets_builder.manifest import read_manifest
from datasets_builder.reading import read_whole_rows
from datasets_builder.schema import decode_pair
from tests.loopback_hub import LoopbackHub
from tests.odd_photos import plain_photos, write_photos
from tests.small_builds import build, change_row, copy_build, shard_path
from tests.test_repository import code_blocks

ROOT = Path(publish.__file__).resolve().parent.parent

COMMON = """
import sys
from pathlib import Path
from huggingface_hub import HfApi
from datasets_builder import publish
folder = sys.argv[1]
waits = []

def run(*arguments, api=None):
    options = publish.parse_arguments([*map(str, arguments)])
    return publish.run(options, api or HfApi(), wait=waits.append)

def refused(error, *arguments, **named):
    try:
        run(*arguments, **named)
    except error as raised:
        return str(raised)
    raise AssertionError(arguments)
"""

# Faults are injected by the test: 503 to the creation, twice 503 and once 412 to the commit. Again: nothing is sent.
FLAKY = """
assert run(folder, "me/pairs") == 0
print("waits", waits)
waits.clear()
assert run(folder, "me/pairs") == 0 and waits == []
"""
# The commit fails for good in the first run; the second sends the commit only.
BROKEN_OFF = """
from huggingface_hub.errors import HfHubHTTPError
assert "500" in refused(HfHubHTTPError, folder, "me/broken")
assert waits == [1, 2, 4, 8, 16], waits
waits.clear()
print("files", HfApi().list_repo_files("me/broken", repo_type="dataset"))
assert run(folder, "me/broken") == 0 and waits == []
"""
PRIVATE = """
from huggingface_hub.errors import RepositoryNotFoundError
assert run(folder, "me/hidden", "--private") == 0
assert "which exists and is public" in refused(ValueError, folder, "me/pairs", "--private")
try:
    HfApi(token=False).dataset_info("me/hidden")
except RepositoryNotFoundError:
    print("strangers see nothing")
"""
RIVALS = """
class Rivalled(HfApi):
    rival = None

    def upload_folder(self, **named):
        if self.rival:
            path, content = self.rival
            self.rival = None
            HfApi().upload_file(
                repo_id=named["repo_id"], repo_type="dataset", path_in_repo=path, path_or_fileobj=content
            )
        return super().upload_folder(**named)

api = Rivalled()
api.rival = ("NOTES.md", b"mine")
assert run(folder, "me/rivals", api=api) == 0 and waits == [1], waits
api.rival = ("README.md", b"theirs")
card = Path(folder) / "README.md"
card.write_text(card.read_text() + "\\nMore.\\n")
message = refused(publish.ConflictError, folder, "me/rivals", api=api)
assert "first README.md" in message, message
"""
READ = """
import json
import sys
import numpy as np
from datasets import load_dataset
from datasets_builder.schema import decode_pair
blocks = json.loads(sys.argv[2])
assert len(blocks) == 3
found = {}
for block in blocks:
    exec(block, found)
first = next(iter(found["pairs"]))
np.savez(
    sys.argv[1], **{name: first[name] for name in ("disparity", "confidence", "right_hole_mask", "right_image")},
    own_disparity=found["disparity"], own_confidence=found["confidence"], own_mask=found["right_hole_mask"],
)
whole = load_dataset("me/pairs", split="train")
print(len(whole), [row["id"] for row in whole] == [row["id"] for row in found["pairs"]], whole.num_rows)
"""


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """A build of thirteen photographs in seven shards."""
    folder = tmp_path_factory.mktemp("publish")
    photos = write_photos(folder / "photos", plain_photos(13))
    return build(photos, folder / "pairs", "--license", "CC0-1.0")


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    return copy_build(clean, tmp_path / "pairs")


@pytest.fixture
def hub(tmp_path: Path):
    with LoopbackHub(tmp_path / "hub") as server:
        yield server


# --- without network ---


def test_a_dry_run_writes_the_card_and_uploads_nothing(folder: Path, capsys):
    assert publish.main([str(folder), "me/pairs", "--dry-run"]) == 0  # the test session is offline
    printed = capsys.readouterr().out
    assert "would be uploaded to me/pairs: 12 files, " in printed and "rejected" not in printed
    assert GENERATED in (folder / "README.md").read_text() and (folder / "assets" / "disparity.png").is_file()
    assert not [path for path in folder.rglob(".*") if path.is_file()], "no temporary file stays"
    assert len(list(load_dataset(str(folder), split="train", streaming=True))) == 13, "by the card's own data files"


def test_a_build_with_faults_is_not_published(folder: Path, capsys):
    change_row(folder, flip_agreement=float("nan"))
    assert publish.main([str(folder), "me/pairs"]) == 1
    printed = capsys.readouterr().out
    assert "scalar: data/train-00000-of-00007.parquet" in printed and "is not published: 1 faults" in printed
    assert not (folder / "README.md").exists()


def test_photographs_without_licence_are_refused_unless_it_is_stated(folder: Path, capsys):
    change_row(folder, license="", source="album/a.jpg")
    assert publish.main([str(folder), "me/pairs", "--dry-run"]) == 2
    assert "1 pairs have none, first album/a.jpg." in capsys.readouterr().err
    assert publish.main([str(folder), "me/pairs", "--dry-run", "--licence-for-all", " "]) == 2
    assert publish.main([str(folder), "me/pairs", "--dry-run", "--licence-for-all", "CC0-1.0"]) == 0
    assert "license: cc0-1.0\n" in (folder / "README.md").read_text()
    assert "CC0-1.0 (stated by the publisher; the rows have none)" in (folder / "README.md").read_text()


def test_a_card_of_your_own_is_kept(folder: Path, capsys):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\nMine.\n")
    assert publish.main([str(folder), "me/pairs", "--dry-run"]) == 0
    assert (folder / "README.md").read_text().endswith("Mine.\n")
    assert "is your own text and is kept" in capsys.readouterr().out
    (folder / "README.md").write_text("Mine.\n")
    assert publish.main([str(folder), "me/pairs", "--dry-run"]) == 2
    assert "`README.md` must state a license in its front matter" in capsys.readouterr().err
    (folder / "README.md").write_text("---\nlicense: [\n---\n\nMine.\n")
    assert publish.main([str(folder), "me/pairs", "--dry-run"]) == 2
    assert "`README.md` must begin with YAML between two lines of ---" in capsys.readouterr().err


def test_what_cannot_be_followed_is_refused(folder: Path, tmp_path: Path, capsys):
    for arguments, message in (
        ([str(tmp_path / "gone"), "me/pairs"], "`DIR` must be the folder of a build"),
        ([str(folder), "pairs"], "`REPO` must be USER/NAME; got pairs."),
        ([str(folder), "me/a b"], "Repo id must use alphanumeric chars"),
    ):
        assert publish.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_without_network_it_says_so(folder: Path, capsys):
    assert publish.main([str(folder), "me/pairs"]) == 1
    assert "not published: Cannot reach " in capsys.readouterr().err


def test_a_build_without_pairs_is_refused(tmp_path: Path, capsys):
    photos = write_photos(tmp_path / "photos", plain_photos(1))
    empty = build(photos, tmp_path / "empty", "--max-hole-share", "0", "--license", "CC0")
    assert publish.main([str(empty), "me/pairs", "--dry-run"]) == 2
    assert "`DIR` must hold at least one pair" in capsys.readouterr().err


def test_reading_back_finds_what_differs(clean: Path, folder: Path):
    """A folder stands for the repository: `load_dataset` streams both in the same way."""
    assert read_back(clean, str(clean), "main", 10) == 10 and read_back(clean, str(folder), "main", 99) == 13
    change_row(folder, 1, seed=5, preview=b"another")
    with pytest.raises(ReadBackError, match=r"row [0-9a-f]{16} differs in \['preview', 'seed'\]"):
        read_back(clean, str(folder), "main", 2)
    shard_path(folder, 6).unlink()
    with pytest.raises(ReadBackError, match="must give 13 rows by streaming; got 12"):
        read_back(clean, str(folder), "main", 13)


# --- on the loopback Hub ---


@pytest.mark.slow
def test_a_build_is_published_in_bad_weather_and_read_by_others(hub, folder, tmp_path):
    hub.fail("^POST /api/repos/create", times=1, status=503)
    hub.fail("^PUT /_lfs/", times=1, status=503)
    hub.fail("/commit/main$", times=2, status=503)
    conflict = hub.fail("/commit/main$", times=1, status=412)
    python = {"home": tmp_path / "home", "PYTHONPATH": str(ROOT)}
    printed = hub.run_python(COMMON + FLAKY, folder, **python)
    assert conflict.remaining == 0
    assert hub.requests("^POST /api/validate-yaml"), "the client lets the Hub check the front matter"
    assert "waits [1.0, 1.0, 2.0, 4.0]" in printed
    assert [request.status for request in hub.requests("/commit/main$")] == [503, 503, 412, 200]

    files = hub.files("me/pairs", "datasets")
    shards = [entry["file"] for entry in read_manifest(folder)["shards"]]
    pictures = {f"assets/{name}" for name in ("pairs.jpg", "disparity.png", "confidence.png")}
    assert set(files) == {".gitattributes", "README.md", "manifest.json", *pictures, *shards}
    for name in files.keys() - {".gitattributes"}:
        assert hub.read("me/pairs", name, "datasets") == (folder / name).read_bytes(), name

    assert len(hub.requests("^PUT ")) == 1 + len(shards) + len(pictures), "the failed one and each LFS file once"
    assert "12 files new or changed; 10 rows read back" in printed
    assert "0 files new or changed; 10 rows read back" in printed

    # Somebody else, with an empty cache, runs what stands on the card.
    blocks = json.dumps(code_blocks((folder / "README.md").read_text(), "python"))
    target, other = tmp_path / "found.npz", {"home": tmp_path / "other", "PYTHONPATH": str(ROOT)}
    assert hub.run_python(READ, target, blocks, **other).split() == ["13", "True", "13"]
    (row,) = read_whole_rows(shard_path(folder), [0])
    expected = decode_pair(row)
    with np.load(target) as found:
        for name in ("disparity", "confidence", "right_hole_mask", "right_image"):
            assert np.array_equal(found[name], expected[name]), name
        assert np.array_equal(found["own_disparity"], expected["disparity"][0])
        assert np.allclose(found["own_confidence"], expected["confidence"][0], rtol=0, atol=1e-7)
        assert np.array_equal(found["own_mask"], expected["right_hole_mask"][0])


@pytest.mark.slow
def test_private_repositories_broken_uploads_and_rivals(hub, folder, tmp_path):
    python = {"home": tmp_path / "home", "PYTHONPATH": str(ROOT)}
    broken = hub.fail("/me/broken/commit/main$", times=6, status=500)
    hub.store.create("datasets", "me/pairs", private=False, sdk=None)
    printed = hub.run_python(COMMON + BROKEN_OFF + PRIVATE + "waits.clear()\n" + RIVALS, folder, **python)
    assert broken.remaining == 0 and "files ['.gitattributes']" in printed
    assert "strangers see nothing" in printed and hub.repository("me/hidden", "datasets").private
    assert not hub.repository("me/broken", "datasets").private
    assert len(hub.files("me/broken", "datasets")) == 13
    assert len(hub.requests("^PUT ")) == 10, "what was sent before the failure is not sent again, to no repository"
    assert set(hub.files("me/pairs", "datasets")) == {".gitattributes"}, "nothing private goes to a public place"
    assert hub.read("me/rivals", "NOTES.md", "datasets") == b"mine"
    assert hub.read("me/rivals", "README.md", "datasets") == b"theirs"
