# SPDX-License-Identifier: Apache-2.0
"""Trained components -> a folder that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads.

The one place that knows what such a folder holds, its card included. It knows nothing of training and runs no network.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, SchedulerMixin, UNet2DConditionModel
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

import pipeline_zerostereo
from pipeline_zerostereo import PIPELINE_FILE, ZeroStereoPipeline

PIPELINE_SETTINGS = "pipeline.json"  # written beside a trained UNet: the pipeline's settings that training decided
CARD_TEMPLATE = Path(pipeline_zerostereo.__file__).resolve().parent / "model_card.md"


def write_pipeline_folder(
    directory: str | Path,
    *,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL | AutoencoderTiny,
    scheduler: SchedulerMixin,
    depth_estimator: PreTrainedModel | None,
    dtype: torch.dtype = torch.float16,
    link_pipeline_file: bool = False,
    **configuration: Any,
) -> Path:
    """Write a publishable pipeline folder, complete or not at all.

    The depth model's config.json says float32 whatever the files hold, because transformers loads the stored dtype
    and rounded depth moves pixels. The components are copied before they are cast.

    Args:
        directory: folder to make; must not exist.
        unet: as in `ZeroStereoPipeline`.
        vae: as in `ZeroStereoPipeline`.
        scheduler: as in `ZeroStereoPipeline`.
        depth_estimator: as in `ZeroStereoPipeline`.
        dtype: of the stored weights.
        link_pipeline_file: put a relative link to this checkout's pipeline file instead of a copy; for folders that
            stay in the repository.
        configuration: the other arguments of `ZeroStereoPipeline`.

    Returns:
        The folder's path.

    Raises:
        FileExistsError: `directory` exists.
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"`directory` must not exist yet; got {directory}.")
    networks: dict[str, Any] = {
        name: None if network is None else _cast_copy(network, dtype)
        for name, network in (("unet", unet), ("vae", vae), ("depth_estimator", depth_estimator))
    }
    pipe = ZeroStereoPipeline(scheduler=scheduler, **networks, **configuration)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipe.save_pretrained(partial)
    if depth_estimator is not None:
        _edit_config(partial / "depth_estimator", dtype="float32")
    for name in ("unet", "vae"):
        _edit_config(partial / name, _name_or_path=None)  # where it was loaded from, on this machine
    if isinstance(vae, AutoencoderTiny):
        _edit_config(partial / "vae", block_out_channels=None)  # diffusers writes it and warns when it reads it
    if link_pipeline_file:
        source = Path(pipeline_zerostereo.__file__).resolve()
        (partial / PIPELINE_FILE).unlink()
        (partial / PIPELINE_FILE).symlink_to(os.path.relpath(source, directory.resolve()))
    partial.rename(directory)
    return directory


def render_card(values: dict[str, Any], template: Path = CARD_TEMPLATE) -> str:
    """Render a folder's card (its README.md) from the template of all cards.

    Args:
        values: "card_data", the front matter as a dictionary, and the Markdown of every other name in the template; a
            list of strings counts as lines.
        template: Markdown with {{ names }}.

    Raises:
        ValueError: a name of the template is missing, or there is no such name.
    """
    names = set(re.findall(r"{{ (\w+) }}", template.read_text(encoding="utf-8")))
    if set(values) != names:
        raise ValueError(
            f"`values` must hold the names of {template.name}, {sorted(names)}; "
            f"missing {sorted(names - set(values))}, unknown {sorted(set(values) - names)}."
        )
    texts: dict[str, Any] = {
        name: "\n".join(text) if isinstance(text, list) else text for name, text in values.items()
    }
    data = ModelCardData(**texts.pop("card_data"))
    return ModelCard.from_template(data, template_path=str(template), **texts).content.rstrip() + "\n"


def _cast_copy(network: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Return a copy with its floating-point parameters and buffers in `dtype`."""
    network = copy.deepcopy(network)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return network


def _edit_config(component: Path, **changes: str | None) -> None:
    """Set values in a component's config.json; None removes them."""
    file = component / "config.json"
    config = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    config = {key: value for key, value in config.items() if key not in changes or value is not None}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
