# SPDX-License-Identifier: Apache-2.0
"""Disparity and its errors as pictures for people: colour maps and error maps, each with a scale bar in px.

Reads no file and writes none. The colours of disparities are those of the pipeline; the colours of errors are steps
that double, as on KITTI's server, so that a quarter of a pixel and sixteen pixels can be told apart in one picture.
"""

from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from pipeline_zerostereo import StereoImageProcessor

ERROR_EDGES_PX = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # between the colours
ERROR_COLORS = (  # ColorBrewer's RdYlBu: blue = right, red = wrong; the middle is 2 px
    (49, 54, 149),
    (69, 117, 180),
    (116, 173, 209),
    (171, 217, 233),
    (254, 224, 144),
    (253, 174, 97),
    (244, 109, 67),
    (165, 0, 38),
)
UNKNOWN_COLOR = (0, 0, 0)
PAPER, INK = (255, 255, 255), (30, 30, 30)
BAR_SMALLEST_WIDTH = 320  # px that the bar of errors needs to be read; narrower maps get white margins
DENSE_SHARE = 0.5  # maps that know less are drawn with larger points
POINT = 3  # px, side of such a point


def paint_disparity(
    disparity: np.ndarray, known: np.ndarray | None = None, highest_px: float | None = None
) -> PIL.Image.Image:
    """Paint a disparity in colour with a scale bar below: dark = far, bright = near, black = unknown.

    Args:
        disparity: [H,W], px; what is below 0 is painted as 0.
        known: [H,W] bool, where it counts; None = wherever it is finite. Where that is less than half of the map
            (laser scans) every point is drawn as 3x3 px, the nearest on top.
        highest_px: of the brightest colour, so that two maps can be compared; None = the highest known value.

    Returns:
        RGB picture, the map at its top. Colours begin at 0 px.

    Raises:
        ValueError: shapes disagree.
    """
    known = _known(disparity, known)
    values = np.where(known, np.maximum(disparity, 0), -1)  # -1 = unknown
    if known.mean() < DENSE_SHARE:
        values = _enlarge_points(values)
    return StereoImageProcessor.visualize_disparity(np.where(values < 0, np.inf, values), 0.0, highest_px)[0]


def paint_error(disparity: np.ndarray, true_disparity: np.ndarray, known: np.ndarray | None = None) -> PIL.Image.Image:
    """Paint the absolute error of a disparity in steps, with a scale bar below; black = unknown.

    Where less than half of the map is known (laser scans) every point is drawn as 3x3 px, the largest error on top,
    or nobody could see it. The figures do not know of this.

    Args:
        disparity: [H,W], px.
        true_disparity: [H,W], px.
        known: [H,W] bool, where the truth counts; None = wherever it is finite.

    Returns:
        RGB picture, the map at its top, in the middle of white margins if it is narrower than 320 px.

    Raises:
        ValueError: shapes disagree.
    """
    if true_disparity.shape != disparity.shape:
        raise ValueError(
            f"`true_disparity` must have the shape of `disparity` {list(disparity.shape)}; "
            f"got {list(true_disparity.shape)}."
        )
    known = _known(true_disparity, known)
    error = np.abs(np.where(known, disparity, 0) - np.where(known, true_disparity, 0))
    level = np.where(known, np.searchsorted(ERROR_EDGES_PX, error), -1)  # -1 = unknown
    if known.mean() < DENSE_SHARE:
        level = _enlarge_points(level)
    colors = np.array([*ERROR_COLORS, UNKNOWN_COLOR], dtype=np.uint8)  # the last one is that of -1
    painted = PIL.Image.fromarray(colors[level])
    bar = _error_bar(painted.size)
    picture = PIL.Image.new("RGB", (bar.width, painted.height + bar.height), PAPER)
    picture.paste(painted, ((bar.width - painted.width) // 2, 0))
    picture.paste(bar, (0, painted.height))
    return picture


def _known(disparity: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    if known is None:
        return np.isfinite(disparity)
    if known.shape != disparity.shape:
        raise ValueError(f"`known` must have the shape of the disparity {list(disparity.shape)}; got {known.shape}.")
    return known


def _enlarge_points(values: np.ndarray) -> np.ndarray:
    """Give each pixel the largest value around it."""
    framed = np.pad(values, POINT // 2, constant_values=-1)
    return np.lib.stride_tricks.sliding_window_view(framed, (POINT, POINT)).max((2, 3))


def _error_bar(size: tuple[int, int]) -> PIL.Image.Image:
    """Draw the colours of errors side by side, the errors between them, and the colour of what is not known."""
    width = max(size[0], BAR_SMALLEST_WIDTH)
    unit = min(max(12, round((size[0] * size[1]) ** 0.5 / 32)), width // 26)  # height of the letters
    font = PIL.ImageFont.load_default(unit)
    bar = PIL.Image.new("RGB", (width, 3 * unit + unit // 2), PAPER)
    draw = PIL.ImageDraw.Draw(bar)
    top, bottom, left, right = unit // 2, unit // 2 + unit, unit, width - unit - 1
    word = round(draw.textlength("unknown", font))
    draw.rectangle((right - word, top, right, bottom), fill=UNKNOWN_COLOR)
    draw.text((right - word / 2, bottom + unit // 2), "unknown", INK, font, anchor="mt")
    places = np.linspace(left, right - word - unit, len(ERROR_COLORS) + 1).round().astype(int)
    for color, start, end in zip(ERROR_COLORS, places[:-1], places[1:], strict=True):
        draw.rectangle((int(start), top, int(end) - 1, bottom), fill=color)
    labels = [f"{edge:g}" for edge in ERROR_EDGES_PX]
    labels[-1] += " px"
    for x, label in zip(places[1:-1], labels, strict=True):
        draw.line((int(x), bottom, int(x), bottom + unit // 3), fill=INK, width=max(1, unit // 12))
        draw.text((int(x), bottom + unit // 2), label, INK, font, anchor="mt")
    return bar
