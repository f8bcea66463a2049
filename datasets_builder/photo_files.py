# SPDX-License-Identifier: Apache-2.0
"""The bytes of a photograph without what its camera and its owner wrote beside the picture.

Photographs carry places, serial numbers, names and small pictures of what was later cropped away. `strip_metadata`
keeps the coded picture bit for bit and leaves all of that out. It reads no file, writes none and asks no network.

What is kept is a closed list per format, so that a segment nobody has heard of goes too:

    JPEG  frame, scans, tables and restart interval; JFIF without its thumbnail, and Adobe's segment (these two decide
          which colours the numbers are); everything behind the end of the first picture goes (further pictures of
          stereo cameras, gain maps, films, makers' trailers)
    PNG   IHDR, PLTE, IDAT, IEND, tRNS, and what says which colours the numbers are: gAMA, cHRM, sRGB, sBIT, cICP.
          bKGD (a background to compose on) and pHYs (paper size) go: neither changes the picture's own pixels
    WebP  VP8X with true flags, ALPH, VP8 and VP8L

Orientation and colour profile are those that Pillow reads, because it is Pillow that will decode the result: the EXIF
tag, or else the XMP property. They are written anew, as an EXIF block of that one tag and as one plain profile.

It does not look into the coded picture: text painted in it, a watermark, or bytes hidden behind its last pixel but
inside its data stay. Nor does it read into the colour profile, which may name its maker.

Sources: ITU-T T.81 annex B and T.871 (JPEG, JFIF), ICC.1 annex B (profiles in JPEG), PNG third edition section 11,
RFC 9649 (WebP), TIFF 6.0 section 2 and EXIF 2.32 section 4.6 (the orientation).
"""

import importlib
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps

from pipeline_zerostereo import HEIC_BRANDS

ORIENTATION_TAG = 274  # EXIF
TURNED = range(2, 9)  # the orientations that change how a picture is shown; 1 says as stored, others say nothing

JPEG_SIGNATURE = b"\xff\xd8\xff"
JPEG_DHT, JPEG_DAC, JPEG_EOI, JPEG_SOS, JPEG_DQT, JPEG_DNL, JPEG_DRI = 0xC4, 0xCC, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD
JPEG_APP0, JPEG_APP1, JPEG_APP2, JPEG_APP14, JPEG_COM = 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
JPEG_DESCRIPTIONS = frozenset(range(JPEG_APP0, JPEG_APP0 + 16)) | {JPEG_COM}
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {JPEG_DHT, JPEG_DAC, 0xC8}  # SOF0 ... SOF15; 0xC8 is reserved
JPEG_CODED = JPEG_FRAMES | {JPEG_SOS, JPEG_DQT, JPEG_DHT, JPEG_DAC, JPEG_DNL, JPEG_DRI}
JPEG_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # a marker that is neither a stuffed 0xFF nor a restart
# Decoders take no notice of shorter ones.
JFIF_LENGTH = 12  # bytes of a JFIF segment before the size of its thumbnail, which is two more
ADOBE_LENGTH = 12  # bytes of Adobe's segment; the last decides the colour transform
PROFILE_PART = 65533 - 14  # bytes of a colour profile in one JPEG segment, behind its name and numbers

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_LONGEST = {
    b"IEND": 0,
    b"IHDR": 13,
    b"PLTE": 768,
    b"tRNS": 256,
    b"gAMA": 4,
    b"cHRM": 32,
    b"sRGB": 1,
    b"sBIT": 4,
    b"cICP": 4,
}
PNG_KEPT = PNG_LONGEST.keys() | {b"IDAT"}
PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"}  # modes of Pillow whose every bit a PNG holds

# EPS and WMF are programs that another program would run; the others are containers that Pillow recognises, not reads.
NOT_PHOTOGRAPHS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}

WEBP_HAS_PROFILE, WEBP_HAS_ALPHA, WEBP_HAS_EXIF = 0x20, 0x10, 0x08  # flags of VP8X

PROFILE_HEADER = 128  # bytes


class PhotoFile(NamedTuple):
    """A photograph without metadata, as the bytes of a file.

    Attributes:
        data: the whole file.
        format: "JPEG", "PNG", "WEBP" or "TIFF", of `data`.
        repacked: False: the coded picture is that of the original, bit for bit. True: the original is of another
            format, and its pixels were coded again without loss.
    """

    data: bytes
    format: str
    repacked: bool


class _Kept(NamedTuple):
    """What stays of the metadata: the orientation 1 ... 8 (1 = none is written) and the colour profile, if any."""

    orientation: int
    icc_profile: bytes | None


class _WebpParts(NamedTuple):
    """What is kept of a WebP: the content of VP8X, None in the simple format, and ALPH with VP8, VP8 or VP8L."""

    extended: bytes | None
    pictures: list[tuple[bytes, bytes]]


def strip_metadata(data: bytes) -> PhotoFile:
    """Leave out all metadata of a photograph file but orientation and colour profile.

    The pixels that Pillow decodes, the orientation and the profile are equal before and after. Doing it twice gives
    the bytes of once. JPEG, PNG and WebP of one picture keep their coded data (see the module's list). What else
    Pillow reads (TIFF, BMP, GIF, HEIC, AVIF, JPEG 2000, animated WebP, ...) is packed anew without loss: formats that
    place their parts by offsets cannot lose one in place without every other being rewritten. These become a PNG, or
    a TIFF where a PNG has no such pixels (CMYK, LAB, float, 32 bits); PNG of a lossily compressed file is larger.

    Args:
        data: the whole file, of any format that Pillow reads, or HEIC with the package pillow-heif.

    Returns:
        PhotoFile. Of several frames or pages the first is kept. Pillow's depth is kept: 16-bit grey stays, while
        16-bit colour, which stays in a PNG, has 8 bits where Pillow decodes it (TIFF, HEIC). An orientation that
        Pillow applies by itself (TIFF, HEIC) is in the pixels and no longer a tag. A profile ends where its own header
        says that it ends. The mark by which some cameras call their colours Adobe RGB without a profile goes: no part
        of this project reads it.

    Raises:
        ValueError: no photograph that Pillow reads; truncated; a length, checksum or marker that contradicts the
            bytes; a damaged colour profile; more pixels than Pillow's limit against bombs.
        ImportError: a HEIC file, and pillow-heif is not installed.
    """
    if data.startswith(JPEG_SIGNATURE):
        segments = list(_jpeg_segments(data))
        return PhotoFile(_join_jpeg(segments, _look_at(data)[1]), "JPEG", False)
    if data.startswith(PNG_SIGNATURE):
        chunks = list(_png_chunks(data))
        return PhotoFile(_join_png(chunks, _look_at(data, load=True)[1]), "PNG", False)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        chunks = list(_webp_chunks(data))
        if b"ANMF" not in dict(chunks):  # no animation
            parts = _webp_parts(chunks)
            return PhotoFile(_join_webp(parts, _look_at(data)[1]), "WEBP", False)
    return _repack(*_look_at(data, load=True))


# ---------------------------------------------------------------------------------------------------------------------
# What is kept, as Pillow reads it
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def _errors_of_pillow() -> Iterator[None]:
    """Turn what Pillow raises on damaged bytes, which may be nearly anything, into a ValueError that repeats it."""
    try:
        yield
    except (ImportError, MemoryError):
        raise  # of this machine, not of the photograph
    except PIL.UnidentifiedImageError as error:  # its text holds an address in memory
        raise ValueError("`data` must be a photograph; it is of no format that Pillow reads.") from error
    except Exception as error:
        raise ValueError(f"`data` must be a photograph that Pillow reads; {type(error).__name__}: {error}") from error


def _look_at(data: bytes, load: bool = False) -> tuple[PIL.Image.Image, _Kept]:
    """Open a photograph and read what is kept of its metadata; of a PNG, some of that may stand behind the pixels."""
    with _errors_of_pillow():
        image = open_photo(data)
        if load:
            image.load()
        value = image.getexif().get(ORIENTATION_TAG, 1)
    orientation = int(value) if value in TURNED else 1  # as PIL.ImageOps.exif_transpose, which ignores others
    return image, _Kept(orientation, _colour_profile(image.info))


def photo_formats() -> list[str]:
    """Return the names of all formats that Pillow reads here and that can hold a photograph."""
    PIL.Image.init()
    return sorted(PIL.Image.OPEN.keys() - NOT_PHOTOGRAPHS)


def open_photo(data: bytes) -> PIL.Image.Image:
    """Open a photograph of one of `photo_formats`, or HEIC through the package pillow-heif; decodes nothing yet.

    Raises:
        PIL.UnidentifiedImageError and others: it is none; Pillow raises nearly anything at damaged bytes.
        ImportError: a HEIC file, and pillow-heif is not installed.
    """
    try:
        return PIL.Image.open(io.BytesIO(data), formats=photo_formats())
    except PIL.UnidentifiedImageError:
        if data[4:8] != b"ftyp" or data[8:12] not in HEIC_BRANDS:
            raise
    try:
        pillow_heif: Any = importlib.import_module("pillow_heif")
    except ImportError as error:
        raise ImportError(
            "`data` must be of a format that Pillow reads, or the package pillow-heif must be installed "
            f"(pip install pillow-heif); got a HEIC file of {len(data)} bytes."
        ) from error
    return pillow_heif.open_heif(io.BytesIO(data)).to_pillow()


def _colour_profile(info: Mapping[Any, Any]) -> bytes | None:
    """Return the colour profile up to the end that its header states."""
    profile = info.get("icc_profile", b"")
    if profile == b"":
        return None
    if profile is None:  # Pillow's word for a profile whose parts are missing or do not unpack
        raise ValueError("`data` must have a whole colour profile or none; parts of it are missing or do not unpack.")
    stated = int.from_bytes(profile[:4], "big")
    if not PROFILE_HEADER <= stated <= len(profile) or profile[36:40] != b"acsp":
        raise ValueError(
            "`data` must have a whole colour profile or none; it has one of "
            f"{len(profile)} bytes that begins {profile[:4].hex()} ... {profile[36:40]!r}, where its length and "
            "b'acsp' must stand."
        )
    return profile[:stated]


def _orientation_block(orientation: int) -> bytes:
    """Return a little-endian TIFF structure of one directory with one entry, of type SHORT."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, ORIENTATION_TAG, 3, 1, orientation, 0, 0)


# ---------------------------------------------------------------------------------------------------------------------
# JPEG
# ---------------------------------------------------------------------------------------------------------------------


def _join_jpeg(segments: list[tuple[int, bytes, bytes]], kept: _Kept) -> bytes:
    """Return a JPEG of the kept segments: JFIF, orientation, profile, then the coded picture as it was."""
    jfif, coded, scanned = [], [], False
    for marker, payload, scan in segments:
        if marker in JPEG_CODED:
            coded.append(_jpeg_segment(marker, payload) + scan)
            scanned = scanned or marker == JPEG_SOS
        elif scanned:
            continue  # decoders choose the colours before the first scan
        elif marker == JPEG_APP0 and payload.startswith(b"JFIF\0") and len(payload) >= JFIF_LENGTH + 2:
            jfif.append(_jpeg_segment(marker, payload[:JFIF_LENGTH] + b"\0\0"))
        elif marker == JPEG_APP14 and payload.startswith(b"Adobe") and len(payload) >= ADOBE_LENGTH:
            coded.append(_jpeg_segment(marker, payload[:ADOBE_LENGTH]))
    described = []
    if kept.orientation != 1:
        described.append(_jpeg_segment(JPEG_APP1, b"Exif\0\0" + _orientation_block(kept.orientation)))
    profile = kept.icc_profile or b""
    parts = [profile[start : start + PROFILE_PART] for start in range(0, len(profile), PROFILE_PART)]
    for number, part in enumerate(parts, start=1):
        described.append(_jpeg_segment(JPEG_APP2, b"ICC_PROFILE\0" + bytes([number, len(parts)]) + part))
    return b"".join([b"\xff\xd8", *jfif, *described, *coded, b"\xff\xd9"])


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Walk the first picture of a JPEG: marker, payload and, of a scan, the coded bytes that follow it.

    Raises:
        ValueError: see `strip_metadata`. Stricter than decoders, which skip what stands between segments: these bytes
            are what is left of a segment whose length lies.
    """
    start, found = 2, set()
    while True:
        marker, position = _jpeg_marker(data, start)
        if marker == JPEG_EOI:
            if not found & JPEG_FRAMES or JPEG_SOS not in found:
                raise _damaged("JPEG", "it has no frame or no scan before its end marker")
            return
        if marker not in JPEG_CODED | JPEG_DESCRIPTIONS:
            raise _damaged("JPEG", f"marker 0xFF{marker:02X} at byte {start} has no place between segments")
        length = int.from_bytes(data[position : position + 2], "big")
        payload = data[position + 2 : position + length]
        if length < 2 or len(payload) != length - 2:
            raise _damaged("JPEG", f"segment 0xFF{marker:02X} at byte {start} states {length} bytes and has others")
        if not _jpeg_payload_fits(marker, payload):
            raise _damaged("JPEG", f"segment 0xFF{marker:02X} at byte {start} has another length than its content")
        found.add(marker)
        behind = start = position + length
        if marker == JPEG_SOS:
            end = JPEG_SCAN_END.search(data, behind)
            start = len(data) if end is None else end.start()
        yield marker, payload, data[behind:start]


def _jpeg_marker(data: bytes, start: int) -> tuple[int, int]:
    """Return the second byte of the marker that must stand at a place, and the place behind it."""
    position = start
    while data[position : position + 1] == b"\xff":  # any number of them may stand before a marker's second byte
        position += 1
    if position >= len(data):
        raise _damaged("JPEG", "it ends without its end marker, so it is truncated")
    if position == start:
        raise _damaged("JPEG", f"a marker must stand at byte {start}, and 0x{data[position]:02X} does")
    return data[position], position + 1


def _jpeg_payload_fits(marker: int, payload: bytes) -> bool:
    """Tell whether a kept segment is as long as its own numbers say, so that no other can hide in it."""
    if marker in JPEG_FRAMES:
        return len(payload) >= 6 and len(payload) == 6 + 3 * payload[5]
    if marker == JPEG_SOS:
        return len(payload) >= 1 and len(payload) == 4 + 2 * payload[0]
    if marker == JPEG_DQT:
        return _tables_fit(payload, lambda table: 129 if table[0] >> 4 else 65)
    if marker == JPEG_DHT:
        return _tables_fit(payload, lambda table: 17 + sum(table[1:17]))
    if marker in (JPEG_DRI, JPEG_DNL):
        return len(payload) == 2
    return marker != JPEG_DAC or len(payload) % 2 == 0


def _tables_fit(payload: bytes, length_of: Callable[[bytes], int]) -> bool:
    """Tell whether a payload is a whole number of tables, the length of each told by its first bytes."""
    position = 0
    while position < len(payload):
        position += length_of(payload[position : position + 17])
    return position == len(payload)


def _jpeg_segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


# ---------------------------------------------------------------------------------------------------------------------
# PNG
# ---------------------------------------------------------------------------------------------------------------------


def _join_png(chunks: Iterable[tuple[bytes, bytes]], kept: _Kept) -> bytes:
    """Return a PNG of the kept chunks in their order, with profile and orientation behind the header."""
    header, *others = [_png_chunk(kind, content) for kind, content in chunks if kind in PNG_KEPT]
    described = []
    if kept.icc_profile is not None:  # keyword, 0, method 0 (deflate), stream
        described.append(_png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(kept.icc_profile, 9)))
    if kept.orientation != 1:
        described.append(_png_chunk(b"eXIf", _orientation_block(kept.orientation)))
    return b"".join([PNG_SIGNATURE, header, *described, *others])


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Walk a PNG up to IEND: kind and content of each chunk."""
    position, kind = len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", _exactly(data, position, 8, "PNG"))
        content = _exactly(data, position + 8, length, "PNG")
        checksum = _exactly(data, position + 8 + length, 4, "PNG")
        name = kind.decode("latin-1")
        if int.from_bytes(checksum, "big") != zlib.crc32(kind + content):
            raise _damaged("PNG", f"chunk {name!r} at byte {position} has another checksum than its content")
        if (position == len(PNG_SIGNATURE)) != (kind == b"IHDR"):
            raise _damaged("PNG", f"chunk {name!r} at byte {position} stands where only IHDR may, or IHDR again")
        if length > PNG_LONGEST.get(kind, length):
            raise _damaged("PNG", f"chunk {name!r} at byte {position} has {length} bytes, more than it can mean")
        if kind not in PNG_KEPT and not kind[0] & 0x20:
            raise _damaged("PNG", f"chunk {name!r} at byte {position} is of an unknown kind that must not be ignored")
        position += 12 + length
        yield kind, content


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# ---------------------------------------------------------------------------------------------------------------------
# WebP
# ---------------------------------------------------------------------------------------------------------------------


def _webp_parts(chunks: list[tuple[bytes, bytes]]) -> _WebpParts:
    """Sort out what is kept of the chunks of a WebP, and see that it is one picture."""
    pictures = [(kind, content) for kind, content in chunks if kind in (b"ALPH", b"VP8 ", b"VP8L")]
    if [kind for kind, _ in pictures] not in ([b"VP8 "], [b"VP8L"], [b"ALPH", b"VP8 "]):
        raise _damaged("WebP", f"it must have one picture, and has chunks {[kind.decode() for kind, _ in pictures]}")
    extended = dict(chunks).get(b"VP8X")
    if extended is not None and len(extended) != 10:
        raise _damaged("WebP", f"chunk VP8X must have 10 bytes, and has {len(extended)}")
    return _WebpParts(extended, pictures)


def _join_webp(parts: _WebpParts, kept: _Kept) -> bytes:
    """Return a WebP of the picture's own chunks, with profile and orientation where the extended format has them."""
    if parts.extended is None:  # the simple format has nothing but the picture
        return _webp_file(parts.pictures)
    profile = [] if kept.icc_profile is None else [(b"ICCP", kept.icc_profile)]
    exif = [] if kept.orientation == 1 else [(b"EXIF", _orientation_block(kept.orientation))]
    flags = parts.extended[0] & WEBP_HAS_ALPHA | WEBP_HAS_PROFILE * bool(profile) | WEBP_HAS_EXIF * bool(exif)
    canvas = parts.extended[4:]  # width and height, three bytes each
    return _webp_file([(b"VP8X", bytes([flags, 0, 0, 0]) + canvas), *profile, *parts.pictures, *exif])


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Walk a WebP up to the end that its header states: kind and content of each chunk."""
    size = int.from_bytes(data[4:8], "little")
    whole = _exactly(data, 0, 8 + size, "WebP")
    position = 12
    while position < len(whole):
        kind, length = struct.unpack("<4sI", _exactly(whole, position, 8, "WebP"))
        if not kind.isascii() or not kind.decode().isprintable():
            raise _damaged("WebP", f"a chunk must begin at byte {position}, and {kind!r} stands there")
        yield kind, _exactly(whole, position + 8, length, "WebP")
        position += 8 + length + length % 2


def _webp_file(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2) for kind, content in chunks]
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


# ---------------------------------------------------------------------------------------------------------------------
# Everything else
# ---------------------------------------------------------------------------------------------------------------------


def _repack(image: PIL.Image.Image, kept: _Kept) -> PhotoFile:
    """Code the loaded pixels of a picture anew without loss, and see by decoding that none is lost.

    Raises:
        ValueError: neither PNG nor TIFF gives the same pixels back.
    """
    as_png = image.mode in PNG_MODES
    bare = image.copy() if as_png else PIL.ImageOps.exif_transpose(image)
    bare.info = {name: value for name, value in image.info.items() if name == "transparency"}
    file = io.BytesIO()
    with _errors_of_pillow():
        if as_png:
            bare.save(file, "PNG")
        else:  # turned above, because Pillow turns TIFF by itself when it reads one
            options = {} if kept.icc_profile is None else {"icc_profile": kept.icc_profile}
            bare.save(file, "TIFF", compression="tiff_adobe_deflate", **options)
        with PIL.Image.open(file) as again:
            equal = _have_equal_pixels(bare, again)
    if not equal:
        raise ValueError(f"`data` must have pixels that a PNG or TIFF holds; it is of Pillow's mode {image.mode!r}.")
    packed = file.getvalue()
    return PhotoFile(_join_png(_png_chunks(packed), kept), "PNG", True) if as_png else PhotoFile(packed, "TIFF", True)


def _have_equal_pixels(one: PIL.Image.Image, other: PIL.Image.Image) -> bool:
    """Tell whether two pictures have the same numbers and, of palettes and transparency, the same meaning."""
    equal = np.array_equal(np.asarray(one), np.asarray(other))
    if equal and (one.mode == "P" or "transparency" in one.info):
        return np.array_equal(np.asarray(one.convert("RGBA")), np.asarray(other.convert("RGBA")))
    return equal


def _exactly(data: bytes, start: int, length: int, format: str) -> bytes:
    """Return so many bytes from a place on, which must be there."""
    found = data[start : start + length]
    if len(found) != length:
        raise _damaged(format, f"{length} bytes must follow byte {start}, and {len(found)} do, so it is truncated")
    return found


def _damaged(format: str, problem: str) -> ValueError:
    return ValueError(f"`data` must be an undamaged {format} file; {problem}.")
