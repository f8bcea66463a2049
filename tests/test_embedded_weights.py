# SPDX-License-Identifier: Apache-2.0
"""The pipeline folder in the repository: complete, small, loadable from anywhere. No test looks at exact values."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors import safe_open

import pipeline_zerostereo
from pipeline_zerostereo import ZeroStereoPipeline

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "weights" / "zerostereo-tiny"
SIZE_LIMIT = 16_000_000  # bytes

LOAD_AND_RUN = """
import sys
import PIL.Image, torch
{load}
pipe.set_progress_bar_config(disable=True)
assert type(pipe).__name__ == "ZeroStereoPipeline", type(pipe)
networks = ("unet", "vae", "depth_estimator")
assert all(p.dtype == torch.float32 for name in networks for p in getattr(pipe, name).parameters())
photo = PIL.Image.open(sys.argv[2]).resize((96, 64))
pair = pipe(photo, disparity_scale=0.1, generator=torch.Generator().manual_seed(0))
print(pair.images[0].size, float(pair.disparity.max()) <= 9.6 + 1e-4, int(pair.hole_mask.sum()) > 0)
"""


@pytest.fixture(scope="module")
def pipe() -> ZeroStereoPipeline:
    loaded = ZeroStereoPipeline.from_pretrained(WEIGHTS)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def pair(pipe):
    photo = PIL.Image.open(ROOT / "examples" / "coffee.png")
    return pipe(photo, disparity_scale=0.06, generator=torch.Generator().manual_seed(0))


def test_the_files_are_small_half_precision_and_link_the_pipeline():
    files = sorted(WEIGHTS.rglob("*.safetensors"))
    assert {file.parent.name for file in files} == {"unet", "vae", "depth_estimator"}
    assert sum(file.stat().st_size for file in files) < SIZE_LIMIT
    for file in files:
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_slice(key).get_dtype() for key in tensors.keys()} == {"F16"}, file
    link = WEIGHTS / "pipeline_zerostereo.py"
    assert link.is_symlink() and not os.path.isabs(os.readlink(link)) and link.samefile(pipeline_zerostereo.__file__)
    index = json.loads((WEIGHTS / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_zerostereo", "ZeroStereoPipeline"]
    assert json.loads((WEIGHTS / "depth_estimator" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.slow
@pytest.mark.parametrize(
    "load",
    [
        "from diffusers import DiffusionPipeline\n"
        "pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)",
        "from pipeline_zerostereo import ZeroStereoPipeline\npipe = ZeroStereoPipeline.from_pretrained(sys.argv[1])",
    ],
    ids=["DiffusionPipeline", "ZeroStereoPipeline"],
)
def test_a_fresh_process_elsewhere_loads_and_runs_it_in_float32(load, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    if load.startswith("from pipeline_zerostereo"):
        environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", LOAD_AND_RUN.format(load=load), WEIGHTS, ROOT / "examples" / "coffee.png"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(96, 64) True True"


def test_loading_warns_of_nothing():
    """The libraries' loggers do not propagate, so the handler goes onto themselves."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        ZeroStereoPipeline.from_pretrained(WEIGHTS)
        logging.getLogger("diffusers.probe").warning("the handler hears this")
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == ["the handler hears this"]


def test_a_photograph_becomes_a_plausible_pair(pair):
    disparity, width = pair.disparity[0], pair.images[0].width
    assert np.isfinite(disparity).all() and disparity.min() >= 0
    assert 0.03 * width < disparity.max() <= 0.06 * width + 1e-4
    assert disparity.std() > 0.003 * width, "the map has relief"
    assert 0.005 < pair.hole_mask.mean() < 0.2
    assert 0.5 < pair.flip_agreement[0] <= 1
    filled, known = (np.asarray(image[0], np.float32) for image in (pair.images, pair.warped_images))
    holes = pair.hole_mask[0]
    assert np.array_equal(filled[~holes], known[~holes])
    assert abs(filled[holes].mean() - known[~holes].mean()) < 60, "holes have the photograph's colours"


def test_the_default_steps_are_few(pipe):
    assert 1 <= pipe.config.default_num_inference_steps <= 4
    assert pipe.config.masked_fill == "background" and pipe.config.latent_mask_reduction == "max"
    assert pipe.scheduler.config.prediction_type == "sample" and pipe.scheduler.config.timestep_spacing == "trailing"
    assert pipe.scheduler.config.rescale_betas_zero_snr
    assert pipe.text_encoder is None and pipe.tokenizer is None


def test_the_networks_are_trained(pipe):
    """Untrained networks would leave noise or grey; the truth is a smooth picture far from both."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 128), indexing="ij")
    image = torch.stack([0.95 - 0.1 * y, 0.15 + 0.1 * x, 0.1 + 0.1 * x * y])[None]
    disparity = torch.full((1, 1, 96, 128), 2.0)
    disparity[:, :, 30:60, 40:80] = 10.0
    warp = pipeline_zerostereo.forward_warp(image, disparity)
    filled = pipe.inpaint(
        warp.right_image, warp.right_hole_mask, warp.right_disparity, generator=torch.Generator().manual_seed(0)
    )
    holes = warp.right_hole_mask.expand_as(image)
    grey_error = (0.5 - image)[holes].abs().mean()
    assert (filled - image)[holes].abs().mean() < 0.25 * grey_error
