# SPDX-License-Identifier: Apache-2.0
"""Options of the fine-tuning, the paper's preset, and networks and optimiser made ready."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from pipeline_zerostereo import ZeroStereoPipeline, decode_latents
from tests.tiny_components import embedded_pipeline, fill_by_rule, make_ddim
from training.few_steps import Pictures, few_step_loss
from training.fine_tuning import PRESETS, FineTuningConfig, make_base, make_loss, make_optimizer
from training.inpainting_loss import InpaintingBatch, inpainting_loss
from training.run import learning_rate_at, parse_config, step_generator


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    embedded_pipeline(scheduler=make_ddim(prediction_type="v_prediction")).save_pretrained(folder)
    return folder


def make_config(base: Path, **changes) -> FineTuningConfig:
    options = {"base": str(base), "data": ("procedural:1",), "output": Path("run"), "crop_size": 32}
    return FineTuningConfig(**(options | changes))


def make_batch() -> InpaintingBatch:
    target, masked = torch.randn((2, 2, 8, 8, 12), generator=step_generator(0, 0, 0))
    mask = torch.zeros(2, 1, 8, 12)
    mask[:, :, 3:5, 4:9] = 1
    return InpaintingBatch(target, masked, mask, torch.zeros(2, 2, 32))


def test_preset_of_the_paper():
    words = "--base b --data procedural:1 --output o --preset paper --mixed-precision no --workers 2".split()
    config = parse_config(FineTuningConfig, words, presets=PRESETS)
    assert (config.batch_size, config.total_batch_size, config.crop_size, config.workers) == (8, 32, 512, 2)
    assert (config.latent_mask, config.masked_fill, config.hole_weight) == ("nearest", "zero", 0.0)
    assert (config.max_gradient_norm, config.ema_decay, config.weight_decay, config.seed) == (None, None, 0.01, 666)
    assert (config.mixed_precision, PRESETS["paper"]["mixed_precision"]) == ("no", "fp16")
    named = {"peak": config.learning_rate, "schedule": config.schedule, "warmup_steps": config.warmup_steps}
    rates = [learning_rate_at(t, **named, max_steps=config.max_steps) for t in (0, 499, 25_000, 49_999)]
    assert rates == pytest.approx([8e-7, 2e-5, 1.010e-5, 8e-11], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, r"`data` must name at least one source; got \[\]"),
        ({"data": ("films:/x:1",)}, "`data` must name one of the kinds .*; got 'films'"),
        ({"validation_data": ("photos:1",)}, "`data` must be"),
        ({"lora_alpha": 4.0}, "`lora_alpha` needs `lora_rank`, without which there is no LoRA; got 4.0"),
        ({"optimizer": "sgd"}, "`optimizer` must be one of .*; got 'sgd'"),
        ({"latent_mask": "mean"}, "`latent_mask` must be one of .*; got 'mean'"),
    ],
)
def test_bad_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(Path("base"), **changes)


def test_base_decides_what_is_not_asked_for(base):
    assert make_base(make_config(base)).settings["masked_fill"] == "background"
    settings = make_base(make_config(base, masked_fill="zero", latent_mask="nearest")).settings
    assert (settings["masked_fill"], settings["latent_mask_reduction"]) == ("zero", "nearest")
    assert settings["default_num_inference_steps"] == 2


def test_few_steps_set_the_sampling_of_the_result(base):
    ready = make_base(make_config(base, few_steps="truth"))
    assert ready.settings["default_num_inference_steps"] == 4
    config = ready.scheduler.config
    assert (config.timestep_spacing, config.set_alpha_to_one, config.clip_sample) == ("trailing", True, False)
    assert config.prediction_type == "v_prediction"
    ZeroStereoPipeline(ready.unet, ready.vae, ready.scheduler, **ready.settings)


def test_network_is_made_ready_to_learn(base, require):
    require("peft")
    ready = make_base(make_config(base, lora_rank=3, gradient_checkpointing=True))
    assert ready.unet.training and ready.unet.is_gradient_checkpointing
    assert {name.split(".")[-2] for name, p in ready.unet.named_parameters() if p.requires_grad} == {"default"}
    config = ready.unet.peft_config["default"]
    assert (config.r, config.lora_alpha) == (3, 3)
    assert make_base(make_config(base, lora_rank=3, lora_alpha=12.0)).unet.peft_config["default"].lora_alpha == 12.0


@pytest.mark.parametrize("changes", [{}, {"hole_weight": 1.5}, {"snr_gamma": 2.0}])
def test_loss_is_over_the_whole_latent_with_the_weights_asked_for(base, changes):
    config = make_config(base, **changes)
    ready = make_base(config)
    found = make_loss(config, ready, torch.device("cpu"))(ready.unet, make_batch(), step_generator(0, 0, 0))
    named = {"known_weight": 1.0, "hole_weight": 0.0} | changes
    torch.testing.assert_close(
        found, inpainting_loss(ready.unet, ready.scheduler, make_batch(), step_generator(0, 0, 0), **named)
    )


@pytest.mark.slow
def test_compiled_network_has_the_gradients_of_the_plain_one(tmp_path):
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=17,
        out_channels=8,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        block_out_channels=(16,),
        layers_per_block=1,
        cross_attention_dim=32,
        norm_num_groups=8,
    )
    embedded_pipeline(unet=fill_by_rule(unet)).save_pretrained(tmp_path / "base")
    found = []
    for compiled in (False, True):
        config = make_config(tmp_path / "base", compile=compiled)
        ready = make_base(config)
        make_loss(config, ready, torch.device("cpu"))(ready.unet, make_batch(), step_generator(0, 0, 0)).backward()
        found.append({name: p.grad for name, p in ready.unet.named_parameters()})
    largest = max(gradient.abs().max() for gradient in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-5 * float(largest), msg=name)
    copy.deepcopy(ready.unet).save_pretrained(tmp_path / "saved")  # as the result is saved
    assert set(UNet2DConditionModel.from_pretrained(tmp_path / "saved").state_dict()) == set(unet.state_dict())


@pytest.mark.parametrize("goal", ["truth", "teacher"])
def test_loss_of_few_steps_keeps_the_teacher_as_it_was(base, monkeypatch, goal):
    monkeypatch.setattr("training.fine_tuning.TEACHER_STEPS", 2)
    config = make_config(base, few_steps=goal)
    ready, teacher = make_base(config), make_base(config).unet.eval()
    loss_of = make_loss(config, ready, torch.device("cpu"))
    with torch.no_grad():
        for parameter in ready.unet.parameters():
            parameter.mul_(0.5)
    found = loss_of(ready.unet, make_batch(), step_generator(0, 0, 0))
    expected = few_step_loss(
        ready.unet,
        teacher if goal == "teacher" else None,
        ready.scheduler,
        make_batch(),
        step_generator(0, 0, 0),
        pictures=Pictures(
            decode_latents(ready.vae, make_batch().target_latents), lambda latents: decode_latents(ready.vae, latents)
        ),
        teacher_steps=2,
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["adamw", "adamw-fused"])
def test_optimizers_take_the_same_step(kind):
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make_optimizer(kind, [parameter], 0.1)
    optimizer.param_groups[0]["lr"] = 0.01
    parameter.square().sum().backward()
    optimizer.step()
    # AdamW's first step: each value moves by the learning rate against its gradient's sign, and decays by lr x 0.1
    torch.testing.assert_close(parameter.detach(), torch.tensor([0.999 - 0.01, -1.998 + 0.01]), rtol=0, atol=1e-6)


def test_an_optimizer_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("training.fine_tuning.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="`optimizer` needs the package bitsandbytes .*pip install.*; got 'adamw-8bit'"
    ):
        make_optimizer("adamw-8bit", [nn.Parameter(torch.zeros(1))], 0.1)
