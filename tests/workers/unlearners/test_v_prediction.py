"""A model that predicts v: what a loss is in its outputs, as released, and in the noise they mean.

In noise, nothing that is unlearned depends on what the model predicts.
"""

import copy

import pytest
import torch
from diffusers import DDIMScheduler

from tests.workers.unlearners.small import small
from workers.diffusion.denoise import ddim, denoise, guided, noise_predictor
from workers.diffusion.rng import normal
from workers.diffusion.text import embed
from workers.erasure import negative_guidance
from workers.unlearners.advunlearn import AdvUnlearn
from workers.unlearners.concept_ablation import ConceptAblation
from workers.unlearners.erasediff import EraseDiff
from workers.unlearners.esd import ESD
from workers.unlearners.sdd import SDD
from workers.unlearners.spm import SPM

METHODS = [ESD, ConceptAblation, EraseDiff, SDD, SPM, AdvUnlearn]


def answer_in_v(pipe):
    """v = (ε - √(1-ā) x_t) / √ā for the UNet's ε, and a schedule that says so."""
    alphas = pipe.scheduler.alphas_cumprod

    def to_v(_module, args, _kwargs, output):
        x_t, t = args
        kept = alphas[t].reshape(-1, 1, 1, 1)
        output.sample = (output.sample - (1 - kept).sqrt() * x_t) / kept.sqrt()
        return output

    pipe.unet.register_forward_hook(to_v, with_kwargs=True)
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type="v_prediction"
    )


def test_v_of_the_same_model_is_the_schedulers_own_velocity(pipe):
    """v = √ā ε - √(1-ā) x_0 where x_t = √ā x_0 + √(1-ā) ε: the wrapper's algebra."""
    clean, t = normal((2, 4, 8, 8), 0, 0, "clean"), torch.tensor([100, 900])
    noise = normal(clean.shape, 0, 0, "noise")
    kept = pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    v = (noise - (1 - kept).sqrt() * x_t) / kept.sqrt()
    velocity = pipe.scheduler.get_velocity(clean, noise, t)
    torch.testing.assert_close(v, velocity, atol=1e-5, rtol=1e-4)


def test_the_noise_is_the_same(pipe):
    x_t, t = normal((2, 4, 8, 8), 0, 0, "x"), torch.tensor([20, 980])
    text = embed(pipe, ["a star", "a circle"])
    plain = noise_predictor(pipe)(x_t, t, text)
    answer_in_v(pipe)
    torch.testing.assert_close(noise_predictor(pipe)(x_t, t, text), plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_the_sampler_draws_the_same(pipe, guidance):
    text, empty = embed(pipe, ["a star"]), embed(pipe, [""])

    def drawn():
        predict = guided(pipe.unet, text, empty, guidance)
        return denoise(predict, ddim(pipe, 6), normal((1, 4, 8, 8), 0, 0, "start"), 6)

    plain = drawn()
    answer_in_v(pipe)
    torch.testing.assert_close(drawn(), plain, atol=1e-4, rtol=1e-4)


def first_loss(method, brief, loss_in, **parts):
    chosen = {"loss_in": loss_in} if "loss_in" in method.Settings.model_fields else {}
    return small(method, iterations=1, **chosen).unlearn(brief(**parts)).numbers["loss"]


def watch_time_steps(monkeypatch):
    """The t of everything that is drawn."""
    seen, draw = [], negative_guidance.draw

    def watched(*args, **kwargs):
        latents, t = draw(*args, **kwargs)
        seen.append(t)
        return latents, t

    monkeypatch.setattr(negative_guidance, "draw", watched)
    return seen


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_first_loss_in_noise_is_the_same(warm, brief, method):
    """That of the outputs has another weight at each time step, and is the published one."""
    plain = first_loss(method, brief, "noise")
    warm.reset()
    answer_in_v(warm.pipe)
    assert first_loss(method, brief, "noise") == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("method", [ESD, SDD], ids=lambda method: method.name)
def test_in_outputs_it_is_that_in_noise_by_the_kept_share(pipe, brief, method, monkeypatch):
    """ε = √ᾱ v + √(1-ᾱ) x_t, and the target is linear: a mean square in ε is ᾱ_t of one in v."""
    answer_in_v(pipe)
    seen = watch_time_steps(monkeypatch)
    in_noise, in_outputs = (
        first_loss(method, brief, loss_in, pipe=copy.deepcopy(pipe))
        for loss_in in ("noise", "output")
    )
    assert seen[0] == seen[1]
    kept = float(pipe.scheduler.alphas_cumprod[seen[0]])
    assert in_noise == pytest.approx(kept * in_outputs, rel=1e-4)
