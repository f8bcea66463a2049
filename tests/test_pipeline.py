# SPDX-License-Identifier: Apache-2.0
"""`ZeroStereoPipeline` from photograph to pair: outputs, randomness, steps, configuration, and what it leaves alone.

Two photographs, 45 high and 70 wide: neither is a multiple of what the networks want.
"""

import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from torch import nn

from pipeline_zerostereo import (
    ZeroStereoPipeline,
    ZeroStereoPipelineOutput,
    fill_from_background,
    forward_warp,
    normalize_inverse_depth,
    pad_to_multiple,
    reduce_mask_to_latent,
    sample_disparity_scale,
    sharpen_disparity,
)
from tests.tiny_components import (
    configured_prompt,
    embedded_pipeline,
    formula_pipeline,
    inputs_of,
    make_ddim,
    make_disparity,
    make_glpn,
    make_kl_autoencoder,
    make_photos,
    make_sample_ddim,
    make_text_encoder,
    make_unet,
    must_not_run,
    official_pipeline,
    quiet,
    read_golden_config,
    seeded,
)

B, H, W = 2, 45, 70
FIELDS = [
    "images",
    "disparity",
    "confidence",
    "hole_mask",
    "visible_mask",
    "warped_images",
    "new_view_disparity",
    "disparity_scale",
    "flip_agreement",
    "input_images",
    "target_view",
]
MAPS = ("disparity", "confidence", "new_view_disparity")
MASKS = ("hole_mask", "visible_mask")
IMAGES = ("images", "warped_images", "input_images")
TENSORS = FIELDS[:-1]  # the last is a word


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> ZeroStereoPipeline:
    """Laid out like the published weights. Shared: tests that change a pipeline make their own."""
    return official_pipeline(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def embedded() -> ZeroStereoPipeline:
    """Laid out like the weights in this repository. Shared: tests that change a pipeline make their own."""
    return embedded_pipeline()


@pytest.fixture(params=["official", "embedded"])
def either(request: pytest.FixtureRequest) -> ZeroStereoPipeline:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    return make_photos(B, H, W)


@pytest.fixture(scope="module")
def disparity() -> torch.Tensor:
    return make_disparity(B, H, W)


def assert_same(one: ZeroStereoPipelineOutput, other: ZeroStereoPipelineOutput) -> None:
    """All fields of two "pt" outputs are equal bit for bit."""
    assert one.target_view == other.target_view
    for name in TENSORS:
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None), name
        assert first is None or torch.equal(first, second), name


# --- outputs ---


def test_outputs_have_the_promised_shapes_and_types(either, photos):
    output = either(photos, generator=seeded(1, 2), output_type="pt")
    assert isinstance(output, ZeroStereoPipelineOutput)
    for name in IMAGES:
        assert getattr(output, name).shape == (B, 3, H, W), name
    for name in MAPS + MASKS:
        assert getattr(output, name).shape == (B, 1, H, W), name
    for name in ("disparity_scale", "flip_agreement"):
        assert getattr(output, name).shape == (B,), name
    for name in TENSORS:
        assert getattr(output, name).dtype == (torch.bool if name in MASKS else torch.float32), name
        assert not getattr(output, name).requires_grad, name
    for name in (*IMAGES, "confidence", "flip_agreement"):
        assert getattr(output, name).min() >= 0 and getattr(output, name).max() <= 1, name
    assert 0 < output.hole_mask.float().mean() < 0.5
    assert output.disparity.min() >= 0


def test_output_types_hold_the_same_values(embedded, photos):
    tensors = embedded(photos, generator=seeded(1, 2), output_type="pt")
    arrays = embedded(photos, generator=seeded(1, 2), output_type="np")
    pictures = embedded(photos, generator=seeded(1, 2))  # "pil" is the default
    for name in IMAGES:
        tensor = getattr(tensors, name).permute(0, 2, 3, 1).numpy()
        array, listed = getattr(arrays, name), getattr(pictures, name)
        assert array.dtype == np.float32 and np.array_equal(array, tensor), name
        assert [(picture.mode, picture.size) for picture in listed] == [("RGB", (W, H))] * B, name
        assert np.array_equal(np.stack(listed), np.rint(array * 255).astype(np.uint8)), name
    for name in MAPS + MASKS:
        tensor = getattr(tensors, name)[:, 0].numpy()
        array, squeezed = getattr(arrays, name), getattr(pictures, name)
        assert array.shape == (B, H, W, 1) and squeezed.shape == (B, H, W), name
        assert array.dtype == squeezed.dtype == (bool if name in MASKS else np.float32), name
        assert np.array_equal(array[..., 0], tensor) and np.array_equal(squeezed, tensor), name
    for name in ("disparity_scale", "flip_agreement"):
        for output in (arrays, pictures):
            value = getattr(output, name)
            assert value.dtype == np.float32 and np.array_equal(value, getattr(tensors, name).numpy()), name


def test_tuple_holds_the_fields_in_their_order_new_view_first(embedded, photos):
    assert [field.name for field in fields(ZeroStereoPipelineOutput)] == FIELDS
    output = embedded(photos, generator=seeded(3), output_type="pt")
    as_tuple = embedded(photos, generator=seeded(3), output_type="pt", return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(FIELDS)
    assert as_tuple[-1] == output.target_view == "right"
    for name, value in zip(TENSORS, as_tuple[:-1], strict=True):
        assert torch.equal(value, getattr(output, name)), name
    without = embedded(photos, disparity=make_disparity(B, H, W), output_type="pt", return_dict=False)
    assert len(without) == len(FIELDS)  # fields that are None keep their place
    nothing = ("confidence", "disparity_scale", "flip_agreement")
    assert [value is None for value in without] == [name in nothing for name in FIELDS]


def test_known_pixels_are_those_of_the_warped_view_in_every_output_type(either, photos):
    for output_type in ("pt", "np", "pil"):
        output = either(photos, generator=seeded(1, 2), output_type=output_type)
        images, warped = (
            np.stack([np.asarray(one) for one in value]) for value in (output.images, output.warped_images)
        )
        hole = np.asarray(output.hole_mask)
        if output_type == "pil":
            hole = hole[..., None]
        assert np.array_equal(np.where(hole, 0, images), np.where(hole, 0, warped)), output_type
        assert not np.where(hole, warped, 0).any(), output_type
        assert np.where(hole, images, 0).any(), output_type


def test_zero_disparity_returns_the_photograph_bit_for_bit(either, photos):
    nothing = torch.zeros(B, 1, H, W)
    output = either(photos, disparity=nothing, output_type="pt")
    assert torch.equal(output.images, photos) and torch.equal(output.warped_images, photos)
    assert not output.hole_mask.any() and output.visible_mask.all()
    (picture,) = either.image_processor.postprocess(photos[:1], "pil")
    assert either(picture, disparity=nothing[:1]).images[0].tobytes() == picture.tobytes()
    array = photos.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(either(array, disparity=nothing, output_type="np").images, array)


def test_constant_inverse_depth_moves_nothing(embedded, photos):
    output = embedded(photos, inverse_depth=torch.full((B, 1, H, W), 5.0), disparity_scale=0.1, output_type="pt")
    assert torch.equal(output.images, photos) and not output.disparity.any()


# --- randomness ---


@pytest.mark.parametrize("scheduler", [None, DDPMScheduler, EulerDiscreteScheduler], ids=["own", "ddpm", "euler"])
def test_a_batch_equals_its_images_one_by_one(either, photos, scheduler):
    components = {**either.components}
    if scheduler is not None:
        components["scheduler"] = scheduler.from_config(either.scheduler.config)
    pipe = quiet(ZeroStereoPipeline(**components, **configuration(either)))
    batch = pipe(photos, generator=seeded(11, 12), output_type="pt")
    for b in range(B):
        single = pipe(photos[b : b + 1], generator=seeded(11 + b), output_type="pt")
        for name in TENSORS:
            found, expected = getattr(batch, name)[b : b + 1], getattr(single, name)
            torch.testing.assert_close(  # not to the bit: on some CPUs sums are split by the size of the batch
                found, expected, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


def configuration(pipe: ZeroStereoPipeline) -> dict[str, Any]:
    """Return the configured values of a pipeline, without its components."""
    return {name: value for name, value in pipe.config.items() if name not in pipe.components and name[0] != "_"}


def test_same_seed_same_pair_other_seed_other_scale(embedded, photos):
    one, again, other = (embedded(photos, generator=seeded(seed), output_type="pt") for seed in (5, 5, 6))
    assert_same(one, again)
    assert not torch.equal(one.disparity_scale, other.disparity_scale)
    assert not torch.equal(one.images, other.images)
    assert one.disparity_scale[0] != one.disparity_scale[1]  # one generator: image after image


def test_other_noise_changes_nothing_but_holes(official, photos, disparity):
    one, other = (official(photos, disparity=disparity, generator=seeded(s), output_type="pt") for s in (5, 6))
    difference = (one.images != other.images).any(1, keepdim=True)
    assert difference.any() and not (difference & ~one.hole_mask).any()


def test_global_random_numbers_are_not_touched(either, photos):
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    either(photos, generator=seeded(1, 2), output_type="pt")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]


def test_noise_is_drawn_after_the_scale_from_each_images_generator(either, photos):
    output = either(photos, generator=seeded(8, 9), output_type="pt")
    channels, factor = either.vae.config.latent_channels, either.vae_scale_factor
    shape = (1, channels, -(-H // factor), -(-W // factor))
    scales, noise = [], []
    for generator in seeded(8, 9):
        scales.append(sample_disparity_scale(1, generator))
        noise.append(torch.randn(shape, generator=generator))
    assert torch.equal(output.disparity_scale, torch.cat(scales))
    given = either(photos, disparity_scale=torch.cat(scales), latents=torch.cat(noise), output_type="pt")
    assert_same(output, given)


def test_given_latents_are_used_and_no_noise_is_drawn(embedded, photos):
    latents = torch.randn(B, 8, 23, 35, generator=seeded(0))
    kept = latents.clone()
    drawing, counting = seeded(4), seeded(4)
    output = embedded(photos, generator=drawing, latents=latents, output_type="pt")
    sample_disparity_scale(B, counting)
    assert torch.equal(drawing.get_state(), counting.get_state())
    assert torch.equal(latents, kept)
    other = embedded(photos, generator=seeded(4), latents=-latents, output_type="pt")
    assert torch.equal(output.disparity, other.disparity) and not torch.equal(output.images, other.images)


# --- depth ---


def test_photograph_and_mirror_image_run_in_one_batch(embedded, photos):
    with inputs_of(embedded.depth_estimator) as seen:
        embedded(photos, generator=seeded(1), output_type="pt")
    (both,) = seen
    assert both.shape == (2 * B, 3, 42, 70)
    assert torch.equal(both[B:], both[:B].flip(-1))


def test_depth_network_sees_the_normalised_photograph(embedded, photos):
    with inputs_of(embedded.depth_estimator) as seen:
        embedded.estimate_inverse_depth(photos, depth_resolution=0)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (photos - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    assert seen[0].shape == (2 * B, 3, 56, 70)
    torch.testing.assert_close(seen[0][:B, :, 5:50], expected)  # 45 rows, 5 more above and 6 below
    torch.testing.assert_close(seen[0][:B, :, :5], expected[:, :, :1].expand(-1, -1, 5, -1))


@pytest.mark.parametrize(
    ("configured", "argument", "expected"),
    [
        (0, None, (56, 70)),  # 45x70 as it is, padded to multiples of 14
        (28, None, (28, 56)),  # 28x44
        (45, None, (56, 70)),
        (400, None, (56, 70)),  # a bound does not enlarge
        (28, 0, (56, 70)),
        (28, 14, (14, 28)),  # 14x22
        (0, 14, (14, 28)),
    ],
)
def test_depth_resolution_bounds_the_short_side(photos, configured, argument, expected):
    pipe = embedded_pipeline(default_depth_resolution=configured)
    for pictures, size in ((photos, expected), (photos.transpose(2, 3), expected[::-1])):
        with inputs_of(pipe.depth_estimator) as seen:
            normalized, _ = pipe.estimate_inverse_depth(pictures, argument)
        assert tuple(seen[0].shape[-2:]) == size
        assert normalized.shape == (B, 1, *pictures.shape[-2:])


def test_depth_resolution_of_the_call_reaches_the_network(embedded, photos):
    with inputs_of(embedded.depth_estimator) as seen:
        output = embedded(photos, depth_resolution=14, generator=seeded(1), output_type="pt")
    assert seen[0].shape == (2 * B, 3, 14, 28)
    assert output.disparity.shape == output.confidence.shape == (B, 1, H, W)


def test_inverse_depth_is_the_networks_output_stretched(photos):
    pipe = formula_pipeline(lambda pixels: 3 * pixels[:, 0] + 7)
    normalized, flip = pipe.estimate_inverse_depth(photos)
    torch.testing.assert_close(normalized, normalize_inverse_depth(photos[:, :1]))
    assert torch.equal(flip.agreement, torch.ones(B, 1, H, W))  # a formula of the colour does not mind the mirror
    assert torch.equal(flip.confidence, torch.ones(B, 1, H, W))


def test_confidence_compares_with_the_mirror_image(photos):
    """A network that answers the column itself contradicts itself most at the frame, not at all in the middle."""
    pipe = formula_pipeline(
        lambda pixels: torch.arange(pixels.shape[-1]).expand(len(pixels), *pixels.shape[-2:]).float()
    )
    output = pipe(photos[..., :69], disparity_scale=0.1, generator=seeded(0), output_type="pt")  # padded to 70
    ramp = torch.linspace(0, 1, 69)
    mirrored = ramp.flip(0)
    agreement = 1 - (ramp - mirrored).abs()
    torch.testing.assert_close(output.flip_agreement, agreement.mean().expand(B))
    expected = (agreement - agreement.min()) / (agreement.max() - agreement.min())
    torch.testing.assert_close(output.confidence, expected.expand(B, 1, H, 69))


def test_depth_is_inverted_where_the_network_predicts_depth():
    photo = torch.tensor([0.1, 0.2, 0.4, 0.8, 0.4, 0.4]).expand(1, 3, 2, 6).contiguous()
    pipe = formula_pipeline(lambda pixels: 10 * pixels[:, 0], depth_prediction="depth")
    normalized, _ = pipe.estimate_inverse_depth(photo)
    expected = (1 / photo[0, 0, 0] - 1 / 0.8) / (1 / 0.1 - 1 / 0.8)
    torch.testing.assert_close(normalized[0, 0], expected.expand(2, 6))
    assert normalized[0, 0, 0].tolist()[:4] == pytest.approx([1.0, 3 / 7, 1 / 7, 0.0], abs=1e-6)


def test_depth_zero_counts_as_a_thousandth_of_the_largest():
    photo = torch.tensor([0.0, 0.0005, 0.5, 1.0]).expand(1, 3, 2, 4).contiguous()
    pipe = formula_pipeline(lambda pixels: pixels[:, 0], depth_prediction="depth")
    normalized, _ = pipe.estimate_inverse_depth(photo)
    assert normalized[0, 0, 0].tolist() == pytest.approx([1.0, 1.0, 1 / 999, 0.0], abs=1e-6)


def test_prediction_of_another_size_is_resized(photos):
    pipe = formula_pipeline(lambda pixels: nn.functional.avg_pool2d(pixels[:, 0], 2))
    normalized, _ = pipe.estimate_inverse_depth(photos)
    padded, padding = pad_to_multiple(photos[:, :1], 2)
    assert tuple(padding) == (0, 0, 0, 1)
    halved = nn.functional.avg_pool2d(padded, 2)
    resized = nn.functional.interpolate(halved, padded.shape[-2:], mode="bilinear")[..., :H, :]
    torch.testing.assert_close(normalized, normalize_inverse_depth(resized))


def test_glpn_runs_end_to_end(photos):
    """Another architecture: it predicts depth, has another size multiple and another interface inside."""
    pipe = embedded_pipeline(depth_estimator=make_glpn(), depth_prediction="depth", depth_size_multiple=32)
    with inputs_of(pipe.depth_estimator) as seen:
        output = pipe(photos, disparity_scale=0.15, generator=seeded(1, 2), output_type="pt")
    assert seen[0].shape == (2 * B, 3, 64, 96)
    assert output.disparity.amax((1, 2, 3)).tolist() == pytest.approx([0.15 * W] * B)
    assert output.hole_mask.any() and output.images.isfinite().all()


# --- disparity ---


def test_given_inverse_depth_is_normalised_scaled_and_sharpened(embedded, photos, disparity):
    inverse_depth = 40 - 3 * disparity
    with must_not_run(embedded.depth_estimator):
        output = embedded(
            photos, inverse_depth=inverse_depth, disparity_scale=[0.08, 0.11], generator=seeded(1), output_type="pt"
        )
    pixels = torch.tensor([0.08, 0.11]).view(B, 1, 1, 1) * W
    assert torch.equal(output.disparity, sharpen_disparity(normalize_inverse_depth(inverse_depth) * pixels))
    assert output.confidence is None and output.flip_agreement is None
    assert torch.equal(output.disparity_scale, torch.tensor([0.08, 0.11]))


def test_scale_beside_given_inverse_depth_is_drawn(embedded, photos, disparity):
    output = embedded(photos, inverse_depth=disparity, generator=seeded(5, 6), output_type="pt")
    assert torch.equal(output.disparity_scale, sample_disparity_scale(B, seeded(5, 6)))


def test_given_disparity_is_used_as_it_is(embedded, photos, disparity):
    unknown = disparity.clone()
    unknown[1, 0, 20:24, 30:37] = torch.inf
    with must_not_run(embedded.depth_estimator):
        output = embedded(photos, disparity=unknown, generator=seeded(1), output_type="pt")
    assert torch.equal(output.disparity, unknown)
    warp = forward_warp(photos, unknown)
    assert torch.equal(output.warped_images, warp.right_image)
    assert torch.equal(output.hole_mask, warp.right_hole_mask)
    assert torch.equal(output.visible_mask, warp.left_visible_mask)
    assert torch.equal(output.new_view_disparity, warp.right_disparity)
    assert not output.visible_mask[1, 0, 20:24, 30:37].any()
    assert output.confidence is None and output.flip_agreement is None and output.disparity_scale is None
    assert embedded(photos, disparity=unknown, output_type="np").disparity_scale is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.125, [0.125, 0.125]),
        ([0.125, 0.0625], [0.125, 0.0625]),
        (torch.tensor(0.125), [0.125, 0.125]),
        (torch.tensor([0.125, 0.0625], dtype=torch.float64), [0.125, 0.0625]),
        (np.array([0.125, 0.0625]), [0.125, 0.0625]),
        (1, [1.0, 1.0]),
    ],
    ids=["number", "list", "tensor of one", "tensor", "array", "whole number"],
)
def test_given_scale(embedded, photos, given, expected):
    output = embedded(photos, disparity_scale=given, generator=seeded(1), output_type="pt")
    assert output.disparity_scale.tolist() == expected
    largest = output.disparity.amax((1, 2, 3))
    assert largest.tolist() == pytest.approx(
        [scale * W for scale in expected]
    )  # the nearest pixel is not an edge here
    assert (largest <= torch.tensor(expected) * W).all()


def test_disparity_never_exceeds_the_scale(either, photos):
    for seed in range(5):
        output = either(photos, generator=seeded(seed), num_inference_steps=1, output_type="pt")
        assert (output.disparity.amax((1, 2, 3)) <= output.disparity_scale * W).all()


def test_an_object_moves_left():
    """One bright column at 7 with disparity 3 is seen at 4."""
    photo = torch.zeros(1, 3, 5, 12)
    photo[..., 7] = 1.0
    output = embedded_pipeline()(
        photo, disparity=torch.full((1, 1, 5, 12), 3.0), generator=seeded(0), output_type="pt"
    )
    assert output.warped_images[0, 0, 0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert output.hole_mask[0, 0, 0].tolist() == [False] * 9 + [True] * 3


# --- inpainting ---


def test_autoencoder_sees_grey_or_background_in_holes(photos, disparity):
    warp = forward_warp(photos, disparity)
    grey = torch.where(warp.right_hole_mask, 0.0, 2 * warp.right_image - 1)
    background = 2 * fill_from_background(warp.right_image, warp.right_hole_mask, warp.right_disparity) - 1
    for masked_fill, expected in (("zero", grey), ("background", background)):
        pipe = embedded_pipeline(masked_fill=masked_fill)
        with inputs_of(pipe.vae.encoder) as seen:
            pipe(photos, disparity=disparity, generator=seeded(0), output_type="pt")
        (encoded,) = seen
        assert encoded.shape == (B, 3, 46, 70), masked_fill
        assert torch.equal(encoded, pad_to_multiple(expected, 2)[0]), masked_fill


@pytest.mark.parametrize("reduction", ["nearest", "max"])
def test_unet_sees_noise_mask_and_masked_view(photos, disparity, reduction):
    pipe = quiet(
        ZeroStereoPipeline(
            unet=make_unet(),
            vae=make_kl_autoencoder(),
            scheduler=make_ddim(),
            latent_mask_reduction=reduction,
            empty_prompt_embeds=configured_prompt(),
        )
    )
    noise = torch.randn(B, 4, 6, 9, generator=seeded(0))
    with inputs_of(pipe.unet) as seen:
        output = pipe(photos, disparity=disparity, latents=noise, num_inference_steps=2, output_type="pt")
    padded, padding = pad_to_multiple(output.hole_mask, 8)
    assert tuple(padding) == (1, 1, 1, 2)
    mask = reduce_mask_to_latent(padded, 8, reduction)
    assert [tuple(value.shape) for value in seen] == [(B, 9, 6, 9)] * 2
    assert torch.equal(seen[0][:, :4], noise) and not torch.equal(seen[1][:, :4], noise)
    assert torch.equal(seen[0][:, 4:5], mask.float()) and torch.equal(seen[1][:, 4:], seen[0][:, 4:])
    both = [reduce_mask_to_latent(padded, 8, one).sum() for one in ("nearest", "max")]
    assert both[0] < both[1]  # the two differ on this picture


def test_number_of_steps_comes_from_the_configuration(photos, disparity):
    for configured in (1, 3):
        pipe = embedded_pipeline(default_num_inference_steps=configured)
        for argument, expected in ((None, configured), (4, 4), (np.int64(2), 2)):
            with inputs_of(pipe.unet) as seen:
                pipe(photos, disparity=disparity, num_inference_steps=argument, generator=seeded(0))
            assert len(seen) == pipe.num_timesteps == expected


@pytest.mark.parametrize("scheduler", [None, DDPMScheduler, EulerDiscreteScheduler], ids=["ddim", "ddpm", "euler"])
def test_every_kind_of_prediction_runs(photos, disparity, scheduler):
    pipe = embedded_pipeline()
    found = []
    for prediction in ("epsilon", "v_prediction", "sample"):
        pipe.scheduler = make_ddim(prediction_type=prediction, timestep_spacing="trailing")
        if scheduler is not None:
            pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        output = pipe(photos, disparity=disparity, num_inference_steps=3, generator=seeded(1, 2), output_type="pt")
        assert output.images.isfinite().all(), prediction
        found.append(output.images)
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


def test_noise_is_scaled_for_the_scheduler(photos, disparity):
    """Euler starts at sigma of about 14.6 and wants its input divided by sqrt(sigma^2 + 1)."""
    pipe = embedded_pipeline(scheduler=EulerDiscreteScheduler(**euler_config()))
    noise = torch.randn(B, 8, 23, 35, generator=seeded(0))
    with inputs_of(pipe.unet) as seen:
        pipe(photos, disparity=disparity, latents=noise, num_inference_steps=2)
    sigma = pipe.scheduler.sigmas[0]
    assert sigma > 10
    expected = noise * pipe.scheduler.init_noise_sigma / (sigma**2 + 1) ** 0.5
    torch.testing.assert_close(seen[0][:, :8], expected)


def test_the_scheduler_forgets_the_call_before(photos, disparity):
    """With leading timesteps the first sigma depends on the number of steps: a stale one would change the noise."""
    pipe = embedded_pipeline(scheduler=EulerDiscreteScheduler(**euler_config(), timestep_spacing="leading"))
    arguments = {"disparity": disparity, "num_inference_steps": 2, "output_type": "pt"}
    first = pipe(photos, generator=seeded(3), **arguments)
    pipe(photos, generator=seeded(4), **{**arguments, "num_inference_steps": 7})
    assert torch.equal(pipe(photos, generator=seeded(3), **arguments).images, first.images)


def test_callback_may_ask_for_nothing(embedded, photos, disparity):
    seen = []
    embedded(
        photos,
        disparity=disparity,
        callback_on_step_end=lambda pipe, step, timestep, tensors: seen.append(dict(tensors)) or {},
        callback_on_step_end_tensor_inputs=[],
    )
    assert seen == [{}, {}]


def test_maps_of_any_strides_and_byte_order(embedded, photos, disparity):
    flipped = np.flipud(disparity[0, 0].numpy())
    big_endian = disparity[1, 0].numpy().astype(">f4")
    output = embedded(photos, disparity=[flipped, big_endian], output_type="pt")
    assert torch.equal(output.disparity[0, 0], disparity[0, 0].flip(0))
    assert torch.equal(output.disparity[1, 0], disparity[1, 0])


def test_output_shares_no_memory_with_a_given_map(embedded, photos, disparity):
    given = disparity.clone()
    embedded(photos, disparity=given, output_type="pt").disparity.zero_()
    assert torch.equal(given, disparity)


def test_another_text_encoder_is_asked_again(tmp_path):
    pipe = official_pipeline(tmp_path)
    first = pipe.encode_empty_prompt()
    assert pipe.encode_empty_prompt() is first
    pipe.text_encoder = make_text_encoder()
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight.mul_(2)
    assert not torch.equal(pipe.encode_empty_prompt(), first)


def euler_config() -> dict[str, Any]:
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    config = read_golden_config("stereogen_tiny")["ddim_config"]
    return {name: config[name] for name in names}


def test_callback_sees_every_step(embedded, photos, disparity):
    calls = []

    def on_step_end(pipe, step, timestep, tensors):
        assert pipe is embedded
        calls.append((step, int(timestep), sorted(tensors)))
        return tensors

    arguments = {"disparity": disparity, "num_inference_steps": 4, "output_type": "pt"}
    plain = embedded(photos, generator=seeded(1), **arguments)
    output = embedded(photos, generator=seeded(1), callback_on_step_end=on_step_end, **arguments)
    assert calls == [(0, 999, ["latents"]), (1, 749, ["latents"]), (2, 499, ["latents"]), (3, 249, ["latents"])]
    assert_same(plain, output)

    calls.clear()
    names = ["masked_image_latents", "prompt_embeds", "latent_mask", "latents"]
    assert sorted(names) == sorted(ZeroStereoPipeline._callback_tensor_inputs)
    embedded(photos, callback_on_step_end=on_step_end, callback_on_step_end_tensor_inputs=names, **arguments)
    assert [tensors for _, _, tensors in calls] == [sorted(names)] * 4


@pytest.mark.parametrize("name", ZeroStereoPipeline._callback_tensor_inputs)
def test_callback_may_change_the_tensors(embedded, photos, disparity, name):
    def on_step_end(pipe, step, timestep, tensors):
        return {name: torch.ones_like(tensors[name])}

    with inputs_of(embedded.unet) as seen:
        embedded(
            photos,
            disparity=disparity,
            num_inference_steps=2,
            generator=seeded(1),
            callback_on_step_end=on_step_end,
            callback_on_step_end_tensor_inputs=[name],
        )
    noisy, mask, masked_image_latents = seen[1].split([8, 1, 8], dim=1)
    ones = {"latents": noisy, "latent_mask": mask, "masked_image_latents": masked_image_latents}
    assert [other for other, value in ones.items() if bool((value == 1).all())] == [key for key in ones if key == name]


def test_last_latents_from_a_callback_are_decoded(embedded, photos, disparity):
    arguments = {"disparity": disparity, "output_type": "pt"}
    one, other = (
        embedded(
            photos, generator=seeded(s), callback_on_step_end=lambda *a: {"latents": 0 * a[3]["latents"]}, **arguments
        )
        for s in (1, 2)
    )
    assert torch.equal(one.images, other.images)


def test_interrupt_ends_the_denoising_and_nothing_else(photos, disparity):
    pipe = embedded_pipeline()

    def stop_after_two(pipeline, step, timestep, tensors):
        pipeline.interrupt = step == 1
        return {}

    arguments = {"disparity": disparity, "num_inference_steps": 4, "output_type": "pt"}
    with inputs_of(pipe.unet) as seen:
        output = pipe(photos, generator=seeded(1), callback_on_step_end=stop_after_two, **arguments)
    assert len(seen) == 2 and pipe.interrupt and output.images.isfinite().all()
    with inputs_of(pipe.unet) as seen:
        pipe.inpaint(photos, output.hole_mask, output.new_view_disparity, num_inference_steps=3)
    assert len(seen) == 3  # an old interruption does not end a new inpainting
    with inputs_of(pipe.unet) as seen:
        pipe(photos, generator=seeded(1), **arguments)
    assert len(seen) == 4 and not pipe.interrupt


def test_progress_bar_can_be_disabled(photos, disparity, capfd):
    pipe = embedded_pipeline()
    pipe(photos, disparity=disparity)
    silent = capfd.readouterr()
    assert silent.out == silent.err == ""
    pipe.set_progress_bar_config(disable=False, desc="holes")
    pipe(photos, disparity=disparity, num_inference_steps=3)
    assert "holes" in (shown := capfd.readouterr().err) and "3/3" in shown


def test_everything_is_a_hole(either, photos):
    nothing_known = torch.full((B, 1, H, W), torch.inf)
    output = either(photos, disparity=nothing_known, generator=seeded(1, 2), output_type="pt")
    assert output.hole_mask.all() and not output.visible_mask.any() and not output.warped_images.any()
    assert output.images.isfinite().all() and output.images.std() > 0


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 5), (17, 8)])
def test_tiny_photographs(either, size):
    photo = make_photos(1, *size)
    output = either(photo, disparity_scale=0.2, generator=seeded(0), output_type="pt")
    assert output.images.shape == (1, 3, *size)
    assert all(getattr(output, name).isfinite().all() for name in TENSORS if name not in MASKS)


# --- the public steps ---


def test_the_steps_make_the_call(either, photos):
    whole = either(photos, generator=seeded(21, 22), output_type="pt")
    generators = seeded(21, 22)
    normalized, flip = either.estimate_inverse_depth(photos)
    scale = sample_disparity_scale(B, generators)
    disparity = either.select_disparity(normalized, scale)
    warp = either.warp(photos, disparity)
    images = either.inpaint(warp.right_image, warp.right_hole_mask, warp.right_disparity, generator=generators)
    steps = ZeroStereoPipelineOutput(
        images=images,
        disparity=disparity,
        confidence=flip.confidence,
        hole_mask=warp.right_hole_mask,
        visible_mask=warp.left_visible_mask,
        warped_images=warp.right_image,
        new_view_disparity=warp.right_disparity,
        disparity_scale=scale,
        flip_agreement=flip.agreement.mean((1, 2, 3)),
        input_images=photos,
        target_view="right",
    )
    assert_same(whole, steps)
    assert not any(value.requires_grad for value in (normalized, disparity, images))


def test_steps_take_pictures(embedded):
    pictures = embedded.image_processor.postprocess(make_photos(B, H, W), "pil")
    normalized, _ = embedded.estimate_inverse_depth(pictures)
    disparity = embedded.select_disparity(normalized, torch.tensor([0.1, 0.2]))
    warp = embedded.warp(pictures, disparity)
    warped = embedded.image_processor.postprocess(warp.right_image, "pil")
    filled = embedded.inpaint(warped, warp.right_hole_mask, warp.right_disparity, generator=seeded(0))
    known = ~warp.right_hole_mask.expand(-1, 3, -1, -1)
    assert torch.equal(filled[known], embedded.image_processor.preprocess(warped)[known])


def test_inpaint_needs_the_disparity_only_for_the_background(official, photos, disparity):
    warp = official.warp(photos, disparity)
    without = official.inpaint(warp.right_image, warp.right_hole_mask, generator=seeded(3))
    with_it = official.inpaint(warp.right_image, warp.right_hole_mask, warp.right_disparity, generator=seeded(3))
    assert torch.equal(without, with_it)


def test_empty_prompt_is_encoded_once(tmp_path, photos, disparity):
    pipe = official_pipeline(tmp_path)
    calls = []
    pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    first = pipe.encode_empty_prompt()
    for _ in range(2):
        pipe(photos, disparity=disparity, num_inference_steps=1)
    assert calls == [1] and pipe.encode_empty_prompt() is first


def test_configured_prompt_equals_the_text_encoder(tmp_path, photos, disparity):
    encoding = official_pipeline(tmp_path)
    embedding = encoding.encode_empty_prompt()
    configured = official_pipeline(
        tmp_path, text_encoder=None, tokenizer=None, empty_prompt_embeds=embedding[0].tolist()
    )
    assert torch.equal(configured.encode_empty_prompt(), embedding)
    arguments = {"disparity": disparity, "output_type": "pt"}
    assert_same(
        encoding(photos, generator=seeded(1), **arguments), configured(photos, generator=seeded(1), **arguments)
    )
    other = official_pipeline(tmp_path, empty_prompt_embeds=configured_prompt())  # goes before the text encoder
    assert not torch.equal(
        other(photos, generator=seeded(1), **arguments).images,
        configured(photos, generator=seeded(1), **arguments).images,
    )


# --- components, dtypes, arguments ---


def test_optional_components_may_be_missing(photos, disparity):
    full = embedded_pipeline()
    bare = quiet(
        ZeroStereoPipeline(
            unet=full.unet,
            vae=full.vae,
            scheduler=make_sample_ddim(),
            latent_mask_reduction="max",
            masked_fill="background",
            default_num_inference_steps=2,
            empty_prompt_embeds=configured_prompt(),
        )
    )
    assert set(ZeroStereoPipeline._optional_components) == {"depth_estimator", "text_encoder", "tokenizer"}
    assert all(getattr(bare, name) is None for name in ZeroStereoPipeline._optional_components)
    arguments = {"disparity": disparity, "output_type": "pt"}
    assert_same(bare(photos, generator=seeded(1), **arguments), full(photos, generator=seeded(1), **arguments))


def test_defaults_are_the_official_ones():
    pipe = ZeroStereoPipeline(unet=make_unet(), vae=make_kl_autoencoder(), scheduler=make_ddim())
    config = configuration(pipe)
    assert config == {
        "latent_mask_reduction": "nearest",
        "masked_fill": "zero",
        "default_num_inference_steps": 50,
        "default_depth_resolution": 0,
        "default_inpaint_resolution": 0,
        "tile_size": 512,
        "depth_prediction": "inverse_depth",
        "depth_mean": [0.485, 0.456, 0.406],
        "depth_std": [0.229, 0.224, 0.225],
        "depth_size_multiple": 14,
        "empty_prompt_embeds": None,
        "depth_position_embedding": "transformers",
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", ["official", "embedded"])
def test_networks_keep_their_dtype_and_the_maps_are_float32(tmp_path, photos, dtype, build):
    pipe = embedded_pipeline() if build == "embedded" else official_pipeline(tmp_path)
    exact = pipe(photos, generator=seeded(1, 2), output_type="pt")
    for network in (pipe.unet, pipe.vae, pipe.text_encoder):
        if network is not None:
            network.to(dtype)
    with inputs_of(pipe.unet) as unet, inputs_of(pipe.vae.encoder) as vae, inputs_of(pipe.depth_estimator) as depth:
        half = pipe(photos, generator=seeded(1, 2), output_type="pt")
    assert {value.dtype for value in unet + vae} == {dtype} and depth[0].dtype == torch.float32
    assert pipe.unet.dtype == pipe.vae.dtype == dtype and pipe.depth_estimator.dtype == torch.float32
    for name in TENSORS:
        assert getattr(half, name).dtype == (torch.bool if name in MASKS else torch.float32), name
        if name != "images":
            assert torch.equal(getattr(half, name), getattr(exact, name)), name
    known = ~exact.hole_mask.expand(-1, 3, -1, -1)
    assert torch.equal(half.images[known], exact.images[known]) and half.images.isfinite().all()


def test_depth_network_in_half_precision_gets_its_dtype(photos):
    pipe = embedded_pipeline()
    pipe.depth_estimator.to(torch.bfloat16)
    with inputs_of(pipe.depth_estimator) as seen:
        normalized, flip = pipe.estimate_inverse_depth(photos)
    assert seen[0].dtype == torch.bfloat16 and normalized.dtype == flip.confidence.dtype == torch.float32


def test_arguments_and_components_are_left_as_they_were(tmp_path, photos, disparity):
    pipe = official_pipeline(tmp_path)
    pipe.unet.train()
    state = {
        name: (component.training, component.dtype, [value.clone() for value in component.state_dict().values()])
        for name, component in pipe.components.items()
        if isinstance(component, nn.Module)
    }
    config = dict(pipe.config)
    generators, scales, names = seeded(1, 2), [0.1, 0.2], ["latents", "latent_mask"]
    latents = torch.randn(B, 4, 6, 9, generator=seeded(0))
    first, second = generators
    tensors = (photos, disparity, latents)
    before = [value.clone() for value in tensors]
    arguments = {"generator": generators, "latents": latents, "output_type": "np"}
    for maps in ({"disparity": disparity}, {"inverse_depth": disparity, "disparity_scale": scales}, {}):
        output = pipe(
            photos,
            **maps,
            **arguments,
            callback_on_step_end=lambda *a: {},
            callback_on_step_end_tensor_inputs=names,
        )
        output.images[:] = 0.5
        output.warped_images[:] = 0.5
    for value, kept in zip(tensors, before, strict=True):
        assert torch.equal(value, kept)
    assert scales == [0.1, 0.2] and names == ["latents", "latent_mask"]
    assert generators[0] is first and generators[1] is second and len(generators) == 2
    assert dict(pipe.config) == config
    for name, (training, dtype, weights) in state.items():
        component = pipe.components[name]
        assert (component.training, component.dtype) == (training, dtype), name
        for value, kept in zip(component.state_dict().values(), weights, strict=True):
            assert torch.equal(value, kept), name


def test_lists_of_pictures_and_arrays_are_not_changed(embedded, disparity):
    pictures = embedded.image_processor.postprocess(make_photos(B, H, W), "pil")
    listed, contents = list(pictures), [picture.tobytes() for picture in pictures]
    given = disparity.numpy().copy()
    embedded(listed, disparity=given)
    assert all(one is other for one, other in zip(listed, pictures, strict=True))
    assert [picture.tobytes() for picture in pictures] == contents and np.array_equal(given, disparity.numpy())


# --- photographs of every kind ---


def test_forms_of_a_photograph_give_the_same_pair(embedded, photos, disparity):
    expected = embedded(photos, disparity=disparity, generator=seeded(1, 2), output_type="pt")
    pictures = embedded.image_processor.postprocess(photos, "pil")
    bytes_ = np.stack([np.asarray(picture) for picture in pictures])
    maps = disparity[:, 0].numpy()
    for form, values in (
        (pictures, maps),
        (bytes_, list(maps)),
        (list(bytes_), maps[..., None]),
        (list(photos), maps),
    ):
        output = embedded(form, disparity=values, generator=seeded(1, 2), output_type="pt")
        assert_same(expected, output)


def test_orientation_of_a_photograph_is_applied(embedded, tmp_path):
    (upright,) = embedded.image_processor.postprocess(make_photos(1, H, W), "pil")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    path = Path(tmp_path) / "photo.png"
    upright.transpose(PIL.Image.Transpose.ROTATE_90).save(path, exif=exif)
    stored = PIL.Image.open(path)
    assert stored.size == (H, W)
    expected = embedded(upright, disparity_scale=0.1, generator=seeded(0))
    output = embedded(stored, disparity_scale=0.1, generator=seeded(0))
    assert output.images[0].size == (W, H) and output.images[0].tobytes() == expected.images[0].tobytes()


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "YCbCr"])
def test_photographs_that_are_not_rgb(embedded, mode):
    (picture,) = embedded.image_processor.postprocess(make_photos(1, H, W), "pil")
    output = embedded(picture.convert(mode), disparity_scale=0.1, generator=seeded(0))
    assert (output.images[0].mode, output.images[0].size) == ("RGB", (W, H))
    nothing = embedded(picture.convert(mode), disparity=np.zeros((H, W)))
    assert nothing.images[0].tobytes() == picture.convert(mode).convert("RGB").tobytes()


def test_tensors_need_no_copy_to_be_safe(embedded, photos):
    """A float32 batch is used as it is: views and slices of a larger tensor give the same pair."""
    larger = torch.zeros(B, 3, H + 3, W + 4)
    larger[..., 1 : H + 1, 2 : W + 2] = photos
    window = larger[..., 1 : H + 1, 2 : W + 2]
    assert not window.is_contiguous()
    assert_same(
        embedded(photos, generator=seeded(1), output_type="pt"),
        embedded(window, generator=seeded(1), output_type="pt"),
    )
