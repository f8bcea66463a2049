# SPDX-License-Identifier: Apache-2.0
"""One batch of photographs of one size -> their rows: decode, networks, encode. Knows nothing of plans and shards.

Three stages, so that threads can decode ahead of the device and encode behind it:

    decode_photo   bytes of a file -> pixels as the pipeline sees them, and the bytes that are published
    make_pairs     pixels -> disparity, confidence, right view and masks; the only stage that needs the device
    encode_row     one pair -> a row of the data set
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

import pipeline_zerostereo
from datasets_builder.photo_files import open_photo, strip_metadata
from datasets_builder.plan import UNREADABLE, PlannedPhoto, pair_seed, photo_id, sentence
from datasets_builder.schema import (
    FEATURES,
    LABEL_FEATURES,
    encode_confidence,
    encode_disparity,
    encode_mask,
    encode_preview,
    encode_view,
)
from pipeline_zerostereo import (
    Photographs,
    StereoImageProcessor,
    ZeroStereoPipeline,
    forward_warp,
    sample_disparity_scale,
)


class UnusablePhotoError(Exception):
    """A photograph that gets no pair; `kind` as in `Rejection`."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


class DecodedPhoto(NamedTuple):
    """A photograph as the pipeline sees it and as it is published.

    Attributes:
        photographs: one photograph, in its own colours.
        published: bytes of the file, without metadata unless kept.
    """

    photographs: Photographs
    published: bytes


@dataclass(frozen=True)
class Pair:
    """What the networks made of one photograph, on the CPU.

    Attributes:
        disparity_png: the stored disparity; `disparity` is what a reader decodes, and the pair was made from it.
        disparity_png_scale: codes per px.
        disparity: [H,W] float32, px.
        confidence: [H,W] float32 in [0,1].
        right_image: RGB, in the colours of the photograph.
        right_hole_mask: [H,W] bool, right view.
        left_visible_mask: [H,W] bool, left view.
        disparity_scale: s.
        flip_agreement: mean, smallest and largest u.
    """

    disparity_png: bytes
    disparity_png_scale: float
    disparity: np.ndarray
    confidence: np.ndarray
    right_image: PIL.Image.Image
    right_hole_mask: np.ndarray
    left_visible_mask: np.ndarray
    disparity_scale: float
    flip_agreement: tuple[float, float, float]


def decode_photo(data: bytes, photo: PlannedPhoto, keep_metadata: bool = False) -> DecodedPhoto:
    """Decode a photograph.

    Only photographs are taken whose RGB conversion by Pillow, which readers of the data set apply, gives the very
    pixels that the pipeline sees: colour and grey of 8 bits, palettes, bilevel, opaque alpha. Others (CMYK, 16 bits,
    transparency) would mean another picture to a reader than the one that the disparity belongs to.

    Args:
        data: of the file.
        photo: what the plan says of it.
        keep_metadata: publish the file as it is.

    Raises:
        UnusablePhotoError: the file is not the planned one, cannot be decoded, or fails the rule above.
    """
    if photo_id(data) != photo.id:
        raise UnusablePhotoError("changed", "the file is not the one that was planned; its bytes have changed since")
    try:
        published = data if keep_metadata else strip_metadata(data).data
        with open_photo(published) as picture:
            picture.load()
            upright = PIL.ImageOps.exif_transpose(picture)
            photographs = StereoImageProcessor.load(picture)
    except UNREADABLE as error:
        raise UnusablePhotoError("unreadable", sentence(error)) from error
    if upright.mode != "RGB" or upright.info.get("transparency") is not None:
        seen = np.asarray(upright.convert("RGB"))
        used = (photographs.pixels[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        if not np.array_equal(seen, used):
            reason = f"mode {picture.mode}: its conversion to RGB is a matter of interpretation; convert it beforehand"
            raise UnusablePhotoError("colors", reason)
    if tuple(photographs.pixels.shape[-2:]) != (photo.height, photo.width):
        height, width = photographs.pixels.shape[-2:]
        raise UnusablePhotoError(
            "unreadable", f"{width} x {height} px decoded, {photo.width} x {photo.height} announced"
        )
    return DecodedPhoto(photographs, published)


@torch.no_grad()
def make_pairs(
    pipe: ZeroStereoPipeline, photographs: Photographs, seeds: list[int], fill: str, steps: int | None
) -> list[Pair]:
    """Make the pairs of photographs of one size with the pipeline's public steps.

    The disparity is quantised first and the pair is made from the quantised map, so that a reader's warp reproduces
    it. Everything random of a photograph is drawn on the CPU from a generator of its own seed: first the scale, then
    the noise.

    Args:
        pipe: the pipeline.
        photographs: pixels [B,3,H,W].
        seeds: one per photograph.
        fill: as in the pipeline.
        steps: denoising steps; None = as the weights are configured.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    pixels = photographs.pixels.to(pipe.device)  # [B,3,H,W]
    photographs = Photographs(pixels, photographs.icc_profiles)
    normalized, flip = pipe.estimate_inverse_depth(photographs)  # [B,1,H,W], 2 x [B,1,H,W]
    scale = sample_disparity_scale(len(pixels), generators)  # [B]
    disparity = pipe.select_disparity(normalized, scale)  # [B,1,H,W]
    encoded = [encode_disparity(one) for one in disparity[:, 0].cpu().numpy()]
    disparity = torch.from_numpy(np.stack([one.disparity for one in encoded]))[:, None].to(pixels)
    warp = forward_warp(pixels, disparity)
    right = pipe.inpaint(
        Photographs(warp.right_image, photographs.icc_profiles),
        warp.right_hole_mask,
        warp.right_disparity,
        fill=fill,
        num_inference_steps=None if fill == "background" else steps,
        generator=generators,
    )  # [B,3,H,W]
    views = StereoImageProcessor.postprocess(right, "pil", photographs.icc_profiles)
    agreement = flip.agreement.flatten(1)
    statistics = torch.stack([agreement.mean(1), agreement.amin(1), agreement.amax(1)], dim=1).tolist()
    return [
        Pair(
            disparity_png=encoded[i].png,
            disparity_png_scale=encoded[i].png_scale,
            disparity=encoded[i].disparity,
            confidence=_map(flip.confidence, i),
            right_image=views[i],
            right_hole_mask=_map(warp.right_hole_mask, i),
            left_visible_mask=_map(warp.left_visible_mask, i),
            disparity_scale=float(scale[i]),
            flip_agreement=tuple(statistics[i]),
        )
        for i in range(len(pixels))
    ]


def _map(value: Tensor, index: int) -> np.ndarray:
    return value[index, 0].cpu().numpy()


def encode_row(
    photo: PlannedPhoto, decoded: DecodedPhoto, pair: Pair, constants: dict[str, Any], labels_only: bool = False
) -> dict[str, Any]:
    """Encode one pair as a row of FEATURES, or of LABEL_FEATURES.

    Args:
        photo: what the plan says of the photograph.
        decoded: the photograph.
        pair: what the networks made of it.
        constants: `seed`, `pipeline_revision` and `weights_id`.
        labels_only: leave the pictures out.
    """
    row = {
        "id": photo.id,
        "disparity": pair.disparity_png,
        "confidence": encode_confidence(pair.confidence),
        "right_hole_mask": encode_mask(pair.right_hole_mask),
        "left_visible_mask": encode_mask(pair.left_visible_mask),
        "disparity_scale": pair.disparity_scale,
        "disparity_png_scale": pair.disparity_png_scale,
        "flip_agreement": pair.flip_agreement[0],
        "flip_agreement_min": pair.flip_agreement[1],
        "flip_agreement_max": pair.flip_agreement[2],
        "width": photo.width,
        "height": photo.height,
        "source": photo.source,
        "license": photo.license,
        "attribution": photo.attribution,
        **constants,
    }
    if not labels_only:
        left = StereoImageProcessor.postprocess(decoded.photographs.pixels, "pil")[0]
        row["left_image"] = decoded.published
        row["right_image"] = encode_view(pair.right_image)
        row["preview"] = encode_preview(left, pair.disparity)
    return {name: row[name] for name in (LABEL_FEATURES if labels_only else FEATURES)}


def pair_constants(base_seed: int, id: str, pipeline_revision: str, weights_id: str) -> dict[str, Any]:
    """Return the columns of a row that neither photograph nor networks decide."""
    return {
        "seed": pair_seed(base_seed, id),
        "pipeline_revision": pipeline_revision,
        "weights_id": weights_id,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Which pipeline
# ---------------------------------------------------------------------------------------------------------------------


def pipeline_revision() -> str:
    """Return the first 16 digits of the sha256 of the pipeline's code."""
    return hashlib.sha256(Path(pipeline_zerostereo.__file__).read_bytes()).hexdigest()[:16]


def weights_id(pipe: ZeroStereoPipeline) -> str:
    """Return 16 digits that name weights and configuration, wherever they were loaded from.

    They are taken from the tensors as loaded, their dtype included, and from the configurations of the pipeline and
    its scheduler, without paths and library versions.
    """
    digest = hashlib.sha256()
    for config in (pipe.config, pipe.scheduler.config):
        known = {key: value for key, value in sorted(config.items()) if not key.startswith("_")}
        digest.update(json.dumps(known, sort_keys=True, default=str).encode())
    for name, component in sorted(pipe.components.items()):
        if not isinstance(component, torch.nn.Module):
            continue
        digest.update(name.encode())
        for key, tensor in sorted(component.state_dict().items()):
            digest.update(f"{key}{list(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
