# SPDX-License-Identifier: Apache-2.0
"""The `datasets` builder class: photographs in, a data set of stereo pairs out, without a command line.

    from datasets_builder.stereo_pairs import StereoPairs

    builder = StereoPairs(photos="photos/", output="pairs", seed=3)
    stream = builder.as_streaming_dataset(split="train")                 # reads the finished shards where they are
    builder.download_and_prepare()                                       # copies them to the library's cache
    pairs = builder.as_dataset(split="train")
    builder.download_and_prepare("prepared", file_format="parquet")      # copies them to a folder of Parquet files

The pairs are made in OUTPUT, a folder of the engine's own that outlives an interrupted call: the library deletes
what it has not finished. The next call goes on there, and so does `python -m datasets_builder.generate_pairs` with the
same options. Copies hold the rows twice; OUTPUT alone is a data set that `load_dataset` reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import torch
from datasets.builder import Key

from datasets_builder.building import ProgressBar, build_shards, make_worker
from datasets_builder.manifest import MANIFEST, unfinished_shards, write_manifest
from datasets_builder.options import (
    BuildRequest,
    build_options,
    finished_photos,
    load_pipeline,
    open_plan,
    open_source,
)
from datasets_builder.plan import Plan
from datasets_builder.schema import FEATURES, LABEL_FEATURES
from datasets_builder.shards import remove_leftovers


@dataclass(kw_only=True)
class StereoPairsConfig(datasets.BuilderConfig, BuildRequest):
    """What a build is asked for: every attribute of `BuildRequest`; `photos` and `output` must be given."""


class StereoPairs(datasets.ArrowBasedBuilder):
    """Makes stereo pairs where they are missing and hands out the finished shards."""

    BUILDER_CONFIG_CLASS = StereoPairsConfig
    config: StereoPairsConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=LABEL_FEATURES if self.config.labels_only else FEATURES)

    def download_and_prepare(self, *arguments: Any, num_proc: int | None = None, **keywords: Any) -> None:
        """Build what is missing and write it as the library's own data set; see `datasets.DatasetBuilder`.

        Raises:
            ValueError: `num_proc` above 1, another process is at work on shards of `output`, or options that cannot
                be followed.
            FileNotFoundError: there is no photograph.
        """
        if num_proc is not None and num_proc > 1:
            raise ValueError(
                f"`num_proc` must be 1 or None; got {num_proc}. The library forks its workers, and a forked process "
                "waits for ever for the threads of torch. Run several of `python -m datasets_builder.generate_pairs` "
                "on `output` instead."
            )
        super().download_and_prepare(*arguments, **keywords)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        plan = build(self.config)
        files = [str(plan.shard_file(index)) for index in range(plan.shard_count)]
        return [datasets.SplitGenerator(name=str(datasets.Split.TRAIN), gen_kwargs={"files": files})]

    def _generate_shards(self, files: list[str]) -> Iterator[str]:
        yield from files

    def _generate_tables(self, files: list[str]) -> Iterator[tuple[Key, pyarrow.Table]]:
        for file_index, path in enumerate(files):
            with pyarrow.parquet.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    yield Key(file_index, group), file.read_row_group(group)


def build(request: BuildRequest) -> Plan:
    """Make every shard that is not finished, and the manifest where it is missing.

    Returns:
        The plan, all of whose shards are there.

    Raises:
        FileNotFoundError: there is no photograph.
        ValueError: options that cannot be followed, or another process is at work on shards.
    """
    source = open_source(request)
    pipe = load_pipeline(request, request.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    plan = open_plan(request, source, build_options(request, pipe))
    remove_leftovers(plan.output)
    bar = ProgressBar(plan.photo_count, finished_photos(plan))
    build_shards(plan, source, make_worker(pipe, plan.options), bar)
    bar.close()
    elsewhere = unfinished_shards(plan)
    if elsewhere:
        raise ValueError(
            f"`output` must be complete before it is read; {len(elsewhere)} shards of {plan.output} are in the hands "
            "of other processes. Wait for them and call again."
        )
    if not (Path(request.output) / MANIFEST).is_file():
        write_manifest(plan)
    return plan
