# SPDX-License-Identifier: Apache-2.0
"""Pictures of a data set for people: a contact sheet of some rows, and histograms. Reads no file and writes none."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps

from datasets_builder.schema import CONFIDENCE_SCALE, decode_codes
from pipeline_zerostereo import StereoImageProcessor

GAP = 8  # px between panels and around a sheet
LINE = 24  # px of a line of text
FONT_SIZE = 15
BAR_COLOR = (70, 110, 180)
AXIS_COLOR = (90, 90, 90)
HISTOGRAM_SIZE = (640, 300)  # px
MARGIN_LEFT, MARGIN_BOTTOM, MARGIN_TOP = 16, 46, 34  # px around the bars of a histogram


class Panel(NamedTuple):
    """One picture of a contact sheet, and the title of its column."""

    title: str
    picture: PIL.Image.Image


def make_panels(row: Mapping[str, Any]) -> list[Panel]:
    """Make the panels of a row: left | disparity | confidence | right | anaglyph.

    Args:
        row: with pictures as {"bytes": file}. Without left and right image (`--labels-only`) the masks take their
            places and there is no anaglyph.

    Returns:
        Panels of the size of the row's pictures, RGB, sRGB. Disparity in colour: dark = far, bright = near.
    """
    disparity, valid = decode_codes(np.asarray(_opened(row["disparity"])), float(row["disparity_png_scale"]))
    confidence, _ = decode_codes(np.asarray(_opened(row["confidence"])), CONFIDENCE_SCALE)
    maps = [
        Panel("disparity", StereoImageProcessor.visualize_map(np.where(valid, disparity, np.nan))[0]),
        Panel("confidence", StereoImageProcessor.visualize_confidence(confidence)[0].convert("RGB")),
    ]
    if "left_image" not in row:
        names = ("right_hole_mask", "left_visible_mask")
        return maps + [Panel(name.replace("_", " "), _opened(row[name]).convert("RGB")) for name in names]
    left, right = (_in_srgb(_opened(row[name])) for name in ("left_image", "right_image"))
    return [
        Panel("left", left),
        *maps,
        Panel("right", right),
        Panel("anaglyph", StereoImageProcessor.anaglyph(left, right)),
    ]


def _opened(value: Mapping[str, Any]) -> PIL.Image.Image:
    return PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(value["bytes"])))


def _in_srgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Convert a picture from the colours of its profile, as far as there is one."""
    photographs = StereoImageProcessor.load(picture)
    return StereoImageProcessor.postprocess(StereoImageProcessor.to_srgb(*photographs), "pil")[0]


def label_of(row: Mapping[str, Any]) -> str:
    """Say in one line what a row is."""
    most = row["disparity_scale"] * row["width"]
    return (
        f"{row['id']}   {row['width']} x {row['height']} px   s = {row['disparity_scale']:.3f} ({most:.0f} px)   "
        f"flip agreement {row['flip_agreement']:.3f}"
    )


def contact_sheet(rows: Iterable[Mapping[str, Any]], side: int = 240) -> PIL.Image.Image:
    """Draw rows below each other, their panels beside each other, with a title over each column.

    Args:
        rows: as in `make_panels`, all with or all without left and right image.
        side: px; panels are scaled to fit into a square of this side.

    Returns:
        RGB picture.

    Raises:
        ValueError: no row, or `side` below 1.
    """
    if side < 1:
        raise ValueError(f"`side` must be at least 1 px; got {side}.")
    drawn = [(label_of(row), [_fitted(one, side) for one in make_panels(row)]) for row in rows]
    if not drawn:
        raise ValueError("`rows` must hold at least one row; got none.")
    titles = [one.title for one in drawn[0][1]]
    heights = [LINE + max(one.picture.height for one in panels) + GAP for _, panels in drawn]
    sheet = PIL.Image.new("RGB", (GAP + len(titles) * (side + GAP), GAP + LINE + sum(heights)), "white")
    draw, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(FONT_SIZE)
    lefts = [GAP + column * (side + GAP) for column in range(len(titles))]
    for x, title in zip(lefts, titles, strict=True):
        draw.text((x + side // 2, GAP + LINE // 2), title, fill="black", font=font, anchor="mm")
    top = GAP + LINE
    for (label, panels), height in zip(drawn, heights, strict=True):
        draw.text((GAP, top + LINE // 2), label, fill=AXIS_COLOR, font=font, anchor="lm")
        for x, one in zip(lefts, panels, strict=True):
            sheet.paste(one.picture, (x + (side - one.picture.width) // 2, top + LINE))
        top += height
    return sheet


def _fitted(panel: Panel, side: int) -> Panel:
    """Scale a panel to fit into a square."""
    scale = side / max(panel.picture.size)
    width, height = (max(1, round(length * scale)) for length in panel.picture.size)
    return Panel(panel.title, panel.picture.resize((width, height), PIL.Image.Resampling.BILINEAR, reducing_gap=3.0))


def histogram(counts: Sequence[int] | np.ndarray, lowest: float, highest: float, title: str) -> PIL.Image.Image:
    """Draw how often values occur.

    Args:
        counts: of equal parts of the range; at least one part.
        lowest: lower end of the first part.
        highest: upper end of the last part, above `lowest`.
        title: says what is counted, and its unit.

    Returns:
        RGB picture: bars as shares of the total, the highest share written at its bar, and ticks below.

    Raises:
        ValueError: no counts, or an empty range.

    Degenerate cases: counts that are all 0 give no bar.
    """
    values = np.asarray(counts, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"`counts` must be one row of numbers; got shape {list(values.shape)}.")
    if not highest > lowest:
        raise ValueError(f"`highest` must be above `lowest`, {lowest:g}; got {highest:g}.")
    width, height = HISTOGRAM_SIZE
    picture = PIL.Image.new("RGB", HISTOGRAM_SIZE, "white")
    draw, font = PIL.ImageDraw.Draw(picture), PIL.ImageFont.load_default(FONT_SIZE)
    left, right, top, bottom = MARGIN_LEFT, width - MARGIN_LEFT, MARGIN_TOP + LINE, height - MARGIN_BOTTOM
    edges = np.linspace(left, right, len(values) + 1)
    shares = values / max(values.sum(), 1.0)
    for place, share in enumerate(shares):
        if share:
            y = bottom - share / shares.max() * (bottom - top)
            draw.rectangle((edges[place] + 1, y, edges[place + 1] - 1, bottom), fill=BAR_COLOR)
    if shares.any():
        peak = int(shares.argmax())
        x = min(max(left + 30, (edges[peak] + edges[peak + 1]) / 2), right - 30)
        draw.text((x, top - 4), f"{shares[peak]:.1%}", fill=AXIS_COLOR, font=font, anchor="mb")
    draw.line((left, bottom, right, bottom), fill=AXIS_COLOR)
    for tick in np.linspace(0.0, 1.0, 5):
        x = left + tick * (right - left)
        draw.line((x, bottom, x, bottom + 5), fill=AXIS_COLOR)
        anchor = {0.0: "la", 1.0: "ra"}.get(float(tick), "ma")
        draw.text((x, bottom + 8), f"{lowest + tick * (highest - lowest):.3g}", fill="black", font=font, anchor=anchor)
    draw.text((width // 2, MARGIN_TOP // 2), title, fill="black", font=font, anchor="mm")
    return picture
