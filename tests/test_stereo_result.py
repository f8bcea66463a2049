# SPDX-License-Identifier: Apache-2.0
"""The card of a trained stereo network: the run's own options, data and figures, and nothing of this machine."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from tests.stereo_network_helpers import make_small_igev, make_small_raft
from training.data_sources import DataSource
from training.stereo_options import StereoConfig
from training.stereo_result import command_line, data_lines, figure_lines, make_card, public_source

VALIDATION = {"step": 400, "validation_epe_px": 1.23456, "validation_bad3_percent": 7.5}


def make_config(output: Path, **changes) -> StereoConfig:
    options = {"network": "raft", "data": ("procedural:1", "pairs:/home/me/out/pairs:3", "hub:a/b@v1:4")}
    return StereoConfig(output=output, **(options | changes))


def make_run(config: StereoConfig, *lines: dict) -> SimpleNamespace:
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    accelerator = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    return SimpleNamespace(config=config, accelerator=accelerator, completed=500, micro_steps=3)


def front_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_card_of_a_run(tmp_path):
    config = make_config(tmp_path / "run", licence="cc-by-4.0", push_to_hub="me/raft", max_steps=500, weather="right")
    card = make_card(make_run(config, {"step": 50, "loss": 3.25}, VALIDATION), make_small_raft())
    front = front_of(card)
    assert front["license"] == "cc-by-4.0" and front["datasets"] == ["a/b"] and "base_model" not in front
    assert (
        "500 optimiser steps of 8 x 3 pairs on 2 processes (CPU), from random weights, last logged loss 3.25" in card
    )
    assert "Loss: zerostereo, pictures compared in 0..255." in card
    assert 'network = RAFTStereo.from_pretrained("me/raft").eval()' in card
    assert "from training.stereo_networks.raft_stereo import RAFTStereo" in card
    assert "| epe_px | 1.235 |" in card and "at step 400" in card
    assert "/home/me" not in card and str(tmp_path) not in card


def test_card_of_a_fine_tuning(tmp_path):
    published = make_config(tmp_path / "a", network=None, base="me/igev@v2", loss="supervised", data=("procedural:1",))
    card = make_card(make_run(published), make_small_igev())
    assert front_of(card)["base_model"] == "me/igev" and "license" not in front_of(card)
    assert "from `me/igev@v2`. Loss: supervised." in card and "--base me/igev@v2" in card
    assert "None: the run validated nothing." in card
    assert "datasets" not in front_of(card)
    (tmp_path / "raft.pth").write_bytes(b"")
    local = make_config(tmp_path / "b", network=None, base=str(tmp_path / "raft.pth"))
    card = make_card(make_run(local), make_small_raft())
    assert "base_model" not in front_of(card)
    assert "from `raft.pth`" in card and "--base raft.pth" in card and str(tmp_path) not in card


def test_the_command_has_what_is_not_the_default(tmp_path):
    config = make_config(
        tmp_path,
        trunk_channels=(8, 16, 24),
        max_gradient_norm=None,
        resume=True,
        stop_after_minutes=3.0,
        crop_size=(64, 96),
    )
    assert command_line(config) == (
        "python -m training.train_stereo --max-gradient-norm none --network raft --trunk-channels 8 16 24 "
        "--data procedural:1.0 --data pairs:pairs:3.0 --data hub:a/b@v1:4.0 --crop-size 64 96"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (DataSource("mfs35k", "/data/mfs/list.txt", 2.0), "mfs35k:list.txt:2.0"),
        (DataSource("hub", "a/b@v1", 0.5), "hub:a/b@v1:0.5"),
        (DataSource("procedural", None, 1.0), "procedural:1.0"),
    ],
)
def test_sources_lose_their_folders(source, expected):
    assert public_source(source) == expected


def test_shares_of_the_data():
    sources = [DataSource("procedural", None, 1.0), DataSource("hub", "a/b@v1", 4.0), DataSource("pairs", "/x/y", 3.0)]
    assert data_lines(sources)[2:] == [
        "| procedural scenes of this project | procedural | 12.5 % |",
        "| a/b@v1 | hub | 50 % |",
        "| y | pairs | 37.5 % |",
    ]


def test_figures_are_those_of_the_last_validation(tmp_path):
    earlier = {**VALIDATION, "step": 200, "validation_epe_px": 9.0}
    make_run(make_config(tmp_path), earlier, VALIDATION, {"step": 450, "loss": 1.0})
    text = "\n".join(figure_lines(tmp_path))
    assert "at step 400" in text and "| epe_px | 1.235 |" in text and "| bad3_percent | 7.5 |" in text
    assert "9" not in text.split("| Figure")[1]
