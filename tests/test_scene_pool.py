# SPDX-License-Identifier: Apache-2.0
"""The folder of rendered scenes: what is stored comes back, chunks are whole or absent, processes do not collide."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from training import render_scenes as render_scenes_script
from training import scene_pool
from training.procedural_scenes import SceneBatch, render_scenes, scene_generator
from training.scene_pool import ScenePool

ROOT = Path(__file__).resolve().parent.parent
SIZE = {"height": 16, "width": 24}


def small_pool(directory: Path, **changes) -> ScenePool:
    return ScenePool(directory, **{"seed": 5, "scenes": 5, "scenes_per_chunk": 3, **SIZE, **changes})


def test_scenes_come_back_as_they_were_rendered(tmp_path: Path):
    pool = small_pool(tmp_path)
    expected = render_scenes(2, **SIZE, generator=scene_generator(5, 1))  # chunk 1 holds scenes 3 and 4
    found = pool.scenes_at([4, 3, 4])
    assert isinstance(found, SceneBatch)
    for name, value in found._asdict().items():
        assert value.dtype == torch.float32
        wanted = getattr(expected, name)[[1, 0, 1]]
        step = 1 / 255 if name.endswith("image") else 1 / 256
        assert (value - wanted).abs().max() <= step / 2 + 1e-6
    assert [path.name for path in tmp_path.glob("*.npy")] == ["v1-seed5-16x24-chunk00001-of2.npy"]


def test_chunks_cover_all_scenes_and_the_last_one_is_shorter(tmp_path: Path):
    pool = small_pool(tmp_path)
    assert (len(pool), pool.chunk_count, pool.chunk_length(0), pool.chunk_length(1)) == (5, 2, 3, 2)
    assert pool.chunks_ready() == []
    pool.render_chunk(1)
    assert pool.chunks_ready() == [1]


def test_chunk_name_holds_everything_that_decides_the_content(tmp_path: Path):
    paths = {
        small_pool(tmp_path / str(number), **changes).chunk_path(0).name
        for number, changes in enumerate(
            [{}, {"seed": 6}, {"height": 17}, {"width": 25}, {"scenes_per_chunk": 4}, {"scenes": 2}]
        )
    }
    assert len(paths) == 6


def test_existing_chunk_is_left_alone(tmp_path: Path):
    pool = small_pool(tmp_path)
    pool.render_chunk(0)
    path = pool.chunk_path(0)
    os.utime(path, (1, 1))
    pool.render_chunk(0)
    assert path.stat().st_mtime == 1


def test_a_missing_scene_is_read_without_touching_other_chunks(tmp_path: Path):
    pool = small_pool(tmp_path)
    pool.render_chunk(0)
    small_pool(tmp_path).scenes_at([2])
    assert pool.chunks_ready() == [0]


@pytest.mark.parametrize(("name", "value"), [("seed", 6), ("height", 32), ("width", 12), ("scenes_per_chunk", 4)])
def test_another_pool_in_the_folder_is_refused(tmp_path: Path, name: str, value: int):
    small_pool(tmp_path)
    mine = {"seed": 5, "scenes_per_chunk": 3, **SIZE}[name]
    with pytest.raises(ValueError, match=rf"pool with {name} {value}; .*pool.json says {name} {mine}"):
        small_pool(tmp_path, **{name: value})


def test_another_version_of_the_scenes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small_pool(tmp_path)
    monkeypatch.setattr(scene_pool, "SCENES_VERSION", 99)
    with pytest.raises(ValueError, match="pool with version 99; .* says version 1"):
        small_pool(tmp_path)


def test_a_larger_pool_keeps_whole_chunks(tmp_path: Path):
    small_pool(tmp_path).scenes_at([0, 4])
    larger = small_pool(tmp_path, scenes=9)
    assert larger.chunks_ready() == [0]  # the chunk of two scenes is another chunk than that of three
    assert json.loads((tmp_path / "pool.json").read_text())["seed"] == 5


@pytest.mark.parametrize("name", ["scenes", "scenes_per_chunk"])
def test_numbers_below_one_are_refused(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1; got 0"):
        small_pool(tmp_path, **{name: 0})


def test_numbers_outside_the_pool_are_refused(tmp_path: Path):
    pool = small_pool(tmp_path)
    with pytest.raises(ValueError, match=r"`indices` must be in 0 ... 4; got 5"):
        pool.scenes_at([5])
    with pytest.raises(ValueError, match=r"`indices` must be in 0 ... 4; got -1"):
        pool.scenes_at([-1])
    with pytest.raises(ValueError, match=r"`chunk` must be in 0 ... 1; got 2"):
        pool.chunk_path(2)


def test_disparity_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="`left_disparity` must be at most 255.99609375 px to be stored; got 300.0"):
        scene_pool._encode("left_disparity", torch.full((1, 1, 2, 3), 300.0))


def test_partial_file_of_a_dead_writer_is_overwritten_and_never_read(tmp_path: Path):
    pool = small_pool(tmp_path)
    path = pool.chunk_path(0)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(b"half a chunk" * 1000)
    assert pool.chunks_ready() == []
    small_pool(tmp_path / "other").render_chunk(0)
    pool.render_chunk(0)
    assert not partial.exists()
    assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


def test_two_processes_rendering_one_chunk_are_harmless(tmp_path: Path):
    pool = small_pool(tmp_path)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=pool.render_chunk, args=(0,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [path.suffix for path in tmp_path.iterdir() if path.name.startswith("v1")] == [".npy"]
    small_pool(tmp_path / "alone").render_chunk(0)
    assert pool.chunk_path(0).read_bytes() == (tmp_path / "alone" / pool.chunk_path(0).name).read_bytes()


def test_the_second_writer_of_a_chunk_uses_what_the_first_one_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pool, started = small_pool(tmp_path), threading.Event()
    calls, original = [], ScenePool._render_records

    def slow(self: ScenePool, chunk: int) -> np.ndarray:
        calls.append(chunk)
        started.set()
        time.sleep(0.3)
        return original(self, chunk)

    monkeypatch.setattr(ScenePool, "_render_records", slow)
    first = threading.Thread(target=pool.render_chunk, args=(0,))
    first.start()
    started.wait(10)
    small_pool(tmp_path).render_chunk(0)
    first.join(10)
    assert calls == [0]
    assert pool.chunks_ready() == [0]
    assert not list(tmp_path.glob("*.partial"))


def test_reader_waits_for_a_renderer_at_work_and_renders_when_it_is_gone(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(scene_pool, "POLL_SECONDS", 0.01)
    pool, reader, result = small_pool(tmp_path), small_pool(tmp_path), []
    assert not reader.has_renderer()
    with pool.renderer_at_work():
        assert reader.has_renderer()
        thread = threading.Thread(target=lambda: result.append(reader.scenes_at([0])))
        thread.start()
        time.sleep(0.2)
        assert result == []
        assert reader.chunks_ready() == []
        small_pool(tmp_path).scenes_at([3], wait=False)  # rendered here at once
        assert reader.chunks_ready() == [1]
    thread.join(20)
    assert len(result) == 1
    assert reader.chunks_ready() == [0, 1]


def test_script_fills_its_share_and_is_resumed(tmp_path: Path):
    arguments = ["--pool", str(tmp_path), "--scenes", "5", "--scenes-per-chunk", "2", "--seed", "5"]
    arguments += ["--height", "16", "--width", "24"]
    render_scenes_script.main([*arguments, "--worker", "1", "--workers", "2"])
    pool = small_pool(tmp_path, scenes_per_chunk=2)
    assert pool.chunks_ready() == [1]
    render_scenes_script.main(arguments)
    assert pool.chunks_ready() == [0, 1, 2]


def test_script_refuses_a_worker_outside_its_number(tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        render_scenes_script.main(["--pool", str(tmp_path), "--scenes", "5", "--worker", "2", "--workers", "2"])
    assert "`--worker` must be in 0 ... 1; got 2." in capsys.readouterr().err


@pytest.mark.slow
def test_killed_script_leaves_only_whole_chunks(tmp_path: Path):
    arguments = [
        "--pool",
        str(tmp_path),
        "--scenes",
        "200",
        "--scenes-per-chunk",
        "4",
        "--height",
        "48",
        "--width",
        "64",
    ]
    command = [sys.executable, "-m", "training.render_scenes", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.npy"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    pool = ScenePool(tmp_path, seed=0, scenes=200, scenes_per_chunk=4, height=48, width=64)
    ready = pool.chunks_ready()
    assert len(ready) >= 2
    assert not pool.has_renderer()
    for chunk in ready:
        assert len(np.load(pool.chunk_path(chunk))) == 4
    pool.scenes_at([4 * (max(ready) + 1)])  # the chunk that was interrupted
    assert len(pool.chunks_ready()) == len(ready) + 1
