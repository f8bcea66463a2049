# SPDX-License-Identifier: Apache-2.0
"""The export command: published layouts in, folders that load and run out; the Hub is a loopback one."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import PNDMScheduler
from huggingface_hub import ModelCard

from pipeline_zerostereo import ZeroStereoPipeline, has_official_position_embedding
from tests.loopback_hub import LoopbackHub
from tests.tiny_components import (
    DEPTH_ANYTHING_PROCESSOR,
    DPT_PROCESSOR,
    GLPN_PROCESSOR,
    make_ddim,
    make_depth_anything,
    make_dpt,
    make_glpn,
    make_photos,
    make_sample_ddim,
    quiet,
    seeded,
    write_base,
    write_depth_model,
)
from training import export_pipeline

ROOT = Path(export_pipeline.__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def depth_anything(tmp_path_factory) -> Path:
    return write_depth_model(tmp_path_factory.mktemp("depth"), make_depth_anything(), DEPTH_ANYTHING_PROCESSOR)


def export(base: Path, depth: Path, output: Path, *flags: str) -> Path:
    export_pipeline.main(["--base", str(base), "--depth-model", str(depth), "--output", str(output), *flags])
    return output


def load(folder: Path, **named) -> ZeroStereoPipeline:
    return quiet(ZeroStereoPipeline.from_pretrained(folder, **named))


NETWORKS = {
    "DepthAnything": (make_depth_anything, DEPTH_ANYTHING_PROCESSOR, ("inverse_depth", 14, 518, "official")),
    "DPT": (make_dpt, DPT_PROCESSOR, ("inverse_depth", 32, 384, "transformers")),
    "GLPN": (make_glpn, GLPN_PROCESSOR, ("metric_depth", 32, 0, "transformers")),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_every_kind_of_depth_model_runs_from_export_to_pair(tmp_path, base, network):
    make, processor, expected = NETWORKS[network]
    folder = export(base, write_depth_model(tmp_path / "depth", make(), processor), tmp_path / "out")
    pipe = load(folder)
    config = pipe.config
    read = (config.depth_prediction, config.depth_size_multiple, config.default_depth_resolution)
    assert (*read, config.depth_position_embedding) == expected
    assert has_official_position_embedding(pipe.depth_estimator) == (network == "DepthAnything")
    assert list(config.depth_mean) == processor.get("image_mean", [0, 0, 0])
    assert list(config.depth_std) == processor.get("image_std", [1, 1, 1])
    pair = pipe(
        make_photos(1, 50, 75), num_inference_steps=1, disparity_scale=0.1, generator=seeded(0), output_type="np"
    )
    assert pair.images.shape == (1, 50, 75, 3) and 7.49 < pair.disparity.max() <= 7.5 + 1e-4


@pytest.mark.parametrize("layout", ["StereoGen", ""])
def test_the_exported_default_is_the_official_configuration(tmp_path, depth_anything, layout):
    base = write_base(tmp_path / "base", layout)
    folder = export(base, depth_anything, tmp_path / "out")
    pipe = load(folder)
    assert (pipe.config.latent_mask_reduction, pipe.config.masked_fill) == ("nearest", "zero")
    assert pipe.config.default_num_inference_steps == 50
    assert (pipe.config.default_inpaint_resolution, pipe.config.tile_size) == (1024, 512)
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert pipe.text_encoder is None and pipe.tokenizer is None
    assert not (folder / "text_encoder").exists() and not (folder / "tokenizer").exists()
    prompt = pipe.config.empty_prompt_embeds
    assert (prompt["shape"], prompt["revision"]) == ([2, 32], "not versioned")
    assert prompt["text_encoder"] == f"local folder base/{layout + '/' if layout else ''}text_encoder"
    assert {path.name for path in folder.iterdir()} >= {"README.md", "model_index.json", "pipeline_zerostereo.py"}
    assert (
        json.loads((folder / "unet" / "config.json").read_text())["_name_or_path"] == "local folder base@not versioned"
    )
    texts = [path for path in folder.rglob("*") if path.suffix in {".json", ".md"}]
    without_command = [path for path in texts if path.name != "README.md"]
    assert not [path for path in without_command if str(tmp_path) in path.read_text()], "no path of this machine"
    assert list(folder.parent.glob(".*")) == []


def test_with_and_without_text_encoder_give_the_same_bits(tmp_path, base, depth_anything):
    """Also where the stored weights are rounded: the embedding is that of the rounded text encoder."""
    for flags in ([], ["--full-precision"]):
        name = "full" if flags else "half"
        short = load(export(base, depth_anything, tmp_path / name, *flags))
        kept = load(export(base, depth_anything, tmp_path / f"{name}-kept", "--with-text-encoder", *flags))
        assert kept.config.empty_prompt_embeds is None and kept.text_encoder.dtype == torch.float32
        assert torch.equal(short.encode_empty_prompt(), kept.encode_empty_prompt())
        made = [
            pipe(make_photos(1, 40, 56), num_inference_steps=2, generator=seeded(1), output_type="pt").images
            for pipe in (short, kept)
        ]
        assert torch.equal(*made)
    half, full = (load(tmp_path / name).encode_empty_prompt() for name in ("half", "full"))
    assert not torch.equal(half, full), "the rounding shows, so that the comparison above could fail"


def test_flags_of_the_user_go_before_what_is_read(tmp_path, base, depth_anything):
    flags = ["--steps", "3", "--depth-resolution", "0", "--depth-size-multiple", "28", "--depth-prediction", "depth"]
    flags += ["--inpaint-resolution", "256", "--tile-size", "128"]
    folder = export(base, depth_anything, tmp_path / "out", *flags)
    config = load(folder).config
    assert (config.default_inpaint_resolution, config.tile_size) == (256, 128)
    assert (config.default_num_inference_steps, config.default_depth_resolution) == (3, 0)
    assert (config.depth_size_multiple, config.depth_prediction) == (28, "depth")
    for flag in ("--steps 3", "--depth-resolution 0", "--depth-prediction depth", "--tile-size 128"):
        assert flag in (folder / "README.md").read_text(), flag


def test_other_schedulers_become_ddim_with_the_values_they_had(tmp_path):
    values = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    PNDMScheduler(skip_prk_steps=True, **values).save_pretrained(tmp_path / "pndm")
    made = export_pipeline.load_as_ddim(tmp_path / "pndm").config
    assert {name: made[name] for name in values} == values
    assert made.clip_sample is False and made.set_alpha_to_one is False, "PNDM's own, not DDIM's defaults"
    make_sample_ddim().save_pretrained(tmp_path / "ddim")
    again = export_pipeline.load_as_ddim(tmp_path / "ddim").config
    assert {k: v for k, v in again.items() if k[0] != "_"} == {
        k: v for k, v in make_sample_ddim().config.items() if k[0] != "_"
    }
    file = tmp_path / "ddim" / "scheduler_config.json"
    file.write_text(file.read_text().replace("DDIMScheduler", "NoScheduler"))
    with pytest.raises(ValueError, match="`--base` must have a scheduler of diffusers; got NoScheduler in ddim"):
        export_pipeline.load_as_ddim(tmp_path / "ddim")


PARTS = ["--unet", "u", "--vae", "v", "--scheduler", "s", "--depth-estimator", "d"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [],
            "give --base for published weights, or your parts; missing: --unet, --scheduler, --vae, --depth-estimator",
        ),
        (["--unet", "u"], "missing: --scheduler, --vae, --depth-estimator"),
        (["--base", "b", "--vae", "v", "--link"], "--vae, --link do not go with --base"),
        ([*PARTS, "--with-text-encoder"], "--with-text-encoder does not go with parts that you trained"),
        ([*PARTS, "--card-only"], "--card-only does not go with parts that you trained"),
        (["--base", "b", "--private"], "--private and --i-have-permission say how to --push-to-hub"),
    ],
)
def test_flags_that_do_not_go_together(capsys, flags, message):
    with pytest.raises(SystemExit) as ended:
        export_pipeline.parse_arguments(["--output", "o", *flags])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def failure(arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        export_pipeline.main(arguments)
    assert isinstance(ended.value.code, str) and "\n" not in ended.value.code, "one line, status 1"
    return ended.value.code


def test_what_cannot_be_had_ends_with_one_line_and_leaves_nothing(tmp_path, base, depth_anything):
    output = tmp_path / "out"
    rest = ["--output", str(output)]
    begin = "export_pipeline: error: "
    assert failure(["--base", "me/none", *rest]).startswith(
        f"{begin}`--base` must be a local folder or a repository that the Hub gives out; got 'me/none' at revision "
        "'main': OfflineModeIsEnabled"
    )
    assert failure(["--base", str(base), "--depth-model", "me/none", *rest]).startswith(
        f"{begin}`--depth-model` must be a local folder or a repository that the Hub gives out; got 'me/none'"
    )
    no_base = failure(["--base", str(depth_anything), "--depth-model", str(depth_anything), *rest])
    assert no_base.startswith(f"{begin}`--base` must have the folders ['unet', 'vae'")
    nothing = tmp_path / "empty"
    nothing.mkdir()
    assert "lacks ['config.json'" in failure(["--base", str(base), "--depth-model", str(nothing), *rest])
    broken = write_base(tmp_path / "broken")
    next((broken / "StereoGen" / "unet").glob("*.safetensors")).write_bytes(b"no weights")
    failure(["--base", str(broken), "--depth-model", str(depth_anything), *rest])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "empty"]
    output.mkdir()
    assert "`--output` must not exist yet; got" in failure(["--base", str(base), *rest])


def test_a_failure_while_writing_leaves_nothing(tmp_path, base, depth_anything, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(make_depth_anything().__class__, "save_pretrained", fail)
    arguments = ["--base", str(base), "--depth-model", str(depth_anything), "--output", str(tmp_path / "out")]
    assert failure(arguments) == "export_pipeline: error: no space left"
    assert list(tmp_path.iterdir()) == []


def test_weights_without_stated_licence_are_not_pushed(tmp_path, base, depth_anything):
    arguments = ["--base", str(base), "--depth-model", str(depth_anything), "--output", str(tmp_path / "out")]
    message = failure([*arguments, "--push-to-hub", "me/stereo"])
    assert "`--push-to-hub` needs weights whose authors state a licence; got local folder" in message
    assert "--i-have-permission" in message and "--card-only" in message
    assert list(tmp_path.iterdir()) == [], "the reason comes before the work"


def test_a_card_without_weights(tmp_path, base, depth_anything, capsys):
    folder = export(base, depth_anything, tmp_path / "out", "--card-only")
    assert {path.name for path in folder.iterdir()} == {"README.md", "pipeline_zerostereo.py", "pipeline.py"}
    assert "from .pipeline_zerostereo import ZeroStereoPipeline" in (folder / "pipeline.py").read_text()
    assert f"--output {folder}" in (folder / "README.md").read_text()
    assert "0.0 MB of weights" in capsys.readouterr().out
    assert "must not exist yet" in failure(
        ["--base", str(base), "--depth-model", str(depth_anything), "--card-only", "--output", str(folder)]
    )


# --- on the loopback Hub, each step in a process of its own ---

UPLOAD = """
import sys
from huggingface_hub import HfApi
api = HfApi()
repo_id, folder = sys.argv[1:]
api.create_repo(repo_id, exist_ok=True)
print(api.upload_folder(repo_id=repo_id, folder_path=folder).oid)
"""

EXPORT = """
import sys
from training import export_pipeline
export_pipeline.main(sys.argv[1:])
"""

LOAD_AND_RUN = """
import sys, json
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
assert "training" not in sys.modules
photo = torch.linspace(0, 1, 3 * 40 * 56).view(1, 3, 40, 56)
generator = torch.Generator().manual_seed(0)
pair = pipe(photo, num_inference_steps=1, disparity_scale=0.1, generator=generator, output_type="np")
dtypes = {str(p.dtype) for name in ("unet", "vae", "depth_estimator") for p in getattr(pipe, name).parameters()}
prompt = pipe.config.empty_prompt_embeds
source = [prompt["text_encoder"], prompt["revision"]]
print(json.dumps([pair.images.shape, sorted(dtypes), *source]))
"""


@pytest.mark.slow
def test_from_the_hub_at_pinned_revisions_and_back_to_it(tmp_path, base, depth_anything):
    home, here = tmp_path / "home", {"PYTHONPATH": str(ROOT)}
    depth_id = export_pipeline.DEFAULT_DEPTH_MODEL
    with LoopbackHub(tmp_path / "hub") as hub:
        first = hub.run_python(UPLOAD, "Windsrain/ZeroStereo", base, home=home).strip()
        depth_commit = hub.run_python(UPLOAD, depth_id, depth_anything, home=home).strip()
        (tmp_path / "later").mkdir()
        (tmp_path / "later" / "notes.txt").write_text("a commit later")
        latest = hub.run_python(UPLOAD, "Windsrain/ZeroStereo", tmp_path / "later", home=home).strip()
        assert first != latest

        def export_on(*flags: str) -> str:
            return hub.run_python(EXPORT, "--base", "Windsrain/ZeroStereo", *flags, home=home, **here)

        output = tmp_path / "out"
        export_on("--base-revision", first, "--output", str(output))
        card = ModelCard.load(output / "README.md")
        assert card.data.license == "openrail++" and card.data.base_model == ["Windsrain/ZeroStereo", depth_id]
        assert first in card.text and latest not in card.text and depth_commit in card.text
        unet, depth = (json.loads((output / n / "config.json").read_text()) for n in ("unet", "depth_estimator"))
        assert unet["_name_or_path"] == f"Windsrain/ZeroStereo@{first}"
        assert (depth["_name_or_path"], depth["dtype"]) == (f"{depth_id}@{depth_commit}", "float32")
        downloads = {request.path for request in hub.requests("^GET .*/resolve/")}
        assert downloads and not [path for path in downloads if "/resolve/main/" in path], "commits only"

        # Unstated licence: refused before anything is made; with permission, uploaded and loaded from the Hub.
        with pytest.raises(
            RuntimeError, match="needs weights whose authors state a licence; got Windsrain/ZeroStereo"
        ):
            export_on("--push-to-hub", "me/stereo", "--output", str(tmp_path / "refused"))
        assert not (tmp_path / "refused").exists()
        assert len(hub.requests("POST /api/repos/create")) == 3, "only the uploads above"
        pushed = tmp_path / "pushed"
        flags = ["--push-to-hub", "me/stereo", "--private", "--i-have-permission"]
        assert "/me/stereo/commit/" in export_on(*flags, "--output", str(pushed))
        assert latest in (pushed / "README.md").read_text(), "main is resolved to its commit"
        assert 'from_pretrained("me/stereo"' in (pushed / "README.md").read_text()
        assert set(hub.files("me/stereo")) - {".gitattributes"} == {
            path.relative_to(pushed).as_posix() for path in pushed.rglob("*") if path.is_file()
        }
        for where, commit in (("me/stereo", latest), (str(output), first)):
            printed = hub.run_python(LOAD_AND_RUN, where, home=tmp_path / "fresh").splitlines()[-1]
            text_encoder = "Windsrain/ZeroStereo/StereoGen/text_encoder"
            assert json.loads(printed) == [[1, 40, 56, 3], ["torch.float32"], text_encoder, commit]

        # The card alone may be published; its command names the commits.
        export_on("--card-only", "--push-to-hub", "me/card", "--output", str(tmp_path / "card"))
        assert set(hub.files("me/card")) - {".gitattributes"} == {
            "README.md",
            "pipeline_zerostereo.py",
            "pipeline.py",
        }
        card_text = hub.read("me/card", "README.md").decode()
        assert f"--base Windsrain/ZeroStereo --base-revision {latest}" in card_text
        assert f"--depth-model {depth_id} --depth-revision {depth_commit}" in card_text

        # What the Hub does not have ends with one line.
        with pytest.raises(
            RuntimeError, match="export_pipeline: error: `--depth-model` must be .* got 'me/none' at"
        ) as e:
            export_on("--depth-model", "me/none", "--output", str(tmp_path / "none"))
        assert "Traceback" not in str(e.value) and not (tmp_path / "none").exists()
        with pytest.raises(RuntimeError, match="got 'Windsrain/ZeroStereo' at revision 'v9': RevisionNotFoundError"):
            export_on("--base-revision", "v9", "--output", str(tmp_path / "none"))


def test_default_scheduler_of_the_layout_is_kept(tmp_path, base, depth_anything):
    loaded = load(export(base, depth_anything, tmp_path / "out")).scheduler.config
    assert {k: v for k, v in loaded.items() if k[0] != "_"} == {
        k: v for k, v in make_ddim().config.items() if k[0] != "_"
    }
