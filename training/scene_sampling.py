# SPDX-License-Identifier: Apache-2.0
"""Which scenes of a pool a training step sees, as a function of the step; and the held-out scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from training.procedural_scenes import SceneBatch, render_scenes, scene_generator
from training.run import RunConfig, option, require
from training.scene_pool import ScenePool

RENDER_BATCH = 16  # held-out scenes rendered in one call


@dataclass(frozen=True, kw_only=True)
class PoolConfig(RunConfig):
    """Options of scripts that learn from a pool of procedural scenes, which may still be growing."""

    pool: Path = option(help="folder of rendered scenes; missing ones are rendered on the way", group="data")
    pool_seed: int = option(0, help="seed of the pool", group="data", at_least=0)
    pool_scenes: int = option(2048, help="scenes in the pool", group="data", at_least=1)
    scene_size: tuple[int, int] = option((192, 256), help="height and width of a scene, px", group="data", at_least=16)
    scenes_per_chunk: int = option(64, help="scenes in one file of the pool", group="data", at_least=1)
    first_scenes: int | None = option(
        None, help="scenes in use at step 0; none = the whole pool from the start", group="data", at_least=1
    )
    scenes_per_step: float = option(
        0.0, help="scenes that each step adds to --first-scenes, until --pool-scenes", group="data", at_least=0
    )
    newest_scenes: int = option(1024, help="how many scenes count as the newest", group="data", at_least=1)
    newest_share: float = option(
        0.25, help="share of a batch drawn from the newest scenes", group="data", at_least=0, at_most=1
    )
    validation_scenes: int = option(32, help="held-out scenes, rendered at the start", group="data", at_least=1)
    validation_seed: int = option(900_001, help="seed of the held-out scenes", group="data", at_least=0)

    def __post_init__(self):
        """Check the ranges, and that no held-out scene can be a training scene."""
        super().__post_init__()
        require(len(self.scene_size) == 2, "scene_size", "must be height and width", self.scene_size)
        seed = self.validation_seed
        require(seed != self.pool_seed, "validation_seed", "must differ from `pool_seed`", seed)

    def available_scenes(self, step: int) -> int:
        """Count the scenes that step `step` may draw from; a function of the step alone."""
        if self.first_scenes is None:
            return self.pool_scenes
        return min(self.pool_scenes, self.first_scenes + int(step * self.scenes_per_step))


def open_pool(config: PoolConfig) -> ScenePool:
    """Open the pool that `config` names."""
    height, width = config.scene_size
    return ScenePool(
        config.pool,
        seed=config.pool_seed,
        scenes=config.pool_scenes,
        height=height,
        width=width,
        scenes_per_chunk=config.scenes_per_chunk,
    )


def draw_scene_indices(
    count: int, *, available: int, newest_scenes: int, newest_share: float, generator: torch.Generator
) -> list[int]:
    """Draw `count` scenes of the first `available`: round(count * newest_share) of them from the newest ones."""
    newest = min(newest_scenes, available)
    from_newest = round(count * newest_share)
    recent = torch.randint(available - newest, available, (from_newest,), generator=generator)
    anywhere = torch.randint(0, available, (count - from_newest,), generator=generator)
    return [*recent.tolist(), *anywhere.tolist()]


def draw_scenes(pool: ScenePool, config: PoolConfig, step: int, generator: torch.Generator) -> SceneBatch:
    """Read the scenes of one step."""
    indices = draw_scene_indices(
        config.batch_size,
        available=config.available_scenes(step),
        newest_scenes=config.newest_scenes,
        newest_share=config.newest_share,
        generator=generator,
    )
    return pool.scenes_at(indices)


def held_out_scenes(config: PoolConfig) -> SceneBatch:
    """Render the scenes of the validation seed; whole batches, so that their number does not change the first ones."""
    batches = []
    for index in range(-(-config.validation_scenes // RENDER_BATCH)):
        generator = scene_generator(config.validation_seed, index)
        batches.append(render_scenes(RENDER_BATCH, *config.scene_size, generator=generator))
    return SceneBatch(*(torch.cat(parts)[: config.validation_scenes] for parts in zip(*batches, strict=True)))
