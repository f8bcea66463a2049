# SPDX-License-Identifier: Apache-2.0
"""Procedural scenes: exact disparity on hand-made scenes, agreement of the two views, seeds, errors."""

import shutil

import pytest
import torch

from pipeline_zerostereo import forward_warp
from training.procedural_scenes import (
    ENTER,
    PLAIN_KERNELS,
    SHADOW_LIGHT,
    SceneBatch,
    _cast_shadows,
    _make_view,
    _render_group,
    compiled_kernels,
    render_scenes,
    scene_generator,
)
from training.scene_kinds import MAX_DISPARITY_FRACTION, MIN_DISPARITY_FRACTION, Scene, sample_scenes
from training.scene_layout import (
    BILLBOARD,
    BILLBOARDS,
    BOX,
    BOXES,
    CYLINDER,
    ELLIPSOID,
    NEVER,
    OPEN,
    Draw,
    object_rotation,
)
from training.scene_textures import MIP_LEVELS, TEXTURE_SIZE, fractal_noise, make_textures, sample_texture

HEIGHT, WIDTH = 40, 64


@pytest.fixture(scope="module")
def batch() -> SceneBatch:
    return render_scenes(12, 96, 128, generator=scene_generator(3, 0))


def bare_scene(wall_distance: float, disparity_fraction: float) -> Scene:
    """Return one scene of a level camera, focal length 32 px, before a wall, without objects, haze or shadows."""
    scene = sample_scenes(1, HEIGHT, WIDTH, Draw(scene_generator(0, 0)))
    zero = torch.zeros(1)
    return scene._replace(
        focal_px=torch.tensor([32.0]),
        world_from_camera=torch.eye(3)[None],
        wall_low=torch.full((1, 3), -OPEN),
        wall_high=torch.tensor([[OPEN, OPEN, wall_distance]]),
        active=torch.zeros_like(scene.active),
        has_shadows=torch.tensor([False]),
        haze=zero,
        disparity_fraction=torch.tensor([disparity_fraction]),
    )


def with_box(scene: Scene, center: list[float], half_size: list[float]) -> Scene:
    """Return the scene with its first box upright at a place."""
    slot = BOXES.start
    fields = {name: getattr(scene, name).clone() for name in ("active", "center", "half_size", "rotation")}
    fields["active"][0, slot] = True
    fields["center"][0, slot] = torch.tensor(center)
    fields["half_size"][0, slot] = torch.tensor(half_size)
    fields["rotation"][0, slot] = torch.eye(3)
    return scene._replace(**fields)


def render_one(scene: Scene) -> SceneBatch:
    textures = make_textures(Draw(scene_generator(0, 1)), 1)
    return _render_group(scene, textures, HEIGHT, WIDTH, shadows=True, kernels=PLAIN_KERNELS)


# Known answers


def test_box_before_a_wall_has_the_disparity_and_the_outline_of_pinhole_geometry():
    # The face of the box is 2 m away and covers -1.0 ... 0.5 m of x, -0.25 ... 0.75 m of y (down); the wall is at 5 m.
    scene = with_box(bare_scene(5.0, 0.125), center=[-0.25, 0.25, 2.5], half_size=[0.75, 0.5, 0.5])
    left = render_one(scene).left_disparity[0, 0]
    face = left > 7
    # Columns 32 + 32 * (-1.0, 0.5) / 2 = 16 ... 40, rows 20 + 32 * (-0.25, 0.75) / 2 = 16 ... 32.
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    expected[16:32, 16:40] = True
    assert torch.equal(face, expected)
    torch.testing.assert_close(left[face], torch.full((16 * 24,), 0.125 * WIDTH))  # 8 px at 2 m, so 3.2 px at 5 m
    torch.testing.assert_close(left[0], torch.full((WIDTH,), 3.2))


def test_right_view_sees_the_box_moved_to_the_left_by_its_disparity():
    scene = with_box(bare_scene(5.0, 0.125), center=[-0.25, 0.25, 2.5], half_size=[0.75, 0.5, 0.5])
    right = render_one(scene).right_disparity[0, 0]
    face = (right - 8.0).abs() < 1e-4
    assert face[20].nonzero()[:, 0].tolist() == list(range(8, 32))
    torch.testing.assert_close(right[0], torch.full((WIDTH,), 3.2))


def test_sky_has_zero_disparity_in_both_views():
    pair = render_one(with_box(bare_scene(OPEN, 0.1), [0.0, 0.0, 3.0], [0.5, 0.5, 0.5]))
    assert pair.left_disparity[0, 0, 0].abs().max() == 0
    assert pair.right_disparity[0, 0, 0].abs().max() == 0
    assert pair.left_disparity.max() == pytest.approx(0.1 * WIDTH)


def test_object_beside_the_left_view_cannot_fill_the_right_one():
    # 0.3 m in front of the camera plane and just outside the left picture; the wall gives the largest left disparity.
    scene = with_box(bare_scene(4.0, 0.2), center=[0.6, 0.0, 0.35], half_size=[0.1, 0.5, 0.05])
    pair = render_one(scene)
    assert pair.left_disparity.max() == pytest.approx(0.2 * WIDTH)
    assert pair.right_disparity.max() <= 2 * 0.2 * WIDTH + 1e-4


@pytest.mark.parametrize(
    ("shape", "start", "slope", "distance"),
    [
        (BOX, [0.5, -0.5, -4.0], [0.0, 0.0, 2.0], 1.5),
        (ELLIPSOID, [0.6, 0.0, -3.0], [0.0, 0.0, 1.0], 2.2),  # the sphere's surface at x = .6 is z = -.8
        (CYLINDER, [0.6, 0.9, -3.0], [0.0, 0.0, 1.0], 2.2),
        (CYLINDER, [0.3, -5.0, 0.2], [0.0, 2.0, 0.0], 2.0),  # onto its lid
        (BILLBOARD, [0.5, -0.5, -3.0], [0.0, 0.0, 0.5], 6.0),
    ],
)
def test_rays_enter_shapes_where_geometry_says(shape: int, start: list, slope: list, distance: float):
    def planes(numbers: list) -> tuple:
        return tuple(torch.full((1, 1, 1), number) for number in numbers)

    solid = torch.ones(1, TEXTURE_SIZE**2)
    found, hit = ENTER[shape](planes(start), planes(slope), solid)
    assert hit.item()
    assert found.item() == pytest.approx(distance, abs=1e-5)
    outside = [start[0] + 3, *start[1:]]
    assert not ENTER[shape](planes(outside), planes(slope), solid)[1].item()


def test_billboard_is_open_where_its_alpha_is_not_positive():
    alpha = torch.ones(1, TEXTURE_SIZE, TEXTURE_SIZE)
    alpha[:, : TEXTURE_SIZE // 2] = 0  # upper half: y < 0
    start = tuple(torch.tensor([[[value, value]]]) for value in (0.5, 0.0, -3.0))
    start = (start[0], torch.tensor([[[-0.5, 0.5]]]), start[2])
    slope = tuple(torch.full((1, 1, 1), value) for value in (0.0, 0.0, 1.0))
    _, hit = ENTER[BILLBOARD](start, slope, alpha.flatten(1))
    assert hit.flatten().tolist() == [False, True]


def test_shadow_falls_away_from_the_light():
    scene = with_box(bare_scene(9.0, 0.1), [0.0, 0.0, 5.0], [1.0, 1.0, 1.0])
    scene = scene._replace(light=torch.tensor([[0.0, -1.0, 0.0]]), has_shadows=torch.tensor([True]))  # from above
    to_object = scene.rotation.transpose(-1, -2) / scene.half_size[..., None]
    textures = make_textures(Draw(scene_generator(0, 1)), 1)
    x, y, z = torch.tensor([[[0.5, 0.5, 1.5]]]), torch.tensor([[[3.0, -3.0, 3.0]]]), torch.full((1, 1, 3), 5.0)
    arguments = (textures, to_object, (x, y, z), torch.ones(1, 1, 3), [BOXES.start], PLAIN_KERNELS)
    below, above, beside = _cast_shadows(scene, *arguments).flatten().tolist()
    assert (below, above, beside) == (pytest.approx(SHADOW_LIGHT), 1.0, 1.0)
    unshadowed = _cast_shadows(scene._replace(has_shadows=torch.tensor([False])), *arguments)
    assert unshadowed.min() == 1


def test_object_rotation_turns_about_the_vertical_axis():
    rotation = object_rotation(torch.tensor([torch.pi / 2]), torch.zeros(1, 2))[0]
    torch.testing.assert_close(rotation @ torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, -1.0]))
    tilted = object_rotation(torch.tensor([0.3]), torch.tensor([[0.4, -0.7]]))[0]
    torch.testing.assert_close(tilted @ tilted.T, torch.eye(3), atol=1e-6, rtol=0)
    assert torch.linalg.det(tilted) > 0


def test_texture_is_read_at_texel_centres_and_wraps():
    textures, level, x, y = 9, TEXTURE_SIZE**2, 5, 3
    texels = torch.zeros(1, 3, textures * sum((TEXTURE_SIZE >> mip) ** 2 for mip in range(MIP_LEVELS)))
    texels[0, 1, 2 * level + y * TEXTURE_SIZE + x] = 0.75  # texture 2, green
    texels[0, 2, textures * level + 2 * (level // 4)] = 0.5  # second mip level, first texel, blue
    place = [(x + 0.5) / TEXTURE_SIZE, (x + 1.0) / TEXTURE_SIZE - 7, 1 / TEXTURE_SIZE]
    u = torch.tensor([[place]])
    v = torch.tensor([[[(y + 0.5) / TEXTURE_SIZE, (y + 0.5) / TEXTURE_SIZE + 2, 1 / TEXTURE_SIZE]]])
    footprint = torch.tensor([[[0.0, 0.0, 2.0 / TEXTURE_SIZE]]])
    red, green, blue = sample_texture(texels, torch.full((1, 1, 3), 2.0), u, v, footprint)
    assert red.abs().max() == 0
    torch.testing.assert_close(green, torch.tensor([[[0.75, 0.375, 0.0]]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(blue, torch.tensor([[[0.0, 0.0, 0.5]]]))


def test_mip_levels_keep_the_mean_and_noise_is_normalised():
    draw = Draw(scene_generator(0, 2))
    textures = make_textures(draw, 2)
    finest = textures.texels[..., : 9 * TEXTURE_SIZE**2].unflatten(2, (9, -1)).mean(3)
    coarsest = textures.texels[..., -9 * 16 :].unflatten(2, (9, -1)).mean(3)  # 4x4 texels
    torch.testing.assert_close(finest, coarsest, atol=1e-4, rtol=0)
    assert textures.alpha.shape == (2, BILLBOARDS.stop - BILLBOARDS.start, TEXTURE_SIZE**2)
    noise = fractal_noise(draw, 2, 3, 32, torch.full((2, 3), 1.5), torch.ones(2, 3))
    assert noise.mean((-2, -1)).abs().max() < 1e-4
    torch.testing.assert_close(noise.std((-2, -1)), torch.ones(2, 3))


# Whole pictures


def test_shapes_ranges_and_disparity_bounds(batch: SceneBatch):
    for name, value in batch._asdict().items():
        channels = 3 if name.endswith("image") else 1
        assert value.shape == (12, channels, 96, 128)
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
        assert value.min() >= 0
    assert max(batch.left_image.max(), batch.right_image.max()) <= 1
    largest = batch.left_disparity.amax((1, 2, 3)) / 128
    assert (largest >= MIN_DISPARITY_FRACTION - 1e-6).all()
    assert (largest <= MAX_DISPARITY_FRACTION + 1e-6).all()


def test_left_warped_by_its_disparity_is_the_right_view(batch: SceneBatch):
    warp = forward_warp(batch.left_image, batch.left_disparity)
    known = ~warp.right_hole_mask
    assert known.float().mean() > 0.8
    error = (warp.right_image - batch.right_image).abs().mean(1, keepdim=True)
    assert error[known].mean() < 0.01
    wrong_way = forward_warp(batch.right_image, batch.right_disparity)
    error_of_wrong_way = (wrong_way.right_image - batch.left_image).abs().mean(1, keepdim=True)
    assert error_of_wrong_way[~wrong_way.right_hole_mask].mean() > 0.02  # the test can tell left from right


def test_right_disparity_is_the_warped_left_disparity(batch: SceneBatch):
    warp = forward_warp(batch.left_image, batch.left_disparity)
    difference = (warp.right_disparity - batch.right_disparity)[~warp.right_hole_mask].abs()
    assert difference.median() < 0.01
    assert (difference < 0.5).float().mean() > 0.97


def test_scenes_are_lit_varied_and_not_empty(batch: SceneBatch):
    contrast = batch.left_image.std((1, 2, 3))
    assert (contrast > 0.01).float().mean() > 0.8
    brightness = batch.left_image.mean((1, 2, 3))
    assert brightness.max() - brightness.min() > 0.15
    assert batch.left_disparity.flatten(1).std(1).min() > 0


def test_equal_seeds_give_equal_bits_and_others_another_scene():
    first, again, other = (render_scenes(2, 24, 40, generator=scene_generator(7, index)) for index in (4, 4, 5))
    for one, two, three in zip(first, again, other, strict=True):
        assert torch.equal(one, two)
        assert not torch.equal(one, three)


def test_global_random_state_is_neither_read_nor_changed():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = render_scenes(1, 16, 24, generator=scene_generator(7, 0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(render_scenes(1, 16, 24, generator=scene_generator(7, 0)).left_image, first.left_image)


def test_scene_generator_tells_seed_and_index_apart():
    seeds = {scene_generator(seed, index).initial_seed() for seed in range(9) for index in range(9)}
    assert len(seeds) == 81
    assert scene_generator(1, 12).initial_seed() == scene_generator(1, 12).initial_seed()


def test_shadows_darken_and_do_not_move_anything():
    lit, shadowed = (render_scenes(3, 32, 48, generator=scene_generator(5, 1), shadows=flag) for flag in (False, True))
    assert torch.equal(lit.left_disparity, shadowed.left_disparity)
    assert torch.equal(lit.right_disparity, shadowed.right_disparity)
    assert not torch.equal(lit.left_image, shadowed.left_image)


def test_odd_and_tiny_sizes():
    pair = render_scenes(1, 1, 3, generator=scene_generator(0, 0))
    assert pair.left_image.shape == (1, 3, 1, 3)
    assert torch.isfinite(pair.right_image).all()


@pytest.mark.parametrize("name", ["batch_size", "height", "width"])
def test_numbers_below_one_are_refused(name: str):
    sizes = {"batch_size": 2, "height": 8, "width": 12, name: 0}
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1; got 0"):
        render_scenes(**sizes, generator=scene_generator(0, 0))


@pytest.mark.slow
def test_compiled_function_gives_the_same_planes():
    # One function only, because all of them take minutes; benchmarks/scene_rendering.py compares whole pictures.
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("needs a C++ compiler (g++ or clang++) on the path")
    view = _make_view(bare_scene(5.0, 0.1), torch.zeros(1), torch.full((1,), 1e-3), HEIGHT, WIDTH)
    matrix, start = torch.eye(3)[None] / 0.5, torch.tensor([[0.2, -0.4, -6.0]])
    depth, surface = torch.full((1, HEIGHT, WIDTH), 5.0), torch.full((1, HEIGHT, WIDTH), 37)
    arguments = (ELLIPSOID, torch.tensor(4), matrix, start, view, torch.ones(1, 9), torch.ones(1), depth, surface)
    plain, compiled = (kernels.meet_from_camera(*arguments) for kernels in (PLAIN_KERNELS, compiled_kernels()))
    assert set(plain[1].unique().tolist()) == {4, 37}
    torch.testing.assert_close(plain[0], compiled[0])
    assert torch.equal(plain[1], compiled[1])


def test_far_is_farther_than_everything_in_a_scene():
    assert NEVER > 10 * OPEN
