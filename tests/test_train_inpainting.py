# SPDX-License-Identifier: Apache-2.0
"""The inpainting script: it learns, a killed run goes on exactly, and what it writes loads as it was trained."""

import dataclasses
import json
import subprocess
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

from pipeline_zerostereo import ZeroStereoPipeline
from tests.loopback_hub import LoopbackHub
from tests.tiny_components import embedded_pipeline, make_photos, make_unet, write_base, write_sdxl_base
from tests.training_helpers import POOL_OPTIONS, assert_same_run, checkpoint_tensors, log_lines
from tests.two_processes import ENVIRONMENT, ROOT, kill_with_descendants, launch_command, run_module
from training import inpainting_data, scene_sampling
from training.fine_tuning import FineTuningConfig
from training.inpainting_from_scratch import FromScratchConfig
from training.lora import add_lora
from training.public_parts import PartError
from training.run import list_checkpoints
from training.train_autoencoder import make_autoencoder
from training.train_inpainting import main, train

MODULE = "training.train_inpainting"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny pipeline folder with a depth network."""
    folder = tmp_path_factory.mktemp("base") / "base"
    embedded_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def few_views(monkeypatch) -> None:
    monkeypatch.setattr(inpainting_data, "VALIDATION_VIEWS", 2)


def make_config(base: Path, output: Path, **changes) -> FineTuningConfig:
    options = {
        "base": str(base),
        "data": ("procedural:1",),
        "crop_size": 32,
        "workers": 0,
        "batch_size": 2,
        "max_steps": 4,
        "warmup_steps": 1,
        "learning_rate": 2e-3,
        "save_every_steps": 2,
        "validate_every_steps": 4,
        "log_every_steps": 2,
        "tracker": "none",
    }
    return FineTuningConfig(output=output, **(options | changes))


def output_of(unet, channels: int = 17, prompt_channels: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    sample = torch.randn((1, channels, 16, 16), generator=generator)
    prompt = torch.randn((1, 2, prompt_channels), generator=generator)
    for parameter in unet.parameters():  # in place within a file they lie unaligned, where sums end in other bits
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        return unet.eval()(sample, 500, encoder_hidden_states=prompt).sample


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_size": 30}, "`crop_size` must be a multiple of 4 px for --base; got 30"),
        ({"push_to_hub": "me/tuned"}, "`push_to_hub` needs a base whose authors state a licence; got local folder"),
        ({"lora_rank": 2, "lora_targets": ("to_x",)}, "`lora_targets` must be ends of the names"),
        ({"total_batch_size": 3}, "`total_batch_size` must be a multiple of"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_step(base, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(make_config(base, tmp_path / "run", **changes))
    assert not list_checkpoints(tmp_path / "run")


def test_a_missing_base_is_named(tmp_path):
    with pytest.raises(PartError, match="`--base` must be a local folder or a repository .*; got 'me/nothing'"):
        train(make_config(Path("me/nothing"), tmp_path / "run"))


def test_help_of_both_ways_of_working(capsys):
    for words, expected in ((["--help"], "--lora-rank"), (["--pool", "p", "--help"], "--smallest-crop")):
        with pytest.raises(SystemExit):
            main(words)
        assert expected in capsys.readouterr().out


# --- results ---


def test_fine_tuning_ends_as_a_pipeline_folder_that_does_as_training_did(base, tmp_path):
    vae_before = load_file(base / "vae/diffusion_pytorch_model.safetensors")
    folder = train(
        make_config(
            base, tmp_path / "run", latent_mask="nearest", masked_fill="zero", total_batch_size=4, ema_decay=0.5
        )
    )
    assert folder == tmp_path / "run/pipeline"
    pipe = ZeroStereoPipeline.from_pretrained(folder)
    assert (pipe.config.latent_mask_reduction, pipe.config.masked_fill) == ("nearest", "zero")
    assert pipe.config.default_depth_resolution == 42 and pipe.depth_estimator is not None
    tensors = checkpoint_tensors(tmp_path / "run")
    averages = [value for name, value in tensors.items() if name.startswith("average.")]
    for found, average in zip(pipe.unet.parameters(), averages, strict=True):
        assert torch.equal(found, average.half().float())
    for name, value in pipe.vae.state_dict().items():
        assert torch.equal(value, vae_before[name].half().float())
    changed = [n for n, p in make_unet(8).state_dict().items() if not torch.equal(p, tensors[f"network.{n}"])]
    assert len(changed) > 50
    pipe.set_progress_bar_config(disable=True)
    assert len(pipe(make_photos(1, 40, 56), disparity_scale=0.1).images) == 1
    assert log_lines(tmp_path / "run")[-1]["validation_psnr_2_steps"] > 0


def test_card_holds_the_figures_of_the_run_and_no_path_of_this_machine(base, tmp_path):
    folder = train(make_config(base, tmp_path / "run", push_to_hub=None))
    card = (folder / "README.md").read_text()
    validation = log_lines(tmp_path / "run")[-1]
    assert f"| psnr_2_steps | {validation['validation_psnr_2_steps']:.4g} |" in card
    assert "4 optimiser steps of 2 x 1 samples on 1 process (CPU)" in card
    assert "--base base" in card and "--learning-rate 0.002" in card and "--data procedural:1" in card
    assert str(tmp_path) not in card.replace(str(folder), "") and str(base) not in card
    with Image.open(folder / "validation.png") as picture:
        assert picture.size == (4 * 32, 2 * 32)


@pytest.mark.parametrize("ema_decay", [None, 0.75])
def test_lora_ends_as_a_file_that_loads_as_it_was_trained(base, tmp_path, require, ema_decay):
    require("peft")
    targets = ("to_q", "to_v", "conv_in")
    config = make_config(
        base, tmp_path / "run", lora_rank=4, lora_alpha=16, lora_targets=targets, ema_decay=ema_decay, max_steps=3
    )
    folder = train(config)
    trained = make_unet(8)
    add_lora(trained, 4, 16, targets)
    tensors = checkpoint_tensors(tmp_path / "run")
    state = {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}
    assert state and all("lora_" in name for name in state), "a checkpoint holds what learns and nothing else"
    if ema_decay is not None:
        order = [name for name, p in trained.named_parameters() if p.requires_grad]
        state = dict(zip(order, [v for n, v in tensors.items() if n.startswith("average.")], strict=True))
    trained.load_state_dict(state, strict=False)
    pipe = ZeroStereoPipeline.from_pretrained(base)
    plain = output_of(pipe.unet)
    pipe.load_lora_weights(folder)
    assert torch.equal(output_of(pipe.unet), output_of(trained))
    assert not torch.equal(output_of(trained), plain)
    card = (folder / "README.md").read_text()
    assert "load_lora_weights(" in card and "| psnr_2_steps |" in card
    loaded = ZeroStereoPipeline.from_pretrained(base)
    assert torch.equal(output_of(loaded.unet), plain)


def test_sdxl_inpainting_unet_is_trained(tmp_path):
    folder = train(make_config(write_sdxl_base(tmp_path / "sdxl"), tmp_path / "run", crop_size=64, max_steps=2))
    assert folder == tmp_path / "run/unet"
    unet = UNet2DConditionModel.from_pretrained(folder)
    assert unet.config.addition_embed_type == "text_time"
    assert torch.isfinite(torch.tensor(log_lines(tmp_path / "run")[0]["loss"]))


def test_published_layout_is_trained_by_the_papers_loss(tmp_path):
    words = ["--base", str(write_base(tmp_path / "base")), "--data", "procedural:1", "--output", str(tmp_path / "run")]
    words += "--preset paper --mixed-precision no --batch-size 1 --total-batch-size 2 --max-steps 1".split()
    main([*words, *"--crop-size 64 --workers 0 --tracker none".split()])
    pipe = ZeroStereoPipeline.from_pretrained(tmp_path / "run/pipeline")
    assert pipe.config.empty_prompt_embeds["shape"] == [2, 32] and pipe.config.default_num_inference_steps == 50
    assert (pipe.config.latent_mask_reduction, pipe.config.masked_fill) == ("nearest", "zero")
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert 0.5 < log_lines(tmp_path / "run")[0]["loss"] < 3.0  # noise of variance 1 against an untrained prediction


# --- data and options of a step ---


def write_photographs(folder: Path) -> Path:
    folder.mkdir()
    for i, photo in enumerate(make_photos(2, 48, 64)):
        picture = Image.fromarray((photo * 255).byte().permute(1, 2, 0).numpy())
        picture.save(folder / f"{i}.png")
    return folder


def test_photographs_and_scenes_are_mixed_and_depth_is_estimated_once(base, tmp_path, monkeypatch):
    photos = write_photographs(tmp_path / "photos")
    data = (f"photos:{photos}:2", "procedural:1")
    options = {"data": data, "validation_data": (f"photos:{photos}:1",), "batch_size": 3, "predicted_disparity": True}
    options |= {"depth_cache": tmp_path / "depth", "max_steps": 2}
    train(make_config(base, tmp_path / "first", **options))
    assert len(list((tmp_path / "depth").rglob("*.npy"))) == 2

    def refuse(*arguments, **named):
        raise AssertionError("estimated again")

    monkeypatch.setattr(ZeroStereoPipeline, "estimate_inverse_depth", refuse)
    train(make_config(base, tmp_path / "second", **options))
    assert_same_run(tmp_path / "first", tmp_path / "second")


def test_photographs_without_a_depth_network_are_refused(tmp_path):
    photos = write_photographs(tmp_path / "photos")
    config = make_config(write_base(tmp_path / "base"), tmp_path / "run", crop_size=64, data=(f"photos:{photos}:1",))
    with pytest.raises(ValueError, match="`depth_pipeline` must be a pipeline folder with a depth estimator"):
        train(config)


def test_kept_latents_are_used_again_with_new_noise(base, tmp_path, monkeypatch):
    encoded = []
    encode = inpainting_data.encode_pair
    monkeypatch.setattr(inpainting_data, "encode_pair", lambda *a: encoded.append(1) or encode(*a))
    config = make_config(base, tmp_path / "whole", latent_cache=2, max_steps=5, log_every_steps=1, learning_rate=0.0)
    train(config)
    assert len(encoded) == 2
    losses = [line["loss"] for line in log_lines(tmp_path / "whole") if "loss" in line]
    assert len(set(losses)) == 5  # the same samples at steps 0, 2 and 4, other noise
    kept = sorted((tmp_path / "whole/latents/process-0").iterdir())
    assert [path.name for path in kept] == ["000000.safetensors", "000001.safetensors"]
    train(dataclasses.replace(config, output=tmp_path / "parts", stop_after_minutes=0))
    (tmp_path / "parts/latents/process-0/000000.safetensors").unlink()
    train(dataclasses.replace(config, output=tmp_path / "parts", resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_options_of_memory_and_speed_change_nothing_else(base, tmp_path):
    train(make_config(base, tmp_path / "plain", max_steps=2))
    expected = checkpoint_tensors(tmp_path / "plain")
    for name, changes in (
        ("checkpointing", {"gradient_checkpointing": True}),
        ("fused", {"optimizer": "adamw-fused"}),
    ):
        train(make_config(base, tmp_path / name, max_steps=2, **changes))
        found = checkpoint_tensors(tmp_path / name)
        for tensor in (n for n in expected if n.startswith("network.")):
            torch.testing.assert_close(found[tensor], expected[tensor], rtol=1e-4, atol=1e-5)


@pytest.fixture
def other_precision():
    """Let a second accelerator of this process have another precision than the first."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_options_of_the_loss_change_it(base, tmp_path, other_precision):
    losses = {}
    for changes in ({}, {"hole_weight": 2.0}, {"snr_gamma": 5.0}, {"predicted_disparity": True}):
        output = tmp_path / "-".join(["run", *changes])
        train(make_config(base, output, max_steps=1, **changes))
        losses[output.name] = log_lines(output)[0]["loss"]
    AcceleratorState._reset_state(reset_partial_state=True)
    train(make_config(base, tmp_path / "run-bf16", max_steps=1, mixed_precision="bf16"))
    losses["run-bf16"] = log_lines(tmp_path / "run-bf16")[0]["loss"]
    assert len(set(losses.values())) == 5
    assert losses["run-hole_weight"] > losses["run"]
    assert losses["run-bf16"] == pytest.approx(losses["run"], rel=0.05)


# --- few steps ---


def test_few_step_sampling_is_learned_towards_the_truth(base, tmp_path):
    folder = train(make_config(base, tmp_path / "run", few_steps="truth", max_steps=2, validate_every_steps=2))
    pipe = ZeroStereoPipeline.from_pretrained(folder)
    assert pipe.config.default_num_inference_steps == 4
    assert pipe.scheduler.config.timestep_spacing == "trailing" and pipe.scheduler.config.set_alpha_to_one
    lines = log_lines(tmp_path / "run")
    assert "validation_psnr_4_steps" in lines[-1]
    plain = make_config(base, tmp_path / "plain", max_steps=2)
    train(plain)
    assert lines[0]["loss"] != log_lines(tmp_path / "plain")[0]["loss"]


def test_the_teacher_of_few_steps_is_the_base_as_it_was(base, tmp_path, monkeypatch):
    monkeypatch.setattr("training.fine_tuning.TEACHER_STEPS", 2)
    config = make_config(base, tmp_path / "whole", few_steps="teacher", max_steps=3, log_every_steps=1)
    train(config)
    train(dataclasses.replace(config, output=tmp_path / "parts", stop_after_minutes=0))
    train(dataclasses.replace(config, output=tmp_path / "parts", resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


# --- exact resume ---


def test_a_small_unet_from_random_weights_resumes_exactly_and_saves_loadable_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_sampling, "RENDER_BATCH", 2)  # no more held-out scenes than are used
    torch.manual_seed(0)
    make_autoencoder(width=8, blocks=1).save_pretrained(tmp_path / "vae")
    vae_bytes = (tmp_path / "vae/diffusion_pytorch_model.safetensors").read_bytes()
    options = {"channels": (8, 16), "smallest_crop": 16, "largest_crop": 32, "max_steps": 5, "save_every_steps": 3}
    options |= {"validate_every_steps": 4, "learning_rate": 2e-3, "pool": tmp_path / "pool", "vae": tmp_path / "vae"}
    whole = FromScratchConfig(output=tmp_path / "whole", **(POOL_OPTIONS | options))
    folder = train(whole)
    parts = dataclasses.replace(whole, output=tmp_path / "parts", stop_after_minutes=0)
    train(parts)  # one step
    train(dataclasses.replace(parts, stop_after_minutes=None, resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    lines = log_lines(tmp_path / "whole")
    assert {"validation_background_psnr", "validation_psnr_1_steps", "validation_psnr_4_steps"} < set(lines[2])
    assert (tmp_path / "vae/diffusion_pytorch_model.safetensors").read_bytes() == vae_bytes
    unet = UNet2DConditionModel.from_pretrained(folder)
    assert tuple(unet.config.block_out_channels) == (8, 16)
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "whole/scheduler")
    assert scheduler.config.prediction_type == "sample" and scheduler.config.timestep_spacing == "trailing"
    settings = json.loads((tmp_path / "whole/pipeline.json").read_text())
    assert (settings["latent_mask_reduction"], settings["masked_fill"]) == ("max", "background")


def words_of(base: Path, output: Path, photos: Path, workers: int) -> list[str]:
    words = ["--base", str(base), "--data", f"photos:{photos}:1", "--data", "procedural:1", "--output", str(output)]
    words += (
        "--crop-size 32 --batch-size 1 --max-steps 12 --warmup-steps 2 --learning-rate 2e-3 --ema-decay 0.9".split()
    )
    words += "--save-every-steps 4 --validate-every-steps 100 --log-every-steps 3 --checkpoints-keep 2".split()
    return [*words, "--workers", str(workers), "--depth-cache", str(output.parent / "depth")]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers", "workers_after"), [(1, 2, 0), (2, 0, 2)])
def test_a_killed_run_goes_on_exactly(base, tmp_path, processes, workers, workers_after):
    photos = write_photographs(tmp_path / "photos")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_module(MODULE, *words_of(base, whole, photos, workers_after), processes=processes)

    command = launch_command(MODULE, *words_of(base, parts, photos, workers), processes=processes)
    killed = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list_checkpoints(parts) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert kill_with_descendants(killed) >= (1 + workers if processes == 1 else 1 + processes)
    assert 0 < int(list_checkpoints(parts)[-1].name[-6:]) < 12

    run_module(MODULE, *words_of(base, parts, photos, workers_after), "--resume", processes=processes)
    assert_same_run(whole, parts)
    assert len(list_checkpoints(parts)) == 2
    state = torch.load(list_checkpoints(whole)[-1] / "custom_checkpoint_1.pkl", weights_only=True)
    assert len(state["sums"]) == processes, "there were that many processes"


# --- publishing ---


@pytest.mark.slow
def test_base_from_the_hub_and_result_to_the_hub(tmp_path):
    write_base(tmp_path / "base")
    script = f"""
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("me/base")
api.upload_folder(repo_id="me/base", folder_path={str(tmp_path / "base")!r})
from training.train_inpainting import main
words = "--base me/base --data procedural:1 --crop-size 64 --workers 0 --batch-size 1 --max-steps 1 --tracker none"
main([*words.split(), "--push-to-hub", "me/tuned", "--i-have-permission", "--output", {str(tmp_path / "run")!r}])
import torch
from pipeline_zerostereo import ZeroStereoPipeline
pipe = ZeroStereoPipeline.from_pretrained("me/tuned")
pipe.inpaint(torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64, dtype=torch.bool), num_inference_steps=1)
print("ran")
"""
    with LoopbackHub(tmp_path / "hub") as hub:
        printed = hub.run_python(script, home=tmp_path / "home", PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
        card = hub.read("me/tuned", "README.md").decode()
        sha = hub.repository("me/base").refs["main"]
    assert "ran" in printed
    assert "license: unknown" in card and "base_model: me/base" in card and f"--base me/base@{sha}" in card
    assert "| psnr_50_steps |" in card and 'from_pretrained("me/tuned"' in card
