# SPDX-License-Identifier: Apache-2.0
"""Train the inpainting UNet: it fills what the photograph's eye could not see.

Fine-tune a published inpainting model, the paper's second stage (one GPU; then eight):

    accelerate launch -m training.train_inpainting --base sd2-community/stable-diffusion-2-inpainting --preset paper \
        --data sceneflow:/data/sceneflow:1 --data tartanair:/data/tartanair:1 --output runs/stereogen
    accelerate launch --config_file training/accelerate_configs/eight_gpus.yaml -m training.train_inpainting \
        --base sd2-community/stable-diffusion-2-inpainting --preset paper --batch-size 4 ... --output runs/stereogen

A LoRA on photographs alone, on one small GPU:

    accelerate launch -m training.train_inpainting --base runs/zerostereo --lora-rank 16 --gradient-checkpointing \
        --mixed-precision bf16 --batch-size 1 --total-batch-size 16 --data photos:/data/photos:1 --output runs/lora

CPU smoke run (a minute):

    python -m training.train_inpainting --base weights/zerostereo-tiny --data procedural:1 --crop-size 64 --workers 0 \
        --batch-size 2 --max-steps 4 --warmup-steps 1 --validate-every-steps 4 --output runs/smoke/fine-tuned

A killed run goes on with --resume as if nothing had happened. It ends with `OUTPUT/pipeline/`, a folder to publish
(`OUTPUT/lora/` with --lora-rank), and --push-to-hub uploads it. A UNet of SDXL is trained too; it ends as
`OUTPUT/unet/`, because the pipeline of this project cannot run it yet.

With --pool, a small UNet is trained from random weights, as those of this repository were; its options are others,
see `--pool --help`. It ends with `OUTPUT/unet/`, `OUTPUT/scheduler/` and `OUTPUT/pipeline.json`:

    accelerate launch -m training.train_inpainting --pool pool --vae runs/autoencoder/vae --output runs/inpainting \
        --mixed-precision bf16
    python -m training.train_inpainting --pool scenes/smoke --pool-scenes 64 --validation-scenes 4 --max-steps 10 \
        --vae runs/smoke/autoencoder/vae --validate-every-steps 10 --output runs/smoke/inpainting      # CPU, minutes
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from pipeline_zerostereo import ZeroStereoPipeline
from training import fine_tuning, inpainting_from_scratch
from training.base_model import InpaintingBase
from training.fine_tuning import PRESETS, FineTuningConfig, Loss, make_loss, make_optimizer
from training.inpainting_data import MixtureBatches
from training.inpainting_from_scratch import FromScratchConfig, PoolBatches
from training.inpainting_result import publish, save_result, save_unet
from training.inpainting_validation import HeldOutViews, validate
from training.run import TrainingRun, learning_parameters, make_accelerator, parse_config

FROM_SCRATCH_VALIDATION_STEPS = (1, 4)  # denoising steps


def train(config: FineTuningConfig | FromScratchConfig) -> Path:
    """Train as `config` says; returns the folder of the result."""
    accelerator = make_accelerator(config)
    torch.manual_seed(config.seed)  # first weights of a small UNet, or of a LoRA

    # 1. Build: networks, optimiser, data, and what inference will do with the network.
    base, optimizer, loss_of = build(config, accelerator.device)
    base.vae.to(accelerator.device)
    batches = make_batches(config, base, accelerator)
    pipe = ZeroStereoPipeline(base.unet, base.vae, base.scheduler, **base.settings)
    pipe.set_progress_bar_config(disable=True)
    held_out = batches.held_out()

    # 2. Prepare: devices and processes; go on from a checkpoint.
    network, optimizer = accelerator.prepare(base.unet, optimizer)
    run = TrainingRun(accelerator, config, network, optimizer)
    samples = run.waited_for(batches.samples(run.first_step * run.micro_steps, run.micro_steps))

    # 3. Step, log, validate, save.
    for step in run.steps():
        losses = []
        for micro_step in range(run.micro_steps):
            generator, batch = batches.encode(next(samples))
            with run.no_exchange(micro_step):
                loss = loss_of(network, batch, generator)
                run.backward(loss)  # the prepared network ran under autocast
            losses.append(loss.detach())
        run.update(step)
        run.log_step(step, {"loss": torch.stack(losses).mean()}, samples=config.batch_size * run.micro_steps)
        if run.is_due(step, config.validate_every_steps):
            log_validation(run, step, pipe, held_out)
            if isinstance(config, FromScratchConfig):
                save_unet(run, base)

    # 4. End.
    if report := batches.report():
        print(report)
    folder = save(run, base)
    run.finish()
    return folder


def save(run: TrainingRun, base: InpaintingBase) -> Path:
    """Write the result of a run that came to its end, and publish it where asked; return its folder."""
    config = run.config
    if isinstance(config, FromScratchConfig):
        return save_unet(run, base)
    if run.completed < config.max_steps:
        return config.output  # stopped by the clock: the checkpoint is there, --resume goes on
    folder = save_result(run, base)
    if isinstance(config, FineTuningConfig) and config.push_to_hub and run.accelerator.is_main_process:
        print(publish(folder, config.push_to_hub))
    return folder


def build(
    config: FineTuningConfig | FromScratchConfig, device: torch.device
) -> tuple[InpaintingBase, torch.optim.Optimizer, Loss]:
    """Make networks, optimiser, and the loss of (network, batch, generator)."""
    if isinstance(config, FromScratchConfig):
        base = inpainting_from_scratch.make_base(config)
        return base, *inpainting_from_scratch.make_optimizer_and_loss(config, base)
    base = fine_tuning.make_base(config)
    optimizer = make_optimizer(config.optimizer, learning_parameters(base.unet), config.weight_decay)
    return base, optimizer, make_loss(config, base, device)


def make_batches(
    config: FineTuningConfig | FromScratchConfig, base: InpaintingBase, accelerator: Any
) -> MixtureBatches | PoolBatches:
    """Open the data."""
    kind = PoolBatches if isinstance(config, FromScratchConfig) else MixtureBatches
    return kind(config, base, accelerator)  # pyright: ignore[reportArgumentType]


def log_validation(run: TrainingRun, step: int, pipe: ZeroStereoPipeline, held_out: HeldOutViews) -> None:
    """Fill the held-out views with the weights that would be saved; write figures and picture."""
    steps = (pipe.config.default_num_inference_steps,)
    if isinstance(run.config, FromScratchConfig):
        steps = FROM_SCRATCH_VALIDATION_STEPS
    with run.averaged_network(), run.accelerator.autocast():
        figures, picture = validate(pipe, held_out, steps)
    run.log(step, figures)
    run.save_picture(step, picture)


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says."""
    words = sys.argv[1:] if arguments is None else arguments
    if any(word.split("=")[0] == "--pool" for word in words):
        train(parse_config(FromScratchConfig, words, description=__doc__))
    else:
        train(parse_config(FineTuningConfig, words, description=__doc__, presets=PRESETS))


if __name__ == "__main__":
    main()
