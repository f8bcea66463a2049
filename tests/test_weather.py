# SPDX-License-Identifier: Apache-2.0
"""Bad weather over pairs: known answers of each kind, and what the loss compares stays as it was."""

import math

import pytest
import torch

from tests.test_stereo_augmentation import assert_equal_samples, copy_of, make_sample
from training import weather as weather_file
from training.run import step_generator
from training.weather import (
    KINDS,
    Weather,
    add_rain,
    add_sensor_noise,
    add_veil,
    darken,
    draw_drops,
    draw_streaks,
    draw_weather,
    fill_unknown,
    right_view_disparity,
    show_weather,
    spoil_by_weather,
)


def make_view(height: int = 40, width: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """A random picture, and a disparity that rises from 1 px on the left to 12 px on the right."""
    image = torch.rand(3, height, width, generator=step_generator(4, 0, 0))
    return image, torch.linspace(1, 12, width).expand(1, height, width).contiguous()


def test_half_of_the_samples_get_one_kind_each_alike():
    drawn = [draw_weather(generator=step_generator(0, i, 0)) for i in range(1200)]
    kinds = [one.kind for one in drawn if one]
    assert len(kinds) / 1200 == pytest.approx(0.5, abs=0.05)
    for kind in KINDS:
        assert kinds.count(kind) / len(kinds) == pytest.approx(0.25, abs=0.06)
    assert all(0 <= one.strength < 1 and 0.6 <= one.light < 0.95 and abs(one.slant) <= 0.35 for one in drawn if one)


def test_a_veil_follows_koschmieders_law():
    image = torch.full((3, 2, 4), 0.2)
    disparity = torch.tensor([8.0, 8.0, 4.0, 0.0]).expand(1, 2, 4)
    veiled = add_veil(image, disparity, density=0.5, light=0.9)
    near, far = math.exp(-0.5), math.exp(-1.0)
    expected = [0.2 * near + 0.9 * (1 - near)] * 2 + [0.2 * far + 0.9 * (1 - far), 0.9]
    torch.testing.assert_close(veiled[1, 1], torch.tensor(expected))


def test_no_fog_changes_only_what_is_infinitely_far():
    image, disparity = make_view()
    torch.testing.assert_close(add_veil(image, disparity, density=0.0, light=0.7), image)
    nothing = add_veil(image, torch.zeros_like(disparity), density=0.3, light=0.7)
    torch.testing.assert_close(nothing, torch.full_like(image, 0.7))


def test_fog_is_free_of_the_baseline():
    image, disparity = make_view()
    one, other = (add_veil(image, d, density=0.4, light=0.8) for d in (disparity, 3 * disparity))
    torch.testing.assert_close(one, other)


def test_streaks_fall_as_slanted_as_they_are_told(monkeypatch):
    """One drop: the mass of the streak lies along its line, `slant` columns per row."""
    monkeypatch.setattr(weather_file, "RAIN_SHARE", (1 / 5000, 1 / 5000))
    streaks = next(
        s
        for s in (
            draw_streaks(61, 80, strength=1.0, slant=0.3, generator=step_generator(0, i, 0))[0] for i in range(99)
        )
        if 0 < (s > 0).any(1).sum() <= 5 and s[:8].sum() == 0 and s[-8:].sum() == 0 and s[:, :8].sum() == 0
    )
    rows = (streaks > 0).any(1).nonzero()[:, 0]
    assert len(rows) == (round(0.07 * 61) | 1)
    centers = (streaks[rows] * torch.arange(80)).sum(1) / streaks[rows].sum(1)
    assert centers.diff().abs().mean().item() == pytest.approx(0.3, abs=0.02)
    assert streaks.max() <= 1


def test_more_rain_is_more_streaks_on_both_slants():
    for slant in (-0.3, 0.3):
        light, heavy = (
            draw_streaks(60, 90, strength=s, slant=slant, generator=step_generator(0, 0, 0)) for s in (0.0, 1.0)
        )
        assert light.shape == (1, 60, 90) and 0 < light.mean() < heavy.mean() < 0.5


def test_drops_on_the_lens_are_soft_discs_of_bounded_size():
    areas = [draw_drops(100, 120, generator=step_generator(0, i, 0)) for i in range(40)]
    assert any(area.sum() == 0 for area in areas) and any(area.sum() > 0 for area in areas)
    assert all(0 <= area.min() and area.max() <= 1 for area in areas)
    assert max(area.sum().item() for area in areas) < 6 * math.pi * 5**2


def test_noise_is_stronger_in_the_light():
    dark, bright = (
        add_sensor_noise(torch.full((3, 90, 90), v), 1.0, generator=step_generator(0, 0, 0)) for v in (0.15, 0.6)
    )
    assert dark.std().item() == pytest.approx(math.sqrt(0.04**2 + 0.05**2 * 0.15), rel=0.03)
    assert bright.std().item() == pytest.approx(math.sqrt(0.04**2 + 0.05**2 * 0.6), rel=0.03)


def test_low_light_takes_most_of_the_light():
    means = [darken(torch.ones(3, 60, 60), s, generator=step_generator(0, 0, 0)).mean().item() for s in (0.0, 1.0)]
    assert means == [pytest.approx(0.5, abs=0.01), pytest.approx(0.12, abs=0.01)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_stays_in_range_and_depends_on_the_generator(kind):
    image, disparity = make_view()
    before = image.clone()
    one = Weather(kind, 0.7, 0.8, 0.2)
    shown = [show_weather(image, disparity, one, generator=step_generator(s, 0, 0)) for s in (1, 1, 2)]
    assert torch.equal(shown[0], shown[1]) and not torch.equal(shown[0], image)
    assert torch.equal(shown[0], shown[2]) == (kind == "fog")
    assert shown[0].shape == image.shape and shown[0].min() >= 0 and shown[0].max() <= 1
    assert torch.equal(image, before)


def test_rain_blurs_behind_drops(monkeypatch):
    image, disparity = make_view()
    one = Weather("rain", 0.0, 0.8, 0.0)
    monkeypatch.setattr(weather_file, "draw_drops", lambda H, W, *, generator: torch.ones(1, H, W))
    wet = add_rain(image, disparity, one, generator=step_generator(0, 0, 0))
    assert wet.std() < 0.5 * image.std()


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="`weather.kind` must be one of rain, fog, low_light, noise; got 'snow'"):
        show_weather(*make_view(), Weather("snow", 0.5, 0.5, 0.0), generator=step_generator(0, 0, 0))


def test_unknown_disparities_are_taken_from_the_farther_neighbour():
    disparity = torch.tensor([[[4.0, 0, 0, 9, 0]]])
    unknown = torch.tensor([[[False, True, True, False, True]]])
    assert fill_unknown(disparity, unknown).tolist() == [[[4, 4, 4, 9, 9]]]


def test_the_right_view_has_its_own_disparity():
    disparity = torch.full((1, 1, 10), 1.0)
    disparity[..., 5:8] = 3.0  # lands on 2..4; where it was, the background is seen
    assert right_view_disparity(disparity).tolist() == [[[1, 1, 3, 3, 3, 1, 1, 1, 1, 1]]]


@pytest.mark.parametrize("views", ["right", "both"])
def test_a_spoilt_sample_keeps_its_clean_pair_and_all_else(views):
    sample = make_sample()
    before = copy_of(sample)
    results = [spoil_by_weather(sample, views, generator=step_generator(0, i, 0)) for i in range(24)]
    spoilt = [r for r in results if not torch.equal(r["right_image"], sample["right_image"])]
    assert 4 < len(spoilt) < 20
    assert all(torch.equal(r["left_image"], sample["left_image"]) == (views == "right") for r in spoilt)
    for result in results:
        for name in ("left_image", "right_image"):
            assert torch.equal(result[f"clean_{name}"], sample[name]) and result[name].dtype == torch.uint8
        rest = {name: value for name, value in result.items() if not name.endswith("image")}
        assert_equal_samples(rest, {name: value for name, value in sample.items() if not name.endswith("image")})
    assert_equal_samples(sample, before)


def test_streaks_are_at_other_places_in_each_view(monkeypatch):
    monkeypatch.setattr(weather_file, "draw_weather", lambda *, generator: Weather("rain", 1.0, 0.9, 0.1))
    sample = make_sample()
    for name in ("left_image", "right_image"):
        sample[name] = torch.zeros_like(sample[name])
    result = spoil_by_weather(sample, "both", generator=step_generator(0, 0, 0))
    left, right = (result[name].float().flatten() for name in ("left_image", "right_image"))
    assert left.std() > 3 and torch.corrcoef(torch.stack([left, right]))[0, 1] < 0.3


def test_other_views_are_refused():
    with pytest.raises(ValueError, match='`views` must be "right" or "both"; got \'left\''):
        spoil_by_weather(make_sample(), "left", generator=step_generator(0, 0, 0))  # pyright: ignore
