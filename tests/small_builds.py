# SPDX-License-Identifier: Apache-2.0
"""Small real builds, made by the embedded weights, and ways to spoil a copy of one without spoiling its hashes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from datasets_builder import generate_pairs
from datasets_builder.building import stored_row
from datasets_builder.manifest import read_manifest
from datasets_builder.schema import FEATURES, LABEL_FEATURES
from datasets_builder.shards import file_digest, read_record, write_shard

Row = dict[str, Any]


def build(photos: Path, output: Path, *flags: str) -> Path:
    """Build pairs of photographs, two in a shard, one in a batch."""
    arguments = ["--photos", str(photos), "--output", str(output), "--device", "cpu", "--steps", "1"]
    status = generate_pairs.main([*arguments, "--batch-size", "1", "--pairs-per-shard", "2", *flags])
    assert status == 0
    return output


def copy_build(folder: Path, target: Path) -> Path:
    """Copy what a build publishes, and its list of rejected photographs."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(".build"))
    return target


def shard_path(folder: Path, index: int = 0) -> Path:
    return folder / read_manifest(folder)["shards"][index]["file"]


def rows_of(path: Path) -> list[Row]:
    """Return the rows of a shard as `write_shard` takes them: pictures as bytes."""
    table = pyarrow.parquet.read_table(path)
    return [stored_row(table, place) for place in range(table.num_rows)]


def change_rows(folder: Path, change: Callable[[list[Row]], list[Row]], index: int = 0) -> None:
    """Rewrite the rows of one shard, and let the manifest agree with the new file."""
    path = shard_path(folder, index)
    rows, record = change(rows_of(path)), read_record(path)
    features = FEATURES if "left_image" in rows[0] else LABEL_FEATURES
    write_shard(path, rows, features, lambda: record)
    shutil.rmtree(folder / ".build", ignore_errors=True)
    agree(folder, index)


def change_row(folder: Path, place: int = 0, index: int = 0, **changes: Any) -> None:
    """Set columns of one row."""
    change_rows(folder, lambda rows: [{**row, **changes} if i == place else row for i, row in enumerate(rows)], index)


def agree(folder: Path, index: int) -> None:
    """Put size, hash and rows of a shard as it is now into the manifest."""
    path = shard_path(folder, index)
    rows = pyarrow.parquet.read_metadata(path).num_rows

    def change(manifest: dict[str, Any]) -> None:
        manifest["shards"][index] |= {"bytes": path.stat().st_size, "sha256": file_digest(path), "rows": rows}
        manifest["counts"]["pairs"] = sum(shard["rows"] for shard in manifest["shards"])
        rejected = sum(manifest["counts"]["rejected"].values())
        manifest["counts"]["photos"] = manifest["counts"]["pairs"] + rejected

    change_manifest(folder, change)


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the manifest."""
    manifest = read_manifest(folder)
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
