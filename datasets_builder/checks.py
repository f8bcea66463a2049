# SPDX-License-Identifier: Apache-2.0
"""Checks of a finished build: its files against the manifest, its rows against what they say, pairs warped again.

Changes nothing, prints nothing, asks no network. Of every row the columns that are no pictures are read; pictures are
decoded of a sample, or of all rows. At most one row group (8 rows) is held at a time, and 8 bytes for each id.

What is exact, on every device: the masks. Stored disparities are whole steps of a power of two, so the warp's columns
and the comparisons between them have no rounding. Colours are equal to the last bit on the machine that made them; on
others the linear interpolation may round the other way, by one of 255 levels (WARP_TOLERANCE). The largest disparity
is at most disparity_scale * width, to half a step of the code; it may be less, because sharpening removes the top of
a narrow peak. So what is checked exactly is the scale itself: it is the first draw of the row's seed.

Pairs that were imported from the MfS35K layout were made elsewhere, by another warp and no seed of ours: of them
files, counts, forms and ranges are checked, and that what nobody knows is marked as unknown.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow
import pyarrow.parquet
import torch
from datasets import Features, Image
from tqdm.auto import tqdm

from datasets_builder.manifest import MANIFEST, REJECTED, read_manifest
from datasets_builder.mfs35k_rows import MfsSource
from datasets_builder.photo_files import open_photo, strip_metadata
from datasets_builder.plan import ID_DIGITS, UNREADABLE, BuildOptions, pair_seed, photo_id, sentence
from datasets_builder.reading import choose_rows, read_plain_rows, read_whole_rows
from datasets_builder.schema import FEATURES, LABEL_FEATURES, UNKNOWN_SEED, decode_pair
from datasets_builder.shards import file_digest, read_record
from pipeline_zerostereo import (
    ADS_CENTER,
    ADS_RADIUS,
    PNG16_SCALE,
    StereoImageProcessor,
    forward_warp,
    sample_disparity_scale,
)

SAMPLED_ROWS = 64
LARGEST_SCALE = ADS_CENTER + 2 * ADS_RADIUS  # share of the width
WARP_TOLERANCE = 1  # levels of 255, see above
MAPS = ("disparity", "confidence")
MASKS = {"right_hole_mask": "hole_mask", "left_visible_mask": "visible_mask"}  # column -> kind of fault
SHARD_CLAIMS = {"file": str, "rows": int, "bytes": int, "sha256": str}
AGREEMENTS = ("flip_agreement", "flip_agreement_min", "flip_agreement_max")
WARPED_BY = ("width", "height", "disparity_scale", "disparity_png_scale")  # numbers without which no pair is warped
ID = re.compile(f"[0-9a-f]{{{ID_DIGITS}}}")


class Fault(NamedTuple):
    """One thing that is wrong with a build.

    Attributes:
        kind: one word, for programs: manifest, plan, counts, missing_shard, extra_file, unreadable_shard, hash, rows,
            columns, id, duplicate_id, seed, scalar, disparity_scale, png_scale, gate, picture, size, metadata,
            disparity, confidence, hole_mask, visible_mask or right_image.
        file: below the build.
        detail: what was expected and what was found, with the id of the row where it is about one.
    """

    kind: str
    file: str
    detail: str


class Claims(NamedTuple):
    """What a manifest claims, as far as it can be checked.

    Attributes:
        options: of the build.
        shards: file, rows, bytes and sha256 of each.
        photos: how many were planned or rejected by the plan.
        pairs: how many rows there are.
        rejected: how many photographs of each kind of rejection.
        plan_digest: of all shards' plans.
        imported: whether the pairs were made elsewhere.
    """

    options: BuildOptions
    shards: list[dict[str, Any]]
    photos: int
    pairs: int
    rejected: dict[str, int]
    plan_digest: str
    imported: bool


def check_build(folder: Path, sample: int | None = SAMPLED_ROWS, seed: int = 0, progress: bool = False) -> list[Fault]:
    """Check a finished build.

    Args:
        folder: of the build, as `generate_pairs` leaves it or as it was downloaded from the Hub.
        sample: rows whose pictures are decoded and warped again; None = all of them.
        seed: decides which rows.
        progress: show a bar over the shards.

    Returns:
        The faults, in the order of the shards; empty = none. Without a readable manifest nothing else is checked. Of a
        `--labels-only` build the masks are checked by the warp, and no picture.

    Raises:
        ValueError: a negative sample.
    """
    if sample is not None and sample < 0:
        raise ValueError(f"`sample` must be at least 0 rows, or None for all; got {sample}.")
    try:
        claims = read_claims(read_manifest(folder))
    except (FileNotFoundError, ValueError) as error:
        return [Fault("manifest", MANIFEST, str(error))]
    faults = [*_file_faults(folder, claims), *_count_faults(folder, claims)]
    rows_of, unreadable = _count_rows(folder, claims)
    faults += [*unreadable, *_plan_faults(folder, claims, list(rows_of))]
    chosen = choose_rows(rows_of, sample, seed)
    ids: dict[str, np.ndarray] = {}
    for entry in tqdm(claims.shards, desc="checking shards", unit="shard", disable=not progress):
        name = entry["file"]
        if name in rows_of:
            faults += _shard_faults(folder, entry, rows_of[name], claims, chosen[name], ids)
    return faults + list(_duplicate_faults(ids))


# ---------------------------------------------------------------------------------------------------------------------
# Files and counts
# ---------------------------------------------------------------------------------------------------------------------


def read_claims(manifest: Mapping[str, Any]) -> Claims:
    """Pick what can be checked from a manifest.

    Raises:
        ValueError: something of it is missing or of another kind.
    """
    try:
        counts = manifest["counts"]
        claims = Claims(
            options=BuildOptions(**manifest["options"]),
            shards=[{key: kind(one[key]) for key, kind in SHARD_CLAIMS.items()} for one in manifest["shards"]],
            photos=int(counts["photos"]),
            pairs=int(counts["pairs"]),
            rejected={str(kind): int(number) for kind, number in dict(counts["rejected"]).items()},
            plan_digest=str(manifest["plan_digest"]),
            imported=manifest["source"]["kind"] == MfsSource.kind,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`manifest` must be as this version writes it; {type(error).__name__}: {error}. Check with the version "
            "that made the build."
        ) from error
    count = len(claims.shards)
    for index, entry in enumerate(claims.shards):
        expected = f"data/train-{index:05d}-of-{count:05d}.parquet"
        if entry["file"] != expected:
            raise ValueError(f"`manifest` must name shard {index} of {count} {expected}; got {entry['file']!r}.")
    return claims


def _file_faults(folder: Path, claims: Claims) -> Iterator[Fault]:
    """Look for shards that are missing and for files beside them, which break or change what readers get."""
    named = {entry["file"] for entry in claims.shards}
    data = folder / "data"
    found = {path.relative_to(folder).as_posix() for path in data.rglob("*") if not path.is_dir()}
    for name in sorted(named - found):
        yield Fault("missing_shard", name, "the manifest names it, and there is no such file")
    for name in sorted(found - named):
        yield Fault("extra_file", name, "the manifest does not name it; readers take up all that is in data/")


def _count_faults(folder: Path, claims: Claims) -> Iterator[Fault]:
    rows, rejected = sum(entry["rows"] for entry in claims.shards), sum(claims.rejected.values())
    if claims.pairs != rows:
        yield Fault("counts", MANIFEST, f"{claims.pairs} pairs claimed, and its shards have {rows} rows together")
    if claims.photos != claims.pairs + rejected:
        yield Fault(
            "counts", MANIFEST, f"{claims.photos} photographs, but {claims.pairs} pairs and {rejected} rejected"
        )
    path = folder / REJECTED
    if not path.is_file():  # is not published
        return
    try:
        found = Counter(json.loads(line)["kind"] for line in path.read_text(encoding="utf-8").splitlines())
    except (ValueError, KeyError, TypeError) as error:
        yield Fault("counts", REJECTED, f"has a line that is none of a rejection: {error}")
        return
    if dict(found) != claims.rejected:
        yield Fault("counts", REJECTED, f"rejected {dict(sorted(found.items()))}; the manifest says {claims.rejected}")


def _count_rows(folder: Path, claims: Claims) -> tuple[dict[str, int], list[Fault]]:
    """Open every shard that is there: rows of those that can be opened, and faults of the others."""
    rows_of, faults = {}, []
    for name in (entry["file"] for entry in claims.shards if (folder / entry["file"]).is_file()):
        try:
            read_record(folder / name)
            rows_of[name] = pyarrow.parquet.read_metadata(folder / name).num_rows
        except (ValueError, KeyError, TypeError, OSError) as error:
            faults.append(Fault("unreadable_shard", name, str(error)))
    return rows_of, faults


def _plan_faults(folder: Path, claims: Claims, readable: list[str]) -> Iterator[Fault]:
    """Compare the plan that the shards say they were made by with that of the manifest; needs all of them."""
    if len(readable) != len(claims.shards):
        return
    digests = "".join(read_record(folder / name).plan_digest for name in readable)
    if hashlib.sha256(digests.encode()).hexdigest()[:ID_DIGITS] != claims.plan_digest:
        yield Fault("plan", MANIFEST, "the shards were made by another plan than the manifest says")


def _duplicate_faults(ids: dict[str, np.ndarray]) -> Iterator[Fault]:
    """Look for ids that several rows have, over all shards."""
    if not ids:
        return
    values, counts = np.unique(np.concatenate(list(ids.values())), return_counts=True)
    for value in values[counts > 1]:
        files = [name for name, found in ids.items() if (found == value).any()]
        yield Fault(
            "duplicate_id", files[0], f"{int(value):0{ID_DIGITS}x} is the id of several rows, in {', '.join(files)}"
        )


# ---------------------------------------------------------------------------------------------------------------------
# One shard
# ---------------------------------------------------------------------------------------------------------------------


def _shard_faults(
    folder: Path,
    entry: Mapping[str, Any],
    rows: int,
    claims: Claims,
    chosen: list[int],
    ids: dict[str, np.ndarray],
) -> Iterator[Fault]:
    """Check one shard that can be opened; notes its ids."""
    name, path = entry["file"], folder / entry["file"]
    if path.stat().st_size != entry["bytes"] or file_digest(path) != entry["sha256"]:
        yield Fault("hash", name, f"its bytes are not those of the manifest ({entry['bytes']}, {entry['sha256']})")
    if rows != entry["rows"]:
        yield Fault("rows", name, f"{rows} rows; the manifest says {entry['rows']}")
    options = claims.options
    expected = LABEL_FEATURES if options.labels_only else FEATURES
    wrong = _column_fault(path, expected)
    if wrong:
        yield Fault("columns", name, wrong)
        return
    try:
        found = []
        for row in read_plain_rows(path):
            found += [int(row["id"], 16)] if ID.fullmatch(row["id"] or "") else []
            yield from (Fault(kind, name, detail) for kind, detail in scalar_faults(row, options, claims.imported))
        ids[name] = np.array(found, np.uint64)
        for row in read_whole_rows(path, chosen):
            found_in_row = pair_faults(row, options, imported=claims.imported)
            yield from (Fault(kind, name, detail) for kind, detail in found_in_row)
    except (pyarrow.ArrowException, OSError) as error:
        yield Fault("unreadable_shard", name, str(error))


def _column_fault(path: Path, expected: Features) -> str | None:
    schema = pyarrow.parquet.read_schema(path)
    try:
        found = Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError) as error:
        return f"its features cannot be read: {error}"
    if list(found.items()) == list(expected.items()):
        return None
    differ = [column for column in {**expected, **found} if found.get(column) != expected.get(column)]
    return f"its columns differ from the published ones in {differ or 'their order'}"


# ---------------------------------------------------------------------------------------------------------------------
# One row
# ---------------------------------------------------------------------------------------------------------------------


def scalar_faults(row: Mapping[str, Any], options: BuildOptions, imported: bool = False) -> Iterator[tuple[str, str]]:
    """Check the columns of a row that are no pictures; gives kind and detail of each fault.

    Args:
        row: the columns that are no pictures.
        options: of the build.
        imported: whether the pairs were made elsewhere.
    """
    where = f"row {row['id']}: "
    unknown = AGREEMENTS if imported else ()
    bad = [name for name, value in row.items() if name not in unknown and not _is_finite(value)]
    if bad:
        yield "scalar", where + ", ".join(f"{name} is {row[name]}" for name in bad)
        return
    if not ID.fullmatch(row["id"]):
        yield "id", f"{where}an id has {ID_DIGITS} hexadecimal digits"
    if math.frexp(row["disparity_png_scale"])[0] != 0.5 or not 0 < row["disparity_png_scale"] <= PNG16_SCALE:
        rule = f"a power of two above 0 and at most {PNG16_SCALE:g}"
        yield "png_scale", f"{where}disparity_png_scale {row['disparity_png_scale']:g} is not {rule}"
    if min(row["width"], row["height"]) < options.min_side:
        yield "scalar", f"{where}{row['width']} x {row['height']} px; the shorter side must be {options.min_side}"
    for name in ("weights_id", "pipeline_revision"):
        if row[name] != getattr(options, name):
            yield "scalar", f"{where}{name} {row[name]}; the manifest says {getattr(options, name)}"
    yield from ((kind, where + detail) for kind, detail in _origin_faults(row, options, imported))


def _origin_faults(row: Mapping[str, Any], options: BuildOptions, imported: bool) -> Iterator[tuple[str, str]]:
    """Check the columns that follow from seed and networks, or that an imported row marks them as unknown."""
    if imported:
        known = [name for name in AGREEMENTS if row[name] is None or _is_finite(row[name])]
        if known or row["seed"] != UNKNOWN_SEED:
            yield "scalar", f"of an imported pair seed and agreement are unknown; got {row['seed']} and {known}"
        if not 0 <= row["disparity_scale"] <= 1:
            yield "disparity_scale", f"{row['disparity_scale']:g} is no share of the width"
        return
    if row["seed"] != pair_seed(options.seed, row["id"]):
        yield "seed", f"seed {row['seed']} does not follow from base seed {options.seed} and the id"
    elif row["disparity_scale"] != _drawn_scale(row["seed"]):
        yield "disparity_scale", f"{row['disparity_scale']:g}; its seed draws {_drawn_scale(row['seed']):g}"
    least, mean, most = (row[f"flip_agreement{suffix}"] for suffix in ("_min", "", "_max"))
    if not (0 <= least <= most <= 1 and least - 1e-5 <= mean <= most + 1e-5):  # a mean of float32 may round outside
        yield "scalar", f"flip agreement {mean:g} in {least:g} to {most:g} is not in order within [0, 1]"
    if options.min_flip_agreement is not None and mean < options.min_flip_agreement:
        yield "gate", f"flip agreement {mean:g}; the manifest asks for {options.min_flip_agreement:g}"


def _is_finite(value: Any) -> bool:
    return value is not None and (not isinstance(value, float) or math.isfinite(value))


def _drawn_scale(seed: int) -> float:
    return sample_disparity_scale(1, [torch.Generator().manual_seed(seed)]).item()


def pair_faults(
    row: Mapping[str, Any], options: BuildOptions, tolerance: int = WARP_TOLERANCE, imported: bool = False
) -> Iterator[tuple[str, str]]:
    """Decode the pictures of a row, warp the pair again, and give kind and detail of each fault.

    Args:
        row: pictures as {"bytes": file}, without decoding.
        options: of the build.
        tolerance: levels of 255 by which the right image may differ from the warp.
        imported: whether the pair was made elsewhere: it is not warped.

    Degenerate cases: a row whose pictures cannot be decoded, or have other forms than they must, or whose numbers
    are missing, is not warped.
    """
    where = f"row {row['id']}: "
    opened: dict[str, PIL.Image.Image] = {}
    sound = all(_is_finite(row[name]) for name in WARPED_BY) and row["disparity_png_scale"] > 0
    for name in (name for name in row if isinstance(FEATURES[name], Image)):
        try:
            opened[name] = _open_upright(row[name])
        except UNREADABLE as error:
            sound = False
            yield "picture", f"{where}{name} cannot be decoded: {sentence(error)}"
            continue
        for kind, detail in _form_faults(name, opened[name], (row["width"], row["height"])):
            sound = False
            yield kind, f"{where}{name} {detail}"
    if "left_image" in opened:
        yield from _file_of_photo_faults(row, options)
    if sound:
        pair = decode_pair({**row, **opened})
        yield from ((kind, where + detail) for kind, detail in _map_faults(pair, options, imported))
    if sound and not imported:
        yield from ((kind, where + detail) for kind, detail in _warp_faults(pair, tolerance))


def _open_upright(value: Mapping[str, Any]) -> PIL.Image.Image:
    """Decode a stored picture; raises exceptions of UNREADABLE."""
    if not value or not value["bytes"]:
        raise ValueError("it has no bytes")
    with open_photo(value["bytes"]) as picture:
        picture.load()
        return PIL.ImageOps.exif_transpose(picture)


def _form_faults(name: str, picture: PIL.Image.Image, size: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """Check size and mode of one decoded picture."""
    if name != "preview" and picture.size != size:
        yield "size", f"has {picture.width} x {picture.height} px; the row says {size[0]} x {size[1]}"
    if name in MAPS and picture.mode != "I;16":
        yield name, f"must be a 16-bit grey picture; it has mode {picture.mode}"
    if name == "right_image" and picture.mode != "RGB":
        yield name, f"must be an RGB picture; it has mode {picture.mode}"
    if name in MASKS:
        levels = [level for level, count in enumerate(picture.convert("L").histogram()) if count]
        if picture.mode != "L" or not set(levels) <= {0, 255}:
            yield MASKS[name], f"must hold 0 and 255 in 8 bits; mode {picture.mode}, levels {levels[:4]}"


def _file_of_photo_faults(row: Mapping[str, Any], options: BuildOptions) -> Iterator[tuple[str, str]]:
    """Check that the photograph's file is the one of the id, or that it carries no metadata."""
    data, where = row["left_image"]["bytes"], f"row {row['id']}: "
    if options.keep_metadata:
        if photo_id(data) != row["id"]:
            yield "id", f"{where}the file of left_image has the id {photo_id(data)}"
        return
    try:
        clean = strip_metadata(data).data == data
    except ValueError as error:
        yield "picture", f"{where}left_image: {error}"
        return
    if not clean:
        yield "metadata", f"{where}left_image has metadata beside orientation and colour profile"


def _map_faults(pair: Mapping[str, Any], options: BuildOptions, imported: bool) -> Iterator[tuple[str, str]]:
    """Check the values of the maps of a decoded row."""
    unknown = int((~pair["valid_disparity_mask"]).sum())
    if unknown and not imported:
        yield "disparity", f"{unknown} px are marked as unknown; a build leaves none"
    width, most = pair["width"], float(pair["disparity"].max())
    bound = min(pair["disparity_scale"], 1.0 if imported else LARGEST_SCALE) * width
    step = 0.5 / pair["disparity_png_scale"] + 1e-6 * width  # of the code, and of float32
    if most > bound + step:
        yield "disparity", f"up to {most:g} px; {bound:g} px is the most by its scale and width"
    lowest, highest = float(pair["confidence"].min()), float(pair["confidence"].max())
    if not 0 <= lowest <= highest <= 1:
        yield "confidence", f"lies in {lowest:g} to {highest:g}, not in [0, 1]"
    holes = float(pair["right_hole_mask"].mean())
    if options.max_hole_share is not None and holes > options.max_hole_share:
        yield "gate", f"{holes:.2%} holes; the manifest allows {options.max_hole_share:.2%}"


def _warp_faults(pair: Mapping[str, Any], tolerance: int) -> Iterator[tuple[str, str]]:
    """Warp the left image by the stored disparity and compare masks and colours with the stored ones."""
    disparity = torch.from_numpy(pair["disparity"])[None]  # [1,1,H,W]
    has_pictures = "left_image" in pair
    left = torch.from_numpy(pair["left_image"])[None] if has_pictures else torch.zeros_like(disparity)  # [1,C,H,W]
    warp = forward_warp(left, disparity)
    masks = {name: getattr(warp, name)[0].numpy() for name in MASKS}  # [1,H,W]
    different = {name: int((pair[name] != masks[name]).sum()) for name in masks}
    swapped = all(
        np.array_equal(pair[stored], masks[made]) for stored, made in zip(masks, reversed(masks), strict=True)
    )
    for name, count in different.items():
        if count:
            note = "; it is the other mask: the two are swapped" if swapped else ""
            yield MASKS[name], f"{name} differs from the warp's in {count} px{note}"
    if has_pictures:
        difference = _largest_difference(pair["right_image"], warp.right_image, masks["right_hole_mask"])
        if difference > tolerance:
            yield "right_image", f"differs by up to {difference} of 255 from the warped left image outside its holes"


def _largest_difference(right_image: np.ndarray, warped: torch.Tensor, hole_mask: np.ndarray) -> int:
    """Return the largest difference, in levels of 255, of [3,H,W] and [1,3,H,W] where the mask [1,H,W] is False."""
    expected = np.asarray(StereoImageProcessor.postprocess(warped, "pil")[0], dtype=np.int16)  # [H,W,3]
    found = np.rint(right_image.transpose(1, 2, 0) * 255).astype(np.int16)
    difference = np.abs(found - expected).max(axis=-1)  # [H,W]
    return int(np.where(hole_mask[0], 0, difference).max())
