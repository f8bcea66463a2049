# SPDX-License-Identifier: Apache-2.0
"""What training scripts share: options, schedule, checkpoints, exact resume."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn

from tests.training_helpers import assert_same_run, checkpoint_tensors, log_lines
from tests.two_processes import report_learning_rates, run_module
from training.run import (
    FINAL_LEARNING_RATE_SHARE,
    RunConfig,
    TrainingRun,
    checkpoint_step,
    count_micro_steps,
    learning_rate_at,
    list_checkpoints,
    load_config,
    make_accelerator,
    make_parser,
    option,
    parse_config,
    picture_grid,
    save_config,
    step_generator,
    write_folder_atomically,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallConfig(RunConfig):
    """One option of every kind."""

    folder: Path = option(help="a required path", group="kinds")
    sides: tuple[int, ...] = option((3, 5), help="a tuple", group="kinds", at_least=2)
    limit: int | None = option(None, help="may be none", group="kinds", at_least=1)
    share: float = option(0.25, help="a number", group="kinds", at_least=0, at_most=1)
    flag: bool = option(True, help="a switch", group="kinds")
    fill: Literal["zero", "one"] = option("zero", help="a choice", group="kinds")
    size: Literal["small", "large"] | None = option(None, help="a choice or none", group="kinds")
    place: Path | None = option(None, help="a path or none", group="kinds")


def make_config(output: Path, **changes) -> RunConfig:
    options = {"max_steps": 9, "warmup_steps": 2, "save_every_steps": 3, "log_every_steps": 2, "checkpoints_keep": 5}
    return RunConfig(output=output, **(options | changes))


def run_steps(config: RunConfig, break_at: int | None = None) -> TrainingRun:
    """Fit a line by the steps that a script takes; `break_at` simulates a kill inside that step."""
    torch.manual_seed(config.seed)
    network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate)
    accelerator = make_accelerator(config)
    network, optimizer = accelerator.prepare(network, optimizer)
    run = TrainingRun(accelerator, config, network, optimizer)
    for step in run.steps():
        if step == break_at:
            return run
        inputs = torch.randn(4, 3, generator=step_generator(config.seed, step, 0))
        loss = (network(inputs) - inputs[:, :2]).square().mean()
        run.update(step, loss)
        run.log_step(step, {"loss": loss}, samples=4)
    run.finish()
    return run


# --- options ---


def test_command_line_round_trip():
    config = SmallConfig(
        output=Path("a b"),
        folder=Path("c"),
        sides=(7, 9, 11),
        limit=4,
        share=0.125,
        flag=False,
        fill="one",
        learning_rate=1.5e-5,
        stop_after_minutes=0.5,
        resume=True,
    )
    words = (
        "--output|a b|--folder|c|--sides|7|9|11|--limit|4|--share|0.125|--no-flag|--fill|one|--learning-rate|1.5e-5"
    )
    assert parse_config(SmallConfig, [*words.split("|"), "--stop-after-minutes", "0.5", "--resume"]) == config


def test_command_line_defaults_are_those_of_the_class():
    assert parse_config(SmallConfig, ["--output", "o", "--folder", "f"]) == SmallConfig(
        output=Path("o"), folder=Path("f")
    )


def test_optional_is_set_back_to_none():
    words = ["--output", "o", "--folder", "f", "--limit", "none"]
    assert parse_config(SmallConfig, words).limit is None


def test_a_repeated_option_is_one_list():
    words = ["--output", "o", "--folder", "f", "--sides", "7", "--sides", "9", "11"]
    assert parse_config(SmallConfig, words).sides == (7, 9, 11)


def test_a_choice_that_may_be_none():
    words = ["--output", "o", "--folder", "f", "--size"]
    assert parse_config(SmallConfig, [*words, "large"]).size == "large"
    assert parse_config(SmallConfig, [*words, "none"]).size is None
    assert "{small,large,none}" in make_parser(SmallConfig).format_help()


def test_command_line_goes_before_a_preset_and_a_preset_before_the_defaults():
    presets = {"wide": {"sides": (20, 30), "share": 0.75}, "other": {}}
    words = ["--output", "o", "--folder", "f"]
    config = parse_config(SmallConfig, [*words, "--preset", "wide", "--share", "0.5"], presets=presets)
    assert (config.sides, config.share, config.fill) == ((20, 30), 0.5, "zero")
    assert parse_config(SmallConfig, words, presets=presets).sides == (3, 5)


def test_an_unknown_preset_is_named(capsys):
    with pytest.raises(SystemExit):
        parse_config(SmallConfig, ["--output", "o", "--folder", "f", "--preset", "thin"], presets={"wide": {}})
    assert "'thin' (choose from" in capsys.readouterr().err


def test_help_shows_default_group_and_text():
    text = make_parser(SmallConfig, "what it is").format_help()
    assert "what it is" in text and "kinds:" in text
    assert "a tuple (default: 3 5)" in text and "may be none (default: none)" in text
    assert "a required path (required)" in text and "--no-flag" in text and "{zero,one}" in text


def test_abbreviated_options_are_refused(capsys):
    with pytest.raises(SystemExit):
        parse_config(SmallConfig, ["--out", "o", "--folder", "f"])
    assert "--output" in capsys.readouterr().err


def test_bad_value_on_the_command_line_is_named(capsys):
    with pytest.raises(SystemExit):
        parse_config(SmallConfig, ["--output", "o", "--folder", "f", "--share", "1.5"])
    assert "`share` must be <= 1; got 1.5." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 1.5}, "`share` must be <= 1; got 1.5"),
        ({"share": -0.5}, "`share` must be >= 0; got -0.5"),
        ({"sides": (3, 1)}, r"`sides` must be >= 2; got \(3, 1\)"),
        ({"limit": 0}, "`limit` must be >= 1; got 0"),
        ({"fill": "two"}, r"`fill` must be one of \('zero', 'one'\); got 'two'"),
        ({"size": "huge"}, r"`size` must be one of \('small', 'large', None\); got 'huge'"),
        ({"schedule": "step"}, r"`schedule` must be one of \('cosine', 'one-cycle'\); got 'step'"),
        ({"max_steps": 0}, "`max_steps` must be >= 1; got 0"),
        ({"ema_decay": 1.25}, "`ema_decay` must be <= 1; got 1.25"),
        ({"mixed_precision": "int8"}, "`mixed_precision` must be one of"),
    ],
)
def test_bad_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SmallConfig(output=Path("o"), folder=Path("f"), **changes)


def test_config_file_round_trip(tmp_path):
    config = SmallConfig(output=tmp_path, folder=Path("f"), sides=(8,), limit=3, place=Path("p"), size="small")
    save_config(config, tmp_path / "config.json")
    assert load_config(SmallConfig, tmp_path / "config.json") == config


def test_config_file_with_foreign_options_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"output": "o", "colour": 1}')
    with pytest.raises(ValueError, match=r"holds options that RunConfig does not have: \['colour'\]"):
        load_config(RunConfig, tmp_path / "config.json")


# --- functions of the step ---


def test_learning_rate_curve():
    curve = [learning_rate_at(step, peak=8.0, warmup_steps=4, max_steps=9) for step in range(9)]
    half = 8 * (FINAL_LEARNING_RATE_SHARE + (1 - FINAL_LEARNING_RATE_SHARE) / 2)
    assert curve[:5] == [2.0, 4.0, 6.0, 8.0, 8.0]
    assert curve[6] == pytest.approx(half)
    assert curve[8] == pytest.approx(8 * FINAL_LEARNING_RATE_SHARE)
    assert learning_rate_at(20, peak=8.0, warmup_steps=4, max_steps=9) == curve[8]
    assert learning_rate_at(0, peak=3.0, warmup_steps=0, max_steps=1) == 3.0


PAPER_SCHEDULE = {"learning_rate": 2e-5, "warmup_steps": 500, "max_steps": 50_000, "schedule": "one-cycle"}
PAPER_RATES = [8e-7, 2e-5, 1.010e-5, 8e-11]  # at steps 0, 499, 25000, 49999, recorded from the official script


def test_one_cycle_is_that_of_torch():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=40, pct_start=0.1, anneal_strategy="linear", cycle_momentum=False
    )
    for step in range(40):
        options = {"peak": 3e-3, "warmup_steps": 4, "max_steps": 40, "schedule": "one-cycle"}
        assert learning_rate_at(step, **options) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step < 39:
            theirs.step()
    assert learning_rate_at(70, **options) == learning_rate_at(39, **options)
    assert learning_rate_at(0, peak=5.0, warmup_steps=0, max_steps=3, schedule="one-cycle") == 5.0


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_processes_take_one_step_at_the_learning_rate_of_the_step(tmp_path, capsys, processes):
    options = {**PAPER_SCHEDULE, "batch_size": 3, "total_batch_size": 12, "log_every_steps": 1}
    if processes == 1:
        report_learning_rates(tmp_path / "run", **options)
        printed = capsys.readouterr().out
    else:
        printed = run_module("tests.two_processes", str(tmp_path / "run"), json.dumps(options), processes=processes)
    report = json.loads(printed.splitlines()[-1])
    assert report["processes"] == processes
    weight = 1.0
    for rate in PAPER_RATES:
        weight -= rate * 2.5  # plain gradient descent: the mean of 1, 2, 3, 4 over processes and micro steps
    for *rates, found in report["found"]:
        assert rates == pytest.approx(PAPER_RATES, rel=1e-3)
        assert found == pytest.approx(weight, abs=2e-7)
    assert log_lines(tmp_path / "run")[0]["loss"] == (processes - 1) / 2  # the mean over processes


@pytest.mark.parametrize(("processes", "total", "expected"), [(1, None, 1), (1, 12, 3), (2, 12, 2), (2, None, 1)])
def test_micro_steps_follow_from_the_total_batch(tmp_path, processes, total, expected):
    config = make_config(tmp_path, batch_size=4 if processes == 1 else 3, total_batch_size=total)
    assert count_micro_steps(config, processes) == expected


def test_a_total_batch_that_cannot_be_divided_is_refused(tmp_path):
    config = make_config(tmp_path, batch_size=8, total_batch_size=32)
    message = r"`total_batch_size` must be a multiple of `batch_size` x processes = 8 x 3; got 32"
    with pytest.raises(ValueError, match=message):
        count_micro_steps(config, 3)


def test_step_generator_depends_on_seed_step_and_rank_only():
    def first(*key):
        return torch.randint(2**60, (1,), generator=step_generator(*key)).item()

    state = torch.random.get_rng_state()
    assert first(1, 2, 3) == first(1, 2, 3)
    assert len({first(1, 2, 3), first(2, 1, 3), first(1, 3, 2), first(12, 3, 0), first(1, 23, 0)}) == 5
    assert torch.equal(torch.random.get_rng_state(), state)


# --- checkpoints and resume ---


def test_resume_equals_an_uninterrupted_run(tmp_path):
    run_steps(make_config(tmp_path / "whole"))
    run_steps(make_config(tmp_path / "parts"), break_at=5)  # killed after step 5; the newest checkpoint is of step 3
    assert [path.name for path in list_checkpoints(tmp_path / "parts")] == ["checkpoint-000003"]
    run = run_steps(make_config(tmp_path / "parts", resume=True))
    assert run.first_step == 3
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert [line["step"] for line in log_lines(tmp_path / "parts")] == [2, 4, 6, 8, 9]


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    inputs = torch.randn(6, 3, generator=step_generator(0, 0, 0))
    weights = []
    for total, parts in ((None, [inputs]), (6, inputs.split(2))):
        torch.manual_seed(0)
        network = nn.Linear(3, 2)
        config = make_config(tmp_path / f"{total}", batch_size=6 // len(parts), total_batch_size=total)
        accelerator = make_accelerator(config)
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        run = TrainingRun(accelerator, config, *accelerator.prepare(network, optimizer))
        for micro_step, part in enumerate(parts):
            with run.no_exchange(micro_step):
                run.backward(run.network(part).square().mean())
        run.update(5)
        weights.append(network.weight.detach())
        assert run.micro_steps == len(parts)
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize(("limit", "change"), [(None, 4.0), (0.5, 0.5), (9.0, 4.0)])
def test_gradients_are_clipped_where_a_limit_is_given(tmp_path, limit, change):
    config = make_config(tmp_path, max_gradient_norm=limit, learning_rate=1.0, warmup_steps=0)
    network = nn.Linear(1, 1, bias=False)
    before = network.weight.item()
    accelerator = make_accelerator(config)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    run = TrainingRun(accelerator, config, *accelerator.prepare(network, optimizer))
    run.update(0, 4 * run.network(torch.ones(1, 1)).sum())
    assert before - network.weight.item() == pytest.approx(change, abs=1e-5)


def test_without_an_average_the_last_weights_are_used_and_resume_is_exact(tmp_path):
    run = run_steps(make_config(tmp_path / "whole", ema_decay=None))
    assert run.average is None
    with run.averaged_network() as network:
        assert torch.equal(network.weight, run.network.weight) and not network.training
    assert run.network.training
    run_steps(make_config(tmp_path / "parts", ema_decay=None), break_at=5)
    run_steps(make_config(tmp_path / "parts", ema_decay=None, resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_frozen_weights_are_left_out_of_checkpoints_and_untouched_by_resume(tmp_path):
    def run(config: RunConfig, frozen: float, break_at: int | None = None) -> nn.Module:
        network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        nn.init.constant_(network[0].weight.requires_grad_(False), frozen)
        for parameter in (network[0].bias, network[1].weight, network[1].bias):
            nn.init.constant_(parameter, 0.25)
        accelerator = make_accelerator(config)
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1.0)
        run = TrainingRun(accelerator, config, *accelerator.prepare(network, optimizer))
        for step in run.steps():
            if step == break_at:
                break
            loss = run.network(torch.full((1, 2), 1.0 + step)).square().mean()
            run.update(step, loss)
            run.log_step(step, {"loss": loss}, samples=1)
        return network

    run(make_config(tmp_path / "whole"), 0.5)
    run(make_config(tmp_path / "parts"), 0.5, break_at=4)
    run(make_config(tmp_path / "parts", resume=True), 0.5)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    names = {name for name in checkpoint_tensors(tmp_path / "whole") if name.startswith("network.")}
    assert names == {"network.0.bias", "network.1.weight", "network.1.bias"}


class Configured(nn.Linear):
    """A network that is made from its configuration, as those of diffusers are."""

    config = {"in_features": 3, "out_features": 2}

    @classmethod
    def from_config(cls, config: dict[str, int]) -> nn.Module:
        return cls(**config)


def shared_run(config: RunConfig, network: nn.Module, monkeypatch) -> TrainingRun:
    """A run of one process whose accelerator says that processes share the weights."""
    accelerator = make_accelerator(config)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0)
    network, optimizer = accelerator.prepare(network, optimizer)
    monkeypatch.setattr(type(accelerator), "distributed_type", DistributedType.FSDP)
    return TrainingRun(accelerator, config, network, optimizer)


def test_weights_that_processes_share_are_gathered_to_be_saved(tmp_path, monkeypatch):
    network = Configured(3, 2)
    run = shared_run(make_config(tmp_path, ema_decay=None), network, monkeypatch)
    monkeypatch.setattr(type(run.accelerator), "get_state_dict", lambda self, model: model.state_dict())
    with run.network_to_save() as saved:
        assert saved is not network and not saved.training
        assert torch.equal(saved.weight, network.weight) and torch.equal(saved.bias, network.bias)


@pytest.mark.parametrize(
    ("ema_decay", "bias_learns", "message"),
    [
        (0.5, True, "`ema_decay` must be none where processes share weights .*; got 0.5"),
        (None, False, "`network` must learn as a whole where processes share weights"),
    ],
)
def test_neither_average_nor_frozen_parts_where_weights_are_shared(
    tmp_path, monkeypatch, ema_decay, bias_learns, message
):
    network = Configured(3, 2)
    network.bias.requires_grad_(bias_learns)
    with pytest.raises(ValueError, match=message):
        shared_run(make_config(tmp_path, ema_decay=ema_decay), network, monkeypatch)


def test_waiting_for_data_is_logged(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("training.run.time.monotonic", lambda: now[0])
    run = run_steps(make_config(tmp_path / "run", max_steps=1))

    def slow_batches():
        for _ in range(2):
            now[0] += 3.0
            yield torch.ones(1)

    for step, batch in enumerate(run.waited_for(slow_batches())):
        now[0] += 1.0
        run.log_step(step + 2, {"loss": batch[0]}, samples=10)
    line = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert (line["step"], line["data_wait_share"], line["samples_per_s"]) == (4, 0.75, 2.5)


def test_resume_with_another_number_of_processes_is_refused(tmp_path):
    run = run_steps(make_config(tmp_path / "run"))
    with pytest.raises(ValueError, match="`resume` goes on with 2 processes, as before.*; got 1"):
        run.load_state_dict({"steps": 0, "sums": [{}, {}]})


def test_a_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("training.run.is_wandb_available", lambda: False)
    with pytest.raises(ValueError, match="`tracker` needs an installed package: pip install wandb.*; got 'wandb'"):
        make_accelerator(make_config(tmp_path, tracker="wandb"))
    assert make_accelerator(make_config(tmp_path, tracker="none")).log_with == []


def test_run_stops_when_the_time_is_up_and_goes_on(tmp_path):
    run_steps(make_config(tmp_path / "whole"))
    run = run_steps(make_config(tmp_path / "parts", stop_after_minutes=0))
    assert run.completed == 1
    assert [path.name for path in list_checkpoints(tmp_path / "parts")] == ["checkpoint-000001"]
    run_steps(make_config(tmp_path / "parts", resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_checkpoint_holds_network_optimizer_average_and_config(tmp_path):
    config = make_config(tmp_path / "run")
    run = run_steps(config)
    tensors = checkpoint_tensors(tmp_path / "run")
    assert torch.equal(tensors["network.weight"], run.network.weight)
    assert torch.equal(tensors["average.0"], run.average.shadow_params[0])
    assert not torch.equal(tensors["average.0"], tensors["network.weight"])
    assert tensors["optimizer.0.exp_avg"].shape == (2, 3)
    assert load_config(RunConfig, tmp_path / "run/checkpoint-000009/config.json") == config


def test_resume_refuses_other_options_unless_told(tmp_path):
    config = make_config(tmp_path / "run", max_steps=4)
    run_steps(config)
    changed = dataclasses.replace(config, max_steps=6, resume=True, seed=config.seed + 1)
    with pytest.raises(ValueError, match=r"`resume` goes on with the options of .*000004.*; got \{'seed': \("):
        run_steps(changed)
    assert load_config(RunConfig, tmp_path / "run" / "config.json") == config
    run = run_steps(dataclasses.replace(changed, allow_changes=True))
    assert (run.first_step, run.completed) == (4, 6)
    assert load_config(RunConfig, tmp_path / "run" / "config.json").seed == config.seed + 1


def test_half_written_checkpoint_is_never_picked(tmp_path):
    config = make_config(tmp_path / "run", max_steps=6)
    run_steps(config)
    half = tmp_path / "run/checkpoint-000008.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (tmp_path / "run/checkpoint-000009").write_text("a file, not a folder")
    assert [checkpoint_step(path) for path in list_checkpoints(tmp_path / "run")] == [3, 6]
    (tmp_path / "run/checkpoint-000009").unlink()
    run = run_steps(dataclasses.replace(config, max_steps=8, resume=True))
    assert run.first_step == 6
    assert not half.exists()  # the run wrote its own checkpoint-000008 in its place


def test_a_kill_while_saving_leaves_no_checkpoint_of_that_step(tmp_path, monkeypatch):
    def save_half(accelerator, folder, **kwargs):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    config = make_config(tmp_path / "run")
    run = run_steps(config, break_at=5)
    monkeypatch.setattr(type(run.accelerator), "save_state", save_half)
    run.completed = 5
    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint()
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-000003"]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run_steps(make_config(tmp_path / "run", save_every_steps=2, checkpoints_keep=2))
    assert [checkpoint_step(path) for path in list_checkpoints(tmp_path / "run")] == [8, 9]


def test_a_second_run_into_the_same_folder_is_refused(tmp_path):
    run_steps(make_config(tmp_path / "run"))
    with pytest.raises(FileExistsError, match=r"`output` must not hold another run's checkpoints; got .*000009"):
        run_steps(make_config(tmp_path / "run"))


def test_resume_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`resume` needs a folder checkpoint-NNNNNN in `output`; got .*run"):
        run_steps(make_config(tmp_path / "run", resume=True))


def test_checkpoint_step_refuses_other_names():
    with pytest.raises(ValueError, match="`checkpoint` must be a folder named checkpoint-NNNNNN; got .*half.tmp"):
        checkpoint_step(Path("half.tmp"))


def test_log_line_is_the_mean_of_its_steps(tmp_path):
    run = run_steps(make_config(tmp_path / "run", max_steps=1))
    for step, value in enumerate((1.0, 4.0)):
        run.log_step(step + 2, {"loss": torch.tensor(value)}, samples=4)
    line = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert (line["step"], line["loss"]) == (4, 2.5)
    assert line["samples_per_s"] > 0


def test_averaged_network_is_a_guest(tmp_path):
    run = run_steps(make_config(tmp_path / "run"))
    learned = run.network.weight.detach().clone()
    with run.averaged_network() as averaged:
        assert torch.equal(averaged.weight, run.average.shadow_params[0])
        assert not averaged.training
    assert torch.equal(run.network.weight, learned)
    assert run.network.training


# --- files ---


def test_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "network"
    write_folder_atomically(target, lambda folder: (folder / "a").write_text("1"))

    def fail(folder: Path) -> None:
        (folder / "a").write_text("2")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_folder_atomically(target, fail)
    assert (target / "a").read_text() == "1"
    write_folder_atomically(target, lambda folder: (folder / "b").write_text("3"))
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["network"]


def test_picture_grid_places_rows_and_columns():
    def cell(channels: int, value: float) -> Tensor:
        return torch.full((channels, 2, 3), value)

    grid = picture_grid([[cell(3, 0.0), cell(1, 1.0)], [cell(1, 0.2), cell(3, 2.0)]])
    assert grid.size == (6, 4)
    assert [grid.getpixel(xy)[1] for xy in ((0, 0), (3, 0), (0, 2), (5, 3))] == [0, 255, 51, 255]
