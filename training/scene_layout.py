# SPDX-License-Identifier: Apache-2.0
"""What a procedural scene is made of: random numbers, object slots, and the placing of people, objects and walls.

Convention: world x right, y DOWN, z forward, metres; the camera of the left view stands at the origin.

Shape letters: B scenes, K object slots, S surfaces (objects, then the six walls).
"""

import math

import torch
from torch import Tensor

BOX, ELLIPSOID, CYLINDER, BILLBOARD = range(4)

# Object slots: the shape of a slot is fixed, its use depends on the kind of scene.
PERSON_A = slice(0, 8)  # hair, head, torso, shoulders, two arms, two legs
PERSON_B = slice(8, 12)  # head, torso, two legs
BOXES = slice(12, 20)
ELLIPSOIDS = slice(20, 23)
CYLINDERS = slice(23, 27)
BILLBOARDS = slice(27, 32)
HILLS, STONE = slice(20, 22), slice(22, 23)  # parts of the ELLIPSOIDS
POLES, TRUNKS = slice(23, 25), slice(25, 27)  # parts of the CYLINDERS; in rooms the legs of a table, and what is on it
CROWNS, BUSHES = slice(27, 29), slice(29, 32)  # parts of the BILLBOARDS
SLOT_SHAPES = (ELLIPSOID,) * 12 + (BOX,) * 8 + (ELLIPSOID,) * 3 + (CYLINDER,) * 4 + (BILLBOARD,) * 5
SLOTS = len(SLOT_SHAPES)
SURFACES = SLOTS + 6  # the walls follow the objects: x-, x+, ceiling, floor, behind, front
CEILING, FLOOR = SLOTS + 2, SLOTS + 3
UPRIGHT_WALLS = [SLOTS, SLOTS + 1, SLOTS + 4, SLOTS + 5]

OPEN = 1e4  # metres: a wall so far away does not exist
NEVER = 1e9  # metres
TEXTURES = 9  # per scene; the first is a facade, the last one the clouds


class Draw:
    """Random numbers of one generator, on its device."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator
        self.device = generator.device

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return numbers between low and high."""
        return torch.rand(*shape, generator=self.generator, device=self.device) * (high - low) + low

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return numbers between low and high whose logarithm is uniform."""
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers."""
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def chance(self, probability: float, *shape: int) -> Tensor:
        """Return booleans that are True with the given probability."""
        return torch.rand(*shape, generator=self.generator, device=self.device) < probability

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Return integers of low ... high - 1."""
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)

    def colors(self, *shape: int) -> Tensor:
        """Return colours [...,3] of any hue, more often pale than saturated, of any brightness."""
        hue, value = self.uniform(0, 6, *shape), self.uniform(0.08, 1.0, *shape)
        saturation = self.uniform(0, 1, *shape) ** 2
        wheel = (hue[..., None] + torch.tensor([5.0, 3.0, 1.0], device=self.device)) % 6
        ramp = torch.minimum(wheel, 4 - wheel).clamp(0, 1)
        return value[..., None] * (1 - saturation[..., None] * ramp)


class Layout:
    """The objects and surfaces of B scenes of one kind while they are being placed."""

    def __init__(self, draw: Draw, batch: int, height: int, width: int):
        self.draw, self.batch, self.height, self.width = draw, batch, height, width
        device = draw.device
        self.active = torch.zeros(batch, SLOTS, dtype=torch.bool, device=device)
        self.center = torch.zeros(batch, SLOTS, 3, device=device)
        self.half_size = torch.ones(batch, SLOTS, 3, device=device)
        self.yaw = draw.uniform(-math.pi, math.pi, batch, SLOTS)
        self.tilt = torch.zeros(batch, SLOTS, 2, device=device)
        self.texture = draw.integers(1, TEXTURES - 1, batch, SURFACES)
        self.texture_metres = torch.ones(batch, SURFACES, device=device)
        self.tint = draw.colors(batch, SURFACES)
        self.tint_strength = draw.uniform(0, 0.9, batch, SURFACES) * draw.chance(0.7, batch, SURFACES)
        self.specular = draw.uniform(0, 1, batch, SURFACES) ** 2 * 0.5
        self.specular[:, SLOTS:] *= draw.chance(0.15, batch, 6)

    def set_camera(self, focal: Tensor, camera_height: Tensor, pitch: Tensor) -> None:
        """Put the camera above the floor; pitch > 0 looks down; a little roll as in photographs."""
        self.focal_px = focal * self.width
        self.camera_height = camera_height
        roll = self.draw.normal(self.batch) * 0.035
        self.world_from_camera = rotation_x(-pitch) @ rotation_z(roll)

    def set_walls(self, side: Tensor, ceiling: Tensor, front: Tensor) -> None:
        """Place the walls: side [B,2] and front [B] metres from the camera, ceiling [B] metres above it."""
        behind = torch.full_like(front, OPEN)
        self.wall_low = torch.stack([-side[:, 0], -ceiling, -behind], -1)
        self.wall_high = torch.stack([side[:, 1], self.camera_height, front], -1)

    def points_on(
        self, support: Tensor, count: int, nearest: Tensor, farthest: Tensor, spread: float = 0.55
    ) -> Tensor:
        """Return [B,count,3] points of the plane `support` metres below the camera that the picture shows.

        Distances are log-uniform between nearest and farthest where the picture shows them.
        """
        distance = torch.exp(
            torch.lerp(nearest.log()[:, None], farthest.log()[:, None], self.draw.uniform(0, 1, self.batch, count))
        )
        across = (
            self.draw.uniform(-spread, spread, self.batch, count) * (self.width / self.focal_px)[:, None] * distance
        )
        return torch.stack([across, support[:, None].expand_as(across), distance], -1)

    def put(self, slots: slice, base: Tensor, half_size: Tensor, active: Tensor, yaw: Tensor | None = None) -> None:
        """Stand objects on their base points [B,n,3]; half_size [B,n,3]; active [B,n]."""
        self.center[:, slots] = base
        self.center[:, slots, 1] -= half_size[..., 1]
        self.half_size[:, slots] = half_size
        self.active[:, slots] = active
        if yaw is not None:
            self.yaw[:, slots] = yaw

    def put_person(self, slots: slice, feet: Tensor, tall: Tensor, active: Tensor) -> None:
        """Stand a person with the parts of the slots on feet [B,3]; tall [B] metres."""
        full = slots == PERSON_A
        offset, half_size = _person_parts(self.draw, self.batch, full)
        yaw = self.draw.uniform(-0.7, 0.7, self.batch, 1)
        x, y, z = (offset * tall[:, None, None]).unbind(-1)
        turned = torch.stack([x * yaw.cos() + z * yaw.sin(), y, z * yaw.cos() - x * yaw.sin()], -1)
        self.center[:, slots] = feet[:, None] + turned
        self.half_size[:, slots] = half_size * tall[:, None, None]
        self.active[:, slots] = active[:, None]
        self.yaw[:, slots] = yaw
        limbs = slice(slots.start + 4, slots.stop) if full else slice(slots.start + 2, slots.stop)
        count = limbs.stop - limbs.start
        self.tilt[:, limbs] = self.draw.normal(self.batch, count, 2) * 0.12
        self._dress_person(slots, full, tall)

    def _dress_person(self, slots: slice, full: bool, tall: Tensor) -> None:
        """Give skin, hair and clothes their colours."""
        draw, batch, first = self.draw, self.batch, slots.start
        device = draw.device
        skin = torch.tensor([0.95, 0.74, 0.60], device=device) * draw.uniform(0.3, 1.0, batch, 1)
        skin = skin * draw.uniform(0.92, 1.08, batch, 3)
        hair = torch.tensor([0.75, 0.55, 0.35], device=device) * draw.uniform(0.03, 1.0, batch, 1) ** 1.5
        self.specular[:, slots] *= 0.3
        self.texture_metres[:, slots] = (tall * 0.35)[:, None] * draw.log_uniform(0.4, 2.0, batch, 1)
        head = first + 1 if full else first
        self.tint[:, head], self.tint_strength[:, head] = skin.clamp(0, 1), 0.9
        if full:
            self.tint[:, first], self.tint_strength[:, first] = hair, 0.8
            for part in (first + 3, first + 4, first + 5):  # shoulders and sleeves as the torso
                self.copy_surface(first + 2, part)
        self.copy_surface(slots.stop - 2, slots.stop - 1)  # both legs wear the same trousers

    def copy_surface(self, source: int, target: int) -> None:
        """Give one surface the looks of another."""
        for field in (self.texture, self.texture_metres, self.tint, self.tint_strength, self.specular):
            field[:, target] = field[:, source]

    def texture_by_size(self, slots: slice, low: float, high: float) -> None:
        """Let one texture tile cover low ... high times an object's size."""
        size = self.half_size[:, slots].amax(-1) * 2
        self.texture_metres[:, slots] = size * self.draw.log_uniform(low, high, *size.shape)


def _person_parts(draw: Draw, batch: int, full: bool) -> tuple[Tensor, Tensor]:
    """Return offsets from the feet and half sizes of a person of height 1: [B,parts,3] each (y down)."""
    hair = ((0.0, -0.945, 0.012), (0.062, 0.062, 0.072))
    head = ((0.0, -0.915, 0.0), (0.055, 0.080, 0.065))
    torso = ((0.0, -0.650, 0.0), (0.108, 0.215, 0.075))
    arms = [((side * 0.122, -0.630, -0.01), (0.030, 0.195, 0.038)) for side in (-1, 1)]
    legs = [((side * 0.050, -0.255, 0.0), (0.055, 0.275, 0.065)) for side in (-1, 1)]
    shoulders = ((0.0, -0.785, 0.0), (0.128, 0.062, 0.070))
    parts = [hair, head, torso, shoulders, *arms, *legs] if full else [head, torso, *legs]
    table = torch.tensor(parts, device=draw.device).expand(batch, -1, 2, 3)
    jitter = 1 + draw.normal(batch, len(parts), 2, 3) * 0.06
    width = draw.uniform(0.85, 1.35, batch, 1, 1)
    half_size = table[:, :, 1] * jitter[:, :, 1] * torch.cat([width, torch.ones_like(width), width], -1)
    return table[:, :, 0] * torch.cat([width, torch.ones_like(width), width], -1), half_size


def rotation_x(angle: Tensor) -> Tensor:
    """Return rotations [...,3,3] that turn y towards z."""
    return _rotation(angle, 1, 2)


def rotation_z(angle: Tensor) -> Tensor:
    """Return rotations [...,3,3] that turn x towards y."""
    return _rotation(angle, 0, 1)


def _rotation(angle: Tensor, first: int, second: int) -> Tensor:
    """Return rotations [...,3,3] in the plane of two axes; it turns the first axis towards the second."""
    matrix = torch.eye(3, device=angle.device).expand(*angle.shape, 3, 3).clone()
    matrix[..., first, first] = matrix[..., second, second] = angle.cos()
    matrix[..., first, second], matrix[..., second, first] = -angle.sin(), angle.sin()
    return matrix


def object_rotation(yaw: Tensor, tilt: Tensor) -> Tensor:
    """Return world-from-object rotations [B,K,3,3] of a turn about y after two small tilts."""
    return _rotation(yaw, 2, 0) @ _rotation(tilt[..., 0], 1, 2) @ _rotation(tilt[..., 1], 0, 1)
