# SPDX-License-Identifier: Apache-2.0
"""Our rows as samples of the MfS35K layout, and such samples as our rows.

    write_layout(OUTPUT, OUTPUT / "mfs35k")     a finished build -> folders and list.txt that the official code reads
    import_layout(ROOT, LIST, OUTPUT)           such a folder -> a build like any other: plan, shards, manifest

What MfS35K does not hold has defined values in an imported row: `flip_agreement` and its bounds are NaN, `seed` is -1
(ours are at least 0), `pipeline_revision` and `weights_id` are empty, and `disparity_scale` is the largest disparity
as a share of the width, which is what it means. Ids come from the left file's bytes. The disparity is stored as
everywhere, so it is rounded by at most 1/512 px up to 255.9 px.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet

from datasets_builder.manifest import read_manifest, unfinished_shards, write_manifest
from datasets_builder.mfs35k import (
    MfsPaths,
    MfsSample,
    paths_of,
    read_file_list,
    read_sample,
    write_file_list,
    write_pair,
)
from datasets_builder.photo_files import strip_metadata
from datasets_builder.plan import BuildOptions, Plan, PlannedPhoto, Rejection, make_plan, photo_id, plan_folder
from datasets_builder.schema import (
    FEATURES,
    UNKNOWN_SEED,
    decode_pair,
    encode_confidence,
    encode_disparity,
    encode_mask,
    encode_preview,
    encode_view,
)
from datasets_builder.shards import ShardRecord, write_shard
from datasets_builder.sources import FolderSource, Photo, UnreadableSourceError

LAYOUT_FOLDER = "mfs35k"
FILE_LIST = "list.txt"


# ---------------------------------------------------------------------------------------------------------------------
# Our rows -> samples
# ---------------------------------------------------------------------------------------------------------------------


def sample_from_row(row: dict[str, Any]) -> MfsSample:
    """Turn a row into a sample named left/ID.png.

    The layout knows no invalid disparity: such a pixel becomes 0 px of confidence 0 that is not seen on the right.

    Args:
        row: of FEATURES, pictures as `datasets` hands them out or as records of bytes.

    Raises:
        ValueError: the row has no pictures, or see `decode_pair`.
    """
    if "left_image" not in row or "right_image" not in row:
        raise ValueError(f"`row` must hold both pictures; got {sorted(row)}. Builds of labels only have none.")
    pair = decode_pair(row)
    valid = pair["valid_disparity_mask"][0]
    return MfsSample(
        left_image=_pixels(pair["left_image"]),
        right_image=_pixels(pair["right_image"]),
        disparity=pair["disparity"][0],
        confidence=np.where(valid, pair["confidence"][0], np.float32(0)),
        left_visible_mask=pair["left_visible_mask"][0] & valid,
        right_hole_mask=pair["right_hole_mask"][0],
        name=f"left/{row['id']}.png",
    )


def _pixels(view: np.ndarray) -> np.ndarray:
    """[3,H,W] float32 in [0,1] -> [H,W,3] uint8."""
    return np.ascontiguousarray(np.rint(view * 255).astype(np.uint8).transpose(1, 2, 0))


def write_layout(output: Path, root: Path) -> int:
    """Write every pair of a finished build in the layout of MfS35K, then the file list.

    Samples whose six files are there are not written again, because the rows of a build never change.

    Args:
        output: folder of the build.
        root: of the layout; gets the list as list.txt.

    Returns:
        Number of samples.

    Raises:
        FileNotFoundError: the build is not finished.
        ValueError: it has no pictures.
    """
    manifest = read_manifest(output)
    if manifest["options"]["labels_only"]:
        raise ValueError("`output` must hold pictures for the layout mfs35k; it was built with labels only.")
    samples = []
    for shard in manifest["shards"]:
        with pyarrow.parquet.ParquetFile(output / shard["file"]) as file:
            for group in range(file.num_row_groups):
                samples += [_write_once(root, row) for row in file.read_row_group(group).to_pylist()]
    write_file_list(root / FILE_LIST, samples)
    return len(samples)


def _write_once(root: Path, row: dict[str, Any]) -> MfsPaths:
    paths = paths_of(f"left/{row['id']}.png")
    if not all((root / path).is_file() for path in paths):
        write_pair(root, sample_from_row(row))
    return paths


# ---------------------------------------------------------------------------------------------------------------------
# Samples -> our rows
# ---------------------------------------------------------------------------------------------------------------------


def row_from_sample(
    data: bytes, sample: MfsSample, photo: PlannedPhoto, keep_metadata: bool = False
) -> dict[str, Any]:
    """Turn a sample into a row of FEATURES.

    Args:
        data: bytes of the left file.
        sample: as read.
        photo: what the plan says of it.
        keep_metadata: publish the left file as it is.

    Raises:
        ValueError: the left file is damaged.
    """
    encoded = encode_disparity(sample.disparity)
    return {
        "id": photo.id,
        "left_image": data if keep_metadata else strip_metadata(data).data,
        "right_image": encode_view(PIL.Image.fromarray(sample.right_image)),
        "disparity": encoded.png,
        "confidence": encode_confidence(sample.confidence),
        "right_hole_mask": encode_mask(sample.right_hole_mask),
        "left_visible_mask": encode_mask(sample.left_visible_mask),
        "preview": encode_preview(PIL.Image.fromarray(sample.left_image), encoded.disparity),
        "disparity_scale": float(encoded.disparity.max()) / photo.width,
        "disparity_png_scale": encoded.png_scale,
        "flip_agreement": math.nan,
        "flip_agreement_min": math.nan,
        "flip_agreement_max": math.nan,
        "seed": UNKNOWN_SEED,
        "width": photo.width,
        "height": photo.height,
        "source": photo.source,
        "license": photo.license,
        "attribution": photo.attribution,
        "pipeline_revision": "",
        "weights_id": "",
    }


class MfsSource(FolderSource):
    """The left images of a file list, as a source of photographs.

    Args:
        root: what the paths of the list are relative to.
        file_list: of the samples.
        license: of all photographs.
        attribution: of all photographs.

    Raises:
        FileNotFoundError: the list, or a file that it names, is missing.
        ValueError: a line of the list that cannot be read.
    """

    kind = "mfs35k"

    def __init__(self, root: Path, file_list: Path, license: str = "", attribution: str = ""):
        super().__init__(root, license, attribution)
        self.samples = {paths.left_image: paths for paths in read_file_list(file_list)}
        missing = [path for paths in self.samples.values() for path in paths if not (root / path).is_file()]
        if missing:
            raise FileNotFoundError(
                f"`file_list` must name files below {root}; {len(missing)} are missing, the first is {missing[0]}."
            )
        self.list_digest = hashlib.sha256(file_list.read_bytes()).hexdigest()[:16]

    def photos(self) -> Iterator[tuple[Photo, Callable[[], bytes]]]:
        """List the left images in the order of the list, each with a function that reads it."""
        for path in self.samples:
            yield self._photo({"path": path}), partial(self.read, path)


def import_layout(
    root: Path, file_list: Path, output: Path, license: str = "", attribution: str = "", **chosen: Any
) -> dict[str, Any]:
    """Make a build of the samples of a folder in the layout of MfS35K; goes on where it was interrupted.

    Args:
        root: of the layout.
        file_list: of the samples; their order is kept.
        output: folder of the build.
        license: of the photographs.
        attribution: whom to name.
        chosen: `pairs_per_shard`, `keep_metadata`, `max_megapixels` of `BuildOptions`.

    Returns:
        The manifest. Samples that cannot be read are in rejected.jsonl.

    Raises:
        FileNotFoundError: the list, or a file that it names, is missing.
        ValueError: a line of the list that cannot be read, no usable sample, or a plan with other options.
    """
    source = MfsSource(root, file_list, license, attribution)
    options = BuildOptions(weights_id="", pipeline_revision="", batch_size=1, min_side=1, **chosen)
    described = {"kind": source.kind, "name": root.resolve().name, "list": source.list_digest}
    described |= {"license": license, "attribution": attribution}
    if not (plan_folder(output) / "plan.json").is_file():
        make_plan(source, options, output, described)
    plan = Plan(output)
    plan.check_same(options, described)
    for index in unfinished_shards(plan):
        rejected: list[Rejection] = []
        digest = plan.shard_digest(index)
        rows = _imported_rows(plan.shard(index), source, options.keep_metadata, rejected)
        made = partial(ShardRecord, digest, rejected, [], {"imported": "mfs35k"})
        write_shard(plan.shard_file(index), rows, FEATURES, made)
    return write_manifest(plan)


def _imported_rows(
    photos: list[PlannedPhoto], source: MfsSource, keep_metadata: bool, rejected: list[Rejection]
) -> Iterator[dict[str, Any]]:
    """Read samples one by one; those that cannot be used are noted."""
    for photo in photos:
        try:
            data = source.read(photo.locator)
            if photo_id(data) != photo.id:
                reason = "the left file is not the one that was planned; its bytes have changed since"
                rejected.append(Rejection(photo.source, "changed", reason, photo.id))
                continue
            sample = read_sample(source.root, source.samples[str(photo.locator)])
            row = row_from_sample(data, sample, photo, keep_metadata)
        except (ValueError, FileNotFoundError, UnreadableSourceError) as error:
            reason = str(error).replace(f"{source.root}/", "")  # no path of this machine is published
            rejected.append(Rejection(photo.source, "unreadable", reason, photo.id))
            continue
        yield row
