import numpy as np
import pytest
import torch

from orchestrator.core.errors import ResurgeError
from workers.erasure.materials import Pictures
from workers.interfaces.material import Work
from workers.materials.masks import Masks, unlike_border
from workers.shapes.render import random_scene, render
from workers.shapes.vocabulary import RGB, SHAPES


def rendered(fill="solid"):
    """One scene of each shape, and where its pixels are nearer to its colour than to its ground."""
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, shape=shape, color="blue", fill=fill) for shape in SHAPES]
    images = torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2)
    grounds = torch.tensor([scene.background for scene in scenes]).float()[..., None, None]
    ink = torch.tensor(RGB["blue"]).float()[:, None, None]
    to_ink, to_ground = ((images.float() - c).norm(dim=1) for c in (ink, grounds))
    return images, to_ink < to_ground


def make(images, **settings):
    masks = Masks(Masks.Settings(**settings))
    pictures = Pictures(torch.zeros(len(images), 4, 8, 8), images, ["a shape"] * len(images))
    made = masks.make(Work(None, {"object": "shape"}, pictures, lambda *_: None))
    return masks.read(made.tensors, {}), made.numbers


def test_contrast_finds_the_rendered_shapes():
    images, truth = rendered()
    masks, numbers = make(images)
    assert masks.dtype == torch.bool
    assert masks.shape == (len(images), 32, 32)
    overlap = (masks & truth).sum(dim=(1, 2)) / (masks | truth).sum(dim=(1, 2))
    assert overlap.min() > 0.75
    assert numbers["area"] == pytest.approx(masks.float().mean().item())


def test_a_dark_object_on_a_light_ground_and_the_reverse():
    images = torch.full((2, 3, 8, 8), 240, dtype=torch.uint8)
    images[0, :, 2:5, 3:6] = 20
    images[1] = 255 - images[0]
    truth = torch.zeros(8, 8, dtype=torch.bool)
    truth[2:5, 3:6] = True
    assert torch.equal(unlike_border(images, 0.15), truth.expand(2, 8, 8))


def test_an_object_that_touches_the_border_is_no_ground():
    images = torch.full((1, 3, 8, 8), 240, dtype=torch.uint8)
    images[..., 5:, 2:5] = 20
    assert unlike_border(images, 0.15).sum() == 9


def test_one_channel_is_enough_to_differ():
    images = torch.full((1, 3, 4, 4), 200, dtype=torch.uint8)
    images[0, 1, 2, 2] = 100
    assert unlike_border(images, 0.15).nonzero().tolist() == [[0, 2, 2]]


def test_pictures_without_any_object_are_refused():
    plain = torch.full((2, 3, 8, 8), 200, dtype=torch.uint8)
    with pytest.raises(ResurgeError, match=r"no picture has an object above the threshold 0\.3"):
        make(plain, threshold=0.3)


def test_a_segmenter_that_is_not_there_is_named(tmp_path):
    images, _ = rendered()
    with pytest.raises(ResurgeError, match="cannot load CLIPSegForImageSegmentation from"):
        make(images, segmenter="clipseg", model=str(tmp_path))
