# SPDX-License-Identifier: Apache-2.0
"""What holds for both stereo networks: any size, batches, iterations, early stop, precisions, compiling, folders."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline_zerostereo import pad_to_multiple, unpad
from tests.loopback_hub import LoopbackHub
from tests.stereo_network_helpers import SMALL_NETWORKS, make_pair
from training.stereo_networks.recurrent_stereo import RecurrentStereo

WEIGHTS = "diffusion_pytorch_model.safetensors"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", params=SMALL_NETWORKS)
def shared(request) -> RecurrentStereo:
    """A small network in evaluation mode; tests must not change it."""
    return SMALL_NETWORKS[request.param]()


@pytest.fixture(params=SMALL_NETWORKS)
def network(request) -> RecurrentStereo:
    return SMALL_NETWORKS[request.param]()


# --- pictures of any size, batches, iterations ---


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (33, 70), (64, 32)])
def test_any_size(shared, height, width):
    left, right = make_pair(height, width, batch=2)
    output = shared(left, right, 2)
    assert output.disparity.shape == (2, 1, height, width) and output.disparity.isfinite().all()
    assert (output.refinements, output.initial_disparity, output.iterations) == ([], None, 2)
    (padded_left, padding), (padded_right, _) = (pad_to_multiple(image, 32) for image in (left, right))
    padded = unpad(shared(padded_left, padded_right, 2).disparity, padding)
    assert torch.equal(output.disparity, padded)


@torch.no_grad()
def test_a_batch_gives_what_its_pairs_give_alone(shared):
    left, right = make_pair(40, 64, batch=3)
    together = shared(left, right, 3).disparity
    for i in range(3):
        alone = shared(left[i : i + 1], right[i : i + 1], 3).disparity
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_arguments_are_unchanged_and_results_repeat(shared):
    left, right = make_pair(33, 70)
    copies = left.clone(), right.clone()
    first = shared(left, right, 2).disparity
    assert torch.equal(first, shared(left, right, 2).disparity)
    assert torch.equal(left, copies[0]) and torch.equal(right, copies[1])


def test_training_gives_every_refinement_and_only_igev_an_initial_disparity(network):
    pair = make_pair(33, 70, batch=2)
    network.train()
    output = network(*pair, iterations=3)
    assert [refinement.shape for refinement in output.refinements] == [(2, 1, 33, 70)] * 3
    assert output.disparity is output.refinements[-1] and output.iterations == 3
    assert (output.initial_disparity is not None) == (type(network).__name__ == "IGEVStereo")
    if output.initial_disparity is not None:
        assert output.initial_disparity.shape == (2, 1, 33, 70)


@torch.no_grad()
def test_correlations_kept_or_computed_anew_give_the_same(shared):
    pair = make_pair(40, 96, batch=2)
    kept, computed = (shared(*pair, 3, correlation=kind).disparity for kind in ("all_pairs", "on_the_fly"))
    torch.testing.assert_close(computed, kept, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_early_stop(shared):
    pair = make_pair(32, 64, batch=2)
    assert shared(*pair, 4).iterations == 4
    assert shared(*pair, 4, stop_below_px=1e-12).iterations == 4
    stopped = shared(*pair, 4, stop_below_px=1e6)
    assert stopped.iterations == 1
    assert torch.equal(stopped.disparity, shared(*pair, 1).disparity)


@torch.no_grad()
def test_early_stop_waits_for_the_slowest_pair(shared, monkeypatch):
    changes = iter([torch.tensor([3.0, 0.1]), torch.tensor([0.1, 1.0]), torch.tensor([0.1, -0.2])])
    refine = type(shared).refine

    def scripted(hidden, context, lookup, disparity):
        hidden, change = refine(shared, hidden, context, lookup, disparity)
        return hidden, next(changes).view(2, 1, 1, 1).expand_as(change)

    monkeypatch.setattr(shared, "refine", scripted)
    # A change of 0.2 at a quarter of the size is 0.8 px.
    assert shared(*make_pair(32, 64, batch=2), 9, stop_below_px=0.81).iterations == 3


# --- precision, compiling ---


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(shared, dtype):
    pair = make_pair(32, 64)
    exact = shared(*pair, 2).disparity
    with torch.autocast("cpu", dtype=dtype):
        rough = shared(*pair, 2).disparity
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.1 * exact.abs().mean() + 0.05


@torch.no_grad()
@pytest.mark.parametrize("correlation", ["all_pairs", "on_the_fly"])
def test_weights_in_bfloat16(network, correlation):
    pair = make_pair(32, 64)
    exact = network(*pair, 2).disparity
    rough = network.to(torch.bfloat16)(*(image.bfloat16() for image in pair), 2, correlation=correlation).disparity
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.2 * exact.abs().mean() + 0.1


def test_training_under_autocast_reaches_every_parameter(network):
    network.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(*make_pair(32, 64), iterations=2)
    assert all(refinement.dtype == torch.float32 for refinement in output.refinements)
    loss = sum(refinement.square().mean() for refinement in output.refinements)
    if output.initial_disparity is not None:
        loss = loss + output.initial_disparity.square().mean()
    loss.backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


@pytest.mark.slow
@torch.no_grad()
def test_it_compiles_without_a_break(shared):
    pair = make_pair(32, 64)
    compiled = torch.compile(shared.forward, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*pair, 1).disparity, shared(*pair, 1).disparity, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_few_steps_lower_the_error(network):
    left, right = make_pair(32, 64, batch=2)
    network.train()
    network.freeze_batch_norm()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    errors = []
    for _ in range(15):
        output = network(left, right, iterations=2)
        predictions = [
            *output.refinements,
            *([output.initial_disparity] if output.initial_disparity is not None else []),
        ]
        loss = sum((prediction - 3).abs().mean() for prediction in predictions)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        errors.append((output.disparity - 3).abs().mean().item())
    assert sum(errors[-3:]) < 0.7 * sum(errors[:3])


def test_frozen_batch_norm_keeps_its_statistics_in_2d_only(network):
    network.train()
    network.freeze_batch_norm()
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(*make_pair(32, 64), iterations=1)
    changed = {name for name, value in network.named_buffers() if not torch.equal(value, before[name])}
    volume_norms = {name for name, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm3d)}
    assert {name.rpartition(".")[0] for name in changed} == volume_norms


# --- folders and the Hub ---


def test_folder_round_trip(network, tmp_path: Path):
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_class_name"] == type(network).__name__ and config["hidden_channels"] == 8
    stored = load_file(tmp_path / WEIGHTS)
    assert stored.keys() == network.state_dict().keys()
    assert any(".norm3." in name for name in stored) and not any(".downsample.1." in name for name in stored)
    loaded = type(network).from_pretrained(tmp_path)
    assert not loaded.training
    states = network.state_dict(), loaded.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    pair = make_pair(32, 64)
    with torch.no_grad():
        assert torch.equal(loaded(*pair, 2).disparity, network(*pair, 2).disparity)


def test_folder_in_half_precision(network, tmp_path: Path):
    network.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    loaded = type(network).from_pretrained(tmp_path, variant="fp16", dtype=torch.float32)
    assert loaded.dtype == torch.float32
    first = next(iter(network.state_dict()))
    assert torch.equal(loaded.state_dict()[first].half(), network.state_dict()[first])


def test_loading_information_is_returned_when_asked_for(network, tmp_path: Path):
    network.save_pretrained(tmp_path)
    loaded, info = type(network).from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, type(network)) and info["missing_keys"] == []


def test_weights_that_lack_a_tensor_or_have_one_too_many_are_refused(network, tmp_path: Path):
    network.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    bias = state.pop("cnet.conv1.bias")
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"must hold the weights of .* are missing: \['cnet.conv1.bias'\]"):
        type(network).from_pretrained(tmp_path)
    save_file(state | {"cnet.conv1.bias": bias, "cnet.conv9.bias": bias.clone()}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"unexpected: \['cnet.conv9.bias'\].*`convert_official_checkpoint`"):
        type(network).from_pretrained(tmp_path)


PUBLISH = """
import sys
import torch
from training.stereo_networks.{module} import {name}
network = {name}.from_pretrained(sys.argv[1])
network.push_to_hub("me/stereo")
again = {name}.from_pretrained("me/stereo")
assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True))
print("equal")
"""


@pytest.mark.slow
def test_push_to_the_hub_and_load_from_it(network, tmp_path: Path):
    network.save_pretrained(tmp_path / "folder")
    name = type(network).__name__
    module = {"RAFTStereo": "raft_stereo", "IGEVStereo": "igev_stereo"}[name]
    source = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n" + PUBLISH.format(name=name, module=module)
    with LoopbackHub(tmp_path / "hub") as hub:
        printed = hub.run_python(source, str(tmp_path / "folder"), home=tmp_path / "home")
        assert "equal" in printed
        assert json.loads(hub.read("me/stereo", "config.json"))["_class_name"] == name


# --- errors ---

IMAGE = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("left", "right", "error", "message"),
    [
        (IMAGE.byte(), IMAGE, TypeError, "`left_image` must be a floating point tensor .* got torch.uint8"),
        (IMAGE, [[1.0]], TypeError, "`right_image` must be a floating point tensor .* got list"),
        (IMAGE[0], IMAGE, ValueError, r"`left_image` must have the shape \[B,3,H,W\].* got \[3, 8, 8\]"),
        (IMAGE, IMAGE[:, :1], ValueError, r"`right_image` must have the shape \[B,3,H,W\].* got \[1, 1, 8, 8\]"),
        (IMAGE[..., :0], IMAGE, ValueError, r"`left_image` must have the shape .* got \[1, 3, 8, 0\]"),
        (IMAGE, IMAGE[..., :5], ValueError, r"`right_image` must have the shape of `left_image` \[1, 3, 8, 8\]"),
    ],
)
def test_wrong_pictures_are_named(shared, left, right, error, message):
    with pytest.raises(error, match=message):
        shared(left, right)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iterations": 0}, "`iterations` must be a whole number of at least 1; got 0"),
        ({"iterations": 2.0}, "`iterations` must be a whole number of at least 1; got 2.0"),
        ({"iterations": True}, "`iterations` must be a whole number of at least 1; got True"),
        ({"correlation": "sparse"}, "`correlation` must be one of all_pairs, on_the_fly; got 'sparse'"),
        ({"stop_below_px": 0.0}, "`stop_below_px` must be positive, or None for no early stop; got 0.0"),
    ],
)
def test_wrong_loops_are_named(shared, arguments, message):
    with pytest.raises(ValueError, match=message):
        shared(IMAGE, IMAGE, **arguments)


def test_early_stop_is_refused_in_training(network):
    with pytest.raises(ValueError, match="`stop_below_px` must be None in training"):
        network.train()(IMAGE, IMAGE, stop_below_px=0.1)
