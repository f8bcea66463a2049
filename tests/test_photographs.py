# SPDX-License-Identifier: Apache-2.0
"""Every photograph: modes, depths, transparency, frames, colour profiles and files that Pillow does not read alone."""

import importlib
import io
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import torch

from pipeline_zerostereo import Photographs, StereoImageProcessor
from tests.tiny_components import embedded_pipeline, make_photos, seeded

H, W = 3, 5
load = StereoImageProcessor.load


def pixels_of(image: PIL.Image.Image) -> list:
    """[H][W][3] in 0..255."""
    return (load(image).pixels[0] * 255).round().to(torch.uint8).permute(1, 2, 0).tolist()


def spoiled_profile(profile: bytes, *tags: bytes, content: bytes | None) -> bytes:
    """Overwrite the numbers of some tags, or give the tags other names, so that they are missing."""
    data = bytearray(profile)
    for number in range(int.from_bytes(data[128:132], "big")):
        entry = 132 + 12 * number
        if bytes(data[entry : entry + 4]) in tags:
            offset = int.from_bytes(data[entry + 4 : entry + 8], "big")
            if content is None:
                data[entry : entry + 4] = b"none"
            else:
                data[offset + 8 : offset + 8 + len(content)] = content
    return bytes(data)


def linear_profile() -> bytes:
    """An RGB profile whose values are light itself: sRGB with the tone curve of gamma 1, so that numbers differ."""
    profile = bytearray(PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    for number in range(count):
        entry = 132 + 12 * number
        name, offset = bytes(profile[entry : entry + 4]), int.from_bytes(profile[entry + 4 : entry + 8], "big")
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            profile[offset : offset + 12] = b"para" + bytes(8)  # parametric curve of type 0: y = x ** gamma
            profile[offset + 12 : offset + 16] = (1 << 16).to_bytes(4, "big")  # gamma = 1.0
    return bytes(profile)


def linear(value: float) -> float:
    """IEC 61966-2-1: the light of an sRGB value."""
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


@pytest.fixture(scope="module")
def profile() -> bytes:
    return linear_profile()


def with_profile(image: PIL.Image.Image, profile: bytes) -> PIL.Image.Image:
    image.info["icc_profile"] = profile
    return image


# --- modes ---


def test_sixteen_bits_of_grey_are_all_used():
    codes = np.array([[0, 1, 256, 40000, 65535]] * H, dtype=np.uint16)
    expected = torch.tensor([0, 1, 256, 40000, 65535], dtype=torch.float64) / 65535
    for image in (PIL.Image.fromarray(codes), np.repeat(codes[..., None], 3, axis=2)):
        pixels = load(image).pixels
        assert pixels.shape == (1, 3, H, W) and pixels.dtype == torch.float32
        torch.testing.assert_close(pixels[0, 1, 2].double(), expected, rtol=0, atol=1e-7)
    file = io.BytesIO()
    PIL.Image.fromarray(codes).save(file, "PNG")
    assert torch.equal(load(PIL.Image.open(file)).pixels, load(PIL.Image.fromarray(codes)).pixels)


def test_sixteen_bit_arrays_of_either_byte_order():
    codes = np.arange(H * W * 3, dtype=np.uint16).reshape(H, W, 3) * 1000
    assert torch.equal(load(codes.astype(">u2")).pixels, load(codes).pixels)


def test_big_endian_sixteen_bit_tiff():
    codes = np.array([[7, 1000, 65535]] * 2, dtype=np.uint16)
    image = PIL.Image.frombytes("I;16B", (3, 2), codes.astype(">u2").tobytes())
    torch.testing.assert_close(load(image).pixels[0, 0, 0], torch.tensor([7, 1000, 65535]) / 65535)


def test_lab_and_hsv_become_rgb():
    grey = PIL.Image.new("LAB", (W, H), (128, 128, 128))  # a grey of half the lightness, whatever the white point
    red, green, blue = pixels_of(grey)[1][2]
    assert max(red, green, blue) - min(red, green, blue) <= 2 and red == pytest.approx(119, abs=2)
    assert pixels_of(PIL.Image.new("HSV", (W, H), (0, 255, 200)))[0][0] == [200, 0, 0]


# --- transparency ---


def test_opaque_alpha_is_dropped_in_silence(caplog):
    image = PIL.Image.new("RGBA", (W, H), (10, 20, 30, 255))
    assert pixels_of(image)[2][4] == [10, 20, 30]
    assert pixels_of(PIL.Image.new("LA", (W, H), (70, 255)))[0][0] == [70, 70, 70]
    assert not caplog.records


def test_transparency_is_composited_on_white_and_said(caplog):
    image = PIL.Image.new("RGBA", (W, H), (10, 20, 30, 255))
    image.putpixel((1, 2), (0, 200, 100, 51))  # a fifth of the colour, four fifths of white
    pixels = pixels_of(image)
    assert pixels[2][1] == [204, 244, 224] and pixels[2][2] == [10, 20, 30]
    assert [record.getMessage() for record in caplog.records] == [
        "`image` is transparent in places; it is composited on white."
    ]


def test_transparent_colour_of_a_palette_and_of_rgb(caplog):
    palette = PIL.Image.fromarray(np.array([[0, 1, 2, 1, 0]] * H, dtype=np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 0, 7, 8, 9])
    palette.info["transparency"] = 1
    assert pixels_of(palette)[0] == [[10, 20, 30], [255, 255, 255], [7, 8, 9], [255, 255, 255], [10, 20, 30]]
    keyed = PIL.Image.new("RGB", (W, H), (1, 2, 3))
    keyed.putpixel((0, 0), (9, 9, 9))
    keyed.info["transparency"] = (9, 9, 9)
    assert pixels_of(keyed)[0][:2] == [[255, 255, 255], [1, 2, 3]]
    assert len(caplog.records) == 2


# --- frames ---


def animation() -> PIL.Image.Image:
    file = io.BytesIO()
    frames = [PIL.Image.new("RGB", (W, H), color) for color in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    return PIL.Image.open(file)


def test_first_frame_of_an_animation_is_used_and_said(caplog):
    image = animation()
    assert pixels_of(image)[0][0] == [250, 0, 0]
    assert [record.getMessage() for record in caplog.records] == [
        "`image` has 3 frames; frame 1 is used and the others are not."
    ]


def test_another_frame_is_a_choice_and_stays_chosen(caplog):
    image = animation()
    image.seek(2)
    assert pixels_of(image)[0][0] == [0, 0, 250] and image.tell() == 2
    assert "frame 3 is used" in caplog.text


# --- colour profiles ---


def test_profile_of_an_rgb_photograph_is_kept_and_applied_for_the_networks(profile):
    image = with_profile(PIL.Image.new("RGB", (W, H), (55, 127, 200)), profile)
    photographs = load(image)
    assert photographs.icc_profiles == [profile]
    assert (photographs.pixels[0, :, 0, 0] * 255).round().tolist() == [55, 127, 200]
    srgb = StereoImageProcessor.preprocess(image)[0, :, 1, 3]
    for found, given in zip(srgb.tolist(), (55, 127, 200), strict=True):
        assert linear(found) == pytest.approx(given / 255, abs=1.2 / 255)
    assert srgb[0] > 100 / 255  # so the profile made a difference
    back = StereoImageProcessor.from_srgb(srgb.view(1, 3, 1, 1), [profile]) * 255
    assert back.flatten().tolist() == pytest.approx([55, 127, 200], abs=1)


def test_each_photograph_of_a_batch_has_its_own_profile(profile):
    plain = PIL.Image.new("RGB", (W, H), (55, 127, 200))
    photographs = load([plain, with_profile(plain.copy(), profile)])
    assert photographs.icc_profiles == [None, profile]
    srgb = StereoImageProcessor.to_srgb(*photographs)
    assert torch.equal(srgb[0], photographs.pixels[0]) and (srgb[1] > photographs.pixels[1]).all()


def test_pictures_without_profile_are_not_touched_or_copied():
    photos = make_photos(2, H, W)
    assert StereoImageProcessor.to_srgb(photos, [None, None]) is photos
    assert load(photos).pixels is photos
    loaded = load(photos)
    assert load(loaded) is loaded


def test_number_of_profiles_is_checked():
    with pytest.raises(ValueError, match="`icc_profiles` must hold one per picture, 2; got 1"):
        StereoImageProcessor.to_srgb(make_photos(2, H, W), [None])


def test_profile_that_cannot_be_used_is_said(caplog, profile):
    broken = with_profile(PIL.Image.new("RGB", (W, H), (55, 127, 200)), b"no profile at all")
    grey = with_profile(PIL.Image.new("L", (W, H), 55), profile)
    for image, words in ((broken, "cannot be read"), (grey, "is for RGB, not for mode 'L'")):
        caplog.clear()
        photographs = load(image)
        assert photographs.icc_profiles == [None]
        assert (photographs.pixels[0, 0, 0, 0] * 255).round() == 55
        assert f"`image` has a colour profile that {words}; the photograph is taken for sRGB." in caplog.text


def test_profile_without_its_curves_cannot_be_read(caplog, profile):
    """Its header says RGB; that it leads nowhere is found before any network runs."""
    photo = with_profile(PIL.Image.new("RGB", (W, H), (55, 127, 200)), spoiled_profile(profile, b"rTRC", content=None))
    assert load(photo).icc_profiles == [None]
    assert "`image` has a colour profile that cannot be read; the photograph is taken for sRGB." in caplog.text


def test_profile_that_does_not_lead_back_is_applied_at_once(caplog, profile):
    """All colours of this one are the same grey axis, so there is no way from sRGB to it."""
    white = b"".join(int(65536 * value / 3).to_bytes(4, "big") for value in (0.9642, 1.0, 0.8249))
    one_way = spoiled_profile(profile, b"rXYZ", b"gXYZ", b"bXYZ", content=white)
    photographs = load(with_profile(PIL.Image.new("RGB", (W, H), (90, 90, 90)), one_way))
    assert photographs.icc_profiles == [None] and not caplog.records
    assert linear(photographs.pixels[0, 1, 0, 0].item()) == pytest.approx(90 / 255, abs=3 / 255)


def test_colours_of_a_grey_profile_are_converted_at_once(profile):
    """A grey profile cannot describe the new view, so the photograph becomes sRGB."""
    data = bytearray(profile)
    data[16:20] = b"GRAY"
    count = int.from_bytes(data[128:132], "big")
    for number in range(count):
        if data[132 + 12 * number : 136 + 12 * number] == b"rTRC":
            data[132 + 12 * number : 136 + 12 * number] = b"kTRC"
    image = with_profile(PIL.Image.new("L", (W, H), 127), bytes(data))
    photographs = load(image)
    assert photographs.icc_profiles == [None]
    assert linear(photographs.pixels[0, 0, 0, 0].item()) == pytest.approx(127 / 255, abs=2 / 255)


def test_new_view_carries_the_profile_and_known_pixels_stay(profile):
    pipe = embedded_pipeline()
    (plain,) = pipe.image_processor.postprocess(make_photos(1, 45, 70), "pil")
    photo = with_profile(plain.copy(), profile)
    nothing = pipe(photo, disparity=np.zeros((45, 70)))
    assert nothing.images[0].tobytes() == photo.tobytes()
    output = pipe(photo, disparity_scale=0.15, generator=seeded(1))
    for pictures in (output.images, output.warped_images, output.input_images):
        assert pictures[0].info["icc_profile"] == profile
    assert output.input_images[0].tobytes() == photo.tobytes()
    known = ~output.hole_mask[0]
    assert np.array_equal(np.asarray(output.images[0])[known], np.asarray(output.warped_images[0])[known])
    # The networks saw sRGB: the same light in sRGB numbers gives the same depth and the same filled holes.
    same_light = PIL.Image.fromarray(
        (StereoImageProcessor.preprocess(photo)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    )
    other = pipe(same_light, disparity_scale=0.15, generator=seeded(1))
    np.testing.assert_array_equal(output.disparity, other.disparity)
    assert "icc_profile" not in plain.info and photo.info["icc_profile"] == profile
    filled = StereoImageProcessor.preprocess(output.images[0])[0].permute(1, 2, 0).numpy()[~known]
    expected = StereoImageProcessor.preprocess(other.images[0])[0].permute(1, 2, 0).numpy()[~known]
    assert filled.size and np.abs(filled - expected).mean() < 0.02


def test_saved_new_view_keeps_the_profile(tmp_path, profile):
    pipe = embedded_pipeline()
    (photo,) = pipe.image_processor.postprocess(make_photos(1, 12, 20), "pil", [profile])
    view = pipe(photo, fill="background", generator=seeded(0)).images[0]
    for suffix, arguments in (("png", {}), ("tif", {}), ("jpg", {"icc_profile": view.info.get("icc_profile")})):
        view.save(tmp_path / f"view.{suffix}", **arguments)
        assert PIL.Image.open(tmp_path / f"view.{suffix}").info["icc_profile"] == profile, suffix


def test_public_steps_take_profiles(profile):
    """`estimate_inverse_depth` sees sRGB; `inpaint` fills in the picture's own colours."""
    pipe = embedded_pipeline()
    photos = make_photos(1, 45, 70)
    (photo,) = pipe.image_processor.postprocess(photos, "pil", [profile])
    from_picture, _ = pipe.estimate_inverse_depth(photo)
    from_srgb, _ = pipe.estimate_inverse_depth(pipe.image_processor.preprocess(photo))
    assert torch.equal(from_picture, from_srgb)
    hole = torch.zeros(1, 1, 45, 70, dtype=torch.bool)
    hole[..., 30:40] = True
    disparity = torch.ones(1, 1, 45, 70)
    own = pipe.inpaint(photo, hole, disparity, generator=seeded(2))
    in_srgb = pipe.inpaint(
        Photographs(pipe.image_processor.preprocess(photo), [None]), hole, disparity, generator=seeded(2)
    )
    converted = StereoImageProcessor.to_srgb(own, [profile])
    holes = hole.expand(-1, 3, -1, -1)
    assert (converted[holes] - in_srgb[holes]).abs().mean() < 0.02
    assert (own[holes] - in_srgb[holes]).abs().mean() > 0.05  # so the conversion back took place


# --- files ---


@pytest.fixture
def heic(tmp_path: Path, require, monkeypatch) -> Path:
    pillow_heif = require("pillow_heif")
    # Other libraries, imageio among them, register pillow-heif in Pillow when they are imported.
    PIL.Image.preinit()
    monkeypatch.setattr(PIL.Image, "ID", [name for name in PIL.Image.ID if name not in ("HEIF", "AVIF")])
    monkeypatch.setattr(PIL.Image, "OPEN", {name: PIL.Image.OPEN[name] for name in PIL.Image.ID})
    path = tmp_path / "photo.heic"
    picture = PIL.Image.new("RGB", (64, 32), (200, 10, 20))
    picture.paste((20, 10, 200), (32, 0, 64, 32))
    pillow_heif.from_pillow(picture).save(path, quality=100)
    return path


def test_heic_is_opened_through_pillow_heif(heic):
    image = StereoImageProcessor.open(heic)
    assert image.size == (64, 32)
    pixels = pixels_of(image)
    assert pixels[16][5] == pytest.approx([200, 10, 20], abs=12) and pixels[16][60] == pytest.approx(
        [20, 10, 200], abs=12
    )
    assert not any("HEIF" in name for name in PIL.Image.OPEN), "nothing was registered in Pillow"


def test_heic_without_pillow_heif_names_it(heic, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # import fails
    with pytest.raises(
        ImportError, match=r"pillow-heif must be installed \(pip install pillow-heif\); got the HEIC .*photo"
    ):
        StereoImageProcessor.open(heic)
    importlib.invalidate_caches()


def test_other_files_are_opened_or_refused_by_pillow(tmp_path):
    PIL.Image.new("RGB", (W, H), (1, 2, 3)).save(tmp_path / "photo.png")
    assert StereoImageProcessor.open(tmp_path / "photo.png").size == (W, H)
    (tmp_path / "text.heic").write_bytes(b"no picture, though it is named like one")
    with pytest.raises(PIL.UnidentifiedImageError, match=r"text\.heic"):
        StereoImageProcessor.open(tmp_path / "text.heic")
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        StereoImageProcessor.open(tmp_path / "missing.png")
