# SPDX-License-Identifier: Apache-2.0
"""A LoRA on the UNet: added before training, saved so that what is loaded is what was trained.

Two things are lost without an error by the usual recipe: a scale other than 1 (alpha that is not the rank), unless
metadata is saved beside the weights; and every layer but attention, when names are converted for diffusers. So the
adapter is saved in peft's own names, with its metadata.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffusers.training_utils import _collate_lora_metadata
from torch import nn

from pipeline_zerostereo import ZeroStereoPipeline

ATTENTION_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
LAYERS = (nn.Linear, nn.Conv2d)


def add_lora(unet: Any, rank: int, alpha: float, targets: tuple[str, ...]) -> None:
    """Freeze a UNet and add a LoRA that changes nothing yet; its parameters alone learn.

    Args:
        unet: changed in place.
        rank: of the added matrices.
        alpha: the added matrices count alpha / rank times.
        targets: ends of the names of linear and convolution layers, such as "to_q" or "conv_in".

    Raises:
        ImportError: peft is not installed.
        ValueError: a target names no such layer.
    """
    if find_spec("peft") is None:
        raise ImportError("`lora_rank` needs the package peft: pip install -r requirements-training.txt.")
    from peft import LoraConfig

    names = [name for name, module in unet.named_modules() if isinstance(module, LAYERS)]
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if unknown or not targets:
        raise ValueError(f"`lora_targets` must be ends of the names of linear or convolution layers; got {unknown}.")
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian")  # type: ignore[arg-type]
    )


def save_lora(unet: Any, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors`, which `ZeroStereoPipeline.load_lora_weights(folder)` loads."""
    from peft import get_peft_model_state_dict

    layers: Any = get_peft_model_state_dict(unet)
    ZeroStereoPipeline.save_lora_weights(
        folder,
        unet_lora_layers=layers,
        **_collate_lora_metadata({"unet": unet}),
    )
