# SPDX-License-Identifier: Apache-2.0
"""The command that builds a data set, with the embedded weights, from photographs to a set that loads."""

import json
import platform
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image, Value, load_dataset

from datasets_builder.generate_pairs import main
from datasets_builder.manifest import read_manifest
from datasets_builder.plan import Plan, photo_id
from datasets_builder.schema import FEATURES, LABEL_FEATURES
from datasets_builder.shards import file_digest
from tests.odd_photos import PLANTED, plain_photos, unusable_photos, usable_photos, write_photos


@pytest.fixture(autouse=True)
def threads_as_before():
    """The command sets the number of threads, which decides bytes; other tests want their own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def build(photos: Path | str, output: Path, *more: str) -> int:
    return main(["--photos", str(photos), "--output", str(output), "--pairs-per-shard", "4", "--device", "cpu", *more])


def digests(output: Path) -> list[str]:
    return [file_digest(path) for path in sorted((output / "data").iterdir())]


@pytest.fixture(scope="module")
def odd_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of good and bad photographs."""
    folder = tmp_path_factory.mktemp("odd")
    write_photos(folder / "photos", usable_photos() | {name: data for name, (data, _) in unusable_photos().items()})
    assert build(folder / "photos", folder / "out", "--license", "CC0-1.0", "--attribution", "Ann") == 0
    return folder / "out"


def test_a_folder_becomes_a_data_set_that_loads(odd_build: Path):
    rows = load_dataset(str(odd_build), split="train")
    assert rows.features == FEATURES and len(rows) == len(usable_photos())
    manifest = read_manifest(odd_build)
    assert manifest["counts"]["pairs"] == len(rows)
    assert sum(manifest["counts"]["rejected"].values()) == len(unusable_photos())
    assert set(rows["license"]) == {"CC0-1.0"} and set(rows["attribution"]) == {"Ann"}
    assert set(rows["weights_id"]) == {manifest["options"]["weights_id"]}
    assert len(set(rows["seed"])) == len(rows)


def test_no_planted_place_or_serial_number_is_in_any_shard(odd_build: Path):
    for path in (odd_build / "data").iterdir():
        assert PLANTED not in path.read_bytes()
    for row in load_dataset(str(odd_build), split="train"):
        assert not dict(row["left_image"].getexif()).keys() - {0x0112}


def test_metadata_are_kept_only_on_request(tmp_path: Path):
    write_photos(tmp_path / "photos", {"plain.jpg": usable_photos()["plain.jpg"]})
    assert build(tmp_path / "photos", tmp_path / "out", "--keep-metadata") == 0
    assert any(PLANTED in path.read_bytes() for path in (tmp_path / "out" / "data").iterdir())


def test_every_rejected_photograph_has_a_line(odd_build: Path):
    lines = [json.loads(line) for line in (odd_build / "rejected.jsonl").read_text().splitlines()]
    assert {line["source"]: line["kind"] for line in lines} == {n: kind for n, (_, kind) in unusable_photos().items()}
    assert all(line["reason"] for line in lines)


def test_nothing_is_left_beside_the_data(odd_build: Path):
    assert sorted(path.name for path in odd_build.iterdir()) == [".build", "data", "manifest.json", "rejected.jsonl"]
    assert all(path.suffix == ".parquet" for path in (odd_build / "data").iterdir())
    assert list((odd_build / ".build" / "unfinished").iterdir()) == []


def test_a_second_run_finds_nothing_to_do(odd_build: Path, capsys: pytest.CaptureFixture):
    before = [path.stat().st_mtime_ns for path in (odd_build / "data").iterdir()]
    photos = odd_build.parent / "photos"
    assert build(photos, odd_build, "--license", "CC0-1.0", "--attribution", "Ann") == 0
    assert "is complete; nothing to do" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in (odd_build / "data").iterdir()] == before


def test_missing_shards_are_made_again_with_the_same_bytes(tmp_path: Path):
    photos = write_photos(tmp_path / "photos", plain_photos(9))
    assert build(photos, tmp_path / "out") == 0
    before, manifest = digests(tmp_path / "out"), (tmp_path / "out" / "manifest.json").read_bytes()
    (tmp_path / "out" / "manifest.json").unlink()
    Plan(tmp_path / "out").shard_file(1).unlink()
    left = f"train-00001-of-00003.parquet.{platform.node()}.999999999"
    (tmp_path / "out" / ".build" / "unfinished" / left).write_bytes(b"half")
    assert build(photos, tmp_path / "out") == 0
    assert digests(tmp_path / "out") == before and (tmp_path / "out" / "manifest.json").read_bytes() == manifest
    assert list((tmp_path / "out" / ".build" / "unfinished").iterdir()) == []


def test_labels_only_publishes_no_picture(tmp_path: Path):
    photos = write_photos(tmp_path / "photos", plain_photos(2))
    assert build(photos, tmp_path / "out", "--labels-only") == 0
    assert load_dataset(str(tmp_path / "out"), split="train").features == LABEL_FEATURES


def test_a_streamed_data_set_becomes_pairs(tmp_path: Path):
    photos = plain_photos(6)
    records = [{"photo": {"bytes": data, "path": None}, "by": name} for name, data in photos.items()]
    records.insert(2, {"photo": None, "by": "nobody"})
    for shard in range(2):
        part = Dataset.from_list(records[shard::2], features=Features({"photo": Image(), "by": Value("string")}))
        (tmp_path / "set").mkdir(exist_ok=True)
        part.to_parquet(str(tmp_path / "set" / f"train-{shard:05d}-of-00002.parquet"))
    streamed = ("--image-column", "photo", "--attribution", "by")
    assert build(tmp_path / "set", tmp_path / "out", *streamed) == 0
    rows = load_dataset(str(tmp_path / "out"), split="train")
    assert {row["id"]: row["attribution"] for row in rows} == {photo_id(data): name for name, data in photos.items()}
    assert [row["source"].split("#")[1] for row in rows][:4] == ["0:0", "0:2", "0:3", "1:0"]  # batches of one size
    (line,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "the row holds no picture" and json.loads(line)["source"].endswith("#0:1")
    write_photos(tmp_path / "photos", photos)
    assert build(tmp_path / "photos", tmp_path / "folder") == 0
    by_id = {row["id"]: row for row in load_dataset(str(tmp_path / "folder"), split="train")}
    assert all(row["disparity_scale"] == by_id[row["id"]]["disparity_scale"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--photos", "nowhere-at-all"], "`photos` must be a folder, a list file or a data set; got nowhere-at-all: "),
        (["--batch-size", "0"], "`batch_size` must be at least 1; got 0"),
        (["--seed", "3"], "its plan is frozen: seed 0 -> 3"),
        (["--retry-rejected", "--steps", "2"], "its plan is frozen: steps None -> 2"),
    ],
)
def test_what_cannot_be_followed_ends_with_a_sentence(
    odd_build: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
):
    photos = odd_build.parent / "photos"
    assert build(photos, odd_build, "--license", "CC0-1.0", "--attribution", "Ann", *arguments) == 2
    assert message in capsys.readouterr().err
