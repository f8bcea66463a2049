# SPDX-License-Identifier: Apache-2.0
"""Reading rows of a build: which ones are chosen, that they are the right ones, and what is left out."""

import json
from pathlib import Path

import pytest

from datasets_builder.reading import PLAIN_COLUMNS, choose_rows, read_plain_rows, read_whole_rows, sample_rows
from datasets_builder.schema import FEATURES
from datasets_builder.shards import ShardRecord, write_shard
from tests.test_schema import make_row


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two shards of 19 and 3 rows, in row groups of 8; the seed of a row is its number."""
    folder = tmp_path_factory.mktemp("build")
    shards, start = [], 0
    for index, rows in enumerate((19, 3)):
        name = f"data/train-{index:05d}-of-00002.parquet"
        numbers = range(start, start + rows)
        write_shard(folder / name, (make_row(n) for n in numbers), FEATURES, lambda: ShardRecord("digest", [], [], {}))
        shards.append({"file": name, "rows": rows})
        start += rows
    (folder / "manifest.json").write_text(json.dumps({"shards": shards}))
    return folder


def seeds(rows) -> list[int]:
    return [row["seed"] for row in rows]


def test_rows_are_chosen_over_all_shards_by_the_seed():
    rows_of = {"a": 3, "empty": 0, "b": 5}
    everything = {"a": [0, 1, 2], "empty": [], "b": [0, 1, 2, 3, 4]}
    assert choose_rows(rows_of, None, 0) == choose_rows(rows_of, 8, 0) == choose_rows(rows_of, 99, 0) == everything
    assert choose_rows(rows_of, 0, 0) == {"a": [], "empty": [], "b": []}
    chosen = [choose_rows(rows_of, 4, seed) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    for one in chosen:
        assert sum(map(len, one.values())) == 4
        for name, places in one.items():
            assert places == sorted(set(places)) and set(places) <= set(range(rows_of[name]))


def test_chosen_rows_are_read_whole(folder: Path):
    path = folder / "data" / "train-00000-of-00002.parquet"
    rows = list(read_whole_rows(path, [0, 7, 8, 15, 18]))
    assert seeds(rows) == [0, 7, 8, 15, 18] and seeds(read_whole_rows(path, [])) == []
    assert list(rows[0]) == list(FEATURES) and rows[0]["left_image"]["bytes"] == make_row(0)["left_image"]


def test_numbers_are_read_without_pictures(folder: Path):
    rows = list(read_plain_rows(folder / "data" / "train-00001-of-00002.parquet"))
    assert seeds(rows) == [19, 20, 21] and list(rows[0]) == PLAIN_COLUMNS
    assert "width" in PLAIN_COLUMNS and not {"left_image", "disparity", "preview"} & set(PLAIN_COLUMNS)


def test_a_sample_of_a_build(folder: Path):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert seeds(sample_rows(folder, manifest, 99, 0)) == list(range(22))
    found = [seeds(sample_rows(folder, manifest, 6, seed)) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2] and len(found[2]) == 6
