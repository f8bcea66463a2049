# SPDX-License-Identifier: Apache-2.0
"""The command line: complete results or none, nothing of the user's touched, unreadable files named."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import synthesize
from pipeline_zerostereo import StereoImageProcessor, ZeroStereoPipelineOutput
from tests.tiny_components import (
    configured_prompt,
    make_depth_anything,
    make_sample_ddim,
    make_tiny_autoencoder,
    make_unet,
)
from training.pipeline_folder import write_pipeline_folder

EXPECTED_FILES = {
    "left.png",
    "right.png",
    "disparity.png",
    "disparity_color.png",
    "confidence.png",
    "hole_mask.png",
    "visible_mask.png",
    "warped.png",
    "side_by_side.png",
    "anaglyph.png",
    "result.json",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A pipeline folder of tiny untrained networks of the embedded weights' classes."""
    return write_pipeline_folder(
        tmp_path_factory.mktemp("weights") / "tiny",
        unet=make_unet(latent_channels=8),
        vae=make_tiny_autoencoder(),
        scheduler=make_sample_ddim(),
        depth_estimator=make_depth_anything(),
        masked_fill="background",
        latent_mask_reduction="max",
        default_num_inference_steps=1,
        empty_prompt_embeds=configured_prompt(),
    )


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two photographs of different sizes, one of them in a sub-folder."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    random = np.random.default_rng(3)
    PIL.Image.fromarray(random.integers(0, 256, (33, 47, 3), dtype=np.uint8)).save(folder / "wide.png")
    PIL.Image.fromarray(random.integers(0, 256, (51, 30, 3), dtype=np.uint8)).save(folder / "below" / "tall.png")
    return folder


def run(*arguments) -> int:
    return synthesize.main([str(argument) for argument in arguments])


def test_a_folder_becomes_complete_results(photos, tmp_path, weights, capsys):
    output = tmp_path / "out"
    assert run(photos, "--output", output, "--weights", weights, "--disparity-scale", 0.25) == 0
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("result.json")) == [
        "below/tall/result.json",
        "wide/result.json",
    ]
    assert {path.name for path in (output / "wide").iterdir()} == EXPECTED_FILES
    assert not list(output.rglob(".*")), "hidden partial folders are gone"

    left, right = (PIL.Image.open(output / "wide" / name) for name in ("left.png", "right.png"))
    assert np.array_equal(np.asarray(left), np.asarray(PIL.Image.open(photos / "wide.png")))
    result = json.loads((output / "wide" / "result.json").read_text())
    assert (result["disparity_scale"], result["width"], result["height"]) == (0.25, 47, 33)
    codes = np.asarray(PIL.Image.open(output / "wide" / "disparity.png")).astype(np.float64)
    disparity = (codes - 1) / result["disparity_png_scale"]
    assert disparity.shape == (33, 47) and 0 <= disparity.min() < disparity.max() <= 0.25 * 47 + 1 / 512
    holes = np.asarray(PIL.Image.open(output / "wide" / "hole_mask.png")) == 255
    warped = np.asarray(PIL.Image.open(output / "wide" / "warped.png"))
    assert holes.any() and np.array_equal(np.asarray(right)[~holes], warped[~holes]), "only holes are invented"
    side_by_side = np.asarray(PIL.Image.open(output / "wide" / "side_by_side.png"))
    assert np.array_equal(side_by_side[:, :47], np.asarray(left)), "left view on the left"

    printed = capsys.readouterr().out
    for name in EXPECTED_FILES:
        assert name in printed
    assert "px = (code - 1) / 256" in printed and "to 7.50 px" in printed, (
        "the files of the first photograph, below/tall.png"
    )


def test_finished_results_are_skipped_and_overwrite_makes_them_again(photos, tmp_path, weights, capsys, monkeypatch):
    output = tmp_path / "out"
    photo = photos / "wide.png"
    run(photo, "--output", output, "--weights", weights)
    before = (output / "wide" / "right.png").read_bytes()
    marker = output / "wide" / "marker"
    marker.touch()
    with monkeypatch.context() as patch:
        patch.setattr(synthesize.ZeroStereoPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
        assert run(photo, "--output", output, "--weights", weights) == 0
    assert marker.exists() and "1 of 1 photographs are finished" in capsys.readouterr().out
    assert run(photo, "--output", output, "--weights", weights, "--overwrite") == 0
    assert not marker.exists()
    assert (output / "wide" / "right.png").read_bytes() == before, "same photograph, same seed, same result"


def test_the_seed_and_the_bytes_decide_and_nothing_else(photos, tmp_path, weights):
    copy = tmp_path / "renamed.png"
    shutil.copyfile(photos / "wide.png", copy)
    run(photos / "wide.png", "--output", tmp_path / "a", "--weights", weights)
    run(photos, copy, "--output", tmp_path / "b", "--weights", weights)
    run(copy, "--output", tmp_path / "c", "--weights", weights, "--seed", 1)
    first = (tmp_path / "a" / "wide" / "right.png").read_bytes()
    assert (tmp_path / "b" / "renamed" / "right.png").read_bytes() == first
    scales = [
        json.loads((tmp_path / name / "result.json").read_text())["disparity_scale"]
        for name in ("a/wide", "c/renamed", "b/below/tall")
    ]
    assert len(set(scales)) == 3, "another seed or another photograph draws another scale"


def test_an_unreadable_file_is_named_and_the_rest_goes_on(photos, tmp_path, weights, capsys):
    (photos / "broken.jpg").write_text("no picture")
    truncated = (photos / "wide.png").read_bytes()[:900]
    (photos / "cut.png").write_bytes(truncated)
    PIL.Image.new("F", (9, 7)).save(photos / "float.tif")
    output = tmp_path / "out"
    assert run(photos, "--output", output, "--weights", weights) == 1
    errors = capsys.readouterr().err
    assert "3 of 5 photographs could not be used" in errors
    for name in ("broken.jpg", "cut.png", "float.tif"):
        assert name in errors
    assert "`image` must be a PIL image of 8 bits a channel" in errors
    assert sorted(path.parent.name for path in output.rglob("result.json")) == ["tall", "wide"]


def test_a_killed_write_leaves_no_result(photos, tmp_path, weights, monkeypatch):
    output = tmp_path / "out"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StereoImageProcessor, "anaglyph", killed)
        with pytest.raises(KeyboardInterrupt):
            run(photos / "wide.png", "--output", output, "--weights", weights)
    assert not (output / "wide").exists()
    half_written = output / ".wide.partial"
    half_written.mkdir(parents=True)
    (half_written / "left.png").write_bytes(b"half")
    assert run(photos / "wide.png", "--output", output, "--weights", weights) == 0
    assert {path.name for path in (output / "wide").iterdir()} == EXPECTED_FILES and not half_written.exists()


def test_an_older_result_stays_until_the_new_one_is_complete(tmp_path):
    target = tmp_path / "photo"
    target.mkdir()
    (target / "old").touch()
    pictures = StereoImageProcessor()
    map_of_zeros, mask = np.zeros((1, 5, 7), np.float32), np.zeros((1, 5, 7), bool)
    picture = PIL.Image.new("RGB", (7, 5))
    pair = ZeroStereoPipelineOutput(
        [picture], map_of_zeros, map_of_zeros, mask, mask, [picture], map_of_zeros, None, None, [picture], "right"
    )
    with pytest.raises(TypeError, match="not JSON serializable"):
        synthesize.write_result(target, picture, pair, pictures, {"seed": object()})
    assert (target / "old").exists()
    synthesize.write_result(target, picture, pair, pictures, {"seed": 1})
    assert {path.name for path in target.iterdir()} == EXPECTED_FILES
    assert [path.name for path in tmp_path.iterdir()] == ["photo"]


def test_photos_in_folders_are_found_in_order_without_hidden_files_and_earlier_results(tmp_path):
    names = ("b.JPG", "a.webp", ".hidden.png", "notes.txt", ".cache/c.png", "sub/z.tif")
    for name in (*names, "out/a/right.png", "out/a/result.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = synthesize.find_photos([tmp_path], tmp_path / "out")
    assert found == {
        tmp_path / "a.webp": tmp_path / "out" / "a",
        tmp_path / "b.JPG": tmp_path / "out" / "b",
        tmp_path / "sub" / "z.tif": tmp_path / "out" / "sub" / "z",
    }
    assert list(found)[0].name == "a.webp"


def test_inputs_that_cannot_be_are_named_before_any_work(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "same.png").touch()
    (tmp_path / "same.jpg").touch()
    with pytest.raises(FileNotFoundError, match=r"`PHOTO_OR_FOLDER` must exist; got .*missing\.jpg"):
        synthesize.find_photos([tmp_path / "missing.jpg"], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"must hold a photograph .*; found none in .*empty"):
        synthesize.find_photos([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"must not give two photographs one result .*same: .*same\.png and .*same\.jpg"
    ):
        synthesize.find_photos([tmp_path / "one", tmp_path / "same.jpg"], tmp_path / "out")
    assert run(tmp_path / "missing.jpg", "--output", tmp_path / "out") == 2
    assert "must exist" in capsys.readouterr().err


def test_the_same_photograph_twice_is_made_once(tmp_path):
    photo = tmp_path / "photo.png"
    photo.touch()
    assert synthesize.find_photos([photo, photo], tmp_path / "out") == {photo: tmp_path / "out" / "photo"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--disparity-scale", "0"], "--disparity-scale must lie in (0, 1]; got 0.0"),
        (["--disparity-scale", "1.5"], "--disparity-scale must lie in (0, 1]; got 1.5"),
        (["--steps", "0"], "--steps must be at least 1; got 0"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        pytest.param(
            ["--device", "cuda"],
            "--device must be there; got cuda, and this torch sees no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_wrong_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        synthesize.parse_arguments(["photo.png", "--output", "out", *arguments])
    assert message in capsys.readouterr().err


def test_seeds_are_stable_and_fit_a_generator():
    seed = synthesize.photo_seed(0, b"photo")
    assert seed == synthesize.photo_seed(0, b"photo") != synthesize.photo_seed(1, b"photo")
    assert seed != synthesize.photo_seed(0, b"photo2")
    torch.Generator().manual_seed(seed)
    assert 0 <= seed < 2**63


def test_a_folder_that_is_no_result_is_never_touched(photos, tmp_path, weights, capsys):
    mine = tmp_path / "out" / "wide" / "precious.txt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert run(photos / "wide.png", "--output", tmp_path / "out", "--weights", weights, "--overwrite") == 2
    assert "`--output` must have no other file or folder where a result goes; got" in capsys.readouterr().err
    assert mine.exists()


def test_no_result_goes_into_another(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a" / "b.jpg").touch()
    with pytest.raises(ValueError, match=r"must not give a result inside another, .*b in .*a: .*b\.jpg and .*a\.jpg"):
        synthesize.find_photos([tmp_path], tmp_path / "out")


def test_results_are_no_photographs_wherever_the_output_is(photos, weights):
    assert run(photos, "--output", photos, "--weights", weights) == 0
    before = sorted(photos.rglob("*"))
    assert run(photos, "--output", photos, "--weights", weights) == 0
    assert sorted(photos.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [(["--seed", "1"], "seed"), (["--disparity-scale", "0.2"], "disparity_scale"), (["--steps", "2"], "steps")],
)
def test_a_result_of_other_options_is_not_taken_for_this_one(photos, tmp_path, weights, capsys, change, named):
    photo, output = photos / "wide.png", tmp_path / "out"
    run(photo, "--output", output, "--weights", weights)
    before = (output / "wide" / "result.json").read_bytes()
    assert run(photo, "--output", output, "--weights", weights, *change) == 2
    error = capsys.readouterr().err
    assert f"differs from {photo} in ['{named}']: " in error and f"[{change[1]}] now" in error
    assert (output / "wide" / "result.json").read_bytes() == before


def test_a_result_of_another_photograph_is_not_taken_for_this_one(photos, tmp_path, weights, capsys):
    run(photos / "wide.png", "--output", tmp_path / "out", "--weights", weights)
    shutil.copyfile(photos / "below" / "tall.png", photos / "wide.png")
    assert run(photos / "wide.png", "--output", tmp_path / "out", "--weights", weights) == 2
    assert "['photo_sha256']" in capsys.readouterr().err


def test_out_of_memory_refuses_that_photograph_only(photos, tmp_path, weights, capsys, monkeypatch):
    whole = synthesize.ZeroStereoPipeline.__call__

    def hungry(pipe, image, **arguments):
        if image.shape[-1] == 47:
            raise torch.OutOfMemoryError("no memory")
        return whole(pipe, image, **arguments)

    monkeypatch.setattr(synthesize.ZeroStereoPipeline, "__call__", hungry)
    assert run(photos, "--output", tmp_path / "out", "--weights", weights) == 1
    assert "not enough memory: " + str(photos / "wide.png") in capsys.readouterr().err
    assert [path.parent.name for path in (tmp_path / "out").rglob("result.json")] == ["tall"]


def test_an_error_of_the_weights_is_not_blamed_on_a_photograph(photos, tmp_path, weights):
    with pytest.raises(ValueError, match="`num_inference_steps` must not exceed the 1000 steps of the scheduler"):
        run(photos, "--output", tmp_path / "out", "--weights", weights, "--steps", "5000")


def test_weights_that_are_not_there_are_named(photos, tmp_path, capsys):
    assert run(photos, "--output", tmp_path / "out", "--weights", tmp_path / "nowhere") == 2
    assert "--weights must be a pipeline folder or a reachable Hub id; got " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
