# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks that train share: an interrupted training goes on exactly, crops lie where they should."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import small_training
from benchmarks.small_training import (
    cut_squares,
    draw_crops,
    encode_in_parts,
    linear_rate,
    load_or_make,
    render_scene_batch,
    save_atomically,
    scene_pictures,
    train_resumably,
    unfold,
)
from pipeline_zerostereo import encode_latents
from tests.tiny_components import make_photos, make_tiny_autoencoder
from training.inpainting_loss import WarpedPair
from training.run import step_generator


def small_network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def learn(network: nn.Linear, path: Path, steps: int, stop_after: int | None = None) -> list[float]:
    seen: list[float] = []

    def loss_of_step(generator: torch.Generator) -> Tensor:
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        draw = torch.rand(4, 3, generator=generator)
        seen.append(draw.sum().item())
        return network(draw).square().mean()

    return train_resumably(
        network, loss_of_step, path=path, steps=steps, peak_learning_rate=0.1, seed=5, save_every_steps=3
    )


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path: Path):
    whole, parts = small_network(), small_network()
    losses = learn(whole, tmp_path / "whole.pt", 10)
    with pytest.raises(KeyboardInterrupt):
        learn(parts, tmp_path / "parts.pt", 10, stop_after=8)  # the state on disk is that of step 6
    resumed = small_network()
    assert learn(resumed, tmp_path / "parts.pt", 10) == losses and len(losses) == 10
    assert torch.equal(resumed.weight, whole.weight) and not resumed.training
    assert losses[-1] < losses[0]


def test_a_finished_training_is_loaded(tmp_path: Path):
    whole, again = small_network(), small_network()
    losses = learn(whole, tmp_path / "state.pt", 4)
    assert learn(again, tmp_path / "state.pt", 4, stop_after=0) == losses
    assert torch.equal(again.weight, whole.weight)


def test_learning_rate_rises_and_falls_linearly():
    rates = [linear_rate(step, 100, 2.0) for step in (0, 4, 5, 50, 99)]
    assert rates == pytest.approx([0.4, 2.0, 2.0, 2.0 * 50 / 95, 2.0 / 95])
    assert linear_rate(0, 1, 2.0) == 2.0


def test_what_is_made_once_is_read_afterwards(tmp_path: Path):
    path = tmp_path / "new" / "value.pt"
    assert load_or_make(path, lambda: {"a": torch.ones(2)})["a"].tolist() == [1, 1]

    def refuse():
        raise AssertionError("made again")

    assert load_or_make(path, refuse)["a"].tolist() == [1, 1]
    assert [file.name for file in path.parent.iterdir()] == ["value.pt"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "value.pt"
    save_atomically(1, path)

    def stop(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(small_training.os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        save_atomically(2, path)
    assert torch.load(path, weights_only=True) == 1


def test_crops_lie_in_their_sample_and_at_the_border_when_asked():
    columns = torch.arange(10.0).expand(3, 2, 7, 10) + 100 * torch.arange(3.0).view(3, 1, 1, 1)
    latents = [columns, -columns, columns[:, :1]]
    for share in (0.0, 1.0):
        batch = draw_crops(latents, 40, 4, share, step_generator(0, 0, 0))
        assert batch.target_latents.shape == (40, 2, 4, 4) and batch.latent_mask.shape == (40, 1, 4, 4)
        assert torch.equal(batch.target_latents, -batch.masked_image_latents)
        ends = batch.target_latents[:, 0, 0, -1] % 100
        assert torch.equal(batch.target_latents[:, 0, :, 0] % 100, (ends - 3)[:, None].expand(-1, 4))
        assert ends.unique().tolist() == ([9] if share else [3, 4, 5, 6, 7, 8, 9])
    assert len(batch.prompt_embeds) == 40


def test_squares_of_all_planes_are_cut_alike_and_pictures_are_put_back():
    picture = torch.rand(1, 3, 12, 20, generator=step_generator(0, 0, 0))
    planes = [F.avg_pool2d(picture, 2), F.pixel_unshuffle(picture, 2)]
    small, folded = cut_squares(planes, 5, 4, 0.5, step_generator(1, 0, 0))
    assert unfold(folded).shape == (5, 3, 8, 8)
    torch.testing.assert_close(F.avg_pool2d(unfold(folded), 2), small)


def test_pictures_are_the_right_views(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(small_training, "RENDER_BATCH", 2)
    pictures = unfold(scene_pictures(seed=3, scenes=3, height=24, width=32).float())
    expected = 2 * render_scene_batch(3, 0, 3, 24, 32).right_image - 1
    torch.testing.assert_close(pictures, expected, rtol=0, atol=1e-3)


def test_scenes_do_not_depend_on_how_many_are_rendered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(small_training, "RENDER_BATCH", 2)
    four, two = (render_scene_batch(3, 0, count, 24, 32) for count in (4, 2))
    later = render_scene_batch(3, 2, 2, 24, 32)
    assert torch.equal(four.left_image[:2], two.left_image) and torch.equal(four.left_image[2:], later.left_image)


def test_pairs_are_encoded_part_by_part(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(small_training, "RENDER_BATCH", 2)
    monkeypatch.setattr(small_training, "EMPTY_PROMPT", torch.zeros(1, 1, 32))
    photos, vae = make_photos(3, 8, 12), make_tiny_autoencoder()
    mask = torch.zeros(3, 1, 8, 12, dtype=torch.bool)
    mask[2, 0, 5, 7] = True
    target, masked, latent_mask = encode_in_parts(vae, WarpedPair(2 * photos - 1, photos, mask), "max")
    torch.testing.assert_close(target.float(), encode_latents(vae, 2 * photos - 1), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(masked.float(), encode_latents(vae, photos), rtol=1e-2, atol=1e-2)
    assert latent_mask.nonzero().tolist() == [[2, 0, 2, 3]] and target.dtype == torch.float16
