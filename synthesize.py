# SPDX-License-Identifier: Apache-2.0
"""Photographs in, stereo pairs out, on the command line.

    python synthesize.py photo.jpg --output out
    python synthesize.py photos/ more.png --output out --weights USER/ZEROSTEREO --device cuda --dtype float16
    python synthesize.py examples/coffee.png --output out --disparity-scale 0.05 --steps 1 --seed 7    (CPU, seconds)
    python synthesize.py photos/ --output out --format LR,wiggle_gif --convergence 20
    python synthesize.py photo.heic --output out --target-view both --max-disparity-px 40 --fill tiled

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

from pipeline_zerostereo import (
    ANAGLYPH_MATRICES,
    FILLS,
    GIF_LARGEST_SIDE,
    JPEG_LARGEST_SIDE,
    MP4_LARGEST_SIDE,
    TARGET_VIEWS,
    WEBP_LARGEST_SIDE,
    Photographs,
    PointCloud,
    StereoImageProcessor,
    ZeroStereoPipeline,
)

DEFAULT_WEIGHTS = Path(__file__).resolve().parent / "weights" / "zerostereo-tiny"
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif")
RESULT_FILE = "result.json"  # makes a folder a result; written with the rest, before the folder gets its name
UNREADABLE = (  # what Pillow raises, and ImportError where pillow-heif is missing
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    ImportError,
    struct.error,
    PIL.Image.DecompressionBombError,
)
POINT_LIMIT = 1_000_000  # points of a cloud; more are slow in the viewers of browsers
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# What --format offers, in the order of --help. Players read the layout from the end of the name: LR and RL say what
# stands left and right, TB above and below, SBS_half and TB_half that views are squeezed. The names do not contain the
# photograph's, which could say 180, 360 or TB itself.
FORMATS = {
    "views": "left.png, right.png: both views",
    "maps": "disparity.png (16-bit), confidence.png, hole_mask.png, visible_mask.png, warped.png",
    "disparity_color": "disparity_color.png: colour map with a scale bar in px",
    "tiff": "disparity.tiff: px as float32",
    "pfm": "disparity.pfm: px as float32",
    "LR": "stereo_LR.png: side by side, left view left, for parallel viewing and players",
    "RL": "stereo_RL.png: side by side, right view left, for crossing the eyes",
    "SBS_half": "stereo_SBS_half.png: LR, each view squeezed to half its width",
    "RL_half": "stereo_RL_half.png: RL, each view squeezed to half its width",
    "TB": "stereo_TB.png: left view above the right one",
    "TB_half": "stereo_TB_half.png: TB, each view squeezed to half its height",
    "mpo": "stereo.mpo: both views as stereo cameras write them",
    "anaglyph": "anaglyph.png: red-cyan, Dubois' method",
    "anaglyph_color": "anaglyph_color.png: red-cyan, all colours, flickers at saturated ones",
    "anaglyph_half_color": "anaglyph_half_color.png: red-cyan, fewer colours, flickers less",
    "anaglyph_optimized": "anaglyph_optimized.png: red-cyan, no reds, hardly flickers",
    "anaglyph_gray": "anaglyph_gray.png: red-cyan, no colours",
    "anaglyph_true": "anaglyph_true.png: red-blue, no colours, dark, least ghosting",
    "wiggle_gif": "wiggle.gif: both views in turn, depth without glasses, 256 colours",
    "wiggle_webp": "wiggle.webp: the same in full colour",
    "wiggle_mp4": "wiggle.mp4: the same as a video; needs imageio and imageio-ffmpeg",
    "ply": "points.ply: coloured point cloud; needs --fov-deg",
    "glb": "points.glb: the same as glTF; needs --fov-deg",
}
DEFAULT_FORMATS = ("views", "maps", "disparity_color", "LR", "anaglyph")
CLOUD_FORMATS = {"ply", "glb"}
SIDES = {  # px a side that a format can hold
    "mpo": (1, JPEG_LARGEST_SIDE),
    "wiggle_gif": (1, GIF_LARGEST_SIDE),
    "wiggle_webp": (1, WEBP_LARGEST_SIDE),
    "wiggle_mp4": (2, MP4_LARGEST_SIDE),
}


class NoDepthError(Exception):
    """A point cloud is asked for of a photograph without depth."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    listed = "\n".join(f"  {name:<20} {meaning}" for name, meaning in FORMATS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"formats:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    parser.add_argument(
        "--max-disparity-px", type=float, metavar="PX", help="the same in px, instead; above 0, at most the width"
    )
    parser.add_argument(
        "--target-view",
        choices=TARGET_VIEWS,
        default="right",
        help="eye to make: the photograph is the other one, or stands in the middle of both (%(default)s)",
    )
    parser.add_argument(
        "--fill",
        choices=FILLS,
        default="whole",
        help="holes are filled by networks on the whole picture, scaled down where the weights want it, or in tiles "
        "at full size, or at once from the background without them (%(default)s)",
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
    parser.add_argument(
        "--format",
        type=read_formats,
        default=DEFAULT_FORMATS,
        metavar="NAME,NAME...",
        help=f"files to write, see below; `default` is {','.join(DEFAULT_FORMATS)}, `all` is all",
    )
    parser.add_argument(
        "--convergence",
        type=int,
        default=0,
        metavar="PX",
        help="disparity of what lies in the plane of the screen, for every stereo picture (%(default)s)",
    )
    parser.add_argument("--fov-deg", type=float, metavar="DEGREES", help="horizontal field of view, for point clouds")
    options = parser.parse_args(arguments)
    if options.disparity_scale is not None and not 0 < options.disparity_scale <= 1:
        parser.error(f"--disparity-scale must lie in (0, 1]; got {options.disparity_scale}")
    if options.max_disparity_px is not None and not options.max_disparity_px > 0:
        parser.error(f"--max-disparity-px must be above 0; got {options.max_disparity_px}")
    if options.max_disparity_px is not None and options.disparity_scale is not None:
        parser.error("--max-disparity-px must not be given beside --disparity-scale")
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps must be at least 1; got {options.steps}")
    if options.steps is not None and options.fill == "background":
        parser.error("--steps has no meaning with --fill background")
    check_formats(parser, options)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device must be there; got {options.device}, and this torch sees no CUDA device")
    return options


def read_formats(value: str) -> tuple[str, ...]:
    """Read "NAME,NAME..." as names of FORMATS, each once, in their order there."""
    names = value.split(",")
    unknown = [name for name in names if name not in (*FORMATS, "default", "all")]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"must be names of {', '.join(FORMATS)}, default or all, separated by commas; got {', '.join(unknown)!r}"
        )
    chosen = {*names, *(DEFAULT_FORMATS if "default" in names else ())}
    return tuple(name for name in FORMATS if name in chosen or "all" in names)


def check_formats(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse formats that lack a number or a package, before any work."""
    if options.fov_deg is not None and not 0 < options.fov_deg < 180:
        parser.error(f"--fov-deg must lie in (0, 180); got {options.fov_deg}")
    clouds = [name for name in options.format if name in CLOUD_FORMATS]
    if clouds and options.fov_deg is None:
        parser.error(f"--fov-deg must be given for the point clouds {', '.join(clouds)}; got none")
    if "wiggle_mp4" in options.format:
        try:
            StereoImageProcessor.require_mp4()
        except ImportError as error:
            parser.error(f"--format wiggle_mp4: {error}")


def check_size(width: int, height: int, options: argparse.Namespace) -> None:
    """Refuse a photograph that a chosen format cannot hold, before it is worked on.

    Raises:
        ValueError: no column left after --convergence, or a side outside what a format can hold.
    """
    if options.max_disparity_px is not None and options.max_disparity_px > width:
        raise ValueError(f"--max-disparity-px must be at most the width, {width}; got {options.max_disparity_px:g}.")
    kept = width - abs(options.convergence)
    if kept < 1:
        raise ValueError(f"--convergence must leave at least one of {width} columns; got {options.convergence}.")
    for name, (least, most) in SIDES.items():
        if name in options.format and not least <= min(kept, height) <= max(kept, height) <= most:
            raise ValueError(f"--format {name} must get {least} to {most} px a side; got {kept} x {height}.")


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
        "max_disparity_px": options.max_disparity_px,
        "target_view": options.target_view,
        "fill": options.fill,
        "steps": options.steps,
        "dtype": options.dtype,
        "formats": list(options.format),
        "convergence": options.convergence,
        "fov_deg": options.fov_deg if CLOUD_FORMATS & set(options.format) else None,
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


Described = dict[str, tuple[PIL.Image.Image | bytes, str]]  # file name -> (content, what it is, with range and unit)


def make_views_and_maps(
    pair: Any, pictures: StereoImageProcessor, formats: tuple[str, ...]
) -> tuple[Described, float | None]:
    """Make the files of single views and of maps.

    Returns:
        (files, codes per px of disparity.png or None where it is not asked for).
    """
    disparity, confidence = pair.disparity[0], pair.confidence[0]
    bounds = f"{disparity.min():.2f} to {disparity.max():.2f} px"
    made = ("left", "right") if pair.target_view == "both" else (pair.target_view,)
    files: Described = {}
    png_scale = None
    if "views" in formats:
        for view, picture in (("left", pair.left_image[0]), ("right", pair.right_image[0])):
            meaning = "invented only where its hole mask is white" if view in made else "the photograph"
            size = f"{picture.width} x {picture.height} px"
            files[f"{view}.png"] = (picture, f"{view} view: {meaning}, {size}, 8-bit RGB")
        if len(made) > 1:
            files["photo.png"] = (pair.input_images[0], "the photograph, half way between both views")
    if "maps" in formats:
        encoded, png_scale = pictures.export_disparity_to_16bit_png(disparity)[0]
        decoded = f"px = (code - 1) / {png_scale:g}, code 0 = unknown"
        encoded.info["Comment"] = decoded
        files["disparity.png"] = (encoded, f"disparity of the photograph, {bounds}, 16-bit grey: {decoded}")
        files["confidence.png"] = (
            pictures.visualize_confidence(confidence)[0],
            f"confidence of the disparity, photograph, 8-bit grey: 0 to 1 = 0 to 255; mean {confidence.mean():.2f}",
        )
        for number, view in enumerate(made):
            prefix = f"{view}_" if len(made) > 1 else ""
            hole, visible = pair.hole_mask[number], pair.visible_mask[number]
            files[f"{prefix}hole_mask.png"] = (
                pictures.visualize_mask(hole)[0],
                f"{view} view, white = invented ({hole.mean():.1%} of the pixels)",
            )
            files[f"{prefix}visible_mask.png"] = (
                pictures.visualize_mask(visible)[0],
                f"photograph, white = also seen in the {view} view ({visible.mean():.1%})",
            )
            files[f"{prefix}warped.png"] = (pair.warped_images[number], f"{view} view before inpainting, holes black")
    if "disparity_color" in formats:
        files["disparity_color.png"] = (
            pictures.visualize_disparity(disparity)[0],
            f"disparity of the photograph, {bounds}: dark = far, bright = near, with a scale bar",
        )
    if "tiff" in formats:
        files["disparity.tiff"] = (pictures.export_disparity_to_tiff(disparity)[0], f"the same, {bounds} as float32")
    if "pfm" in formats:
        files["disparity.pfm"] = (pictures.export_disparity_to_pfm(disparity)[0], f"the same, {bounds} as float32")
    return files, png_scale


def make_stereo_pictures(
    left: PIL.Image.Image,
    right: PIL.Image.Image,
    pictures: StereoImageProcessor,
    formats: tuple[str, ...],
    convergence: int,
) -> Described:
    """Make the files that show both views."""
    layouts = {
        "LR": ("left | right, for parallel viewing and players", "parallel", "full"),
        "RL": ("right | left, for crossing the eyes", "cross_eyed", "full"),
        "SBS_half": ("left | right, squeezed to half the width", "parallel", "half"),
        "RL_half": ("right | left, squeezed to half the width", "cross_eyed", "half"),
    }
    files: Described = {}
    for name, (meaning, layout, size) in layouts.items():
        if name in formats:
            files[f"stereo_{name}.png"] = (pictures.side_by_side(left, right, layout, size, convergence), meaning)
    for name, size in (("TB", "full"), ("TB_half", "half")):
        if name in formats:
            meaning = "left view above the right one" + (", squeezed to half the height" if size == "half" else "")
            files[f"stereo_{name}.png"] = (pictures.top_bottom(left, right, size, convergence), meaning)
    if "mpo" in formats:
        encoded = pictures.export_views_to_mpo(left, right, convergence=convergence)
        files["stereo.mpo"] = (encoded, "both views, as stereo cameras write them (JPEG, quality 95)")
    for method in ANAGLYPH_MATRICES:
        name = "anaglyph" if method == "dubois" else f"anaglyph_{method}"
        if name in formats:
            picture = pictures.anaglyph(left, right, method, convergence)
            files[f"{name}.png"] = (picture, f"for red-cyan glasses, red before the left eye; method {method}")
    writers = {
        "gif": pictures.export_wiggle_to_gif,
        "webp": pictures.export_wiggle_to_webp,
        "mp4": pictures.export_wiggle_to_mp4,
    }
    for suffix, write in writers.items():
        if f"wiggle_{suffix}" in formats:
            frames = pictures.wiggle(left, right, convergence)
            files[f"wiggle.{suffix}"] = (write(frames), "left and right view in turn, depth without glasses")
    return files


def make_point_clouds(
    pair: Any,
    pictures: StereoImageProcessor,
    formats: tuple[str, ...],
    fov_deg: float | None,
) -> Described:
    """Make the files of points, in units of the distance of the two cameras."""
    if fov_deg is None or not CLOUD_FORMATS & set(formats):
        return {}
    if not (pair.disparity[0] > 0).any():
        raise NoDepthError("the disparity is 0 px everywhere: its points have no place. Leave out ply and glb.")
    cloud: PointCloud = pictures.point_cloud(pair.input_images[0], pair.disparity[0], fov_deg, max_points=POINT_LIMIT)
    meaning = f"{len(cloud.positions)} points, field of view {fov_deg:g} degrees, unit: distance of the two cameras"
    writers = {"ply": pictures.export_point_cloud_to_ply, "glb": pictures.export_point_cloud_to_glb}
    return {f"points.{name}": (write(cloud), meaning) for name, write in writers.items() if name in formats}


def write_result(
    target: Path,
    pair: Any,
    pictures: StereoImageProcessor,
    parameters: dict,
    formats: tuple[str, ...] = DEFAULT_FORMATS,
    convergence: int = 0,
    fov_deg: float | None = None,
) -> dict[str, str]:
    """Write every file of one photograph, complete or not at all.

    Args:
        target: result folder; an older one there is replaced.
        pair: `ZeroStereoPipelineOutput` of this one photograph, `output_type="pil"`.
        pictures: `pipe.image_processor`.
        parameters: what made it; written to result.json.
        formats: names of FORMATS.
        convergence: px, of every stereo picture.
        fov_deg: horizontal field of view, for point clouds.

    Returns:
        File name -> what it is, with range and unit.
    """
    files, png_scale = make_views_and_maps(pair, pictures, formats)
    files |= make_stereo_pictures(pair.left_image[0], pair.right_image[0], pictures, formats, convergence)
    files |= make_point_clouds(pair, pictures, formats, fov_deg)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, (content, _) in files.items():
        if isinstance(content, bytes):
            (partial / name).write_bytes(content)
        elif name.endswith(".png"):
            information = PIL.PngImagePlugin.PngInfo()
            if name == "disparity.png":
                information.add_text("Comment", content.info["Comment"])
            content.save(partial / name, pnginfo=information)
        else:
            content.save(partial / name)
    result = {**parameters, **({"disparity_png_scale": png_scale} if png_scale is not None else {})}
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
    pipe: ZeroStereoPipeline, photo: Path, image: Photographs, target: Path, options: argparse.Namespace
) -> dict[str, str]:
    """Make and write the stereo pair of one loaded photograph; returns what `write_result` returns."""
    seed = photo_seed(options.seed, photo.read_bytes())
    pair: Any = pipe(
        image,
        disparity_scale=options.disparity_scale,
        max_disparity_px=options.max_disparity_px,
        target_view=options.target_view,
        fill=options.fill,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(seed),
    )
    parameters = {
        "photo": photo.name,
        "request": request(photo, options),
        "seed": seed,
        "disparity_scale": float(pair.disparity_scale[0]),
        "num_inference_steps": 0 if options.fill == "background" else pipe.num_timesteps,
        "flip_agreement": float(pair.flip_agreement[0]),
        "width": image.pixels.shape[-1],
        "height": image.pixels.shape[-2],
    }
    return write_result(
        target, pair, pipe.image_processor, parameters, options.format, options.convergence, options.fov_deg
    )


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
                with pipe.image_processor.open(photo) as opened:
                    image = pipe.image_processor.load(opened)  # pixels [1,3,H,W]
                check_size(image.pixels.shape[-1], image.pixels.shape[-2], options)
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
            except NoDepthError as error:
                refused.append((photo, error))
                progress_bar.write(f"not usable: {photo}: {error}", file=sys.stderr)
                continue
            described = described or {targets[photo] / name: meaning for name, meaning in meanings.items()}
    report(described, len(waiting) - len(refused), refused)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
