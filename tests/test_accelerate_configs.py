# SPDX-License-Identifier: Apache-2.0
"""The accelerate configs: accelerate reads each as it is meant, and each says how it is used."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

FOLDER = Path(__file__).resolve().parent.parent / "training" / "accelerate_configs"
EXPECTED = {
    "one_gpu": (DistributedType.NO, 1, 1),
    "eight_gpus": (DistributedType.MULTI_GPU, 8, 1),
    "two_nodes": (DistributedType.MULTI_GPU, 16, 2),
    "fsdp": (DistributedType.FSDP, 8, 1),
}


def test_there_is_a_config_for_each_way_and_no_other():
    assert {path.stem for path in FOLDER.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_config_is_what_accelerate_takes(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert (config.distributed_type, config.num_processes, config.num_machines) == EXPECTED[name]
    assert config.mixed_precision == "bf16" and not config.use_cpu


def test_shared_weights_are_gathered_whole_and_cut_at_layers_of_the_unet():
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    settings = load_config_from_file(str(FOLDER / "fsdp.yaml")).fsdp_config
    layers = {BasicTransformerBlock.__name__, ResnetBlock2D.__name__}
    assert set(settings["fsdp_transformer_layer_cls_to_wrap"].split(",")) == layers
    assert settings["fsdp_state_dict_type"] == "FULL_STATE_DICT"


@pytest.mark.parametrize("name", EXPECTED)
def test_config_says_how_it_is_used(name):
    head = (FOLDER / f"{name}.yaml").read_text().split("\ncompute_environment")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"accelerate launch --config_file training/accelerate_configs/{name}.yaml" in head
    assert "-m training.train_inpainting" in head
