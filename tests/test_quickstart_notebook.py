# SPDX-License-Identifier: Apache-2.0
"""examples/quickstart.ipynb runs from top to bottom on a CPU, and its first cell prepares a machine like Colab's."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import PIL.Image
import pytest
import torch

from pipeline_zerostereo import ZeroStereoPipeline

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
LINKED = ("pipeline_zerostereo.py", "weights", "datasets_builder")  # all that the notebook uses beside examples/
RECORDER = '#!/bin/sh\necho "$*" >> "$0.log"\n'
COLAB = """
import os
import sys
import google.colab
sys.executable = {recorder!r}
cell = {cell!r}
exec(cell)
exec(cell)
print(os.getcwd())
"""


def read_notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> dict[str, nbformat.NotebookNode]:
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository, so that a run leaves nothing in the real one."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


@pytest.fixture(scope="module")
def executed(checkout: Path) -> dict[str, nbformat.NotebookNode]:
    """Code cells by id after a run in a kernel that starts in examples/, as Jupyter does."""
    notebook = read_notebook()
    settings = {name: str(checkout / name) for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    client = nbclient.NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(checkout / "examples")}},
    )
    client.execute(env={**os.environ, **settings, "OMP_NUM_THREADS": "1"})
    return code_cells(notebook)


def test_notebook_is_valid_and_stored_without_results():
    notebook = read_notebook()
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = code_cells(notebook).values()
    assert [cell.id for cell in cells if cell.outputs or cell.execution_count is not None] == []
    assert notebook.cells[0].source.startswith("# A stereo pair from one photograph")


def test_links_of_the_notebook_lead_to_files():
    text = "\n".join(cell.source for cell in read_notebook().cells if cell.cell_type == "markdown")
    targets = [part.split(")")[0] for part in text.split("](")[1:]]
    assert targets and [target for target in targets if not (NOTEBOOK.parent / target).exists()] == []


@pytest.mark.slow
def test_notebook_runs_and_shows_a_picture_wherever_it_says_so(executed):
    shown = {name: {kind for one in cell.outputs for kind in one.get("data", {})} for name, cell in executed.items()}
    pictures = {name for name, kinds in shown.items() if "image/png" in kinds}
    assert pictures == {"pair", "disparity", "holes", "anaglyph"}
    assert "image/gif" in shown["wiggle"]
    assert [name for name, cell in executed.items() if any(one.output_type == "error" for one in cell.outputs)] == []


@pytest.mark.slow
def test_saved_files_are_those_of_the_pipeline(executed, checkout: Path):
    output = checkout / "out" / "quickstart"
    pipe = ZeroStereoPipeline.from_pretrained(ROOT / "weights" / "zerostereo-tiny")
    pipe.set_progress_bar_config(disable=True)
    with PIL.Image.open(ROOT / "examples" / "coffee.png") as photo:
        pair = pipe(photo, disparity_scale=0.04, generator=torch.Generator().manual_seed(0))
    with PIL.Image.open(output / "right.png") as right:
        assert np.array_equal(np.asarray(right), np.asarray(pair.images[0]))
    with PIL.Image.open(output / "disparity.png") as codes:
        assert np.abs((np.asarray(codes) - 1.0) / 256 - pair.disparity[0]).max() <= 0.5 / 256 + 1e-6
    assert "disparity in px = (code - 1) / 256, code 0 = unknown" in printed(executed["save"])
    convergence = round(float(np.median(pair.disparity)))
    assert f"the middle of the scene has {convergence} px" in printed(executed["anaglyph"])
    with PIL.Image.open(io.BytesIO((output / "wiggle.gif").read_bytes())) as wigglegram:
        assert wigglegram.n_frames == 2 and wigglegram.size == (600 - convergence, 400)


@pytest.mark.slow
def test_every_photograph_of_the_examples_becomes_a_row(executed):
    lines = printed(executed["build"]).splitlines()
    assert sorted(line.split(" px, ")[0] for line in lines) == ["512 x 512", "600 x 400", "640 x 427"]
    assert all(line.endswith("% invented") for line in lines)


@pytest.fixture
def colab(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Return a function that runs a cell twice where Colab's module is loaded and a recorder stands in for Python."""
    work, package = tmp_path / "work", tmp_path / "modules" / "google" / "colab"
    work.mkdir()
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    recorder = tmp_path / "recorder"
    recorder.write_text(RECORDER, encoding="utf-8")
    recorder.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "modules")}

    def run(cell: str) -> subprocess.CompletedProcess[str]:
        code = COLAB.format(recorder=str(recorder), cell=cell)
        return subprocess.run([sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True)

    return run


def test_first_cell_fetches_the_repository_and_keeps_what_colab_brings(tmp_path: Path, colab):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pipeline_zerostereo.py", "requirements.txt", "requirements-builder.txt"):
        shutil.copy(ROOT / name, source)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    cell = code_cells(read_notebook())["setup"].source
    done = colab(cell.replace("https://github.com/USER/ZEROSTEREO", source.as_uri()))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "work" / "zerostereo"), "run twice, the cell stays where it was"
    [call] = (tmp_path / "recorder.log").read_text(encoding="utf-8").splitlines()
    assert call.startswith("-m pip install --quiet ")
    installed = {package.split("==")[0] for package in call.split()[4:]}
    assert {"diffusers", "transformers", "datasets", "huggingface-hub"} <= installed
    assert not installed & {"torch", "numpy", "pillow"}


def test_first_cell_asks_for_the_address_of_the_repository(tmp_path: Path, colab):
    done = colab(code_cells(read_notebook())["setup"].source)
    assert done.returncode != 0 and "Put the address of this repository into SOURCE" in done.stderr
    assert list((tmp_path / "work").iterdir()) == [] and not (tmp_path / "recorder.log").exists()
