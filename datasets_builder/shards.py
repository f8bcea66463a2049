# SPDX-License-Identifier: Apache-2.0
"""One shard of a build on disk: a Parquet file that appears whole or not at all, and says itself what made it.

The footer of the file holds, beside the features that `load_dataset` reads, a record of the build: digits of the
shard's plan, and the photographs that got no pair. So a finished shard needs no second file that could disagree.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
from datasets import Features, Image

from datasets_builder.plan import WORK_FOLDER, Rejection

ROWS_PER_GROUP = 8  # about 8 MB: what a streaming reader fetches at a time
RECORD_KEY = b"zerostereo"


class ShardRecord(NamedTuple):
    """What the footer of a shard says of its making.

    Attributes:
        plan_digest: of `Plan.shard_digest`.
        rejected: photographs of the plan that got no pair.
        split_batches: batches that were made one photograph at a time, because together they did not fit into memory.
        made_on: device and versions of the libraries, see `describe_machine`.
    """

    plan_digest: str
    rejected: list[Rejection]
    split_batches: list[int]
    made_on: dict[str, str]


def write_shard(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    features: Features,
    make_record: Callable[[], ShardRecord],
) -> int:
    """Write rows as a Parquet file: under a temporary name outside the data, forced to disk, then renamed.

    Args:
        path: of the shard, OUTPUT/data/NAME.
        rows: of `features`; pictures as bytes of their files.
        features: columns.
        make_record: called after the last row, gives the record.

    Returns:
        Number of rows. The same rows give the same bytes.
    """
    temporary = path.parent.parent / WORK_FOLDER / "unfinished" / f"{path.name}.{platform.node()}.{os.getpid()}"
    temporary.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with pyarrow.parquet.ParquetWriter(
        temporary,
        features.arrow_schema,
        compression="snappy",
        use_dictionary=False,
        write_page_index=True,
        use_content_defined_chunking=True,
    ) as writer:
        for group in _grouped(rows):
            writer.write_table(_to_table(group, features))
            count += len(group)
        record = make_record()
        content = {**record._asdict(), "rejected": [one._asdict() for one in record.rejected]}
        writer.add_key_value_metadata({RECORD_KEY: json.dumps(content, ensure_ascii=False).encode()})
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    return count


def _grouped(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    group = []
    for row in rows:
        group.append(row)
        if len(group) == ROWS_PER_GROUP:
            yield group
            group = []
    if group:
        yield group


def _to_table(rows: list[Mapping[str, Any]], features: Features) -> pyarrow.Table:
    columns = {
        name: [{"bytes": row[name], "path": None} if isinstance(kind, Image) else row[name] for row in rows]
        for name, kind in features.items()
    }
    return pyarrow.table(columns, schema=features.arrow_schema)


def read_record(path: Path) -> ShardRecord:
    """Read what the footer of a shard says of its making.

    Raises:
        ValueError: the file is no whole Parquet file, or none of ours; names it.
    """
    try:
        metadata = pyarrow.parquet.read_metadata(path).metadata or {}
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"`path` must be a whole Parquet file; got {path}: {error}.") from error
    if RECORD_KEY not in metadata:
        raise ValueError(f"`path` must be a shard of a build; {path} says nothing of its making.")
    content = json.loads(metadata[RECORD_KEY])
    rejected = [Rejection(**one) for one in content["rejected"]]
    return ShardRecord(**{**content, "rejected": rejected})


def is_finished(path: Path, plan_digest: str) -> bool:
    """Tell whether a shard is there and was made by this plan.

    Raises:
        ValueError: a file is there that is no shard.
    """
    return path.is_file() and read_record(path).plan_digest == plan_digest


def file_digest(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def claim(output: Path, name: str) -> Iterator[bool]:
    """Claim a piece of a build for this process; gives False where another one holds it.

    The kernel gives the claim back when the process dies. Works between processes of one machine, and of several where
    the file system passes locks on (NFS 4 does).
    """
    path = output / WORK_FOLDER / "claims" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def remove_leftovers(output: Path) -> None:
    """Remove the unfinished files of processes of this machine that are no more."""
    folder = output / WORK_FOLDER / "unfinished"
    for path in folder.glob(f"*.{glob.escape(platform.node())}.*") if folder.is_dir() else ():
        owner = path.name.rpartition(".")[2]
        if owner.isdigit() and not _is_alive(int(owner)):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
