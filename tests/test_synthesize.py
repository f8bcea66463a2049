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
    "stereo_LR.png",
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
    side_by_side = np.asarray(PIL.Image.open(output / "wide" / "stereo_LR.png"))
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
        synthesize.write_result(target, pair, pictures, {"seed": object()})
    assert (target / "old").exists()
    synthesize.write_result(target, pair, pictures, {"seed": 1})
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
        (["--format", "LR,png"], "must be names of views, maps, "),
        (["--format", "LR,png"], "default or all, separated by commas; got 'png'"),
        (["--format", ""], "separated by commas; got ''"),
        (["--format", "ply,LR"], "--fov-deg must be given for the point clouds ply; got none"),
        (["--format", "all"], "--fov-deg must be given for the point clouds ply, glb; got none"),
        (["--fov-deg", "180"], "--fov-deg must lie in (0, 180); got 180.0"),
        (["--convergence", "2.5"], "invalid int value: '2.5'"),
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
        if image.pixels.shape[-1] == 47:
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


FILES_OF_FORMATS = {
    "views": {"left.png", "right.png"},
    "maps": {"disparity.png", "confidence.png", "hole_mask.png", "visible_mask.png", "warped.png"},
    "disparity_color": {"disparity_color.png"},
    "tiff": {"disparity.tiff"},
    "pfm": {"disparity.pfm"},
    "LR": {"stereo_LR.png"},
    "RL": {"stereo_RL.png"},
    "SBS_half": {"stereo_SBS_half.png"},
    "RL_half": {"stereo_RL_half.png"},
    "TB": {"stereo_TB.png"},
    "TB_half": {"stereo_TB_half.png"},
    "mpo": {"stereo.mpo"},
    "anaglyph": {"anaglyph.png"},
    "anaglyph_color": {"anaglyph_color.png"},
    "anaglyph_half_color": {"anaglyph_half_color.png"},
    "anaglyph_optimized": {"anaglyph_optimized.png"},
    "anaglyph_gray": {"anaglyph_gray.png"},
    "anaglyph_true": {"anaglyph_true.png"},
    "wiggle_gif": {"wiggle.gif"},
    "wiggle_webp": {"wiggle.webp"},
    "wiggle_mp4": {"wiggle.mp4"},
    "ply": {"points.ply"},
    "glb": {"points.glb"},
}


def a_pair(height: int = 6, width: int = 9) -> tuple[PIL.Image.Image, ZeroStereoPipelineOutput]:
    """A left view and a made-up result of the pipeline."""
    disparity = np.linspace(0, 3, height * width, dtype=np.float32).reshape(1, height, width)
    mask = disparity > 2
    left, right = (
        PIL.Image.new("RGB", (width, height), (200, 9, 9)),
        PIL.Image.new("RGB", (width, height), (9, 9, 200)),
    )
    return left, ZeroStereoPipelineOutput(
        [right], disparity, disparity, mask, mask, [right], disparity / 3, None, None, [left], "right"
    )


@pytest.mark.parametrize("name", FILES_OF_FORMATS)
def test_each_format_writes_its_files_and_help_names_them(name, tmp_path):
    left, pair = a_pair()
    written = synthesize.write_result(tmp_path / "photo", pair, StereoImageProcessor(), {}, (name,), fov_deg=60)
    files = {path.name for path in (tmp_path / "photo").iterdir()}
    assert files == written.keys() == {*FILES_OF_FORMATS[name], "result.json"}
    assert all((tmp_path / "photo" / file).stat().st_size > 0 for file in files)
    assert all(file in synthesize.FORMATS[name] for file in FILES_OF_FORMATS[name])


def test_the_tests_know_every_format_and_the_default_is_the_usual_set():
    assert FILES_OF_FORMATS.keys() == synthesize.FORMATS.keys()
    usual = set().union(*(FILES_OF_FORMATS[name] for name in synthesize.DEFAULT_FORMATS))
    assert {*usual, "result.json"} == EXPECTED_FILES


def test_formats_are_read_once_each_in_one_order():
    assert synthesize.read_formats("pfm,LR,pfm,views") == ("views", "pfm", "LR")
    assert synthesize.read_formats("default") == synthesize.DEFAULT_FORMATS
    assert synthesize.read_formats("mpo,default") == ("views", "maps", "disparity_color", "LR", "mpo", "anaglyph")
    assert synthesize.read_formats("all") == tuple(synthesize.FORMATS)


def test_every_format_at_once_with_convergence(photos, tmp_path, weights):
    photo, output = photos / "wide.png", tmp_path / "out"
    options = ("--format", "all", "--fov-deg", 60, "--convergence", 4, "--disparity-scale", 0.25)
    assert run(photo, "--output", output, "--weights", weights, *options) == 0
    folder = output / "wide"
    assert {path.name for path in folder.iterdir()} == {"result.json"}.union(*FILES_OF_FORMATS.values())
    left, right = (np.asarray(PIL.Image.open(folder / name)) for name in ("left.png", "right.png"))
    assert left.shape == (33, 47, 3)
    of_left, of_right = left[:, 4:], right[:, :-4]
    for name, wanted in (
        ("stereo_LR.png", np.concatenate([of_left, of_right], axis=1)),
        ("stereo_RL.png", np.concatenate([of_right, of_left], axis=1)),
        ("stereo_TB.png", np.concatenate([of_left, of_right], axis=0)),
    ):
        assert np.array_equal(np.asarray(PIL.Image.open(folder / name)), wanted), name
    sizes = {name: PIL.Image.open(folder / name).size for name in ("stereo_SBS_half.png", "stereo_TB_half.png")}
    assert sizes == {"stereo_SBS_half.png": (44, 33), "stereo_TB_half.png": (43, 34)}
    for name in ("anaglyph.png", "anaglyph_true.png", "wiggle.gif", "wiggle.webp", "stereo.mpo"):
        assert PIL.Image.open(folder / name).size == (43, 33), name
    codes = np.asarray(PIL.Image.open(folder / "disparity.png")).astype(np.float64)
    exact = np.asarray(PIL.Image.open(folder / "disparity.tiff"))
    assert exact.dtype == np.float32 and np.abs((codes - 1) / 256 - exact).max() <= 1 / 512
    header = (folder / "points.ply").read_bytes()[:80]
    assert b"element vertex 1551" in header, "one point a pixel"
    result = json.loads((folder / "result.json").read_text())
    assert (result["request"]["convergence"], result["request"]["fov_deg"]) == (4, 60.0)


def test_only_what_is_asked_for_is_written(photos, tmp_path, weights):
    photo = photos / "wide.png"
    assert run(photo, "--output", tmp_path / "out", "--weights", weights, "--format", "RL,pfm") == 0
    folder = tmp_path / "out" / "wide"
    assert {path.name for path in folder.iterdir()} == {"stereo_RL.png", "disparity.pfm", "result.json"}
    assert "disparity_png_scale" not in json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--format", "views"], "'formats'"),
        (["--convergence", "3"], "'convergence'"),
        (["--format", "ply", "--fov-deg", "50"], "'fov_deg'"),
    ],
)
def test_results_of_other_formats_are_not_taken_for_finished(photos, tmp_path, weights, capsys, change, named):
    photo, output = photos / "wide.png", tmp_path / "out"
    before = ("--format", "ply", "--fov-deg", 60) if "ply" in change else ("--format", "LR")
    run(photo, "--output", output, "--weights", weights, *before)
    assert run(photo, "--output", output, "--weights", weights, *before) == 0
    assert (
        run(photo, "--output", output, "--weights", weights, *(() if "--format" in change else before), *change) == 2
    )
    assert f"differs from {photo} in [{named}]: " in capsys.readouterr().err


def test_the_field_of_view_matters_for_point_clouds_only(photos, tmp_path, weights):
    photo, output = photos / "wide.png", tmp_path / "out"
    run(photo, "--output", output, "--weights", weights, "--format", "LR")
    assert run(photo, "--output", output, "--weights", weights, "--format", "LR", "--fov-deg", 60) == 0


def test_a_photograph_that_a_format_cannot_hold_is_refused_alone(photos, tmp_path, weights, capsys):
    """wide.png is 47 px wide, tall.png 30."""
    output = tmp_path / "out"
    assert run(photos, "--output", output, "--weights", weights, "--format", "LR", "--convergence", -30) == 1
    errors = capsys.readouterr().err
    assert "tall.png: --convergence must leave at least one of 30 columns; got -30." in errors
    assert [path.parent.name for path in output.rglob("result.json")] == ["wide"]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("mpo", (65501, 9), "--format mpo must get 1 to 65500 px a side; got 65501 x 9"),
        ("wiggle_gif", (9, 65536), "--format wiggle_gif must get 1 to 65535 px a side; got 9 x 65536"),
        ("wiggle_webp", (16384, 9), "--format wiggle_webp must get 1 to 16383 px a side; got 16384 x 9"),
        ("wiggle_mp4", (16385, 9), "--format wiggle_mp4 must get 2 to 16384 px a side; got 16385 x 9"),
        ("wiggle_mp4", (9, 1), "--format wiggle_mp4 must get 2 to 16384 px a side; got 9 x 1"),
    ],
)
def test_sides_that_a_format_cannot_hold(name, size, message):
    options = synthesize.parse_arguments(["photo.png", "--output", "out", "--format", f"views,{name}"])
    with pytest.raises(ValueError, match=message):
        synthesize.check_size(*size, options)
    synthesize.check_size(*size, synthesize.parse_arguments(["photo.png", "--output", "out"]))
    options = synthesize.parse_arguments(
        ["photo.png", "--output", "out", "--format", name, "--convergence", str(max(0, size[0] - 1000))]
    )
    if size[0] > 1000:
        synthesize.check_size(*size, options)  # what is left after the convergence counts


def test_no_point_cloud_of_a_photograph_without_depth(photos, tmp_path, weights, capsys, monkeypatch):
    left, pair = a_pair()
    pair.disparity = np.zeros_like(pair.disparity)
    with pytest.raises(synthesize.NoDepthError, match="the disparity is 0 px everywhere: its points have no place"):
        synthesize.write_result(tmp_path / "photo", pair, StereoImageProcessor(), {}, ("ply",), fov_deg=60)
    assert not (tmp_path / "photo").exists()
    synthesize.write_result(tmp_path / "photo", pair, StereoImageProcessor(), {})
    whole = synthesize.make_point_clouds

    def flat_if_wide(pair, *arguments):
        return whole(a_flat_pair if pair.input_images[0].width == 47 else pair, *arguments)

    a_flat_pair = pair
    monkeypatch.setattr(synthesize, "make_point_clouds", flat_if_wide)
    output = tmp_path / "out"
    assert run(photos, "--output", output, "--weights", weights, "--format", "ply", "--fov-deg", 60) == 1
    assert "not usable: " + str(photos / "wide.png") in capsys.readouterr().err
    assert [path.parent.name for path in output.rglob("result.json")] == ["tall"]


def test_mp4_without_its_packages_is_refused_before_any_work(capsys, monkeypatch):
    def missing():
        raise ImportError("MP4 files need imageio and imageio-ffmpeg")

    monkeypatch.setattr(StereoImageProcessor, "require_mp4", missing)
    with pytest.raises(SystemExit):
        synthesize.parse_arguments(["photo.png", "--output", "out", "--format", "wiggle_mp4"])
    assert "--format wiggle_mp4: MP4 files need imageio and imageio-ffmpeg" in capsys.readouterr().err
    synthesize.parse_arguments(["photo.png", "--output", "out"])


def test_large_point_clouds_are_thinned(tmp_path, monkeypatch):
    left, pair = a_pair()
    monkeypatch.setattr(synthesize, "POINT_LIMIT", 10)
    written = synthesize.write_result(tmp_path / "a", pair, StereoImageProcessor(), {}, ("ply",), fov_deg=60)
    assert written["points.ply"].startswith("10 points, field of view 60 degrees")
    assert b"element vertex 10\n" in (tmp_path / "a" / "points.ply").read_bytes()


# --- either eye, strength, ways to fill ---


def test_both_eyes_have_files_of_their_own(photos, tmp_path, weights):
    output = tmp_path / "out"
    arguments = (photos / "wide.png", "--output", output, "--weights", weights, "--max-disparity-px", 12)
    assert run(*arguments, "--target-view", "both") == 0
    names = {path.name for path in (output / "wide").iterdir()}
    masks = {f"{view}_{name}.png" for view in ("left", "right") for name in ("hole_mask", "visible_mask", "warped")}
    assert names == (EXPECTED_FILES - {"hole_mask.png", "visible_mask.png", "warped.png"}) | masks | {"photo.png"}
    photo = np.asarray(PIL.Image.open(photos / "wide.png"))
    assert np.array_equal(np.asarray(PIL.Image.open(output / "wide" / "photo.png")), photo)
    for view in ("left", "right"):
        made, warped, hole = (
            np.asarray(PIL.Image.open(output / "wide" / name))
            for name in (f"{view}.png", f"{view}_warped.png", f"{view}_hole_mask.png")
        )
        assert np.array_equal(made[hole == 0], warped[hole == 0]) and (hole == 255).any()
    result = json.loads((output / "wide" / "result.json").read_text())
    assert result["disparity_scale"] == pytest.approx(12 / 47)
    with pytest.raises(SystemExit):
        run(*arguments, "--target-view", "middle")


def test_the_photograph_as_right_eye_filled_from_the_background(photos, tmp_path, weights):
    output = tmp_path / "out"
    arguments = ("--output", output, "--weights", weights, "--target-view", "left", "--fill", "background")
    assert run(photos / "wide.png", *arguments) == 0
    left, right = (np.asarray(PIL.Image.open(output / "wide" / name)) for name in ("left.png", "right.png"))
    assert np.array_equal(right, np.asarray(PIL.Image.open(photos / "wide.png"))) and not np.array_equal(left, right)
    assert json.loads((output / "wide" / "result.json").read_text())["num_inference_steps"] == 0


def test_strengths_and_steps_that_have_no_meaning(photos, tmp_path, capsys):
    for arguments, message in (
        (("--max-disparity-px", 0), "--max-disparity-px must be above 0; got 0.0"),
        (("--max-disparity-px", 9, "--disparity-scale", 0.1), "must not be given beside --disparity-scale"),
        (("--fill", "background", "--steps", 2), "--steps has no meaning with --fill background"),
    ):
        with pytest.raises(SystemExit):
            run(photos, "--output", tmp_path / "out", *arguments)
        assert message in capsys.readouterr().err


def test_a_strength_beyond_the_width_is_refused_for_that_photograph_alone(photos, tmp_path, weights, capsys):
    assert run(photos, "--output", tmp_path / "out", "--weights", weights, "--max-disparity-px", 40) == 1
    assert "--max-disparity-px must be at most the width, 30; got 40" in capsys.readouterr().err
    assert (tmp_path / "out" / "wide" / "result.json").is_file()
