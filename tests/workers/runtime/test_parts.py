"""A batch in parts: the same numbers, less of it at a time."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from orchestrator.core.artifacts import Probe
from workers.diffusion.sampling import sample, sample_floats
from workers.recipes import FinetuneSettings, SampleSettings
from workers.runtime.parts import by_parts, in_parts, part_size, passes
from workers.runtime.progress import heard_by
from workers.training.finetune import Trainer


@contextmanager
def batches_of(unet, only_training=False):
    """The sizes of the batches that go through the UNet."""
    sizes = []

    def note(module, args, kwargs):
        if torch.is_grad_enabled() or not only_training:
            sizes.append(len(args[0]))

    handle = unet.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield sizes
    finally:
        handle.remove()


@pytest.mark.parametrize(("batch", "parts", "size"), [(7, 1, 7), (7, 2, 4), (6, 3, 2), (3, 9, 1)])
def test_the_size_of_a_part(batch, parts, size):
    with in_parts(parts):
        assert part_size(batch) == size
    assert part_size(batch) == batch


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_a_gradient_through_parts_is_that_of_the_whole(parts):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 3, generator=draw, dtype=torch.float64).requires_grad_()
    x = torch.randn(5, 3, generator=draw, dtype=torch.float64)
    text = torch.randn(5, 3, generator=draw, dtype=torch.float64).requires_grad_()
    weights = torch.rand(5, 1, generator=draw, dtype=torch.float64)

    def predict(latents, timesteps, text):
        return torch.tanh(latents @ weight + text) * timesteps.view(-1, 1)

    def gradients():
        found = by_parts(predict, x, torch.arange(5.0), text)
        # Weighted, and not a sum over examples.
        return torch.autograd.grad((weights * found.square()).sum().sqrt(), [weight, text])

    expected = gradients()
    with in_parts(parts):
        for got, wanted in zip(gradients(), expected, strict=True):
            assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-14)


RECIPES = {
    "full": {},
    "lora": {"adapter": "lora"},
    "accumulating": {"accumulation": 2, "caption_dropout": 0.5},
    "checkpointing": {"gradient_checkpointing": True},
}


def gradient(pipe, examples, settings, parts):
    """Adam's first moments after one step are the gradient, scaled."""
    trainer = Trainer(pipe, settings, examples, 0)
    with in_parts(parts), batches_of(pipe.unet) as sizes:
        trainer.train_to(1)
    tensors, _ = trainer.state()
    trainer.finish()
    losses = trainer.losses
    return {n: t for n, t in tensors.items() if n.startswith("optimizer.exp_avg.")}, losses, sizes


@pytest.mark.parametrize("name", RECIPES)
def test_fine_tuning_in_parts_has_the_gradient_of_the_whole_batch(warm, examples, name):
    settings = FinetuneSettings(batch_size=5, clip_norm=None, **RECIPES[name])
    warm.reset()
    expected, losses, sizes = gradient(warm.pipe, examples, settings, 1)
    assert set(sizes) == {5}
    for parts, shares in {2: [3, 2], 3: [2, 2, 1], 9: [1] * 5}.items():
        warm.reset()
        found, again, sizes = gradient(warm.pipe, examples, settings, parts)
        assert sizes == shares * settings.accumulation
        assert again[0][1] == pytest.approx(losses[0][1], rel=1e-5)
        for key, value in expected.items():
            scale = value.abs().max()
            assert torch.allclose(found[key], value, rtol=1e-3, atol=1e-4 * float(scale)), key


def test_fine_tuning_in_parts_ends_near(warm, examples):
    settings = FinetuneSettings(batch_size=6, learning_rate=1e-3)
    states = []
    for parts in (1, 2, 3):
        warm.reset()
        trainer = Trainer(warm.pipe, settings, examples, 0)
        with in_parts(parts):
            trainer.train_to(4)
        trainer.finish()
        states.append((warm.changed(), trainer.losses))
    (whole, curve), *others = states
    for weights, losses in others:
        assert [step for step, _ in losses] == [1, 2, 3, 4]
        assert [x for _, x in losses] == pytest.approx([x for _, x in curve], rel=1e-3)
        moved = sum(float((weights[n] - whole[n]).square().sum()) for n in whole) ** 0.5
        size = sum(float((whole[n] - warm.base_state()[n]).square().sum()) for n in whole) ** 0.5
        assert moved < 0.02 * size


SAMPLING = SampleSettings(images_per_prompt=3, guidance=2.0, sampler_steps=2, batch_size=6)


@pytest.mark.parametrize(("parts", "sizes"), [(1, {12}), (2, {6}), (9, {2})])
def test_pictures_are_drawn_fewer_at_a_time(pipe, parts, sizes):
    prompts = ["a red star", "a blue circle"]
    expected = sample_floats(pipe, prompts, SAMPLING)
    with in_parts(parts), batches_of(pipe.unet) as seen:
        drawn = sample_floats(pipe, prompts, SAMPLING)
    assert set(seen) == sizes  # guidance asks twice
    assert torch.allclose(drawn, expected, atol=1e-4)
    assert parts > 1 or torch.equal(drawn, expected)


def test_pictures_in_one_part_are_the_same_bit_for_bit(pipe):
    probes = [Probe("erased", "star", "a red star")]
    plain = sample(pipe, probes, SAMPLING)
    with in_parts(1):
        again = sample(pipe, probes, SAMPLING)
    assert all((a.image == b.image).all() for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize(
    ("parts", "sizes", "said"), [(1, [4, 3], [4, 7]), (2, [2, 2, 2, 1], [2, 4, 6, 7])]
)
def test_items_go_through_a_network_some_at_a_time(parts, sizes, said):
    told = []
    with in_parts(parts), heard_by(lambda done, total, numbers: told.append((done, total))):
        found = [len(some) for some in passes(list(range(7)), 4)]
    assert found == sizes
    assert told == [(done, 7) for done in said]
