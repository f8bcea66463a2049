# SPDX-License-Identifier: Apache-2.0
"""Options of the stereo training, the paper's preset, and networks made ready from everything they can come from."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.loopback_hub import LoopbackHub
from tests.stereo_network_helpers import make_small_igev, make_small_raft, official_state
from training.run import learning_rate_at, load_config, make_parser, parse_config, save_config
from training.stereo_networks.igev_stereo import IGEVStereo
from training.stereo_networks.raft_stereo import RAFTStereo
from training.stereo_options import PRESETS, StereoConfig, load_network, make_network

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"trunk_channels": (8, 12, 16), "feature_channels": 16, "hidden_channels": 8, "correlation_radius": 2}


def make_config(**changes) -> StereoConfig:
    return StereoConfig(**({"network": "raft", "data": ("procedural:1",), "output": Path("run")} | changes))


def parse(words: str) -> StereoConfig:
    return parse_config(StereoConfig, words.split(), presets=PRESETS)


# --- options ---


def test_preset_of_the_paper():
    config = parse("--network raft --data procedural:1 --output o --preset paper --mixed-precision no --workers 2")
    expected = {
        **{"batch_size": 8, "total_batch_size": 8, "max_steps": 200_000, "learning_rate": 2e-4},
        **{"schedule": "one-cycle", "max_gradient_norm": 1.0, "ema_decay": None, "crop_size": (384, 512)},
        **{"iterations": 22, "validation_iterations": 32, "loss": "zerostereo", "photometric_range": 255},
        **{"photometric_weight": 0.1, "weather": None, "seed": 666, "mixed_precision": "no", "workers": 2},
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert PRESETS["paper"]["mixed_precision"] == "fp16"
    assert config.step_options(make_small_raft()) == (22, 700, "zerostereo", 255, 0.1)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 8e-6), (1000, 8e-6 + 1.92e-4 * 1000 / 1999), (1999, 2e-4), (101_000, 1e-4), (199_999, 8e-10)],
)
def test_learning_rate_of_the_preset(step, expected):
    preset = PRESETS["paper"]
    found = learning_rate_at(
        step,
        peak=preset["learning_rate"],
        warmup_steps=preset["warmup_steps"],
        max_steps=preset["max_steps"],
        schedule=preset["schedule"],
    )
    assert found == pytest.approx(expected, rel=1e-3)


def test_learning_rate_of_the_preset_is_torchs_one_cycle():
    preset = PRESETS["paper"]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    official = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-4, 200_000, pct_start=0.01, cycle_momentum=False, anneal_strategy="linear"
    )
    for step in range(0, 2600):
        ours = learning_rate_at(step, peak=2e-4, warmup_steps=2000, max_steps=200_000, schedule=preset["schedule"])
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6), step
        optimizer.step()
        official.step()


def test_options_come_back_from_the_file_beside_a_checkpoint(tmp_path):
    config = make_config(output=tmp_path, data=("procedural:1", "hub:a/b:2"), crop_size=(64, 96), weather="both")
    save_config(config, tmp_path / "config.json")
    assert load_config(StereoConfig, tmp_path / "config.json") == config


def test_several_words_of_a_mixture_and_sizes():
    config = parse(
        "--network raft --output o --data pairs:a:1 --data procedural:2 --trunk-channels 8 12 16 --crop-size 64 96"
    )
    assert [str(source) for source in config.sources()] == ["pairs:a:1.0", "procedural:2.0"]
    assert (config.trunk_channels, config.crop_size) == ((8, 12, 16), (64, 96))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": None}, r"`network` or `base` must be given, and not both; got \(None, None\)"),
        ({"base": "a/b"}, r"`network` or `base` must be given, and not both; got \('raft', 'a/b'\)"),
        ({"network": "mine"}, "`network` must be one of .*; got 'mine'"),
        (
            {"network": "igev", "feature_channels": 16},
            "`feature_channels` must be left out: it is not an option",
        ),
        ({"network": None, "base": "a", "hidden_channels": 8}, "`hidden_channels` must be left out: it is fixed by"),
        ({"data": ()}, r"`data` must name at least one source; got \(\)"),
        ({"data": ("photos:a:1",)}, "`data` must name one of the kinds"),
        ({"crop_size": (31, 64)}, "`crop_size` must be >= 32"),
        ({"crop_size": (64, 64, 64)}, "`crop_size` must be height and width"),
        ({"weather": "left"}, "`weather` must be one of .*; got 'left'"),
        ({"loss": "mine"}, "`loss` must be one of"),
        ({"photometric_range": 2}, r"`photometric_range` must be one of \(255, 1\); got 2"),
        ({"iterations": 0}, "`iterations` must be >= 1; got 0"),
        ({"push_to_hub": "a/b"}, "`licence` must say what the licence of published weights is, .*; got None"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_every_option_has_a_help_text():
    text = make_parser(StereoConfig).format_help()
    for name in ("--network", "--base", "--data", "--weather", "--photometric-range", "--push-to-hub", "--licence"):
        assert name in text


# --- networks ---


def test_networks_of_random_weights_have_the_sizes_of_their_options():
    torch.manual_seed(1)
    raft = make_network(make_config(**SMALL, correlation_levels=3))
    assert isinstance(raft, RAFTStereo)
    assert (raft.config.correlation_levels, tuple(raft.config.trunk_channels)) == (3, (8, 12, 16))
    torch.manual_seed(1)
    again = make_network(make_config(**SMALL, correlation_levels=3))
    assert all(torch.equal(a, b) for a, b in zip(raft.parameters(), again.parameters(), strict=True))
    igev = make_network(make_config(network="igev", hidden_channels=8, correlation_radius=2, max_disparity_px=64))
    assert isinstance(igev, IGEVStereo)
    assert (igev.config.max_disparity_px, igev.config.correlation_levels) == (64, 2)


def test_without_options_the_networks_are_the_published_ones():
    with torch.device("meta"):
        raft, igev = (make_network(make_config(network=name)) for name in ("raft", "igev"))
    assert [sum(p.numel() for p in network.parameters()) for network in (raft, igev)] == [11_116_176, 12_598_098]
    assert igev.config.max_disparity_px == 192


def test_largest_disparity_that_is_learnt():
    config = make_config()
    assert config.step_options(make_small_raft()).max_disparity_px == 700
    assert config.step_options(make_small_igev()).max_disparity_px == 64  # of its cost volume
    assert make_config(max_disparity_px=90).step_options(make_small_igev()).max_disparity_px == 90


@pytest.mark.parametrize("make", [make_small_raft, make_small_igev])
def test_a_folder_is_loaded_as_the_network_it_holds(tmp_path, make):
    network = make()
    network.save_pretrained(tmp_path / "saved")
    loaded = make_network(make_config(network=None, base=str(tmp_path / "saved")))
    assert type(loaded) is type(network) and loaded.dtype == torch.float32
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_half_precision_weights_learn_in_float32(tmp_path):
    make_small_raft().half().save_pretrained(tmp_path / "saved")
    assert {p.dtype for p in load_network(str(tmp_path / "saved")).parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_official_checkpoint_is_loaded(tmp_path, suffix):
    path = tmp_path / f"raft{suffix}"
    state = official_state("raft")
    if suffix == ".pth":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    else:
        save_file({name: value for name, value in state.items() if ".downsample.1." not in name}, path)
    loaded = load_network(str(path))
    assert isinstance(loaded, RAFTStereo)
    assert torch.equal(loaded.state_dict()["fnet.conv1.weight"], state["fnet.conv1.weight"])


def test_what_is_no_network_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="`base` must be a file that exists; got .*none.pth"):
        load_network(str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match=r"`base` must be a folder or repository ORG/REPO.*; got .*empty'"):
        (tmp_path / "empty").mkdir()
        load_network(str(tmp_path / "empty"))
    (tmp_path / "empty/config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ValueError, match="must hold a config of RAFTStereo or IGEVStereo; that of .* is of UNet2D"):
        load_network(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"`base` must be a folder or repository .*; got 'me/nothing'"):
        load_network("me/nothing")


@pytest.mark.slow
def test_a_repository_of_the_hub_is_loaded_at_its_revision(tmp_path):
    script = """
import torch
from huggingface_hub import HfApi
from tests.stereo_network_helpers import make_small_raft
network = make_small_raft()
network.push_to_hub("me/raft")
HfApi().create_tag("me/raft", tag="v1")
with torch.no_grad():
    network.fnet.conv1.weight.zero_()
network.push_to_hub("me/raft")
from training.stereo_options import load_network
print([bool(load_network(name).fnet.conv1.weight.any()) for name in ("me/raft@v1", "me/raft")])
"""
    with LoopbackHub(tmp_path / "hub") as hub:
        printed = hub.run_python(script, home=tmp_path / "home", PYTHONPATH=str(ROOT))
    assert "[True, False]" in printed
