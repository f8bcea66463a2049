# SPDX-License-Identifier: Apache-2.0
"""Read the disparity files of public stereo data sets: bytes on disk -> pixels and a valid mask.

One function per data set, and `read_picture` for the frames beside the maps. Which files belong together, and how many
there must be, is known by stereo_datasets.py; nothing here looks at more than the named file and, where the format
says so, its companion in the same folder (camera settings, mask).

Every function returns a `DisparityMap`, whose rule is the same for all sets: valid is what the file states and a warp
can use, that is, a finite disparity >= 0; everything else holds 0. The official readers of ZeroStereo
(https://github.com/Windsrain/ZeroStereo) state infinite disparities as valid in places; the docstrings say where we
differ. A file that is missing, truncated or of another kind raises `DataFileError`, which names it.

Letters: H W pixels of the frame.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

# Scene Flow (Mayer et al., CVPR 2016): the bound of the official ZeroStereo reader; frames are 960 px wide, so what is
# beyond it can be in no other view.
SCENE_FLOW_DISPARITY_LIMIT_PX = 1024.0
# TartanAir (Wang et al., IROS 2020), camera intrinsics of its documentation: 640x480 at 90 degrees.
TARTANAIR_FOCAL_PX = 320.0
TARTANAIR_BASELINE_M = 0.25
# CREStereo (Li et al., CVPR 2022), README of its training set: 16-bit PNG in 1/32 px.
CRESTEREO_STEPS_PER_PX = 32.0
# Falling Things (Tremblay et al., CVPR workshops 2018), its readme: baseline 6 cm, depth PNG in 0.1 mm.
FALLING_THINGS_BASELINE_M = 0.06
FALLING_THINGS_STEPS_PER_M = 10_000.0
FALLING_THINGS_CAMERA_FILE = "_camera_settings.json"
# Virtual KITTI 2 (Cabon et al., 2020), its documentation: depth PNG in cm; 65535 where nothing is nearer.
VKITTI2_FOCAL_PX = 725.0087
VKITTI2_BASELINE_M = 0.532725
VKITTI2_STEPS_PER_M = 100.0
VKITTI2_FARTHEST_M = 655.0
# KITTI 2012 and 2015 (Geiger et al.; Menze and Geiger), development kit: 16-bit PNG in 1/256 px, 0 = unknown.
KITTI_STEPS_PER_PX = 256.0
# Middlebury 2014 (MiddEval3) and ETH3D two-view: PNG beside the map, 255 = seen by both views, 128 = by the left one.
REGION_MASK_FILE = "mask0nocc.png"
SEEN_BY_BOTH_VIEWS = 255

SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
PICTURE_MODES = ("RGB", "RGBA", "L", "P")
PFM_HEADER = re.compile(rb"(P[Ff])\s+(\d+)\s+(\d+)\s+([+-]?[0-9.]+(?:[eE][+-]?\d+)?)(?:\r\n|\s)")
PFM_HEADER_LIMIT = 256  # bytes looked through for a header


class DataFileError(ValueError):
    """A file of a data set that cannot be used; the message begins with its path.

    Attributes:
        path: the file.
    """

    def __init__(self, path: str | Path, problem: str):
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = str(path), problem

    def __reduce__(self):
        """Let the error travel from a loader's worker process."""
        return type(self), (self.path, self.problem)


class DisparityMap(NamedTuple):
    """Disparity of the left view.

    disparity: [H,W] float32, pixels at width W, finite and >= 0; 0 where it is not valid.
    valid: [H,W] bool, True where the file states a disparity.
    """

    disparity: np.ndarray
    valid: np.ndarray


def _keep_valid(disparity: np.ndarray, valid: np.ndarray) -> DisparityMap:
    """Bring any float map to the rule of `DisparityMap`: valid only where also finite and >= 0, 0 elsewhere."""
    valid = valid & np.isfinite(disparity) & (disparity >= 0)
    return DisparityMap(np.where(valid, disparity, 0).astype(np.float32), valid)


def _disparity_of_depth(depth_m: np.ndarray, focal_px: float, baseline_m: float) -> np.ndarray:
    """Give focal * baseline / depth in px; infinite where the depth is not positive."""
    positive = depth_m > 0
    return np.where(positive, focal_px * baseline_m / np.where(positive, depth_m, 1), np.inf)


# ---------------------------------------------------------------------------------------------------------------------
# Formats
# ---------------------------------------------------------------------------------------------------------------------


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataFileError(path, f"cannot be read ({error.strerror})") from error


def read_pfm(path: str | Path) -> np.ndarray:
    """Read a portable float map.

    Rules: `Pf` is one channel, `PF` three; a negative scale means little endian, a positive one big endian, and its
    amount is ignored, as the official reader does. Rows are stored from the bottom to the top. Differs from the
    official reader: any white space separates the numbers of the header (it fails on CR LF and on two blanks), and
    the length must fit.

    Returns:
        [H,W] or [H,W,3] float32 as stored, the top row first; may hold infinity and NaN.

    Raises:
        DataFileError: no such file, not a PFM file, a scale of 0, or more or fewer bytes than the header says.
    """
    data = _read_bytes(path)
    header = PFM_HEADER.match(data[:PFM_HEADER_LIMIT])
    if header is None:
        raise DataFileError(path, f"must be a PFM file (header `Pf`, width, height, scale); got {data[:16]!r}")
    width, height, channels = int(header[2]), int(header[3]), 3 if header[1] == b"PF" else 1
    scale = float(header[4])
    if scale == 0 or 0 in (width, height):
        raise DataFileError(path, f"must have a size and a scale other than 0; got {header[0]!r}")
    expected, found = 4 * width * height * channels, len(data) - header.end()
    if found != expected:
        raise DataFileError(
            path, f"must hold {expected} bytes of {width}x{height}x{channels} floats after its header; got {found}"
        )
    values = np.frombuffer(data, dtype="<f4" if scale < 0 else ">f4", offset=header.end())
    shape = (height, width, 3) if channels == 3 else (height, width)
    return np.ascontiguousarray(values.reshape(shape)[::-1], dtype=np.float32)


def _open_picture(path: str | Path, modes: tuple[str, ...], wanted: str) -> Image.Image:
    """Open and decode a picture whose mode is one of `modes`."""
    try:
        with Image.open(path) as picture:
            if picture.mode in modes:
                picture.load()
                return picture
            found = picture.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's decoders raise
        raise DataFileError(path, f"must be {wanted}; it cannot be decoded ({error})") from error
    raise DataFileError(path, f"must be {wanted}; got a picture of mode {found!r}")


def read_png16(path: str | Path) -> np.ndarray:
    """Read a 16-bit grey PNG as [H,W] uint16.

    Raises:
        DataFileError: no such file, truncated, or another kind of picture (8 bits, colour).
    """
    picture = _open_picture(path, SIXTEEN_BIT_MODES, "a 16-bit grey PNG")
    return np.asarray(picture).astype(np.uint16)


def read_picture(path: str | Path) -> np.ndarray:
    """Read a frame of a data set as [H,W,3] uint8, its pixels as they are stored.

    An EXIF orientation is NOT applied: the map beside the frame is stored as the camera or the renderer made it and
    says nothing of a rotation, so turning the frame alone would tear the two apart. (Photographs without maps are
    another matter; see data_mixture.py.) An alpha channel is dropped, grey becomes RGB.

    Raises:
        DataFileError: no such file, truncated, no picture, or of another mode than RGB, RGBA, grey and palette.
    """
    picture = _open_picture(path, PICTURE_MODES, "an 8-bit picture")
    return np.array(picture.convert("RGB"))


# ---------------------------------------------------------------------------------------------------------------------
# Data sets
# ---------------------------------------------------------------------------------------------------------------------


def read_scene_flow(path: str | Path) -> DisparityMap:
    """Read a Scene Flow disparity (PFM, px): valid in 0 <= disparity < 1024.

    Differs from the official reader: a negative disparity is not valid (there it is; no surface has one).

    Raises:
        DataFileError: as `read_pfm`, or three channels.
    """
    disparity = _one_channel(path, read_pfm(path))
    return _keep_valid(disparity, disparity < SCENE_FLOW_DISPARITY_LIMIT_PX)


def _one_channel(path: str | Path, values: np.ndarray) -> np.ndarray:
    if values.ndim != 2:
        raise DataFileError(path, f"must be a map of one channel; got shape {list(values.shape)}")
    return values


def read_tartanair(path: str | Path) -> DisparityMap:
    """Read a TartanAir depth (.npy, metres): disparity = 320 px * 0.25 m / depth, valid for finite depths > 0.

    Differs from the official reader: depth 0 is not valid (there it is, with an infinite disparity).

    Raises:
        DataFileError: no such file, truncated, pickled, or not a float array [H,W].
    """
    try:
        with open(path, "rb") as file:
            depth_m = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataFileError(path, f"must be a numpy file (.npy) of depths; it cannot be read ({error})") from error
    if depth_m.ndim != 2 or depth_m.dtype.kind != "f":
        raise DataFileError(path, f"must be a float array [H,W]; got {depth_m.dtype} {list(depth_m.shape)}")
    disparity = _disparity_of_depth(depth_m, TARTANAIR_FOCAL_PX, TARTANAIR_BASELINE_M)
    return _keep_valid(disparity, np.isfinite(depth_m))


def read_crestereo(path: str | Path) -> DisparityMap:
    """Read a CREStereo disparity (16-bit PNG, 1/32 px): valid where it is not 0.

    Raises:
        DataFileError: as `read_png16`.
    """
    raw = read_png16(path)
    return _keep_valid(raw / CRESTEREO_STEPS_PER_PX, raw > 0)


def read_falling_things(path: str | Path) -> DisparityMap:
    """Read a Falling Things depth (16-bit PNG, 0.1 mm): disparity = fx * 0.06 m / depth, valid where it is not 0.

    fx in px is that of the first camera (the left one) in `_camera_settings.json` beside the file. Differs from the
    official reader: depth 0 is not valid (there it is, with an infinite disparity).

    Raises:
        DataFileError: as `read_png16`; or the camera file is missing or has no positive fx.
    """
    raw = read_png16(path)
    focal_px = _falling_things_focal_px(Path(path).with_name(FALLING_THINGS_CAMERA_FILE))
    return _keep_valid(
        _disparity_of_depth(raw / FALLING_THINGS_STEPS_PER_M, focal_px, FALLING_THINGS_BASELINE_M), raw > 0
    )


def _falling_things_focal_px(path: Path) -> float:
    try:
        focal_px = float(json.loads(_read_bytes(path))["camera_settings"][0]["intrinsic_settings"]["fx"])
    except DataFileError:
        raise
    except (ValueError, LookupError, TypeError) as error:
        raise DataFileError(path, "must be JSON with camera_settings[0].intrinsic_settings.fx") from error
    if not 0 < focal_px < np.inf:
        raise DataFileError(path, f"must have a focal length fx > 0 px; got {focal_px}")
    return focal_px


def read_vkitti2(path: str | Path) -> DisparityMap:
    """Read a Virtual KITTI 2 depth (16-bit PNG, cm): disparity = 725.0087 px * 0.532725 m / depth.

    Valid in 0 < depth < 655 m. The sky (655.35 m) is not valid and holds 0, which is also where it belongs when the
    frame is warped.

    Raises:
        DataFileError: as `read_png16`.
    """
    depth_m = read_png16(path) / VKITTI2_STEPS_PER_M
    disparity = _disparity_of_depth(depth_m, VKITTI2_FOCAL_PX, VKITTI2_BASELINE_M)
    return _keep_valid(disparity, depth_m < VKITTI2_FARTHEST_M)


def read_kitti(path: str | Path) -> DisparityMap:
    """Read a KITTI disparity (16-bit PNG, 1/256 px): valid where it is not 0.

    `disp_occ_0` holds all measured pixels, `disp_noc_0` those that both views see: name the one that you want.

    Raises:
        DataFileError: as `read_png16`.
    """
    raw = read_png16(path)
    return _keep_valid(raw / KITTI_STEPS_PER_PX, raw > 0)


def read_middlebury(path: str | Path, region: str = "all") -> DisparityMap:
    """Read a Middlebury 2014 or ETH3D two-view disparity (PFM, px) with `mask0nocc.png` beside it.

    Differs from the official reader: an infinite disparity is not valid (there it is, wherever the mask says so).

    Args:
        path: the map, `disp0GT.pfm`.
        region: "all" = every pixel that the mask does not exclude, "noc" = those that both views see.

    Raises:
        ValueError: another region.
        DataFileError: as `read_pfm`; three channels; the mask is missing, no 8-bit grey picture or of another size.
    """
    if region not in ("all", "noc"):
        raise ValueError(f'`region` must be "all" or "noc"; got {region!r}.')
    disparity = _one_channel(path, read_pfm(path))
    mask_path = Path(path).with_name(REGION_MASK_FILE)
    mask = np.asarray(_open_picture(mask_path, ("L",), "an 8-bit grey picture"))
    if mask.shape != disparity.shape:
        raise DataFileError(
            mask_path, f"must have the size of {Path(path).name}, {list(disparity.shape)}; got {list(mask.shape)}"
        )
    return _keep_valid(disparity, mask > 0 if region == "all" else mask == SEEN_BY_BOTH_VIEWS)


def read_eth3d(path: str | Path, region: str = "all") -> DisparityMap:
    """Read an ETH3D two-view disparity: the format and the rules of `read_middlebury`."""
    return read_middlebury(path, region)
