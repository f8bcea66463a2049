# SPDX-License-Identifier: Apache-2.0
"""Generated, mip-mapped textures and ragged alpha maps for procedural scenes. No photograph is involved.

Shape letters: B scenes, T textures of a scene, H W pixels.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from training.scene_layout import BILLBOARDS, TEXTURES, Draw

TEXTURE_SIZE = 128
MIP_LEVELS = 6  # 128 ... 4 px


class Textures(NamedTuple):
    """Mip-mapped colour textures and alpha maps of a group of scenes."""

    texels: Tensor  # [B,3,texels of all levels]
    alpha: Tensor  # [B,billboards,TEXTURE_SIZE**2], > 0 where the billboard is solid


def fractal_noise(draw: Draw, batch: int, count: int, size: int, roughness: Tensor, stretch: Tensor) -> Tensor:
    """Return periodic 1/f**roughness noise [B,count,size,size] of mean 0 and deviation 1.

    roughness and stretch are [B,count]; stretch > 1 smears the noise along y, < 1 along x.
    """
    rows = torch.fft.fftfreq(size, device=draw.device)[:, None] * size
    columns = torch.fft.rfftfreq(size, device=draw.device)[None] * size
    stretch = stretch[..., None, None]
    squared = (columns / stretch) ** 2 + (rows * stretch) ** 2
    amplitude = squared.clamp_min(0.5).pow(-roughness[..., None, None] / 2)
    amplitude[..., 0, 0] = 0
    spectrum = torch.view_as_complex(draw.normal(batch, count, size, size // 2 + 1, 2))
    noise = torch.fft.irfft2(spectrum * amplitude, s=(size, size))
    return noise / noise.std((-2, -1), keepdim=True).clamp_min(1e-6)


class Paint(NamedTuple):
    """Random numbers that turn noise fields into coloured textures; [B,T,1,1] each, the colours [B,T,3,1,1]."""

    kind: Tensor  # 0 ... 9, see _patterns
    waves_x: Tensor
    waves_y: Tensor
    wobble: Tensor
    slanted: Tensor
    contrast: Tensor
    spotted: Tensor
    grain: Tensor
    first: Tensor
    second: Tensor
    third: Tensor
    windows: Tensor  # [B,4,1,1]: windows across and down, margins in x and y


def _sample_paint(draw: Draw, batch: int) -> Paint:
    shape = (batch, TEXTURES, 1, 1)
    uniform = draw.uniform
    windows = [
        draw.integers(2, 6, batch),
        draw.integers(2, 6, batch),
        uniform(0.15, 0.32, batch),
        uniform(0.12, 0.3, batch),
    ]
    return Paint(
        kind=draw.integers(0, 10, *shape),
        waves_x=draw.integers(1, 13, *shape).float(),
        waves_y=draw.integers(1, 13, *shape).float(),
        wobble=uniform(0, 1, *shape) ** 2 * 0.6,
        slanted=draw.chance(0.4, *shape).float(),
        contrast=uniform(0.15, 1.0, *shape),
        spotted=draw.chance(0.4, *shape).float(),
        grain=uniform(0, 1, *shape) ** 2 * 0.15,
        first=draw.colors(batch, TEXTURES)[..., None, None],
        second=draw.colors(batch, TEXTURES)[..., None, None],
        third=draw.colors(batch, TEXTURES)[..., None, None],
        windows=torch.stack(windows, -1)[..., None, None],
    )


def _patterns(noise: Tensor, wobbling: Tensor, paint: Paint) -> Tensor:
    """Turn noise fields [B,T,size,size] into patterns: noise, stripes, checks, bricks, steps, blots or faint noise."""
    size = noise.shape[-1]
    x = torch.arange(size, device=noise.device) / size
    y = x[:, None]
    wobble = wobbling * paint.wobble
    phase_x, phase_y = 2 * math.pi * paint.waves_x * x, 2 * math.pi * paint.waves_y * y
    stripes = torch.sin(phase_x + paint.slanted * phase_y + wobble)
    checks = torch.sign(torch.sin(phase_x + wobble) * torch.sin(phase_y + wobble))
    row = paint.waves_y * y * 2
    bricks = torch.where(
        (((paint.waves_x * x * 2 + 0.5 * (row.floor() % 2)) % 1) < 0.07) | ((row % 1) < 0.1), -1.5, 0.6
    )
    kind = paint.kind
    pattern = torch.where(kind == 3, stripes, noise)
    pattern = torch.where(kind == 4, checks, pattern)
    pattern = torch.where(kind == 5, bricks + 0.4 * noise, pattern)
    pattern = torch.where(kind == 6, (noise * 1.5).round() / 1.5, pattern)
    pattern = torch.where(kind == 7, torch.sign(noise - 0.6) + 0.2 * noise, pattern)
    return torch.where(kind >= 8, noise * 0.25, pattern)


def _facade(noise: Tensor, windows: Tensor) -> Tensor:
    """Return a grid of windows [B,size,size], on a nearly plain wall."""
    x = torch.arange(noise.shape[-1], device=noise.device) / noise.shape[-1]
    across, down, margin_x, margin_y = windows.unbind(1)
    is_window = (((across * x) % 1 - 0.5).abs() < 0.5 - margin_x) & (
        ((down * x[:, None]) % 1 - 0.5).abs() < 0.5 - margin_y
    )
    return torch.where(is_window, -2.0, 1.0) + 0.2 * noise


def paint_textures(noise: Tensor, grain: Tensor, paint: Paint) -> Tensor:
    """Colour noise fields [B,T,size,size] and return all mip levels, one behind the other: [B,3,texels]."""
    pattern = _patterns(noise, noise.roll(3, 1), paint)
    pattern = torch.cat([_facade(noise[:, 0], paint.windows)[:, None], pattern[:, 1:]], 1)
    weight = torch.sigmoid(pattern * 1.5)
    spots = torch.sigmoid(3 * noise.roll(1, 1) - 2.4) * paint.spotted
    shine = 1 + grain * paint.grain
    background = torch.lerp(paint.first, paint.second, paint.contrast[:, :, None])
    clouds = torch.sigmoid(3 * noise[:, -1] - 1)[:, None, None]
    color = torch.lerp(background, paint.first, weight[:, :, None])
    color = (torch.lerp(color, paint.third, spots[:, :, None]) * shine[:, :, None]).clamp(0, 1)
    color = torch.cat([color[:, :-1], clouds.expand(-1, 1, 3, -1, -1)], 1).transpose(1, 2)  # [B,3,T,size,size]
    levels = [color]
    for _ in range(MIP_LEVELS - 1):
        even, odd = levels[-1][..., ::2, :], levels[-1][..., 1::2, :]
        both = even + odd
        levels.append((both[..., ::2] + both[..., 1::2]) * 0.25)
    return torch.cat([level.flatten(2) for level in levels], 2)


def make_textures(draw: Draw, batch: int, paint: Callable = paint_textures) -> Textures:
    """Draw the textures of a group of scenes: colours with mip levels, and alpha maps of the billboards.

    paint may be a compiled paint_textures.
    """
    roughness = draw.uniform(0.8, 2.2, batch, TEXTURES)
    noise = fractal_noise(draw, batch, TEXTURES, TEXTURE_SIZE, roughness, draw.log_uniform(0.45, 2.2, batch, TEXTURES))
    grain = draw.normal(batch, 1, TEXTURE_SIZE, TEXTURE_SIZE)
    return Textures(paint(noise, grain, _sample_paint(draw, batch)), _alpha_maps(draw, noise))


def _alpha_maps(draw: Draw, noise: Tensor) -> Tensor:
    """Return [B,billboards,TEXTURE_SIZE**2]: > 0 inside a blob that noise fields make ragged."""
    batch, count = len(noise), BILLBOARDS.stop - BILLBOARDS.start
    axis = torch.linspace(-1, 1, TEXTURE_SIZE, device=draw.device).abs()
    power = draw.log_uniform(1.5, 3.0, batch, count, 1, 1)
    blob = 1 - (axis**power + axis[:, None] ** power) ** (1 / power)
    ragged = draw.uniform(0.05, 0.4, batch, count, 1, 1)
    return (blob + ragged * noise[:, 1 : 1 + count] - draw.uniform(0.0, 0.25, batch, count, 1, 1)).flatten(2)


def sample_texture(
    texels: Tensor, texture: Tensor, u: Tensor, v: Tensor, footprint: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample wrapped textures bilinearly at the mip level of the footprint (tiles per pixel); all planes [B,H,W]."""
    level = (footprint * TEXTURE_SIZE).clamp(1, 2 ** (MIP_LEVELS - 1)).log2().round().long()
    size = TEXTURE_SIZE >> level
    start = (TEXTURE_SIZE**2 - size * size) // 3 * 4 * TEXTURES + texture.long() * (size * size)
    x, y = (u - u.floor()) * size - 0.5, (v - v.floor()) * size - 0.5
    left, top = x.floor(), y.floor()
    weight_x, weight_y = x - left, y - top
    left, top, last = left.long(), top.long(), size - 1
    column, next_column = left & last, (left + 1) & last
    row, next_row = start + (top & last) * size, start + ((top + 1) & last) * size
    corners = [row + column, row + next_column, next_row + column, next_row + next_column]
    corners = [corner.flatten(1) for corner in corners]
    color = []
    for plane in texels.unbind(1):
        values = [plane.gather(1, corner).view(u.shape) for corner in corners]
        upper = torch.lerp(values[0], values[1], weight_x)
        color.append(torch.lerp(upper, torch.lerp(values[2], values[3], weight_x), weight_y))
    return tuple(color)
