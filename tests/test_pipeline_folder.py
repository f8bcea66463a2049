# SPDX-License-Identifier: Apache-2.0
"""Publishable folders: half precision that arrives as float32, links, cards, settings that are read."""

import json
import logging
import os

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors import safe_open
from transformers import AutoModelForDepthEstimation

import pipeline_zerostereo
from pipeline_zerostereo import ZeroStereoPipeline
from tests.tiny_components import (
    configured_prompt,
    embedded_pipeline,
    make_depth_anything,
    make_sample_ddim,
    make_tiny_autoencoder,
    make_unet,
)
from training import export_pipeline
from training.pipeline_folder import render_card, write_pipeline_folder


def tiny_parts() -> dict:
    return {
        "unet": make_unet(latent_channels=8),
        "vae": make_tiny_autoencoder(),
        "scheduler": make_sample_ddim(),
        "depth_estimator": make_depth_anything(),
    }


def test_half_precision_files_arrive_as_float32_networks(tmp_path, caplog):
    parts = tiny_parts()
    folder = write_pipeline_folder(tmp_path / "weights", **parts, empty_prompt_embeds=configured_prompt())
    assert json.loads((folder / "depth_estimator" / "config.json").read_text())["dtype"] == "float32"
    with caplog.at_level("WARNING"):
        pipe = ZeroStereoPipeline.from_pretrained(folder)
    assert not caplog.records, "whoever loads it sees no warning"
    for name in ("unet", "vae", "depth_estimator"):
        loaded, given = getattr(pipe, name), parts[name]
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        assert {parameter.dtype for parameter in given.parameters()} == {torch.float32}, "what was given is not cast"
        for key, value in given.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[key], value.half().float(), rtol=0, atol=0)
    assert list(tmp_path.iterdir()) == [folder], "no partial folder stays behind"


DEFAULT_HALF = {"default": torch.float16, "depth_estimator": torch.float32}
HALF_WARNING = (
    "`depth_estimator` is in torch.float16: rounded depth moves pixels. Load with "
    'dtype={"default": torch.float16, "depth_estimator": torch.float32} to keep it in float32.'
)


def load_by_class(folder, **named):
    return ZeroStereoPipeline.from_pretrained(folder, **named)


def load_by_folder(folder, **named):
    return DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **named)


@pytest.fixture
def warnings_of_the_pipeline():
    """Collect what both copies of the pipeline file log: diffusers' loggers do not reach the root."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    loggers = [logging.getLogger(name) for name in ("pipeline_zerostereo", "diffusers_modules", "diffusers")]
    for logger in loggers:
        logger.addHandler(handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.mark.parametrize("load", [load_by_class, load_by_folder])
@pytest.mark.parametrize(
    ("dtype", "unet_dtype", "depth_dtype"),
    [
        (None, torch.float32, torch.float32),
        (DEFAULT_HALF, torch.float16, torch.float32),
        ({"unet": torch.bfloat16}, torch.bfloat16, torch.float32),
        (torch.float16, torch.float16, torch.float16),
    ],
    ids=["none", "default and depth", "unet", "everything"],
)
def test_depth_arrives_in_float32_or_a_warning_names_the_cure(
    tmp_path, warnings_of_the_pipeline, load, dtype, unet_dtype, depth_dtype
):
    folder = write_pipeline_folder(tmp_path / "weights", **tiny_parts(), empty_prompt_embeds=configured_prompt())
    with safe_open(folder / "depth_estimator" / "model.safetensors", "pt") as tensors:
        assert {tensors.get_slice(key).get_dtype() for key in tensors.keys()} == {"F16"}, "stored in half precision"
    pipe = load(folder, **({} if dtype is None else {"dtype": dtype}))
    assert {parameter.dtype for parameter in pipe.depth_estimator.parameters()} == {depth_dtype}
    assert {parameter.dtype for parameter in pipe.unet.parameters()} == {unet_dtype}
    expected = [HALF_WARNING] if depth_dtype == torch.float16 else []
    messages = [record.getMessage() for record in warnings_of_the_pipeline]
    assert [message for message in messages if "depth" in message] == expected


def test_what_is_passed_into_the_constructor_is_not_cast():
    network = make_depth_anything().half()
    pipe = embedded_pipeline(depth_estimator=network)
    assert pipe.depth_estimator is network and network.dtype == torch.float16


def test_sources_and_card_are_written_and_no_path_of_this_machine(tmp_path):
    make_depth_anything().save_pretrained(tmp_path / "loaded")
    parts = {
        **tiny_parts(),
        "depth_estimator": AutoModelForDepthEstimation.from_pretrained(tmp_path / "loaded"),
    }
    folder = write_pipeline_folder(tmp_path / "out", **parts, sources={"vae": "org/repo@0f"}, card="# Card\n")
    assert (folder / "README.md").read_text() == "# Card\n"
    assert json.loads((folder / "vae" / "config.json").read_text())["_name_or_path"] == "org/repo@0f"
    for name in ("unet", "depth_estimator"):
        assert "_name_or_path" not in json.loads((folder / name / "config.json").read_text()), name


def test_a_folder_in_the_repository_links_the_pipeline_file(tmp_path):
    folder = write_pipeline_folder(tmp_path / "weights", **tiny_parts(), link_pipeline_file=True)
    link = folder / "pipeline_zerostereo.py"
    assert link.is_symlink() and not os.path.isabs(os.readlink(link))
    assert link.samefile(pipeline_zerostereo.__file__)


def test_an_existing_folder_is_never_overwritten(tmp_path):
    with pytest.raises(FileExistsError, match="`directory` must not exist yet; got"):
        write_pipeline_folder(tmp_path, **tiny_parts())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_depth_network(tmp_path):
    folder = write_pipeline_folder(tmp_path / "weights", **{**tiny_parts(), "depth_estimator": None})
    assert ZeroStereoPipeline.from_pretrained(folder).depth_estimator is None


def test_the_export_command_assembles_a_loadable_folder(tmp_path, capsys):
    parts = tiny_parts()
    for name, part in parts.items():
        part.save_pretrained(tmp_path / name)
    settings = {
        "latent_mask_reduction": "nearest",
        "masked_fill": "background",
        "empty_prompt_embeds": configured_prompt(),
    }
    (tmp_path / "pipeline.json").write_text(json.dumps(settings))
    flags = [flag for name in parts for flag in (f"--{name.replace('_', '-')}", str(tmp_path / name))]
    output = tmp_path / "out"
    export_pipeline.main([*flags, "--output", str(output), "--steps", "3", "--depth-resolution", "168"])
    assert "MB of weights" in capsys.readouterr().out
    assert not [file for file in output.rglob("*.json") if str(tmp_path) in file.read_text()], (
        "no path of this machine"
    )
    card = (output / "README.md").read_text()
    assert "none is stated here" in card and '| `masked_fill` | "background" |' in card
    config = ZeroStereoPipeline.from_pretrained(output).config
    assert (config.default_num_inference_steps, config.default_depth_resolution) == (3, 168)
    assert (config.masked_fill, config.latent_mask_reduction) == ("background", "nearest")
    assert config.empty_prompt_embeds == configured_prompt()


def test_the_export_guesses_no_setting(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`--settings` must be a file with .*'masked_fill'.*pipeline"):
        export_pipeline.read_settings(tmp_path / "pipeline.json")
    (tmp_path / "pipeline.json").write_text('{"masked_fill": "zero"}')
    with pytest.raises(ValueError, match=r"`--settings` must hold .*; got \['masked_fill'\]"):
        export_pipeline.read_settings(tmp_path / "pipeline.json")


def test_the_export_takes_either_autoencoder_and_no_other_class(tmp_path):
    AutoencoderKL(norm_num_groups=4, block_out_channels=(8,)).save_pretrained(tmp_path / "kl")
    assert isinstance(export_pipeline.load_vae(tmp_path / "kl"), AutoencoderKL)
    config = tmp_path / "kl" / "config.json"
    config.write_text(config.read_text().replace('"AutoencoderKL"', '"VQModel"'))
    with pytest.raises(ValueError, match="`--vae` must be of class AutoencoderKL or AutoencoderTiny; got VQModel"):
        export_pipeline.load_vae(tmp_path / "kl")


def test_a_card_is_rendered_from_the_template_and_misses_nothing(tmp_path):
    template = tmp_path / "card.md"
    template.write_text("---\n{{ card_data }}\n---\n# {{ title }}\n\n{{ figures }}\n")
    values = {"card_data": {"license": "apache-2.0", "tags": ["stereo"]}, "title": "Tiny", "figures": ["a", "b"]}
    card = render_card(values, template)
    assert card == "---\nlicense: apache-2.0\ntags:\n- stereo\n---\n# Tiny\n\na\nb\n"
    with pytest.raises(ValueError, match=r"names of card.md, .*; missing \['title'\], unknown \['limit'\]"):
        render_card({"card_data": {}, "figures": "", "limit": ""}, template)
