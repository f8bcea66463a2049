# SPDX-License-Identifier: Apache-2.0
"""What is read of published depth models, and what is refused; which files of a repository are taken."""

import json

import pytest
from transformers import BitConfig, Dinov2Config, DPTConfig, Swinv2Config, ZoeDepthConfig

from pipeline_zerostereo import IMAGENET_MEAN, IMAGENET_STD
from tests.tiny_components import (
    DEPTH_ANYTHING_PROCESSOR,
    DPT_PROCESSOR,
    GLPN_PROCESSOR,
    make_depth_anything,
    make_dpt,
    make_glpn,
    write_base,
)
from training.public_parts import (
    INPAINTING_BASE,
    KNOWN_REPOSITORIES,
    DepthSettings,
    PartError,
    choose_files,
    fetch_base,
    fetch_depth_model,
    read_depth_settings,
    resolve_part,
)


def write(folder, config, processor) -> object:
    """Write the two files that are read; no weights."""
    config.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def with_values(config, **values):
    for name, value in values.items():
        setattr(config, name, value)
    return config


ONE_NORMALIZATION = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
DPT_NORMALIZATION = ((0.5, 0.25, 0.75), (0.5, 0.625, 0.125))
ZOE_PROCESSOR = {
    **DPT_PROCESSOR,
    "image_processor_type": "ZoeDepthImageProcessor",
    "ensure_multiple_of": 32,
    "size": {"height": 384, "width": 512},
}

KNOWN = {
    "Depth Anything": (
        lambda: make_depth_anything().config,
        DEPTH_ANYTHING_PROCESSOR,
        DepthSettings("inverse_depth", *IMAGENET, 14, 518, "official"),
    ),
    "metric Depth Anything": (
        lambda: with_values(make_depth_anything().config, depth_estimation_type="metric", max_depth=20),
        DEPTH_ANYTHING_PROCESSOR,
        DepthSettings("metric_depth", *IMAGENET, 14, 518, "transformers"),
    ),
    "GLPN": (
        lambda: make_glpn().config,
        GLPN_PROCESSOR,
        DepthSettings("metric_depth", *ONE_NORMALIZATION, 32, 0, "transformers"),
    ),
    "DPT on BEiT": (
        lambda: make_dpt().config,
        DPT_PROCESSOR,
        DepthSettings("inverse_depth", *DPT_NORMALIZATION, 32, 384, "transformers"),
    ),
    "DPT on Swin v2": (
        lambda: DPTConfig(backbone_config=Swinv2Config(depths=[1, 1, 1]), is_hybrid=False),
        {**DPT_PROCESSOR, "ensure_multiple_of": 24},
        DepthSettings("inverse_depth", *DPT_NORMALIZATION, 96, 384, "transformers"),
    ),
    "ZoeDepth": (
        lambda: ZoeDepthConfig(),
        ZOE_PROCESSOR,
        DepthSettings("metric_depth", *DPT_NORMALIZATION, 32, 384, "transformers"),
    ),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_settings_are_read_from_config_and_processor(tmp_path, kind):
    config, processor, expected = KNOWN[kind]
    assert read_depth_settings(write(tmp_path, config(), processor)) == expected


def test_the_user_goes_before_the_files(tmp_path):
    folder = write(tmp_path, make_depth_anything().config, DEPTH_ANYTHING_PROCESSOR)
    settings = read_depth_settings(folder, prediction="depth", resolution=0, size_multiple=28)
    assert settings == DepthSettings("depth", *IMAGENET, 28, 0, "transformers")


def test_a_processor_without_normalisation_has_mean_0_and_std_1(tmp_path):
    processor = {**DEPTH_ANYTHING_PROCESSOR, "do_normalize": False}
    settings = read_depth_settings(write(tmp_path, make_depth_anything().config, processor))
    assert (settings.depth_mean, settings.depth_std) == ONE_NORMALIZATION


def dpt_on_dinov2():
    return DPTConfig(backbone_config=Dinov2Config(reshape_hidden_states=False), is_hybrid=False)


REFUSED = {
    "DPT on DINOv2": (
        dpt_on_dinov2,
        DPT_PROCESSOR,
        r"`--depth-model` must be of a kind whose prediction is known: depth_anything .*glpn .*; "
        r"got dpt with a dinov2 backbone. Say what it predicts with --depth-prediction inverse_depth\|depth",
    ),
    "another class": (
        lambda: Dinov2Config(),
        DPT_PROCESSOR,
        "whose prediction is known: .*; got dinov2. Say what it predicts with --depth-prediction",
    ),
    "squares only": (
        lambda: DPTConfig(is_hybrid=False),
        DPT_PROCESSOR,
        "`--depth-model` must take pictures of any aspect ratio; got a DPT on a plain or hybrid vision transformer",
    ),
    "hybrid": (
        lambda: DPTConfig(is_hybrid=True, backbone_config=BitConfig(out_features=["stage1", "stage2", "stage3"])),
        DPT_PROCESSOR,
        "`--depth-model` must take pictures of any aspect ratio; got a DPT on a plain or hybrid vision transformer",
    ),
    "pictures in 0..255": (
        lambda: make_depth_anything().config,
        {**DEPTH_ANYTHING_PROCESSOR, "do_rescale": False},
        r"a processor that scales pictures from 0..255 to 0..1; got do_rescale=False",
    ),
    "pictures in -1..1": (
        lambda: make_depth_anything().config,
        {**DEPTH_ANYTHING_PROCESSOR, "rescale_factor": 1 / 127.5},
        r"scales pictures from 0..255 to 0..1; got do_rescale=True, rescale_factor=0.0078",
    ),
    "zero deviation": (
        lambda: make_depth_anything().config,
        {**DEPTH_ANYTHING_PROCESSOR, "image_std": [1, 0, 1]},
        r"mean and positive std of 3 channels; got .* and \(1, 0, 1\)",
    ),
    "unknown processor": (
        lambda: make_depth_anything().config,
        {"image_processor_type": "Nothing"},
        "`--depth-model` must be a depth model of transformers; Unrecognized image processor",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_is_refused_and_not_guessed(tmp_path, case):
    config, processor, message = REFUSED[case]
    with pytest.raises(PartError, match=message):
        read_depth_settings(write(tmp_path, config(), processor))


def test_a_size_multiple_that_nobody_says_is_asked_for(tmp_path):
    processor = {**GLPN_PROCESSOR, "size_divisor": 1}
    folder = write(tmp_path, make_glpn().config, processor)
    with pytest.raises(
        PartError, match="must say which sizes it takes .*; glpn says none. Say it with --depth-size-m"
    ):
        read_depth_settings(folder)
    assert read_depth_settings(folder, size_multiple=32).depth_size_multiple == 32


def test_a_kind_that_is_not_known_may_be_told(tmp_path):
    folder = write(tmp_path, dpt_on_dinov2(), {**DPT_PROCESSOR, "ensure_multiple_of": 14})
    assert read_depth_settings(folder, prediction="metric_depth").depth_prediction == "metric_depth"


def test_files_are_taken_once_without_variants():
    files = (
        "StereoGen/unet/config.json",
        "StereoGen/unet/diffusion_pytorch_model.safetensors",
        "StereoGen/unet/diffusion_pytorch_model.fp16.safetensors",
        "StereoGen/unet/diffusion_pytorch_model.bin",
        "StereoGen/unet/deeper/config.json",
        "StereoGen/vae/diffusion_pytorch_model.bin",
        "StereoGen/vae/diffusion_pytorch_model.fp16.bin",
        "StereoGen/tokenizer/merges.txt",
        "config.json",
        "big-00001-of-00002.safetensors",
    )
    unet, vae, top = (choose_files(files, folder) for folder in ("StereoGen/unet/", "StereoGen/vae/", ""))
    assert unet == ["StereoGen/unet/config.json", "StereoGen/unet/diffusion_pytorch_model.safetensors"]
    assert vae == ["StereoGen/vae/diffusion_pytorch_model.bin"]
    assert top == ["config.json", "big-00001-of-00002.safetensors"]
    assert choose_files(files, "StereoGen/tokenizer/") == ["StereoGen/tokenizer/merges.txt"]


@pytest.mark.parametrize("layout", ["StereoGen", ""])
def test_a_local_base_of_either_layout(tmp_path, layout):
    part = resolve_part("--base", str(write_base(tmp_path / "base", layout)), None)
    assert (part.name, part.revision, part.licence) == ("local folder base", "not versioned", None)
    assert (fetch_base("--base", part) / "unet" / "config.json").is_file()


def test_a_folder_that_is_no_base_or_no_depth_model_is_named(tmp_path):
    part = resolve_part("--base", str(tmp_path), None)
    with pytest.raises(
        PartError, match=r"must have the folders \['unet', .* or in StereoGen/; local folder .* neither"
    ):
        fetch_base("--base", part)
    (tmp_path / "StereoGen" / "unet").mkdir(parents=True)
    with pytest.raises(PartError, match=r"`--base` must have the folders .* lacks \['vae', 'scheduler', "):
        fetch_base("--base", part)
    with pytest.raises(PartError, match=r"`--depth-model` must be a depth model .* lacks \['config.json', 'preproc"):
        fetch_depth_model("--depth-model", part)
    with pytest.raises(PartError, match="`--base` must be a repository where a revision is given; got the folder"):
        resolve_part("--base", str(tmp_path), "main")


def test_without_network_one_line_says_so():
    message = (
        r"^`--base` must be a local folder or a repository that the Hub gives out; got 'me/x' at revision 'main': O"
    )
    with pytest.raises(PartError, match=message) as raised:
        resolve_part("--base", "me/x", None)
    assert "\n" not in str(raised.value)


def test_known_repositories_are_pinned_where_the_commit_is_known():
    revision = KNOWN_REPOSITORIES[INPAINTING_BASE].revision
    assert len(revision) == 40 and int(revision, 16)
    assert {known.revision for name, known in KNOWN_REPOSITORIES.items() if name != INPAINTING_BASE} == {"main"}
