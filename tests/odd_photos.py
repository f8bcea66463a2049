# SPDX-License-Identifier: Apache-2.0
"""Photographs of every kind that a folder may hold, good and bad, small, made by the tests themselves."""

import io
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import pillow_heif

WIDTH, HEIGHT = 96, 72
PLANTED = b"PLANTED-SERIAL-4711"  # stands in metadata, must not be published
GPS_TAG, ORIENTATION_TAG, SERIAL_TAG, DESCRIPTION_TAG = 0x8825, 0x0112, 0xA431, 0x010E


def pixels(number: int = 0, width: int = WIDTH, height: int = HEIGHT, channels: int = 3) -> np.ndarray:
    """A scene with depth cues, [H,W,C] uint8: ground that brightens towards the viewer, and a block upon it."""
    generator = np.random.default_rng(number)
    rows = np.linspace(40, 200, height)[:, None, None]
    scene = np.broadcast_to(rows, (height, width, 3)) + generator.integers(0, 30, (height, width, 3))
    top, left = height // 3 + number % 5, width // 4 + 3 * (number % 7)
    scene[top : top + height // 3, left : left + width // 4] = generator.integers(60, 255, 3)
    return scene[..., :channels].clip(0, 255).astype(np.uint8)


def picture(number: int = 0, **size: int) -> PIL.Image.Image:
    """The scene as an RGB picture."""
    return PIL.Image.fromarray(pixels(number, **size))


def encoded(image: PIL.Image.Image, format: str, **options) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def planted_exif(orientation: int = 1) -> PIL.Image.Exif:
    """EXIF with a place, a serial number and an orientation."""
    exif = PIL.Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    exif[DESCRIPTION_TAG] = PLANTED.decode()
    exif.get_ifd(0x8769)[SERIAL_TAG] = PLANTED.decode()
    exif.get_ifd(GPS_TAG).update({1: "N", 2: (48.0, 8.0, 14.7), 3: "E", 4: (11.0, 34.0, 31.8), 29: PLANTED.decode()})
    return exif


def heic(image: PIL.Image.Image) -> bytes:
    """The bytes of a HEIC file with a serial number in its EXIF."""
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=90, exif=planted_exif().tobytes())
    return file.getvalue()


def bomb(width: int = 20_000, height: int = 10_000) -> bytes:
    """A PNG of 200 megapixels in a few kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)

    head = width.to_bytes(4) + height.to_bytes(4) + bytes([1, 0, 0, 0, 0])  # 1 bit, grey
    data = zlib.compress(bytes(height * (1 + width // 8)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def usable_photos() -> dict[str, bytes]:
    """File name -> bytes of photographs that get a pair. All have different pixels."""
    srgb = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    opaque = np.dstack([pixels(5), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    return {
        "plain.jpg": encoded(picture(0), "JPEG", quality=90, exif=planted_exif()),
        "deep/nested/turned.jpeg": encoded(picture(1, width=HEIGHT, height=WIDTH), "JPEG", exif=planted_exif(6)),
        "grey.jpg": encoded(picture(2).convert("L"), "JPEG", quality=90),
        "palette.png": encoded(picture(3).quantize(64), "PNG"),
        "bilevel.png": encoded(picture(4).convert("1"), "PNG"),
        "opaque_alpha.png": encoded(PIL.Image.fromarray(opaque), "PNG", exif=planted_exif()),
        "profile.png": encoded(picture(6), "PNG", icc_profile=srgb),
        "picture.webp": encoded(picture(7), "WEBP", lossless=True, exif=planted_exif()),
        "picture.bmp": encoded(picture(8), "BMP"),
        "picture.tif": encoded(picture(9), "TIFF", compression="tiff_lzw"),
        "still.gif": encoded(picture(10).quantize(32), "GIF"),
        "wrong_suffix.jpg": encoded(picture(11), "PNG"),
        "picture.avif": encoded(picture(13), "AVIF", exif=planted_exif()),
        "phone.heic": heic(picture(14)),
        "print.jpg": encoded(picture(12).convert("CMYK"), "JPEG", quality=90),  # no profile: one conversion is known
    }


def unusable_photos() -> dict[str, tuple[bytes, str]]:
    """File name -> (bytes, kind of rejection)."""
    whole = encoded(picture(20), "JPEG", quality=95)
    half_seen = np.dstack([pixels(21), np.tile(np.arange(WIDTH, dtype=np.uint8), (HEIGHT, 1))])
    frames = [picture(number).quantize(16) for number in (22, 23)]
    press = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("LAB")).tobytes()
    deep = PIL.Image.fromarray(pixels(24, channels=1)[..., 0].astype(np.uint16) * 257)
    return {
        "truncated.jpg": (whole[: len(whole) // 2], "unreadable"),
        "corrupt.png": (encoded(picture(25), "PNG")[:200] + bytes(300), "unreadable"),
        "empty.jpg": (b"", "unreadable"),
        "text.jpg": (b"I am not a photograph.\n", "unreadable"),
        "animated.gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "animated"),
        "pages.tif": (encoded(picture(26), "TIFF", save_all=True, append_images=[picture(27)]), "animated"),
        "lab.tif": (encoded(picture(28).convert("LAB"), "TIFF", icc_profile=press), "colors"),
        "sixteen_bits.png": (encoded(deep, "PNG"), "colors"),
        "half_transparent.png": (encoded(PIL.Image.fromarray(half_seen), "PNG"), "colors"),
        "thin.png": (encoded(picture(29, width=1, height=80), "PNG"), "too_small"),
        "bomb.png": (bomb(), "too_large"),
        "large.png": (encoded(PIL.Image.new("1", (8000, 7000)), "PNG"), "too_large"),
    }


def write_photos(folder: Path, photos: dict[str, bytes]) -> Path:
    """Write files into a folder and return it."""
    for name, data in photos.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def plain_photos(count: int, sizes: tuple[tuple[int, int], ...] = ((96, 72), (72, 96))) -> dict[str, bytes]:
    """So many JPEG photographs, sizes (width, height) by turns."""
    made = {}
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        made[f"{number:03d}.jpg"] = encoded(picture(100 + number, width=width, height=height), "JPEG", quality=90)
    return made
