# SPDX-License-Identifier: Apache-2.0
"""Unlimited stereo scenes with exact disparity for both views, ray-cast in pure torch on any device.

A scene is a camera, an open or closed box of floor, walls and ceiling, and up to 32 objects in fixed slots (people,
boxes, ellipsoids, cylinders, alpha-cut billboards). scene_kinds.py places them, scene_textures.py paints them, this
file looks at them: it finds the nearest surface of every pixel, lights it, and does so again from the right.

Convention: world x right, y DOWN, z forward, metres; the camera of the left view stands at the origin. Camera x right,
y down, z forward, so the distance along a ray whose camera z is 1 is the depth, and disparity = focal_px * baseline /
depth. A left pixel at column x with disparity d is seen at column x - d of the right view. Every pixel is one ray
through its centre, so image and disparity belong to exactly the same surface point (no anti-aliasing at outlines).

Speed: every per-pixel quantity is a plane [B,H,W] of its own (structure of arrays) and one scene at a time is rendered
on a CPU, so that the planes stay in its cache. On one core at 192x256: about 6 pairs a second, and about 20 with
compiled=True, which fuses the chains of small operations.

Shape letters: B scenes, H W pixels, K object slots, S surfaces (objects and the six walls), P parameters.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from training.scene_kinds import Scene, sample_scenes
from training.scene_layout import (
    BILLBOARD,
    BILLBOARDS,
    BOX,
    CYLINDER,
    ELLIPSOID,
    NEVER,
    SLOT_SHAPES,
    SLOTS,
    TEXTURES,
    Draw,
)
from training.scene_textures import TEXTURE_SIZE, Textures, make_textures, paint_textures, sample_texture

SCENES_VERSION = 1  # raised whenever equal seeds give other pictures

SKY_DISTANCE = 900.0  # metres: rays that go farther see the sky
CLEARANCE = 1e-3  # metres: what a ray meets nearer than this is where it starts
LARGEST_RIGHT_RATIO = 2.0  # objects beside the left view may have this times its largest disparity in the right one
SHADOW_LIGHT = 0.15  # share of the direct light that reaches a shadow
DIRECT_LIGHT = 1.15  # ambient and direct light together, facing the light
SHININESS = 12  # exponent of the squared highlight cosine
SMALLEST_COSINE = 0.08  # limits the blur of textures seen at a grazing angle
CLOUD_TILES, CLOUD_HORIZON = 0.35, 0.15  # scale of the cloud texture, and how far it is kept from infinity
SCENES_PER_GROUP_CPU, SCENES_PER_GROUP_GPU = 1, 16

Vector = Sequence[Tensor]  # three: one plane per coordinate, each broadcastable to [B,H,W]


class SceneBatch(NamedTuple):
    """Rectified stereo pairs with exact disparity.

    left_image, right_image: [B,3,H,W] float32 in [0,1]. left_disparity, right_disparity: [B,1,H,W] float32, pixels of
    the named view, >= 0; the sky is 0.
    """

    left_image: Tensor
    right_image: Tensor
    left_disparity: Tensor
    right_disparity: Tensor


class View(NamedTuple):
    """A camera: what turns pixels into rays."""

    origin: Tensor  # [B,3] world
    world_from_camera: Tensor  # [B,3,3]
    focal_px: Tensor  # [B,1,1]
    columns: Tensor  # [B,1,W] camera x of the ray whose camera z is 1
    rows: Tensor  # [B,H,1] camera y
    nearest: Tensor  # [B,1,1] metres: objects are cut open where they come nearer than this


class Hit(NamedTuple):
    """What the rays of a view meet."""

    color: Vector  # of the material, before light
    normal: Vector  # unit length, towards the camera
    facing: Tensor  # cosine between normal and light, >= 0
    point: Vector  # a little above the surface, so that it does not shadow itself
    shiny: Tensor  # strength of the highlight


class Kernels(NamedTuple):
    """The per-pixel functions, plain or compiled."""

    meet_from_camera: Callable
    meet_from_surface: Callable
    meet_walls: Callable
    shade: Callable
    finish: Callable
    expose: Callable
    paint: Callable


def scene_generator(seed: int, index: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a generator that depends on (seed, index) only, so that any scene can be made again alone."""
    digest = hashlib.sha256(f"procedural scene {int(seed)} {int(index)}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


# ---------------------------------------------------------------------------------------------------------------------
# Rays
# ---------------------------------------------------------------------------------------------------------------------


def _dot(first: Vector, second: Vector) -> Tensor:
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]


def _planes(vector: Tensor) -> Vector:
    """Return [B,3] as three planes [B,1,1]."""
    return tuple(component[:, None, None] for component in vector.unbind(-1))


def _transform(matrix: Tensor, point: Vector) -> Vector:
    """Return matrix [B,3,3] times point, plane by plane."""
    entries = [[matrix[:, i, j, None, None] for j in range(3)] for i in range(3)]
    return tuple(_dot(row, point) for row in entries)


def _camera_directions(matrix: Tensor, view: View) -> Vector:
    """Return the ray directions of a view in the frame that matrix [B,3,3] leads to from the camera."""
    entries = [[matrix[:, i, j, None, None] for j in range(3)] for i in range(3)]
    return tuple((row[0] * view.columns + row[2]) + row[1] * view.rows for row in entries)


def _enter_box(origin: Vector, direction: Vector, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance at which rays enter the cube [-1,1]**3, and which rays do."""
    nears, fars = [], []
    for start, slope in zip(origin, direction, strict=True):
        inverse = 1 / (slope + 1e-12)
        middle, reach = -start * inverse, inverse.abs()
        nears.append(middle - reach)
        fars.append(middle + reach)
    near, far = functools.reduce(torch.maximum, nears), functools.reduce(torch.minimum, fars)
    return near, near < far


def _enter_ellipsoid(origin: Vector, direction: Vector, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance at which rays enter the unit sphere, and which rays do."""
    squared, along = _dot(direction, direction), _dot(origin, direction)
    root = along * along - squared * (_dot(origin, origin) - 1)
    return -(along + root.clamp_min(0).sqrt()) / squared, root > 0


def _enter_cylinder(origin: Vector, direction: Vector, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance at which rays enter the upright cylinder of radius 1 and half height 1, and which do."""
    squared = (direction[0] * direction[0] + direction[2] * direction[2]).clamp_min(1e-9)
    along = origin[0] * direction[0] + origin[2] * direction[2]
    root = along * along - squared * (origin[0] * origin[0] + origin[2] * origin[2] - 1)
    half_chord = root.clamp_min(0).sqrt()
    inverse = 1 / (direction[1] + 1e-12)
    middle, reach = -origin[1] * inverse, inverse.abs()
    near = torch.maximum(-(along + half_chord) / squared, middle - reach)
    far = torch.minimum((half_chord - along) / squared, middle + reach)
    return near, (root > 0) & (near < far)


def _enter_billboard(origin: Vector, direction: Vector, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance at which rays meet the square z = 0, and which meet it where alpha [B,size**2] > 0."""
    distance = -origin[2] / (direction[2] + 1e-12)
    x, y = origin[0] + distance * direction[0], origin[1] + distance * direction[1]
    to_texel = 0.5 * (TEXTURE_SIZE - 1)
    column = ((x.clamp(-1, 1) + 1) * to_texel + 0.5).long()
    row = ((y.clamp(-1, 1) + 1) * to_texel + 0.5).long()
    solid = alpha.gather(1, (row * TEXTURE_SIZE + column).flatten(1)).view(x.shape) > 0
    return distance, solid & (x.abs() < 1) & (y.abs() < 1)


ENTER: dict[int, Callable] = {
    BOX: _enter_box,
    ELLIPSOID: _enter_ellipsoid,
    CYLINDER: _enter_cylinder,
    BILLBOARD: _enter_billboard,
}


def _meet_from_camera(
    shape: int,
    slot: Tensor,
    matrix: Tensor,
    start: Tensor,
    view: View,
    alpha: Tensor,
    present: Tensor,
    depth: Tensor,
    surface: Tensor,
) -> tuple[Tensor, Tensor]:
    """Let one object slot hide what lies behind it: returns the new depth and surface planes.

    matrix is object from camera, start the camera in the object's frame; present [B] is 1 where the slot is in use.
    """
    distance, hit = ENTER[shape](_planes(start), _camera_directions(matrix, view), alpha)
    hit = hit & (distance > view.nearest) & (distance < depth) & (present[:, None, None] > 0)
    return torch.where(hit, distance, depth), torch.where(hit, slot, surface)


def _meet_from_surface(
    shape: int,
    matrix: Tensor,
    center: Tensor,
    slope: Tensor,
    point: Vector,
    alpha: Tensor,
    present: Tensor,
    lit: Tensor,
) -> Tensor:
    """Return how much of the light reaches the points when one more object slot is in the way.

    matrix is object from world, slope the direction of the light in the object's frame.
    """
    local = _transform(matrix, tuple(p - c for p, c in zip(point, _planes(center), strict=True)))
    distance, hit = ENTER[shape](local, _planes(slope), alpha)
    return torch.where(hit & (distance > CLEARANCE) & (present[:, None, None] > 0), SHADOW_LIGHT, lit)


def _meet_walls(scene: Scene, view: View) -> tuple[Tensor, Tensor]:
    """Return depth and surface index of the wall that each ray meets."""
    direction = _camera_directions(view.world_from_camera, view)
    depth, surface = torch.full_like(direction[2], NEVER), torch.zeros_like(direction[2], dtype=torch.long)
    for axis in range(3):
        positive = direction[axis] > 0
        low, high = scene.wall_low[:, axis, None, None], scene.wall_high[:, axis, None, None]
        safe = torch.where(direction[axis].abs() < 1e-9, 1e-9, direction[axis])
        distance = (torch.where(positive, high, low) - view.origin[:, axis, None, None]) / safe
        distance = torch.where(distance > 0, distance, NEVER)
        surface = torch.where(distance < depth, positive + (SLOTS + 2 * axis), surface)
        depth = torch.minimum(depth, distance)
    return depth, surface


# ---------------------------------------------------------------------------------------------------------------------
# Light
# ---------------------------------------------------------------------------------------------------------------------


def _surface_table(scene: Scene) -> Tensor:
    """Return [B,S,P]: per surface rotation 9, centre 3, half size 3, texture 4, tint 4, specular, shape."""
    batch, device = len(scene.focal_px), scene.focal_px.device
    walls = torch.stack([scene.wall_low, scene.wall_high], -1)  # [B,3,2]
    wall_half = torch.full((batch, 3, 2, 3), NEVER, device=device)
    for axis in range(3):
        wall_half[:, axis, :, axis] = walls[:, axis].abs()
    identity = torch.eye(3, device=device).expand(batch, 6, 3, 3)
    shape = torch.tensor(SLOT_SHAPES + (BOX,) * 6, device=device, dtype=torch.float32)
    return torch.cat(
        [
            torch.cat([scene.rotation, identity], 1).flatten(2),
            torch.cat([scene.center, torch.zeros(batch, 6, 3, device=device)], 1),
            torch.cat([scene.half_size, wall_half.flatten(1, 2)], 1),
            scene.texture[..., None].float(),
            scene.texture_metres[..., None],
            scene.texture_offset,
            scene.tint,
            scene.tint_strength[..., None],
            scene.specular[..., None],
            shape.expand(batch, -1)[..., None],
        ],
        2,
    )


def _local_normal(local: Vector, half_size: Vector, shape: Tensor) -> tuple[Vector, Tensor, Tensor]:
    """Return the normal in the object's frame and whether x or y is the dominant axis of a box face."""
    unit = tuple(p / h for p, h in zip(local, half_size, strict=True))
    size = tuple(u.abs() for u in unit)
    on_y = (size[1] >= size[0]) & (size[1] >= size[2])
    on_x = (size[0] > size[1]) & (size[0] >= size[2])
    is_box, is_ball, is_flat = shape == BOX, shape == ELLIPSOID, shape == BILLBOARD
    is_side = (shape == CYLINDER) & (size[1] < 0.999)
    zero = torch.zeros_like(unit[0])
    ball = tuple(u / h for u, h in zip(unit, half_size, strict=True))
    x = torch.where(is_ball | is_side, ball[0], torch.where(is_box & on_x, unit[0], zero))
    y = torch.where(is_ball, ball[1], torch.where((is_box & on_y) | ((shape == CYLINDER) & ~is_side), unit[1], zero))
    z = torch.where(is_ball | is_side, ball[2], torch.where(is_flat | (is_box & ~on_x & ~on_y), 1.0, zero))
    return (x, y, z), on_x & is_box, (on_y & is_box) | ((shape == CYLINDER) & ~is_side)


def _shade(scene: Scene, texels: Tensor, table: Tensor, view: View, depth: Tensor, surface: Tensor) -> Hit:
    """Return material, normal and place of the nearest surface of every pixel."""
    index = surface.flatten(1)
    parameter = [plane.gather(1, index).view(depth.shape) for plane in table.unbind(-1)]
    rotation, center, half_size, shape = parameter[:9], parameter[9:12], tuple(parameter[12:15]), parameter[24]
    direction = _camera_directions(view.world_from_camera, view)
    distance = depth.clamp_max(SKY_DISTANCE * 2)
    point = tuple(o + distance * d for o, d in zip(_planes(view.origin), direction, strict=True))
    relative = tuple(p - c for p, c in zip(point, center, strict=True))
    local = tuple(_dot(rotation[i::3], relative) for i in range(3))  # by the transposed rotation
    local_normal, on_x, on_y = _local_normal(local, half_size, shape)
    normal = tuple(_dot(rotation[3 * i : 3 * i + 3], local_normal) for i in range(3))
    toward, length = _dot(normal, direction), _dot(normal, normal).clamp_min(1e-20).rsqrt()
    outward = torch.where(toward > 0, -length, length)
    normal = tuple(n * outward for n in normal)
    cosine = (toward * length).abs() * _dot(direction, direction).rsqrt()

    is_round = (shape == ELLIPSOID) | ((shape == CYLINDER) & ~on_y)
    around = torch.atan2(local[0], local[2]) * half_size[0]
    across = torch.where(is_round, around, torch.where(on_x, local[2], local[0]))
    along = torch.where(on_y, local[2], local[1])
    color = _material(scene, texels, view, depth, direction, parameter, (across, along), cosine)
    lift = distance.clamp_max(100.0) * 1e-3
    lifted = tuple(p + n * lift for p, n in zip(point, normal, strict=True))
    return Hit(color, normal, _dot(normal, _planes(scene.light)).clamp_min(0), lifted, parameter[23])


def _material(
    scene: Scene,
    texels: Tensor,
    view: View,
    depth: Tensor,
    direction: Vector,
    parameter: list[Tensor],
    place: tuple[Tensor, Tensor],
    cosine: Tensor,
) -> Vector:
    """Sample the texture at a place (metres) of each surface, blurred by angle and defocus; clouds where sky is."""
    is_sky = depth > SKY_DISTANCE
    distance = depth.clamp_max(SKY_DISTANCE * 2)
    above = (-direction[1]).clamp_min(0) + CLOUD_HORIZON
    per_metre = 1 / parameter[16]
    u = torch.where(is_sky, direction[0] / above * CLOUD_TILES, place[0] * per_metre) + parameter[17]
    v = torch.where(is_sky, direction[2] / above * CLOUD_TILES, place[1] * per_metre) + parameter[18]
    texture = torch.where(is_sky, TEXTURES - 1.0, parameter[15])
    out_of_focus = (1 / distance - scene.focus[:, None, None]).abs() * scene.defocus[:, None, None]
    pixels = 1 / cosine.clamp_min(SMALLEST_COSINE) + out_of_focus
    sky_footprint = CLOUD_TILES / (above * above * view.focal_px)
    footprint = torch.where(is_sky, sky_footprint, distance / view.focal_px * per_metre * pixels)
    color = sample_texture(texels, texture, u, v, footprint)
    strength = torch.where(is_sky, 0.0, parameter[22])
    return tuple(torch.lerp(c, tint, strength) for c, tint in zip(color, parameter[19:22], strict=True))


def _finish(scene: Scene, view: View, hit: Hit, lit: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Light the picture, add highlights, haze and sky: light [B,3,H,W] and inverse depth [B,1,H,W]."""
    ambient, reach, haze, clouds = (
        plane[:, None, None] for plane in (scene.ambient, scene.lamp_reach, scene.haze, scene.clouds)
    )
    direction = _camera_directions(view.world_from_camera, view)
    inverse_length = _dot(direction, direction).rsqrt()
    sun = hit.facing * lit
    to_lamp = tuple(p - q for p, q in zip(hit.point, _planes(scene.lamp), strict=True))
    falloff = 1 / (1 + _dot(to_lamp, to_lamp) / (reach * reach))
    shade = (ambient * (0.82 - 0.18 * hit.normal[1]) + (DIRECT_LIGHT - ambient) * sun) * falloff
    halfway = tuple(q - d * inverse_length for q, d in zip(_planes(scene.light), direction, strict=True))
    cosine = _dot(hit.normal, halfway).clamp_min(0) * _dot(halfway, halfway).clamp_min(1e-6).rsqrt()
    highlight = (cosine * cosine) ** SHININESS * hit.shiny * (sun > 0)
    is_sky = depth > SKY_DISTANCE
    veil = 1 - torch.exp(-haze * depth.clamp_max(SKY_DISTANCE))
    elevation = (-direction[1] * inverse_length).clamp(0, 1).sqrt()
    colors = zip(
        hit.color, _planes(scene.light_color), _planes(scene.horizon_color), _planes(scene.zenith_color), strict=True
    )
    image = []
    for color, light_color, horizon, zenith in colors:
        value = torch.lerp(color * shade * light_color + highlight, horizon, veil)
        sky = torch.lerp(horizon, zenith, elevation)
        image.append(torch.where(is_sky, sky + (1 - sky) * clouds * color, value))
    return torch.stack(image, 1), torch.where(is_sky, 0.0, 1 / depth)[:, None]


def _expose(image: Tensor, exposure: Tensor, gamma: Tensor) -> Tensor:
    """Turn light [B,3,H,W] into a picture in [0,1], with an exposure and a gamma [B] per scene."""
    return (image * exposure[:, None, None, None]).clamp(1e-4, 1) ** gamma[:, None, None, None]


PLAIN_KERNELS = Kernels(_meet_from_camera, _meet_from_surface, _meet_walls, _shade, _finish, _expose, paint_textures)


@functools.cache
def compiled_kernels() -> Kernels:
    """Return the compiled per-pixel functions, made once per process."""
    return Kernels(*(torch.compile(kernel, dynamic=False) for kernel in PLAIN_KERNELS))


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


def _make_view(scene: Scene, right_by: Tensor, nearest: Tensor, height: int, width: int) -> View:
    """Return the scene's camera, moved to its right by [B] metres; nearest [B] metres is where its sight begins."""
    device = scene.focal_px.device
    focal_px = scene.focal_px[:, None, None]
    return View(
        origin=scene.world_from_camera[:, :, 0] * right_by[:, None],
        world_from_camera=scene.world_from_camera,
        focal_px=focal_px,
        columns=(torch.arange(width, device=device) + (0.5 - width / 2)) / focal_px,
        rows=(torch.arange(height, device=device) + (0.5 - height / 2))[:, None] / focal_px,
        nearest=nearest[:, None, None],
    )


def _render_view(
    scene: Scene, textures: Textures, view: View, shadows: bool, kernels: Kernels
) -> tuple[Tensor, Tensor]:
    """Return light [B,3,H,W] and inverse depth [B,1,H,W] of a view."""
    to_object = scene.rotation.transpose(-1, -2) / scene.half_size[..., None]  # [B,K,3,3]
    used = [slot for slot, active in enumerate(scene.active.any(0).tolist()) if active]
    depth, surface = _hide_by_objects(scene, textures, to_object, view, used, kernels)
    hit = kernels.shade(scene, textures.texels, _surface_table(scene), view, depth, surface)
    lit = torch.ones_like(depth)
    if shadows:
        lit = _cast_shadows(scene, textures, to_object, hit.point, lit, used, kernels)
    return kernels.finish(scene, view, hit, lit, depth)


def _hide_by_objects(
    scene: Scene, textures: Textures, to_object: Tensor, view: View, used: list[int], kernels: Kernels
) -> tuple[Tensor, Tensor]:
    """Return depth [B,H,W] and index of the nearest surface [B,H,W] of every pixel."""
    depth, surface = kernels.meet_walls(scene, view)
    from_camera = to_object @ scene.world_from_camera[:, None]
    start = (to_object @ (view.origin[:, None] - scene.center)[..., None])[..., 0]
    slots, present = torch.arange(SLOTS, device=depth.device), scene.active.float()
    for k in used:
        frame = from_camera[:, k], start[:, k]
        depth, surface = kernels.meet_from_camera(
            SLOT_SHAPES[k], slots[k], *frame, view, _alpha_of(textures, k), present[:, k], depth, surface
        )
    return depth, surface


def _cast_shadows(
    scene: Scene, textures: Textures, to_object: Tensor, point: Vector, lit: Tensor, used: list[int], kernels: Kernels
) -> Tensor:
    """Return how much of the light reaches every point: 1, or SHADOW_LIGHT behind an object; [B,H,W]."""
    slope = (to_object @ scene.light[:, None, :, None])[..., 0]
    present = (scene.active & scene.has_shadows[:, None]).float()
    for k in used:
        frame = to_object[:, k], scene.center[:, k], slope[:, k]
        lit = kernels.meet_from_surface(SLOT_SHAPES[k], *frame, point, _alpha_of(textures, k), present[:, k], lit)
    return lit


def _alpha_of(textures: Textures, slot: int) -> Tensor:
    """Return the alpha map of a billboard; shapes that have none get the first one and do not look at it."""
    return textures.alpha[:, slot - BILLBOARDS.start if SLOT_SHAPES[slot] == BILLBOARD else 0]


def _render_group(
    scene: Scene, textures: Textures, height: int, width: int, shadows: bool, kernels: Kernels
) -> SceneBatch:
    """Render both views of a few scenes; the left view decides baseline and exposure of both."""
    still, here = torch.zeros_like(scene.focal_px), torch.full_like(scene.focal_px, CLEARANCE)
    left_view = _make_view(scene, still, here, height, width)
    left_light, left_inverse = _render_view(scene, textures, left_view, shadows, kernels)
    largest_inverse = left_inverse.flatten(1).amax(1).clamp_min(1e-3)
    pixels_per_inverse = scene.disparity_fraction * width / largest_inverse  # focal_px * baseline
    baseline, nearest = pixels_per_inverse / scene.focal_px, 1 / (largest_inverse * LARGEST_RIGHT_RATIO)
    right_view = _make_view(scene, baseline, nearest, height, width)
    right_light, right_inverse = _render_view(scene, textures, right_view, shadows, kernels)
    exposure = scene.brightness / left_light.square().mean((1, 2, 3)).sqrt().clamp_min(0.02)
    left_image, right_image = (kernels.expose(light, exposure, scene.gamma) for light in (left_light, right_light))
    to_pixels = pixels_per_inverse[:, None, None, None]
    return SceneBatch(left_image, right_image, left_inverse * to_pixels, right_inverse * to_pixels)


@torch.no_grad()
def render_scenes(
    batch_size: int,
    height: int,
    width: int,
    *,
    generator: torch.Generator,
    shadows: bool = True,
    compiled: bool = False,
) -> SceneBatch:
    """Render stereo pairs of freshly drawn scenes, with exact disparity of both views.

    Args:
        batch_size: number of scenes.
        height: pixels.
        width: pixels; disparities are in pixels of this width. The largest left disparity is 3 % to 20 % of it.
        generator: decides the scenes; the pictures are made on its device. Equal seeds give equal bits on one machine
            and version of torch; the global random state is neither read nor changed.
        shadows: cast shadows, or not (faster).
        compiled: compile the per-pixel functions with torch.compile first (about a minute, needs a C++ compiler on
            CPU). The pictures agree with the uncompiled ones up to rounding.

    Returns:
        SceneBatch with images [B,3,H,W] in [0,1] and disparities [B,1,H,W] in pixels.

    Raises:
        ValueError: batch_size, height or width is below 1.
    """
    for name, value in (("batch_size", batch_size), ("height", height), ("width", width)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}.")
    draw = Draw(generator)
    scenes = sample_scenes(batch_size, height, width, draw)
    group = SCENES_PER_GROUP_CPU if generator.device.type == "cpu" else SCENES_PER_GROUP_GPU
    kernels = compiled_kernels() if compiled else PLAIN_KERNELS
    parts = []
    for start in range(0, batch_size, group):
        scene = Scene(*(field[start : start + group] for field in scenes))
        textures = make_textures(draw, len(scene.focal_px), kernels.paint)
        parts.append(_render_group(scene, textures, height, width, shadows, kernels))
    return SceneBatch(*(torch.cat(planes) for planes in zip(*parts, strict=True)))
