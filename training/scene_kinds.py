# SPDX-License-Identifier: Apache-2.0
"""The four kinds of procedural scene: street, room, table top, close-up; and their light, haze and focus.

They carry cues that photographs have: a ground that recedes, near things lower in the picture and larger, things that
rest on what carries them, floor, walls and ceiling, haze with distance; sitters before white, black and busy
backgrounds, so that neither dark nor bright means far.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from training.scene_layout import (
    BILLBOARDS,
    BOXES,
    BUSHES,
    CEILING,
    CROWNS,
    CYLINDERS,
    ELLIPSOIDS,
    FLOOR,
    HILLS,
    NEVER,
    OPEN,
    PERSON_A,
    PERSON_B,
    POLES,
    SLOTS,
    STONE,
    SURFACES,
    TRUNKS,
    UPRIGHT_WALLS,
    Draw,
    Layout,
    object_rotation,
)

STREET, ROOM, TABLE, CLOSE_UP = range(4)
KIND_PROBABILITIES = (0.30, 0.25, 0.20, 0.25)  # street, room, table, close-up
MIN_DISPARITY_FRACTION, MAX_DISPARITY_FRACTION = 0.03, 0.20  # largest left disparity as a fraction of the width


class Scene(NamedTuple):
    """Everything that a batch of scenes is made of; the first axis of every field is B."""

    focal_px: Tensor  # [B]
    world_from_camera: Tensor  # [B,3,3]
    wall_low: Tensor  # [B,3] x-, ceiling, behind; metres
    wall_high: Tensor  # [B,3] x+, floor, front
    active: Tensor  # [B,K] bool
    center: Tensor  # [B,K,3]
    half_size: Tensor  # [B,K,3]
    rotation: Tensor  # [B,K,3,3] world from object
    texture: Tensor  # [B,S] index of the texture
    texture_metres: Tensor  # [B,S] metres that one tile covers
    texture_offset: Tensor  # [B,S,2] tiles
    tint: Tensor  # [B,S,3]
    tint_strength: Tensor  # [B,S] 0 texture only, 1 plain colour
    specular: Tensor  # [B,S]
    light: Tensor  # [B,3] unit vector towards the light
    light_color: Tensor  # [B,3]
    ambient: Tensor  # [B]
    lamp: Tensor  # [B,3] position from which light falls off
    lamp_reach: Tensor  # [B] metres
    has_shadows: Tensor  # [B] bool
    haze: Tensor  # [B] per metre
    horizon_color: Tensor  # [B,3]
    zenith_color: Tensor  # [B,3]
    clouds: Tensor  # [B]
    focus: Tensor  # [B] inverse metres of the sharp plane
    defocus: Tensor  # [B] pixels of blur per inverse metre
    brightness: Tensor  # [B] root mean square of the exposed left view
    gamma: Tensor  # [B]
    disparity_fraction: Tensor  # [B]


def _street(draw: Draw, batch: int, height: int, width: int) -> Layout:
    """Outdoors: open sky, ground, buildings or hills along the sides, cars, poles, trees, people."""
    layout = Layout(draw, batch, height, width)
    uniform = draw.uniform
    layout.set_camera(uniform(0.65, 1.4, batch), draw.log_uniform(1.0, 5.0, batch), uniform(-0.12, 0.22, batch))
    far = torch.full((batch,), OPEN, device=draw.device)
    end = torch.where(draw.chance(0.3, batch), draw.log_uniform(25, 120, batch), far)
    layout.set_walls(far[:, None].expand(-1, 2), far, end)
    ground, near, middle = layout.camera_height, layout.camera_height * 1.8 + 1.0, uniform(25, 60, batch)
    layout.texture_metres[:, SLOTS:] = draw.log_uniform(1.0, 8.0, batch, 6)
    _color_ground(layout)
    _put_buildings(layout, ground)
    _put_vehicles(layout, near, middle)
    _put_hills_and_stones(layout, near, middle)
    _put_poles_and_trees(layout, near, middle)
    feet_a = layout.points_on(ground, 1, near * 1.2, middle * 0.5, 0.45)[:, 0]
    feet_b = layout.points_on(ground, 1, near * 1.2, middle * 0.5, 0.45)[:, 0]
    layout.put_person(PERSON_A, feet_a, uniform(1.5, 1.95, batch), draw.chance(0.55, batch))
    layout.put_person(PERSON_B, feet_b, uniform(1.5, 1.95, batch), draw.chance(0.45, batch))
    return layout


def _color_ground(layout: Layout) -> None:
    """Make most grounds look like asphalt, grass, sand, earth or snow."""
    draw, batch = layout.draw, layout.batch
    palette = torch.tensor(
        [[0.40, 0.40, 0.42], [0.33, 0.45, 0.20], [0.72, 0.63, 0.45], [0.42, 0.32, 0.22], [0.92, 0.93, 0.96]],
        device=draw.device,
    )
    natural = palette[draw.integers(0, len(palette), batch)] * draw.uniform(0.75, 1.08, batch, 3)
    usual = draw.chance(0.75, batch)
    layout.tint[:, FLOOR] = torch.where(usual[:, None], natural.clamp(0, 1), layout.tint[:, FLOOR])
    layout.tint_strength[:, FLOOR] = draw.uniform(0.0, 0.35, batch) + 0.5 * usual


def _put_buildings(layout: Layout, ground: Tensor) -> None:
    """Line four house fronts up along the street, two on each side, or leave the side open."""
    draw, batch = layout.draw, layout.batch
    street = draw.log_uniform(4.0, 18.0, batch, 1)
    side = torch.tensor([-1.0, -1.0, 1.0, 1.0], device=draw.device)
    length = draw.uniform(6, 20, batch, 4)
    wide = draw.uniform(3, 8, batch, 4)
    tall = draw.log_uniform(2.0, 12.0, batch, 4)
    start = draw.uniform(4, 14, batch, 4)
    start[:, 1::2] = start[:, ::2] + 2 * length[:, ::2] + draw.uniform(0, 8, batch, 2)
    across = side * (street + wide + draw.uniform(0, 2, batch, 4))
    base = torch.stack([across, ground[:, None].expand(-1, 4), start + length], -1)
    active = draw.chance(0.55, batch, 2).repeat_interleave(2, 1) & draw.chance(0.9, batch, 4)
    slots = slice(BOXES.start, BOXES.start + 4)
    layout.put(slots, base, torch.stack([wide, tall, length], -1), active, draw.normal(batch, 4) * 0.03)
    layout.texture[:, slots] = torch.where(draw.chance(0.75, batch, 4), 0, layout.texture[:, slots])
    layout.texture_metres[:, slots] = draw.uniform(6, 16, batch, 4)
    layout.tint_strength[:, slots] *= 0.75


def _put_vehicles(layout: Layout, near: Tensor, far: Tensor) -> None:
    """Put a car (body and cabin) and two more boxes on the ground."""
    draw, batch, ground = layout.draw, layout.batch, layout.camera_height
    points = layout.points_on(ground, 3, near * 1.3, far, 0.5)
    along = draw.chance(0.7, batch, 1)
    yaw = torch.where(along, 0.0, math.pi / 2) + draw.normal(batch, 1) * 0.15
    body = torch.tensor([0.85, 0.45, 2.1], device=draw.device) * draw.uniform(0.9, 1.2, batch, 1, 3)
    car = draw.chance(0.55, batch, 1)
    first = BOXES.start + 4
    layout.put(slice(first, first + 1), points[:, :1], body, car, yaw)
    roof = points[:, :1].clone()
    roof[..., 1] -= 2 * body[..., 1]
    layout.put(slice(first + 1, first + 2), roof, body * torch.tensor([0.9, 0.7, 0.55], device=draw.device), car, yaw)
    layout.tint_strength[:, first : first + 2] = draw.uniform(0.6, 1.0, batch, 1)
    layout.specular[:, first : first + 2] = 0.5
    crate = draw.log_uniform(0.15, 1.2, batch, 2, 3)
    layout.put(slice(first + 2, first + 4), points[:, 1:], crate, draw.chance(0.5, batch, 2))
    layout.texture_by_size(slice(first, first + 4), 0.5, 2.5)


def _put_hills_and_stones(layout: Layout, near: Tensor, far: Tensor) -> None:
    """Put two hills on the horizon and one stone or bush on the ground."""
    draw, batch, ground = layout.draw, layout.batch, layout.camera_height
    hills = layout.points_on(ground, 2, torch.full_like(far, 120.0), torch.full_like(far, 400.0), 0.7)
    hill_size = draw.log_uniform(10, 60, batch, 2, 3) * torch.tensor([2.0, 0.8, 1.0], device=draw.device)
    layout.put(HILLS, hills, hill_size, draw.chance(0.4, batch, 2))
    layout.center[:, HILLS, 1] += hill_size[..., 1] * draw.uniform(0.3, 0.9, batch, 2)
    stone = draw.log_uniform(0.2, 1.0, batch, 1, 3)
    layout.put(STONE, layout.points_on(ground, 1, near * 1.2, far * 0.5), stone, draw.chance(0.5, batch, 1))
    layout.center[:, STONE, 1] += stone[..., 1] * 0.4
    layout.texture_by_size(ELLIPSOIDS, 0.2, 1.0)


def _put_poles_and_trees(layout: Layout, near: Tensor, far: Tensor) -> None:
    """Put two poles, two trees (trunk and crown), a far row of trees and two bushes on the ground."""
    draw, batch, ground = layout.draw, layout.batch, layout.camera_height
    poles = layout.points_on(ground, 2, near * 1.2, far * 0.6)
    thin = draw.log_uniform(0.03, 0.12, batch, 2)
    layout.put(POLES, poles, torch.stack([thin, draw.uniform(1, 4, batch, 2), thin], -1), draw.chance(0.5, batch, 2))
    trees = layout.points_on(ground, 2, near * 1.6, far)
    crown = draw.uniform(1.0, 3.0, batch, 2)
    trunk = draw.uniform(0.7, 1.6, batch, 2)
    thick = draw.uniform(0.08, 0.25, batch, 2)
    tree = draw.chance(0.55, batch, 2)
    layout.put(TRUNKS, trees, torch.stack([thick, trunk, thick], -1), tree)
    top = trees.clone()
    top[..., 1] -= trunk * 1.6
    top[..., 2] -= thick * 1.2
    facing = draw.normal(batch, 2) * 0.15
    layout.put(CROWNS, top, torch.stack([crown, crown * draw.uniform(0.8, 1.5, batch, 2), crown], -1), tree, facing)
    bushes = layout.points_on(ground, 3, near * 1.3, far * 1.5)
    size = draw.log_uniform(0.3, 2.0, batch, 3)
    size[:, 0] *= 3
    half_size = torch.stack([size * draw.uniform(1, 2.5, batch, 3), size, size], -1)
    layout.put(BUSHES, bushes, half_size, draw.chance(0.5, batch, 3), draw.normal(batch, 3) * 0.2)
    layout.texture_by_size(slice(CYLINDERS.start, SLOTS), 0.3, 1.5)
    green = torch.tensor([0.35, 0.6, 0.2], device=draw.device) * draw.uniform(0.3, 1.2, batch, 5, 3)
    layout.tint[:, BILLBOARDS] = torch.where(draw.chance(0.75, batch, 5, 1), green, layout.tint[:, BILLBOARDS]).clamp(
        0, 1
    )
    layout.tint_strength[:, BILLBOARDS] = draw.uniform(0.4, 0.8, batch, 5)


def _room(draw: Draw, batch: int, height: int, width: int) -> Layout:
    """Indoors: floor, walls, ceiling, furniture along the walls, a table, a rug, pictures, plants, people."""
    layout = Layout(draw, batch, height, width)
    uniform = draw.uniform
    layout.set_camera(uniform(0.6, 1.2, batch), uniform(0.9, 1.8, batch), uniform(-0.08, 0.35, batch))
    front = draw.log_uniform(2.5, 9.0, batch)
    layout.set_walls(uniform(1.0, 4.5, batch, 2), uniform(0.7, 1.8, batch), front)
    floor = layout.camera_height
    layout.texture_metres[:, SLOTS:] = draw.log_uniform(0.4, 4.0, batch, 6)
    _paint_walls(layout)
    _put_furniture(layout, front)
    _put_table(layout, front)
    near, far = torch.full_like(front, 1.2), front * 0.9
    decorations = layout.points_on(floor, 3, near, far, 0.5)
    layout.put(ELLIPSOIDS, decorations, draw.log_uniform(0.06, 0.35, batch, 3, 3), draw.chance(0.4, batch, 3))
    layout.texture_by_size(ELLIPSOIDS, 0.4, 2.0)
    plants = layout.points_on(floor, 5, near * 1.2, far, 0.5)
    size = draw.log_uniform(0.15, 0.6, batch, 5)
    tall = size * draw.uniform(1.0, 2.0, batch, 5)
    layout.put(
        BILLBOARDS,
        plants,
        torch.stack([size, tall, size], -1),
        draw.chance(0.2, batch, 5),
        draw.normal(batch, 5) * 0.4,
    )
    layout.texture_by_size(BILLBOARDS, 0.3, 1.5)
    feet_a = layout.points_on(floor, 1, near * 1.3, far, 0.4)[:, 0]
    feet_b = layout.points_on(floor, 1, near * 1.5, far, 0.4)[:, 0]
    layout.put_person(PERSON_A, feet_a, uniform(1.45, 1.9, batch), draw.chance(0.45, batch))
    layout.put_person(PERSON_B, feet_b, uniform(1.3, 1.9, batch), draw.chance(0.25, batch))
    return layout


def _paint_walls(layout: Layout) -> None:
    """Let the four walls mostly share one paint, and keep the ceiling pale."""
    draw, batch = layout.draw, layout.batch
    walls = UPRIGHT_WALLS
    shared = draw.chance(0.8, batch, 1)
    for field in (layout.texture, layout.texture_metres, layout.tint_strength):
        field[:, walls] = torch.where(shared, field[:, walls[:1]].expand(-1, 4), field[:, walls])
    layout.tint[:, walls] = torch.where(
        shared[..., None], layout.tint[:, walls[:1]].expand(-1, 4, 3), layout.tint[:, walls]
    )
    plain = draw.chance(0.6, batch, 1)
    layout.tint_strength[:, walls] = torch.where(
        plain, draw.uniform(0.85, 1, batch, 1), layout.tint_strength[:, walls]
    )
    layout.tint[:, CEILING] = 1 - 0.35 * draw.uniform(0, 1, batch, 1) * draw.uniform(0.5, 1, batch, 3)
    layout.tint_strength[:, CEILING] = draw.uniform(0.8, 1.0, batch)


def _put_furniture(layout: Layout, front: Tensor) -> None:
    """Put a wardrobe, a sofa (seat and back), a picture on the wall, a rug and a crate into the room."""
    draw, batch, floor = layout.draw, layout.batch, layout.camera_height
    left, right = layout.wall_low[:, 0], layout.wall_high[:, 0]
    uniform = draw.uniform

    wardrobe = torch.stack([uniform(0.25, 0.8, batch), uniform(0.4, 1.1, batch), uniform(0.2, 0.4, batch)], -1)
    at_left = draw.chance(0.5, batch)
    x = torch.where(at_left, left + wardrobe[:, 0], right - wardrobe[:, 0])
    z = front - wardrobe[:, 2] - uniform(0, 1, batch) * (front - 2).clamp_min(0) * 0.6
    sofa = torch.stack([uniform(0.5, 1.1, batch), uniform(0.18, 0.28, batch), uniform(0.3, 0.5, batch)], -1)
    sofa_x = uniform(-0.4, 0.4, batch) * (right - left) + (left + right) / 2
    sofa_z = torch.minimum(front - sofa[:, 2], 1.6 + uniform(0, 1, batch) * front)
    back = torch.stack([sofa[:, 0], sofa[:, 1] * uniform(1.6, 2.2, batch), torch.full_like(front, 0.09)], -1)
    picture = torch.stack([uniform(0.15, 0.8, batch), uniform(0.15, 0.6, batch), torch.full_like(front, 0.02)], -1)
    picture_x = uniform(-0.3, 0.3, batch) * front
    rug = torch.stack([uniform(0.5, 1.4, batch), torch.full_like(front, 0.008), uniform(0.5, 1.4, batch)], -1)
    crate = draw.log_uniform(0.1, 0.4, batch, 3)
    crate_at = layout.points_on(floor, 1, torch.full_like(front, 1.3), front * 0.9)[:, 0]
    base = [
        torch.stack([x, floor, z], -1),
        torch.stack([sofa_x, floor, sofa_z], -1),
        torch.stack([sofa_x, floor, sofa_z + sofa[:, 2]], -1),
        torch.stack([picture_x, picture[:, 1] - uniform(0.0, 0.7, batch), front - 0.02], -1),
        torch.stack([uniform(-0.6, 0.6, batch), floor, uniform(1.8, 4.0, batch)], -1),
        crate_at,
    ]
    active = draw.chance(0.6, batch, 6)
    active[:, 2] = active[:, 1]
    yaw = draw.normal(batch, 6) * torch.tensor([0.0, 0.0, 0.0, 0.0, 0.3, 1.0], device=draw.device)
    slots = slice(BOXES.start, BOXES.start + 6)
    layout.put(slots, torch.stack(base, 1), torch.stack([wardrobe, sofa, back, picture, rug, crate], 1), active, yaw)
    layout.texture_by_size(slots, 0.3, 1.2)
    layout.copy_surface(BOXES.start + 1, BOXES.start + 2)


def _put_table(layout: Layout, front: Tensor) -> None:
    """Put a table (top and two legs), a box and a lamp-like cylinder on it, into the room."""
    draw, batch, floor = layout.draw, layout.batch, layout.camera_height
    uniform = draw.uniform
    tall = uniform(0.45, 0.8, batch)
    nearest = torch.full_like(front, 1.7)
    center = layout.points_on(floor, 1, nearest, torch.maximum(front * 0.8, nearest * 1.1), 0.4)[:, 0]
    top = torch.stack([uniform(0.3, 0.8, batch), torch.full_like(front, 0.025), uniform(0.25, 0.5, batch)], -1)
    surface = center - torch.stack([torch.zeros_like(tall), tall, torch.zeros_like(tall)], -1)
    table = draw.chance(0.55, batch)
    thing = draw.log_uniform(0.04, 0.18, batch, 3)
    thing_at = surface + torch.stack(
        [uniform(-0.7, 0.7, batch) * top[:, 0], torch.full_like(tall, -0.05), tall * 0], -1
    )
    slots = slice(BOXES.start + 6, BOXES.start + 8)
    both = torch.stack([table, table & draw.chance(0.7, batch)], 1)
    layout.put(slots, torch.stack([surface, thing_at], 1), torch.stack([top, thing], 1), both)
    layout.yaw[:, slots.start] = 0
    thin = uniform(0.02, 0.04, batch, 2)
    legs = center[:, None].repeat(1, 2, 1)
    legs[..., 0] += 0.85 * top[:, None, 0] * torch.tensor([-1.0, 1.0], device=draw.device)
    layout.put(POLES, legs, torch.stack([thin, tall[:, None].expand(-1, 2) / 2, thin], -1), table[:, None])
    vessel = torch.stack([surface, surface], 1)
    vessel[..., 0] += top[:, None, 0] * uniform(-0.8, 0.8, batch, 2)
    vessel[..., 1] -= 0.05
    wide = draw.log_uniform(0.03, 0.1, batch, 2)
    half_size = torch.stack([wide, wide * draw.uniform(0.6, 3, batch, 2), wide], -1)
    layout.put(TRUNKS, vessel, half_size, table[:, None] & draw.chance(0.6, batch, 2))
    layout.texture_by_size(slice(slots.start, CYLINDERS.stop), 0.4, 2.0)


def _table(draw: Draw, batch: int, height: int, width: int) -> Layout:
    """Look down at a table top with things on it, a wall or a room behind it."""
    layout = Layout(draw, batch, height, width)
    uniform = draw.uniform
    pitch = uniform(0.25, 1.1, batch)
    above = draw.log_uniform(0.25, 0.7, batch)  # camera above the table top
    layout.set_camera(uniform(0.8, 1.5, batch), above + uniform(0.5, 0.9, batch), pitch)
    front = uniform(1.2, 4.0, batch)
    layout.set_walls(uniform(1.0, 3.0, batch, 2), uniform(0.8, 2.0, batch), front)
    layout.texture_metres[:, SLOTS:] = draw.log_uniform(0.2, 2.0, batch, 6)
    _paint_walls(layout)
    middle = above / pitch.tan()  # where the camera looks
    slab = torch.stack(
        [uniform(0.4, 1.6, batch), torch.full_like(front, 0.02), middle * 0.8 + uniform(0.1, 0.6, batch)], -1
    )
    slab_z = torch.maximum(slab[:, 2] * 0.9, slab[:, 2] - 0.2)
    base = torch.stack([uniform(-0.25, 0.25, batch), above + 0.04, slab_z], -1)
    on = torch.ones(batch, 1, dtype=torch.bool, device=draw.device)
    layout.put(slice(BOXES.start, BOXES.start + 1), base[:, None], slab[:, None], on, draw.normal(batch, 1) * 0.08)
    layout.texture_metres[:, BOXES.start] = draw.log_uniform(0.2, 1.5, batch)
    _put_things_on_table(layout, above, middle)
    return layout


def _put_things_on_table(layout: Layout, above: Tensor, middle: Tensor) -> None:
    """Spread boxes, fruit, cups, bottles and a plant over the table."""
    draw, batch = layout.draw, layout.batch
    reach = above / torch.sin(torch.atan2(above, middle))  # distance to the point looked at
    near, far = middle * 0.55, middle * 1.5 + 0.1
    scale = (reach * 0.12)[:, None]

    def spread(count: int) -> Tensor:
        distance = torch.lerp(near[:, None], far[:, None], draw.uniform(0, 1, batch, count))
        across = draw.uniform(-0.5, 0.5, batch, count) * (layout.width / layout.focal_px * reach)[:, None]
        return torch.stack([across, above[:, None].expand_as(across), distance], -1)

    slots = slice(BOXES.start + 1, BOXES.stop)
    size = scale[..., None] * draw.log_uniform(0.25, 1.6, batch, 7, 3)
    flat = draw.chance(0.35, batch, 7)
    size[..., 1] = torch.where(flat, size[..., 1] * 0.2, size[..., 1])
    layout.put(slots, spread(7), size, draw.chance(0.35, batch, 7))
    fruit = scale[..., None] * draw.log_uniform(0.35, 1.2, batch, 3, 1) * draw.uniform(0.8, 1.2, batch, 3, 3)
    layout.put(ELLIPSOIDS, spread(3), fruit, draw.chance(0.55, batch, 3))
    wide = scale * draw.log_uniform(0.3, 0.9, batch, 4)
    wide[:, :2] *= 0.35  # bottles and candles
    tall = wide * draw.uniform(0.5, 2.0, batch, 4)
    tall[:, :2] *= 3
    layout.put(CYLINDERS, spread(4), torch.stack([wide, tall, wide], -1), draw.chance(0.5, batch, 4))
    leaf = scale * draw.uniform(0.6, 1.6, batch, 5)
    half_size = torch.stack([leaf, leaf * draw.uniform(0.8, 1.8, batch, 5), leaf], -1)
    layout.put(BILLBOARDS, spread(5), half_size, draw.chance(0.12, batch, 5), draw.normal(batch, 5) * 0.3)
    layout.texture_by_size(slice(slots.start, SLOTS), 0.4, 2.5)


def _close_up(draw: Draw, batch: int, height: int, width: int) -> Layout:
    """Show a person or a thing near the camera before a plain backdrop, a room or the open air."""
    layout = Layout(draw, batch, height, width)
    uniform = draw.uniform
    distance = uniform(0.7, 2.2, batch)
    layout.set_camera(uniform(0.8, 1.6, batch), uniform(1.2, 1.7, batch), uniform(-0.12, 0.12, batch))
    outdoors = draw.chance(0.3, batch)
    far = torch.full((batch,), OPEN, device=draw.device)
    front = torch.where(outdoors, far, distance + draw.log_uniform(0.4, 5.0, batch))
    side = torch.where(outdoors[:, None], OPEN, uniform(1.2, 4.0, batch, 2))
    layout.set_walls(side, torch.where(outdoors, far, uniform(0.8, 2.0, batch)), front)
    layout.texture_metres[:, SLOTS:] = draw.log_uniform(0.4, 3.0, batch, 6)
    _paint_walls(layout)
    _hang_backdrop(layout, outdoors)
    _put_sitter(layout, distance)
    behind = torch.where(outdoors, uniform(8, 30, batch), (front * 0.95).clamp_min(1.0))
    start = torch.minimum(distance + 0.6, behind * 0.9)
    _put_behind(layout, start, behind)
    return layout


def _hang_backdrop(layout: Layout, outdoors: Tensor) -> None:
    """Make half of the walls behind a sitter one plain colour: white, black or any."""
    draw, batch = layout.draw, layout.batch
    plain = draw.chance(0.55, batch) & ~outdoors
    choice = draw.uniform(0, 1, batch, 1)
    paint = torch.where(choice < 0.4, 0.85 + 0.15 * draw.uniform(0, 1, batch, 1), draw.colors(batch))
    paint = torch.where(choice > 0.7, 0.06 * draw.uniform(0, 1, batch, 1), paint)
    layout.plain_backdrop = plain
    for wall in range(SLOTS, SURFACES):
        layout.tint[:, wall] = torch.where(plain[:, None], paint, layout.tint[:, wall])
        layout.tint_strength[:, wall] = torch.where(plain, 0.985, layout.tint_strength[:, wall])


def _put_sitter(layout: Layout, distance: Tensor) -> None:
    """Put a person's upper body, or one big thing, near the camera."""
    draw, batch, floor = layout.draw, layout.batch, layout.camera_height
    person = draw.chance(0.7, batch)
    tall = draw.uniform(1.45, 1.9, batch)
    across = draw.uniform(-0.2, 0.2, batch) * layout.width / layout.focal_px * distance
    head_height = draw.uniform(-0.18, 0.02, batch) * distance  # above or below the camera, y down
    feet = torch.stack([across, tall * 0.92 + head_height, distance], -1)
    layout.put_person(PERSON_A, feet, tall, person)
    second = feet + torch.stack(
        [draw.uniform(0.4, 0.8, batch) * draw.normal(batch).sign(), distance * 0, distance * 0.3], -1
    )
    layout.put_person(PERSON_B, second, tall * draw.uniform(0.9, 1.05, batch), person & draw.chance(0.3, batch))
    size = distance[:, None] * draw.log_uniform(0.08, 0.25, batch, 3)
    pedestal = draw.uniform(0.1, 0.35, batch) * distance
    base = torch.stack([across, pedestal, distance], -1)[:, None]
    thing = draw.integers(0, 3, batch, 1)
    for shape, slot in enumerate((BOXES.start, ELLIPSOIDS.start, CYLINDERS.start + 2)):
        layout.put(slice(slot, slot + 1), base, size[:, None], (thing == shape) & ~person[:, None])
        layout.texture_by_size(slice(slot, slot + 1), 0.3, 2.0)
    support = BOXES.start + 1
    slab = torch.stack([distance * 2, floor * 0 + 0.03, distance * draw.uniform(0.2, 0.6, batch)], -1)[:, None]
    under = torch.stack([across * 0, pedestal + 0.06, distance], -1)[:, None]
    layout.put(
        slice(support, support + 1), under, slab, ~person[:, None] & draw.chance(0.85, batch, 1), distance[:, None] * 0
    )
    layout.texture_metres[:, support] = distance * draw.log_uniform(0.2, 1.0, batch)


def _put_behind(layout: Layout, start: Tensor, end: Tensor) -> None:
    """Fill the background of a close-up with boxes, cylinders and plants; nothing before a plain backdrop."""
    draw, batch, floor = layout.draw, layout.batch, layout.camera_height
    free = ~layout.plain_backdrop[:, None]
    size = (end * 0.12)[:, None, None] * draw.log_uniform(0.4, 2.5, batch, 6, 3)
    slots = slice(BOXES.start + 2, BOXES.stop)
    layout.put(slots, layout.points_on(floor, 6, start * 1.2, end), size, draw.chance(0.35, batch, 6) & free)
    wide = (end * 0.04)[:, None] * draw.log_uniform(0.2, 1.5, batch, 2)
    tall = floor[:, None] * draw.uniform(0.5, 1.1, batch, 2)
    poles = layout.points_on(floor, 2, start, end)
    layout.put(POLES, poles, torch.stack([wide, tall, wide], -1), draw.chance(0.35, batch, 2) & free)
    leaf = (end * 0.10)[:, None] * draw.log_uniform(0.4, 1.8, batch, 5)
    half_size = torch.stack([leaf, leaf * draw.uniform(0.8, 2.0, batch, 5), leaf], -1)
    plants = layout.points_on(floor, 5, start * 1.1, end)
    layout.put(BILLBOARDS, plants, half_size, draw.chance(0.3, batch, 5) & free, draw.normal(batch, 5) * 0.3)
    layout.texture_by_size(slice(slots.start, slots.stop), 0.3, 1.5)
    layout.texture_by_size(BILLBOARDS, 0.3, 1.5)


def sample_scenes(batch: int, height: int, width: int, draw: Draw) -> Scene:
    """Draw the layout, light and camera of `batch` scenes; textures are drawn later, group by group."""
    layouts = [make(draw, batch, height, width) for make in (_street, _room, _table, _close_up)]
    edges = torch.tensor(KIND_PROBABILITIES, device=draw.device).cumsum(0)
    kind = torch.bucketize(draw.uniform(0, 1, batch), edges[:-1])
    rows = torch.arange(batch, device=draw.device)

    def chosen(name: str) -> Tensor:
        return torch.stack([getattr(layout, name) for layout in layouts])[kind, rows]

    outdoors = chosen("wall_low")[:, 1] < -OPEN / 2
    return Scene(
        **{
            name: chosen(name)
            for name in (
                "focal_px world_from_camera wall_low wall_high active center half_size texture texture_metres tint"
                " tint_strength specular"
            ).split()
        },
        rotation=object_rotation(chosen("yaw"), chosen("tilt")),
        texture_offset=draw.uniform(0, 1, batch, SURFACES, 2),
        disparity_fraction=draw.uniform(MIN_DISPARITY_FRACTION, MAX_DISPARITY_FRACTION, batch),
        **_sample_light(draw, batch, outdoors, kind),
    )


def _sample_light(draw: Draw, batch: int, outdoors: Tensor, kind: Tensor) -> dict[str, Tensor]:
    """Draw light, haze, sky, focus and exposure."""
    uniform = draw.uniform
    light = torch.stack([uniform(-1, 1, batch), -uniform(0.35, 1.3, batch), uniform(-1.2, 0.5, batch)], -1)
    lamp = torch.stack([uniform(-2, 2, batch), uniform(-1.8, 0.2, batch), uniform(-0.5, 4, batch)], -1)
    bright = uniform(0.55, 1.0, batch, 1)
    haze = torch.where(outdoors, uniform(0, 1, batch) ** 3 * 0.04 + 0.0015, 0.0)
    horizon = bright * (1 - 0.25 * uniform(0, 1, batch, 3) * draw.chance(0.6, batch, 1))
    blue = torch.stack([uniform(0.2, 0.75, batch), uniform(0.4, 0.85, batch), uniform(0.7, 1.0, batch)], -1)
    blurred = draw.chance(0.6, batch) & (kind == CLOSE_UP)
    return {
        "light": light / light.norm(dim=-1, keepdim=True),
        "light_color": 1 - 0.3 * (1 - draw.colors(batch)) * draw.chance(0.6, batch, 1),
        "ambient": uniform(0.25, 0.75, batch),
        "lamp": lamp,
        "lamp_reach": torch.where(outdoors, NEVER, draw.log_uniform(3.0, 20.0, batch)),
        "has_shadows": draw.chance(0.8, batch),
        "haze": haze,
        "horizon_color": horizon.clamp(0, 1),
        "zenith_color": blue * bright,
        "clouds": uniform(0, 1, batch) * draw.chance(0.7, batch),
        "focus": 1 / uniform(0.7, 2.2, batch),
        "defocus": torch.where(blurred, uniform(2, 14, batch), 0.0),
        "brightness": uniform(0.25, 0.7, batch),
        "gamma": draw.log_uniform(0.7, 1.25, batch),
    }
