# SPDX-License-Identifier: Apache-2.0
"""The file layout of MfS35K, which the official ZeroStereo code writes and trains on: write, read, file list.

    root/
      left/street/0001.png            the left image
      right/street/0001.png           the right image
      disparity/street/0001.npy       [H,W] float, pixels, left view
      confidence/street/0001.npy      [H,W] float32, 0 ... 1, left view
      mask_nocc/street/0001.png       8-bit grey, left view, 255 = also seen in the right view
      mask_inpaint/street/0001.png    8-bit grey, right view, 255 = hole that was filled
    list.txt                          a line per sample: these six paths relative to root, a space between two

Folders may stand above `left` (scenes/left/0001.jpg, scenes/right/0001.png, ...). Both masks have one name and one
size there and lie in different views; here their names say which.

It knows neither the networks nor our Parquet rows, and it reads and writes any number of samples one by one.

Source: ZeroStereo (arXiv 2501.08654), https://github.com/Windsrain/ZeroStereo. Differs from the official code, on
purpose: that stops reading at the first empty line and splits at every space, so samples vanish or shift in silence,
and here they are an error; it replaces "/left/" anywhere in a path, also above the root, and a path without it would
overwrite the photograph; it ignores the EXIF orientation of a left image, although its disparity was made upright.
"""

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps

LEFT_FOLDER = "left"
PICTURE_MODES = ("RGB", "L", "P", "CMYK")  # of 8 bits a channel without transparency
MASK_TRUE = 255
RUN_LENGTHS = 3  # zlib's Z_RLE: on photographs about as small as the default and more than twice as fast


class MfsPaths(NamedTuple):
    """The six files of a sample, in the order of a line of the file list; paths relative to the root, with "/"."""

    left_image: str
    right_image: str
    disparity: str
    confidence: str
    left_visible_mask: str
    right_hole_mask: str


class MfsSample(NamedTuple):
    """One pair with its maps.

    Attributes:
        left_image: [H,W,3] uint8, upright.
        right_image: [H,W,3] uint8.
        disparity: [H,W] float32, pixels, left view, finite, >= 0: left column x is at x - disparity on the right.
        confidence: [H,W] float32, 0 ... 1, left view.
        left_visible_mask: [H,W] bool, left view, True = also seen in the right view.
        right_hole_mask: [H,W] bool, right view, True = hole that was filled.
        name: the path of the left image relative to the root.
    """

    left_image: np.ndarray
    right_image: np.ndarray
    disparity: np.ndarray
    confidence: np.ndarray
    left_visible_mask: np.ndarray
    right_hole_mask: np.ndarray
    name: str


FOLDERS = MfsPaths(LEFT_FOLDER, "right", "disparity", "confidence", "mask_nocc", "mask_inpaint")
SUFFIXES = MfsPaths(".png", ".png", ".npy", ".npy", ".png", ".png")
KINDS = dict(zip(MfsPaths._fields, ("uint8", "uint8", "float32", "float32", "bool", "bool"), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Paths and the file list
# ---------------------------------------------------------------------------------------------------------------------


def paths_of(left_image: str) -> MfsPaths:
    """Name the six files of a sample after its left image. Touches no disk.

    Args:
        left_image: path relative to the root, with "/", of any suffix; one of its folders is `left`.

    Raises:
        ValueError: an absolute path, one with "..", white space or a backslash, or not just one folder `left`.
    """
    problem = _path_problem(left_image)
    if problem is not None:
        raise ValueError(f"`left_image` {problem}; got {left_image!r}.")
    path = PurePosixPath(left_image)
    folders = path.parent.parts
    if folders.count(LEFT_FOLDER) != 1:
        raise ValueError(
            f"`left_image` must have one folder named {LEFT_FOLDER!r} below the root, in whose place the other files' "
            f"folders come; got {left_image!r}."
        )
    place = folders.index(LEFT_FOLDER)
    others = [
        PurePosixPath(*folders[:place], folder, *folders[place + 1 :], path.name).with_suffix(suffix)
        for folder, suffix in zip(FOLDERS[1:], SUFFIXES[1:], strict=True)
    ]
    return MfsPaths(left_image, *map(str, others))


def read_file_list(path: str | Path) -> list[MfsPaths]:
    """Read a file list. Empty lines may stand at its end only.

    Args:
        path: UTF-8 text, of either kind of line end.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no sample; an empty line before the last sample, where the official reader would stop; a line that
            is not six paths relative to the root with one space between two. The message names file, line and text.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text; {error}.") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ValueError(f"{path} must hold at least one sample; it is empty.")
    samples = []
    for number, line in enumerate(lines, start=1):
        problem = _line_problem(line)
        if problem is not None:
            raise ValueError(f"{path}, line {number}, {problem}; got {line!r}.")
        samples.append(MfsPaths(*line.split(" ")))
    return samples


def write_file_list(path: str | Path, samples: Iterable[MfsPaths]) -> None:
    """Write a file list, whole or not at all; an older one is replaced.

    Raises:
        ValueError: no sample, a path that `read_file_list` would refuse, or one file in two samples.
    """
    lines, seen = [], set()
    for sample in samples:
        line = " ".join(sample)
        problem = _line_problem(line)
        if problem is None and not seen.isdisjoint(sample):
            problem = f"must name files of its own; {sorted(seen.intersection(sample))[0]!r} stands in two samples"
        if problem is not None:
            raise ValueError(f"`samples`, line {len(lines) + 1}, {problem}; got {line!r}.")
        seen.update(sample)
        lines.append(line + "\n")
    if not lines:
        raise ValueError("`samples` must hold at least one sample; got none.")
    _write_whole(Path(path), "".join(lines).encode())


def _line_problem(line: str) -> str | None:
    """Say what is wrong with a line of the file list, if anything is."""
    if not line.strip():
        return "must not be empty: the official reader stops there and leaves out the samples below"
    words = line.split(" ")
    if len(words) != len(MfsPaths._fields) or "" in words:
        return f"must be {len(MfsPaths._fields)} paths with one space between two, and so none inside a path"
    problems = (_path_problem(word) for word in words)
    return next((problem for problem in problems if problem is not None), None)


def _path_problem(path: str) -> str | None:
    """Say what is wrong with a path of the file list, if anything is."""
    if path.split() != [path]:
        return "must be a path without white space, which the file list cannot hold"
    if path.startswith("/") or "\\" in path or ".." in path.split("/"):
        return 'must be a path relative to the root, with "/" and without ".."'
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Samples
# ---------------------------------------------------------------------------------------------------------------------


def write_pair(root: str | Path, sample: MfsSample) -> MfsPaths:
    """Write the six files of a sample below `root`; each appears whole or not at all.

    Both images are PNG, upright and without a colour profile, because the official reader heeds neither orientation
    nor profile. A sample counts once a file list names it: write the list last.

    Args:
        root: made with the folders below it where they are missing.
        sample: its name says where the left image goes, and must end in .png.

    Returns:
        The paths for the file list. Files that stand there already are replaced.

    Raises:
        ValueError: name, type, shape or value break a rule of `paths_of` or `MfsSample`. Nothing is written.
    """
    paths = paths_of(sample.name)
    if not sample.name.endswith(SUFFIXES.left_image):
        raise ValueError(
            f"`sample.name` must end in {SUFFIXES.left_image}, as no other is written; got {sample.name!r}."
        )
    _check(sample, {field: f"`sample.{field}`" for field in MfsPaths._fields})
    for field, path in paths._asdict().items():
        _write_whole(Path(root) / path, _encode(getattr(sample, field)))
    return paths


def read_sample(root: str | Path, paths: MfsPaths) -> MfsSample:
    """Read the six files of a sample.

    Pictures of 8 bits are taken as RGB without their colour profile, as by the official reader; their EXIF orientation
    is applied. Maps may be float32, or float64 as the official code writes disparities.

    Args:
        root: the folder that the paths are relative to.
        paths: one line of the file list.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file that cannot be read; another type, shape or range than `MfsSample` says; a mask with values
            beside 0 and 255. The message names the file.
    """
    files = {field: Path(root) / path for field, path in paths._asdict().items()}
    for field, file in files.items():
        if not file.is_file():
            raise FileNotFoundError(f"{file} must exist, as {field} of sample {paths.left_image}.")
    sample = MfsSample(
        left_image=_read_picture(files["left_image"]),
        right_image=_read_picture(files["right_image"]),
        disparity=_read_map(files["disparity"]),
        confidence=_read_map(files["confidence"]),
        left_visible_mask=_read_mask(files["left_visible_mask"]),
        right_hole_mask=_read_mask(files["right_hole_mask"]),
        name=paths.left_image,
    )
    _check(sample, files)
    return sample


def read_samples(root: str | Path, file_list: str | Path) -> Iterator[MfsSample]:
    """Read the samples of a file list one by one, in its order.

    Raises:
        FileNotFoundError: the list is missing, or any file that it names; counted before the first sample is read.
        ValueError: as `read_file_list` at once, and as `read_sample` when the iteration comes to a sample.
    """
    samples = read_file_list(file_list)
    missing = [path for paths in samples for path in paths if not os.path.isfile(os.path.join(root, path))]
    if missing:
        count = len(samples) * len(MfsPaths._fields)
        raise FileNotFoundError(
            f"{len(missing)} of the {count} files that {file_list} names are missing below {root}; "
            f"the first is {missing[0]}."
        )
    return (read_sample(root, paths) for paths in samples)


def _check(sample: MfsSample, labels: Mapping[str, object]) -> None:
    """Hold a sample against the rules of MfsSample; messages call its fields by the labels."""
    if sample.left_image.ndim != 3 or sample.left_image.size == 0:
        raise ValueError(f"{labels['left_image']} must be [H,W,3]; got {list(sample.left_image.shape)}.")
    size = sample.left_image.shape[:2]
    for field, kind in KINDS.items():
        value = getattr(sample, field)
        shape = (*size, 3) if field.endswith("image") else size
        if value.dtype != kind or value.shape != shape:
            raise ValueError(
                f"{labels[field]} must be {kind} {list(shape)}, of the left image's height and width; "
                f"got {value.dtype} {list(value.shape)}."
            )
    for field, highest in (("disparity", np.finfo(np.float32).max), ("confidence", 1.0)):
        value = getattr(sample, field)
        if not (value.min() >= 0 and value.max() <= highest):  # False for NaN
            rule = "finite and at least 0" if field == "disparity" else "in 0 ... 1"
            raise ValueError(f"{labels[field]} must be {rule} everywhere; got {value.min()} to {value.max()}.")


def _encode(value: np.ndarray) -> bytes:
    """Return the bytes of a file: PNG for images and masks, .npy for maps."""
    file = io.BytesIO()
    if value.dtype == np.float32:
        np.save(file, np.ascontiguousarray(value), allow_pickle=False)
    else:
        numbers = value * np.uint8(MASK_TRUE) if value.dtype == np.bool_ else value
        PIL.Image.fromarray(numbers).save(file, "PNG", compress_type=RUN_LENGTHS)
    return file.getvalue()


def _load_picture(path: Path) -> PIL.Image.Image:
    try:
        with PIL.Image.open(path) as image:
            return PIL.ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"{path} must be a whole picture file; {type(error).__name__}: {error}") from error


def _read_picture(path: Path) -> np.ndarray:
    """Read [H,W,3] uint8."""
    image = _load_picture(path)
    if image.mode not in PICTURE_MODES or "transparency" in image.info:
        raise ValueError(f"{path} must be a picture of 8 bits without transparency; it is of Pillow's {image.mode!r}.")
    return np.array(image.convert("RGB"))


def _read_mask(path: Path) -> np.ndarray:
    """Read [H,W] bool."""
    image = _load_picture(path)
    numbers = np.asarray(image)
    if image.mode != "L" or not np.isin(numbers, (0, MASK_TRUE)).all():
        found = f"mode {image.mode!r}, values {numbers.min()} to {numbers.max()}"
        raise ValueError(f"{path} must be 8-bit grey of 0 and {MASK_TRUE} only; it has Pillow's {found}.")
    return numbers == MASK_TRUE


def _read_map(path: Path) -> np.ndarray:
    """Read float32."""
    try:
        numbers = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} must be a whole .npy file of numbers; {type(error).__name__}: {error}") from error
    if not isinstance(numbers, np.ndarray) or numbers.dtype not in (np.float32, np.float64):
        found = getattr(numbers, "dtype", "an archive")
        raise ValueError(f"{path} must hold one array of float32 or float64; it holds {found}.")
    return numbers.astype(np.float32)


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, on the disk before it gets its own; make missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
