# SPDX-License-Identifier: Apache-2.0
"""The oldest diffusers and transformers: stated once, refused below, and run, as is an environment with nothing else.

The two environments are made by `make venvs`, which takes a minute or two; without them their tests are skipped.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import pipeline_zerostereo
from pipeline_zerostereo import MIN_DIFFUSERS, MIN_TRANSFORMERS, ZeroStereoPipeline
from tests.tiny_components import assert_fields_agree, make_photos, official_pipeline, quiet, seeded

ROOT = Path(pipeline_zerostereo.__file__).parent
WEIGHTS = ROOT / "weights" / "zerostereo-tiny"
BARE = {"accelerate", "diffusers", "pillow", "safetensors", "torch", "transformers"}

# Argument 1 is the folder with the weights, 2 the folder for results. A pair, the same after saving, half precision.
LOAD_AND_RUN = """
import importlib.metadata
import sys
from pathlib import Path
import numpy as np
import PIL.Image
import torch
torch.set_num_threads(1)
from diffusers import DiffusionPipeline
weights, results = sys.argv[1], Path(sys.argv[2])

def run(pipe, name):
    pipe.set_progress_bar_config(disable=True)
    photo = PIL.Image.open(results / "photo.png")
    pair = pipe(photo, disparity_scale=0.1, generator=torch.Generator().manual_seed(4), output_type="np")
    np.savez(results / f"{name}.npz", **pair)

pipe = DiffusionPipeline.from_pretrained(weights, trust_remote_code=True)
run(pipe, "loaded")
pipe.save_pretrained(results / "saved")
saved = str(results / "saved")
run(DiffusionPipeline.from_pretrained(saved, custom_pipeline=saved, trust_remote_code=True), "again")
dtype = {"default": torch.float16, "depth_estimator": torch.float32}
pipe = DiffusionPipeline.from_pretrained(weights, trust_remote_code=True, dtype=dtype)
assert (pipe.unet.dtype, pipe.vae.dtype, pipe.depth_estimator.dtype) == (torch.float16, torch.float16, torch.float32)
for distribution in importlib.metadata.distributions():
    print(f"{distribution.metadata['Name'].lower().replace('_', '-')}=={distribution.version}")
"""


def fake_install(folder: Path, package: str, version: str) -> None:
    """Make a package look installed in this version to whoever has the folder on the path."""
    information = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")


def import_pipeline(*paths: Path) -> subprocess.CompletedProcess:
    """Import the pipeline file in a new interpreter with these folders first on the path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [*paths, ROOT]))
    command = [sys.executable, "-c", "import pipeline_zerostereo"]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("package", "found", "needed"),
    [
        ("diffusers", "0.39.0", MIN_DIFFUSERS),
        ("diffusers", "0.9.1.dev0", MIN_DIFFUSERS),
        ("transformers", "4.57.6", MIN_TRANSFORMERS),
        ("transformers", "5.5.4", MIN_TRANSFORMERS),
    ],
)
def test_an_old_version_is_named_before_anything_else_fails(tmp_path, package, found, needed):
    fake_install(tmp_path / "versions", package, found)
    for library in ("diffusers", "transformers"):  # an old library may fail at any of our imports
        (tmp_path / "versions" / library).mkdir()
        (tmp_path / "versions" / library / "__init__.py").write_text("raise AttributeError('too old')\n")
    done = import_pipeline(tmp_path / "versions")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f"ImportError: ZeroStereo needs {package} >= {needed}; found {found}. "
        f'Run: python -m pip install --upgrade "{package}>={needed}"'
    )


@pytest.mark.parametrize("found", ["0.40", "0.40.0", "0.40.0.dev0", "0.40.1", "0.100.0", "1.0"])
def test_a_sufficient_version_is_accepted(tmp_path, monkeypatch, found):
    fake_install(tmp_path, "some-package", found)
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.metadata.version("some-package") == found
    pipeline_zerostereo._check_version("some-package", "0.40.0")


@pytest.mark.parametrize("found", ["0.39.99", "0.4.0", "0.5"])
def test_versions_are_compared_by_number(tmp_path, monkeypatch, found):
    fake_install(tmp_path, "some-package", found)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=rf"needs some-package >= 0\.40\.0; found {re.escape(found)}\. Run: .* pip"):
        pipeline_zerostereo._check_version("some-package", "0.40.0")


def test_a_package_of_unknown_version_is_left_to_the_import():
    pipeline_zerostereo._check_version("no-such-package", "1.0.0")


def pins(name: str) -> dict[str, str]:
    """Return the packages that a requirements file names itself, with their versions."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def test_card_requirements_and_constants_agree():
    claim = f"Needs diffusers >= {MIN_DIFFUSERS}, transformers >= {MIN_TRANSFORMERS}."
    for document in ("model_card.md", "docs/using.md", "weights/zerostereo-tiny/README.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        assert re.findall(r"Needs diffusers >= [^\n]*", text) == [claim], document
    oldest, minimal, usual = (pins(f"requirements{end}.txt") for end in ("-oldest", "-minimal", ""))
    assert (oldest["diffusers"], oldest["transformers"]) == (MIN_DIFFUSERS, MIN_TRANSFORMERS)
    assert set(minimal) == BARE and minimal.items() <= usual.items()
    assert set(oldest) == BARE | {"huggingface-hub"}


@pytest.fixture(scope="module", params=["embedded", "with text encoder"])
def weights(request, tmp_path_factory) -> Path:
    """The embedded weights, and a folder with tokenizer and text encoder as the installed libraries write them."""
    if request.param == "embedded":
        return WEIGHTS
    folder = tmp_path_factory.mktemp("official")
    official_pipeline(folder / "vocabulary").save_pretrained(folder / "weights")
    return folder / "weights"


@pytest.fixture(scope="module")
def expected(weights) -> dict[str, np.ndarray]:
    pipe = quiet(ZeroStereoPipeline.from_pretrained(weights))
    return dict(pipe(photo(), disparity_scale=0.1, generator=seeded(4), output_type="np"))


def photo() -> PIL.Image.Image:
    return PIL.Image.fromarray((make_photos(1, 98, 126)[0].permute(1, 2, 0) * 255).round().byte().numpy())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minimal", "oldest"])
def test_weights_load_and_run_in_an_environment_of_their_own(tmp_path, weights, expected, name):
    python = ROOT / f".venv-{name}" / "bin" / "python"
    if not (ROOT / f".venv-{name}" / ".installed").is_file():
        pytest.skip(f"needs the environment .venv-{name}: run `make venvs`")
    photo().save(tmp_path / "photo.png")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    environment.update(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home"), OMP_NUM_THREADS="1")
    command = [str(python), "-c", LOAD_AND_RUN, str(weights), str(tmp_path)]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "pip install" not in done.stderr, "the loader names packages that the pipeline file does not need"

    installed = dict(line.split("==") for line in done.stdout.split())
    assert pins(f"requirements-{name}.txt").items() <= {k: v.split("+")[0] for k, v in installed.items()}.items()
    assert not {"datasets", "opencv-python-headless", "peft", "scipy", "torchvision"} & installed.keys()
    for result in ("loaded", "again"):
        with np.load(tmp_path / f"{result}.npz") as found:
            assert_fields_agree(found, expected, 1e-5, result)
