# SPDX-License-Identifier: Apache-2.0
"""Tests of what the benchmarks compute: figures with known answers, scenes that repeat, sheets of the right size."""

import json
import math
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from benchmarks import contact_sheet, embedded_quality, whole_job
from benchmarks.autoencoder import round_trip_psnr
from benchmarks.embedded_quality import (
    DepthScore,
    FillScore,
    correlation,
    finite_or_none,
    gradient_energy,
    held_out_batches,
    held_out_scene,
    interior_holes,
    judge,
    psnr,
    similarity_sum,
)
from pipeline_zerostereo import StereoImageProcessor, forward_warp
from tests.tiny_components import embedded_pipeline, make_disparity, make_photos
from training.eval_results import results_of


def holes(*rows: str) -> torch.Tensor:
    """Mask [1,1,H,W] from text: "#" is a hole."""
    return torch.tensor([[letter == "#" for letter in row] for row in rows])[None, None]


# --- figures ---


@pytest.mark.parametrize(
    ("squared_error", "values", "expected"),
    [(0.6, 6, 10.0), (0.03, 3, 20.0), (1.5, 6, 6.0206), (0.0, 5, math.inf), (0.0, 0, math.nan)],
)
def test_psnr(squared_error, values, expected):
    assert psnr(squared_error, values) == pytest.approx(expected, abs=1e-4, nan_ok=True)


def test_interior_holes_end_where_the_frame_does():
    mask = holes("##..#.##", ".#####..", "########", "...#....")
    assert torch.equal(interior_holes(mask), holes("##..#...", ".#####..", "........", "...#...."))


def test_gradient_energy_counts_pairs_inside_the_mask_only():
    image = torch.tensor([[0.0, 0.1, 0.4, 0.9], [0.5, 0.7, 0.4, 0.2]])[None, None].repeat(1, 2, 1, 1)
    image[:, 1] = 0.0  # the second channel adds nothing
    # Across: (.1 - .4)^2 in the first row; down: (.4 - .4)^2 and (.1 - .7)^2.
    # Across in the second row: (.7 - .4)^2. Pairs with a known pixel: left out.
    assert gradient_energy(image, holes(".##.", ".##.")) == pytest.approx(0.09 + 0.0 + 0.36 + 0.09, abs=1e-6)
    assert gradient_energy(image, holes(".#..", "..#.")) == 0.0  # diagonal neighbours are no pair
    assert gradient_energy(image * 2, holes(".##.", "....")) == pytest.approx(4 * 0.09, abs=1e-6)


def test_similarity_of_equal_views_is_one_on_every_hole():
    image = make_photos(2, 12, 17)
    mask = make_disparity(2, 12, 17) > 2
    assert similarity_sum(image, image, mask) == pytest.approx(int(mask.sum()), rel=1e-6)
    changed = torch.where(mask, 1 - image, image)
    assert similarity_sum(changed, image, mask) < 0.5 * int(mask.sum())


def test_similarity_of_flat_views_has_its_closed_form():
    a, b = torch.full((1, 3, 11, 13), 0.25), torch.full((1, 3, 11, 13), 0.75)
    mask = torch.zeros(1, 1, 11, 13, dtype=torch.bool)
    mask[..., 4:6, 5:8] = True  # 6 pixels, whose windows see nothing but the two levels
    constant = 0.01**2
    expected = (2 * 0.25 * 0.75 + constant) / (0.25**2 + 0.75**2 + constant)
    assert similarity_sum(a, b, mask) == pytest.approx(6 * expected, rel=1e-4)


def test_correlation_has_its_known_values():
    truth = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])[None, None].repeat(5, 1, 1, 1)
    prediction = torch.stack(
        [
            truth[0] * 0.25 + 3,
            -truth[0],
            torch.tensor([[[1.0, 3.0, 2.0], [4.0, 6.0, 5.0]]]),  # 1 - 6 * 4 / (6 * 35), ranks without ties
            torch.full((1, 2, 3), 0.7),
            truth[0],
        ]
    )
    truth[4] = 2.5
    found = correlation(prediction, truth)
    assert found[:4] == pytest.approx([1.0, -1.0, 1 - 24 / 210, 0.0], abs=1e-6)
    assert math.isnan(found[4])


def test_correlation_looks_at_known_pixels_only():
    truth = torch.tensor([1.0, 2.0, 9.0, 4.0]).view(1, 1, 1, 4)
    prediction = torch.tensor([2.0, 4.0, -50.0, 8.0]).view(1, 1, 1, 4)
    known = torch.tensor([True, True, False, True]).view(1, 1, 1, 4)
    assert correlation(prediction, truth, known) == pytest.approx([1.0], abs=1e-6)
    assert math.isnan(correlation(prediction, truth, torch.zeros_like(known))[0])


def test_fill_score_pools_pixels_and_not_scenes():
    """Two scenes with different numbers of holes: the pooled error is not the mean of both."""
    truth = make_photos(1, 8, 11) * 0.5
    score = FillScore("any", classical=True)
    small, large = torch.zeros(2, 1, 1, 8, 11, dtype=torch.bool)
    small[..., 2, 4:6] = True
    large[..., 1:7, 3:9] = True
    large[..., 3, 9:] = True  # 2 of 38 pixels of this row's run reach the frame, with all 6 left of them
    score.add(torch.where(small, truth + 0.2, truth), truth, small)
    score.add(torch.where(large, truth + 0.1, truth), truth, large)
    figures = score.figures()
    assert (score.pixels, score.interior_pixels) == (2 + 38, 2 + 38 - 8)
    assert figures["psnr_db"] == pytest.approx(-10 * math.log10((2 * 0.04 + 38 * 0.01) / 40), abs=1e-4)
    assert figures["interior_psnr_db"] == pytest.approx(-10 * math.log10((2 * 0.04 + 30 * 0.01) / 32), abs=1e-4)
    assert figures["gradient_energy_ratio"] == pytest.approx(1.0, abs=1e-5)  # a shift of level keeps the texture
    assert 0 < figures["ssim"] < 1


def test_fill_score_without_holes_has_no_figures():
    score = FillScore("any", classical=True)
    image = make_photos(1, 8, 11)
    score.add(image, image, torch.zeros(1, 1, 8, 11, dtype=torch.bool))
    assert all(math.isnan(value) for value in score.figures().values())


def test_depth_score_leaves_out_constant_scenes():
    score = DepthScore(
        correlation=[0.5, math.nan, 0.9, 0.1],
        ramp_correlation=[0.2, math.nan, 0.0, 0.1],
        flip_agreement=[0.8, 0.9, 0.7, 0.6],
    )
    assert score.figures() == pytest.approx(
        {
            "scenes": 3,
            "left_out": 1,
            "mean": 0.5,
            "median": 0.5,
            "ramp_mean": 0.1,
            "ramp_median": 0.1,
            "flip_agreement": 0.75,
        }
    )


def test_depth_score_compares_with_the_row_index():
    pipe = embedded_pipeline()
    disparity = torch.linspace(0, 7, 28).view(1, 1, 28, 1).repeat(2, 1, 1, 42)
    score = DepthScore()
    score.add(pipe, make_photos(2, 28, 42), disparity)
    assert score.ramp_correlation == pytest.approx([1.0, 1.0], abs=1e-6)
    assert all(-1 <= value <= 1 for value in score.correlation) and len(score.correlation) == 2
    assert all(0 < value <= 1 for value in score.flip_agreement)


@pytest.mark.parametrize(("gain", "depth", "expected"), [(0.6, 0.61, [True, True]), (0.4, 0.59, [False, False])])
def test_targets_compare_with_the_best_classical_fill(gain, depth, expected):
    def score(name: str, classical: bool, decibels: float) -> FillScore:
        return FillScore(name, classical, pixels=1, squared_error=3 * 10 ** (-decibels / 10))

    scores = [score("ours", False, 20 + gain), score("ours, 1 step", False, 99)]
    scores += [score("bad", True, 12), score("good", True, 20), score("middling", True, 17)]
    targets = judge(scores, {"mean": depth})
    assert [met for _, met in targets] == expected
    assert f"{gain:+.2f} dB on good" in targets[0][0]


def test_json_holds_no_infinite_number():
    record = {"a": [1.5, math.nan, {"b": math.inf}], "c": "text", "d": True, "e": 3}
    assert finite_or_none(record) == {"a": [1.5, None, {"b": None}], "c": "text", "d": True, "e": 3}


# --- scenes and fills ---


@pytest.fixture
def small_scenes(monkeypatch):
    monkeypatch.setattr(embedded_quality, "HEIGHT", 28)
    monkeypatch.setattr(embedded_quality, "WIDTH", 42)
    monkeypatch.setattr(embedded_quality, "SCENES_PER_BATCH", 2)


def test_scenes_depend_on_seed_and_index_only(small_scenes):
    batches = list(held_out_batches(seed=3, scenes=3))
    assert [indices for indices, _, _ in batches] == [[0, 1], [2]]
    alone = held_out_scene(3, 2)
    assert all(torch.equal(a, b) for a, b in zip(batches[1][1], alone, strict=True))
    assert not torch.equal(held_out_scene(4, 2).left_image, alone.left_image)


def test_donor_is_the_scene_before(small_scenes):
    (_, first, first_donor), (_, _, second_donor) = held_out_batches(seed=3, scenes=3)
    assert torch.equal(first_donor, torch.cat([held_out_scene(3, -1).left_image, first.left_image[:1]]))
    assert torch.equal(second_donor, first.left_image[1:])


def test_every_fill_gets_the_same_holes_and_its_own_noise(small_scenes):
    pipe = embedded_pipeline()
    scene = held_out_scene(3, 0)
    donor = held_out_scene(3, -1).left_image
    rows = embedded_quality.all_fills(pipe)
    found = embedded_quality.score_fills(rows, scene, donor, seeds=[0])
    warped = forward_warp(scene.left_image, scene.left_disparity)
    assert found == int(warped.right_hole_mask.sum()) > 0
    assert {score.pixels for score, _ in rows} == {found}
    names = [score.name for score, _ in rows]
    assert names[:3] == ["ours, 2 steps (default)", "ours, 1 step", "ours, 4 steps"] and len(names) == 7
    again = embedded_quality.all_fills(pipe)
    embedded_quality.score_fills(again, scene, donor, seeds=[0])
    assert [score for score, _ in rows] == [score for score, _ in again]
    text = embedded_quality.fill_table([score for score, _ in rows])
    assert len(text.splitlines()) == 2 + 7


def test_embedded_quality_runs_from_a_folder(small_scenes, tmp_path, capsys):
    weights, figures = tmp_path / "weights", tmp_path / "out" / "figures.json"
    embedded_pipeline(default_num_inference_steps=1).save_pretrained(weights)
    arguments = ["--weights", str(weights), "--scenes", "3", "--json", str(figures)]
    assert embedded_quality.main(arguments) == 0
    text = capsys.readouterr().out
    assert "| background-side row |" in text and "| vertical ramp |" in text and "Targets are judged on 200" in text
    record = json.loads(figures.read_text())
    assert len(record["held_out"]["depth"]["correlation"]) == 3 and record["targets"] == {}
    assert len(record["held_out"]["fills"]) == 6  # the default is one of the compared steps
    assert {name.split("/")[0] for name in record["weights"]} == {"unet", "vae", "depth_estimator"}
    assert all(len(checksum) == 64 for checksum in record["weights"].values())
    assert record["versions"]["torch"] == torch.__version__
    (result,) = results_of([figures], weights, "me/mine")
    assert (result.network, result.weights) == ("weights", record["weights"])
    assert result.figures["hole PSNR, dB"] == record["held_out"]["fills"][0]["psnr_db"]
    assert result.figures["depth correlation"] == record["held_out"]["depth"]["mean"]


def test_motorcycle_is_complete_after_filling():
    scene, known, donor = embedded_quality.load_motorcycle()
    assert scene.left_image.shape == scene.right_image.shape == donor.shape == (1, 3, 500, 741)
    assert scene.left_disparity.isfinite().all() and scene.left_disparity.min() > 0
    assert 0.9 < known.float().mean() < 0.95
    assert 0 <= donor.min() and donor.max() <= 1


# --- whole job ---


def test_stopwatch_keeps_results_and_adds_seconds():
    class Thing:
        def double(self, value: int) -> int:
            return 2 * value

        @classmethod
        def name(cls) -> str:
            return cls.__name__

    module = types.SimpleNamespace(triple=lambda value: 3 * value)
    seconds: dict[str, float] = {}
    whole_job.time_calls(Thing, "double", "a", seconds)
    whole_job.time_calls(Thing, "name", "b", seconds)
    whole_job.time_calls(module, "triple", "b", seconds)
    assert (Thing().double(21), Thing.name(), module.triple(5)) == (42, "Thing", 15)
    once = seconds["b"]
    module.triple(1)
    assert seconds["a"] > 0 and seconds["b"] > once


def test_whole_job_takes_medians_and_judges_them():
    answers = [
        {"seconds": {"load": load, "inpaint": 1.0, "other": 0.5, "total": total, "import": 9.0}, "peak_gib": peak}
        for load, total, peak in ((1.0, 11.0, 0.9), (3.0, 4.0, 2.5), (2.0, 5.0, 1.5))
    ]
    figures = whole_job.medians(answers)
    assert (figures["load"], figures["total"], figures["peak_gib"], figures["depth"]) == (2.0, 5.0, 1.5, 0.0)
    assert whole_job.targets_are_met(figures)
    text = whole_job.table(figures)
    assert "| whole job, after import | 5.00 s | under 10 s: met |" in text and "MISSED" not in text
    figures["peak_gib"] = 2.25
    assert not whole_job.targets_are_met(figures)
    assert "| peak memory | 2.25 GiB | under 2 GiB: MISSED |" in whole_job.table(figures)


# --- contact sheet ---


def test_holes_are_painted_over():
    warped = PIL.Image.fromarray(np.full((2, 3, 3), 7, np.uint8))
    painted = np.asarray(contact_sheet.paint_holes(warped, np.array([[False, True, False], [False, False, False]])))
    assert painted[0, 1].tolist() == [255, 0, 255] and painted.reshape(-1, 3).sum(1).tolist().count(21) == 5


def test_sheet_has_one_height_per_row_and_room_for_labels():
    wide, tall = PIL.Image.new("RGB", (40, 20), "red"), PIL.Image.new("L", (10, 50), 200)
    rows = [[contact_sheet.Panel("wide", wide), contact_sheet.Panel("tall", tall)], [contact_sheet.Panel("w", wide)]]
    sheet = contact_sheet.compose_sheet(rows, height=100)
    gap, label = contact_sheet.GAP, contact_sheet.LABEL_HEIGHT
    assert sheet.size == (200 + 20 + 3 * gap, gap + 2 * (label + 100 + gap))
    second = gap + label + 100 + gap
    assert sheet.getpixel((gap, gap + label)) == sheet.getpixel((gap + 199, second + label + 99)) == (255, 0, 0)
    assert sheet.getpixel((gap + 200 + gap, gap + label)) == (200, 200, 200)
    strip = np.asarray(sheet)[gap : gap + label]
    assert strip.min() < 128  # there is writing above the panels


def test_contact_sheet_is_written(tmp_path, capsys):
    weights, photo = tmp_path / "weights", tmp_path / "gate.png"
    embedded_pipeline().save_pretrained(weights)
    StereoImageProcessor.postprocess(make_photos(1, 28, 42), "pil")[0].save(photo)
    sizes = {}
    for name, flags in (("sheet.png", []), ("strip.jpg", ["--strip"])):
        output = tmp_path / "new" / name
        arguments = [str(photo), "--weights", str(weights), "--height", "40", "--output", str(output), *flags]
        assert contact_sheet.main(arguments) == 0
        with PIL.Image.open(output) as opened:
            sizes[name] = opened.size
    gap = contact_sheet.GAP
    assert sizes["sheet.png"] == (5 * (60 + gap) + gap, 2 * gap + contact_sheet.LABEL_HEIGHT + 40)
    assert sizes["strip.jpg"] == (4 * (60 + gap) + gap, sizes["sheet.png"][1])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["sheet.png", "strip.jpg"]
    assert f"{tmp_path / 'new' / 'sheet.png'}: " in capsys.readouterr().out


def test_default_photographs_are_installed():
    photos = contact_sheet.load_photos([])
    assert [name for name, _ in photos] == ["astronaut", "coffee", "chelsea", "rocket"]
    assert all(photo.mode == "RGB" for _, photo in photos)


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (embedded_quality, ["--scenes", "0"], "--scenes must be at least 1; got 0"),
        (embedded_quality, ["--weights", "absent"], "--weights must be a pipeline folder; got absent"),
        (whole_job, ["--runs", "0"], "--runs must be at least 1; got 0"),
        (whole_job, ["--weights", "absent"], "--weights must be a pipeline folder; got absent"),
        (contact_sheet, ["--output", "a.png", "--disparity-scale", "0"], r"must lie in \(0, 1\]; got 0.0"),
        (contact_sheet, ["--output", "a.png", "--height", "0"], "--height must be at least 1; got 0"),
        (contact_sheet, ["--output", "a.tiff"], "--output must end in .png or .jpg; got a.tiff"),
        (contact_sheet, ["--output", "a.png", "--weights", "absent"], "--weights must be a pipeline folder"),
    ],
)
def test_command_lines_say_what_is_wrong(module, arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        module.parse_arguments(arguments)
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_whole_job_is_light_before_its_probe():
    """A child process inherits the peak memory of its parent, so the parent must not load torch."""
    code = "import sys, benchmarks.whole_job; sys.exit('torch' in sys.modules)"
    root = Path(whole_job.__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_autoencoder_round_trip_of_a_known_error():
    """An autoencoder that gives everything back 0.1 too bright in [0,1] has an error of 20 dB."""

    class Brighter(torch.nn.Module):
        dtype = torch.float32
        config = types.SimpleNamespace(scaling_factor=2.0)

        def encode(self, image):
            return types.SimpleNamespace(latents=image)

        def decode(self, latents):
            return types.SimpleNamespace(sample=latents + 0.2)  # [-1,1] is twice as wide

    pipe = types.SimpleNamespace(image_processor=StereoImageProcessor(), vae=Brighter(), vae_scale_factor=4)
    photo = PIL.Image.new("RGB", (7, 5), (51, 102, 153))
    assert round_trip_psnr(pipe, photo) == pytest.approx(20.0, abs=1e-3)
