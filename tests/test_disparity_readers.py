# SPDX-License-Identifier: Apache-2.0
"""Disparity files of public data sets: recorded outputs, known answers, and files that cannot be used."""

import io
import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.golden_files import GOLDEN_FOLDER
from training.disparity_readers import (
    DataFileError,
    read_crestereo,
    read_eth3d,
    read_falling_things,
    read_kitti,
    read_middlebury,
    read_pfm,
    read_picture,
    read_png16,
    read_scene_flow,
    read_tartanair,
    read_vkitti2,
)

FILES = GOLDEN_FOLDER / "readers"
READERS = {  # name of the recorded output -> how we read the same file
    "sceneflow_le": lambda: read_scene_flow(FILES / "sceneflow_le.pfm"),
    "tartanair": lambda: read_tartanair(FILES / "tartanair_depth.npy"),
    "crestereo": lambda: read_crestereo(FILES / "crestereo_left.disp.png"),
    "fallingthings": lambda: read_falling_things(FILES / "fat/000000.left.depth.png"),
    "vkitti2": lambda: read_vkitti2(FILES / "vkitti2_depth.png"),
    "kitti_all": lambda: read_kitti(FILES / "disp_occ_0/000000_10.png"),
    "kitti_noc": lambda: read_kitti(FILES / "disp_noc_0/000000_10.png"),
    "middlebury_all": lambda: read_middlebury(FILES / "middlebury/disp0GT.pfm"),
    "middlebury_noc": lambda: read_middlebury(FILES / "middlebury/disp0GT.pfm", "noc"),
    "eth3d_all": lambda: read_eth3d(FILES / "eth3d/disp0GT.pfm"),
    "eth3d_noc": lambda: read_eth3d(FILES / "eth3d/disp0GT.pfm", "noc"),
}
CALLED_VALID_BY_THE_OFFICIAL_READERS_ONLY = {  # negative or infinite disparities
    "sceneflow_le": 1,
    "tartanair": 1,
    "fallingthings": 1,
    "middlebury_all": 0,
    "eth3d_all": 0,
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(FILES / "readers.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.parametrize("name", READERS)
def test_agrees_with_the_official_reader(recorded, name):
    disparity, valid = READERS[name]()
    official, official_valid = recorded[name], recorded[f"{name}_valid"]
    usable = np.isfinite(official) & (official >= 0)
    assert disparity.dtype == np.float32 and valid.dtype == bool and disparity.shape == valid.shape == (7, 11)
    np.testing.assert_array_equal(valid, official_valid & usable)
    np.testing.assert_allclose(disparity[valid], official[valid], rtol=1e-6)
    assert (disparity[~valid] == 0).all()
    excess = int((official_valid & ~usable).sum())
    assert excess == CALLED_VALID_BY_THE_OFFICIAL_READERS_ONLY.get(name, 0)


@pytest.mark.parametrize(("name", "file"), [("big_endian_scale2", "big_endian_scale2.pfm"), ("color", "color.pfm")])
def test_pfm_agrees_with_the_official_reader(recorded, name, file):
    np.testing.assert_array_equal(read_pfm(FILES / file), recorded[name])


# ---------------------------------------------------------------------------------------------------------------------
# Formats
# ---------------------------------------------------------------------------------------------------------------------


def write_pfm(path, values, header="Pf\n{1} {0}\n-1.0\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.format(*values.shape).encode() + values[::-1].astype("<f4").tobytes())
    return path


def write_png16(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint16)).save(path)
    return path


@pytest.mark.parametrize("header", ["Pf\n{1} {0}\n-1.0\n", "Pf\r\n{1} {0}\r\n-1\r\n", "Pf {1}  {0} -2.5e+1 "])
def test_pfm_rows_stand_upside_down_and_white_space_is_free(tmp_path, header):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(read_pfm(write_pfm(tmp_path / "map.pfm", values, header)), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"map.pfm: must be a PFM file .*got b''"),
        (b"\x89PNG\r\n", r"map.pfm: must be a PFM file .*PNG"),
        (b"Pf\n3 2\n", "must be a PFM file"),
        (b"Pf\n3 2\n-1\n" + bytes(23), "must hold 24 bytes of 3x2x1 floats after its header; got 23"),
        (b"PF\n3 2\n-1\n" + bytes(73), "must hold 72 bytes of 3x2x3 floats after its header; got 73"),
        (b"Pf\n3 2\n0\n" + bytes(24), "must have a size and a scale other than 0"),
        (b"Pf\n0 2\n-1\n", "must have a size and a scale other than 0"),
    ],
)
def test_pfm_that_is_truncated_or_foreign(tmp_path, content, message):
    path = tmp_path / "map.pfm"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=message):
        read_pfm(path)


def test_png16_keeps_sixteen_bits(tmp_path):
    raw = [[0, 1, 300], [65535, 256, 255]]
    found = read_png16(write_png16(tmp_path / "depth.png", raw))
    assert found.dtype == np.uint16 and found.tolist() == raw


def test_png16_that_is_truncated_foreign_or_missing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 65536, (40, 50))
    path = write_png16(tmp_path / "depth.png", noise)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataFileError, match=r"depth.png: must be a 16-bit grey PNG; it cannot be decoded"):
        read_png16(path)
    Image.new("L", (3, 2)).save(path)
    with pytest.raises(DataFileError, match=r"depth.png: must be a 16-bit grey PNG; got a picture of mode 'L'"):
        read_png16(path)
    path.write_bytes(b"no picture at all")
    with pytest.raises(DataFileError, match=r"must be a 16-bit grey PNG; it cannot be decoded"):
        read_png16(path)
    with pytest.raises(DataFileError, match=r"gone.png: .*No such file"):
        read_png16(tmp_path / "gone.png")


@pytest.mark.parametrize(("mode", "color"), [("RGB", (10, 20, 30)), ("RGBA", (10, 20, 30, 0)), ("L", 10)])
def test_picture_of_every_usual_mode_becomes_rgb(tmp_path, mode, color):
    Image.new(mode, (3, 2), color).save(tmp_path / "frame.png")
    picture = read_picture(tmp_path / "frame.png")
    assert picture.shape == (2, 3, 3) and picture.dtype == np.uint8
    assert picture[1, 2].tolist() == ([10, 10, 10] if mode == "L" else [10, 20, 30])


def test_picture_is_not_turned_by_its_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (30, 20)).save(tmp_path / "frame.jpg", exif=exif)
    assert read_picture(tmp_path / "frame.jpg").shape == (20, 30, 3)


def test_picture_that_is_foreign_or_truncated(tmp_path):
    write_png16(tmp_path / "frame.png", [[1, 2]])
    with pytest.raises(DataFileError, match="frame.png: must be an 8-bit picture; got a picture of mode 'I;16'"):
        read_picture(tmp_path / "frame.png")
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(stream, "JPEG")
    (tmp_path / "frame.jpg").write_bytes(stream.getvalue()[:1500])
    with pytest.raises(DataFileError, match=r"frame.jpg: must be an 8-bit picture; it cannot be decoded"):
        read_picture(tmp_path / "frame.jpg")


def test_error_survives_a_process_border():
    error = pickle.loads(pickle.dumps(DataFileError("some/file.png", "is broken")))
    assert str(error) == "some/file.png: is broken" and error.path == "some/file.png"


# ---------------------------------------------------------------------------------------------------------------------
# Data sets: numbers worked out by hand
# ---------------------------------------------------------------------------------------------------------------------


def test_scene_flow_known_answer(tmp_path):
    values = np.array([[12.5, 0, -4], [np.inf, np.nan, 1024], [1023.5, -0.0, 3]], dtype=np.float32)
    disparity, valid = read_scene_flow(write_pfm(tmp_path / "map.pfm", values))
    assert valid.tolist() == [[True, True, False], [False, False, False], [True, True, True]]
    assert disparity.tolist() == [[12.5, 0, 0], [0, 0, 0], [1023.5, 0, 3]]


def test_scene_flow_of_three_channels():
    with pytest.raises(DataFileError, match=r"color.pfm: must be a map of one channel; got shape \[7, 11, 3\]"):
        read_scene_flow(FILES / "color.pfm")


def test_tartanair_known_answer(tmp_path):
    depth_m = np.array([[16, 0, -1], [np.inf, np.nan, 0.5]], dtype=np.float32)
    np.save(tmp_path / "depth.npy", depth_m)
    disparity, valid = read_tartanair(tmp_path / "depth.npy")
    assert valid.tolist() == [[True, False, False], [False, False, True]]
    assert disparity.tolist() == [[5, 0, 0], [0, 0, 160]]  # 320 px * 0.25 m / 16 m = 5 px


def test_tartanair_that_cannot_be_used(tmp_path):
    path = tmp_path / "depth.npy"
    with pytest.raises(DataFileError, match="depth.npy: must be a numpy file .*No such file"):
        read_tartanair(path)
    np.save(path, np.ones((20, 30)))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataFileError, match="depth.npy: must be a numpy file"):
        read_tartanair(path)
    path.write_bytes(b"")
    with pytest.raises(DataFileError, match="depth.npy: must be a numpy file"):
        read_tartanair(path)
    np.save(path, np.array([{"depth": 1}]), allow_pickle=True)
    with pytest.raises(DataFileError, match="depth.npy: must be a numpy file .*cannot be read"):
        read_tartanair(path)
    for array, found in ((np.ones((2, 3), dtype=int), r"int64 \[2, 3\]"), (np.ones(3), r"float64 \[3\]")):
        np.save(path, array)
        with pytest.raises(DataFileError, match=rf"must be a float array \[H,W\]; got {found}"):
            read_tartanair(path)


def test_crestereo_and_kitti_known_answers(tmp_path):
    path = write_png16(tmp_path / "map.png", [[0, 48, 65535]])
    assert read_crestereo(path).disparity.tolist() == [[0, 1.5, 65535 / 32]]
    assert read_kitti(path).disparity.tolist() == [[0, 0.1875, 65535 / 256]]
    assert read_crestereo(path).valid.tolist() == read_kitti(path).valid.tolist() == [[False, True, True]]


def test_falling_things_known_answer(tmp_path):
    path = write_png16(tmp_path / "000000.left.depth.png", [[0, 6000, 60000]])  # 0.6 m and 6 m
    settings = {"camera_settings": [{"intrinsic_settings": {"fx": 700.0}}, {"intrinsic_settings": {"fx": 1.0}}]}
    (tmp_path / "_camera_settings.json").write_text(json.dumps(settings))
    disparity, valid = read_falling_things(path)
    assert valid.tolist() == [[False, True, True]]
    np.testing.assert_allclose(disparity, [[0, 70, 7]], rtol=1e-6)  # 700 px * 0.06 m / 0.6 m = 70 px


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "_camera_settings.json: cannot be read .*No such file"),
        ("{", r"_camera_settings.json: must be JSON with camera_settings\[0\].intrinsic_settings.fx"),
        ('{"camera_settings": []}', "must be JSON with camera_settings"),
        ('{"camera_settings": [{"intrinsic_settings": {"fx": null}}]}', "must be JSON with camera_settings"),
        ('{"camera_settings": [{"intrinsic_settings": {"fx": 0}}]}', "must have a focal length fx > 0 px; got 0.0"),
    ],
)
def test_falling_things_without_camera(tmp_path, content, message):
    path = write_png16(tmp_path / "000000.left.depth.png", [[1]])
    if content is not None:
        (tmp_path / "_camera_settings.json").write_text(content)
    with pytest.raises(DataFileError, match=message):
        read_falling_things(path)


def test_vkitti2_known_answer(tmp_path):
    path = write_png16(tmp_path / "depth.png", [[1000, 65535, 65500, 65499, 0]])  # cm
    disparity, valid = read_vkitti2(path)
    assert valid.tolist() == [[True, False, False, True, False]]
    np.testing.assert_allclose(disparity, [[38.6230, 0, 0, 0.589674, 0]], rtol=1e-5)  # 725.0087 px * 0.532725 m / 10 m


def test_middlebury_known_answer(tmp_path):
    values = np.array([[3, np.inf, 5], [7, 8, 9]], dtype=np.float32)
    path = write_pfm(tmp_path / "disp0GT.pfm", values)
    Image.fromarray(np.array([[255, 255, 128], [0, 128, 255]], dtype=np.uint8)).save(tmp_path / "mask0nocc.png")
    assert read_middlebury(path).valid.tolist() == [[True, False, True], [False, True, True]]
    assert read_middlebury(path).disparity.tolist() == [[3, 0, 5], [0, 8, 9]]
    assert read_eth3d(path, "noc").valid.tolist() == [[True, False, False], [False, False, True]]
    assert read_eth3d(path, "noc").disparity.tolist() == [[3, 0, 0], [0, 0, 9]]


def test_middlebury_that_cannot_be_used(tmp_path):
    path = tmp_path / "disp0GT.pfm"
    shutil.copy(FILES / "middlebury/disp0GT.pfm", path)
    with pytest.raises(ValueError, match='`region` must be "all" or "noc"; got \'occ\''):
        read_middlebury(path, "occ")
    with pytest.raises(DataFileError, match="mask0nocc.png: must be an 8-bit grey picture; .*No such file"):
        read_middlebury(path)
    Image.new("L", (7, 11)).save(tmp_path / "mask0nocc.png")
    with pytest.raises(DataFileError, match=r"mask0nocc.png: .*size of disp0GT.pfm, \[7, 11\]; got \[11, 7\]"):
        read_middlebury(path)
    shutil.copy(FILES / "color.pfm", path)
    with pytest.raises(DataFileError, match="disp0GT.pfm: must be a map of one channel"):
        read_middlebury(path)
