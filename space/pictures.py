# SPDX-License-Identifier: Apache-2.0
"""Files of a stereo pair: everything the page shows and everything it offers to download, as bytes.

Knows the outputs of the pipeline and the methods of its image processor, which are handed in; knows no page, no
network, no folder. The names and bytes of the files are those that the command line of the project writes.
"""

from __future__ import annotations

import io
import math
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.PngImagePlugin

ANAGLYPH_METHODS = {  # method of the pipeline -> what the page calls it
    "dubois": "Dubois: natural colours, little ghosting",
    "color": "Full colour: flickers at saturated colours",
    "half_color": "Half colour: flickers less",
    "optimized": "Optimised: no reds, hardly flickers",
    "gray": "Grey",
    "true": "Red-blue: dark, least ghosting",
}
LAYOUTS = {"parallel": "Parallel", "cross_eyed": "Cross-eyed"}
FRAME_SIZES = {"full": "Full width", "half": "Half width, for players"}
CLOUD_FORMATS = {"ply": "PLY", "glb": "GLB"}  # of the point cloud that is shown
CONVERGENCE_SHARE = 0.2  # of the width: the control's end, as far as depth is comfortable to set
SIDE_BY_SIDE_FILES = {  # file -> (layout, size)
    "stereo_LR.png": ("parallel", "full"),
    "stereo_RL.png": ("cross_eyed", "full"),
    "stereo_SBS_half.png": ("parallel", "half"),
    "stereo_RL_half.png": ("cross_eyed", "half"),
}
TOP_BOTTOM_FILES = {"stereo_TB.png": "full", "stereo_TB_half.png": "half"}
INVENTED_COLOR = (255, 0, 190)  # of the overlay: rare in photographs
INVENTED_OPACITY = 0.6
POINT_LIMIT = 1_000_000  # points of a cloud to download
SHOWN_POINT_LIMIT = 250_000  # points that the viewer of the page turns fluently
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that ZIP knows: equal files give an equal archive
WIGGLE_FRAME_MS = 150


@dataclass(frozen=True)
class PictureSettings:
    """What decides the pictures of a pair and needs no network.

    Attributes:
        convergence: px of disparity that lie in the plane of the screen, of every stereo picture.
        frame_ms: how long the wigglegram shows each view, a multiple of 10 ms.
        repeats_for_ever: of the wigglegram; False plays it once.
        fov_deg: horizontal field of view of the photograph, for the point clouds.
    """

    convergence: int = 0
    frame_ms: int = WIGGLE_FRAME_MS
    repeats_for_ever: bool = True
    fov_deg: float = 60.0


def encode_png(picture: PIL.Image.Image, comment: str | None = None) -> bytes:
    """Encode a picture losslessly, with its colour profile and a comment."""
    information = PIL.PngImagePlugin.PngInfo()
    if comment is not None:
        information.add_text("Comment", comment)
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=information)
    return file.getvalue()


def encode_tiff(picture: PIL.Image.Image) -> bytes:
    """Encode a picture as TIFF; mode "F" stays float32."""
    file = io.BytesIO()
    picture.save(file, "TIFF")
    return file.getvalue()


def made_views(target_view: str) -> tuple[str, ...]:
    """Names of the views that the pipeline made, in the order of its output."""
    return ("left", "right") if target_view == "both" else (target_view,)


def join_beside(pictures: list[PIL.Image.Image]) -> PIL.Image.Image:
    """Put pictures of one height beside each other; a single one is returned as it is."""
    if len(pictures) == 1:
        return pictures[0]
    joined = PIL.Image.new(pictures[0].mode, (sum(one.width for one in pictures), pictures[0].height))
    x = 0
    for one in pictures:
        joined.paste(one, (x, 0))
        x += one.width
    return joined


def overlay_invented(pair: Any) -> PIL.Image.Image:
    """Paint what was invented in each new view over it; with two new views, left beside right.

    Args:
        pair: output of the pipeline for one photograph, `output_type="pil"`.

    Returns:
        RGB picture; pixels outside the holes are those of the view.
    """
    painted = []
    for view, hole in zip(pair.images, pair.hole_mask, strict=True):
        pixels = np.asarray(view.convert("RGB"), dtype=np.float32)  # [H,W,3]
        mixed = (1 - INVENTED_OPACITY) * pixels + INVENTED_OPACITY * np.asarray(INVENTED_COLOR, np.float32)
        painted.append(PIL.Image.fromarray(np.rint(np.where(hole[..., None], mixed, pixels)).astype(np.uint8)))
    return join_beside(painted)


def encode_wiggle(pair: Any, processor: Any, settings: PictureSettings) -> bytes:
    """Encode the wigglegram as the GIF that the page shows."""
    frames = processor.wiggle(pair.left_image[0], pair.right_image[0], settings.convergence)
    return processor.export_wiggle_to_gif(frames, settings.frame_ms, loop=0 if settings.repeats_for_ever else 1)


def has_depth(pair: Any) -> bool:
    """Tell whether a point cloud can be made: some pixel has a disparity above 0."""
    return bool((pair.disparity[0] > 0).any())


def make_cloud(pair: Any, processor: Any, fov_deg: float, max_points: int) -> Any:
    """Place the photograph's pixels in space; unit: distance of the two cameras."""
    return processor.point_cloud(pair.input_images[0], pair.disparity[0], fov_deg, max_points=max_points)


def encode_shown_cloud(pair: Any, processor: Any, fov_deg: float, file_format: str) -> bytes:
    """Encode the point cloud of the viewer, "ply" or "glb".

    Raises:
        ValueError: another format, or a field of view outside (0, 180).
    """
    if file_format not in CLOUD_FORMATS:
        raise ValueError(f"`file_format` must be one of {tuple(CLOUD_FORMATS)}; got {file_format!r}.")
    cloud = make_cloud(pair, processor, fov_deg, SHOWN_POINT_LIMIT)
    if file_format == "glb":
        return processor.export_point_cloud_to_glb(cloud)
    return processor.export_point_cloud_to_ply(cloud)


def convergence_limit(disparity: np.ndarray) -> int:
    """Return the convergence (px) at which the control ends.

    Args:
        disparity: [H,W], px, >= 0.

    Returns:
        A fifth of the width, or up to where the nearest point lies in the screen if that is more; always such that a
        column of the picture is left.
    """
    width = disparity.shape[1]
    return min(width - 1, max(round(CONVERGENCE_SHARE * width), math.ceil(float(disparity.max()))))


def _view_files(pair: Any) -> Iterator[tuple[str, Callable[[], bytes]]]:
    yield "left.png", lambda: encode_png(pair.left_image[0])
    yield "right.png", lambda: encode_png(pair.right_image[0])
    if pair.target_view == "both":
        yield "photo.png", lambda: encode_png(pair.input_images[0])


def encode_disparity(pair: Any, processor: Any) -> tuple[bytes, float]:
    """Encode the disparity as 16-bit PNG; returns (bytes, codes per px), px = (code - 1) / codes per px."""
    encoded, png_scale = processor.export_disparity_to_16bit_png(pair.disparity[0])[0]
    return encode_png(encoded, f"px = (code - 1) / {png_scale:g}, code 0 = unknown"), png_scale


def _map_files(pair: Any, confidence: Any, processor: Any) -> Iterator[tuple[str, Callable[[], bytes]]]:
    disparity, views = pair.disparity[0], made_views(pair.target_view)
    yield "disparity.png", lambda: encode_disparity(pair, processor)[0]
    if confidence is not None:
        yield "confidence.png", lambda: encode_png(processor.visualize_confidence(confidence)[0])
    for number, view in enumerate(views):
        prefix = f"{view}_" if len(views) > 1 else ""
        for name, mask in (("hole_mask", pair.hole_mask[number]), ("visible_mask", pair.visible_mask[number])):
            yield f"{prefix}{name}.png", lambda mask=mask: encode_png(processor.visualize_mask(mask)[0])
        yield f"{prefix}warped.png", lambda number=number: encode_png(pair.warped_images[number])
    yield "disparity_color.png", lambda: encode_png(processor.visualize_disparity(disparity)[0])
    yield "disparity.tiff", lambda: encode_tiff(processor.export_disparity_to_tiff(disparity)[0])
    yield "disparity.pfm", lambda: processor.export_disparity_to_pfm(disparity)[0]


def _stereo_files(pair: Any, processor: Any, convergence: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    left, right = pair.left_image[0], pair.right_image[0]
    for name, (layout, size) in SIDE_BY_SIDE_FILES.items():
        yield (
            name,
            lambda layout=layout, size=size: encode_png(
                processor.side_by_side(left, right, layout, size, convergence)
            ),
        )
    for name, size in TOP_BOTTOM_FILES.items():
        yield name, lambda size=size: encode_png(processor.top_bottom(left, right, size, convergence))
    yield "stereo.mpo", lambda: processor.export_views_to_mpo(left, right, convergence=convergence)
    for method in ANAGLYPH_METHODS:
        name = "anaglyph.png" if method == "dubois" else f"anaglyph_{method}.png"
        yield name, lambda method=method: encode_png(processor.anaglyph(left, right, method, convergence))


def _wiggle_files(pair: Any, processor: Any, settings: PictureSettings) -> Iterator[tuple[str, Callable[[], bytes]]]:
    def frames() -> list[PIL.Image.Image]:
        return processor.wiggle(pair.left_image[0], pair.right_image[0], settings.convergence)

    loop = 0 if settings.repeats_for_ever else 1
    yield "wiggle.gif", lambda: encode_wiggle(pair, processor, settings)
    yield "wiggle.webp", lambda: processor.export_wiggle_to_webp(frames(), settings.frame_ms, loop=loop)
    try:
        processor.require_mp4()
    except ImportError:
        return  # an optional package of the pipeline: no video then
    yield "wiggle.mp4", lambda: processor.export_wiggle_to_mp4(frames(), settings.frame_ms)


def _cloud_files(pair: Any, processor: Any, fov_deg: float) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if has_depth(pair):
        cloud = make_cloud(pair, processor, fov_deg, POINT_LIMIT)
        yield "points.ply", lambda: processor.export_point_cloud_to_ply(cloud)
        yield "points.glb", lambda: processor.export_point_cloud_to_glb(cloud)


def make_files(
    pair: Any, confidence: Any, processor: Any, settings: PictureSettings
) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Name every file of a pair, each with the function that makes its bytes.

    Args:
        pair: output of the pipeline for one photograph, `output_type="pil"`.
        confidence: [H,W] in [0,1], or None where the depth network did not run.
        processor: `pipe.image_processor`.
        settings: of the pictures.

    Yields:
        (file name, function that returns its bytes), in the order of a reader's interest: views, maps, stereo
        pictures, wigglegrams, point clouds. A video only where the packages for it are installed, point clouds only
        where there is depth.

    Raises:
        ValueError: from the functions, where a format cannot hold the picture.
    """
    yield from _view_files(pair)
    yield from _map_files(pair, confidence, processor)
    yield from _stereo_files(pair, processor, settings.convergence)
    yield from _wiggle_files(pair, processor, settings)
    yield from _cloud_files(pair, processor, settings.fov_deg)


def write_zip(target: Path, files: list[Path]) -> None:
    """Pack files into a ZIP archive, stored, for most are compressed already; equal files give equal bytes."""
    partial = target.with_name(f".{target.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            entry = zipfile.ZipInfo(file.name, ZIP_DATE)
            entry.external_attr = 0o644 << 16  # readable where it is unpacked
            with file.open("rb") as source, archive.open(entry, "w", force_zip64=True) as packed:
                shutil.copyfileobj(source, packed)
    partial.rename(target)
