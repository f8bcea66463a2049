# SPDX-License-Identifier: Apache-2.0
"""Photographs in, stereo pairs out, on the command line.

    python synthesize.py photo.jpg --output out
    python synthesize.py photos/ more.png --output out --weights USER/ZEROSTEREO --device cuda --dtype float16
    python synthesize.py examples/coffee.png --output out --disparity-scale 0.05 --steps 1 --seed 7    (CPU, seconds)

Every photograph gets a folder of its own below --output, written under a hidden name and renamed when complete, so a
folder that is there is whole: a killed run goes on where it stopped, and finished photographs are skipped. A result of
another photograph or of other options is never taken for this one, and a folder that is no result is never touched.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.PngImagePlugin
import torch
from tqdm.auto import tqdm

from pipeline_zerostereo import StereoImageProcessor, ZeroStereoPipeline

DEFAULT_WEIGHTS = Path(__file__).resolve().parent / "weights" / "zerostereo-tiny"
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
RESULT_FILE = "result.json"  # makes a folder a result; written with the rest, before the folder gets its name
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, PIL.Image.DecompressionBombError)  # of Pillow
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO_OR_FOLDER", help="folders are searched through")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="one folder per photograph in here")
    parser.add_argument(
        "--weights",
        default=str(DEFAULT_WEIGHTS),
        metavar="DIR_OR_HUB_ID",
        help="pipeline to load; default: weights/zerostereo-tiny",
    )
    parser.add_argument(
        "--disparity-scale",
        type=float,
        metavar="S",
        help="largest disparity as a share of the width, in (0, 1]; default: drawn for each photograph, 0 to 0.2",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps; default: what suits the weights")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="with a photograph's bytes it decides the random numbers (%(default)s)",
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the UNet and the autoencoder")
    parser.add_argument("--overwrite", action="store_true", help="make finished photographs again")
    options = parser.parse_args(arguments)
    if options.disparity_scale is not None and not 0 < options.disparity_scale <= 1:
        parser.error(f"--disparity-scale must lie in (0, 1]; got {options.disparity_scale}")
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps must be at least 1; got {options.steps}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device must be there; got {options.device}, and this torch sees no CUDA device")
    return options


def find_photos(inputs: list[Path], output: Path) -> dict[Path, Path]:
    """Map each photograph to the folder of its result.

    A file goes to `output`/stem; a file found in a folder keeps its path below that folder. Folders are searched in
    alphabetical order for the known suffixes; hidden files and folders, and the pictures of results, are left out.

    Raises:
        FileNotFoundError: an input that does not exist, or a folder without photographs.
        ValueError: two photographs that would get the same result folder or one inside the other; a result folder
            that exists and is no result.
    """
    owners: dict[Path, Path] = {}
    for given in inputs:
        if not given.exists():
            raise FileNotFoundError(f"`PHOTO_OR_FOLDER` must exist; got {given}.")
        found = [given] if given.is_file() else sorted(path for path in given.rglob("*") if _is_photo(path, given))
        if not found:
            raise FileNotFoundError(
                f"`PHOTO_OR_FOLDER` must hold a photograph ({', '.join(PHOTO_SUFFIXES)}); found none in {given}."
            )
        for photo in found:
            below = Path() if given.is_file() else photo.parent.relative_to(given)
            target = output / below / photo.stem
            other = owners.setdefault(target, photo)
            if other.resolve() != photo.resolve():
                raise ValueError(
                    f"`PHOTO_OR_FOLDER` must not give two photographs one result {target}: {other} and {photo}."
                )
    for target, photo in owners.items():
        for above in target.parents:
            if above in owners:
                raise ValueError(
                    f"`PHOTO_OR_FOLDER` must not give a result inside another, {target} in {above}: "
                    f"{photo} and {owners[above]}."
                )
        if target.exists() and not (target / RESULT_FILE).is_file():
            raise ValueError(f"`--output` must have no other file or folder where a result goes; got {target}.")
    return {photo: target for target, photo in owners.items()}


def _is_photo(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    is_result = (path.parent / RESULT_FILE).is_file()
    return path.is_file() and path.suffix.lower() in PHOTO_SUFFIXES and not hidden and not is_result


def request(photo: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides a result: the photograph's bytes and the options."""
    return {
        "photo_sha256": hashlib.sha256(photo.read_bytes()).hexdigest(),
        "weights": "zerostereo-tiny" if options.weights == str(DEFAULT_WEIGHTS) else options.weights,
        "seed": options.seed,
        "disparity_scale": options.disparity_scale,
        "steps": options.steps,
        "dtype": options.dtype,
    }


def is_finished(photo: Path, target: Path, options: argparse.Namespace) -> bool:
    """Tell whether the result of exactly this photograph and these options is there.

    Raises:
        ValueError: a result is there, but of another photograph or of other options.
    """
    if not (target / RESULT_FILE).is_file():
        return False
    found = json.loads((target / RESULT_FILE).read_text(encoding="utf-8"))["request"]
    wanted = request(photo, options)
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        raise ValueError(
            f"`--output` must not hold results made otherwise; {target} differs from {photo} in {differing}: "
            f"{[found.get(name) for name in differing]} there, {[wanted[name] for name in differing]} now. "
            "Choose another folder, or --overwrite."
        )
    return True


def photo_seed(seed: int, content: bytes) -> int:
    """Seed of one photograph: from --seed and the file's bytes, so neither names, order nor other files matter."""
    digest = hashlib.sha256(f"{seed}:{hashlib.sha256(content).hexdigest()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # generators take 63 bits


def write_result(
    target: Path, photo: PIL.Image.Image, pair: Any, pictures: StereoImageProcessor, parameters: dict
) -> dict[str, str]:
    """Write every file of one photograph, complete or not at all.

    Args:
        target: result folder; an older one there is replaced.
        photo: the left view, upright RGB.
        pair: `ZeroStereoPipelineOutput` of this one photograph, `output_type="pil"`.
        pictures: `pipe.image_processor`.
        parameters: what made it; written to result.json.

    Returns:
        File name -> what it is, with range and unit.
    """
    right, disparity, confidence = pair.images[0], pair.disparity[0], pair.confidence[0]
    encoded, png_scale = pictures.export_disparity_to_16bit_png(disparity)[0]
    files = {
        "left.png": (photo, f"left view: the photograph, {photo.width} x {photo.height} px, 8-bit RGB"),
        "right.png": (right, "right view, 8-bit RGB; invented only where hole_mask.png is white"),
        "disparity.png": (
            encoded,
            f"disparity of the left view, {disparity.min():.2f} to {disparity.max():.2f} px, 16-bit grey: "
            f"px = (code - 1) / {png_scale:g}, code 0 = unknown",
        ),
        "disparity_color.png": (
            pictures.visualize_map(disparity)[0],
            f"the same in colour: dark = {disparity.min():.2f} px (far), bright = {disparity.max():.2f} px (near)",
        ),
        "confidence.png": (
            pictures.visualize_confidence(confidence)[0],
            f"confidence of the disparity, left view, 8-bit grey: 0 to 1 = 0 to 255; mean {confidence.mean():.2f}",
        ),
        "hole_mask.png": (
            pictures.visualize_mask(pair.hole_mask)[0],
            f"right view, white = invented ({pair.hole_mask.mean():.1%} of the pixels)",
        ),
        "visible_mask.png": (
            pictures.visualize_mask(pair.visible_mask)[0],
            f"left view, white = also seen in the right view ({pair.visible_mask.mean():.1%})",
        ),
        "warped.png": (pair.warped_images[0], "right view before inpainting, holes black"),
        "side_by_side.png": (pictures.side_by_side(photo, right), "left | right, for parallel viewing and players"),
        "anaglyph.png": (pictures.anaglyph(photo, right), "for red-cyan glasses, red before the left eye"),
    }
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, (picture, _) in files.items():
        information = PIL.PngImagePlugin.PngInfo()
        if name == "disparity.png":
            information.add_text("Comment", f"px = (code - 1) / {png_scale:g}, code 0 = unknown")
        picture.save(partial / name, pnginfo=information)
    result = {**parameters, "disparity_png_scale": png_scale}
    (partial / RESULT_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if target.exists():
        replaced = target.with_name(f".{target.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
        partial.rename(target)
        shutil.rmtree(replaced)
    else:
        partial.rename(target)
    return {**{name: meaning for name, (_, meaning) in files.items()}, RESULT_FILE: "seed, scale, steps and weights"}


def synthesize(
    pipe: ZeroStereoPipeline, photo: Path, image: torch.Tensor, target: Path, options: argparse.Namespace
) -> dict[str, str]:
    """Make and write the stereo pair of one loaded photograph [1,3,H,W]; returns what `write_result` returns."""
    seed = photo_seed(options.seed, photo.read_bytes())
    pair: Any = pipe(
        image,
        disparity_scale=options.disparity_scale,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(seed),
    )
    parameters = {
        "photo": photo.name,
        "request": request(photo, options),
        "seed": seed,
        "disparity_scale": float(pair.disparity_scale[0]),
        "num_inference_steps": pipe.num_timesteps,
        "flip_agreement": float(pair.flip_agreement[0]),
        "width": image.shape[-1],
        "height": image.shape[-2],
    }
    left = pipe.image_processor.postprocess(image, "pil")[0]
    return write_result(target, left, pair, pipe.image_processor, parameters)


def report(described: dict[Path, str], done: int, refused: list[tuple[Path, Exception]]) -> None:
    """Say what each file of the first result is, and which photographs gave none."""
    for file, meaning in described.items():
        print(f"{str(file):<42} {meaning}")
    if done > 1:
        print(f"{done} photographs done; the files of the others are named alike.")
    if refused:
        print(f"{len(refused)} of {done + len(refused)} photographs could not be used:", file=sys.stderr)
        for photo, error in refused:
            print(f"    {photo}: {error}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is 1 if a photograph could not be used."""
    options = parse_arguments(arguments)
    try:
        targets = find_photos(options.photos, options.output)
        finished = {
            photo for photo, target in targets.items() if not options.overwrite and is_finished(photo, target, options)
        }
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    waiting = [photo for photo in targets if photo not in finished]
    if finished:
        print(f"{len(finished)} of {len(targets)} photographs are finished; --overwrite makes them again.")
    if not waiting:
        return 0

    # The depth network stays in float32: rounded depth moves pixels.
    dtype = {"default": DTYPES[options.dtype], "depth_estimator": torch.float32}
    try:
        pipe = ZeroStereoPipeline.from_pretrained(options.weights, dtype=dtype).to(options.device)
    except (OSError, ValueError) as error:
        print(
            f"--weights must be a pipeline folder or a reachable Hub id; got {options.weights}: {error}",
            file=sys.stderr,
        )
        return 2
    pipe.set_progress_bar_config(disable=len(waiting) > 1, desc="denoising", leave=False)
    described: dict[Path, str] = {}
    refused: list[tuple[Path, Exception]] = []
    with tqdm(waiting, unit="photo", desc="stereo pairs") as progress_bar:
        for photo in progress_bar:
            progress_bar.set_postfix_str(photo.name)
            try:
                with PIL.Image.open(photo) as opened:
                    image = pipe.image_processor.preprocess(opened)  # [1,3,H,W]
            except UNREADABLE as error:
                refused.append((photo, error))
                progress_bar.write(f"not usable: {photo}: {error}", file=sys.stderr)
                continue
            try:
                meanings = synthesize(pipe, photo, image, targets[photo], options)
            except torch.OutOfMemoryError as error:
                refused.append((photo, error))
                progress_bar.write(f"not enough memory: {photo}: {error}", file=sys.stderr)
                continue
            described = described or {targets[photo] / name: meaning for name, meaning in meanings.items()}
    report(described, len(waiting) - len(refused), refused)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
