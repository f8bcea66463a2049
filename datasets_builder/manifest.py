# SPDX-License-Identifier: Apache-2.0
"""The manifest of a build: what is in it, what decided its bytes, and a hash of every file. Written last.

Equal manifests mean equal bytes. Its existence means that the build is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet
from tqdm.auto import tqdm

from datasets_builder.plan import ID_DIGITS, Plan, Rejection, write_atomically
from datasets_builder.shards import file_digest, is_finished, read_record

MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"
MANIFEST_FORMAT = 1


def unfinished_shards(plan: Plan) -> list[int]:
    """Return the indices of the shards that are missing or made by another plan."""
    return [
        index for index in range(plan.shard_count) if not is_finished(plan.shard_file(index), plan.shard_digest(index))
    ]


def rejected_photos(plan: Plan) -> list[Rejection]:
    """Collect the photographs that got no pair, from the plan and from the finished shards, sorted by source."""
    found = plan.rejected()
    for index in range(plan.shard_count):
        found += read_record(plan.shard_file(index)).rejected
    return sorted(found)


def write_manifest(plan: Plan, progress: bool = True) -> dict[str, Any]:
    """Write `rejected.jsonl` and then `manifest.json`.

    Args:
        plan: of the build.
        progress: show a bar over the shards that are hashed.

    Returns:
        The manifest.

    Raises:
        ValueError: a shard is missing.
    """
    missing = unfinished_shards(plan)
    if missing:
        raise ValueError(
            f"`output` must hold every shard of its plan; {len(missing)} are missing, first {missing[:3]}."
        )
    rejected = rejected_photos(plan)
    shards, machines = [], {}
    for index in tqdm(range(plan.shard_count), desc="hashing shards", unit="shard", disable=not progress):
        path = plan.shard_file(index)
        record = read_record(path)
        machines.setdefault(json.dumps(record.made_on, sort_keys=True), []).append(index)
        shards.append(
            {
                "file": path.relative_to(plan.output).as_posix(),
                "rows": pyarrow.parquet.read_metadata(path).num_rows,
                "bytes": path.stat().st_size,
                "sha256": file_digest(path),
                "split_batches": record.split_batches,
            }
        )
    digests = "".join(plan.shard_digest(index) for index in range(plan.shard_count))
    manifest = {
        "format": MANIFEST_FORMAT,
        "options": dataclasses.asdict(plan.options),
        "source": plan.source,
        "plan_digest": hashlib.sha256(digests.encode()).hexdigest()[:ID_DIGITS],
        "counts": {
            "photos": plan.photo_count + len(plan.rejected()),
            "pairs": sum(shard["rows"] for shard in shards),
            "rejected": dict(sorted(Counter(one.kind for one in rejected).items())),
        },
        "made_on": [{**json.loads(machine), "shards": indices} for machine, indices in machines.items()],
        "shards": shards,
    }
    lines = "".join(json.dumps(one._asdict(), ensure_ascii=False) + "\n" for one in rejected)
    write_atomically(plan.output / REJECTED, lines)
    write_atomically(plan.output / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a complete build.

    Raises:
        FileNotFoundError: there is none: the build is not complete.
        ValueError: it is no JSON, or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"`folder` must hold a complete build with its {MANIFEST}; got {folder}.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"`folder` must hold a whole {MANIFEST}; got {path}: {error}.") from error
    found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
    if found != MANIFEST_FORMAT:
        raise ValueError(f"`folder` must hold a {MANIFEST} of format {MANIFEST_FORMAT}; got {found}.")
    return manifest
