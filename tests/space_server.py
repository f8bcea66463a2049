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
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPACE = ROOT / "space"
WEIGHTS = ROOT / "weights" / "zerostereo-tiny"
START_S = 120  # at most
MCP_TWICE = "StreamableHTTPSessionManager .run() can only be called once"  # Gradio gives a server 5 s to start, and
# tries again; its MCP server cannot


@contextmanager
def space_modules() -> Iterator[SimpleNamespace]:
    """Import the modules of the Space from its folder, as `python space/app.py` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SPACE))
        names = ("app", "fetching", "generation", "handlers", "pictures")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
        for name in names:
            del sys.modules[name]


class ServedSpace(NamedTuple):
    """A page that is being served.

    Attributes:
        url: "http://127.0.0.1:<port>".
        process_id: of the server.
        cache: folder of everything that it writes.
        start_s: seconds from the start of the process until it answers.
    """

    url: str
    process_id: int
    cache: Path
    start_s: float


@contextmanager
def served_space(folder: Path, app: Path = SPACE / "app.py", **variables: str) -> Iterator[ServedSpace]:
    """Serve the page in a process of its own; its files go below `folder`.

    Args:
        folder: of its files and its log.
        app: file to start, in its own folder.
        variables: more environment variables of the process.
    """
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
        **variables,
    }
    started = time.monotonic()
    log = folder / "server.log"

    def start() -> subprocess.Popen:
        with log.open("w") as output:
            return subprocess.Popen(
                [sys.executable, str(app)], cwd=app.parent, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    process = start()
    try:
        deadline = time.monotonic() + START_S
        while "Running on" not in (text := log.read_text(encoding="utf-8")):
            assert time.monotonic() < deadline, text
            if MCP_TWICE in text:  # a busy machine
                process.kill()
                process.wait()
                process = start()
            assert process.poll() is None, text
            time.sleep(0.2)
        yield ServedSpace(f"http://127.0.0.1:{port}", process.pid, folder / "gradio", time.monotonic() - started)
    finally:
        process.kill()  # its files lie in the folder of the test
        process.wait()
