# SPDX-License-Identifier: Apache-2.0
"""The before/after pictures of the README: one sheet, and a wigglegram of each photograph.

    python -m benchmarks.readme_pictures                                          # docs/pictures, seconds on a CPU
    python -m benchmarks.readme_pictures --output out/pictures --weights DIR      # the same of other weights

before_after.jpg has a row for each photograph: photograph | disparity in colour | right view | red-cyan anaglyph.
NAME.gif shows photograph and right view in turn. Anaglyph and wigglegram converge at the median disparity, so that the
middle of the scene stands still; they lose as many columns as that. Nothing is retouched or chosen: seed 0, the
photographs of PHOTOS, the default number of steps.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import skimage.data
import torch
from tqdm.auto import tqdm

from benchmarks.contact_sheet import SEED, Panel, compose_sheet
from pipeline_zerostereo import StereoImageProcessor, ZeroStereoPipeline

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_WEIGHTS = ROOT / "weights" / "zerostereo-tiny"
DEFAULT_OUTPUT = ROOT / "docs" / "pictures"
PHOTOS = ("coffee", "astronaut", "chelsea")  # of skimage.data, in the installed package
SHEET = "before_after.jpg"
DISPARITY_SCALE = 0.04  # of the width; 0.06 is comfortable through glasses, but restless as a wigglegram
PANEL_WIDTH = 300  # px of every panel of the sheet; the rows are as high as their photographs then are
WIGGLEGRAM_HEIGHT = 200  # px, so that they can stand in one line
JPEG_QUALITY = 88


class Views(NamedTuple):
    """What the pictures of one photograph are made of.

    Attributes:
        name: what the labels and the file are called.
        photo: RGB, the left view.
        right: RGB, the right view, of the same size.
        disparity: [H,W] float32, px, left view.
        invented: share of the pixels of the right view that were holes.
    """

    name: str
    photo: PIL.Image.Image
    right: PIL.Image.Image
    disparity: np.ndarray
    invented: float


def make_views(pipe: ZeroStereoPipeline, name: str, photo: PIL.Image.Image) -> Views:
    """Run the pipeline on one photograph with seed 0."""
    generator = torch.Generator().manual_seed(SEED)
    pair: Any = pipe(photo, disparity_scale=DISPARITY_SCALE, generator=generator)
    return Views(name, photo.convert("RGB"), pair.images[0], pair.disparity[0], float(pair.hole_mask.mean()))


def median_px(disparity: np.ndarray) -> int:
    """Return the median of a disparity map [H,W], rounded to whole px: what half of the scene is nearer than."""
    return round(float(np.median(disparity)))


def make_row(views: Views) -> list[Panel]:
    """Return the row of the sheet: before on the left, after beside it."""
    disparity = views.disparity
    colored = StereoImageProcessor.visualize_map(disparity)[0]
    anaglyph = StereoImageProcessor.anaglyph(views.photo, views.right, "color", median_px(disparity))
    return [
        Panel(f"before: {views.name}", views.photo),
        Panel(f"disparity, {disparity.min():.0f} to {disparity.max():.0f} px", colored),
        Panel(f"after: right view, {views.invented:.1%} invented", views.right),
        Panel("after: for red-cyan glasses", anaglyph),
    ]


def make_sheet(views: list[Views]) -> PIL.Image.Image:
    """Return the rows of all photographs, one below the other, the panels of all of them equally wide."""
    rows = [
        compose_sheet([make_row(one)], max(1, round(PANEL_WIDTH * one.photo.height / one.photo.width)))
        for one in views
    ]
    sheet = PIL.Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def make_wigglegram(views: Views) -> bytes:
    """Return an animated GIF."""
    frames = StereoImageProcessor.wiggle(views.photo, views.right, median_px(views.disparity))
    size = max(1, round(frames[0].width * WIGGLEGRAM_HEIGHT / frames[0].height)), WIGGLEGRAM_HEIGHT
    scaled = [frame.resize(size, PIL.Image.Resampling.LANCZOS) for frame in frames]
    return StereoImageProcessor.export_wiggle_to_gif(scaled)


def make_pictures(pipe: ZeroStereoPipeline, photos: dict[str, PIL.Image.Image]) -> dict[str, bytes]:
    """Make every picture of the named photographs.

    Returns:
        File name -> bytes of the file.
    """
    views = [make_views(pipe, name, photo) for name, photo in tqdm(photos.items(), unit="photo", desc="pictures")]
    sheet = io.BytesIO()
    make_sheet(views).save(sheet, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    return {SHEET: sheet.getvalue(), **{f"{one.name}.gif": make_wigglegram(one) for one in views}}


def load_photos() -> dict[str, PIL.Image.Image]:
    """Return the photographs of PHOTOS by name."""
    return {name: PIL.Image.fromarray(getattr(skimage.data, name)()) for name in PHOTOS}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, metavar="DIR", help="default: docs/pictures")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="pipeline folder")
    options = parser.parse_args(arguments)
    if not options.weights.is_dir():
        parser.error(f"--weights must be a pipeline folder; got {options.weights}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Make the pictures."""
    options = parse_arguments(arguments)
    pipe = ZeroStereoPipeline.from_pretrained(options.weights)
    pipe.set_progress_bar_config(disable=True)
    pictures = make_pictures(pipe, load_photos())
    options.output.mkdir(parents=True, exist_ok=True)
    for name, data in pictures.items():
        partial = options.output / f".{name}.partial"
        partial.write_bytes(data)
        partial.replace(options.output / name)
        print(f"{options.output / name}: {len(data) / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
