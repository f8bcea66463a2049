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

from accelerate import PartialState

from datasets_builder.building import ProgressBar, Source, Worker, build_shards, make_worker, retry_shard
from datasets_builder.manifest import MANIFEST, unfinished_shards
from datasets_builder.options import (
    build_options,
    build_parser,
    finish,
    finished_photos,
    load_pipeline,
    open_plan,
    open_source,
    read_request,
)
from datasets_builder.plan import BuildOptions, Plan
from datasets_builder.shards import claim, is_finished, remove_leftovers


def run(options: argparse.Namespace) -> int:
    """Build; returns the exit code."""
    request = read_request(options)
    state = PartialState(cpu=request.device == "cpu")
    if state.num_processes > 1 and state.is_main_process:
        print(f"{state.num_processes} processes share the shards.")
    source = open_source(request)
    pipe = load_pipeline(request, request.device or str(state.device))
    built = build_options(request, pipe)
    if options.retry_rejected:
        built = BuildOptions(**{**vars(built), "fill": Plan(options.output).options.fill})
    plan = open_plan(request, source, built, progress=state.is_local_main_process)
    remove_leftovers(plan.output)
    worker = make_worker(pipe, plan.options)
    done = finished_photos(plan)
    bar = ProgressBar(plan.photo_count, done, disable=not state.is_local_main_process)
    build_shards(plan, source, worker, bar)
    bar.close()
    if options.retry_rejected:
        retry(plan, options.fill, source, worker)
    elsewhere = unfinished_shards(plan)  # looked up at the very end, so the last process to end sees all shards
    if elsewhere:
        print(f"{len(elsewhere)} shards are in the hands of other processes; the last one to end writes {MANIFEST}.")
        return 0
    return finish(plan, done == plan.photo_count and not options.retry_rejected, options.layout)


def retry(plan: Plan, fill: str, source: Source, worker: Worker) -> None:
    """Take up what did not fit into memory, shard by shard."""
    (plan.output / MANIFEST).unlink(missing_ok=True)
    taken = 0
    for index in range(plan.shard_count):
        with claim(plan.output, f"shard-{index:05d}") as mine:
            if mine and is_finished(plan.shard_file(index), plan.shard_digest(index)):
                taken += retry_shard(plan, index, fill, source, worker, lambda **_: None)
    print(f"{taken} photographs taken up again with fill {fill!r}.")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit code 2 for options that cannot be followed."""
    options = build_parser(__doc__).parse_args(arguments)
    try:
        return run(options)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
