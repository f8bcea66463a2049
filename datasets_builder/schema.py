# SPDX-License-Identifier: Apache-2.0
"""What a published stereo pair is: columns, how maps become 16-bit PNG files, and how a row becomes training arrays.

    from datasets import load_dataset
    from datasets_builder.schema import decode_pair

    pairs = load_dataset("USER/PAIRS", split="train", streaming=True).map(decode_pair)

Maps are stored as codes: 0 = invalid, else value = (code - 1) / scale, so that a true 0 survives (the farthest pixel
of every map has disparity 0 px). This file knows neither networks nor shards.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from datasets import Features, Image, Value
from torch import Tensor

from pipeline_zerostereo import StereoImageProcessor

LARGEST_CODE = 65535
CONFIDENCE_SCALE = 65534.0  # codes per unit of confidence: 1.0 is the largest code
UNKNOWN_SEED = -1  # of pairs that another program made; ours are at least 0
PREVIEW_SIDE = 256  # px, longest side of each half of the preview
PREVIEW_QUALITY = 80  # JPEG quality of the preview
RUN_LENGTHS = 3  # zlib's Z_RLE: maps and photographs take half the time, and at most 9 % more bytes, than by default

FEATURES = Features(
    {
        "id": Value("string"),  # first 16 hexadecimal digits of the sha256 of the original file
        "left_image": Image(mode="RGB"),  # the photograph, never encoded again
        "right_image": Image(mode="RGB"),  # the generated right view, PNG
        "disparity": Image(),  # 16-bit PNG, px of the left view, see disparity_png_scale
        "confidence": Image(),  # 16-bit PNG, [0,1] of the left view, see CONFIDENCE_SCALE
        "right_hole_mask": Image(),  # 8-bit PNG, 255 = invented, right view
        "left_visible_mask": Image(),  # 8-bit PNG, 255 = also seen in the right view, left view
        "preview": Image(),  # small JPEG for people: left view beside the disparity's colour map
        "disparity_scale": Value("float32"),  # s, largest disparity as a share of the width
        "disparity_png_scale": Value("float32"),  # codes per px
        "flip_agreement": Value("float32"),  # mean of u in [0,1]; comparable between pairs, unlike the confidence
        "flip_agreement_min": Value("float32"),
        "flip_agreement_max": Value("float32"),
        "seed": Value("int64"),
        "width": Value("int32"),  # px, upright
        "height": Value("int32"),
        "source": Value("string"),  # where the photograph came from: path below the folder, or row of a data set
        "license": Value("string"),  # of the photograph; empty = not stated
        "attribution": Value("string"),
        "pipeline_revision": Value("string"),  # sha256 digits of the pipeline's code
        "weights_id": Value("string"),  # sha256 digits of the weights and their configuration
    }
)
PICTURE_COLUMNS = ("left_image", "right_image", "preview")
LABEL_FEATURES = Features({name: kind for name, kind in FEATURES.items() if name not in PICTURE_COLUMNS})


class EncodedDisparity(NamedTuple):
    """A disparity map as it is stored.

    Attributes:
        png: bytes of a 16-bit PNG file.
        png_scale: codes per px.
        disparity: [H,W] float32, px, what a reader decodes; 0 where invalid.
        valid: [H,W] bool.
    """

    png: bytes
    png_scale: float
    disparity: np.ndarray
    valid: np.ndarray


def encode_disparity(disparity: np.ndarray) -> EncodedDisparity:
    """Store a disparity map as a 16-bit PNG.

    Args:
        disparity: [H,W] float, px, >= 0; not finite = invalid.

    Returns:
        EncodedDisparity. Scale 256 up to 255.9 px, error at most 1/512 px; beyond, the scale is halved until the
        largest disparity fits. Scales are powers of two, so decoded values are exact in float32.

    Raises:
        ValueError: not [H,W], or a negative disparity.
    """
    if disparity.ndim != 2:
        raise ValueError(f"`disparity` must have shape [H,W]; got {list(disparity.shape)}.")
    picture, png_scale = StereoImageProcessor.export_disparity_to_16bit_png(disparity)[0]
    decoded, valid = decode_codes(np.asarray(picture), png_scale)
    return EncodedDisparity(_png(picture), png_scale, decoded, valid)


def decode_codes(codes: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Turn codes into values.

    Args:
        codes: [...] of an integer type; 0 = invalid.
        scale: codes per unit, > 0.

    Returns:
        (values [...] float32, 0 where invalid; valid [...] bool).

    Raises:
        ValueError: codes of a float type, or a scale that is not above 0.
    """
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"`codes` must be integers; got {codes.dtype}.")
    if not scale > 0:
        raise ValueError(f"`scale` must be above 0 codes per unit; got {scale}.")
    valid = codes > 0
    values = np.where(valid, (codes.astype(np.float64) - 1) / scale, 0.0)
    return values.astype(np.float32), valid


def encode_confidence(confidence: np.ndarray) -> bytes:
    """Store a confidence map [H,W] in [0,1] as a 16-bit PNG; not finite = invalid.

    Raises:
        ValueError: not [H,W], or values outside [0,1].
    """
    if confidence.ndim != 2:
        raise ValueError(f"`confidence` must have shape [H,W]; got {list(confidence.shape)}.")
    known = np.isfinite(confidence)
    values = np.where(known, confidence, 0.0).astype(np.float32)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"`confidence` must lie in [0, 1]; got {values.min():g} to {values.max():g}.")
    codes = (values * np.float32(CONFIDENCE_SCALE) + np.float32(1.5)).astype(np.uint16)  # rounds, then adds 1
    return _png(PIL.Image.fromarray(np.where(known, codes, np.uint16(0))))


def encode_mask(mask: np.ndarray) -> bytes:
    """Store a mask [H,W] bool as an 8-bit PNG, 255 = True.

    Raises:
        ValueError: not [H,W], or not bool.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"`mask` must be bool of shape [H,W]; got {mask.dtype} {list(mask.shape)}.")
    return _png(PIL.Image.fromarray(mask.astype(np.uint8) * 255))


def encode_view(view: PIL.Image.Image) -> bytes:
    """Store a generated view as a PNG with its colour profile."""
    return _png(view)


def encode_preview(left_image: PIL.Image.Image, disparity: np.ndarray) -> bytes:
    """Make a small JPEG for people: the left view beside the colour map of its disparity [H,W]; no metadata."""
    side = max(left_image.size)
    width, height = (max(1, round(length * min(1.0, PREVIEW_SIDE / side))) for length in left_image.size)
    small = PIL.Image.fromarray(disparity.astype(np.float32)).resize((width, height), PIL.Image.Resampling.NEAREST)
    colors = StereoImageProcessor.visualize_map(np.asarray(small))[0]
    sheet = PIL.Image.new("RGB", (2 * width, height))
    sheet.paste(left_image.convert("RGB").resize((width, height), PIL.Image.Resampling.BOX), (0, 0))
    sheet.paste(colors, (width, 0))
    encoded = io.BytesIO()
    sheet.save(encoded, "JPEG", quality=PREVIEW_QUALITY)
    return encoded.getvalue()


def _png(picture: PIL.Image.Image) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, "PNG", compress_level=1, compress_type=RUN_LENGTHS)
    return encoded.getvalue()


def decode_pair(row: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a row into arrays for training.

    Args:
        row: of the published data set in any form that `datasets` hands out: PIL images, `Image(decode=False)`
            records, or with_format "numpy" or "torch". Columns that are missing (`--labels-only`) stay missing.

    Returns:
        Dictionary of arrays: `left_image`, `right_image` [3,H,W] float32 in [0,1]; `disparity` [1,H,W] float32 px of
        the left view, 0 where invalid; `valid_disparity_mask` [1,H,W] bool; `confidence` [1,H,W] float32 in [0,1];
        `right_hole_mask`, `left_visible_mask` [1,H,W] bool; and the columns that are no pictures as they are.
        `preview` is left out.

    Raises:
        ValueError: a map that is not 16-bit, or pictures and maps of different sizes.
    """
    pair: dict[str, Any] = {name: row[name] for name in row if name in FEATURES and not _is_picture(name)}
    for name in ("left_image", "right_image"):
        if name in row:
            pixels = _load_pixels(row[name], "RGB")  # [H,W,3] uint8
            pair[name] = np.ascontiguousarray(pixels.transpose(2, 0, 1).astype(np.float32) / 255)
    disparity, valid = decode_codes(_load_codes(row["disparity"], "disparity"), float(row["disparity_png_scale"]))
    confidence, _ = decode_codes(_load_codes(row["confidence"], "confidence"), CONFIDENCE_SCALE)
    pair |= {"disparity": disparity[None], "valid_disparity_mask": valid[None], "confidence": confidence[None]}
    for name in ("right_hole_mask", "left_visible_mask"):
        pair[name] = _load_pixels(row[name], "L")[None] > 127
    sizes = {
        name: value.shape[1:] for name, value in pair.items() if isinstance(value, np.ndarray) and value.ndim == 3
    }
    if len(set(sizes.values())) > 1:
        raise ValueError(f"`row` must hold pictures and maps of one size; got {sizes}.")
    return pair


def _is_picture(name: str) -> bool:
    return isinstance(FEATURES[name], Image)


def _load_pixels(value: Any, mode: str) -> np.ndarray:
    """Load a stored picture as [H,W,3] uint8 ("RGB") or [H,W] ("L"), upright."""
    if isinstance(value, Mapping):
        value = PIL.Image.open(io.BytesIO(value["bytes"]))
    if isinstance(value, PIL.Image.Image):
        return np.asarray(PIL.ImageOps.exif_transpose(value).convert(mode))
    pixels = value.movedim(0, -1).numpy() if isinstance(value, Tensor) and value.ndim == 3 else np.asarray(value)
    return pixels[..., 0] if mode == "L" and pixels.ndim == 3 else pixels


def _load_codes(value: Any, name: str) -> np.ndarray:
    """Load a stored 16-bit map as [H,W] of an integer type."""
    if isinstance(value, Mapping):
        value = PIL.Image.open(io.BytesIO(value["bytes"]))
    if isinstance(value, Tensor):
        value = value.to(torch.int32).numpy()
    codes = np.asarray(value)
    codes = codes[0] if codes.ndim == 3 else codes
    if codes.ndim != 2 or codes.dtype not in (np.uint16, np.int32):
        raise ValueError(f"`{name}` must be a 16-bit grey picture; got {codes.dtype} {list(codes.shape)}.")
    return codes
