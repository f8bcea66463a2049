# SPDX-License-Identifier: Apache-2.0
"""The web page: reading, running and remembering as functions, and the served page through gradio_client.

The browser is in test_space_browser.py.
"""

import ast
import asyncio
import base64
import io
import json
import pickle
import platform
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
import torch
from huggingface_hub import RepoCard

import synthesize
from pipeline_zerostereo import ANAGLYPH_MATRICES, FRAME_SIZES, SIDE_BY_SIDE_LAYOUTS, StereoImageProcessor
from tests import odd_photos
from tests.loopback_hub import LoopbackHub
from tests.space_server import ROOT, SPACE, WEIGHTS, ServedSpace, served_space, space_modules
from tests.test_repository import code_blocks, requirement_lines
from tests.tiny_components import must_not_run

pytest.importorskip("gradio", reason="needs the module 'gradio', which is not installed")
pytest.importorskip("spaces", reason="needs the module 'spaces', which is not installed")


@pytest.fixture(scope="module")
def space() -> Iterator[SimpleNamespace]:
    with space_modules() as modules:
        yield modules


@pytest.fixture(scope="module")
def studio(space: SimpleNamespace) -> Any:
    return space.generation.Studio(space.app.load_pipeline(str(WEIGHTS)), str(WEIGHTS))


@pytest.fixture
def photo_file(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(odd_photos.encoded(odd_photos.picture(0), "PNG"))
    return path


def settings(space: SimpleNamespace, **changes: Any) -> Any:
    values = {"strength_percent": 8.0, "strength_px": 0.0, "target_view": "right", "fill": "whole", "steps": 1}
    return space.generation.Settings(**{**values, "seed": 3, "largest_side": 1536, **changes})


def request_of(session: str | None, **headers: str) -> SimpleNamespace:
    return SimpleNamespace(session_hash=session, headers=headers)


def run(studio: Any, image: PIL.Image.Image, chosen: Any, folder: Path, inverse_depth: Any = None) -> list[Any]:
    return list(studio.run(image, inverse_depth, chosen, folder / "cancel"))


# --- reading ---


def test_a_small_photograph_is_worked_on_byte_for_byte(space: SimpleNamespace, photo_file: Path):
    photo = space.generation.read_photo(photo_file, StereoImageProcessor, 1536)
    assert photo.content == photo_file.read_bytes()
    assert (photo.file_name, photo.notes) == ("photo_as_used.png", [])


def test_a_large_photograph_is_scaled_down_upright_and_says_so(space: SimpleNamespace, tmp_path: Path):
    path = tmp_path / "turned.jpg"
    path.write_bytes(odd_photos.encoded(odd_photos.picture(1), "JPEG", exif=odd_photos.planted_exif(6)))
    photo = space.generation.read_photo(path, StereoImageProcessor, 48)
    assert photo.image.size == (36, 48)  # 96 x 72, turned
    assert photo.file_name == "photo_as_used.png" and odd_photos.PLANTED not in photo.content
    assert photo.notes == ["Scaled down from 72 x 96 to 36 x 48 px (see Advanced)."]


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("animated.gif", "The file has 2 frames; the first one is used."),
        ("half_transparent.png", "The photograph is transparent in places; it is put on white."),
    ],
)
def test_what_changes_a_photograph_is_noted(space: SimpleNamespace, tmp_path: Path, name: str, note: str):
    path = tmp_path / name
    path.write_bytes(odd_photos.unusable_photos()[name][0])
    assert note in space.generation.read_photo(path, StereoImageProcessor, 1536).notes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("truncated.jpg", "must be a whole file; got a damaged one"),
        ("corrupt.png", "must be a whole file; got a damaged one"),
        ("empty.jpg", "must be an image file .* got a file that is none"),
        ("text.jpg", "must be an image file .* got a file that is none"),
        ("thin.png", "must have at least 32 px a side; got 1 x 80 px"),
        ("bomb.png", "must have at most 50 megapixels"),
        ("large.png", "must have at most 50 megapixels; got 8000 x 7000 px"),
    ],
)
def test_unusable_files_are_refused_in_words(space: SimpleNamespace, tmp_path: Path, name: str, message: str):
    path = tmp_path / name
    path.write_bytes(odd_photos.unusable_photos()[name][0])
    with pytest.raises(space.generation.RefusedError, match=message):
        space.generation.read_photo(path, StereoImageProcessor, 1536)


def test_formats_that_are_not_named_are_not_tried(space: SimpleNamespace, tmp_path: Path):
    path = tmp_path / "photo.jpg"
    odd_photos.picture(0).save(path, "EPS")  # Pillow would hand it to another program
    assert PIL.Image.open(path).format == "EPS"
    with pytest.raises(space.generation.RefusedError, match="must be an image file .* got a file that is none"):
        space.generation.read_photo(path, StereoImageProcessor, 1536)


def test_a_broken_directory_after_the_first_frame_does_not_matter(space: SimpleNamespace, tmp_path: Path):
    content = bytearray(odd_photos.encoded(odd_photos.picture(0), "TIFF"))
    (directory,) = struct.unpack_from("<I", content, 4)
    (entries,) = struct.unpack_from("<H", content, directory)
    struct.pack_into("<I", content, directory + 2 + 12 * entries, len(content))
    (tmp_path / "photo.tiff").write_bytes(content + bytes(6))  # a second frame without a size
    with pytest.raises(TypeError):
        _ = PIL.Image.open(tmp_path / "photo.tiff").n_frames  # pyright: ignore[reportAttributeAccessIssue]
    photo = space.generation.read_photo(tmp_path / "photo.tiff", StereoImageProcessor, 1536)
    assert photo.image.size == odd_photos.picture(0).size and photo.notes == []


def test_a_strip_that_scaling_would_leave_too_thin_is_refused(space: SimpleNamespace, tmp_path: Path):
    PIL.Image.new("RGB", (40, 3000)).save(tmp_path / "strip.png")
    read, path = space.generation.read_photo, tmp_path / "strip.png"
    message = (
        "at least 32 px a side once its larger one is scaled to 1536 px .*; got 40 x 3000 px, which gives 20 x 1536"
    )
    with pytest.raises(space.generation.RefusedError, match=message):
        read(path, StereoImageProcessor, 1536)
    assert read(path, StereoImageProcessor, 3000).image.size == (40, 3000)


@pytest.mark.parametrize(
    ("brand", "named"), [(b"heic", "a HEIC photograph. Export it as JPEG"), (b"isom", "a file that")]
)
def test_photographs_of_phones_that_cannot_be_read_are_named(
    space: SimpleNamespace, tmp_path: Path, brand: bytes, named: str
):
    path = tmp_path / "photo.heic"
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(40))
    with pytest.raises(space.generation.RefusedError, match=f"photograph must be an image file .*; got {named}"):
        space.generation.read_photo(path, StereoImageProcessor, 1536)


def test_no_file_a_heavy_one_and_one_of_unknown_range_are_refused(space: SimpleNamespace, tmp_path: Path):
    refused, read = space.generation.RefusedError, space.generation.read_photo
    with pytest.raises(refused, match="Choose a photograph first"):
        read(None, StereoImageProcessor, 1536)
    (tmp_path / "heavy.png").write_bytes(bytes(20_000_001))
    with pytest.raises(refused, match="must have at most 20 MB; got 20.0 MB"):
        read(tmp_path / "heavy.png", StereoImageProcessor, 1536)
    PIL.Image.fromarray(np.ones((40, 50), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(refused, match="This photograph cannot be used: `photograph` must be .* mode 'F'"):
        read(tmp_path / "float.tiff", StereoImageProcessor, 1536)


def test_depth_maps_of_every_kind_are_read(space: SimpleNamespace, tmp_path: Path):
    codes = (np.arange(72 * 96).reshape(72, 96) * 9).astype(np.uint16)
    PIL.Image.fromarray(codes).save(tmp_path / "map.png")
    PIL.Image.fromarray(codes.astype(np.float32) / 7).save(tmp_path / "map.tiff")
    read = space.generation.read_depth_map
    np.testing.assert_array_equal(read(tmp_path / "map.png", 96, 72), codes)
    np.testing.assert_array_equal(read(tmp_path / "map.tiff", 96, 72), codes.astype(np.float32) / 7)
    assert read(tmp_path / "map.png", 48, 36).shape == (36, 48)
    assert read(None, 96, 72) is None
    with pytest.raises(space.generation.RefusedError, match="shape of the photograph, 72 x 96 px; got 96 x 72 px"):
        read(tmp_path / "map.png", 72, 96)
    PIL.Image.fromarray(np.full((72, 96), np.inf, np.float32)).save(tmp_path / "inf.tiff")
    with pytest.raises(space.generation.RefusedError, match="must be finite; got 6912 values that are not"):
        read(tmp_path / "inf.tiff", 96, 72)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength_percent": 0}, r"depth strength must lie in \(0, 100\] percent; got 0"),
        ({"strength_px": -1}, r"depth strength in px must be 0 \(unused\) or more; got -1"),
        ({"target_view": "up"}, "new view must be one of .*; got 'up'"),
        ({"fill": "background"}, "way to fill must be one of .*; got 'background'"),
        ({"steps": 1.5}, "steps must be a whole number from 1 to 1000; got 1.5"),
        ({"seed": -1}, "seed must be a whole number .*; got -1"),
        ({"largest_side": 5000}, "largest side must be a whole number from 32 to 4096 px; got 5000"),
    ],
)
def test_settings_outside_their_range_are_refused(space: SimpleNamespace, changes: dict, message: str):
    with pytest.raises(space.generation.RefusedError, match=message):
        settings(space, **changes)


# --- running ---


def test_a_run_gives_depth_then_preview_then_the_pair_of_the_pipeline(
    space: SimpleNamespace, studio: Any, tmp_path: Path
):
    image = odd_photos.picture(0)
    depth, preview, final = run(studio, image, settings(space), tmp_path)
    assert depth.depth is not None and [stage.is_preview for stage in (depth, preview, final)] == [True, True, False]
    pipe = studio.pipe
    direct = pipe(image, disparity_scale=0.08, num_inference_steps=1, generator=torch.Generator().manual_seed(3))
    background = pipe(image, disparity_scale=0.08, fill="background")
    for made, expected in ((preview.pair, background), (final.pair, direct)):
        assert made.images[0].tobytes() == expected.images[0].tobytes()
        np.testing.assert_array_equal(made.disparity, expected.disparity)
    np.testing.assert_array_equal(depth.depth.confidence, direct.confidence[0])
    assert depth.depth.agreement == pytest.approx(float(direct.flip_agreement[0]))


def test_a_known_depth_is_not_estimated_again(space: SimpleNamespace, studio: Any, tmp_path: Path):
    image = odd_photos.picture(0)
    depth = run(studio, image, settings(space), tmp_path)[0].depth
    with must_not_run(studio.pipe.depth_estimator):
        stages = run(studio, image, settings(space, strength_px=9.0), tmp_path, depth.inverse_depth)
    assert len(stages) == 2
    assert stages[-1].pair.disparity.max() == pytest.approx(9.0, abs=1e-4)


def test_progress_names_steps_and_time_left(space: SimpleNamespace, studio: Any, tmp_path: Path):
    told: list[tuple[float, str]] = []
    telling = space.generation.Studio(studio.pipe, "x", report=lambda share, text: told.append((share, text)))
    run(telling, odd_photos.picture(0), settings(space, steps=2), tmp_path)
    texts = [text for _, text in told]
    assert texts[0] == "Estimating the depth" and texts[2] == "Filling the holes: step 1 of 2"
    assert re.fullmatch(r"Filling the holes: step 1 of 2, about \d+ s left", texts[3])
    assert texts[4].startswith("Filling the holes: step 2 of 2, about 0 s")
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[-1] < 1
    assert space.generation.describe_step(3, 10, 6.0) == "Filling the holes: step 3 of 10, about 14 s left"


def test_a_cancelled_run_ends_at_the_next_step_and_the_next_one_works(
    space: SimpleNamespace, studio: Any, tmp_path: Path
):
    def report(share: float, text: str) -> None:
        done.append(text)
        if "step 2 of 9" in text:
            (tmp_path / "cancel").touch()

    done: list[str] = []
    cancelling = space.generation.Studio(studio.pipe, "x", report=report)
    with pytest.raises(space.generation.CancelledError):
        run(cancelling, odd_photos.picture(0), settings(space, steps=9), tmp_path)
    assert "step 2 of 9" in done[-1]
    (tmp_path / "cancel").unlink()
    assert len(run(studio, odd_photos.picture(0), settings(space), tmp_path)) == 3


def test_a_run_ends_when_its_folder_is_dropped(space: SimpleNamespace, studio: Any, tmp_path: Path):
    sessions = space.generation.Sessions(tmp_path)
    folder = sessions.make_folder()
    chosen = settings(space, steps=9)
    seen = []
    with pytest.raises(space.generation.CancelledError), sessions.running("ann", folder / "cancel"):
        for stage in studio.run(odd_photos.picture(0), None, chosen, folder / "cancel"):
            seen.append(stage)
            if stage.pair is not None:
                sessions.put("ann", remembered(space, folder))
                sessions.drop("ann")
    assert len(seen) == 2 and not folder.exists()  # the depth and the preview


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to give memory back")
def test_freed_memory_goes_back_to_the_system():
    code = """
import generation, pathlib
def resident_mb(): return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
blocks = [bytearray(100_000) for _ in range(3000)]
kept = blocks[::50]  # no block beside one of these can go by itself
del blocks
before = resident_mb()
generation.return_memory()
print(before - resident_mb())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=SPACE, capture_output=True, text=True, check=True)
    assert float(done.stdout) > 200


def test_what_the_pipeline_refuses_is_told(space: SimpleNamespace, studio: Any, tmp_path: Path):
    with pytest.raises(space.generation.RefusedError, match=r"`max_disparity_px` must lie in \(0, 96\]"):
        run(studio, odd_photos.picture(0), settings(space, strength_px=97.0), tmp_path)


def test_a_shared_gpu_is_asked_for_longer_where_there_is_more_to_do(space: SimpleNamespace, tmp_path: Path):
    def seconds(width: int, **changes: Any) -> int:
        image = PIL.Image.new("RGB", (width, 1000))
        return space.generation.gpu_seconds(image, None, settings(space, **changes), tmp_path)

    assert seconds(1000) < seconds(1000, steps=50) < seconds(1000, steps=50, target_view="both")
    assert seconds(1000, steps=20) < seconds(3000, steps=20) < seconds(3000, steps=20, fill="tiled")
    assert seconds(4000, steps=1000, fill="tiled") > 120


def test_who_would_hold_a_shared_gpu_for_too_long_is_told_before(space: SimpleNamespace, studio: Any, tmp_path: Path):
    borrowing = space.generation.Studio(studio.pipe, "x", on_device=must_not_lend, longest_loan_s=120)
    message = r"may hold the shared GPU for 4\d\d s, and it is lent for 120 s. Choose fewer steps"
    with pytest.raises(space.generation.RefusedError, match=message):
        run(borrowing, odd_photos.picture(0, width=1000, height=1000), settings(space, steps=1000), tmp_path)


def must_not_lend(duration: Any) -> Any:
    return lambda task: lambda *arguments: pytest.fail("a device was lent")


def test_messages_survive_a_shared_gpu(space: SimpleNamespace, studio: Any, tmp_path: Path):
    def on_device(duration: Any) -> Any:
        """Lend as `spaces` does on ZeroGPU: values are pickled, and of an error only the class stays."""

        def lend(task: Any) -> Any:
            def run_there(*arguments: Any) -> Iterator[Any]:
                try:
                    yield from (pickle.loads(pickle.dumps(value)) for value in task(*arguments))
                except Exception as error:
                    raise RuntimeError(type(error).__name__) from None

            return run_there

        return lend

    borrowing = space.generation.Studio(studio.pipe, "x", on_device=on_device)
    with pytest.raises(space.generation.RefusedError, match="`max_disparity_px` must"):
        run(borrowing, odd_photos.picture(0), settings(space, strength_px=1e9), tmp_path)
    (tmp_path / "cancel").touch()
    with pytest.raises(space.generation.CancelledError):
        run(borrowing, odd_photos.picture(0), settings(space), tmp_path)


def test_the_device_is_lent_with_the_estimate(space: SimpleNamespace, studio: Any, tmp_path: Path):
    lent: list[Any] = []

    def on_device(duration: Any) -> Any:
        lent.append(duration)
        return lambda task: lambda *arguments: (lent.append(duration(*arguments)), task(*arguments))[1]

    borrowing = space.generation.Studio(studio.pipe, "x", on_device=on_device)
    assert len(run(borrowing, odd_photos.picture(0), settings(space), tmp_path)) == 3
    assert lent == [space.generation.gpu_seconds, 15]


# --- what made it ---


@pytest.mark.parametrize(
    ("changes", "own_map"), [({}, False), ({"target_view": "both", "strength_px": 7.5, "steps": 2}, True)]
)
def test_the_python_line_makes_the_pair_again_bit_for_bit(
    space: SimpleNamespace, studio: Any, photo_file: Path, monkeypatch, changes: dict, own_map: bool
):
    generation, folder = space.generation, photo_file.parent
    chosen = settings(space, **changes)
    photo = generation.read_photo(photo_file, StereoImageProcessor, 1536)
    depth_map = np.linspace(0, 5, 72 * 96, dtype=np.float32).reshape(72, 96) if own_map else None
    pair = run(studio, photo.image, chosen, folder, depth_map)[-1].pair
    parameters = generation.describe_parameters(studio, photo, chosen, pair, 0.5, own_map)
    (folder / photo.file_name).write_bytes(photo.content)
    if depth_map is not None:
        (folder / generation.DEPTH_FILE).write_bytes(space.pictures.encode_tiff(PIL.Image.fromarray(depth_map)))
    monkeypatch.chdir(folder)
    exec(parameters["python"], {})
    for name, view in (("left.png", pair.left_image[0]), ("right.png", pair.right_image[0])):
        assert PIL.Image.open(name).tobytes() == view.tobytes()
    assert json.loads(json.dumps(parameters)) == parameters
    assert parameters["versions"]["torch"] == torch.__version__


def test_the_python_line_names_the_dtypes_that_are_not_the_default(space: SimpleNamespace):
    line = space.generation.python_line(
        "'me/x'", "cuda", 2, {"unet": "float16", "depth_estimator": "float32"}, "a.jpg", settings(space), False
    )
    assert "dtype={'unet': torch.float16, 'default': torch.float32}).to('cuda')" in line
    assert "threads" not in line
    ast.parse(line)


def test_the_python_line_splits_sums_as_the_page_did(space: SimpleNamespace):
    line = space.generation.python_line("'me/x'", "cpu", 3, {}, "a.jpg", settings(space), False)
    assert "torch.set_num_threads(3)" in line
    ast.parse(line)


# --- files ---


@pytest.mark.parametrize("target_view", ["right", "both"])
def test_files_are_those_of_the_command_line_byte_for_byte(
    space: SimpleNamespace, studio: Any, tmp_path: Path, target_view: str
):
    pair = run(studio, odd_photos.picture(0), settings(space, target_view=target_view), tmp_path)[-1].pair
    pair.confidence = np.random.default_rng(1).random((1, 72, 96)).astype(np.float32)
    processor = studio.pipe.image_processor
    synthesize.write_result(tmp_path / "there", pair, processor, {}, tuple(synthesize.FORMATS), 3, 50.0)
    pictures = space.pictures.PictureSettings(convergence=3, fov_deg=50.0)
    here = {
        name: encode() for name, encode in space.pictures.make_files(pair, pair.confidence[0], processor, pictures)
    }
    there = {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}
    there.pop("result.json")
    assert here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []


def test_without_depth_there_is_no_point_cloud(space: SimpleNamespace):
    flat = SimpleNamespace(disparity=np.zeros((1, 4, 6), np.float32))
    assert not space.pictures.has_depth(flat)
    with pytest.raises(ValueError, match="`file_format` must be one of .*; got 'obj'"):
        space.pictures.encode_shown_cloud(flat, None, 60.0, "obj")
    flat.disparity[0, 1, 2] = 0.5
    assert space.pictures.has_depth(flat)


def test_the_overlay_paints_holes_only(space: SimpleNamespace):
    view = PIL.Image.fromarray(np.full((2, 3, 3), 100, np.uint8))
    hole = np.zeros((2, 3), bool)
    hole[1, 2] = True
    painted = np.asarray(space.pictures.overlay_invented(SimpleNamespace(images=[view] * 2, hole_mask=[hole, ~hole])))
    assert painted.shape == (2, 6, 3)
    assert painted[1, 2].tolist() == [193, 40, 154] and painted[0, 0].tolist() == [100, 100, 100]
    assert painted[1, 5].tolist() == [100, 100, 100] and painted[0, 3].tolist() == [193, 40, 154]


def test_archives_of_equal_files_are_equal(space: SimpleNamespace, tmp_path: Path):
    for name, content in (("b.txt", b"two"), ("a.txt", b"one")):
        (tmp_path / name).write_bytes(content)
    files = [tmp_path / "b.txt", tmp_path / "a.txt"]
    space.pictures.write_zip(tmp_path / "1.zip", files)
    space.pictures.write_zip(tmp_path / "2.zip", files)
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "1.zip") as archive:
        assert archive.namelist() == ["b.txt", "a.txt"] and archive.read("a.txt") == b"one"
    assert not list(tmp_path.glob(".*"))


def test_choices_of_the_page_are_those_of_the_pipeline(space: SimpleNamespace):
    assert tuple(space.pictures.ANAGLYPH_METHODS) == tuple(ANAGLYPH_MATRICES)
    assert tuple(space.pictures.LAYOUTS) == SIDE_BY_SIDE_LAYOUTS
    assert tuple(space.pictures.FRAME_SIZES) == FRAME_SIZES


def test_convergence_ends_at_a_fifth_of_the_width_or_at_the_nearest_point(space: SimpleNamespace):
    disparity = np.zeros((2, 50), np.float32)
    assert space.pictures.convergence_limit(disparity) == 10
    disparity[1, 3] = 17.2
    assert space.pictures.convergence_limit(disparity) == 18
    disparity[1, 3] = 49.5
    assert space.pictures.convergence_limit(disparity) == 49


# --- what is remembered ---


def remembered(space: SimpleNamespace, folder: Path, pixels: int = 100) -> Any:
    pair = SimpleNamespace(disparity=np.zeros((1, 1, pixels), np.float32), images=[None])
    photo = space.generation.Photo(None, b"", "", [])
    return space.generation.Result(photo, None, pair, None, None, {}, folder, False)


def test_results_expire_and_take_their_folders_along(space: SimpleNamespace, tmp_path: Path):
    now = [0.0]
    sessions = space.generation.Sessions(tmp_path, max_age_s=60, clock=lambda: now[0])
    first, second = sessions.make_folder(), sessions.make_folder()
    assert first != second and len(first.name) >= 32
    sessions.put("ann", remembered(space, first))
    now[0] = 40.0
    sessions.put("bob", remembered(space, second))
    assert sessions.get("ann").folder == first
    now[0] = 101.0
    assert sessions.get("ann") is None and not first.exists()  # used at 40
    assert sessions.get("bob") is None and not second.exists()


def test_results_are_bounded_the_least_recently_used_goes_first(space: SimpleNamespace, tmp_path: Path):
    size = remembered(space, tmp_path).memory_bytes()
    sessions = space.generation.Sessions(tmp_path, max_bytes=2 * size)
    folders = {user: sessions.make_folder() for user in "abc"}
    sessions.put("a", remembered(space, folders["a"]))
    sessions.put("b", remembered(space, folders["b"]))
    sessions.get("a")
    sessions.put("c", remembered(space, folders["c"]))
    assert [user for user, folder in folders.items() if folder.exists()] == ["a", "c"]
    assert sessions.get("b") is None and len(sessions) == 2
    huge = sessions.make_folder()
    sessions.put("d", remembered(space, huge, pixels=1000))
    assert huge.exists() and len(sessions) == 1


def test_results_that_are_being_worked_on_stay(space: SimpleNamespace, tmp_path: Path):
    now, size = [0.0], remembered(space, tmp_path).memory_bytes()
    sessions = space.generation.Sessions(tmp_path, max_bytes=size, max_age_s=60, clock=lambda: now[0])
    preview = sessions.make_folder()
    sessions.put("ann", remembered(space, preview))
    with sessions.running("ann", preview / "cancel"):
        now[0] = 1000.0
        sessions.put("bob", remembered(space, sessions.make_folder()))
        sessions.sweep()
        assert preview.is_dir() and len(sessions) == 2
    sessions.sweep()
    assert not preview.exists() and len(sessions) == 1


def test_a_new_result_replaces_the_older_one_and_dropping_ends_work(space: SimpleNamespace, tmp_path: Path):
    now = [0.0]
    sessions = space.generation.Sessions(tmp_path, clock=lambda: now[0])
    first, second = sessions.make_folder(), sessions.make_folder()
    sessions.put("ann", remembered(space, first))
    sessions.put("ann", remembered(space, second))
    assert first.exists() and sessions.get("ann").folder == second  # somebody may still fetch a file
    now[0] = 121.0
    sessions.sweep()
    assert not first.exists() and second.exists()
    assert not sessions.cancel("ann")
    with sessions.running("ann", second / "cancel"):
        assert not sessions.cancel("bob") and not (second / "cancel").exists()
        assert sessions.cancel("ann") and (second / "cancel").exists()
    assert not sessions.cancel("ann")
    sessions.drop("ann")
    assert not second.exists() and sessions.get("ann") is None


def test_a_page_that_closes_is_forgotten_and_a_client_keeps_its_files_a_while(space: SimpleNamespace, tmp_path: Path):
    now = [0.0]
    sessions = space.generation.Sessions(tmp_path, clock=lambda: now[0])
    page, client = sessions.make_folder(), sessions.make_folder()
    sessions.open_page("ann")
    sessions.put("ann", remembered(space, page))
    sessions.put("bob", remembered(space, client))
    with sessions.running("ann", page / "cancel"), sessions.running("bob", client / "cancel"):
        sessions.leave("bob")
        assert not (client / "cancel").exists()  # the connection was lost; the request goes on
        sessions.leave("ann")
        assert not page.exists() and sessions.get("ann") is None
    now[0] = 119.0
    sessions.sweep()
    assert client.exists()
    now[0] = 121.0
    sessions.sweep()
    assert not client.exists() and sessions.get("bob") is None
    sessions.leave("cid")  # never seen


def test_a_client_that_asks_again_after_its_connection_was_lost_keeps_its_result(
    space: SimpleNamespace, tmp_path: Path
):
    now = [0.0]
    sessions = space.generation.Sessions(tmp_path, clock=lambda: now[0])
    sessions.put("bob", remembered(space, sessions.make_folder()))
    sessions.leave("bob")
    now[0] = 60.0
    assert sessions.get("bob") is not None
    now[0] = 1000.0
    assert sessions.get("bob") is not None


def test_files_go_when_settings_change_and_stay_where_the_change_is_told_late(
    space: SimpleNamespace, studio: Any, tmp_path: Path
):
    handlers = space.handlers.Handlers(studio, space.generation.Sessions(tmp_path / "kept"))
    path = tmp_path / "photo.png"
    odd_photos.picture(0).save(path)
    photo = space.generation.read_photo(path, handlers.processor, 512)
    *_, _ = handlers._make("ann", photo, settings(space), None)
    ann = request_of("ann")

    def write(convergence: int, progress: Any = lambda *_, **__: None) -> tuple:
        return handlers.downloads(convergence, 250, True, 60.0, progress=progress, request=ann)

    files, parameters = write(3)
    assert len(files) > 10 and parameters["convergence"] == 3
    files, note, parameters = handlers.outdate(3, 250, True, 60.0, ann)  # told late
    assert files == note == space.handlers.gr.skip() and parameters["convergence"] == 3
    files, note, parameters = handlers.outdate(4, 250, True, 60.0, ann)
    assert (files, note, parameters["convergence"]) == (None, space.handlers.OUTDATED, 4)

    def change_meanwhile(*_: Any, **__: Any) -> None:
        handlers.outdate(5, 250, True, 60.0, ann)

    with pytest.raises(space.handlers.gr.Error, match="The settings changed: make the files again"):
        write(4, change_meanwhile)


def test_convergence_is_lowered_to_what_a_picture_has_and_later_changes_are_caught_up(
    space: SimpleNamespace, studio: Any, tmp_path: Path
):
    handlers = space.handlers.Handlers(studio, space.generation.Sessions(tmp_path / "kept"))
    photo = tmp_path / "photo.png"
    odd_photos.picture(0).resize((70, 50)).save(photo)
    ann, skip = request_of("ann"), space.handlers.gr.skip()
    asked = (8.0, 0.0, "right", "whole", 1, 3, False, 1536)
    shown = (500, "dubois", "parallel", "full", 250, True, 60.0, "ply")
    preview, made = handlers.make_pair(photo, None, *asked, *shown, progress=lambda *_, **__: None, request=ann)
    limit = 14  # a fifth of 70 px; the nearest point is 5.6 px apart
    for status, *_, control in (preview, made):
        assert f"Convergence lowered to {limit} px, the most for this picture." in status
        assert (control["maximum"], control["value"]) == (limit, limit)
    assert made[11]["convergence"] == limit and preview[11] is None
    processor, pair = handlers.processor, handlers.sessions.get("ann").pair
    views = pair.left_image[0], pair.right_image[0]
    expected = odd_photos.encoded(processor.anaglyph(*views, "dubois", limit), "PNG")
    assert Path(made[3]).read_bytes() == expected

    assert handlers.catch_up(limit, *shown[1:], ann) == (skip,) * 5
    changed = (7, "half_color", "cross_eyed", "half", 250, True, 60.0, "glb")
    _, anaglyph, side_by_side, cloud, parameters = handlers.catch_up(*changed, ann)
    assert Path(anaglyph).read_bytes() == odd_photos.encoded(processor.anaglyph(*views, "half_color", 7), "PNG")
    assert Path(side_by_side).name == "stereo_cross_eyed_half.png" and Path(cloud).name == "points.glb"
    assert parameters["convergence"] == 7
    assert handlers.catch_up(*changed, ann) == (skip,) * 5
    assert handlers.catch_up(*changed, request_of("nobody")) == (skip,) * 5


def test_cancelling_says_what_is_shown(space: SimpleNamespace, tmp_path: Path):
    handlers = space.handlers.Handlers(
        SimpleNamespace(pipe=SimpleNamespace(image_processor=None)), space.generation.Sessions(tmp_path)
    )
    assert handlers.cancel_page(request_of("ann")) == "Cancelled."
    preview = remembered(space, handlers.sessions.make_folder())
    preview.is_preview = True
    handlers.sessions.put("ann", preview)
    assert handlers.cancel_page(request_of("ann")).startswith("Cancelled. What you see is a preview; press")
    with pytest.raises(space.handlers.gr.Error, match="There is only a preview. Wait for the result, or make"):
        handlers.downloads(0, 250, True, 60.0, request=request_of("ann"))


def test_calls_through_mcp_and_without_a_session_are_users_of_their_own(space: SimpleNamespace):
    user_of = space.handlers.user_of
    assert user_of(request_of("ann")) == user_of(request_of("ann")) == "ann"
    for request in (request_of("all", **{"x-gradio-user": "mcp"}), request_of(None), None):
        first, second = user_of(request), user_of(request)
        assert first != second and min(len(first), len(second)) >= 16 and "all" not in (first, second)


# --- files that are named by an address ---


@pytest.fixture
def files_of_a_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve /file (3000 bytes), /moved (redirects to it), /round (to itself) and /slow on a host that is public."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/slow":
                time.sleep(1)
                return
            target = {"/moved": "/file", "/round": "/round"}.get(self.path)
            self.send_response(302 if target else 200 if self.path == "/file" else 404)
            if target:
                self.send_header("Location", target)
            self.end_headers()
            self.wfile.write(bytes(3000) if self.path == "/file" else b"")

        def log_message(self, *_: Any) -> None:
            pass

    async def is_public(host: str) -> str:
        return "127.0.0.1"

    monkeypatch.setattr("safehttpx.async_validate_url", is_public)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://photos.example:{server.server_port}"
        server.shutdown()


def test_files_are_fetched_within_the_limits(space: SimpleNamespace, files_of_a_host: str, tmp_path: Path):
    def fetch(name: str, limit_bytes: int = 3000) -> str:
        return asyncio.run(space.fetching.fetch_file(f"{files_of_a_host}/{name}", tmp_path, limit_bytes))

    assert Path(fetch("file")).read_bytes() == Path(fetch("moved")).read_bytes() == bytes(3000)
    kept = len(list(tmp_path.iterdir()))
    for name, limit_bytes, message in (
        ("file", 2999, "must give a file: it has more than 0.002999 MB"),
        ("round", 3000, "must give a file: it redirects more than 5 times"),
        ("nothing", 3000, "must give a file: .*404"),
    ):
        with pytest.raises(space.handlers.gr.Error, match=message):
            fetch(name, limit_bytes)
    assert len(list(tmp_path.iterdir())) == kept == 2


def test_what_is_given_up_leaves_nothing(
    space: SimpleNamespace, files_of_a_host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(space.fetching, "FETCH_TIMEOUT_S", 0.2)
    with pytest.raises(space.handlers.gr.Error, match="must give a file: TimeoutError"):
        asyncio.run(space.fetching.fetch_file(f"{files_of_a_host}/slow", tmp_path))

    async def leave() -> None:
        waiting = asyncio.create_task(space.fetching.fetch_file(f"{files_of_a_host}/slow", tmp_path))
        await asyncio.sleep(0.05)
        assert len(list(tmp_path.iterdir())) == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(leave())
    assert not list(tmp_path.iterdir())


def test_files_are_not_fetched_from_this_machine(space: SimpleNamespace, tmp_path: Path, monkeypatch):
    async def no_answer(host: str) -> list[str]:
        return []

    monkeypatch.setattr("safehttpx.async_resolve_hostname_google", no_answer)
    with pytest.raises(space.handlers.gr.Error, match="must give a file: Hostname 127.0.0.1 failed validation"):
        asyncio.run(space.fetching.fetch_file("http://127.0.0.1:1/x.png", tmp_path))


# --- the folder that is deployed ---


def test_weights_are_found_or_their_absence_is_told(space: SimpleNamespace, monkeypatch, tmp_path: Path):
    find = space.app.find_weights
    assert find({"ZEROSTEREO_WEIGHTS": "me/mine"}) == ("me/mine", "me/mine")
    assert find({"ZEROSTEREO_WEIGHTS": str(tmp_path)}) == (str(tmp_path), f"./{tmp_path.name}")
    assert find({}) == (str(WEIGHTS), "./weights/zerostereo-tiny")
    monkeypatch.setattr(space.app, "FOLDER", tmp_path / "space")
    with pytest.raises(FileNotFoundError, match="ZEROSTEREO_WEIGHTS must name a pipeline folder or Hub id"):
        find({})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("./weights/w", None, None), "'./weights/w'"),
        (("me/w", "1a2b", "me/page"), "'me/w', revision='1a2b'"),
        (
            ("./weights/w", None, "me/page"),
            "huggingface_hub.snapshot_download('me/page', repo_type='space') + '/weights/w'",
        ),
    ],
)
def test_the_python_line_loads_the_weights_from_where_a_visitor_has_them(
    space: SimpleNamespace, given: tuple, expected: str
):
    source = space.app.python_source(*given)
    assert source == expected
    line = space.generation.python_line(source, "cpu", 1, {}, "a.jpg", settings(space), False)
    assert f"from_pretrained({expected}, trust_remote_code=True)" in line
    assert line.startswith("import huggingface_hub, PIL.Image, torch;") == ("huggingface_hub" in expected)
    ast.parse(line)


def test_front_matter_and_pins_agree_with_what_is_tested():
    card = RepoCard.load(SPACE / "README.md").data.to_dict()
    pins = dict(line.split("==") for line in requirement_lines(ROOT / "requirements-space.txt") if "==" in line)
    assert (card["sdk"], card["sdk_version"], card["app_file"]) == ("gradio", pins["gradio"], "app.py")
    assert {card["colorFrom"], card["colorTo"]} <= {
        "red",
        "yellow",
        "green",
        "blue",
        "indigo",
        "purple",
        "pink",
        "gray",
    }
    assert len(card["short_description"]) <= 60  # what the Hub refuses otherwise
    deployed = dict(line.split("==") for line in requirement_lines(SPACE / "requirements.txt"))
    assert (2, 8) <= tuple(map(int, deployed.pop("torch").split(".")[:2])) <= (2, 11)  # what ZeroGPU offers
    tested = dict(line.split("==") for line in requirement_lines(ROOT / "requirements.txt")) | pins
    assert {name: tested[name] for name in deployed} == deployed
    assert not {"gradio", "spaces", "torchvision"} & deployed.keys()
    for block in code_blocks((SPACE / "README.md").read_text(encoding="utf-8"), "python"):
        ast.parse(block)


def test_the_folder_is_complete_where_links_are_files(tmp_path: Path):
    shutil.copytree(SPACE, tmp_path / "space", ignore=shutil.ignore_patterns("__pycache__"))
    files = {path.relative_to(tmp_path / "space").as_posix() for path in (tmp_path / "space").rglob("*.*")}
    examples = {f"examples/{path.name}" for path in (ROOT / "examples").iterdir() if path.suffix in (".png", ".jpg")}
    modules = {"app.py", "fetching.py", "generation.py", "handlers.py", "pictures.py"}
    assert files == modules | examples | {"README.md", "requirements.txt"}
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for module in modules
        for node in ast.walk(ast.parse((SPACE / module).read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert not {name for name in imported if name and name.split(".")[0] in ("space", "pipeline_zerostereo")}
    assert "torch.compile" not in "".join((SPACE / module).read_text(encoding="utf-8") for module in modules)


DEPLOY = """
import sys
from huggingface_hub import RepoCard, snapshot_download
from training import publish
publish.main(["pipeline", sys.argv[2], "me/stereo", "--push"])
publish.main(["space", sys.argv[1], "me/page", "--weights", "me/stereo", "--push"])
RepoCard.load("me/page", repo_type="space").validate(repo_type="space")
snapshot_download("me/page", repo_type="space", local_dir=sys.argv[3])
"""


@pytest.mark.slow
def test_the_folder_runs_where_it_was_deployed(photo_file: Path, tmp_path: Path):
    deployed = tmp_path / "deployed"
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.run_python(DEPLOY, SPACE, WEIGHTS, deployed, home=tmp_path / "home", PYTHONPATH=str(ROOT))
        names = set(hub.files("me/page", "spaces"))
        variables = hub.environment(
            tmp_path / "fresh", HF_HUB_OFFLINE="0", **hub.repository("me/page", "spaces").variables
        )
        with served_space(tmp_path, deployed / "app.py", **variables) as there:
            client = connect(there.url, tmp_path)
            left, right, _, _, parameters = pair_of(client, photo_file, seed=4)
            sizes = [PIL.Image.open(path).size for path in (photo_file, left, right)]
            client.close()
        commit = hub.repository("me/stereo").resolve("main").sha
    assert {"app.py", "README.md", "requirements.txt", "examples/coffee.png"} <= names
    assert not [name for name in names if "pycache" in name]
    for path in deployed.rglob("*"):
        assert not path.is_symlink()
    assert sizes == [(96, 72)] * 3
    assert (parameters["seed"], parameters["weights"]) == (4, "me/stereo")
    assert f"from_pretrained('me/stereo', revision='{commit}', trust_remote_code=True)" in parameters["python"]


# --- the served page ---


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedSpace]:
    with served_space(tmp_path_factory.mktemp("space")) as server:
        yield server


@pytest.fixture
def address(served: ServedSpace) -> str:
    return served.url


def connect(address: str, folder: Path) -> Any:
    from gradio_client import Client

    return Client(address, verbose=False, download_files=str(folder))


def pair_of(client: Any, photo: Path, **arguments: Any) -> tuple:
    from gradio_client import handle_file

    return client.predict(handle_file(str(photo)), api_name="/stereo_pair", **arguments)


@pytest.mark.slow
def test_endpoints_answer_as_the_pipeline_does(address: str, studio: Any, photo_file: Path, tmp_path: Path):
    client = connect(address, tmp_path)
    left, right, disparity, archive, parameters = pair_of(client, photo_file, strength_percent=9.0, seed=5, steps=2)
    processor = studio.pipe.image_processor
    expected = studio.pipe(
        PIL.Image.open(photo_file),
        disparity_scale=0.09,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(5),
    )
    assert PIL.Image.open(left).tobytes() == expected.left_image[0].tobytes()
    assert PIL.Image.open(right).tobytes() == expected.right_image[0].tobytes()
    codes, scale = processor.export_disparity_to_16bit_png(expected.disparity[0])[0]
    assert PIL.Image.open(disparity).tobytes() == codes.tobytes() and parameters["disparity_png_scale"] == scale
    assert (parameters["seed"], parameters["steps"], parameters["weights"]) == (5, 2, "./weights/zerostereo-tiny")
    with zipfile.ZipFile(archive) as files:
        assert files.read("photo_as_used.png") == photo_file.read_bytes()
        assert {"right.png", "stereo.mpo", "wiggle.gif", "points.glb", "parameters.json"} <= set(files.namelist())
        assert PIL.Image.open(io.BytesIO(files.read("right.png"))).tobytes() == expected.right_image[0].tobytes()
    views = (expected.left_image[0], expected.right_image[0])
    anaglyph = client.predict("half_color", 4, api_name="/anaglyph")
    assert PIL.Image.open(anaglyph).tobytes() == processor.anaglyph(*views, "half_color", 4).tobytes()
    beside = client.predict("cross_eyed", "half", 4, api_name="/side_by_side")
    assert PIL.Image.open(beside).tobytes() == processor.side_by_side(*views, "cross_eyed", "half", 4).tobytes()
    wiggle = client.predict(200, False, 4, api_name="/wiggle")
    assert Path(wiggle).read_bytes() == processor.export_wiggle_to_gif(processor.wiggle(*views, 4), 200, loop=1)
    for file_format, start in (("ply", b"ply\n"), ("glb", b"glTF")):
        assert Path(client.predict(50, file_format, api_name="/point_cloud")).read_bytes().startswith(start)
    assert client.predict(api_name="/cancel") == "Nothing is running."


@pytest.mark.slow
def test_bad_requests_get_a_message(address: str, photo_file: Path, tmp_path: Path):
    client = connect(address, tmp_path)
    with pytest.raises(Exception, match="There is no pair to work on"):
        client.predict("dubois", 0, api_name="/anaglyph")
    text = tmp_path / "text.jpg"
    text.write_bytes(b"no photograph")
    with pytest.raises(Exception, match="must be an image file"):
        pair_of(client, text)
    with pytest.raises(Exception, match="greater than maximum value 20"):
        pair_of(client, photo_file, strength_percent=50)
    with pytest.raises(Exception, match=r"`max_disparity_px` must lie in \(0, 96\]"):
        pair_of(client, photo_file, strength_px=500)
    assert len(pair_of(client, photo_file)) == 5
    with pytest.raises(Exception, match="`convergence` must leave at least one of the 96 columns"):
        client.predict("dubois", 96, api_name="/anaglyph")
    with pytest.raises(Exception, match="must give a file: Hostname 127.0.0.1 failed validation"):
        client.predict({"path": f"{address}/x.png", "meta": {"_type": "gradio.FileData"}}, api_name="/stereo_pair")
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(bytes(20_000_100))
    with pytest.raises(Exception, match="(?i)file size|too large|413"):
        pair_of(client, heavy)


def test_replaced_files_are_bounded(space: SimpleNamespace, tmp_path: Path):
    sessions = space.generation.Sessions(tmp_path, clock=lambda: 0.0)
    for _ in range(30):
        sessions.put("ann", remembered(space, sessions.make_folder()))
    assert len(list(tmp_path.iterdir())) <= 22


@pytest.mark.slow
def test_users_do_not_meet(address: str, photo_file: Path, tmp_path: Path):
    ann, bob = connect(address, tmp_path / "ann"), connect(address, tmp_path / "bob")
    pair_of(ann, photo_file, seed=1)
    with pytest.raises(Exception, match="There is no pair to work on"):
        bob.predict("dubois", 0, api_name="/anaglyph")
    results: dict[int, str] = {}

    def make(client: Any, seed: int) -> None:
        results[seed] = pair_of(client, photo_file, seed=seed)[4]["seed"]

    threads = [threading.Thread(target=make, args=[(ann, bob)[seed % 2], seed]) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {seed: seed for seed in range(6)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["/etc/passwd", str(SPACE / "app.py"), str(WEIGHTS / "model_index.json"), "../app.py"]
)
def test_no_file_outside_the_cache_is_served(address: str, path: str):
    answer = httpx.get(f"{address}/gradio_api/file={path}")
    assert answer.status_code in (403, 404)


@pytest.mark.slow
def test_an_mcp_client_makes_a_pair_and_sees_nobody_elses(address: str, photo_file: Path, studio: Any, require):
    require("mcp")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def ask(tool: str, arguments: dict[str, Any]) -> Any:
        async with (
            streamable_http_client(f"{address}/gradio_api/mcp/") as (reading, writing, _),
            ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            assert [one.name for one in tools] == ["stereo_pair"]
            properties = tools[0].inputSchema["properties"]
            assert properties["strength_percent"]["description"].startswith("Largest disparity")
            return await session.call_tool(tool, arguments)

    photo = f"data:image/png;base64,{base64.b64encode(photo_file.read_bytes()).decode()}"
    answer = asyncio.run(ask("stereo_pair", {"photo": photo, "strength_percent": 8.0, "seed": 3}))
    assert not answer.isError
    url = re.search(r"http[^']+/right\.png", answer.content[0].text)
    assert url is not None
    chosen = {"generator": torch.Generator().manual_seed(3), "disparity_scale": 0.08, "num_inference_steps": 1}
    pair = studio.pipe(PIL.Image.open(photo_file), **chosen)
    right = httpx.get(url.group()).content
    assert PIL.Image.open(io.BytesIO(right)).tobytes() == pair.right_image[0].tobytes()
    for tool in ("anaglyph", "downloads", "cancel"):  # of the last pair of a session, which all MCP clients share
        assert asyncio.run(ask(tool, {})).isError
