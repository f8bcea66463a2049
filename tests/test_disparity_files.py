# SPDX-License-Identifier: Apache-2.0
"""Files of disparities: read back by the readers, the servers' folders, and what servers would refuse."""

import numpy as np
import pytest

from training.disparity_files import SUBMISSIONS, check_method, submission_files, to_kitti_png, to_pfm, write_whole
from training.disparity_readers import read_kitti, read_pfm, read_png16

DISPARITY = np.array([[0.0, 1.001, -3.0], [255.9, 300.0, 17.5]], dtype=np.float32)


def test_kitti_png_is_read_back(tmp_path):
    write_whole(tmp_path / "map.png", to_kitti_png(DISPARITY))
    assert read_png16(tmp_path / "map.png").tolist() == [[1, 256, 1], [65510, 65535, 4480]]
    back = read_kitti(tmp_path / "map.png")
    assert back.valid.all() and back.disparity[1, 2] == 17.5
    assert abs(back.disparity[0, 1] - 1.001) <= 1 / 512


def test_pfm_is_read_back(tmp_path):
    write_whole(tmp_path / "map.pfm", to_pfm(DISPARITY))
    np.testing.assert_array_equal(read_pfm(tmp_path / "map.pfm"), np.maximum(DISPARITY, 0))


@pytest.mark.parametrize(
    ("kind", "name", "paths"),
    [
        ("kitti2012", "testing/colored_0/000003_10.png", ["000003_10.png"]),
        ("kitti2015", "testing/image_2/000003_10.png", ["disp_0/000003_10.png"]),
        ("middlebury", "testH/Crusade/im0.png", ["testH/Crusade/disp0Mine-2.pfm", "testH/Crusade/timeMine-2.txt"]),
        (
            "eth3d",
            "two_view_test/sand_box_1l/im0.png",
            ["low_res_two_view/sand_box_1l.pfm", "low_res_two_view/sand_box_1l.txt"],
        ),
    ],
)
def test_folders_of_the_servers(kind, name, paths):
    files = submission_files(kind, name, DISPARITY, 1.23456, "Mine-2")
    assert list(files) == paths and kind in SUBMISSIONS
    assert files[paths[0]] == (to_kitti_png if kind.startswith("kitti") else to_pfm)(DISPARITY)
    if len(paths) == 2:
        assert files[paths[1]] == {"middlebury": b"1.2346\n", "eth3d": b"runtime 1.2346\n"}[kind]


def test_what_a_server_would_refuse():
    with pytest.raises(ValueError, match="`kind` must be one of kitti2012, .*; got 'booster'"):
        submission_files("booster", "a/b.png", DISPARITY, 1.0, "Mine")
    for method in ("", "two words", "a/b", 41 * "a"):
        with pytest.raises(ValueError, match="`method` must be 1 to 40 letters, digits, - and _"):
            check_method(method)
    for encode in (to_kitti_png, to_pfm):
        with pytest.raises(ValueError, match="`disparity` must be finite everywhere; got 2 pixels that are not"):
            encode(np.array([[np.nan, 1, np.inf]]))
        with pytest.raises(ValueError, match=r"`disparity` must have the shape \[H,W\]; got \[1, 2, 3\]"):
            encode(np.zeros((1, 2, 3)))


def test_a_file_appears_whole(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "map.png"
    write_whole(target, b"first")
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_whole(target, b"second, longer")
    assert target.read_bytes() == b"first"
