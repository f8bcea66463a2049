# SPDX-License-Identifier: Apache-2.0
"""The depth of photographs on disk: estimated once, known by content, whole or not there."""

import os
import threading
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from tests.tiny_components import embedded_pipeline, formula_pipeline, make_photos
from training.photograph_depth import STEPS, PhotographDepth, depth_model_key, file_key


def write_photo(path: Path, height: int = 6, width: int = 9, seed: int = 0, **options) -> Path:
    pixels = (make_photos(1, height, width, seed)[0].movedim(0, -1) * 255).round().byte().numpy()
    PIL.Image.fromarray(pixels).save(path, **options)
    return path


class Counting:
    """An estimate that counts its calls: the green of the photograph."""

    def __init__(self):
        self.shapes: list[list[int]] = []

    def __call__(self, image: Tensor) -> Tensor:
        self.shapes.append(list(image.shape))
        return image[:, 1:2]


def test_a_map_is_estimated_once_and_read_back(tmp_path: Path):
    photo = write_photo(tmp_path / "photo.png")
    cache, estimate = PhotographDepth(tmp_path / "cache", "model"), Counting()
    assert [cache.fill([photo], estimate) for _ in range(2)] == [1, 0]
    assert estimate.shapes == [[1, 3, 6, 9]]
    found = cache.read(photo)
    assert found.shape == (1, 6, 9) and found.dtype == torch.float32
    green = torch.from_numpy(np.array(PIL.Image.open(photo)))[..., 1] / 255
    torch.testing.assert_close(found[0], green, rtol=0, atol=0.5 / STEPS + 1e-7)
    assert [path.name for path in (tmp_path / "cache").rglob("*.*")] == [f"{file_key(photo)}.npy"]


def test_content_counts_not_the_name(tmp_path: Path):
    photo, other = write_photo(tmp_path / "a.png"), write_photo(tmp_path / "b.png", seed=1)
    copy = tmp_path / "copy.png"
    copy.write_bytes(photo.read_bytes())
    cache, estimate = PhotographDepth(tmp_path, "model"), Counting()
    assert cache.fill([photo, copy, other], estimate) == 2
    assert torch.equal(cache.read(photo), cache.read(copy))
    assert not torch.equal(cache.read(photo), cache.read(other))
    copy.write_bytes(other.read_bytes())
    assert torch.equal(cache.read(copy), cache.read(other))


def test_orientation_is_applied(tmp_path: Path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    photo = write_photo(tmp_path / "turned.jpg", exif=exif)
    cache = PhotographDepth(tmp_path, "model")
    cache.fill([photo], Counting())
    assert cache.read(photo).shape == (1, 9, 6)


def test_another_model_has_its_own_maps(tmp_path: Path):
    photo = write_photo(tmp_path / "photo.png")
    PhotographDepth(tmp_path, "first").fill([photo], Counting())
    with pytest.raises(FileNotFoundError, match="`photograph` must have been through `fill`; got .*photo.png"):
        PhotographDepth(tmp_path, "second").read(photo)


def test_the_key_of_a_model_follows_weights_and_settings():
    key = depth_model_key(embedded_pipeline())
    assert key == depth_model_key(embedded_pipeline()) and len(key) == 16
    assert key != depth_model_key(embedded_pipeline(default_depth_resolution=56))
    changed = embedded_pipeline()
    with torch.no_grad():
        next(changed.depth_estimator.parameters()).view(-1)[0] += 1
    assert key != depth_model_key(changed)
    half = embedded_pipeline()
    half.depth_estimator.to(torch.bfloat16)
    assert key != depth_model_key(half)


def test_the_depth_network_of_a_pipeline_fills_it(tmp_path: Path):
    photo, pipe = write_photo(tmp_path / "photo.png", 10, 14), formula_pipeline(lambda pixels: pixels[:, 0])
    cache = PhotographDepth(tmp_path, "formula")
    cache.fill([photo], lambda image: pipe.estimate_inverse_depth(image)[0])
    expected = pipe.estimate_inverse_depth(PIL.Image.open(photo))[0][0]
    torch.testing.assert_close(cache.read(photo), expected, rtol=0, atol=0.5 / STEPS + 1e-7)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    photo, cache = write_photo(tmp_path / "photo.png"), PhotographDepth(tmp_path / "cache", "model")

    def stop(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        cache.fill([photo], Counting())
    monkeypatch.undo()
    assert list(cache.folder.iterdir()) == []
    assert cache.fill([photo], Counting()) == 1


def test_two_at_once_leave_one_whole_map(tmp_path: Path):
    photo, cache = write_photo(tmp_path / "photo.png"), PhotographDepth(tmp_path / "cache", "model")
    both_estimated = threading.Barrier(2)

    def estimate(image: Tensor) -> Tensor:
        both_estimated.wait(timeout=10)  # neither has written when the other begins to
        return image[:, :1]

    threads = [threading.Thread(target=cache.fill, args=([photo], estimate)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert [path.name for path in cache.folder.iterdir()] == [f"{file_key(photo)}.npy"]
    assert cache.read(photo).shape == (1, 6, 9)


def test_an_estimate_that_breaks_its_promise_is_refused(tmp_path: Path):
    photo, cache = write_photo(tmp_path / "photo.png"), PhotographDepth(tmp_path / "cache", "model")
    with pytest.raises(ValueError, match=r"`estimate` must return shape \[1, 1, 6, 9\] for .*; got \[1, 3, 6, 9\]"):
        cache.fill([photo], lambda image: image)
    with pytest.raises(ValueError, match=r"`estimate` must return values in \[0, 1\] for .*; got"):
        cache.fill([photo], lambda image: image[:, :1] + 1)
    with pytest.raises(ValueError, match="got nan to nan"):
        cache.fill([photo], lambda image: image[:, :1] * torch.nan)
    assert not cache.folder.exists()


def test_what_is_no_photograph_is_named(tmp_path: Path):
    text = tmp_path / "notes.jpg"
    text.write_text("no picture")
    with pytest.raises(PIL.UnidentifiedImageError, match="notes.jpg"):
        PhotographDepth(tmp_path, "model").fill([text], Counting())
    with pytest.raises(FileNotFoundError, match="gone.jpg"):
        PhotographDepth(tmp_path, "model").fill([tmp_path / "gone.jpg"], Counting())


def test_a_pipeline_without_depth_estimator_has_no_key():
    with pytest.raises(ValueError, match="`pipe` must have a depth estimator; got None"):
        depth_model_key(embedded_pipeline(depth_estimator=None))
