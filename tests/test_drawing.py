# SPDX-License-Identifier: Apache-2.0
"""Contact sheets and histograms: what stands where, by the colours of single pixels."""

import io

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest

from datasets_builder.drawing import (
    BAR_COLOR,
    GAP,
    HISTOGRAM_SIZE,
    LINE,
    MARGIN_BOTTOM,
    MARGIN_LEFT,
    MARGIN_TOP,
    contact_sheet,
    histogram,
    label_of,
    make_panels,
)
from datasets_builder.schema import LABEL_FEATURES, encode_confidence, encode_disparity, encode_mask, encode_view
from tests.test_schema import make_row

WIDTH, HEIGHT = 40, 24


def stored(row: dict) -> dict:
    return {name: {"bytes": value, "path": None} if isinstance(value, bytes) else value for name, value in row.items()}


def plain_row(left: str = "red", right: str = "blue", **changes) -> dict:
    """A row of uniform pictures: disparity 0 but for its right half, confidence 1, no holes."""
    disparity = np.zeros((HEIGHT, WIDTH), np.float32)
    disparity[:, WIDTH // 2 :] = 4.0
    encoded = encode_disparity(disparity)
    nothing = np.zeros((HEIGHT, WIDTH), bool)
    values = {
        "left_image": encode_view(PIL.Image.new("RGB", (WIDTH, HEIGHT), left)),
        "right_image": encode_view(PIL.Image.new("RGB", (WIDTH, HEIGHT), right)),
        "disparity": encoded.png,
        "disparity_png_scale": encoded.png_scale,
        "confidence": encode_confidence(np.ones((HEIGHT, WIDTH), np.float32)),
        "right_hole_mask": encode_mask(nothing),
        "left_visible_mask": encode_mask(~nothing),
    }
    numbers = {"width": WIDTH, "height": HEIGHT, "disparity_scale": 0.1}
    return stored({**make_row(0), **values, **numbers, **changes})


def test_panels_stand_in_their_order():
    panels = make_panels(plain_row())
    assert [one.title for one in panels] == ["left", "disparity", "confidence", "right", "anaglyph"]
    left, disparity, confidence, right, anaglyph = (np.asarray(one.picture) for one in panels)
    assert all(one.shape == (HEIGHT, WIDTH, 3) for one in (left, disparity, confidence, right, anaglyph))
    assert (left == (255, 0, 0)).all() and (right == (0, 0, 255)).all() and (confidence == 255).all()
    assert disparity[:, :20].astype(int).sum() < disparity[:, 20:].astype(int).sum(), "near is bright"


def test_of_labels_only_the_masks_are_drawn():
    row = {name: value for name, value in plain_row().items() if name in LABEL_FEATURES}
    panels = make_panels(row)
    assert [one.title for one in panels] == ["disparity", "confidence", "right hole mask", "left visible mask"]
    assert not np.asarray(panels[2].picture).any() and np.asarray(panels[3].picture).all()


def test_unknown_disparities_are_black_and_photographs_upright():
    row = stored(make_row(0))  # disparity [1, 2] is unknown
    assert np.asarray(make_panels(row)[1].picture)[1, 2].tolist() == [0, 0, 0]
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    PIL.Image.new("RGB", (HEIGHT, WIDTH), "red").save(file, "PNG", exif=exif)
    assert make_panels(plain_row(left_image=file.getvalue()))[0].picture.size == (WIDTH, HEIGHT)


def test_a_sheet_has_titles_labels_and_panels_in_a_grid():
    sheet = contact_sheet([plain_row(), plain_row("lime", "yellow")], side=80)
    scaled = 48  # height of a panel: 24 / 40 of 80
    assert sheet.size == (GAP + 5 * (80 + GAP), GAP + LINE + 2 * (LINE + scaled + GAP))
    pixels = np.asarray(sheet)
    for place, colors in enumerate([((255, 0, 0), (0, 0, 255)), ((0, 255, 0), (255, 255, 0))]):
        y = GAP + LINE + place * (LINE + scaled + GAP) + LINE
        for column, color in zip((0, 3), colors, strict=True):
            x = GAP + column * (80 + GAP)
            assert (pixels[y : y + scaled, x : x + 80] == color).all()
    for column in range(5):
        title = pixels[GAP : GAP + LINE, GAP + column * (80 + GAP) :][:, :80]
        assert (title < 128).any(), f"a title stands over column {column}"
    assert label_of(plain_row()).startswith("0000000000000000   40 x 24 px   s = 0.100 (4 px)")


def test_sheets_refuse_nothing_to_draw():
    with pytest.raises(ValueError, match="`rows` must hold at least one row; got none"):
        contact_sheet([])
    with pytest.raises(ValueError, match="`side` must be at least 1 px; got 0"):
        contact_sheet([plain_row()], side=0)


def bar_heights(picture: PIL.Image.Image, parts: int) -> list[int]:
    """Count the coloured pixels in the middle column of each part."""
    painted = (np.asarray(picture) == BAR_COLOR).all(-1)
    edges = np.linspace(MARGIN_LEFT, HISTOGRAM_SIZE[0] - MARGIN_LEFT, parts + 1)
    return [int(painted[:, round((a + b) / 2)].sum()) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def test_bars_are_as_high_as_their_shares():
    full = HISTOGRAM_SIZE[1] - MARGIN_BOTTOM - MARGIN_TOP - LINE
    heights = bar_heights(histogram([3, 0, 6, 1], 0.0, 0.2, "share"), 4)
    for found, share in zip(heights, (0.5, 0, 1, 1 / 6), strict=True):
        assert abs(found - share * full) <= 2, (heights, full)
    assert bar_heights(histogram(np.zeros(3, int), 0, 1, "nothing"), 3) == [0, 0, 0]


def test_histograms_refuse_what_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"`counts` must be one row of numbers; got shape \[0\]"):
        histogram([], 0, 1, "t")
    with pytest.raises(ValueError, match="`highest` must be above `lowest`, 1; got 1"):
        histogram([1], 1, 1, "t")
