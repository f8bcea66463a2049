# SPDX-License-Identifier: Apache-2.0
"""The adapter that is loaded is the adapter that was trained, to the last bit; only the adapter learns."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from pipeline_zerostereo import ZeroStereoPipeline
from tests.tiny_components import configured_prompt, make_ddim, make_kl_autoencoder, make_unet
from training.inpainting_loss import InpaintingBatch, inpainting_loss
from training.lora import ATTENTION_TARGETS, add_lora, save_lora
from training.run import step_generator

PROMPT = torch.tensor(configured_prompt())[None]


def make_batch() -> InpaintingBatch:
    target, masked = torch.randn((2, 2, 4, 8, 12), generator=step_generator(0, 0, 0))
    return InpaintingBatch(target, masked, torch.ones(2, 1, 8, 12), PROMPT.expand(2, -1, -1))


def output_of(unet) -> torch.Tensor:
    sample = torch.randn((1, 9, 8, 12), generator=step_generator(1, 0, 0))
    with torch.no_grad():
        return unet(sample, 500, encoder_hidden_states=PROMPT).sample


def train(unet: UNet2DConditionModel, steps: int = 4) -> None:
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=2e-2)
    for step in range(steps):
        inpainting_loss(unet, make_ddim(), make_batch(), step_generator(0, step, 0)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("rank", "alpha", "targets"),
    [
        (4, 4, ATTENTION_TARGETS),
        (4, 16, (*ATTENTION_TARGETS, "conv_in")),
        (3, 2, ("conv_in", "conv1", "conv2", "proj_in", "to_v", "ff.net.2")),
    ],
)
def test_loaded_adapter_is_the_trained_one(tmp_path, require, rank, alpha, targets):
    require("peft")
    torch.manual_seed(0)
    unet = make_unet()
    before = output_of(unet)
    add_lora(unet, rank, alpha, targets)
    assert torch.equal(output_of(unet), before)
    train(unet)
    trained = output_of(unet)
    assert (trained - before).abs().max() > 0.01
    save_lora(unet, tmp_path)
    pipe = ZeroStereoPipeline(make_unet(), make_kl_autoencoder(), make_ddim(), empty_prompt_embeds=configured_prompt())
    pipe.load_lora_weights(tmp_path)
    assert torch.equal(output_of(pipe.unet), trained)


def test_only_the_adapter_learns(require):
    require("peft")
    unet, plain = make_unet(), make_unet().state_dict()
    add_lora(unet, 2, 2, ("conv_in", "to_q"))
    train(unet, steps=2)
    for name, parameter in unet.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if "lora_" not in name:
            assert torch.equal(parameter, plain[name.replace(".base_layer", "")])


@pytest.mark.parametrize("targets", [("to_q", "to_k2"), ("o_q",), ("down_blocks",), ()])
def test_a_target_that_names_no_layer_is_refused(require, targets):
    require("peft")
    with pytest.raises(ValueError, match=r"`lora_targets` must be ends of the names of .* layers; got \["):
        add_lora(make_unet(), 2, 2, targets)


def test_without_peft_the_error_says_the_cure(monkeypatch):
    monkeypatch.setattr("training.lora.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="`lora_rank` needs the package peft: pip install"):
        add_lora(make_unet(), 2, 2, ("to_q",))
