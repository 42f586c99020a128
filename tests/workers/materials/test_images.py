import pytest
import torch

from workers.erasure.materials import need_pictures
from workers.interfaces.material import Work
from workers.materials.images import Images

PROMPTS = ["a star", "a circle", "a heart"]


def make(pipe, calls=None, **settings):
    images = Images(Images.Settings(**({"images_per_prompt": 2, "sampler_steps": 2} | settings)))
    report = (lambda *call: calls.append(call[:2])) if calls is not None else lambda *_: None
    asked = {"prompts": PROMPTS}
    return images.read(images.make(Work(pipe, asked, None, report)).tensors, asked)


def test_every_picture_has_its_prompt_and_its_latents(pipe):
    pictures = make(pipe)
    assert pictures.prompts == [prompt for prompt in PROMPTS for _ in range(2)]
    assert len(pictures) == 6
    assert pictures.images.shape == (6, 3, 32, 32)
    assert pictures.images.dtype == torch.uint8
    assert pictures.latents.shape == (6, 4, 8, 8)


def test_latents_are_the_scaled_mode_of_the_pictures_own_encoding(pipe):
    pictures = make(pipe)
    pixels = pictures.images.float() / 127.5 - 1
    with torch.no_grad():
        mode = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    torch.testing.assert_close(pictures.latents, mode, atol=1e-5, rtol=1e-4)


def test_pictures_of_one_prompt_differ(pipe):
    pictures = make(pipe)
    assert not torch.equal(pictures.images[0], pictures.images[1])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_batch_size_changes_rounding_only(pipe, batch_size):
    few, many = make(pipe, batch_size=batch_size), make(pipe, batch_size=16)
    assert (few.images.int() - many.images.int()).abs().max() <= 1


def test_the_batch_size_is_no_part_of_what_the_pictures_are():
    one, other = (Images.Settings(batch_size=size) for size in (1, 32))
    assert one.identity() == other.identity()


def test_progress_counts_prompts(pipe):
    calls = []
    make(pipe, calls, batch_size=4)
    assert calls == [(2, 3), (3, 3)]


def test_pictures_are_drawn_as_the_base_draws(tiny_base):
    need = need_pictures(tiny_base, PROMPTS, 5)
    settings = need.plugin.settings
    assert settings.images_per_prompt == 5
    assert settings.guidance == tiny_base.guidance
    assert settings.sampler_steps == tiny_base.sampler_steps
    assert need.asked == {"prompts": PROMPTS}
