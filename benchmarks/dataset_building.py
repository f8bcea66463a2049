# SPDX-License-Identifier: Apache-2.0
"""Pairs per second of a build, stage by stage; what the builder costs beside the networks; how fast rows are read.

    python -m benchmarks.dataset_building                       # everything: a minute; prints Markdown
    python -m benchmarks.dataset_building --json out/building.json
    python -m benchmarks.dataset_building --stand-in            # without the networks, 640x480: seconds
    python -m benchmarks.dataset_building --photos 2            # CPU smoke

Photographs are crops of the pictures of examples/ and of scikit-image, brought to size and stored as JPEG. One process
builds them with one thread for the networks, as `generate_pairs` does.

Real run: the embedded weights. Stages are the functions of that very run, in seconds of the processor per pair, which
other programs on the machine hardly change; read, decode and encode run in threads beside the networks. "other" is
what no stage covers: the plan with its hashes, the hashes of the manifest, Python between the stages. Everything but
depth, select, warp and inpaint counts as the builder's cost.

Stand-in: in the place of the networks a ramp of disparity, the picture's grey as confidence, and holes left black;
warp, encoding, hashes and files are real. Pairs per core and second are pairs per second of the processor.

Reading: the rows of that build as a stream of `load_dataset`, and the same rows as loose files, a folder per row; both
through `decode_pair`, and both as mere bytes. Files lie in the memory of the operating system by then, for both alike.

Targets: the builder costs under 10 % of the real run; without networks at least 5 pairs per core and second.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow.parquet
import skimage.data
import torch
from datasets import Image, load_dataset

from datasets_builder import building, pairs, shards
from datasets_builder.building import Worker, build_shards, describe_machine, make_worker
from datasets_builder.manifest import write_manifest
from datasets_builder.options import BuildRequest, build_options, load_pipeline, open_plan, open_source
from datasets_builder.pairs import Pair
from datasets_builder.plan import BuildOptions
from datasets_builder.schema import FEATURES, decode_pair
from datasets_builder.sources import FolderSource
from pipeline_zerostereo import Photographs, StereoImageProcessor, ZeroStereoPipeline

ROOT = Path(__file__).resolve().parent.parent
REAL_SIZE, STAND_IN_SIZE = (512, 384), (640, 480)  # width, height
PAIRS_PER_SHARD = 16
PIPELINE_STAGES = ("depth", "select", "warp", "inpaint")
STAGES = ("read", "decode", *PIPELINE_STAGES, "encode", "write")
MAX_BUILDER_SHARE = 0.10
MIN_PAIRS_PER_CORE = 5.0
PICTURES = [name for name, kind in FEATURES.items() if isinstance(kind, Image)]


def write_photographs(folder: Path, count: int, size: tuple[int, int], seed: int = 0) -> None:
    """Write so many crops of photographs, all different, brought to (width, height), as JPEG."""
    generator = np.random.default_rng(seed)
    pictures = [PIL.Image.open(path).convert("RGB") for path in sorted((ROOT / "examples").glob("*.[jp][pn]g"))]
    pictures += [PIL.Image.fromarray(getattr(skimage.data, name)()) for name in ("chelsea", "retina")]
    folder.mkdir(parents=True)
    for number in range(count):
        picture, share = pictures[number % len(pictures)], generator.uniform(0.7, 1.0)
        width, height = int(picture.width * share), int(picture.height * share)
        left = int(generator.integers(picture.width - width + 1))
        top = int(generator.integers(picture.height - height + 1))
        crop = picture.crop((left, top, left + width, top + height))
        PIL.ImageOps.fit(crop, size).save(folder / f"{number:04d}.jpg", quality=92)


class Stopwatch:
    """Adds up the processor's seconds of functions, in whichever threads they run."""

    def __init__(self):
        self.seconds: dict[str, float] = dict.fromkeys(map(str, STAGES), 0.0)
        self.lock = threading.Lock()

    def timed(self, stage: str, function: Callable) -> Callable:
        """Return the function with a stopwatch."""

        def run(*arguments: Any, **keywords: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*arguments, **keywords)
            finally:
                with self.lock:
                    self.seconds[stage] += time.thread_time() - start

        return run

    def watch(self, *places: tuple[str, Any, str]) -> ExitStack:
        """Put stopwatches on (stage, owner, name) inside a `with`."""
        stack = ExitStack()
        for stage, owner, name in places:
            stack.enter_context(patch.object(owner, name, self.timed(stage, getattr(owner, name))))
        return stack


WATCHED = (
    ("read", FolderSource, "read"),
    ("decode", building, "decode_photo"),
    ("depth", ZeroStereoPipeline, "estimate_inverse_depth"),
    ("select", ZeroStereoPipeline, "select_disparity"),
    ("warp", pairs, "forward_warp"),
    ("inpaint", ZeroStereoPipeline, "inpaint"),
    ("encode", building, "encode_row"),
    ("encode", pairs, "encode_disparity"),
    ("write", shards, "_to_table"),
    ("write", pyarrow.parquet.ParquetWriter, "write_table"),
    ("write", pyarrow.parquet.ParquetWriter, "close"),
)


def stand_in(photographs: Photographs, seeds: list[int], fill: str) -> list[Pair]:
    """Make pairs without networks; see the top of this file."""
    pixels = photographs.pixels  # [B,3,H,W]
    height, width = pixels.shape[-2:]
    ramp = torch.linspace(0, 0.1 * width, height)[:, None].expand(height, width)
    made = []
    for image, profile in zip(pixels, photographs.icc_profiles, strict=True):
        encoded = pairs.encode_disparity(ramp.numpy())
        warp = pairs.forward_warp(image[None], torch.from_numpy(encoded.disparity)[None, None])
        made.append(
            Pair(
                disparity_png=encoded.png,
                disparity_png_scale=encoded.png_scale,
                disparity=encoded.disparity,
                confidence=image.mean(0).clamp(0, 1).numpy(),
                right_image=StereoImageProcessor.postprocess(warp.right_image, "pil", [profile])[0],
                right_hole_mask=warp.right_hole_mask[0, 0].numpy(),
                left_visible_mask=warp.left_visible_mask[0, 0].numpy(),
                disparity_scale=0.1,
                flip_agreement=(0.9, 0.5, 1.0),
            )
        )
    return made


def measure_build(photos: Path, output: Path, make: Callable[[BuildRequest], tuple[BuildOptions, Worker]]) -> dict:
    """Build once from plan to manifest; loading the weights is not counted.

    Returns:
        `pairs`, `seconds` of the clock, `processor` seconds, and of these `stages` and "other".
    """
    request = BuildRequest(
        photos=photos,
        output=output,
        device="cpu",
        batch_size=1,
        pairs_per_shard=PAIRS_PER_SHARD,
    )
    options, worker = make(request)
    watch, source = Stopwatch(), open_source(request)
    with watch.watch(*WATCHED):
        start, processor_start = time.perf_counter(), time.process_time()
        plan = open_plan(request, source, options, progress=False)
        build_shards(plan, source, worker, lambda **_: None)
        manifest = write_manifest(plan, progress=False)
        seconds, processor = time.perf_counter() - start, time.process_time() - processor_start
    stages = {**watch.seconds, "other": processor - sum(watch.seconds.values())}
    return {"pairs": manifest["counts"]["pairs"], "seconds": seconds, "processor": processor, "stages": stages}


def real_worker(request: BuildRequest) -> tuple[BuildOptions, Worker]:
    """Return options and worker of the embedded weights."""
    pipe = load_pipeline(request, "cpu")
    options = build_options(request, pipe)
    return options, make_worker(pipe, options)


def stand_in_worker(request: BuildRequest) -> tuple[BuildOptions, Worker]:
    """Return options and worker without networks."""
    options = BuildOptions(
        weights_id="none", pipeline_revision="none", batch_size=request.batch_size, pairs_per_shard=PAIRS_PER_SHARD
    )
    return options, Worker(stand_in, describe_machine(torch.device("cpu")))


def builder_share(figures: dict[str, Any]) -> float:
    """Return the share of the processor's time that is not the pipeline's."""
    return 1 - sum(figures["stages"][stage] for stage in PIPELINE_STAGES) / figures["processor"]


def pairs_per_core(figures: dict[str, Any]) -> float:
    """Return pairs per second of the processor."""
    return figures["pairs"] / figures["processor"]


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def write_loose(output: Path, folder: Path) -> list[Path]:
    """Write each row of a build as a folder: a file for each picture, and row.json; returns the folders."""
    folders = []
    for row in stream_bytes(output):
        place = folder / row["id"]
        place.mkdir(parents=True)
        for name in PICTURES:
            (place / name).write_bytes(row[name]["bytes"])
        (place / "row.json").write_text(json.dumps({name: row[name] for name in row if name not in PICTURES}))
        folders.append(place)
    return folders


def stream_bytes(output: Path) -> Iterator[dict[str, Any]]:
    """Stream the rows of a build, pictures as bytes."""
    stream = load_dataset(str(output), split="train", streaming=True)
    for name in PICTURES:
        stream = stream.cast_column(name, Image(decode=False))
    yield from stream


def stream_decoded(output: Path) -> Iterator[dict[str, Any]]:
    """Stream the rows of a build as arrays for training."""
    for row in stream_bytes(output):  # decode_pair decodes what it needs, and not the preview
        yield decode_pair(row)


def loose_bytes(folders: list[Path]) -> Iterator[dict[str, Any]]:
    """Read loose files as bytes."""
    for place in folders:
        row = json.loads((place / "row.json").read_text())
        yield row | {name: {"bytes": (place / name).read_bytes()} for name in PICTURES}


def loose_decoded(folders: list[Path]) -> Iterator[dict[str, Any]]:
    """Read loose files as arrays for training."""
    for row in loose_bytes(folders):
        yield decode_pair(row)


def rows_per_second(read: Callable[[], Iterator[Any]]) -> float:
    """Return the rate of reading everything once."""
    start = time.perf_counter()
    count = sum(1 for _ in read())
    return count / (time.perf_counter() - start)


def measure_reading(output: Path, loose: Path, runs: int) -> dict[str, float]:
    """Return rows per second of the four ways to read, by turns; the median of each."""
    folders = write_loose(output, loose)
    ways = {
        "stream, decoded": lambda: stream_decoded(output),
        "loose files, decoded": lambda: loose_decoded(folders),
        "stream, bytes": lambda: stream_bytes(output),
        "loose files, bytes": lambda: loose_bytes(folders),
    }
    rates = [{name: rows_per_second(read) for name, read in ways.items()} for _ in range(runs)]
    return {name: statistics.median(run[name] for run in rates) for name in ways}


# ---------------------------------------------------------------------------------------------------------------------
# Command
# ---------------------------------------------------------------------------------------------------------------------


def build_table(title: str, figures: dict[str, Any]) -> str:
    """Return the Markdown table of one build."""
    lines = [
        f"{title}: {figures['pairs']} pairs, {figures['pairs'] / figures['seconds']:.2f} pairs/s by the clock",
        "",
    ]
    lines += ["| Stage | ms of the processor per pair | Share |", "| --- | ---: | ---: |"]
    for stage, seconds in figures["stages"].items():
        share = seconds / figures["processor"]
        lines.append(f"| {stage} | {1000 * seconds / figures['pairs']:.1f} | {share:.1%} |")
    return "\n".join([*lines, ""])


def verdicts(result: dict[str, Any]) -> list[tuple[str, bool]]:
    """Return a line for each target, and whether it is met."""
    lines = []
    if "real" in result:
        share = builder_share(result["real"])
        met = share < MAX_BUILDER_SHARE
        lines.append((f"everything but the pipeline: {share:.1%}, target under {MAX_BUILDER_SHARE:.0%}", met))
    rate = pairs_per_core(result["stand_in"])
    lines.append(
        (
            f"without networks: {rate:.1f} pairs per core and second, target at least {MIN_PAIRS_PER_CORE:g}",
            rate >= MIN_PAIRS_PER_CORE,
        )
    )
    return lines


def measure(photos: int, with_networks: bool, runs: int) -> dict[str, Any]:
    """Do everything in a temporary folder."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if with_networks:
            write_photographs(folder / "real", photos, REAL_SIZE)
            result["real"] = measure_build(folder / "real", folder / "real-pairs", real_worker)
        write_photographs(folder / "stand-in", 2 * photos, STAND_IN_SIZE)
        result["stand_in"] = measure_build(folder / "stand-in", folder / "pairs", stand_in_worker)
        result["rows_per_second"] = measure_reading(folder / "pairs", folder / "loose", runs)
    return result


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=32, metavar="N", help="of the real run (default: %(default)s)")
    parser.add_argument("--stand-in", action="store_true", help="leave the real run out")
    parser.add_argument("--runs", type=int, default=3, help="of reading everything (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args(arguments)
    if options.photos < 1 or options.runs < 1:
        parser.error(f"--photos and --runs must be at least 1; got {options.photos} and {options.runs}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure and print tables; the exit code is 1 if a target is missed."""
    options = parse_arguments(arguments)
    torch.set_num_threads(1)
    result = measure(options.photos, not options.stand_in, options.runs)
    if "real" in result:
        print(build_table(f"Embedded weights, {REAL_SIZE[0]}x{REAL_SIZE[1]}", result["real"]))
    print(build_table(f"Without networks, {STAND_IN_SIZE[0]}x{STAND_IN_SIZE[1]}", result["stand_in"]))
    rates = result["rows_per_second"]
    print(
        "\n".join(
            ["| Reading | rows/s |", "| --- | ---: |", *(f"| {way} | {rate:.1f} |" for way, rate in rates.items())]
        )
    )
    judged = verdicts(result)
    for line, met in judged:
        print(f"\n{line}: {'met' if met else 'MISSED'}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        partial = options.json.with_name(options.json.name + ".partial")
        record = {"sizes": {"real": REAL_SIZE, "stand_in": STAND_IN_SIZE}, **result}
        partial.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(partial, options.json)
    return 0 if all(met for _, met in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
