# SPDX-License-Identifier: Apache-2.0
"""Every form in which Diffusers can load the pipeline from a folder on disk, and the refusals, with their reason.

The forms that run code of a folder are tried in new processes that know nothing of this repository. Several share a
process; before each, the loader's copies of earlier code are removed, on disk and in memory.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionInpaintPipeline
from diffusers.utils.dynamic_modules_utils import get_relative_imports

import pipeline_zerostereo
from pipeline_zerostereo import ZeroStereoPipeline
from tests.tiny_components import (
    assert_fields_agree,
    embedded_pipeline,
    make_ddim,
    make_depth_anything,
    make_kl_autoencoder,
    make_photos,
    make_text_encoder,
    make_tokenizer,
    make_unet,
    quiet,
    seeded,
)

PIPELINE_FILE = Path(pipeline_zerostereo.__file__)
FRESH = """
import shutil
import sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from diffusers import DiffusionPipeline
from diffusers.utils.constants import HF_MODULES_CACHE
folder = Path(sys.argv[1])

def load(name, *arguments, **named):
    shutil.rmtree(HF_MODULES_CACHE, ignore_errors=True)
    for module in [module for module in sys.modules if module.startswith("diffusers_modules")]:
        del sys.modules[module]
    pipe = DiffusionPipeline.from_pretrained(*arguments, trust_remote_code=True, **named)
    assert type(pipe).__name__ == "ZeroStereoPipeline" and "pipeline_zerostereo" not in sys.modules, name
    pipe.set_progress_bar_config(disable=True)
    photos = torch.from_numpy(np.load(folder / "photos.npy"))
    pair = pipe(photos, disparity_scale=0.1, generator=torch.Generator().manual_seed(4), output_type="np")
    np.savez(folder / f"{name}.npz", **pair)
    return pipe
"""

# With code of its own or without, the weights load through code by name, by file and by folder.
FORMS = """
saved, bare, code = folder / "saved", folder / "bare", folder / "code"
load("trusted", saved)
load("saved_name", saved, custom_pipeline="pipeline_zerostereo")
load("saved_file", saved, custom_pipeline=str(saved / "pipeline_zerostereo.py"))
load("saved_folder", saved, custom_pipeline=str(saved))
load("plain_name", folder / "plain", custom_pipeline="pipeline_zerostereo")
load("bare_file", bare, custom_pipeline=str(code / "pipeline_zerostereo.py"))
load("bare_folder", bare, custom_pipeline=str(code))

# What is loaded from a copy that the loader made saves everything again.
pipe = load("once", folder / "bare", custom_pipeline=str(code))
for name in ("twice", "thrice"):
    pipe.save_pretrained(folder / name)
    pipe = load(name, folder / name)
"""

# A folder of Stable Diffusion's inpainting pipeline, which has never heard of this one.
INPAINT_FOLDER = """
pipe = DiffusionPipeline.from_pretrained(
    sys.argv[2], custom_pipeline=str(folder / "code" / "pipeline_zerostereo.py"), trust_remote_code=True
)
assert pipe.depth_estimator is None and "safety_checker" not in pipe.components
assert pipe.encode_empty_prompt().shape == (1, 2, 32)
pipe.set_progress_bar_config(disable=True)
photos = torch.from_numpy(np.load(folder / "photos.npy"))
disparity = torch.full((2, 1, *photos.shape[2:]), 3.0)
pair = pipe(photos, disparity=disparity, num_inference_steps=2, generator=torch.Generator().manual_seed(4))
print(len(pair.images))
"""

REFUSED = """
try:
    DiffusionPipeline.from_pretrained(folder / "saved", trust_remote_code=True)
except ValueError as error:
    print(error)
"""


def run_fresh(code: str, folder: Path, *arguments: Path, **environment: str) -> str:
    """Run code in a new interpreter at /, offline, with empty caches of its own; return what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON", "DIFFUSERS_"))}
    kept.update(HF_HUB_OFFLINE="1", HF_HOME=str(folder / "home"), OMP_NUM_THREADS="1")
    command = [sys.executable, "-c", FRESH + code, str(folder), *map(str, arguments)]
    done = subprocess.run(command, cwd="/", env={**kept, **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "not expected by ZeroStereoPipeline" not in done.stderr, "the loader passes no argument on"
    return done.stdout


def set_class_name(folder: Path, name: str | list[str]) -> None:
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": name}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Hold "saved", as save_pretrained writes it; "plain", with the name as a string; "bare", without code; "code"."""
    folder = tmp_path_factory.mktemp("forms")
    pipe = embedded_pipeline()
    pipe.save_pretrained(folder / "saved")
    for name in ("plain", "bare"):
        shutil.copytree(folder / "saved", folder / name)
        set_class_name(folder / name, "ZeroStereoPipeline")
    (folder / "code").mkdir()
    for name in ("pipeline.py", "pipeline_zerostereo.py"):
        (folder / "bare" / name).rename(folder / "code" / name)
    photos = make_photos(2, 30, 46)
    np.save(folder / "photos.npy", photos.numpy())
    np.savez(
        folder / "expected.npz",
        **pipe(photos, disparity_scale=0.1, generator=seeded(4), output_type="np"),
    )
    return folder


@pytest.fixture(scope="module")
def inpaint_parts(tmp_path_factory) -> dict:
    """The components of Stable Diffusion's inpainting pipeline."""
    return {
        "vae": make_kl_autoencoder(),
        "text_encoder": make_text_encoder(),
        "tokenizer": make_tokenizer(tmp_path_factory.mktemp("tokenizer")),
        "unet": make_unet(),
        "scheduler": make_ddim(),
        "safety_checker": None,
        "feature_extractor": None,
    }


@pytest.fixture(scope="module")
def inpaint_folder(inpaint_parts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inpaint")
    StableDiffusionInpaintPipeline(**inpaint_parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_every_form_gives_the_same_pair(folder):
    run_fresh(FORMS, folder)
    with np.load(folder / "expected.npz") as expected:
        names = "trusted saved_name saved_file saved_folder plain_name bare_file bare_folder once twice thrice".split()
        for name in names:
            with np.load(folder / f"{name}.npz") as found:
                assert_fields_agree(found, expected, 1e-6, name)
    for name in ("twice", "thrice"):
        assert (folder / name / "pipeline_zerostereo.py").read_bytes() == PIPELINE_FILE.read_bytes()
        assert (folder / name / "pipeline.py").read_bytes() == (folder / "saved" / "pipeline.py").read_bytes()


@pytest.mark.slow
def test_remote_code_can_be_switched_off(folder):
    assert "DIFFUSERS_DISABLE_REMOTE_CODE" in run_fresh(REFUSED, folder, DIFFUSERS_DISABLE_REMOTE_CODE="1")


def test_the_loader_finds_the_imports_that_it_must_copy(folder):
    """It looks for them with a pattern, in strings too; from the Hub, a file naming itself is fetched without end."""
    assert get_relative_imports(PIPELINE_FILE) == []
    assert get_relative_imports(folder / "saved" / "pipeline.py") == ["pipeline_zerostereo"]


def test_the_loader_asks_for_trust(folder):
    for arguments in ({}, {"custom_pipeline": "pipeline_zerostereo"}, {"custom_pipeline": str(folder / "code")}):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            DiffusionPipeline.from_pretrained(folder / "saved", **arguments)


def test_own_class_loads_every_folder_without_trust(folder):
    for name in ("saved", "plain", "bare"):
        pipe = ZeroStereoPipeline.from_pretrained(folder / name)
        assert type(pipe) is ZeroStereoPipeline and pipe.config.masked_fill == "background", name


@pytest.mark.slow
def test_inpainting_folder_loads_through_the_code_alone(folder, inpaint_folder):
    assert run_fresh(INPAINT_FOLDER, folder, inpaint_folder).strip() == "2"


def test_inpainting_folder_loads_with_the_depth_network_added(inpaint_folder, inpaint_parts):
    depth_estimator = make_depth_anything()
    pipe = ZeroStereoPipeline.from_pretrained(inpaint_folder, depth_estimator=depth_estimator)
    assert pipe.depth_estimator is depth_estimator and not hasattr(pipe, "safety_checker")
    assert torch.equal(pipe.unet.conv_in.weight, inpaint_parts["unet"].conv_in.weight)
    assert pipe.config.masked_fill == "zero" and pipe.config.latent_mask_reduction == "nearest"
    photos = make_photos(1, 40, 64)
    arguments = {"disparity_scale": 0.1, "num_inference_steps": 2, "output_type": "np"}
    pair = quiet(pipe)(photos, generator=seeded(4), **arguments)
    assert pair.images.shape == (1, 40, 64, 3) and np.isfinite(pair.images).all()


@pytest.mark.parametrize("missing", ["text_encoder", "tokenizer"])
def test_missing_optional_component_is_none(inpaint_folder, tmp_path, missing):
    shutil.copytree(inpaint_folder, tmp_path / "less")
    remove_component(tmp_path / "less", missing)
    pipe = ZeroStereoPipeline.from_pretrained(tmp_path / "less")
    assert getattr(pipe, missing) is None
    with pytest.raises(ValueError, match="empty_prompt_embeds"):
        pipe.encode_empty_prompt()


@pytest.mark.parametrize("missing", ["unet", "vae", "scheduler"])
def test_missing_required_component_is_named_or_given(inpaint_folder, inpaint_parts, tmp_path, missing):
    shutil.copytree(inpaint_folder, tmp_path / "less")
    remove_component(tmp_path / "less", missing)
    with pytest.raises(ValueError, match=rf"(?s)expected .*{missing}.* but only .* were passed"):
        ZeroStereoPipeline.from_pretrained(tmp_path / "less")
    pipe = ZeroStereoPipeline.from_pretrained(tmp_path / "less", **{missing: inpaint_parts[missing]})
    assert getattr(pipe, missing) is inpaint_parts[missing]


def remove_component(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({key: index[key] for key in index if key != name}))


def test_from_pipe_shares_the_networks_of_an_inpainting_pipeline(inpaint_parts):
    inpainting = StableDiffusionInpaintPipeline(**inpaint_parts, requires_safety_checker=False)
    depth_estimator = make_depth_anything()
    pipe = ZeroStereoPipeline.from_pipe(inpainting, depth_estimator=depth_estimator, default_num_inference_steps=2)
    for name in ("unet", "vae", "scheduler", "text_encoder", "tokenizer"):
        assert getattr(pipe, name) is getattr(inpainting, name), name
    assert pipe.depth_estimator is depth_estimator and pipe.config.default_num_inference_steps == 2
    pair = quiet(pipe)(make_photos(1, 40, 64), disparity_scale=0.1, generator=seeded(4), output_type="np")
    assert pair.images.shape == (1, 40, 64, 3)


def test_variants_are_stored_beside_each_other(tmp_path):
    pipe = embedded_pipeline()
    pipe.save_pretrained(tmp_path)
    half = ZeroStereoPipeline.from_pretrained(tmp_path).to(torch.float16)
    for name in ("unet", "vae", "depth_estimator"):
        getattr(half, name).save_pretrained(tmp_path / name, variant="fp16")
    for variant, networks, others in ((None, pipe, half), ("fp16", half, pipe)):
        loaded = ZeroStereoPipeline.from_pretrained(tmp_path, variant=variant, dtype=torch.float32)
        for name in ("unet", "vae", "depth_estimator"):
            weights = getattr(loaded, name).state_dict()
            assert same_weights(weights, getattr(networks, name).state_dict()), (variant, name)
            assert not same_weights(weights, getattr(others, name).state_dict()), (variant, name)


def same_weights(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    assert weights.keys() == others.keys() and {value.dtype for value in weights.values()} == {torch.float32}
    return all(torch.equal(value, others[key].float()) for key, value in weights.items())


def test_a_folder_of_one_variant_loads_as_that_variant_only(tmp_path):
    embedded_pipeline().save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert (tmp_path / "depth_estimator" / "model.fp16.safetensors").is_file()
    loaded = ZeroStereoPipeline.from_pretrained(tmp_path, variant="fp16")
    assert torch.equal(loaded.unet.conv_in.weight, embedded_pipeline().unet.conv_in.weight)
    with pytest.raises(OSError, match="no file named"):
        ZeroStereoPipeline.from_pretrained(tmp_path)
