# SPDX-License-Identifier: Apache-2.0
"""What people look at and keep: stereo layouts, anaglyphs, wigglegrams, MPO, disparity files, point clouds.

Known answers on small asymmetric pictures; files are read back by another reader than the one that wrote them.
"""

import importlib
import io
import json
import struct
import tempfile
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import torch

import pipeline_zerostereo
from pipeline_zerostereo import (
    ANAGLYPH_MATRICES,
    COLOR_MAP,
    DUBOIS_LEFT,
    DUBOIS_RIGHT,
    PointCloud,
    StereoImageProcessor,
)

H, W = 3, 7
ORIENTATION = 0x0112  # EXIF tag


def views() -> tuple[PIL.Image.Image, PIL.Image.Image]:
    """Left and right view in which the red value tells the column, the green one the row, the blue one the view."""
    y, x = np.mgrid[:H, :W]
    left, right = (np.stack([10 * x, 50 * y, np.full_like(x, blue)], axis=-1).astype(np.uint8) for blue in (1, 2))
    return PIL.Image.fromarray(left), PIL.Image.fromarray(right)


def columns(picture: PIL.Image.Image) -> list[tuple[int, int]]:
    """Return (view, column) of each pixel of the first row of a picture made of `views()`."""
    return [(int(blue), int(red) // 10) for red, _, blue in np.asarray(picture)[0]]


def plain(color: tuple[int, ...], size: tuple[int, int] = (W, H)) -> PIL.Image.Image:
    return PIL.Image.new("RGB", size, color)


def profile(name: str = "sRGB") -> bytes:
    """An RGB profile: sRGB, or one in which red and green have changed places, so that conversion shows."""
    encoded = bytearray(PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes())
    if name == "swapped":
        red, green = encoded.index(b"rXYZ"), encoded.index(b"gXYZ")
        encoded[red : red + 4], encoded[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(encoded)


def with_profile(view: PIL.Image.Image, icc_profile: bytes) -> PIL.Image.Image:
    view.info["icc_profile"] = icc_profile
    return view


STEREO_FORMATS = {
    "side_by_side": StereoImageProcessor.side_by_side,
    "top_bottom": StereoImageProcessor.top_bottom,
    "anaglyph": StereoImageProcessor.anaglyph,
    "mpo": StereoImageProcessor.export_views_to_mpo,
    "wiggle": StereoImageProcessor.wiggle,
}


# --- convergence ---


@pytest.mark.parametrize(
    ("convergence", "of_left", "of_right"),
    [(0, range(7), range(7)), (2, range(2, 7), range(5)), (-3, range(4), range(3, 7)), (6, [6], [0]), (-6, [0], [6])],
)
def test_convergence_crops_and_never_invents(convergence, of_left, of_right):
    left, right = StereoImageProcessor.converge(*views(), convergence)
    assert columns(left) == [(1, x) for x in of_left] and columns(right) == [(2, x) for x in of_right]
    assert left.height == right.height == H


def test_points_of_that_disparity_lie_in_the_screen():
    """A point at left column 5 with disparity 3 is seen at right column 2; with convergence 3 both are column 2."""
    left, right = plain((0, 0, 0)), plain((0, 0, 0))
    left.putpixel((5, 1), (255, 255, 255))
    right.putpixel((2, 1), (255, 255, 255))
    for convergence, parallax in ((3, 0), (1, 2), (-1, 4)):
        shifted = StereoImageProcessor.converge(left, right, convergence)
        of_left, of_right = (np.asarray(view)[1, :, 0].argmax() for view in shifted)
        assert of_left - of_right == parallax


@pytest.mark.parametrize("name", STEREO_FORMATS)
def test_every_stereo_format_converges(name):
    made = STEREO_FORMATS[name](*views(), convergence=2)
    shifted = StereoImageProcessor.converge(*views(), 2)
    wanted = STEREO_FORMATS[name](*shifted)
    assert made == wanted
    assert made != STEREO_FORMATS[name](*views())


@pytest.mark.parametrize("name", STEREO_FORMATS)
def test_wrong_views_and_convergence_are_refused(name):
    make = STEREO_FORMATS[name]
    left, right = views()
    for wrong in (2.0, True, "2"):
        with pytest.raises(ValueError, match=f"`convergence` must be an integer number of px; got {wrong!r}"):
            make(left, right, convergence=wrong)
    for wrong in (7, -7, 100):
        with pytest.raises(
            ValueError, match=f"`convergence` must leave at least one of the 7 columns .* got {wrong} "
        ):
            make(left, right, convergence=wrong)
    with pytest.raises(ValueError, match=r"`right_view` must have the size of `left_view`, \(7, 3\); got \(3, 7\)"):
        make(left, right.transpose(PIL.Image.Transpose.ROTATE_90))


@pytest.mark.parametrize("name", STEREO_FORMATS)
def test_views_are_turned_upright_and_not_changed(name):
    left, right = views()
    turned = left.transpose(PIL.Image.Transpose.ROTATE_90)  # to view, turn it clockwise: orientation 6
    turned.getexif()[ORIENTATION] = 6
    before = turned.tobytes()
    assert STEREO_FORMATS[name](turned, right) == STEREO_FORMATS[name](left, right)
    assert turned.tobytes() == before and turned.getexif()[ORIENTATION] == 6


# --- colour profiles ---


def test_stereo_pictures_carry_the_profile_of_the_left_view():
    left, right = views()
    with_profile(left, profile("swapped"))
    for picture in (
        StereoImageProcessor.side_by_side(left, right),
        StereoImageProcessor.side_by_side(left, right, size="half"),
        StereoImageProcessor.top_bottom(left, right, convergence=2),
        *StereoImageProcessor.wiggle(left, right, 2),
    ):
        assert picture.info["icc_profile"] == profile("swapped")
        file = io.BytesIO()
        picture.save(file, format="PNG")
        assert PIL.Image.open(file).info["icc_profile"] == profile("swapped")
    assert columns(StereoImageProcessor.side_by_side(left, right))[:W] == [(1, x) for x in range(W)], "not converted"
    assert "icc_profile" not in StereoImageProcessor.side_by_side(*views()).info
    mpo = PIL.Image.open(io.BytesIO(StereoImageProcessor.export_views_to_mpo(left, right)))
    for frame in (0, 1):
        mpo.seek(frame)
        assert mpo.info["icc_profile"] == profile("swapped")
    webp = StereoImageProcessor.export_wiggle_to_webp(StereoImageProcessor.wiggle(left, right))
    assert PIL.Image.open(io.BytesIO(webp)).info["icc_profile"] == profile("swapped")


def test_what_cannot_carry_a_profile_is_converted_to_srgb():
    """In the swapped profile (200, 0, 0) is a saturated green."""
    green, black = with_profile(plain((200, 0, 0)), profile("swapped")), plain((0, 0, 0))
    assert StereoImageProcessor.anaglyph(green, plain((200, 0, 0)), "color").getpixel((0, 0))[1] > 190, "both views"
    anaglyph = StereoImageProcessor.anaglyph(green, green, "color")
    red, level, blue = anaglyph.getpixel((0, 0))
    assert abs(level - 200) <= 2 and red <= 2 and blue <= 2 and "icc_profile" not in anaglyph.info
    gif = PIL.Image.open(io.BytesIO(StereoImageProcessor.export_wiggle_to_gif([green, black]))).convert("RGB")
    assert np.abs(np.array(gif.getpixel((3, 1))) - [0, 200, 0]).max() <= 2
    cloud = StereoImageProcessor.point_cloud(green, np.ones((H, W)), 60)
    assert np.abs(cloud.colors.astype(int) - [0, 200, 0]).max() <= 2


def test_profiles_that_do_not_fit_are_refused():
    left, right = views()
    for profile_of_left in (None, profile()):
        one = left if profile_of_left is None else with_profile(left.copy(), profile_of_left)
        with pytest.raises(ValueError, match="`right_view` must have the colour profile of `left_view`, or none"):
            StereoImageProcessor.side_by_side(one, with_profile(right.copy(), profile("swapped")))
    broken = with_profile(left, profile()[:16] + b"RGB " + b"broken")
    with pytest.raises(ValueError, match="`left_view` must have a colour profile that can be read; got: "):
        StereoImageProcessor.anaglyph(broken, right)


def test_a_profile_of_another_colour_space_is_left_out():
    grey = PIL.Image.new("L", (W, H), 90)
    with_profile(grey, profile()[:16] + b"GRAY" + profile()[20:])
    picture = StereoImageProcessor.side_by_side(grey, grey)
    assert picture.getpixel((0, 0)) == (90, 90, 90) and "icc_profile" not in picture.info
    assert StereoImageProcessor.anaglyph(grey, grey).getpixel((0, 0)) == (90, 90, 90)


# --- layouts ---


def test_side_by_side_layouts():
    of_left, of_right = [(1, x) for x in range(W)], [(2, x) for x in range(W)]
    assert columns(StereoImageProcessor.side_by_side(*views())) == of_left + of_right
    assert columns(StereoImageProcessor.side_by_side(*views(), "parallel", "full")) == of_left + of_right
    assert columns(StereoImageProcessor.side_by_side(*views(), "cross_eyed")) == of_right + of_left


def test_top_bottom_has_the_left_view_above():
    picture = StereoImageProcessor.top_bottom(*views())
    assert picture.size == (W, 2 * H)
    assert np.asarray(picture)[:, 0, 2].tolist() == [1, 1, 1, 2, 2, 2]
    assert np.asarray(picture)[:, 4, 1].tolist() == [0, 50, 100, 0, 50, 100]


@pytest.mark.parametrize(("width", "half"), [(8, 4), (7, 4), (2, 1), (1, 1)])
def test_half_size_squeezes_one_axis_and_rounds_up(width, half):
    left, right = plain((200, 10, 20), (width, 5)), plain((1, 2, 250), (width, 5))
    for layout, colors in (("parallel", (left, right)), ("cross_eyed", (right, left))):
        picture = StereoImageProcessor.side_by_side(left, right, layout, "half")
        assert picture.size == (2 * half, 5)
        assert [picture.getpixel((x, 2)) for x in (0, half - 1, half, 2 * half - 1)] == [
            colors[0].getpixel((0, 0)),
            colors[0].getpixel((0, 0)),
            colors[1].getpixel((0, 0)),
            colors[1].getpixel((0, 0)),
        ]
    turned = StereoImageProcessor.top_bottom(plain((1, 2, 3), (5, width)), plain((9, 8, 7), (5, width)), "half")
    assert turned.size == (5, 2 * half)
    assert turned.getpixel((4, half - 1)) == (1, 2, 3) and turned.getpixel((0, half)) == (9, 8, 7)


def test_half_size_keeps_what_is_seen_where():
    """A step at column 8 of 16 stays in the middle of the squeezed view, and flat parts keep their level."""
    pixels = np.zeros((4, 16, 3), np.uint8)
    pixels[:, 8:] = 200
    view = PIL.Image.fromarray(pixels)
    row = np.asarray(StereoImageProcessor.side_by_side(view, view, size="half"))[0, :, 0]
    assert np.abs(row[[0, 1, 6, 7]].astype(int) - [0, 0, 200, 200]).max() <= 1 and row[3] < 30 and row[4] > 170
    assert np.array_equal(row[:8], row[8:])


def test_unknown_layouts_sizes_and_methods_are_refused():
    with pytest.raises(ValueError, match=r"`layout` must be one of \('parallel', 'cross_eyed'\); got 'crossed'"):
        StereoImageProcessor.side_by_side(*views(), layout="crossed")
    for make in (StereoImageProcessor.side_by_side, StereoImageProcessor.top_bottom):
        with pytest.raises(ValueError, match=r"`size` must be one of \('full', 'half'\); got 'quarter'"):
            make(*views(), size="quarter")
    with pytest.raises(ValueError, match=r"`method` must be one of \('dubois', 'color', .*'true'\); got 'red_blue'"):
        StereoImageProcessor.anaglyph(*views(), method="red_blue")


# --- anaglyphs ---


@pytest.mark.parametrize(
    ("method", "expected"),
    [  # left (200, 40, 10), right (30, 90, 160); luma .299 R + .587 G + .114 B: 84.42 and 80.04
        ("dubois", (104, 65, 180)),
        ("color", (200, 90, 160)),
        ("half_color", (84, 90, 160)),
        ("optimized", (63, 90, 160)),  # .7 x 40 + .3 x 10 = 31; 255 (31 / 255)^(1 / 1.5) = 62.6
        ("gray", (84, 80, 80)),
        ("true", (84, 0, 80)),
    ],
)
def test_anaglyphs_by_hand(method, expected):
    found = StereoImageProcessor.anaglyph(plain((200, 40, 10)), plain((30, 90, 160)), method)
    assert found.getcolors() == [(H * W, expected)]


def test_the_default_anaglyph_is_dubois():
    left, right = views()
    assert StereoImageProcessor.anaglyph(left, right) == StereoImageProcessor.anaglyph(left, right, "dubois")
    assert ANAGLYPH_MATRICES["dubois"] == (DUBOIS_LEFT, DUBOIS_RIGHT)


@pytest.mark.parametrize("method", ANAGLYPH_MATRICES)
def test_red_is_for_the_left_eye_and_grey_keeps_its_level(method):
    white, black = plain((255, 255, 255)), plain((0, 0, 0))
    assert StereoImageProcessor.anaglyph(white, black, method).getpixel((0, 0)) == (255, 0, 0)
    shown = StereoImageProcessor.anaglyph(black, white, method).getpixel((0, 0))
    assert shown == ((0, 0, 255) if method == "true" else (0, 255, 255))
    grey = StereoImageProcessor.anaglyph(plain((77,) * 3), plain((77,) * 3), method).getpixel((0, 0))
    assert grey[2] == 77 and grey[1] == (0 if method == "true" else 77)
    assert grey[0] == (round(255 * (77 / 255) ** (2 / 3)) if method == "optimized" else 77)


# --- MPO ---


def test_mpo_holds_both_views_as_a_disparity_pair():
    left, right = plain((200, 30, 30), (70, 40)), plain((20, 40, 210), (70, 40))
    file = StereoImageProcessor.export_views_to_mpo(left, right)
    opened = PIL.Image.open(io.BytesIO(file))
    assert (opened.format, opened.n_frames, opened.size) == ("MPO", 2, (70, 40))
    entries = [entry["Attribute"] for entry in opened.mpinfo[0xB002]]
    assert [entry["MPType"] for entry in entries] == ["Multi-Frame Image: (Disparity)"] * 2
    assert [entry["RepresentativeImageFlag"] for entry in entries] == [True, False]
    assert not any(entry["DependentParentImageFlag"] or entry["DependentChildImageFlag"] for entry in entries)
    for frame, color in enumerate(((200, 30, 30), (20, 40, 210))):
        opened.seek(frame)
        assert np.abs(np.array(opened.getpixel((35, 20))) - color).max() <= 2
    plain_reader = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.abs(plain_reader[20, 35].astype(int) - (200, 30, 30)).max() <= 2, "a JPEG reader shows the left view"


def test_mpo_is_close_to_the_views_and_quality_counts():
    random = np.random.default_rng(2)
    coarse = PIL.Image.fromarray(random.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    left = coarse.resize((130, 90), PIL.Image.Resampling.BICUBIC)
    right = left.transpose(PIL.Image.Transpose.FLIP_TOP_BOTTOM)
    sizes = []
    for quality, most in ((95, 2.0), (60, 8.0)):
        file = StereoImageProcessor.export_views_to_mpo(left, right, quality)
        opened = PIL.Image.open(io.BytesIO(file))
        for frame, view in enumerate((left, right)):
            opened.seek(frame)
            assert np.abs(np.asarray(opened.convert("RGB")).astype(int) - np.asarray(view)).mean() < most
        sizes.append(len(file))
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("quality", [0, 101, 95.0, True])
def test_wrong_qualities_are_refused(quality):
    with pytest.raises(ValueError, match=f"`quality` must be an integer from 1 to 100; got {quality!r}"):
        StereoImageProcessor.export_views_to_mpo(*views(), quality=quality)
    with pytest.raises(ValueError, match=f"`quality` must be an integer from 1 to 100; got {quality!r}"):
        StereoImageProcessor.export_wiggle_to_webp(StereoImageProcessor.wiggle(*views()), quality=quality)


# --- wigglegrams ---


def two_frames(size: tuple[int, int] = (33, 21)) -> list[PIL.Image.Image]:
    """Left: a red square left of the middle; right: the same further left, on blue."""
    frames = []
    for first, color in ((10, (10, 20, 90)), (6, (10, 90, 20))):
        frame = plain(color, size)
        frame.paste((220, 40, 30), (first, 5, first + 8, 15))
        frames.append(frame)
    return frames


def read_animation(file: bytes) -> tuple[list[np.ndarray], list[int], int]:
    """Return frames, ms of each, and how often it plays."""
    opened = PIL.Image.open(io.BytesIO(file))
    frames, durations = [], []
    for index in range(opened.n_frames):
        opened.seek(index)
        frames.append(np.asarray(opened.convert("RGB")))
        durations.append(opened.info["duration"])
    return frames, durations, opened.info.get("loop", 1)


def test_a_wigglegram_is_the_left_view_then_the_right_view():
    frames = StereoImageProcessor.wiggle(*views(), 2)
    assert [columns(frame)[0] for frame in frames] == [(1, 2), (2, 0)] and len(frames) == 2


@pytest.mark.parametrize(("encoding", "most"), [("gif", 0), ("webp", 8)])
def test_wiggles_are_read_back(encoding, most):
    write = getattr(StereoImageProcessor, f"export_wiggle_to_{encoding}")
    frames, durations, loop = read_animation(write(two_frames(), frame_ms=120, loop=4))
    assert durations == [120, 120] and loop == 4
    for found, wanted in zip(frames, two_frames(), strict=True):
        assert np.abs(found.astype(int) - np.asarray(wanted)).mean() <= most
    assert read_animation(write(two_frames()))[1:] == ([150, 150], 0), "by default for ever"


def test_frames_of_a_gif_share_their_colours():
    """A colour that both frames show must not flicker, though each frame has more than 256 colours."""
    random = np.random.default_rng(4)
    left = random.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    right = random.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    left[:, :20], right[:, :20] = (123, 201, 77), (123, 201, 77)
    frames, _, _ = read_animation(
        StereoImageProcessor.export_wiggle_to_gif([PIL.Image.fromarray(left), PIL.Image.fromarray(right)])
    )
    assert len(np.unique(np.concatenate(frames).reshape(-1, 3), axis=0)) <= 256
    assert np.array_equal(frames[0][:, 2:18], frames[1][:, 2:18])


def test_equal_views_are_one_long_frame_in_a_gif():
    frames, durations, _ = read_animation(StereoImageProcessor.export_wiggle_to_gif([plain((9, 9, 9))] * 2))
    assert len(frames) == 1 and durations == [300]


@pytest.mark.parametrize("size", [(33, 21), (32, 20), (33, 20)])
def test_mp4_is_read_back_at_even_size(size):
    file = StereoImageProcessor.export_wiggle_to_mp4(two_frames(size), frame_ms=100, repeats=3)
    with tempfile.NamedTemporaryFile(suffix=".mp4") as written:
        Path(written.name).write_bytes(file)
        video = cv2.VideoCapture(written.name)
        rate, found = video.get(cv2.CAP_PROP_FPS), []
        while True:
            there, frame = video.read()
            if not there:
                break
            found.append(frame[..., ::-1].astype(int))
    assert rate == 10 and len(found) == 6
    for index, frame in enumerate(found):
        wanted = np.asarray(two_frames(size)[index % 2]).astype(int)[:20, :32]
        assert frame.shape == (20, 32, 3), "an odd column or row is left out, nothing is scaled"
        assert np.abs(frame - wanted).mean() < 12


def test_mp4_without_its_packages_says_what_to_install(monkeypatch):
    whole = importlib.import_module

    def without_ffmpeg(name, *arguments):
        if name == "imageio_ffmpeg":
            raise ImportError(name)
        return whole(name, *arguments)

    monkeypatch.setattr(pipeline_zerostereo.importlib, "import_module", without_ffmpeg)
    with pytest.raises(ImportError, match="MP4 files need imageio and imageio-ffmpeg: pip install imageio"):
        StereoImageProcessor.export_wiggle_to_mp4(two_frames())


def test_an_encoder_that_writes_nothing_is_an_error(monkeypatch):
    monkeypatch.setattr(pipeline_zerostereo, "export_to_video", lambda frames, path, **_: Path(path).touch())
    with pytest.raises(RuntimeError, match="The MP4 encoder wrote nothing"):
        StereoImageProcessor.export_wiggle_to_mp4(two_frames())


@pytest.mark.parametrize("encoding", ["gif", "webp", "mp4"])
def test_wrong_frames_and_times_are_refused(encoding):
    write = getattr(StereoImageProcessor, f"export_wiggle_to_{encoding}")
    first, second = two_frames()
    for wrong in ([first], [first, second.crop((0, 0, 5, 5))], [first, second.convert("L")], []):
        with pytest.raises(ValueError, match="`frames` must be two or more RGB images of one size; got "):
            write(wrong)
    for wrong in (10, 150.0, True):
        with pytest.raises(ValueError, match=f"`frame_ms` must be an integer of at least 20 ms; got {wrong!r}"):
            write([first, second], frame_ms=wrong)
    name = "repeats" if encoding == "mp4" else "loop"
    for wrong in (-1, 2.5):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer .*; got {wrong}"):
            write([first, second], **{name: wrong})


@pytest.mark.parametrize(
    ("write", "size", "message"),
    [
        ("export_wiggle_to_gif", (65536, 1), r"`frames` must be 1 to 65535 px a side for GIF; got \(65536, 1\)"),
        ("export_wiggle_to_webp", (1, 16384), r"`frames` must be 1 to 16383 px a side for WebP; got \(1, 16384\)"),
        ("export_wiggle_to_mp4", (16386, 2), r"`frames` must be 2 to 16384 px a side for MP4; got \(16386, 2\)"),
        ("export_wiggle_to_mp4", (9, 1), r"`frames` must be 2 to 16384 px a side for MP4; got \(9, 1\)"),
        ("export_views_to_mpo", (65501, 1), r"`left_view` must be 1 to 65500 px a side for MPO; got \(65501, 1\)"),
    ],
)
def test_sizes_that_a_format_cannot_hold_are_refused(write, size, message):
    frames = [plain((1, 2, 3), size), plain((3, 2, 1), size)]
    with pytest.raises(ValueError, match=message):
        getattr(StereoImageProcessor, write)(*frames if "views" in write else [frames])


def test_the_largest_sizes_are_written():
    frames = [plain((1, 2, 3), (65500, 1)), plain((3, 2, 1), (65500, 1))]
    assert PIL.Image.open(io.BytesIO(StereoImageProcessor.export_views_to_mpo(*frames))).size == (65500, 1)
    frames = [frame.crop((0, 0, 16383, 1)) for frame in frames]
    assert PIL.Image.open(io.BytesIO(StereoImageProcessor.export_wiggle_to_webp(frames))).size == (16383, 1)


def test_gif_counts_in_hundredths_of_a_second():
    with pytest.raises(ValueError, match="`frame_ms` must be a multiple of 10 ms for GIF; got 125"):
        StereoImageProcessor.export_wiggle_to_gif(two_frames(), frame_ms=125)


# --- files of disparity ---

DISPARITY = np.array([[0.0, 1.25, 300.1], [np.inf, 7.0, 0.001]], np.float32)


def read_pfm(file: bytes) -> np.ndarray:
    """Read a PFM file as its definition says, by plain steps."""
    kind, size, scale, values = file.split(b"\n", 3)
    width, height = (int(number) for number in size.split())
    assert kind == b"Pf" and float(scale) < 0, "grey, little endian"
    rows = [struct.unpack_from(f"<{width}f", values, 4 * width * row) for row in range(height)]
    assert len(values) == 4 * width * height
    return np.array(rows[::-1], np.float32)  # the first row of the file is the lowest


def test_pfm_is_read_back_exactly():
    (file,) = StereoImageProcessor.export_disparity_to_pfm(DISPARITY)
    assert file.startswith(b"Pf\n3 2\n-1")
    assert np.array_equal(read_pfm(file), DISPARITY)
    assert file[-24:-20] == struct.pack("<f", np.inf), "the lowest row comes first"
    with tempfile.NamedTemporaryFile(suffix=".pfm") as written:
        Path(written.name).write_bytes(file)
        assert np.array_equal(cv2.imread(written.name, cv2.IMREAD_UNCHANGED), DISPARITY)


def test_tiff_is_read_back_exactly(tmp_path):
    (picture,) = StereoImageProcessor.export_disparity_to_tiff(DISPARITY)
    assert picture.mode == "F"
    picture.save(tmp_path / "disparity.tiff")
    found = cv2.imread(str(tmp_path / "disparity.tiff"), cv2.IMREAD_UNCHANGED)
    assert found.dtype == np.float32 and np.array_equal(found, DISPARITY)


@pytest.mark.parametrize("method", ["export_disparity_to_pfm", "export_disparity_to_tiff", "visualize_disparity"])
def test_disparity_of_every_output_type_is_taken_and_negative_refused(method):
    write = getattr(StereoImageProcessor, method)
    maps = torch.arange(2.0 * H * W).view(2, 1, H, W) / 8
    wanted = write(maps)
    assert len(wanted) == 2 and wanted[0] != wanted[1]
    for output_type in ("np", "pil"):
        assert write(StereoImageProcessor.postprocess_map(maps, output_type)) == wanted
    assert write(maps.bfloat16()) == wanted, "eighths up to 5 are exact in bfloat16"
    unknown = np.array([[1.0, np.nan, -np.inf, np.inf]])
    assert write(unknown) == write(np.array([[1.0, np.inf, np.inf, np.inf]])) and np.isnan(unknown[0, 1])
    with pytest.raises(ValueError, match=r"`disparity` must not be negative; got a minimum of -2\.5"):
        write(np.array([[1.0, -2.5, np.inf]]))


# --- colour map with scale bar ---


@pytest.mark.parametrize(("height", "width"), [(3, 5), (40, 600), (90, 200), (700, 90), (1200, 1600)])
def test_the_map_stands_above_its_scale_bar_at_any_size(height, width):
    disparity = np.linspace(2, 31, height * width, dtype=np.float32).reshape(height, width)
    (picture,) = StereoImageProcessor.visualize_disparity(disparity)
    (painted,) = StereoImageProcessor.visualize_map(disparity)
    assert picture.width == max(width, 160) and picture.height > height
    margin = (picture.width - width) // 2
    assert picture.crop((margin, 0, margin + width, height)) == painted
    bar = np.asarray(picture)[height:]
    letters = max(12, round((width * height) ** 0.5 / 32))
    row = bar[min(letters, picture.width // 13)]  # through the colours
    colors = {tuple(int(channel) for channel in color) for color in row}
    assert COLOR_MAP[0] in colors and COLOR_MAP[-1] in colors
    ink = (bar.sum(axis=-1) < 200).any(axis=1)[-letters:]
    assert ink.any(), "there are labels below the colours"


def test_ticks_stand_at_their_values(monkeypatch):
    """Letters are left out; what remains below the colours are the ticks, in the column of their value."""
    labels = []
    monkeypatch.setattr(PIL.ImageDraw.ImageDraw, "text", lambda _, at, text, *a, **k: labels.append(text))
    (picture,) = StereoImageProcessor.visualize_disparity(np.array([[0.0] * 300, [29.0] * 300], np.float32))
    assert labels == ["0", "5", "10", "15", "20", "25 px"]
    bar = np.asarray(picture)[2:].astype(int)
    left, right = 12, 287  # one letter of 12 px on both sides
    columns_of_ticks = np.nonzero(bar[6 + 12 + 2].sum(axis=-1) < 150)[0]
    assert columns_of_ticks.tolist() == [left + round(value / 29 * (right - left)) for value in range(0, 30, 5)]
    for value, column in zip(range(0, 30, 5), columns_of_ticks, strict=True):
        (wanted,) = StereoImageProcessor.visualize_map(np.array([[float(value)]]), 0.0, 29.0)
        assert np.abs(bar[8, column] - wanted.getpixel((0, 0))).max() <= 2


@pytest.mark.parametrize(
    ("lowest", "highest", "most", "ticks"),
    [
        (0.0, 29.0, 6, [0, 5, 10, 15, 20, 25]),
        (0.0, 29.0, 3, [0, 10, 20]),
        (0.11, 36.0, 10, [5, 10, 15, 20, 25, 30, 35]),
        (2.0, 3.0, 3, [2, 2.5, 3]),
        (0.0, 0.036, 4, [0, 0.01, 0.02, 0.03]),
        (98.0, 2300.0, 5, [500, 1000, 1500, 2000]),
        (7.3, 7.3, 5, [7.3]),
        (7.31, 7.32, 1, [7.32]),
        (7.311, 7.319, 1, [7.315]),
        (0.0, 1e-30, 2, [0, 1e-30]),
    ],
)
def test_ticks_are_round_numbers(lowest, highest, most, ticks):
    assert StereoImageProcessor._choose_ticks(lowest, highest, most) == ticks


@pytest.mark.parametrize("seed", range(50))
def test_there_are_never_more_ticks_than_asked_for(seed):
    random = np.random.default_rng(seed)
    lowest = float(random.uniform(0, 100))
    highest = lowest + float(10 ** random.uniform(-2, 4))
    for most in range(1, 11):
        ticks = StereoImageProcessor._choose_ticks(lowest, highest, most)
        assert 1 <= len(ticks) <= most and ticks == sorted(set(ticks))
        if highest - lowest > 1:
            assert lowest - 1e-3 <= ticks[0] and ticks[-1] <= highest + 1e-3


def test_the_bar_names_what_is_unknown(monkeypatch):
    labels = []
    monkeypatch.setattr(PIL.ImageDraw.ImageDraw, "text", lambda _, at, text, *a, **k: labels.append(text))
    StereoImageProcessor.visualize_disparity(np.array([[1.0, 9.0]]))
    assert "unknown" not in labels
    StereoImageProcessor.visualize_disparity(np.array([[1.0, np.inf, 9.0]]))
    assert labels.count("unknown") == 1
    labels.clear()
    StereoImageProcessor.visualize_disparity(np.full((4, 5), np.inf))
    assert labels == ["unknown"]
    labels.clear()
    StereoImageProcessor.visualize_disparity(np.full((4, 5), 7.25))
    assert labels == ["7.25 px"]


def test_bounds_of_the_scale_bar_can_be_given(monkeypatch):
    labels = []
    monkeypatch.setattr(PIL.ImageDraw.ImageDraw, "text", lambda _, at, text, *a, **k: labels.append(text))
    picture = StereoImageProcessor.visualize_disparity(np.full((2, 300), 5.0), lowest=0.0, highest=50.0)[0]
    assert labels[0] == "0" and labels[-1] == "50 px"
    (wanted,) = StereoImageProcessor.visualize_map(np.full((2, 300), 5.0), 0.0, 50.0)
    assert picture.getpixel((0, 0)) == wanted.getpixel((0, 0)) != COLOR_MAP[0]


# --- point clouds ---


def cloud_of(disparity, fov_deg=90.0, **arguments) -> PointCloud:
    """Cloud of `views()[0]` or of a plain picture of the disparity's size."""
    disparity = np.asarray(disparity, np.float32)
    picture = views()[0] if disparity.shape == (H, W) else plain((1, 2, 3), disparity.shape[::-1])
    return StereoImageProcessor.point_cloud(picture, disparity, fov_deg, **arguments)


def test_points_by_hand():
    """4 wide, 2 high, 90 degrees: focal length 2 px. Axes: x right, y up, z towards the viewer."""
    cloud = cloud_of([[1.0, 2.0, 4.0, 4.0], [2.0, 2.0, 2.0, 2.0]], max_depth_ratio=None)
    assert cloud.positions.dtype == np.float32 and cloud.colors.dtype == np.uint8
    assert cloud.positions.shape == cloud.colors.shape == (8, 3)
    # Top left: depth 2 x 1 / 1 = 2, one and a half pixels left of the middle, half a pixel above it.
    np.testing.assert_allclose(cloud.positions[0], [-1.5 * 2 / 2, 0.5 * 2 / 2, -2.0])
    np.testing.assert_allclose(cloud.positions[3], [1.5 * 0.5 / 2, 0.5 * 0.5 / 2, -0.5])
    np.testing.assert_allclose(cloud.positions[4], [-1.5 * 1 / 2, -0.5 * 1 / 2, -1.0])


def test_points_project_back_onto_their_pixels_in_both_views():
    random = np.random.default_rng(1)
    disparity = random.uniform(2, 5, (H, W)).astype(np.float32)
    cloud = cloud_of(disparity, fov_deg=37.0, baseline_m=0.065)
    focal_px = W / 2 / np.tan(np.radians(37.0 / 2))
    x, y, z = cloud.positions.astype(np.float64).T
    rows, cols = (axis.ravel() for axis in np.mgrid[:H, :W])
    np.testing.assert_allclose(W / 2 + focal_px * x / -z, cols + 0.5, atol=1e-4)
    np.testing.assert_allclose(H / 2 - focal_px * y / -z, rows + 0.5, atol=1e-4)
    np.testing.assert_allclose(
        W / 2 + focal_px * (x - 0.065) / -z, cols + 0.5 - disparity.ravel(), atol=1e-4, err_msg="the other camera"
    )
    assert cloud.colors[:, 0].tolist() == (10 * cols).tolist() and cloud.colors[:, 1].tolist() == (50 * rows).tolist()


def test_the_baseline_scales_and_the_field_of_view_deepens():
    disparity = np.arange(1, 1 + H * W, dtype=np.float32).reshape(H, W)
    one, metres = cloud_of(disparity, 60.0), cloud_of(disparity, 60.0, baseline_m=0.1)
    np.testing.assert_allclose(metres.positions, one.positions * 0.1, rtol=1e-6)
    narrow = cloud_of(disparity, 2 * np.degrees(np.arctan(np.tan(np.radians(30)) / 2)))
    np.testing.assert_allclose(narrow.positions[:, 2], 2 * one.positions[:, 2], rtol=1e-6)
    np.testing.assert_allclose(narrow.positions[:, :2], one.positions[:, :2], rtol=1e-5)


def test_far_points_stand_on_a_backdrop_and_unknown_ones_are_left_out():
    row = [[12.0, 5.0, 4.0, 3.9, 0.0, np.inf, np.nan, 1.0]]
    depth = -cloud_of(row).positions[:, 2] / 4.0  # focal length 4 px
    np.testing.assert_allclose(depth, [1 / 12, 1 / 5, 1 / 4, 1 / 4, 1 / 4, 1 / 4], rtol=1e-6)
    depth = -cloud_of(row, max_depth_ratio=12.0).positions[:, 2] / 4.0
    np.testing.assert_allclose(depth, [1 / 12, 1 / 5, 1 / 4, 1 / 3.9, 1, 1], rtol=1e-6)
    depth = -cloud_of(row, max_depth_ratio=None).positions[:, 2] / 4.0
    np.testing.assert_allclose(depth, [1 / 12, 1 / 5, 1 / 4, 1 / 3.9, 1], rtol=1e-6)


def test_points_on_the_backdrop_stay_on_their_rays():
    row = [[12.0, 0.0, 6.0, 0.0]]
    x, _, z = cloud_of(row).positions.T
    np.testing.assert_allclose(2.0 + 2.0 * x / -z, [0.5, 1.5, 2.5, 3.5], rtol=1e-6)


def test_thinning_keeps_exactly_that_many_points_and_always_the_same():
    disparity = np.arange(1, 1 + 40 * 50, dtype=np.float32).reshape(40, 50)
    whole = cloud_of(disparity, max_depth_ratio=None)
    thin, again = (cloud_of(disparity, max_depth_ratio=None, max_points=500) for _ in range(2))
    assert len(thin.positions) == len(thin.colors) == 500 and len(whole.positions) == 2000
    assert np.array_equal(thin.positions, again.positions)
    assert {tuple(point) for point in thin.positions} < {tuple(point) for point in whole.positions}
    where = np.searchsorted(whole.positions[:, 2], thin.positions[:, 2])  # z grows from row to row
    assert (np.diff(where) > 0).all(), "row by row"
    counts = np.histogram(where, bins=8, range=(0, 2000))[0]
    assert counts.min() > 35, "from all parts of the picture"
    assert len(cloud_of(disparity, max_points=2000).positions) == len(cloud_of(disparity, max_points=9999).positions)


def test_point_clouds_take_the_outputs_of_one_photograph():
    maps = torch.arange(1.0, 1 + H * W).view(1, 1, H, W)
    wanted = StereoImageProcessor.point_cloud(views()[0], maps, 60)
    for output_type in ("np", "pil"):
        found = StereoImageProcessor.point_cloud(
            views()[0], StereoImageProcessor.postprocess_map(maps, output_type), 60
        )
        assert np.array_equal(found.positions, wanted.positions)
    turned = views()[0].transpose(PIL.Image.Transpose.ROTATE_90)
    turned.getexif()[ORIENTATION] = 6
    assert np.array_equal(StereoImageProcessor.point_cloud(turned, maps, 60).colors, wanted.colors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fov_deg": 0}, r"`fov_deg` must lie in \(0, 180\) degrees; got 0"),
        ({"fov_deg": 180.0}, r"`fov_deg` must lie in \(0, 180\) degrees; got 180\.0"),
        ({"fov_deg": np.nan}, r"`fov_deg` must lie in \(0, 180\) degrees; got nan"),
        ({"baseline_m": 0.0}, r"`baseline_m` must be positive and finite; got 0\.0"),
        ({"baseline_m": np.inf}, r"`baseline_m` must be positive and finite; got inf"),
        ({"max_depth_ratio": 0.9}, r"`max_depth_ratio` must be None or a number of at least 1; got 0\.9"),
        ({"max_points": 0}, r"`max_points` must be None or an integer of at least 1; got 0"),
        ({"max_points": 10.0}, r"`max_points` must be None or an integer of at least 1; got 10\.0"),
        (
            {"disparity": np.ones((W, H))},
            r"`disparity` must be one map of the size of `image`, \[3, 7\]; got \[1, 7, 3",
        ),
        ({"disparity": np.ones((2, H, W))}, r"`disparity` must be one map .*; got \[2, 3, 7\]"),
        ({"disparity": np.full((H, W), -1.0)}, r"`disparity` must not be negative; got a minimum of -1"),
        ({"disparity": np.zeros((H, W))}, r"`disparity` must be above 0 px in at least one pixel; got none"),
        ({"disparity": np.full((H, W), np.inf)}, r"`disparity` must be above 0 px in at least one pixel; got none"),
    ],
)
def test_wrong_arguments_of_point_clouds_are_refused(arguments, message):
    given = {"image": views()[0], "disparity": np.ones((H, W)), "fov_deg": 60.0} | arguments
    with pytest.raises(ValueError, match=message):
        StereoImageProcessor.point_cloud(**given)


def three_points() -> PointCloud:
    positions = np.array([[1.5, -2.0, -3.25], [0.0, 4.0, -8.0], [-7.0, 0.5, -1.0]], np.float32)
    return PointCloud(positions, np.array([[255, 128, 0], [10, 188, 3], [1, 2, 254]], np.uint8))


def test_ply_is_read_back_exactly():
    file = StereoImageProcessor.export_point_cloud_to_ply(three_points())
    header, points = file.split(b"end_header\n", 1)
    assert header.decode("ascii").splitlines() == [
        "ply",
        "format binary_little_endian 1.0",
        "element vertex 3",
        "property float x",
        "property float y",
        "property float z",
        "property uchar red",
        "property uchar green",
        "property uchar blue",
    ]
    assert len(points) == 3 * 15
    found = [struct.unpack_from("<fffBBB", points, 15 * index) for index in range(3)]
    assert found[0] == (1.5, -2.0, -3.25, 255, 128, 0)
    assert found[1] == (0.0, 4.0, -8.0, 10, 188, 3)
    assert found[2] == (-7.0, 0.5, -1.0, 1, 2, 254)


def test_glb_is_read_back():
    file = StereoImageProcessor.export_point_cloud_to_glb(three_points())
    magic, version, length = struct.unpack_from("<4sLL", file)
    assert (magic, version, length) == (b"glTF", 2, len(file)) and length % 4 == 0
    text_length, text_kind = struct.unpack_from("<L4s", file, 12)
    assert text_kind == b"JSON" and text_length % 4 == 0
    scene = json.loads(file[20 : 20 + text_length])
    binary_length, binary_kind = struct.unpack_from("<L4s", file, 20 + text_length)
    binary = file[28 + text_length :]
    assert binary_kind == b"BIN\0" and binary_length == len(binary) == scene["buffers"][0]["byteLength"]

    assert scene["asset"]["version"] == "2.0"
    (primitive,) = scene["meshes"][scene["nodes"][scene["scenes"][scene["scene"]]["nodes"][0]]["mesh"]]["primitives"]
    assert primitive["mode"] == 0, "POINTS"
    assert "KHR_materials_unlit" in scene["extensionsUsed"]
    assert scene["materials"][primitive["material"]] == {"extensions": {"KHR_materials_unlit": {}}}

    def read(name: str) -> np.ndarray:
        accessor = scene["accessors"][primitive["attributes"][name]]
        view = scene["bufferViews"][accessor["bufferView"]]
        assert (accessor["componentType"], accessor["type"], accessor["count"]) == (5126, "VEC3", 3)
        assert view["byteOffset"] % 4 == 0 and view["byteLength"] == 36
        values = struct.unpack_from("<9f", binary, view["byteOffset"])
        return np.array(values).reshape(3, 3)

    assert np.array_equal(read("POSITION"), three_points().positions)
    accessor = scene["accessors"][primitive["attributes"]["POSITION"]]
    assert accessor["min"] == [-7.0, -2.0, -8.0] and accessor["max"] == [1.5, 4.0, -1.0]
    colors = read("COLOR_0")  # linear: 188 is half of the light, 10 is on the straight part of the curve
    np.testing.assert_allclose(colors[0], [1.0, 0.215861, 0.0], atol=1e-6)
    np.testing.assert_allclose(colors[1], [10 / 255 / 12.92, 0.502886, 3 / 255 / 12.92], atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_points_keeps_glb_aligned(count):
    cloud = PointCloud(np.full((count, 3), -0.1, np.float32), np.zeros((count, 3), np.uint8))
    file = StereoImageProcessor.export_point_cloud_to_glb(cloud)
    (text_length,) = struct.unpack_from("<L", file, 12)
    assert text_length % 4 == 0 and len(file) == 28 + text_length + 24 * count
    scene = json.loads(file[20 : 20 + text_length])
    assert scene["accessors"][0]["min"] == [float(np.float32(-0.1))] * 3, "the exact float32 bounds"


@pytest.mark.parametrize("write", ["export_point_cloud_to_ply", "export_point_cloud_to_glb"])
def test_wrong_clouds_are_refused(write):
    positions, colors = three_points()
    for wrong in (
        PointCloud(positions[:0], colors[:0]),
        PointCloud(positions, colors[:2]),
        PointCloud(colors[0], colors),
    ):
        with pytest.raises(ValueError, match=r"`cloud` must have positions and colors of shape \[N,3\] with at least"):
            getattr(StereoImageProcessor, write)(wrong)
    far = positions.copy()
    far[1, 2] = -np.inf
    with pytest.raises(ValueError, match="`cloud` must have finite positions; got infinite or NaN ones"):
        getattr(StereoImageProcessor, write)(PointCloud(far, colors))
