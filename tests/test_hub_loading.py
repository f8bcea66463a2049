# SPDX-License-Identifier: Apache-2.0
"""Publishing to a Hub and loading from it: one line, any revision, any variant, and what remains without a network.

The Hub is tests/loopback_hub.py; every process that talks to it is a new one, at / and with an empty cache.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import pipeline_zerostereo
from tests.loopback_hub import LoopbackHub
from tests.tiny_components import assert_fields_agree, embedded_pipeline, make_photos, seeded

pytestmark = pytest.mark.slow

PIPELINE_FILE = Path(pipeline_zerostereo.__file__)
ROOT = PIPELINE_FILE.parent
COMMON = """
import shutil
import sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from diffusers import DiffusionPipeline
from diffusers.utils.constants import HF_MODULES_CACHE
from huggingface_hub import HfApi, snapshot_download
folder = Path(sys.argv[1])

def load(*arguments, cls=DiffusionPipeline, **named):
    shutil.rmtree(HF_MODULES_CACHE, ignore_errors=True)
    for module in [module for module in sys.modules if module.startswith("diffusers_modules")]:
        del sys.modules[module]
    return cls.from_pretrained(*arguments, **named)

def load_and_run(name, *arguments, **named):
    pipe = load(*arguments, **named)
    pipe.set_progress_bar_config(disable=True)
    photos = torch.from_numpy(np.load(folder / "photos.npy"))
    pair = pipe(photos, disparity_scale=0.1, generator=torch.Generator().manual_seed(4), output_type="np")
    np.savez(folder / f"{name}.npz", **pair)
    return pipe

def mark_of(pipe):
    return getattr(sys.modules[type(pipe).__module__], "MARK", None)
"""

# "me/zerostereo" at v1 and, with more steps and changed code, at main. "me/code" holds nothing but code.
PUBLISH = """
from pipeline_zerostereo import ZeroStereoPipeline
api = HfApi()
pipe = ZeroStereoPipeline.from_pretrained(folder / "saved")
pipe.push_to_hub("me/zerostereo")
pipe.push_to_hub("me/zerostereo", variant="fp16")
api.create_tag("me/zerostereo", tag="v1")
pipe.register_to_config(default_num_inference_steps=9)
pipe.save_pretrained(str(folder / "newer"), push_to_hub=True, repo_id="me/zerostereo")

source = Path(sys.argv[2]).read_text()
api.create_repo("me/code")
for mark in ("old", "new"):
    for repo_id in ("me/code", "me/zerostereo"):
        api.upload_file(
            repo_id=repo_id, path_or_fileobj=(source + f"MARK = '{mark}'\\n").encode(),
            path_in_repo="pipeline_zerostereo.py",
        )
    if mark == "old":
        api.upload_file(repo_id="me/code", path_or_fileobj=folder / "saved/pipeline.py", path_in_repo="pipeline.py")
        api.create_tag("me/code", tag="v1")
"""

ONE_LINE = """
pipe = DiffusionPipeline.from_pretrained("me/zerostereo", revision="v1", trust_remote_code=True)
assert mark_of(pipe) is None and pipe.config.default_num_inference_steps == 2
load_and_run("one_line", "me/zerostereo", revision="v1", trust_remote_code=True)
"""

FORMS = """
trust = {"trust_remote_code": True}
assert load("me/zerostereo", **trust).config.default_num_inference_steps == 9
assert mark_of(load("me/zerostereo", **trust)) == "new"
load_and_run("name", "me/zerostereo", revision="v1", custom_pipeline="pipeline_zerostereo", **trust)
load_and_run("variant", "me/zerostereo", revision="v1", variant="fp16", **trust)

# Code from one repository, weights without code from a folder; the code's own revision is a pin of its own.
bare = folder / "bare"
assert mark_of(load(bare, custom_pipeline="me/code", **trust)) == "new"
pipe = load_and_run("repository", bare, custom_pipeline="me/code", custom_revision="v1", **trust)
assert mark_of(pipe) == "old"

# The code that the weights' repository holds itself goes before, in the revision of the weights.
assert mark_of(load("me/zerostereo", revision="v1", custom_pipeline="me/code", **trust)) is None
assert mark_of(load("me/zerostereo", custom_pipeline="me/zerostereo", **trust)) == "new"

for arguments in ({}, {"custom_pipeline": "me/zerostereo"}):
    try:
        load("me/zerostereo", **arguments)
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    else:
        raise AssertionError(arguments)

# The class that is there already runs itself, and nothing of the repository.
from pipeline_zerostereo import ZeroStereoPipeline
assert type(load_and_run("own", "me/zerostereo", cls=ZeroStereoPipeline, revision="v1")) is ZeroStereoPipeline
"""

# Every form that runs the repository's code, so that the cache holds what they need.
EVERY_FORM = """
forms = ({}, {"custom_pipeline": "pipeline_zerostereo"}, {"custom_pipeline": "me/zerostereo"})
"""
FETCH = """
for form in forms:
    load("me/zerostereo", revision="v1", trust_remote_code=True, **form)
print(snapshot_download("me/zerostereo", revision="v1"))
"""

# Without network: the folder that snapshot_download returned loads, and so does the class that is there already.
OFFLINE = """
from huggingface_hub.errors import OfflineModeIsEnabled
from pipeline_zerostereo import ZeroStereoPipeline
for form in forms:
    try:
        load("me/zerostereo", revision="v1", trust_remote_code=True, **form)
    except OfflineModeIsEnabled as error:
        assert "offline mode is enabled" in str(error)
    else:
        raise AssertionError(f"{form} needs no network any more: say so in the README")
assert snapshot_download("me/zerostereo", revision="v1") == sys.argv[2]
load_and_run("offline", sys.argv[2], trust_remote_code=True)
load_and_run("offline_own", "me/zerostereo", cls=ZeroStereoPipeline, revision="v1")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Hold "saved", as save_pretrained writes it, "bare", the weights without code, photographs and their pair."""
    folder = tmp_path_factory.mktemp("hub")
    pipe = embedded_pipeline()
    pipe.save_pretrained(folder / "saved")
    shutil.copytree(folder / "saved", folder / "bare")
    for name in ("pipeline.py", "pipeline_zerostereo.py"):
        (folder / "bare" / name).unlink()
    index = folder / "bare" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "ZeroStereoPipeline"}))
    photos = make_photos(2, 30, 46)
    np.save(folder / "photos.npy", photos.numpy())
    np.savez(folder / "expected.npz", **pipe(photos, disparity_scale=0.1, generator=seeded(4), output_type="np"))
    return folder


@pytest.fixture(scope="module")
def hub(folder):
    """A Hub with what PUBLISH publishes."""
    with LoopbackHub(folder / "hub") as server:
        server.run_python(COMMON + PUBLISH, folder, PIPELINE_FILE, home=folder / "publisher", PYTHONPATH=str(ROOT))
        yield server


def assert_expected_pair(folder: Path, name: str, tolerance: float = 1e-6) -> None:
    with np.load(folder / "expected.npz") as expected, np.load(folder / f"{name}.npz") as found:
        assert_fields_agree(found, expected, tolerance, name)


def test_published_repository_holds_everything_that_a_loader_needs(hub, folder):
    files = hub.files("me/zerostereo", revision="v1")
    saved = {path.relative_to(folder / "saved").as_posix() for path in (folder / "saved").rglob("*.*")}
    assert {"pipeline.py", "pipeline_zerostereo.py", "model_index.json"} < saved <= set(files)
    assert files["unet/diffusion_pytorch_model.safetensors"].lfs and not files["pipeline_zerostereo.py"].lfs
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in files
    for name in ("pipeline.py", "pipeline_zerostereo.py"):
        assert hub.read("me/zerostereo", name, revision="v1") == (folder / "saved" / name).read_bytes(), name
    index = json.loads(hub.read("me/zerostereo", "model_index.json", revision="v1"))
    del index["_name_or_path"]  # where the publisher had loaded it from
    assert index == json.loads((folder / "saved" / "model_index.json").read_text())


def test_one_line_loads_the_published_pipeline(hub, folder, tmp_path):
    hub.run_python(COMMON + ONE_LINE, folder, home=tmp_path / "home")
    assert_expected_pair(folder, "one_line")


def test_names_repositories_revisions_and_variants(hub, folder, tmp_path):
    hub.run_python(COMMON + FORMS, folder, home=tmp_path / "home", PYTHONPATH=str(ROOT))
    for name in ("name", "variant", "repository", "own"):
        assert_expected_pair(folder, name)


def test_without_network_the_folder_and_the_own_class_load(hub, folder, tmp_path):
    home = tmp_path / "home"
    snapshot = hub.run_python(COMMON + EVERY_FORM + FETCH, folder, home=home).split()[-1]
    asked = len(hub.log)
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    hub.run_python(COMMON + EVERY_FORM + OFFLINE, folder, snapshot, home=home, **offline)
    assert len(hub.log) == asked, "nothing was asked"
    assert_expected_pair(folder, "offline")
    assert_expected_pair(folder, "offline_own")
