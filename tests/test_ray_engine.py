# SPDX-License-Identifier: Apache-2.0
"""Tests of the build on a Ray cluster: killed workers and drivers cost their shards in flight, and no byte changes.

One cluster of this machine serves all tests; drivers join it by its address, as they would join one of many machines.
"""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from datasets_builder import generate_pairs
from datasets_builder.manifest import read_manifest, unfinished_shards
from datasets_builder.options import BuildRequest, build_options, load_pipeline, open_plan, open_source
from datasets_builder.plan import Plan

ray = pytest.importorskip("ray", reason="needs the module 'ray': requirements-ray.txt", exc_type=ModuleNotFoundError)
from datasets_builder import ray_engine  # noqa: E402
from datasets_builder.ray_engine import ShardCounts, ShardWorker, absolute, run_shards  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PHOTOS, SHARDS = 24, 8
OPTIONS = ["--batch-size", "2", "--pairs-per-shard", "3", "--device", "cpu", "--seed", "5"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of 96x64, each different, and one file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[0:64, 0:96]
    for number in range(PHOTOS):
        pixels = np.stack([(x * (number + 2)) % 256, (y * 3 + number * 9) % 256, (x * 2 + y) % 256], axis=-1)
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
    (folder / "torn.png").write_bytes((folder / "00.png").read_bytes()[:40])
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Start a cluster with room for two workers; gives its address."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    context = ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield context.address_info["address"]
    ray.shutdown()


def contents(output: Path) -> dict[str, bytes]:
    """Return everything that a build publishes."""
    paths = [*sorted((output / "data").iterdir()), output / "manifest.json", output / "rejected.jsonl"]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}


def finished(output: Path) -> dict[Path, int]:
    """Return the moment at which each shard appeared."""
    return {path: path.stat().st_mtime_ns for path in output.glob("data/*")}


def start_driver(photos: Path, output: Path, address: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "datasets_builder.ray_engine", "--address", address, "--workers", "2"]
    return subprocess.Popen(
        [*command, "--photos", str(photos), "--output", str(output), *OPTIONS],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Callable[[], Any], driver: subprocess.Popen) -> Any:
    """Look until there is something to see, while the driver lives."""
    while not (seen := condition()):
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.003)
    return seen


@pytest.mark.slow
def test_a_killed_driver_and_a_killed_worker_change_no_byte(photos: Path, cluster: str, tmp_path: Path):
    """The driver is killed after the first shard; of the second driver, a worker is killed amid a shard."""
    alone, output = tmp_path / "alone", tmp_path / "cluster"
    assert generate_pairs.main(["--photos", str(photos), "--output", str(alone), *OPTIONS]) == 0
    assert read_manifest(alone)["counts"] == {"photos": PHOTOS + 1, "pairs": PHOTOS, "rejected": {"unreadable": 1}}

    driver = start_driver(photos, output, cluster)
    wait_for(lambda: finished(output), driver)
    driver.kill()
    driver.communicate()
    assert not (output / "manifest.json").exists()

    driver = start_driver(photos, output, cluster)
    assert driver.stdout is not None
    printed = next(line for line in driver.stdout if "workers for" in line)
    kept, old = finished(output), set(output.glob(".build/unfinished/*"))
    assert 1 <= len(kept) < SHARDS and printed == f"2 workers for {SHARDS - len(kept)} shards.\n"
    in_flight = wait_for(lambda: sorted(set(output.glob(".build/unfinished/*")) - old), driver)[0]
    os.kill(int(in_flight.name.rpartition(".")[2]), signal.SIGKILL)  # SHARD.MACHINE.PROCESS
    printed = driver.communicate(timeout=120)[0]
    assert driver.returncode == 0, printed
    assert contents(output) == contents(alone)
    assert {path: finished(output)[path] for path in kept} == kept, "finished shards are not made again"
    assert list(output.glob(".build/unfinished/*")) == [], "workers that take the place of the dead clear up"


# --- scheduling, with real actors that need no networks ---


def make_actors(kind: type, count: int, **options: Any) -> list[Any]:
    actor = ray.remote(num_cpus=0, max_restarts=-1, **options)(kind)
    return [actor.remote() for _ in range(count)]


@pytest.mark.slow
def test_a_shard_that_kills_its_workers_is_given_up_and_the_others_are_made(cluster: str):
    class Fragile:
        def load(self) -> None:
            pass

        def build(self, index: int) -> int:
            if index == 2:
                os._exit(1)
            return index * 10

    made: list[int] = []
    workers = make_actors(Fragile, 2, max_task_retries=1)
    lost = run_shards(workers, [4, 2, 7, 5, 1], lambda worker, index: worker.build.remote(index), made.append)
    assert lost == [2] and sorted(made) == [10, 40, 50, 70]


@pytest.mark.slow
def test_an_error_of_a_worker_ends_the_run_and_names_its_cause(cluster: str):
    class Faulty:
        def load(self) -> None:
            raise ValueError("`output` holds a build with other options")

    with pytest.raises(ValueError, match="^`output` holds a build with other options$"):
        run_shards(make_actors(Faulty, 1), [0], lambda worker, index: worker.build.remote(index), print)


@pytest.mark.slow
def test_workers_that_have_no_room_are_not_waited_for(cluster: str):
    class Ready:
        def load(self) -> None:
            pass

        def build(self, index: int) -> int:
            return index

    homeless = ray.remote(num_cpus=1000)(Ready).remote()
    made: list[int] = []
    workers = [homeless, *make_actors(Ready, 1)]
    assert run_shards(workers, [3, 1], lambda worker, index: worker.build.remote(index), made.append) == []
    assert made == [3, 1]


# --- one worker, in this process ---


@pytest.fixture
def request_of_build(photos: Path, tmp_path: Path) -> BuildRequest:
    """A build of two shards whose plan is frozen."""
    request = BuildRequest(photos=photos, output=tmp_path, device="cpu", pairs_per_shard=12, batch_size=4)
    open_plan(request, open_source(request), build_options(request, load_pipeline(request, "cpu")), progress=False)
    return request


def test_a_worker_makes_a_shard_once(request_of_build: BuildRequest, tmp_path: Path):
    worker, plan = ShardWorker(request_of_build), Plan(tmp_path)
    counts = worker.build(1)
    assert counts[:2] == (12, 0) and counts.waited_s > 0
    assert unfinished_shards(plan) == [0]
    made = finished(tmp_path)
    assert worker.build(1) == ShardCounts(pairs=12)  # as after a worker that died before it could report
    assert finished(tmp_path) == made
    assert worker.retry(1, "tiled") == 0 and worker.retry(0, "tiled") == 0
    assert finished(tmp_path).items() > made.items() and unfinished_shards(plan) == []


def test_a_worker_with_other_weights_or_options_is_refused(request_of_build: BuildRequest):
    other = dataclasses.replace(request_of_build, dtype="bfloat16")
    with pytest.raises(ValueError, match="dtype 'float32' -> 'bfloat16'.*weights_id"):
        ShardWorker(other).build(0)


# --- the command line ---


def test_paths_become_absolute_and_names_of_the_hub_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    given = BuildRequest(photos="photos", output="pairs", weights="USER/ZEROSTEREO")
    assert absolute(given) == BuildRequest(
        photos=str(tmp_path / "photos"), output=str(tmp_path / "pairs"), weights="USER/ZEROSTEREO"
    )
    assert given.photos == "photos"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--workers=0", "--workers must be at least 1; got 0"),
        ("--cpus-per-worker=0", "--cpus-per-worker must be above 0.*got 0 and 0"),
        ("--gpus-per-worker=-1", "--gpus-per-worker at least 0; got 1 and -1"),
    ],
)
def test_impossible_workers_are_refused(option: str, message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        ray_engine.parse_arguments(["--photos", "p", "--output", "o", option])
    assert re.search(message, capsys.readouterr().err)


def test_options_that_cannot_be_followed_end_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture):
    missing = ["--photos", str(tmp_path / "nothing.csv"), "--output", str(tmp_path)]
    (tmp_path / "nothing.csv").write_text("path\n")
    assert ray_engine.main(missing) == 2
    assert "must name at least one photograph" in capsys.readouterr().err
