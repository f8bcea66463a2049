# SPDX-License-Identifier: Apache-2.0
"""training.publish: a dry run by default, and everything from the push to one line in a fresh process.

The Hub is tests/loopback_hub.py. One process publishes the whole family, another one, with an empty cache, loads it.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from tests.loopback_hub import LoopbackHub
from tests.stereo_network_helpers import make_pair, make_small_igev, make_small_raft
from tests.test_publishing import (
    evaluation_results,
    make_lora_folder,
    make_pipeline_folder,
    make_space_folder,
    printed_files,
)
from tests.tiny_components import make_photos
from training import publish
from training.publishing import list_files

ROOT = Path(publish.__file__).resolve().parent.parent
PUBLISH = """
import contextlib, io, json, sys
from training import publish

printed = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        publish.main(arguments)
    printed.append(out.getvalue())
print(json.dumps(printed))
"""
LOAD = """
import sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, snapshot_download
folder = Path(sys.argv[1])

pipe = DiffusionPipeline.from_pretrained("me/stereo", trust_remote_code=True)
assert "training" not in sys.modules
pipe.set_progress_bar_config(disable=True)
photos = torch.from_numpy(np.load(folder / "photos.npy"))

def right_view():
    generator = torch.Generator().manual_seed(3)
    return pipe(photos, disparity_scale=0.1, generator=generator, output_type="np").images

found = {"before": right_view()}
pipe.load_lora_weights("me/lora")
found["with_lora"] = right_view()

from training.stereo_networks.igev_stereo import IGEVStereo
from training.stereo_networks.raft_stereo import RAFTStereo
left, right = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("left", "right"))
for name, network in (("raft", RAFTStereo), ("igev", IGEVStereo)):
    with torch.no_grad():
        found[name] = network.from_pretrained(f"me/{name}").eval()(left, right, 3).disparity.numpy()
np.savez(folder / "found.npz", **found)

print(snapshot_download("me/page", repo_type="space"))
collection, = HfApi(token=False).list_collections(owner="me")
print([(item.item_type, item.item_id) for item in HfApi().get_collection(collection.slug).items])
"""


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    """One folder of each kind, inputs, and a file of figures of the stereo network."""
    folder = tmp_path_factory.mktemp("family")
    make_pipeline_folder(folder / "stereo")
    make_lora_folder(folder / "lora", base="me/stereo")
    make_small_raft().save_pretrained(folder / "raft")
    make_small_igev().save_pretrained(folder / "igev")
    make_space_folder(folder / "page")
    (folder / "results.json").write_text(json.dumps(evaluation_results("raft")))
    np.save(folder / "photos.npy", make_photos(1, 30, 46).numpy())
    for name, picture in zip(("left", "right"), make_pair(40, 70), strict=True):
        np.save(folder / f"{name}.npy", picture.numpy())
    return folder


def commands(family: Path) -> list[list[str]]:
    network = ["--licence", "mit", "--data-set", "me/pairs"]
    return [
        ["pipeline", str(family / "stereo"), "me/stereo", "--licence", "apache-2.0"],
        ["lora", str(family / "lora"), "me/lora"],
        ["stereo-network", str(family / "raft"), "me/raft", *network, "--results", str(family / "results.json")],
        ["stereo-network", str(family / "igev"), "me/igev", *network],
        ["space", str(family / "page"), "me/page", "--weights", "me/stereo"],
        [
            "collection",
            "me",
            "All of it",
            "--models",
            "me/stereo",
            "me/lora",
            "me/raft",
            "me/igev",
            "--spaces",
            "me/page",
        ],
    ]


def test_nothing_is_sent_without_push(family, capsys):
    """The session has no network: whatever asked for it would fail."""
    before = {path: path.stat().st_mtime_ns for path in family.rglob("*")}
    for command in commands(family):
        publish.main(command)
        printed = capsys.readouterr().out
        assert printed.endswith("Nothing was uploaded: add --push to do it.\n"), command
        if command[0] != "collection":
            assert set(list_files(Path(command[1]))) <= printed_files(printed)
    assert {path: path.stat().st_mtime_ns for path in family.rglob("*")} == before


def test_the_listing_of_a_collection(family, capsys):
    publish.main(commands(family)[-1])
    printed = capsys.readouterr().out
    assert "   model  me/raft\n" in printed and "   space  me/page\n" in printed
    assert '5 items for the collection "All of it" of me' in printed


def failure(*arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        publish.main(list(arguments))
    assert isinstance(ended.value.code, str) and "\n" not in ended.value.code, "one line, status 1"
    return ended.value.code


def test_what_cannot_be_published_ends_with_one_line(family, tmp_path):
    begin = "publish: error: "
    assert (
        failure("pipeline", str(tmp_path / "none"), "me/x") == f"{begin}`DIR` must be a folder; got {tmp_path}/none."
    )
    assert failure("pipeline", str(family / "stereo"), "x").startswith(f"{begin}`REPO` must be USER/NAME; got x.")
    assert "`README.md` must state a licence" in failure("pipeline", str(family / "stereo"), "me/x")
    results = ["--results", str(family / "results.json")]
    assert "are of 'raft', and there are no checksums" in failure(
        "stereo-network", str(family / "igev"), "me/x", *results
    )
    assert "`collection` needs something to list" in failure("collection", "me", "Title")
    push = ["--licence", "mit", "--push"]
    assert failure("pipeline", str(family / "stereo"), "me/x", *push).startswith(f"{begin}Cannot reach ")


@pytest.mark.slow
def test_from_push_to_one_line_in_a_fresh_process(family, tmp_path):
    python = {"PYTHONPATH": str(ROOT)}
    pushes = [[*command, "--push"] for command in commands(family)]
    with LoopbackHub(tmp_path / "hub") as hub:
        publishing = [*pushes, *pushes[:1], pushes[-1]]  # the first and the last again: nothing is new
        printed = json.loads(hub.run_python(PUBLISH, json.dumps(publishing), home=tmp_path / "home", **python))
        for command, said in zip(pushes[:-1], printed, strict=False):
            kind = "spaces" if command[0] == "space" else "models"
            files = set(hub.files(command[2], kind)) - {".gitattributes"}
            assert files == printed_files(said), f"{command[0]}: what was said is what went up"
            for name, path in list_files(Path(command[1])).items():
                assert isinstance(path, Path)
                if name != "README.md":
                    assert hub.read(command[2], name, kind) == path.read_bytes(), (command[2], name)
        assert len(list(hub.repository("me/stereo").commits)) == 2, "the second push of the same changed nothing"
        assert hub.read("me/page", "README.md", "spaces") == (family / "page" / "README.md").read_bytes()
        assert hub.repository("me/page", "spaces").variables == {"ZEROSTEREO_WEIGHTS": "me/stereo"}
        assert hub.repository("me/page", "spaces").sdk == "gradio"
        assert len(hub.requests("^POST /api/validate-yaml")) >= 5, "the client lets the Hub check every card"

        snapshot, items = hub.run_python(LOAD, family, home=tmp_path / "fresh", **python).splitlines()[-2:]
        models = [("model", f"me/{name}") for name in ("stereo", "lora", "raft", "igev")]
        assert items == str([*models, ("space", "me/page")])
        cards = {name: ModelCard(hub.read(f"me/{name}", "README.md").decode()) for name in ("stereo", "lora", "raft")}
    page, got = list_files(family / "page"), list_files(Path(snapshot))
    assert {name: Path(str(one)).read_bytes() for name, one in got.items()} == {
        name: Path(str(one)).read_bytes() for name, one in page.items()
    }
    assert 'from_pretrained("me/stereo", trust_remote_code=True)' in cards["stereo"].text
    assert 'load_lora_weights("me/lora")' in cards["lora"].text and cards["lora"].data.base_model == "me/stereo"
    assert cards["lora"].data.to_dict()["base_model_relation"] == "adapter"
    assert 'RAFTStereo.from_pretrained("me/raft")' in cards["raft"].text
    assert (cards["raft"].data.license, cards["raft"].data.datasets) == ("mit", ["me/pairs"])
    assert [one.metric_value for one in cards["raft"].data.eval_results or []] == [1.25, 0.0625]

    left, right = make_pair(40, 70)
    with np.load(family / "found.npz") as found, torch.no_grad():
        for name, make in (("raft", make_small_raft), ("igev", make_small_igev)):
            np.testing.assert_allclose(found[name], make()(left, right, 3).disparity.numpy(), rtol=0, atol=1e-4)
        assert found["before"].shape == (1, 30, 46, 3)
        assert np.abs(found["with_lora"] - found["before"]).max() > 1e-3, "the LoRA does something"


@pytest.mark.slow
def test_private_and_public_are_not_mixed_up_and_foreign_files_are_named(family, tmp_path):
    python = {"PYTHONPATH": str(ROOT)}
    pipeline = ["pipeline", str(family / "stereo"), "me/stereo", "--licence", "mit", "--push"]
    hidden = [*pipeline[:2], "me/hidden", *pipeline[3:], "--private"]
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.store.create("models", "me/stereo", private=False, sdk=None).add(
            "main", {"NOTES.md": hub.store.regular_file(b"mine")}, "somebody's"
        )
        with pytest.raises(RuntimeError, match="`--private` needs a private repository; got me/stereo, which exists"):
            hub.run_python(PUBLISH, json.dumps([[*pipeline, "--private"]]), home=tmp_path / "home", **python)
        assert set(hub.files("me/stereo")) == {"NOTES.md"}
        said, _ = json.loads(hub.run_python(PUBLISH, json.dumps([pipeline, hidden]), home=tmp_path / "home", **python))
        assert "also there, and not of this upload: NOTES.md" in said
        assert hub.read("me/stereo", "NOTES.md") == b"mine" and hub.repository("me/hidden").private
        weights = hub.read("me/hidden", "unet/diffusion_pytorch_model.safetensors")
        local = family / "stereo" / "unet" / "diffusion_pytorch_model.safetensors"
        assert hashlib.sha256(weights).digest() == hashlib.sha256(local.read_bytes()).digest()
