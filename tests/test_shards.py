# SPDX-License-Identifier: Apache-2.0
"""Shards on disk: whole or not at all, the same bytes for the same rows, a record of their making, claims."""

import platform
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
from datasets import load_dataset

from datasets_builder.plan import Rejection
from datasets_builder.schema import FEATURES
from datasets_builder.shards import (
    ROWS_PER_GROUP,
    ShardRecord,
    claim,
    file_digest,
    is_finished,
    read_record,
    remove_leftovers,
    write_shard,
)
from tests.test_schema import make_row

RECORD = ShardRecord("digest", [Rejection("ä.jpg", "unreadable", "why", "1f")], [4], {"device": "cpu"})


def test_the_same_rows_give_the_same_bytes(tmp_path: Path):
    digests = []
    for name in ("one", "two"):
        path = tmp_path / name / "data" / "train-00000-of-00001.parquet"
        assert write_shard(path, (make_row(n) for n in range(3)), FEATURES, lambda: RECORD) == 3
        digests.append(file_digest(path))
    assert digests[0] == digests[1]


def test_rows_are_written_in_small_groups(tmp_path: Path):
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    write_shard(path, (make_row(n) for n in range(2 * ROWS_PER_GROUP + 3)), FEATURES, lambda: RECORD)
    metadata = pyarrow.parquet.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [8, 8, 3]
    assert [row["seed"] for row in load_dataset(str(tmp_path), split="train", streaming=True)] == list(range(19))


def test_the_footer_says_what_made_the_shard(tmp_path: Path):
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    write_shard(path, [], FEATURES, lambda: RECORD)  # every photograph of it was rejected
    assert read_record(path) == RECORD
    assert is_finished(path, "digest") and not is_finished(path, "other")
    assert not is_finished(tmp_path / "gone.parquet", "digest")


def test_a_broken_off_shard_leaves_nothing_to_read(tmp_path: Path):
    path = tmp_path / "data" / "train-00000-of-00001.parquet"

    def rows():
        yield make_row(0)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_shard(path, rows(), FEATURES, lambda: RECORD)
    assert list((tmp_path / "data").iterdir()) == []


def test_what_is_no_shard_is_refused(tmp_path: Path):
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ValueError, match="`path` must be a whole Parquet file; got .*train.parquet"):
        read_record(path)
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), path)
    with pytest.raises(ValueError, match="`path` must be a shard of a build; .*train.parquet says nothing"):
        is_finished(path, "digest")


def test_a_claim_holds_between_processes_and_ends_with_them(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from datasets_builder.shards import claim\n"
        "with claim(Path(sys.argv[1]), 'shard') as mine: print(mine, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "True\n"
    with claim(tmp_path, "shard") as mine, claim(tmp_path, "another") as free:
        assert not mine and free
    other.kill()
    other.communicate()
    with claim(tmp_path, "shard") as mine:
        assert mine


def test_only_what_dead_processes_left_is_removed(tmp_path: Path):
    folder = tmp_path / ".build" / "unfinished"
    folder.mkdir(parents=True)
    here = platform.node()
    (folder / f"a.parquet.{here}.1").touch()  # process 1 lives
    (folder / f"b.parquet.{here}.999999999").touch()
    (folder / "c.parquet.another-machine.999999999").touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name[:1] for path in folder.iterdir()) == ["a", "c"]
    remove_leftovers(tmp_path / "nowhere")
