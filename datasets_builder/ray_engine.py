# SPDX-License-Identifier: Apache-2.0
"""Make the shards of a build on a Ray cluster: many machines, with Ray's scheduling, retries and autoscaling.

    python -m datasets_builder.ray_engine --photos photos/ --output /shared/pairs --address auto --workers 16 \\
        --gpus-per-worker 1 --weights USER/ZEROSTEREO
    python -m datasets_builder.ray_engine --photos examples/ --output out/pairs --batch-size 1 --workers 2      (CPU)

The options are those of `generate_pairs`, and so are plan, shards and bytes: a build may be begun by one and ended by
the other. OUTPUT, and PHOTOS and WEIGHTS where they are folders, are paths that every machine sees. The code of this
command goes to the workers with it; their libraries must be those of requirements-ray.txt, their devices of one kind.

Each worker holds one pipeline and makes one shard at a time. Where a worker dies, Ray starts it anew and gives it its
shard again; where this driver dies, its workers end, and the same command goes on with the shards that are missing.
No lock is taken, because locks do not reach across machines: Ray gives each shard to one worker. A worker that
outlives its driver for a moment may finish a shard that its successor is making too. That is harmless: both write the
same bytes under names of their own, and each file appears whole.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

import pipeline_zerostereo
from datasets_builder.building import ProgressBar, Source, Worker, build_shard, make_worker, retry_shard
from datasets_builder.manifest import MANIFEST, unfinished_shards
from datasets_builder.options import (
    BuildRequest,
    build_options,
    build_parser,
    describe_source,
    finish,
    finished_photos,
    load_pipeline,
    open_plan,
    open_source,
    read_request,
)
from datasets_builder.plan import Plan
from datasets_builder.shards import is_finished, remove_leftovers

SHARD_RETRIES = 5  # a shard whose worker dies once more is left out; other shards and the worker itself go on
OUR_CODE = (Path(__file__).resolve().parent, Path(pipeline_zerostereo.__file__).resolve())


class ShardCounts(NamedTuple):
    """What came out of one shard; see `Progress`."""

    pairs: int = 0
    rejected: int = 0
    waited_s: float = 0.0


class ShardWorker:
    """Makes shards in a process of the cluster; loads the pipeline when the first one is asked for.

    Args:
        request: of the build, with paths that hold on this machine too.
    """

    def __init__(self, request: BuildRequest):
        self.request = request
        self.engine: tuple[Plan, Source, Worker] | None = None

    def load(self) -> None:
        """Load everything and see that it is what the plan was made for.

        Raises:
            ValueError: this machine has other weights or other code.
        """
        plan, source = Plan(Path(self.request.output)), open_source(self.request)
        device = self.request.device or ("cuda" if torch.cuda.is_available() else "cpu")
        pipe = load_pipeline(self.request, device)
        plan.check_same(build_options(self.request, pipe), describe_source(self.request, source))
        remove_leftovers(plan.output)
        self.engine = plan, source, make_worker(pipe, plan.options)

    def loaded(self) -> tuple[Plan, Source, Worker]:
        """Return plan, source and worker; loads them first in a process that was started anew."""
        if self.engine is None:
            self.load()
        assert self.engine is not None
        return self.engine

    def build(self, index: int) -> ShardCounts:
        """Make one shard, unless a worker that died thereafter had finished it."""
        plan, source, worker = self.loaded()
        counts = ShardCounts()

        def count(**added: Any) -> None:
            nonlocal counts
            counts = counts._replace(**{name: getattr(counts, name) + value for name, value in added.items()})

        if is_finished(plan.shard_file(index), plan.shard_digest(index)):
            return ShardCounts(pairs=len(plan.shard(index)))
        build_shard(plan, index, source, worker, count)
        return counts

    def retry(self, index: int, fill: str) -> int:
        """Take up what did not fit into memory; returns how many photographs."""
        plan, source, worker = self.loaded()
        if not is_finished(plan.shard_file(index), plan.shard_digest(index)):  # a worker died in the middle of it
            build_shard(plan, index, source, worker, lambda **_: None)
            return 0
        return retry_shard(plan, index, fill, source, worker, lambda **_: None)


# ---------------------------------------------------------------------------------------------------------------------
# The driver
# ---------------------------------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = build_parser(__doc__)
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument(
        "--address", metavar="ADDRESS", help="of a Ray cluster, or auto; default: one on this machine, for this run"
    )
    cluster.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="to ask for: a cluster that grows by itself grows to hold them; default: what it holds now",
    )
    cluster.add_argument("--cpus-per-worker", type=float, default=1.0, metavar="N", help="(%(default)g)")
    cluster.add_argument(
        "--gpus-per-worker", type=float, default=0.0, metavar="N", help="0 keeps a worker on the CPU (%(default)g)"
    )
    options = parser.parse_args(arguments)
    if options.workers is not None and options.workers < 1:
        parser.error(f"--workers must be at least 1; got {options.workers}")
    if options.cpus_per_worker <= 0 or options.gpus_per_worker < 0:
        parser.error(
            "--cpus-per-worker must be above 0 and --gpus-per-worker at least 0; "
            f"got {options.cpus_per_worker:g} and {options.gpus_per_worker:g}"
        )
    return options


def absolute(request: BuildRequest) -> BuildRequest:
    """Return the request with full paths: workers start in folders of their own."""
    paths = {"output": str(Path(request.output).resolve())}
    for name in ("photos", "weights"):  # else names of the Hub
        if Path(getattr(request, name)).exists():
            paths[name] = str(Path(getattr(request, name)).resolve())
    return dataclasses.replace(request, **paths)


def connect(address: str | None, threads: int) -> None:
    """Join the cluster, or start one on this machine; nothing is reported to anybody."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    environment = {
        "py_modules": [str(path) for path in OUR_CODE],
        "excludes": ["__pycache__"],
        "env_vars": {"OMP_NUM_THREADS": str(threads)},
    }
    dashboard = None if address else False
    ray.init(address or "local", include_dashboard=dashboard, runtime_env=environment, log_to_driver=False)


def start_workers(options: argparse.Namespace, request: BuildRequest, most: int) -> list[Any]:
    """Ask the cluster for workers, at most as many as there are shards to make."""
    resources = ray.cluster_resources()
    fitting = int(resources.get("CPU", 0) / options.cpus_per_worker)
    if options.gpus_per_worker:
        fitting = min(fitting, int(resources.get("GPU", 0) / options.gpus_per_worker))
    count = min(options.workers or max(fitting, 1), most)
    actor = ray.remote(
        num_cpus=options.cpus_per_worker,
        num_gpus=options.gpus_per_worker,
        max_restarts=-1,
        max_task_retries=SHARD_RETRIES,
    )(ShardWorker)
    return [actor.remote(request) for _ in range(count)]


def run_shards(
    workers: Sequence[Any], indices: Sequence[int], submit: Callable[[Any, int], Any], done: Callable[[Any], None]
) -> list[int]:
    """Give each worker a shard at a time until all are made.

    Workers that the cluster has no room for yet join in when it has.

    Args:
        workers: of `start_workers`.
        indices: of the shards.
        submit: (worker, index) -> reference of the result.
        done: gets each result.

    Returns:
        Indices of the shards whose workers died more than SHARD_RETRIES times.

    Raises:
        Whatever a worker raises.
    """
    waiting, lost = deque(indices), []
    at_work: dict[Any, tuple[Any, int | None]] = {worker.load.remote(): (worker, None) for worker in workers}
    while waiting or any(index is not None for _, index in at_work.values()):
        reference = ray.wait(list(at_work), num_returns=1)[0][0]
        worker, index = at_work.pop(reference)
        try:
            result = ray.get(reference)
            if index is not None:
                done(result)
        except RayTaskError as error:
            raise error.cause from error
        except (RayActorError, OutOfMemoryError):
            if index is None:
                raise
            lost.append(index)
        if waiting:
            index = waiting.popleft()
            at_work[submit(worker, index)] = (worker, index)
    return sorted(lost)


def run(options: argparse.Namespace) -> int:
    """Build; returns the exit code."""
    request = absolute(read_request(options))
    if options.retry_rejected:
        request = dataclasses.replace(request, fill=Plan(Path(request.output)).options.fill)
    plan = open_plan(request, open_source(request), build_options(request, load_pipeline(request, "cpu")))
    remove_leftovers(plan.output)
    unfinished = unfinished_shards(plan)
    if unfinished or options.retry_rejected:
        connect(options.address, plan.options.threads)
        try:
            lost = build_on_cluster(options, request, plan, unfinished)
        finally:
            ray.shutdown()
        if lost:
            print(
                f"{len(lost)} shards are missing, because their workers died more than {SHARD_RETRIES} times: "
                f"{lost[:10]}. The same command tries them again.",
                file=sys.stderr,
            )
            return 1
    return finish(plan, not unfinished and not options.retry_rejected, options.layout)


def build_on_cluster(
    options: argparse.Namespace, request: BuildRequest, plan: Plan, unfinished: list[int]
) -> list[int]:
    """Make the unfinished shards, then take up again what is asked for; returns the shards that could not be made."""
    workers = start_workers(options, request, plan.shard_count if options.retry_rejected else len(unfinished))
    print(f"{len(workers)} workers for {len(unfinished)} shards.")
    bar = ProgressBar(plan.photo_count, finished_photos(plan))

    def count(made: ShardCounts) -> None:
        bar(pairs=made.pairs, rejected=made.rejected, waited_s=made.waited_s / len(workers))

    lost = run_shards(workers, unfinished, lambda worker, index: worker.build.remote(index), count)
    bar.close()
    if options.retry_rejected and not lost:
        (plan.output / MANIFEST).unlink(missing_ok=True)
        taken: list[int] = []
        every = range(plan.shard_count)
        lost = run_shards(workers, every, lambda worker, index: worker.retry.remote(index, options.fill), taken.append)
        print(f"{sum(taken)} photographs taken up again with fill {options.fill!r}.")
    return lost


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit code 2 for options that cannot be followed, 1 where shards are missing."""
    options = parse_arguments(arguments)
    try:
        return run(options)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
