# SPDX-License-Identifier: Apache-2.0
"""The training pairs of the ablation: the same pictures, with the choices that its rows compare.

A picture is the left view of a procedural scene; its true disparity and right view are not used. Depth and its flip
consistency come from the embedded network, once a picture. From there each pair is made in one of four ways:
    strength    "uniform", the largest disparity of a picture uniform between 1/16 and .24 of its width, after
                MfS-Stereo, whose code (Watson et al. 2020) takes 50 to 192 px of pictures of 608 + 192 px;
                "ads", adaptive disparity selection (ZeroStereo, section 3.2);
    fill        "background", holes show another picture of the pool, its colours matched (MfS-Stereo's way);
                "inpainting", the embedded pipeline with its own defaults.
Sharpening and the warp are the same for all. Pairs are made in chunks that are kept on disk, each a function of the
seed and its number alone, so an interrupted run goes on, and several processes may work in one folder.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.small_training import save_atomically
from pipeline_zerostereo import WarpResult, ZeroStereoPipeline, forward_warp, sample_disparity_scale
from training.procedural_scenes import render_scenes, scene_generator
from training.run import step_generator

HEIGHT, WIDTH = 128, 256  # px
CHUNK = 32  # pictures in one file
PICTURES_SEED = 61_001  # of the left views; the embedded weights saw seed 0, their validation 900001 and 1000003
DISPARITY_STEPS = 512  # of a stored disparity, for each px
UNIFORM_SCALES = (50 / 800, 192 / 800)
STRENGTHS, FILLS = ("uniform", "ads"), ("background", "inpainting")


class Pairs(NamedTuple):
    """Training pairs; N of them, all of one strength and fill.

    left_image, right_image: [N,3,H,W] uint8. disparity: [N,1,H,W] int32, 1/512 px, of the left view, as warped.
    confidence: [N,1,H,W] uint8, 255 = 1, left view, of the depth network's flip consistency.
    left_visible_mask: [N,1,H,W] bool, left view. right_hole_mask: [N,1,H,W] bool, right view.
    """

    left_image: Tensor
    right_image: Tensor
    disparity: Tensor
    confidence: Tensor
    left_visible_mask: Tensor
    right_hole_mask: Tensor


def to_bytes(image: Tensor) -> Tensor:
    """[0,1] -> 0..255, rounded."""
    return (255 * image).round().clamp(0, 255).byte()


def match_colors(image: Tensor, like: Tensor) -> Tensor:
    """Give a picture the mean and the spread of another one, for each channel: both [1,3,H,W] in [0,1]."""
    mean, of_like = image.mean((2, 3), keepdim=True), like.mean((2, 3), keepdim=True)
    spread, spread_of_like = image.std((2, 3), keepdim=True), like.std((2, 3), keepdim=True)
    return ((image - mean) * (spread_of_like / spread.clamp(min=1e-3)) + of_like).clamp(0, 1)


def draw_scale(strength: str, seed: int, picture: int) -> float:
    """Draw the largest disparity of a picture, as a share of its width."""
    generator = step_generator(seed, picture, 0)
    if strength == "ads":
        return float(sample_disparity_scale(1, generator))
    lowest, highest = UNIFORM_SCALES
    return lowest + (highest - lowest) * float(torch.rand((), generator=generator))


def fill_holes(
    pipe: ZeroStereoPipeline, fill: str, views: WarpResult, background: Tensor, first: int, seed: int
) -> Tensor:
    """Return right views [n,3,H,W] in [0,1] without holes.

    Args:
        pipe: used for "inpainting".
        fill: one of `FILLS`.
        views: of pictures first ... first + n - 1.
        background: [n,3,H,W] in [0,1], colours matched, for "background".
        first: number of the first picture; noise depends on (seed, number).
        seed: of the noise.
    """
    if fill == "background":
        return torch.where(views.right_hole_mask, background, views.right_image)
    noise = [step_generator(seed, first + i, 1) for i in range(len(background))]
    return pipe.inpaint(views.right_image, views.right_hole_mask, views.right_disparity, generator=noise)


def left_views(chunk: int, seed: int) -> Tensor:
    """Render the pictures of a chunk: [CHUNK,3,H,W] in [0,1], of 8 bits."""
    scenes = render_scenes(CHUNK, HEIGHT, WIDTH, generator=scene_generator(seed, chunk))
    return to_bytes(scenes.left_image).float() / 255


@torch.no_grad()
def make_chunk(pipe: ZeroStereoPipeline, chunk: int, seed: int) -> dict[str, Tensor]:
    """Make the pairs of a chunk in all four ways.

    Returns:
        "strength/fill/field" -> a field of `Pairs`, for every strength and fill. What two ways share is one tensor.
    """
    images = left_views(chunk, seed)
    others = images.roll(1, 0)  # the background of picture i is picture i - 1 of the chunk
    backgrounds = torch.cat([match_colors(o, i) for o, i in zip(others.split(1), images.split(1), strict=True)])
    inverse_depth, flip = pipe.estimate_inverse_depth(images)
    shared = {"left_image": to_bytes(images), "confidence": to_bytes(flip.confidence)}
    first = chunk * CHUNK
    result = {}
    for strength in STRENGTHS:
        scales = [draw_scale(strength, seed, first + i) for i in range(CHUNK)]
        steps = (pipe.select_disparity(inverse_depth, scales) * DISPARITY_STEPS).round()
        views = forward_warp(images, steps / DISPARITY_STEPS)
        of_strength = {
            **shared,
            "disparity": steps.int(),
            "left_visible_mask": views.left_visible_mask,
            "right_hole_mask": views.right_hole_mask,
        }
        for fill in FILLS:
            right = to_bytes(fill_holes(pipe, fill, views, backgrounds, first, seed))
            for name, value in {**of_strength, "right_image": right}.items():
                result[f"{strength}/{fill}/{name}"] = value
    return result


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Say whether this process may make the file at `path`: no other one is at it. The claim ends with the block.

    The lock is the system's, so a killed process leaves none behind; its empty ".lock" file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def chunk_path(work: Path, chunk: int, seed: int) -> Path:
    """Name the file of a chunk."""
    return work / "pairs" / f"seed{seed}-{HEIGHT}x{WIDTH}-chunk{chunk:05d}.pt"


def make_pairs(work: Path, pipe: ZeroStereoPipeline, pictures: int, seed: int = PICTURES_SEED) -> None:
    """Make every chunk that is not a file yet and that no other process is making."""
    for chunk in tqdm(range(-(-pictures // CHUNK)), desc="pairs", unit="chunk", mininterval=10):
        path = chunk_path(work, chunk, seed)
        if path.exists():
            continue
        with claimed(path) as mine:
            if mine and not path.exists():
                save_atomically(make_chunk(pipe, chunk, seed), path)


def pairs_are_made(work: Path, pictures: int, seed: int = PICTURES_SEED) -> bool:
    """Say whether every chunk is a file."""
    return all(chunk_path(work, chunk, seed).exists() for chunk in range(-(-pictures // CHUNK)))


def read_pairs(work: Path, pictures: int, strength: str, fill: str, seed: int = PICTURES_SEED) -> Pairs:
    """Read the first pairs of a strength and fill."""
    parts = []
    for chunk in range(-(-pictures // CHUNK)):
        stored = torch.load(chunk_path(work, chunk, seed), weights_only=True, mmap=True)
        parts.append([stored[f"{strength}/{fill}/{name}"].clone() for name in Pairs._fields])
    return Pairs(*(torch.cat(planes)[:pictures] for planes in zip(*parts, strict=True)))
