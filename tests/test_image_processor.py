# SPDX-License-Identifier: Apache-2.0
"""What goes into the pipeline and the pictures that come out: known answers, asymmetric numbers, 3 high and 5 wide."""

import io

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch

from pipeline_zerostereo import COLOR_MAP, DUBOIS_LEFT, DUBOIS_RIGHT, StereoImageProcessor
from tests.tiny_components import make_photos

H, W = 3, 5
ORIENTATION = 0x0112  # EXIF tag


def numbered_pixels() -> np.ndarray:
    """[H,W,3] uint8, no two values alike."""
    return np.arange(H * W * 3, dtype=np.uint8).reshape(H, W, 3) * 5


def expected_tensor(pixels: np.ndarray) -> torch.Tensor:
    """[1,3,H,W] by plain loops."""
    height, width = pixels.shape[:2]
    tensor = torch.empty(1, 3, height, width)
    for y in range(height):
        for x in range(width):
            for c in range(3):
                tensor[0, c, y, x] = float(np.float32(pixels[y, x, c]) / np.float32(255))
    return tensor


def plain(color: tuple[int, ...], size: tuple[int, int] = (W, H)) -> PIL.Image.Image:
    return PIL.Image.new("RGB", size, color)


# --- in ---


def test_every_form_of_one_photograph_gives_the_same_tensor():
    pixels = numbered_pixels()
    expected = expected_tensor(pixels)
    chw = torch.from_numpy(pixels).permute(2, 0, 1)
    forms = {
        "pil": PIL.Image.fromarray(pixels),
        "list of pil": [PIL.Image.fromarray(pixels)],
        "array": pixels,
        "batched array": pixels[None],
        "list of arrays": [pixels],
        "float array": pixels.astype(np.float32) / np.float32(255),
        "tensor": chw,
        "batched tensor": chw[None],
        "list of tensors": [chw],
        "float tensor": expected[0],
        "batched float tensor": expected,
    }
    for name, form in forms.items():
        tensor = StereoImageProcessor.preprocess(form)
        assert tensor.dtype == torch.float32, name
        assert torch.equal(tensor, expected), name


def test_a_batch_keeps_its_order():
    first, second = numbered_pixels(), numbered_pixels()[::-1, ::-1]  # also a view with negative strides
    expected = torch.cat([expected_tensor(first), expected_tensor(second)])
    for form in (
        [PIL.Image.fromarray(first), PIL.Image.fromarray(np.ascontiguousarray(second))],
        [first, second],
        np.stack([first, second]),
        expected,
        list(expected),
    ):
        assert torch.equal(StereoImageProcessor.preprocess(form), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype):
    photos = make_photos(2, H, W).to(dtype)
    tensor = StereoImageProcessor.preprocess(photos)
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor, photos.float())


def test_all_eight_orientations_are_applied():
    upright = numbered_pixels()
    stored_as = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),  # "rotate 90 degrees clockwise to view"
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    for orientation, stored in stored_as.items():
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = orientation
        file = io.BytesIO()
        PIL.Image.fromarray(np.ascontiguousarray(stored)).save(file, format="PNG", exif=exif)
        tensor = StereoImageProcessor.preprocess(PIL.Image.open(file))
        assert torch.equal(tensor, expected_tensor(upright)), orientation


def test_grey_palette_bilevel_and_cmyk_become_rgb():
    grey = np.array([[0, 50, 100, 150, 255]] * H, dtype=np.uint8)
    of_grey = expected_tensor(np.repeat(grey[..., None], 3, axis=2))
    assert torch.equal(StereoImageProcessor.preprocess(PIL.Image.fromarray(grey)), of_grey)

    palette = PIL.Image.fromarray(np.array([[0, 1, 2, 1, 0]] * H, dtype=np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 0, 7, 8, 9])
    colors = np.array([[10, 20, 30], [200, 100, 0], [7, 8, 9]], dtype=np.uint8)
    of_palette = expected_tensor(colors[np.array([[0, 1, 2, 1, 0]] * H)])
    assert torch.equal(StereoImageProcessor.preprocess(palette), of_palette)

    bilevel = PIL.Image.fromarray(np.array([[True, False, False, True, False]] * H))
    assert bilevel.mode == "1"
    tensor = StereoImageProcessor.preprocess(bilevel)
    assert tensor[0, :, 1].tolist() == [[1.0, 0.0, 0.0, 1.0, 0.0]] * 3

    cmyk = PIL.Image.new("CMYK", (W, H), (255, 0, 127, 0))  # no red, all green, half blue
    tensor = StereoImageProcessor.preprocess(cmyk)
    assert tensor[0, :, 0, 0].tolist() == pytest.approx([0.0, 1.0, 128 / 255], abs=1.5 / 255)


def test_photographs_are_not_changed():
    exif_photo = PIL.Image.fromarray(numbered_pixels())
    exif_photo.getexif()[ORIENTATION] = 6
    array, tensor = numbered_pixels(), make_photos(2, H, W)
    before = (exif_photo.tobytes(), exif_photo.size, array.copy(), tensor.clone())
    for form in (exif_photo, array, tensor):
        StereoImageProcessor.preprocess(form)
    assert (exif_photo.tobytes(), exif_photo.size) == before[:2] and exif_photo.getexif()[ORIENTATION] == 6
    assert np.array_equal(array, before[2]) and torch.equal(tensor, before[3])


def test_every_form_of_a_map_gives_the_same_tensor():
    values = np.arange(2 * H * W, dtype=np.float64).reshape(2, H, W) / 7
    expected = torch.from_numpy(values).float()[:, None]
    for form in (
        values,
        values[:, None],
        values[..., None],
        torch.from_numpy(values),
        expected,
        [values[0], values[1]],
        [expected[0, 0], expected[1, 0]],
    ):
        loaded = StereoImageProcessor.load_map("disparity", form, 2, H, W)
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, expected)
    single = StereoImageProcessor.load_map("disparity", np.arange(H * W).reshape(H, W), 1, H, W)
    assert single[0, 0].tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]


# --- out ---


def test_images_in_every_output_type():
    images = make_photos(2, H, W)
    assert StereoImageProcessor.postprocess(images, "pt") is images
    array = StereoImageProcessor.postprocess(images, "np")
    assert array.shape == (2, H, W, 3) and array.dtype == np.float32
    assert array[1, 2, 4, 0] == images[1, 0, 2, 4]
    pictures = StereoImageProcessor.postprocess(images, "pil")
    assert [(picture.mode, picture.size) for picture in pictures] == [("RGB", (W, H))] * 2
    assert pictures[1].getpixel((4, 2)) == tuple(int(v) for v in (images[1, :, 2, 4] * 255).round())


def test_pictures_are_rounded_to_the_nearest_step():
    images = torch.tensor([0.4, 0.6, 254.6]).view(1, 3, 1, 1) / 255
    assert StereoImageProcessor.postprocess(images, "pil")[0].getpixel((0, 0)) == (0, 1, 255)


def test_all_256_values_survive_the_round_trip_through_pictures():
    values = np.arange(256, dtype=np.uint8).reshape(8, 32)
    photo = PIL.Image.fromarray(np.stack([values, 255 - values, values[::-1]], axis=-1))
    (back,) = StereoImageProcessor.postprocess(StereoImageProcessor.preprocess(photo), "pil")
    assert back.tobytes() == photo.tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_maps_in_every_output_type(dtype):
    maps = (torch.arange(2 * H * W).view(2, 1, H, W) % 4).to(dtype)
    assert StereoImageProcessor.postprocess_map(maps, "pt") is maps
    array = StereoImageProcessor.postprocess_map(maps, "np")
    squeezed = StereoImageProcessor.postprocess_map(maps, "pil")
    assert array.shape == (2, H, W, 1) and squeezed.shape == (2, H, W)
    assert array.dtype == squeezed.dtype == maps.numpy().dtype
    assert np.array_equal(array[..., 0], maps[:, 0].numpy()) and np.array_equal(squeezed, maps[:, 0].numpy())
    assert StereoImageProcessor.postprocess_map(None, "np") is None


# --- pictures ---


def test_colour_map_runs_from_the_lowest_to_the_highest_value():
    values = np.array([[2.0, 4.0, 5.0], [8.0, 3.0, 2.0]], dtype=np.float32)
    (picture,) = StereoImageProcessor.visualize_map(values)
    assert (picture.mode, picture.size) == ("RGB", (3, 2))
    assert picture.getpixel((0, 0)) == picture.getpixel((2, 1)) == COLOR_MAP[0]
    assert picture.getpixel((0, 1)) == COLOR_MAP[-1]
    assert picture.getpixel((2, 0)) == COLOR_MAP[3]  # half way: the middle of seven stops
    assert picture.getpixel((1, 0)) == COLOR_MAP[2]  # a third of the way: the third of seven stops
    low, next_stop = np.array(COLOR_MAP[1]), np.array(COLOR_MAP[0])
    assert picture.getpixel((1, 1)) == tuple(low)  # a sixth
    assert not np.array_equal(low, next_stop)


def test_brightness_of_the_colour_map_grows_steadily():
    (picture,) = StereoImageProcessor.visualize_map(np.linspace(0, 1, 256, dtype=np.float32)[None])
    brightness = np.asarray(picture).astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(brightness[0]) >= -0.6).all() and brightness[0, -1] - brightness[0, 0] > 200


def test_bounds_of_the_colour_map_clip():
    (picture,) = StereoImageProcessor.visualize_map(np.array([[-1.0, 10.0, 20.0, 99.0]]), lowest=10.0, highest=20.0)
    found = [picture.getpixel((x, 0)) for x in range(4)]
    assert found == [COLOR_MAP[0], COLOR_MAP[0], COLOR_MAP[-1], COLOR_MAP[-1]]


def test_unknown_values_are_black_and_do_not_count():
    values = np.array([[np.inf, 1.0, 3.0, np.nan, -np.inf]])
    (picture,) = StereoImageProcessor.visualize_map(values)
    found = [picture.getpixel((x, 0)) for x in range(5)]
    assert found == [(0, 0, 0), COLOR_MAP[0], COLOR_MAP[-1], (0, 0, 0), (0, 0, 0)]


@pytest.mark.parametrize("value", [0.0, 7.5, np.inf])
def test_a_constant_map_has_one_colour(value):
    (picture,) = StereoImageProcessor.visualize_map(np.full((H, W), value))
    assert picture.getcolors() == [(H * W, COLOR_MAP[0] if np.isfinite(value) else (0, 0, 0))]


def test_pictures_of_maps_take_every_output_type():
    maps = torch.arange(2.0 * H * W).view(2, 1, H, W)
    wanted = [picture.tobytes() for picture in StereoImageProcessor.visualize_map(maps)]
    assert len(wanted) == 2 and wanted[0] == wanted[1]  # each image between its own bounds
    for output_type in ("np", "pil"):
        value = StereoImageProcessor.postprocess_map(maps, output_type)
        assert [picture.tobytes() for picture in StereoImageProcessor.visualize_map(value)] == wanted
    first = StereoImageProcessor.visualize_map(maps, highest=100.0)
    assert first[0].tobytes() != first[1].tobytes() or maps[0].max() == maps[1].max()


def test_masks_are_white_where_true():
    mask = torch.zeros(2, 1, H, W, dtype=torch.bool)
    mask[1, 0, 2, 4] = True
    for form in (mask, mask.permute(0, 2, 3, 1).numpy(), mask[:, 0].numpy()):
        pictures = StereoImageProcessor.visualize_mask(form)
        assert [(picture.mode, picture.size) for picture in pictures] == [("L", (W, H))] * 2
        assert pictures[0].getcolors() == [(H * W, 0)]
        assert sorted(pictures[1].getcolors()) == [(1, 255), (H * W - 1, 0)]
        assert pictures[1].getpixel((4, 2)) == 255


def read_16bit_png(picture: PIL.Image.Image, scale: float) -> np.ndarray:
    """Write and read the PNG file and decode it as its docstring tells."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    codes = np.asarray(PIL.Image.open(file)).astype(np.float64)
    return np.where(codes == 0, np.inf, (codes - 1) / scale)


def test_codes_of_the_16bit_png():
    ((picture, scale),) = StereoImageProcessor.export_disparity_to_16bit_png(
        np.array([[0.0, 1.0, 2.5, np.inf, np.nan]])
    )
    assert (picture.mode, scale) == ("I;16", 256.0)
    assert [picture.getpixel((x, 0)) for x in range(5)] == [1, 257, 641, 0, 0]
    assert read_16bit_png(picture, scale).tolist() == [[0.0, 1.0, 2.5, np.inf, np.inf]]


@pytest.mark.parametrize(
    ("largest", "expected_scale"),
    [(0.0, 256), (255.0, 256), (255.99, 256), (256.0, 128), (511.9, 128), (512.0, 64), (4000.0, 16), (100000.0, 0.5)],
)
def test_16bit_png_halves_its_scale_until_the_largest_disparity_fits(largest, expected_scale):
    rng = np.random.default_rng(3)
    disparity = (rng.random((2, H, W)) * largest).astype(np.float32)
    disparity[0, 1, 2], disparity[0, 0, 0], disparity[0, 2, 4] = largest, 0.0, np.inf
    disparity[1] = np.minimum(disparity[1], 20.0)
    (first, scale), (second, second_scale) = StereoImageProcessor.export_disparity_to_16bit_png(disparity)
    assert (scale, second_scale) == (expected_scale, 256)  # each map has its own
    for picture, its_scale, wanted in ((first, scale, disparity[0]), (second, second_scale, disparity[1])):
        decoded = read_16bit_png(picture, its_scale)
        known = np.isfinite(wanted)
        assert np.array_equal(np.isfinite(decoded), known)
        assert np.abs(decoded[known] - wanted[known]).max() <= 1 / (2 * its_scale)


def test_16bit_png_takes_every_output_type():
    maps = torch.rand(2, 1, H, W, generator=torch.Generator().manual_seed(0)) * 30
    wanted = [picture.tobytes() for picture, _ in StereoImageProcessor.export_disparity_to_16bit_png(maps)]
    for output_type in ("np", "pil"):
        value = StereoImageProcessor.postprocess_map(maps, output_type)
        found = StereoImageProcessor.export_disparity_to_16bit_png(value)
        assert [picture.tobytes() for picture, _ in found] == wanted


def test_16bit_png_refuses_negative_disparity():
    with pytest.raises(ValueError, match=r"`disparity` must not be negative; got a minimum of -2\.5"):
        StereoImageProcessor.export_disparity_to_16bit_png(np.array([[1.0, -2.5]]))


def test_left_view_is_left():
    left, right = plain((200, 10, 20)), plain((1, 2, 250))
    picture = StereoImageProcessor.side_by_side(left, right)
    assert (picture.mode, picture.size) == ("RGB", (2 * W, H))
    assert picture.getpixel((0, 0)) == picture.getpixel((W - 1, H - 1)) == (200, 10, 20)
    assert picture.getpixel((W, 0)) == picture.getpixel((2 * W - 1, H - 1)) == (1, 2, 250)


def test_side_by_side_of_grey_views_is_rgb():
    picture = StereoImageProcessor.side_by_side(PIL.Image.new("L", (W, H), 9), PIL.Image.new("L", (W, H), 200))
    assert picture.getpixel((0, 0)) == (9, 9, 9) and picture.getpixel((W, 0)) == (200, 200, 200)


@pytest.mark.parametrize("level", [0, 1, 77, 128, 254, 255])
def test_anaglyph_of_a_grey_pair_is_grey(level):
    picture = StereoImageProcessor.anaglyph(plain((level,) * 3), plain((level,) * 3))
    assert (picture.mode, picture.size) == ("RGB", (W, H))
    assert picture.getcolors() == [(H * W, (level,) * 3)]


def test_anaglyph_shows_left_in_red_and_right_in_cyan():
    white, black = plain((255, 255, 255)), plain((0, 0, 0))
    of_left = StereoImageProcessor.anaglyph(white, black).getpixel((0, 0))
    of_right = StereoImageProcessor.anaglyph(black, white).getpixel((0, 0))
    assert of_left == (255, 0, 0)  # 1.13, -0.09, -0.04 of white, clipped
    assert of_right == (0, 255, 255)  # -0.13, 1.09, 1.04


def test_anaglyph_by_hand():
    """Dubois' matrices applied to one pixel by hand: left (200, 40, 10), right (30, 90, 160)."""
    found = StereoImageProcessor.anaglyph(plain((200, 40, 10)), plain((30, 90, 160))).getpixel((2, 1))
    red = 0.4561 * 200 + 0.500484 * 40 + 0.176381 * 10 - 0.0434706 * 30 - 0.0879388 * 90 - 0.00155529 * 160
    green = -0.0400822 * 200 - 0.0378246 * 40 - 0.0157589 * 10 + 0.378476 * 30 + 0.73364 * 90 - 0.0184503 * 160
    blue = -0.0152161 * 200 - 0.0205971 * 40 - 0.00546856 * 10 - 0.0721527 * 30 - 0.112961 * 90 + 1.2264 * 160
    assert found == (round(red), round(green), round(blue)) == (104, 65, 180)


def test_each_row_of_the_anaglyph_matrices_sums_to_one():
    sums = np.array(DUBOIS_LEFT).sum(1) + np.array(DUBOIS_RIGHT).sum(1)
    np.testing.assert_allclose(sums, 1.0, atol=2e-3)


@pytest.mark.parametrize("method", ["side_by_side", "anaglyph"])
def test_views_of_different_size_are_refused(method):
    with pytest.raises(ValueError, match=r"`right_view` must have the size of `left_view`, \(5, 3\); got \(4, 3\)"):
        getattr(StereoImageProcessor, method)(plain((1, 2, 3)), plain((1, 2, 3), (4, 3)))


def test_a_map_of_either_layout_is_painted_alike():
    value = np.linspace(0, 5, 2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    for layout in (value[:, None], value[..., None], torch.from_numpy(value)[:, None]):
        pictures = [np.asarray(picture) for picture in StereoImageProcessor.visualize_map(layout)]
        assert np.array_equal(pictures, [np.asarray(picture) for picture in StereoImageProcessor.visualize_map(value)])
    with pytest.raises(ValueError, match=r"`value` must be maps of shape .*; got \[2, 3, 4, 5\]"):
        StereoImageProcessor.visualize_map(np.zeros((2, 3, 4, 5)))


def test_pictures_of_a_turned_photograph_are_upright():
    photo = PIL.Image.new("RGB", (6, 4), (200, 10, 10))
    photo.putpixel((0, 0), (0, 0, 255))
    photo.getexif()[0x0112] = 6  # turn by 90 degrees clockwise
    upright = PIL.ImageOps.exif_transpose(photo)
    pair = StereoImageProcessor.side_by_side(photo, upright)
    assert pair.size == (8, 6) and pair.getpixel((3, 0)) == (0, 0, 255)
    assert StereoImageProcessor.anaglyph(photo, upright).size == (4, 6)


def test_confidence_is_grey():
    picture = StereoImageProcessor.visualize_confidence(np.array([[0.0, 0.2, 1.0]], np.float32))[0]
    assert picture.mode == "L" and np.asarray(picture).tolist() == [[0, 51, 255]]


def test_a_read_only_array_is_taken_without_a_warning(recwarn):
    array = np.asarray(PIL.Image.new("RGB", (5, 3), (10, 20, 30)))
    array.flags.writeable = False
    assert StereoImageProcessor.preprocess(array).shape == (1, 3, 3, 5)
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]
