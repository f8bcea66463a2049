# SPDX-License-Identifier: Apache-2.0
"""Bad weather and bad light over stereo pairs: rain, fog, low light, sensor noise.

The published Zero networks lead in sun, cloud and fog and fall behind in rain, of which their training pictures have
none; here is a cheap likeness of it, not a simulation. Half of the samples get one kind, in the right view alone (what
the left view shows must be found in a spoilt picture) or in both. Strength and light of one weather are common to both
views; streaks, drops and noise are drawn for each view, because what is near the lens is in no two views alike.

Fog and the veil of rain thicken with distance, which is one over the disparity: a pixel of disparity d keeps the share
exp(-density * nearest / d) of its light (Koschmieder's law), where `nearest` is a large disparity of the picture. So
the densities are free of the unknown baseline, and what has disparity 0 disappears. Unknown disparities are taken from
the farther neighbour in the row; the right view's disparity is the left one's, warped, its holes filled so too.

Every draw comes from the generator that is passed in, of the CPU. Nothing that is handed in is changed. Letters: H W
pixels. Pictures are in [0,1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline_zerostereo import fill_from_background, forward_warp

Views = Literal["right", "both"]

KINDS = ("rain", "fog", "low_light", "noise")
PROBABILITY = 0.5  # of a sample to get any
NEAREST_QUANTILE = 0.95  # of the disparity: what density is measured by
FOG_DENSITY = (0.05, 0.6)  # part of the light that is lost at `nearest`, as an exponent
AIR_LIGHT = (0.6, 0.95)
RAIN_DENSITY = (0.02, 0.12)  # of the veil
RAIN_SHARE = (0.001, 0.004)  # of pixels at which a streak begins
RAIN_LENGTH = (0.02, 0.07)  # of a streak, of the height
RAIN_SLANT = (-0.35, 0.35)  # columns per row
RAIN_OPACITY = (0.5, 0.9)
DROPS = (0, 6)  # on the lens
DROP_RADIUS = (0.01, 0.05)  # of the height
EXPOSURE = (0.12, 0.5)  # of low light
LOW_LIGHT_GAMMA = 1.2
SHOT_NOISE, READ_NOISE = (0.01, 0.05), (0.005, 0.04)  # standard deviation at full light, and in the dark


class Weather(NamedTuple):
    """What is common to both views.

    Attributes:
        kind: one of KINDS.
        strength: 0 ... 1, places each quantity between its bounds.
        light: of air and streaks, 0 ... 1.
        slant: of streaks, columns per row.
    """

    kind: str
    strength: float
    light: float
    slant: float


def between(bounds: tuple[float, float], share: float) -> float:
    """Return the number that lies at a share of the way from the first to the second."""
    return bounds[0] + (bounds[1] - bounds[0]) * share


def draw_weather(*, generator: torch.Generator) -> Weather | None:
    """Draw a weather, each kind alike; None for half of the draws."""
    chance, kind, strength, light, slant = torch.rand(5, generator=generator).tolist()
    if chance >= PROBABILITY:
        return None
    return Weather(KINDS[int(kind * len(KINDS))], strength, between(AIR_LIGHT, light), between(RAIN_SLANT, slant))


def add_veil(image: Tensor, disparity: Tensor, *, density: float, light: float) -> Tensor:
    """Mix a picture with the light of the air, more of it where it is far.

    Args:
        image: [3,H,W].
        disparity: [1,H,W], px, >= 0, of this view.
        density: the share exp(-density) of its light comes through from the nearest things; 0 changes nothing but
            what is infinitely far.
        light: of the air.

    Degenerate case: disparity 0 everywhere gives the air's light everywhere.
    """
    nearest = torch.quantile(disparity.flatten()[:: max(1, disparity.numel() // 10_000)], NEAREST_QUANTILE)
    kept = torch.exp(-density * nearest / disparity.clamp_min(1e-3))
    kept = torch.where(disparity > 0, kept, 0.0)
    return image * kept + light * (1 - kept)


def draw_streaks(height: int, width: int, *, strength: float, slant: float, generator: torch.Generator) -> Tensor:
    """Draw falling drops as they smear in one exposure: [1,H,W] in [0,1], mostly 0."""
    length = max(3, round(between(RAIN_LENGTH, strength) * height)) | 1  # odd
    starts = torch.rand((height, width), generator=generator) < between(RAIN_SHARE, strength)
    brightness = torch.rand((height, width), generator=generator) * starts
    kernel = torch.zeros(length, 2 * math.ceil(abs(slant) * length / 2) + 3)
    for row in range(length):
        place = slant * (row - length // 2) + kernel.shape[1] // 2
        kernel[row, int(place)] += 1 - place % 1
        kernel[row, int(place) + 1] += place % 1
    padding = (length // 2, kernel.shape[1] // 2)
    return F.conv2d(brightness[None, None], kernel[None, None], padding=padding)[0].clamp(0, 1)


def draw_drops(height: int, width: int, *, generator: torch.Generator) -> Tensor:
    """Draw where drops stand on the lens: [1,H,W] in [0,1], soft discs."""
    y = torch.arange(height, dtype=torch.float32)[:, None]
    x = torch.arange(width, dtype=torch.float32)
    covered = torch.zeros(1, height, width)
    for _ in range(int(torch.randint(DROPS[0], DROPS[1] + 1, (), generator=generator))):
        row, column, size = torch.rand(3, generator=generator).tolist()
        radius = max(1.0, between(DROP_RADIUS, size) * height)
        distance = torch.hypot(y - row * height, x - column * width)
        covered = torch.maximum(covered, ((radius - distance) / (0.3 * radius)).clamp(0, 1))
    return covered


def add_rain(image: Tensor, disparity: Tensor, weather: Weather, *, generator: torch.Generator) -> Tensor:
    """Rain on a picture [3,H,W]: a veil, streaks, and drops on the lens that blur what is behind them."""
    H, W = image.shape[-2:]
    veiled = add_veil(image, disparity, density=between(RAIN_DENSITY, weather.strength), light=weather.light)
    streaks = draw_streaks(H, W, strength=weather.strength, slant=weather.slant, generator=generator).to(image.device)
    share = between(RAIN_OPACITY, weather.strength) * streaks
    wet = veiled * (1 - share) + weather.light * share
    drops = draw_drops(H, W, generator=generator).to(image.device)
    reach = max(1, H // 40)
    padded = F.pad(wet[None], (reach,) * 4, mode="replicate")
    blurred = F.avg_pool2d(padded, 2 * reach + 1, stride=1)[0]
    return wet * (1 - drops) + (0.9 * blurred + 0.1 * weather.light) * drops


def add_sensor_noise(image: Tensor, strength: float, *, generator: torch.Generator) -> Tensor:
    """Add noise to a picture [3,H,W] whose variance grows with the light: the sensor's and the photons'."""
    spread = torch.sqrt(between(READ_NOISE, strength) ** 2 + between(SHOT_NOISE, strength) ** 2 * image)
    noise = torch.randn(image.shape, generator=generator).to(image.device)
    return (image + spread * noise).clamp(0, 1)


def darken(image: Tensor, strength: float, *, generator: torch.Generator) -> Tensor:
    """Take most of a picture's light [3,H,W] away and add the noise of a sensor that amplifies the rest."""
    dark = between(EXPOSURE, 1 - strength) * image**LOW_LIGHT_GAMMA
    return add_sensor_noise(dark, 0.5 * strength, generator=generator)


def show_weather(image: Tensor, disparity: Tensor, weather: Weather, *, generator: torch.Generator) -> Tensor:
    """Show one view in a weather.

    Args:
        image: [3,H,W] in [0,1].
        disparity: [1,H,W], px, >= 0, of this view.
        weather: what `draw_weather` drew for the pair.
        generator: what is of this view alone is drawn from it.

    Returns:
        [3,H,W] in [0,1].

    Raises:
        ValueError: `weather.kind` is not one of KINDS.
    """
    if weather.kind == "rain":
        return add_rain(image, disparity, weather, generator=generator)
    if weather.kind == "fog":
        return add_veil(image, disparity, density=between(FOG_DENSITY, weather.strength), light=weather.light)
    if weather.kind == "low_light":
        return darken(image, weather.strength, generator=generator)
    if weather.kind == "noise":
        return add_sensor_noise(image, weather.strength, generator=generator)
    raise ValueError(f"`weather.kind` must be one of {', '.join(KINDS)}; got {weather.kind!r}.")


def fill_unknown(disparity: Tensor, unknown: Tensor) -> Tensor:
    """Give unknown pixels the smaller disparity of their two known neighbours in the row; [1,H,W] both."""
    return fill_from_background(disparity[None], unknown[None], disparity[None])[0]


def right_view_disparity(disparity: Tensor) -> Tensor:
    """Bring a disparity of the left view [1,H,W], px, >= 0, to the right view."""
    warp = forward_warp(disparity[None], disparity[None])
    return fill_unknown(warp.right_disparity[0], warp.right_hole_mask[0])


def spoil_by_weather(sample: Mapping[str, Any], views: Views, *, generator: torch.Generator) -> dict[str, Any]:
    """Show half of the samples in bad weather or light.

    Args:
        sample: of pair_dataset.py.
        views: "right" leaves the left view as it is.
        generator: every draw comes from it.

    Returns:
        a new dict; its `clean_left_image` and `clean_right_image` are the pictures as they were, for the loss.

    Raises:
        ValueError: `views` is unknown.
    """
    if views not in ("right", "both"):
        raise ValueError(f'`views` must be "right" or "both"; got {views!r}.')
    clean = {f"clean_{name}": sample[name] for name in ("left_image", "right_image")}
    weather = draw_weather(generator=generator)
    if weather is None:
        return {**sample, **clean}
    left_disparity = fill_unknown(sample["disparity"], ~sample["valid_disparity_mask"])
    disparities = {"right_image": right_view_disparity(left_disparity)}
    if views == "both":
        disparities["left_image"] = left_disparity
    shown = {
        name: show_weather(sample[name].float() / 255, disparity, weather, generator=generator)
        for name, disparity in disparities.items()
    }
    return {**sample, **clean, **{name: image.mul(255).round().to(torch.uint8) for name, image in shown.items()}}
