# SPDX-License-Identifier: Apache-2.0
"""Two pictures in, their disparity out.

    python -m training.predict_disparity left.png right.png --network USER/ZERO-RAFT --output out
    python -m training.predict_disparity frames/left frames/right --network weights/raft-stereo --output out
    python -m training.predict_disparity left.jpg right.jpg --network raftstereo-eth3d.pth --output out \\
        --iterations 8 --device cpu                                                              (CPU, seconds)

The pictures are the two views of a rectified pair, of equal size; two folders are gone through together, a pair being
two files of the same name, but for the suffix, at the same place below them. Each pair gets a folder in --output:

    disparity.png          16-bit grey; what a code means stands in the file's Comment and in result.json
    disparity.pfm          px as float32
    disparity_color.png    dark = far, bright = near, with a scale bar in px
    result.json            what made it: pictures, network, options

A folder that is there is whole. A killed run goes on where it stopped; a result of other pictures or options is never
taken for this one. Nothing is known here of true disparities: for those see evaluate_stereo.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.PngImagePlugin
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pipeline_zerostereo import StereoImageProcessor
from training.disparity_files import to_pfm
from training.disparity_pictures import paint_disparity
from training.run import write_folder_atomically
from training.stereo_inference import DTYPES, describe_network, estimate_disparity, load_stereo_network
from training.stereo_networks.recurrent_stereo import CORRELATIONS, DEFAULT_ITERATIONS, RecurrentStereo

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif")
RESULT_FILE = "result.json"
SHOWN_PATHS = 3  # of the pictures without partner that a message names


class Pair(NamedTuple):
    """Two pictures, and the folder of their result."""

    left: Path
    right: Path
    target: Path


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("left", type=Path, metavar="LEFT", help="picture of the left view, or a folder of them")
    parser.add_argument("right", type=Path, metavar="RIGHT", help="the right view's picture, or folder")
    parser.add_argument("--network", required=True, metavar="FOLDER_HUB_ID_OR_FILE", help="what estimates")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a Hub id; default: its newest")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="one folder per pair in here")
    parser.add_argument(
        "--iterations", type=int, default=DEFAULT_ITERATIONS, metavar="N", help="refinements (%(default)s)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="autocast if not %(default)s")
    parser.add_argument(
        "--correlation", choices=CORRELATIONS, default=CORRELATIONS[0], help="on_the_fly: for large pictures"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    if options.iterations < 1:
        parser.error(f"`iterations` must be at least 1; got {options.iterations}.")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"`device` must be there; got {options.device}, and this torch sees no CUDA device.")
    return options


# ---------------------------------------------------------------------------------------------------------------------
# Which pictures
# ---------------------------------------------------------------------------------------------------------------------


def find_pairs(left: Path, right: Path, output: Path) -> list[Pair]:
    """Find the pairs of two files or two folders, in alphabetical order.

    Raises:
        FileNotFoundError: an input does not exist, a folder has no picture, or a picture has no partner.
        ValueError: a file and a folder; or two pictures of a folder would get the same result.
    """
    for name, path in (("LEFT", left), ("RIGHT", right)):
        if not path.exists():
            raise FileNotFoundError(f"`{name}` must exist; got {path}.")
    if left.is_file() != right.is_file():
        raise ValueError(f"`RIGHT` must be a {'file' if left.is_file() else 'folder'} as `LEFT` is; got {right}.")
    if left.is_file():
        return [Pair(left, right, output / left.stem)]
    lefts, rights = _pictures_below(left), _pictures_below(right)
    alone = [lefts[name] for name in sorted(lefts.keys() - rights.keys())]
    alone += [rights[name] for name in sorted(rights.keys() - lefts.keys())]
    if alone:
        shown = ", ".join(map(str, alone[:SHOWN_PATHS])) + (" ..." if len(alone) > SHOWN_PATHS else "")
        raise FileNotFoundError(
            f"`RIGHT` must hold a picture of the same name for each of `LEFT`; {left} has {len(lefts)} and {right} "
            f"{len(rights)} pictures; without partner: {shown}."
        )
    return [Pair(lefts[name], rights[name], output / name) for name in sorted(lefts)]


def _pictures_below(folder: Path) -> dict[Path, Path]:
    """Return the pictures below a folder by their path there without suffix; hidden ones are left out."""
    found: dict[Path, Path] = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in below.parts)
        if hidden or not path.is_file() or path.suffix.lower() not in PICTURE_SUFFIXES:
            continue
        other = found.setdefault(below.with_suffix(""), path)
        if other != path:
            raise ValueError(f"`{folder}` must not hold two pictures of one name; got {other} and {path}.")
    if not found:
        raise FileNotFoundError(
            f"`{folder}` must hold a picture ({', '.join(PICTURE_SUFFIXES)}); found none below it."
        )
    return found


def check_pair(pair: Pair) -> None:
    """Look at the headers of both pictures.

    Raises:
        ValueError: one is no picture, or their sizes differ.
    """
    left, right = (_upright_size(path) for path in pair[:2])
    if left != right:
        raise ValueError(
            f"`RIGHT` must have the size of `LEFT`; {pair.left} has {left[0]}x{left[1]} px and {pair.right} "
            f"{right[0]}x{right[1]} px. Only rectified pairs of equal size can be matched."
        )


def _upright_size(path: Path) -> tuple[int, int]:
    """Read the size that a picture has once it is turned as its EXIF says."""
    try:
        with StereoImageProcessor.open(path) as picture:
            turned = picture.getexif().get(PIL.ExifTags.Base.Orientation, 1) >= 5
            return (picture.height, picture.width) if turned else picture.size
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"`{path}` must be a picture; it cannot be opened ({error}).") from error


def read_picture(path: Path) -> Tensor:
    """Read a photograph as a network sees it: [3,H,W] float32, 0..255, upright, sRGB.

    Raises:
        ValueError: it cannot be decoded.
    """
    try:
        with StereoImageProcessor.open(path) as picture:
            return 255 * StereoImageProcessor.preprocess(picture, path.name)[0]
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"`{path}` must be a whole picture; it cannot be decoded ({error}).") from error


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------


def request_of(pair: Pair, identity: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides a result: both files, the network, the options."""
    return {
        "left_sha256": hashlib.sha256(pair.left.read_bytes()).hexdigest(),
        "right_sha256": hashlib.sha256(pair.right.read_bytes()).hexdigest(),
        "weights_sha256": identity["weights_sha256"],
        "iterations": options.iterations,
        "dtype": options.dtype,
        "correlation": options.correlation,
    }


def is_finished(target: Path, request: dict[str, Any]) -> bool:
    """Tell whether the result of exactly this request is there.

    Raises:
        ValueError: a result of another request is there, or something that is no result.
    """
    if not target.exists():
        return False
    if not (target / RESULT_FILE).is_file():
        raise ValueError(f"`output` must have no other file or folder where a result goes; got {target}.")
    found = json.loads((target / RESULT_FILE).read_text(encoding="utf-8"))["request"]
    differing = [name for name in request if found.get(name) != request[name]]
    if differing:
        raise ValueError(
            f"`output` must not hold results made otherwise; {target} differs in {differing}. Choose another folder."
        )
    return True


def write_result(target: Path, disparity: np.ndarray, facts: dict[str, Any]) -> None:
    """Write the files of one pair, all or none.

    Args:
        target: folder, which is not there.
        disparity: [H,W], px, finite. What is below 0, which no surface has, is written as 0; result.json counts it.
        facts: for result.json.
    """
    shown = np.maximum(disparity, 0)
    encoded, scale = StereoImageProcessor.export_disparity_to_16bit_png(shown)[0]
    meaning = f"px = (code - 1) / {scale:g}, code 0 = unknown"

    def write(folder: Path) -> None:
        information = PIL.PngImagePlugin.PngInfo()
        information.add_text("Comment", meaning)
        encoded.save(folder / "disparity.png", pnginfo=information)
        (folder / "disparity.pfm").write_bytes(to_pfm(disparity))
        paint_disparity(shown).save(folder / "disparity_color.png")
        known = {
            "disparity_png": meaning,
            "lowest_px": float(disparity.min()),
            "highest_px": float(disparity.max()),
            "pixels_below_zero": int((disparity < 0).sum()),
        }
        (folder / RESULT_FILE).write_text(json.dumps({**facts, **known}, indent=2) + "\n", encoding="utf-8")

    write_folder_atomically(target, write)


def predict(network: RecurrentStereo, identity: dict[str, Any], pair: Pair, options: argparse.Namespace) -> bool:
    """Estimate and write one pair, unless it is finished; tell whether there was work.

    Raises:
        ValueError: see `is_finished`, `read_picture`; or the disparity is not finite.
    """
    request = request_of(pair, identity, options)
    if is_finished(pair.target, request):
        return False
    estimate = estimate_disparity(
        network,
        read_picture(pair.left),
        read_picture(pair.right),
        iterations=options.iterations,
        dtype=options.dtype,
        correlation=options.correlation,
    )
    spoilt = int((~estimate.disparity.isfinite()).sum())
    if spoilt:
        raise ValueError(f"`network` must give a finite disparity; got {spoilt} pixels that are not for {pair.left}.")
    facts = {
        "request": request,
        "left": str(pair.left),
        "right": str(pair.right),
        "network": identity,
        "seconds": estimate.seconds,
    }
    write_result(pair.target, estimate.disparity.numpy(), facts)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse_arguments(arguments)
    try:
        pairs = find_pairs(options.left, options.right, options.output)
        for pair in pairs:
            check_pair(pair)
        network = load_stereo_network(options.network, options.revision).to(options.device)
        identity = describe_network(network, options.network)
        made = sum(
            predict(network, identity, pair, options) for pair in tqdm(pairs, desc="predict", unit="pair", leave=False)
        )
    except (ValueError, OSError, ImportError) as error:  # of options, files or the network; the message says which
        print(f"predict_disparity: {error}", file=sys.stderr)
        return 1
    print(f"{made} pairs estimated, {len(pairs) - made} were there already; results in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
