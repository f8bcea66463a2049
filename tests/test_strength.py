# SPDX-License-Identifier: Apache-2.0
"""How strong the relief is: a share of the width, pixels, or metres between the eyes; sharpened or not."""

import math

import numpy as np
import pytest
import torch

from pipeline_zerostereo import disparity_from_metric_depth, normalize_inverse_depth, sharpen_disparity
from tests.tiny_components import embedded_pipeline, formula_pipeline, make_disparity, make_glpn, make_photos, seeded

B, H, W = 2, 45, 70


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    return make_photos(B, H, W)


@pytest.fixture(scope="module")
def inverse_depth() -> torch.Tensor:
    return 40 - 3 * make_disparity(B, H, W)


# --- px ---


@pytest.mark.parametrize(
    ("given", "expected"), [(7, [7.0, 7.0]), ([3.5, 70.0], [3.5, 70.0]), (np.array([1.25, 2.5]), [1.25, 2.5])]
)
def test_largest_disparity_in_pixels(photos, inverse_depth, given, expected):
    pipe = embedded_pipeline()
    output = pipe(photos, inverse_depth=inverse_depth, max_disparity_px=given, fill="background", output_type="pt")
    assert output.disparity.amax((1, 2, 3)).tolist() == pytest.approx(expected)
    assert output.disparity_scale.tolist() == pytest.approx([px / W for px in expected])
    same = pipe(
        photos,
        inverse_depth=inverse_depth,
        disparity_scale=[px / W for px in expected],
        fill="background",
        output_type="pt",
    )
    torch.testing.assert_close(output.disparity, same.disparity)


def test_a_given_strength_draws_nothing(photos, inverse_depth):
    generator = seeded(3)
    before = generator.get_state()
    embedded_pipeline()(
        photos, inverse_depth=inverse_depth, max_disparity_px=5, generator=generator, fill="background"
    )
    assert torch.equal(generator.get_state(), before)


# --- metres ---


def test_disparity_of_a_known_distance():
    """90 degrees over 200 px: the focal length is 100 px. Eyes 6.5 cm apart see 2 m away at 3.25 px."""
    inverse_depth = torch.full((1, 1, 3, 200), 0.5)
    found = disparity_from_metric_depth(inverse_depth, 0.065, 90.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((1, 1, 3, 200), 3.25))
    two = disparity_from_metric_depth(inverse_depth.repeat(2, 1, 1, 1), [0.065, 0.13], [90.0, 60.0])
    expected = [3.25, 0.13 * 100 / math.tan(math.radians(30)) * 0.5]
    assert two[:, 0, 0, 0].tolist() == pytest.approx(expected)


def test_metric_disparity_is_neither_normalised_nor_drawn():
    """A network that says 10 times red, in metres."""
    photo = torch.tensor([0.1, 0.2, 0.4, 0.8, 0.4, 0.4]).expand(1, 3, 2, 6).contiguous()
    pipe = formula_pipeline(lambda pixels: 10 * pixels[:, 0], depth_prediction="metric_depth")
    generator = seeded(0)
    before = generator.get_state()
    output = pipe(
        photo, baseline_m=2.0, fov_deg=90.0, sharpen=False, fill="background", generator=generator, output_type="pt"
    )
    assert torch.equal(generator.get_state(), before)
    torch.testing.assert_close(output.disparity[0, 0, 1], torch.tensor([6, 3, 1.5, 0.75, 1.5, 1.5]))  # 2 x 3 / depth
    assert output.disparity_scale is None
    assert output.confidence.shape == (1, 1, 2, 6) and output.flip_agreement.tolist() == [1.0]
    sharp = pipe(photo, baseline_m=2.0, fov_deg=90.0, fill="background", output_type="pt")
    assert torch.equal(sharp.disparity, sharpen_disparity(output.disparity))
    inverse_depth, _ = pipe.estimate_metric_inverse_depth(photo)
    torch.testing.assert_close(inverse_depth[0, 0, 0], torch.tensor([1, 0.5, 0.25, 0.125, 0.25, 0.25]))


def test_metric_network_serves_the_other_strengths_too():
    photo = torch.tensor([0.1, 0.2, 0.4, 0.8, 0.4, 0.4]).expand(1, 3, 2, 6).contiguous()
    metric, depth = (
        formula_pipeline(lambda pixels: 10 * pixels[:, 0], depth_prediction=kind) for kind in ("metric_depth", "depth")
    )
    arguments = {"disparity_scale": 0.5, "fill": "background", "output_type": "pt"}
    assert torch.equal(metric(photo, **arguments).disparity, depth(photo, **arguments).disparity)
    normalized, _ = metric.estimate_inverse_depth(photo)
    assert torch.equal(normalized, normalize_inverse_depth(1 / (10 * photo[:, :1])))


def test_glpn_with_metres(photos):
    """A real metric network at tiny size, one baseline per photograph."""
    pipe = embedded_pipeline(depth_estimator=make_glpn(), depth_prediction="metric_depth", depth_size_multiple=32)
    output = pipe(
        photos, baseline_m=[0.065, 0.13], fov_deg=70.0, sharpen=False, generator=seeded(1, 2), output_type="pt"
    )
    inverse_depth, _ = pipe.estimate_metric_inverse_depth(photos)
    focal_px = W / 2 / math.tan(math.radians(35))
    expected = inverse_depth * torch.tensor([0.065, 0.13]).view(B, 1, 1, 1) * focal_px
    torch.testing.assert_close(output.disparity, expected)
    assert output.images.isfinite().all()


def test_metric_step_needs_a_metric_network(photos):
    with pytest.raises(ValueError, match='`depth_prediction` must be configured as "metric_depth" .*; got \'inverse'):
        embedded_pipeline().estimate_metric_inverse_depth(photos)


WRONG_METRES = {
    "negative inverse depth": (
        (torch.full((1, 1, 2, 3), -0.5), 0.1, 60.0),
        ValueError,
        "`inverse_depth` must not be negative; got a minimum of -0.5",
    ),
    "unknown inverse depth": (
        (torch.full((1, 1, 2, 3), torch.inf), 0.1, 60.0),
        ValueError,
        "`inverse_depth` must be fin",
    ),
    "shape": ((torch.ones(2, 3), 0.1, 60.0), ValueError, r"`inverse_depth` must have shape \[B,1,H,W\]"),
    "kind": ((np.ones((1, 1, 2, 3)), 0.1, 60.0), TypeError, "`inverse_depth` must be a torch.Tensor; got ndarray"),
    "baseline": (
        (torch.ones(1, 1, 2, 3), 0.0, 60.0),
        ValueError,
        r"`baseline_m` must lie in \(0, inf\), in metres; got 0",
    ),
    "field of view": (
        (torch.ones(1, 1, 2, 3), 0.1, 180.0),
        ValueError,
        r"`fov_deg` must lie in \(0, 180\), in degrees; got 180",
    ),
}


@pytest.mark.parametrize("case", WRONG_METRES)
def test_wrong_metres(case):
    arguments, error, message = WRONG_METRES[case]
    with pytest.raises(error, match=message):
        disparity_from_metric_depth(*arguments)


# --- sharpening ---


def test_soft_borders_stay_soft_on_request(photos, inverse_depth):
    pipe = embedded_pipeline()
    soft, sharp = (
        pipe(
            photos,
            inverse_depth=inverse_depth,
            disparity_scale=0.15,
            sharpen=sharpen,
            fill="background",
            output_type="pt",
        ).disparity
        for sharpen in (False, True)
    )
    assert torch.equal(soft, normalize_inverse_depth(inverse_depth) * torch.tensor(0.15 * W))
    assert torch.equal(sharp, sharpen_disparity(soft)) and not torch.equal(soft, sharp)
    assert torch.equal(pipe.select_disparity(normalize_inverse_depth(inverse_depth), 0.15, sharpen=False), soft)
