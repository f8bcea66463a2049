# SPDX-License-Identifier: Apache-2.0
"""What a build is asked for, and the way from there to a frozen plan; shared by all that start one.

The commands read a `BuildRequest` from the command line, and the builder class of the `datasets` library is configured
by one. This file starts no process and makes no pair.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datasets_builder.building import Source
from datasets_builder.manifest import MANIFEST, REJECTED, unfinished_shards, write_manifest
from datasets_builder.mfs35k_rows import LAYOUT_FOLDER, write_layout
from datasets_builder.pairs import pipeline_revision, weights_id
from datasets_builder.plan import BuildOptions, Plan, make_plan, plan_folder
from datasets_builder.shards import claim
from datasets_builder.sources import FolderSource, StreamSource, shown_name
from pipeline_zerostereo import FILLS, ZeroStereoPipeline

DEFAULT_WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "zerostereo-tiny"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PLAN_POLL_S = 0.5


@dataclass(kw_only=True)
class BuildRequest:
    """What a build is asked for; see `BuildOptions` for what decides bytes.

    Attributes:
        photos: folder, list file or name of a data set.
        output: folder of the build.
        image_column, split, config, revision: of a data set, see `StreamSource`.
        license, attribution: of photographs without their own.
        weights: folder or Hub id of the pipeline.
        device: None = the process's GPU where there is one.
    """

    photos: str | Path
    output: str | Path
    image_column: str | None = None
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    license: str = ""
    attribution: str = ""
    weights: str | Path = DEFAULT_WEIGHTS
    device: str | None = None
    seed: int = BuildOptions.seed
    steps: int | None = BuildOptions.steps
    dtype: str = BuildOptions.dtype
    fill: str = BuildOptions.fill
    tiled_above: int | None = BuildOptions.tiled_above
    batch_size: int = BuildOptions.batch_size
    threads: int = BuildOptions.threads
    pairs_per_shard: int = BuildOptions.pairs_per_shard
    min_side: int = BuildOptions.min_side
    max_megapixels: float = BuildOptions.max_megapixels
    min_flip_agreement: float | None = BuildOptions.min_flip_agreement
    max_hole_share: float | None = BuildOptions.max_hole_share
    keep_metadata: bool = BuildOptions.keep_metadata
    labels_only: bool = BuildOptions.labels_only


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of everything that a BuildRequest holds, of `--retry-rejected` and of `--layout`."""
    defaults = BuildRequest(photos="", output="")
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
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
    work.add_argument(
        "--layout",
        choices=(LAYOUT_FOLDER,),
        help=f"also write the pairs as files for the official training code, with a list, to OUTPUT/{LAYOUT_FOLDER}",
    )
    return parser


def read_request(options: argparse.Namespace) -> BuildRequest:
    """Return what a command line asks for.

    Raises:
        ValueError: a layout that needs pictures, of a build without them.
    """
    if options.layout and options.labels_only:
        raise ValueError(f"`--layout {options.layout}` needs pictures; got --labels-only. Choose one of them.")
    names = {field.name for field in dataclasses.fields(BuildRequest)}
    return BuildRequest(**{name: value for name, value in vars(options).items() if name in names})


def open_source(request: BuildRequest) -> Source:
    """Open the photographs: a data set where an image column is named or nothing is there of this name."""
    if request.image_column is None and Path(request.photos).exists():
        return FolderSource(request.photos, request.license, request.attribution)
    return StreamSource(
        str(request.photos),
        request.image_column,
        request.split,
        request.config,
        request.revision,
        request.license,
        request.attribution,
    )


def describe_source(request: BuildRequest, source: Source) -> dict[str, Any]:
    """Say in the plan where the photographs come from; of what lies on this machine no path but the last name."""
    described = {
        "kind": source.kind,
        "name": shown_name(request.photos),
        "license": request.license,
        "attribution": request.attribution,
    }
    if source.kind == "folder":
        return described
    return described | {name: getattr(request, name) for name in ("image_column", "split", "config", "revision")}


def load_pipeline(request: BuildRequest, device: str | torch.device) -> ZeroStereoPipeline:
    """Load the pipeline, the depth model in float32, without bars of its own."""
    dtype = {"default": DTYPES[request.dtype], "depth_estimator": torch.float32}
    pipe = ZeroStereoPipeline.from_pretrained(request.weights, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_options(request: BuildRequest, pipe: ZeroStereoPipeline) -> BuildOptions:
    """Collect what decides the bytes."""
    names = set(BuildOptions.__dataclass_fields__) & set(vars(request))
    chosen = {name: getattr(request, name) for name in names}
    return BuildOptions(weights_id=weights_id(pipe), pipeline_revision=pipeline_revision(), **chosen)


def open_plan(
    request: BuildRequest, source: Source, built: BuildOptions, progress: bool = True, poll_s: float = PLAN_POLL_S
) -> Plan:
    """Freeze the plan, or read the frozen one and check that it was made for the same options.

    Of several processes that start at a time one makes the plan, and the others wait; where it dies meanwhile, the
    next one does.

    Raises:
        FileNotFoundError: the source has no photograph.
        ValueError: no photograph of it can be used, or the frozen plan was made for other options.
    """
    output, described = Path(request.output), describe_source(request, source)
    frozen = plan_folder(output) / "plan.json"
    while not frozen.is_file():
        with claim(output, "plan") as mine:
            if mine and not frozen.is_file():
                make_plan(source, built, output, described, progress)
        if not mine:
            time.sleep(poll_s)
    plan = Plan(output)
    plan.check_same(built, described)
    return plan


def finished_photos(plan: Plan) -> int:
    """Count the photographs of finished shards."""
    unfinished = set(unfinished_shards(plan))
    return sum(len(plan.shard(index)) for index in range(plan.shard_count) if index not in unfinished)


def finish(plan: Plan, nothing_new: bool, layout: str | None = None) -> int:
    """Write the manifest unless it is there and nothing is new; say what came out; write the layout."""
    if nothing_new and (plan.output / MANIFEST).is_file():
        print(f"{plan.output} is complete; nothing to do.")
    else:
        _write_and_say(plan)
    if layout is not None:
        count = write_layout(plan.output, plan.output / layout)
        print(f"{count} pairs in {plan.output / layout} for the official training code")
    return 0


def _write_and_say(plan: Plan) -> None:
    manifest = write_manifest(plan)
    counts = manifest["counts"]
    size = sum(shard["bytes"] for shard in manifest["shards"])
    print(
        f"{counts['pairs']} pairs of {counts['photos']} photographs in {plan.shard_count} shards, {size / 1e6:.1f} MB"
    )
    if counts["rejected"]:
        listed = ", ".join(f"{number} {kind}" for kind, number in counts["rejected"].items())
        print(f"rejected: {listed}; see {plan.output / REJECTED}")
