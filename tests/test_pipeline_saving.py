# SPDX-License-Identifier: Apache-2.0
"""A saved folder loads anywhere: in fresh processes, from another directory, without network, again and again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

import pipeline_zerostereo
from pipeline_zerostereo import ZeroStereoPipeline
from tests.tiny_components import embedded_pipeline, make_photos, official_pipeline, quiet, seeded

PIPELINE_FILE = Path(pipeline_zerostereo.__file__)
ROOT = PIPELINE_FILE.parent
NETWORKS = ("unet", "vae", "depth_estimator", "text_encoder")

# Configured values that differ from every default.
UNUSUAL = {
    "latent_mask_reduction": "max",
    "masked_fill": "background",
    "default_num_inference_steps": 2,
    "default_depth_resolution": 37,
    "default_inpaint_resolution": 41,
    "tile_size": 24,
    "depth_prediction": "depth",
    "depth_mean": [0.5, 0.25, 0.125],
    "depth_std": [0.75, 0.5, 0.625],
    "depth_size_multiple": 28,
    "depth_position_embedding": "official",
}

# Common to the fresh processes below: argument 1 is the saved folder, 2 the folder for results.
PREAMBLE = """
import sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
saved, results = Path(sys.argv[1]), Path(sys.argv[2])

def run(pipe, name):
    pipe.set_progress_bar_config(disable=True)
    photos = np.load(results / "photos.npy")
    output = pipe(torch.from_numpy(photos), generator=torch.Generator().manual_seed(4), output_type="np")
    np.savez(results / f"{name}.npz", **output)
"""

# No path to the repository: all code comes from the folder.
WITHOUT_REPOSITORY = """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(saved, trust_remote_code=True)
run(pipe, "trusted")
pipe.save_pretrained(results / "again")
run(DiffusionPipeline.from_pretrained(results / "again", trust_remote_code=True), "trusted_again")
assert "pipeline_zerostereo" not in sys.modules
print(type(pipe).__module__, pipe.unet.dtype, pipe.vae.dtype, pipe.depth_estimator.dtype, pipe.text_encoder.dtype)
"""

# No trust: the class that is asked to load runs itself.
WITH_REPOSITORY = """
from pipeline_zerostereo import ZeroStereoPipeline
for name, folder in (("own", saved), ("own_again", results / "again")):
    pipe = ZeroStereoPipeline.from_pretrained(folder)
    assert type(pipe) is ZeroStereoPipeline, type(pipe)
    run(pipe, name)
pipe.save_pretrained(results / "third")
run(ZeroStereoPipeline.from_pretrained(results / "third"), "own_third")
"""


def read_index(folder: Path) -> dict:
    return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def assert_same_pipeline(one: DiffusionPipeline, other: DiffusionPipeline) -> None:
    """The same components with the same weights and the same configured values, whichever class object it is."""
    assert set(one.components) == set(other.components)
    for name in NETWORKS:
        first, second = getattr(one, name), getattr(other, name)
        assert type(first) is type(second), name
        if first is not None:
            assert not first.training and first.dtype == second.dtype, name
            weights, others = first.state_dict(), second.state_dict()
            assert set(weights) == set(others) and all(torch.equal(weights[key], others[key]) for key in weights), name
    assert type(one.scheduler) is type(other.scheduler)
    assert public(one.scheduler.config) == public(other.scheduler.config)
    assert public(one.config) == public(other.config)


def public(config: dict) -> dict:
    """Leave out what the library notes for itself, and tell lists from tuples no more."""
    return {name: plain(value) for name, value in config.items() if not name.startswith("_")}


def plain(value):
    return list(value) if isinstance(value, (list, tuple)) else value


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> ZeroStereoPipeline:
    """Every component there, every configured value unusual."""
    return official_pipeline(tmp_path_factory.mktemp("tokenizer"), **UNUSUAL)


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "zerostereo"
    pipe.save_pretrained(folder)
    return folder


def test_saved_folder_holds_everything_that_a_loader_needs(saved, pipe):
    components = {"unet", "vae", "scheduler", "depth_estimator", "text_encoder", "tokenizer"}
    assert entries(saved) == components | {"model_index.json", "pipeline_zerostereo.py", "pipeline.py"}
    assert (saved / "pipeline.py").read_text(encoding="utf-8") == pipeline_zerostereo.SHIM
    assert (saved / "pipeline_zerostereo.py").read_bytes() == PIPELINE_FILE.read_bytes()
    index = read_index(saved)
    assert index["_class_name"] == ["pipeline_zerostereo", "ZeroStereoPipeline"]
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["depth_estimator"] == ["transformers", "DepthAnythingForDepthEstimation"]
    assert {name: index[name] for name in UNUSUAL} == UNUSUAL
    assert (saved / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_own_class_loads_without_trust(saved, pipe):
    loaded = ZeroStereoPipeline.from_pretrained(saved)
    assert type(loaded) is ZeroStereoPipeline
    assert_same_pipeline(loaded, pipe)
    assert {name: plain(loaded.config[name]) for name in UNUSUAL} == UNUSUAL


def test_library_refuses_to_run_the_folder_without_trust(saved):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(saved)


def test_saving_and_loading_again_and_again(saved, pipe, tmp_path):
    for round_number, load in enumerate(
        (
            ZeroStereoPipeline.from_pretrained,
            lambda folder: DiffusionPipeline.from_pretrained(folder, trust_remote_code=True),
            ZeroStereoPipeline.from_pretrained,
        )
    ):
        loaded = load(saved)
        assert_same_pipeline(loaded, pipe)
        saved = tmp_path / f"round{round_number}"
        loaded.save_pretrained(saved)
        assert read_index(saved)["_class_name"] == ["pipeline_zerostereo", "ZeroStereoPipeline"]
        assert (saved / "pipeline_zerostereo.py").read_bytes() == PIPELINE_FILE.read_bytes()
    assert_same_pipeline(ZeroStereoPipeline.from_pretrained(saved), pipe)


def test_saving_over_a_saved_folder(pipe, tmp_path):
    for _ in range(2):
        pipe.save_pretrained(tmp_path)
    assert read_index(tmp_path)["_class_name"] == ["pipeline_zerostereo", "ZeroStereoPipeline"]
    (tmp_path / "pipeline_zerostereo.py").write_text("an older version\n")
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "pipeline_zerostereo.py").read_bytes() == PIPELINE_FILE.read_bytes()
    assert not [name for name in entries(tmp_path) if "tmp" in name or name.startswith(".")]


def test_missing_components_stay_missing(tmp_path):
    pipe = embedded_pipeline(depth_estimator=None)
    pipe.save_pretrained(tmp_path)
    index = read_index(tmp_path)
    for name in ("depth_estimator", "text_encoder", "tokenizer"):
        assert index[name] == [None, None] and not (tmp_path / name).exists(), name
    loaded = ZeroStereoPipeline.from_pretrained(tmp_path)
    assert_same_pipeline(loaded, pipe)
    assert torch.equal(loaded.encode_empty_prompt(), pipe.encode_empty_prompt())


def test_left_out_component_is_given_or_dropped_at_loading(saved, pipe):
    loaded = ZeroStereoPipeline.from_pretrained(saved, text_encoder=None, depth_estimator=pipe.depth_estimator)
    assert loaded.text_encoder is None and loaded.depth_estimator is pipe.depth_estimator


def test_link_to_the_pipeline_file_stays_a_link(tmp_path):
    """weights/zerostereo-tiny links to the file at the root; saving into such a folder keeps the link and the file."""
    source = tmp_path / "pipeline_zerostereo.py"
    shutil.copyfile(PIPELINE_FILE, source)
    folder = tmp_path / "weights" / "tiny"
    folder.mkdir(parents=True)
    link = folder / "pipeline_zerostereo.py"
    link.symlink_to(Path("..") / ".." / "pipeline_zerostereo.py")
    pipe = embedded_pipeline()
    pipe.save_pretrained(folder)  # the class comes from another file of the same content
    loaded = quiet(DiffusionPipeline.from_pretrained(folder, trust_remote_code=True))
    before = source.stat()
    loaded.save_pretrained(folder)  # the class comes from a copy that the loader made
    assert link.is_symlink() and os.readlink(link) == os.path.join("..", "..", "pipeline_zerostereo.py")
    assert source.read_bytes() == PIPELINE_FILE.read_bytes()
    assert (source.stat().st_mtime_ns, source.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert_same_pipeline(ZeroStereoPipeline.from_pretrained(folder), pipe)


def test_saving_through_a_link_to_the_very_file(tmp_path):
    link = tmp_path / "pipeline_zerostereo.py"
    link.symlink_to(PIPELINE_FILE)
    content, modified = PIPELINE_FILE.read_bytes(), PIPELINE_FILE.stat().st_mtime_ns
    embedded_pipeline(depth_estimator=None).save_pretrained(tmp_path)
    assert link.is_symlink() and link.resolve() == PIPELINE_FILE
    assert PIPELINE_FILE.read_bytes() == content and PIPELINE_FILE.stat().st_mtime_ns == modified


def test_half_precision_folder_loads_in_either_dtype(tmp_path):
    pipe = embedded_pipeline()
    for network in (pipe.unet, pipe.vae):
        network.to(torch.float16)
    pipe.save_pretrained(tmp_path)
    half = ZeroStereoPipeline.from_pretrained(
        tmp_path, dtype={"default": torch.float16, "depth_estimator": torch.float32}
    )
    whole = ZeroStereoPipeline.from_pretrained(tmp_path)
    assert half.unet.dtype == half.vae.dtype == torch.float16 and half.depth_estimator.dtype == torch.float32
    assert whole.unet.dtype == whole.vae.dtype == whole.depth_estimator.dtype == torch.float32
    assert torch.equal(whole.unet.conv_in.weight, pipe.unet.conv_in.weight.float())


def test_components_make_another_pipeline(pipe):
    """`pipe.components` and `from_pipe` share the networks and take the configured values along."""
    assert set(pipe.components) == {"unet", "vae", "scheduler", "depth_estimator", "text_encoder", "tokenizer"}
    other = ZeroStereoPipeline.from_pipe(pipe, default_num_inference_steps=7)
    assert other.unet is pipe.unet and other.depth_estimator is pipe.depth_estimator
    assert other.config.default_num_inference_steps == 7 and other.config.masked_fill == "background"


def run_fresh(code: str, saved: Path, results: Path, path_to_repository: bool) -> str:
    """Run code in a new interpreter at /, offline, with its own empty caches, and return what it printed."""
    caches = results / "caches"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment.update(
        HF_HUB_OFFLINE="1", HF_HOME=str(caches), HF_MODULES_CACHE=str(caches / "modules"), OMP_NUM_THREADS="1"
    )
    if path_to_repository:
        environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", PREAMBLE + code, str(saved), str(results)]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_folder_loads_in_fresh_processes_and_gives_the_same_pair(saved, pipe, tmp_path):
    photos = make_photos(2, 45, 70)
    np.save(tmp_path / "photos.npy", photos.numpy())
    expected = pipe(photos, generator=seeded(4), output_type="np")

    printed = run_fresh(WITHOUT_REPOSITORY, saved, tmp_path, path_to_repository=False)
    assert printed.split() == ["diffusers_modules.local.pipeline_zerostereo", *["torch.float32"] * 4]
    run_fresh(WITH_REPOSITORY, saved, tmp_path, path_to_repository=True)

    for name in ("trusted", "trusted_again", "own", "own_again", "own_third"):
        with np.load(tmp_path / f"{name}.npz") as found:
            assert set(found.files) == set(expected), name
            assert found["target_view"] == expected.target_view
            for field in set(expected) - {"target_view"}:
                np.testing.assert_allclose(
                    found[field], expected[field], rtol=0, atol=1e-6, err_msg=f"{name}: {field}"
                )
