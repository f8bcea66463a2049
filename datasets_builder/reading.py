# SPDX-License-Identifier: Apache-2.0
"""Read rows of a finished build without its networks: all numbers, or whole rows chosen by chance.

At most one row group is held at a time. It knows nothing of what the rows are read for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import Image

from datasets_builder.schema import FEATURES

PLAIN_COLUMNS = [name for name, kind in FEATURES.items() if not isinstance(kind, Image)]


def choose_rows(rows_of: Mapping[str, int], count: int | None, seed: int) -> dict[str, list[int]]:
    """Choose rows by chance over all shards.

    Args:
        rows_of: number of rows of each shard, by name.
        count: how many rows; None, or more than there are = all of them.
        seed: decides which.

    Returns:
        Places of the chosen rows in each shard, ascending.
    """
    total = sum(rows_of.values())
    if count is None or count >= total:
        return {name: list(range(rows)) for name, rows in rows_of.items()}
    places = sorted(random.Random(seed).sample(range(total), count))
    chosen, start = {}, 0
    for name, rows in rows_of.items():
        chosen[name] = [place - start for place in places if start <= place < start + rows]
        start += rows
    return chosen


def read_plain_rows(path: Path, columns: list[str] = PLAIN_COLUMNS) -> Iterator[dict[str, Any]]:
    """Read the columns of a shard that are no pictures, row by row."""
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=columns):
            yield from batch.to_pylist()


def read_whole_rows(path: Path, places: list[int]) -> Iterator[dict[str, Any]]:
    """Read rows of a shard with their pictures as {"bytes": file, "path": None}; `places` ascending."""
    wanted, start = set(places), 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            inside = [place - start for place in range(start, start + rows) if place in wanted]
            if inside:
                table = file.read_row_group(group)
                yield from (table.slice(place, 1).to_pylist()[0] for place in inside)
            start += rows


def sample_rows(folder: Path, manifest: Mapping[str, Any], count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Read whole rows of a build, chosen by chance.

    Args:
        folder: of the build.
        manifest: of the build.
        count: how many rows; all where there are fewer.
        seed: decides which.
    """
    rows_of = {entry["file"]: entry["rows"] for entry in manifest["shards"]}
    for name, places in choose_rows(rows_of, count, seed).items():
        yield from read_whole_rows(folder / name, places)
