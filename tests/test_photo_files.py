# SPDX-License-Identifier: Apache-2.0
"""Photographs without metadata: planted places, names and pictures are gone, and every pixel is as it was."""

import io
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
import pytest

from datasets_builder.photo_files import PhotoFile, strip_metadata
from pipeline_zerostereo import StereoImageProcessor

H, W = 23, 37
ORIENTATION = 274
GPS_NUMBERS = struct.pack("<6I", 48, 1, 51, 1, 2968013, 100003)  # degrees, minutes, seconds as EXIF stores them
SERIAL = b"BODY-0451-9922"
OWNER = b"Owner Of The Camera"
XMP_TEXT = b"Place=Kirchgasse 7"
COMMENT = b"a comment by hand"
CAPTION = b"a caption in IPTC"
MAKER = b"maker's own segment"
TRAILER = b"trailer of a phone"
RNG = np.random.default_rng(20)
THUMBNAIL_PIXELS = RNG.integers(0, 256, (6, 8, 3), np.uint8)
SECOND_PIXELS = RNG.integers(0, 256, (H, W, 3), np.uint8)


def picture(mode: str = "RGB") -> PIL.Image.Image:
    """A scene with slopes and noise, [H,W] of any 8-bit mode."""
    rows, columns = np.mgrid[:H, :W]
    slopes = np.stack([rows * 9, columns * 5, rows * 3 + columns * 2], axis=-1) % 256
    noisy = np.clip(slopes + np.random.default_rng(3).integers(-9, 10, slopes.shape), 0, 255)
    return PIL.Image.fromarray(noisy.astype(np.uint8)).convert(mode)


def encoded(image: PIL.Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def opened(data: bytes) -> PIL.Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's on damaged EXIF and MPO
        image = PIL.Image.open(io.BytesIO(data))
        image.load()
    return image


THUMBNAIL = encoded(PIL.Image.fromarray(THUMBNAIL_PIXELS), "JPEG")
SECOND = encoded(PIL.Image.fromarray(SECOND_PIXELS), "JPEG")
# Marks that no stripped file may hold. Of the small pictures a part of their coded pixels, not their common tables.
NEEDLES = (GPS_NUMBERS, SERIAL, OWNER, XMP_TEXT, COMMENT, CAPTION, MAKER, TRAILER, THUMBNAIL[-24:], SECOND[-40:])


def assert_stripped(data: bytes) -> None:
    assert [needle for needle in NEEDLES if needle in data] == []


def colour_profile(length: int | None = None) -> bytes:
    """A profile of sRGB, or one that is only a header and noise of the given length."""
    profile = bytearray(PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes())
    if length is None:
        return bytes(profile)
    noise = np.random.default_rng(8).integers(0, 256, length - 128, np.uint8).tobytes()
    return length.to_bytes(4, "big") + bytes(profile[4:128]) + noise


PROFILE = colour_profile()


def tiff_directory(start: int, entries: list[tuple[int, int, int, bytes]], following: int = 0) -> bytes:
    """One little-endian directory: (tag, type, count, content) each; long contents lie behind it."""
    behind = start + 2 + 12 * len(entries) + 4
    fields, contents = b"", b""
    for tag, kind, count, content in sorted(entries):
        value = content if len(content) <= 4 else struct.pack("<I", behind + len(contents))
        fields += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
        contents += content if len(content) > 4 else b""
    return struct.pack("<H", len(entries)) + fields + struct.pack("<I", following) + contents


def planted_exif(orientation: int | None = None) -> bytes:
    """EXIF as cameras write it: orientation, owner, serial number, GPS, and a thumbnail in a directory of its own."""
    exif = tiff_directory(2000, [(0xA431, 2, len(SERIAL) + 1, SERIAL + b"\0")])
    gps = tiff_directory(3000, [(1, 2, 2, b"N\0"), (2, 5, 3, GPS_NUMBERS)])
    second = tiff_directory(
        4000, [(0x201, 4, 1, struct.pack("<I", 4100)), (0x202, 4, 1, struct.pack("<I", len(THUMBNAIL)))]
    )
    entries = [
        (0x8769, 4, 1, struct.pack("<I", 2000)),
        (0x8825, 4, 1, struct.pack("<I", 3000)),
        (0xA430, 2, len(OWNER) + 1, OWNER + b"\0"),
    ]
    if orientation is not None:
        entries.append((ORIENTATION, 3, 1, struct.pack("<H", orientation)))
    block = b"II*\0\x08\0\0\0" + tiff_directory(8, entries, following=4000)
    for start, part in ((2000, exif), (3000, gps), (4000, second), (4100, THUMBNAIL)):
        block = block.ljust(start, b"\0") + part
    return block


def planted_xmp(orientation: int | None = None) -> bytes:
    turn = b"" if orientation is None else b' tiff:Orientation="%d"' % orientation
    return b"<x:xmpmeta><rdf:Description note='" + XMP_TEXT + b"'" + turn + b"/></x:xmpmeta>"


# --- files with plants: one function per format, from a clean file to one full of metadata ---


def jpeg_segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def planted_jpeg(clean: bytes, exif: bytes | None = None, xmp: bytes | None = None) -> bytes:
    """Put every kind of segment that cameras and programs write into a JPEG of Pillow, which begins with JFIF."""
    assert clean[:4] == b"\xff\xd8\xff\xe0" and clean[6:11] == b"JFIF\0"
    jfif = clean[6:18] + bytes([8, 6]) + THUMBNAIL_PIXELS.tobytes()
    planted = [
        jpeg_segment(0xE0, jfif),
        jpeg_segment(0xE0, b"JFXX\0\x10" + THUMBNAIL),
        jpeg_segment(0xE1, b"Exif\0\0" + (planted_exif() if exif is None else exif)),
        jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + (planted_xmp() if xmp is None else xmp)),
        jpeg_segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + XMP_TEXT),
        jpeg_segment(0xE2, b"FPXR\0" + MAKER),
        b"\xff\xff" + jpeg_segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x11" + CAPTION),
        jpeg_segment(0xEF, MAKER),
        jpeg_segment(0xFE, COMMENT),
    ]
    return b"\xff\xd8" + b"".join(planted) + clean[20:] + SECOND + TRAILER


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def planted_png(clean: bytes, exif: bytes | None = None, xmp: bytes | None = None) -> bytes:
    planted = [
        png_chunk(b"tEXt", b"Comment\0" + COMMENT),
        png_chunk(b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(b"\niptc\n1\n" + CAPTION.hex().encode())),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + (planted_xmp() if xmp is None else xmp)),
        png_chunk(b"tIME", bytes([7, 234, 5, 6, 7, 8, 9])),
        png_chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
        png_chunk(b"maKr", MAKER),
    ]
    late = [png_chunk(b"tEXt", b"Serial\0" + SERIAL)]
    late += [png_chunk(b"eXIf", planted_exif() if exif is None else exif)]
    return clean[:33] + b"".join(planted) + clean[33:-12] + b"".join(late) + clean[-12:] + SECOND + TRAILER


def webp_chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def planted_webp(extended: bytes, exif: bytes | None = None, xmp: bytes | None = None) -> bytes:
    """Put metadata chunks into a WebP of the extended format."""
    assert extended[12:16] == b"VP8X"
    flags = bytes([extended[20] | 0x0C])
    body = extended[8:20] + flags + extended[21:]
    body += webp_chunk(b"EXIF", planted_exif() if exif is None else exif)
    body += webp_chunk(b"XMP ", planted_xmp() if xmp is None else xmp) + webp_chunk(b"MAKR", MAKER)
    return b"RIFF" + struct.pack("<I", len(body)) + body + SECOND + TRAILER


def webp_kinds(data: bytes) -> list[bytes]:
    kinds, position = [], 12
    while position < len(data):
        kinds.append(data[position : position + 4])
        position += 8 + int.from_bytes(data[position + 4 : position + 8], "little") + 1 & ~1
    return kinds


def extended_webp(**options) -> bytes:
    """A lossy WebP of Pillow that has the extended format because of its profile."""
    return encoded(picture(), "WEBP", **{"icc_profile": PROFILE} | options)


PLANT = {"JPEG": planted_jpeg, "PNG": planted_png, "WEBP": planted_webp}
CLEAN: dict[str, Callable[..., bytes]] = {
    "JPEG": lambda **options: encoded(picture(), "JPEG", **options),
    "PNG": lambda **options: encoded(picture(), "PNG", **options),
    "WEBP": lambda **options: extended_webp(**options),
}


def assert_same_photo(before: bytes, after: PhotoFile) -> None:
    """The raw pixels, the upright pixels, the orientation and the colour profile are equal."""
    first, second = opened(before), opened(after.data)
    assert second.format == after.format
    assert np.array_equal(np.asarray(first), np.asarray(second))
    assert np.array_equal(np.asarray(first.convert("RGBA")), np.asarray(second.convert("RGBA")))
    assert first.getexif().get(ORIENTATION, 1) == second.getexif().get(ORIENTATION, 1)
    assert np.array_equal(
        np.asarray(PIL.ImageOps.exif_transpose(first)), np.asarray(PIL.ImageOps.exif_transpose(second))
    )
    assert first.info.get("icc_profile") == second.info.get("icc_profile")


# --- what is planted is there before and gone after ---


@pytest.mark.parametrize("format", PLANT)
def test_everything_planted_is_gone_and_the_photograph_is_the_same(format: str):
    data = PLANT[format](CLEAN[format](icc_profile=PROFILE), planted_exif(6))
    before = opened(data)
    assert before.getexif().get_ifd(0x8825)[2] == pytest.approx((48, 51, 2968013 / 100003))
    assert before.getexif().get_ifd(0x8769)[0xA431] == SERIAL.decode()
    assert THUMBNAIL in data and XMP_TEXT in data and TRAILER in data
    photo = strip_metadata(data)
    assert (photo.format, photo.repacked) == (format, False)
    assert_stripped(photo.data)
    assert_same_photo(data, photo)
    after = opened(photo.data)
    assert dict(after.getexif()) == {ORIENTATION: 6} and after.info["icc_profile"] == PROFILE
    assert not {"xmp", "XML:com.adobe.xmp", "comment", "Comment", "photoshop", "mp"} & after.info.keys()
    assert strip_metadata(photo.data) == photo


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_planted_file_becomes_the_clean_one_byte_for_byte(format: str):
    clean = CLEAN[format]()
    assert strip_metadata(PLANT[format](clean)).data == clean
    assert strip_metadata(clean).data == clean


def test_the_bytes_of_a_turned_jpeg():
    clean = CLEAN["JPEG"]()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x08\0\0\0\0\0\0\0"
    expected = clean[:20] + b"\xff\xe1" + bytes([0, 2 + len(exif)]) + exif + clean[20:]
    assert strip_metadata(planted_jpeg(clean, planted_exif(8))).data == expected


def test_the_chunks_of_a_stripped_webp():
    transparent = picture("RGBA")
    transparent.putalpha(picture("L"))
    photo = strip_metadata(planted_webp(encoded(transparent, "WEBP", icc_profile=PROFILE), planted_exif(3)))
    assert webp_kinds(photo.data) == [b"VP8X", b"ICCP", b"ALPH", b"VP8 ", b"EXIF"]
    assert photo.data[20] == 0x20 | 0x10 | 0x08
    photo = strip_metadata(planted_webp(encoded(picture(), "WEBP", exif=planted_exif(), lossless=True)))
    assert webp_kinds(photo.data) == [b"VP8X", b"VP8L"] and photo.data[20] == 0
    simple = encoded(picture(), "WEBP")
    assert webp_kinds(simple) == [b"VP8 "] and strip_metadata(simple + TRAILER) == PhotoFile(simple, "WEBP", False)


@pytest.mark.parametrize("format", PLANT)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_stays(format: str, orientation: int):
    data = PLANT[format](CLEAN[format](), planted_exif(orientation))
    photo = strip_metadata(data)
    assert_same_photo(data, photo)
    assert dict(opened(photo.data).getexif()) == ({} if orientation == 1 else {ORIENTATION: orientation})


@pytest.mark.parametrize("format", PLANT)
def test_an_orientation_in_xmp_becomes_the_tag(format: str):
    data = PLANT[format](CLEAN[format](), xmp=planted_xmp(7))
    photo = strip_metadata(data)
    assert_same_photo(data, photo)
    assert opened(photo.data).getexif()[ORIENTATION] == 7


@pytest.mark.parametrize("value", [0, 9, 274])
def test_an_orientation_that_says_nothing_is_left_out(value: int):
    clean = CLEAN["JPEG"]()
    assert strip_metadata(planted_jpeg(clean, planted_exif(value))).data == clean


def test_big_endian_exif_is_read():
    exif = PIL.Image.Exif()
    exif.endian = ">"
    exif[ORIENTATION] = 5
    block = exif.tobytes()[6:]
    assert block.startswith(b"MM")
    assert opened(strip_metadata(planted_jpeg(CLEAN["JPEG"](), block)).data).getexif()[ORIENTATION] == 5


# --- JPEG ---


def without_jfif(jpeg: bytes, adobe_transform: int | None) -> bytes:
    adobe = b"" if adobe_transform is None else jpeg_segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([adobe_transform]))
    return jpeg[:2] + adobe + jpeg[20:]


JPEGS = {
    "progressive": lambda: encoded(picture(), "JPEG", progressive=True),
    "grey": lambda: encoded(picture("L"), "JPEG"),
    "restarts": lambda: encoded(picture(), "JPEG", subsampling=0, restart_marker_blocks=1),
    "full chroma": lambda: encoded(picture(), "JPEG", subsampling=0, quality=97, optimize=True),
    "cmyk": lambda: encoded(picture("CMYK"), "JPEG"),
    "rgb": lambda: encoded(picture(), "JPEG", keep_rgb=True),
    "no jfif": lambda: without_jfif(encoded(picture(), "JPEG"), None),
    "adobe rgb": lambda: without_jfif(encoded(picture(), "JPEG"), 0),
    "adobe ycc": lambda: without_jfif(encoded(picture(), "JPEG"), 1),
    "adobe ycck": lambda: without_jfif(jpeg_with_jfif(encoded(picture("CMYK"), "JPEG")), 2),
}


def jpeg_with_jfif(jpeg: bytes) -> bytes:
    """Put JFIF, which is 18 bytes, in the place of Adobe's segment, which is 16."""
    assert jpeg[2:4] == b"\xff\xee"
    return jpeg[:2] + jpeg_segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0") + jpeg[18:]


@pytest.mark.parametrize("kind", JPEGS)
def test_every_kind_of_jpeg_decodes_to_the_same_pixels(kind: str):
    clean = JPEGS[kind]()
    comments = jpeg_segment(0xE1, b"Exif\0\0" + planted_exif(2)) + jpeg_segment(0xFE, COMMENT)
    data = clean[:2] + comments + clean[2:] + SECOND
    photo = strip_metadata(data)
    assert_stripped(photo.data)
    assert_same_photo(data, photo)


def test_the_segment_of_adobe_decides_the_colours():
    raw, converted = (opened(JPEGS[kind]()) for kind in ("adobe rgb", "adobe ycc"))
    assert np.abs(np.asarray(raw).astype(int) - np.asarray(converted)).mean() > 20  # so the test above could fail


def test_bytes_behind_the_meaning_of_kept_segments_go():
    clean = JPEGS["adobe rgb"]()
    longer = jpeg_segment(0xEE, clean[6:18] + MAKER)
    assert strip_metadata(clean[:2] + longer + clean[18:]).data == clean


def test_segments_too_short_to_have_a_meaning_go():
    clean = JPEGS["no jfif"]()
    short = jpeg_segment(0xE0, b"JFIF\0" + bytes(8)) + jpeg_segment(0xEE, b"Adobe" + bytes(6))
    data = clean[:2] + short + clean[2:]
    assert strip_metadata(data).data == clean
    assert_same_photo(data, strip_metadata(data))


def test_a_comment_between_scans_goes():
    data = encoded(picture(), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    planted = data[:scan] + jpeg_segment(0xFE, COMMENT) + jpeg_segment(0xEE, b"Adobe" + MAKER) + data[scan:]
    assert strip_metadata(planted).data == data


def test_further_pictures_of_a_stereo_camera_go():
    data = encoded(picture(), "MPO", save_all=True, append_images=[PIL.Image.fromarray(SECOND_PIXELS)])
    assert opened(data).n_frames == 2 and SECOND[-40:] in data
    photo = strip_metadata(data)
    assert photo.format == opened(photo.data).format == "JPEG"
    assert_stripped(photo.data)
    assert np.array_equal(np.asarray(opened(data)), np.asarray(opened(photo.data)))


# --- colour profiles ---


@pytest.mark.parametrize("format", PLANT)
@pytest.mark.parametrize("length", [128, 65519, 65520, 200_001])
def test_profiles_of_any_length_stay(format: str, length: int):
    profile = colour_profile(length)
    data = CLEAN[format](icc_profile=profile)
    photo = strip_metadata(data)
    assert opened(photo.data).info["icc_profile"] == profile
    assert_same_photo(data, photo)
    assert strip_metadata(photo.data) == photo


@pytest.mark.parametrize("format", PLANT)
def test_a_profile_ends_where_it_says(format: str):
    photo = strip_metadata(CLEAN[format](icc_profile=PROFILE + SERIAL))
    assert opened(photo.data).info["icc_profile"] == PROFILE
    assert_stripped(photo.data)


@pytest.mark.parametrize("format", PLANT)
@pytest.mark.parametrize("profile", [PROFILE[:-1], b"\0\0\0\x80" + bytes(124), b"\0\0\0\x7f" + PROFILE[4:]])
def test_a_damaged_profile_is_refused(format: str, profile: bytes):
    with pytest.raises(ValueError, match=rf"`data` must have a whole colour profile.*one of {len(profile)} bytes"):
        strip_metadata(CLEAN[format](icc_profile=profile))


def test_a_profile_with_a_missing_part_is_refused():
    data = CLEAN["JPEG"](icc_profile=colour_profile(200_001))
    start = data.index(b"ICC_PROFILE\0\x02") - 4
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    with pytest.raises(ValueError, match="whole colour profile or none; parts of it are missing or do not unpack"):
        strip_metadata(data[:start] + data[start + 2 + length :])


# --- PNG ---


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_png(mode: str):
    if mode == "I;16":
        image = PIL.Image.fromarray(np.arange(H * W, dtype=np.uint16).reshape(H, W) * 77)
    else:
        image = picture(mode)
    options = {"transparency": 7} if mode == "P" else {}
    clean = encoded(image, "PNG", **options)
    assert strip_metadata(planted_png(clean)).data == clean


def test_sixteen_bit_colour_of_a_png_stays():
    rows = np.random.default_rng(5).integers(0, 65536, (H, W, 3)).astype(">u2")
    scanlines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 16, 2, 0, 0, 0))
    coded = png_chunk(b"IDAT", zlib.compress(scanlines))
    clean = b"\x89PNG\r\n\x1a\n" + header + coded + png_chunk(b"IEND", b"")
    assert strip_metadata(planted_png(clean)).data == clean


def test_what_says_the_colours_of_a_png_stays():
    clean = CLEAN["PNG"]()
    meanings = [(b"gAMA", 4), (b"cHRM", 32), (b"sRGB", 1), (b"sBIT", 3), (b"cICP", 4)]
    chunks = b"".join(png_chunk(kind, bytes(range(1, length + 1))) for kind, length in meanings)
    background = png_chunk(b"bKGD", bytes(6))
    assert strip_metadata(clean[:33] + chunks + background + clean[33:]).data == clean[:33] + chunks + clean[33:]


def test_the_name_of_a_png_profile_goes():
    clean = CLEAN["PNG"]()
    named = png_chunk(b"iCCP", b"Profile of " + OWNER + b"\0\0" + zlib.compress(PROFILE) + MAKER)
    photo = strip_metadata(clean[:33] + named + clean[33:])
    assert_stripped(photo.data)
    assert opened(photo.data).info["icc_profile"] == PROFILE


def test_the_frames_of_an_animated_png_go():
    other = PIL.Image.fromarray(SECOND_PIXELS)
    data = encoded(picture(), "PNG", save_all=True, append_images=[other], duration=100)
    assert opened(data).n_frames == 2
    photo = strip_metadata(data)
    after = opened(photo.data)
    assert np.array_equal(np.asarray(after), np.asarray(picture())) and getattr(after, "n_frames", 1) == 1
    assert b"fdAT" not in photo.data and b"acTL" not in photo.data


# --- formats that are packed anew ---


def tiff_with_plants(image: PIL.Image.Image, **options) -> bytes:
    exif = PIL.Image.Exif()
    exif.load(b"Exif\0\0" + planted_exif(options.pop("orientation", 1)))
    exif[270], exif[700], exif[33723] = COMMENT.decode(), planted_xmp(), CAPTION
    return encoded(image, "TIFF", exif=exif, **options)


def grey16() -> PIL.Image.Image:
    return PIL.Image.fromarray((np.arange(H * W).reshape(H, W) * 76 + 3).astype(np.uint16))


def lab() -> PIL.Image.Image:
    return PIL.Image.frombytes("LAB", (W, H), np.asarray(picture()).tobytes())


OTHERS = {
    "tiff": ("PNG", lambda: tiff_with_plants(picture(), icc_profile=PROFILE)),
    "compressed tiff": (
        "PNG",
        lambda: encoded(picture(), "TIFF", compression="tiff_lzw", description=COMMENT.decode()),
    ),
    "turned tiff": ("PNG", lambda: tiff_with_plants(picture(), icc_profile=PROFILE, orientation=6)),
    "16-bit tiff": ("PNG", lambda: tiff_with_plants(grey16())),
    "big-endian 16-bit tiff": (
        "PNG",
        lambda: tiff_with_plants(PIL.Image.frombytes("I;16B", (W, H), np.asarray(grey16()).astype(">u2").tobytes())),
    ),
    "palette tiff": ("PNG", lambda: tiff_with_plants(picture("P"))),
    "cmyk tiff": ("TIFF", lambda: tiff_with_plants(picture("CMYK"), icc_profile=PROFILE)),
    "turned cmyk tiff": ("TIFF", lambda: tiff_with_plants(picture("CMYK"), orientation=5)),
    "lab tiff": ("TIFF", lambda: tiff_with_plants(lab())),
    "float tiff": (
        "TIFF",
        lambda: tiff_with_plants(PIL.Image.fromarray(np.linspace(0, 9, 12, dtype=np.float32)[None] / 7)),
    ),
    "bmp": ("PNG", lambda: encoded(picture(), "BMP") + TRAILER),
    "1-bit bmp": ("PNG", lambda: encoded(picture("1"), "BMP")),
    "gif": ("PNG", lambda: encoded(picture("P"), "GIF", comment=COMMENT, transparency=picture("P").getpixel((3, 2)))),
    "animated gif": (
        "PNG",
        lambda: encoded(picture("P"), "GIF", save_all=True, append_images=[PIL.Image.fromarray(SECOND_PIXELS)]),
    ),
    "jpeg 2000": ("PNG", lambda: encoded(picture(), "JPEG2000", comment=COMMENT)),
    "avif": (
        "PNG",
        lambda: encoded(picture(), "AVIF", exif=b"Exif\0\0" + planted_exif(6), xmp=planted_xmp(), icc_profile=PROFILE),
    ),
    "animated webp": (
        "PNG",
        lambda: encoded(
            picture(), "WEBP", save_all=True, append_images=[PIL.Image.fromarray(SECOND_PIXELS)], exif=planted_exif(4)
        ),
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_are_packed_anew_without_loss(kind: str):
    container, make = OTHERS[kind]
    data = make()
    photo = strip_metadata(data)
    assert (photo.format, photo.repacked) == (container, True)
    assert_stripped(photo.data)
    before, after = opened(data), opened(photo.data)
    assert np.array_equal(np.asarray(before), np.asarray(after))
    if before.mode == "P":
        assert np.array_equal(np.asarray(before.convert("RGBA")), np.asarray(after.convert("RGBA")))
    assert before.getexif().get(ORIENTATION, 1) == after.getexif().get(ORIENTATION, 1)
    assert before.info.get("icc_profile") == after.info.get("icc_profile")
    again = strip_metadata(photo.data)
    assert (again.data, again.format) == (photo.data, photo.format)


def test_plants_of_other_formats_were_there():
    for kind, needles in {
        "tiff": (GPS_NUMBERS, SERIAL, OWNER, XMP_TEXT, COMMENT, CAPTION),
        "gif": (COMMENT,),
        "avif": (GPS_NUMBERS, SERIAL, XMP_TEXT),
        "animated webp": (GPS_NUMBERS, SERIAL),
    }.items():
        data = OTHERS[kind][1]()
        assert [needle for needle in needles if needle not in data] == [], kind


def test_turned_tiff_is_upright():
    data = OTHERS["turned tiff"][1]()
    upright = PIL.ImageOps.exif_transpose(opened(strip_metadata(data).data))
    assert upright.size == (H, W) and np.array_equal(np.asarray(upright), np.rot90(np.asarray(picture()), -1))


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_is_packed_anew_as_the_pipeline_opens_it(require, tmp_path, orientation: int):
    pillow_heif = require("pillow_heif")
    exif = b"Exif\0\0" + planted_exif(orientation)
    path = tmp_path / "photo.heic"
    pillow_heif.from_pillow(picture()).save(path, exif=exif, xmp=planted_xmp(), quality=80)
    data = path.read_bytes()
    assert SERIAL in data and XMP_TEXT in data and GPS_NUMBERS in data
    photo = strip_metadata(data)
    assert (photo.format, photo.repacked) == ("PNG", True)
    assert_stripped(photo.data)
    expected = PIL.ImageOps.exif_transpose(StereoImageProcessor.open(path))
    assert expected.size == ((W, H) if orientation == 1 else (H, W))
    assert np.array_equal(np.asarray(PIL.ImageOps.exif_transpose(opened(photo.data))), np.asarray(expected))


def test_heic_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImportError, match=r"pip install pillow-heif\); got a HEIC file of 12 bytes"):
        strip_metadata(b"\0\0\0\x18ftypheic")


def test_the_transparent_colour_of_a_gif_stays():
    assert np.asarray(opened(strip_metadata(OTHERS["gif"][1]()).data).convert("RGBA"))[2, 3, 3] == 0


def open_once_as(image: PIL.Image.Image, monkeypatch) -> None:
    """Let Pillow open empty bytes as the given image: few files of such a mode can be written here."""
    pillow_open = PIL.Image.open

    def open_file(file: io.BytesIO, **options) -> PIL.Image.Image:
        return pillow_open(file, **options) if file.getvalue() else image

    monkeypatch.setattr(PIL.Image, "open", open_file)


def test_pixels_that_no_container_holds_are_refused(monkeypatch):
    open_once_as(picture("YCbCr"), monkeypatch)
    with pytest.raises(ValueError, match="pixels that a PNG or TIFF holds; it is of Pillow's mode 'YCbCr'"):
        strip_metadata(b"")


def test_a_turned_picture_that_only_a_tiff_holds_is_upright(monkeypatch):
    image = picture("CMYK")
    image.getexif()[ORIENTATION] = 6
    open_once_as(image, monkeypatch)
    photo = strip_metadata(b"")
    assert (photo.format, dict(opened(photo.data).getexif()).get(ORIENTATION, 1)) == ("TIFF", 1)
    assert np.array_equal(np.asarray(opened(photo.data)), np.rot90(np.asarray(picture("CMYK")), -1))


def test_a_palette_that_comes_back_otherwise_is_refused(monkeypatch):
    image = picture("P")
    save = PIL.Image.Image.save

    def save_inverted(self, *arguments, **options):
        inverted = self.copy()
        inverted.putpalette(bytes(255 - value for value in self.getpalette()))
        save(inverted, *arguments, **options)

    open_once_as(image, monkeypatch)
    monkeypatch.setattr(PIL.Image.Image, "save", save_inverted)
    with pytest.raises(ValueError, match="pixels that a PNG or TIFF holds; it is of Pillow's mode 'P'"):
        strip_metadata(b"")


# --- damaged files ---


def damaged_jpegs() -> Iterator[tuple[bytes, str]]:
    clean = CLEAN["JPEG"]()
    start, frame, scan = clean[:20], clean.index(b"\xff\xc0\0\x11"), clean.index(b"\xff\xda")
    open_end, rest = clean[:-2], clean[20:]
    comment = jpeg_segment(0xFE, COMMENT)
    yield open_end, "it ends without its end marker, so it is truncated"
    yield open_end + b"\xff", "it ends without its end marker, so it is truncated"
    yield clean[:scan], "it ends without its end marker, so it is truncated"
    yield clean[: scan + 9], r"segment 0xFFDA at byte \d+ states 12 bytes and has others"
    yield start + comment[:2] + b"\0\x09" + comment[4:] + rest, r"a marker must stand at byte 31, and 0x6E does"
    yield start + comment[:2] + b"\0\x14" + comment[4:] + rest, r"a marker must stand at byte \d+"
    yield start + b"\xff\xfe\0\x01" + rest, r"segment 0xFFFE at byte 20 states 1 bytes and has others"
    yield open_end + b"\xff\xfe\0\x50\xff\xd9", r"segment 0xFFFE at byte \d+ states 80 bytes and has others"
    yield start + b"\0" + rest, r"a marker must stand at byte 20, and 0x00 does"
    yield start + b"\xff\xd1" + rest, r"marker 0xFFD1 at byte 20 has no place between segments"
    yield start + jpeg_segment(0xF3, SERIAL) + rest, r"marker 0xFFF3 at byte 20 has no place between segments"
    yield open_end + SECOND, r"marker 0xFFD8 at byte \d+ has no place between segments"
    yield clean[: frame + 9] + b"\x04" + clean[frame + 10 :], r"segment 0xFFC0 at byte \d+ has another length"
    for marker, content in (
        (0xDB, b"\0" + bytes(64) + SERIAL),
        (0xDB, b"\x11" + bytes(127)),
        (0xC4, b"\0" + bytes([1] * 16 + [0] * 16) + SERIAL),
        (0xDD, b"\0\x07" + SERIAL),
        (0xCC, SERIAL + b"\0"),
        (0xDA, b"\x01\0\0\0\x3f\0" + SERIAL),
        (0xDA, b""),
        (0xC0, b""),
    ):
        message = rf"segment 0xFF{marker:02X} at byte 20 has another length than its content"
        yield start + jpeg_segment(marker, content) + rest, message
    yield clean[:frame] + b"\xff\xd9", "it has no frame or no scan before its end marker"
    yield start + clean[scan:], "it has no frame or no scan before its end marker"


def damaged_pngs() -> Iterator[tuple[bytes, str]]:
    clean = CLEAN["PNG"]()
    header, rest = clean[:33], clean[33:]
    text = png_chunk(b"tEXt", b"Serial\0" + SERIAL)
    yield clean[:40], r"8 bytes must follow byte 33, and 7 do, so it is truncated"
    yield clean[:60], r"\d+ bytes must follow byte 41, and 19 do, so it is truncated"
    yield clean[:-12], r"8 bytes must follow byte \d+, and 0 do, so it is truncated"
    yield clean[:-3], r"4 bytes must follow byte \d+, and 1 do, so it is truncated"
    yield header + text[:-1] + b"!" + rest, r"chunk 'tEXt' at byte 33 has another checksum than its content"
    yield header + b"\xff\xff\xff\xff" + text[4:] + rest, r"4294967295 bytes must follow byte 41"
    yield header + header[8:] + rest, r"chunk 'IHDR' at byte 33 stands where only IHDR may, or IHDR again"
    yield header[:8] + text + clean[8:], r"chunk 'tEXt' at byte 8 stands where only IHDR may, or IHDR again"
    yield header + png_chunk(b"gAMA", b"\0\0\xb1\x8f" + SERIAL) + rest, r"chunk 'gAMA' at byte 33 has 18 bytes, more"
    yield header + png_chunk(b"CgBI", SERIAL) + rest, r"chunk 'CgBI' at byte 33 is of an unknown kind"
    yield clean[:-12] + png_chunk(b"IEND", SERIAL), r"chunk 'IEND' at byte \d+ has 14 bytes, more than it can mean"
    yield header + png_chunk(b"IDAT", b"no stream") + clean[-12:], "Pillow reads; OSError: "


def webp(*chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + sum(map(len, chunks))) + b"WEBP" + b"".join(chunks)


def damaged_webps() -> Iterator[tuple[bytes, str]]:
    simple = encoded(picture(), "WEBP")
    coded = simple[12:]
    extended = webp_chunk(b"VP8X", bytes(4) + (W - 1).to_bytes(3, "little") + (H - 1).to_bytes(3, "little"))
    exif = webp_chunk(b"EXIF", planted_exif())
    assert strip_metadata(webp(extended, coded, exif)).data == webp(extended, coded)  # the base of these cases is good
    yield simple[:100], r"\d+ bytes must follow byte 0, and 100 do, so it is truncated"
    yield simple[:4] + struct.pack("<I", 40) + simple[8:], r"\d+ bytes must follow byte 20, and 28 do"
    yield webp(extended, coded, exif[:4] + struct.pack("<I", 1 << 30) + exif[8:]), r"1073741824 bytes must follow"
    yield webp(extended, coded, exif[:4] + struct.pack("<I", 12) + exif[8:]), r"a chunk must begin at byte \d+, and b"
    yield webp(extended, coded, b"EXIF"), r"8 bytes must follow byte \d+, and 4 do"
    yield webp(extended, coded, coded), r"it must have one picture, and has chunks \['VP8 ', 'VP8 '\]"
    yield webp(extended, exif), r"it must have one picture, and has chunks \[\]"
    yield webp(webp_chunk(b"VP8X", bytes(10) + SERIAL), coded), "chunk VP8X must have 10 bytes, and has 24"
    yield webp(coded[:8] + bytes(len(coded) - 8)), "no format that Pillow reads|Pillow reads; "


DAMAGED = {
    f"{format} {number}": case
    for format, cases in (("JPEG", damaged_jpegs()), ("PNG", damaged_pngs()), ("WebP", damaged_webps()))
    for number, case in enumerate(cases)
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused(name: str):
    data, message = DAMAGED[name]
    with pytest.raises(ValueError, match=f"^`data` must be .*({message})"):
        strip_metadata(data)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])  # of a JPEG, Pillow takes it for absent
def test_exif_that_is_none_is_refused_as_the_pipeline_refuses_it(format: str):
    data = PLANT[format](CLEAN[format](), b"neither II nor MM stands here")
    with pytest.raises(Exception, match="not a TIFF file"):
        StereoImageProcessor.load(PIL.Image.open(io.BytesIO(data)))
    with pytest.raises(ValueError, match="Pillow reads; SyntaxError: not a TIFF file"):
        strip_metadata(data)


@pytest.mark.parametrize("data", [b"", b"This is a text.\n", bytes(500)])
def test_what_is_no_photograph_is_refused(data: bytes):
    with pytest.raises(ValueError, match="it is of no format that Pillow reads") as caught:
        strip_metadata(data)
    assert "0x" not in str(caught.value)  # no address in memory: messages are equal in every run


def test_a_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", H * W // 2 - 1)
    with pytest.raises(ValueError, match="DecompressionBombError: Image size"):
        strip_metadata(CLEAN["JPEG"]())


def test_lack_of_memory_is_not_the_photographs_fault(monkeypatch):
    def fail(file, **options):
        raise MemoryError

    monkeypatch.setattr(PIL.Image, "open", fail)
    with pytest.raises(MemoryError):
        strip_metadata(CLEAN["JPEG"]())


# --- fuzz: short of a refusal, nothing planted comes through and the pixels are those of the damaged file ---


def decoded(data: bytes) -> np.ndarray | None:
    """The pixels, or None where Pillow refuses to decode."""
    try:
        return np.asarray(opened(data))
    except Exception:
        return None


def check_survivor(data: bytes) -> bool:
    """Strip a damaged file and tell whether it was taken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            photo = strip_metadata(data)
        except ValueError:
            return False
    assert_stripped(photo.data)
    assert strip_metadata(photo.data) == photo
    before = decoded(data)
    if before is not None:
        assert np.array_equal(before, np.asarray(opened(photo.data)))
    return True


@pytest.mark.parametrize("format", PLANT)
def test_truncations(format: str):
    data = PLANT[format](CLEAN[format](icc_profile=PROFILE), planted_exif(6))
    whole = len(data) - len(SECOND + TRAILER)
    lengths = np.random.default_rng(17).integers(0, whole, 300)
    assert not any(check_survivor(data[:length]) for length in lengths.tolist())
    assert all(check_survivor(data[:length]) for length in (whole, whole + 1, len(data) - 1))


@pytest.mark.parametrize("format", PLANT)
def test_flipped_bytes(format: str):
    data = PLANT[format](CLEAN[format](icc_profile=PROFILE), planted_exif(6))
    generator = np.random.default_rng(18)
    survivors = 0
    for _ in range(500):
        broken = bytearray(data)
        for place in generator.integers(0, len(data), generator.integers(1, 4)).tolist():
            broken[place] ^= int(generator.integers(1, 256))
        survivors += check_survivor(bytes(broken))
    assert 0 < survivors < 500


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_flipped_bytes_of_the_structure(format: str):
    """Every bit of the bytes that say where segments begin and end; a PNG's are covered by checksums."""
    data = PLANT[format](CLEAN[format](icc_profile=PROFILE), planted_exif(6))
    marks = [b"\xff\xe0", b"\xff\xe1", b"\xff\xe2", b"\xff\xdb", b"\xff\xc4", b"\xff\xc0", b"\xff\xda", b"\xff\xd9"]
    marks += [b"RIFF", b"VP8X", b"VP8 ", b"ICCP", b"EXIF", b"XMP "]
    places = {place for mark in marks for place in range(data.find(mark), data.find(mark) + 8) if mark in data}
    for place in sorted(places):
        for bit in range(8):
            broken = bytearray(data)
            broken[place] ^= 1 << bit
            check_survivor(bytes(broken))
