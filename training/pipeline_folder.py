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
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel

import pipeline_zerostereo
from pipeline_zerostereo import PIPELINE_FILE, SHIM, SHIM_FILE, ZeroStereoPipeline, encode_prompt_compactly

PIPELINE_SETTINGS = "pipeline.json"  # written beside a trained UNet: the pipeline's settings that training decided
CARD_TEMPLATE = Path(pipeline_zerostereo.__file__).resolve().parent / "model_card.md"


def write_pipeline_folder(
    directory: str | Path,
    *,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL | AutoencoderTiny,
    scheduler: SchedulerMixin,
    depth_estimator: PreTrainedModel | None,
    text_encoder: CLIPTextModel | None = None,
    tokenizer: CLIPTokenizer | None = None,
    dtype: torch.dtype = torch.float16,
    link_pipeline_file: bool = False,
    sources: dict[str, str] | None = None,
    card: str | None = None,
    files: dict[str, Path] | None = None,
    **configuration: Any,
) -> Path:
    """Write a publishable pipeline folder, complete or not at all.

    The config.json of the depth model (and of the text encoder) says float32 whatever the files hold, because
    transformers loads the stored dtype and rounded depth moves pixels. The components are copied before they are cast.

    Args:
        directory: folder to make; must not exist.
        unet: as in `ZeroStereoPipeline`.
        vae: as in `ZeroStereoPipeline`.
        scheduler: as in `ZeroStereoPipeline`.
        depth_estimator: as in `ZeroStereoPipeline`.
        text_encoder: as in `ZeroStereoPipeline`.
        tokenizer: as in `ZeroStereoPipeline`.
        dtype: of the stored weights.
        link_pipeline_file: put a relative link to this checkout's pipeline file instead of a copy; for folders that
            stay in the repository.
        sources: where networks were published, by component name, such as "org/repo@commit"; written into their
            config.json. Where a component was loaded from on this machine is never written.
        card: text of the folder's README.md; None = none.
        files: copied into the folder, by the names that they get there, such as a picture of the card.
        configuration: the other arguments of `ZeroStereoPipeline`.

    Returns:
        The folder's path.

    Raises:
        FileExistsError: `directory` exists.
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"`directory` must not exist yet; got {directory}.")
    given = {"unet": unet, "vae": vae, "depth_estimator": depth_estimator, "text_encoder": text_encoder}
    networks: dict[str, Any] = {name: copy.deepcopy(network) for name, network in given.items()}
    pipe = ZeroStereoPipeline(scheduler=scheduler, tokenizer=tokenizer, **networks, **configuration)
    for network in networks.values():
        if network is not None:
            cast(network, dtype)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        pipe.save_pretrained(partial)
        for name in (name for name, network in networks.items() if network is not None):
            _edit_config(partial / name, _name_or_path=(sources or {}).get(name))
        for name in (name for name in ("depth_estimator", "text_encoder") if networks[name] is not None):
            _edit_config(partial / name, dtype="float32")
        if isinstance(vae, AutoencoderTiny):
            _edit_config(partial / "vae", block_out_channels=None)  # diffusers writes it and warns when it reads it
        if link_pipeline_file:
            source = Path(pipeline_zerostereo.__file__).resolve()
            (partial / PIPELINE_FILE).unlink()
            (partial / PIPELINE_FILE).symlink_to(os.path.relpath(source, directory.resolve()))
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")
        for name, source in (files or {}).items():
            shutil.copyfile(source, partial / name)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return directory


def write_card_folder(directory: str | Path, card: str) -> Path:
    """Write a folder without weights: the card, and the two code files that load a folder with weights.

    Raises:
        FileExistsError: `directory` exists.
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"`directory` must not exist yet; got {directory}.")
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        shutil.copyfile(pipeline_zerostereo.__file__, partial / PIPELINE_FILE)
        (partial / SHIM_FILE).write_text(SHIM, encoding="utf-8")
        (partial / "README.md").write_text(card, encoding="utf-8")
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return directory


def embed_empty_prompt(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, dtype: torch.dtype, name: str, revision: str
) -> dict[str, Any]:
    """Embed the empty prompt as a folder with this text encoder would, for a folder without it.

    Args:
        text_encoder: float32.
        tokenizer: its tokenizer.
        dtype: in which the folder stores weights; they are rounded to it before the embedding is calculated in
            float32, so that a folder with the text encoder gives the same bits.
        name: id of the text encoder.
        revision: commit of its repository.

    Returns:
        As `encode_prompt_compactly`.
    """
    rounded = copy.deepcopy(text_encoder).eval()
    cast(rounded, dtype)
    cast(rounded, torch.float32)
    parts: dict[str, Any] = {"unet": None, "vae": None, "scheduler": None}  # none of them sees the prompt
    pipe = ZeroStereoPipeline(text_encoder=rounded, tokenizer=tokenizer, **parts)
    return encode_prompt_compactly(pipe.encode_empty_prompt()[0], name, revision)


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


def cast(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast the floating-point parameters and buffers of a network in place, also those that `to` leaves alone."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def _edit_config(component: Path, **changes: str | None) -> None:
    """Set values in a component's config.json; None removes them."""
    file = component / "config.json"
    config = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    config = {key: value for key, value in config.items() if key not in changes or value is not None}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
