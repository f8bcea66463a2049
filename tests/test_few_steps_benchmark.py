# SPDX-License-Identifier: Apache-2.0
"""The benchmark of few-step training: its network, its judgement, its pictures, and that it goes on where it was."""

import json
import math
from pathlib import Path

import PIL.Image
import pytest
import torch

from benchmarks import few_steps
from benchmarks.few_steps import (
    COLORS,
    METRICS,
    STEP_COUNTS,
    judge,
    main,
    make_noise_unet,
    make_scheduler,
    plot,
    table,
)

Curves = dict[str, dict[int, dict[str, float]]]


def make_curves(after_psnr: float = 18.0, after_texture: float = 0.8) -> Curves:
    """Flat curves: before at 15 dB with texture 1.5, after as told, and a little more texture with 50 steps."""

    def flat(psnr: float, texture: float) -> dict[int, dict[str, float]]:
        return {n: dict(zip(METRICS, (psnr, texture, 0.4), strict=True)) for n in STEP_COUNTS}

    curves = {name: flat(15.0, 1.5) for name in COLORS}
    curves["after"] = flat(after_psnr, after_texture)
    curves["after"][50]["gradient_energy_ratio"] = 1.05 * after_texture
    return curves


def test_the_network_begins_as_all_is_noise():
    unet, sample = make_noise_unet(), torch.randn(2, 17, 16, 16, generator=torch.Generator().manual_seed(0))
    found = unet(sample, torch.tensor([3, 900]), encoder_hidden_states=torch.zeros(2, 1, 32), return_dict=False)[0]
    assert torch.equal(found, sample[:, :8])
    assert unet.conv_out.weight.requires_grad


def test_the_published_sampler_is_leading_and_offset_by_one():
    published, trailing = make_scheduler("leading"), make_scheduler("trailing")
    for scheduler in (published, trailing):
        scheduler.set_timesteps(50)
        assert scheduler.config.prediction_type == "epsilon"
    assert published.timesteps[:2].tolist() == [981, 961] and published.timesteps[-1] == 1
    assert trailing.timesteps[:2].tolist() == [999, 979] and trailing.timesteps[-1] == 19


@pytest.mark.parametrize(
    ("psnr", "texture", "change", "expected"),
    [
        (18.0, 0.8, {}, [True, True, True]),
        (18.0, 0.5, {}, [True, True, False]),
        (14.7, 0.8, {}, [False, True, True]),  # behind the best of before
        (18.0, 0.8, {(1, "psnr_db"): 18.3}, [False, True, True]),  # behind its own first step
        (18.0, 0.8, {(4, "gradient_energy_ratio"): 0.7}, [True, False, True]),
        (18.0, 0.8, {(4, "gradient_energy_ratio"): 1.0}, [True, False, True]),
    ],
)
def test_targets(psnr: float, texture: float, change: dict, expected: list[bool]):
    curves = make_curves(psnr, texture)
    for (steps, metric), value in change.items():
        curves["after"][steps][metric] = value
    assert [met for _, met in judge(curves)] == expected


def test_table_holds_every_figure():
    lines = table(make_curves()).splitlines()
    assert len(lines) == 2 + len(COLORS)
    assert lines[2].startswith("| before, leading | 15.00 / 1.50 / 0.400 |")
    assert lines[-1].endswith("| 18.00 / 0.84 / 0.400 |")


def test_plot_shows_every_curve_in_its_colour():
    picture = plot(make_curves())
    colors = {color for _, color in picture.getcolors(1 << 20)}
    assert set(COLORS.values()) <= colors
    assert picture.width == 3 * 330


def test_plot_keeps_noise_without_end_inside_its_panel():
    curves = make_curves()
    curves["before"][1]["gradient_energy_ratio"] = 1000.0
    assert plot(curves).size == plot(make_curves()).size


@pytest.mark.slow
def test_it_runs_and_does_not_repeat_what_is_finished(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(few_steps, "STEP_COUNTS", (1, 4, 50))
    monkeypatch.setattr(few_steps, "BATCH_SIZE", 2)
    command = ["--work", str(tmp_path / "work"), "--smoke", "--json", str(tmp_path / "curves.json")]
    assert main(command) == 0
    record = json.loads((tmp_path / "curves.json").read_text())
    assert set(record["curves"]) == set(COLORS) and set(record["curves"]["after"]) == {"1", "4", "50"}
    assert all(
        math.isfinite(value) for curve in record["curves"].values() for one in curve.values() for value in one.values()
    )
    with PIL.Image.open(tmp_path / "work" / "fills.png") as picture:
        assert picture.size == (128 * 7, 96 * 2)
    assert (tmp_path / "work" / "curves.png").stat().st_size < 100_000
    assert "| after |" in capsys.readouterr().out

    def refuse(*arguments, **options):
        raise AssertionError("done again")

    monkeypatch.setattr(few_steps, "fill", refuse)
    assert main(command) == 0
    assert json.loads((tmp_path / "curves.json").read_text()) == record
