# SPDX-License-Identifier: Apache-2.0
"""One picture of what the pipeline makes of some photographs: a row of labelled panels for each.

    python -m benchmarks.contact_sheet --output out/sheet.png               # four photographs of scikit-image
    python -m benchmarks.contact_sheet a.jpg b.png --output out/sheet.png   # your own
    python -m benchmarks.contact_sheet examples/coffee.png --strip --output out/strip.png   # CPU smoke, seconds

A row shows: left view (the photograph) | disparity in colour | warped with its holes painted magenta | right view |
red-cyan anaglyph; --strip leaves the anaglyph out. Every row has the same height. The pictures of the README are made
by these commands with the embedded weights, seed 0 and the default --disparity-scale. The suffix of --output decides
the format: .png, or .jpg for a smaller file.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps
import skimage.data
import torch
from tqdm.auto import tqdm

from pipeline_zerostereo import ZeroStereoPipeline, ZeroStereoPipelineOutput

DEFAULT_WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "zerostereo-tiny"
DEFAULT_PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")  # of skimage.data, in the installed package
HOLE_COLOR = (255, 0, 255)
SEED = 0
GAP = 8  # px between panels and around the sheet
LABEL_HEIGHT = 26  # px above each row
FONT_SIZE = 16


class Panel(NamedTuple):
    """One picture of a row and what stands above it."""

    label: str
    picture: PIL.Image.Image


def paint_holes(warped: PIL.Image.Image, hole_mask: np.ndarray) -> PIL.Image.Image:
    """Return a warped view with the pixels of the mask [H,W] in magenta, which no hole can be overlooked in."""
    return PIL.Image.fromarray(np.where(hole_mask[..., None], np.uint8(HOLE_COLOR), np.asarray(warped)))


def make_panels(
    pipe: ZeroStereoPipeline, name: str, photo: PIL.Image.Image, disparity_scale: float, with_anaglyph: bool
) -> list[Panel]:
    """Run the pipeline on one photograph with seed 0 and return its row."""
    generator = torch.Generator().manual_seed(SEED)
    pair: ZeroStereoPipelineOutput = pipe(photo, disparity_scale=disparity_scale, generator=generator)
    pictures, right, disparity = pipe.image_processor, pair.images[0], pair.disparity[0]
    left = photo.convert("RGB")
    panels = [
        Panel(f"{name}: left view", left),
        Panel(f"disparity, {disparity.min():.0f} to {disparity.max():.0f} px", pictures.visualize_map(disparity)[0]),
        Panel(f"warped, {pair.hole_mask.mean():.1%} holes", paint_holes(pair.warped_images[0], pair.hole_mask[0])),
        Panel("right view", right),
    ]
    return [*panels, Panel("anaglyph", pictures.anaglyph(left, right))] if with_anaglyph else panels


def compose_sheet(rows: list[list[Panel]], height: int) -> PIL.Image.Image:
    """Scale every panel to one height and arrange them, one row below the other, each label above its panel."""
    scaled = [
        [Panel(one.label, one.picture.convert("RGB").resize(_size_at(one.picture, height))) for one in row]
        for row in rows
    ]
    width = max(GAP + sum(one.picture.width + GAP for one in row) for row in scaled)
    sheet = PIL.Image.new("RGB", (width, GAP + len(rows) * (LABEL_HEIGHT + height + GAP)), "white")
    draw, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(FONT_SIZE)
    for number, row in enumerate(scaled):
        x, y = GAP, GAP + number * (LABEL_HEIGHT + height + GAP)
        for one in row:
            draw.text((x, y + LABEL_HEIGHT // 2), one.label, fill="black", font=font, anchor="lm")
            sheet.paste(one.picture, (x, y + LABEL_HEIGHT))
            x += one.picture.width + GAP
    return sheet


def _size_at(picture: PIL.Image.Image, height: int) -> tuple[int, int]:
    return max(1, round(picture.width * height / picture.height)), height


def load_photos(paths: list[Path]) -> list[tuple[str, PIL.Image.Image]]:
    """Return (name, photograph) for each path, or for those of scikit-image where there are no paths."""
    if not paths:
        return [(name, PIL.Image.fromarray(getattr(skimage.data, name)())) for name in DEFAULT_PHOTOS]
    photos = []
    for path in paths:
        with PIL.Image.open(path) as opened:
            photos.append((path.stem, PIL.ImageOps.exif_transpose(opened)))
    return photos


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path, metavar="PHOTO", help="default: four of scikit-image")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="picture to write, .png or .jpg")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="pipeline folder")
    parser.add_argument(
        "--disparity-scale",
        type=float,
        default=0.06,
        metavar="S",
        help="largest disparity, a share of the width (%(default)s)",
    )
    parser.add_argument("--height", type=int, default=240, metavar="PX", help="of every panel (%(default)s)")
    parser.add_argument("--strip", action="store_true", help="leave the anaglyph out")
    options = parser.parse_args(arguments)
    if not 0 < options.disparity_scale <= 1:
        parser.error(f"--disparity-scale must lie in (0, 1]; got {options.disparity_scale}")
    if options.height < 1:
        parser.error(f"--height must be at least 1; got {options.height}")
    if options.output.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        parser.error(f"--output must end in .png or .jpg; got {options.output}")
    if not options.weights.is_dir():
        parser.error(f"--weights must be a pipeline folder; got {options.weights}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Make the sheet."""
    options = parse_arguments(arguments)
    photos = load_photos(options.photos)
    pipe = ZeroStereoPipeline.from_pretrained(options.weights)
    pipe.set_progress_bar_config(disable=True)
    rows = [
        make_panels(pipe, name, photo, options.disparity_scale, with_anaglyph=not options.strip)
        for name, photo in tqdm(photos, unit="photo", desc="contact sheet")
    ]
    sheet = compose_sheet(rows, options.height)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    partial = options.output.with_name(f".{options.output.stem}.partial{options.output.suffix}")
    sheet.save(partial, quality=90, optimize=True)
    partial.replace(options.output)
    print(f"{options.output}: {sheet.width} x {sheet.height} px, {options.output.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
