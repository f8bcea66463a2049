# SPDX-License-Identifier: Apache-2.0
"""The official position embedding of Depth Anything: recorded outputs, one instance only, reversible."""

import copy
import inspect

import pytest
import torch

import pipeline_zerostereo
from pipeline_zerostereo import (
    ZeroStereoPipeline,
    bind_official_position_embedding,
    has_official_position_embedding,
    official_position_embedding,
    restore_position_embedding,
)
from tests.golden_files import load_golden
from tests.tiny_components import (
    embedded_pipeline,
    make_depth_anything,
    make_glpn,
    make_photos,
    make_recorded_depth_anything,
)

SIZES = ("70x98", "84x154")
OTHER_SIZE = torch.linspace(-1, 1, 3 * 42 * 84).view(1, 3, 42, 84)  # 3 x 6 patches; the tiny table has 5 x 5


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in load_golden("dav2_vits").items()}


@pytest.fixture(scope="module")
def recorded():
    return make_recorded_depth_anything()


def depth(network, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(pixels.to(network.dtype)).predicted_depth


@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_official_network_at_any_size(golden, recorded, size):
    stock = (depth(recorded, golden[f"in_{size}"]) - golden[f"out_{size}"]).abs().max()
    assert 1e-3 < stock < 3e-3, "transformers' own interpolation misses the tolerance below"
    bind_official_position_embedding(recorded)
    try:
        torch.testing.assert_close(depth(recorded, golden[f"in_{size}"]), golden[f"out_{size}"], rtol=0, atol=1e-4)
    finally:
        restore_position_embedding(recorded)


def test_the_table_is_unchanged_at_its_own_size_and_keeps_its_class_row():
    table = torch.arange(10.0 * 4).view(1, 10, 4)  # 3 x 3 patches
    assert official_position_embedding(table, 3, 3) is table
    resized = official_position_embedding(table, 2, 5)
    assert resized.shape == (1, 11, 4) and torch.equal(resized[:, 0], table[:, 0])
    # rows follow the patches' rows: a table that grows downwards only gives equal values along each row
    downwards = torch.cat([torch.zeros(1, 1, 1), torch.arange(3.0).repeat_interleave(3).view(1, 9, 1)], 1)
    rows = official_position_embedding(downwards, 4, 2)[0, 1:, 0].view(4, 2)
    torch.testing.assert_close(rows[:, 0], rows[:, 1])
    assert (rows[1:, 0] > rows[:-1, 0]).all()


def test_half_precision_tables_are_resized_in_float32():
    table = torch.sin(torch.arange(26.0 * 8)).view(1, 26, 8).half()
    expected = official_position_embedding(table.float(), 3, 6)
    assert torch.equal(official_position_embedding(table, 3, 6), expected.half())


def test_only_this_instance_is_bound_and_it_can_be_restored():
    network, other = make_depth_anything(), make_depth_anything()
    stock, state, config = depth(network, OTHER_SIZE), set(network.state_dict()), network.config.to_dict()
    bind_official_position_embedding(network)
    bind_official_position_embedding(network)
    assert has_official_position_embedding(network) and not has_official_position_embedding(other)
    assert not torch.equal(depth(network, OTHER_SIZE), stock)
    assert torch.equal(depth(other, OTHER_SIZE), stock)
    assert set(network.state_dict()) == state and network.config.to_dict() == config
    restore_position_embedding(network)
    restore_position_embedding(network)
    assert not has_official_position_embedding(network)
    assert torch.equal(depth(network, OTHER_SIZE), stock)


def test_copies_are_bound_to_their_own_table():
    network = make_depth_anything()
    bind_official_position_embedding(network)
    bound = depth(network, OTHER_SIZE)
    twin = copy.deepcopy(network)
    assert has_official_position_embedding(twin) and torch.equal(depth(twin, OTHER_SIZE), bound)
    with torch.no_grad():
        twin.backbone.embeddings.position_embeddings.mul_(3)
    assert not torch.equal(depth(twin, OTHER_SIZE), bound)
    assert torch.equal(depth(network, OTHER_SIZE), bound)
    restore_position_embedding(twin)
    assert has_official_position_embedding(network)


def test_half_precision_and_dtype_moves():
    network = make_depth_anything()
    bind_official_position_embedding(network)
    exact = depth(network, OTHER_SIZE)
    half = depth(network.half(), OTHER_SIZE)
    assert half.dtype == torch.float16 and torch.isfinite(half).all()
    torch.testing.assert_close(half.float(), exact, rtol=0, atol=0.02)
    assert depth(network.double(), OTHER_SIZE).dtype == torch.float64


def test_saved_files_are_those_of_the_stock_network(tmp_path):
    network = make_depth_anything()
    network.save_pretrained(tmp_path / "stock")
    bind_official_position_embedding(network)
    network.save_pretrained(tmp_path / "bound")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "stock" / name).read_bytes() == (tmp_path / "bound" / name).read_bytes()


def test_the_pipeline_binds_once_at_construction_and_the_folder_keeps_the_value(tmp_path):
    stock = embedded_pipeline()
    pipe = embedded_pipeline(depth_position_embedding="official", default_depth_resolution=0)
    assert has_official_position_embedding(pipe.depth_estimator)
    assert not has_official_position_embedding(stock.depth_estimator)
    photo = make_photos(1, 42, 84)
    estimated, _ = pipe.estimate_inverse_depth(photo)
    assert not torch.equal(estimated, stock.estimate_inverse_depth(photo, depth_resolution=0)[0])
    pipe.save_pretrained(tmp_path)
    loaded = ZeroStereoPipeline.from_pretrained(tmp_path)
    assert loaded.config.depth_position_embedding == "official"
    assert torch.equal(loaded.estimate_inverse_depth(photo)[0], estimated)
    for step in (ZeroStereoPipeline.__call__, ZeroStereoPipeline.estimate_inverse_depth):
        assert "position" not in inspect.getsource(inspect.unwrap(step))


def test_a_pipeline_without_depth_network_may_have_the_value(tmp_path):
    embedded_pipeline(depth_estimator=None, depth_position_embedding="official").save_pretrained(tmp_path)
    loaded = ZeroStereoPipeline.from_pretrained(tmp_path, depth_estimator=make_depth_anything())
    assert has_official_position_embedding(loaded.depth_estimator)


def test_a_network_of_another_kind_is_refused():
    message = (
        r"`depth_estimator` must have `backbone.embeddings.interpolate_pos_encoding` of a DINOv2 backbone for the "
        r"official position embedding; got GLPNForDepthEstimation"
    )
    with pytest.raises(ValueError, match=message):
        bind_official_position_embedding(make_glpn())
    with pytest.raises(ValueError, match=message):
        embedded_pipeline(depth_estimator=make_glpn(), depth_position_embedding="official")
    restore_position_embedding(make_glpn())  # nothing to undo


def test_a_bound_network_is_not_passed_off_as_stock():
    network = make_depth_anything()
    bind_official_position_embedding(network)
    message = (
        r"`depth_position_embedding` must be \"official\" for a depth estimator that is bound .*got 'transformers'"
    )
    with pytest.raises(ValueError, match=message):
        embedded_pipeline(depth_estimator=network)
    restore_position_embedding(network)
    embedded_pipeline(depth_estimator=network)


def test_a_binding_of_another_copy_of_the_module_is_recognised(monkeypatch):
    network = make_depth_anything()
    bind_official_position_embedding(network)
    source = inspect.getsource(pipeline_zerostereo._interpolate_as_official)
    reloaded: dict = {}
    exec("from __future__ import annotations\n" + source, reloaded)  # what loading the file a second time does
    monkeypatch.setattr(pipeline_zerostereo, "_interpolate_as_official", reloaded["_interpolate_as_official"])
    assert has_official_position_embedding(network)
