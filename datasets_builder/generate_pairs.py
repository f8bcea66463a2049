# SPDX-License-Identifier: Apache-2.0
"""Turn photographs into a data set of stereo pairs: Parquet files that `load_dataset` reads.

    python -m datasets_builder.generate_pairs --photos photos/ --output pairs
    python -m datasets_builder.generate_pairs --photos list.csv --output pairs --steps 50 --weights USER/ZEROSTEREO
    python -m datasets_builder.generate_pairs --photos USER/PHOTOS --image-column image --output pairs
    accelerate launch -m datasets_builder.generate_pairs --photos photos/ --output pairs      (one process per GPU)
    python -m datasets_builder.generate_pairs --photos examples/ --output out/pairs --batch-size 1     (CPU, seconds)

The plan is frozen first, in OUTPUT/.build. Then shards appear in OUTPUT/data one by one, whole; a killed run goes on
with the same command, and several processes may run it at a time: the bytes are the same. At the end rejected.jsonl
names every photograph without a pair and why, and manifest.json, written last, has counts and hashes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from datasets_builder.building import ProgressBar, Source, build_shards, make_worker, retry_shard
from datasets_builder.manifest import MANIFEST, REJECTED, unfinished_shards, write_manifest
from datasets_builder.pairs import pipeline_revision, weights_id
from datasets_builder.plan import BuildOptions, Plan, make_plan, plan_folder, wait_for_plan
from datasets_builder.shards import claim, remove_leftovers
from datasets_builder.sources import FolderSource, StreamSource
from pipeline_zerostereo import FILLS, ZeroStereoPipeline

DEFAULT_WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "zerostereo-tiny"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    defaults = BuildOptions(weights_id="", pipeline_revision="")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    files = parser.add_argument_group("photographs")
    files.add_argument(
        "--photos",
        required=True,
        metavar="DIR_LIST_OR_DATASET",
        help="folder (any nesting), list file (.txt, .csv, .jsonl: path, source, license, attribution), or a data set "
        "that is streamed",
    )
    files.add_argument(
        "--image-column",
        metavar="NAME",
        help="of a data set, its only one by default; makes a local folder a data set",
    )
    files.add_argument("--split", default="train", metavar="NAME", help="of a data set (%(default)s)")
    files.add_argument("--config", metavar="NAME", help="of a data set; default: its own default")
    files.add_argument("--revision", metavar="REVISION", help="of a data set; default: the newest")
    files.add_argument("--license", default="", help="of photographs without their own; for a data set also a column")
    files.add_argument("--attribution", default="", help="whom to name; the same rules")
    files.add_argument("--min-side", type=int, default=defaults.min_side, metavar="PX", help="(%(default)s)")
    files.add_argument(
        "--max-megapixels", type=float, default=defaults.max_megapixels, metavar="MP", help="(%(default)s)"
    )
    files.add_argument(
        "--keep-metadata", action="store_true", help="publish files as they are: place, serial numbers, names and all"
    )
    made = parser.add_argument_group("pairs")
    made.add_argument("--weights", default=str(DEFAULT_WEIGHTS), metavar="DIR_OR_HUB_ID", help="pipeline to load")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="with a file's hash it decides a pair (0)")
    made.add_argument("--steps", type=int, metavar="N", help="denoising steps; default: what suits the weights")
    made.add_argument("--fill", choices=FILLS, default="whole", help="how holes are filled (%(default)s)")
    made.add_argument("--tiled-above", type=int, metavar="PX", help="longer sides are filled in tiles; default: never")
    made.add_argument("--dtype", choices=DTYPES, default="float32", help="of the UNet and the autoencoder")
    made.add_argument("--min-flip-agreement", type=float, metavar="U", help="quality gate in [0, 1]; default: none")
    made.add_argument("--max-hole-share", type=float, metavar="SHARE", help="quality gate in [0, 1]; default: none")
    made.add_argument(
        "--labels-only", action="store_true", help="leave the pictures out, for licences that ask for it"
    )
    work = parser.add_argument_group("work")
    work.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the data set")
    work.add_argument("--batch-size", type=int, default=defaults.batch_size, metavar="N", help="(%(default)s)")
    work.add_argument(
        "--pairs-per-shard", type=int, default=defaults.pairs_per_shard, metavar="N", help="(%(default)s)"
    )
    work.add_argument(
        "--threads",
        type=int,
        default=defaults.threads,
        metavar="N",
        help="of the numerical library, per process; decides bytes, so the number of cores does not choose it; more "
        "cores: more processes (%(default)s)",
    )
    work.add_argument("--device", help="default: the process's GPU, or cpu")
    work.add_argument(
        "--retry-rejected",
        action="store_true",
        help="take up photographs again that did not fit into memory, with --fill",
    )
    return parser.parse_args(arguments)


def open_source(options: argparse.Namespace) -> Source:
    """Open the photographs: a data set where an image column is named or nothing is there of this name."""
    if options.image_column is None and Path(options.photos).exists():
        return FolderSource(options.photos, options.license, options.attribution)
    return StreamSource(
        options.photos,
        options.image_column,
        options.split,
        options.config,
        options.revision,
        options.license,
        options.attribution,
    )


def describe_source(options: argparse.Namespace, source: Source) -> dict[str, Any]:
    """Say in the plan where the photographs come from; of a folder its name only, which is no private path."""
    described = {"kind": source.kind, "license": options.license, "attribution": options.attribution}
    if source.kind == "folder":
        return {**described, "name": Path(options.photos).resolve().name}
    streamed = {name: getattr(options, name) for name in ("image_column", "split", "config", "revision")}
    return {**described, "name": options.photos, **streamed}


def build_options(options: argparse.Namespace, pipe: ZeroStereoPipeline) -> BuildOptions:
    """Collect what decides the bytes."""
    names = set(BuildOptions.__dataclass_fields__) & set(vars(options))
    chosen = {name: getattr(options, name) for name in names}
    return BuildOptions(weights_id=weights_id(pipe), pipeline_revision=pipeline_revision(), **chosen)


def open_plan(source: Source, built: BuildOptions, options: argparse.Namespace, is_main: bool) -> Plan:
    """Freeze the plan, or read the frozen one and check that it was made for the same options."""
    described = describe_source(options, source)
    if not (plan_folder(options.output) / "plan.json").is_file():
        if is_main:
            with claim(options.output, "plan") as mine:
                if mine:
                    return make_plan(source, built, options.output, described)
        return wait_for_plan(options.output)
    plan = Plan(options.output)
    plan.check_same(built, described)
    return plan


def run(options: argparse.Namespace) -> int:
    """Build; returns the exit code."""
    state = PartialState(cpu=options.device == "cpu")
    device = options.device or state.device
    source = open_source(options)
    dtype = {"default": DTYPES[options.dtype], "depth_estimator": torch.float32}
    pipe = ZeroStereoPipeline.from_pretrained(options.weights, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    built = build_options(options, pipe)
    if options.retry_rejected:
        built = BuildOptions(**{**vars(built), "fill": Plan(options.output).options.fill})
    plan = open_plan(source, built, options, state.is_main_process)
    remove_leftovers(options.output)
    worker = make_worker(pipe, plan.options)
    done = finished_photos(plan)
    bar = ProgressBar(plan.photo_count, done, disable=not state.is_local_main_process)
    busy = build_shards(plan, source, worker, bar)
    bar.close()
    if busy:
        print(f"{len(busy)} shards are in the hands of other processes; the last one to finish writes {MANIFEST}.")
        return 0
    if options.retry_rejected:
        retry(plan, options, source, worker)
    return finish(plan, done == plan.photo_count and not options.retry_rejected)


def finished_photos(plan: Plan) -> int:
    """Count the photographs of finished shards."""
    finished = [index for index in range(plan.shard_count) if index not in set(unfinished_shards(plan))]
    return sum(len(plan.shard(index)) for index in finished)


def retry(plan: Plan, options: argparse.Namespace, source: Source, worker: Any) -> None:
    """Take up what did not fit into memory, shard by shard."""
    (options.output / MANIFEST).unlink(missing_ok=True)
    taken = 0
    for index in range(plan.shard_count):
        with claim(options.output, f"shard-{index:05d}") as mine:
            if mine:
                taken += retry_shard(plan, index, options.fill, source, worker, lambda **_: None)
    print(f"{taken} photographs taken up again with fill {options.fill!r}.")


def finish(plan: Plan, nothing_new: bool) -> int:
    """Write the manifest unless it is there and nothing is new; say what came out."""
    output = plan.output
    if nothing_new and (output / MANIFEST).is_file():
        print(f"{output} is complete; nothing to do.")
        return 0
    manifest = write_manifest(plan)
    counts = manifest["counts"]
    size = sum(shard["bytes"] for shard in manifest["shards"])
    print(
        f"{counts['pairs']} pairs of {counts['photos']} photographs in {plan.shard_count} shards, {size / 1e6:.1f} MB"
    )
    if counts["rejected"]:
        listed = ", ".join(f"{number} {kind}" for kind, number in counts["rejected"].items())
        print(f"rejected: {listed}; see {output / REJECTED}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit code 2 for options that cannot be followed."""
    options = parse_arguments(arguments)
    try:
        return run(options)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
