# SPDX-License-Identifier: Apache-2.0
"""Official checkpoints in every published form, made up from the recorded names; everything else refused by name."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.stereo_network_helpers import make_small_raft, official_state, read_keys
from training.stereo_networks.convert_official_checkpoint import (
    UNUSED_KEYS,
    convert_official_checkpoint,
    rename_official_keys,
)
from training.stereo_networks.igev_stereo import IGEVStereo
from training.stereo_networks.raft_stereo import RAFTStereo

CLASSES = {"raft": RAFTStereo, "igev": IGEVStereo}


@pytest.fixture(scope="module", params=["raft", "igev"])
def official(request) -> tuple[str, dict[str, torch.Tensor]]:
    return request.param, official_state(request.param)


@pytest.fixture(scope="module")
def raft() -> dict[str, torch.Tensor]:
    return official_state("raft")


def assert_holds(model: torch.nn.Module, name: str, state: dict[str, torch.Tensor]) -> None:
    """Every tensor of the network has the official value, under its official name."""
    assert type(model) is CLASSES[name] and not model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    second_names = {key for key in state if ".downsample.1." in key}
    assert state.keys() - model.state_dict().keys() == second_names
    assert second_names == set(read_keys()[name]["missing_in_accelerate_files"])


def test_the_recorded_names_have_the_recorded_number_of_parameters():
    for name, network in CLASSES.items():
        with torch.device("meta"):
            assert sum(p.numel() for p in network().parameters()) == read_keys()[name]["parameters"]


def test_pth_out_of_data_parallel_with_all_names(official, tmp_path: Path):
    name, state = official
    published = dict(state)
    if name == "igev":
        published |= {key: torch.ones(8) for key in read_keys()["official_igev_extra_keys"]}
        assert set(UNUSED_KEYS) == published.keys() - state.keys()
    torch.save({f"module.{key}": value for key, value in published.items()}, tmp_path / "official.pth")
    assert_holds(convert_official_checkpoint(tmp_path / "official.pth"), name, state)


def test_safetensors_of_accelerate(official, tmp_path: Path):
    name, state = official
    left_out = read_keys()[name]["missing_in_accelerate_files"]
    assert len(left_out) == 20
    written = {key: value for key, value in state.items() if key not in left_out}
    save_file(written, tmp_path / "model.safetensors")
    assert_holds(convert_official_checkpoint(str(tmp_path / "model.safetensors")), name, state)


def test_second_names_alone_will_do(raft, tmp_path: Path):
    torch.save({key: value for key, value in raft.items() if ".norm3." not in key}, tmp_path / "other.pth")
    assert_holds(convert_official_checkpoint(tmp_path / "other.pth"), "raft", raft)


def test_what_was_converted_is_saved_and_loaded_like_any_network(raft, tmp_path: Path):
    torch.save(raft, tmp_path / "official.pth")
    convert_official_checkpoint(tmp_path / "official.pth").save_pretrained(tmp_path / "folder")
    assert_holds(RAFTStereo.from_pretrained(tmp_path / "folder").eval(), "raft", raft)
    again = convert_official_checkpoint(tmp_path / "folder" / "diffusion_pytorch_model.safetensors")
    assert_holds(again, "raft", raft)


def test_renaming_leaves_its_argument_alone(raft):
    before = dict(raft)
    renamed = rename_official_keys(raft)
    assert raft == before and len(renamed) == len(raft) - 20


def test_two_values_for_one_tensor_are_refused(raft, tmp_path: Path):
    changed = raft | {"cnet.layer3.0.downsample.1.bias": raft["cnet.layer3.0.norm3.bias"] + 1}
    torch.save(changed, tmp_path / "two.pth")
    with pytest.raises(ValueError, match="one value for cnet.layer3.0.norm3.bias and cnet.*downsample.1.bias"):
        convert_official_checkpoint(tmp_path / "two.pth")


def test_all_differing_names_are_listed(raft, tmp_path: Path):
    changed = dict(raft)
    del changed["fnet.conv2.bias"]
    del changed["update_block.gru16.convq.weight"]
    changed["update_block.gru64.convq.bias"] = torch.zeros(3)
    changed["fnet.conv1.weight"] = torch.zeros(64, 3, 5, 5)
    torch.save(changed, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"nearest to RAFTStereo, but 4 names differ") as refusal:
        convert_official_checkpoint(tmp_path / "other.pth")
    for line in (
        "missing fnet.conv2.bias [256]",
        "missing update_block.gru16.convq.weight [128, 384, 3, 3]",
        "unexpected update_block.gru64.convq.bias [3]",
        "fnet.conv1.weight is [64, 3, 5, 5] instead of [64, 3, 7, 7]",
    ):
        assert f"\n  {line}" in str(refusal.value)


def test_a_prefix_on_some_names_only_is_not_stripped(raft, tmp_path: Path):
    changed = {f"module.{key}": value for key, value in raft.items()} | {"extra": torch.zeros(1)}
    torch.save(changed, tmp_path / "mixed.pth")
    with pytest.raises(ValueError, match="unexpected module.fnet.conv1.weight"):
        convert_official_checkpoint(tmp_path / "mixed.pth")


def test_a_network_of_another_size_is_refused(tmp_path: Path):
    make_small_raft().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"fnet.conv1.weight is \[8, 3, 7, 7\] instead of \[64, 3, 7, 7\]"):
        convert_official_checkpoint(tmp_path / "diffusion_pytorch_model.safetensors")


def test_a_training_state_is_refused(raft, tmp_path: Path):
    torch.save({"network": raft, "total_steps": 3}, tmp_path / "training.pth")
    with pytest.raises(ValueError, match=r"training.pth holds the entries \['network', 'total_steps'\]"):
        convert_official_checkpoint(tmp_path / "training.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="list.pth holds list"):
        convert_official_checkpoint(tmp_path / "list.pth")


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_cannot_run_code(tmp_path: Path):
    torch.save({"fnet.conv1.weight": Attack(tmp_path / "ran")}, tmp_path / "attack.pth")
    with pytest.raises(ValueError, match="`checkpoint` must be .* a file of torch that holds tensors only"):
        convert_official_checkpoint(tmp_path / "attack.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors", "empty.pth"])
def test_a_broken_file_is_named(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"no tensors at all, whatever its name says")
    with pytest.raises(ValueError, match=f"`checkpoint` must be .* got .*{name}"):
        convert_official_checkpoint(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="`checkpoint` must be a file; got .*nothing.pth"):
        convert_official_checkpoint(tmp_path / "nothing.pth")
