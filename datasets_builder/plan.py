# SPDX-License-Identifier: Apache-2.0
"""The plan of a build: which photograph goes into which shard and batch, frozen before the first pair is made.

Whatever decides the bytes of a shard stands in its plan: the photographs, which of them share a batch, how holes are
filled, the seed, the steps, the threads, the weights. Workers only carry it out, so their number, their order and how
often they were killed change nothing. The plan is a folder of its own below the build, written whole or not at all.

Photographs of a folder are ordered by id, that of a stream as they come, so that a shard reads its stream forwards.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import struct
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import PIL.Image
from tqdm.auto import tqdm

from datasets_builder.photo_files import open_photo
from datasets_builder.sources import FolderSource, Photo, StreamSource, UnreadableSourceError
from pipeline_zerostereo import FILLS

WORK_FOLDER = ".build"  # hidden: `load_dataset` reads nothing below it
PLAN_FORMAT = 1
ID_DIGITS = 16
HASH_THREADS = 4
UNREADABLE = (  # what Pillow raises at a file that is no whole picture, and ImportError where pillow-heif is missing
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    PIL.Image.DecompressionBombError,
)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What decides the bytes of a build, beside the photographs.

    Attributes:
        weights_id: of the pipeline's weights and configuration.
        pipeline_revision: of the pipeline's code.
        seed: base seed; with a photograph's id it decides everything random of its pair.
        steps: denoising steps; None = as the weights are configured.
        dtype: of the UNet and the autoencoder.
        fill: how holes are filled, see the pipeline.
        tiled_above: photographs whose longer side is above this many px are filled in tiles; None = none of them.
        batch_size: photographs of one size that the networks see together.
        threads: of the numerical library in each worker.
        pairs_per_shard: photographs planned for one file.
        min_side: px; photographs with a shorter side are rejected.
        max_megapixels: photographs of more are rejected before they are decoded.
        min_flip_agreement: pairs below are rejected; None = no bound.
        max_hole_share: pairs with a larger share of invented pixels are rejected; None = no bound.
        keep_metadata: keep what the files say beside pixels, orientation and colour profile: place, camera, names.
        labels_only: leave the pictures out.
    """

    weights_id: str
    pipeline_revision: str
    seed: int = 0
    steps: int | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    fill: str = "whole"
    tiled_above: int | None = None
    batch_size: int = 4
    threads: int = 1
    pairs_per_shard: int = 256
    min_side: int = 64
    max_megapixels: float = 50.0
    min_flip_agreement: float | None = None
    max_hole_share: float | None = None
    keep_metadata: bool = False
    labels_only: bool = False

    def __post_init__(self):
        """Check every range.

        Raises:
            ValueError: names the option, its rule and the value.
        """
        for name in ("batch_size", "threads", "pairs_per_shard", "min_side"):
            _require(getattr(self, name) >= 1, name, "must be at least 1", getattr(self, name))
        _require(self.steps is None or self.steps >= 1, "steps", "must be at least 1", self.steps)
        _require(self.fill in FILLS, "fill", f"must be one of {', '.join(FILLS)}", self.fill)
        _require(self.max_megapixels > 0, "max_megapixels", "must be above 0", self.max_megapixels)
        _require(
            self.tiled_above is None or self.tiled_above >= 1, "tiled_above", "must be at least 1", self.tiled_above
        )
        for name in ("min_flip_agreement", "max_hole_share"):
            value = getattr(self, name)
            _require(value is None or 0 <= value <= 1, name, "must lie in [0, 1]", value)


def _require(condition: bool, name: str, rule: str, value: Any) -> None:
    if not condition:
        raise ValueError(f"`{name}` {rule}; got {value}.")


class PlannedPhoto(NamedTuple):
    """One photograph that gets a pair, unless the pair is rejected.

    Attributes:
        id: first digits of the sha256 of the file.
        locator: how its source finds it.
        source: what a reader is told of its origin.
        license: empty = not stated.
        attribution: empty = not stated.
        width: px, upright.
        height: px, upright.
        batch: number in its shard; batches are numbered in the order in which they become complete.
        fill: how its holes are filled.
    """

    id: str
    locator: str | list[int]
    source: str
    license: str
    attribution: str
    width: int
    height: int
    batch: int
    fill: str


class Rejection(NamedTuple):
    """One photograph that gets no pair, and why.

    Attributes:
        source: its origin.
        kind: unreadable, animated, colors, too_small, too_large, duplicate, changed, low_agreement, many_holes or
            out_of_memory.
        reason: a sentence.
        id: empty where the file could not be read at all.
    """

    source: str
    kind: str
    reason: str
    id: str = ""


class Examined(NamedTuple):
    """What the head of a photograph says."""

    id: str
    width: int
    height: int


def photo_id(data: bytes) -> str:
    """Return the id of a photograph: the first 16 hexadecimal digits of the sha256 of its file."""
    return hashlib.sha256(data).hexdigest()[:ID_DIGITS]


def pair_seed(base_seed: int, id: str) -> int:
    """Return the seed of a pair, 0 to 2^63 - 1, from the base seed and the id alone."""
    return int.from_bytes(hashlib.sha256(f"{base_seed}:{id}".encode()).digest()[:8], "little") >> 1


def examine(data: bytes, options: BuildOptions) -> Examined | Rejection:
    """Read the head of a photograph, decode nothing, and say whether it can be used.

    Returns:
        Examined, or a Rejection whose `source` is still empty.
    """
    id = photo_id(data)
    if not data:
        return Rejection("", "unreadable", "the file is empty", id)
    try:
        with open_photo(data) as picture:
            width, height = picture.size
            frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
            turned = picture.getexif().get(0x0112, 1) >= 5  # orientations that swap the sides
    except UNREADABLE as error:
        kind = "too_large" if isinstance(error, PIL.Image.DecompressionBombError) else "unreadable"
        return Rejection("", kind, sentence(error), id)
    if frames > 1:
        return Rejection("", "animated", f"{frames} frames or pages; one picture is needed", id)
    if min(width, height) < options.min_side:
        return Rejection("", "too_small", f"{width} x {height} px; the shorter side must be {options.min_side}", id)
    if width * height > options.max_megapixels * 1e6:
        reason = f"{width} x {height} px; at most {options.max_megapixels:g} megapixels are taken"
        return Rejection("", "too_large", reason, id)
    return Examined(id, height, width) if turned else Examined(id, width, height)


def sentence(error: Exception) -> str:
    """Return what an exception says, without the memory addresses that would differ from run to run."""
    return re.sub(r"\s*<[^<>]* object at 0x[0-9a-f]+>", "", str(error)) or type(error).__name__


# ---------------------------------------------------------------------------------------------------------------------
# Making the plan
# ---------------------------------------------------------------------------------------------------------------------


def make_plan(
    source: FolderSource | StreamSource,
    options: BuildOptions,
    output: Path,
    describe_source: dict[str, Any],
    progress: bool = True,
) -> Plan:
    """Read every photograph once, decide its place, and freeze the plan.

    Args:
        source: of the photographs.
        options: what decides the bytes.
        output: folder of the build.
        describe_source: what the plan says of the source.
        progress: show a bar.

    Returns:
        The plan, on disk.

    Raises:
        FileNotFoundError: the source has no photograph.
        ValueError: no photograph of it can be used.
    """
    usable: list[tuple[Photo, Examined]] = []
    rejected: list[Rejection] = []
    first_of: dict[str, str] = {}
    with tqdm(desc="looking at photographs", unit="photo", disable=not progress) as bar:
        for photo, found in _examine_all(source, options):
            bar.update()
            if isinstance(found, Rejection):
                rejected.append(found._replace(source=photo.source))
            elif found.id in first_of:
                reason = f"the same file as {first_of[found.id]}"
                rejected.append(Rejection(photo.source, "duplicate", reason, found.id))
            else:
                first_of[found.id] = photo.source
                usable.append((photo, found))
    if not usable:
        raise ValueError(f"`photos` must hold a photograph that can be used; got {rejected[:3]}.")
    if source.kind == "folder":
        usable.sort(key=lambda entry: entry[1].id)
    shards = [
        plan_shard(usable[start : start + options.pairs_per_shard], options)
        for start in range(0, len(usable), options.pairs_per_shard)
    ]
    return _freeze(shards, rejected, options, output, describe_source)


def _examine_all(
    source: FolderSource | StreamSource, options: BuildOptions
) -> Iterator[tuple[Photo, Examined | Rejection]]:
    """Examine the photographs in threads, a bounded number ahead, in the order of the source."""

    def look(read: Callable[[], bytes]) -> Examined | Rejection:
        try:
            return examine(read(), options)
        except UnreadableSourceError as error:
            return Rejection("", "unreadable", str(error))

    waiting: deque[tuple[Photo, Future]] = deque()
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        for photo, read in source.photos():
            waiting.append((photo, pool.submit(look, read)))
            if len(waiting) >= 4 * HASH_THREADS:
                photo, future = waiting.popleft()
                yield photo, future.result()
        while waiting:
            photo, future = waiting.popleft()
            yield photo, future.result()


def plan_shard(photos: list[tuple[Photo, Examined]], options: BuildOptions) -> list[PlannedPhoto]:
    """Decide which photographs of a shard share a batch: those of one size, in the order of the shard.

    Batches are numbered as they become complete when the photographs are read in order; those that stay incomplete
    come last, in the order of their first photograph. So a reader never holds more than one batch of each size.
    """
    fills = [fill_of(examined, options) for _, examined in photos]
    open_batches: dict[tuple[int, int, str], list[int]] = {}
    complete: list[list[int]] = []
    for place, ((_, examined), fill) in enumerate(zip(photos, fills, strict=True)):
        key = (examined.width, examined.height, fill)
        members = open_batches.setdefault(key, [])
        members.append(place)
        if len(members) == options.batch_size:
            complete.append(open_batches.pop(key))
    batch_of = {
        place: number for number, members in enumerate([*complete, *open_batches.values()]) for place in members
    }
    return [
        PlannedPhoto(
            id=examined.id,
            locator=photo.locator,
            source=photo.source,
            license=photo.license,
            attribution=photo.attribution,
            width=examined.width,
            height=examined.height,
            batch=batch_of[place],
            fill=fills[place],
        )
        for place, (photo, examined) in enumerate(photos)
    ]


def fill_of(examined: Examined, options: BuildOptions) -> str:
    """Decide how the holes of a photograph are filled, by its size."""
    large = options.tiled_above is not None and max(examined.width, examined.height) > options.tiled_above
    return "tiled" if large else options.fill


# ---------------------------------------------------------------------------------------------------------------------
# The plan on disk
# ---------------------------------------------------------------------------------------------------------------------


def plan_folder(output: Path) -> Path:
    """Return where the plan of a build lies."""
    return output / WORK_FOLDER / "plan"


class Plan:
    """A frozen plan, read from disk shard by shard.

    Args:
        output: folder of the build.

    Attributes:
        options: what decides the bytes.
        source: what the plan says of the source of the photographs.
        shard_count: number of shards.

    Raises:
        FileNotFoundError: there is no plan.
        ValueError: it was written by another version.
    """

    def __init__(self, output: Path):
        self.output = output
        self.folder = plan_folder(output)
        path = self.folder / "plan.json"
        if not path.is_file():
            raise FileNotFoundError(f"`output` must hold a plan, {path.relative_to(output)}; got {output}.")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != PLAN_FORMAT:
            raise ValueError(f"`output` must hold a plan of format {PLAN_FORMAT}; got {content['format']} in {path}.")
        self.options = BuildOptions(**content["options"])
        self.source: dict[str, Any] = content["source"]
        self.shard_count: int = content["shards"]
        self.photo_count: int = content["photos"]

    def shard(self, index: int) -> list[PlannedPhoto]:
        """Read the photographs of one shard, in the order in which they are read from their source."""
        lines = self._shard_path(index).read_text(encoding="utf-8").splitlines()
        return [PlannedPhoto(**json.loads(line)) for line in lines]

    def shard_digest(self, index: int) -> str:
        """Return digits that change with anything that decides the bytes of a shard."""
        options = json.dumps(dataclasses.asdict(self.options), sort_keys=True)
        return hashlib.sha256(options.encode() + self._shard_path(index).read_bytes()).hexdigest()[:ID_DIGITS]

    def replace_shard(self, index: int, photos: list[PlannedPhoto]) -> None:
        """Write the plan of one shard anew."""
        write_atomically(self._shard_path(index), _lines(photo._asdict() for photo in photos))

    def rejected(self) -> list[Rejection]:
        """Return the photographs that the plan itself rejected."""
        lines = (self.folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
        return [Rejection(**json.loads(line)) for line in lines]

    def shard_file(self, index: int) -> Path:
        """Return where the pairs of one shard are published."""
        return self.output / "data" / f"train-{index:05d}-of-{self.shard_count:05d}.parquet"

    def _shard_path(self, index: int) -> Path:
        if not 0 <= index < self.shard_count:
            raise ValueError(f"`index` must lie in 0 to {self.shard_count - 1}; got {index}.")
        return self.folder / f"shard-{index:05d}.jsonl"

    def check_same(self, options: BuildOptions, source: dict[str, Any]) -> None:
        """Refuse to go on with other options than those that the plan was made with.

        Raises:
            ValueError: names the options that differ.
        """
        mine = {**dataclasses.asdict(self.options), **{f"source {key}": value for key, value in self.source.items()}}
        theirs = {**dataclasses.asdict(options), **{f"source {key}": value for key, value in source.items()}}
        changed = {
            name: (mine.get(name), theirs.get(name)) for name in mine | theirs if mine.get(name) != theirs.get(name)
        }
        if changed:
            listed = ", ".join(f"{name} {was!r} -> {now!r}" for name, (was, now) in sorted(changed.items()))
            raise ValueError(
                f"`output` holds a build with other options, and its plan is frozen: {listed}. "
                "Give the same options, or choose another folder."
            )


def _freeze(
    shards: list[list[PlannedPhoto]],
    rejected: list[Rejection],
    options: BuildOptions,
    output: Path,
    source: dict[str, Any],
) -> Plan:
    folder = plan_folder(output)
    temporary = folder.with_name(f"plan.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for index, photos in enumerate(shards):
        (temporary / f"shard-{index:05d}.jsonl").write_text(_lines(photo._asdict() for photo in photos), "utf-8")
    (temporary / "rejected.jsonl").write_text(_lines(one._asdict() for one in rejected), "utf-8")
    content = {
        "format": PLAN_FORMAT,
        "options": dataclasses.asdict(options),
        "source": source,
        "shards": len(shards),
        "photos": sum(map(len, shards)),
    }
    (temporary / "plan.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    temporary.rename(folder)
    return Plan(output)


def _lines(records: Iterator[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, force it to disk, rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
