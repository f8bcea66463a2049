# SPDX-License-Identifier: Apache-2.0
"""The layout of MfS35K: what is written reads back equal, and what the official reader would lose is an error."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from datasets_builder import mfs35k
from datasets_builder.mfs35k import (
    MfsPaths,
    MfsSample,
    paths_of,
    read_file_list,
    read_sample,
    read_samples,
    write_file_list,
    write_pair,
)

H, W = 3, 5
STREET = MfsPaths(
    "scenes/left/street/7.jpg",
    "scenes/right/street/7.png",
    "scenes/disparity/street/7.npy",
    "scenes/confidence/street/7.npy",
    "scenes/mask_nocc/street/7.png",
    "scenes/mask_inpaint/street/7.png",
)


def make_sample(seed: int = 0, name: str = "left/a.png", height: int = H, width: int = W) -> MfsSample:
    generator = np.random.default_rng(seed)
    return MfsSample(
        left_image=generator.integers(0, 256, (height, width, 3), np.uint8),
        right_image=generator.integers(0, 256, (height, width, 3), np.uint8),
        disparity=generator.uniform(0, 300, (height, width)).astype(np.float32),
        confidence=generator.uniform(0, 1, (height, width)).astype(np.float32),
        left_visible_mask=generator.uniform(size=(height, width)) < 0.8,
        right_hole_mask=generator.uniform(size=(height, width)) < 0.3,
        name=name,
    )


def assert_equal_samples(one: MfsSample, other: MfsSample) -> None:
    assert one.name == other.name
    for field in MfsPaths._fields:
        first, second = getattr(one, field), getattr(other, field)
        assert first.dtype == second.dtype and np.array_equal(first, second), field


# --- slow references, from the description of the official reader ---


def official_list(text: str) -> list[list[str]]:
    """Read line by line up to the first empty one, and split at every space."""
    samples = []
    for line in text.split("\n"):
        if line == "":
            break
        samples.append(line.split(" "))
    return samples


def official_sample(root: Path, six: list[str]) -> dict[str, np.ndarray]:
    """Open pictures with Pillow, load maps, and compare every value of the masks with 255, one by one."""
    left, right, disparity, confidence, visible, hole = (f"{root}/{path}" for path in six)

    def is_255(path: str) -> np.ndarray:
        numbers = np.array(PIL.Image.open(path))
        return np.array([[number == 255 for number in row] for row in numbers.tolist()])

    return {
        "left_image": np.array(PIL.Image.open(left).convert("RGB")),
        "right_image": np.array(PIL.Image.open(right).convert("RGB")),
        "disparity": np.load(disparity).astype(np.float32),
        "confidence": np.load(confidence).astype(np.float32),
        "left_visible_mask": is_255(visible),
        "right_hole_mask": is_255(hole),
    }


def official_paths(left: str) -> list[str]:
    """Replace "/left/" wherever it stands in the whole path, and the suffix."""
    folders = [("right", ".png"), ("disparity", ".npy"), ("confidence", ".npy"), ("mask_nocc", ".png")]
    folders.append(("mask_inpaint", ".png"))
    stem = left[: left.rindex(".")]
    return [left, *(stem.replace("/left/", f"/{folder}/") + suffix for folder, suffix in folders)]


# --- paths ---


def test_paths_of_a_left_image():
    assert paths_of("scenes/left/street/7.jpg") == STREET
    assert paths_of("left/a.b.jpeg").disparity == "disparity/a.b.npy"


def test_paths_are_the_official_ones_below_any_root():
    for left in ("scenes/left/street/7.jpg", "left/a.png", "x/y/left/b.c.jpeg"):
        assert [f"/data/{path}" for path in paths_of(left)] == official_paths(f"/data/{left}")
    # A root with such a folder sends the official files elsewhere; here paths are relative, so it cannot.
    assert official_paths("/my/left/set/left/a.png")[1] == "/my/right/set/right/a.png"


def test_a_folder_is_replaced_and_no_part_of_a_name():
    assert paths_of("leftmost/left/left.png").right_image == "leftmost/right/left.png"


def test_paths_touch_no_disk(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths_of("left/a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ("photos/a.png", r"`left_image` must have one folder named 'left' below the root.*got 'photos/a\.png'"),
        ("left", "one folder named 'left' below the root.*got 'left'"),
        ("left/x/left/a.png", "one folder named 'left' below the root"),
        ("leftover/a.png", "one folder named 'left' below the root"),
        ("/data/left/a.png", "`left_image` must be a path relative to the root.*got '/data/left/a.png'"),
        ("../left/a.png", "must be a path relative to the root"),
        ("left\\a.png", "must be a path relative to the root"),
        ("left/a b.png", "`left_image` must be a path without white space.*got 'left/a b.png'"),
        ("left/a\t.png", "must be a path without white space"),
        ("", "must be a path without white space.*got ''"),
    ],
)
def test_paths_that_cannot_be_are_refused(left: str, message: str):
    with pytest.raises(ValueError, match=message):
        paths_of(left)


# --- the file list ---


def test_a_list_reads_back_and_is_the_official_text(tmp_path: Path):
    samples = [STREET, paths_of("left/b.png"), paths_of("left/c.jpg")]
    write_file_list(tmp_path / "new" / "list.txt", iter(samples))
    text = (tmp_path / "new" / "list.txt").read_text()
    assert text.splitlines()[1] == (
        "left/b.png right/b.png disparity/b.npy confidence/b.npy mask_nocc/b.png mask_inpaint/b.png"
    )
    assert read_file_list(tmp_path / "new" / "list.txt") == samples
    assert official_list(text) == [list(sample) for sample in samples]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["list.txt"]


def test_empty_lines_at_the_end_and_either_line_end_are_no_error(tmp_path: Path):
    path = tmp_path / "list.txt"
    for text in (" ".join(STREET), " ".join(STREET) + "\n\n \n", " ".join(STREET) + "\r\n"):
        path.write_bytes(text.encode())
        assert read_file_list(path) == [STREET]


GOOD = " ".join(STREET)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{GOOD}\n\n{GOOD}\n{GOOD}\n", "line 2, must not be empty: the official reader stops there.*got ''"),
        (f"\n{GOOD}\n", "line 1, must not be empty"),
        (f"{GOOD}\n \t\n{GOOD}\n", r"line 2, must not be empty.*got ' \\t'"),
        (f"{GOOD}\n{GOOD.replace('street/', 'a street/')}\n", "line 2, must be 6 paths.*got 'scenes/left/a street/7"),
        (f"{GOOD} extra.png\n", "line 1, must be 6 paths with one space between two"),
        (GOOD.rsplit(" ", 1)[0], "line 1, must be 6 paths"),
        (GOOD.replace(" ", "  "), "line 1, must be 6 paths"),
        (f"{GOOD} \n", "line 1, must be 6 paths"),
        (GOOD.replace(" ", "\t"), "line 1, must be 6 paths"),
        (GOOD.replace("/street/7.npy", "/\u00a0/7.npy"), "line 1, must be a path without white space"),
        (f"{GOOD}\n/abs{GOOD}\n", "line 2, must be a path relative to the root"),
        (GOOD.replace("scenes/right", "../right"), "line 1, must be a path relative to the root"),
        ("", "must hold at least one sample; it is empty"),
        ("\n\n", "must hold at least one sample; it is empty"),
    ],
)
def test_lists_that_would_lose_samples_are_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_file_list(path)
    assert str(path) in str(caught.value)


def test_what_the_official_reader_would_lose():
    assert len(official_list(f"{GOOD}\n\n{GOOD}\n{GOOD}\n")) == 1  # two samples vanish without a word
    assert official_list(GOOD.replace("7.jpg", "7 8.jpg"))[0][1] == "8.jpg"  # every later column shifts


def test_a_list_in_another_encoding_or_none_at_all(tmp_path: Path):
    (tmp_path / "list.txt").write_bytes(b"left/\xe4.png")
    with pytest.raises(ValueError, match=r"list\.txt must be UTF-8 text; .*0xe4"):
        read_file_list(tmp_path / "list.txt")
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        read_file_list(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "`samples` must hold at least one sample; got none"),
        ([STREET, STREET._replace(disparity="a b.npy")], "`samples`, line 2, must be 6 paths"),
        ([STREET._replace(confidence="")], "`samples`, line 1, must be 6 paths"),
        ([STREET._replace(left_image="/a.png")], "`samples`, line 1, must be a path relative to the root"),
        (
            [STREET, paths_of("scenes/left/street/7.png")],
            "`samples`, line 2, must name files of its own; 'scenes/confidence/street/7.npy' stands in two samples",
        ),
    ],
)
def test_lists_that_could_not_be_read_are_not_written(tmp_path: Path, samples: list, message: str):
    with pytest.raises(ValueError, match=message):
        write_file_list(tmp_path / "list.txt", samples)
    assert list(tmp_path.iterdir()) == []


def test_a_list_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch):
    path = tmp_path / "list.txt"
    write_file_list(path, [STREET])
    with monkeypatch.context() as patch:
        patch.setattr(mfs35k.os, "replace", lambda *names: (_ for _ in ()).throw(OSError("the machine stops here")))
        with pytest.raises(OSError, match="stops here"):
            write_file_list(path, [paths_of("left/b.png")])
    assert read_file_list(path) == [STREET]
    write_file_list(path, [paths_of("left/b.png")])
    assert read_file_list(path) == [paths_of("left/b.png")]


# --- samples ---


def test_round_trip_of_several_samples(tmp_path: Path):
    samples = [make_sample(1, "left/b.png"), make_sample(2, "scenes/left/deep/a.png", 4, 7), make_sample(3)]
    paths = [write_pair(tmp_path / "root", sample) for sample in samples]
    assert paths == [paths_of(sample.name) for sample in samples]
    write_file_list(tmp_path / "list.txt", paths)
    read = list(read_samples(tmp_path / "root", tmp_path / "list.txt"))
    for sample, again in zip(samples, read, strict=True):
        assert_equal_samples(sample, again)
    written = {str(file.relative_to(tmp_path / "root")) for file in (tmp_path / "root").rglob("*") if file.is_file()}
    assert written == {path for six in paths for path in six}  # and nothing temporary beside them


def test_files_on_disk_are_those_of_the_layout(tmp_path: Path):
    sample = make_sample(4)
    paths = write_pair(tmp_path, sample)
    for path, mask in ((paths.left_visible_mask, sample.left_visible_mask), (paths.right_hole_mask, None)):
        image = PIL.Image.open(tmp_path / path)
        assert (image.format, image.mode) == ("PNG", "L") and set(np.unique(np.asarray(image))) <= {0, 255}
        assert mask is None or np.array_equal(np.asarray(image), np.where(mask, 255, 0))
    for path in (paths.disparity, paths.confidence):
        assert np.load(tmp_path / path).dtype == np.float32
    assert PIL.Image.open(tmp_path / paths.left_image).mode == "RGB"


def test_the_official_reader_reads_what_we_write(tmp_path: Path):
    sample = make_sample(5, "set/left/a.png")
    write_file_list(tmp_path / "list.txt", [write_pair(tmp_path, sample)])
    six = official_list((tmp_path / "list.txt").read_text())[0]
    for field, value in official_sample(tmp_path, six).items():
        assert value.dtype == getattr(sample, field).dtype and np.array_equal(value, getattr(sample, field)), field


def plant(root: Path, **changed) -> MfsPaths:
    """Write a sample as the official code would, with some of its six files replaced by other arrays or bytes."""
    sample = make_sample(6)._replace(name="left/a.jpg")
    paths = paths_of(sample.name)
    values = sample._asdict() | {"disparity": sample.disparity.astype(np.float64)} | changed
    for field, path in paths._asdict().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        value = values[field]
        if isinstance(value, bytes):
            (root / path).write_bytes(value)
        elif path.endswith(".npy"):
            np.save(root / path, value)
        else:
            if isinstance(value, np.ndarray):
                value = PIL.Image.fromarray(value * np.uint8(255) if value.dtype == bool else value)
            image: PIL.Image.Image = value
            image.save(root / path, exif=image.getexif(), quality=90)
    return paths


def test_what_the_official_code_writes_is_read(tmp_path: Path):
    paths = plant(tmp_path)
    sample = read_sample(tmp_path, paths)
    assert np.load(tmp_path / paths.disparity).dtype == np.float64
    for field, value in official_sample(tmp_path, list(paths)).items():
        assert value.dtype == getattr(sample, field).dtype and np.array_equal(value, getattr(sample, field)), field
    assert sample.disparity.dtype == np.float32 and sample.name == "left/a.jpg"


def test_the_orientation_of_a_left_image_is_applied(tmp_path: Path):
    stored = PIL.Image.new("RGB", (H, W))  # lies on its side: upright it is H high and W wide
    stored.putpixel((0, 0), (255, 255, 255))
    exif = stored.getexif()
    exif[274] = 6  # turn clockwise
    sample = read_sample(tmp_path, plant(tmp_path, left_image=stored))
    assert sample.left_image.shape == (H, W, 3)
    assert np.unravel_index(sample.left_image.sum(axis=-1).argmax(), (H, W)) == (0, W - 1)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK"])
def test_pictures_of_other_modes_become_rgb(tmp_path: Path, mode: str):
    picture = PIL.Image.fromarray(make_sample(7).right_image).convert(mode)
    file = io.BytesIO()
    picture.save(file, "TIFF")
    sample = read_sample(tmp_path, plant(tmp_path, right_image=file.getvalue()))
    assert np.array_equal(sample.right_image, np.asarray(picture.convert("RGB")))


def archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, np.zeros((H, W), np.float32))
    return file.getvalue()


ZEROS = np.zeros((H, W), np.float32)
BAD_FILES = {
    "disparity is short": (
        {"disparity": np.zeros((H, W - 1))},
        r"disparity/a\.npy must be float32 \[3, 5\].*\[3, 4\]",
    ),
    "confidence has an axis more": ({"confidence": ZEROS[..., None]}, r"confidence/a\.npy must be.*\[3, 5, 1\]"),
    "disparity is of integers": ({"disparity": np.zeros((H, W), np.uint16)}, r"disparity/a\.npy must hold.*uint16"),
    "confidence is half": ({"confidence": ZEROS.astype(np.float16)}, r"confidence/a\.npy must hold.*float16"),
    "disparity is an archive": ({"disparity": archive()}, r"disparity/a\.npy must hold one array.*an archive"),
    "disparity is empty": ({"disparity": b""}, r"disparity/a\.npy must be a whole \.npy file"),
    "disparity is text": ({"disparity": b"1 2 3"}, r"disparity/a\.npy must be a whole \.npy file"),
    "disparity is negative": ({"disparity": ZEROS - 0.5}, r"disparity/a\.npy must be finite and at least 0.*-0\.5"),
    "disparity is NaN": ({"disparity": ZEROS * np.nan}, r"disparity/a\.npy must be finite and at least 0.*nan"),
    "disparity is infinite": ({"disparity": ZEROS + np.inf}, r"disparity/a\.npy must be finite.*got inf to inf"),
    "confidence is above 1": ({"confidence": ZEROS + 1.25}, r"confidence/a\.npy must be in 0 \.\.\. 1.*1\.25"),
    "confidence is NaN": ({"confidence": ZEROS * np.nan}, r"confidence/a\.npy must be in 0 \.\.\. 1"),
    "mask has greys": (
        {"left_visible_mask": np.full((H, W), 254, np.uint8)},
        r"mask_nocc/a\.png must be 8-bit grey of 0 and 255 only; it has Pillow's mode 'L', values 254 to 254",
    ),
    "mask is of 1 bit": ({"right_hole_mask": PIL.Image.new("1", (W, H), 1)}, r"mask_inpaint/a\.png must be.*mode '1'"),
    "mask is in colour": (
        {"right_hole_mask": np.full((H, W, 3), 255, np.uint8)},
        r"mask_inpaint/a\.png must be.*mode 'RGB'",
    ),
    "mask has a palette": ({"right_hole_mask": PIL.Image.new("P", (W, H))}, r"mask_inpaint/a\.png must be.*mode 'P'"),
    "mask is small": ({"right_hole_mask": np.ones((H - 1, W), bool)}, r"mask_inpaint/a\.png must be bool \[3, 5\]"),
    "right image is wide": (
        {"right_image": np.zeros((H, W + 2, 3), np.uint8)},
        r"right/a\.png must be uint8 \[3, 5, 3\], of the left image's height and width; got uint8 \[3, 7, 3\]",
    ),
    "right image is text": ({"right_image": b"text"}, r"right/a\.png must be a whole picture file"),
    "right image has 16 bits": (
        {"right_image": np.zeros((H, W), np.uint16)},
        r"right/a\.png must be a picture of 8 bits without transparency; it is of Pillow's 'I;16'",
    ),
    "right image is transparent": (
        {"right_image": PIL.Image.new("RGBA", (W, H))},
        r"right/a\.png must be a picture of 8 bits without transparency",
    ),
}


def transparent_palette() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("P", (W, H)).save(file, "PNG", transparency=0)
    return file.getvalue()


BAD_FILES["left image has a transparent colour"] = (
    {"left_image": transparent_palette()},
    r"left/a\.jpg must be a picture of 8 bits without transparency; it is of Pillow's 'P'",
)


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_break_a_rule_are_named(tmp_path: Path, name: str):
    changed, message = BAD_FILES[name]
    paths = plant(tmp_path, **changed)
    with pytest.raises(ValueError, match=message) as caught:
        read_sample(tmp_path, paths)
    assert str(tmp_path) in str(caught.value)


def test_a_truncated_picture_is_named(tmp_path: Path):
    paths = plant(tmp_path)
    (tmp_path / paths.left_image).write_bytes((tmp_path / paths.left_image).read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"left/a\.jpg must be a whole picture file; OSError: .*truncated"):
        read_sample(tmp_path, paths)


def test_a_bomb_is_named(tmp_path: Path, monkeypatch):
    paths = plant(tmp_path)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", H * W // 2 - 1)
    with pytest.raises(ValueError, match=r"left/a\.jpg must be a whole picture file; DecompressionBombError"):
        read_sample(tmp_path, paths)


@pytest.mark.parametrize("field", MfsPaths._fields)
def test_a_missing_file_is_named(tmp_path: Path, field: str):
    paths = plant(tmp_path)
    (tmp_path / getattr(paths, field)).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{getattr(paths, field)} must exist, as {field} of sample left/a"):
        read_sample(tmp_path, paths)


def test_missing_files_are_counted_before_anything_is_read(tmp_path: Path):
    samples = [make_sample(number, f"left/{number}.png") for number in range(3)]
    write_file_list(tmp_path / "list.txt", [write_pair(tmp_path, sample) for sample in samples])
    (tmp_path / "right/1.png").unlink()
    (tmp_path / "confidence/2.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of the 18 files that .*list\.txt names.*first is right/1\.png"):
        read_samples(tmp_path, tmp_path / "list.txt")  # not asked for a sample yet


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "left/a.jpg"}, r"`sample\.name` must end in \.png.*got 'left/a\.jpg'"),
        ({"name": "photos/a.png"}, "one folder named 'left'"),
        ({"left_image": ZEROS}, r"`sample\.left_image` must be \[H,W,3\]; got \[3, 5\]"),
        ({"left_image": np.zeros((0, W, 3), np.uint8)}, r"`sample\.left_image` must be \[H,W,3\]; got \[0, 5, 3\]"),
        (
            {"left_image": np.zeros((H, W, 4), np.uint8)},
            r"`sample\.left_image` must be uint8 \[3, 5, 3\].*\[3, 5, 4\]",
        ),
        ({"right_image": np.zeros((H, W, 3), np.float32)}, r"`sample\.right_image` must be uint8.*got float32"),
        ({"disparity": np.zeros((H, W))}, r"`sample\.disparity` must be float32 \[3, 5\].*got float64"),
        ({"disparity": ZEROS.T}, r"`sample\.disparity` must be float32 \[3, 5\].*\[5, 3\]"),
        ({"disparity": ZEROS + np.nan}, r"`sample\.disparity` must be finite"),
        ({"confidence": ZEROS - 0.25}, r"`sample\.confidence` must be in 0 \.\.\. 1 everywhere; got -0\.25"),
        ({"right_hole_mask": np.zeros((H, W), np.uint8)}, r"`sample\.right_hole_mask` must be bool.*got uint8"),
    ],
)
def test_samples_that_break_a_rule_are_not_written(tmp_path: Path, changed: dict, message: str):
    with pytest.raises(ValueError, match=message):
        write_pair(tmp_path, make_sample()._replace(**changed))
    assert list(tmp_path.iterdir()) == []


def test_writing_changes_no_array_and_takes_views(tmp_path: Path):
    sample = make_sample(8, height=W, width=H)
    turned = MfsSample(*(value.swapaxes(0, 1) for value in sample[:-1]), name="left/t.png")  # not contiguous
    copies = [value.copy() for value in turned[:-1]]
    assert_equal_samples(read_sample(tmp_path, write_pair(tmp_path, turned)), turned)
    for value, copy in zip(turned[:-1], copies, strict=True):
        assert np.array_equal(value, copy)


def test_one_pixel(tmp_path: Path):
    sample = make_sample(9, height=1, width=1)
    assert_equal_samples(read_sample(tmp_path, write_pair(tmp_path, sample)), sample)
