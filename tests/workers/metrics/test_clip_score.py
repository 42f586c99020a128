import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from tests.workers.metrics.tiny_models import noise_images, pictures_of
from workers.metrics.clip_score import ClipScore

PROMPTS = ("a star", "a red heart")


@pytest.fixture
def cosines(clip_folder):
    """transformers' own forward, (images, prompts)."""
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = AutoTokenizer.from_pretrained(clip_folder)(
        list(PROMPTS), padding=True, return_tensors="pt"
    )
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)(
        [Image.fromarray(image) for image in noise_images(3)], return_tensors="pt"
    )
    with torch.no_grad():
        found = model(**tokens, pixel_values=pixels.pixel_values)
        return (found.logits_per_image / model.logit_scale.exp()).numpy()


def score(folder, **settings):
    images = noise_images(3)
    pictures = [
        *pictures_of(images, prompt=PROMPTS[0]),
        *pictures_of(images, "retained", "heart", PROMPTS[1]),
    ]
    return ClipScore(ClipScore.Settings(model=str(folder), **settings)).score_images(pictures)


def test_each_picture_is_compared_with_its_own_prompt(clip_folder, cosines):
    expected = 100 * np.maximum(0, cosines.T.reshape(-1))
    found = score(clip_folder)
    assert found.values == pytest.approx(expected.tolist(), abs=1e-3)
    assert found.metrics["erased"] == pytest.approx(expected[:3].mean(), abs=1e-3)
    assert found.metrics["retained.heart"] == pytest.approx(expected[3:].mean(), abs=1e-3)


def test_the_scale_is_a_factor(clip_folder):
    whole, unit = score(clip_folder), score(clip_folder, scale=2.5)
    assert np.allclose(np.array(whole.values) / 40, unit.values)


def test_a_cosine_below_0_is_0(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "turned")
    model = CLIPModel.from_pretrained(folder)
    model.visual_projection.weight.data *= -1
    model.save_pretrained(folder)
    assert min(score(clip_folder).values) > 0
    assert set(score(folder).values) == {0}


def test_the_prefix_is_read(clip_folder):
    assert score(clip_folder, prefix="a photo of ").values != score(clip_folder).values
