# SPDX-License-Identifier: Apache-2.0
"""Train a stereo network on generated pairs: the paper's last stage.

The paper's training, on one GPU; then on eight:

    accelerate launch -m training.train_stereo --network raft --preset paper --data hub:ORG/PAIRS@REVISION:1 \
        --output runs/zero-raft-stereo
    accelerate launch --config_file training/accelerate_configs/eight_gpus.yaml -m training.train_stereo \
        --network igev --preset paper --batch-size 1 --data mfs35k:/data/MfS35K:1 --output runs/zero-igev-stereo

Go on from published weights, on generated pairs and rendered scenes, half of them in bad weather:

    accelerate launch -m training.train_stereo --base raftstereo-sceneflow.pth --data pairs:out/pairs:0.7 \
        --data procedural:0.3 --weather right --mixed-precision fp16 --output runs/stereo

CPU smoke run (a minute; the network is too young to be of use):

    python -m training.train_stereo --network raft --trunk-channels 8 12 16 --feature-channels 16 --hidden-channels 8 \
        --data procedural:1 --crop-size 64 96 --batch-size 2 --iterations 4 --validation-iterations 4 --workers 0 \
        --validation-scenes 2 --max-steps 4 --warmup-steps 1 --validate-every-steps 4 --output runs/smoke/stereo

A killed run goes on with --resume as if nothing had happened. It ends with `OUTPUT/stereo_network/`, which
`RAFTStereo.from_pretrained` or `IGEVStereo.from_pretrained` loads, and --push-to-hub publishes it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from training.pair_mixture import PairMixture
from training.run import TrainingRun, make_accelerator, parse_config, require, write_text_atomically
from training.stereo_options import PRESETS, StereoConfig, make_network
from training.stereo_result import publish, save_result
from training.stereo_training import hold_out_scenes, stereo_training_step, take_batch, validate

DATA_FILE = "data.json"  # in the output: what was opened


def train(config: StereoConfig) -> Path:
    """Train as `config` says; returns the folder of the network, or `output` where the clock stopped the run."""
    accelerator = make_accelerator(config)
    torch.manual_seed(config.seed)  # first weights

    # 1. Build: network, optimiser, data.
    bare = make_network(config)
    options = config.step_options(bare)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    mixture = PairMixture(
        config.sources(),
        seed=config.seed,
        batch_size=config.batch_size,
        crop_size=config.crop_size,
        weather=config.weather,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        workers=config.workers,
    )
    held_out = hold_out_scenes(config.validation_scenes, config.crop_size)

    # 2. Prepare: devices and processes; go on from a checkpoint.
    network, optimizer = accelerator.prepare(bare, optimizer)
    check_same_data(config, mixture.identity())
    run = TrainingRun(accelerator, config, network, optimizer)
    if accelerator.is_main_process:
        write_text_atomically(config.output / DATA_FILE, json.dumps(mixture.identity(), indent=2) + "\n")
    loaded = run.waited_for(mixture.batches(run.first_step * run.micro_steps))

    # 3. Step, log, validate, save.
    for step in run.steps():
        figures: dict[str, torch.Tensor] = {}
        for micro_step in range(run.micro_steps):
            batch = take_batch(mixture.finish(next(loaded), accelerator.device))
            with run.no_exchange(micro_step):
                loss, found = stereo_training_step(network, batch, options)  # runs under autocast, the loss does not
                run.backward(loss)
            figures = {name: figures.get(name, 0) + value / run.micro_steps for name, value in found.items()}
        run.update(step)
        run.log_step(step, figures, samples=config.batch_size * run.micro_steps)
        if run.is_due(step, config.validate_every_steps):
            with run.averaged_network() as averaged:
                measured, picture = validate(averaged, held_out, config.validation_iterations, accelerator.device)
            run.log(step, measured)
            run.save_picture(step, picture)

    # 4. End.
    folder = end(run)
    run.finish()
    return folder


def check_same_data(config: StereoConfig, identity: dict[str, str]) -> None:
    """Refuse to go on with other samples than the run began with: a data set that has grown, another commit.

    Raises:
        ValueError: so it is, and changes are not allowed.
    """
    path = config.output / DATA_FILE
    stored = json.loads(path.read_text()) if config.resume and path.is_file() else identity
    rule = f"goes on with the samples that {path} names, {stored}, unless --allow-changes is given"
    require(stored == identity or config.allow_changes, "data", rule, identity)


def end(run: TrainingRun) -> Path:
    """Write the result of a run that came to its end, and publish it where asked; return its folder."""
    config = run.config
    if run.completed < config.max_steps:
        return config.output  # stopped by the clock: the checkpoint is there, --resume goes on
    folder = save_result(run)
    if isinstance(config, StereoConfig) and config.push_to_hub and run.accelerator.is_main_process:
        print(publish(run.bare_network.from_pretrained(folder), folder, config.push_to_hub))
    return folder


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says."""
    train(parse_config(StereoConfig, arguments, description=__doc__, presets=PRESETS))


if __name__ == "__main__":
    main()
