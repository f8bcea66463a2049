# SPDX-License-Identifier: Apache-2.0
"""The inpainting model that a fine-tuning starts from: read from a folder or the Hub, nothing about it assumed.

Latent channels, conditioning width, the autoencoder's factor and the prediction type come from its configuration.
Known layouts: a pipeline folder of this project, ZeroStereo's StereoGen folder, and the plain layout of inpainting
repositories, with one text encoder (Stable Diffusion) or two (SDXL). It knows nothing of data and of training.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import (
    AutoModelForDepthEstimation,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
)

from pipeline_zerostereo import ZeroStereoPipeline, encode_prompt_compactly
from training.public_parts import Part, fetch_base, resolve_part

VAE_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
REQUIRED_PARTS = ("unet", "vae", "scheduler")
OPTIONAL_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "depth_estimator")
TIME_IDS = 6  # of SDXL: original height and width, top and left of the crop, target height and width
COMPONENTS = (*REQUIRED_PARTS, *OPTIONAL_PARTS)


@dataclass
class InpaintingBase:
    """Networks and settings to start from.

    Attributes:
        unet: float32; takes 2 x latent + 1 channels. Constant conditions beside the prompt are bound to it.
        vae: float32.
        scheduler: the noise schedule, for training and for sampling.
        prompt_embeds: [1,tokens,channels] float32, the embedding of the empty prompt.
        settings: arguments of `ZeroStereoPipeline` that the base's own pipeline folder has, and the prompt.
        part: where it is from; None = made on the spot.
        folder: on this machine.
    """

    unet: Any
    vae: Any
    scheduler: Any
    prompt_embeds: Tensor
    settings: dict[str, Any]
    part: Part | None = None
    folder: Path | None = None

    @property
    def is_pipeline(self) -> bool:
        """The pipeline of this project can run the UNet; not so with SDXL's added conditions."""
        return self.unet.config.addition_embed_type is None

    @property
    def vae_factor(self) -> int:
        """Pixels of one latent pixel, in each direction."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def crop_multiple(self) -> int:
        """What height and width in px must be multiples of, for autoencoder and UNet."""
        return self.vae_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def load_depth_estimator(self) -> PreTrainedModel | None:
        """Load the depth network that the base's folder holds; None where it holds none."""
        folder = None if self.folder is None else self.folder / "depth_estimator"
        if folder is None or not folder.is_dir():
            return None
        return AutoModelForDepthEstimation.from_pretrained(folder, dtype=torch.float32)


def load_base(reference: str) -> InpaintingBase:
    """Load the base of a fine-tuning.

    Args:
        reference: a folder, or ORG/REPO or ORG/REPO@REVISION of the Hub.

    Raises:
        PartError: it cannot be had, or lacks unet, vae or scheduler.
        ValueError: it is no inpainting model, or asks for conditions that are not known here.
    """
    name, _, revision = (reference, "", "") if Path(reference).is_dir() else reference.partition("@")
    part = resolve_part("--base", name, revision or None)
    folder = fetch_base("--base", part, REQUIRED_PARTS, OPTIONAL_PARTS)
    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    vae: Any = load_vae(folder / "vae", "--base")
    check_unet(unet, vae.config.latent_channels)
    settings = read_pipeline_settings(folder)
    prompt_embeds, pooled = embed_empty_prompt_of(folder, settings)
    if prompt_embeds.shape[-1] != unet.config.cross_attention_dim:
        raise ValueError(
            f"`--base` must have text encoders of {unet.config.cross_attention_dim} channels together, as its UNet "
            f"takes; got {prompt_embeds.shape[-1]}."
        )
    if settings.get("empty_prompt_embeds") is None:
        settings["empty_prompt_embeds"] = encode_prompt_compactly(
            prompt_embeds[0], f"{part.name}/text_encoder", part.revision
        )
    base = InpaintingBase(
        unet=unet,
        vae=vae.requires_grad_(False).eval(),
        scheduler=load_as_ddim(folder / "scheduler"),
        prompt_embeds=prompt_embeds,
        settings=settings,
        part=part,
        folder=folder,
    )
    if not base.is_pipeline:
        bind_added_conditions(unet, pooled, base.vae_factor)
    return base


def check_unet(unet: Any, latent_channels: int) -> None:
    """Refuse a UNet that does not inpaint, or that asks for conditions that are not known here.

    Raises:
        ValueError: so it is.
    """
    config, channels = unet.config, 2 * latent_channels + 1
    if (config.in_channels, config.out_channels) != (channels, latent_channels):
        raise ValueError(
            f"`--base` must be an inpainting model: {channels} channels in and {latent_channels} out for its "
            f"autoencoder; got {config.in_channels} and {config.out_channels}."
        )
    if config.addition_embed_type not in (None, "text_time") or config.class_embed_type is not None:
        raise ValueError(
            '`--base` must have a UNet without added conditions, or with those of SDXL ("text_time"); got '
            f"{config.addition_embed_type!r} and class embedding {config.class_embed_type!r}."
        )


def load_vae(folder: Path, option: str = "--vae") -> AutoencoderKL | AutoencoderTiny:
    """Load an autoencoder of either class as float32.

    Raises:
        ValueError: another class.
    """
    name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    if name not in VAE_CLASSES:
        raise ValueError(f"`{option}` must be of class {' or '.join(VAE_CLASSES)}; got {name}.")
    return VAE_CLASSES[name].from_pretrained(folder)


def load_as_ddim(folder: Path) -> DDIMScheduler:
    """Load a scheduler of any class as the DDIM that the paper uses, with the values that class would have.

    Values that the file leaves to its class are taken from that class, not from DDIM's defaults, which differ; a class
    that knows no clipping of the sample does none.

    Raises:
        ValueError: diffusers has no such class.
    """
    name = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8")).get("_class_name")
    kind = getattr(diffusers, str(name), None)
    if not isinstance(kind, type) or not issubclass(kind, diffusers.SchedulerMixin):
        raise ValueError(f"`--base` must have a scheduler of diffusers; got {name} in {folder.name}.")
    loaded: Any = kind.from_pretrained(folder)
    known = DDIMScheduler().config
    config = {"clip_sample": False, **{key: value for key, value in loaded.config.items() if key in known}}
    scheduler: Any = DDIMScheduler.from_config({k: value for k, value in config.items() if not k.startswith("_")})
    return scheduler


def read_pipeline_settings(folder: Path) -> dict[str, Any]:
    """Read the configuration of a pipeline folder of this project; other folders have none that concerns us."""
    index = folder / "model_index.json"
    if not index.is_file():
        return {}
    config = json.loads(index.read_text(encoding="utf-8"))
    name = config.get("_class_name")
    if (name[-1] if isinstance(name, list) else name) != ZeroStereoPipeline.__name__:
        return {}
    known = set(inspect.signature(ZeroStereoPipeline.__init__).parameters) - {"self", *COMPONENTS}
    return {key: value for key, value in config.items() if key in known}


@torch.no_grad()
def embed_empty_prompt_of(folder: Path, settings: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Embed the empty prompt as the base conditions on it, not padded: as the pipeline does.

    Args:
        folder: of the base.
        settings: its pipeline's; `empty_prompt_embeds` goes before the text encoders.

    Returns:
        [1,tokens,channels]; and [1,channels] of the second text encoder where there is one, else None. Two encoders
        give their second to last layers side by side, as SDXL takes them.

    Raises:
        ValueError: no embedding and no text encoder.
    """
    has_second = (folder / "text_encoder_2").is_dir()
    if has_second and settings.get("empty_prompt_embeds") is None:
        hidden, pooled = [], None
        for suffix, kind in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection)):
            if (folder / f"text_encoder{suffix}").is_dir():
                output = _encode_nothing(folder, suffix, kind)
                hidden.append(output.hidden_states[-2])
                pooled = getattr(output, "text_embeds", None)
        return torch.cat(hidden, dim=-1), pooled
    networks: dict[str, Any] = {"unet": None, "vae": None, "scheduler": None}  # none of them sees the prompt
    if settings.get("empty_prompt_embeds") is None:
        missing = [name for name in ("text_encoder", "tokenizer") if not (folder / name).is_dir()]
        if missing:
            raise ValueError(
                f"`--base` must hold `empty_prompt_embeds` or a text encoder; {folder.name} lacks {missing}."
            )
        networks["text_encoder"] = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
        networks["tokenizer"] = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    pipe = ZeroStereoPipeline(**networks, empty_prompt_embeds=settings.get("empty_prompt_embeds"))
    return pipe.encode_empty_prompt().float(), None


def _encode_nothing(folder: Path, suffix: str, kind: Any) -> Any:
    """Run one of SDXL's text encoders on the empty prompt."""
    encoder = kind.from_pretrained(folder / f"text_encoder{suffix}", dtype=torch.float32).eval()
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}")
    tokens = tokenizer("", padding="do_not_pad", return_tensors="pt").input_ids
    return encoder(tokens, output_hidden_states=True)


def bind_added_conditions(unet: nn.Module, pooled: Tensor | None, vae_factor: int) -> None:
    """Have a UNet of SDXL add its constant conditions to every call that brings none.

    They are the pooled embedding of the empty prompt and the picture's size, original and target alike, not cropped.
    Bound to the UNet, they are the same in the loss and in sampling, and neither has to know of them.

    Args:
        unet: with "text_time" conditions.
        pooled: [1,channels].
        vae_factor: px of one latent pixel.

    Raises:
        ValueError: there is no pooled embedding, or the UNet takes another number of conditions.
    """
    config: Any = unet.config
    found = 0 if pooled is None else pooled.shape[-1] + TIME_IDS * config.addition_time_embed_dim
    if pooled is None or found != config.projection_class_embeddings_input_dim:
        raise ValueError(
            f"`--base` must have a second text encoder whose pooled channels and {TIME_IDS} sizes make the "
            f"{config.projection_class_embeddings_input_dim} values that its UNet takes; got {found}."
        )
    embedding = pooled

    def add(module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if keywords.get("added_cond_kwargs") is not None:
            return arguments, keywords
        sample = arguments[0]
        size = [vae_factor * length for length in sample.shape[-2:]]
        sizes = torch.tensor([[*size, 0, 0, *size]], dtype=sample.dtype, device=sample.device)
        added = {"text_embeds": embedding.to(sample), "time_ids": sizes}
        added = {name: value.expand(len(sample), -1) for name, value in added.items()}
        return arguments, {**keywords, "added_cond_kwargs": added}

    unet.register_forward_pre_hook(add, with_kwargs=True)
