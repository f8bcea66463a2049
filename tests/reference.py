# SPDX-License-Identifier: Apache-2.0
"""Slow, obvious versions of the tensor functions in pipeline_zerostereo.py, for tests and benchmarks only.

One image at a time, plain Python loops, float64. Images are numpy [C,H,W], maps and masks numpy [H,W]. Each function
is meant to be checked by reading it against the definition; none shares a line of thought with the fast version.
"""

import math
from typing import NamedTuple

import numpy as np

SMALLEST_FRACTION_PX = 1e-13  # a disparity this close above a whole number counts as the whole number


class LoopWarp(NamedTuple):
    """What `forward_warp_loop` returns, of one image."""

    right_image: np.ndarray  # [C,H,W]
    right_hole_mask: np.ndarray  # [H,W], bool
    left_visible_mask: np.ndarray  # [H,W], bool
    right_disparity: np.ndarray  # [H,W]


class LoopSharpened(NamedTuple):
    """What `sharpen_disparity_loop` returns, of one map."""

    dilated: np.ndarray  # [H,W]
    sobel: np.ndarray  # [H,W]
    edge: np.ndarray  # [H,W], bool
    sources: list  # [H][W]: the set of values which the pixel may take (several where sources are equally near)
    lowest: np.ndarray  # [H,W], smallest of these values
    highest: np.ndarray  # [H,W], largest of these values


def normalize_inverse_depth_loop(inverse_depth: np.ndarray) -> np.ndarray:
    """Map the smallest value of one map to 0, the largest to 1; a constant map to zeros."""
    values = [float(value) for row in inverse_depth for value in row]
    smallest, largest = min(values), max(values)
    normalized = np.zeros(inverse_depth.shape)
    for y, row in enumerate(inverse_depth):
        for x, value in enumerate(row):
            if largest > smallest:
                normalized[y, x] = (float(value) - smallest) / (largest - smallest)
    return normalized


def flip_consistency_loop(normalized: np.ndarray, normalized_of_mirror: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (confidence, agreement) of one image."""
    agreement = np.zeros(normalized.shape)
    for y in range(normalized.shape[0]):
        for x in range(normalized.shape[1]):
            agreement[y, x] = 1 - abs(float(normalized[y, x]) - float(normalized_of_mirror[y, x]))
    if agreement.max() == agreement.min():
        return np.ones(agreement.shape), agreement
    return normalize_inverse_depth_loop(agreement), agreement


def scale_from_uniforms_loop(segment_draw, position_draw, center: float = 0.1, radius: float = 0.05) -> list[float]:
    """Map pairs of uniform numbers to disparity scales, one after the other."""
    scales = []
    for segment, position in zip(segment_draw, position_draw, strict=True):
        low, high = center - radius, center + radius
        if segment < 0.1:
            low, high = center - 2 * radius, center - radius
        if segment > 0.9:
            low, high = center + radius, center + 2 * radius
        scales.append(low + position * (high - low))
    return scales


def dilate_with_cross_loop(disparity: np.ndarray) -> np.ndarray:
    """Give each pixel the largest value among itself and its four neighbours inside the image."""
    height, width = disparity.shape
    dilated = np.zeros((height, width), dtype=disparity.dtype)
    for y in range(height):
        for x in range(width):
            near = [(y, x), (y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            dilated[y, x] = max(disparity[v, u] for v, u in near if 0 <= v < height and 0 <= u < width)
    return dilated


def sobel_loop(values: np.ndarray) -> np.ndarray:
    """Return sqrt((gx^2 + gy^2) / 2) of central differences smoothed by [1,2,1]/4; the border is repeated outwards."""
    height, width = values.shape

    def at(y: int, x: int) -> float:
        return float(values[min(max(y, 0), height - 1), min(max(x, 0), width - 1)])

    magnitude = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            gx = sum(weight * (at(y + k, x + 1) - at(y + k, x - 1)) for k, weight in ((-1, 0.25), (0, 0.5), (1, 0.25)))
            gy = sum(weight * (at(y + 1, x + k) - at(y - 1, x + k)) for k, weight in ((-1, 0.25), (0, 0.5), (1, 0.25)))
            magnitude[y, x] = math.sqrt((gx * gx + gy * gy) / 2)
    return magnitude


def sharpen_disparity_loop(disparity: np.ndarray, threshold: float = 3.0) -> LoopSharpened:
    """Dilate, find edges, and list for every edge pixel the values of the non-edge pixels nearest to it."""
    dilated = dilate_with_cross_loop(disparity)
    sobel = sobel_loop(dilated)
    edge = sobel > threshold
    height, width = disparity.shape
    calm = [(y, x) for y in range(height) for x in range(width) if not edge[y, x]]
    sources = [[{float(dilated[y, x])} for x in range(width)] for y in range(height)]
    for y in range(height):
        for x in range(width):
            if edge[y, x] and calm:
                squared_distances = [(y - v) ** 2 + (x - u) ** 2 for v, u in calm]
                nearest = min(squared_distances)
                sources[y][x] = {
                    float(dilated[place])
                    for place, squared in zip(calm, squared_distances, strict=True)
                    if squared == nearest
                }
    lowest = np.array([[min(values) for values in row] for row in sources])
    highest = np.array([[max(values) for values in row] for row in sources])
    return LoopSharpened(dilated, sobel, edge, sources, lowest, highest)


def targets_in_frame(x: int, disparity: float, width: int) -> list[int]:
    """Return the columns of the right view that left column `x` covers: floor and ceiling of x - disparity.

    Each is dropped on its own when it lies outside the frame. A disparity that is not finite covers nothing.
    """
    if not math.isfinite(disparity):
        return []
    whole = math.floor(disparity)
    fraction = disparity - whole
    targets = {x - whole} if fraction < SMALLEST_FRACTION_PX else {x - whole - 1, x - whole}
    return sorted(target for target in targets if 0 <= target < width)


def forward_warp_loop(left_image: np.ndarray, disparity: np.ndarray) -> LoopWarp:
    """Warp one image to the right view: for every row, for every target column, ask every source column.

    Rules. (1) A target takes the largest disparity among the sources that cover it; none: a hole. (2) Its colour is
    the left image sampled linearly at target + disparity, not beyond the last column. (3) A source is visible unless
    each target that it keeps is also covered by a source two or more columns to its right; with no target it is
    invisible.
    """
    channels, height, width = left_image.shape
    right_image = np.zeros((channels, height, width))
    hole = np.ones((height, width), dtype=bool)
    visible = np.zeros((height, width), dtype=bool)
    right_disparity = np.zeros((height, width))
    for y in range(height):
        row = [float(value) for value in disparity[y]]
        targets = [targets_in_frame(x, row[x], width) for x in range(width)]
        for target in range(width):
            for x in range(width):
                if target in targets[x] and (hole[y, target] or row[x] > right_disparity[y, target]):
                    hole[y, target] = False
                    right_disparity[y, target] = row[x]
            if not hole[y, target]:
                place = min(target + right_disparity[y, target], width - 1)
                before = math.floor(place)
                after = min(before + 1, width - 1)
                for c in range(channels):
                    start, end = float(left_image[c, y, before]), float(left_image[c, y, after])
                    right_image[c, y, target] = start + (end - start) * (place - before)
        for x in range(width):
            for target in targets[x]:
                if not any(target in targets[other] for other in range(x + 2, width)):
                    visible[y, x] = True
    return LoopWarp(right_image, hole, visible, right_disparity)


def fill_from_background_loop(
    right_image: np.ndarray, right_hole_mask: np.ndarray, right_disparity: np.ndarray
) -> np.ndarray:
    """Give each run of holes in a row the colour of the pixel beside it that is farther away (smaller disparity).

    Equal disparities: the right one. Only one side known: that one. A row with no known pixel stays as it is.
    """
    filled = right_image.copy()
    height, width = right_hole_mask.shape
    for y in range(height):
        x = 0
        while x < width:
            if not right_hole_mask[y, x]:
                x += 1
                continue
            start = x
            while x < width and right_hole_mask[y, x]:
                x += 1
            left, right = start - 1, x
            if left < 0 and right == width:
                continue
            if left < 0:
                source = right
            elif right == width:
                source = left
            else:
                source = left if right_disparity[y, left] < right_disparity[y, right] else right
            for column in range(start, x):
                filled[:, y, column] = right_image[:, y, source]
    return filled


def reduce_mask_to_latent_loop(mask: np.ndarray, factor: int, reduction: str) -> np.ndarray:
    """Reduce a mask cell by cell: "nearest" asks the top-left pixel, "max" whether any pixel of the cell is True."""
    height, width = mask.shape[0] // factor, mask.shape[1] // factor
    reduced = np.zeros((height, width), dtype=bool)
    for y in range(height):
        for x in range(width):
            cell = mask[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            reduced[y, x] = cell[0, 0] if reduction == "nearest" else cell.any()
    return reduced


def shrink_warped_view_loop(
    image: np.ndarray, hole_mask: np.ndarray, disparity: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of the known pixels of each cell; a cell of which more than half is hole is a hole.

    A cell holds the rows floor(i H / height) to ceil((i + 1) H / height), and columns alike: torch's adaptive pooling.
    """
    B, C, H, W = image.shape
    small = np.zeros((B, C, height, width))
    small_hole = np.zeros((B, 1, height, width), dtype=bool)
    small_disparity = np.zeros((B, 1, height, width))
    for b in range(B):
        for i in range(height):
            for j in range(width):
                rows = slice(i * H // height, -(-(i + 1) * H // height))
                columns = slice(j * W // width, -(-(j + 1) * W // width))
                known = ~hole_mask[b, 0, rows, columns]
                if 2 * known.sum() < known.size:
                    small_hole[b, 0, i, j] = True
                    continue
                for c in range(C):
                    small[b, c, i, j] = image[b, c, rows, columns][known].mean(dtype=np.float64)
                small_disparity[b, 0, i, j] = disparity[b, 0, rows, columns][known].mean(dtype=np.float64)
    return small, small_hole, small_disparity
