# SPDX-License-Identifier: Apache-2.0
"""From an uploaded file to a stereo pair: reading within limits, running the networks, remembering each user's result.

Knows the pipeline only by the object that is handed in, and no page. One call runs at a time, because schedulers and
the pipeline's progress are one per process.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.metadata
import io
import os
import platform
import secrets
import shutil
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

MAX_FILE_BYTES = 20_000_000
MAX_PIXELS = 50_000_000  # of an upload, read from its header, before anything is decoded
MIN_SIDE, MAX_SIDE = 32, 4096  # px of the picture that is worked on
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, PIL.Image.DecompressionBombError)
DAMAGED = (*UNREADABLE, TypeError, KeyError, IndexError, OverflowError)  # what decoders raise for broken directories
# Only these are tried: Pillow knows more, and hands one of them (EPS) to another program.
KEPT_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "MPO", "AVIF")
DEPTH_MAP_FORMATS = (*KEPT_FORMATS, "PPM")  # PFM is read as one
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}  # where it is not the format's name
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # ISO/IEC 23008-12
ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
TARGET_VIEWS, FILLS = ("right", "left", "both"), ("whole", "tiled")
REPORTED_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "pillow")
LONGEST_LOAN_S = 120  # of a shared GPU for one call
FETCH_S, MAX_REPLACED = 120.0, 20  # how long files of replaced results stay, and of how many results
DEPTH_FILE = "inverse_depth.tiff"


class RefusedError(ValueError):
    """A request that cannot be answered; the message is for the person who asked."""


class CancelledError(Exception):
    """The user gave up; the device is free again."""


# --- what is asked for ---


class Photo(NamedTuple):
    """A photograph that was read within the limits.

    Attributes:
        image: as Pillow decodes `content`.
        content: bytes of the file that is worked on: the upload's own, or those of a lossless PNG where the upload
            was scaled down or cannot be read without extra packages.
        file_name: name that the file gets beside the results.
        notes: what a user should know of it.
    """

    image: PIL.Image.Image
    content: bytes
    file_name: str
    notes: list[str]


@dataclass(frozen=True)
class Settings:
    """What decides a pair beside the photograph.

    Attributes:
        strength_percent: largest disparity in percent of the width, in (0, 100].
        strength_px: the same in px, used instead where above 0.
        target_view: "right", "left" or "both".
        fill: "whole" or "tiled".
        steps: denoising steps, at least 1.
        seed: of the noise, 0 to 2^63 - 1.
        largest_side: px; larger photographs are scaled down.

    Raises:
        RefusedError: a value outside its range.
    """

    strength_percent: float
    strength_px: float
    target_view: str
    fill: str
    steps: int
    seed: int
    largest_side: int

    def __post_init__(self):
        """Refuse values outside their range, in the words of the page."""
        for passes, rule, value in (
            (
                0 < self.strength_percent <= 100,
                "The depth strength must lie in (0, 100] percent",
                self.strength_percent,
            ),
            (self.strength_px >= 0, "The depth strength in px must be 0 (unused) or more", self.strength_px),
            (self.target_view in TARGET_VIEWS, f"The new view must be one of {TARGET_VIEWS}", self.target_view),
            (self.fill in FILLS, f"The way to fill must be one of {FILLS}", self.fill),
            (_is_whole(self.steps, 1, 1000), "The steps must be a whole number from 1 to 1000", self.steps),
            (_is_whole(self.seed, 0, 2**63 - 1), "The seed must be a whole number from 0 to 2^63 - 1", self.seed),
            (
                _is_whole(self.largest_side, MIN_SIDE, MAX_SIDE),
                f"The largest side must be a whole number from {MIN_SIDE} to {MAX_SIDE} px",
                self.largest_side,
            ),
        ):
            if not passes:
                raise RefusedError(f"{rule}; got {value!r}.")

    def strength(self) -> dict[str, float]:
        """Arguments of the pipeline that say how strong the depth is."""
        if self.strength_px > 0:
            return {"max_disparity_px": self.strength_px}
        return {"disparity_scale": self.strength_percent / 100}


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


# --- reading ---


def open_limited(path: str | Path, what: str, formats: tuple[str, ...] = KEPT_FORMATS) -> PIL.Image.Image:
    """Open an image file and refuse it by its header, before anything is decoded.

    Args:
        path: file of the upload.
        what: how messages call it, "photograph" or "depth map".
        formats: that are tried.

    Returns:
        The image, not decoded yet.

    Raises:
        RefusedError: too many bytes or pixels, a side too short, or no image of these formats.
    """
    size = os.path.getsize(path)
    if size > MAX_FILE_BYTES:
        raise RefusedError(
            f"The {what} must have at most {MAX_FILE_BYTES // 10**6} MB; got {size / 1e6:.1f} MB. Save it smaller."
        )
    try:
        image = PIL.Image.open(path, formats=formats)
    except DAMAGED as error:
        if isinstance(error, PIL.Image.DecompressionBombError):
            raise RefusedError(
                f"The {what} must have at most {MAX_PIXELS // 10**6} megapixels; got many more. Scale it down."
            ) from error
        raise RefusedError(
            f"The {what} must be an image file (JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF); got {_name_unreadable(path)}."
        ) from error
    if image.width * image.height > MAX_PIXELS:
        raise RefusedError(
            f"The {what} must have at most {MAX_PIXELS // 10**6} megapixels; "
            f"got {image.width} x {image.height} px. Scale it down."
        )
    if min(image.size) < MIN_SIDE:
        raise RefusedError(
            f"The {what} must have at least {MIN_SIDE} px a side; got {image.width} x {image.height} px."
        )
    return image


def _name_unreadable(path: str | Path) -> str:
    """Say what a file is that Pillow does not open, with the cure where there is one."""
    with open(path, "rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:] in HEIC_BRANDS:
        return (
            "a HEIC photograph. Export it as JPEG, or let the phone take JPEGs "
            "(iPhone: Settings, Camera, Formats, Most Compatible)"
        )
    return "a file that is none"


def decode(image: PIL.Image.Image, what: str) -> None:
    """Decode an opened image in place.

    Raises:
        RefusedError: the file ends early or is damaged.
    """
    try:
        image.load()
    except DAMAGED as error:
        raise RefusedError(f"The {what} must be a whole file; got a damaged one ({error}).") from error


def count_frames(image: PIL.Image.Image) -> int:
    """Return how many frames a file says it has; 1 where what follows the first is damaged."""
    try:
        return getattr(image, "n_frames", 1)
    except DAMAGED:
        return 1


def read_photo(path: str | Path | None, processor: Any, largest_side: int) -> Photo:
    """Read an uploaded photograph.

    Args:
        path: file of the upload, None where there is none.
        processor: `pipe.image_processor`, which knows orientation, colour profiles and transparency.
        largest_side: px; a larger photograph is scaled down, which is noted.

    Returns:
        The photograph and the bytes to work on.

    Raises:
        RefusedError: no file, a file outside the limits, a damaged file, or pixels whose range is not known.
    """
    if path is None:
        raise RefusedError("Choose a photograph first: drop a file, paste one, or take a picture.")
    image = open_limited(path, "photograph")
    notes = []
    frames = count_frames(image)
    if frames > 1 and image.format != "MPO":
        notes.append(f"The file has {frames} frames; the first one is used.")
    decode(image, "photograph")
    if image.mode in ALPHA_MODES and np.asarray(image.convert("RGBA").getchannel("A")).min() < 255:
        notes.append("The photograph is transparent in places; it is put on white.")
    try:
        loaded = processor.load(image, "photograph")  # pixels [1,3,H,W]
    except ValueError as error:
        raise RefusedError(f"This photograph cannot be used: {error}") from error
    height, width = loaded.pixels.shape[-2:]
    image_format = str(image.format)
    if max(width, height) <= largest_side and image_format in KEPT_FORMATS:
        suffix = SUFFIXES.get(image_format, f".{image_format.lower()}")
        return Photo(image, Path(path).read_bytes(), f"photo_as_used{suffix}", notes)
    picture = processor.postprocess(loaded.pixels, "pil", loaded.icc_profiles)[0]
    profile = picture.info.get("icc_profile")
    if max(width, height) > largest_side:
        share = largest_side / max(width, height)
        scaled = (round(width * share), round(height * share))
        if min(scaled) < MIN_SIDE:
            raise RefusedError(
                f"The photograph must have at least {MIN_SIDE} px a side once its larger one is scaled to "
                f"{largest_side} px (see Advanced); got {width} x {height} px, which gives {scaled[0]} x {scaled[1]}."
            )
        picture = picture.resize(scaled, PIL.Image.Resampling.LANCZOS)
        notes.append(f"Scaled down from {width} x {height} to {scaled[0]} x {scaled[1]} px (see Advanced).")
    file = io.BytesIO()
    picture.save(file, "PNG", icc_profile=profile)
    return Photo(PIL.Image.open(file), file.getvalue(), "photo_as_used.png", notes)


def upright_size(image: PIL.Image.Image) -> tuple[int, int]:
    """Width and height after the EXIF orientation."""
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def read_depth_map(path: str | Path | None, width: int, height: int) -> np.ndarray | None:
    """Read a depth map of the user's own.

    Args:
        path: image file, larger = nearer, any scale: 8 or 16-bit grey, float TIFF, PFM; colour counts as grey. None
            where there is none.
        width: of the photograph in px.
        height: of the photograph in px.

    Returns:
        [H,W] float32, finite, of the photograph's size; a map of another size with the same shape is interpolated.
        None where there is none.

    Raises:
        RefusedError: a file outside the limits or damaged, another shape, or values that are not finite.
    """
    if path is None:
        return None
    image = open_limited(path, "depth map", DEPTH_MAP_FORMATS)
    decode(image, "depth map")
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode not in ("L", "I", "F") and not image.mode.startswith("I;16"):
        image = image.convert("L")
    values = np.asarray(image).astype(np.float32)  # [H,W]
    if not np.isfinite(values).all():
        raise RefusedError(
            f"The depth map must be finite; got {int((~np.isfinite(values)).sum())} values that are not."
        )
    if image.size != (width, height):
        if abs(image.width * height - image.height * width) > max(width, height, *image.size):
            raise RefusedError(
                f"The depth map must have the shape of the photograph, {width} x {height} px; "
                f"got {image.width} x {image.height} px."
            )
        resized = PIL.Image.fromarray(values).resize((width, height), PIL.Image.Resampling.BILINEAR)
        values = np.asarray(resized).astype(np.float32)
    return values


# --- running the networks ---


class Depth(NamedTuple):
    """What the depth network says of one photograph.

    Attributes:
        inverse_depth: [H,W] float32 in [0,1], larger = nearer.
        confidence: [H,W] float32 in [0,1].
        agreement: mean of the flip agreement, in [0,1].
    """

    inverse_depth: np.ndarray
    confidence: np.ndarray
    agreement: float


class Stage(NamedTuple):
    """A part of the work that is done: the depth, or a pair (a preview, or the result)."""

    depth: Depth | None
    pair: Any
    is_preview: bool


def describe_step(done: int, total: int, elapsed_s: float) -> str:
    """Say which denoising step is done and how long the rest will take."""
    if done == 0:
        return f"Filling the holes: step 1 of {total}"
    rest_s = elapsed_s / done * (total - done)
    return f"Filling the holes: step {done} of {total}, about {rest_s:.0f} s left"


def gpu_seconds(
    image: PIL.Image.Image, inverse_depth: np.ndarray | None, settings: Settings, cancel_file: Path
) -> int:
    """Estimate how long a call may hold a shared GPU, in s: a guess on the safe side, by megapixels and steps."""
    megapixels = image.width * image.height / 1e6
    per_step = 0.4 * (megapixels if settings.fill == "tiled" else min(megapixels, 1.0))
    views = 2 if settings.target_view == "both" else 1
    return round(15 + 2 * megapixels + views * settings.steps * per_step)


class Studio:
    """Runs a loaded pipeline, one call at a time.

    Args:
        pipe: the pipeline.
        weights: folder or Hub id that it was loaded from, as one would name it; printed in the parameters.
        source: Python arguments of `from_pretrained` that load the same weights elsewhere; None = `weights`.
        report: called as report(share of the work done, what is being done).
        on_device: decorator that lends a device to a generator function, such as `spaces.GPU`.
        longest_loan_s: calls that may take longer are refused before they begin; None = none are.
    """

    def __init__(
        self,
        pipe: Any,
        weights: str,
        source: str | None = None,
        report: Callable[[float, str], Any] = lambda share, text: None,
        on_device: Callable[..., Any] | None = None,
        longest_loan_s: int | None = None,
    ):
        self.pipe, self.weights, self._report = pipe, weights, report
        self.source, self._longest_loan_s = source or repr(weights), longest_loan_s
        self.default_steps: int = pipe.config.default_num_inference_steps
        self._lock = threading.Lock()
        self._lent = self._tell if on_device is None else on_device(duration=gpu_seconds)(self._tell)

    def run(
        self, image: PIL.Image.Image, inverse_depth: np.ndarray | None, settings: Settings, cancel_file: Path
    ) -> Iterator[Stage]:
        """Make a pair of one photograph.

        Args:
            image: the photograph.
            inverse_depth: [H,W] float, larger = nearer, instead of the depth network's.
            settings: what decides the pair.
            cancel_file: the work ends soon after this file appears. A file, because on a shared GPU the work runs in
                another process.

        Yields:
            The depth, if the network ran; then a pair filled from the background at once; then the pair.

        Raises:
            CancelledError: the file appeared.
            RefusedError: the pipeline refuses an argument, or a shared GPU would be held for too long.
        """
        needed_s = gpu_seconds(image, inverse_depth, settings, cancel_file)
        if self._longest_loan_s is not None and needed_s > self._longest_loan_s:
            raise RefusedError(
                f"This may hold the shared GPU for {needed_s} s, and it is lent for {self._longest_loan_s} s. "
                "Choose fewer steps or a smaller largest side in Advanced."
            )
        for stage in self._lent(image, inverse_depth, settings, cancel_file):
            if isinstance(stage, Exception):
                raise stage
            yield stage

    def _tell(self, *arguments: Any) -> Iterator[Stage | Exception]:
        """Run, and hand over what the user is to be told as a value: errors lose their words on a shared GPU."""
        try:
            yield from self._run(*arguments)
        except (RefusedError, CancelledError) as error:
            yield error

    def _run(
        self, image: PIL.Image.Image, inverse_depth: np.ndarray | None, settings: Settings, cancel_file: Path
    ) -> Iterator[Stage]:
        """Make a pair, as `run` says; on the device."""
        check_cancelled(cancel_file)
        if inverse_depth is None:
            depth = self._estimate(image)
            inverse_depth = depth.inverse_depth
            yield Stage(depth, None, True)
        check_cancelled(cancel_file)
        self._report(0.3, "Preview: moving pixels, holes filled from the background")
        yield Stage(None, self._call(image, inverse_depth, settings, fill="background"), True)
        check_cancelled(cancel_file)
        self._report(0.4, describe_step(0, settings.steps, 0.0))
        started = time.monotonic()

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
            check_cancelled(cancel_file)
            done = step + 1
            share = 0.4 + 0.5 * done / pipe.num_timesteps
            self._report(share, describe_step(done, pipe.num_timesteps, time.monotonic() - started))
            return tensors

        yield Stage(
            None,
            self._call(
                image,
                inverse_depth,
                settings,
                fill=settings.fill,
                num_inference_steps=settings.steps,
                generator=torch.Generator().manual_seed(settings.seed),
                callback_on_step_end=after_step,
            ),
            False,
        )

    def _estimate(self, image: PIL.Image.Image) -> Depth:
        """Run the depth network."""
        self._report(0.05, "Estimating the depth")
        with self._lock:
            estimated, flip = self.pipe.estimate_inverse_depth(image)  # [1,1,H,W], 2 x [1,1,H,W]
        maps: list[np.ndarray] = [value[0, 0].cpu().numpy() for value in (estimated, flip.confidence)]
        return Depth(*maps, agreement=float(flip.agreement.mean()))

    def _call(self, image: PIL.Image.Image, inverse_depth: np.ndarray, settings: Settings, **arguments: Any) -> Any:
        """Call the pipeline; what it refuses is told to the user, in its own words."""
        try:
            with self._lock:
                return self.pipe(
                    image,
                    inverse_depth=inverse_depth,
                    target_view=settings.target_view,
                    **settings.strength(),
                    **arguments,
                )
        except ValueError as error:
            raise RefusedError(str(error)) from error
        except torch.OutOfMemoryError as error:
            raise RefusedError(
                "The device has too little memory for this photograph. Choose a smaller largest side in Advanced."
            ) from error


def check_cancelled(cancel_file: Path) -> None:
    """Raise a CancelledError once the file is there, or its folder is gone: nobody waits for the result any more."""
    if cancel_file.exists() or not cancel_file.parent.is_dir():
        raise CancelledError


def return_memory() -> None:
    """Give freed memory back to the system, where the C library can: glibc keeps it in pieces for itself otherwise.

    Pictures of mixed sizes leave gaps that the next one does not fit into, so a server would grow for hours.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


# --- what made it ---


def device_and_dtypes(pipe: Any) -> tuple[str, dict[str, str]]:
    """Device of the pipeline, and the dtype of each of its networks."""
    dtypes = {
        name: str(part.dtype).removeprefix("torch.") for name, part in pipe.components.items() if _has_dtype(part)
    }
    return str(pipe.device.type), dtypes


def _has_dtype(part: Any) -> bool:
    return isinstance(part, torch.nn.Module)


def python_line(
    source: str, device: str, threads: int, dtypes: dict[str, str], photo: str, settings: Settings, own_map: bool
) -> str:
    """Write the Python line that makes the pair again, bit for bit on the same device and versions.

    It reads the photograph, and the depth map where there was one, from the working folder. On a CPU it sets the
    number of threads, for sums that are split in another way end in other bits.
    """
    chosen = ", ".join(f"'{name}': torch.{dtype}" for name, dtype in dtypes.items() if dtype != "float32")
    loading = f", dtype={{{chosen}, 'default': torch.float32}}" if chosen else ""
    arguments = [f"PIL.Image.open({photo!r})"]
    if own_map:
        arguments.append(f"inverse_depth=numpy.array(PIL.Image.open({DEPTH_FILE!r}))")
    arguments += [f"{name}={value!r}" for name, value in settings.strength().items()]
    arguments += [
        f"target_view={settings.target_view!r}",
        f"fill={settings.fill!r}",
        f"num_inference_steps={settings.steps}",
        f"generator=torch.Generator().manual_seed({settings.seed})",
    ]
    split = f"torch.set_num_threads({threads}); " if device == "cpu" else ""
    modules = ["huggingface_hub"] * ("huggingface_hub." in source) + ["numpy"] * own_map + ["PIL.Image", "torch"]
    return (
        f"import {', '.join(modules)}; from diffusers import DiffusionPipeline; {split}"
        f"pipe = DiffusionPipeline.from_pretrained({source}, trust_remote_code=True{loading}).to({device!r}); "
        f"pair = pipe({', '.join(arguments)}); "
        "pair.left_image[0].save('left.png'); pair.right_image[0].save('right.png')"
    )


def describe_parameters(
    studio: Studio, photo: Photo, settings: Settings, pair: Any, agreement: float | None, own_map: bool
) -> dict[str, Any]:
    """List everything that decides a pair and what it came out as, for parameters.json."""
    device, dtypes = device_and_dtypes(studio.pipe)
    threads = torch.get_num_threads()
    disparity = pair.disparity[0]
    return {
        "python": python_line(studio.source, device, threads, dtypes, photo.file_name, settings, own_map),
        "photo": photo.file_name,
        "photo_sha256": hashlib.sha256(photo.content).hexdigest(),
        "depth_map": DEPTH_FILE if own_map else None,
        "weights": studio.weights,
        **asdict(settings),
        "disparity_scale": float(pair.disparity_scale[0]),
        "width": disparity.shape[1],
        "height": disparity.shape[0],
        "largest_disparity_px": float(disparity.max()),
        "flip_agreement": agreement,
        "invented_share": [float(mask.mean()) for mask in pair.hole_mask],
        "device": device,
        "cpu_threads": threads,
        "dtypes": dtypes,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in REPORTED_PACKAGES},
        },
    }


# --- what is remembered of each user ---


@dataclass
class Result:
    """The last pair of one user.

    Attributes:
        photo: what was worked on.
        settings: what was asked for.
        pair: output of the pipeline, `output_type="pil"`.
        depth: what the depth network said; None where the user's own map was used.
        own_map: [H,W] float32, the user's map, or None.
        parameters: of parameters.json, without those of the pictures.
        folder: where its files are; removed with it.
        is_preview: the full result is still being made.
        shown: settings of the pictures that the page shows of it, None where it shows none.
        filed: settings of the files that were made or are being made, None where there are none.
        wanted: settings that the page has now, where they changed since.
    """

    photo: Photo
    settings: Settings
    pair: Any
    depth: Depth | None
    own_map: np.ndarray | None
    parameters: dict[str, Any]
    folder: Path
    is_preview: bool
    shown: Any = None
    filed: Any = None
    wanted: Any = None

    def memory_bytes(self) -> int:
        """Roughly what it holds: pictures, maps and the file."""
        pixels = self.pair.disparity[0].size
        views = len(self.pair.images)
        return len(self.photo.content) + pixels * (3 * (2 * views + 2) + 4 * (2 + views) + 2 * views + 8)


class Sessions:
    """Remembers one result per user: bounded in memory, expiring, each with a folder of its own that nobody can guess.

    Args:
        root: folder below which the folders are made.
        max_bytes: of all results together; the least recently used ones go first. The newest one stays, and so do
            those that are being worked on.
        max_age_s: since the last use.
        clock: seconds.
    """

    def __init__(
        self,
        root: Path,
        max_bytes: int = 1_000_000_000,
        max_age_s: float = 1800.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.root, self.max_bytes, self.max_age_s, self._clock = root, max_bytes, max_age_s, clock
        self._lock = threading.Lock()
        self._results: OrderedDict[str, tuple[float, Result]] = OrderedDict()
        self._running: dict[str, Path] = {}
        self._replaced: list[tuple[float, Path]] = []  # (when, folder), oldest first
        self._pages: set[str] = set()  # users who look at the page, in a browser

    def __len__(self) -> int:
        """Return how many results are remembered."""
        return len(self._results)

    def make_folder(self) -> Path:
        """Make a folder whose name nobody can guess, for the files of one result."""
        folder = self.root / secrets.token_urlsafe(24)
        folder.mkdir(parents=True)
        return folder

    @contextlib.contextmanager
    def running(self, user: str, cancel_file: Path) -> Iterator[None]:
        """Note that work of this user runs, which `cancel` ends by making the file."""
        with self._lock:
            self._running[user] = cancel_file
        try:
            yield
        finally:
            with self._lock:
                if self._running.get(user) == cancel_file:
                    del self._running[user]

    def cancel(self, user: str) -> bool:
        """End the running work of a user soon; tells whether there was any."""
        with self._lock:
            cancel_file = self._running.get(user)
            if cancel_file is not None and cancel_file.parent.is_dir():
                cancel_file.touch()
        return cancel_file is not None

    def put(self, user: str, result: Result) -> None:
        """Remember a result in place of the user's older one, whose files stay a moment for who still fetches them."""
        self.sweep()
        with self._lock:
            older = self._results.pop(user, None)
            self._results[user] = (self._clock(), result)
            if older is not None and older[1].folder != result.folder:
                self._replaced.append((self._clock(), older[1].folder))
            held = sum(one.memory_bytes() for _, one in self._results.values())
            for other in [one for one in self._results if one != user and one not in self._running]:
                if held <= self.max_bytes:
                    break
                _, dropped = self._results.pop(other)
                held -= dropped.memory_bytes()
                shutil.rmtree(dropped.folder, ignore_errors=True)

    def get(self, user: str) -> Result | None:
        """Return the user's result, or None where there is none any more."""
        self.sweep()
        with self._lock:
            if user not in self._results:
                return None
            _, result = self._results.pop(user)
            self._results[user] = (self._clock(), result)
            return result

    def open_page(self, user: str) -> None:
        """Note that a user looks at the page: when the connection ends, so does the visit."""
        with self._lock:
            self._pages.add(user)

    def leave(self, user: str) -> None:
        """Forget a user whose connection ended: a page at once; a client of the API once its files can be fetched.

        A client's connection ends on a busy machine too, after 20 s without a sign, and is not made again, while its
        request goes on: so nothing of it is cancelled, and its files stay a while.
        """
        with self._lock:
            is_page = user in self._pages
            self._pages.discard(user)
            if not is_page and user in self._results:
                self._results[user] = (self._clock() - self.max_age_s + FETCH_S, self._results[user][1])
        if is_page:
            self.drop(user)

    def drop(self, user: str) -> None:
        """Forget a user and end what runs for them."""
        self.cancel(user)
        with self._lock:
            found = self._results.pop(user, None)
            if found is not None:
                shutil.rmtree(found[1].folder, ignore_errors=True)

    def sweep(self) -> None:
        """Forget results that nobody used for long and nobody works on, and the files of replaced ones."""
        with self._lock:
            fetched = self._clock() - FETCH_S
            while self._replaced and (self._replaced[0][0] < fetched or len(self._replaced) > MAX_REPLACED):
                shutil.rmtree(self._replaced.pop(0)[1], ignore_errors=True)
            oldest = self._clock() - self.max_age_s
            for user in [
                user for user, (used, _) in self._results.items() if used < oldest and user not in self._running
            ]:
                shutil.rmtree(self._results.pop(user)[1].folder, ignore_errors=True)
