# SPDX-License-Identifier: Apache-2.0
"""Pictures and files of a pair: known answers, read back by readers that share nothing with the writers."""

import io
import json
import math
import struct
import sys

import cv2
import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageSequence
import pytest
import torch

from pipeline_zerostereo import ANAGLYPH_MATRICES, PointCloud, StereoImageProcessor
from tests.test_photographs import linear_profile

P = StereoImageProcessor
H, W = 4, 7


def numbered(start: int) -> PIL.Image.Image:
    """[H,W] grey levels start, start + 1, ... row by row, so that every pixel can be told apart."""
    grey = (start + np.arange(H * W, dtype=np.uint8)).reshape(H, W)
    return PIL.Image.fromarray(np.repeat(grey[..., None], 3, axis=2))


LEFT, RIGHT = numbered(10), numbered(120)


def plain(color: tuple[int, int, int], size: tuple[int, int] = (W, H)) -> PIL.Image.Image:
    return PIL.Image.new("RGB", size, color)


def grey_of(picture: PIL.Image.Image) -> list:
    return np.asarray(picture)[..., 0].tolist()


# --- convergence ---


def test_convergence_brings_its_disparity_into_the_screen():
    """A point at column 5 of the left view with disparity 3 is at 2 of the right one; converged by 3, at 2 of both."""
    left, right = plain((0, 0, 0)), plain((0, 0, 0))
    left.putpixel((5, 1), (255, 255, 255))
    right.putpixel((2, 1), (255, 255, 255))
    views = P.converge(left, right, 3)
    assert [view.size for view in views] == [(W - 3, H)] * 2
    assert [np.argwhere(np.asarray(view)[..., 0]).tolist() for view in views] == [[[1, 2]]] * 2
    back = P.converge(left, right, -1)
    assert [np.argwhere(np.asarray(view)[..., 0]).tolist() for view in back] == [[[1, 5]], [[1, 1]]]  # parallax 4


@pytest.mark.parametrize("convergence", [0, 2, -2])
def test_every_stereo_picture_takes_the_convergence(convergence):
    left, right = P.converge(LEFT, RIGHT, convergence)
    for one, other in (
        (P.side_by_side(LEFT, RIGHT, convergence=convergence), P.side_by_side(left, right)),
        (P.top_bottom(LEFT, RIGHT, convergence=convergence), P.top_bottom(left, right)),
        (P.anaglyph(LEFT, RIGHT, convergence=convergence), P.anaglyph(left, right)),
        (P.wiggle(LEFT, RIGHT, convergence)[1], right),
    ):
        assert one.size == other.size and one.tobytes() == other.tobytes()
    assert P.export_views_to_mpo(LEFT, RIGHT, convergence=convergence) == P.export_views_to_mpo(left, right)


# --- side by side, top and bottom ---


def test_side_by_side_layouts_and_sizes():
    left, right = np.asarray(LEFT), np.asarray(RIGHT)
    assert np.array_equal(P.side_by_side(LEFT, RIGHT), np.concatenate([left, right], axis=1))
    crossed = P.side_by_side(LEFT, RIGHT, layout="cross_eyed")
    assert np.array_equal(crossed, np.concatenate([right, left], axis=1))
    half = P.side_by_side(plain((9, 9, 9)), plain((200, 0, 0)), size="half")
    assert half.size == (8, H) and grey_of(half)[0] == [9] * 4 + [200] * 4  # 7 columns squeezed to 4 each


def test_top_bottom_sizes():
    left, right = np.asarray(LEFT), np.asarray(RIGHT)
    assert np.array_equal(P.top_bottom(LEFT, RIGHT), np.concatenate([left, right], axis=0))
    half = P.top_bottom(plain((9, 9, 9)), plain((200, 0, 0)), size="half")
    assert half.size == (W, H) and [row[0] for row in grey_of(half)] == [9, 9, 200, 200]


# --- anaglyphs ---

LEFT_COLOR, RIGHT_COLOR = (200, 100, 50), (20, 160, 240)
LUMA_OF_LEFT = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
LUMA_OF_RIGHT = 0.299 * 20 + 0.587 * 160 + 0.114 * 240
EXPECTED_ANAGLYPHS = {
    "color": (200, 160, 240),
    "half_color": (LUMA_OF_LEFT, 160, 240),
    "gray": (LUMA_OF_LEFT, LUMA_OF_RIGHT, LUMA_OF_RIGHT),
    "true": (LUMA_OF_LEFT, 0, LUMA_OF_RIGHT),
    "optimized": (255 * ((0.7 * 100 + 0.3 * 50) / 255) ** (1 / 1.5), 160, 240),
}


@pytest.mark.parametrize("method", EXPECTED_ANAGLYPHS)
def test_anaglyph_methods(method):
    found = P.anaglyph(plain(LEFT_COLOR), plain(RIGHT_COLOR), method)
    assert found.getpixel((3, 2)) == tuple(round(value) for value in EXPECTED_ANAGLYPHS[method])


def test_grey_keeps_its_level_in_every_method_of_full_colours():
    assert set(EXPECTED_ANAGLYPHS) | {"dubois"} == set(ANAGLYPH_MATRICES)
    for method in ("dubois", "color", "half_color", "gray"):
        found = P.anaglyph(plain((100, 100, 100)), plain((100, 100, 100)), method).getpixel((0, 0))
        assert found == pytest.approx((100, 100, 100), abs=1), method
    assert P.anaglyph(LEFT, RIGHT).tobytes() == P.anaglyph(LEFT, RIGHT, "dubois").tobytes()


def test_profiles_travel_but_for_anaglyphs():
    profile = linear_profile()
    left, right = LEFT.copy(), RIGHT.copy()
    left.info["icc_profile"] = profile
    for picture in (P.side_by_side(left, right), P.top_bottom(left, right), *P.wiggle(left, right)):
        assert picture.info["icc_profile"] == profile
    mixed = P.anaglyph(left, right, "gray")
    assert "icc_profile" not in mixed.info and "icc_profile" not in right.info
    srgb = [P.postprocess(P.preprocess(view), "pil")[0] for view in P.wiggle(left, right)]
    assert mixed.tobytes() == P.anaglyph(*srgb, "gray").tobytes()


# --- MPO ---


def test_mpo_holds_both_views_as_a_disparity_pair():
    rng = np.random.default_rng(0)
    left, right = (
        PIL.Image.fromarray(rng.integers(0, 255, (3, 4, 3), dtype=np.uint8)).resize((64, 48), 0) for _ in range(2)
    )
    data = P.export_views_to_mpo(left, right)
    opened = PIL.Image.open(io.BytesIO(data))
    assert (opened.format, opened.n_frames) == ("MPO", 2)
    for number, view in enumerate((left, right)):
        opened.seek(number)
        assert np.abs(np.asarray(opened).astype(int) - np.asarray(view)).mean() < 4, number
    attributes = [entry["Attribute"] for entry in opened.mpinfo[0xB002]]
    assert [one["MPType"] for one in attributes] == ["Multi-Frame Image: (Disparity)"] * 2
    assert [one["RepresentativeImageFlag"] for one in attributes] == [True, False]


# --- wigglegrams ---


def test_wiggle_shows_left_then_right():
    frames = P.wiggle(LEFT, RIGHT)
    assert [frame.tobytes() for frame in frames] == [LEFT.tobytes(), RIGHT.tobytes()]


def test_gif_and_webp_are_animations():
    frames = [plain((250, 10, 10), (40, 30)), plain((10, 10, 250), (40, 30))]
    gif = PIL.Image.open(io.BytesIO(P.export_wiggle_to_gif(frames, frame_ms=120, loop=3)))
    webp = PIL.Image.open(io.BytesIO(P.export_wiggle_to_webp(frames, frame_ms=120, loop=3)))
    for opened in (gif, webp):
        assert opened.n_frames == 2 and opened.info["loop"] == 3
        shown = [frame.convert("RGB") for frame in PIL.ImageSequence.Iterator(opened)]
        for frame, wanted in zip(shown, frames, strict=True):
            assert frame.getpixel((20, 15)) == pytest.approx(wanted.getpixel((20, 15)), abs=12)
    gif.seek(1)
    assert gif.info["duration"] == 120


def test_mp4_plays_the_frames_again_and_again(require, tmp_path):
    require("imageio_ffmpeg")
    frames = [plain((240, 20, 20), (65, 49)), plain((20, 20, 240), (65, 49))]
    path = tmp_path / "wiggle.mp4"
    path.write_bytes(P.export_wiggle_to_mp4(frames, frame_ms=100, repeats=3))
    video = cv2.VideoCapture(str(path))
    assert round(video.get(cv2.CAP_PROP_FPS)) == 10
    colors = []
    while (read := video.read())[0]:
        assert read[1].shape == (48, 64, 3)  # even sizes, cut, not scaled
        colors.append("red" if read[1][20, 30, 2] > 128 else "blue")
    assert colors == ["red", "blue"] * 3


def test_mp4_without_its_packages_names_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match="MP4 files need imageio and imageio-ffmpeg: pip install imageio imageio-ff"):
        P.export_wiggle_to_mp4(P.wiggle(LEFT, RIGHT))


# --- disparity ---

DISPARITY = np.array([[0.0, 1.5, 300.25], [np.inf, 2.0, 7.125]], dtype=np.float32)


def test_tiff_is_exact(tmp_path):
    (picture,) = P.export_disparity_to_tiff(DISPARITY)
    picture.save(tmp_path / "d.tiff")
    assert np.array_equal(np.asarray(PIL.Image.open(tmp_path / "d.tiff")), DISPARITY)
    assert np.array_equal(cv2.imread(str(tmp_path / "d.tiff"), cv2.IMREAD_UNCHANGED), DISPARITY)


def test_pfm_is_what_middlebury_readers_expect(tmp_path):
    (data,) = P.export_disparity_to_pfm(torch.from_numpy(DISPARITY))
    kind, size, scale, values = data.split(b"\n", 3)
    assert kind == b"Pf" and size == b"3 2" and float(scale) < 0  # negative: little endian
    rows = np.array(struct.unpack("<6f", values)).reshape(2, 3)
    assert np.array_equal(rows[::-1], DISPARITY)
    (tmp_path / "d.pfm").write_bytes(data)
    assert np.array_equal(cv2.imread(str(tmp_path / "d.pfm"), cv2.IMREAD_UNCHANGED), DISPARITY)


def test_scale_bar_stands_below_the_untouched_map():
    disparity = np.linspace(0, 20, 300 * 400, dtype=np.float32).reshape(300, 400)
    (picture,) = P.visualize_disparity(disparity)
    (painted,) = P.visualize_map(disparity)
    assert picture.width == 400 and picture.height > 300
    assert picture.crop((0, 0, 400, 300)).tobytes() == painted.tobytes()
    bar = np.asarray(picture.crop((0, 300, 400, picture.height)))
    assert (bar == 255).all(-1).any() and (bar.sum(-1) < 150).any()  # white margins, dark letters
    assert tuple(np.asarray(painted)[-1, -1]) in {tuple(pixel) for pixel in bar.reshape(-1, 3)}


def test_scale_bar_of_narrow_unknown_and_constant_maps():
    narrow = P.visualize_disparity(np.full((50, 20), 7.0))[0]
    assert narrow.width == 160 and narrow.getpixel((80, 25)) == P.visualize_map(np.full((1, 1), 7.0))[0].getpixel(
        (0, 0)
    )
    assert P._choose_ticks(0.0, 20.0, 5) == [0.0, 5.0, 10.0, 15.0, 20.0]
    assert P._choose_ticks(3.2, 41.0, 4) == [10.0, 20.0, 30.0, 40.0]
    assert P._choose_ticks(7.0, 7.0, 4) == [7.0]
    known, unknown = np.ones((100, 300)), np.ones((100, 300))
    unknown[:50] = np.inf
    assert P.visualize_disparity(known)[0].tobytes() != P.visualize_disparity(unknown)[0].tobytes()
    assert P.visualize_disparity(np.full((5, 5), np.inf))[0].size[0] == 160


# --- point clouds ---


def cloud_of_three() -> PointCloud:
    """2 high, 4 wide, 90 degrees: the focal length is 2 px. Disparity 1 lies 2 baselines away, 0.5 lies 4 away."""
    image = numbered(0).crop((0, 0, 4, 2))
    disparity = np.array([[1.0, np.inf, 0.0, 0.5], [0.2, 0.0, 1.0, 0.0]])
    return P.point_cloud(image, disparity, fov_deg=90.0)


def test_points_lie_where_the_pinhole_camera_sees_them():
    cloud = cloud_of_three()
    assert cloud.positions.dtype == np.float32 and cloud.colors.dtype == np.uint8
    expected = [
        [-1.5, 0.5, -2.0],  # column 0 is 1.5 px left of the axis, row 0 half a pixel above it; depth 2 of focal 2
        [1.5 * 2, 0.5 * 2, -4.0],
        [0.5, -0.5, -2.0],
    ]  # 0.2 px would be 10 away, beyond four times the nearest
    np.testing.assert_allclose(cloud.positions, expected)
    assert cloud.colors[:, 0].tolist() == [0, 3, W + 2]
    image = numbered(0).crop((0, 0, 4, 2))
    disparity = np.array([[1.0, np.inf, 0.0, 0.5], [0.2, 0.0, 1.0, 0.0]])
    everything = P.point_cloud(image, disparity, 90.0, baseline_m=0.1, max_depth_ratio=None)
    assert everything.positions[:, 2].tolist() == pytest.approx([-0.2, -0.4, -1.0, -0.2])
    thinned = P.point_cloud(image, disparity, 90.0, max_points=2)
    again = P.point_cloud(image, disparity, 90.0, max_points=2)
    assert len(thinned.positions) == 2 and np.array_equal(thinned.positions, again.positions)


def test_ply_is_read_back():
    cloud = cloud_of_three()
    header, body = P.export_point_cloud_to_ply(cloud).split(b"end_header\n", 1)
    lines = header.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 3"]
    assert [line.split()[1:] for line in lines[3:]] == [["float", axis] for axis in "xyz"] + [
        ["uchar", channel] for channel in ("red", "green", "blue")
    ]
    points = list(struct.iter_unpack("<3f3B", body))
    np.testing.assert_allclose([point[:3] for point in points], cloud.positions)
    assert [list(point[3:]) for point in points] == cloud.colors.tolist()


def test_glb_is_read_back():
    cloud = cloud_of_three()
    data = P.export_point_cloud_to_glb(cloud)
    magic, version, length = struct.unpack_from("<4sLL", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    json_length, json_kind = struct.unpack_from("<L4s", data, 12)
    scene = json.loads(data[20 : 20 + json_length])
    binary_length, binary_kind = struct.unpack_from("<L4s", data, 20 + json_length)
    assert (json_kind, binary_kind) == (b"JSON", b"BIN\0") and json_length % 4 == binary_length % 4 == 0
    binary = data[28 + json_length :]
    assert len(binary) == binary_length == scene["buffers"][0]["byteLength"]
    primitive = scene["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0  # POINTS
    place, color = (scene["accessors"][primitive["attributes"][name]] for name in ("POSITION", "COLOR_0"))
    views = scene["bufferViews"]
    positions = np.frombuffer(binary, "<f4", 9, views[place["bufferView"]]["byteOffset"]).reshape(3, 3)
    np.testing.assert_allclose(positions, cloud.positions)
    assert place["min"] == positions.min(0).tolist() and place["max"] == positions.max(0).tolist()
    linear = np.frombuffer(binary, "<u2", 12, views[color["bufferView"]]["byteOffset"]).reshape(3, 4) / 65535
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    np.testing.assert_allclose(srgb[:, :3], cloud.colors, atol=0.3)
    assert (linear[:, 3] == 1).all()


# --- wrong input ---

TWO = [LEFT, RIGHT]
CLOUD = cloud_of_three()
WRONG = {
    "sizes": (lambda: P.converge(LEFT, plain((0, 0, 0), (5, 4))), r"`right_view` must have the size of `left_view`"),
    "convergence: fraction": (lambda: P.converge(*TWO, 1.5), "`convergence` must be an integer number of px; got 1.5"),
    "convergence: too far": (
        lambda: P.converge(*TWO, -7),
        "`convergence` must leave at least one of .*; got -7",
    ),
    "layout": (lambda: P.side_by_side(*TWO, layout="lr"), r"`layout` must be one of \('parallel', .*; got 'lr'"),
    "size": (lambda: P.top_bottom(*TWO, size="small"), r"`size` must be one of \('full', 'half'\); got 'small'"),
    "method": (lambda: P.anaglyph(*TWO, method="amber"), "`method` must be one of .*'dubois'.*; got 'amber'"),
    "quality of mpo": (
        lambda: P.export_views_to_mpo(*TWO, quality=0),
        "`quality` must be an .* from 1 to 100; got 0",
    ),
    "quality of webp": (
        lambda: P.export_wiggle_to_webp(TWO, quality=101),
        "`quality` must be an integer from 1 to 100",
    ),
    "one frame": (lambda: P.export_wiggle_to_gif([LEFT]), "`frames` must be two or more RGB images of one size; got"),
    "frame time": (
        lambda: P.export_wiggle_to_webp(TWO, frame_ms=10),
        "`frame_ms` must be an integer of at least 20",
    ),
    "frame time of gif": (lambda: P.export_wiggle_to_gif(TWO, frame_ms=125), "`frame_ms` must be a multiple of 10 ms"),
    "loop": (lambda: P.export_wiggle_to_gif(TWO, loop=-1), "`loop` must be an integer >= 0, 0 = for ever; got -1"),
    "repeats": (lambda: P.export_wiggle_to_mp4(TWO, repeats=0), "`repeats` must be an integer of at least 1; got 0"),
    "tiny video": (
        lambda: P.export_wiggle_to_mp4([plain((0, 0, 0), (1, 9))] * 2),
        r"`frames` must be at least 2 px a side for MP4; got \(1, 9\)",
    ),
    "huge webp": (
        lambda: P.export_wiggle_to_webp([plain((0, 0, 0), (16384, 1))] * 2),
        "`frames` must be at most 16383 px a side for WebP",
    ),
    "negative disparity": (
        lambda: P.export_disparity_to_pfm(-DISPARITY),
        "`disparity` must not be negative; got",
    ),
    "negative colours": (lambda: P.visualize_disparity(-np.ones((2, 3))), "`disparity` must not be negative"),
    "field of view": (
        lambda: P.point_cloud(LEFT, np.ones((H, W)), 180),
        r"`fov_deg` must lie in .*; got 180",
    ),
    "baseline": (
        lambda: P.point_cloud(LEFT, np.ones((H, W)), 60, 0),
        "`baseline_m` must be positive .*; got 0",
    ),
    "ratio": (
        lambda: P.point_cloud(LEFT, np.ones((H, W)), 60, max_depth_ratio=0.5),
        "`max_depth_ratio` must be None or a number of at least 1; got 0.5",
    ),
    "points": (
        lambda: P.point_cloud(LEFT, np.ones((H, W)), 60, max_points=0),
        "`max_points` must be None or an integer of at least 1; got 0",
    ),
    "map of another size": (
        lambda: P.point_cloud(LEFT, np.ones((3, 5)), 60),
        r"`disparity` must be one map of the size of `image`, \[4, 7\]; got \[1, 3, 5\]",
    ),
    "no disparity": (
        lambda: P.point_cloud(LEFT, np.zeros((H, W)), 60),
        "`disparity` must be above 0 px in",
    ),
    "cloud": (
        lambda: P.export_point_cloud_to_ply(PointCloud(CLOUD.positions, CLOUD.colors[:2])),
        r"`cloud` must have positions and colors of shape \[N,3\] .*; got \[3, 3\] and \[2, 3\]",
    ),
    "cloud at infinity": (
        lambda: P.export_point_cloud_to_glb(PointCloud(CLOUD.positions * math.inf, CLOUD.colors)),
        "`cloud` must have finite positions; got infinite or NaN ones",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_views_of_two_profiles_are_refused():
    left, right = LEFT.copy(), RIGHT.copy()
    left.info["icc_profile"] = linear_profile()
    right.info["icc_profile"] = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    with pytest.raises(ValueError, match="`right_view` must have the colour profile of `left_view`, or none; got"):
        P.side_by_side(left, right)
    left.info["icc_profile"] = left.info["icc_profile"][:20] + bytes(200)
    right.info.pop("icc_profile")
    with pytest.raises(ValueError, match="`left_view` must have a colour profile that can be read; got"):
        P.anaglyph(left, right)
