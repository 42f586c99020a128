import numpy as np
import pytest
import torch

from workers.diffusion.latents import encode_images
from workers.interfaces.dataset import Examples
from workers.recipes import FinetuneSettings
from workers.training.batches import Pictures


def shown(pipe, examples, step, seed=0, micro=0, **settings):
    """The examples of a step and their latents."""
    pictures = Pictures(pipe, FinetuneSettings(batch_size=12, **settings), examples, seed)
    chosen = pictures.chosen(step, micro)
    return chosen, pictures.latents(chosen, step, micro)


def test_a_flip_shows_the_mirrored_picture_and_not_the_mirrored_latents(pipe, examples):
    mirrored = Examples(np.ascontiguousarray(examples.images[:, :, ::-1]), examples.captions)
    plain, other = (encode_images(pipe, some) for some in (examples, mirrored))
    chosen, latents = shown(pipe, examples, 0, random_flip=True)
    is_plain, is_other = (
        [torch.equal(one, some[i]) for one, i in zip(latents, chosen, strict=True)]
        for some in (plain, other)
    )
    assert all(a or b for a, b in zip(is_plain, is_other, strict=True))
    assert 0 < sum(is_other) < 12


@pytest.mark.parametrize("settings", [{"random_flip": True}, {"random_crop": 0.5}])
def test_what_is_shown_hangs_on_seed_step_and_micro_batch_alone(pipe, examples, settings):
    _, once = shown(pipe, examples, 3, **settings)
    torch.manual_seed(5)
    assert torch.equal(shown(pipe, examples, 3, **settings)[1], once)
    for other in ({"seed": 1}, {"micro": 1}):
        assert not torch.equal(shown(pipe, examples, 3, **{**settings, **other})[1], once)
    assert not torch.equal(shown(pipe, examples, 4, **settings)[1], once)


def test_a_crop_is_a_square_of_the_picture_at_its_size(pipe, examples):
    """A picture of one colour looks the same wherever it is cut."""
    colors = np.arange(0, 240, 20, dtype=np.uint8).reshape(12, 1, 1, 1)
    flat = Examples(np.broadcast_to(colors, examples.images.shape).copy(), examples.captions)
    chosen, latents = shown(pipe, flat, 0, random_crop=0.5, random_flip=True)
    torch.testing.assert_close(latents, encode_images(pipe, flat)[chosen], atol=2e-3, rtol=0)
    whole = encode_images(pipe, examples)
    chosen, latents = shown(pipe, examples, 0, random_crop=0.5)
    assert latents.shape == whole.shape
    assert not torch.allclose(latents, whole[chosen], atol=1e-3)
