# SPDX-License-Identifier: Apache-2.0
"""Carry out a plan: make every shard that is not finished, while other processes may do the same.

Within a shard, one thread reads and a few decode ahead of the device, a few encode behind it, and the main thread runs
the networks and writes. Batches and rows keep the order of the plan, so threads change no byte.
"""

from __future__ import annotations

import importlib.metadata
import platform
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import pyarrow
import pyarrow.parquet
import torch
from tqdm.auto import tqdm

from datasets_builder.pairs import (
    DecodedPhoto,
    Pair,
    UnusablePhotoError,
    decode_photo,
    encode_row,
    make_pairs,
    pair_constants,
)
from datasets_builder.plan import BuildOptions, Plan, PlannedPhoto, Rejection, pair_seed
from datasets_builder.schema import FEATURES, LABEL_FEATURES
from datasets_builder.shards import ShardRecord, claim, is_finished, read_record, write_shard
from datasets_builder.sources import FolderSource, StreamSource, UnreadableSourceError
from pipeline_zerostereo import Photographs, ZeroStereoPipeline

DECODE_THREADS = 2
ENCODE_THREADS = 2
BATCHES_AHEAD = 3  # decoded batches that wait for the device
ROWS_BEHIND = 32  # pairs that may wait for their encoding: bounds the memory
LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow", "pyarrow", "datasets")

Source = FolderSource | StreamSource
MakePairs = Callable[[Photographs, list[int], str], list[Pair]]


class Worker(NamedTuple):
    """What makes pairs, and on what it runs.

    Attributes:
        make_pairs: (photographs of one size, a seed for each, fill) -> a Pair for each.
        made_on: see `describe_machine`.
    """

    make_pairs: MakePairs
    made_on: dict[str, str]


class Progress(Protocol):
    """What a build reports to."""

    def __call__(self, *, pairs: int = 0, rejected: int = 0, waited_s: float = 0.0) -> None:
        """Add finished pairs, rejected photographs, and seconds in which the device waited for photographs."""
        ...


@dataclass
class BatchInHand:
    """A batch on its way to the device: the photographs that could be decoded, and those that could not."""

    number: int
    photos: list[PlannedPhoto]
    decoded: list[Future]


@dataclass
class ShardLog:
    """What happened while a shard was made; becomes part of its file."""

    rejected: list[Rejection] = field(default_factory=list)
    split_batches: list[int] = field(default_factory=list)

    def reject(self, photo: PlannedPhoto, kind: str, reason: str) -> None:
        """Note a photograph that gets no pair."""
        self.rejected.append(Rejection(photo.source, kind, reason, photo.id))


def make_worker(pipe: ZeroStereoPipeline, options: BuildOptions) -> Worker:
    """Return the worker that makes pairs by a pipeline."""
    return Worker(partial(make_pairs, pipe, steps=options.steps), describe_machine(pipe.device))


def describe_machine(device: torch.device) -> dict[str, str]:
    """Name what may change the last digits of a result: kind of device, and versions of the libraries."""
    on_gpu = device.type == "cuda"
    kind = torch.cuda.get_device_name(device) if on_gpu else torch.backends.cpu.get_cpu_capability()
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"device": f"{device.type} {kind}", "python": platform.python_version(), **versions}


def build_shards(plan: Plan, source: Source, worker: Worker, progress: Progress) -> list[int]:
    """Make the shards that are not finished and that no other process is at.

    Args:
        plan: of the build.
        source: of the photographs.
        worker: makes the pairs of a batch.
        progress: gets the counts.

    Returns:
        Indices of the shards that other processes still work on.
    """
    busy = []
    for index in range(plan.shard_count):
        digest, path = plan.shard_digest(index), plan.shard_file(index)
        if is_finished(path, digest):
            continue
        with claim(plan.output, f"shard-{index:05d}") as mine:
            if not mine:
                busy.append(index)
            elif not is_finished(path, digest):
                build_shard(plan, index, source, worker, progress)
    return busy


def build_shard(plan: Plan, index: int, source: Source, worker: Worker, progress: Progress) -> None:
    """Make one shard and put it in its place."""
    log, digest = ShardLog(), plan.shard_digest(index)
    write_shard(
        plan.shard_file(index),
        shard_rows(plan.shard(index), source, plan.options, worker.make_pairs, log, progress),
        LABEL_FEATURES if plan.options.labels_only else FEATURES,
        lambda: ShardRecord(digest, sorted(log.rejected), sorted(log.split_batches), worker.made_on),
    )


def retry_shard(plan: Plan, index: int, fill: str, source: Source, worker: Worker, progress: Progress) -> int:
    """Take up the photographs again for which memory did not suffice; all other rows stay as they are.

    They, and the others of their batches, get batches of their own in the plan, and the shard is written anew. A build
    of the new plan from nothing gives the same bytes.

    Args:
        plan: of the build, whose shard is finished.
        index: of the shard.
        fill: how their holes are filled now.
        source: of the photographs.
        worker: makes the pairs.
        progress: gets the counts.

    Returns:
        How many photographs were taken up.
    """
    path = plan.shard_file(index)
    record = read_record(path)
    again = {one.id for one in record.rejected if one.kind == "out_of_memory"}
    if not again:
        return 0
    photos = split_off(plan.shard(index), again, set(record.split_batches), fill)
    table = pyarrow.parquet.read_table(path)
    kept = {id: place for place, id in enumerate(table["id"].to_pylist())}
    log = ShardLog(rejected=[one for one in record.rejected if one.id not in again])
    chosen = [photo for photo in photos if photo.id in again]
    made = {row["id"]: row for row in shard_rows(chosen, source, plan.options, worker.make_pairs, log, progress)}
    plan.replace_shard(index, photos)
    digest = plan.shard_digest(index)
    ordered = sorted(photos, key=lambda photo: photo.batch)
    rows = (made.get(photo.id) or stored_row(table, kept[photo.id]) for photo in ordered if photo.id in made | kept)
    features = LABEL_FEATURES if plan.options.labels_only else FEATURES
    write_shard(path, rows, features, lambda: ShardRecord(digest, sorted(log.rejected), [], worker.made_on))
    return len(chosen)


def split_off(photos: list[PlannedPhoto], again: set[str], split_batches: set[int], fill: str) -> list[PlannedPhoto]:
    """Give a batch of its own to each photograph of a split batch, and to those that are taken up a new fill."""
    next_batch = max(photo.batch for photo in photos) + 1
    changed = []
    for photo in photos:
        if photo.id in again or photo.batch in split_batches:
            photo = photo._replace(batch=next_batch, fill=fill if photo.id in again else photo.fill)
            next_batch += 1
        changed.append(photo)
    return changed


def stored_row(table: pyarrow.Table, place: int) -> dict[str, Any]:
    """Return a row of a shard as `write_shard` takes it: pictures as bytes."""
    row = table.slice(place, 1).to_pylist()[0]
    return {name: value["bytes"] if isinstance(value, dict) else value for name, value in row.items()}


def shard_rows(
    photos: list[PlannedPhoto],
    source: Source,
    options: BuildOptions,
    make: MakePairs,
    log: ShardLog,
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """Make the rows of photographs batch by batch, in the order of the plan."""
    encoding: deque[Future] = deque()
    torch.set_num_threads(options.threads)
    with ThreadPoolExecutor(ENCODE_THREADS) as encoders, ReadAhead(photos, source, options) as batches:
        for batch in batches:
            started = time.monotonic()
            usable = settle(batch, log)
            progress(waited_s=time.monotonic() - started, rejected=len(batch.photos) - len(usable))
            for photo, decoded, pair in make_batch(batch.number, usable, options, make, log, progress):
                constants = pair_constants(options.seed, photo.id, options.pipeline_revision, options.weights_id)
                encoding.append(encoders.submit(encode_row, photo, decoded, pair, constants, options.labels_only))
            while encoding and (len(encoding) > ROWS_BEHIND or encoding[0].done()):
                yield encoding.popleft().result()
                progress(pairs=1)
        while encoding:
            yield encoding.popleft().result()
            progress(pairs=1)


class ReadAhead:
    """Reads photographs in their order and hands out batches in theirs, while threads decode what comes next.

    Iterate over it inside a `with`; leaving early stops the reading.

    Args:
        photos: of one shard.
        source: of the photographs.
        options: whether metadata are kept.
    """

    def __init__(self, photos: list[PlannedPhoto], source: Source, options: BuildOptions):
        self.photos, self.source, self.keep_metadata = photos, source, options.keep_metadata
        self.ready: queue.Queue[BatchInHand | BaseException | None] = queue.Queue(maxsize=BATCHES_AHEAD)
        self.stopped = threading.Event()
        self.decoders = ThreadPoolExecutor(DECODE_THREADS)
        self.reader = threading.Thread(target=self._read, name="reader", daemon=True)

    def __enter__(self) -> ReadAhead:
        """Start reading."""
        self.reader.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop reading."""
        self.stopped.set()
        self.reader.join()
        self.decoders.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[BatchInHand]:
        """Give the batches; what the reading thread could not deal with is raised here."""
        while (item := self.ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _read(self) -> None:
        sizes = Counter(photo.batch for photo in self.photos)
        order = deque(sorted(sizes))
        collected: dict[int, BatchInHand] = {}
        try:
            contents = self.source.read_many([photo.locator for photo in self.photos])
            for photo, data in zip(self.photos, contents, strict=True):
                batch = collected.setdefault(photo.batch, BatchInHand(photo.batch, [], []))
                batch.photos.append(photo)
                batch.decoded.append(self.decoders.submit(self._decode, data, photo))
                while order and order[0] in collected and len(collected[order[0]].photos) == sizes[order[0]]:
                    self._put(collected.pop(order.popleft()))
                if self.stopped.is_set():
                    return
            self._put(None)
        except BaseException as error:  # for the main thread, which raises it
            self._put(error)

    def _decode(self, data: bytes | UnreadableSourceError, photo: PlannedPhoto) -> DecodedPhoto:
        if isinstance(data, UnreadableSourceError):
            raise UnusablePhotoError("unreadable", str(data))
        return decode_photo(data, photo, self.keep_metadata)

    def _put(self, item: BatchInHand | BaseException | None) -> None:
        while not self.stopped.is_set():
            try:
                return self.ready.put(item, timeout=0.2)
            except queue.Full:
                continue


def settle(batch: BatchInHand, log: ShardLog) -> list[tuple[PlannedPhoto, DecodedPhoto]]:
    """Wait for the photographs of a batch; those that cannot be used are noted."""
    usable = []
    for photo, future in zip(batch.photos, batch.decoded, strict=True):
        try:
            usable.append((photo, future.result()))
        except UnusablePhotoError as error:
            log.reject(photo, error.kind, str(error))
    return usable


def make_batch(
    number: int,
    usable: list[tuple[PlannedPhoto, DecodedPhoto]],
    options: BuildOptions,
    make: MakePairs,
    log: ShardLog,
    progress: Progress,
) -> Iterator[tuple[PlannedPhoto, DecodedPhoto, Pair]]:
    """Run the networks on a batch; where memory does not suffice, photograph by photograph; then reject by name."""
    if not usable:
        return
    photos = [photo for photo, _ in usable]
    photographs = Photographs(
        torch.cat([decoded.photographs.pixels for _, decoded in usable]),
        [profile for _, decoded in usable for profile in decoded.photographs.icc_profiles],
    )
    try:
        pairs = make(photographs, [pair_seed(options.seed, photo.id) for photo in photos], photos[0].fill)
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        pairs = None
    if pairs is None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(usable) > 1:
            log.split_batches.append(number)
            for one in usable:
                yield from make_batch(number, [one], options, make, log, progress)
            return
        log.reject(photos[0], "out_of_memory", f"fill {photos[0].fill!r} needs more memory than there is")
        progress(rejected=1)
        return
    for (photo, decoded), pair in zip(usable, pairs, strict=True):
        fault = quality_fault(pair, options)
        if fault is None:
            yield photo, decoded, pair
        else:
            log.reject(photo, *fault)
            progress(rejected=1)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory of the device or of the machine did not suffice."""
    messages = ("out of memory", "can't allocate memory", "not enough memory")
    known = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, known) or any(message in str(error) for message in messages)


def quality_fault(pair: Pair, options: BuildOptions) -> tuple[str, str] | None:
    """Return kind and reason why a pair fails the quality gate, or None."""
    agreement, least = pair.flip_agreement[0], options.min_flip_agreement
    if least is not None and agreement < least:
        return "low_agreement", f"flip agreement {agreement:.4f}; at least {least:g} is asked for"
    holes, most = float(pair.right_hole_mask.mean()), options.max_hole_share
    if most is not None and holes > most:
        return "many_holes", f"{holes:.2%} of the right view are holes; at most {most:.2%} is asked for"
    return None


class ProgressBar:
    """A bar over the photographs of a build: pairs per second, time left, rejected photographs, waiting device.

    Args:
        total: photographs of the plan.
        done: photographs of finished shards.
        disable: show nothing.
    """

    def __init__(self, total: int, done: int = 0, disable: bool = False):
        self.bar = tqdm(total=total, initial=done, unit="pair", desc="stereo pairs", disable=disable)
        self.rejected, self.waited_s, self.started = 0, 0.0, time.monotonic()

    def __call__(self, *, pairs: int = 0, rejected: int = 0, waited_s: float = 0.0) -> None:
        """See Progress."""
        self.rejected += rejected
        self.waited_s += waited_s
        share = self.waited_s / max(time.monotonic() - self.started, 1e-9)
        self.bar.set_postfix_str(f"rejected {self.rejected}, device waited {share:.0%}", refresh=False)
        self.bar.update(pairs + rejected)

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()
