# SPDX-License-Identifier: Apache-2.0
"""Networks from folders, official checkpoints and the Hub's form, and one pair through them."""

import json
from pathlib import Path

import pytest
import torch

from tests.loopback_hub import LoopbackHub
from tests.stereo_network_helpers import SMALL_NETWORKS, make_pair, make_small_igev, make_small_raft, official_state
from training.stereo_inference import describe_network, estimate_disparity, load_stereo_network

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("kind", SMALL_NETWORKS)
def test_class_is_found_from_the_config(tmp_path, kind):
    network = SMALL_NETWORKS[kind]()
    network.save_pretrained(tmp_path / "net")
    loaded = load_stereo_network(str(tmp_path / "net"))
    assert type(loaded) is type(network) and not loaded.training
    assert describe_network(loaded, "a") == describe_network(network, "a")


def test_official_checkpoint_is_read(tmp_path):
    torch.save({f"module.{name}": value for name, value in official_state("raft").items()}, tmp_path / "raft.pth")
    network = load_stereo_network(str(tmp_path / "raft.pth"))
    assert describe_network(network, "me/zero")["parameters"] == 11_116_176
    assert describe_network(network, "me/zero")["class"] == "RAFTStereo" and not network.training
    with pytest.raises(ValueError, match="`revision` must be None where `source` is a file, .*raft.pth; got 'main'"):
        load_stereo_network(str(tmp_path / "raft.pth"), revision="main")


def test_a_source_that_is_no_network(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ValueError, match="must hold a config of RAFTStereo or IGEVStereo; .* is of UNet2DCondition"):
        load_stereo_network(str(tmp_path))
    with pytest.raises(OSError, match="no_such_person/no_such_network"):
        load_stereo_network("no_such_person/no_such_network")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="config.json"):
        load_stereo_network(str(tmp_path / "empty"))


def test_identity_follows_the_weights_and_nothing_else():
    first, second = make_small_raft(), make_small_raft()
    assert describe_network(first, "a") == describe_network(second, "a")
    with torch.no_grad():
        next(second.parameters()).view(-1)[0] += 1
    assert describe_network(first, "a")["weights_sha256"] != describe_network(second, "a")["weights_sha256"]


def test_one_pair_is_what_the_network_says():
    network = make_small_raft()
    left, right = make_pair(40, 70)
    with torch.no_grad():
        expected = network(left, right, 3).disparity[0, 0]
    estimate = estimate_disparity(network, left[0], right[0], iterations=3)
    assert torch.equal(estimate.disparity, expected) and estimate.seconds > 0
    other = estimate_disparity(network, left[0], right[0], iterations=3, correlation="on_the_fly")
    torch.testing.assert_close(other.disparity, expected, atol=1e-3, rtol=1e-4)
    half = estimate_disparity(network, left[0], right[0], iterations=3, dtype="bfloat16").disparity
    assert half.dtype == torch.float32 and not torch.equal(half, expected)
    assert (half - expected).abs().mean() < 0.05 * expected.abs().mean() + 0.05


def test_pictures_of_bytes_are_taken():
    network = make_small_raft()
    left, right = (image.round().to(torch.uint8)[0] for image in make_pair(32, 64))
    of_bytes = estimate_disparity(network, left, right, iterations=2).disparity
    assert torch.equal(of_bytes, estimate_disparity(network, left.float(), right.float(), iterations=2).disparity)


def test_a_type_that_is_none():
    left, right = make_pair(32, 64)
    with pytest.raises(ValueError, match="`dtype` must be one of float32, float16, bfloat16; got 'int8'"):
        estimate_disparity(make_small_raft(), left[0], right[0], dtype="int8")


FROM_THE_HUB = """
import sys
import torch
from training.stereo_inference import describe_network, load_stereo_network
from training.stereo_networks.igev_stereo import IGEVStereo

network = IGEVStereo.from_pretrained(sys.argv[1])
network.push_to_hub("me/zero-igev")
from huggingface_hub import HfApi
HfApi().create_tag("me/zero-igev", tag="v1")
with torch.no_grad():
    next(network.parameters()).add_(1)
network.push_to_hub("me/zero-igev")
for source in ({"source": "me/zero-igev"}, {"source": "me/zero-igev", "revision": "v1"}):
    found = describe_network(load_stereo_network(**source), "zero-igev")
    print(found["class"], found["weights_sha256"])
"""


@pytest.mark.slow
def test_a_repository_of_the_hub_and_a_revision_of_it(tmp_path):
    network = make_small_igev()
    network.save_pretrained(tmp_path / "net")
    with LoopbackHub(tmp_path / "hub") as hub:
        printed = hub.run_python(FROM_THE_HUB, tmp_path / "net", home=tmp_path / "home", PYTHONPATH=str(ROOT))
    newest, tagged = (line.split() for line in printed.strip().splitlines()[-2:])
    first = describe_network(network, "")["weights_sha256"]
    assert tagged == ["IGEVStereo", first] and newest[0] == "IGEVStereo" and newest[1] != first
