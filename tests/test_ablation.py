# SPDX-License-Identifier: Apache-2.0
"""The ablation's runs, its statistics and what it says of them."""

import json
import math

import numpy as np
import PIL.Image
import pytest
import torch

from benchmarks import ablation, ablation_pairs
from benchmarks.ablation import (
    ROWS,
    Size,
    best_constant,
    compare_with_paper,
    motorcycle,
    paired_difference,
    parse_counts,
    summarize,
    table,
)
from benchmarks.ablation_pairs import DISPARITY_STEPS, Pairs
from training.stereo_loss import sequence_weights
from training.stereo_networks.raft_stereo import RAFTStereo

ROW = {row.name: row for row in ROWS}
CONSTANTS = {"procedural": 10.0, "Motorcycle": 7.0}


def seeds(*errors):
    return [
        {"procedural": {"error_px": e, "bad_percent": 10 * e}, "Motorcycle": {"error_px": 2 * e, "bad_percent": e}}
        for e in errors
    ]


def summary(**rows):
    """Summarise rows named by their order; each is compared with the first."""
    names = list(rows)
    figures = {name: seeds(*errors) for name, errors in rows.items()}
    return summarize(figures, {name: None if name == names[0] else names[0] for name in names}, CONSTANTS)


def test_differences_are_paired_by_seed():
    # -0.5, -0.4, -0.6: mean -0.5, deviation 0.1, standard error 0.1 / sqrt(3)
    difference = paired_difference([3.5, 4.6, 2.4], [4.0, 5.0, 3.0])
    assert difference.mean == pytest.approx(-0.5)
    assert difference.standard_error == pytest.approx(0.1 / math.sqrt(3))
    assert difference.verdict == "better"
    assert paired_difference([4.0, 5.0, 3.0], [3.5, 4.6, 2.4]).verdict == "worse"
    # -0.5, +0.3, -0.1: mean -0.1, standard error 0.23
    assert paired_difference([3.5, 5.3, 2.9], [4.0, 5.0, 3.0]).verdict == "not resolved at this budget"


def test_one_seed_resolves_nothing():
    assert paired_difference([1.0], [4.0]).verdict == "not resolved at this budget"


def test_rows_are_judged_only_where_networks_learned():
    lines = summary(first=[4.0, 4.2], better=[3.0, 3.1], idle=[6.0, 2.0])
    assert [line["verdict"] for line in lines] == ["", "better", "inconclusive"]
    assert [line["learned"] for line in lines] == [True, True, False]
    assert lines[1]["procedural error_px"] == pytest.approx(3.05)
    assert lines[1]["Motorcycle bad_percent"] == pytest.approx(3.05)
    assert lines[1]["difference_px"] == pytest.approx(-1.05)
    idle_first = summary(first=[6.0, 4.2], better=[3.0, 3.1])
    assert [line["verdict"] for line in idle_first] == ["inconclusive", "inconclusive"]


def test_half_of_the_constant_is_just_enough():
    assert summary(first=[5.0, 5.0])[0]["learned"]
    assert not summary(first=[5.0, 5.01])[0]["learned"]


def test_table_has_a_line_for_each_row_and_the_constant():
    text = table(summary(first=[4.0, 4.2], better=[3.0, 3.1]), CONSTANTS).splitlines()
    assert text[0].startswith("| Row | procedural: EPE, px | >3 px, % | Motorcycle: EPE, px |")
    assert text[3] == "| better | 3.05 | 30.5 | 6.10 | 3.0 | -1.05 ± 0.05 to first | better |"
    assert text[4] == "| best constant disparity | 10.00 | | 7.00 | | | |"
    assert len({line.count("|") for line in text}) == 1


def test_an_order_against_the_papers_is_reported():
    figures = {"Baseline": seeds(3.0, 3.1), "+ ADS": seeds(4.0, 4.2), "+ inpainting": seeds(2.0, 2.1)}
    lines = summarize(figures, {name: ROW[name].against for name in figures}, CONSTANTS)
    text = compare_with_paper(lines)
    assert "paper (Tab. 1, IGEV-Stereo, Middlebury EPE): + ADS; + inpainting; Baseline." in text
    assert "here: + inpainting; Baseline; + ADS." in text
    assert "Resolved against the paper: + ADS is worse than Baseline." in text


def test_best_constant_is_the_median():
    pairs = motorcycle()._replace(
        disparity=torch.tensor([1.0, 2.0, 9.0, 50.0]).view(1, 1, 2, 2),
        valid_mask=torch.tensor([True, True, True, False]).view(1, 1, 2, 2),
    )
    assert best_constant(pairs) == pytest.approx((1 + 0 + 7) / 3)


def test_motorcycle_is_halved():
    pairs = motorcycle()
    assert pairs.left_image.shape == pairs.right_image.shape == (1, 3, 250, 370)
    assert pairs.disparity.shape == (1, 1, 250, 370)
    known = pairs.disparity[pairs.valid_mask]
    assert 3.5 < known.min() < 4.5
    assert 28 < known.max() < 31
    assert not pairs.valid_mask.all()


def test_network_has_at_most_a_million_parameters():
    assert sum(p.numel() for p in RAFTStereo(**ablation.NETWORK).parameters()) <= 1_000_000


def test_rows_change_one_thing_each():
    for row in ROWS[1:]:
        other = ROW[str(row.against)]
        changed = [
            name
            for name in ("strength", "fill", "confidence", "photometric_range")
            if getattr(row, name) != getattr(other, name)
        ]
        assert len(changed) == (2 if row.name == "+ ADS + inpainting" else 1), row.name
    assert {row.photometric_range for row in ROWS} == {None, 255, 1}


class Constant(torch.nn.Module):
    """Says 5 px, then 6 px."""

    def forward(self, left, right, iterations):
        shape = (len(left), 1, *left.shape[-2:])
        return type("Output", (), {"refinements": [torch.full(shape, 5.0), torch.full(shape, 6.0)]})()


def loss_of(row):
    image = torch.randint(256, (2, 3, 16, 20), generator=torch.Generator().manual_seed(0)).byte()
    disparity = torch.full((2, 1, 16, 20), 8 * DISPARITY_STEPS, dtype=torch.int32)
    disparity[1] = 2 * DISPARITY_STEPS
    visible = torch.ones(2, 1, 16, 20, dtype=torch.bool)
    confidence = torch.full((2, 1, 16, 20), 51).byte()  # 0.2
    pairs = Pairs(image, image.flip(-1), disparity, confidence, visible, ~visible)
    return float(ablation.batch_loss(Constant(), pairs, ROW[row], torch.tensor([0]), "cpu"))


def test_losses_of_rows():
    first, last = sequence_weights(2)
    baseline = first * 3 + last * 2  # the first pair alone, 8 px
    assert loss_of("Baseline") == loss_of("+ ADS + inpainting") == pytest.approx(baseline)
    assert loss_of("+ TCG") == pytest.approx(0.2 * baseline)
    assert loss_of("+ ZeroStereo loss, 255") > loss_of("+ ZeroStereo loss, 1") > 0.2 * baseline + 1e-3


def test_a_picture_is_of_rows(capsys):
    with pytest.raises(SystemExit):
        ablation.parse_arguments(["--work", "x", "--picture", "a.png", "--max-pairs", "1k,2k"])
    assert "leave one out" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1k", "2k,1k", "4,4", "0,3", "1.5k,2k", "a,b"])
def test_counts_must_grow(text, capsys):
    with pytest.raises(SystemExit):
        ablation.parse_arguments(["--work", "x", "--max-pairs", text])
    assert "must be" in capsys.readouterr().err


def test_counts_and_steps():
    assert parse_counts("256,1k,4k") == [256, 1024, 4096]
    options = ablation.parse_arguments(["--work", "x", "--steps", "7"])
    assert ablation.choose_size(options) == Size(steps=7)


def test_steps_must_be_positive(capsys):
    with pytest.raises(SystemExit):
        ablation.parse_arguments(["--work", "x", "--batch-size", "0"])
    assert "--batch-size must be at least 1; got 0" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_are_kept_and_reported(tmp_path, monkeypatch, capsys):
    for name, value in {"CHUNK": 2, "HEIGHT": 64, "WIDTH": 96}.items():
        monkeypatch.setattr(ablation_pairs, name, value)
    monkeypatch.setattr(ablation, "HEIGHT", 64)
    monkeypatch.setattr(ablation, "WIDTH", 96)
    monkeypatch.setattr(ablation, "ROWS", ROWS[:2])
    monkeypatch.setattr(ablation, "SMOKE", Size(seeds=2, steps=2, pictures=4, test_pairs=2))
    json_file = tmp_path / "out.json"
    picture = tmp_path / "motorcycle.png"
    command = ["--work", str(tmp_path / "work"), "--smoke", "--json", str(json_file), "--picture", str(picture)]
    assert ablation.main(command) == 0
    first = json.loads(json_file.read_text())
    assert [line["row"] for line in first["rows"]] == ["Baseline", "+ ADS"]
    assert [len(line["seeds"]) for line in first["rows"]] == [2, 2]
    with PIL.Image.open(picture) as sheet:
        assert sheet.width == 4 * (370 + ablation.GAP) + ablation.GAP
        pixels = np.asarray(sheet.convert("RGB"))
    third, fourth = (pixels[ablation.TITLE :, x : x + 370] for x in (2 * 378 + 8, 3 * 378 + 8))
    assert (third != fourth).any()  # two rows, two networks
    folder = tmp_path / "work" / "runs" / "baseline-4pairs-2x1-seed1"
    assert isinstance(RAFTStereo.from_pretrained(folder), RAFTStereo)

    monkeypatch.setattr(ablation, "finish_run", None)  # a call would fail
    ablation.main(command)
    assert json.loads(json_file.read_text()) == first
    assert "| Baseline |" in capsys.readouterr().out


@pytest.mark.slow
def test_data_scale(tmp_path, monkeypatch, capsys):
    for name, value in {"CHUNK": 2, "HEIGHT": 64, "WIDTH": 96}.items():
        monkeypatch.setattr(ablation_pairs, name, value)
    monkeypatch.setattr(ablation, "HEIGHT", 64)
    monkeypatch.setattr(ablation, "WIDTH", 96)
    monkeypatch.setattr(ablation, "SMOKE", Size(seeds=1, steps=1, pictures=4, test_pairs=2))
    assert ablation.main(["--work", str(tmp_path), "--smoke", "--max-pairs", "2,4"]) == 0
    out = capsys.readouterr().out
    assert "| 2 pairs |" in out
    assert "to 2 pairs | inconclusive |" in out
