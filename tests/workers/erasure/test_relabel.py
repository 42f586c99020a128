from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

from workers.diffusion.denoise import noise_predictor
from workers.diffusion.rng import normal
from workers.diffusion.text import embed
from workers.erasure.materials import Pictures
from workers.erasure.relabel import PictureSet, denoising_loss, relabel_loss

PROMPTS = ("a star", "a red star", "a blue star")


@pytest.fixture
def stars(pipe):
    latents = normal((3, 4, 8, 8), 0, 0, "stars")
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    return PictureSet.of(pipe, Pictures(latents, images, PROMPTS))


def test_pictures_come_with_their_own_prompts(pipe, stars):
    assert torch.equal(stars.text, embed(pipe, PROMPTS))


def test_a_batch_is_a_function_of_seed_step_and_stream(stars):
    def batch(*key):
        return stars.batch(4, *key)

    first, again = batch(0, 5, "forget"), batch(0, 5, "forget")
    assert torch.equal(first.noisy, again.noisy)
    for other in (batch(1, 5, "forget"), batch(0, 6, "forget"), batch(0, 5, "retain")):
        assert not torch.equal(first.noisy, other.noisy)


def test_a_batch_is_its_pictures_with_noise(stars):
    batch = stars.batch(5, 0, 0, "forget")
    kept = stars.scheduler.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    noisy = kept.sqrt() * stars.latents[batch.rows] + (1 - kept).sqrt() * batch.noise
    torch.testing.assert_close(batch.noisy, noisy)


def test_the_ordinary_loss_by_hand(pipe, stars):
    batch = stars.batch(4, 0, 0, "forget")
    found = pipe.unet(
        batch.noisy, batch.timesteps, encoder_hidden_states=stars.text[batch.rows]
    ).sample
    loss = denoising_loss(noise_predictor(pipe), batch, stars.text)
    torch.testing.assert_close(loss, (found - batch.noise).square().mean())


def test_an_ordinary_loss_compares_with_v_where_that_is_the_output(pipe, stars):
    batch = stars.batch(4, 0, 0, "forget")
    assert torch.equal(stars.target(batch, "output"), batch.noise)
    schedule = DDPMScheduler.from_config(stars.scheduler.config, prediction_type="v_prediction")
    in_v = replace(stars, scheduler=schedule)
    assert torch.equal(in_v.target(batch, "noise"), batch.noise)
    kept = schedule.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    v = kept.sqrt() * batch.noise - (1 - kept).sqrt() * stars.latents[batch.rows]
    torch.testing.assert_close(in_v.target(batch, "output"), v)


def test_a_pass_sees_every_picture_once_and_is_a_function_of_the_seed(stars):
    passes = [[batch.rows.tolist() for batch in stars.once(2, 4, "forget")] for _ in range(2)]
    assert passes[0] == passes[1]
    assert [len(rows) for rows in passes[0]] == [2, 1]
    assert sorted(row for rows in passes[0] for row in rows) == [0, 1, 2]


def test_the_relabelling_loss_by_hand_and_its_target_has_no_gradient(pipe, stars):
    weight = pipe.unet.conv_out.weight.requires_grad_(True)
    batch, anchor = stars.batch(4, 0, 0, "forget"), embed(pipe, ["a circle"] * 3)
    predict = noise_predictor(pipe)
    loss = relabel_loss(predict, predict, batch, stars.text, anchor)
    found, target = (
        pipe.unet(batch.noisy, batch.timesteps, encoder_hidden_states=text[batch.rows]).sample
        for text in (stars.text, anchor)
    )
    expected = (found - target.detach()).square().mean()
    torch.testing.assert_close(loss, expected)
    ours, by_hand = (torch.autograd.grad(value, weight)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, by_hand)


def test_a_concept_that_is_its_own_anchor_has_nothing_to_learn(pipe, stars):
    predict = noise_predictor(pipe)
    batch = stars.batch(4, 0, 0, "forget")
    assert relabel_loss(predict, predict, batch, stars.text, stars.text).item() == 0
