# SPDX-License-Identifier: Apache-2.0
"""Training samples from any mixture of stereo data sets, photographs and procedural scenes.

    --data sceneflow:/data/sceneflow:0.3 --data photos:/data/photographs:0.7 --data procedural:0.5

Nothing about the data is state. Which sample stands at (step, process, place in the batch) is a pure function of these
and the seed (`StatelessMixture`), and so is every random number of its augmentation. So a resumed run, another number
of loader workers or a batch that was loaded twice change nothing.

How training uses it:

    mixture = DataMixture(sources, seed=0, batch_size=8, crop_size=(512, 512), rank=rank, processes=processes)
    for batch in mixture.batches(first_step):            # on the CPU, loaded by worker processes
        batch = render_sources(batch, device)            # on the device, procedural scenes rendered there
        for kind, samples in batch.items(): ...          # kinds that this batch has no sample of are not in it
    print(describe_bad_samples(mixture.bad_samples))

A batch is a dict by kind; its samples together are batch_size many. n stands for the samples of a kind, H W for
crop_size. Images are uint8 in 0..255, `name` is a list of n strings:
    "stereo"      left_image, right_image [n,3,H,W]; left_disparity float32 [n,1,H,W], px of the crop, 0 where it is
                  not valid; valid_disparity_mask bool [n,1,H,W]; name.
    "procedural"  a list of SceneRequest; after `render_sources` the same tensors as "stereo", all valid.
    "photos"      photograph [n,3,H,W]; photograph_width int64 [n], px, of the whole photographs that the crops come
                  from; normalized_inverse_depth float32 [n,1,H,W], only where `read_inverse_depth` was given; name.
This module knows no network and no loss.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline_zerostereo import StereoImageProcessor
from training.augmentation import augment_for_fine_tuning, enlarge_to_fit, resize_sample
from training.data_sources import PROCEDURAL, DataSource
from training.disparity_readers import DataFileError
from training.procedural_scenes import render_scenes, scene_generator
from training.stereo_datasets import (
    CREStereo,
    FallingThings,
    SceneFlow,
    StereoDataset,
    TartanAir,
    VirtualKITTI2,
)

STEREO_KINDS: dict[str, type[StereoDataset]] = {
    "sceneflow": SceneFlow,
    "tartanair": TartanAir,
    "crestereo": CREStereo,
    "vkitti2": VirtualKITTI2,
    "fallingthings": FallingThings,
}
PHOTOS = "photos"
KINDS = (*STEREO_KINDS, PHOTOS, PROCEDURAL)
EXAMPLE_SOURCE = "photos:/data/photographs:0.5"
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif")
PHOTO_LONGEST_SIDE = 1024  # px: a crop of a larger photograph would show no more than a detail
UNREADABLE = (  # what Pillow's decoders and `StereoImageProcessor.preprocess` raise for a file
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
CACHED_ORDERS = 64  # permutations kept at hand; one per source and epoch

Loaded = TypeVar("Loaded")
ReadInverseDepth = Callable[[Path], Tensor]  # photograph's file -> [1,h,w] float in [0,1], of the whole photograph


# ---------------------------------------------------------------------------------------------------------------------
# What is mixed
# ---------------------------------------------------------------------------------------------------------------------


class Slot(NamedTuple):
    """What stands at one place of one batch: a source, which of its samples, and in which round through them."""

    source: int
    index: int
    epoch: int


def _seed_of(*parts: object) -> int:
    """Make a seed of 63 bits of anything that has a text."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@lru_cache(CACHED_ORDERS)
def epoch_order(seed: int, source: int, epoch: int, length: int) -> Tensor:
    """Give the order in which a source's samples come in one round: a permutation [length] of 0 ... length-1."""
    generator = torch.Generator().manual_seed(_seed_of("order", seed, source, epoch))
    return torch.randperm(length, generator=generator)


class StatelessMixture:
    """Says which sample stands where; a pure function of seed, step, process and place.

    The places of all steps and processes form one long row. The sources are spread over it as evenly as their weights
    allow: after any number of places, no source is more than its number of fellow sources away from its exact share.
    Each source then walks through its samples, in a new random order each round, without a repetition in a round.

    Args:
        lengths: samples of each source; None = endless, whose index counts up.
        weights: of each source, > 0.
        seed: decides the orders.
        batch_size: places in the batch of one process.
        processes: number of processes.

    Raises:
        ValueError: no source, a length below 1, a weight that is not > 0, or a number below 1.
    """

    def __init__(
        self,
        lengths: Sequence[int | None],
        weights: Sequence[float],
        *,
        seed: int,
        batch_size: int,
        processes: int = 1,
    ):
        if not lengths or len(lengths) != len(weights):
            raise ValueError(
                f"`lengths` and `weights` must have one number for each source; got {len(lengths)} and {len(weights)}."
            )
        for name, numbers in (("lengths", lengths), ("batch_size", [batch_size]), ("processes", [processes])):
            if any(number is not None and number < 1 for number in numbers):
                raise ValueError(f"`{name}` must be at least 1; got {list(numbers)}.")
        if not all(0 < weight < math.inf for weight in weights):
            raise ValueError(f"`weights` must be > 0; got {list(weights)}.")
        self.lengths, self.seed, self.batch_size, self.processes = tuple(lengths), seed, batch_size, processes
        exact = [Fraction(str(weight)) for weight in weights]  # 0.3 is three tenths
        # of the places that earlier sources leave, the share of each; the last one takes all
        self.shares = [weight / sum(exact[number:]) for number, weight in enumerate(exact)]

    def slot(self, step: int, rank: int, position: int) -> Slot:
        """Tell what stands at `position` of the batch of process `rank` in step `step`, all counted from 0.

        Raises:
            ValueError: a number is negative, or `rank` or `position` is too large.
        """
        for name, value, limit in (
            ("step", step, None),
            ("rank", rank, self.processes),
            ("position", position, self.batch_size),
        ):
            if value < 0 or (limit is not None and value >= limit):
                raise ValueError(f"`{name}` must be >= 0{'' if limit is None else f' and < {limit}'}; got {value}.")
        source, drawn = self._source_at((step * self.processes + rank) * self.batch_size + position)
        length = self.lengths[source]
        if length is None:
            return Slot(source, drawn, 0)
        epoch, place = divmod(drawn, length)
        return Slot(source, int(epoch_order(self.seed, source, epoch, length)[place]), epoch)

    def _source_at(self, place: int) -> tuple[int, int]:
        """Give the source of a place in the row, and how many places before it are that source's."""
        for source, share in enumerate(self.shares):
            before = _rounded(place * share)
            if _rounded((place + 1) * share) > before:
                return source, before
            place -= before  # places before this one that are left to the sources after
        raise AssertionError("the last source takes every place that is left")

    def candidates(self, slot: Slot) -> Iterator[int]:
        """Give a slot's sample, then those that stand in if it is bad: the rest of its round, in a circle."""
        length = self.lengths[slot.source]
        if length is None:
            yield slot.index
            return
        order = epoch_order(self.seed, slot.source, slot.epoch, length)
        place = int((order == slot.index).nonzero()[0, 0])
        for attempt in range(length):
            yield int(order[(place + attempt) % length])


def _rounded(number: Fraction) -> int:
    """Round to the nearest whole number, halves up: unlike round(), a function that never falls behind by a step."""
    return math.floor(number + Fraction(1, 2))


# ---------------------------------------------------------------------------------------------------------------------
# Sources
# ---------------------------------------------------------------------------------------------------------------------


class PhotographFolder(Dataset[dict[str, Any]]):
    """Photographs anywhere below a folder, of any format and mode that the pipeline takes, upright and in sRGB.

    Args:
        root: searched once, here; hidden files and folders are left out, linked folders below it are not entered.
        longest_side: px; larger photographs are reduced to it, smaller ones stay.
        read_inverse_depth: gives the inverse depth of a photograph, for example `PhotographDepth.read` of
            photograph_depth.py; None = samples have none.

    Attributes:
        names: paths below the root, sorted.

    Raises:
        FileNotFoundError: `root` is no folder, or holds no photograph.
        ValueError: `longest_side` is below 1.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        longest_side: int = PHOTO_LONGEST_SIDE,
        read_inverse_depth: ReadInverseDepth | None = None,
    ):
        self.root, self.longest_side, self.read_inverse_depth = Path(root), longest_side, read_inverse_depth
        if longest_side < 1:
            raise ValueError(f"`longest_side` must be at least 1 px; got {longest_side}.")
        if not self.root.is_dir():
            raise FileNotFoundError(f"`root` must be a folder of photographs; there is no folder {self.root}.")
        below = (path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())
        self.names = sorted(
            path.as_posix()
            for path in below
            if path.suffix.lower() in PHOTO_SUFFIXES and not any(part.startswith(".") for part in path.parts)
        )
        if not self.names:
            wanted = ", ".join(f"*{suffix}" for suffix in PHOTO_SUFFIXES)
            raise FileNotFoundError(f"`root` must hold photographs; {self.root} has 0 files of {wanted} below it.")

    def __len__(self) -> int:
        """Count the photographs."""
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one photograph.

        Returns:
            photograph: uint8 [3,H,W], sRGB, its EXIF orientation applied, at most `longest_side` px long.
            normalized_inverse_depth: float32 [1,H,W]; only where there is a `read_inverse_depth`.
            name: path below the root.

        Raises:
            DataFileError: the file is gone, or no photograph that the pipeline takes.
            ImportError: a HEIC file, and pillow-heif is not installed.
        """
        path = self.root / self.names[index]
        try:
            with StereoImageProcessor.open(path) as opened:
                photograph = StereoImageProcessor.preprocess(opened, path.name)[0]  # [3,H,W] float
        except UNREADABLE as error:
            raise DataFileError(path, f"must be a photograph; it cannot be used ({error})") from error
        height, width = photograph.shape[-2:]
        factor = min(1.0, self.longest_side / max(height, width))
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        maps = {"photograph": photograph.mul(255).round().to(torch.uint8)}
        if self.read_inverse_depth is not None:
            depth = self.read_inverse_depth(path).float()
            maps["normalized_inverse_depth"] = resize_sample({"depth": depth}, (height, width))["depth"]
        return resize_sample(maps, size) | {"name": self.names[index]}


class SceneRequest(NamedTuple):
    """Procedural scenes that are yet to be rendered: one draw of `count` scenes by (seed, first_index)."""

    seed: int
    first_index: int
    count: int
    height: int
    width: int


def render_request(request: SceneRequest, device: str | torch.device) -> dict[str, Any]:
    """Render what a request names, on the device, as samples of the form of stereo_datasets.py, stacked.

    Equal requests give equal bits on one machine and device. Scenes of one request are drawn together, so the same
    index in a request of another count is another scene.
    """
    generator = scene_generator(request.seed, request.first_index, device)
    scenes = render_scenes(request.count, request.height, request.width, generator=generator)
    images = [image.mul(255).round().to(torch.uint8) for image in scenes[:2]]
    return {
        "left_image": images[0],
        "right_image": images[1],
        "left_disparity": scenes.left_disparity,
        "valid_disparity_mask": torch.ones_like(scenes.left_disparity, dtype=torch.bool),
        "name": [f"{request.seed}/{request.first_index + number}" for number in range(request.count)],
    }


def _join(samples: Sequence[Mapping[str, Any]], join: Callable[[list[Tensor]], Tensor]) -> dict[str, Any]:
    """Join tensors of equal name by `join`, and lists of names."""
    joined: dict[str, Any] = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        if isinstance(first, Tensor):
            joined[name] = join(values)
        else:
            joined[name] = [text for value in values for text in ([value] if isinstance(value, str) else value)]
    return joined


def render_sources(batch: Mapping[str, Any], device: str | torch.device) -> dict[str, Any]:
    """Bring a batch of `DataMixture.batches` to the training device and render its procedural scenes there.

    Returns:
        a new dict; see the top of this file.
    """
    result: dict[str, Any] = {}
    for kind, samples in batch.items():
        if kind == PROCEDURAL:
            result[kind] = _join([render_request(request, device) for request in samples], torch.cat)
        else:
            result[kind] = {
                name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
                for name, value in samples.items()
            }
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------------------


class LoadedStep(NamedTuple):
    """What a worker hands over: a batch, the bad samples that others stand in for, or the error that ends the run."""

    batch: dict[str, Any]
    bad_samples: list[DataFileError]
    error: DataFileError | None = None


class _Steps(Dataset[Any]):
    """What `load_step` gives, by step; runs in the loader's workers."""

    def __init__(self, load_step: Callable[[int], Any]):
        self.load_step = load_step

    def __getitem__(self, step: int) -> Any:
        return self.load_step(step)


def load_steps(load_step: Callable[[int], Loaded], first_step: int, workers: int) -> Iterator[Loaded]:
    """Give load_step(first_step), load_step(first_step + 1), ... without end, in order, loaded ahead by workers.

    Reads and changes no global random state. What is given has an attribute `error`, which is raised where it is not
    None: an error of a worker that is raised there would come as another one.

    Args:
        load_step: loads the batch of a step; a method of something that can be pickled.
        first_step: number of the first one.
        workers: loader processes; 0 = load in this one.
    """
    loader = DataLoader(
        _Steps(load_step),
        batch_size=None,
        sampler=itertools.count(first_step),  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # the loader draws a seed for its workers; not from the global state
    )
    for loaded in loader:
        if loaded.error is not None:
            raise loaded.error
        yield loaded


def check_loading(workers: int, crop_size: tuple[int, int], rank: int, processes: int) -> None:
    """Refuse what no process could load by, with a ValueError."""
    if workers < 0 or min(crop_size) < 1 or not 0 <= rank < processes:
        raise ValueError(
            "`workers` must be >= 0, `crop_size` >= 1 px and `rank` in 0 ... processes-1; "
            f"got {workers}, {crop_size}, and {rank} of {processes}."
        )


class DataMixture:
    """Loads the batches of one process.

    Args:
        sources: what is mixed.
        seed: decides order, crops and colours.
        batch_size: samples in the batch of one process.
        crop_size: height and width of every sample, px.
        rank: number of this process.
        processes: number of processes.
        workers: loader processes; 0 = load in this one. The samples are the same.
        on_bad_sample: "raise" ends the run at a sample that cannot be read; "skip" puts the next one of its source in
            its place and notes it in `bad_samples`. Either way a folder that lacks files is an error at once.
        read_inverse_depth: see `PhotographFolder`.

    Attributes:
        bad_samples: for each bad file of the batches handed out since the start of this process, what is wrong with
            it and how often it was replaced; in a run of several processes each has its own.

    Raises:
        ValueError: an option's rule is broken.
        FileNotFoundError: a folder of a source is missing, empty or incomplete.
    """

    def __init__(
        self,
        sources: Sequence[DataSource],
        *,
        seed: int,
        batch_size: int,
        crop_size: tuple[int, int],
        rank: int = 0,
        processes: int = 1,
        workers: int = 0,
        on_bad_sample: Literal["raise", "skip"] = "raise",
        read_inverse_depth: ReadInverseDepth | None = None,
    ):
        if on_bad_sample not in ("raise", "skip"):
            raise ValueError(f'`on_bad_sample` must be "raise" or "skip"; got {on_bad_sample!r}.')
        check_loading(workers, crop_size, rank, processes)
        self.sources, self.seed, self.crop_size = tuple(sources), seed, crop_size
        self.rank, self.workers, self.on_bad_sample = rank, workers, on_bad_sample
        self.datasets = [open_source(source, read_inverse_depth) for source in sources]
        self.order = StatelessMixture(
            [None if dataset is None else len(dataset) for dataset in self.datasets],
            [source.weight for source in sources],
            seed=seed,
            batch_size=batch_size,
            processes=processes,
        )
        self.bad_samples: dict[str, tuple[str, int]] = {}

    def batches(self, first_step: int = 0) -> Iterator[dict[str, Any]]:
        """Give the batches of steps first_step, first_step + 1, ... without end; see the top of this file.

        Reads and changes no global random state.

        Raises:
            DataFileError: a sample cannot be read and `on_bad_sample` is "raise", or no sample of a source can.
        """
        for loaded in load_steps(self.load_step, first_step, self.workers):
            for bad in loaded.bad_samples:
                self.bad_samples[bad.path] = (bad.problem, self.bad_samples.get(bad.path, ("", 0))[1] + 1)
            yield loaded.batch

    def load_step(self, step: int) -> LoadedStep:
        """Load the batch of one step; what `batches` has the workers do."""
        slots = [self.order.slot(step, self.rank, position) for position in range(self.order.batch_size)]
        samples: dict[str, list[dict[str, Any]]] = {}
        bad_samples: list[DataFileError] = []
        for slot in slots:
            kind = self.sources[slot.source].kind
            if kind == PROCEDURAL:
                continue
            try:
                sample = self._augment(self._read(slot, bad_samples), slot)
            except DataFileError as error:
                return LoadedStep({}, bad_samples, error)
            samples.setdefault("stereo" if kind in STEREO_KINDS else kind, []).append(sample)
        batch: dict[str, Any] = {kind: _join(parts, torch.stack) for kind, parts in samples.items()}
        requests = self._scene_requests(slots)
        return LoadedStep(batch | ({PROCEDURAL: requests} if requests else {}), bad_samples)

    def _scene_requests(self, slots: Sequence[Slot]) -> list[SceneRequest]:
        """Collect the procedural places of a batch: their indices are consecutive within a source."""
        requests = []
        for number in sorted({slot.source for slot in slots if self.datasets[slot.source] is None}):
            indices = [slot.index for slot in slots if slot.source == number]
            requests.append(
                SceneRequest(_seed_of("scenes", self.seed, number), indices[0], len(indices), *self.crop_size)
            )
        return requests

    def _read(self, slot: Slot, bad_samples: list[DataFileError]) -> dict[str, Any]:
        """Read the sample of a slot, or the first one after it that can be read; notes the bad ones."""
        dataset = self.datasets[slot.source]
        assert dataset is not None  # procedural scenes are not read
        for index in self.order.candidates(slot):
            try:
                return dataset[index]
            except DataFileError as error:
                if self.on_bad_sample == "raise":
                    raise
                bad_samples.append(error)
        raise DataFileError(dataset.root, f"must hold a sample that can be read; the last: {bad_samples[-1]}")

    def _augment(self, sample: dict[str, Any], slot: Slot) -> dict[str, Any]:
        """Crop a sample and change its colours; the draws belong to the slot, whatever sample stands in it."""
        generator = torch.Generator().manual_seed(_seed_of("augmentation", self.seed, *slot))
        enlarged = enlarge_to_fit(sample, self.crop_size)
        augmented = augment_for_fine_tuning(enlarged, self.crop_size, generator=generator)
        if "photograph" in enlarged:
            augmented["photograph_width"] = torch.tensor(enlarged["photograph"].shape[-1])
        return augmented


def open_source(
    source: DataSource, read_inverse_depth: ReadInverseDepth | None = None
) -> StereoDataset | PhotographFolder | None:
    """Open the folder of a source; None for procedural scenes, which have none.

    Raises:
        FileNotFoundError: the folder is missing, empty or incomplete.
    """
    if source.root is None:
        return None
    if source.kind == PHOTOS:
        return PhotographFolder(source.root, read_inverse_depth=read_inverse_depth)
    return STEREO_KINDS[source.kind](Path(source.root))


def describe_bad_samples(bad_samples: Mapping[str, tuple[str, int]]) -> str:
    """List the bad samples of a run, one file a line, after a line that counts them; "" where there are none."""
    if not bad_samples:
        return ""
    times = sum(count for _, count in bad_samples.values())
    lines = [f"  {path}: {problem} ({count} x)" for path, (problem, count) in sorted(bad_samples.items())]
    return "\n".join([f"{times} samples were replaced because of {len(bad_samples)} bad files:", *lines])
