# SPDX-License-Identifier: Apache-2.0
"""Several processes at one build, and processes that are killed: the bytes are those of one undisturbed process."""

import os
import platform
import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from datasets_builder import generate_pairs
from datasets_builder.manifest import read_manifest
from datasets_builder.options import BuildRequest, describe_source, open_plan, open_source
from datasets_builder.plan import BuildOptions, Plan, make_plan, plan_folder
from datasets_builder.shards import claim, remove_leftovers

ROOT = Path(__file__).resolve().parent.parent
PHOTOS, PAIRS_PER_SHARD = 20, 3
OPTIONS = ("--batch-size", "2", "--pairs-per-shard", str(PAIRS_PER_SHARD), "--device", "cpu")


def make_photographs(folder: Path, count: int, first: int = 0) -> Path:
    """Write smooth photographs of 96x64, every fifth of 64x80, each different, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        width, height = (64, 80) if number % 5 == 4 else (96, 64)
        y, x = np.mgrid[0:height, 0:width].astype(np.float64)
        bands = [np.sin(x / (7 + number) + band) + np.cos(y / (11 + band) - number) for band in range(3)]
        pixels = np.stack(bands, axis=-1) * 60 + 128
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
    return folder


def build_command(photos: Path, output: Path, launcher: Sequence[str] = (sys.executable,)) -> list[str]:
    module = ["-m", "datasets_builder.generate_pairs"]
    return [*launcher, *module, "--photos", str(photos), "--output", str(output), *OPTIONS]


def start(command: list[str], **environment: str) -> subprocess.Popen:
    """Start a process with one thread, its output captured."""
    known = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, cwd=ROOT, env=known, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen) -> str:
    """Wait for a process that must succeed, and return what it printed."""
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-3000:]
    return printed


def contents(output: Path) -> dict[str, bytes]:
    """Return everything that a build publishes."""
    paths = [*sorted((output / "data").iterdir()), output / "manifest.json", output / "rejected.jsonl"]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, and one file that is none."""
    folder = make_photographs(tmp_path_factory.mktemp("photos"), PHOTOS)
    (folder / "torn.png").write_bytes((folder / "00.png").read_bytes()[:40])
    return folder


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes that nobody disturbs."""
    output = tmp_path_factory.mktemp("undisturbed")
    assert generate_pairs.main(build_command(photos, output)[3:]) == 0
    manifest = read_manifest(output)
    assert manifest["counts"] == {"photos": PHOTOS + 1, "pairs": PHOTOS, "rejected": {"unreadable": 1}}
    assert len(manifest["shards"]) == 7
    return contents(output)


@pytest.mark.slow
def test_two_ranks_of_a_launcher_make_the_same_bytes(photos: Path, undisturbed: dict, tmp_path: Path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    process = start(build_command(photos, tmp_path, launcher), ACCELERATE_USE_CPU="true")
    assert "2 processes share the shards." in end(process)
    assert contents(tmp_path) == undisturbed


@pytest.mark.slow
def test_two_processes_that_know_nothing_of_each_other_make_the_same_bytes(
    photos: Path, undisturbed: dict, tmp_path: Path
):
    processes = [start(build_command(photos, tmp_path)) for _ in range(2)]
    printed = [end(process) for process in processes]
    assert any("20 pairs of 21 photographs in 7 shards" in text for text in printed)
    assert contents(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_build_that_is_killed_twice_makes_the_same_bytes(photos: Path, undisturbed: dict, tmp_path: Path):
    """Killed at a random moment after the plan, and at one after the third shard."""
    moments = random.Random(7)
    kept: dict[Path, int] = {}
    for shards_before in (0, 3):
        process = start(build_command(photos, tmp_path))
        while not plan_folder(tmp_path).is_dir() or len(list(tmp_path.glob("data/*"))) < shards_before:
            assert process.poll() is None, "the build must still be at it"
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert process.returncode == -9
        assert not (tmp_path / "manifest.json").exists()
        assert all(path.stat().st_mtime_ns == made for path, made in kept.items())
        kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("data/*")}
        assert shards_before <= len(kept) < 7
    end(start(build_command(photos, tmp_path)))
    assert contents(tmp_path) == undisturbed
    assert all(path.stat().st_mtime_ns == made for path, made in kept.items()), "finished shards are not made again"
    assert list((tmp_path / ".build" / "unfinished").iterdir()) == []


# --- the plan is made once ---


def test_processes_that_start_together_share_one_plan(tmp_path: Path):
    """The plan is looked for again after its claim: who comes second must not make it a second time."""
    request = BuildRequest(photos=make_photographs(tmp_path / "photos", 3), output=tmp_path / "out")
    source, options = open_source(request), BuildOptions(weights_id="w", pipeline_revision="p")
    plans: list[Plan] = []

    def take_part():
        plans.append(open_plan(request, source, options, progress=False, poll_s=0.01))

    with claim(tmp_path / "out", "plan") as mine:
        assert mine
        threads = [threading.Thread(target=take_part) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        assert plans == [] and not plan_folder(tmp_path / "out").exists()
    for thread in threads:  # whoever held the claim has died without a plan, so one of the three makes it
        thread.join(timeout=10)
    assert [plan.photo_count for plan in plans] == [3, 3, 3]
    made = plan_folder(tmp_path / "out").stat().st_ino
    take_part()
    assert plan_folder(tmp_path / "out").stat().st_ino == made


def test_a_process_that_waited_for_the_plan_checks_it_too(tmp_path: Path):
    request = BuildRequest(photos=make_photographs(tmp_path / "photos", 2), output=tmp_path / "out")
    source, options = open_source(request), BuildOptions(weights_id="w", pipeline_revision="p")
    errors: list[ValueError] = []

    def take_part_with_another_seed():
        try:
            open_plan(request, source, BuildOptions(weights_id="w", pipeline_revision="p", seed=5), False, 0.01)
        except ValueError as error:
            errors.append(error)

    with claim(tmp_path / "out", "plan"):
        thread = threading.Thread(target=take_part_with_another_seed)
        thread.start()
        time.sleep(0.05)
        make_plan(source, options, tmp_path / "out", describe_source(request, source), progress=False)
    thread.join(timeout=10)
    assert len(errors) == 1 and "seed 0 -> 5" in str(errors[0])


# --- what the killed leave behind ---


def test_leftovers_of_living_processes_and_of_other_machines_stay(tmp_path: Path):
    folder = tmp_path / ".build" / "unfinished"
    folder.mkdir(parents=True)
    node, dead = platform.node(), 2**22 + 1  # above the largest process id of Linux
    stays = {f"train-0.parquet.{node}.{os.getpid()}", f"train-1.parquet.elsewhere.{dead}"}
    for name in {*stays, f"train-2.parquet.{node}.{dead}"}:
        (folder / name).touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in folder.iterdir()} == stays
