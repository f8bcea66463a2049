# SPDX-License-Identifier: Apache-2.0
"""Every message about wrong input: it names the argument, the rule and the value, before any network runs."""

import math

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from pipeline_zerostereo import ZeroStereoPipeline, cover_holes, fill_from_background
from tests.tiny_components import (
    embedded_pipeline,
    make_depth_anything,
    make_kl_autoencoder,
    make_sample_ddim,
    make_tiny_autoencoder,
    make_unet,
    official_pipeline,
    seeded,
)

B, H, W = 2, 6, 10


def refuse_to_run(module, args):
    raise AssertionError(f"{type(module).__name__} ran although the input is wrong")


@pytest.fixture(scope="module")
def pipe() -> ZeroStereoPipeline:
    """A pipeline whose networks must not run."""
    pipeline = embedded_pipeline()
    vae = pipeline.vae
    for network in (pipeline.unet, vae.encoder, vae.decoder, pipeline.depth_estimator):
        network.register_forward_pre_hook(refuse_to_run)
    return pipeline


def photos() -> torch.Tensor:
    return torch.full((B, 3, H, W), 0.25)


def a_map(value: float = 1.0, batch_size: int = B) -> torch.Tensor:
    return torch.full((batch_size, 1, H, W), value)


def spoiled(value: float) -> torch.Tensor:
    """A map with one wrong value."""
    result = a_map()
    result[1, 0, 2, 3] = value
    return result


def pil(mode: str) -> PIL.Image.Image:
    return PIL.Image.new(mode, (W, H))


def with_transparency(mode: str) -> PIL.Image.Image:
    picture = pil(mode)
    picture.info["transparency"] = 3
    return picture


WRONG_IMAGES = {
    "none": (None, TypeError, "`image` must be a PIL image, a numpy array, a torch tensor or a list .*; got NoneType"),
    "path": ("photo.png", TypeError, "`image` must be a PIL image.*; got str"),
    "path in a list": (["photo.png"], TypeError, "`image` must be a PIL image.*; got str"),
    "list of numbers": ([[0.0, 1.0]], TypeError, "`image` must be a PIL image.*; got list"),
    "no image": ([], ValueError, "`image` must hold at least one image; got an empty list"),
    "sizes differ": (
        [pil("RGB"), PIL.Image.new("RGB", (7, 4))],
        ValueError,
        r"`image` must hold images of one size per call; got heights .* \[\[6, 10\], \[4, 7\]\]\. .* per size",
    ),
    "array of channels first": (
        np.zeros((3, H, W), np.uint8),
        ValueError,
        r"`image` must have shape \[B,H,W,3\] or \[H,W,3\]; got \[3, 6, 10\]",
    ),
    "tensor of channels last": (
        torch.zeros(H, W, 3),
        ValueError,
        r"`image` must have shape \[B,3,H,W\] or \[3,H,W\]; got \[6, 10, 3\]",
    ),
    "array without channels": (np.zeros((H, W), np.uint8), ValueError, r"`image` must have shape .*; got \[6, 10\]"),
    "five axes": (torch.zeros(1, B, 3, H, W), ValueError, r"`image` must have shape .*; got \[1, 2, 3, 6, 10\]"),
    "four channels": (torch.zeros(B, 4, H, W), ValueError, r"`image` must have shape .*; got \[2, 4, 6, 10\]"),
    "no pixels": (torch.zeros(B, 3, 0, W), ValueError, r"`image` must have shape .*; got \[2, 3, 0, 10\]"),
    "batches in a list": (
        [torch.zeros(B, 3, H, W)],
        ValueError,
        r"`image` must have shape \[3,H,W\]; got \[2, 3, 6, 10\]",
    ),
    "batched arrays in a list": (
        [np.zeros((B, H, W, 3))],
        ValueError,
        r"`image` must have shape \[H,W,3\]; got \[2, 6, 10, 3\]",
    ),
    "whole numbers": (
        torch.zeros(B, 3, H, W, dtype=torch.int64),
        ValueError,
        r"`image` must be uint8 in 0..255, uint16 in 0..65535 or float in \[0, 1\]; got dtype torch.int64",
    ),
    "0 to 255": (photos() * 1000, ValueError, r"`image` must lie in \[0, 1\] where it is float; got 250 to 250"),
    "-1 to 1": (np.full((H, W, 3), -0.5), ValueError, r"`image` must lie in \[0, 1\] .*; got -0.5 to -0.5"),
    "nan": (torch.full((3, H, W), math.nan), ValueError, r"`image` must lie in \[0, 1\] .*; got nan to nan"),
    "16-bit with transparency": (
        with_transparency("I;16"),
        ValueError,
        "`image` must have no transparency where it has 16 bits; got .* mode 'I;16'. Composite it",
    ),
    "32-bit": (
        pil("I"),
        ValueError,
        "`image` must be a PIL image of 8 bits a channel or 16-bit grey; got mode 'I', whose range is not known",
    ),
    "float picture": (pil("F"), ValueError, "`image` must be a PIL image of 8 bits.*; got mode 'F'"),
}


@pytest.mark.parametrize("case", WRONG_IMAGES)
def test_wrong_image(pipe, case):
    image, error, message = WRONG_IMAGES[case]
    with pytest.raises(error, match=message):
        pipe(image)
    with pytest.raises(error, match=message):
        pipe.estimate_inverse_depth(image)


SHAPE = r"\[B,1,H,W\] = \[2, 1, 6, 10\]"
WRONG_CALLS = {
    # maps
    "inverse depth: kind": ({"inverse_depth": [1, 2]}, TypeError, "`inverse_depth` must be a numpy array.*; got list"),
    "disparity: kind": ({"disparity": "d.npy"}, TypeError, "`disparity` must be a numpy array, .*; got str"),
    "disparity: empty list": ({"disparity": []}, TypeError, "`disparity` must be a numpy array, .*; got list"),
    "inverse depth: count": (
        {"inverse_depth": a_map(batch_size=3)},
        ValueError,
        rf"`inverse_depth` must have one map of the size of each photograph, shape {SHAPE}; got \[3, 1, 6, 10\]",
    ),
    "disparity: one for both": ({"disparity": a_map()[0, 0]}, ValueError, rf"`disparity` .*{SHAPE}; got \[6, 10\]"),
    "disparity: size": (
        {"disparity": torch.ones(B, 1, W, H)},
        ValueError,
        rf"`disparity` must have one map of the size .*{SHAPE}; got \[2, 1, 10, 6\]",
    ),
    "disparity: maps of two sizes": (
        {"disparity": [torch.ones(H, W), torch.ones(H, W + 1)]},
        ValueError,
        rf"`disparity` must have one map of the size .*{SHAPE}; got .*\[6, 11\]",
    ),
    "both maps": (
        {"inverse_depth": a_map(), "disparity": a_map()},
        ValueError,
        "`inverse_depth` and `disparity` must not both be given; got both",
    ),
    "inverse depth: nan": (
        {"inverse_depth": spoiled(math.nan)},
        ValueError,
        "`inverse_depth` must be finite; got 1 infinite or NaN values of 120",
    ),
    "inverse depth: inf": ({"inverse_depth": spoiled(math.inf)}, ValueError, "`inverse_depth` must be finite; got 1"),
    "disparity: nan": ({"disparity": spoiled(math.nan)}, ValueError, "`disparity` must not be NaN; got 1 NaN values"),
    "disparity: negative": (
        {"disparity": spoiled(-0.5)},
        ValueError,
        "`disparity` must not be negative; got a minimum of -0.5",
    ),
    "disparity: -inf": ({"disparity": spoiled(-math.inf)}, ValueError, "`disparity` must not be negative; .* -inf"),
    # scale
    "scale beside disparity": (
        {"disparity": a_map(), "disparity_scale": 0.1},
        ValueError,
        "`disparity_scale` must not be given beside `disparity`, which is used as it is; got 0.1",
    ),
    "scale: zero": ({"disparity_scale": 0}, ValueError, r"`disparity_scale` must lie in \(0, 1\], .*; got 0\."),
    "scale: negative": ({"disparity_scale": -0.1}, ValueError, r"`disparity_scale` must lie in \(0, 1\], .* -0.1"),
    "scale: above one": ({"disparity_scale": 1.5}, ValueError, r"`disparity_scale` must lie in \(0, 1\], .*; got 1.5"),
    "scale: nan": ({"disparity_scale": math.nan}, ValueError, r"`disparity_scale` must lie in \(0, 1\], .*; got nan"),
    "scale: one of two": ({"disparity_scale": [0.1, 0.0]}, ValueError, r"`disparity_scale` must lie in \(0, 1\]"),
    "scale: count": (
        {"disparity_scale": [0.1, 0.2, 0.3]},
        ValueError,
        r"`disparity_scale` must be a number or one number per image, 2; got \[0.1, 0.2, 0.3\]",
    ),
    "scale: none in a list": ({"disparity_scale": []}, ValueError, r"`disparity_scale` must be a number .*; got \[\]"),
    "scale: shape": (
        {"disparity_scale": torch.full((B, 1), 0.1)},
        ValueError,
        "`disparity_scale` must be a number or one number per image, 2; got tensor",
    ),
    "scale: kind": (
        {"disparity_scale": "large"},
        TypeError,
        "`disparity_scale` must be a number .*; got '?(large|str)",
    ),
    # strength
    "two strengths": (
        {"disparity_scale": 0.1, "max_disparity_px": 3},
        ValueError,
        r"`disparity_scale` must be the only one of \['disparity_scale', 'max_.*\]; got also \['max_disparity_px'\]",
    ),
    "three strengths": (
        {"disparity_scale": 0.1, "max_disparity_px": 3, "baseline_m": 0.1, "fov_deg": 60},
        ValueError,
        r"`disparity_scale` must be the only one of .*; got also \['max_disparity_px', 'baseline_m'\]",
    ),
    "px: zero": ({"max_disparity_px": 0}, ValueError, r"`max_disparity_px` must lie in \(0, 10\], px .*; got 0\."),
    "px: wider than the picture": ({"max_disparity_px": 10.5}, ValueError, r"`max_disparity_px` must .*; got 10.5"),
    "px: count": ({"max_disparity_px": [1, 2, 3]}, ValueError, "`max_disparity_px` must be a number .*, 2; got"),
    "px: kind": ({"max_disparity_px": True}, TypeError, "`max_disparity_px` must be a number .*; got bool"),
    "px beside disparity": (
        {"disparity": a_map(), "max_disparity_px": 3},
        ValueError,
        "`max_disparity_px` must not be given beside `disparity`, which is used as it is; got 3",
    ),
    "baseline without field of view": (
        {"baseline_m": 0.065},
        ValueError,
        "`baseline_m` and `fov_deg` must be given together; got 0.065 and None",
    ),
    "field of view without baseline": (
        {"fov_deg": 60},
        ValueError,
        "`baseline_m` and `fov_deg` must be given together; got None and 60",
    ),
    "baseline: negative": (
        {"baseline_m": -1, "fov_deg": 60},
        ValueError,
        r"`baseline_m` must lie in \(0, inf\), in metres; got -1",
    ),
    "baseline: infinite": (
        {"baseline_m": math.inf, "fov_deg": 60},
        ValueError,
        "`baseline_m` must lie in .*; got inf",
    ),
    "field of view: zero": (
        {"baseline_m": 1, "fov_deg": 0},
        ValueError,
        r"`fov_deg` must lie in \(0, 180\), .* got 0",
    ),
    "field of view: half a circle": ({"baseline_m": 1, "fov_deg": 180}, ValueError, "`fov_deg` must .*; got 180"),
    "baseline of a network without metres": (
        {"baseline_m": 0.065, "fov_deg": 60},
        ValueError,
        "`baseline_m` needs distances in metres, .* `depth_prediction=\"metric_depth\"`; got 'inverse_depth'",
    ),
    "baseline beside inverse depth": (
        {"baseline_m": 0.065, "fov_deg": 60, "inverse_depth": a_map()},
        ValueError,
        "`baseline_m` needs distances in metres, .*; got `inverse_depth`, whose unit is open",
    ),
    "sharpen": ({"sharpen": 3}, TypeError, "`sharpen` must be True or False; got int"),
    # views and fills
    "view": (
        {"target_view": "middle"},
        ValueError,
        r"`target_view` must be one of \('right', 'left', 'both'\); got 'mid",
    ),
    "view: kind": ({"target_view": None}, ValueError, "`target_view` must be one of .*; got None"),
    "fill": ({"fill": "telea"}, ValueError, r"`fill` must be one of \('whole', 'tiled', 'background'\); got 'telea'"),
    "inpaint resolution: negative": (
        {"inpaint_resolution": -1},
        ValueError,
        "`inpaint_resolution` must be an integer >= 0, 0 for the photograph's own resolution; got -1",
    ),
    "inpaint resolution: fraction": (
        {"inpaint_resolution": 9.5},
        ValueError,
        "`inpaint_resolution` must be .*; got 9.5",
    ),
    "inpaint resolution of tiles": (
        {"inpaint_resolution": 256, "fill": "tiled"},
        ValueError,
        '`inpaint_resolution` must not be given with `fill="tiled"`, which works at .*; got 256',
    ),
    "inpaint resolution of the background": (
        {"inpaint_resolution": 256, "fill": "background"},
        ValueError,
        '`inpaint_resolution` must not be given with `fill="background"`',
    ),
    "latents of tiles": (
        {"latents": torch.zeros(B, 8, 3, 5), "fill": "tiled"},
        ValueError,
        '`latents` must not be given with `fill="tiled"`; got a Tensor',
    ),
    "latents of the background": (
        {"latents": torch.zeros(B, 8, 3, 5), "fill": "background"},
        ValueError,
        '`latents` must not be given with `fill="background"`; got a Tensor',
    ),
    "output of tiles": (
        {"output_type": "latent", "fill": "tiled"},
        ValueError,
        '`output_type` must not be "latent" with `fill="tiled"`',
    ),
    "output of the background": (
        {"output_type": "latent", "fill": "background"},
        ValueError,
        '`output_type` must not be "latent" with `fill="background"`',
    ),
    "steps of the background": (
        {"num_inference_steps": 3, "fill": "background"},
        ValueError,
        '`num_inference_steps` has no meaning with `fill="background"`, for no network fills .*; got 3',
    ),
    "callback of the background": (
        {"callback_on_step_end": lambda *a: {}, "fill": "background"},
        ValueError,
        '`callback_on_step_end` has no meaning with `fill="background"`',
    ),
    "latents of two eyes": (
        {"latents": torch.zeros(B, 8, 3, 5), "target_view": "both"},
        ValueError,
        r"`latents` must be a tensor of shape \[B,c,h,w\] = \[4, 8, 3, 5\]; got \[2, 8, 3, 5\]",
    ),
    "generators of two eyes": (
        {"generator": seeded(1, 2, 3, 4), "target_view": "both"},
        ValueError,
        "`generator` must be one generator or a list of one per image, 2; got 4",
    ),
    "callback: kind": ({"callback_on_step_end": 7}, TypeError, "`callback_on_step_end` must be callable; got int"),
    # resolution and steps
    "resolution: negative": (
        {"depth_resolution": -1},
        ValueError,
        "`depth_resolution` must be an integer >= 0, 0 for the photograph's own resolution; got -1",
    ),
    "resolution: fraction": ({"depth_resolution": 99.5}, ValueError, "`depth_resolution` must be an int.*; got 99.5"),
    "resolution: bool": ({"depth_resolution": True}, ValueError, "`depth_resolution` must be an int.*; got True"),
    "resolution beside a map": (
        {"depth_resolution": 64, "inverse_depth": a_map()},
        ValueError,
        "`depth_resolution` has no meaning beside `inverse_depth` or `disparity`, .*; got 64",
    ),
    "steps: none": ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` must be an integer >= 1; got 0"),
    "steps: negative": ({"num_inference_steps": -2}, ValueError, "`num_inference_steps` must be an int.*; got -2"),
    "steps: fraction": ({"num_inference_steps": 2.0}, ValueError, "`num_inference_steps` must be an int.*; got 2.0"),
    "steps: bool": ({"num_inference_steps": True}, ValueError, "`num_inference_steps` must be an int.*; got True"),
    "steps: text": ({"num_inference_steps": "3"}, ValueError, "`num_inference_steps` must be an int.*; got '3'"),
    "steps: two ways": (
        {"num_inference_steps": 3, "sigmas": [2.0, 1.0]},
        ValueError,
        r"`num_inference_steps` must be the only one of .*; got also \['sigmas'\]",
    ),
    "timesteps of DDIM": (
        {"timesteps": [900, 400]},
        ValueError,
        r"`timesteps` must not be given with DDIMScheduler; got \[900, 400\]",
    ),
    "eta: above one": ({"eta": 1.5}, ValueError, r"`eta` must be a number in \[0, 1\]; got 1.5"),
    "eta: kind": ({"eta": None}, ValueError, r"`eta` must be a number in \[0, 1\]; got None"),
    # noise
    "generator: count": (
        {"generator": seeded(1, 2, 3)},
        ValueError,
        "`generator` must be one generator or a list of one per image, 2; got 3",
    ),
    "generator: none": ({"generator": []}, ValueError, "`generator` must be one generator or a list .*, 2; got 0"),
    "generator: seed": ({"generator": 7}, TypeError, "`generator` must be a torch.Generator or a list .*; got int"),
    "generator: seeds": ({"generator": [7, 8]}, TypeError, "`generator` must be a torch.Generator .*; got int"),
    "latents: shape": (
        {"latents": torch.zeros(B, 8, H, W)},
        ValueError,
        r"`latents` must be a tensor of shape \[B,c,h,w\] = \[2, 8, 3, 5\]; got \[2, 8, 6, 10\]",
    ),
    "latents: one for both": ({"latents": torch.zeros(1, 8, 3, 5)}, ValueError, r"`latents` .*; got \[1, 8, 3, 5\]"),
    "latents: kind": ({"latents": np.zeros((B, 8, 3, 5))}, ValueError, "`latents` must be a tensor .*; got ndarray"),
    # the rest
    "output type": ({"output_type": "pt16"}, ValueError, "`output_type` must be one of .*'pil'.*; got 'pt16'"),
    "output type: none": ({"output_type": None}, ValueError, "`output_type` must be one of .*; got None"),
    "callback tensors": (
        {"callback_on_step_end_tensor_inputs": ["latents", "noise"]},
        ValueError,
        r"`callback_on_step_end_tensor_inputs` must be among \['latents', .*; got \['noise'\]",
    ),
}


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_wrong_argument_of_the_call(pipe, case):
    arguments, error, message = WRONG_CALLS[case]
    with pytest.raises(error, match=message):
        pipe(photos(), **arguments)


def test_wrong_steps_of_other_schedulers():
    pipe = embedded_pipeline(scheduler=DPMSolverMultistepScheduler())
    pipe.unet.register_forward_pre_hook(refuse_to_run)
    with pytest.raises(ValueError, match=r"`eta` must be 0 with DPMSolverMultistepScheduler, which .*; got 0.5"):
        pipe(photos(), eta=0.5)
    for timesteps in ([], [100, 900], "many", [900, "100"]):
        with pytest.raises(ValueError, match="`timesteps` must be a list of descending numbers; got"):
            pipe(photos(), timesteps=timesteps)
    with pytest.raises(ValueError, match='`timesteps` has no meaning with `fill="background"`'):
        pipe(photos(), timesteps=[900, 100], fill="background")


def test_arguments_other_than_the_photographs_are_named(pipe):
    with pytest.raises(TypeError, match="positional argument"):
        pipe(photos(), a_map())


WRONG_CONFIGURATIONS = {
    "mask reduction": (
        {"latent_mask_reduction": "mean"},
        r"`latent_mask_reduction` must be one of \('nearest', 'max'\); got 'mean'",
    ),
    "masked fill": ({"masked_fill": "grey"}, r"`masked_fill` must be one of \('zero', 'background'\); got 'grey'"),
    "depth prediction": (
        {"depth_prediction": "disparity"},
        r"`depth_prediction` must be one of \('inverse_depth', 'depth', 'metric_depth'\); got 'disparity'",
    ),
    "position embedding": (
        {"depth_position_embedding": "stock"},
        r"`depth_position_embedding` must be one of \('transformers', 'official'\); got 'stock'",
    ),
    "default steps": (
        {"default_num_inference_steps": 0},
        "`default_num_inference_steps` must be an integer >= 1; got 0",
    ),
    "default depth resolution": (
        {"default_depth_resolution": -1},
        "`default_depth_resolution` must be an integer >= 0; got -1",
    ),
    "default inpaint resolution": (
        {"default_inpaint_resolution": 1.5},
        "`default_inpaint_resolution` must be an integer >= 0; got 1.5",
    ),
    "tile size": ({"tile_size": 0}, "`tile_size` must be an integer >= 1; got 0"),
    "size multiple": ({"depth_size_multiple": True}, "`depth_size_multiple` must be an integer >= 1; got True"),
    "autoencoder of other weights": (
        {"vae": make_kl_autoencoder},
        r"`unet` must take 2 x latent \+ 1 = 9 channels for this `vae`; got 17",
    ),
    "unet of other weights": (
        {"unet": make_unet},
        r"`unet` must take 2 x latent \+ 1 = 17 channels for this `vae`; got 9",
    ),
}


@pytest.mark.parametrize("case", WRONG_CONFIGURATIONS)
def test_wrong_configuration(case):
    changes, message = WRONG_CONFIGURATIONS[case]
    with pytest.raises(ValueError, match=message):
        embedded_pipeline(**{name: value() if callable(value) else value for name, value in changes.items()})


def test_missing_depth_estimator_is_named():
    pipe = embedded_pipeline(depth_estimator=None)
    message = "`depth_estimator` is needed unless `inverse_depth` or `disparity` is passed; this pipeline has none"
    with pytest.raises(ValueError, match=message):
        pipe(photos())
    with pytest.raises(ValueError, match=message):
        pipe.estimate_inverse_depth(photos())


@pytest.mark.parametrize(
    ("missing", "found"),
    [
        (("text_encoder", "tokenizer"), "NoneType and NoneType"),
        (("text_encoder",), "NoneType and CLIPTokenizer"),
        (("tokenizer",), "CLIPTextModel and NoneType"),
    ],
)
def test_missing_text_encoder_is_named(tmp_path, missing, found):
    pipe = official_pipeline(tmp_path, **dict.fromkeys(missing))
    for network in (pipe.unet, pipe.vae.encoder, pipe.depth_estimator):
        network.register_forward_pre_hook(refuse_to_run)
    message = f"`text_encoder` and `tokenizer` are needed because `empty_prompt_embeds` is not configured; got {found}"
    with pytest.raises(ValueError, match=message):
        pipe.encode_empty_prompt()
    with pytest.raises(ValueError, match=message):
        pipe(photos())
    with pytest.raises(ValueError, match=message):
        pipe.inpaint(photos(), holes())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_depth_network_that_gives_no_numbers(value):
    network = make_depth_anything()
    torch.nn.init.constant_(network.head.conv3.bias, value)
    pipe = embedded_pipeline(depth_estimator=network)
    with pytest.raises(
        ValueError, match="`depth_estimator` must predict finite values; got 240 infinite or NaN values of 240"
    ):
        pipe(photos())


def test_wrong_input_of_select_disparity(pipe):
    normalized = a_map(0.5)
    with pytest.raises(ValueError, match=r"`disparity_scale` must be a number or one number per image, 2; got tensor"):
        pipe.select_disparity(normalized, torch.tensor([0.1, 0.2, 0.3]))
    with pytest.raises(TypeError, match="`disparity_scale` must be a number or one number per image; got NoneType"):
        pipe.select_disparity(normalized, None)
    with pytest.raises(TypeError, match="`disparity_scale` must be a number or one number per image; got bool, str"):
        pipe.select_disparity(normalized, [True, "0.1"])
    with pytest.raises(ValueError, match=r"`normalized_inverse_depth` must have shape \[B,1,H,W\] .*; got \[6, 10\]"):
        pipe.select_disparity(normalized[0, 0], torch.tensor([0.1]))
    with pytest.raises(TypeError, match="`normalized_inverse_depth` must be a float tensor; got dtype torch.int64"):
        pipe.select_disparity(normalized.long(), torch.tensor([0.1, 0.2]))
    with pytest.raises(TypeError, match="`normalized_inverse_depth` must be a torch.Tensor; got ndarray"):
        pipe.select_disparity(normalized.numpy(), torch.tensor([0.1, 0.2]))


def test_wrong_input_of_warp(pipe):
    with pytest.raises(ValueError, match=r"`disparity` must have one map .*\[2, 1, 6, 10\]; got \[2, 1, 10, 6\]"):
        pipe.warp(photos(), torch.ones(B, 1, W, H))
    with pytest.raises(ValueError, match="`disparity` must not be negative; got -0.5"):
        pipe.warp(photos(), spoiled(-0.5))


def holes() -> torch.Tensor:
    mask = torch.zeros(B, 1, H, W, dtype=torch.bool)
    mask[..., 7:] = True
    return mask


WRONG_INPAINTING = {
    "mask: float": ((holes().float(),), {}, TypeError, "`hole_mask` must be a bool tensor; got torch.float32"),
    "mask: kind": ((holes().numpy(),), {}, TypeError, "`hole_mask` must be a bool tensor; got ndarray"),
    "mask: shape": (
        (holes()[:, 0],),
        {},
        ValueError,
        r"`hole_mask` must have shape \[B,1,H,W\] for the `warped_image` of shape \[2, 3, 6, 10\]; got \[2, 6, 10\]",
    ),
    "mask: count": ((holes()[:1],), {}, ValueError, r"`hole_mask` must have shape .*; got \[1, 1, 6, 10\]"),
    "no disparity": (
        (holes(),),
        {},
        ValueError,
        '`new_view_disparity` must be given because these weights have `masked_fill="background"`; got None',
    ),
    "disparity: shape": (
        (holes(), a_map()[:1]),
        {},
        ValueError,
        r"`new_view_disparity` must have the shape of `hole_mask`, \[2, 1, 6, 10\]; got \[1, 1, 6, 10\]",
    ),
    "steps": ((holes(), a_map()), {"num_inference_steps": 0}, ValueError, "`num_inference_steps` must be .*; got 0"),
    "generator": ((holes(), a_map()), {"generator": seeded(1, 2, 3)}, ValueError, "`generator` must be .*, 2; got 3"),
    "latents": (
        (holes(), a_map()),
        {"latents": torch.zeros(B, 4, 3, 5)},
        ValueError,
        r"`latents` must be a tensor of shape \[B,c,h,w\] = \[2, 8, 3, 5\]; got \[2, 4, 3, 5\]",
    ),
    "callback tensors": (
        (holes(), a_map()),
        {"callback_on_step_end": lambda *a: {}, "callback_on_step_end_tensor_inputs": ["noise"]},
        ValueError,
        r"`callback_on_step_end_tensor_inputs` must be among .*; got \['noise'\]",
    ),
}


@pytest.mark.parametrize("case", WRONG_INPAINTING)
def test_wrong_input_of_inpaint(pipe, case):
    positional, named, error, message = WRONG_INPAINTING[case]
    with pytest.raises(error, match=message):
        pipe.inpaint(photos(), *positional, **named)


def test_components_are_of_the_sizes_that_the_messages_speak_of():
    assert embedded_pipeline().vae_scale_factor == 2
    assert embedded_pipeline(vae=make_kl_autoencoder(), unet=make_unet()).vae_scale_factor == 8
    assert embedded_pipeline(vae=make_tiny_autoencoder(), scheduler=make_sample_ddim()).vae_scale_factor == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"default_num_inference_steps": 0}, "`default_num_inference_steps` must be an integer >= 1; got 0"),
        ({"default_num_inference_steps": 2.0}, "`default_num_inference_steps` must be an integer >= 1; got 2.0"),
        ({"default_depth_resolution": -1}, "`default_depth_resolution` must be an integer >= 0; got -1"),
        ({"depth_size_multiple": 0}, "`depth_size_multiple` must be an integer >= 1; got 0"),
    ],
)
def test_wrong_number_in_the_configuration(change, message):
    with pytest.raises(ValueError, match=message):
        embedded_pipeline(**change)


def test_holes_are_covered_as_configured_or_not_at_all():
    image, mask, disparity = photos(), holes(), a_map()
    mid_grey = cover_holes(image, mask, None, "zero")
    assert (mid_grey[mask.expand_as(image)] == 0).all()
    filled = cover_holes(image, mask, disparity, "background")
    assert torch.equal(filled, 2 * fill_from_background(image, mask, disparity) - 1)
    with pytest.raises(ValueError, match='`masked_fill` must be "zero" or "background"; got \'mean\''):
        cover_holes(image, mask, disparity, "mean")
    with pytest.raises(
        ValueError, match='`right_disparity` must be given where `masked_fill` is "background"; got None'
    ):
        cover_holes(image, mask, None, "background")


def test_generators_in_a_list_are_generators(pipe):
    with pytest.raises(TypeError, match="`generator` must be a torch.Generator or a list of them; got NoneType"):
        pipe(photos(), generator=[None] * B)


def test_messages_name_the_argument_of_the_step(pipe):
    with pytest.raises(ValueError, match=r"`warped_image` must lie in \[0, 1\] where it is float; got 2 to 2"):
        pipe.inpaint(photos() + 1.75, holes(), a_map())
    with pytest.raises(ValueError, match=r"`normalized_inverse_depth` must lie in \[0, 1\]; got 7 to 7"):
        pipe.select_disparity(a_map(7.0), 0.1)
    with pytest.raises(
        ValueError, match="`num_inference_steps` must not exceed the 1000 steps of the scheduler; got 1001"
    ):
        pipe(photos(), num_inference_steps=1001)
    with pytest.raises(ValueError, match="`disparity_scale` must be a number or one number per image, 2"):
        pipe(photos(), disparity_scale=[0.1])
