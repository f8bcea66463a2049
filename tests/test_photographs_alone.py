# SPDX-License-Identifier: Apache-2.0
"""The leave-one-photograph-out benchmark: its plan, its batches, its arithmetic, and that it goes on where it was."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import photographs_alone
from benchmarks.photographs_alone import (
    BATCH_SIZE,
    CROP,
    TEST_SCALES,
    Photo,
    Size,
    draw_batch,
    held_out_views,
    main,
    plan,
    summarize,
    table,
)
from tests.tiny_components import make_photos
from training.run import step_generator


def test_plan_leaves_each_photograph_out_and_finishes_a_seed_first():
    runs = plan(["a", "b"], seeds=2)
    assert len(runs) == len(set(runs)) == 2 * (1 + 2 * 2)
    assert runs[0] == ("scenes", None, 0) and {seed for _, _, seed in runs[:5]} == {0}
    assert ("half and half", "b", 1) in runs and ("photographs", "a", 0) in runs


def pool_of(value: float, pictures: int = 2) -> list[list[torch.Tensor]]:
    planes = [torch.full((3, channels, CROP, CROP + 4), value) for channels in (2, 2, 1)]
    return [planes] * pictures


def test_a_batch_holds_equal_parts_of_its_pools():
    batch = draw_batch([pool_of(1.0), pool_of(5.0, pictures=1)], step_generator(0, 0, 0))
    assert batch.target_latents.shape == (BATCH_SIZE, 2, CROP, CROP)
    assert batch.target_latents[:, 0, 0, 0].tolist() == [1] * (BATCH_SIZE // 2) + [5] * (BATCH_SIZE // 2)
    assert len(draw_batch([pool_of(1.0)], step_generator(0, 0, 0)).latent_mask) == BATCH_SIZE


def test_every_picture_of_a_pool_is_drawn():
    pool = [[torch.full((1, c, CROP, CROP), value) for c in (2, 2, 1)] for value in (1.0, 2.0, 3.0)]
    seen = set()
    for step in range(8):
        seen |= set(draw_batch([pool], step_generator(0, step, 0)).target_latents[:, 0, 0, 0].tolist())
    assert seen == {1, 2, 3}


def test_views_of_the_test_are_the_photograph_and_its_mirror_at_each_scale():
    image = make_photos(1, 16, 40)
    near = torch.linspace(0, 1, 40).expand(1, 1, 16, 40)
    truth, views = held_out_views(Photo("ramp", image, near))
    assert truth.shape == (2 * len(TEST_SCALES), 3, 16, 40)
    assert torch.equal(truth[2], image[0]) and torch.equal(truth[3], image[0].flip(-1))
    # as it is, the nearest column is the last: it moves out of the other eye's frame by scale x width
    holes = views.right_hole_mask[::2, 0, 8].sum(-1).tolist()
    assert holes == sorted(holes) and holes[-1] > holes[0] > 0
    known = ~views.right_hole_mask.expand_as(truth)
    assert (views.right_image - truth)[known].abs().mean() < 0.1


def made_up_figures() -> tuple[dict, dict]:
    figures = {
        (kind, name, seed): {"psnr_db": 10 * k + n + seed, "ssim": 0.5, "gradient_energy_ratio": 0.25 * seed}
        for k, kind in enumerate(photographs_alone.CONDITIONS)
        for n, name in enumerate(("a", "b"))
        for seed in range(3)
    }
    flat = {"psnr_db": 7.0, "ssim": 0.25, "gradient_energy_ratio": 1.0}
    return figures, {(fill, name): flat for fill in ("row fill", "embedded weights") for name in ("a", "b")}


def test_spread_is_over_the_seeds_of_the_mean_over_the_photographs():
    rows = {row["condition"]: row for row in summarize(*made_up_figures())}
    scenes = rows["scenes"]
    assert scenes["psnr_db"] == pytest.approx(11.5) and scenes["psnr_db_spread"] == pytest.approx(1.0)
    assert scenes["ssim_spread"] == 0 and scenes["gradient_energy_ratio_spread"] == pytest.approx(0.25)
    assert scenes["photographs"]["b"] == {"psnr_db": pytest.approx(12.0), "psnr_db_spread": pytest.approx(1.0)}
    assert rows["row fill"]["psnr_db"] == 7 and "psnr_db_spread" not in rows["row fill"]


def test_table_shows_mean_and_spread():
    lines = table(summarize(*made_up_figures())).splitlines()
    assert lines[0] == "| Trained on | a | b | PSNR, dB, mean | SSIM | texture |"
    expected = "| photographs | 1.00 ± 1.00 | 2.00 ± 1.00 | 1.50 ± 1.00 | 0.500 ± 0.000 | 0.25 ± 0.25 |"
    assert lines[2] == expected
    assert lines[-1] == "| embedded weights | 7.00 | 7.00 | 7.00 | 0.250 | 1.00 |"


@pytest.mark.slow
def test_it_runs_and_does_not_repeat_what_is_finished(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(photographs_alone, "PHOTOS", ("chelsea", "coffee"))
    monkeypatch.setattr(photographs_alone, "SMOKE", Size(seeds=1, steps=1, scenes=2, strengths=1))
    command = ["--work", str(tmp_path / "work"), "--smoke", "--json", str(tmp_path / "figures.json")]
    assert main(command) == 0
    record = json.loads((tmp_path / "figures.json").read_text())
    assert len(record["runs"]) == 2 + 2 * 2  # scenes are tested on both, the others on the one left out
    assert "| half and half |" in capsys.readouterr().out
    assert not list((tmp_path / "work").glob("*seed*.pt"))

    def refuse(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(photographs_alone, "train", refuse)
    assert main(command) == 0
    assert json.loads((tmp_path / "figures.json").read_text()) == record


def test_a_wrong_command_line_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--work", "out", "--start", "nothing"])
    assert "--start: invalid choice: 'nothing'" in capsys.readouterr().err
