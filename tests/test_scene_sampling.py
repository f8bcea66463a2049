# SPDX-License-Identifier: Apache-2.0
"""Which scenes a training step sees: a function of the step, and never a held-out one."""

from pathlib import Path

import torch

from tests.training_helpers import POOL_OPTIONS, SCENE_SIZE
from training import scene_sampling
from training.run import step_generator
from training.scene_sampling import PoolConfig, draw_scene_indices, draw_scenes, held_out_scenes, open_pool


def make_config(folder: Path, **changes) -> PoolConfig:
    return PoolConfig(output=folder / "run", pool=folder / "pool", **(POOL_OPTIONS | changes))


def test_available_scenes_grow_with_the_step():
    config = make_config(Path("x"), pool_scenes=100, first_scenes=10, scenes_per_step=2.5)
    assert [config.available_scenes(step) for step in (0, 1, 2, 10, 36, 1000)] == [10, 12, 15, 35, 100, 100]
    assert make_config(Path("x"), pool_scenes=100).available_scenes(0) == 100


def test_a_share_is_drawn_from_the_newest():
    indices = draw_scene_indices(
        40, available=1000, newest_scenes=10, newest_share=0.25, generator=step_generator(0, 0, 0)
    )
    assert len(indices) == 40
    assert all(990 <= index < 1000 for index in indices[:10])
    assert all(0 <= index < 1000 for index in indices[10:]) and min(indices) < 300


def test_a_young_pool_has_only_newest_scenes():
    indices = draw_scene_indices(
        50, available=3, newest_scenes=10, newest_share=0.5, generator=step_generator(0, 0, 0)
    )
    assert set(indices) == {0, 1, 2}


def test_drawn_scenes_depend_on_the_step_only(tmp_path):
    config = make_config(tmp_path)
    pool = open_pool(config)
    first, again, other = (draw_scenes(pool, config, 0, step_generator(0, step, 0)) for step in (4, 4, 5))
    assert first.left_image.shape == (4, 3, *SCENE_SIZE)
    assert torch.equal(first.left_image, again.left_image)
    assert not torch.equal(first.left_image, other.left_image)


def test_more_held_out_scenes_keep_the_first_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_sampling, "RENDER_BATCH", 3)
    few, many = (held_out_scenes(make_config(tmp_path, validation_scenes=count)) for count in (2, 5))
    assert [len(few.left_image), len(many.left_image)] == [2, 5]
    assert all(torch.equal(a, b[:2]) for a, b in zip(few, many, strict=True))
    assert not torch.equal(many.left_image[0], many.left_image[3])
