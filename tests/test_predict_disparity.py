# SPDX-License-Identifier: Apache-2.0
"""The prediction command: files of known disparities, folders, EXIF, sizes that differ, resume, refusals."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from tests.stereo_network_helpers import make_small_igev
from training import predict_disparity
from training.disparity_readers import read_pfm, read_png16
from training.predict_disparity import find_pairs, main
from training.stereo_inference import estimate_disparity, load_stereo_network
from training.stereo_networks.recurrent_stereo import StereoOutput


class RedChannel(torch.nn.Module):
    """A network whose disparity is the left picture's red less 5 px, so that a test decides what it says."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.shapes: list[list[int]] = []

    def forward(self, left, right, iterations, *, correlation):
        self.shapes.append(list(left.shape[2:]))
        return StereoOutput(left[:, :1] - 5, [], None, iterations)


@pytest.fixture
def network(monkeypatch) -> RedChannel:
    one = RedChannel()
    monkeypatch.setattr(predict_disparity, "load_stereo_network", lambda source, revision: one)
    return one


def save_red(path: Path, red: list[list[int]], **options) -> Path:
    values = np.array(red)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([values, 0 * values, 0 * values], axis=-1).astype(np.uint8)).save(path, **options)
    return path


def run(left: Path, right: Path, output: Path, *options: str) -> int:
    words = [str(left), str(right), "--network", "me/fixed", "--output", str(output), "--device", "cpu", *options]
    return main(words)


RED = [[5, 17, 205], [2, 6, 45]]
SAID = [[0, 12, 200], [-3, 1, 40]]


def test_files_of_one_pair(tmp_path, network, capsys):
    left, right = save_red(tmp_path / "l.png", RED), save_red(tmp_path / "r.png", RED)
    assert run(left, right, tmp_path / "out") == 0
    folder = tmp_path / "out/l"
    assert sorted(path.name for path in folder.iterdir()) == [
        "disparity.pfm",
        "disparity.png",
        "disparity_color.png",
        "result.json",
    ]
    expected = np.maximum(SAID, 0)
    np.testing.assert_allclose(read_pfm(folder / "disparity.pfm"), expected, atol=1e-4)
    facts = json.loads((folder / "result.json").read_text())
    assert facts["disparity_png"] == "px = (code - 1) / 256, code 0 = unknown"
    with Image.open(folder / "disparity.png") as picture:
        assert picture.info["Comment"] == facts["disparity_png"]
    np.testing.assert_allclose((read_png16(folder / "disparity.png") - 1.0) / 256, expected, atol=1 / 512 + 1e-4)
    assert facts["pixels_below_zero"] == 1
    assert facts["lowest_px"] == pytest.approx(-3, abs=1e-4) and facts["highest_px"] == pytest.approx(200, abs=1e-4)
    assert facts["request"]["iterations"] == 32 and facts["network"]["class"] == "RedChannel"
    with Image.open(folder / "disparity_color.png") as picture:
        assert picture.mode == "RGB" and picture.height > 2
    assert "1 pairs estimated, 0 were there already" in capsys.readouterr().out


def test_two_folders_go_together_by_name(tmp_path, network):
    for name, red in (("b/night.png", 20), ("a.png", 10)):
        save_red(tmp_path / "left" / name, [[red, red, red]])
        save_red(tmp_path / "right" / Path(name).with_suffix(".jpg"), [[red, red, red]])
    save_red(tmp_path / "left/.hidden.png", [[1]])
    (tmp_path / "right/notes.txt").write_text("no picture")
    assert run(tmp_path / "left", tmp_path / "right", tmp_path / "out") == 0
    assert read_pfm(tmp_path / "out/a/disparity.pfm").tolist() == [[5, 5, 5]]
    assert read_pfm(tmp_path / "out/b/night/disparity.pfm").tolist() == [[15, 15, 15]]
    assert len(list((tmp_path / "out").rglob("result.json"))) == 2


def test_pictures_are_turned_as_they_say(tmp_path, network):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    left = save_red(tmp_path / "l.png", [[10, 20, 30]], exif=exif)
    right = save_red(tmp_path / "r.png", [[10], [20], [30]])
    assert run(left, right, tmp_path / "out") == 0
    assert network.shapes == [[3, 1]] and read_pfm(tmp_path / "out/l/disparity.pfm").shape == (3, 1)


def test_unequal_sizes_are_refused_before_any_work(tmp_path, network, capsys):
    for name, right in (("a", [[1, 2, 3]]), ("b", [[1, 2], [1, 2]])):
        save_red(tmp_path / f"left/{name}.png", [[1, 2, 3]])
        save_red(tmp_path / f"right/{name}.png", right)
    assert run(tmp_path / "left", tmp_path / "right", tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert "`RIGHT` must have the size of `LEFT`; " in message and "left/b.png has 3x1 px and " in message
    assert "right/b.png 2x2 px" in message
    assert network.shapes == [] and not (tmp_path / "out").exists()


def test_pictures_without_partner(tmp_path):
    for name in ("a", "b", "c", "d", "e"):
        save_red(tmp_path / f"left/{name}.png", [[1]])
    save_red(tmp_path / "right/b.png", [[1]])
    save_red(tmp_path / "right/x.png", [[1]])
    with pytest.raises(FileNotFoundError) as caught:
        find_pairs(tmp_path / "left", tmp_path / "right", tmp_path / "out")
    assert str(caught.value) == (
        f"`RIGHT` must hold a picture of the same name for each of `LEFT`; {tmp_path}/left has 5 and {tmp_path}/right "
        f"2 pictures; without partner: {tmp_path}/left/a.png, {tmp_path}/left/c.png, {tmp_path}/left/d.png ...."
    )


def test_inputs_that_do_not_belong_together(tmp_path):
    file, folder = save_red(tmp_path / "left/a.png", [[1]]), tmp_path / "left"
    with pytest.raises(FileNotFoundError, match="`RIGHT` must exist; got .*gone.png"):
        find_pairs(file, tmp_path / "gone.png", tmp_path)
    with pytest.raises(ValueError, match="`RIGHT` must be a file as `LEFT` is; got .*left"):
        find_pairs(file, folder, tmp_path)
    with pytest.raises(ValueError, match="`RIGHT` must be a folder as `LEFT` is; got .*a.png"):
        find_pairs(folder, file, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty` must hold a picture .*; found none below it"):
        find_pairs(folder, tmp_path / "empty", tmp_path)
    save_red(tmp_path / "left/a.jpg", [[1]])
    with pytest.raises(ValueError, match="must not hold two pictures of one name; got .*a.jpg and .*a.png"):
        find_pairs(folder, folder, tmp_path)


@pytest.mark.parametrize(
    ("suffix", "kept", "message"),
    [("png", 0, "it cannot be opened"), ("png", 800, "it cannot be opened"), ("jpg", 1000, "it cannot be decoded")],
)
def test_a_broken_picture_is_named(tmp_path, network, capsys, suffix, kept, message):
    left, right = tmp_path / "l.png", tmp_path / f"r.{suffix}"
    random = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for path in (left, right):
        Image.fromarray(random).save(path)
    right.write_bytes(right.read_bytes()[:kept])
    assert run(left, right, tmp_path / "out") == 1
    assert re.search(f"r.{suffix}` must be a .*picture; {message}", capsys.readouterr().err)
    assert not list(tmp_path.rglob("disparity*")) and network.shapes == []


def test_finished_pairs_are_skipped_and_others_refused(tmp_path, network, capsys):
    left, right = save_red(tmp_path / "l.png", RED), save_red(tmp_path / "r.png", RED)
    assert run(left, right, tmp_path / "out") == run(left, right, tmp_path / "out") == 0
    assert len(network.shapes) == 1 and "0 pairs estimated, 1 were there already" in capsys.readouterr().out
    assert run(left, right, tmp_path / "out", "--iterations", "8") == 1
    assert "`output` must not hold results made otherwise; " in (error := capsys.readouterr().err)
    assert "differs in ['iterations']" in error
    save_red(right, [[0, 0, 0], [0, 0, 0]])
    assert run(left, right, tmp_path / "out") == 1
    assert "differs in ['right_sha256']" in capsys.readouterr().err


def test_a_foreign_folder_is_not_touched(tmp_path, network, capsys):
    left = save_red(tmp_path / "l.png", RED)
    (tmp_path / "out/l").mkdir(parents=True)
    (tmp_path / "out/l/thesis.txt").write_text("mine")
    assert run(left, left, tmp_path / "out") == 1
    assert "`output` must have no other file or folder where a result goes" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out/l").iterdir()] == ["thesis.txt"]


def test_a_killed_run_leaves_no_half_result(tmp_path, network, monkeypatch):
    for name in ("a", "b"):
        save_red(tmp_path / f"left/{name}.png", RED)
        save_red(tmp_path / f"right/{name}.png", RED)
    real, calls = predict_disparity.paint_disparity, []

    def killed(disparity):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(disparity)

    monkeypatch.setattr(predict_disparity, "paint_disparity", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "left", tmp_path / "right", tmp_path / "out")
    assert (tmp_path / "out/a/result.json").is_file() and not (tmp_path / "out/b").exists()
    assert run(tmp_path / "left", tmp_path / "right", tmp_path / "out") == 0
    assert len(network.shapes) == 3  # the first pair was not estimated again
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]


def test_a_disparity_that_is_no_number(tmp_path, network, monkeypatch, capsys):
    left = save_red(tmp_path / "l.png", RED)
    nothing = StereoOutput(torch.tensor([[[[1.0, float("inf")]]]]), [], None, 1)
    monkeypatch.setattr(RedChannel, "forward", lambda *arguments, **options: nothing)
    assert run(left, left, tmp_path / "out") == 1
    assert "`network` must give a finite disparity; got 1 pixels that are not for " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_that_make_no_sense(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, tmp_path, tmp_path / "out", "--iterations", "0")
    assert "`iterations` must be at least 1; got 0" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            run(tmp_path, tmp_path, tmp_path / "out", "--device", "cuda")
        assert "`device` must be there; got cuda" in capsys.readouterr().err


def test_a_real_pair_through_a_real_network(tmp_path):
    left, right, _ = skimage.data.stereo_motorcycle()
    make_small_igev().save_pretrained(tmp_path / "net")
    for name, picture in (("l.png", left), ("r.png", right)):
        Image.fromarray(picture[:200:2, :320:2]).save(tmp_path / name)
    words = [str(tmp_path / "l.png"), str(tmp_path / "r.png"), "--network", str(tmp_path / "net"), "--iterations", "2"]
    assert main([*words, "--device", "cpu", "--output", str(tmp_path / "out")]) == 0
    tensors = [torch.from_numpy(picture[:200:2, :320:2].copy()).movedim(-1, 0) for picture in (left, right)]
    expected = estimate_disparity(load_stereo_network(str(tmp_path / "net")), *tensors, iterations=2).disparity
    found = read_pfm(tmp_path / "out/l/disparity.pfm")
    assert found.shape == (100, 160) and found.std() > 0
    np.testing.assert_allclose(found, np.maximum(expected.numpy(), 0), atol=1e-2)
