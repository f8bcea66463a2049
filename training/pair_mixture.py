# SPDX-License-Identifier: Apache-2.0
"""Batches for the training of stereo networks from any mixture of generated pairs, true pairs and procedural scenes.

    --data pairs:out/pairs:0.6 --data hub:ORG/PAIRS@REVISION:0.3 --data procedural:0.1

Nothing about the data is state, as in data_mixture.py, whose order this is: which sample stands at (step, process,
place in the batch) and every draw of its augmentation are functions of these and the seed. So a resumed run, another
number of loader workers or a batch that was loaded twice change nothing. Rows of the Hub are no exception: they are
fetched by their numbers.

    mixture = PairMixture(sources, seed=0, batch_size=8, crop_size=(384, 512), rank=rank, processes=processes)
    for loaded in mixture.batches(first_step):           # on the CPU, read and augmented by worker processes
        batch = mixture.finish(loaded, device)           # scenes are rendered and augmented on the device

A finished batch is a dict of tensors [B,C,*crop_size] by the names of pair_dataset.py and stereo_augmentation.py, and
`name`, a list. This module knows no network and no loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.data_mixture import (
    STEREO_KINDS,
    SceneRequest,
    StatelessMixture,
    check_loading,
    load_steps,
    render_request,
)
from training.data_sources import PROCEDURAL, DataSource
from training.disparity_readers import DataFileError
from training.pair_dataset import (
    MfsPairs,
    ParquetPairs,
    TruePairs,
    open_hub_pairs,
    open_parquet_folder,
    trust_pair,
)
from training.run import step_generator
from training.stereo_augmentation import augment_pair
from training.weather import Views, spoil_by_weather

PAIRS, HUB, MFS35K = "pairs", "hub", "mfs35k"
KINDS = (PAIRS, HUB, MFS35K, *STEREO_KINDS, PROCEDURAL)
EXAMPLE_SOURCE = "pairs:out/pairs:0.5"
SCENE_MARGIN_PX = 16  # that scenes are rendered larger than a crop, on each axis: they can be scaled down too
KEPT_ORDERS = 2  # of each source: the round that is on, and the next one

Pairs = ParquetPairs | MfsPairs | TruePairs


def open_source(source: DataSource) -> Pairs | None:
    """Open a source; None for procedural scenes, which have nothing to open.

    Raises:
        FileNotFoundError: it is missing, empty or incomplete.
        ValueError: it holds something else.
    """
    if source.root is None:
        return None
    if source.kind == HUB:
        return open_hub_pairs(source.root)
    if source.kind == PAIRS:
        return open_parquet_folder(source.root)
    if source.kind == MFS35K:
        return MfsPairs(source.root)
    return TruePairs(STEREO_KINDS[source.kind](Path(source.root)))


class Place(NamedTuple):
    """What stands at one place of one batch: a source, which of its samples, and in which round through them."""

    source: int
    index: int
    epoch: int


class LoadedPairs(NamedTuple):
    """What a worker hands over: augmented samples, scenes that are yet to be rendered, or the error of a sample."""

    samples: list[dict[str, Any]]
    requests: list[tuple[SceneRequest, list[Place]]]
    error: DataFileError | None = None


class PairMixture:
    """Loads the batches of one process.

    Args:
        sources: what is mixed.
        seed: decides orders and augmentation.
        batch_size: samples in the batch of one process.
        crop_size: height and width of every sample, px.
        weather: show half of the samples in bad weather or light, in the right view or in both; None = none.
        rank: number of this process.
        processes: number of processes.
        workers: loader processes; 0 = load in this one. The samples are the same.

    Raises:
        ValueError: an option's rule is broken, or a source holds something else.
        FileNotFoundError: a source is missing, empty or incomplete.
    """

    def __init__(
        self,
        sources: Sequence[DataSource],
        *,
        seed: int,
        batch_size: int,
        crop_size: tuple[int, int],
        weather: Views | None = None,
        rank: int = 0,
        processes: int = 1,
        workers: int = 0,
    ):
        check_loading(workers, crop_size, rank, processes)
        self.sources, self.seed, self.crop_size = tuple(sources), seed, crop_size
        self.weather: Views | None = weather
        self.rank, self.workers = rank, workers
        # each source counts its draws without end; `place` makes rounds of them, whose order is the source's own
        self.shares = StatelessMixture(
            [None] * len(sources),
            [source.weight for source in sources],
            seed=seed,
            batch_size=batch_size,
            processes=processes,
        )
        self.datasets = [open_source(source) for source in sources]
        self._orders: dict[tuple[int, int], Tensor] = {}

    def identity(self) -> dict[str, str]:
        """Say of each source what was opened: how many samples, and of the Hub which commit."""
        return {
            str(source): "without end" if dataset is None else f"{len(dataset)} samples of {dataset.root}"
            for source, dataset in zip(self.sources, self.datasets, strict=True)
        }

    def place(self, step: int, position: int) -> Place:
        """Tell what stands at `position` of this process's batch of step `step`, both counted from 0."""
        source, drawn, _ = self.shares.slot(step, self.rank, position)
        dataset = self.datasets[source]
        if dataset is None:
            return Place(source, drawn, 0)
        epoch, number = divmod(drawn, len(dataset))
        return Place(source, int(self._order(source, epoch, dataset)[number]), epoch)

    def _order(self, source: int, epoch: int, dataset: Pairs) -> Tensor:
        if (source, epoch) not in self._orders:
            mine = [key for key in self._orders if key[0] == source]
            for key in mine[: len(mine) - KEPT_ORDERS + 1]:
                del self._orders[key]
            generator = step_generator(self.seed, epoch, source, purpose="order")
            self._orders[source, epoch] = dataset.order(generator)
        return self._orders[source, epoch]

    def batches(self, first_step: int = 0) -> Iterator[LoadedPairs]:
        """Give what `finish` takes for steps first_step, first_step + 1, ... without end.

        Reads and changes no global random state.

        Raises:
            DataFileError: a sample cannot be read.
        """
        return load_steps(self.load_step, first_step, self.workers)

    def load_step(self, step: int) -> LoadedPairs:
        """Read and augment the samples of one step; what `batches` has the workers do."""
        places = [self.place(step, position) for position in range(self.shares.batch_size)]
        samples = []
        for place in places:
            dataset = self.datasets[place.source]
            if dataset is None:
                continue
            try:
                samples.append(self._augment(dataset[place.index], place))
            except DataFileError as error:
                return LoadedPairs([], [], error)
        return LoadedPairs(samples, self._scene_requests(places))

    def _scene_requests(self, places: Sequence[Place]) -> list[tuple[SceneRequest, list[Place]]]:
        """Collect the procedural places of a batch: their indices are consecutive within a source."""
        requests = []
        height, width = (length + SCENE_MARGIN_PX for length in self.crop_size)
        for source in sorted({place.source for place in places if self.datasets[place.source] is None}):
            mine = [place for place in places if place.source == source]
            seed = step_generator(self.seed, source, 0, purpose="scenes").initial_seed()
            requests.append((SceneRequest(seed, mine[0].index, len(mine), height, width), mine))
        return requests

    def _augment(self, sample: dict[str, Any], place: Place) -> dict[str, Any]:
        """Augment a sample by draws that belong to its place."""
        generator = step_generator(self.seed, place.index, place.epoch, purpose=f"augmentation {place.source}")
        if self.weather is not None:
            sample = spoil_by_weather(sample, self.weather, generator=generator)
        return augment_pair(sample, self.crop_size, generator=generator)

    def finish(self, loaded: LoadedPairs, device: str | torch.device) -> dict[str, Any]:
        """Bring a batch to the training device, render and augment its scenes there, and stack all samples.

        Returns:
            tensors [B,C,*crop_size] by name, and `name`, a list; see the top of this file.
        """
        samples = [{name: _move(value, device) for name, value in sample.items()} for sample in loaded.samples]
        for request, places in loaded.requests:
            scenes = render_request(request, device)
            for number, place in enumerate(places):
                pair = {name: value[number] for name, value in scenes.items()}
                samples.append(self._augment(trust_pair(pair), place))
        return {
            name: torch.stack([sample[name] for sample in samples])
            if isinstance(first, Tensor)
            else [sample[name] for sample in samples]
            for name, first in samples[0].items()
        }


def _move(value: Any, device: str | torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
