# SPDX-License-Identifier: Apache-2.0
"""What goes up of each kind of folder, and what is refused before anything is asked of a Hub."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stereo_network_helpers import make_small_raft
from tests.tiny_components import (
    configured_prompt,
    make_depth_anything,
    make_sample_ddim,
    make_tiny_autoencoder,
    make_unet,
)
from training.export_card import plain_card
from training.inpainting_result import LORA_CARD
from training.lora import add_lora, save_lora
from training.pipeline_folder import render_card, write_pipeline_folder
from training.publishing import (
    Item,
    check_collection,
    list_files,
    lora_upload,
    network_upload,
    pipeline_upload,
    space_upload,
    unstated_sources,
)
from training.publishing_card import CardAdditions

MIT = CardAdditions(licence="mit")
SPACE_FRONT = {
    "title": "Page",
    "colorFrom": "indigo",
    "colorTo": "pink",
    "sdk": "gradio",
    "sdk_version": "6.31.0",
    "app_file": "app.py",
    "license": "apache-2.0",
}


def make_pipeline_folder(folder: Path) -> Path:
    """Write a tiny pipeline folder whose card states no licence and loads the folder's name."""
    settings = {"masked_fill": "background", "latent_mask_reduction": "max", "default_num_inference_steps": 1}
    return write_pipeline_folder(
        folder,
        unet=make_unet(latent_channels=8),
        vae=make_tiny_autoencoder(),
        scheduler=make_sample_ddim(),
        depth_estimator=make_depth_anything(),
        default_depth_resolution=42,
        empty_prompt_embeds=configured_prompt(),
        card=render_card(plain_card(title="tiny", repo_id="runs/tiny", settings=settings)),
        **settings,
    )


def make_lora_folder(folder: Path, base: str) -> Path:
    """Write a LoRA that changes the UNet of `make_pipeline_folder`, with a card as training writes it."""
    unet = make_unet(latent_channels=8)
    add_lora(unet, rank=2, alpha=8.0, targets=("to_q", "to_v", "conv_in"))
    torch.manual_seed(5)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    folder.mkdir(parents=True)
    save_lora(unet, folder)
    words = {
        "title": "a LoRA",
        "repo_id": "runs/lora",
        "training": "2 steps.",
        "figures": "None: nothing.",
        "licences": "MIT",
    }
    card = LORA_CARD.format(base=base, **words)
    (folder / "README.md").write_text(f"---\nlicense: mit\nlibrary_name: diffusers\n---\n\n{card}", encoding="utf-8")
    return folder


def make_space_folder(folder: Path, **changes: str | None) -> Path:
    """Write the folder of a Space that is a page of nothing."""
    front = {name: value for name, value in {**SPACE_FRONT, **changes}.items() if value is not None}
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__pycache__" / "app.pyc").write_bytes(b"x")
    (folder / ".hidden").write_text("not for others")
    (folder / "examples").mkdir()
    (folder / "examples" / "a.png").write_bytes(bytes(range(250)))
    (folder / "app.py").write_text("import gradio\n")
    (folder / "requirements.txt").write_text("numpy==2.4.6\n")
    (folder / "README.md").write_text(f"---\n{json.dumps(front)}\n---\n\n# Page\n")
    return folder


def evaluation_results(network: str) -> dict[str, Any]:
    """Return results as an evaluation of a stereo network writes them."""
    figures = {"EPE, px": 1.25, "> 3 px": 0.0625}
    return {"network": network, "data_set": "KITTI 2015", "protocol": "all pixels, mean of images", "figures": figures}


def printed_files(printed: str) -> set[str]:
    """Return the names in a listing of files."""
    return set(re.findall(r"^ *[\d,]+  (\S.*)$", printed, re.MULTILINE))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    return make_pipeline_folder(tmp_path_factory.mktemp("pipeline") / "tiny")


@pytest.fixture
def copy(pipeline, tmp_path) -> Path:
    return Path(shutil.copytree(pipeline, tmp_path / "tiny"))


def content(upload, name: str) -> str:
    one = upload.files[name]
    return one.decode() if isinstance(one, bytes) else one.read_text(encoding="utf-8")


def test_hidden_files_and_caches_stay_here(tmp_path):
    folder = make_space_folder(tmp_path / "page")
    assert list(list_files(folder)) == ["README.md", "app.py", "examples/a.png", "requirements.txt"]
    (folder / "link.txt").symlink_to("requirements.txt")
    assert "link.txt" in list_files(folder), "links go up as files"
    with pytest.raises(FileNotFoundError, match="`DIR` must be a folder; got .*none"):
        list_files(tmp_path / "none")


def test_everything_of_a_pipeline_goes_up_with_the_repositorys_name_on_its_card(pipeline):
    upload = pipeline_upload(pipeline, "me/stereo", MIT)
    assert set(upload.files) == set(list_files(pipeline)) and upload.repo_type == "model"
    assert 'from_pretrained("me/stereo", trust_remote_code=True)' in content(upload, "README.md")
    assert "runs/tiny" in (pipeline / "README.md").read_text(), "the folder's own card is as it was"
    said = upload.describe().splitlines()
    assert printed_files(upload.describe()) == set(upload.files)
    assert "note: the card loads me/stereo where the folder's own loads runs/tiny" in said
    size = sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in upload.files.values())
    assert said[-1] == f"{len(upload.files)} files, {size / 1e6:.1f} MB, for the model me/stereo"


@pytest.mark.parametrize("name", ["pipeline.py", "pipeline_zerostereo.py", "model_index.json", "README.md"])
def test_an_incomplete_pipeline_is_refused(copy, name):
    (copy / name).unlink()
    with pytest.raises(ValueError, match=rf"`DIR` must hold \['model_index.*lacks \['{name}'\]"):
        pipeline_upload(copy, "me/stereo", MIT)


def test_what_could_run_code_and_what_tells_of_this_machine_is_refused(copy):
    (copy / "unet" / "old.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"weights as safetensors only; got \['unet/old.bin'\], which can run code"):
        pipeline_upload(copy, "me/stereo", MIT)
    (copy / "unet" / "old.bin").unlink()
    (copy / "notes.md").write_text(f"made in {Path.cwd()}/runs\n")
    with pytest.raises(ValueError, match="must tell nothing of this machine; notes.md names /"):
        pipeline_upload(copy, "me/stereo", MIT)


def test_weights_of_unstated_licence_need_permission(copy):
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": "Windsrain/ZeroStereo@c0ffee"}))
    assert unstated_sources(list_files(copy)) == ["Windsrain/ZeroStereo"]
    with pytest.raises(
        ValueError, match="whose authors state a licence; got Windsrain/ZeroStereo. Pass --i-have-perm"
    ):
        pipeline_upload(copy, "me/stereo", MIT)
    assert pipeline_upload(copy, "me/stereo", MIT, has_permission=True).files
    stated = "sd2-community/stable-diffusion-2-inpainting@c0ffee"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": stated}))
    assert pipeline_upload(copy, "me/stereo", MIT).files
    with pytest.raises(ValueError, match="got weights of unknown licence"):
        pipeline_upload(copy, "me/stereo", CardAdditions(licence="unknown"))


def test_a_copy_of_the_licence_is_asked_for_where_the_licence_asks_for_it(copy):
    openrail = CardAdditions(licence="openrail++")
    assert pipeline_upload(copy, "me/stereo", openrail).notes[-1].startswith("openrail++ asks for a copy of itself")
    (copy / "LICENSE-MODEL").write_text("as published\n")
    assert not [note for note in pipeline_upload(copy, "me/stereo", openrail).notes if "copy" in note]
    (copy / "LICENSE-MODEL").unlink()
    assert not [note for note in pipeline_upload(copy, "me/stereo", MIT).notes if "copy" in note]


def test_a_lora_names_its_base(tmp_path):
    folder = make_lora_folder(tmp_path / "lora", base="zerostereo")
    with pytest.raises(ValueError, match="`--base` must name the pipeline on the Hub .*; its card names zerostereo"):
        lora_upload(folder, "me/lora", CardAdditions())
    upload = lora_upload(folder, "me/lora", CardAdditions(base="me/stereo"))
    card = content(upload, "README.md")
    assert 'DiffusionPipeline.from_pretrained("me/stereo", trust' in card and 'load_lora_weights("me/lora")' in card
    assert "base_model: me/stereo\n" in card and "base_model_relation: adapter\n" in card
    (folder / "pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks \['pytorch_lora_weights.safetensors'\]"):
        lora_upload(folder, "me/lora", CardAdditions(base="me/stereo"))


def test_a_stereo_network_gets_a_card_or_keeps_its_own(tmp_path):
    folder = tmp_path / "raft"
    make_small_raft().save_pretrained(folder)
    with pytest.raises(ValueError, match="`--licence` must be given for weights without a card"):
        network_upload(folder, "me/raft", CardAdditions())
    upload = network_upload(folder, "me/raft", MIT, "python -m training.train_stereo --output raft")
    assert list(upload.files) == ["README.md", "config.json", "diffusion_pytorch_model.safetensors"]
    assert upload.notes[0].startswith("the card is made from")
    assert "```\npython -m training.train_stereo --output raft\n```" in content(upload, "README.md")
    own = '---\nlicense: mit\n---\n\n`RAFTStereo.from_pretrained("here")` is mine.\n'
    (folder / "README.md").write_text(own)
    assert content(network_upload(folder, "me/raft", CardAdditions()), "README.md") == own.replace("here", "me/raft")
    (folder / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match=r"one of \['RAFTStereo', 'IGEVStereo'\]; .* holds UNet2DModel"):
        network_upload(folder, "me/raft", CardAdditions())


def test_a_space_is_told_its_weights_or_brings_them(tmp_path, pipeline):
    folder = make_space_folder(tmp_path / "page")
    with pytest.raises(ValueError, match="`--weights` must name a pipeline; .* has none in weights/zerostereo-tiny/"):
        space_upload(folder, "me/page", None)
    named = space_upload(folder, "me/page", "me/stereo")
    assert (named.repo_type, named.sdk, named.variables) == ("space", "gradio", {"ZEROSTEREO_WEIGHTS": "me/stereo"})
    assert set(named.files) == set(list_files(folder)) and "variable ZEROSTEREO_WEIGHTS=me/stereo" in named.describe()
    brought = space_upload(folder, "me/page", str(pipeline))
    own = {f"weights/zerostereo-tiny/{name}" for name in list_files(pipeline)}
    assert set(brought.files) == set(list_files(folder)) | own and brought.variables == {}
    shutil.copytree(pipeline, folder / "weights" / "zerostereo-tiny")
    assert set(space_upload(folder, "me/page", None).files) == set(brought.files)
    with pytest.raises(ValueError, match="`REPO` must be USER/NAME; got stereo"):
        space_upload(folder, "me/page", "stereo")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"sdk": "flask"}, "sdk"),
        ({"sdk_version": None}, "sdk_version"),
        ({"app_file": "main.py"}, "app_file"),
        ({"license": None}, "license"),
        ({"colorTo": "teal"}, "colorTo"),
        ({"short_description": "x" * 61}, "short_description"),
    ],
)
def test_a_space_that_could_not_start_is_refused(tmp_path, changes, fault):
    folder = make_space_folder(tmp_path / "page", **changes)
    with pytest.raises(ValueError, match=rf"`README.md` of a Space must have title.*; wrong: \['{fault}'\]"):
        space_upload(folder, "me/page", "me/stereo")
    (folder / "requirements.txt").unlink()
    with pytest.raises(ValueError, match=r"must be the folder of a Space; .* lacks \['requirements.txt'\]"):
        space_upload(folder, "me/page", "me/stereo")


def test_what_the_hub_would_refuse_of_a_collection_is_refused_before():
    items = [Item("model", "me/stereo"), Item("paper", "2501.08654")]
    check_collection("All of it", "me", "x" * 150, items)
    for arguments, message in (
        (("  ", "me", "", items), "`OWNER` must be a user or organisation and `TITLE` words"),
        (("All", "me/you", "", items), "got 'me/you' and 'All'"),
        (("All", "me", "x" * 151, items), "`--description` must have at most 150 characters; got 151"),
        (("All", "me", "", []), "`collection` needs something to list"),
        (("All", "me", "", [Item("space", "page")]), "`REPO` must be USER/NAME; got page"),
    ):
        with pytest.raises(ValueError, match=message):
            check_collection(*arguments)
