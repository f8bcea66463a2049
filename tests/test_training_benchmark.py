# SPDX-License-Identifier: Apache-2.0
"""The benchmark of training: a whole run on a small data set, and the timed step on tiny networks."""

import json

import pytest
import torch

from benchmarks import training as benchmark
from tests.tiny_components import make_kl_autoencoder, make_unet
from training.stereo_datasets import VirtualKITTI2


def test_the_written_data_set_is_read_as_virtual_kitti(tmp_path):
    benchmark.write_data_set(tmp_path, 2, (32, 64))
    samples = VirtualKITTI2(tmp_path)
    assert len(samples) == 2 and samples[0]["left_image"].shape == (3, 32, 64)
    disparity = samples[0]["left_disparity"]
    scenes = benchmark.render_scenes(2, 32, 64, generator=benchmark.scene_generator(0, 0))
    near = (scenes.left_disparity[0] > 1) & samples[0]["valid_disparity_mask"]
    torch.testing.assert_close(disparity[near], scenes.left_disparity[0][near], rtol=0.01, atol=0.01)


def test_a_run_is_measured_by_its_own_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "VKITTI_SIZE", (64, 96))
    monkeypatch.setattr("training.inpainting_data.VALIDATION_VIEWS", 1)
    words = "--steps 4 --size 32 --batch-size 1 --workers 0 --json".split()
    benchmark.main([*words, str(tmp_path / "out.json")])
    figures = json.loads((tmp_path / "out.json").read_text())["run"]
    assert figures["samples_per_s"] > 0 and 0 <= figures["data_wait_share"] < 1
    assert "data_wait_share" in capsys.readouterr().out


def test_the_timed_step_learns():
    step = benchmark.Step(make_unet(), make_kl_autoencoder(), 1, 64, "cpu")
    losses = [step.learn(step.encode()).item() for _ in range(3)]
    assert losses[2] < losses[0]
    assert step.unet_seconds() > 0


def test_time_is_the_median_after_two_runs_for_warmth(monkeypatch):
    ticks = iter([0, 90, 90, 180, 180, 181, 181, 184, 184, 190])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(ticks))
    assert benchmark.seconds_of(lambda: None, "cpu", repeats=3) == 3


def test_rate_counts_two_operations_for_each_product(monkeypatch):
    monkeypatch.setattr(benchmark, "seconds_of", lambda work, device: 0.5)
    assert benchmark.matmul_rate("cpu", side=100) == pytest.approx(2 * 100**3 / 0.5 / 1e12)


def test_networks_are_those_of_stable_diffusion_2_inpainting():
    with torch.device("meta"):
        unet = benchmark.UNet2DConditionModel(**benchmark.UNET_CONFIG)
        vae = benchmark.AutoencoderKL(**benchmark.VAE_CONFIG)
    assert sum(p.numel() for p in unet.parameters()) == 865_925_124
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863


@pytest.mark.gpu
def test_full_size_on_a_gpu():
    figures = benchmark.measure_full_size(1, "cuda")
    assert 0 < figures["unet_share"] < 1 and figures["lora_peak_gb"] < figures["full_peak_gb"]
