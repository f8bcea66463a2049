# SPDX-License-Identifier: Apache-2.0
"""Few steps: the sampler is the pipeline's, the loss has known values, and a network learns to answer at once."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn

from tests.tiny_components import embedded_pipeline, make_disparity, make_photos, official_pipeline
from training.few_steps import (
    SMALLEST_ENERGY,
    TEXTURE_WEIGHT,
    NoisePair,
    Pictures,
    few_step_loss,
    local_energy,
    pair_loss,
    predicted_latents,
    sample_from_noise,
    signal_and_noise,
    texture_divergence,
    trailing_timesteps,
)
from training.inpainting_from_scratch import make_unet
from training.inpainting_loss import (
    HOLE_WEIGHT,
    KNOWN_WEIGHT,
    InpaintingBatch,
    encode_pair,
    prediction_target,
    warp_pair,
)
from training.run import step_generator

KINDS = ("epsilon", "v_prediction", "sample")


def make_scheduler(kind: str = "epsilon", **changes: Any) -> DDIMScheduler:
    return DDIMScheduler(
        **{
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "prediction_type": kind,
            "clip_sample": False,
            "timestep_spacing": "trailing",
            "rescale_betas_zero_snr": kind != "epsilon",
            **changes,
        }
    )


def make_batch(B: int = 2, h: int = 6, w: int = 9, seed: int = 0) -> InpaintingBatch:
    generator = torch.Generator().manual_seed(seed)
    target, masked = torch.randn((2, B, 3, h, w), generator=generator)
    mask = torch.zeros(B, 1, h, w)
    mask[..., 2:4, 5:7] = 1
    return InpaintingBatch(target, masked, mask, torch.zeros(B, 1, 4))


class Formula(nn.Module):
    """A network whose prediction is a formula of its input [B,7,h,w] and timesteps; counts its runs."""

    def __init__(self, formula: Any):
        super().__init__()
        self.formula, self.timesteps = formula, []
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, sample: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor, return_dict: bool):
        self.timesteps.append(timesteps.tolist())
        return (self.formula(sample, timesteps) + self.bias,)


def knowing(scheduler: DDIMScheduler, latents: Tensor) -> Formula:
    """Return a network that predicts the noise as if the clean latents were `latents`."""

    def noise_for(sample: Tensor, timesteps: Tensor) -> Tensor:
        signal, noise = signal_and_noise(scheduler, timesteps)
        return (sample[:, :3] - signal * latents) / noise

    return Formula(noise_for)


# --- the sampler ---


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 20, 50, 1000])
def test_timesteps_are_those_of_trailing_ddim(steps: int):
    scheduler = make_scheduler()
    scheduler.set_timesteps(steps)
    assert trailing_timesteps(1000, steps) == scheduler.timesteps.tolist()


def test_signal_and_noise_at_a_timestep():
    signal, noise = signal_and_noise(make_scheduler(), torch.tensor([999, 0]))
    assert signal.view(-1).tolist() == pytest.approx([0.068265, 0.999575], abs=1e-5)
    assert noise.view(-1).tolist() == pytest.approx([0.997667, 0.029155], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_turns_back_into_latents(kind: str):
    scheduler, batch = make_scheduler(kind), make_batch()
    noise, timesteps = torch.randn(2, 3, 6, 9, generator=step_generator(0, 0, 0)), torch.tensor([3, 700])
    noisy = scheduler.add_noise(batch.target_latents, noise, timesteps)  # pyright: ignore[reportArgumentType]
    prediction = prediction_target(scheduler, batch.target_latents, noise, timesteps)
    found = predicted_latents(scheduler, prediction, noisy, timesteps)
    torch.testing.assert_close(found, batch.target_latents, rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("layout", ["official", "embedded"])
def test_samples_are_those_of_the_pipeline(layout: str, steps: int, tmp_path):
    trailing = make_scheduler("epsilon" if layout == "official" else "sample")
    build = {"official": lambda: official_pipeline(tmp_path, scheduler=trailing)}
    pipe = build.get(layout, lambda: embedded_pipeline(scheduler=trailing))()
    left, disparity = make_photos(2, 32, 48), make_disparity(2, 32, 48)
    pair = warp_pair(left, disparity, left, pipe.config.masked_fill)
    warp = pipe.warp(left, disparity)
    batch = encode_pair(pipe.vae, pair, pipe.config.latent_mask_reduction, pipe.encode_empty_prompt())
    noise = torch.randn(batch.target_latents.shape, generator=step_generator(0, 0, 0))
    expected = pipe.inpaint(
        *warp[:2], warp.right_disparity, num_inference_steps=steps, latents=noise, output_type="latent"
    )
    found = sample_from_noise(pipe.unet, trailing, batch, noise, steps)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_sampling_leaves_the_scheduler_and_takes_no_gradient():
    scheduler, batch = make_scheduler(), make_batch()
    scheduler.set_timesteps(7)
    network, noise = knowing(scheduler, batch.target_latents), torch.ones(2, 3, 6, 9)
    found = sample_from_noise(network, scheduler, batch, noise, 4)
    torch.testing.assert_close(found, batch.target_latents, rtol=0, atol=1e-4)
    assert network.timesteps == [[999] * 2, [749] * 2, [499] * 2, [249] * 2]
    assert len(scheduler.timesteps) == 7 and not found.requires_grad


# --- texture ---

EVERYWHERE = torch.ones(1, 1, 20, 20)


def only_at(y: int, x: int) -> Tensor:
    mask = torch.zeros(1, 1, 20, 20)
    mask[0, 0, y, x] = 1
    return mask


def test_energy_of_a_known_picture():
    ramp = torch.arange(9.0).expand(1, 1, 6, 9) * 0.5  # steps of .5 along the rows, none along the columns
    for lag, energy in ((1, 0.25), (2, 1.0)):
        inside = local_energy(ramp, lag)[..., : 7 - lag]  # farther right the window reaches where steps end
        torch.testing.assert_close(inside, torch.full_like(inside, energy))
        torch.testing.assert_close(local_energy(ramp.mT, lag)[..., : 7 - lag, :], inside.mT)


def test_energy_knows_neither_sign_nor_place():
    picture = torch.randn(1, 2, 12, 16, generator=step_generator(0, 0, 0))
    torch.testing.assert_close(local_energy(-picture, 1), local_energy(picture, 1))
    stripes = torch.tensor([1.0, -1.0]).repeat(8).expand(1, 1, 12, 16)
    torch.testing.assert_close(local_energy(stripes.roll(1, -1), 1), local_energy(stripes, 1))
    assert not local_energy(stripes, 2)[..., :10].any()  # which is why one lag is not enough


def test_divergence_has_its_closed_form():
    """Ramps of .5 and 1 a pixel: energies .25 and 1 at lag 1, 1 and 4 at lag 2, where no border is near."""
    slow, fast = (torch.arange(20.0).expand(1, 1, 20, 20) * step for step in (0.5, 1.0))
    pairs = [(0.25 + SMALLEST_ENERGY, 1 + SMALLEST_ENERGY), (1 + SMALLEST_ENERGY, 4 + SMALLEST_ENERGY)]
    expected = sum((t * math.log(t / f) - t + f) / t for f, t in pairs)
    assert texture_divergence(slow, fast, only_at(9, 8)).item() == pytest.approx(expected, rel=1e-5)
    assert texture_divergence(slow, slow, EVERYWHERE) == 0


def test_divergence_looks_at_the_mask_only():
    truth = torch.randn(1, 3, 20, 20, generator=step_generator(0, 0, 0))
    found = truth.clone()
    found[..., 12:] = 0
    assert texture_divergence(found, truth, only_at(5, 4)) == 0
    assert texture_divergence(found, truth, only_at(5, 16)) > 1
    assert texture_divergence(found, truth, torch.zeros(1, 1, 20, 20)) == 0


def test_best_energy_for_several_truths_is_their_mean():
    ramp = torch.arange(20.0).expand(3, 1, 20, 20)
    truths = ramp * torch.tensor([0.1, 0.3, 2.0]).sqrt().view(3, 1, 1, 1)
    place = only_at(9, 8).expand(3, 1, 20, 20)
    losses = {
        energy: texture_divergence(ramp * energy**0.5, truths, place).item() for energy in (0.6, 0.7, 0.8, 0.9, 1.0)
    }
    assert min(losses, key=losses.__getitem__) == 0.8


def test_divergence_of_a_flat_picture_has_a_gradient():
    flat = torch.zeros(1, 1, 20, 20, requires_grad=True)
    texture_divergence(flat + torch.eye(20) * 1e-4, torch.rand(1, 1, 20, 20), EVERYWHERE).backward()
    assert flat.grad is not None and torch.isfinite(flat.grad).all() and flat.grad.abs().sum() > 0


# --- the loss ---


PICTURE = torch.rand(2, 3, 12, 18, generator=step_generator(9, 0, 0))


def decode(latents: Tensor) -> Tensor:
    """Make 2 x 2 pixels of each latent pixel."""
    return F.interpolate(latents, scale_factor=2)


PICTURES = Pictures(PICTURE, decode)


def loss_of(first: Tensor, batch: InpaintingBatch, goal: Tensor, **options) -> float:
    """Return the loss of a student that answers `first` whatever it sees."""
    student = Formula(lambda noisy, timesteps: first)
    pair = NoisePair(torch.randn(goal.shape, generator=step_generator(1, 0, 0)), goal)
    generator = step_generator(0, 0, 0)
    return pair_loss(student, make_scheduler("sample"), batch, pair, generator, pictures=PICTURES, **options).item()


def test_loss_of_the_first_answer_is_the_weighted_distance_to_the_goal():
    batch, goal = make_batch(), torch.full((2, 3, 6, 9), 0.25)
    found = loss_of(goal + 0.5, batch, goal, texture_weight=0.0, last_timestep_share=1.0)
    assert found == pytest.approx(0.25 * (KNOWN_WEIGHT + HOLE_WEIGHT * 16 / 54))  # 2 x 2 holes, dilated to 4 x 4


def test_later_answers_are_compared_with_the_first_and_not_with_the_goal():
    batch, goal = make_batch(), torch.full((2, 3, 6, 9), 0.25)
    assert loss_of(goal + 0.5, batch, goal, texture_weight=0.0, last_timestep_share=0.0) == 0

    def later_is_more(noisy: Tensor, timesteps: Tensor) -> Tensor:
        return torch.where((timesteps == 999).view(-1, 1, 1, 1), 1.0, 1.5).expand(2, 3, 6, 9)

    pair = NoisePair(torch.zeros(2, 3, 6, 9), goal)
    options = {"texture_weight": 0.0, "last_timestep_share": 0.0}
    found = pair_loss(
        Formula(later_is_more),
        make_scheduler("sample"),
        batch,
        pair,
        step_generator(0, 0, 0),
        pictures=PICTURES,
        **options,
    )
    assert found.item() == pytest.approx(0.25 * (KNOWN_WEIGHT + HOLE_WEIGHT * 16 / 54))


def test_texture_of_the_first_answer_is_that_of_the_decoded_holes_of_the_truth():
    batch, flat = make_batch(), torch.zeros(2, 3, 6, 9)
    holes = torch.zeros(2, 1, 12, 18)
    holes[..., 4:8, 10:14] = 1
    missing = texture_divergence(decode(flat), PICTURE, holes).item()
    assert missing > 0.5
    assert loss_of(flat, batch, flat, last_timestep_share=1.0) == pytest.approx(TEXTURE_WEIGHT * missing, rel=1e-5)
    assert loss_of(flat, batch, flat, last_timestep_share=0.0) == 0  # later ones repeat the first


def test_without_pictures_the_texture_is_that_of_the_latents():
    batch, flat = make_batch(), torch.zeros(2, 3, 6, 9)
    pair, student = NoisePair(flat, flat), Formula(lambda noisy, timesteps: flat)
    scheduler, generator = make_scheduler("sample"), step_generator(0, 0, 0)
    found = pair_loss(student, scheduler, batch, pair, generator, last_timestep_share=1.0).item()
    missing = texture_divergence(flat, batch.target_latents, batch.latent_mask).item()
    assert missing > 0.5 and found == pytest.approx(TEXTURE_WEIGHT * missing, rel=1e-5)


def test_texture_of_later_answers_is_that_of_the_first():
    batch, picture = make_batch(), torch.randn(2, 3, 6, 9, generator=step_generator(2, 0, 0))

    def later_is_flat(noisy: Tensor, timesteps: Tensor) -> Tensor:
        return torch.where((timesteps == 999).view(-1, 1, 1, 1), picture, torch.zeros_like(picture))

    holes = torch.zeros(2, 1, 12, 18)
    holes[..., 4:8, 10:14] = 1
    missing = texture_divergence(torch.zeros(2, 3, 12, 18), decode(picture), holes).item()
    weight = torch.full((2, 1, 6, 9), KNOWN_WEIGHT)
    weight[..., 1:5, 4:8] += HOLE_WEIGHT
    pair, scheduler = NoisePair(torch.zeros(2, 3, 6, 9), picture), make_scheduler("sample")
    found = pair_loss(
        Formula(later_is_flat),
        scheduler,
        batch,
        pair,
        step_generator(0, 0, 0),
        pictures=PICTURES,
        last_timestep_share=0.0,
    )
    expected = (weight * picture.square()).mean().item() + TEXTURE_WEIGHT * missing
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_later_steps_are_shown_the_first_answer_under_the_same_noise():
    scheduler, batch = make_scheduler("sample"), make_batch()
    seen: list[Tensor] = []

    def keep(noisy: Tensor, timesteps: Tensor) -> Tensor:
        seen.append(noisy[:, :3].clone())
        return torch.full_like(noisy[:, :3], 2.0)

    student, noise = Formula(keep), torch.randn(2, 3, 6, 9, generator=step_generator(1, 0, 0))
    pair = NoisePair(noise, torch.full_like(noise, 5.0))
    pair_loss(student, scheduler, batch, pair, step_generator(0, 0, 0), pictures=PICTURES, last_timestep_share=0.0)
    assert student.timesteps[0] == [999, 999] and max(student.timesteps[1]) < 999
    assert torch.equal(seen[0], noise)
    signal, share = signal_and_noise(scheduler, torch.tensor(student.timesteps[1]))
    torch.testing.assert_close(seen[1], signal * 2.0 + share * noise)


def test_first_step_sees_nothing_but_the_noise():
    scheduler, batch = make_scheduler(), make_batch()
    student = knowing(scheduler, batch.target_latents)
    inputs: list[Tensor] = []
    student.register_forward_pre_hook(lambda _, args: inputs.append(args[0][:, :3].clone()))
    pair = NoisePair(torch.ones(2, 3, 6, 9), batch.target_latents)
    pair_loss(student, scheduler, batch, pair, step_generator(0, 0, 0), pictures=PICTURES, last_timestep_share=1.0)
    assert all(torch.equal(one, pair.noise) for one in inputs) and len(inputs) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_student_alone(kind: str):
    scheduler, batch = make_scheduler(kind), make_batch()
    student, teacher = (Formula(lambda sample, timesteps: 0.5 * sample[:, :3]) for _ in range(2))
    loss = few_step_loss(
        student, teacher, scheduler, batch, step_generator(0, 0, 0), pictures=PICTURES, teacher_steps=3
    )
    loss.backward()
    assert torch.isfinite(loss) and student.bias.grad is not None and student.bias.grad.abs() > 0
    assert teacher.bias.grad is None
    assert [one[0] for one in teacher.timesteps] == trailing_timesteps(1000, 3)


def test_without_a_teacher_the_truth_is_the_goal():
    scheduler, batch = make_scheduler(), make_batch()
    student = knowing(scheduler, batch.target_latents)
    generator, truth = step_generator(0, 0, 0), decode(batch.target_latents)
    assert few_step_loss(student, None, scheduler, batch, generator, pictures=Pictures(truth, decode)).item() < 1e-6
    wrong = few_step_loss(
        Formula(lambda sample, timesteps: sample[:, :3]),
        None,
        scheduler,
        batch,
        step_generator(0, 0, 0),
        pictures=PICTURES,
    )
    assert wrong.item() > 0.1


def test_a_student_that_answers_as_the_teacher_samples_has_no_loss():
    scheduler, batch = make_scheduler(), make_batch()
    network = knowing(scheduler, batch.target_latents)
    generator, truth = step_generator(0, 0, 0), decode(batch.target_latents)
    loss = few_step_loss(
        network, network, scheduler, batch, generator, pictures=Pictures(truth, decode), teacher_steps=2
    )
    assert loss.item() < 1e-6


def test_loss_repeats_and_depends_on_the_generator():
    scheduler, batch = make_scheduler(), make_batch()
    student, teacher = (Formula(lambda sample, timesteps: 0.5 * sample[:, :3]) for _ in range(2))
    state = torch.random.get_rng_state()
    first, again, other = (
        few_step_loss(
            student, teacher, scheduler, batch, step_generator(0, step, 0), pictures=PICTURES, teacher_steps=2
        ).item()
        for step in (0, 0, 1)
    )
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.slow
def test_a_small_network_learns_to_answer_in_one_step():
    torch.manual_seed(0)
    scheduler, batch = make_scheduler("v_prediction"), make_batch(h=8, w=12)
    batch = batch._replace(prompt_embeds=torch.zeros(2, 1, 32))
    noise = torch.randn(batch.target_latents.shape, generator=step_generator(0, 0, 0))
    pair = NoisePair(noise, batch.masked_image_latents)
    student, pictures = make_unet(3, (8, 8)), Pictures(torch.zeros(2, 3, 16, 24), decode)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)

    def distance(steps: int) -> float:
        return (sample_from_noise(student, scheduler, batch, noise, steps) - pair.goal).square().mean().item()

    before = [distance(steps) for steps in (1, 4)]
    for step in range(60):
        pair_loss(
            student, scheduler, batch, pair, step_generator(0, step, 0), pictures=pictures, texture_weight=0.0
        ).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = [distance(steps) for steps in (1, 4)]
    assert after[0] < 0.5 * before[0] and after[1] < 0.5 * before[1]


# --- errors ---


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`steps` must lie in 1 ... 1000; got 0"):
        trailing_timesteps(1000, 0)
    with pytest.raises(ValueError, match=r"`steps` must lie in 1 ... 30; got 31"):
        trailing_timesteps(30, 31)
    for lag in (0, 4):
        with pytest.raises(ValueError, match=rf"`lag` must lie in 1 ... 3; got {lag}"):
            local_energy(torch.zeros(1, 1, 4, 9), lag)
    noisy, timesteps = torch.zeros(1, 1, 2, 2), torch.tensor([999])
    silent = make_scheduler("epsilon", rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match='`scheduler` must keep some signal .* "epsilon"; got a share of'):
        predicted_latents(silent, noisy, noisy, timesteps)
    flow = SimpleNamespace(config=SimpleNamespace(prediction_type="flow"), alphas_cumprod=torch.full((1000,), 0.5))
    with pytest.raises(ValueError, match="`prediction_type` must be .*; got 'flow'"):
        predicted_latents(flow, noisy, noisy, timesteps)
