# SPDX-License-Identifier: Apache-2.0
"""Disparity as files: the 16-bit PNG of KITTI, PFM, and the folders in which benchmarks' servers want results.

    kitti2012     000000_10.png                                          16-bit PNG, test pairs
    kitti2015     disp_0/000000_10.png                                   16-bit PNG, test pairs
    middlebury    trainingH/ArtL/disp0METHOD.pfm, timeMETHOD.txt         PFM and seconds, training and test pairs
    eth3d         low_res_two_view/delivery_area_1l.pfm, ....txt         PFM and "runtime" seconds, both too

Encoders are pure; `write_whole` writes. Servers take no unknown pixel and no negative disparity, and networks give no
unknown but at times negative ones: what is below 0 becomes 0 here, and nowhere else.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path, PurePosixPath

import numpy as np
import PIL.Image

from pipeline_zerostereo import StereoImageProcessor
from training.disparity_readers import KITTI_STEPS_PER_PX

SUBMISSIONS = ("kitti2012", "kitti2015", "middlebury", "eth3d")
TRAINING_PAIRS_TOO = ("middlebury", "eth3d")  # whose servers want results of training pairs beside the tests'
METHOD_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
LARGEST_CODE = 65535


def to_kitti_png(disparity: np.ndarray) -> bytes:
    """Encode a disparity as KITTI's development kit wants it: round(256 px) in 16-bit grey, 0 = unknown.

    Args:
        disparity: [H,W], px, finite. Below 1/256 px it becomes 1/256 px, because 0 would say that nothing is known;
            above 255.996 px, more than the format can say, it becomes that.

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    _check_disparity(disparity)
    codes = np.clip(np.rint(disparity.astype(np.float64) * KITTI_STEPS_PER_PX), 1, LARGEST_CODE).astype(np.uint16)
    file = io.BytesIO()
    PIL.Image.fromarray(codes).save(file, "PNG")
    return file.getvalue()


def to_pfm(disparity: np.ndarray) -> bytes:
    """Encode a disparity as PFM: float32, px; below 0 it becomes 0.

    Args:
        disparity: [H,W], px, finite.

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    _check_disparity(disparity)
    return StereoImageProcessor.export_disparity_to_pfm(np.maximum(disparity, 0))[0]


def _check_disparity(disparity: np.ndarray) -> None:
    if disparity.ndim != 2:
        raise ValueError(f"`disparity` must have the shape [H,W]; got {list(disparity.shape)}.")
    spoilt = int((~np.isfinite(disparity)).sum())
    if spoilt:
        raise ValueError(f"`disparity` must be finite everywhere; got {spoilt} pixels that are not.")


def submission_files(kind: str, name: str, disparity: np.ndarray, seconds: float, method: str) -> dict[str, bytes]:
    """Make the files of one pair for a benchmark's server.

    Args:
        kind: one of SUBMISSIONS.
        name: path of the left frame below the data set's root, such as "testH/Crusade/im0.png".
        disparity: [H,W], px, finite.
        seconds: that the network took; Middlebury and ETH3D want to know.
        method: name of the method; Middlebury's file names contain it.

    Returns:
        path below the folder to be packed -> content.

    Raises:
        ValueError: another kind, a method name that a server would not take, or as `to_kitti_png`.
    """
    check_method(method)
    path = PurePosixPath(name)
    if kind == "kitti2012":
        return {path.name: to_kitti_png(disparity)}
    if kind == "kitti2015":
        return {f"disp_0/{path.name}": to_kitti_png(disparity)}
    if kind == "middlebury":
        scene = path.parent.as_posix()
        return {
            f"{scene}/disp0{method}.pfm": to_pfm(disparity),
            f"{scene}/time{method}.txt": f"{seconds:.4f}\n".encode(),
        }
    if kind == "eth3d":
        scene = f"low_res_two_view/{path.parent.name}"
        return {f"{scene}.pfm": to_pfm(disparity), f"{scene}.txt": f"runtime {seconds:.4f}\n".encode()}
    raise ValueError(f"`kind` must be one of {', '.join(SUBMISSIONS)}; got {kind!r}.")


def check_method(method: str) -> None:
    """Raise unless a method's name can be part of a file's."""
    if not METHOD_NAME.fullmatch(method):
        raise ValueError(f"`method` must be 1 to 40 letters, digits, - and _; got {method!r}.")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
