# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of a published inpainting model: options, the paper's preset, networks and optimiser made ready.

It knows nothing of data (inpainting_data.py) nor of steps (train_inpainting.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from pipeline_zerostereo import decode_latents
from training.base_model import InpaintingBase, load_base
from training.data_mixture import EXAMPLE_SOURCE, KINDS
from training.data_sources import DataSource, parse_source
from training.export_card import parts_that_forbid_pushing
from training.few_steps import TEACHER_STEPS, Pictures, few_step_loss
from training.inpainting_loss import InpaintingBatch, inpainting_loss
from training.lora import ATTENTION_TARGETS, add_lora
from training.public_parts import Part
from training.run import RunConfig, changed, option, require

# ZeroStereo (arXiv 2501.08654) and its official script: 8 samples a pass and 4 passes a step over all processes, the
# loss over the whole latent, no clipping, no average. The UNet learns in float32 under fp16 autocast.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "batch_size": 8,
        "total_batch_size": 32,
        "max_steps": 50_000,
        "learning_rate": 2e-5,
        "schedule": "one-cycle",
        "warmup_steps": 500,
        "weight_decay": 0.01,
        "max_gradient_norm": None,
        "ema_decay": None,
        "optimizer": "adamw",
        "mixed_precision": "fp16",
        "crop_size": 512,
        "latent_mask": "nearest",
        "masked_fill": "zero",
        "hole_weight": 0.0,
        "snr_gamma": None,
        "predicted_disparity": False,
        "save_every_steps": 5000,
        "seed": 666,
    }
}

# With layouts of its own choice, torch 2.13 compiled a backward pass on a CPU whose gradients were a fifth too small
# (norm 4.05 for 4.95) under a loss that was right.
COMPILE_OPTIONS: dict[str, Any] = {"layout_optimization": False}
FEW_STEPS = 4  # denoising steps of a call, for weights that learned to sample in few

Loss = Callable[[nn.Module, InpaintingBatch, torch.Generator], Tensor]


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig(RunConfig):
    """Options of `train_inpainting --base`."""

    base: str = option(
        help="what to start from: a pipeline folder, or a folder or repository ORG/REPO[@REVISION] of an inpainting "
        "model",
        group="network",
    )
    lora_rank: int | None = option(
        None, help="train a LoRA of this rank; none = the whole UNet", group="network", at_least=1
    )
    lora_alpha: float | None = option(
        None, help="the LoRA counts alpha / rank times; none = as its rank", group="network", at_least=0
    )
    lora_targets: tuple[str, ...] = option(
        ATTENTION_TARGETS, help="ends of the names of the layers that get a LoRA", group="network"
    )
    gradient_checkpointing: bool = option(
        False, help="calculate activations again in the backward pass: less memory, more time", group="network"
    )
    compile: bool = option(False, help="compile the UNet; takes minutes at the start", group="network")

    data: tuple[str, ...] = option(
        help="KIND:ROOT:WEIGHT, more than once for a mixture; kinds: sceneflow, tartanair, crestereo, vkitti2, "
        "fallingthings, photos, and procedural:WEIGHT",
        group="data",
    )
    validation_data: tuple[str, ...] = option(
        ("procedural:1",), help="what validation fills, of the same form", group="data"
    )
    crop_size: int = option(512, help="height and width of a sample, px", group="data", at_least=8)
    workers: int = option(4, help="processes that load data, for each training process", group="data", at_least=0)
    on_bad_sample: Literal["raise", "skip"] = option(
        "raise", help="what a file that cannot be read does: end the run, or be replaced and counted", group="data"
    )
    depth_cache: Path | None = option(
        None, help="folder for the estimated depth of photographs; none = in --output", group="data"
    )
    depth_pipeline: Path | None = option(
        None, help="pipeline folder whose network estimates that depth; none = --base's", group="data"
    )
    predicted_disparity: bool = option(
        False, help="blur and sharpen true disparities, as predicted ones are at inference", group="data"
    )
    latent_mask: Literal["max", "nearest"] | None = option(
        None, help="how the mask is brought to latent size; none = as --base does", group="data"
    )
    masked_fill: Literal["background", "zero"] | None = option(
        None, help="how holes are covered before encoding; none = as --base does", group="data"
    )
    latent_cache: int | None = option(
        None,
        help="use the samples of this many forward passes over and over, encoded once and kept in --output; none = "
        "new ones always",
        group="data",
        at_least=1,
    )

    hole_weight: float = option(
        0.0, help="added to the loss weight 1 in and beside holes", group="optimisation", at_least=0
    )
    snr_gamma: float | None = option(
        None,
        help="bound of min-SNR loss weights, 5 is usual; none = all timesteps alike",
        group="optimisation",
        at_least=0,
    )
    few_steps: Literal["truth", "teacher"] | None = option(
        None,
        help="learn to sample in few steps instead of the loss on noise, towards the true view or towards what --base "
        "samples in many steps; none = the loss on noise",
        group="optimisation",
    )
    optimizer: Literal["adamw", "adamw-fused", "adamw-8bit"] = option(
        "adamw", help="plain, fused into one kernel, or with 8-bit state (bitsandbytes)", group="optimisation"
    )
    batch_size: int = changed("batch_size", 8)
    max_steps: int = changed("max_steps", 10_000)
    learning_rate: float = changed("learning_rate", 2e-5)
    schedule: Literal["cosine", "one-cycle"] = changed("schedule", "one-cycle")
    ema_decay: float | None = changed("ema_decay", None)

    push_to_hub: str | None = option(None, help="repository ORG/REPO that gets the result", group="run")
    i_have_permission: bool = option(
        False, help="publish a result although the licence of --base is not stated", group="run"
    )

    def __post_init__(self):
        """Check ranges, and that data, LoRA options and publishing make sense together."""
        super().__post_init__()
        for name, sources in (("data", self.sources()), ("validation_data", self.validation_sources())):
            require(len(sources) > 0, name, "must name at least one source", sources)
        require(
            self.lora_alpha is None or self.lora_rank is not None,
            "lora_alpha",
            "needs `lora_rank`, without which there is no LoRA",
            self.lora_alpha,
        )

    def sources(self) -> list[DataSource]:
        """Return what `data` names."""
        return [parse_source(text, KINDS, EXAMPLE_SOURCE) for text in self.data]

    def validation_sources(self) -> list[DataSource]:
        """Return what `validation_data` names."""
        return [parse_source(text, KINDS, EXAMPLE_SOURCE) for text in self.validation_data]


def make_base(config: FineTuningConfig) -> InpaintingBase:
    """Load the base and make its UNet ready to learn; everything that can be refused is refused here.

    Raises:
        ValueError, ImportError: the base, the crop size, the LoRA, compiling or publishing is not possible so.
    """
    base = load_base(config.base)
    multiple = base.crop_multiple
    require(
        config.crop_size % multiple == 0,
        "crop_size",
        f"must be a multiple of {multiple} px for --base",
        config.crop_size,
    )
    check_permission(config, base.part)
    base.settings |= {
        "latent_mask_reduction": config.latent_mask or base.settings.get("latent_mask_reduction", "nearest"),
        "masked_fill": config.masked_fill or base.settings.get("masked_fill", "zero"),
    }
    if config.few_steps is not None:
        base.settings["default_num_inference_steps"] = FEW_STEPS
        sampling = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
        base.scheduler = DDIMScheduler.from_config(base.scheduler.config, **sampling)
    if config.lora_rank is not None:
        alpha = config.lora_rank if config.lora_alpha is None else config.lora_alpha
        add_lora(base.unet, config.lora_rank, alpha, config.lora_targets)
    if config.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    base.unet.train()
    if config.compile:
        base.unet.compile(options=COMPILE_OPTIONS)
    return base


def make_loss(config: FineTuningConfig, base: InpaintingBase, device: torch.device) -> Loss:
    """Make the loss of a forward pass from (network, batch, generator).

    The teacher of few-step sampling is a copy of the base's UNet, so call this before it has learned anything.
    """
    if config.few_steps is None:
        return partial(_loss_on_noise, config, base.scheduler)
    teacher = None
    if config.few_steps == "teacher":
        teacher = copy.deepcopy(base.unet).requires_grad_(False).eval().to(device)
    return partial(_loss_of_few_steps, base, teacher)


def _loss_on_noise(
    config: FineTuningConfig, scheduler: Any, network: nn.Module, batch: InpaintingBatch, generator: torch.Generator
) -> Tensor:
    weights = {"known_weight": 1.0, "hole_weight": config.hole_weight}
    return inpainting_loss(network, scheduler, batch, generator, snr_gamma=config.snr_gamma, **weights)


def _loss_of_few_steps(
    base: InpaintingBase,
    teacher: nn.Module | None,
    network: nn.Module,
    batch: InpaintingBatch,
    generator: torch.Generator,
) -> Tensor:
    def decode(latents: Tensor) -> Tensor:
        return decode_latents(base.vae, latents)

    with torch.no_grad():
        # the truth as the autoencoder gives it back: no UNet has more texture than that, and kept latents are enough
        truth = decode(batch.target_latents)
    pictures = Pictures(truth, decode)
    return few_step_loss(
        network, teacher, base.scheduler, batch, generator, pictures=pictures, teacher_steps=TEACHER_STEPS
    )


def check_permission(config: FineTuningConfig, part: Part | None) -> None:
    """Refuse to publish what is derived from weights whose licence is not stated.

    Raises:
        ValueError: so it is, and nobody said that there is permission.
    """
    blocked = [] if part is None else parts_that_forbid_pushing([part])
    if config.push_to_hub is not None and blocked and not config.i_have_permission:
        raise ValueError(
            f"`push_to_hub` needs a base whose authors state a licence; got {blocked[0].name} ({blocked[0].note}). "
            "Pass --i-have-permission if they allowed you to publish what you make of it."
        )


def make_optimizer(kind: str, parameters: list[nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    """Make AdamW with its usual betas; the learning rate is set at every step.

    Args:
        kind: "adamw", "adamw-fused" or "adamw-8bit".
        parameters: those that learn.
        weight_decay: decoupled.

    Raises:
        ValueError: "adamw-8bit" without bitsandbytes.
    """
    if kind == "adamw-8bit":
        rule = "needs the package bitsandbytes for this kind: pip install bitsandbytes, or take adamw-fused"
        require(find_spec("bitsandbytes") is not None, "optimizer", rule, kind)
        import bitsandbytes  # pyright: ignore[reportMissingImports]

        return bitsandbytes.optim.AdamW8bit(parameters, weight_decay=weight_decay)
    return torch.optim.AdamW(parameters, weight_decay=weight_decay, fused=kind == "adamw-fused")
