# SPDX-License-Identifier: Apache-2.0
"""The web page for tests: its modules on the path, as where it is deployed, and the page served on 127.0.0.1."""

import importlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPACE = ROOT / "space"
WEIGHTS = ROOT / "weights" / "zerostereo-tiny"
START_S = 120  # at most


@contextmanager
def space_modules() -> Iterator[SimpleNamespace]:
    """Import the modules of the Space from its folder, as `python space/app.py` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SPACE))
        names = ("app", "generation", "handlers", "pictures")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
        for name in names:
            del sys.modules[name]


@contextmanager
def served_space(folder: Path) -> Iterator[str]:
    """Serve the page in a process of its own; its files go below `folder`. Yields the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_TEMP_DIR": str(folder / "gradio"),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "space/app.py"], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + START_S
        while "Running on" not in log.read_text(encoding="utf-8"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()  # its files lie in the folder of the test
        process.wait()
