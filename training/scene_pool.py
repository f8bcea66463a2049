# SPDX-License-Identifier: Apache-2.0
"""A folder of rendered procedural scenes: filled once, by any number of processes, then read scene by scene.

    pool/
      pool.json                                          what every chunk of this pool is made from
      v1-seed0-192x256-chunk00003-of64.npy               64 scenes, one numpy record each (read through a memory map)
      v1-seed0-192x256-chunk00004-of64.npy.partial       being rendered; locked by its writer and never read

Images are stored as uint8, disparities as uint16 in 1/256 px. Chunk c is drawn by scene_generator(seed, c) in one
batch, so its name, which holds everything that decides its content, also says how many scenes it has.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from training.procedural_scenes import SCENES_VERSION, SceneBatch, render_scenes, scene_generator

DISPARITY_STEPS = 256  # stored steps per pixel
DISPARITY_LIMIT_PX = 65535 / DISPARITY_STEPS
POLL_SECONDS = 0.5


class ScenePool:
    """Scenes 0 ... scenes-1 of one seed and size, kept in a folder in chunks that are rendered when they are missing.

    Args:
        directory: created when missing. Its pool.json must agree with seed, height, width and scenes_per_chunk.
        seed: decides the scenes, together with the chunk's number and the size.
        scenes: how many scenes the pool has; a larger number later keeps the complete chunks.
        height: pixels of every scene.
        width: pixels of every scene.
        scenes_per_chunk: scenes in one file.
        compiled: render with compiled functions (see render_scenes); the same pictures up to rounding.
        device: where missing chunks are rendered; what is read comes back on the CPU.

    Raises:
        ValueError: a number is below its minimum, or the folder holds another pool.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        seed: int,
        scenes: int,
        height: int = 192,
        width: int = 256,
        scenes_per_chunk: int = 64,
        compiled: bool = False,
        device: str | torch.device = "cpu",
    ):
        for name, value in (("scenes", scenes), ("scenes_per_chunk", scenes_per_chunk)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        self.directory, self.seed, self.scenes = Path(directory), seed, scenes
        self.height, self.width, self.scenes_per_chunk = height, width, scenes_per_chunk
        self.compiled, self.device = compiled, device
        self.chunk_count = -(-scenes // scenes_per_chunk)
        self._open_files: dict[int, np.ndarray] = {}
        self.directory.mkdir(parents=True, exist_ok=True)
        self._check_identity()

    def __len__(self) -> int:
        """Return the number of scenes."""
        return self.scenes

    def chunk_length(self, chunk: int) -> int:
        """Return the number of scenes of a chunk; only the last one may be shorter."""
        if not 0 <= chunk < self.chunk_count:
            raise ValueError(f"`chunk` must be in 0 ... {self.chunk_count - 1}; got {chunk}.")
        return min(self.scenes_per_chunk, self.scenes - chunk * self.scenes_per_chunk)

    def chunk_path(self, chunk: int) -> Path:
        """Return the file of a chunk, whether it exists or not."""
        size = f"{self.height}x{self.width}"
        return self.directory / (
            f"v{SCENES_VERSION}-seed{self.seed}-{size}-chunk{chunk:05d}-of{self.chunk_length(chunk)}.npy"
        )

    def chunks_ready(self) -> list[int]:
        """Return the numbers of the chunks that are rendered."""
        return [chunk for chunk in range(self.chunk_count) if self.chunk_path(chunk).exists()]

    def render_chunk(self, chunk: int) -> None:
        """Render a chunk unless its file exists; waits when another process is rendering just this chunk."""
        path = self.chunk_path(chunk)
        if path.exists():
            return
        partial = path.with_name(path.name + ".partial")
        with partial.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # freed by the system when its holder ends, however it ends
            if path.exists():  # another process finished it, and `file` may by now be that finished file
                _remove_if_same(partial, file.fileno())
                return
            file.truncate(0)
            np.save(file, self._render_records(chunk))
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)

    def scenes_at(self, indices: list[int], wait: bool = True) -> SceneBatch:
        """Return the named scenes as float tensors on the CPU, in the order of indices.

        Args:
            indices: numbers in 0 ... scenes-1; repetitions are allowed.
            wait: a missing chunk is left to the renderers at work (see `renderer_at_work`) and waited for; with False,
                or when none is at work, it is rendered here.
        """
        for index in indices:
            if not 0 <= index < self.scenes:
                raise ValueError(f"`indices` must be in 0 ... {self.scenes - 1}; got {index}.")
        records = [
            self._chunk(index // self.scenes_per_chunk, wait)[index % self.scenes_per_chunk] for index in indices
        ]
        return SceneBatch(*(_decode(records, name) for name in SceneBatch._fields))

    @contextmanager
    def renderer_at_work(self) -> Iterator[None]:
        """Tell other processes for the duration of the block that this one is filling the pool."""
        with self._renderers_file().open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def has_renderer(self) -> bool:
        """Return whether some process is filling the pool now."""
        with self._renderers_file().open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def _renderers_file(self) -> Path:
        return self.directory / "renderers.lock"

    def _chunk(self, chunk: int, wait: bool) -> np.ndarray:
        """Return the memory-mapped records of a chunk, made first if need be."""
        if chunk not in self._open_files:
            path = self.chunk_path(chunk)
            while wait and not path.exists() and self.has_renderer():
                time.sleep(POLL_SECONDS)
            self.render_chunk(chunk)
            self._open_files[chunk] = np.load(path, mmap_mode="r")
        return self._open_files[chunk]

    def _render_records(self, chunk: int) -> np.ndarray:
        generator = scene_generator(self.seed, chunk, self.device)
        length = self.chunk_length(chunk)
        batch = render_scenes(length, self.height, self.width, generator=generator, compiled=self.compiled)
        records = np.empty(length, record_type(self.height, self.width))
        for name, value in batch._asdict().items():
            records[name] = _encode(name, value)
        return records

    def _check_identity(self) -> None:
        """Write pool.json, or compare it with this pool."""
        path = self.directory / "pool.json"
        mine = {
            "version": SCENES_VERSION,
            "seed": self.seed,
            "height": self.height,
            "width": self.width,
            "scenes_per_chunk": self.scenes_per_chunk,
        }
        if not path.exists():
            temporary = path.with_name(f"pool.json.{os.getpid()}")
            temporary.write_text(json.dumps(mine, indent=1) + "\n")
            os.replace(temporary, path)
        found = json.loads(path.read_text())
        for name, value in mine.items():
            if found.get(name) != value:
                raise ValueError(
                    f"`directory` must hold a pool with {name} {value}; {path} says {name} {found.get(name)}."
                    " Choose another directory."
                )


def record_type(height: int, width: int) -> np.dtype:
    """Return the numpy record of one stored scene."""
    image, disparity = ("u1", (3, height, width)), ("<u2", (1, height, width))
    return np.dtype([(name, *(image if name.endswith("image") else disparity)) for name in SceneBatch._fields])


def _encode(name: str, value: torch.Tensor) -> np.ndarray:
    """Turn images into uint8 and disparities into uint16 steps.

    No disparity exceeds LARGEST_RIGHT_RATIO * MAX_DISPARITY_FRACTION = 0.4 of the width, so all fit up to 639 px.
    """
    if name.endswith("image"):
        return (value * 255).round().byte().cpu().numpy()
    largest = value.max().item()
    if largest > DISPARITY_LIMIT_PX:
        raise ValueError(f"`{name}` must be at most {DISPARITY_LIMIT_PX} px to be stored; got {largest}.")
    return (value * DISPARITY_STEPS).round().to(torch.int32).cpu().numpy()


def _decode(records: list[np.void], name: str) -> torch.Tensor:
    """Return one field of several records as a float tensor."""
    values = torch.from_numpy(np.stack([record[name] for record in records]).astype(np.float32))
    return values / (255 if name.endswith("image") else DISPARITY_STEPS)


def _remove_if_same(path: Path, descriptor: int) -> None:
    """Remove path if it is the open file, that is, if it was made only to take the lock."""
    if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
        path.unlink()
