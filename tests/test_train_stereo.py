# SPDX-License-Identifier: Apache-2.0
"""The stereo script: it learns from every kind of data, a killed run goes on exactly, and what it writes loads."""

import dataclasses
import subprocess
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from datasets_builder.mfs35k import write_file_list, write_pair
from tests.loopback_hub import LoopbackHub
from tests.stereo_network_helpers import make_small_igev, make_small_raft
from tests.test_mfs35k import make_sample
from tests.test_pair_dataset import write_rows
from tests.training_helpers import assert_same_run, checkpoint_tensors, log_lines
from tests.two_processes import ENVIRONMENT, ROOT, kill_with_descendants, launch_command, run_module
from training import stereo_training
from training.run import list_checkpoints
from training.stereo_networks.igev_stereo import IGEVStereo
from training.stereo_networks.raft_stereo import RAFTStereo
from training.stereo_options import StereoConfig
from training.train_stereo import main, train

MODULE = "training.train_stereo"
SMALL = "--network raft --trunk-channels 8 12 16 --feature-channels 16 --hidden-channels 8 --correlation-radius 2"
QUICK = "--crop-size 32 48 --iterations 2 --validation-iterations 2 --validation-scenes 1 --batch-size 2"


def make_config(output: Path, **changes) -> StereoConfig:
    options = {
        "network": "raft",
        "trunk_channels": (8, 12, 16),
        "feature_channels": 16,
        "hidden_channels": 8,
        "correlation_levels": 3,
        "correlation_radius": 2,
        "iterations": 2,
        "validation_iterations": 2,
        "data": ("procedural:1",),
        "crop_size": (32, 48),
        "workers": 0,
        "validation_scenes": 1,
        "batch_size": 2,
        "max_steps": 4,
        "warmup_steps": 1,
        "learning_rate": 2e-3,
        "save_every_steps": 2,
        "validate_every_steps": 4,
        "log_every_steps": 2,
        "tracker": "none",
    }
    if "base" in changes:
        options = {name: value for name, value in options.items() if name not in WITHOUT_BASE}
    return StereoConfig(output=output, **(options | changes))


WITHOUT_BASE = ("network", "trunk_channels", "feature_channels", "hidden_channels", "correlation_levels") + (
    "correlation_radius",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[str, str]:
    """A build of Parquet rows and samples in the layout of MfS35K, as the command line names them."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "build", (3, 2))
    samples = [make_sample(seed, f"left/{seed}.png", 34, 50) for seed in range(3)]
    write_file_list(folder / "mfs/list.txt", [write_pair(folder / "mfs", sample) for sample in samples])
    return f"pairs:{folder / 'build'}:1", f"mfs35k:{folder / 'mfs'}:2"


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch) -> None:
    """Render no more held-out scenes than are used."""
    monkeypatch.setattr(stereo_training, "SCENES_AT_ONCE", 1)


@pytest.fixture
def other_precision():
    """Let a second accelerator of this process have another precision than the first."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


# --- results ---


def test_a_run_ends_as_a_folder_that_loads_in_one_line(tmp_path):
    folder = train(make_config(tmp_path / "run"))
    assert folder == tmp_path / "run/stereo_network"
    network = RAFTStereo.from_pretrained(folder)
    tensors = checkpoint_tensors(tmp_path / "run")
    assert network.config.correlation_levels == 3
    for name, value in network.state_dict().items():
        assert torch.equal(value, tensors[f"network.{name}"]), name
    torch.manual_seed(0)
    fresh = RAFTStereo((8, 12, 16), 16, 8, 3, 2).state_dict()
    learnt = [n for n, v in network.state_dict().items() if not torch.equal(v, fresh[n])]
    assert len(learnt) > 50 and not any("running" in name for name in learnt), "BatchNorm2d is frozen"
    lines = log_lines(tmp_path / "run")
    assert [line["step"] for line in lines] == [2, 4, 4]
    assert {"loss", "disparity_loss", "photometric_loss", "epe_px", "bad3_percent"} < set(lines[0])
    assert {"validation_epe_px", "validation_bad3_percent", "validation_constant_epe_px"} < set(lines[2])
    assert lines[2]["validation_epe_px"] > 0
    with Image.open(tmp_path / "run/pictures/step-000004.png") as picture:
        assert picture.size == (48, 5 * 32)


def test_the_average_is_what_is_saved_where_there_is_one(tmp_path):
    network = RAFTStereo.from_pretrained(train(make_config(tmp_path / "run", ema_decay=0.5, max_steps=2)))
    tensors = checkpoint_tensors(tmp_path / "run")
    averages = [value for name, value in tensors.items() if name.startswith("average.")]
    for found, average in zip(network.parameters(), averages, strict=True):
        assert torch.equal(found, average)
    assert not all(torch.equal(v, tensors[f"network.{n}"]) for n, v in network.state_dict().items())


def test_every_local_source_is_mixed_in_one_run(tmp_path, data):
    train(make_config(tmp_path / "run", data=(*data, "procedural:1"), batch_size=4, max_steps=2, weather="both"))
    (line, _) = log_lines(tmp_path / "run")
    assert line["loss"] > 0 and line["photometric_loss"] > 0


@pytest.mark.parametrize(("make", "kind"), [(make_small_raft, RAFTStereo), (make_small_igev, IGEVStereo)])
def test_training_goes_on_from_published_weights(tmp_path, make, kind):
    make().save_pretrained(tmp_path / "base")
    config = make_config(tmp_path / "run", base=str(tmp_path / "base"), max_steps=1, learning_rate=0.0)
    network = kind.from_pretrained(train(config))
    assert network.config["_class_name"] == kind.__name__
    for name, value in make().named_parameters():
        assert torch.equal(network.get_parameter(name), value), "a step of rate 0 changes nothing"


@pytest.mark.slow
def test_options_of_loss_and_data_change_the_loss(tmp_path, data):
    changes = (
        {},
        {"loss": "supervised"},
        {"loss": "unsupervised"},
        {"photometric_range": 1},
        {"photometric_weight": 0.3},
        {"weather": "right", "seed": 0},
        {"max_disparity_px": 20},
        {"seed": 1},
    )
    losses = []
    for number, change in enumerate(changes):
        output = tmp_path / str(number)
        options = {"data": data[1:], "max_steps": 1, "validate_every_steps": 9, "learning_rate": 1e-9, "batch_size": 3}
        train(make_config(output, **(options | change)))
        losses.append(log_lines(output)[0])
    assert len({line["loss"] for line in losses}) == len(changes)
    assert losses[1]["photometric_loss"] == 0 and losses[2]["disparity_loss"] == 0
    assert losses[4]["photometric_loss"] == pytest.approx(3 * losses[0]["photometric_loss"], rel=1e-5)


def test_passes_of_one_step_count_alike(tmp_path, data):
    """Two passes of 2 pairs and one of 4 take the same samples; the means of their figures are the same."""
    options = {"data": data[1:], "max_steps": 1, "validate_every_steps": 9, "log_every_steps": 1}
    options |= {"loss": "supervised", "max_gradient_norm": None}
    train(make_config(tmp_path / "one", batch_size=2, **options))
    train(make_config(tmp_path / "two", batch_size=1, total_batch_size=2, **options))
    one, two = (log_lines(tmp_path / name)[0] for name in ("one", "two"))
    # means over the valid pixels of a batch, of which nearly all of these samples' are
    assert two["loss"] == pytest.approx(one["loss"], rel=0.02)
    assert two["epe_px"] == pytest.approx(one["epe_px"], rel=0.02)


def test_networks_run_under_autocast_and_the_loss_does_not(tmp_path, other_precision):
    losses = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        train(make_config(tmp_path / precision, mixed_precision=precision, max_steps=1))
        losses[precision] = log_lines(tmp_path / precision)[0]["loss"]
    assert losses["bf16"] != losses["no"]
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.05)


def test_figures_and_pictures_go_to_tensorboard(tmp_path, require):
    require("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(make_config(tmp_path / "run", tracker="tensorboard", max_steps=2))
    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events)).Reload().Tags()
    assert {"loss", "epe_px", "learning_rate", "validation_epe_px"} < set(found["scalars"])
    assert found["images"] == ["validation"]


# --- what is refused, and stops ---


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": ("pairs:/nowhere:1",)}, FileNotFoundError, "`root` must be the folder of a build"),
        ({"base": "/nowhere.pth"}, FileNotFoundError, "`base` must be a file that exists"),
        ({"correlation_levels": 5}, ValueError, "`correlation_levels` must be 1 to 4; got 5"),
        ({"total_batch_size": 3}, ValueError, "`total_batch_size` must be a multiple of"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_step(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        train(make_config(tmp_path / "run", **changes))
    assert not list_checkpoints(tmp_path / "run")


def test_help_and_a_bad_word(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--validation-iterations" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--network", "raft", "--data", "photos:a:1", "--output", "o"])
    assert "`data` must name one of the kinds" in capsys.readouterr().err


# --- exact resume ---


@pytest.mark.slow
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_stopped_run_goes_on_exactly(tmp_path, data, ema_decay):
    config = make_config(
        tmp_path / "whole",
        data=(*data, "procedural:1"),
        weather="right",
        ema_decay=ema_decay,
        total_batch_size=4,
        max_steps=3,
        validate_every_steps=2,
    )
    train(config)
    parts = dataclasses.replace(config, output=tmp_path / "parts", stop_after_minutes=0)
    assert train(parts) == tmp_path / "parts"  # one step
    assert not (tmp_path / "parts/stereo_network").exists()
    train(dataclasses.replace(parts, stop_after_minutes=None, resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_does_not_go_on_with_other_samples(tmp_path):
    write_rows(tmp_path / "build", (2, 1))
    config = make_config(tmp_path / "run", data=(f"pairs:{tmp_path / 'build'}:1",), stop_after_minutes=0, max_steps=2)
    train(config)
    write_rows(tmp_path / "build", (2, 3))
    more = dataclasses.replace(config, resume=True)
    with pytest.raises(ValueError, match="`data` goes on with the samples that .*data.json names, .*3 samples of "):
        train(more)
    train(dataclasses.replace(more, allow_changes=True))
    assert "5 samples of" in (tmp_path / "run/data.json").read_text()


def words_of(output: Path, data: tuple[str, str], workers: int) -> list[str]:
    words = [*SMALL.split(), *QUICK.split(), "--output", str(output), "--workers", str(workers)]
    words += [word for source in (*data, "procedural:1") for word in ("--data", source)]
    words += "--max-steps 8 --warmup-steps 2 --learning-rate 2e-3 --save-every-steps 3 --log-every-steps 2".split()
    return [*words, "--validate-every-steps", "4", "--checkpoints-keep", "2", "--ema-decay", "0.9"]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers", "workers_after"), [(1, 2, 0), (2, 0, 2)])
def test_a_killed_run_goes_on_exactly(tmp_path, data, processes, workers, workers_after):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_module(MODULE, *words_of(whole, data, workers_after), processes=processes)

    command = launch_command(MODULE, *words_of(parts, data, workers), processes=processes)
    killed = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list_checkpoints(parts) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert kill_with_descendants(killed) >= (1 + workers if processes == 1 else 1 + processes)
    assert 0 < int(list_checkpoints(parts)[-1].name[-6:]) < 8

    run_module(MODULE, *words_of(parts, data, workers_after), "--resume", processes=processes)
    assert_same_run(whole, parts)
    assert len(list_checkpoints(parts)) == 2


# --- the Hub ---


@pytest.mark.slow
def test_data_and_base_from_the_hub_and_result_to_the_hub(tmp_path):
    write_rows(tmp_path / "build", (3, 2))
    script = f"""
from huggingface_hub import HfApi
from tests.stereo_network_helpers import make_small_raft
api = HfApi()
api.create_repo("me/pairs", repo_type="dataset")
api.upload_folder(repo_id="me/pairs", repo_type="dataset", folder_path={str(tmp_path / "build")!r})
make_small_raft().push_to_hub("me/base")
from training.train_stereo import main
words = "--base me/base --data hub:me/pairs:1 --workers 0 --max-steps 1 --tracker none {QUICK}"
main([*words.split(), *"--push-to-hub me/tuned --licence cc-by-4.0 --output {tmp_path}/run".split()])
import torch
from training.stereo_networks.raft_stereo import RAFTStereo
network = RAFTStereo.from_pretrained("me/tuned").eval()
left = torch.rand(1, 3, 40, 50) * 255
print(tuple(network(left, left, 1).disparity.shape))
local = RAFTStereo.from_pretrained("{tmp_path}/run/stereo_network")
print(all(torch.equal(a, b) for a, b in zip(local.parameters(), network.parameters())))
"""
    with LoopbackHub(tmp_path / "hub") as hub:
        printed = hub.run_python(script, home=tmp_path / "home", PYTHONPATH=str(ROOT))
        files, card = set(hub.files("me/tuned")), hub.read("me/tuned", "README.md").decode()
    assert "(1, 1, 40, 50)\nTrue" in printed
    assert {"README.md", "validation.png", "config.json", "diffusion_pytorch_model.safetensors"} <= files
    assert "license: cc-by-4.0" in card and "base_model: me/base" in card and "- me/pairs" in card
    assert 'from_pretrained("me/tuned")' in card and "| epe_px |" in card
