# SPDX-License-Identifier: Apache-2.0
"""What a card says of a run: its command, its figures, and no path of the machine."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from training.base_model import InpaintingBase
from training.fine_tuning import FineTuningConfig
from training.inpainting_result import command_line, figure_lines, last_picture, training_lines
from training.public_parts import Part

HUB_PART = Part("me/base", "abc123", "mit", True, "as its card says")


def make_base(part: Part | None = HUB_PART) -> InpaintingBase:
    unet = nn.Linear(3, 2)
    unet.bias.requires_grad_(False)
    return InpaintingBase(unet, None, None, torch.zeros(1, 1, 1), {}, part=part)


def make_config(output: Path, **changes) -> FineTuningConfig:
    return FineTuningConfig(**({"base": "me/base", "data": ("procedural:1",), "output": output} | changes))


def test_command_makes_the_run_again_without_paths_of_the_machine(tmp_path):
    config = make_config(
        tmp_path / "secret" / "run",
        data=(f"photos:{tmp_path}/my photos:0.25", "procedural:1"),
        ema_decay=0.5,
        lora_rank=4,
        lora_targets=("to_q", "conv_in"),
        gradient_checkpointing=True,
        max_gradient_norm=None,
        depth_cache=tmp_path / "cache",
        resume=True,
    )
    command = command_line(config, make_base())
    expected = "--base me/base@abc123 --data 'photos:my photos:0.25' --data procedural:1.0"
    for words in (
        "python -m training.train_inpainting --output run ",
        "--max-gradient-norm none",
        "--ema-decay 0.5",
        "--lora-rank 4 --lora-targets to_q conv_in --gradient-checkpointing",
        "--depth-cache cache",
    ):
        assert words in command
    assert all(words in command for words in expected.split(" --data "))
    assert str(tmp_path) not in command and "--resume" not in command and "--batch-size" not in command


def test_a_folder_as_base_is_named_without_its_path(tmp_path):
    (tmp_path / "mine").mkdir()
    part = Part("local folder mine", "not versioned", None, False, "a local folder", folder=tmp_path / "mine")
    config = make_config(tmp_path / "run", base=str(tmp_path / "mine"))
    assert "--base mine " in command_line(config, make_base(part)) + " "


def write_log(output: Path, *lines: dict) -> Path:
    output.mkdir()
    (output / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return output


def test_figures_are_those_of_the_last_validation(tmp_path):
    early, late = ({"step": n, "validation_psnr_4_steps": 10.0 + n, "validation_ssim_4_steps": 0.5} for n in (3, 6))
    output = write_log(tmp_path / "run", early, {"step": 4, "loss": 0.25}, late, {"step": 7, "loss": 0.2})
    text = "\n".join(figure_lines(output))
    assert "at step 6" in text and "| psnr_4_steps | 16 |" in text and "| ssim_4_steps | 0.5 |" in text
    assert "13" not in text


def test_a_run_without_validation_says_so(tmp_path):
    assert figure_lines(write_log(tmp_path / "run")) == ["None: the run validated nothing."]
    assert last_picture(tmp_path / "run") == {}


def test_newest_picture_is_taken(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("step-000010.png", "step-000009.png"):
        (tmp_path / "pictures" / name).write_bytes(b"")
    assert last_picture(tmp_path)["validation.png"].name == "step-000010.png"


@pytest.mark.parametrize(("processes", "said"), [(1, "on 1 process (CPU)"), (2, "on 2 processes (CPU)")])
def test_training_is_described_by_the_runs_own_numbers(tmp_path, processes, said):
    lines = ({"step": n, "loss": 0.5 / n, "samples_per_s": 2.0 * n} for n in (1, 2))
    output = write_log(tmp_path / "run", *lines)
    run = SimpleNamespace(
        config=dataclasses.replace(make_config(output), batch_size=3),
        completed=2,
        micro_steps=5,
        accelerator=SimpleNamespace(num_processes=processes, device=torch.device("cpu")),
    )
    text = "\n".join(training_lines(run, make_base()))
    assert f"2 optimiser steps of 3 x 5 samples {said}" in text
    assert "3 samples a second; last logged loss 0.25" in text and "0.00 M parameters" in text
