# SPDX-License-Identifier: Apache-2.0
"""Batches for the fine-tuning: mixed samples in, the loss's batch out, warped and encoded on the training device.

Left view, its disparity and the true right view are all that warping needs, so every kind of sample is brought to
these three (`to_views`): stereo pairs and procedural scenes have them; a photograph is the right view itself, and the
other eye's view is made from it (photograph_pairs.py). The warp is the pipeline's own, in batches.

A batch is a function of seed, forward pass and process: what is drawn for its samples (strengths of photographs, blur
of disparities) and what is drawn for noise and timesteps come from two generators, so that kept latents
(`latent_cache`) get new noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline_zerostereo import ZeroStereoPipeline
from training.base_model import InpaintingBase
from training.data_mixture import PHOTOS, DataMixture, PhotographFolder, describe_bad_samples, render_sources
from training.fine_tuning import FineTuningConfig
from training.inpainting_loss import InpaintingBatch, as_predicted, encode_pair, warp_pair
from training.inpainting_validation import HeldOutViews, hold_out
from training.photograph_depth import PhotographDepth, depth_model_key
from training.photograph_pairs import see_from_other_eye, select_photograph_disparity
from training.run import step_generator

VALIDATION_SEED, VALIDATION_VIEWS = 900_001, 8
CACHED_FIELDS = ("target_latents", "masked_image_latents", "latent_mask")


class Views(NamedTuple):
    """What a warp and its truth need; pictures in [0,1]."""

    left_image: Tensor  # [B,3,H,W]
    left_disparity: Tensor  # [B,1,H,W], px; NaN where a pixel is in no other view
    right_image: Tensor  # [B,3,H,W]


def to_views(batch: dict[str, Any], *, predicted_disparity: bool, generator: torch.Generator) -> Views:
    """Bring a batch of `data_mixture.render_sources` to views, kind after kind.

    Args:
        batch: on the training device.
        predicted_disparity: give true disparities the treatment of predicted ones, `as_predicted`; those of
            photographs are predicted.
        generator: blur and strengths are drawn from it.
    """
    parts = []
    for kind, samples in batch.items():
        if kind == PHOTOS:
            photographs = samples["photograph"].float() / 255
            strengths = [
                select_photograph_disparity(depth[None], int(width), generator=generator)
                for depth, width in zip(samples["normalized_inverse_depth"], samples["photograph_width"], strict=True)
            ]
            eye = see_from_other_eye(photographs, torch.cat(strengths))
            parts.append(Views(eye.left_image, eye.left_disparity, photographs))
            continue
        disparity = samples["left_disparity"]
        disparity = as_predicted(disparity, generator=generator) if predicted_disparity else disparity
        parts.append(Views(samples["left_image"].float() / 255, disparity, samples["right_image"].float() / 255))
    return Views(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def load_now(mixture: DataMixture, step: int) -> dict[str, Any]:
    """Load one batch without workers.

    Raises:
        DataFileError: as `DataMixture.batches`.
    """
    loaded = mixture.load_step(step)
    if loaded.error is not None:
        raise loaded.error
    return loaded.batch


class MixtureBatches:
    """The batches of one process, and the views that validation fills.

    Args:
        config: options.
        base: its autoencoder encodes, on the accelerator's device.
        accelerator: of the run.

    Raises:
        FileNotFoundError, ValueError: as `DataMixture`; or photographs without a network that estimates their depth.
    """

    def __init__(self, config: FineTuningConfig, base: InpaintingBase, accelerator: Accelerator):
        self.config, self.base, self.accelerator = config, base, accelerator
        self.cache = config.output / "latents" / f"process-{accelerator.process_index}"
        sources, validation_sources = config.sources(), config.validation_sources()
        roots = [source.root for source in (*sources, *validation_sources) if source.kind == PHOTOS]
        depth = fill_depth_cache(config, base, accelerator, [Path(root) for root in roots if root]) if roots else None
        common: dict[str, Any] = {
            "crop_size": (config.crop_size, config.crop_size),
            "on_bad_sample": config.on_bad_sample,
            "read_inverse_depth": None if depth is None else depth.read,
        }
        self.mixture = DataMixture(
            sources,
            seed=config.seed,
            batch_size=config.batch_size,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
            workers=config.workers,
            **common,
        )
        self.validation = DataMixture(validation_sources, seed=VALIDATION_SEED, batch_size=VALIDATION_VIEWS, **common)

    def samples(self, first: int, micro_steps: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Yield, from forward pass `first` on, its number and its samples; None where their latents are kept."""
        period = self.config.latent_cache
        if period is None:
            yield from zip(itertools.count(first), self.mixture.batches(first))
            return
        loaded = self.mixture.batches(first)
        for index in itertools.count(first):
            if self._cached(index % period).exists():
                yield index, None
            else:
                yield index, next(loaded) if index < period else load_now(self.mixture, index % period)

    def encode(self, sample: tuple[int, dict[str, Any] | None]) -> tuple[torch.Generator, InpaintingBatch]:
        """Render, warp and encode on the device, or take the kept latents.

        Returns:
            the generator from which noise and timesteps are drawn, and the batch.
        """
        index, loaded = sample
        seed, rank = self.config.seed, self.accelerator.process_index
        place = index if self.config.latent_cache is None else index % self.config.latent_cache
        noise_generator = step_generator(seed, index, rank)
        if loaded is None:
            return noise_generator, self._read(place)
        device, settings = self.accelerator.device, self.base.settings
        views = to_views(
            render_sources(loaded, device),
            predicted_disparity=self.config.predicted_disparity,
            generator=step_generator(seed, place, rank, purpose="views"),
        )
        pair = warp_pair(*views, settings["masked_fill"])
        with self.accelerator.autocast():
            batch = encode_pair(self.base.vae, pair, settings["latent_mask_reduction"], self.base.prompt_embeds)
        if self.config.latent_cache is not None:
            self._keep(place, batch)
        return noise_generator, batch

    def held_out(self) -> HeldOutViews:
        """Load and warp the views that validation fills: always the same."""
        generator = step_generator(VALIDATION_SEED, 0, 0)
        batch = render_sources(load_now(self.validation, 0), self.accelerator.device)
        return hold_out(*to_views(batch, predicted_disparity=False, generator=generator))

    def report(self) -> str:
        """List the samples of this process that were replaced."""
        return describe_bad_samples(self.mixture.bad_samples)

    def _cached(self, place: int) -> Path:
        return self.cache / f"{place:06d}.safetensors"

    def _keep(self, place: int, batch: InpaintingBatch) -> None:
        """Write the latents of one forward pass, whole or not at all."""
        self.cache.mkdir(parents=True, exist_ok=True)
        temporary = self._cached(place).with_suffix(".tmp")
        save_file({name: getattr(batch, name).contiguous().cpu() for name in CACHED_FIELDS}, temporary)
        temporary.replace(self._cached(place))

    def _read(self, place: int) -> InpaintingBatch:
        """Read the latents of one forward pass."""
        kept: dict[str, Any] = load_file(self._cached(place), device=str(self.accelerator.device))
        prompt_embeds = self.base.prompt_embeds.to(self.accelerator.device).expand(len(kept["latent_mask"]), -1, -1)
        return InpaintingBatch(**kept, prompt_embeds=prompt_embeds)


def fill_depth_cache(
    config: FineTuningConfig, base: InpaintingBase, accelerator: Accelerator, roots: list[Path]
) -> PhotographDepth:
    """Estimate the depth of all photographs below the roots, once; the other processes wait.

    Raises:
        ValueError: neither `depth_pipeline` nor the base has a depth network.
    """
    folder = config.depth_pipeline or base.folder
    if folder is None or not (folder / "depth_estimator").is_dir():
        raise ValueError(
            "`depth_pipeline` must be a pipeline folder with a depth estimator, because `data` has photographs and "
            f"`base` has none; got {config.depth_pipeline}."
        )
    pipe: Any = ZeroStereoPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    depth = PhotographDepth(config.depth_cache or config.output / "photograph_depth", depth_model_key(pipe))
    if accelerator.is_main_process:
        pipe.to(accelerator.device)
        folders = [PhotographFolder(root) for root in dict.fromkeys(roots)]
        paths = [photographs.root / name for photographs in folders for name in photographs.names]
        depth.fill(paths, lambda image: pipe.estimate_inverse_depth(image)[0].cpu())
    accelerator.wait_for_everyone()
    return depth
