# SPDX-License-Identifier: Apache-2.0
"""Where photographs come from: a folder, a list file, or a data set of the Hub read as a stream.

A source lists its photographs once, in an order that depends on names only, and afterwards hands out the bytes of any
of them again. It knows nothing of what becomes of them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image
from datasets import Image, IterableDataset, load_dataset
from datasets.utils.file_utils import xopen

from datasets_builder.photo_files import photo_formats

LIST_SUFFIXES = (".txt", ".csv", ".jsonl")
LIST_COLUMNS = ("path", "source", "license", "attribution")
HEIC_SUFFIXES = (".heic", ".heif")


class Photo(NamedTuple):
    """One photograph of a source, not yet read.

    Attributes:
        locator: how its source finds it again: a path below the root, or [stream shard, row].
        source: what a reader is told of its origin.
        license: empty = not stated.
        attribution: whom to name; empty = not stated.
    """

    locator: str | list[int]
    source: str
    license: str = ""
    attribution: str = ""


class UnreadableSourceError(Exception):
    """The bytes of one photograph cannot be had; the others can."""


class FolderSource:
    """Photographs below a folder, any nesting, or the ones that a list file names.

    Args:
        root: the folder, or a list file: .txt with one path a line, .csv with a header, or .jsonl; columns `path` and,
            as wished, `source`, `license`, `attribution`. Paths are relative to the list file.
        license: of photographs that have none of their own.
        attribution: of photographs that have none of their own.

    Raises:
        FileNotFoundError: no such folder or file, or no photograph in it.
        ValueError: a list file with unknown columns, without `path`, or with a line that cannot be read.
    """

    kind = "folder"

    def __init__(self, root: str | Path, license: str = "", attribution: str = ""):
        self.given = Path(root)
        if not self.given.exists():
            raise FileNotFoundError(f"`photos` must be a folder, a list file or a data set; got {root}.")
        self.is_list = self.given.is_file()
        self.root = self.given.parent if self.is_list else self.given
        self.license, self.attribution = license, attribution

    def photos(self) -> Iterator[tuple[Photo, Callable[[], bytes]]]:
        """List the photographs in the order of their paths, or of the list, each with a function that reads it.

        Raises:
            FileNotFoundError: there is none.
        """
        listed = self._from_list() if self.is_list else self._from_folder()
        if not listed:
            suffixes = "" if self.is_list else f" ({', '.join(sorted(photo_suffixes()))})"
            raise FileNotFoundError(
                f"`photos` must name at least one photograph{suffixes}; found none in {self.given}."
            )
        for photo in listed:
            yield photo, partial(self.read, photo.locator)

    def _from_folder(self) -> list[Photo]:
        suffixes = photo_suffixes()
        found = []
        for path in sorted(self.root.rglob("*")):
            below = path.relative_to(self.root)
            hidden = any(part.startswith(".") for part in below.parts)
            if path.suffix.lower() in suffixes and not hidden and path.is_file():
                found.append(self._photo({"path": below.as_posix()}))
        return found

    def _from_list(self) -> list[Photo]:
        if self.given.suffix.lower() not in LIST_SUFFIXES:
            raise ValueError(f"`photos` must be a list file of {', '.join(LIST_SUFFIXES)}; got {self.given}.")
        return [self._photo(row) for row in read_list(self.given)]

    def _photo(self, row: dict[str, str]) -> Photo:
        return Photo(
            locator=row["path"],
            source=row.get("source") or row["path"],
            license=row.get("license") or self.license,
            attribution=row.get("attribution") or self.attribution,
        )

    def read(self, locator: str | list[int]) -> bytes:
        """Return the bytes of one photograph.

        Raises:
            UnreadableSourceError: the file cannot be read.
        """
        try:
            return (self.root / str(locator)).read_bytes()
        except OSError as error:
            raise UnreadableSourceError(f"cannot be read: {error.strerror or error}") from error

    def read_many(self, locators: Sequence[str | list[int]]) -> Iterator[bytes | UnreadableSourceError]:
        """Return the bytes of several photographs in their order; an error stands for one that cannot be had."""
        for locator in locators:
            try:
                yield self.read(locator)
            except UnreadableSourceError as error:
                yield error


def photo_suffixes() -> set[str]:
    """Return the suffixes of `photo_formats`, and HEIC's."""
    formats = photo_formats()
    known = PIL.Image.registered_extensions().items()
    return {suffix for suffix, kind in known if kind in formats} | {*HEIC_SUFFIXES}


def read_list(path: Path) -> list[dict[str, str]]:
    """Read a list file as rows with a `path` each; empty lines are left out.

    Raises:
        ValueError: unknown columns, no `path`, or a line that is no JSON object; names the file and the line.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if path.suffix.lower() == ".txt":
        return [{"path": line.strip()} for _, line in numbered]
    if path.suffix.lower() == ".csv":
        rows = list(enumerate(csv.DictReader(io.StringIO("\n".join(lines))), start=2))
    else:
        rows = [(number, _json_object(line, path, number)) for number, line in numbered]
    for number, row in rows:
        unknown = sorted(str(name) for name in set(row) - set(LIST_COLUMNS))
        if unknown or not row.get("path"):
            raise ValueError(
                f"`photos` must have a `path` in each line, and beside it only {', '.join(LIST_COLUMNS[1:])}; "
                f"got {row} in line {number} of {path}."
            )
    return [row for _, row in rows]


def _json_object(line: str, path: Path, number: int) -> dict[str, str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"`photos` must hold a JSON object in each line; line {number} of {path}: {error}."
        ) from error
    if not isinstance(row, dict):
        raise ValueError(f"`photos` must hold a JSON object in each line; got {line!r} in line {number} of {path}.")
    return row


class StreamSource:
    """Photographs of a data set with an image column, read as a stream: nothing of it is kept on disk.

    The data set is read once for the plan and once for the pairs. A locator is [shard of the stream, row in it].

    Args:
        name: of the data set, on the Hub or a local folder that `load_dataset` reads.
        column: the image column; None = the only one.
        split: of the data set.
        config: of the data set; None = its default.
        revision: of the data set; None = its newest.
        license: column or, where there is no such column, the licence of all photographs.
        attribution: the same for whom to name.

    Raises:
        ValueError: the data set cannot be reached or has no such split; no such image column, or several and
            none is chosen.
    """

    kind = "stream"

    def __init__(
        self,
        name: str,
        column: str | None = None,
        split: str = "train",
        config: str | None = None,
        revision: str | None = None,
        license: str = "",
        attribution: str = "",
    ):
        self.name = name
        try:
            stream = load_dataset(name, config, split=split, revision=revision, streaming=True)
        except (OSError, ValueError) as error:  # not there, not reached, no such configuration or split
            raise ValueError(f"`photos` must be a folder, a list file or a data set; got {name}: {error}") from error
        assert isinstance(stream, IterableDataset)  # by streaming=True
        self.column = _image_column(stream, column, name)
        self.stream = stream.cast_column(self.column, Image(decode=False))
        self.license, self.attribution = license, attribution

    def photos(self) -> Iterator[tuple[Photo, Callable[[], bytes]]]:
        """Go through the photographs in the order of the stream, each with a function that gives its bytes."""
        for shard in range(self.stream.num_shards):
            for row, record in enumerate(self.stream.shard(self.stream.num_shards, shard)):
                yield self._photo(shard, row, record), partial(self._bytes, record)

    def _photo(self, shard: int, row: int, record: dict[str, Any]) -> Photo:
        return Photo(
            locator=[shard, row],
            source=f"{shown_name(self.name)}#{shard}:{row}",
            license=str(record.get(self.license, self.license) or ""),
            attribution=str(record.get(self.attribution, self.attribution) or ""),
        )

    def _bytes(self, record: dict[str, Any]) -> bytes:
        value = record[self.column] or {}
        if value.get("bytes") is not None:
            return value["bytes"]
        if not value.get("path"):
            raise UnreadableSourceError("the row holds no picture")
        try:
            with xopen(value["path"], "rb") as file:
                return file.read()
        except OSError as error:
            raise UnreadableSourceError(f"cannot be read: {error}") from error

    def read_many(self, locators: Sequence[Any]) -> Iterator[bytes | UnreadableSourceError]:
        """Return the bytes of several photographs in their order; an error stands for one that cannot be had.

        Rows are read forwards within a shard of the stream, so locators in ascending order cost one pass.
        """
        shard, next_row, rows = -1, 0, iter(())
        for wanted_shard, wanted_row in locators:
            if wanted_shard != shard or wanted_row < next_row:
                rows = iter(self.stream.shard(self.stream.num_shards, wanted_shard).skip(wanted_row))
                shard, next_row = wanted_shard, wanted_row
            for _ in range(wanted_row - next_row):
                next(rows)
            next_row = wanted_row + 1
            try:
                yield self._bytes(next(rows))
            except UnreadableSourceError as error:
                yield error


def shown_name(photos: str | Path) -> str:
    """Return what the public may know of where photographs lie: of a path its last name, of a data set its name."""
    return Path(photos).resolve().name if Path(photos).exists() else str(photos)


def _image_column(stream: IterableDataset, column: str | None, name: str) -> str:
    features = stream.features or {}
    images = [key for key, kind in features.items() if isinstance(kind, Image)]
    chosen = images[0] if column is None and len(images) == 1 else column
    if chosen is None or chosen not in images:
        raise ValueError(f"`image_column` must be an image column of {name}, which has {images}; got {column!r}.")
    return chosen
