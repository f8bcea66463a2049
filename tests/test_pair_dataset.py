# SPDX-License-Identifier: Apache-2.0
"""Generated pairs as training samples: equal to what was stored, whatever they are read from; errors name the cure."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from datasets_builder.mfs35k import write_file_list, write_pair
from datasets_builder.schema import FEATURES, LABEL_FEATURES, decode_pair
from datasets_builder.shards import ShardRecord, write_shard
from pipeline_zerostereo import forward_warp
from tests.loopback_hub import LoopbackHub
from tests.test_mfs35k import make_sample
from tests.test_schema import make_row
from training.disparity_readers import DataFileError
from training.pair_dataset import (
    MfsPairs,
    TruePairs,
    check_shards,
    open_hub_pairs,
    open_parquet_folder,
    trust_pair,
)
from training.run import step_generator
from training.stereo_datasets import CREStereo

ROOT = Path(__file__).resolve().parent.parent
MASKS = ("valid_disparity_mask", "left_visible_mask", "right_hole_mask")
SHARD = "data/train-{:05d}-of-00002.parquet"


def write_rows(folder: Path, counts: tuple[int, ...] = (11, 3), features=FEATURES) -> Path:
    """A build of numbered rows, in row groups of 8."""
    start = 0
    for index, count in enumerate(counts):
        rows = [make_row(number) for number in range(start, start + count)]
        write_shard(folder / SHARD.format(index), rows, features, lambda: ShardRecord("digest", [], [], {}))
        start += count
    return folder


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("build"))


@pytest.fixture
def spoilt(build: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    shutil.copytree(build, tmp_path / "build")
    return tmp_path / "build"


def assert_sample(sample: dict, size: tuple[int, int]) -> None:
    assert {name: (value.dtype, tuple(value.shape)) for name, value in sample.items() if name != "name"} == {
        **dict.fromkeys(("left_image", "right_image"), (torch.uint8, (3, *size))),
        **dict.fromkeys(("disparity", "confidence"), (torch.float32, (1, *size))),
        **dict.fromkeys(MASKS, (torch.bool, (1, *size))),
    }


# --- our rows ---


@pytest.mark.parametrize("number", [0, 7, 8, 10, 11, 13])
def test_a_row_comes_back_as_it_was_stored(build: Path, number: int):
    pairs = open_parquet_folder(build)
    assert len(pairs) == 14
    sample, row = pairs[number], make_row(number)
    assert_sample(sample, (5, 9))
    decoded = decode_pair({name: {"bytes": v, "path": None} if isinstance(v, bytes) else v for name, v in row.items()})
    for name in ("disparity", "confidence", *MASKS):
        assert np.array_equal(sample[name], decoded[name]), name
    left = np.arange(5 * 9 * 3, dtype=np.uint8).reshape(5, 9, 3) + number
    assert np.array_equal(sample["left_image"].movedim(0, -1), left)
    assert np.array_equal(sample["right_image"].movedim(0, -1), 255 - left)
    assert not sample["valid_disparity_mask"][0, 1, 2] and sample["disparity"][0, 1, 2] == 0
    assert sample["name"] == f"{build}/{number:016x}"


def test_zero_disparity_of_our_rows_is_valid_and_of_mfs35k_is_not(build: Path, tmp_path: Path):
    ours = open_parquet_folder(build)[0]
    assert ours["disparity"][0, 0, 0] == 0 and ours["valid_disparity_mask"][0, 0, 0]
    stored = make_sample()
    stored.disparity[1, 2] = 0
    write_file_list(tmp_path / "list.txt", [write_pair(tmp_path, stored)])
    theirs = MfsPairs(tmp_path)[0]["valid_disparity_mask"]
    assert not theirs[0, 1, 2] and theirs.sum() == theirs.numel() - 1


def test_rows_at_the_top_of_a_folder_are_found(build: Path, tmp_path: Path):
    for path in build.glob("data/*.parquet"):
        shutil.copy(path, tmp_path)
    assert len(open_parquet_folder(tmp_path)) == 14


def test_an_order_has_every_row_once_and_depends_on_the_generator(build: Path):
    pairs = open_parquet_folder(build)
    orders = [pairs.order(step_generator(seed, 0, 0)) for seed in (1, 1, 2)]
    assert orders[0].tolist() == orders[1].tolist() != orders[2].tolist()
    assert sorted(orders[0].tolist()) == list(range(14))


def test_a_group_wise_order_keeps_groups_together_and_reads_each_once(build: Path, monkeypatch):
    pairs = open_parquet_folder(build)
    pairs.group_wise = True
    orders = [pairs.order(step_generator(seed, 0, 0)).tolist() for seed in range(8)]
    groups = [[0 if row < 8 else 1 if row < 11 else 2 for row in order] for order in orders]
    assert all(sorted(order) == list(range(14)) for order in orders)
    assert all(sum(a != b for a, b in zip(line, line[1:], strict=False)) == 2 for line in groups), "three runs each"
    assert len({tuple(line) for line in groups}) > 1 and len({tuple(order) for order in orders}) == 8
    reads = []
    read = pyarrow.parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile, "read_row_group", lambda *a, **named: reads.append(a[1]) or read(*a, **named)
    )
    assert [pairs[row]["name"][-16:] for row in orders[0]] == [f"{row:016x}" for row in orders[0]]
    assert len(reads) == 3


def test_only_needed_columns_are_read(build: Path):
    assert "preview" not in open_parquet_folder(build)._read_group(0).column_names


def test_rows_travel_to_worker_processes(build: Path):
    pairs = open_parquet_folder(build)
    first = pairs[9]
    again = pickle.loads(pickle.dumps(pairs))
    again._kept = (os.getpid() + 1, 1, None)  # as after a fork
    assert torch.equal(again[9]["left_image"], first["left_image"])


@pytest.mark.parametrize("index", [-1, 14])
def test_rows_that_are_not_there(build: Path, index: int):
    with pytest.raises(IndexError, match=rf"`index` must be in 0 ... 13; got {index}"):
        open_parquet_folder(build)[index]


def test_no_folder_and_no_files(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="`root` must be the folder of a build; there is no folder .*/none"):
        open_parquet_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="`root` must hold Parquet files, in data/ or at its top"):
        open_parquet_folder(tmp_path)


def test_a_missing_shard_is_named(spoilt: Path):
    (spoilt / SHARD.format(0)).unlink()
    with pytest.raises(FileNotFoundError, match="all 2 files of its set; .* lacks 1 of them, first -00000-of-00002"):
        open_parquet_folder(spoilt)


def test_files_without_numbers_are_a_set_as_they_are():
    check_shards(["a.parquet", "b-00000-of-00001.parquet"], "here")


def test_labels_without_pictures_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"lacks the columns \['left_image', 'right_image'\].*attach"):
        open_parquet_folder(write_rows(tmp_path, (2, 1), LABEL_FEATURES))


def test_a_build_without_rows_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="`root` must hold at least one row; the 2 files of"):
        open_parquet_folder(write_rows(tmp_path, (0, 0)))


def test_a_truncated_file_is_named(spoilt: Path):
    path = spoilt / SHARD.format(1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="`root` must hold whole Parquet files; got .*train-00001-of-00002"):
        open_parquet_folder(spoilt)


def test_a_damaged_picture_is_named_with_its_row(tmp_path: Path):
    row = make_row(0)
    row["right_image"] = row["right_image"][:40]
    for index, rows in enumerate(([make_row(5)], [row])):
        write_shard(tmp_path / SHARD.format(index), rows, FEATURES, lambda: ShardRecord("digest", [], [], {}))
    pairs = open_parquet_folder(tmp_path)
    assert pairs[0]["name"].endswith("5")
    with pytest.raises(DataFileError, match="train-00001-of-00002.parquet: must hold whole rows of a build; row 1 "):
        pairs[1]


@pytest.mark.slow
def test_rows_are_streamed_from_the_hub(build: Path, tmp_path: Path):
    script = f"""
import numpy as np
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("me/pairs", repo_type="dataset")
api.upload_folder(repo_id="me/pairs", repo_type="dataset", folder_path={str(build)!r})
first = api.dataset_info("me/pairs").sha
api.delete_file("{SHARD.format(0)}", "me/pairs", repo_type="dataset")
from training.pair_dataset import open_hub_pairs, open_parquet_folder
pairs, local = open_hub_pairs(f"me/pairs@{{first}}"), open_parquet_folder({str(build)!r})
assert pairs.group_wise and len(pairs) == 14, len(pairs)
for row in (13, 2, 3):
    for name, value in local[row].items():
        assert name == "name" or np.array_equal(pairs[row][name], value), name
assert pairs[2]["name"] == f"me/pairs@{{first}}/{2:016x}"
for reference in ("me/pairs", "me/none", "me/pairs@v9", "no name"):
    try:
        open_hub_pairs(reference)
    except FileNotFoundError as error:
        print(error)
"""
    with LoopbackHub(tmp_path / "hub") as hub:
        printed = hub.run_python(script, home=tmp_path / "home", PYTHONPATH=str(ROOT)).splitlines()
        ranges = [request.byte_range for request in hub.requests("^GET /datasets/me/pairs/resolve/.*parquet")]
    assert ranges and all(ranges), "nothing is fetched as a whole file"
    assert "lacks 1 of them, first -00000-of-00002.parquet" in printed[0]
    for line, reference in zip(printed[1:], ("me/none", "me/pairs@v9", "no name"), strict=True):
        assert f"of a data set that the Hub gives out; got {reference!r}: " in line


def test_without_network_it_says_so():
    with pytest.raises(FileNotFoundError, match=r"`root` must be ORG/REPO or ORG/REPO@REVISION .*got 'me/pairs'"):
        open_hub_pairs("me/pairs")


# --- MfS35K ---


def write_mfs(root: Path, count: int = 3) -> Path:
    samples = [make_sample(seed, f"street/left/{seed}.png", 6, 7) for seed in range(count)]
    write_file_list(root / "list.txt", [write_pair(root, sample) for sample in samples])
    return root


@pytest.mark.parametrize("reference", ["", "list.txt"])
def test_samples_of_the_official_layout(tmp_path: Path, reference: str):
    pairs = MfsPairs(write_mfs(tmp_path) / reference)
    assert len(pairs) == 3 and sorted(pairs.order(step_generator(0, 0, 0)).tolist()) == [0, 1, 2]
    sample, stored = pairs[1], make_sample(1, "street/left/1.png", 6, 7)
    assert_sample(sample, (6, 7))
    for name in ("left_image", "right_image"):
        assert np.array_equal(sample[name].movedim(0, -1), getattr(stored, name))
    for name in ("disparity", "confidence", "left_visible_mask", "right_hole_mask"):
        assert np.array_equal(sample[name][0], getattr(stored, name))
    assert sample["name"] == "street/left/1.png"


def test_faults_of_the_official_layout(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="`root` must be a file list .* folder of list.txt; there is no"):
        MfsPairs(tmp_path)
    pairs = MfsPairs(write_mfs(tmp_path))
    (tmp_path / "street/confidence/2.npy").write_bytes(b"no")
    with pytest.raises(DataFileError, match="street/left/2.png: must be a whole sample .*whole .npy file"):
        pairs[2]
    (tmp_path / "street/right/1.png").unlink()
    with pytest.raises(DataFileError, match="street/left/1.png: must be a whole sample .*must exist"):
        pairs[1]
    with pytest.raises(FileNotFoundError, match="the 18 files that .*; 1 are missing, first street/right/1.png"):
        MfsPairs(tmp_path)


# --- true disparity ---


def test_a_true_pair_is_trusted_and_its_masks_are_seen_by_warping(tmp_path: Path):
    (tmp_path / "hole").mkdir()
    generator = np.random.default_rng(0)
    left = generator.integers(0, 256, (6, 20, 3), np.uint8)
    for view in ("left", "right"):
        Image.fromarray(left).save(tmp_path / f"hole/1_{view}.jpg")
    disparity = np.full((6, 20), 2 * 32, np.uint16)
    disparity[2, 10:14], disparity[4, 5] = 7 * 32, 0
    Image.fromarray(disparity).save(tmp_path / "hole/1_left.disp.png")
    pairs = TruePairs(CREStereo(tmp_path))
    assert len(pairs) == 1 and pairs.order(step_generator(0, 0, 0)).tolist() == [0]
    sample = pairs[0]
    assert_sample(sample, (6, 20))
    assert sample["name"] == "hole/1_left.jpg"
    assert sample["disparity"][0, 2, 9:15].tolist() == [2, 7, 7, 7, 7, 2]
    assert (sample["confidence"] == 1).all() and not sample["right_hole_mask"].any()
    assert not sample["valid_disparity_mask"][0, 4, 5] and not sample["left_visible_mask"][0, 4, 5]
    # columns 10..13 at 7 px land on 3..6, where the background of columns 5..8 would be
    hidden = (~sample["left_visible_mask"][0, 2]).nonzero()[:, 0].tolist()
    assert hidden == [0, 1, 5, 6, 7, 8]


def test_trusting_changes_nothing_that_is_handed_in():
    pair = {
        "left_image": torch.full((3, 4, 8), 9, dtype=torch.uint8),
        "right_image": torch.zeros(3, 4, 8, dtype=torch.uint8),
        "left_disparity": torch.full((1, 4, 8), 1.5),
        "valid_disparity_mask": torch.ones(1, 4, 8, dtype=torch.bool),
        "name": "a",
    }
    before = {name: value.clone() if name != "name" else value for name, value in pair.items()}
    sample = trust_pair(pair)
    assert all(torch.equal(pair[name], before[name]) for name in pair if name != "name")
    expected = forward_warp(pair["left_image"][None].float(), pair["left_disparity"][None]).left_visible_mask[0]
    assert torch.equal(sample["left_visible_mask"], expected)
